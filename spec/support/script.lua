-- script.lua - runs a function as a Lua program of its own, so that it can be
-- killed, interrupted or left without a word, and what stays can be seen.
--
--     local p <close> = script.start(function(procpool, c) ... end, opts)
--     p:line("^ready (%d+)")      -- waits for a line of its stdout
--     p:kill(signal.SIGKILL)
--     local status = p:wait()     -- { how = "exit", status = 0, out =, err = }
--     p:gone()                    -- no process of it is left: CLEAN
--
-- The function may use no upvalue but the globals and `assert`; it gets
-- procpool, chelper and spec.support.clean. Its processes carry PROCPOOL_CASE in their
-- environment; closing the object kills whatever carries it still.
--
-- opts: command (a list put before the interpreter), env (name -> value, false
-- to unset), args (strings), stdin (path), tty (true: on a terminal of its
-- own), stdout and stderr (path instead of a file that is read back).

local chelper = require("chelper")
local clean = require("spec.support.clean")
local core = require("procpool.core")
local fcntl = require("posix.fcntl")
local poll = require("posix.poll")
local posix_signal = require("posix.signal")
local stdlib = require("posix.stdlib")
local unistd = require("posix.unistd")

local WATCHDOG = 60     -- seconds until a wait counts as a hang

local script = {}

local Process = {}
Process.__index = Process

local serial = 0

local function temporary()
    local fd, name = stdlib.mkstemp("/tmp/procpool-spec.XXXXXX")
    unistd.close(fd)
    return name
end

-- The function as a file that main.lua loads.
local function dump(f)
    for i = 1, math.huge do
        local name, value = debug.getupvalue(f, i)
        if not name then
            break
        end
        -- busted's assert becomes Lua's own, there
        assert(value == _G or name == "assert", "a script's function has the upvalue " .. name)
    end
    local path = temporary()
    local file = assert(io.open(path, "wb"))
    file:write(string.dump(f))
    file:close()
    return path
end

local function open_terminal()
    local master = assert(stdlib.openpt(fcntl.O_RDWR | fcntl.O_NOCTTY))
    assert(stdlib.grantpt(master))
    assert(stdlib.unlockpt(master))
    return master, assert(stdlib.ptsname(master))
end

local function open_at(fd, path, flags)
    local opened = assert(fcntl.open(path, flags, tonumber("600", 8)))
    if opened ~= fd then
        unistd.dup2(opened, fd)
        unistd.close(opened)
    end
end

-- In the child: never returns.
local function become(self, command, opts)
    unistd.setpid("s")
    -- only what a program starts with
    chelper.close_range(3, 255)
    if self.slave then
        open_at(0, self.slave, fcntl.O_RDWR)
    else
        open_at(0, opts.stdin or "/dev/null", fcntl.O_RDONLY)
    end
    open_at(1, self.out_path, fcntl.O_WRONLY | fcntl.O_CREAT | fcntl.O_APPEND)
    open_at(2, self.err_path, fcntl.O_WRONLY | fcntl.O_CREAT | fcntl.O_APPEND)
    stdlib.setenv("PROCPOOL_CASE", self.case)
    stdlib.setenv("LUA_PATH", package.path)
    stdlib.setenv("LUA_CPATH", package.cpath)
    local asan = os.getenv("ASAN_OPTIONS")
    if asan then -- crashes are meant here
        stdlib.setenv("ASAN_OPTIONS", asan .. ":handle_segv=0:handle_abort=0"
            .. ":handle_sigbus=0:handle_sigfpe=0:handle_sigill=0")
    end
    for name, value in pairs(opts.env or {}) do
        stdlib.setenv(name, value or nil)
    end
    unistd.execp(command[1], { [0] = command[1], table.unpack(command, 2) })
    chelper.quit(127)
end

---@param f function(procpool, chelper, clean, ...)
function script.start(f, opts)
    opts = opts or {}
    serial = serial + 1
    local self = setmetatable({
        case = ("%d.%d.%d"):format(unistd.getpid(), serial, os.time()),
        chunk = dump(f), files = {}, at = 0, seen = "",
        begun = core.now(),
    }, Process)
    self.out_path, self.own_out = opts.stdout or temporary(), not opts.stdout
    self.err_path = opts.stderr or temporary()
    self.files = { self.chunk, not opts.stdout and self.out_path or nil }
    if not opts.stderr then
        self.files[#self.files + 1] = self.err_path
    end
    for _, path in ipairs(self.files) do -- readable for any user
        os.execute("chmod 666 " .. path)
    end
    if opts.tty then
        self.master, self.slave = open_terminal()
    end
    local command = { table.unpack(opts.command or {}) }
    for _, word in ipairs({ os.getenv("LUA") or "lua5.4", "spec/support/main.lua", self.chunk }) do
        command[#command + 1] = word
    end
    for _, word in ipairs(opts.args or {}) do
        command[#command + 1] = tostring(word)
    end
    io.flush()
    self.pid = assert(unistd.fork())
    if self.pid == 0 then
        pcall(become, self, command, opts)
        chelper.quit(126)
    end
    return self
end

--- What it has written so far (not to a path of the caller's, which may be a
--- device without an end).
function Process:out()
    return self.own_out and clean.read(self.out_path) or ""
end

function Process:err()
    return clean.read(self.err_path) or ""
end

-- Takes note of its end, if it has ended.
local function look(self)
    if not self.status then
        local pid, how, status = chelper.wait(self.pid, true)
        if pid ~= 0 then
            self.how, self.status = how, status
            self.took = core.now() - self.begun
        end
    end
    return self.status ~= nil
end

--- Everything that is known about a case that went wrong.
function Process:report()
    local lines = {}
    for _, pid in ipairs(clean.marked("PROCPOOL_CASE", self.case)) do
        lines[#lines + 1] = clean.describe(pid)
        lines[#lines + 1] = clean.stack(pid)
    end
    return ("%s %s\nstdout: %s\nstderr: %s\n%s"):format(self.how or "running",
        self.status or "", self:out(), self:err(), table.concat(lines, "\n"))
end

function Process:fail(what)
    local text = what .. "\n" .. self:report()
    self:stop()
    error(text, 0)
end

--- Waits for a line of stdout; its captures, or the line.
function Process:line(pattern, seconds)
    local found
    local function scan()
        local over = look(self)
        for line in self:out():gmatch("([^\n]*)\n") do
            found = table.pack(line:match(pattern))
            if found[1] then
                return true
            end
        end
        return over
    end
    clean.await(seconds or WATCHDOG, scan)
    if not (found and found[1]) then
        self:fail(("no line %q"):format(pattern))
    end
    return table.unpack(found)
end

--- Waits for its end: { how, status, took, out, err }.
function Process:wait(seconds)
    if not clean.await(seconds or WATCHDOG, look, self) then
        self:fail(("still running after %g s"):format(seconds or WATCHDOG))
    end
    return { how = self.how, status = self.status, took = self.took,
        out = self:out(), err = self:err() }
end

function Process:kill(sig)
    return posix_signal.kill(self.pid, sig)
end

--- Types at its terminal.
function Process:type(text)
    unistd.write(self.master, text)
end

--- What its terminal shows.
function Process:screen()
    local text = ""
    while (poll.rpoll(self.master, 0) or 0) > 0 do
        local more = unistd.read(self.master, 4096)
        if not more or more == "" then
            break
        end
        text = text .. more
    end
    self.seen = self.seen .. text
    return self.seen
end

--- All its processes.
function Process:family()
    return clean.marked("PROCPOOL_CASE", self.case)
end

--- CLEAN: waits until no process of it is left; how long that took.
function Process:gone(seconds)
    local begun = core.now()
    look(self)
    local none = clean.await(seconds, function()
        look(self)
        return not self:family()[1]
    end)
    if not none then
        self:fail(("processes left after %g s"):format(seconds))
    end
    return core.now() - begun
end

--- Kills what is left and reaps it.
function Process:stop()
    for _ = 1, 50 do
        local left = self:family()
        for _, pid in ipairs(left) do
            posix_signal.kill(pid, posix_signal.SIGKILL)
        end
        if look(self) and not left[1] then
            break
        end
        clean.pause(0.01)
    end
end

function Process:__close()
    self:stop()
    for _, path in ipairs(self.files) do
        os.remove(path)
    end
    if self.master then
        unistd.close(self.master)
    end
end

local Command = {}
Command.__index = Command

--- A command in the background, until it is closed: its own output is kept.
---@param words string[]
function script.command(words)
    local self = setmetatable({ path = temporary() }, Command)
    io.flush()
    self.pid = assert(unistd.fork())
    if self.pid == 0 then
        chelper.close_range(3, 255)
        open_at(0, "/dev/null", fcntl.O_RDONLY)
        open_at(1, self.path, fcntl.O_WRONLY | fcntl.O_APPEND)
        open_at(2, self.path, fcntl.O_WRONLY | fcntl.O_APPEND)
        unistd.execp(words[1], { [0] = words[1], table.unpack(words, 2) })
        chelper.quit(127)
    end
    return self
end

function Command:over()
    self.ended = self.ended or chelper.wait(self.pid, true) ~= 0
    return self.ended
end

function Command:err()
    return clean.read(self.path)
end

--- Asks it to end.
function Command:stop()
    if not self:over() then
        posix_signal.kill(self.pid, posix_signal.SIGTERM)
    end
    clean.await(5, self.over, self)
end

function Command:__close()
    if not clean.await(2, self.over, self) then
        posix_signal.kill(self.pid, posix_signal.SIGKILL)
        chelper.wait(self.pid)
    end
    os.remove(self.path)
end

--- Runs it to its end, which leaves nothing behind.
function script.run(f, opts)
    local p <close> = script.start(f, opts)
    local result = p:wait(opts and opts.seconds)
    p:gone(opts and opts.gone or 10)
    return result
end

return script
