std = "lua54"
max_line_length = 100
include_files = {
  "lua", "spec", "examples", "tools", "bench", "*.rockspec",
  "rockspecs/*.rockspec", ".luacheckrc", ".busted",
}
exclude_files = { "build", "tools/setup", "tools/test", "tools/lint" }
files["spec"].std = "+busted"
files["lua/procpool/*_meta.lua"].ignore = { "212" }
