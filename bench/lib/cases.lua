-- cases: what is measured, with how much work, and what is to be reached.
--
-- A row is {row, title, case, args, ...}:
--   short   the title in the overview
--   unit    of "1/s", "GiB/s" and "x" more is better, of all others less
--   what    measured from outside: "memory", "idle" (CPU seconds), "share"
--   mode    "free" (wherever the scheduler likes), "packed" (all on one CPU),
--           "hog" (free, beside a process that computes all the time)
--   reach   the figure to reach, and `against`: the peer (or "the best" other
--           process pool) and the factor over it that this figure meant on the
--           machine it was set for, where a Lua loop adds 1 to 35 million
--           integers in a second; a slower machine is slower for all
--   peers   who takes part, if not everybody who can
--   beside  the yardstick that is measured with them
--   quick   args in a quick run; false: left out of it
--   scaled  n is smaller for slow peers
--   rounds  how often, if not as often as the rest

local cases = {}

local rows = {}

local function row(entry)
    entry.mode = entry.mode or "free"
    rows[#rows + 1] = entry
end

row { row = "A", short = "apply(noop)", title = "apply(noop), one after the other", case = "apply",
    unit = "us", args = { n = 20000 }, quick = { n = 5000 }, scaled = true,
    beside = "bare C", reach = 2, against = { "luaposix-pipes", 35 } }
row { row = "A packed", short = "on one CPU", title = "the same on one CPU",
    case = "apply", unit = "us", args = { n = 20000 }, quick = { n = 5000 }, scaled = true,
    mode = "packed", beside = "bare C", reach = 4, against = { "luaposix-pipes", 1.8 } }
row { row = "B", short = "apply_async(x + 1)", title = "apply_async(x + 1), all results taken",
    case = "async", unit = "1/s", args = { n = 200000 }, scaled = true,
    quick = { n = 50000 }, beside = "one Lua loop",
    reach = 1.5e6, against = { "one Lua loop", 0.043 } }
row { row = "B imap", title = "imap(x + 1), in order", case = "imap",
    unit = "1/s", args = { n = 200000 }, quick = { n = 50000 }, scaled = true,
    peers = { "procpool", "multiprocessing" } }
row { row = "C", short = "map(x + 1)", title = "map(x + 1) over integers, default chunks",
    case = "map", unit = "1/s", args = { n = 1000000 },
    beside = "one Lua loop",
    quick = { n = 300000 }, reach = 20e6, against = { "one Lua loop", 0.57 } }
row { row = "D 1 MiB", title = "echo of strings", case = "echo",
    unit = "GiB/s", args = { size = 1 << 20, n = 30 },
    quick = { size = 1 << 20, n = 10 }, reach = 8,
    against = { "the best", 5.3 } }
row { row = "D 16 MiB", title = "echo of strings", case = "echo",
    unit = "GiB/s", args = { size = 16 << 20, n = 4 },
    quick = { size = 16 << 20, n = 1 }, reach = 5,
    against = { "the best", 4.5 } }
row { row = "D 256 MiB", title = "echo of strings", case = "echo",
    unit = "GiB/s", args = { size = 256 << 20, n = 1 }, quick = false,
    reach = 2, against = { "the best", 5 } }
row { row = "D records", short = "echo of small records", title = "echo of 100,000 small records",
    case = "records", unit = "ms", args = { n = 100000 },
    quick = { n = 100000 }, reach = 60, against = { "the best", 1.8 } }
row { row = "E 2", short = "life of a pool, 2 workers", title = "new, a task each, close, join; 2 workers",
    case = "start", unit = "ms", args = { workers = 2, n = 20 },
    scaled = true, quick = { workers = 2, n = 10 },
    reach = 0.8, against = { "the best", 0.675 } }
row { row = "E 64", short = "life of a pool, 64 workers", title = "the same, 64 workers", case = "start",
    unit = "ms", args = { workers = 64, n = 5 }, scaled = true,
    quick = { workers = 64, n = 2 },
    reach = 10, against = { "the best", 1.6 } }
row { row = "F 1", title = "maxtasksperchild = 1", case = "recycle",
    unit = "1/s", args = { limit = 1, n = 2000 }, scaled = true,
    quick = { limit = 1, n = 300 }, beside = "bare C", reach = 8000, against = { "bare C", 0.8 } }
row { row = "F 1 heap", short = "the same, large parent",
    title = "the same, 1 GiB (quick: 256 MiB) allocated after new",
    case = "recycle", unit = "1/s",
    args = { limit = 1, n = 2000, heap = 1024 }, scaled = 0.2,
    quick = { limit = 1, n = 300, heap = 256 }, beside = "bare C", reach = 8000,
    against = { "bare C", 0.8, row = "F 1" } }
row { row = "F 10", title = "maxtasksperchild = 10", case = "recycle",
    unit = "1/s", args = { limit = 10, n = 10000 }, scaled = true,
    quick = { limit = 10, n = 2000 },
    reach = 60000, against = { "multiprocessing", 11.5 } }
row { row = "F 100", title = "maxtasksperchild = 100", case = "recycle",
    unit = "1/s", args = { limit = 100, n = 50000 }, scaled = true,
    quick = { limit = 100, n = 10000 },
    reach = 300000, against = { "multiprocessing", 9.4 } }
row { row = "G", short = "CPU-bound tasks", title = "64 tasks of 50 ms, speed-up over one process",
    case = "cpu", unit = "x", args = { n = 64, us = 50000 }, beside = "apart",
    quick = { n = 16, us = 20000 } }
row { row = "G beside",
    title = "the same, over two independent processes in turn",
    case = "beside", unit = "x", args = { n = 64, us = 50000, times = 3 },
    quick = { n = 16, us = 20000, times = 3 },
    peers = { "procpool" }, reach = 0.99 }
row { row = "H", short = "memory of 64 idle workers", title = "proportional memory of 64 idle workers",
    case = "hold", what = "memory", unit = "MiB", args = { workers = 64 },
    quick = { workers = 64 }, reach = 10,
    against = { "the best", 0.93 } }
row { row = "I", short = "kill -9 until the error", title = "kill -9 of a busy worker, until the error",
    case = "kill", unit = "ms", args = { n = 20 }, quick = { n = 5 },
    scaled = true, reach = 2, against = { "workerpool", 1.7 } }
row { row = "J", title = "CPU seconds of 64 idle workers in 10 s",
    case = "hold", what = "idle", unit = "s",
    args = { workers = 64, seconds = 10 },
    quick = { workers = 64, seconds = 2 }, rounds = 1, reach = 0 }
for _, full in ipairs { 0, 1 } do
    row { row = full == 1 and "S full" or "S",
        short = full == 1 and "and full collections"
            or "memory added to share a table",
        title = full == 1 and "the same, and ask for full collections"
            or "memory added by 4 workers that read all of a shared table "
            .. "and make garbage, of the table's",
        case = "shared", what = "share", unit = "%",
        args = { workers = 4, mib = 1024, full = full },
        quick = { workers = 4, mib = 128, full = full },
        peers = { "procpool", "luaposix-pipes", "multiprocessing" },
        rounds = 1, reach = 10 }
end

-- No case may be slower than the plain pool of pipes: on one CPU, with more
-- workers than CPUs, beside somebody who computes.
local crowd = {
    { "apply", "us", { n = 5000 } },
    { "async", "1/s", { n = 50000 } },
    { "map", "1/s", { n = 300000 } },
    { "echo", "GiB/s", { size = 1 << 20, n = 10 } },
    { "records", "ms", { n = 20000 } },
    { "start", "ms", { n = 10 } },
    { "recycle", "1/s", { limit = 1, n = 500 } },
}
for _, how in ipairs { { "packed", 2 }, { "free", 8 }, { "hog", 2 } } do
    local mode, workers = table.unpack(how)
    for _, one in ipairs(crowd) do
        local args = { workers = workers }
        for key, value in pairs(one[3]) do
            args[key] = value
        end
        local name = mode == "free" and workers .. " workers" or mode
        row { row = ("%s, %s"):format(one[1], name), crowd = true,
            title = one[1] .. ", " .. name, case = one[1], unit = one[2],
            args = args, mode = mode, quick = false,
            peers = { "procpool", "luaposix-pipes" },
            against = { "luaposix-pipes", 1 } }
    end
end

cases.rows = rows

-- What the plots are drawn from: one row for each point.
local sweeps = {}

local function sweep(name, key, values, make)
    for _, value in ipairs(values) do
        local entry = make(value)
        entry.row, entry.sweep, entry.at = name .. " " .. value, name, value
        entry.mode, entry.title, entry.quick = "free", name, false
        entry.args[key] = value
        sweeps[#sweeps + 1] = entry
    end
end

sweep("task size", "us", { 1, 3, 10, 30, 100, 300, 1000, 3000, 10000 },
    function(us)
        return { case = "async", unit = "1/s", scaled = us < 100,
            args = { n = math.max(40, math.min(40000, 400000 // us)) } }
    end)
sweep("workers", "workers", { 1, 2, 4, 8, 16 }, function()
    return { case = "async", unit = "1/s", scaled = true,
        args = { n = 50000 } }
end)
sweep("payload", "size",
    { 16, 256, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20 },
    function(size)
        return { case = "echo", unit = "GiB/s", scaled = size < 4096,
            args = { n = math.max(1, math.min(2000, (32 << 20) // size)) } }
    end)
sweep("parent heap", "heap", { 0, 64, 256, 1024 }, function()
    return { case = "recycle", unit = "1/s", scaled = true, beside = "bare C",
        args = { limit = 1, n = 500 } }
end)

cases.sweeps = sweeps

--- Is less better in this unit?
function cases.less(unit)
    return not (unit == "1/s" or unit == "GiB/s" or unit == "x")
end

return cases
