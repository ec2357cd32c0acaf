"""``check_softmax``: sound implementations pass, and each seeded defect is found by its name."""

import functools
import math

import numpy as np
import pytest
import scipy.special

import pysoftmax as ps
from pysoftmax import testing
from pysoftmax.testing import assert_softmax, check_softmax

ALL = ["float16", "float32", "float64", "int8", "uint8", "uint16", "int64", "uint64"]
FLOATS = ["float16", "float32", "float64"]


def failed(report):
    return {check.name for check in report.checks if check.status == "fail"}


def stable(x, axis=-1):
    """What a textbook has, in the dtype of its input."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


# --- what is sound passes -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("axis", [-1, 0, 2, -4])
def test_ours_passes(seed, axis):
    report = check_softmax(ps.softmax, dtypes=ALL, axis=axis, rng=seed)
    assert {check.status for check in report.checks} == {"pass"}


def test_ours_passes_in_bfloat16():
    pytest.importorskip("ml_dtypes")
    assert check_softmax(ps.softmax, dtypes="bfloat16").passed


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("axis", [-1, 0, 2])
@pytest.mark.parametrize("function", [scipy.special.softmax, stable], ids=["SciPy", "textbook"])
def test_others_pass_in_what_they_are_made_for(function, axis, seed):
    assert_softmax(function, dtypes=["float32", "float64"], axis=axis, rng=seed)


@pytest.mark.parametrize("axis", [-1, 0])
def test_torch_passes(axis):
    torch = pytest.importorskip("torch")

    def softmax(x, axis):
        return torch.softmax(torch.from_numpy(x), axis)

    report = check_softmax(softmax, dtypes=[*FLOATS, "uint8"], axis=axis)
    assert report.passed
    # It has no softmax of integers, and says so.
    assert report[testing.INTEGERS].status == "not checked"
    assert report[testing.INTEGERS].measured.startswith("refused uint8 of shape")


def test_float32_results_may_be_flushed_to_0():
    def flushing(x):
        p = ps.softmax(x)
        p[p < np.finfo(p.dtype).smallest_normal] = 0
        return p

    assert_softmax(flushing, dtypes=["float32"])


def test_a_row_with_infinity_may_go_to_the_limit():
    def limit(x):
        p = ps.softmax(x)
        infinite = x == math.inf
        rows = infinite.any(axis=-1)
        p[rows] = infinite[rows] / infinite[rows].sum(axis=-1, keepdims=True)
        p[(x == -math.inf).all(axis=-1)] = 0
        return p

    assert_softmax(limit)


def test_results_need_not_be_arrays():
    assert_softmax(lambda x: ps.softmax(x).tolist(), dtypes=["float64"])


# --- seeded defects -----------------------------------------------------------------------------


def naive(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def clipped(x):
    """Against overflow, but logits that differ beyond the limit do no more."""
    return stable(np.clip(x, -80, 80))


def half_sums(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / np.add.accumulate(e, axis=-1)[..., -1:]


def maximum_of_all(x):
    """Rows far below the largest of all vanish."""
    e = np.exp(x - x.max())
    return e / e.sum(axis=-1, keepdims=True)


def unnormalised(x):
    return np.exp(x - x.max(axis=-1, keepdims=True))


def in_place(x):
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def smoothed(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / (e.sum(axis=-1, keepdims=True) + 1e-5)


def nan_at_minus_infinity(x):
    """0 times -inf, as in masks that multiply."""
    return stable(x) + 0 * x


def nan_replaced(x):
    return np.nan_to_num(ps.softmax(x))


def winner_takes_all(x):
    """Of equal largest logits, the first gets all where they are extreme."""
    p = ps.softmax(x)
    one = np.arange(x.shape[-1]) == x.argmax(axis=-1, keepdims=True)
    return np.where(abs(x).max(axis=-1, keepdims=True) >= 1e4, one, p).astype(p.dtype)


def ties_by_rank(x):
    """Equal logits are told apart by their place."""
    return ps.softmax(x + np.arange(x.shape[-1], dtype=x.dtype) * x.dtype.type(0.01))


def in_float32(x):
    return ps.softmax(x.astype(np.float32)).astype(x.dtype)


def saturating(x):
    """The dtype's largest and smallest differ by more than it can hold."""
    x = np.where(abs(x) > 1e30, np.nan, x)
    return ps.softmax(x)


def of_twice_the_logits(x):
    return ps.softmax(2 * np.clip(x, -1e4, 1e4))


def negative(x):
    """Adds up to 1 all the same."""
    return (1.5 * stable(x) - 0.5 / x.shape[-1]).astype(x.dtype)


@pytest.mark.parametrize(
    ("function", "dtypes", "names"),
    [
        (naive, ["float32"], [testing.FINITE, testing.EXTREME]),
        (naive, ["float64"], [testing.FINITE, testing.EXTREME]),
        (clipped, ["float32"], [testing.EXTREME]),
        (maximum_of_all, ["float32"], [testing.FINITE, testing.RANDOM, testing.SPECIAL]),
        (half_sums, ["float16"], [testing.LONG, testing.SUMS]),
        (stable, ["float16"], [testing.LONG, testing.SUMS]),
        (stable, ["uint8"], [testing.INTEGERS]),
        (lambda x: ps.softmax(x, 0), ["float32"], [testing.AXIS, testing.SUMS]),
        (lambda x: ps.softmax(x, None), ["float32"], [testing.AXIS, testing.SUMS]),
        (lambda x: ps.softmax(x, 1), ["float32"], [testing.AXIS, testing.SUMS]),
        (lambda x: stable(x, None), ["float32"], [testing.AXIS, testing.SUMS]),
        (lambda x: ps.softmax(ps.softmax(x)), ["float32"], [testing.ONCE, testing.RANDOM]),
        (lambda x: ps.softmax(ps.softmax(x)), ["float16"], [testing.ONCE, testing.RANDOM]),
        (unnormalised, ["float32"], [testing.SUMS, testing.RANDOM]),
        (lambda x: x / x.sum(-1, keepdims=True), ["float32"], [testing.RANGE, testing.RANDOM]),
        (negative, ["float32"], [testing.RANGE, testing.RANDOM]),
        (smoothed, ["float64"], [testing.SUMS, testing.RANDOM]),
        (in_place, ["float32"], [testing.INPUT]),
        (nan_at_minus_infinity, ["float32"], [testing.MASKED]),
        (nan_replaced, ["float32"], [testing.SPECIAL]),
        (winner_takes_all, ["float32"], [testing.EXTREME]),
        (ties_by_rank, ["float32"], [testing.TIES]),
        (in_float32, ["float64"], [testing.RANDOM]),
        (saturating, ["float32"], [testing.FINITE, testing.EXTREME]),
        (of_twice_the_logits, ["float32"], [testing.RANDOM]),
        (ps.log_softmax, ["float32"], [testing.RANGE, testing.RANDOM]),
        (ps.sigmoid, ["float32"], [testing.SUMS, testing.RANDOM]),
        (lambda x: ps.softmax(x, dtype="float32"), ["float64"], [testing.ANSWERS]),
        (lambda x: ps.softmax(x).T, ["float32"], [testing.ANSWERS]),
        (lambda x: ps.softmax(x).argmax(-1), ["float32"], [testing.ANSWERS]),
        (lambda x: None, ["float32"], [testing.ANSWERS]),
        (lambda x: ps.softmax(x).astype(int), ["float32"], [testing.ANSWERS]),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_defect_is_found(function, dtypes, names, seed):
    report = check_softmax(function, dtypes=dtypes, rng=seed)
    assert failed(report) >= set(names)
    for name in names:
        assert report[name].measured
        assert report[name].advice == testing.ADVICE[name]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (naive, testing.EXTREME),
        (stable, testing.INTEGERS),
        (half_sums, testing.LONG),
        (lambda x: ps.softmax(x, 0), testing.AXIS),
        (lambda x: ps.softmax(ps.softmax(x)), testing.ONCE),
    ],
)
def test_the_usual_defects_are_found_without_a_word_about_dtypes(function, name):
    assert name in failed(check_softmax(function))


@pytest.mark.parametrize(
    ("function", "dtypes", "names"),
    [
        (in_place, ["float32"], {testing.INPUT}),
        (nan_at_minus_infinity, ["float64"], {testing.MASKED, testing.EXTREME, testing.FINITE}),
        (nan_replaced, ["float32"], {testing.SPECIAL}),
        (winner_takes_all, ["float64"], {testing.EXTREME, testing.MASKED, testing.SPECIAL}),
    ],
)
def test_nothing_else_is_blamed(function, dtypes, names):
    assert failed(check_softmax(function, dtypes=dtypes)) <= names


def test_a_function_that_raises_fails_with_its_message():
    def refuses(x):
        if x.ndim != 2:
            raise ValueError("two dimensions, please")
        return ps.softmax(x)

    check = check_softmax(refuses)[testing.ANSWERS]
    assert check.status == "fail"
    assert check.measured == "float16 of shape (2, 5, 4): ValueError: two dimensions, please"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_a_stop_is_a_stop(failure):
    def stops(x):
        raise failure

    with pytest.raises(failure):
        check_softmax(stops)


# --- how it is called ---------------------------------------------------------------------------


def test_the_axis_is_given_to_a_function_that_takes_one():
    seen = set()

    def softmax(x, axis=0):
        seen.add(axis)
        return ps.softmax(x, axis)

    assert_softmax(softmax, axis=1)
    assert seen == {1}
    assert_softmax(functools.partial(ps.softmax, temperature=1), axis=0)
    assert_softmax(lambda x: ps.softmax(x, 0), axis=0)


def test_the_same_seed_gives_the_same_logits():
    def record(into):
        def softmax(x):
            into.append(x.tobytes())
            return ps.softmax(x)

        return softmax

    first, second, third = [], [], []
    check_softmax(record(first), rng=3)
    check_softmax(record(second), rng=np.random.default_rng(3))
    check_softmax(record(third), rng=4)
    assert first == second != third


def test_a_failure_shows_logits_and_result():
    report = check_softmax(naive, dtypes=["float32"])
    check = report[testing.EXTREME]
    assert check.measured == "float32: logits [1e+04, 1e+04, 0] gave [nan, nan, 0]"
    assert check.where == "row 0 of 6, 3 classes"
    with pytest.raises(AssertionError, match=r"a check failed\ncheck [\s\S]*gave \[nan, nan, 0\]"):
        assert_softmax(naive, dtypes=["float32"])


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (3, {}, TypeError, "function must be callable, got int"),
        (ps.softmax, {"dtypes": ["complex64"]}, TypeError, "got complex64"),
        (ps.softmax, {"dtypes": ["bool"]}, TypeError, "dtypes of numbers, got bool"),
        (ps.softmax, {"dtypes": ["float31"]}, TypeError, "float31"),
        (ps.softmax, {"dtypes": []}, ValueError, "at least one dtype"),
        (ps.softmax, {"axis": None}, TypeError, "NoneType"),
        (ps.softmax, {"axis": (0, 1)}, TypeError, "tuple"),
    ],
)
def test_bad_arguments_are_refused(function, options, error, message):
    with pytest.raises(error, match=message):
        check_softmax(function, **options)
