-- docs/values.md: its examples run and print what they say.

local describe, it = describe, it
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local docs = require("spec.support.docs")

describe("docs/values.md", function()
    docs.declare("docs/values.md", it)
end)
