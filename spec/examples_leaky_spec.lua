-- examples/leaky.lua: the library really leaks, and the limit keeps workers
-- small without losing a task.

local command = require("spec.support.command")
local run = command.run

describe("leaky", function()
    local dir, remove

    setup(function()
        dir, remove = command.directory()
        for i = 1, 60 do
            command.write(("%s/%02d"):format(dir, i), ("w%02d "):format(i):rep(20000))
        end
    end)

    teardown(function()
        remove()
    end)

    local function leak(megabytes)
        local out, err, status = run("$LUA examples/leaky.lua -j 1 -m " .. megabytes
            .. " " .. dir .. "/*")
        assert.are.equal(0, status, err)
        local tasks = 0
        for words in out:gmatch("(%d+)  [^\n]+\n") do
            tasks = tasks + 1
            assert.are.equal("20000", words)
        end
        assert.are.equal(60, tasks)
        local replaced, peak = err:match("(%d+) workers replaced, ([%d.]+) MB")
        return tonumber(replaced), tonumber(peak)
    end

    it("grows without a limit, and does not with one", function()
        local replaced, unlimited = leak(0)
        assert.are.equal(0, replaced)
        assert.is_true(unlimited > 4, unlimited .. " MB")
        local limited
        replaced, limited = leak(2)
        assert.is_true(replaced >= 2, replaced .. " replaced")
        assert.is_true(limited < unlimited - 1, limited .. " MB")
    end)

    it("wants files", function()
        local _, err, status = run("$LUA examples/leaky.lua")
        assert.are.equal(2, status)
        assert.is_truthy(err:find("usage: leaky.lua", 1, true))
    end)
end)
