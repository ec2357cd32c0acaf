"""How far probabilities can be relied on: calibration errors, scores and the diagram.

A classifier is calibrated if, of the predictions made with confidence p, a share p is right.
Predictions are collected in bins of confidence; the gap of a bin is what its accuracy lacks of
its mean confidence. Bins are (low, high], with 0 in the first and 1 in the last.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from pysoftmax import _extras
from pysoftmax._dispatch import of_any_library
from pysoftmax._labelled import Labelled, host
from pysoftmax._rows import Part, faults
from pysoftmax._softmax import softmax
from pysoftmax.backends import Array

__all__ = [
    "ReliabilityCurve",
    "ReliabilityDisplay",
    "brier_score",
    "expected_calibration_error",
    "negative_log_likelihood",
    "reliability_curve",
]

STRATEGIES = ("uniform", "quantile")
NORMS = ("l1", "l2", "max")


class ReliabilityCurve(NamedTuple):
    """What `reliability_curve` returns: the bins and what fell into each.

    Attributes
    ----------
    mean_confidence : ndarray of float64, shape (n_bins,)
        Mean of the predicted probabilities; NaN in an empty bin.
    accuracy : ndarray of float64, shape (n_bins,)
        The share of predictions that are right; NaN in an empty bin.
    counts : ndarray, shape (n_bins,)
        How many predictions there are (int64), or the sum of their weights (float64).
    edges : ndarray of float64, shape (n_bins + 1,)
        The bins' bounds, from 0 to 1.
    """

    mean_confidence: Any
    accuracy: Any
    counts: Any
    edges: Any


@of_any_library("probabilities", "labels", "sample_weight")
def reliability_curve(
    probabilities: Any,
    labels: Any,
    *,
    axis: int = -1,
    n_bins: int = 15,
    strategy: str = "uniform",
    pos_label: int | None = None,
    sample_weight: Any = None,
) -> ReliabilityCurve:
    """Accuracy and mean confidence in bins of confidence.

    Parameters
    ----------
    probabilities : array_like
        Of each class along `axis`, as `softmax` returns them.
    labels : array_like of int
        The right class of each row: the shape of `probabilities` without `axis`.
    axis : int, default -1
        The classes.
    n_bins : int, default 15
        How many bins.
    strategy : {"uniform", "quantile"}, default "uniform"
        Bins of equal width, or of equal weight: their inner edges are the quantiles (the
        lowest confidence below or at which a share k / n_bins lies). Quantiles that coincide
        are one edge, so that there may be fewer bins.
    pos_label : int, optional
        A class to look at: the prediction is that it is the right one, with its probability
        as the confidence. By default, that the class of the largest probability is.
    sample_weight : array_like, optional
        How much each row counts, >= 0; the shape of `labels`.

    Returns
    -------
    ReliabilityCurve
        Named tuple ``(mean_confidence, accuracy, counts, edges)``.

    Raises
    ------
    IndexError
        For a label outside [0, n_classes), with its position.
    ValueError
        For rows that are no probabilities (below 0, NaN, or adding up to anything but 1), no
        rows, fewer than two classes, and arguments that do not fit.
    TypeError, numpy.exceptions.AxisError
        As `softmax`, and for labels that are not integers.

    Examples
    --------
    >>> from pysoftmax import reliability_curve
    >>> curve = reliability_curve([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1], n_bins=4)
    >>> curve.accuracy
    array([nan, nan, 1. , 0.5])
    >>> curve.counts
    array([0, 0, 1, 2])
    """
    _check_bins(n_bins, strategy)
    data = LabelledProbabilities(probabilities, labels, axis, sample_weight)
    if pos_label is not None and not 0 <= operator.index(pos_label) < data.n_classes:
        raise ValueError(f"pos_label must be in [0, {data.n_classes}), got {pos_label}")
    classes = None if pos_label is None else slice(pos_label, pos_label + 1)
    return _curves(data, classes, n_bins, strategy)[0]


@of_any_library("probabilities", "labels", "sample_weight")
def expected_calibration_error(
    probabilities: Any,
    labels: Any,
    *,
    axis: int = -1,
    n_bins: int = 15,
    strategy: str = "uniform",
    norm: str = "l1",
    class_wise: bool = False,
    sample_weight: Any = None,
) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy.

    Parameters
    ----------
    probabilities, labels, axis, n_bins, strategy, sample_weight : optional
        As for `reliability_curve`.
    norm : {"l1", "l2", "max"}, default "l1"
        The mean of the bins' gaps, each by its share of the rows; the root of the mean of
        their squares; or the largest: the maximum calibration error.
    class_wise : bool, default False
        Take all classes with their probabilities, each in bins of its own, in place of the
        most probable one of each row. All classes have the same share.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    IndexError, ValueError, TypeError, numpy.exceptions.AxisError
        As `reliability_curve`.

    Notes
    -----
    Top-label errors: Guo et al. 2017, arXiv:1706.04599, equations 3 and 5. Class-wise: Kull
    et al. 2019, arXiv:1910.12656, equation 4. "l2": Kumar, Liang & Ma 2019, arXiv:1909.10155,
    without a correction of its bias. In few rows even the error of perfect probabilities is
    not 0.

    torchmetrics 1.9 has bins [low, high) and counts confidences of exactly 1 in a bin of
    their own, so that its result can differ.

    Examples
    --------
    >>> from pysoftmax import expected_calibration_error
    >>> p, labels = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [0, 1, 1]
    >>> round(expected_calibration_error(p, labels, n_bins=4), 4)
    0.3667
    >>> round(expected_calibration_error(p, labels, n_bins=4, norm="max"), 4)
    0.4
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    _check_bins(n_bins, strategy)
    data = LabelledProbabilities(probabilities, labels, axis, sample_weight)
    return _error(_curves(data, slice(None) if class_wise else None, n_bins, strategy), norm)


@of_any_library("probabilities", "labels", "sample_weight")
def brier_score(
    probabilities: Any, labels: Any, *, axis: int = -1, sample_weight: Any = None
) -> float:
    """Brier score: the mean of ``sum_c (p_c - y_c)**2``, y being 1 for the right class.

    Parameters
    ----------
    probabilities, labels, axis, sample_weight : optional
        As for `reliability_curve`.

    Returns
    -------
    float
        In [0, 2]; lower is better. For two classes it is twice the binary score.

    Raises
    ------
    IndexError, ValueError, TypeError, numpy.exceptions.AxisError
        As `reliability_curve`.

    Notes
    -----
    Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather
    Review 78 (1950), equation 2.

    Examples
    --------
    >>> from pysoftmax import brier_score
    >>> round(brier_score([[0.9, 0.1], [0.4, 0.6]], [0, 0]), 4)
    0.37
    """
    data = LabelledProbabilities(probabilities, labels, axis, sample_weight)
    total = 0.0
    for block, truth, weight, _ in data.blocks():
        misses = block.astype(np.float64)
        misses[data.backend.namespace.arange(len(truth)), truth] -= 1
        total += float((weight * (misses**2).sum(axis=-1)).sum())
    return total / data.total


@of_any_library("probabilities", "labels", "sample_weight")
def negative_log_likelihood(
    probabilities: Any, labels: Any, *, axis: int = -1, sample_weight: Any = None
) -> float:
    """Negative log-likelihood (log-loss): the mean of ``-log(p_label)``.

    Parameters
    ----------
    probabilities, labels, axis, sample_weight : optional
        As for `reliability_curve`. From logits, `cross_entropy` is more accurate.

    Returns
    -------
    float
        At least 0; lower is better. inf if a label has probability 0.

    Raises
    ------
    IndexError, ValueError, TypeError, numpy.exceptions.AxisError
        As `reliability_curve`.

    Examples
    --------
    >>> from pysoftmax import negative_log_likelihood
    >>> round(negative_log_likelihood([[0.9, 0.1], [0.4, 0.6]], [0, 0]), 4)
    0.5108
    """
    data = LabelledProbabilities(probabilities, labels, axis, sample_weight)
    xp = data.backend.namespace
    total = 0.0
    for block, truth, weight, _ in data.blocks():
        own = block[xp.arange(len(truth)), truth].astype(np.float64)
        with np.errstate(divide="ignore"):
            total -= float((weight * xp.log(own)).sum())
    return total / data.total


class ReliabilityDisplay:
    """Reliability diagram: accuracy against confidence, with the gap between them.

    Make one with `from_predictions`; `plot` draws it again elsewhere.

    Parameters
    ----------
    curve : ReliabilityCurve
        What to draw.
    name : str, optional
        What the probabilities are called in the legend.

    Attributes
    ----------
    curve : ReliabilityCurve
        As given.
    expected_calibration_error : float
        Of the curve, norm "l1".
    ax_, counts_ax_ : matplotlib Axes
        The diagram, and the counts beneath it.
    figure_ : matplotlib Figure
        The figure of both.
    bars_, gaps_, counts_ : matplotlib BarContainer
        The bins' accuracies, their gaps, and the counts.

    See Also
    --------
    reliability_curve : The numbers in the diagram.

    Examples
    --------
    >>> from pysoftmax import ReliabilityDisplay
    >>> from pysoftmax.demo import load_digits
    >>> logits, labels = load_digits()
    >>> display = ReliabilityDisplay.from_predictions(labels, logits=logits, name="digits")
    >>> round(display.expected_calibration_error, 4)
    0.0499
    """

    def __init__(self, curve: ReliabilityCurve, *, name: str | None = None) -> None:
        self.curve = curve
        self.name = name
        self.expected_calibration_error = _error([curve], "l1")

    @classmethod
    def from_predictions(
        cls,
        labels: Any,
        probabilities: Any = None,
        *,
        logits: Any = None,
        axis: int = -1,
        n_bins: int = 15,
        strategy: str = "uniform",
        pos_label: int | None = None,
        sample_weight: Any = None,
        name: str | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw the diagram of probabilities, or of logits, and their labels.

        Parameters
        ----------
        labels : array_like of int
            The right class of each row.
        probabilities, logits : array_like
            One of them, with the classes along `axis`.
        axis, n_bins, strategy, pos_label, sample_weight : optional
            As for `reliability_curve`.
        name : str, optional
            What the probabilities are called in the legend.
        ax : matplotlib Axes, optional
            Where to draw; by default in a figure of its own.

        Returns
        -------
        ReliabilityDisplay
            With the artists it has drawn.

        Raises
        ------
        ImportError
            Without matplotlib: the extra ``plot`` installs it.
        IndexError, ValueError, TypeError, numpy.exceptions.AxisError
            As `reliability_curve`; unless there are either probabilities or logits.
        """
        if (probabilities is None) == (logits is None):
            raise ValueError("expected either probabilities or logits")
        curve = reliability_curve(
            softmax(logits, axis) if probabilities is None else probabilities,
            labels,
            axis=axis,
            n_bins=n_bins,
            strategy=strategy,
            pos_label=pos_label,
            sample_weight=sample_weight,
        )
        return cls(curve, name=name).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the diagram, and the counts beneath it.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a figure of its own. The counts take a part of it.

        Returns
        -------
        ReliabilityDisplay
            Itself, with the artists it has drawn.

        Raises
        ------
        ImportError
            Without matplotlib: the extra ``plot`` installs it.
        """
        pyplot = _extras.load("matplotlib.pyplot", "plot", "ReliabilityDisplay")
        if ax is None:
            ax = pyplot.subplots(figsize=(5, 6), layout="constrained")[1]
        self.ax_, self.counts_ax_, self.figure_ = ax, _beneath(ax), ax.figure
        mean, accuracy, counts, edges = map(host, self.curve)
        filled = counts > 0
        mean, accuracy, counts = mean[filled], accuracy[filled], counts[filled]
        left, right = edges[:-1][filled], edges[1:][filled]
        bins = {"x": left, "width": right - left, "align": "edge"}

        ax.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="calibrated")
        self.bars_ = ax.bar(
            height=accuracy, color="C0", alpha=0.6, edgecolor="white", label="accuracy", **bins
        )
        self.gaps_ = ax.bar(
            height=mean - accuracy,
            bottom=accuracy,
            color=("C3", 0.2),
            edgecolor=("C3", 0.6),
            hatch="////",
            linewidth=0,
            label="gap",
            **bins,
        )
        ax.hlines(mean, left, right, color="black", linewidth=1.5, label="mean confidence")
        title = f"ECE {self.expected_calibration_error:.4f}"
        ax.legend(title=title if self.name is None else f"{self.name}\n{title}", loc="upper left")
        ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        ax.tick_params(labelbottom=False)

        self.counts_ = self.counts_ax_.bar(height=counts, color="0.6", edgecolor="white", **bins)
        if (right - left).min() > 0.03:  # else they would overlap
            labels = self.counts_ax_.bar_label(self.counts_, fmt="{:.5g}", padding=1)
            pyplot.setp(labels, fontsize="x-small")
        self.counts_ax_.margins(y=0.25)
        self.counts_ax_.set(xlabel="confidence", ylabel="count")
        return self


def draw_diagrams(
    file: Any, labels: Any, probabilities: Mapping[str, Any], *, axis: int = -1
) -> None:
    """Write the diagrams of probabilities, by title and side by side, as PNG."""
    figure = _extras.load("matplotlib.figure", "plot", "a picture").Figure(
        figsize=(4.8 * len(probabilities), 5.6), layout="constrained"
    )
    panels = figure.subplots(1, len(probabilities), squeeze=False)[0]
    for ax, (title, p) in zip(panels, probabilities.items(), strict=True):
        display = ReliabilityDisplay.from_predictions(labels, p, axis=axis, ax=ax)
        ax.set_title(title, loc="left", weight="bold")
        display.counts_ax_.set_yticks([])
        for text in ax.get_legend().get_texts():
            text.set_fontsize("small")
    figure.savefig(file, format="png", dpi=120)


def _beneath(ax: Any) -> Any:
    """Axes for the counts beneath `ax`, which makes room for them if it stands in a grid."""
    spec = ax.get_subplotspec()
    if spec is None:
        return ax.inset_axes([0, -0.3, 1, 0.25], sharex=ax)
    above, below = spec.subgridspec(2, 1, height_ratios=[4, 1], hspace=0.05)
    ax.set_subplotspec(above)
    return ax.figure.add_subplot(below, sharex=ax)


# ----------------------------------------------------------------------------------- binning


def _check_bins(n_bins: int, strategy: str) -> None:
    if operator.index(n_bins) < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")


class LabelledProbabilities(Labelled):
    """Rows that are distributions, with their labels: checked while they are first read."""

    def __init__(self, probabilities: Any, labels: Any, axis: int, sample_weight: Any) -> None:
        super().__init__("probabilities", probabilities, labels, axis, sample_weight)
        self._checked = False

    def blocks(self) -> Iterator[tuple[Array, Array, Array, Part]]:
        for block, labels, weight, part in super().blocks():
            if not self._checked:
                for bad, found, expected in faults(block):
                    self.refuse(bad, found, part, expected)
            yield block, labels, weight, part
        self._checked = True


def _predictions(data: Labelled, classes: slice | None) -> Iterator[tuple[Array, Array, Array]]:
    """Confidence and whether it is right, (rows, predictions) each, and the rows' weights.

    Of the most probable class of each row, or of some classes.
    """
    xp = data.backend.namespace
    for block, labels, weight, _ in data.blocks():
        if classes is None:
            confidence = block.max(axis=-1)[:, None]
            right = (block.argmax(axis=-1) == labels)[:, None]
        else:
            confidence = block[:, classes]
            right = labels[:, None] == xp.arange(data.n_classes)[classes]
        yield confidence.astype(np.float64), right, weight


def _curves(
    data: Labelled, classes: slice | None, n_bins: int, strategy: str
) -> list[ReliabilityCurve]:
    """The curve of the most probable class of each row, or of each of some classes."""
    xp = data.backend.namespace
    edges = xp.linspace(0, 1, n_bins + 1)
    if strategy == "uniform":
        sums = sum(_per_bin(xp, edges, *each) for each in _predictions(data, classes))
        return [_curve(data, edges, *each) for each in sums]
    # Each class has edges of its own, which are known once all of its rows are.
    each_class = [None] if classes is None else range(data.n_classes)[classes]
    curves = []
    for label in each_class:
        one = None if label is None else slice(label, label + 1)
        confidence, right, weight = map(xp.concatenate, zip(*_predictions(data, one), strict=True))
        inner = _quantiles(xp, confidence[:, 0], weight, edges[1:-1])
        own = xp.unique(xp.concatenate([edges[:1], inner, edges[-1:]]))
        curves.append(_curve(data, own, *_per_bin(xp, own, confidence, right, weight)[0]))
    return curves


def _per_bin(xp: Any, edges: Array, confidence: Array, right: Array, weight: Array) -> Array:
    """Sums of weight, confidence and right predictions: (predictions of a row, 3, bins)."""
    n_bins, n = len(edges) - 1, confidence.shape[1]
    bins = xp.searchsorted(edges[1:-1], confidence, side="left") + n_bins * xp.arange(n)
    weight = xp.broadcast_to(weight[:, None], bins.shape)
    sums = [
        xp.bincount(bins.reshape(-1), weights=each.reshape(-1), minlength=n * n_bins)
        for each in (weight, confidence * weight, right * weight)
    ]
    return xp.stack(sums).reshape(3, n, n_bins).swapaxes(0, 1)


def _curve(
    data: Labelled, edges: Array, counts: Array, confidence: Array, right: Array
) -> ReliabilityCurve:
    """The curve of the sums in each bin."""
    with np.errstate(invalid="ignore"):
        mean, accuracy = confidence / counts, right / counts
    # Ones, up to 2^53 of them, have added up without rounding.
    counts = counts.astype(np.int64) if data.weight is None else counts
    return ReliabilityCurve(mean, accuracy, counts, edges)


def _quantiles(xp: Any, values: Array, weight: Array, shares: Array) -> Array:
    """The lowest of `values` at or below which each share of the weight lies."""
    order = xp.argsort(values)
    below = xp.cumsum(weight[order])
    # Less than the rounding of the shares: one that is reached exactly is reached.
    wanted = shares * below[-1] * (1 - 1e-12)
    return values[order][xp.searchsorted(below, wanted, side="left")]


def _error(curves: list[ReliabilityCurve], norm: str) -> float:
    """The gaps of all bins of some curves, in one number."""
    worst = total = 0.0
    power = 2 if norm == "l2" else 1
    for curve in curves:
        filled = curve.counts > 0
        gaps = abs(curve.accuracy - curve.mean_confidence)[filled]
        shares = (curve.counts / curve.counts.sum())[filled]
        worst = max(worst, float(gaps.max()))
        total += float((shares * gaps**power).sum()) / len(curves)
    return worst if norm == "max" else float(total ** (1 / power))
