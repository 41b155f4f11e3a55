-- Error objects: which fields each kind has, what they say, how they travel.
-- The same for real workers and for none, where the kind can occur in both.

local describe, it, assert = describe, it, assert
local before_each, after_each, teardown = before_each, after_each, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")
local unistd = require("posix.unistd")

local fails = pools.fails

local function echo(...) return ... end

-- The error has exactly these fields.
local function has(err, ...)
    local known = {}
    for _, name in ipairs { "kind", "message", ... } do
        known[name] = true
        assert.is_not_nil(err[name], name)
    end
    for name in pairs(err) do assert.is_true(known[name], name) end
end

for _, processes in ipairs { 0, 2 } do
    describe(("an error object of a pool of %d"):format(processes), function()
        local pool
        before_each(function() pool = procpool.new(processes) end)
        after_each(function() pools.finish(pool) end)
        teardown(pools.cleanup)

        it("of kind error: what was raised, where, by whom", function()
            local err = fails("error", pool.apply, pool, function() error("out of cheese") end)
            has(err, "value", "traceback", "pid", "worker", "attempt")
            assert.is_truthy(err.message:find("^.*errors_spec.lua:%d+: out of cheese$"), err.message)
            assert.equal(err.message, err.value)
            assert.is_truthy(err.traceback:find("^stack traceback:\n"), err.traceback)
            assert.is_truthy(err.traceback:find("errors_spec.lua:", 1, true))
            assert.is_nil(err.traceback:find("procpool/", 1, true), err.traceback)
            assert.equal(1, err.attempt)
            assert.is_true(err.worker >= 1)
            assert.equal(processes == 0, err.pid == unistd.getpid())
            assert.is_true(procpool.iserror(err))
        end)

        it("names the failing function in its traceback, with its callers", function()
            local function inner() error("deep") end
            local function outer() inner() end
            local err = fails("error", pool.apply, pool, function() outer() end)
            assert.is_truthy(err.traceback:find("inner", 1, true), err.traceback)
            assert.is_truthy(err.traceback:find("outer", 1, true), err.traceback)
        end)

        it("of kind error: any value, its text as message", function()
            for _, case in ipairs {
                { 42, "42" }, { 4.5, "4.5" }, { "text", "text" }, { "", "" },
                { true, "(error object is a boolean value)" },
                { false, "(error object is a boolean value)" },
                { {}, "(error object is a table value)" },
            } do
                local err = fails("error", pool.apply, pool, error, { case[1], 0 })
                assert.same(case[1], err.value)
                assert.equal(case[2], err.message)
            end
            local err = fails("error", pool.apply, pool, error, { nil, n = 1 })
            assert.is_nil(err.value)
            assert.is_string(err.message)
            err = fails("error", pool.apply, pool, function()
                error(setmetatable({ code = 5 }, { __tostring = function(e) return "code " .. e.code end }))
            end)
            assert.equal("code 5", err.message)
            assert.equal(5, err.value.code)
            assert.equal("code 5", tostring(err.value))
        end)

        it("of kind error: a value that cannot travel is its text", function()
            local err = fails("error", pool.apply, pool, function() error(io.stdout) end)
            assert.is_nil(err.value)
            assert.matches("^file %(0x%x+%) %(the value cannot travel: value: userdata %(FILE%*%)%)$", err.message)
            err = fails("error", pool.apply, pool, function() error({ file = { io.stdout } }) end)
            assert.is_nil(err.value)
            assert.equal("(error object is a table value) "
                .. "(the value cannot travel: value.file[1]: userdata (FILE*))", err.message)
            assert.is_truthy(err.traceback:find("errors_spec", 1, true))
            err = fails("error", pool.apply, pool, function()
                error(setmetatable({ io.stdout }, { __tostring = function() return "in words" end }))
            end)
            assert.equal("in words (the value cannot travel: value[1]: userdata (FILE*))", err.message)
        end)

        it("of kind error: os.exit, with its code", function()
            for _, case in ipairs { { 3, 3 }, { 0, 0 }, { true, 0 }, { false, 1 }, { nil, 0 } } do
                local err = fails("error", pool.apply, pool, function(code) os.exit(code) end, { case[1] })
                assert.equal(("task called os.exit(%d)"):format(case[2]), err.message)
                assert.equal(case[2], err.exitcode)
                assert.is_nil(err.value)
                assert.is_nil(err.signal)
            end
            fails("error", pool.apply, pool, function() os.exit(1, true) end)
            assert.equal("alive", pool:apply(echo, { "alive" }))
        end)

        it("of an item has its index, in its text too", function()
            local err = fails("error", pool.map, pool, function(x) error("no " .. x, 0) end, { 1 })
            has(err, "value", "traceback", "pid", "worker", "attempt", "index")
            assert.equal(1, err.index)
            assert.is_truthy(tostring(err):find("^no 1 %(item 1%)\nin the worker:\nstack traceback:"), tostring(err))
        end)

        it("says message and the worker's traceback", function()
            local err = fails("error", pool.apply, pool, function() error("text", 0) end)
            assert.equal("text\nin the worker:\n" .. err.traceback, tostring(err))
        end)

        it("raised again by a task is that task's value", function()
            local err = fails("error", pool.apply, pool, function()
                local ok, inner = pcall(function() error("first", 0) end)
                error(ok or inner, 0)
            end)
            assert.equal("first", err.message)
            err = fails("error", pool.apply, pool, function(e) error(e) end, { err })
            assert.is_true(procpool.iserror(err.value))
            assert.equal("first", err.value.message)
            assert.equal("first", err.message)
        end)

        it("is one on either side", function()
            local err = fails("error", pool.apply, pool, error, { "x", 0 })
            local there, back = pool:apply(function(e)
                return require("procpool").iserror(e), e
            end, { err })
            assert.is_true(there)
            assert.is_true(procpool.iserror(back))
            assert.equal(getmetatable(err), getmetatable(back))
            assert.equal(tostring(err), tostring(back))
            assert.not_equal(err, back)
        end)

        it("of kind unserializable names the path", function()
            local err = fails("unserializable", pool.apply, pool, echo, { 1, { conn = io.stdout } })
            has(err)
            assert.is_truthy(err.message:find("^args%[2%]%.conn: userdata %(FILE%*%)"), err.message)
            err = fails("unserializable", pool.apply, pool, function()
                return 1, { a = { coroutine.create(print) } }
            end)
            assert.is_truthy(err.message:find("result[2].a[1]", 1, true), err.message)
            assert.is_truthy(err.message:find("coroutine", 1, true), err.message)
            assert.is_true(err.worker >= 1)
            err = fails("unserializable", pool.map, pool, echo, { 1, 2, io.stdout })
            assert.equal(3, err.index)
        end)

        it("of kind closed, terminated, timeout and timelimit", function()
            local err = fails("timelimit", pool.apply, pool, function() while true do end end, nil,
                { timeout = 0.05, grace = 20 })
            has(err, "traceback", "pid", "worker", "attempt")
            assert.equal("time limit of 0.05 s exceeded", err.message:match("time limit of 0.05 s exceeded$"))
            pool:close()
            err = fails("closed", pool.apply, pool, echo)
            has(err)
            assert.equal("the pool is closed", err.message)
            pool:terminate()
            err = fails("terminated", pool.apply, pool, echo)
            has(err)
            assert.equal("the pool is terminated", err.message)
        end)

        it("of kind initializer has the worker's traceback", function()
            local bad = procpool.new(processes, { initializer = function() error("no luck") end })
            local err = fails("initializer", bad.apply, bad, echo)
            assert.is_truthy(err.message:find("no luck", 1, true))
            assert.is_truthy(err.value:find("no luck", 1, true))
            assert.is_truthy(err.traceback:find("errors_spec.lua", 1, true))
            pools.finish(bad)
        end)

        it("is told from any other value by iserror", function()
            for _, v in ipairs { 1, "x", {}, true, print, io.stdout, { kind = "error", message = "x" },
                setmetatable({}, { __name = "procpool.Error" }) } do
                assert.is_false(procpool.iserror(v))
            end
            assert.is_false(procpool.iserror(nil))
            assert.is_false(procpool.iserror())
        end)
    end)
end

describe("an error object of real workers", function()
    teardown(pools.cleanup)

    it("of kind lost: the signal", function()
        local pool <close> = procpool.new(1)
        for _, name in ipairs { "KILL", "SEGV", "ABRT" } do
            local number = require("posix.signal")["SIG" .. name]
            local err = fails("lost", pool.apply, pool, function(n)
                pools.kill(require("procpool").worker.pid, n)
                while true do end
            end, { name })
            has(err, "pid", "worker", "signal", "attempt")
            assert.equal(number, err.signal)
            assert.is_truthy(err.message:find(
                ("^worker 1 %%(pid %d%%) was killed by signal %d %%(.+%%) under the task"):format(err.pid, number)),
                err.message)
        end
    end)

    it("of kind lost: the exit code, 0 as well", function()
        local pool <close> = procpool.new(1)
        for _, code in ipairs { 0, 7 } do
            local err = fails("lost", pool.apply, pool, function(n)
                require("posix.unistd")._exit(n)
            end, { code })
            has(err, "pid", "worker", "exitcode", "attempt")
            assert.equal(code, err.exitcode)
            assert.is_truthy(err.message:find(("exited with status %d under the task"):format(code), 1, true),
                err.message)
        end
    end)

    it("of kind broken: the keeper's signal, for pending and later calls", function()
        local pool = procpool.new(1)
        pool:apply(echo)
        local result = pool:apply_async(pools.nap, { 30 })
        local map = pool:map_async(echo, { 1, 2, 3 })
        pools.kill(pools.keeper(pool))
        for _, call in ipairs {
            function() result:get(20) end, function() map:get(20) end,
            function() pool:apply(echo) end, function() pool:map(echo, {}) end,
            function() pool:resize(2) end, function() pool:recycle() end,
        } do
            local err = fails("broken", call)
            assert.equal("the pool's keeper died (signal 9)", err.message)
        end
        assert.equal("broken", pool:state())
        pools.finish(pool)
    end)

    it("of kind cancelled and timeout", function()
        local pool <close> = procpool.new(1)
        local gate = pools.gate()
        local result = pool:apply_async(pools.pass, { gate })
        local err = fails("timeout", result.get, result, 0.25)
        has(err)
        assert.equal("no result within 0.25 s", err.message)
        local iter = pool:imap(echo, { 1 })
        err = fails("timeout", iter.next, iter, 0)
        assert.equal("no result within 0 s", err.message)
        local queued = pool:apply_async(echo)
        queued:cancel()
        err = fails("cancelled", queued.get, queued, 20)
        has(err)
        assert.equal("the task was cancelled", err.message)
        pools.open(gate)
    end)

    it("uncaught is readable", function()
        local status, _, err = pools.run([[
            local pool <close> = require("procpool").new(1)
            local function divide(a, b)
                if b == 0 then error("division by zero") end
                return a // b
            end
            pool:starmap(divide, { { 1, 1 }, { 1, 0 } })
        ]])
        assert.equal(1, status)
        assert.matches("^lua5.4: .*:3: division by zero %(item 2%)\nin the worker:\nstack traceback:\n", err)
        local _, times = err:gsub("division by zero", "")
        assert.equal(1, times)
        assert.is_nil(err:find("[C]: in ?", 1, true) and err:find("procpool/pool.lua", 1, true), err)
    end)

    it("of kind timelimit says when the worker had to be killed", function()
        local pool <close> = procpool.new(1, { grace = 0.02 })
        local err = fails("timelimit", pool.apply, pool, function()
            pcall(function() while true do end end)
            while true do end
        end, nil, { timeout = 0.03 })
        has(err, "pid", "worker", "attempt", "signal")
        assert.equal(9, err.signal)
        assert.is_truthy(err.message:find("its worker was killed", 1, true), err.message)
    end)
end)
