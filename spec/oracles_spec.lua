-- The oracles that spec/support/helper.lua runs after every test: what each of
-- them is to find is done here by a spec of its own, which has to fail.

local describe, it, assert = describe, it, assert
local setup, teardown = setup, teardown

local command = require("spec.support.command")

-- Each does one thing that must not go unnoticed; `kept` outlives the test.
local SINS = [[
local describe, it, after_each = describe, it, after_each
local _ENV = _G
local c = require("chelper")
local procpool = require("procpool")
kept = {}

describe("sin", function()
    after_each(function()
        if kept.pool then
            kept.pool:terminate()
            kept.pool:join(20)
            kept.pool = nil
        end
    end)

    it("none", function()
        kept.pool = procpool.new(1)
        kept.pool:apply(math.abs, { -1 })
    end)
    it("a pool", function() kept[1] = procpool.new(1) end)
    it("(its end)", function()
        kept[1]:terminate()
        kept[1]:join(20)
    end)
    it("a zombie", function()
        if c.fork() == 0 then
            c.quit(0)
        end
    end)
    it("a stray", function()
        local pipe = io.popen("setsid sleep 20 >/dev/null 2>&1 & echo $!")
        local pid = pipe:read("n")
        pipe:close()
        repeat -- while it becomes sleep it has no environment to be known by
            c.sleep(0.01)
            local file = io.open(("/proc/%d/cmdline"):format(pid))
            local line = file:read("a")
            file:close()
        until line:find("^sleep")
    end)
    it("a descriptor", function() kept[2] = io.open("/dev/null") end)
    it("a mapping", function() c.counters(1) end)
    it("a task without outcome", function()
        kept.pool = procpool.new(1)
        kept[3] = kept.pool:apply_async(math.abs, { -1 })
        kept[3]:get(20)
        kept[3][1] = -1
    end)
    it("a task with two", function()
        kept.pool = procpool.new(0)
        kept[4] = kept.pool:apply_async(math.abs, { -1 })
        kept[4]:get(20)
        kept[4].failure = "another"
    end)
    it("a map that lacks an item", function()
        kept.pool = procpool.new(0)
        kept[5] = kept.pool:map_async(math.abs, { -1, -2 })
        kept[5]:get(20)
        kept[5].left = 1
    end)
    it("a miscount", function()
        kept.pool = procpool.new(1)
        local methods = debug.getmetatable(kept.pool._handle).__index
        local unfinished = methods.unfinished
        methods.unfinished = function(handle) return unfinished(handle) + 1 end
        kept.pool:apply_async(math.abs, { -1 })
        methods.unfinished = unfinished
    end)
end)
]]

describe("after each test", function()
    local dir, remove, said

    setup(function()
        dir, remove = command.directory()
        said = command.run("CLEAN_PATIENCE=0.5 TEST_LIMIT=50 tools/test "
            .. command.write(dir .. "/sins_spec.lua", SINS))
    end)

    teardown(function()
        remove()
    end)

    -- What is said right after the test of that name.
    local function after(name)
        local _, at = said:find("\nok %d+ %- sin " .. name .. "\n")
        assert.is_truthy(at, name .. "\n" .. said)
        return said:match("^not ok %d+ [^\n]*\n# [^\n]*\n# Failure message: ([^\n]*)", at + 1)
    end

    it("nothing is found where after_each has left nothing", function()
        assert.is_nil(after("none"))
    end)

    for name, what in pairs({
        ["a pool"] = "left behind: child %d+ %(S%)",
        ["a zombie"] = "left behind: child %d+ %(Z%)",
        ["a stray"] = "left behind: process %d+ %(S%) sleep 20",
        ["a descriptor"] = "left behind: descriptor %d+ %(/dev/null%)",
        ["a mapping"] = "left behind: %d+ shared mappings",
        ["a task without outcome"] = "ledger: a call without an outcome",
        ["a task with two"] = "ledger: a call with a result and a failure",
        ["a map that lacks an item"] = "ledger: a map with 1 items left",
        ["a miscount"] = "ledger: %d tasks posted, %d outcomes delivered, %d unfinished",
    }) do
        it(name .. " is found", function()
            assert.matches(what, after(name) or "nothing")
        end)
    end

    it("and after the last one, what the file has left", function()
        assert.matches("suite strict_teardown\n[^\n]*\n# Failure message: [^\n]*left behind: ", said)
        -- (where an address sanitizer is loaded into grep, too, that may fail)
        if not (os.getenv("LD_PRELOAD") or ""):find("asan") then
            assert.matches("left processes behind", said)
        end
    end)
end)
