"""Which kernel takes which rows: a pure function of their shape and the device."""

import pytest

from pysoftmax.backends import _cuda
from pysoftmax.backends._cuda import Device

H200 = Device(architecture=90, multiprocessors=132)
A100 = Device(architecture=80, multiprocessors=108)
ITEMSIZES = [2, 4, 8]
# __launch_bounds__ of the kernels.
BOUNDS = {
    "short_rows": 128,
    "long_rows": 512,
    "stream_sum": 128,
    "stream_merge": 512,
    "stream_write": 128,
    "narrow_columns": 128,
    "wide_columns": 512,
}


def around(*borders):
    return sorted({n + step for n in borders for step in (-1, 0, 1) if n + step > 0})


def lengths(unit):
    blocks = [count * unit.block for count in (1, 8, 16, 32, 64, 128)]
    return around(1, unit.vector, unit.lanes, unit.chunk, *blocks)


def plans(itemsize):
    """(rows, n, plan) on both sides of every border."""
    for device in (H200, A100):
        for rows in (1, 3, 131, 132, 100_000):
            for n in lengths(_cuda.units(itemsize)):
                yield device, rows, n, _cuda.plan_rows(itemsize, rows, n, device)


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_no_launch_asks_for_more_than_a_device_has(itemsize):
    for _, _, _, plan in plans(itemsize):
        for start in plan.starts:
            assert 0 < start.threads <= BOUNDS[start.kernel]
            assert start.threads % 32 == 0
            assert 0 < start.blocks < 2**31
            assert start.shared <= 48 * 1024
            assert start.blocks % start.cluster == 0


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_every_column_of_every_row_has_a_thread(itemsize):
    unit = _cuda.units(itemsize)
    for _, rows, n, plan in plans(itemsize):
        blocks = -(-n // unit.block)
        first, defines = plan.starts[0], plan.defines
        warps = first.blocks * first.threads // 32
        if first.kernel == "short_rows":
            width, lane_rows = defines["WIDTH"], defines["LANE_ROWS"]
            assert width * unit.vector * lane_rows >= n
            assert lane_rows == 1 or width >= unit.group
            assert width <= unit.group or (lane_rows == 8 and width == 2 * unit.group)
            together = min(width, max(1, 128 // unit.real // (unit.vector * lane_rows)))
            assert warps * (32 // width) * together >= rows
        elif first.kernel == "long_rows":
            assert first.blocks == rows * first.cluster
            assert first.threads // 32 * first.cluster >= blocks
        else:
            assert warps >= rows * blocks
            assert plan.partials == rows * blocks
            assert plan.starts[1].blocks == rows


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_clusters_are_for_devices_that_have_them(itemsize):
    seen = {90: set(), 80: set()}
    for device, _, _, plan in plans(itemsize):
        seen[device.architecture] |= {start.cluster for start in plan.starts}
    assert seen == {90: {1, 2, 4, 8}, 80: {1}}


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_the_thread_blocks_of_a_cluster_hold_whole_subtrees(itemsize):
    """Blocks are merged in a binary tree by their index: a power of two to a thread block."""
    for _, _, _, plan in plans(itemsize):
        for start in plan.starts:
            if start.cluster > 1:
                assert start.threads // 32 in (4, 8, 16)


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_the_regimes_begin_where_their_registers_end(itemsize):
    unit = _cuda.units(itemsize)

    def kernel(rows, n, device=H200):
        return _cuda.plan_rows(itemsize, rows, n, device).starts[0]

    assert kernel(10_000, 2 * unit.chunk).kernel == "short_rows"
    assert kernel(10_000, 2 * unit.chunk + 1).kernel == "long_rows"
    assert kernel(10_000, 8 * unit.block).cluster == 1
    assert kernel(10_000, 8 * unit.block + 1).cluster == 2
    assert kernel(10_000, 64 * unit.block).threads == 8 * 32
    assert kernel(10_000, 64 * unit.block + 1).threads == 16 * 32
    assert kernel(10_000, 16 * unit.block, A100).kernel == "long_rows"
    assert kernel(10_000, 16 * unit.block + 1, A100).kernel == "stream_sum"
    assert kernel(10_000, 128 * unit.block + 1).kernel == "stream_sum"
    # A row alone would leave all multiprocessors but one idle.
    assert kernel(1, 16 * unit.block).kernel == "stream_sum"


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_columns_have_a_launch_up_to_a_block(itemsize):
    unit = _cuda.units(itemsize)
    for n in around(2, 16, unit.lanes // 2, unit.chunk, unit.block):
        for outer, inner in ((1, 1), (3, 33), (1, 1_000_000)):
            plan = _cuda.plan_columns(itemsize, outer, n, inner)
            if n > unit.block:
                assert plan is None
                continue
            (start,) = plan.starts
            assert 0 < start.threads <= BOUNDS[start.kernel]
            panels = outer * -(-inner // 32)
            if start.kernel == "narrow_columns":
                assert plan.defines["COLUMNS"] == n
                assert start.blocks * start.threads // 32 >= panels
            else:
                assert start.blocks == panels
                assert (plan.defines["COLUMNS"] >= n) == (n <= unit.chunk)


@pytest.mark.parametrize("kernel", ["count_labels", "weigh_labels"])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 4095, 4096, 4097, 10**9])
def test_every_label_has_a_thread(kernel, n):
    start = _cuda.plan_labels(kernel, n)
    of_a_block = _cuda.LABELS_OF_A_BLOCK if kernel == "count_labels" else start.threads
    assert (start.blocks - 1) * of_a_block < n <= start.blocks * of_a_block
    assert start.threads == 256
