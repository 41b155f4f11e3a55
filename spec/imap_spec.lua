-- imap and imap_unordered: order, laziness, failures at their turn, leaving
-- early. The same for real workers and for none.

local describe, it, assert = describe, it, assert
local before_each, after_each, teardown = before_each, after_each, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local fails = pools.fails

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

-- An iterator over 1..n, endless without n; and how many it gave.
local function counter(n)
    local given = { n = 0 }
    return function()
        if given.n == n then return nil end
        given.n = given.n + 1
        return given.n
    end, given
end

local function triple(x) return x * 3 end

for _, processes in ipairs { 0, 2 } do
    describe(("an imap in a pool of %d"):format(processes), function()
        local pool
        before_each(function() pool = procpool.new(processes) end)
        after_each(function() pools.finish(pool) end)
        teardown(pools.cleanup)

        it("iterates over a list in order", function()
            local k = 0
            for i, v in pool:imap(triple, range(300)) do
                k = k + 1
                assert.equal(k, i)
                assert.equal(3 * k, v)
            end
            assert.equal(300, k)
        end)

        it("unordered, iterates over each item once", function()
            for _, chunksize in ipairs { 1, 3, 50, 1000 } do
                local seen = {}
                for i, v in pool:imap_unordered(triple, range(300), { chunksize = chunksize }) do
                    assert.is_nil(seen[i])
                    seen[i] = v
                end
                assert.equal(300, #seen)
                for i = 1, 300 do assert.equal(3 * i, seen[i]) end
            end
        end)

        it("takes lists with holes, iterators, no items", function()
            for _, name in ipairs { "imap", "imap_unordered" } do
                local seen = {}
                for i, v in pool[name](pool, function(x) return x or "nil" end, { 1, nil, 3, nil, n = 4 }) do
                    seen[i] = v
                end
                assert.same({ 1, "nil", 3, "nil" }, seen)
                local n = 0
                for _ in pool[name](pool, triple, (counter(100))) do n = n + 1 end
                assert.equal(100, n)
                for _ in pool[name](pool, triple, {}) do error("an item") end
                for _ in pool[name](pool, triple, function() end) do error("an item") end
            end
        end)

        it("hands nil and false results out", function()
            for _, name in ipairs { "imap", "imap_unordered" } do
                local n = 0
                for i, v in pool[name](pool, function(x)
                    if x % 2 == 0 then return false end
                end, range(40), { chunksize = 3 }) do
                    n = n + 1
                    if i % 2 == 0 then assert.is_false(v) else assert.is_nil(v) end
                end
                assert.equal(40, n)
            end
        end)

        it("is by default 16 items ahead, at least", function()
            local items, given = counter()
            local iter = pool:imap(triple, items)
            assert.is_true(given.n <= 16)
            iter:next()
            assert.is_true(given.n <= 17)
            iter:close()
            items, given = counter()
            iter = pool:imap(triple, items, { chunksize = 20 })
            assert.is_true(given.n <= 2 * math.max(1, processes) * 20)
            assert.is_true(given.n >= 20)
            iter:close()
        end)

        it("reads at most buffersize items ahead, whatever the chunksize", function()
            for _, name in ipairs { "imap", "imap_unordered" } do
                for _, buffersize in ipairs { 1, 2, 5, 16, 100 } do
                    for _, chunksize in ipairs { 1, 3, 1000 } do
                        local items, given = counter(300)
                        local delivered = 0
                        for _ in pool[name](pool, triple, items,
                            { buffersize = buffersize, chunksize = chunksize }) do
                            delivered = delivered + 1
                            if given.n - delivered > buffersize then
                                assert.equal(buffersize, given.n - delivered)
                            end
                        end
                        assert.equal(300, delivered)
                    end
                end
            end
        end)

        it("raises a failure at its turn and goes on", function()
            for _, chunksize in ipairs { 1, 2, 3, 100 } do
                local iter = pool:imap(function(x)
                    if x % 3 == 0 then error("no " .. x, 0) end
                    return x
                end, range(30), { chunksize = chunksize })
                for i = 1, 30 do
                    if i % 3 == 0 then
                        local err = fails("error", iter.next, iter)
                        assert.equal(i, err.index)
                        assert.equal("no " .. i, err.value)
                    else
                        assert.same({ i, i }, { iter:next() })
                    end
                end
                assert.is_nil(iter:next())
            end
        end)

        it("unordered, raises failures and goes on", function()
            local iter = pool:imap_unordered(function(x)
                if x % 2 == 0 then error(x, 0) end
                return x
            end, range(30), { chunksize = 4 })
            local good, bad = 0, 0
            for _ = 1, 30 do
                local ok, a, b = pcall(iter.next, iter)
                if ok then
                    good = good + 1
                    assert.equal(a, b)
                else
                    bad = bad + 1
                    assert.equal(a.index, a.value)
                end
            end
            assert.equal(15, good)
            assert.equal(15, bad)
            assert.is_nil(iter:next())
        end)

        it("fails items that cannot travel at their turn", function()
            local iter = pool:imap(type, { 1, io.stdout, 3 }, { chunksize = 3 })
            assert.same({ 1, "number" }, { iter:next() })
            assert.equal(2, fails("unserializable", iter.next, iter).index)
            assert.same({ 3, "number" }, { iter:next() })
            assert.is_nil(iter:next())
        end)

        it("raises the items' error after all earlier items, once", function()
            for _, name in ipairs { "imap", "imap_unordered" } do
                for _, at in ipairs { 1, 2, 17, 40 } do
                    for _, chunksize in ipairs { 1, 4, 100 } do
                        local problem = { at }
                        local items = counter()
                        local iter = pool[name](pool, triple, function()
                            local i = items()
                            if i == at then error(problem) end
                            return i
                        end, { chunksize = chunksize })
                        for _ = 1, at - 1 do assert.is_truthy(iter:next()) end
                        local ok, err = pcall(iter.next, iter)
                        assert.is_false(ok)
                        assert.equal(problem, err)
                        assert.is_nil(iter:next())
                    end
                end
            end
        end)

        it("cancels the rest when the loop is left", function()
            for _, name in ipairs { "imap", "imap_unordered" } do
                for _, leave in ipairs { "break", "return", "error", "goto" } do
                    local items, given = counter()
                    local function loop()
                        for i in pool[name](pool, triple, items, { buffersize = 20 }) do
                            if i >= 30 and leave == "break" then break end
                            if i >= 30 and leave == "return" then return end
                            if i >= 30 and leave == "error" then error("left") end
                            if i >= 30 then goto out end
                        end
                        ::out::
                    end
                    pcall(loop)
                    assert.is_true(given.n < 80, given.n)
                    local after = given.n
                    assert.equal(1, pool:apply(function() return 1 end))
                    assert.equal(after, given.n)
                end
            end
            pool:close()
            assert.is_true(pool:join(20))
        end)

        it("is over after close, and once more", function()
            local iter = pool:imap(triple, (counter()))
            iter:next()
            iter:close()
            iter:close()
            assert.is_nil(iter:next())
            assert.is_nil(iter())
            assert.equal("procpool.Imap (1 delivered)", tostring(iter))
        end)

        it("ends when its pool is closed and joined", function()
            local iter = pool:imap(triple, (counter()))
            for k = 1, 10 do assert.equal(k, (iter:next())) end
            pool:close()
            for k = 11, 40 do assert.same({ k, 3 * k }, { iter:next() }) end
            assert.is_true(pool:join(20))
            local last
            local err = fails("closed", function()
                while true do
                    last = iter:next() or error("no error of kind closed")
                end
            end)
            assert.is_truthy(err)
            assert.is_true(last >= 40)
            assert.is_nil(iter:next())
        end)

        it("lets a pool go that is closed while it still reads", function()
            local pool2 = procpool.new(processes)
            local seen = 0
            local iter = pool2:imap(triple, range(200))
            pool2:close()
            for i, v in iter do
                seen = seen + 1
                assert.equal(3 * i, v)
            end
            assert.equal(200, seen)
            assert.is_true(pool2:join(20))
        end)

        it("fails with what became of its pool", function()
            local iter = pool:imap(triple, (counter()), { buffersize = 5 })
            iter:next()
            pool:terminate()
            local err = fails("terminated", function()
                while true do
                    if not iter:next() then return end
                end
            end)
            assert.is_truthy(err)
        end)

        it("may be nested in another", function()
            local sum = 0
            for _, a in pool:imap(triple, range(10)) do
                for _, b in pool:imap(triple, range(a % 5 + 1)) do sum = sum + b end
            end
            local expected = 0
            for a = 1, 10 do
                for b = 1, 3 * a % 5 + 1 do expected = expected + 3 * b end
            end
            assert.equal(expected, sum)
        end)

        it("may feed another", function()
            local first = pool:imap(triple, range(200), { chunksize = 3 })
            local k = 0
            for i, v in pool:imap(triple, function()
                local _, value = first()
                return value
            end, { chunksize = 4 }) do
                k = k + 1
                assert.equal(k, i)
                assert.equal(9 * k, v)
            end
            assert.equal(200, k)
        end)

        it("is collected when forgotten, and its tasks with it", function()
            local weak = setmetatable({}, { __mode = "k" })
            local function forget()
                for _ = 1, 10 do
                    local iter = pool:imap(triple, range(1000), { buffersize = 8 })
                    iter:next()
                    weak[iter] = true
                end
            end
            forget()
            collectgarbage()
            collectgarbage()
            assert.is_nil(next(weak))
            assert.equal(1, pool:apply(function() return 1 end))
            pool:close()
            assert.is_true(pool:join(20))
        end)

        it("raises from the loop what its body raises", function()
            local ok, err = pcall(function()
                for _ in pool:imap(triple, range(100)) do error("body", 0) end
            end)
            assert.is_false(ok)
            assert.equal("body", err)
        end)

        it("sees upvalues as they were at the start", function()
            local factor = 2
            local items = counter(100)
            for i, v in pool:imap(function(x) return x * factor end, items) do
                factor = 1000
                assert.equal(2 * i, v)
            end
        end)

        it("reads a file line by line", function()
            local path = pools.path()
            for i = 1, 300 do pools.note(path, "line " .. i) end
            local n = 0
            for i, v in pool:imap(string.upper, io.lines(path), { chunksize = 7 }) do
                n = n + 1
                assert.equal("LINE " .. i, v)
            end
            assert.equal(300, n)
        end)

        it("takes its own time limit", function()
            local iter = pool:imap(function(x)
                while x == 2 do end
                return x
            end, range(3), { timeout = 0.05, chunksize = 3 })
            assert.same({ 1, 1 }, { iter:next() })
            assert.equal(2, fails("timelimit", iter.next, iter).index)
            assert.same({ 3, 3 }, { iter:next() })
        end)
    end)
end

describe("an imap in real workers", function()
    teardown(pools.cleanup)

    it("delivers each item as soon as it is there", function()
        local pool <close> = procpool.new(2)
        local gate = pools.gate()
        local iter = pool:imap(function(x)
            if x == 3 then pools.pass(gate) end
            return x
        end, range(10))
        assert.same({ 1, 1 }, { iter:next() })
        assert.same({ 2, 2 }, { iter:next() })
        fails("timeout", iter.next, iter, 0)
        fails("timeout", iter.next, iter, 0.02)
        pools.open(gate)
        for i = 3, 10 do assert.same({ i, i }, { iter:next(20) }) end
        assert.is_nil(iter:next(20))
    end)

    it("delivers items of a chunk before the chunk is over", function()
        local pool <close> = procpool.new(1)
        local gate = pools.gate()
        local iter = pool:imap(function(x)
            if x == 5 then pools.pass(gate) end
            pools.nap(0.001)
            return x
        end, range(5), { chunksize = 5 })
        for i = 1, 4 do assert.equal(i, (iter:next(10))) end
        pools.open(gate)
        assert.equal(5, (iter:next()))
    end)

    it("unordered, is not held up by one slow item", function()
        local pool <close> = procpool.new(2)
        local gate = pools.gate()
        local iter = pool:imap_unordered(function(x)
            if x == 1 then pools.pass(gate) end
            return x
        end, range(15))
        local seen = {}
        for _ = 2, 15 do seen[iter:next(20)] = true end
        assert.is_nil(seen[1])
        pools.open(gate)
        assert.same({ 1, 1 }, { iter:next(20) })
    end)

    it("works ahead of its reader by buffersize, no more", function()
        local pool <close> = procpool.new(2)
        local log = pools.path()
        local iter = pool:imap(function(x) pools.note(log, x) end, (counter()), { buffersize = 10 })
        pools.await_notes(log, 10)
        pools.nap(0.02)
        assert.equal(10, #pools.notes(log))
        for k = 1, 5 do assert.equal(k, (iter:next())) end
        pools.await_notes(log, 14)
        pools.nap(0.02)
        assert.is_true(#pools.notes(log) <= 15)
        iter:close()
    end)

    it("left early, does not start the rest, and stops what runs", function()
        local pool = procpool.new(2, { grace = 0.05 })
        local log = pools.path()
        for i in pool:imap(function(x)
            pools.note(log, x)
            while x > 1 do end
        end, range(100), { buffersize = 50 }) do
            assert.equal(1, i)
            if i == 1 then break end
        end
        pool:close()
        assert.is_true(pool:join(20))
        assert.is_true(#pools.notes(log) <= 3, #pools.notes(log))
    end)

    it("forgotten, lets its tasks be cancelled", function()
        local pool = procpool.new(2, { grace = 0.05 })
        local function start()
            pool:imap(function() while true do end end, range(10))
        end
        collectgarbage("stop") -- or it may be forgotten before they run
        start()
        pools.eventually("running tasks", function() return pool:stats().busy == 2 end)
        collectgarbage("restart")
        collectgarbage()
        collectgarbage()
        pool:close()
        assert.is_true(pool:join(20))
    end)

    it("is endless if its input is", function()
        local pool <close> = procpool.new(2)
        local last
        for i, v in pool:imap(triple, (counter()), { chunksize = 8 }) do
            if v ~= 3 * i then assert.equal(3 * i, v) end
            last = i
            if i == 20000 then break end
        end
        assert.equal(20000, last)
    end)

    it("goes through recycling and dead workers", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 3 })
        local iter = pool:imap(function(x)
            if x == 50 then pools.kill(require("procpool").worker.pid) end
            return x
        end, range(100), { chunksize = 7 })
        for i = 1, 100 do
            if i == 50 then
                local err = fails("lost", iter.next, iter)
                assert.equal(50, err.index)
                assert.equal(9, err.signal)
            else
                assert.same({ i, i }, { iter:next(20) })
            end
        end
        assert.is_nil(iter:next())
    end)
end)
