-- One task of an inline pool: user code under guard.
--
-- os.exit is trapped, a yield is refused, the time limit is an error raised
-- once by a count hook, and what the code raises is described as a worker
-- would describe it.

local core = require("procpool.core")
local errors = require("procpool.errors")

local encode, decode, now = core.encode, core.decode, core.now
local coroutine, debug, os = coroutine, debug, os
local error, getmetatable, setmetatable = error, getmetatable, setmetatable
local pack, unpack = table.pack, table.unpack
local pcall, tostring, type, xpcall = pcall, tostring, type, xpcall

local inline_task = {}

-- What an os.exit in a task raises.
local Exit = { __tostring = function(e) return e.text end }

local function trapped_exit(code)
    local status = (code == nil or code == true) and 0 or code or 1
    error(setmetatable({
        text = ("task called os.exit(%s)"):format(tostring(status)),
        status = status,
    }, Exit), 0)
end

-- The message handler. The frames of the library below the task are cut off.
local function explain(err)
    local text = debug.traceback(nil, 2)
    local cut = text:find("\n[^\n]*in function 'xpcall'\n[^\n]*inline_task")
    return { value = err, traceback = cut and text:sub(1, cut - 1) or text }
end

-- Raises `limit` once in the running code when the time is over.
local function arm(limit)
    local deadline = now() + limit.timeout
    debug.sethook(function()
        if now() >= deadline then
            debug.sethook()
            limit.struck = true
            error(limit.error)
        end
    end, "", 1000)
end

-- A call across which a task cannot yield, as in a worker.
local function without_yields(f, ...)
    local results
    local args = pack(...)
    ;("x"):gsub("x", function()
        results = pack(f(unpack(args, 1, args.n)))
    end)
    return unpack(results, 1, results.n)
end

--- Decodes a message: what travels by the name of os.exit becomes the trap.
---@return table results  of core.decode, packed
function inline_task.decode(message)
    local exit = os.exit
    os.exit = trapped_exit -- luacheck: ignore 122
    local out = pack(pcall(decode, message))
    os.exit = exit -- luacheck: ignore 122
    if not out[1] then
        error(out[2], 0)
    end
    return pack(unpack(out, 2, out.n))
end

--- Calls f under a handler, with os.exit trapped and the time limited.
---@param timeout number?
---@return table results  of xpcall, packed
---@return table? limit
function inline_task.run(timeout, f, ...)
    local exit = os.exit
    local hook, mask, count = debug.gethook()
    local limit = timeout and { timeout = timeout }
    os.exit = trapped_exit -- luacheck: ignore 122
    if limit then
        limit.error = errors.new("timelimit",
            ("time limit of %g s exceeded"):format(timeout))
        arm(limit)
    end
    local out
    if coroutine.isyieldable() then
        out = pack(xpcall(without_yields, explain, f, ...))
    else
        out = pack(xpcall(f, explain, ...))
    end
    if limit then
        debug.sethook(hook, mask, count)
    end
    os.exit = exit -- luacheck: ignore 122
    return out, limit
end

-- What an error value says, without trusting it.
local function text_of(value)
    local kind = type(value)
    if kind == "string" or kind == "number" then
        return tostring(value)
    elseif errors.is(value) then
        return tostring(value.message)
    end
    local mt = getmetatable(value)
    if type(mt) == "table" and mt.__tostring then
        local ok, text = pcall(tostring, value)
        if ok and type(text) == "string" then
            return text
        end
    end
    return ("(error object is a %s value)"):format(kind)
end

--- The failure to report for what a call raised.
---@return table # kind, message, traceback, value, info
function inline_task.failure(raised, limit)
    local value, traceback = raised.value, raised.traceback
    if getmetatable(value) == Exit then
        return { "error", value.text, info = { exitcode = value.status } }
    elseif limit and value == limit.error then
        return { "timelimit", value.message, traceback }
    end
    local text = text_of(value)
    local data, reason = encode("value", value)
    local sent, copy
    if data then
        sent, copy = decode(data)
        if not sent then
            reason, copy = "value: " .. tostring(copy), nil
        end
    end
    if not sent then
        text = ("%s (the value cannot travel: %s)"):format(text, reason)
    end
    return { "error", text, traceback, copy }
end

return inline_task
