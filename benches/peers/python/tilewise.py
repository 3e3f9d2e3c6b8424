"""Tilewise through the C interface of `src/abi.rs`."""

import ctypes
from ctypes import c_bool, c_double, c_size_t, c_void_p


def pointer(array):
    return c_void_p(array.ctypes.data)


def peaks(library, threads):
    """What the machine does at most on so many threads: GFLOP/s in registers, GB/s read and copied."""
    found = (c_double * 3)()
    library.tilewise_peaks(c_size_t(threads), found)
    return list(found)


class Tilewise:
    name = "tilewise"
    about = "through a C interface"

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        for function in ("sgemm", "dgemm", "sgram", "sgemm_batched", "sgemm_packed"):
            getattr(self.library, f"tilewise_{function}").restype = c_bool
        self.library.tilewise_spack.restype = c_void_p
        self.library.tilewise_free.restype = None
        self.library.tilewise_free.argtypes = [c_void_p]

    def prepare(self, problem):
        """A function that computes C, and C."""
        c = problem.output()
        m, n, k = (c_size_t(size) for size in (problem.m, problem.n, problem.k))
        # The arrays go along with the addresses, so that they live as long as the function.
        keep = (problem, c)
        a, b, c_pointer = pointer(problem.a_stored), pointer(problem.b_stored), pointer(c)
        if problem.gram:
            return self.call("sgram", (m, k, a, c_pointer), keep), c
        if problem.batch > 1:
            batch = c_size_t(problem.batch)
            return self.call("sgemm_batched", (batch, m, n, k, a, b, c_pointer), keep), c
        if problem.prepacked:
            packed = Packed(self.library, k, n, b)
            return self.call("sgemm_packed", (m, n, k, a, packed.pointer, c_pointer), (*keep, packed)), c
        function = "sgemm" if problem.dtype.itemsize == 4 else "dgemm"
        transposed = c_bool(problem.a_transposed), c_bool(problem.b_transposed)
        arguments = (m, n, k, a, transposed[0], b, transposed[1], c_pointer)
        return self.call(function, arguments, keep), c

    def call(self, function, arguments, keep):
        function = getattr(self.library, f"tilewise_{function}")

        def run(keep=keep):
            if not function(*arguments):
                raise RuntimeError("Tilewise refused a product")

        return run


class Packed:
    """A packed B, freed with its owner."""

    def __init__(self, library, k, n, b):
        self.library = library
        self.pointer = c_void_p(library.tilewise_spack(k, n, b))
        if not self.pointer:
            raise MemoryError

    def __del__(self):
        self.library.tilewise_free(self.pointer)
