-- server_luv: a TCP server that hands heavy work to a pool, with luv.
--
--     lua5.4 examples/server_luv.lua [-p PORT] [-j WORKERS] [-t SECONDS]
--
--     curl http://127.0.0.1:8080/factors/1000000016000000063
--     curl http://127.0.0.1:8080/stats
--
-- Speaks as much HTTP as that takes, on the loopback interface only. One
-- coroutine serves a connection; while it waits for a worker the loop serves
-- the others, so /stats is answered at once whatever the workers do.
--
--     200  the answer                 400, 404, 405  a request we do not know
--     503  too much is queued: come back later
--     504  the work took longer than the limit; its worker is replaced
--     500  a worker died, or the task raised
--
-- SIGTERM and Ctrl-C end it: no new connections, those open get their answers.

local uv = require("luv")
local procpool = require("procpool")

local QUEUE = 100       -- requests that may wait for a worker
local LONGEST = 8192    -- bytes of a request

--- The task: the prime factors of n, by trial division.
local function factors(n)
    local list, d = {}, 2
    while d * d <= n do
        while n % d == 0 do
            list[#list + 1], n = d, n // d
        end
        d = d == 2 and 3 or d + 2
    end
    if n > 1 or #list == 0 then
        list[#list + 1] = n
    end
    return list
end

local REASONS = {
    [200] = "OK", [400] = "Bad Request", [404] = "Not Found",
    [405] = "Method Not Allowed", [500] = "Internal Server Error",
    [503] = "Service Unavailable", [504] = "Gateway Timeout",
}

local function response(status, text)
    return ("HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\n"
        .. "Content-Length: %d\r\nConnection: close\r\n\r\n%s"):format(status,
        REASONS[status], #text, text)
end

-- What can be asked ----------------------------------------------------------

local function ask_factors(pool, text)
    local n = math.tointeger(tonumber(text))
    if not n or n < 1 then
        return 400, "not a whole number from 1\n"
    elseif pool:stats().queued >= QUEUE then
        return 503, "busy\n"
    end
    local ok, list = pcall(procpool.await, pool:apply_async(factors, { n }))
    if ok then
        return 200, table.concat(list, " ") .. "\n"
    elseif list.kind == "timelimit" then
        return 504, "took too long\n"
    end
    io.stderr:write(tostring(list), "\n")
    return 500, "failed\n"
end

local function ask_stats(pool)
    local stats = pool:stats()
    return 200, ("idle %d\nbusy %d\nqueued %d\ncompleted %d\nout of time %d\n"
        .. "lost %d\n"):format(stats.idle, stats.busy, stats.queued,
        stats.completed, stats.timelimit, stats.lost)
end

local function answer(pool, request)
    local method, path = request:match("^(%u+) (%S+) HTTP/1%.%d\r\n")
    if not method then
        return 400, "bad request\n"
    elseif method ~= "GET" then
        return 405, "GET only\n"
    elseif path == "/stats" then
        return ask_stats(pool)
    elseif path:match("^/factors/") then
        return ask_factors(pool, path:match("^/factors/(.*)"))
    end
    return 404, "not here\n"
end

-- Connections ----------------------------------------------------------------

--- Reads a request's head from a client, answers it, closes, tells.
local function serve(pool, client, gone)
    local request = ""
    client:read_start(function(problem, data)
        request = request .. (data or "")
        if data and not request:find("\r\n\r\n", 1, true)
            and #request < LONGEST then
            return
        end
        client:read_stop()
        if problem or request == "" then
            return client:close(gone)
        end
        coroutine.wrap(function()
            client:write(response(answer(pool, request)), function()
                client:close(gone)
            end)
        end)()
    end)
end

local function parse(args)
    local options = { port = 8080, workers = procpool.cpus(), limit = 10 }
    local names = { ["-p"] = "port", ["-j"] = "workers", ["-t"] = "limit" }
    for i = 1, #args, 2 do
        local name, value = names[args[i]], tonumber(args[i + 1])
        if not name or not value then
            io.stderr:write(
                "usage: server_luv.lua [-p PORT] [-j WORKERS] [-t SECONDS]\n")
            os.exit(2, true)
        end
        options[name] = value
    end
    return options
end

local function main(args)
    local options = parse(args)
    -- The pool before any socket: workers inherit what is open, and would keep
    -- the port and the connections open after this process has closed them.
    local pool <close> = procpool.new(options.workers, {
        timeout = options.limit, grace = 1, retries = 1, name = "server",
    })
    local arrivals = assert(uv.new_poll(pool:fileno()))
    arrivals:start("r", function()
        pool:poll()
    end)

    local server = uv.new_tcp()
    local signals, connections = {}, 0
    -- With the last handle closed the loop ends.
    local function leave_if_done()
        if server:is_closing() and connections == 0 then
            arrivals:close()
        end
    end
    assert(server:bind("127.0.0.1", options.port))
    assert(server:listen(128, function(problem)
        assert(not problem, problem)
        local client = uv.new_tcp()
        server:accept(client)
        connections = connections + 1
        serve(pool, client, function()
            connections = connections - 1
            leave_if_done()
        end)
    end))
    for i, name in ipairs({ "sigterm", "sigint" }) do
        signals[i] = uv.new_signal()
        signals[i]:start(name, function()
            server:close()
            for _, signal in ipairs(signals) do
                signal:close()
            end
            leave_if_done()
        end)
    end
    print("listening on 127.0.0.1:" .. server:getsockname().port)
    io.stdout:flush()
    uv.run()
    print("closed")
end

main(arg)
