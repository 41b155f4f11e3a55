-- The map family's submission: items become chunks, chunks become cells.
--
-- A list's items are encoded straight from it; an iterator's are collected a
-- chunk at a time. A full board, or maxpending, is waited out by taking
-- results in. Leaving by an error (the iterator's, a callback's, Ctrl-C)
-- cancels what has not been started. Runs in the parent alone.

local core = require("procpool.core")
local errors = require("procpool.errors")
local intake = require("procpool.intake")
local options = require("procpool.options")
local progress = require("procpool.progress")
local result = require("procpool.result")

local max, min = math.max, math.min
local error, setmetatable = error, setmetatable
local new_list = core.list

local map = {}

local BIGGEST = 16384   -- items in a chunk we choose
local LIMIT = 1 << 20   -- items in any chunk

-- Chunks shrink towards the end (a share of what remains), so that workers
-- finish together; and each is a small part of the whole, so that an item that
-- takes long holds up few neighbours.
local function self_tuned(count, remaining, processes)
    if count <= 4 * processes then
        return 1
    end
    local cap = min(BIGGEST, max(1, count // (16 * processes)))
    return max(1, min(cap, remaining // (2 * processes)))
end

-- Waits until something was taken in and there may be room again.
local function make_room(pool)
    if intake.take(pool._intake) == 0 then
        pool._handle:wait()
        intake.take(pool._intake)
    end
end

-- Holds a submission of `size` tasks back while maxpending are unfinished; a
-- callback never waits. Returns how many may be queued now.
local function admit(pool, size)
    local most = pool._maxpending
    size = min(size, LIMIT)
    if not most or pool._intake.depth > 0 then
        return size
    end
    size = min(size, most)
    local handle = pool._handle
    while handle:unfinished() + size > most do
        make_room(pool)
    end
    return size
end

-- Queues items i..j of a list as one cell, numbered base+1 and on.
-- Returns the last item queued: a chunk too large for the core is halved.
local function queue(pool, job, ref, items, i, j, base, spread, opts)
    local handle = pool._handle
    while true do
        local ticket, kind, text = handle:chunk(job, ref, items, i, j, base,
            spread, opts.timeout, opts.grace, opts.retries)
        if ticket then
            job.tickets[base + j - i + 1] = ticket
            return j
        elseif kind ~= "full" then
            error(pool:_refusal(kind, text), 0)
        elseif handle:unfinished() > 0 then
            make_room(pool)
            if job.failure then
                return j
            end
        elseif j > i then
            j = i + (j - i) // 2
        else
            errors.raise("unserializable",
                text or "an item is larger than the pool's memory")
        end
    end
end

-- Closed when the submission is left: gives the function back, and on an error
-- withdraws what was queued.
local Submission = {
    __close = function(self)
        local pool, job = self.pool, self.job
        pool._handle:release(self.ref)
        if job.open == 1 and not job.settled then
            job.abandoned = true
            intake.cancel(pool._handle, job, true)
        end
    end,
}

local function submit_list(pool, job, ref, items, opts, spread)
    local count, processes = job.count, max(1, pool.processes)
    local i = 1
    while i <= count and not job.failure do
        local size = opts.chunksize
            or self_tuned(count, count - i + 1, processes)
        size = admit(pool, min(size, count - i + 1))
        if job.failure then
            break
        end
        i = queue(pool, job, ref, items, i, i + size - 1, i - 1, spread,
            opts) + 1
        intake.take(pool._intake)
    end
end

local function submit_iterator(pool, job, ref, iterator, opts, spread)
    local processes = max(1, pool.processes)
    local item = iterator()
    while item ~= nil and not job.failure do
        local base = job.count
        local size = opts.chunksize or self_tuned(base, base, processes)
        size = admit(pool, size)
        local batch, n = {}, 0
        repeat
            n = n + 1
            batch[n] = item
            item = iterator()
        until item == nil or n == size
        job.count, job.left = base + n, job.left + n
        local i = 1
        while i <= n and not job.failure do
            i = queue(pool, job, ref, batch, i, n, base + i - 1, spread,
                opts) + 1
        end
        intake.take(pool._intake)
    end
    job.results.n = job.count
end

--- Submits one map; returns its job.
---@return procpool.AsyncResult
local function submit(pool, where, f, items, opts, spread)
    options.func(where, f)
    local list, source = options.items(where, items)
    pool:_accept()
    local handle = pool._handle
    local ref, text = handle:func(f)
    if not ref then
        errors.raise("unserializable", text)
    end
    local job = setmetatable({
        kind = "map", pool = pool, tickets = {},
        results = list and new_list(source) or {},
        count = 0, left = 1, open = 1, failures = 0,
        collect = opts.errors == "collect", notify = true,
        callback = opts.callback, error_callback = opts.error_callback,
    }, result.meta)
    local _ <close> = setmetatable({ pool = pool, job = job, ref = ref }, Submission)
    if list then
        job.count, job.left, job.results.n = source, source + 1, source
    end
    if opts.progress then
        progress.attach(pool, job, opts.progress)
    end
    if not list then
        submit_iterator(pool, job, ref, source, opts, spread)
    else
        submit_list(pool, job, ref, list, opts, spread)
    end
    job.open, job.left = 0, job.left - 1
    if job.left == 0 then
        intake.complete(pool._intake, job)
    end
    return job
end

-- Closed when a blocking map is left: nobody can ask for its results now.
local Abandoned = {
    __close = function(self)
        local job = self.job
        if not job.settled and job.left > 0 then
            job.abandoned = true
            intake.cancel(job.pool._handle, job, true)
        end
    end,
}

--- map and starmap, blocking or not.
function map.run(pool, where, f, items, given, spread, blocking)
    local opts = options.chunked(
        blocking and options.MAP or options.MAP_ASYNC, where, given)
    local job = submit(pool, where, f, items, opts, spread)
    if not blocking then
        return job
    end
    local _ <close> = setmetatable({ job = job }, Abandoned)
    result.wait_for(job)
    return result.outcome(job)
end

--- Holds a call back while maxpending tasks are unfinished.
map.admit = admit

--- Waits for room on a full board.
map.make_room = make_room

return map
