-- common: what the Lua peers share: arguments, a clock, JSON lines, tasks.
--
-- A peer is started as `peer CASE [name=value ...]`, measures one thing once,
-- and prints one JSON line {peer, case, value, unit, ...}. What is measured is
-- said in bench/README.md; a case a peer cannot do prints {skip = why}.

local cjson = require("cjson")
local time = require("posix.time")
local unistd = require("posix.unistd")
local wait = require("posix.sys.wait").wait

local common = {}

--- Monotonic seconds.
function common.now()
    local t = time.clock_gettime(time.CLOCK_MONOTONIC)
    return t.tv_sec + t.tv_nsec * 1e-9
end

local now = common.now

--- A table of 1 MiB strings, touched: what makes a parent expensive to fork.
function common.heap(mib)
    local pieces = {}
    for i = 1, mib do
        pieces[i] = string.rep(string.char(i % 256), 1 << 20)
    end
    return pieces
end

--- The CPU-bound work of every Lua peer: `rounds` of integer arithmetic.
function common.burn(rounds)
    local x = 1
    for i = 1, rounds do
        x = (x * 31 + i) & 0xffffff
    end
    return x
end

--- How many rounds of burn take the given time here (best of five).
function common.rounds(seconds)
    local best = math.huge
    for _ = 1, 5 do
        local start = now()
        common.burn(200000)
        best = math.min(best, now() - start)
    end
    return math.max(1, math.floor(seconds * 200000 / best + 0.5))
end

--- The 100,000 small records of case D.
function common.records(n)
    local list = {}
    for i = 1, n do
        list[i] = { id = i, name = "name" .. i, score = i * 0.5 }
    end
    return list
end

--- Seconds that n tasks take one after the other, taken from a quarter of them.
function common.serial(n, rounds)
    local start = now()
    for _ = 1, n // 4 do
        common.burn(rounds)
    end
    return (now() - start) * n / (n // 4)
end

--- The middle of some times; for an even number the lower of the two.
function common.median(times)
    table.sort(times)
    return times[(#times + 1) // 2]
end

--- n lives of a pool, from its making to the end of its last process.
function common.lives(n, life)
    local times = {}
    for i = 1, n do
        local start = now()
        life()
        times[i] = (now() - start) * 1e3
    end
    return { value = common.median(times), unit = "ms", worst = times[n] }
end

--- Seconds that n tasks take in processes that share nothing.
function common.independent(workers, n, rounds)
    local pids = {}
    local start = now()
    for i = 1, workers do
        pids[i] = unistd.fork()
        if pids[i] == 0 then
            for _ = 1, n // workers do
                common.burn(rounds)
            end
            unistd._exit(0)
        end
    end
    for i = 1, workers do
        wait(pids[i])
    end
    return now() - start
end

--- A table of small objects, about `mib` MiB of them: what a collector visits.
function common.objects(mib)
    local list = {}
    for i = 1, mib * 6000 do
        list[i] = { id = i, name = "name" .. i % 1000, score = i * 0.5 }
    end
    return list
end

--- Reads all of them and makes as much garbage as there is of them; with
--- `full` it also asks for full collections.
function common.visit(list, full)
    local sum = 0
    for i = 1, #list do
        local waste = { list[i].score, #list[i].name }
        sum = sum + #waste
    end
    for _ = 1, full == 1 and 3 or 0 do
        collectgarbage()
    end
    return sum
end

--- The parent's side of the cases that are measured from outside: it says
--- where it is, and goes on when it is told to.
function common.hold(make, workers)
    local function say(stage)
        print(cjson.encode { stage = stage })
        io.stdout:flush()
        return io.read("l")
    end
    say("base")
    local pool = make(workers)
    say("ready")
    return pool
end

--- Runs the case named on the command line and prints what it found.
function common.main(peer, cases)
    local name = arg[1]
    local options = { workers = 2, n = 1000 }
    for i = 2, #arg do
        local key, value = arg[i]:match("^(%w+)=(.*)$")
        options[key] = math.tointeger(value) or tonumber(value) or value
    end
    local line = { skip = "no such case here" }
    if cases[name] then
        line = cases[name](options)
    end
    if not line then
        return
    end
    line.peer, line.case = peer, name
    line.n, line.workers = line.n or options.n, options.workers
    print(cjson.encode(line))
end

return common
