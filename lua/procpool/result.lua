-- AsyncResult: the promise of one task, or of one map.
--
-- The object is the job the handle delivers into, so that a submission costs
-- one small table. Of a call (`kind == "call"`): [1] is the number of results,
-- which follow; -1 - ticket while there are none yet. What all calls of a pool
-- have in common (pool, kind) is in their class, since the collector's work on
-- jobs is what bounds a long queue. Of a map (`kind ==
-- "map"`): results, and left, the tasks without outcome. A bad end is noted in
-- `failure`. Runs in the parent alone.

local core = require("procpool.core")
local errors = require("procpool.errors")
local intake = require("procpool.intake")
local options = require("procpool.options")

local now, getpid = core.now, core.getpid
local coroutine, error, getmetatable = coroutine, error, getmetatable
local pairs, type = pairs, type
local unpack = table.unpack

---@class procpool.AsyncResult
---@field private kind "call"|"map"
---@field private pool procpool.Pool
---@field private tickets table<integer, any>  by the chunk's last item
---@field private results table
---@field private count integer
---@field private left integer
---@field private open integer       1 while items are still being read
---@field private failure procpool.Error?
---@field private failures integer
---@field private collect boolean
---@field private callback function?
---@field private error_callback function?
---@field private notify boolean?
---@field private settled boolean?
---@field private waiter thread?
---@field private cancelled boolean?  asked for
---@field private abandoned boolean?  nobody waits for it any more
local AsyncResult = {}

local NAME = "procpool.AsyncResult"

local function refuse_to_travel()
    error("a result belongs to its pool", 0)
end

local meta = { __name = NAME, __index = AsyncResult, __reduce = refuse_to_travel }

local result = { meta = meta }

local function is_done(job)
    if job.kind == "call" then
        return job[1] >= 0 or job.failure
    end
    return job.left == 0 or job.failure
end

--- Waits until a job is over, taking in what arrives.
---@return boolean # false: the deadline came first
local function wait_for(job, deadline)
    local state, handle = job.pool._intake, job.pool._handle
    local take = intake.take
    take(state)
    while not is_done(job) do
        handle:wait(deadline)
        take(state)
        if deadline and not is_done(job) and now() >= deadline then
            return false
        end
    end
    return true
end
result.wait_for = wait_for
result.is_done = is_done

--- What a finished job gives, or its error.
local function outcome(job)
    if job.failure then
        error(job.failure, 0)
    elseif job.kind == "call" then
        return unpack(job, 2, job[1] + 1)
    elseif job.collect then
        return job.results, job.failures
    end
    return job.results
end
result.outcome = outcome

local function owned(job)
    if getpid() ~= job.pool._owner then
        job.pool:_check()
    end
end

-- Raises unless a method was called on a result.
local function check(job)
    local class = type(job) == "table" and getmetatable(job)
    if not class or class.__name ~= NAME then
        options.fail(("bad argument 'self' (a %s expected, got %s; call methods"
            .. " with a colon)"):format(NAME, type(job)))
    end
end

--- Takes in what has arrived; is the job over?
local function look(job)
    check(job)
    if is_done(job) then
        return true
    end
    owned(job)
    local pool = job.pool
    intake.take(pool._intake)
    if not is_done(job) and pool._handle:state() == "broken" then
        intake.take(pool._intake) -- the keeper's death has just been noticed
    end
    return is_done(job) and true or false
end

--- The results, or raises the error; kind `timeout` when the wait ends first.
---@param timeout number? seconds; 0 does not wait; nil waits for ever
---@return any ...
function AsyncResult:get(timeout)
    check(self)
    local deadline = options.deadline("get", timeout, now)
    if not is_done(self) then
        owned(self)
        if not wait_for(self, deadline) then
            errors.raise("timeout", ("no result within %g s"):format(timeout))
        end
    end
    return outcome(self)
end

--- Waits; true when the result is there.
---@param timeout number?
---@return boolean
function AsyncResult:wait(timeout)
    check(self)
    local deadline = options.deadline("wait", timeout, now)
    if is_done(self) then
        return true
    end
    owned(self)
    return wait_for(self, deadline)
end

--- Is the result, or the error, there?
---@return boolean
function AsyncResult:ready()
    return look(self)
end

--- Did it end with a result? Raises when it is not ready.
---@return boolean
function AsyncResult:successful()
    if not look(self) then
        options.fail("result is not ready")
    end
    return not self.failure
end

--- Withdraws a queued task, stops a running one as its time limit would.
---@return boolean # false when it is over already
function AsyncResult:cancel()
    if look(self) then
        return false
    end
    local handle = self.pool._handle
    if self.kind == "call" then
        return handle:cancel(-1 - self[1]) ~= nil
    end
    self.cancelled = intake.cancel(handle, self)
    return self.cancelled
end

--- Where it stands.
---@return "queued"|"running"|"done"|"failed"|"cancelled"
function AsyncResult:status()
    if look(self) then
        local failure = self.failure
        if self.cancelled and self.collect and self.failures > 0 then
            return "cancelled"
        end
        return not failure and "done"
            or failure.kind == "cancelled" and "cancelled" or "failed"
    end
    local handle = self.pool._handle
    if self.kind == "call" then
        return handle:running(-1 - self[1]) and "running" or "queued"
    elseif self.left < self.count + self.open then
        return "running"
    end
    for _, ticket in pairs(self.tickets) do
        if handle:running(ticket) then
            return "running"
        end
    end
    return "queued"
end

function meta:__tostring()
    local state = "pending"
    if is_done(self) then
        state = self.failure and self.failure.kind or "done"
    end
    return ("procpool.AsyncResult (%s)"):format(state)
end

--- The metatable of a pool's calls.
function result.class(pool)
    local index = { kind = "call", pool = pool }
    for name, method in pairs(AsyncResult) do
        index[name] = method
    end
    -- The commonest way to ask first.
    index.get = function(self, timeout)
        local n = type(self) == "table" and self[1]
        if timeout ~= nil or not n or n < 0 then
            return AsyncResult.get(self, timeout)
        elseif n == 1 then
            return self[2]
        end
        return unpack(self, 2, n + 1)
    end
    return { __name = NAME, __index = index, __reduce = refuse_to_travel,
        __tostring = meta.__tostring }
end

--- Waits for a result inside a coroutine, without blocking the others: the
--- coroutine is parked until whoever polls the pool has taken the result in.
--- With `wait`, that function is called instead until the result is there
--- (for schedulers that must do the parking themselves). Outside a coroutine
--- it is get().
---@param job procpool.AsyncResult
---@param wait fun()?
---@return any ...
function result.await(job, wait)
    local class = getmetatable(job)
    if type(job) ~= "table" or type(class) ~= "table" or class.__name ~= NAME then
        options.fail("bad argument 'result' to 'procpool.await'"
            .. " (a procpool.AsyncResult expected, got " .. type(job) .. ")")
    elseif wait ~= nil then
        options.func("procpool.await", wait, "wait")
    end
    while not look(job) do
        if wait then
            wait()
        elseif coroutine.isyieldable() then
            if job.waiter then
                options.fail("another coroutine awaits this result")
            end
            job.waiter, job.notify = coroutine.running(), true
            coroutine.yield(job)
            job.waiter = nil
        else
            wait_for(job, nil)
        end
    end
    return outcome(job)
end

return result
