-- retries: a task whose worker died is run again, so often and no more; no other
-- task ever is.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

local function echo(...) return ... end

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

local function die()
    pools.kill(require("procpool").worker.pid)
    while true do end
end

describe("retries", function()
    teardown(pools.cleanup)

    it("run a task again whose worker died, visible as attempt", function()
        local attempts = {}
        local pool <close> = procpool.new(1, {
            retries = 2,
            onevent = function(e)
                if e.kind:find("^task") then attempts[#attempts + 1] = e.kind .. " " .. e.attempt end
            end,
        })
        local value, attempt = pool:apply(function(x)
            local n = require("procpool").worker.attempt
            if n < 3 then die() end
            return x, n
        end, { "through" })
        assert.equal("through", value)
        assert.equal(3, attempt)
        pool:poll()
        assert.same({ "task_retry 1", "task_retry 2" }, attempts)
        local stats = pool:stats()
        assert.equal(2, stats.retried)
        assert.equal(0, stats.lost)
        assert.equal(1, stats.completed)
        assert.equal(2, stats.recycled.crash)
    end)

    it("end: lost with the last attempt, no endless loop", function()
        local events = {}
        local pool <close> = procpool.new(1, {
            onevent = function(e)
                if e.kind:find("^task") then events[#events + 1] = e.kind .. " " .. e.attempt end
            end,
        })
        local log = pools.path()
        local err = fails("lost", pool.apply, pool, function()
            pools.note(log, "run")
            die()
        end, nil, { retries = 2 })
        assert.equal(3, err.attempt)
        assert.equal(9, err.signal)
        assert.equal(1, err.worker)
        assert.equal("integer", math.type(err.pid))
        assert.equal(3, #pools.notes(log))
        pool:poll()
        assert.same({ "task_retry 1", "task_retry 2", "task_lost 3" }, events)
        assert.equal(1, pool:apply(echo, { 1 }))
        assert.equal(1, pool:stats().lost)
    end)

    it("are none by default, and a call's own go first", function()
        local pool <close> = procpool.new(1)
        assert.equal(1, fails("lost", pool.apply, pool, die).attempt)
        local keen <close> = procpool.new(1, { retries = 5 })
        assert.equal(1, fails("lost", keen.apply, keen, die, nil, { retries = 0 }).attempt)
        assert.equal(2, fails("lost", keen.apply, keen, die, nil, { retries = 1 }).attempt)
    end)

    it("never for errors, os.exit or results that cannot travel", function()
        local pool <close> = procpool.new(1, { retries = 3 })
        local log = pools.path()
        for i, task in ipairs {
            function() pools.note(log, 1) error("x") end,
            function() pools.note(log, 2) os.exit(1) end,
            function() pools.note(log, 3) return io.stdout end,
        } do
            assert.is_false((pcall(pool.apply, pool, task)))
            assert.equal(i, #pools.notes(log))
        end
        assert.equal(0, pool:stats().retried)
    end)

    it("of an item of a chunk are that item's alone", function()
        for _, chunksize in ipairs { 1, 4, 12 } do
            local pool <close> = procpool.new(2, { retries = 1 })
            local log = pools.path()
            local list, failures = pool:map(function(x)
                pools.note(log, x)
                local n = require("procpool").worker.attempt
                if x == 5 and n == 1 or x == 9 then die() end
                return { x, n }
            end, range(12), { chunksize = chunksize, errors = "collect" })
            assert.equal(1, failures)
            assert.equal("lost", list[9].kind)
            assert.equal(2, list[9].attempt)
            assert.equal(9, list[9].index)
            local runs = {}
            for _, x in ipairs(pools.notes(log)) do runs[tonumber(x)] = (runs[tonumber(x)] or 0) + 1 end
            for i = 1, 12 do
                assert.equal((i == 5 or i == 9) and 2 or 1, runs[i])
                if i ~= 9 then assert.same({ i, i == 5 and 2 or 1 }, list[i]) end
            end
        end
    end)

    it("are not for a task that was cancelled", function()
        local pool <close> = procpool.new(1, { retries = 5, grace = 0.02 })
        local log = pools.path()
        local result = pool:apply_async(function()
            pools.note(log, "run")
            pcall(function() while true do end end)
            while true do end
        end)
        pools.await_notes(log, 1)
        result:cancel()
        fails("cancelled", result.get, result, 20)
        assert.equal(1, pool:apply(echo, { 1 }))
        assert.equal(1, #pools.notes(log))
    end)

    it("go to the next life of the pool, recycling or not", function()
        local pool <close> = procpool.new(2, { retries = 1, maxtasksperchild = 1 })
        local list = pool:map(function(x)
            if require("procpool").worker.attempt == 1 then die() end
            return x
        end, range(20), 5)
        for i = 1, 20 do assert.equal(i, list[i]) end
        assert.equal(20, pool:stats().retried)
    end)

    it("attempt is 1 where nobody died, inline too", function()
        for _, processes in ipairs { 0, 1 } do
            local pool <close> = procpool.new(processes, { retries = 2 })
            local list = pool:map(function() return require("procpool").worker.attempt end, range(5), 5)
            assert.same({ 1, 1, 1, 1, 1, n = 5 }, list)
        end
    end)
end)
