"""sigmoid and log_sigmoid."""

import numpy as np

from . import common
from .common import BACKENDS, DTYPES, SHAPES


def numpy_sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_log_sigmoid(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-abs(x)))


FORMULAS = {"sigmoid": numpy_sigmoid, "log_sigmoid": numpy_log_sigmoid}
SCIPY = {"sigmoid": "expit", "log_sigmoid": "log_expit"}


class Time:
    params = [list(FORMULAS), BACKENDS, DTYPES, SHAPES]
    param_names = ["function", "backend", "dtype", "shape"]

    def setup(self, function, backend, dtype, shape):
        self.call = common.call_of(function, backend, lambda x, axis: (x,), dtype, shape)

    def time_call(self, *_):
        self.call()


class Ratio:
    """Time over that of a peer; smaller is better."""

    params = [list(FORMULAS), ["numpy", "scipy"], DTYPES, [(1, 10), (1000, 1000)]]
    param_names = ["function", "peer", "dtype", "shape"]
    unit = "peer's time"

    def setup(self, function, peer, dtype, shape):
        x = common.normal(shape, dtype)
        ours, theirs = common.public(function), common.peer(peer, FORMULAS, SCIPY, function)
        self.ours = lambda: ours(x)
        self.theirs = lambda: theirs(x)

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs)


class Accuracy:
    """Worst error against extended precision over the range where results are normal."""

    params = [list(FORMULAS), DTYPES]
    param_names = ["function", "dtype"]
    unit = "ULP"

    def setup(self, function, dtype):
        common.wide(0.0)
        common.public(function)

    def track_worst_ulp(self, function, dtype):
        end = 87 if dtype == "float32" else 708
        x = np.linspace(-end, end, 200_003).astype(dtype)
        z = np.exp(-abs(common.wide(x)))
        if function == "sigmoid":
            exact = np.where(x < 0, z, 1) / (1 + z)
        else:
            exact = np.minimum(common.wide(x), 0) - np.log1p(z)
        return common.worst_ulp(common.public(function)(x), exact)
