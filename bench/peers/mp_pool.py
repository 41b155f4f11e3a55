"""Python's multiprocessing.Pool."""

import multiprocessing
import os
import signal
from common import (burn, echo, heap_of, hold, inc, lives, main, noop, now,
                    objects_of, records_of, rounds_of, serial_of, spin, timed,
                    visit)


def warm(workers, **options):
    pool = multiprocessing.Pool(workers, **options)
    pool.map(echo, range(4), 1)
    return pool


def close(pool):
    pool.close()
    pool.join()


def apply(o):
    pool = warm(o.workers)
    for _ in range(o.n // 10):
        pool.apply(noop)
    start = now()
    for _ in range(o.n):
        pool.apply(noop)
    took = now() - start
    close(pool)
    return {"value": took / o.n * 1e6, "unit": "us"}


def apply_async(o):
    pool = warm(o.workers)
    f, argument = (burn, rounds_of(o.us * 1e-6)) if o.us else (inc, None)
    start = now()
    results = [pool.apply_async(f, (argument or i,)) for i in range(o.n)]
    results = [result.get() for result in results]
    took = now() - start
    assert o.us or results[-1] == o.n
    close(pool)
    return {"value": o.n / took, "unit": "1/s", "us": o.us}


def imap(o):
    pool = warm(o.workers)
    start = now()
    for last in pool.imap(inc, range(o.n)):
        pass
    took = now() - start
    assert last == o.n
    close(pool)
    return {"value": o.n / took, "unit": "1/s"}


def map_(o):
    pool = warm(o.workers)
    items = list(range(o.n))
    start = now()
    results = pool.map(inc, items)
    took = now() - start
    assert results[-1] == o.n
    close(pool)
    return {"value": o.n / took, "unit": "1/s"}


def echo_(o):
    pool = warm(o.workers)
    data = b"x" * o.size
    assert len(pool.apply(echo, (data,))) == o.size
    took = timed(lambda: [len(pool.apply(echo, (data,))) for _ in range(o.n)])
    close(pool)
    return {"value": 2 * o.size * o.n / took / 2 ** 30, "unit": "GiB/s",
            "size": o.size}


def records(o):
    pool = warm(o.workers)
    data = records_of(o.n)
    start = now()
    back = pool.apply(echo, (data,))
    took = now() - start
    assert back == data
    close(pool)
    return {"value": took * 1e3, "unit": "ms"}


def start_(o):
    def life():
        pool = multiprocessing.Pool(o.workers)
        pool.map(inc, range(o.workers), 1)
        close(pool)
    return lives(o.n, life)


def recycle(o):
    # A chunk counts as one task here: only chunks of 1 keep the limit.
    pool = multiprocessing.Pool(o.workers, maxtasksperchild=o.limit)
    heap = heap_of(o.heap or 0)
    start = now()
    results = pool.map(inc, range(o.n), 1)
    took = now() - start
    assert results[-1] == o.n and len(heap) == (o.heap or 0)
    close(pool)
    return {"value": o.n / took, "unit": "1/s", "limit": o.limit,
            "heap": o.heap or 0}


def cpu(o):
    rounds = rounds_of(o.us * 1e-6)
    pool = warm(o.workers)
    serial = serial_of(o.n, rounds)
    took = timed(pool.map, burn, [rounds] * o.n, 1)
    serial = (serial + serial_of(o.n, rounds)) / 2
    close(pool)
    return {"value": serial / took, "unit": "x", "us": o.us}


def kill(o):
    pool = warm(o.workers)
    result = pool.apply_async(spin, (0,))
    workers = list(pool._pool)
    while not any(cpu_of(w.pid) == "R" for w in workers):
        pass
    victim = next(w for w in workers if cpu_of(w.pid) == "R")
    start = now()
    os.kill(victim.pid, signal.SIGKILL)
    try:
        result.get(2)
    except multiprocessing.TimeoutError:
        pool.terminate()
        return {"value": None, "unit": "ms", "note": "no error within 2 s"}
    except Exception:
        return {"value": (now() - start) * 1e3, "unit": "ms"}


def cpu_of(pid):
    with open("/proc/%d/stat" % pid) as f:
        return f.read().rsplit(") ", 1)[1][0]


def hold_(o):
    def make(workers):
        pool = multiprocessing.Pool(workers)
        pool.map(inc, range(workers), 1)
        return pool
    close(hold(make, o.workers))


def read_all(full):
    return visit(objects, full)


def shared(o):
    global objects
    objects = objects_of(o.mib)

    def make(workers):
        pool = multiprocessing.Pool(workers)
        pool.map(read_all, [o.full] * workers, 1)
        return pool
    close(hold(make, o.workers))


if __name__ == "__main__":
    main("multiprocessing", {
        "apply": apply, "async": apply_async, "imap": imap, "map": map_,
        "echo": echo_, "records": records, "start": start_,
        "recycle": recycle, "cpu": cpu, "kill": kill, "hold": hold_,
        "shared": shared})
