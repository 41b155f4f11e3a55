-- eventloop_cqueues: a pool under cqueues, with coroutines that wait for results.
--
--     lua5.4 examples/eventloop_cqueues.lua FILE...
--
-- Tells how far each file could be compressed (by a plain LZ77), worked out in
-- workers. Each file has a coroutine of its own, which submits the work, waits
-- for the result and prints it; one more coroutine shows that time goes on.
--
-- Under cqueues a coroutine is parked by cqueues alone, so procpool.await is
-- told how to wait: on a condition variable of that result. It is signalled by
-- the result's callback, which runs in whichever coroutine takes results in;
-- one coroutine does nothing else, whenever pool:fileno() is readable.

local condition = require("cqueues.condition")
local cqueues = require("cqueues")
local procpool = require("procpool")

local WINDOW = 32768

--- The task: bytes that a greedy LZ77 would need for the file (a literal takes
--- one, a match three), and the file's size.
local function squeezed(path)
    local file <close>, problem = io.open(path, "rb")
    if not file then
        error(problem, 0)
    end
    local text = file:read("a")
    local seen, at, size = {}, 1, 0
    while at <= #text do
        local key = text:sub(at, at + 3)
        local from, length = seen[key], 0
        seen[key] = at
        if from and at - from <= WINDOW and #key == 4 then
            length = 4
            while length < 258 and at + length <= #text
                and text:byte(from + length) == text:byte(at + length) do
                length = length + 1
            end
        end
        at = at + math.max(length, 1)
        size = size + (length > 0 and 3 or 1)
    end
    return size, #text
end

if not arg[1] then
    io.stderr:write("usage: eventloop_cqueues.lua FILE...\n")
    os.exit(2, true)
end

local pool <close> = procpool.new({ name = "squeeze" })
local loop = cqueues.new()

--- Runs f(...) in a worker; the calling coroutine waits, the others go on.
local function remotely(f, ...)
    local arrived = condition.new()
    local function wake()
        arrived:signal()
    end
    local result = pool:apply_async(f, { ... }, {
        timeout = 60, callback = wake, error_callback = wake,
    })
    return procpool.await(result, function()
        arrived:wait()
    end)
end

local left = #arg       -- files without a result

for _, path in ipairs(arg) do
    loop:wrap(function()
        local ok, size, before = pcall(remotely, squeezed, path)
        if ok then
            print(("%s: %d -> %d bytes"):format(path, before, size))
        else
            print(size.message)
        end
        left = left - 1
    end)
end

loop:wrap(function()
    while true do
        -- What cqueues polls: a descriptor, and what is expected of it.
        cqueues.poll({ pollfd = pool:fileno(), events = "r" })
        pool:poll()
    end
end)

local ticks = 0
loop:wrap(function()
    while true do
        cqueues.sleep(0.02)
        ticks = ticks + 1
    end
end)

while left > 0 do
    assert(loop:step())
end
io.stderr:write(ticks, " ticks meanwhile\n")
