-- Wrong arguments: every public function names what is wrong, and blames the
-- line of the caller.

local procpool = require("procpool")

local function message_of(f, ...)
    local ok, err = pcall(f, ...)
    assert.is_false(ok)
    return err
end

local function rejects(text, f, ...)
    local err = message_of(f, ...)
    assert.is_string(err)
    assert.is_truthy(err:find(text, 1, true), ("%q lacks %q"):format(err, text))
end

describe("procpool.new", function()
    it("names an unknown option's nearest known one", function()
        rejects("unknown option 'maxtaskperchild' to 'procpool.new' (did you mean 'maxtasksperchild'?)",
            procpool.new, { maxtaskperchild = 3 })
        rejects("did you mean 'grace'", procpool.new, { garce = 3 })
        rejects("did you mean 'initializer'", procpool.new, { Initialiser = print })
        rejects("unknown option '1' to", procpool.new, 1, { "x" })
    end)

    it("blames the user's line", function()
        local line = debug.getinfo(1, "l").currentline + 1
        local err = message_of(function() procpool.new({ nonsense = 1 }) end)
        assert.is_truthy(err:find("options_spec.lua:" .. line .. ": ", 1, true), err)
    end)

    it("rejects a wrong number of processes", function()
        for _, bad in ipairs { -1, 0.5, "12", true, 0 / 0, 2 ^ 40, math.huge } do
            rejects("'processes' to 'procpool.new' (an integer from 0 to", procpool.new, bad)
            rejects("'processes' to 'procpool.new' (an integer from 0 to", procpool.new,
                { processes = bad })
        end
        rejects("given twice", procpool.new, 2, { processes = 2 })
        rejects("bad argument 'opts' to 'procpool.new' (a table expected, got 3)", procpool.new, 2, 3)
    end)

    local wrong = {
        initializer = { 1, "x", {} }, initargs = { 1, "x" },
        inittimeout = { 0, -1, "1", 0 / 0 }, finalizer = { 1 },
        maxtasksperchild = { 0, -1, 1.5, "10", true, 0 / 0 },
        maxageperchild = { 0, -1, "1", 0 / 0 },
        maxmemoryperchild = { 0, -1, 1.5, "1" },
        recycleif = { 1, "x" }, recyclejitter = { -0.1, 1, 2, "0", 0 / 0 },
        idletimeout = { 0, -1, "1" }, minprocesses = { -1, 1.5, "1", 3 },
        timeout = { 0, -1, "1", true, 0 / 0 }, grace = { -1, "1", 0 / 0 },
        retries = { -1, 0.5, "1" }, seed = { 0.5, "1", 0 / 0 },
        maxpending = { 0, -1, 1.5, "1" }, name = { 1, true, "a\0b" },
        onevent = { 1, "x" },
    }
    for name, values in pairs(wrong) do
        it("rejects a wrong " .. name, function()
            for _, bad in ipairs(values) do
                rejects(("bad option '%s' to 'procpool.new' ("):format(name),
                    procpool.new, 2, { [name] = bad })
            end
        end)
    end

    it("says what was expected and what it got", function()
        rejects("(an integer >= 1 expected, got -1)", procpool.new, { maxtasksperchild = -1 })
        rejects("(a number of seconds > 0 expected, got NaN)", procpool.new, { timeout = 0 / 0 })
        rejects('(a function expected, got string "x")', procpool.new, { initializer = "x" })
        rejects("(an integer from 0 to processes, 2 expected, got 3)", procpool.new, 2,
            { minprocesses = 3 })
        rejects("'initargs.n' to 'procpool.new'", procpool.new, { initargs = { n = -1 } })
    end)

    it("takes floats with an integral value, and callable tables", function()
        local made = 0
        local maker = setmetatable({}, { __call = function() made = made + 1 end })
        local pool <close> = procpool.new(0.0, { maxtasksperchild = 2.0, initializer = maker })
        assert.equal(7, pool:apply(function() return 7 end))
        assert.equal(1, made)
    end)
end)

describe("Pool methods", function()
    local pool
    setup(function() pool = procpool.new(0) end)
    teardown(function() pool:terminate() end)

    it("reject what is not a function", function()
        for _, name in ipairs { "apply", "apply_async", "map", "map_async", "starmap",
            "starmap_async", "imap", "imap_unordered" } do
            for _, bad in ipairs { 1, "print", {}, true } do
                rejects(("bad argument 'f' to '%s' (a function expected, got "):format(name),
                    pool[name], pool, bad, {})
            end
            rejects("got no value", pool[name], pool)
        end
    end)

    it("reject what is not a list of arguments", function()
        for _, name in ipairs { "apply", "apply_async" } do
            rejects(("bad argument 'args' to '%s' (a table expected, got 1)"):format(name),
                pool[name], pool, print, 1)
            rejects("bad argument 'args.n'", pool[name], pool, print, { n = -1 })
            rejects("bad argument 'args.n'", pool[name], pool, print, { n = "1" })
            rejects("bad argument 'args.n'", pool[name], pool, print, { n = 1 << 40 })
        end
    end)

    it("reject what is not items", function()
        for _, name in ipairs { "map", "map_async", "starmap", "starmap_async", "imap",
            "imap_unordered" } do
            rejects(("bad argument 'items' to '%s' (a list or an iterator function expected"):format(name),
                pool[name], pool, print, 12)
            rejects("bad argument 'items.n'", pool[name], pool, print, { n = 1.5 })
            rejects("bad argument 'items.n'", pool[name], pool, print, { n = -1 })
        end
    end)

    it("reject a wrong chunksize", function()
        for _, name in ipairs { "map", "map_async", "starmap", "starmap_async" } do
            for _, bad in ipairs { 0, -1, 1.5, 0 / 0 } do
                rejects(("bad argument 'chunksize' to '%s' (an integer >= 1 expected"):format(name),
                    pool[name], pool, print, {}, bad)
                rejects(("bad option 'chunksize' to '%s'"):format(name),
                    pool[name], pool, print, {}, { chunksize = bad })
            end
            rejects("bad argument 'chunksize'", pool[name], pool, print, {}, "2")
        end
        rejects("bad option 'buffersize' to 'imap'", pool.imap, pool, print, {}, { buffersize = 0 })
        rejects("bad argument 'opts' to 'imap' (a table expected, got 3)", pool.imap, pool, print, {}, 3)
    end)

    it("reject unknown options, each call its own", function()
        rejects("unknown option 'chunksiz' to 'map' (did you mean 'chunksize'?)",
            pool.map, pool, print, {}, { chunksiz = 1 })
        rejects("unknown option 'callback' to 'map'", pool.map, pool, print, {}, { callback = print })
        rejects("unknown option 'errors' to 'apply'", pool.apply, pool, print, {}, { errors = "raise" })
        rejects("unknown option 'callbak' to 'apply_async' (did you mean 'callback'?)",
            pool.apply_async, pool, print, {}, { callbak = print })
        rejects("bad option 'errors' to 'map' (\"raise\" or \"collect\" expected",
            pool.map, pool, print, {}, { errors = "ignore" })
        rejects("bad option 'progress' to 'map' (true or a function expected, got false)",
            pool.map, pool, print, {}, { progress = false })
        rejects("bad option 'timeout' to 'apply'", pool.apply, pool, print, {}, { timeout = 0 })
        rejects("bad option 'retries' to 'apply'", pool.apply, pool, print, {}, { retries = -1 })
    end)

    it("reject wrong waits", function()
        local result = pool:apply_async(function() end)
        local it = pool:imap(function(x) return x end, { 1 })
        for _, bad in ipairs { -1, 0 / 0, "1", true } do
            rejects("bad argument 'timeout' to 'get'", result.get, result, bad)
            rejects("bad argument 'timeout' to 'wait'", result.wait, result, bad)
            rejects("bad argument 'timeout' to 'poll'", pool.poll, pool, bad)
            rejects("bad argument 'timeout' to 'join'", pool.join, pool, bad)
            rejects("bad argument 'timeout' to 'next'", it.next, it, bad)
        end
    end)

    it("reject a wrong worker and size", function()
        for _, bad in ipairs { 0, 1.5, "1", 2 } do
            rejects("bad argument 'id' to 'recycle'", pool.recycle, pool, bad)
        end
        for _, bad in ipairs { 0, -1, 1.5, "1", 1 << 40 } do
            rejects("bad argument 'n' to 'resize'", pool.resize, pool, bad)
        end
        rejects("bad argument 'n' to 'resize'", pool.resize, pool)
    end)

    it("ask for the colon when it was forgotten", function()
        rejects("call methods with a colon", pool.map, print, { 1 })
        rejects("call methods with a colon", pool.close)
    end)

    it("refuse join before close", function()
        rejects("close or terminate it before join", pool.join, pool)
    end)
end)

describe("Every option of every method", function()
    local pool
    setup(function() pool = procpool.new(0) end)
    teardown(function() pool:terminate() end)

    local task = {
        timeout = { 0, -1, "1", true, 0 / 0 }, grace = { -1, "1", false, 0 / 0 },
        retries = { -1, 0.5, "1", true, 0 / 0 },
    }
    local callbacks = { callback = { 1, "print", {}, false }, error_callback = { 1, "print", {}, false } }
    local chunks = { chunksize = { 0, -1, 1.5, "2", true, 0 / 0 } }
    local maps = { errors = { "ignore", true, 1, "" }, progress = { false, "true", 1, {} } }
    local buffer = { buffersize = { 0, -1, 1.5, "2", true, 0 / 0 } }
    local methods = {
        apply = { task }, apply_async = { task, callbacks },
        map = { task, chunks, maps }, starmap = { task, chunks, maps },
        map_async = { task, chunks, maps, callbacks },
        starmap_async = { task, chunks, maps, callbacks },
        imap = { task, chunks, buffer }, imap_unordered = { task, chunks, buffer },
    }
    for name, groups in pairs(methods) do
        it("is checked: " .. name, function()
            for _, group in ipairs(groups) do
                for option, values in pairs(group) do
                    for _, bad in ipairs(values) do
                        rejects(("bad option '%s' to '%s' ("):format(option, name),
                            pool[name], pool, print, {}, { [option] = bad })
                    end
                end
            end
            for _, unknown in ipairs { "nonsense", "time", "", 1, true } do
                rejects(("unknown option '%s' to '%s'"):format(tostring(unknown), name),
                    pool[name], pool, print, {}, { [unknown] = 1 })
            end
            for _, bad in ipairs { "x", true, print } do
                local err = message_of(pool[name], pool, print, {}, bad)
                assert.is_truthy(err:find(("^.*bad argument '%%l+' to '%s' %%(.*a table"):format(name)), err)
            end
            for option in pairs(task) do
                rejects(("did you mean '%s'?"):format(option), pool[name], pool, print, {}, { [option .. "s"] = 1 })
            end
        end)
    end

    it("is no argument of a neighbour: callbacks, chunks, progress", function()
        for name, groups in pairs(methods) do
            for option in pairs { callback = 1, error_callback = 1, chunksize = 1, errors = 1,
                progress = 1, buffersize = 1 } do
                local known = false
                for _, group in ipairs(groups) do known = known or group[option] ~= nil end
                if not known then
                    rejects(("unknown option '%s' to '%s'"):format(option, name),
                        pool[name], pool, print, {}, { [option] = 1 })
                end
            end
        end
    end)

    it("blames the user's line, from every method", function()
        for name in pairs(methods) do
            local line = debug.getinfo(1, "l").currentline + 1
            local err = message_of(function() pool[name](pool, print, {}, { nonsense = 1 }) end)
            assert.is_truthy(err:find("options_spec.lua:" .. line .. ": ", 1, true), err)
        end
    end)
end)

describe("Methods called on something else", function()
    it("ask for the colon, every one of them", function()
        local pool = procpool.new(0)
        for _, name in ipairs { "apply", "apply_async", "map", "map_async", "starmap",
            "starmap_async", "imap", "imap_unordered", "close", "terminate", "join", "resize",
            "recycle", "poll", "fileno", "state", "stats" } do
            for _, bad in ipairs { 1, "x", {}, print, true } do
                rejects("bad argument 'self' (a procpool.Pool expected, got " .. type(bad), pool[name], bad)
            end
            rejects("call methods with a colon", pool[name])
        end
        local result, map, iter = pool:apply_async(type, { 1 }), pool:map_async(type, { 1 }), pool:imap(type, { 1 })
        for _, bad in ipairs { 1, "x", {}, print, true } do
            for _, name in ipairs { "get", "wait", "ready", "successful", "cancel", "status" } do
                rejects("bad argument 'self' (a procpool.AsyncResult expected, got " .. type(bad), result[name], bad)
                rejects("bad argument 'self' (a procpool.AsyncResult expected, got " .. type(bad), map[name], bad)
            end
            for _, name in ipairs { "next", "close" } do
                rejects("bad argument 'self' (a procpool.Imap expected, got " .. type(bad), iter[name], bad)
            end
        end
        rejects("call methods with a colon", result.get)
        rejects("call methods with a colon", iter.next)
        pool:terminate()
    end)
end)

describe("procpool.new, given other arguments", function()
    it("names what is wrong", function()
        rejects("'processes' to 'procpool.new' (an integer from 0 to", procpool.new, print)
        rejects("'processes' to 'procpool.new' (an integer from 0 to", procpool.new, 1025)
        rejects("bad argument 'opts' to 'procpool.new'", procpool.new, nil, 3)
        rejects("bad argument 'opts' to 'procpool.new'", procpool.new, 1, "x")
        rejects("'minprocesses' to 'procpool.new' (an integer from 0 to processes, 1 expected, got 2)",
            procpool.new, 1, { minprocesses = 2 })
    end)

    it("knows every option's nearest misspelling", function()
        for name in pairs(require("procpool.options").POOL) do
            local missing, doubled = name:sub(1, -2), name .. "x"
            for _, wrong in ipairs { missing, doubled } do
                if not require("procpool.options").POOL[wrong] then
                    rejects(("unknown option '%s' to 'procpool.new' (did you mean '%s'?)"):format(wrong, name),
                        procpool.new, { [wrong] = 1 })
                end
            end
        end
    end)

    it("starts nothing when an argument is wrong", function()
        local before = #require("spec.support.pools").children()
        pcall(procpool.new, 4, { maxtasksperchild = 0 })
        pcall(procpool.new, 4, { nonsense = 0 })
        assert.equal(before, #require("spec.support.pools").children())
    end)
end)

describe("procpool.register", function()
    it("names a wrong argument", function()
        rejects("bad argument 'name' to 'procpool.register'", procpool.register, 1, {})
        rejects("bad argument 'name' to 'procpool.register'", procpool.register, "", {})
        rejects("bad argument 'value' to 'procpool.register' (a table, function or userdata expected, got 1)",
            procpool.register, "one", 1)
    end)
end)

describe("procpool.await", function()
    it("names a wrong argument", function()
        rejects("bad argument 'result' to 'procpool.await'", procpool.await, {})
        rejects("bad argument 'result' to 'procpool.await'", procpool.await)
    end)
end)
