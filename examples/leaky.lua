-- leaky: work through a library that leaks, kept in check by maxmemoryperchild.
--
--     lua5.4 examples/leaky.lua [-j WORKERS] [-m MB] FILE...
--
-- Runs a shell script on the text of each file, handed over in an environment
-- variable, as CGI programs get their requests. setenv never gives back the
-- memory of a value it replaces: somebody might still hold the pointer that
-- getenv gave him. So a long-running process grows by every text it has ever
-- put there, and no collectgarbage helps.
--
-- With maxmemoryperchild a worker whose own memory exceeds the limit after a
-- task leaves, and a fresh one takes its place; no task is lost. Run it with
-- `-m 0` (no limit) to see the growth.

local stdlib = require("posix.stdlib")
local procpool = require("procpool")

local ROOM = 100 * 1024 -- bytes; Linux takes 128 KiB in one variable

local USAGE = [[
usage: leaky.lua [-j WORKERS] [-m MB] FILE...
  -j   worker processes (default: 2)
  -m   megabytes after which a worker is replaced (default: 16; 0 = never)
]]

local SCRIPT = [[printf %s "$DOCUMENT" | wc -w]]

--- The task: how many words are there in a file?
local function count_words(path)
    local file <close> = assert(io.open(path, "rb"))
    local text = (file:read(ROOM) or ""):gsub("%z", " ")
    assert(stdlib.setenv("DOCUMENT", text)) -- leaks #text bytes
    local pipe <close> = assert(io.popen(SCRIPT))
    return pipe:read("n")
end

--- The largest private memory of a worker just now, in bytes.
local function largest(pool)
    local most = 0
    for _, worker in ipairs(pool:stats().workers) do
        most = math.max(most, worker.memory)
    end
    return most
end

local function fail(text)
    io.stderr:write(text)
    os.exit(2, true)
end

local function parse(args)
    local options = { workers = 2, megabytes = 16, files = {} }
    local names = { ["-j"] = "workers", ["-m"] = "megabytes" }
    local i = 1
    while args[i] do
        local name = names[args[i]]
        if name then
            i = i + 1
            options[name] = math.tointeger(tonumber(args[i])) or fail(USAGE)
        else
            table.insert(options.files, args[i])
        end
        i = i + 1
    end
    return options.files[1] and options.workers > 0 and options or fail(USAGE)
end

local function main(args)
    local options = parse(args)
    local limit = options.megabytes > 0 and options.megabytes << 20 or nil
    local pool <close> = procpool.new(options.workers, {
        maxmemoryperchild = limit, name = "leaky",
    })
    local peak = 0
    for i, words in pool:imap(count_words, options.files) do
        print(("%8d  %s"):format(words, options.files[i]))
        peak = math.max(peak, largest(pool))
    end
    io.stderr:write(("%d files, %d workers replaced, %.1f MB the largest one\n")
        :format(#options.files, pool:stats().recycled.memory, peak / 2 ^ 20))
end

main(arg)
