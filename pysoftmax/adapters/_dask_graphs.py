"""The graphs of the public functions on Dask arrays, and the tasks they consist of.

    reduced axes in one chunk     a task for each block: the public function on the block

    reduced axes in many chunks   a task for each block: its own result and its part of the rows
                                  (_row_parts), a tree that joins the parts, and a task for each
                                  block: its own result times its share of the rows

A mean or sum over rows adds the losses, one per row, in the order of the numeric contract: they
are cut at multiples of PIECE, a power of two, so that the sums of the pieces are whole branches of
the contract's tree.
"""

import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, reduce
from typing import Any

import dask.array
import dask.core
import numpy as np

import pysoftmax
from pysoftmax import _arguments as check
from pysoftmax import _losses as losses
from pysoftmax import _softmax as softmaxes
from pysoftmax._dispatch import backend_of
from pysoftmax.adapters import _row_parts as row_parts
from pysoftmax.backends import Array
from pysoftmax.backends import numpy as numpy_backend

# Untyped, in part.
da: Any = dask.array
meta_from_array: Any = da.utils.meta_from_array
flatten: Any = dask.core.flatten

# Losses added up by one task.
PIECE = 1 << 18

# Parts joined by one task: few levels, because each rounds once more.
SPLIT_EVERY = 16

UNKNOWN = "call compute_chunk_sizes() first"

Index = tuple[int, ...]
Operand = tuple[Any, Index | None]


# ----------------------------------------------------------------------- building blocks of graphs


def _blockwise(
    task: Callable[..., Any],
    name: str,
    index: Index,
    like: Any,
    dtype: Any,
    *operands: Operand,
    **layout: Any,
) -> Any:
    """An array of a task for each block. Axes that are not in `index` have one chunk."""
    pairs = [item for operand in operands for item in operand]
    meta = meta_from_array(like._meta, ndim=len(index), dtype=dtype)
    return da.blockwise(
        partial(_run, task),
        index,
        *pairs,
        token=f"pysoftmax-{name}",
        dtype=dtype,
        meta=meta,
        align_arrays=False,
        **layout,
    )


def _run(task: Callable[..., Any], *arrays: Any) -> Any:
    """A task: the blocks out of the lists Dask puts them in, and one thread where Dask has many."""
    blocks = [next(flatten([a])) if isinstance(a, list) else a for a in arrays]
    alone = threading.current_thread() is threading.main_thread()
    with nullcontext() if alone else pysoftmax.num_threads(1):
        return task(*blocks)


def _item(both: tuple[Any, ...], *, place: int) -> Any:
    return both[place]


def _aligned(array: Any, like: Any, index: Index, name: str) -> Operand:
    """`array`, which broadcasts to the axes `index` of `like`, in its chunks, and its index."""
    if array is None or np.isscalar(array):
        return array, None
    index = index[len(index) - array.ndim :]
    chunks = {}
    for axis, of in enumerate(index):
        ours, theirs = array.chunks[axis], like.chunks[of]
        broadcast = sum(ours) == 1 != sum(theirs)
        if ours == theirs or (broadcast and len(ours) == 1):
            continue
        if np.isnan((*ours, *theirs)).any():
            if len(ours) != len(theirs):
                raise ValueError(
                    f"{name} has {len(ours)} chunks along axis {axis} and the array {len(theirs)}, "
                    f"of unknown sizes: {UNKNOWN}"
                )
            continue
        chunks[axis] = (1,) if broadcast else theirs
    return _rechunked(array, chunks), index


def _rechunked(array: Any, chunks: dict[int, tuple[int, ...]]) -> Any:
    """`array` with these chunks along some axes; Dask leaves arrays of no length as they are."""
    if any(array.shape) or not array.ndim:
        return array.rechunk(chunks) if chunks else array
    wanted = tuple(chunks.get(axis, ours) for axis, ours in enumerate(array.chunks))
    return _lazy(np.empty(array.shape, array.dtype), array, wanted)


def _stand_in(array: Any) -> Array:
    """A NumPy array of the shape (1 for what is unknown) and dtype of `array`, of no size."""
    shape = tuple(1 if math.isnan(n) else n for n in array.shape)
    return np.broadcast_to(np.zeros((), array.dtype), shape)


def _check_known(name: str, array: Any, of: str, like: Any, index: Index) -> None:
    """ValueError if only one of two arrays knows how long its axes are."""
    for axis, of_like in enumerate(index[: array.ndim]):
        if math.isnan(array.shape[axis]) != math.isnan(like.shape[of_like]):
            raise ValueError(
                f"{name} and {of} must both know their sizes, or neither, got the shapes "
                f"{array.shape} and {like.shape}: {UNKNOWN}"
            )


def _has_unknown(*arrays: Any) -> bool:
    return any(math.isnan(n) for a in arrays if a is not None for n in a.shape)


def _lazy(values: Any, like: Any, chunks: Any = -1) -> Any:
    """A dask.array of a list or a number, with blocks of the library that those of `like` are of.

    None, and what is lazy already, as it is.
    """
    if values is None or isinstance(values, da.Array):
        return values
    lazy = da.from_array(np.asarray(values), chunks=chunks)
    if isinstance(like._meta, np.ndarray):
        return lazy
    meta = meta_from_array(like._meta, ndim=lazy.ndim, dtype=lazy.dtype)
    return lazy.map_blocks(_placed, dtype=lazy.dtype, meta=meta, like=like._meta)


def _placed(block: Array, like: Array) -> Array:
    return np.asarray(block, like=like)


def _main(*arrays: Any) -> Any:
    """The first lazy one of these: the blocks of all others are of its library."""
    return next(array for array in arrays if isinstance(array, da.Array))


def _has_masks(array: Any) -> bool:
    """Whether the blocks are of `numpy.ma`: what is not given to a public function looks here."""
    return array is not None and isinstance(array._meta, np.ma.MaskedArray)


def _apart(x: Any, where: Any) -> tuple[Any, Any, Any]:
    """An array with masked blocks as its data, where these take part, and its mask."""
    mask, given = da.ma.getmaskarray(x), _unmasked("where", _lazy(where, x), check.WITHOUT_WHERE)
    if given is not None:
        check.check_where(_stand_in(given), _stand_in(given).shape, numpy_backend)
    return da.ma.getdata(x), ~mask if given is None else given & ~mask, mask


def _unmasked(name: str, array: Any, instead: str) -> Any:
    """`array`, with blocks of `numpy.ma` as those of NumPy: ValueError if an entry is masked."""
    if not _has_masks(array):
        return array
    task = partial(_unmasked_block, of=name, instead=instead)
    return array.map_blocks(task, dtype=array.dtype, meta=np.ma.getdata(array._meta))


def _unmasked_block(block: Array, *, of: str, instead: str) -> Array:
    return check.unmasked(numpy_backend, of, block, instead)


def _rows(x: Any, axes: Index) -> Index:
    return tuple(i for i in range(x.ndim) if i not in axes)


def _is_cut(x: Any, axes: Index) -> bool:
    return any(x.numblocks[axis] > 1 for axis in axes)


def _temperature(temperature: Any, x: Any, axes: Index, gradient: bool = False) -> Operand:
    """A checked temperature; that of a lazy one is checked when it is computed."""
    rows = _rows(x, axes)
    shape = check.reduced_shape(_stand_in(x).shape, axes)
    if isinstance(temperature, da.Array):
        check.check_temperature(numpy_backend, np.ones((), temperature.dtype), shape, gradient)
        check.check_temperature(
            numpy_backend, np.broadcast_to(1.0, _stand_in(temperature).shape), shape
        )
    else:
        if np.ndim(temperature) == 0:
            return check.check_temperature(numpy_backend, temperature, shape, gradient), None
        if not _has_unknown(x):
            check.check_temperature(numpy_backend, temperature, shape, gradient)
        temperature = _lazy(temperature, x)
    if temperature.ndim == 0:
        return temperature, ()
    return _aligned(temperature, x, rows, "temperature")


def _mask(where: Any, x: Any) -> Operand:
    mask = _unmasked("where", _lazy(where, x), check.WITHOUT_WHERE)
    if mask is not None:
        check.check_where(_stand_in(mask), _stand_in(x).shape, numpy_backend)
    return _aligned(mask, x, tuple(range(x.ndim)), "where")


def _parts(
    task: Callable[..., Array],
    name: str,
    numbers: int,
    x: Any,
    axes: Index,
    operands: list[Operand],
) -> Any:
    """The parts of rows that tasks return, an axis of their numbers first."""
    return _blockwise(
        task,
        f"{name}-part",
        (x.ndim, *range(x.ndim)),
        x,
        np.float64,
        *operands,
        new_axes={x.ndim: numbers},
        adjust_chunks=_one_each(x, axes),
    )


def _joined(x: Any, axes: Index, parts: Any) -> Any:
    """The tree: parts of rows as one, kept where they are cut."""
    return da.reduction(
        parts,
        chunk=_as_it_is,
        combine=_join,
        aggregate=_join,
        axis=tuple(axis + 1 for axis in axes),
        keepdims=True,
        dtype=np.float64,
        split_every=SPLIT_EVERY ** len(axes),
        name="pysoftmax-join",
        concatenate=False,
        meta=meta_from_array(x._meta, ndim=x.ndim + 1, dtype=np.float64),
    )


def _as_it_is(block: Array, axis: Any, keepdims: bool) -> Array:
    return block


def _join(parts: Any, axis: Any, keepdims: bool) -> Array:
    return row_parts.join(list(flatten([parts])))


def _one_each(x: Any, axes: Index) -> dict[int, tuple[int, ...]]:
    """Chunks of length 1 along `axes`, where each block gives one thing."""
    return {axis: (1,) * x.numblocks[axis] for axis in axes}


def _axis_argument(x: Any, axes: Index) -> Any:
    """Normalised axes as an argument of a public function, in its fastest form."""
    return axes[0] if len(axes) == 1 else axes if x.ndim else None


# ------------------------------------------------------------------------------------- the maps


def softmax(x: Any, axis: Any, temperature: Any, where: Any, dtype: Any) -> Any:
    return _map("softmax", x, axis, temperature, where, dtype)


def log_softmax(x: Any, axis: Any, temperature: Any, where: Any, dtype: Any) -> Any:
    return _map("log_softmax", x, axis, temperature, where, dtype)


def sigmoid(x: Any, dtype: Any) -> Any:
    return _elementwise("sigmoid", x, dtype)


def log_sigmoid(x: Any, dtype: Any) -> Any:
    return _elementwise("log_sigmoid", x, dtype)


def _elementwise(name: str, x: Any, dtype: Any) -> Any:
    every = tuple(range(x.ndim))
    wanted = check.choose_dtype(x, dtype)
    return _blockwise(partial(_call, name=name, dtype=dtype), name, every, x, wanted, (x, every))


def _call(x: Array, *, name: str, **options: Any) -> Any:
    return getattr(pysoftmax, name)(x, **options)


def _map(name: str, x: Any, axis: Any, temperature: Any, where: Any, dtype: Any) -> Any:
    """softmax or log_softmax."""
    x = _lazy(x, _main(x, where, temperature))
    axes = check.normalize_axes(axis, x.ndim)
    wanted = check.choose_dtype(x, dtype)
    every = tuple(range(x.ndim))
    operands = [(x, every), _mask(where, x), _temperature(temperature, x, axes)]
    if not _is_cut(x, axes):
        task = partial(_masked_call, name=name, axis=_axis_argument(x, axes), dtype=dtype)
        return _blockwise(task, name, every, x, wanted, *operands)
    if _has_masks(x):
        data, where, mask = _apart(x, where)
        return da.ma.masked_array(_map(name, data, axis, temperature, where, dtype), mask)
    task = partial(_part, axes=axes, dtype=wanted)
    whole = _joined(x, axes, _parts(task, name, row_parts.LOW + 1, x, axes, operands))
    task = partial(_finish_map, name=name, dtype=wanted)
    return _blockwise(task, name, every, x, wanted, *operands[:2], (whole, (x.ndim, *every)))


def _masked_call(x: Array, where: Any, temperature: Any, *, name: str, **options: Any) -> Any:
    return getattr(pysoftmax, name)(x, where=where, temperature=temperature, **options)


def _computable(x: Array, where: Any, dtype: Any) -> tuple[Array, Any]:
    """A block converted to the type its rows are computed in, and its mask in full."""
    x = x.astype(dtype, copy=False).astype(check.summing_dtype(dtype), copy=False)
    return x, None if where is None else np.broadcast_to(where, x.shape)


def _part(x: Array, where: Any, temperature: Any, *, axes: Index, dtype: Any) -> Array:
    """A block's part of the rows."""
    x, where = _computable(x, where, dtype)
    return np.stack(row_parts.part(x, axes, where, temperature))


def _finish_map(x: Array, where: Any, whole: Array, *, name: str, dtype: Any) -> Array:
    """A block's softmax or log-softmax, from what the rows were joined to."""
    x, where = _computable(x, where, dtype)
    finish = row_parts.probabilities if name == "softmax" else row_parts.log_probabilities
    return finish(x, where, whole, dtype)


# ----------------------------------------------------------------------------------- logsumexp


def logsumexp(
    x: Any, axis: Any, b: Any, where: Any, keepdims: bool, return_sign: bool, dtype: Any
) -> Any:
    like = _main(x, b, where)
    x, factor = _lazy(x, like), _lazy(b, like)
    if _has_masks(x):
        data, where, mask = _apart(x, where)
        result = logsumexp(data, axis, b, where, keepdims, return_sign, dtype)
        if factor is not None:
            mask = da.broadcast_to(mask, np.broadcast_shapes(mask.shape, factor.shape))
        gone = mask.all(axis=check.normalize_axes(axis, mask.ndim), keepdims=keepdims)
        if return_sign:
            return tuple(da.ma.masked_array(part, gone) for part in result)
        return da.ma.masked_array(result, gone)
    wanted = check.choose_dtype(x, dtype)
    if factor is not None:
        factor = _unmasked("b", factor, softmaxes.WITHOUT_FACTOR)
        promoted = check.result_dtype(factor.dtype)
        if dtype is None and not isinstance(b, int | float):
            wanted = np.promote_types(wanted, promoted)
        shape = np.broadcast_shapes(_stand_in(x).shape, _stand_in(factor).shape)
        if shape != _stand_in(x).shape:
            x = da.broadcast_to(x, shape)
    axes = check.normalize_axes(axis, x.ndim)
    every, rows = tuple(range(x.ndim)), _rows(x, axes)
    factor_operand = _aligned(factor, x, every, "b")
    operands = [(x, every), factor_operand, _mask(where, x)]
    if _is_cut(x, axes):
        numbers = row_parts.LOW + 1 if factor is None else row_parts.MEAN + 1
        task = partial(_part_of_sum, axes=axes, dtype=wanted)
        parts = _parts(task, "logsumexp", numbers, x, axes, operands)
        operands = [(_joined(x, axes, parts), (x.ndim, *every))]
        task = partial(_log_of_whole, axes=axes, dtype=wanted, return_sign=return_sign)
    else:
        task = partial(
            _logsumexp_call,
            axis=_axis_argument(x, axes),
            return_sign=return_sign,
            dtype=dtype if factor is None else wanted,
        )
    both = _blockwise(task, "logsumexp", rows, x, wanted, *operands)
    results = [both]
    if return_sign:
        results = [
            _blockwise(partial(_item, place=place), "logsumexp", rows, x, wanted, (both, rows))
            for place in (0, 1)
        ]
    if keepdims:
        at = tuple(slice(None) if i in rows else None for i in every)
        results = [result[at] for result in results]
    return tuple(results) if return_sign else results[0]


def _logsumexp_call(x: Array, b: Any, where: Any, **options: Any) -> Any:
    return pysoftmax.logsumexp(x, b=b, where=where, **options)


def _part_of_sum(x: Array, b: Any, where: Any, *, axes: Index, dtype: Any) -> Array:
    """A block's part of the rows, with the mean of the factors if there are any."""
    backend = backend_of(x=x)
    x, where = _computable(x, where, dtype)
    if b is not None:
        b = np.broadcast_to(b, x.shape)
        where = b != 0 if where is None else (b != 0) & where
    part = row_parts.part(x, axes, where, 1.0)
    if b is not None:
        probabilities = pysoftmax.softmax(x, axes, where=where)
        maximum = part[row_parts.MAXIMUM]
        # Where a term is +inf only such terms count, and where all are -inf none does.
        probabilities = np.where(maximum == np.inf, (x == np.inf) & where, probabilities)
        probabilities = np.where(maximum == -np.inf, 0, probabilities).astype(x.dtype)
        factors = np.where(where, b, 0).astype(x.dtype)
        part.append(_dot(backend, factors, probabilities, axes))
    return np.stack(part)


def _dot(backend: Any, a: Array, b: Array, axes: Index) -> Array:
    """Sums of products in float64, in the contract's order, reduced axes kept."""
    shape = check.reduced_shape(a.shape, axes)
    total = backend.empty(shape, np.dtype(np.float64), a)
    if a.size:
        backend.dot(a, b, axes, total)
    else:
        total[...] = 0
    return np.expand_dims(total, axes)


def _ones(like: Array) -> Array:
    return np.broadcast_to(np.ones_like(like, shape=()), like.shape)


def _log_of_whole(whole: Array, *, axes: Index, dtype: Any, return_sign: bool) -> Any:
    """logsumexp of whole rows, and the sign of their sum."""
    maximum = whole[row_parts.MAXIMUM]
    with np.errstate(all="ignore"):
        value = maximum + row_parts.log_of_sum(whole)
        sign = (value > -np.inf).astype(value.dtype)
        if len(whole) > row_parts.MEAN:
            mean = np.where(maximum == -np.inf, 0, whole[row_parts.MEAN])
            sign = np.sign(mean)
            value = np.where(maximum == -np.inf, -np.inf, value + np.log(abs(mean)))
            if not return_sign:
                value = np.where(sign < 0, np.nan, value)
        sign = np.where(np.isnan(value), np.nan, sign)
        value, sign = (a.squeeze(axes).astype(dtype) for a in (value, sign))
    return (value, sign) if return_sign else value


# --------------------------------------------------------------------- vector-Jacobian products


def softmax_vjp(grad_output: Any, probabilities: Any, axis: Any, temperature: Any) -> Any:
    return _vjp("softmax_vjp", grad_output, probabilities, axis, temperature)


def log_softmax_vjp(grad_output: Any, log_probabilities: Any, axis: Any, temperature: Any) -> Any:
    return _vjp("log_softmax_vjp", grad_output, log_probabilities, axis, temperature)


def _vjp(name: str, grad_output: Any, values: Any, axis: Any, temperature: Any) -> Any:
    like = _main(values, grad_output, temperature)
    grad, values = _lazy(grad_output, like), _lazy(values, like)
    if _stand_in(grad).shape != _stand_in(values).shape:
        raise ValueError(
            "grad_output must have the shape of the forward result "
            f"{values.shape}, got {grad.shape}"
        )
    check.result_dtype(grad.dtype)
    axes = check.normalize_axes(axis, values.ndim)
    wanted = check.choose_dtype(values, None)
    every = tuple(range(values.ndim))
    operands = [
        _aligned(grad, values, every, "grad_output"),
        (values, every),
        _temperature(temperature, values, axes, gradient=True),
    ]
    if _is_cut(values, axes) and (_has_masks(grad) or _has_masks(values)):
        # What is masked had probability 0.
        nothing = 0 if name == "softmax_vjp" else -np.inf
        plain = da.ma.filled(grad, 0), da.ma.filled(values, nothing)
        result = _vjp(name, *plain, axis, temperature)
        return (
            da.ma.masked_array(result, da.ma.getmaskarray(values)) if _has_masks(values) else result
        )
    if not _is_cut(values, axes):
        task = partial(_vjp_call, name=name, axis=_axis_argument(values, axes))
        return _blockwise(task, name, every, values, wanted, *operands)
    sums = _blockwise(
        partial(_sum_for_vjp, name=name, axes=axes),
        f"{name}-sum",
        every,
        values,
        np.float64,
        *operands[:2],
        adjust_chunks=_one_each(values, axes),
    )
    total = da.reduction(
        sums,
        chunk=_as_it_is,
        combine=_add_up,
        aggregate=_add_up,
        axis=axes,
        keepdims=True,
        dtype=np.float64,
        split_every=SPLIT_EVERY ** len(axes),
        name="pysoftmax-sum",
        concatenate=False,
        meta=sums._meta,
    )
    task = partial(_finish_vjp, name=name, axes=axes, dtype=wanted)
    return _blockwise(task, name, every, values, wanted, *operands, (total, every))


def _vjp_call(grad: Array, values: Array, temperature: Any, *, name: str, axis: Any) -> Any:
    return getattr(pysoftmax, name)(grad, values, axis, temperature=temperature)


def _sum_for_vjp(grad: Array, values: Array, *, name: str, axes: Index) -> Array:
    """A block's part of sum(g p), or of sum(g)."""
    grad, values = np.broadcast_arrays(grad, values)
    values = values if name == "softmax_vjp" else _ones(values)
    return _dot(backend_of(x=grad), grad, values, axes)


def _add_up(sums: Any, axis: Any, keepdims: bool) -> Array:
    total: Array = reduce(np.add, flatten([sums]))
    return total


def _finish_vjp(
    grad: Array,
    values: Array,
    temperature: Any,
    total: Array,
    *,
    name: str,
    axes: Index,
    dtype: Any,
) -> Array:
    """The gradient of a block, from the sums of its rows."""
    rows = check.reduced_shape(values.shape, axes)
    degrees = check.check_temperature(backend_of(values=values), temperature, rows, gradient=True)
    with np.errstate(all="ignore"):
        if name == "softmax_vjp":
            result = values * (grad - total)
        else:
            result = grad - np.exp(values.astype(np.float64, copy=False)) * total
        return (result / row_parts.expanded(degrees, axes)).astype(dtype)


# ------------------------------------------------------------------------------------ the losses


def cross_entropy(**arguments: Any) -> Any:
    return _cross_entropy(**arguments, with_grad=False)[0]


def cross_entropy_with_grad(**arguments: Any) -> tuple[Any, Any]:
    return _cross_entropy(**arguments, with_grad=True)


def _cross_entropy(
    logits: Any,
    target: Any,
    axis: Any,
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    temperature: Any,
    with_grad: bool,
) -> tuple[Any, Any]:
    like = _main(logits, target, weight, temperature)
    x, truth, weight = (_lazy(array, like) for array in (logits, target, weight))
    x = _unmasked("logits", x, losses.WITHOUT_CLASS)
    target = losses.as_labels(truth, target, x.ndim)
    target = _unmasked("target", target, losses.WITHOUT_CLASS)
    weight = _unmasked("weight", weight, losses.WITHOUT_WEIGHT)
    wanted = check.choose_dtype(x, None)
    axis = check.normalize_axis(axis, x.ndim)
    if math.isnan(x.shape[axis]):
        raise ValueError(f"the number of classes, axis {axis} of logits, is unknown: {UNKNOWN}")
    axes, every = (axis,), tuple(range(x.ndim))
    rows = _rows(x, axes)
    degrees = _temperature(temperature, x, axes, gradient=with_grad)
    smoothing = losses.check_smoothing(label_smoothing)
    if weight is not None:
        losses.check_weight(numpy_backend, _stand_in(weight), x.shape[axis])
    _check_known("target", target, "logits", x, rows if target.dtype.kind in "iu" else every)
    labelled = losses.holds_labels(_stand_in(target), _stand_in(x).shape, axis)
    if labelled:
        target, index = _aligned(_checked_labels(target, x, axis, ignore_index), x, rows, "target")
    else:
        target, index = _aligned(target, x, every, "target")

    count: Any = 1.0
    if reduction == "mean":
        count = _sum_of_weights(target, weight, ignore_index) if labelled else _size(x, rows)
    by_count = (count, () if isinstance(count, da.Array) else None)
    loss_dtype = wanted if reduction == "none" else check.summing_dtype(wanted)
    build = _cut_losses if _is_cut(x, axes) else _whole_losses
    loss, grad = build(
        x,
        (target, index),
        weight,
        degrees,
        by_count,
        with_grad,
        loss_dtype,
        axis=axis,
        ignore_index=ignore_index,
        smoothing=smoothing,
    )
    if reduction != "none":
        loss = _reduced(loss, count, wanted)
    return loss, grad


def _checked_labels(target: Any, x: Any, axis: int, ignore_index: int) -> Any:
    """Labels that raise IndexError when they are computed, if one is out of range."""
    return da.map_blocks(
        _check_labels,
        target,
        token="pysoftmax-check-labels",
        dtype=target.dtype,
        meta=target._meta,
        classes=x.shape[axis],
        ignore_index=ignore_index,
    )


def _check_labels(target: Array, classes: int, ignore_index: int, block_info: Any) -> Array:
    try:
        backend_of(target=target).check_labels(target, classes, ignore_index)
    except IndexError as error:
        begin = tuple(begin for begin, _ in block_info[0]["array-location"])
        number = block_info[0]["chunk-location"]
        raise IndexError(f"{error}; this is in block {number}, which begins at {begin}") from None
    return target


def _sum_of_weights(target: Any, weight: Any, ignore_index: int) -> Any:
    """What a mean divides by: the weights of all labels used, added as the losses are."""
    index = tuple(range(target.ndim))
    weights = _blockwise(
        partial(_weights_of, ignore_index=ignore_index),
        "weights",
        index,
        target,
        np.float64,
        (target, index),
        (weight, None) if weight is None else (weight.rechunk(-1), (target.ndim,)),
    )
    return _reduced(weights, 1.0, np.float64)


def _weights_of(labels: Array, weight: Any, *, ignore_index: int) -> Array:
    """The weight of each label, 0 where it is ignored."""
    used = labels != ignore_index
    weights = np.where(used, 1.0, 0.0)
    if weight is not None:
        weights[used] = weight[labels[used]]
    return weights


def _size(x: Any, rows: Index) -> Any:
    """The number of rows (of elements, if all axes are), a float, or lazily one."""
    if not _has_unknown(x):
        return float(np.prod([x.shape[i] for i in rows]))
    every = tuple(range(x.ndim))
    counts = _blockwise(
        partial(_count, rows=rows),
        "count",
        every,
        x,
        np.float64,
        (x, every),
        adjust_chunks=_one_each(x, every),
    )
    first = tuple(slice(None) if i in rows else slice(0, 1) for i in every)
    return counts[first].sum()


def _count(block: Array, *, rows: Index) -> Array:
    return _one(float(np.prod([block.shape[i] for i in rows])), block)


def _one(number: Any, like: Array) -> Array:
    """An array of one float64 with the dimensions of `like`."""
    return np.full_like(like, number, shape=(1,) * like.ndim, dtype=np.float64)


def _flat(array: Any) -> Any:
    """All elements in one axis, in C order."""
    if array.ndim < 2:
        return array if array.ndim else array[None]
    if _has_unknown(array):
        raise ValueError(f"a mean or sum over several axes of unknown sizes: {UNKNOWN}")
    array = array.rechunk(dict.fromkeys(range(1, array.ndim), -1))
    every, each = tuple(range(array.ndim)), math.prod(array.shape[1:])
    # Dask's own reshape does not take all chunks that have nothing in them.
    sizes = {0: tuple(rows * each for rows in array.chunks[0])}
    return _blockwise(
        np.ravel, "flat", (0,), array, array.dtype, (array, every), adjust_chunks=sizes
    )


def _reduced(loss: Any, count: Any, dtype: Any) -> Any:
    """The sum of losses over `count`; in the contract's order if their sizes are known."""
    if not _has_unknown(loss):
        loss = _flat(loss)
        loss = loss.rechunk((PIECE,)) if loss.size else loss
    index = tuple(range(loss.ndim))
    totals = _blockwise(
        _total,
        "total",
        index,
        loss,
        np.float64,
        (loss, index),
        adjust_chunks=_one_each(loss, index),
    )
    return da.blockwise(
        partial(_divided, dtype=dtype),
        (),
        totals,
        index,
        count,
        () if isinstance(count, da.Array) else None,
        token="pysoftmax-reduced",
        dtype=dtype,
        meta=meta_from_array(loss._meta, 0, dtype=dtype),
        align_arrays=False,
    )


def _total(loss: Array) -> Array:
    return _one(backend_of(loss=loss).sum(loss) if loss.size else 0.0, loss)


def _sum_of_last(loss: Array) -> Array:
    return _dot(backend_of(loss=loss), loss, _ones(loss), (loss.ndim - 1,))


def _divided(totals: Any, count: Any, *, dtype: Any) -> Any:
    sums = [total.reshape(()) for total in flatten([totals])]
    backend = backend_of(totals=sums[0])
    with np.errstate(all="ignore"):
        result = backend.quotient(_tree_sum(sums), float(count), np.dtype(dtype))
    return np.asarray(result, like=sums[0])


def _tree_sum(values: list[Any]) -> Any:
    """The contract's tree T over values."""
    if len(values) == 1:
        return values[0]
    half = 1 << ((len(values) - 1).bit_length() - 1)
    return _tree_sum(values[:half]) + _tree_sum(values[half:])


def _whole_losses(
    x: Any,
    target: Operand,
    weight: Any,
    degrees: Operand,
    count: Operand,
    with_grad: bool,
    dtype: Any,
    *,
    axis: int,
    **options: Any,
) -> tuple[Any, Any]:
    """Losses, one per row, and gradients, where each block has whole rows."""
    every, rows = tuple(range(x.ndim)), _rows(x, (axis,))
    weights = (weight, None) if weight is None else (weight.rechunk(-1), (axis,))
    operands = [(x, every), target, weights, degrees]
    task, name = partial(_losses_of, axis=axis, dtype=dtype, **options), "cross-entropy"
    if not with_grad:
        return _blockwise(task, name, rows, x, dtype, *operands, (None, None)), None
    both = _blockwise(task, name, every, x, dtype, *operands, count)
    return _loss_and_gradient(name, rows, x, dtype, both)


def _loss_and_gradient(name: str, rows: Index, x: Any, dtype: Any, both: Any) -> tuple[Any, Any]:
    """What tasks return that give both."""
    every = tuple(range(x.ndim))
    loss = _blockwise(partial(_item, place=0), name, rows, x, dtype, (both, every))
    wanted = check.choose_dtype(x, None)
    grad = _blockwise(partial(_item, place=1), f"{name}-grad", every, x, wanted, (both, every))
    return loss, grad


def _check_block(
    backend: Any, target: Array, shape: tuple[int, ...], axis: int, ignore_index: int | None
) -> None:
    """That blocks are what their arrays said, because nothing below checks it."""
    if not losses.holds_labels(target, shape, axis):
        losses.check_probabilities(backend, target)
    elif ignore_index is not None:
        backend.check_labels(target, shape[axis], ignore_index)


def _losses_of(
    logits: Array,
    target: Array,
    weight: Any,
    temperature: Any,
    count: Any,
    *,
    axis: int,
    ignore_index: int,
    smoothing: float,
    dtype: Any,
) -> Any:
    """Losses of the rows of a block, and their gradients over `count` unless that is None."""
    backend = backend_of(logits=logits)
    _check_block(backend, target, logits.shape, axis, ignore_index)
    shape = check.reduced_shape(logits.shape, (axis,))
    degrees = check.check_temperature(backend, temperature, shape, gradient=count is not None)
    loss = backend.empty(shape, np.dtype(dtype), logits)
    grad, divisor = None, 1.0
    if count is not None:
        grad = backend.empty(logits.shape, check.choose_dtype(logits, None), logits)
        divisor = float(count)
    if logits.size:
        weight = losses.check_weight(backend, weight, logits.shape[axis])
        backend.cross_entropy(
            logits, target, axis, weight, ignore_index, smoothing, degrees, loss, grad, divisor
        )
    else:
        loss[...] = 0
    return loss if grad is None else (loss, grad)


def _cut_losses(
    x: Any,
    target: Operand,
    weight: Any,
    degrees: Operand,
    count: Operand,
    with_grad: bool,
    dtype: Any,
    *,
    axis: int,
    **options: Any,
) -> tuple[Any, Any]:
    """Losses, one per row, and gradients, where the classes are in several chunks."""
    every, rows, axes = tuple(range(x.ndim)), _rows(x, (axis,)), (axis,)
    wanted = check.choose_dtype(x, None)
    sizes = x.chunks[axis]
    offsets = da.from_array(np.cumsum((0, *sizes[:-1])), chunks=1)
    weights = (weight, None) if weight is None else (_rechunked(weight, {0: sizes}), axes)
    operands = [target, weights, (offsets, axes)]
    truth, index = target
    labels = (truth, index) if truth.dtype.kind in "iu" else (None, None)
    name, options = "cross-entropy", {**options, "axis": axis, "classes": x.shape[axis]}
    task = partial(_part_of_loss, with_grad=with_grad, **options)
    parts = _parts(task, name, row_parts.Q + 1, x, axes, [(x, every), degrees, *operands])
    whole = (_joined(x, axes, parts), (x.ndim, *every))
    task = partial(
        _loss_of_whole,
        axis=axis,
        ignore_index=options["ignore_index"],
        classes=x.shape[axis],
        dtype=dtype,
    )
    loss = _blockwise(task, name, rows, x, dtype, whole, labels)
    if not with_grad:
        return loss, None
    task = partial(_gradient_of_part, dtype=wanted, **options)
    grad = _blockwise(task, f"{name}-grad", every, x, wanted, (x, every), whole, *operands, count)
    return loss, grad


def _along(classes: Array, axis: int, ndim: int) -> Array:
    """What there is one of per class, along the axis of the classes."""
    return classes.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _weights_of_block(
    target: Array,
    weight: Any,
    offset: int,
    shape: tuple[int, ...],
    *,
    axis: int,
    ignore_index: int,
    smoothing: float,
    classes: int,
) -> Array:
    """q of the classes of a block: weight ((1 - smoothing) target + smoothing / classes)."""
    if target.dtype.kind not in "iu":
        q = target.astype(np.float64) * (1 - smoothing) + smoothing / max(classes, 1)
    else:
        labels = np.expand_dims(target, axis)
        numbers = np.arange(offset, offset + shape[axis], like=labels)
        numbers = _along(numbers, axis, len(shape))
        used = labels != ignore_index
        q = used * ((labels == numbers) * (1 - smoothing) + smoothing / max(classes, 1))
    if weight is not None:
        q = q * _along(weight, axis, len(shape))
    return q


def _part_of_loss(
    logits: Array,
    temperature: Any,
    target: Array,
    weight: Any,
    offsets: Array,
    *,
    axis: int,
    ignore_index: int,
    smoothing: float,
    classes: int,
    with_grad: bool,
) -> Array:
    """A block's part of the rows and of their losses."""
    backend, axes = backend_of(logits=logits), (axis,)
    _check_block(backend, target, logits.shape, axis, None)
    x, _ = _computable(logits, None, check.choose_dtype(logits, None))
    rows = check.reduced_shape(x.shape, axes)
    degrees = check.check_temperature(backend, temperature, rows, gradient=with_grad)
    part = row_parts.part(x, axes, None, degrees)
    loss = backend.empty(rows, x.dtype, x)
    if target.dtype.kind in "iu" and not smoothing:
        labels = target.astype(np.int64) - int(offsets[0])
        here = (labels >= 0) & (labels < x.shape[axis]) & (target != ignore_index)
        labels = np.where(here, labels, -1)
        q = here.astype(np.float64)
        if weight is not None and len(weight):
            q = q * weight.astype(np.float64)[np.where(here, labels, 0)]
        q = np.expand_dims(q, axis)
        arguments = (labels, axis, losses.check_weight(backend, weight, x.shape[axis]), -1)
    else:
        of_classes = _weights_of_block(
            target, weight, int(offsets[0]), x.shape, axis=axis, ignore_index=ignore_index,
            smoothing=smoothing, classes=classes,
        )  # fmt: skip
        q = _dot(backend, of_classes, _ones(x), axes)
        arguments = (of_classes, axis, None, -1)
    if x.size:
        backend.cross_entropy(x, *arguments, 0.0, degrees, loss, None, 1.0)
    else:
        loss[...] = 0
    # Beside what other blocks have, classes with -inf cost infinitely much.
    empty = part[row_parts.MAXIMUM] == -np.inf
    with np.errstate(invalid="ignore"):
        own = np.expand_dims(loss, axis).astype(np.float64)
        own = np.where(empty, np.where(q == 0, 0, np.inf * np.sign(q)), own)
    return np.stack([*part, own, q])


def _loss_of_whole(
    whole: Array, labels: Any, *, axis: int, ignore_index: int, classes: int, dtype: Any
) -> Array:
    """The losses of rows that have been joined; all but ignored rows without a sum are NaN."""
    used = True if labels is None else labels != ignore_index
    loss = whole[row_parts.LOSS].squeeze(axis)
    finite = np.isfinite(whole[row_parts.MAXIMUM].squeeze(axis)) | (classes == 0)
    loss = np.where(used, np.where(finite, loss, np.nan), 0)
    with np.errstate(over="ignore"):
        return loss.astype(dtype)


def _gradient_of_part(
    logits: Array,
    whole: Array,
    target: Array,
    weight: Any,
    offsets: Array,
    count: Any,
    *,
    dtype: Any,
    axis: int,
    ignore_index: int,
    smoothing: float,
    classes: int,
) -> Array:
    """The gradient of a block's classes, in slabs."""
    scale = 1 / float(count) if count else 0.0
    labelled = target.dtype.kind in "iu"
    result = np.empty_like(logits, dtype=dtype)
    for slab in row_parts.slabs(logits.shape):
        rows = tuple(slice(None) if i == axis else part for i, part in enumerate(slab))
        x, _ = _computable(logits[slab], None, dtype)
        result[slab] = _gradient(
            x,
            whole[(slice(None), *rows)],
            target[(*slab[:axis], *slab[axis + 1 :])] if labelled else target[slab],
            None if weight is None else weight[slab[axis]],
            int(offsets[0]) + slab[axis].start,
            scale,
            axis=axis,
            ignore_index=ignore_index,
            smoothing=smoothing,
            classes=classes,
        )
    return result


def _gradient(
    x: Array,
    whole: Array,
    target: Array,
    weight: Any,
    offset: int,
    scale: float,
    *,
    axis: int,
    ignore_index: int,
    smoothing: float,
    classes: int,
) -> Array:
    """`scale` (Q p - q) / T of the classes from `offset` on."""
    p = row_parts.probabilities(x, None, whole, np.float64)
    with np.errstate(all="ignore"):
        factor = scale / whole[row_parts.TEMPERATURE]
        if target.dtype.kind in "iu":
            used = np.expand_dims(target != ignore_index, axis)
            p = np.where(used, p, 0)
        if target.dtype.kind in "iu" and not smoothing:
            labels = np.expand_dims(target.astype(np.int64), axis) - offset
            numbers = _along(np.arange(x.shape[axis], like=x), axis, x.ndim)
            # 1 - p without cancellation: above 1/2 only the maximum can be.
            rest = whole[row_parts.REST] + whole[row_parts.LOW]
            missing = np.where(p > 0.5, rest / (1 + rest), 1 - p)
            result = np.where((labels == numbers) & used, -missing, p)
            return result * (factor * whole[row_parts.Q])
        options: Any = {"axis": axis, "ignore_index": ignore_index, "smoothing": smoothing}
        q = _weights_of_block(target, weight, offset, x.shape, classes=classes, **options)
        return (whole[row_parts.Q] * p - q) * factor


# -------------------------------------------------------------------------- binary cross-entropy


def binary_cross_entropy_with_logits(**arguments: Any) -> Any:
    return _binary_cross_entropy(**arguments, with_grad=False)[0]


def binary_cross_entropy_with_logits_with_grad(**arguments: Any) -> tuple[Any, Any]:
    return _binary_cross_entropy(**arguments, with_grad=True)


def _binary_cross_entropy(
    logits: Any, target: Any, weight: Any, pos_weight: Any, reduction: str, with_grad: bool
) -> tuple[Any, Any]:
    like = _main(logits, target, weight, pos_weight)
    x, target = (
        _unmasked(name, _lazy(array, like), losses.WITHOUT_WEIGHT)
        for name, array in (("logits", logits), ("target", target))
    )
    wanted = check.choose_dtype(x, None)
    every = tuple(range(x.ndim))
    shape = _stand_in(x)
    _check_known("target", target, "logits", x, every)
    losses.check_binary_target(_stand_in(target), shape.shape)
    operands = [(x, every), _aligned(target, x, every, "target")]
    for name, given in (("weight", weight), ("pos_weight", pos_weight)):
        factor = _unmasked(name, _lazy(given, x), losses.WITHOUT_WEIGHT)
        if factor is not None:
            losses.check_factor(numpy_backend, _stand_in(factor), shape, name)
        operands.append(_aligned(factor, x, every, name))
    count: Any = _size(x, every) if reduction == "mean" else 1.0
    loss_dtype = wanted if reduction == "none" else check.summing_dtype(wanted)
    task, name = partial(_binary_losses_of, dtype=loss_dtype), "binary-cross-entropy"
    grad = None
    if with_grad:
        by_count = (count, () if isinstance(count, da.Array) else None)
        both = _blockwise(task, name, every, x, loss_dtype, *operands, by_count)
        loss, grad = _loss_and_gradient(name, every, x, loss_dtype, both)
    else:
        loss = _blockwise(task, name, every, x, loss_dtype, *operands, (None, None))
    if reduction != "none":
        # There are as many losses as logits: unless their order is that of the blocks, they are
        # added along the last axis first, where they are.
        if _is_cut(x, every[1:]):
            cut = _one_each(loss, every[-1:])
            operand = (loss, every)
            loss = _blockwise(
                _sum_of_last, "total", every, loss, np.float64, operand, adjust_chunks=cut
            )
        loss = _reduced(loss, count, wanted)
    return loss, grad


def _binary_losses_of(
    logits: Array, target: Array, weight: Any, pos_weight: Any, count: Any, *, dtype: Any
) -> Any:
    """Losses of the elements of a block, and their gradients over `count` unless that is None."""
    backend = backend_of(logits=logits)
    losses.check_binary_target(target, logits.shape)
    losses.check_fractions(backend, target)
    weight = losses.check_factor(backend, weight, logits, "weight")
    pos_weight = losses.check_factor(backend, pos_weight, logits, "pos_weight")
    loss = backend.empty(logits.shape, np.dtype(dtype), logits)
    grad, divisor = None, 1.0
    if count is not None:
        grad = backend.empty(logits.shape, check.choose_dtype(logits, None), logits)
        divisor = float(count)
    if logits.size:
        backend.binary_cross_entropy(logits, target, weight, pos_weight, loss, grad, divisor)
    return loss if grad is None else (loss, grad)
