"""Temperature and vector scaling: the minimum, what data leave open, and what is refused."""

import dataclasses
import math
import sys
import tracemalloc

import numpy as np
import pytest
from cases import BFLOAT16, LAYOUTS, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression

import pysoftmax as ps
from pysoftmax import calibration
from pysoftmax._labelled import Labelled
from pysoftmax._rows import BLOCK
from pysoftmax.demo import load_digits

INF, NAN = math.inf, math.nan
FITS = [ps.fit_temperature, ps.fit_vector_scaling]

each_fit = pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)


def drawn(n, classes, temperature=2.0, seed=0, scale=4.0, dtype="float64"):
    """Logits, and labels that are drawn from their softmax at a temperature."""
    logits = normal((n, classes), dtype, seed, scale)
    cumulative = ps.softmax(logits.astype(np.float64), temperature=temperature).cumsum(axis=1)
    labels = (cumulative > np.random.default_rng(seed + 1).random((n, 1))).argmax(axis=1)
    return logits, labels


def nll(logits, labels, weight=None):
    """Mean negative log-likelihood in extended precision."""
    x = np.asarray(logits, np.longdouble)
    top = x.max(axis=-1)
    lse = top + np.log(np.exp(x - top[:, None]).sum(axis=-1))
    return np.average(lse - x[np.arange(len(x)), labels], weights=weight)


def residuals(logits, labels):
    """softmax(logits) - one-hot(labels) in extended precision."""
    x = np.asarray(logits, np.longdouble)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    p[np.arange(len(x)), labels] -= 1
    return p


# --- temperature: the minimum -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_objective_has_the_derivatives_of_the_likelihood(temperature, weighted):
    x, labels = drawn(300, 7)
    weight = np.random.default_rng(2).random(300) if weighted else None
    data = Labelled("logits", x, labels, -1, weight)
    value, gradient, curvature = calibration._objective(data, temperature)

    def exact(beta):
        return nll(np.longdouble(beta) * x.astype(np.longdouble), labels, weight)

    beta, step = np.longdouble(1) / np.longdouble(temperature), np.longdouble(1e-4)
    low, middle, high = (exact(beta + k * step) for k in (-1, 0, 1))
    slope, bend = (high - low) / (2 * step), (high - 2 * middle + low) / step**2
    assert value == pytest.approx(float(middle), rel=1e-13)
    assert gradient == pytest.approx(float(beta * slope), rel=1e-5)
    assert curvature == pytest.approx(float(beta**2 * bend), rel=1e-5)


@pytest.mark.parametrize("share", [0.6, 0.75, 0.99])
@pytest.mark.parametrize("margin", [0.01, 3.0, 200.0])
def test_the_temperature_of_one_margin_is_the_closed_form(share, margin):
    """With logits (m, 0) and a share q right, sigmoid(m / T) = q."""
    labels = (np.arange(1000) >= round(1000 * share)).astype(int)
    result = ps.fit_temperature(np.tile([margin, 0.0], (1000, 1)), labels)
    assert result.temperature == pytest.approx(margin / math.log(share / (1 - share)), rel=1e-9)
    entropy = -share * math.log(share) - (1 - share) * math.log1p(-share)
    assert result.nll_after == pytest.approx(entropy, rel=1e-12)
    assert result.converged
    assert not result.at_bound


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 30.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(classes, temperature):
    x, labels = drawn(5000, classes, temperature, scale=4 * temperature)
    result = ps.fit_temperature(x, labels)
    data = Labelled("logits", x, labels, -1, None)
    _, gradient, curvature = calibration._objective(data, result.temperature)
    error = 1 / math.sqrt(5000 * curvature)  # of log T: the Fisher information is N Var_p[x / T]
    assert abs(math.log(result.temperature / temperature)) < 4 * error
    assert abs(gradient) < 1e-8 * curvature
    assert result.converged
    assert result.iterations < 20


class Logits(ClassifierMixin, BaseEstimator):
    """A classifier whose logits are its features."""

    def fit(self, x, labels, sample_weight=None):
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


@pytest.mark.parametrize(("n", "classes"), [(400, 3), (3000, 10), (500, 100)])
def test_as_scikit_learn(n, classes):
    x, labels = drawn(n, classes, 1.7)
    labels[: 2 * classes] = np.tile(np.arange(classes), 2)  # it wants all of them
    for weight in (None, np.random.default_rng(3).random(n)):
        theirs = CalibratedClassifierCV(Logits(), method="temperature", ensemble=False, cv=2)
        theirs.fit(x, labels, sample_weight=weight)
        result = ps.fit_temperature(x, labels, sample_weight=weight)
        beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
        assert result.temperature == pytest.approx(1 / float(beta), rel=1e-6)
        assert result.apply(x) == pytest.approx(theirs.predict_proba(x), abs=1e-6)


def test_digits_are_calibrated():
    logits, labels = load_digits()
    result = ps.fit_temperature(logits[:450], labels[:450])
    assert 7 < result.temperature < 10
    assert result.converged
    assert not result.at_bound
    before, after = ps.softmax(logits[450:]), result.apply(logits[450:])
    for measure in (ps.negative_log_likelihood, ps.brier_score, ps.expected_calibration_error):
        assert measure(after, labels[450:]) < measure(before, labels[450:])
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()


def test_the_result_tells_the_likelihood_before_and_after():
    x, labels = drawn(500, 5)
    result = ps.fit_temperature(x, labels)
    assert type(result) is ps.TemperatureScaling
    assert result.nll_before == pytest.approx(float(nll(x, labels)), rel=1e-13)
    after = nll(x.astype(np.longdouble) / result.temperature, labels)
    assert result.nll_after == pytest.approx(float(after), rel=1e-13)
    assert result.nll_after == pytest.approx(ps.negative_log_likelihood(result.apply(x), labels))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.temperature = 1.0


# --- temperature: laws --------------------------------------------------------------------------

seeds = st.integers(0, 2**20)
laws = settings(deadline=None, derandomize=True, max_examples=20)


def temperature_of(*arguments, **options):
    return ps.fit_temperature(*arguments, **options).temperature


@laws
@given(seeds, st.floats(0.1, 10))
def test_scaling_the_logits_scales_the_temperature(seed, factor):
    x, labels = drawn(60, 4, seed=seed)
    scaled = temperature_of(factor * x, labels, bounds=(1e-3 * factor, 1e3 * factor))
    assert scaled == pytest.approx(factor * temperature_of(x, labels), rel=1e-7)


@laws
@given(seeds)
def test_rows_and_classes_may_come_in_any_order(seed):
    x, labels = drawn(60, 4, seed=seed)
    rng = np.random.default_rng(seed)
    rows, classes = rng.permutation(60), rng.permutation(4)
    permuted = temperature_of(x[rows][:, classes], classes.argsort()[labels[rows]])
    assert permuted == pytest.approx(temperature_of(x, labels), rel=1e-7)


@laws
@given(seeds)
def test_what_is_added_to_a_row_changes_nothing(seed):
    x, labels = drawn(60, 4, seed=seed)
    offset = normal((60, 1), "float64", seed, 100)
    assert temperature_of(x + offset, labels) == pytest.approx(temperature_of(x, labels), rel=1e-7)


@laws
@given(seeds)
@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
def test_a_weight_counts_as_repetition(fit, seed):
    x, labels = drawn(400, 3, 4.0, seed=seed)
    weight = np.random.default_rng(seed).integers(0, 4, 400)
    weighted = fit(x, labels, sample_weight=weight)
    repeated = fit(np.repeat(x, weight, axis=0), np.repeat(labels, weight))
    assert weighted.nll_after == pytest.approx(repeated.nll_after, rel=1e-12)
    assert weighted.apply(x) == pytest.approx(repeated.apply(x), abs=1e-5)


# --- what data leave open -----------------------------------------------------------------------


def test_labels_that_are_always_right_take_the_lowest_temperature():
    x = normal((50, 4), "float64")
    with pytest.warns(UserWarning, match="every label has the largest logit") as caught:
        result = ps.fit_temperature(x, x.argmax(axis=1), bounds=(0.25, 40))
    assert (result.temperature, result.converged, result.at_bound) == (0.25, True, True)
    assert result.nll_after < result.nll_before
    assert caught[0].filename == __file__


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_saturated_rows_that_are_right_are_not_taken_for_equal_logits(scale):
    """At scale 1e6 gradient and curvature are 0 at all temperatures within the bounds."""
    x = scale * np.array([[1.0, 0.0], [0.0, 1.0]])
    with pytest.warns(UserWarning, match="largest logit"):
        assert ps.fit_temperature(x, [0, 1]).temperature == 1e-3


@pytest.mark.parametrize("choose", [np.argmin, lambda x, axis: x.argsort(axis)[:, 1]])
def test_labels_that_the_logits_speak_against_take_the_highest_temperature(choose):
    x = normal((50, 4), "float64")
    with pytest.warns(UserWarning, match="at its bound, 40"):
        result = ps.fit_temperature(x, choose(x, axis=1), bounds=(0.25, 40))
    assert (result.temperature, result.converged, result.at_bound) == (40, True, True)


@pytest.mark.parametrize(
    ("drawn_at", "bounds", "expected"),
    [(1, (3, 4), 3), (1, (0.1, 0.2), 0.2), (2, (1, 1.5), 1.5), (0.5, (1, 10), 1)],
)
def test_bounds_that_are_too_narrow_are_told(drawn_at, bounds, expected):
    x, labels = drawn(4000, 5, drawn_at)
    with pytest.warns(UserWarning, match="at its bound"):
        result = ps.fit_temperature(x, labels, bounds=bounds)
    assert (result.temperature, result.converged, result.at_bound) == (expected, True, True)
    assert result.nll_after == pytest.approx(float(nll(x / expected, labels)))


@pytest.mark.parametrize(("drawn_at", "bounds"), [(2, (1, 10)), (0.5, (0.1, 1)), (9, (1e-9, 1e9))])
def test_bounds_may_begin_or_end_at_1_or_be_far(drawn_at, bounds):
    x, labels = drawn(4000, 5, drawn_at)
    result = ps.fit_temperature(x, labels, bounds=bounds)
    assert result.temperature == pytest.approx(drawn_at, rel=0.1)
    assert not result.at_bound


@pytest.mark.parametrize(("bounds", "expected"), [((0.5, 5), 1), ((2, 5), 2), ((0.1, 0.5), 0.5)])
@pytest.mark.parametrize("masked", [False, True])
def test_equal_logits_leave_the_temperature_at_1(bounds, expected, masked):
    x = np.repeat(normal((30, 1), "float64"), 3, axis=1)
    if masked:
        x[::2, 2] = -INF
    with pytest.warns(UserWarning, match="the logits of each row are equal"):
        result = ps.fit_temperature(x, np.arange(30) % 2, bounds=bounds)
    assert (result.temperature, result.converged, result.at_bound) == (expected, True, False)
    assert result.nll_after == result.nll_before


def test_a_class_of_logit_minus_infinity_takes_no_part():
    x, labels = drawn(300, 4)
    with_more = np.concatenate([x, np.full((300, 2), -INF)], axis=1)
    more, fewer = (dataclasses.astuple(ps.fit_temperature(z, labels)) for z in (with_more, x))
    assert more == pytest.approx(fewer, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-290, 1e-30, 1e30, 1e150, 1e290])
def test_logits_of_any_magnitude(scale):
    """The squares of the larger ones overflow, those of the smaller ones underflow."""
    labels = np.array([0, 0, 0, 1])
    x = np.array([[1.0, -1.0], [0.5, -0.5], [1.0, -1.0], [1.0, -1.0]])
    result = ps.fit_temperature(scale * x, labels, bounds=(scale / 100, scale * 100))
    expected = ps.fit_temperature(x, labels)
    assert result.temperature == pytest.approx(scale * expected.temperature, rel=1e-7)
    assert result.nll_after == pytest.approx(expected.nll_after, rel=1e-12)
    assert result.converged


@pytest.mark.parametrize("bounds", [(1e-3, 1e3), (1e-300, 1e300)])
def test_logits_whose_differences_overflow(bounds):
    x = np.array([[1.7e308, -1.7e308]] * 4)
    with pytest.warns(UserWarning, match="at its bound"):
        assert ps.fit_temperature(x, [0, 0, 0, 1], bounds=bounds).temperature == bounds[1]


@pytest.mark.parametrize(("right", "wrong"), [(600, 1e-287), (300, 1e-200)])
def test_an_exponential_tail_is_passed_quickly(right, wrong):
    """Newton's method alone takes 74 and 173 iterations."""
    result = ps.fit_temperature([[right, 0.0], [wrong, 0.0]], [0, 1])
    expected = right * math.exp(-right / result.temperature)  # the gradients of both rows
    assert expected == pytest.approx(wrong / 2, rel=1e-5)
    assert result.iterations < 25


@each_fit
def test_rows_of_weight_0_may_hold_anything(fit):
    x, labels = drawn(200, 3)
    bad = np.array([[NAN, 0, 0], [INF, 0, 0], [-INF, 0, 0], [0, 1, 2]])
    more, wrong = np.concatenate([bad, x]), np.concatenate([[0, 0, 0, -100], labels])
    weight = np.arange(204) >= 4
    result, plain = fit(more, wrong, sample_weight=weight), fit(x, labels)
    assert result.nll_after == plain.nll_after


# --- what is refused ----------------------------------------------------------------------------

X = [[1.0, 2.0, 3.0], [2.0, 1.0, 0.0]]


@each_fit
@pytest.mark.parametrize(
    ("logits", "labels", "options", "error", "message"),
    [
        ([[0, NAN, 1], X[0]], [0, 0], {}, ValueError, r"row of labels\[0\].*got nan"),
        ([X[0], [0, INF, 1]], [0, 0], {}, ValueError, r"row of labels\[1\].*got inf"),
        ([X[0], [-INF] * 3], [0, 0], {}, ValueError, r"row of labels\[1\].*finite.*got -inf"),
        ([X[0], [-INF, 0, 1]], [0, 0], {}, ValueError, "finite logit of the label, got -inf"),
        (np.zeros((0, 3)), np.zeros(0, int), {}, ValueError, r"one row, got shape \(0, 3\)"),
        ([[1.0], [2.0]], [0, 0], {}, ValueError, r"2 classes .* got shape \(2, 1\)"),
        (np.zeros((2, 0)), [0, 0], {}, ValueError, r"2 classes .* got shape \(2, 0\)"),
        (X, [0, 3], {}, IndexError, r"labels\[1\] is 3: .* in \[0, 3\)"),
        (X, [-1, 0], {}, IndexError, r"labels\[0\] is -1"),
        (X, [0, -100], {}, IndexError, r"labels\[1\] is -100"),
        (X, [0.0, 1.0], {}, TypeError, "labels must be integers, got float64"),
        (X, [True, False], {}, TypeError, "labels must be integers, got bool"),
        (X, [0], {}, ValueError, r"labels must have the shape .* \(2,\), got \(1,\)"),
        (X, [[0], [1]], {}, ValueError, r"labels must have the shape .* got \(2, 1\)"),
        (X, [0, 1], {"sample_weight": [0, 0]}, ValueError, "sum of sample_weight .* got 0.0"),
        (X, [0, 1], {"sample_weight": [1, -1]}, ValueError, "sample_weight .* got -1.0"),
        (X, [0, 1], {"sample_weight": [1, NAN]}, ValueError, "sample_weight .* got nan"),
        (X, [0, 1], {"sample_weight": [1, INF]}, ValueError, "finite, got inf"),
        (X, [0, 1], {"sample_weight": [1e308, 1e308]}, ValueError, "finite, got inf"),
        (X, [0, 1], {"sample_weight": [1]}, ValueError, r"per row \(2,\), got \(1,\)"),
        (X, [0, 1], {"sample_weight": ["a", "b"]}, TypeError, "sample_weight must be real"),
        (X, [0, 1], {"bounds": (0, 1)}, ValueError, "bounds must be"),
        (X, [0, 1], {"bounds": (2, 1)}, ValueError, r"bounds must be .* got \(2, 1\)"),
        (X, [0, 1], {"bounds": (1, INF)}, ValueError, "bounds must be"),
        (X, [0, 1], {"bounds": (1e-320, 1)}, ValueError, "bounds must be"),
        (X, [0, 1], {"bounds": (NAN, 1)}, ValueError, "bounds must be"),
        (X, [0, 1], {"axis": 2}, np.exceptions.AxisError, "out of bounds"),
        (X, [0, 1], {"axis": None}, TypeError, "axis must be one int"),
        (np.ones((2, 3), complex), [0, 1], {}, TypeError, "complex128"),
        (np.ma.masked_equal(X, 3), [0, 1], {}, ValueError, "logits has masked entries"),
        (X, np.ma.masked_equal([0, 1], 1), {}, ValueError, "labels has masked entries"),
    ],
)
def test_refuses(fit, logits, labels, options, error, message):
    with pytest.raises(error, match=message):
        fit(logits, labels, **options)


def test_an_error_in_a_later_block_has_its_position():
    x = np.zeros((3, 2, BLOCK // 4))
    x[2, 1, 12345] = NAN
    labels = np.zeros((3, BLOCK // 4), int)
    weight = np.ones_like(labels)
    weight[0] = 0
    for w in (None, weight):
        with pytest.raises(ValueError, match=r"labels\[2, 12345\]"):
            ps.fit_temperature(x, labels, axis=1, sample_weight=w)


# --- arrays of all kinds ------------------------------------------------------------------------


@each_fit
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "int8", "int64"])
def test_every_dtype(fit, dtype):
    if dtype == "bfloat16" and BFLOAT16 is None:
        pytest.skip("bfloat16 needs ml_dtypes")
    x, labels = drawn(500, 4)
    x = x.astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    result, wide = fit(x, labels), fit(x.astype(np.float64), labels)
    assert result.nll_after == wide.nll_after
    for ours, exact in (
        (result.apply(x), wide.apply(x.astype(np.float64))),
        (result.apply_log(x), wide.apply_log(x.astype(np.float64))),
    ):
        assert ours.dtype == ps.softmax(x).dtype
        assert ours.shape == x.shape
        eps = {2: 2.0**-8, 4: 1e-6, 8: 1e-12}[ours.dtype.itemsize]
        assert ours.astype(np.float64) == pytest.approx(exact, rel=eps * 8, abs=eps)


@each_fit
@pytest.mark.parametrize("name", [n for n in LAYOUTS if "broadcast" not in n])
def test_every_layout(fit, name):
    x, labels = drawn(200, 4)
    result = fit(LAYOUTS[name](x), LAYOUTS[name](labels))
    assert result.nll_after == fit(x, labels).nll_after


@each_fit
@pytest.mark.parametrize("label_type", ["uint8", "int32", "uint64", list])
def test_labels_of_any_integers(fit, label_type):
    x, labels = drawn(100, 4)
    given_labels = labels.tolist() if label_type is list else labels.astype(label_type)
    result = fit(x.tolist() if label_type is list else x, given_labels)
    assert result.nll_after == fit(x, labels).nll_after


@each_fit
@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_classes_along_any_axis(fit, axis):
    x, labels = drawn(60, 4)
    moved = np.moveaxis(x.reshape(20, 3, 4), -1, axis)
    weight = np.random.default_rng(0).random((20, 3))
    result = fit(moved, labels.reshape(20, 3), axis=axis, sample_weight=weight)
    flat = fit(x, labels, sample_weight=weight.reshape(-1))
    assert result.nll_after == pytest.approx(flat.nll_after, rel=1e-12)
    expected = np.moveaxis(flat.apply(x).reshape(20, 3, 4), -1, axis)
    assert result.apply(moved) == pytest.approx(expected, abs=1e-6)
    assert result.axis == axis


@each_fit
def test_a_single_row_needs_no_axis_of_rows(fit):
    with pytest.warns(UserWarning, match="bound|no row's label"):
        result = fit([3.0, 1.0, 2.0], 2, bounds=(0.5, 2))
    assert result.at_bound
    assert result.apply([3.0, 1.0, 2.0]).shape == (3,)
    assert result.nll_after < result.nll_before


@pytest.mark.parametrize(
    ("fit", "shape", "axis"),
    [
        (ps.fit_temperature, (1 << 17, 16), 1),
        (ps.fit_temperature, (16, 1 << 17), 0),
        (ps.fit_temperature, (1, 16, 512, 256), 1),
        (ps.fit_vector_scaling, (1, 16, 512, 256), 1),
    ],
)
def test_memory_is_bounded(fit, shape, axis):
    """Logits of 8 MB; a copy in float64 would be 16 MB."""
    x = normal(shape, "float32")
    rows = np.moveaxis(x, axis, -1).shape[:-1]
    labels = np.random.default_rng(0).integers(0, 16, rows, dtype=np.uint8)
    labels = np.where(labels < 8, x.argmax(axis=axis), labels).astype(np.uint8)
    tracemalloc.start()
    fit(x, labels, axis=axis)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6


# --- vector scaling -----------------------------------------------------------------------------


def distorted(n, classes, seed=0):
    """Logits that a scale and a bias for each class calibrate."""
    rng = np.random.default_rng(seed)
    logits, labels = drawn(n, classes, 1.0, seed, scale=2.0)
    scale, bias = rng.uniform(0.5, 2, classes), rng.normal(0, 1, classes)
    return (logits - bias) / scale, labels, scale, bias - bias.mean()


@pytest.mark.parametrize("weighted", [False, True])
def test_vector_objective_has_the_derivatives_of_the_likelihood(weighted):
    x, labels, scale, bias = distorted(200, 4)
    weight = np.random.default_rng(2).random(200) if weighted else None
    data = Labelled("logits", x, labels, -1, weight)
    value, by_scale, by_bias = calibration._vector_objective(data, scale, bias)

    def exact(parameters):
        log_scale, shift = np.split(parameters, 2)
        return float(nll(x * np.exp(log_scale) + shift, labels, weight))

    slopes = approx_fprime(np.concatenate([np.log(scale), bias]), exact, 1e-7)
    assert value == pytest.approx(exact(np.concatenate([np.log(scale), bias])), rel=1e-13)
    assert np.concatenate([by_scale, by_bias]) == pytest.approx(slopes, abs=1e-6)


@pytest.mark.parametrize(("n", "classes"), [(2000, 2), (2000, 5), (10_000, 30)])
@pytest.mark.parametrize("offsets", [0.0, 300.0, [0.0, 50.0]])
def test_the_gradient_is_zero_at_the_scales_and_biases_found(n, classes, offsets):
    """The likelihood is convex, so that this is the minimum."""
    x, labels, _, _ = distorted(n, classes)
    offset = np.resize(offsets, classes)
    x += offset
    result = ps.fit_vector_scaling(x, labels)
    assert result.converged
    assert not result.at_bound
    scaled = x.astype(np.longdouble) * result.scale + result.bias
    assert result.nll_after == pytest.approx(float(nll(scaled, labels)), rel=1e-12)
    slopes = residuals(scaled, labels)
    assert abs(slopes.mean(axis=0)).max() < 1e-6
    assert abs((slopes * (x - offset)).mean(axis=0)).max() < 1e-6
    assert result.bias.sum() == pytest.approx(0, abs=1e-9)


def test_scales_and_biases_that_labels_were_drawn_with_are_found():
    x, labels, scale, bias = distorted(100_000, 4)
    result = ps.fit_vector_scaling(x, labels)
    assert type(result) is ps.VectorScaling
    assert (result.scale.shape, result.bias.shape) == ((4,), (4,))
    assert result.scale == pytest.approx(scale, rel=0.03)
    assert result.bias == pytest.approx(bias, abs=0.05)
    assert result.nll_before == pytest.approx(float(nll(x, labels)), rel=1e-12)


def test_two_classes_are_logistic_regression():
    """z_1 - z_0 is linear in both logits."""
    x, labels, _, _ = distorted(3000, 2)
    result = ps.fit_vector_scaling(x, labels)
    model = LogisticRegression(C=np.inf, tol=1e-10).fit(x * [-1, 1], labels)
    assert result.scale == pytest.approx(model.coef_[0], rel=1e-5)
    assert np.diff(result.bias) == pytest.approx(model.intercept_, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 10])
def test_vector_scaling_is_at_least_as_likely_as_a_temperature(classes):
    for seed in range(5):
        x, labels = drawn(1000, classes, seed=seed)
        ours, theirs = ps.fit_vector_scaling(x, labels), ps.fit_temperature(x, labels)
        assert ours.nll_after <= theirs.nll_after


@laws
@given(seeds)
def test_scales_and_shifts_of_the_classes_make_no_difference(seed):
    x, labels = drawn(400, 3, 3.0, seed=seed)
    rng = np.random.default_rng(seed)
    scale, shift = rng.uniform(0.3, 3, 3), rng.normal(0, 30, 3)
    plain, moved = (
        ps.fit_vector_scaling(x, labels),
        ps.fit_vector_scaling(scale * x + shift, labels),
    )
    assert moved.nll_after == pytest.approx(plain.nll_after, rel=1e-10)
    assert moved.scale * scale == pytest.approx(plain.scale, rel=1e-4)


def test_equal_logits_are_scaled_to_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [10, 30, 60])
    result = ps.fit_vector_scaling(np.zeros((100, 3)), labels)
    assert result.apply([0.0, 0.0, 0.0]) == pytest.approx([0.1, 0.3, 0.6], abs=1e-7)
    assert result.scale == pytest.approx([1, 1, 1])
    assert result.converged


def test_a_logit_that_is_the_same_in_every_row_keeps_the_temperature():
    x, labels = drawn(1000, 3)
    x[:, 1] = 0.1
    result = ps.fit_vector_scaling(x, labels)
    assert result.scale[1] == 1 / ps.fit_temperature(x, labels).temperature
    assert result.converged


def test_vector_scaling_of_logits_of_minus_infinity():
    """A row without the last class, so that the others are scaled as if it was not there."""
    x, labels = drawn(2000, 4)
    short = (labels != 3) & (np.arange(2000) % 2 == 0)
    x[short, 3] = -INF
    result = ps.fit_vector_scaling(x, labels)
    assert result.converged
    scaled = np.where(np.isinf(x), 0, x).astype(np.longdouble) * result.scale + result.bias
    scaled[short, 3] = -INF
    assert result.nll_after == pytest.approx(float(nll(scaled, labels)), rel=1e-12)
    slopes = residuals(scaled, labels)
    assert abs(slopes.mean(axis=0)).max() < 1e-6
    assert abs((slopes * np.where(np.isinf(x), 0, x)).mean(axis=0)).max() < 1e-6
    assert (result.apply(x)[short, 3] == 0).all()


def test_a_class_without_labels_keeps_the_temperature():
    x, labels = drawn(2000, 4)
    kept = labels != 2
    x, labels = x[kept], labels[kept]
    with pytest.warns(UserWarning, match="no row's label keep the temperature and bias 0: 2"):
        result = ps.fit_vector_scaling(x, labels)
    assert result.scale[2] == 1 / ps.fit_temperature(x, labels).temperature
    assert result.bias[2] == 0
    assert result.bias.sum() == pytest.approx(0, abs=1e-9)
    assert result.converged
    assert result.nll_after < ps.fit_temperature(x, labels).nll_after


@pytest.mark.parametrize("gap", [0.1, 10.0])
def test_a_class_that_its_logit_tells_apart_is_not_taken_for_converged(gap):
    x, labels = drawn(1000, 4)
    x[:, 0] = np.where(labels == 0, 1, -1) * (gap + abs(x[:, 0]))
    with pytest.warns(UserWarning, match="leave free to grow: 0$"):
        result = ps.fit_vector_scaling(x, labels)
    assert not result.converged
    assert np.isfinite([*result.scale, *result.bias]).all()


def test_labels_that_are_always_right_leave_all_classes_open():
    x = normal((200, 3), "float64")
    with pytest.warns(UserWarning, match="free to grow|at its bound") as caught:
        result = ps.fit_vector_scaling(x, x.argmax(axis=1))
    assert not (result.converged and not result.at_bound)
    assert result.nll_after < 1e-6
    assert all(warning.filename == __file__ for warning in caught)


def test_a_scale_at_its_bound_is_told():
    x, labels, _, _ = distorted(2000, 3)
    x[:, 1] *= -1
    with pytest.warns(UserWarning, match="scale at its bound: 1"):
        result = ps.fit_vector_scaling(x, labels)
    assert result.at_bound
    assert result.converged
    assert result.scale[1] == pytest.approx(1e-3)
    with pytest.warns(UserWarning, match="scale at its bound: 0, 1, 2"):
        ps.fit_vector_scaling(x, labels, bounds=(20, 30))


def test_iterations_that_do_not_suffice_are_told(monkeypatch):
    x, labels = drawn(200, 3)
    monkeypatch.setattr(calibration, "_MOST_ITERATIONS", 2)
    for fit in FITS:
        with pytest.warns(UserWarning, match="no convergence"):
            result = fit(10 * x, labels)
        assert not result.converged
        assert result.nll_after < result.nll_before


def test_many_classes_are_listed_in_short():
    x, labels = drawn(2000, 40)
    with pytest.warns(UserWarning, match=r"bias 0: 20, 21, .*, 29, \.\.\. \(20 classes\)$"):
        ps.fit_vector_scaling(x[labels < 20], labels[labels < 20])


@pytest.mark.parametrize("shape", [(5, 3), (4,), (3, 4, 2)])
def test_applying_to_another_number_of_classes_is_refused(shape):
    result = ps.VectorScaling(np.ones(4), np.zeros(4), 1.0, 1.0, 1, True, False)
    if shape[-1] == 4:
        assert result.apply(np.zeros(shape)) == pytest.approx(np.full(shape, 0.25))
        return
    with pytest.raises(ValueError, match=r"logits with 4 classes along axis -1, got shape \("):
        result.apply(np.zeros(shape))


def test_masked_logits_are_calibrated_as_softmax_does():
    result = ps.VectorScaling(np.array([1.0, 2.0, 1.0]), np.zeros(3), 1.0, 1.0, 1, True, False)
    calibrated = result.apply(np.ma.masked_equal([1.0, 2.0, 9.0], 9))
    assert calibrated.mask.tolist() == [False, False, True]
    assert calibrated.compressed() == pytest.approx(ps.softmax([1.0, 4.0]))


def test_vector_scaling_without_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "scipy.optimize")
    with pytest.raises(ImportError, match=r"needs scipy: pip install 'pysoftmax\[calibration\]'"):
        ps.fit_vector_scaling(X, [0, 1])


@pytest.mark.parametrize("unit", [1e-200, 1e30, 1e100, 1e200])
def test_the_unit_of_the_logits_does_not_matter_however_far_from_1(unit):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (50, 4))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    expected = ps.fit_temperature(logits, labels)
    found = ps.fit_temperature(logits * unit, labels, bounds=(1e-300, 1e300))
    assert found.converged
    assert not found.at_bound
    assert found.temperature == pytest.approx(expected.temperature * unit, rel=1e-6)
