-- audit.lua - the oracle LEDGER as the parent sees it: every task that a pool
-- of this process was given has exactly one outcome.
--
--     local audit = require("spec.support.audit")     -- before any pool is made
--     ...
--     local ok, what = audit.check()                  -- after a test
--
-- Counts beneath the library, at the engine's handle (the C core's, or the
-- inline twin's): tasks posted and outcomes delivered. After every delivery
-- posted = delivered + unfinished; a pool that has ended has none unfinished;
-- each of its calls has a result or a failure, not both, and each of its maps
-- is complete. As many outcomes as tasks, and at least one for each: so one for
-- each. (How often a task ran is counted by ledger.lua, in the specs that use
-- it, and by the C tests' rig.)

local core = require("procpool.core")
local inline = require("procpool.inline")
local intake = require("procpool.intake")
local time = require("posix.time")

local audit = {}

-- Seconds for what a pool that has ended has yet to tell.
local PATIENCE = tonumber(os.getenv("CLEAN_PATIENCE")) or 2

-- A book per handle: posted, delivered, inside (calls of it under way), wrong
-- (the first contradiction), owner, ref.handle (weak: forgotten pools are to be
-- collected).
local books = setmetatable({}, { __mode = "k" })
local jobs = setmetatable({}, { __mode = "k" }) -- job -> its book
local opened = {}                               -- the books, in order

local Book = {}
Book.__index = Book

local function new_book(handle)
    return setmetatable({
        posted = 0, delivered = 0, inside = 0, owner = core.getpid(),
        ref = setmetatable({ handle = handle }, { __mode = "v" }),
    }, Book)
end

local function blame(book, ...)
    book.wrong = book.wrong or string.format(...)
end

-- A call of the handle is over: the sum must be right. One that was left by an
-- error (no memory, an interrupt) could not tell what it delivered.
function Book:__close(err)
    local handle = self.ref.handle
    self.inside = self.inside - 1
    if self.inside > 0 or not handle then
        return
    end
    local unfinished = handle:unfinished()
    if err ~= nil then
        self.delivered = self.posted - unfinished
    elseif self.posted ~= self.delivered + unfinished then
        blame(self, "%d tasks posted, %d outcomes delivered, %d unfinished",
            self.posted, self.delivered, unfinished)
    end
end

local function enter(handle)
    local book = books[handle] or new_book(handle)
    book.inside = book.inside + 1
    return book
end

local function note(book, job, n)
    book.posted, jobs[job] = book.posted + n, book
end

local function instrument(methods)
    local call, submit, chunk, take = methods.call, methods.submit, methods.chunk, methods.take
    function methods.call(handle, job, ...)
        local book <close> = enter(handle)
        local ticket, kind, text = call(handle, job, ...)
        if ticket then
            note(book, job, 1)
        end
        return ticket, kind, text
    end
    if debug.getinfo(submit, "S").what == "C" then -- (the twin's is a `call`)
        function methods.submit(handle, f, args)
            local book <close> = enter(handle)
            local job, kind, text = submit(handle, f, args)
            if job then
                note(book, job, 1)
            end
            return job, kind, text
        end
    end
    function methods.chunk(handle, job, ref, items, i, j, ...)
        local book <close> = enter(handle)
        local ticket, kind, text = chunk(handle, job, ref, items, i, j, ...)
        if ticket then
            note(book, job, j - i + 1)
        end
        return ticket, kind, text
    end
    function methods.take(handle)
        local book <close> = enter(handle)
        local n = take(handle)
        book.delivered = book.delivered + n
        return n
    end
end

local done = {} -- the tables of methods that count

local function watch(module)
    local open = module.open
    function module.open(config)
        local handle = open(config)
        local methods = debug.getmetatable(handle).__index
        if not done[methods] then
            done[methods] = true
            instrument(methods)
        end
        local book = new_book(handle)
        books[handle], opened[#opened + 1] = book, book
        return handle
    end
end

watch(core)
watch(inline)

-- A failure of what has an outcome already.
local on_failed = intake.on_failed
function intake.on_failed(state)
    local failed = on_failed(state)
    return function(job, index, ...)
        local call = job.kind == "call"
        if call and (job.failure or job[1] >= 0)
            or not call and job.collect and job.results[index] ~= nil then
            blame(jobs[job] or {}, "a second outcome of a %s, item %d", job.kind, index)
        end
        return failed(job, index, ...)
    end
end

-- Takes in what an ended pool has yet to tell. False: something never came.
local function drained(handle)
    local deadline = core.now() + PATIENCE
    while handle:unfinished() > 0 do
        if core.now() > deadline then
            return false
        end
        handle:take()
        time.nanosleep({ tv_sec = 0, tv_nsec = 1000000 })
    end
    return true
end

-- What is wrong with a job of a pool that has ended.
local function flaw(job)
    if job.kind == "call" then
        local result, failure = job[1] >= 0, job.failure ~= nil
        return result and failure and "a call with a result and a failure"
            or not result and not failure and "a call without an outcome"
    elseif job.kind == "map" then
        -- (after its first failure a map does not queue the rest)
        return job.open == 0 and not job.failure and job.left ~= 0
            and ("a map with %d items left"):format(job.left)
    end
end

--- Is everything accounted for? Pools that still run (a `setup` block's) are
--- looked at again the next time.
---@return boolean
---@return string? what
function audit.check()
    local kept, over, found = {}, {}, nil
    for _, book in ipairs(opened) do
        local handle = book.ref.handle
        if book.owner == core.getpid() then
            if handle and handle:state() == "running" then
                kept[#kept + 1] = book
            elseif handle and not drained(handle) then
                blame(book, "%d of %d tasks without an outcome", handle:unfinished(), book.posted)
            end
            over[book] = handle and handle:state() ~= "running" or nil
            found = found or book.wrong
        end
    end
    opened = kept
    for job, book in pairs(jobs) do
        found = found or over[book] and flaw(job) or nil
    end
    return not found, found
end

return audit
