-- child: starts a program, reads its lines up to a deadline, and looks at it
-- and all its descendants from outside. It always ends what it has started.

local dirent = require("posix.dirent")
local poll = require("posix.poll").poll
local signal = require("posix.signal")
local stdlib = require("posix.stdlib")
local time = require("posix.time")
local unistd = require("posix.unistd")
local fcntl = require("posix.fcntl")
local wait = require("posix.sys.wait")

local child = {}

--- Monotonic seconds.
function child.now()
    local t = time.clock_gettime(time.CLOCK_MONOTONIC)
    return t.tv_sec + t.tv_nsec * 1e-9
end

function child.sleep(seconds)
    time.nanosleep { tv_sec = math.floor(seconds),
        tv_nsec = math.floor(seconds % 1 * 1e9) }
end

local methods = {}
local meta = { __index = methods }

--- The child's side: never returns.
local function become(argv, options, input, output)
    unistd.setpid("p", 0, 0)
    unistd.dup2(input, 0)
    unistd.dup2(output, 1)
    local log = options.stderr and fcntl.open(options.stderr,
        fcntl.O_WRONLY | fcntl.O_CREAT | fcntl.O_TRUNC, 420)
    if log then
        unistd.dup2(log, 2)
    end
    for fd = 3, 20 do
        unistd.close(fd)
    end
    for name, value in pairs(options.env or {}) do
        stdlib.setenv(name, value)
    end
    unistd.execp(argv[1], table.move(argv, 2, #argv, 1, {}))
    unistd._exit(127)
end

--- Starts argv with its stdin and stdout at pipes, as a process group of its
--- own. Options: env, stderr (a file). To be held in a <close> variable.
function child.start(argv, options)
    io.stdout:flush()
    local theirs, to = unistd.pipe()
    local from, ours = unistd.pipe()
    local pid = assert(unistd.fork())
    if pid == 0 then
        become(argv, options or {}, theirs, ours)
    end
    unistd.close(theirs)
    unistd.close(ours)
    return setmetatable({ pid = pid, to = to, from = from, text = "" }, meta)
end

--- The next line of its output; nil at the end, or when the time is up.
function methods:line(deadline)
    while true do
        local line, rest = self.text:match("^(.-)\n(.*)$")
        if line then
            self.text = rest
            return line
        end
        local left = math.max(0, math.floor((deadline - child.now()) * 1e3))
        local fds = { [self.from] = { events = { IN = true } } }
        if poll(fds, left) ~= 1 then
            return nil, "out of time"
        end
        local piece = unistd.read(self.from, 65536)
        if not piece or piece == "" then
            return nil, "ended"
        end
        self.text = self.text .. piece
    end
end

--- Tells it to go on.
function methods:go()
    unistd.write(self.to, "\n")
end

local function stat(pid)
    local file = io.open("/proc/" .. pid .. "/stat")
    if file then
        local text = file:read("a")
        file:close()
        return text:match(".*%) (%S) (%d+)")
    end
end

--- The pids of it and all its descendants, parents first.
function methods:tree()
    local children = {}
    for name in dirent.files("/proc") do
        local pid = math.tointeger(name)
        local _, parent = stat(pid or "none")
        if parent then
            parent = math.tointeger(parent)
            children[parent] = children[parent] or {}
            table.insert(children[parent], pid)
        end
    end
    local pids = { self.pid }
    local at = 1
    while pids[at] do
        table.move(children[pids[at]] or {}, 1, #(children[pids[at]] or {}),
            #pids + 1, pids)
        at = at + 1
    end
    return pids
end

--- Proportional memory of the whole tree, in MiB.
function methods:memory()
    local sum = 0
    for _, pid in ipairs(self:tree()) do
        local file = io.open("/proc/" .. pid .. "/smaps_rollup")
        local text = file and file:read("a")
        if text then
            sum = sum + (text:match("\nPss:%s+(%d+)") or 0)
        end
        if file then
            file:close()
        end
    end
    return sum / 1024
end

--- CPU seconds that the living threads of the tree have used.
function methods:cpu()
    local sum = 0
    for _, pid in ipairs(self:tree()) do
        local ok, threads = pcall(dirent.dir, "/proc/" .. pid .. "/task")
        for _, thread in ipairs(ok and threads or {}) do
            local file = io.open(("/proc/%d/task/%s/schedstat"):format(pid,
                thread))
            if file then
                sum = sum + (file:read("n") or 0)
                file:close()
            end
        end
    end
    return sum * 1e-9
end

--- Waits for its end; true if it ended well and in time.
function methods:ended(deadline)
    while child.now() < deadline do
        local pid, how, status = wait.wait(self.pid, wait.WNOHANG)
        if pid == self.pid then
            self.over = true
            return how == "exited" and status == 0, how .. " " .. status
        end
        child.sleep(0.005)
    end
    return false, "out of time"
end

meta.__close = function(self)
    local pids = self.over and {} or self:tree()
    signal.killpg(self.pid, signal.SIGKILL)
    for _, pid in ipairs(pids) do
        signal.kill(pid, signal.SIGKILL)
    end
    if not self.over then
        wait.wait(self.pid)
    end
    unistd.close(self.to)
    unistd.close(self.from)
end

return child
