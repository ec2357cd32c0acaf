"""What each library's arrays can do, tried: the table "array in, array out" of README.md.

``python tests/arrays.py docs/results/arrays.json`` writes it; test_arrays.py tries again.
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

import cuda_on_cpu
import numpy as np
import on_device
import pytest
from cases import CALLS, without_short_ways
from conftest import BACKENDS, Backend, of_cupy
from oracles import assert_same_bytes

import pysoftmax as ps
from pysoftmax.backends import cupy as cuda_kernels
from pysoftmax.backends import numpy as kernels

KEPT = Path(__file__).parents[1] / "docs" / "results" / "arrays.json"

# Large arguments, and the functions that are given them.
MAIN = ("x", "logits", "target", "grad_output", "probabilities", "log_probabilities")
KERNELS = (
    *("softmax", "log_softmax", "logsumexp", "cross_entropy", "sigmoid", "log_sigmoid"),
    *("binary_cross_entropy", "softmax_vjp", "log_softmax_vjp"),
)


def given(backend, function):
    """The arrays of a call of `function`, as NumPy's and as the library's, and its options."""
    arrays, options = CALLS[function]
    return arrays, {name: backend.asarray(a) for name, a in arrays.items()}, options


def parts(result):
    return result if isinstance(result, tuple) else (result,)


def address(array):
    return np.asarray(array).__array_interface__["data"][0]


def is_zero_copy(backend, function):
    """Whether what the kernels read lies where the caller's arrays lie."""
    _, arrays, options = given(backend, function)
    options = {k: v for k, v in options.items() if k != "dtype"}  # a conversion is a copy
    seen = set()
    pointer = cuda_kernels.gpu.pointer

    def spied_pointer(array):
        seen.add(pointer(array))
        return pointer(array)

    def spied(kernel):
        def call(*arguments):
            seen.update(address(a) for a in arguments if isinstance(a, np.ndarray))
            return kernel(*arguments)

        return call

    with contextlib.ExitStack() as stack:
        # These cannot be looked into.
        stack.enter_context(without_short_ways())
        for name in KERNELS:
            stack.enter_context(mock.patch.object(kernels, name, spied(getattr(kernels, name))))
        stack.enter_context(mock.patch.object(cuda_kernels.gpu, "pointer", spied_pointer))
        getattr(ps, function)(**arrays, **options)
    mine = {address(backend.asnumpy(a)) for name, a in arrays.items() if name in MAIN}
    return mine <= seen


def assert_bits_of_numpy(backend, function):
    """That the results are what they are for NumPy's arrays."""
    values, arrays, options = given(backend, function)
    results, expected = (parts(getattr(ps, function)(**a, **options)) for a in (arrays, values))
    for result, wanted in zip(results, expected, strict=True):
        assert_same_bytes(backend.asnumpy(result), wanted, library=backend.name, function=function)


def is_lazy(backend, function):
    """Whether the result is still to be computed."""
    _, arrays, options = given(backend, function)
    results = parts(getattr(ps, function)(**arrays, **options))
    return all(getattr(r, "__dask_graph__", lambda: None)() is not None for r in results)


def is_differentiable(backend, function):
    """Whether the library's gradient of the result is the slope that is measured."""
    if backend.gradient is None:
        return False
    values, arrays, options = given(backend, function)
    first = next(iter(values))
    options = {k: v for k, v in options.items() if k != "dtype"}

    def total(x):
        return parts(getattr(ps, function)(**{**arrays, first: x}, **options))[0].sum()

    try:
        gradient = backend.asnumpy(backend.gradient(total, arrays[first]))
    except (NotImplementedError, ValueError):
        return False
    slopes = np.empty_like(values[first])
    for at in np.ndindex(slopes.shape):
        nudge = np.zeros_like(slopes)
        nudge[at] = 1e-5
        up, down = (total(backend.asarray(values[first] + step)) for step in (nudge, -nudge))
        slopes[at] = float(up - down) / 2e-5
    np.testing.assert_allclose(gradient, slopes, atol=1e-9)
    return True


PROPERTIES = {
    "lazy": is_lazy,
    "zero-copy": is_zero_copy,
    "differentiable": is_differentiable,
}


def tried(backend):
    """The type of a result, and for every property the functions that have it."""
    with backend.context():
        for function in CALLS:
            assert_bits_of_numpy(backend, function)
        kind = type(ps.softmax(backend.asarray(np.zeros((2, 3)))))
        result = f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
        found = {name: [f for f in CALLS if has(backend, f)] for name, has in PROPERTIES.items()}
        return {"result": result, "device": backend.device, **found}


def _pandas():
    pandas = pytest.importorskip("pandas")

    def asarray(a):
        return pandas.DataFrame(a) if a.ndim == 2 else pandas.Series(a)

    return Backend("pandas", pandas, pandas.DataFrame, asarray, np.asarray)


def _cupy():
    """CuPy's backend, its kernels executed on the CPU whether there is a GPU or not."""
    if cuda_on_cpu.compiler_is_missing():
        pytest.skip(f"needs {cuda_on_cpu.COMPILER}")
    backend = of_cupy(on_device.HarnessArrays())
    return dataclasses.replace(backend, device="CUDA (tried with its kernels run on the CPU)")


# pandas, of two dimensions at most, has no part in the tests that ask for ``backend``.
LIBRARIES = {**BACKENDS, "cupy": _cupy, "pandas": _pandas}


def main():
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    table = {}
    for name, make in LIBRARIES.items():
        try:
            table[name] = tried(make())
        except pytest.skip.Exception as missing:
            print(missing, "- its row is kept", file=sys.stderr)
            table[name] = kept[name]
    Path(sys.argv[1]).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
