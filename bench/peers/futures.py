"""Python's concurrent.futures.ProcessPoolExecutor."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from common import (burn, echo, hold, inc, lives, main, noop, now, records_of,
                    rounds_of, serial_of, spin, timed)


def warm(workers):
    pool = ProcessPoolExecutor(workers)
    list(pool.map(echo, range(2 * workers)))
    return pool


def apply(o):
    with warm(o.workers) as pool:
        for _ in range(o.n // 10):
            pool.submit(noop).result()
        start = now()
        for _ in range(o.n):
            pool.submit(noop).result()
        took = now() - start
    return {"value": took / o.n * 1e6, "unit": "us"}


def submit(o):
    with warm(o.workers) as pool:
        f, argument = (burn, rounds_of(o.us * 1e-6)) if o.us else (inc, None)
        start = now()
        results = [pool.submit(f, argument or i) for i in range(o.n)]
        results = [result.result() for result in results]
        took = now() - start
        assert o.us or results[-1] == o.n
    return {"value": o.n / took, "unit": "1/s", "us": o.us}


def map_(o):
    # Its default of one item at a time is case B; this is its best chunk.
    with warm(o.workers) as pool:
        items = list(range(o.n))
        start = now()
        results = list(pool.map(inc, items, chunksize=o.n // 8))
        took = now() - start
        assert results[-1] == o.n
    return {"value": o.n / took, "unit": "1/s"}


def echo_(o):
    with warm(o.workers) as pool:
        data = b"x" * o.size
        assert len(pool.submit(echo, data).result()) == o.size
        start = now()
        for _ in range(o.n):
            pool.submit(echo, data).result()
        took = now() - start
    return {"value": 2 * o.size * o.n / took / 2 ** 30, "unit": "GiB/s",
            "size": o.size}


def records(o):
    with warm(o.workers) as pool:
        data = records_of(o.n)
        start = now()
        back = pool.submit(echo, data).result()
        took = now() - start
        assert back == data
    return {"value": took * 1e3, "unit": "ms"}


def start_(o):
    def life():
        with ProcessPoolExecutor(o.workers) as pool:
            list(pool.map(inc, range(o.workers)))
    return lives(o.n, life)


def recycle(o):
    # max_tasks_per_child refuses to fork: each life is a new interpreter. With
    # a limit above 1 the executor of CPython 3.11 is apt to hang.
    if o.limit > 1:
        return {"skip": "it hangs"}
    from multiprocessing import get_context
    with ProcessPoolExecutor(o.workers, max_tasks_per_child=o.limit,
                             mp_context=get_context("forkserver")) as pool:
        start = now()
        results = list(pool.map(inc, range(o.n)))
        took = now() - start
        assert results[-1] == o.n
    return {"value": o.n / took, "unit": "1/s", "limit": o.limit, "heap": 0}


def cpu(o):
    rounds = rounds_of(o.us * 1e-6)
    with warm(o.workers) as pool:
        serial = serial_of(o.n, rounds)
        took = timed(lambda: list(pool.map(burn, [rounds] * o.n)))
        serial = (serial + serial_of(o.n, rounds)) / 2
    return {"value": serial / took, "unit": "x", "us": o.us}


def kill(o):
    times = []
    for _ in range(o.n):
        pool = warm(o.workers)
        result = pool.submit(spin, 0)
        while not result.running():
            pass
        victim = next(iter(pool._processes))
        start = now()
        os.kill(victim, signal.SIGKILL)
        try:
            result.result(5)
        except BrokenProcessPool:
            times.append(now() - start)
        pool.shutdown(wait=True)
    times.sort()
    return {"value": times[len(times) // 2] * 1e3, "unit": "ms",
            "worst": times[-1] * 1e3, "note": "the whole pool breaks"}


def hold_(o):
    hold(warm, o.workers).shutdown()


if __name__ == "__main__":
    main("concurrent.futures", {
        "apply": apply, "async": submit, "map": map_, "echo": echo_,
        "records": records, "start": start_, "recycle": recycle, "cpu": cpu,
        "kill": kill, "hold": hold_})
