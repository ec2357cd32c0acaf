"""Memory beyond the input and the result."""

import tracemalloc

import numpy as np

from . import common, losses, softmax

SHAPE = (2048, 2048)
OUT = {
    "softmax": "out",
    "log_softmax": "out",
    "softmax_vjp": "out",
    "log_softmax_vjp": "out",
    "sigmoid": "out",
    "log_sigmoid": "out",
    "cross_entropy_with_grad": "grad_out",
    "binary_cross_entropy_with_logits_with_grad": "grad_out",
}
INPUTS = {**losses.INPUTS, **softmax.INPUTS}


class Memory:
    """Functions that write into an array of the caller's."""

    params = [list(OUT), common.DTYPES]
    param_names = ["function", "dtype"]
    unit = "bytes an element"

    def setup(self, function, dtype):
        self.function = common.public(function)
        x = common.normal(SHAPE, dtype)
        self.arguments = INPUTS.get(function, lambda x, axis: (x,))(x, -1)
        self.options = {OUT[function]: np.empty_like(x)}

    def peakmem_call(self, *_):
        self.function(*self.arguments, **self.options)

    def track_extra_memory(self, *_):
        """Bytes that Python and NumPy allocate during the call, per element."""
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        self.function(*self.arguments, **self.options)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return peak / (SHAPE[0] * SHAPE[1])
