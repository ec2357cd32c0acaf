"""Taking the times: all take turns, so that a change of the machine's pace strikes all alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from itertools import repeat
from time import perf_counter, sleep
from typing import Any, TypeVar

import numpy as np

import pysoftmax
from pysoftmax.backends.cupy import deferred_checks
from pysoftmax.bench import cuda
from pysoftmax.bench.cases import FUNCTIONS, Array, Case
from pysoftmax.bench.peers import CPU, Field, Peer
from pysoftmax.bench.results import LIMITS, Quartiles, Race, Results, Timing, machine

Key = TypeVar("Key")
Call = Callable[[], object]
Clock = Callable[[], float]

USUAL_PACE = 9, 0.01
QUICK_PACE = 3, 0.001
"""Rounds, and the seconds that a turn lasts at least."""
FIELDS = {"cpu": CPU, "cuda": cuda.CUDA}
EVERY_PEER = {**CPU.peers, **cuda.CUDA.peers}
_PAUSE = 0.02  # OpenMP's threads spin on after a call: 5 to 8 ms of libgomp's were measured


def race(
    calls: Mapping[Key, Call],
    *,
    rounds: int,
    seconds: float,
    pause: float = 0.0,
    clock: Clock = perf_counter,
) -> dict[Key, list[float]]:
    """Time calls in turn, round after round, every other round in reverse.

    Parameters
    ----------
    calls : mapping
        What is timed, by name.
    rounds : int
        How many times each has its turn.
    seconds : float
        How long a turn lasts at least: short calls are repeated.
    pause : float, default 0.0
        Seconds to wait before each turn, while the threads of the one before fall asleep.
    clock : callable
        Returns the time in seconds.

    Returns
    -------
    dict
        The mean seconds of a call in each round, by name.

    Examples
    --------
    >>> times = race({"sum": lambda: sum(range(100))}, rounds=3, seconds=1e-4)
    >>> len(times["sum"])
    3
    """
    repeats = {}
    for key, call in calls.items():
        sleep(pause)
        repeats[key] = _repeats(call, seconds, clock)
    times: dict[Key, list[float]] = {key: [] for key in calls}
    order = list(calls)
    for _ in range(rounds):
        for key in order:
            sleep(pause)
            calls[key]()  # not timed: it brings back its code and memory
            times[key].append(_time(calls[key], repeats[key], clock) / repeats[key])
        order.reverse()
    return times


def _repeats(call: Call, seconds: float, clock: Clock) -> int:
    """Return how many calls fill a turn, after a first one, which may have to compile."""
    call()
    count = 1
    while _time(call, count, clock) < seconds:
        count *= 2
    return count


def _time(call: Call, count: int, clock: Clock) -> float:
    """Return the seconds that a number of calls take."""
    start = clock()
    for _ in repeat(None, count):
        call()
    return clock() - start


def run(
    cases: Iterable[Case],
    peers: Iterable[str] | None = None,
    *,
    threads: int = 1,
    rounds: int = USUAL_PACE[0],
    seconds: float = USUAL_PACE[1],
    device: str = "cpu",
    progress: Callable[[float], None] = lambda fraction: None,
) -> Results:
    """Race pysoftmax and its peers, all on the same number of threads.

    Parameters
    ----------
    cases : iterable of Case
        What is computed.
    peers : iterable of str, optional
        Names in the peers of the device's `Field`, all unless given. Those that are not installed
        are named in the results as skipped. pysoftmax and the limits always take part.
    threads : int, default 1
        For everybody.
    rounds, seconds
        As of `race`.
    device : {"cpu", "cuda"}
        Where it is computed: on a GPU with arrays that are there, and with labels that nobody
        checks.
    progress : callable
        Called with the fraction done.

    Returns
    -------
    Results
        Of all cases, in their order.

    Raises
    ------
    ValueError
        If a peer is not one of the device's, or there is no such device.

    Examples
    --------
    >>> from pysoftmax.bench.cases import choose
    >>> cases = choose(["softmax"], ["float32"], [(8, 10)])
    >>> results = run(cases, ["numpy"], rounds=3, seconds=1e-4)
    >>> print(results.races[0].case)
    softmax float32 8x10 axis -1
    """
    cases = list(cases)
    field = FIELDS[device]
    names = list(field.peers if peers is None else peers)
    for name in names:
        if name not in field.peers:
            raise ValueError(f"--device {device} takes {', '.join(field.peers)}, got {name}")
    with ExitStack() as stack:
        if device == "cuda":
            cuda.require()
            stack.enter_context(deferred_checks())
        stack.enter_context(pysoftmax.num_threads(threads))
        present, skipped = _assemble(field, names, threads)
        if find_spec("threadpoolctl"):
            stack.enter_context(import_module("threadpoolctl").threadpool_limits(threads))
        results = Results(
            machine=machine(),
            threads=threads,
            peers={
                peer.name: {"title": peer.title, "version": peer.version, "threads": peer.threads}
                for peer in present
            },
            skipped=skipped,
            notes=_notes(present, threads),
            races=[],
            gpu=cuda.name() if device == "cuda" else None,
        )
        for done, case in enumerate(cases):
            progress(done / len(cases))
            pace = {"rounds": rounds, "seconds": seconds, "clock": field.clock}
            results.races.append(_race(case, present, device, threads, pace))
        progress(1.0)
    return results


def _assemble(
    field: Field, names: Iterable[str], threads: int
) -> tuple[list[Peer], dict[str, str]]:
    """Import who is there, pysoftmax first, and say why others are not."""
    present: list[Peer] = [field.ours(threads)]
    skipped = {}
    for name, peer in ({name: field.peers[name] for name in names} | field.limits).items():
        try:
            present.append(peer(threads))
        except ModuleNotFoundError as error:
            skipped[name] = f"{error.name} is not installed"
        except ImportError as error:
            skipped[name] = " ".join(str(error).split())
    return present, skipped


def _notes(peers: Iterable[Peer], threads: int) -> list[str]:
    """Say who could not be held to the number of threads, or to the instruction set asked for."""
    notes: dict[str, list[str]] = {}
    for peer in peers:
        if peer.threads is None:
            notes.setdefault("unknown number of threads", []).append(peer.title)
        elif peer.threads != threads:
            notes.setdefault(f"{peer.threads} thread(s), not {threads}", []).append(peer.title)
    cpu = pysoftmax.info()["cpu"]
    if cpu["target"] == "avx2" and cpu["available"][0] != "avx2":
        for peer in peers:
            held = peer.avx2()
            if missing := " ".join(f"{k}='{v}'" for k, v in held.items() if k not in os.environ):
                notes.setdefault(f"not held to AVX2; {missing} does", []).append(peer.title)
            elif not held:
                notes.setdefault("not held to AVX2; nothing does", []).append(peer.title)
    return [f"{', '.join(titles)}: {note}" for note, titles in notes.items()]


def _race(
    case: Case, peers: Iterable[Peer], device: str, threads: int, pace: Mapping[str, Any]
) -> Race:
    """Race one case."""
    function = FUNCTIONS[case.function]
    arguments = case.arguments()
    x: Array = arguments[0]
    result = getattr(pysoftmax, case.function)(*arguments)
    calls = {
        (peer, output): call
        for peer in peers
        if device == "cuda" or peer.name not in LIMITS or peer.name in function.limits
        for output, call in peer.calls(case.function, arguments).items()
    }
    pause = _PAUSE if threads > 1 else 0.0
    timings = []
    for (peer, output), times in race(calls, pause=pause, **pace).items():
        ns = Quartiles.of(1e9 * np.array(times) / peer.elements(x))
        bandwidth = peer.bytes_moved(arguments, result) / (ns.median * x.size)
        timings.append(Timing(peer.name, output, ns, float(f"{bandwidth:.4g}")))
    return Race(case, timings)
