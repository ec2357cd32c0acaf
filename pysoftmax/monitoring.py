"""An eye on the confidence of a classifier in production: `ConfidenceMonitor`.

The confidence of a row is its largest probability. What a monitor knows are counts and exact sums
(`_confidence.py`), in memory that does not grow with the rows.
"""

from __future__ import annotations

import logging
import math
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftmax import _arguments as check
from pysoftmax import _extras
from pysoftmax._confidence import Counts, Cuts, Drift, drift, mapping, naturals, sequence
from pysoftmax._dispatch import backend_of, beyond_memory, library_of, memory_of
from pysoftmax._labelled import host
from pysoftmax._monitor_views import Collector, Point, draw
from pysoftmax._rows import (
    LARGE_BLOCK,
    SLACK,
    backend_of_blocks,
    chunks,
    classes_last,
    in_memory,
    is_lazy,
)
from pysoftmax._softmax import softmax
from pysoftmax.backends import Array, Backend
from pysoftmax.backends import numpy as numpy_backend
from pysoftmax.backends.numpy import entropy, fast_softmax_and_top, rows_to_count

__all__ = ["LEVELS", "Alert", "ConfidenceMonitor", "ConfidenceSummary", "Drift"]

Floats = NDArray[np.float64]

_logger = logging.getLogger(__name__)

PIECES = 10  # that a window consists of
_PLAIN = (np.dtype(np.float32), np.dtype(np.float64))  # what is taken in as it is
_POINTS = 500  # of the past that are kept for a picture

FORMAT, VERSION = "pysoftmax.ConfidenceMonitor", 1

# Alert -> raised beyond the first, cleared once back at the second. Those of the mean confidence,
# which depend on `high` and `low`, are added by a monitor.
LEVELS = {
    "too_confident": (0.95, 0.90),
    "too_uncertain": (0.20, 0.10),
    "invalid": (0.0, 0.0),
    "class_shift": (0.20, 0.10),
    "psi": (0.25, 0.10),
    "ks": (0.20, 0.10),
}
_MARGIN = 0.02  # between raising and clearing an alert of the mean confidence
_DRIFT = ("class_shift", "psi", "ks")
# The distance of the class shares of n rows to those that they come from is about
# 0.4 sqrt(K / n) by chance alone: with so many, less than what clears the alert.
_ROWS_PER_CLASS = 20


@dataclass(frozen=True)
class Alert:
    """An alert, and what it looks at.

    Parameters
    ----------
    name : str
        One of `LEVELS`, "mean_high" or "mean_low".
    active : bool
        Whether it is raised.
    value : float
        What it looks at, of the recent rows.
    raise_at, clear_at : float
        It is raised once the value is beyond the first, and cleared once that is back at the
        second. If the first is the lower one, beyond is below.
    """

    name: str
    active: bool
    value: float
    raise_at: float
    clear_at: float


@dataclass(frozen=True, eq=False)
class ConfidenceSummary:
    """What is known of some rows: ``monitor.total`` or ``monitor.recent``.

    Parameters
    ----------
    count : int
        Rows of which the following tells; without those that are NaN or invalid.
    n_nan : int
        Rows with a NaN.
    n_invalid : int
        Rows whose largest entry cannot be that of a distribution: above 1 or below 1 divided
        by the number of classes, by more than 1%.
    mean, std : float
        Of the confidence; the standard deviation as `numpy.std` has it. NaN without rows, as
        all that follows.
    chance_corrected : float
        ``(mean - 1/K) / (1 - 1/K)`` for K classes: 0 if all classes are equally probable.
    share_above, share_below : float
        Shares of the rows whose confidence is above `high`, and below `low`.
    n_entropy : int
        Rows whose entropy was measured.
    entropy, normalized_entropy : float
        Mean of ``-sum(p * log(p))`` in nats, and the same over ``log(K)``, in [0, 1].
    histogram : ndarray of int64, shape (n_bins,)
        Rows by confidence, in equal bins of [0, 1] that include their upper edge.
    class_shares : ndarray of float64, shape (n_classes,)
        How often each class was the most probable one.
    """

    count: int
    n_nan: int
    n_invalid: int
    mean: float
    std: float
    chance_corrected: float
    share_above: float
    share_below: float
    n_entropy: int
    entropy: float
    normalized_entropy: float
    histogram: NDArray[np.int64]
    class_shares: Floats

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: arrays as lists, and None for NaN."""

        def plain(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return [plain(each) for each in value.tolist()]
            return None if value != value else value

        return {name: plain(value) for name, value in vars(self).items()}


class ConfidenceMonitor:
    """Streaming statistics of the confidence of a classifier, with alerts and drift.

    `update` may be called from any number of threads, with batches of any size. Memory is
    constant: it depends on the numbers of classes and bins, not on the rows.

    Parameters
    ----------
    n_classes : int
        K, at least 2.
    high, low : float, default 0.95 and 0.20
        Confidences above which a row is called too confident, and below which too uncertain;
        also what the alerts of the mean look at. As no confidence is below 1/K, a `low` of
        0.20 can tell nothing of 5 classes or fewer: see `chance_corrected`.
    window : int, default 50000
        How many recent rows the alerts look at. They are counted in ten pieces, of which the
        oldest is dropped as a whole: nine to ten tenths of `window` are looked at.
    reference : ConfidenceMonitor or dict, optional
        A monitor, or its `state_dict`, whose total the recent rows are compared with.
    chance_corrected : bool, default False
        Whether `high` and `low` are chance-corrected confidences, (c - 1/K) / (1 - 1/K), which
        run from 0 to 1 for any number of classes.
    n_bins : int, default 20
        Of the histogram.
    every : int, default 1
        Look at every so many-th row of the stream, for less time (docs/guide.md has a table). A
        prime number meets no period of the stream.
    entropy_every : int, default 1009
        Measure the entropy of every so many-th of these rows, which costs a logarithm for
        each class. 0 for none.
    levels : dict, optional
        Where alerts are raised and cleared, by name, in place of `LEVELS`: for instance
        ``{"psi": (0.3, 0.2)}``.
    min_rows : int, default 500
        No alert is raised or cleared as long as the window has fewer rows: their statistics
        would be noise. At most nine tenths of `window`.

    See Also
    --------
    fit_temperature : Confidence that means what it says.

    Notes
    -----
    The confidence is rounded to 2^-48; the sums are exact. So the statistics are the same, bit
    for bit, however rows are split into batches or shared among monitors that are merged
    (`every` and `entropy_every` being 1; otherwise other rows are looked at).

    An alert is judged whenever a tenth of the window is complete, and by `alerts`. It is
    raised once its value is beyond one level and cleared once that is back at another, so
    that it does not flutter. The logger "pysoftmax.monitoring" gets a warning when one is
    raised, and an info when it is cleared.

    ============== ================================================== ============ ==========
    alert          value, of the recent rows                          raised       cleared
    ============== ================================================== ============ ==========
    mean_high      mean confidence                                    above high   high - 0.02
    mean_low       mean confidence                                    below low    low + 0.02
    too_confident  share above `high`                                 above 0.95   0.90
    too_uncertain  share below `low`                                  above 0.20   0.10
    invalid        share of NaN and invalid rows                      above 0      0
    class_shift    `Drift.class_shift`                                above 0.20   0.10
    psi            `Drift.psi`                                        above 0.25   0.10
    ks             `Drift.ks`                                         above 0.20   0.10
    ============== ================================================== ============ ==========

    Examples
    --------
    >>> from pysoftmax import ConfidenceMonitor, softmax
    >>> monitor = ConfidenceMonitor(3)
    >>> monitor.update(softmax([[4.0, 1.0, 0.0], [0.0, 0.5, 0.0]]))
    >>> monitor.update(logits=[[0.0, 9.0, 1.0]])
    >>> monitor.total.count, round(monitor.total.mean, 4), monitor.total.class_shares.round(2)
    (3, 0.7959, array([0.33, 0.67, 0.  ]))
    """

    def __init__(
        self,
        n_classes: int,
        *,
        high: float = 0.95,
        low: float = 0.20,
        window: int = 50_000,
        reference: ConfidenceMonitor | Mapping[str, Any] | None = None,
        chance_corrected: bool = False,
        n_bins: int = 20,
        every: int = 1,
        entropy_every: int = 1009,
        levels: Mapping[str, tuple[float, float]] | None = None,
        min_rows: int = 500,
    ) -> None:
        self.n_classes = _at_least(2, "n_classes", n_classes)
        self.high = check.check_real("high", high, 0, 1)
        self.low = check.check_real("low", low, 0, 1)
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        self.window = _at_least(PIECES, "window", window)
        self._piece = self.window // PIECES
        self.chance_corrected = bool(chance_corrected)
        self.n_bins = _at_least(2, "n_bins", n_bins)
        self.every = _at_least(1, "every", every)
        self.entropy_every = _at_least(0, "entropy_every", entropy_every)
        # No more than the window holds when a piece was dropped.
        self.min_rows = min(_at_least(1, "min_rows", min_rows), self.window - self._piece)
        if self.n_bins > 1 << 12:
            raise ValueError(f"n_bins must be at most 4096, got {n_bins}")
        self.levels = self._levels(levels or {})
        chance, rest = (1 / self.n_classes, 1 - 1 / self.n_classes)
        low, high = (
            chance + cut * rest if self.chance_corrected else cut for cut in (self.low, self.high)
        )
        self._cuts = Cuts((1 - SLACK) * chance, 1 + SLACK, low, high)
        self._reference = None if reference is None else self._reference_of(reference)
        self._lock = threading.Lock()
        self._clear()

    def _levels(self, given: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        levels = {
            "mean_high": (self.high, self.high - _MARGIN),
            "mean_low": (self.low, self.low + _MARGIN),
            **LEVELS,
        }
        for name, pair in given.items():
            if name not in levels:
                raise ValueError(f"levels must be of {', '.join(levels)}, got {name!r}")
            if len(pair) != 2:
                raise ValueError(
                    f"levels[{name!r}] must be two numbers, where to raise and where to clear, "
                    f"got {pair!r}"
                )
            raised, cleared = (
                check.check_real(f"levels[{name!r}]", level, -math.inf, math.inf) for level in pair
            )
            if (cleared < raised) if name == "mean_low" else (raised < cleared):
                raise ValueError(
                    f"levels[{name!r}]: expected what clears the alert not to be beyond what "
                    f"raises it, got {pair}"
                )
            levels[name] = raised, cleared
        return levels

    def _clear(self) -> None:
        self._offered = 0
        self._done = self._none()
        self._pieces: deque[Counts] = deque(maxlen=PIECES - 1)
        self._closed = self._none()  # their sum
        self._current = self._none()
        self._history: deque[Point] = deque(maxlen=_POINTS)
        self._active: set[str] = set()
        self._news: list[Alert] = []
        self._pushed = 0

    def _none(self) -> Counts:
        return Counts(self.n_classes, self.n_bins)

    def __repr__(self) -> str:
        return f"<ConfidenceMonitor of {self.n_classes} classes, {self.total.count} rows>"

    # ---------------------------------------------------------------------------- watching

    def update(
        self,
        probabilities: Any = None,
        *,
        logits: Any = None,
        axis: int = -1,
        temperature: Any = 1.0,
    ) -> None:
        """Take in a batch of probabilities, or of logits.

        Parameters
        ----------
        probabilities : array_like
            Of each class along `axis`, dtypes as for `softmax`. That rows add up to 1 is not
            checked (`validate` does), only that their largest entry can be that of a
            distribution. Rows for which it cannot be are counted apart.
        logits : array_like
            In place of `probabilities`, whose softmax is then computed of the rows that are
            looked at.
        axis : int, default -1
            The classes.
        temperature : float or array_like, default 1.0
            What the logits are divided by, as for `softmax`.

        Raises
        ------
        ValueError
            Unless there are either probabilities or logits, with `n_classes` along `axis` and
            without masked entries; for a temperature that `softmax` refuses, or that comes
            with probabilities.
        TypeError, numpy.exceptions.AxisError
            As `softmax`.

        Examples
        --------
        >>> from pysoftmax import ConfidenceMonitor
        >>> monitor = ConfidenceMonitor(2)
        >>> monitor.update([[0.9, 0.1], [float("nan"), 0.5], [3.0, -1.0]])
        >>> monitor.total.count, monitor.total.n_nan, monitor.total.n_invalid
        (1, 1, 1)
        """
        usual = logits is None and axis == -1 and type(temperature) is float and temperature == 1
        if usual and type(probabilities) is np.ndarray and self._takes(probabilities):
            return
        if (probabilities is None) == (logits is None):
            raise ValueError("expected either probabilities or logits")
        if logits is None and not (isinstance(temperature, int | float) and temperature == 1):
            raise ValueError("temperature divides logits: give these, or no temperature")
        name, values = ("probabilities", probabilities) if logits is None else ("logits", logits)
        if type(values) is not np.ndarray:
            library = library_of(**{name: values}).name
            if library == "xarray":
                given = {name: values, "temperature": temperature, "axis": axis}
                self.update(**beyond_memory().unlabelled(given, (name,))[0])
                return
            if library == "dask":
                self._update_lazily(name, values, axis, temperature)
                return
        backend, rows, axis = self._given(name, values, axis)
        divisor: Any = 1.0
        if logits is not None:
            shape = check.reduced_shape(np.shape(rows), (axis,))
            divisor = check.check_temperature(backend, temperature, shape)
        if axis != 1 or rows.ndim != 2:
            rows = classes_last(rows, axis)
        n = math.prod(rows.shape[:-1])
        with self._lock:
            position = self._offered
            self._offered += n
        begin = 0
        small = rows.ndim == 2 and rows.size <= LARGE_BLOCK
        for block in (rows,) if small else _blocks(rows):
            skip = -(position + begin) % self.every
            watched = block[skip :: self.every]
            if logits is None:
                self._watch(backend, watched)
            else:
                degrees = divisor
                if not isinstance(divisor, float):
                    end = begin + len(block)
                    degrees = divisor.reshape(-1)[begin:end][skip :: self.every]
                self._watch_logits(backend, watched, degrees)
            begin += len(block)

    def _takes(self, rows: NDArray[Any]) -> bool:
        """Take in a small batch of plain probabilities; False if it is none."""
        n = rows_to_count(rows, self.n_classes)
        if n < 0:
            return False
        with self._lock:
            begin, step = -self._offered % self.every, min(self.every, n)
            self._offered += n
            self._count(rows, begin, step)
        if self._news:
            self._tell()
        return True

    def softmax(
        self,
        x: Any,
        axis: int = -1,
        *,
        temperature: Any = 1.0,
        where: Any = None,
        dtype: Any = None,
        out: Any = None,
    ) -> Any:
        """Softmax of logits, taken in while it is still in the cache.

        For `softmax` followed by `update`, in less time (docs/guide.md): where the logits are a
        C-contiguous NumPy array of float32 or float64 with the classes along its last axis,
        `every` is 1 and nothing is masked, probabilities are not read from memory again.

        Parameters
        ----------
        x, axis, temperature, where, dtype, out
            As for the function `softmax`, with `n_classes` along a single `axis`. No lazy array.

        Returns
        -------
        ndarray
            What ``softmax`` returns, bit for bit.

        Raises
        ------
        TypeError, ValueError, numpy.exceptions.AxisError
            As the function, and as `update`; nothing is taken in and nothing is written then.

        Examples
        --------
        >>> from pysoftmax import ConfidenceMonitor
        >>> monitor = ConfidenceMonitor(3)
        >>> monitor.softmax([[2.1, 0.8, -1.3]]).round(4)
        array([[0.7658, 0.2087, 0.0256]])
        >>> monitor.total.count, round(monitor.total.mean, 4)
        (1, 0.7658)
        """
        plain = type(x) is np.ndarray and where is None and dtype is None
        if plain and self.every == 1:
            if axis != -1 or x.shape[-1:] != (self.n_classes,):
                self._axis("x", x.shape, axis)
            found = fast_softmax_and_top(x, axis, temperature, out)
            if found is not None:
                probabilities, confidence, labels = found
                with self._lock:
                    self._offered += len(labels)
                self._see(confidence, labels, probabilities.reshape(-1, self.n_classes))
                return probabilities
        if not (plain and axis == -1 and rows_to_count(x, self.n_classes) >= 0):
            self._check_softmax(x, axis)
        probabilities = softmax(x, axis, temperature=temperature, where=where, dtype=dtype, out=out)
        self.update(probabilities, axis=axis)
        return probabilities

    def _check_softmax(self, x: Any, axis: Any) -> None:
        """Raise for logits that `update` would not take in, before anything is written."""
        if is_lazy(x):
            raise TypeError(
                f"x must be in memory, got a lazy {type(x).__name__}: update takes those"
            )
        if library_of(x=x).name != "xarray":
            self._given("x", x, axis)

    def _update_lazily(self, name: str, values: Any, axis: Any, temperature: Any) -> None:
        """Take in a dask.array, a chunk of rows after the other."""
        backend = backend_of_blocks(**{name: values})
        axis = self._axis(name, values.shape, axis)
        rows = classes_last(values, axis)
        divisor = check.check_temperature(
            backend, in_memory(temperature), check.reduced_shape(values.shape, (axis,))
        )
        for part, (block,) in chunks([rows], rows.ndim - 1):
            degrees = divisor
            if not isinstance(divisor, float):
                degrees = divisor.reshape(rows.shape[:-1])[part]
            self.update(**{name: block}, temperature=degrees)

    def _axis(self, name: str, shape: tuple[int, ...], axis: Any) -> int:
        """The axis of the classes, of which there must be as many as the monitor has."""
        position = check.normalize_axis(axis, len(shape))
        if shape[position] != self.n_classes:
            raise ValueError(
                f"{name} must have {self.n_classes} classes along axis {position}, "
                f"got shape {shape}"
            )
        return position

    def _given(self, name: str, values: Any, axis: Any) -> tuple[Backend, Array, int]:
        """What is given, as an array of a backend with the right number of classes."""
        plain = type(values) is np.ndarray and values.dtype in _PLAIN
        memory = None if plain else memory_of(**{name: values})
        if memory is not None:
            values = memory.inside({name: values})[name]
        backend: Backend = numpy_backend if plain else backend_of(**{name: values})
        array = values
        if not plain:
            array = check.unmasked(
                backend,
                name,
                values,
                "for a class that takes no part give the logit -inf or the probability 0",
            )
            check.result_dtype(array.dtype)
        return backend, array, self._axis(name, array.shape, axis)

    def _watch(self, backend: Backend, block: Array) -> None:
        """Take rows of probabilities in."""
        if not len(block):
            return
        if block.dtype not in _PLAIN:
            wanted = check.summing_dtype(check.result_dtype(block.dtype))
            block = block.astype(wanted.newbyteorder("="))
        block = backend.namespace.ascontiguousarray(block)
        top = getattr(backend, "top", None)
        confidence, labels = top(block) if top else _top(backend.namespace, block)
        self._see(confidence, labels, block)

    def _watch_logits(self, backend: Backend, block: Array, degrees: Any) -> None:
        """Take rows of logits in."""
        found = fast_softmax_and_top(block, -1, degrees, None)
        if found is None:
            self._watch(backend, softmax(block, temperature=degrees))
        else:
            probabilities, confidence, labels = found
            self._see(confidence, labels, probabilities)

    def _see(self, confidence: Floats, labels: NDArray[np.int64], block: Array) -> None:
        """Count rows whose largest entries are known, piece by piece of the window."""
        with self._lock:
            self._count(block, 0, 1, (confidence, labels))
        if self._news:
            self._tell()

    def _count(
        self,
        rows: Array,
        begin: int,
        step: int,
        tops: tuple[Floats, NDArray[np.int64]] | None = None,
    ) -> None:
        """Count rows begin, begin + step, ..., or those whose largest entries are known: all.

        Piece by piece of the window. The lock is held.
        """
        while begin < len(rows):
            counts = self._current
            room = min(max(self._piece - counts.rows, 1), counts.room())
            if tops is None:
                seen = counts.see_rows(rows, begin, step, room, self._cuts)
            else:
                seen = min(room, len(rows) - begin)
                confidence, labels = tops
                end = begin + seen
                counts.see(confidence[begin:end], labels[begin:end], self._cuts)
            self._measure(rows, begin, step, seen)
            begin += seen * step
            self._remember_if_complete()

    def _measure(self, block: Array, begin: int, step: int, seen: int) -> None:
        """Count the entropies that are due of rows begin, begin + step, ..., so many."""
        every, first = self.entropy_every, 0
        if every and (first := -self._pushed % every) < seen:
            for k in range(first, seen, every):
                row = host(block[begin + k * step])
                measured = entropy(row, self._cuts.lowest, self._cuts.highest)
                if measured == measured:
                    # Above 1 if the row does not add up to 1, which is not checked.
                    normalized = measured / math.log(self.n_classes)
                    self._current.entropy.see(min(normalized, 1.0))
        self._pushed += seen

    def _tell(self) -> None:
        """Log what happened, without the lock: a handler may ask the monitor."""
        with self._lock:
            news, self._news = self._news, []
        for alert in news:
            values = alert.name, alert.value
            if alert.active:
                _logger.warning("alert %s raised: %.4g is beyond %g", *values, alert.raise_at)
            else:
                _logger.info("alert %s cleared: %.4g is back at %g", *values, alert.clear_at)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Hold the lock, and tell afterwards what happened."""
        with self._lock:
            yield
        self._tell()

    def _remember_if_complete(self) -> None:
        """If a piece of the window is complete, judge that, close it, and begin another."""
        if self._current.rows < self._piece:
            return
        self._closed.add(self._current)
        self._judge(self._closed)
        self._history.append(self._point())
        self._done.add(self._current)
        if len(self._pieces) == PIECES - 1:
            self._closed.add(self._pieces[0], -1)
        self._pieces.append(self._current)
        self._current = self._none()

    def _point(self) -> Point:
        """The newest piece, as it is drawn."""
        piece, n = self._current, self._current.confidence.n
        alerts = tuple(sorted(self._active))
        if not n:
            return Point(time.time(), piece.rows, None, None, None, None, alerts)
        mean, std = piece.confidence.mean, piece.confidence.std
        return Point(time.time(), piece.rows, mean, std, piece.above / n, piece.below / n, alerts)

    # ---------------------------------------------------------------------------- reading

    @property
    def total(self) -> ConfidenceSummary:
        """All rows, as a `ConfidenceSummary`."""
        return self._read(self._all)

    @property
    def recent(self) -> ConfidenceSummary:
        """The rows in the window, as a `ConfidenceSummary`."""
        return self._read(self._last)

    def _read(self, counts: Callable[[], Counts]) -> ConfidenceSummary:
        with self._counted():
            return self._summary(counts())

    def _all(self) -> Counts:
        return self._none().add(self._done).add(self._current)

    def _last(self) -> Counts:
        return self._none().add(self._closed).add(self._current)

    def _close(self) -> None:
        """Sum up the pieces anew, after others were put in their place."""
        self._closed = self._none()
        for piece in self._pieces:
            self._closed.add(piece)

    def _corrected(self, mean: float) -> float:
        chance = 1 / self.n_classes
        return (mean - chance) / (1 - chance)

    def _summary(self, counts: Counts) -> ConfidenceSummary:
        n = counts.confidence.n
        mean = counts.confidence.mean
        normalized = counts.entropy.mean
        shares = np.full(self.n_classes, math.nan) if n == 0 else counts.classes / n
        return ConfidenceSummary(
            count=n,
            n_nan=counts.nan,
            n_invalid=counts.invalid,
            mean=mean,
            std=counts.confidence.std,
            chance_corrected=self._corrected(mean),
            share_above=counts.above / n if n else math.nan,
            share_below=counts.below / n if n else math.nan,
            n_entropy=counts.entropy.n,
            entropy=normalized * math.log(self.n_classes),
            normalized_entropy=normalized,
            histogram=counts.histogram.copy(),
            class_shares=shares,
        )

    def drift(self) -> Drift:
        """How far the recent rows are from the reference.

        Returns
        -------
        Drift
            Named tuple ``(psi, ks, class_shift)``; NaN if there are no recent rows.

        Raises
        ------
        ValueError
            Without a reference.

        Examples
        --------
        >>> from pysoftmax import ConfidenceMonitor
        >>> before = ConfidenceMonitor(2)
        >>> before.update([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])
        >>> monitor = ConfidenceMonitor(2, reference=before.state_dict())
        >>> monitor.update([[0.6, 0.4], [0.9, 0.1]])
        >>> monitor.drift().class_shift, monitor.drift().ks
        (0.5, 0.5)
        """
        if self._reference is None:
            raise ValueError("drift needs a reference: give one to the monitor")
        with self._counted():
            return drift(self._last(), self._reference)

    # ----------------------------------------------------------------------------- alerts

    def alerts(self) -> list[Alert]:
        """Judge the recent rows, and return all alerts, raised or not.

        Returns
        -------
        list of Alert
            In the order of the table above; those of drift only if there is a reference. The
            value is NaN, and the alert stays as it is, as long as there are too few rows:
            `min_rows`, and for "class_shift" also 20 for each class.

        Examples
        --------
        >>> from pysoftmax import ConfidenceMonitor
        >>> monitor = ConfidenceMonitor(2, min_rows=2)
        >>> monitor.update([[0.999, 0.001], [0.002, 0.998]])
        >>> [alert.name for alert in monitor.alerts() if alert.active]
        ['mean_high', 'too_confident']
        """
        with self._counted():
            values = self._judge(self._last())
            return [self._alert(name, value) for name, value in values.items()]

    def _judge(self, counts: Counts) -> dict[str, float]:
        """Raise and clear alerts by what they look at, which is returned."""
        values = self._values(counts)
        for name, value in values.items():
            raised, cleared = self.levels[name]
            sign = -1 if name == "mean_low" else 1
            active = name in self._active
            if not active and sign * value > sign * raised:
                self._active.add(name)
            elif active and sign * value <= sign * cleared:
                self._active.discard(name)
            else:
                continue
            self._news.append(self._alert(name, value))
        return values

    def _alert(self, name: str, value: float) -> Alert:
        return Alert(name, name in self._active, value, *self.levels[name])

    def _values(self, counts: Counts) -> dict[str, float]:
        """What each alert looks at; NaN where there are too few rows."""
        values = dict.fromkeys(self.levels, math.nan)
        n = counts.confidence.n
        if counts.rows >= self.min_rows:
            values["invalid"] = 1 - n / counts.rows
        if n >= self.min_rows:
            mean = counts.confidence.mean
            mean = self._corrected(mean) if self.chance_corrected else mean
            values.update(
                mean_high=mean,
                mean_low=mean,
                too_confident=counts.above / n,
                too_uncertain=counts.below / n,
            )
            if self._reference is not None:
                values.update(drift(counts, self._reference)._asdict())
                if n < _ROWS_PER_CLASS * self.n_classes:
                    values["class_shift"] = math.nan
        if self._reference is None:
            for name in _DRIFT:
                del values[name]
        return values

    # ------------------------------------------------------------------ merging and saving

    def merge(self, other: ConfidenceMonitor) -> None:
        """Add what another monitor has seen, which stays as it is.

        The windows are joined piece by piece, the newest with the newest: the recent rows are
        then those of both. The alerts stay as they are until they are judged again.

        Parameters
        ----------
        other : ConfidenceMonitor
            With the same `n_classes`, `high`, `low`, `window`, `chance_corrected`, `n_bins`,
            `every` and `entropy_every`.

        Raises
        ------
        TypeError, ValueError
            If it is no monitor, or one that counts differently.

        Examples
        --------
        >>> from pysoftmax import ConfidenceMonitor
        >>> first, second = ConfidenceMonitor(2), ConfidenceMonitor(2)
        >>> first.update([[0.75, 0.25]])
        >>> second.update([[0.5, 0.5]])
        >>> first.merge(second)
        >>> first.total.count, first.total.mean
        (2, 0.625)
        """
        if not isinstance(other, ConfidenceMonitor):
            raise TypeError(f"expected a ConfidenceMonitor, got {type(other).__name__}")
        self._same_settings(other._settings(), "the other monitor")
        # A copy, so that never both locks are held: two may merge each other.
        self._join(self._parsed(other.state_dict()))

    def _join(self, other: ConfidenceMonitor) -> None:
        with self._counted():
            self._offered += other._offered
            self._done.add(other._done)
            self._current.add(other._current)
            aligned = zip(reversed(self._pieces), reversed(other._pieces), strict=False)
            for own, others in aligned:
                own.add(others)
            missing = len(other._pieces) - len(self._pieces)
            self._pieces.extendleft(list(other._pieces)[: max(missing, 0)][::-1])
            self._close()
            together = sorted([*self._history, *other._history], key=lambda point: point.time)
            self._history = deque(together, maxlen=_POINTS)
            self._remember_if_complete()

    def _settings(self) -> dict[str, Any]:
        """What two monitors must have in common to be merged."""
        names = (
            "n_classes",
            "n_bins",
            "high",
            "low",
            "chance_corrected",
            "window",
            "every",
            "entropy_every",
        )
        return {name: getattr(self, name) for name in names}

    def _same_settings(self, theirs: Mapping[str, Any], what: str) -> None:
        for name, own in self._settings().items():
            if theirs.get(name) != own:
                raise ValueError(
                    f"{what} must have {name}={own!r} as this monitor has, got {theirs.get(name)!r}"
                )

    def state_dict(self) -> dict[str, Any]:
        """All that the monitor knows, as what JSON has: settings, counts, alerts and history.

        Returns
        -------
        dict
            For `load_state_dict`, or as the `reference` of another monitor. The sums are whole
            numbers of more than 64 bits. The reference, `levels` and `min_rows` are not in it.

        Examples
        --------
        >>> import json
        >>> from pysoftmax import ConfidenceMonitor
        >>> monitor = ConfidenceMonitor(2)
        >>> monitor.update([[0.75, 0.25]])
        >>> text = json.dumps(monitor.state_dict())
        >>> again = ConfidenceMonitor(2)
        >>> again.load_state_dict(json.loads(text))
        >>> again.total.mean
        0.75
        """
        with self._counted():
            return {
                "format": FORMAT,
                "version": VERSION,
                "settings": self._settings(),
                "offered": self._offered,
                "done": self._done.to_dict(),
                "pieces": [piece.to_dict() for piece in self._pieces],
                "current": self._current.to_dict(),
                "active": sorted(self._active),
                "history": [list(point) for point in self._history],
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another monitor was; what this one knew is lost.

        Parameters
        ----------
        state : dict
            What `state_dict` returned, of a monitor with the same settings as for `merge`.

        Raises
        ------
        ValueError
            For a state of other settings or versions, and for one that is damaged. The monitor
            is then as it was.
        """
        other = self._parsed(state)
        with self._lock:
            for name in ("_offered", "_done", "_pieces", "_current", "_active", "_history"):
                setattr(self, name, getattr(other, name))
            self._close()
            self._pushed = self._all().rows

    def _parsed(self, state: Any) -> ConfidenceMonitor:
        """A monitor with this one's settings and that state, checked."""
        state = _checked(state)
        self._same_settings(state["settings"], "the state")
        other = ConfidenceMonitor(**self._settings())
        sizes = self.n_classes, self.n_bins
        other._offered = naturals([state["offered"]], 1, "offered")[0]
        other._done = Counts.from_dict(state["done"], *sizes, "done")
        other._current = Counts.from_dict(state["current"], *sizes, "current")
        for k, piece in enumerate(sequence(state["pieces"], "pieces", PIECES - 1)):
            other._pieces.append(Counts.from_dict(piece, *sizes, f"pieces[{k}]"))
        active = sequence(state["active"], "active", len(self.levels))
        if not all(name in list(self.levels) for name in active):
            raise ValueError(f"state: active must be of {', '.join(self.levels)}, got {active}")
        other._active = set(active)
        for k, point in enumerate(sequence(state["history"], "history", _POINTS)):
            other._history.append(_point(point, f"history[{k}]"))
        return other

    def _reference_of(self, reference: ConfidenceMonitor | Mapping[str, Any]) -> Counts:
        """The total of a monitor or of its state."""
        if isinstance(reference, ConfidenceMonitor):
            reference = reference.state_dict()
        if not isinstance(reference, Mapping):
            raise TypeError(
                "reference must be a ConfidenceMonitor or its state, "
                f"got {type(reference).__name__}"
            )
        state = _checked(reference)
        for name in ("n_classes", "n_bins"):
            if state["settings"].get(name) != getattr(self, name):
                raise ValueError(
                    f"the reference must have {name}={getattr(self, name)}, "
                    f"got {state['settings'].get(name)!r}"
                )
        sizes = self.n_classes, self.n_bins
        total = Counts.from_dict(state["done"], *sizes, "done")
        total.add(Counts.from_dict(state["current"], *sizes, "current"))
        if not total.confidence.n:
            raise ValueError("the reference must have seen at least one row")
        return total

    # --------------------------------------------------------------------------- showing

    def prometheus(self, registry: Any = None, *, labels: Mapping[str, str] | None = None) -> Any:
        """Register the monitor with `prometheus_client`, to be asked at every scrape.

        Parameters
        ----------
        registry : prometheus_client.CollectorRegistry, optional
            By default that of the process, which ``prometheus_client.start_http_server`` serves.
        labels : dict, optional
            Of every series. A registry takes one monitor.

        Returns
        -------
        collector
            For ``registry.unregister``.

        Raises
        ------
        ImportError
            Without prometheus_client: the extra ``prometheus`` installs it.

        Notes
        -----
        Of all rows: ``pysoftmax_confidence`` (a histogram), ``pysoftmax_rejected_rows_total``
        by reason, ``pysoftmax_predictions_total`` by class where there are at most 100. Of the
        recent rows, as gauges: ``pysoftmax_recent_…`` with ``rows``, ``confidence_mean``,
        ``confidence_std``, ``share_above``, ``share_below``, ``normalized_entropy``, ``psi``,
        ``ks`` and ``class_shift``; and ``pysoftmax_alert`` by name, 0 or 1.

        Examples
        --------
        >>> from prometheus_client import CollectorRegistry, generate_latest
        >>> from pysoftmax import ConfidenceMonitor
        >>> monitor, registry = ConfidenceMonitor(2), CollectorRegistry()
        >>> collector = monitor.prometheus(registry, labels={"model": "digits"})
        >>> monitor.update([[0.75, 0.25], [0.5, 0.5]])
        >>> for line in generate_latest(registry).decode().splitlines():
        ...     if line.startswith("pysoftmax_recent_confidence_mean"):
        ...         print(line)
        pysoftmax_recent_confidence_mean{model="digits"} 0.625
        """
        purpose = "ConfidenceMonitor.prometheus"
        client = _extras.load("prometheus_client", "prometheus", purpose)
        core = _extras.load("prometheus_client.core", "prometheus", purpose)
        collector = Collector(self, core, dict(labels or {}))
        (client.REGISTRY if registry is None else registry).register(collector)
        return collector

    def plot(self, ax: Any = None, *, x: str = "rows") -> Any:
        """Draw mean confidence, its deviation and the shares above and below, over time.

        A point is a tenth of the window; the last 500 are kept. Where an alert was raised, the
        background is red.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a figure of its own.
        x : {"rows", "time"}, default "rows"
            Whether the abscissa is the number of rows or the time of day.

        Returns
        -------
        matplotlib Axes
            What was drawn in.

        Raises
        ------
        ImportError
            Without matplotlib: the extra ``plot`` installs it.
        ValueError
            For another `x`.
        """
        if x not in ("rows", "time"):
            raise ValueError(f"x must be 'rows' or 'time', got {x!r}")
        with self._counted():
            points = [*self._history]
            if self._current.rows:
                points.append(self._point())
            end = self._all().rows
        if ax is None:
            pyplot = _extras.load("matplotlib.pyplot", "plot", "ConfidenceMonitor.plot")
            ax = pyplot.subplots(figsize=(8, 4), layout="constrained")[1]
        draw(ax, points, end, x, self)
        return ax


def _at_least(lowest: int, name: str, value: int) -> int:
    if operator.index(value) < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")
    return operator.index(value)


def _blocks(rows: Array) -> Iterator[Array]:
    """Rows (..., K) as arrays (n, K), in their order, of which none copies more than a block."""
    if rows.ndim > 2 and getattr(getattr(rows, "flags", None), "c_contiguous", False):
        rows = rows.reshape(-1, rows.shape[-1])
    inner = math.prod(rows.shape[1:])
    if rows.ndim > 2 and inner > LARGE_BLOCK:
        for part in rows:
            yield from _blocks(part)
        return
    step = max(1, LARGE_BLOCK // inner)
    for begin in range(0, len(rows) if inner else 0, step):
        yield rows[begin : begin + step].reshape(-1, rows.shape[-1])


def _top(xp: Any, block: Array) -> tuple[Floats, NDArray[np.int64]]:
    """What `top` of a backend returns, by the functions that all have."""
    labels = block.argmax(axis=1)
    places = xp.arange(0, block.size, block.shape[1])
    places += labels
    largest = host(block.reshape(-1)[places])
    return largest.astype(np.float64), host(labels).astype(np.int64, copy=False)


def _checked(state: Any) -> Mapping[str, Any]:
    """A state as a whole, but for what is in its parts."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise ValueError(f"expected the state of a ConfidenceMonitor, got {state!r:.60}")
    if state.get("version") != VERSION:
        raise ValueError(f"expected a state of version {VERSION}, got {state.get('version')!r}")
    keys = ["settings", "offered", "done", "pieces", "current", "active", "history"]
    mapping(mapping(state, "it", keys)["settings"], "settings", [])
    return state


def _point(data: Any, place: str) -> Point:
    fields = sequence(data, place, len(Point._fields))
    *numbers, alerts = fields if len(fields) == len(Point._fields) else [""]
    if not all(isinstance(each, int | float | None) for each in numbers):
        numbers = []
    if not numbers:
        raise ValueError(f"state: expected {', '.join(Point._fields)} in {place}, got {data!r:.60}")
    return Point._make([*numbers, tuple(alerts)])
