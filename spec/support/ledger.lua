-- ledger.lua - the oracle LEDGER: what goes in must come out, once.
--
--     local book = ledger.new(1000)           -- before the pool is made
--     local pool = procpool.new(2, { retries = 1 })
--     pool:apply(ledger.run, { id, body, ... })   -- in the task: counted
--     book:ended(id, ok, err)                 -- in the parent, per outcome
--     book:check(1)                           -- retries
--
-- The counts live in memory that all processes share, so a killed worker's
-- are kept.

local chelper = require("chelper")

local ledger = {}

local Book = {}
Book.__index = Book

local size  -- inherited by the workers

---@param n integer ids 1..n
---@param more integer? further counters, from 2n + 1 on
function ledger.new(n, more)
    size = n
    chelper.counters(2 * n + (more or 0))
    return setmetatable({ n = n, outcomes = {}, kinds = {} }, Book)
end

--- Worker: a task is counted when it starts and when it returns.
function ledger.run(id, body, ...)
    chelper.add(id)
    local function finish(...)
        chelper.add(size + id)
        return ...
    end
    return finish(body(...))
end

function Book.started(_, id)
    return chelper.get(id)
end

function Book:finished(id)
    return chelper.get(self.n + id)
end

--- Parent: the task's outcome is known.
function Book:ended(id, ok, err)
    local kind = ok and "ok" or type(err) == "table" and err.kind or tostring(err)
    if self.outcomes[id] then
        error(("task %d: a second outcome, %s after %s"):format(id, kind, self.outcomes[id]), 2)
    end
    self.outcomes[id] = kind
    self.kinds[kind] = (self.kinds[kind] or 0) + 1
end

--- Raises unless every id has one outcome, was started 1 + retries times at
--- most, and was finished if its outcome is ok.
function Book:check(retries)
    for id = 1, self.n do
        local kind, started, finished = self.outcomes[id], self:started(id), self:finished(id)
        local what = not kind and "no outcome"
            or started > 1 + retries and "started too often"
            or finished > started and "finished more often than started"
            or kind == "ok" and finished < 1 and "ok, but never finished"
        if what then
            error(("task %d: %s (%s, started %d, finished %d)")
                :format(id, what, tostring(kind), started, finished), 2)
        end
    end
end

return ledger
