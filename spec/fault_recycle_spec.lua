-- Workers leave in order while others die, tasks are submitted and the pool
-- is closed: races, found by chance. The seed is printed on failure;
-- FAULT_SEED repeats a run's choices (not its timing).
-- limit: 240 s

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local _ENV = _G -- luacheck: ignore 211

local c = require("chelper")
local fault = require("spec.support.fault")
local ledger = require("spec.support.ledger")
local procpool = require("procpool")

local seed = tonumber(os.getenv("FAULT_SEED")) or os.time()

-- Tasks tell their worker's pid in the counters behind the ledger's.
local function work(id, place, seconds)
    c.set(place + procpool.worker.id, procpool.worker.pid)
    local till = c.now() + seconds
    while c.now() < till do end
    return id
end

describe("recycling, crashes, sizes and the end at once", function()
    after_each(function()
        c.counters(0)
    end)

    for round = 1, fault.scaled(4) do
        it("lose no task and double none, round " .. round, function()
            math.randomseed(seed, round)
            local total = 400
            local place = 2 * total
            local book = ledger.new(total, 8)
            local pool = procpool.new(3, {
                maxtasksperchild = math.random(1, 20), recyclejitter = math.random() * 0.9,
                maxageperchild = 0.2 + math.random() * 0.3, retries = 1000,
                idletimeout = math.random() < 0.5 and 0.01 or nil, minprocesses = 1,
                finalizer = math.random() < 0.5 and function() c.sleep(0.001) end or nil,
                recycleif = function() return math.random(50) == 1 end,
            })
            local keeper = fault.keeper()
            local nemesis = fault.nemesis(0.01, function()
                fault.strike(keeper, c.get(place + math.random(5)), math.random(3) == 1 and 15 or 9)
            end)
            local results, id = {}, 0
            while id < total do
                for _ = 1, math.min(math.random(40), total - id) do
                    id = id + 1
                    results[id] = pool:apply_async(ledger.run, { id, work, id, place, 0.0002 })
                end
                local what = math.random(6)
                if what == 1 then
                    pool:recycle()
                elseif what == 2 then
                    pool:recycle(math.random(pool.processes))
                elseif what == 3 then
                    pool:resize(math.random(1, 5))
                elseif what == 4 then
                    c.sleep(math.random() * 0.02)
                else
                    pool:poll()
                end
            end
            local closed = math.random(2) == 1
            if closed then
                pool:close()
            end
            for k = 1, total do
                local ok, err = pcall(results[k].get, results[k], fault.HANG)
                assert.is_true(ok, ("seed %d: task %d: %s"):format(seed, k, tostring(err)))
                assert.equal(k, err)
                book:ended(k, true)
            end
            fault.stop(nemesis)
            book:check(1000)
            if not closed then
                fault.probe(pool)
                pool:close()
            end
            assert(pool:join(fault.HANG), "seed " .. seed)
        end)
    end
end)

describe("a worker that leaves just when a task comes", function()
    local pool
    before_each(function()
        c.counters(4)
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.ENDED))
        c.counters(0)
    end)

    local slowest
    local function races(n, pause, opts)
        math.randomseed(seed)
        slowest = 0
        pool = procpool.new(2, opts)
        for i = 1, n do
            c.sleep(pause * (0.5 + math.random()))
            local begun = fault.now()
            assert.equal(i, pool:apply_async(math.max, { i, 0 }):get(fault.HANG))
            slowest = math.max(slowest, fault.now() - begun)
        end
        assert.is_true(slowest < fault.READY, ("seed %d: %.2f s"):format(seed, slowest))
        assert.equal(0, pool:stats().recycled.crash)
    end

    it("for being idle: the task runs at once", function()
        races(fault.scaled(100), 0.01, { idletimeout = 0.01, minprocesses = 1 })
        assert.is_true(pool:stats().recycled.idle > 0)
    end)

    it("for its age: the task runs at once", function()
        races(fault.scaled(100), 0.01, { maxageperchild = 0.01 })
        assert.is_true(pool:stats().recycled.age > 0)
    end)

    it("for its memory: the task runs at once", function()
        races(fault.scaled(40), 0.005, { maxmemoryperchild = 1 })
        assert.is_true(pool:stats().recycled.memory > 0)
    end)

    it("by request, over and over: the task runs at once", function()
        pool = procpool.new(2)
        for i = 1, fault.scaled(60) do
            pool:recycle(i % 2 + 1)
            assert.equal(i, pool:apply_async(math.max, { i, 0 }):get(fault.HANG))
        end
        pool:recycle()
        fault.probe(pool)
    end)
end)

describe("workers that reach their limit together", function()
    it("leave never less than half of themselves ready for long", function()
        c.counters(4)
        local n = 4
        local pool <close> = procpool.new(n, { maxtasksperchild = 50 })
        fault.ready(pool)
        local last, longest = fault.now(), 0
        for _, count in pool:imap_unordered(function()
            c.sleep(0.0005)
            return 1
        end, function() return 1 end, { buffersize = 64 }) do
            local now = fault.now()
            longest, last = math.max(longest, now - last), now
            if c.add(1, count) >= 2000 then
                break
            end
        end
        assert.is_true(longest < fault.READY, longest)
        assert.is_true(pool:stats().recycled.tasks >= 2000 / 50 - n)
        c.counters(0)
    end)
end)
