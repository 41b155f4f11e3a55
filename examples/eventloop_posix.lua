-- eventloop_posix: a pool in a loop around poll(2), with luaposix.
--
--     seq 1000000000000037 1000000000000057 | lua5.4 examples/eventloop_posix.lua
--
-- Reads numbers from stdin, a line each, and prints their prime factors as soon
-- as they are found, so not in the order they came in. The loop waits for two
-- things at once: more input, and results. pool:fileno() is readable while
-- pool:poll() has something to do; poll takes results in and runs callbacks.

local poll = require("posix.poll").poll
local unistd = require("posix.unistd")
local procpool = require("procpool")

local STDIN = 0
local MOST = 1000       -- numbers read but not answered, at most

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

local pool <close> = procpool.new({ name = "factor" })
local waiting = 0       -- numbers without an answer
local reading = true

local function answer(line)
    local n = math.tointeger(tonumber(line))
    if not n or n < 1 then
        io.stderr:write("not a whole number from 1: ", line, "\n")
        return
    end
    waiting = waiting + 1
    pool:apply_async(factors, { n }, {
        timeout = 60,
        callback = function(list)
            waiting = waiting - 1
            print(n .. ": " .. table.concat(list, " "))
        end,
        error_callback = function(err)
            waiting = waiting - 1
            print(n .. ": " .. err.message)
        end,
    })
end

--- Takes what stdin has; a line may come in pieces.
local rest = ""
local function read_numbers()
    local data = unistd.read(STDIN, 4096)
    if not data or data == "" then
        reading = false
        data = rest ~= "" and "\n" or ""
    end
    rest = (rest .. data):gsub("(.-)\n", function(line)
        answer(line)
        return ""
    end)
end

while reading or waiting > 0 do
    -- Not listening to stdin for a while is what keeps a fast producer back.
    local fds = { [pool:fileno()] = { events = { IN = true } } }
    if reading and waiting < MOST then
        fds[STDIN] = { events = { IN = true } }
    end
    poll(fds)
    local input = fds[STDIN] and fds[STDIN].revents
    if input and (input.IN or input.HUP or input.ERR) then
        read_numbers()
    end
    pool:poll()
end
