"""Cross-entropy and binary cross-entropy, with and without their gradients."""

import math
import operator
from typing import Any

import numpy as np

from pysoftmax import _arguments as check
from pysoftmax._dispatch import library_of, loss_by_short_way
from pysoftmax.adapters import Adapter
from pysoftmax.backends import Array, Backend, Number
from pysoftmax.backends.numpy import fast_binary_cross_entropy, fast_cross_entropy

__all__ = [
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "cross_entropy",
    "cross_entropy_with_grad",
]

REDUCTIONS = ("none", "mean", "sum")
WITHOUT_WEIGHT = "give what takes no part the weight 0"
WITHOUT_CLASS = "give classes that take no part the logit -inf, and rows the label ignore_index"


def cross_entropy(
    logits: Any,
    target: Any,
    axis: int = -1,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    temperature: Any = 1.0,
) -> Any:
    r"""Cross-entropy between logits and class labels or target probabilities.

    For one row, with q the target distribution: ``sum_c q_c * (logsumexp(x) - x_c)``.

    Parameters
    ----------
    logits : array_like
        Unnormalised scores, classes along `axis`, dtypes as for `softmax`.
    target : array_like
        Class labels (any integer dtype, the shape of `logits` without `axis`) or
        probabilities (float, the shape of `logits`).
    axis : int, default -1
        The classes.
    weight : array_like, optional
        One factor per class.
    ignore_index : int, default -100
        Rows with this label give loss 0 and gradient 0, and do not count in the mean.
    label_smoothing : float, default 0.0
        In [0, 1]: how much of each target goes to all classes evenly.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of the weights of the labels used, for target
        probabilities by the number of rows.
    temperature : float or array_like, default 1.0
        Divides the logits, as for `softmax`.

    Returns
    -------
    scalar or ndarray
        The loss in the float dtype of `logits`; with "none" one per row. The mean over no
        rows is NaN.

    Raises
    ------
    IndexError
        For a label outside [0, C) that is not `ignore_index`: the first position and value.
    TypeError, ValueError, numpy.exceptions.AxisError
        For dtypes, shapes and values that do not fit.

    See Also
    --------
    cross_entropy_with_grad : The gradient from the same read of the logits.

    Examples
    --------
    >>> from pysoftmax import cross_entropy
    >>> float(cross_entropy([[2.0, 1.0, 0.0], [0.0, 1.0, 5.0]], [0, 2]).round(4))
    0.2162
    >>> cross_entropy([[50.0, 0.0]], [0], reduction="none")
    array([1.92874985e-22])
    """
    return _cross_entropy(
        logits,
        target,
        axis,
        weight,
        ignore_index,
        label_smoothing,
        reduction,
        temperature,
        False,
        None,
    )[0]


def cross_entropy_with_grad(
    logits: Any,
    target: Any,
    axis: int = -1,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    temperature: Any = 1.0,
    grad_out: Any = None,
) -> tuple[Any, Any]:
    """Cross-entropy and its gradient with respect to the logits, from one read of them.

    Parameters
    ----------
    logits, target, axis, weight, ignore_index, label_smoothing, reduction : optional
        As for `cross_entropy`.
    temperature : float or array_like, default 1.0
        As for `cross_entropy`, but greater than 0.
    grad_out : ndarray, optional
        Where to write the gradient: shape and dtype of `grad`. May be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        What `cross_entropy` returns.
    grad : ndarray
        Gradient of the reduced loss (with "none", of each row's own), in the shape and
        float dtype of `logits`: for a plain mean ``(softmax(x / T) - y) / (T * N)``.

    Raises
    ------
    IndexError, TypeError, ValueError, numpy.exceptions.AxisError
        As `cross_entropy`. Nothing has been written then.

    Examples
    --------
    >>> from pysoftmax import cross_entropy_with_grad
    >>> loss, grad = cross_entropy_with_grad([[2.0, 1.0, 0.0]], [0])
    >>> grad.round(4)
    array([[-0.3348,  0.2447,  0.09  ]])
    """
    return _cross_entropy(
        logits,
        target,
        axis,
        weight,
        ignore_index,
        label_smoothing,
        reduction,
        temperature,
        True,
        grad_out,
    )


def binary_cross_entropy_with_logits(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    reduction: str = "mean",
) -> Any:
    """Binary cross-entropy of independent labels, from logits.

    ``weight * ((1 - y) * softplus(x) + pos_weight * y * softplus(-x))``.

    Parameters
    ----------
    logits : array_like
        One score per label, dtypes as for `softmax`.
    target : array_like
        Labels or probabilities in [0, 1], the shape of `logits`; bool and integers are
        accepted.
    weight : array_like, optional
        Factors of the loss, broadcast to the shape of `logits`.
    pos_weight : array_like, optional
        Factors of the positive part, broadcast to the shape of `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.

    Returns
    -------
    scalar or ndarray
        The loss in the float dtype of `logits`; with "none" in their shape.

    Raises
    ------
    TypeError, ValueError
        For dtypes, shapes and values that do not fit.

    Examples
    --------
    >>> from pysoftmax import binary_cross_entropy_with_logits
    >>> binary_cross_entropy_with_logits([3.0, -1.0], [1, 0], reduction="none").round(4)
    array([0.0486, 0.3133])
    """
    return _binary_cross_entropy(logits, target, weight, pos_weight, reduction, False, None)[0]


def binary_cross_entropy_with_logits_with_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    reduction: str = "mean",
    grad_out: Any = None,
) -> tuple[Any, Any]:
    """Binary cross-entropy and its gradient with respect to the logits.

    Parameters
    ----------
    logits, target, weight, pos_weight, reduction : optional
        As for `binary_cross_entropy_with_logits`.
    grad_out : ndarray, optional
        Where to write the gradient: shape and dtype of `grad`. May be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        What `binary_cross_entropy_with_logits` returns.
    grad : ndarray
        Gradient of the reduced loss, in the shape and float dtype of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`. Nothing has been written then.

    Examples
    --------
    >>> from pysoftmax import binary_cross_entropy_with_logits_with_grad
    >>> loss, grad = binary_cross_entropy_with_logits_with_grad([3.0, -1.0], [1, 0])
    >>> grad.round(4)
    array([-0.0237,  0.1345])
    """
    return _binary_cross_entropy(logits, target, weight, pos_weight, reduction, True, grad_out)


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def holds_labels(target: Array, shape: tuple[int, ...], axis: int) -> bool:
    """Whether `target` holds class labels; an error if its dtype and shape fit neither form."""
    rows = check.reduced_shape(shape, (axis,))
    if target.dtype.kind in "iu":
        if target.shape != rows:
            raise ValueError(
                f"class labels must have the shape of the logits without axis {axis}, "
                f"{rows}, got {target.shape}"
            )
        return True
    if target.dtype.kind == "b":
        raise TypeError(
            "target must be class labels (integers) or probabilities (floats), got bool"
        )
    check.result_dtype(target.dtype)
    if target.shape != shape:
        raise ValueError(
            f"target probabilities must have the shape of the logits {shape}, got {target.shape}"
        )
    return False


def as_labels(truth: Array, target: Any, ndim: int) -> Array:
    """The array of `target`, of integers if that is an empty list of labels for logits of `ndim`.

    NumPy makes floats of an empty list.
    """
    empty = isinstance(target, list | tuple) and not truth.size and truth.ndim < ndim
    return truth.astype(np.int64) if empty else truth


def check_probabilities(backend: Backend, target: Array) -> None:
    """ValueError for a target probability that is negative or NaN."""
    backend.check_within("target probabilities", target, 0, np.inf)


def check_binary_target(target: Array, shape: tuple[int, ...]) -> None:
    """An error if `target` has not the dtype and shape of binary labels."""
    check.result_dtype(target.dtype)
    if target.shape != shape:
        raise ValueError(f"target must have the shape of the logits {shape}, got {target.shape}")


def check_fractions(backend: Backend, target: Array) -> None:
    """ValueError for a binary target outside [0, 1]."""
    backend.check_within("target", target, 0, 1)


def check_weight(backend: Backend, weight: Any, classes: int) -> Array | None:
    if weight is None:
        return None
    values = check.unmasked(backend, "weight", weight, WITHOUT_WEIGHT)
    if not check.is_real(values.dtype):
        raise TypeError(f"weight must be real, got {values.dtype.name}")
    if values.shape != (classes,):
        raise ValueError(f"weight must have one entry per class ({classes},), got {values.shape}")
    return values.astype(np.float64)


def check_smoothing(label_smoothing: float) -> float:
    return check.check_real("label_smoothing", label_smoothing, 0, 1)


def check_ignore_index(ignore_index: int) -> int:
    try:
        index = operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}") from None
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"ignore_index must be an integer of 64 bits, got {ignore_index}")
    return index


def _adapted(
    adapter: Adapter, name: str, arguments: dict[str, Any], with_grad: bool, grad_out: Any
) -> tuple[Any, Any]:
    """The loss, and if asked for its gradient, through an adapter."""
    if not with_grad:
        return adapter.call(name, arguments), None
    loss, grad = adapter.call(f"{name}_with_grad", {**arguments, "grad_out": grad_out})
    return loss, grad


def _cross_entropy(
    logits: Any,
    target: Any,
    axis: Any,
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    temperature: Any,
    with_grad: bool,
    grad_out: Any,
) -> tuple[Any, Any]:
    # Spelled out twice: unpacking one tuple took a tenth of a loss of shape (1, 10).
    result = fast_cross_entropy(
        logits,
        target,
        axis,
        weight,
        ignore_index,
        label_smoothing,
        reduction,
        temperature,
        with_grad,
        grad_out,
    )
    if result is not None:
        return result
    _check_reduction(reduction)
    if type(temperature) is float:
        result = loss_by_short_way(
            logits,
            target,
            axis,
            weight,
            ignore_index,
            label_smoothing,
            reduction,
            temperature,
            with_grad,
            grad_out,
        )
        if result is not None:
            return result
    ignore_index = check_ignore_index(ignore_index)
    backend = library_of(
        logits=logits, target=target, weight=weight, temperature=temperature, grad_out=grad_out
    )
    if isinstance(backend, Adapter):
        return _adapted(
            backend,
            "cross_entropy",
            {
                "logits": logits,
                "target": target,
                "axis": axis,
                "weight": weight,
                "ignore_index": ignore_index,
                "label_smoothing": label_smoothing,
                "reduction": reduction,
                "temperature": temperature,
            },
            with_grad,
            grad_out,
        )
    array = check.unmasked(backend, "logits", logits, WITHOUT_CLASS)
    truth = check.unmasked(backend, "target", target, WITHOUT_CLASS)
    truth = as_labels(truth, target, array.ndim)
    wanted = check.choose_dtype(array, None)
    axis = check.normalize_axis(axis, array.ndim)
    rows = check.reduced_shape(array.shape, (axis,))
    temperature = check.check_temperature(backend, temperature, rows, with_grad)
    smoothing = check_smoothing(label_smoothing)
    factors = check_weight(backend, weight, array.shape[axis])
    labelled = holds_labels(truth, array.shape, axis)
    if labelled:
        backend.check_labels(truth, array.shape[axis], ignore_index)
    else:
        check_probabilities(backend, truth)
    grad = None
    if with_grad:
        grad = check.output(grad_out, array.shape, wanted, backend, array, "grad_out")

    divisor: Number = 1.0
    if reduction == "mean":
        divisor = float(math.prod(rows))
        if labelled:
            divisor = backend.sum_of_weights(truth, factors, ignore_index)
    loss = backend.empty(
        rows, wanted if reduction == "none" else check.summing_dtype(wanted), array
    )
    if array.size:
        backend.cross_entropy(
            array,
            truth,
            axis,
            factors,
            ignore_index,
            smoothing,
            temperature,
            loss,
            grad,
            divisor,
        )
    else:
        loss[...] = 0
    if reduction == "none":
        value = backend.wrap_reduced(loss, logits, (axis,))
    else:
        value = backend.quotient(backend.sum(loss), divisor, wanted)
    return value, backend.wrap(grad, logits) if with_grad and grad_out is None else grad_out


def _binary_cross_entropy(
    logits: Any,
    target: Any,
    weight: Any,
    pos_weight: Any,
    reduction: str,
    with_grad: bool,
    grad_out: Any,
) -> tuple[Any, Any]:
    _check_reduction(reduction)
    result = fast_binary_cross_entropy(
        logits, target, weight, pos_weight, reduction, with_grad, grad_out
    )
    if result is not None:
        return result
    backend = library_of(
        logits=logits, target=target, weight=weight, pos_weight=pos_weight, grad_out=grad_out
    )
    if isinstance(backend, Adapter):
        return _adapted(
            backend,
            "binary_cross_entropy_with_logits",
            {
                "logits": logits,
                "target": target,
                "weight": weight,
                "pos_weight": pos_weight,
                "reduction": reduction,
            },
            with_grad,
            grad_out,
        )
    array = check.unmasked(backend, "logits", logits, WITHOUT_WEIGHT)
    truth = check.unmasked(backend, "target", target, WITHOUT_WEIGHT)
    wanted = check.choose_dtype(array, None)
    check_binary_target(truth, array.shape)
    check_fractions(backend, truth)
    weights = check_factor(backend, weight, array, "weight")
    pos_weights = check_factor(backend, pos_weight, array, "pos_weight")
    grad = None
    if with_grad:
        grad = check.output(grad_out, array.shape, wanted, backend, array, "grad_out")

    divisor = float(array.size) if reduction == "mean" else 1.0
    loss = backend.empty(array.shape, wanted, array) if reduction == "none" else None
    total: Number = 0.0
    if array.size:
        total = backend.binary_cross_entropy(
            array, truth, weights, pos_weights, loss, grad, divisor
        )
    if loss is None:
        value = backend.quotient(total, divisor, wanted)
    else:
        value = backend.wrap(loss, logits)
    return value, backend.wrap(grad, logits) if with_grad and grad_out is None else grad_out


def check_factor(backend: Backend, factor: Any, array: Array, name: str) -> Array | None:
    """`factor` broadcast to the shape of the logits, in their dtype."""
    if factor is None:
        return None
    values = check.unmasked(backend, name, factor, WITHOUT_WEIGHT)
    if not check.is_real(values.dtype):
        raise TypeError(f"{name} must be real, got {values.dtype.name}")
    try:
        return backend.namespace.broadcast_to(values, array.shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the shape of the logits {array.shape}, got {values.shape}"
        ) from None
