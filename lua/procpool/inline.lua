-- The engine of processes = 0: every task runs here, at submission.
--
-- A twin of the core's handle, method by method: values are encoded and
-- decoded as between processes, outcomes wait until they are taken, one
-- worker lives, is recycled and fails to start as the real ones do (memory
-- and idle time aside). A time limit is an error in the task and nothing
-- more; coroutines the task makes are beyond its reach.

local core = require("procpool.core")
local inline_task = require("procpool.inline_task")
local worker_side = require("procpool.worker")

local encode, decode, now = core.encode, core.decode, core.now
local guarded, failure = inline_task.run, inline_task.failure
local pack, unpack = table.pack, table.unpack
local ipairs, pairs, setmetatable, type = ipairs, pairs, setmetatable, type

local Inline = {}
local meta = { __name = "procpool.Inline", __index = Inline }

local STARTS = 5 -- failed ones in a row that break the pool

-- Notes an event for the next take; prints it if asked to, as the keeper does.
local function emit(self, kind, extra)
    local config, pending = self.config, self.pending
    local event = {
        event = kind, time = now(), pid = core.getpid(),
        generation = self.generation, extra = extra,
    }
    if config.events then
        pending[#pending + 1] = event
    end
    if config.log > 0 then
        local detail = extra and extra.reason and (" (%s)"):format(extra.reason) or ""
        io.stderr:write(("procpool %s: %.3f %s worker 1 pid %d generation %d%s\n")
            :format(config.name, event.time, kind, event.pid, event.generation, detail))
    end
end

-- The one worker -------------------------------------------------------------

-- Ends the present life, for the reason given.
local function leave(self, reason)
    local life = self.life
    if not life then
        return
    end
    if self.config.stop then
        local before = worker_side.expose(life)
        guarded(nil, self.config.stop)
        worker_side.expose(before)
    end
    if reason ~= "close" then
        self.recycled[reason] = (self.recycled[reason] or 0) + 1
    end
    emit(self, "worker_exit", { reason = reason })
    self.life = nil
end

local function break_pool(self, problem)
    problem[1] = "initializer"
    self.broken = problem
end

-- Starts lives until one is ready. Returns nil once the pool is broken.
local function living(self)
    while not self.life and not self.broken do
        local generation = self.generation + 1
        local life = {
            inline = true, id = 1, pid = core.getpid(), generation = generation,
            tasks = 0, attempt = 1, born = now(), asked = false,
        }
        life.recycle = function() life.asked = true end
        self.generation = generation
        emit(self, "worker_start")
        local before = worker_side.expose(nil)
        self.config.prepare(life)
        local out, limit = guarded(self.config.inittimeout, self.config.start, life)
        worker_side.expose(before)
        if out[1] then
            self.life, self.failures = life, 0
            emit(self, "worker_ready")
        else
            local problem = failure(out[2], limit)
            emit(self, "worker_failed", { error = problem[2] })
            self.failures = self.failures + 1
            if not self.ever_ready or self.failures >= STARTS then
                break_pool(self, problem)
            end
        end
        self.ever_ready = self.ever_ready or self.life ~= nil
    end
    return self.life
end

-- After a task: does the worker stay?
local function consider_leaving(self, life)
    local config = self.config
    local before = worker_side.expose(life)
    local told = config.after and config.after()
    worker_side.expose(before)
    if config.maxtasks and life.tasks >= config.maxtasks then
        leave(self, "tasks")
    elseif config.maxage and now() - life.born >= config.maxage then
        leave(self, "age")
    elseif told then
        leave(self, "predicate")
    elseif life.asked then
        leave(self, "request")
    end
end

-- Outcomes -------------------------------------------------------------------

local function push(self, outcome)
    self.pending[#self.pending + 1] = outcome
    self.unfinished_tasks = self.unfinished_tasks + 1
end

-- Runs one task; what became of it waits to be taken.
local function run(self, job, index, code, data, timeout)
    self.number = self.number + 1
    local number = self.number
    local life = living(self)
    if not life then
        return push(self, { job = job, index = index, failure = self.broken })
    end
    local f, args = inline_task.decode(code), inline_task.decode(data)
    if not f[1] or not args[1] then
        return push(self, { job = job, index = index,
            failure = { "unserializable", f[1] and args[2] or f[2] } })
    end
    local before = worker_side.expose(life)
    if self.config.seed then
        self.config.reseed(number)
    end
    self.busy = true
    local out, limit = guarded(timeout or self.config.timeout, f[2],
        unpack(args, 2, args.n))
    self.busy = false
    worker_side.expose(before)
    life.tasks = life.tasks + 1
    local outcome = { job = job, index = index }
    if out[1] then
        local text
        outcome.data, text = encode("result", unpack(out, 2, out.n))
        if not outcome.data then
            outcome.failure = { "unserializable", text }
        end
    else
        outcome.failure = failure(out[2], limit)
    end
    self.bytes.sent = self.bytes.sent + #code + #data
    self.bytes.received = self.bytes.received + #(outcome.data or "")
    push(self, outcome)
    consider_leaving(self, life)
end

-- Why no task can be taken now; nil when one can.
local function refusal(self)
    if self.terminated then
        return "terminated", "the pool is terminated"
    elseif self.closed then
        return "closed", "the pool is closed"
    elseif self.broken then
        return "broken", self.broken[2]
    end
end

function Inline:call(job, f, args, timeout)
    local kind, text = refusal(self)
    if kind then
        return nil, kind, text
    end
    local code, data
    code, text = encode("function", f)
    if not code then
        return nil, "unserializable", text
    end
    data, text = encode("args", unpack(args, 1, args.n or #args))
    if not data then
        return nil, "unserializable", text
    end
    run(self, job, 1, code, data, timeout)
    self.pending[#self.pending].last = 1
    return 0
end

function Inline:class(class)
    self.jobs = class
end

function Inline:submit(f, args)
    if args ~= nil and (type(args) ~= "table" or args.n ~= nil) then
        return nil
    end
    local job = setmetatable({ -1 }, self.jobs)
    local ticket, kind, text = self:call(job, f, args or {})
    return ticket and job, kind, text
end

function Inline:func(f) -- luacheck: ignore 212
    return encode("function", f)
end

function Inline:release() end -- luacheck: ignore 212

function Inline:chunk(job, ref, items, i, j, base, spread, timeout)
    local kind, text = refusal(self)
    if kind then
        return nil, kind, text
    end
    for k = i, j do
        local index, item = base + k - i + 1, items[k]
        local data
        if not spread then
            data, text = encode("args", item)
        elseif type(item) == "table" then
            data, text = encode("args", unpack(item, 1, item.n or #item))
        else
            text = ("args: a table of arguments expected, got %s"):format(type(item))
        end
        if data then
            run(self, job, index, ref, data, timeout)
        else
            push(self, { job = job, index = index,
                failure = { "unserializable", text } })
        end
    end
    self.pending[#self.pending + 1] = { job = job, last = j - i + 1 }
    return true
end

-- Hands one outcome over, as the core's delivery does. Returns the tasks.
local function deliver(self, outcome)
    local job, config = outcome.job, self.config
    local index, failed = outcome.index, outcome.failure
    if outcome.event then
        config.event(outcome.event, outcome.time, 1, outcome.pid,
            outcome.generation, outcome.extra)
        return 0
    end
    local values
    if index and not failed then
        values = pack(decode(outcome.data))
        if not values[1] then
            failed = { "unserializable", values[2] }
        end
    end
    if failed then
        local info = failed.info or {}
        info.pid, info.worker, info.attempt = core.getpid(), 1, 1
        config.failed(job, index, failed[1], failed[2], failed[3], failed[4], info)
    elseif index and job.kind == "call" then
        for k = 2, values.n do
            job[k] = values[k]
        end
        job[1] = values.n - 1
    elseif index and job.kind == "map" then
        job.results[index] = values[2]
    elseif index then
        job.results[index] = values[2] == nil and core.NIL or values[2]
        job.arrived[#job.arrived + 1] = index
    end
    local complete = job.kind == "call" and job.notify
    if outcome.last and job.kind == "map" then
        job.left = job.left - outcome.last
        complete = job.left == 0
    end
    if complete then
        config.finished[#config.finished + 1] = job
    end
    return index and 1 or 0
end

function Inline:take()
    local n, pending = 0, self.pending
    if #pending == 0 then
        return 0
    end
    self.pending = {}
    for i = 1, #pending do
        n = n + deliver(self, pending[i])
    end
    self.unfinished_tasks = self.unfinished_tasks - n
    return n
end

-- The rest of the handle -----------------------------------------------------

function Inline:wait() return #self.pending > 0 end
function Inline:cancel() end -- luacheck: ignore 212
function Inline:running() return false end -- luacheck: ignore 212
function Inline:room() return 1 end -- luacheck: ignore 212
function Inline:fileno() end -- luacheck: ignore 212
function Inline:resize() end -- luacheck: ignore 212
function Inline:unfinished() return self.unfinished_tasks end
function Inline:join() return true end -- luacheck: ignore 212

function Inline:recycle()
    leave(self, "request")
end

function Inline:close()
    if not self.closed and not self.terminated then
        self.closed = true
        leave(self, "close")
    end
end

function Inline:terminate()
    self.terminated, self.life = true, nil
end

function Inline:state()
    if self.broken then
        local b = self.broken
        return "broken", b[1], b[2], b[3], b[4]
    end
    return self.terminated and "terminated" or self.closed and "closed" or "running"
end

function Inline:replaced()
    local sum = 0
    for _, n in pairs(self.recycled) do
        sum = sum + n
    end
    return sum
end

function Inline:stats()
    local life, recycled = self.life, {}
    for _, reason in ipairs { "tasks", "age", "memory", "predicate", "idle",
        "request", "resize", "timelimit", "cancel", "crash" } do
        recycled[reason] = self.recycled[reason] or 0
    end
    local busy = self.busy and 1 or 0
    return {
        idle = 1 - busy, busy = busy, queued = 0, running = busy, retried = 0,
        recycled = recycled,
        bytes = { sent = self.bytes.sent, received = self.bytes.received, shared = 0 },
        workers = { {
            id = 1, pid = core.getpid(), generation = self.generation,
            state = busy == 1 and "busy" or "idle",
            tasks = life and life.tasks or 0,
            age = life and now() - life.born or 0.0,
            memory = collectgarbage("count") * 1024 // 1 | 0, cpu = os.clock(),
        } },
    }
end

local inline = {}

--- Opens the twin of core.open.
function inline.open(config)
    return setmetatable({
        config = config, pending = {}, unfinished_tasks = 0, number = 0,
        generation = 0, failures = 0, recycled = {}, busy = false,
        bytes = { sent = 0, received = 0 },
    }, meta)
end

return inline
