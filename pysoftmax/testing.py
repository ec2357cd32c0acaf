"""Tests of any softmax, and the checklist of `validate`, as reports and as assertions.

A result is held to the exact one within 4 ULP, and within what no implementation in the
arithmetic of its dtype can avoid: x - max is rounded to half a unit, which the exponential turns
into a relative error of |x - max| u, and the sum of n terms may be off n u (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed. 2002, section 4.2). In half precision the sum is
expected in float32. Results below the smallest normal number may be flushed to 0 in float32 and
float64.
"""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftmax import _arguments as check
from pysoftmax import _extras
from pysoftmax._softmax import softmax
from pysoftmax.validation import (
    FAIL,
    NOT_CHECKED,
    PASS,
    Check,
    Report,
    finfo,
    rounding,
    validate,
)

__all__ = ["assert_softmax", "assert_valid", "check_softmax"]

Array = NDArray[Any]

ANSWERS = "returns floats of the input's shape"
INPUT = "leaves its input as it was"
AXIS = "normalises along the axis of the classes"
ONCE = "is applied once"
FINITE = "finite logits give no NaN or infinity"
RANGE = "probabilities are in [0, 1]"
SUMS = "rows add up to 1"
RANDOM = "ordinary logits"
TIES = "equal logits share"
LONG = "long rows"
EXTREME = "logits of 1e4 and the largest of the dtype"
MASKED = "-inf has probability 0"
SPECIAL = "NaN and +inf spoil their own row, no other"
INTEGERS = "integers do not wrap"

# Every check, and what to do where it fails.
ADVICE = {
    ANSWERS: "wrap it in a function that takes and returns NumPy arrays and keeps shape and dtype",
    INPUT: "work on a copy, as in x = x - x.max(axis, keepdims=True)",
    AXIS: "take maximum and sum along the axis of the classes, with keepdims=True",
    ONCE: "leave out one softmax: its results are no logits",
    FINITE: "subtract the largest logit of the row before the exponential",
    RANGE: "divide the exponentials by their sum",
    SUMS: "divide by the sum of the row, added up in float32 at least",
    RANDOM: "compute exp(x - max) / sum(exp(x - max)) in the dtype of the logits",
    TIES: "treat equal logits alike, whatever their place in the row",
    LONG: "add in float32 at least; in float16 a sum overflows at 65504 and stalls at 2048",
    EXTREME: "subtract the largest logit of the row before the exponential",
    MASKED: "take the maximum over the whole row, and subtract nothing else",
    SPECIAL: "take maximum and sum of each row alone, and do not replace NaN",
    INTEGERS: "convert to float before the subtraction: x - max wraps in unsigned integers",
}

NAN, INF = np.nan, np.inf


def check_softmax(
    function: Callable[..., Any],
    *,
    dtypes: Any = ("float16", "float32", "float64", "uint8"),
    axis: int = -1,
    rng: Any = 0,
) -> Report:
    """Run random and extreme logits through a softmax, and say what it gets wrong.

    Parameters
    ----------
    function : callable
        From an array of NumPy to its softmax along `axis`, as anything that NumPy makes an
        array of. If it has a parameter named axis, `axis` is given to it.
    dtypes : iterable of dtype, default ("float16", "float32", "float64", "uint8")
        What dtypes it is to be tried with: float16, bfloat16, float32, float64, and integers.
        Name those that it will meet, if it does not take all of these.
    axis : int, default -1
        The axis of the classes.
    rng : numpy.random.Generator or int, default 0
        Where random logits come from.

    Returns
    -------
    Report
        A check per property, failed if it does not hold for one array of any dtype; its
        `measured` then shows logits and what came of them. An integer dtype that the function
        refuses by an exception is "not checked".

    Raises
    ------
    TypeError
        If `function` cannot be called; for other dtypes.

    Notes
    -----
    Rows with +inf may be NaN or shared by the infinite logits, rows of nothing but -inf NaN
    or 0. The tolerances are such that any sound implementation passes: 4 ULP, half a unit of
    x - max, and the error bound of a sum.

    Examples
    --------
    >>> import numpy as np
    >>> from pysoftmax import softmax
    >>> from pysoftmax.testing import check_softmax
    >>> check_softmax(softmax, dtypes=["float16", "float32", "float64", "uint8"]).passed
    True
    >>> def naive(x):
    ...     return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    >>> report = check_softmax(naive, dtypes=["float32"])
    >>> report.passed
    False
    >>> report["logits of 1e4 and the largest of the dtype"].measured
    'float32: logits [1e+04, 1e+04, 0] gave [nan, nan, 0]'
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    trial = _Trial(partial(function, axis=axis) if _takes_axis(function) else function)
    generator = np.random.default_rng(rng)
    for dtype in _dtypes(dtypes):
        for case in _cases(dtype, axis, generator):
            trial.run(case)
    return trial.report()


def assert_softmax(function: Callable[..., Any], **options: Any) -> None:
    """`check_softmax` for tests: AssertionError with the table if a check fails.

    Parameters
    ----------
    function : callable
        As for `check_softmax`.
    **options
        As for `check_softmax`.

    Raises
    ------
    AssertionError
        If a check fails.
    TypeError
        As `check_softmax`.

    Examples
    --------
    >>> from pysoftmax import softmax
    >>> from pysoftmax.testing import assert_softmax
    >>> assert_softmax(softmax, axis=0)
    """
    __tracebackhide__ = True
    _assert_passed(check_softmax(function, **options))


def assert_valid(
    probabilities: Any = None, logits: Any = None, labels: Any = None, **options: Any
) -> None:
    """`validate` for tests: AssertionError with the table if a check fails.

    Parameters
    ----------
    probabilities, logits, labels : array_like, optional
        As for `pysoftmax.validate`.
    **options
        As for `pysoftmax.validate`.

    Raises
    ------
    AssertionError
        If a check fails.
    ValueError, TypeError, numpy.exceptions.AxisError
        As `pysoftmax.validate`.

    Examples
    --------
    >>> from pysoftmax.testing import assert_valid
    >>> assert_valid([[0.25, 0.75], [1.0, 0.0]], n_classes=2, activation="softmax")
    """
    __tracebackhide__ = True
    _assert_passed(validate(probabilities, logits, labels, **options))


def _assert_passed(report: Report) -> None:
    __tracebackhide__ = True
    if not report.passed:
        raise AssertionError(f"a check failed\n{report}")


def _takes_axis(function: Callable[..., Any]) -> bool:
    try:
        return "axis" in inspect.signature(function).parameters
    except ValueError:  # some compiled functions have none
        return False


def _dtypes(dtypes: Any) -> list[np.dtype[Any]]:
    """The dtypes by name or as they are, each checked."""
    given = [dtypes] if isinstance(dtypes, str) or not isinstance(dtypes, Iterable) else dtypes
    found = []
    for each in given:
        if isinstance(each, str) and each == "bfloat16":
            each = _extras.load("ml_dtypes", "bfloat16", "bfloat16").bfloat16
        dtype: np.dtype[Any] = np.dtype(each)
        check.result_dtype(dtype)
        if dtype.kind == "b":
            raise TypeError(f"expected dtypes of numbers, got {dtype}")
        found.append(dtype)
    if not found:
        raise ValueError("expected at least one dtype, got none")
    return found


# ------------------------------------------------------------------------------------ cases


@dataclass(frozen=True)
class _Case:
    """Logits to try.

    Attributes
    ----------
    kind : str
        The check that the results are for.
    rows : ndarray, shape (n_rows, n_classes)
        The logits.
    shape : tuple of int
        What the rows are arranged in.
    axis : int
        Where the classes then go.
    allowed : tuple of ndarray
        Results that are right; by default the exact ones.
    """

    kind: str
    rows: Array
    shape: tuple[int, ...]
    axis: int
    allowed: tuple[Array, ...] = ()

    def arranged(self) -> Array:
        """A new array, as it is given to the function."""
        array = self.rows.reshape(*self.shape, self.rows.shape[1])
        return np.array(np.moveaxis(array, -1, self.axis), order="C")

    def by_rows(self, result: Array) -> Array:
        """Probabilities (n_rows, n_classes) in float64."""
        moved = np.moveaxis(result, self.axis, -1).reshape(self.rows.shape)
        return moved.astype(np.float64)


def _cases(dtype: np.dtype[Any], axis: int, rng: np.random.Generator) -> Iterator[_Case]:
    tables = _integers(dtype, rng) if dtype.kind in "iu" else _floats(dtype, rng)
    # As many dimensions as the axis needs, two at least; once one more, all of different lengths.
    ndim = max(2, operator.index(axis) + 1, -axis)
    for kind, values, *allowed in tables:
        rows = np.asarray(values).astype(dtype)
        leading = (len(rows), *(1,) * (ndim - 2))
        yield _Case(kind, rows, leading, axis, tuple(allowed))
        if kind == AXIS:
            stacked = (2, len(rows) // 2, *(1,) * (ndim - 2))
            yield _Case(kind, rows, stacked, axis)


def _floats(dtype: np.dtype[Any], rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    normal = rng.standard_normal
    yield AXIS, 3 * normal((10, 4))
    yield RANDOM, normal((4, 1))
    yield RANDOM, 3 * normal((7, 10))
    yield RANDOM, 30 * normal((4, 33))
    yield RANDOM, 3 * normal((2, 1000))
    yield TIES, rng.integers(0, 3, (6, 37))
    yield LONG, np.zeros((2, 4097))
    yield LONG, np.zeros((1, 70_000))
    yield LONG, normal((1, 70_000))
    for big in (1e4, float(finfo(dtype).max)):
        ties = [[big, big, 0], [-big, -big, -big], [big, big, -INF]]
        yield EXTREME, [*ties, [big, -big, 0], [0, -big, 0], [-big, 0, 1]]
    yield MASKED, [[-INF, 0, 1], [0, -INF, -INF], [1, 1, -INF]]
    # The last row is an ordinary one.
    logits = [[NAN, 0, 1], [INF, 0, 1], [INF, INF, 0], [-INF, -INF, -INF], [0, 0, 0]]
    nothing, third = [NAN] * 3, [1 / 3] * 3
    limits = [nothing, [1, 0, 0], [0.5, 0.5, 0], [0, 0, 0], third]
    yield SPECIAL, logits, np.array([nothing] * 4 + [third]), np.array(limits)


def _integers(dtype: np.dtype[Any], rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    yield INTEGERS, np.array([[1, 2, high], [low, 0, high], [high, high, low], [0, 1, 2]], dtype)
    yield INTEGERS, rng.integers(0, 20, (6, 9))
    yield INTEGERS, rng.integers(low, high, (3, 50), dtype, endpoint=True)


# ------------------------------------------------------------------------------------ trial


class _Trial:
    """A function, and what has been found of it so far."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.tried = dict.fromkeys(ADVICE, 0)
        self.failed: dict[str, tuple[str, str | None]] = {}
        self.refused = ""
        self.error = dict.fromkeys(ADVICE, 0.0)

    def run(self, case: _Case) -> None:
        """Call the function once, and look at what it returns."""
        logits = case.arranged()
        before = logits.tobytes()
        try:
            # What counts is the result: a warning tells nothing that it does not.
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = np.asarray(self.function(logits))
        except Exception as error:
            what = f"{case.rows.dtype} of shape {logits.shape}: {type(error).__name__}: {error}"
            if case.kind == INTEGERS:
                self.refused = self.refused or f"refused {what}"
            else:
                self.note(ANSWERS, False, what)
            return
        self.note(INPUT, logits.tobytes() == before, self._title(case))
        if self._answers(case, logits, result):
            with np.errstate(all="ignore"):
                self._look(case, result)

    def note(self, name: str, good: bool, what: str, where: str | None = None) -> None:
        """One more array for a check; the first that fails is kept."""
        self.tried[name] += 1
        if not good:
            self.failed.setdefault(name, (what, where))

    def report(self) -> Report:
        """What has been found."""
        return Report(tuple(self._check(name) for name in ADVICE))

    def _check(self, name: str) -> Check:
        if name in self.failed:
            measured, where = self.failed[name]
            return Check(name, FAIL, measured, where, ADVICE[name])
        if name == INTEGERS and self.refused:
            return Check(name, NOT_CHECKED, self.refused)
        if not self.tried[name]:
            return Check(name, NOT_CHECKED, "none was tried, or none was answered")
        measured = f"{self.tried[name]} arrays"
        if self.error[name]:
            measured += f", largest error {self.error[name]:.2g} of the tolerance"
        return Check(name, PASS, measured)

    def _answers(self, case: _Case, logits: Array, result: Array) -> bool:
        """Whether shape and dtype allow for a closer look."""
        given, got = case.rows.dtype, result.dtype
        floats = got.name in check.HALVES or got.name in check.REALS
        kept = floats and (given.kind in "iu" or finfo(got).eps <= finfo(given).eps)
        good = kept and result.shape == logits.shape
        self.note(ANSWERS, good, f"{given} of shape {logits.shape} gave {got} of {result.shape}")
        return floats and result.shape == logits.shape

    def _look(self, case: _Case, result: Array) -> None:
        p, x = case.by_rows(result), case.rows.astype(np.float64)
        exact = softmax(x)
        dtype = result.dtype if case.rows.dtype.kind in "iu" else case.rows.dtype
        if case.kind != SPECIAL:
            self._note(FINITE, case, p, np.isfinite(p))
            self._note(RANGE, case, p, ~((p < 0) | (p > 1)))
            # Rows with NaN are told of above.
            off = np.nan_to_num(abs(p.sum(axis=-1) - 1)) / rounding(dtype, x.shape[1])
            self._note(SUMS, case, p, off <= 1, off)
        if case.kind == AXIS:
            self._look_at_axis(case, result, p, dtype)
            close = _off(p, softmax(exact), x, dtype) <= 1
            self.note(ONCE, not close.all(), f"{self._title(case)}: softmax of a softmax")
        kind = RANDOM if case.kind == AXIS else case.kind
        if case.allowed:
            off = np.min([_off(p, right, x, dtype).max(axis=-1) for right in case.allowed], axis=0)
        else:
            off = _off(p, exact, x, dtype)
        self._note(kind, case, p, off <= 1, off)

    def _look_at_axis(self, case: _Case, result: Array, p: Array, dtype: np.dtype[Any]) -> None:
        """Whether results add up to 1 along other axes and not along that of the classes."""
        values = result.astype(np.float64)
        others = [*range(values.ndim), None]
        del others[case.axis if case.axis >= 0 else values.ndim + case.axis]
        tolerance = rounding(dtype, values.size)
        wrong = [
            other
            for other in others
            if (other is None or values.shape[other] > 1)
            and (abs(values.sum(axis=other) - 1) <= tolerance).all()
        ]
        right = (abs(p.sum(axis=-1) - 1) <= tolerance).all()
        what = f"{self._title(case)}: adds up to 1 along axis {wrong and wrong[0]}, not {case.axis}"
        self.note(AXIS, bool(right or not wrong), what)

    def _note(
        self, name: str, case: _Case, p: Array, good: Array, off: Array | None = None
    ) -> None:
        """Note whether all is good, or the first row that is not, with its logits."""
        if good.all():
            if off is not None:
                self.error[name] = max(self.error[name], float(off.max()))
            self.note(name, True, "")
            return
        row, *column = map(int, np.unravel_index(int((~good).argmax()), good.shape))
        shown = slice(column[0], column[0] + 1) if column and p.shape[1] > 4 else slice(None)
        logits, got = (_shown(each[row, shown]) for each in (case.rows.astype(np.float64), p))
        what = f"{case.rows.dtype}: logits {logits} gave {got}"
        if name == SUMS:
            what += f", sum {p[row].sum():.6g}"
        elif column and p.shape[1] > 4:
            what += f" for class {column[0]}"
        self.note(name, False, what, f"row {row} of {len(p)}, {p.shape[1]} classes")

    def _title(self, case: _Case) -> str:
        return f"{case.rows.dtype} of shape {case.arranged().shape}"


def _off(p: Array, right: Array, x: Array, dtype: np.dtype[Any]) -> Array:
    """Differences in units of what is tolerated; 0 where NaN is right."""
    info, wide = finfo(dtype), finfo(check.summing_dtype(dtype))
    distance = x.max(axis=-1, keepdims=True) - x
    # Where it is infinite, the probability is 0.
    distance[~np.isfinite(distance)] = 0
    relative = float(info.eps) * (4 + distance / 2) + x.shape[1] * float(wide.eps) / 2
    flushed = info.smallest_subnormal if dtype.name in check.HALVES else info.smallest_normal
    off: Array = abs(p - right) / (right * relative + float(flushed))
    return np.where(np.isnan(right) & np.isnan(p), 0, np.nan_to_num(off, nan=np.inf))


def _shown(row: Array) -> str:
    """A few numbers of a row."""
    few = ", ".join(f"{value:.4g}" for value in row[:4])
    return f"[{few}, ...]" if len(row) > 4 else f"[{few}]"
