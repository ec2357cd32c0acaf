"""A fingerprint of every function's bits over a fixed corpus; run as a script, prints JSON."""

import functools
import hashlib
import json

import cases
import numpy as np

SHORT = tuple(n for n in cases.LENGTHS if n > 1)
LONG = (cases.LONG, cases.VERY_LONG, 2**20 + 3)
LONG_CASES = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy_with_grad",
    "softmax, where",
    "softmax_vjp",
    "log_softmax_vjp",
)


def _logits(dtype, n):
    """A mild row, one beyond the bound of the shift by powers of two, wide and special ones."""
    x = cases.normal((6 if n < 10_000 else 2, n), dtype, seed=n)
    x[1] = x[1] * np.asarray(1e6, dtype) + np.asarray(3e6 if dtype == "float32" else 2e12, dtype)
    if len(x) > 2:
        x[2] *= 30
        x[3, n // 2] = -np.inf
        x[4, n // 3] = np.nan
        x[5] = x[5, 0]
    return x


def digest(arrays):
    """Shape, dtype and bytes; every NaN alike."""
    h = hashlib.sha256()
    for a in arrays:
        a = np.where(np.isnan(a), np.asarray(np.nan, a.dtype), a)
        h.update(repr((a.shape, a.dtype.name)).encode())
        h.update(np.ascontiguousarray(a).tobytes())
    return h.hexdigest()


def corpus():
    """(label, function of no arguments that computes the arrays) of every case."""
    for dtype in cases.FLOATS:
        for n in (*SHORT, *LONG):
            x = _logits(dtype, n)
            for name in cases.ROWWISE if n in SHORT else LONG_CASES:
                a = -abs(x) if name == "log_softmax_vjp" else x
                yield f"{name} {dtype} {n}", functools.partial(cases.rowwise, name, a)
        for n, inner in [(3, 5), (10, 16), (10, 33), (65, 64), (513, 7), (2049, 40), (6000, 24)]:
            x = cases.normal((2, n, inner), dtype, seed=n)
            for name in cases.ROWWISE:
                yield (
                    f"{name} {dtype} {(2, n, inner)} axis 1",
                    functools.partial(cases.rowwise, name, x, 1),
                )
        many = cases.normal((5000, 10), dtype)
        for name in cases.ROWWISE:
            yield (f"{name} {dtype} {many.shape}", functools.partial(cases.rowwise, name, many))


def fingerprint():
    return {label: digest(compute()) for label, compute in corpus()}


if __name__ == "__main__":
    print(json.dumps(fingerprint()))
