-- plots: draws the sweeps and an overview from measured lines, by gnuplot.
--
-- A peer has the same colour in every plot; procpool is drawn thicker and on
-- top. Points are medians, bars on them reach from the least to the most.

local peers = require("bench.lib.peers")
local cases = require("bench.lib.cases")
local report = require("bench.lib.report")

local plots = {}

local COLOURS = {
    procpool = "#d62728", ["luaposix-pipes"] = "#1f77b4",
    multiprocessing = "#2ca02c", ["concurrent.futures"] = "#98df8a",
    MCE = "#9467bd", workerpool = "#e377c2", luv = "#ff7f0e",
    piscina = "#bcbd22", ["bare C"] = "#7f7f7f",
}
local MARKS = { procpool = 7, ["luaposix-pipes"] = 5, multiprocessing = 9,
    ["concurrent.futures"] = 8, MCE = 11, workerpool = 13, luv = 4,
    piscina = 12, ["bare C"] = 2 }

local HEAD = [[
set terminal svg size 760,470 font "sans-serif,13" background "white"
set output "%s"
set title "%s" font ",15"
set xlabel "%s"
set ylabel "%s"
set grid xtics ytics lc rgb "#dddddd" lw 1
set border 3 lc rgb "#666666"
set tics nomirror
set errorbars 0.5
set key outside right center reverse Left samplen 2 spacing 1.2
%s
]]

local SWEEPS = {
    { sweep = "task size", file = "task-size",
        title = "Tasks per second by size of the task, 2 workers",
        x = "computing time of one task", y = "tasks per second",
        more = 'set logscale xy\nset format y "10^{%T}"\n'
            .. 'set xtics ("1 us" 1, "10 us" 10, "100 us" 100, "1 ms" 1000, '
            .. '"10 ms" 10000)',
        ideal = { "2 workers, no overhead", "2e6/x" } },
    { sweep = "workers", file = "workers",
        title = "apply\\\\_async(x + 1) by number of workers, 2 CPUs",
        x = "workers", y = "tasks per second",
        more = 'set logscale xy\nset format y "10^{%T}"\n'
            .. "set xrange [0.9:17]\nset xtics (1, 2, 4, 8, 16)" },
    { sweep = "payload", file = "payload",
        title = "Echo of a string by its size, bytes sent and received",
        x = "size of the string", y = "GiB per second",
        more = "set logscale xy\nset format y \"%g\"\nset xtics (\"16 B\" 16, "
            .. '"256 B" 256, "4 KiB" 4096, "64 KiB" 65536, '
            .. '"1 MiB" 1048576, "16 MiB" 16777216, "256 MiB" 268435456)' },
    { sweep = "parent heap", file = "recycling",
        title = "maxtasksperchild = 1: tasks per second by the parent's heap",
        x = "MiB that the parent allocated", y = "tasks (and lives) per second",
        more = 'set logscale y\nset format y "%g"\n'
            .. "set xtics (0, 64, 256, 512, 1024)" },
}

local function gnuplot(script)
    local pipe = assert(io.popen("gnuplot", "w"))
    pipe:write(script)
    return pipe:close()
end

--- peer -> list of {x, median, least, most}, by x.
local function series(found, sweep)
    local by_peer = {}
    for _, row in pairs(found) do
        for name, one in pairs(row) do
            if one.sweep == sweep and one.median < math.huge then
                by_peer[name] = by_peer[name] or {}
                table.insert(by_peer[name],
                    { one.at, one.median, one.least, one.most })
            end
        end
    end
    for _, list in pairs(by_peer) do
        table.sort(list, function(a, b) return a[1] < b[1] end)
    end
    return by_peer
end

local function data(name, list)
    local lines = { ("$%s << EOD"):format(name) }
    for _, point in ipairs(list) do
        lines[#lines + 1] = ("%.9g %.9g %.9g %.9g"):format(
            table.unpack(point))
    end
    lines[#lines + 1] = "EOD\n"
    return table.concat(lines, "\n")
end

--- procpool last, so that it lies on top.
local function in_order(by_peer)
    local names = {}
    for i = #peers.list, 1, -1 do
        if by_peer[peers.list[i].name] then
            names[#names + 1] = peers.list[i].name
        end
    end
    return names
end

local function draw_sweep(about, found, directory)
    local by_peer = series(found, about.sweep)
    local names = in_order(by_peer)
    if not names[1] then
        return false
    end
    local path = ("%s/%s.svg"):format(directory, about.file)
    local parts = { HEAD:format(path, about.title, about.x, about.y,
        about.more) }
    local curves = {}
    if about.ideal then
        curves[1] = ('%s title "%s" with lines lc rgb "#999999" dt 2 lw 1.5')
            :format(about.ideal[2], about.ideal[1])
    end
    for i, name in ipairs(names) do
        parts[#parts + 1] = data("peer" .. i, by_peer[name])
        local style = ('lc rgb "%s" lw %s'):format(COLOURS[name] or "black",
            name == "procpool" and "3.5" or "1.8")
        curves[#curves + 1] = ('$peer%d using 1:2:3:4 title "%s" with '
            .. "yerrorlines %s pt %d ps %s"):format(i, name, style,
            MARKS[name] or 1, name == "procpool" and "0.9" or "0.7")
    end
    return gnuplot(table.concat(parts, "\n") .. "\nplot "
        .. table.concat(curves, ", \\\n") .. "\n")
end

-- The overview: how many times the best other process pool procpool reaches.
local function draw_overview(found, directory)
    local lines = { "$bars << EOD" }
    for i = #cases.rows, 1, -1 do
        local entry = cases.rows[i]
        local times, name = report.advantage(found, entry)
        if times and not entry.crowd and times < math.huge then
            lines[#lines + 1] = ('"%s: %s" %.4g "%.3g times %s"'):format(entry.row,
                entry.short or entry.title, times, times, name)
        end
    end
    if #lines == 1 then
        return false
    end
    local path = directory .. "/overview.svg"
    return gnuplot(([[
set terminal svg size 860,%d font "sans-serif,13" background "white"
set output "%s"
%s
EOD
set title "procpool against the best other process pool of each case" font ",15"
set logscale x
set xrange [0.1:*]
set yrange [-0.7:%d-0.3]
set xlabel "times as fast, or as small (logarithmic)"
set grid xtics lc rgb "#dddddd"
set border 3 lc rgb "#666666"
set tics nomirror
set ytics scale 0 noenhanced
unset key
set style fill solid 0.9 noborder
set arrow from 1, graph 0 to 1, graph 1 nohead lc rgb "#333333" lw 1.5 front
set lmargin 34
set rmargin 26
plot $bars using (1):0:(1):2:($0-0.35):($0+0.35):ytic(1) \
       with boxxyerror lc rgb "#d62728", \
     $bars using (($2 > 1 ? $2 : 1) * 1.08):0:3 with labels left \
       font ",11" noenhanced notitle
]]):format(90 + 26 * (#lines - 1), path, table.concat(lines, "\n"), #lines - 1))
end

--- Draws whatever the lines allow into the directory.
function plots.draw(lines, directory)
    os.execute(("mkdir -p '%s'"):format(directory))
    local found = report.collect(lines)
    local drawn = {}
    for _, about in ipairs(SWEEPS) do
        if draw_sweep(about, found, directory) then
            drawn[#drawn + 1] = about.file
        end
    end
    if draw_overview(found, directory) then
        drawn[#drawn + 1] = "overview"
    end
    return drawn
end

return plots
