"""What the benchmarks share: array libraries, inputs, and how calls are timed."""

import functools
import itertools
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


def _cupy():
    try:
        import cupy
    except ImportError:
        raise NotImplementedError("cupy is not installed") from None
    if not cupy.is_available():
        raise NotImplementedError("no CUDA device")
    return types.SimpleNamespace(
        asarray=cupy.asarray, synchronize=lambda: cupy.cuda.get_current_stream().synchronize()
    )


# One entry adds an array library to the timings. Its function raises NotImplementedError where
# the library or its device is missing; `synchronize` waits for the device.
LIBRARIES = {"numpy": _numpy, "cupy": _cupy}

BACKENDS = list(LIBRARIES)
DTYPES = ["float32", "float64"]


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


@functools.lru_cache(maxsize=1)  # asv sets a benchmark up for every sample that it takes
def call_of(function, backend, dtype, shape, axis=-1):
    """A call without arguments of a `functions.Function`, with arrays of `backend`."""
    library = LIBRARIES[backend]()
    arrays = [library.asarray(a) for a in function.arrays(normal(shape, dtype), axis)]
    options = {"axis": axis} if function.rowwise else {}
    call = functools.partial(public(function.name), *arrays, **options)
    if library.synchronize is None:
        return call
    return lambda: (call(), library.synchronize())


# --- time ---------------------------------------------------------------------------------------


def seconds(call, calls):
    """What a call takes, on the average of so many."""
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        call()
    return (time.perf_counter() - start) / calls


def calls_in(duration, call):
    """How many calls take that many seconds."""
    calls = 1
    while seconds(call, calls) * calls < duration:
        calls *= 2
    return calls


def ratio(ours, theirs, rounds=9, duration=0.004):
    """Median time of `ours` over that of `theirs`, timed in turn: noise strikes both."""
    n, m = calls_in(duration, ours), calls_in(duration, theirs)
    times = [(seconds(ours, n), seconds(theirs, m)) for _ in range(rounds)]
    return statistics.median(t[0] for t in times) / statistics.median(t[1] for t in times)


class _Timed:
    """Base of time benchmarks; their ``setup`` calls `prepare`.

    asv calls ``setup`` before every call that it times, and so never times more than one. Here a
    sample is many calls, and the clock runs slower by as much.
    """

    version = "1"

    def prepare(self, call):
        self.call = call
        self.calls = calls = calls_in(0.002, call)
        self.timer = lambda: time.perf_counter() / calls

    def time_call(self, *_):
        call = self.call
        for _ in itertools.repeat(None, self.calls):
            call()
