"""What the Python peers share; the cases are those of common.lua."""

import gc
import json
import sys
import time

now = time.perf_counter


def noop():
    pass


def inc(x):
    return x + 1


def echo(x):
    return x


def burn(rounds):
    x = 1
    for i in range(rounds):
        x = (x * 31 + i) & 0xFFFFFF
    return x


def spin(_):
    while True:
        pass


def rounds_of(seconds):
    """How many rounds of burn take the given time here (best of five)."""
    best = min(timed(burn, 100000) for _ in range(5))
    return max(1, round(seconds * 100000 / best))


def timed(f, *args):
    start = now()
    f(*args)
    return now() - start


def serial_of(n, rounds):
    return timed(lambda: [burn(rounds) for _ in range(n // 4)]) * n / (n // 4)


def heap_of(mib):
    return [bytes([i % 256]) * (1 << 20) for i in range(mib)]


def records_of(n):
    return [{"id": i, "name": "name%d" % i, "score": i * 0.5} for i in range(n)]


def objects_of(mib):
    """About mib MiB of small objects, as in common.lua."""
    return [{"id": i, "name": "name%d" % (i % 1000), "score": i * 0.5}
            for i in range(mib * 3700)]


def visit(objects, full):
    total = 0
    for one in objects:
        waste = [one["score"], len(one["name"])]
        total += len(waste)
    for _ in range(3 if full else 0):
        gc.collect()
    return total


def lives(n, life):
    """n lives of a pool, from its making to the end of its last process."""
    times = sorted(timed(life) * 1e3 for _ in range(n))
    return {"value": times[(n - 1) // 2], "unit": "ms", "worst": times[-1]}


def say(**line):
    print(json.dumps(line), flush=True)


def hold(make, workers):
    """The parent's side of the cases that are measured from outside."""
    say(stage="base")
    sys.stdin.readline()
    pool = make(workers)
    say(stage="ready")
    sys.stdin.readline()
    return pool


class Options(dict):
    __getattr__ = dict.get


def main(peer, cases):
    name = sys.argv[1]
    options = Options(workers=2, n=1000)
    for word in sys.argv[2:]:
        key, value = word.split("=", 1)
        options[key] = int(value) if value.isdigit() else float(value)
    line = {"skip": "no such case here"}
    if name in cases:
        line = cases[name](options)
    if line is None:
        return
    line = {"peer": peer, "case": name, "n": options.n,
            "workers": options.workers, **line}
    say(**{key: value for key, value in line.items()
           if key == "value" or value is not None})
