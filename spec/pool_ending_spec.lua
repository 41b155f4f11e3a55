-- close, terminate, join, <close>, collection, os.exit: every way a pool ends,
-- in every order.
-- limit: 180 s

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")
local unistd = require("posix.unistd")
local wait = require("posix.sys.wait").wait

local fails, rejects = pools.fails, pools.rejects

local function echo(...) return ... end
local function spin() while true do end end

-- Runs f in a forked child of this process; returns its exit status. The
-- child must not come back into busted.
local function in_child(f)
    local pid = unistd.fork()
    if pid == 0 then
        local ok, status = pcall(f)
        unistd._exit(ok and status or 99)
    end
    local _, how, status = wait(pid)
    return how == "exited" and status or how
end

for _, processes in ipairs { 0, 2 } do
    describe(("the end of a pool of %d"):format(processes), function()
        teardown(pools.cleanup)

        it("by close: what was submitted finishes, new tasks are refused", function()
            local pool = procpool.new(processes)
            local results = {}
            for i = 1, 50 do results[i] = pool:apply_async(echo, { i }) end
            local list = pool:map_async(echo, { 1, 2, 3 })
            pool:close()
            assert.equal("closed", pool:state())
            for _, name in ipairs { "apply", "apply_async" } do
                fails("closed", pool[name], pool, echo, { 1 })
            end
            for _, name in ipairs { "map", "map_async", "starmap", "starmap_async",
                "imap", "imap_unordered" } do
                fails("closed", pool[name], pool, echo, {})
            end
            fails("closed", pool.recycle, pool)
            fails("closed", pool.resize, pool, 2)
            pool:close()
            assert.is_true(pool:join())
            assert.is_true(pool:join(0))
            for i = 1, 50 do assert.equal(i, results[i]:get()) end
            assert.equal(3, list:get().n)
            assert.equal("closed", pool:state())
            assert.is_truthy(tostring(pool):find("^procpool.Pool %(closed, "))
        end)

        it("by terminate: refused with kind terminated, over and over", function()
            local pool = procpool.new(processes)
            pool:apply(echo)
            pool:terminate()
            pool:terminate()
            assert.equal("terminated", pool:state())
            for _, name in ipairs { "apply", "apply_async", "map", "map_async", "starmap",
                "starmap_async", "imap", "imap_unordered" } do
                fails("terminated", pool[name], pool, echo, {})
            end
            fails("terminated", pool.recycle, pool)
            fails("terminated", pool.resize, pool, 2)
            assert.is_true(pool:join())
            pool:close()
            assert.is_true(pool:join(1))
            assert.equal("terminated", pool:state())
            assert.equal(0, pool:poll())
            assert.equal("terminated", pool:stats().state)
        end)

        it("is no matter to results that were there", function()
            local pool = procpool.new(processes)
            local good, bad = pool:apply_async(echo, { 7 }), pool:apply_async(error, { "x", 0 })
            good:wait(20)
            bad:wait(20)
            pool:terminate()
            assert.equal(7, good:get())
            assert.equal("x", fails("error", bad.get, bad).value)
            pools.finish(pool)
        end)

        it("refuses a join of a running pool", function()
            local pool = procpool.new(processes)
            rejects("close or terminate it before join", pool.join, pool)
            rejects("close or terminate it before join", pool.join, pool, 0)
            pools.finish(pool)
        end)

        -- Every sequence of three calls and some of four: all of them inline,
        -- or with PROCPOOL_LONG set.
        it("in every order of calls is right", function()
            local calls = { "submit", "close", "terminate", "join", "get", "cancel" }

            -- What a call does, and what it may do in the state that the calls
            -- before have brought about.
            local function step(pool, state, call, busy)
                if call == "submit" then
                    local task = busy and processes > 0 and pools.nap or echo
                    if state.pool == "running" then
                        state.result = pool:apply_async(task, { 0.001 })
                    else
                        fails(state.pool, pool.apply_async, pool, task, { 0.001 })
                    end
                elseif call == "close" then
                    pool:close()
                    if state.pool == "running" then state.pool = "closed" end
                elseif call == "terminate" then
                    pool:terminate()
                    state.pool = "terminated"
                elseif call == "join" and state.pool == "running" then
                    rejects("before join", pool.join, pool, 20)
                elseif call == "join" then
                    assert(pool:join(20))
                elseif call == "get" and state.result then
                    local ok, err = pcall(state.result.get, state.result, 20)
                    assert(ok or err.kind == "terminated" and state.pool == "terminated"
                        or err.kind == "cancelled" and state.cancelled, err)
                elseif call == "cancel" and state.result then
                    state.cancelled = state.result:cancel() or state.cancelled
                end
                assert(pool:state() == state.pool)
            end

            local sequence = {}
            local function try(busy)
                local pool = procpool.new(processes > 0 and 1 or 0, { grace = 0.01 })
                local state = { pool = "running" }
                for i = 1, #sequence do
                    local ok, err = pcall(step, pool, state, sequence[i], busy)
                    if not ok then
                        error(("%s, call %d: %s"):format(
                            table.concat(sequence, " "), i, tostring(err)), 0)
                    end
                end
                pools.finish(pool)
                if state.result then
                    assert(state.result:ready(), table.concat(sequence, " "))
                end
            end
            local stride = (processes == 0 or os.getenv("PROCPOOL_LONG")) and 1 or 23
            local count = 0
            local function extend()
                if #sequence == 4 then
                    count = count + 1
                    return count % stride == 0 and try(count // stride % 2 == 0)
                elseif #sequence == 3 then
                    try(count // 6 % 2 == 0)
                end
                for _, call in ipairs(calls) do
                    sequence[#sequence + 1] = call
                    extend()
                    sequence[#sequence] = nil
                end
            end
            extend()
            assert.equal(6 ^ 4, count)
        end)

        it("of a block left normally: closed and joined", function()
            local outer, result
            do
                local pool <close> = procpool.new(processes)
                outer = pool
                result = pool:map_async(echo, { 1, 2, 3 })
            end
            assert.equal("closed", outer:state())
            assert.equal(3, result:get(0).n)
            assert.is_true(outer:join(0))
        end)

        it("of a block left by return, break, goto: closed and joined", function()
            local kept
            local function by_return()
                local pool <close> = procpool.new(processes)
                kept = pool
                return pool:apply(echo, { 5 })
            end
            assert.equal(5, by_return())
            assert.equal("closed", kept:state())
            repeat
                local pool <close> = procpool.new(processes)
                kept = pool
                if kept then break end
            until false
            assert.equal("closed", kept:state())
        end)

        it("of a block left by an error: terminated, and the error stays", function()
            local kept, result
            local problem = {}
            local ok, err = pcall(function()
                local pool <close> = procpool.new(processes)
                kept = pool
                if processes > 0 then
                    result = pool:apply_async(spin)
                end
                error(problem)
            end)
            assert.is_false(ok)
            assert.equal(problem, err)
            assert.equal("terminated", kept:state())
            if result then
                fails("terminated", result.get, result, 0)
            end
            assert.is_true(kept:join(20))
        end)

        it("of a block that closed or terminated it itself", function()
            for _, method in ipairs { "close", "terminate" } do
                for _, joined in ipairs { true, false } do
                    local pool <close> = procpool.new(processes)
                    pool:apply(echo)
                    pool[method](pool)
                    if joined then assert.is_true(pool:join(20)) end
                end
            end
        end)

        it("in a coroutine that ends, or is closed", function()
            local kept
            local co = coroutine.create(function(close)
                local pool <close> = procpool.new(processes)
                kept = pool
                coroutine.yield(pool:apply(echo, { 3 }))
                assert(not close)
            end)
            assert.same({ true, 3 }, { coroutine.resume(co) })
            assert.is_true(coroutine.resume(co, false))
            assert.equal("closed", kept:state())
            co = coroutine.create(function()
                local pool <close> = procpool.new(processes)
                kept = pool
                coroutine.yield()
            end)
            coroutine.resume(co)
            assert.is_true(coroutine.close(co))
            assert.equal("closed", kept:state())
            co = coroutine.create(function()
                local pool <close> = procpool.new(processes)
                kept = pool
                error("inside")
            end)
            assert.is_false(coroutine.resume(co))
            coroutine.close(co)
            assert.equal("terminated", kept:state())
        end)

        it("when several are left at once: inside out", function()
            local a, b
            pcall(function()
                local first <close> = procpool.new(processes)
                local second <close> = procpool.new(processes)
                a, b = first, second
                error("both")
            end)
            assert.equal("terminated", a:state())
            assert.equal("terminated", b:state())
        end)

        it("leaves a message that reads well", function()
            local pool = procpool.new(processes)
            pool:close()
            local err = fails("closed", pool.map, pool, echo, {})
            assert.equal("the pool is closed", err.message)
            assert.equal("the pool is closed", tostring(err))
            pool:terminate()
            err = fails("terminated", pool.map, pool, echo, {})
            assert.equal("the pool is terminated", tostring(err))
            pools.finish(pool)
        end)
    end)
end

describe("the end of a pool with real workers", function()
    teardown(pools.cleanup)

    it("by close: the workers go, none is started any more", function()
        local pool = procpool.new(2, { maxtasksperchild = 1 })
        pool:map(echo, { 1, 2, 3, 4 }, 1)
        local keeper, pids = pools.keeper(pool), pools.pids(pool)
        pool:close()
        assert.is_true(pool:join(20))
        assert.is_false(pools.alive(keeper))
        for _, pid in ipairs(pids) do assert.is_false(pools.alive(pid)) end
        assert.same({}, pools.children())
    end)

    it("by close with a backlog and one task per life (CPython's bpo-10332)", function()
        for _, case in ipairs { { 3, 1, 6 }, { 1, 1, 10 }, { 2, 2, 9 } } do
            local pool = procpool.new(case[1], { maxtasksperchild = case[2] })
            local results = {}
            for i = 1, case[3] do results[i] = pool:apply_async(echo, { i }) end
            pool:close()
            assert.is_true(pool:join(20))
            for i = 1, case[3] do assert.equal(i, results[i]:get(0)) end
        end
    end)

    it("by terminate under running and queued tasks: within a second", function()
        local pool = procpool.new(2)
        local results = {}
        for i = 1, 10 do results[i] = pool:apply_async(spin) end
        local map = pool:map_async(echo, { 1, 2, 3 })
        pools.eventually("running tasks", function() return pool:stats().busy == 2 end)
        local keeper, pids = pools.keeper(pool), pools.pids(pool)
        local start = pools.now()
        pool:terminate()
        assert.is_true(pools.now() - start < 10) -- 1 s, on a machine that is not busy
        for i = 1, 10 do fails("terminated", results[i].get, results[i], 0) end
        fails("terminated", map.get, map, 0)
        assert.is_true(pool:join(20))
        pools.await_gone({ keeper, table.unpack(pids) })
        assert.equal(0, pool:stats().running + pool:stats().queued)
    end)

    it("by close, then terminate: does not wait for the tasks", function()
        local pool = procpool.new(1)
        local result = pool:apply_async(spin)
        pool:close()
        assert.same({ nil, "timeout", n = 2 }, table.pack(pool:join(0.05)))
        assert.same({ nil, "timeout", n = 2 }, table.pack(pool:join(0)))
        pool:terminate()
        assert.is_true(pool:join(20))
        fails("terminated", result.get, result)
    end)

    it("by close while workers start: no hang", function()
        for _ = 1, 20 do
            local pool = procpool.new(2)
            pool:close()
            assert.is_true(pool:join(20))
        end
    end)

    it("by terminate while workers start: no hang", function()
        for _ = 1, 20 do
            local pool = procpool.new(2)
            pool:terminate()
            assert.is_true(pool:join(20))
        end
    end)

    it("by join: takes results in, runs callbacks", function()
        local pool = procpool.new(2)
        local seen = 0
        for _ = 1, 100 do
            pool:apply_async(echo, { 1 }, { callback = function(x) seen = seen + x end })
        end
        pool:close()
        assert.is_true(pool:join(20))
        assert.equal(100, seen)
    end)

    it("by stopped workers: join ends at its timeout, terminate works", function()
        local pool = procpool.new(2)
        pools.settled(pool)
        local pids = pools.pids(pool)
        for _, pid in ipairs(pids) do pools.kill(pid, "STOP") end
        pool:apply_async(echo)
        pool:close()
        assert.same({ nil, "timeout" }, { pool:join(0.05) })
        pool:terminate()
        assert.is_true(pool:join(20))
        pools.await_gone(pids)
    end)

    it("leaves what tasks started in the background to itself, if orderly", function()
        local pool = procpool.new(1)
        local pid = pool:apply(function()
            local pipe = io.popen("sleep 1000 >/dev/null & echo $!")
            return math.tointeger(pipe:read("n"))
        end)
        pool:recycle(1)
        pools.eventually("another worker", function()
            return pool:stats().workers[1].generation == 2
        end)
        assert.is_true(pools.alive(pid))
        pools.finish(pool)
        pools.kill(pid)
    end)
end)

describe("an unclosed pool", function()
    teardown(pools.cleanup)

    -- Makes a pool that nobody holds; returns the pids of its processes.
    local function forget(prepare)
        local pids
        local function make()
            local pool = procpool.new(2)
            pools.settled(pool)
            pids = pools.pids(pool)
            pids[#pids + 1] = pools.keeper(pool)
            if prepare then prepare(pool) end
        end
        make()
        return pids
    end

    local function collect()
        local start = pools.now()
        collectgarbage()
        collectgarbage()
        return pools.now() - start
    end

    it("is terminated when collected: idle", function()
        local pids = forget()
        assert.is_true(collect() < 5)
        pools.await_gone(pids)
    end)

    it("is terminated when collected: busy", function()
        local pids = forget(function(pool)
            for _ = 1, 5 do pool:apply_async(spin) end
            pools.eventually("busy workers", function() return pool:stats().busy == 2 end)
        end)
        assert.is_true(collect() < 5)
        pools.await_gone(pids)
    end)

    it("is terminated when collected: with results unread, callbacks uncalled", function()
        local called, before = 0, nil
        local pids = forget(function(pool)
            pool:map_async(echo, { 1, 2 })
            pool:imap(echo, { 1, 2, 3 })
            for i = 1, 50 do
                pool:apply_async(echo, { i }, { callback = function() called = called + 1 end })
            end
            before = called
        end)
        collect()
        assert.equal(before, called)
        pools.await_gone(pids)
    end)

    it("is kept by an AsyncResult or an iterator", function()
        local function make(method)
            local pool = procpool.new(1)
            return pool[method](pool, function(x) pools.nap(0.01) return x end, { 7 })
        end
        local result, iter, map = make("apply_async"), make("imap"), make("map_async")
        collect()
        assert.equal(7, result:get(20))
        assert.same({ 1, 7 }, { iter:next(20) })
        assert.equal(7, map:get(20)[1])
        result, iter, map = nil, nil, nil -- luacheck: ignore 311
        collect()
        pools.eventually("no children but dead ones", function()
            for _, pid in ipairs(pools.children()) do
                if pools.alive(pid) then return false end
            end
            return true
        end)
    end)

    it("is not terminated by its collection in a child", function()
        local pool = procpool.new(1)
        pool:apply(echo)
        local status = in_child(function()
            pool = nil
            collectgarbage()
            collectgarbage()
            return 0
        end)
        assert.equal(0, status)
        assert.equal(3, pool:apply(echo, { 3 }))
        pools.finish(pool)
    end)
end)

describe("in a forked child a pool's", function()
    teardown(pools.cleanup)

    it("methods raise, naming both processes", function()
        local pool <close> = procpool.new(1)
        pool:apply(echo)
        local owner = tostring(unistd.getpid())
        local status = in_child(function()
            local bad = 0
            for _, name in ipairs { "apply", "apply_async", "map", "map_async", "starmap",
                "starmap_async", "imap", "imap_unordered", "close", "terminate", "join",
                "resize", "recycle", "poll", "fileno", "stats", "state" } do
                local ok, err = pcall(pool[name], pool, echo, {})
                local text = tostring(err)
                if ok or procpool.iserror(err) or not text:find(owner, 1, true)
                    or not text:find(tostring(unistd.getpid()), 1, true) then
                    bad = bad + 1
                end
            end
            return bad
        end)
        assert.equal(0, status)
        assert.equal(1, pool:apply(echo, { 1 }))
    end)

    it("end of its block does nothing, nor does os.exit", function()
        local pool <close> = procpool.new(1)
        pool:apply(echo)
        local status = in_child(function()
            local kept <close> = pool -- luacheck: ignore 211
            return 5
        end)
        assert.equal(5, status)
        assert.equal(1, pool:apply(echo, { 1 }))
        status = pools.run([[
            local procpool = require("procpool")
            local unistd = require("posix.unistd")
            local pool = procpool.new(1)
            pool:apply(math.abs, { 1 })
            local pid = unistd.fork()
            if pid == 0 then os.exit(true, true) end
            require("posix.sys.wait").wait(pid)
            assert(pool:apply(math.abs, { -4 }) == 4)
            local child <const> = unistd.fork()
            if child == 0 then
                -- a pool of its own works
                local own <close> = procpool.new(1)
                os.exit(own:apply(math.abs, { -5 }) == 5 and 0 or 1, true)
            end
            local _, _, code = require("posix.sys.wait").wait(child)
            assert(code == 0)
            assert(pool:apply(math.abs, { -6 }) == 6)
            pool:close()
            assert(pool:join(20))
        ]])
        assert.equal(0, status)
    end)

    it("results and iterators raise too", function()
        local pool <close> = procpool.new(1)
        local gate = pools.gate()
        local result, iter = pool:apply_async(pools.pass, { gate }), pool:imap(echo, { 1 })
        assert.equal(2, in_child(function()
            local bad = 0
            for _, call in ipairs { function() result:get() end, function() iter:next() end } do
                local ok, err = pcall(call)
                if not ok and tostring(err):find("belongs to process", 1, true) then bad = bad + 1 end
            end
            iter:close()
            return bad
        end))
        pools.open(gate)
        result:get(20)
        assert.same({ 1, 1 }, { iter:next() })
    end)

    it("tostring tells whose it is", function()
        local pool <close> = procpool.new(1)
        local text = ("procpool.Pool (of process %d)"):format(unistd.getpid())
        assert.equal(0, in_child(function() return tostring(pool) == text and 0 or 1 end))
    end)
end)

describe("a program that ends without closing its pool", function()
    teardown(pools.cleanup)

    local endings = {
        ["by itself"] = { "", 0 },
        ["by os.exit(0)"] = { "os.exit(0)", 0 },
        ["by os.exit(3, true)"] = { "os.exit(3, true)", 3 },
        ["by an error"] = { "error('uncaught', 0)", 1, "uncaught" },
        ["by an error with <close>"] = {
            "local kept <close> = pool error('uncaught', 0)", 1, "uncaught" },
        ["by SIGTERM"] = { "require('posix.signal').raise(15)", 143 },
        ["by SIGKILL"] = { "require('posix.signal').raise(9)", 137 },
    }
    for name, ending in pairs(endings) do
        it(name .. ", leaves no process behind", function()
            local log = pools.path()
            local start = pools.now()
            local status, _, err = pools.run(([[
                local procpool = require("procpool")
                local pools = require("spec.support.pools")
                local pool = procpool.new(2)
                for i = 1, 4 do
                    pool:apply_async(function()
                        pools.note(%q, require("procpool").worker.pid)
                        os.execute("sleep 1000")
                    end)
                end
                pools.await_notes(%q, 2)
                pools.note(%q, pools.keeper(pool))
                %s
            ]]):format(log, log, log, ending[1]))
            assert.is_true(pools.now() - start < 20)
            assert.equal(ending[2], status, err)
            if ending[3] then
                assert.is_truthy(err:find(ending[3], 1, true), err)
            elseif status < 128 then
                assert.equal("", err)
            end
            local pids = {}
            for _, pid in ipairs(pools.notes(log)) do pids[#pids + 1] = math.tointeger(pid) end
            assert.equal(3, #pids)
            pools.await_gone(pids)
            -- (ps hangs under a preloaded libasan)
            local pipe = io.popen("LD_PRELOAD= ps -eo pgid=,args=")
            for line in pipe:lines() do
                local group, args = line:match("^%s*(%d+) (.*)$")
                for _, pid in ipairs(pids) do
                    assert.is_false(tonumber(group) == pid and args:find("sleep 1000", 1, true) ~= nil)
                end
            end
            pipe:close()
        end)
    end
end)
