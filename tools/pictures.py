"""Draw the pictures, and fill in the tables, that README.md and docs/*.md show.

``make pictures`` runs it. The figures come from docs/results/*.json, which ``make results``
measures anew. A table stands between ``<!-- begin: name -->`` and ``<!-- end: name -->``.
"""

import contextlib
import json
import logging
import re
from itertools import cycle
from pathlib import Path

from pysoftmax import _files, demo
from pysoftmax.bench import plot, report
from pysoftmax.bench.results import Results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PICTURES = ROOT / "docs" / "pictures"
PROMISED = 4  # ULP


def speed():
    return Results.from_json((RESULTS / "speed.json").read_text())


def accuracy():
    return json.loads((RESULTS / "accuracy.json").read_text())


def reproducibility():
    return json.loads((RESULTS / "reproducibility.json").read_text())


# -- pictures ------------------------------------------------------------------------------


def draw_speed(file):
    plot.draw(speed(), file, ["softmax"])


def draw_accuracy(file):
    """Worst error over row length: a column for each function, a row for each dtype."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    measured = accuracy()
    errors = measured["errors"]
    functions = list(dict.fromkeys(error["function"] for error in errors))
    dtypes = list(dict.fromkeys(error["dtype"] for error in errors))
    lines = dict(zip(measured["peers"], cycle(["-", "-", "--"])))  # where they coincide, both show
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(10.4, 6.2), layout="constrained")
        panels = figure.subplots(len(dtypes), len(functions), sharex=True, sharey="col")
        for row, dtype in zip(panels, dtypes, strict=True):
            for axes, function in zip(row, functions, strict=True):
                axes.axhline(PROMISED, color="k", linestyle="--", label=f"promised: {PROMISED} ULP")
                for peer, described in measured["peers"].items():
                    points = [
                        (error["columns"], error["ulp"])
                        for error in errors
                        if (error["function"], error["dtype"]) == (function, dtype)
                        and error["peer"] == peer
                        and error["ulp"]  # a logarithmic axis has no 0: one column
                    ]
                    style = plot.style(peer) | {"linestyle": lines[peer]}
                    axes.plot(*zip(*points, strict=True), label=described["title"], **style)
                axes.set_title(f"{function}, {dtype}", loc="left", weight="bold")
                axes.set(xscale="log", yscale="log")
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in panels[:, 0]:
            axes.set_ylabel("worst error, ULP")
        for axes in panels[-1]:
            axes.set_xlabel("row length")
        plot.legend(figure, columns=8)
        plot.footnote(figure, where(measured))
        figure.savefig(file, format="png", dpi=150)


@contextlib.contextmanager
def silent(logger):
    """Nothing is logged within."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def draw_monitor(file):
    """The stream of docs/guide.md: calibrated, then not, then calibrated again."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    import pysoftmax as ps
    from pysoftmax.demo import load_digits

    logits, labels = load_digits()
    temperature = ps.fit_temperature(logits[::2], labels[::2]).temperature
    reference = ps.ConfidenceMonitor(10)
    reference.update(logits=logits[1::2], temperature=temperature)
    monitor = ps.ConfidenceMonitor(10, high=0.98, window=10_000, reference=reference)
    rng = np.random.default_rng(0)
    with silent(logging.getLogger("pysoftmax.monitoring")):
        for hour in range(60):
            batch = logits[1::2][rng.integers(0, 449, 1000)]
            monitor.update(logits=batch, temperature=1.0 if 20 <= hour < 40 else temperature)
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        monitor.plot(figure.subplots())
        figure.savefig(file, format="png", dpi=120)


DRAWINGS = {
    "speed.png": draw_speed,
    "accuracy.png": draw_accuracy,
    "reliability.png": demo.draw,
    "monitor.png": draw_monitor,
}


# -- tables --------------------------------------------------------------------------------


def where(measured):
    """When, where and with which libraries it was measured."""
    machine = measured["machine"]
    libraries = ", ".join(f"{p['title']} {p['version']}" for p in measured["peers"].values())
    return f"{machine['date']}, {machine['cpu']}, {libraries}"


def markdown(headers, rows):
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reproducibility_table():
    measured = reproducibility()
    ways = list(measured["peers"]["pysoftmax"]["shares"])
    rows = [
        [peer["title"], *(share(peer["shares"][way]) for way in ways)]
        for peer in measured["peers"].values()
    ]
    return f"{markdown(['', *ways], rows)}\n\nMeasured {where(measured)}."


def share(value):
    if value is None:
        return "not tried"
    if value == 0:
        return "same"
    return "under 0.1% differ" if value < 0.001 else f"{value:.1%} differ"


def accuracy_table():
    measured = accuracy()
    found = {(e["dtype"], e["columns"], e["function"], e["peer"]): e for e in measured["errors"]}
    functions = list(dict.fromkeys(function for _, _, function, _ in found))
    columns = [(function, peer) for function in functions for peer in measured["peers"]]
    headers = [f"{function}, {measured['peers'][peer]['title']}" for function, peer in columns]
    rows = [
        [dtype, str(n), *(f"{found[dtype, n, *column]['ulp']:.3g}" for column in columns)]
        for dtype, n in dict.fromkeys((dtype, n) for dtype, n, _, _ in found)
    ]
    return f"{markdown(['dtype', 'columns', *headers], rows)}\n\nMeasured {where(measured)}."


def arrays_table():
    """What tests/arrays.py has tried: a row for each library."""
    tried = json.loads((RESULTS / "arrays.json").read_text())
    every = len(tried["numpy"]["zero-copy"])  # NumPy's arrays are never copied

    def functions(names):
        if len(names) in (0, every):
            return "all" if names else "none"
        return ", ".join(f"`{name}`" for name in names)

    headers = ["arrays", "results", "lazy", "zero-copy", "differentiable", "device"]
    rows = [
        [
            library,
            f"`{found['result']}`",
            *(functions(found[name]) for name in ("lazy", "zero-copy", "differentiable")),
            found["device"],
        ]
        for library, found in tried.items()
    ]
    return markdown(headers, rows)


def speed_table():
    results = speed()
    measured = f"Measured {report.heading(results)}, {report.versions(results)}."
    return f"{markdown(*report.summary(results))}\n\n{measured}"


TABLES = {
    "README.md": {"arrays": arrays_table, "reproducibility": reproducibility_table},
    "docs/performance.md": {"accuracy": accuracy_table, "speed": speed_table},
}


def filled(document):
    """The text of a document with its tables as the results have them."""
    text = (ROOT / document).read_text()
    for name, table in TABLES[document].items():
        begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
        pattern = f"(?s)(?<={re.escape(begin)}).*?(?={re.escape(end)})"
        text, count = re.subn(pattern, lambda _, table=table: f"{table()}\n", text)
        if count != 1:
            raise SystemExit(f"{document}: expected one {begin.strip()} with its end, got {count}")
    return text


def main():
    for name, draw in DRAWINGS.items():
        with _files.output(str(PICTURES / name)) as file:
            draw(file)
    for document in TABLES:
        with _files.output(str(ROOT / document)) as file:
            file.write(filled(document).encode())


if __name__ == "__main__":
    main()
