"""The results for a reader: a table for each race, and one that sums them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pysoftmax.bench.peers import LIMITS, NO_OUTPUT
from pysoftmax.bench.results import OURS, Race, Results, geometric_mean

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], None]

_HEADERS = ["library", "output", "ns/element", "spread", "GB/s", "x pysoftmax", "x limit"]
_LEGEND = """\
ns/element and GB/s: medians over the rounds; spread: the range of the middle half, over the median.
x pysoftmax: time over that of pysoftmax with an output of the same kind, reused or allocated.
x limit: time over the larger of copy (np.copyto, its call included) and exp+sum (exponentials of
numbers in the first-level cache); functions that only read have no copy, softmax_vjp no exp+sum.
"""


def heading(results: Results) -> str:
    """Say in a line when, where and how the figures were taken."""
    machine, cpu = results.machine, results.machine["pysoftmax"]["cpu"]
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
    print(heading(results), versions(results), "", _LEGEND, sep="\n")
    for race in results.races:
        print(race.case)
        table(_HEADERS, rows(results, race))
        print()
    print("Summary: ns per element of pysoftmax, and the ratio of each to it.\n")
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
            _time(timing.ns),
            f"{timing.ns_per_element.spread:.0%}",
            f"{timing.gigabytes_per_second:.3g}" if timing.gigabytes_per_second else "",
            "" if timing.peer in LIMITS else _number(race.ratio(timing)),
            "" if timing.peer in LIMITS else _number(race.limit and timing.ns / race.limit),
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
            _time(race.ours.ns),
            _number(race.limit and race.ours.ns / race.limit),
            *(_number(of_race.get(peer)) for peer in peers),
        ]
        for race, of_race in zip(results.races, ratios, strict=True)
    ]
    columns = [[of_race[peer] for of_race in ratios if peer in of_race] for peer in peers]
    means = [_number(geometric_mean(column) if column else None) for column in columns]
    headers = ["call", "ns/element", "x limit", *map(results.title, peers)]
    return headers, [*rows, ["geometric mean", "", "", *means]]


def _time(ns: float) -> str:
    """Format a time to three digits."""
    return f"{ns:.3g}" if ns < 100 else f"{ns:.0f}"


def _number(value: float | None) -> str:
    """Format a ratio; nothing if there is none."""
    return "" if value is None else f"{value:.2f}"
