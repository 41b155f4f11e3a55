-- limit: 300 s
-- Installing: by make and by luarocks, from a copy of the sources, into trees
-- of their own, and used from a directory that has nothing else in it.

local function run(line)
    local pipe = assert(io.popen("(" .. line .. ") 2>&1"))
    local text = pipe:read("a")
    local good = pipe:close()
    return good, text
end

local function check(line)
    local good, text = run(line)
    assert(good, line .. "\n" .. text)
    return text
end

-- Uses a pool with nothing on the search path but what is given.
local USE = [[
    local procpool = require("procpool")
    local pool <close> = procpool.new(2)
    local list = pool:map(function(x) return x * x end, { 1, 2, 3 })
    print(table.concat(list, " "), (package.searchpath("procpool",
        package.path)))
]]

describe("installing", function()
    local work, copy

    setup(function()
        work = check("mktemp -d"):match("%S+")
        copy = work .. "/copy"
        check("mkdir -p " .. copy .. " && cp -r Makefile src lua docs examples"
            .. " tools *.rockspec " .. copy)
    end)

    teardown(function()
        check("rm -rf '" .. work .. "'")
    end)

    -- Runs USE in an empty directory; `root` is the installed tree.
    local function use(root)
        local script = assert(io.open(work .. "/use.lua", "w"))
        script:write(USE)
        script:close()
        check("mkdir -p " .. work .. "/empty")
        return check(([[cd %s/empty && env -u LUA_PATH_5_4 -u LUA_CPATH_5_4 \
            LUA_PATH='%s/share/lua/5.4/?.lua;%s/share/lua/5.4/?/init.lua;;' \
            LUA_CPATH='%s/lib/lua/5.4/?.so;;' \
            timeout -k 5 60 lua5.4 ../use.lua]]):format(work, root, root, root))
    end

    -- What stands below a directory, one relative name a line.
    local function tree(root)
        return check("cd '" .. root .. "' && find . -type f | sort")
    end

    it("by make: DESTDIR, PREFIX, use, and uninstall leaves nothing", function()
        local make = "cd " .. copy .. " && env -u MAKEFLAGS make -s -j2"
            .. " BUILD=build PREFIX=/opt/pool DESTDIR=" .. work .. "/staged "
        check(make .. "install")
        local root = work .. "/staged/opt/pool"
        local files = tree(root)
        assert.is_truthy(files:find("./lib/lua/5.4/procpool/core.so", 1, true))
        assert.is_truthy(files:find("./share/lua/5.4/procpool/init.lua", 1, true))
        local said = use(root)
        assert.is_truthy(said:find("1 4 9", 1, true), said)
        assert.is_truthy(said:find(root, 1, true), said)
        check(make .. "uninstall")
        assert.are.equal("", tree(work .. "/staged"))
    end)

    it("by luarocks: the same files, and it works", function()
        local config = assert(io.open(work .. "/config.lua", "w"))
        config:write('rocks_provided = { luaposix = "36.3-1", busted = "2.1-1" }\n')
        config:close()
        local root = work .. "/rocks"
        check(("cd %s && env LUAROCKS_CONFIG=%s/config.lua timeout -k 5 240"
            .. " luarocks --lua-version 5.4 --tree %s make --deps-mode one"
            .. " procpool-scm-0.rockspec"):format(copy, work, root))
        local said = use(root)
        assert.is_truthy(said:find("1 4 9", 1, true), said)

        check("cd " .. copy .. " && env -u MAKEFLAGS make -s -j2 BUILD=build"
            .. " DESTDIR=" .. work .. "/again PREFIX=/usr install")
        local function modules(top)
            return check("cd " .. top .. " && find share/lua lib/lua -type f | sort")
        end
        assert.are.equal(modules(work .. "/again/usr"), modules(root))
    end)

    it("refuses a Lua that is not 5.4, saying which it found", function()
        check("mkdir -p " .. work .. "/lua53")
        local header = assert(io.open(work .. "/lua53/lua.h", "w"))
        header:write("#define LUA_VERSION_NUM 503\n")
        header:close()
        local good, text = run("cd " .. copy .. " && env -u MAKEFLAGS make -s"
            .. " BUILD=" .. work .. "/refused LUA_INCDIR=" .. work .. "/lua53")
        assert.is_falsy(good)
        assert.is_truthy(text:find("needs Lua 5.4", 1, true), text)
        assert.is_truthy(text:find("Lua 5.3", 1, true), text)
    end)

    it("says what is missing when lua.h is", function()
        local good, text = run("cd " .. copy .. " && env -u MAKEFLAGS make -s"
            .. " BUILD=" .. work .. "/refused LUA_INCDIR=" .. work .. "/none")
        assert.is_falsy(good)
        assert.is_truthy(text:find("lua.h of Lua 5.4 not found", 1, true), text)
    end)
end)
