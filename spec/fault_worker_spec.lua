-- A worker dies, phase by phase, of every cause: the outcome of its task, of
-- everybody else's, and what the pool does about it.
-- limit: 300 s

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local _ENV = _G -- luacheck: ignore 211

local c = require("chelper")
local clean = require("spec.support.clean")
local fault = require("spec.support.fault")
local ledger = require("spec.support.ledger")
local procpool = require("procpool")
local script = require("spec.support.script")
local signal = require("posix.signal")

local failure, ready, await = fault.failure, fault.ready, fault.await

-- A value whose rebuilding in the worker is user code: constructor(name, ...).
local Trap = {}
procpool.register("fault.Trap", Trap)
local function rebuild(kills, counter)
    if c.add(counter) <= kills then
        fault.die()
    end
    return "rebuilt"
end
procpool.register("fault.rebuild", rebuild)
function Trap.__reduce(trap)
    if trap.dies_encoding then
        c.add(trap.counter)
        fault.die()
    end
    return rebuild, trap.kills, trap.counter
end

describe("a worker that is killed", function()
    local pool, events
    local function open(n, opts)
        opts = opts or {}
        events = {}
        opts.onevent = function(event)
            events[#events + 1] = event
        end
        pool = procpool.new(n, opts)
        return pool
    end
    local function count(kind, field, value)
        local n = 0
        for _, event in ipairs(events) do
            n = n + (event.kind == kind and (not field or event[field] == value) and 1 or 0)
        end
        return n
    end

    before_each(function()
        c.counters(16)
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.HANG))
        c.counters(0)
    end)

    it("idle: harms no task and is replaced", function()
        open(2)
        local pid = ready(pool)[1]
        c.kill(pid, signal.SIGKILL)
        fault.replaced(pool, 1, pid, fault.DEATH + fault.READY)
        assert.is_true(clean.gone(pid))
        fault.probe(pool)
        assert.equal(1, pool:stats().recycled.crash)
        assert.equal(1, count("worker_exit", "reason", "crash"))
        assert.equal(1, count("worker_exit", "signal", 9))
        assert.equal(0, count("task_lost"))
    end)

    it("with a wake-up: the task runs elsewhere at once", function()
        open(2, { retries = 5 })
        ready(pool)
        for i = 1, fault.scaled(100) do
            local pids = ready(pool, 1)
            local victim = pids[math.random(2)]
            local result = pool:apply_async(math.max, { i, 0 })
            if victim > 0 then
                c.kill(victim, signal.SIGKILL)
            end
            assert.equal(i, result:get(fault.HANG))
        end
    end)

    it("while decoding: the task runs as if nothing had been", function()
        open(1)
        local trap = setmetatable({ kills = 2, counter = 1 }, Trap)
        local got, attempt = pool:apply(function(v)
            c.add(2)
            return v, procpool.worker.attempt
        end, { trap })
        assert.equal("rebuilt", got)
        assert.equal(1, attempt)
        assert.equal(3, c.get(1))
        assert.equal(1, c.get(2))
        assert.equal(0, count("task_lost") + count("task_retry"))
    end)

    it("while decoding, again and again: the task is to blame", function()
        open(1)
        local trap = setmetatable({ kills = math.huge, counter = 1 }, Trap)
        local err = failure("lost", pool:apply_async(math.max, { trap }))
        assert.matches("before the task began, for the third time", err.message)
        assert.equal(3, c.get(1))
        fault.probe(pool)
    end)

    it("in the task: only that one is lost, and known at once", function()
        open(2)
        ready(pool)
        local other = pool:apply_async(fault.hang, { 1 })
        fault.counted(1, 1)
        local result = pool:apply_async(function()
            c.add(2)
            c.set(3, procpool.worker.pid)
            fault.die()
        end)
        fault.counted(2, 1)
        local begun = fault.now()
        local err = failure("lost", result)
        assert.is_true(fault.now() - begun < fault.DEATH)
        assert.equal(9, err.signal)
        assert.equal(c.get(3), err.pid)
        assert.equal(1, err.attempt)
        assert.matches("killed by signal 9", tostring(err))
        assert.equal(1, c.get(2))
        c.set(1, -1)
        assert.equal("released", other:get(fault.HANG))
        assert.equal(1, count("task_lost", "attempt", 1))
        assert.equal(1, pool:stats().lost)
    end)

    it("twice under a task with retries: it gets its value at the third attempt", function()
        open(2, { retries = 2 })
        local attempt = pool:apply(function()
            if c.add(1) <= 2 then
                fault.die()
            end
            return procpool.worker.attempt
        end)
        assert.equal(3, attempt)
        assert.equal(3, c.get(1))
        pool:poll()
        assert.equal(1, count("task_retry", "attempt", 1))
        assert.equal(1, count("task_retry", "attempt", 2))
        assert.equal(2, pool:stats().retried)
    end)

    it("by a poisonous task: lost after its retries, and the pool is well", function()
        open(2)
        local err = failure("lost", pool:apply_async(function()
            c.add(1)
            fault.die()
        end, nil, { retries = 2 }))
        assert.equal(3, err.attempt)
        assert.equal(3, c.get(1))
        fault.probe(pool)
        ready(pool)
    end)

    it("while encoding the result: lost, and not run again", function()
        open(1)
        local err = failure("lost", pool:apply_async(function()
            c.add(1)
            return setmetatable({ dies_encoding = true, counter = 2 }, Trap)
        end))
        assert.equal(9, err.signal)
        assert.equal(1, c.get(1))
        assert.equal(1, c.get(2))
        fault.probe(pool)
    end)

    it("in a finalizer of Lua's after the result: the result is kept", function()
        open(1)
        local result = pool:apply_async(function()
            setmetatable({}, { __gc = function() fault.die() end })
            return "kept"
        end)
        assert.equal("kept", result:get(fault.HANG))
        failure("lost", pool:apply_async(function()
            collectgarbage()
            return "too late"
        end))
        fault.probe(pool)
    end)

    it("in the pool's finalizer: the result is kept", function()
        open(1, { finalizer = function() fault.die() end, maxtasksperchild = 1 })
        for i = 1, 5 do
            assert.equal(i, pool:apply(math.max, { i, 0 }))
        end
        pool:close()
        assert(pool:join(fault.HANG))
    end)

    it("inside a chunk: its neighbours keep their results", function()
        open(2)
        local list, failures = pool:map(function(i)
            if i % 10 == 5 then
                fault.die()
            end
            c.add(1)
            return i
        end, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 },
            { chunksize = 8, errors = "collect" })
        assert.equal(2, failures)
        for i = 1, 16 do
            if i % 10 == 5 then
                assert.equal("lost", list[i].kind)
                assert.equal(i, list[i].index)
            else
                assert.equal(i, list[i])
            end
        end
        assert.equal(14, c.get(1))
    end)

    it("together with all others, work being queued: only the running tasks are lost", function()
        local n, total = 4, fault.scaled(300)
        local book = ledger.new(total)
        open(n)
        local pids = ready(pool)
        local results = {}
        for id = 1, total do
            results[id] = pool:apply_async(ledger.run, { id, c.sleep, 0.001 })
        end
        await(fault.HANG, function() return pool:stats().busy == n end)
        local begun = fault.now()
        for _, pid in ipairs(pids) do
            c.kill(pid, signal.SIGKILL)
        end
        for id, pid in ipairs(pids) do
            fault.replaced(pool, id, pid, fault.ENDED)
        end
        assert.is_true(fault.now() - begun < fault.ENDED)
        for id = 1, total do
            book:ended(id, pcall(results[id].get, results[id], fault.HANG))
        end
        book:check(0)
        local lost = book.kinds.lost or 0
        assert.is_true(lost <= n and lost >= 1, lost .. " lost")
        assert.equal(total - lost, book.kinds.ok)
        fault.probe(pool)
    end)

    it("every 5 ms, at random: every task has its value, none a second", function()
        local total, chunk = fault.scaled(4000), 20
        local book = ledger.new(total, 3)
        open(2, { retries = 1000 })
        ready(pool)
        local keeper = fault.keeper()
        local nemesis = fault.nemesis(0.005, function()
            -- only one that has begun a task: deaths at the start are counted
            if fault.strike(keeper, c.get(2 * total + math.random(2))) then
                c.set(2 * total + 3, 1)
            end
        end)
        local function work(id)
            c.set(2 * total + procpool.worker.id, procpool.worker.pid)
            local until_ = c.now() + 0.00005
            -- On a busy machine all could be over before the first strike.
            while c.now() < until_ or id == 1 and c.get(2 * total + 3) == 0 do end
            return id
        end
        local done, last, slowest = 0, fault.now(), 0
        local items = {}
        for id = 1, total do
            items[id] = { id, work, id }
        end
        local _ <close> = setmetatable({}, { __close = function() fault.stop(nemesis) end })
        for id, value in pool:imap_unordered(function(args)
            return ledger.run(table.unpack(args))
        end, items, { chunksize = chunk, buffersize = 2000 }) do
            assert.equal(id, value)
            book:ended(id, true)
            done = done + 1
            local now = fault.now()
            slowest, last = math.max(slowest, now - last), now
        end
        assert.equal(total, done)
        book:check(1000)
        assert.is_true(slowest < 1 * 10, ("no progress for %.1f s"):format(slowest))
        assert.is_true(pool:stats().recycled.crash > 0)
    end)

    for name, die in pairs({
        [signal.SIGSEGV] = c.segv, [signal.SIGBUS] = c.bus, [signal.SIGABRT] = c.abort,
        [signal.SIGFPE] = c.fpe, [signal.SIGILL] = c.ill,
    }) do
        it(("by signal %d, its own fault: lost, with that signal"):format(name), function()
            open(1)
            local err = failure("lost", pool:apply_async(die))
            assert.equal(name, err.signal)
            fault.probe(pool)
        end)
    end

    for sig = 1, 31 do
        local harmless = { [signal.SIGCHLD] = true, [signal.SIGCONT] = true,
            [signal.SIGURG] = true, [signal.SIGWINCH] = true, [signal.SIGINT] = true,
            [signal.SIGPIPE] = true, [signal.SIGTERM] = true }
        local stops = { [signal.SIGSTOP] = true, [signal.SIGTSTP] = true,
            [signal.SIGTTIN] = true, [signal.SIGTTOU] = true }
        if not stops[sig] then
            it(("by signal %d from outside, under a task"):format(sig), function()
                open(1)
                local pid = ready(pool)[1]
                local result = pool:apply_async(fault.hang, { 1 })
                fault.counted(1, 1)
                c.kill(pid, sig)
                if harmless[sig] then
                    c.set(1, -1)
                    assert.equal("released", result:get(fault.HANG))
                else
                    assert.equal(sig, failure("lost", result).signal)
                end
                fault.probe(pool)
            end)
        end
    end

    it("keeps the region out of its core", function()
        open(1)
        local pid = ready(pool)[1]
        local seen
        for size, flags in clean.read(("/proc/%d/smaps"):format(pid)):gmatch(
            "rw%-s[^\n]*/dev/zero %(deleted%)\nSize:%s*(%d+) kB\n.-VmFlags:([^\n]*)") do
            -- this file's counters are such a mapping too, a small one
            if tonumber(size) > 1024 then
                seen = true
                assert.matches(" dd ", flags, 1, true)
            end
        end
        assert.is_true(seen)
    end)

    it("by the end of its C stack: lost", function()
        open(1)
        local err = failure("lost", pool:apply_async(c.overflow))
        assert.equal(signal.SIGSEGV, err.signal)
        fault.probe(pool)
    end)

    it("by _exit, whatever the status: lost", function()
        open(1)
        for _, code in ipairs({ 0, 7 }) do
            local err = failure("lost", pool:apply_async(c.quit, { code }))
            assert.equal(code, err.exitcode)
            assert.is_nil(err.signal)
            assert.matches("exited with status " .. code .. " under the task", err.message)
        end
        fault.probe(pool)
    end)

    it("by C's exit: an error, and the next task runs", function()
        open(1)
        local err = failure("error", pool:apply_async(c.exit, { 5 }))
        assert.matches("task called os.exit%(5%)", err.message)
        fault.probe(pool)
    end)

    it("by exec: lost, and the program is killed", function()
        open(1)
        local err = failure("lost", pool:apply_async(function()
            c.set(1, procpool.worker.pid)
            c.exec("/bin/sleep", "1000")
        end))
        assert.matches("executed another program", err.message)
        assert.is_true(await(fault.DEATH, clean.dead, c.get(1)))
        fault.probe(pool)
    end)

    it("with SIGTERM while idle: leaves in order", function()
        open(1)
        local pid = ready(pool)[1]
        c.kill(pid, signal.SIGTERM)
        fault.replaced(pool, 1, pid, fault.DEATH + fault.READY)
        assert.is_true(await(fault.READY, function()
            return pool:stats().recycled.request == 1
        end))
        assert.equal(0, pool:stats().recycled.crash)
    end)

    it("with SIGTERM under a task: finishes it and leaves in order", function()
        open(1)
        local pid = ready(pool)[1]
        local result = pool:apply_async(fault.hang, { 1 })
        fault.counted(1, 1)
        c.kill(pid, signal.SIGTERM)
        c.set(1, -1)
        assert.equal("released", result:get(fault.HANG))
        fault.replaced(pool, 1, pid, fault.DEATH + fault.READY)
        assert.is_true(await(fault.READY, function()
            return pool:stats().recycled.request == 1
        end))
        assert.equal(0, pool:stats().recycled.crash)
    end)

    it("by terminate though its task ignores SIGTERM", function()
        open(1)
        local result = pool:apply_async(function()
            c.signal(15, "ignore")
            c.block(true)
            fault.hang(1)
        end)
        fault.counted(1, 1)
        local begun = fault.now()
        pool:terminate()
        assert.is_true(fault.now() - begun < 1.5)
        failure("terminated", result)
        assert(pool:join(fault.ENDED))
    end)
end)

describe("a worker that is stopped", function()
    local pool
    before_each(function()
        c.counters(16)
        pool = procpool.new(2)
        ready(pool)
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.HANG))
        c.counters(0)
    end)

    it("without a time limit: the others go on, join tells, terminate ends it", function()
        local hung = pool:apply_async(function()
            c.set(2, procpool.worker.pid)
            fault.hang(1)
        end)
        fault.counted(1, 1)
        local pid = c.get(2)
        c.kill(pid, signal.SIGSTOP)
        for _ = 1, 20 do
            fault.probe(pool)
        end
        pool:close()
        assert.same({ n = 2, nil, "timeout" }, table.pack(pool:join(0.2)))
        local begun = fault.now()
        pool:terminate()
        assert.is_true(fault.now() - begun < 1.5)
        failure("terminated", hung)
        assert(pool:join(fault.ENDED))
        assert.is_true(clean.gone(pid))
    end)

    it("idle: queued tasks run on the other", function()
        local pids = ready(pool)
        c.kill(pids[1], signal.SIGSTOP)
        for _ = 1, 20 do
            fault.probe(pool)
        end
        c.kill(pids[1], signal.SIGCONT)
        fault.probe(pool)
    end)

    it("with a time limit: the limit strikes once, a late continuation does nothing", function()
        local result = pool:apply_async(function()
            c.set(2, procpool.worker.pid)
            fault.hang(1)
        end, nil, { timeout = 0.1, grace = 0.1 })
        fault.counted(1, 1)
        c.kill(c.get(2), signal.SIGSTOP)
        failure("timelimit", result)
        c.kill(c.get(2), signal.SIGCONT)
        for _ = 1, 20 do
            fault.probe(pool)
        end
        assert.equal(1, pool:stats().timelimit)
    end)
end)

describe("a task", function()
    local pool
    before_each(function()
        c.counters(16)
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.HANG))
        c.counters(0)
    end)

    for _, raw in ipairs({ false, true }) do
        it(("that forks (%s): its child is no worker, one result only")
            :format(raw and "the system call" or "libc"), function()
            pool = procpool.new(1)
            for i = 1, 20 do
                local value, pid = pool:apply_async(function(k, by_call)
                    local child = c.fork(by_call)
                    if child ~= 0 then
                        c.wait(child)
                    end
                    return k, procpool.worker.pid
                end, { i, raw }):get(fault.HANG)
                assert.equal(i, value)
                assert.equal(fault.pids(pool)[1], pid)
            end
            assert.equal(0, pool:stats().recycled.crash)
        end)
    end

    it("that forks: a child that raises or calls os.exit is no worker either", function()
        pool = procpool.new(1)
        for _, how in ipairs({ "raise", "exit" }) do
            local err = failure("error", pool:apply_async(function(way)
                local child = c.fork()
                if child ~= 0 then
                    c.wait(child)
                    error("the parent's", 0)
                elseif way == "exit" then
                    os.exit(3)
                end
                error("the child's", 0)
            end, { how }))
            assert.equal("the parent's", err.value)
        end
        fault.probe(pool)
    end)

    it("that starts a daemon: it outlives its worker's and its pool's orderly end", function()
        for _, way in ipairs({ "close", "terminate" }) do
            pool = procpool.new(1)
            local daemon = pool:apply_async(function()
                local pipe = io.popen("setsid sleep 100 >/dev/null 2>&1 & echo $!")
                local pid = pipe:read("n")
                pipe:close()
                procpool.worker.recycle()
                return pid
            end):get(fault.HANG)
            fault.probe(pool)
            assert.equal(2, pool:stats().workers[1].generation)
            assert.is_truthy(clean.state(daemon))
            pool[way](pool)
            assert(pool:join(fault.HANG))
            if way == "close" then
                assert.is_truthy(clean.state(daemon))
                c.kill(daemon, signal.SIGKILL)
            end
            assert.is_true(await(fault.DEATH, clean.dead, daemon))
        end
    end)

    it("that starts a process: killed with its worker at the time limit", function()
        pool = procpool.new(1, { grace = 0.1 })
        failure("timelimit", pool:apply_async(function()
            local pipe = io.popen("sleep 100 >/dev/null 2>&1 & echo $!")
            c.set(1, pipe:read("n"))
            while true do
                pcall(fault.hang, 2)
            end
        end, nil, { timeout = 0.3 }))
        assert.is_true(await(fault.DEATH, clean.dead, c.get(1)))
    end)

    it("that closes descriptors: its worker goes on or dies, the pool lives", function()
        pool = procpool.new(1)
        local ok, err = pcall(pool.apply, pool, c.close_range, { 3, 1023 })
        assert.is_true(ok or err.kind == "lost")
        for _ = 1, 20 do
            fault.probe(pool)
        end
        pool:close()
        assert(pool:join(fault.HANG))
    end)

    it("that calls os.exit: an error, its own output once, nobody else's at all", function()
        for _, call in ipairs({ "os.exit()", "os.exit(3)", "os.exit(true, true)",
            "os.exit(false, true)", "require('chelper').exit(3)" }) do
            local result = script.run(function(pp, ch, _, source)
                ch.atexit("farewell\n")
                io.stdout:setvbuf("full")
                io.write("before\n")
                sentinel = setmetatable({}, { -- luacheck: ignore 111
                    __gc = function() io.write("collected\n") end,
                })
                local closed <close> = setmetatable({}, { -- luacheck: ignore 211
                    __close = function() io.write("closed\n") end,
                })
                local own <close> = pp.new(1)
                local ok, err = pcall(own.apply, own, function(text)
                    io.write("from the task\n")
                    load(text)()
                end, { source })
                io.write(tostring(ok), " ", err.kind, " ", err.message, "\n")
                io.write(own:apply(string.rep, { "a", 3 }), "\n")
            end, { args = { call } })
            local code = call:match("3") or call:match("false") and "1" or "0"
            local lines = {}
            for line in result.out:gmatch("[^\n]+") do
                lines[#lines + 1] = line
            end
            -- (exit writes the farewell before what is buffered)
            table.sort(lines)
            assert.same({ "aaa", "before", "closed", "collected",
                "false error task called os.exit(" .. code .. ")", "farewell",
                "from the task" }, lines, call)
            assert.equal("", result.err)
            assert.equal(0, result.status)
        end
        pool = procpool.new(0)
    end)
end)
