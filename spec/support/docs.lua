-- Runs the Lua in a Markdown file, for specs of the documentation.
--
-- A block fenced as ```lua is run, any other language is not. What a reader
-- need not see stands in comments right around a block:
--
--     <!-- before: LUA -->     runs before it, in the same chunk, so that what
--                              is local there can be seen by the block
--     <!-- after: LUA -->      runs behind it: assertions
--
-- Each may take several lines. A block that does not make `procpool` or `pool`
-- itself is given them. What it prints is compared, line by line, with the
-- comments "--> text" in it, if it has any; blanks stand for tabs.

local docs = {}

local function read(path)
    local file = assert(io.open(path))
    local text = file:read("a")
    file:close()
    return text
end

--- The blocks of a file: code, before, after, line, heading.
---@param path string
---@return table[]
function docs.blocks(path)
    local list, heading, number = {}, "", 0
    local before, kind, lines, start
    for line in read(path):gmatch("([^\n]*)\n") do
        number = number + 1
        local name, rest = line:match("^<!%-%- (%l+): ?(.*)$")
        if not kind and (name == "before" or name == "after") then
            kind, lines, line = name, {}, rest
        elseif not kind and line == "```lua" then
            kind, lines, start, line = "block", {}, number, nil
        elseif not kind and line:match("^```%l") then
            kind, lines = "other", {}
        elseif not kind and line:match("^#") then
            heading = line:gsub("^#+%s*", "")
        end
        local over = kind == "block" and line == "```"
            or kind == "other" and line == "```"
            or (kind == "before" or kind == "after") and line:match("%-%->$")
        if kind and line and not (over and line == "```") then
            lines[#lines + 1] = line:gsub("%s*%-%->$", "", over and 1 or 0)
        end
        if over then
            local text = table.concat(lines, "\n")
            if kind == "before" then
                before = text
            elseif kind == "after" then
                list[#list].after = text
            elseif kind == "block" then
                list[#list + 1] = {
                    code = text, before = before or "", after = "",
                    line = start, heading = heading,
                }
                before = nil
            end
            kind = nil
        end
    end
    assert(not kind, path .. ": a block without an end")
    return list
end

--- What the comments of a block say it prints.
local function promised(code)
    local list = {}
    for text in code:gmatch("%-%->%s?([^\n]*)") do
        list[#list + 1] = text:gsub("%s+", " ")
    end
    return list
end

--- The chunk of a block; its lines have the numbers they have in the file.
local function chunk_of(path, block)
    local before = block.before:gsub("\n", " ")
    local source = ("\n"):rep(block.line - 1) .. "local procpool, pool = ...; "
        .. before .. "\n" .. block.code .. "\n" .. block.after
    return assert(load(source, "@" .. path, "t"))
end

--- Runs one block; raises when it does, or when it prints something else than
--- it promises.
function docs.run(path, block)
    local procpool = require("procpool")
    local pool <close> = block.code:find("%f[%w]pool%f[%W]")
        and not block.code:find("local pool") and procpool.new(2) or nil
    local chunk = chunk_of(path, block)
    local printed, shown = {}, print
    -- luacheck: push ignore 121
    print = function(...)
        local words = table.pack(...)
        for i = 1, words.n do
            words[i] = tostring(words[i])
        end
        printed[#printed + 1] = table.concat(words, " "):gsub("%s+", " ")
    end
    local ok, err = xpcall(chunk, function(e)
        return type(e) == "string" and debug.traceback(e, 2) or e
    end, procpool, pool)
    print = shown
    -- luacheck: pop
    if not ok then
        error(tostring(err), 0)
    end
    local expected = promised(block.code)
    if #expected > 0 then
        local one = table.concat(printed, "\n")
        local other = table.concat(expected, "\n")
        assert(one == other, ("line %d prints\n%s\nbut says\n%s"):format(
            block.line, one, other))
    end
end

--- Declares a test for each block of a file (in busted's describe).
function docs.declare(path, it)
    for _, block in ipairs(docs.blocks(path)) do
        it(("line %d, %s"):format(block.line, block.heading), function()
            docs.run(path, block)
        end)
    end
end

return docs
