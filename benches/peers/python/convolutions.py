"""Times convolutions of PyTorch and ONNX Runtime beside those of Tilewise, all in this process, and of Rust libraries in
others, and prints a table.

    convolutions.py LIBRARY [--crates PROGRAM] [--threads N] [--filter REGEX] [--peers REGEX] [--batch 1,8] [--rounds N]

LIBRARY is Tilewise's C interface, as built by `cargo build --release` in `benches/peers`. The rules are those of the
matrix products. `forward` has weights as they are, `inference` those that may be packed before the clock starts,
`input` and `weight` are the gradients. Peers in NHWC begin and end in NHWC, and so does Tilewise for them.
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import re
import statistics

from rounds import CRATES, Crate, timing, use_threads

parser = argparse.ArgumentParser()
parser.add_argument("library")
parser.add_argument("--crates", help=CRATES)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--filter", type=re.compile, default=re.compile(""))
parser.add_argument("--peers", type=re.compile, default=re.compile(""))
parser.add_argument("--batch", default="1,8")
parser.add_argument("--rounds", type=int, default=9)

KINDS = ["forward", "inference", "input", "weight"]


class Sizes(ctypes.Structure):
    """`Sizes` of `src/abi_conv.rs`."""

    names = ["batch", "c_in", "c_out", "groups", "size", "kernel", "stride", "algorithm"]
    _fields_ = [(name, ctypes.c_size_t) for name in names] + [("last", ctypes.c_bool)]


class Convolution:
    """A layer, a batch and what is computed of it. All tensors are NCHW here."""

    def __init__(self, layer, batch, kind):
        self.__dict__.update(layer)
        self.batch, self.kind, self.name = batch, kind, f"{kind} {layer['name']} b{batch}"
        self.padding = self.kernel // 2
        self.out = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        numbers = np.random.default_rng(0x71133153)
        dtype = np.dtype(np.float32)
        draw = lambda *shape: aligned(numbers.uniform(-1, 1, shape), dtype)
        self.x = draw(batch, self.c_in, self.size, self.size)
        self.w = draw(self.c_out, self.c_in // self.groups, self.kernel, self.kernel)
        self.dy = draw(batch, self.c_out, self.out, self.out)

    @property
    def flops(self):
        taps = self.kernel**2 * self.c_in // self.groups
        return 2 * self.batch * self.c_out * self.out**2 * taps

    @property
    def terms(self):
        taps = self.kernel**2
        return {
            "forward": taps * self.c_in // self.groups,
            "inference": taps * self.c_in // self.groups,
            "input": taps * self.c_out // self.groups,
            "weight": self.batch * self.out**2,
        }[self.kind]

    @property
    def shape(self):
        return {"input": self.x, "weight": self.w}.get(self.kind, self.dy).shape

    def expected(self):
        """In f64, by PyTorch."""
        import torch

        x, w, dy = (torch.from_numpy(array.astype(np.float64)) for array in (self.x, self.w, self.dy))
        return torch_call(torch, self, x, w, dy)().numpy()

    def onnx(self):
        """As ONNX, serialised."""
        from onnx import TensorProto, helper, numpy_helper

        attributes = dict(
            group=self.groups, strides=[self.stride] * 2, pads=[self.padding] * 4, kernel_shape=[self.kernel] * 2
        )
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "convolution", [x], [y], [numpy_helper.from_array(self.w, "w")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    def error(self, found, expected, factor):
        # Neither factor of a product is larger than 1: partial sums grow like the root of their number.
        bound = factor * np.finfo(np.float32).eps * self.terms
        error = np.abs(found.astype(np.float64) - expected).max()
        return None if error <= bound else f"it is off by {error:.2g}, more than {bound:.2g}"


def torch_call(torch, problem, x, w, dy):
    options = dict(stride=problem.stride, padding=problem.padding, groups=problem.groups)
    if problem.kind == "input":
        return lambda: torch.nn.grad.conv2d_input(x.shape, w, dy, **options)
    if problem.kind == "weight":
        return lambda: torch.nn.grad.conv2d_weight(x, w.shape, dy, **options)
    return lambda: torch.nn.functional.conv2d(x, w, **options)


class PyTorch:
    """The result is allocated in the call: its interface has nothing better."""

    def __init__(self, last):
        import torch

        self.torch, self.last = torch, last
        self.name = "pytorch channels_last" if last else "pytorch"
        torch.set_num_threads(arguments.threads)
        torch.set_grad_enabled(False)

    def prepare(self, problem):
        stored = (self.torch.from_numpy(array) for array in (problem.x, problem.w, problem.dy))
        if self.last:
            stored = (tensor.to(memory_format=self.torch.channels_last) for tensor in stored)
        call = torch_call(self.torch, problem, *stored)
        return call, lambda result: result.numpy()


class OnnxRuntime:
    """Weights are a constant of the model, packed when it is loaded. It has no gradients."""

    name, last = "onnxruntime", False

    def __init__(self):
        import onnxruntime

        self.runtime = onnxruntime

    def prepare(self, problem):
        if problem.kind != "inference":
            return None
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1
        session = self.runtime.InferenceSession(problem.onnx(), options, providers=["CPUExecutionProvider"])
        result, binding = aligned(np.full(problem.shape, np.nan), np.dtype(np.float32)), session.io_binding()
        for bind, name, array in [(binding.bind_input, "x", problem.x), (binding.bind_output, "y", result)]:
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return lambda keep=(problem, result): session.run_with_iobinding(binding), lambda _: result


class RustLibrary:
    """rten and tract run models, with constant weights; the others have weights as they are."""

    def __init__(self, name):
        self.name, self.models = name, name in ("rten", "tract")

    def prepare(self, problem):
        if problem.kind not in (["inference"] if self.models else ["forward", "inference"]):
            return None
        if self.models:
            crate = Crate(self.name, "model", "forward", problem.x.shape, [problem.x], problem.onnx())
        else:
            sizes = [getattr(problem, name) for name in Sizes.names[:-1]]
            crate = Crate(self.name, "convolution", "forward", sizes, [problem.x, problem.w])
        return crate, lambda _: crate.results([problem.shape])[0]


class Tilewise:
    def __init__(self, path, algorithm, last):
        self.library = ctypes.CDLL(path)
        for function in ("", "_packed", "_input", "_weight"):
            getattr(self.library, f"tilewise_sconv2d{function}").restype = ctypes.c_bool
        self.library.tilewise_sconv2d_pack.restype = ctypes.c_void_p
        self.library.tilewise_sconv2d_free.restype = None
        self.algorithm, self.last = algorithm, last
        self.name = "tilewise" + {0: "", 1: " implicit", 4: " winograd4"}[algorithm] + (" NHWC" if last else "")

    def prepare(self, problem):
        tiles = problem.kernel == 3 and problem.stride == 1 and problem.groups == 1 and problem.kind != "weight"
        if self.algorithm and not tiles:
            return None
        values = [getattr(problem, name) for name in Sizes.names[:-1]]
        sizes = ctypes.byref(Sizes(*values, self.algorithm, self.last))
        image = lambda array: aligned(array.transpose(0, 2, 3, 1), array.dtype) if self.last else array
        x, dy = image(problem.x), image(problem.dy)
        result = np.full(problem.shape, np.nan, np.float32)
        last = self.last and problem.kind != "weight"
        stored = aligned(result.transpose(0, 2, 3, 1) if last else result, result.dtype)
        function, operands = {
            "forward": ("", (x, problem.w)),
            "inference": ("_packed", (x, None)),
            "input": ("_input", (dy, problem.w)),
            "weight": ("_weight", (x, dy)),
        }[problem.kind]
        pointers = [None if array is None else ctypes.c_void_p(array.ctypes.data) for array in (*operands, stored)]
        packed = None
        if problem.kind == "inference":
            packed = Packed(self.library, sizes, problem.w)
            pointers[1] = packed.pointer
        function = getattr(self.library, f"tilewise_sconv2d{function}")

        def run(keep=(problem, x, dy, stored, packed)):
            if not function(sizes, *pointers):
                raise RuntimeError("Tilewise refused a convolution")

        return run, lambda _: stored.transpose(0, 3, 1, 2) if last else stored


class Packed:
    """Packed weights, freed with their owner."""

    def __init__(self, library, sizes, w):
        self.library = library
        self.pointer = ctypes.c_void_p(library.tilewise_sconv2d_pack(sizes, ctypes.c_void_p(w.ctypes.data)))
        if not self.pointer:
            raise MemoryError

    def __del__(self):
        self.library.tilewise_sconv2d_free(self.pointer)


def compare(problem, peers):
    """Medians of seconds by peer, and what was wrong."""
    expected, contestants, wrong = problem.expected(), [], {}
    for peer in peers:
        # The larger tiles of Winograd are allowed what their users choose; so are the peers, who do not say what they do.
        factor = 8 if peer.name == "tilewise implicit" else 200
        try:
            prepared = peer.prepare(problem)
            if prepared is None:
                continue
            run, result = prepared
            why = problem.error(result(run()), expected, factor)
        except Exception as error:
            why = f"left out: {error}"
        if why is not None:
            wrong[peer.name] = why
            continue
        contestants.append((peer, sampler(run, SAMPLE, WARM_UP), []))
    interleave(contestants, arguments.rounds, PAUSE, order)
    return {peer.name: statistics.median(samples) for peer, _, samples in contestants}, wrong


def main():
    layers = json.loads((pathlib.Path(__file__).parent.parent / "convolutions.json").read_text())
    own = [Tilewise(arguments.library, algorithm, last) for algorithm, last in [(0, False), (0, True), (1, False), (4, False), (4, True)]]
    peers = [PyTorch(False), PyTorch(True)]
    try:
        peers.append(OnnxRuntime())
    except ImportError as error:
        print(f"onnxruntime is left out: {error}", file=sys.stderr)
    if arguments.crates:
        peers += map(RustLibrary, ["candle", "burn", "rten", "tract"])
    peers = [peer for peer in peers if arguments.peers.search(peer.name)]
    columns = [peer.name for peer in own + peers]
    print(f"{arguments.threads} thread(s), GFLOP/s of the direct algorithm\n")
    print("| workload | best peer | ratio | best of Tilewise |", *(f"{name} |" for name in columns))
    print("| --- | --- | ---: | ---: |" + " ---: |" * len(columns))
    ratios = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for layer in layers:
            for batch in map(int, arguments.batch.split(",")):
                problem = Convolution(layer, batch, kind)
                if not arguments.filter.search(problem.name):
                    continue
                times, wrong = compare(problem, own + peers)
                rate = lambda name: f"{problem.flops / times[name] / 1e9:.1f}" if name in times else wrong.get(name, "")
                best = min(((times[peer.name], peer.name) for peer in peers if peer.name in times), default=None)
                if best is None:
                    continue
                # By default, in the better of the two layouts, as the peers.
                default = min(times[name] for name in ("tilewise", "tilewise NHWC") if name in times)
                most = min(times[peer.name] for peer in own if peer.name in times)
                ratio = best[0] / default
                ratios[kind].append(ratio)
                shown = f"{ratio:.3f}" if ratio >= 1 else f"**{ratio:.3f}**"
                print(f"| {problem.name} | {best[1]} | {shown} | {best[0] / most:.3f} |", *(f"{rate(name)} |" for name in columns), flush=True)
    for kind, found in ratios.items():
        if found:
            mean = math.exp(statistics.fmean(map(math.log, found)))
            print(f"\n{kind}: geometric mean of best peer's time / Tilewise's {mean:.3f}, worst {min(found):.3f}")


arguments = parser.parse_args()
# Before the libraries are loaded.
use_threads(arguments.threads)
os.environ["KMP_BLOCKTIME"] = "1"
SAMPLE, PAUSE, WARM_UP = timing(arguments.threads)
Crate.program, Crate.seconds = arguments.crates, SAMPLE

import random
import sys

import numpy as np

from peers import aligned, interleave, sampler

order = random.Random(1)
main()
