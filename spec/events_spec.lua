-- Watching a pool: onevent, PROCPOOL_LOG, the names that ps shows, and the
-- progress of maps.

local describe, it, assert, pending = describe, it, assert, pending
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local fault = require("spec.support.fault")
local pools = require("spec.support.pools")
local procpool = require("procpool")

local function echo(...) return ... end

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

local function die()
    pools.kill(require("procpool").worker.pid)
    while true do end
end

-- A pool whose events are kept in a list, and that list.
local function watched(processes, opts)
    local events = {}
    opts = opts or {}
    opts.onevent = function(event) events[#events + 1] = event end
    return procpool.new(processes, opts), events
end

local function of_kind(events, kind)
    local list = {}
    for _, event in ipairs(events) do
        if event.kind == kind then list[#list + 1] = event end
    end
    return list
end

-- Polls until so many events of a kind have come; returns them.
local function await(pool, events, kind, count)
    return pools.eventually(count .. " of " .. kind, function()
        pool:poll(0.01)
        local list = of_kind(events, kind)
        return #list >= count and list
    end)
end

describe("onevent", function()
    teardown(pools.cleanup)

    it("tells of a life's start, readiness and end, in order", function()
        local before = pools.now()
        local pool, events = watched(2, { maxtasksperchild = 2 })
        pool:map(echo, range(9), 1)
        pool:close()
        assert.is_true(pool:join(20))
        local lives = {}
        local last = before
        for _, e in ipairs(events) do
            assert.equal("integer", math.type(e.pid))
            assert.is_true(e.worker == 1 or e.worker == 2)
            assert.equal("integer", math.type(e.generation))
            assert.is_true(e.time >= before and e.time <= pools.now())
            assert.equal("float", math.type(e.time))
            last = math.max(last, e.time)
            local life = e.worker .. "/" .. e.generation .. "/" .. e.pid
            lives[life] = lives[life] or {}
            table.insert(lives[life], e)
        end
        local n, full = 0, 0
        for life, list in pairs(lives) do
            n = n + 1
            assert.equal(3, #list, life)
            assert.equal("worker_start", list[1].kind)
            assert.equal("worker_ready", list[2].kind)
            assert.equal("worker_exit", list[3].kind)
            assert.is_true(list[1].time <= list[2].time and list[2].time <= list[3].time)
            assert.is_nil(list[1].reason)
            assert.is_true(list[3].reason == "tasks" or list[3].reason == "close")
            if list[3].reason == "tasks" then full = full + 1 end
        end
        assert.is_true(n >= 5)
        assert.is_true(full >= 4)
    end)

    it("counts generations from 1, as the worker does", function()
        local pool, events = watched(1, { maxtasksperchild = 1 })
        local pids = {}
        for i = 1, 3 do
            local generation, pid = pool:apply(function()
                local w = require("procpool").worker
                return w.generation, w.pid
            end)
            assert.equal(i, generation)
            pids[pid] = generation
        end
        for _, e in ipairs(await(pool, events, "worker_exit", 3)) do
            if pids[e.pid] then assert.equal(pids[e.pid], e.generation) end
        end
        pools.finish(pool)
    end)

    local reasons = {
        predicate = { { recycleif = function() return true end }, function(pool) pool:apply(echo) end },
        request = { {}, function(pool) pool:recycle(1) end },
        age = { { maxageperchild = 0.02 }, function() end },
        idle = { { idletimeout = 0.02, minprocesses = 0 }, function() end },
        tasks = { { maxtasksperchild = 1 }, function(pool) pool:apply(echo) end },
        crash = { {}, function(pool) pcall(pool.apply, pool, die) end },
        timelimit = { { timeout = 0.03, grace = 0.02 }, function(pool)
            pcall(pool.apply, pool, function()
                pcall(function() while true do end end)
                while true do end
            end)
        end },
        memory = { { maxmemoryperchild = 60 << 20 }, function(pool)
            pool:apply(function()
                local held = {}
                require("procpool").worker.state.held = held
                for i = 1, 2 do
                    held[i] = ("x"):rep(36 << 20)
                    collectgarbage()
                    collectgarbage()
                end
            end)
        end },
    }
    for reason, case in pairs(reasons) do
        it("of a life that ended says why: " .. reason, function()
            if fault.unmeasurable and reason == "memory" then
                pending(fault.unmeasurable)
                return
            end
            local pool, events = watched(1, case[1])
            case[2](pool)
            local exit = await(pool, events, "worker_exit", 1)[1]
            assert.equal(reason, exit.reason)
            assert.equal(1, exit.worker)
            assert.equal(1, exit.generation)
            pools.finish(pool)
        end)
    end

    it("of a life that ended says why: resize, cancel, close", function()
        local pool, events = watched(2, { grace = 0.02 })
        pools.settled(pool)
        pool:resize(1)
        local exits = await(pool, events, "worker_exit", 1)
        assert.equal("resize", exits[1].reason)
        assert.equal(2, exits[1].worker)
        local log = pools.path()
        local result = pool:apply_async(function()
            pcall(function() -- within: the request comes as soon as this is read
                pools.note(log, 1)
                while true do end
            end)
            while true do end
        end)
        pools.await_notes(log, 1)
        result:cancel()
        exits = await(pool, events, "worker_exit", 2)
        assert.equal("cancel", exits[2].reason)
        pools.settled(pool, 1)
        pool:close()
        assert.is_true(pool:join(20))
        exits = of_kind(events, "worker_exit")
        assert.equal("close", exits[#exits].reason)
    end)

    it("tells of starts that failed, with the error", function()
        local pool, events = watched(1, { initializer = function() error("no database", 0) end })
        pcall(pool.apply, pool, echo)
        local failed = await(pool, events, "worker_failed", 1)[1]
        assert.equal(1, failed.worker)
        assert.equal(1, failed.generation)
        assert.is_truthy(tostring(failed.error):find("no database", 1, true))
        assert.same({}, of_kind(events, "worker_ready"))
        pools.finish(pool)
    end)

    it("tells of each death under a task, once", function()
        local pool, events = watched(1, { retries = 1 })
        pcall(pool.apply, pool, die)
        local retry, lost = await(pool, events, "task_retry", 1), await(pool, events, "task_lost", 1)
        assert.equal(1, #retry)
        assert.equal(1, #lost)
        assert.equal(1, retry[1].attempt)
        assert.equal(2, lost[1].attempt)
        assert.not_equal(retry[1].pid, lost[1].pid)
        assert.equal(2, #await(pool, events, "worker_exit", 2))
        pools.finish(pool)
    end)

    it("tells of tasks killed for their time or memory", function()
        local pool, events = watched(1, { maxmemoryperchild = 24 << 20, grace = 0.02 })
        pcall(pool.apply, pool, function()
            pcall(function() while true do end end)
            while true do end
        end, nil, { timeout = 0.03 })
        assert.equal(1, await(pool, events, "task_timelimit", 1)[1].attempt)
        pcall(pool.apply, pool, function()
            local t = {}
            for i = 1, 200 do t[i] = ("x"):rep(1 << 20) .. i end
            pools.nap(30)
            return #t
        end)
        assert.equal(1, #await(pool, events, "task_memory", 1))
        assert.same({}, of_kind(events, "task_lost"))
        pools.finish(pool)
    end)

    it("is called in the parent, inside calls, and may use the pool", function()
        local inside, got = 0, nil
        local pool
        pool = procpool.new(1, { onevent = function(e)
            inside = inside + 1
            assert(procpool.worker == nil)
            if e.kind == "worker_ready" and not got then got = pool:apply(echo, { "used" }) end
        end })
        pools.nap(0.02)
        assert.equal(0, inside)
        pools.eventually("an answer", function() pool:poll(0.01) return got end)
        assert.equal("used", got)
        pools.finish(pool)
    end)

    it("that raises harms nothing; its error comes out of the call", function()
        local pool = procpool.new(1, { onevent = function(e) error("event " .. e.kind, 0) end })
        local raised = {}
        local value
        pools.eventually("a result", function()
            local ok, err = pcall(function() value = value or pool:apply(echo, { 7 }) end)
            if not ok then raised[#raised + 1] = err end
            return value
        end)
        assert.equal(7, value)
        pools.eventually("an error", function()
            local ok, err = pcall(pool.poll, pool)
            if not ok then raised[#raised + 1] = err end
            return raised[1]
        end)
        assert.is_truthy(raised[1]:find("^event worker_"))
        pcall(pool.terminate, pool)
        pools.eventually("the end", function()
            local ok, gone = pcall(pool.join, pool, 20)
            return ok and gone
        end)
    end)

    it("inline tells the same kinds", function()
        local pool, events = watched(0, { maxtasksperchild = 1 })
        pool:apply(echo)
        pool:apply(echo)
        pool:close()
        pool:join()
        pool:poll()
        local kinds = {}
        for i, e in ipairs(events) do
            kinds[i] = e.kind .. " " .. e.generation .. (e.reason and " " .. e.reason or "")
            assert.equal(1, e.worker)
            assert.equal(require("posix.unistd").getpid(), e.pid)
        end
        assert.same({ "worker_start 1", "worker_ready 1", "worker_exit 1 tasks",
            "worker_start 2", "worker_ready 2", "worker_exit 2 tasks" }, kinds)
    end)
end)

describe("PROCPOOL_LOG", function()
    teardown(pools.cleanup)

    local program = [[
        local procpool = require("procpool")
        local pools = require("spec.support.pools")
        local pool = procpool.new(%s, { name = "watched", maxtasksperchild = 1, retries = 1 })
        pool:map(function(x) return x end, { 1, 2 }, 1)
        if %s > 0 then
            pcall(pool.apply, pool, function() pools.kill(procpool.worker.pid) end)
        end
        pool:close()
        pool:join()
    ]]

    for _, level in ipairs { "info", "debug" } do
        it("=" .. level .. " prints each event as a line on stderr", function()
            local status, out, err = pools.run(program:format(1, 1), "PROCPOOL_LOG=" .. level .. " %s")
            assert.equal(0, status)
            assert.equal("", out)
            local kinds = {}
            for line in err:gmatch("([^\n]*)\n") do
                local kind, worker, pid, generation = line:match(
                    "^procpool watched: %d+%.%d%d%d (%S+) worker (%d+) pid (%d+) generation (%d+)")
                assert.is_truthy(kind, line)
                assert.equal("1", worker)
                assert.is_true(tonumber(pid) > 1)
                assert.is_true(tonumber(generation) >= 1)
                kinds[kind] = (kinds[kind] or 0) + 1
                if kind == "worker_exit" then assert.is_truthy(line:find("%(%l+.*%)$"), line) end
                if kind:find("^task") then assert.is_truthy(line:find("attempt %d"), line) end
            end
            assert.is_true(kinds.worker_start >= 4)
            assert.is_true(kinds.worker_ready >= 4)
            assert.is_true(kinds.worker_exit >= 4)
            assert.equal(1, kinds.task_retry)
            assert.equal(1, kinds.task_lost)
        end)
    end

    it("prints the same lines inline", function()
        local status, _, err = pools.run(program:format(0, 0), "PROCPOOL_LOG=info %s")
        assert.equal(0, status)
        local n = 0
        for line in err:gmatch("([^\n]*)\n") do
            n = n + 1
            assert.is_truthy(line:match(
                "^procpool watched: %d+%.%d%d%d worker_%l+ worker 1 pid %d+ generation %d+"), line)
        end
        assert.equal(6, n)
    end)

    it("unset, empty or something else prints nothing", function()
        for _, set in ipairs { "", "PROCPOOL_LOG= ", "PROCPOOL_LOG=loud " } do
            local status, out, err = pools.run(program:format(1, 1), set .. "%s")
            assert.equal(0, status)
            assert.equal("", out .. err)
        end
    end)
end)

describe("ps", function()
    teardown(pools.cleanup)

    local function title(pid)
        return (pools.proc(pid, "cmdline"):gsub("%z.*", ""))
    end

    it("shows the pool's name, the keeper and the workers' slots", function()
        local pool <close> = procpool.new(2, { name = "thumbs" })
        pools.settled(pool)
        assert.equal("procpool thumbs keeper", title(pools.keeper(pool)))
        for i, pid in ipairs(pools.pids(pool)) do
            assert.equal("procpool thumbs worker " .. i, title(pid))
        end
        pool:recycle()
        pools.eventually("two replacements", function() return pool:stats().recycled.request == 2 end)
        pools.settled(pool)
        assert.equal("procpool thumbs worker 2", title(pools.pids(pool)[2]))
    end)

    it("shows pool by default", function()
        local pool <close> = procpool.new(1)
        pools.settled(pool)
        assert.equal("procpool pool worker 1", title(pools.pids(pool)[1]))
    end)

    it("survives any name", function()
        for _, name in ipairs { "", ("long "):rep(1000), "\27[31m", "%s%n", "a\nb" } do
            local pool <close> = procpool.new(1, { name = name })
            assert.equal(1, pool:apply(echo, { 1 }))
            assert.is_truthy(title(pools.pids(pool)[1]):find("^procpool "))
        end
    end)

    it("does not rename the parent", function()
        local before = pools.proc(require("posix.unistd").getpid(), "cmdline")
        local pool <close> = procpool.new(1, { name = "other" })
        pool:apply(echo)
        assert.equal(before, pools.proc(require("posix.unistd").getpid(), "cmdline"))
    end)
end)

describe("progress through real workers", function()
    teardown(pools.cleanup)

    it("goes up to the total, whatever the chunksize and the errors", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 30 })
        for _, chunksize in ipairs { 1, 7, 100 } do
            local last, calls = -1, 0
            pool:map(function(x) if x % 10 == 0 then error(x) end end, range(100), {
                chunksize = chunksize, errors = "collect",
                progress = function(done, total)
                    assert(done >= last and done <= total and total == 100)
                    last, calls = done, calls + 1
                end,
            })
            assert.equal(100, last)
            assert.is_true(calls >= 1)
        end
    end)

    it("of an iterator has a total that grows", function()
        local pool <close> = procpool.new(2)
        local i, last, total = 0, 0, 0
        pool:map(echo, function()
            i = i + 1
            return i <= 200 and i or nil
        end, { chunksize = 5, progress = function(d, t)
            assert(t >= total and d <= t)
            last, total = d, t
        end })
        assert.equal(200, last)
        assert.equal(200, total)
    end)

    it("that raises comes out and cancels; no result of others is lost", function()
        local pool <close> = procpool.new(2)
        local other = pool:apply_async(echo, { "kept" })
        local ok, err = pcall(pool.map, pool, echo, range(100), {
            chunksize = 1, progress = function() error("display", 0) end,
        })
        assert.is_false(ok)
        assert.equal("display", err)
        assert.equal("kept", other:get(20))
        assert.equal(100, pool:map(echo, range(100)).n)
    end)

    it("true writes nothing on stderr that is the same file as stdout", function()
        local status, out, err = pools.run([[
            local pool <close> = require("procpool").new(1)
            pool:map(function(x) return x end, { 1, 2, 3 }, { progress = true })
        ]])
        assert.equal(0, status)
        assert.equal("", out)
        assert.is_true(#err < 500)
    end)
end)
