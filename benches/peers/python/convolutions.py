"""Times convolutions and pooling of PyTorch, ONNX Runtime and OpenVINO beside those of Tilewise, all in this process, and of
Rust libraries in others, and prints a table.

    convolutions.py LIBRARY [--crates PROGRAM] [--threads N] [--filter REGEX] [--peers REGEX] [--batch 1,8] [--rounds N]

LIBRARY is Tilewise's C interface, as built by `cargo build --release` in `benches/peers`. The rules are those of the
matrix products. `forward` has weights as they are, `inference` those that may be packed before the clock starts,
`input` and `weight` are the gradients. Peers in NHWC begin and end in NHWC, and so does Tilewise for them. `pooling` counts
the bytes of what is read and written once. The share of the peak is that of Tilewise by default.
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import re
import statistics

from rounds import CRATES, Crate, attempt, highest, openvino_request, peak_line, timing, use_threads

parser = argparse.ArgumentParser()
parser.add_argument("library")
parser.add_argument("--crates", help=CRATES)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--filter", type=re.compile, default=re.compile(""))
parser.add_argument("--peers", type=re.compile, default=re.compile(""))
parser.add_argument("--batch", default="1,8")
parser.add_argument("--rounds", type=int, default=9)

KINDS = ["forward", "inference", "input", "weight"]
POOLS = [
    dict(name="max3x3s2_64_112", operation="max_pool", channels=64, size=112, kernel=3, stride=2),
    dict(name="average3x3s2_64_112", operation="average_pool", channels=64, size=112, kernel=3, stride=2),
    dict(name="global_2048_7", operation="global_average_pool", channels=2048, size=7, kernel=7, stride=1, padding=0),
]


class Sizes(ctypes.Structure):
    """`Sizes` of `src/abi_conv.rs`."""

    names = ["axes", "batch", "c_in", "c_out", "groups", "size", "kernel", "stride", "algorithm"]
    _fields_ = [(name, ctypes.c_size_t) for name in names] + [("last", ctypes.c_bool)]


class Layer:
    """A layer, a batch and what is computed of it. All tensors are NCHW here, or NCL where there is one axis."""

    axes = 2

    def __init__(self, layer, batch, kind):
        self.__dict__.update(dict(padding=layer["kernel"] // 2) | layer)
        self.batch, self.kind, self.name = batch, kind, f"{kind} {layer['name']} b{batch}"
        self.out = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        self.taps = self.kernel**self.axes
        numbers = np.random.default_rng(0x71133153)
        self.draw = lambda *shape: aligned(numbers.uniform(-1, 1, shape), np.dtype(np.float32))
        self.x = self.draw(batch, self.c_in, *[self.size] * self.axes)

    def expected(self):
        """In f64, by PyTorch."""
        import torch

        stored = (torch.from_numpy(array.astype(np.float64)) for array in self.operands)
        return self.torch(torch, *stored)().numpy()

    def windows(self):
        """As attributes of ONNX."""
        axes = self.axes
        return dict(kernel_shape=[self.kernel] * axes, strides=[self.stride] * axes, pads=[self.padding] * 2 * axes)

    def model(self, operator, weights=(), **attributes):
        """As ONNX, serialised."""
        from onnx import TensorProto, helper, numpy_helper

        node = helper.make_node(operator, ["x", *(name for name, _ in weights)], ["y"], **attributes)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        constants = [numpy_helper.from_array(array, name) for name, array in weights]
        graph = helper.make_graph([node], "layer", [x], [y], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    def error(self, found, expected, factor):
        # Neither factor of a product is larger than 1: partial sums grow like the root of their number.
        bound = factor * np.finfo(np.float32).eps * self.terms
        error = np.abs(found.astype(np.float64) - expected).max()
        return None if error <= bound else f"it is off by {error:.2g}, more than {bound:.2g}"


class Convolution(Layer):
    def __init__(self, layer, batch, kind):
        super().__init__(layer, batch, kind)
        self.w = self.draw(self.c_out, self.c_in // self.groups, *[self.kernel] * self.axes)
        self.dy = self.draw(batch, self.c_out, *[self.out] * self.axes)
        self.operands = [self.x, self.w, self.dy]

    @property
    def work(self):
        return 2 * self.dy.size * self.taps * self.c_in // self.groups

    def peak(self, peaks):
        return peaks[0]

    @property
    def terms(self):
        return {
            "forward": self.taps * self.c_in // self.groups,
            "inference": self.taps * self.c_in // self.groups,
            "input": self.taps * self.c_out // self.groups,
            "weight": self.batch * self.out**self.axes,
        }[self.kind]

    @property
    def shape(self):
        return {"input": self.x, "weight": self.w}.get(self.kind, self.dy).shape

    def torch(self, torch, x, w, dy):
        # A sequence may come as an image of one row.
        axes = x.dim() - 2
        rows = axes - self.axes
        padding, stride = [0] * rows + [self.padding] * self.axes, [1] * rows + [self.stride] * self.axes
        options = dict(stride=stride, padding=padding, groups=self.groups)
        if self.kind == "input":
            return lambda: getattr(torch.nn.grad, f"conv{axes}d_input")(x.shape, w, dy, **options)
        if self.kind == "weight":
            return lambda: getattr(torch.nn.grad, f"conv{axes}d_weight")(x, w.shape, dy, **options)
        return lambda: getattr(torch.nn.functional, f"conv{axes}d")(x, w, **options)

    def onnx(self):
        """Where the weights may be a constant."""
        if self.kind == "inference":
            return self.model("Conv", [("w", self.w)], group=self.groups, **self.windows())
        return None


class Pool(Layer):
    """Its work is the bytes read and written. Padding counts in a mean."""

    def __init__(self, layer, batch):
        channels = dict.fromkeys(["c_in", "c_out", "groups"], layer["channels"])
        super().__init__(layer | channels, batch, "pooling")
        self.shape, self.operands = (batch, self.channels, self.out, self.out), [self.x]
        # A maximum is exact.
        self.terms = 0 if self.operation == "max_pool" else self.taps

    @property
    def work(self):
        return 4 * (self.x.size + math.prod(self.shape))

    def peak(self, peaks):
        return peaks[2]

    def torch(self, torch, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        y = torch.full(self.shape, math.nan, dtype=x.dtype).to(memory_format=layout)
        windows = [self.kernel] * 2, [self.stride] * 2, [self.padding] * 2
        if self.operation == "max_pool":
            # Whoever wants no indices has them computed too.
            indices = torch.zeros_like(y, dtype=torch.int64)
            return lambda: torch.ops.aten.max_pool2d_with_indices.out(x, *windows, out=y, indices=indices)[0]
        if self.operation == "average_pool":
            return lambda: torch.ops.aten.avg_pool2d.out(x, *windows, out=y)
        return lambda: torch.mean(x, (2, 3), keepdim=True, out=y)

    def onnx(self):
        if self.operation == "max_pool":
            return self.model("MaxPool", **self.windows())
        if self.operation == "average_pool":
            return self.model("AveragePool", count_include_pad=1, **self.windows())
        return self.model("GlobalAveragePool")


class PyTorch:
    """The result is allocated in the call, but for pooling: its interface has nothing better."""

    def __init__(self, last):
        import torch

        self.torch, self.last = torch, last
        self.name = "pytorch channels_last" if last else "pytorch"
        torch.set_num_threads(arguments.threads)
        torch.set_grad_enabled(False)

    def prepare(self, problem):
        stored = [self.torch.from_numpy(array) for array in problem.operands]
        if self.last:
            # It has no such layout of sequences, but of images of one row.
            stored = [tensor.unsqueeze(2) if tensor.dim() == 3 else tensor for tensor in stored]
            stored = [tensor.to(memory_format=self.torch.channels_last) for tensor in stored]
        return problem.torch(self.torch, *stored), lambda result: result.numpy().reshape(problem.shape)


class OnnxRuntime:
    """Weights are a constant of the model, packed when it is loaded. It has no gradients."""

    name, last = "onnxruntime", False

    def __init__(self):
        import onnxruntime

        self.runtime = onnxruntime

    def prepare(self, problem):
        model = problem.onnx()
        if model is None:
            return None
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1
        session = self.runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        result, binding = aligned(np.full(problem.shape, np.nan), np.dtype(np.float32)), session.io_binding()
        for bind, name, array in [(binding.bind_input, "x", problem.x), (binding.bind_output, "y", result)]:
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return lambda keep=(problem, result): session.run_with_iobinding(binding), lambda _: result


class OpenVino:
    """Of models, as ONNX Runtime. Its results lie in tensors of the request."""

    name = "openvino"

    def __init__(self):
        import openvino

        self.tensor = openvino.Tensor

    def prepare(self, problem):
        model = problem.onnx()
        if model is None:
            return None
        request = openvino_request(model, arguments.threads)
        request.set_input_tensor(self.tensor(problem.x, shared_memory=True))
        return (lambda keep=problem: request.infer(share_outputs=True)), lambda _: request.get_output_tensor().data


class RustLibrary:
    """rten and tract run models, with constant weights; the others have weights as they are, and images."""

    def __init__(self, name):
        self.name, self.models = name, name in ("rten", "tract")

    def prepare(self, problem):
        if self.models:
            model = problem.onnx()
            if model is None:
                return None
            crate = Crate(self.name, "model", "forward", problem.x.shape, [problem.x], model)
        elif problem.kind in ("forward", "inference") and problem.axes == 2:
            sizes = [getattr(problem, name) for name in Sizes.names[1:-1]]
            crate = Crate(self.name, "convolution", "forward", sizes, [problem.x, problem.w])
        else:
            return None
        return crate, lambda _: crate.results([problem.shape])[0]


class Tilewise:
    def __init__(self, path, algorithm, last):
        self.library = ctypes.CDLL(path)
        for function in ("conv", "conv_packed", "conv_input", "conv_weight", *(pool["operation"] for pool in POOLS)):
            getattr(self.library, f"tilewise_s{function}").restype = ctypes.c_bool
        self.library.tilewise_sconv_pack.restype = ctypes.c_void_p
        self.library.tilewise_sconv_free.restype = None
        self.algorithm, self.last = algorithm, last
        self.name = "tilewise" + {0: "", 1: " implicit", 4: " winograd4"}[algorithm] + (" NHWC" if last else "")

    def prepare(self, problem):
        tiles = (problem.axes, problem.kernel, problem.stride, problem.groups) == (2, 3, 1, 1) and problem.kind != "weight"
        if self.algorithm and not tiles:
            return None
        values = [getattr(problem, name) for name in Sizes.names[:-1]]
        sizes = ctypes.byref(Sizes(*values, self.algorithm, self.last))
        image = lambda array: aligned(np.moveaxis(array, 1, -1), array.dtype) if self.last else array
        result = np.full(problem.shape, np.nan, np.float32)
        last = self.last and problem.kind != "weight"
        stored = aligned(np.moveaxis(result, 1, -1) if last else result, result.dtype)
        function, operands = {
            "forward": lambda: ("conv", (image(problem.x), problem.w)),
            "inference": lambda: ("conv_packed", (image(problem.x), None)),
            "input": lambda: ("conv_input", (image(problem.dy), problem.w)),
            "weight": lambda: ("conv_weight", (image(problem.x), image(problem.dy))),
            "pooling": lambda: (problem.operation, (image(problem.x),)),
        }[problem.kind]()
        pointers = [None if array is None else ctypes.c_void_p(array.ctypes.data) for array in (*operands, stored)]
        packed = None
        if problem.kind == "inference":
            packed = Packed(self.library, sizes, problem.w)
            pointers[1] = packed.pointer
        function = getattr(self.library, f"tilewise_s{function}")

        def run(keep=(problem, operands, stored, packed)):
            if not function(sizes, *pointers):
                raise RuntimeError(f"Tilewise refused {problem.name}")

        return run, lambda _: np.moveaxis(stored, -1, 1) if last else stored


class Packed:
    """Packed weights, freed with their owner."""

    def __init__(self, library, sizes, w):
        self.library = library
        self.pointer = ctypes.c_void_p(library.tilewise_sconv_pack(sizes, ctypes.c_void_p(w.ctypes.data)))
        if not self.pointer:
            raise MemoryError

    def __del__(self):
        self.library.tilewise_sconv_free(self.pointer)


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
            why = f"left out: {error}".splitlines()[0][:160]
        if why is not None:
            wrong[peer.name] = why
            continue
        contestants.append((peer, sampler(run, SAMPLE, WARM_UP), []))
    interleave(contestants, arguments.rounds, PAUSE, order)
    return {peer.name: statistics.median(samples) for peer, _, samples in contestants}, wrong


def problems():
    layers = json.loads((pathlib.Path(__file__).parent.parent / "convolutions.json").read_text())
    batches = [int(batch) for batch in arguments.batch.split(",")]
    # Layers of small networks are trained on batches of their own.
    of = lambda layer: [layer["batch"]] if "batch" in layer else batches
    for kind in KINDS:
        yield from (Convolution(layer, batch, kind) for layer in layers for batch in of(layer))
    yield from (Pool(layer, batch) for layer in POOLS for batch in batches)


def main():
    own = [Tilewise(arguments.library, algorithm, last) for algorithm, last in [(0, False), (0, True), (1, False), (4, False), (4, True)]]
    peers = [PyTorch(False), PyTorch(True)]
    attempt(OnnxRuntime, peers)
    attempt(OpenVino, peers)
    if arguments.crates:
        peers += map(RustLibrary, ["candle", "burn", "rten", "tract"])
    peers = [peer for peer in peers if arguments.peers.search(peer.name)]
    columns = [peer.name for peer in own + peers]
    reached = highest(peaks(own[0].library, arguments.threads) for _ in range(3))
    print(peak_line(arguments.threads, reached))
    print(f"{arguments.threads} thread(s), GFLOP/s of the direct algorithm, pooling GB/s\n")
    print("| workload | best peer | ratio | best of Tilewise |", *(f"{name} |" for name in columns), "of peak |")
    print("| --- | --- | ---: | ---: |" + " ---: |" * (len(columns) + 1))
    ratios = {}
    for problem in problems():
        if not arguments.filter.search(problem.name):
            continue
        times, wrong = compare(problem, own + peers)
        rate = lambda name: f"{problem.work / times[name] / 1e9:.1f}" if name in times else wrong.get(name, "")
        best = min(((times[peer.name], peer.name) for peer in peers if peer.name in times), default=None)
        if best is None:
            continue
        # By default, in the better of the two layouts, as the peers.
        default = min(times[name] for name in ("tilewise", "tilewise NHWC") if name in times)
        most = min(times[peer.name] for peer in own if peer.name in times)
        ratio, share = best[0] / default, problem.work / default / 1e9 / problem.peak(reached)
        ratios.setdefault(problem.kind, []).append(ratio)
        shown = f"{ratio:.3f}" if ratio >= 1 else f"**{ratio:.3f}**"
        cells = [f"{rate(name)} |" for name in columns]
        print(f"| {problem.name} | {best[1]} | {shown} | {best[0] / most:.3f} |", *cells, f"{100 * share:.0f} % |", flush=True)
    for kind, found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        print(f"\n{kind}: geometric mean of best peer's time / Tilewise's {mean:.3f}, worst {min(found):.3f}")


arguments = parser.parse_args()
# Before the libraries are loaded.
use_threads(arguments.threads)
os.environ["KMP_BLOCKTIME"] = "1"
SAMPLE, PAUSE, WARM_UP = timing(arguments.threads)
Crate.program, Crate.seconds = arguments.crates, SAMPLE

import random

import numpy as np

from peers import aligned, interleave, sampler
from tilewise import peaks

order = random.Random(1)
main()
