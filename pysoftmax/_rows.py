"""Rows of scores: the classes last, cut in blocks, and the largest entries of each."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pysoftmax import _arguments as check
from pysoftmax._dispatch import backend_of, library_of
from pysoftmax.backends import Array, Backend

# Elements in a block: what is computed of them in float64 stays in a core's cache.
BLOCK = 1 << 16

# The same for few operations on logits as they are, and for many on a few classes of each row.
MIDDLE_BLOCK = 1 << 19
LARGE_BLOCK = 1 << 21

# How far from 1 a row may add up to: probabilities that were rounded to a few decimals pass, what
# is not a distribution does not.
SLACK = 0.01

Part = tuple[slice, ...]


def is_lazy(values: Any) -> bool:
    """Whether these are a dask.array, which is read by `chunks`."""
    dask = sys.modules.get("dask.array")
    return dask is not None and isinstance(values, dask.Array)


def backend_of_blocks(**arrays: Any) -> Backend:
    """As `backend_of`, for arrays that may be lazy: the backend of their blocks."""
    library_of(**arrays)
    for name, array in arrays.items():
        if is_lazy(array) and np.isnan(array.shape).any():
            raise ValueError(
                f"{name} must have chunks of known sizes: call compute_chunk_sizes() first"
            )
    return backend_of(
        **{name: array._meta if is_lazy(array) else array for name, array in arrays.items()}
    )


def in_memory(values: Any) -> Any:
    """`values`, computed if they are lazy."""
    return values.compute() if is_lazy(values) else values


def chunks(arrays: Sequence[Array], n_axes: int) -> Iterator[tuple[Part, Sequence[Array]]]:
    """Arrays with the same `n_axes` axes of rows first, as parts that lie in memory.

    Lazy ones are computed together, a chunk of rows after the other, so that what they share is
    computed once; others are one part.
    """
    lazy = next(filter(is_lazy, arrays), None)
    if lazy is None:
        yield (), arrays
        return
    compute: Any = sys.modules["dask"].compute
    ends = [np.cumsum((0, *sizes)).tolist() for sizes in lazy.chunks[:n_axes]]
    for part in itertools.product(*(itertools.starmap(slice, itertools.pairwise(e)) for e in ends)):
        yield part, compute(*(array[part] for array in arrays))


def within(chunk: Part, part: Part) -> Part:
    """The part of all rows that is a part of a chunk of them."""
    if not chunk:
        return part
    *before, last = chunk[: len(part)]
    cut = slice(last.start + part[-1].start, min(last.start + part[-1].stop, last.stop))
    return (*before, cut, *chunk[len(part) :])


def classes_last(array: Array, axis: int) -> Array:
    """A view with the classes last and at least one axis of rows."""
    moved = array.transpose([*(i for i in range(array.ndim) if i != axis), axis])
    return moved if moved.ndim > 1 else moved[None]


def parts(shape: tuple[int, ...], limit: int = BLOCK) -> Iterator[Part]:
    """Blocks of about `limit` elements, as indices of the rows of scores with this shape.

    The rows are cut along their longest axis, so that a block is small whichever axis the
    classes came from, and is copied only where its strides need it.
    """
    *rows, classes = shape
    if 0 in rows:
        return
    cut = max(range(len(rows)), key=rows.__getitem__)
    step = max(1, limit * rows[cut] // (int(np.prod(rows)) * max(classes, 1)))
    for begin in range(0, rows[cut], step):
        yield (slice(None),) * cut + (slice(begin, begin + step),)


def place(index: tuple[Any, ...]) -> str:
    """An index as it is written between brackets."""
    return ", ".join(str(int(i)) for i in index)


def refuse(
    name: str,
    bad: Array,
    values: Array,
    expected: str,
    rows: tuple[int, ...],
    part: Part,
    keep: Array | None = None,
) -> None:
    """ValueError for the first row of a block where `bad` is true, if there is one.

    `name` is what the index of the row follows; `keep` tells the rows that the block has.
    """
    if not bad.any():
        return
    first = int(bad.argmax())
    numbers = np.arange(int(np.prod(rows))).reshape(rows)[part]
    numbers = numbers.reshape(-1) if keep is None else numbers[keep]
    index = np.unravel_index(int(numbers[first]), rows)
    raise ValueError(f"{name}[{place(index)}]: expected {expected}, got {values[first]}")


def faults(block: Array) -> Iterator[tuple[Array, Array, str]]:
    """What keeps rows from being distributions: where, the value found, and what was expected."""
    lowest, total = block.min(axis=-1), block.sum(axis=-1, dtype=np.float64)
    yield ~(lowest >= 0), lowest, "numbers in [0, 1]"
    yield abs(total - 1) > SLACK, total, "numbers that add up to 1"


def comparable(block: Array) -> Array:
    """Half precisions as float32, in which NumPy has fast comparisons; all others as they are."""
    dtype: np.dtype[Any] = block.dtype
    return block.astype(check.summing_dtype(dtype), copy=False)


def largest(xp: Any, x: Array, k: int, lowest: float | None = None) -> tuple[Array, Array]:
    """The k largest of each row of `x` (rows, n), in descending order, and what equals the last.

    Returns values and indices (rows, at least k). Equal values are in the order of their
    indices. NaN counts as larger than any number. What is below `lowest` is left out. Rows that
    have fewer than others are filled up at the end, with values not larger than their last.
    """
    places = [
        block.start * x.shape[1] + xp.flatnonzero(_candidates(xp, x[block], k, lowest))
        for (block,) in parts(x.shape, MIDDLE_BLOCK)
    ]
    return descending(xp, x, xp.concatenate(places))


def _candidates(xp: Any, x: Array, k: int, lowest: float | None) -> Array:
    """Where an entry can be among the k largest of its row: there, and rarely elsewhere."""
    rows, n = x.shape
    # The k-th largest of the maxima of many groups is not larger than that of the row, and
    # little less: one fast read of (nearly all of) the row leaves few entries to sort.
    groups = max(1024, 8 * k)
    maxima = x
    if n >= 8 * groups:
        whole = n // groups * groups
        maxima = x[:, :whole].reshape(rows, -1, groups).max(axis=1)
    last = maxima.shape[1] - k
    bound = xp.partition(maxima, last, axis=1)[:, last : last + 1]
    if lowest is not None:
        bound = xp.maximum(bound, lowest)
    return ~(x < bound)


def descending(xp: Any, x: Array, places: Array) -> tuple[Array, Array]:
    """The entries of `x` at some flat indices, ascending, as `largest` returns them."""
    rows, n = x.shape
    row = places // n
    counts = xp.bincount(row, minlength=rows)
    within = xp.arange(len(places)) - (xp.cumsum(counts) - counts)[row]
    width = max(1, int(counts.max()))
    indices = xp.zeros((rows, width), dtype=np.int64)
    # What fills up comes after all else even where it equals that.
    lowest = -np.inf if x.dtype.kind == "f" else x.min()
    values = xp.full((rows, width), lowest, dtype=x.dtype.newbyteorder("="))
    indices[row, within] = places - row * n
    values[row, within] = x[row, indices[row, within]]
    # Backwards on both sides, so that the stable order is that of the indices.
    order = width - 1 - xp.argsort(values[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return xp.take_along_axis(values, order, axis=1), xp.take_along_axis(indices, order, axis=1)
