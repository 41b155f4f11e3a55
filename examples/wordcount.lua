-- wordcount: counts the words of every file below a directory, in parallel,
-- and checks the result against the same count done serially.
--
--     lua5.4 examples/wordcount.lua [-j WORKERS] [-n TOP] [-m TASKS] [DIR]
--
-- Small files are sent in batches of about four megabytes: a batch's result is
-- one table of counts, merged by the parent while the workers go on, and the
-- larger the batches are, the fewer words there are to be merged twice. Workers
-- are replaced after TASKS batches each.

local dirent = require("posix.dirent")
local stat = require("posix.sys.stat")
local time = require("posix.time")
local procpool = require("procpool")

local BATCH = 4 * 1024 * 1024 -- bytes of files in one task
local BLOCK = 1024 * 1024     -- bytes read at once
local DEFAULTS = { "/usr/include", "/usr/share/doc" }
local ENOUGH = 1000           -- files that make a directory worth the while

local USAGE = [[
usage: wordcount.lua [-j WORKERS] [-n TOP] [-m TASKS] [DIR]
  -j   worker processes (default: the CPUs this process may use)
  -n   how many of the most frequent words to print (default: 10)
  -m   batches after which a worker is replaced (default: 5)
  DIR  where to count (default: /usr/include or /usr/share/doc)
]]

local function now()
    local t = time.clock_gettime(time.CLOCK_MONOTONIC)
    return t.tv_sec + t.tv_nsec / 1e9
end

--- Calls visit(path, size) for every regular file below `dir`; symbolic links
--- are not followed, so nothing is met twice. Names are taken in order, which
--- makes runs comparable. What cannot be read goes to trouble(text).
local function walk(dir, visit, trouble)
    local good, names = pcall(dirent.dir, dir)
    if not good then
        return trouble(tostring(names):match("%((.+)%)$") or dir)
    end
    table.sort(names)
    for _, name in ipairs(names) do
        if name ~= "." and name ~= ".." then
            local path = dir .. "/" .. name
            local info, text = stat.lstat(path)
            if not info then
                trouble(text)
            elseif stat.S_ISDIR(info.st_mode) ~= 0 then
                walk(path, visit, trouble)
            elseif stat.S_ISREG(info.st_mode) ~= 0 then
                visit(path, info.st_size)
            end
        end
    end
end

--- Adds the words of a file to `counts`: runs of letters, in lower case; bytes
--- above 127 count as letters, so that UTF-8 words stay whole. Returns the
--- bytes read, or nil and why not.
local function count_file(path, counts)
    local file <close>, text = io.open(path, "rb")
    if not file then
        return nil, text
    end
    local bytes = 0
    while true do
        -- A block and the rest of its last line: no word is cut in two.
        local block, rest = file:read(BLOCK, "L")
        if not block then
            if rest then        -- nil, message: the file cannot be read
                return nil, path .. ": " .. rest
            end
            return bytes
        end
        block = block .. (rest or "")
        bytes = bytes + #block
        for word in block:lower():gmatch("[%a\128-\255]+") do
            counts[word] = (counts[word] or 0) + 1
        end
    end
end

--- The task: counts a batch of files.
local function count_batch(paths)
    local counts, bytes, unread = {}, 0, {}
    for _, path in ipairs(paths) do
        local size, text = count_file(path, counts)
        if size then
            bytes = bytes + size
        else
            unread[#unread + 1] = text
        end
    end
    return { counts = counts, bytes = bytes, unread = unread }
end

local function new_total()
    return { counts = {}, bytes = 0, unread = {} }
end

local function merge(total, part)
    local counts = total.counts
    for word, n in pairs(part.counts) do
        counts[word] = (counts[word] or 0) + n
    end
    total.bytes = total.bytes + part.bytes
    table.move(part.unread, 1, #part.unread, #total.unread + 1, total.unread)
end

--- Groups files into batches of about BATCH bytes.
local function in_batches(files)
    local batches, batch, room = {}, {}, BATCH
    for _, file in ipairs(files) do
        batch[#batch + 1] = file.path
        room = room - file.size
        if room <= 0 then
            batches[#batches + 1] = batch
            batch, room = {}, BATCH
        end
    end
    if #batch > 0 then
        batches[#batches + 1] = batch
    end
    return batches
end

local function count_in_parallel(batches, options)
    local total = new_total()
    local pool <close> = procpool.new(options.workers, {
        maxtasksperchild = options.tasks,
        name = "wordcount",
    })
    local begun = now()
    for _, part in pool:imap_unordered(count_batch, batches) do
        merge(total, part)
    end
    return total, now() - begun, pool:stats().recycled.tasks
end

--- The plain way, straight into one table: it spares itself all merging.
local function count_serially(batches)
    local begun = now()
    local total = new_total()
    for _, paths in ipairs(batches) do
        for _, path in ipairs(paths) do
            local size, text = count_file(path, total.counts)
            total.bytes = total.bytes + (size or 0)
            total.unread[#total.unread + 1] = text
        end
    end
    return total, now() - begun
end

--- Whether two tables of counts are equal; if not, where they differ.
local function compare(one, other)
    for word, n in pairs(one) do
        if other[word] ~= n then
            return false, word
        end
    end
    for word in pairs(other) do
        if one[word] == nil then
            return false, word
        end
    end
    return true
end

local function top_words(counts, n)
    local words = {}
    for word in pairs(counts) do
        words[#words + 1] = word
    end
    table.sort(words, function(a, b)
        if counts[a] ~= counts[b] then
            return counts[a] > counts[b]
        end
        return a < b
    end)
    return table.move(words, 1, math.min(n, #words), 1, {}), #words
end

local function fail(text)
    io.stderr:write("wordcount: ", text, "\n")
    os.exit(2, true)
end

local function parse(args)
    local options = { workers = procpool.cpus(), top = 10, tasks = 5 }
    local names = { ["-j"] = "workers", ["-n"] = "top", ["-m"] = "tasks" }
    local i = 1
    while args[i] do
        local name = names[args[i]]
        if name then
            i = i + 1
            options[name] = math.tointeger(tonumber(args[i]))
            if not options[name] or options[name] < 1 then
                fail(args[i - 1] .. " needs a whole number, 1 or more")
            end
        elseif args[i] == "-h" or args[i] == "--help" then
            io.write(USAGE)
            os.exit(0, true)
        elseif args[i]:sub(1, 1) == "-" or options.dir then
            io.stderr:write(USAGE)
            os.exit(2, true)
        else
            options.dir = args[i]
        end
        i = i + 1
    end
    return options
end

--- Lists the files below `dir`; unreadable directories go to `trouble`.
local function list(dir, trouble)
    local files = {}
    walk(dir, function(path, size)
        files[#files + 1] = { path = path, size = size }
    end, function(text)
        trouble[#trouble + 1] = text
    end)
    return files
end

--- The directory to count and its files: the one given, or the first of the
--- defaults that holds enough, or the one that holds most.
local function choose(dir)
    if dir then
        local info, text = stat.stat(dir)
        if not info then
            fail(text)
        elseif stat.S_ISDIR(info.st_mode) == 0 then
            fail(dir .. ": not a directory")
        end
        local trouble = {}
        return dir, list(dir, trouble), trouble
    end
    local best = { files = {} }
    for _, name in ipairs(DEFAULTS) do
        local trouble = {}
        local files = list(name, trouble)
        if #files > #best.files then
            best = { dir = name, files = files, trouble = trouble }
        end
        if #files >= ENOUGH then
            break
        end
    end
    if not best.dir then
        fail("no files in " .. table.concat(DEFAULTS, ", ") .. ": name one")
    end
    return best.dir, best.files, best.trouble
end

--- Reads every file once, so that both counts find them in the page cache.
local function warm(files)
    for _, file in ipairs(files) do
        local handle <close> = io.open(file.path, "rb")
        while handle and handle:read(BLOCK) do end
    end
end

local function print_rates(label, total, files, seconds)
    print(("%-10s %7.2f s  %8.0f files/s  %7.1f MB/s"):format(label, seconds,
        files / seconds, total.bytes / seconds / 1e6))
end

local function main(args)
    local options = parse(args)
    local dir, files, trouble = choose(options.dir)
    local batches = in_batches(files)
    warm(files)

    local total, seconds, replaced = count_in_parallel(batches, options)
    local check, serially = count_serially(batches)

    local top, different = top_words(total.counts, options.top)
    local sum = 0
    for _, n in pairs(total.counts) do
        sum = sum + n
    end
    print(("%s: %d files, %.1f MB, %d words, %d different"):format(dir, #files,
        total.bytes / 1e6, sum, different))
    for _, word in ipairs(top) do
        print(("%10d  %s"):format(total.counts[word], word))
    end
    table.move(total.unread, 1, #total.unread, #trouble + 1, trouble)
    for _, text in ipairs(trouble) do
        print("not read: " .. text)
    end
    print_rates("parallel", total, #files, seconds)
    print_rates("serial", check, #files, serially)
    print(("speed-up %.2f with %d workers; %d batches, %d workers replaced")
        :format(serially / seconds, options.workers, #batches, replaced))

    local same, word = compare(total.counts, check.counts)
    if not same or total.bytes ~= check.bytes then
        print(("WRONG: the serial count differs (%s: %s, serially %s)"):format(
            word or "bytes", word and total.counts[word] or total.bytes,
            word and check.counts[word] or check.bytes))
        os.exit(1, true)
    end
    print("both counts are the same")
end

main(arg)
