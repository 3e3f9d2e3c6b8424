"""Times whole networks of Tilewise beside PyTorch, ONNX Runtime, OpenVINO and Rust libraries: ResNet-50 and MobileNetV2
forward, and a step of training of the small network of the example `digits`.

    pip install numpy onnx onnxruntime openvino torch
    python3 benches/peers/python/networks.py --threads 1

Tilewise's bench `models` writes its random weights, its images and its scores; the same network is built from them for each
library, and its scores are compared before anything is timed. Batch normalisation is folded everywhere, weights are
constants. PyTorch runs with channels last, as it comes and frozen by TorchScript, whose convolutions take in what follows;
ONNX Runtime and OpenVINO choose layouts of their own. Of the Rust libraries, rten and tract run the networks, candle and burn
take the step of training. Rounds go in turn; the table has the median of each one's rounds.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

from rounds import CRATES, Crate, Process, attempt, built, median_call, openvino_request, use_threads

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--seconds", type=float, default=0.3, help="of one round of one library")
parser.add_argument("--networks", default="resnet50,mobilenet_v2,digits")
parser.add_argument("--batch", default="1,8")
parser.add_argument("--program", help="the bench `models`, where it is built already")
parser.add_argument("--crates", help=CRATES)
arguments = parser.parse_args()
Crate.program, Crate.seconds = arguments.crates, arguments.seconds
# Before the libraries are loaded.
use_threads(arguments.threads)

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(arguments.threads)
# Threads of the one that ran before may still spin.
PAUSE = 0.05 if arguments.threads > 1 else 0.0
CLASSES = 1000


def layers(name):
    """The convolutions of a network as in `benches/support/network.rs`, in order; `x` names what a layer reads, `add` what
    is added to it."""
    found = []

    def conv(x, channels, kernel, stride, activation, depthwise=False, add=None):
        groups = x[1] if depthwise else 1
        layer = dict(kind="conv", x=x[0], inputs=x[1], channels=channels, kernel=kernel, stride=stride)
        found.append(layer | dict(activation=activation, groups=groups, add=add and add[0]))
        return len(found), channels

    image = (0, 3)
    if name == "resnet50":
        x = conv(image, 64, 7, 2, "relu")
        found.append(dict(kind="pool", x=x[0]))
        x = (len(found), 64)
        for blocks, width, first in [(3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)]:
            for block in range(blocks):
                stride = first if block == 0 else 1
                y = conv(conv(x, width, 1, 1, "relu"), width, 3, stride, "relu")
                add = x if block else conv(x, 4 * width, 1, stride, None)
                x = conv(y, 4 * width, 1, 1, "relu", add=add)
        return found
    x = conv(image, 32, 3, 2, "relu6")
    settings = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, channels, blocks, first in settings:
        for block in range(blocks):
            stride = first if block == 0 else 1
            y = x if expansion == 1 else conv(x, expansion * x[1], 1, 1, "relu6")
            y = conv(y, y[1], 3, stride, "relu6", depthwise=True)
            x = conv(y, channels, 1, 1, None, add=x if stride == 1 and x[1] == channels else None)
    conv(x, 1280, 1, 1, "relu6")
    return found


class Problem:
    """A network with its weights, images, and the scores that Tilewise gives them."""

    def __init__(self, program, name, batch):
        self.layers, self.batch = layers(name), batch
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "numbers"
            subprocess.run([*program, "--export", name, str(batch), str(file)], check=True)
            numbers = np.fromfile(file, np.float32)
        self.at = 0

        def take(*shape):
            size = int(np.prod(shape))
            self.at += size
            return numbers[self.at - size : self.at].reshape(shape)

        for layer in self.layers:
            if layer["kind"] == "conv":
                shape = layer["channels"], layer["inputs"] // layer["groups"], layer["kernel"], layer["kernel"]
                layer["weight"], layer["bias"] = take(*shape), take(layer["channels"])
        last = self.layers[-1]["channels"]
        self.head, self.head_bias = take(CLASSES, last), take(CLASSES)
        self.images, self.scores = take(batch, 3, 224, 224), take(batch, CLASSES)
        assert self.at == len(numbers), (self.at, len(numbers))

    def check(self, name, scores):
        most = np.abs(self.scores).max()
        error = np.abs(np.asarray(scores) - self.scores).max() / most
        assert error < 1e-4, f"{name}: scores differ by {error:.1e} of the largest"

    def onnx(self):
        """As ONNX, serialised."""
        from onnx import TensorProto, helper, numpy_helper

        nodes, constants, names = [], [], ["images"]

        def constant(name, array):
            constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
            return name

        def node(operator, values, output, **attributes):
            nodes.append(helper.make_node(operator, values, [output], **attributes))
            return output

        bounds = [constant("zero", 0.0), constant("six", 6.0)]
        for i, layer in enumerate(self.layers):
            x = names[layer["x"]]
            if layer["kind"] == "pool":
                names.append(node("MaxPool", [x], f"y{i}", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
                continue
            values = [x, constant(f"w{i}", layer["weight"]), constant(f"b{i}", layer["bias"])]
            kernel = layer["kernel"]
            options = dict(kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
            options |= dict(strides=[layer["stride"]] * 2, group=layer["groups"])
            y = node("Conv", values, f"conv{i}", **options)
            if layer["add"]:
                y = node("Add", [y, names[layer["add"]]], f"sum{i}")
            if layer["activation"] == "relu":
                y = node("Relu", [y], f"y{i}")
            elif layer["activation"] == "relu6":
                y = node("Clip", [y, *bounds], f"y{i}")
            names.append(y)
        mean = node("Flatten", [node("GlobalAveragePool", [names[-1]], "mean")], "flat")
        head = [constant("head", self.head), constant("head_bias", self.head_bias)]
        node("Gemm", [mean, *head], "scores", transB=1)
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "network",
            [value("images", TensorProto.FLOAT, [self.batch, 3, 224, 224])],
            [value("scores", TensorProto.FLOAT, [self.batch, CLASSES])],
            constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    def crate(self, name):
        crate = Crate(name, "model", "forward", self.images.shape, [self.images], self.onnx())
        self.check(name, *crate.results([self.scores.shape]))
        return crate


class Tilewise(Process):
    def __init__(self, program, network, batch, manner):
        super().__init__([*program, "--measure", network])
        self.name = "tilewise" + ["", " NHWC", " NHWC Winograd4", " NHWC chains"][manner]
        self.words = batch, manner, arguments.seconds

    def time(self):
        return self.ask(*self.words)


class Module(torch.nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.steps = []
        for i, layer in enumerate(problem.layers):
            if layer["kind"] == "conv":
                weight = torch.tensor(layer["weight"]).contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"w{i}", weight)
                self.register_buffer(f"b{i}", torch.tensor(layer["bias"]))
            self.steps.append({key: value for key, value in layer.items() if key not in ("weight", "bias")})
        self.register_buffer("head", torch.tensor(problem.head))
        self.register_buffer("head_bias", torch.tensor(problem.head_bias))

    def forward(self, x):
        results = [x]
        for i, step in enumerate(self.steps):
            x = results[step["x"]]
            if step["kind"] == "pool":
                results.append(F.max_pool2d(x, 3, 2, 1))
                continue
            weight, bias = getattr(self, f"w{i}"), getattr(self, f"b{i}")
            y = F.conv2d(x, weight, bias, step["stride"], step["kernel"] // 2, groups=step["groups"])
            if step["add"]:
                y = y + results[step["add"]]
            if step["activation"] == "relu":
                y = F.relu(y)
            elif step["activation"] == "relu6":
                y = F.relu6(y)
            results.append(y)
        return F.linear(results[-1].mean((2, 3)), self.head, self.head_bias)


class PyTorch:
    def __init__(self, problem, frozen):
        self.name = "pytorch frozen" if frozen else "pytorch"
        self.x = torch.tensor(problem.images).contiguous(memory_format=torch.channels_last)
        self.module = Module(problem).eval()
        with torch.inference_mode(not frozen), torch.no_grad():
            if frozen:
                self.module = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(self.module, self.x)))
                for _ in range(3):
                    self.module(self.x)
            problem.check(self.name, self.module(self.x).numpy())

    def time(self):
        with torch.inference_mode():
            return median_call(lambda: self.module(self.x), arguments.seconds)


class OnnxRuntime:
    name = "onnxruntime"

    def __init__(self, problem):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        self.session = onnxruntime.InferenceSession(problem.onnx(), options, providers=["CPUExecutionProvider"])
        self.values = dict(images=problem.images)
        problem.check(self.name, self.session.run(None, self.values)[0])

    def time(self):
        return median_call(lambda: self.session.run(None, self.values), arguments.seconds)


class OpenVino:
    name = "openvino"

    def __init__(self, problem):
        self.request = openvino_request(problem.onnx(), arguments.threads)
        self.values = [problem.images]
        problem.check(self.name, self.request.infer(self.values)[0])

    def time(self):
        return median_call(lambda: self.request.infer(self.values, share_inputs=True, share_outputs=True), arguments.seconds)


class Training:
    """A step of training as PyTorch users write it."""

    def __init__(self, batch, last):
        self.name = "pytorch NHWC" if last else "pytorch"
        layout = torch.channels_last if last else torch.contiguous_format
        torch.manual_seed(1)
        parts, channels = [], 1
        for filters, taps, stride in [(16, 5, 1), (32, 3, 2), (32, 3, 1), (64, 3, 2)]:
            parts += [torch.nn.Conv2d(channels, filters, taps, stride, taps // 2), torch.nn.ReLU()]
            channels = filters
        parts += [torch.nn.Flatten(), torch.nn.Linear(64 * 49, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)]
        self.net = torch.nn.Sequential(*parts).to(memory_format=layout)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 1e-3)
        self.x = torch.rand(batch, 1, 28, 28).contiguous(memory_format=layout)
        self.labels = torch.randint(10, [batch])

    def step(self):
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.x), self.labels).backward()
        self.optimizer.step()

    def time(self):
        return median_call(self.step, arguments.seconds)


def main():
    program = [arguments.program or built("models")]
    print(f"{arguments.threads} thread(s), images a second; ratio: Tilewise's best / the best peer's\n")
    for name in arguments.networks.split(","):
        for batch in [64] if name == "digits" else map(int, arguments.batch.split(",")):
            peers, theirs = [Tilewise(program, name, batch, 0)], []
            if name == "digits":
                theirs += [Training(batch, False), Training(batch, True)]
                for crate in ["candle", "burn"] if arguments.crates else []:
                    attempt(lambda: Crate(crate, "digits", "training", [batch]), theirs)
            else:
                peers += [Tilewise(program, name, batch, manner) for manner in (1, 2 if name == "resnet50" else 3)]
                problem = Problem(program, name, batch)
                for make in [lambda: PyTorch(problem, False), lambda: PyTorch(problem, True)]:
                    attempt(make, theirs)
                attempt(lambda: OnnxRuntime(problem), theirs)
                attempt(lambda: OpenVino(problem), theirs)
                for crate in ["rten", "tract"] if arguments.crates else []:
                    attempt(lambda: problem.crate(crate), theirs)
            own, peers = len(peers), peers + theirs
            rates = {peer.name: [] for peer in peers}
            for _ in range(arguments.rounds):
                for peer in peers:
                    time.sleep(PAUSE)
                    rates[peer.name].append(batch / peer.time())
            medians = [statistics.median(rates[peer.name]) for peer in peers]
            ratio = max(medians[:own]) / max(medians[own:])
            cells = ", ".join(f"{peer.name} {rate:.1f}" for peer, rate in zip(peers, medians))
            print(f"{name}, batch {batch}: ratio {ratio:.2f}; {cells}", flush=True)
            for peer in peers:
                if isinstance(peer, Process):
                    peer.close()


main()
