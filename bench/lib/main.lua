-- main: the command line of bench/run.

local cjson = require("cjson")
local cases = require("bench.lib.cases")
local machine = require("bench.lib.machine")
local peers = require("bench.lib.peers")
local plots = require("bench.lib.plots")
local report = require("bench.lib.report")
local runner = require("bench.lib.runner")

local USAGE = [[
bench/run [--quick] [--rows A,B,...] [--peers procpool,luv,...] [--rounds N]
          [--sweeps | --no-sweeps] [--out FILE] [--report FILE]
          [--plots DIRECTORY] [--doc FILE] [--list]

  --quick      about a minute: less work, fewer rounds, no sweeps
  --rows       only rows whose names begin so ("F" is all of F; "crowd")
  --peers      only these
  --rounds     how often each is measured (5; quick: 3)
  --sweeps     only what the plots are drawn from; --no-sweeps: not that
  --out        the JSON lines go there (build/bench/results.jsonl)
  --report     no measuring: the tables of such a file
  --plots      draws what was measured, as SVG, by gnuplot
  --doc        puts the tables between the marks of docs/performance.md
  --list       names the rows and the peers
]]

local function set_of(text)
    local set = {}
    for word in text:gmatch("[^,]+") do
        set[word] = true
        set[#set + 1] = word
    end
    return set
end

local function options_of(words)
    local o = { out = peers.build .. "/results.jsonl" }
    local values = { rows = true, peers = true, rounds = true, out = true,
        report = true, plots = true, doc = true }
    local i = 1
    while words[i] do
        local key, value = words[i]:match("^%-%-([%w-]+)=?(.*)$")
        if key and values[key] and value == "" then
            i = i + 1
            value = words[i] or ""
        end
        if not key or not (values[key] or key == "quick" or key == "sweeps"
            or key == "no-sweeps" or key == "list") then
            io.stderr:write(USAGE)
            os.exit(2)
        end
        o[key] = values[key] and value or true
        i = i + 1
    end
    o.rows, o.peers = o.rows and set_of(o.rows), o.peers and set_of(o.peers)
    o.rounds = math.tointeger(tonumber(o.rounds or o.quick and 3 or 5))
    return o
end

local function wanted(entry, o)
    if o.quick and not entry.quick then
        return false
    elseif o.rows then
        for _, name in ipairs(o.rows) do
            if entry.row == name or entry.row:find(name .. " ", 1, true) == 1
                or entry.crowd and name == "crowd" then
                return true
            end
        end
        return false
    elseif entry.sweep then
        return not o["no-sweeps"]
    end
    return not o.sweeps
end

local function all_rows()
    local list = table.move(cases.rows, 1, #cases.rows, 1, {})
    return table.move(cases.sweeps, 1, #cases.sweeps, #list + 1, list)
end

--- The lines of a file; the first may be the machine's.
local function read(path)
    local lines, about = {}, nil
    for text in assert(io.open(path)):lines() do
        local line = cjson.decode(text)
        about = line.machine or about
        lines[#lines + 1] = line
    end
    return lines, about
end

local function write_plots(lines, about, directory)
    for _, name in ipairs(plots.draw(lines, directory)) do
        io.stderr:write("bench: drew ", directory, "/", name, ".svg\n")
    end
    local file = assert(io.open(directory .. "/machine.md", "w"))
    file:write("# What the plots were measured on\n\n", machine.text(about),
        "\n")
    file:close()
end

local function report_of(lines, about)
    local found = report.collect(lines)
    local parts = { machine.text(about) }
    for _, crowd in ipairs { false, true } do
        parts[#parts + 1] = report.table(found, cases.rows, crowd)
    end
    parts[#parts + 1] = "Everybody, median (min..max):"
    parts[#parts + 1] = report.everybody(found, cases.rows)
    return table.concat(parts, "\n\n") .. "\n"
end

--- Puts the report between the two marks of a document.
local function write_document(text, path)
    local file = assert(io.open(path))
    local first, rest = file:read("a"):match(
        "^(.-<!%-%- bench: figures %-%->\n).-(\n<!%-%- bench: end %-%->.*)$")
    file:close()
    assert(first, path .. " has no marks for the figures")
    file = assert(io.open(path, "w"))
    file:write(first, "\n", text, rest)
    file:close()
end

local function tell_absent()
    for _, peer in ipairs(peers.list) do
        if not peer.here then
            io.stderr:write(("bench: %s is not here and left out "
                .. "(bench/setup installs what it can)\n"):format(peer.name))
        end
    end
end

local function tell(line)
    local text = line.unit and (type(line.value) == "number"
        and report.figure(line.value, line.unit) or "never")
        or line.skip and "does not do this" or "FAILED: "
            .. tostring(line.failed) .. "\n" .. tostring(line.stderr)
    io.stderr:write(("%-18s %-20s %s\n"):format(line.row, line.peer, text))
end

local function measure(o)
    peers.look()
    tell_absent()
    local file = assert(io.open(o.out, "w"))
    file:setvbuf("line")
    local lines, failed = {}, 0
    local about = machine.describe()
    file:write(cjson.encode { machine = about }, "\n")
    for _, entry in ipairs(all_rows()) do
        if wanted(entry, o) then
            runner.row(entry, o, function(line)
                lines[#lines + 1] = line
                failed = failed + (line.failed and 1 or 0)
                file:write(cjson.encode(line), "\n")
                tell(line)
            end)
        end
    end
    file:close()
    return lines, about, failed
end

return function(words)
    local o = options_of(words)
    if o.list then
        for _, entry in ipairs(all_rows()) do
            print(("%-20s %s"):format(entry.row, entry.title))
        end
        for _, peer in ipairs(peers.list) do
            print(("peer %-15s %s"):format(peer.name, peer.kind))
        end
        return 0
    end
    local lines, about, failed
    if o.report then
        lines, about = read(o.report)
    else
        lines, about, failed = measure(o)
    end
    local text = report_of(lines, about)
    print(text)
    if o.doc then
        write_document(text, o.doc)
    end
    if o.plots then
        write_plots(lines, about, o.plots)
    end
    return (failed or 0) == 0 and 0 or 1
end
