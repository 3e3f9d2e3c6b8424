"""Times attention, and operations over rows, of PyTorch, ONNX Runtime and OpenVINO beside those of Tilewise, all in this
process, and of Rust libraries in others, and prints tables.

    attention.py LIBRARY [--crates PROGRAM] [--threads N] [--filter REGEX] [--peers REGEX] [--rounds N]

LIBRARY is Tilewise's C interface, as built by `cargo build --release` in `benches/peers`. The rules are those of the
matrix products. Operations are those of the two products: causal ones count half, forward and backward counts three
times forward, whatever is computed again. Decoding and rows count the bytes of what is read and written once.
"""

import argparse
import ctypes
import math
import os
import re
import statistics

from rounds import CRATES, Crate, highest, openvino_request, peak_line, timing, use_threads

parser = argparse.ArgumentParser()
parser.add_argument("library")
parser.add_argument("--crates", help=CRATES)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--filter", type=re.compile, default=re.compile(""))
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--peers", type=re.compile, default=re.compile(""))

# Batch, heads, length and dim.
FULL = [(1, 12, 128, 64), (8, 12, 128, 64), (1, 12, 512, 64), (1, 12, 2048, 64), (1, 32, 1024, 128)]
DECODE = [2048, 8192]
ROWS = [(8192, 128), (1365, 768)]
# Their numbers are those of `src/abi_attention.rs`.
OPERATIONS = ["softmax", "layer norm", "RMS norm", "GELU", "exp", "tanh", "sigmoid"]


class Sizes(ctypes.Structure):
    """`Sizes` of `src/abi_attention.rs`."""

    names = ["batch", "heads", "kv_heads", "queries", "keys", "dim"]
    _fields_ = [(name, ctypes.c_size_t) for name in names] + [("causal", ctypes.c_bool)]


class Attention:
    """Sizes, operands, and which results are wanted: Y, or Y and the gradients of Q, K and V."""

    def __init__(self, kind, causal, batch, heads, kv_heads, queries, keys, dim):
        self.kind, self.causal = kind, causal
        self.batch, self.heads, self.kv_heads = batch, heads, kv_heads
        self.queries, self.keys, self.dim = queries, keys, dim
        if kind == "decode":
            self.name = f"decode, {heads} heads over {kv_heads}, {keys} keys, D {dim}"
        else:
            self.name = f"{kind}, {'causal' if causal else 'full'}, B {batch}, H {heads}, L {keys}, D {dim}"
        numbers = np.random.default_rng(0x71133153)
        draw = lambda *shape: aligned(numbers.uniform(-1, 1, shape), np.dtype(np.float32))
        self.q, self.dy = (draw(batch, heads, queries, dim) for _ in range(2))
        self.k, self.v = (draw(batch, kv_heads, keys, dim) for _ in range(2))

    @property
    def unit(self):
        return "GB/s" if self.kind == "decode" else "GFLOP/s"

    @property
    def work(self):
        if self.kind == "decode":
            return 4 * (self.k.size + self.v.size + 2 * self.q.size)
        flops = 4 * self.batch * self.heads * self.queries * self.keys * self.dim
        return flops // (2 if self.causal else 1) * (3 if self.kind == "training" else 1)

    def peak(self, peaks):
        return peaks[1] if self.kind == "decode" else peaks[0]

    def check(self, results):
        """What is wrong with the first and the last head, or None."""
        if self.kind == "decode":
            self.expected = self.expected or [self.reference(0, head) for head in (0, self.heads - 1)]
        elif not self.expected:
            self.expected = [self.reference(0, 0), self.reference(self.batch - 1, self.heads - 1)]
        for entry, head, *expected in self.expected:
            for name, found, wanted in zip(["Y", "dQ", "dK", "dV"], results, expected):
                error = np.abs(found[entry, head] - wanted).max() / np.abs(wanted).max()
                if not error < 1e-5:
                    return f"{name} is off by {error:.1e} of the largest"
        return None

    expected = None

    def reference(self, entry, head):
        """One head in f64, from the formulas."""
        kv = head * self.kv_heads // self.heads
        q, dy = (array[entry, head].astype(np.float64) for array in (self.q, self.dy))
        k, v = (array[entry, kv].astype(np.float64) for array in (self.k, self.v))
        scores = q @ k.T / math.sqrt(self.dim)
        if self.causal:
            scores[~np.tri(self.queries, self.keys, self.keys - self.queries, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        y = weights @ v
        if self.kind != "training":
            return entry, head, y
        d = weights * (dy @ v.T - (dy * y).sum(1, keepdims=True)) / math.sqrt(self.dim)
        return entry, head, y, d @ k, d.T @ q, weights.T @ dy


class Rows:
    """An operation over each row of a matrix, or over each of its elements."""

    unit = "GB/s"

    def __init__(self, operation, rows, columns):
        self.operation, self.rows, self.columns = operation, rows, columns
        self.name = f"{operation}, {rows} × {columns}" if operation in OPERATIONS[:3] else f"{operation}, {rows * columns}"
        numbers = np.random.default_rng(0x71133153)
        draw = lambda *shape: aligned(numbers.uniform(-4, 4, shape), np.dtype(np.float32))
        self.x, self.scale, self.shift = draw(rows, columns), draw(columns), draw(columns)

    @property
    def work(self):
        return 8 * self.x.size

    def peak(self, peaks):
        return peaks[2]

    def check(self, results):
        import torch

        x, scale, shift = (torch.from_numpy(array).double() for array in (self.x, self.scale, self.shift))
        wanted = torch_rows(torch, self, x, scale, shift, None).numpy()
        error = (np.abs(results[0] - wanted) / (np.abs(wanted) + 1e-2 * np.abs(wanted).max())).max()
        return None if error < 1e-4 else f"it is off by {error:.1e}"


def torch_rows(torch, problem, x, scale, shift, out):
    """Into `out`, where the interface has that."""
    functional, operation = torch.nn.functional, problem.operation
    given = {} if out is None else {"out": out}
    if operation == "softmax":
        return torch.softmax(x, 1, **given)
    if operation == "layer norm":
        return functional.layer_norm(x, [problem.columns], scale, shift)
    if operation == "RMS norm":
        return functional.rms_norm(x, [problem.columns], scale, 1e-5)
    if operation == "GELU":
        return torch.ops.aten.gelu.out(x, out=out) if given else functional.gelu(x)
    return getattr(torch, operation)(x, **given)


class PyTorch:
    """Results are allocated in the call where its interface has nothing better."""

    def __init__(self, backend):
        import torch

        self.torch = torch
        self.name, self.backend = f"pytorch {backend}".strip(), backend
        torch.set_num_threads(arguments.threads)

    def prepare(self, problem):
        torch = self.torch
        if isinstance(problem, Rows):
            if self.backend != "flash":
                return None
            arrays = [torch.from_numpy(array) for array in (problem.x, problem.scale, problem.shift)]
            out = torch.from_numpy(aligned(np.zeros_like(problem.x), problem.x.dtype))

            def run():
                with torch.inference_mode():
                    return torch_rows(torch, problem, *arrays, out)

            return run, lambda result: [result.numpy()]
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}[self.backend]
        training = problem.kind == "training"
        if self.backend == "math" and problem.work > 8e9:
            # It makes the whole matrix of scores, and is far behind where that is large.
            return None
        q, k, v, dy = (torch.from_numpy(array) for array in (problem.q, problem.k, problem.v, problem.dy))
        q, k, v = (tensor.requires_grad_(training) for tensor in (q, k, v))
        # A single query at the end sees all keys.
        options = dict(is_causal=problem.causal and problem.queries > 1)
        if problem.kv_heads != problem.heads:
            options["enable_gqa"] = True

        def forward():
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

        def run():
            if not training:
                with torch.inference_mode():
                    return [forward()]
            y = forward()
            return [y, *torch.autograd.grad(y, (q, k, v), dy)]

        return run, lambda results: [result.detach().numpy() for result in results]


class OnnxRuntime:
    """`Attention` of ONNX over heads one after the other, `MultiHeadAttention` of the runtime's own domain, over heads side
    by side at each position, which is its layout, and for decoding its `GroupQueryAttention` over caches in place. It has
    no gradients."""

    def __init__(self, operator):
        import onnx
        import onnxruntime

        self.onnx, self.runtime, self.operator = onnx, onnxruntime, operator
        self.name = f"onnxruntime {operator}".strip()

    def session(self, problem, node, inputs, outputs, constants=()):
        """Bound to arrays, which are kept by the function that runs it."""
        helper = self.onnx.helper
        value = lambda name, array: helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        graph = helper.make_graph(
            [node], "problem", [value(*item) for item in inputs.items()], [value(*item) for item in outputs.items()],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in constants],
        )
        domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=domains, ir_version=10)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1
        options.log_severity_level = 3
        # Its threads would else wait busily in another's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for bind, arrays in [(binding.bind_input, inputs), (binding.bind_output, outputs)]:
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        def run(keep=(problem, inputs, outputs)):
            session.run_with_iobinding(binding)

        return run

    def prepare(self, problem):
        make = self.onnx.helper.make_node
        if isinstance(problem, Rows):
            return self.rows(problem, make) if self.operator == "Attention" else None
        if problem.kind == "training":
            return None
        y = aligned(np.full(problem.q.shape, np.nan), problem.q.dtype)
        if self.operator == "Attention":
            causal = int(problem.causal and problem.queries > 1)
            node = make("Attention", ["q", "k", "v"], ["y"], is_causal=causal)
            inputs = dict(q=problem.q, k=problem.k, v=problem.v)
            return self.session(problem, node, inputs, dict(y=y)), lambda _: [y]
        beside = lambda array: aligned(
            array.transpose(0, 2, 1, 3).reshape(array.shape[0], array.shape[2], -1), array.dtype
        )
        y = beside(y)
        shape = [problem.batch, problem.queries, problem.heads, problem.dim]
        result = lambda _: [y.reshape(shape).transpose(0, 2, 1, 3)]
        if problem.kind == "decode":
            # The last key and value are those of the query's position.
            k, v = (aligned(array, array.dtype) for array in (problem.k, problem.v))
            new = lambda array: beside(array[:, :, -1:])
            inputs = dict(q=beside(problem.q), k=new(k), v=new(v), past_k=k, past_v=v)
            inputs |= dict(last=np.full([problem.batch], problem.keys - 1, np.int32), total=np.array(problem.keys, np.int32))
            node = make(
                "GroupQueryAttention", list(inputs), ["y", "present_k", "present_v"], domain="com.microsoft",
                num_heads=problem.heads, kv_num_heads=problem.kv_heads,
            )
            return self.session(problem, node, inputs, dict(y=y, present_k=k, present_v=v)), result
        inputs = dict(q=beside(problem.q), k=beside(problem.k), v=beside(problem.v))
        node = make(
            "MultiHeadAttention", list(inputs), ["y"], domain="com.microsoft",
            num_heads=problem.heads, unidirectional=int(problem.causal),
        )
        return self.session(problem, node, inputs, dict(y=y)), result

    def rows(self, problem, make):
        names = {"softmax": "Softmax", "layer norm": "LayerNormalization", "RMS norm": "RMSNormalization", "GELU": "Gelu"}
        operands = {"layer norm": ["scale", "shift"], "RMS norm": ["scale"]}.get(problem.operation, [])
        node = make(names.get(problem.operation, problem.operation.capitalize()), ["x", *operands], ["y"])
        y = aligned(np.full(problem.x.shape, np.nan), problem.x.dtype)
        constants = [(name, getattr(problem, name)) for name in operands]
        return self.session(problem, node, dict(x=problem.x), dict(y=y), constants), lambda _: [y]


class OpenVino:
    """Its results lie in tensors of the request."""

    name = "openvino"

    def __init__(self):
        import openvino

        self.openvino = openvino

    def prepare(self, problem):
        if isinstance(problem, Rows) or problem.kind != "forward":
            return None
        from openvino import opset13

        arrays = [problem.q, problem.k, problem.v]
        parameters = [opset13.parameter(array.shape, np.float32) for array in arrays]
        y = opset13.scaled_dot_product_attention(*parameters, causal=problem.causal)
        request = openvino_request(self.openvino.Model([y], parameters), arguments.threads)
        for i, array in enumerate(arrays):
            request.set_input_tensor(i, self.openvino.Tensor(array, shared_memory=True))
        return (lambda keep=problem: request.infer(share_outputs=True)), lambda _: [request.get_output_tensor(0).data]


class RustLibrary:
    """Only candle's flash attention has grouped heads, and it has no gradients."""

    def __init__(self, library, flash=False):
        self.library, self.flash = library, flash
        self.name = f"{library} flash" if flash else library

    def prepare(self, problem):
        kind = None if isinstance(problem, Rows) else problem.kind
        if kind not in (("forward", "decode") if self.flash else ("forward", "training")):
            return None
        sizes = [*(getattr(problem, name) for name in Sizes.names), int(problem.causal)]
        arrays = [problem.q, problem.k, problem.v, problem.dy]
        crate = Crate(self.library, "attention", "flash" if self.flash else kind, sizes, arrays)
        shapes = [problem.q.shape, *(array.shape for array in arrays[:3] if kind == "training")]
        return crate, lambda _: crate.results(shapes)


class Tilewise:
    name = "tilewise"

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        for function in ("attention", "attention_step", "rows"):
            getattr(self.library, f"tilewise_s{function}").restype = ctypes.c_bool

    def prepare(self, problem):
        addresses = lambda arrays: [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        result = lambda like: aligned(np.full(like.shape, np.nan), like.dtype)
        if isinstance(problem, Rows):
            arrays = [problem.x, problem.scale, problem.shift, result(problem.x)]
            sizes = [ctypes.c_size_t(size) for size in (OPERATIONS.index(problem.operation), *problem.x.shape)]
            call = lambda values=(*sizes, *addresses(arrays)): self.library.tilewise_srows(*values)
            results = arrays[3:]
        else:
            sizes = ctypes.byref(Sizes(*(getattr(problem, name) for name in Sizes.names), problem.causal))
            arrays = [problem.q, problem.k, problem.v]
            if problem.kind == "training":
                gradients = [result(array) for array in arrays]
                results = [result(problem.q), *gradients]
                written = [results[0], np.empty(problem.q.shape[:3], np.float32), *gradients]
                arrays = [*arrays, problem.dy, *written]
                inputs, outputs = ((ctypes.c_void_p * n)(*(a.ctypes.data for a in part)) for n, part in [(4, arrays[:4]), (5, written)])
                call = lambda: self.library.tilewise_sattention_step(sizes, inputs, outputs)
            else:
                results = [result(problem.q)]
                arrays += results
                call = lambda values=addresses(arrays): self.library.tilewise_sattention(sizes, *values)

        def run(keep=(problem, arrays)):
            if not call():
                raise RuntimeError(f"Tilewise refused {problem.name}")

        return run, lambda _: results


def compare(problem, peers):
    """Medians of seconds by peer, and what was wrong."""
    contestants, wrong = [], {}
    for peer in peers:
        try:
            prepared = peer.prepare(problem)
            if prepared is None:
                continue
            run, results = prepared
            why = problem.check(results(run()))
        except Exception as error:
            why = f"left out: {str(error).splitlines()[0][:160]}"
        if why is not None:
            wrong[peer.name] = why
            continue
        contestants.append((peer, sampler(run, SAMPLE, WARM_UP), []))
    interleave(contestants, arguments.rounds, PAUSE, order)
    return {peer.name: statistics.median(samples) for peer, _, samples in contestants}, wrong


def problems():
    for kind in ("forward", "training"):
        for causal in (False, True):
            for batch, heads, length, dim in FULL:
                yield Attention, (kind, causal, batch, heads, heads, length, length, dim)
    for keys in DECODE:
        yield Attention, ("decode", True, 1, 32, 8, 1, keys, 128)
    for operation in OPERATIONS:
        for rows, columns in ROWS if operation in OPERATIONS[:3] else [(1024, 1024)]:
            yield Rows, (operation, rows, columns)


def attempt(make, *options):
    try:
        return [make(*options)]
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return []


def main():
    own = Tilewise(arguments.library)
    peers = [PyTorch("flash"), PyTorch("math")]
    peers += attempt(OnnxRuntime, "Attention") + attempt(OnnxRuntime, "contrib") + attempt(OpenVino)
    if arguments.crates:
        peers += [RustLibrary("candle"), RustLibrary("candle", flash=True), RustLibrary("burn")]
    peers = [peer for peer in peers if arguments.peers.search(peer.name)]
    columns = [peer.name for peer in peers]
    read = lambda: peaks(own.library, arguments.threads)
    reached, found = read(), []
    for make, options in problems():
        problem = make(*options)
        if not arguments.filter.search(problem.name):
            continue
        times, wrong = compare(problem, [own, *peers])
        for name, why in wrong.items():
            print(f"{problem.name}: {name}: {why}", file=sys.stderr)
        reached = highest([reached, read()]) if len(found) % 8 == 7 else reached
        found.append((problem.name, problem.unit, problem.work, problem.peak, times))
    print(f"{peak_line(arguments.threads, reached)}\n")
    print("| workload | tilewise | of peak | best peer | ratio |", *(f"{name} |" for name in columns))
    print("| --- | ---: | ---: | --- | ---: |" + " ---: |" * len(columns))
    for name, unit, work, peak, times in found:
        rate = {peer: work / time / 1e9 for peer, time in times.items()}
        if "tilewise" not in rate or len(rate) < 2:
            continue
        best = max((rate[peer], peer) for peer in columns if peer in rate)
        ratio = rate["tilewise"] / best[0]
        shown = f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"
        share = 100 * rate["tilewise"] / peak(reached)
        cells = (f"{rate[peer]:.1f} |" if peer in rate else "|" for peer in columns)
        print(f"| {name} | {rate['tilewise']:.1f} {unit} | {share:.0f} % | {best[1]} {best[0]:.1f} | {shown} |", *cells)


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
from tilewise import peaks

order = random.Random(1)
main()
