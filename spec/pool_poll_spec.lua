-- poll and fileno: taking results in by hand, and from an event loop.

local describe, it, assert = describe, it, assert
local before_each, after_each, teardown = before_each, after_each, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")
local posix_poll = require("posix.poll")
local signal = require("posix.signal")

local fails, rejects = pools.fails, pools.rejects

local function echo(...) return ... end

for _, processes in ipairs { 0, 2 } do
    describe(("poll in a pool of %d"):format(processes), function()
        local pool
        before_each(function() pool = procpool.new(processes) end)
        after_each(function() pools.finish(pool) end)
        teardown(pools.cleanup)

        it("counts the tasks that completed, each once", function()
            for i = 1, 10 do pool:apply_async(echo, { i }) end
            for i = 1, 7 do pool:apply_async(error, { i }) end
            local sum = 0
            pools.eventually("17 tasks", function()
                sum = sum + pool:poll(0.1)
                return sum >= 17
            end)
            assert.equal(17, sum)
            -- a map takes in what comes while it is submitted
            pool:map_async(echo, { 1, 2, 3, 4, 5 }, 2)
            pools.eventually("22 tasks", function()
                pool:poll(0.01)
                local stats = pool:stats()
                return stats.completed + stats.failed == 22
            end)
            assert.equal(0, pool:poll())
            assert.equal(0, pool:poll(0))
        end)

        it("does not wait without a timeout, nor for 0", function()
            local start = pools.now()
            for _ = 1, 100 do
                assert.equal(0, pool:poll())
                assert.equal(0, pool:poll(0))
            end
            assert.is_true(pools.now() - start < 5)
        end)

        it("waits for ever for nothing only if it may be told", function()
            assert.equal(0, pool:poll(0.02))
            assert.equal(0, pool:poll(math.huge))
        end)

        it("after the end has nothing more", function()
            pool:apply_async(echo, { 1 })
            pool:close()
            local sum = 0
            pools.eventually("one task", function()
                sum = sum + pool:poll(0.1)
                return sum == 1
            end)
            assert.is_true(pool:join(20))
            assert.equal(0, pool:poll(0.01))
        end)
    end)
end

describe("a long queue of calls", function()
    teardown(pools.cleanup)

    local MANY = 256 -- calls, each of which is taken in by the last if it has ended

    -- Queues MANY calls, the last once the others have ended.
    local function queue(pool, opts)
        local results = { pool:apply_async(echo, { 1 }, opts) }
        for i = 2, MANY do
            if i == MANY then
                pools.eventually("an idle worker", function()
                    local stats = pool._handle:stats()
                    return stats.busy + stats.queued == 0
                end)
            end
            results[i] = pool:apply_async(echo, { i })
        end
        return results
    end

    local function count_all(pool)
        local sum = 0
        pools.eventually("all tasks", function()
            sum = sum + pool:poll(0.1)
            return sum >= MANY
        end)
        return sum
    end

    it("is taken in on the way, and poll counts all of it", function()
        local pool <close> = procpool.new(1)
        local results = queue(pool)
        assert.is_true(pool._intake.early >= MANY - 1)
        assert.equal(MANY, count_all(pool))
        for i = 1, MANY do assert.equal(i, results[i]:get(0)) end
        assert.equal(0, pool:poll())
        assert.equal(MANY, pool:stats().completed)
    end)

    it("runs no callback on the way", function()
        local pool <close> = procpool.new(1)
        local got
        local results = queue(pool, { callback = function(x) got = x end })
        assert.is_nil(got)
        assert.is_true(results[2][1] > 0)
        assert.is_true(pool:poll() >= MANY - 1)
        assert.equal(1, got)
    end)

    it("is seen by an event loop that begins after it", function()
        local pool <close> = procpool.new(1)
        queue(pool)
        assert.equal(1, posix_poll.rpoll(pool:fileno(), 0))
        assert.equal(MANY, count_all(pool))
        assert.equal(0, posix_poll.rpoll(pool:fileno(), 0))
    end)

    it("is left to an event loop that has begun", function()
        local pool <close> = procpool.new(1)
        pool:fileno()
        local results = queue(pool)
        assert.equal(-1 - 0, results[1][1])
        assert.equal(1, posix_poll.rpoll(pool:fileno(), 20000))
        assert.equal(MANY, count_all(pool))
    end)

    it("may be queued by what a result is made by", function()
        local pool <close> = procpool.new(1)
        local sum, made = 0, nil
        function _G.queue_from_result(n)
            made = {}
            for i = 1, n do made[i] = pool:apply_async(echo, { i }) end
            return n
        end
        local got = pool:apply(function(n)
            return setmetatable({}, { __reduce = function()
                return function(m) return queue_from_result(m) end, n -- luacheck: ignore 113
            end })
        end, { 3 * MANY })
        _G.queue_from_result = nil
        assert.equal(3 * MANY, got)
        for i = 1, 3 * MANY do sum = sum + made[i]:get(20) end
        assert.equal(3 * MANY * (3 * MANY + 1) // 2, sum)
    end)
end)

describe("poll with real workers", function()
    teardown(pools.cleanup)

    it("waits for the first arrival, not longer", function()
        local pool <close> = procpool.new(2)
        local gate = pools.gate()
        local slow = pool:apply_async(pools.pass, { gate })
        pool:apply_async(echo, { 1 })
        assert.equal(1, pool:poll(20))
        assert.equal(0, pool:poll(0.02))
        pools.open(gate)
        assert.equal(1, pool:poll(20))
        assert.is_true(slow:ready())
    end)

    it("learns of the keeper's death, and so does ready", function()
        local pool = procpool.new(1)
        local gate = pools.gate()
        local result = pool:apply_async(pools.pass, { gate })
        local other = pool:apply_async(pools.pass, { gate })
        pools.kill(pools.keeper(pool))
        pools.eventually("a failed task", function() return result:ready() end)
        fails("broken", result.get, result, 0)
        pools.eventually("another", function() pool:poll() return pool:stats().queued == 0 end)
        assert.equal("failed", other:status())
        pools.finish(pool)
    end)

    it("counts terminated tasks too", function()
        local pool = procpool.new(1)
        for _ = 1, 5 do pool:apply_async(pools.nap, { 30 }) end
        local kept = pool
        pool:terminate()
        assert.equal(0, kept:poll()) -- terminate took them in
        assert.is_true(pool:join(20))
    end)
end)

describe("fileno", function()
    teardown(pools.cleanup)

    local function readable(fd, timeout)
        return posix_poll.rpoll(fd, timeout) == 1
    end

    it("is a descriptor, always the same", function()
        local pool <close> = procpool.new(1)
        local fd = pool:fileno()
        assert.equal("integer", math.type(fd))
        assert.is_true(fd > 2)
        assert.equal(fd, pool:fileno())
    end)

    it("is not there inline", function()
        local pool <close> = procpool.new(0)
        rejects("has no descriptor", pool.fileno, pool)
    end)

    it("is readable when a result is there, quiet after poll", function()
        local pool <close> = procpool.new(2)
        local fd = pool:fileno()
        pool:poll()
        assert.is_false(readable(fd, 0))
        for i = 1, 50 do
            local result = pool:apply_async(echo, { i })
            assert.is_true(readable(fd, 20000))
            assert.equal(1, pool:poll())
            assert.is_false(readable(fd, 0))
            assert.equal(i, result:get(0))
        end
    end)

    it("stays readable until poll has taken all in", function()
        local pool <close> = procpool.new(1)
        local fd = pool:fileno()
        for i = 1, 10 do pool:apply_async(echo, { i }) end
        pools.settled(pool) -- takes in
        for i = 1, 10 do pool:apply_async(echo, { i }) end
        assert.is_true(readable(fd, 20000))
        assert.is_true(readable(fd, 0))
        local sum = 0
        while sum < 10 do
            assert.is_true(readable(fd, 20000))
            sum = sum + pool:poll()
        end
        assert.is_false(readable(fd, 0))
    end)

    it("drives a loop over many results, without a busy wake-up", function()
        local pool <close> = procpool.new(2)
        local fd = pool:fileno()
        local done, wakeups, empty = 0, 0, 0
        for i = 1, 200 do
            pool:apply_async(function(x) pools.nap(0.0005) return x end, { i },
                { callback = function() done = done + 1 end })
        end
        while done < 200 do
            assert.is_true(readable(fd, 20000))
            wakeups = wakeups + 1
            if pool:poll() == 0 then empty = empty + 1 end
        end
        assert.is_true(wakeups <= 220, wakeups)
        assert.is_true(empty <= 20, empty)
        assert.is_false(readable(fd, 20))
    end)

    it("is quiet while tasks run and nothing comes", function()
        local pool <close> = procpool.new(2)
        local fd = pool:fileno()
        local gate, log = pools.gate(), pools.path()
        for _ = 1, 4 do pool:apply_async(pools.pass, { gate, log }) end
        pools.await_notes(log, 2)
        pool:poll()
        assert.is_false(readable(fd, 50))
        pools.open(gate)
        assert.is_true(readable(fd, 20000))
    end)

    it("is asked for after tasks have been submitted, and shows them", function()
        local pool <close> = procpool.new(1)
        for i = 1, 3 do pool:apply_async(echo, { i }) end
        pools.eventually("an idle worker", function()
            local stats = pool._handle:stats()
            return stats.busy + stats.queued == 0
        end)
        assert.is_true(readable(pool:fileno(), 20000))
        pools.settled(pool)
        pool:poll()
        assert.is_false(readable(pool:fileno(), 0))
    end)

    it("is readable when a worker dies under a task", function()
        local pool <close> = procpool.new(1)
        local fd = pool:fileno()
        local result = pool:apply_async(function()
            pools.kill(require("procpool").worker.pid)
        end)
        pools.eventually("the news", function()
            assert.is_true(readable(fd, 20000))
            pool:poll()
            return result:ready()
        end)
        fails("lost", result.get, result)
    end)

    it("is readable when the keeper dies", function()
        local pool = procpool.new(1)
        local fd = pool:fileno()
        local gate = pools.gate()
        local result = pool:apply_async(pools.pass, { gate })
        pools.kill(pools.keeper(pool))
        pools.eventually("the news", function()
            assert.is_true(readable(fd, 20000))
            pool:poll()
            return result:ready()
        end)
        fails("broken", result.get, result)
        assert.equal("broken", pool:state())
        pools.finish(pool)
    end)

    it("is readable for events, and quiet after them", function()
        local events = 0
        local pool <close> = procpool.new(1, { onevent = function() events = events + 1 end })
        local fd = pool:fileno()
        pools.settled(pool)
        pools.eventually("start and readiness", function() pool:poll() return events >= 2 end)
        assert.is_false(readable(fd, 20))
        pool:recycle(1)
        pools.eventually("start, readiness and exit", function()
            assert.is_true(readable(fd, 20000))
            pool:poll()
            return events >= 5
        end)
        -- After a death the keeper rings once more: the dead may have been
        -- about to. That may come after the exit has been read.
        pools.eventually("quiet", function()
            pool:poll()
            return not readable(fd, 20)
        end)
    end)

    it("works for several pools in one loop", function()
        local first <close> = procpool.new(1)
        local second <close> = procpool.new(1)
        local done = {}
        local fds = {}
        for _, pool in ipairs { first, second } do
            done[pool] = 0
            fds[pool:fileno()] = { events = { IN = true }, pool = pool }
            for i = 1, 20 do
                pool:apply_async(echo, { i }, { callback = function() done[pool] = done[pool] + 1 end })
            end
        end
        while done[first] + done[second] < 40 do
            assert.is_true(posix_poll.poll(fds, 20000) > 0)
            for _, entry in pairs(fds) do
                if entry.revents and entry.revents.IN then entry.pool:poll() end
            end
        end
        assert.equal(20, done[first])
    end)

    it("wakes by signal as any poll does", function()
        local pool <close> = procpool.new(1)
        local hit = 0
        local before = signal.signal(signal.SIGUSR1, function() hit = hit + 1 end)
        local pid = require("posix.unistd").getpid()
        pool:apply_async(function(p)
            pools.nap(0.02)
            pools.kill(p, "USR1")
            pools.nap(0.02)
        end, { pid })
        pools.eventually("both", function() return pool:poll(20) == 1 and hit == 1 end)
        signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)
    end)
end)
