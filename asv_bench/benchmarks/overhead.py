"""What a call and an import cost before anything is computed."""

import functools

import numpy as np

from . import common
from .common import _Timed
from .functions import FUNCTIONS

_X = common.normal((1, 10), "float32")
OPTIONS = {
    "out": (_X, {"out": np.empty_like(_X)}),
    "axis 0": (_X, {"axis": 0}),
    "axis None": (_X, {"axis": None}),
    "temperature": (_X, {"temperature": 2.0}),
    "where": (_X, {"where": _X > 0}),
    "dtype": (_X, {"dtype": np.float64}),
    "not contiguous": (common.normal((10, 1), "float32").T, {}),
    "list": (_X.tolist(), {}),
    "float16": (_X.astype("float16"), {}),
}


def timeraw_import():
    """`import pysoftmax`, when NumPy has been imported."""
    return "import pysoftmax", "import numpy"


timeraw_import.version = "1"


class Call(_Timed):
    """One row of ten logits."""

    params = [list(FUNCTIONS)]
    param_names = ["function"]

    def setup(self, function):
        self.prepare(common.call_of(FUNCTIONS[function], "numpy", "float32", (1, 10)))


class Options(_Timed):
    """softmax of one row of ten logits, off the plain path."""

    params = [list(OPTIONS)]
    param_names = ["option"]

    def setup(self, option):
        x, options = OPTIONS[option]
        self.prepare(functools.partial(common.public("softmax"), x, **options))
