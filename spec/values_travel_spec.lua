-- Values between real processes: everything that travels, both ways, and what
-- does not, with the error that a user sees.

local describe, it, assert = describe, it, assert
local setup, teardown = setup, teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local procpool = require("procpool")
local random = dofile("fuzz/random.lua")
local samples = dofile("fuzz/values.lua")

local function fails(kind, f, ...)
    local ok, err = pcall(f, ...)
    if ok or not procpool.iserror(err) or err.kind ~= kind then
        error(("kind %s expected, got %s"):format(kind, tostring(err)), 2)
    end
    return err
end

local function identity(...) return ... end

-- A module that the workers have to require, on the disk.
local function write_module(name, source)
    local file = assert(io.open("/tmp/" .. name .. ".lua", "w"))
    file:write(source)
    file:close()
end

local Registered = {}
Registered.__index = Registered
function Registered:twice() return self.x * 2 end
procpool.register("values_travel.Registered", Registered)

for _, processes in ipairs { 2, 0 } do
    describe(("values, %d processes:"):format(processes), function()
        local pool, saved_path
        local late = ("values_travel_late_%d"):format(processes)
        setup(function()
            GlobalClass = { __index = nil } -- luacheck: ignore
            GlobalClass.__index = GlobalClass -- luacheck: ignore
            saved_path = package.path
            package.path = "/tmp/?.lua;" .. package.path
            pool = procpool.new(processes)
        end)
        teardown(function()
            pool:terminate()
            package.path, package.loaded[late] = saved_path, nil
            GlobalClass = nil -- luacheck: ignore
            os.remove("/tmp/" .. late .. ".lua")
        end)

        for _, sample in ipairs(samples) do
            it(sample[1], function()
                local sent = table.pack(sample[2]())
                local got = table.pack(pool:apply(identity, sent))
                assert.equal(sent.n, got.n)
                if sample[1] ~= "reduced" then
                    assert(random.same(sent, got))
                end
            end)
        end

        it("closures with what they hold, changed in the worker alone", function()
            local count, seen = 10, {}
            local function bump() count = count + 1; return count end
            local function task(x)
                seen[#seen + 1] = x
                return bump(), #seen, count
            end
            assert.same({ 11, 1, 11 }, { pool:apply(task, { 5 }) })
            assert.equal(10, count)
            assert.same({}, seen)
        end)

        it("a submission copies upvalues as they are then", function()
            local x = 1
            local function get() return x end
            local first = pool:apply_async(get)
            x = 2
            local second = pool:apply_async(get)
            assert.equal(1, first:get())
            assert.equal(2, second:get())
        end)

        it("functions as results, callable here", function()
            local add = pool:apply(function(n)
                return function(x) n = n + x; return n end
            end, { 5 })
            assert.equal(6, add(1))
            assert.equal(8, add(2))
        end)

        it("methods through a registered class", function()
            local o = setmetatable({ x = 21 }, Registered)
            local copy, twice = pool:apply(function(p) return p, p:twice() end, { o })
            assert.equal(42, twice)
            assert.equal(Registered, getmetatable(copy))
            assert.equal(42, copy:twice())
        end)

        it("a global class keeps its identity, there and here", function()
            local o = setmetatable({ 1 }, GlobalClass) -- luacheck: ignore
            local there, copy = pool:apply(function(p)
                return getmetatable(p) == GlobalClass, p -- luacheck: ignore
            end, { o })
            assert.is_true(there)
            assert.equal(GlobalClass, getmetatable(copy)) -- luacheck: ignore
        end)

        it("a global class that came after the pool, or that only the worker has", function()
            LateClass = { hello = function() return "hi" end } -- luacheck: ignore
            LateClass.__index = LateClass -- luacheck: ignore
            local hello, copy = pool:apply(function(p) return p:hello(), p end,
                { setmetatable({}, LateClass) }) -- luacheck: ignore
            LateClass = nil -- luacheck: ignore
            assert.equal("hi", hello)
            assert.equal("hi", copy:hello())
            local o = pool:apply(function()
                WorkersOwn = { hello = function() return "ho" end } -- luacheck: ignore
                WorkersOwn.__index = WorkersOwn -- luacheck: ignore
                return setmetatable({}, WorkersOwn) -- luacheck: ignore
            end)
            assert.equal("ho", o:hello())
            WorkersOwn = nil -- luacheck: ignore
        end)

        it("a module that the worker has to require", function()
            write_module(late, [[
                local M = { loads = 0 }
                M.Class = {}
                M.Class.__index = M.Class
                local hidden = io.stdout -- could not travel
                function M.work(x) return hidden and x + 1 end
                return M
            ]])
            local m = require(late)
            assert.equal(2, pool:apply(m.work, { 1 }))
            local function task(o)
                local there = require(o.name)
                return m == there, getmetatable(o) == m.Class, m.work, m
            end
            local same, class, work, module = pool:apply(task,
                { setmetatable({ name = late }, m.Class) })
            assert.is_true(same)
            assert.is_true(class)
            assert.equal(m.work, work)
            assert.equal(m, module)
        end)

        it("a module that only the worker has loaded", function()
            package.loaded[late] = nil
            local o = pool:apply(function(name)
                return setmetatable({ 1 }, require(name).Class)
            end, { late })
            assert.equal(require(late).Class, getmetatable(o))
        end)

        it("refuses an argument at once, with nothing queued", function()
            local before = pool:stats().queued
            local err = fails("unserializable", pool.apply, pool, identity, { 1, { conn = io.stdout } })
            assert.equal("args[2].conn: userdata (FILE*)", err.message)
            err = fails("unserializable", pool.apply_async, pool, identity, { coroutine.create(print) })
            assert.equal("args[1]: coroutine", err.message)
            err = fails("unserializable", pool.apply, pool, identity, { io.stdout.write })
            assert.equal("args[1]: C function", err.message)
            assert.equal(before, pool:stats().queued)
            assert.equal(1, pool:apply(identity, { 1 }))
        end)

        it("refuses a function for its upvalue", function()
            local db = io.stdout
            local err = fails("unserializable", pool.apply, pool, function() return db end)
            assert.is_truthy(err.message:find(
                "^function: upvalue 'db' of function <.*values_travel_spec.lua:%d+>: userdata %(FILE%*%)$"),
                err.message)
        end)

        it("refuses a result, and the worker goes on", function()
            local pid = pool:apply(function() return require("procpool.core").getpid() end)
            local pids = {}
            for i = 1, 20 do
                local err = fails("unserializable", pool.apply, pool, function() return { out = io.stdout } end)
                assert.equal("result.out: userdata (FILE*)", err.message)
                pids[i] = err.pid
            end
            local known = {}
            for _, row in ipairs(pool:stats().workers) do known[row.pid] = true end
            for _, p in ipairs(pids) do assert.is_true(known[p], p) end
            assert.is_true(known[pid])
        end)

        it("refuses one item of a map alone", function()
            local results, failures = pool:map(identity, { 1, io.stdout, 3 }, { errors = "collect" })
            assert.equal(1, failures)
            assert.equal(1, results[1])
            assert.equal(3, results[3])
            assert.equal("unserializable", results[2].kind)
            assert.equal("args[1]: userdata (FILE*)", results[2].message)
        end)

        it("errors carry any value", function()
            local err = fails("error", pool.apply, pool, function() error({ code = 7, list = { 1 } }) end)
            assert.equal(7, err.value.code)
            assert.equal(1, err.value.list[1])
            err = fails("error", pool.apply, pool, function(o)
                error(setmetatable({ x = 4 }, getmetatable(o)))
            end, { setmetatable({}, Registered) })
            assert.equal(8, err.value:twice())
            err = fails("error", pool.apply, pool, function() error(nil) end)
            assert.is_nil(err.value)
            err = fails("error", pool.apply, pool, function() error(42, 0) end)
            assert.equal(42, err.value)
        end)

        it("an error that cannot travel is its text", function()
            local err = fails("error", pool.apply, pool, function()
                error(setmetatable({ conn = io.stdout },
                    { __tostring = function() return "connection lost" end }))
            end)
            assert.is_nil(err.value)
            assert.is_truthy(err.message:find("connection lost", 1, true), err.message)
            err = fails("error", pool.apply, pool, function() error(io.stdout) end)
            assert.is_nil(err.value)
        end)

        it("__reduce, whose error reaches the caller", function()
            local bad = setmetatable({}, { __reduce = function() error("cannot be reduced", 0) end })
            local err = fails("unserializable", pool.apply, pool, identity, { bad })
            assert.equal("args[1]: __reduce: cannot be reduced", err.message)
            bad = setmetatable({}, { __reduce = function()
                return function() error("cannot be built", 0) end
            end })
            err = fails("unserializable", pool.apply, pool, identity, { bad })
            assert.is_truthy(err.message:find("cannot be built", 1, true), err.message)
        end)

        it("250 arguments and results, nils at the end", function()
            local args = { n = 250, [1] = 1 }
            assert.equal(250, pool:apply(function(...) return select("#", ...) end, args))
            assert.equal(250, select("#", pool:apply(identity, args)))
            assert.equal(3, select("#", pool:apply(function() return 1, nil, nil end)))
        end)
    end)
end

describe("values whose name the receiver lacks", function()
    it("are refused, the name named, and the worker goes on", function()
        local pool <close> = procpool.new(1)
        local function pid() return procpool.worker.pid end
        local before = pool:apply(pid)
        local Late, module = {}, { work = function() end }
        procpool.register("values_travel.Late", Late)
        package.loaded.values_travel_lost = module
        local of_late = "^'values_travel.Late' is not registered here"
        local of_module = "^module 'values_travel_lost' cannot be required here: "
        for _, case in ipairs({
            { of_late, pool.apply, pool, type, { Late } },
            { of_late, pool.apply, pool, function() return Late end },
            { of_late, pool.map, pool, type, { Late } },
            { of_module, pool.apply, pool, module.work },
            { of_module, pool.apply, pool, type, { module.work } },
        }) do
            local err = fails("unserializable", table.unpack(case, 2))
            assert.matches(case[1], err.message)
            assert.equal(before, pool:apply(pid))
        end
        package.loaded.values_travel_lost = nil
        local err = fails("unserializable", pool.apply, pool, function()
            local there = {}
            procpool.register("values_travel.There", there)
            return there
        end)
        assert.matches("^'values_travel.There' is not registered here", err.message)
        local list, failures = pool:map(type, { 1, Late, "x" }, { errors = "collect", chunksize = 3 })
        assert.equal(1, failures)
        assert.same({ "number", "string" }, { list[1], list[3] })
        assert.matches(of_late, list[2].message)
        assert.equal(before, pool:apply(pid))
    end)
end)
