---@meta procpool.core
-- luacheck: ignore 212 241

-- The C module under the library: clock, codec, and the engine's handle.

---@class procpool.core
---@field NIL lightuserdata    stands for nil in the results of an imap
---@field version string
local core = {}

--- Monotonic seconds.
---@return number
function core.now() end

--- Usable CPUs: affinity and cgroup quota considered.
---@return integer
function core.cpus() end

---@return integer
function core.getpid() end

--- An empty list with room for n items.
---@param n integer
---@return table
function core.list(n) end

--- Columns of the terminal behind a descriptor (0: unknown); nil: no terminal.
---@param fd integer
---@return integer?
function core.columns(fd) end

--- Two integers from the system's random source.
---@return integer, integer
function core.random_seed() end

---@param name string
---@param value table|function|userdata
function core.register(name, value) end

--- The classes among the globals as they are now travel by name.
function core.snapshot() end

--- One message with all values; `root` names them in errors ("args[2].conn").
---@param root "args"|"result"|"function"|"error"
---@param ... any
---@return string? message
---@return string? problem
function core.encode(root, ...) end

---@param message string
---@return true?
---@return any ...
function core.decode(message) end

--- Worker: tasks completed in this life.
---@return integer
function core.worker_tasks() end

--- Worker: the attempt of the running task.
---@return integer
function core.worker_attempt() end

--- Worker: leave after this task.
function core.worker_recycle() end

--- Starts a pool's processes.
---@param config table
---@return procpool.Handle
function core.open(config) end

--- What Lua sees of an engine; procpool.inline has a twin of it.
---@class procpool.Handle
local Handle = {}

---@param job table
---@param f function
---@param args table
---@param timeout number?
---@param grace number?
---@param retries integer?
---@param awaited boolean?  the caller will do nothing but wait for it
---@return integer? ticket
---@return string? kind  also "full"
---@return string? text
function Handle:call(job, f, args, timeout, grace, retries, awaited) end

--- The metatable of the jobs that submit makes.
---@param class table
function Handle:class(class) end

--- call of a new job, without options; nil if args is anything but a plain list.
---@param f function
---@param args table?
---@param awaited boolean?  as of call
---@return table? job
---@return string|boolean|nil kind  also "full"; of a job: is it time to take
---@return string? text
function Handle:submit(f, args, awaited) end

--- Encodes a function once for a submission.
---@param f function
---@return any ref
---@return string? problem
function Handle:func(f) end

---@param ref any
function Handle:release(ref) end

--- Tasks f(items[k]), k = i..j, numbered base+1 and on; spread: f(unpack(items[k])).
---@return integer? ticket
---@return string? kind  also "full"
---@return string? text
function Handle:chunk(job, ref, items, i, j, base, spread, timeout, grace, retries) end

--- Delivers what has arrived; never waits.
---@return integer tasks
function Handle:take() end

--- Sleeps until there is something to take, or the deadline.
---@param deadline number?
---@return boolean
function Handle:wait(deadline) end

---@param ticket integer
---@param gently boolean? only items that have not begun
---@return "queued"|"running"|nil
function Handle:cancel(ticket, gently) end

---@param ticket integer
---@return boolean
function Handle:running(ticket) end

---@return integer cells
function Handle:room() end

---@return integer tasks
function Handle:unfinished() end

function Handle:close() end
function Handle:terminate() end

---@param deadline number?
---@return boolean
function Handle:join(deadline) end

---@return "running"|"closed"|"terminated"|"broken"
---@return string? kind
---@return string? message
---@return string? traceback
---@return any value
function Handle:state() end

---@param stir boolean? it is to be readable at once
---@return integer?
function Handle:fileno(stir) end

---@param n integer
---@return boolean # false: there is no room for so many
function Handle:resize(n) end

---@param id integer?
function Handle:recycle(id) end

---@return table
function Handle:stats() end

--- Workers replaced so far, whatever the reason.
---@return integer
function Handle:replaced() end

return core
