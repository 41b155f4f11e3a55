-- What a task takes, counted: system calls and instructions, and the page faults
-- of a life; they must not grow by more than a tenth over bench/counts.json. See
-- bench/lib/counts.lua.
-- limit: 300 s
-- runs alone

local describe, it, pending = describe, it, pending
local assert = assert -- busted's
local _ENV = _G -- luacheck: ignore 211

package.path = "./?.lua;" .. package.path
local cjson = require("cjson")
local counts = require("bench.lib.counts")

local function known_figures()
    local file = assert(io.open(counts.file))
    local known = cjson.decode(file:read("a"))
    file:close()
    return known
end

describe("counts per task", function()
    local known = known_figures()

    it("do not grow", function()
        local lacks = counts.lacks()
        if not lacks and known.setting ~= counts.setting() then
            lacks = "the figures are of " .. known.setting .. ", here is "
                .. counts.setting() .. " (bench/count compares all the same)"
        end
        if lacks then
            pending(lacks) -- a tool is missing or may not trace, or a checker is built in
            return
        end
        -- On a busy machine a worker looks for tasks that are not there yet:
        -- the least of some runs is what the code takes.
        local least, grown
        local quiet = false
        for _ = 1, 5 do
            local found, others = counts.take()
            least = counts.least(found, least)
            grown = counts.grown(least, known)
            quiet = quiet or others < 0.2
            if not grown[1] then
                return
            end
        end
        if not quiet then
            pending("something else uses CPU 0 all the time") -- none of the five runs counts
            return
        end
        assert.are.equal("", table.concat(grown, "\n"))
    end)

    it("are compared with a tenth of room", function()
        local found = {}
        for _, one in ipairs(counts.work) do
            found[one.kind] = {}
            for _, column in ipairs(one.columns) do
                found[one.kind][column] = known[one.kind][column]
            end
        end
        assert.are.same({}, counts.grown(found, known))
        local column = "parent's instructions"
        found.apply[column] = known.apply[column] * 1.09
        assert.are.same({}, counts.grown(found, known))
        found.apply[column] = known.apply[column] * 1.11
        assert.are.equal(1, #counts.grown(found, known))
        assert.is_truthy(counts.grown(found, known)[1]:find(column, 1, true))
    end)
end)
