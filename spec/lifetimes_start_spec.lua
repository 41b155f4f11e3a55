-- How a life begins and ends: initializer, initargs, inittimeout, finalizer,
-- and all the ways in which they fail.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

local function echo(...) return ... end

-- Worker: the life's place in the pool.
local function life()
    local w = require("procpool").worker
    return w.id .. "/" .. w.generation
end

for _, processes in ipairs { 0, 2 } do
    describe(("the initializer in a pool of %d"):format(processes), function()
        teardown(pools.cleanup)

        it("runs once in each life, before its first task, with its arguments", function()
            local log = pools.path()
            local pool <close> = procpool.new(processes, {
                maxtasksperchild = 2,
                initializer = function(l, a, b, ...)
                    local w = require("procpool").worker
                    w.state.ready = a + b
                    assert(select("#", ...) == 2)
                    pools.note(l, "init " .. life())
                end,
                initargs = { log, 1, 2, nil, nil, n = 5 },
            })
            local list = pool:map(function()
                pools.note(log, "task " .. life())
                return require("procpool").worker.state.ready
            end, { 1, 2, 3, 4, 5, 6, 7, 8 }, 1)
            for i = 1, 8 do assert.equal(3, list[i]) end
            local begun = {}
            for _, line in ipairs(pools.notes(log)) do
                local what, who = line:match("(%a+) (.*)")
                if what == "init" then
                    assert.is_nil(begun[who], line)
                    begun[who] = true
                else
                    assert.is_true(begun[who], line)
                end
            end
        end)

        it("is not copied: upvalues, arguments and shared are inherited", function()
            local pool <close> = procpool.new(processes, {
                initializer = function(file)
                    require("procpool").worker.state.same = file == require("procpool").worker.shared
                end,
                initargs = { io.stdout }, shared = io.stdout,
            })
            assert.is_true(pool:apply(function() return require("procpool").worker.state.same end))
        end)

        it("may set globals, load modules, use the worker", function()
            local pool <close> = procpool.new(processes, { initializer = function()
                pools_start_spec = procpool.worker.id -- luacheck: ignore 111
            end })
            assert.is_true(pool:apply(function() return pools_start_spec end) >= 1) -- luacheck: ignore 113
            _G.pools_start_spec = nil
        end)

        for name, case in pairs {
            string = { function() error("no database") end, "no database" },
            table = { function() error({ code = 5 }) end, "(error object is a table value)" },
            ["nil"] = { function() error(nil) end, "nil" },
            text = { function() error(setmetatable({}, { __tostring = function() return "readable" end })) end,
                "readable" },
            call = { function() local x = nil; x() end, "attempt to call a nil value" },
        } do
            it("that always raises a " .. name .. " breaks the pool with that error", function()
                local gate = processes > 0 and pools.gate()
                local pool = procpool.new(processes, {
                    initializer = function(raise, wait)
                        if wait then pools.pass(wait) end
                        raise()
                    end,
                    initargs = { case[1], gate },
                })
                local pending, map = pool:apply_async(echo, { 1 }), nil
                if gate then
                    map = pool:map_async(echo, { 1, 2, 3 })
                    pools.open(gate)
                end
                local err = fails("initializer", pending.get, pending, 30)
                assert.is_truthy(err.message:find(case[2], 1, true), err.message)
                assert.is_truthy(tostring(err):find(case[2], 1, true))
                if name == "table" then assert.equal(5, err.value.code) end
                if name == "string" then
                    assert.is_truthy(err.value:find("no database", 1, true))
                    assert.is_truthy(err.traceback:find("lifetimes_start_spec.lua", 1, true), err.traceback)
                end
                assert.equal("broken", pool:state())
                if map then fails("initializer", map.get, map, 0) end
                for _, method in ipairs { "apply", "apply_async", "map", "map_async", "starmap",
                    "imap", "imap_unordered" } do
                    err = fails("initializer", pool[method], pool, echo, {})
                    assert.is_truthy(err.message:find(case[2], 1, true))
                end
                pool:close()
                assert.equal("broken", pool:state())
                assert.is_true(pool:join(20))
                assert.is_truthy(tostring(pool):find("broken", 1, true))
            end)
        end

        it("that is broken raises from every call that waits", function()
            for _, wait in ipairs {
                function(p) p:apply(echo) end,
                function(p) p:map(echo, { 1, 2, 3 }) end,
                function(p) p:apply_async(echo):get() end,
                function(p) for _ in p:imap(echo, { 1, 2 }) do error("a result") end end,
            } do
                local pool = procpool.new(processes, { initializer = function() error("x", 0) end })
                assert.equal("x", fails("initializer", wait, pool).value)
                pools.finish(pool)
            end
        end)

        it("that calls os.exit has failed, naming it", function()
            local pool = procpool.new(processes, { initializer = function() os.exit(3) end })
            local err = fails("initializer", pool.apply, pool, echo)
            assert.is_truthy(err.message:find("exit", 1, true), err.message)
            assert.is_truthy(err.message:find("3", 1, true), err.message)
            pools.finish(pool)
        end)

        it("that takes too long has failed", function()
            local pool = procpool.new(processes, {
                inittimeout = 0.1, initializer = function() while true do end end,
            })
            local start = pools.now()
            fails("initializer", pool.apply, pool, echo)
            assert.is_true(pools.now() - start >= 0.1)
            pools.finish(pool)
        end)

        it("in time is no failure", function()
            local pool <close> = procpool.new(processes, {
                inittimeout = 20, initializer = function() pools.nap(0.02) end,
            })
            assert.equal(1, pool:apply(echo, { 1 }))
        end)

        it("may print and make a pool", function()
            local pool <close> = procpool.new(processes, { initializer = function()
                local inner <close> = require("procpool").new(1)
                require("procpool").worker.state.inner = inner:apply(function(x) return x * 2 end, { 21 })
            end })
            assert.equal(42, pool:apply(function() return require("procpool").worker.state.inner end))
        end)
    end)
end

describe("the initializer in real workers", function()
    teardown(pools.cleanup)

    -- Raises in those of its runs, numbered over all lives, for which `bad`
    -- says so; not before `go`: a first start that fails breaks the pool.
    local function flaky(log, bad)
        return function()
            local pid = tostring(require("procpool").worker.pid)
            pools.note(log, pid)
            for n, line in ipairs(pools.notes(log)) do
                if line == pid and bad(n) then
                    pools.await_notes(log .. ".go", 1)
                    error("start " .. n, 0)
                end
            end
        end
    end

    -- Once a worker has been ready.
    local function go(log)
        pools.note(log .. ".go", "go")
    end

    it("is not waited for by new", function()
        local gate = pools.gate()
        local start = pools.now()
        local pool <close> = procpool.new(2, { initializer = pools.pass, initargs = { gate } })
        assert.is_true(pools.now() - start < 10)
        local result = pool:apply_async(echo, { 1 })
        fails("timeout", result.get, result, 0.02)
        assert.equal("queued", result:status())
        pools.open(gate)
        assert.equal(1, result:get(20))
    end)

    it("that never returns: waits end, close and join time out, terminate works", function()
        local pool = procpool.new(2, { initializer = function() while true do end end })
        local result = pool:apply_async(echo)
        fails("timeout", result.get, result, 0.02)
        pool:close()
        assert.same({ nil, "timeout" }, { pool:join(0.05) })
        pool:terminate()
        assert.is_true(pool:join(20))
        fails("terminated", result.get, result, 0)
    end)

    it("that hangs in one worker leaves the others to serve", function()
        local log, gate = pools.path(), pools.gate()
        local pool <close> = procpool.new(2, { initializer = function()
            if require("procpool").worker.id == 1 then pools.pass(gate, log) end
        end })
        for i = 1, 10 do assert.equal(i, pool:apply(echo, { i })) end
        pools.await_notes(log, 1)
        pools.open(gate)
    end)

    it("that kills its worker has failed, naming the signal", function()
        local pool = procpool.new(2, { initializer = function()
            pools.kill(require("procpool").worker.pid)
        end })
        local err = fails("initializer", pool.apply, pool, echo)
        assert.is_truthy(err.message:find("signal 9", 1, true), err.message)
        assert.equal("broken", pool:state())
        pools.finish(pool)
    end)

    it("that always fails starts no more than a worker each", function()
        local log = pools.path()
        go(log)
        local pool = procpool.new(3, { initializer = flaky(log, function() return true end) })
        fails("initializer", pool.apply, pool, echo)
        assert.is_true(pool:state() == "broken")
        pools.finish(pool)
        assert.is_true(#pools.notes(log) <= 3)
    end)

    it("that fails once in one of several is tried again", function()
        local log = pools.path()
        local events = {}
        -- the second start of all is late, so that one was ready before
        local pool <close> = procpool.new(2, {
            initializer = function()
                local w = require("procpool").worker
                if w.id == 2 and #pools.notes(log) == 0 then
                    pools.eventually("a first worker", function() return #pools.notes(log .. ".ready") > 0 end)
                    pools.note(log, "failed")
                    error("once", 0)
                end
            end,
            onevent = function(e) events[#events + 1] = e end,
        })
        assert.equal(1, pool:apply(echo, { 1 }))
        pools.note(log .. ".ready", 1)
        pools.settled(pool, 2)
        pool:poll()
        local failed = 0
        for _, e in ipairs(events) do
            if e.kind == "worker_failed" then
                failed = failed + 1
                assert.equal("once", e.error)
                assert.equal(2, e.worker)
            end
        end
        assert.equal(1, failed)
        assert.equal("running", pool:state())
    end)

    it("that fails sometimes only slows its pool down", function()
        local log = pools.path()
        local pool <close> = procpool.new(2, {
            maxtasksperchild = 1,
            -- never five in a row
            initializer = flaky(log, function(n) return n > 2 and n % 3 == 0 end),
        })
        for i = 1, 20 do
            assert.equal(i, pool:apply(echo, { i }))
            if i == 1 then go(log) end
        end
        assert.equal("running", pool:state())
    end)

    it("that comes to fail for ever breaks the pool, after five in a row with pauses", function()
        local log = pools.path()
        local failures, starts = {}, {}
        local pool = procpool.new(1, {
            maxtasksperchild = 1,
            initializer = flaky(log, function(n) return n > 3 end),
            onevent = function(e)
                local list = e.kind == "worker_failed" and failures
                    or e.kind == "worker_start" and starts or {}
                list[#list + 1] = e.time
            end,
        })
        local done = 0
        local err = fails("initializer", function()
            while true do
                assert(pool:apply(echo, { 1 }) == 1)
                done = done + 1
                if done == 1 then go(log) end
            end
        end)
        assert.equal(3, done)
        assert.is_truthy(err.message:find("start ", 1, true))
        assert.equal("broken", pool:state())
        pool:poll()
        assert.equal(5, #failures)
        for i = 1, 4 do
            -- 10 ms, doubling
            for _, start in ipairs(starts) do
                local pause = start - failures[i]
                assert.is_true(pause <= 0 or pause >= 0.01 * 2 ^ (i - 1) * 0.95,
                    ("pause %d: %g"):format(i, pause))
            end
        end
        pools.finish(pool)
        -- Three good ones and five bad; the worker's successor, started with
        -- it, may be one more that had begun when the fifth failed.
        local begun = #pools.notes(log)
        assert.is_true(begun == 8 or begun == 9, begun .. " initializers")
    end)

    it("that fails while another worker is ready never breaks the pool", function()
        local log = pools.path()
        local pool <close> = procpool.new(2, { initializer = function()
            if require("procpool").worker.id == 2 then
                pools.eventually("a first worker", function() return #pools.notes(log .. ".ready") > 0 end)
                pools.note(log, "failed")
                error("always", 0)
            end
        end })
        assert.equal(1, pool:apply(echo, { 1 }))
        pools.note(log .. ".ready", 1)
        pools.await_notes(log, 7)
        assert.equal("running", pool:state())
        for i = 1, 20 do assert.equal(i, pool:apply(echo, { i })) end
    end)

    it("that failed does not spoil what had been done", function()
        local log = pools.path()
        local pool = procpool.new(1, {
            maxtasksperchild = 2,
            initializer = function()
                local w = require("procpool").worker
                if w.generation > 1 then
                    pools.await_notes(log .. ".go", 1)
                    error("a later start", 0)
                end
                pools.note(log, w.pid)
            end,
        })
        local results = {}
        for i = 1, 4 do results[i] = pool:apply_async(echo, { i }) end
        pools.await_gone { math.tointeger(pools.await_notes(log, 1)[1]) }
        go(log)
        fails("initializer", results[4].get, results[4], 30)
        assert.equal(1, results[1]:get(0))
        assert.equal(2, results[2]:get(0))
        fails("initializer", results[3].get, results[3], 0)
        pools.finish(pool)
    end)

    it("fails at close without a hang", function()
        for _ = 1, 5 do
            local log = pools.path()
            local pool = procpool.new(2, {
                maxtasksperchild = 1, initializer = flaky(log, function(n) return n > 2 and n % 2 == 0 end),
            })
            for i = 1, 6 do pool:apply_async(echo, { i }) end
            pool:close()
            go(log)
            assert.is_true(pool:join(30))
        end
    end)

    it("has failed: whatever asks first is told so, not what came of it", function()
        for _, ask in ipairs {
            function(p) p:apply(echo) end,
            function(p) p:apply_async(echo):get() end,
            function(p) p:map(echo, { 1, 2, 3 }) end,
            function(p) p:map_async(echo, { 1, 2, 3 }) end,
            function(p) for _ in p:imap(echo, { 1, 2 }) do error("a result") end end,
        } do
            local log, gate = pools.path(), pools.gate()
            local pool = procpool.new(2, { initializer = function()
                pools.note(log, require("posix.unistd").getppid())
                pools.pass(gate)
                error("x", 0)
            end })
            local keeper = math.tointeger(pools.await_notes(log, 1)[1])
            pools.open(gate)
            pools.await_gone { keeper }
            assert.equal("x", fails("initializer", ask, pool).value)
            assert.equal("broken", pool:state())
            pools.finish(pool)
        end
    end)
end)

describe("the finalizer", function()
    teardown(pools.cleanup)

    for _, processes in ipairs { 0, 2 } do
        it(("runs once in each life that leaves in order, %d workers"):format(processes), function()
            local log = pools.path()
            local pool = procpool.new(processes, {
                maxtasksperchild = 2,
                initializer = function() pools.note(log, "in " .. life()) end,
                finalizer = function(...)
                    assert(select("#", ...) == 0)
                    pools.note(log, "out " .. life())
                end,
            })
            pool:map(echo, { 1, 2, 3, 4, 5, 6, 7 }, 1)
            pool:close()
            assert.is_true(pool:join(20))
            local lives = {}
            for _, line in ipairs(pools.notes(log)) do
                local what, who = line:match("(%a+) (.*)")
                lives[who] = (lives[who] or "") .. what
            end
            local n = 0
            for who, seen in pairs(lives) do
                n = n + 1
                assert.equal("inout", seen, who)
            end
            assert.is_true(n >= 4, n)
        end)
    end

    it("sees the worker and its state", function()
        local log = pools.path()
        local pool = procpool.new(1, { finalizer = function()
            pools.note(log, require("procpool").worker.state.what)
        end })
        pool:apply(function() require("procpool").worker.state.what = "kept" end)
        pool:close()
        assert.is_true(pool:join(20))
        assert.same({ "kept" }, pools.notes(log))
    end)

    it("does not run in workers that are killed", function()
        local log = pools.path()
        local pool = procpool.new(2, { finalizer = function() pools.note(log, "out") end })
        pools.settled(pool)
        pools.kill(pools.pids(pool)[1])
        pool:apply_async(pools.nap, { 30 })
        pools.finish(pool)
        assert.same({}, pools.notes(log))
    end)

    it("that raises is reported on stderr, and harms nothing", function()
        local status, out, err = pools.run([[
            local procpool = require("procpool")
            local pool = procpool.new(1, { maxtasksperchild = 2, finalizer = function() error("untidy", 0) end })
            local list = pool:map(function(x) return x end, { 1, 2, 3, 4, 5 }, 1)
            pool:close()
            assert(pool:join(20))
            print(list.n, list[5])
        ]])
        assert.equal(0, status, err)
        assert.equal("5\t5\n", out)
        local _, times = err:gsub("untidy", "")
        assert.is_true(times >= 3, err) -- a life that had no task, too
    end)

    it("that never returns is cut off by grace: recycled", function()
        local pool <close> = procpool.new(1, {
            maxtasksperchild = 1, grace = 0.05, finalizer = function() while true do end end,
        })
        local list = pool:map(function(x) return x end, { 1, 2, 3, 4, 5, 6, 7, 8 }, 1)
        for i = 1, 8 do assert.equal(i, list[i]) end
    end)

    it("that never returns is cut off by grace: closed", function()
        local pool = procpool.new(2, { grace = 0.05, finalizer = function() while true do end end })
        pools.settled(pool)
        pool:close()
        assert.is_true(pool:join(20))
    end)

    it("may take its time within grace", function()
        local log = pools.path()
        local pool = procpool.new(2, { grace = 20, finalizer = function()
            pools.nap(0.05)
            pools.note(log, "done")
        end })
        pools.settled(pool)
        pool:close()
        assert.is_true(pool:join(20))
        assert.equal(2, #pools.notes(log))
    end)

    it("does not hold up the next life", function()
        local gate, log = pools.gate(), pools.path()
        local pool <close> = procpool.new(1, {
            maxtasksperchild = 1, grace = 20, finalizer = function() pools.pass(gate, log) end,
        })
        assert.equal(1, pool:apply(echo, { 1 }))
        pools.await_notes(log, 1)
        assert.equal(2, pool:apply(echo, { 2 })) -- the first life still runs
        pools.open(gate)
    end)
end)
