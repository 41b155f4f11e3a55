-- imap: an iterator over results that reads its items as it goes.
--
-- At most `buffersize` items are read ahead of what was delivered. The object
-- is called by the generic for, closed when the loop is left (the rest is
-- cancelled), and may be used by hand: it:next([timeout]). Its job takes the
-- arrivals; the iterator is apart from it, so that a forgotten iterator is
-- collected while its tasks still run. Runs in the parent alone.

local core = require("procpool.core")
local ending = require("procpool.ending")
local errors = require("procpool.errors")
local intake = require("procpool.intake")
local options = require("procpool.options")

local NIL, now = core.NIL, core.now
local error, max, min, pcall = error, math.max, math.min, pcall
local getmetatable, setmetatable, type = getmetatable, setmetatable, type

---@class procpool.Imap
---@field private pool procpool.Pool
---@field private job table
---@field private list table?
---@field private count integer?
---@field private iterator function?
---@field private read integer        items queued so far
---@field private given integer       items delivered so far
---@field private over boolean        nothing more to read
---@field private ref any             the function, until all is queued
---@field private problem table?      { error } to raise at the end
---@field private closed boolean?
local Imap = {}

local meta = { __name = "procpool.Imap", __index = Imap }

-- Raises unless a method was called on an iterator.
local function check(self)
    if getmetatable(self) ~= meta then
        options.fail("bad argument 'self' (a procpool.Imap expected, got "
            .. type(self) .. "; call methods with a colon)")
    end
end

-- Reads up to `size` items into self.batch, from self.first to self.last. An
-- iterator's error ends the items; it is raised after the last of them.
local function read(self, size)
    if self.list then
        self.first, self.last = self.read + 1, min(self.read + size, self.count)
        self.batch, self.over = self.list, self.last == self.count
        return
    end
    local batch, n = {}, 0
    while n < size and not self.over do
        local ok, item = pcall(self.iterator)
        if not ok then
            self.problem, self.over = { item }, true
        elseif item == nil then
            self.over = true
        else
            n = n + 1
            batch[n] = item
        end
    end
    self.batch, self.first, self.last = batch, 1, n
end

-- Queues the batch as one cell. false: the board is full, try again later.
-- Any other refusal ends the items, and is raised after the last of them.
local function send(self)
    local pool, job, opts = self.pool, self.job, self.opts
    local first, last = self.first, self.last
    while first <= last do
        local ticket, kind, text = pool._handle:chunk(job, self.ref, self.batch,
            first, last, self.read, false, opts.timeout, opts.grace, opts.retries)
        if ticket then
            self.read = self.read + last - first + 1
            job.tickets[self.read] = ticket
            self.first, first, last = last + 1, last + 1, self.last
        elseif kind == "full" and pool._handle:unfinished() > 0 then
            return false
        elseif kind == "full" and last > first then
            last = first + (last - first) // 2
        else
            self.problem = { kind ~= "full" and pool:_refusal(kind, text)
                or errors.new("unserializable", text or "an item is too large") }
            self.over, self.first = true, self.last + 1
            return true
        end
    end
    return true
end

-- The last item is queued: the function is given back, and a pool that was
-- closed meanwhile learns that nothing more will come.
local function finish_reading(self)
    self.over = true
    if self.ref then
        self.pool._handle:release(self.ref)
        self.ref = nil
        ending.imap_done(self.pool, self.job)
    end
end

-- Submits what the read-ahead allows; stops at a full board.
local function fill(self)
    while self.first > self.last do
        local size = self.chunksize
        if self.over then
            return finish_reading(self)
        elseif self.read - self.given + size > self.buffersize then
            return
        end
        read(self, size)
        if not send(self) then
            return
        end
    end
    send(self)
end

-- The index to deliver now, or nil.
local function due(self)
    local job = self.job
    if self.ordered then
        local index = self.given + 1
        if #job.arrived > 64 then
            job.arrived = {}
        end
        return job.results[index] ~= nil and index or nil
    end
    local index = self.came[self.at]
    if not index then
        self.came, self.at, job.arrived = job.arrived, 1, {}
        index = self.came[1]
    end
    if index then
        self.at = self.at + 1
    end
    return index
end

-- Hands one item out, or raises its error.
local function hand_out(self, index)
    local job = self.job
    local value, failure = job.results[index], job.failures[index]
    job.results[index], job.failures[index] = nil, nil
    job.tickets[index] = nil -- a chunk is over with its last item
    self.given = self.given + 1
    if failure then
        error(failure, 0)
    elseif value == NIL then
        value = nil
    end
    return index, value
end

-- Waits for the next item to deliver. nil: the end; false: the deadline.
local function await(self, deadline)
    local state, handle = self.pool._intake, self.pool._handle
    while not self.closed do
        if self.ref then
            fill(self)
        end
        local index = due(self)
        if index then
            return index
        elseif self.given == self.read and not self.ref then
            return nil
        elseif intake.take(state) == 0 then
            handle:wait(deadline)
            if intake.take(state) == 0 and deadline and now() >= deadline then
                return false
            end
        end
    end
end

--- The next result: its item's index and the value; nil at the end. Raises
--- the item's error, and goes on with the next item when called again.
---@param timeout number? seconds
---@return integer? index
---@return any value
function Imap:next(timeout)
    check(self)
    local deadline = options.deadline("next", timeout, now)
    self.pool:_check()
    local index = await(self, deadline)
    if index then
        return hand_out(self, index)
    elseif index == false then
        errors.raise("timeout", ("no result within %g s"):format(timeout))
    end
    local problem = self.problem
    if problem then
        self.problem = nil
        error(problem[1], 0)
    end
end

function meta:__call()
    return Imap.next(self)
end

--- Ends the iteration: what is left is cancelled. The generic for does it.
function Imap:close()
    check(self)
    if self.closed or core.getpid() ~= self.pool._owner then
        return
    end
    self.closed, self.problem = true, nil
    finish_reading(self)
    if self.given < self.read then
        intake.cancel(self.pool._handle, self.job)
    end
end

function meta:__close()
    Imap.close(self)
end

-- A collected iterator: the core may be at work, so only a note is left.
function meta:__gc()
    if not self.closed and self.given < self.read then
        local state = self.pool._intake
        state.dropped[#state.dropped + 1], state.news = self.job, true
    end
end

function meta.__reduce()
    error("an iterator belongs to its pool", 0)
end

function meta:__tostring()
    return ("procpool.Imap (%d delivered)"):format(self.given)
end

local imap = {}

--- Starts an imap. Returns what the generic for wants, closing value included.
function imap.new(pool, where, f, items, given, ordered)
    options.func(where, f)
    local list, source = options.items(where, items)
    local opts = options.read(options.IMAP, where, given)
    pool:_accept()
    local ref, text = pool._handle:func(f)
    if not ref then
        errors.raise("unserializable", text)
    end
    local size = opts.chunksize or 1
    local buffer = opts.buffersize or max(16, 2 * max(1, pool.processes) * size)
    local job = {
        kind = "imap", pool = pool, tickets = {},
        results = {}, failures = {}, arrived = {},
    }
    local self = setmetatable({
        pool = pool, job = job, ref = ref, opts = opts, ordered = ordered,
        list = list, count = list and source, iterator = not list and source,
        chunksize = min(size, buffer), buffersize = buffer,
        read = 0, given = 0, over = false, first = 1, last = 0, came = {}, at = 1,
    }, meta)
    ending.imap_open(pool, job)
    fill(self)
    return self, nil, nil, self
end

return imap
