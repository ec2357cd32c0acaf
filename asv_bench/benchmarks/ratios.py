"""Time of a call over that of the same by a peer, on one thread."""

import functools
import importlib

import numpy as np

from . import common
from .common import DTYPES
from .functions import FUNCTIONS, one_each

SHAPES = [(1, 10), (10_000, 10), (1000, 1000), (10, 100_000)]


def _installed(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# Imported here, once, and not by every benchmark's process: asv forks those from one that has
# imported the suite.
LIBRARIES = {"scipy": _installed("scipy.special"), "torch": _installed("torch")}
if LIBRARIES["torch"]:
    LIBRARIES["torch"].set_num_threads(1)


def peer_of(function, peer, arrays):
    """A call without arguments of a peer's function."""
    if peer == "numpy":
        return functools.partial(function.numpy, *arrays)
    library = LIBRARIES[peer]
    if library is None:
        raise NotImplementedError(f"{peer} is not installed")
    if peer == "torch":
        arrays = map(library.from_numpy, arrays)
    return functools.partial(getattr(function, peer)(library), *arrays)


class _Ratio:
    param_names = ["peer", "dtype", "shape"]
    unit = "of the peer's time"
    version = "1"

    def setup(self, peer, dtype, shape):
        arrays = self.function.arrays(common.normal(shape, dtype), -1)
        self.ours = functools.partial(common.public(self.function.name), *arrays)
        self.theirs = peer_of(self.function, peer, arrays)

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs)


globals().update(
    one_each(
        _Ratio,
        {
            name: [["numpy", "torch", *(["scipy"] if function.scipy else [])], DTYPES, SHAPES]
            for name, function in FUNCTIONS.items()
        },
    )
)


class ConfidenceMonitor:
    """A batch in a monitor, over the softmax that it watches: below 0.15 is the aim."""

    params = [DTYPES, [(1024, 10), (1024, 100), (1024, 1000), (64, 32_000)], [1, 7, 31]]
    param_names = ["dtype", "shape", "every"]
    unit = "of the softmax's time"
    version = "1"

    def setup(self, dtype, shape, every):
        x = common.normal(shape, dtype)
        softmax = common.public("softmax")
        monitor = common.public("ConfidenceMonitor")(
            shape[1], every=every, min_rows=10**9
        )  # no alerts
        self.ours = functools.partial(monitor.update, softmax(x))
        self.theirs = functools.partial(softmax, x, out=np.empty_like(x))

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs)
