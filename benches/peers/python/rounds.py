"""What the scripts beside this one share: threads, the clock, and Tilewise in a process of its own.

Imports nothing that has threads: their number is set before the libraries are loaded.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]


def use_threads(count):
    """For all libraries, before they are loaded."""
    for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(count)


def openvino_options(threads):
    """One request at a time in `f32`, as all others have it."""
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return options | {"INFERENCE_PRECISION_HINT": "f32"}


def median_call(run, least):
    """Seconds of the median call within `least` seconds, after a warm one."""
    run()
    start, times = time.perf_counter(), []
    while not times or time.perf_counter() - start < least:
        call = time.perf_counter()
        run()
        times.append(time.perf_counter() - call)
    return statistics.median(times)


def attempt(make, found):
    """Adds what is made, unless its library is missing or refuses."""
    try:
        found.append(make())
    except Exception as error:
        print(f"left out: {error}", file=sys.stderr)


def built(bench):
    """The program of one of Tilewise's benches."""
    command = ["cargo", "bench", "--no-run", "--bench", bench, "--message-format", "json"]
    for line in subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == bench:
            return message["executable"]
    sys.exit("cargo built no bench")


class Process:
    """Tilewise in a process of its own, which answers each line with the seconds of its median call."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def ask(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
