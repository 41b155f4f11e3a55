-- Nothing is left to have: descriptors, address space, the region, time. And
-- odd places to be: one CPU, a namespace of its own, no /proc, a wall clock
-- that jumps, a storm of signals.
-- limit: 300 s

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local pending = pending
local _ENV = _G -- luacheck: ignore 211

local c = require("chelper")
local clean = require("spec.support.clean")
local fault = require("spec.support.fault")
local ledger = require("spec.support.ledger")
local procpool = require("procpool")
local script = require("spec.support.script")
local unistd = require("posix.unistd")

local root = unistd.getuid() == 0

-- Can a command be run here? (Containers often forbid namespaces.)
local function possible(command)
    return root and os.execute(command .. " >/dev/null 2>&1") == true
end

describe("a process that has no descriptors left", function()
    it("gets an ordinary error from new, or a broken pool, or a good one; all is clean", function()
        local result = script.run(function(pp, ch, clean_)
            local fault_ = require("spec.support.fault")
            pp.new(1):terminate()
            collectgarbage()
            local outcomes = {}
            local before = clean_.snapshot()
            for n = 4, 40 do
                ch.limit("nofile", n)
                local ok, err = pcall(function()
                    local pool <close> = pp.new(2)
                    return pool:apply_async(math.max, { n, 0 }):get(fault_.HANG)
                end)
                ch.limit("nofile", -1)
                local kind = ok and "good" or type(err) == "table" and err.kind or "error"
                outcomes[kind] = (outcomes[kind] or 0) + 1
                if ok and err ~= n or not ok and not tostring(err):find("Too many open files") then
                    print(n, ok, err)
                end
                local fine, what = clean_.check(before)
                if not fine then
                    print(n, what)
                    os.exit(1)
                end
            end
            print(outcomes.good > 5, outcomes.error > 5)
        end)
        assert.equal("true\ttrue\n", result.out, result.err)
    end)

    it("gets them while the pool runs: replacements are retried, then fine again", function()
        local result = script.run(function(pp, ch)
            local fault_ = require("spec.support.fault")
            local pool <close> = pp.new(2)
            local pids = fault_.ready(pool)
            local keeper = fault_.keeper()
            ch.limit("nofile", 3, keeper)
            ch.kill(pids[1], 9)
            for _ = 1, 20 do
                fault_.probe(pool)
                ch.sleep(0.01)
            end
            ch.limit("nofile", -1, keeper)
            fault_.replaced(pool, 1, pids[1], 20)
            print("replaced")
        end)
        assert.equal("replaced\n", result.out, result.err)
    end)
end)

describe("a process with little address space", function()
    it("gets a smaller region, or an error that names size and limit", function()
        if fault.asan then
            pending("an address sanitizer needs terabytes itself")
            return
        end
        local result = script.run(function(pp, ch, clean_)
            local fault_ = require("spec.support.fault")
            pp.new(1):terminate()
            collectgarbage()
            local good, bad = 0, 0
            local before = clean_.snapshot()
            for _, mib in ipairs({ 24, 32, 64, 128, 256, 512, 1024, 4096, 65536, 1 << 20, 1 << 24 }) do
                ch.limit("as", mib << 20)
                local ok, err = pcall(function()
                    local pool <close> = pp.new(2)
                    return pool:apply_async(string.rep, { "x", 100000 }):get(fault_.HANG)
                end)
                ch.limit("as", -1)
                if ok and #err == 100000 then
                    good = good + 1
                elseif not ok and tostring(err):find("cannot reserve %d+ MiB of shared memory: "
                    .. "Cannot allocate memory %(RLIMIT_AS is " .. mib .. " MiB%)") then
                    bad = bad + 1
                elseif ok or not tostring(err):find("memory") then
                    print(mib, ok, err)
                end
                assert(clean_.check(before))
            end
            print(good >= 6, bad >= 1)
        end)
        assert.equal("true\ttrue\n", result.out, result.err)
    end)
end)

describe("a parent that has no memory for a large result", function()
    it("is told so, as by Lua itself; the next one arrives", function()
        if fault.asan then
            pending("an address sanitizer needs terabytes itself")
            return
        end
        local result = script.run(function(pp, ch)
            local core = require("procpool.core")
            local pool <close> = pp.new(1)
            local function rep(n) return ("x"):rep(n) end
            local message = core.encode("args", rep(64 << 20))
            local size = 8 << 20
            assert(#pool:apply(rep, { size }) == size)
            for i = 1, 20 do
                ch.limit("as", 1 << 20) -- less than there is: nothing new is granted
                local told, why = pcall(core.decode, message)
                local made, problem = pcall(core.list, 4000000)
                ch.limit("as", -1)
                -- Whatever the allocator is now, it is used a lot.
                local list = {}
                for k = 1, 1000 do list[k] = { tostring(k) .. i } end
                assert(list[1000][1] == "1000" .. i)
                collectgarbage()
                if told or made or why ~= problem then print(told, why, made, problem) end
                local ok, back = core.decode(message)
                assert(ok and #back == 64 << 20)
                assert(#pool:apply(rep, { size + i }) == size + i)
            end
            print(select(2, pcall(function()
                ch.limit("as", 1 << 20)
                local _ <close> = setmetatable({}, { __close = function() ch.limit("as", -1) end })
                core.decode(message)
            end)))
        end)
        assert.equal("not enough memory\n", result.out, result.err)
    end)
end)

describe("a full region", function()
    it("lets 1 MiB each way through 64 MiB, however often: maps, iterators, calls", function()
        local result = script.run(function(pp, ch, _, n)
            local fault_ = require("spec.support.fault")
            n = tonumber(n)
            local pool <close> = pp.new(2)
            local piece = ("x"):rep(1 << 20)
            local function items()
                local i = 0
                return function()
                    i = i + 1
                    return i <= n and piece or nil
                end
            end
            local function echo(s) return s end
            local seen = 0
            for _, s in pool:imap(echo, items(), { buffersize = 200 }) do
                assert(#s == 1 << 20)
                seen = seen + 1
            end
            print(seen == n)
            print(#pool:map(function(s) return #s end, items(), 3) == n)
            seen = 0
            for _ = 1, n do
                pool:apply_async(echo, { piece }, { callback = function(s)
                    seen = seen + #s
                end })
            end
            while seen < n << 20 do
                pool:poll(fault_.HANG)
            end
            print(seen == n << 20)
            local results = {}
            for i = 1, 100 do -- results nobody takes meanwhile
                results[i] = pool:apply_async(string.rep, { "y", 1 << 20 })
            end
            ch.sleep(0.2)
            for i = 1, 100 do
                assert(#results[i]:get(fault_.HANG) == 1 << 20)
            end
            print(pool:stats().bytes.shared < 1 << 20)
        end, { env = { PROCPOOL_REGION = tostring(64 << 20) }, args = { fault.scaled(300) },
            seconds = 200 })
        assert.equal("true\ntrue\ntrue\ntrue\n", result.out, result.err)
    end)

    it("refuses what is larger than it, and goes on", function()
        local result = script.run(function(pp)
            local fault_ = require("spec.support.fault")
            local pool <close> = pp.new(2)
            local big = ("x"):rep(32 << 20)
            for _, try in ipairs({
                function() return pool:apply(function(s) return #s end, { big }) end,
                function() return pool:map(function(s) return #s end, { big }) end,
                function() return pool:apply(function() return #big end) end,
                function() return pool:apply_async(string.rep, { "x", 32 << 20 }):get(fault_.HANG) end,
                function() return pool:apply(function() error(("x"):rep(32 << 20), 0) end) end,
            }) do
                local ok, err = pcall(try)
                local need, room = tostring(err):match("(%d+) bytes do not fit, there is room for (%d+)")
                need, room = tonumber(need), tonumber(room)
                print(ok, ok or err.kind, room and need > room and room > 1 << 18)
                fault_.probe(pool)
            end
        end, { env = { PROCPOOL_REGION = tostring(16 << 20) } })
        assert.equal(("false\tunserializable\ttrue\n"):rep(4) .. "false\terror\tnil\n",
            result.out, result.err)
    end)
end)

describe("an item larger than the region", function()
    it("fails alone: its neighbours are run, whatever the call", function()
        local result = script.run(function(pp)
            local pool <close> = pp.new(2)
            local items = { "a", ("x"):rep(32 << 20), "bb", "ccc" }
            for _, chunksize in ipairs({ 1, 4 }) do
                local list, failures = pool:map(string.len, items,
                    { errors = "collect", chunksize = chunksize })
                print(list[1], list[2].kind, list[2].index, list[3], list[4], failures)
                local iter = pool:imap(string.len, items, { chunksize = chunksize })
                for _ = 1, 5 do
                    local ok, i, v = pcall(iter.next, iter)
                    if ok then print(ok, i, v) else print(ok, i.kind, i.index) end
                end
            end
        end, { env = { PROCPOOL_REGION = tostring(16 << 20) } })
        assert.equal(("1\tunserializable\t2\t2\t3\t1\ntrue\t1\t1\nfalse\tunserializable\t2\n"
            .. "true\t3\t2\ntrue\t4\t3\ntrue\tnil\tnil\n"):rep(2), result.out, result.err)
    end)
end)

describe("a storm of signals", function()
    it("in parent and workers loses nothing; a wait is as long as it is asked for", function()
        local result = script.run(function(pp, ch)
            local fault_, ledger_ = require("spec.support.fault"), require("spec.support.ledger")
            local total = 2000
            local book = ledger_.new(total, 1)
            local function storm()
                ch.signal(14, "count")
                ch.signal(10, "count")
                ch.timer(0.001)
            end
            storm()
            local pool <close> = pp.new(2, { initializer = storm })
            local nemesis = fault_.nemesis(0.001, function()
                ch.kill(require("posix.unistd").getppid(), 10)
            end)
            local results = {}
            for id = 1, total do
                results[id] = pool:apply_async(ledger_.run, { id, math.abs, -id })
            end
            for id = 1, total do
                book:ended(id, pcall(results[id].get, results[id], fault_.HANG))
            end
            book:check(0)
            print(book.kinds.ok)
            local list = pool:map(function(i) return i end, function()
                local i = ch.get(2 * total + 1) + 1
                ch.set(2 * total + 1, i)
                return i <= 2000 and i or nil
            end)
            print(#list)
            local hung = pool:apply_async(ch.sleep, { 1.5 })
            local begun = ch.now()
            local ok, err = pcall(hung.get, hung, 0.5)
            local took = ch.now() - begun
            print(ok, err.kind, took >= 0.5 and took < 0.5 + fault_.DEATH)
            hung:get(fault_.HANG)
            pool:close()
            print(pool:join(fault_.HANG))
            fault_.stop(nemesis)
            print(ch.caught() > 100)
            ch.timer(0)
        end)
        assert.equal("2000\n2000\nfalse\ttimeout\ttrue\ntrue\ntrue\n", result.out, result.err)
    end)
end)

describe("a wall clock that jumps by a day", function()
    local shim = package.searchpath("clock", package.cpath)
    for _, days in ipairs({ 1, -1 }) do
        it((days > 0 and "forward" or "back") .. ": limits, pauses and waits are unchanged", function()
            if fault.asan or not shim then
                pending("needs LD_PRELOAD for itself")
                return
            end
            local result = script.run(function(pp, ch)
                local start = os.time()
                local pool <close> = pp.new(2, { timeout = 20, maxageperchild = 20, idletimeout = 20 })
                local pids = require("spec.support.fault").ready(pool)
                -- the jump comes in the middle of these
                local long = pool:apply_async(ch.sleep, { 0.8 })
                local limited = pool:apply_async(function() while true do end end, nil,
                    { timeout = 0.6, grace = 0.1 })
                local begun = ch.now()
                local ok, err = pcall(long.get, long, 0.5)
                print(ok, err.kind, ch.now() - begun >= 0.5)
                print(pcall(long.get, long, 30))
                ok, err = pcall(limited.get, limited, 30)
                print(ok, err.kind, ch.now() - begun >= 0.6)
                print(math.abs(os.time() - start) > 80000)
                local stats = pool:stats()
                print(stats.recycled.age, stats.recycled.idle, stats.workers[1].age < 60, #pids)
            end, { env = { LD_PRELOAD = shim, CLOCK_SHIFT = tostring(86400 * days),
                CLOCK_AFTER = "0.4" } })
            assert.equal("false\ttimeout\ttrue\ntrue\nfalse\ttimelimit\ttrue\ntrue\n0\t0\ttrue\t2\n",
                result.out, result.err)
        end)
    end
end)

-- A program that uses most of a pool; prints "good". With an errno: calls from
-- pidfd_send_signal on, the later ones, fail with it.
local function everything(pp, ch, _, errno)
    if errno and not ch.forbid(424, math.tointeger(errno)) then
        print("no filters here")
        return
    end
    local fault_ = require("spec.support.fault")
    local pool = pp.new(2, { maxtasksperchild = 50, retries = 1 })
    local list = pool:map(function(i) return i * i end, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 })
    for i = 1, 10 do
        assert(list[i] == i * i)
    end
    for i = 1, 200 do
        assert(pool:apply(math.max, { i, 0 }) == i)
    end
    for i, v in pool:imap(function(x) return #x end, { "a", "bb", ("x"):rep(1 << 20) }) do
        assert(v == ({ 1, 2, 1 << 20 })[i])
    end
    local pid = fault_.ready(pool)[1]
    ch.kill(pid, 9)
    fault_.replaced(pool, 1, pid, fault_.HANG)
    local ok, err = pcall(pool.apply, pool, function() while true do end end, nil,
        { timeout = 0.1, grace = 0.1 })
    assert(not ok and err.kind == "timelimit")
    pool:apply(function()
        os.execute("(sleep 0.05; exit 0) &")
    end)
    fault_.probe(pool)
    pool:close()
    assert(pool:join(fault_.HANG))
    print("good")
end

describe("everything works", function()
    -- `try` is a shell command that succeeds where this is possible.
    local function works(name, try, command, seconds)
        it(name, function()
            if not possible(try) or fault.asan and try:find("/proc$") then
                pending("not possible here")
                return
            end
            local result = script.run(everything, { command = command, seconds = seconds })
            assert.equal("good\n", result.out, result.err)
            assert.equal(0, result.status)
        end)
    end

    works("on one CPU, at the lowest priority", "taskset -c 0 true",
        { "taskset", "-c", "0", "nice", "-n", "19" }, 100)
    works("as the first process of a namespace", "unshare -fp --mount-proc true",
        { "unshare", "-fp", "--mount-proc" })
    local hidden = "mount -t tmpfs none /proc"
    works("without /proc", "unshare -m " .. hidden,
        { "unshare", "-m", "sh", "-c", hidden .. ' && exec "$@"', "sh" })
    local frozen = "mount -t tmpfs -o ro none /dev/shm && mount -o remount,ro,bind /"
    works("without /dev/shm, nothing writable", ("unshare -m sh -c '%s'"):format(frozen),
        { "unshare", "-m", "sh", "-c", frozen .. ' && exec "$@"', "sh" })
end)

describe("a container's filter of system calls", function()
    it("that knows no pidfd, nor what came after it: everything works", function()
        for _, code in ipairs({ 1, 38 }) do -- EPERM, ENOSYS
            local result = script.run(everything, { args = { code }, seconds = 100 })
            if result.out == "no filters here\n" then
                pending("no filter can be set here")
                return
            end
            assert.equal("good\n", result.out, result.err)
        end
    end)
end)

describe("as the first process of a namespace", function()
    it("leaves nothing when it is killed, nor when it ends", function()
        if not possible("unshare -fp --mount-proc true") then
            pending("not permitted here")
            return
        end
        for _, way in ipairs({ "killed", "ends" }) do
            local p <close> = script.start(function(pp, ch, _, how)
                local pool = pp.new(2)
                pool:apply(os.execute, { "setsid sleep 100 & exit 0" })
                pool:apply_async(function() while true do end end)
                print("ready")
                if how == "killed" then
                    ch.sleep(1000)
                end
            end, { command = { "unshare", "-fp", "--mount-proc" }, args = { way } })
            p:line("ready")
            if way == "killed" then
                for _, pid in ipairs(p:family()) do
                    if (clean.read(("/proc/%d/cmdline"):format(pid)) or ""):find("^lua") then
                        c.kill(pid, 9)
                    end
                end
            end
            p:gone(fault.ENDED)
        end
    end)
end)

describe("limits of a worker", function()
    it("of CPU time and file size kill it: lost, with their signals", function()
        for name, signal in pairs({ cpu = 24, fsize = 25 }) do
            local pool <close> = procpool.new(1, { initializer = function()
                c.limit(name, name == "cpu" and 1 or 1000)
            end })
            local path = os.tmpname()
            local err = fault.failure("lost", pool:apply_async(name == "cpu"
                and function() while true do end end
                or function(out)
                    local file = io.open(out, "w")
                    file:write(("x"):rep(100000)):flush()
                end, { path }))
            assert.equal(signal, err.signal)
            fault.probe(pool)
            os.remove(path)
        end
    end)
end)

-- A control group of this test's own with one limit, or nil where none can be
-- made (by cgroup v1, or v2 with the controller switched on).
local function control_group(controller, v1, v2)
    for _, place in ipairs({
        { "/sys/fs/cgroup/" .. controller, v1 }, { "/sys/fs/cgroup", v2 },
    }) do
        local dir = ("%s/procpool-%d"):format(place[1], unistd.getpid())
        if root and os.execute(("mkdir %s 2>/dev/null"):format(dir)) then
            local fine = true
            for file, value in pairs(place[2]) do
                local out = io.open(dir .. "/" .. file, "w")
                fine = fine and out and out:write(value) and out:close()
            end
            if fine then
                return setmetatable({
                    dir = dir, command = { "sh", "-c",
                        ('echo $$ >%s/cgroup.procs && exec "$@"'):format(dir), "sh" },
                }, { __close = function() os.execute("rmdir " .. dir) end })
            end
            os.execute("rmdir " .. dir)
        end
    end
end

describe("the OOM killer", function()
    it("takes workers first, however they came; keeper and parent have their own score", function()
        local ours = tonumber(clean.read("/proc/self/oom_score_adj"))
        for _, own in ipairs { ours, math.max(ours, 300), 900 } do
            local result = script.run(function(pp, _, _, own_)
                local pools = require("spec.support.pools")
                local function score(pid) return pools.proc(pid, "oom_score_adj"):match("%S+") end
                local function mine() return score(require("posix.unistd").getpid()) end
                local file = assert(io.open("/proc/self/oom_score_adj", "w"))
                assert(file:write(own_) and file:close())
                local pool <close> = pp.new(2, { maxtasksperchild = 1 })
                print(table.concat(pool:map(mine, { 1, 2, 3, 4 }, 1), " "), mine())
                local keeper = pools.keeper(pool)
                pools.eventually("no fork going on", function() return score(keeper) == mine() end)
            end, { args = { own } })
            local theirs = math.max(own, 500)
            assert.equal(("%d %d %d %d\t%d\n"):format(theirs, theirs, theirs, theirs, own),
                result.out, result.err)
        end
    end)
end)

describe("a control group", function()
    it("short of memory kills a worker, not keeper or parent: lost", function()
        local group <close> = control_group("memory",
            { ["memory.limit_in_bytes"] = "100M" },
            { ["memory.max"] = "100M", ["memory.swap.max"] = "0" })
        if not group then
            pending("no control group can be made here")
            return
        end
        local result = script.run(function(pp)
            local pool <close> = pp.new(2)
            for _ = 1, 2 do
                local ok, err = pcall(pool.apply, pool, function()
                    local hoard = {}
                    for i = 1, 100 do
                        hoard[i] = ("x"):rep(4 << 20) .. i
                    end
                    return #hoard
                end)
                print(ok, err.kind, err.signal, err.message:match("possibly out of memory"))
                require("spec.support.fault").probe(pool)
            end
            print(pool:state())
        end, { command = group.command })
        assert.equal(("false\tlost\t9\tpossibly out of memory\n"):rep(2) .. "running\n",
            result.out, result.err)
    end)

    it("with a quota of a fifth of one CPU only slows things down", function()
        local group <close> = control_group("cpu",
            { ["cpu.cfs_quota_us"] = "20000" }, { ["cpu.max"] = "20000 100000" })
        if not group then
            pending("no control group can be made here")
            return
        end
        local result = script.run(everything, { command = group.command, seconds = 100 })
        assert.equal("good\n", result.out, result.err)
    end)
end)

describe("a worker that cannot be killed", function()
    -- As in an uninterruptible sleep: the first freezer's processes take no
    -- signal, SIGKILL included, until they are thawed.
    local freezer = "/sys/fs/cgroup/freezer/procpool-" .. unistd.getpid()
    local function set(file, value)
        local out = io.open(freezer .. "/" .. file, "w")
        return out and out:write(value) and out:close()
    end

    -- However this file ends, nothing stays frozen.
    local function watch()
        local parent = c.getpid()
        local child = c.fork()
        if child ~= 0 then
            return child
        end
        while clean.state(parent) do
            c.sleep(0.05)
        end
        set("freezer.state", "THAWED")
        c.quit(0)
    end

    local pool, pid, hung, watcher
    before_each(function()
        c.counters(4)
        pool = nil
        if not (root and os.execute("mkdir " .. freezer .. " 2>/dev/null")) then
            return
        end
        watcher = watch()
        pool = procpool.new(2, { grace = 0.1 })
        hung = pool:apply_async(function()
            c.set(2, procpool.worker.pid)
            fault.hang(1)
        end, nil, { timeout = 0.2 })
        fault.counted(1, 1)
        pid = c.get(2)
        assert(set("cgroup.procs", pid))
        assert(set("freezer.state", "FROZEN"))
        assert(fault.await(fault.HANG, function()
            return clean.read(freezer .. "/freezer.state") == "FROZEN\n"
        end))
    end)
    after_each(function()
        if pool then
            set("freezer.state", "THAWED")
            pool:terminate()
            assert(pool:join(fault.HANG))
            assert(fault.await(fault.HANG, function() return os.execute("rmdir " .. freezer) end))
            fault.stop(watcher)
        end
        c.counters(0)
    end)

    it("holds up its own task, nobody else's, and no wait with a timeout", function()
        if not pool then
            pending("needs root and the first freezer")
            return
        end
        fault.fails("timeout", hung.get, hung, 0.6) -- its time limit and grace are over
        for _ = 1, 20 do
            fault.probe(pool)
        end
        assert.equal("D", clean.state(pid))
        set("freezer.state", "THAWED")
        fault.failure("timelimit", hung)
        fault.replaced(pool, 1, pid, fault.HANG)
        assert.equal(1, pool:stats().timelimit)
    end)

    it("does not hold up terminate, and dies when it can", function()
        if not pool then
            pending("needs root and the first freezer")
            return
        end
        local begun = fault.now()
        pool:terminate()
        assert.is_true(fault.now() - begun < 1.5)
        fault.failure("terminated", hung)
        assert.equal("D", clean.state(pid))
        set("freezer.state", "THAWED")
        assert.is_true(pool:join(fault.HANG))
        assert.is_true(fault.await(fault.ENDED, clean.dead, pid))
    end)

    it("makes join of a closed pool time out", function()
        if not pool then
            pending("needs root and the first freezer")
            return
        end
        pool:close()
        assert.same({ n = 2, nil, "timeout" }, table.pack(pool:join(0.5)))
        set("freezer.state", "THAWED")
        assert.is_true(pool:join(fault.HANG))
        fault.failure("timelimit", hung)
    end)
end)

describe("a running pool", function()
    it("has no named object and no descriptor of a file", function()
        local pool <close> = procpool.new(2)
        local pids = fault.ready(pool)
        pids[#pids + 1] = fault.keeper()
        local own = unistd.getpid()
        for _, pid in ipairs(pids) do
            for line in io.lines(("/proc/%d/maps"):format(pid)) do
                if line:find("rw%-s") then
                    assert.matches("/dev/zero %(deleted%)$", line)
                end
            end
            assert.not_equal(own, pid)
        end
        for name in pairs(clean.snapshot().shm) do
            assert.not_matches("procpool", name)
        end
    end)

    it("costs no system call and no time while it is idle", function()
        local pool <close> = procpool.new(2)
        fault.ready(pool)
        fault.probe(pool)
        local pids = fault.pids(pool)
        pids[#pids + 1] = fault.keeper()
        local function switches()
            local sum = 0
            for _, pid in ipairs(pids) do
                local status = clean.read(("/proc/%d/status"):format(pid))
                sum = sum + status:match("voluntary_ctxt_switches:%s*(%d+)")
            end
            return sum
        end
        c.sleep(0.3)
        local before = switches()
        c.sleep(1)
        -- each woke up, if at all, to give memory back
        assert.is_true(switches() - before <= 6, switches() - before)
    end)

    it("with 2,000 tasks under way outlives its .so being replaced", function()
        local book = ledger.new(200)
        local path = package.searchpath("procpool.core", package.cpath)
        local dir = os.tmpname()
        os.remove(dir)
        os.execute(("mkdir -p %s/procpool && cp %s %s/procpool/core.so"):format(dir, path, dir))
        local result = script.run(function(pp, ch)
            local fault_ = require("spec.support.fault")
            local own = package.searchpath("procpool.core", package.cpath)
            local pool <close> = pp.new(2, { maxtasksperchild = 10 })
            local results = {}
            for i = 1, 2000 do
                results[i] = pool:apply_async(ch.sleep, { 0.0001 })
                if i == 500 then
                    -- as an installer does: under another name, then renamed
                    os.execute(("echo garbage > %s.new && mv -f %s.new %s"):format(own, own, own))
                end
            end
            for i = 1, 2000 do
                results[i]:get(fault_.HANG)
            end
            local pid = fault_.ready(pool)[1]
            ch.kill(pid, 9)
            fault_.replaced(pool, 1, pid, fault_.HANG)
            fault_.probe(pool)
            print("good")
        end, { env = { LUA_CPATH = dir .. "/?.so;" .. package.cpath } })
        os.execute("rm -rf " .. dir)
        assert.equal("good\n", result.out, result.err)
        assert.is_table(book)
        c.counters(0)
    end)
end)
