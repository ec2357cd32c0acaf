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
LIBRARIES = {
    "scipy": _installed("scipy.special"),
    "torch": _installed("torch"),
    "sklearn": _installed("sklearn.calibration"),
}
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

    params = [
        DTYPES,
        [(1024, 10), (10_000, 10), (1024, 100), (1024, 1000), (64, 32_000)],
        [1, 7, 31, 211, 20_011],
    ]
    param_names = ["dtype", "shape", "every"]
    unit = "of the softmax's time"
    version = "2"

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


class ConfidenceMonitor_softmax:
    """What watching adds to a softmax, of its time: below 0.15 is the aim."""

    params = [DTYPES, ConfidenceMonitor.params[1]]
    param_names = ["dtype", "shape"]
    unit = "of the softmax's time"
    version = "1"

    def setup(self, dtype, shape):
        x = common.normal(shape, dtype)
        monitor = common.public("ConfidenceMonitor")(shape[1], min_rows=10**9)  # no alerts
        out = np.empty_like(x)
        self.ours = functools.partial(monitor.softmax, x, out=out)
        self.theirs = functools.partial(common.public("softmax"), x, out=out)

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs) - 1


class fit_temperature:
    """Over the calibrator that scikit-learn has inside its CalibratedClassifierCV."""

    params = [DTYPES, [(1000, 10), (200_000, 10), (10_000, 1000)]]
    param_names = ["dtype", "shape"]
    unit = "of scikit-learn's time"
    version = "1"

    def setup(self, dtype, shape):
        calibrator = getattr(LIBRARIES["sklearn"], "_TemperatureScaling", None)
        if calibrator is None:
            raise NotImplementedError("no scikit-learn, or none that calibrates a temperature")
        x = common.normal(shape, dtype)
        labels = (x + np.random.default_rng(1).gumbel(0, 2, shape)).argmax(axis=-1)
        self.ours = functools.partial(common.public("fit_temperature"), x, labels)
        self.theirs = lambda: calibrator().fit(x, labels)

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs, rounds=3)


def _torch_sample(torch, logits, temperature, top_k, top_p):
    """The next tokens as they are drawn in torch."""
    x = logits / temperature
    if top_k is not None:
        x[x < torch.topk(x, top_k).values[:, -1:]] = -torch.inf
    if top_p is not None:
        ordered, places = torch.sort(x)
        beyond = torch.softmax(ordered, -1).cumsum(-1) <= 1 - top_p
        beyond[:, -1] = False
        x = x.masked_fill(beyond.scatter(1, places, beyond), -torch.inf)
    return torch.multinomial(torch.softmax(x, -1), 1)


class sample:
    """The next tokens of a batch of sequences, over the same in torch."""

    params = [
        [(1, 32_000), (16, 32_000), (16, 128_256)],
        [(1.0, None, None), (0.8, 50, None), (0.8, None, 0.9), (0.8, 50, 0.9)],
    ]
    param_names = ["shape", "temperature, top_k, top_p"]
    unit = "of torch's time"
    version = "1"

    def setup(self, shape, restrictions):
        torch = LIBRARIES["torch"]
        if torch is None:
            raise NotImplementedError("torch is not installed")
        x = common.normal(shape, "float32")
        temperature, top_k, top_p = restrictions
        self.ours = functools.partial(
            common.public("sample"),
            x,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            rng=np.random.default_rng(0),
        )
        self.theirs = functools.partial(_torch_sample, torch, torch.from_numpy(x), *restrictions)

    def track_ratio(self, *_):
        return common.ratio(self.ours, self.theirs, rounds=3)
