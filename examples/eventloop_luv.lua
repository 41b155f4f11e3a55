-- eventloop_luv: a pool in a libuv loop, with luv.
--
--     lua5.4 examples/eventloop_luv.lua [LIMIT]
--
-- Counts the primes below LIMIT (20 million unless given) in pieces, while a
-- timer goes on ticking: the loop is never blocked. A uv_poll handle watches
-- pool:fileno(), which is readable while pool:poll() has something to do;
-- pool:poll() takes results in, runs callbacks, and resumes the coroutines that
-- wait in procpool.await.

local uv = require("luv")
local procpool = require("procpool")

local PIECE = 500000    -- numbers in one task

--- The task: how many primes there are from `low` to `high`, by a sieve.
local function count_primes(low, high)
    local root = math.floor(high ^ 0.5) + 1
    local composite, small, count = {}, {}, 0
    for p = 2, root do
        if not small[p] then
            for m = p * p, root, p do
                small[m] = true
            end
            for m = math.max(p * p, (low + p - 1) // p * p), high, p do
                composite[m - low + 1] = true
            end
        end
    end
    for i = math.max(low, 2), high do
        count = count + (composite[i - low + 1] and 0 or 1)
    end
    return count
end

local limit = math.tointeger(tonumber(arg[1] or 20000000))
if not limit or limit < 1 then
    io.stderr:write("usage: eventloop_luv.lua [LIMIT]\n")
    os.exit(2, true)
end

-- The pool first, then the loop's handles: workers inherit what is open.
local pool <close> = procpool.new({ name = "primes" })

local arrivals = assert(uv.new_poll(pool:fileno()))
arrivals:start("r", function()
    pool:poll()
end)

local ticks = 0
local clock = uv.new_timer()
clock:start(0, 20, function()
    ticks = ticks + 1
end)

local function finish(total)
    print(("%d primes up to %d"):format(total, limit))
    print(("%d ticks of the timer meanwhile"):format(ticks))
    arrivals:close()
    clock:close()
end

-- A coroutine reads like a program that waits; parked in await, it holds up
-- nobody.
coroutine.wrap(function()
    local pieces, total = {}, 0
    for low = 1, limit, PIECE do
        local high = math.min(low + PIECE - 1, limit)
        pieces[#pieces + 1] = pool:apply_async(count_primes, { low, high })
    end
    for _, piece in ipairs(pieces) do
        total = total + procpool.await(piece)
    end
    finish(total)
end)()

uv.run()
