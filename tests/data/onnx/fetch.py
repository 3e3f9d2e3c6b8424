#!/usr/bin/env python3
"""Takes the node tests of operators that Tilewise covers out of the Python package `onnx` into vectors.tar.gz.

    pip install onnx==1.22.0     # the last release that ships them
    python3 tests/data/onnx/fetch.py

Folders are those of the package (`model.onnx`, `test_data_set_0/input_0.pb`, …), so `tar xzf` gives what any other
runner of the suite reads; tensors that occur again are links. Taken is every test of the suites `node`,
`pytorch-converted`, `pytorch-operator` and `simple` whose graph holds an operator of OPERATORS and none beside these
and STRUCTURE. Left out are the copies named `_expanded`: the same numbers, with the operator spelled out in others.

What is changed, as the licence (LICENSE, Apache 2.0) asks to say, and why: five tests would be most of the archive.
Names inside tensors are cleared. Of the tests in CROPPED only the first channel is kept, in and out: pooling treats
channels alike. In those in SPARSE strides, dilations and padding are multiples of 10, so that windows read every tenth
element along each axis; the others, one of which would be the maximum wherever it was read, are 9.
"""

import gzip
import io
import pathlib
import shutil
import tarfile

import numpy as np
import onnx
from onnx import numpy_helper

OPERATORS = """
Gemm MatMul Conv ConvTranspose Col2Im MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool
RNN LSTM GRU Softmax LogSoftmax Attention RotaryEmbedding LayerNormalization RMSNormalization BatchNormalization
InstanceNormalization GroupNormalization Relu LeakyRelu Elu Selu Celu Gelu Sigmoid Tanh Softplus Softsign HardSigmoid
HardSwish Mish Swish PRelu ThresholdedRelu Erf Exp Log SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss
""".split()
STRUCTURE = "Transpose Reshape Squeeze Unsqueeze Constant Identity".split()
CROPPED = ["test_averagepool_3d_default", "test_lppool_3d_default", "test_maxpool_3d_default"]
SPARSE = ["test_MaxPool1d_stride_padding_dilation", "test_MaxPool2d_stride_padding_dilation"]
VERSION = "1.22.0"


def wanted(folder):
    if "_expanded" in folder.name:
        return False
    operators = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    return bool(operators & set(OPERATORS)) and operators <= {*OPERATORS, *STRUCTURE}


def contents(file):
    if file.suffix != ".pb":
        return file.read_bytes()
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    test = file.parent.parent.name
    if test in CROPPED:
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor)[:, :1].copy())
    if test in SPARSE and file.name == "input_0.pb":
        values = numpy_helper.to_array(tensor)
        sparse = np.full_like(values, 9)
        read = (..., *[slice(None, None, 10)] * (values.ndim - 2))
        assert values.max() < 9
        sparse[read] = values[read]
        tensor = numpy_helper.from_array(sparse)
    tensor.name = ""
    return tensor.SerializeToString(deterministic=True)


def main():
    assert onnx.__version__ == VERSION, f"onnx is {onnx.__version__}, not {VERSION}"
    here = pathlib.Path(__file__).parent
    package = pathlib.Path(onnx.__file__).parent
    first, tests = {}, 0
    with (
        open(here / "vectors.tar.gz", "wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for suite in ["node", "pytorch-converted", "pytorch-operator", "simple"]:
            for folder in sorted(filter(wanted, (package / "backend/test/data" / suite).iterdir())):
                tests += 1
                for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                    name = f"{suite}/{file.relative_to(folder.parent)}"
                    data = contents(file)
                    entry = tarfile.TarInfo(name)
                    if data in first:
                        entry.type, entry.linkname = tarfile.LNKTYPE, first[data]
                        archive.addfile(entry)
                    else:
                        first[data], entry.size = name, len(data)
                        archive.addfile(entry, io.BytesIO(data))
    licences = package.parent / f"onnx-{VERSION}.dist-info" / "licenses"
    for name in ["LICENSE", "NOTICE"]:
        shutil.copy(licences / name, here / name)
    print(f"{tests} tests, {(here / 'vectors.tar.gz').stat().st_size} bytes")


main()
