-- examples/server_luv.lua: answers at once while workers are busy, tells what
-- goes wrong, ends in order.

local command = require("spec.support.command")
local poll = require("posix.poll").rpoll
local signal = require("posix.signal")
local socket = require("posix.sys.socket")
local unistd = require("posix.unistd")

-- Numbers whose smallest factor is large: some milliseconds, and for ever.
local SEMIPRIME, HARD = "1000036000099", "4611686014132420609"

describe("server_luv", function()
    local pipe, port, pid

    local function start(options)
        pipe = assert(io.popen(("echo $$; exec %s examples/server_luv.lua -p 0 -j 2 %s 2>&1")
            :format(command.LUA, options)))
        pid = math.tointeger(tonumber(pipe:read("l")))
        local line = pipe:read("l")
        port = math.tointeger(tonumber(line:match("^listening on 127.0.0.1:(%d+)$")))
        assert(port, line)
    end

    --- Sends a text; the connection.
    local function send(text)
        local fd = assert(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
        assert(socket.connect(fd, { family = socket.AF_INET, addr = "127.0.0.1", port = port }))
        assert(socket.send(fd, text))
        return fd
    end

    --- What comes back: status and body.
    local function receive(fd)
        local text = ""
        while true do
            assert.are.equal(1, poll(fd, 30000), "no answer")
            local data = assert(socket.recv(fd, 4096))
            if data == "" then
                break
            end
            text = text .. data
        end
        unistd.close(fd)
        return tonumber(text:match("^HTTP/1.1 (%d+) ")), text:match("\r\n\r\n(.*)$")
    end

    local function get(path)
        return receive(send("GET " .. path .. " HTTP/1.1\r\nHost: here\r\n\r\n"))
    end

    local function stop()
        signal.kill(pid, signal.SIGTERM)
        local rest = pipe:read("a")
        local _, _, status = pipe:close()
        pipe = nil
        return rest, status
    end

    after_each(function()
        if pipe then
            stop()
        end
    end)

    it("answers, and ends in order", function()
        start("")
        local status, body = get("/factors/" .. SEMIPRIME)
        assert.are.equal(200, status, body)
        assert.are.equal("1000003 1000033\n", body)
        status, body = get("/stats")
        assert.are.equal(200, status)
        assert.is_truthy(body:find("completed 1\n", 1, true), body)
        local rest, code = stop()
        assert.are.equal("closed\n", rest)
        assert.are.equal(0, code)
    end)

    it("answers at once while all workers are busy", function()
        start("-t 4")
        local slow = { send("GET /factors/" .. HARD .. " HTTP/1.1\r\n\r\n"),
            send("GET /factors/" .. HARD .. " HTTP/1.1\r\n\r\n") }
        local body
        repeat
            body = select(2, get("/stats"))
        until body:find("busy 2\n", 1, true)
        for _, fd in ipairs(slow) do
            unistd.close(fd)
        end
    end)

    it("limits the time of a request, and goes on", function()
        start("-t 0.2")
        local status, body = get("/factors/" .. HARD)
        assert.are.equal(504, status)
        assert.are.equal("took too long\n", body)
        assert.are.equal(200, (get("/factors/12")))
    end)

    it("gives open requests their answers when told to end", function()
        start("-t 0.5")
        local fd = send("GET /factors/" .. HARD .. " HTTP/1.1\r\n\r\n")
        repeat
            local _, body = get("/stats")
        until body:find("busy 1\n", 1, true)
        signal.kill(pid, signal.SIGTERM)
        assert.are.equal(504, (receive(fd)))
        assert.are.equal("closed\n", pipe:read("a"))
    end)

    it("refuses what it does not know", function()
        start("")
        assert.are.equal(400, (get("/factors/many")))
        assert.are.equal(400, (get("/factors/0")))
        assert.are.equal(404, (get("/")))
        assert.are.equal(405, (receive(send("PUT / HTTP/1.1\r\n\r\n"))))
        assert.are.equal(400, (receive(send("hello\r\n\r\n"))))
        assert.are.equal(400, (receive(send(("x"):rep(10000)))))
    end)
end)
