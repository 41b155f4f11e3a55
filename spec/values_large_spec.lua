-- Large values through real workers: time and memory stay linear.

-- limit: 400 s
-- runs alone

local describe, it, assert, pending = describe, it, assert, pending
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local procpool = require("procpool")
local core = require("procpool.core")

local function identity(...) return ... end

--- MiB that can be had without swapping.
local function available()
    for line in io.lines("/proc/meminfo") do
        local kib = line:match("^MemAvailable:%s+(%d+)")
        if kib then return tonumber(kib) // 1024 end
    end
    return 0
end

describe("large values", function()
    it("a string of 64 MiB", function()
        local pool <close> = procpool.new(1)
        local s = ("0123456789abcdef"):rep(4 << 20)
        assert.is_true(s == pool:apply(identity, { s }))
    end)

    if available() < 12000 then
        pending("a string of 1 GiB each way: needs 12 GB of memory")
    else
        it("a string of 1 GiB each way", function()
            local pool <close> = procpool.new(1)
            local s = ("0123456789abcdef"):rep(64 << 20)
            assert.equal(1 << 30, pool:apply(function(t) return #t end, { s }))
            s = nil -- luacheck: ignore
            collectgarbage()
            local r = pool:apply(function() return ("fedcba9876543210"):rep(64 << 20) end)
            assert.equal(1 << 30, #r)
            assert.equal("fedcba9876543210", r:sub(-16))
            r = nil -- luacheck: ignore
            collectgarbage()
            assert.equal(5, pool:apply(identity, { 5 }))
        end)
    end

    it("a million unique strings", function()
        local pool <close> = procpool.new(1)
        local list = {}
        for i = 1, 1000000 do list[i] = "string number " .. i end
        local got = pool:apply(identity, { list })
        for i = 1, #list do
            if got[i] ~= list[i] then error(i) end
        end
        assert.equal(1000000, #got)
    end)

    it("300,000 unique keys", function()
        local pool <close> = procpool.new(1)
        local set = {}
        for i = 1, 300000 do set["key " .. i] = i end
        local got, n = pool:apply(identity, { set }), 0
        for k, v in pairs(got) do
            n = n + 1
            if set[k] ~= v then error(k) end
        end
        assert.equal(300000, n)
    end)

    it("ten million integers", function()
        local pool <close> = procpool.new(1)
        local list = core.list and core.list(10000000) or {}
        for i = 1, 10000000 do list[i] = i * 7 end
        local got = pool:apply(identity, { list })
        assert.equal(10000000, #got)
        for i = 1, #list, 1000 do
            if got[i] ~= i * 7 then error(i) end
        end
    end)

    it("a million tables deep", function()
        local pool <close> = procpool.new(1)
        local top = {}
        local t = top
        for _ = 1, 1000000 do
            t[1] = {}
            t = t[1]
        end
        t[1] = "bottom"
        t = pool:apply(identity, { top })
        local depth = 0
        while type(t) == "table" do t, depth = t[1], depth + 1 end
        assert.equal("bottom", t)
        assert.equal(1000001, depth)
    end)
end)

describe("what is large", function()
    -- KiB present of mappings for which huge pages were asked.
    local function advised()
        local sum, present = 0, 0
        for line in io.lines("/proc/self/smaps") do
            present = tonumber(line:match("^Rss:%s+(%d+)")) or present
            if line:find("^VmFlags:.* hg") then sum = sum + present end
        end
        return sum
    end

    it("comes in huge pages, if the system has any: strings, lists of results", function()
        if not io.open("/sys/kernel/mm/transparent_hugepage/enabled") then
            pending("a kernel without huge pages")
            return
        end
        collectgarbage()
        local message = core.encode("args", ("x"):rep(32 << 20))
        local before = advised()
        local _, s = core.decode(message)
        assert.equal(32 << 20, #s)
        local after = advised()
        assert.is_true(after - before >= 30 * 1024, after - before)
        local list = core.list(1 << 21)
        for i = 1, 1 << 21 do list[i] = i end
        assert.is_true(advised() - after >= 30 * 1024, advised() - after)
    end)
end)

describe("time", function()
    -- Ten times as much may take a little more than ten times as long.
    local function seconds(list)
        local best = math.huge
        for _ = 1, 3 do
            collectgarbage()
            local begun = os.clock()
            core.decode(core.encode("args", list))
            best = math.min(best, os.clock() - begun)
        end
        return best
    end

    local function grows_linearly(make)
        local small, large = seconds(make(20000)), seconds(make(200000))
        assert.is_true(large < 40 * small + 0.1, ("%g and %g s"):format(small, large))
    end

    it("is linear for tables, strings and keys", function()
        grows_linearly(function(n)
            local list = {}
            for i = 1, n do list[i] = { i } end
            return list
        end)
        grows_linearly(function(n)
            local set = {}
            for i = 1, n do set["k" .. i] = "v" .. i end
            return set
        end)
        grows_linearly(function(n)
            local shared, list = {}, {}
            for i = 1, n do
                shared[i] = {}
                list[i] = { shared[(i * 7919) % i + 1], shared[i] }
            end
            return list
        end)
    end)

    it("is linear for strings that collide in the slots, and integer keys in odd order", function()
        grows_linearly(function(n)
            local list = {}
            for i = 1, n do list[i] = { [("%d"):format(i % 1000)] = ("%d"):format(i % 700) } end
            return list
        end)
        grows_linearly(function(n)
            local t = {}
            for i = n, 1, -1 do t[i * 4096] = i end
            return t
        end)
    end)
end)
