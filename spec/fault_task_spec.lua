-- Tasks that misbehave: what they raise, what they break in their Lua state,
-- what they do to signals, descriptors and the pool's own memory. The next
-- task, and the parent, are none the wiser.
-- limit: 240 s

local describe, it, assert = describe, it, assert
local before_each, after_each = before_each, after_each
local _ENV = _G -- luacheck: ignore 211

local c = require("chelper")
local clean = require("spec.support.clean")
local fault = require("spec.support.fault")
local procpool = require("procpool")
local script = require("spec.support.script")

local failure, ready = fault.failure, fault.ready

describe("a task", function()
    local pool
    before_each(function()
        c.counters(16)
        pool = procpool.new(1)
    end)
    after_each(function()
        pool:terminate()
        assert(pool:join(fault.ENDED))
        c.counters(0)
    end)

    -- Fails with that kind, the same worker serving on.
    local function fails_softly(kind, f, args, opts)
        local pid = ready(pool)[1]
        local err = failure(kind, pool:apply_async(f, args, opts))
        fault.probe(pool)
        assert.equal(pid, fault.pids(pool)[1])
        return err
    end

    it("raises any value: an error, the value where it can travel", function()
        assert.is_nil(fails_softly("error", function() error(nil) end).value)
        assert.equal(42, fails_softly("error", function() error(42) end).value)
        assert.same({ code = 5 }, fails_softly("error", function() error({ code = 5 }) end).value)
        local err = fails_softly("error", function() error(io.stdout) end)
        assert.is_nil(err.value)
        assert.matches("file %(0x", err.message)
        err = fails_softly("error", function() error(coroutine.create(print)) end)
        assert.is_nil(err.value)
        assert.matches("thread", err.message)
        err = fails_softly("error", function() error(function() return 7 end) end)
        assert.equal(7, err.value())
    end)

    it("raises a value whose __tostring throws or gives no string", function()
        for _, bad in ipairs({ function() error("in tostring") end, function() return {} end }) do
            local err = fails_softly("error", function()
                error(setmetatable({}, { __tostring = bad, __name = "Bad" }))
            end)
            assert.equal("(error object is a table value)", err.message)
        end
    end)

    it("raises a value whose __tostring never returns: its time limit ends that", function()
        local _, err = pcall(pool.apply, pool, function()
            error(setmetatable({}, { __tostring = function() while true do end end }))
        end, nil, { timeout = 0.1, grace = 0.1 })
        assert.is_true(err.kind == "error" or err.kind == "timelimit")
        fault.probe(pool)
    end)

    it("errs in a message handler, in __gc, in __close", function()
        local err = fails_softly("error", function()
            local ok, message = xpcall(error, function() error("again") end, "first")
            error(tostring(ok) .. " " .. tostring(message), 0)
        end)
        assert.matches("^false ", err.value)
        assert.equal("fine", pool:apply(function()
            setmetatable({}, { __gc = function() error("in gc") end })
            collectgarbage()
            collectgarbage()
            return "fine"
        end))
        err = fails_softly("error", function()
            local _ <close> = setmetatable({}, { __close = function() error("in close", 0) end })
            return "never"
        end)
        assert.equal("in close", err.value)
    end)

    it("recurses without end, in Lua and in C", function()
        local err = fails_softly("error", function()
            local function deeper(n) return 1 + deeper(n + 1) end
            return deeper(1)
        end)
        assert.matches("stack overflow", err.message)
        err = fails_softly("error", function()
            local function deeper()
                return (("x"):gsub("x", deeper))
            end
            return deeper()
        end)
        assert.matches("C stack overflow", err.message)
    end)

    it("wants more memory than there is", function()
        local err = fails_softly("error", function() return ("x"):rep(1 << 62) end)
        assert.matches("resulting string too large", err.message)
        if not fault.asan then
            err = fails_softly("error", function()
                c.limit("as", 1 << 30) -- less than the region: nothing new is granted
                local ok, message = pcall(string.rep, "x", 1 << 30)
                c.limit("as", -1)
                error(ok or message, 0)
            end)
            assert.matches("not enough memory", err.message)
        end
    end)

    it("loops for ever: in Lua, a coroutine, a pattern, a comparison", function()
        for _, loop in ipairs({
            function() while true do end end,
            function() coroutine.wrap(function() while true do end end)() end,
            function() return ("a"):rep(40):find(("a*"):rep(14) .. "b") end,
            function() table.sort({ 3, 2, 1 }, function() while true do end end) end,
            function() while true do pcall(function() while true do end end) end end,
        }) do
            local begun = fault.now()
            failure("timelimit", pool:apply_async(loop, nil, { timeout = 0.1, grace = 0.1 }))
            assert.is_true(fault.now() - begun < 0.2 + 2 * fault.DEATH + fault.READY)
            fault.probe(pool)
        end
    end)

    it("stops the collector, or changes its mode: restored, memory stays flat", function()
        local function garbage(how)
            collectgarbage(how)
            local t = {}
            for i = 1, 200 do t[i] = { i } end
            return #t
        end
        local function resident()
            return pool:apply(function()
                local pages = clean.read("/proc/self/statm"):match("%d+ (%d+)")
                return tonumber(pages) * 4096
            end)
        end
        pool:map(garbage, { "stop", "incremental", "generational" })
        local n, modes, items = fault.scaled(2000), { "stop", "incremental", "generational" }, {}
        for i = 1, n do items[i] = modes[i % 3 + 1] end
        pool:map(garbage, items)
        local before = resident()
        pool:map(garbage, items)
        -- (an address sanitizer keeps what is freed for a while)
        assert.is_true(fault.asan or resident() - before < 8 << 20, resident() - before)
        assert.is_true(pool:apply(collectgarbage, { "isrunning" }))
    end)

    it("breaks its Lua state: the library goes on", function()
        pool:apply(function()
            debug.sethook(function() c.add(3) end, "c")
        end)
        c.set(3, 0)
        pool:apply(function() return #tostring(1) end)
        assert.equal(0, c.get(3))
        pool:apply(function()
            setmetatable(_G, { __index = function() error("no globals") end,
                __newindex = function() error("no globals") end })
            local meta = getmetatable("")
            meta.__index, meta.__add, meta.__eq = nil, error, error
            for name in pairs(package.loaded) do
                if name ~= "_G" then
                    rawset(package.loaded, name, nil)
                end
            end
            for _, name in ipairs({ "string", "table", "pcall", "error", "type", "next", "pairs",
                "tostring", "select", "setmetatable", "getmetatable", "rawget", "coroutine",
                "math", "os", "io", "debug", "collectgarbage", "load", "require" }) do
                rawset(_G, name, nil)
            end
        end)
        local sum = pool:apply_async(function(a, b)
            return { a + b, "text", 1.5, nil, true }
        end, { 3, 4 }):get(fault.HANG)
        assert.same({ 7, "text", 1.5, nil, true }, sum)
        local result = pool:apply_async(function() local x = nil; return x.y end)
        assert.matches("attempt to index a nil value", failure("error", result).message)
        assert.equal(ready(pool)[1], pool:stats().workers[1].pid)
        pool:recycle(1)
        pool:close()
        assert(pool:join(fault.HANG))
    end)

    it("changes locale, directory, umask: its worker's, and numbers still travel", function()
        local got = pool:apply(function()
            os.setlocale("de_DE.UTF-8")
            require("posix.unistd").chdir("/")
            require("posix.sys.stat").umask(0)
            return 1.5
        end)
        assert.equal(1.5, got)
        assert.equal(0.25, pool:apply(function(x) return x / 2 end, { 0.5 }))
        assert.equal("/", pool:apply(function() return require("posix.unistd").getcwd() end))
        assert.not_equal("/", require("posix.unistd").getcwd())
    end)

    it("yields, returns a million values, returns none", function()
        local err = fails_softly("error", coroutine.yield)
        assert.matches("attempt to yield", err.message)
        local ok, count = pcall(function()
            return select("#", pool:apply(function()
                return table.unpack({}, 1, 999000)
            end))
        end)
        assert.is_true(ok and count == 999000 or not ok
            and (count.kind == "unserializable" or count.kind == "error"), tostring(count))
        assert.equal(0, select("#", pool:apply(function() end)))
    end)

    it("sets a timer, blocks or ignores signals: not blamed on the next", function()
        -- the default action of SIGALRM is the death of whoever it meets
        pool:apply(function() c.timer(0.2) end)
        assert.equal("slept", pool:apply_async(function()
            c.sleep(0.5)
            return "slept"
        end, nil, { retries = 3 }):get(fault.HANG))
        pool:apply(function()
            c.block(true)
            c.signal(15, "ignore")
            c.signal(2, "ignore")
            c.signal(11, "ignore")
        end)
        failure("timelimit", pool:apply_async(function()
            while true do end
        end, nil, { timeout = 0.1, grace = 0.1 }))
        fault.probe(pool)
    end)

    it("closes stdout and stderr: what it opens then gets no output of ours", function()
        local path = os.tmpname()
        pool:apply(function(name)
            c.close_range(1, 2)
            local one, two = io.open(name, "a"), io.open(name, "a")
            procpool.worker.state.files = { one, two }
            one:write("mine\n"):flush()
        end, { path })
        pool:map(math.abs, { -1, -2, -3 })
        pcall(pool.apply, pool, error, { "to nobody" })
        pool:recycle(1)
        pool:close()
        assert(pool:join(fault.HANG))
        assert.equal("mine\n", clean.read(path))
        os.remove(path)
    end)

    it("uses the parent's pool: an error that names its owner", function()
        local made
        local owner = procpool.new(1, { initializer = function()
            procpool.worker.state.pool = made
        end })
        owner:terminate()
        owner:join(fault.ENDED)
        made = pool -- by the fork, as a user's global would be
        outer_pool = pool -- luacheck: ignore 111
        local own <close> = procpool.new(1)
        local err = failure("error", own:apply_async(function()
            return outer_pool:apply(math.abs, { -1 }) -- luacheck: ignore 113
        end))
        assert.matches("belongs to process " .. c.getpid(), err.message)
        own:apply(function()
            outer_pool = nil -- luacheck: ignore 111
            collectgarbage()
            collectgarbage()
        end)
        outer_pool = nil -- luacheck: ignore 111
        fault.probe(pool)
        err = fault.fails("unserializable", own.apply, own, function() return made end)
        assert.matches("pool belongs to its process", err.message)
    end)

    it("uses C's and Lua's random numbers: no two lives share a stream", function()
        pool:terminate()
        pool:join(fault.ENDED)
        pool = procpool.new(2, { maxtasksperchild = 1 })
        local seen = {}
        for i, first in pool:imap(function() return math.random(0) end,
            function() return 1 end, { buffersize = 16 }) do
            assert.is_nil(seen[first])
            seen[first] = true
            if i == 100 then
                break
            end
        end
    end)
end)

describe("what a task does to files", function()
    it("leaves the parent's alone, when its worker leaves or dies", function()
        local path = os.tmpname()
        local file = io.open(path, "w")
        for i = 1, 20000 do
            file:write(i, "\n")
        end
        file:close()
        local input = io.open(path)
        local count = 0
        local pool <close> = procpool.new(2, { maxtasksperchild = 1 })
        for line in input:lines() do
            count = count + 1
            assert.equal(tostring(count), line)
            if count % 200 == 0 then
                if count % 1000 == 0 then
                    failure("error", pool:apply_async(function() os.exit(0) end))
                else
                    pool:apply(math.abs, { -1 })
                end
            end
        end
        assert.equal(20000, count)
        input:close()
        os.remove(path)
    end)

    it("does not consume the parent's stdin", function()
        local path = os.tmpname()
        local file = io.open(path, "w")
        file:write(("line\n"):rep(1000))
        file:close()
        local result = script.run(function(pp)
            local pool <close> = pp.new(2)
            print(pool:apply(function() return io.read("a") end) == "")
            print(#io.read("a"))
        end, { stdin = path })
        assert.equal("true\n5000\n", result.out, result.err)
        os.remove(path)
    end)

    it("meets a closed pipe or a full device as its own error, no more", function()
        local result = script.run(function(pp)
            local pool <close> = pp.new(1)
            local ok = pool:apply(function()
                io.stdout:setvbuf("no")
                return (io.write("x"))
            end)
            io.stderr:write(tostring(ok), " ", pool:apply(math.max, { 1, 2 }), "\n")
        end, { stdout = "/dev/full" })
        assert.equal("nil 2\n", result.err)
        local p <close> = script.start(function(pp)
            local pool <close> = pp.new(1)
            local ok = pool:apply(function()
                io.stdout:setvbuf("no")
                local fine
                for _ = 1, 100 do -- until the reader has gone
                    fine = io.write("x")
                    if not fine then break end
                    require("chelper").sleep(0.01)
                end
                return fine
            end)
            io.stderr:write(tostring(ok), " ", pool:apply(math.max, { 1, 2 }), "\n")
        end, { command = { "sh", "-c", '"$@" | true', "sh" } })
        p:wait()
        p:gone(fault.ENDED)
        assert.equal("nil 2\n", p:err())
    end)
end)

describe("a task that scribbles over the pool's memory", function()
    it("harms its own pool at worst, never the parent", function()
        local function seeds()
            local from = tonumber(os.getenv("FAULT_SEED")) or os.time()
            return from, from + fault.scaled(8)
        end
        local from, to = seeds()
        for seed = from, to do
            local p <close> = script.start(function(pp, c_, clean_, n)
                local fault_ = require("spec.support.fault")
                local pool = pp.new(2)
                fault_.ready(pool)
                local low, high
                for a, b, size in clean_.read("/proc/self/smaps"):gmatch(
                    "(%x+)%-(%x+) rw%-s[^\n]*/dev/zero %(deleted%)\nSize:%s*(%d+)") do
                    if tonumber(size) > 1024 then
                        low, high = tonumber(a, 16), tonumber(b, 16)
                    end
                end
                -- header, slots, cells: the first pages, and now and then all
                local range = n % 4 == 0 and high - low or 1 << (14 + n % 8)
                local results = {}
                for i = 1, 50 do
                    results[i] = pool:apply_async(math.max, { i, 0 })
                end
                local mad = pool:apply_async(function()
                    c_.scribble(low, low + range, 3000, n)
                end)
                for i = 51, 100 do
                    local ok, result = pcall(pool.apply_async, pool, math.max, { i, 0 })
                    results[i] = ok and result
                end
                for i = 1, 100 do
                    if results[i] then
                        pcall(results[i].get, results[i], 0.1)
                    end
                end
                pcall(mad.get, mad, 0.2)
                pcall(pool.stats, pool)
                pcall(pool.terminate, pool)
                pool:join(2)
                local next_ <close> = pp.new(1)
                print(next_:apply(math.max, { 1, 2 }))
            end, { args = { seed } })
            local result = p:wait(40)
            assert.equal("exit", result.how, ("seed %d: %s"):format(seed, result.err))
            assert.matches("2\n$", result.out, ("seed %d: %s"):format(seed, result.err))
            p:gone(fault.ENDED)
        end
    end)
end)
