-- processes = 0: what is peculiar to a pool without processes. What it has in
-- common with the others is in pool_*, imap, result, lifetimes_*, errors_spec,
-- which run for both.

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")
local getpid = require("posix.unistd").getpid

local fails = pools.fails

describe("an inline pool", function()
    local pool
    before_each(function() pool = procpool.new(0) end)
    after_each(function() pools.finish(pool) end)

    it("runs each task at its submission, in this process, in order", function()
        local ran = {}
        _G.inline_ran = ran
        local function note(x) table.insert(_G.inline_ran, x) end
        local result = pool:apply_async(note, { 1 })
        assert.same({ 1 }, ran)
        assert.is_true(result:ready())
        assert.equal("done", result:status())
        assert.is_false(result:cancel())
        pool:map_async(note, { 2, 3 })
        pool:apply(note, { 4 })
        assert.same({ 1, 2, 3, 4 }, ran)
        _G.inline_ran = nil
        assert.equal(getpid(), pool:apply(getpid))
    end)

    it("does not run what comes after a map's failure", function()
        local ran = {}
        _G.inline_ran = ran
        pcall(pool.map, pool, function(x)
            inline_ran[x] = true -- luacheck: ignore 112 113
            if x == 2 then error("stop") end
        end, { 1, 2, 3, 4 })
        _G.inline_ran = nil
        assert.same({ true, true }, ran)
    end)

    it("catches os.exit, by whatever name, and gives it back", function()
        local exit = os.exit
        for _, f in ipairs { exit, function() exit(3) end, function() os.exit(3) end } do
            assert.equal("task called os.exit(3)", fails("error", pool.apply, pool, f, { 3 }).message)
        end
        fails("error", pool.apply, pool, function(f) f(4) end, { exit })
        assert.equal(exit, os.exit)
    end)

    it("lets no task yield out of it", function()
        local co = coroutine.wrap(function()
            fails("error", pool.apply, pool, coroutine.yield)
            return "never yielded"
        end)
        assert.equal("never yielded", co())
        assert.equal(2, pool:apply(function()
            local step = coroutine.wrap(function() coroutine.yield(1) coroutine.yield(2) end)
            step()
            return step()
        end))
    end)

    it("limits time by an error alone, and leaves hooks as they were", function()
        local counted = 0
        debug.sethook(function() counted = counted + 1 end, "", 10000)
        fails("timelimit", pool.apply, pool, function() while true do end end, nil, { timeout = 0.02 })
        local hook, mask, count = debug.gethook()
        assert.is_function(hook)
        assert.equal("", mask)
        assert.equal(10000, count)
        debug.sethook()
        -- who does not obey is not killed: he ends when he ends
        assert.equal("in the end", pool:apply(function()
            pcall(function() while true do end end)
            pools.burn(0.05)
            return "in the end"
        end, nil, { timeout = 0.02, grace = 0.01 }))
    end)

    it("shows a worker during a task only", function()
        local inside <close> = procpool.new(0, { shared = io.stdout })
        assert.is_nil(procpool.worker)
        local w = { inside:apply(function()
            local w = require("procpool").worker
            w.state.count = (w.state.count or 0) + 1
            return w.id, w.pid, w.generation, w.tasks, w.attempt, w.state.count, w.shared == io.stdout
        end) }
        assert.same({ 1, getpid(), 1, 0, 1, 1, true }, w)
        assert.equal(1, inside:apply(function() return require("procpool").worker.tasks end))
        assert.is_nil(procpool.worker)
        pcall(inside.apply, inside, error)
        assert.is_nil(procpool.worker)
    end)

    it("inside a task of another leaves that one's worker alone", function()
        local same, tasks = pool:apply(function()
            local outer = procpool.worker
            local inner <close> = procpool.new(0, {
                initializer = function() assert(procpool.worker ~= outer) end,
                finalizer = function() end, recycleif = function() return true end,
            })
            inner:apply(function() assert(procpool.worker ~= outer) end)
            inner:apply(function() end)
            local kept = procpool.worker == outer
            inner:close()
            return kept and procpool.worker == outer, procpool.worker.tasks
        end)
        assert.is_true(same)
        assert.equal(0, tasks)
        assert.is_nil(procpool.worker)
    end)

    it("starts its worker at the first task, ends it at close", function()
        local log = {}
        _G.inline_log = log
        do
            local whole <close> = procpool.new(0, {
                initializer = function(...) log[#log + 1] = table.concat({ ... }, "+") end,
                initargs = { 1, 2 },
                finalizer = function() log[#log + 1] = "end" end,
            })
            assert.equal(0, #log)
            whole:apply(type, { 1 })
        end
        _G.inline_log = nil
        assert.same({ "1+2", "end" }, log)
    end)

    it("breaks after five failed starts in a row", function()
        local starts = 0
        local flaky = procpool.new(0, {
            maxtasksperchild = 1,
            initializer = function()
                starts = starts + 1
                if starts > 1 then error("start " .. starts, 0) end
            end,
        })
        assert.equal(1, flaky:apply(function() return 1 end))
        assert.equal("start 6", fails("initializer", flaky.apply, flaky, type, { 1 }).value)
        assert.equal(6, starts)
        assert.equal("broken", flaky:state())
        pools.finish(flaky)
    end)

    it("takes options that need a process, and does without", function()
        local lax <close> = procpool.new(0, {
            idletimeout = 0.001, minprocesses = 0, maxmemoryperchild = 1, retries = 3, grace = 0,
        })
        pools.nap(0.005)
        local list = lax:map(function() return procpool.worker.generation end, { 1, 2, 3 })
        assert.same({ 1, 1, 1, n = 3 }, list)
    end)

    it("has one row in its stats, and says so", function()
        pool:apply(type, { 1 })
        local stats = pool:stats()
        assert.equal(0, stats.processes)
        assert.equal(1, #stats.workers)
        assert.equal(getpid(), stats.workers[1].pid)
        assert.equal("procpool.Pool (running, inline)", tostring(pool))
    end)

    it("seeds the program's own math.random", function()
        local seeded <close> = procpool.new(0, { seed = 5 })
        local drawn = seeded:apply(math.random, { 1 << 40 })
        math.randomseed(5, 1)
        assert.equal(math.random(1 << 40), drawn)
    end)
end)
