-- The README and the guides: their examples run and print what they say, their
-- links lead somewhere, and the commands they name exist. (The reference has a
-- spec of its own.)

local describe, it, assert = describe, it, assert
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local docs = require("spec.support.docs")

local RUN = { "README.md", "docs/guide.md", "docs/lifetimes.md", "docs/faq.md",
    "docs/reliability.md" }

for _, path in ipairs(RUN) do
    describe(path, function()
        docs.declare(path, it)
    end)
end

local function read(path)
    local file = assert(io.open(path), path)
    local text = file:read("a")
    file:close()
    return text
end

--- The text without what is fenced.
local function prose(path)
    return (("\n" .. read(path)):gsub("\n```.-\n```", "\n"))
end

--- What headings are called in links, as GitHub makes it.
local function anchors(path)
    local set = {}
    for heading in prose(path):gmatch("\n#+ ([^\n]+)") do
        local name = heading:lower():gsub("[^%w%-_ \128-\255]", ""):gsub(" ", "-")
        set[name] = true
    end
    return set
end

local function folder(path)
    return path:match("^(.*/)") or ""
end

--- "docs/../README.md" -> "README.md"
local function normal(path)
    local n
    repeat
        path, n = path:gsub("[^/]+/%.%./", "", 1)
    until n == 0
    return path
end

describe("links", function()
    for _, path in ipairs({ "README.md", "CONTRIBUTING.md", "docs/guide.md",
        "docs/lifetimes.md", "docs/faq.md", "docs/reference.md", "docs/values.md",
        "docs/design.md", "docs/reliability.md" }) do
        it("of " .. path, function()
            for link in prose(path):gmatch("%]%(([^%s%)]+)%)") do
                local target, anchor = link:match("^([^#]*)#?(.*)$")
                if not target:find("^https?:") then
                    local file = target == "" and path
                        or normal(folder(path) .. target)
                    assert.is_truthy(io.open(file), path .. ": " .. link)
                    assert.is_true(anchor == "" or anchors(file)[anchor] or false,
                        path .. ": " .. link)
                end
            end
        end)
    end
end)

describe("commands", function()
    local makefile = read("Makefile")
    for _, path in ipairs({ "README.md", "CONTRIBUTING.md" }) do
        it("of " .. path, function()
            for line in read(path):gmatch("[^\n]+") do
                for target in line:gmatch("%f[%w]make ([%l%-]+)") do
                    if line:find("^    ") or line:find("^make") or line:find("`make ") then
                        assert.is_truthy(makefile:find("\n" .. target:gsub("%-", "%%-")
                            .. "[ :]") or makefile:find(" " .. target .. "[ :\n]"),
                            path .. ": make " .. target)
                    end
                end
            end
        end)
    end
end)

describe("README.md", function()
    local text = read("README.md")

    it("names every option of new", function()
        for name in pairs(require("procpool.options").POOL) do
            assert.is_truthy(text:find("`" .. name .. "`", 1, true), name)
        end
    end)

    it("names every method of a pool", function()
        local pool <close> = require("procpool").new(0)
        for name in pairs(getmetatable(pool).__index) do
            assert.is_truthy(name:find("^_") or text:find(name, 1, true), name)
        end
    end)
end)
