-- cancel: a queued task never starts, a running one is stopped as by its time
-- limit.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

local function echo(...) return ... end

local function generation() return require("procpool").worker.generation end

-- Task: leaves a note, then runs until it is stopped.
local function run_on(log)
    pools.note(log, "running")
    while true do end
end

describe("cancel", function()
    teardown(pools.cleanup)

    it("stops a running task by an error in it", function()
        local pool <close> = procpool.new(1, { grace = 20 })
        local log = pools.path()
        local result = pool:apply_async(run_on, { log })
        pools.await_notes(log, 1)
        assert.equal("running", result:status())
        assert.is_true(result:cancel())
        local err = fails("cancelled", result.get, result, 20)
        assert.equal("the task was cancelled", err.message)
        assert.equal("cancelled", result:status())
        assert.is_false(result:cancel())
        assert.equal(1, pool:apply(generation)) -- the worker lives on
        assert.equal(1, pool:stats().cancelled)
    end)

    it("is an error that the task may catch, to clean up; cancelled all the same", function()
        local pool <close> = procpool.new(1, { grace = 20 })
        local log = pools.path()
        local result = pool:apply_async(function(l)
            local _, err = pcall(run_on, l)
            pools.note(l, err.kind)
            return "a result"
        end, { log })
        pools.await_notes(log, 1)
        result:cancel()
        fails("cancelled", result.get, result, 20)
        assert.equal("cancelled", pools.await_notes(log, 2)[2])
        assert.equal(1, pool:apply(generation))
    end)

    it("reaches coroutines", function()
        local pool <close> = procpool.new(1, { grace = 20 })
        local log = pools.path()
        local result = pool:apply_async(function(l)
            coroutine.wrap(function() coroutine.wrap(run_on)(l) end)()
        end, { log })
        pools.await_notes(log, 1)
        result:cancel()
        fails("cancelled", result.get, result, 20)
        assert.equal(1, pool:apply(generation))
    end)

    it("kills after grace who does not obey, with all that it started", function()
        local pool <close> = procpool.new(1, { grace = 0.05 })
        local log = pools.path()
        local result = pool:apply_async(function()
            os.execute(("sleep 1000 & echo $! >>%s; wait"):format(log))
        end)
        local pid = math.tointeger(pools.await_notes(log, 1)[1])
        assert.is_true(pools.alive(pid))
        result:cancel()
        fails("cancelled", result.get, result, 20)
        pools.await_gone({ pid })
        assert.equal(2, pool:apply(generation))
        assert.equal(1, pool:stats().recycled.cancel)
        assert.equal(0, pool:stats().recycled.crash)
    end)

    it("takes the grace of the call", function()
        local pool <close> = procpool.new(1, { grace = 1000 })
        local log = pools.path()
        local result = pool:apply_async(function(l)
            pcall(run_on, l)
            while true do end
        end, { log }, { grace = 0.05 })
        pools.await_notes(log, 1)
        result:cancel()
        fails("cancelled", result.get, result, 20)
    end)

    it("works while the parent makes no further call", function()
        local pool <close> = procpool.new(1, { grace = 0.05 })
        local log = pools.path()
        local result = pool:apply_async(run_on, { log })
        pools.await_notes(log, 1)
        result:cancel()
        pool:apply_async(pools.note, { log, "next" })
        pools.await_notes(log, 2)
        fails("cancelled", result.get, result, 20)
    end)

    it("of a map stops what runs and drops the rest", function()
        local pool <close> = procpool.new(2, { grace = 0.05 })
        local log = pools.path()
        for _, chunksize in ipairs { 1, 7, 100 } do
            local before = #pools.notes(log)
            local result = pool:map_async(run_on, (function()
                local list = {}
                for i = 1, 50 do list[i] = log end
                return list
            end)(), { chunksize = chunksize })
            pools.await_notes(log, before + 1)
            assert.is_true(result:cancel())
            fails("cancelled", result.get, result, 20)
            assert.equal("cancelled", result:status())
            assert.is_false(result:cancel())
            pools.eventually("nothing left", function()
                local stats = pool:stats()
                return stats.running + stats.queued == 0
            end)
            assert.is_true(#pools.notes(log) <= before + 3)
        end
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    it("of a queued map, whose arguments are large, never starts it", function()
        local pool <close> = procpool.new(1)
        local gate, log = pools.gate(), pools.path()
        pool:apply_async(pools.pass, { gate, log })
        pools.await_notes(log, 1)
        local big = ("x"):rep(1 << 20)
        local result = pool:map_async(function(s)
            pools.note(log, "started")
            return #s
        end, { big, big, big })
        assert.is_true(result:cancel())
        pools.open(gate)
        fails("cancelled", result.get, result, 20)
        assert.equal(1, pool:apply(echo, { 1 }))
        assert.equal(1, #pools.notes(log))
    end)

    it("right after submission, over and over, has one outcome each", function()
        local pool <close> = procpool.new(2, { grace = 0.05 })
        for i = 1, 150 do
            local big = i % 3 == 0 and ("x"):rep(300000) or ""
            local result = pool:apply_async(function(s)
                while s do end
            end, { big })
            if i % 2 == 0 then pools.nap(0.0003 * (i % 7)) end
            assert.is_true(result:cancel())
            fails("cancelled", result.get, result, 20)
        end
        assert.equal(150, pool:stats().cancelled)
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    it("never hits the next task", function()
        local pool <close> = procpool.new(2, { grace = 0 })
        for i = 1, 150 do
            local first = pool:apply_async(pools.nap, { 0.0002 * (i % 10) })
            local second = pool:apply_async(echo, { i })
            local third = pool:map_async(echo, { 1, 2, 3 }, 3)
            pools.nap(0.0002 * (i % 7))
            first:cancel()
            assert.equal(i, second:get(20))
            assert.equal(3, third:get(20)[3])
        end
        assert.equal(0, pool:stats().recycled.crash)
    end)

    it("after the pool's end changes nothing", function()
        local pool = procpool.new(1)
        local done = pool:apply_async(echo, { 1 })
        done:wait(20)
        local stopped = pool:apply_async(pools.nap, { 30 })
        pool:terminate()
        assert.is_false(done:cancel())
        assert.is_false(stopped:cancel())
        assert.equal("done", done:status())
        assert.equal("failed", stopped:status())
        assert.is_true(pool:join(20))
    end)

    it("inline comes too late", function()
        local pool <close> = procpool.new(0)
        local result = pool:apply_async(echo, { 1 })
        assert.is_false(result:cancel())
        assert.equal("done", result:status())
    end)
end)
