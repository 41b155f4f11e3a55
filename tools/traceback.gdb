# traceback.gdb - where the task of a running worker is, in Lua.
#
#     gdb -nx -batch -p PID -x tools/traceback.gdb
#
# PID is a worker's. It is stopped meanwhile and goes on afterwards. Only for
# a worker that runs Lua or waits in a C function; one that is in the middle of
# an allocation may not survive it.
set pagination off
set $T = ((runner_t *)worker_current->w_work->context)->T
call ((void (*)(void *, void *, char *, int))luaL_traceback)($T, $T, 0, 0)
printf "%s\n", ((char *(*)(void *, int, void *))lua_tolstring)($T, -1, 0)
call ((void (*)(void *, int))lua_settop)($T, -2)
