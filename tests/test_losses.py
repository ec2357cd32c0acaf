"""Cross-entropy and binary cross-entropy: values, gradients, and what they refuse."""

import itertools
import math

import numpy as np
import oracles
import pytest
from cases import LAYOUTS, normal, plain
from oracles import assert_same_bytes, assert_ulp

import pysoftmax as ps

INF, NAN = math.inf, math.nan
REDUCTIONS = ("none", "sum", "mean")
N_CLASSES = [1, 2, 3, 10, 17, 64, 65, 513, 1000, 1025, 2049, 4097]


def each(functions):
    return pytest.mark.parametrize("function", functions, ids=lambda f: f.__name__)


CROSS_ENTROPIES = [ps.cross_entropy, ps.cross_entropy_with_grad]
BINARIES = [ps.binary_cross_entropy_with_logits, ps.binary_cross_entropy_with_logits_with_grad]


def labels_for(n, classes, seed=0):
    return np.random.default_rng(seed).integers(0, classes, n)


def probabilities_for(shape, dtype, seed=0):
    p = np.random.default_rng(seed).random(shape)
    return (p / p.sum(axis=-1, keepdims=True)).astype(dtype)


def check(logits, target, reduction="none", **options):
    """Loss and gradient of the last axis against the reference, within the tolerances."""
    loss, gradient = ps.cross_entropy_with_grad(logits, target, reduction=reduction, **options)
    alone = ps.cross_entropy(logits, target, reduction=reduction, **options)
    assert_same_bytes(loss, alone, reduction=reduction, **options)
    exact = oracles.cross_entropy(logits, target, **options)
    divisor = exact.divisor if reduction == "mean" else 1
    context = {"reduction": reduction, **options}
    if reduction == "none":
        assert_ulp("cross_entropy", loss, exact.loss, **context)
    else:
        expected = np.asarray(exact.loss.sum() / divisor)
        assert_ulp("cross_entropy, reduced", loss, expected, **context)
    scale = exact.scale / divisor
    expected = exact.gradient / divisor
    assert_ulp("cross_entropy_with_grad", gradient, expected, scale=scale, **context)


# --- values and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("classes", N_CLASSES)
def test_class_indices(dtype, classes, reduction):
    for scale in (0.01, 3.0, 40.0):
        x = normal((6, classes), dtype, seed=classes, scale=scale)
        check(x, labels_for(6, classes, 1), reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("classes", N_CLASSES)
def test_probability_targets(dtype, classes, reduction):
    x = normal((6, classes), dtype, seed=classes)
    check(x, probabilities_for(x.shape, dtype), reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("classes", [2, 10, 65, 1025, 2049])
def test_weight_ignored_rows_smoothing_and_temperature_together(dtype, classes, reduction):
    x = normal((8, classes), dtype, seed=classes)
    labels = labels_for(8, classes, 2)
    labels[::3] = -100
    weight = np.random.default_rng(3).uniform(0.5, 2, classes).astype(dtype)
    for w, smoothing, t in itertools.product((None, weight), (0.0, 0.125, 1.0), (1.0, 0.5)):
        options = {"weight": w, "label_smoothing": smoothing, "temperature": t}
        check(x, labels, reduction, **options)
        check(x, probabilities_for(x.shape, dtype), reduction, **options)


@pytest.mark.parametrize("row", [[30, 0, 0], [80, 0], [17, 0, 0, 0], [30, 0, -30], [1e4, 9980, 0]])
def test_a_confident_right_answer_keeps_full_relative_accuracy(dtype, row):
    """Loss and 1 - p at the target are about exp(-30), not 0 and not one ULP of 1."""
    x = np.array([row], dtype)
    loss, gradient = ps.cross_entropy_with_grad(x, np.array([0]), reduction="none")
    exact = oracles.cross_entropy(x, np.array([0]), arithmetic=oracles.MPMATH)
    assert_ulp("cross_entropy", loss, exact.loss)
    assert_ulp("cross_entropy_with_grad", gradient, exact.gradient)
    assert loss[0] > 0
    assert gradient[0, 0] < 0


@pytest.mark.parametrize("classes", [2, 10, 33, 1025, 2049])
def test_every_element_of_an_unsmoothed_gradient_is_accurate(dtype, classes):
    x = normal((5, classes), dtype, seed=classes, scale=10)
    for labels in (x.argmax(axis=1), x.argmin(axis=1), labels_for(5, classes)):
        gradient = ps.cross_entropy_with_grad(x, labels, reduction="sum")[1]
        assert_ulp("cross_entropy_with_grad", gradient, oracles.cross_entropy(x, labels).gradient)


@pytest.mark.parametrize("centre", [1e6, -1e6, 1e30])
def test_huge_logits(dtype, centre):
    unit = np.spacing(dtype.type(abs(centre)))
    steps = np.random.default_rng(0).integers(-9, 9, (4, 20)).astype(dtype)
    x = (dtype.type(centre) + steps * unit).astype(dtype)
    check(x, labels_for(4, 20))
    loss = ps.cross_entropy(np.array([[1e30, -1e30]], dtype), np.array([1]))
    assert loss == dtype.type(1e30) - dtype.type(-1e30)


def test_the_loss_of_one_class_is_zero(dtype):
    x = normal((4, 1), dtype)
    loss, gradient = ps.cross_entropy_with_grad(x, np.zeros(4, int), reduction="none")
    assert (loss == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_derivatives_of_the_reduced_loss(reduction):
    """Central differences, for every kind of target."""
    x = normal((4, 5), np.float64, scale=1)
    weight = np.array([0.5, 1, 2, 1.5, 0.75])
    labels = np.array([0, 4, -100, 2])
    step = 1e-5
    for target, smoothing, t in itertools.product(
        (labels, probabilities_for((4, 5), np.float64)), (0.0, 0.2), (1.0, 0.7)
    ):
        options = {"weight": weight, "label_smoothing": smoothing, "temperature": t}
        options["reduction"] = reduction
        gradient = ps.cross_entropy_with_grad(x, target, **options)[1]
        for at in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[at] += step
            down[at] -= step
            rise = ps.cross_entropy(up, target, **options) - ps.cross_entropy(
                down, target, **options
            )
            assert gradient[at] == pytest.approx(np.sum(rise) / (2 * step), abs=1e-9)


# --- shapes, axes and dtypes --------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
def test_any_class_axis(dtype, axis):
    x = normal((3, 4, 5, 6), dtype)
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    labels = labels_for(rows.shape[:-1], rows.shape[-1])
    p = probabilities_for(rows.shape, dtype)
    for target, moved in [(labels, labels), (p, np.moveaxis(p, -1, axis))]:
        loss, gradient = ps.cross_entropy_with_grad(x, moved, axis, reduction="none")
        exact = oracles.cross_entropy(rows, target)
        assert_ulp("cross_entropy", loss, exact.loss, axis=axis)
        gradient = np.moveaxis(gradient, axis, -1)
        assert_ulp("cross_entropy_with_grad", gradient, exact.gradient, scale=exact.scale)


def test_one_row_without_a_batch(dtype):
    x = normal(7, dtype)
    for target in (3, np.int64(3), np.array(3)):
        loss, gradient = ps.cross_entropy_with_grad(x, target)
        assert np.shape(loss) == ()
        assert_same_bytes(gradient, ps.cross_entropy_with_grad(x[None], [3])[1][0])
        assert loss == ps.cross_entropy(x[None], [3])


@pytest.mark.parametrize("integer", ["int8", "uint8", "int16", "uint16", "int32", "uint64", ">i4"])
def test_any_integer_dtype_for_indices(dtype, integer):
    x = normal((5, 6), dtype)
    labels = labels_for(5, 6)
    expected = ps.cross_entropy(x, labels)
    assert ps.cross_entropy(x, labels.astype(integer)) == expected
    assert ps.cross_entropy(x, labels.tolist()) == expected


def test_targets_in_another_layout(dtype, layout):
    if layout == "unaligned":
        x = normal((5, 6, 7), dtype)[:, :, :6]
    else:
        x = normal((5, 6, 6), dtype)
    labels = LAYOUTS[layout](labels_for((5, 6), 6))
    p = LAYOUTS[layout](probabilities_for(x.shape, dtype))
    weight = LAYOUTS[layout](np.linspace(1, 2, 6).astype(dtype))
    for target in (labels, p):
        got = ps.cross_entropy_with_grad(x, target, weight=weight, reduction="none")
        want = ps.cross_entropy_with_grad(
            x.copy(), plain(target), weight=plain(weight), reduction="none"
        )
        for a, b in zip(got, want, strict=True):
            assert_same_bytes(a, b, layout=layout)


@pytest.mark.parametrize("target", ["float16", "float32", "float64"])
def test_the_loss_has_the_dtype_of_the_logits(dtype, target):
    x = normal((4, 5), dtype)
    p = probabilities_for((4, 5), target)
    loss, gradient = ps.cross_entropy_with_grad(x, p)
    assert loss.dtype == gradient.dtype == dtype
    exact = oracles.cross_entropy(x, p)
    expected = float(exact.loss.sum() / 4)
    assert float(loss) == pytest.approx(expected, rel=float(8 * np.finfo(dtype).eps))


def test_half_precision_is_single_precision_rounded_once(half):
    x = normal((4, 33), np.float32).astype(half)
    single = x.astype(np.float32)
    labels = labels_for(4, 33)
    for reduction in REDUCTIONS:
        got = ps.cross_entropy_with_grad(x, labels, reduction=reduction)
        want = ps.cross_entropy_with_grad(single, labels, reduction=reduction)
        for a, b in zip(got, want, strict=True):
            assert_same_bytes(a, np.asarray(b).astype(half), reduction=reduction)
    z = (labels_for((4, 33), 2)).astype(half)
    got = ps.binary_cross_entropy_with_logits_with_grad(x, z, reduction="none")
    want = ps.binary_cross_entropy_with_logits_with_grad(
        single, z.astype(np.float32), reduction="none"
    )
    for a, b in zip(got, want, strict=True):
        assert_same_bytes(a, b.astype(half))


def test_integer_logits_are_promoted():
    x = np.array([[0, 255, 3]], np.uint8)
    loss, gradient = ps.cross_entropy_with_grad(x, [0])
    assert loss.dtype == gradient.dtype == np.float32
    assert loss == 255
    assert gradient.tolist() == [[-1, 1, 0]]


# --- rules --------------------------------------------------------------------------------------


def test_the_mean_divides_by_the_weights_used_or_by_the_number_of_rows(dtype):
    x = normal((3, 4), dtype)
    labels, weight = np.array([1, 3, -100]), np.array([1, 2, 4, 8], dtype)
    total = ps.cross_entropy(x, labels, weight=weight, reduction="sum")
    mean = ps.cross_entropy(x, labels, weight=weight)
    assert mean == pytest.approx(total / dtype.type(2 + 8), rel=1e-6)
    p = probabilities_for((3, 4), dtype)
    total = ps.cross_entropy(x, p, weight=weight, reduction="sum")
    assert ps.cross_entropy(x, p, weight=weight) == pytest.approx(total / dtype.type(3), rel=1e-6)


def test_the_mean_over_many_weighted_rows_is_as_accurate_as_that_over_few(dtype):
    labels, weight = labels_for(100_000, 10), np.random.default_rng(1).random(10)
    labels[::7] = -100
    mean = ps.cross_entropy(np.zeros((labels.size, 10), dtype), labels, weight=weight)
    assert_ulp("cross_entropy, reduced", mean, np.log(oracles.WIDE.asarray(10.0)))


@pytest.mark.parametrize("ignored", [-100, -1, 0, 2, 255, -(2**40)])
def test_ignored_rows_take_no_part(dtype, ignored):
    x = normal((4, 3), dtype)
    x[1] = NAN
    labels = np.array([1, ignored, 1, ignored])
    options = {"ignore_index": ignored}
    loss, gradient = ps.cross_entropy_with_grad(x, labels, reduction="none", **options)
    assert (loss[1::2] == 0).all()
    assert (gradient[1::2] == 0).all()
    mean, gradient = ps.cross_entropy_with_grad(x, labels, **options)
    expected, rows = ps.cross_entropy_with_grad(x[::2], labels[::2])
    assert mean == expected
    assert_same_bytes(gradient[::2], rows)


def test_all_rows_ignored(dtype):
    x, labels = normal((4, 3), dtype), np.full(4, -100)
    loss, gradient = ps.cross_entropy_with_grad(x, labels)
    assert math.isnan(loss)
    assert (gradient == 0).all()
    loss, gradient = ps.cross_entropy_with_grad(x, labels, reduction="sum")
    assert loss == 0
    assert (gradient == 0).all()
    assert (ps.cross_entropy(x, labels, reduction="none") == 0).all()


def test_a_negative_index_never_wraps(dtype):
    x = np.zeros((2, 3), dtype)
    with pytest.raises(IndexError):
        ps.cross_entropy(x, np.array([0, -1]))
    assert ps.cross_entropy(x, np.array([0, -1]), ignore_index=-1) > 1


@each(CROSS_ENTROPIES)
def test_ignore_index_is_an_integer(function):
    x, labels = np.zeros((2, 3)), np.array([0, 1])
    for bad in (1.5, 1.0, None, "1"):
        with pytest.raises(TypeError, match="ignore_index"):
            function(x, labels, ignore_index=bad)
    for bad in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="ignore_index"):
            function(x, labels, ignore_index=bad)
    ignored = function(x, labels, ignore_index=np.int8(1), reduction="sum")
    assert np.ravel(ignored[0] if isinstance(ignored, tuple) else ignored) == ps.logsumexp(x[0])


@each(CROSS_ENTROPIES)
@pytest.mark.parametrize("bad", [-1, 5, 977, -101, 2**62])
def test_an_index_outside_is_an_error_with_its_position_and_value(function, bad):
    x, labels = np.zeros((20, 5)), np.zeros(20, int)
    labels[[13, 17]] = bad, bad + 1
    with pytest.raises(IndexError, match=rf"(?s)(?=.*\b13\b)(?=.*(?<!\d){bad}\b)(?=.*\b5\b)"):
        function(x, labels)


def test_the_position_of_a_wrong_index_among_several_axes():
    labels = np.zeros((3, 40, 7), np.uint8)
    labels[1, 31, 6] = 200
    with pytest.raises(IndexError, match=r"(?s)(?=.*\b1, ?31, ?6\b)(?=.*\b200\b)"):
        ps.cross_entropy(np.zeros((3, 40, 7, 8)), labels)
    with pytest.raises(IndexError, match=r"(?s)(?=.*\b1, ?31, ?6\b)(?=.*\b200\b)"):
        ps.cross_entropy(np.zeros((3, 8, 40, 7)), labels, axis=1)


def test_a_huge_unsigned_index_is_not_ignore_index():
    minus_100 = np.array([0, 2**64 - 100], np.uint64)
    with pytest.raises(IndexError):
        ps.cross_entropy(np.zeros((2, 3)), minus_100)
    with pytest.raises(IndexError):
        ps.cross_entropy(np.zeros((2, 3)), np.array([0, 156], np.uint8))  # int8 -100


@pytest.mark.parametrize("n", [3, 5000])
def test_nothing_is_written_before_an_index_error(dtype, n):
    x = normal((n, 4), dtype)
    before = x.copy()
    labels = np.zeros(n, int)
    labels[-1] = 4
    out = np.full_like(x, 7)
    for reduction in REDUCTIONS:
        with pytest.raises(IndexError):
            ps.cross_entropy_with_grad(x, labels, reduction=reduction, grad_out=out)
        with pytest.raises(IndexError):
            ps.cross_entropy_with_grad(x, labels, reduction=reduction, grad_out=x)
    assert (out == 7).all()
    assert_same_bytes(x, before)


def test_probability_zero_times_minus_infinity_is_zero(dtype):
    x = np.array([[-INF, 0, 1]], dtype)
    p = np.array([[0, 0.25, 0.75]], dtype)
    loss, gradient = ps.cross_entropy_with_grad(x, p)
    expected, rows = ps.cross_entropy_with_grad(x[:, 1:], p[:, 1:])
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient[0, 0] == 0
    assert gradient[0, 1:] == pytest.approx(rows[0], rel=1e-5)


def test_the_loss_of_an_impossible_class_is_infinite(dtype):
    x = np.array([[-INF, 0, 0], [0, 0, -INF]], dtype)
    loss, gradient = ps.cross_entropy_with_grad(x, [0, 0], reduction="none")
    assert loss[0] == INF
    assert gradient.tolist() == [[-1, 0.5, 0.5], [-0.5, 0.5, 0]]


@pytest.mark.parametrize("row", [[NAN, 0, 1], [INF, 0, 1], [INF, INF, 0], [-INF, -INF, -INF]])
def test_a_row_without_probabilities_has_loss_nan_and_leaves_the_others_alone(dtype, row):
    x = np.array([[1, 2, 3], row, [3, 2, 1]], dtype)
    for target in (np.array([2, 2, 2]), np.full((3, 3), 0.25, dtype)):
        loss, gradient = ps.cross_entropy_with_grad(x, target, reduction="none")
        assert math.isnan(loss[1])
        assert np.isnan(gradient[1]).all()
        want, rows = ps.cross_entropy_with_grad(x[::2], target[::2], reduction="none")
        assert_same_bytes(loss[::2], want)
        assert_same_bytes(gradient[::2], rows)
        assert math.isnan(ps.cross_entropy(x, target))


@pytest.mark.parametrize("bad", [-1e-3, -1.0, -INF, NAN])
@each(CROSS_ENTROPIES)
def test_negative_or_nan_probabilities_are_refused(dtype, function, bad):
    p = np.full((4, 30), 1 / 30, dtype)
    p[2, 17] = bad
    with pytest.raises(ValueError):
        function(np.zeros((4, 30), dtype), p)


def test_probabilities_need_not_sum_to_one(dtype):
    x = normal((4, 6), dtype)
    for total in (0.0, 0.5, 3.0):
        check(x, (total * probabilities_for((4, 6), dtype)).astype(dtype))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, -1e-9, INF, NAN])
@each(CROSS_ENTROPIES)
def test_label_smoothing_outside_the_unit_interval(function, smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        function(np.zeros((2, 3)), [0, 1], label_smoothing=smoothing)


@each(CROSS_ENTROPIES)
@pytest.mark.parametrize("smoothing", ["0.1", None, 1j, [0.1, 0.2]])
def test_label_smoothing_of_another_type(function, smoothing):
    with pytest.raises(TypeError, match="label_smoothing"):
        function(np.zeros((2, 3)), [0, 1], label_smoothing=smoothing)


@each(CROSS_ENTROPIES + BINARIES)
@pytest.mark.parametrize("reduction", ["average", "", "Mean", None])
def test_an_unknown_reduction(function, reduction):
    target = [0, 1] if function in CROSS_ENTROPIES else np.zeros((2, 3))
    with pytest.raises((ValueError, TypeError), match="reduction"):
        function(np.zeros((2, 3)), target, reduction=reduction)


@each(CROSS_ENTROPIES)
def test_shapes_that_do_not_fit(function):
    x = np.zeros((4, 3))
    for target in (np.zeros(3, int), np.zeros((4, 1), int), np.zeros((4, 3), int), 0):
        with pytest.raises(ValueError, match=r"\(4,?\)"):
            function(x, target)
    for target in (np.zeros((4, 2)), np.zeros(4), np.zeros((3, 4)), np.zeros((1, 3))):
        with pytest.raises(ValueError, match=r"\(4, ?3\)"):
            function(x, target)
    for weight in (np.ones(4), np.ones((1, 3)), 1.0):
        with pytest.raises(ValueError, match="weight"):
            function(x, np.zeros(4, int), weight=weight)


def test_an_empty_list_of_labels_is_one_of_labels():
    no_rows = np.empty((0, 3))
    for labels in ([], ()):
        loss, grad = ps.cross_entropy_with_grad(no_rows, labels, weight=[1, 2, 3])
        assert np.isnan(loss)
        assert grad.shape == (0, 3)
        assert ps.cross_entropy(no_rows, labels, reduction="sum") == 0
    assert np.isnan(ps.cross_entropy(np.empty((2, 5, 0)), [[], []], axis=1))
    # Of no classes it is one of probabilities; and an array says what it holds.
    assert ps.cross_entropy(np.empty((1, 0)), [[]]) == 0
    with pytest.raises(ValueError, match=r"\(0, 3\), got \(0,\)"):
        ps.cross_entropy(no_rows, np.empty(0))


@each(CROSS_ENTROPIES)
@pytest.mark.parametrize("target", [["a", "b"], [None, 1], [1j, 0]])
def test_targets_are_integers_or_floats(function, target):
    with pytest.raises(TypeError):
        function(np.zeros((2, 3)), target)


@each(CROSS_ENTROPIES)
@pytest.mark.parametrize("refused", ["longdouble", "complex128", "object", "U3"])
def test_logits_of_another_dtype(function, refused):
    if np.dtype(refused) == np.float64:
        pytest.skip("np.longdouble is float64 here")
    with pytest.raises(TypeError, match="float32"):
        function(np.zeros((2, 3), refused), [0, 1])


@pytest.mark.parametrize("classes", [1, 3, 100])
def test_losses_at_the_limits_of_temperature(dtype, classes):
    x = np.arange(classes, dtype=dtype)[None]
    log_c = math.log(classes)
    best, first = np.array([classes - 1]), np.array([0])
    assert ps.cross_entropy(x, best, temperature=0) == 0
    assert ps.cross_entropy(x, first, temperature=0) == (0 if classes == 1 else INF)
    tie = ps.cross_entropy(0 * x, first, temperature=0)
    assert tie == pytest.approx(log_c, rel=1e-6)
    loss, gradient = ps.cross_entropy_with_grad(x, first, temperature=INF)
    assert loss == pytest.approx(log_c, rel=1e-6)
    assert (gradient == 0).all()


def test_a_temperature_for_every_row(dtype):
    x, labels = normal((3, 10), dtype), np.array([1, 5, 9])
    temperature = np.array([0.5, 1.0, 3.0])
    got = ps.cross_entropy_with_grad(x, labels, temperature=temperature, reduction="none")
    for i, t in enumerate(temperature):
        want = ps.cross_entropy_with_grad(
            x[i : i + 1], labels[i : i + 1], temperature=t, reduction="none"
        )
        assert_same_bytes(got[0][i : i + 1], want[0])
        assert_same_bytes(got[1][i : i + 1], want[1])


def test_the_gradient_at_a_temperature_whose_reciprocal_overflows(dtype):
    """(Q p - q) / T with the p of temperature 0: almost always too large, too."""
    x = np.array([[1, 3, 3, 2], [5, 0, 0, 0]], dtype)
    temperature = 2 * float(np.finfo(dtype).smallest_subnormal)
    options = {"temperature": temperature, "reduction": "none"}
    for target in ([3, 0], np.eye(4, dtype=dtype)[[3, 0]]):
        gradient = np.full_like(x, NAN)
        loss, _ = ps.cross_entropy_with_grad(x, target, grad_out=gradient, **options)
        np.testing.assert_array_equal(loss, [INF, 0])
        np.testing.assert_array_equal(gradient, [[0, INF, INF, -INF], [0, 0, 0, 0]])


# --- grad_out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 65), (3, 2049), (2, 5000), (0, 3)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_grad_out_may_be_the_logits(dtype, shape, reduction):
    for smoothing in (0.0, 0.1):
        x = normal(shape, dtype)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        for target in (labels_for(shape[0], shape[1]), probabilities_for(shape, dtype)):
            want = ps.cross_entropy_with_grad(x, target, **options)
            logits = x.copy()
            loss, gradient = ps.cross_entropy_with_grad(logits, target, grad_out=logits, **options)
            assert gradient is logits
            if shape[0]:
                assert_same_bytes(loss, want[0])
            assert_same_bytes(gradient, want[1])


def test_grad_out_may_be_the_logits_along_another_axis(dtype):
    x = normal((4, 70, 6), dtype)
    labels = labels_for((4, 6), 70)
    loss, gradient = ps.cross_entropy_with_grad(x, labels, 1)
    logits = x.copy()
    assert ps.cross_entropy_with_grad(logits, labels, 1, grad_out=logits)[0] == loss
    assert_same_bytes(logits, gradient)


def odd_rows(shape, dtype):
    """Rows along axis 1, many of them with something that kernels treat apart."""
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    for outer, inner in np.ndindex(shape[0], shape[2]):
        row, column = x[outer, :, inner], rng.integers(shape[1])
        kind = rng.integers(12)
        if kind < 3:
            row[column] = (NAN, INF, -INF)[kind]
        elif kind < 5:
            row[:] = (-INF, 1)[kind - 3]
        elif kind == 5:
            row += dtype.type(1e6)
    return x


@pytest.mark.parametrize("kind", ["labels", "weighted", "smoothed", "probabilities", "tempered"])
@pytest.mark.parametrize("inner", [16, 33, 130])
@pytest.mark.parametrize("classes", [2, 3, 8, 21, 65, 513, 2049])
def test_the_position_of_the_axis_changes_no_bit(dtype, classes, inner, kind):
    x = odd_rows((2, classes, inner), dtype)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, (2, inner))
    labels[rng.random(labels.shape) < 0.2] = -100
    target, options = labels, {}
    if kind == "weighted":
        options["weight"] = np.where(rng.random(classes) < 0.3, 0, rng.random(classes))
    elif kind == "smoothed":
        options["label_smoothing"] = 0.1
    elif kind == "tempered":
        options["temperature"] = 1.7
    elif kind == "probabilities":
        target = np.moveaxis(probabilities_for((2, inner, classes), dtype), -1, 1)
    moved = np.moveaxis(target, 1, -1) if kind == "probabilities" else target
    rows = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for reduction in ("none", "mean"):
        options["reduction"] = reduction
        want = ps.cross_entropy_with_grad(rows, moved, **options)
        for in_place in (False, True):
            logits = x.copy()
            loss, gradient = ps.cross_entropy_with_grad(
                logits, target, 1, grad_out=logits if in_place else None, **options
            )
            assert_same_bytes(loss, want[0], in_place=in_place, **options)
            assert_same_bytes(gradient, np.moveaxis(want[1], -1, 1), in_place=in_place, **options)
        assert_same_bytes(ps.cross_entropy(x, target, 1, **options), want[0], **options)


def ways_to_say_it(dtype):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 7)
    yield {"target": labels, "temperature": 1.7}
    yield {"target": labels, "label_smoothing": 0.1}
    yield {"target": labels, "weight": rng.random(5), "label_smoothing": 1.0}
    yield {"target": labels, "weight": rng.random(5).astype(dtype), "ignore_index": 2}
    yield {"target": probabilities_for((7, 5), dtype), "weight": rng.random(5)}
    for kind in ("i1", "i2", "i4", "u1", "u2", "u4", "u8"):
        yield {"target": labels.astype(kind), "ignore_index": 3}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ordinary_arrays_take_a_shorter_way_to_the_same_bits(dtype, reduction):
    x = normal((7, 5), dtype)
    swapped = x.astype(x.dtype.newbyteorder())
    for options in ways_to_say_it(dtype):
        want = ps.cross_entropy_with_grad(swapped, reduction=reduction, **options)
        got = ps.cross_entropy_with_grad(x, reduction=reduction, **options)
        for a, b in zip(got, want, strict=True):
            assert_same_bytes(a, b, **options)
        assert_same_bytes(ps.cross_entropy(x, reduction=reduction, **options), want[0], **options)


def test_grad_out_may_be_the_probabilities(dtype):
    x = normal((4, 70), dtype)
    p = probabilities_for((4, 70), dtype)
    want = ps.cross_entropy_with_grad(x, p)
    got = ps.cross_entropy_with_grad(x, p, grad_out=p)
    assert got[0] == want[0]
    assert_same_bytes(p, want[1])


@pytest.mark.parametrize("inner", [1, 4, 40])
def test_grad_out_may_be_the_probabilities_of_long_rows(dtype, inner):
    x = normal((2, 5000, inner), dtype)
    x[0, 4500, 0] = 1e30  # found out when much of the row is done
    p = probabilities_for(x.shape, dtype)
    want = ps.cross_entropy_with_grad(x, p, 1)
    got = ps.cross_entropy_with_grad(x, p, 1, grad_out=p)
    assert got[0] == want[0]
    assert_same_bytes(p, want[1])


def test_grad_out_may_lie_anyhow_in_memory(dtype, layout):
    if "broadcast" in layout or layout == "read-only":
        pytest.skip("not a layout that can be written to")
    x, labels = normal((5, 70), dtype), labels_for(5, 70)
    out = LAYOUTS[layout](np.zeros_like(x))
    assert ps.cross_entropy_with_grad(x, labels, grad_out=out)[1] is out
    assert_same_bytes(plain(out), ps.cross_entropy_with_grad(x, labels)[1])


@each([ps.cross_entropy_with_grad, ps.binary_cross_entropy_with_logits_with_grad])
def test_grad_out_is_checked(function):
    x = np.zeros((4, 3))
    target = np.zeros(4, int) if function is ps.cross_entropy_with_grad else x
    for wrong in (np.zeros((3, 4)), np.zeros(12), np.zeros((4, 4))):
        with pytest.raises(ValueError):
            function(x, target, grad_out=wrong)
    for wrong in (np.zeros((4, 3), np.float32), np.zeros((4, 3), int), [[0.0] * 3] * 4):
        with pytest.raises(TypeError):
            function(x, target, grad_out=wrong)
    read_only = np.zeros((4, 3))
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only|writ"):
        function(x, target, grad_out=read_only)


def test_grad_out_overlapping_the_logits_partly(dtype):
    room = normal(400, dtype)
    for x, out in [
        (room[:300].reshape(30, 10), room[7:307].reshape(30, 10)),
        (room[7:307].reshape(30, 10), room[:300].reshape(30, 10)),
        (room[:400].reshape(20, 20), room[:400].reshape(20, 20).T),
    ]:
        labels = labels_for(x.shape[0], x.shape[1])
        want = ps.cross_entropy_with_grad(x.copy(), labels, reduction="sum")
        got = ps.cross_entropy_with_grad(x, labels, reduction="sum", grad_out=out)
        assert got[0] == want[0]
        assert_same_bytes(plain(out), want[1])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [3, 5000])
def test_grad_out_overlapping_the_labels(n, weighted):
    x, weight = normal((400, n), np.float64), np.ones(n) if weighted else None
    room = np.empty_like(x)
    labels = room.view(np.int64).reshape(-1)[:400]
    labels[...] = 1
    want = ps.cross_entropy_with_grad(x, labels.copy(), weight=weight)
    got = ps.cross_entropy_with_grad(x, labels, weight=weight, grad_out=room)
    assert got[0] == want[0]
    assert_same_bytes(room, want[1])


def test_a_row_of_nan_is_lost_whatever_its_weights():
    """As in torch: a weight of 0 does not make a number of it."""
    x = [[NAN, 0, 1], [0, 0, 1]]
    for target in ([0, 0], np.zeros((2, 3))):
        loss, grad = ps.cross_entropy_with_grad(x, target, weight=[0, 1, 1], reduction="none")
        assert np.array_equal(loss, [NAN, 0], equal_nan=True)
        assert np.array_equal(np.isnan(grad), [[True] * 3, [False] * 3])


def test_logits_whose_difference_overflows_at_a_high_temperature():
    x = [1.5e308, -1.5e308]
    assert_ulp("cross_entropy", ps.cross_entropy(x, 1, temperature=1e308), np.log1p(np.exp(3.0)))
    assert ps.cross_entropy([1.5e308, -INF], 1, temperature=1e308) == INF


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_grad_out_may_be_a_subclass():
    x, p = np.arange(6.0).reshape(2, 3), np.full((2, 3), 0.5)
    for out in (np.asmatrix(x * 0), np.ma.array(x * 0, mask=x > 1, hard_mask=True)):
        want = ps.cross_entropy_with_grad(x, [1, 0, 1], 0)[1]
        assert ps.cross_entropy_with_grad(x, [1, 0, 1], 0, grad_out=out)[1] is out
        assert_same_bytes(np.asarray(out), want)
        want = ps.binary_cross_entropy_with_logits_with_grad(x, p)[1]
        assert ps.binary_cross_entropy_with_logits_with_grad(x, p, grad_out=out)[1] is out
        assert_same_bytes(np.asarray(out), want)


# --- binary -------------------------------------------------------------------------------------

BINARY_SHAPES = [(1,), (7,), (3, 10), (2, 65), (3, 4, 5), (1, 4097)]


def check_binary(logits, target, reduction="none", **options):
    function = ps.binary_cross_entropy_with_logits_with_grad
    loss, gradient = function(logits, target, reduction=reduction, **options)
    alone = ps.binary_cross_entropy_with_logits(logits, target, reduction=reduction, **options)
    assert_same_bytes(loss, alone)
    exact = oracles.binary_cross_entropy(
        logits, target, **{k: 1.0 if v is None else v for k, v in options.items()}
    )
    divisor = logits.size if reduction == "mean" else 1
    context = {"reduction": reduction, **options}
    name = "binary_cross_entropy_with_logits"
    if reduction == "none":
        # A weight enlarges the rounding of a subnormal loss.
        normal_range = np.maximum(exact.loss, 8 * np.finfo(loss.dtype).smallest_normal)
        assert_ulp(name, loss, exact.loss, scale=normal_range, **context)
    else:
        expected = np.asarray(exact.loss.sum() / divisor)
        assert_ulp(f"{name}, reduced", loss, expected, **context)
    expected, scale = exact.gradient / divisor, exact.scale / divisor
    assert_ulp(f"{name}_with_grad", gradient, expected, scale=scale, **context)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", BINARY_SHAPES)
def test_binary_cross_entropy(dtype, shape, reduction):
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 2, shape).astype(dtype)
    pos_weight = rng.uniform(0.5, 4, shape[-1:]).astype(dtype)
    for scale in (0.1, 5.0, 60.0):
        x = normal(shape, dtype, scale=scale)
        for z in (rng.integers(0, 2, shape).astype(dtype), rng.random(shape).astype(dtype)):
            for w, b in itertools.product((None, weight), (None, pos_weight)):
                check_binary(x, z, reduction, weight=w, pos_weight=b)


@pytest.mark.parametrize("integer", ["bool", "uint8", "int64"])
def test_binary_targets_may_be_integers(dtype, integer):
    """pytorch#842"""
    x = normal((5, 6), dtype)
    z = labels_for((5, 6), 2).astype(integer)
    got = ps.binary_cross_entropy_with_logits_with_grad(x, z)
    want = ps.binary_cross_entropy_with_logits_with_grad(x, z.astype(dtype))
    assert got[0] == want[0]
    assert_same_bytes(got[1], want[1])


def test_binary_extremes(dtype):
    x = np.array([1e30, -1e30, 1e30, -1e30, 0], dtype)
    z = np.array([1, 0, 0, 1, 0.5], dtype)
    loss, gradient = ps.binary_cross_entropy_with_logits_with_grad(x, z, reduction="none")
    assert loss[:4].tolist() == [0, 0, dtype.type(1e30), dtype.type(1e30)]
    assert gradient.tolist() == [0, 0, 1, -1, 0]


def test_binary_infinite_logits(dtype):
    x = np.array([INF, -INF, INF, -INF, NAN], dtype)
    z = np.array([1, 0, 0, 1, 1], dtype)
    loss = ps.binary_cross_entropy_with_logits(x, z, reduction="none")
    assert np.array_equal(loss, [0, 0, INF, INF, NAN], equal_nan=True)


def test_binary_weights_are_broadcast_and_do_not_change_the_divisor(dtype):
    x, z = normal((2, 3, 4), dtype), labels_for((2, 3, 4), 2).astype(dtype)
    for shape in [(), (4,), (3, 1), (1, 3, 4), (2, 1, 1)]:
        w = np.random.default_rng(0).uniform(1, 2, shape).astype(dtype)
        whole = np.array(np.broadcast_to(w, x.shape))
        for name in ("weight", "pos_weight"):
            got = ps.binary_cross_entropy_with_logits_with_grad(x, z, **{name: w})
            want = ps.binary_cross_entropy_with_logits_with_grad(x, z, **{name: whole})
            assert got[0] == want[0]
            assert_same_bytes(got[1], want[1])
    single = ps.binary_cross_entropy_with_logits(x, z)
    double = ps.binary_cross_entropy_with_logits(x, z, weight=2.0)
    assert double == pytest.approx(2 * single, rel=1e-6)


@each(BINARIES)
def test_binary_shapes_that_do_not_fit(function):
    x = np.zeros((4, 3))
    for target in (np.zeros((3, 4)), np.zeros(4), np.zeros((4, 1)), 0.0):
        with pytest.raises(ValueError, match=r"\(4, ?3\)"):
            function(x, target)
    for name in ("weight", "pos_weight"):
        for wrong in (np.ones(4), np.ones((2, 4, 3))):
            with pytest.raises(ValueError, match=name):
                function(x, x, **{name: wrong})


@each(BINARIES)
def test_binary_dtypes_that_are_refused(function):
    x = np.zeros((4, 3))
    for wrong in (x.astype(complex), x.astype(object), x.astype("U3")):
        with pytest.raises(TypeError):
            function(wrong, x)
        with pytest.raises(TypeError):
            function(x, wrong)


@pytest.mark.parametrize("n", [1, 70, 5000])
def test_binary_grad_out_may_be_the_logits(dtype, n):
    x, z = normal((2, n), dtype), labels_for((2, n), 2).astype(dtype)
    want = ps.binary_cross_entropy_with_logits_with_grad(x, z)
    logits = x.copy()
    loss, gradient = ps.binary_cross_entropy_with_logits_with_grad(logits, z, grad_out=logits)
    assert gradient is logits
    assert loss == want[0]
    assert_same_bytes(gradient, want[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_gradients_are_derivatives_of_the_reduced_loss(reduction):
    x, z = normal((3, 4), np.float64, scale=1), np.random.default_rng(0).random((3, 4))
    options = {"reduction": reduction, "weight": z + 0.5, "pos_weight": np.arange(1.0, 5)}
    gradient = ps.binary_cross_entropy_with_logits_with_grad(x, z, **options)[1]
    step = 1e-5
    for at in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[at] = step
        up = ps.binary_cross_entropy_with_logits(x + nudge, z, **options)
        down = ps.binary_cross_entropy_with_logits(x - nudge, z, **options)
        assert gradient[at] == pytest.approx(np.sum(up - down) / (2 * step), abs=1e-9)


# --- against PyTorch ----------------------------------------------------------------------------

RELATIVE = {"float32": 2e-5, "float64": 1e-12}


def _close(got, want, dtype, scale):
    return np.allclose(got, want, rtol=RELATIVE[dtype.name], atol=RELATIVE[dtype.name] * scale)


@pytest.mark.parametrize("seed", range(200))
def test_cross_entropy_against_torch(seed):
    torch = pytest.importorskip("torch", reason="comparison with torch needs torch")
    rng = np.random.default_rng(seed)
    dtype = np.dtype(["float32", "float64"][seed % 2])
    classes = int(rng.choice([2, 3, 10, 65, 300]))
    shape = [(5, classes), (3, classes, 4), (2, classes, 3, 2), (classes,)][seed // 2 % 4]
    axis = 0 if len(shape) == 1 else 1
    x = (rng.choice([0.1, 3, 30]) * rng.standard_normal(shape)).astype(dtype)
    rows = tuple(n for i, n in enumerate(shape) if i != axis)
    weight = rng.uniform(0.1, 3, classes).astype(dtype) if rng.random() < 0.5 else None
    options = {
        "reduction": str(rng.choice(REDUCTIONS)),
        "label_smoothing": float(rng.choice([0, 0, 0.1, 0.5, 1])),
    }
    if rng.random() < 0.6:
        ignored = int(rng.choice([-100, -1, 0, classes - 1]))
        target = np.asarray(rng.integers(0, classes, rows))
        target = np.where(rng.random(rows) < 0.2, ignored, target)
        options["ignore_index"] = ignored
    else:
        target = np.moveaxis(rng.dirichlet(np.ones(classes), rows), -1, axis).astype(dtype)

    leaf = torch.tensor(x, requires_grad=True)
    w = None if weight is None else torch.tensor(weight)
    want = torch.nn.functional.cross_entropy(leaf, torch.tensor(target), weight=w, **options)
    want.sum().backward()
    loss, gradient = ps.cross_entropy_with_grad(x, target, axis, weight=weight, **options)
    about = f"{dtype}, {shape}, weight={weight is not None}, {options}"
    expected = want.detach().numpy()
    if np.isnan(expected).any():  # every row is ignored
        assert np.isnan(loss), about
        assert (gradient == 0).all(), about
        return
    assert np.allclose(loss, expected, rtol=RELATIVE[dtype.name], atol=1e-6), about
    assert _close(gradient, leaf.grad.numpy(), dtype, 4), about


@pytest.mark.parametrize("seed", range(100))
def test_binary_cross_entropy_against_torch(seed):
    torch = pytest.importorskip("torch", reason="comparison with torch needs torch")
    rng = np.random.default_rng(seed)
    dtype = np.dtype(["float32", "float64"][seed % 2])
    shape = [(7,), (3, 10), (2, 3, 5), (1, 300)][seed // 2 % 4]
    x = (rng.choice([0.1, 3, 30]) * rng.standard_normal(shape)).astype(dtype)
    z = rng.random(shape) if rng.random() < 0.5 else rng.integers(0, 2, shape)
    z = z.astype(dtype)
    options = {}
    if rng.random() < 0.5:
        options["weight"] = rng.uniform(0.1, 3, shape[-1:]).astype(dtype)
    if rng.random() < 0.5:
        options["pos_weight"] = rng.uniform(0.1, 3, shape[-1:]).astype(dtype)
    reduction = str(rng.choice(REDUCTIONS))

    leaf = torch.tensor(x, requires_grad=True)
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        leaf,
        torch.tensor(z),
        reduction=reduction,
        **{name: torch.tensor(value) for name, value in options.items()},
    )
    want.sum().backward()
    loss, gradient = ps.binary_cross_entropy_with_logits_with_grad(
        x, z, reduction=reduction, **options
    )
    about = f"{dtype}, {shape}, {reduction}, {list(options)}"
    expected = want.detach().numpy()
    assert _close(loss, expected, dtype, 10), about
    assert _close(gradient, leaf.grad.numpy(), dtype, 4), about
