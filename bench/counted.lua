-- counted: a fixed amount of work, for bench/count to run under a counter.
--
--     counted.lua none|apply|async|map|recycle|start N
--
-- recycle is N lives of a worker, start N lives of a pool. Where it runs, it
-- leaves the number of all its processes' page faults in a file named faults.
--
-- One worker, so that nothing depends on who is faster; all that happens once
-- (the functions are sent, pages are touched) happens before the work.

local procpool = require("procpool")
local kind, n = arg[1], math.tointeger(arg[2])

local function noop() end
local function inc(x) return x + 1 end

local work = {
    none = function() end,
    apply = function(pool)
        for _ = 1, n do
            pool:apply(noop)
        end
    end,
    async = function(pool)
        local results = {}
        for i = 1, n do
            results[i] = pool:apply_async(inc, { i })
        end
        for i = 1, n do
            results[i] = results[i]:get()
        end
        assert(results[n] == n + 1)
    end,
    map = function(pool)
        local items = {}
        for i = 1, n do
            items[i] = i
        end
        assert(pool:map(inc, items)[n] == n + 1)
    end,
    recycle = function()
        local pool <close> = procpool.new(1, { maxtasksperchild = 1 })
        for _ = 1, n do
            pool:apply(noop)
        end
    end,
    start = function()
        for _ = 1, n do
            local pool = procpool.new(1)
            pool:apply(noop)
            pool:close()
            pool:join()
        end
    end,
}

local pool = procpool.new(1)
for i = 1, 10 do
    pool:apply(noop)
    pool:apply_async(inc, { i }):get()
end
pool:map(inc, { 1, 2, 3 })
work[kind](pool)
pool:close()
pool:join()

-- minflt and cminflt, the 8th and 9th figure behind the name
local stat <close> = io.open("/proc/self/stat")
local own, children = stat:read("a"):match("%) %S+" .. (" %S+"):rep(6) .. " (%d+) (%d+)")
local out <close> = io.open("faults", "w")
out:write(math.tointeger(own) + math.tointeger(children), "\n")
