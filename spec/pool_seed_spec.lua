-- seed: the same random numbers, whatever the workers, chunks, recycling and
-- retries; without it each life has its own.

local describe, it, assert = describe, it, assert
local teardown = teardown
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local pools = require("spec.support.pools")
local procpool = require("procpool")

local function range(n)
    local list = {}
    for i = 1, n do list[i] = i end
    return list
end

local function die()
    pools.kill(require("procpool").worker.pid)
    while true do end
end

describe("a seed", function()
    teardown(pools.cleanup)

    local function draw() return math.random(1 << 50) end

    local function draws(processes, opts, n, chunksize)
        opts.seed = opts.seed or 42
        local pool <close> = procpool.new(processes, opts)
        return pool:map(opts.draw or draw, range(n), chunksize)
    end

    it("gives the same numbers for any number of workers and any chunksize", function()
        local expected = draws(1, {}, 40, 1)
        local seen = {}
        for i = 1, 40 do
            assert.is_nil(seen[expected[i]])
            seen[expected[i]] = true
        end
        for _, processes in ipairs { 0, 1, 2, 4 } do
            for _, chunksize in ipairs { 1, 7, 40 } do
                assert.same(expected, draws(processes, {}, 40, chunksize))
            end
            assert.same(expected, draws(processes, {}, 40))
        end
    end)

    it("gives them with recycling, too", function()
        local expected = draws(1, {}, 40, 1)
        for _, limit in ipairs { 1, 3 } do
            for _, processes in ipairs { 0, 2 } do
                assert.same(expected, draws(processes, { maxtasksperchild = limit }, 40, 7))
            end
        end
    end)

    it("gives them with retries, too", function()
        local expected = draws(1, {}, 20, 1)
        local pool <close> = procpool.new(2, { seed = 42, retries = 1 })
        assert.same(expected, pool:map(function(x)
            local number = math.random(1 << 50)
            if x % 5 == 0 and require("procpool").worker.attempt == 1 then die() end
            return number
        end, range(20), 4))
    end)

    it("numbers tasks over all kinds of calls", function()
        local function all(processes, chunksize)
            local pool <close> = procpool.new(processes, { seed = 7 })
            local out = { pool:apply(draw), pool:apply_async(draw):get() }
            for _, v in ipairs(pool:map(draw, range(5), chunksize)) do out[#out + 1] = v end
            for _, v in pool:imap(draw, range(5), { chunksize = chunksize }) do out[#out + 1] = v end
            out[#out + 1] = pool:apply(draw)
            return out
        end
        local expected = all(1, 1)
        assert.equal(13, #expected)
        assert.same(expected, all(2, 3))
        assert.same(expected, all(0, 5))
        assert.same(expected, all(1, 5))
    end)

    it("may be any integer, and matters", function()
        local seen = {}
        for _, seed in ipairs { 0, 1, -1, math.maxinteger, math.mininteger, 3.0 } do
            local first = draws(1, { seed = seed }, 3, 1)
            assert.same(first, draws(2, { seed = seed }, 3, 1))
            assert.is_nil(seen[first[1]])
            seen[first[1]] = true
        end
    end)

    it("none: every life draws its own numbers", function()
        local seen, lives = {}, 0
        for _, opts in ipairs { { maxtasksperchild = 1 }, {} } do
            local pool <close> = procpool.new(2, opts)
            for _, v in ipairs(pool:map(draw, range(50), 1)) do
                assert.is_nil(seen[v])
                seen[v], lives = true, lives + 1
            end
        end
        assert.equal(100, lives)
    end)

    it("none: not the parent's numbers either, whose sequence goes on", function()
        math.randomseed(99)
        local expected = { math.random(1 << 50), math.random(1 << 50), math.random(1 << 50) }
        math.randomseed(99)
        local pool <close> = procpool.new(2)
        local list = pool:map(draw, range(10), 1)
        for i = 1, 3 do assert.equal(expected[i], math.random(1 << 50)) end
        for i = 1, 10 do
            for k = 1, 3 do assert.not_equal(expected[k], list[i]) end
        end
    end)

    it("leaves the initializer repeatable as well", function()
        local function first()
            local pool <close> = procpool.new(1, {
                seed = 5, initializer = function()
                    require("procpool").worker.state.drawn = math.random(1 << 50)
                end,
            })
            return pool:apply(function() return require("procpool").worker.state.drawn end)
        end
        assert.equal(first(), first())
    end)
end)
