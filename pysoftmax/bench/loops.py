"""Loops that Numba compiles: a peer's, and the least work that exponentials and their sum take."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from pysoftmax.bench.cases import Array


def load() -> Any:
    """Import Numba and let it use vectors of full width."""
    numba: Any = import_module("numba")
    # LLVM takes half the width of AVX-512 on many CPUs of Intel's, which would be no limit.
    if platform.machine() == "x86_64" and "NUMBA_CPU_FEATURES" not in os.environ:
        features = import_module("llvmlite.binding").get_host_cpu_features().flatten()
        numba.config.CPU_FEATURES = f"{features},-prefer-256-bit"
    return numba


def row_functions(numba: Any, *, parallel: bool) -> dict[str, Callable[[Array, Array], None]]:
    """Compile the loops that one writes first; they take arrays of shape (outer, n, inner)."""
    each_row = numba.prange
    row_logsumexp = numba.njit(_row_logsumexp)

    def logsumexp(x: Array, out: Array) -> None:
        outer, _, inner = x.shape
        for row in each_row(outer * inner):
            o, i = row // inner, row % inner
            out[o, 0, i] = row_logsumexp(x, o, i)

    def log_softmax(x: Array, out: Array) -> None:
        outer, n, inner = x.shape
        for row in each_row(outer * inner):
            o, i = row // inner, row % inner
            subtracted = row_logsumexp(x, o, i)
            for k in range(n):
                out[o, k, i] = x[o, k, i] - subtracted

    def softmax(x: Array, out: Array) -> None:
        outer, n, inner = x.shape
        for row in each_row(outer * inner):
            o, i = row // inner, row % inner
            peak = x[o, 0, i]
            for k in range(1, n):
                peak = max(peak, x[o, k, i])
            total = x.dtype.type(0)
            for k in range(n):
                out[o, k, i] = np.exp(x[o, k, i] - peak)
                total += out[o, k, i]
            for k in range(n):
                out[o, k, i] /= total

    compiled = numba.njit(parallel=parallel)
    return {function.__name__: compiled(function) for function in (softmax, log_softmax, logsumexp)}


def _row_logsumexp(x: Array, o: int, i: int) -> Any:
    peak = x[o, 0, i]
    for k in range(1, x.shape[1]):
        peak = max(peak, x[o, k, i])
    total = x.dtype.type(0)
    for k in range(x.shape[1]):
        total += np.exp(x[o, k, i] - peak)
    return peak + np.log(total)


def exp_and_sum(numba: Any, dtype: Any) -> Callable[[Array, int], Any]:
    """Compile the sum of the exponentials of the rows of a tile, taken in turn.

    Each exponential is a multiplication, a rounding, one fma that reduces the argument, a
    polynomial good to the last place of `dtype`, and an addition to the exponent. Nothing is
    done for large or special arguments, nothing is written, and the additions stand in any
    order: what is left out, every function that sums exponentials has to do besides.
    """
    real = np.dtype(dtype).type
    integer, mantissa, degree = (np.int32, 23, 6) if real is np.float32 else (np.int64, 52, 11)
    half = np.log(2) / 2
    fitted = Chebyshev.interpolate(np.exp, degree, [-half, half]).convert(kind=Polynomial)
    leading, *others = (real(c) for c in fitted.coef[::-1])
    coefficients = tuple(others)
    log2e, ln2, places = real(1 / np.log(2)), real(np.log(2)), integer(mantissa)

    def kernel(tile: Array, sweeps: int) -> Any:
        total = real(0)
        for sweep in range(sweeps):
            row = tile[sweep % tile.shape[0]]
            subtotal = real(0)
            for k in range(row.size):
                t = np.rint(row[k] * log2e)
                r = row[k] - t * ln2
                p = leading
                for c in coefficients:
                    p = p * r + c
                exponent = integer(np.int32(t)) << places
                subtotal += integer(real(p).view(integer) + exponent).view(real)
            total += subtotal
        return total

    compiled: Callable[[Array, int], Any] = numba.njit(fastmath=True)(kernel)
    return compiled
