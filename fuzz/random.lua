-- Random values for property tests, and the comparison of what came back.
--
-- random.new{ classes = { ... } } gives a generator: g:value(depth) makes a
-- value nested at most that deep out of math.random, now and then one that it
-- has made before. random.same(a, b) compares bit for bit, and that what was
-- one object is one object still.

local random = {}

local R = math.random

local NUMBERS = {
    0, 1, -1, 127, 128, -128, -129, 255, 256, 32767, 32768, -32768, -32769,
    2147483647, 2147483648, -2147483648, -2147483649, 1 << 53, (1 << 53) + 1,
    math.maxinteger, math.mininteger, 0.0, -0.0, 3.0, 0.5, 1e308, -1e308,
    5e-324, 2.2250738585072009e-308, 2.0 ^ 53, 2.0 ^ 63, 1 / 0, -1 / 0, 0 / 0,
    -(0 / 0),
}

local function bytes(n)
    local list = {}
    for i = 1, n do list[i] = string.char(R(0, 255)) end
    return table.concat(list)
end

local function text()
    local kind = R(6)
    if kind == 1 then return "" end
    if kind == 2 then return "key" .. R(40) end
    if kind == 3 then return bytes(R(38, 44)) end
    if kind == 4 then return bytes(R(20)) end
    if kind == 5 then return ("long"):rep(R(8, 80)) .. R(3) end
    return ("v"):rep(R(31, 33))
end

local function scalar()
    local kind = R(7)
    if kind == 1 then return NUMBERS[R(#NUMBERS)] end
    if kind == 2 then return R(0) >> R(0, 63) end
    if kind == 3 then return R(-300, 300) end
    if kind == 4 then return R() < 0.5 end
    if kind == 5 then return (R() - 0.5) * 2.0 ^ R(-60, 60) end
    return text()
end

local Generator = {}
Generator.__index = Generator

function Generator:list(t, depth)
    local kind = R(5)
    if kind == 1 then
        local shift = R(0, 60)
        for i = 1, R(0, 40) do t[i] = R(0) >> shift end
    elseif kind == 2 then
        for i = 1, R(0, 40) do t[i] = R() end
    elseif kind == 3 then
        for i = 1, R(0, 6) do t[i] = self:value(depth - 1) end
    elseif kind == 4 then
        for i = 1, R(0, 12) do
            if R() < 0.7 then t[i] = scalar() end
        end
    end
end

local function is_key(k)
    return k ~= nil and k == k
end

function Generator:table(depth)
    local t = {}
    self.made[#self.made + 1] = t
    self:list(t, depth)
    for _ = 1, R(0, 4) do
        local key = scalar()
        if R(8) == 1 then key = self:value(depth - 1) end
        if is_key(key) then t[key] = self:value(depth - 1) end
    end
    local kind = R(10)
    if kind == 1 and #self.classes > 0 then
        setmetatable(t, self.classes[R(#self.classes)])
    elseif kind == 2 then
        setmetatable(t, { tag = scalar(), __metatable = false })
    elseif kind == 3 then
        setmetatable(t, t)
    end
    return t
end

function Generator:closure(depth)
    local a, b = self:value(depth - 1), self:value(depth - 1)
    local function get() return a, b end
    local function set(x) a = x; return get end
    local f = R() < 0.5 and get or set
    self.made[#self.made + 1] = f
    return f
end

function Generator:value(depth)
    if depth <= 0 then return scalar() end
    local kind = R(12)
    if kind <= 5 then return scalar() end
    if kind <= 9 then return self:table(depth) end
    if kind == 10 then return self:closure(depth) end
    if kind == 11 and #self.made > 0 then return self.made[R(#self.made)] end
    return R() < 0.5 and print or string.format
end

--- A generator; what one has made never turns up in another's values.
function random.new(classes)
    return setmetatable({ made = {}, classes = classes or {} }, Generator)
end

-- Comparison. `map` says which object of b each object of a has become, and
-- `back` the reverse.

local same

local function same_number(a, b)
    if math.type(a) ~= math.type(b) then return false, "subtype" end
    if math.type(a) == "integer" then return a == b, "integer" end
    return string.pack("d", a) == string.pack("d", b), "float"
end

local function same_function(a, b, map, back)
    if debug.getinfo(a, "S").what == "C" then return false, "C function" end
    for i = 1, 256 do
        local name, va = debug.getupvalue(a, i)
        local other, vb = debug.getupvalue(b, i)
        if name ~= other then return false, "upvalues" end
        if name == nil then return true end
        local ia, ib = debug.upvalueid(a, i), debug.upvalueid(b, i)
        if (map[ia] or ib) ~= ib or (back[ib] or ia) ~= ia then
            return false, "sharing of " .. name
        end
        map[ia], back[ib] = ib, ia
        local ok, why = same(va, vb, map, back)
        if not ok then return false, name .. ": " .. why end
    end
end

-- Tables as keys are compared by number and through the rest of the value.
local function same_table(a, b, map, back)
    local count, other = 0, 0
    for _ in next, b do other = other + 1 end
    for k, v in next, a do
        count = count + 1
        local key = k
        if type(k) == "table" or (type(k) == "function" and k ~= print and k ~= string.format) then
            key = map[k]
        end
        if key ~= nil then
            local ok, why = same(v, rawget(b, key), map, back)
            if not ok then return false, tostring(k) .. ": " .. why end
        end
    end
    if count ~= other then return false, "number of pairs" end
    local ok, why = same(debug.getmetatable(a), debug.getmetatable(b), map, back)
    return ok, "metatable: " .. tostring(why)
end

function same(a, b, map, back)
    local kind = type(a)
    if kind ~= type(b) then return false, kind .. " became " .. type(b) end
    if kind == "number" then return same_number(a, b) end
    if kind ~= "table" and kind ~= "function" then return a == b, kind end
    if map[a] ~= nil or back[b] ~= nil then
        return map[a] == b and back[b] == a, "identity"
    end
    map[a], back[b] = b, a
    if a == b then return true end  -- it has a name
    if kind == "function" then return same_function(a, b, map, back) end
    return same_table(a, b, map, back)
end

--- Are a and b equal bit for bit? Otherwise false, and where they are not.
function random.same(a, b)
    local ok, why = same(a, b, {}, {})
    return ok, not ok and why or nil
end

return random
