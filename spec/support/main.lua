-- main.lua - the program that spec/support/script.lua starts: one function of
-- a spec, with procpool and the specs' C module at hand.

local chunk = assert(loadfile(arg[1], "b"))
io.stdout:setvbuf("line")
return chunk(require("procpool"), require("chelper"), require("spec.support.clean"),
    table.unpack(arg, 2))
