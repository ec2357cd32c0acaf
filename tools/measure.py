"""Measure what docs/performance.md and the README say: accuracy and speed.

``python tools/measure.py accuracy`` prints the worst error in ULP per function, dtype and
row length against long double (64-bit significand). ``python tools/measure.py speed`` prints
median times per element beside NumPy, SciPy and PyTorch, where those are installed, in
interleaved rounds on one thread; ratios are what counts, times depend on the machine.
"""

import argparse
import sys
import time

import numpy as np

import pysoftmax as ps

LENGTHS = (1, 2, 10, 100, 1000, 4096, 65537, 2**20, 2**24)
MAGNITUDES = [
    (centre, spread)
    for centre in (0, 1e3, -1e3, 1e6, -1e6, 1e30, -1e30)
    for spread in (1e-3, 1.0, 30.0, 1e4)
]
SHAPES = [(1, 10), (1024, 10), (1024, 100), (1024, 1000), (64, 32000), (64, 128256), (1, 2**24)]


def exact(x):
    """softmax, log_softmax and logsumexp of the rows of x in long double."""
    wide = x.astype(np.longdouble)
    peak = wide.max(axis=-1, keepdims=True)
    d = wide - peak
    e = np.exp(d)
    at = wide.argmax(axis=-1)[:, None]
    np.put_along_axis(e, at, 0, axis=-1)
    rest = e.sum(axis=-1, keepdims=True)
    np.put_along_axis(e, at, 1, axis=-1)
    log_s = np.log1p(rest)
    return e / (1 + rest), d - log_s, (peak + log_s)[:, 0], peak[:, 0]


def ulp(actual, expected, scale):
    """Largest |actual - expected| in ULP of `scale`."""
    unit = np.spacing(np.abs(scale).astype(actual.dtype)).astype(np.longdouble)
    return float(np.max(np.abs(actual - expected) / unit))


def accuracy():
    print("| dtype | columns | softmax | log_softmax | logsumexp |")
    print("|---|---|---|---|---|")
    for dtype in (np.float32, np.float64):
        for n in LENGTHS:
            worst = [0.0, 0.0, 0.0]
            cases = MAGNITUDES if n <= 65537 else MAGNITUDES[1:3]
            for seed, (centre, spread) in enumerate(cases):
                rows = max(1, min(256, 2**17 // n))
                rng = np.random.default_rng(seed)
                x = (centre + spread * rng.standard_normal((rows, n))).astype(dtype)
                p, log_p, lse, peak = exact(x)
                worst[0] = max(worst[0], ulp(ps.softmax(x), p, p))
                worst[1] = max(worst[1], ulp(ps.log_softmax(x), log_p, log_p))
                worst[2] = max(worst[2], ulp(ps.logsumexp(x), lse, np.maximum(abs(lse), abs(peak))))
            print(
                f"| {np.dtype(dtype).name} | {n} | " + " | ".join(f"{w:.2f}" for w in worst) + " |",
                flush=True,
            )


def stable(x, axis):
    """The three-line formula."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def contenders(x, axis):
    """name -> call; outputs are reused where the library allows it."""
    out = np.empty_like(x)
    calls = {
        "pysoftmax": lambda: ps.softmax(x, axis, out=out),
        "NumPy": lambda: stable(x, axis),
        "copy": lambda: np.copyto(out, x),
    }
    try:
        import scipy.special

        calls["SciPy"] = lambda: scipy.special.softmax(x, axis=axis)
    except ImportError:
        print("SciPy is not installed", file=sys.stderr)
    try:
        import torch

        torch.set_num_threads(1)
        tensor, result = torch.from_numpy(x), torch.empty(x.shape, dtype=torch.from_numpy(x).dtype)
        calls["torch"] = lambda: torch.softmax(tensor, axis, out=result)
    except ImportError:
        print("torch is not installed", file=sys.stderr)
    return calls


def medians(calls, rounds=9, seconds=0.03):
    """Median seconds per call, all calls taking turns."""
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        repeats[name] = max(1, int(seconds / max(time.perf_counter() - begin, 1e-7)))
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: float(np.median(t)) for name, t in times.items()}


def speed():
    ps.set_num_threads(1)
    names = ["pysoftmax", "torch", "SciPy", "NumPy", "copy"]
    print("| dtype | shape | axis | " + " | ".join(names) + " | torch / pysoftmax |")
    print("|---" * (len(names) + 4) + "|")
    for dtype in (np.float32, np.float64):
        for shape in SHAPES:
            for axis in (-1, 0):
                x = 3 * np.random.default_rng(0).standard_normal(shape).astype(dtype)
                x = x if axis == -1 else np.ascontiguousarray(x.T)
                rounds = 9 if x.size < 2**22 else 3
                times = medians(contenders(x, axis), rounds)
                cells = [f"{times[n] / x.size * 1e9:.3g}" if n in times else "-" for n in names]
                ratio = f"{times['torch'] / times['pysoftmax']:.2f}" if "torch" in times else "-"
                print(
                    f"| {np.dtype(dtype).name} | {x.shape} | {axis} | "
                    + " | ".join(cells)
                    + f" | {ratio} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["accuracy", "speed"])
    {"accuracy": accuracy, "speed": speed}[parser.parse_args().what]()
