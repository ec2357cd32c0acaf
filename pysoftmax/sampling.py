"""Classes drawn at random from the softmax of logits, as language models choose their next token.

A draw inverts the cumulative distribution: with one uniform number u in [0, 1) per draw, of 53
bits, it is the first class at which the sum of the weights exceeds u times their total. The sums
are in float64. So that a row need not be summed one by one, its weights are added in about
sqrt(n) groups; u finds the group, and then the class in it. A class of weight 0 never exceeds
anything, and so is never drawn.

What restricts the classes comes first. Classes are ranked by their logits, which a temperature
leaves in order, and equal logits are kept or dropped together.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from pysoftmax import _arguments as check
from pysoftmax._dispatch import backend_of, of_any_library
from pysoftmax._rows import (
    LARGE_BLOCK,
    MIDDLE_BLOCK,
    classes_last,
    descending,
    largest,
    parts,
    refuse,
)
from pysoftmax._softmax import softmax
from pysoftmax.backends import Array

__all__ = ["sample"]

# From so many draws of each row on, it pays to add up all of its weights.
_MANY = 64


@of_any_library("logits", "temperature", "where")
def sample(
    logits: Any,
    *,
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    where: Any = None,
    size: int | tuple[int, ...] | None = None,
    axis: int = -1,
    rng: Any = None,
) -> Any:
    """Draw classes with the probabilities of ``softmax(logits / temperature)``.

    The restrictions apply in this order: temperature, top-k, top-p, min-p, each to the
    probabilities that those before it leave. At least the most probable class is kept.

    Parameters
    ----------
    logits : array_like
        Unnormalised scores, classes along `axis`, dtypes as for `softmax`. -inf is a class
        that is never drawn.
    temperature : float or array_like, default 1.0
        As for `softmax`: one for all or broadcast against the shape of `logits` without
        `axis`. 0 draws among the largest logits, inf among all that are kept.
    top_k : int, optional
        Keep the classes of the `top_k` largest logits, and those that equal the last of
        them. More than there are keeps all.
    top_p : float, optional
        In [0, 1]. Keep the fewest most probable classes whose probabilities reach `top_p`,
        and those whose logits equal the last of them.
    min_p : float, optional
        In [0, 1]. Keep the classes that are at least `min_p` times as probable as the most
        probable one.
    where : array_like of bool, optional
        Classes that may be drawn, broadcast to the shape of `logits`. The mask of a masked
        array counts too.
    size : int or tuple of int, optional
        How many draws of each row, as leading axes of the result; by default one, without
        such an axis.
    axis : int, default -1
        The classes.
    rng : numpy.random.Generator, optional
        Where the random numbers come from, one per draw, or a seed for one; by default they
        cannot be predicted.

    Returns
    -------
    ndarray of int64 or scalar
        The classes: `size` followed by the shape of `logits` without `axis`.

    Raises
    ------
    ValueError
        For a row that holds NaN or +inf, or nothing but -inf and masked classes, with its
        position; no classes; arguments that are out of range.
    TypeError, numpy.exceptions.AxisError
        As `softmax`, and for arguments that are no numbers.

    Notes
    -----
    top-p is the nucleus of Holtzman et al., arXiv:1904.09751, section 3.1; min-p is that of
    Nguyen et al., arXiv:2407.01082. Probabilities that reach `top_p` but for rounding do
    reach it.

    Without `top_k` and `top_p`, a float32 probability is that of `softmax`, within 4 ULP;
    uniform numbers and sums are float64 always.

    Examples
    --------
    >>> import numpy as np
    >>> from pysoftmax import sample
    >>> logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    >>> drawn = sample(logits, size=100000, rng=0)
    >>> drawn.shape, (drawn == 1).mean(axis=0).round(2)
    ((100000, 2), array([0.3, 0.1]))
    >>> np.unique(sample(logits[0], top_k=2, temperature=0.8, size=100, rng=0))
    array([0, 1])
    >>> sample(logits, temperature=0)
    array([0, 2])
    """
    if top_k is not None and operator.index(top_k) < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    share = 1.0 if top_p is None else check.check_real("top_p", top_p, 0, 1)
    least = 0.0 if min_p is None else check.check_real("min_p", min_p, 0, 1)
    leading = _shape(size)
    backend = backend_of(logits=logits, where=where)
    xp = backend.namespace
    array, own = backend.as_array(logits), backend.mask_of(logits)
    dtype = check.summing_dtype(check.result_dtype(array.dtype))
    axis = check.normalize_axis(axis, array.ndim)
    shape = check.reduced_shape(array.shape, (axis,))
    temperature = check.check_temperature(backend, temperature, shape)
    mask = check.check_where(where, array.shape, backend, own)
    scores = classes_last(array, axis)
    *rows, classes = scores.shape
    if classes < 1:
        raise ValueError(f"expected at least one class along axis {axis}, got shape {array.shape}")
    if mask is not None:
        mask = classes_last(mask, axis)

    uniform = np.random.default_rng(rng).random((math.prod(leading), *rows))
    result = backend.empty(uniform.shape, np.int64, array)
    for part in parts(scores.shape, MIDDLE_BLOCK if top_k is None else LARGE_BLOCK):
        x = scores[part].reshape(-1, classes).astype(dtype, copy=False)
        if mask is not None:
            x = xp.where(mask[part].reshape(-1, classes), x, -np.inf)
        t = temperature if isinstance(temperature, float) else temperature[part].reshape(-1)
        weights, indices = _weights(xp, x, t, top_k, share, least)
        bad = xp.isnan(weights[:, 0])
        if bad.any():
            top = x.max(axis=1)
            refuse("logits in row", bad, top, "a finite largest logit", tuple(rows), part)
        draws = (slice(None), *part)
        u = xp.asarray(uniform[draws].reshape(len(uniform), len(x)))
        picks = _invert(xp, weights, u)
        if indices is not None:
            picks = xp.take_along_axis(indices, picks.T, axis=1).T
        result[draws] = picks.reshape(result[draws].shape)
    return backend.wrap(result.reshape((*leading, *shape)), None)


def _shape(size: Any) -> tuple[int, ...]:
    if size is None:
        return ()
    lengths = tuple(operator.index(n) for n in (size if isinstance(size, tuple) else (size,)))
    if min(lengths, default=0) < 0:
        raise ValueError(f"size must not be negative, got {size}")
    return lengths


def _weights(
    xp: Any, x: Array, temperature: Any, top_k: int | None, top_p: float, min_p: float
) -> tuple[Array, Array | None]:
    """What the classes of each row of `x` weigh: 0 for those that are not kept.

    If the indices are not None, they tell the classes, of which the most probable come first.
    Rows without a distribution are NaN.
    """
    n = x.shape[1]
    indices = None
    if top_k is not None and top_k < n:
        # Where few classes are not masked, the others must not all be sorted.
        values, indices = largest(xp, x, top_k, np.finfo(x.dtype).min)
        last = min(top_k, values.shape[1]) - 1
        values[values < values[:, last : last + 1]] = -np.inf
        weights = softmax(values, temperature=temperature, dtype=np.float64)
    else:
        weights = softmax(x, temperature=temperature)
    if top_p < 1:
        slack = 8 * np.finfo(weights.dtype).eps
        enough = top_p * (1 - slack) * weights.sum(axis=1, dtype=np.float64)
        if indices is None:
            # Classes below this together have less than half of what top-p leaves out.
            places = xp.flatnonzero(~(weights < (1 - top_p) / (2 * n)))
            values, indices = descending(xp, x, places)
            weights = xp.take_along_axis(weights, indices, axis=1).astype(np.float64)
        reached = xp.cumsum(weights, axis=1)
        count = (reached < enough[:, None]).sum(axis=1, keepdims=True)
        count = xp.minimum(count, values.shape[1] - 1)
        # So too what fills up shorter rows, which is -inf.
        weights[values < xp.take_along_axis(values, count, axis=1)] = 0
    if min_p > 0:
        weights[weights < min_p * weights.max(axis=1, keepdims=True)] = 0
    return weights, indices


def _invert(xp: Any, weights: Array, uniform: Array) -> Array:
    """Where the cumulative weights of each row exceed `uniform` (draws, rows) of their total."""
    rows, n = weights.shape
    picks = xp.empty(uniform.shape, dtype=np.int64)
    if len(uniform) >= _MANY:
        for row in range(rows):
            ends = xp.cumsum(weights[row], dtype=np.float64)
            picks[:, row] = xp.searchsorted(ends, uniform[:, row] * ends[-1], side="right")
        return picks
    width = math.isqrt(n)
    whole = n // width * width
    sums = weights[:, :whole].reshape(rows, -1, width).sum(axis=2, dtype=np.float64)
    if whole < n:
        rest = weights[:, whole:].sum(axis=1, keepdims=True, dtype=np.float64)
        sums = xp.concatenate([sums, rest], axis=1)
    ends = xp.cumsum(sums, axis=1)
    each = xp.arange(rows)
    for draw, u in enumerate(uniform):
        target = u * ends[:, -1]
        group = (ends <= target[:, None]).sum(axis=1)
        before = xp.where(group > 0, ends[each, group - 1], 0)
        columns = group[:, None] * width + xp.arange(width)
        inside = xp.where(columns < n, weights[each[:, None], xp.minimum(columns, n - 1)], 0)
        within = xp.cumsum(inside, axis=1, dtype=np.float64)
        # The sum of the group may be rounded otherwise than the last of these.
        target = xp.minimum(target - before, xp.nextafter(within[:, -1], 0))
        picks[draw] = columns[:, 0] + (within <= target[:, None]).sum(axis=1)
    return picks
