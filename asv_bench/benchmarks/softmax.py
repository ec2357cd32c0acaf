"""softmax, log_softmax, logsumexp and the vector-Jacobian products."""

import numpy as np

from . import common
from .common import AXES, BACKENDS, DTYPES, SHAPES

# What a function is called with, from logits.
INPUTS = {
    "softmax": lambda x, axis: (x, axis),
    "log_softmax": lambda x, axis: (x, axis),
    "logsumexp": lambda x, axis: (x, axis),
    "softmax_vjp": lambda x, axis: (x[::-1].copy(), common.public("softmax")(x, axis), axis),
    "log_softmax_vjp": lambda x, axis: (
        x[::-1].copy(),
        common.public("log_softmax")(x, axis),
        axis,
    ),
}


def numpy_softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def numpy_log_softmax(x):
    d = x - x.max(axis=-1, keepdims=True)
    d -= np.log(np.exp(d).sum(axis=-1, keepdims=True))
    return d


def numpy_logsumexp(x):
    peak = x.max(axis=-1, keepdims=True)
    return peak[..., 0] + np.log(np.exp(x - peak).sum(axis=-1))


FORMULAS = {
    "softmax": numpy_softmax,
    "log_softmax": numpy_log_softmax,
    "logsumexp": numpy_logsumexp,
}
SCIPY = {name: name for name in FORMULAS}


class Time:
    params = [list(INPUTS), BACKENDS, DTYPES, SHAPES, AXES]
    param_names = ["function", "backend", "dtype", "shape", "axis"]

    def setup(self, function, backend, dtype, shape, axis):
        self.call = common.call_of(function, backend, INPUTS[function], dtype, shape, axis)

    def time_call(self, *_):
        self.call()


class Threads:
    params = [[1, 2, 4], DTYPES, [(4096, 1000), (1, 4_000_000)]]
    param_names = ["threads", "dtype", "shape"]

    def setup(self, threads, dtype, shape):
        if threads > len(common.available_cores()):
            raise NotImplementedError("fewer cores")
        common.public("set_num_threads")(threads)
        self.call = common.call_of("softmax", "numpy", INPUTS["softmax"], dtype, shape)

    def time_softmax(self, *_):
        self.call()


class Ratio:
    """Time over that of a peer; smaller is better."""

    params = [list(FORMULAS), ["numpy", "scipy"], DTYPES, SHAPES]
    param_names = ["function", "peer", "dtype", "shape"]
    unit = "peer's time"

    def setup(self, function, peer, dtype, shape):
        x = common.normal(shape, dtype)
        ours, theirs = common.public(function), common.peer(peer, FORMULAS, SCIPY, function)
        self.ours = lambda: ours(x)
        self.theirs = (lambda: theirs(x)) if peer == "numpy" else (lambda: theirs(x, axis=-1))

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs)


class Accuracy:
    """Worst error against extended precision, around 0 and around 1000."""

    params = [list(FORMULAS), DTYPES, [10, 1000, 65_537]]
    param_names = ["function", "dtype", "columns"]
    unit = "ULP"

    def setup(self, function, dtype, columns):
        common.wide(0.0)
        common.public(function)

    def track_worst_ulp(self, function, dtype, columns):
        x = common.normal((8, columns), dtype, seed=columns)
        x[4:] = x[4:] * 10 + 1000
        result = common.public(function)(x)
        peak = common.wide(x.max(axis=-1, keepdims=True))
        d = common.wide(x) - peak
        e = np.exp(d)
        others = np.arange(columns) != x.argmax(axis=-1)[:, None]
        rest = e.sum(axis=-1, keepdims=True, where=others)
        if function == "softmax":
            return common.worst_ulp(result, e / (1 + rest))
        if function == "log_softmax":
            return common.worst_ulp(result, d - np.log1p(rest))
        exact = (peak + np.log1p(rest))[:, 0]
        return common.worst_ulp(result, exact, np.maximum(abs(exact), abs(peak[:, 0])))
