-- Every check of what a user hands in, in one place.
--
-- A wrong argument raises an ordinary error that blames the user's line,
-- names the argument and says what was expected. An unknown option name is an
-- error that names the nearest known one. Values come out normalised: integers
-- are integers, "never" is nil.

local check = require("procpool.check")

local bad, fail, callable = check.bad, check.fail, check.callable
local pairs, tostring, type = pairs, tostring, type
local math_type, min = math.type, math.min

local options = { fail = fail }

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
    processes = check.integer(0, MAXPROCESSES),
    initializer = check.func, initargs = check.list, inittimeout = check.seconds,
    finalizer = check.func,
    maxtasksperchild = check.integer(1), maxageperchild = check.seconds,
    maxmemoryperchild = check.integer(1), recycleif = check.func,
    recyclejitter = check.fraction, idletimeout = check.seconds,
    minprocesses = check.integer(0, MAXPROCESSES),
    timeout = check.seconds, grace = check.pause, retries = check.integer(0),
    seed = check.integer(), shared = check.any, maxpending = check.integer(1), name = check.title,
    onevent = check.func,
}

---@class procpool.TaskOptions
---@field timeout number?   time limit of each task
---@field grace number?     seconds between the error and the kill
---@field retries integer?  runs again of a task whose worker died
options.TASK = { timeout = check.seconds, grace = check.pause, retries = check.integer(0) }

local function extend(base, more)
    local set = {}
    for name, checker in pairs(base) do set[name] = checker end
    for name, checker in pairs(more) do set[name] = checker end
    return set
end

---@class procpool.AsyncOptions: procpool.TaskOptions
---@field callback function?                          gets what get would return
---@field error_callback fun(err: procpool.Error)?
options.ASYNC = extend(options.TASK, { callback = check.func, error_callback = check.func })

---@class procpool.MapOptions: procpool.TaskOptions
---@field chunksize integer?              default: self-tuning
---@field errors ("raise"|"collect")?     default "raise"
---@field progress (true|fun(done: integer, total: integer))?
options.MAP = extend(options.TASK, {
    chunksize = check.integer(1), errors = check.errors_mode, progress = check.progress,
})

---@class procpool.MapAsyncOptions: procpool.MapOptions
---@field callback function?
---@field error_callback fun(err: procpool.Error)?
options.MAP_ASYNC = extend(options.MAP,
    { callback = check.func, error_callback = check.func })

---@class procpool.ImapOptions: procpool.TaskOptions
---@field chunksize integer?   default 1
---@field buffersize integer?  items read ahead, default 2*processes*chunksize, at least 16
options.IMAP = extend(options.TASK,
    { chunksize = check.integer(1), buffersize = check.integer(1) })

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
                    text, check.nearest(name, set))
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
    local size = n == nil and 0 or check.whole(n)
    if not size or size < 0 or size >= 1e6 then
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
    local size = check.whole(n)
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
    return timeout < check.FOREVER and now() + timeout or nil
end

--- An integer argument within bounds.
function options.integer(where, name, v, low, high)
    local value = check.whole(v)
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
