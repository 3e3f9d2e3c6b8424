"""Times recurrent layers of Tilewise beside PyTorch, ONNX Runtime, OpenVINO and Rust libraries: forward, forward and
backward, and a step of a stream at batch 1.

    pip install numpy onnx onnxruntime openvino torch
    python3 benches/peers/python/recurrent.py --threads 1

Tilewise's bench `rnn` writes its random weights, what goes in and what it makes of that; every library gets the same, and
its outputs and gradients are compared before anything is timed. Forward runs over constant weights, forward and backward
over weights that change, and gives the gradients for x, both weights and both biases. A step carries its states. Rounds go
in turn; the table has the median of each one's rounds. A GRU resets after the product, as PyTorch's. Each line ends with
Tilewise's share of the multiply-adds that the machine does in registers, of a step that of the bytes it reads from memory.
"""

import argparse
import math
import pathlib
import statistics
import subprocess
import tempfile
import time

from rounds import CRATES, Crate, Process, attempt, built, highest, median_call, openvino_request, peak_line, use_threads

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--seconds", type=float, default=0.1, help="of one round of one library")
parser.add_argument("--cells", default="elman,lstm,gru")
parser.add_argument("--sizes", default="0,1,2,3", help="which of the bench's sizes")
parser.add_argument("--kinds", default="forward,training,step")
parser.add_argument("--without", default="", help="libraries that are left out")
parser.add_argument("--program", help="the bench `rnn`, where it is built already")
parser.add_argument("--crates", help=CRATES)
arguments = parser.parse_args()
Crate.program, Crate.seconds = arguments.crates, arguments.seconds
# Before the libraries are loaded.
use_threads(arguments.threads)

import numpy as np
import torch

torch.set_num_threads(arguments.threads)
# Threads of the one that ran before may still spin.
PAUSE = 0.2 if arguments.threads > 1 else 0.0
# As in `benches/rnn.rs`: time, batch, inputs, hidden.
SIZES = [(25, 16, 512, 512), (50, 32, 256, 256), (100, 1, 512, 512), (25, 64, 1024, 1024)]
GATES = dict(elman=1, lstm=4, gru=3)
KINDS = ["forward", "training", "step"]
# Gates of ONNX in PyTorch's order.
ONNX = dict(elman=("RNN", [0]), lstm=("LSTM", [0, 3, 1, 2]), gru=("GRU", [1, 0, 2]))


class Problem:
    """A layer with its weights, what goes in, and what Tilewise makes of it."""

    def __init__(self, program, cell, size):
        self.cell, self.size, gates = cell, size, GATES[cell]
        time, batch, inputs, hidden = SIZES[size]
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "numbers"
            subprocess.run([*program, "--export", cell, str(size), str(file)], check=True)
            numbers = np.fromfile(file, np.float32)
        at = 0

        def take(*shape):
            nonlocal at
            at += math.prod(shape)
            return numbers[at - math.prod(shape) : at].reshape(shape).copy()

        rows = gates * hidden
        self.u, self.w, self.b, self.rb = take(rows, inputs), take(rows, hidden), take(rows), take(rows)
        self.x, self.dy = take(time, batch, inputs), take(time, batch, hidden)
        self.y, self.dx, self.du, self.dw = take(*self.dy.shape), take(*self.x.shape), take(rows, inputs), take(rows, hidden)
        assert at == len(numbers), (at, len(numbers))

    def check(self, name, *pairs):
        for found, expected in pairs:
            error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
            assert error < 1e-4, f"{name}: differs by {error:.1e} of the largest number"

    def onnx(self, step):
        """As ONNX, serialised: the states go in and come out where it is a step."""
        from onnx import TensorProto, helper, numpy_helper

        steps, batch, inputs, hidden = SIZES[self.size]
        operator, order = ONNX[self.cell]
        gates = lambda array: np.concatenate([np.split(array, len(order))[gate] for gate in order])
        bias = np.concatenate([gates(self.b), gates(self.rb)])
        constants = [
            numpy_helper.from_array(array[None], name)
            for name, array in [("u", gates(self.u)), ("w", gates(self.w)), ("bias", bias)]
        ]
        states = ["h", "c"][: 2 if self.cell == "lstm" else 1] if step else []
        options = dict(hidden_size=hidden) | (dict(linear_before_reset=1) if self.cell == "gru" else {})
        outputs = ["", *(f"next_{state}" for state in states)] if step else ["y"]
        node = helper.make_node(operator, ["x", "u", "w", "bias", "", *states], outputs, **options)
        value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        length = 1 if step else steps
        results = [value(f"next_{state}", 1, batch, hidden) for state in states]
        graph = helper.make_graph(
            [node],
            "layer",
            [value("x", length, batch, inputs), *(value(state, 1, batch, hidden) for state in states)],
            results if step else [value("y", length, 1, batch, hidden)],
            constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


    def crate(self, name, kind):
        """rten and tract run models, with constant weights."""
        if name in ("rten", "tract"):
            crate = Crate(name, "model", "forward", self.x.shape, [self.x], self.onnx(False))
        else:
            arrays = [self.u, self.w, self.b, self.rb, self.x, self.dy]
            crate = Crate(name, self.cell, kind, SIZES[self.size], arrays)
        expected = dict(step=[self.y[:1]], training=[self.y, self.dx, self.du, self.dw]).get(kind, [self.y])
        self.check(name, *zip(crate.results([array.shape for array in expected]), expected))
        return crate


def crates(cell, kind):
    """Of those who have that; an Elman cell is only in tract."""
    if not arguments.crates:
        return []
    names = ["candle", "burn", "rten", "tract"] if kind == "forward" else ["candle", "burn"]
    return [name for name in names if cell != "elman" or name == "tract"]


def read_peaks(program):
    """Of the machine, as in `rounds.py`."""
    found = subprocess.run([*program, "--peaks"], capture_output=True, text=True, check=True)
    return [float(figure) for figure in found.stdout.split()]


class Tilewise(Process):
    name = "tilewise"

    def __init__(self, program, cell):
        super().__init__([*program, "--measure", cell])

    def select(self, size, kind):
        self.words = size, KINDS.index(kind), arguments.seconds

    def time(self):
        return self.ask(*self.words)


class PyTorch:
    name = "pytorch"

    def __init__(self, problem, kind):
        self.kind = kind
        _, _, inputs, hidden = SIZES[problem.size]
        module = dict(elman=torch.nn.RNN, lstm=torch.nn.LSTM, gru=torch.nn.GRU)[problem.cell]
        self.module = module(inputs, hidden)
        with torch.no_grad():
            for name, array in [("weight_ih", problem.u), ("weight_hh", problem.w), ("bias_ih", problem.b), ("bias_hh", problem.rb)]:
                getattr(self.module, f"{name}_l0").copy_(torch.tensor(array))
        self.x, self.dy = torch.tensor(problem.x), torch.tensor(problem.dy)
        if kind == "training":
            self.x.requires_grad_()
            y = self.training()
            to = self.module
            grads = [(self.x.grad, problem.dx), (to.weight_ih_l0.grad, problem.du), (to.weight_hh_l0.grad, problem.dw)]
            problem.check(self.name, (y.detach(), problem.y), *grads)
            return
        with torch.inference_mode():
            if kind == "step":
                self.x, self.states = self.x[:1].clone(), None
                problem.check(self.name, (self.step(), problem.y[:1]))
            else:
                problem.check(self.name, (self.module(self.x)[0], problem.y))

    def training(self):
        self.module.zero_grad()
        self.x.grad = None
        y, _ = self.module(self.x)
        y.backward(self.dy)
        return y

    def step(self):
        y, self.states = self.module(self.x, self.states)
        return y

    def time(self):
        if self.kind == "training":
            return median_call(self.training, arguments.seconds)
        with torch.inference_mode():
            return median_call(self.step if self.kind == "step" else lambda: self.module(self.x), arguments.seconds)


class OnnxRuntime:
    """Inputs and outputs are bound, so that a call costs little besides its work."""

    name = "onnxruntime"

    def __init__(self, problem, kind):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        self.session = onnxruntime.InferenceSession(problem.onnx(kind == "step"), options, providers=["CPUExecutionProvider"])
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        x = value(problem.x[:1] if kind == "step" else problem.x)
        names = ["h", "c"][: 2 if problem.cell == "lstm" else 1] if kind == "step" else []
        # A state goes out where the next step reads it: two sets, in turn.
        sets = [[value(np.zeros_like(problem.y[:1])) for _ in names] for _ in range(2)]
        y = value(np.zeros_like(problem.y)[:, None])
        self.kept, self.turn, self.bindings = [x, y, sets], 0, []
        for before, after in [sets, sets[::-1]] if names else [sets]:
            binding = self.session.io_binding()
            binding.bind_ortvalue_input("x", x)
            for name, one, two in zip(names, before, after):
                binding.bind_ortvalue_input(name, one)
                binding.bind_ortvalue_output(f"next_{name}", two)
            if not names:
                binding.bind_ortvalue_output("y", y)
            self.bindings.append(binding)
        self.run()
        if names:
            problem.check(self.name, (sets[1][0].numpy(), problem.y[:1]))
        else:
            problem.check(self.name, (y.numpy(), problem.y[:, None]))

    def run(self):
        self.session.run_with_iobinding(self.bindings[self.turn % len(self.bindings)])
        self.turn += 1

    def time(self):
        return median_call(self.run, arguments.seconds)


class OpenVino:
    name = "openvino"

    def __init__(self, problem, kind):
        import openvino

        self.request = openvino_request(problem.onnx(kind == "step"), arguments.threads)
        names = ["x", *(["h", "c"][: 2 if problem.cell == "lstm" else 1] if kind == "step" else [])]
        first = np.zeros_like(problem.y[:1])
        arrays = [problem.x[:1].copy() if kind == "step" else problem.x, first.copy(), first.copy()]
        for name, array in zip(names, arrays):
            self.request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self.arrays = arrays
        self.request.infer()
        out = self.request.get_output_tensor(0).data
        problem.check(self.name, (out.reshape(-1), (problem.y[:1] if kind == "step" else problem.y).reshape(-1)))

    def time(self):
        return median_call(lambda: self.request.infer(share_outputs=True), arguments.seconds)


def main():
    program = [arguments.program or built("rnn")]
    peaks = highest(read_peaks(program) for _ in range(3))
    print(peak_line(arguments.threads, peaks))
    print(f"{arguments.threads} thread(s); GFLOP/s, of a step microseconds; ratio: time of the best peer / Tilewise's\n")
    ratios = {kind: [] for kind in KINDS}
    for kind in arguments.kinds.split(","):
        for cell in arguments.cells.split(","):
            own = Tilewise(program, cell)
            for size in map(int, arguments.sizes.split(",")):
                steps, batch, inputs, hidden = SIZES[size]
                if kind == "step" and batch > 1:
                    continue
                own.select(size, kind)
                problem, peers = Problem(program, cell, size), [own]
                for library in [PyTorch] if kind == "training" else [PyTorch, OnnxRuntime, OpenVino]:
                    if library.name not in arguments.without.split(","):
                        attempt(lambda: library(problem, kind), peers)
                for name in crates(cell, kind):
                    if name not in arguments.without.split(","):
                        attempt(lambda: problem.crate(name, kind), peers)
                if peers == [own]:
                    continue
                times = {peer.name: [] for peer in peers}
                for _ in range(arguments.rounds):
                    for peer in peers:
                        time.sleep(PAUSE)
                        times[peer.name].append(peer.time())
                medians = {name: statistics.median(values) for name, values in times.items()}
                flops = 2 * steps * batch * GATES[cell] * hidden * (inputs + hidden) * (3 if kind == "training" else 1)
                show = lambda seconds: 1e6 * seconds if kind == "step" else 1e-9 * flops / seconds
                # A step reads the weights once.
                bytes = 4 * GATES[cell] * hidden * (inputs + hidden)
                share = bytes / peaks[1] if kind == "step" else flops / peaks[0]
                share *= 1e-9 / medians[own.name]
                ratio = min(medians[peer.name] for peer in peers[1:]) / medians[own.name]
                ratios[kind].append(ratio)
                cells = ", ".join(f"{name} {show(seconds):.1f}" for name, seconds in medians.items())
                line = f"{cell} {kind} T {steps} B {batch} I {inputs} H {hidden}: ratio {ratio:.2f}; {cells}"
                print(f"{line}; {100 * share:.0f} % of peak", flush=True)
            own.close()
    for kind, values in ratios.items():
        if values:
            print(f"{kind}: geometric mean of the ratios {math.prod(values) ** (1 / len(values)):.3f}")


main()
