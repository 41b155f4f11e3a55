-- map, starmap and their async kin: order, chunks, iterators, failures. The
-- same for real workers and for none.

local describe, it, assert = describe, it, assert
local before_each, after_each, teardown = before_each, after_each, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

-- A list 1..n.
local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

-- An iterator over 1..n; endless without n.
local function counter(n)
    local i = 0
    return function()
        i = i + 1
        return (not n or i <= n) and i or nil
    end
end

local function double(x) return (x or 0) * 2 end

local CHUNKSIZES = { 1, 2, 3, 7, 10, 79, 80, 81, 1000, 1 << 20, 1 << 40, 2.0 }

for _, processes in ipairs { 0, 2 } do
    describe(("a map in a pool of %d"):format(processes), function()
        local pool
        before_each(function() pool = procpool.new(processes) end)
        after_each(function() pools.finish(pool) end)
        teardown(pools.cleanup)

        it("keeps the order of the items", function()
            for _, n in ipairs { 0, 1, 2, 3, 10, 100, 5000 } do
                local results = pool:map(double, range(n))
                assert.equal(n, results.n)
                assert.equal(n, #results)
                for i = 1, n do assert.equal(2 * i, results[i]) end
            end
        end)

        it("takes every chunksize", function()
            for _, chunksize in ipairs(CHUNKSIZES) do
                for _, given in ipairs { chunksize, { chunksize = chunksize } } do
                    local results = pool:map(double, range(80), given)
                    assert.equal(80, results.n)
                    for i = 1, 80 do assert.equal(2 * i, results[i]) end
                end
            end
        end)

        it("honours n and passes holes on", function()
            assert.same({ 2, 0, 6, 0, n = 4 }, pool:map(double, { 1, nil, 3, n = 4 }))
            assert.same({ 2, n = 1 }, pool:map(double, { 1, 2, 3, n = 1 }))
            assert.same({ 2, 4, n = 2 }, pool:map(double, { 1, 2, 3, n = 2.0 }))
            assert.same({ n = 0 }, pool:map(double, { 1, n = 0 }))
            assert.same({ 0, 0, 0, n = 3 }, pool:map(double, { n = 3 }, 2))
        end)

        it("keeps nil results in their places, and first results only", function()
            local results = pool:map(function(x)
                if x % 2 == 0 then return nil, "second" end
                return x, "second"
            end, range(7), 3)
            assert.same({ 1, nil, 3, nil, 5, nil, 7, n = 7 }, results)
            assert.same({ n = 3 }, pool:map(function() end, range(3)))
            assert.same({ false, false, n = 2 }, pool:map(function() return false end, range(2)))
        end)

        it("takes an iterator, however long", function()
            for _, chunksize in ipairs { false, 1, 7, 100 } do
                for _, n in ipairs { 0, 1, 7, 100, 3000 } do
                    local results = pool:map(double, counter(n), chunksize or nil)
                    assert.equal(n, results.n)
                    for i = 1, n do assert.equal(2 * i, results[i]) end
                end
            end
        end)

        it("takes iterators of the libraries", function()
            assert.same({ "A", "B", "C", n = 3 },
                pool:map(string.upper, ("a b c"):gmatch("%a")))
            assert.same({ 2, 4, n = 2 }, pool:map(double, coroutine.wrap(function()
                coroutine.yield(1)
                coroutine.yield(2)
            end)))
            local path = pools.path()
            for i = 1, 100 do pools.note(path, i) end
            local lengths = pool:map(string.len, io.lines(path), 9)
            assert.equal(100, lengths.n)
            assert.equal(3, lengths[100])
        end)

        it("takes false as an item of an iterator", function()
            local items, i = { 1, false, 3 }, 0
            local results = pool:map(function(x) return { x } end, function()
                i = i + 1
                return items[i]
            end)
            assert.equal(3, results.n)
            assert.is_false(results[2][1])
        end)

        it("calls the iterator no more after its nil", function()
            local calls = 0
            pool:map(double, function()
                calls = calls + 1
                if calls <= 10 then return calls end
                assert(calls == 11)
            end, 4)
            assert.equal(11, calls)
        end)

        it("starmaps", function()
            local add = function(a, b, ...) return (a or 0) + (b or 0) + select("#", ...) end
            assert.same({ 3, 7, 5, 0, n = 4 },
                pool:starmap(add, { { 1, 2 }, { 3, 4 }, { nil, 5, n = 2 }, {} }))
            assert.same({ 5, n = 1 }, pool:starmap(add, { { 1, 2, nil, nil, n = 4.0 } }))
            local i = 0
            local results = pool:starmap(add, function()
                i = i + 1
                return i <= 100 and { i, i } or nil
            end, 8)
            assert.equal(100, results.n)
            for k = 1, 100 do assert.equal(2 * k, results[k]) end
            assert.same({ 3, n = 1 }, pool:starmap_async(add, { { 1, 2 } }):get())
        end)

        it("starmap fails an item that is not a list", function()
            local results, failures = pool:starmap(double, { { 1 }, 2, "x", { 4 } },
                { errors = "collect" })
            assert.equal(2, failures)
            assert.equal(2, results[1])
            assert.equal(8, results[4])
            assert.equal("unserializable", results[2].kind)
            assert.equal(3, results[3].index)
            assert.is_truthy(results[2].message:find("a table of arguments expected, got number", 1, true))
        end)

        it("gives async results like those of map", function()
            local result = pool:map_async(double, range(100), 7)
            assert.is_true(result:wait(60))
            local list = result:get()
            assert.equal(100, list.n)
            assert.equal(200, list[100])
            assert.equal(list, result:get())
            local empty = pool:map_async(double, {})
            assert.is_true(empty:ready())
            assert.same({ n = 0 }, empty:get())
            local failures
            list, failures = pool:map_async(error, range(3), { errors = "collect" }):get()
            assert.equal(3, failures)
            assert.equal(3, list.n)
        end)

        it("delivers all neighbours of one bad item, whatever the chunksize", function()
            for _, chunksize in ipairs(CHUNKSIZES) do
                for _, bad in ipairs { 1, 10, 11, 37, 80 } do
                    local results, failures = pool:map(function(x)
                        if x == bad then error({ bad = x }) end
                        return -x
                    end, range(80), { chunksize = chunksize, errors = "collect" })
                    assert.equal(1, failures)
                    assert.equal(80, results.n)
                    for i = 1, 80 do
                        if i ~= bad then
                            assert.equal(-i, results[i])
                        end
                    end
                    local err = results[bad]
                    assert.is_true(procpool.iserror(err))
                    assert.equal("error", err.kind)
                    assert.equal(bad, err.index)
                    assert.equal(bad, err.value.bad)
                end
            end
        end)

        it("raises the failure of one bad item, whatever the chunksize", function()
            for _, chunksize in ipairs(CHUNKSIZES) do
                for _, bad in ipairs { 1, 10, 11, 80 } do
                    local err = fails("error", pool.map, pool, function(x)
                        if x == bad then error("bad " .. x, 0) end
                        return x
                    end, range(80), chunksize)
                    assert.equal(bad, err.index)
                    assert.equal("bad " .. bad, err.value)
                end
            end
            assert.equal(1, pool:apply(function() return 1 end))
        end)

        it("collects when every item fails, or none", function()
            for _, chunksize in ipairs { 1, 10, 100 } do
                local results, failures = pool:map(function(x) error(x, 0) end, range(80),
                    { errors = "collect", chunksize = chunksize })
                assert.equal(80, failures)
                for i = 1, 80 do
                    assert.equal(i, results[i].value)
                    assert.equal(i, results[i].index)
                end
                results, failures = pool:map(double, range(80),
                    { errors = "collect", chunksize = chunksize })
                assert.equal(0, failures)
                assert.equal(160, results[80])
            end
        end)

        it("has one result only with errors = raise", function()
            assert.equal(1, select("#", pool:map(double, { 1 })))
            assert.equal(1, select("#", pool:map(double, { 1 }, { errors = "raise" })))
            assert.equal(2, select("#", pool:map(double, { 1 }, { errors = "collect" })))
            assert.equal(1, select("#", pool:map_async(double, { 1 }):get()))
        end)

        it("fails an item that cannot travel, and that alone", function()
            local items = range(20)
            items[7] = io.stdout
            items[13] = { deep = { coroutine.create(print) } }
            for _, chunksize in ipairs { 1, 5, 20 } do
                local results, failures = pool:map(type, items,
                    { errors = "collect", chunksize = chunksize })
                assert.equal(2, failures)
                assert.equal("unserializable", results[7].kind)
                assert.equal(7, results[7].index)
                assert.is_truthy(results[13].message:find("deep[1]", 1, true), results[13].message)
                for i = 1, 20 do
                    if i ~= 7 and i ~= 13 then assert.equal("number", results[i]) end
                end
                -- The failure that is known first: of two workers, either may be ahead.
                local index = fails("unserializable", pool.map, pool, type, items, chunksize).index
                assert.is_true(index == 7 or processes > 1 and chunksize < 20 and index == 13, index)
                local one = range(20)
                one[7] = io.stdout
                assert.equal(7, fails("unserializable", pool.map, pool, type, one, chunksize).index)
            end
        end)

        it("fails an item whose result cannot travel, and that alone", function()
            local results, failures = pool:map(function(x)
                return x % 3 == 0 and io.stdout or x
            end, range(9), { errors = "collect", chunksize = 4 })
            assert.equal(3, failures)
            assert.equal("unserializable", results[6].kind)
            assert.equal(6, results[6].index)
            assert.equal(8, results[8])
        end)

        it("refuses a function that cannot travel, with nothing queued", function()
            local out = io.stdout
            local function f() return out end
            for _, name in ipairs { "map", "map_async", "starmap", "imap", "imap_unordered" } do
                local err = fails("unserializable", pool[name], pool, f, range(3))
                assert.is_truthy(err.message:find("out", 1, true), err.message)
            end
            assert.equal(0, pool:stats().queued)
        end)

        it("lets an error of the items' iterator out as it is", function()
            for _, at in ipairs { 1, 2, 5, 6, 100 } do
                for _, chunksize in ipairs { 1, 5, 1000 } do
                    local problem = { at }
                    local function items()
                        local next_item = counter()
                        return function()
                            local i = next_item()
                            if i == at then error(problem) end
                            return i
                        end
                    end
                    for _, name in ipairs { "map", "map_async" } do
                        local ok, err = pcall(pool[name], pool, double, items(), chunksize)
                        assert.is_false(ok)
                        assert.equal(problem, err)
                    end
                end
            end
            assert.same({ 2, n = 1 }, pool:map(double, { 1 }))
        end)

        it("sees upvalues as they were at its submission", function()
            local factor = 2
            local result = pool:map_async(function(x) return x * factor end, range(50), 5)
            factor = 1000
            local list = result:get()
            for i = 1, 50 do assert.equal(2 * i, list[i]) end
        end)

        it("may be nested in another's iterator", function()
            local i = 0
            local results = pool:map(double, function()
                i = i + 1
                return i <= 5 and pool:map(double, { i })[1] or nil
            end)
            assert.same({ 4, 8, 12, 16, 20, n = 5 }, results)
        end)

        it("shows its progress in step", function()
            local last, totals = 0, {}
            pool:map(double, range(500), { chunksize = 10, progress = function(done, total)
                assert.is_true(done > last or done == 0)
                last = done
                totals[total] = true
            end })
            assert.equal(500, last)
            assert.same({ [500] = true }, totals)
        end)

        it("counts failed items as done in its progress", function()
            local last
            pool:map(function(x) if x % 2 == 0 then error(x) end end, range(100),
                { errors = "collect", progress = function(done) last = done end })
            assert.equal(100, last)
        end)
    end)
end

describe("a map in real workers", function()
    teardown(pools.cleanup)

    it("cancels items that had not begun when it fails", function()
        for _, chunksize in ipairs { 1, 10, 100 } do
            local pool <close> = procpool.new(2)
            local log = pools.path()
            local err = fails("error", pool.map, pool, function(x)
                pools.note(log, x)
                if x == 5 then error("five", 0) end
                pools.nap(0.001)
            end, range(2000), chunksize)
            assert.equal(5, err.index)
            pools.eventually("nothing running", function()
                local stats = pool:stats()
                return stats.running + stats.queued == 0
            end)
            local ran = #pools.notes(log)
            assert.is_true(ran < 1000, ran .. " ran")
            local stats = pool:stats()
            assert.equal(1, stats.failed)
            assert.equal(ran, stats.completed + stats.failed)
            assert.is_true(stats.completed + stats.failed + stats.cancelled <= 2000)
        end
    end)

    it("raises as soon as a failure is known", function()
        local pool = procpool.new(2)
        local gate = pools.gate()
        local err = fails("error", pool.map, pool, function(x)
            if x == 1 then pools.pass(gate) end
            error(x, 0)
        end, range(2), 1)
        assert.equal(2, err.index) -- 1 still runs
        pools.open(gate)
        pool:close()
        assert.is_true(pool:join(20))
    end)

    it("raises the failure with the smallest index among those seen", function()
        local pool <close> = procpool.new(2)
        local gate = pools.gate()
        local result = pool:map_async(function(x)
            pools.pass(gate)
            error(x, 0)
        end, range(2), { chunksize = 1 })
        pools.open(gate)
        -- nothing is taken in before both have failed
        pools.eventually("an idle pool", function()
            local stats = pool._handle:stats()
            return stats.busy + stats.queued == 0
        end)
        assert.equal(1, fails("error", result.get, result).index)
    end)

    it("uses all workers, and tunes chunks to few or many items", function()
        local pool <close> = procpool.new(2)
        local log, gate = pools.path(), pools.gate()
        local result = pool:map_async(function() pools.pass(gate, log) end, range(8))
        pools.await_notes(log, 2)
        pools.open(gate)
        result:get()
        assert.equal(8, #pools.notes(log))
        assert.equal(100000, pool:map(double, range(100000)).n)
    end)

    it("stops reading an endless iterator when an item fails", function()
        local pool <close> = procpool.new(2)
        for _, chunksize in ipairs { 1, 10, false } do
            local err = fails("error", pool.map, pool, function(x)
                if x == 1000 then error("enough", 0) end
            end, counter(), chunksize or nil)
            assert.equal(1000, err.index)
        end
    end)

    it("of 20,000 items gives each its own result, with either kind of input", function()
        local pool <close> = procpool.new(2)
        for _, items in ipairs { range(20000), counter(20000) } do
            local results = pool:map(function(x) return x * 3 end, items)
            for i = 1, 20000 do
                if results[i] ~= 3 * i then assert.equal(3 * i, results[i]) end
            end
        end
    end)

    it("runs side by side with others", function()
        local pool <close> = procpool.new(2)
        local results = {}
        for k = 1, 20 do
            results[k] = pool:map_async(function(x) return x * k end, range(100), k)
        end
        for k = 20, 1, -1 do
            local list = results[k]:get()
            for i = 1, 100 do assert.equal(i * k, list[i]) end
        end
    end)
end)
