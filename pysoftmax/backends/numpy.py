"""NumPy arrays, through the compiled kernels."""

import array as array_module
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from pysoftmax.backends import _cpu as cpu

# The public functions try the fast ones first: they answer None to all but ordinary arrays.
from pysoftmax.backends._cpu import (
    count_confidences,
    count_rows,
    entropy,
    fast_binary_cross_entropy,
    fast_cross_entropy,
    fast_log_sigmoid,
    fast_log_softmax,
    fast_logsumexp,
    fast_sigmoid,
    fast_softmax,
    fast_softmax_and_top,
    fast_vjp,
    rows_to_count,
)
from pysoftmax.backends._operations import (
    CROSS_ENTROPY,
    CROSS_ENTROPY_WITH_GRAD,
    DOT,
    LOG_SOFTMAX,
    LOG_SOFTMAX_VJP,
    LOGSUMEXP,
    SOFTMAX,
    SOFTMAX_VJP,
)

Array = np.ndarray[Any, Any]

name = "numpy"
library = "numpy"
namespace = np

# Conversions may overflow, which is what rounding to the nearest comes to.
silent = np.errstate(all="ignore")

# Elements converted at a time, where the kernels' real type is not the array's.
SLAB = 1 << 16

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
    if isinstance(
        array,
        np.ndarray
        | np.generic
        | list
        | tuple
        | bool
        | int
        | float
        | complex
        | array_module.array
        | memoryview,
    ):
        return True
    # pandas and the like; not array libraries of their own, nor what is still to be computed.
    return hasattr(array, "__array__") and not (
        hasattr(array, "__dlpack__") or hasattr(array, "__dask_graph__")
    )


def as_array(x: Any) -> Array:
    """`x` as an ndarray proper."""
    array = np.asarray(x)
    return _numbers_of(x, array) if array.dtype == object else array


def _numbers_of(x: Any, array: Array) -> Array:
    """The numbers in pandas' nullable columns, NaN for what is missing; else `array`."""
    pandas: Any = sys.modules.get("pandas")
    if pandas is None or not isinstance(x, pandas.DataFrame | pandas.Series):
        return array
    columns = x.dtypes if isinstance(x, pandas.DataFrame) else [x.dtype]
    dtypes = [getattr(dtype, "numpy_dtype", dtype) for dtype in columns]
    if not all(isinstance(dtype, np.dtype) and dtype.kind in "biuf" for dtype in dtypes):
        return array
    wanted = np.result_type(*dtypes)
    if np.any(x.isna()) and wanted.kind != "f":
        wanted = np.result_type(wanted, np.float32)
    numbers: Array = x.to_numpy(wanted, na_value=np.nan)
    return numbers


def mask_of(x: Any) -> Array | None:
    """True where a masked array is not masked; None for all others."""
    return ~np.ma.getmaskarray(x) if isinstance(x, np.ma.MaskedArray) else None


def wrap(result: Array, like: Any) -> Any:
    """`result` in the type of `like`, or as a scalar where it has no dimension."""
    if isinstance(like, np.ma.MaskedArray):
        return np.ma.array(result, mask=np.ma.getmaskarray(like), copy=False)
    if type(like) is not np.ndarray and np.ndim(result):
        if hasattr(like, "__array_wrap__"):
            return like.__array_wrap__(result, None, False)
        return _labelled(result, like)
    return result[()] if result.ndim == 0 else result


def wrap_reduced(result: Array, like: Any, axis: tuple[int, ...]) -> Any:
    """`result` of a reduction; of a masked array masked where all of a row is."""
    if isinstance(like, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(like).all(axis=axis)
        return np.ma.array(result, mask=mask.reshape(result.shape), copy=False)
    return _labelled(result, like, axis) if result.ndim else wrap(result, None)


def _labelled(result: Array, like: Any, reduced: tuple[int, ...] = ()) -> Any:
    """`result` with the labels of `like` that were not reduced, if that is of pandas."""
    pandas: Any = sys.modules.get("pandas")
    if pandas is None or not isinstance(like, pandas.DataFrame | pandas.Series):
        return result
    labels = [labels for i, labels in enumerate(like.axes) if i not in reduced]
    if tuple(map(len, labels)) != result.shape:  # dimensions were kept, or added by factors
        return result
    if result.ndim == 2:
        return pandas.DataFrame(result, *labels, copy=False)
    name = like.name if isinstance(like, pandas.Series) else None
    return pandas.Series(result, *labels, name=name, copy=False)


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
            math.prod(shape[:first]),
            math.prod(shape[first : last + 1]),
            math.prod(shape[last + 1 :]),
        )
    together = np.moveaxis(array, axes, range(array.ndim - len(axes), array.ndim))
    count = math.prod(array.shape[i] for i in axes)
    return together.reshape(-1, count, 1)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=")


def _real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What the kernels compute a result of `dtype` in: the half precisions in float32."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else _native(dtype)


def _is_half(dtype: np.dtype[Any]) -> bool:
    """Whether it is float16 or bfloat16, in this machine's byte order."""
    return dtype.char in "eE" and dtype.isnative


def _as_type(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array.astype(dtype, copy=False)`, half precisions by our own loops: NumPy's are slow."""
    if dtype == np.float32 and _is_half(array.dtype):
        convert = cpu.widen
    elif _is_half(dtype) and array.dtype == np.float32:
        convert = cpu.narrow
    else:
        return array.astype(dtype, copy=False)
    result = np.empty(array.shape, dtype)
    convert(np.require(array, requirements=("C", "A")), result)
    return result


def _fits(dtype: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether the kernels read `dtype` where `wanted` is computed."""
    return dtype == _native(wanted) or (_is_half(dtype) and wanted == np.float32)


def _computable(array: Array, wanted: np.dtype[Any]) -> Array:
    """`array` in a form that the kernels read, and with no more precision than `wanted`."""
    if not _fits(array.dtype, wanted):
        array = _as_type(array, _native(wanted))
    return array if array.flags.aligned else array.copy()


def _in_reals(array: Array) -> Array:
    """`array` in what its dtype is computed in."""
    return _as_type(_computable(array, array.dtype), _real(array.dtype))


def _is_same(a: Array, b: Array) -> bool:
    """Whether two arrays are the same elements in the same order."""
    return (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.strides == b.strides
        and a.shape == b.shape
    )


def _apart(out: Array, *inputs: Array | None) -> bool:
    """Whether `out` may be written while the inputs are read: one may be `out` itself."""
    shared = [i for i in inputs if i is not None and np.may_share_memory(i, out)]
    return not shared or (len(shared) == 1 and _is_same(shared[0], out))


class _Output:
    """A view (outer, n, inner) of `out` that the kernels may write to while reading `inputs`.

    Where there is none, because of dtype, strides, alignment or overlap, a new array stands
    in and `finish` copies it.
    """

    def __init__(self, out: Array, axes: tuple[int, ...], *inputs: Array | None) -> None:
        self.out, self.axes = out, axes
        self.view = _rows(out, axes)
        self.direct = (
            out.dtype.isnative
            and out.flags.aligned
            and np.may_share_memory(self.view, out)
            and _apart(out, *inputs)
        )
        if not self.direct:
            self.view = _rows(np.empty(out.shape, _native(out.dtype)), axes)

    def finish(self) -> None:
        if self.direct:
            return
        rows, out, axes = self.view, self.out, self.axes
        if axes and axes[-1] - axes[0] + 1 != len(axes):
            last = range(out.ndim - len(axes), out.ndim)
            rows = np.moveaxis(rows.reshape(np.moveaxis(out, axes, last).shape), last, axes)
        out[...] = rows.reshape(out.shape)


def _row_output(out: Array, *inputs: Array | None) -> Array:
    """A contiguous array for one value per row: `out` itself where that is safe."""
    if (
        out.dtype.isnative
        and out.flags.c_contiguous
        and out.flags.aligned
        and not any(i is not None and np.may_share_memory(i, out) for i in inputs)
    ):
        return out
    return np.empty(out.shape, _native(out.dtype))


def _temperatures(temperature: Any, *outputs: Array | None) -> Array | None:
    """Temperatures in the order of the rows; None for 1."""
    if isinstance(temperature, float):
        return None if temperature == 1.0 else np.array([temperature])
    values = np.ascontiguousarray(temperature, dtype=np.float64).reshape(-1)
    overlaps = any(o is not None and np.may_share_memory(values, o) for o in outputs)
    return values.copy() if overlaps else values


Slabs = Iterator[tuple[tuple[Any, ...], tuple[slice, ...]]]


def _slabs(x: Array, out: Array, axes: tuple[int, ...], *inputs: Array | None) -> Slabs:
    """Parts of `x` to compute one after the other, as an index and one into reduced arrays.

    An array that must be converted is taken in parts along an axis that is not reduced, so
    that no converted copy of all of it is ever held. Otherwise it is a single part.
    """
    free = [i for i, n in enumerate(x.shape) if i not in axes and n > 1]
    convert = not (_fits(x.dtype, out.dtype) and out.dtype.isnative)
    if not convert or not free or x.size <= SLAB or not _apart(out, x, *inputs):
        yield (...,), ()
        return
    axis = free[0]
    before = axis - len([i for i in axes if i < axis])
    step = max(1, SLAB * x.shape[axis] // x.size)
    for begin in range(0, x.shape[axis], step):
        part = slice(begin, begin + step)
        yield (slice(None),) * axis + (part,), (slice(None),) * before + (part,)


# -------------------------------------------------------------------------------- functions


@silent
def _map(
    operation: int,
    x: Array,
    axis: tuple[int, ...],
    out: Array,
    where: Array | None,
    temperature: Any,
) -> None:
    for part, rows in _slabs(x, out, axis, where):
        mask = None if where is None else where[part]
        degrees = temperature if isinstance(temperature, float) else temperature[rows]
        source = _computable(x[part], out.dtype)
        output = _Output(out[part], axis, source, mask)
        cpu.run_rows(
            operation,
            _rows(source, axis),
            out=output.view,
            mask=None if mask is None else _rows(mask, axis),
            temperature=_temperatures(degrees, out),
        )
        output.finish()


def softmax(
    x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
) -> None:
    _map(SOFTMAX, x, axis, out, where, temperature)


def log_softmax(
    x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
) -> None:
    _map(LOG_SOFTMAX, x, axis, out, where, temperature)


@silent
def logsumexp(x: Array, axis: tuple[int, ...], out: Array, where: Array | None) -> None:
    result = _row_output(out, x, where)
    for part, rows in _slabs(x, out, axis, where):
        mask = None if where is None else _rows(where[part], axis)
        # A part of a contiguous array is contiguous only along its first axis.
        target = result if not rows else np.empty(result[rows].shape, result.dtype)
        cpu.run_rows(
            LOGSUMEXP, _rows(_computable(x[part], out.dtype), axis), row_out=target, mask=mask
        )
        if rows:
            result[rows] = target
    if result is not out:
        out[...] = result


@silent
def dot(x: Array, y: Array, axis: tuple[int, ...], out: Array) -> None:
    result = _row_output(out, x, y)
    cpu.run_rows(
        DOT,
        _rows(_computable(x, out.dtype), axis),
        y=_rows(_computable(y, out.dtype), axis),
        row_out=result,
    )
    if result is not out:
        out[...] = result


@silent
def cross_entropy(
    logits: Array,
    target: Array,
    axis: int,
    weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
    temperature: Any,
    loss: Array,
    grad: Array | None,
    divisor: float,
) -> None:
    axes = (axis,)
    wanted = loss.dtype if grad is None else grad.dtype
    logits = _computable(logits, wanted)
    if grad is not None and np.may_share_memory(target, grad):
        # Exponentials are written to the gradient while the targets are still needed.
        target = target.copy()
    labels = _labels(target) if target.dtype.kind in "iu" else None
    probabilities = None
    if labels is None:
        probabilities = _rows(_computable(target, _real(logits.dtype)), axes)
    output = None if grad is None else _Output(grad, axes, logits)
    row_out = _row_output(loss)
    cpu.run_rows(
        CROSS_ENTROPY if output is None else CROSS_ENTROPY_WITH_GRAD,
        _rows(logits, axes),
        out=None if output is None else output.view,
        row_out=row_out,
        y=probabilities,
        temperature=_temperatures(temperature, grad),
        target=labels,
        ignore_index=ignore_index,
        class_weight=None if weight is None else np.ascontiguousarray(weight),
        label_smoothing=label_smoothing,
        gradient_scale=1 / divisor if divisor else 0.0,
    )
    if row_out is not loss:
        loss[...] = row_out
    if output is not None:
        output.finish()


def _labels(target: Array) -> Array:
    if target.dtype == np.uint64:
        # So that a huge label stays out of range instead of wrapping.
        target = np.minimum(target, np.uint64(np.iinfo(np.int64).max))
    return np.ascontiguousarray(target, dtype=np.int64)


def check_labels(target: Array, classes: int, ignore_index: int) -> None:
    position = cpu.first_bad_label(_labels(target), classes, ignore_index)
    if position < 0:
        return
    index = tuple(int(i) for i in np.unravel_index(position, target.shape))
    place = f"target[{', '.join(map(str, index))}]" if index else "target"
    raise IndexError(
        f"{place} is {target[index]}: class labels must be in [0, {classes}), "
        f"or ignore_index={ignore_index}"
    )


@silent  # bfloat16 warns of NaN
def check_within(name: str, array: Array, lowest: float, highest: float) -> None:
    if array.size and not (array.min() >= lowest and array.max() <= highest):
        raise ValueError(f"{name} must be in [{lowest:g}, {highest:g}] and not NaN")


def sum_of_weights(target: Array, weight: Array | None, ignore_index: int) -> float:
    labels = _labels(target)
    used = labels != ignore_index
    if weight is None:
        return float(np.count_nonzero(used))
    weights = np.zeros(labels.shape)
    weights[used] = weight[labels[used]]
    return sum(weights)


def sum(x: Array) -> float:
    return cpu.total(np.ascontiguousarray(_in_reals(x)))


@silent
def quotient(total: float, divisor: float, dtype: np.dtype[Any]) -> Any:
    return dtype.type(total / divisor if divisor else np.nan)


def top(rows: Array) -> tuple[Array, Array]:
    """The largest entry of each row of a contiguous matrix, or NaN, and its first place."""
    largest, places = np.empty(len(rows)), np.empty(len(rows), np.int64)
    cpu.top(_in_reals(rows), largest, places)
    return largest, places


def sigmoid(x: Array, out: Array) -> None:
    _elementwise(cpu.sigmoid, x, out)


def log_sigmoid(x: Array, out: Array) -> None:
    _elementwise(cpu.log_sigmoid, x, out)


def _contiguous(array: Array, wanted: np.dtype[Any]) -> Array:
    return np.ascontiguousarray(_computable(array, wanted)).reshape(array.shape)


@silent
def _elementwise(function: Any, x: Array, out: Array) -> None:
    for part, _ in _slabs(x, out, ()):
        source, target = _contiguous(x[part], out.dtype), out[part]
        result = _flat_output(target, source)
        function(source, result)
        if result is not target:
            target[...] = result


def _flat_output(out: Array, *inputs: Array | None) -> Array:
    """A contiguous array of the shape of `out`: `out` itself where that is safe."""
    if out.dtype.isnative and out.flags.c_contiguous and out.flags.aligned and _apart(out, *inputs):
        return out
    return np.empty(out.shape, _native(out.dtype))


@silent
def binary_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    pos_weight: Array | None,
    loss: Array | None,
    grad: Array | None,
    divisor: float,
) -> float:
    wanted = next((o.dtype for o in (loss, grad) if o is not None), None)
    if wanted is None:
        wanted = np.result_type(logits.dtype, np.float32)
    x = _contiguous(logits, wanted)
    real = _real(x.dtype)
    y = _contiguous(target, real)
    w = None if weight is None else _contiguous(weight, real)
    v = None if pos_weight is None else _contiguous(pos_weight, real)
    grads = None if grad is None else _flat_output(grad, x, y, w, v)
    losses = None if loss is None else _flat_output(loss)
    total = cpu.binary_cross_entropy(x, y, w, v, losses, grads, 1 / divisor)
    if grad is not None and grads is not None and grads is not grad:
        grad[...] = grads
    if loss is not None and losses is not None and losses is not loss:
        loss[...] = losses
    return total


fast_softmax_vjp = partial(fast_vjp, SOFTMAX_VJP)
fast_log_softmax_vjp = partial(fast_vjp, LOG_SOFTMAX_VJP)


def softmax_vjp(
    grad_output: Array,
    probabilities: Array,
    axis: tuple[int, ...],
    temperature: Any,
    out: Array,
) -> None:
    _vjp(SOFTMAX_VJP, grad_output, probabilities, axis, temperature, out)


def log_softmax_vjp(
    grad_output: Array,
    log_probabilities: Array,
    axis: tuple[int, ...],
    temperature: Any,
    out: Array,
) -> None:
    _vjp(LOG_SOFTMAX_VJP, grad_output, log_probabilities, axis, temperature, out)


@silent
def _vjp(
    operation: int,
    grad_output: Array,
    values: Array,
    axis: tuple[int, ...],
    temperature: Any,
    out: Array,
) -> None:
    for part, rows in _slabs(values, out, axis, grad_output):
        degrees = temperature if isinstance(temperature, float) else temperature[rows]
        source = _computable(values[part], out.dtype)
        factor = _computable(grad_output[part], _real(source.dtype))
        output = _Output(out[part], axis, source, factor)
        cpu.run_rows(
            operation,
            _rows(source, axis),
            y=_rows(factor, axis),
            out=output.view,
            temperature=_temperatures(degrees, out),
        )
        output.finish()
