"""The CUDA kernels of src/cuda as they are seen from Python: source, arguments, launches.

Nothing here needs a GPU or its libraries. A `Launch` says which instance of the kernels to
compile, by its definitions, and how to start it; `plan_rows` and `plan_columns` choose one by the
shape of the rows and the device alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

WARP = 32
WARPS = 8  # of a thread block that works on one row: two of them fit on a multiprocessor
CLUSTER = 8  # thread blocks that may share a row, from compute capability 9.0 on
NARROW = 16  # columns of a row that a single thread takes, along another axis
PARTIAL_BYTES = 64

POINTERS = (
    "x",
    "y",
    "out",
    "mask",
    "row_out",
    "temperature",
    "target",
    "class_weight",
    "divisor",
    "partials",
)
_COUNTS = (
    "outer",
    "n",
    "inner",
    "x_outer",
    "x_n",
    "y_outer",
    "y_n",
    "out_outer",
    "out_n",
    "temperature_step",
    "ignore_index",
)
LABELS_OF_A_BLOCK = 16 * 256  # that the 256 threads of a block count

# The structs of the same names in task.cuh, elementwise.cuh and means.cuh.
TASK = np.dtype(
    [(name, np.uint64) for name in POINTERS]
    + [(name, np.int64) for name in _COUNTS]
    + [("label_smoothing", np.float64)]
)
ELEMENTS = np.dtype(
    [
        (name, np.uint64)
        for name in ("x", "y", "weight", "pos_weight", "out", "grad", "loss", "divisor")
    ]
    + [("n", np.int64)]
)
LABELS = np.dtype(
    [(name, np.uint64) for name in ("target", "class_weight", "weight", "used", "wrong")]
    + [(name, np.int64) for name in ("n", "classes", "ignore_index")]
)
QUOTIENT = np.dtype([(name, np.uint64) for name in ("total", "divisor", "out")])


@dataclass(frozen=True)
class Device:
    """What a launch depends on."""

    architecture: int  # compute capability, 10 * major + minor
    multiprocessors: int


@dataclass(frozen=True)
class Launch:
    """An instance of the kernels, and the starts of it that follow each other."""

    defines: Mapping[str, int]
    starts: tuple["Start", ...]
    partials: int = 0  # how many Partials of workspace


@dataclass(frozen=True)
class Start:
    """One kernel of the instance: its name, grid, thread block and dynamic shared memory."""

    kernel: str
    blocks: int
    threads: int
    shared: int = 0
    cluster: int = 1
    writes: bool = False  # nothing but `out`: left out where there is none


@dataclass(frozen=True)
class Units:
    """The units of the numeric contract for an element type, and what a thread holds."""

    vector: int  # elements of 16 bytes
    lanes: int  # columns of a lane row
    real: int  # bytes of what is computed in

    @property
    def chunk(self) -> int:
        """Columns of 8 lane rows."""
        return 8 * self.lanes

    @property
    def block(self) -> int:
        """Columns of 4 chunks."""
        return 4 * self.chunk

    @property
    def group(self) -> int:
        """Threads of a chunk."""
        return self.lanes // self.vector


@cache
def units(itemsize: int) -> Units:
    """The units for elements of so many bytes."""
    real = max(itemsize, 4)
    return Units(vector=16 // itemsize, lanes=256 // real, real=real)


def element_defines(name: str) -> dict[str, int]:
    """What tells the kernels the element type, by the dtype's name."""
    return {
        "ELEMENT_BITS": 16 if name in ("float16", "bfloat16") else int(name.removeprefix("float")),
        "BFLOAT16": int(name == "bfloat16"),
        "PYSOFTMAX_DOUBLE": int(name == "float64"),
    }


def divided(count: int, size: int) -> int:
    """How many parts of `size` hold `count`."""
    return -(-count // size)


def plan_rows(itemsize: int, rows: int, n: int, device: Device) -> Launch:
    """The launch for contiguous rows; `rows` and `n` are not 0."""
    unit = units(itemsize)
    if n <= 2 * unit.chunk:
        return _short_rows(unit, rows, n)
    blocks = divided(n, unit.block)
    warps, cluster, most = WARPS, 1, CLUSTER if device.architecture >= 90 else 1
    while warps * cluster < blocks and cluster < most:
        cluster *= 2
    if warps * cluster < blocks:
        warps *= 2
    # Few rows are spread over more multiprocessors.
    while rows * cluster < device.multiprocessors and cluster < most and min(warps, blocks) > 4:
        cluster, warps = 2 * cluster, warps // 2
    if warps * cluster >= blocks and (rows * cluster >= device.multiprocessors or blocks <= 4):
        return _long_rows(rows, blocks if cluster == 1 else warps, cluster)
    sweep = divided(rows * blocks, 4)
    return Launch(
        {"STREAMED_ROWS": 1},
        (
            Start("stream_sum", sweep, 128),
            Start("stream_merge", rows, 512 if blocks > 512 else 64),
            Start("stream_write", sweep, 128, writes=True),
        ),
        partials=rows * blocks,
    )


def _short_rows(unit: Units, rows: int, n: int) -> Launch:
    """A group of lanes to a row, or a single lane."""
    width = 1
    while width < unit.group and width * unit.vector < n:
        width *= 2
    lane_rows = 1
    while lane_rows < 8 and lane_rows * unit.lanes < n:
        lane_rows *= 2
    if n > unit.chunk:
        width *= 2
    # As many rows in work in a group as its registers take: TOGETHER of row.cuh.
    together = min(width, max(1, 128 // unit.real // (unit.vector * lane_rows)))
    of_a_block = 4 * together * WARP // width
    return Launch(
        {"SHORT_ROWS": 1, "WIDTH": width, "LANE_ROWS": lane_rows},
        (Start("short_rows", divided(rows, of_a_block), 128),),
    )


def _long_rows(rows: int, warps: int, cluster: int) -> Launch:
    shared = (warps + 2) * PARTIAL_BYTES
    start = Start("long_rows", rows * cluster, warps * WARP, shared, cluster)
    return Launch({"LONG_ROWS": 1, "CLUSTER_BLOCKS": cluster}, (start,))


def plan_columns(itemsize: int, outer: int, n: int, inner: int) -> Launch | None:
    """The launch for rows whose neighbours are contiguous; None where `n` is too long for one."""
    unit = units(itemsize)
    panels = outer * divided(inner, WARP)
    if n <= NARROW and n <= unit.lanes // 2:
        start = Start("narrow_columns", divided(panels, 4), 4 * WARP)
        return Launch({"NARROW_COLUMNS": 1, "COLUMNS": n}, (start,))
    if n > unit.block:
        return None
    parts = unit.lanes // 4
    columns = 2 * parts
    while columns < n:
        columns *= 2
    start = Start("wide_columns", panels, parts * WARP)
    return Launch({"WIDE_COLUMNS": 1, "COLUMNS": columns if n <= unit.chunk else 0}, (start,))


def plan_elements(kernel: str, itemsize: int, n: int) -> Start:
    """The start of an elementwise kernel; `n` is not 0."""
    return Start(kernel, divided(n, 256 * units(itemsize).vector), 256)


def means_defines(name: str) -> dict[str, int]:
    """The definitions of the kernels of a mean, whose quotient has the dtype of this name."""
    return {**element_defines(name), "MEANS": 1, "LABELS_OF_A_BLOCK": LABELS_OF_A_BLOCK}


def plan_labels(kernel: str, n: int) -> Start:
    """The start of a kernel over `n` class labels, not 0."""
    return Start(kernel, divided(n, LABELS_OF_A_BLOCK if kernel == "count_labels" else 256), 256)


# Beside this file in an installation, else where they are written.
FOLDERS = (
    Path(__file__).parent / "cuda",
    Path(__file__).parents[2] / "src" / "cuda",
    Path(__file__).parents[2] / "src" / "cpu",
)


@cache
def source(name: str = "kernels.cu") -> str:
    """A source file with those of the project that it includes in their places."""
    path = next(folder / name for folder in FOLDERS if (folder / name).exists())
    return re.sub(
        r'^#include "(.*)"$', lambda match: source(match[1]), path.read_text(), flags=re.MULTILINE
    )
