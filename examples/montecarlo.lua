-- montecarlo: how long will a project take? An estimate by simulation that is
-- the same to the last digit for the same seed, whatever the number of workers.
--
--     lua5.4 examples/montecarlo.lua [-j WORKERS] [-n RUNS] [-s SEED] [PLAN]
--
-- PLAN is a text file, a line per job: its name, the fewest, the likeliest and
-- the most days it may take, and the names of the jobs (further up) that have
-- to be over before. Without one, a small plan below is used.
--
-- With the pool's `seed`, math.random is seeded before each task from the seed
-- and the number of the task: batch 17 draws the same numbers on any worker,
-- in any order, after a recycling or a retry. Each batch returns a histogram
-- of days; whole numbers add up alike in any order.

local procpool = require("procpool")

local BATCH = 5000      -- runs in one task

local PLAN = [[
# name     fewest likeliest most  after
design      5     8        20
prototype   3     5        12     design
hardware   10    15        40     design
firmware    8    12        30     prototype
driver      4     6        15     prototype hardware
testing     5    10        25     firmware driver
manual      4     5         8     prototype
release     1     1         3     testing manual
]]

local USAGE = [[
usage: montecarlo.lua [-j WORKERS] [-n RUNS] [-s SEED] [PLAN]
  -j   worker processes (default: the CPUs this process may use)
  -n   simulated runs of the project (default: 1000000)
  -s   seed, a whole number (default: 1)
]]

--- A random number between low and high, likeliest at `mode`: the inverse of
--- the triangular distribution.
local function triangular(low, mode, high)
    local u = math.random()
    if high == low then
        return low
    elseif u < (mode - low) / (high - low) then
        return low + math.sqrt(u * (high - low) * (mode - low))
    end
    return high - math.sqrt((1 - u) * (high - low) * (high - mode))
end

--- The task: `runs` projects. How many took so many days (rounded up), and how
--- often each job was on the critical path.
local function simulate(plan, runs)
    local days, critical, finish, cause = {}, {}, {}, {}
    for i = 1, #plan do
        critical[i] = 0
    end
    for _ = 1, runs do
        local last = 1
        for i, job in ipairs(plan) do
            local start, why = 0, nil
            for _, before in ipairs(job.after) do
                if finish[before] > start then
                    start, why = finish[before], before
                end
            end
            finish[i] = start + triangular(job.low, job.mode, job.high)
            cause[i] = why
            last = finish[i] > finish[last] and i or last
        end
        local day = math.ceil(finish[last])
        days[day] = (days[day] or 0) + 1
        local at = last
        while at do
            critical[at] = critical[at] + 1
            at = cause[at]
        end
    end
    return { days = days, critical = critical }
end

-- The program ----------------------------------------------------------------

local function fail(text)
    io.stderr:write("montecarlo: ", text, "\n")
    os.exit(2, true)
end

local function parse_job(line, where, known)
    local words = {}
    for word in line:gmatch("%S+") do
        words[#words + 1] = word
    end
    local job = {
        name = words[1], low = tonumber(words[2]), mode = tonumber(words[3]),
        high = tonumber(words[4]), after = {},
    }
    if not (job.high and job.mode and job.low) or job.low < 0
        or job.low > job.mode or job.mode > job.high then
        fail(where .. ": a name and three numbers that do not fall expected")
    end
    for i = 5, #words do
        job.after[#job.after + 1] = known[words[i]]
            or fail(("%s: no job '%s' further up"):format(where, words[i]))
    end
    return job
end

local function parse_plan(text, name)
    local plan, known, number = {}, {}, 0
    for line in text:gmatch("([^\n]*)\n?") do
        number = number + 1
        line = line:gsub("#.*", "")
        if line:find("%S") then
            local job = parse_job(line, name .. ":" .. number, known)
            plan[#plan + 1] = job
            known[job.name] = #plan
        end
    end
    if #plan == 0 then
        fail(name .. ": no jobs in it")
    end
    return plan
end

local function parse(args)
    local options = { workers = procpool.cpus(), runs = 1000000, seed = 1 }
    local names = { ["-j"] = "workers", ["-n"] = "runs", ["-s"] = "seed" }
    local i = 1
    while args[i] do
        local name = names[args[i]]
        if name then
            i = i + 1
            options[name] = math.tointeger(tonumber(args[i]))
            if not options[name] or name ~= "seed" and options[name] < 1 then
                fail(args[i - 1] .. " needs a whole number")
            end
        elseif args[i]:sub(1, 1) == "-" or options.path then
            io.stderr:write(USAGE)
            os.exit(2, true)
        else
            options.path = args[i]
        end
        i = i + 1
    end
    return options
end

local function read_plan(path)
    if not path then
        return parse_plan(PLAN, "plan")
    end
    local file, problem = io.open(path)
    if not file then
        fail(problem)
    end
    local text = file:read("a")
    file:close()
    return parse_plan(text, path)
end

--- The arguments of each batch: the plan travels with it, which is cheap for
--- a few lines; a big one would go by `shared` instead.
local function batches(plan, runs)
    local list = {}
    for done = 0, runs - 1, BATCH do
        list[#list + 1] = { plan, math.min(BATCH, runs - done) }
    end
    return list
end

local function add(total, part)
    for key, n in pairs(part) do
        total[key] = (total[key] or 0) + n
    end
end

--- The day by which `share` of all runs were over.
local function percentile(days, runs, share)
    local keys = {}
    for day in pairs(days) do
        keys[#keys + 1] = day
    end
    table.sort(keys)
    local sum = 0
    for _, day in ipairs(keys) do
        sum = sum + days[day]
        if sum >= share * runs then
            return day
        end
    end
end

local function main(args)
    local options = parse(args)
    local plan = read_plan(options.path)
    local pool <close> = procpool.new(options.workers, {
        seed = options.seed, name = "montecarlo",
    })
    local days, critical, mean = {}, {}, 0
    for _, part in ipairs(pool:starmap(simulate, batches(plan, options.runs))) do
        add(days, part.days)
        add(critical, part.critical)
    end
    for day, n in pairs(days) do
        mean = mean + day * n
    end
    print(("%d runs, seed %d: %.4f days on average"):format(options.runs,
        options.seed, mean / options.runs))
    for _, share in ipairs({ 0.5, 0.8, 0.95, 0.99 }) do
        print(("%3.0f %% done within %d days"):format(share * 100,
            percentile(days, options.runs, share)))
    end
    for i, job in ipairs(plan) do
        print(("%-12s critical in %5.1f %% of the runs"):format(job.name,
            critical[i] / options.runs * 100))
    end
end

main(arg)
