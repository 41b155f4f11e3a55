-- Error objects: what procpool raises for everything but a wrong argument.
--
-- An error object is a table with `kind` and `message`, and where known
-- `value`, `traceback`, `index`, `pid`, `worker`, `signal`, `exitcode` and
-- `attempt`. It travels between processes like any other value: its metatable
-- is registered by name, so procpool.iserror holds on either side.

---@alias procpool.Kind
---| "error"          # the task raised, or called os.exit
---| "timeout"        # your wait ended; the task goes on
---| "timelimit"      # the task ran longer than its time limit
---| "memory"         # the task was stopped by maxmemoryperchild
---| "lost"           # the worker died under the task
---| "cancelled"      # by cancel, or by a failed map
---| "terminated"     # the pool was terminated under it
---| "closed"         # the pool was closed before the call
---| "broken"         # the pool lost its keeper or cannot start workers
---| "initializer"    # the initializer raised, died or took too long
---| "unserializable" # a value that cannot travel, with its path

---@class procpool.Error
---@field kind procpool.Kind
---@field message string
---@field value any          what the task raised, if it could travel
---@field traceback string?  the worker's
---@field index integer?     of the item, in the map family
---@field pid integer?       of the worker
---@field worker integer?    slot of the worker
---@field signal integer?    that ended the worker
---@field exitcode integer?  of the worker
---@field attempt integer?   which run of the task this was, 1 first

local error, getmetatable, setmetatable = error, getmetatable, setmetatable
local tostring, type = tostring, type

local Error = { __name = "procpool.Error" }

---@param self procpool.Error
---@return string
function Error:__tostring()
    local text = tostring(self.message)
    if self.kind == "initializer" and not text:find("initializer", 1, true) then
        text = "initializer: " .. text
    end
    if self.index then
        text = ("%s (item %d)"):format(text, self.index)
    end
    if type(self.traceback) == "string" and self.traceback ~= "" then
        text = text .. "\nin the worker:\n" .. self.traceback
    end
    return text
end

local errors = { Error = Error }

--- Makes an error object.
---@param kind procpool.Kind
---@param message string
---@param traceback string?
---@param value any
---@param info { pid: integer?, worker: integer?, signal: integer?, exitcode: integer?, attempt: integer? }?
---@return procpool.Error
function errors.new(kind, message, traceback, value, info)
    local err = {
        kind = kind, message = message or kind,
        traceback = traceback, value = value,
    }
    if info then
        err.pid, err.worker, err.attempt = info.pid, info.worker, info.attempt
        err.signal, err.exitcode = info.signal, info.exitcode
    end
    return setmetatable(err, Error)
end

--- Raises a new error object.
---@param kind procpool.Kind
---@param message string
function errors.raise(kind, message)
    error(errors.new(kind, message), 0)
end

---@param v any
---@return boolean
function errors.is(v)
    return type(v) == "table" and getmetatable(v) == Error
end

return errors
