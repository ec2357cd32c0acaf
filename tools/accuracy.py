"""Measure the accuracy of pysoftmax and of its peers: the worst error in ULP over row length.

``python tools/accuracy.py docs/results/accuracy.json`` takes the references, in extended
precision, from tests/oracles.py. Errors of logsumexp are in ULP of max(|result|, |max|). A
logarithm of a probability so close to 1 that the result comes out as 0 is off by 2**24 ULP in
float32 and by 2**53 in float64.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from pysoftmax import _files
from pysoftmax.bench.peers import ALLOCATED, PEERS, Pysoftmax
from pysoftmax.bench.results import machine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import oracles

FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
DTYPES = ("float32", "float64")
LENGTHS = (1, 2, 10, 100, 1000, 4096, 65537, 2**20, 2**24)
# Centres and spreads of the logits.
USUAL = [(0, 1.0), (0, 30.0), (0, 100.0), (0, 300.0)]
MAGNITUDES = [
    (centre, spread)
    for centre in (0, 1e3, -1e3, 1e6, -1e6, 1e30, -1e30)
    for spread in (1e-3, 1.0, 30.0, 100.0, 1e4)
]


def worst(peers, dtype, columns):
    """(function, peer) -> the largest error over all magnitudes; long rows only the usual ones."""
    errors = {(function, peer): 0.0 for function in FUNCTIONS for peer in peers}
    rows = max(1, min(256, 2**17 // columns))
    for seed, (centre, spread) in enumerate(MAGNITUDES if columns < 2**20 else USUAL):
        noise = np.random.default_rng(seed).standard_normal((rows, columns))
        x = (centre + spread * noise).astype(dtype)
        for function in FUNCTIONS:
            exact = getattr(oracles, function)(x)
            scale = oracles.logsumexp_scale(x) if function == "logsumexp" else None
            for peer in peers:
                result = peer.asnumpy(peer.calls(function, (x, -1))[ALLOCATED]())
                error = float(oracles.ulp_errors(result, exact, scale).max())
                errors[function, peer] = max(errors[function, peer], error)
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE.json", help="where to write")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["scipy", "torch"])
    arguments = parser.parse_args()
    with _files.output(arguments.file) as file:
        peers = [Pysoftmax(1), *(PEERS[name](1) for name in arguments.peers)]
        errors = []
        for dtype in DTYPES:
            for columns in LENGTHS:
                for (function, peer), ulp in worst(peers, dtype, columns).items():
                    print(f"{dtype} {columns} {function} {peer.title}: {ulp:.2f} ULP", flush=True)
                    errors.append(
                        {
                            "function": function,
                            "dtype": dtype,
                            "columns": columns,
                            "peer": peer.name,
                            "ulp": float(f"{ulp:.3g}"),
                        }
                    )
        described = {peer.name: {"title": peer.title, "version": peer.version} for peer in peers}
        measured = {"machine": machine(), "peers": described, "errors": errors}
        file.write(f"{json.dumps(measured, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
