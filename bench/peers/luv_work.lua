-- luv's uv.new_work: libuv's thread pool, a Lua state in each thread.
--
-- Work takes and gives numbers, booleans and strings; tables go as JSON. The
-- number of threads is UV_THREADPOOL_SIZE, which the runner sets. There is no
-- closing, no replacing and no killing of threads.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local cjson = require("cjson")
local common = require("common")
local uv = require("luv")
local now = common.now

local function echo(x) return x end
local function inc(x) return x + 1 end

-- Runs in a thread's state, without upvalues: it cannot be common.burn.
local function burn(rounds)
    local x = 1
    for i = 1, rounds do
        x = (x * 31 + i) & 0xffffff
    end
    return x
end

local function recode(text)
    local json = require("cjson")
    return json.encode(json.decode(text))
end

--- A function that runs f(x) in the pool and waits for the result.
local function caller(f)
    local done, value
    local work = uv.new_work(f, function(result)
        done, value = true, result
    end)
    return function(x)
        done = false
        work:queue(x)
        repeat
            uv.run("once")
        until done
        return value
    end
end

--- Queues n tasks f(argument(i)), then takes all results, in any order.
local function all(f, n, argument)
    local results, got = {}, 0
    local work = uv.new_work(f, function(result)
        got = got + 1
        results[got] = result
    end)
    for i = 1, n do
        work:queue(argument(i))
    end
    while got < n do
        uv.run("once")
    end
    return results
end

local function self(i) return i end

local cases = {}

function cases.apply(o)
    local call = caller(function() end)
    for _ = 1, o.n // 10 do
        call()
    end
    local start = now()
    for _ = 1, o.n do
        call()
    end
    return { value = (now() - start) / o.n * 1e6, unit = "us" }
end

function cases.async(o)
    local f, argument = inc, self
    if o.us then
        local rounds = common.rounds(o.us * 1e-6)
        f, argument = burn, function() return rounds end
    end
    all(f, o.workers, argument)
    local start = now()
    local results = all(f, o.n, argument)
    local took = now() - start
    assert(#results == o.n)
    return { value = o.n / took, unit = "1/s", us = o.us }
end

-- It has no map: a chunk is a string of packed integers.
function cases.map(o)
    local chunk = 1000
    local form = "<" .. ("i8"):rep(chunk)
    local items, results, got = {}, {}, 0
    for i = 1, o.n do
        items[i] = i
    end
    local work = uv.new_work(function(i, message, format, count)
        local list = { format:unpack(message) }
        list[count + 1] = nil
        for k = 1, count do
            list[k] = list[k] + 1
        end
        return i, format:pack(table.unpack(list))
    end, function(i, message)
        got = got + 1
        table.move({ form:unpack(message) }, 1, chunk, i + 1, results)
    end)
    local start = now()
    for i = 0, o.n - 1, chunk do
        work:queue(i, form:pack(table.unpack(items, i + 1, i + chunk)), form,
            chunk)
    end
    while got < o.n // chunk do
        uv.run("once")
    end
    local took = now() - start
    assert(results[o.n] == o.n + 1)
    return { value = o.n / took, unit = "1/s" }
end

function cases.echo(o)
    local call = caller(echo)
    local text = string.rep("x", o.size)
    assert(#call(text) == o.size)
    local start = now()
    for _ = 1, o.n do
        call(text)
    end
    local took = now() - start
    return { value = 2 * o.size * o.n / took / 2 ^ 30, unit = "GiB/s",
        size = o.size }
end

function cases.records(o)
    local call = caller(recode)
    call("[1]")
    local list = common.records(o.n)
    local start = now()
    local back = cjson.decode(call(cjson.encode(list)))
    local took = now() - start
    assert(#back == o.n and back[o.n].id == o.n)
    return { value = took * 1e3, unit = "ms" }
end

function cases.cpu(o)
    local rounds = common.rounds(o.us * 1e-6)
    all(echo, o.workers, self)
    local serial = common.serial(o.n, rounds)
    local start = now()
    all(burn, o.n, function() return rounds end)
    local took = now() - start
    serial = (serial + common.serial(o.n, rounds)) / 2
    return { value = serial / took, unit = "x", us = o.us }
end

function cases.hold(o)
    common.hold(function(workers)
        all(burn, workers, function() return 100000 end)
        return true
    end, o.workers)
end

common.main("luv", cases)
