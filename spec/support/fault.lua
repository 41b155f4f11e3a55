-- fault.lua - what the specs of faults share: bounds of time, a pool's
-- processes, the expected kinds of error, a nemesis.

local chelper = require("chelper")
local clean = require("spec.support.clean")
local core = require("procpool.core")
local procpool = require("procpool")

local fault = {}

-- Seconds within which a thing is to be observed, on a machine that is not
-- loaded; the tests allow ten times that, since it may be.
local LOADED = 10
fault.DEATH = 0.1 * LOADED      -- a death is known
fault.READY = 0.3 * LOADED      -- a replacement is ready
fault.ENDED = 1 * LOADED        -- all gone after the parent's or keeper's end
fault.HANG = 30                 -- what takes longer never comes

-- How much of what is random or repeated is done; more for a nightly run.
fault.SCALE = tonumber(os.getenv("FAULT_SCALE")) or 1

fault.asan = (os.getenv("LD_PRELOAD") or ""):find("asan") ~= nil

-- Why a test of memory figures cannot run; nil when it can.
fault.unmeasurable = fault.asan
    and "the checker keeps what was freed: memory cannot be measured" or nil

local SIGKILL = 9

function fault.scaled(n)
    return math.max(1, math.floor(n * fault.SCALE))
end

--- Runs f(...), which has to raise an error object of that kind; the object.
function fault.fails(kind, f, ...)
    local got = table.pack(pcall(f, ...))
    if got[1] then
        error(("no error of kind %s, but %s"):format(kind, tostring(got[2])), 2)
    end
    local err = got[2]
    if not procpool.iserror(err) or err.kind ~= kind then
        error(("not of kind %s (%s): %s"):format(kind, type(err) == "table" and tostring(err.kind)
            or type(err), tostring(err)), 2)
    end
    return err
end

--- The same of a result's get.
function fault.failure(kind, result)
    return fault.fails(kind, result.get, result, fault.HANG)
end

--- The pids of the workers that have their turn, by slot; 0: none just now.
function fault.pids(pool)
    local list = {}
    for _, row in ipairs(pool:stats().workers) do
        list[row.id] = row.pid or 0
    end
    return list
end

--- Waits until n workers (default: all) are ready; their pids.
function fault.ready(pool, n)
    n = n or pool.processes
    local list
    local ok = clean.await(fault.HANG, function()
        list = fault.pids(pool)
        local count = 0
        for _, pid in pairs(list) do
            count = count + (pid > 0 and 1 or 0)
        end
        return count >= n
    end)
    assert(ok, "the workers do not get ready")
    return list
end

--- The keeper of the only pool of this process.
function fault.keeper()
    local children = clean.children()
    for _, pid in ipairs(children) do
        local name = clean.read(("/proc/%d/cmdline"):format(pid)) or ""
        if name:find("keeper", 1, true) or name:find("busted", 1, true) and not children[2] then
            return pid
        end
    end
    assert(#children == 1, "which of several children is the keeper?")
    return children[1]
end

--- Waits until the slot has another worker; its pid.
function fault.replaced(pool, id, pid, seconds)
    local new
    local ok = clean.await(seconds, function()
        new = fault.pids(pool)[id]
        return new and new > 0 and new ~= pid
    end)
    assert(ok, ("worker %d (pid %d) is not replaced within %g s"):format(id, pid, seconds))
    return new
end

--- Does the pool still run tasks?
function fault.probe(pool)
    local got = pool:apply_async(math.max, { 17, 4 }):get(fault.HANG)
    assert(got == 17, "the probe gave " .. tostring(got))
end

--- A task: dies by a signal.
function fault.die(sig)
    chelper.kill(chelper.getpid(), sig or SIGKILL)
    chelper.sleep(60)
end

--- A task: counts in counter i, then spins until it is told to go (counter i
--- set negative) or for ever.
function fault.hang(i)
    chelper.add(i)
    while chelper.get(i) >= 0 do
        chelper.sleep(0.001)
    end
    return "released"
end

--- Waits until counter i is n or more.
function fault.counted(i, n)
    local ok = clean.await(fault.HANG, function()
        return chelper.get(i) >= n
    end)
    assert(ok, ("counter %d is %d, not %d"):format(i, chelper.get(i), n))
end

--- A process of its own that calls f() every `seconds` until it is stopped:
--- its pid. It dies with us.
function fault.nemesis(seconds, f)
    local parent = chelper.getpid()
    local pid = assert(chelper.fork())
    if pid ~= 0 then
        return pid
    end
    while clean.state(parent) do
        chelper.sleep(seconds)
        pcall(f)
    end
    chelper.quit(0)
end

function fault.stop(pid)
    chelper.kill(pid, SIGKILL)
    chelper.wait(pid)
end

--- A signal to a worker of that keeper; to nobody if the pid is another's by
--- now. True if it was sent.
function fault.strike(keeper, pid, sig)
    local stat = pid > 0 and clean.read(("/proc/%d/stat"):format(pid))
    if stat and tonumber(stat:match(".*%) %a (%d+)")) == keeper then
        return chelper.kill(pid, sig or SIGKILL)
    end
end

fault.now = core.now
fault.await = clean.await

return fault
