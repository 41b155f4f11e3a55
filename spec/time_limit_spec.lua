-- timeout and grace: the error inside the task, the kill of its whole group,
-- and nobody else harmed.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

local function echo(...) return ... end
local function spin() while true do end end

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

local function generation() return require("procpool").worker.generation end

for _, processes in ipairs { 0, 2 } do
    describe(("a time limit in a pool of %d"):format(processes), function()
        teardown(pools.cleanup)

        it("fails the task with kind timelimit, not before its time", function()
            local pool <close> = procpool.new(processes)
            local start = pools.now()
            local err = fails("timelimit", pool.apply, pool, spin, nil, { timeout = 0.1 })
            assert.is_true(pools.now() - start >= 0.1)
            assert.is_truthy(err.message:find("0.1 s", 1, true), err.message)
            assert.is_truthy(err.traceback:find("time_limit_spec.lua", 1, true), err.traceback)
            assert.equal(1, pool:stats().timelimit)
        end)

        it("of the pool holds for every task; a call's or item's own goes first", function()
            local pool <close> = procpool.new(processes, { timeout = 0.05 })
            fails("timelimit", pool.apply, pool, spin)
            assert.equal(1, pool:apply(echo, { 1 }))
            local function slow(x)
                pools.burn(0.15)
                return x
            end
            assert.equal(2, pool:apply(slow, { 2 }, { timeout = 20 }))
            assert.equal(3, pool:apply_async(slow, { 3 }, { timeout = 20 }):get())
            assert.same({ 4, n = 1 }, pool:map(slow, { 4 }, { timeout = 20 }))
            assert.equal(5, select(2, pool:imap(slow, { 5 }, { timeout = 20 }):next()))
        end)

        it("counts from each task's start, not its chunk's", function()
            local pool <close> = procpool.new(processes)
            local list, failures = pool:map(function(x)
                pools.burn(0.06)
                return x
            end, range(10), { timeout = 5, chunksize = 10, errors = "collect" })
            assert.equal(0, failures)
            assert.equal(10, list.n)
        end)

        it("on one item of a chunk fails that item alone", function()
            local pool <close> = procpool.new(processes)
            for _, chunksize in ipairs { 1, 3, 10 } do
                local list, failures = pool:map(function(x)
                    if x == 4 then spin() end
                    return -x
                end, range(10), { timeout = 0.05, chunksize = chunksize, errors = "collect" })
                assert.equal(1, failures)
                assert.equal("timelimit", list[4].kind)
                assert.equal(4, list[4].index)
                for i = 1, 10 do
                    if i ~= 4 then assert.equal(-i, list[i]) end
                end
            end
        end)

        it("is an error that the task may catch, and answer", function()
            local pool <close> = procpool.new(processes)
            local list = { pool:apply(function()
                local ok, err = pcall(function() while true do end end)
                local iserror = require("procpool").iserror(err)
                return ok, err.kind, iserror, "cleaned up"
            end, nil, { timeout = 0.05, grace = 20 }) }
            assert.same({ false, "timelimit", true, "cleaned up" }, list)
            assert.equal(1, pool:apply(generation))
            assert.equal(0, pool:stats().timelimit)
        end)

        it("runs the task's to-be-closed variables", function()
            local log = pools.path()
            local pool <close> = procpool.new(processes)
            fails("timelimit", pool.apply, pool, function()
                local held <close> = setmetatable({}, { __close = function() pools.note(log, "closed") end })
                assert(held)
                while true do end
            end, nil, { timeout = 0.05, grace = 20 })
            assert.same({ "closed" }, pools.notes(log))
        end)

        it("keeps what the task raises instead", function()
            local pool <close> = procpool.new(processes)
            local err = fails("error", pool.apply, pool, function()
                pcall(function() while true do end end)
                error("something else", 0)
            end, nil, { timeout = 0.05, grace = 20 })
            assert.equal("something else", err.value)
        end)

        it("leaves its worker in peace when the task obeys", function()
            local pool <close> = procpool.new(math.min(processes, 1), { grace = 20 })
            for _ = 1, 5 do
                fails("timelimit", pool.apply, pool, spin, nil, { timeout = 0.02 })
                assert.equal(1, pool:apply(generation))
            end
        end)

        it("does not strike a task that is in time", function()
            local pool <close> = procpool.new(processes, { timeout = 20 })
            for i = 1, 200 do assert.equal(i, pool:apply(echo, { i })) end
            assert.equal(200, pool:map(echo, range(200), 7).n)
        end)

        it("takes any number, huge ones for never", function()
            local pool <close> = procpool.new(processes)
            for _, timeout in ipairs { 20, 20.5, 1e18, math.huge, 1 << 62 } do
                assert.equal(1, pool:apply(echo, { 1 }, { timeout = timeout }))
            end
        end)
    end)
end

describe("a time limit in real workers", function()
    teardown(pools.cleanup)

    it("reaches loops in coroutines, however they are run", function()
        local pool <close> = procpool.new(1, { timeout = 0.05, grace = 20 })
        local tasks = {
            wrap = function() coroutine.wrap(function() while true do end end)() end,
            create = function()
                local co = coroutine.create(function() while true do end end)
                local _, err = coroutine.resume(co)
                error(err, 0)
            end,
            nested = function()
                coroutine.wrap(function()
                    coroutine.wrap(function()
                        local co = coroutine.create(function() while true do end end)
                        local ok, err = coroutine.resume(co)
                        error(ok and "no error" or err, 0)
                    end)()
                end)()
            end,
            switching = function()
                local co = coroutine.wrap(function() while true do coroutine.yield() end end)
                while true do co() end
            end,
            sort = function()
                local t = {}
                for i = 1, 100 do t[i] = i end
                while true do table.sort(t, function(a, b) return a < b end) end
            end,
            gsub = function()
                while true do (("x"):rep(100)):gsub("x", function() end) end
            end,
            metamethod = function()
                local t = setmetatable({}, { __index = function(_, k) while true do k = k end end })
                return t.x
            end,
        }
        for name, task in pairs(tasks) do
            local err = fails("timelimit", pool.apply, pool, task)
            assert.is_truthy(err.message:find("0.05 s", 1, true), name .. ": " .. err.message)
        end
        assert.equal(1, pool:apply(generation))
    end)

    it("reaches a coroutine that was made before, by another task", function()
        local pool <close> = procpool.new(1, { grace = 20 })
        pool:apply(function()
            require("procpool").worker.state.co = coroutine.create(function() while true do end end)
        end)
        fails("timelimit", pool.apply, pool, function()
            local ok, err = coroutine.resume(require("procpool").worker.state.co)
            error(ok or err, 0)
        end, nil, { timeout = 0.05 })
        assert.equal(1, pool:apply(generation))
    end)

    it("caught in a coroutine, is caught for good", function()
        local pool <close> = procpool.new(1, { grace = 20 })
        assert.equal("timelimit", pool:apply(function()
            local co = coroutine.create(function()
                local _, err = pcall(function() while true do end end)
                return err.kind
            end)
            local _, kind = coroutine.resume(co)
            return kind
        end, nil, { timeout = 0.05 }))
    end)

    it("strikes once: who goes on is killed after grace", function()
        local pool <close> = procpool.new(1)
        local log = pools.path()
        local start = pools.now()
        local err = fails("timelimit", pool.apply, pool, function()
            while true do
                local ok, e = pcall(function() while true do end end)
                pools.note(log, ok and "ok" or e.kind)
            end
        end, nil, { timeout = 0.05, grace = 0.5 })
        assert.is_true(pools.now() - start >= 0.55)
        assert.same({ "timelimit" }, pools.notes(log))
        assert.is_truthy(err.message:find("killed", 1, true), err.message)
        assert.equal(2, pool:apply(generation))
        local stats = pool:stats()
        assert.equal(1, stats.recycled.timelimit)
        assert.equal(1, stats.timelimit)
        assert.equal(0, stats.lost)
        assert.equal(0, stats.recycled.crash)
    end)

    it("kills where no Lua code runs: a pathological pattern, a sleep", function()
        local pool <close> = procpool.new(1, { timeout = 0.05, grace = 0.05 })
        for i, task in ipairs {
            function() return ("a"):rep(40):find(("a*"):rep(12) .. "b") end,
            function() return os.execute("sleep 1000") end,
        } do
            fails("timelimit", pool.apply, pool, task)
            assert.is_true(pool:apply(generation) > i or i > 1)
        end
    end)

    it("kills the process group: nothing the task started is left", function()
        local pool <close> = procpool.new(1, { timeout = 0.1, grace = 0.05 })
        local log = pools.path()
        fails("timelimit", pool.apply, pool, function()
            os.execute(("sleep 1000 & echo $! >>%s; sleep 1000 & echo $! >>%s; wait"):format(log, log))
        end)
        local pids = {}
        for i, pid in ipairs(pools.notes(log)) do pids[i] = math.tointeger(pid) end
        assert.equal(2, #pids)
        pools.await_gone(pids)
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    it("kills at once with grace = 0", function()
        local pool <close> = procpool.new(1, { grace = 0 })
        fails("timelimit", pool.apply, pool, function()
            pcall(function() while true do end end)
            while true do end
        end, nil, { timeout = 0.03 })
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    it("kill inside a chunk: the items before and after are kept", function()
        local pool <close> = procpool.new(1, { grace = 0.02 })
        local log = pools.path()
        local list, failures = pool:map(function(x)
            pools.note(log, x)
            if x % 4 == 0 then
                pcall(function() while true do end end)
                while true do end
            end
            return -x
        end, range(10), { timeout = 0.05, chunksize = 10, errors = "collect" })
        assert.equal(2, failures)
        for i = 1, 10 do
            if i % 4 == 0 then
                assert.equal("timelimit", list[i].kind)
                assert.equal(i, list[i].index)
            else
                assert.equal(-i, list[i])
            end
        end
        -- each ran once, in order
        local lines = pools.notes(log)
        assert.equal(10, #lines)
        for i, line in ipairs(lines) do assert.equal(tostring(i), line) end
    end)

    it("strikes while the parent makes no call", function()
        local pool <close> = procpool.new(1, { timeout = 0.05, grace = 0.02 })
        local log = pools.path()
        pool:apply_async(function()
            pcall(function() while true do end end)
            while true do end
        end)
        pool:apply_async(pools.note, { log, "next" })
        pools.await_notes(log, 1)
    end)

    it("does not count the time in the queue", function()
        local pool <close> = procpool.new(1)
        local gate, log = pools.gate(), pools.path()
        pool:apply_async(pools.pass, { gate, log })
        local result = pool:apply_async(echo, { 1 }, { timeout = 0.05 })
        pools.await_notes(log, 1)
        pools.nap(0.15)
        pools.open(gate)
        assert.equal(1, result:get(20))
    end)

    it("is never retried", function()
        local pool <close> = procpool.new(1, { retries = 3, grace = 0.02 })
        local log = pools.path()
        fails("timelimit", pool.apply, pool, function()
            pools.note(log, "run")
            pcall(function() while true do end end)
            while true do end
        end, nil, { timeout = 0.05 })
        assert.equal(1, #pools.notes(log))
        assert.equal(0, pool:stats().retried)
    end)

    it("reaches a stopped worker by its kill", function()
        local pool <close> = procpool.new(1, { timeout = 0.1, grace = 0.05 })
        fails("timelimit", pool.apply, pool, function()
            pools.kill(require("procpool").worker.pid, "STOP")
        end)
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    it("comes through in maps that raise", function()
        local pool <close> = procpool.new(2, { timeout = 0.05 })
        local err = fails("timelimit", pool.map, pool, function(x)
            if x == 3 then spin() end
            return x
        end, range(6), 2)
        assert.equal(3, err.index)
    end)

    it("with hooks of the task's own", function()
        local pool <close> = procpool.new(1, { timeout = 0.05, grace = 0.05 })
        local counted = pool:apply(function()
            local n = 0
            debug.sethook(function() n = n + 1 end, "", 100)
            for _ = 1, 10000 do n = n + 0 end
            debug.sethook()
            return n
        end)
        assert.is_true(counted > 0)
        fails("timelimit", pool.apply, pool, function()
            debug.sethook(function() end, "", 100)
            while true do end
        end)
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    -- A task that ends at the very moment of its limit has one outcome, and
    -- the next task on that worker is never hit.
    it("and the task's end at the same instant: one outcome, no innocent victim", function()
        local rounds = os.getenv("PROCPOOL_LONG") and 10000 or 300
        local pool <close> = procpool.new(2, { grace = 0 })
        local ended, struck = 0, 0
        local limit = 0.004
        for i = 1, rounds do
            local long = limit + (i % 9 - 4) * 0.0005
            local first = pool:apply_async(function(seconds)
                pools.nap(seconds)
                return "ended"
            end, { long }, { timeout = limit })
            local other = pool:map_async(function(x) return x end, { 1, 2, 3 }, 3)
            local next_one = pool:apply_async(echo, { i })
            local ok, value = pcall(first.get, first, 30)
            if ok then
                assert(value == "ended")
                ended = ended + 1
            else
                assert(value.kind == "timelimit", value)
                struck = struck + 1
            end
            assert(next_one:get(30) == i)
            assert(other:get(30)[3] == 3)
            if ok then assert(first:get(0) == "ended") else fails("timelimit", first.get, first, 0) end
        end
        assert.equal(rounds, ended + struck)
        local stats = pool:stats()
        assert.equal(struck, stats.timelimit)
        assert.equal(0, stats.lost)
        assert.equal(0, stats.recycled.crash)
        assert.is_true(struck > 0)
    end)
end)
