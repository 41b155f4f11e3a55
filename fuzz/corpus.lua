-- Writes the fuzzer's corpus: lua5.4 fuzz/corpus.lua DIRECTORY
--
-- One message for each of the specs' values, and one with the names that the
-- fuzzer's Lua state knows (codec_fuzz.c). LUA_CPATH leads to procpool.core.

local core = require("procpool.core")
local values = dofile("fuzz/values.lua")

local directory = assert(arg[1], "usage: corpus.lua DIRECTORY")
local count = 0

local function write(...)
    local message, problem = core.encode("args", ...)
    if not message then
        error(problem)
    elseif #message > 16384 then
        return
    end
    count = count + 1
    local file = assert(io.open(("%s/value%03d"):format(directory, count), "wb"))
    file:write("\0", message)
    file:close()
end

for _, sample in ipairs(values) do
    write(sample[2]())
end

local Point = {}
Point.__index = Point
local function make(a, b) return { a = a, b = b } end
local Made = { __reduce = function(o) return make, o.a, o.b end }
package.loaded.shapes = { Point = Point, make = make, Made = Made }
local registered = {}
core.register("R", registered)

local point = setmetatable({ x = 1 }, Point)
local made = setmetatable({ a = 1, b = point }, Made)
write(point, { point }, Point)
write(made, { made, made }, make)
write(registered, print, math.floor, math, _G, setmetatable({}, registered))
