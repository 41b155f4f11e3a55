-- The worker's side: what the engine calls in each life of a worker.
--
-- `sides` makes the functions that a config carries; they run in the worker,
-- on the snapshot of the Lua state that the keeper holds. Library functions
-- are taken at load time, so that a task that breaks _G breaks none of this.

local core = require("procpool.core")

local pcall, rawget, rawset = pcall, rawget, rawset
local setmetatable, tostring = setmetatable, tostring
local randomseed, unpack = math.randomseed, table.unpack
local stderr = io.stderr

---@class procpool.Worker
---@field id integer          slot, stable over recycling
---@field pid integer
---@field generation integer  1 for the first life of the slot
---@field tasks integer       completed in this life
---@field attempt integer     of the running task, 1 first
---@field shared any          the option of that name, as it was at new
---@field state table         empty at first, lasts as long as the worker
---@field recycle fun()       leave after this task

local worker = {}

local meta = { __name = "procpool.Worker" }

-- The counters live in the engine.
function meta.__index(_, key)
    if key == "tasks" then
        return core.worker_tasks()
    elseif key == "attempt" then
        return core.worker_attempt()
    end
end

local function recycle()
    core.worker_recycle()
end

local module

--- Names the table whose field `worker` tasks see.
function worker.install(procpool)
    module = procpool
end

--- Sets procpool.worker, nil outside of tasks, and returns what it was.
---@param w procpool.Worker?
---@return procpool.Worker?
function worker.expose(w)
    local before = rawget(module, "worker")
    rawset(module, "worker", w)
    return before
end

--- The functions of a config that run in the worker: prepare(worker), which
--- the keeper calls once for all lives, start(worker), stop(), after() and
--- reseed(number). stop and after only where asked for.
---@param opts procpool.Options
---@return fun(w: table) prepare
---@return fun(w: table) start
---@return fun()? stop
---@return (fun(): boolean)? after
---@return fun(number: integer) reseed
function worker.sides(opts)
    local initializer, finalizer = opts.initializer, opts.finalizer
    local initargs, recycleif = opts.initargs or {}, opts.recycleif
    local seed = opts.seed
    local current

    local function reseed(number)
        randomseed(seed, number)
    end

    local function prepare(w)
        current = w
        w.shared, w.state = opts.shared, false -- state: its place, for start
        if not w.inline then
            w.recycle = recycle
            setmetatable(w, meta)
        end
        worker.expose(w)
    end

    -- May raise: the initializer's error is the engine's to report.
    local function start(w)
        w.state = {}
        if not w.inline then
            if seed then
                reseed(0)
            else
                randomseed(core.random_seed())
            end
        end
        if initializer then
            initializer(unpack(initargs, 1, initargs.n or #initargs))
        end
    end

    -- A predicate that raises is reported, and the worker stays.
    local function after()
        local ok, leave = pcall(recycleif, current)
        if not ok then
            stderr:write("procpool: recycleif: ", tostring(leave), "\n")
            return false
        end
        return leave and true or false
    end

    return prepare, start, finalizer, recycleif and after or nil, reseed
end

return worker
