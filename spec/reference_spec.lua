-- docs/reference.md: its examples run, and it leaves nothing out.

local describe, it, assert = describe, it, assert
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local procpool = require("procpool")
local options = require("procpool.options")
local docs = require("spec.support.docs")

local file = assert(io.open("docs/reference.md"))
local text = file:read("a")
file:close()

describe("docs/reference.md", function()
    docs.declare("docs/reference.md", it)

    it("names every option", function()
        for _, set in ipairs { "POOL", "TASK", "ASYNC", "MAP", "MAP_ASYNC", "IMAP" } do
            for name in pairs(options[set]) do
                assert.is_truthy(text:find("`" .. name, 1, true), name)
            end
        end
    end)

    it("names every function and method", function()
        for name in pairs(procpool) do
            assert.is_truthy(text:find("procpool." .. name, 1, true), name)
        end
        local pool <close> = procpool.new(0)
        for name in pairs(getmetatable(pool).__index) do
            if not name:find("^_") then
                assert.is_truthy(text:find("pool:" .. name .. "(", 1, true), name)
            end
        end
        local result = pool:apply_async(math.abs, { 1 })
        for name, value in pairs(getmetatable(result).__index) do
            if type(value) == "function" then
                assert.is_truthy(text:find("result:" .. name .. "(", 1, true), name)
            end
        end
    end)
end)
