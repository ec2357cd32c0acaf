"""Time of a call on one thread, over backends, dtypes, shapes and axes."""

from .common import BACKENDS, DTYPES, _Timed, call_of
from .functions import FUNCTIONS, one_each

SHAPES = [(10_000, 10), (1000, 1000), (8, 250_000)]


class _Time(_Timed):
    param_names = ["backend", "dtype", "shape", "axis"]

    def setup(self, backend, dtype, shape, axis):
        self.prepare(call_of(self.function, backend, dtype, shape, axis))


globals().update(
    one_each(
        _Time,
        {
            name: [BACKENDS, DTYPES, SHAPES, [-1, 0] if function.rowwise else [-1]]
            for name, function in FUNCTIONS.items()
        },
    )
)
