"""Time on several threads over that on one; 1 / threads is the best there can be."""

from . import common
from .functions import one_each

IN_CACHE, ONE_ROW = (256, 1000), (1, 4_000_000)
SIDE_BY_SIDE = (200_000, 16)  # rows along the first axis, too few for each thread to have some


class _Scaling:
    param_names = ["threads", "dtype", "shape"]
    unit = "of one thread's time"
    version = "1"

    def setup(self, threads, dtype, shape):
        if threads > len(common.available_cores()):
            raise NotImplementedError("fewer cores")
        self.set_num_threads = common.public("set_num_threads")
        axis = 0 if shape == SIDE_BY_SIDE else -1
        self.call = common.call_of(self.function, "numpy", dtype, shape, axis)

    def on(self, threads):
        def call():
            self.set_num_threads(threads)
            self.call()

        return call

    def track_scaling(self, threads, *_):
        return common.ratio(self.on(threads), self.on(1))


globals().update(
    one_each(
        _Scaling,
        {
            name: [[2, 4, 8], common.DTYPES, [IN_CACHE, ONE_ROW, SIDE_BY_SIDE]]
            for name in ("softmax", "cross_entropy")
        },
    )
)
