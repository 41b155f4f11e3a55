-- Taking in: what the handle delivers becomes outcomes, events and callbacks.
--
-- The handle calls `failed` and `event` while it delivers; these only note
-- what happened. User code (callbacks, onevent, progress) runs afterwards,
-- inside whichever call is taking in. It may call the pool again: a nested
-- call goes on with the same queue, so each callback runs once and in order.
-- The first error of user code is raised once all of them have run; further
-- ones are warnings. Runs in the parent alone.

local core = require("procpool.core")
local errors = require("procpool.errors")

local NIL = core.NIL
local error, pairs, pcall = error, pairs, pcall
local resume, status = coroutine.resume, coroutine.status
local tostring, unpack, warn = tostring, table.unpack, warn

local intake = {}

-- Which counter of stats() a kind belongs to; the others have none.
local COUNTER = {
    error = "failed", unserializable = "failed", cancelled = "cancelled",
    lost = "lost", timelimit = "timelimit", memory = "memory",
}

---@class procpool.Event
---@field kind string
---@field time number        monotonic seconds
---@field worker integer?
---@field pid integer?
---@field generation integer?
---@field reason string?     of worker_exit
---@field error any          of worker_failed
---@field attempt integer?   of task_retry, task_lost
---@field signal integer?    that ended the worker, of worker_exit

--- State of the intake of one pool. The handle's callbacks see this table
--- only, never the pool, so that a forgotten pool can be collected.
function intake.new(onevent)
    return {
        onevent = onevent,
        finished = {},   -- jobs that became complete; the handle appends
        aborted = {},    -- maps with a first failure: the rest is cancelled
        dropped = {},    -- imaps whose iterator was collected
        events = {},
        displays = {},   -- progress of running maps
        queue = {}, first = 1, last = 0, -- jobs to settle, events to tell
        news = false,    -- any of these may have something, finished aside
        depth = 0,       -- > 0: inside user code
        taken = 0, bad = 0,
        early = 0,       -- of these, gathered and not yet told of
        counts = { failed = 0, cancelled = 0, lost = 0, timelimit = 0, memory = 0 },
    }
end

--- The handle's `failed` callback.
function intake.on_failed(self)
    local counts, aborted = self.counts, self.aborted
    return function(job, index, kind, message, traceback, value, info)
        local err = errors.new(kind, message, traceback, value, info)
        local counter = COUNTER[kind]
        self.bad = self.bad + 1
        if counter then
            counts[counter] = counts[counter] + 1
        end
        if job.kind == "call" then
            job.failure = err
            return
        end
        err.index = index
        if job.kind == "imap" then
            job.failures[index] = err
            job.results[index] = NIL
            job.arrived[#job.arrived + 1] = index
        elseif job.collect then
            job.results[index] = err
            job.failures = job.failures + 1
        elseif not job.failure then
            job.failure = err
            aborted[#aborted + 1], self.news = job, true
        elseif not job.settled and index < job.failure.index then
            job.failure = err
        end
    end
end

--- The handle's `event` callback.
function intake.on_event(self)
    local events = self.events
    return function(kind, time, worker, pid, generation, extra)
        local event = {
            kind = kind, time = time, worker = worker, pid = pid,
            generation = generation,
        }
        if extra then
            event.reason, event.error = extra.reason, extra.error
            event.attempt, event.signal = extra.attempt, extra.signal
        end
        events[#events + 1], self.news = event, true
    end
end

--- Withdraws the tasks of a job. Gently: running items may finish.
---@return boolean any
function intake.cancel(handle, job, gently)
    local any = false
    for _, ticket in pairs(job.tickets) do
        any = handle:cancel(ticket, gently) ~= nil or any
    end
    return any
end

-- Queues what is to be settled, and cancels what nobody wants any more.
local function collect(self)
    local finished, aborted = self.finished, self.aborted
    local dropped, events = self.dropped, self.events
    local queue, last = self.queue, self.last
    for i = 1, #aborted do
        local job = aborted[i]
        aborted[i] = nil
        intake.cancel(self.handle, job, true)
        last = last + 1
        queue[last] = job
    end
    for i = 1, #finished do
        last = last + 1
        queue[last], finished[i] = finished[i], nil
    end
    for i = 1, #events do
        last = last + 1
        queue[last], events[i] = events[i], nil
    end
    for i = 1, #dropped do
        local job = dropped[i]
        dropped[i] = nil
        intake.cancel(self.handle, job)
    end
    self.last = last
end

-- Calls user code; the first error of a round is kept in `round`.
local function call(self, round, f, ...)
    self.depth = self.depth + 1
    local ok, err = pcall(f, ...)
    self.depth = self.depth - 1
    if ok then
        return
    elseif round.failed then
        warn("procpool: another callback raised: " .. tostring(err))
    else
        round.failed, round.err = true, err
    end
end

local function resume_waiter(co)
    if status(co) ~= "suspended" then
        return
    end
    local ok, err = resume(co)
    if not ok then
        error(err, 0)
    end
end

-- A job is over: its callbacks run, once.
local function settle(self, round, job)
    if job.settled then
        return
    end
    job.settled = true
    local failure = job.failure
    if failure then
        if job.error_callback then
            call(self, round, job.error_callback, failure)
        end
    elseif job.callback then
        if job.kind == "call" then
            call(self, round, job.callback, unpack(job, 2, job[1] + 1))
        elseif job.collect then
            call(self, round, job.callback, job.results, job.failures)
        else
            call(self, round, job.callback, job.results)
        end
    end
    if job.waiter then
        call(self, round, resume_waiter, job.waiter)
    end
end

local function show_progress(self, round)
    local displays = self.displays
    for i = #displays, 1, -1 do
        local display = displays[i]
        if display then
            call(self, round, display.update, display)
            if display.over and displays[i] == display then
                table.remove(displays, i)
            end
        end
    end
end

--- Runs what has to run after a delivery; raises the first error of it.
local function deliver(self)
    local round = {}
    self.news = true -- a nested call goes on with the queue
    collect(self)
    if self.displays[1] then
        show_progress(self, round)
    end
    while self.first <= self.last do
        local first = self.first
        local item = self.queue[first]
        self.queue[first], self.first = nil, first + 1
        if item.pool then
            settle(self, round, item)
        elseif self.onevent then
            call(self, round, self.onevent, item)
        end
    end
    self.news = self.displays[1] ~= nil
    return round
end

-- Takes in what has arrived; the number of tasks that ended since the last time.
local function take_in(self)
    local n, early = self.handle:take(), self.early
    self.taken, self.early = self.taken + n, 0
    return n + early
end

--- Takes in what has arrived and runs no user code: callbacks wait, and the
--- tasks are counted, when the next call takes in.
function intake.gather(self)
    self.early = take_in(self)
end

--- Takes in what has arrived, runs callbacks. Returns the number of tasks
--- that ended, and the round of callbacks if one of them raised.
---@return integer
---@return table? round
function intake.take_quietly(self)
    local n = take_in(self)
    if self.news or self.finished[1] then
        local round = deliver(self)
        return n, round.failed and round or nil
    end
    return n
end

--- The same; an error of a callback is raised.
---@return integer
function intake.take(self)
    local n = take_in(self)
    if self.news or self.finished[1] then
        local round = deliver(self)
        if round.failed then
            error(round.err, 0)
        end
    end
    return n
end

--- A job became complete without the handle's knowledge (an empty map).
function intake.complete(self, job)
    local finished = self.finished
    finished[#finished + 1] = job
    local round = deliver(self)
    if round.failed then
        error(round.err, 0)
    end
end

return intake
