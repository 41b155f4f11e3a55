-- A plain pool of luaposix: fork, two pipes for each worker, framed messages.
--
-- Written as one would by hand when a pool is not at hand, and with care: many
-- messages go into one write and one read, up to WINDOW are under way at each
-- worker, the function is inherited by the fork and never sent. No errors, no
-- limits, no replacement of dead workers.

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/?.lua;" .. package.path
local cjson = require("cjson")
local common = require("common")
local poll = require("posix.poll").poll
local signal = require("posix.signal")
local unistd = require("posix.unistd")
local wait = require("posix.sys.wait").wait
local now = common.now

local READ = 65536
local WINDOW = 100          -- messages under way at one worker
local CHUNK = 1000          -- items in one message of a map

local function send(fd, text)
    local first = 0
    while first < #text do
        first = first + assert(unistd.write(fd, text, #text - first, first))
    end
end

--- Reads once, and gives whole messages to `take`; the rest stays in `from`.
local function receive(from, take)
    local piece = unistd.read(from.fd, READ)
    if not piece or piece == "" then
        return nil
    end
    if from.wanted then     -- inside a big message: collect, do not join
        from.pieces[#from.pieces + 1] = piece
        from.have = from.have + #piece
        if from.have < from.wanted then
            return true
        end
        piece = table.concat(from.pieces)
        from.wanted = nil
    end
    local at = 1
    while #piece - at >= 3 do
        local size = string.unpack("<I4", piece, at)
        if #piece - at - 3 < size then
            from.wanted = size + 4
            break
        end
        take(piece:sub(at + 4, at + 3 + size))
        at = at + 4 + size
    end
    if at <= #piece then
        from.pieces, from.have = { piece:sub(at) }, #piece - at + 1
        from.wanted = from.wanted or 4
    end
    return true
end

--- The child: a reply for every message, those of one read in one write.
local function serve(input, output, f)
    local from = { fd = input }
    local replies = {}
    local function take(message)
        replies[#replies + 1] = string.pack("<s4", f(message))
    end
    while receive(from, take) do
        if replies[1] then
            send(output, table.concat(replies))
            replies = {}
        end
    end
    unistd._exit(0)
end

local function new(workers, f)
    io.stdout:flush()
    local pool = {}
    for i = 1, workers do
        local theirs, to = unistd.pipe()
        local from, ours = unistd.pipe()
        local pid = unistd.fork()
        if pid == 0 then
            unistd.close(to)
            unistd.close(from)
            for j = 1, i - 1 do
                unistd.close(pool[j].to)
                unistd.close(pool[j].fd)
            end
            serve(theirs, ours, f)
        end
        unistd.close(theirs)
        unistd.close(ours)
        pool[i] = { pid = pid, to = to, fd = from, busy = 0 }
    end
    return pool
end

local function close(pool)
    for _, worker in ipairs(pool) do
        unistd.close(worker.to)
    end
    for _, worker in ipairs(pool) do
        wait(worker.pid)
        unistd.close(worker.fd)
    end
end

--- One task at the first worker, as big as it likes.
local function call(pool, message)
    local worker, reply = pool[1], nil
    send(worker.to, string.pack("<s4", message))
    repeat
        receive(worker, function(text) reply = text end)
    until reply
    return reply
end

--- All messages through the pool; replies come in order at each worker, so
--- their numbers are known. `next_message(i)` may give nil: no more.
local function all(pool, next_message, take, window)
    local fds, by_fd = {}, {}
    for _, worker in ipairs(pool) do
        fds[worker.fd] = { events = { IN = true } }
        by_fd[worker.fd] = worker
        worker.first, worker.last, worker.numbers = 1, 0, {}
    end
    local sent, got, ended = 0, 0, false
    local function fill(worker)
        local batch = {}
        while not ended and worker.busy < window do
            local message = next_message(sent + 1)
            if not message then
                ended = true
                break
            end
            sent = sent + 1
            batch[#batch + 1] = string.pack("<s4", message)
            worker.last = worker.last + 1
            worker.numbers[worker.last] = sent
            worker.busy = worker.busy + 1
        end
        if batch[1] then
            send(worker.to, table.concat(batch))
        end
    end
    local current
    local function taken(reply)
        local number = current.numbers[current.first]
        current.numbers[current.first] = nil
        current.first = current.first + 1
        current.busy = current.busy - 1
        got = got + 1
        take(number, reply)
    end
    for _, worker in ipairs(pool) do
        fill(worker)
    end
    while got < sent do
        poll(fds, -1)
        for fd, entry in pairs(fds) do
            if entry.revents.IN then
                current = by_fd[fd]
                receive(current, taken)
                if current.busy <= window // 2 then
                    fill(current)
                end
            end
        end
    end
end

local cases = {}

function cases.apply(o)
    local pool = new(o.workers, function() return "" end)
    for _ = 1, o.n // 10 do
        call(pool, "")
    end
    local start = now()
    for _ = 1, o.n do
        call(pool, "")
    end
    local took = now() - start
    close(pool)
    return { value = took / o.n * 1e6, unit = "us" }
end

function cases.async(o)
    local f, argument = function(x) return x + 1 end, nil
    if o.us then
        f, argument = common.burn, common.rounds(o.us * 1e-6)
    end
    local pool = new(o.workers, function(message)
        return string.pack("<i8", f((string.unpack("<i8", message))))
    end)
    call(pool, string.pack("<i8", 1))
    local results = {}
    local start = now()
    all(pool, function(i)
        return i <= o.n and string.pack("<i8", argument or i) or nil
    end, function(i, reply)
        results[i] = string.unpack("<i8", reply)
    end, o.us and o.us > 500 and 2 or WINDOW)
    local took = now() - start
    assert(#results == o.n and (o.us or results[o.n] == o.n + 1))
    close(pool)
    return { value = o.n / took, unit = "1/s", us = o.us }
end

function cases.map(o)
    local form = "<" .. ("i8"):rep(CHUNK)
    local pool = new(o.workers, function(message)
        local list = { form:unpack(message) }
        list[CHUNK + 1] = nil
        for i = 1, CHUNK do
            list[i] = list[i] + 1
        end
        return form:pack(table.unpack(list))
    end)
    local items, results = {}, {}
    for i = 1, o.n do
        items[i] = i
    end
    call(pool, form:pack(table.unpack(items, 1, CHUNK)))
    local start = now()
    all(pool, function(i)
        local first = (i - 1) * CHUNK
        return first < o.n
            and form:pack(table.unpack(items, first + 1, first + CHUNK)) or nil
    end, function(i, reply)
        local list = { form:unpack(reply) }
        table.move(list, 1, CHUNK, (i - 1) * CHUNK + 1, results)
    end, 2)
    local took = now() - start
    assert(results[o.n] == o.n + 1)
    close(pool)
    return { value = o.n / took, unit = "1/s" }
end

function cases.echo(o)
    local pool = new(o.workers, function(message) return message end)
    local text = string.rep("x", o.size)
    assert(#call(pool, text) == o.size)
    local start = now()
    for _ = 1, o.n do
        call(pool, text)
    end
    local took = now() - start
    close(pool)
    return { value = 2 * o.size * o.n / took / 2 ^ 30, unit = "GiB/s",
        size = o.size }
end

function cases.records(o)
    local pool = new(o.workers, function(message)
        return cjson.encode(cjson.decode(message))
    end)
    call(pool, "[1]")
    local list = common.records(o.n)
    local start = now()
    local back = cjson.decode(call(pool, cjson.encode(list)))
    local took = now() - start
    assert(#back == o.n and back[o.n].id == o.n)
    close(pool)
    return { value = took * 1e3, unit = "ms" }
end

function cases.start(o)
    return common.lives(o.n, function()
        local pool = new(o.workers, function(message) return message end)
        all(pool, function(i) return i <= o.workers and "1" or nil end,
            function() end, 1)
        close(pool)
    end)
end

--- Lives of `limit` tasks: the whole of a life's work goes in by the fork and
--- comes back through one pipe. At most `workers` at a time.
function cases.recycle(o)
    local heap = common.heap(o.heap or 0)
    local results, lives = {}, {}
    local function live(first)
        local from, ours = unistd.pipe()
        local pid = unistd.fork()
        if pid == 0 then
            local replies = {}
            for i = first, math.min(first + o.limit - 1, o.n) do
                replies[#replies + 1] = string.pack("<i8", i + 1)
            end
            send(ours, table.concat(replies))
            unistd._exit(0)
        end
        unistd.close(ours)
        lives[#lives + 1] = { pid = pid, fd = from, first = first }
    end
    local function finish(life)
        local text = unistd.read(life.fd, READ)
        for i = 0, #text // 8 - 1 do
            results[life.first + i] = string.unpack("<i8", text, i * 8 + 1)
        end
        unistd.close(life.fd)
        wait(life.pid)
    end
    local start = now()
    for first = 1, o.n, o.limit do
        if #lives == o.workers then
            finish(table.remove(lives, 1))
        end
        live(first)
    end
    for _, life in ipairs(lives) do
        finish(life)
    end
    local took = now() - start
    assert(results[o.n] == o.n + 1 and #heap == (o.heap or 0))
    return { value = o.n / took, unit = "1/s", limit = o.limit,
        heap = o.heap or 0 }
end

function cases.cpu(o)
    local rounds = common.rounds(o.us * 1e-6)
    local pool = new(o.workers, function(message)
        return tostring(common.burn(math.tointeger(message)))
    end)
    call(pool, "1")
    local serial = common.serial(o.n, rounds)
    local start = now()
    all(pool, function(i) return i <= o.n and tostring(rounds) or nil end,
        function() end, 2)
    local took = now() - start
    serial = (serial + common.serial(o.n, rounds)) / 2
    close(pool)
    return { value = serial / took, unit = "x", us = o.us }
end

--- Two processes that share nothing, each with its half of the work.
function cases.independent(o)
    local rounds = common.rounds(o.us * 1e-6)
    local serial = common.serial(o.n, rounds)
    local took = common.independent(o.workers, o.n, rounds)
    serial = (serial + common.serial(o.n, rounds)) / 2
    return { value = serial / took, unit = "x", us = o.us }
end

--- The reader of a dead worker's pipe meets its end.
function cases.kill(o)
    local times = {}
    for i = 1, o.n do
        local pool = new(o.workers, function(message)
            while message == "busy" do end
            return message
        end)
        call(pool, "1")
        send(pool[1].to, string.pack("<s4", "busy"))
        local start = now()
        signal.kill(pool[1].pid, signal.SIGKILL)
        assert(receive(pool[1], print) == nil)
        times[i] = now() - start
        close(pool)
    end
    return { value = common.median(times) * 1e3, unit = "ms",
        worst = times[o.n] * 1e3 }
end

function cases.hold(o)
    close(common.hold(function(workers)
        local pool = new(workers, function(message) return message end)
        all(pool, function(i) return i <= workers and "1" or nil end,
            function() end, 1)
        return pool
    end, o.workers))
end

--- The workers inherit a big table; each reads it all and collects.
function cases.shared(o)
    local list = common.objects(o.mib)
    close(common.hold(function(workers)
        local pool = new(workers, function()
            return tostring(common.visit(list, o.full))
        end)
        all(pool, function(i) return i <= workers and "1" or nil end,
            function() end, 1)
        return pool
    end, o.workers))
end

--- Not a pool at all: what the work takes in one Lua loop.
function cases.serial(o)
    local items, results = {}, {}
    for i = 1, o.n do
        items[i] = i
    end
    local f = function(x) return x + 1 end
    local start = now()
    for i = 1, o.n do
        results[i] = f(items[i])
    end
    local took = now() - start
    assert(results[o.n] == o.n + 1)
    return { value = o.n / took, unit = "1/s" }
end

common.main("luaposix-pipes", cases)
