-- pool:resize and pool:recycle: other workers, or more, or fewer, while tasks
-- run.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails, rejects = pools.fails, pools.rejects

local function echo(...) return ... end

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

local function whoami()
    local w = require("procpool").worker
    return { id = w.id, generation = w.generation, pid = w.pid }
end

-- Waits until so many workers live, no more, and none of them is busy.
local function settled(pool, n)
    pools.settled(pool, n)
    local keeper = pools.keeper(pool)
    pools.eventually(n .. " processes", function() return #pools.children(keeper) == n end)
end

describe("resize", function()
    teardown(pools.cleanup)

    it("up: more workers, at once", function()
        local pool <close> = procpool.new(1)
        pool:apply(echo)
        pool:resize(4)
        assert.equal(4, pool.processes)
        local gate, log = pools.gate(), pools.path()
        for _ = 1, 4 do pool:apply_async(pools.pass, { gate, log }) end
        pools.await_notes(log, 4)
        pools.open(gate)
        settled(pool, 4)
        assert.equal(4, #pool:stats().workers)
    end)

    it("up gives queued tasks to the new workers", function()
        local pool <close> = procpool.new(1)
        local gate, log = pools.gate(), pools.path()
        for _ = 1, 3 do pool:apply_async(pools.pass, { gate, log }) end
        pools.await_notes(log, 1)
        pool:resize(3)
        pools.await_notes(log, 3)
        pools.open(gate)
    end)

    it("down: idle workers leave", function()
        local pool <close> = procpool.new(4)
        settled(pool, 4)
        pool:resize(1)
        settled(pool, 1)
        assert.equal(1, pool.processes)
        local stats = pool:stats()
        assert.equal(3, stats.recycled.resize)
        assert.equal(1, #stats.workers)
        assert.equal(1, stats.workers[1].id)
        for i = 1, 10 do assert.equal(i, pool:apply(echo, { i })) end
    end)

    it("down: busy workers finish their task first", function()
        local pool <close> = procpool.new(3)
        local gate, log = pools.gate(), pools.path()
        local results = {}
        for i = 1, 3 do
            results[i] = pool:apply_async(function(g, l, k) pools.pass(g, l) return k end, { gate, log, i })
        end
        pools.await_notes(log, 3)
        pool:resize(1)
        local more = pool:map_async(echo, range(10))
        pools.nap(0.02)
        for i = 1, 3 do assert.is_false(results[i]:ready()) end
        pools.open(gate)
        for i = 1, 3 do assert.equal(i, results[i]:get(20)) end
        assert.equal(10, more:get(20).n)
        settled(pool, 1)
    end)

    it("down in a chunk: the rest goes to those who stay", function()
        local pool <close> = procpool.new(2)
        local log, gate = pools.path(), pools.gate()
        local result = pool:map_async(function(x)
            local id = require("procpool").worker.id
            if x == 1 or x == 51 then
                pools.pass(gate, log)
            elseif id == 2 then
                pools.nap(0.02)     -- the keeper's order comes meanwhile
            end
            return { x = x, id = id }
        end, range(100), 50)
        pools.await_notes(log, 2)
        pool:resize(1)
        pools.open(gate)
        local list = result:get(20)
        local by_two = 0
        for i = 1, 100 do
            assert.equal(i, list[i].x)
            if list[i].id == 2 then by_two = by_two + 1 end
        end
        assert.is_true(by_two >= 1 and by_two < 50, by_two)
        settled(pool, 1)
    end)

    it("to the same size changes nothing", function()
        local pool <close> = procpool.new(2)
        settled(pool, 2)
        local pids = pools.pids(pool)
        pool:resize(2)
        pool:resize(2.0)
        assert.same(pids, pools.pids(pool))
        assert.equal(0, pool:stats().recycled.resize)
    end)

    it("up and down and up again, under load", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 20 })
        local result = pool:map_async(function(x) pools.nap(0.0005) return x end, range(600), 5)
        for _, n in ipairs { 4, 1, 3, 1, 2, 5, 1, 2 } do
            pool:resize(n)
            assert.equal(n, pool.processes)
            pool:poll(0.01)
        end
        local list = result:get(30)
        for i = 1, 600 do assert.equal(i, list[i]) end
        pools.settled(pool, 2)
        assert.equal(2, #pool:stats().workers)
    end)

    it("while workers recycle after every task", function()
        local pool <close> = procpool.new(3, { maxtasksperchild = 1 })
        local results = {}
        for i = 1, 60 do
            results[i] = pool:apply_async(echo, { i })
            if i % 10 == 0 then pool:resize(1 + i % 3) end
        end
        for i = 1, 60 do assert.equal(i, results[i]:get(30)) end
        pool:resize(2)
        pools.settled(pool, 2)
    end)

    it("is kept by later lives", function()
        local pool <close> = procpool.new(1, { maxtasksperchild = 2 })
        pool:resize(2)
        pool:map(echo, range(20), 1)
        pools.settled(pool, 2)
        for _, pid in ipairs(pools.pids(pool)) do pools.kill(pid) end
        pools.settled(pool, 2)
    end)

    it("right before close", function()
        for _, n in ipairs { 1, 4 } do
            local pool = procpool.new(2)
            local results = {}
            for i = 1, 20 do results[i] = pool:apply_async(echo, { i }) end
            pool:resize(n)
            pool:close()
            assert.is_true(pool:join(20))
            for i = 1, 20 do assert.equal(i, results[i]:get(0)) end
        end
    end)

    it("after the end is refused with its kind; inline and wrong sizes are errors", function()
        local pool = procpool.new(1)
        rejects("bad argument 'n' to 'resize'", pool.resize, pool, 0)
        rejects("bad argument 'n' to 'resize'", pool.resize, pool)
        pool:close()
        fails("closed", pool.resize, pool, 2)
        pools.finish(pool)
        fails("terminated", pool.resize, pool, 2)
        local inline <close> = procpool.new(0)
        rejects("cannot be resized", inline.resize, inline, 2)
    end)
end)

describe("recycle", function()
    teardown(pools.cleanup)

    it("replaces one worker, once", function()
        local pool <close> = procpool.new(2)
        settled(pool, 2)
        local before = pools.pids(pool)
        pool:recycle(2)
        pools.eventually("a second generation", function()
            return pool:stats().workers[2].generation == 2
        end)
        settled(pool, 2)
        local after = pools.pids(pool)
        assert.equal(before[1], after[1])
        assert.not_equal(before[2], after[2])
        pools.nap(0.05)
        for _ = 1, 20 do pool:apply(echo) end
        assert.same(after, pools.pids(pool))
        local stats = pool:stats()
        assert.equal(1, stats.recycled.request)
        assert.equal(1, stats.workers[1].generation)
        assert.equal(2, stats.workers[2].generation)
    end)

    it("replaces all, never more than half of them at a time", function()
        local out, most = 0, 0
        local pool <close> = procpool.new(4, {
            initializer = function() pools.nap(0.01) end,
            onevent = function(e)
                if e.kind == "worker_exit" then out = out + 1 end
            end,
        })
        settled(pool, 4)
        local before = {}
        for _, pid in ipairs(pools.pids(pool)) do before[pid] = true end
        pool:recycle()
        pools.eventually("four replacements", function()
            local stats = pool:stats()
            local gone = 0
            for _, worker in ipairs(stats.workers) do
                if worker.pid == 0 or worker.state == "starting" then gone = gone + 1 end
            end
            most = math.max(most, gone)
            return stats.recycled.request == 4
        end)
        settled(pool, 4)
        for _, pid in ipairs(pools.pids(pool)) do assert.is_nil(before[pid]) end
        assert.is_true(most <= 2, most)
        pools.nap(0.05)
        pool:poll()
        assert.equal(4, out)
        assert.equal(4, pool:stats().recycled.request)
    end)

    it("lets running tasks finish, and keeps the queue", function()
        local pool <close> = procpool.new(2)
        local gate, log = pools.gate(), pools.path()
        local results = {}
        for i = 1, 2 do
            results[i] = pool:apply_async(function(g, l)
                pools.pass(g, l)
                return require("procpool").worker.generation
            end, { gate, log })
        end
        pools.await_notes(log, 2)
        local later = pool:map_async(whoami, range(20))
        pool:recycle()
        pools.nap(0.02)
        assert.is_false(results[1]:ready())
        pools.open(gate)
        assert.equal(1, results[1]:get(20))
        assert.equal(1, results[2]:get(20))
        assert.equal(20, later:get(20).n)
        pools.eventually("two replacements", function() return pool:stats().recycled.request == 2 end)
    end)

    it("in a chunk leaves the rest to the next life", function()
        local pool <close> = procpool.new(1)
        local gate, log = pools.gate(), pools.path()
        local result = pool:map_async(function(x)
            local generation = require("procpool").worker.generation
            if x == 5 then pools.pass(gate, log) end
            if x > 5 and generation == 1 then pools.nap(0.02) end
            return generation
        end, range(500), 500)
        pools.await_notes(log, 1)
        pool:recycle(1)
        pools.open(gate)
        local list = result:get(20)
        for i = 1, 5 do assert.equal(1, list[i]) end
        assert.equal(2, list[500]) -- the order came in one of 10 s of items
        for i = 2, 500 do assert.is_true(list[i] >= list[i - 1]) end
    end)

    it("over and over, under load, loses nothing", function()
        local pool <close> = procpool.new(2)
        local results = {}
        for i = 1, 200 do
            results[i] = pool:apply_async(echo, { i })
            if i % 20 == 0 then pool:recycle() end
            if i % 33 == 0 then pool:recycle(1) end
        end
        for i = 1, 200 do assert.equal(i, results[i]:get(30)) end
        pools.eventually("two replacements", function()
            return pool:stats().recycled.request >= 2
        end)
    end)

    it("asked for twice at once is done once or twice, then rests", function()
        local pool <close> = procpool.new(1)
        settled(pool, 1)
        pool:recycle(1)
        pool:recycle(1)
        pools.eventually("a replacement", function() return pool:stats().recycled.request >= 1 end)
        settled(pool, 1)
        local n = pool:stats().recycled.request
        assert.is_true(n <= 2)
        pools.nap(0.05)
        assert.is_true(pool:stats().recycled.request <= 2)
    end)

    it("before the first worker is ready", function()
        local pool <close> = procpool.new(2)
        pool:recycle()
        for i = 1, 10 do assert.equal(i, pool:apply(echo, { i })) end
    end)

    it("right before close", function()
        for _ = 1, 5 do
            local pool = procpool.new(2)
            local results = {}
            for i = 1, 10 do results[i] = pool:apply_async(echo, { i }) end
            pool:recycle()
            pool:close()
            assert.is_true(pool:join(20))
            for i = 1, 10 do assert.equal(i, results[i]:get(0)) end
        end
    end)

    it("inline starts a new life", function()
        local pool <close> = procpool.new(0)
        assert.equal(1, pool:apply(whoami).generation)
        pool:recycle()
        assert.equal(2, pool:apply(whoami).generation)
        pool:recycle(1)
        assert.equal(3, pool:apply(whoami).generation)
        assert.equal(2, pool:stats().recycled.request)
    end)

    it("of no such worker is an argument error", function()
        local pool <close> = procpool.new(2)
        for _, bad in ipairs { 0, 3, -1, 1.5, "1", true } do
            rejects("bad argument 'id' to 'recycle' (an integer from 1 to 2", pool.recycle, pool, bad)
        end
        pool:resize(3)
        pool:recycle(3)
        pool:resize(1)
        rejects("an integer from 1 to 1", pool.recycle, pool, 2)
    end)

    it("is what SIGTERM asks of a worker", function()
        local pool <close> = procpool.new(1)
        settled(pool, 1)
        pools.kill(pools.pids(pool)[1], "TERM")
        pools.eventually("a replacement", function() return pool:stats().recycled.request == 1 end)
        local gate, log = pools.gate(), pools.path()
        local result = pool:apply_async(function(g, l) pools.pass(g, l) return "finished" end, { gate, log })
        pools.await_notes(log, 1)
        pools.kill(pools.pids(pool)[1], "TERM")
        pools.nap(0.02)
        pools.open(gate)
        assert.equal("finished", result:get(20))
        pools.eventually("a replacement", function() return pool:stats().recycled.request == 2 end)
        assert.equal(0, pool:stats().recycled.crash)
    end)
end)
