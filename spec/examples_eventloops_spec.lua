-- The event loops: results come in while the loop goes on with other things.

local command = require("spec.support.command")
local run = command.run

describe("eventloop_posix", function()
    local PROGRAM = "$LUA examples/eventloop_posix.lua"

    it("answers each number", function()
        local out, err, status = run("printf '%s\n' 1 2 12 97 1000036000099 30 | " .. PROGRAM)
        assert.are.equal("", err)
        assert.are.equal(0, status)
        local lines = {}
        for line in out:gmatch("[^\n]+") do
            lines[#lines + 1] = line
        end
        table.sort(lines)
        assert.are.same({ "1000036000099: 1000003 1000033", "12: 2 2 3", "1: 1", "2: 2",
            "30: 2 3 5", "97: 97" }, lines)
    end)

    it("answers while more is to come", function()
        -- The second number is sent only when the first is answered.
        local dir, remove = command.directory()
        local out, _, status = run("cd " .. dir .. "; mkfifo in; (cd $OLDPWD && "
            .. PROGRAM .. ") <in >out & " .. [[
            exec 3>in
            echo 15 >&3
            while ! grep -q '^15: 3 5$' out; do sleep 0.01; done
            printf 21 >&3
            exec 3>&-
            wait
            cat out]])
        remove()
        assert.are.equal(0, status)
        assert.are.equal("15: 3 5\n21: 3 7\n", out)
    end)

    it("passes over what is no number", function()
        local out, err = run("printf '%s\n' x 6 -1 | " .. PROGRAM)
        assert.are.equal("6: 2 3\n", out)
        assert.is_truthy(err:find("not a whole number from 1: x\n", 1, true), err)
        assert.is_truthy(err:find("not a whole number from 1: -1\n", 1, true), err)
    end)

    it("takes more numbers than may wait", function()
        local out, _, status = run("seq 1 3000 | " .. PROGRAM)
        assert.are.equal(0, status)
        assert.are.equal(3000, select(2, out:gsub("\n", "")))
    end)
end)

describe("eventloop_luv", function()
    it("counts while its timer ticks", function()
        local out, err, status = run("$LUA examples/eventloop_luv.lua 2000000")
        assert.are.equal("", err)
        assert.are.equal(0, status)
        assert.is_truthy(out:find("148933 primes up to 2000000\n", 1, true), out)
        assert.is_true(tonumber(out:match("(%d+) ticks")) >= 2, out)
    end)

    it("counts few", function()
        for limit, count in pairs({ [1] = 0, [2] = 1, [30] = 10 }) do
            local out = run("$LUA examples/eventloop_luv.lua " .. limit)
            assert.is_truthy(out:find(count .. " primes up to", 1, true), out)
        end
        local _, _, status = run("$LUA examples/eventloop_luv.lua x")
        assert.are.equal(2, status)
    end)
end)

describe("eventloop_cqueues", function()
    it("waits in coroutines, one for each file", function()
        local dir, remove = command.directory()
        command.write(dir .. "/a", ("abcd"):rep(10000))
        command.write(dir .. "/b", "no repetition")
        command.write(dir .. "/c", "")
        local out, err, status = run(("$LUA examples/eventloop_cqueues.lua %s/a %s/b %s/c %s/d")
            :gsub("%%s", dir))
        remove()
        assert.are.equal(0, status, err)
        assert.is_truthy(out:find("/a: 40000 -> 472 bytes\n", 1, true), out)
        assert.is_truthy(out:find("/b: 13 -> 13 bytes\n", 1, true), out)
        assert.is_truthy(out:find("/c: 0 -> 0 bytes\n", 1, true), out)
        assert.is_truthy(out:find("/d: No such file or directory\n", 1, true), out)
        assert.is_truthy(err:find("%d+ ticks meanwhile"), err)
    end)
end)
