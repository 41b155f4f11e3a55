-- machine: what the figures were taken on.

local cjson = require("cjson")
local peers = require("bench.lib.peers")

local machine = {}

local function said(command)
    local pipe = io.popen(command .. " 2>/dev/null")
    local text = pipe and pipe:read("a") or ""
    if pipe then
        pipe:close()
    end
    return (text:gsub("%s+$", ""))
end

local function field(path, pattern)
    local file = io.open(path)
    local text = file and file:read("a") or ""
    if file then
        file:close()
    end
    return text:match(pattern)
end

local VERSIONS = {
    { "Lua", "%s -v | cut -d' ' -f2", os.getenv("LUA") or "lua5.4" },
    { "luaposix", "%s -e 'print(require(\"posix\").version)'",
        os.getenv("LUA") or "lua5.4" },
    { "luv (libuv)", "%s -e 'print(require(\"luv\").version_string())'",
        os.getenv("LUA") or "lua5.4" },
    { "Python", "%s --version | cut -d' ' -f2", "/usr/bin/python3" },
    { "MCE", "%s -MMCE -e 'print $MCE::VERSION'", "perl" },
    { "Node", "%s --version", "node" },
    { "workerpool", "%s -p 'require(\"./node_modules/workerpool/package.json\")"
        .. ".version'", "node" },
    { "piscina", "%s -p 'require(\"./node_modules/piscina/package.json\")"
        .. ".version'", "node" },
    { "gcc", "%s -dumpfullversion", "gcc" },
}

--- A table that describes the machine, and what its kernel's basics take.
function machine.describe()
    local about = {
        cpu = field("/proc/cpuinfo", "model name%s*:%s*([^\n]+)") or "unknown",
        cpus = math.tointeger(tonumber(said("nproc"))),
        virtual = field("/proc/cpuinfo", "flags[^\n]*hypervisor") and true
            or false,
        memory_gib = (tonumber(field("/proc/meminfo", "MemTotal:%s*(%d+)")) or 0)
            / 2 ^ 20,
        kernel = said("uname -sr"),
        system = field("/etc/os-release", 'PRETTY_NAME="([^"]+)"'),
        commit = said("git rev-parse --short HEAD"),
        versions = {},
        basics = {},
    }
    for _, one in ipairs(VERSIONS) do
        local text = said(("cd '%s/node' && "):format(peers.build)
            .. one[2]:format(one[3]))
        about.versions[#about.versions + 1] = text ~= "" and
            one[1] .. " " .. text:match("[^\n]*") or nil
    end
    local ok, basics = pcall(cjson.decode,
        said(peers.build .. "/bare machine"))
    about.basics = ok and basics or {}
    return about
end

local function figure(value, unit)
    return value and ("%.3g %s"):format(value, unit) or "unknown"
end

--- The same as a few lines of Markdown.
function machine.text(about)
    local basics = about.basics
    return table.concat({
        ("- %s, %d CPUs%s, %.0f GiB of memory; %s; %s"):format(about.cpu,
            about.cpus, about.virtual and " of a virtual machine" or "",
            about.memory_gib, about.kernel, about.system),
        "- " .. table.concat(about.versions, ", "),
        ("- a system call: %s; the first touch of a page: %s of private, %s "
            .. "of shared memory; fork, exit and wait of a small process: %s")
            :format(figure(basics.system_call_us, "us"),
                figure(basics.private_page_us, "us"),
                figure(basics.shared_page_us, "us"),
                figure(basics.fork_us, "us")),
        "- procpool at commit " .. about.commit,
    }, "\n")
end

return machine
