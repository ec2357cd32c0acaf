"""NumPy arrays, through the compiled kernels."""

import array as array_module
import os
from typing import Any

import numpy as np

from pysoftmax.backends import _cpu as cpu
from pysoftmax.backends._cpu import fast_log_softmax, fast_logsumexp, fast_softmax

__all__ = ["fast_log_softmax", "fast_logsumexp", "fast_softmax"]

Array = np.ndarray[Any, Any]

name = "numpy"
library = "numpy"
namespace = np

# The operations of src/cpu/kernels.h.
(SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, CROSS_ENTROPY, CROSS_ENTROPY_WITH_GRAD, SOFTMAX_VJP,
 LOG_SOFTMAX_VJP) = range(7)

TARGET_VARIABLE = "PYSOFTMAX_CPU_TARGET"


def choose_target() -> str:
    """The instruction set to use: the best there is, or what the environment asks for."""
    available = cpu.available_targets()
    wanted = os.environ.get(TARGET_VARIABLE)
    if not wanted:
        if not available:
            raise ImportError("pysoftmax was built without kernels for this CPU")
        return available[0]
    if wanted not in available:
        reason = "this CPU" if wanted in cpu.built_targets() else "this build of pysoftmax"
        raise ImportError(
            f"{TARGET_VARIABLE}={wanted}: {reason} does not have it; "
            f"available: {', '.join(available)}"
        )
    return wanted


target = choose_target()
cpu.use_target(target)


def recognises(array: Any) -> bool:
    """ndarrays and what NumPy makes of lists, numbers, buffers and ``__array__``."""
    if isinstance(array, np.ndarray | np.generic | list | tuple | bool | int | float | complex
                  | array_module.array | memoryview):
        return True
    # An array library that merely can be converted has __dlpack__ too.
    return hasattr(array, "__array__") and not hasattr(array, "__dlpack__")


def as_array(x: Any) -> Array:
    """`x` as an ndarray proper."""
    return np.asarray(x)


def mask_of(x: Any) -> Array | None:
    """True where a masked array is not masked; None for all others."""
    return ~np.ma.getmaskarray(x) if isinstance(x, np.ma.MaskedArray) else None


def wrap(result: Array, like: Any) -> Any:
    """`result` in the type of `like`, or as a scalar where it has no dimension."""
    if isinstance(like, np.ma.MaskedArray):
        return np.ma.array(result, mask=np.ma.getmask(like), copy=False)
    if type(like) is not np.ndarray and hasattr(like, "__array_wrap__") and np.ndim(result):
        return like.__array_wrap__(result, None, False)
    return result[()] if result.ndim == 0 else result


def can_be_written(out: Any) -> bool:
    """Whether `out` is an array to write to."""
    return isinstance(out, np.ndarray)


def empty(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """An uninitialised array."""
    return np.empty(shape, dtype)


# ------------------------------------------------------------------ (outer, n, inner) views


def _rows(array: Array, axes: tuple[int, ...]) -> Array:
    """`array` as (outer, n, inner), n along `axes`; a view where strides allow one."""
    if not axes:
        return array.reshape(-1, 1, 1)
    first, last = axes[0], axes[-1]
    if last - first + 1 == len(axes):
        shape = array.shape
        return array.reshape(
            int(np.prod(shape[:first])), int(np.prod(shape[first : last + 1])),
            int(np.prod(shape[last + 1 :])),
        )
    together = np.moveaxis(array, axes, range(array.ndim - len(axes), array.ndim))
    count = int(np.prod([array.shape[i] for i in axes]))
    return together.reshape(-1, count, 1)


def _aligned(array: Array) -> Array:
    """An array the kernels can read: native byte order (by the caller) and aligned."""
    return array if array.flags.aligned else array.copy()


def _is_same(a: Array, b: Array) -> bool:
    """Whether two arrays are the same elements in the same order."""
    return (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.strides == b.strides and a.shape == b.shape
    )


class _Output:
    """A view (outer, n, inner) of `out` that the kernels may write to while reading `inputs`.

    Where there is none, because of strides, alignment or overlap, a new array stands in and
    `finish` copies it.
    """

    def __init__(self, out: Array, axes: tuple[int, ...], *inputs: Array | None) -> None:
        view = _rows(out, axes)
        self.out = out
        self.axes = axes
        reads = [i for i in inputs if i is not None and np.may_share_memory(i, out)]
        in_place = len(reads) == 1 and _is_same(reads[0], out)
        self.direct = (
            out.flags.aligned and np.may_share_memory(view, out) and (in_place or not reads)
        )
        self.view = view if self.direct else _rows(np.empty(out.shape, out.dtype), axes)

    def finish(self) -> None:
        if not self.direct:
            _scatter(self.view, self.out, self.axes)


def _scatter(rows: Array, out: Array, axes: tuple[int, ...]) -> None:
    """Copy (outer, n, inner) back into an array of any shape."""
    if axes and axes[-1] - axes[0] + 1 != len(axes):
        shape = np.moveaxis(out, axes, range(out.ndim - len(axes), out.ndim)).shape
        out[...] = np.moveaxis(
            rows.reshape(shape), range(out.ndim - len(axes), out.ndim), axes
        )
    else:
        out[...] = rows.reshape(out.shape)


def _temperatures(temperature: Any) -> Array | None:
    """Temperatures in the order of the rows; None for 1."""
    if isinstance(temperature, float):
        return None if temperature == 1.0 else np.array([temperature])
    return np.ascontiguousarray(temperature, dtype=np.float64).reshape(-1)


def _contiguous_rows(out: Array, *inputs: Array | None) -> Array:
    """A contiguous array for one value per row: `out` itself where that is safe."""
    safe = out.flags.c_contiguous and out.flags.aligned and not any(
        i is not None and np.may_share_memory(i, out) for i in inputs
    )
    return out if safe else np.empty(out.shape, out.dtype)


# -------------------------------------------------------------------------------- functions


def _map(
    operation: int, x: Array, axis: tuple[int, ...], out: Array, where: Array | None,
    temperature: Any,
) -> None:
    x = _aligned(x)
    mask = None if where is None else _rows(where, axis)
    degrees = _temperatures(temperature)
    if degrees is not None and np.may_share_memory(degrees, out):
        degrees = degrees.copy()
    output = _Output(out, axis, x, where)
    cpu.run_rows(operation, _rows(x, axis), out=output.view, mask=mask, temperature=degrees)
    output.finish()


def softmax(
    x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
) -> None:
    _map(SOFTMAX, x, axis, out, where, temperature)


def log_softmax(
    x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
) -> None:
    _map(LOG_SOFTMAX, x, axis, out, where, temperature)


def logsumexp(x: Array, axis: tuple[int, ...], out: Array, where: Array | None) -> None:
    mask = None if where is None else _rows(where, axis)
    row_out = _contiguous_rows(out, x, where)
    cpu.run_rows(LOGSUMEXP, _rows(_aligned(x), axis), row_out=row_out, mask=mask)
    if row_out is not out:
        out[...] = row_out


def cross_entropy(
    logits: Array, target: Array, axis: int, weight: Array | None, ignore_index: int,
    label_smoothing: float, temperature: Any, loss: Array, grad: Array | None, scale: Any,
) -> None:
    axes = (axis,)
    logits = _aligned(logits)
    labels = _labels(target) if target.dtype.kind in "iu" else None
    probabilities = None if labels is not None else _rows(_aligned(target), axes)
    output = None if grad is None else _Output(grad, axes, logits, probabilities)
    cpu.run_rows(
        CROSS_ENTROPY if output is None else CROSS_ENTROPY_WITH_GRAD,
        _rows(logits, axes),
        out=None if output is None else output.view,
        row_out=loss,
        y=probabilities,
        temperature=_temperatures(temperature),
        target=labels,
        ignore_index=ignore_index,
        class_weight=None if weight is None else np.ascontiguousarray(weight),
        label_smoothing=label_smoothing,
        gradient_scale=scale,
    )
    if output is not None:
        output.finish()


def _labels(target: Array) -> Array:
    return np.ascontiguousarray(target, dtype=np.int64)


def check_labels(target: Array, classes: int, ignore_index: int) -> None:
    position = cpu.first_bad_label(_labels(target), classes, ignore_index)
    if position < 0:
        return
    index = tuple(int(i) for i in np.unravel_index(position, target.shape))
    where = index[0] if len(index) == 1 else index
    raise IndexError(
        f"target[{', '.join(map(str, index))}] is {target[index]}: class labels must be in "
        f"[0, {classes}) or ignore_index={ignore_index} (first at {where})"
    )


def sum_of_weights(target: Array, weight: Array | None, ignore_index: int) -> float:
    return cpu.sum_of_weights(_labels(target), weight, ignore_index)


def sum(x: Array) -> float:
    return cpu.total(x)


def sigmoid(x: Array, out: Array) -> None:
    _elementwise(cpu.sigmoid, x, out)


def log_sigmoid(x: Array, out: Array) -> None:
    _elementwise(cpu.log_sigmoid, x, out)


def _elementwise(function: Any, x: Array, out: Array) -> None:
    source = np.ascontiguousarray(_aligned(x))
    direct = out.flags.c_contiguous and out.flags.aligned and (
        not np.may_share_memory(source, out) or _is_same(source, out)
    )
    result = out if direct else np.empty(out.shape, out.dtype)
    function(source, result)
    if result is not out:
        out[...] = result


def binary_cross_entropy(
    logits: Array, target: Array, weight: Array | None, pos_weight: Array | None, loss: Array,
    grad: Array | None, scale: Any,
) -> None:
    inputs = [
        None if a is None else np.ascontiguousarray(_aligned(a))
        for a in (logits, target, weight, pos_weight)
    ]
    result = grad
    if grad is not None:
        direct = grad.flags.c_contiguous and grad.flags.aligned and not any(
            a is not None and np.may_share_memory(a, grad) and not _is_same(a, grad)
            for a in inputs
        )
        result = grad if direct else np.empty(grad.shape, grad.dtype)
    cpu.binary_cross_entropy(*inputs, loss, result, scale)
    if grad is not None and result is not grad:
        grad[...] = result


def softmax_vjp(
    grad_output: Array, probabilities: Array, axis: tuple[int, ...], temperature: Any,
    out: Array,
) -> None:
    _vjp(SOFTMAX_VJP, grad_output, probabilities, axis, temperature, out)


def log_softmax_vjp(
    grad_output: Array, log_probabilities: Array, axis: tuple[int, ...], temperature: Any,
    out: Array,
) -> None:
    _vjp(LOG_SOFTMAX_VJP, grad_output, log_probabilities, axis, temperature, out)


def _vjp(
    operation: int, grad_output: Array, values: Array, axis: tuple[int, ...], temperature: Any,
    out: Array,
) -> None:
    values, grad_output = _aligned(values), _aligned(grad_output)
    output = _Output(out, axis, values, grad_output)
    cpu.run_rows(
        operation, _rows(values, axis), y=_rows(grad_output, axis), out=output.view,
        temperature=_temperatures(temperature),
    )
    output.finish()
