-- clean.lua - the oracle CLEAN: what a test leaves behind.
--
--     local before = clean.snapshot()
--     ...
--     local ok, what = clean.check(before)
--
-- In this process: the same children (none of them dead and unreaped), the
-- same descriptors, the same shared mappings and, up to what the allocator
-- does, the same number of mappings, the same names in /dev/shm. Elsewhere:
-- no process that carries a case's mark in its environment. What goes by
-- itself is given time; what stays is named.

local core = require("procpool.core")
local dirent = require("posix.dirent")
local time = require("posix.time")
local unistd = require("posix.unistd")

local clean = {}

-- Seconds for what goes by itself.
local PATIENCE = tonumber(os.getenv("CLEAN_PATIENCE")) or 2
-- Mappings that come and go with the allocator; an address sanitizer's are many.
local NOISE = (os.getenv("LD_PRELOAD") or ""):find("asan") and 1000 or 16

local function read(path)
    local file = io.open(path, "rb")
    if not file then
        return nil
    end
    local text = file:read("a")
    file:close()
    return text
end
clean.read = read

function clean.pause(seconds)
    time.nanosleep({ tv_sec = seconds // 1, tv_nsec = seconds % 1 * 1e9 // 1 | 0 })
end

--- Waits until `f` is true; what it gave last.
function clean.await(seconds, f, ...)
    local deadline, pause = core.now() + seconds, 0.001
    while true do
        local got = f(...)
        if got or core.now() >= deadline then
            return got
        end
        clean.pause(pause)
        pause = math.min(pause * 1.5, 0.02)
    end
end

--- The state letter of a process ("Z": dead and unreaped), nil without one.
function clean.state(pid)
    local stat = read(("/proc/%d/stat"):format(pid))
    return stat and stat:match(".*%) (%a)")
end

--- Is that process gone, reaped and all?
function clean.gone(pid)
    return clean.state(pid) == nil
end

--- Is it dead? (Reaped or not: an orphan's reaping is init's business.)
function clean.dead(pid)
    local state = clean.state(pid)
    return state == nil or state == "Z"
end

--- The children of a process, all its threads'.
function clean.children(pid)
    local list = {}
    local dir = ("/proc/%s/task"):format(pid or "self")
    for _, task in ipairs(dirent.dir(dir) or {}) do
        for child in (read(dir .. "/" .. task .. "/children") or ""):gmatch("%d+") do
            list[#list + 1] = tonumber(child)
        end
    end
    return list
end

local function descriptors()
    local set = {}
    for _, fd in ipairs(dirent.dir("/proc/self/fd")) do
        -- the one that listed them is closed again
        local target = unistd.readlink("/proc/self/fd/" .. fd)
        if target then
            set[tonumber(fd)] = target
        end
    end
    return set
end

local function mappings()
    local all, shared = 0, 0
    for line in io.lines("/proc/self/maps") do
        all = all + 1
        if line:find("/dev/zero (deleted)", 1, true) then
            shared = shared + 1
        end
    end
    return all, shared
end

local function names(path)
    local set = {}
    local ok, list = pcall(dirent.dir, path)
    for _, name in ipairs(ok and list or {}) do
        set[name] = true
    end
    return set
end

function clean.snapshot()
    local all, shared = mappings()
    local children = {}
    for _, pid in ipairs(clean.children()) do
        children[pid] = true
    end
    return {
        fds = descriptors(), maps = all, shared = shared,
        children = children, shm = names("/dev/shm"),
    }
end

-- What is there now that was not before; nil when nothing is.
local function difference(before)
    local now = clean.snapshot()
    local found = {}
    local function note(...)
        found[#found + 1] = string.format(...)
    end
    for pid in pairs(now.children) do
        if not before.children[pid] then
            note("child %d (%s) %s", pid, clean.state(pid) or "gone",
                (read(("/proc/%d/cmdline"):format(pid)) or ""):gsub("%z+", " "))
        end
    end
    for fd, target in pairs(now.fds) do
        if not before.fds[fd] then
            note("descriptor %d (%s)", fd, target)
        end
    end
    for fd, target in pairs(before.fds) do
        if not now.fds[fd] then
            note("descriptor %d (%s) closed", fd, target)
        end
    end
    if now.shared > before.shared then
        note("%d shared mappings, %d before", now.shared, before.shared)
    end
    if now.maps > before.maps + NOISE then
        note("%d mappings, %d before", now.maps, before.maps)
    end
    for name in pairs(now.shm) do
        -- Semaphores there are other programs': nothing here makes any.
        if not before.shm[name] and not name:find("^sem%.") then
            note("/dev/shm/%s", name)
        end
    end
    return found[1] and table.concat(found, "; ")
end

-- Dead and unreaped children of this process that were not there before.
local function has_zombies(before)
    for _, pid in ipairs(clean.children()) do
        if not before.children[pid] and clean.state(pid) == "Z" then
            return true
        end
    end
end

--- Is all as it was? Pools that nobody holds are collected first; their
--- keepers are reaped by the next `new`, so one is made if only that is left.
---@return boolean
---@return string? what
function clean.check(before, seconds)
    local made = false
    local function same()
        collectgarbage()
        collectgarbage()
        local found = difference(before)
        if found and not made and has_zombies(before) then
            made = true
            local pool = require("procpool").new(1)
            pool:terminate()
            pool:join(PATIENCE)
        end
        return not found
    end
    if clean.await(seconds or PATIENCE, same) then
        return true
    end
    return false, difference(before) or "nothing, but only just"
end

--- Processes with NAME=value in their environment: a list of pids.
function clean.marked(name, value)
    local mark = "\0" .. name .. "=" .. value .. "\0"
    local list = {}
    for _, pid in ipairs(dirent.dir("/proc")) do
        local environ = pid:match("^%d+$") and read("/proc/" .. pid .. "/environ")
        if environ and ("\0" .. environ .. "\0"):find(mark, 1, true) then
            list[#list + 1] = tonumber(pid)
        end
    end
    return list
end

local function parent_of(pid)
    local stat = read(("/proc/%d/stat"):format(pid))
    return stat and tonumber(stat:match(".*%) %a (%d+)")) or 0
end

--- Processes of this run of a test file (tools/test marks them) that are no
--- longer below this process: what a keeper, a program or a daemon that died or
--- turned away has left. A set of pids; empty where there is no mark.
function clean.strays()
    local id, set = os.getenv("PROCPOOL_TEST_ID"), {}
    local own = unistd.getpid()
    local above = {} -- this process, and the shell's that started it
    local pid = own
    while pid > 1 do
        above[pid] = true
        pid = parent_of(pid)
    end
    for _, marked in ipairs(id and clean.marked("PROCPOOL_TEST_ID", id) or {}) do
        local up = marked
        while up > 1 and up ~= own do
            up = parent_of(up)
        end
        if up ~= own and not above[marked] then
            set[marked] = true
        end
    end
    return set
end

--- Waits until no stray is left that was not in the set `before`.
---@return boolean
---@return string? what
function clean.astray(before, seconds)
    local found
    local function none()
        found = nil
        for pid in pairs(clean.strays()) do
            found = found or not before[pid] and clean.describe(pid) or nil
        end
        return not found
    end
    return clean.await(seconds or PATIENCE, none), found
end

--- One line on a process: what it is and where it waits.
function clean.describe(pid)
    local function part(name)
        return ((read(("/proc/%d/%s"):format(pid, name)) or "?"):gsub("[%z\n]+", " "))
    end
    local syscall = part("syscall")
    return ("%d (%s) %s wchan %s syscall %s"):format(pid,
        clean.state(pid) or "gone", part("cmdline"), part("wchan"), syscall)
end

--- Stacks of a process, by gdb where it is; for a test that hangs.
function clean.stack(pid)
    local pipe = io.popen(("timeout 20 gdb -p %d -batch -ex bt 2>/dev/null"
        .. " | grep '^#' | head -n 20"):format(pid))
    local text = pipe and pipe:read("a") or ""
    if pipe then
        pipe:close()
    end
    return text
end

return clean
