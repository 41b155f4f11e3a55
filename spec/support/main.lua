-- main.lua - the program that spec/support/script.lua starts: one function of
-- a spec, with procpool and the specs' C module at hand. When it returns, the
-- oracle LEDGER looks at the pools it has ended.

local audit = require("spec.support.audit")
local chunk = assert(loadfile(arg[1], "b"))
for i = 1, math.huge do
    local name = debug.getupvalue(chunk, i)
    if not name then
        break
    end
    debug.setupvalue(chunk, i, name == "_ENV" and _G or _G[name])
end
io.stdout:setvbuf("line")
chunk(require("procpool"), require("chelper"), require("spec.support.clean"),
    table.unpack(arg, 2))
local right, wrong = audit.check()
if not right then
    error("ledger: " .. wrong, 0)
end
