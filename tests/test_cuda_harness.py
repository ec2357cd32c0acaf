"""The CUDA-on-CPU harness runs right kernels right, and notices each way of being wrong.

The sample kernels in cuda/samples have one macro for each defect.
"""

import functools
import re

import cuda_on_cpu
import numpy as np
import pytest
from cuda_on_cpu import LaunchError, Module, needs_sanitizer, python_sanitized

pytestmark = cuda_on_cpu.needs_compiler()

SUMS = cuda_on_cpu.SAMPLES / "sums.cu"
TASK = np.dtype([("x", "u8"), ("out", "u8"), ("n", "i8"), ("scale", "f4")], align=True)
SEEDS = range(8)


@functools.cache
def sample(*defects):
    return Module(SUMS, dict.fromkeys(defects, "1"))


@functools.cache
def functions():
    return Module(cuda_on_cpu.SAMPLES / "functions.cu")


def integers(*shape, dtype="float32"):
    """Numbers whose sums are exact, in any order."""
    return np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)


def sum_f64(module, x, threads, seed):
    out = np.full(len(x), np.nan)
    args = (x, out, np.int64(x.shape[1]), 2.0)
    module.launch("sum_f64", (len(x),), (threads,), args, seed=seed)
    return out


def sum_cluster(module, x, cluster, seed, threads=96):
    out = np.full((len(x), cluster), np.nan, np.float32)
    args = (x, out, np.int64(x.shape[1]))
    launch = {"shared": 4, "cluster": cluster, "seed": seed}
    module.launch("sum_cluster", (out.size,), (threads,), args, **launch)
    return out


def reverse(module, n, seed):
    x, out = integers(n), np.full(n, np.nan, np.float32)
    module.launch("reverse", (1,), (n,), (x, out), shared=4 * n, seed=seed)
    return x, out


def noticed(run, module, x, size):
    """Of the seeds, how many give wrong sums."""
    right = run(sample(), x, size, 0)
    return sum(not np.array_equal(run(module, x, size, seed), right) for seed in SEEDS)


# --- right kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [32, 64, 256, 1024])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 31), (7, 1000), (2, 5000)])
def test_a_block_reduction_for_every_seed(rows, n, threads):
    module, x = sample(), integers(rows, n, dtype="float64")
    for seed in SEEDS:
        np.testing.assert_array_equal(sum_f64(module, x, threads, seed), 2 * x.sum(1))


@pytest.mark.parametrize("cluster", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("n", [1, 100, 3000])
def test_a_cluster_reduction_for_every_seed(cluster, n):
    module, x = sample(), integers(3, n)
    for seed in SEEDS:
        sums = sum_cluster(module, x, cluster, seed)
        np.testing.assert_array_equal(sums, np.repeat(x.sum(1)[:, None], cluster, 1))


def test_dynamic_shared_memory_for_every_seed():
    for n in (1, 33, 1024):
        for seed in SEEDS:
            x, out = reverse(sample(), n, seed)
            np.testing.assert_array_equal(out, x[::-1])


@pytest.mark.parametrize("by_value", [lambda t: t, lambda t: t[0]], ids=["array", "scalar"])
def test_a_structure_is_passed_by_value(by_value):
    x, out = integers(5, 100), np.empty(5, np.float32)
    task = np.array([(x.ctypes.data, out.ctypes.data, 100, 0.5)], TASK)
    sample().launch("sum_f32", (5,), (64,), (by_value(task),))
    np.testing.assert_array_equal(out, x.sum(1) / 2)


def test_sixteen_bit_types_round_once_to_nearest_even(half):
    """All values to float32; back from random float32, and from the middle between neighbours."""
    module = functions()
    every = np.arange(65536, dtype=np.uint16)
    shape = (64, 2), (64, 4, 2)  # and in several dimensions of blocks and threads
    wide, back = np.empty(65536, np.float32), np.empty(65536, np.uint16)
    module.launch(f"from_{half.name}", *shape, (every, wide))
    np.testing.assert_array_equal(wide, every.view(half).astype(np.float32))

    random = np.random.default_rng(0).integers(0, 2**32, 65536, dtype=np.uint32).view(np.float32)
    finite = wide[np.isfinite(wide) & (wide >= 0)].astype(np.float64)
    middle = np.resize((finite[1:] + finite[:-1]) / 2, (2, 32768)) * [[1], [-1]]
    for x in (random, middle.astype(np.float32).ravel()):
        module.launch(f"to_{half.name}", *shape, (x, back))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            expected = x.astype(half).view(np.uint16)
        np.testing.assert_array_equal(back, np.where(np.isnan(x), 0x7FFF, expected))


@pytest.mark.parametrize("seed", SEEDS)
def test_collectives_and_atomics(seed):
    module = functions()
    x = integers(128, dtype="int32")
    found = np.zeros((8, 128), np.int32)
    module.launch("collectives", (1,), (128,), (x, found), seed=seed)
    warps, lanes = x.reshape(4, 32), np.arange(32)
    positive = (warps > 0) @ (1 << lanes.astype(np.int64))
    np.testing.assert_array_equal(found[0], warps[:, lanes ^ 5].ravel())
    np.testing.assert_array_equal(found[1], warps[:, np.r_[3:32, 29:32]].ravel())
    np.testing.assert_array_equal(found[2], warps[:, lanes // 8 * 8 + 1].ravel())
    np.testing.assert_array_equal(found[3].view(np.uint32), np.repeat(positive, 32))
    np.testing.assert_array_equal(found[4], np.repeat((warps > 0).any(1), 32))
    np.testing.assert_array_equal(found[5], np.repeat((warps > -200).all(1), 32))
    pairs = warps.reshape(4, 2, 16)[..., ::-1]
    np.testing.assert_array_equal(found[6], pairs.ravel())  # a collective for each half warp
    np.testing.assert_array_equal(found[7, :3], [x.sum(), x.max(), x.min()])


# --- wrong kernels ------------------------------------------------------------------------------


def test_a_removed_barrier_is_noticed():
    x = integers(4, 3000, dtype="float64") + 200
    assert noticed(sum_f64, sample(), x, 256) == 0
    assert noticed(sum_f64, sample("NO_BARRIER"), x, 256) == len(SEEDS)
    assert noticed(sum_f64, sample("NO_SECOND_BARRIER"), x, 256) >= len(SEEDS) / 4


def test_a_removed_barrier_is_noticed_in_dynamic_shared_memory():
    for seed in SEEDS:
        x, out = reverse(sample("NO_BARRIER"), 256, seed)
        assert not np.array_equal(out, x[::-1])


@pytest.mark.parametrize(
    ("defect", "report"),
    [
        ("DIVERGENT_BARRIER", r"at __syncthreads \(.*sums.cu:\d+\): 96 threads"),
        ("EARLY_RETURN", r"at __syncthreads \(.*sums.cu:\d+\): 32 threads\n.*finished: 96 threads"),
    ],
)
def test_a_divergent_barrier_is_an_error(defect, report):
    for seed in SEEDS:
        with pytest.raises(LaunchError, match="divergent barrier") as error:
            sum_f64(sample(defect), integers(2, 1000, dtype="float64"), 128, seed)
        assert re.search(report, str(error.value))


def test_a_mask_that_names_an_absent_lane_is_an_error():
    with pytest.raises(LaunchError, match="__shfl_xor_sync with mask 0xffffffff"):
        sum_f64(sample("MASK_NAMES_ABSENT_LANES"), integers(1, 50, dtype="float64"), 64, 0)
    with pytest.raises(LaunchError, match="__shfl_xor_sync with mask 0xffffffff"):
        sum_f64(sample(), integers(1, 50, dtype="float64"), 40, 0)  # half a warp


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("calls_outside_its_mask", "the mask leaves out lane"),
        ("reads_outside_its_mask", "reads lane 31, which the mask leaves out"),
        ("different_barriers", "divergent barrier"),
        ("different_collectives", "__any_sync"),
    ],
)
def test_a_misused_collective_is_an_error(kernel, message):
    module = functions()
    for seed in SEEDS:
        with pytest.raises(LaunchError, match=message):
            module.launch(kernel, (1,), (64,), (np.zeros(64, np.int32),), seed=seed)


def test_a_removed_cluster_barrier_is_noticed():
    x = integers(3, 3000) + 200
    assert noticed(sum_cluster, sample(), x, 4) == 0
    assert noticed(sum_cluster, sample("NO_CLUSTER_BARRIER"), x, 4) == len(SEEDS)
    assert noticed(sum_cluster, sample("NO_LAST_CLUSTER_BARRIER"), x, 4) >= len(SEEDS) / 4


SANITIZED = """
import numpy as np, sys
from cuda_on_cpu import Module, SAMPLES
kernel, defects, offset, n = sys.argv[1], sys.argv[2].split(), int(sys.argv[3]), int(sys.argv[4])
module = Module(SAMPLES / "sums.cu", dict.fromkeys(defects, "1"), sanitize=True)
x = np.ones(n + offset, np.float32)[offset:]
out = np.zeros(n, np.float32)
if kernel == "sum_vectors":
    module.launch(kernel, (1,), (32,), (x, out, np.int32(n)))
elif kernel == "sum_cluster":
    module.launch(kernel, (4,), (256,), (x, out, np.int64(n)), shared=4, cluster=4)
else:
    module.launch(kernel, (1,), (n,), (x, out), shared=4 * n)
print("no error", out[0])
"""


@needs_sanitizer()
@pytest.mark.parametrize(
    ("kernel", "defects", "offset", "n", "report"),
    [
        ("sum_vectors", "", 0, 1000, None),
        ("sum_cluster", "", 0, 1000, None),
        ("reverse", "", 0, 256, None),
        (
            "sum_vectors",
            "PAST_THE_END PAST_SHARED",
            0,
            124,
            "heap-buffer-overflow",
        ),
        ("sum_vectors", "", 1, 124, "misaligned address"),
        ("reverse", "PAST_THE_END PAST_SHARED", 0, 256, "heap-buffer-overflow"),
    ],
)
def test_memory_errors_end_the_process_with_a_report(kernel, defects, offset, n, report):
    done = python_sanitized("-c", SANITIZED, kernel, defects, str(offset), str(n))
    if report is None:
        assert done.returncode == 0, done.stderr[-4000:]
        assert "no error" in done.stdout
    else:
        assert done.returncode != 0, done.stdout
        assert report in done.stderr
        assert "sums.cu" in done.stderr


# --- what the launcher refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "block", "options", "message"),
    [
        ((0,), (32,), {}, "a grid is 1 to"),
        ((1, 65536), (32,), {}, "a grid is 1 to"),
        ((1,), (1025,), {}, "1 to 1024 threads"),
        ((1,), (1, 1, 65), {}, "at most 64 along z"),
        ((3,), (32,), {"cluster": 2}, "a whole number of clusters"),
        ((32,), (32,), {"cluster": 32}, "1 to 16 blocks"),
        ((1,), (32,), {"shared": 233 * 1024}, "at most 232448 bytes"),
    ],
)
def test_a_launch_that_no_device_takes(grid, block, options, message):
    x = np.zeros(32, np.float32)
    with pytest.raises(LaunchError, match=message):
        sample().launch("reverse", grid, block, (x, x), **options)


def test_arguments_that_are_not_the_kernels():
    x = np.zeros(32, np.float32)
    module = sample()
    with pytest.raises(TypeError, match=r"\[8, 8\] bytes, got \[8\]"):
        module.launch("reverse", (1,), (32,), (x,))
    with pytest.raises(TypeError, match=r"\[8, 8, 4\] bytes, got \[8, 8, 8\]"):
        module.launch("sum_vectors", (1,), (32,), (x, x, 32))
    with pytest.raises(TypeError, match="expected an array"):
        module.launch("reverse", (1,), (32,), (x, "x"))
    with pytest.raises(KeyError, match="no kernel 'sum' among sum_f32, sum_f64"):
        module.launch("sum", (1,), (32,), (x, x))


def test_a_cluster_maps_dynamic_shared_memory_alone():
    x = integers(1, 100)
    args = (x, np.empty(2, np.float32), np.int64(100))
    with pytest.raises(LaunchError, match="cluster_map: not dynamic shared memory"):
        sample().launch("sum_cluster", (2,), (32,), args, shared=0, cluster=2)


def test_a_sanitized_module_needs_the_sanitizer():
    with pytest.raises(RuntimeError, match="python_sanitized"):
        Module(SUMS, sanitize=True)


def test_a_source_that_does_not_compile(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text('extern "C" __global__ void k(unknown *x) {}')
    with pytest.raises(AssertionError, match="unknown"):
        Module(source)
    source.write_text("void k() {}")
    with pytest.raises(AssertionError, match="no kernel in"):
        Module(source)
