-- peers: who takes part, how each is started, and how to see it is here.
--
-- kind says what the workers are: "process", "thread", or "none" for what is
-- measured beside the pools as a yardstick. speed is about how fast a peer gets
-- through many small tasks: those that are slow are given fewer of them. A
-- yardstick takes part only in rows that name it, in place of a case of theirs.

local peers = {}

local lua = os.getenv("LUA") or "lua5.4"
local build = (os.getenv("BUILD") or "build") .. "/bench"
local python = "/usr/bin/python3"

peers.list = {
    { name = "procpool", kind = "process", speed = 1,
        start = { lua, "bench/peers/procpool_pool.lua" },
        probe = lua .. " -e 'require \"procpool\"'" },
    { name = "luaposix-pipes", kind = "process", speed = 0.5,
        start = { lua, "bench/peers/luaposix_pipes.lua" },
        probe = lua .. " -e 'require \"posix\" require \"cjson\"'" },
    { name = "multiprocessing", kind = "process", speed = 0.1,
        start = { python, "bench/peers/mp_pool.py" },
        probe = python .. " -c 'import multiprocessing'" },
    { name = "concurrent.futures", kind = "process", speed = 0.05,
        start = { python, "bench/peers/futures.py" },
        probe = python .. " -c 'import concurrent.futures'" },
    { name = "MCE", kind = "process", speed = 0.1,
        start = { "perl", "bench/peers/mce.pl" },
        probe = "perl -MMCE::Child -MMCE::Channel -e 1" },
    { name = "workerpool", kind = "process", speed = 0.05,
        start = { "node", "bench/peers/workerpool.js" },
        probe = "node -e 'require(\"./node/node_modules/workerpool\")'" },
    { name = "luv", kind = "thread", speed = 0.5,
        start = { lua, "bench/peers/luv_work.lua" },
        probe = lua .. " -e 'require \"luv\" require \"cjson\"'" },
    { name = "piscina", kind = "thread", speed = 0.1,
        start = { "node", "bench/peers/piscina.js" },
        probe = "node -e 'require(\"./node/node_modules/piscina\")'" },
    { name = "bare C", kind = "none", speed = 0.2,
        start = { build .. "/bare" }, probe = "test -x ./bare" },
    { name = "one Lua loop", kind = "none", speed = 1,
        start = { lua, "bench/peers/luaposix_pipes.lua" },
        probe = lua .. " -e 'require \"posix\"'",
        cases = { map = "serial", async = "serial" } },
    { name = "apart", kind = "none", speed = 1,
        start = { lua, "bench/peers/luaposix_pipes.lua" },
        probe = lua .. " -e 'require \"posix\"'",
        cases = { cpu = "independent" } },
}

for _, peer in ipairs(peers.list) do
    peers[peer.name] = peer
end

--- Builds what is built, and finds out who is here: sets `here` of each.
function peers.look()
    os.execute("mkdir -p '" .. build .. "/node'")
    os.execute(("%s -O2 -o '%s/bare' bench/peers/bare.c"):format(
        os.getenv("CC") or "gcc", build))
    for _, peer in ipairs(peers.list) do
        -- Modules of a relative path are looked for where node stands.
        local where = peer.probe:match("%./") and build or "."
        peer.here = os.execute(("cd '%s' && %s >/dev/null 2>&1"):format(where,
            peer.probe)) or false
    end
end

--- Environment of a peer's process.
function peers.environment(options)
    local pwd = require("posix.unistd").getcwd()
    local root = build:sub(1, 1) == "/" and build or pwd .. "/" .. build
    return {
        UV_THREADPOOL_SIZE = tostring(options.workers or 2),
        BENCH_NODE_MODULES = root .. "/node",
        PYTHONDONTWRITEBYTECODE = "1",
        PYTHONWARNINGS = "ignore",
    }
end

peers.build = build

return peers
