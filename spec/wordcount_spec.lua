-- examples/wordcount.lua on a small tree: right counts, replaced workers,
-- unreadable files reported, wrong arguments refused.

local function run(line)
    local pipe = assert(io.popen("(" .. line .. ") 2>&1"))
    local text = pipe:read("a")
    local good, _, status = pipe:close()
    return text, good, status
end

local COUNT = "timeout -k 5 60 lua5.4 examples/wordcount.lua "

describe("wordcount", function()
    local dir

    local function write(name, text)
        local file = assert(io.open(dir .. "/" .. name, "wb"))
        file:write(text)
        file:close()
    end

    setup(function()
        dir = run("mktemp -d"):match("%S+")
        run("mkdir " .. dir .. "/sub && chmod -R a+rx " .. dir)
        write("one", "The cat, the CAT and the dog.\n")
        write("sub/two", "the\0dog na\u{EF}ve")
        write("empty", "")
        run("ln -s one " .. dir .. "/link; mkfifo " .. dir .. "/fifo")
        -- Enough for several batches, with a word at every block's edge.
        for i = 1, 8 do
            write("big" .. i, ("ab cd\n"):rep(100000) .. ("x"):rep(1100000))
        end
    end)

    teardown(function()
        run("rm -rf '" .. dir .. "'")
    end)

    it("counts as a serial count does, and replaces workers", function()
        local said, good = run(COUNT .. "-j 2 -m 1 -n 5 " .. dir)
        assert.is_true(good, said)
        assert.is_truthy(said:find("11 files", 1, true), said)
        assert.is_truthy(said:find("800000  ab\n", 1, true), said)
        assert.is_truthy(said:find(" 4  the\n", 1, true), said)
        assert.is_truthy(said:find("both counts are the same", 1, true), said)
        local replaced = said:match("(%d+) workers replaced")
        assert.is_true(tonumber(replaced) >= 1, said)
    end)

    it("reports what it cannot read and goes on", function()
        run("chmod 000 " .. dir .. "/one; chmod 700 " .. dir .. "/sub")
        -- Root reads everything: become nobody for this.
        local as = ""
        if run("id -u"):match("%d+") == "0" then
            as = "setpriv --reuid 65534 --regid 65534 --clear-groups "
            local _, may = run(as .. "test -r examples/wordcount.lua")
            if not may then
                return pending("nobody may not read this checkout")
            end
        end
        local said, good = run(as .. COUNT .. "-j 2 " .. dir)
        run("chmod 644 " .. dir .. "/one; chmod 755 " .. dir .. "/sub")
        assert.is_true(good, said)
        assert.is_truthy(said:find("not read: " .. dir .. "/one: Permission denied",
            1, true), said)
        assert.is_truthy(said:find("not read: [^\n]*sub: Permission denied"), said)
        assert.is_truthy(said:find("800000  ab\n", 1, true), said)
    end)

    it("refuses wrong arguments", function()
        for _, case in ipairs({
            { "/no/such/place", "/no/such/place: No such file or directory" },
            { dir .. "/one", dir .. "/one: not a directory" },
            { "-j 0 /usr", "-j needs a whole number, 1 or more" },
            { "-n", "-n needs a whole number, 1 or more" },
            { "-x", "usage: wordcount.lua" },
            { "/usr /bin", "usage: wordcount.lua" },
        }) do
            local said, good, status = run(COUNT .. case[1])
            assert.is_falsy(good)
            assert.are.equal(2, status)
            assert.is_truthy(said:find(case[2], 1, true), said)
        end
    end)
end)
