-- procpool: a pool of worker processes for Lua 5.4.
--
--     local procpool = require("procpool")
--     local pool <close> = procpool.new(4)
--     local squares = pool:map(function(x) return x * x end, { 1, 2, 3 })
--
-- The files in reading order: options and check (what may be passed), errors,
-- pool (the methods), map and imap (many tasks), result (AsyncResult), intake
-- (what arrives, callbacks), ending, progress, worker (the other side), inline
-- (no processes).

local core = require("procpool.core")
local errors = require("procpool.errors")
local inline = require("procpool.inline")
local intake = require("procpool.intake")
local options = require("procpool.options")
local pool = require("procpool.pool")
local result = require("procpool.result")
local worker = require("procpool.worker")

local LOG = { info = 1, debug = 2 }

---@class procpool
---@field worker procpool.Worker? in a worker; nil in the parent
local procpool = { _VERSION = "procpool 0.1.0" }

--- CPUs this process may really use: affinity and cgroup quota considered.
---@return integer
function procpool.cpus()
    return core.cpus()
end

--- Makes `value` travel by name both ways. Call it before new.
---@param name string
---@param value table|function|userdata
function procpool.register(name, value)
    options.registration(name, value)
    core.register(name, value)
end

--- Is v a procpool error object?
---@param v any
---@return boolean
function procpool.iserror(v)
    return errors.is(v)
end

procpool.await = result.await

-- What the engine is opened with: the options under its names, the functions
-- it calls in the worker, and those it calls here.
local function config_for(opts, state)
    local prepare, start, stop, after, reseed = worker.sides(opts)
    local log = LOG[os.getenv("PROCPOOL_LOG")] or 0
    local events = opts.onevent ~= nil
    return {
        processes = opts.processes,
        minprocesses = opts.minprocesses or opts.processes,
        maxtasks = opts.maxtasksperchild, maxage = opts.maxageperchild,
        maxmemory = opts.maxmemoryperchild, jitter = opts.recyclejitter or 0.0,
        idletimeout = opts.idletimeout, inittimeout = opts.inittimeout,
        timeout = opts.timeout, grace = opts.grace or 1.0,
        retries = opts.retries or 0, seed = opts.seed, share = opts.shared ~= nil,
        name = opts.name or "pool", log = log, events = events,
        prepare = prepare, start = start, stop = stop, after = after, reseed = reseed,
        newerror = errors.new,
        failed = intake.on_failed(state),
        event = events and intake.on_event(state) or nil,
        finished = state.finished,
    }
end

--- Makes a pool: procpool.new([processes] [, options]) or procpool.new(options).
---@overload fun(options?: procpool.Options): procpool.Pool
---@param processes integer?          workers; 0 = inline; default cpus()
---@param opts procpool.Options?
---@return procpool.Pool
function procpool.new(processes, opts)
    local checked = options.pool(processes, opts, core.cpus)
    local state = intake.new(checked.onevent)
    local open = checked.processes == 0 and inline.open or core.open
    core.snapshot()
    local ok, handle = pcall(open, config_for(checked, state))
    if not ok then
        options.fail("procpool.new: " .. tostring(handle))
    end
    return pool.new(handle, state, checked)
end

worker.install(procpool)
core.register("procpool.Error", errors.Error)

return procpool
