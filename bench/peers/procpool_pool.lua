-- procpool as a peer of its own benchmark: the public calls, nothing else.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local common = require("common")
local procpool = require("procpool")
local signal = require("posix.signal")
local now = common.now

local function noop() end
local function inc(x) return x + 1 end
local function echo(x) return x end
local burn, visit = common.burn, common.visit

local function read_all(_, full)
    local worker = require("procpool").worker
    visit(worker.shared, full)
    return worker.id
end

local function numbers(n)
    local list = {}
    for i = 1, n do
        list[i] = i
    end
    return list
end

local function repeated(n, value)
    local list = {}
    for i = 1, n do
        list[i] = value
    end
    return list
end

--- A pool whose workers have all run something.
local function warm(workers, options)
    local pool = procpool.new(workers, options)
    pool:map(echo, { 1, 2, 3, 4 }, 1)
    return pool
end

local function close(pool)
    pool:close()
    pool:join()
end

local cases = {}

function cases.apply(o)
    local pool = warm(o.workers)
    for _ = 1, o.n // 10 do
        pool:apply(noop)
    end
    local start = now()
    for _ = 1, o.n do
        pool:apply(noop)
    end
    local took = now() - start
    close(pool)
    return { value = took / o.n * 1e6, unit = "us" }
end

function cases.async(o)
    local pool = warm(o.workers)
    local f, argument = inc, nil
    if o.us then
        f, argument = burn, common.rounds(o.us * 1e-6)
    end
    local results = {}
    local start = now()
    for i = 1, o.n do
        results[i] = pool:apply_async(f, { argument or i })
    end
    for i = 1, o.n do
        results[i] = results[i]:get()
    end
    local took = now() - start
    assert(o.us or results[o.n] == o.n + 1)
    close(pool)
    return { value = o.n / took, unit = "1/s", us = o.us }
end

function cases.imap(o)
    local pool = warm(o.workers)
    local items, last = numbers(o.n), nil
    local start = now()
    for _, value in pool:imap(inc, items, { buffersize = 1000 }) do
        last = value
    end
    local took = now() - start
    assert(last == o.n + 1)
    close(pool)
    return { value = o.n / took, unit = "1/s" }
end

function cases.map(o)
    local pool = warm(o.workers)
    local items = numbers(o.n)
    local start = now()
    local results = pool:map(inc, items)
    local took = now() - start
    assert(results[o.n] == o.n + 1)
    close(pool)
    return { value = o.n / took, unit = "1/s" }
end

function cases.echo(o)
    local pool = warm(o.workers)
    local text = string.rep("x", o.size)
    assert(#pool:apply(echo, { text }) == o.size)
    local start = now()
    for _ = 1, o.n do
        pool:apply(echo, { text })
    end
    local took = now() - start
    close(pool)
    return { value = 2 * o.size * o.n / took / 2 ^ 30, unit = "GiB/s",
        size = o.size }
end

function cases.records(o)
    local pool = warm(o.workers)
    local list = common.records(o.n)
    local start = now()
    local back = pool:apply(echo, { list })
    local took = now() - start
    assert(#back == o.n and back[o.n].id == o.n)
    close(pool)
    return { value = took * 1e3, unit = "ms" }
end

function cases.start(o)
    local items = numbers(o.workers)
    return common.lives(o.n, function()
        local pool = procpool.new(o.workers)
        pool:map(inc, items, 1)
        close(pool)
    end)
end

function cases.recycle(o)
    local pool = warm(o.workers, { maxtasksperchild = o.limit })
    local heap = common.heap(o.heap or 0)
    local items = numbers(o.n)
    local start = now()
    local results = pool:map(inc, items)
    local took = now() - start
    assert(results[o.n] == o.n + 1 and #heap == (o.heap or 0))
    close(pool)
    return { value = o.n / took, unit = "1/s", limit = o.limit,
        heap = o.heap or 0 }
end

function cases.cpu(o)
    local rounds = common.rounds(o.us * 1e-6)
    local pool = warm(o.workers)
    local items = repeated(o.n, rounds)
    local serial = common.serial(o.n, rounds)
    local start = now()
    pool:map(burn, items, 1)
    local took = now() - start
    serial = (serial + common.serial(o.n, rounds)) / 2
    close(pool)
    return { value = serial / took, unit = "x", us = o.us }
end

function cases.kill(o)
    local times, killed = {}, {}
    local pool = warm(o.workers)
    for i = 1, o.n do
        local result = pool:apply_async(function() while true do end end)
        local pid
        repeat
            for _, row in ipairs(pool:stats().workers) do
                -- Killed before its task began, the task would be run again.
                if row.state == "busy" and not killed[row.pid]
                    and (row.running_for or 0) > 1e-3 then
                    pid = row.pid
                end
            end
        until pid
        killed[pid] = true
        local start = now()
        signal.kill(pid, signal.SIGKILL)
        local ok, err = pcall(result.get, result)
        times[i] = now() - start
        assert(not ok and err.kind == "lost", tostring(err))
    end
    close(pool)
    return { value = common.median(times) * 1e3, unit = "ms",
        worst = times[o.n] * 1e3 }
end

function cases.hold(o)
    close(common.hold(function(workers)
        local pool = procpool.new(workers)
        pool:map(inc, numbers(workers), 1)
        return pool
    end, o.workers))
end

--- The workers inherit a big table; each reads it all and collects.
function cases.shared(o)
    local list = common.objects(o.mib)
    close(common.hold(function(workers)
        local pool = procpool.new(workers, { shared = list })
        local seen, all = {}, 0
        local tasks = repeated(workers, { 0, o.full })
        repeat -- until every worker has had such a task
            for _, id in ipairs(pool:starmap(read_all, tasks, 1)) do
                all = all + (seen[id] and 0 or 1)
                seen[id] = true
            end
        until all == workers
        return pool
    end, o.workers))
end

--- The pool and independent processes in turn, several times.
function cases.beside(o)
    local rounds = common.rounds(o.us * 1e-6)
    local pool = warm(o.workers)
    local items = repeated(o.n, rounds)
    local alone, pooled = {}, {}
    for i = 1, o.times do
        alone[i] = common.independent(o.workers, o.n, rounds)
        local start = now()
        pool:map(burn, items, 1)
        pooled[i] = now() - start
    end
    close(pool)
    return { value = common.median(alone) / common.median(pooled), unit = "x",
        us = o.us }
end

common.main("procpool", cases)
