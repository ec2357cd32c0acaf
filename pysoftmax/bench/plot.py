"""Pictures of the results: time per element over row length, and ratios to the peers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from textwrap import fill
from typing import IO, TYPE_CHECKING, Any

from pysoftmax.bench.measure import FIELDS
from pysoftmax.bench.report import heading, versions
from pysoftmax.bench.results import LIMITS, OURS, Race, Results, geometric_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

# Okabe & Ito's palette, which colour-blind readers can tell apart; markers help besides.
COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#0072B2", "#009E73", "#56B4E9", "#7F7F7F")
MARKERS = "oPXsD^v"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def style(peer: str) -> dict[str, Any]:
    """Return a peer's colour and marker, in all pictures the same; pysoftmax's line is thicker."""
    i = [OURS, *(name for field in FIELDS.values() for name in field.peers)].index(peer)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 2.6 if peer == OURS else 1.4,
        "zorder": 4 if peer == OURS else 3,
    }


def draw(results: Results, file: IO[bytes], functions: Sequence[str] | None = None) -> None:
    """Write a PNG: for each function the times, a panel for each dtype, and below the ratios.

    Parameters
    ----------
    results : Results
        Of a run.
    file : binary file
        Where to write.
    functions : sequence of str, optional
        All that are in the results unless given.
    """
    import matplotlib
    from matplotlib.figure import Figure

    functions = functions or list(dict.fromkeys(race.case.function for race in results.races))
    dtypes = list(dict.fromkeys(race.case.dtype for race in results.races))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(dtypes), 6.6 * len(functions) + 1), layout="constrained")
        panels = figure.subplots(
            2 * len(functions),
            len(dtypes),
            squeeze=False,
            sharex="row",
            sharey="row",
            height_ratios=[2, 1] * len(functions),
        )
        for row, function in enumerate(functions):
            for column, dtype in enumerate(dtypes):
                races = [
                    race
                    for race in results.races
                    if (race.case.function, race.case.dtype) == (function, dtype)
                ]
                panels[2 * row][column].set_title(f"{function}, {dtype}", loc="left", weight="bold")
                _times(panels[2 * row][column], results, races)
                _ratios(panels[2 * row + 1][column], results, races)
        legend(figure, columns=4 * len(dtypes))
        footnote(figure, f"{heading(results)}\n{fill(versions(results), 70 * len(dtypes))}")
        figure.savefig(file, format="png", dpi=150)


def legend(figure: Figure, columns: int) -> None:
    """Name every line of all panels above them, once."""
    lines: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, handle)
    figure.legend(lines.values(), lines, loc="outside upper center", ncols=columns)


def footnote(figure: Figure, text: str) -> None:
    """Say below the panels when, where and with what it was measured."""
    figure.supxlabel(text, fontsize=8, color="#555555")


def _peers(results: Results) -> list[str]:
    return [name for name in results.peers if name not in LIMITS]


def _times(axes: Axes, results: Results, races: Sequence[Race]) -> None:
    """Draw time per element over row length, along the last axis, of the largest batch of each."""
    from matplotlib.ticker import EngFormatter

    longest: dict[int, Race] = {}
    for race in sorted(races, key=lambda race: prod(race.case.shape)):
        if race.case.axis in (None, -1, len(race.case.shape) - 1):
            n = prod(race.case.shape) if race.case.axis is None else race.case.shape[-1]
            longest[n] = race
    lines = dict(sorted(longest.items()))
    for peer in _peers(results):
        points = {n: timing.ns for n, race in lines.items() if (timing := race.of(peer))}
        if points:
            axes.plot(*zip(*points.items(), strict=True), label=results.title(peer), **style(peer))
    limit = {n: race.limit for n, race in lines.items() if race.limit}
    if limit:
        axes.plot(*zip(*limit.items(), strict=True), "k--", linewidth=1.4, label="limit")
    axes.set(xscale="log", yscale="log", xlabel="row length", ylabel="ns per element")
    _label(axes.xaxis, EngFormatter(sep=""))
    _label(axes.yaxis, "{x:g}")


def _ratios(axes: Axes, results: Results, races: Sequence[Race]) -> None:
    """Draw the mean ratio of each peer as a bar, from the lowest to the highest as a line."""
    for peer in reversed(_peers(results)):
        ratios = [ratio for race in races if (ratio := race.ratios().get(peer))]
        if not ratios:
            continue
        mean, title = geometric_mean(ratios), results.title(peer)
        axes.barh(title, mean - 1, left=1, color=style(peer)["color"], height=0.6)
        axes.plot([min(ratios), max(ratios)], [title] * 2, color="#333333", linewidth=1.2)
        axes.annotate(
            f"{mean:.1f}x",
            (1.01, title),
            xycoords=axes.get_yaxis_transform(),
            verticalalignment="center",
        )
    axes.axvline(1, color=COLOURS[0], linewidth=2)
    axes.set(xscale="log", xlabel="time over pysoftmax's: mean (geometric), lowest to highest")
    _label(axes.xaxis, "{x:g}")
    axes.grid(axis="y", visible=False)


def _label(axis: Axis, form: str | Formatter) -> None:
    """Label powers of ten, and 2 and 5 times these unless the range is wide."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())
