-- Ten seconds of the fuzzer, where clang and its runtime are there.

-- limit: 200 s

local describe, it, assert, pending = describe, it, assert, pending
local _ENV = _G -- luacheck: ignore 211

local fault = require("spec.support.fault")

local function run(arguments)
    local pipe = assert(io.popen("LD_PRELOAD= fuzz/run " .. arguments .. " 2>&1"))
    local said = pipe:read("a")
    local _, _, status = pipe:close()
    return status, said
end

describe("the fuzzer", function()
    if fault.asan then
        -- its helpers would load a core.so that needs the preloaded runtime
        pending("brings the sanitizers itself: run it without them")
        return
    end
    local status, said = run("--check")
    if status == 77 then
        pending(said:gsub("%s+$", "")) -- clang, its runtime or Lua's headers are missing
        return
    end
    it("finds nothing in ten seconds", function()
        status, said = run("10")
        assert.equal(0, status, said)
        assert.is_truthy(said:find("stat::number_of_executed_units: %d+"), said)
    end)
end)
