-- jsonlines: transforms JSON lines with a Lua expression, in parallel, in
-- constant memory however long the stream is.
--
--     lua5.4 examples/jsonlines.lua [-j WORKERS] [-c LINES] [-v] EXPRESSION [FILE]
--
--     zcat log.json.gz | lua5.4 examples/jsonlines.lua \
--         'r.status >= 500 and { path = r.path, ms = r.time * 1000 }' >slow.json
--
-- EXPRESSION sees the decoded line as `r`; what it gives is written as a line
-- of JSON, nil and false drop the line. Needs lua-cjson.
--
-- imap reads the stream as it goes: at most `buffersize` lines are between
-- reading and writing, so a slow reader of our output slows the reading down
-- too. Lines come out in the order they came in. A bad line is reported with
-- its number and left out; it harms no other.

local cjson = require("cjson")
local procpool = require("procpool")

local USAGE = [[
usage: jsonlines.lua [-j WORKERS] [-c LINES] [-v] EXPRESSION [FILE]
  -j   worker processes (default: the CPUs this process may use)
  -c   lines sent to a worker at once (default: 200)
  -v   tell lines, seconds and peak memory at the end
]]

local function compile(text)
    return load("local r = ... return " .. text, "=expression", "t")
end

--- Initializer: the expression is compiled once in each life of a worker.
local function prepare(text)
    procpool.worker.state.expression = assert(compile(text))
end

--- The task: one line in; one line, or nil, out.
local function transform(line)
    if line:find("%S") then
        local expression = procpool.worker.state.expression
        local value = expression(cjson.decode(line))
        return value and cjson.encode(value) or nil
    end
end

-- The program ----------------------------------------------------------------

local function fail(text)
    io.stderr:write("jsonlines: ", text, "\n")
    os.exit(2, true)
end

local function parse(args)
    local options = { workers = procpool.cpus(), chunk = 200 }
    local names = { ["-j"] = "workers", ["-c"] = "chunk" }
    local i, words = 1, {}
    while args[i] do
        local name = names[args[i]]
        if name then
            i = i + 1
            options[name] = math.tointeger(tonumber(args[i]))
            if not options[name] or options[name] < 1 then
                fail(args[i - 1] .. " needs a whole number, 1 or more")
            end
        elseif args[i] == "-v" then
            options.verbose = true
        else
            words[#words + 1] = args[i]
        end
        i = i + 1
    end
    if #words < 1 or #words > 2 then
        io.stderr:write(USAGE)
        os.exit(2, true)
    end
    options.expression, options.path = words[1], words[2]
    local good, problem = compile(options.expression)
    if not good then
        fail(problem)
    end
    return options
end

local function lines_of(path)
    if not path then
        return io.lines()
    end
    local good, lines = pcall(io.lines, path)
    if not good then
        fail(lines:gsub("^bad argument.-%((.*)%)$", "%1"))
    end
    return lines
end

--- Most memory this process has held so far, in megabytes.
local function peak_memory()
    local file <close> = io.open("/proc/self/status")
    local text = file and file:read("a") or ""
    return (tonumber(text:match("VmHWM:%s*(%d+)")) or 0) / 1024
end

local function main(args)
    local options = parse(args)
    local pool <close> = procpool.new(options.workers, {
        initializer = prepare, initargs = { options.expression },
        name = "jsonlines",
    })
    local results <close> = pool:imap(transform, lines_of(options.path), {
        chunksize = options.chunk,
    })
    local count, bad = 0, 0
    -- By hand rather than in a for loop: a failed item raises at its turn, and
    -- the iterator goes on behind it.
    while true do
        local ok, index, text = pcall(results.next, results)
        if ok and not index then
            break
        elseif ok and text then
            io.write(text, "\n")
        elseif not ok and procpool.iserror(index) and index.index then
            bad = bad + 1
            io.stderr:write(("jsonlines: line %d: %s\n"):format(index.index,
                index.message))
        elseif not ok then
            error(index, 0)
        end
        count = count + 1
    end
    if options.verbose then
        io.stderr:write(("%d lines, %d bad, %.1f MB at most\n"):format(count,
            bad, peak_memory()))
    end
    return bad == 0
end

os.exit(main(arg), true)
