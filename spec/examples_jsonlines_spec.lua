-- examples/jsonlines.lua: transforms in order, leaves bad lines out, needs no
-- more memory for a longer stream.

local command = require("spec.support.command")
local fault = require("spec.support.fault")
local run = command.run

local PROGRAM = "$LUA examples/jsonlines.lua "

-- Lines of some 100 bytes, made by a program of its own.
local function stream(lines)
    return ([[$LUA -e 'for i = 1, %d do io.write("{\"id\":", i, ",\"text\":\"]]
        .. ("x"):rep(80) .. [[\"}\n") end' | ]]):format(lines)
end

describe("jsonlines", function()
    it("transforms every line, in order", function()
        local out, err, status = run(stream(5000) .. PROGRAM
            .. "-j 3 -c 7 '{ id = r.id, n = #r.text }'")
        assert.are.equal("", err)
        assert.are.equal(0, status)
        local i = 0
        for line in out:gmatch("[^\n]+") do
            i = i + 1
            assert.is_truthy(line:find('"id":' .. i, 1, true), line)
            assert.is_truthy(line:find('"n":80', 1, true), line)
        end
        assert.are.equal(5000, i)
    end)

    it("drops lines for which the expression gives nothing", function()
        local out = run(stream(100) .. PROGRAM .. "'r.id % 10 == 0 and { id = r.id }'")
        assert.are.equal(10, select(2, out:gsub("\n", "")))
    end)

    it("reports bad lines by number and goes on", function()
        local out, err, status = run([[printf '%s\n' '{"a":1}' '' 'no json' '{"a":[]}' ]]
            .. [['{"a":2}' | ]] .. PROGRAM .. "-v '{ b = r.a + 1 }'")
        assert.are.equal('{"b":2}\n{"b":3}\n', out)
        assert.is_truthy(err:find("jsonlines: line 3: [^\n]*invalid token"), err)
        assert.is_truthy(err:find("jsonlines: line 4: expression:1: attempt to perform"), err)
        assert.is_truthy(err:find("5 lines, 2 bad", 1, true), err)
        assert.are.equal(1, status)
    end)

    it("reads a file", function()
        local dir, remove = command.directory()
        command.write(dir .. "/in", '{"a":"b"}')
        local out = run(PROGRAM .. "r " .. dir .. "/in")
        remove()
        assert.are.equal('{"a":"b"}\n', out)
    end)

    it("needs no more memory for ten times the lines", function()
        if fault.unmeasurable then
            pending(fault.unmeasurable)
            return
        end
        local function peak(lines)
            local _, err = run(stream(lines) .. PROGRAM .. "-v -c 100 r >/dev/null")
            return tonumber(err:match("([%d.]+) MB at most"))
        end
        local short, long = peak(4000), peak(40000)
        assert.is_true(long < short + 3, short .. " MB, " .. long .. " MB")
    end)

    it("ends when its output is not wanted any more", function()
        local out, _, status = run(stream(20000) .. PROGRAM .. "r | head -n 1")
        assert.are.equal(1, select(2, out:gsub("\n", "")))
        assert.are.equal(0, status)
    end)

    it("refuses wrong arguments", function()
        for _, case in ipairs({
            { "", "usage: jsonlines.lua" },
            { "'r +'", "expression:1: unexpected symbol" },
            { "r /no/such/file", "/no/such/file" },
            { "-c 0 r", "-c needs a whole number" },
        }) do
            local _, err, status = run(PROGRAM .. case[1])
            assert.are.equal(2, status)
            assert.is_truthy(err:find(case[2], 1, true), err)
        end
    end)
end)
