"""Writes rnn.txt: what PyTorch and ONNX Runtime compute with recurrent cells.

Each line is a name, a shape and the numbers, row-major. A case begins with a line of its name alone.
Made with torch 2.15.0 and onnxruntime 1.32.0: python3 tests/data/rnn.py > tests/data/rnn.txt
"""

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

numbers = np.random.default_rng(5)


def show(name, array):
    array = np.asarray(array, np.float64)
    print(name, "x".join(map(str, array.shape)), *(f"{x:.9g}" for x in array.ravel()))


def random(*shape):
    return numbers.uniform(-1, 1, shape).astype(np.float32)


def pytorch(name, layer, time=4, batch=3):
    print(name)
    layer = layer.double()
    x = torch.tensor(random(time, batch, layer.input_size)).double().requires_grad_()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.tensor(random(*parameter.shape)))
    y, last = layer(x)
    dy = torch.tensor(random(*y.shape)).double()
    y.backward(dy)
    for key, parameter in layer.named_parameters():
        show(key, parameter.detach())
        show("d_" + key, parameter.grad)
    show("x", x.detach())
    show("dy", dy)
    show("y", y.detach())
    show("dx", x.grad)
    show("hidden", (last[0] if isinstance(last, tuple) else last).detach())


def onnx(name, operator, gates, hidden=3, inputs=2, time=4, batch=3, peephole=False, **attributes):
    print(name)
    directions = 2
    tensors = dict(
        x=random(time, batch, inputs),
        w=random(directions, gates * hidden, inputs),
        r=random(directions, gates * hidden, hidden),
        b=random(directions, 2 * gates * hidden),
    )
    lengths = np.array([4, 1, 3], np.int32)
    h = random(directions, batch, hidden)
    names = ["x", "w", "r", "b", "lengths", "h"]
    values = dict(tensors, lengths=lengths, h=h)
    if operator == "LSTM":
        values["c"] = random(directions, batch, hidden)
        names.append("c")
        if peephole:
            values["p"] = random(directions, 3 * hidden)
            names.append("p")
    outputs = ["y", "hidden", "cell"][: 3 if operator == "LSTM" else 2]
    node = helper.make_node(
        operator, names, outputs, hidden_size=hidden, direction="bidirectional", **attributes
    )
    graph = helper.make_graph(
        [node],
        "cell",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, tensors["x"].shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs],
        [numpy_helper.from_array(value, key) for key, value in values.items() if key != "x"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for key, value in values.items():
        show(key, value)
    found = session.run(None, {"x": tensors["x"]})
    # y is [time, directions, batch, hidden].
    show("y", found[0].transpose(0, 2, 1, 3).reshape(time, batch, directions * hidden))
    for key, value in zip(outputs[1:], found[1:]):
        show("last_" + key, value)


pytorch("pytorch rnn", torch.nn.RNN(2, 3))
pytorch("pytorch lstm", torch.nn.LSTM(2, 3, bidirectional=True))
pytorch("pytorch lstm projected", torch.nn.LSTM(2, 4, proj_size=3))
pytorch("pytorch gru", torch.nn.GRU(2, 3, bidirectional=True))
onnx("onnx rnn", "RNN", 1)
onnx("onnx lstm", "LSTM", 4, peephole=True)
onnx("onnx gru after", "GRU", 3, linear_before_reset=1)
onnx("onnx gru before", "GRU", 3, linear_before_reset=0)
onnx(
    "onnx rnn activations",
    "RNN",
    1,
    activations=["LeakyRelu", "ScaledTanh"],
    activation_alpha=[0.125, 1.25],
    activation_beta=[0.5],
)
onnx(
    "onnx lstm activations",
    "LSTM",
    4,
    peephole=True,
    activations=["HardSigmoid", "Softsign", "Elu", "Sigmoid", "Affine", "ScaledTanh"],
    activation_alpha=[0.25, 0.5, 0.75, 1.5],
    activation_beta=[0.375, 0.125, 0.625],
)
onnx("onnx lstm coupled", "LSTM", 4, input_forget=1)
onnx("onnx lstm coupled, peepholes", "LSTM", 4, peephole=True, input_forget=1)
onnx("onnx lstm clip", "LSTM", 4, peephole=True, clip=0.5)
onnx("onnx gru clip", "GRU", 3, clip=0.5, linear_before_reset=1)
onnx(
    "onnx gru activations after",
    "GRU",
    3,
    linear_before_reset=1,
    activations=["HardSigmoid", "Relu", "Softsign", "Softplus"],
)
onnx(
    "onnx gru activations before",
    "GRU",
    3,
    linear_before_reset=0,
    activations=["ThresholdedRelu", "Tanh", "HardSigmoid", "Elu"],
    activation_alpha=[0.25],
)
