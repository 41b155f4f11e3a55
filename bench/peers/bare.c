// bare: what the system itself takes: no Lua, no pool, nothing to go wrong.
//
//     bare recycle n=2000 heap=0 workers=1   fork + _exit + wait, in a loop
//     bare apply n=20000 workers=1           one byte there and back by pipes
//     bare machine                           what this machine's kernel takes
//
// `workers` of recycle is how many processes run such a loop at once, each
// with its share of n. The heap is touched memory of the forking process.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static long option(int argc, char **argv, const char *name, long otherwise)
{
    size_t length = strlen(name);
    for (int i = 2; i < argc; i++)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=')
            return atol(argv[i] + length + 1);
    return otherwise;
}

static void fork_loop(long n)
{
    for (long i = 0; i < n; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid)
            abort();
    }
}

static void recycle(long n, long heap, long workers)
{
    // Pieces of 1 MiB, so that no huge pages make the fork cheap.
    for (long i = 0; i < heap; i++) {
        volatile char *piece = malloc(1 << 20);
        for (long at = 0; piece && at < 1 << 20; at += 4096)
            piece[at] = 1;
    }
    double start = now();
    for (long i = 1; i < workers; i++)
        if (fork() == 0) {
            fork_loop(n / workers);
            _exit(0);
        }
    fork_loop(n - (workers - 1) * (n / workers));
    while (wait(NULL) > 0)
        continue;
    printf("{\"peer\":\"bare C\",\"case\":\"recycle\",\"value\":%.1f,"
           "\"unit\":\"1/s\",\"n\":%ld,\"workers\":%ld,\"limit\":1,"
           "\"heap\":%ld}\n",
           (double)n / (now() - start), n, workers, heap);
}

static void apply(long n)
{
    int to[2], from[2];
    char byte = 0;
    if (pipe(to) || pipe(from))
        abort();
    if (fork() == 0) {
        close(to[1]);
        while (read(to[0], &byte, 1) == 1)
            if (write(from[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    double start = now();
    for (long i = 0; i < n; i++)
        if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1)
            abort();
    printf("{\"peer\":\"bare C\",\"case\":\"apply\",\"value\":%.3f,"
           "\"unit\":\"us\",\"n\":%ld,\"workers\":1}\n",
           (now() - start) / (double)n * 1e6, n);
}

// Microseconds for the first touch of each page of fresh memory.
static double fault(int kind)
{
    size_t size = 64 << 20;
    double start = now();
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_ANONYMOUS | kind, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    for (size_t at = 0; at < size; at += 4096)
        *(volatile char *)(memory + at) = 1;
    double took = now() - start;
    munmap(memory, size);
    return took / (double)(size / 4096) * 1e6;
}

static double system_call(void)
{
    double start = now();
    for (long i = 0; i < 200000; i++)
        syscall(SYS_getppid);
    return (now() - start) / 200000 * 1e6;
}

static void machine(void)
{
    double call = system_call();
    double own = fault(MAP_PRIVATE), shared = fault(MAP_SHARED);
    double start = now();
    fork_loop(500);
    printf("{\"system_call_us\":%.3f,\"private_page_us\":%.2f,"
           "\"shared_page_us\":%.2f,\"fork_us\":%.1f}\n",
           call, own, shared, (now() - start) / 500 * 1e6);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    long n = option(argc, argv, "n", 1000);
    if (!strcmp(name, "recycle"))
        recycle(n, option(argc, argv, "heap", 0),
                option(argc, argv, "workers", 1));
    else if (!strcmp(name, "apply"))
        apply(n);
    else if (!strcmp(name, "machine"))
        machine();
    else
        printf("{\"peer\":\"bare C\",\"case\":\"%s\","
               "\"skip\":\"no such case here\"}\n", name);
    return 0;
}
