"""What the benchmarks share: array libraries, inputs, and the two measures that are tracked."""

import functools
import importlib
import os
import statistics
import time
import types

import numpy as np

import pysoftmax

# All on one thread, but for those that say otherwise.
if hasattr(pysoftmax, "set_num_threads"):
    pysoftmax.set_num_threads(1)


def _numpy():
    return types.SimpleNamespace(asarray=np.asarray, synchronize=None)


# One entry adds an array library to the timings. Its function raises NotImplementedError where
# the library or its device is missing; `synchronize` waits for the device.
LIBRARIES = {"numpy": _numpy}

BACKENDS = list(LIBRARIES)
DTYPES = ["float32", "float64"]
SHAPES = [(1, 10), (10_000, 10), (1000, 1000), (1, 2_000_000)]
AXES = [-1, 0]


def public(name):
    """A public function by name, or a skip on commits that lack it."""
    try:
        return getattr(pysoftmax, name)
    except AttributeError:
        raise NotImplementedError(f"no pysoftmax.{name} yet") from None


def available_cores():
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())


def normal(shape, dtype, seed=0):
    """Logits with the spread of a trained classifier's."""
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def call_of(function, backend, inputs, dtype, shape, axis=-1):
    """A call without arguments: `function` of `inputs(x, axis)`, arrays of `backend`."""
    if shape[axis] == 1:
        raise NotImplementedError("rows of one element")
    library = LIBRARIES[backend]()
    arguments = [
        library.asarray(a) if isinstance(a, np.ndarray) else a
        for a in inputs(normal(shape, dtype), axis)
    ]
    call = functools.partial(public(function), *arguments)
    call()
    if library.synchronize is None:
        return call
    return lambda: (call(), library.synchronize())


def peer(name, formulas, scipy_names, function):
    """The same function by a NumPy formula or from scipy.special."""
    if name == "numpy":
        return formulas[function]
    try:
        return getattr(importlib.import_module("scipy.special"), scipy_names[function])
    except (ImportError, AttributeError, KeyError):
        raise NotImplementedError(f"no {function} in scipy.special") from None


def ratio(ours, theirs, rounds=9, seconds=0.004):
    """Median time of `ours` over that of `theirs`, timed in turn: noise strikes both."""
    calls = {}
    for f in (ours, theirs):
        f()
        calls[f] = 1 + int(seconds / _timed(f, 1))
    times = [(_timed(ours, calls[ours]), _timed(theirs, calls[theirs])) for _ in range(rounds)]
    return statistics.median(t[0] for t in times) / statistics.median(t[1] for t in times)


def _timed(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def wide(x):
    """`x` in extended precision, where there is one."""
    if np.finfo(np.longdouble).nmant < 63:
        raise NotImplementedError("np.longdouble is float64 here")
    return np.asarray(x).astype(np.longdouble)


def worst_ulp(actual, exact, scale=None):
    """The largest error, in units in the last place of the result at `scale`."""
    info = np.finfo(actual.dtype)
    exponent = np.frexp(abs(exact if scale is None else scale))[1]
    lowest = info.minexp - info.nmant
    unit = np.ldexp(np.longdouble(1), np.maximum(exponent - info.nmant - 1, lowest))
    return float((abs(wide(actual) - exact) / unit).max())
