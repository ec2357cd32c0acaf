"""Who takes part: pysoftmax, the libraries that have the same functions, and two limits.

One class is one peer, with a method for each function of `cases.FUNCTIONS` that it has. The
method gets the arguments of pysoftmax's function, as arrays of its own library, and answers the
calls to be timed: ``{"reused": call}`` writes into an output that is there, ``{"allocated":
call}`` makes a new one. What a call returns, `asnumpy` turns into pysoftmax's result.

A peer on another device is a subclass with another `library` or `device`: those of `cuda`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from inspect import signature
from math import prod
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

import pysoftmax
from pysoftmax.bench import formulas, loops
from pysoftmax.bench.cases import Array

Calls = dict[str, Callable[[], Any]]

REUSED, ALLOCATED, NO_OUTPUT = "reused", "allocated", "none"

_WORTH_SHARING = 1 << 20  # bytes; waking a thread takes about as long as copying them
_ROW_BYTES = 1 << 13  # of the two rows of a tile: half of a small first-level cache
_SWEEPS = 64


def allocated(function: Callable[..., Any], *arguments: Any) -> Calls:
    """Time the function with a new output in each call."""
    return {ALLOCATED: partial(function, *arguments)}


def both(function: Callable[..., Any], *arguments: Any, out: str = "out") -> Calls:
    """Time it also with an output that is there, which it takes under the name `out`."""
    result = function(*arguments)
    room = result[-1] if isinstance(result, tuple) else result
    room = np.asarray(room) if isinstance(room, np.generic) else room
    return {REUSED: partial(function, *arguments, **{out: room})} | allocated(function, *arguments)


def as_it_allows(function: Callable[..., Any], *arguments: Any) -> Calls:
    """Time both if the function has an argument for the output."""
    for out in ("out", "grad_out"):
        if out in signature(function).parameters:
            return both(function, *arguments, out=out)
    return allocated(function, *arguments)


class Peer:
    """A library that takes part, imported and held to a number of threads.

    Raises
    ------
    ImportError
        If it is not installed.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    library: ClassVar[str]
    """What is imported, as `xp`."""
    serial: ClassVar[bool] = False
    """Whether it has but one thread."""

    def __init__(self, threads: int) -> None:
        self.xp: Any = import_module(self.library)
        self.threads: int | None = 1 if self.serial else threads
        """How many it uses at most; None: not known."""

    @property
    def version(self) -> str:
        """The version of the library."""
        return metadata.version(self.library.partition(".")[0])

    @staticmethod
    def avx2() -> dict[str, str]:
        """Return the environment that holds it to AVX2 from the start of Python; {}: none does."""
        return {}

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        """Return the calls to be timed; none if the peer lacks the function."""
        method: Callable[..., Calls] | None = getattr(self, function, None)
        return {} if method is None else method(*self.own(arguments))

    def own(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with arrays of this library."""
        return tuple(self.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments)

    def elements(self, x: Array) -> int:
        """Return how many elements a call deals with."""
        return x.size

    def bytes_moved(self, arguments: tuple[Any, ...], result: Any) -> int:
        """Return the least that a function of `arguments` reads and writes, `result` known."""
        results = result if isinstance(result, tuple) else (result,)
        return sum(getattr(array, "nbytes", 0) for array in (*arguments, *results))

    def asarray(self, array: Array) -> Any:
        """Turn NumPy's array into one of this library."""
        return array

    def asnumpy(self, result: Any) -> Any:
        """Turn what a call returned into NumPy's arrays."""
        return tuple(map(np.asarray, result)) if isinstance(result, tuple) else np.asarray(result)


class Pysoftmax(Peer):
    """What the others are compared with."""

    name = title = library = "pysoftmax"

    @property
    def version(self) -> str:
        """The version, also where the package is not installed."""
        return pysoftmax.__version__

    @staticmethod
    def avx2() -> dict[str, str]:
        return {"PYSOFTMAX_CPU_TARGET": "avx2"}

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        return as_it_allows(getattr(self.xp, function), *self.own(arguments))


class NumPy(Peer):
    """The stable formulas, as they are written by hand."""

    name = library = "numpy"
    title = "NumPy"
    serial = True

    @staticmethod
    def avx2() -> dict[str, str]:
        build: Any = np.show_config(mode="dicts")
        found = build["SIMD Extensions"].get("found", [])
        beyond = [name for name in found if name.startswith(("AVX512", "X86_V4"))]
        return {"NPY_DISABLE_CPU_FEATURES": " ".join(beyond)}

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        return as_it_allows(getattr(formulas, function), *arguments)


class SciPy(Peer):
    """scipy.special, whose softmax and logsumexp are Python over NumPy."""

    name = "scipy"
    title = "SciPy"
    library = "scipy.special"
    serial = True

    @staticmethod
    def avx2() -> dict[str, str]:
        return NumPy.avx2()

    def softmax(self, x: Any, axis: int) -> Calls:
        return allocated(self.xp.softmax, x, axis)

    def log_softmax(self, x: Any, axis: int) -> Calls:
        return allocated(self.xp.log_softmax, x, axis)

    def logsumexp(self, x: Any, axis: int) -> Calls:
        return allocated(self.xp.logsumexp, x, axis)

    def sigmoid(self, x: Any) -> Calls:
        return both(self.xp.expit, x)

    def log_sigmoid(self, x: Any) -> Calls:
        return both(self.xp.log_expit, x)


class Torch(Peer):
    """PyTorch; gradients of losses through autograd, vjps by the functions that autograd calls."""

    name = library = "torch"
    title = "PyTorch"
    device = "cpu"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.xp.set_num_threads(threads)
        self._functional = self.xp.nn.functional

    @staticmethod
    def avx2() -> dict[str, str]:
        return {"ATEN_CPU_CAPABILITY": "avx2"}

    def asarray(self, array: Array) -> Any:
        return self.xp.from_numpy(array).to(self.device)

    def asnumpy(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(map(self.asnumpy, result))
        return result.detach().cpu().numpy()

    def softmax(self, x: Any, axis: int) -> Calls:
        return both(self.xp.softmax, x, axis)

    def log_softmax(self, x: Any, axis: int) -> Calls:
        return both(self.xp.log_softmax, x, axis)

    def logsumexp(self, x: Any, axis: int) -> Calls:
        return both(self.xp.logsumexp, x, axis)

    def sigmoid(self, x: Any) -> Calls:
        return both(self.xp.sigmoid, x)

    def log_sigmoid(self, x: Any) -> Calls:
        return both(self._functional.logsigmoid, x)

    def softmax_vjp(self, grad_output: Any, p: Any, axis: int) -> Calls:
        backward = self.xp._softmax_backward_data
        return both(backward, grad_output, p, axis, p.dtype, out="grad_input")

    def log_softmax_vjp(self, grad_output: Any, log_p: Any, axis: int) -> Calls:
        backward = self.xp._log_softmax_backward_data
        return both(backward, grad_output, log_p, axis, log_p.dtype)

    def cross_entropy(self, x: Any, labels: Any, axis: int) -> Calls:
        x, labels = self._classes_second(x, labels, axis)
        return allocated(self._functional.cross_entropy, x, labels)

    def cross_entropy_with_grad(self, x: Any, labels: Any, axis: int) -> Calls:
        leaf = x.requires_grad_()

        def step() -> tuple[Any, Any]:
            loss = self._functional.cross_entropy(*self._classes_second(leaf, labels, axis))
            return loss, self.xp.autograd.grad(loss, leaf)[0]

        return allocated(step)

    def binary_cross_entropy_with_logits(self, x: Any, target: Any) -> Calls:
        return allocated(self._functional.binary_cross_entropy_with_logits, x, target)

    def binary_cross_entropy_with_logits_with_grad(self, x: Any, target: Any) -> Calls:
        leaf = x.requires_grad_()

        def step() -> tuple[Any, Any]:
            loss = self._functional.binary_cross_entropy_with_logits(leaf, target)
            return loss, self.xp.autograd.grad(loss, leaf)[0]

        return allocated(step)

    @staticmethod
    def _classes_second(x: Any, labels: Any, axis: int) -> tuple[Any, Any]:
        """Return views with the classes where torch's loss wants them."""
        if axis in (-1, x.ndim - 1):
            return x.reshape(-1, x.shape[-1]), labels.reshape(-1)
        return x.movedim(axis, 1), labels


class OnnxRuntime(Peer):
    """A model of one operator; outputs are reused through IO binding."""

    name = library = "onnxruntime"
    title = "ONNX Runtime"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._onnx: Any = import_module("onnx")

    def asnumpy(self, result: Any) -> Any:
        return result[0] if isinstance(result, list) else result.numpy()

    def softmax(self, x: Array, axis: int) -> Calls:
        return self._model("Softmax", x, x, axis=axis)

    def log_softmax(self, x: Array, axis: int) -> Calls:
        return self._model("LogSoftmax", x, x, axis=axis)

    def logsumexp(self, x: Array, axis: int) -> Calls:
        return self._model("ReduceLogSumExp", x, x.max(axis), axes=[axis], keepdims=0)

    def sigmoid(self, x: Array) -> Calls:
        return self._model("Sigmoid", x, x)

    def _model(self, operator: str, x: Array, like: Array, **attributes: Any) -> Calls:
        """Run an operator on `x` for a result with the shape of `like`."""
        helper = self._onnx.helper
        dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
        ends = [
            [helper.make_tensor_value_info(name, dtype, array.shape)]
            for name, array in {"x": x, "y": like}.items()
        ]
        node = helper.make_node(operator, ["x"], ["y"], **attributes)
        opset = [helper.make_opsetid("", 13)]
        model = helper.make_model(
            helper.make_graph([node], operator, *ends),
            opset_imports=opset,
            ir_version=helper.find_min_ir_version_for(opset),
        )
        options = self.xp.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Its threads would otherwise spin on through the next one's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = self.xp.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        output = self.xp.OrtValue.ortvalue_from_numpy(np.empty_like(like))
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", self.xp.OrtValue.ortvalue_from_numpy(x))
        binding.bind_ortvalue_output("y", output)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return output

        return {REUSED: run} | allocated(session.run, None, {"x": x})


class Jax(Peer):
    """JAX, jitted, in double precision where the input is."""

    name = library = "jax"
    title = "JAX"
    device = "cpu"
    _started: ClassVar[int | None] = None

    def __init__(self, threads: int) -> None:
        unused = self.library not in sys.modules
        super().__init__(threads)
        self.xp.config.update("jax_enable_x64", True)
        if unused:  # The first use of a device fixes its threads.
            before = os.environ.get("PJRT_NPROC")
            os.environ["PJRT_NPROC"] = str(threads)
            self.xp.devices(self.device)
            del os.environ["PJRT_NPROC"]
            if before is not None:
                os.environ["PJRT_NPROC"] = before
            Jax._started = threads
        self.threads = Jax._started

    @staticmethod
    def avx2() -> dict[str, str]:
        return {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}

    def asarray(self, array: Array) -> Any:
        return self.xp.device_put(array, self.xp.devices(self.device)[0])

    def softmax(self, x: Any, axis: int) -> Calls:
        return self._jitted(partial(self.xp.nn.softmax, axis=axis), x)

    def log_softmax(self, x: Any, axis: int) -> Calls:
        return self._jitted(partial(self.xp.nn.log_softmax, axis=axis), x)

    def logsumexp(self, x: Any, axis: int) -> Calls:
        return self._jitted(partial(self.xp.nn.logsumexp, axis=axis), x)

    def sigmoid(self, x: Any) -> Calls:
        return self._jitted(self.xp.nn.sigmoid, x)

    def log_sigmoid(self, x: Any) -> Calls:
        return self._jitted(self.xp.nn.log_sigmoid, x)

    def cross_entropy(self, x: Any, labels: Any, axis: int) -> Calls:
        return self._jitted(partial(self._cross_entropy, axis=axis), x, labels)

    def cross_entropy_with_grad(self, x: Any, labels: Any, axis: int) -> Calls:
        loss = partial(self._cross_entropy, axis=axis)
        return self._jitted(self.xp.value_and_grad(loss), x, labels)

    def binary_cross_entropy_with_logits(self, x: Any, target: Any) -> Calls:
        return self._jitted(self._binary_cross_entropy, x, target)

    def binary_cross_entropy_with_logits_with_grad(self, x: Any, target: Any) -> Calls:
        return self._jitted(self.xp.value_and_grad(self._binary_cross_entropy), x, target)

    def softmax_vjp(self, grad_output: Any, p: Any, axis: int) -> Calls:
        def product(g: Any, p: Any) -> Any:
            return p * (g - (g * p).sum(axis, keepdims=True))

        return self._jitted(product, grad_output, p)

    def log_softmax_vjp(self, grad_output: Any, log_p: Any, axis: int) -> Calls:
        def product(g: Any, log_p: Any) -> Any:
            return g - self.xp.numpy.exp(log_p) * g.sum(axis, keepdims=True)

        return self._jitted(product, grad_output, log_p)

    def _cross_entropy(self, x: Any, labels: Any, axis: int) -> Any:
        np = self.xp.numpy
        chosen = np.take_along_axis(x, np.expand_dims(labels, axis), axis).squeeze(axis)
        return (self.xp.nn.logsumexp(x, axis) - chosen).mean()

    def _binary_cross_entropy(self, x: Any, target: Any) -> Any:
        return (self.xp.nn.softplus(x) - x * target).mean()

    def _jitted(self, function: Callable[..., Any], *arguments: Any) -> Calls:
        compiled = self.xp.jit(function)
        return {ALLOCATED: lambda: self.xp.block_until_ready(compiled(*arguments))}


class Numba(Peer):
    """The loops that one writes first, compiled; rows are shared among threads."""

    name = library = "numba"
    title = "Numba"

    def __init__(self, threads: int) -> None:
        self.xp = loops.load()
        self.threads = min(threads, self.xp.config.NUMBA_NUM_THREADS)
        self.xp.set_num_threads(self.threads)
        self._loops = loops.row_functions(self.xp, parallel=self.threads > 1)

    @staticmethod
    def avx2() -> dict[str, str]:
        return {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}

    def softmax(self, x: Array, axis: int) -> Calls:
        return self._loop("softmax", x, axis)

    def log_softmax(self, x: Array, axis: int) -> Calls:
        return self._loop("log_softmax", x, axis)

    def logsumexp(self, x: Array, axis: int) -> Calls:
        return self._loop("logsumexp", x, axis, reduces=True)

    def _loop(self, name: str, x: Array, axis: int, *, reduces: bool = False) -> Calls:
        axis %= x.ndim
        view = x.reshape(prod(x.shape[:axis]), x.shape[axis], -1)
        shape = np.delete(x.shape, axis).tolist() if reduces else x.shape
        loop = self._loops[name]

        def run(out: Array | None = None) -> Array:
            out = np.empty(shape, x.dtype) if out is None else out
            loop(view, out.reshape(view.shape[0], -1, view.shape[2]))
            return out

        return both(run)


# -- limits --------------------------------------------------------------------------------


class Copy(NumPy):
    """What it takes to read an array and write another; large ones are shared among threads."""

    name = title = "copy"
    serial = False

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._parts = threads
        self._pool = ThreadPoolExecutor(threads)

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        x: Array = arguments[0]
        out = np.empty_like(x)
        if self._parts == 1 or x.nbytes < _WORTH_SHARING:
            return {REUSED: partial(np.copyto, out, x)}
        parts = [np.array_split(array.reshape(-1), self._parts) for array in (out, x)]
        return {REUSED: lambda: list(self._pool.map(np.copyto, *parts))}

    def bytes_moved(self, arguments: tuple[Any, ...], result: Any) -> int:
        x: Array = arguments[0]
        return 2 * x.nbytes


class ExpSum(Numba):
    """The exponentials of numbers in the first-level cache, and their sum.

    One thread is timed; `threads` of them would deal with as many times the elements.
    """

    name = title = "exp+sum"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.threads = self._times = threads
        self._kernels: dict[str, Callable[[Array, int], Any]] = {}

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        x: Array = arguments[0]
        if x.dtype.name not in self._kernels:
            self._kernels[x.dtype.name] = loops.exp_and_sum(self.xp, x.dtype)
        tile = np.random.default_rng(0).normal(0, 3, (2, _ROW_BYTES // x.itemsize)).astype(x.dtype)
        return {NO_OUTPUT: partial(self._kernels[x.dtype.name], tile, _SWEEPS)}

    def elements(self, x: Array) -> int:
        return _SWEEPS * _ROW_BYTES // x.itemsize * self._times

    def bytes_moved(self, arguments: tuple[Any, ...], result: Any) -> int:
        return 0


@dataclass(frozen=True)
class Field:
    """Who takes part on a device, and the clock that they are timed by."""

    ours: type[Peer]
    peers: dict[str, type[Peer]]
    limits: dict[str, type[Peer]]
    clock: Callable[[], float]


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (NumPy, SciPy, Torch, OnnxRuntime, Jax, Numba)
}
LIMITS: dict[str, type[Peer]] = {limit.name: limit for limit in (Copy, ExpSum)}
CPU = Field(Pysoftmax, PEERS, LIMITS, perf_counter)
