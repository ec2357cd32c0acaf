"""From probabilities to decisions: abstention, the best few, and classes that are rare.

A decision is selective if it may be left to somebody else: below a threshold of confidence the
classifier abstains. Coverage is the share of rows that it decides, risk the share of these that
it gets wrong (El-Yaniv & Wiener, "On the Foundations of Noise-free Selective Classification",
JMLR 11, 2010, section 2).
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from pysoftmax import _arguments as check
from pysoftmax._dispatch import backend_of, of_any_library
from pysoftmax._rows import (
    LARGE_BLOCK,
    classes_last,
    comparable,
    faults,
    largest,
    parts,
    place,
    refuse,
)
from pysoftmax.backends import Array
from pysoftmax.reliability import LabelledProbabilities

__all__ = [
    "RiskCoverageCurve",
    "TopK",
    "class_weight",
    "decide",
    "logit_adjust",
    "risk_coverage_curve",
    "top_k",
]


class RiskCoverageCurve(NamedTuple):
    """What `risk_coverage_curve` returns: a point for each confidence there is, highest first.

    Attributes
    ----------
    coverage : ndarray of float64, shape (n_thresholds,)
        The share of rows that are decided; the last is 1.
    risk : ndarray of float64, shape (n_thresholds,)
        The share of the decided rows that are wrong; the last is 1 less the accuracy.
    thresholds : ndarray of float64, shape (n_thresholds,)
        A row is decided if its largest probability is at least this.
    """

    coverage: Any
    risk: Any
    thresholds: Any


class TopK(NamedTuple):
    """What `top_k` returns.

    Attributes
    ----------
    values : ndarray
        The largest scores in descending order, in the dtype of the scores.
    indices : ndarray of int64
        Their classes.
    """

    values: Any
    indices: Any


@of_any_library("probabilities")
def decide(
    probabilities: Any,
    threshold: float,
    *,
    margin: float = 0.0,
    abstain_label: int = -1,
    axis: int = -1,
) -> Any:
    """The most probable class of each row, or `abstain_label` where that is not sure enough.

    Parameters
    ----------
    probabilities : array_like
        Of each class along `axis`, as `softmax` returns them.
    threshold : float
        In [0, 1]: the least probability that a decision needs.
    margin : float, default 0.0
        In [0, 1]: how far at least the second most probable class must be behind.
    abstain_label : int, default -1
        What stands for no decision; no class.
    axis : int, default -1
        The classes.

    Returns
    -------
    ndarray of int64 or scalar
        The shape of `probabilities` without `axis`. Of equal classes the first is taken, if
        the margin is 0.

    Raises
    ------
    ValueError
        For rows that are no probabilities (below 0, NaN, or adding up to anything but 1),
        fewer than two classes, an `abstain_label` that is a class, and numbers out of range.
    TypeError, numpy.exceptions.AxisError
        As `softmax`, and for arguments that are no numbers.

    See Also
    --------
    risk_coverage_curve : Which threshold to take.

    Notes
    -----
    Comparisons are exact: float32(0.9) is below 0.9. Thresholds mean what they say only if
    the probabilities are calibrated: `fit_temperature`.

    Examples
    --------
    >>> from pysoftmax import decide
    >>> p = [[0.9, 0.06, 0.04], [0.5, 0.48, 0.02], [0.4, 0.3, 0.3]]
    >>> decide(p, 0.5)
    array([ 0,  0, -1])
    >>> decide(p, 0.5, margin=0.1)
    array([ 0, -1, -1])
    """
    threshold = check.check_real("threshold", threshold, 0, 1)
    margin = check.check_real("margin", margin, 0, 1)
    abstain_label = operator.index(abstain_label)
    backend = backend_of(probabilities=probabilities)
    xp = backend.namespace
    array = check.unmasked(
        backend, "probabilities", probabilities, "give a class that takes no part probability 0"
    )
    check.result_dtype(array.dtype)
    axis = check.normalize_axis(axis, array.ndim)
    scores = classes_last(array, axis)
    *rows, classes = scores.shape
    if classes < 2:
        raise ValueError(
            f"probabilities must have at least 2 classes along axis {axis}, got shape {array.shape}"
        )
    if 0 <= abstain_label < classes:
        raise ValueError(f"abstain_label must not be a class, [0, {classes}), got {abstain_label}")
    result = backend.empty(tuple(rows), np.int64, array)
    for part in parts(scores.shape):
        block = comparable(scores[part].reshape(-1, classes))
        for bad, found, expected in faults(block):
            refuse("probabilities in row", bad, found, expected, tuple(rows), part)
        first = block.max(axis=1).astype(np.float64)
        sure = first >= threshold
        if margin:
            second = xp.partition(block, classes - 2, axis=1)[:, classes - 2]
            sure &= first - second >= margin
        labels = xp.where(sure, block.argmax(axis=1), abstain_label)
        result[part] = labels.reshape(result[part].shape)
    return backend.wrap(result.reshape(check.reduced_shape(array.shape, (axis,))), None)


@of_any_library("probabilities", "labels", "sample_weight")
def risk_coverage_curve(
    probabilities: Any, labels: Any, *, axis: int = -1, sample_weight: Any = None
) -> RiskCoverageCurve:
    """What abstaining below a threshold would leave undecided, and what it would save.

    Parameters
    ----------
    probabilities, labels, axis, sample_weight : optional
        As for `reliability_curve`.

    Returns
    -------
    RiskCoverageCurve
        Named tuple ``(coverage, risk, thresholds)``: what `decide` with each of the
        thresholds decides, and how much of that is wrong.

    Raises
    ------
    IndexError, ValueError, TypeError, numpy.exceptions.AxisError
        As `reliability_curve`.

    Notes
    -----
    Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NIPS 2017,
    arXiv:1705.08500, section 2, with the largest probability as the confidence.

    Examples
    --------
    >>> from pysoftmax import risk_coverage_curve
    >>> p = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]]
    >>> coverage, risk, thresholds = risk_coverage_curve(p, [0, 0, 0, 1])
    >>> coverage
    array([0.25, 0.5 , 0.75, 1.  ])
    >>> risk
    array([0.  , 0.  , 0.  , 0.25])
    >>> thresholds[risk <= 0.1].min()  # decides three quarters, at no error
    np.float64(0.7)
    """
    data = LabelledProbabilities(probabilities, labels, axis, sample_weight)
    xp = data.backend.namespace
    found = [
        (block.max(axis=-1).astype(np.float64), block.argmax(axis=-1) != truth, weight)
        for block, truth, weight, _ in data.blocks()
    ]
    confidence, wrong, weight = map(xp.concatenate, zip(*found, strict=True))
    order = xp.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    last = xp.append(confidence[1:] != confidence[:-1], True)
    decided = xp.cumsum(weight[order])[last]
    errors = xp.cumsum((wrong * weight)[order])[last]
    return RiskCoverageCurve(decided / decided[-1], errors / decided, confidence[last])


@of_any_library("scores")
def top_k(scores: Any, k: int, *, axis: int = -1) -> TopK:
    """The k largest scores of each row and their classes, in descending order.

    Parameters
    ----------
    scores : array_like
        Logits or probabilities, dtypes as for `softmax`.
    k : int
        How many, from 1 to the number of classes.
    axis : int, default -1
        The classes.

    Returns
    -------
    TopK
        Named tuple ``(values, indices)``, both with the shape of `scores` but k along `axis`.
        Equal scores are in the order of their classes. NaN counts as larger than any number,
        as it does for ``np.argmax``.

    Raises
    ------
    ValueError
        If there are not k classes.
    TypeError, numpy.exceptions.AxisError
        As `softmax`, and for a k that is no integer.

    Notes
    -----
    The rest is not sorted: `numpy.partition` finds a bound below which nothing can belong to
    the k largest, from the maxima of groups where there are many classes.

    Examples
    --------
    >>> from pysoftmax import top_k
    >>> values, indices = top_k([[0.1, 0.4, 0.1, 0.4], [0.7, 0.1, 0.2, 0.0]], 2)
    >>> values
    array([[0.4, 0.4],
           [0.7, 0.2]])
    >>> indices
    array([[1, 3],
           [0, 2]])
    """
    k = operator.index(k)
    backend = backend_of(scores=scores)
    array = check.unmasked(backend, "scores", scores, "fill them first, for instance with -inf")
    check.result_dtype(array.dtype)
    axis = check.normalize_axis(axis, array.ndim)
    rows = classes_last(array, axis)
    classes = rows.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be in [1, {classes}], the number of classes, got {k}")
    shape = (*rows.shape[:-1], k)
    values = backend.empty(shape, array.dtype.newbyteorder("="), array)
    indices = backend.empty(shape, np.int64, array)
    for part in parts(rows.shape, LARGE_BLOCK):
        block = comparable(rows[part].reshape(-1, classes))
        best, places = (each[:, :k] for each in largest(backend.namespace, block, k))
        values[part] = best.reshape(values[part].shape)
        indices[part] = places.reshape(indices[part].shape)

    def back(result: Array) -> Array:
        if array.ndim == 1:
            return result[0]
        return backend.namespace.moveaxis(result, -1, axis)

    return TopK(back(values), back(indices))


@of_any_library("labels")
def class_weight(mode: str, labels: Any, *, n_classes: int | None = None) -> Any:
    """Weights under which all classes count the same, however many labels they have.

    Parameters
    ----------
    mode : {"balanced"}
        ``N / (C * n_c)`` for a class that n_c of the N labels name, C being the number of
        classes: the mean weight of the labels is 1.
    labels : array_like of int
        Of the training data, any shape.
    n_classes : int, optional
        C; by default one more than the largest label.

    Returns
    -------
    ndarray of float64, shape (n_classes,)
        For the argument `weight` of `cross_entropy`.

    Raises
    ------
    IndexError
        For a label outside [0, n_classes), with its position.
    ValueError
        For a class without labels, for which there is no such weight; for another mode.
    TypeError
        For labels that are not integers.

    See Also
    --------
    logit_adjust : The other remedy for imbalance, by the logits.

    Notes
    -----
    King & Zeng, "Logistic Regression in Rare Events Data", Political Analysis 9 (2001):
    weighting, with equal shares of the classes in the population.

    Examples
    --------
    >>> from pysoftmax import class_weight
    >>> class_weight("balanced", [0, 0, 0, 1]).round(4)
    array([0.6667, 2.    ])
    """
    if mode != "balanced":
        raise ValueError(f"mode must be 'balanced', got {mode!r}")
    backend = backend_of(labels=labels)
    truth = check.unmasked(backend, "labels", labels, "leave them out")
    if truth.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {truth.dtype.name}")
    if not truth.size:
        raise ValueError(f"expected at least one label, got shape {truth.shape}")
    classes = int(truth.max()) + 1 if n_classes is None else operator.index(n_classes)
    bad = (truth < 0) | (truth >= classes)
    if bad.any():
        index = np.unravel_index(int(bad.argmax()), bad.shape)
        raise IndexError(
            f"labels[{place(index)}] is {truth[index]}: class labels must be in [0, {classes})"
        )
    counts = backend.namespace.bincount(truth.reshape(-1).astype(np.int64), minlength=classes)
    if not counts.all():
        raise ValueError(f"expected labels of every class, got none of {int(counts.argmin())}")
    return truth.size / (classes * counts)


@of_any_library("logits", "prior")
def logit_adjust(logits: Any, prior: Any, tau: float = 1.0, *, axis: int = -1) -> Any:
    """Logits less the logarithm of how common their classes are: ``x_c - tau * log(prior_c)``.

    A classifier trained on common and rare classes prefers the common ones. With tau = 1 the
    largest adjusted logit is the best choice where all classes count the same.

    Parameters
    ----------
    logits : array_like
        Unnormalised scores, classes along `axis`, dtypes as for `softmax`.
    prior : array_like, shape (n_classes,)
        The share of each class in the training data, positive; they add up to 1.
    tau : float, default 1.0
        How much to adjust; 0 changes nothing. With -1, logits to train with: their
        `cross_entropy` is the logit-adjusted loss.
    axis : int, default -1
        The classes.

    Returns
    -------
    ndarray
        Shape of `logits`, float dtype of `logits`.

    Raises
    ------
    ValueError
        For priors that are not positive or do not add up to 1, a tau that is not finite, and
        shapes that do not fit.
    TypeError, numpy.exceptions.AxisError
        As `softmax`.

    Notes
    -----
    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv:2007.07314:
    section 4 for logits of a trained classifier, section 5 for the loss.

    Examples
    --------
    >>> from pysoftmax import logit_adjust
    >>> logit_adjust([2.0, 1.0], [0.9, 0.1]).round(4)
    array([2.1054, 3.3026])
    """
    tau = check.check_real("tau", tau, -np.finfo(float).max, np.finfo(float).max)
    backend = backend_of(logits=logits, prior=prior)
    xp = backend.namespace
    array, shares = backend.as_array(logits), backend.as_array(prior)
    wanted = check.choose_dtype(array, None)
    axis = check.normalize_axis(axis, array.ndim)
    if not check.is_real(shares.dtype):
        raise TypeError(f"prior must be real, got {shares.dtype.name}")
    if shares.shape != (array.shape[axis],):
        raise ValueError(
            f"prior must have one entry per class ({array.shape[axis]},), got {shares.shape}"
        )
    shares = shares.astype(np.float64)
    if not (shares > 0).all():
        raise ValueError(f"prior must be > 0 for every class, got {shares[~(shares > 0)][0]}")
    for bad, found, expected in faults(shares[None]):
        if bad.any():
            raise ValueError(f"prior must be {expected}, got {found[0]}")
    wide = check.summing_dtype(wanted)
    along = [-1 if i == axis else 1 for i in range(array.ndim)]
    shift = (tau * xp.log(shares)).reshape(along).astype(wide)
    return backend.wrap((array.astype(wide) - shift).astype(wanted, copy=False), logits)
