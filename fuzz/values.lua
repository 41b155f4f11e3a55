-- Sample values, each made by a function: what the codec's specs send there
-- and back, and what the fuzzer's corpus is made from (fuzz/corpus.lua).
--
-- A sample is { name, function returning the values of one message }.

local values = {}

local function add(name, make)
    values[#values + 1] = { name, make }
end

add("nothing", function() end)
add("nils", function() return nil, nil end)
add("booleans", function() return true, false end)
add("small integers", function() return 0, 1, 127 end)
add("integers of every width", function()
    return -1, 128, -128, -129, 255, 256, 32767, 32768, -32768, -32769,
        65535, 65536, 2147483647, 2147483648, -2147483648, -2147483649
end)
add("extreme integers", function()
    return math.maxinteger, math.mininteger, 1 << 53, (1 << 53) + 1, (1 << 53) - 1
end)
add("floats", function()
    return 0.5, -0.0, 0.0, 3.0, 1e308, 5e-324, 2.0 ^ 53, 1 / 0, -1 / 0
end)
add("NaNs", function()
    return 0 / 0, -(0 / 0), (string.unpack("<d", "\1\0\0\0\0\0\xf0\x7f"))
end)
add("short strings", function()
    return "", "a", "\0", "naïve", "\xff\xfe", ("x"):rep(31), ("x"):rep(32), ("y"):rep(40)
end)
add("long strings", function()
    return ("x"):rep(41), ("y"):rep(251), ("z"):rep(252), ("w"):rep(70000)
end)
add("every byte", function()
    local bytes = {}
    for i = 0, 255 do bytes[i + 1] = string.char(i) end
    return table.concat(bytes)
end)
add("one string many times", function()
    local long = ("shared"):rep(20)
    return { "key", "key", "key", long, long, key = "key", other = long }
end)
add("many values", function()
    local list = {}
    for i = 1, 300 do list[i] = i end
    return table.unpack(list)
end)
add("empty table", function() return {} end)
add("list", function() return { 1, "two", 3.5, true, { 5 } } end)
add("list with holes", function() return { 1, nil, 3, nil, nil, 6, n = 7 } end)
add("list with a large hole", function() return { [1] = 1, [2] = 2, [20] = 20 } end)
add("integers in a list", function()
    local lists = {}
    for _, step in ipairs { 1, 100, 70000, 1 << 40 } do
        local list = {}
        for i = 1, 40 do list[i] = (i - 20) * step end
        lists[#lists + 1] = list
    end
    return lists
end)
add("floats in a list", function()
    local list = {}
    for i = 1, 40 do list[i] = i / 3 end
    return list
end)
add("runs and other items", function()
    local list = {}
    for i = 1, 60 do
        list[i] = i % 20 == 0 and "x" or i % 20 < 10 and i or i / 2
    end
    return list
end)
add("more numbers than a run has", function()
    local list = {}
    for i = 1, 1500 do list[i] = i * i end
    return list
end)
add("record", function() return { id = 1, name = "bob", score = 2.5 } end)
add("records", function()
    local list = {}
    for i = 1, 30 do list[i] = { id = i, name = "user" .. i, score = i / 2 } end
    return list
end)
add("keys of every type", function()
    return { [1] = 1, [2.5] = 2, [true] = 3, [false] = 4, [-7] = 5, [1 / 0] = 6,
        [math.mininteger] = 7, [("k"):rep(60)] = 8 }
end)
add("table as key", function()
    local key = { "key" }
    return { [key] = { "value" }, key = key }
end)
add("function as key", function()
    local function key() return 1 end
    return { [key] = key, print = print, [print] = 1 }
end)
add("list and pairs", function() return { 1, 2, 3, x = 4, y = { 5 } } end)
add("cycle", function()
    local t = { name = "loop" }
    t.self = t
    t[1] = { up = t }
    return t, t
end)
add("shared tables", function()
    local shared = { 1 }
    return { shared, shared, { shared } }, shared
end)
add("deep", function()
    local top = {}
    local t = top
    for _ = 1, 1000 do
        t[1] = {}
        t = t[1]
    end
    return top
end)
add("metatable by value", function()
    local mt = { __index = function(_, k) return k end, __len = error }
    return setmetatable({ 1 }, mt), setmetatable({ 2 }, mt)
end)
add("its own metatable", function()
    local t = { __index = { x = 1 } }
    return setmetatable(t, t)
end)
add("protected metatable", function()
    return setmetatable({ 1 }, { __metatable = "locked", __index = { y = 2 } })
end)
add("metatable with finalizer and mode", function()
    return setmetatable({ 1 }, { __gc = function() end, __mode = "k", __close = error })
end)
add("function", function() return function(x) return x + 1 end end)
add("closure", function()
    local a, b = 1, { 2 }
    return function() return a, b, print end
end)
add("shared upvalue", function()
    local n = 0
    return function() n = n + 1; return n end, function() return n end
end)
add("recursive function", function()
    local function factorial(n) return n < 2 and 1 or n * factorial(n - 1) end
    return factorial
end)
add("mutually recursive functions", function()
    local even, odd
    function even(n) return n == 0 or odd(n - 1) end
    function odd(n) return n ~= 0 and even(n - 1) end
    return even
end)
add("environment by value", function()
    return load("x = (x or 0) + 1 return x", "=env", "t", { x = 5 })
end)
add("stripped function", function()
    return load(string.dump(function(x) return x end, true), "stripped", "b")
end)
add("names", function()
    return print, string.format, string, math.random, io.write, require, _G
end)
add("reduced", function()
    local function build(a, b) return { built = true, a = a, b = b } end
    local mt = { __reduce = function(o) return build, o.a, { o.b } end }
    local o = setmetatable({ a = 1, b = 2 }, mt)
    return o, { o, o }
end)

return values
