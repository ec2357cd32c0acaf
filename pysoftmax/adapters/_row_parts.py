"""Rows that lie in several blocks: what each block tells of its part, and how parts are joined.

With m the largest x of a part and T the temperature, a part is an array of float64 whose first
axis holds

    T, m, R, R'        R + R' = sum exp((x - m) / T) without one maximum, as a pair

and, for some functions, one or two of

    loss, Q            sum q (log S - (x - m) / T) and sum q, q the target and S = 1 + R + R'
    mean               sum b exp((x - m) / T) / S, b the factors of logsumexp

Its other axes are those of the block, the reduced ones with length 1. Parts are joined like the
kernels' blocks (docs/numerics.md): one maximum stays out of the sum, so that log S = log1p(R)
keeps its relative accuracy, and the sums are pairs, so that many parts add no error.

R is 1 / p - 1, p the probability of the maximum among the block's own, or, where p is near 1,
comes from its logarithm. The loss of a row is the sum over its parts of their own losses, less
Q times the logarithm of their share of the row. So all of a part is what functions of this package
say of the block, and blocks are read once for it.

With the part that all are joined to, `probabilities` and `log_probabilities` finish a block:
float32 in double, float64 with the rounding of x - m made good.

A part without mass (only -inf, or masked wholly) has m = -inf and R = -1; with +inf, m = +inf and
R = 0; with NaN, m is NaN.
"""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np

import pysoftmax
from pysoftmax.backends import Array

TEMPERATURE, MAXIMUM, REST, LOW = range(4)
LOSS, Q = 4, 5
MEAN = 4

# Elements finished at a time, so that what is computed of them stays in a core's cache.
SLAB = 1 << 14


def part(x: Array, axes: tuple[int, ...], where: Array | None, temperature: Any) -> list[Array]:
    """T, m, R, R' of a block of float32 or float64."""
    options = {"where": where, "temperature": temperature}
    highest = _largest(x if where is None else np.where(where, x, -np.inf), axes)
    maximum = highest.astype(np.float64)
    peak = _largest(pysoftmax.softmax(x, axes, **options), axes).astype(np.float64)
    log_peak = _largest(pysoftmax.log_softmax(x, axes, **options), axes).astype(np.float64)
    degrees = np.zeros_like(maximum) + expanded(temperature, axes)
    with np.errstate(all="ignore"):
        near_one = (peak > 0.5) & ~np.isinf(degrees)
        rest = np.where(near_one, np.expm1(-log_peak), 1 / peak - 1)
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
        joined.append(sum(_weighted(p[MEAN], _share(p, joined)) for p in parts))
    return np.stack(joined)


def _scale(maximum: Array, new: Array, temperature: Array) -> Array:
    """exp((maximum - new) / T), and 0 of -inf."""
    with np.errstate(all="ignore"):
        difference, lost = _difference(maximum, new)
        scale = np.exp(_exponent(difference, maximum, temperature))
        scale = scale + scale * _lost_of_exponent(lost, temperature)
    return np.where(maximum == -np.inf, 0, scale)


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """a - b, 0 of equal infinities, and what rounding took from it (Knuth's TwoSum)."""
    difference = np.where(a == b, 0, a - b)
    taken = difference - a
    lost = (a - (difference - taken)) - (b + taken)
    return difference, np.where(np.isfinite(lost), lost, 0)


def _exponent(difference: Array, x: Array, temperature: Array) -> Array:
    """difference / T, difference being x - m: 0 for a maximum at T = 0, for a number at inf."""
    if (temperature == 1).all():
        return difference
    kept = (difference == 0) | np.isinf(difference)
    result = np.where(kept, difference, difference / temperature)
    return np.where((temperature == np.inf) & np.isfinite(x), 0, result)


def _lost_of_exponent(lost: Array, temperature: Array) -> Array:
    """lost / T, and 0 where that is no number: the term is 0 there, or nothing was lost."""
    quotient = lost / temperature
    return np.where(np.isfinite(quotient), quotient, 0)


def _add(high: Array, low: Array, other: Array, other_low: Any) -> tuple[Array, Array]:
    """The sum of two pairs (Knuth's TwoSum)."""
    total = high + other
    taken = total - high
    return total, (low + other_low) + ((high - (total - taken)) + (other - taken))


def _loss_within(p: Array, whole: Any) -> Array:
    """The loss of a part, as it is within the whole row."""
    return p[LOSS] - _weighted(p[Q], _log_share(p, whole))


def _weighted(weight: Array, value: Array) -> Array:
    """weight * value, where a weight of 0 makes 0 of anything."""
    with np.errstate(all="ignore"):
        return np.where(weight == 0, 0, weight * value)


def _share(p: Array, whole: Any) -> Array:
    """How much of the row's sum is in the part; 1 where there is none."""
    with np.errstate(all="ignore"):
        mass = (1 + (p[REST] + p[LOW])) * _scale(p[MAXIMUM], whole[MAXIMUM], whole[TEMPERATURE])
        result = mass / (1 + (whole[REST] + whole[LOW]))
    return np.where(whole[MAXIMUM] == -np.inf, 1, result)


def _log_share(p: Array, whole: Any) -> Array:
    """The logarithm of `_share`."""
    with np.errstate(all="ignore"):
        difference, _ = _difference(p[MAXIMUM], whole[MAXIMUM])
        down = _exponent(difference, p[MAXIMUM], whole[TEMPERATURE])
        result = down + (log_of_sum(p) - log_of_sum(whole))
    result = np.where(p[MAXIMUM] == -np.inf, -np.inf, result)
    return np.where(whole[MAXIMUM] == -np.inf, 0, result)


def log_of_sum(p: Array) -> Array:
    """log S = log1p(R); -inf where there is no mass."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log1p(p[REST] + p[LOW])


# -------------------------------------------------------------------------------- whole rows


def probabilities(x: Array, where: Array | None, whole: Array, dtype: Any) -> Array:
    """The softmax of a block, `whole` being what the parts of its rows were joined to."""
    return _finished(_probabilities, 0, x, where, whole, dtype)


def log_probabilities(x: Array, where: Array | None, whole: Array, dtype: Any) -> Array:
    """The log-softmax of a block."""
    return _finished(_log_probabilities, -np.inf, x, where, whole, dtype)


def _finished(
    function: Any, masked: float, x: Array, where: Array | None, whole: Array, dtype: Any
) -> Array:
    result = np.empty_like(x, dtype=dtype)
    with np.errstate(all="ignore"):
        # Rows without a largest number are NaN.
        no_row = ~np.isfinite(whole[MAXIMUM])
        whole = np.where(no_row, np.nan, whole)
        for slab in slabs(x.shape):
            rows = tuple(
                s if n > 1 else slice(None) for s, n in zip(slab, no_row.shape, strict=True)
            )
            values = function(x[slab].astype(np.float64), whole[(slice(None), *rows)], x.dtype)
            result[slab] = values if where is None else np.where(where[slab], values, masked)
    return result


def _probabilities(x: Array, whole: Array, dtype: Any) -> Array:
    degrees, maximum = whole[TEMPERATURE], whole[MAXIMUM]
    total = 1 + (whole[REST] + whole[LOW])
    if dtype.itemsize < 8:
        result = np.exp(_exponent(x - maximum, x, degrees))
        result /= total
        return result
    difference, lost = _difference(x, maximum)
    result = np.exp(_exponent(difference, x, degrees)) / total
    return result + result * _lost_of_exponent(lost, degrees)


def _log_probabilities(x: Array, whole: Array, dtype: Any) -> Array:
    return _exponent(x - whole[MAXIMUM], x, whole[TEMPERATURE]) - log_of_sum(whole)


def slabs(shape: tuple[int, ...], limit: int = SLAB) -> Iterator[tuple[slice, ...]]:
    """Indices of parts of at most `limit` elements."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    step = max(1, limit // max(inner, 1))
    for begin in range(0, shape[0], step):
        for rest in slabs(shape[1:], limit):
            yield (slice(begin, begin + step), *rest)
