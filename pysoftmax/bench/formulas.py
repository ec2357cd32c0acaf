"""The functions as they are written by hand in NumPy: stable, in few lines, by name.

Each has the arguments of pysoftmax's function, makes one new array at most for the result and
writes into `out` (`grad_out`) where that is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def softmax(x: Any, axis: int = -1, out: Any = None) -> Any:
    """Return the formula in the three lines that do not overflow."""
    e = np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    np.exp(e, out=e)
    return np.divide(e, e.sum(axis=axis, keepdims=True), out=e)


def log_softmax(x: Any, axis: int = -1, out: Any = None) -> Any:
    """Subtract the maximum, then the logarithm of the sum."""
    z = np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    return np.subtract(z, np.log(np.exp(z).sum(axis=axis, keepdims=True)), out=z)


def logsumexp(x: Any, axis: int = -1) -> Any:
    """Take the maximum out of the sum."""
    peak = x.max(axis=axis, keepdims=True)
    return (peak + np.log(np.exp(x - peak).sum(axis=axis, keepdims=True))).squeeze(axis)


def cross_entropy(logits: Any, target: Any, axis: int = -1) -> Any:
    """Return the mean loss for labels."""
    chosen = np.take_along_axis(logits, np.expand_dims(target, axis), axis).squeeze(axis)
    return (logsumexp(logits, axis) - chosen).mean()


def cross_entropy_with_grad(logits: Any, target: Any, axis: int = -1, grad_out: Any = None) -> Any:
    """Return the mean loss for labels and its gradient."""
    index = np.expand_dims(target, axis)
    log_p = log_softmax(logits, axis, out=grad_out)
    loss = -np.take_along_axis(log_p, index, axis).mean()
    grad = np.exp(log_p, out=log_p)
    np.put_along_axis(grad, index, np.take_along_axis(grad, index, axis) - 1, axis)
    return loss, np.divide(grad, index.size, out=grad)


def sigmoid(x: Any, out: Any = None) -> Any:
    """Return 1 / (1 + exp(-x))."""
    e = np.negative(x, out=out)
    np.exp(e, out=e)
    return np.reciprocal(np.add(e, 1, out=e), out=e)


def log_sigmoid(x: Any, out: Any = None) -> Any:
    """Return min(x, 0) - log(1 + exp(-abs(x)))."""
    return np.subtract(np.minimum(x, 0), np.log1p(np.exp(-abs(x))), out=out)


def binary_cross_entropy_with_logits(logits: Any, target: Any) -> Any:
    """Return the mean loss."""
    return (np.maximum(logits, 0) - logits * target + np.log1p(np.exp(-abs(logits)))).mean()


def binary_cross_entropy_with_logits_with_grad(
    logits: Any, target: Any, grad_out: Any = None
) -> Any:
    """Return the mean loss and its gradient."""
    grad = np.subtract(sigmoid(logits, out=grad_out), target, out=grad_out)
    loss = binary_cross_entropy_with_logits(logits, target)
    return loss, np.divide(grad, grad.size, out=grad)


def softmax_vjp(grad_output: Any, probabilities: Any, axis: int = -1, out: Any = None) -> Any:
    """Return p * g - p * sum(p * g)."""
    product = np.multiply(grad_output, probabilities, out=out)
    total = product.sum(axis=axis, keepdims=True)
    return np.subtract(product, probabilities * total, out=product)


def log_softmax_vjp(
    grad_output: Any, log_probabilities: Any, axis: int = -1, out: Any = None
) -> Any:
    """Return g - exp(log_p) * sum(g)."""
    p = np.exp(log_probabilities, out=out)
    p *= grad_output.sum(axis=axis, keepdims=True)
    return np.subtract(grad_output, p, out=p)
