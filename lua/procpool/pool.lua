-- Pool: the user's handle on a set of workers.
--
-- The methods check their arguments, hand the work to the engine's handle
-- (the C core, or its twin in this process when processes = 0) and take its
-- deliveries in. Every method belongs to the process that made the pool and
-- raises in any other. Runs in the parent alone.

local core = require("procpool.core")
local ending = require("procpool.ending")
local errors = require("procpool.errors")
local imap = require("procpool.imap")
local intake = require("procpool.intake")
local map = require("procpool.map")
local options = require("procpool.options")
local result = require("procpool.result")

local now, getpid = core.now, core.getpid
local take = intake.take
local error, getmetatable, pairs = error, getmetatable, pairs
local setmetatable, type = setmetatable, type
local unpack = table.unpack

---@class procpool.Pool
---@field processes integer  the size
---@field private _handle table
---@field private _intake table
---@field private _owner integer
---@field private _state "running"|"closed"|"terminated"  as asked for
---@field private _maxpending integer?
---@field private _usual function|false  the last function that passed the checks
---@field private _call table  metatable of the jobs of calls
---@field private _imaps table<table, true>  jobs of imaps not fully read
---@field private _draining boolean  the engine has been told to close
local Pool = {}

local meta = {
    __name = "procpool.Pool",
    __index = Pool,
    __reduce = function() error("a pool belongs to its process", 0) end,
}

local EMPTY = { n = 0 }

-- The handles of pools, by pool: unlike a field, it may be asked of anything.
local handle_of = setmetatable({}, { __mode = "k" })

-- Checks ---------------------------------------------------------------------

-- Raises unless called on a pool, in the process that made it.
local function check(self)
    if type(self) ~= "table" or getmetatable(self) ~= meta then
        options.fail("bad argument 'self' (a procpool.Pool expected, got "
            .. type(self) .. "; call methods with a colon)")
    elseif getpid() ~= self._owner then
        options.fail(("this pool belongs to process %d, not to its child %d")
            :format(self._owner, getpid()))
    end
end

---@private
Pool._check = check

--- The error object for a refused submission.
---@private
function Pool:_refusal(kind, text)
    local state, broken, message, traceback, value = self._handle:state()
    if self._state == "terminated" then
        return errors.new("terminated", "the pool is terminated")
    elseif state == "broken" then
        return errors.new(broken or "broken", message, traceback, value)
    elseif self._state == "closed" and kind ~= "unserializable" then
        return errors.new("closed", "the pool is closed")
    end
    return errors.new(kind, text)
end

--- Raises when the pool takes no new tasks.
---@private
function Pool:_accept()
    if self._state ~= "running" or self._handle:state() ~= "running" then
        error(self:_refusal("closed"), 0)
    end
end

-- One task -------------------------------------------------------------------

-- Queues a call; returns its ticket or raises. Awaited: the caller does nothing
-- else until it is over.
local function submit(self, job, f, args, opts, awaited)
    local handle = self._handle
    while true do
        local ticket, kind, text = handle:call(job, f, args,
            opts.timeout, opts.grace, opts.retries, awaited)
        if ticket then
            return ticket
        elseif kind ~= "full" then
            error(self:_refusal(kind, text), 0)
        elseif handle:unfinished() == 0 then
            errors.raise("unserializable",
                text or "the arguments are larger than the pool's memory")
        end
        map.make_room(self)
        if self._state ~= "running" then
            error(self:_refusal("closed"), 0)
        end
    end
end

-- The checks of a call. A function that passed them is remembered as usual: a
-- call of it again, without options, goes the short way below, where every
-- check counts (a submission costs less than a microsecond).
local function check_call(self, where, f, args)
    check(self)
    options.func(where, f)
    options.args(where, args)
    if self._state ~= "running" then
        error(self:_refusal("closed"), 0)
    end
    self._usual = not self._maxpending and f or false
end

-- Waits for the result of a call that nobody else sees.
local function finish(self, job)
    local state, handle = self._intake, self._handle
    while job[1] < 0 do
        if job.failure then
            error(job.failure, 0)
        end
        handle:wait()
        take(state)
    end
    return unpack(job, 2, job[1] + 1)
end

--- Runs f(table.unpack(args)) in a worker and waits for it.
---@param f function
---@param args table?  list of arguments, `n` honoured
---@param opts procpool.TaskOptions?
---@return any ...     all that f returned
function Pool:apply(f, args, opts)
    local handle = opts == nil and handle_of[self]
    if handle and f == self._usual and getpid() == self._owner then
        local job = handle:submit(f, args, true)
        if job then
            return finish(self, job)
        end
    end
    args = args == nil and EMPTY or args
    check_call(self, "apply", f, args)
    opts = options.read(options.TASK, "apply", opts)
    local job = setmetatable({ -1 }, self._call)
    submit(self, job, f, args, opts, true)
    return finish(self, job)
end

-- apply_async the long way: with options, for a new function, on a full board.
local function apply_async(self, f, args, opts)
    args = args == nil and EMPTY or args
    check_call(self, "apply_async", f, args)
    opts = options.read(options.ASYNC, "apply_async", opts)
    local job = setmetatable({ -1 }, self._call)
    job.callback, job.error_callback = opts.callback, opts.error_callback
    job.notify = (opts.callback or opts.error_callback) and true or nil
    if self._maxpending then
        map.admit(self, 1)
    end
    job[1] = -1 - submit(self, job, f, args, opts)
    return job
end

--- Queues f(table.unpack(args)); returns at once.
---@param f function
---@param args table?
---@param opts procpool.AsyncOptions?
---@return procpool.AsyncResult
function Pool:apply_async(f, args, opts)
    local handle = opts == nil and handle_of[self]
    if handle and f == self._usual and getpid() == self._owner then
        local job, due = handle:submit(f, args)
        if job then
            if due then
                intake.gather(self._intake)
            end
            return job
        end
    end
    return apply_async(self, f, args, opts)
end

-- Many tasks -----------------------------------------------------------------

--- f of every item, in the order of the items; waits for all of them.
---@param f function
---@param items table|fun(): any         a list (`n` honoured) or an iterator
---@param opts (integer|procpool.MapOptions)?  chunksize or options
---@return table results                 with `n`
---@return integer? failures             with errors = "collect"
function Pool:map(f, items, opts)
    check(self)
    return map.run(self, "map", f, items, opts, false, true)
end

--- map that returns at once.
---@param f function
---@param items table|fun(): any
---@param opts (integer|procpool.MapAsyncOptions)?
---@return procpool.AsyncResult
function Pool:map_async(f, items, opts)
    check(self)
    return map.run(self, "map_async", f, items, opts, false, false)
end

--- map whose items are lists of arguments.
---@param f function
---@param arglists table|fun(): table?
---@param opts (integer|procpool.MapOptions)?
---@return table results
---@return integer? failures
function Pool:starmap(f, arglists, opts)
    check(self)
    return map.run(self, "starmap", f, arglists, opts, true, true)
end

--- starmap that returns at once.
---@param f function
---@param arglists table|fun(): table?
---@param opts (integer|procpool.MapAsyncOptions)?
---@return procpool.AsyncResult
function Pool:starmap_async(f, arglists, opts)
    check(self)
    return map.run(self, "starmap_async", f, arglists, opts, true, false)
end

--- Iterates over f of every item in order, each as soon as it is there; items
--- are read as the loop goes on. For the generic for, or it:next([timeout]).
---@param f function
---@param items table|fun(): any
---@param opts procpool.ImapOptions?
---@return procpool.Imap|fun(): integer, any
---@return nil
---@return nil
---@return procpool.Imap closing
function Pool:imap(f, items, opts)
    check(self)
    return imap.new(self, "imap", f, items, opts, true)
end

--- imap in the order of completion.
---@param f function
---@param items table|fun(): any
---@param opts procpool.ImapOptions?
---@return procpool.Imap|fun(): integer, any
---@return nil
---@return nil
---@return procpool.Imap closing
function Pool:imap_unordered(f, items, opts)
    check(self)
    return imap.new(self, "imap_unordered", f, items, opts, false)
end

-- The end --------------------------------------------------------------------

--- No new tasks; those submitted finish, and open imaps go on.
function Pool:close()
    check(self)
    ending.close(self)
end

--- Kills at once and reaps; unfinished tasks fail with kind `terminated`.
function Pool:terminate()
    check(self)
    ending.terminate(self)
    take(self._intake)
end

--- After close or terminate: waits until every process is gone.
---@param timeout number?
---@return true?
---@return "timeout"?
function Pool:join(timeout)
    check(self)
    local deadline = options.deadline("join", timeout, now)
    if self:state() == "running" then
        options.fail("the pool is running: close or terminate it before join")
    end
    if ending.join(self, deadline) then
        return true
    end
    return nil, "timeout"
end

meta.__close = ending.leave
meta.__gc = ending.forget

-- Control and watching -------------------------------------------------------

--- Grows or shrinks; busy workers finish their task first.
---@param n integer
function Pool:resize(n)
    check(self)
    n = options.integer("resize", "n", n, 1, options.MAXPROCESSES)
    self:_accept()
    if self.processes == 0 then
        options.fail("an inline pool (processes = 0) cannot be resized")
    end
    if not self._handle:resize(n) then
        options.fail(("there is no room for %d workers in the pool's memory"):format(n))
    end
    self.processes = n
end

--- Gracefully replaces one worker or, a few at a time, all.
---@param id integer?
function Pool:recycle(id)
    check(self)
    if id ~= nil then
        id = options.integer("recycle", "id", id, 1, self.processes > 0 and self.processes or 1)
    end
    self:_accept()
    self._handle:recycle(id)
end

--- Takes in what has arrived and runs callbacks; waits for the first of it if
--- a timeout is given.
---@param timeout number?
---@return integer # tasks completed
function Pool:poll(timeout)
    check(self)
    timeout = timeout == nil and 0 or timeout
    local deadline = options.deadline("poll", timeout, now)
    local state, handle = self._intake, self._handle
    handle:state() -- notices the keeper's death, which nobody else tells of
    local n = take(state)
    while n == 0 and timeout > 0 do
        if (not deadline or self.processes == 0) and handle:unfinished() == 0 then
            return 0 -- nothing would ever come
        end
        handle:wait(deadline)
        n = take(state)
        if deadline and now() >= deadline then
            return n
        end
    end
    return n
end

--- A descriptor that is readable while poll has something to do.
---@return integer
function Pool:fileno()
    check(self)
    local fd = self._handle:fileno(self._intake.early > 0)
    if not fd then
        options.fail("an inline pool (processes = 0) has no descriptor")
    end
    return fd
end

--- Where the pool stands.
---@return "running"|"closed"|"terminated"|"broken"
function Pool:state()
    check(self)
    if self._state ~= "terminated" and self._handle:state() == "broken" then
        return "broken"
    end
    return self._state
end

---@class procpool.Stats
---@field processes integer
---@field state string
---@field idle integer
---@field busy integer
---@field queued integer
---@field running integer
---@field completed integer  ended with a result
---@field failed integer     kinds error and unserializable
---@field cancelled integer
---@field lost integer
---@field timelimit integer
---@field memory integer
---@field retried integer
---@field recycled table<string, integer>
---@field bytes { sent: integer, received: integer, shared: integer }
---@field workers procpool.WorkerStats[]

---@class procpool.WorkerStats
---@field id integer            slot
---@field pid integer?          nil: no process now
---@field generation integer
---@field state string
---@field tasks integer
---@field age number
---@field memory integer
---@field cpu number
---@field running_for number?

--- Counters, and one row per worker.
---@return procpool.Stats
function Pool:stats()
    check(self)
    local state = self._intake
    take(state)
    local stats = self._handle:stats()
    for name, count in pairs(state.counts) do
        stats[name] = count
    end
    stats.completed = state.taken - state.bad
    stats.processes, stats.state = self.processes, self:state()
    return stats
end

function meta:__tostring()
    if getpid() ~= self._owner then
        return ("procpool.Pool (of process %d)"):format(self._owner)
    end
    if self.processes == 0 then
        return ("procpool.Pool (%s, inline)"):format(self:state())
    end
    local live = 0
    for _, worker in pairs(self._handle:stats().workers) do
        live = worker.pid and worker.pid > 0 and live + 1 or live
    end
    return ("procpool.Pool (%s, %d/%d workers)"):format(
        self:state(), live, self.processes)
end

-- Making one -----------------------------------------------------------------

local pool = {}

--- Makes a pool around an opened handle.
---@return procpool.Pool
function pool.new(handle, state, opts)
    state.handle = handle
    local self = setmetatable({
        processes = opts.processes, _handle = handle, _intake = state,
        _owner = getpid(), _state = "running", _maxpending = opts.maxpending, _usual = false,
        _imaps = setmetatable({}, { __mode = "k" }), _draining = false,
    }, meta)
    handle_of[self] = handle
    self._call = result.class(self)
    handle:class(self._call)
    return self
end

return pool
