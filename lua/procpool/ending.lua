-- How a pool ends: closed, terminated, left, forgotten.
--
-- `_state` is what was asked for; the handle knows what is. A closed pool stays
-- open for what an imap has yet to read, until somebody joins it. Nothing here
-- waits for a task but join and the orderly leaving of a <close> variable.
-- Runs in the parent alone.

local core = require("procpool.core")
local intake = require("procpool.intake")

local now, getpid = core.now, core.getpid
local take_quietly = intake.take_quietly
local error, next, pcall = error, next, pcall

local ending = {}

-- Tells the engine that no more tasks will come.
local function stop_feeding(self)
    if not self._draining then
        self._draining = true
        self._handle:close()
    end
end

---@param self procpool.Pool
function ending.close(self)
    if self._state == "running" then
        self._state, self._usual = "closed", false
        if not next(self._imaps) then
            stop_feeding(self)
        end
    end
end

--- An imap begins to read its items.
function ending.imap_open(self, job)
    self._imaps[job] = true
end

--- An imap has read and queued all of them.
function ending.imap_done(self, job)
    self._imaps[job] = nil
    if self._state == "closed" and not next(self._imaps) then
        stop_feeding(self)
    end
end

--- Kills, and waits a moment for the processes to be gone.
---@param self procpool.Pool
function ending.terminate(self)
    if self._state ~= "terminated" then
        self._state, self._usual = "terminated", false
        self._handle:terminate()
        self._handle:join(now() + 0.9)
    end
end

-- Takes in until nothing is unfinished, then waits for the processes. Returns
-- whether the end came before the deadline, and the round of callbacks if one
-- of them raised: at once, or (`patient`) the first such round after the end.
local function drain(self, deadline, patient)
    local state, handle = self._intake, self._handle
    if self._state == "closed" then
        stop_feeding(self)
    end
    local _, round = take_quietly(state)
    local trouble = round
    while handle:unfinished() > 0 do
        if trouble and not patient or deadline and now() >= deadline then
            return false, trouble
        end
        handle:wait(deadline)
        _, round = take_quietly(state)
        trouble = trouble or round
    end
    local gone = handle:join(deadline)
    _, round = take_quietly(state)
    return gone, trouble or round
end

--- Waits for the end; an error of a callback is raised on the way.
---@param self procpool.Pool
---@return boolean gone
function ending.join(self, deadline)
    local gone, trouble = drain(self, deadline, false)
    if trouble then
        error(trouble.err, 0)
    end
    return gone
end

--- __close. Left normally: closed and joined, whatever callbacks raise on the
--- way. Left by an error, or interrupted while joining: terminated.
---@param self procpool.Pool
function ending.leave(self, err)
    if getpid() ~= self._owner then
        return
    elseif err ~= nil then
        pcall(ending.terminate, self)
        pcall(take_quietly, self._intake)
        return
    end
    ending.close(self)
    local ok, gone, trouble = pcall(drain, self, nil, true)
    if not ok then
        ending.terminate(self)
        error(gone, 0)
    elseif trouble then
        error(trouble.err, 0)
    end
end

--- __gc: terminated without a wait, and without callbacks.
---@param self procpool.Pool
function ending.forget(self)
    if self._owner == getpid() and self._state ~= "terminated" then
        self._state = "terminated"
        pcall(self._handle.terminate, self._handle)
    end
end

return ending
