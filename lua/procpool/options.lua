-- Every check of what a user hands in, in one place.
--
-- A wrong argument raises an ordinary error that blames the user's line,
-- names the argument and says what was expected. An unknown option name is an
-- error that names the nearest known one. Values come out normalised: integers
-- are integers, "never" is nil.

local getinfo = debug.getinfo
local error, pairs, tostring, type = error, pairs, tostring, type
local getmetatable = getmetatable
local min = math.min
local math_type, tointeger = math.type, math.tointeger

local options = {}

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
options.fail = fail

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

local function bad(what, name, where, expected, v)
    return fail(("bad %s '%s' to '%s' (%s expected, got %s)"):format(
        what, name, where, expected, got(v)))
end

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

local function nearest(name, set)
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

local function whole(v)
    return math_type(v) and tointeger(v) or nil
end

local function integer(low, high)
    return {
        expected = high and ("an integer from %d to %d"):format(low, high)
            or low and ("an integer >= %d"):format(low) or "an integer",
        check = function(v)
            v = whole(v)
            if v and (not low or v >= low) and (not high or v <= high) then
                return v
            end
        end,
    }
end

local seconds = {
    expected = "a number of seconds > 0",
    check = function(v)
        return math_type(v) and v > 0 and min(v, FOREVER) + 0.0 or nil
    end,
}

local pause = {
    expected = "a number of seconds >= 0",
    check = function(v)
        return math_type(v) and v >= 0 and min(v, FOREVER) + 0.0 or nil
    end,
}

local fraction = {
    expected = "a number >= 0 and < 1",
    check = function(v)
        return math_type(v) and v >= 0 and v < 1 and v + 0.0 or nil
    end,
}

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

local func = { expected = "a function", check = callable }

local list = {
    expected = "a table",
    check = function(v) return type(v) == "table" and v or nil end,
}

local title = {
    expected = "a string without zeros",
    check = function(v)
        return type(v) == "string" and not v:find("\0", 1, true) and v or nil
    end,
}

local errors_mode = {
    expected = '"raise" or "collect"',
    check = function(v) return (v == "raise" or v == "collect") and v or nil end,
}

local progress = {
    expected = "true or a function",
    check = function(v) return v == true and v or callable(v) end,
}

local any = { expected = "a value", check = function(v) return v end }

-- Sets of options ------------------------------------------------------------

local MAXPROCESSES = 1024

---@class procpool.Options
---@field processes integer?         workers; 0 = inline; default cpus()
---@field initializer function?      called in each worker before its first task
---@field initargs table?            its arguments
---@field inittimeout number?        time limit of the initializer
---@field finalizer function?        called in a worker that leaves in order
---@field maxtasksperchild integer?  a worker leaves after this many tasks
---@field maxageperchild number?     ... at the end of a task when this old
---@field maxmemoryperchild integer? ... when its private memory exceeds this
---@field recycleif (fun(worker: procpool.Worker): boolean?)? asked after each task
---@field recyclejitter number?      limits are drawn from [limit*(1-j), limit]
---@field idletimeout number?        a worker idle this long leaves
---@field minprocesses integer?      how many stay all the same
---@field timeout number?            time limit of one task
---@field grace number?              seconds between the error and the kill
---@field retries integer?           runs again of a task whose worker died
---@field seed integer?              seeds math.random before each task
---@field shared any                 procpool.worker.shared, by inheritance
---@field maxpending integer?        submissions block at this many unfinished
---@field name string?               shown by ps
---@field onevent fun(event: procpool.Event)? called in the parent
options.POOL = {
    processes = integer(0, MAXPROCESSES),
    initializer = func, initargs = list, inittimeout = seconds,
    finalizer = func,
    maxtasksperchild = integer(1), maxageperchild = seconds,
    maxmemoryperchild = integer(1), recycleif = func,
    recyclejitter = fraction, idletimeout = seconds,
    minprocesses = integer(0, MAXPROCESSES),
    timeout = seconds, grace = pause, retries = integer(0),
    seed = integer(), shared = any, maxpending = integer(1), name = title,
    onevent = func,
}

---@class procpool.TaskOptions
---@field timeout number?   time limit of each task
---@field grace number?     seconds between the error and the kill
---@field retries integer?  runs again of a task whose worker died
options.TASK = { timeout = seconds, grace = pause, retries = integer(0) }

local function extend(base, more)
    local set = {}
    for name, checker in pairs(base) do set[name] = checker end
    for name, checker in pairs(more) do set[name] = checker end
    return set
end

---@class procpool.AsyncOptions: procpool.TaskOptions
---@field callback function?                          gets what get would return
---@field error_callback fun(err: procpool.Error)?
options.ASYNC = extend(options.TASK, { callback = func, error_callback = func })

---@class procpool.MapOptions: procpool.TaskOptions
---@field chunksize integer?              default: self-tuning
---@field errors ("raise"|"collect")?     default "raise"
---@field progress (true|fun(done: integer, total: integer))?
options.MAP = extend(options.TASK, {
    chunksize = integer(1), errors = errors_mode, progress = progress,
})

---@class procpool.MapAsyncOptions: procpool.MapOptions
---@field callback function?
---@field error_callback fun(err: procpool.Error)?
options.MAP_ASYNC = extend(options.MAP,
    { callback = func, error_callback = func })

---@class procpool.ImapOptions: procpool.TaskOptions
---@field chunksize integer?   default 1
---@field buffersize integer?  items read ahead, default 2*processes*chunksize, at least 16
options.IMAP = extend(options.TASK,
    { chunksize = integer(1), buffersize = integer(1) })

local NONE = {}

--- Checks a table of options against a set; nil is no options.
---@param set table
---@param where string  name of the user's call
---@param given table?
---@return table
function options.read(set, where, given)
    if given == nil then
        return NONE
    elseif type(given) ~= "table" then
        bad("argument", "opts", where, "a table", given)
    end
    local out = {}
    for name, v in pairs(given) do
        local checker = set[name]
        if not checker then
            local text = ("unknown option '%s' to '%s'"):format(
                tostring(name), where)
            if type(name) == "string" then
                text = ("%s (did you mean '%s'?)"):format(
                    text, nearest(name, set))
            end
            fail(text)
        end
        local value = checker.check(v)
        if value == nil then
            bad("option", name, where, checker.expected, v)
        end
        out[name] = value
    end
    return out
end

--- The last argument of the map family: a chunksize or a table.
function options.chunked(set, where, given)
    if type(given) == "number" then
        local size = set.chunksize.check(given)
        if not size then
            bad("argument", "chunksize", where, set.chunksize.expected, given)
        end
        return { chunksize = size }
    elseif given ~= nil and type(given) ~= "table" then
        bad("argument", "chunksize", where, "an integer >= 1 or a table of options", given)
    end
    return options.read(set, where, given)
end

-- Arguments ------------------------------------------------------------------

--- Arguments of procpool.new: ([processes] [, options]) or (options).
---@return table
function options.pool(processes, given, cpus)
    local where = "procpool.new"
    if type(processes) == "table" and given == nil then
        processes, given = nil, processes
    end
    local out = extend(options.read(options.POOL, where, given), NONE)
    if processes ~= nil then
        if out.processes then
            fail("bad option 'processes' to 'procpool.new' (given twice)")
        end
        local checker = options.POOL.processes
        out.processes = checker.check(processes)
        if not out.processes then
            bad("argument", "processes", where,
                checker.expected .. " or a table of options", processes)
        end
    end
    out.processes = out.processes or min(cpus(), MAXPROCESSES)
    if out.minprocesses and out.minprocesses > out.processes then
        bad("option", "minprocesses", where,
            ("an integer from 0 to processes, %d"):format(out.processes),
            out.minprocesses)
    end
    if out.initargs then
        options.args(where, out.initargs, "initargs")
    end
    return out
end

--- A function, or a table that can be called.
function options.func(where, f, name)
    if type(f) ~= "function" and not callable(f) then
        bad("argument", name or "f", where, "a function", f)
    end
end

--- A list of arguments; its `n`, if any, is their number.
function options.args(where, args, name)
    if type(args) ~= "table" then
        bad("argument", name or "args", where, "a table", args)
    end
    local n = args.n
    if n ~= nil and not (math_type(n) == "integer" and n >= 0 and n < 1e6) then
        bad("argument", (name or "args") .. ".n", where,
            "an integer from 0 to 999999", n)
    end
end

--- Items: a list or an iterator. Returns the list and its length, or nil and
--- the iterator.
function options.items(where, items)
    if type(items) == "function" then
        return nil, items
    elseif type(items) ~= "table" then
        bad("argument", "items", where, "a list or an iterator function", items)
    end
    local n = items.n
    if n == nil then
        return items, #items
    end
    local size = whole(n)
    if not size or size < 0 then
        bad("argument", "items.n", where, "an integer >= 0", n)
    end
    return items, size
end

--- Seconds to wait: nil is for ever. Returns the deadline on core's clock.
function options.deadline(where, timeout, now)
    if timeout == nil then
        return nil
    elseif not math_type(timeout) or timeout ~= timeout or timeout < 0 then
        bad("argument", "timeout", where, "a number of seconds >= 0", timeout)
    end
    return timeout < FOREVER and now() + timeout or nil
end

--- An integer argument within bounds.
function options.integer(where, name, v, low, high)
    local value = whole(v)
    if not value or value < low or value > high then
        bad("argument", name, where,
            ("an integer from %d to %d"):format(low, high), v)
    end
    return value
end

--- procpool.register's arguments.
function options.registration(name, value)
    local where = "procpool.register"
    if type(name) ~= "string" or name == "" then
        bad("argument", "name", where, "a name", name)
    end
    local kind = type(value)
    if kind ~= "table" and kind ~= "function" and kind ~= "userdata" then
        bad("argument", "value", where, "a table, function or userdata", value)
    end
end

options.MAXPROCESSES = MAXPROCESSES
return options
