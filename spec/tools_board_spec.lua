-- tools/board and tools/traceback.gdb: what they say about a pool at work.

local command = require("spec.support.command")
local fault = require("spec.support.fault")
local run = command.run

local PROGRAM = [[
local procpool = require("procpool")
local pool <close> = procpool.new(2, { name = "seen" })
local function endless(n)
    io.write("started ", require("procpool").worker.pid, "\n")
    while true do n = n + 1 end
end
pool:apply_async(function() local n = 1; endless(n) end)
io.read("l")
pool:terminate()
]]

describe("tools/board", function()
    if fault.asan then
        pending("takes gdb too long to load the checker's symbols")
        return
    end
    local dir, remove, feed, pipe, pid, worker

    setup(function()
        dir, remove = command.directory()
        local path = command.write(dir .. "/busy.lua", PROGRAM)
        assert(os.execute("mkfifo " .. dir .. "/in"))
        feed = assert(io.open(dir .. "/in", "r+"))
        -- A task's output is flushed when it ends: this one's has no buffer.
        pipe = assert(io.popen(("cd '%s'; echo $$; exec %s -e 'io.stdout:setvbuf(\"no\")' %s <%s")
            :format(os.getenv("PWD"), command.LUA, path, dir .. "/in")))
        pid = pipe:read("l")
        worker = pipe:read("l"):match("^started (%d+)$")
    end)

    teardown(function()
        feed:write("\n")
        feed:close()
        pipe:close()
        remove()
    end)

    local function check(out)
        assert.is_truthy(out:find("\n  keeper +%d+ .* waits for something to do\n"), out)
        assert.is_truthy(out:find("\n    worker 1? *" .. worker .. " .* running\n")
            or out:find("\n    worker 2? *" .. worker .. " .* running\n"), out)
        assert.is_truthy(out:find("\n    worker [12]? .* waits: for a task"), out)
    end

    it("shows keeper and workers, from any of them", function()
        local out, err, status = run("tools/board " .. pid)
        assert.are.equal("", err)
        assert.are.equal(0, status)
        check(out)
        assert.is_truthy(out:find("\nlua5.4 .* " .. pid .. " "), out)
        local keeper = out:match("\n  keeper +(%d+)")
        for _, member in ipairs({ keeper, worker }) do
            check((run("tools/board " .. member)))
        end
    end)

    it("says what is wrong", function()
        local _, err, status = run("tools/board 1")
        assert.are.equal(1, status)
        assert.is_truthy(err:find("no pool of process 1", 1, true), err)
        _, err, status = run("tools/board x")
        assert.are.equal(2, status)
        assert.is_truthy(err:find("usage: board", 1, true), err)
        _, err = run("tools/board 4000000000")
        assert.is_truthy(err:find("no process 4000000000", 1, true), err)
    end)

    --- What gdb says, or nil when it is not here or may not.
    local function with_gdb(line)
        local out = run(line .. " 2>&1")
        if not (os.execute("command -v gdb >/dev/null"))
            or out:find("ptrace: Operation not permitted", 1, true)
            or out:find("No symbol table", 1, true) then
            return nil, pending("no gdb, or it may not look")
        end
        return out
    end

    it("prints the board", function()
        local out = with_gdb("tools/board -g " .. pid)
        if out then
            assert.is_truthy(out:find("board: 1 cells posted, the first .* is 1\n"), out)
            assert.is_truthy(out:find("\n +%d +" .. worker
                .. " +%d+ +%d+ +running +no +0 +1 of 1\n"), out)
            assert.is_truthy(out:find("not begun +yes +-\n"), out)
        end
    end)

    it("shows where a task is", function()
        local out = with_gdb("gdb -nx -batch -p " .. worker .. " -x tools/traceback.gdb")
        if out then
            assert.is_truthy(out:find("in upvalue 'endless'", 1, true), out)
        end
    end)
end)
