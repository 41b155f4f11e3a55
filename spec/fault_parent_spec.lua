-- The parent is killed, leaves without a word, is interrupted, stopped, forks,
-- executes: nothing is left behind, and nothing hangs.
-- limit: 300 s

local describe, it, assert = describe, it, assert
local pending = pending
local _ENV = _G -- luacheck: ignore 211

local clean = require("spec.support.clean")
local fault = require("spec.support.fault")
local script = require("spec.support.script")
local signal = require("posix.signal")
local unistd = require("posix.unistd")

-- A pool whose workers never come to an end, children of theirs, and "ready".
local function busy(pp, c)
    local fault_ = require("spec.support.fault")
    c.counters(4)
    local pool = pp.new(4) -- luacheck: ignore 431
    for _ = 1, 4 do
        pool:apply_async(function()
            os.execute("sleep 1000 &")
            c.add(1)
            while true do end
        end)
    end
    fault_.counted(1, 4)
    print("ready")
    c.sleep(1000)
end

describe("a parent that dies with busy workers", function()
    for name, sig in pairs({ SIGKILL = 9, SIGTERM = 15, SIGHUP = 1, SIGSEGV = 11, SIGQUIT = 3 }) do
        it(("by %s: every process is gone within a second"):format(name), function()
            local p <close> = script.start(busy)
            p:line("ready")
            assert.is_true(#p:family() >= 6)
            p:kill(sig)
            p:gone(fault.ENDED)
            assert.same({ "signal", sig }, { p:wait().how, p:wait().status })
        end)
    end

    it("by its own segmentation fault", function()
        local p <close> = script.start(function(pp, c)
            local pool = pp.new(2)
            pool:apply_async(function() while true do end end)
            pool:apply(math.abs, { 1 })
            c.segv()
        end)
        assert.equal(11, p:wait().status)
        p:gone(fault.ENDED)
    end)

    it("with two pools: both go", function()
        local p <close> = script.start(function(pp, c)
            local one, two = pp.new(2), pp.new(2)
            one:apply(math.abs, { 1 })
            two:apply(math.abs, { 1 })
            one:apply_async(function() while true do end end)
            two:apply_async(function() while true do end end)
            print("ready")
            c.sleep(1000)
        end)
        p:line("ready")
        assert.is_true(#p:family() >= 5)
        p:kill(9)
        p:gone(fault.ENDED)
    end)

    it("with pools in tasks, three deep", function()
        local p <close> = script.start(function(pp, c)
            c.counters(1)
            local function deeper(n)
                if n > 0 then
                    local pool = require("procpool").new(1)
                    return pool:apply(deeper, { n - 1 })
                end
                c.add(1)
                while true do end
            end
            local pool = pp.new(1)
            pool:apply_async(deeper, { 2 })
            require("spec.support.fault").counted(1, 1)
            print("ready")
            c.sleep(1000)
        end)
        p:line("ready")
        assert.is_true(#p:family() >= 7)
        p:kill(9)
        p:gone(fault.ENDED)
    end)

    it("at any moment of new", function()
        for _ = 1, fault.scaled(12) do
            local p <close> = script.start(function(pp)
                print("ready")
                while true do
                    local pool = pp.new(2)
                    pool:terminate()
                end
            end)
            p:line("ready")
            clean.pause(math.random() * 0.05)
            p:kill(9)
            p:gone(fault.ENDED)
        end
    end)
end)

describe("a program that ends without closing its pool", function()
    local function ends(status, errors, f)
        local result = script.run(f, { gone = fault.ENDED })
        assert.equal("exit", result.how)
        assert.equal(status, result.status, result.err)
        assert.matches(errors, result.err)
        assert.is_true(result.took < fault.ENDED, "took " .. result.took)
    end

    it("by its last line", function()
        ends(0, "^$", function(pp)
            local pool = pp.new(2)
            pool:apply(math.abs, { 1 })
            pool:apply_async(function() while true do end end)
            print(pool)
        end)
        ends(0, "^$", function(pp)
            -- luacheck: ignore 111 112 113
            kept = pp.new(2)
            results = {}
            for i = 1, 100 do
                results[i] = kept:apply_async(function()
                    require("chelper").sleep(0.1)
                end)
            end
        end)
    end)

    it("by os.exit", function()
        ends(0, "^$", function(pp)
            local pool = pp.new(2)
            pool:apply(math.abs, { 1 })
            pool:apply_async(function() while true do end end)
            os.exit(0)
        end)
        ends(3, "^$", function(pp)
            local pool = pp.new(2)
            pool:apply(math.abs, { 1 })
            pool:apply_async(function() while true do end end)
            os.exit(3, true)
        end)
    end)

    it("by C's _exit and abort", function()
        ends(4, "^$", function(pp, c)
            local pool = pp.new(2)
            pool:apply(math.abs, { 1 })
            pool:apply_async(function() while true do end end)
            c.quit(4)
        end)
    end)

    it("by an error, the pool in a <close> variable: the message is kept", function()
        ends(1, "the very message.*stack traceback", function(pp)
            local pool <close> = pp.new(2)
            pool:apply(math.abs, { 1 })
            pool:apply_async(function() while true do end end)
            error("the very message")
        end)
    end)

    it("by a task's error, uncaught: it is readable", function()
        ends(1, "the task's message.*in the worker:.*stack traceback", function(pp)
            local pool <close> = pp.new(1)
            pool:apply(function() error("the task's message") end)
        end)
    end)
end)

describe("Ctrl-C", function()
    local function interrupted(name, f)
        it("in " .. name .. ": the call ends with interrupted!", function()
            local p <close> = script.start(f, { tty = true })
            p:line("ready")
            clean.pause(0.05)
            local begun = fault.now()
            p:type("\3")
            local result = p:wait()
            assert.is_true(fault.now() - begun < 5)
            assert.same({ "exit", 1 }, { result.how, result.status }, result.err)
            assert.matches("interrupted!", result.err)
            assert.equal(1, select(2, result.err:gsub("interrupted!", "")))
            assert.equal(1, select(2, result.err:gsub("stack traceback", "")))
            p:gone(fault.ENDED)
        end)
    end

    interrupted("apply", function(pp)
        local pool = pp.new(2)
        pool:apply(math.abs, { 1 })
        print("ready")
        pool:apply(function() while true do end end)
    end)
    interrupted("get with a timeout", function(pp)
        local pool = pp.new(2)
        local result = pool:apply_async(function() while true do end end)
        print("ready")
        result:get(100)
    end)
    interrupted("map", function(pp, c)
        local pool = pp.new(2)
        print("ready")
        pool:map(c.sleep, { 100, 100, 100 })
    end)
    interrupted("imap", function(pp, c)
        local pool = pp.new(2)
        print("ready")
        for _ in pool:imap(c.sleep, { 100, 100, 100 }) do end -- luacheck: ignore 542
    end)
    interrupted("join", function(pp, c)
        local pool = pp.new(2)
        pool:apply_async(c.sleep, { 100 })
        pool:close()
        print("ready")
        pool:join()
    end)
    interrupted("the closing of a <close> variable", function(pp, c)
        local pool <close> = pp.new(2)
        pool:apply_async(c.sleep, { 100 })
        print("ready")
    end)
    interrupted("a submission that waits for room", function(pp, c)
        local pool = pp.new(2, { maxpending = 1 })
        pool:apply_async(c.sleep, { 100 })
        print("ready")
        pool:apply_async(c.sleep, { 100 })
    end)
    interrupted("poll", function(pp, c)
        local pool = pp.new(2)
        pool:apply_async(c.sleep, { 100 })
        print("ready")
        pool:poll(100)
    end)
    interrupted("Lua code, when everything has finished", function(pp)
        local pool = pp.new(2)
        pool:map(math.abs, { -1, -2 })
        pool:close()
        pool:join()
        print("ready")
        while true do end
    end)

    -- A handler that runs between the last look at Lua and the sleep must not be
    -- forgotten in it. (By a signal that can come more than once.)
    it("at any moment before a wait sleeps: it is not lost", function()
        local result = script.run(function(pp, c)
            c.counters(2)
            local fault_ = require("spec.support.fault")
            local pool <close> = pp.new(1)
            local hung = pool:apply_async(fault_.hang, { 2 })
            fault_.counted(2, 1)
            c.interrupts(10)
            local parent = c.getpid()
            local nemesis = fault_.nemesis(0, function()
                if c.get(1) == 1 then -- the wait begins, or is about to
                    c.set(1, 0)
                    local till = c.now() + math.random() * 0.0001
                    while c.now() < till do end
                    c.kill(parent, 10)
                end
            end)
            local lost = 0
            for _ = 1, 400 do
                local ok, err = pcall(function()
                    c.set(1, 1)
                    hung:get(0.5)
                end)
                assert(not ok)
                lost = lost + (tostring(err):find("interrupted!") and 0 or 1)
            end
            fault_.stop(nemesis)
            c.set(2, -1)
            print(lost, hung:get(30))
        end)
        assert.equal("0\treleased\n", result.out, result.err)
    end)

    it("caught: the pool goes on", function()
        local p <close> = script.start(function(pp, c)
            c.counters(2)
            local pool <close> = pp.new(2)
            local result = pool:apply_async(function()
                c.add(1)
                c.sleep(0.5)
                return "undisturbed"
            end)
            require("spec.support.fault").counted(1, 1)
            print("ready")
            print(pcall(result.get, result))
            print(result:get(30))
            print(pool:apply(math.max, { 1, 2 }), pool:stats().recycled.crash)
        end, { tty = true })
        p:line("ready")
        clean.pause(0.05)
        p:type("\3")
        local result = p:wait()
        assert.matches("false\t[^\n]*interrupted!\nundisturbed\n2\t0\n$", result.out)
        assert.equal(0, result.status)
        p:gone(fault.ENDED)
    end)

    it("twice: nothing is left", function()
        for _ = 1, 3 do
            local p <close> = script.start(function(pp)
                local pool <close> = pp.new(2)
                print("ready")
                pool:map(function() while true do end end, { 1, 2, 3 })
            end, { tty = true })
            p:line("ready")
            p:type("\3")
            clean.pause(math.random() * 0.02)
            p:type("\3")
            local result = p:wait()
            assert.is_true(result.how == "exit" and result.status == 1
                or result.how == "signal" and result.status == 2)
            p:gone(fault.ENDED)
        end
    end)
end)

describe("a parent that is stopped and goes on", function()
    it("finds its results; a wait counts the time that passed", function()
        local p <close> = script.start(function(pp, c)
            c.counters(2)
            local pool <close> = pp.new(2)
            local results = {}
            for i = 1, 20 do
                results[i] = pool:apply_async(c.sleep, { 0.01 })
            end
            local hung = pool:apply_async(require("spec.support.fault").hang, { 1 })
            print("ready")
            local begun = c.now()
            local ok, err = pcall(hung.get, hung, 3)
            local took = c.now() - begun
            print(ok, err.kind, took > 3.4 and took < 12.4)
            for i = 1, 20 do
                results[i]:get(30)
            end
            c.set(1, -1)
            print(hung:get(30))
        end)
        p:line("ready")
        p:kill(signal.SIGSTOP) -- within the 3 s
        clean.pause(3.5)
        p:kill(signal.SIGCONT)
        assert.equal("ready\nfalse\ttimeout\ttrue\nreleased\n", p:wait().out)
        p:gone(fault.ENDED)
    end)
end)

describe("a parent that executes another program", function()
    it("takes its pool's processes with it", function()
        local p <close> = script.start(function(pp, c)
            local pool = pp.new(2)
            pool:apply(math.abs, { 1 })
            pool:apply_async(function() while true do end end)
            print("ready")
            c.exec("/bin/sleep", "1000")
        end)
        p:line("ready")
        assert.is_true(fault.await(fault.ENDED, function()
            local left = p:family()
            return #left == 1 and left[1] == p.pid
        end))
        assert.matches("^/bin/sleep", clean.read(("/proc/%d/cmdline"):format(p.pid)))
    end)
end)

describe("a pool made in a thread that ends", function()
    it("lives on, and dies with the process", function()
        local p <close> = script.start(function(pp, c)
            local pool
            c.thread(function()
                pool = pp.new(2)
                return pool:apply(math.max, { 1, 2 })
            end)
            for i = 1, 20 do
                c.sleep(0.005)
                assert(pool:apply(math.max, { i, 0 }) == i)
            end
            print("ready")
            c.sleep(1000)
        end)
        p:line("ready")
        p:kill(9)
        p:gone(fault.ENDED)
    end)
end)

describe("a parent whose children's ends others take", function()
    it("with SIGCHLD ignored after new: workers are replaced, join returns", function()
        local result = script.run(function(pp, c)
            local fault_ = require("spec.support.fault")
            local pool = pp.new(2)
            c.signal(17, "ignore")
            local pid = fault_.ready(pool)[1]
            c.kill(pid, 9)
            fault_.replaced(pool, 1, pid, 20)
            pool:close()
            print(pool:join(20), pool:state())
            local broken = pp.new(2)
            fault_.ready(broken)
            c.kill(fault_.keeper(), 9)
            print(pcall(broken.apply, broken, c.sleep, { 100 }))
            broken:terminate()
            print(broken:join(20))
        end)
        assert.matches("^true\tclosed\nfalse\tthe pool's keeper died[^\n]*\ntrue\n$", result.out)
        assert.equal("", result.err)
    end)

    it("with a foreign wait for any child", function()
        local result = script.run(function(pp, c)
            local fault_ = require("spec.support.fault")
            local pool = pp.new(2)
            fault_.ready(pool)
            local keeper = fault_.keeper()
            c.kill(keeper, 9)
            print(c.wait(-1) == keeper)
            print(pcall(pool.apply, pool, c.sleep, { 100 }))
            print(pool:state())
            pool:close()
            print(pool:join(20))
            local closed = pp.new(2)
            print(closed:apply(math.max, { 1, 2 }))
            keeper = fault_.keeper()
            closed:close()
            print(c.wait(-1) == keeper)
            print(closed:join(20), closed:state())
        end)
        assert.matches("^true\nfalse\tthe pool's keeper died[^\n]*\nbroken\ntrue\n2\ntrue\n"
            .. "true\tclosed\n$", result.out)
        assert.equal("", result.err)
    end)
end)

describe("a child that the user forks", function()
    it("may not use the pool, and does it no harm by collecting it or exiting", function()
        local result = script.run(function(pp, c)
            local fault_ = require("spec.support.fault")
            local pool = pp.new(2)
            local results, owner = {}, c.getpid()
            for i = 1, 20 do
                results[i] = pool:apply_async(math.max, { i, 0 })
            end
            local hung = pool:apply_async(fault_.hang, { 1 })
            for _, how in ipairs({ "exit", "close", "end" }) do
                if c.fork() == 0 then
                    local iterator = { next = function() return pool:imap(math.abs, { 1 }):next() end }
                    for name, call in pairs({
                        apply = function() pool:apply(math.abs, { 1 }) end,
                        apply_async = function() pool:apply_async(math.abs, { 1 }) end,
                        map = function() pool:map(math.abs, { 1 }) end,
                        imap = iterator.next,
                        close = function() pool:close() end,
                        terminate = function() pool:terminate() end,
                        join = function() pool:join() end,
                        resize = function() pool:resize(3) end,
                        recycle = function() pool:recycle() end,
                        poll = function() pool:poll() end,
                        fileno = function() pool:fileno() end,
                        stats = function() pool:stats() end,
                        state = function() pool:state() end,
                        get = function() hung:get() end,
                        cancel = function() hung:cancel() end,
                    }) do
                        local ok, err = pcall(call)
                        if ok or not tostring(err):find("belongs to process " .. owner, 1, true) then
                            print(name, ok, err)
                        end
                    end
                    if how == "close" then
                        local _ <close> = pool
                    end
                    pool, results, hung = nil, nil, nil
                    collectgarbage()
                    collectgarbage()
                    if how == "exit" then
                        os.exit(0, true)
                    end
                    os.exit(0)
                end
                print(select(2, c.wait()))
            end
            for i = 1, 20 do
                assert(results[i]:get(30) == i)
            end
            print(pool:apply(math.max, { 1, 2 }), pool:stats().recycled.crash, pool:state())
            pool:terminate()
            print(pool:join(20))
        end)
        assert.equal("exit\t0\nexit\t0\nexit\t0\n2\t0\trunning\ntrue\n", result.out, result.err)
        assert.equal("", result.err)
    end)

    it("may have a pool of its own, and outlive its parent's", function()
        local result = script.run(function(pp, c)
            local pool = pp.new(1)
            pool:apply(math.abs, { 1 })
            if c.fork() == 0 then
                local own <close> = pp.new(1)
                assert(own:apply(math.max, { 1, 2 }) == 2)
                c.sleep(0.1)
                assert(own:apply(math.max, { 1, 2 }) == 2)
                print("child")
                os.exit(0, true)
            end
            pool:close()
            print(pool:join(20))
            c.wait()
        end)
        assert.equal("true\nchild\n", result.out, result.err)
    end)
end)

describe("a worker that gives up its user", function()
    it("dies with keeper and parent all the same", function()
        if unistd.getuid() ~= 0 then
            pending("needs root")
            return
        end
        for _, victim in ipairs({ "parent", "keeper" }) do
            local p <close> = script.start(function(pp, c, clean_)
                local pool = pp.new(2, { initializer = function()
                    assert(require("posix.unistd").setpid("u", 65534))
                end })
                pool:apply(math.abs, { 1 })
                pool:apply_async(function() while true do end end)
                print("ready", clean_.children()[1])
                c.sleep(1000)
            end)
            local keeper = tonumber((p:line("ready\t(%d+)")))
            -- one worker did the work; the other may not have been forked yet
            assert.is_true(fault.await(fault.ENDED, function() return #p:family() >= 4 end))
            if victim == "keeper" then
                signal.kill(keeper, signal.SIGKILL)
                assert.is_true(fault.await(fault.ENDED, function()
                    -- the keeper itself stays unreaped: the script sleeps
                    return #p:family() == 1
                end))
            end
            p:kill(9)
            p:gone(fault.ENDED)
        end
    end)
end)

describe("a parent without descriptors", function()
    it("0 to 2: none of the pool's lands there", function()
        local path = os.tmpname()
        local p <close> = script.start(function(pp, c, clean_, out)
            local fault_ = require("spec.support.fault")
            local pool = pp.new(2)
            local pids = fault_.ready(pool)
            pids[#pids + 1] = fault_.keeper()
            pids[#pids + 1] = c.getpid()
            local pool_fd = pool:fileno()
            assert(pool_fd > 2)
            local file = assert(io.open(out, "w")) -- lands on 0 itself
            for _, pid in ipairs(pids) do
                for fd = 0, 2 do
                    local target = require("posix.unistd").readlink(("/proc/%d/fd/%d"):format(pid, fd))
                    if target and target ~= out and target ~= "/dev/null" then
                        file:write(pid, " ", fd, " ", target, "\n")
                    end
                end
            end
            pool:apply(print, { "into nothing" })
            pool:apply(function() io.stderr:write("into nothing") end)
            file:write(pool:apply(math.max, { 1, 2 }), " ", clean_.state(pids[1]), "\n")
            pool:close()
            assert(pool:join(20))
            file:write("joined\n")
            file:close()
        end, { command = { "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh" }, args = { path } })
        p:wait()
        p:gone(fault.ENDED)
        assert.matches("^2 %a\njoined\n$", clean.read(path))
        os.remove(path)
    end)

    it("all of them, lost while it runs: broken, never corrupted", function()
        local result = script.run(function(pp, c)
            local pool = pp.new(2)
            pool:apply(math.abs, { 1 })
            local result = pool:apply_async(c.sleep, { 0.2 })
            c.close_range(3, 1023)
            local ok, err = pcall(result.get, result, 30)
            print(ok or err.kind == "broken")
            local again, trouble = pcall(pool.apply, pool, math.abs, { 1 })
            print(again or trouble.kind == "broken")
            pool:terminate()
            print((pool:join(20)))
            local next_ <close> = pp.new(1)
            print(next_:apply(math.max, { 1, 2 }))
        end, { gone = fault.ENDED })
        assert.equal("true\ntrue\ntrue\n2\n", result.out, result.err)
    end)
end)

describe("a parent with a thread that allocates without end", function()
    it("makes pools whose workers work", function()
        if fault.asan then
            pending("an address sanitizer's allocator has locks that a fork does not free")
            return
        end
        local result = script.run(function(pp, c)
            c.hammer(true)
            for i = 1, 25 do
                local pool <close> = pp.new(2, { initializer = function()
                    for k = 1, 100 do
                        local _ = ("x"):rep(k * 50)
                    end
                end })
                assert(pool:apply(math.max, { i, 0 }) == i)
            end
            c.hammer(false)
            print("done")
        end)
        assert.equal("done\n", result.out, result.err)
    end)
end)
