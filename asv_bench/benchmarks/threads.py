"""Time on several threads over that on one; 1 / threads is the best there can be."""

from . import common
from .functions import one_each

IN_CACHE, ONE_ROW = (256, 1000), (1, 4_000_000)


class _Scaling:
    param_names = ["threads", "dtype", "shape"]
    unit = "of one thread's time"
    version = "1"

    def setup(self, threads, dtype, shape):
        if threads > len(common.available_cores()):
            raise NotImplementedError("fewer cores")
        self.set_num_threads = common.public("set_num_threads")
        self.call = common.call_of(self.function, "numpy", dtype, shape)

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
            name: [[2, 4, 8], common.DTYPES, [IN_CACHE, ONE_ROW]]
            for name in ("softmax", "cross_entropy")
        },
    )
)
