"""What a call and an import cost before anything is computed."""

import numpy as np

from . import common, losses, softmax

INPUTS = {
    **softmax.INPUTS,
    **{name: losses.INPUTS[name] for name in losses.FORMULAS},
    "sigmoid": lambda x, axis: (x,),
    "log_sigmoid": lambda x, axis: (x,),
}

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


class Call:
    """One row of ten logits."""

    params = [list(INPUTS)]
    param_names = ["function"]

    def setup(self, function):
        self.call = common.call_of(function, "numpy", INPUTS[function], "float32", (1, 10))

    def time_call(self, _):
        self.call()


class Options:
    """softmax of one row of ten logits, off the plain path."""

    params = [list(OPTIONS)]
    param_names = ["option"]

    def setup(self, option):
        self.function = common.public("softmax")
        self.x, self.options = OPTIONS[option]
        self.time_softmax(option)

    def time_softmax(self, _):
        self.function(self.x, **self.options)
