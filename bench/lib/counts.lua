-- counts: what a task takes, counted rather than timed: system calls (strace)
-- and instructions (callgrind) of the parent and of a worker; and what a life
-- of a worker and a pool of one worker take: system calls and page faults of
-- all processes.
--
-- Each figure is the difference between a run with work and one without, over
-- the number of tasks (lives, pools). All runs on one CPU: there nobody spins, so it is
-- nearly the same each time. (For the same reason nothing is said here of two
-- CPUs, where whether somebody sleeps depends on who is faster.)

local dirent = require("posix.dirent")
local stdlib = require("posix.stdlib")
local unistd = require("posix.unistd")

local counts = {}

local CALLS, FAULTS = "system calls", "page faults"
local PARENT, WORKER = "parent's instructions", "worker's instructions"
local TASK, LIFE = { CALLS, PARENT, WORKER }, { CALLS, FAULTS }
local POOL = { CALLS, FAULTS, PARENT }

--- The kinds of work, how many tasks of each, and what is counted of each.
counts.work = {
    { kind = "apply", n = 1000, columns = TASK },
    { kind = "async", n = 2000, columns = TASK },
    { kind = "map", n = 20000, columns = TASK },
    { kind = "recycle", n = 200, columns = LIFE },
    { kind = "start", n = 20, columns = POOL },
}

--- What a figure may grow by however small it is, since a tenth of next to
--- nothing is nothing.
counts.slack = { [CALLS] = 0.1, [FAULTS] = 0.5, [PARENT] = 30, [WORKER] = 30 }

local GROWTH = 0.1

local lua = os.getenv("LUA") or "lua5.4"

local function sh(text, ...)
    return os.execute("{ " .. text:format(...) .. "; } >/dev/null 2>&1")
end

--- Why nothing can be counted here, or nil.
function counts.lacks()
    if (os.getenv("LD_PRELOAD") or "") ~= "" then
        return "built with a checker, whose work would be counted too"
    end
    for _, program in ipairs { "strace", "valgrind", "taskset" } do
        if not sh("command -v %s", program) then
            return program .. " is not installed"
        end
    end
    if not sh("strace -f -c -o /dev/null true") then
        return "strace may not trace here"
    end
end

--- What the figures depend on besides procpool.
function counts.setting()
    local pipe = io.popen(lua .. " -v; uname -m; gcc -dumpversion")
    local version, arch, gcc = pipe:read("l", "l", "l")
    pipe:close()
    return ("%s, %s, gcc %s"):format(version:match("Lua [%d.]+") or version,
        arch, gcc and gcc:match("^%d+") or "none")
end

local function run(where, tool, kind, n)
    local command = ("cd '%s' && timeout -k 5 100 taskset -c 0 %s %s "
        .. "'%s/bench/counted.lua' %s %d 2>log"):format(where, tool, lua,
        unistd.getcwd(), kind, n)
    if os.execute(command) then
        return
    end
    local file = io.open(where .. "/log")
    error(command .. "\n" .. file:read("a"), 0)
end

local function calls(where, kind, n)
    run(where, "strace -f -c -o calls", kind, n)
    for line in io.lines(where .. "/calls") do
        local total = line:match("^100%.00%s+%S+%s+%S*%s+(%d+).*total")
        if total then
            return math.tointeger(total)
        end
    end
    error("strace told no total", 0)
end

--- Instructions of the parent and of the first worker: the files of the first
--- and the third process that callgrind leaves where it runs. (Its option for
--- another name is lost in processes that change their title.)
local function instructions(where, kind, n)
    run(where, "valgrind -q --tool=callgrind", kind, n)
    local pids, totals = {}, {}
    for name in dirent.files(where) do
        local pid = name:match("^callgrind%.out%.(%d+)$")
        if pid then
            pids[#pids + 1] = math.tointeger(pid)
            local file = io.open(where .. "/" .. name)
            totals[pids[#pids]] = math.tointeger(
                file:read("a"):match("\ntotals: (%d+)"))
            file:close()
            os.remove(where .. "/" .. name)
        end
    end
    assert(#pids >= 3, "callgrind saw " .. #pids .. " processes, not three")
    table.sort(pids)
    return totals[pids[1]], totals[pids[3]]
end

-- Page faults of all processes: counted.lua says at its end.
local function faults(where, kind, n)
    run(where, "env", kind, n)
    return math.tointeger(io.lines(where .. "/faults")())
end

-- Ticks that CPU 0 has worked (or was kept from it by the machine's other
-- guests), and those of what this process has run.
local function ticks()
    local function whole(name)
        local file <close> = io.open(name)
        return file:read("a")
    end
    local worked, place = 0, 0
    for figure in whole("/proc/stat"):match("\ncpu0 ([^\n]*)"):gmatch("%d+") do
        place = place + 1
        if place <= 8 and place ~= 4 and place ~= 5 then -- not idle, not iowait
            worked = worked + tonumber(figure)
        end
    end
    -- cutime and cstime, the 14th and 15th figure behind the name
    local user, system = whole("/proc/self/stat"):match("%) %S+"
        .. (" %S+"):rep(12) .. " (%d+) (%d+)")
    return worked, tonumber(user) + tonumber(system)
end

--- Counts everything -> { apply = { ["system calls"] = ... }, ... }, and how
--- much of CPU 0 went to others meanwhile: 0 to 1 of what it worked.
function counts.take()
    local worked, own = ticks()
    local where = stdlib.mkdtemp("/tmp/procpool-count-XXXXXX")
    local done <close> = setmetatable({}, { __close = function()
        os.execute(("rm -rf '%s'"):format(where))
    end })
    local function take(columns, kind, n)
        local wanted = {}
        for _, column in ipairs(columns) do
            wanted[column] = true
        end
        local figures = { [CALLS] = calls(where, kind, n) }
        if wanted[PARENT] then
            figures[PARENT], figures[WORKER] = instructions(where, kind, n)
        end
        if wanted[FAULTS] then
            figures[FAULTS] = faults(where, kind, n)
        end
        return figures
    end
    local idle = take({ CALLS, FAULTS, PARENT, WORKER }, "none", 0)
    local found = {}
    for _, one in ipairs(counts.work) do
        local busy = take(one.columns, one.kind, one.n)
        found[one.kind] = {}
        for _, column in ipairs(one.columns) do
            found[one.kind][column] = (busy[column] - idle[column]) / one.n
        end
    end
    local worked_now, own_now = ticks()
    return done and found, 1 - (own_now - own) / (worked_now - worked)
end

--- The lesser of two takes, figure by figure; the second may be nil.
function counts.least(a, b)
    for kind, figures in pairs(b or {}) do
        for column, figure in pairs(figures) do
            a[kind][column] = math.min(a[kind][column], figure)
        end
    end
    return a
end

--- Figures that have grown by more than a tenth -> a list of sentences.
function counts.grown(found, known)
    local list = {}
    for _, one in ipairs(counts.work) do
        for _, column in ipairs(one.columns) do
            local now, was = found[one.kind][column], known[one.kind][column]
            if now > was * (1 + GROWTH) and now > was + counts.slack[column] then
                list[#list + 1] = ("%s: %s per task: %.2f, were %.2f"):format(
                    one.kind, column, now, was)
            end
        end
    end
    return list
end

counts.file = "bench/counts.json"

return counts
