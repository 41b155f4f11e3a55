local describe, it, assert, pending = describe, it, assert, pending
local _ENV = _G -- luacheck: ignore 211

local fault = require("spec.support.fault")
local procpool = require("procpool")
local script = require("spec.support.script")

-- Bytes of this process's memory that no other process has.
local function private_memory()
    local sum = 0
    for line in io.lines("/proc/self/smaps_rollup") do
        sum = sum + (tonumber(line:match("^Private_Dirty:%s+(%d+) kB")) or 0)
    end
    return sum * 1024
end

describe("the collector of a worker", function()
    it("leaves a heap of some size, and what is `shared`, alone; of a small one it takes no care", function()
        local result = script.run(function(pp)
            -- The mode it had, twice: a task changes it for itself alone.
            local function mode() return collectgarbage("incremental"), collectgarbage("generational") end
            local function show(options)
                local pool <close> = pp.new(1, options)
                print((pool:apply(mode)), (pool:apply(mode)))
            end
            show()
            show({ shared = {} })
            local kept = {}
            for i = 1, 2048 do kept[i] = ("x"):rep(1000) .. i end
            show()
            assert(#kept == 2048)
        end)
        assert.equal("incremental\tincremental\n" .. ("generational\tgenerational\n"):rep(2), result.out, result.err)
    end)
end)

describe("what workers inherit", function()
    -- 64 MiB of strings of 1 KiB, with a hole of garbage after each.
    local function holey()
        local kept = {}
        for i = 1, 64 * 1024 do
            kept[i] = ("x"):rep(980) .. i
        end
        collectgarbage()
        return kept
    end

    it("stays shared while tasks read it and make objects of their own", function()
        if fault.asan then
            pending("the checker's allocator knows no arena")
            return
        end
        local kept = holey()
        local pool <close> = procpool.new(2, { shared = kept })
        local owns = pool:map(function()
            local shared = require("procpool").worker.shared
            local bytes, mine = 0, {} -- luacheck: ignore 241
            for i = 1, #shared do
                bytes = bytes + #shared[i]
            end
            for i = 1, 200000 do
                mine[i % 1000] = { i }
            end
            collectgarbage()
            return { bytes = bytes, private = private_memory() }
        end, { 1, 2, 3, 4 }, { chunksize = 1 })
        local bytes = 0
        for i = 1, #kept do
            bytes = bytes + #kept[i]
        end
        for _, own in ipairs(owns) do
            assert.equal(bytes, own.bytes)
            -- A few MiB of garbage are alive at a time; a copy would be 64.
            assert.is_true(own.private < 24 << 20, ("%d MiB"):format(own.private >> 20))
        end
    end)
end)
