"""The references against mpmath, and the measure of errors against hand-worked cases."""

import numpy as np
import oracles
import pytest
from oracles import LONGDOUBLE, LONGDOUBLE_IS_WIDE, MPMATH, assert_ulp, spacing, ulp_errors

ROWS = np.array([[0.0, 0, 0], [30, 0, 0], [-1e6, 1e-3, 3], [700.25, 0.1, -44], [1e30, 9e29, 0]])

REFERENCES = {
    "softmax": lambda a: oracles.softmax(ROWS, arithmetic=a),
    "softmax, temperature": lambda a: oracles.softmax(ROWS, temperature=0.7, arithmetic=a),
    "log_softmax": lambda a: oracles.log_softmax(ROWS, arithmetic=a),
    "logsumexp": lambda a: oracles.logsumexp(ROWS, arithmetic=a),
    "cross_entropy": lambda a: oracles.cross_entropy(ROWS, np.arange(5) % 3, arithmetic=a).loss,
    "cross_entropy, gradient": lambda a: (
        oracles.cross_entropy(ROWS, np.arange(5) % 3, label_smoothing=0.1, arithmetic=a).gradient
    ),
    "softmax_vjp": lambda a: oracles.softmax_vjp(ROWS + 1, ROWS / 64, arithmetic=a)[0],
    "log_softmax_vjp": lambda a: oracles.log_softmax_vjp(ROWS + 1, -abs(ROWS), arithmetic=a)[0],
    "sigmoid": lambda a: oracles.sigmoid(ROWS, a),
    "log_sigmoid": lambda a: oracles.log_sigmoid(ROWS, a),
    "binary_cross_entropy": lambda a: oracles.binary_cross_entropy(ROWS, 0.25, arithmetic=a).loss,
}


@pytest.mark.skipif(not LONGDOUBLE_IS_WIDE, reason="np.longdouble is float64 here: mpmath is used")
@pytest.mark.parametrize("name", REFERENCES)
def test_longdouble_agrees_with_mpmath_to_a_quarter_ulp_of_float64(name):
    exact = REFERENCES[name](MPMATH)
    close = REFERENCES[name](LONGDOUBLE)
    unit = spacing(exact, np.float64, MPMATH)
    assert (abs(MPMATH.asarray(0.0) + exact - _exactly(close)) / unit).max() < 0.25


def _exactly(a):
    """The longdouble values as mpmath numbers, all 64 bits of them."""
    high = np.where(np.isfinite(a), a, 0).astype(np.float64)
    return MPMATH.asarray(high) + MPMATH.asarray((a - high).astype(np.float64))


@pytest.mark.parametrize(
    ("value", "dtype", "unit"),
    [
        (1.0, "float32", 2.0**-23),
        (1.5, "float64", 2.0**-52),
        (0.75, "float16", 2.0**-11),
        (2.0**-126, "float32", 2.0**-149),
        (2.0**-140, "float32", 2.0**-149),
        (0.0, "float64", 5e-324),
    ],
)
def test_one_unit_in_the_last_place(value, dtype, unit):
    wide = oracles.WIDE.asarray(value)
    assert spacing(wide, dtype) == unit
    assert spacing(np.atleast_1d(wide), dtype)[0] == unit


def test_neighbours_are_one_ulp_apart():
    one = np.float32([1, 4, 1e-42])
    assert ulp_errors(np.nextafter(one, np.float32(9)), one) == pytest.approx(1)


def test_a_failure_says_where_it_happened_and_by_how_much():
    got = np.float32([1, 1 + 5 * 2.0**-23])
    with pytest.raises(AssertionError, match=r"softmax.*float32.*seed=7.*5\.0.* ULP .*at \(1,\)"):
        assert_ulp("softmax", got, [1.0, 1.0], seed=7)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_within_any_tolerance(wrong):
    with pytest.raises(AssertionError):
        assert_ulp("log_softmax", np.float32([wrong, 0]), [-1.0, 0.0])


def test_equal_values_with_other_bits_are_not_the_same_bytes():
    with pytest.raises(AssertionError, match="differ in bits"):
        oracles.assert_same_bytes(np.float32([0.0]), np.float32([-0.0]))
