-- apply and apply_async: what a call hands over and gives back. The same for
-- real workers and for none.

local describe, it, assert = describe, it, assert
local before_each, after_each, teardown = before_each, after_each, teardown
local pending = pending
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

for _, processes in ipairs { 0, 2 } do
    describe(("a call in a pool of %d"):format(processes), function()
        local pool
        before_each(function() pool = procpool.new(processes) end)
        after_each(function() pools.finish(pool) end)
        teardown(pools.cleanup)

        it("gets its arguments, nils too", function()
            local function count(...) return select("#", ...), ... end
            assert.same({ 0, n = 1 }, table.pack(pool:apply(count)))
            assert.same({ 0, n = 1 }, table.pack(pool:apply(count, {})))
            assert.same({ 2, 1, 2, n = 3 }, table.pack(pool:apply(count, { 1, 2 })))
            assert.same({ 3, nil, nil, nil, n = 4 },
                table.pack(pool:apply(count, { n = 3 })))
            assert.same({ 3, 1, nil, nil, n = 4 },
                table.pack(pool:apply(count, { 1, n = 3 })))
            assert.same({ 1, 1, n = 2 }, table.pack(pool:apply(count, { 1, 2, n = 1 })))
            assert.same({ 2, 1, nil, n = 3 }, table.pack(pool:apply(count, { 1, n = 2.0 })))
        end)

        it("gives all results back, nils too", function()
            assert.equal(0, select("#", pool:apply(function() end)))
            assert.same({ nil, n = 1 }, table.pack(pool:apply(function() return nil end)))
            assert.same({ nil, 2, nil, n = 3 },
                table.pack(pool:apply(function() return nil, 2, nil end)))
            local many = table.pack(pool:apply(function()
                local t = {}
                for i = 1, 250 do t[i] = i end
                return table.unpack(t, 1, 253)
            end))
            assert.equal(253, many.n)
            assert.equal(250, many[250])
            assert.is_nil(many[251])
        end)

        it("gets 250 arguments", function()
            local args = { n = 250 }
            for i = 1, 249 do args[i] = i end
            assert.same({ 250, 249 }, { pool:apply(function(...)
                return select("#", ...), (select(249, ...))
            end, args) })
        end)

        it("takes a callable table", function()
            local adder = setmetatable({ by = 2 },
                { __call = function(self, x) return self.by + x end })
            assert.equal(5, pool:apply(adder, { 3 }))
            assert.equal(6, pool:apply_async(adder, { 4 }):get())
            assert.same({ 3, 4, n = 2 }, pool:map(adder, { 1, 2 }))
        end)

        it("takes functions of C and of modules", function()
            assert.equal("xx", pool:apply(string.rep, { "x", 2 }))
            assert.equal(3, pool:apply(math.max, { 1, 3, 2 }))
            assert.is_true(pool:apply(pools.now) > 0)
        end)

        it("copies arguments, upvalues and results", function()
            local t, count = { 1 }, 0
            local out = pool:apply(function(x) x[1] = 2; count = count + 1; return x end, { t })
            assert.equal(1, t[1])
            assert.equal(0, count)
            assert.equal(2, out[1])
            assert.not_equal(t, out)
        end)

        it("copies at submission, not later", function()
            local box, factor = { 1 }, nil
            local function task(b) return b[1] + factor end
            local results = {}
            for i = 1, 20 do
                box[1], factor = i, i * 10
                results[i] = pool:apply_async(task, { box })
            end
            box[1], factor = "gone", "gone"
            assert.equal("gone", factor)
            for i = 1, 20 do assert.equal(11 * i, results[i]:get()) end
        end)

        it("sees an upvalue as it is at each call, with one function", function()
            local step = 1
            local function add(x) return x + step end
            for i = 1, 50 do
                step = i
                assert.equal(100 + i, pool:apply(add, { 100 }))
            end
        end)

        it("starts from the submitted upvalues each time", function()
            local count = 0
            local function bump() count = count + 1; return count end
            for _ = 1, 10 do assert.equal(1, pool:apply(bump)) end
            assert.equal(0, count)
        end)

        it("shares upvalues that its functions share", function()
            local n = 0
            local function up() n = n + 1 end
            local function get() return n end
            assert.equal(3, pool:apply(function() up() up() up() return get() end))
            assert.equal(0, n)
        end)

        it("gets an upvalue that is another function, or itself", function()
            local function fact(k) return k <= 1 and 1 or k * fact(k - 1) end
            assert.equal(120, pool:apply(fact, { 5 }))
        end)

        it("uses the worker's globals", function()
            -- luacheck: ignore 111 112 113
            assert.equal("table", pool:apply(function() return type(_G.string) end))
            local function set(v) pools_spec_global = v; return pools_spec_global end
            assert.equal(7, pool:apply(set, { 7 }))
            _G.pools_spec_global = nil
        end)

        it("takes vararg functions and large arguments", function()
            local text = ("0123456789"):rep(300000)
            assert.equal(text, (pool:apply(function(...) return ... end, { text })))
            local list = {}
            for i = 1, 100000 do list[i] = i end
            assert.equal(100000, #pool:apply(function(t) return t end, { list }))
        end)

        it("is refused with the path of what cannot travel, nothing queued", function()
            local before = pool:stats().completed
            local err = fails("unserializable", pool.apply, pool, print, { 1, io.stdout })
            assert.is_truthy(err.message:find("args[2]", 1, true), err.message)
            err = fails("unserializable", pool.apply_async, pool, print,
                { { conn = { io.stdout } } })
            assert.is_truthy(err.message:find("args[1].conn[1]", 1, true), err.message)
            local co = coroutine.create(print)
            fails("unserializable", pool.apply, pool, print, { co })
            fails("unserializable", pool.apply, pool, function() return co end)
            fails("unserializable", pool.apply, pool, function() return pool end)
            local stats = pool:stats()
            assert.equal(before, stats.completed)
            assert.equal(0, stats.queued + stats.running + stats.failed)
            assert.equal(1, pool:apply(function() return 1 end))
        end)

        it("fails with what the task raised, and where", function()
            local err = fails("error", pool.apply, pool, function() error("out of cheese") end)
            assert.is_truthy(err.message:find("out of cheese", 1, true))
            assert.is_truthy(err.message:find("pool_calls_spec.lua:", 1, true))
            assert.equal(err.message, err.value)
            assert.is_truthy(err.traceback:find("pool_calls_spec.lua:", 1, true))
            assert.is_truthy(tostring(err):find("stack traceback", 1, true))
            assert.is_nil(err.index)
            assert.equal(1, fails("error", pool.apply, pool, error, { { code = 1 } }).value.code)
        end)

        it("fails alone", function()
            local results = {}
            for i = 1, 40 do
                results[i] = pool:apply_async(function(k)
                    if k % 4 == 0 then error(k, 0) end
                    return k
                end, { i })
            end
            for i = 1, 40 do
                if i % 4 == 0 then
                    assert.equal(i, fails("error", results[i].get, results[i]).value)
                else
                    assert.equal(i, results[i]:get())
                end
            end
        end)

        it("keeps its own results among many", function()
            local results = {}
            for i = 1, 3000 do
                results[i] = pool:apply_async(function(k) return k, -k, nil end, { i })
            end
            for i = 3000, 1, -1 do
                assert.same({ i, -i, nil, n = 3 }, table.pack(results[i]:get()))
            end
        end)

        it("may be made again with other functions of one kind", function()
            -- more functions than a worker keeps
            for i = 1, 300 do
                local f = load("return function(x) return x + " .. i .. " end")()
                assert.equal(i + 1, pool:apply(f, { 1 }))
                assert.equal(i + 2, pool:apply(f, { 2 }))
            end
        end)

        it("does not raise what the caller's error handler changes", function()
            local _, message = xpcall(function() pool:apply(error, { "deep", 0 }) end,
                function(e) return "handled " .. e.message end)
            assert.equal("handled deep", message)
        end)
    end)
end

describe("calls in real workers", function()
    teardown(pools.cleanup)

    it("run in other processes, two at a time", function()
        local pool <close> = procpool.new(2)
        local log, gate = pools.path(), pools.gate()
        local results = {}
        for i = 1, 2 do
            results[i] = pool:apply_async(function(l, g)
                pools.pass(g, l)
                return require("procpool").worker.pid
            end, { log, gate })
        end
        pools.await_notes(log, 2)
        pools.open(gate)
        local one, two = results[1]:get(), results[2]:get()
        assert.not_equal(one, two)
        assert.not_equal(require("posix.unistd").getpid(), one)
    end)

    it("start in the order of their submission", function()
        local pool <close> = procpool.new(1)
        local log = pools.path()
        for i = 1, 50 do
            if i % 10 == 0 then
                pool:map_async(function(x) pools.note(log, x) end, { i, i + 0.5 }, i % 20 == 0 and 1 or 2)
            else
                pool:apply_async(pools.note, { log, i })
            end
        end
        pool:close()
        pool:join()
        local last = 0
        local lines = pools.notes(log)
        assert.equal(55, #lines)
        for _, line in ipairs(lines) do
            assert.is_true(tonumber(line) > last, line)
            last = tonumber(line)
        end
    end)

    it("go on while the parent does something else", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 1 })
        local log = pools.path()
        for i = 1, 20 do pool:apply_async(pools.note, { log, i }) end
        pools.await_notes(log, 20) -- no call into the library
    end)

    it("keep state in worker.state, a life long", function()
        local pool <close> = procpool.new(1)
        local function count()
            local state = require("procpool").worker.state
            state.n = (state.n or 0) + 1
            return state.n
        end
        for i = 1, 10 do assert.equal(i, pool:apply(count)) end
    end)

    it("print whole, once, and in order", function()
        local _, out = pools.run([[
            local pool = require("procpool").new(2)
            io.write("buffered in the parent. ")
            for i = 1, 20 do pool:apply(function(k) io.write("task ", k, "\n") end, { i }) end
            pool:close()
            pool:join()
            io.write("end\n")
        ]])
        for i = 1, 20 do
            local _, times = out:gsub("task " .. i .. "\n", "")
            assert.equal(1, times, out)
        end
        local _, times = out:gsub("buffered in the parent. ", "")
        assert.equal(1, times, out)
        assert.is_truthy(out:find("end\n$"))
    end)

    it("find stdin empty", function()
        local status, out = pools.run([[
            local pool <close> = require("procpool").new(1)
            assert(pool:apply(function() return io.read("a") end) == "")
            assert(pool:apply(function() return io.read("l") end) == nil)
            io.write(io.read("a"))
        ]], "echo for the parent | { %s\n}")
        assert.equal("for the parent\n", out)
        assert.equal(0, status)
    end)
end)

-- proc(5): the 41st figure of stat, 39 behind the name.
local function policy()
    local file <close> = io.open("/proc/self/stat")
    return math.tointeger(file:read("a"):match("%) %S+" .. (" %S+"):rep(37) .. " (%d+)"))
end
local ORDINARY, BATCH = 0, 3

describe("a worker that is woken", function()
    local pool
    before_each(function() pool = procpool.new(1) end)
    after_each(function() pools.finish(pool) end)
    teardown(pools.cleanup)

    -- It has slept before each call: see choose_policy in worker.c.
    it("preempts others only if its caller waits for each task", function()
        if policy() ~= ORDINARY then
            pending("this program has a policy of its own, which stays")
            return
        end
        local function busy()
            local result = pool:apply_async(policy)
            while not result:ready() do end
            return result:get() == BATCH
        end
        local function waits() return pool:apply(policy) == ORDINARY end
        pools.eventually("for a caller that goes on it is a batch process", busy)
        pools.eventually("for one that waits it is none", waits)
        pools.eventually("nor does that last", busy)
        assert.equal(ORDINARY, policy())
    end)
end)

describe("a parent that waits", function()
    teardown(pools.cleanup)

    -- See crowded in pool_read.c. A third of a worker's time, when it spun.
    it("leaves the CPUs to workers that have more to do", function()
        local pool <close> = procpool.new(procpool.cpus())
        local TOOK <const> = 50e-6
        local function burn()
            local till = os.clock() + TOOK
            while os.clock() < till do end
        end
        local results = {}
        for i = 1, 4000 do results[i] = pool:apply_async(burn) end
        local begun = os.clock()
        for _, result in ipairs(results) do result:get() end
        local share = (os.clock() - begun) / (#results * TOOK)
        assert.is_true(share < 0.15, share)
    end)
end)

describe("a worker whose parent waits for its CPU", function()
    teardown(pools.cleanup)

    -- See spin.h. A call took it 25 us or more, when it spun in vain.
    it("does not spin in its way", function()
        if procpool.cpus() < 2 then
            pending("with one CPU nobody spins")
            return
        end
        local pool <close> = procpool.new(1)
        local function getpid() return require("posix.unistd").getpid() end
        local function put(cpus, pid)
            assert.is_true(os.execute(("taskset -cp %s %d > /dev/null"):format(cpus, pid)))
        end
        local CALLS <const> = 500
        local mine, its = getpid(), pool:apply(getpid)
        local file <close> = io.open("/proc/self/status")
        local allowed = file:read("a"):match("Cpus_allowed_list:%s*(%S+)")
        local one = allowed:match("^%d+")
        put(one, mine)
        put(one, its)
        local learnt, why = pcall(pools.eventually, "it sleeps at once", function()
            local begun = pool:apply(os.clock)
            for _ = 1, CALLS do pool:apply(getpid) end
            return (pool:apply(os.clock) - begun) / CALLS < 18e-6
        end)
        put(allowed, mine)
        assert.is_true(learnt, why)
    end)
end)
