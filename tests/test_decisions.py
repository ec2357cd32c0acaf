"""Abstention, risk and coverage, the best few, and remedies for imbalance."""

import math
import tracemalloc

import numpy as np
import pytest
from cases import BFLOAT16, LAYOUTS, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

import pysoftmax as ps
from pysoftmax._rows import BLOCK
from pysoftmax.demo import load_digits

INF, NAN = math.inf, math.nan
P = np.array([[0.9, 0.06, 0.04], [0.5, 0.48, 0.02], [0.4, 0.3, 0.3], [0.0, 0.5, 0.5]])
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def typed(dtype):
    if dtype == "bfloat16" and BFLOAT16 is None:
        pytest.skip("bfloat16 needs ml_dtypes")
    return np.dtype(BFLOAT16 if dtype == "bfloat16" else dtype)


def drawn(n, classes, seed=0, dtype="float64"):
    """Probabilities with ties, and labels."""
    rng = np.random.default_rng(seed)
    p = ps.softmax(rng.integers(-2, 3, (n, classes)).astype(dtype))
    return p, rng.integers(0, classes, n)


# --- decide -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "margin", "expected"),
    [
        (0, 0, [0, 0, 0, 1]),
        (0.5, 0, [0, 0, -1, 1]),  # at least, and of equal classes the first
        (0.5, 0.01, [0, 0, -1, -1]),
        (0.0, 0.1, [0, -1, 0, -1]),
        (0.91, 0, [-1, -1, -1, -1]),
        (0.9, 0.83, [0, -1, -1, -1]),
        (1, 1, [-1, -1, -1, -1]),
    ],
)
def test_a_class_is_taken_if_it_is_probable_and_ahead(threshold, margin, expected):
    decisions = ps.decide(P, threshold, margin=margin)
    assert decisions.dtype == np.int64
    assert decisions.tolist() == expected
    other = ps.decide(P, threshold, margin=margin, abstain_label=-100)
    assert (np.where(other == -100, -1, other) == decisions).all()


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2**20), st.integers(2, 9), st.floats(0, 1), st.floats(0, 1))
def test_decide_is_its_definition(seed, classes, threshold, margin):
    p, _ = drawn(20, classes, seed, "float32")
    for row, decision in zip(p, ps.decide(p, threshold, margin=margin), strict=True):
        second, first = sorted(row.tolist())[-2:]
        sure = first >= threshold and first - second >= margin
        assert decision == (row.argmax() if sure else -1)


def test_a_margin_that_is_reached_exactly_is_enough():
    assert ps.decide([0.75, 0.25], 0.75, margin=0.5) == 0
    assert ps.decide([0.75, 0.25], 0.75, margin=np.nextafter(0.5, 1)) == -1


def test_thresholds_are_not_rounded_to_the_dtype():
    p = np.array([[0.9, 0.1]], np.float32)  # a little less than 0.9
    assert ps.decide(p, 0.9) == -1
    assert ps.decide(p, float(p[0, 0])) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_decide_on_every_dtype(dtype):
    p = P.astype(typed(dtype))
    assert ps.decide(p, 0.45, margin=0.05).tolist() == [0, -1, -1, -1]


@pytest.mark.parametrize("name", [n for n in LAYOUTS if "columns" not in n])
@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_decide_along_any_axis_of_any_layout(name, axis):
    p = LAYOUTS[name](ps.softmax(normal((6, 4, 5), "float64")))
    decisions = ps.decide(np.moveaxis(p, -1, axis), 0.5, margin=0.2, axis=axis)
    assert decisions.shape == (6, 4)
    plain = np.ascontiguousarray(p, "float64")
    assert (decisions == ps.decide(plain, 0.5, margin=0.2)).all()


def test_decide_on_one_row_and_on_none():
    assert isinstance(ps.decide([0.2, 0.8], 0.5), np.int64)
    assert ps.decide([0.2, 0.8], 0.5) == 1
    assert ps.decide(np.zeros((0, 3)), 0.5).shape == (0,)


def test_decide_takes_calibrated_probabilities_of_the_digits():
    logits, labels = load_digits()
    p = ps.fit_temperature(logits[:450], labels[:450]).apply(logits[450:])
    decisions, truth = ps.decide(p, 0.9), labels[450:]
    decided = decisions >= 0
    assert 0.5 < decided.mean() < 1
    assert (decisions == truth)[decided].mean() > (p.argmax(axis=1) == truth).mean()


@pytest.mark.parametrize(
    ("probabilities", "options", "error", "message"),
    [
        (P, {"threshold": 1.5}, ValueError, r"threshold must be in \[0, 1\], got 1.5"),
        (P, {"threshold": NAN}, ValueError, r"threshold must be in \[0, 1\], got nan"),
        (P, {"threshold": "high"}, TypeError, "threshold must be a real number, got 'high'"),
        (P, {"threshold": [0.5, 0.6]}, TypeError, "threshold must be a real number"),
        (P, {"margin": -0.1}, ValueError, r"margin must be in \[0, 1\], got -0.1"),
        (P, {"abstain_label": 2}, ValueError, r"must not be a class, \[0, 3\), got 2"),
        (P, {"abstain_label": 0.5}, TypeError, "integer"),
        (P, {"axis": 2}, np.exceptions.AxisError, "out of bounds"),
        (P, {"axis": None}, TypeError, "axis must be one int"),
        ([[0.5, 0.5], [NAN, 1]], {}, ValueError, r"row\[1\]: .* in \[0, 1\], got nan"),
        ([[0.5, 0.5], [1.5, -0.5]], {}, ValueError, r"row\[1\]: .* in \[0, 1\], got -0.5"),
        ([[2.0, 3.0]], {}, ValueError, r"row\[0\]: .* add up to 1, got 5.0"),
        ([[1.0], [1.0]], {}, ValueError, r"2 classes along axis 1, got shape \(2, 1\)"),
        (0.5, {}, ValueError, "at least one dimension"),
        (np.ma.masked_less(P, 0.1), {}, ValueError, "probabilities has masked entries"),
        (P.astype(complex), {}, TypeError, "complex128"),
    ],
)
def test_decide_refuses(probabilities, options, error, message):
    with pytest.raises(error, match=message):
        ps.decide(probabilities, **{"threshold": 0.5, **options})


def test_an_error_in_a_later_block_has_its_position():
    p = np.full((3, 2, BLOCK // 4), 0.5)
    p[2, 1, 12345] = NAN
    with pytest.raises(ValueError, match=r"row\[2, 12345\]"):
        ps.decide(p, 0.5, axis=1)


# --- risk and coverage --------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 2**20), st.integers(2, 5), st.booleans())
def test_each_point_is_what_decide_does_with_its_threshold(seed, classes, weighted):
    p, labels = drawn(40, classes, seed, "float32")
    weight = np.random.default_rng(seed).integers(0, 3, 40) if weighted else np.ones(40)
    weight[0] = 1
    curve = ps.risk_coverage_curve(p, labels, sample_weight=weight if weighted else None)
    used = np.unique(p.max(axis=1)[weight > 0])
    assert curve.thresholds == pytest.approx(used[::-1], rel=0)
    for coverage, risk, threshold in zip(*curve, strict=True):
        decisions = ps.decide(p, threshold)
        decided = decisions >= 0
        assert coverage == pytest.approx(np.average(decided, weights=weight))
        assert risk == pytest.approx(
            np.average((decisions != labels)[decided], weights=weight[decided])
        )
    assert curve.coverage[-1] == 1


def test_the_curve_of_the_digits_ends_at_the_error_rate():
    logits, labels = load_digits()
    p = ps.softmax(logits)
    curve = ps.risk_coverage_curve(p, labels)
    assert all(each.dtype == np.float64 for each in curve)
    assert (np.diff(curve.coverage) > 0).all()
    assert curve.risk[-1] == pytest.approx((p.argmax(axis=1) != labels).mean())
    assert curve.risk[0] < curve.risk[-1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.5, 0.5]], [2]), IndexError, r"labels\[0\] is 2"),
        (([[0.5, 0.6]], [0]), ValueError, "add up to 1, got 1.1"),
        (([[0.5, NAN]], [0]), ValueError, "got nan"),
        (([[0.5, 0.5]], [0.0]), TypeError, "labels must be integers"),
    ],
)
def test_the_curve_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        ps.risk_coverage_curve(*arguments)


# --- top_k --------------------------------------------------------------------------------------


def sorted_top_k(x, k):
    """By a stable sort of everything; NaN first."""

    def rank(value):
        return (0, 0) if value != value else (1, -value)

    rows = np.asarray(x).reshape(-1, x.shape[-1]).tolist()
    order = [sorted(range(len(row)), key=lambda c, row=row: rank(row[c]))[:k] for row in rows]
    order = np.array(order).reshape(*x.shape[:-1], k)
    return np.take_along_axis(x, order, -1), order


entries = st.integers(-3, 3) | st.sampled_from([INF, -INF, NAN, -0.0])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(entries, min_size=1, max_size=30), st.integers(1, 30), st.sampled_from([1, 3]))
def test_top_k_is_the_head_of_a_stable_sort(row, k, rows):
    k = min(k, len(row))
    x = np.tile(np.array(row, np.float64), (rows, 1))
    values, indices = ps.top_k(x, k)
    expected, order = sorted_top_k(x, k)
    assert (indices == order).all()
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("k", [1, 50, 3000])
@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "ascending", "-inf", "NaN"])
@pytest.mark.parametrize("classes", [8191, 8192, 40_001])
def test_top_k_of_many_classes(k, kind, classes):
    x = normal((3, classes), "float32")
    if kind == "ties":
        x = x.round()
    elif kind == "constant":
        x[1] = 2
    elif kind == "ascending":
        x.sort(axis=1)
    elif kind == "-inf":
        x[1, 7:] = -INF
    elif kind == "NaN":
        x[1, ::3] = NAN
        x[2, 5] = NAN
    values, indices = ps.top_k(x, k)
    order = np.argsort(-x, axis=1, kind="stable")
    if kind == "NaN":
        order = np.argsort(np.where(np.isnan(x), -INF, -x), axis=1, kind="stable")
    assert (indices == order[:, :k]).all()
    np.testing.assert_array_equal(values, np.take_along_axis(x, indices, axis=1))


@pytest.mark.parametrize("dtype", [*DTYPES, "int8", "uint8", "int64", "uint64", "bool"])
def test_top_k_of_every_dtype(dtype):
    dtype = typed(dtype)
    x = normal((4, 9), "float64", 1, 30).astype(dtype)
    if dtype.name == "int64":
        x += np.int64(2**62)  # differences that float64 would lose
    values, indices = ps.top_k(x, 4)
    expected, order = sorted_top_k(x, 4)
    assert values.dtype == dtype
    assert indices.dtype == np.int64
    assert (indices == order).all()
    assert (values == expected).all()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_top_k_along_any_axis_of_any_layout(name, axis):
    x = LAYOUTS[name](normal((6, 4, 5), "float64").round())
    values, indices = ps.top_k(x, 3, axis=axis)
    expected, order = sorted_top_k(np.moveaxis(x, axis, -1), 3)
    assert values.dtype == np.float64
    assert (np.moveaxis(values, axis, -1) == expected).all()
    assert (np.moveaxis(indices, axis, -1) == order).all()


def test_top_k_of_one_row_of_no_rows_and_of_all_classes():
    values, indices = ps.top_k([1.0, 3.0, 2.0], 2)
    assert (values.tolist(), indices.tolist()) == ([3.0, 2.0], [1, 2])
    values, indices = ps.top_k(np.zeros((0, 3)), 2)
    assert values.shape == indices.shape == (0, 2)
    assert ps.top_k([[3, 1, 2]], 3).indices.tolist() == [[0, 2, 1]]


def test_top_k_needs_little_memory():
    """Scores of 32 MB."""
    x = np.zeros((64, 1 << 17), np.float32)
    x += np.linspace(0, 1, 1 << 17, dtype=np.float32)
    tracemalloc.start()
    ps.top_k(x, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize(
    ("scores", "k", "options", "error", "message"),
    [
        ([1.0, 2.0], 0, {}, ValueError, r"k must be in \[1, 2\].*, got 0"),
        ([1.0, 2.0], 3, {}, ValueError, r"k must be in \[1, 2\].*, got 3"),
        ([1.0, 2.0], 1.0, {}, TypeError, "integer"),
        ([[1.0, 2.0]], 1, {"axis": 2}, np.exceptions.AxisError, "out of bounds"),
        ([[1.0, 2.0]], 1, {"axis": None}, TypeError, "axis must be one int"),
        (3.0, 1, {}, ValueError, "at least one dimension"),
        (["a", "b"], 1, {}, TypeError, "expected an array"),
        (np.ma.masked_equal([1.0, 2.0], 2), 1, {}, ValueError, "scores has masked entries"),
    ],
)
def test_top_k_refuses(scores, k, options, error, message):
    with pytest.raises(error, match=message):
        ps.top_k(scores, k, **options)


# --- imbalance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [None, 6])
@pytest.mark.parametrize("label_type", ["uint8", "int32", "int64", "uint64", list])
def test_balanced_weights_are_those_of_scikit_learn(n_classes, label_type):
    labels = np.random.default_rng(0).choice(6, 500, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    given_labels = labels.tolist() if label_type is list else labels.astype(label_type)
    weight = ps.class_weight("balanced", given_labels, n_classes=n_classes)
    assert weight.dtype == np.float64
    theirs = compute_class_weight("balanced", classes=np.arange(6), y=labels)
    assert weight == pytest.approx(theirs, rel=1e-15)
    assert weight[labels].mean() == pytest.approx(1)


def test_balanced_weights_count_every_class_the_same_in_the_loss():
    labels = np.array([[0, 0, 0], [0, 0, 1]])
    logits = normal((2, 3, 2), "float64")
    weight = ps.class_weight("balanced", labels)
    loss = ps.cross_entropy(logits, labels, weight=weight)
    each = ps.cross_entropy(logits, labels, reduction="none")
    assert loss == pytest.approx((each[labels == 0].mean() + each[labels == 1].mean()) / 2)


@pytest.mark.parametrize(
    ("mode", "labels", "n_classes", "error", "message"),
    [
        ("even", [0, 1], None, ValueError, "mode must be 'balanced', got 'even'"),
        ("balanced", [0, 2], None, ValueError, "every class, got none of 1"),
        ("balanced", [0, 1], 3, ValueError, "every class, got none of 2"),
        ("balanced", [[0, 1], [3, 2]], 3, IndexError, r"labels\[1, 0\] is 3: .* in \[0, 3\)"),
        ("balanced", [0, -1], None, IndexError, r"labels\[1\] is -1"),
        ("balanced", [0.0, 1.0], None, TypeError, "labels must be integers, got float64"),
        ("balanced", np.zeros(0, int), None, ValueError, r"one label, got shape \(0,\)"),
        ("balanced", [0, 1], 2.0, TypeError, "integer"),
        ("balanced", np.ma.masked_equal([0, 1], 1), None, ValueError, "labels has masked"),
    ],
)
def test_class_weight_refuses(mode, labels, n_classes, error, message):
    with pytest.raises(error, match=message):
        ps.class_weight(mode, labels, n_classes=n_classes)


PRIOR = np.array([0.7, 0.2, 0.1])


@pytest.mark.parametrize("tau", [0, 1, 0.5, -1])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adjusted_logits_are_less_the_logarithm_of_the_prior(tau, axis, dtype):
    dtype = typed(dtype)
    x = normal((3, 3), "float64").astype(dtype)
    adjusted = ps.logit_adjust(x, PRIOR, tau, axis=axis)
    assert adjusted.dtype == dtype
    assert adjusted.shape == x.shape
    shift = np.moveaxis(np.tile(np.log(PRIOR), (3, 1)), -1, axis)
    exact = x.astype(np.float64) - tau * shift
    eps = {2: 2.0**-8, 4: 2.0**-23, 8: 2.0**-52}[dtype.itemsize]
    assert adjusted.astype(np.float64) == pytest.approx(exact, rel=eps, abs=eps)


def test_adjusting_takes_the_prior_out_of_the_posterior():
    """p(c | x) / prior_c, normalised, is the posterior where all classes are as common."""
    likelihood = ps.softmax(normal((50, 3), "float64"))
    logits = np.log(likelihood * PRIOR)
    assert ps.softmax(ps.logit_adjust(logits, PRIOR)) == pytest.approx(likelihood, rel=1e-12)


def test_integers_are_promoted_and_minus_infinity_stays():
    assert ps.logit_adjust([[1, 2]], [0.5, 0.5]).dtype == np.float64
    assert ps.logit_adjust([-INF, 0.0], [0.5, 0.5])[0] == -INF
    masked = ps.logit_adjust(np.ma.masked_equal([1.0, 2.0], 2), [0.5, 0.5])
    assert masked.mask.tolist() == [False, True]


@pytest.mark.parametrize(
    ("prior", "options", "error", "message"),
    [
        ([0.5, 0.5], {}, ValueError, r"one entry per class \(3,\), got \(2,\)"),
        ([[0.5, 0.25, 0.25]], {}, ValueError, r"one entry per class \(3,\), got \(1, 3\)"),
        ([0.5, 0.5, 0.0], {}, ValueError, "prior must be > 0 for every class, got 0.0"),
        ([0.5, 0.5, NAN], {}, ValueError, "prior must be > 0 for every class, got nan"),
        ([1, 2, 3], {}, ValueError, "prior must be numbers that add up to 1, got 6.0"),
        (["a", "b", "c"], {}, TypeError, "prior must be real"),
        (PRIOR, {"tau": INF}, ValueError, "tau must be in .* got inf"),
        (PRIOR, {"tau": NAN}, ValueError, "tau must be in .* got nan"),
        (PRIOR, {"tau": None}, TypeError, "tau must be a real number, got None"),
        (PRIOR, {"axis": 5}, np.exceptions.AxisError, "out of bounds"),
    ],
)
def test_logit_adjust_refuses(prior, options, error, message):
    with pytest.raises(error, match=message):
        ps.logit_adjust(np.zeros((2, 3)), prior, **options)
