-- helper.lua - busted loads this before the specs: the oracle CLEAN runs
-- after every test, once its after_each blocks are done. A pool that a test
-- leaves behind, a descriptor, a mapping or a zombie is an error of that test.
-- What a `setup` block or the file itself made is there before and after, and
-- so is no one's fault.

local busted = require("busted")
local clean = require("spec.support.clean")

local before

local function register(when, f)
    busted.publish({ "register", when }, nil, f)
end

register("before_each", function()
    before = clean.snapshot()
end)

register("after_each", function()
    local ok, what = clean.check(before)
    if not ok then
        error("left behind: " .. what, 0)
    end
end)
