"""Errors of at most the ULP in oracles.ULP: every length, magnitude and spread."""

import functools
import math

import numpy as np
import oracles
import pytest
from cases import LENGTHS, LONG, normal, plain
from oracles import TEMPERATURE_ROUNDINGS, ULP, assert_ulp

import pysoftmax as ps

CENTRES = (0.0, 1e3, -1e3, 1e6, -1e6, 1e30, -1e30)
SPREADS = (1e-3, 1e-1, 1.0, 10.0, 100.0, 1e4)
HUGE = 2**20 + 3


@functools.lru_cache(maxsize=1)
def rows(dtype, n):
    """One row for each centre and spread; fewer of them where rows are long."""
    combinations = [(c, s) for c in CENTRES for s in SPREADS]
    step = 1 if n <= 1025 else 4 if n <= 4097 else 11
    rng = np.random.default_rng(n)
    made = [(c + s * rng.standard_normal(n)).astype(dtype) for c, s in combinations[::step]]
    return np.stack(made)


LENGTH_AND_DTYPE = [(n, d) for n in (*LENGTHS, LONG) for d in ("float32", "float64")]


@pytest.mark.parametrize(("n", "dtype"), LENGTH_AND_DTYPE)
def test_softmax(backend, n, dtype):
    x = rows(dtype, n)
    p = backend.asnumpy(ps.softmax(backend.asarray(x)))
    assert_ulp("softmax", p, oracles.softmax(x), backend=backend.name, seed=n)


@pytest.mark.parametrize(("n", "dtype"), LENGTH_AND_DTYPE)
def test_log_softmax(backend, n, dtype):
    x = rows(dtype, n)
    log_p = backend.asnumpy(ps.log_softmax(backend.asarray(x)))
    assert_ulp("log_softmax", log_p, oracles.log_softmax(x), backend=backend.name, seed=n)


@pytest.mark.parametrize(("n", "dtype"), LENGTH_AND_DTYPE)
def test_logsumexp(backend, n, dtype):
    x = rows(dtype, n)
    lse = backend.asnumpy(ps.logsumexp(backend.asarray(x)))
    scale = oracles.logsumexp_scale(x)
    assert_ulp("logsumexp", lse, oracles.logsumexp(x), scale=scale, backend=backend.name, seed=n)


@pytest.mark.parametrize("n", [*LENGTHS, LONG])
def test_probabilities_sum_to_one_and_lie_in_the_unit_interval(backend, dtype, n):
    p = backend.asnumpy(ps.softmax(backend.asarray(rows(dtype.name, n))))
    sums = np.array([math.fsum(row) for row in p.astype(np.float64)])
    assert abs(sums - 1).max() <= ULP["softmax"] * np.finfo(dtype).eps
    assert p.min() >= 0
    assert p.max() <= 1


# --- the ends of the ranges ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 17, 1000, 4097])
@pytest.mark.parametrize("spread", [80.0, 120.0, 800.0])
def test_results_below_the_normal_range_underflow_gradually(dtype, n, spread):
    """One rounding to the grid of subnormal numbers: half a unit, and the relative error."""
    depth = spread * (8.5 if dtype == np.float64 else 1)
    x = -np.linspace(0, depth, n).astype(dtype)
    exact = oracles.softmax(x)
    subnormal = np.asarray(exact < float(np.finfo(dtype).smallest_normal))
    share = (exact / oracles.spacing(exact, dtype)).astype(np.float64)
    bits = oracles.FORMATS[dtype.name][0]
    allowed = np.where(subnormal, 0.5 + ULP["softmax"] * share / 2.0 ** (bits - 1), ULP["softmax"])
    assert_ulp("softmax", ps.softmax(x), exact, tolerance=allowed, layout="C")


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 88.8, -88.8, 720.0, 1e30, -1e30, "max", "min"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 64, 1000, 2049, LONG])
def test_equal_logits_share_equally(dtype, n, value):
    info = np.finfo(dtype)
    value = dtype.type({"max": info.max, "min": info.min}.get(value, value))
    x = np.full(n, value)
    p = ps.softmax(x)
    assert_ulp("softmax", p, np.full(n, oracles.WIDE.asarray(1.0) / n))
    assert (p == p[0]).all()
    assert_ulp("log_softmax", ps.log_softmax(x), oracles.log_softmax(x))
    lse = np.asarray(ps.logsumexp(x))
    assert_ulp("logsumexp", lse, oracles.logsumexp(x), scale=oracles.logsumexp_scale(x))


@pytest.mark.parametrize("n", [2, 10, 1000, LONG])
def test_the_largest_and_the_lowest_logit_in_one_row(dtype, n):
    info = np.finfo(dtype)
    x = np.full(n, info.min, dtype)
    x[n // 2] = info.max
    p = ps.softmax(x)
    assert p[n // 2] == 1
    assert np.count_nonzero(p) == 1
    assert ps.logsumexp(x) == info.max
    assert ps.log_softmax(x)[n // 2] == 0


@pytest.mark.parametrize("n", [3, 10, 100, 1025, 4097])
def test_neighbouring_huge_logits(dtype, n):
    """Differences of a few units in the last place of 2**21, 1e6, 1e15: exact, so accurate."""
    for centre in (2.0**20, 2.0**21, 1e6, 2.0**24, 2.0**40, 2.0**41, 1e15):
        unit = np.spacing(dtype.type(centre))
        steps = np.random.default_rng(n).integers(-40, 40, n)
        for sign in (1, -1):
            x = (sign * (dtype.type(centre) + steps.astype(dtype) * unit)).astype(dtype)
            assert_ulp("softmax", ps.softmax(x), oracles.softmax(x), centre=sign * centre)
            assert_ulp("log_softmax", ps.log_softmax(x), oracles.log_softmax(x), centre=centre)


@pytest.mark.parametrize("n", [2, 33, 2049])
def test_a_row_of_small_and_huge_logits(dtype, n):
    """The path for huge values must not spoil a row whose maximum is small."""
    x = normal(n, dtype, seed=n)
    for low in (-1e5, -3e6, -1e15, -1e30):
        x[:: max(n // 7, 2)] = low
        assert_ulp("softmax", ps.softmax(x), oracles.softmax(x), low=low)
        assert_ulp("log_softmax", ps.log_softmax(x), oracles.log_softmax(x), low=low)


@pytest.mark.parametrize(
    "row", [[100, 0], [30, 0, 0], [0, -50, -60], [17, 0], [40, -40], [1000, 995, 980]]
)
def test_log_probabilities_near_zero_keep_full_relative_accuracy(dtype, row):
    """scipy#19521, pytorch#113708: log_softmax([100, 0])[0] is -exp(-100), not 0."""
    x = np.array(row, dtype)
    log_p = ps.log_softmax(x)
    assert_ulp("log_softmax", log_p, oracles.log_softmax(x, arithmetic=oracles.MPMATH))
    assert (log_p < 0).all()


@pytest.mark.parametrize("n", [2, 10, 1000, 4097])
@pytest.mark.parametrize("centre", [0.0, 1e-3, -5.0, 1e3])
def test_logsumexp_near_zero(dtype, n, centre):
    x = (normal(n, dtype, seed=n) + dtype.type(centre - np.log(n))).astype(dtype)
    scale = oracles.logsumexp_scale(x)
    assert_ulp("logsumexp", np.asarray(ps.logsumexp(x)), oracles.logsumexp(x), scale=scale)


# --- temperature --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [2.0**-10, 0.25, 0.5, 0.75, 1.5, 2.0, 3.0, 10.0, 1024.0])
@pytest.mark.parametrize("n", [2, 10, 129, 2049])
def test_temperature(dtype, n, temperature):
    x = np.stack([normal(n, dtype, 1, s) + dtype.type(c) for s, c in [(1, 0), (9, 50), (30, -1e4)]])
    row = oracles._row(x, temperature)
    d = abs(row.d)
    roundings = 0 if math.frexp(temperature)[0] == 0.5 else TEMPERATURE_ROUNDINGS
    weighted = (d * row.e).sum(axis=-1, keepdims=True)
    in_sum = weighted / (1 + row.rest)
    in_rest = weighted / np.where(row.rest == 0, 1, row.rest)
    allowed = (ULP["softmax"] + roundings * (d + in_sum)).astype(float)
    expected = oracles.softmax(x, temperature)
    p = ps.softmax(x, temperature=temperature)
    assert_ulp("softmax", p, expected, tolerance=allowed, temperature=temperature)
    allowed = (ULP["log_softmax"] + roundings * in_rest).astype(float)
    expected = oracles.log_softmax(x, temperature)
    log_p = ps.log_softmax(x, temperature=temperature)
    assert_ulp("log_softmax", log_p, expected, tolerance=allowed, temperature=temperature)


# --- long rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_a_million_columns(dtype, spread):
    x = normal(HUGE, dtype, seed=20, scale=spread)
    row = oracles._row(x)
    total = 1 + row.rest
    assert_ulp("softmax", ps.softmax(x), row.e / total, seed=20)
    assert_ulp("log_softmax", ps.log_softmax(x), row.d - oracles.WIDE.log1p(row.rest), seed=20)


def test_sixteen_million_columns(dtype):
    """A pattern repeated 4096 times, so that the exact sum is cheap."""
    pattern = normal(4096, dtype, seed=24)
    x = np.tile(pattern, 4096)
    repeated = oracles.WIDE.asarray(4096.0)
    lse = np.asarray(ps.logsumexp(x))
    log_repeated = oracles.WIDE.log1p(repeated - 1)
    assert_ulp("logsumexp", lse, oracles.logsumexp(pattern) + log_repeated, n=x.size)
    p = ps.softmax(x, out=x).reshape(4096, 4096)
    assert_ulp("softmax", p[0], oracles.softmax(pattern) / repeated, n=x.size)
    assert (p == p[0]).all(), "equal logits, different probabilities"


# --- the elementwise functions ------------------------------------------------------------------


def _line(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    ends = 110 if dtype == np.float32 else 760
    powers = 2.0 ** np.arange(-40, 10.0)
    steps = np.linspace(-ends, ends, 20011)
    return np.concatenate([steps, powers, -powers, [0, tiny, -tiny, 1e30, -1e30]]).astype(dtype)


def test_sigmoid(dtype):
    x = _line(dtype)
    assert_ulp("sigmoid", ps.sigmoid(x), oracles.sigmoid(x))


def test_log_sigmoid(dtype):
    x = _line(dtype)
    assert_ulp("log_sigmoid", ps.log_sigmoid(x), oracles.log_sigmoid(x))


# --- float16 and bfloat16 -----------------------------------------------------------------------

SINGLE_ARGUMENT = [ps.softmax, ps.log_softmax, ps.logsumexp, ps.sigmoid, ps.log_sigmoid]


@pytest.mark.parametrize("function", SINGLE_ARGUMENT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [1, 10, 17, 257, 2049, LONG])
def test_half_precision_is_single_precision_rounded_once(half, function, n):
    x = normal((2, n), np.float32, seed=n).astype(half)
    result = function(x)
    assert result.dtype == half
    oracles.assert_same_bytes(result, function(x.astype(np.float32)).astype(half))


# Neighbours of all numbers, from one to more than a cache line; columns that fit together into a
# cache, that are cut, and that are taken one by one.
ACROSS = [(2, 1, 9), (7, 5, 1), (3, 5, 2), (300, 3), (1000, 8), (6, 33, 20), (40, 64), (700, 150)]
ACROSS += [(16_500, 70), (2**21 + 1, 2)]


def _losses(x, labels, axis):
    options = {"axis": axis, "reduction": "none"}
    return ps.cross_entropy_with_grad(x, labels, **options, label_smoothing=0.1)


@pytest.mark.parametrize("shape", ACROSS, ids=str)
def test_half_precision_across_neighbours(half, shape):
    x, axis = normal(shape, np.float32, 1).astype(half), len(shape) - 2
    rest = np.delete(shape, axis)
    rng = np.random.default_rng(2)
    labels, hot = rng.integers(0, shape[axis], rest), rng.uniform(0.5, 2, rest)
    mask = rng.random(shape) < 0.8
    calls = {
        "softmax": lambda x: ps.softmax(x, axis),
        "log_softmax": lambda x: ps.log_softmax(x, axis),
        "logsumexp": lambda x: ps.logsumexp(x, axis),
        "in place": lambda x: ps.softmax(x, axis, out=x.copy()),
        "temperatures": lambda x: ps.softmax(x, axis, temperature=hot),
        "where": lambda x: ps.log_softmax(x, axis, where=mask),
        "losses": lambda x: _losses(x, labels, axis)[0],
        "their gradients": lambda x: _losses(x, labels, axis)[1],
        "softmax_vjp": lambda x: ps.softmax_vjp(x, x, axis),
        "log_softmax_vjp": lambda x: ps.log_softmax_vjp(x, x, axis),
        "last axis": lambda x: np.moveaxis(ps.softmax(np.moveaxis(x, axis, -1).copy()), -1, axis),
    }
    # One by one takes 50 ns each.
    names = list(calls) if x.size < 2**21 else ["softmax", "logsumexp", "softmax_vjp"]
    with np.errstate(over="ignore"):
        for name in names:
            call = calls[name]
            result, expected = call(x), call(x.astype(np.float32)).astype(half)
            oracles.assert_same_bytes(np.ascontiguousarray(result), expected.copy(), call=name)


def test_seventy_thousand_equal_float16_logits(half):
    """SciPy and JAX give 0 and -inf: the sum does not fit into float16."""
    x = np.zeros(70_000, half)
    assert_ulp("softmax", ps.softmax(x), np.full(x.shape, oracles.WIDE.asarray(1.0) / 70_000))
    assert_ulp("log_softmax", ps.log_softmax(x), oracles.log_softmax(plain(x)))
    assert_ulp("logsumexp", np.asarray(ps.logsumexp(x)), oracles.logsumexp(plain(x)))
