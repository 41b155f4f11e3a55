-- 20,000 random values, nested up to eight deep, there and back through real
-- workers, bit for bit. PROCPOOL_SEED repeats a run.

-- limit: 300 s

local describe, it, assert = describe, it, assert
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local procpool = require("procpool")
local random = dofile("fuzz/random.lua")

local VALUES, BATCH = 20000, 250

local A, B = { name = "A" }, { name = "B" }
A.__index, B.__index = A, setmetatable({}, A)
procpool.register("values_property.A", A)
procpool.register("values_property.B", B)

describe("random values", function()
    it("come back as they went", function()
        local seed = tonumber(os.getenv("PROCPOOL_SEED")) or os.time()
        print("# values_property_spec: PROCPOOL_SEED=" .. seed)
        math.randomseed(seed)
        local pool <close> = procpool.new(2)
        local function identity(v) return v end
        for first = 1, VALUES, BATCH do
            local items = { n = BATCH }
            for i = 1, BATCH do
                local generator = random.new { A, B }
                items[i] = generator:value(math.random(0, 8))
            end
            local results = pool:map(identity, items)
            for i = 1, BATCH do
                local ok, why = random.same(items[i], results[i])
                assert.is_true(ok, ("value %d, seed %d: %s"):format(first + i - 1, seed, tostring(why)))
            end
        end
    end)
end)
