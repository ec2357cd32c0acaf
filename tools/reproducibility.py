"""Measure whose bits depend on what: threads, batch, axis, memory layout, instruction set.

``python tools/reproducibility.py docs/results/reproducibility.json`` computes softmax,
log_softmax and logsumexp of the same rows in several ways, where need be in several processes,
and writes for each peer the largest share of the elements of a result that differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import pysoftmax
from pysoftmax import _files
from pysoftmax.bench.peers import ALLOCATED, PEERS, Pysoftmax
from pysoftmax.bench.results import machine

FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
DTYPES = ("float32", "float64")
SHAPES = [(64, 10), (64, 100), (64, 1000), (16, 4097), (4, 65537), (1, 2**20 + 1)]
THREADS = max(2, os.cpu_count() or 2)
ALL = {Pysoftmax.name: Pysoftmax} | PEERS


def cases():
    for function in FUNCTIONS:
        for dtype in DTYPES:
            for shape in SHAPES:
                yield function, np.random.default_rng(0).normal(0, 3, shape).astype(dtype)


def compute(peer, function, x, axis=-1):
    return peer.asnumpy(peer.calls(function, (x, axis))[ALLOCATED]())


def differing(a, b):
    """The share of elements whose bits differ, of as many rows as `a` has."""
    b = b[: len(a)]
    a, b = (np.ascontiguousarray(c).view(f"u{c.itemsize}") for c in (a, b))
    return float((a != b).mean())


def alone(peer, function, x):
    return np.concatenate([compute(peer, function, row[None]) for row in x[:4]])


def along_axis_0(peer, function, x):
    return compute(peer, function, np.ascontiguousarray(x.T), 0).T


def strided(peer, function, x):
    room = np.zeros((x.shape[0], 2 * x.shape[1]), x.dtype)
    room[:, ::2] = x
    return compute(peer, function, room[:, ::2])


WAYS = {"a row alone": alone, "another axis": along_axis_0, "strided memory": strided}


def child(name, threads, folder, *, compare):
    """Save the results of a peer as they come out in this process; compare the other ways."""
    peer = ALL[name](threads)
    plain = [compute(peer, function, x) for function, x in cases()]
    shares = {
        way: max(
            differing(other(peer, function, x), result)
            for (function, x), result in zip(cases(), plain, strict=True)
        )
        for way, other in (WAYS if compare else {}).items()
    }
    np.savez(Path(folder, "plain.npz"), *plain)
    described = {"title": peer.title, "version": peer.version, "shares": shares}
    Path(folder, "peer.json").write_text(json.dumps(described))


def elsewhere(name, threads, folder, *options, environment=None):
    """Run `child` in another process; what it saved."""
    folder.mkdir()
    command = [sys.executable, __file__, folder, "--child", name, str(threads), *options]
    subprocess.run(command, env=os.environ | (environment or {}), check=True)
    with np.load(folder / "plain.npz") as saved:
        return list(saved.values()), json.loads((folder / "peer.json").read_text())


def largest_share(results, others):
    return max(differing(a, b) for a, b in zip(results, others, strict=True))


def measure(name):
    """A peer's title and version, and the share for each way; None where it was not tried."""
    with tempfile.TemporaryDirectory() as scratch:
        plain, peer = elsewhere(name, 1, Path(scratch, "plain"), "--compare")
        shared, _ = elsewhere(name, THREADS, Path(scratch, "threads"))
        peer["shares"] = {f"{THREADS} threads": largest_share(plain, shared), **peer["shares"]}
        peer["shares"]["AVX2"] = None
        avx2 = ALL[name].avx2()
        if avx2 and pysoftmax.info()["cpu"]["available"][0] == "avx512":
            narrow, _ = elsewhere(name, 1, Path(scratch, "avx2"), environment=avx2)
            peer["shares"]["AVX2"] = largest_share(plain, narrow)
        return peer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE.json", help="where to write")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, threads = arguments.child
        child(name, int(threads), arguments.file, compare=arguments.compare)
        return
    with _files.output(arguments.file) as file:
        peers = {name: measure(name) for name in (Pysoftmax.name, *arguments.peers)}
        file.write(f"{json.dumps({'machine': machine(), 'peers': peers}, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
