-- Why else a worker leaves: age, memory, a predicate, its own wish, idleness;
-- and recyclejitter, which draws the limits.

local describe, it, assert = describe, it, assert
local pending, teardown = pending, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local clean = require("spec.support.clean")
local fault = require("spec.support.fault")
local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails
local MIB = 1 << 20

local function echo(...) return ... end

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

local function whoami()
    local w = require("procpool").worker
    return { id = w.id, generation = w.generation, pid = w.pid, tasks = w.tasks }
end

describe("maxageperchild", function()
    teardown(pools.cleanup)

    it("replaces an idle worker", function()
        local pool <close> = procpool.new(1, { maxageperchild = 0.03 })
        pools.eventually("two replacements", function() return pool:stats().recycled.age >= 2 end)
        assert.equal(1, pool:apply(echo, { 1 }))
        assert.equal(0, pool:stats().recycled.crash)
    end)

    it("waits for the end of the task during which it is reached", function()
        local pool <close> = procpool.new(1, { maxageperchild = 0.05 })
        local result = pool:apply(function()
            pools.nap(0.2)
            return whoami()
        end)
        local next_one = pool:apply(whoami)
        assert.not_equal(result.pid, next_one.pid)
        assert.is_true(next_one.generation > result.generation)
    end)

    it("loses no task, in chunks neither", function()
        local pool <close> = procpool.new(2, { maxageperchild = 0.02 })
        for _, chunksize in ipairs { 1, 10, 100 } do
            local list = pool:map(function(x)
                pools.nap(0.002)
                return x
            end, range(60), chunksize)
            for i = 1, 60 do assert.equal(i, list[i]) end
        end
        assert.is_true(pool:stats().recycled.age >= 2)
    end)

    it("lets no worker run a second task once it is over", function()
        local pool <close> = procpool.new(1, { maxageperchild = 0.03 })
        local list = pool:map(function()
            pools.nap(0.05)
            return whoami()
        end, range(6), 6)
        local seen = {}
        for _, w in ipairs(list) do
            assert.is_nil(seen[w.pid])
            assert.equal(0, w.tasks)
            seen[w.pid] = true
        end
    end)

    it("inline leaves between tasks", function()
        local pool <close> = procpool.new(0, { maxageperchild = 0.02 })
        local first = pool:apply(function() pools.nap(0.03) return whoami() end)
        assert.equal(1, first.generation)
        assert.equal(2, pool:apply(whoami).generation)
        assert.equal(1, pool:stats().recycled.age)
    end)

    it("does not strike before its time", function()
        local pool <close> = procpool.new(1, { maxageperchild = 3600 })
        for _ = 1, 50 do assert.equal(1, pool:apply(whoami).generation) end
        assert.equal(0, pool:stats().recycled.age)
    end)
end)

describe("maxmemoryperchild", function()
    teardown(pools.cleanup)

    -- Task: holds on to so many blocks more. Of 36 MiB each, since the C
    -- library gives blocks of more than 32 back at once. While it is made, a
    -- string takes twice its size.
    local BLOCK = 36 * MIB
    local function hold(blocks)
        local state = require("procpool").worker.state
        state.held = state.held or {}
        for _ = 1, blocks do
            state.held[#state.held + 1] = ("x"):rep(BLOCK)
            collectgarbage()
            collectgarbage()
        end
        return require("procpool").worker.generation
    end

    it("replaces a worker after the task that took it beyond", function()
        if fault.unmeasurable then
            pending(fault.unmeasurable)
            return
        end
        local pool <close> = procpool.new(1, { maxmemoryperchild = 100 * MIB })
        -- 36 and 72 MiB are below the limit, 108 are not
        for i = 1, 5 do assert.equal(i <= 3 and 1 or 2, pool:apply(hold, { 1 })) end
        local stats = pool:stats()
        assert.equal(1, stats.recycled.memory)
        assert.equal(0, stats.memory)
        assert.equal(5, stats.completed)
    end)

    it("in a chunk leaves after that very item", function()
        if fault.unmeasurable then
            pending(fault.unmeasurable)
            return
        end
        local pool <close> = procpool.new(1, { maxmemoryperchild = 100 * MIB })
        local list = pool:map(hold, { 0, 0, 3, 0, 0 }, 5)
        assert.same({ 1, 1, 1, 2, 2, n = 5 }, list)
    end)

    it("does not count what is inherited", function()
        -- a program of its own: what its heap keeps would be inherited by the
        -- workers of the other tests
        local status, _, err = pools.run([[
            local procpool = require("procpool")
            local big, items = {}, {}
            for i = 1, 100 do big[i] = ("%03d"):format(i):rep(300000) end
            for i = 1, 200000 do big[#big + 1] = { i } end
            for i = 1, 200 do items[i] = i end
            local pool = procpool.new(2, { maxmemoryperchild = 32 << 20, shared = big })
            local list = pool:map(function(i)
                local shared = require("procpool").worker.shared
                return #shared[i % 100 + 1] == 900000 and require("procpool").worker.generation
            end, items, 10)
            for i = 1, 200 do assert(list[i] == 1) end
            assert(pool:stats().recycled.memory == 0)
            for _, w in ipairs(pool:stats().workers) do assert(w.memory < 32 << 20) end
            pool:close()
            assert(pool:join(20))
        ]])
        assert.equal(0, status, err)
    end)

    it("does not count what was freed again", function()
        if fault.unmeasurable then
            pending(fault.unmeasurable)
            return
        end
        local pool <close> = procpool.new(1, { maxmemoryperchild = 48 * MIB })
        for _ = 1, 3 do
            local generation = pool:apply(function()
                local function use() return #("x"):rep(40 * MIB) end
                assert(use() == 40 * MIB)
                collectgarbage()
                collectgarbage()
                return require("procpool").worker.generation
            end)
            assert.equal(1, generation)
        end
    end)

    it("stops a task at over twice the limit, and that task alone", function()
        local pool <close> = procpool.new(2, { maxmemoryperchild = 32 * MIB })
        local list, failures = pool:map(function(x)
            if x ~= 5 then return x end
            local t = {}
            while true do
                t[#t + 1] = ("x"):rep(MIB) .. #t
                if #t > 200 then pools.nap(0.01) end
                if #t > 400 then pools.nap(30) end
            end
        end, range(10), { errors = "collect", chunksize = 5 })
        assert.equal(1, failures)
        local err = list[5]
        assert.equal("memory", err.kind)
        assert.equal(5, err.index)
        assert.is_truthy(err.message:find("maxmemoryperchild", 1, true), err.message)
        for i = 1, 10 do
            if i ~= 5 then assert.equal(i, list[i]) end
        end
        assert.equal(1, pool:stats().memory)
        assert.equal(0, pool:stats().lost)
        pools.eventually("the end counted", function() -- told after the task's
            return pool:stats().recycled.memory == 1
        end)
        assert.equal(7, pool:apply(echo, { 7 }))
    end)

    it("is not retried", function()
        local log = pools.path()
        local pool <close> = procpool.new(1, { maxmemoryperchild = 16 * MIB, retries = 3 })
        fails("memory", pool.apply, pool, function()
            pools.note(log, "run")
            local t = {}
            for i = 1, 200 do t[i] = ("x"):rep(MIB) .. i end
            pools.nap(30)
            return #t
        end)
        assert.equal(1, #pools.notes(log))
    end)

    it("within the limit is no matter", function()
        local pool <close> = procpool.new(1, { maxmemoryperchild = 1024 * MIB })
        for _ = 1, 5 do assert.equal(1, pool:apply(hold, { 0 })) end
    end)
end)

for _, processes in ipairs { 0, 1 } do
    describe(("recycleif in a pool of %d"):format(processes), function()
        teardown(pools.cleanup)

        it("is asked after each task, with the worker", function()
            local pool <close> = procpool.new(processes, {
                recycleif = function(w)
                    assert(w == require("procpool").worker)
                    return w.tasks == 3
                end,
            })
            local list = pool:map(function() return whoami().generation end, range(10), 4)
            assert.same({ 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, n = 10 }, list)
            pools.eventually("three replacements", function()
                return pool:stats().recycled.predicate == 3
            end)
        end)

        it("sees what the task left in the state", function()
            local pool <close> = procpool.new(processes, {
                recycleif = function(w) return w.state.spoiled end,
            })
            assert.equal(1, pool:apply(whoami).generation)
            pool:apply(function() require("procpool").worker.state.spoiled = true end)
            assert.equal(2, pool:apply(whoami).generation)
        end)

        it("takes any true value for yes", function()
            local pool <close> = procpool.new(processes, { recycleif = function() return 0 end })
            assert.equal(1, pool:apply(whoami).generation)
            assert.equal(2, pool:apply(whoami).generation)
        end)

        it("is asked after failed tasks too", function()
            local pool <close> = procpool.new(processes, { recycleif = function(w) return w.tasks == 2 end })
            pcall(pool.apply, pool, error)
            pcall(pool.apply, pool, error)
            assert.equal(2, pool:apply(whoami).generation)
        end)

        it("that raises is reported, and the worker stays", function()
            local status, out, err = pools.run(([[
                local pool = require("procpool").new(%d, { recycleif = function() error("undecided", 0) end })
                local list = pool:map(function() return require("procpool").worker.generation end, { 1, 2, 3 })
                pool:close()
                assert(pool:join(20))
                print(table.concat(list, " "))
            ]]):format(processes))
            assert.equal(0, status, err)
            assert.equal("1 1 1\n", out)
            assert.is_truthy(err:find("recycleif: undecided", 1, true), err)
        end)

        it("and worker.recycle: after this task, in a chunk too", function()
            local pool <close> = procpool.new(processes)
            local list = pool:map(function(x)
                if x % 3 == 0 then require("procpool").worker.recycle() end
                return whoami().generation
            end, range(8), 8)
            assert.same({ 1, 1, 1, 2, 2, 2, 3, 3, n = 8 }, list)
            pools.eventually("two requests", function() return pool:stats().recycled.request == 2 end)
        end)

        it("and worker.recycle in a task that fails", function()
            local pool <close> = procpool.new(processes)
            pcall(pool.apply, pool, function()
                require("procpool").worker.recycle()
                error("x")
            end)
            assert.equal(2, pool:apply(whoami).generation)
        end)

        it("with maxtasksperchild: whatever comes first", function()
            local pool <close> = procpool.new(processes, {
                maxtasksperchild = 4,
                recycleif = function(w) return w.generation == 1 and w.tasks == 2 end,
            })
            local list = pool:map(function() return whoami().generation end, range(10), 10)
            assert.same({ 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, n = 10 }, list)
        end)
    end)
end

describe("leaving in the middle of a chunk", function()
    local function noted(log, text)
        for _, line in ipairs(pools.notes(log)) do
            if line == text then return true end
        end
    end

    -- Who leaves must tell the parent of what it did before it gives the rest of
    -- its chunk to another worker. Here that one ends the chunk while the parent
    -- is between the two outboxes: in a constructor that the first one's outcome
    -- calls. Worker 1's successor starts too late (20 s) to tell it instead.
    it("leaves no result behind that nobody tells of", function()
        local log, slow, start = pools.path(), pools.gate(), pools.gate()
        local gates = { pools.gate(), pools.gate() }
        local second
        local function between()
            pools.open(start)
            pools.eventually("the rest done", function()
                return noted(log, "4") and clean.state(second) == "S"
            end)
            return "between"
        end
        procpool.register("spec.between", between)
        local slow_class = { __reduce = function() return between end }
        local pool <close> = procpool.new(2, {
            initializer = function()
                if require("procpool").worker.generation > 1 then pools.pass(slow) end
            end,
        })
        pools.settled(pool)
        second = pool:stats().workers[2].pid
        local calls = {}
        for i = 1, 2 do
            calls[i] = pool:apply_async(function()
                local id = require("procpool").worker.id
                pools.pass(gates[id], log, "in " .. id)
                return id == 1 and setmetatable({}, slow_class)
            end)
        end
        pools.eventually("both busy", function() return noted(log, "in 1") and noted(log, "in 2") end)
        local result = pool:map_async(function(x)
            if x == 2 then
                pools.pass(start, log, "two")
                require("procpool").worker.recycle()
            end
            pools.note(log, x)
            return x
        end, { 1, 2, 3, 4 }, 4)
        pools.open(gates[1])
        pools.eventually("the chunk begun", function() return noted(log, "two") end)
        pools.open(gates[2])
        -- (a wait that ends by its timeout looks everywhere, and finds it)
        local begun = pools.now()
        assert.same({ 1, 2, 3, 4, n = 4 }, result:get(15))
        assert.is_true(pools.now() - begun < 14)
        assert.is_true(calls[1]:get(0) == "between" or calls[2]:get(0) == "between")
        pools.open(slow)
    end)
end)

describe("recyclejitter", function()
    teardown(pools.cleanup)

    it("draws each life's limit, never beyond it, never below", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 10, recyclejitter = 0.5 })
        local list = pool:map(function()
            local w = whoami()
            return w.id .. "/" .. w.generation
        end, range(400), 20)
        local lives = {}
        for _, life in ipairs(list) do lives[life] = (lives[life] or 0) + 1 end
        local last = {}
        for life in pairs(lives) do
            local slot, generation = life:match("(%d+)/(%d+)")
            last[slot] = math.max(last[slot] or 0, tonumber(generation))
        end
        local sizes, distinct = {}, 0
        for life, n in pairs(lives) do
            local slot, generation = life:match("(%d+)/(%d+)")
            assert.is_true(n <= 10, n)
            if tonumber(generation) < last[slot] then
                assert.is_true(n >= 5, n)
                if not sizes[n] then distinct = distinct + 1 end
                sizes[n] = true
            end
        end
        assert.is_true(distinct >= 3, distinct)
    end)

    it("never makes a limit of one less, or nothing of no limit", function()
        local pool <close> = procpool.new(1, { maxtasksperchild = 1, recyclejitter = 0.99 })
        for i = 1, 10 do assert.equal(i, pool:apply(whoami).generation) end
        local free <close> = procpool.new(1, { recyclejitter = 0.9 })
        for _ = 1, 50 do assert.equal(1, free:apply(whoami).generation) end
    end)

    it("of 0 draws nothing", function()
        local pool <close> = procpool.new(1, { maxtasksperchild = 5, recyclejitter = 0 })
        local list = pool:map(function() return whoami().generation end, range(15), 3)
        for i = 1, 15 do assert.equal((i - 1) // 5 + 1, list[i]) end
    end)

    it("applies to ages", function()
        local pool <close> = procpool.new(1, { maxageperchild = 0.1, recyclejitter = 0.9 })
        pools.eventually("five replacements", function() return pool:stats().recycled.age >= 5 end)
    end)
end)

describe("idletimeout", function()
    teardown(pools.cleanup)

    it("lets idle workers go, but for minprocesses", function()
        local pool <close> = procpool.new(3, { idletimeout = 0.03, minprocesses = 1 })
        pools.eventually("one worker", function()
            local stats = pool:stats()
            return stats.recycled.idle == 2 and #pools.pids(pool) == 1
        end)
        local pid = pools.pids(pool)[1]
        pools.nap(0.1)
        assert.same({ pid }, pools.pids(pool))
        assert.equal(2, pool:stats().recycled.idle)
        assert.equal(3, pool.processes)
    end)

    it("starts them again on demand, all of them", function()
        local pool <close> = procpool.new(3, { idletimeout = 0.03, minprocesses = 0 })
        for _ = 1, 3 do
            pools.eventually("no worker", function() return #pools.pids(pool) == 0 end)
            local gate, log = pools.gate(), pools.path()
            local results = {}
            for i = 1, 3 do
                results[i] = pool:apply_async(function(g, l, k) pools.pass(g, l) return k end, { gate, log, i })
            end
            pools.await_notes(log, 3)
            pools.open(gate)
            for i = 1, 3 do assert.equal(i, results[i]:get(20)) end
        end
    end)

    it("does nothing with minprocesses = processes, its default", function()
        local pool <close> = procpool.new(2, { idletimeout = 0.01 })
        pools.settled(pool)
        pools.nap(0.1)
        assert.equal(2, #pools.pids(pool))
        assert.equal(0, pool:stats().recycled.idle)
    end)

    it("does not take busy workers", function()
        local pool <close> = procpool.new(2, { idletimeout = 0.02, minprocesses = 0 })
        local gate = pools.gate()
        local results = {}
        for i = 1, 2 do
            results[i] = pool:apply_async(function(g)
                pools.pass(g)
                return require("procpool").worker.generation
            end, { gate })
        end
        pools.nap(0.1)
        pools.open(gate)
        assert.equal(1, results[1]:get(20))
        assert.equal(1, results[2]:get(20))
    end)

    it("races submissions without losing one", function()
        local pool <close> = procpool.new(2, { idletimeout = 0.002, minprocesses = 0 })
        for i = 1, 150 do
            pools.nap((i % 10) * 0.0005)
            assert.equal(i, pool:apply_async(echo, { i }):get(20))
        end
        for i = 1, 20 do
            pools.nap((i % 10) * 0.0005)
            local list = pool:map_async(echo, range(10), 3):get(20)
            for k = 1, 10 do assert.equal(k, list[k]) end
        end
    end)

    it("runs the finalizer and counts as idle", function()
        local log = pools.path()
        local pool <close> = procpool.new(2, {
            idletimeout = 0.02, minprocesses = 0,
            finalizer = function() pools.note(log, "out") end,
        })
        pools.await_notes(log, 2)
        pools.eventually("two idle", function() return pool:stats().recycled.idle >= 2 end)
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    it("lets a pool close that has no worker", function()
        local pool = procpool.new(2, { idletimeout = 0.01, minprocesses = 0 })
        pools.eventually("no worker", function() return #pools.pids(pool) == 0 end)
        pool:close()
        assert.is_true(pool:join(20))
    end)

    it("lets a pool close that has no worker but a task", function()
        for _ = 1, 10 do
            local pool = procpool.new(2, { idletimeout = 0.005, minprocesses = 0 })
            pools.eventually("no worker", function() return #pools.pids(pool) == 0 end)
            local result = pool:apply_async(echo, { 1 })
            pool:close()
            assert.is_true(pool:join(20))
            assert.equal(1, result:get(0))
        end
    end)
end)
