"""What is raced: the functions, their inputs, and the shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pysoftmax

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Function:
    """A public function: what it is called with, and what bounds its time from below."""

    arguments: Callable[[Array, int | None], tuple[Any, ...]]
    """Arguments, from logits and an axis."""
    limits: tuple[str, ...] = ("copy", "exp+sum")
    elementwise: bool = False


@dataclass(frozen=True)
class Case:
    """A call to be timed; `axis` is None where the function has no such argument."""

    function: str
    dtype: str
    shape: Shape
    axis: int | None

    def __str__(self) -> str:
        """Describe the call in a line."""
        axis = "" if self.axis is None else f" axis {self.axis}"
        return f"{self.function} {self.dtype} {'x'.join(map(str, self.shape))}{axis}"

    def arguments(self) -> tuple[Any, ...]:
        """Return what the function is called with: logits with a trained classifier's spread."""
        if self.dtype == "bfloat16":
            import_module("ml_dtypes")  # gives NumPy the name
        size = prod(self.shape)
        logits = np.random.default_rng(0).normal(0, 3, min(size, _DISTINCT)).astype(self.dtype)
        x = np.resize(logits, self.shape)
        return FUNCTIONS[self.function].arguments(x, self.axis)


def _logits(x: Array, axis: int | None) -> tuple[Any, ...]:
    return x, axis


def _labelled(x: Array, axis: int | None) -> tuple[Any, ...]:
    assert axis is not None
    rows = np.delete(x.shape, axis).tolist()
    return x, np.random.default_rng(1).integers(x.shape[axis], size=rows), axis


def _elements(x: Array, axis: int | None) -> tuple[Any, ...]:
    return (x,)


def _binary(x: Array, axis: int | None) -> tuple[Any, ...]:
    return x, np.random.default_rng(1).integers(2, size=x.shape).astype(x.dtype)


def _gradient_through(function: Callable[..., Array]) -> Callable[..., tuple[Any, ...]]:
    def arguments(x: Array, axis: int | None) -> tuple[Any, ...]:
        grad_output = np.random.default_rng(1).normal(size=x.shape).astype(x.dtype)
        return grad_output, function(x, axis), axis

    return arguments


# A function that only reads is not bound by the time of a copy, and one without exponentials
# not by theirs.
FUNCTIONS = {
    "softmax": Function(_logits),
    "log_softmax": Function(_logits),
    "logsumexp": Function(_logits, limits=("exp+sum",)),
    "cross_entropy": Function(_labelled, limits=("exp+sum",)),
    "cross_entropy_with_grad": Function(_labelled),
    "sigmoid": Function(_elements, elementwise=True),
    "log_sigmoid": Function(_elements, elementwise=True),
    "binary_cross_entropy_with_logits": Function(_binary, limits=("exp+sum",), elementwise=True),
    "binary_cross_entropy_with_logits_with_grad": Function(_binary, elementwise=True),
    "softmax_vjp": Function(_gradient_through(pysoftmax.softmax), limits=("copy",)),
    "log_softmax_vjp": Function(_gradient_through(pysoftmax.log_softmax)),
}
DTYPES = ("float32", "float64")
CUDA_DTYPES = (*DTYPES, "float16", "bfloat16")
_DISTINCT = 2**24

LENGTHS = (2, 3, 5, 10, 16, 24, 40, 64, 100, 300, 1000)
USUAL_FUNCTIONS = (
    *("softmax", "log_softmax", "logsumexp"),
    *("cross_entropy", "cross_entropy_with_grad"),
)
USUAL_SHAPES: tuple[tuple[Shape, int], ...] = (
    ((1, 10), -1),
    *(((1024, n), -1) for n in LENGTHS),
    *(((64, n), -1) for n in (4096, 32_000, 128_256)),
    ((1, 2**24), -1),
    ((10, 1024), 0),
    ((1000, 1024), 0),
    ((8, 21, 4096), 1),
)
QUICK_FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
QUICK_SHAPES: tuple[tuple[Shape, int], ...] = (
    *(((1, 10), -1), ((1024, 10), -1), ((64, 4096), -1)),
    ((100, 1024), 0),
)

# On a GPU: arrays that no cache holds, so that reading and writing them is what takes the time.
CUDA_BYTES = 2**28
CUDA_LENGTHS = tuple(2**k for k in range(6, 19))
CUDA_FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy_with_grad")


def cuda_shapes(dtype: str, *, quick: bool = False) -> list[tuple[Shape, int]]:
    """Return the usual shapes on a GPU, each with its axis: from a tiny array to long rows."""
    elements = CUDA_BYTES // {"float32": 4, "float64": 8}.get(dtype, 2)
    lengths = CUDA_LENGTHS[::6] if quick else CUDA_LENGTHS
    rows: list[tuple[Shape, int]] = [((elements // n, n), -1) for n in lengths]
    return [((1, 10), -1), *rows, ((elements // 2**18, 2**8, 2**10), 1)]


def choose(
    functions: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    shapes: Iterable[Shape] | None = None,
    axes: Sequence[int] | None = None,
    *,
    quick: bool = False,
    device: str = "cpu",
) -> list[Case]:
    """List the cases asked for, each once; whatever is None takes the usual choice.

    Parameters
    ----------
    functions : iterable of str, optional
        Names in `FUNCTIONS`.
    dtypes : iterable of str, optional
        Names in `DTYPES`.
    shapes : iterable of tuple of int, optional
        Each is taken along each of `axes`.
    axes : sequence of int, optional
        The last one unless given; the usual shapes have axes of their own.
    quick : bool, default False
        Take few functions and shapes where a choice was left.
    device : {"cpu", "cuda"}
        Whose usual choices are taken.

    Returns
    -------
    list of Case
        Ordered by function, dtype, shape, axis.

    Raises
    ------
    ValueError
        If a shape has no such axis, or the device no such dtype.

    Examples
    --------
    >>> for case in choose(["softmax", "sigmoid"], ["float32"], [(8, 3)], [0, -1]):
    ...     print(case)
    softmax float32 8x3 axis 0
    softmax float32 8x3 axis -1
    sigmoid float32 8x3
    """
    on_gpu = device == "cuda"
    usual_functions = CUDA_FUNCTIONS if on_gpu else USUAL_FUNCTIONS
    known = CUDA_DTYPES if on_gpu else DTYPES
    dtypes = list(known if dtypes is None else dtypes)
    for dtype in dtypes:
        if dtype not in known:
            raise ValueError(f"--device {device} takes {', '.join(known)}, got {dtype}")

    def places(dtype: str) -> Iterable[tuple[Shape, int]]:
        usual: Sequence[tuple[Shape, int]] = QUICK_SHAPES if quick else USUAL_SHAPES
        if on_gpu:
            usual = cuda_shapes(dtype, quick=quick)
        if shapes is None and axes is None:
            return usual
        return product(shapes or [shape for shape, _ in usual], axes or [-1])

    chosen = []
    for name, dtype in product(
        functions or (QUICK_FUNCTIONS if quick else usual_functions), dtypes
    ):
        for shape, axis in places(dtype):
            if not -len(shape) <= axis < len(shape):
                raise ValueError(f"shape {'x'.join(map(str, shape))} has no axis {axis}")
            chosen.append(Case(name, dtype, shape, None if FUNCTIONS[name].elementwise else axis))
    return list(dict.fromkeys(chosen))
