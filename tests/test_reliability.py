"""Calibration errors, scores, and the reliability diagram."""

import math
import sys
import tracemalloc

import numpy as np
import pytest
from cases import BFLOAT16, LAYOUTS, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

import pysoftmax as ps

INF, NAN = math.inf, math.nan
MEASURES = [
    ps.reliability_curve,
    ps.expected_calibration_error,
    ps.brier_score,
    ps.negative_log_likelihood,
]
each_measure = pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
each_strategy = pytest.mark.parametrize("strategy", ["uniform", "quantile"])
each_norm = pytest.mark.parametrize("norm", ["l1", "l2", "max"])


def predicted(n, classes, seed=0, sharpness=1.5):
    """Probabilities that are too sure, and labels."""
    x = normal((n, classes), "float64", seed, 2.0)
    cumulative = ps.softmax(x).cumsum(axis=1)
    labels = (cumulative > np.random.default_rng(seed + 1).random((n, 1))).argmax(axis=1)
    return ps.softmax(sharpness * x), labels


def top(probabilities, labels):
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def gaps(confidence, right, edges, weight):
    """(gap, weight) of each bin that is not empty, one prediction after the other."""
    bins = [[0.0, 0.0, 0.0] for _ in edges[1:]]
    for p, hit, w in zip(confidence, right, weight, strict=True):
        place = next(i for i, high in enumerate(edges[1:]) if p <= high)
        bins[place][0] += w * p
        bins[place][1] += w * hit
        bins[place][2] += w
    return [(abs(p - hit) / w, w) for p, hit, w in bins if w]


def combined(found, norm):
    """The error of such gaps."""
    total = sum(w for _, w in found)
    if norm == "max":
        return max(gap for gap, _ in found)
    power = {"l1": 1, "l2": 2}[norm]
    return (sum(w * gap**power for gap, w in found) / total) ** (1 / power)


def equal_mass(confidence, n_bins, weight):
    """0, the lowest confidences that reach each share, and 1."""
    order = np.argsort(confidence)
    reached = np.cumsum(weight[order]) / weight.sum()
    inner = [confidence[order][reached >= k / n_bins - 1e-12][0] for k in range(1, n_bins)]
    return sorted({0.0, *inner, 1.0})


# --- calibration error --------------------------------------------------------------------------


@each_norm
@each_strategy
@pytest.mark.parametrize("n_bins", [1, 10, 15])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_error_is_that_of_the_definition(norm, strategy, n_bins, class_wise, weighted):
    p, labels = predicted(400, 4)
    weight = np.random.default_rng(5).random(400) if weighted else np.ones(400)
    found = []
    columns = [(p[:, c], labels == c) for c in range(4)] if class_wise else [top(p, labels)]
    for confidence, right in columns:
        uniform = np.linspace(0, 1, n_bins + 1)
        edges = uniform if strategy == "uniform" else equal_mass(confidence, n_bins, weight)
        found += gaps(confidence, right, edges, weight)
    result = ps.expected_calibration_error(
        p,
        labels,
        n_bins=n_bins,
        strategy=strategy,
        norm=norm,
        class_wise=class_wise,
        sample_weight=weight if weighted else None,
    )
    assert type(result) is float
    assert result == pytest.approx(combined(found, norm), rel=1e-10)


@each_norm
@pytest.mark.parametrize("n_bins", [5, 15, 40])
def test_error_as_torchmetrics(norm, n_bins):
    """Where no confidence is at an edge: there torchmetrics has bins [low, high)."""
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    p, labels = predicted(2000, 6)
    theirs = metrics.multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(labels), num_classes=6, n_bins=n_bins, norm=norm
    )
    ours = ps.expected_calibration_error(p, labels, n_bins=n_bins, norm=norm)
    assert ours == pytest.approx(float(theirs), rel=1e-5)  # it adds in float32


def test_a_confidence_of_1_is_in_the_last_bin():
    """torchmetrics counts it in a bin of its own: it has (0.05 + 0) / 2 and 0.5 here."""
    p, labels = [[0.95, 0.05], [1.0, 0.0]], [0, 1]
    assert ps.expected_calibration_error(p, labels, n_bins=10) == pytest.approx(0.475)
    assert ps.expected_calibration_error(p, labels, n_bins=10, norm="max") == pytest.approx(0.475)


@each_norm
def test_sure_predictions(norm):
    p = np.eye(3)[[0, 1, 2, 0]]
    right, wrong, half = [0, 1, 2, 0], [1, 2, 0, 1], [0, 1, 0, 1]
    error = ps.expected_calibration_error
    assert error(p, right, norm=norm) == 0
    assert error(p, wrong, norm=norm) == 1
    assert error(p, half, norm=norm) == 0.5
    assert error(p, right, norm=norm, class_wise=True) == 0
    assert ps.brier_score(p, right) == 0
    assert ps.brier_score(p, wrong) == 2
    assert ps.negative_log_likelihood(p, right) == 0
    assert ps.negative_log_likelihood(p, wrong) == INF


@each_norm
@each_strategy
def test_uniform_predictions(norm, strategy):
    """One bin, though the quantiles coincide, of confidence 1 / 4; a half is right."""
    p, labels = np.full((6, 4), 0.25), [0, 0, 0, 1, 2, 3]
    options = {"norm": norm, "strategy": strategy}
    assert ps.expected_calibration_error(p, labels, **options) == pytest.approx(0.25)
    assert ps.brier_score(p, labels) == pytest.approx(0.75)
    assert ps.negative_log_likelihood(p, labels) == pytest.approx(math.log(4))


@each_strategy
@pytest.mark.parametrize("class_wise", [False, True])
def test_the_error_of_labels_drawn_from_the_probabilities_is_noise(strategy, class_wise):
    p, labels = predicted(100_000, 5, sharpness=1.0)
    options = {"strategy": strategy, "class_wise": class_wise}
    assert ps.expected_calibration_error(p, labels, **options) < 0.01
    assert ps.expected_calibration_error(p**2 / (p**2).sum(1, keepdims=True), labels) > 0.1


laws = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 2**20)


@laws
@given(seeds, st.integers(1, 40), st.sampled_from(["uniform", "quantile"]), st.booleans())
def test_norms_are_in_order(seed, n_bins, strategy, class_wise):
    p, labels = predicted(50, 3, seed)
    options = {"n_bins": n_bins, "strategy": strategy, "class_wise": class_wise}
    errors = [
        ps.expected_calibration_error(p, labels, norm=norm, **options)
        for norm in ("l1", "l2", "max")
    ]
    assert 0 <= errors[0] <= errors[1] * (1 + 1e-12)
    assert errors[1] <= errors[2] * (1 + 1e-12)
    assert errors[2] <= 1


@laws
@given(seeds, st.sampled_from(["uniform", "quantile"]))
@pytest.mark.parametrize("pos_label", [None, 1])
def test_a_weight_counts_as_repetition(pos_label, seed, strategy):
    p, labels = predicted(60, 3, seed)
    p = p.round(1) / p.round(1).sum(axis=1, keepdims=True)  # many ties
    weight = np.random.default_rng(seed).integers(0, 4, 60)
    twice = np.repeat(p, weight, axis=0), np.repeat(labels, weight)
    options = {"n_bins": 7, "strategy": strategy, "pos_label": pos_label}
    weighted = ps.reliability_curve(p, labels, sample_weight=weight, **options)
    repeated = ps.reliability_curve(*twice, **options)
    for ours, exact in zip(weighted, repeated, strict=True):
        assert ours == pytest.approx(exact, rel=1e-12, nan_ok=True)
    for measure in (ps.brier_score, ps.negative_log_likelihood):
        assert measure(p, labels, sample_weight=weight) == pytest.approx(measure(*twice))


# --- curve --------------------------------------------------------------------------------------


def test_bins_are_open_below_and_closed_above():
    confidence = np.array([0.0, 0.25, np.nextafter(0.25, 1), 0.5, 0.75, 0.76, 1.0])
    p = np.stack([1 - confidence, confidence], axis=1)
    curve = ps.reliability_curve(p, np.ones(7, int), n_bins=4, pos_label=1)
    assert curve.counts.tolist() == [2, 2, 1, 2]
    assert curve.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.mean_confidence == pytest.approx([0.125, 0.375, 0.75, 0.88])
    assert curve.accuracy.tolist() == [1, 1, 1, 1]


def test_empty_bins_are_nan():
    mean, accuracy, counts, edges = ps.reliability_curve([[0.9, 0.1]], [1], n_bins=3)
    assert np.isnan(mean).tolist() == np.isnan(accuracy).tolist() == [True, True, False]
    assert (counts.tolist(), accuracy[2], mean[2]) == ([0, 0, 1], 0, 0.9)
    assert (mean.dtype, counts.dtype, edges.dtype) == (np.float64, np.int64, np.float64)
    assert (mean.shape, accuracy.shape, counts.shape, edges.shape) == ((3,), (3,), (3,), (4,))


def test_weights_are_counted():
    p, labels = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1]
    curve = ps.reliability_curve(p, labels, n_bins=2, sample_weight=[3, 1, 0.5])
    assert curve.counts.dtype == np.float64
    assert curve.counts.tolist() == [0, 4.5]
    assert curve.mean_confidence[1] == pytest.approx((2.7 + 0.8 + 0.3) / 4.5)
    assert curve.accuracy[1] == pytest.approx(3.5 / 4.5)


@pytest.mark.parametrize("n_bins", [2, 7, 15])
def test_bins_of_equal_mass(n_bins):
    p, labels = predicted(1000, 5)
    curve = ps.reliability_curve(p, labels, n_bins=n_bins, strategy="quantile")
    assert len(curve.counts) == n_bins
    assert curve.counts.sum() == 1000
    assert abs(curve.counts - 1000 / n_bins).max() <= 1
    assert (curve.edges[0], curve.edges[-1]) == (0, 1)
    assert (np.diff(curve.edges) > 0).all()


def test_quantiles_that_coincide_are_one_edge():
    p = np.array([[1.0, 0.0]] * 5 + [[0.6, 0.4]] * 3 + [[0.7, 0.3]] * 2)
    curve = ps.reliability_curve(p, np.zeros(10, int), n_bins=10, strategy="quantile")
    assert curve.edges.tolist() == [0, 0.6, 0.7, 1]
    assert curve.counts.tolist() == [3, 2, 5]


@each_strategy
@pytest.mark.parametrize("n_bins", [5, 12])
def test_curve_of_a_class_as_scikit_learn(strategy, n_bins):
    """But its quantiles are interpolated, so that an edge may differ by a row."""
    p, labels = predicted(1201, 4)
    curve = ps.reliability_curve(p, labels, n_bins=n_bins, strategy=strategy, pos_label=2)
    accuracy, mean = calibration_curve(
        labels == 2, p[:, 2], n_bins=n_bins, strategy=strategy, pos_label=True
    )
    filled = curve.counts > 0
    tolerance = 3 * n_bins / 1201 if strategy == "quantile" else 1e-12
    assert curve.accuracy[filled] == pytest.approx(accuracy, abs=tolerance)
    assert curve.mean_confidence[filled] == pytest.approx(mean, abs=tolerance)


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_as_scikit_learn(classes, weighted):
    p, labels = predicted(500, classes)
    weight = np.random.default_rng(5).random(500) if weighted else None
    options = {"labels": np.arange(classes), "sample_weight": weight}
    exact = brier_score_loss(labels, p, scale_by_half=False, **options)
    assert ps.brier_score(p, labels, sample_weight=weight) == pytest.approx(exact, rel=1e-12)
    exact = log_loss(labels, p, **options)
    result = ps.negative_log_likelihood(p, labels, sample_weight=weight)
    assert type(result) is float
    assert result == pytest.approx(exact, rel=1e-12)


def test_the_brier_score_of_two_classes_is_twice_the_binary_one():
    p, labels = predicted(500, 2)
    assert ps.brier_score(p, labels) == pytest.approx(2 * brier_score_loss(labels, p[:, 1]))


def test_the_likelihood_is_the_cross_entropy():
    x, labels = normal((300, 7), "float64"), np.arange(300) % 7
    result = ps.negative_log_likelihood(ps.softmax(x), labels)
    assert result == pytest.approx(float(ps.cross_entropy(x, labels)), rel=1e-12)


# --- arrays of all kinds ------------------------------------------------------------------------


def numbers(result):
    """What a measure returns as one array."""
    parts = result if isinstance(result, tuple) else (result,)
    return np.concatenate([np.ravel(part) for part in parts])


@each_measure
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_every_dtype(measure, dtype):
    if dtype == "bfloat16" and BFLOAT16 is None:
        pytest.skip("bfloat16 needs ml_dtypes")
    p, labels = predicted(300, 4)
    p = p.astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    result, wide = measure(p, labels), measure(p.astype(np.float64), labels)
    assert numbers(result) == pytest.approx(numbers(wide), rel=1e-14, nan_ok=True)


@each_measure
@pytest.mark.parametrize("name", [n for n in LAYOUTS if "broadcast" not in n])
def test_every_layout(measure, name):
    p, labels = predicted(200, 4)
    result = measure(LAYOUTS[name](p), LAYOUTS[name](labels))
    assert numbers(result) == pytest.approx(numbers(measure(p, labels)), nan_ok=True)


@each_measure
@each_strategy
@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_classes_along_any_axis(measure, strategy, axis):
    p, labels = predicted(60, 4)
    weight = np.random.default_rng(0).random(60)
    weight[::7] = 0
    binned = measure in MEASURES[:2]
    options = {"strategy": strategy} if binned else {}
    flat = measure(p, labels, sample_weight=weight, **options)
    shaped = measure(
        np.moveaxis(p.reshape(20, 3, 4), -1, axis),
        labels.reshape(20, 3),
        axis=axis,
        sample_weight=weight.reshape(20, 3),
        **options,
    )
    assert numbers(shaped) == pytest.approx(numbers(flat), rel=1e-12, nan_ok=True)


@each_measure
def test_a_single_row_needs_no_axis_of_rows(measure):
    result, two = measure([0.7, 0.3], 0), measure([[0.7, 0.3]], [0])
    assert numbers(result) == pytest.approx(numbers(two), nan_ok=True)


@each_measure
def test_rows_of_weight_0_may_hold_anything(measure):
    p, labels = predicted(50, 3)
    bad, wrong = [[NAN, 0, 0], [2, -1, 0], [0, 0, 1]], [0, 0, -100]
    weight = np.arange(53) >= 3
    weighted = measure(np.concatenate([bad, p]), [*wrong, *labels], sample_weight=weight)
    assert numbers(weighted) == pytest.approx(numbers(measure(p, labels)), nan_ok=True)


@each_measure
def test_memory_is_bounded(measure):
    """Probabilities of 16 MB; each number per row takes 1 MB in float64."""
    p = ps.softmax(normal((1 << 17, 32), "float32"))
    labels = np.zeros(len(p), np.uint8)
    tracemalloc.start()
    measure(p, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


# --- what is refused ----------------------------------------------------------------------------

P = [[0.2, 0.8], [0.5, 0.5]]


@each_measure
@pytest.mark.parametrize(
    ("probabilities", "labels", "options", "error", "message"),
    [
        ([P[0], [NAN, 1]], [0, 0], {}, ValueError, r"row of labels\[1\]: .*\[0, 1\], got nan"),
        ([P[0], [1.5, -0.5]], [0, 0], {}, ValueError, r"row of labels\[1\].*\[0, 1\], got -0.5"),
        ([[2.0, 0.3], P[0]], [0, 0], {}, ValueError, r"labels\[0\].*add up to 1, got 2.3"),
        ([[0.0, 0.0], P[0]], [0, 0], {}, ValueError, "add up to 1, got 0.0"),
        ([[INF, 0.0], P[0]], [0, 0], {}, ValueError, "add up to 1, got inf"),
        (np.zeros((0, 3)), np.zeros(0, int), {}, ValueError, "at least one row"),
        ([[1.0], [1.0]], [0, 0], {}, ValueError, "at least 2 classes"),
        (P, [0, 2], {}, IndexError, r"labels\[1\] is 2"),
        (P, [-1, 0], {}, IndexError, r"labels\[0\] is -1"),
        (P, [0.0, 1.0], {}, TypeError, "labels must be integers"),
        (P, [0, 1, 1], {}, ValueError, "labels must have the shape of probabilities"),
        (P, [0, 1], {"sample_weight": [0, 0]}, ValueError, "sum of sample_weight"),
        (P, [0, 1], {"axis": 2}, np.exceptions.AxisError, "out of bounds"),
        (np.ma.masked_equal(P, 0.2), [0, 1], {}, ValueError, "probabilities has masked entries"),
    ],
)
def test_refuses(measure, probabilities, labels, options, error, message):
    with pytest.raises(error, match=message):
        measure(probabilities, labels, **options)


@pytest.mark.parametrize("measure", MEASURES[:2], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_bins": 0}, ValueError, "n_bins must be at least 1, got 0"),
        ({"n_bins": 2.5}, TypeError, "integer"),
        ({"strategy": "equal"}, ValueError, "strategy must be one of uniform, quantile"),
    ],
)
def test_refuses_bins(measure, options, error, message):
    with pytest.raises(error, match=message):
        measure(P, [0, 1], **options)


def test_refuses_a_norm_or_a_class_that_there_is_not():
    with pytest.raises(ValueError, match=r"norm must be one of l1, l2, max, got 'linf'"):
        ps.expected_calibration_error(P, [0, 1], norm="linf")
    for label in (-1, 2):
        with pytest.raises(ValueError, match=r"pos_label must be in \[0, 2\), got"):
            ps.reliability_curve(P, [0, 1], pos_label=label)


# --- the diagram --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


def heights(bars):
    return [bar.get_height() for bar in bars]


def test_the_diagram_shows_the_curve():
    p, labels = predicted(500, 4)
    display = ps.ReliabilityDisplay.from_predictions(labels, p, n_bins=10, name="model")
    curve = ps.reliability_curve(p, labels, n_bins=10)
    filled = curve.counts > 0
    assert 0 < filled.sum() < 10
    accuracy, mean = curve.accuracy[filled], curve.mean_confidence[filled]
    assert heights(display.bars_) == pytest.approx(accuracy)
    assert heights(display.gaps_) == pytest.approx(mean - accuracy)
    assert [bar.get_y() for bar in display.gaps_] == pytest.approx(accuracy)
    assert [bar.get_x() for bar in display.bars_] == pytest.approx(curve.edges[:-1][filled])
    assert [bar.get_width() for bar in display.bars_] == pytest.approx([0.1] * len(mean))
    assert heights(display.counts_) == curve.counts[filled].tolist()
    written = [text.get_text() for text in display.counts_ax_.texts]
    assert written == [str(count) for count in curve.counts[filled]]
    error = ps.expected_calibration_error(p, labels, n_bins=10)
    assert display.expected_calibration_error == error
    legend = display.ax_.get_legend()
    assert legend.get_title().get_text() == f"model\nECE {error:.4f}"
    assert {text.get_text() for text in legend.get_texts()} == {
        "calibrated",
        "accuracy",
        "gap",
        "mean confidence",
    }
    assert display.figure_ is display.ax_.figure is display.counts_ax_.figure
    assert (display.ax_.get_ylabel(), display.counts_ax_.get_xlabel()) == ("accuracy", "confidence")
    display.figure_.canvas.draw()


@each_strategy
@pytest.mark.parametrize("options", [{}, {"pos_label": 1}, {"sample_weight": np.arange(90.0)}])
def test_the_diagram_takes_the_options_of_the_curve(strategy, options):
    p, labels = predicted(90, 3)
    options = {"strategy": strategy, **options}
    display = ps.ReliabilityDisplay.from_predictions(labels, p, **options)
    for drawn, exact in zip(display.curve, ps.reliability_curve(p, labels, **options), strict=True):
        assert drawn == pytest.approx(exact, nan_ok=True)
    assert display.ax_.get_legend().get_title().get_text().startswith("ECE ")
    display.figure_.canvas.draw()


def test_the_diagram_of_logits_is_that_of_their_softmax():
    x, labels = normal((3, 80), "float32"), np.arange(80) % 3
    of_logits = ps.ReliabilityDisplay.from_predictions(labels, logits=x, axis=0)
    direct = ps.ReliabilityDisplay.from_predictions(labels, ps.softmax(x, 0), axis=0)
    assert heights(of_logits.bars_) == heights(direct.bars_)


def test_diagrams_keep_to_their_places():
    p, labels = predicted(90, 3)
    figure, places = pyplot.subplots(1, 2)
    before = [ax.get_position() for ax in places]
    displays = [ps.ReliabilityDisplay.from_predictions(labels, p, ax=ax) for ax in places]
    assert len(figure.axes) == 4
    for display, ax, place in zip(displays, places, before, strict=True):
        assert display.ax_ is ax
        upper, lower = ax.get_position(), display.counts_ax_.get_position()
        assert (upper.y1, lower.y0) == pytest.approx((place.y1, place.y0))
        assert lower.y1 < upper.y0
        assert (lower.x0, lower.x1) == pytest.approx((place.x0, place.x1))


def test_axes_placed_by_hand_have_the_counts_beneath():
    p, labels = predicted(90, 3)
    ax = pyplot.figure().add_axes((0.1, 0.4, 0.8, 0.5))
    display = ps.ReliabilityDisplay.from_predictions(labels, p, ax=ax)
    display.figure_.canvas.draw()
    assert display.counts_ax_.get_position().y1 < ax.get_position().y0


def test_a_display_can_be_drawn_again():
    p, labels = predicted(90, 3)
    display = ps.ReliabilityDisplay.from_predictions(labels, p)
    first = display.figure_
    assert display.plot() is display
    assert display.figure_ is not first


@pytest.mark.parametrize("given_arrays", [{}, {"probabilities": P, "logits": P}])
def test_a_diagram_needs_either_probabilities_or_logits(given_arrays):
    with pytest.raises(ValueError, match="either probabilities or logits"):
        ps.ReliabilityDisplay.from_predictions([0, 1], **given_arrays)


def test_a_diagram_without_matplotlib_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'pysoftmax\[plot\]'"):
        ps.ReliabilityDisplay.from_predictions([0, 1], P)
