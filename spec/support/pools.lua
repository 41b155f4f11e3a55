-- Helpers for specs with real workers: conditions with deadlines, marks that
-- tasks leave for the parent, gates that hold tasks back, what the system
-- says of processes, Lua programs of their own.
--
-- Tasks call these functions too: they travel by name, as a module's do.

local fcntl = require("posix.fcntl")
local procpool = require("procpool")
local signal = require("posix.signal")
local stdlib = require("posix.stdlib")
local time = require("posix.time")
local unistd = require("posix.unistd")

local pools = {}

local PATIENCE = 20 -- seconds: far more than anything takes

--- Monotonic seconds.
---@return number
function pools.now()
    local t = time.clock_gettime(time.CLOCK_MONOTONIC)
    return t.tv_sec + t.tv_nsec / 1e9
end

--- Sleeps without burning anything.
---@param seconds number
function pools.nap(seconds)
    time.nanosleep({
        tv_sec = seconds // 1 | 0, tv_nsec = (seconds % 1 * 1e9) // 1 | 0,
    })
end

--- Waits until `condition` gives something true, and returns it; raises, naming
--- `what`, when it takes too long.
---@param what string
---@param condition fun(): any
---@param patience number?
---@return any
function pools.eventually(what, condition, patience)
    local deadline = pools.now() + (patience or PATIENCE)
    while true do
        local value = condition()
        if value then
            return value
        elseif pools.now() > deadline then
            error(what .. ": not within " .. (patience or PATIENCE) .. " s", 2)
        end
        pools.nap(0.001)
    end
end

--- Calls f, which must raise an error object of this kind; returns it.
---@param kind string
---@return procpool.Error
function pools.fails(kind, f, ...)
    local results = table.pack(pcall(f, ...))
    if results[1] then
        error(("kind %s expected, but it returned %s"):format(
            kind, tostring(results[2])), 2)
    end
    local err = results[2]
    if not procpool.iserror(err) then
        error(("kind %s expected, got %s"):format(kind, tostring(err)), 2)
    elseif err.kind ~= kind then
        error(("kind %s expected, got %s: %s"):format(
            kind, err.kind, tostring(err)), 2)
    end
    return err
end

--- Calls f, which must raise an ordinary error that contains `text`.
---@param text string
---@return string
function pools.rejects(text, f, ...)
    local ok, err = pcall(f, ...)
    if ok or type(err) ~= "string" or not err:find(text, 1, true) then
        error(("an error with %q expected, got %s, %s"):format(
            text, tostring(ok), tostring(err)), 2)
    end
    return err
end

-- Marks and gates --------------------------------------------------------------

local directory, files = nil, 0

--- The name of a file that does not exist yet. In a worker: of the parent's
--- directory only if the parent has made one.
---@return string
function pools.path()
    directory = directory or assert(stdlib.mkdtemp("/tmp/procpool-XXXXXX"))
    files = files + 1
    return ("%s/%d"):format(directory, files)
end

--- Removes all of these files; for teardown.
function pools.cleanup()
    if directory then
        os.execute("rm -rf " .. directory)
        directory = nil
    end
end

--- Adds a line to a file; whole lines only, whoever writes at the same time.
---@param path string
---@param text any
function pools.note(path, text)
    local fd = assert(fcntl.open(path,
        fcntl.O_WRONLY | fcntl.O_APPEND | fcntl.O_CREAT, tonumber("644", 8)))
    assert(unistd.write(fd, tostring(text) .. "\n"))
    unistd.close(fd)
end

--- The lines noted so far.
---@param path string
---@return string[]
function pools.notes(path)
    local lines = {}
    local file = io.open(path)
    if file then
        for line in file:lines() do
            lines[#lines + 1] = line
        end
        file:close()
    end
    return lines
end

--- Waits for so many lines.
---@param path string
---@param count integer
---@return string[]
function pools.await_notes(path, count)
    return pools.eventually(count .. " notes", function()
        local lines = pools.notes(path)
        return #lines >= count and lines
    end)
end

--- A closed gate: tasks that `pass` it wait until it is opened.
---@return string gate
function pools.gate()
    local path = pools.path()
    pools.note(path, "closed")
    return path
end

---@param gate string
function pools.open(gate)
    os.remove(gate)
end

--- Task: waits for the gate to open; leaves a note first if asked to.
---@param gate string
---@param log string?
---@param text any
function pools.pass(gate, log, text)
    if log then
        pools.note(log, text or "here")
    end
    pools.eventually("an open gate", function()
        return not unistd.access(gate)
    end)
end

--- Task: burns CPU time for so many seconds.
function pools.burn(seconds)
    local deadline = pools.now() + seconds
    while pools.now() < deadline do end
end

-- Processes --------------------------------------------------------------------

local function read(path)
    local file = io.open(path, "rb")
    local text = file and file:read("a")
    if file then
        file:close()
    end
    return text or ""
end

--- A file of /proc/PID as a string; "" when there is none.
function pools.proc(pid, name)
    return read(("/proc/%d/%s"):format(pid, name))
end

--- Does the process run (as more than a zombie)?
---@param pid integer
---@return boolean
function pools.alive(pid)
    local state = pools.proc(pid, "stat"):match("^.*%) (%S)")
    return state ~= nil and state ~= "Z" and state ~= "X"
end

--- The pids of a process's children; this process's by default.
---@param pid integer?
---@return integer[]
function pools.children(pid)
    local list = {}
    pid = pid or unistd.getpid()
    for child in pools.proc(pid, ("task/%d/children"):format(pid)):gmatch("%d+") do
        list[#list + 1] = math.tointeger(child)
    end
    return list
end

--- The pids of the workers with a process, in the order of their slots.
---@param pool procpool.Pool
---@return integer[]
function pools.pids(pool)
    local list = {}
    for _, worker in ipairs(pool:stats().workers) do
        if worker.pid and worker.pid > 0 then
            list[#list + 1] = worker.pid
        end
    end
    return list
end

--- The pool's keeper; the pool must have a living worker.
---@param pool procpool.Pool
---@return integer
function pools.keeper(pool)
    return pools.eventually("a worker", function()
        local pid = pools.pids(pool)[1] -- which may go, and another come
        local parent = pid and pools.proc(pid, "stat"):match("^.*%) %S (%d+)")
        return parent and math.tointeger(parent)
    end)
end

--- Waits until none of the processes runs.
---@param pids integer[]
---@param patience number?
function pools.await_gone(pids, patience)
    for _, pid in ipairs(pids) do
        pools.eventually("the end of process " .. pid, function()
            return not pools.alive(pid)
        end, patience)
    end
end

--- What a pool could leave behind in this process: descriptors, mappings,
--- children.
---@return { descriptors: integer, maps: integer, children: integer }
function pools.traces()
    local _, maps = pools.proc(unistd.getpid(), "maps"):gsub("\n", "")
    local descriptors = 0
    for _ in require("posix.dirent").files("/proc/self/fd") do
        descriptors = descriptors + 1
    end
    return { descriptors = descriptors, maps = maps, children = #pools.children() }
end

--- Sends a signal by name ("KILL", "TERM", ...).
---@param pid integer
---@param name string?
function pools.kill(pid, name)
    return signal.kill(pid, signal["SIG" .. (name or "KILL")])
end

--- Waits until so many workers (all, by default) are there and idle, and none
--- is busy or starting; returns the pool's stats.
---@param pool procpool.Pool
---@param count integer?
---@return procpool.Stats
function pools.settled(pool, count)
    return pools.eventually("idle workers", function()
        local stats, idle = pool:stats(), 0
        for _, worker in ipairs(stats.workers) do
            idle = idle + (worker.state == "idle" and 1 or 0)
        end
        return idle == #stats.workers and idle == (count or pool.processes) and stats
    end)
end

--- Ends a pool, whatever its state, and waits until nothing of it is left.
---@param pool procpool.Pool
function pools.finish(pool)
    pool:terminate()
    assert(pool:join(PATIENCE))
end

-- Programs ---------------------------------------------------------------------

local function quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

--- Runs a Lua program of its own, under a time limit; the oracle LEDGER looks
--- at its pools when it comes to its end. `around` is a shell line with %s in
--- the program's place.
---@param source string
---@param around string?
---@return integer status  128 and more: a signal
---@return string out
---@return string err
function pools.run(source, around)
    local script, out, err = pools.path(), pools.path(), pools.path()
    pools.note(script, "local audit = require('spec.support.audit') " .. source .. [[

local right, wrong = audit.check()
if not right then
    error("ledger: " .. wrong, 0)
end]])
    local line = ("LUA_PATH=%s LUA_CPATH=%s timeout -k 5 30 lua5.4 %s"):format(
        quote(package.path), quote(package.cpath), script)
    line = (around or "%s"):gsub("%%s", (line:gsub("%%", "%%%%")))
    local _, how, status = os.execute(("{ %s\n} >%s 2>%s </dev/null"):format(line, out, err))
    return how == "signal" and 128 + status or status, read(out), read(err)
end

return pools
