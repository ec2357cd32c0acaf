"""The demonstration behind ``python -m pysoftmax demo``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pysoftmax
from pysoftmax.bench import formulas
from pysoftmax.bench.measure import race

Floats = NDArray[np.floating[Any]]
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], None]

_TEMPERATURES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_ROUNDS = 15
_ROUND_SECONDS = 0.01


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the logits (899, 10) of a classifier of handwritten digits, and the true labels."""
    with files("pysoftmax").joinpath("data/digits.npz").open("rb") as file:
        data = np.load(file, allow_pickle=False)
        return data["logits"], data["labels"]


def naive_softmax(x: Floats) -> Floats:
    """Return the formula as the textbook has it, which overflows."""
    result: Floats = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    return result


def run() -> dict[str, Any]:
    """Compute everything that the demonstration shows."""
    logits, labels = load_digits()
    probabilities = pysoftmax.softmax(logits)
    with np.errstate(all="ignore"):
        naive = naive_softmax(logits)
        naive_losses = -np.log(naive[np.arange(len(labels)), labels])
    holds = np.isfinite(naive.sum(axis=1))
    unsure = probabilities.max(axis=1).argsort(kind="stable")
    calibration = pysoftmax.fit_temperature(logits[::2], labels[::2])
    held_out, truth = logits[1::2], labels[1::2]
    calibrated = calibration.apply(held_out)
    rows = [*unsure[holds[unsure]][:3], *unsure[~holds[unsure]][:3]]
    return {
        "shape": list(logits.shape),
        "logits": [float(logits.min()), float(logits.max())],
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "cross_entropy": float(pysoftmax.cross_entropy(logits, labels)),
        "naive_cross_entropy": _finite(naive_losses.mean()),
        "naive_rows_overflowed": int((~holds).sum()),
        "rows": [_row(logits[i], labels[i], probabilities[i], naive[i]) for i in rows],
        "temperatures": [_at_temperature(logits, labels, t) for t in _TEMPERATURES],
        "calibration": {
            "temperature": calibration.temperature,
            "fitted": len(logits[::2]),
            "held_out": len(held_out),
            "before": _measures(pysoftmax.softmax(held_out), truth),
            "after": _measures(calibrated, truth),
        },
        "speed": [_race(x) for x in (logits, _random(1024, 1000), _random(64, 32000))],
    }


def draw(file: Any) -> None:
    """Write the reliability of the held-out images before and after calibration, as PNG."""
    from pysoftmax.reliability import draw_diagrams

    logits, labels = load_digits()
    calibration = pysoftmax.fit_temperature(logits[::2], labels[::2])
    before, after = pysoftmax.softmax(logits[1::2]), calibration.apply(logits[1::2])
    draw_diagrams(file, labels[1::2], {"before calibration": before, "after calibration": after})


def _measures(probabilities: Floats, labels: NDArray[np.uint8]) -> dict[str, float]:
    """How good probabilities are."""
    return {
        "confidence": float(probabilities.max(axis=1).mean()),
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "log-loss": pysoftmax.negative_log_likelihood(probabilities, labels),
        "calibration error": pysoftmax.expected_calibration_error(probabilities, labels),
    }


def _row(logits: Floats, label: int, probabilities: Floats, naive: Floats) -> dict[str, Any]:
    """Describe the prediction for one image; NaN becomes None, which JSON has."""
    predicted = int(probabilities.argmax())
    return {
        "label": int(label),
        "predicted": predicted,
        "logit": float(logits[predicted]),
        "probability": float(probabilities[predicted]),
        "sum": float(probabilities.sum()),
        "naive_probability": _finite(naive[predicted]),
        "naive_sum": _finite(naive.sum()),
    }


def _finite(value: np.floating[Any]) -> float | None:
    """Return a finite number as a float and any other as None."""
    return float(value) if np.isfinite(value) else None


def _at_temperature(
    logits: Floats, labels: NDArray[np.uint8], temperature: float
) -> dict[str, float]:
    """Return the mean confidence and the loss at a temperature."""
    probabilities = pysoftmax.softmax(logits, temperature=temperature)
    return {
        "temperature": temperature,
        "confidence": float(probabilities.max(axis=1).mean()),
        "cross_entropy": float(pysoftmax.cross_entropy(logits, labels, temperature=temperature)),
    }


def _random(rows: int, columns: int) -> NDArray[np.float32]:
    """Return normal logits with the spread of a trained classifier's."""
    return np.random.default_rng(0).normal(0, 3, (rows, columns)).astype(np.float32)


def _race(x: Floats) -> dict[str, Any]:
    """Time both on one thread."""
    contestants: dict[str, Callable[[Floats], Floats]] = {
        "numpy": formulas.softmax,
        "pysoftmax": pysoftmax.softmax,
    }
    with pysoftmax.num_threads(1):
        times = race(
            {name: partial(function, x) for name, function in contestants.items()},
            rounds=_ROUNDS,
            seconds=_ROUND_SECONDS,
        )
    numpy, ours = (1e9 * median(seconds) / x.size for seconds in times.values())
    return {
        "shape": list(x.shape),
        "numpy_ns_per_element": numpy,
        "pysoftmax_ns_per_element": ours,
        "ratio": numpy / ours,
    }


def show(results: dict[str, Any], table: Table) -> None:
    """Print the results of `run` for a reader, with `table` to print a table."""
    rows, columns = results["shape"]
    low, high = results["logits"]
    print(
        f"""\
Logits: a logistic regression on scikit-learn's handwritten digits, {rows} held-out images,
{columns} classes, float32. The model was trained without regularisation on the unscaled
pixels, so its logits run from {low:.1f} to {high:.1f}; nothing else was done to them.

softmax(logits) beside np.exp(x) / np.exp(x).sum(), which overflows above 88.7 in float32.
The least certain rows where the naive formula holds, and where it does not:
"""
    )
    table(
        ["image of", "predicted", "logit", "pysoftmax", "sum", "naive", "sum"],
        [
            [
                str(row["label"]),
                str(row["predicted"]),
                f"{row['logit']:.2f}",
                f"{row['probability']:.7f}",
                f"{row['sum']:.7f}",
                _number(row["naive_probability"]),
                _number(row["naive_sum"]),
            ]
            for row in results["rows"]
        ],
    )
    print(
        f"""
The naive formula gave nan in {results["naive_rows_overflowed"]} of {rows} rows; pysoftmax in none.
Accuracy {results["accuracy"]:.1%}, cross-entropy (log-loss) {results["cross_entropy"]:.4f} \
(from the naive probabilities: {_number(results["naive_cross_entropy"])}).

softmax(logits, temperature=T) sharpens below 1 and flattens above; the accuracy stays.
This model is too sure of itself, and a high temperature mends that:
"""
    )
    table(
        ["temperature", "mean confidence", "cross-entropy"],
        [
            [f"{row['temperature']:g}", f"{row['confidence']:.4f}", f"{row['cross_entropy']:.4f}"]
            for row in results["temperatures"]
        ],
    )
    fitted = results["calibration"]
    print(
        f"\nfit_temperature finds the best one from {fitted['fitted']} images, "
        f"{fitted['temperature']:.4f}. On the other {fitted['held_out']}:\n"
    )
    table(
        ["", "before", "after"],
        [
            [name, f"{value:.4f}", f"{fitted['after'][name]:.4f}"]
            for name, value in fitted["before"].items()
        ],
    )
    if "picture" in results:
        print(f"\nTheir reliability diagrams, before and after: {results['picture']}")
    else:
        print("\nTheir reliability diagrams need matplotlib: pip install 'pysoftmax[plot]'")
    print("\nSpeed, float32, one thread, ns per element; NumPy is its three-line stable formula:\n")
    table(
        ["rows x columns", "NumPy", "pysoftmax", "ratio"],
        [
            [
                "x".join(map(str, row["shape"])),
                f"{row['numpy_ns_per_element']:.2f}",
                f"{row['pysoftmax_ns_per_element']:.2f}",
                f"{row['ratio']:.1f}",
            ]
            for row in results["speed"]
        ],
    )


def _number(value: float | None) -> str:
    """Format a probability or a loss."""
    return "nan" if value is None else f"{value:.7f}"
