-- helper.lua - busted loads this before the specs: the oracles LEDGER and CLEAN
-- run after every test, once its after_each blocks are done. A task without an
-- outcome, or with two, a pool that a test leaves behind, a process, a
-- descriptor, a mapping or a zombie is an error of that test. What a `setup`
-- block or the file itself made is there before and after, and so is no one's
-- fault.

local busted = require("busted")
local audit = require("spec.support.audit")
local clean = require("spec.support.clean")

local before
local strays = {} -- of earlier tests, which have been blamed for them

local function register(when, f)
    busted.publish({ "register", when }, nil, f)
end

register("before_each", function()
    before = clean.snapshot()
end)

-- Raises what is wrong, if anything is; `since` is a snapshot.
local function look(since)
    local right, wrong = audit.check()
    local ok, what = clean.check(since)
    local alone, stray = clean.astray(strays)
    strays = alone and strays or clean.strays()
    if not right then
        error("ledger: " .. wrong, 0)
    elseif not ok then
        error("left behind: " .. what, 0)
    elseif not alone then
        error("left behind: process " .. stray, 0)
    end
end

register("after_each", function()
    look(before)
end)

-- And once more at the end, when `teardown` blocks have ended what `setup` made.
local start = clean.snapshot()
start.maps = math.huge -- the specs load libraries

register("strict_teardown", function()
    look(start)
end)
