-- pool:stats(): every counter, every field of a worker's row. The same for
-- real workers and for none, as far as there is something to count.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local function echo(...) return ... end

local REASONS = { "tasks", "age", "memory", "predicate", "idle", "request",
    "resize", "timelimit", "cancel", "crash" }

local function sum_of(stats)
    local sum = 0
    for _, name in ipairs { "completed", "failed", "cancelled", "lost", "timelimit", "memory",
        "queued", "running" } do
        sum = sum + stats[name]
    end
    return sum
end

for _, processes in ipairs { 0, 2 } do
    describe(("stats of a pool of %d"):format(processes), function()
        teardown(pools.cleanup)

        it("have every field, all integers but the state", function()
            local pool <close> = procpool.new(processes)
            pool:apply(echo)
            local stats = pool:stats()
            for _, name in ipairs { "processes", "idle", "busy", "queued", "running", "completed",
                "failed", "cancelled", "lost", "timelimit", "memory", "retried" } do
                assert.equal("integer", math.type(stats[name]), name)
            end
            for _, name in ipairs(REASONS) do
                assert.equal(0, stats.recycled[name], name)
                assert.equal("integer", math.type(stats.recycled[name]))
            end
            local n = 0
            for _ in pairs(stats.recycled) do n = n + 1 end
            assert.equal(#REASONS, n)
            for _, name in ipairs { "sent", "received", "shared" } do
                assert.equal("integer", math.type(stats.bytes[name]), name)
            end
            assert.equal(processes, stats.processes)
            assert.equal("running", stats.state)
            assert.equal(math.max(1, processes), #stats.workers)
        end)

        it("have a row per worker", function()
            local pool <close> = procpool.new(processes)
            if processes > 0 then pools.settled(pool) else pool:apply(echo) end
            for i, row in ipairs(pool:stats().workers) do
                assert.equal(i, row.id)
                assert.is_true(row.pid > 1)
                assert.equal(1, row.generation)
                assert.equal("idle", row.state)
                assert.equal("integer", math.type(row.tasks))
                assert.is_true(row.age >= 0)
                assert.is_true(row.memory > 0)
                assert.is_true(row.cpu >= 0)
                assert.is_nil(row.running_for)
            end
        end)

        it("count how tasks ended", function()
            local pool <close> = procpool.new(processes)
            for i = 1, 5 do pool:apply(echo, { i }) end
            pool:map(echo, { 1, 2, 3 })
            pcall(pool.apply, pool, error)
            pool:map(error, { 1, 2 }, { errors = "collect" })
            pcall(pool.apply, pool, function() return io.stdout end)
            pool:map(echo, { 1, io.stdout }, { errors = "collect" })
            pcall(pool.apply, pool, os.exit)
            pcall(pool.apply, pool, function() while true do end end, nil, { timeout = 0.05, grace = 20 })
            local stats = pool:stats()
            assert.equal(9, stats.completed)
            assert.equal(6, stats.failed)
            assert.equal(1, stats.timelimit)
            assert.equal(0, stats.lost + stats.cancelled + stats.memory + stats.retried)
            assert.equal(16, sum_of(stats))
        end)

        it("count nothing for a refused submission", function()
            local pool <close> = procpool.new(processes)
            pcall(pool.apply, pool, echo, { io.stdout })
            pcall(pool.apply, pool, "no function")
            pcall(pool.map, pool, echo, 5)
            assert.equal(0, sum_of(pool:stats()))
        end)

        it("count bytes of messages both ways", function()
            local pool <close> = procpool.new(processes)
            local before = pool:stats().bytes
            pool:apply(echo, { ("x"):rep(100000) })
            pool:apply(function(s) return #s end, { ("x"):rep(50000) })
            local after = pool:stats().bytes
            assert.is_true(after.sent >= before.sent + 150000, after.sent)
            assert.is_true(after.sent < before.sent + 160000)
            assert.is_true(after.received >= before.received + 100000)
            assert.is_true(after.received < before.received + 110000)
        end)

        it("count lives that ended, by reason", function()
            local pool <close> = procpool.new(processes, {
                maxtasksperchild = 4, recycleif = function(w) return w.state.leave end,
            })
            pool:map(echo, { 1, 2, 3, 4 }, 4)
            pools.eventually("one of four tasks", function()
                return pool:stats().recycled.tasks == 1 or processes > 1
            end)
            pool:apply(function() require("procpool").worker.state.leave = true end)
            pool:apply(function() require("procpool").worker.recycle() end)
            pools.eventually("predicate and request", function()
                local recycled = pool:stats().recycled
                return recycled.predicate == 1 and recycled.request == 1
            end)
        end)

        it("can be read after the end", function()
            for _, method in ipairs { "close", "terminate" } do
                local pool = procpool.new(processes)
                for i = 1, 7 do pool:apply(echo, { i }) end
                pool[method](pool)
                assert.is_true(pool:join(20))
                local stats = pool:stats()
                assert.equal(7, stats.completed)
                assert.equal(method == "close" and "closed" or "terminated", stats.state)
                assert.equal(0, stats.queued + stats.running + stats.busy)
                for _, name in ipairs(REASONS) do assert.equal(0, stats.recycled[name]) end
            end
        end)

        it("are new tables each time", function()
            local pool <close> = procpool.new(processes)
            local one, two = pool:stats(), pool:stats()
            assert.is_false(rawequal(one, two) or rawequal(one.recycled, two.recycled)
                or rawequal(one.bytes, two.bytes) or rawequal(one.workers, two.workers))
        end)
    end)
end

describe("stats of real workers", function()
    teardown(pools.cleanup)

    it("tell what is queued, running, busy, idle", function()
        local pool <close> = procpool.new(2)
        pools.settled(pool)
        local stats = pool:stats()
        assert.same({ 2, 0, 0, 0 }, { stats.idle, stats.busy, stats.queued, stats.running })
        local gate, log = pools.gate(), pools.path()
        pool:apply_async(pools.pass, { gate, log })
        pools.await_notes(log, 1)
        stats = pool:stats()
        assert.same({ 1, 1, 0, 1 }, { stats.idle, stats.busy, stats.queued, stats.running })
        for _ = 1, 4 do pool:apply_async(pools.pass, { gate, log }) end
        pools.await_notes(log, 2)
        stats = pool:stats()
        assert.same({ 0, 2, 3, 2 }, { stats.idle, stats.busy, stats.queued, stats.running })
        for _, row in ipairs(stats.workers) do
            assert.equal("busy", row.state)
            assert.is_true(row.running_for >= 0)
            assert.is_true(row.running_for <= row.age + 1)
        end
        pools.open(gate)
        pools.settled(pool)
        stats = pool:stats()
        assert.same({ 2, 0, 0, 0 }, { stats.idle, stats.busy, stats.queued, stats.running })
        assert.equal(5, stats.completed)
    end)

    it("tell of no running time before the task has begun", function()
        local pool <close> = procpool.new(1)
        for _ = 1, 2 do -- behind no task, and behind one
            local gate, log = pools.gate(), pools.path()
            local result = pool:apply_async(echo, { setmetatable({}, { __reduce = function()
                return function(...) -- in the worker, as the argument is made
                    pools.pass(...)
                    return "made"
                end, gate, log
            end }) })
            pools.await_notes(log, 1)
            local row = pool:stats().workers[1]
            assert.equal("busy", row.state)
            assert.is_nil(row.running_for)
            pools.open(gate)
            assert.equal("made", result:get(20))
        end
    end)

    it("count tasks of chunks, not chunks", function()
        local pool <close> = procpool.new(1)
        local gate, log = pools.gate(), pools.path()
        local result = pool:map_async(function(x) if x == 5 then pools.pass(gate, log) end end,
            { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 }, 6)
        pools.await_notes(log, 1)
        local stats = pool:stats()
        assert.equal(12, stats.completed + stats.running + stats.queued)
        assert.equal(4, stats.completed)
        pools.open(gate)
        result:get(20)
        assert.equal(12, pool:stats().completed)
    end)

    it("count all the ways in which workers and tasks end", function()
        local pool <close> = procpool.new(2, { grace = 0.02 })
        local log = pools.path()
        pcall(pool.apply, pool, function() pools.kill(require("procpool").worker.pid) end)
        pcall(pool.apply, pool, function()
            pools.kill(require("procpool").worker.pid)
        end, nil, { retries = 1 })
        pcall(pool.apply, pool, function()
            pcall(function() while true do end end)
            while true do end
        end, nil, { timeout = 0.05 })
        local cancelled = pool:apply_async(function()
            pcall(function() -- within: the request comes as soon as this is read
                pools.note(log, 1)
                while true do end
            end)
            while true do end
        end)
        pools.await_notes(log, 1)
        cancelled:cancel()
        cancelled:wait(20)
        pools.eventually("all counted", function()
            local stats = pool:stats()
            local recycled = stats.recycled
            return stats.lost == 2 and stats.retried == 1 and stats.timelimit == 1
                and stats.cancelled == 1 and recycled.crash == 3
                and recycled.timelimit == 1 and recycled.cancel == 1
        end)
    end)

    it("count tasks that were terminated nowhere", function()
        local pool = procpool.new(1)
        pool:apply(echo)
        for _ = 1, 5 do pool:apply_async(pools.nap, { 30 }) end
        pool:terminate()
        local stats = pool:stats()
        assert.equal(1, stats.completed)
        assert.equal(1, sum_of(stats))
        assert.is_true(pool:join(20))
    end)

    it("show a worker's tasks, generation and pid", function()
        local pool <close> = procpool.new(1, { maxtasksperchild = 3 })
        for i = 1, 4 do pool:apply(echo, { i }) end
        pools.settled(pool, 1)
        local row = pool:stats().workers[1]
        assert.equal(2, row.generation)
        assert.equal(1, row.tasks)
        assert.equal(row.pid, pool:apply(function() return require("procpool").worker.pid end))
    end)

    it("show CPU time and memory of a worker's own", function()
        local pool <close> = procpool.new(1)
        local before = pools.settled(pool).workers[1]
        pool:apply(function()
            local keep = ("x"):rep(20 << 20)
            require("procpool").worker.state.keep = keep
            local n = os.clock() + 0.1
            while os.clock() < n do end
        end)
        local after = pool:stats().workers[1]
        assert.is_true(after.cpu >= before.cpu + 0.05)
        assert.is_true(after.memory >= before.memory + (19 << 20))
        assert.is_true(after.age >= 0.1)
    end)

    it("of a broken pool are there", function()
        local pool = procpool.new(1)
        pool:apply(echo)
        pools.kill(pools.keeper(pool))
        pools.eventually("broken", function() return pool:state() == "broken" end)
        local stats = pool:stats()
        assert.equal("broken", stats.state)
        assert.equal(1, stats.completed)
        pools.finish(pool)
    end)

    it("make tostring right", function()
        local pool = procpool.new(3)
        pools.settled(pool)
        assert.equal("procpool.Pool (running, 3/3 workers)", tostring(pool))
        pool:close()
        assert.is_truthy(tostring(pool):find("^procpool.Pool %(closed, %d/3 workers%)$"))
        pool:join()
        assert.equal("procpool.Pool (closed, 0/3 workers)", tostring(pool))
        pool:terminate()
        assert.equal("procpool.Pool (terminated, 0/3 workers)", tostring(pool))
    end)
end)
