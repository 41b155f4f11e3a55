-- Callbacks: what they get, when they run, what they may do, what happens when
-- they raise. And maxpending, which never makes them wait. The same for real
-- workers and for none.

local describe, it, assert = describe, it, assert
local before_each, after_each, teardown = before_each, after_each, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

-- Polls until `condition` holds.
local function poll_until(pool, what, condition)
    pools.eventually(what, function()
        pool:poll(0.01)
        return condition()
    end)
end

local function echo(...) return ... end

for _, processes in ipairs { 0, 2 } do
    describe(("a callback in a pool of %d"):format(processes), function()
        local pool
        before_each(function() pool = procpool.new(processes) end)
        after_each(function() pools.finish(pool) end)
        teardown(pools.cleanup)

        it("gets what get would return, once", function()
            local seen = {}
            local function note(...) seen[#seen + 1] = table.pack(...) end
            local result = pool:apply_async(echo, { 1, nil, 3, nil, n = 4 }, { callback = note })
            poll_until(pool, "a callback", function() return seen[1] end)
            assert.same({ 1, nil, 3, nil, n = 4 }, seen[1])
            assert.same(seen[1], table.pack(result:get()))
            pool:poll()
            assert.equal(1, #seen)
        end)

        it("gets nothing where there are no results", function()
            local n
            pool:apply_async(function() end, nil, { callback = function(...) n = select("#", ...) end })
            poll_until(pool, "a callback", function() return n end)
            assert.equal(0, n)
        end)

        it("gets a map's list, and the number of failures if asked to collect", function()
            local list, failures, n
            pool:map_async(echo, range(10), { callback = function(...)
                n = select("#", ...)
                list = ...
            end })
            poll_until(pool, "a callback", function() return list end)
            assert.equal(1, n)
            assert.equal(10, list.n)
            list = nil
            pool:starmap_async(error, { { "x", 0 }, { "y", 0 } }, {
                errors = "collect", callback = function(l, f) list, failures = l, f end,
                error_callback = function() error("never") end,
            })
            poll_until(pool, "a callback", function() return list end)
            assert.equal(2, failures)
            assert.equal("y", list[2].value)
            list = nil
            pool:map_async(echo, {}, { callback = function(l) list = l end })
            poll_until(pool, "a callback", function() return list end)
            assert.same({ n = 0 }, list)
        end)

        it("for errors gets the error, once", function()
            local errs = {}
            local function note(...)
                assert(select("#", ...) == 1)
                errs[#errs + 1] = ...
            end
            local function never() error("called") end
            local result = pool:apply_async(error, { { 7 } }, { callback = never, error_callback = note })
            poll_until(pool, "an error", function() return errs[1] end)
            assert.equal("error", errs[1].kind)
            assert.equal(7, errs[1].value[1])
            assert.equal(errs[1], fails("error", result.get, result))
            pool:map_async(function(x) error(x, 0) end, range(50),
                { callback = never, error_callback = note })
            poll_until(pool, "an error", function() return errs[2] end)
            pool:poll()
            assert.equal(2, #errs)
        end)

        it("without its kind of callback, nothing is called", function()
            pool:apply_async(error, { 1 }, { callback = function() error("called") end })
            pool:apply_async(echo, { 1 }, { error_callback = function() error("called") end })
            assert.equal(1, pool:apply(echo, { 1 }))
            pool:close()
            pool:join()
        end)

        it("may be a callable table", function()
            local seen
            local callable = setmetatable({}, { __call = function(_, x) seen = x end })
            pool:apply_async(echo, { 5 }, { callback = callable })
            poll_until(pool, "a callback", function() return seen end)
            assert.equal(5, seen)
        end)

        it("runs inside whichever call takes results in", function()
            local calls = {
                function() pool:poll(1) end,
                function() pool:apply(echo, { 1 }) end,
                function() pool:map(echo, range(3)) end,
                function() pool:imap(echo, range(3)):next() end,
                function() pool:apply_async(echo, { 1 }):get() end,
                function() pool:stats() end,
            }
            for _, call in ipairs(calls) do
                local seen
                local result = pool:apply_async(echo, { 1 }, { callback = function() seen = true end })
                pools.eventually("its result", function()
                    call()
                    return seen
                end)
                assert.is_true(result:ready())
            end
            local seen
            pool:apply_async(echo, { 1 }, { callback = function() seen = true end })
            pool:close()
            pool:join()
            assert.is_true(seen)
        end)

        it("that raises harms nothing: the error comes out, once", function()
            local called = 0
            local results = {}
            for i = 1, 20 do
                results[i] = pool:apply_async(echo, { i }, { callback = function()
                    called = called + 1
                    if i == 7 then error("seven", 0) end
                end })
            end
            local raised = {}
            pools.eventually("all callbacks", function()
                local ok, err = pcall(pool.poll, pool, 0.01)
                if not ok then raised[#raised + 1] = err end
                return called == 20
            end)
            assert.same({ "seven" }, raised)
            for i = 1, 20 do assert.equal(i, results[i]:get()) end
            assert.equal(1, pool:apply(echo, { 1 }))
        end)

        it("that raises any value raises that value", function()
            local problem = {}
            pool:apply_async(echo, { 1 }, { callback = function() error(problem) end })
            local raised
            pools.eventually("the error", function()
                local ok, err = pcall(pool.poll, pool, 0.01)
                raised = err
                return not ok
            end)
            assert.equal(problem, raised)
        end)

        it("may call every method of the pool", function()
            local got, done = {}, false
            pool:apply_async(echo, { 1 }, { callback = function()
                got.apply = pool:apply(echo, { "a" })
                got.async = pool:apply_async(echo, { "b" }):get(20)
                got.map = pool:map(echo, range(30), 4)[30]
                for _, v in pool:imap(echo, range(40)) do got.imap = v end
                got.poll = math.type(pool:poll())
                got.state = pool:state()
                got.stats = pool:stats().state
                done = true
            end })
            poll_until(pool, "the callback's end", function() return done end)
            assert.same({ apply = "a", async = "b", map = 30, imap = 40, poll = "integer",
                state = "running", stats = "running" }, got)
        end)

        it("may submit with callbacks, in turn", function()
            local order = {}
            local function chain(i)
                order[#order + 1] = i
                if i < 50 then pool:apply_async(echo, { i + 1 }, { callback = chain }) end
            end
            pool:apply_async(echo, { 1 }, { callback = chain })
            poll_until(pool, "the chain", function() return #order == 50 end)
            assert.same(range(50), order)
        end)

        it("may close and join", function()
            local joined
            local others = {}
            pool:apply_async(echo, { 1 }, { callback = function()
                pool:close()
                joined = pool:join(20)
            end })
            for i = 1, 10 do others[i] = pool:apply_async(echo, { i }) end
            poll_until(pool, "the end", function() return joined end)
            assert.equal("closed", pool:state())
            for i = 1, 10 do assert.equal(i, others[i]:get()) end
            fails("closed", pool.apply, pool, echo)
        end)

        it("may terminate", function()
            local called
            pool:apply_async(echo, { 1 }, { callback = function()
                called = true
                pool:terminate()
            end })
            poll_until(pool, "the end", function() return called end)
            assert.equal("terminated", pool:state())
            assert.is_true(pool:join(20))
            fails("terminated", pool.apply, pool, echo)
        end)

        it("may terminate inside a map, an apply, an imap", function()
            local calls = {
                function(p) p:map(function(x) pools.nap(0.001) return x end, range(200), 1) end,
                function(p) p:apply(pools.nap, { 30 }) end,
                function(p)
                    local iter = p:imap(pools.nap, { 0, 30, 30, 30 })
                    while iter:next() do p:poll() end
                end,
            }
            for _, call in ipairs(calls) do
                local other = procpool.new(processes)
                if processes > 0 then
                    other:apply_async(echo, { 1 }, { callback = function() other:terminate() end })
                    local err = fails("terminated", call, other)
                    assert.is_truthy(err)
                end
                pools.finish(other)
            end
        end)

        it("of a batch run in the order of completion within a worker", function()
            local one = procpool.new(math.min(processes, 1))
            local order = {}
            for i = 1, 100 do
                one:apply_async(echo, { i }, { callback = function(x) order[#order + 1] = x end })
            end
            one:close()
            one:join()
            assert.same(range(100), order)
        end)

        it("does not wait for maxpending", function()
            local narrow <close> = procpool.new(processes, { maxpending = 2 })
            local done = 0
            local function more() done = done + 1 end
            for _ = 1, 10 do
                narrow:apply_async(echo, { 1 }, { callback = function()
                    done = done + 1
                    for _ = 1, 10 do narrow:apply_async(echo, { 1 }, { callback = more }) end
                end })
            end
            poll_until(narrow, "all callbacks", function() return done == 110 end)
        end)

        it("raising inside apply leaves its own result lost, but the pool sound", function()
            local raised = false
            pool:apply_async(echo, { 1 }, { callback = function() error("callback", 0) end })
            for _ = 1, 200 do
                local ok, err = pcall(pool.apply, pool, echo, { 2 })
                if not ok then
                    assert.equal("callback", err)
                    raised = true
                    break
                end
            end
            assert.is_true(raised)
            assert.equal(3, pool:apply(echo, { 3 }))
        end)

        it("raising inside a map cancels it, and no more", function()
            pool:apply_async(echo, { 1 }, { callback = function() error("callback", 0) end })
            local ok, err
            for _ = 1, 200 do
                ok, err = pcall(pool.map, pool, echo, range(50), 1)
                if not ok then break end
            end
            assert.is_false(ok)
            assert.equal("callback", err)
            assert.equal(50, pool:map(echo, range(50), 1).n)
        end)

        it("raising in join comes out; join again ends", function()
            pool:apply_async(echo, { 1 }, { callback = function() error("callback", 0) end })
            pool:close()
            local ok, err = pcall(pool.join, pool, 20)
            assert.is_false(ok)
            assert.equal("callback", err)
            assert.is_true(pool:join(20))
        end)

        it("raising at the end of a block comes out of the block", function()
            local late
            local ok, err = pcall(function()
                local inner <close> = procpool.new(processes)
                inner:apply_async(echo, { 1 }, { callback = function() error("callback", 0) end })
                inner:apply_async(echo, { 2 }, { callback = function(x) late = x end })
            end)
            assert.is_false(ok)
            assert.equal("callback", err)
            assert.equal(2, late)
        end)
    end)
end

describe("callbacks with real workers", function()
    teardown(pools.cleanup)

    it("for errors get kinds lost, cancelled and terminated too", function()
        local pool = procpool.new(1, { grace = 0.05 })
        local kinds = {}
        local function note(err) kinds[#kinds + 1] = err.kind end
        local function submit(f, ...)
            return pool:apply_async(f, { ... }, { error_callback = note })
        end
        submit(function() pools.kill(require("procpool").worker.pid) end)
        poll_until(pool, "lost", function() return kinds[1] end)
        local gate, log = pools.gate(), pools.path()
        submit(pools.pass, gate, log)
        pools.await_notes(log, 1)
        submit(echo):cancel()
        poll_until(pool, "cancelled", function() return kinds[2] end)
        submit(echo)
        submit(echo)
        pool:terminate()
        assert.same({ "lost", "cancelled", "terminated", "terminated", "terminated" }, kinds)
        assert.is_true(pool:join(20))
    end)

    it("that never return under a timeout of join hold up no worker", function()
        local pool = procpool.new(2)
        local log = pools.path()
        pool:apply_async(echo, { 1 }, { callback = function()
            pools.await_notes(log, 10) -- tasks go on meanwhile
        end })
        for i = 1, 10 do pool:apply_async(pools.note, { log, i }) end
        pool:close()
        assert.is_true(pool:join(20))
    end)
end)

describe("maxpending", function()
    teardown(pools.cleanup)

    it("bounds what is unfinished, over all kinds of calls", function()
        local pool <close> = procpool.new(2, { maxpending = 5 })
        local most = 0
        local function watch()
            local unfinished = pool._handle:unfinished()
            most = math.max(most, unfinished)
        end
        for i = 1, 100 do
            pool:apply_async(echo, { i })
            watch()
        end
        pool:map_async(echo, function()
            watch()
        end)
        for _, chunksize in ipairs { 1, 3, 100 } do
            local i = 0
            local results = pool:map(echo, function()
                watch()
                i = i + 1
                return i <= 100 and i or nil
            end, chunksize)
            assert.equal(100, results.n)
            assert.equal(100, pool:map(echo, range(100), chunksize).n)
        end
        assert.is_true(most <= 5, most)
        assert.is_true(most >= 2)
    end)

    it("blocks apply_async until a task ends", function()
        local pool <close> = procpool.new(1, { maxpending = 3 })
        local log = pools.path()
        for i = 1, 12 do
            pool:apply_async(function(l, k) pools.nap(0.002) pools.note(l, k) end, { log, i })
            assert.is_true(#pools.notes(log) >= i - 3)
        end
    end)

    it("takes results in and runs callbacks while it waits", function()
        local pool <close> = procpool.new(1, { maxpending = 1 })
        local seen = 0
        for i = 1, 20 do
            pool:apply_async(echo, { i }, { callback = function() seen = seen + 1 end })
            assert.is_true(seen >= i - 1)
        end
    end)

    it("lets go when a callback terminates the pool", function()
        local pool = procpool.new(1, { maxpending = 2 })
        local gate = pools.gate()
        pool:apply_async(echo, { 1 }, { callback = function() pool:terminate() end })
        fails("terminated", function()
            for _ = 1, 10 do pool:apply_async(pools.pass, { gate }) end
        end)
        assert.is_true(pool:join(20))
    end)

    it("lets go when the pool breaks", function()
        local pool = procpool.new(1, { maxpending = 2 })
        local keeper = pools.keeper(pool)
        local gate, log = pools.gate(), pools.path()
        pool:apply_async(pools.pass, { gate, log })
        pool:apply_async(pools.pass, { gate, log })
        pools.await_notes(log, 1)
        pools.kill(keeper)
        fails("broken", pool.apply_async, pool, pools.pass, { gate })
        pools.finish(pool)
    end)

    it("survives workers that die while it waits", function()
        local pool <close> = procpool.new(2, { maxpending = 2 })
        local results = {}
        for i = 1, 20 do
            results[i] = pool:apply_async(function(k)
                if k % 3 == 0 then pools.kill(require("procpool").worker.pid) end
                return k
            end, { i })
        end
        for i = 1, 20 do
            if i % 3 == 0 then
                assert.equal(9, fails("lost", results[i].get, results[i], 20).signal)
            else
                assert.equal(i, results[i]:get(20))
            end
        end
    end)
end)
