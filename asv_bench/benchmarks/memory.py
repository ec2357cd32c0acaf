"""Memory: of the process at its peak, and that a call takes beside its arguments."""

import tracemalloc

import numpy as np

from . import common
from .functions import FUNCTIONS, one_each

SHAPE = (2048, 2048)


class _Memory:
    """Results go into an array of the caller's, where a function takes one."""

    param_names = ["dtype"]
    version = "1"

    def setup(self, dtype):
        self.call = common.public(self.function.name)
        x = np.ones(SHAPE, dtype)  # made without a copy, which could be the peak
        self.arrays = self.function.arrays(x, -1)
        self.options = {self.function.out: np.empty_like(x)} if self.function.out else {}

    def peakmem_call(self, *_):
        self.call(*self.arrays, **self.options)

    def track_extra(self, *_):
        """Bytes that Python and NumPy allocate during the call."""
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        self.call(*self.arrays, **self.options)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return peak

    track_extra.unit = "bytes"


globals().update(one_each(_Memory, {name: [common.DTYPES] for name in FUNCTIONS}))
