"""Calibration of a classifier's probabilities on held-out logits.

Temperature scaling divides the logits by one number, T; vector scaling multiplies each class by
a number of its own and adds another. Both minimise the negative log-likelihood (NLL) of the
labels, as proposed by Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks",
ICML 2017, arXiv:1706.04599, section 4.2.

In beta = 1/T the NLL of a row with logits x and label t is logsumexp(beta x) - beta x_t, which
is convex. With p = softmax(beta x) its derivatives are ::

    g = sum_c p_c x_c - x_t                    E_p[x] - x_t
    h = sum_c p_c (x_c - sum_k p_k x_k)^2      Var_p[x], never negative

and those of the mean over rows are the (weighted) means of these. So the minimum is where g
passes through zero: Newton's method finds it, and where a step leaves the bracket or gains too
little, the bracket is halved. What is computed is beta g and beta^2 h, the same of beta x in
place of x, so that the unit of the logits does not matter. A step is a factor on T or on beta,
1 + |beta g| / (beta^2 h), whichever has to grow: for beta this is Newton's step, for T the same to
second order, and never below 0. One call of `cross_entropy_with_grad` has the NLL and all p.

There is no minimum where all labels have the largest logit of their row (T falls without
limit), and all T are equal where the logits of each row are equal. Both can be told exactly
from the logits, and are, before anything is minimised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftmax import _arguments as check
from pysoftmax import _extras
from pysoftmax._dispatch import library_of, memory_of, of_any_library
from pysoftmax._labelled import Labelled, host
from pysoftmax._losses import cross_entropy_with_grad
from pysoftmax._softmax import log_softmax, softmax
from pysoftmax.adapters import Adapter
from pysoftmax.backends import Array

__all__ = ["TemperatureScaling", "VectorScaling", "fit_temperature", "fit_vector_scaling"]

Floats = NDArray[np.float64]

# A Newton step that changes 1/T by less than this fraction is not taken.
_TOLERANCE = 1e-9
# Halvings of the widest bracket need no more than 100; L-BFGS needs about 100 for 100 classes.
_MOST_ITERATIONS = 500


@dataclass(frozen=True)
class TemperatureScaling:
    """A temperature, and how it was fitted: what `fit_temperature` returns.

    Parameters
    ----------
    temperature : float
        What the logits are divided by.
    nll_before, nll_after : float
        Mean negative log-likelihood of the labels at temperature 1 and at `temperature`.
    iterations : int
        Evaluations of the likelihood, each of which reads the logits once.
    converged : bool
        Whether the minimum between the bounds was found.
    at_bound : bool
        Whether that is at a bound, so that the likelihood would be better beyond it.
    axis : int, default -1
        The axis of the classes, as it was given to `fit_temperature`.

    Examples
    --------
    >>> import dataclasses, json
    >>> from pysoftmax import TemperatureScaling, fit_temperature
    >>> result = fit_temperature([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 1.0]], [0, 1, 1, 0])
    >>> text = json.dumps(dataclasses.asdict(result))
    >>> TemperatureScaling(**json.loads(text)).apply([2.0, 0.0]).round(4)
    array([0.7072, 0.2928])
    """

    temperature: float
    nll_before: float
    nll_after: float
    iterations: int
    converged: bool
    at_bound: bool
    axis: int = -1

    def apply(self, logits: Any) -> Any:
        """Calibrated probabilities: ``softmax(logits, axis, temperature=temperature)``."""
        return softmax(logits, self.axis, temperature=self.temperature)

    def apply_log(self, logits: Any) -> Any:
        """Logarithms of the calibrated probabilities, accurate near 0."""
        return log_softmax(logits, self.axis, temperature=self.temperature)


@dataclass(frozen=True, eq=False)
class VectorScaling:
    """A scale and a bias for each class, and how they were fitted.

    Parameters
    ----------
    scale, bias : ndarray of float64, shape (n_classes,)
        What the logits of each class are multiplied by, and what is then added.
    nll_before, nll_after : float
        Mean negative log-likelihood of the labels for the logits as they are and as scaled.
    iterations : int
        Evaluations of the likelihood, each of which reads the logits once.
    converged : bool
        Whether the minimum between the bounds was found and is one: no scale or bias that
        the data leave free to grow.
    at_bound : bool
        Whether a scale is at its bound.
    axis : int, default -1
        The axis of the classes, as it was given to `fit_vector_scaling`.

    See Also
    --------
    fit_vector_scaling : What returns it.

    Examples
    --------
    >>> from pysoftmax.demo import load_digits
    >>> from pysoftmax import fit_vector_scaling
    >>> logits, labels = load_digits()
    >>> result = fit_vector_scaling(logits, labels)
    >>> result.apply(logits).shape, result.converged
    ((899, 10), True)
    """

    scale: Floats
    bias: Floats
    nll_before: float
    nll_after: float
    iterations: int
    converged: bool
    at_bound: bool
    axis: int = -1

    def apply(self, logits: Any) -> Any:
        """Calibrated probabilities: ``softmax(scale * logits + bias, axis)``."""
        return self._apply(softmax, logits)

    def apply_log(self, logits: Any) -> Any:
        """Logarithms of the calibrated probabilities, accurate near 0."""
        return self._apply(log_softmax, logits)

    def _apply(self, function: Callable[..., Any], logits: Any) -> Any:
        memory = memory_of(logits=logits)
        if memory is not None:
            result = self._apply(function, **memory.inside({"logits": logits}))
            return memory.outside(result, logits)
        library: Any = library_of(logits=logits)
        computes = not isinstance(library, Adapter)  # and is not lazy or labelled
        array = library.as_array(logits) if computes else logits
        axis = self.axis
        if hasattr(array, "get_axis_num") and not hasattr(axis, "__index__"):
            axis = array.get_axis_num(axis)  # the name of a dimension
        axis = check.normalize_axis(axis, array.ndim)
        if array.shape[axis] != len(self.scale):
            raise ValueError(
                f"expected logits with {len(self.scale)} classes along axis {self.axis}, "
                f"got shape {array.shape}"
            )
        wanted = check.choose_dtype(array, None)
        wide = check.summing_dtype(wanted)
        along = [-1 if i == axis else 1 for i in range(array.ndim)]
        xp = library.namespace if computes else np
        scale, bias = (xp.asarray(v, dtype=wide).reshape(along) for v in (self.scale, self.bias))
        if not computes:
            return function(array.astype(wide) * scale + bias, axis).astype(wanted)
        scaled = array.astype(wide)
        scaled *= scale
        scaled += bias
        result = function(scaled, axis, out=scaled, where=library.mask_of(logits))
        return library.wrap(result.astype(wanted, copy=False), logits)


@of_any_library("logits", "labels", "sample_weight")
def fit_temperature(
    logits: Any,
    labels: Any,
    *,
    axis: int = -1,
    sample_weight: Any = None,
    bounds: tuple[float, float] = (1e-3, 1e3),
) -> TemperatureScaling:
    """Find the temperature that makes the labels most likely.

    Minimises the mean of ``logsumexp(x / T) - x_label / T`` over T, which is convex in 1/T.
    The order of the classes stays, and so does the accuracy.

    Parameters
    ----------
    logits : array_like
        Scores of data that the classifier was not trained on, dtypes as for `softmax`. -inf
        is a class that takes no part in its row.
    labels : array_like of int
        The right class of each row: the shape of `logits` without `axis`.
    axis : int, default -1
        The classes.
    sample_weight : array_like, optional
        How much each row counts, >= 0; the shape of `labels`. A row of weight 0 may hold
        anything, also a label that is no class.
    bounds : tuple of float, default (1e-3, 1e3)
        The lowest and the highest temperature to consider.

    Returns
    -------
    TemperatureScaling
        The temperature, the likelihood before and after, and how the fit went. Its `apply`
        makes calibrated probabilities of other logits.

    Warns
    -----
    UserWarning
        If the result is a bound: because every label has the largest logit of its row
        (a lower temperature is always better), because the logits say less than
        nothing about the labels (a higher one is), or because the bounds are too narrow.
        If the logits of each row are equal: the temperature is then 1, or the bound next to
        it. If the search did not converge.

    Raises
    ------
    IndexError
        For a label outside [0, n_classes), with its position.
    ValueError
        For NaN or +inf among the logits, -inf at a label, no rows, fewer than two classes,
        weights that are negative, NaN or all zero, and shapes or bounds that do not fit.
    TypeError, numpy.exceptions.AxisError
        As `softmax`, and for labels that are not integers.

    See Also
    --------
    fit_vector_scaling : A scale and a bias for each class.
    expected_calibration_error : What calibration should lower.

    Notes
    -----
    Newton's method in 1/T, kept within a bracket (Guo et al. 2017, arXiv:1706.04599, section
    4.2, for the model). The logits are read in blocks and computed in float64, so that
    little more memory is needed than they take.

    Examples
    --------
    >>> from pysoftmax import fit_temperature
    >>> from pysoftmax.demo import load_digits
    >>> logits, labels = load_digits()
    >>> result = fit_temperature(logits[:450], labels[:450])
    >>> round(result.temperature, 3), result.converged
    (8.528, True)
    >>> result.apply(logits[450:]).shape
    (449, 10)
    """
    data = Labelled("logits", logits, labels, axis, sample_weight)
    result, problem = _fit_temperature(data, _check_bounds(bounds), axis)
    if problem:
        warnings.warn(problem, UserWarning, stacklevel=3)
    return result


@of_any_library("logits", "labels", "sample_weight")
def fit_vector_scaling(
    logits: Any,
    labels: Any,
    *,
    axis: int = -1,
    sample_weight: Any = None,
    bounds: tuple[float, float] = (1e-3, 1e3),
) -> VectorScaling:
    """Find the scale and the bias of each class that make the labels most likely.

    Minimises the mean cross-entropy of ``scale * logits + bias``, which is convex, from the
    temperature of `fit_temperature` on, so that the likelihood is at least as good. It has 2
    parameters per class and needs data for them; it may change the order of the classes.

    Parameters
    ----------
    logits, labels, axis, sample_weight : array_like
        As for `fit_temperature`. Unlike a temperature, the scales depend on what was added
        to all logits of a row: give raw logits when fitting and when applying, or
        log-probabilities both times.
    bounds : tuple of float, default (1e-3, 1e3)
        The scales are sought between ``1 / bounds[1]`` and ``1 / bounds[0]``: every class
        has a temperature within the bounds.

    Returns
    -------
    VectorScaling
        Scales and biases, the likelihood before and after, and how the fit went. A class
        that is no row's label keeps the scale of `fit_temperature` and the bias 0. The biases
        of the others add up to 0.

    Warns
    -----
    UserWarning
        As `fit_temperature`; if a scale is at its bound; if a class is no row's label; if the
        data leave a scale or a bias free to grow, because they separate a class from the
        others.

    Raises
    ------
    ImportError
        Without SciPy, whose L-BFGS-B is used: the extra ``calibration`` installs it.
    IndexError, ValueError, TypeError, numpy.exceptions.AxisError
        As `fit_temperature`.

    Notes
    -----
    Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Examples
    --------
    >>> from pysoftmax import fit_vector_scaling
    >>> from pysoftmax.demo import load_digits
    >>> logits, labels = load_digits()
    >>> result = fit_vector_scaling(logits, labels)
    >>> result.scale.shape, result.nll_after < 0.2 < result.nll_before
    ((10,), True)
    """
    minimize = _extras.load("scipy.optimize", "calibration", "fit_vector_scaling").minimize
    data = Labelled("logits", logits, labels, axis, sample_weight)
    result, problems = _fit_vector(data, _check_bounds(bounds), axis, minimize)
    for problem in problems:
        warnings.warn(problem, UserWarning, stacklevel=3)
    return result


def _check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    lowest, highest = (float(bound) for bound in bounds)
    # So that neither 1 / T nor the difference of two logits that T matters for overflows.
    if not 1e-300 <= lowest < highest <= 1e300:
        raise ValueError(f"bounds must be 1e-300 <= lowest < highest <= 1e300, got {bounds}")
    return lowest, highest


def _survey(data: Labelled) -> tuple[bool, bool]:
    """Whether all rows are constant, and whether all labels have the largest logit.

    Refuses logits of which a label has no likelihood.
    """
    xp = data.backend.namespace
    constant = largest = True
    for x, labels, _, part in data.blocks():
        own, top = _at(data, x, labels), x.max(axis=-1)
        bad = xp.isnan(top) | (top == np.inf)
        data.refuse(bad, top, part, "numbers, or -inf for a class that takes no part")
        data.refuse(own == -np.inf, own, part, "a finite logit of the label")
        largest = largest and bool((own == top).all())
        constant = constant and largest and bool(((x == own[:, None]) | (x == -np.inf)).all())
    return constant, largest


def _at(data: Labelled, x: Array, labels: Array) -> Array:
    """The entries of a block at the labels of its rows."""
    return x[data.backend.namespace.arange(len(labels)), labels]


# ------------------------------------------------------------------------------ temperature


def _objective(data: Labelled, temperature: float) -> tuple[float, float, float]:
    """Mean NLL, beta times its derivative by beta = 1 / temperature, beta^2 times its second.

    Of logits relative to that of the label, so that in rows that are surely right nothing cancels.
    """
    totals = np.zeros(3)
    xp = data.backend.namespace
    for block, labels, weight, _ in data.blocks():
        x = block.astype(np.float64)
        # Loss and (p - y) / temperature.
        loss, grad = cross_entropy_with_grad(x, labels, temperature=temperature, reduction="none")
        rows = xp.arange(len(labels))
        grad[rows, labels] = 0
        with np.errstate(over="ignore", invalid="ignore"):
            x -= x[rows, labels][:, None]
            # Farther below the label a probability is 0; above, the difference may overflow.
            xp.clip(x, -800 * temperature, np.finfo(np.float64).max, out=x)
            slope = xp.einsum("ij,ij->i", grad, x)
            x -= (temperature * slope)[:, None]
            grad *= x
            curvature = xp.einsum("ij,ij->i", grad, x) / temperature + xp.exp(-loss) * slope**2
            totals += [float((weight * each).sum()) for each in (loss, slope, curvature)]
    nll, gradient, curvature = (totals / data.total).tolist()
    return nll, gradient, curvature


def _fit_temperature(
    data: Labelled, bounds: tuple[float, float], axis: int
) -> tuple[TemperatureScaling, str]:
    """The fit, and what to warn of."""
    lowest, highest = bounds
    constant, largest = _survey(data)
    evaluate = cache(partial(_objective, data))
    temperature, converged = min(max(1.0, lowest), highest), True
    if largest and not constant:
        temperature = lowest
    elif not constant:
        worst = float(np.log(data.n_classes))
        temperature, converged = _newton(evaluate, temperature, lowest, highest, worst)
    at_bound = not constant and temperature in bounds
    problem = ""
    if constant:
        problem = (
            f"the logits of each row are equal, so that the temperature, {temperature}, is "
            "without effect"
        )
    elif largest:
        problem = (
            "every label has the largest logit of its row, so that a lower temperature is always "
            f"better, and the lowest of the bounds was taken, {lowest}: fit to data with errors"
        )
    elif at_bound:
        problem = (
            f"the temperature is at its bound, {temperature}: either the bounds are narrow, or the "
            "logits tell little about the labels"
        )
    elif not converged:
        problem = f"no convergence in {_MOST_ITERATIONS} iterations"
    result = TemperatureScaling(
        temperature=temperature,
        nll_before=evaluate(1.0)[0],
        nll_after=evaluate(temperature)[0],
        iterations=evaluate.cache_info().misses,
        converged=converged,
        at_bound=at_bound,
        axis=axis,
    )
    return result, problem


def _newton(
    evaluate: Callable[[float], tuple[float, float, float]],
    temperature: float,
    lowest: float,
    highest: float,
    worst: float,
) -> tuple[float, bool]:
    """The temperature where the gradient is zero, or the bound it points to, and whether found.

    `worst` is the NLL that is reached by equal probabilities, so that no minimum is above it.
    """
    low, high, previous = 0.0, np.inf, np.inf
    for _ in range(_MOST_ITERATIONS):
        nll, gradient, curvature = evaluate(temperature)
        # The gradient falls as the temperature rises.
        bound = highest if gradient > 0 else lowest
        if gradient == 0 or temperature == bound:
            return temperature, True
        if gradient > 0:
            low = temperature
        else:
            high = temperature
        factor = 1 + abs(gradient) / curvature if 0 < curvature < np.inf else np.inf
        # Of logits beyond 1e23 times the temperature the curvature is mere rounding.
        near = factor - 1 <= _TOLERANCE and nll <= worst * (1 + _TOLERANCE)
        if near or high <= low * (1 + _TOLERANCE):
            return temperature, True
        temperature = temperature * factor if gradient > 0 else temperature / factor
        # Where the likelihood has but an exponential tail, a step gains no more than a factor e.
        slow = abs(gradient) > previous / 3
        if slow or not max(low, lowest) < temperature < min(high, highest):
            temperature = float(np.sqrt(low) * np.sqrt(high)) if low and high < np.inf else bound
        previous = abs(gradient)
    return temperature, False


# --------------------------------------------------------------------------- vector scaling


class _Steps:
    """Vector scaling as steps from a first scale, in units in which the NLL curves alike.

    A step of a class's scale is relative to the first scale, and turns about the logit where it
    matters, so that to first order it leaves the bias alone. A parameter that the data say
    nothing about is not stepped.
    """

    def __init__(self, data: Labelled, first: float) -> None:
        self.data = data
        self.first = first
        labels = data.flat(data.labels).astype(np.int64)
        counts = data.backend.namespace.bincount(labels, minlength=data.n_classes)
        self.present = host(counts) > 0
        none = np.zeros(data.n_classes)
        self.centre, *curvatures = _curvature(data, none + first, none)
        self.free = np.concatenate([self.present & (each > 0) for each in curvatures])
        self.unit: Floats = np.concatenate(curvatures)[self.free] ** -0.5

    def parameters(self, steps: Floats) -> tuple[Floats, Floats]:
        """Scale and bias after the steps."""
        changes = np.zeros(self.free.size)
        changes[self.free] = self.unit * steps
        growth, bias = np.split(changes, 2)
        bias -= growth * self.centre
        bias[self.present] -= bias[self.present].mean()
        return self.first + self.first * growth, bias

    def limits(self, lowest: float, highest: float) -> Floats:
        """Bounds of the steps that keep the scales within theirs."""
        of_each = [[lowest / self.first - 1, highest / self.first - 1], [-np.inf, np.inf]]
        limits: Floats = np.repeat(of_each, self.data.n_classes, axis=0)[self.free]
        return limits / self.unit[:, None]

    def slopes(self, scale: Floats, bias: Floats) -> tuple[float, Floats, Floats]:
        """NLL and its gradients by the relative scale and by biases that add up to 0."""
        nll, by_scale, by_bias = _vector_objective(self.data, scale, bias)
        by_bias[self.present] -= by_bias[self.present].mean()
        return nll, by_scale, by_bias

    def objective(self, steps: Floats) -> tuple[float, Floats]:
        """NLL after the steps and its gradient."""
        scale, bias = self.parameters(steps)
        nll, by_scale, by_bias = self.slopes(scale, bias)
        by_growth = by_scale * self.first / scale - by_bias * self.centre
        return nll, self.unit * np.concatenate([by_growth, by_bias])[self.free]

    def undetermined(self, scale: Floats, bias: Floats) -> NDArray[np.bool_]:
        """Classes whose scale or bias a Newton step would still change by a hundredth.

        Where the data separate a class from the others, the gradient vanishes as the scale or
        the bias grows, but the curvature vanishes as fast: there is no minimum nearby.
        """
        _, by_scale, by_bias = self.slopes(scale, bias)
        centre, *curvatures = _curvature(self.data, scale, bias)
        slopes = np.concatenate([by_scale - by_bias * centre, by_bias])
        moving: NDArray[np.bool_] = ~(abs(slopes) <= 0.01 * np.concatenate(curvatures)) & self.free
        return moving[: self.data.n_classes] | moving[self.data.n_classes :]


def _vector_objective(data: Labelled, scale: Floats, bias: Floats) -> tuple[float, Floats, Floats]:
    """Mean NLL and its gradients with respect to the logarithm of the scale and to the bias."""
    nll, by_scale, by_bias = 0.0, np.zeros_like(scale), np.zeros_like(bias)
    xp = data.backend.namespace
    for block, labels, weight, _ in data.blocks():
        x = block.astype(np.float64) * xp.asarray(scale)
        loss, grad = cross_entropy_with_grad(x + xp.asarray(bias), labels, reduction="none")
        grad *= weight[:, None]
        x[grad == 0] = 0  # -inf among them
        nll += float((weight * loss).sum())
        by_scale += host((grad * x).sum(axis=0))
        by_bias += host(grad.sum(axis=0))
    return nll / data.total, by_scale / data.total, by_bias / data.total


def _curvature(data: Labelled, scale: Floats, bias: Floats) -> tuple[Floats, Floats, Floats]:
    """The centre of each class's scale, and the curvature of the NLL by scale and by bias.

    Of one class at a time, the others held, with v = p (1 - p) summed over the rows: v is the
    curvature by the bias, the variance of the scaled logit weighted by v that by the relative
    scale, and its mean the centre.
    """
    moments = np.zeros((3, data.n_classes))
    xp = data.backend.namespace
    with np.errstate(over="ignore", invalid="ignore"):
        for block, _, weight, _ in data.blocks():
            x = block.astype(np.float64) * xp.asarray(scale)
            p = softmax(x + xp.asarray(bias))
            p *= (1 - p) * weight[:, None]
            x[p == 0] = 0
            moments += [host(each.sum(axis=0)) for each in (p, p * x, p * x * x)]
        total, first, second = moments / data.total
        centre = np.divide(first, total, out=np.zeros_like(first), where=total > 0)
        spread = second - first * centre
    # Where this is mere rounding, the logit is the same in every row.
    return centre, np.where(spread > 1e-12 * second, spread, 0), total


def _fit_vector(
    data: Labelled, bounds: tuple[float, float], axis: int, minimize: Callable[..., Any]
) -> tuple[VectorScaling, list[str]]:
    """The fit, and what to warn of."""
    start, _ = _fit_temperature(data, bounds, axis)
    lowest, highest = 1 / bounds[1], 1 / bounds[0]
    steps = _Steps(data, 1 / start.temperature)
    taken = np.zeros(len(steps.unit))
    nll, evaluations, stopped = start.nll_after, start.iterations, ""
    if taken.size:
        limits = steps.limits(lowest, highest)
        found = minimize(
            steps.objective,
            taken,
            jac=True,
            method="L-BFGS-B",
            bounds=limits,
            options={"maxiter": _MOST_ITERATIONS, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-8},
        )
        taken, nll, evaluations = found.x, float(found.fun), evaluations + found.nfev
        # A line search that finds nothing lower has arrived, where all that the slopes still
        # promise is lost in rounding.
        downhill = np.clip(taken - found.jac, *limits.T) - taken
        arrived = 0.5 * float(downhill @ downhill) <= 1e-12 * nll
        stopped = "" if found.success or arrived else found.message
    scale, bias = steps.parameters(taken)
    at_bound = (scale <= lowest * (1 + 1e-9)) | (scale >= highest * (1 - 1e-9))
    growing = ~at_bound & (False if stopped else steps.undetermined(scale, bias))
    problems = [
        f"{what}: {_listed(np.flatnonzero(which))}"
        for which, what in (
            (~steps.present, "classes that are no row's label keep the temperature and bias 0"),
            (at_bound, "classes with the scale at its bound"),
            (growing, "classes whose scale or bias the data leave free to grow"),
        )
        if which.any()
    ]
    if stopped:
        problems.append(f"no convergence: {stopped}")
    result = VectorScaling(
        scale=scale,
        bias=bias,
        nll_before=start.nll_before,
        nll_after=nll,
        iterations=evaluations,
        converged=not stopped and not growing.any(),
        at_bound=bool(at_bound.any()),
        axis=axis,
    )
    return result, problems


def _listed(classes: NDArray[np.intp]) -> str:
    """The first few class labels, and how many there are."""
    few = ", ".join(map(str, classes[:10]))
    return few if len(classes) <= 10 else f"{few}, ... ({len(classes)} classes)"
