-- Many pools: inside tasks, side by side, one after the other, and what they
-- leave behind: nothing.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

local function echo(...) return ... end

-- PROCPOOL_LONG: the full length.
local ROUNDS = os.getenv("PROCPOOL_LONG") and 5000 or 300

describe("a pool inside a task", function()
    teardown(pools.cleanup)

    -- A pool in a pool in a pool: the product of all levels.
    local function nest(depth, width)
        if depth == 0 then return 1 end
        local inner <close> = require("procpool").new(width)
        local sum = 0
        for _, v in ipairs(inner:map(nest, { depth - 1, depth - 1 }, 1)) do sum = sum + v end
        return sum
    end

    for depth = 1, 3 do
        it("works, " .. depth .. " deep", function()
            local function level(d)
                if d == 0 then return 1 end
                local inner <close> = require("procpool").new(1)
                local sum = 0
                for _, v in ipairs(inner:map(level, { d - 1, d - 1 }, 1)) do sum = sum + v end
                return sum
            end
            local pool <close> = procpool.new(1)
            assert.equal(2 ^ depth, pool:apply(level, { depth }))
        end)
    end

    it("recycles its workers, and its errors come through", function()
        local pool <close> = procpool.new(1)
        local generations, kind, text = pool:apply(function()
            local inner <close> = require("procpool").new(2, { maxtasksperchild = 1 })
            local list = inner:map(function() return require("procpool").worker.generation end,
                { 1, 2, 3, 4, 5, 6 }, 1)
            local ok, err = pcall(inner.apply, inner, error, { "inside", 0 })
            return math.max(table.unpack(list)), not ok and err.kind, err.value
        end)
        assert.is_true(generations >= 3)
        assert.equal("error", kind)
        assert.equal("inside", text)
        local err = fails("error", pool.apply, pool, function()
            local inner <close> = require("procpool").new(1)
            inner:apply(error, { "innermost", 0 })
        end)
        assert.is_true(procpool.iserror(err.value))
        assert.equal("innermost", err.value.message)
        assert.is_truthy(err.message:find("innermost", 1, true))
    end)

    it("left unclosed, is gone when its worker is", function()
        local pool = procpool.new(1)
        local pids = pool:apply(function()
            local p = require("spec.support.pools")
            local inner = require("procpool").new(2)
            require("procpool").worker.state.inner = inner
            local list = { p.keeper(inner), table.unpack(p.pids(inner)) }
            inner:apply_async(function() while true do end end)
            return list
        end)
        assert.is_true(#pids >= 2)
        pool:close()
        assert.is_true(pool:join(20))
        pools.await_gone(pids)
    end)

    it("left unclosed, is gone when its worker is killed", function()
        local pool = procpool.new(1)
        local log = pools.path()
        local result = pool:apply_async(function(l)
            local p = require("spec.support.pools")
            local inner = require("procpool").new(2)
            p.note(l, p.keeper(inner))
            p.eventually("two workers", function() return #p.pids(inner) == 2 end)
            for _, pid in ipairs(p.pids(inner)) do p.note(l, pid) end
            inner:apply(function() while true do end end)
        end, { log })
        local pids = {}
        for i, pid in ipairs(pools.await_notes(log, 3)) do pids[i] = math.tointeger(pid) end
        pools.kill(pools.pids(pool)[1])
        assert.equal(9, fails("lost", result.get, result, 20).signal)
        pools.await_gone(pids)
        assert.equal(2, pool:apply(echo, { 2 }))
        pools.finish(pool)
    end)

    it("may be one of a kind with processes = 0, either way round", function()
        for _, case in ipairs { { 0, 0 }, { 0, 1 }, { 1, 0 } } do
            local pool <close> = procpool.new(case[1])
            assert.equal(-3, pool:apply(function(n)
                local inner <close> = require("procpool").new(n)
                return inner:map(function(x) return -x end, { 1, 2, 3 })[3]
            end, { case[2] }))
        end
    end)

    it("with processes = 0 leaves its worker as it is", function()
        local pool <close> = procpool.new(1)
        pool:apply(function() require("procpool").worker.state.kept = "kept" end)
        assert.equal("kept", pool:apply(function()
            local inner <close> = require("procpool").new(0, { finalizer = function() end })
            inner:apply(function() assert(not require("procpool").worker.state.kept) end)
            return require("procpool").worker.state.kept
        end))
    end)

    it("does not use its worker's own pool", function()
        local pool = procpool.new(1, { shared = {} })
        local box = {}
        local other = procpool.new(1, { shared = box })
        box.pool = pool -- too late: `shared` is as it was
        assert.is_nil(other:apply(function() return require("procpool").worker.shared.pool end))
        pools.finish(other)
        box.pool = pool
        other = procpool.new(1, { shared = box })
        local bad, collected = other:apply(function()
            local theirs = require("procpool").worker.shared.pool
            local n = 0
            for _, method in ipairs { "apply", "map", "close", "terminate", "join", "stats", "poll" } do
                local ok, err = pcall(theirs[method], theirs, math.abs, {})
                if ok or not tostring(err):find("belongs to process", 1, true) then n = n + 1 end
            end
            require("procpool").worker.shared.pool = nil
            collectgarbage()
            collectgarbage()
            return n, true
        end)
        assert.equal(0, bad)
        assert.is_true(collected)
        assert.equal(5, pool:apply(echo, { 5 }))
        pools.finish(other)
        pools.finish(pool)
    end)

    it("serves a map within a map", function()
        local pool <close> = procpool.new(2)
        local results = pool:map(function(n) return nest(n, 2) end, { 1, 1, 1 }, 1)
        assert.same({ 2, 2, 2, n = 3 }, results)
    end)
end)

describe("pools side by side", function()
    teardown(pools.cleanup)

    it("do not mind each other", function()
        local list = {}
        for i = 1, 5 do list[i] = procpool.new(1 + i % 2) end
        local results = {}
        for round = 1, 20 do
            for i, pool in ipairs(list) do
                results[#results + 1] = { pool:apply_async(echo, { round * i }), round * i }
            end
        end
        for _, r in ipairs(results) do assert.equal(r[2], r[1]:get(20)) end
        for _, pool in ipairs(list) do pools.finish(pool) end
    end)

    for _, order in ipairs { "first", "second" } do
        for _, how in ipairs { "close", "terminate", "keeper killed", "workers killed", "collected" } do
            it(("do not mind the %s's end: %s"):format(order, how), function()
                local first, second = procpool.new(2), procpool.new(2)
                local victim, other = first, second
                if order == "second" then victim, other = second, first end
                victim:apply(echo)
                local running = other:map_async(function(x) pools.nap(0.001) return x end,
                    { 1, 2, 3, 4, 5 }, 1)
                if how == "close" then
                    victim:close()
                    assert.is_true(victim:join(20))
                elseif how == "terminate" then
                    pools.finish(victim)
                elseif how == "keeper killed" then
                    pools.kill(pools.keeper(victim))
                    pools.eventually("a broken pool", function() return victim:state() == "broken" end)
                    fails("broken", victim.apply, victim, echo)
                    pools.finish(victim)
                elseif how == "workers killed" then
                    for _, pid in ipairs(pools.pids(victim)) do pools.kill(pid) end
                    assert.equal(1, victim:apply(echo, { 1 }))
                    pools.finish(victim)
                end
                victim, first, second = nil, order == "second" and first, order == "first" and second
                collectgarbage()
                collectgarbage()
                assert.equal(5, running:get(20)[5])
                assert.equal(9, other:apply(echo, { 9 }))
                other:close()
                assert.is_true(other:join(20))
                assert.is_nil(victim)
                assert.is_truthy(first or second)
            end)
        end
    end

    it("die with their parent, all of them", function()
        local log = pools.path()
        local status = pools.run(([[
            local pools = require("spec.support.pools")
            local procpool = require("procpool")
            local a, b, c = procpool.new(2), procpool.new(1), procpool.new(1)
            for _, pool in ipairs { a, b, c } do
                pool:apply_async(function() while true do end end)
                pools.note(%q, pools.keeper(pool))
                for _, pid in ipairs(pools.pids(pool)) do pools.note(%q, pid) end
            end
            require("posix.signal").raise(9)
        ]]):format(log, log))
        assert.equal(137, status)
        local pids = {}
        for i, pid in ipairs(pools.notes(log)) do pids[i] = math.tointeger(pid) end
        assert.is_true(#pids >= 6)
        pools.await_gone(pids)
    end)

    it("a hundred at a time: work, or are refused cleanly", function()
        local list, before = {}, pools.traces()
        for i = 1, 100 do
            local ok, pool = pcall(procpool.new, 1)
            if not ok then
                assert.is_string(pool)
                assert.is_truthy(pool:find("procpool.new: ", 1, true), pool)
                break
            end
            list[i] = pool
        end
        assert.is_true(#list >= 50, #list)
        for i, pool in ipairs(list) do assert.equal(i, pool:apply(echo, { i })) end
        for _, pool in ipairs(list) do pool:close() end
        for _, pool in ipairs(list) do assert.is_true(pool:join(20)) end
        assert.same(before.children, pools.traces().children)
    end)
end)

describe("pools one after the other", function()
    teardown(pools.cleanup)

    local endings = {
        closed = function()
            local pool <close> = procpool.new(1)
            assert(pool:apply(echo, { 1 }) == 1)
        end,
        terminated = function()
            local pool = procpool.new(1)
            pool:terminate()
        end,
        collected = function()
            procpool.new(1)
            collectgarbage()
        end,
    }
    for name, make in pairs(endings) do
        it(name .. ", leave no trace", function()
            for _ = 1, 5 do make() end
            collectgarbage()
            collectgarbage()
            -- Nobody waits for the keeper of a pool that was collected, until
            -- the next pool is made.
            local function quiet()
                if name == "collected" then make() end
                return pools.traces()
            end
            local before
            pools.eventually("a quiet start", function()
                before = quiet()
                return before.children <= 1
            end)
            local rounds = ROUNDS // 3
            for _ = 1, rounds do make() end
            collectgarbage()
            collectgarbage()
            local after
            local flat = pcall(pools.eventually, "flat", function()
                after = quiet()
                return after.descriptors <= before.descriptors
                    and after.maps <= before.maps + 8 and after.children <= 1
            end, 5)
            assert.is_true(flat, ("descriptors %d, %d; maps %d, %d; children %d, %d"):format(
                before.descriptors, after.descriptors, before.maps, after.maps,
                before.children, after.children))
        end)
    end

    it("inline, leave no trace and are quick", function()
        for _ = 1, 5000 do
            local pool <close> = procpool.new(0)
            assert(pool:apply(echo, { 1 }) == 1)
        end
    end)
end)
