"""What a run yields, as objects and as JSON, and what follows from it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import pysoftmax
from pysoftmax.bench.cases import FUNCTIONS, Case

OURS = "pysoftmax"
LIMITS = ("copy", "exp+sum", "launch")
"""Who takes part and is no library: what nobody can beat."""


@dataclass(frozen=True)
class Quartiles:
    """The middle of some figures, and the range that half of them lie in."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, figures: Any) -> Quartiles:
        """Take the quartiles, to four digits."""
        return cls(*(float(f"{q:.4g}") for q in np.percentile(figures, (25, 50, 75))))

    @property
    def spread(self) -> float:
        """The range that half the figures lie in, over the median."""
        return (self.upper - self.lower) / self.median


@dataclass(frozen=True)
class Timing:
    """How one library fared in one race, with its output reused or allocated in each call."""

    peer: str
    output: str
    ns_per_element: Quartiles
    gigabytes_per_second: float
    """The least that the function must read and write, over the median time."""

    @property
    def ns(self) -> float:
        """The median time of an element."""
        return self.ns_per_element.median


@dataclass(frozen=True)
class Race:
    """The times of all who took part in a case."""

    case: Case
    timings: list[Timing]

    def of(self, peer: str, output: str | None = None) -> Timing | None:
        """Return a peer's timing; its first, which reuses the output if it can, unless named."""
        for timing in self.timings:
            if timing.peer == peer and output in (None, timing.output):
                return timing
        return None

    @property
    def ours(self) -> Timing:
        """pysoftmax's first timing."""
        ours = self.of(OURS)
        assert ours is not None
        return ours

    @property
    def limit(self) -> float | None:
        """The time that nobody can beat: the larger of the limits; None if one is missing."""
        limits = [self.of(name) for name in FUNCTIONS[self.case.function].limits]
        return max((t.ns for t in limits if t), default=None) if all(limits) else None

    def of_copy(self, timing: Timing) -> float | None:
        """Return a bandwidth over that of the copy; None if that is missing."""
        copy = self.of("copy")
        return timing.gigabytes_per_second / copy.gigabytes_per_second if copy else None

    def ratio(self, timing: Timing) -> float | None:
        """Return a time over that of pysoftmax with an output of the same kind."""
        ours = self.of(OURS, timing.output)
        return timing.ns / ours.ns if ours else None

    def ratios(self) -> dict[str, float]:
        """Return the ratio of every peer, with the output reused if it can."""
        known = (OURS, *LIMITS)
        peers = dict.fromkeys(t.peer for t in self.timings if t.peer not in known)
        ratios = {peer: self.ratio(timing) for peer in peers if (timing := self.of(peer))}
        return {peer: ratio for peer, ratio in ratios.items() if ratio is not None}


@dataclass(frozen=True)
class Results:
    """A run: where, who, and the races."""

    machine: dict[str, Any]
    threads: int
    peers: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    notes: list[str]
    races: list[Race]
    gpu: str | None = None
    """The name of the device that was raced on; None: the CPU."""

    def title(self, peer: str) -> str:
        """Return the name of a peer as it is written."""
        return str(self.peers[peer]["title"])

    def to_json(self) -> str:
        """Write all of it as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        fields["races"] = [
            Race(
                Case(**race["case"] | {"shape": tuple(race["case"]["shape"])}),
                [
                    Timing(**timing | {"ns_per_element": Quartiles(**timing["ns_per_element"])})
                    for timing in race["timings"]
                ],
            )
            for race in fields["races"]
        ]
        return cls(**fields)


def geometric_mean(figures: Iterable[float]) -> float:
    """Return the mean of ratios."""
    return math.exp(np.mean(np.log(list(figures))))


def machine() -> dict[str, Any]:
    """Describe when and where figures were taken."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "pysoftmax": pysoftmax.info(),
    }


def cpu_model() -> str:
    """Return the name that the CPU gives itself, as far as the system tells."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
