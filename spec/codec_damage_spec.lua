-- The receiver trusts nothing: whatever bytes it is given, there is a value or
-- a reason, in little memory and time.

local describe, it, assert = describe, it, assert
local _ENV = _G -- luacheck: ignore 211
-- (busted gives files an environment, which cannot travel)

local core = require("procpool.core")
local glob = require("posix.glob").glob
local samples = dofile("fuzz/values.lua")

-- Names lead to whatever has that name, so those that ask for a call (a
-- reduced object) are left out where bytes are changed at random.
local messages = {}
for _, sample in ipairs(samples) do
    if sample[1] ~= "reduced" then
        messages[#messages + 1] = { sample[1], assert(core.encode("args", sample[2]())) }
    end
end

-- Decodes; true if it was accepted. Anything but a reason is a failure.
local function decode(message)
    local ok, problem = core.decode(message)
    if ok == nil then
        assert(type(problem) == "string" and #problem > 0)
    end
    return ok ~= nil
end

local function pack_size(n)
    return string.pack("<B I8", 254, n)
end

describe("a message that is cut short", function()
    for _, m in ipairs(messages) do
        it("is refused: " .. m[1], function()
            local message = m[2]
            for size = 0, #message - 1, math.max(1, #message // 2000) do
                assert.is_false(decode(message:sub(1, size)), size)
            end
        end)
    end
end)

describe("a message with more after it", function()
    it("is refused", function()
        for _, m in ipairs(messages) do
            assert.is_false(decode(m[2] .. "\0"))
        end
    end)
end)

describe("a message with changed bytes", function()
    it("does no harm", function()
        local seed = os.time()
        print("# codec_damage_spec: seed " .. seed)
        math.randomseed(seed)
        for _ = 1, 100 do
            for _, m in ipairs(messages) do
                local message = m[2]
                for _ = 1, math.random(2) do
                    local at = math.random(#message)
                    message = message:sub(1, at - 1) .. string.char(math.random(0, 255)) ..
                        message:sub(at + 1)
                end
                decode(message)
            end
        end
    end)

    it("is refused if it is in a function's code", function()
        local message = core.encode("args", function(a, b) return a + b, a .. b end)
        local at = message:find("\27Lua", 1, true)
        local size = #message
        for i = at, size do
            local changed = message:sub(1, i - 1) .. string.char(message:byte(i) ~ 1) ..
                message:sub(i + 1)
            assert.is_false(decode(changed), i)
        end
    end)
end)

describe("random bytes", function()
    it("do no harm", function()
        for _ = 1, 3000 do
            local bytes = {}
            for i = 1, math.random(60) do bytes[i] = string.char(math.random(0, 255)) end
            decode(table.concat(bytes))
        end
    end)
end)

describe("a message that claims much", function()
    -- Decoding must not take more than a small multiple of its size.
    local function bounded(message, limit)
        collectgarbage()
        collectgarbage("stop")
        local before = collectgarbage("count")
        local accepted = decode(message)
        local used = collectgarbage("count") - before
        collectgarbage("restart")
        assert.is_true(used < (limit or 64), ("%g KiB for %d bytes"):format(used, #message))
        return accepted
    end
    local huge = { 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, math.maxinteger, -1 }

    it("values", function()
        for _, n in ipairs { 1, 1000, 1 << 20, 0x7fffffff, 0xffffffff } do
            assert.is_false(bounded(string.pack("<B I4", 255, n)))
            assert.is_false(bounded(string.pack("<B I4", 255, n) .. ("\1"):rep(n > 100 and 100 or 0)))
        end
    end)

    it("items, pairs, bytes", function()
        for _, n in ipairs(huge) do
            local size = pack_size(n)
            assert.is_false(bounded("\1\xae" .. size .. "\0"))          -- items
            assert.is_true(bounded("\1\xae" .. size .. "\xff\xbb"))     -- an empty list
            assert.is_false(bounded("\1\xa8" .. size .. "abc"))         -- a string
            assert.is_false(bounded("\1\xa9" .. size .. "abc"))
            assert.is_false(bounded("\1\xb0\0" .. size .. "abcdefgh"))  -- a function
            assert.is_false(bounded("\1\xb2" .. size .. "\xa0"))        -- arguments
            assert.is_false(bounded("\1\xb4\2" .. size .. "string"))    -- a name
            assert.is_false(bounded("\1\xb8" .. size))                  -- an offset
        end
        for hint = 0, 255 do
            assert.is_true(bounded("\1\xac" .. string.char(hint) .. "\xbb"))
        end
    end)

    it("items again and again", function()
        local nested = ("\xae" .. pack_size(1 << 40) .. "\xff"):rep(5000)
        assert.is_false(bounded("\1" .. nested, 32 * #nested / 1024))
        nested = "\1\xae" .. pack_size(1 << 40) .. "\0" .. ("\xac\xff\xbb"):rep(20000) .. "\xbb"
        assert.is_true(bounded(nested, 64 * #nested / 1024))
    end)

    it("numbers in a run", function()
        assert.is_false(bounded("\1\xae\4\0\xbe\8\xff\xff" .. ("x"):rep(100)))
        assert.is_false(bounded("\1\xae\4\0\xbe\3\1\0xxx\xbb"))
        assert.is_false(bounded("\1\xae\4\0\xbf\xff\xff" .. ("x"):rep(100)))
        assert.is_true(bounded("\1\xae\4\0\xbe\8\0\0\xbb"))
    end)
end)

describe("a message that does not make sense", function()
    local cases = {
        { "nothing", "" },
        { "a value missing", "\2\1" },
        { "no such tag as a value", "\1\xbb" },
        { "a run outside a list", "\1\xbe\1\1\0\1" },
        { "nil as a key", "\1\xac\1\xa0\1\xbb" },
        { "NaN as a key", "\1\xac\1\xa3" .. string.pack("d", 0 / 0) .. "\1\xbb" },
        { "nil as a key, from a list", "\1\xae\1\0\xbc\xa0\1\xbb" },
        { "a key without a value", "\1\xac\1\1\xbb" },
        { "a metatable that is none", "\1\xac\0\xbd\1" },
        { "a metatable that is a function", "\1\xac\0\xbd\xb4\2\2_G\5print" },
        { "a reference to the count", "\1\xb8\0" },
        { "a reference ahead", "\2\xb8\5\xad\0\xbb" },
        { "a reference to itself", "\1\xb8\1" },
        { "a reference to what is not shared", "\2\xac\0\xbb\xb8\1" },
        { "a reference to the middle", "\2\xad\0\xbb\xb8\2" },
        { "a string slot that is not filled", "\1\xc5" },
        { "a string slot that is not filled, long", "\1\xab\x7f" },
        { "no such string slot", "\1\xab\xff" },
        { "a string for no slot", "\1\xaa\xff\1x" },
        { "an upvalue outside a function", "\1\xb6\1" },
        { "a kind of name that is none", "\1\xb4\3\1x\1y" },
        { "a name without its second part", "\1\xb4\2\6string" },
        { "no constructor", "\1\xb2\0" },
        { "a constructor that is none", "\1\xb2\1\5" },
        { "a size that is none", "\1\xa8\xff\1x" },
        { "a function that is text", "\1\xb0\0\8" .. ("\0"):rep(4) .. "return 1" },
    }
    for _, case in ipairs(cases) do
        it("is refused: " .. case[1], function()
            assert.is_false(decode(case[2]))
        end)
    end

    it("is refused: upvalues that are not the function's", function()
        local x = 1
        local message = core.encode("args", function() return x end)
        assert.equal("\1\xb0\1", message:sub(1, 3))
        assert.is_false(decode(message:sub(1, 2) .. "\2" .. message:sub(4) .. "\xb6\1"))
        assert.is_false(decode(message:sub(1, 2) .. "\0" .. message:sub(4, -3)))
    end)

    it("is refused: an upvalue as a value, a value as an upvalue", function()
        local x = { 1 }
        local f, g = function() return x end, function() x = 1 end
        local message = core.encode("args", f, g)
        local at = message:find("\xb9", 4, true)
        assert.equal(at, #message - (message:byte(at + 1) < 252 and 1 or 3))
        local as_value = message:sub(1, at - 1) .. "\xb6\xb8" .. message:sub(at + 1)
        assert.is_false(decode(as_value))
        message = core.encode("args", { x, x }, f)
        at = message:find("\xb6\xb8", 1, true)
        assert.is_false(decode(message:sub(1, at - 1) .. "\xb9" .. message:sub(at + 2)))
    end)
end)

describe("what has made the decoder fail", function()
    for _, path in ipairs(glob("fuzz/crashers/*", 0) or {}) do
        it("does so no more: " .. path, function()
            local file = assert(io.open(path, "rb"))
            local bytes = file:read("a")
            file:close()
            decode(bytes:sub(2))    -- the first say what the fuzzer does with it
            decode(bytes:sub(3))
        end)
    end
end)
