rockspec_format = "3.0"
package = "procpool"
version = "0.1.0-1"

-- Where the sources will be had; building from a checkout does not look here.
local home = "https://example.org/procpool"

source = {
  url = "git+" .. home .. ".git",
  tag = "v0.1.0",
}

description = {
  summary = "A pool of worker processes, as Python's multiprocessing.Pool",
  detailed = [[
    Runs Lua functions in worker processes: apply, map, imap and their
    asynchronous kin, with exact worker lifetimes, time and memory limits, and
    the promise that no call hangs whatever dies. Workers are forked from a
    clean snapshot and replaced ahead of time, so recycling costs nothing.
  ]],
  homepage = home,
  license = "MIT",
  labels = { "parallel", "multiprocessing", "process", "pool", "fork" },
}

supported_platforms = { "linux" }

dependencies = {
  "lua >= 5.4, < 5.5",
  "luaposix >= 35",
}

test_dependencies = {
  "busted >= 2.1",
}

local modules = {
  -- files: begin (written by tools/rockspec)
  ["procpool.check"] = "lua/procpool/check.lua",
  ["procpool.ending"] = "lua/procpool/ending.lua",
  ["procpool.errors"] = "lua/procpool/errors.lua",
  ["procpool.imap"] = "lua/procpool/imap.lua",
  ["procpool"] = "lua/procpool/init.lua",
  ["procpool.inline"] = "lua/procpool/inline.lua",
  ["procpool.inline_task"] = "lua/procpool/inline_task.lua",
  ["procpool.intake"] = "lua/procpool/intake.lua",
  ["procpool.map"] = "lua/procpool/map.lua",
  ["procpool.options"] = "lua/procpool/options.lua",
  ["procpool.pool"] = "lua/procpool/pool.lua",
  ["procpool.progress"] = "lua/procpool/progress.lua",
  ["procpool.result"] = "lua/procpool/result.lua",
  ["procpool.worker"] = "lua/procpool/worker.lua",
  ["procpool.core"] = {
    sources = {
      "src/arena.c",
      "src/bind_codec.c",
      "src/bind_interrupt.c",
      "src/bind_large.c",
      "src/board.c",
      "src/codec_decode.c",
      "src/codec_encode.c",
      "src/codec_path.c",
      "src/codec_state.c",
      "src/crew.c",
      "src/fault.c",
      "src/handle.c",
      "src/handle_func.c",
      "src/handle_stats.c",
      "src/handle_take.c",
      "src/heap.c",
      "src/keeper.c",
      "src/module.c",
      "src/names.c",
      "src/nursery.c",
      "src/os.c",
      "src/outbox.c",
      "src/pool.c",
      "src/pool_post.c",
      "src/pool_read.c",
      "src/region.c",
      "src/runner.c",
      "src/wake.c",
      "src/worker.c",
      "src/worker_process.c",
    },
    incdirs = { "src" },
    libraries = { "pthread" },
  },
  -- files: end
}

build = {
  type = "builtin",
  modules = modules,
  copy_directories = { "docs", "examples" },
}

test = {
  type = "busted",
}
