-- Checks of single values, and the errors a wrong one raises.
--
-- A checker is a table with `expected`, for the message, and check(v), which
-- returns the value in its normal form or nil when it is wrong.

local getinfo = debug.getinfo
local error, pairs, tostring, type = error, pairs, tostring, type
local getmetatable = getmetatable
local min = math.min
local math_type, tointeger = math.type, math.tointeger

local check = {}

-- Errors ---------------------------------------------------------------------

local HERE = getinfo(1, "S").source:match("^@.*[/\\]")

--- Raises `text`, blaming the nearest Lua line outside this library.
---@param text string
local function fail(text)
    local level = 2
    while HERE do
        local info = getinfo(level, "S")
        if not info then
            break
        elseif info.what ~= "C" and info.source:sub(1, #HERE) ~= HERE then
            return error(text, level)
        end
        level = level + 1
    end
    return error(text, 3)
end
check.fail = fail

--- What was passed, for the end of a message.
local function got(v)
    local kind = type(v)
    if kind == "number" then
        return v ~= v and "NaN" or tostring(v)
    elseif kind == "string" then
        return ("string %q"):format(#v > 20 and v:sub(1, 20) .. "..." or v)
    elseif kind == "boolean" then
        return tostring(v)
    elseif kind == "nil" then
        return "no value"
    end
    return kind
end

--- Raises: the argument or option `name` of `where` is `v`, not as expected.
local function bad(what, name, where, expected, v)
    return fail(("bad %s '%s' to '%s' (%s expected, got %s)"):format(
        what, name, where, expected, got(v)))
end
check.bad = bad

--- Edit distance, a swap of neighbours counting one.
local function distance(a, b)
    local before, last, row
    row = {}
    for j = 0, #b do
        row[j] = j
    end
    for i = 1, #a do
        before, last, row = last, row, { [0] = i }
        for j = 1, #b do
            local same = a:byte(i) == b:byte(j)
            local best = min(last[j] + 1, row[j - 1] + 1,
                last[j - 1] + (same and 0 or 1))
            if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1)
                and a:byte(i - 1) == b:byte(j) then
                best = min(best, before[j - 2] + 1)
            end
            row[j] = best
        end
    end
    return row[#b]
end

--- The name in a set that is most like the one given.
---@return string
function check.nearest(name, set)
    local best, least
    for known in pairs(set) do
        local d = distance(name:lower(), known)
        if not least or d < least or d == least and known < best then
            best, least = known, d
        end
    end
    return best
end

-- Checkers: each has `expected` and check(v) -> value, or nil when wrong ------

local FOREVER = 1e9 -- seconds; keeps arithmetic in the core far from overflow
check.FOREVER = FOREVER

--- An integer, from a float too if its value is integral; else nil.
function check.whole(v)
    return math_type(v) and tointeger(v) or nil
end

function check.integer(low, high)
    return {
        expected = high and ("an integer from %d to %d"):format(low, high)
            or low and ("an integer >= %d"):format(low) or "an integer",
        check = function(v)
            v = check.whole(v)
            if v and (not low or v >= low) and (not high or v <= high) then
                return v
            end
        end,
    }
end

check.seconds = {
    expected = "a number of seconds > 0",
    check = function(v)
        return math_type(v) and v > 0 and min(v, FOREVER) + 0.0 or nil
    end,
}

check.pause = {
    expected = "a number of seconds >= 0",
    check = function(v)
        return math_type(v) and v >= 0 and min(v, FOREVER) + 0.0 or nil
    end,
}

check.fraction = {
    expected = "a number >= 0 and < 1",
    check = function(v)
        return math_type(v) and v >= 0 and v < 1 and v + 0.0 or nil
    end,
}

--- A function, or a table that can be called; else nil.
local function callable(v)
    if type(v) == "function" then
        return v
    end
    local meta = getmetatable(v)
    if type(v) == "table" and type(meta) == "table"
        and type(meta.__call) == "function" then
        return v
    end
end

check.callable = callable

check.func = { expected = "a function", check = callable }

check.list = {
    expected = "a table",
    check = function(v) return type(v) == "table" and v or nil end,
}

check.title = {
    expected = "a string without zeros",
    check = function(v)
        return type(v) == "string" and not v:find("\0", 1, true) and v or nil
    end,
}

check.errors_mode = {
    expected = '"raise" or "collect"',
    check = function(v) return (v == "raise" or v == "collect") and v or nil end,
}

check.progress = {
    expected = "true or a function",
    check = function(v) return v == true and v or callable(v) end,
}

check.any = { expected = "a value", check = function(v) return v end }

return check
