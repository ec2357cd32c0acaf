"""Worst error in units in the last place, against the references of the tests."""

import pathlib
import sys

import numpy as np

from . import common
from .functions import FUNCTIONS, one_each

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests"))
import oracles


def _cross_entropy(x, target):
    return oracles.cross_entropy(x, target).loss, None


def _cross_entropy_with_grad(x, target):
    exact = oracles.cross_entropy(x, target)
    return exact.gradient, exact.scale


def _binary_cross_entropy(x, target):
    return oracles.binary_cross_entropy(x, target).loss, None


def _binary_cross_entropy_with_grad(x, target):
    exact = oracles.binary_cross_entropy(x, target)
    return exact.gradient, exact.scale


# The exact result, and the magnitude whose ULP counts where it is not that of the result.
EXACT = {
    "softmax": lambda x: (oracles.softmax(x), None),
    "log_softmax": lambda x: (oracles.log_softmax(x), None),
    "logsumexp": lambda x: (oracles.logsumexp(x), oracles.logsumexp_scale(x)),
    "softmax_vjp": oracles.softmax_vjp,
    "log_softmax_vjp": oracles.log_softmax_vjp,
    "cross_entropy": _cross_entropy,
    "cross_entropy_with_grad": _cross_entropy_with_grad,
    "sigmoid": lambda x: (oracles.sigmoid(x), None),
    "log_sigmoid": lambda x: (oracles.log_sigmoid(x), None),
    "binary_cross_entropy_with_logits": _binary_cross_entropy,
    "binary_cross_entropy_with_logits_with_grad": _binary_cross_entropy_with_grad,
}


class _Accuracy:
    param_names = ["dtype", "columns"]
    unit = "ULP"
    version = "1"

    def setup(self, dtype, columns):
        if not oracles.LONGDOUBLE_IS_WIDE:
            raise NotImplementedError("np.longdouble is float64 here, and mpmath takes minutes")
        self.call = common.public(self.function.name)

    def track_worst_ulp(self, dtype, columns):
        x = common.normal((8, columns), dtype, seed=columns)
        x[4:] = x[4:] * 10 + (1000 if self.function.rowwise else 0)
        arrays = self.function.arrays(x, -1)
        each = {"reduction": "none"} if "cross_entropy" in self.function.name else {}
        result = self.call(*arrays, **each)
        if isinstance(result, tuple):
            _, result = result  # loss and gradient
        exact, scale = EXACT[self.function.name](*arrays)
        return float(oracles.ulp_errors(np.asarray(result), exact, scale).max())


globals().update(
    one_each(_Accuracy, {name: [common.DTYPES, [10, 1000, 65_537]] for name in FUNCTIONS})
)
