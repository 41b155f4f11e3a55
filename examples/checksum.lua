-- checksum: the SHA-256 of every file below a directory, in parallel, with a
-- time limit for each file.
--
--     lua5.4 examples/checksum.lua [-j WORKERS] [-t SECONDS] [-q] DIR >sums
--     sha256sum -c sums
--
-- The sums go to stdout in the format of sha256sum, in the order of the names;
-- a bar on stderr shows how far it is. A file that cannot be read, or takes
-- longer than the limit (a hanging network mount, a disk that is dying), is
-- reported at the end and costs nothing but itself: its neighbours are summed
-- all the same. The exit status is 1 if there was such a file.

local dirent = require("posix.dirent")
local stat = require("posix.sys.stat")
local procpool = require("procpool")

local BLOCK = 64 * 1024

local USAGE = [[
usage: checksum.lua [-j WORKERS] [-t SECONDS] [-q] DIR
  -j   worker processes (default: the CPUs this process may use)
  -t   time limit of one file in seconds (default: 60)
  -q   no progress bar
]]

-- SHA-256 in plain Lua -------------------------------------------------------

--- The first 32 bits of the fraction of x.
local function fraction(x)
    return math.floor((x - math.floor(x)) * 2 ^ 32)
end

-- K: from the cube roots of the first 64 primes; H: from the square roots of
-- the first 8. (A double has bits enough for that.)
local K, H = {}, {}
for n = 2, 311 do
    local prime = true
    for d = 2, math.floor(n ^ 0.5) do
        prime = prime and n % d ~= 0
    end
    if prime then
        K[#K + 1] = fraction(n ^ (1 / 3))
        H[#H + 1] = #H < 8 and fraction(n ^ 0.5) or nil
    end
end

local WORDS = ">" .. ("I4"):rep(16)

--- Works the 64 bytes of `data` at `at` into the state h.
local function compress(h, w, data, at)
    w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12],
        w[13], w[14], w[15], w[16] = WORDS:unpack(data, at)
    for i = 17, 64 do
        -- A word twice over in 64 bits: shifting right rotates it.
        local x, y = w[i - 15], w[i - 2]
        local xx, yy = x << 32 | x, y << 32 | y
        w[i] = (w[i - 16] + w[i - 7] + (xx >> 7 ~ xx >> 18 ~ x >> 3)
            + (yy >> 17 ~ yy >> 19 ~ y >> 10)) & 0xffffffff
    end
    local a, b, c, d, e, f, g, i = table.unpack(h)
    for k = 1, 64 do
        local ee, aa = e << 32 | e, a << 32 | a
        local t = i + (ee >> 6 ~ ee >> 11 ~ ee >> 25 & 0xffffffff)
            + (e & f ~ ~e & g) + K[k] + w[k]
        local u = (aa >> 2 ~ aa >> 13 ~ aa >> 22 & 0xffffffff)
            + (a & b ~ a & c ~ b & c)
        i, g, f, e, d, c, b, a = g, f, e, d + t & 0xffffffff, c, b, a,
            t + u & 0xffffffff
    end
    h[1], h[2] = h[1] + a & 0xffffffff, h[2] + b & 0xffffffff
    h[3], h[4] = h[3] + c & 0xffffffff, h[4] + d & 0xffffffff
    h[5], h[6] = h[5] + e & 0xffffffff, h[6] + f & 0xffffffff
    h[7], h[8] = h[7] + g & 0xffffffff, h[8] + i & 0xffffffff
end

--- The task: the SHA-256 of a file, in hexadecimal. Raises what is wrong.
local function sum_of(path)
    local file <close>, text = io.open(path, "rb")
    if not file then
        error(text, 0)
    end
    local h, w, size = table.move(H, 1, 8, 1, {}), {}, 0
    while true do
        local block, problem = file:read(BLOCK)
        if problem then
            error(path .. ": " .. problem, 0)
        end
        local last = #(block or "") < BLOCK
        block = block or ""
        size = size + #block
        if last then
            block = block .. "\x80" .. ("\0"):rep((55 - #block) % 64)
                .. (">I8"):pack(size * 8)
        end
        for at = 1, #block, 64 do
            compress(h, w, block, at)
        end
        if last then
            return ("%08x"):rep(8):format(table.unpack(h))
        end
    end
end

-- The program ----------------------------------------------------------------

--- Appends the regular files below `dir` to `files`, in order of their names;
--- symbolic links are not followed. Unreadable directories go to `trouble`.
local function walk(dir, files, trouble)
    local good, names = pcall(dirent.dir, dir)
    if not good then
        trouble[#trouble + 1] = tostring(names):match("%((.+)%)$") or dir
        return
    end
    table.sort(names)
    for _, name in ipairs(names) do
        local path = dir .. "/" .. name
        local info = name ~= "." and name ~= ".." and stat.lstat(path)
        if info and stat.S_ISDIR(info.st_mode) ~= 0 then
            walk(path, files, trouble)
        elseif info and stat.S_ISREG(info.st_mode) ~= 0 then
            files[#files + 1] = path
        end
    end
end

local function fail(text)
    io.stderr:write("checksum: ", text, "\n")
    os.exit(2, true)
end

local function parse(args)
    local options = { workers = procpool.cpus(), limit = 60, progress = true }
    local names = { ["-j"] = "workers", ["-t"] = "limit" }
    local i = 1
    while args[i] do
        local name = names[args[i]]
        if name then
            i = i + 1
            options[name] = tonumber(args[i])
            if not options[name] or options[name] <= 0 then
                fail(args[i - 1] .. " needs a number greater than 0")
            end
        elseif args[i] == "-q" then
            options.progress = nil
        elseif args[i]:sub(1, 1) == "-" or options.dir then
            io.stderr:write(USAGE)
            os.exit(2, true)
        else
            options.dir = args[i]
        end
        i = i + 1
    end
    if not options.dir then
        io.stderr:write(USAGE)
        os.exit(2, true)
    end
    return options
end

--- What to tell about a file whose sum could not be had.
local function reason(path, err)
    if err.kind == "timelimit" then
        return path .. ": took too long"
    end
    return err.message
end

local function main(args)
    local options = parse(args)
    local files, trouble = {}, {}
    walk(options.dir, files, trouble)
    local sums
    do
        local pool <close> = procpool.new(options.workers, { name = "checksum" })
        -- "collect": every file gets its turn, a failed one's place holds its
        -- error object.
        sums = pool:map(sum_of, files, {
            timeout = options.limit, errors = "collect",
            progress = options.progress,
        })
    end
    for i, path in ipairs(files) do
        if procpool.iserror(sums[i]) then
            trouble[#trouble + 1] = reason(path, sums[i])
        else
            print(sums[i] .. "  " .. path)
        end
    end
    for _, text in ipairs(trouble) do
        io.stderr:write("checksum: ", text, "\n")
    end
    os.exit(#trouble == 0 and 0 or 1, true)
end

main(arg)
