-- AsyncResult: waiting, asking, cancelling, awaiting. The same for real
-- workers and for none, where nothing has to run at the same time.

local describe, it, assert = describe, it, assert
local before_each, after_each, teardown = before_each, after_each, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails, rejects = pools.fails, pools.rejects

for _, processes in ipairs { 0, 2 } do
    describe(("an AsyncResult of a pool of %d"):format(processes), function()
        local pool
        before_each(function() pool = procpool.new(processes) end)
        after_each(function() pools.finish(pool) end)
        teardown(pools.cleanup)

        it("gives the results as often as asked", function()
            local result = pool:apply_async(function(...) return ... end, { 1, nil, 3, n = 3 })
            for _, timeout in ipairs { false, 60, 1e9, 1e300, math.huge } do
                assert.same({ 1, nil, 3, n = 3 }, table.pack(result:get(timeout or nil)))
            end
            assert.same({ 1, nil, 3, n = 3 }, table.pack(result:get(0)))
            assert.is_true(result:ready())
            assert.is_true(result:wait(0))
            assert.is_true(result:wait())
            assert.is_true(result:successful())
            assert.equal("done", result:status())
            assert.is_false(result:cancel())
            assert.is_false(result:cancel())
            assert.equal("procpool.AsyncResult (done)", tostring(result))
        end)

        it("raises the same error as often as asked", function()
            local result = pool:apply_async(error, { { code = 3 } })
            local err = fails("error", result.get, result)
            assert.equal(err, fails("error", result.get, result, 0))
            assert.equal(3, err.value.code)
            assert.is_true(result:ready())
            assert.is_true(result:wait(0))
            assert.is_false(result:successful())
            assert.equal("failed", result:status())
            assert.is_false(result:cancel())
            assert.equal("procpool.AsyncResult (error)", tostring(result))
        end)

        it("gives no results where there are none", function()
            assert.equal(0, select("#", pool:apply_async(function() end):get()))
        end)

        it("of a map says how it went", function()
            local result = pool:map_async(function(x) return x end, { 1, 2, 3 })
            result:wait(60)
            assert.is_true(result:ready())
            assert.is_true(result:successful())
            assert.equal("done", result:status())
            local failed = pool:map_async(error, { 1, 2, 3 })
            failed:wait(60)
            assert.is_false(failed:successful())
            assert.equal("failed", failed:status())
            local collected = pool:map_async(error, { 1, 2, 3 }, { errors = "collect" })
            collected:wait(60)
            assert.is_true(collected:successful())
            assert.equal("done", collected:status())
        end)

        it("rejects negative and odd waits", function()
            local result = pool:apply_async(type, { 1 })
            for _, bad in ipairs { -1, -0.001, 0 / 0, "1", true, {} } do
                rejects("bad argument 'timeout' to 'get'", result.get, result, bad)
                rejects("bad argument 'timeout' to 'wait'", result.wait, result, bad)
            end
            assert.equal("number", result:get())
        end)

        it("is awaited by coroutines", function()
            local got = {}
            for i = 1, 5 do
                coroutine.wrap(function()
                    local value = procpool.await(pool:apply_async(function(x) return x end, { i }))
                    got[#got + 1] = value
                end)()
            end
            pools.eventually("five results", function() pool:poll(0.01) return #got == 5 end)
            table.sort(got)
            assert.same({ 1, 2, 3, 4, 5 }, got)
        end)

        it("raises in the coroutine that awaits it", function()
            local err
            coroutine.wrap(function()
                local ok
                ok, err = pcall(procpool.await, pool:apply_async(error, { "x", 0 }))
                assert(not ok)
            end)()
            pools.eventually("an error", function() pool:poll(0.01) return err end)
            assert.equal("x", err.value)
            assert.equal(4, procpool.await(pool:apply_async(function() return 4 end)))
        end)

        it("is awaited by a function of one's own", function()
            local result, calls = pool:apply_async(function() return "there" end), 0
            local function wait() calls = calls + 1; pool:poll(0.1) end
            assert.equal("there", procpool.await(result, wait))
            assert.is_true(calls < 200)
        end)

        it("keeps its pool alive", function()
            local function make()
                local other = procpool.new(processes)
                return other:apply_async(function() return "kept" end)
            end
            local result = make()
            collectgarbage()
            collectgarbage()
            assert.equal("kept", result:get(20))
        end)

        it("may be dropped unread", function()
            for _ = 1, 2000 do pool:apply_async(string.rep, { "x", 100 }) end
            collectgarbage()
            pool:map_async(string.rep, { "a", "b" })
            assert.equal(1, pool:apply(function() return 1 end))
            pool:close()
            assert.is_true(pool:join(60))
        end)

        it("cannot travel", function()
            local result = pool:apply_async(type, { 1 })
            local err = fails("unserializable", pool.apply, pool, print, { result })
            assert.is_truthy(err.message:find("args[1]", 1, true), err.message)
            local it_ = pool:imap(type, { 1 })
            fails("unserializable", pool.apply, pool, print, { it_ })
        end)
    end)
end

describe("an AsyncResult of real workers", function()
    local pool
    before_each(function() pool = procpool.new(2, { grace = 0.1 }) end)
    after_each(function() pools.finish(pool) end)
    teardown(pools.cleanup)

    -- Keeps both workers busy; returns the gate, and the results.
    local function fill()
        local gate, log = pools.gate(), pools.path()
        local results = {}
        for i = 1, 2 do
            results[i] = pool:apply_async(function(g, l)
                pools.pass(g, l)
                return "passed"
            end, { gate, log })
        end
        pools.await_notes(log, 2)
        return gate, results
    end

    it("is ready once it is done, at the first look", function()
        for _ = 1, 20 do
            local result = pool:apply_async(type, { 1 })
            pools.eventually("its end", function()
                local stats = pool._handle:stats()
                return stats.idle == 2 and stats.queued == 0
            end)
            assert.is_true(result:ready())
        end
    end)

    it("is queued, running, done", function()
        local gate, busy = fill()
        local result = pool:apply_async(type, { 1 })
        assert.equal("queued", result:status())
        assert.equal("running", busy[1]:status())
        assert.is_false(result:ready())
        assert.is_false(result:wait(0))
        assert.is_false(result:wait(0.01))
        rejects("not ready", result.successful, result)
        assert.equal("procpool.AsyncResult (pending)", tostring(result))
        pools.open(gate)
        assert.is_true(result:wait(20))
        assert.equal("done", result:status())
        assert.equal("passed", busy[1]:get(20))
        assert.equal("done", busy[1]:status())
    end)

    it("of a map is queued, running, done", function()
        local gate = fill()
        local map = pool:map_async(type, { 1, 2, 3 }, 2)
        assert.equal("queued", map:status())
        assert.is_false(map:ready())
        rejects("not ready", map.successful, map)
        pools.open(gate)
        assert.is_true(map:wait(20))
        local gate2, log = pools.gate(), pools.path()
        map = pool:map_async(function(g) pools.pass(g, log) end, { gate2, gate2 }, 1)
        pools.await_notes(log, 1)
        assert.equal("running", map:status())
        pools.open(gate2)
        map:get()
        assert.equal("done", map:status())
    end)

    it("get of 0 and of little raises timeout, and the task goes on", function()
        local gate, busy = fill()
        local err = fails("timeout", busy[1].get, busy[1], 0)
        assert.is_truthy(err.message:find("no result within 0 s", 1, true), err.message)
        local start = pools.now()
        fails("timeout", busy[1].get, busy[1], 0.05)
        assert.is_true(pools.now() - start >= 0.05)
        pools.open(gate)
        assert.equal("passed", busy[1]:get(20))
        assert.equal("passed", busy[1]:get(0))
    end)

    it("cancelled while queued never starts", function()
        local gate = fill()
        local log = pools.path()
        local result = pool:apply_async(pools.note, { log, "started" })
        local map = pool:map_async(function(x) pools.note(log, x) end, { 1, 2, 3, 4 }, 3)
        assert.is_true(result:cancel())
        assert.is_true(map:cancel())
        pools.open(gate)
        fails("cancelled", result.get, result, 20)
        fails("cancelled", map.get, map, 20)
        assert.equal("cancelled", result:status())
        assert.equal("cancelled", map:status())
        assert.is_false(result:successful())
        assert.is_false(result:cancel())
        pool:close()
        pool:join()
        assert.same({}, pools.notes(log))
        assert.equal(5, pool:stats().cancelled)
    end)

    it("cancelled twice before it is known is cancelled", function()
        local gate = fill()
        local result = pool:apply_async(type, { 1 })
        assert.is_true(result:cancel())
        result:cancel()
        pools.open(gate)
        fails("cancelled", result.get, result, 20)
        assert.is_false(result:cancel())
    end)

    it("of a map cancelled half-way keeps what was done, with errors = collect", function()
        local gate, log = pools.gate(), pools.path()
        local items = {}
        for i = 1, 100 do items[i] = i end
        local map = pool:map_async(function(x)
            if x == 10 then
                pools.pass(gate, log)
            end
            return -x
        end, items, { errors = "collect", chunksize = 100 })
        pools.await_notes(log, 1)
        assert.is_true(map:cancel())
        pools.open(gate)
        local list, failures = map:get(20)
        for i = 1, 9 do assert.equal(-i, list[i]) end
        assert.is_true(failures >= 90)
        assert.equal("cancelled", list[100].kind)
        assert.equal("cancelled", map:status())
    end)

    it("cancel, race with the task's end, has one outcome", function()
        local callbacks = 0
        local outcomes = { done = 0, cancelled = 0 }
        for _ = 1, 300 do
            local result = pool:apply_async(function() return 1 end, nil, {
                callback = function() callbacks = callbacks + 1 end,
                error_callback = function() callbacks = callbacks + 1 end,
            })
            local cancelled = result:cancel()
            result:wait(20)
            local status = result:status()
            outcomes[status] = outcomes[status] + 1
            if not cancelled then assert.equal("done", status) end
        end
        assert.equal(300, outcomes.done + outcomes.cancelled)
        assert.equal(300, callbacks)
        assert.equal(7, pool:apply(function() return 7 end))
    end)

    it("is awaited one coroutine at a time", function()
        local gate, busy = fill()
        coroutine.wrap(function() procpool.await(busy[1]) end)()
        coroutine.wrap(function()
            rejects("another coroutine awaits this result", procpool.await, busy[1])
        end)()
        pools.open(gate)
        assert.equal("passed", busy[1]:get(20))
    end)

    it("dropped unread, by the thousand, leaves no memory behind", function()
        local function drop(n)
            for _ = 1, n do
                pool:apply_async(string.rep, { "x", 1000 })
            end
            pools.eventually("all done", function()
                pool:poll()
                local stats = pool:stats()
                return stats.queued + stats.running == 0 and stats
            end)
            collectgarbage()
            collectgarbage()
            return collectgarbage("count"), pool:stats().bytes.shared
        end
        local n = os.getenv("PROCPOOL_LONG") and 200000 or 4000
        drop(n)
        local lua, shared = drop(n)
        for _ = 1, 3 do
            local lua_now, shared_now = drop(n)
            assert.is_true(lua_now < lua + 200, ("%.0f KiB, %.0f before"):format(lua_now, lua))
            assert.is_true(shared_now <= shared, ("%d bytes, %d before"):format(shared_now, shared))
        end
    end)

    it("belongs to the process of its pool", function()
        local gate, busy = fill()
        local unistd, wait = require("posix.unistd"), require("posix.sys.wait")
        local pid = unistd.fork()
        if pid == 0 then
            local good = 0
            for _, method in ipairs { "get", "wait", "ready", "successful", "cancel", "status" } do
                local ok, err = pcall(busy[1][method], busy[1])
                if not ok and tostring(err):find("belongs to process", 1, true) then good = good + 1 end
            end
            unistd._exit(good)
        end
        local _, _, good = wait.wait(pid)
        pools.open(gate)
        assert.equal(6, good)
        assert.equal("passed", busy[2]:get(20))
    end)
end)
