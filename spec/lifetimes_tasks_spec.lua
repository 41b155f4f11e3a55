-- maxtasksperchild: exact to the call, whatever the chunks; nothing is lost,
-- doubled or delayed by the recycling.
-- limit: 180 s

local describe, it, assert = describe, it, assert
local teardown = teardown
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

-- Task: which life ran it, and as which task of that life.
local function whoami(x)
    local w = require("procpool").worker
    return { x = x, life = ("%d/%d/%d"):format(w.id, w.generation, w.pid),
        slot = w.id, generation = w.generation, pid = w.pid, tasks = w.tasks }
end

-- The lives of a list of such answers: how many tasks each ran. Every life ran
-- its tasks as number 0, 1, 2, ... and no pid or (slot, generation) twice.
local function lives_of(list)
    local lives, count = {}, 0
    local slots = {}
    for i = 1, list.n or #list do
        local w = list[i]
        local life = lives[w.life]
        if not life then
            life = { n = 0, seen = {} }
            lives[w.life], count = life, count + 1
            local key = w.slot .. "/" .. w.generation
            assert(not slots[key], "one generation, two processes")
            slots[key] = true
        end
        assert(not life.seen[w.tasks], "one number twice")
        life.seen[w.tasks], life.n = true, life.n + 1
    end
    for _, life in pairs(lives) do
        for k = 0, life.n - 1 do assert(life.seen[k], "a number is missing") end
    end
    return lives, count
end

for _, processes in ipairs { 0, 1, 2 } do
    describe(("maxtasksperchild in a pool of %d"):format(processes), function()
        teardown(pools.cleanup)

        local chunksizes = processes == 1 and { 1, 7, 100, 0 } or { 1, 3, 7, 10, 25, 100, 0 }
        for _, chunksize in ipairs(chunksizes) do
            it(("is exact, chunksize %s"):format(chunksize > 0 and chunksize or "self-tuned"), function()
                for _, limit in ipairs { 1, 3, 7, 25 } do
                    local pool <close> = procpool.new(processes, { maxtasksperchild = limit })
                    local tasks = 40
                    local list = pool:map(whoami, range(tasks), chunksize > 0 and chunksize or nil)
                    assert.equal(tasks, list.n)
                    for i = 1, tasks do assert.equal(i, list[i].x) end
                    local lives, count = lives_of(list)
                    local full = 0
                    for _, life in pairs(lives) do
                        assert.is_true(life.n <= limit)
                        full = full + (life.n == limit and 1 or 0)
                    end
                    -- all lives but the last of each slot ran to their limit
                    assert.is_true(count - full <= math.max(1, processes))
                    local needed = math.ceil(tasks / limit)
                    assert.is_true(count >= needed and count < needed + math.max(1, processes),
                        ("%d lives, limit %d"):format(count, limit))
                    if processes < 2 then assert.equal(needed, count) end
                    pools.eventually("as many recycled as ran full", function()
                        return pool:stats().recycled.tasks == full
                    end)
                end
            end)
        end

        it("counts every kind of task: calls, items, failures, imaps", function()
            local pool <close> = procpool.new(processes, { maxtasksperchild = 5 })
            local answers = {}
            local function ask(x)
                local me = whoami(x)
                if x and x % 2 == 0 then error(me) end
                return me
            end
            local function add(ok, v) answers[#answers + 1] = ok and v or v.value end
            for i = 1, 20 do add(pcall(pool.apply, pool, ask, { i })) end
            local list = pool:map(ask, range(20), { errors = "collect", chunksize = 4 })
            for i = 1, 20 do
                add(not procpool.iserror(list[i]), list[i])
            end
            for _, v in pool:imap(ask, { 1, 3, 5, 7, 9, 11, 13, 15, 17, 19 }, { chunksize = 3 }) do add(true, v) end
            assert.equal(50, #answers)
            local lives, count = lives_of(answers)
            for _, life in pairs(lives) do assert.is_true(life.n <= 5) end
            assert.is_true(count >= 10 and count <= 10 + math.max(0, processes - 1), count)
        end)

        it("is not reached by items that could not be decoded or sent", function()
            local pool <close> = procpool.new(math.min(processes, 1), { maxtasksperchild = 4 })
            local items = { 1, io.stdout, 3, 4, io.stdout, 6, 7, 8 }
            local list, failures = pool:map(whoami, items, { errors = "collect", chunksize = 8 })
            assert.equal(2, failures)
            local answers = {}
            for i = 1, 8 do
                if not procpool.iserror(list[i]) then answers[#answers + 1] = list[i] end
            end
            local _, count = lives_of(answers)
            assert.equal(2, count)
        end)

        it("is not disturbed by close with a backlog", function()
            for _, case in ipairs { { 1, 2, 5 }, { 1, 2, 6 }, { 2, 2, 8 }, { 3, 1, 6 }, { 2, 1, 20 } } do
                local workers, limit, tasks = table.unpack(case)
                local pool = procpool.new(processes == 0 and 0 or workers, { maxtasksperchild = limit })
                local results = {}
                for i = 1, tasks do results[i] = pool:apply_async(whoami, { i }) end
                pool:close()
                assert.is_true(pool:join(30))
                local list = {}
                for i = 1, tasks do
                    list[i] = results[i]:get(0)
                    assert.equal(i, list[i].x)
                end
                for _, life in pairs((lives_of(list))) do assert.is_true(life.n <= limit) end
            end
        end)

        it("gives each life an empty state, the same slot", function()
            local pool <close> = procpool.new(processes, { maxtasksperchild = 3 })
            local list = pool:map(function()
                local w = require("procpool").worker
                w.state.n = (w.state.n or 0) + 1
                return { n = w.state.n, tasks = w.tasks, id = w.id }
            end, range(30), 4)
            for _, w in ipairs(list) do
                assert.equal(w.tasks + 1, w.n)
                assert.is_true(w.id <= math.max(1, processes))
            end
        end)
    end)
end

describe("recycling", function()
    teardown(pools.cleanup)

    it("does what CPython's test_pool_worker_lifetime asks", function()
        local pool = procpool.new(3, { maxtasksperchild = 10 })
        pools.settled(pool)
        local first = pools.pids(pool)
        assert.equal(3, #first)
        local results = {}
        local function square(x)
            pools.nap(0.005) -- or one worker might leave too few to the others
            return x * x
        end
        for i = 1, 100 do results[i] = pool:apply_async(square, { i }) end
        for i = 1, 100 do assert.equal(i * i, results[i]:get(30)) end
        -- all workers were replaced, without help from the parent
        local old = {}
        for _, pid in ipairs(first) do old[pid] = true end
        pools.settled(pool)
        for _, pid in ipairs(pools.pids(pool)) do assert.is_nil(old[pid]) end
        pools.await_gone(first)
        pool:close()
        assert.is_true(pool:join(20))
    end)

    it("does what its test_pool_worker_lifetime_early_close asks", function()
        local pool = procpool.new(3, { maxtasksperchild = 1 })
        local results = {}
        for i = 1, 6 do
            results[i] = pool:apply_async(function(x) pools.nap(0.03) return x * x end, { i })
        end
        pool:close()
        assert.is_true(pool:join(30))
        for i = 1, 6 do assert.equal(i * i, results[i]:get(0)) end
    end)

    it("copes with a backlog larger than workers * limit", function()
        for _, case in ipairs { { 1, 2, 5 }, { 1, 2, 6 }, { 2, 2, 8 }, { 3, 1, 50 } } do
            local workers, limit, tasks = table.unpack(case)
            local pool <close> = procpool.new(workers, { maxtasksperchild = limit })
            local results = {}
            for i = 1, tasks do results[i] = pool:apply_async(whoami, { i }) end
            local list = {}
            for i = 1, tasks do
                list[i] = results[i]:get(60)
                if list[i].x ~= i then assert.equal(i, list[i].x) end
            end
            for _, life in pairs((lives_of(list))) do assert.is_true(life.n <= limit) end
        end
    end)

    it("after every task, over many tasks, loses none and doubles none", function()
        local tasks = os.getenv("PROCPOOL_LONG") and 100000 or 500
        local pool <close> = procpool.new(3, { maxtasksperchild = 1 })
        local log = pools.path()
        local results, list = {}, {}
        for i = 1, tasks do
            results[i] = pool:apply_async(function(x)
                pools.note(log, x)
                return whoami(x)
            end, { i })
        end
        for i = 1, tasks do
            list[i] = results[i]:get(100)
            if list[i].x ~= i then assert.equal(i, list[i].x) end
        end
        local _, count = lives_of(list)
        assert.equal(tasks, count)
        local seen = {}
        for _, line in ipairs(pools.notes(log)) do
            assert(not seen[line], line)
            seen[line] = true
        end
        pools.eventually("all counted", function()
            return pool:stats().recycled.tasks == tasks
        end)
        assert.equal(0, pool:stats().recycled.crash)
    end)

    it("goes on while the parent makes no call", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 1 })
        local log = pools.path()
        for _ = 1, 50 do
            pool:apply_async(function(l) pools.note(l, require("procpool").worker.pid) end, { log })
        end
        local pids = {}
        for _, pid in ipairs(pools.await_notes(log, 50)) do
            assert.is_nil(pids[pid])
            pids[pid] = true
        end
    end)

    it("never has more processes than workers and their successors", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 2 })
        local keeper = pools.keeper(pool)
        local results = {}
        for i = 1, 300 do results[i] = pool:apply_async(whoami, { i }) end
        local most = 0
        for i = 1, 300 do
            results[i]:wait(30)
            if i % 10 == 0 then most = math.max(most, #pools.children(keeper)) end
        end
        -- each slot: those that leave, the one that works, the next; four at most
        assert.is_true(most <= 8, most)
        assert.is_true(most >= 1)
    end)

    it("has the successor ready before its predecessor leaves", function()
        local events, log = {}, pools.path()
        local pool <close> = procpool.new(1, {
            maxtasksperchild = 5,
            initializer = function() pools.nap(0.05) end,
            onevent = function(e)
                events[#events + 1] = e
                if e.kind == "worker_ready" then pools.note(log, e.generation) end
            end,
        })
        -- no task of a life ends before the next life is ready
        local list = pool:map(function(x)
            pools.await_notes(log, procpool.worker.generation + 1)
            return whoami(x)
        end, range(25), 1)
        assert.equal(25, list.n)
        pools.eventually("four exits", function()
            pool:poll(0.01)
            return pool:stats().recycled.tasks >= 4
        end)
        pool:poll()
        -- generation g + 1 is ready before generation g goes
        local ready, checked = {}, 0
        for _, e in ipairs(events) do
            if e.kind == "worker_ready" then
                ready[e.generation] = e.time
            elseif e.kind == "worker_exit" and e.generation <= 4 then
                assert.equal("tasks", e.reason)
                assert.is_truthy(ready[e.generation + 1], "no successor of " .. e.generation)
                assert.is_true(ready[e.generation + 1] <= e.time)
                checked = checked + 1
            end
        end
        assert.equal(4, checked)
    end)

    it("keeps the throughput in spite of a slow initializer", function()
        -- 0.5 s to start, 10 tasks of 0.1 s: a pool that waited for its
        -- successors would take half as long again
        local pool <close> = procpool.new(2, {
            maxtasksperchild = 10, initializer = function() pools.nap(0.5) end,
        })
        pools.settled(pool)
        local log = pools.path()
        pool:map(function(x)
            local begun = pools.now()
            pools.nap(0.1)
            pools.note(log, ("%d %.4f %.4f"):format(require("procpool").worker.id, begun, pools.now()))
            return x
        end, range(40), 1)
        -- the pauses between the end of a task and the start of the slot's next
        local last, pauses = {}, 0
        for _, line in ipairs(pools.notes(log)) do
            local slot, begun, ended = line:match("(%S+) (%S+) (%S+)")
            if last[slot] then
                pauses = math.max(pauses, tonumber(begun) - last[slot])
            end
            last[slot] = tonumber(ended)
        end
        assert.is_true(pauses < 0.4, pauses)
    end)

    it("mid-chunk leaves the rest of the chunk in order", function()
        local pool <close> = procpool.new(1, { maxtasksperchild = 3 })
        local log = pools.path()
        pool:map(function(x) pools.note(log, x) end, range(40), 40)
        local lines = pools.notes(log)
        assert.equal(40, #lines)
        for i, line in ipairs(lines) do assert.equal(tostring(i), line) end
    end)

    it("keeps the order of results, callbacks and iterators", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 2 })
        local k = 0
        for i, v in pool:imap(function(x) return -x end, range(100), { chunksize = 5 }) do
            k = k + 1
            assert.equal(k, i)
            assert.equal(-k, v)
        end
        assert.equal(100, k)
    end)

    it("combines with workers that die", function()
        local pool <close> = procpool.new(2, { maxtasksperchild = 3 })
        local list, failures = pool:map(function(x)
            if x % 10 == 0 then pools.kill(require("procpool").worker.pid) end
            return whoami(x)
        end, range(100), { errors = "collect", chunksize = 7 })
        assert.equal(10, failures)
        local answers = {}
        for i = 1, 100 do
            if i % 10 == 0 then
                assert.equal("lost", list[i].kind)
                assert.equal(i, list[i].index)
            else
                assert.equal(i, list[i].x)
                answers[#answers + 1] = list[i]
            end
        end
        for _, life in pairs((lives_of(answers))) do assert.is_true(life.n <= 3) end
        pools.eventually("ten deaths", function() return pool:stats().recycled.crash == 10 end)
    end)

    it("with maxtasksperchild of one and calls that fail", function()
        local pool <close> = procpool.new(1, { maxtasksperchild = 1 })
        local last
        for i = 1, 20 do
            local err = fails("error", pool.apply, pool, function()
                error(require("procpool").worker.generation)
            end)
            assert.equal(i, err.value)
            assert.not_equal(last, err.pid)
            last = err.pid
        end
    end)
end)
