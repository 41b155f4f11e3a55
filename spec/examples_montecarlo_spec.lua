-- examples/montecarlo.lua: the same to the last digit for the same seed, with
-- any number of workers; another for another seed; right where the answer is
-- known.

local command = require("spec.support.command")
local run = command.run

local PROGRAM = "$LUA examples/montecarlo.lua "

describe("montecarlo", function()
    local dir, remove

    setup(function()
        dir, remove = command.directory()
    end)

    teardown(function()
        remove()
    end)

    it("depends on the seed and on nothing else", function()
        local one, err, status = run(PROGRAM .. "-n 40000 -j 1 -s 7")
        assert.are.equal("", err)
        assert.are.equal(0, status)
        for _, workers in ipairs({ 2, 5 }) do
            assert.are.equal(one, (run(PROGRAM .. "-n 40000 -s 7 -j " .. workers)))
        end
        local other = run(PROGRAM .. "-n 40000 -j 2 -s 8")
        assert.are_not.equal(one:gsub("seed %d", ""), (other:gsub("seed %d", "")))
    end)

    it("is right where the answer is known", function()
        -- One job of 10 days for sure, then one of 0 to 20, likeliest 10: 20 on
        -- average, and half a day more since days are counted up.
        local plan = command.write(dir .. "/plan",
            "# a plan\nfirst 10 10 10\nsecond 0 10 20 first\n")
        local out = run(PROGRAM .. "-n 100000 " .. plan)
        local mean = tonumber(out:match("([%d.]+) days on average"))
        assert.is_true(math.abs(mean - 20.5) < 0.1, out)
        assert.is_truthy(out:find("second%s+critical in 100.0 %%"), out)
        assert.is_truthy(out:find("first%s+critical in 100.0 %%"), out)
    end)

    it("refuses wrong plans and arguments", function()
        for _, case in ipairs({
            { "a 1 2", ":1: a name and three numbers" },
            { "a 3 2 1", ":1: a name and three numbers" },
            { "a 1 2 3\nb 1 2 3 c", ":2: no job 'c' further up" },
            { "# nothing", "no jobs in it" },
        }) do
            local plan = command.write(dir .. "/wrong", case[1])
            local _, err, status = run(PROGRAM .. plan)
            assert.are.equal(2, status)
            assert.is_truthy(err:find(case[2], 1, true), err)
        end
        local _, err = run(PROGRAM .. "-n many")
        assert.is_truthy(err:find("-n needs a whole number", 1, true), err)
        _, err = run(PROGRAM .. dir .. "/none")
        assert.is_truthy(err:find("No such file", 1, true), err)
    end)
end)
