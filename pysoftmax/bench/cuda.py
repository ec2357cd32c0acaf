"""Who takes part on a GPU, and how time is taken there: ``pysoftmax bench --device cuda``.

All work in the current device's default stream. A turn ends when the device has done what was
asked of it; where its work takes longer than asking for it, that is the device's time.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

import pysoftmax
from pysoftmax.bench import peers
from pysoftmax.bench.cases import Array
from pysoftmax.bench.peers import NO_OUTPUT, REUSED, Calls, Field, Peer, allocated, both

_TINY = 4096  # elements, at most, whose softmax takes as long as starting it


class OnGpu(Peer):
    """A library that computes on CuPy's arrays."""

    library = "cupy"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._cupy: Any = import_module("cupy")
        self.threads = threads

    @property
    def version(self) -> str:
        return str(self._cupy.__version__)

    def asarray(self, array: Array) -> Any:
        return self._cupy.asarray(array)

    def asnumpy(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(map(self.asnumpy, result))
        return self._cupy.asnumpy(result)


class Pysoftmax(OnGpu, peers.Pysoftmax):
    """What the others are compared with; wrong labels are not looked for, as by the others."""

    library = "pysoftmax"

    @property
    def version(self) -> str:
        return pysoftmax.__version__


class Cupyx(OnGpu, peers.SciPy):
    """cupyx.scipy.special, whose softmax is made of several kernels."""

    name = "cupyx"
    title = "CuPy"
    library = "cupyx.scipy.special"


class Torch(peers.Torch):
    """PyTorch, a kernel for each operation."""

    device = "cuda"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        if self.device == "cuda" and not self.xp.cuda.is_available():
            raise ImportError("PyTorch finds no CUDA device")
        self.threads = threads

    def asarray(self, array: Array) -> Any:
        if array.dtype.name != "bfloat16":
            return super().asarray(array)
        return super().asarray(array.view(np.int16)).view(self.xp.bfloat16)

    def asnumpy(self, result: Any) -> Any:
        half = getattr(result, "dtype", None) == self.xp.bfloat16
        return super().asnumpy(result.float() if half else result)


class Compiled(Torch):
    """torch.compile, of functions written with torch."""

    name = "torch.compile"
    title = "torch.compile"
    backend: ClassVar[str] = "inductor"

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        self.xp.compiler.reset()
        return super().calls(function, arguments)

    def softmax(self, x: Any, axis: int) -> Calls:
        return allocated(self._compiled(self.xp.softmax, axis), x)

    def log_softmax(self, x: Any, axis: int) -> Calls:
        return allocated(self._compiled(self.xp.log_softmax, axis), x)

    def logsumexp(self, x: Any, axis: int) -> Calls:
        return allocated(self._compiled(self.xp.logsumexp, axis), x)

    def sigmoid(self, x: Any) -> Calls:
        return allocated(self._compiled(self.xp.sigmoid), x)

    def log_sigmoid(self, x: Any) -> Calls:
        return allocated(self._compiled(self._functional.logsigmoid), x)

    def cross_entropy(self, x: Any, labels: Any, axis: int) -> Calls:
        x, labels = self._classes_second(x, labels, axis)
        return allocated(self._compiled(self._functional.cross_entropy, labels), x)

    def cross_entropy_with_grad(self, x: Any, labels: Any, axis: int) -> Calls:
        leaf = x.requires_grad_()

        def loss_of_leaf(leaf: Any) -> Any:
            return self._functional.cross_entropy(*self._classes_second(leaf, labels, axis))

        loss_of = self._compiled(loss_of_leaf)

        def step() -> tuple[Any, Any]:
            loss = loss_of(leaf)
            return loss, self.xp.autograd.grad(loss, leaf)[0]

        return allocated(step)

    def _compiled(self, function: Any, *others: Any) -> Any:
        def call(x: Any) -> Any:
            return function(x, *others)

        return self.xp.compile(call, backend=self.backend, dynamic=False)


class Triton(Torch):
    """A softmax and a fused loss in Triton, for rows that are contiguous."""

    name = "triton"
    title = "Triton"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._kernels: Any = import_module("pysoftmax.bench.triton_kernels")

    @property
    def version(self) -> str:
        return str(import_module("triton").__version__)

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        x = arguments[0]
        of_rows = function in ("softmax", "log_softmax", "cross_entropy_with_grad")
        if not of_rows or arguments[-1] not in (-1, x.ndim - 1):
            return {}
        return super().calls(function, arguments)

    def softmax(self, x: Any, axis: int) -> Calls:
        return both(partial(self._rows, log=False), x)

    def log_softmax(self, x: Any, axis: int) -> Calls:
        return both(partial(self._rows, log=True), x)

    def cross_entropy_with_grad(self, x: Any, labels: Any, axis: int) -> Calls:
        rows, n = labels.numel(), x.shape[-1]
        real = self._real(x)

        def step(grad: Any = None) -> tuple[Any, Any]:
            grad = self.xp.empty_like(x) if grad is None else grad
            loss = self.xp.empty(rows, dtype=getattr(self.xp, real), device=x.device)
            self._kernels.cross_entropy[(rows,)](
                grad, loss, x, labels, rows, n, self._type(real), **self._kernels.options(n)
            )
            return loss.mean(), grad

        return both(step, out="grad")

    def _rows(self, x: Any, log: bool, out: Any = None) -> Any:
        out = self.xp.empty_like(x) if out is None else out
        n = x.shape[-1]
        self._kernels.softmax[(x.numel() // n,)](
            out, x, n, log, self._type(self._real(x)), **self._kernels.options(n)
        )
        return out

    def _real(self, x: Any) -> str:
        return "float64" if x.dtype == self.xp.float64 else "float32"

    @staticmethod
    def _type(real: str) -> Any:
        return getattr(import_module("triton.language"), real)


# -- limits --------------------------------------------------------------------------------


class Copy(OnGpu):
    """What it takes the device to copy an array."""

    name = title = "copy"

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        x = self.asarray(arguments[0])
        out = self._cupy.empty_like(x)
        return {REUSED: partial(self._cupy.copyto, out, x)}

    def bytes_moved(self, arguments: tuple[Any, ...], result: Any) -> int:
        x: Array = arguments[0]
        return 2 * x.nbytes


class Start(OnGpu):
    """What it takes to start a kernel that does nothing."""

    name = title = "launch"

    def calls(self, function: str, arguments: tuple[Any, ...]) -> Calls:
        if arguments[0].size > _TINY:
            return {}
        source = 'extern "C" __global__ void nothing() {}'
        kernel = self._cupy.RawKernel(source, "nothing")
        return {NO_OUTPUT: partial(kernel, (1,), (1,), ())}

    def bytes_moved(self, arguments: tuple[Any, ...], result: Any) -> int:
        return 0


def clock() -> float:
    """Return the time in seconds, when the device has done all that it was asked for."""
    import_module("cupy").cuda.Device().synchronize()
    return perf_counter()


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Cupyx, Torch, Compiled, Triton)}
LIMITS: dict[str, type[Peer]] = {limit.name: limit for limit in (Copy, Start)}
CUDA = Field(Pysoftmax, PEERS, LIMITS, clock)


def require() -> Any:
    """Return the module ``cupy``.

    Raises
    ------
    ValueError
        Without CuPy, or without a device.
    """
    if not find_spec("cupy"):
        raise ValueError("--device cuda needs CuPy: pip install 'pysoftmax[cuda13]', or cuda12")
    cupy: Any = import_module("cupy")
    if not cupy.is_available():
        raise ValueError("--device cuda: CuPy finds no CUDA device")
    return cupy


def name() -> str:
    """Return the name that the current device gives itself."""
    cupy = import_module("cupy")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return str(properties["name"].decode())
