/*
** chelper.c - a small C module for the specs of faults: the damage that a
** task's C library can do, and what luaposix has no name for.
**
** Runs in tests alone: in the parent, and in workers and other children of
** it. The counters (`counters`, `add`, `get`) are one shared mapping that all
** processes forked after `counters` see; one addition is one instruction, so
** they tell the truth whenever a process is killed.
*/
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>

static int result(lua_State *L, int rc)
{
    return luaL_fileresult(L, rc >= 0, NULL);
}

/* --- counters ----------------------------------------------------------- */

static _Atomic int64_t *counters;
static lua_Integer counters_count;

static void forget_counters(void)
{
    if (counters)
        munmap((void *)(uintptr_t)counters,
               (size_t)counters_count * sizeof *counters);
    counters = NULL;
    counters_count = 0;
}

/* counters(n): n of them, all zero; 0 lets them go */
static int c_counters(lua_State *L)
{
    lua_Integer n = luaL_checkinteger(L, 1);
    forget_counters();
    if (n <= 0)
        return 0;
    void *p = mmap(NULL, (size_t)n * sizeof *counters, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return luaL_error(L, "mmap: %s", strerror(errno));
    counters = p;
    counters_count = n;
    return 0;
}

static _Atomic int64_t *counter(lua_State *L, int index)
{
    lua_Integer i = luaL_checkinteger(L, index);
    luaL_argcheck(L, i >= 1 && i <= counters_count, index, "no such counter");
    return &counters[i - 1];
}

/* add(i [, n]) -> the new value */
static int c_add(lua_State *L)
{
    _Atomic int64_t *p = counter(L, 1);
    lua_Integer n = luaL_optinteger(L, 2, 1);
    lua_pushinteger(L, (lua_Integer)atomic_fetch_add(p, n) + n);
    return 1;
}

static int c_get(lua_State *L)
{
    lua_pushinteger(L, (lua_Integer)atomic_load(counter(L, 1)));
    return 1;
}

static int c_set(lua_State *L)
{
    atomic_store(counter(L, 1), luaL_checkinteger(L, 2));
    return 0;
}

/* --- ways to die -------------------------------------------------------- */

static int c_kill(lua_State *L)
{
    return result(L, kill((pid_t)luaL_checkinteger(L, 1),
                          (int)luaL_checkinteger(L, 2)));
}

/* The real thing, where the processor raises the signal. */
static volatile uintptr_t nowhere = 8;

static int c_segv(lua_State *L)
{
    (void)L;
    *(volatile int *)nowhere = 1;
    return 0;
}

__attribute__((no_sanitize("undefined"))) static int c_fpe(lua_State *L)
{
    volatile int seven = 7, zero = (int)luaL_optinteger(L, 1, 0);
    lua_pushinteger(L, seven / zero);
    return 1;
}

static int c_ill(lua_State *L)
{
    (void)L;
    __builtin_trap();
}

/* A page of a mapped file that is no longer there. */
static int c_bus(lua_State *L)
{
    char name[] = "/tmp/chelper.XXXXXX";
    int fd = mkstemp(name);
    if (fd < 0)
        return luaL_error(L, "mkstemp: %s", strerror(errno));
    unlink(name);
    volatile char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                            fd, 0);
    *p = 1;
    return 0;
}

static int c_abort(lua_State *L)
{
    (void)L;
    abort();
}

static int c_quit(lua_State *L)
{
    _exit((int)luaL_checkinteger(L, 1));
}

static int c_exit(lua_State *L)
{
    exit((int)luaL_checkinteger(L, 1));
}

static volatile int bottomless = 1;

static int deeper(volatile char *above)
{
    volatile char frame[512];
    frame[0] = above[0];
    return bottomless ? deeper(frame) + frame[0] : 0;
}

static int c_overflow(lua_State *L)
{
    volatile char top[1] = { 0 };
    lua_pushinteger(L, deeper(top));
    return 1;
}

/* atexit(text): exit() will write it to stdout's descriptor */
static char farewell[256];

static void say_farewell(void)
{
    if (write(1, farewell, strlen(farewell)) < 0)
        return;
}

static int c_atexit(lua_State *L)
{
    snprintf(farewell, sizeof farewell, "%s", luaL_checkstring(L, 1));
    return result(L, atexit(say_farewell));
}

/* --- signals and timers ------------------------------------------------- */

static _Atomic int caught;

static void count_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&caught, 1);
}

static lua_State *hooked;

static void raise_interrupted(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    lua_sethook(L, NULL, 0, 0);
    luaL_error(L, "interrupted!");
}

static void set_hook(int sig)
{
    (void)sig;
    lua_sethook(hooked, raise_interrupted,
                LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

/* interrupts(sig): as the lua program does for SIGINT, but time and again */
static int c_interrupts(lua_State *L)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = set_hook;
    hooked = L;
    return result(L, sigaction((int)luaL_checkinteger(L, 1), &action, NULL));
}

/* signal(sig, "ignore" | "default" | "count") */
static int c_signal(lua_State *L)
{
    static const char *const how[] = { "default", "ignore", "count", NULL };
    static void (*const handlers[])(int) = { SIG_DFL, SIG_IGN, count_signal };
    int sig = (int)luaL_checkinteger(L, 1);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handlers[luaL_checkoption(L, 2, NULL, how)];
    return result(L, sigaction(sig, &action, NULL));
}

static int c_caught(lua_State *L)
{
    lua_pushinteger(L, atomic_load(&caught));
    return 1;
}

/* disposition(sig) -> "default" | "ignore" | "other", blocked */
static int c_disposition(lua_State *L)
{
    int sig = (int)luaL_checkinteger(L, 1);
    struct sigaction action;
    sigset_t blocked;
    sigaction(sig, NULL, &action);
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    lua_pushstring(L, action.sa_handler == SIG_DFL   ? "default"
                      : action.sa_handler == SIG_IGN ? "ignore"
                                                     : "other");
    lua_pushboolean(L, sigismember(&blocked, sig));
    return 2;
}

static int c_block(lua_State *L)
{
    sigset_t set;
    sigfillset(&set);
    return result(L, sigprocmask(lua_toboolean(L, 1) ? SIG_BLOCK : SIG_UNBLOCK,
                                 &set, NULL));
}

/* timer(seconds between signals; 0: off): SIGALRM */
static int c_timer(lua_State *L)
{
    double seconds = luaL_checknumber(L, 1);
    struct itimerval t;
    t.it_interval.tv_sec = (time_t)seconds;
    t.it_interval.tv_usec = (suseconds_t)(
        (seconds - (double)t.it_interval.tv_sec) * 1e6);
    t.it_value = t.it_interval;
    return result(L, setitimer(ITIMER_REAL, &t, NULL));
}

/* --- processes ---------------------------------------------------------- */

/* fork() -> pid; by the system call alone where asked, which no handler of
** pthread_atfork hears of */
static int c_fork(lua_State *L)
{
    pid_t pid = lua_toboolean(L, 1) ? (pid_t)syscall(SYS_fork) : fork();
    if (pid < 0)
        return result(L, -1);
    lua_pushinteger(L, pid);
    return 1;
}

/* wait([pid [, nohang]]) -> pid, "exit" | "signal" | "running", status */
static int c_wait(lua_State *L)
{
    int status = 0;
    pid_t pid;
    do
        pid = waitpid((pid_t)luaL_optinteger(L, 1, -1), &status,
                      lua_toboolean(L, 2) ? WNOHANG : 0);
    while (pid < 0 && errno == EINTR);
    if (pid < 0)
        return result(L, -1);
    lua_pushinteger(L, pid);
    if (pid == 0) {
        lua_pushliteral(L, "running");
        return 2;
    }
    lua_pushstring(L, WIFSIGNALED(status) ? "signal" : "exit");
    lua_pushinteger(L, WIFSIGNALED(status) ? WTERMSIG(status)
                                           : WEXITSTATUS(status));
    return 3;
}

/* exec(path, args ...): all descriptors as they are */
static int c_exec(lua_State *L)
{
    char *args[16];
    int n = lua_gettop(L);
    luaL_argcheck(L, n >= 1 && n < 16, 1, "path and arguments expected");
    for (int i = 0; i < n; i++)
        args[i] = strdup(luaL_checkstring(L, i + 1));
    args[n] = NULL;
    execv(args[0], args);
    return result(L, -1);
}

static int c_subreaper(lua_State *L)
{
    return result(L, prctl(PR_SET_CHILD_SUBREAPER, lua_toboolean(L, 1)));
}

static int c_close_range(lua_State *L)
{
    int from = (int)luaL_checkinteger(L, 1), to = (int)luaL_checkinteger(L, 2);
    for (int fd = from; fd <= to; fd++)
        close(fd);
    return 0;
}

/* limit(name, soft [, pid]): the hard limit stays */
static int c_limit(lua_State *L)
{
    static const char *const names[] = { "nproc", "nofile", "as", "cpu",
                                         "fsize", "stack", "core", NULL };
    static const int limits[] = { RLIMIT_NPROC, RLIMIT_NOFILE, RLIMIT_AS,
                                  RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_STACK,
                                  RLIMIT_CORE };
    int which = limits[luaL_checkoption(L, 1, NULL, names)];
    lua_Integer soft = luaL_optinteger(L, 2, -1);
    pid_t pid = (pid_t)luaL_optinteger(L, 3, 0);
    struct rlimit limit;
    if (prlimit(pid, (enum __rlimit_resource)which, NULL, &limit) < 0)
        return result(L, -1);
    limit.rlim_cur = soft < 0 || (rlim_t)soft > limit.rlim_max
                         ? limit.rlim_max : (rlim_t)soft;
    return result(L, prlimit(pid, (enum __rlimit_resource)which, &limit,
                             NULL));
}

/* --- threads ------------------------------------------------------------ */

/* A thread of its own calls the function on top of L while we wait. */
static void *call_in_thread(void *context)
{
    lua_State *L = context;
    lua_pushinteger(L, lua_pcall(L, 0, 1, 0));
    return NULL;
}

/* thread(f) -> what f returned; raises what it raised */
static int c_thread(lua_State *L)
{
    pthread_t thread;
    lua_settop(L, 1);
    int rc = pthread_create(&thread, NULL, call_in_thread, L);
    if (rc != 0)
        return luaL_error(L, "pthread_create: %s", strerror(rc));
    pthread_join(thread, NULL);
    rc = (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
    return rc == LUA_OK ? 1 : lua_error(L);
}

static _Atomic int hammering;

static void *hammer(void *context)
{
    (void)context;
    while (atomic_load(&hammering)) {
        void *blocks[64];
        for (int i = 0; i < 64; i++)
            blocks[i] = malloc((size_t)(i * 97 + 1));
        for (int i = 0; i < 64; i++)
            free(blocks[i]);
    }
    return NULL;
}

/* hammer(on): a thread that allocates and frees without end */
static int c_hammer(lua_State *L)
{
    static pthread_t thread;
    int on = lua_toboolean(L, 1);
    if (on == atomic_exchange(&hammering, on))
        return 0;
    if (on)
        pthread_create(&thread, NULL, hammer, NULL);
    else
        pthread_join(thread, NULL);
    return 0;
}

/* --- memory ------------------------------------------------------------- */

/*
** scribble(from, to, writes, seed): random words at random places of the
** shared mapping that holds the address-space range [from, to)
*/
static int c_scribble(lua_State *L)
{
    uintptr_t from = (uintptr_t)luaL_checkinteger(L, 1);
    uintptr_t to = (uintptr_t)luaL_checkinteger(L, 2);
    lua_Integer writes = luaL_checkinteger(L, 3);
    uint64_t seed = (uint64_t)luaL_checkinteger(L, 4) * 2 + 1;
    luaL_argcheck(L, from + 8 <= to, 2, "empty range");
    for (lua_Integer i = 0; i < writes; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uintptr_t at = from + (seed >> 16) % (to - from - 8);
        *(volatile uint64_t *)(at & ~(uintptr_t)7) = seed >> 3;
    }
    return 0;
}

/* trim(): what malloc holds but does not use goes back to the system */
static int c_trim(lua_State *L)
{
    lua_pushboolean(L, malloc_trim(0));
    return 1;
}

/* forbid(since, code): in this process and its children to come, each system
** call with a number >= since fails with that errno, as under the filter of a
** container that is older than they are; clone3 (435) with ENOSYS, so that libc
** makes do without. */
static int c_forbid(lua_State *L)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 435, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K,
                 (uint32_t)luaL_checkinteger(L, 1), 2, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K,
                 SECCOMP_RET_ERRNO | (uint32_t)luaL_checkinteger(L, 2)),
    };
    struct sock_fprog filter = { sizeof code / sizeof *code, code };
    int rc = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (rc == 0)
        rc = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
    return result(L, rc);
}

/* --- time --------------------------------------------------------------- */

static int c_now(lua_State *L)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    lua_pushnumber(L, (double)t.tv_sec + (double)t.tv_nsec / 1e9);
    return 1;
}

/* sleep(seconds): the rest is slept after a signal, unless `once` */
static int c_sleep(lua_State *L)
{
    double seconds = luaL_checknumber(L, 1);
    struct timespec t;
    t.tv_sec = (time_t)seconds;
    t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
    while (nanosleep(&t, &t) < 0 && errno == EINTR && !lua_toboolean(L, 2))
        ;
    return 0;
}

static int c_getpid(lua_State *L)
{
    lua_pushinteger(L, getpid());
    return 1;
}

static const luaL_Reg functions[] = {
    { "abort", c_abort },
    { "add", c_add },
    { "atexit", c_atexit },
    { "block", c_block },
    { "bus", c_bus },
    { "caught", c_caught },
    { "close_range", c_close_range },
    { "counters", c_counters },
    { "disposition", c_disposition },
    { "exec", c_exec },
    { "exit", c_exit },
    { "forbid", c_forbid },
    { "fork", c_fork },
    { "fpe", c_fpe },
    { "get", c_get },
    { "getpid", c_getpid },
    { "hammer", c_hammer },
    { "ill", c_ill },
    { "interrupts", c_interrupts },
    { "kill", c_kill },
    { "limit", c_limit },
    { "now", c_now },
    { "overflow", c_overflow },
    { "quit", c_quit },
    { "scribble", c_scribble },
    { "segv", c_segv },
    { "set", c_set },
    { "signal", c_signal },
    { "sleep", c_sleep },
    { "subreaper", c_subreaper },
    { "thread", c_thread },
    { "timer", c_timer },
    { "trim", c_trim },
    { "wait", c_wait },
    { NULL, NULL }
};

__attribute__((visibility("default"))) int luaopen_chelper(lua_State *L);

int luaopen_chelper(lua_State *L)
{
    luaL_newlib(L, functions);
    return 1;
}
