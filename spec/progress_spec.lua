-- Progress: what a line says at which width, and when it is shown.

local procpool = require("procpool")
local progress = require("procpool.progress")

local function state(changes)
    local s = {
        done = 420, total = 1000, rate = 1523.4, left = 12.4, elapsed = 8,
        replaced = 3, failed = 1,
    }
    for k, v in pairs(changes or {}) do s[k] = v end
    return s
end

describe("a line of progress", function()
    it("shows everything and a bar on a wide terminal", function()
        local line = progress.line(state(), 199)
        assert.equal(" 42%  [################------------------------]  420/1000"
            .. "  1523/s  0:12 left  3 replaced  1 failed", line)
    end)

    it("has a shorter bar at 80 columns", function()
        local line = progress.line(state(), 79)
        assert.is_true(#line <= 79)
        assert.is_truthy(line:find("%[#+%-+%]"), line)
        for _, part in ipairs { "42%", "420/1000", "1523/s", "0:12 left", "3 replaced", "1 failed" } do
            assert.is_truthy(line:find(part, 1, true), line)
        end
    end)

    it("drops the least important parts at 40 columns", function()
        local line = progress.line(state(), 39)
        assert.equal(" 42%  420/1000  0:12 left  1 failed", line)
    end)

    it("fits any width, down to the count", function()
        for width = 1, 200 do
            local line = progress.line(state(), width)
            assert.is_true(#line <= math.max(width, #"420/1000"), line)
            assert.is_truthy(line:find("420/1000", 1, true))
        end
    end)

    it("is modest while the items are still being read", function()
        local line = progress.line(state { total = false, left = false, replaced = 0, failed = 0 }, 79)
        assert.equal("420 done  1523/s", line)
    end)

    it("says at the end how long it took", function()
        local line = progress.line(state { done = 1000, over = true, elapsed = 3725,
            replaced = 0, failed = 0 }, 60)
        assert.equal("100%  [" .. ("#"):rep(24) .. "]  1000/1000  1523/s  1:02:05", line)
    end)

    it("copes with nothing and with much", function()
        assert.equal("100%  0/0", progress.line(state { done = 0, total = 0, rate = false,
            left = false, replaced = 0, failed = 0 }, 12))
        local line = progress.line(state { rate = 2.5e6, left = 1e7 }, 199)
        assert.is_truthy(line:find("2.5M/s", 1, true))
        assert.is_truthy(line:find("> 99 h left", 1, true))
        assert.is_truthy(progress.line(state { rate = 0.25 }, 199):find("15.0/min", 1, true))
    end)
end)

describe("progress of a map", function()
    it("calls a function with what is done", function()
        local pool <close> = procpool.new(0)
        local seen = {}
        pool:map(math.abs, { 1, 2, 3 }, { progress = function(done, total)
            seen[#seen + 1] = done .. "/" .. total
        end })
        assert.same({ "1/3", "2/3", "3/3" }, seen)
    end)

    it("ends when the map fails", function()
        local pool <close> = procpool.new(0)
        local calls = 0
        pcall(pool.map, pool, error, { 1, 2, 3 }, { progress = function() calls = calls + 1 end })
        local before = calls
        pool:apply(math.abs, { 1 })
        assert.equal(before, calls)
        assert.is_nil(pool._intake.displays[1])
    end)

    it("ends when the items raise", function()
        local pool <close> = procpool.new(0)
        local i = 0
        pcall(pool.map, pool, math.abs, function()
            i = i + 1
            if i == 3 then error("no more") end
            return i
        end, { progress = function() end })
        pool:apply(math.abs, { 1 })
        assert.is_nil(pool._intake.displays[1])
    end)

    it("raises the function's error and loses no result", function()
        local pool <close> = procpool.new(0)
        local result = pool:apply_async(math.abs, { -7 })
        local ok, err = pcall(pool.map, pool, math.abs, { 1 }, { progress = function() error("display", 0) end })
        assert.is_false(ok)
        assert.equal("display", err)
        assert.equal(7, result:get())
    end)
end)
