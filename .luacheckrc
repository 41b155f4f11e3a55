std = "lua54"
exclude_files = { "build", "lua_modules" }
files["spec"].std = "+busted"
files["lua/procpool/*_meta.lua"].ignore = { "212" }
