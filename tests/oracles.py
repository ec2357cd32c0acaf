"""References in extended precision, the measure of errors in ULP, and the one table of tolerances.

The references are written for the last axis, in the plainest form that does not cancel. They run
in one of two arithmetics:

* ``LONGDOUBLE``: x87's 64-bit mantissa (113 bits on 64-bit Arm Linux). 11 bits more than float64:
  rounding ``x - max`` costs at most 745 * 2**-64 = 0.17 ULP of float64, so the reference is good
  for tolerances of a ULP and more. For float32 it is exact for every purpose.
* ``MPMATH``: 140 bits, element by element. Slow. It checks the other one (test_oracles.py) and
  replaces it where ``np.longdouble`` is no wider than float64 (Windows, macOS on Arm).

Infinite and not-a-number rows are no business of this file: test_semantics.py states them.
"""

import types

import mpmath
import numpy as np

# The largest error allowed, in units in the last place of the dtype. One table, no other number.
ULP = {
    "softmax": 4,
    "log_softmax": 4,
    "logsumexp": 4,  # of max(|result|, |maximum|): max + log(sum) may cancel, by conditioning
    "cross_entropy": 4,
    "cross_entropy, reduced": 8,  # the mean or sum over rows
    "sigmoid": 4,
    "log_sigmoid": 4,
    "binary_cross_entropy_with_logits": 4,
    "binary_cross_entropy_with_logits, reduced": 8,
    # gradients: of the largest term of the row (for BCE, of the element) before it is subtracted
    "cross_entropy_with_grad": 4,
    "binary_cross_entropy_with_logits_with_grad": 4,
    "softmax_vjp": 4,
    "log_softmax_vjp": 4,
}
# float16 and bfloat16: float32 inside and one rounding, so half a ULP and a little
ULP_HALF = 0.51
# Each rounding of (x - max) / temperature costs |x - max| / temperature ULP of its exponential.
# There are none for a power of two; otherwise at most this many.
TEMPERATURE_ROUNDINGS = 2

# dtype name -> (bits of the mantissa, exponent of the smallest subnormal number)
FORMATS = {
    "float16": (11, -24),
    "bfloat16": (8, -133),
    "float32": (24, -149),
    "float64": (53, -1074),
}

_mp = mpmath.mp.clone()
_mp.prec = 140


def _each(function):
    return np.frompyfunc(function, 1, 1)


def _mpf(value):
    return value if isinstance(value, _mp.mpf) else _mp.mpf(float(value))


def _mp_exponent(value):
    return max(_mp.frexp(value)[1], -(10**6))


LONGDOUBLE = types.SimpleNamespace(
    asarray=lambda a: np.asarray(a).astype(np.longdouble),
    exp=np.exp,
    log1p=np.log1p,
    exponent=lambda a: np.frexp(a)[1],
    power_of_two=lambda k: np.ldexp(np.longdouble(1), k),
)
MPMATH = types.SimpleNamespace(
    asarray=lambda a: np.asarray(_each(_mpf)(np.asarray(a)), dtype=object),
    exp=_each(_mp.exp),
    log1p=_each(_mp.log1p),
    exponent=lambda a: np.asarray(_each(_mp_exponent)(a)).astype(np.int64),
    power_of_two=_each(lambda k: _mp.ldexp(_mp.mpf(1), int(k))),
)
LONGDOUBLE_IS_WIDE = np.finfo(np.longdouble).nmant >= 63
WIDE = LONGDOUBLE if LONGDOUBLE_IS_WIDE else MPMATH


# --- references: functions of the last axis -----------------------------------------------------


def _row(x, temperature=1.0, where=None, arithmetic=WIDE):
    """d = (x - max) / T and e = exp(d), the maximum, and the sum of e without one maximum."""
    x = arithmetic.asarray(x)
    temperature = arithmetic.asarray(temperature)[..., None]
    if where is not None:
        x = np.where(where, x, arithmetic.asarray(-np.inf))
    peak = x.max(axis=-1, keepdims=True)
    d = (x - peak) / temperature
    e = arithmetic.exp(d)
    is_peak = np.arange(x.shape[-1]) == np.argmax(d == 0, axis=-1)[..., None]
    rest = np.where(is_peak, arithmetic.asarray(0.0), e).sum(axis=-1, keepdims=True)
    return types.SimpleNamespace(d=d, e=e, peak=peak, rest=rest, is_peak=is_peak)


def softmax(x, temperature=1.0, where=None, arithmetic=WIDE):
    row = _row(x, temperature, where, arithmetic)
    return row.e / (1 + row.rest)


def log_softmax(x, temperature=1.0, where=None, arithmetic=WIDE):
    row = _row(x, temperature, where, arithmetic)
    return row.d - arithmetic.log1p(row.rest)


def logsumexp(x, where=None, arithmetic=WIDE):
    row = _row(x, 1.0, where, arithmetic)
    return (row.peak + arithmetic.log1p(row.rest))[..., 0]


def logsumexp_scale(x, where=None):
    """The magnitude in whose ULP the error of logsumexp is measured: max(|result|, |maximum|)."""
    result = logsumexp(x, where)
    row = WIDE.asarray(x) if where is None else np.where(where, WIDE.asarray(x), -np.inf)
    return np.maximum(abs(result), abs(row.max(axis=-1)))


def complement(row):
    """1 - softmax without cancellation."""
    p = row.e / (1 + row.rest)
    return np.where(row.is_peak, row.rest / (1 + row.rest), 1 - p)


def cross_entropy(
    logits,
    target,
    weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    temperature=1.0,
    arithmetic=WIDE,
):
    """Loss, gradient and gradient scale of every row, not reduced, and the divisor of the mean."""
    row = _row(logits, temperature, None, arithmetic)
    classes = row.e.shape[-1]
    target = np.asarray(target)
    w = arithmetic.asarray(np.ones(classes) if weight is None else weight)
    if target.dtype.kind in "iu":
        used = (target != ignore_index)[..., None]
        label = np.where(used[..., 0], target, 0)
        one_hot = np.arange(classes) == label[..., None]
        y = arithmetic.asarray(one_hot & used)
        divisor = (w * y).sum()
    else:
        used = np.ones(target.shape[:-1] + (1,), bool)
        y = arithmetic.asarray(target)
        divisor = arithmetic.asarray(float(np.prod(target.shape[:-1])))
    smoothing = arithmetic.asarray(label_smoothing)
    y = (1 - smoothing) * y + np.where(used, smoothing / classes, 0 * smoothing)
    u = w * y
    nll = arithmetic.log1p(row.rest) - row.d
    zero = arithmetic.asarray(0.0)
    loss = np.where(u == 0, zero, np.where(u == 0, zero, nll) * u).sum(axis=-1)
    p = row.e / (1 + row.rest)
    others = np.maximum(u.sum(axis=-1, keepdims=True) - u, zero)
    pull, push = p * others, u * complement(row)
    t = arithmetic.asarray(temperature)[..., None]
    gradient = (pull - push) / t
    if target.dtype.kind in "iu" and label_smoothing == 0:
        terms = pull + push
    else:
        # Q p and q are subtracted: where they nearly agree no finite precision helps.
        terms = p * u.sum(axis=-1, keepdims=True) + u
    scale = np.broadcast_to((terms / t).max(axis=-1, keepdims=True), gradient.shape)
    return types.SimpleNamespace(loss=loss, gradient=gradient, scale=scale, divisor=divisor)


def softmax_vjp(g, p, temperature=1.0, arithmetic=WIDE):
    """The product and the scale of its row."""
    g, p = arithmetic.asarray(g), arithmetic.asarray(p)
    t = arithmetic.asarray(temperature)[..., None]
    result = p * (g - (g * p).sum(axis=-1, keepdims=True)) / t
    scale = abs(p) * (abs(g) + abs(g * p).sum(axis=-1, keepdims=True)) / t
    return result, np.broadcast_to(scale.max(axis=-1, keepdims=True), result.shape)


def log_softmax_vjp(g, log_p, temperature=1.0, arithmetic=WIDE):
    g = arithmetic.asarray(g)
    p = arithmetic.exp(arithmetic.asarray(log_p))
    t = arithmetic.asarray(temperature)[..., None]
    result = (g - p * g.sum(axis=-1, keepdims=True)) / t
    scale = (abs(g) + p * abs(g).sum(axis=-1, keepdims=True)) / t
    return result, np.broadcast_to(scale.max(axis=-1, keepdims=True), result.shape)


def sigmoid(x, arithmetic=WIDE):
    x = arithmetic.asarray(x)
    e = arithmetic.exp(-abs(x))
    return np.where(x < 0, e, 1 + 0 * e) / (1 + e)


def softplus(x, arithmetic=WIDE):
    x = arithmetic.asarray(x)
    return np.where(x > 0, x, 0 * x) + arithmetic.log1p(arithmetic.exp(-abs(x)))


def log_sigmoid(x, arithmetic=WIDE):
    return -softplus(-arithmetic.asarray(x), arithmetic)


def binary_cross_entropy(logits, target, weight=1.0, pos_weight=1.0, arithmetic=WIDE):
    """Loss, gradient and gradient scale of every element, not reduced."""
    z, w, b = (arithmetic.asarray(a) for a in (target, weight, pos_weight))
    x = arithmetic.asarray(logits)
    loss = w * (b * z * softplus(-x, arithmetic) + (1 - z) * softplus(x, arithmetic))
    pull = w * (1 - z) * sigmoid(x, arithmetic)
    push = w * b * z * sigmoid(-x, arithmetic)
    return types.SimpleNamespace(loss=loss, gradient=pull - push, scale=np.maximum(pull, push))


# --- the measure --------------------------------------------------------------------------------


def spacing(magnitude, dtype, arithmetic=WIDE):
    """One unit in the last place of ``dtype`` at a magnitude; below normal, the smallest number."""
    bits, tiny = FORMATS[np.dtype(dtype).name]
    exponent = np.where(magnitude == 0, tiny, arithmetic.exponent(abs(magnitude)) - bits)
    return arithmetic.power_of_two(np.maximum(exponent, tiny))


def ulp_errors(actual, expected, scale=None, arithmetic=WIDE):
    """|actual - expected| in ULP of the dtype of ``actual`` at ``scale`` (default: expected)."""
    expected = arithmetic.asarray(expected)
    unit = spacing(expected if scale is None else arithmetic.asarray(scale), actual.dtype)
    return (abs(arithmetic.asarray(actual) - expected) / unit).astype(np.float64)


def assert_ulp(function, actual, expected, *, tolerance=None, scale=None, **context):
    """Every element of ``actual`` lies within the tolerance of the table; -inf must be -inf.

    ``tolerance`` may replace the table's (an array, for conditioning); ``context`` is printed.
    """
    __tracebackhide__ = True
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    context = {"dtype": actual.dtype.name, "shape": actual.shape, **context}
    label = ", ".join(f"{key}={value}" for key, value in {"function": function, **context}.items())
    assert actual.shape == expected.shape, f"{label}: expected shape {expected.shape}"
    if tolerance is None:
        half = actual.dtype.name in ("float16", "bfloat16")
        tolerance = ULP_HALF if half else ULP[function]
    low = np.asarray(expected == -np.inf)
    got_low = np.asarray(actual == -np.inf)
    assert np.array_equal(low, got_low), f"{label}: -inf at {_first(low != got_low)} only in one"
    shown = np.where(low, actual.dtype.type(0), actual)
    finite = np.isfinite(shown.astype(np.float64))
    assert finite.all(), f"{label}: {shown[~finite].flat[0]} at {_first(~finite)}"
    if shown.size == 0:
        return
    unit_at = None if scale is None else np.where(low, 1.0, scale)
    errors = ulp_errors(shown, np.where(low, 0.0, expected), unit_at)
    excess = errors / np.broadcast_to(tolerance, errors.shape)
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    allowed = np.broadcast_to(tolerance, errors.shape)[worst]
    assert excess[worst] <= 1, (
        f"{label}: {errors[worst]:.3f} ULP (allowed {allowed:.3g}) at {tuple(map(int, worst))}: "
        f"got {actual[worst]!r}, expected {expected[worst]!s}"
    )


def _first(mask):
    return tuple(int(i) for i in np.argwhere(mask)[0]) if mask.any() else None


def assert_same_bytes(actual, expected, **context):
    """Same shape, dtype and bits (so also the sign of zero); every NaN is like another."""
    __tracebackhide__ = True
    actual, expected = np.asarray(actual), np.asarray(expected)
    label = ", ".join(f"{key}={value}" for key, value in context.items())
    assert actual.shape == expected.shape, f"{label}: {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"{label}: {actual.dtype}, expected {expected.dtype}"
    bits = f"u{actual.dtype.itemsize}"
    a = np.atleast_1d(np.ascontiguousarray(actual))
    b = np.atleast_1d(np.ascontiguousarray(expected))
    different = (a.view(bits) != b.view(bits)) & ~(np.isnan(a) & np.isnan(b))
    if different.any():
        at = tuple(int(i) for i in np.argwhere(different)[0])
        raise AssertionError(
            f"{label}: {np.count_nonzero(different)} of {a.size} elements differ in bits, first at "
            f"{at}: {np.atleast_1d(actual)[at]!r}, expected {np.atleast_1d(expected)[at]!r}"
        )
