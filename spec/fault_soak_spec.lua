-- Two minutes of tests/soak. More: make soak MINUTES=n.
-- limit: 400 s

local describe, it, assert = describe, it, assert

describe("the soak", function()
    it("for two minutes loses nothing, doubles nothing, leaves nothing", function()
        local minutes = os.getenv("SOAK_MINUTES") or "2"
        local pipe = io.popen(("LUA_PATH='%s' LUA_CPATH='%s' %s tests/soak %s 2>&1")
            :format(package.path, package.cpath, os.getenv("LUA") or "lua5.4", minutes))
        local out = pipe:read("a")
        local ok = pipe:close()
        assert.is_true(ok, out)
        assert.matches("soak: good:", out)
    end)
end)
