-- processes = 0: the whole API in this process, with the same copying, errors
-- and order as between processes.

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local procpool = require("procpool")

local function fails(kind, f, ...)
    local ok, err = pcall(f, ...)
    assert.is_false(ok)
    assert.is_true(procpool.iserror(err), tostring(err))
    assert.equal(kind, err.kind)
    return err
end

describe("an inline pool", function()
    local pool
    before_each(function() pool = procpool.new(0) end)
    after_each(function() pool:terminate() end)

    it("applies", function()
        assert.same({ 3, nil, "x", n = 3 },
            table.pack(pool:apply(function(a, b) return a + b, nil, "x" end, { 1, 2 })))
        assert.equal(0, select("#", pool:apply(function() end)))
        assert.equal(3, pool:apply(function(...) return select("#", ...) end, { nil, nil, n = 3 }))
        assert.same({ nil, nil, n = 2 }, table.pack(pool:apply(function() return nil, nil end)))
    end)

    it("takes a callable table", function()
        local adder = setmetatable({ by = 2 }, { __call = function(self, x) return self.by + x end })
        assert.equal(5, pool:apply(adder, { 3 }))
    end)

    it("copies arguments, upvalues and results", function()
        local t, count = { 1 }, 0
        local out = pool:apply(function(x) x[1] = 2; count = count + 1; return x end, { t })
        assert.equal(1, t[1])
        assert.equal(0, count)
        assert.equal(2, out[1])
        assert.not_equal(t, out)
    end)

    it("maps lists, holes and iterators", function()
        local double = function(x) return (x or 0) * 2 end
        assert.same({ 2, 4, 6, n = 3 }, pool:map(double, { 1, 2, 3 }))
        assert.same({ 2, 0, 6, 0, n = 4 }, pool:map(double, { 1, nil, 3, n = 4 }))
        assert.same({ n = 0 }, pool:map(double, {}))
        local i = 0
        local results = pool:map(double, function() i = i + 1; return i <= 50 and i or nil end)
        assert.equal(50, results.n)
        assert.equal(100, results[50])
        assert.same({ n = 0 }, pool:map(double, function() end))
    end)

    it("keeps nil results in their places", function()
        local results = pool:map(function(x) if x ~= 2 then return x end end, { 1, 2, 3 })
        assert.same({ 1, nil, 3, n = 3 }, results)
    end)

    for _, chunksize in ipairs { 1, 2, 3, 100 } do
        it("maps in chunks of " .. chunksize, function()
            local items = {}
            for i = 1, 10 do items[i] = i end
            local results = pool:map(function(x) return -x end, items, chunksize)
            for i = 1, 10 do assert.equal(-i, results[i]) end
        end)
    end

    it("starmaps", function()
        local add = function(a, b) return (a or 0) + (b or 0) end
        assert.same({ 3, 7, 5, n = 3 }, pool:starmap(add, { { 1, 2 }, { 3, 4 }, { nil, 5, n = 2 } }))
        local _, failures = pool:starmap(add, { { 1, 2 }, 3 }, { errors = "collect" })
        assert.equal(1, failures)
    end)

    it("raises the failure of a map with its index", function()
        local err = fails("error", pool.map, pool,
            function(x) if x > 2 then error("bad " .. x, 0) end end, { 1, 2, 3, 4 })
        assert.equal(3, err.index)
        assert.equal("bad 3", err.value)
        assert.equal("bad 3", err.message)
        assert.is_truthy(tostring(err):find("bad 3", 1, true))
        assert.is_truthy(err.traceback:find("inline_spec", 1, true))
        assert.equal(1, err.worker)
    end)

    it("stops a failed map", function()
        local ran = {}
        _G.inline_ran = ran
        pcall(pool.map, pool, function(x)
            inline_ran[x] = true -- luacheck: ignore 112 113
            if x == 2 then error("stop") end
        end, { 1, 2, 3, 4 })
        _G.inline_ran = nil
        assert.same({ true, true }, ran)
    end)

    it("collects failures in their places", function()
        local results, failures = pool:map(function(x)
            if x % 2 == 0 then error({ code = x }) end
            return x
        end, { 1, 2, 3, 4 }, { errors = "collect" })
        assert.equal(2, failures)
        assert.equal(4, results.n)
        assert.equal(3, results[3])
        assert.is_true(procpool.iserror(results[2]))
        assert.equal(4, results[4].value.code)
        assert.equal("(error object is a table value)", results[4].message)
    end)

    it("lets an error of the items' iterator out as it is", function()
        local problem = {}
        local function items()
            local i = 0
            return function()
                i = i + 1
                if i == 3 then error(problem) end
                return i
            end
        end
        local id = function(x) return x end
        local ok, err = pcall(pool.map, pool, id, items())
        assert.is_false(ok)
        assert.equal(problem, err)
        local seen = {}
        ok, err = pcall(function()
            for _, v in pool:imap(id, items()) do seen[#seen + 1] = v end
        end)
        assert.is_false(ok)
        assert.equal(problem, err)
        assert.same({ 1, 2 }, seen)
    end)

    it("gives async results", function()
        local result = pool:apply_async(function(...) return ... end, { 1, nil, 3, n = 3 })
        assert.is_true(result:ready())
        assert.is_true(result:wait(0))
        assert.is_true(result:successful())
        assert.equal("done", result:status())
        assert.is_false(result:cancel())
        assert.same({ 1, nil, 3, n = 3 }, table.pack(result:get()))
        assert.same({ 1, nil, 3, n = 3 }, table.pack(result:get(0)))
        assert.equal("procpool.AsyncResult (done)", tostring(result))
        local failed = pool:apply_async(error, { "x" })
        assert.is_false(failed:successful())
        assert.equal("failed", failed:status())
        fails("error", failed.get, failed)
        fails("error", failed.get, failed)
        assert.same({ 1, 4, n = 2 }, pool:map_async(function(x) return x * x end, { 1, 2 }):get())
    end)

    it("calls back once, with what get would return", function()
        local seen = {}
        local function note(...) seen[#seen + 1] = table.pack(...) end
        pool:apply_async(function() return 1, nil end, nil, { callback = note })
        pool:apply_async(error, { "x", 0 }, { error_callback = note })
        pool:map_async(function(x) return x end, { 5 }, { callback = note })
        pool:map_async(error, { "y" }, { errors = "collect", callback = note })
        pool:map_async(type, {}, { callback = note })
        pool:poll()
        assert.equal(5, #seen)
        table.sort(seen, function(a, b) return a.n > b.n end)
        local kinds = {}
        for _, s in ipairs(seen) do
            kinds[procpool.iserror(s[1]) and s[1].kind or type(s[1])] = true
        end
        assert.same({ number = true, error = true, table = true }, kinds)
        pool:poll()
        assert.equal(5, #seen)
    end)

    it("raises a callback's error once the results are in", function()
        local called = 0
        pool:apply_async(type, { 1 }, { callback = function() error("first", 0) end })
        pool:apply_async(type, { 1 }, { callback = function() called = called + 1 end })
        local ok, err = pcall(pool.poll, pool)
        assert.is_false(ok)
        assert.equal("first", err)
        assert.equal(1, called)
        assert.equal(2, pool:apply(function() return 2 end))
    end)

    it("lets callbacks use the pool", function()
        local got
        pool:apply_async(type, { 1 }, { callback = function()
            got = { pool:apply(type, { "x" }), pool:map(type, { 1, {} })[2] }
            pool:close()
            assert.is_true(pool:join())
        end })
        pool:poll()
        assert.same({ "string", "table" }, got)
        assert.equal("closed", pool:state())
        fails("closed", pool.apply, pool, print)
    end)

    it("terminates from a callback", function()
        pool:apply_async(type, { 1 }, { callback = function() pool:terminate() end })
        pool:poll()
        assert.equal("terminated", pool:state())
        fails("terminated", pool.map, pool, print, { 1 })
    end)

    it("does not wait for maxpending in a callback", function()
        local narrow <close> = procpool.new(0, { maxpending = 2 })
        local done = 0
        local function more() done = done + 1 end
        narrow:apply_async(type, { 1 }, { callback = function()
            for _ = 1, 10 do narrow:apply_async(type, { 1 }, { callback = more }) end
        end })
        for _ = 1, 10 do narrow:apply_async(type, { 1 }, { callback = more }) end
        narrow:map_async(type, { 1, 2, 3, 4, 5 }, 5):get()
        narrow:poll()
        assert.equal(20, done)
    end)

    it("refuses what cannot travel, with its path", function()
        local err = fails("unserializable", pool.apply, pool, print, { 1, io.stdout })
        assert.is_truthy(err.message:find("args[2]", 1, true), err.message)
        fails("unserializable", pool.apply_async, pool, print, { io.stdout })
        err = fails("unserializable", pool.map, pool, type, { 1, io.stdout })
        assert.equal(2, err.index)
        local out = io.stdout
        fails("unserializable", pool.map, pool, function() return out end, { 1 })
        fails("unserializable", pool.apply, pool, function() return io.stdout end)
        fails("unserializable", pool.apply, pool, function() return pool end)
    end)

    it("survives any error value", function()
        fails("error", pool.apply, pool, error)
        assert.equal(42, fails("error", pool.apply, pool, error, { 42 }).value)
        local err = fails("error", pool.apply, pool, function() error(io.stdout) end)
        assert.is_nil(err.value)
        err = fails("error", pool.apply, pool, function()
            error(setmetatable({}, { __tostring = function() error("no") end }))
        end)
        assert.equal("(error object is a table value)", err.message)
        err = fails("error", pool.apply, pool, function()
            error(setmetatable({}, { __tostring = function() return "readable" end }))
        end)
        assert.equal("readable", err.message)
    end)

    it("catches os.exit and refuses to yield", function()
        local err = fails("error", pool.apply, pool, function() os.exit(3) end)
        assert.equal("task called os.exit(3)", err.message)
        local co = coroutine.wrap(function()
            fails("error", pool.apply, pool, coroutine.yield)
            return "never yielded"
        end)
        assert.equal("never yielded", co())
    end)

    it("limits the time of a task, as an error in it", function()
        local spin = function() while true do end end
        fails("timelimit", pool.apply, pool, spin, nil, { timeout = 0.02 })
        local results, failures = pool:map(function(x)
            while x == 2 do end
            return x
        end, { 1, 2, 3 }, { timeout = 0.02, errors = "collect" })
        assert.equal(1, failures)
        assert.equal("timelimit", results[2].kind)
        assert.equal(3, results[3])
        assert.equal("cleaned up", pool:apply(function()
            local ok, err = pcall(function() while true do end end)
            return not ok and err.kind == "timelimit" and "cleaned up"
        end, nil, { timeout = 0.02 }))
        assert.equal(2, pool:stats().timelimit)
    end)

    it("shows a worker during a task only", function()
        local inside <close> = procpool.new(0, { shared = io.stdout })
        assert.is_nil(procpool.worker)
        local w = { inside:apply(function()
            local w = require("procpool").worker
            w.state.count = (w.state.count or 0) + 1
            return w.id, w.generation, w.tasks, w.attempt, w.state.count, w.shared == io.stdout
        end) }
        assert.same({ 1, 1, 0, 1, 1, true }, w)
        assert.equal(1, inside:apply(function() return require("procpool").worker.tasks end))
        assert.is_nil(procpool.worker)
    end)

    it("starts lives anew after maxtasksperchild tasks", function()
        local recycling <close> = procpool.new(0, { maxtasksperchild = 3 })
        local generations = recycling:map(function()
            return require("procpool").worker.generation
        end, { 1, 2, 3, 4, 5, 6, 7 })
        assert.same({ 1, 1, 1, 2, 2, 2, 3, n = 7 }, generations)
        assert.equal(2, recycling:stats().recycled.tasks)
    end)

    it("leaves by predicate and on request", function()
        local events = {}
        local picky <close> = procpool.new(0, {
            recycleif = function(w) return w.tasks == 2 end,
            onevent = function(e) events[#events + 1] = e end,
        })
        for _ = 1, 2 do picky:apply(type, { 1 }) end
        picky:apply(function() require("procpool").worker.recycle() end)
        picky:poll()
        local stats = picky:stats()
        assert.equal(1, stats.recycled.predicate)
        assert.equal(1, stats.recycled.request)
        local kinds = {}
        for i, e in ipairs(events) do kinds[i] = e.kind .. (e.reason and ":" .. e.reason or "") end
        assert.same({ "worker_start", "worker_ready", "worker_exit:predicate",
            "worker_start", "worker_ready", "worker_exit:request" }, kinds)
        assert.equal(2, events[6].generation)
    end)

    it("breaks by the initializer's own error", function()
        local broken = procpool.new(0, { initializer = function() error({ code = 7 }) end })
        local pending = broken:apply_async(type, { 1 })
        local err = fails("initializer", pending.get, pending)
        assert.equal(7, err.value.code)
        assert.equal("broken", broken:state())
        fails("initializer", broken.map, broken, print, { 1 })
        fails("initializer", broken.apply, broken, print)
        broken:close()
        assert.is_true(broken:join())
    end)

    it("runs the initializer and the finalizer", function()
        local log = {}
        _G.inline_log = log
        do
            local whole <close> = procpool.new(0, {
                initializer = function(...) log[#log + 1] = table.concat({ ... }, "+") end,
                initargs = { 1, 2 },
                finalizer = function() log[#log + 1] = "end" end,
            })
            assert.equal(0, #log)
            whole:apply(type, { 1 })
        end
        _G.inline_log = nil
        assert.same({ "1+2", "end" }, log)
    end)

    it("draws the same numbers for the same seed", function()
        local function draws(chunksize)
            local seeded <close> = procpool.new(0, { seed = 5 })
            return seeded:map(function() return math.random(1 << 40) end, { 1, 2, 3, 4 }, chunksize)
        end
        assert.same(draws(1), draws(4))
        local one = draws(2)
        assert.not_equal(one[1], one[2])
    end)

    it("counts", function()
        pool:map(function(x) return x end, { 1, 2, 3 })
        pcall(pool.apply, pool, error)
        local stats = pool:stats()
        assert.equal(3, stats.completed)
        assert.equal(1, stats.failed)
        assert.equal(1, #stats.workers)
        assert.equal(4, stats.workers[1].tasks)
        assert.equal("running", stats.state)
        assert.equal("procpool.Pool (running, inline)", tostring(pool))
    end)

    it("waits inside coroutines by await", function()
        local results = {}
        local result = pool:map_async(function(x) return x end, { 1, 2 })
        coroutine.wrap(function() results[1] = procpool.await(result).n end)()
        assert.equal(2, results[1])
        assert.equal("number", procpool.await(pool:apply_async(type, { 1 })))
    end)
end)

describe("an inline imap", function()
    local pool
    before_each(function() pool = procpool.new(0) end)
    after_each(function() pool:terminate() end)
    local function triple(x) return x * 3 end

    it("iterates in order", function()
        for _, name in ipairs { "imap", "imap_unordered" } do
            local seen = {}
            for i, v in pool[name](pool, triple, { 1, 2, 3 }) do seen[i] = v end
            assert.same({ 3, 6, 9 }, seen)
        end
    end)

    it("hands nil results out", function()
        local n = 0
        for i, v in pool:imap(function() end, { 1, 2, 3 }) do
            n = n + 1
            assert.equal(n, i)
            assert.is_nil(v)
        end
        assert.equal(3, n)
    end)

    it("reads at most buffersize items ahead", function()
        local read = 0
        local function items() read = read + 1; return read end
        local iter = pool:imap(triple, items, { buffersize = 5 })
        assert.is_true(read <= 5)
        for k = 1, 100 do
            assert.same({ k, 3 * k }, { iter:next() })
            assert.is_true(read <= k + 5)
        end
        iter:close()
        assert.is_nil(iter:next())
    end)

    it("stays in step for every chunksize", function()
        for _, chunksize in ipairs { 1, 2, 7, 50 } do
            local items, k, sum = {}, 0, 0
            for i = 1, 30 do items[i] = i end
            for i, v in pool:imap(triple, items, { chunksize = chunksize, buffersize = 10 }) do
                k = k + 1
                assert.equal(k, i)
                sum = sum + v
            end
            assert.equal(30, k)
            assert.equal(3 * 465, sum)
        end
    end)

    it("raises a failure at its turn and goes on", function()
        local iter = pool:imap(function(x) if x == 2 then error("two", 0) end return x end, { 1, 2, 3 })
        assert.same({ 1, 1 }, { iter:next() })
        local err = fails("error", iter.next, iter)
        assert.equal(2, err.index)
        assert.same({ 3, 3 }, { iter:next(1) })
        assert.is_nil(iter:next())
        assert.is_nil(iter:next())
    end)

    it("is closed when the loop is left", function()
        local read = 0
        for i in pool:imap(triple, function() read = read + 1; return read end) do
            if i == 3 then break end
        end
        assert.is_true(read < 40)
        pool:close()
        assert.is_true(pool:join(1))
    end)

    it("goes on after close, ends at join", function()
        local items = {}
        for i = 1, 40 do items[i] = i end
        local iter = pool:imap(triple, items)
        pool:close()
        for k = 1, 20 do assert.equal(k, (iter:next())) end
        assert.is_true(pool:join())
        local last
        local ok, err = pcall(function()
            while true do last = iter:next() or error("no closed error") end
        end)
        assert.is_false(ok)
        assert.equal("closed", err.kind)
        assert.is_true(last >= 20)
        assert.is_nil(iter:next())
    end)
end)
