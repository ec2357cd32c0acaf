"""Time of what surrounds softmax: calibration and its measures, on one thread."""

import functools

from . import common
from .common import DTYPES, _Timed

SHAPES = [(10_000, 10), (1000, 1000)]


def _logits(x):
    return (3 * x,)


def _probabilities(x):
    return (common.public("softmax")(x),)


# Each is called with what is made of logits here, and with labels that follow them.
FUNCTIONS = {
    "fit_temperature": _logits,
    "fit_vector_scaling": _logits,
    "expected_calibration_error": _probabilities,
    "reliability_curve": _probabilities,
    "brier_score": _probabilities,
    "negative_log_likelihood": _probabilities,
}


class Time(_Timed):
    params = [list(FUNCTIONS), DTYPES, SHAPES]
    param_names = ["function", "dtype", "shape"]

    def setup(self, function, dtype, shape):
        if function == "fit_vector_scaling" and shape[1] > 100:
            raise NotImplementedError("2000 parameters for 1000 rows")
        x = common.normal(shape, dtype)
        labels = (x + common.normal(shape, dtype, seed=1)).argmax(axis=-1)
        arguments = FUNCTIONS[function](x)
        self.prepare(functools.partial(common.public(function), *arguments, labels))
