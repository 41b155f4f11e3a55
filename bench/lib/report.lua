-- report: medians, spreads and ratios of the measured lines, as Markdown.

local cases = require("bench.lib.cases")
local peers = require("bench.lib.peers")

local report = {}

local UNITS = {
    us = { "us", "ms", 1e3 }, ms = { "ms", "s", 1e3 }, s = { "s", "s", 1e99 },
    MiB = { "MiB", "GiB", 1024 }, ["1/s"] = { "/s", "k/s", 1e3 },
    ["GiB/s"] = { "GiB/s", "GiB/s", 1e99 }, x = { "x", "x", 1e99 },
    ["%"] = { "%", "%", 1e99 },
}

local function digits(value)
    local size = math.abs(value)
    return (size >= 100 and "%.0f" or size >= 10 and "%.1f" or size >= 1
        and "%.2f" or size == 0 and "%.0f" or "%.2g"):format(value)
end

--- "12.3 k/s"; without its unit on request.
function report.figure(value, unit, bare)
    if value == math.huge then
        return "never"
    end
    local plain, big, step = table.unpack(UNITS[unit])
    if unit == "1/s" and value >= 1e6 then
        plain, value = "M/s", value / 1e6
    elseif value >= step * (unit == "1/s" and 1 or 10)
    then
        plain, value = big, value / step
    end
    return digits(value) .. (bare and "" or (unit == "x" or unit == "%")
        and plain or " " .. plain)
end

--- lines -> by row and peer {values, median, least, most, unit}; a value that
--- never came counts as endless.
function report.collect(lines)
    local found = {}
    for _, line in ipairs(lines) do
        if line.row and line.unit then
            local row = found[line.row] or {}
            found[line.row] = row
            local one = row[line.peer] or { values = {}, unit = line.unit }
            row[line.peer] = one
            one.values[#one.values + 1] = type(line.value) == "number"
                and line.value or math.huge
            one.at, one.sweep = line.at, line.sweep
        end
    end
    for _, row in pairs(found) do
        for _, one in pairs(row) do
            table.sort(one.values)
            local n = #one.values
            one.least, one.most = one.values[1], one.values[n]
            one.median = n % 2 == 1 and one.values[(n + 1) // 2]
                or (one.values[n // 2] + one.values[n // 2 + 1]) / 2
        end
    end
    return found
end

--- How many times better a is than b in this unit.
local function better(a, b, unit)
    if a == b then
        return 1
    elseif cases.less(unit) then
        return a == 0 and math.huge or b / a
    end
    return a / b
end

local function with_spread(one)
    if not one then
        return "-"
    elseif #one.values == 1 then
        return report.figure(one.median, one.unit)
    end
    return ("%s (%s..%s)"):format(report.figure(one.median, one.unit),
        report.figure(one.least, one.unit, true),
        report.figure(one.most, one.unit))
end

--- The best of those of a kind, procpool apart.
local function best(row, kind)
    local found, name
    for _, peer in ipairs(peers.list) do
        local one = row[peer.name]
        if one and peer.kind == kind and peer.name ~= "procpool" and (not found
            or better(one.median, found.median, one.unit) > 1) then
            found, name = one, peer.name
        end
    end
    return found, name
end

--- How many times better procpool is than the best other process pool.
---@return number? times
---@return string? name of that pool
function report.advantage(found, entry)
    local row = found[entry.row]
    local other, name = best(row or {}, "process")
    if other and row.procpool then
        return better(row.procpool.median, other.median, entry.unit), name
    end
end

local function best_text(row, kind)
    local one, name = best(row, kind)
    return one and name .. " " .. report.figure(one.median, one.unit) or "-"
end

local function times(value)
    return value == math.huge and "-" or digits(value) .. "x"
end

--- What is to be reached, and whether it is: as a figure, and as a ratio to a
--- peer measured in the same run.
local function verdict(entry, found)
    local mine = found[entry.row].procpool
    local texts, met = {}, {}
    if entry.reach then
        texts[1] = (cases.less(entry.unit) and "<= " or ">= ")
            .. report.figure(entry.reach, entry.unit)
        met[1] = mine.median == entry.reach
            or better(mine.median, entry.reach, entry.unit) >= 1
    end
    if entry.against then
        local name, factor = table.unpack(entry.against)
        local other = (found[entry.against.row or entry.row] or {})[name]
        if name == "the best" then
            other, name = best(found[entry.row], "process"), "that"
        end
        texts[#texts + 1] = ("%s %s"):format(times(factor), name)
        met[#texts] = other and better(mine.median, other.median,
            entry.unit) >= factor or false
    end
    for i, ok in ipairs(met) do
        met[i] = ok and "yes" or "no"
    end
    return table.concat(texts, "; "), table.concat(met, "; ")
end

local function line(out, ...)
    out[#out + 1] = "| " .. table.concat({ ... }, " | ") .. " |"
end

--- The table of the rows: procpool beside the best of the others.
function report.table(found, rows, crowd)
    local out = {}
    line(out, "case", "procpool, median (min..max)", "best process pool",
        "best thread pool", "against the best process pool",
        "to reach (as a figure; against another)", "reached")
    line(out, "---", "---", "---", "---", "---", "---", "---")
    for _, entry in ipairs(rows) do
        local row = found[entry.row]
        if row and row.procpool and not entry.crowd == not crowd then
            local other = best(row, "process")
            local reach, met = verdict(entry, found)
            line(out, entry.crowd and entry.title
                or entry.row .. ": " .. entry.title,
                with_spread(row.procpool), best_text(row, "process"),
                best_text(row, "thread"), other and times(better(
                    row.procpool.median, other.median, entry.unit)) or "-",
                reach, met)
        end
    end
    return #out > 2 and table.concat(out, "\n") or nil
end

--- The table of everybody's figures.
function report.everybody(found, rows)
    local here, out = {}, {}
    for _, peer in ipairs(peers.list) do
        for _, entry in ipairs(rows) do
            if not entry.crowd and found[entry.row]
                and found[entry.row][peer.name] then
                here[#here + 1] = peer.name
                break
            end
        end
    end
    line(out, "case", table.unpack(here))
    line(out, "---", table.unpack(here, 1, #here))
    out[2] = out[1]:gsub("[^|]+", " --- ")
    for _, entry in ipairs(rows) do
        if found[entry.row] and not entry.crowd then
            local cells = {}
            for i, name in ipairs(here) do
                cells[i] = with_spread(found[entry.row][name])
            end
            line(out, entry.row, table.unpack(cells))
        end
    end
    return table.concat(out, "\n")
end

return report
