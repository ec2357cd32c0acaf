"""Dask arrays: what a block costs, time over that of NumPy's formula, and of more workers."""

import functools

import numpy as np

from . import common
from .common import DTYPES, _Timed


def _library():
    """dask.array, on commits that take its arrays."""
    try:
        import dask
        import dask.array
    except ImportError:
        raise NotImplementedError("dask is not installed") from None
    dask.config.set(scheduler="synchronous")
    try:
        common.public("softmax")(dask.array.zeros((1, 2)))
    except TypeError:
        raise NotImplementedError("Dask arrays are not taken yet") from None
    return dask.array


def formula(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Blocks(_Timed):
    """A thousand blocks of one row of ten logits."""

    params = [["bare", "softmax", "log_softmax"]]
    param_names = ["function"]

    def setup(self, function):
        x = _library().zeros((1000, 10), chunks=(1, 10), dtype="float32").persist()
        if function == "bare":
            self.prepare(lambda: x.map_blocks(lambda block: block, meta=x._meta).compute())
        else:
            self.prepare(lambda: common.public(function)(x).compute())


class Formula:
    """softmax over the same formula with dask.array, rows whole and cut in ten."""

    params = [DTYPES, [(200, 5000), (2000, 500)]]
    param_names = ["dtype", "chunks"]
    unit = "of the formula's time"
    version = "1"

    def setup(self, dtype, chunks):
        array = common.normal((2000, 5000), dtype)
        self.x = _library().from_array(array, chunks=chunks).persist()

    def track_ratio(self, *_):
        softmax = common.public("softmax")
        return common.ratio(
            lambda: softmax(self.x).compute(), lambda: formula(self.x).compute(), rounds=3
        )


class Workers:
    """Time of softmax on several threads of Dask over that on one."""

    params = [[2, 4]]
    param_names = ["workers"]
    unit = "of one worker's time"
    version = "1"

    def setup(self, workers):
        if workers > len(common.available_cores()):
            raise NotImplementedError("fewer cores")
        array = common.normal((4000, 5000), "float32")
        self.x = _library().from_array(array, chunks=(250, 5000)).persist()

    def track_scaling(self, workers):
        result = common.public("softmax")(self.x)
        compute = functools.partial(result.compute, scheduler="threads")
        return common.ratio(
            lambda: compute(num_workers=workers), lambda: compute(num_workers=1), rounds=3
        )


class Processes:
    """Time of softmax and a sum in worker processes over that in this one, on one thread."""

    params = [[1, 2]]
    param_names = ["processes"]
    unit = "of the time without a cluster"
    version = "1"
    timeout = 60  # seconds for all of it, so that a cluster that does not answer ends

    def setup(self, processes):
        array = _library()
        try:
            import distributed
        except ImportError:
            raise NotImplementedError("distributed is not installed") from None
        if processes > len(common.available_cores()):
            raise NotImplementedError("fewer cores")
        # Where the logits are made is where they are computed on.
        x = array.random.default_rng(0).normal(size=(4000, 5000), chunks=(1000, 5000))
        self.cluster = distributed.LocalCluster(
            n_workers=processes, threads_per_worker=1, dashboard_address=None, protocol="tcp://"
        )
        self.client = distributed.Client(self.cluster, timeout=30, set_as_default=False)
        self.there = self.client.persist(x)
        self.client.compute(self.there.sum()).result(timeout=30)  # wait
        self.here = x.persist()

    def teardown(self, processes):
        if hasattr(self, "client"):
            self.client.close(timeout=10)
            self.cluster.close(timeout=10)

    def track_scaling(self, processes):
        softmax = common.public("softmax")
        return common.ratio(
            lambda: self.client.compute(softmax(self.there).sum()).result(timeout=30),
            lambda: softmax(self.here).sum().compute(),
            rounds=3,
        )
