-- Progress of a map: a bar on stderr, or a call of the user's function.
--
-- On a terminal one line is redrawn, ten times a second at most; elsewhere a
-- plain line is printed every few seconds, and nothing at all when standard
-- output goes to the same place, where it would mix. Drawn when results are
-- taken in; no timer, no thread. Runs in the parent alone.

local core = require("procpool.core")

local now = core.now
local floor, max, min = math.floor, math.max, math.min
local ipairs, pcall, require = ipairs, pcall, require
local concat = table.concat
local stderr = io.stderr

local progress = {}

local REDRAW, REPORT = 0.1, 5 -- seconds between bars, between plain lines

--- 75 -> "1:15", 4000 -> "1:06:40".
local function clock(seconds)
    if seconds >= 360000 then
        return "> 99 h"
    end
    local s = floor(seconds + 0.5)
    if s >= 3600 then
        return ("%d:%02d:%02d"):format(s // 3600, s // 60 % 60, s % 60)
    end
    return ("%d:%02d"):format(s // 60, s % 60)
end

--- 1523.4 -> "1523/s", 0.25 -> "15.0/min".
local function speed(rate)
    if rate >= 1e6 then
        return ("%.1fM/s"):format(rate / 1e6)
    elseif rate >= 1e4 then
        return ("%.0fk/s"):format(rate / 1e3)
    elseif rate >= 1 then
        return ("%.0f/s"):format(rate)
    end
    return ("%.1f/min"):format(rate * 60)
end

---@class procpool.ProgressState
---@field done integer
---@field total integer?   nil while the items are still being read
---@field rate number?     items per second
---@field left number?     seconds
---@field elapsed number   seconds
---@field replaced integer workers
---@field failed integer   items
---@field over boolean?

-- The parts of a line in the order they are shown, each with its rank: with
-- too little room the highest rank goes first.
local function parts(s)
    local list = {}
    local function add(rank, text)
        list[#list + 1] = { rank = rank, text = text }
    end
    if s.total then
        local share = s.total > 0 and s.done / s.total or 1
        add(3, ("%3d%%"):format(floor(share * 100)))
        add(1, ("%d/%d"):format(s.done, s.total))
    else
        add(1, ("%d done"):format(s.done))
    end
    if s.rate and s.rate > 0 then
        add(5, speed(s.rate))
    end
    if s.over then
        add(2, clock(s.elapsed))
    elseif s.left then
        add(2, clock(s.left) .. " left")
    end
    if s.replaced > 0 then
        add(6, s.replaced .. " replaced")
    end
    if s.failed > 0 then
        add(4, s.failed .. " failed")
    end
    return list
end

local function join(list, gap)
    local texts = {}
    for i, part in ipairs(list) do
        texts[i] = part.text
    end
    return concat(texts, gap)
end

local function drop_least(list)
    local worst = 1
    for i, part in ipairs(list) do
        if part.rank > list[worst].rank then
            worst = i
        end
    end
    table.remove(list, worst)
end

--- One line of at most `width` columns; a bar takes what is free, up to 40.
---@param s procpool.ProgressState
---@param width integer
---@return string
function progress.line(s, width)
    local list = parts(s)
    local text = join(list, "  ")
    while #text > width and #list > 1 do
        drop_least(list)
        text = join(list, "  ")
    end
    local free = min(width - #text - 4, 40)
    if not s.total or free < 8 then
        return text
    end
    local full = s.total > 0 and free * s.done // s.total or free
    local bar = ("[%s%s]"):format(("#"):rep(full), ("-"):rep(free - full))
    table.insert(list, 2, { text = bar })
    return join(list, "  ")
end

-- Do two descriptors lead to the same file, pipe or terminal?
local function same_file(a, b)
    local ok, stat = pcall(require, "posix.sys.stat")
    if not ok then
        return false
    end
    local sa, sb = stat.fstat(a), stat.fstat(b)
    return sa and sb and sa.st_dev == sb.st_dev and sa.st_ino == sb.st_ino
end

--- How to draw: "bar" with the columns, "plain" or "none".
---@return "bar"|"plain"|"none", integer?
function progress.terminal()
    local columns = core.columns(2)
    if columns then
        return "bar", columns > 0 and columns or 80
    end
    return same_file(1, 2) and "none" or "plain"
end

local function replaced(pool)
    return pool._handle:replaced()
end

-- What a line says now.
local function state_of(self, done, at)
    local job = self.job
    local elapsed = max(at - self.started, 1e-6)
    local total = job.open == 0 and job.count or self.total
    local rate = elapsed > 0.05 and done / elapsed or nil
    return {
        done = done, total = total, rate = rate, elapsed = elapsed,
        left = total and rate and rate > 0 and (total - done) / rate or nil,
        replaced = replaced(self.pool) - self.before,
        failed = job.collect and job.failures or job.failure and 1 or 0,
        over = self.over,
    }
end

local function draw(self, done)
    local at = now()
    local gap = self.style == "bar" and REDRAW or REPORT
    if not self.over and at - self.drawn < gap or self.style == "none" then
        return
    end
    self.drawn = at
    local state = state_of(self, done, at)
    if self.style == "plain" then
        stderr:write("progress: ", progress.line(state, 30), "\n")
        return
    end
    local _, columns = progress.terminal()
    local line = progress.line(state, (columns or 80) - 1)
    stderr:write("\r", line, "\27[K", self.over and "\n" or "")
    stderr:flush()
end

local function update(self)
    local job = self.job
    local over = job.left == 0 or job.failure ~= nil or job.abandoned
    local done = job.count + job.open - job.left
    self.over = over or false
    if self.f then
        if done ~= self.last and not job.abandoned then
            self.last = done
            self.f(done, job.count)
        end
    elseif not self.finished then
        self.finished = self.over
        draw(self, done)
    end
end

--- Shows the progress of a map from now on, whenever results are taken in.
---@param pool procpool.Pool
---@param job table
---@param how true|fun(done: integer, total: integer)
function progress.attach(pool, job, how)
    local display = {
        pool = pool, job = job, update = update, started = now(),
        drawn = now(), last = 0, over = false,
    }
    if how == true then
        display.style = progress.terminal()
        display.before = replaced(pool)
        display.total = job.count > 0 and job.count or nil
        if display.style == "bar" then
            display.drawn = -REPORT
            update(display)
        end
    else
        display.f = how
    end
    local state = pool._intake
    state.displays[#state.displays + 1], state.news = display, true
end

return progress
