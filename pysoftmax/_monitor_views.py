"""What a `ConfidenceMonitor` shows: to Prometheus, and in a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pysoftmax.monitoring import ConfidenceMonitor, ConfidenceSummary

_MOST_CLASSES = 100  # that Prometheus gets a series of each


class Point(NamedTuple):
    """A piece of the past, for a picture."""

    time: float
    rows: int
    mean: float | None
    std: float | None
    above: float | None
    below: float | None
    alerts: tuple[str, ...]


class Collector:
    """What `prometheus_client` asks at every scrape."""

    def __init__(self, monitor: ConfidenceMonitor, core: Any, labels: dict[str, str]) -> None:
        self.monitor, self.core = monitor, core
        self.names, self.values = list(labels), list(labels.values())

    def describe(self) -> list[Any]:
        """What a registry refuses to take twice."""
        return list(self.collect())

    def collect(self) -> Iterator[Any]:
        """All metrics, as they are now."""
        monitor = self.monitor
        alerts = monitor.alerts()
        total, recent = monitor.total, monitor.recent
        yield self._histogram(total)
        yield self._by(
            "CounterMetricFamily",
            "pysoftmax_rejected_rows",
            "Rows that are no probabilities.",
            "reason",
            {"nan": total.n_nan, "invalid": total.n_invalid},
        )
        if monitor.n_classes <= _MOST_CLASSES:
            shares = (total.class_shares * total.count).round().tolist() if total.count else []
            yield self._by(
                "CounterMetricFamily",
                "pysoftmax_predictions",
                "Rows by the most probable class.",
                "class",
                {str(k): count for k, count in enumerate(shares)},
            )
        gauges = {
            "rows": ("Rows in the window.", recent.count),
            "confidence_mean": ("Mean confidence.", recent.mean),
            "confidence_std": ("Standard deviation of the confidence.", recent.std),
            "share_above": ("Share of rows above high.", recent.share_above),
            "share_below": ("Share of rows below low.", recent.share_below),
            "normalized_entropy": ("Mean entropy over log(K).", recent.normalized_entropy),
        }
        if monitor._reference is not None:
            drift = monitor.drift()
            gauges["psi"] = ("Population stability index of the confidence.", drift.psi)
            gauges["ks"] = ("Kolmogorov-Smirnov distance of the confidence.", drift.ks)
            gauges["class_shift"] = ("Distance of the class shares.", drift.class_shift)
        for name, (text, value) in gauges.items():
            yield self._by("GaugeMetricFamily", f"pysoftmax_recent_{name}", text, None, {"": value})
        yield self._by(
            "GaugeMetricFamily",
            "pysoftmax_alert",
            "1 while an alert is raised.",
            "alert",
            {alert.name: int(alert.active) for alert in alerts},
        )

    def _by(
        self, kind: str, name: str, text: str, label: str | None, values: Mapping[str, float]
    ) -> Any:
        """A family with a sample for each value of one more label, or with one sample."""
        more = [] if label is None else [label]
        family = getattr(self.core, kind)(name, text, labels=[*self.names, *more])
        for value, number in values.items():
            family.add_metric([*self.values, *([value] if more else [])], number)
        return family

    def _histogram(self, total: ConfidenceSummary) -> Any:
        family = self.core.HistogramMetricFamily(
            "pysoftmax_confidence", "Largest probability of a row.", labels=self.names
        )
        n = len(total.histogram)
        edges = [*(f"{k / n:g}" for k in range(1, n)), "+Inf"]
        counts = total.histogram.cumsum().tolist()
        mass = total.mean * total.count if total.count else 0.0
        family.add_metric(self.values, list(zip(edges, counts, strict=True)), mass)
        return family


def draw(ax: Any, points: list[Point], end: int, x: str, monitor: ConfidenceMonitor) -> None:
    """Draw points of the past, the last of which ends at row `end`."""
    rows = np.cumsum([point.rows for point in points])
    ends = rows + (end - rows[-1]) if len(rows) else rows
    if x == "time":
        ends = np.array([int(1e3 * point.time) for point in points], "datetime64[ms]")
    mean, std, above, below = (
        np.array([getattr(point, name) for point in points], float)  # None becomes NaN
        for name in ("mean", "std", "above", "below")
    )
    high, low = monitor._cuts.high, monitor._cuts.low
    ax.fill_between(ends, mean - std, np.minimum(mean + std, 1), color="C0", alpha=0.2, linewidth=0)
    style = {"marker": ".", "markersize": 4}
    ax.plot(ends, mean, color="C0", label="mean confidence, ± deviation", **style)
    ax.plot(ends, above, color="C3", label=f"share above {high:.4g}", **style)
    ax.plot(ends, below, color="C1", label=f"share below {low:.4g}", **style)
    for level in (high, low):
        ax.axhline(level, color="0.5", linestyle=":", linewidth=1)
    for k, point in enumerate(points):
        if point.alerts:
            begin = ends[max(k - 1, 0)] if x == "time" or k else ends[0] - point.rows
            ax.axvspan(begin, ends[k], color="C3", alpha=0.1, linewidth=0)
    ax.set(ylim=(0, 1), xlabel=x)
    if points:
        ax.legend(loc="best")
    if x == "time":
        ax.figure.autofmt_xdate()
