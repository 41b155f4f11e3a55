-- The codec in one process: what goes in comes out, equal bit for bit, and
-- one object where it was one.

local describe, it, assert = describe, it, assert
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local core = require("procpool.core")
local random = dofile("fuzz/random.lua")
local samples = dofile("fuzz/values.lua")

local function decoded(ok, ...)
    if not ok then error(..., 0) end
    return ...
end

local function send(...)
    local message, problem = core.encode("args", ...)
    if not message then error(problem, 0) end
    return decoded(core.decode(message))
end

local function size_of(...)
    return #assert(core.encode("args", ...))
end

describe("the codec", function()
    for _, sample in ipairs(samples) do
        it("sends " .. sample[1], function()
            local sent = table.pack(sample[2]())
            local got = table.pack(send(table.unpack(sent, 1, sent.n)))
            assert.equal(sent.n, got.n)
            if sample[1] ~= "reduced" then
                assert(random.same(sent, got))
            end
        end)
    end

    it("sends scalars in few bytes", function()
        assert.equal(2, size_of(100))
        assert.equal(3, size_of(-100))
        assert.equal(10, size_of(1 << 40))
        assert.equal(10, size_of(1.5))
        assert.equal(5, size_of("abc"))
        assert.equal(2, size_of(nil))
        assert.equal(1, size_of())
    end)

    it("sends arrays of numbers in bulk", function()
        local bytes, floats = {}, {}
        for i = 1, 10000 do
            bytes[i] = i % 128
            floats[i] = i / 3
        end
        assert.is_true(size_of(bytes) < 10200)
        assert.is_true(size_of(floats) < 80300)
    end)

    it("sends a repeated key or string once", function()
        local records = {}
        for i = 1, 1000 do
            records[i] = { identifier = i % 100, description = "always the same" }
        end
        assert.is_true(size_of(records) < 10000)
    end)

    it("gives a -0.0 key and a 2.0 key the form that Lua gives them", function()
        local t = send({ [-0.0] = "zero", [2.0] = "two" })
        assert.equal("zero", t[0])
        assert.equal("two", t[2])
        for k in pairs(t) do assert.equal("integer", math.type(k)) end
    end)

    it("sends 255 upvalues", function()
        local names, sum = {}, {}
        for i = 1, 255 do
            names[i] = "v" .. i
            sum[i] = "v" .. i
        end
        local source = {}
        for i = 1, 255, 100 do
            local last = math.min(i + 99, 255)
            source[#source + 1] = ("local %s = %s"):format(table.concat(names, ",", i, last),
                table.concat((function()
                    local list = {}
                    for j = i, last do list[#list + 1] = tostring(j) end
                    return list
                end)(), ","))
        end
        -- 200 locals at most in one function: so two nested ones
        source = "local function outer() " .. source[1] .. " " .. "return function() " ..
            source[2] .. " return function() " .. source[3] ..
            " return function() return " .. table.concat(sum, "+") .. " end end end end return outer()()()"
        local f = assert(load(source))()
        assert.equal(255 * 256 // 2, f())
        assert.equal(255 * 256 // 2, send(f)())
    end)

    it("sends 250 arguments, nils too", function()
        local args = table.pack(send(table.unpack({ [250] = 1 }, 1, 250)))
        assert.equal(250, args.n)
        assert.equal(1, args[250])
    end)

    it("keeps what is between holes", function()
        local t = {}
        for i = 1, 1000 do t[i] = i end
        for i = 3, 999 do
            if i % 3 ~= 0 then t[i] = nil end
        end
        assert(random.same(t, send(t)))
        local sparse = { [1] = 1, [1000000] = 2, [1 << 40] = 3 }
        assert(random.same(sparse, send(sparse)))
    end)

    it("copies", function()
        local t = { 1, { 2 } }
        local u = send(t)
        u[2][1] = 3
        assert.equal(2, t[2][1])
        assert.not_equal(t, u)
    end)

    it("keeps identity within a message, not between two", function()
        local t, long = { 1 }, ("long"):rep(20)
        local a, b, c = send(t, { t, long }, long)
        assert.equal(a, b[1])
        assert.equal(b[2], c)
        assert.not_equal(a, (send(t)))
    end)

    it("runs no user code for a table", function()
        local function bang() error("must not run") end
        local mt = { __index = bang, __newindex = bang, __len = bang, __pairs = bang,
            __eq = bang, __call = bang, __tostring = bang, __name = "thing",
            __close = bang, __concat = bang, __mode = "kv", __metatable = "no" }
        local t = setmetatable({ 1, 2, x = { 3 } }, mt)
        local u = send(t)
        assert.equal(2, rawget(u, 2))
        assert.equal(3, rawget(u, "x")[1])
        assert.equal("thing", debug.getmetatable(u).__name)
        assert.equal("no", getmetatable(u))
    end)

    it("sends a metatable by value once", function()
        local mt = { __index = { greet = function(self) return "I am " .. self.name end } }
        local a, b = send(setmetatable({ name = "a" }, mt), setmetatable({ name = "b" }, mt))
        assert.equal("I am a", a:greet())
        assert.equal("I am b", b:greet())
        assert.equal(getmetatable(a), getmetatable(b))
        assert.not_equal(mt, getmetatable(a))
    end)

    it("arms __gc, in a metatable that is still being read too", function()
        local runs = 0
        _G.codec_spec_count = function() runs = runs + 1 end
        local mt = { __gc = function() codec_spec_count() end } -- luacheck: ignore
        mt.instance = setmetatable({}, mt)
        mt[1] = mt.instance
        do
            local copy = send(mt)
            assert.equal(copy, getmetatable(copy.instance))
            copy = send(setmetatable({}, mt)) -- luacheck: ignore
        end
        collectgarbage()
        collectgarbage()
        assert.equal(4, runs) -- one of them an original
        mt.__gc = nil
        _G.codec_spec_count = nil
    end)

    it("is not led astray by weak tables", function()
        local t = setmetatable({}, { __mode = "k" })
        for i = 1, 200 do t[{ i }] = i end
        collectgarbage()
        assert(send(t))
    end)
end)

describe("functions", function()
    it("keep the sharing of their upvalues", function()
        local n = 0
        local function add(by) n = n + by; return n end
        local function get() return n end
        local add2, list = send(add, { get, get })
        assert.equal(5, add2(5))
        assert.equal(5, list[1]())
        assert.equal(list[1], list[2])
        assert.equal(0, n)
    end)

    it("set every upvalue, the one that load takes for _ENV too", function()
        local first, second = { "first" }, nil
        local f = send(function() return first, second, tostring(1) end)
        local a, b, c = f()
        assert.equal("first", a[1])
        assert.is_nil(b)
        assert.equal("1", c)
        local unset = nil -- luacheck: ignore 331
        assert.is_nil(send(function() return unset end)())
    end)

    it("get the receiver's globals for _ENV, wherever it stands", function()
        local a, b = 1, 2
        local f = send(function() return a, b, _G end)
        local _, _, globals = f()
        assert.equal(_G, globals)
        local g = send(load("return _ENV"))
        assert.equal(_G, g())
        assert.equal(_G, send(_G))
    end)

    it("take another environment along by value", function()
        local env = { x = 1 }
        local f, g = load("x = x + 1 return x", "=f", "t", env), load("return x", "=g", "t", env)
        local f2, g2 = send(f, g)
        assert.equal(2, f2())
        assert.equal(2, g2())
        assert.equal(1, env.x)
    end)

    it("keep their names and lines for tracebacks", function()
        local f = send(function() error("boom") end)
        local ok, message = pcall(f)
        assert.is_false(ok)
        assert.is_truthy(message:find("codec_values_spec.lua:%d+: boom"), message)
    end)

    it("are dumped once", function()
        local f = function() return 1 end
        local dump, dumps = string.dump, 0
        send(f)
        string.dump = function(...) dumps = dumps + 1; return dump(...) end -- luacheck: ignore
        send(f)
        string.dump = dump -- luacheck: ignore
        assert.equal(0, dumps)
    end)

    it("see an upvalue as it is when they are sent", function()
        local x = 1
        local f = function() return x end
        assert.equal(1, send(f)())
        x = 2
        assert.equal(2, send(f)())
    end)

    it("can be variadic, a main chunk, stripped", function()
        assert.equal(3, send(function(...) return select("#", ...) end)(1, 2, 3))
        assert.equal(2, send(load("return ... "))(2))
        local stripped = load(string.dump(load("local a = ... return function() return a end"), true))
        assert.equal("x", send(stripped("x"))())
    end)
end)

describe("names", function()
    local function in_module(name, module, f)
        package.loaded[name] = module
        local ok, err = pcall(f, module)
        package.loaded[name] = nil
        assert(ok, err)
    end

    it("stand for modules, their functions and classes", function()
        local Class = { new = function() end }
        Class.__index = Class
        in_module("names_spec_a", { f = function() end, Class = Class, data = { 1 } }, function(m)
            assert.equal(m, send(m))
            assert.equal(m.f, send(m.f))
            assert.equal(Class, send(Class))
            assert.equal(Class, getmetatable(send(setmetatable({}, Class))))
            assert.not_equal(m.data, send(m.data))
            assert(random.same(m.data, send(m.data)))
            assert.is_true(size_of(m) < 20)
        end)
    end)

    it("stand for a module that is data only, in a plain table too", function()
        in_module("names_spec_b", { host = "x", port = 1 }, function(m)
            send({}, {})
            local deadline = core.now() + 2e-4 -- the list of modules may be that old
            while core.now() < deadline do end -- luacheck: ignore
            assert.equal(m, send({ m })[1])
        end)
    end)

    it("stand for a module that is a class or a function", function()
        local Point = { new = function() end }
        Point.__index = Point
        in_module("names_spec.point", Point, function()
            assert.equal(Point, getmetatable(send(setmetatable({ 1 }, Point))))
        end)
        in_module("names_spec_f", function() return 1 end, function(f)
            assert.equal(f, send(f))
        end)
    end)

    it("stand for a module's other tables as metatables only", function()
        in_module("names_spec_c", { mt = { __tostring = function() return "m" end } }, function(m)
            assert.equal(m.mt, getmetatable(send(setmetatable({}, m.mt))))
            assert.not_equal(m.mt, send(m.mt))
        end)
    end)

    it("stand for C functions of the globals, not for Lua functions", function()
        _G.names_spec_function = function() return 1 end
        assert.not_equal(_G.names_spec_function, send(_G.names_spec_function))
        _G.names_spec_function = nil
        assert.equal(print, send(print))
        assert.equal(require, send(require))
        assert.equal(math.random, send(math.random))
    end)

    it("are the shortest, then the first in the alphabet", function()
        local f = function() end
        in_module("names_spec_zz", { f = f }, function()
            in_module("names_spec_z", { g = f, f = f }, function()
                local message = core.encode("args", f)
                assert.is_truthy(message:find("names_spec_z\1f", 1, true))
            end)
        end)
    end)

    it("are compared with the module as it is", function()
        in_module("names_spec_d", { f = function() return 1 end }, function(m)
            local f = m.f
            assert.equal(f, send(f))
            m.f = function() return 2 end
            local copy = send(f)
            assert.not_equal(f, copy)
            assert.equal(1, copy())
        end)
    end)

    it("are those of the modules' fields at the last snapshot", function()
        in_module("names_spec_g", {}, function(m)
            local n = 0
            local function count() n = n + 1 return n end
            local function recount() n = n - 1 return n end
            m.f = count
            core.snapshot()
            assert.equal(count, send(count))
            m.late = recount
            assert.not_equal(recount, send(recount))
            core.snapshot()
            assert.equal(recount, send(recount))
            m.f, m.late = recount, count
            core.snapshot()
            assert.is_truthy(core.encode("args", count):find("late", 1, true))
            m.late = nil
            core.snapshot()
            assert.not_equal(count, send(count))
            m.Class = {}
            core.snapshot()
            assert.not_equal(m.Class, send(m.Class))
            m.Class.__index = m.Class
            core.snapshot()
            assert.equal(m.Class, send(m.Class))
        end)
    end)

    it("follow a class among the globals from snapshot to snapshot", function()
        SpecClass = { __index = print } -- luacheck: ignore
        local first = SpecClass -- luacheck: ignore
        core.snapshot()
        assert.equal(first, send(first))
        SpecClass = { __index = print } -- luacheck: ignore
        local second = SpecClass -- luacheck: ignore
        core.snapshot()
        assert.equal(second, send(second))
        assert.not_equal(first, send(first))
        SpecClass = nil -- luacheck: ignore
        core.snapshot()
        assert.not_equal(second, send(second))
    end)

    it("after a search outside a snapshot are still those of the next one", function()
        local function f() end
        local function g() end
        local c, d = coroutine.wrap(print), coroutine.wrap(print) -- C functions
        in_module("names_spec_h", { f = f, c = c }, function(m)
            core.snapshot()
            m.f, m.c = g, d
            assert.equal(d, send(d)) -- searched: the index has d and g now
            assert.equal(g, send(g))
            m.f, m.c = f, c
            core.snapshot()
            assert.equal(f, send(f))
            assert.is_nil(core.encode("args", d))
        end)
    end)

    it("are not collected anew by a snapshot when nothing has changed", function()
        core.snapshot()
        collectgarbage()
        collectgarbage("stop")
        local before = collectgarbage("count")
        core.snapshot()
        local after = collectgarbage("count")
        some_global = {} -- luacheck: ignore
        core.snapshot()
        local last = collectgarbage("count")
        collectgarbage("restart")
        some_global = nil -- luacheck: ignore
        assert.is_true(last - before < 1, last - before)
        assert.is_true(after - before < 1, after - before)
    end)

    it("make the receiver require what it lacks", function()
        local module = { f = function() return "original" end }
        package.loaded.names_spec_e = module
        local message = core.encode("args", module.f, module)
        package.loaded.names_spec_e = nil
        package.preload.names_spec_e = function()
            return { f = function() return "required" end }
        end
        local f, m = decoded(core.decode(message))
        assert.equal("required", f())
        assert.equal(package.loaded.names_spec_e, m)
        package.loaded.names_spec_e, package.preload.names_spec_e = nil, nil
    end)

    it("that are missing are named", function()
        local module = { f = function() end }
        package.loaded.names_spec_f = module
        local message = core.encode("args", module.f)
        package.loaded.names_spec_f = nil
        local ok, problem = core.decode(message)
        assert.is_nil(ok)
        assert.is_truthy(problem:find("module 'names_spec_f' cannot be required here: "), problem)
        package.preload.names_spec_f = function() return {} end
        ok, problem = core.decode(message)
        assert.is_nil(ok)
        assert.equal("module 'names_spec_f' has no 'f' here", problem)
        package.loaded.names_spec_f, package.preload.names_spec_f = nil, nil
    end)

    it("are given by register, which wins", function()
        local Point, config = {}, { 1 }
        Point.__index = Point
        core.register("names_spec.Point", Point)
        core.register("names_spec.config", config)
        assert.equal(Point, getmetatable(send(setmetatable({}, Point))))
        assert.equal(config, send(config))
        assert.equal(config, send({ config })[1])
        assert.is_truthy(core.encode("args", Point):find("names_spec.Point", 1, true))
        local file <close> = assert(io.tmpfile())
        core.register("names_spec.file", file)
        assert.equal(file, send({ file })[1])
        local message = core.encode("args", config)
        core.register("names_spec.config", Point)
        assert.not_equal(config, send(config))
        assert.equal(Point, select(2, core.decode(message)))
    end)

    it("that are not registered here are named", function()
        core.register("names_spec.A", {})
        local value = {}
        core.register("names_spec.B", value)
        local message = core.encode("args", value)
        local damaged = message:gsub("names_spec.B", "names_spec.?")
        local ok, problem = core.decode(damaged)
        assert.is_nil(ok)
        assert.equal("'names_spec.?' is not registered here", problem)
    end)
end)

describe("__reduce", function()
    it("gives a constructor and its arguments", function()
        local function build(...) return { args = table.pack(...) } end
        local mt = { __reduce = function(o) return build, o.x, nil, { o.y } end }
        local copy = send(setmetatable({ x = 1, y = 2 }, mt))
        assert.equal(3, copy.args.n)
        assert.equal(1, copy.args[1])
        assert.is_nil(copy.args[2])
        assert.equal(2, copy.args[3][1])
    end)

    it("keeps identity", function()
        local mt = { __reduce = function(o) return rawset, { o.x }, "built", true end }
        local o = setmetatable({ x = 1 }, mt)
        local list = send({ o, o, { o } })
        assert.equal(list[1], list[2])
        assert.equal(list[1], list[3][1])
        assert.is_true(list[1].built)
    end)

    it("may return nil at the other end", function()
        local o = setmetatable({}, { __reduce = function() return function() end end })
        local list = send({ o, o, 3 })
        assert.is_nil(list[1])
        assert.is_nil(list[2])
        assert.equal(3, list[3])
    end)

    it("works for userdata", function()
        local file = assert(io.tmpfile())
        local mt = debug.getmetatable(file)
        mt.__reduce = function() return io.type, 1 end
        local ok, result = pcall(send, { file })
        mt.__reduce = nil
        file:close()
        assert.is_true(ok)
        assert.same({}, result)
    end)

    it("must return a constructor", function()
        local o = setmetatable({}, { __reduce = function() return nil end })
        local _, problem = core.encode("args", { x = o })
        assert.equal("args[1].x: __reduce returned no constructor", problem)
    end)

    it("that raises is refused with its error", function()
        local o = setmetatable({}, { __reduce = function() error("not today", 0) end })
        local _, problem = core.encode("args", 1, { o })
        assert.equal("args[2][1]: __reduce: not today", problem)
    end)

    it("may not refer to its own object", function()
        local o = setmetatable({}, { __reduce = function(o) return print, { o } end })
        local _, problem = core.encode("args", o)
        assert.equal("args[1]: __reduce result 2[1]: refers to itself through __reduce", problem)
    end)

    it("hands on what the constructor raises", function()
        local o = setmetatable({}, { __reduce = function()
            return function() error("cannot build", 0) end
        end })
        local ok, problem = core.decode(core.encode("args", o))
        assert.is_nil(ok)
        assert.equal("constructor of a reduced object: cannot build", problem)
    end)

    it("may use the codec itself", function()
        local mt = { __reduce = function(o)
            local message = core.encode("args", { o.x })
            return function(m)
                return select(2, require("procpool.core").decode(m))
            end, message
        end }
        local list = send({ setmetatable({ x = 1 }, mt), { 2 }, setmetatable({ x = 3 }, mt) })
        assert.same({ { 1 }, { 2 }, { 3 } }, list)
    end)

    it("may change what is being sent", function()
        local t = {}
        for i = 1, 50 do t["k" .. i] = i end
        t.bad = setmetatable({}, { __reduce = function()
            for i = 1, 50 do t["k" .. i] = nil end
            for i = 1, 500 do t["n" .. i] = i end
            collectgarbage()
            return tostring, "done"
        end })
        local message, problem = core.encode("args", t)
        if message then
            assert(core.decode(message))
        else
            assert.is_truthy(problem:find("^args"), problem)
        end
    end)
end)

describe("what cannot travel is refused with its path", function()
    local function refused(expected, ...)
        local message, problem = core.encode("args", ...)
        assert.is_nil(message)
        assert.equal(expected, problem)
    end

    it("userdata, coroutines, C functions", function()
        refused("args[1]: userdata (FILE*)", io.stdout)
        refused("args[2].conn: userdata (FILE*)", 1, { conn = io.stdout })
        refused("args[1]: coroutine", coroutine.create(print))
        refused("args[1][2].f: C function", { 1, { f = io.stdout.write } })
        refused("args[1]: C function", (string.gmatch("", "")))
    end)

    it("keys, metatables, odd keys", function()
        refused("args[1][key]: userdata (FILE*)", { [io.stdout] = 1 })
        refused("args[1]: metatable.x: coroutine",
            setmetatable({}, { x = coroutine.create(print) }))
        refused("args[1][\"two words\"][2.5][true][-3]: userdata (FILE*)",
            { ["two words"] = { [2.5] = { [true] = { [-3] = io.stdout } } } })
        refused("args[1][table]: userdata (FILE*)", { [{}] = io.stdout })
    end)

    it("upvalues", function()
        local db = io.stdout
        local line = debug.getinfo(1, "l").currentline + 1
        local save = function() return db end
        refused(("args[2].handlers.save: upvalue 'db' of function <%s:%d>: userdata (FILE*)"):format(
            debug.getinfo(1, "S").short_src, line), nil, { handlers = { save = save } })
        local config = { log = io.stderr }
        line = debug.getinfo(1, "l").currentline + 2
        refused(("args[1]: upvalue 'config.log' of function <%s:%d>: userdata (FILE*)"):format(
            debug.getinfo(1, "S").short_src, line), function() return config end)
    end)

    it("the root is named as asked", function()
        assert.equal("result: coroutine",
            select(2, core.encode("result", coroutine.create(print))))
        assert.equal("result[2]: coroutine",
            select(2, core.encode("result", 1, coroutine.create(print))))
    end)

    it("very deep paths lose their middle", function()
        local top = {}
        local t = top
        for _ = 1, 1000 do
            t.x = {}
            t = t.x
        end
        t.x = io.stdout
        local _, problem = core.encode("args", top)
        assert.is_truthy(problem:find("^args%[1%]%.x.*%.%.%..*%.x: userdata %(FILE%*%)$"), problem)
        assert.is_true(#problem < 1200)
    end)

    it("twenty times over, and the codec goes on", function()
        for _ = 1, 20 do
            refused("args[1][1]: userdata (FILE*)", { io.stdout })
            assert.same({ 1 }, send({ 1 }))
        end
    end)
end)

describe("nesting", function()
    for _, depth in ipairs { 127, 128, 129, 255, 256, 257, 384, 385, 5000, 100000, 1000000 } do
        it(("%d tables deep"):format(depth), function()
            local top = {}
            local t = top
            for i = 1, depth do
                t[1], t.n = {}, i
                t = t[1]
            end
            local got, n = send(top), 0
            while got[1] do
                n = n + 1
                assert(got.n == n)
                got = got[1]
            end
            assert.equal(depth, n)
        end)
    end

    it("of closures, metatables and keys, 10000 deep", function()
        local value = 1
        for _ = 1, 10000 do
            local inner = value
            value = function() return inner end
        end
        local f = send(value)
        for _ = 1, 10000 do f = f() end
        assert.equal(1, f)
        local t = {}
        for _ = 1, 10000 do t = setmetatable({}, { t }) end
        local depth = 0
        t = send(t)
        while getmetatable(t) do
            t = getmetatable(t)[1]
            depth = depth + 1
        end
        assert.equal(10000, depth)
        local key = "end"
        for _ = 1, 10000 do key = { [key] = true } end
        key, depth = send(key), 0
        while type(key) == "table" do
            key = next(key)
            depth = depth + 1
        end
        assert.equal(10000, depth)
    end)

    it("of reduced objects, 10000 deep", function()
        local mt = {}
        mt.__reduce = function(o) return rawset, {}, "inner", o.inner end
        local o = setmetatable({}, mt)
        for _ = 1, 10000 do o = setmetatable({ inner = o }, mt) end
        o = send(o)
        local depth = 0
        while o.inner do
            o = o.inner
            depth = depth + 1
        end
        assert.equal(10000, depth)
    end)
end)

describe("memory", function()
    it("of a refused or dropped message is given back", function()
        local list = {}
        for i = 1, 1000 do list[i] = { i } end
        local bad = { list, io.stdout }
        local function round()
            core.encode("args", bad)
            send(list)
        end
        for _ = 1, 20 do round() end
        collectgarbage()
        local before = collectgarbage("count")
        for _ = 1, 500 do round() end
        collectgarbage()
        assert.is_true(collectgarbage("count") < before + 200)
    end)

    it("does not pile up while large messages come and go", function()
        local list = {}
        for i = 1, 20000 do list[i] = { i, tostring(i) } end
        local message = core.encode("args", list)
        list = nil -- luacheck: ignore
        collectgarbage()
        collectgarbage()
        core.decode(message)
        local most = 0
        for _ = 1, 100 do
            core.decode(message)
            most = math.max(most, collectgarbage("count"))
        end
        assert.is_true(most < 40 * 1024, most) -- one message is 3 MiB
    end)

    it("is not touched where the collector has been stopped", function()
        local message = core.encode("args", dofile("fuzz/values.lua"))
        collectgarbage("stop")
        for _ = 1, 10 do core.decode(message) end
        local running = collectgarbage("isrunning")
        collectgarbage("restart")
        assert.is_false(running)
        assert.is_true(collectgarbage("isrunning"))
    end)

    it("is collected in generational mode too", function()
        local list = {}
        for i = 1, 5000 do list[i] = { i, name = "n" .. i } end
        local message = core.encode("args", list)
        collectgarbage("generational")
        for _ = 1, 30 do
            assert(core.decode(message))
            assert(core.encode("args", { list, function() return list end }))
        end
        collectgarbage("incremental")
        assert(random.same(list, select(2, core.decode(message))))
    end)
end)
