"""The results for a reader: a table for each race, and one that sums them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from pysoftmax.bench.peers import NO_OUTPUT
from pysoftmax.bench.results import LIMITS, OURS, Race, Results, Timing, geometric_mean

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], None]

_HEADERS = ["library", "output", "ns/element", "spread", "GB/s", "x pysoftmax", "x limit"]
_CUDA_HEADERS = ["library", "output", "us", "spread", "GB/s", "x pysoftmax", "of copy"]
_LEGEND = """\
ns/element and GB/s: medians over the rounds; spread: the range of the middle half, over the median.
x pysoftmax: time over that of pysoftmax with an output of the same kind, reused or allocated.
x limit: time over the larger of copy (np.copyto, its call included) and exp+sum (exponentials of
numbers in the first-level cache); functions that only read have no copy, softmax_vjp no exp+sum.
"""
_CUDA_LEGEND = """\
us: of a call, many of them in a row; GB/s: the least that the function must read and write, over
that; medians over the rounds. spread: the range of the middle half, over the median.
x pysoftmax: time over that of pysoftmax with an output of the same kind, reused or allocated.
of copy: bandwidth over that of a copy on the device, measured in turn. launch: a kernel that does
nothing. Labels are not checked: with pysoftmax.backends.cupy.deferred_checks.
"""


def heading(results: Results) -> str:
    """Say in a line when, where and how the figures were taken."""
    machine, cpu = results.machine, results.machine["pysoftmax"]["cpu"]
    if results.gpu:
        return f"{machine['date']}, {results.gpu}, {machine['cpu']}"
    return (
        f"{machine['date']}, {machine['cpu']}, {cpu['target']}, "
        f"{results.threads} thread(s) on {machine['cores']} core(s)"
    )


def versions(results: Results) -> str:
    """Name the libraries with their versions."""
    return ", ".join(
        f"{peer['title']} {peer['version']}"
        for name, peer in results.peers.items()
        if name not in LIMITS
    )


def show(results: Results, table: Table) -> None:
    """Print everything, with `table` to print a table."""
    legend, headers = (_CUDA_LEGEND, _CUDA_HEADERS) if results.gpu else (_LEGEND, _HEADERS)
    print(heading(results), versions(results), "", legend, sep="\n")
    for race in results.races:
        print(race.case)
        table(headers, rows(results, race))
        print()
    print(f"Summary: {_unit(results)[0]} of pysoftmax, and the ratio of each to it.\n")
    table(*summary(results))
    load = results.machine["load"]
    if load and load > 0.5:
        print(f"\nNote: the machine was busy when the race began (load average {load}).")
    for note in results.notes:
        print(f"\nNote: {note}.")
    for name, reason in results.skipped.items():
        print(f"\nSkipped: {name}: {reason} (pip install 'pysoftmax[bench,peers]').")


def rows(results: Results, race: Race) -> list[list[str]]:
    """Return the rows of a race's table."""
    return [
        [
            results.title(timing.peer),
            "" if timing.output == NO_OUTPUT else timing.output,
            _time(timing.ns * _scale(results, race)),
            f"{timing.ns_per_element.spread:.0%}",
            f"{timing.gigabytes_per_second:.3g}" if timing.gigabytes_per_second else "",
            "" if timing.peer in LIMITS else _number(race.ratio(timing)),
            "" if timing.peer in LIMITS else _number(_worth(results, race, timing)),
        ]
        for timing in race.timings
    ]


def summary(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return a table's headers and rows: a race each, and the geometric means."""
    peers = [name for name in results.peers if name not in (OURS, *LIMITS)]
    ratios = [race.ratios() for race in results.races]
    rows = [
        [
            str(race.case),
            _time(race.ours.ns * _scale(results, race)),
            _number(_worth(results, race, race.ours)),
            *(_number(of_race.get(peer)) for peer in peers),
        ]
        for race, of_race in zip(results.races, ratios, strict=True)
    ]
    columns = [[of_race[peer] for of_race in ratios if peer in of_race] for peer in peers]
    means = [_number(geometric_mean(column) if column else None) for column in columns]
    headers = ["call", *_unit(results), *map(results.title, peers)]
    return headers, [*rows, ["geometric mean", "", "", *means]]


def _unit(results: Results) -> tuple[str, str]:
    """Return what times are given in, and what a time is held against."""
    return ("us", "of copy") if results.gpu else ("ns/element", "x limit")


def _scale(results: Results, race: Race) -> float:
    """Return what turns ns per element into the unit."""
    return prod(race.case.shape) / 1000 if results.gpu else 1.0


def _worth(results: Results, race: Race, timing: Timing) -> float | None:
    """Return a time over the limit, or on a GPU the fraction of the copy's bandwidth."""
    if results.gpu:
        return race.of_copy(timing)
    return race.limit and timing.ns / race.limit


def _time(ns: float) -> str:
    """Format a time to three digits."""
    return f"{ns:.3g}" if ns < 100 else f"{ns:.0f}"


def _number(value: float | None) -> str:
    """Format a ratio; nothing if there is none."""
    return "" if value is None else f"{value:.2f}"
