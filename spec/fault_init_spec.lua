-- The initializer fails, in every way and at every time: retried with pauses
-- while the pool can live, else the pool breaks with the initializer's error.
-- limit: 200 s

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local _ENV = _G -- luacheck: ignore 211

local c = require("chelper")
local fault = require("spec.support.fault")
local ledger = require("spec.support.ledger")
local procpool = require("procpool")

local await, failure, fails, ready = fault.await, fault.failure, fault.fails, fault.ready

describe("an initializer", function()
    local pool, failed
    local function open(n, initializer, opts)
        opts = opts or {}
        failed = {}
        opts.initializer = initializer
        opts.onevent = function(event)
            if event.kind == "worker_failed" then
                failed[#failed + 1] = event
            end
        end
        pool = procpool.new(n, opts)
        return pool
    end

    before_each(function()
        c.counters(64)
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.ENDED))
        c.counters(0)
    end)

    it("that fails once, others being ready: that start is repeated", function()
        open(3, function()
            if c.add(1) == 3 then
                -- the others have come through
                while c.get(2) < 2 do c.sleep(0.001) end
                c.sleep(0.02)
                error("the third")
            end
            c.add(2)
        end)
        ready(pool)
        for i = 1, 20 do
            assert.equal(i, pool:apply(math.max, { i, 0 }))
        end
        assert.equal(4, c.get(1))
        assert.equal(1, #failed)
        assert.matches("the third", tostring(failed[1].error))
        assert.equal("running", pool:state())
    end)

    it("that fails at random: the pool gets its workers, tasks are done", function()
        local total = 200
        local book = ledger.new(total, 1)
        -- The first life is good; afterwards every third start fails.
        open(2, function()
            local n = c.add(2 * total + 1)
            if n > 2 and n % 3 == 0 then
                error("unlucky " .. n)
            end
        end, { maxtasksperchild = 5 })
        local results = {}
        for id = 1, total do
            results[id] = pool:apply_async(ledger.run, { id, math.abs, -id })
        end
        for id = 1, total do
            book:ended(id, pcall(results[id].get, results[id], fault.HANG))
        end
        book:check(0)
        assert.equal(total, book.kinds.ok)
        ready(pool)
        assert.is_true(#failed >= 10)
    end)

    for name, raise in pairs({
        ["a string"] = function() c.add(1) error("no database") end,
        ["a table"] = function() c.add(1) error({ code = 5 }) end,
        ["nil"] = function() c.add(1) error(nil) end,
    }) do
        it("that always raises " .. name .. ": broken at once, pending and later calls raise it", function()
            open(2, raise)
            local early = pool:apply_async(math.abs, { -1 })
            local begun = fault.now()
            local err = failure("initializer", early)
            assert.is_true(fault.now() - begun < fault.READY + 1)
            if name == "a string" then
                assert.matches("no database", err.message)
            elseif name == "a table" then
                assert.same({ code = 5 }, err.value)
            end
            assert.matches("in the worker:.*stack traceback", tostring(err))
            fails("initializer", pool.apply, pool, math.abs, { -1 })
            fails("initializer", pool.map, pool, math.abs, { -1 })
            fails("initializer", pool.apply_async, pool, math.abs, { -1 })
            assert.equal("broken", pool:state())
            assert.is_true(c.get(1) <= 2)
            pool:close()
            assert(pool:join(fault.ENDED))
        end)
    end

    for workers, least in ipairs({ 0.14, 0.05 }) do
        -- 10 + 20 + 40 + 80 ms, if one starts at a time. Two do: then the fifth
        -- start follows the third failure at least, that one's start the first.
        it("that fails only later: five in a row with pauses, then broken; workers: " .. workers, function()
            open(workers, function()
                if c.add(1) > workers then
                    error("no more")
                end
            end)
            local pids = ready(pool)
            local begun = fault.now()
            for _, pid in ipairs(pids) do
                c.kill(pid, 9)
            end
            local err = fails("initializer", function()
                pool:apply_async(math.abs, { -1 }):get(fault.HANG)
            end)
            assert.matches("no more", err.message)
            assert.is_true(fault.now() - begun > least)
            assert.is_true(c.get(1) >= workers + 5 and c.get(1) <= 2 * workers + 4, c.get(1))
            assert.equal("broken", pool:state())
        end)
    end

    it("that fails later, one worker being ready: the pool lives, starts are paused", function()
        open(2, function()
            if c.add(1) > 2 then
                error("no more")
            end
        end)
        local pids = ready(pool)
        c.kill(pids[2], 9)
        local begun, n = fault.now(), c.get(1)
        while fault.now() < begun + 1 do
            fault.probe(pool)
            c.sleep(0.01)
        end
        -- 10 ms doubling to 1 s: the seventh start would come after 0.63 s
        assert.is_true(c.get(1) - n <= 8 and c.get(1) - n >= 3, c.get(1) - n)
        assert.equal("running", pool:state())
        assert.is_true(#failed >= 3)
    end)

    for way, code in pairs({ kill = 9, segv = 11 }) do
        it("that dies by signal " .. code .. ": a failed start, the signal is named", function()
            open(2, way == "kill" and function() fault.die() end or c.segv)
            local err = failure("initializer", pool:apply_async(math.abs, { -1 }))
            assert.matches("signal " .. code, err.message)
            assert.equal("broken", pool:state())
        end)
    end

    it("that kills its worker once, others being ready: the start is repeated", function()
        open(2, function()
            if c.add(1) == 2 then
                while c.get(2) < 1 do c.sleep(0.001) end
                c.sleep(0.02)
                fault.die()
            end
            c.add(2)
        end)
        ready(pool)
        assert.equal(3, c.get(1))
        assert.equal(1, #failed)
        fault.probe(pool)
    end)

    it("that leaves by _exit: a failed start, its status is named", function()
        open(1, function() c.quit(3) end)
        local err = failure("initializer", pool:apply_async(math.abs, { -1 }))
        assert.matches("exited with status 3", err.message)
    end)

    it("that calls os.exit: a failed start that says so", function()
        open(1, function() os.exit(4) end)
        local err = failure("initializer", pool:apply_async(math.abs, { -1 }))
        assert.matches("os%.exit%(4%)", err.message)
    end)

    it("that never returns in one worker: the others serve", function()
        open(2, function()
            if c.add(1) == 1 then
                while true do end
            end
        end)
        for i = 1, 20 do
            assert.equal(i, pool:apply_async(math.max, { i, 0 }):get(fault.HANG))
        end
    end)

    it("that never returns in any: waits time out, terminate ends it", function()
        open(2, function()
            c.add(1)
            while true do end
        end)
        local result = pool:apply_async(math.abs, { -1 })
        fails("timeout", result.get, result, 0.2)
        pool:close()
        assert.same({ n = 2, nil, "timeout" }, table.pack(pool:join(0.2)))
        local begun = fault.now()
        pool:terminate()
        assert.is_true(fault.now() - begun < 1.5)
        failure("terminated", result)
    end)

    it("that takes longer than inittimeout: a failed start, broken if it is the first", function()
        open(1, function() c.sleep(100) end, { inittimeout = 0.1 })
        local begun = fault.now()
        local err = failure("initializer", pool:apply_async(math.abs, { -1 }))
        assert.is_true(fault.now() - begun < 0.1 + fault.DEATH)
        assert.matches("took too long", err.message)
    end)

    it("that takes longer than inittimeout once: repeated", function()
        open(2, function()
            if c.add(1) == 2 then
                c.sleep(100)
            end
        end, { inittimeout = 1 })
        ready(pool, 1)
        assert.is_true(await(fault.HANG, function() return c.get(1) == 3 end))
        ready(pool)
        assert.equal(1, #failed)
    end)

    it("that prints, starts a pool and leaves: works", function()
        open(1, function()
            io.stdout:write("")
            local inner <close> = procpool.new(1)
            procpool.worker.state.inner = inner:apply(math.max, { 5, 6 })
        end)
        assert.equal(6, pool:apply(function() return procpool.worker.state.inner end))
    end)
end)
