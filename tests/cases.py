"""What the tests run over: lengths, layouts, and every public function as a function of rows."""

import contextlib
import functools
import os
import subprocess
import sys
from unittest import mock

import numpy as np

import pysoftmax as ps
from pysoftmax import _losses, _sigmoid, _softmax

TESTS = os.path.dirname(os.path.abspath(__file__))

# Both sides of every width in the kernels: vectors of 8 and 16, lane rows of 32 and 64, summation
# chunks of 256 and 512, blocks of 1024 and 2048 columns.
LENGTHS = (
    *(1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129),
    *(255, 256, 257, 511, 512, 513, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 4097),
)
LONG = 65537
VERY_LONG = 2**17 + 5  # one row that may be divided among threads
FLOATS = ("float32", "float64")

try:
    import ml_dtypes

    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = None


def normal(shape, dtype, seed=0, scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


# --- layouts: the same values, differently in memory --------------------------------------------


def _sliced(a):
    room = np.full([2 * n + 1 for n in a.shape], 99, a.dtype)
    view = room[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def _negative(a):
    flip = (slice(None, None, -1),) * a.ndim
    return np.array(a[flip], order="C")[flip]


def _read_only(a):
    a = np.array(a, order="C")
    a.flags.writeable = False
    return a


def _unaligned(a):
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


LAYOUTS = {
    "C": lambda a: np.array(a, order="C"),
    "Fortran": lambda a: np.array(a, order="F"),
    "transposed": lambda a: np.array(np.moveaxis(a, -1, 0), order="C").transpose(
        *range(1, a.ndim), 0
    ),
    "sliced": _sliced,
    "negative strides": _negative,
    "rows broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "columns broadcast": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "read-only": _read_only,
    "unaligned": _unaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
}


def plain(a):
    """A C-ordered native copy of the values."""
    return np.array(a, dtype=a.dtype.newbyteorder("="), order="C")


# --- every public function, as f(x, axis) -------------------------------------------------------


def along(values, x, axis):
    """``values`` along ``axis``, the same in every row, as a whole array like ``x``."""
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return np.array(np.broadcast_to(values.reshape(shape), x.shape))


def _profile(x, axis, seed, dtype=None):
    values = np.random.default_rng(seed).uniform(0.25, 1.75, x.shape[axis])
    return values.astype(dtype or x.dtype.newbyteorder("="))


def _mask(x, axis):
    return along(_profile(x, axis, 1) > 0.6, x, axis)


def _gradient(x, axis):
    return along(_profile(x, axis, 2) - 1, x, axis)


def _probabilities(x, axis):
    return along(_profile(x, axis, 3) / np.asarray(2 * x.shape[axis], x.dtype), x, axis)


def _index(x, axis):
    return np.argmin(x, axis=axis)


def _entropy(function, x, axis, target, **options):
    return function(x, target(x, axis), axis, reduction="none", **options)


def _weighted(function, x, axis):
    weight = _profile(x, axis, 4)
    return _entropy(function, x, axis, _index, weight=weight, label_smoothing=0.1)


def _binary(function, x, axis):
    z = _probabilities(x, axis)
    return function(x, z, reduction="none", weight=z + 1, pos_weight=z + 2)


ROWWISE = {
    "softmax": lambda x, axis: ps.softmax(x, axis),
    "softmax, temperature": lambda x, axis: ps.softmax(x, axis, temperature=0.7),
    "softmax, where": lambda x, axis: ps.softmax(x, axis, where=_mask(x, axis)),
    "log_softmax": lambda x, axis: ps.log_softmax(x, axis),
    "log_softmax, temperature": lambda x, axis: ps.log_softmax(x, axis, temperature=1.7),
    "log_softmax, where": lambda x, axis: ps.log_softmax(x, axis, where=_mask(x, axis)),
    "logsumexp": lambda x, axis: ps.logsumexp(x, axis),
    "logsumexp, where": lambda x, axis: ps.logsumexp(x, axis, where=_mask(x, axis)),
    "logsumexp, b": lambda x, axis: ps.logsumexp(x, axis, b=along(_profile(x, axis, 5), x, axis)),
    "cross_entropy": lambda x, axis: _entropy(ps.cross_entropy, x, axis, _index),
    "cross_entropy, weight": lambda x, axis: _weighted(ps.cross_entropy, x, axis),
    "cross_entropy, probabilities": lambda x, axis: _entropy(
        ps.cross_entropy, x, axis, _probabilities
    ),
    "cross_entropy_with_grad": lambda x, axis: _entropy(
        ps.cross_entropy_with_grad, x, axis, _index
    ),
    "cross_entropy_with_grad, weight": lambda x, axis: _weighted(
        ps.cross_entropy_with_grad, x, axis
    ),
    "cross_entropy_with_grad, temperature": lambda x, axis: _entropy(
        ps.cross_entropy_with_grad, x, axis, _index, temperature=0.7
    ),
    "cross_entropy_with_grad, probabilities": lambda x, axis: _entropy(
        ps.cross_entropy_with_grad, x, axis, _probabilities
    ),
    "softmax_vjp": lambda x, axis: ps.softmax_vjp(_gradient(x, axis), x, axis),
    "log_softmax_vjp": lambda x, axis: ps.log_softmax_vjp(_gradient(x, axis), x, axis),
    "sigmoid": lambda x, axis: ps.sigmoid(x),
    "log_sigmoid": lambda x, axis: ps.log_sigmoid(x),
    "binary_cross_entropy_with_logits": lambda x, axis: _binary(
        ps.binary_cross_entropy_with_logits, x, axis
    ),
    "binary_cross_entropy_with_logits_with_grad": lambda x, axis: _binary(
        ps.binary_cross_entropy_with_logits_with_grad, x, axis
    ),
}


@contextlib.contextmanager
def without_short_ways():
    """Within, all arrays go the general way through the public functions."""
    with contextlib.ExitStack() as stack:
        for module, name in ((_softmax, "by_short_way"), (_losses, "loss_by_short_way")):
            stack.enter_context(mock.patch.object(module, name, return_value=None))
        for module in (_losses, _sigmoid, _softmax):
            for name in [name for name in vars(module) if name.startswith("fast_")]:
                stack.enter_context(mock.patch.object(module, name, return_value=None))
        yield


def parts(result):
    """The arrays of a result: one, or loss and gradient."""
    return tuple(np.asarray(r) for r in (result if isinstance(result, tuple) else (result,)))


def rowwise(name, x, axis=-1):
    return parts(ROWWISE[name](x, axis))


# --- every public function with arrays and options ----------------------------------------------

_X = np.array([[1.0, 2.0, 3.5], [0.5, -1.0, 2.0]])
_LABELS = np.array([2, 0])
_HALVES = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5]])
_WARM = np.array([2.0, 0.5])

# name -> (its arrays, other options)
CALLS = {
    "softmax": ({"x": _X, "temperature": _WARM, "where": _X > 0}, {}),
    "log_softmax": ({"x": _X}, {"dtype": np.float32, "axis": 0, "temperature": 2.0}),
    "logsumexp": ({"x": _X, "b": _HALVES}, {"keepdims": True, "return_sign": True}),
    "cross_entropy": (
        {"logits": _X, "target": _LABELS},
        {"reduction": "none", "weight": [1, 2, 3]},
    ),
    "cross_entropy_with_grad": (
        {"logits": _X, "target": _LABELS, "temperature": _WARM},
        {"label_smoothing": 0.1},
    ),
    "sigmoid": ({"x": _X}, {}),
    "log_sigmoid": ({"x": _X}, {"dtype": np.float32}),
    "binary_cross_entropy_with_logits": ({"logits": _X, "target": _HALVES}, {"reduction": "sum"}),
    "binary_cross_entropy_with_logits_with_grad": (
        {"logits": _X, "target": _HALVES, "pos_weight": _HALVES + 1},
        {},
    ),
    "softmax_vjp": ({"grad_output": _X, "probabilities": _HALVES}, {"axis": None}),
    "log_softmax_vjp": (
        {"grad_output": _X, "log_probabilities": -_HALVES, "temperature": _WARM},
        {},
    ),
}


# --- other processes ----------------------------------------------------------------------------


def python(*arguments, timeout=300, **environment):
    """Run Python in a new process that imports the same package; its output, or an error."""
    path = [os.path.dirname(os.path.dirname(os.path.abspath(ps.__file__))), TESTS]
    env = {**os.environ, **environment}
    env["PYTHONPATH"] = os.pathsep.join([*path, env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"exit status {done.returncode}:\n{output[-8000:]}"
    return done.stdout


@functools.cache
def targets():
    """Instruction-set targets that this build has and this CPU can run, and the one in use."""
    cpu = ps.info()["cpu"]
    return [name for name in cpu["built"] if name in cpu["available"]], cpu["target"]
