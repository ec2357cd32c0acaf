"""What only a GPU can show: its bits, streams, graphs, several devices, memory that is shared.

All are skipped without a device; ``make test-gpu`` runs them, and the NumPy suite over CuPy.
"""

import time

import every_kernel
import numpy as np
import on_device
import pytest
from cases import normal, python
from oracles import assert_same_bytes

import pysoftmax as ps
from pysoftmax.backends.cupy import deferred_checks


@pytest.fixture(scope="module", autouse=True)
def cupy():
    """The module; without a device the tests are skipped."""
    arrays = on_device.arrays()
    if not arrays.on_gpu:
        pytest.skip("needs a CUDA device, and not the harness")
    return arrays.xp


@pytest.mark.parametrize(("dtype", "regime", "function"), [*every_kernel.calls()], ids=str)
def test_every_kernel_gives_the_bits_of_the_cpu(dtype, regime, function):
    every_kernel.assert_bits_of_the_cpu(on_device.arrays(), dtype, regime, function)


@pytest.mark.parametrize("dtype", every_kernel.HALVES, ids=str)
@pytest.mark.parametrize("n", [3, 500, 900, 3000, 40_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("centre", [0, 3000])
def test_fast_halves_are_as_good_as_halves_can_be(dtype, n, temperature, centre):
    every_kernel.assert_fast_halves(on_device.arrays(), dtype, n, temperature, centre)


# --- streams ------------------------------------------------------------------------------------

SPIN = r"""
extern "C" __global__ void spin(long long cycles) {
    const long long begin = clock64();
    while (clock64() - begin < cycles) {}
}
"""


@pytest.fixture
def keep_busy(cupy):
    """Make the current stream wait for a tenth of a second or so."""
    spin = cupy.RawKernel(SPIN, "spin")
    return lambda: spin((1,), (1,), (np.int64(200_000_000),))


@pytest.mark.parametrize("n", [10, 5000, 300_000])
def test_calls_keep_the_order_of_the_current_stream(cupy, keep_busy, n):
    before, after = (cupy.asarray(normal((3, n), np.float32, seed)) for seed in (0, 1))
    expected = ps.softmax(cupy.asnumpy(after))
    x, stream = before.copy(), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        keep_busy()
        x[...] = after  # what the call must see
        p = ps.softmax(x)
    stream.synchronize()
    assert_same_bytes(cupy.asnumpy(p), expected)


def test_a_call_does_not_wait(cupy, keep_busy):
    x = cupy.asarray(normal((64, 1000), np.float32))
    labels = cupy.zeros(64, np.int64)
    cupy.cuda.Device().synchronize()
    calls = (
        lambda: ps.softmax(x, temperature=0.5),
        lambda: ps.logsumexp(x, where=x > 0),
        lambda: ps.cross_entropy_with_grad(x, labels),
    )
    with deferred_checks(), cupy.cuda.Stream(non_blocking=True) as stream:
        for call in calls:
            call()  # compiles, and makes constants
            stream.synchronize()
            keep_busy()
            call()
            assert not stream.done
            stream.synchronize()


def test_wrong_labels_are_refused_or_give_nan_later(cupy):
    x, labels = cupy.zeros((3, 5)), cupy.asarray([0, 7, -1])
    with pytest.raises(IndexError, match=r"target\[1\] is 7"):
        ps.cross_entropy(x, labels)
    with deferred_checks():
        losses = ps.cross_entropy(x, labels, reduction="none")
    np.testing.assert_array_equal(cupy.isnan(losses).get(), [False, True, True])


# --- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 5000, 300_000])
def test_a_graph_computes_anew_what_was_captured(cupy, n):
    first, second = (normal((4, n), np.float32, seed) for seed in (0, 1))
    x, labels = cupy.asarray(first), cupy.asarray([0, 1, 2, -100])
    p, grad = cupy.empty_like(x), cupy.empty_like(x)
    # What a captured call allocates has to stay as long as the graph.
    pool = cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()

    def work():
        ps.softmax(x, out=p)
        return ps.cross_entropy_with_grad(x, labels, grad_out=grad)[0]

    stream = cupy.cuda.Stream(non_blocking=True)
    with deferred_checks(), cupy.cuda.using_allocator(pool.malloc), stream:
        work()
        stream.synchronize()
        stream.begin_capture()
        loss = work()
        graph = stream.end_capture()
    for values in (second, first):
        with stream:
            x.set(values)
            graph.launch(stream)
        stream.synchronize()
        expected = ps.cross_entropy_with_grad(values, cupy.asnumpy(labels))
        assert_same_bytes(cupy.asnumpy(p), ps.softmax(values))
        assert_same_bytes(cupy.asnumpy(loss), expected[0])
        assert_same_bytes(cupy.asnumpy(grad), expected[1])


# --- devices ------------------------------------------------------------------------------------


def test_a_call_runs_on_the_device_of_its_array(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two CUDA devices")
    x = normal((64, 1000), np.float32)
    with cupy.cuda.Device(1):
        there = cupy.asarray(x)
    with cupy.cuda.Device(0):
        p = ps.softmax(there, temperature=2.0)
        loss = ps.cross_entropy(there, cupy.asarray(np.zeros(64, np.int64)))
        assert cupy.cuda.runtime.getDevice() == 0
    assert p.device.id == loss.device.id == 1
    assert_same_bytes(cupy.asnumpy(p), ps.softmax(x, temperature=2.0))


# --- shared memory ------------------------------------------------------------------------------


def test_memory_is_shared_with_torch(cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch for CUDA")
    values = normal((64, 1000), np.float32)
    tensor = torch.from_numpy(values).cuda()
    array = cupy.from_dlpack(tensor)
    ps.softmax(array, out=array)
    assert_same_bytes(tensor.cpu().numpy(), ps.softmax(values))
    back = torch.from_dlpack(ps.log_softmax(array))
    assert back.is_cuda
    torch.cuda.synchronize()
    assert_same_bytes(back.cpu().numpy(), ps.log_softmax(ps.softmax(values)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_on_the_device_stay_there(cupy, dtype):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch for CUDA")
    tensor = torch.randn(64, 1000).to(getattr(torch, dtype))
    there = ps.softmax(tensor.cuda())
    assert there.is_cuda
    assert there.dtype == tensor.dtype
    assert torch.equal(there.cpu(), ps.softmax(tensor))


def test_calls_join_the_stream_of_torch(cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch for CUDA")
    values = normal((64, 1000), np.float32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), cupy.cuda.Stream.from_external(stream):
        tensor = torch.from_numpy(values).cuda()
        torch.cuda._sleep(100_000_000)
        tensor.add_(1)
        p = ps.softmax(cupy.from_dlpack(tensor))
        doubled = torch.from_dlpack(p) * 2
    stream.synchronize()
    expected = 2 * ps.softmax(values + np.float32(1))
    assert_same_bytes(doubled.cpu().numpy(), expected)


# --- size ---------------------------------------------------------------------------------------

MANY = 2**32


@pytest.fixture
def room(cupy):
    """Skip, by name, unless so many bytes are free; given back afterwards."""

    def wanted(size):
        cupy.get_default_memory_pool().free_all_blocks()
        if cupy.cuda.Device().mem_info[0] < 1.1 * size:
            pytest.skip(f"needs a device with {size / 1e9:.0f} GB free")

    yield wanted
    cupy.get_default_memory_pool().free_all_blocks()


@pytest.mark.parametrize("shape", [(2**24 + 8, 256), (2**16 + 8, 2**16), (2**12 + 8, 2**20)])
def test_more_rows_than_fit_32_bits(cupy, room, shape):
    room(2 * MANY)
    x = cupy.zeros(shape, np.float16)
    assert x.size > MANY
    rows = normal((2, shape[1]), np.float16)
    x[0], x[-1] = cupy.asarray(rows)
    ps.softmax(x, out=x)
    expected = ps.softmax(rows)
    assert_same_bytes(cupy.asnumpy(x[0]), expected[0])
    assert_same_bytes(cupy.asnumpy(x[-1]), expected[1])
    assert float(x[shape[0] // 2].max()) == np.float16(1 / shape[1])


def test_one_row_longer_than_32_bits(cupy, room):
    room(2 * MANY)
    x = cupy.zeros(MANY + 3000, np.float16)
    x[-1] = 20
    expected = np.float16(20 + np.log1p((x.size - 1) * np.exp(-20)))
    assert float(ps.logsumexp(x)) == expected
    ps.log_softmax(x, out=x)
    assert float(x[-1]) == np.float16(20 - float(np.log((x.size - 1) + np.exp(20))))
    assert float(x[0]) == float(x[-2]) == np.float16(-np.log((x.size - 1) + np.exp(20)))


def test_columns_farther_apart_than_32_bits(cupy, room):
    room(2 * MANY)
    x = cupy.zeros((3, MANY // 2 + 40), np.float16)
    columns = normal((3, 2), np.float16)
    x[:, 0], x[:, -1] = cupy.asarray(columns.T)
    ps.softmax(x, axis=0, out=x)
    expected = ps.softmax(columns, axis=0)
    assert_same_bytes(cupy.asnumpy(x[:, 0]), np.ascontiguousarray(expected[:, 0]))
    assert_same_bytes(cupy.asnumpy(x[:, -1]), np.ascontiguousarray(expected[:, 1]))


# --- start --------------------------------------------------------------------------------------

FIRST_CALL = """
import time
import cupy, pysoftmax
x = cupy.zeros((100, 100), "float32")
cupy.cuda.Device().synchronize()
begin = time.perf_counter()
pysoftmax.softmax(x)
cupy.cuda.Device().synchronize()
print(time.perf_counter() - begin)
"""


def test_a_second_process_finds_the_kernels_compiled(tmp_path):
    first, second = (
        float(python("-c", FIRST_CALL, CUPY_CACHE_DIR=str(tmp_path))) for _ in range(2)
    )
    assert len(list(tmp_path.glob("pysoftmax-*.cubin"))) == 1
    assert second < min(first, 1.0)


def test_a_tiny_call_costs_little(cupy):
    """No goal: a bound that only a wait or a compilation in every call would break."""
    x, p = cupy.zeros((1, 10), "float32"), cupy.zeros((1, 10), "float32")
    ps.softmax(x, out=p)
    cupy.cuda.Device().synchronize()
    begin = time.perf_counter()
    for _ in range(200):
        ps.softmax(x, out=p)
    cupy.cuda.Device().synchronize()
    assert time.perf_counter() - begin < 200 * 1e-3
