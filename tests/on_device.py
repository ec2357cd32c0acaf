"""CuPy's backend under test: on a GPU, or with the kernels run by the CUDA-on-CPU harness.

``kernels_of_cupy`` has it compute what the tests of the NumPy backend ask for.
"""

import contextlib
import ctypes
import functools
import importlib.util
import inspect
from unittest import mock

import cuda_on_cpu
import numpy as np
import pytest
from cases import plain, without_short_ways
from numpy.lib.array_utils import byte_bounds

from pysoftmax import _dispatch
from pysoftmax.backends import _cuda as cuda
from pysoftmax.backends import cupy as backend
from pysoftmax.backends import numpy as numpy_backend

# What a backend computes; everything else of it is about arrays and their types.
COMPUTES = (
    *("softmax", "log_softmax", "logsumexp", "dot", "sum", "quotient"),
    *("cross_entropy", "check_labels", "check_within", "sum_of_weights"),
    *("sigmoid", "log_sigmoid", "binary_cross_entropy", "softmax_vjp", "log_softmax_vjp"),
)
WRITTEN = {"out", "loss", "grad"}  # their arguments that are
ALIGNMENT = 16  # of vectors, is that of the originals


without_gpu = False  # whether the harness stands in for a GPU


def is_there():
    """Whether kernels can be run."""
    if without_gpu:
        return True
    cupy = importlib.util.find_spec("cupy")
    return cupy is not None and importlib.import_module("cupy").is_available()


def arrays():
    """The arrays that CuPy's backend computes on; skips, by name, where it cannot."""
    if without_gpu:
        return HarnessArrays()
    pytest.importorskip("cupy", reason="needs cupy-cuda12x or cupy-cuda13x")
    if not is_there():
        pytest.skip("needs a CUDA device")
    return CupyArrays()


class CupyArrays:
    """CuPy and the current GPU."""

    on_gpu = True

    def __init__(self):
        self.xp = importlib.import_module("cupy")
        self.array_type = self.xp.ndarray

    def asarray(self, array):
        return self.xp.asarray(np.asarray(array))

    def asnumpy(self, array):
        return self.xp.asnumpy(array)

    def view(self, memory, offset, like):
        """An array with the shape, dtype and strides of `like` in `memory`, bytes on the device."""
        pointer = memory.data + offset
        return self.xp.ndarray(like.shape, like.dtype, pointer, like.strides)


class DeviceArray(np.ndarray):
    """Stands for cupy.ndarray, also by name."""

    __module__, __qualname__ = "cupy", "ndarray"


class HarnessArrays:
    """NumPy's memory for a device's."""

    on_gpu = False
    xp, array_type = np, DeviceArray

    def asarray(self, array):
        return np.array(array, order="K").view(DeviceArray)

    def asnumpy(self, array):
        return np.asarray(array)

    def view(self, memory, offset, like):
        array = np.ndarray(like.shape, like.dtype, memory, offset, like.strides)
        return array.view(DeviceArray)


class HarnessNamespace:
    """NumPy for CuPy."""

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def call(*arguments, **options):
            result = found(*arguments, **options)
            return result.view(DeviceArray) if type(result) is np.ndarray else result

        return call


class HarnessGpu:
    """What `backend.Gpu` is to CuPy, to NumPy and the harness."""

    namespace = HarnessNamespace()

    def __init__(self, architecture=90, multiprocessors=4):
        self._device = cuda.Device(architecture, multiprocessors)
        self._constants = {}
        self.kernels = []

    def owns(self, array):
        return isinstance(array, DeviceArray)

    def on(self, array):
        return contextlib.nullcontext()

    def current(self):
        return 0

    def number(self, array):
        return 0

    def device(self):
        return self._device

    def constant(self, value):
        return self._constants.setdefault(value, np.full(1, value))

    def pointer(self, array):
        return array.ctypes.data

    def starter(self, defines, start):
        return lambda raw: self.launch(defines, start, raw[()])

    def launch(self, defines, start, task):
        self.kernels.append(start.kernel)
        self.defines = dict(defines)
        _module(defines).launch(
            start.kernel,
            (start.blocks,),
            (start.threads,),
            (task,),
            shared=start.shared,
            cluster=start.cluster,
            seed=len(self.kernels) % 4,
        )


@functools.cache
def _module(defines):
    return cuda_on_cpu.Module(cuda.FOLDERS[1] / "kernels.cu", dict(defines))


@contextlib.contextmanager
def harness():
    """Within, the backend takes `DeviceArray` and the harness runs its kernels; a `HarnessGpu`."""
    gpu = HarnessGpu()

    def forget():
        for cached in vars(backend).values():
            if isinstance(cached, type(_module)):  # a function with a cache
                cached.cache_clear()

    forget()
    with (
        mock.patch.object(backend, "gpu", gpu),
        mock.patch.dict(_dispatch.FOUND, {DeviceArray: backend}),
    ):
        yield gpu
    forget()


@contextlib.contextmanager
def kernels_of_cupy(arrays):
    """Within, what is asked of NumPy's backend is computed by CuPy's, on copies in `arrays`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_short_ways())
        for name in COMPUTES:
            function = _moved(getattr(backend, name), arrays)
            stack.enter_context(mock.patch.object(numpy_backend, name, function))
        yield


def _moved(function, arrays):
    """A function of CuPy's backend as one of NumPy's."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments):
        given = dict(zip(names, arguments, strict=True))
        mine = {name: a for name, a in given.items() if isinstance(a, np.ndarray)}
        copies = dict(zip(mine, _copies(list(mine.values()), arrays), strict=True))
        result = function(*(given | copies).values())
        for name in WRITTEN & mine.keys():
            mine[name][...] = arrays.asnumpy(copies[name])
        return arrays.asnumpy(result)[()] if isinstance(result, arrays.array_type) else result

    return call


def _copies(given, arrays):
    """Copies on the device, in memory that they share as the originals do."""
    given = [a if a.dtype.isnative and a.flags.aligned else plain(a) for a in given]
    bounds = [byte_bounds(a) for a in given]
    copies = [None] * len(given)
    low = high = memory = None
    for i in sorted(range(len(given)), key=bounds.__getitem__):
        if memory is None or bounds[i][0] >= high:
            low, high = bounds[i]
            # They may reach further than this one.
            for others in sorted(bounds):
                if low <= others[0] < high:
                    high = max(high, others[1])
            low -= low % ALIGNMENT
            memory = _memory(bounds[i][0], low, high, arrays)
        offset = given[i].__array_interface__["data"][0] - low
        copies[i] = arrays.view(memory, offset, given[i])
    return copies


def _memory(begin, low, high, arrays):
    """What lies at [begin, high) as bytes on the device, from where `low` would be."""
    content = np.zeros(high - low, np.uint8)
    content[begin - low :] = np.frombuffer(ctypes.string_at(begin, high - begin), np.uint8)
    return arrays.asarray(content)
