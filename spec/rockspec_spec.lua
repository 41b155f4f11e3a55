-- The rockspecs list exactly the files there are, and every place that tells
-- the version tells the same one (tools/rockspec).

describe("the rockspecs", function()
    it("list the files there are, and the version", function()
        local pipe <close> = assert(io.popen("lua5.4 tools/rockspec check 2>&1"))
        assert.are.equal("", pipe:read("a"))
        assert.is_true(pipe:close())
    end)

    it("ask for what the library needs", function()
        local spec = {}
        assert(loadfile("procpool-scm-0.rockspec", "t", spec))()
        assert.are.equal("3.0", spec.rockspec_format)
        assert.are.same({ "lua >= 5.4, < 5.5", "luaposix >= 35" },
            spec.dependencies)
        assert.are.equal("builtin", spec.build.type)
    end)
end)
