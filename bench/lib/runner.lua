-- runner: measures each row with each peer in turn, several times over.
--
-- Peers are interleaved (A, B, C, A, B, C): what disturbs the machine for a
-- while disturbs them alike. Each measurement is a process of its own, and a
-- line of JSON in the file of results.

local cjson = require("cjson")
local child = require("bench.lib.child")
local peers = require("bench.lib.peers")

local runner = {}

local LIMIT = 120   -- seconds for one measurement
local SLOW = 10     -- a peer that needs more than this is measured once

local function command(entry, peer, args)
    local argv = entry.mode == "packed" and { "taskset", "-c", "0" } or {}
    table.move(peer.start, 1, #peer.start, #argv + 1, argv)
    argv[#argv + 1] = peer.cases and peer.cases[entry.case] or entry.case
    for key, value in pairs(args) do
        argv[#argv + 1] = ("%s=%s"):format(key, value)
    end
    return argv
end

--- What the row's args are for this peer.
function runner.args(entry, peer, quick)
    local args = {}
    for key, value in pairs(quick and entry.quick or entry.args) do
        args[key] = value
    end
    if entry.scaled and args.n then
        local most = entry.case == "start" and 1 or 20
        local speed = peer.speed
        if type(entry.scaled) == "number" and peer.name ~= "procpool" then
            speed = speed * entry.scaled
        end
        args.n = math.max(math.min(args.n, most), args.n * speed // 1 | 0)
    end
    return args
end

-- Those measured from outside: each gets a child that stands at "base".
local outside = {}

local function stage(process, name, deadline)
    local line, problem = process:line(deadline)
    local told = line and cjson.decode(line)
    if not told or told.stage ~= name then
        return nil, told and told.skip or problem
    end
    return true
end

function outside.memory(process, _, deadline)
    local base = process:memory()
    process:go()
    if not stage(process, "ready", deadline) then
        return nil
    end
    child.sleep(0.3)
    return process:memory() - base, { base = base }
end

function outside.share(process, args, deadline)
    local added, about = outside.memory(process, args, deadline)
    if added then
        about.added = added
        return added / about.base * 100, about
    end
end

function outside.idle(process, args, deadline)
    process:go()
    if not stage(process, "ready", deadline) then
        return nil
    end
    child.sleep(1)
    local before = process:cpu()
    child.sleep(args.seconds)
    return process:cpu() - before, {}
end

--- Measures from outside -> line, or nil and why.
local function watch(entry, process, args, deadline)
    local ok, problem = stage(process, "base", deadline)
    if not ok then
        return nil, problem
    end
    local value, line = outside[entry.what](process, args, deadline)
    if not value then
        return nil, "it did not get ready"
    end
    process:go()
    process:ended(deadline)
    line.value, line.unit = value, entry.unit
    return line
end

local function ask(entry, peer, args)
    local deadline = child.now() + LIMIT
    local log = peers.build .. "/stderr"
    local process <close> = child.start(command(entry, peer, args),
        { env = peers.environment(args), stderr = log })
    local line, problem
    if entry.what then
        line, problem = watch(entry, process, args, deadline)
    else
        line, problem = process:line(deadline)
        line = line and cjson.decode(line)
    end
    process:ended(child.now() + 2)
    if not line then
        local file = io.open(log)
        line = { failed = problem, stderr = file and file:read(2000) }
    end
    return line
end

--- The same beside a process that computes all the time.
local function ask_beside(...)
    local _ <close> = child.start { "timeout", tostring(LIMIT), "sh", "-c",
        "while :; do :; done" }
    return ask(...)
end

--- One measurement -> line (with `skip` or `failed` when there is none).
function runner.measure(entry, peer, quick)
    local args = runner.args(entry, peer, quick)
    local line = (entry.mode == "hog" and ask_beside or ask)(entry, peer, args)
    line.row, line.peer, line.mode = entry.row, peer.name, entry.mode
    line.sweep, line.at, line.quick = entry.sweep, entry.at, quick or nil
    return line
end

local function takes_part(entry, peer, only)
    if only and not only[peer.name] then
        return false
    elseif peer.kind == "none" then
        return entry.beside == peer.name
    elseif entry.peers then
        for _, name in ipairs(entry.peers) do
            if name == peer.name then
                return true
            end
        end
        return false
    end
    return true
end

--- Whoever of the row is still to be measured.
local function field(entry, options)
    local list = {}
    for _, peer in ipairs(peers.list) do
        if peer.here and takes_part(entry, peer, options.peers) then
            list[#list + 1] = peer
        end
    end
    return list
end

--- Measures a row; `take(line)` gets each line as it comes.
function runner.row(entry, options, take)
    local list = field(entry, options)
    local out = {}
    for round = 1, math.min(options.rounds, entry.rounds or math.huge) do
        for _, peer in ipairs(list) do
            if not out[peer] then
                local begun = child.now()
                local line = runner.measure(entry, peer, options.quick)
                line.round, line.took = round, child.now() - begun
                out[peer] = line.skip or line.failed or line.took > SLOW
                take(line)
            end
        end
    end
end

return runner
