"""Calls that run every kernel of src/cuda, with ordinary rows and special ones.

``python tests/every_kernel.py`` makes them on a GPU, without CuPy's pool of memory, so that
compute-sanitizer sees every array's end, and compares the bits with those of the CPU.
"""

import itertools

import numpy as np
from cases import BFLOAT16, along
from oracles import assert_same_bytes

import pysoftmax as ps
from pysoftmax.backends._cuda import units
from pysoftmax.backends.cupy import fast_halves

DTYPES = tuple(np.dtype(d) for d in ("float32", "float64", "float16", BFLOAT16) if d)
HALVES = tuple(d for d in DTYPES if d.itemsize == 2)


def regimes(itemsize):
    """Name of a regime -> a shape that is in it, on any device with clusters, and the axis."""
    unit = units(itemsize)
    return {
        "few columns": ((9, 5), 1),
        "half a chunk": ((9, unit.chunk // 2 + 1), 1),
        "a chunk": ((9, unit.chunk), 1),
        "two chunks": ((9, 2 * unit.chunk - 3), 1),
        "a block and more": ((9, unit.block + 1), 1),
        "cluster": ((32, 17 * unit.block), 1),
        "streamed": ((2, 17 * unit.block + 3), 1),
        "narrow columns": ((2, 7, 40), 1),
        "wide columns": ((2, unit.chunk // 2 + 1, 40), 1),
        "wide columns of several chunks": ((2, unit.chunk + 9, 40), 1),
    }


def logits(shape, axis, dtype):
    """Ordinary rows, and in the first places a special one of each kind where there is room."""
    x = np.random.default_rng(0).normal(size=shape) * 4
    rows = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    if len(rows) > 8:
        rows[1, -1], rows[2, 0], rows[3], rows[4, -1], rows[5] = np.nan, np.inf, -np.inf, -np.inf, 1
        rows[6] += 3e4 if dtype.itemsize == 2 else 3e6
        moved = np.delete(shape, axis).tolist()
        x = np.moveaxis(rows.reshape(*moved, -1), -1, axis)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x.astype(dtype))


def _ordinary(x):
    return np.nan_to_num(x.astype(np.float32), posinf=1, neginf=-1).astype(x.dtype)


def _labels(x, axis):
    rows = np.delete(x.shape, axis).tolist()
    labels = np.random.default_rng(1).integers(x.shape[axis], size=rows)
    labels.reshape(-1)[-1] = -100
    return labels


def _labels_of_ordinary_rows(x, axis):
    """The special rows are ignored, for the mean to tell something."""
    labels = _labels(x, axis)
    labels.reshape(-1)[1:7] = -100
    return labels


def _weight(x, axis):
    return np.random.default_rng(2).uniform(0.5, 2, x.shape[axis])


def _shares(x, axis):
    values = np.random.default_rng(3).random(x.shape[axis]) / x.shape[axis]
    return along(values.astype(np.float32 if x.itemsize == 2 else x.dtype), x, axis)


def _mask(x, axis):
    return np.random.default_rng(4).random(x.shape) < 0.7


LOSS = {"reduction": "none", "ignore_index": -100}
# Name -> (function, its further arrays by name, other options)
FUNCTIONS = {
    "softmax": (ps.softmax, {}, {}),
    "softmax, temperature": (ps.softmax, {}, {"temperature": 0.7}),
    "softmax, where": (ps.softmax, {"where": _mask}, {}),
    "log_softmax": (ps.log_softmax, {}, {}),
    "log_softmax, temperature": (ps.log_softmax, {"where": _mask}, {"temperature": 1.7}),
    "logsumexp": (ps.logsumexp, {}, {}),
    "cross_entropy": (ps.cross_entropy, {"target": _labels}, LOSS),
    "cross_entropy, probabilities": (ps.cross_entropy, {"target": _shares}, {"reduction": "none"}),
    "cross_entropy_with_grad": (ps.cross_entropy_with_grad, {"target": _labels}, LOSS),
    "cross_entropy_with_grad, weight": (
        ps.cross_entropy_with_grad,
        {"target": _labels, "weight": _weight},
        {**LOSS, "label_smoothing": 0.1, "temperature": 0.7},
    ),
    "softmax_vjp": (ps.softmax_vjp, {"probabilities": lambda x, axis: abs(_ordinary(x))}, {}),
    "log_softmax_vjp": (
        ps.log_softmax_vjp,
        {"log_probabilities": lambda x, axis: -abs(_ordinary(x))},
        {"temperature": 0.7},
    ),
    "sigmoid": (ps.sigmoid, {}, {}),
    "log_sigmoid": (ps.log_sigmoid, {}, {}),
    "binary_cross_entropy": (
        ps.binary_cross_entropy_with_logits_with_grad,
        {"target": lambda x, axis: _mask(x, axis).astype(x.dtype)},
        {"reduction": "none"},
    ),
    "cross_entropy, mean": (ps.cross_entropy, {"target": _labels_of_ordinary_rows}, {}),
    "cross_entropy_with_grad, weighted mean": (
        ps.cross_entropy_with_grad,
        {"target": _labels_of_ordinary_rows, "weight": _weight},
        {},
    ),
}
ROWWISE = tuple(FUNCTIONS)[:12]


def calls():
    """(dtype, regime, function): all of them."""
    for dtype in DTYPES:
        yield from itertools.product([dtype], regimes(dtype.itemsize), ROWWISE)
        yield from itertools.product([dtype], ["a chunk"], tuple(FUNCTIONS)[12:])


def sample():
    """A call in each regime, with dtypes and functions in turn."""
    names = itertools.cycle((*ROWWISE[::5], *ROWWISE[1::5], *ROWWISE[3::5]))
    return list(zip(itertools.cycle(DTYPES[::-1]), regimes(4), names, strict=False))


def assert_same_numbers(actual, expected, **context):
    """Same shape, dtype and bits, but for those of NaN."""
    actual, expected = np.array(actual), np.array(expected)
    assert actual.dtype == expected.dtype, context
    for array in (actual, expected):
        array[np.isnan(array)] = np.nan
    assert_same_bytes(actual, expected, **context)


def assert_bits_of_the_cpu(arrays, dtype, regime, name):
    """What a function gives for CuPy's arrays has the bits of what it gives for NumPy's."""
    function, others, options = FUNCTIONS[name]
    shape, axis = regimes(dtype.itemsize)[regime]
    x = logits(shape, axis, dtype)
    given = {key: make(x, axis) for key, make in others.items()}
    if name in ROWWISE:
        options = {**options, "axis": axis}
    expected = function(x, **given, **options)
    there = {key: arrays.asarray(array) for key, array in given.items()}
    results = function(arrays.asarray(x), **there, **options)
    if not isinstance(results, tuple):
        expected, results = (expected,), (results,)
    for result, wanted in zip(results, expected, strict=True):
        assert_same_numbers(arrays.asnumpy(result), wanted, call=(dtype.name, regime, name))


def assert_fast_halves(arrays, dtype, n, temperature, centre):
    """Within `fast_halves` results are rounded from something nearly exact."""
    # Digits of the significand, and the exponent of the smallest subnormal.
    digits, lowest = (10, -24) if dtype == np.float16 else (7, -133)
    x = (np.random.default_rng(n).normal(size=(40, n)) * 5 + centre).astype(dtype)
    labels, wide = np.arange(40) % n, x.astype(np.float64)
    with fast_halves():
        device = arrays.asarray(x)
        got = {
            "softmax": ps.softmax(device, temperature=temperature),
            "log_softmax": ps.log_softmax(device, temperature=temperature),
            "loss": ps.cross_entropy(
                device, arrays.asarray(labels), temperature=temperature, reduction="none"
            ),
        }
    exact = {
        "softmax": ps.softmax(wide, temperature=temperature),
        "log_softmax": ps.log_softmax(wide, temperature=temperature),
        "loss": ps.cross_entropy(wide, labels, temperature=temperature, reduction="none"),
    }
    for name, result in got.items():
        result, true = arrays.asnumpy(result), exact[name]
        assert result.dtype == dtype, name
        exponent = np.frexp(true)[1] - 1
        ulp = np.ldexp(1.0, np.maximum(exponent - digits, lowest))
        assert np.all(np.abs(result.astype(np.float64) - true) <= 0.51 * ulp), name


if __name__ == "__main__":
    import on_device

    arrays = on_device.CupyArrays()
    arrays.xp.cuda.set_allocator(None)
    for call in calls():
        assert_bits_of_the_cpu(arrays, *call)
    print("every kernel gives the bits of the CPU")
