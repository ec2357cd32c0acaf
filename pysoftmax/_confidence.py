"""What is known of the confidence of some rows: whole numbers, whose sums are exact.

A confidence is rounded to a multiple of 2^-48, which holds every float32 that is at least 2^-24,
and its square is not rounded at all. Additions of whole numbers can be exchanged: mean and
standard deviation have the same bits in whatever parts and order the rows were counted, and
nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pysoftmax.backends.numpy import count_confidences, count_rows

Floats = NDArray[np.float64]

PART = 4096  # rows whose sums have 64 bits, at most

_BITS = 48  # of a number; in two halves of 24, whose products of 4096 rows fit into 64
_HALF = _BITS // 2

_TALLIES = ("nan", "invalid", "above", "below")  # what `Counts` begins with


class Drift(NamedTuple):
    """How far the recent rows are from the reference: what `ConfidenceMonitor.drift` returns.

    Attributes
    ----------
    psi : float
        Population stability index of the histograms, ``sum((p - q) * log(p / q))``; at least
        0. By custom, up to 0.1 is none and above 0.25 much (Siddiqi, Credit Risk Scorecards,
        Wiley 2006). Half a row is added to each bin, so that none is empty.
    ks : float
        Kolmogorov-Smirnov distance: the largest difference of the shares up to an edge of the
        histogram, in [0, 1]. Between the edges the distance can be larger.
    class_shift : float
        Total variation distance of the shares of the predicted classes, in [0, 1]: the share
        of rows that would have to change class.
    """

    psi: float
    ks: float
    class_shift: float


class Cuts(NamedTuple):
    """What confidences are compared with."""

    lowest: float  # of what can be that of a distribution
    highest: float
    low: float
    high: float


class Moments:
    """Count, sum and sum of squares of numbers in [0, 1.01], all exact."""

    def __init__(self, n: int = 0, first: int = 0, second: int = 0) -> None:
        self.n, self.first, self.second = n, first, second

    def see(self, value: float) -> None:
        """Add a number, rounded to a multiple of 2^-48."""
        whole = round(value * 2.0**_BITS)
        self.n += 1
        self.first += whole
        self.second += whole * whole

    def add(self, other: Moments, sign: int = 1) -> None:
        self.n += sign * other.n
        self.first += sign * other.first
        self.second += sign * other.second

    @property
    def mean(self) -> float:
        return self.first / (self.n << _BITS) if self.n else math.nan

    @property
    def std(self) -> float:
        if not self.n:
            return math.nan
        # Whole numbers of any length, rounded once by the division and once by the root.
        return math.sqrt((self.n * self.second - self.first**2) / (self.n**2 << 2 * _BITS))


class Counts:
    """All that is known of some rows."""

    def __init__(self, n_classes: int, n_bins: int) -> None:
        self.rows = 0  # whatever was in them
        self.n_bins = n_bins
        # One array, so that what compiled code adds to is one, and so is what is added up.
        self._counts = np.zeros(len(_TALLIES) + n_bins + n_classes, np.int64)
        self.histogram = self._counts[len(_TALLIES) : len(_TALLIES) + n_bins]
        self.classes = self._counts[len(_TALLIES) + n_bins :]
        self._confidence, self.entropy = Moments(), Moments()
        # What is not in `_confidence` yet: rows, and their sums of 64 bits, which hold `PART`.
        self._recent = 0
        self._sums = np.zeros(4, np.int64)

    @property
    def nan(self) -> int:
        return int(self._counts[0])

    @property
    def invalid(self) -> int:
        return int(self._counts[1])

    @property
    def above(self) -> int:
        return int(self._counts[2])

    @property
    def below(self) -> int:
        return int(self._counts[3])

    @property
    def confidence(self) -> Moments:
        """Of the rows that are neither NaN nor invalid."""
        self._sum_up()
        return self._confidence

    def _sum_up(self) -> None:
        if self._recent:
            first, squares, products, rest = self._sums.tolist()
            self._confidence.n = self.rows - self.nan - self.invalid
            self._confidence.first += first
            self._confidence.second += (squares << _BITS) + (products << (_HALF + 1)) + rest
            self._sums[:] = self._recent = 0

    def room(self) -> int:
        """How many rows may be seen next, 1 at least and `PART` at most."""
        if self._recent == PART:
            self._sum_up()
        return PART - self._recent

    def see(self, confidence: Floats, labels: NDArray[np.int64], cuts: Cuts) -> None:
        """Count rows, for which there is room: their confidences and classes."""
        count_confidences(confidence, labels, cuts, self._counts, self.n_bins, self._sums)
        self._recent += len(labels)
        self.rows += len(labels)

    def see_rows(self, rows: NDArray[Any], begin: int, step: int, most: int, cuts: Cuts) -> int:
        """Count rows begin, begin + step, ... of probabilities, and return how many it were.

        At most so many, for which there is room. `rows_to_count` takes the rows.
        """
        seen = count_rows(rows, begin, step, most, cuts, self._counts, self.n_bins, self._sums)
        self._recent += seen
        self.rows += seen
        return seen

    def add(self, other: Counts, sign: int = 1) -> Counts:
        """Add other rows or, with sign -1, take away again what was added."""
        self.confidence.add(other.confidence, sign)
        self.entropy.add(other.entropy, sign)
        self.rows += sign * other.rows
        join = np.add if sign > 0 else np.subtract
        join(self._counts, other._counts, out=self._counts)
        return self

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _TALLIES},
            "confidence": [self.confidence.n, self.confidence.first, self.confidence.second],
            "entropy": [self.entropy.n, self.entropy.first, self.entropy.second],
            "histogram": self.histogram.tolist(),
            "classes": self.classes.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Any, n_classes: int, n_bins: int, place: str) -> Counts:
        """What `to_dict` made, or ValueError that says what is wrong with it."""
        counts = cls(n_classes, n_bins)
        data = mapping(data, place, list(counts.to_dict()))
        values = [[data[name]] for name in _TALLIES] + [data["histogram"], data["classes"]]
        names, lengths = (*_TALLIES, "histogram", "classes"), (1, 1, 1, 1, n_bins, n_classes)
        numbers = []
        for name, length, value in zip(names, lengths, values, strict=True):
            numbers += naturals(value, length, f"{place}.{name}")
            if max(numbers) >= 2**63:
                raise ValueError(f"state: expected numbers below 2^63 in {place}.{name}")
        counts._counts[:] = numbers
        counts._confidence = Moments(*naturals(data["confidence"], 3, f"{place}.confidence"))
        counts.entropy = Moments(*naturals(data["entropy"], 3, f"{place}.entropy"))
        n, first, second = data["confidence"]
        counts.rows = n + counts.nan + counts.invalid
        if not (
            n == counts.histogram.sum() == counts.classes.sum()
            and max(counts.above, counts.below, counts.entropy.n) <= n
            and n * second >= first**2
        ):
            raise ValueError(f"state: the counts in {place} do not agree with each other")
        return counts


# ------------------------------------------------------------------------------------ drift


def drift(recent: Counts, reference: Counts) -> Drift:
    if not recent.confidence.n:
        return Drift(math.nan, math.nan, math.nan)
    p, q = (
        (counts.histogram + 0.5) / (counts.confidence.n + 0.5 * len(counts.histogram))
        for counts in (recent, reference)
    )
    below = (counts.histogram.cumsum() / counts.confidence.n for counts in (recent, reference))
    shares = (counts.classes / counts.confidence.n for counts in (recent, reference))
    return Drift(
        psi=float(((p - q) * np.log(p / q)).sum()),
        ks=float(abs(next(below) - next(below)).max()),
        class_shift=float(abs(next(shares) - next(shares)).sum() / 2),
    )


# ------------------------------------------------------------------- what comes from a file


def mapping(data: Any, place: str, keys: list[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"state: expected a dict in {place}, got {type(data).__name__}")
    if missing := [key for key in keys if key not in data]:
        raise ValueError(f"state: {place} lacks {', '.join(missing)}")
    return data


def sequence(data: Any, place: str, longest: int) -> list[Any]:
    if not isinstance(data, list | tuple) or len(data) > longest:
        raise ValueError(
            f"state: expected a list of at most {longest} in {place}, got {data!r:.60}"
        )
    return list(data)


def naturals(data: Any, length: int, place: str) -> list[int]:
    """A list of so many whole numbers that are not negative."""
    good = isinstance(data, list | tuple) and len(data) == length
    if not good or not all(type(each) is int and each >= 0 for each in data):
        raise ValueError(
            f"state: expected {length} whole numbers >= 0 in {place}, got {data!r:.60}"
        )
    return list(data)
