"""Times NumPy, PyTorch and ONNX Runtime beside Tilewise, all in this process.

Reads a task from standard input and prints records, as the Rust program does that starts it: `src/parent.rs`
says what a task holds, `src/record.rs` what a record. The rules are those of `src/measure.rs`.
"""

import json
import random
import statistics
import sys
import time

import numpy as np

import libraries
from rounds import Crate
from tilewise import Tilewise

# Below this the interpreter's part of a call is what would be measured.
LEAST_FLOPS = 4e6


class Problem:
    """The operands of a workload: random, row-major, the same for all."""

    def __init__(self, workload):
        self.__dict__.update(workload)
        self.dtype = np.dtype({"f32": np.float32, "f64": np.float64}[workload["dtype"]])
        numbers = np.random.default_rng(0x71133153)

        def stored(rows, columns, transposed):
            shape = (columns, rows) if transposed else (rows, columns)
            shape = shape if self.batch == 1 else (self.batch, *shape)
            return aligned(numbers.uniform(-1, 1, shape), self.dtype)

        self.a_transposed, self.b_transposed = self.layout == "TN", self.layout == "NT"
        self.a_stored = stored(self.m, self.k, self.a_transposed)
        self.b_stored = self.a_stored if self.gram else stored(self.k, self.n, self.b_transposed)

    @property
    def flops(self):
        elements = self.m * (self.m + 1) // 2 if self.gram else self.m * self.n
        return 2 * self.batch * elements * self.k

    @property
    def a(self):
        return self.a_stored.T if self.a_transposed else self.a_stored

    @property
    def b(self):
        return self.b_stored.T if self.b_transposed else self.b_stored

    def output(self):
        shape = (self.m, self.n) if self.batch == 1 else (self.batch, self.m, self.n)
        return aligned(np.full(shape, np.nan), self.dtype)

    def error(self, c, expected):
        """What is wrong with a result, or None: see `Problem::check` in `src/problem.rs`."""
        tolerance = np.finfo(self.dtype).eps / 2 * (8 + 2 * self.k**0.5)
        a, b, c = (x if self.batch > 1 else x[None] for x in (self.a, self.b, c))
        chosen = random.Random(1)
        for _ in range(200):
            entry, i, j = (chosen.randrange(size) for size in (self.batch, self.m, self.n))
            products = a[entry, i, :].astype(np.float64) * b[entry, :, j]
            found = float(c[entry, i, j])
            # Not a number is within no bound.
            if not abs(found - products.sum()) <= tolerance * np.abs(products).sum():
                return f"entry {entry}, row {i}, column {j} is {found}, not {products.sum()}"
        if expected is not None and not np.abs(c - expected).max() <= 2 * tolerance * self.k:
            return "it differs from Tilewise's"
        return None


def aligned(values, dtype):
    """A copy on the boundary of a cache line, as all peers' operands are."""
    memory = np.empty(values.size * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + values.size * dtype.itemsize].view(dtype).reshape(values.shape)
    array[...] = values
    return array


def seconds(run, iterations):
    start = time.perf_counter()
    for _ in range(iterations):
        run()
    return time.perf_counter() - start


def iterations(run, sample):
    """How many calls make a sample, and the seconds of one. It warms up as well."""
    count = 1
    while (short := sample / seconds(run, count)) > 1.5:
        count = int(count * min(short, 100)) + 1
    one = seconds(run, count) / count
    return max(1, -int(-sample // one)), one


def sampler(run, sample, warm_up):
    """What gives a sample, in seconds of a call, after so many seconds of a warm-up. A process has a clock of its own."""
    if isinstance(run, Crate):

        def of_process():
            if warm_up:
                run.ask(0, 0, warm_up)
            return run()

        return of_process
    count, one = iterations(run, sample)

    def take():
        start = time.perf_counter()
        # A longer call on one thread fills its caches at no cost that could be seen.
        if warm_up or one < 0.02:
            run()
            while time.perf_counter() - start < warm_up:
                run()
        return seconds(run, count) / count

    return take


def interleave(contestants, rounds, pause, order):
    """In each round every contestant gives one sample, in an order that differs from round to round."""
    for _ in range(rounds):
        for _, take, samples in order.sample(contestants, len(contestants)):
            time.sleep(pause)
            samples.append(take())


def compare(task, problem, peers, emit):
    plan = task["plan"]
    expected, contestants = None, []
    for peer in peers:
        run, c = peer.prepare(problem)
        run()
        if (why := problem.error(c, expected)) is not None:
            emit("failure", peer, why=why, workload=problem.name)
            continue
        if peer.name == "tilewise":
            expected = c.copy()
        contestants.append((peer, sampler(run, plan["sample"], plan["warm_up"]), []))
    interleave(contestants, plan["rounds"], plan["pause"], random.Random(1))
    for peer, _, samples in contestants:
        emit("result", peer, workload=problem.name, median=statistics.median(samples), best=min(samples))


def introduce(task, peers, emit):
    """Says what each peer is, and how many threads it really keeps at work."""
    square = dict(name="", dtype="f32", m=1024, n=1024, k=1024, layout="NN", prepacked=False, batch=1, gram=False)
    problem = Problem(square)
    for peer in peers:
        run, _ = peer.prepare(problem)
        run()
        time.sleep(task["plan"]["pause"])
        cpu, start = time.process_time(), time.perf_counter()
        while time.perf_counter() - start < 0.1:
            run()
        busy = (time.process_time() - cpu) / (time.perf_counter() - start)
        emit("peer", peer, about=peer.about, busy=busy)


def main():
    task = json.load(sys.stdin)
    wanted = task["peers"]
    peers = [Tilewise(sys.argv[1])]
    for library in libraries.ALL:
        if wanted and library.name not in wanted:
            continue
        try:
            peers.append(library(task["threads"]))
        except ImportError as error:
            print(f"{library.name} is left out: {error}", file=sys.stderr)

    def emit(kind, peer, **fields):
        record = dict(kind=kind, process="python", threads=task["threads"], peer=peer.name, **fields)
        print(json.dumps(record), flush=True)

    if len(peers) == 1:
        return
    introduce(task, peers, emit)
    for workload in task["workloads"]:
        problem = Problem(workload)
        if problem.flops >= LEAST_FLOPS:
            compare(task, problem, peers, emit)


if __name__ == "__main__":
    main()
