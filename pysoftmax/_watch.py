"""The command ``pysoftmax monitor``: batches from files or a pipe into a `ConfidenceMonitor`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pysoftmax import _files
from pysoftmax.monitoring import ConfidenceMonitor, ConfidenceSummary

_LINE_SECONDS, _FILE_SECONDS = 0.1, 10.0

Line = Callable[[], AbstractContextManager[Callable[[str], None]]]
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], None]


def run(args: argparse.Namespace, line: Line) -> ConfidenceMonitor:
    """Watch all batches of the sources that `args` names.

    Raises
    ------
    FileError
        If a file cannot be read, understood or written, and if there was no batch.
    """
    monitor: ConfidenceMonitor | None = None
    with line() as say, _logged():
        try:
            shown = saved = time.monotonic()
            for batch, name in _batches(args):
                if monitor is None:
                    monitor = _start(args, batch, name)
                _take(monitor, batch, args, name)
                now = time.monotonic()
                if now - shown > _LINE_SECONDS:
                    shown = now
                    say(_line(monitor))
                if now - saved > _FILE_SECONDS:
                    saved = now
                    _save(monitor, args)
        finally:
            if monitor is not None:
                monitor.alerts()
                _save(monitor, args)
    if monitor is None:
        raise _files.FileError(f"there is no row in {', '.join(map(_title, args.sources))}")
    if args.plot:
        _draw(monitor, args.plot)
    return monitor


def _title(source: str) -> str:
    return "standard input" if source == "-" else source


def _batches(args: argparse.Namespace) -> Iterator[tuple[_files.Array, str]]:
    """All batches, with the names of their sources."""
    name = "logits" if args.logits else "probabilities"
    for source in args.sources:
        for batch in _files.batches(source, skip_header=args.skip_header, name=name):
            yield batch, _title(source)


def _start(args: argparse.Namespace, batch: _files.Array, name: str) -> ConfidenceMonitor:
    """A monitor for such batches, with what was known of others."""
    if not -batch.ndim <= args.axis < batch.ndim:
        raise _files.FileError(f"{name} of shape {batch.shape} has no axis {args.axis}")
    monitor = ConfidenceMonitor(
        batch.shape[args.axis],
        high=args.high,
        low=args.low,
        window=args.window,
        chance_corrected=args.chance_corrected,
        every=args.every,
        reference=None if args.reference is None else _load(args.reference),
    )
    if args.state and os.path.exists(args.state):
        try:
            monitor.load_state_dict(_load(args.state))
        except ValueError as error:
            raise _files.FileError(f"{args.state}: {error}") from error
    return monitor


def _take(
    monitor: ConfidenceMonitor, batch: _files.Array, args: argparse.Namespace, name: str
) -> None:
    try:
        if args.logits:
            monitor.update(logits=batch, axis=args.axis, temperature=args.temperature)
        else:
            monitor.update(batch, axis=args.axis, temperature=args.temperature)
    except (ValueError, TypeError) as error:
        raise _files.FileError(f"{name}: {error}") from error


def _load(name: str) -> Any:
    """What is in a JSON file."""
    try:
        with open(name, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise _files.FileError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise _files.FileError(f"{name} is not JSON: {error}") from error


def _save(monitor: ConfidenceMonitor, args: argparse.Namespace) -> None:
    """Write state and metrics, each at once in its place."""
    if args.state:
        with _files.output(args.state) as file:
            file.write(json.dumps(monitor.state_dict()).encode())
    if args.prometheus:
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        monitor.prometheus(registry)
        with _files.output(args.prometheus) as file:
            file.write(generate_latest(registry))


def _draw(monitor: ConfidenceMonitor, name: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    monitor.plot(figure.subplots())
    with _files.output(name) as file:
        figure.savefig(file, format="png", dpi=120)


@contextmanager
def _logged() -> Iterator[None]:
    """Print alerts on standard error."""
    logger, handler = logging.getLogger("pysoftmax.monitoring"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("pysoftmax: %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _line(monitor: ConfidenceMonitor) -> str:
    recent, total = monitor.recent, monitor.total
    active = [alert.name for alert in monitor.alerts() if alert.active]
    if not recent.count:
        return f"{total.count} rows"
    return (
        f"{total.count} rows, confidence {recent.mean:.3f} ± {recent.std:.3f}, "
        f"{recent.share_above:.1%} high, {recent.share_below:.1%} low"
        f"{', alerts: ' + ', '.join(active) if active else ''}"
    )


def show(monitor: ConfidenceMonitor, as_json: bool, table: Table) -> int:
    """Print what was seen; 1 if an alert is raised."""
    alerts, total, recent = monitor.alerts(), monitor.total, monitor.recent
    if as_json:
        found = {
            "total": total.to_dict(),
            "recent": recent.to_dict(),
            "alerts": [
                {**vars(alert), "value": None if alert.value != alert.value else alert.value}
                for alert in alerts
            ],
        }
        print(json.dumps(found, indent=2))
    else:
        columns = zip(_column(total).items(), _column(recent).values(), strict=True)
        table(["", "all rows", "recent"], [[name, a, b] for (name, a), b in columns])
        print()
        table(
            ["alert", "", "value", "raised", "cleared"],
            [
                [
                    alert.name,
                    "RAISED" if alert.active else "",
                    _number(alert.value, "g"),
                    f"{alert.raise_at:g}",
                    f"{alert.clear_at:g}",
                ]
                for alert in alerts
            ],
        )
    return int(any(alert.active for alert in alerts))


def _number(value: float, kind: str = "f") -> str:
    """As a table has it; NaN, of too few rows, is a dash."""
    return "-" if value != value else f"{value:.4{kind}}"


def _column(summary: ConfidenceSummary) -> dict[str, str]:
    return {
        "rows": str(summary.count),
        "NaN rows": str(summary.n_nan),
        "invalid rows": str(summary.n_invalid),
        "mean confidence": _number(summary.mean),
        "its deviation": _number(summary.std),
        "chance-corrected": _number(summary.chance_corrected),
        "share above high": _number(summary.share_above),
        "share below low": _number(summary.share_below),
        "normalized entropy": _number(summary.normalized_entropy),
    }
