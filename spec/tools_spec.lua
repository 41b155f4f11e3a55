-- The test runner itself: a file that crashes, hangs, says nothing or leaves a
-- process behind is a failure, whatever else it printed. And the set-up says
-- nothing when there is nothing to do.

local function run(line)
    local pipe = assert(io.popen("(" .. line .. ") 2>&1"))
    local text = pipe:read("a")
    local good, _, status = pipe:close()
    return text, good, status
end

describe("tools/test", function()
    local dir

    setup(function()
        dir = run("mktemp -d"):match("%S+")
    end)

    teardown(function()
        run("rm -rf '" .. dir .. "'")
    end)

    -- Runs one spec file with the given text; returns what the runner said.
    local function verdict(text)
        local path = dir .. "/some_spec.lua"
        local file = assert(io.open(path, "w"))
        file:write(text)
        file:close()
        return run("TEST_LEAST= TEST_LIMIT=20 tools/test " .. path)
    end

    it("sums what passed, and ends with the sum", function()
        local said, good = verdict([[
            describe("s", function()
                it("a", function() end)
                it("b", function() end)
                pending("c")
            end)]])
        assert.is_true(good, said)
        assert.is_truthy(said:find("\n1 skipped\n2 passed, 0 failed\n$"), said)
    end)

    it("shows a failure in full and fails", function()
        local said, good = verdict([[
            describe("s", function()
                it("a", function() end)
                it("b", function() error("out of cheese") end)
            end)]])
        assert.is_falsy(good)
        assert.is_truthy(said:find("out of cheese", 1, true), said)
        assert.is_truthy(said:find("\n1 passed, 1 failed\n"), said)
    end)

    it("fails a file that ends early, even with status 0", function()
        local said, good = verdict([[
            it("a", function() end)
            it("b", function() os.exit(0) end)]])
        assert.is_falsy(good)
        assert.is_truthy(said:find("ended before it had told", 1, true), said)
        assert.is_truthy(said:find("1 failed\n"), said)
    end)

    it("fails a file that dies by a signal", function()
        local said, good = verdict([[
            it("a", function() end)
            it("b", function()
                local pid = io.open("/proc/self/stat"):read("n")
                os.execute("kill -USR1 " .. pid)
            end)]])
        assert.is_falsy(good)
        assert.is_truthy(said:find("ended with status 138", 1, true), said)
    end)

    it("ends a file that hangs", function()
        local said, good = verdict([[
            -- limit: 1 s
            it("a", function() while true do end end)]])
        assert.is_falsy(good)
        assert.is_truthy(said:find("out of time after 1 s", 1, true), said)
    end)

    it("fails a file that has no tests", function()
        local said, good = verdict("local _ = 1")
        assert.is_falsy(good)
        assert.is_truthy(said:find("told no results", 1, true), said)
    end)

    it("finds and ends what a file leaves behind", function()
        local said, good = verdict([[
            it("a", function()
                os.execute("setsid sleep 1000 >/dev/null 2>&1 &")
            end)]])
        assert.is_falsy(good)
        local pid = said:match("# left behind: (%d+) sleep 1000")
        assert.is_truthy(pid, said)
        -- Gone, or dead and waiting for its reaper.
        local file = io.open("/proc/" .. pid .. "/cmdline")
        assert.are.equal("", file and file:read("a") or "")
    end)

    it("refuses a file that is not there", function()
        local said, good = run("tools/test spec/no_such_spec.lua")
        assert.is_falsy(good)
        assert.is_truthy(said:find("there is no spec/no_such_spec.lua", 1, true))
    end)
end)

describe("tools/setup", function()
    it("says nothing when everything is there", function()
        local said, good = run("tools/setup test")
        assert.are.equal("", said)
        assert.is_true(good)
    end)

    it("says what to install where it cannot", function()
        -- A PATH with what the script uses, but no compiler and no apt-get.
        local bin = run("mktemp -d"):match("%S+")
        run("for t in sh id sort paste env mktemp rm cat; do"
            .. " ln -s $(command -v $t) " .. bin .. "; done")
        local said, good, status = run("env PATH=" .. bin .. " sh tools/setup run")
        run("rm -rf " .. bin)
        assert.is_falsy(good)
        assert.are.equal(1, status)
        assert.is_truthy(said:find("please install by hand: .*gcc"), said)
    end)
end)
