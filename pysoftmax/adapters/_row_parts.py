"""Rows that lie in several blocks: what a block tells of its part of them, and how parts are joined.

With m the largest x of a part and T the temperature, a part is an array of float64 whose first
axis holds

    T, m, R, R'        R + R' = sum exp((x - m) / T) without one maximum, as a pair

and, for some functions, one or two of

    loss, Q            sum q (log S - (x - m) / T) and sum q, q the target and S = 1 + R + R'
    mean               sum b exp((x - m) / T) / S, b the factors of logsumexp

Its other axes are those of the block, the reduced ones with length 1. Parts are joined like the
kernels' blocks (docs/numerics.md): one maximum stays out of the sum, so that log S = log1p(R)
keeps its relative accuracy, and the sums are pairs, so that many parts add no error.

The softmax of a row is that of each part times the part's share of the row; log-softmax is that
of each part plus the logarithm of the share; and a loss is the sum of Q times that logarithm taken
off the losses of the parts. So all that is needed of a block is what the public functions say of
it. R is 1 / p - 1, p the probability of the maximum, or, where p is near 1, comes from its
logarithm.

A part without mass (only -inf, or masked wholly) has m = -inf and R = -1; with +inf, m = +inf and
R = 0; with NaN, m is NaN.
"""

from functools import reduce
from typing import Any

import numpy as np

import pysoftmax
from pysoftmax.backends import Array

TEMPERATURE, MAXIMUM, REST, LOW = range(4)
LOSS, Q = 4, 5
MEAN = 4


def part(
    x: Array,
    probabilities: Array,
    axes: tuple[int, ...],
    where: Array | None,
    temperature: Any,
    *,
    logarithms: bool,
) -> list[Array]:
    """T, m, R, R' of a block; R to the last place near 0 too if `logarithms` will be taken."""
    highest = _largest(x if where is None else np.where(where, x, -np.inf), axes)
    maximum = highest.astype(np.float64)
    peak = _largest(probabilities, axes).astype(np.float64)
    degrees = np.zeros_like(maximum) + expanded(temperature, axes)
    with np.errstate(all="ignore"):
        rest = 1 / peak - 1
        if logarithms:
            options = {"where": where, "temperature": temperature}
            logs = pysoftmax.log_softmax(x, axes, dtype=probabilities.dtype, **options)
            near = np.expm1(-_largest(logs, axes).astype(np.float64))
            rest = np.where(peak > 0.5, near, rest)
    rest = np.where(maximum == -np.inf, -1, np.where(maximum == np.inf, 0, rest))
    return [degrees, maximum, rest, np.zeros_like(rest)]


def expanded(rows: Any, axes: tuple[int, ...]) -> Any:
    """What there is one of per row, with the reduced axes back; a scalar as it is."""
    return np.expand_dims(rows, axes) if np.ndim(rows) else rows


def _largest(array: Array, axes: tuple[int, ...]) -> Array:
    """The maxima, reduced axes kept; -inf of nothing."""
    if array.size:
        return array.max(axis=axes, keepdims=True)
    shape = tuple(1 if i in axes else n for i, n in enumerate(array.shape))
    return np.full_like(array, -np.inf, shape=shape)


def join(parts: list[Array]) -> Array:
    """Parts of the same rows as one."""
    degrees = parts[0][TEMPERATURE]
    maximum = reduce(np.maximum, [p[MAXIMUM] for p in parts])
    rest = low = np.zeros_like(maximum)
    found = maximum == -np.inf  # whether the maximum that stays out has been seen
    for p in parts:
        scale = _scale(p[MAXIMUM], maximum, degrees)
        stays_out = (p[MAXIMUM] == maximum) & ~found
        found = found | stays_out
        rest, low = _add(rest, low, p[REST] * scale, p[LOW] * scale)
        rest, low = _add(rest, low, np.where(stays_out, 0, scale), 0)
    rest = np.where(maximum == -np.inf, -1, rest)
    joined = [degrees, maximum, rest, low]
    if len(parts[0]) == Q + 1:
        joined += [sum(_loss_within(p, joined) for p in parts), sum(p[Q] for p in parts)]
    elif len(parts[0]) == MEAN + 1:
        joined.append(sum(_weighted(p[MEAN], share(p, joined)) for p in parts))
    return np.stack(joined)


def _scale(maximum: Array, new: Array, temperature: Array) -> Array:
    """exp((maximum - new) / T), to the last place: the rounding of the difference is made good."""
    with np.errstate(all="ignore"):
        difference = _difference(maximum, new)
        taken = difference - maximum
        lost = (maximum - (difference - taken)) - (new + taken)
        lost = np.where(np.isfinite(lost), lost, 0)
        scale = np.exp(_quotient(difference, temperature))
        scale = np.where(scale == 0, 0, scale + scale * _quotient(lost, temperature))
    return np.where(maximum == -np.inf, 0, scale)


def _difference(a: Array, b: Array) -> Array:
    return np.where(a == b, 0, a - b)


def _quotient(number: Array, temperature: Array) -> Array:
    """number / T, where 0 / 0 is 0."""
    return np.where(number == 0, 0, number / temperature)


def _add(high: Array, low: Array, other: Array, other_low: Any) -> tuple[Array, Array]:
    """The sum of two pairs (Knuth's TwoSum)."""
    total = high + other
    taken = total - high
    return total, (low + other_low) + ((high - (total - taken)) + (other - taken))


def _loss_within(p: Array, whole: Any) -> Array:
    """The loss of a part, as it is within the whole row."""
    return p[LOSS] - _weighted(p[Q], log_share(p, whole))


def _weighted(weight: Array, value: Array) -> Array:
    """weight * value, where a weight of 0 makes 0 of anything."""
    with np.errstate(all="ignore"):
        return np.where(weight == 0, 0, weight * value)


def share(p: Array, whole: Any) -> Array:
    """How much of the row's sum is in the part; 1 where there is none."""
    with np.errstate(all="ignore"):
        mass = (1 + (p[REST] + p[LOW])) * _scale(p[MAXIMUM], whole[MAXIMUM], whole[TEMPERATURE])
        result = mass / (1 + (whole[REST] + whole[LOW]))
    return np.where(whole[MAXIMUM] == -np.inf, 1, result)


def log_share(p: Array, whole: Any) -> Array:
    """The logarithm of `share`."""
    with np.errstate(all="ignore"):
        down = _quotient(_difference(p[MAXIMUM], whole[MAXIMUM]), whole[TEMPERATURE])
        result = down + (log_of_sum(p) - log_of_sum(whole))
    result = np.where(p[MAXIMUM] == -np.inf, -np.inf, result)
    return np.where(whole[MAXIMUM] == -np.inf, 0, result)


def log_of_sum(p: Array) -> Array:
    """log S = log1p(R); -inf where there is no mass."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log1p(p[REST] + p[LOW])
