-- Runs programs of the checkout as a user would, for specs of the examples.

local command = {}

local function read(path)
    local file = assert(io.open(path, "rb"))
    local text = file:read("a")
    file:close()
    return text
end
command.read = read

--- A new directory and a function that removes it.
---@return string path
---@return fun() remove
function command.directory()
    local pipe = assert(io.popen("mktemp -d"))
    local path = pipe:read("l")
    pipe:close()
    return path, function()
        os.execute("rm -rf '" .. path .. "'")
    end
end

--- Writes a file; returns its path.
function command.write(path, text)
    local file = assert(io.open(path, "wb"))
    assert(file:write(text))
    file:close()
    return path
end

command.LUA = os.getenv("LUA") or "lua5.4"

--- Runs a shell command line, in which $LUA is the interpreter, under a time
--- limit of 60 seconds.
---@param line string
---@return string stdout
---@return string stderr
---@return integer status  124: out of time
function command.run(line)
    local trouble = os.tmpname()
    local script = command.write(os.tmpname(), line .. "\n")
    local pipe = assert(io.popen(("LUA='%s' timeout -k 5 60 sh '%s' 2>'%s'"):format(
        command.LUA, script, trouble)))
    local out = pipe:read("a")
    local _, _, status = pipe:close()
    local err = read(trouble)
    os.remove(trouble)
    os.remove(script)
    return out, err, status
end

return command
