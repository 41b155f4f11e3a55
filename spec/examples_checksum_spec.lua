-- examples/checksum.lua: the sums are sha256sum's, a file that takes too long or
-- cannot be read is reported, and harms no other.

local command = require("spec.support.command")
local run, write = command.run, command.write

describe("checksum", function()
    local dir, remove

    setup(function()
        dir, remove = command.directory()
        assert(os.execute("mkdir " .. dir .. "/sub"))
        -- Around the edges of SHA-256's blocks, and of the blocks read.
        for _, n in ipairs({ 0, 1, 55, 56, 63, 64, 119, 120, 65535, 65536, 65592 }) do
            write(("%s/sub/%06d"):format(dir, n), ("%c"):rep(16):format(0, 255, 10, 13,
                1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14):rep(n // 16 + 1):sub(1, n))
        end
        write(dir .. "/with space", "hello\n")
        run("ln -s sub " .. dir .. "/link; mkfifo " .. dir .. "/fifo")
    end)

    teardown(function()
        remove()
    end)

    it("agrees with sha256sum", function()
        local out, err, status = run("$LUA examples/checksum.lua -q -j 2 " .. dir)
        assert.are.equal("", err)
        assert.are.equal(0, status)
        local expected = run("find " .. dir .. " -type f | LC_ALL=C sort | "
            .. "while read -r f; do sha256sum \"$f\"; done")
        assert.are.equal(expected, out)
        local sums = write(dir .. "/sub/000000", "") and os.tmpname()
        write(sums, out)
        local _, said, good = run("sha256sum -c --quiet " .. sums)
        os.remove(sums)
        assert.are.equal("", said)
        assert.are.equal(0, good)
    end)

    it("gives up a file that takes too long, and no other", function()
        local big = dir .. "/sub/big"
        run("truncate -s 4G " .. big)
        local out, err, status = run("$LUA examples/checksum.lua -q -j 2 -t 0.3 " .. dir)
        os.remove(big)
        assert.are.equal("checksum: " .. big .. ": took too long\n", err)
        assert.are.equal(1, status)
        assert.are.equal(12, select(2, out:gsub("\n", "")))
    end)

    it("reports what it cannot read", function()
        local out, err, status = run("$LUA examples/checksum.lua -q " .. dir .. "/none")
        assert.are.equal("", out)
        assert.are.equal("checksum: " .. dir .. "/none: No such file or directory\n", err)
        assert.are.equal(1, status)
    end)

    it("draws no bar into a pipe, but plain lines", function()
        local _, err = run("$LUA examples/checksum.lua " .. dir .. " >/dev/null")
        assert.is_truthy(err:find("12/12", 1, true), err)
        assert.is_falsy(err:find("\r", 1, true))
    end)

    it("refuses wrong arguments", function()
        for _, case in ipairs({
            { "", "usage: checksum.lua" },
            { "-x /tmp", "usage: checksum.lua" },
            { "-t 0 /tmp", "-t needs a number greater than 0" },
            { "-j", "-j needs a number greater than 0" },
        }) do
            local _, err, status = run("$LUA examples/checksum.lua " .. case[1])
            assert.are.equal(2, status)
            assert.is_truthy(err:find(case[2], 1, true), err)
        end
    end)
end)
