"""What the scripts beside this one share: threads, the clock, and Tilewise and Rust libraries in processes of their own.

Imports nothing that has threads: their number is set before the libraries are loaded.
"""

import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
CRATES = "the program of benches/peers/crates, where it is built: Rust libraries take part"


def use_threads(count):
    """For all libraries, before they are loaded."""
    for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RTEN_NUM_THREADS"):
        os.environ[variable] = str(count)


def timing(threads):
    """Seconds of a sample, of the pause before it, and of the calls that warm up in between."""
    # ONNX Runtime's threads spin for long after a call.
    return 6e-3, *((50e-3, 30e-3) if threads > 1 else (0.0, 0.0))


def openvino_request(model, threads):
    """Of OpenVINO's own model, of one in a file, or of ONNX, serialised. One request at a time in `f32`, as all others have
    it."""
    import openvino

    core = openvino.Core()
    if isinstance(model, bytes):
        model = core.read_model(model, b"")
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    options |= {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(model, "CPU", options).create_infer_request()


def highest(readings):
    """Of what the machine does at most: its speed drifts."""
    return [max(figures) for figures in zip(*readings)]


def peak_line(threads, peaks):
    flops, read, copied = peaks
    return f"{threads} thread(s): {flops:.1f} GFLOP/s in registers, {read:.1f} GB/s read, {copied:.1f} GB/s copied"


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
    """A process that answers each line with the seconds of its median call."""

    process = None

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def ask(self, *words):
        # One that has failed has said why, and does not listen.
        with contextlib.suppress(BrokenPipeError):
            print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} gives no answer")
        return float(answer)

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


class Crate(Process):
    """A Rust library at one piece of work, through the program of `benches/peers/crates`. Each script says once where that
    is, and how long a round takes."""

    program = seconds = None

    def __init__(self, name, work, kind, sizes, arrays=(), model=b""):
        self.name = name
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "in").write_bytes(b"".join(array.tobytes() for array in arrays))
            (folder / "model.onnx").write_bytes(model)
            super().__init__([pathlib.Path(self.program).resolve(), name, folder, work, kind, *map(str, sizes)])
            # By its answer the results are written.
            self.ask(0, 0, 0)
            self.out = (folder / "out").read_bytes()

    def __del__(self):
        if self.process:
            self.close()

    def results(self, shapes):
        """What it computed at first."""
        import numpy as np

        numbers, sizes = np.frombuffer(self.out, np.float32), [math.prod(shape) for shape in shapes]
        assert len(numbers) == sum(sizes), f"{self.name} gives {len(numbers)} numbers, not {sum(sizes)}"
        parts = np.split(numbers, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes)]

    def __call__(self):
        return self.ask(0, 0, self.seconds)

    time = __call__
