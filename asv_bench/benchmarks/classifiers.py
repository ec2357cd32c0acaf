"""Time of what surrounds softmax in a classifier, on one thread."""

import functools

import numpy as np

from . import common
from .common import DTYPES, _Timed

SHAPES = [(10_000, 10), (1000, 1000)]


def _scaled(x, labels):
    return 3 * x, labels


def _probabilities(x, labels):
    return common.public("softmax")(x), labels


# What each is called with, from logits and from labels that follow them.
FUNCTIONS = {
    "fit_temperature": _scaled,
    "fit_vector_scaling": _scaled,
    "expected_calibration_error": _probabilities,
    "reliability_curve": _probabilities,
    "brier_score": _probabilities,
    "negative_log_likelihood": _probabilities,
    "validate": _probabilities,
    "check_pairing": lambda x, labels: ("softmax", "cross_entropy"),
    "decide": lambda x, labels: (_probabilities(x, labels)[0], 0.9),
    "risk_coverage_curve": _probabilities,
    "top_k": lambda x, labels: (x, 5),
    "class_weight": lambda x, labels: ("balanced", labels % 10),
    "logit_adjust": lambda x, labels: (x, np.full(x.shape[1], 1 / x.shape[1])),
    "sample": lambda x, labels: (x,),
}


class Time(_Timed):
    params = [list(FUNCTIONS), DTYPES, SHAPES]
    param_names = ["function", "dtype", "shape"]

    def setup(self, function, dtype, shape):
        if function == "fit_vector_scaling" and shape[1] > 100:
            raise NotImplementedError("2000 parameters for 1000 rows")
        x = common.normal(shape, dtype)
        labels = (x + common.normal(shape, dtype, seed=1)).argmax(axis=-1)
        arguments, options = FUNCTIONS[function](x, labels), {}
        if function == "validate":
            arguments, options = arguments[:1], {"labels": labels}
        self.prepare(functools.partial(common.public(function), *arguments, **options))


class ConfidenceMonitor(_Timed):
    """A batch of probabilities, of which every so many-th row is looked at."""

    params = [DTYPES, [(1, 10), (1024, 100), (1024, 1000), (64, 32_000)], [1, 7, 31]]
    param_names = ["dtype", "shape", "every"]

    def setup(self, dtype, shape, every):
        options = {"every": every, "min_rows": 10**9}  # no alerts
        monitor = common.public("ConfidenceMonitor")(shape[1], **options)
        self.prepare(
            functools.partial(monitor.update, common.public("softmax")(common.normal(shape, dtype)))
        )
