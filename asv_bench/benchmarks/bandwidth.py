"""Time over that of a copy, of arrays larger than the caches: how near the memory's limit.

The reciprocal is the fraction of the copy's bandwidth that is reached.
"""

import functools

import numpy as np

from . import common
from .functions import one_each


class _Copies:
    param_names = ["dtype", "shape"]
    unit = "of a copy's time"
    version = "1"

    def setup(self, dtype, shape):
        x = common.normal(shape, dtype)
        out = np.empty_like(x)
        self.ours = functools.partial(common.public(self.function.name), x, out=out)
        self.copy = functools.partial(np.copyto, out, x)

    def track_copies(self, *_):
        return common.ratio(self.ours, self.copy)


SHAPES = [(4096, 4096), (1, 2**24)]
globals().update(
    one_each(
        _Copies,
        {name: [common.DTYPES, SHAPES] for name in ("softmax", "log_softmax", "sigmoid")},
    )
)
