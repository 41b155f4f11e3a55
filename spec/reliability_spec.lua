-- docs/reliability.md: what it names exists. Each row of its list of faults
-- names files and, in quotation marks, words of a test in them.

local describe, it, assert = describe, it, assert

local DOC = "docs/reliability.md"
local FAULTS = 145

local function read(path)
    local file = io.open(path)
    local text = file and file:read("a")
    if file then
        file:close()
    end
    return text
end

local text = read(DOC)

--- `name` -> the file's text, and its path.
local function source(name)
    for _, path in ipairs({ "spec/" .. name .. "_spec.lua", "tests/" .. name .. ".c",
        "tests/" .. name }) do
        local found = read(path)
        if found then
            return found, path
        end
    end
    error(DOC .. ": there is no " .. name, 0)
end

--- The rows of the list: number -> the last column.
local function rows()
    local list = {}
    for number, tests in text:gmatch("\n| (%d+) | [^|]+ | ([^|\n]+) |") do
        list[#list + 1] = { tonumber(number), tests }
    end
    return list
end

describe(DOC, function()
    it("has every fault, in order", function()
        for i, row in ipairs(rows()) do
            assert.equal(i, row[1])
        end
        assert.equal(FAULTS, #rows())
    end)

    it("names tests that there are", function()
        for _, row in ipairs(rows()) do
            local named = false
            local where, path
            for file, words in row[2]:gmatch('(`?[%w_]*`?) ?"([^"]*)"') do
                local name = file:match("^`([%w_]+)`$")
                if name then
                    where, path = source(name)
                end
                assert.is_truthy(where, ("row %d: %s"):format(row[1], words))
                assert.is_truthy(where:find(words, 1, true),
                    ("row %d: no %q in %s"):format(row[1], words, path))
                named = true
            end
            assert.is_true(named or row[2]:find("below", 1, true) ~= nil, "row " .. row[1])
        end
    end)

    it("counts what can be counted", function()
        local points = read("src/fault.h"):match("#define FAULT_POINTS(.-)\n\n")
        local count = select(2, points:gsub('X%("', ""))
        assert.is_truthy(text:find(("| fault points in the engine | %d |"):format(count), 1, true), count)
        local sections = select(2, read("tests/step_test.c"):gsub('{ "step: ', ""))
        assert.is_truthy(text:find(("| sections that are single-stepped | %d,"):format(sections), 1, true),
            sections)
    end)
end)
