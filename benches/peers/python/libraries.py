"""The Python libraries that Tilewise is compared with.

Each says what it is and prepares a workload: a function that computes C, and the array that holds C.
"""

import numpy as np


class NumPy:
    name = "numpy"

    def __init__(self, threads):
        # The number of threads was set by the environment, before NumPy loaded its BLAS.
        from threadpoolctl import threadpool_info

        blas = next(iter(info for info in threadpool_info() if info["user_api"] == "blas"), None)
        what = f", {blas['internal_api']} {blas['version']}, core {blas['architecture']}" if blas else ""
        self.about = np.__version__ + what

    def prepare(self, problem):
        a, b, c = problem.a, problem.b, problem.output()
        return lambda: np.matmul(a, b, out=c), c


class PyTorch:
    name = "pytorch"

    def __init__(self, threads):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.about = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"

    def prepare(self, problem):
        c = problem.output()
        a, b = (self.torch.from_numpy(stored) for stored in (problem.a_stored, problem.b_stored))
        a = a.T if problem.a_transposed else a
        b = b.T if problem.b_transposed else b
        out = self.torch.from_numpy(c)
        return lambda: self.torch.matmul(a, b, out=out), c


class OnnxRuntime:
    """B is a constant of the model, and packed when it is loaded, where the workload has it packed before."""

    name = "onnxruntime"

    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.runtime, self.threads = onnx, onnxruntime, threads
        self.about = onnxruntime.__version__

    def model(self, problem):
        helper = self.onnx.helper
        of = self.onnx.TensorProto.FLOAT if problem.dtype.itemsize == 4 else self.onnx.TensorProto.DOUBLE
        inputs, constants = [helper.make_tensor_value_info("a", of, problem.a_stored.shape)], []
        operands = ["a", "a" if problem.gram else "b"]
        if problem.prepacked:
            constants.append(self.onnx.numpy_helper.from_array(problem.b_stored, "b"))
        elif not problem.gram:
            inputs.append(helper.make_tensor_value_info("b", of, problem.b_stored.shape))
        transposed = dict(transA=int(problem.a_transposed), transB=int(problem.b_transposed))
        if any(transposed.values()):
            node = helper.make_node("Gemm", operands, ["c"], **transposed)
        else:
            node = helper.make_node("MatMul", operands, ["c"])
        output = helper.make_tensor_value_info("c", of, None)
        graph = helper.make_graph([node], "product", inputs, [output], constants)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()

    def prepare(self, problem):
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        session = self.runtime.InferenceSession(
            self.model(problem), options, providers=["CPUExecutionProvider"]
        )
        c, binding = problem.output(), session.io_binding()

        def bind(to, name, array):
            to(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        bind(binding.bind_input, "a", problem.a_stored)
        if not problem.prepacked and not problem.gram:
            bind(binding.bind_input, "b", problem.b_stored)
        bind(binding.bind_output, "c", c)

        def run(keep=problem):
            session.run_with_iobinding(binding)

        return run, c


ALL = [NumPy, PyTorch, OnnxRuntime]
