"""Cross-entropy and binary cross-entropy, with and without their gradients."""

import numpy as np

from . import common
from .common import BACKENDS, DTYPES, SHAPES
from .softmax import numpy_log_softmax


def _labels(x, axis):
    return x, x.argmin(axis=axis)


def _probabilities(x, axis):
    return x, common.public("softmax")(x[::-1], axis)


def _binary(x, axis):
    return x, (x < 0).astype(x.dtype)


# function, target -> what it is called with, from logits
INPUTS = {
    "cross_entropy": _labels,
    "cross_entropy, probabilities": _probabilities,
    "cross_entropy_with_grad": _labels,
    "cross_entropy_with_grad, probabilities": _probabilities,
    "binary_cross_entropy_with_logits": _binary,
    "binary_cross_entropy_with_logits_with_grad": _binary,
}


def numpy_cross_entropy(x, labels):
    return -numpy_log_softmax(x)[np.arange(len(x)), labels].mean()


def numpy_cross_entropy_with_grad(x, labels):
    log_p = numpy_log_softmax(x)
    rows = np.arange(len(x))
    loss = -log_p[rows, labels].mean()
    grad = np.exp(log_p)
    grad[rows, labels] -= 1
    grad /= len(x)
    return loss, grad


def numpy_binary_cross_entropy(x, y):
    return (np.maximum(x, 0) - x * y + np.log1p(np.exp(-abs(x)))).mean()


def numpy_binary_cross_entropy_with_grad(x, y):
    grad = (1 / (1 + np.exp(-x)) - y) / x.size
    return numpy_binary_cross_entropy(x, y), grad


FORMULAS = {
    "cross_entropy": numpy_cross_entropy,
    "cross_entropy_with_grad": numpy_cross_entropy_with_grad,
    "binary_cross_entropy_with_logits": numpy_binary_cross_entropy,
    "binary_cross_entropy_with_logits_with_grad": numpy_binary_cross_entropy_with_grad,
}


class Time:
    params = [list(INPUTS), BACKENDS, DTYPES, SHAPES]
    param_names = ["function", "backend", "dtype", "shape"]

    def setup(self, function, backend, dtype, shape):
        name = function.partition(",")[0]
        self.call = common.call_of(name, backend, INPUTS[function], dtype, shape)

    def time_call(self, *_):
        self.call()


class Ratio:
    """Time over that of NumPy's formula; smaller is better."""

    params = [list(FORMULAS), DTYPES, SHAPES]
    param_names = ["function", "dtype", "shape"]
    unit = "NumPy's time"

    def setup(self, function, dtype, shape):
        x, y = INPUTS[function](common.normal(shape, dtype), -1)
        ours, theirs = common.public(function), FORMULAS[function]
        self.ours = lambda: ours(x, y)
        self.theirs = lambda: theirs(x, y)

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs)


class Accuracy:
    """Worst error of a row's or element's loss against extended precision."""

    params = [["cross_entropy", "binary_cross_entropy_with_logits"], DTYPES, [10, 1000, 65_537]]
    param_names = ["function", "dtype", "columns"]
    unit = "ULP"

    def setup(self, function, dtype, columns):
        common.wide(0.0)
        common.public(function)

    def track_worst_ulp(self, function, dtype, columns):
        x, y = INPUTS[function](common.normal((8, columns), dtype, seed=columns), -1)
        result = common.public(function)(x, y, reduction="none")
        w = common.wide(x)
        if function == "cross_entropy":
            d = w - w.max(axis=-1, keepdims=True)
            others = np.arange(columns) != x.argmax(axis=-1)[:, None]
            rest = np.exp(d).sum(axis=-1, where=others)
            return common.worst_ulp(result, np.log1p(rest) - d[np.arange(len(d)), y])
        toward = np.where(y == 1, -w, w)
        exact = np.maximum(toward, 0) + np.log1p(np.exp(-abs(w)))
        return common.worst_ulp(result, exact)
