-- A sample of tests/inject: system calls that fail. All of it: make faults.

local describe, it, assert = describe, it, assert
local pending = pending

describe("failing system calls", function()
    it("give right results or ordinary errors, and leave nothing behind", function()
        if os.execute("strace -qq -o /dev/null true 2>/dev/null") ~= true then
            pending("strace is missing, or may not trace here")
            return
        elseif (os.getenv("LD_PRELOAD") or ""):find("asan") then
            pending("an address sanitizer checks its own calls")
            return
        end
        local pipe = io.popen(("LUA_PATH='%s' LUA_CPATH='%s' %s tests/inject --quick 15 2>&1")
            :format(package.path, package.cpath, os.getenv("LUA") or "lua5.4"))
        local out = pipe:read("a")
        local ok = pipe:close()
        assert.is_true(ok, out)
    end)
end)
