-- The keeper dies, is stopped, is signalled, cannot fork: no call hangs, what
-- is finished can still be read, nothing is left behind.
-- limit: 240 s

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local _ENV = _G -- luacheck: ignore 211

local c = require("chelper")
local clean = require("spec.support.clean")
local fault = require("spec.support.fault")
local procpool = require("procpool")
local script = require("spec.support.script")
local signal = require("posix.signal")
local unistd = require("posix.unistd")

local await, failure, fails, ready = fault.await, fault.failure, fault.fails, fault.ready

local function all_dead(pids)
    return await(fault.ENDED, function()
        for _, pid in ipairs(pids) do
            if not clean.dead(pid) then
                return false
            end
        end
        return true
    end)
end

-- Calls f in `seconds`, in a process of its own.
local function later(seconds, f)
    local pid = c.fork()
    if pid == 0 then
        c.sleep(seconds)
        f()
        c.quit(0)
    end
    return setmetatable({}, { __close = function() c.wait(pid) end })
end

describe("a keeper that is killed", function()
    local pool, keeper, pids
    before_each(function()
        c.counters(16)
        pool = procpool.new(2)
        pids = ready(pool)
        keeper = fault.keeper()
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.ENDED))
        c.counters(0)
    end)

    it("idle: the pool is broken, its workers die with it", function()
        c.kill(keeper, signal.SIGKILL)
        assert.is_true(all_dead(pids))
        assert.is_true(await(fault.DEATH, function() return pool:state() == "broken" end))
        for _, call in ipairs({
            function() return pool:apply(math.abs, { -1 }) end,
            function() return pool:apply_async(math.abs, { -1 }) end,
            function() return pool:map(math.abs, { -1 }) end,
            function() return pool:starmap_async(math.abs, { { -1 } }) end,
            function() return pool:imap(math.abs, { -1 }):next() end,
            function() return pool:resize(3) end,
            function() return pool:recycle() end,
        }) do
            local err = fails("broken", call)
            assert.matches("keeper died %(signal 9%)", err.message)
        end
        assert.equal("broken", pool:stats().state)
        assert.equal(0, pool:poll(0.01))
        pool:close()
        assert.is_true(pool:join(fault.ENDED))
        assert.is_true(clean.gone(keeper))
    end)

    it("during a wait: the wait ends at once", function()
        for _, wait in ipairs({ "get", "wait" }) do
            local own <close> = procpool.new(1)
            ready(own)
            local keepers = clean.children()
            local hung = own:apply_async(fault.hang, { 1 })
            fault.counted(1, 1)
            local _ <close> = later(0.1, function()
                for _, pid in ipairs(keepers) do
                    if pid ~= keeper then
                        c.kill(pid, signal.SIGKILL)
                    end
                end
            end)
            local begun = fault.now()
            if wait == "get" then
                failure("broken", hung)
            else
                assert.is_true(hung:wait(fault.HANG))
            end
            assert.is_true(fault.now() - begun < 0.1 + fault.ENDED)
            own:terminate()
            c.set(1, 0)
        end
        fault.probe(pool)
    end)

    it("busy: what is finished can be read, the rest is broken", function()
        local done, queued = {}, {}
        for i = 1, 50 do
            done[i] = pool:apply_async(function(k)
                c.add(2)
                return k
            end, { i })
        end
        fault.counted(2, 50)
        for i = 1, 2 do
            queued[i] = pool:apply_async(fault.hang, { 1 })
        end
        fault.counted(1, 2)
        for i = 3, 40 do
            queued[i] = pool:apply_async(math.abs, { i })
        end
        c.kill(keeper, signal.SIGKILL)
        for i = 1, 50 do
            assert.equal(i, done[i]:get(fault.HANG))
        end
        for i = 1, 40 do
            failure("broken", queued[i])
        end
        assert.is_true(all_dead(pids))
        pool:close()
        assert.is_true(pool:join(fault.ENDED))
    end)

    it("by a task: the same", function()
        failure("broken", pool:apply_async(function()
            os.execute("kill -9 " .. unistd.getppid())
            fault.hang(1)
        end))
        assert.equal("broken", pool:state())
        assert.is_true(all_dead(pids))
    end)

    it("inside a map, an imap, a blocked apply_async: each raises", function()
        local function with_pool(f, opts)
            local own = procpool.new(1, opts)
            ready(own)
            local own_keeper
            for _, pid in ipairs(clean.children()) do
                own_keeper = pid ~= keeper and pid or own_keeper
            end
            local _ <close> = later(0.1, function() c.kill(own_keeper, signal.SIGKILL) end)
            local begun = fault.now()
            fails("broken", f, own)
            assert.is_true(fault.now() - begun < 0.1 + fault.ENDED)
            own:terminate()
            assert.is_true(own:join(fault.ENDED))
        end
        with_pool(function(own) own:map(fault.hang, { 1, 1 }) end)
        with_pool(function(own)
            for _ in own:imap(fault.hang, { 1, 1 }) do end -- luacheck: ignore 542
        end)
        with_pool(function(own)
            own:apply_async(fault.hang, { 1 })
            own:apply_async(fault.hang, { 1 })
        end, { maxpending = 1 })
    end)
end)

describe("a keeper killed while new runs", function()
    it("means broken, never a hang", function()
        for _ = 1, fault.scaled(20) do
            local parent = c.getpid()
            local nemesis = fault.nemesis(math.random() * 0.003, function()
                for _, pid in ipairs(clean.children(parent)) do
                    if pid ~= c.getpid() then
                        c.kill(pid, signal.SIGKILL)
                    end
                end
            end)
            local ok, err = pcall(function()
                local pool <close> = procpool.new(2)
                return pool:apply_async(math.abs, { -1 }):get(fault.HANG)
            end)
            fault.stop(nemesis)
            assert.is_true(ok or err.kind == "broken", tostring(err))
        end
    end)
end)

describe("a keeper that is stopped", function()
    local pool, keeper
    before_each(function()
        c.counters(16)
        pool = procpool.new(2)
        ready(pool)
        keeper = fault.keeper()
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.ENDED))
        c.counters(0)
    end)

    it("lets workers work; a death is told when it goes on", function()
        c.kill(keeper, signal.SIGSTOP)
        for i = 1, 20 do
            assert.equal(i, pool:apply_async(math.max, { i, 0 }):get(fault.HANG))
        end
        local doomed = pool:apply_async(function()
            c.add(1)
            fault.die()
        end)
        fault.counted(1, 1)
        fails("timeout", doomed.get, doomed, 0.3)
        fault.probe(pool)
        c.kill(keeper, signal.SIGCONT)
        failure("lost", doomed)
        fault.probe(pool)
    end)

    it("does not delay terminate", function()
        local hung = pool:apply_async(fault.hang, { 1 })
        fault.counted(1, 1)
        local pids = fault.pids(pool)
        c.kill(keeper, signal.SIGSTOP)
        local begun = fault.now()
        pool:terminate()
        assert.is_true(fault.now() - begun < 1.5)
        failure("terminated", hung)
        assert.is_true(all_dead(pids))
        assert.is_true(pool:join(fault.ENDED))
    end)

    it("makes join time out, not hang", function()
        c.kill(keeper, signal.SIGSTOP)
        pool:close()
        assert.same({ n = 2, nil, "timeout" }, table.pack(pool:join(0.2)))
        c.kill(keeper, signal.SIGCONT)
        assert.is_true(pool:join(fault.HANG))
    end)
end)

describe("a keeper that is signalled", function()
    it("goes on, whatever the signal", function()
        local pool <close> = procpool.new(2)
        ready(pool)
        local keeper = fault.keeper()
        for sig = 1, 64 do
            if sig ~= signal.SIGKILL and sig ~= signal.SIGSTOP and sig ~= 32 and sig ~= 33 then
                c.kill(keeper, sig)
                fault.probe(pool)
            end
        end
        local pid = ready(pool)[1]
        c.kill(pid, signal.SIGKILL)
        fault.replaced(pool, 1, pid, fault.DEATH + fault.READY)
        assert.equal("running", pool:state())
        assert.equal("S", await(1, clean.state, keeper))
    end)
end)

describe("a keeper that cannot fork", function()
    -- RLIMIT_NPROC does not bind root, so as a user of this test's own.
    local root = unistd.getuid() == 0 and os.execute("command -v setpriv >/dev/null")
    local uid = 40000 + unistd.getpid() % 20000
    local as_user = { "setpriv", "--reuid=" .. uid, "--clear-groups" }

    local function unprivileged(name, f)
        it(name, function()
            if not root then
                pending("needs root and setpriv") -- luacheck: ignore 113
                return
            end
            f()
        end)
    end

    unprivileged("for a while: pauses, others serve, then full strength", function()
        local result = script.run(function(pp, ch, clean_)
            local fault_ = require("spec.support.fault")
            local pool <close> = pp.new(2)
            local pids = fault_.ready(pool)
            local keeper = fault_.keeper()
            local function ticks()
                local stat = clean_.read(("/proc/%d/stat"):format(keeper))
                local user, system = stat:match("%) %a " .. ("%S+ "):rep(10) .. "(%d+) (%d+)")
                return user + system
            end
            assert(ch.limit("nproc", 1, keeper))
            ch.kill(pids[2], 9)
            local before, begun = ticks(), ch.now()
            while ch.now() < begun + 1 do
                fault_.probe(pool)
                ch.sleep(0.01)
            end
            print("probed", pool:state(), (ticks() - before) <= 10)
            assert(ch.limit("nproc", -1, keeper))
            fault_.replaced(pool, 2, pids[2], 20)
            fault_.ready(pool)
            for _, pid in ipairs(fault_.pids(pool)) do
                assert(clean_.state(pid))
            end
            print("strong")
        end, { command = as_user })
        assert.equal("probed\trunning\ttrue\nstrong\n", result.out, result.err)
        assert.equal(0, result.status)
    end)

    unprivileged("at all: the pool breaks after five pauses, and says why", function()
        local result = script.run(function(pp, ch)
            local events = 0
            local pool = pp.new(2, { onevent = function() events = events + 1 end })
            local begun = ch.now()
            local ok, err = pcall(pool.apply, pool, math.abs, { -1 })
            print(ok, err.kind, err.message)
            print(ch.now() - begun > 0.14, pool:state())
            pool:close()
            print(pool:join(10))
        end, { command = { "prlimit", "--nproc=2:2", table.unpack(as_user) } })
        assert.equal("false\tbroken\tcannot start workers: fork: Resource temporarily unavailable\n"
            .. "true\tbroken\ntrue\n", result.out, result.err)
    end)

    unprivileged("nor can the parent: new raises an ordinary error, and all is clean", function()
        local result = script.run(function(pp, _, clean_)
            pp.new(0)
            local before = clean_.snapshot()
            for _ = 1, 3 do
                print(pcall(pp.new, 2))
            end
            print(clean_.check(before))
        end, { command = { "prlimit", "--nproc=1:1", table.unpack(as_user) } })
        local line = "false\t[^\n]*cannot start the keeper: fork: Resource temporarily unavailable\n"
        assert.matches("^" .. line:rep(3) .. "true\n$", result.out)
    end)

    unprivileged("while workers are recycled: nothing is lost", function()
        local result = script.run(function(pp, ch)
            local fault_, ledger = require("spec.support.fault"), require("spec.support.ledger")
            local total = 400
            local book = ledger.new(total, 1)
            local pool <close> = pp.new(3, { maxtasksperchild = 3 })
            fault_.ready(pool)
            -- one that stays: while it is there, failing starts do not break the pool
            local stays = pool:apply_async(fault_.hang, { 2 * total + 1 })
            fault_.counted(2 * total + 1, 1)
            local keeper = fault_.keeper()
            local nemesis = fault_.nemesis(0.03, function()
                ch.limit("nproc", 1, keeper)
                ch.sleep(0.03)
                ch.limit("nproc", -1, keeper)
            end)
            local results = {}
            for id = 1, total do
                results[id] = pool:apply_async(ledger.run, { id, ch.sleep, 0.001 })
            end
            for id = 1, total do
                book:ended(id, pcall(results[id].get, results[id], fault_.HANG))
            end
            fault_.stop(nemesis)
            book:check(0)
            print(book.kinds.ok)
            ch.set(2 * total + 1, -1)
            stays:get(fault_.HANG)
        end, { command = as_user })
        assert.equal("400\n", result.out, result.err)
    end)
end)

describe("a keeper", function()
    it("reaps and replaces 64 workers that leave in one moment", function()
        local n = 64
        c.counters(4)
        local pool <close> = procpool.new(n, { maxtasksperchild = 1 })
        for round = 1, 3 do
            local results = {}
            for i = 1, n do
                results[i] = pool:apply_async(function(all)
                    c.add(1)
                    while c.get(1) < all do
                        c.sleep(0.001)
                    end
                    return i
                end, { n * round })
            end
            for i = 1, n do
                assert.equal(i, results[i]:get(fault.HANG))
            end
        end
        ready(pool)
        assert.is_true(await(fault.READY, function()
            return pool:stats().recycled.tasks == 3 * n
        end))
        for _, pid in ipairs(clean.children(fault.keeper())) do
            assert.not_equal("Z", clean.state(pid))
        end
        assert.equal(0, pool:stats().recycled.crash)
        c.counters(0)
    end)

    it("works though the parent ignored, blocked and timed signals before new", function()
        local result = script.run(function(pp, ch)
            ch.signal(17, "ignore")
            ch.signal(10, "ignore")
            ch.signal(14, "count")
            ch.timer(0.02)
            ch.block(true)
            local fault_ = require("spec.support.fault")
            local pool = pp.new(2)
            local pids = fault_.ready(pool)
            for id, pid in ipairs(pids) do
                ch.kill(pid, 9)
                fault_.replaced(pool, id, pid, 20)
            end
            for _, sig in ipairs({ 17, 10, 14 }) do
                print(pool:apply(ch.disposition, { sig }))
            end
            print(pool:apply(function()
                ch.signal(14, "count")
                ch.sleep(0.1, true)
                return ch.caught()
            end))
            pool:close()
            print(pool:join(10), pool:state())
            print(ch.disposition(17))
        end)
        assert.equal(("default\tfalse\n"):rep(3) .. "0\ntrue\tclosed\nignore\ttrue\n",
            result.out, result.err)
    end)
end)
