"""The CuPy backend without a GPU: its own code, with its kernels run by the CUDA-on-CPU harness.

Bytes are those of the NumPy backend.
"""

import contextlib

import cuda_on_cpu
import every_kernel
import numpy as np
import on_device
import pytest
from every_kernel import assert_same_numbers

import pysoftmax as ps
from pysoftmax import _dispatch
from pysoftmax.backends import _cuda as cuda
from pysoftmax.backends import cupy as backend

pytestmark = [
    cuda_on_cpu.needs_compiler(),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def gpu():
    with on_device.harness() as gpu:
        yield gpu


def there(array):
    return np.array(array).view(on_device.DeviceArray)


def rows_of(n, rows=9, dtype="float32"):
    """Ordinary rows, and each kind of special one."""
    x = np.random.default_rng(n).normal(size=(rows, n)) * 4
    with np.errstate(over="ignore"):
        x[1, n // 2], x[2, 0], x[3], x[4, -1], x[5] = np.nan, np.inf, -np.inf, -np.inf, 1
        x[6] += 3e4 if np.dtype(dtype).itemsize == 2 else 3e6
        return x.astype(dtype)


# dtype, length: every regime of rows, on both sides of its borders.
LENGTHS = [("float32", 5), ("float32", 512), ("float32", 513), ("float16", 33), ("float64", 257)]
LENGTHS += [("float16", 900), ("bfloat16", 1024)]


@pytest.mark.parametrize(("dtype", "n"), LENGTHS)
def test_softmax_has_the_bits_of_the_cpu(dtype, n):
    x = rows_of(n, dtype=dtype)
    assert_same_numbers(ps.softmax(there(x)), ps.softmax(x))


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_the_gradient_at_a_temperature_whose_reciprocal_overflows(kind):
    x = rows_of(40)
    rng = np.random.default_rng(0)
    target = rng.integers(0, 40, 9) if kind == "labels" else rng.random((9, 40), np.float32)
    options = {"temperature": 1e-40, "reduction": "none"}
    expected = ps.cross_entropy_with_grad(x, target, **options)
    logits = there(x)
    got = ps.cross_entropy_with_grad(logits, there(target), grad_out=logits, **options)
    for a, b in zip(got, expected, strict=True):
        assert_same_numbers(a, b)


def test_streamed_rows(gpu):
    gpu._device = cuda.Device(80, 132)  # many more multiprocessors than rows
    x = rows_of(12000)[:2]
    assert_same_numbers(ps.softmax(there(x)), ps.softmax(x))
    assert gpu.kernels == ["stream_sum", "stream_merge", "stream_write"]


def test_clusters(gpu):
    x = np.random.default_rng(0).normal(size=(2, 40000)).astype("float32")
    assert_same_numbers(ps.log_softmax(there(x)), ps.log_softmax(x))
    assert gpu.kernels == ["long_rows"]


# Rows that begin anywhere: dtype and columns of a part of an array, and where that part begins.
PARTS = [
    ("float32", 101, 1),
    ("float32", 1001, 0),
    ("float32", 2303, 3),
    ("float64", 33, 1),
    ("float64", 1025, 0),
    ("float16", 10, 3),
    ("float16", 100, 0),
    ("float16", 511, 2),
    ("bfloat16", 1001, 0),
    ("bfloat16", 2051, 5),
    ("bfloat16", 17, 1),
]
CALLS_OF_PARTS = [
    *(("softmax", *part) for part in PARTS),
    *((f, *part) for f in ("log_softmax", "vjp", "loss", "logsumexp") for part in PARTS[1::3]),
]


@pytest.mark.parametrize(("function", "dtype", "n", "begin"), CALLS_OF_PARTS)
def test_rows_that_begin_anywhere(function, dtype, n, begin):
    whole = rows_of(n + 2 * begin, rows=10, dtype=dtype)
    x = whole[:, begin : begin + n]
    labels = np.where(np.arange(10) % 4, np.arange(10) % n, -100)
    ordinary = np.where(np.isfinite(x), x, 0).astype(dtype)
    calls = {
        "softmax": lambda x, o, labels, out: ps.softmax(x, out=out),
        "log_softmax": lambda x, o, labels, out: ps.log_softmax(x, out=out),
        "vjp": lambda x, o, labels, out: ps.softmax_vjp(o, o, out=out),
        "loss": lambda x, o, labels, out: ps.cross_entropy_with_grad(
            x, labels, grad_out=out, reduction="none"
        )[0],
        "logsumexp": lambda x, o, labels, out: ps.logsumexp(x, axis=1),
    }
    call = calls[function]
    for at in (0, begin, begin + 1):
        # What lies around the rows stays as it was.
        target = np.full((10, n + 9), 7, dtype)
        expected = target.copy()
        device = there(target)
        value = call(
            there(whole)[:, begin : begin + n],
            there(ordinary),
            there(labels),
            device[:, at : at + n],
        )
        wanted = call(x, ordinary, labels, expected[:, at : at + n])
        assert_same_numbers(device, expected, at=at)
        if function in ("loss", "logsumexp"):
            assert_same_numbers(value, wanted, at=at)
    if function in ("softmax", "log_softmax"):
        in_place = there(whole)[:, begin : begin + n]
        assert_same_numbers(call(in_place, None, None, in_place), wanted)


SANITIZED = """
import functools
import numpy as np
import cuda_on_cpu, on_device, every_kernel
import pysoftmax as ps
from pysoftmax.backends import _cuda

@functools.cache
def module(defines):
    source = _cuda.FOLDERS[1] / "kernels.cu"
    return cuda_on_cpu.Module(source, dict(defines), sanitize=True)

on_device._module = module
with on_device.harness():
    for dtype, n in (("float32", 2303), (every_kernel.DTYPES[-1], 101)):
        x = np.ones((9, n), dtype)
        for begin in range(3):
            part = x[:, begin:]
            ps.softmax(part.copy().view(on_device.DeviceArray))
            ps.softmax(part.view(on_device.DeviceArray), out=part.view(on_device.DeviceArray))
print("within")
"""


@cuda_on_cpu.needs_sanitizer()
def test_rows_that_begin_anywhere_are_not_left():
    done = cuda_on_cpu.python_sanitized("-c", SANITIZED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "within\n"


@pytest.mark.parametrize("dtype", every_kernel.HALVES, ids=str)
@pytest.mark.parametrize(
    ("n", "temperature", "centre"),
    [(3, 1.0, 0), (500, 0.7, 0), (900, 1.0, 3000), (3000, 0.7, 3000)],
)
def test_fast_halves_are_as_good_as_halves_can_be(gpu, dtype, n, temperature, centre):
    arrays = on_device.HarnessArrays()
    every_kernel.assert_fast_halves(arrays, dtype, n, temperature, centre)
    assert gpu.defines["FAST"]
    with backend.fast_halves():
        ps.softmax(there(np.ones((2, n), np.float32)))
    assert "FAST" not in gpu.defines


def test_fast_halves_have_the_special_rows():
    for dtype in every_kernel.HALVES:
        x = rows_of(700, dtype=dtype)
        with backend.fast_halves():
            got = ps.softmax(there(x), temperature=np.inf), ps.softmax(there(x))
        for mine, theirs in zip(
            got, (ps.softmax(x, temperature=np.inf), ps.softmax(x)), strict=True
        ):
            np.testing.assert_array_equal(np.isnan(mine), np.isnan(theirs))
            assert_same_numbers(mine[5], theirs[5])


@pytest.mark.parametrize("n", [7, 40])
@pytest.mark.parametrize("inner", [1, 35])
def test_along_another_axis(n, inner):
    x = np.random.default_rng(0).normal(size=(3, n, inner)).astype("float32")
    assert_same_numbers(ps.softmax(there(x), axis=1), ps.softmax(x, axis=1))


def test_columns_longer_than_a_block_and_axes_apart():
    x = np.random.default_rng(0).normal(size=(2, 2100, 3)).astype("float32")
    assert_same_numbers(ps.softmax(there(x), axis=1), ps.softmax(x, axis=1))
    x = x[:, :5]
    assert_same_numbers(ps.softmax(there(x), axis=(0, 2)), ps.softmax(x, axis=(0, 2)))


def test_masks_temperatures_and_in_place():
    x = rows_of(33)
    where = np.random.default_rng(0).random(x.shape) < 0.7
    degrees = np.array([1, 2, 0.5, 1, 0, np.inf, 3, 1, 1e-3])
    array = there(x)
    got = ps.softmax(array, where=there(where), temperature=there(degrees), out=array)
    assert got is array
    assert_same_numbers(got, ps.softmax(x, where=where, temperature=degrees))
    assert_same_numbers(
        ps.softmax(there(x)[::-2], temperature=2.0), ps.softmax(x[::-2], temperature=2.0)
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_with_gradient(dtype, reduction, weighted):
    x, random = rows_of(33, dtype=dtype), np.random.default_rng(0)
    x[1:4] = 0
    labels = random.integers(0, 33, len(x))
    labels[3] = -100
    weight = random.random(33) if weighted else None
    options = {"reduction": reduction, "label_smoothing": 0.1 if weighted else 0.0}
    expected = ps.cross_entropy_with_grad(x, labels, weight=weight, **options)
    on_device = None if weight is None else there(weight)
    got = ps.cross_entropy_with_grad(there(x), there(labels), weight=on_device, **options)
    assert_same_numbers(got[0], expected[0])
    assert_same_numbers(got[1], expected[1])


def test_the_first_bad_label_is_named_or_gives_nan():
    x, labels = there(rows_of(5)[:3] * 0 + 1), there([0, 7, -1])
    x[...] = 1
    with pytest.raises(IndexError, match=r"target\[1\] is 7: class labels must be in \[0, 5\)"):
        ps.cross_entropy(x, labels)
    with backend.deferred_checks():
        losses = ps.cross_entropy(x, labels, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True])


@pytest.mark.parametrize("wrong", [[], [9000], [0, 5], [4095, 4096], [8999, 3], [3000, 7000]])
def test_the_first_bad_of_many_labels_is_found(wrong):
    """Whichever thread block reads it; those that are ignored are none."""
    labels = np.arange(9001) % 50
    labels[::7] = 99
    labels[wrong] = 50
    if not wrong:
        assert backend.check_labels(there(labels), 50, 99) is None
        used = backend.sum_of_weights(there(labels), None, 99)
        assert (float(used), used.shape, used.dtype) == ((labels != 99).sum(), (), np.float64)
        return
    with pytest.raises(IndexError, match=rf"target\[{min(wrong)}\] is 50"):
        backend.check_labels(there(labels), 50, 99)


def test_a_mean_is_a_handful_of_launches(gpu):
    x, labels = rows_of(33), np.zeros(len(rows_of(33)), np.int64)
    ps.cross_entropy(there(x), there(labels))
    assert gpu.kernels == ["count_labels", "short_rows", "short_rows", "quotient"]
    ps.cross_entropy(there(x), there(labels.astype(np.int32)))
    assert gpu.kernels[4:] == ["count_labels", *gpu.kernels[:4]]
    with backend.deferred_checks():
        ps.cross_entropy(there(x), there(labels), reduction="none")
    assert gpu.kernels[9:] == ["short_rows"]


@pytest.mark.parametrize("n", [7, 40])
def test_an_ignored_label_is_never_an_index(n):
    """Nor by threads without a row of their own, which go through another's steps."""
    x = np.random.default_rng(0).normal(size=(1, n, 35)).astype("float32")
    labels, nowhere = np.zeros((1, 35), np.int64), -(2**40)
    labels[0, 0] = nowhere
    expected = ps.cross_entropy_with_grad(x, labels, 1, ignore_index=nowhere)
    got = ps.cross_entropy_with_grad(there(x), there(labels), 1, ignore_index=nowhere)
    for a, b in zip(got, expected, strict=True):
        assert_same_numbers(a, b)


@pytest.fixture
def one_way(monkeypatch):
    """Fail what leaves the short way."""
    monkeypatch.setattr(backend, "_run", lambda *a, **o: pytest.fail("the long way"))


PLAIN = [ps.softmax, ps.log_softmax, ps.logsumexp]


@pytest.mark.parametrize("function", PLAIN)
@pytest.mark.parametrize("axis", [-1, 0])
def test_plain_calls_go_a_short_way(function, axis, one_way):
    x = rows_of(33)
    assert_same_numbers(function(there(x), axis), function(x, axis))
    if function is not ps.logsumexp:
        for degrees in (0.7, np.inf, 1e-40):
            expected = function(x, axis, temperature=degrees)
            assert_same_numbers(function(there(x), axis, temperature=degrees), expected)
        array = there(x)
        assert function(array, axis, out=array) is array
        assert_same_numbers(array, function(x, axis))


@pytest.mark.parametrize("function", PLAIN)
def test_all_else_goes_the_long_way(function):
    x = rows_of(33)
    function(there(x))
    assert_same_numbers(function(there(x)[:, ::2]), function(x[:, ::2]))
    assert_same_numbers(function(there(x.astype("float16"))), function(x.astype("float16")))
    assert_same_numbers(function(there(np.arange(6))), function(np.arange(6)))
    assert_same_numbers(function(there(x), axis=(0, 1)), function(x, axis=(0, 1)))
    assert function(there(x[:0])).shape == function(x[:0]).shape
    with pytest.raises(np.exceptions.AxisError):
        function(there(x), 2)
    with pytest.raises(TypeError, match="out must have dtype"):
        function(there(x), out=there(function(x).astype("float64")))


def test_an_output_that_overlaps_goes_the_long_way():
    x = rows_of(33)
    memory = there(np.concatenate([x.reshape(-1), np.zeros(7, x.dtype)]))
    before, after = (memory[i : i + x.size].reshape(x.shape) for i in (0, 7))
    ps.softmax(before)
    ps.softmax(before, out=after)
    assert_same_numbers(after, ps.softmax(x))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_labels_go_a_short_way(one_way, dtype, reduction, smoothing):
    x, labels = rows_of(33, dtype=dtype), np.arange(9)
    x[1:4] = 0
    labels[3] = -1
    options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": -1}
    options["temperature"] = 1 + smoothing
    expected = ps.cross_entropy_with_grad(x, labels, **options)
    logits = there(x)
    for grad_out in (None, there(np.empty_like(x)), logits):
        got = ps.cross_entropy_with_grad(logits, there(labels), grad_out=grad_out, **options)
        assert grad_out is None or got[1] is grad_out
        for a, b in zip(got, expected, strict=True):
            assert_same_numbers(a, b)
    assert_same_numbers(ps.cross_entropy(there(x), there(labels), **options), expected[0])


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((33,), 0), ((5, 7, 40), 1), ((2100, 3), 1), ((9000, 2), -1), ((2, 20000), 1)],
)
def test_losses_of_any_number_of_rows_go_a_short_way(one_way, gpu, shape, axis):
    """Partial sums of the rows and of the mean have workspaces of their own."""
    gpu._device = cuda.Device(80, 132)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    labels = np.random.default_rng(1).integers(0, shape[axis], x.sum(axis).shape)
    for reduction in ("mean", "none"):
        got = ps.cross_entropy_with_grad(there(x), there(labels), axis, reduction=reduction)
        expected = ps.cross_entropy_with_grad(x, labels, axis, reduction=reduction)
        for a, b in zip(got, expected, strict=True):
            assert_same_numbers(a, b)


@pytest.mark.parametrize("weight", [np.linspace(0, 2, 66)[::2], np.arange(33, dtype=np.float32)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("checked", [True, False])
def test_weighted_losses_go_a_short_way(one_way, weight, reduction, checked):
    x, labels = np.where(np.isfinite(rows_of(33)), rows_of(33), 0), np.arange(9)
    labels[3] = -100
    options = {"reduction": reduction, "label_smoothing": 0.1}
    expected = ps.cross_entropy_with_grad(x, labels, weight=weight, **options)
    checks = contextlib.nullcontext() if checked else backend.deferred_checks()
    with checks:
        got = ps.cross_entropy_with_grad(there(x), there(labels), weight=there(weight), **options)
    for a, b in zip(got, expected, strict=True):
        assert_same_numbers(a, b)


def test_a_mean_of_no_rows_by_the_short_way(one_way):
    loss, grad = ps.cross_entropy_with_grad(there(rows_of(33)), there(np.full(9, -100)))
    assert np.isnan(loss)
    assert not grad.any()


def test_other_losses_go_the_long_way():
    x, labels = rows_of(8)[:6] * 0, np.arange(6)
    for given, target, options in (
        (x[:, ::2], labels % 4, {}),
        (x, labels.astype(np.int32), {}),
        (np.repeat(x, 2, axis=0)[::2], np.repeat(labels, 2)[::2], {}),
        (x.astype(np.int8), labels, {}),
        (x, labels, {"weight": list(range(8))}),
        (x, labels, {"temperature": 2}),
        (x, labels, {"ignore_index": np.int64(1)}),
        (x, labels, {"label_smoothing": 1}),
        (x[:0], labels[:0], {"reduction": "sum"}),
        (x, np.full((6, 8), 0.125, np.float32), {}),
    ):
        expected = ps.cross_entropy_with_grad(given, target, **options)
        got = ps.cross_entropy_with_grad(there(given), there(target), **options)
        for a, b in zip(got, expected, strict=True):
            assert_same_numbers(a, b)


def test_losses_refused_write_nothing():
    x, labels = there(rows_of(8)), there(np.arange(9) % 8)
    grad = there(np.full((9, 8), 7, np.float32))
    labels[5] = 8
    for error, target, options in (
        (IndexError, labels, {}),
        (ValueError, labels[:8], {}),
        (ValueError, labels % 8, {"label_smoothing": 1.5}),
        (ValueError, labels % 8, {"ignore_index": 2**63}),
        (ValueError, labels % 8, {"temperature": 0.0}),
        (ValueError, labels % 8, {"weight": there(np.ones(7))}),
        (TypeError, labels % 8, {"weight": there(np.ones(8, complex))}),
        (np.exceptions.AxisError, labels % 8, {"axis": 2}),
    ):
        with pytest.raises(error):
            ps.cross_entropy_with_grad(x, target, grad_out=grad, **options)
        assert (grad == 7).all()


def test_a_gradient_over_its_labels_or_weights_or_beside_its_logits():
    x, labels = rows_of(8)[6:], np.arange(3)
    expected = ps.cross_entropy_with_grad(x, labels)
    memory = there(np.zeros(64, np.float32))
    over_labels = memory[:24].reshape(3, 8)
    target = memory.view(np.int64)[2:5]
    target[...] = labels
    got = ps.cross_entropy_with_grad(there(x), target, grad_out=over_labels)
    assert_same_numbers(got[1], expected[1])
    expected_of_weighted = ps.cross_entropy_with_grad(x, labels, weight=np.arange(8.0))[1]
    memory.view(np.float64)[2:10] = np.arange(8.0)
    weight = memory.view(np.float64)[2:10]
    ps.cross_entropy_with_grad(there(x), there(labels), weight=weight, grad_out=over_labels)
    assert_same_numbers(over_labels, expected_of_weighted)
    beside, logits = memory[:24].reshape(3, 8), memory[4:28].reshape(3, 8)
    logits[...] = x
    got = ps.cross_entropy_with_grad(logits, there(labels), grad_out=beside)
    assert_same_numbers(got[1], expected[1])


@pytest.mark.parametrize("n", [1, 100, 600, 9000])
def test_sums_in_the_order_of_the_contract(n):
    x = np.random.default_rng(0).normal(size=n).astype("float32")
    assert_same_numbers(backend.sum(there(x)), np.float64(_dispatch.load("numpy").sum(x)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_cross_entropy(dtype):
    random = np.random.default_rng(0)
    x, y = random.normal(size=1001).astype(dtype), random.random(1001).astype(dtype)
    expected = ps.binary_cross_entropy_with_logits_with_grad(x, y)
    got = ps.binary_cross_entropy_with_logits_with_grad(there(x), there(y))
    assert_same_numbers(got[0], expected[0])
    assert_same_numbers(got[1], expected[1])
    assert_same_numbers(ps.sigmoid(there(x)), ps.sigmoid(x))


@pytest.mark.parametrize("operation", ["softmax", "log_softmax"])
def test_gradients(operation):
    x = np.random.default_rng(0).normal(size=(5, 33)).astype("float32")
    y, vjp = getattr(ps, operation)(x), getattr(ps, f"{operation}_vjp")
    assert_same_numbers(vjp(there(x), there(y)), vjp(x, y))


def test_logsumexp():
    x = rows_of(33, dtype="float16")
    assert_same_numbers(ps.logsumexp(there(x), axis=-1), ps.logsumexp(x, axis=-1))


@pytest.mark.parametrize(("dtype", "regime", "function"), every_kernel.sample(), ids=str)
def test_a_sample_of_every_kernel(dtype, regime, function):
    every_kernel.assert_bits_of_the_cpu(on_device.HarnessArrays(), dtype, regime, function)


@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "regime", "function"), [*every_kernel.calls()], ids=str)
def test_every_kernel(dtype, regime, function):
    every_kernel.assert_bits_of_the_cpu(on_device.HarnessArrays(), dtype, regime, function)


@pytest.mark.parametrize("function", [ps.softmax, ps.log_softmax, ps.logsumexp])
@pytest.mark.parametrize("columns", [20, 50], ids=["cut rows", "whole rows"])
def test_chunks_of_dask_on_a_device_are_computed_there(gpu, function, columns):
    """test_dask.py has all functions, on arrays that refuse NumPy's as CuPy's do."""
    da = pytest.importorskip("dask.array")
    pytest.importorskip("cupy", reason="Dask imports CuPy where a type is called so")
    x = np.random.default_rng(0).normal(size=(9, 50)).astype("float32")
    lazy = da.from_array(x, chunks=(4, columns)).map_blocks(there, meta=there(x[:0]))
    result = function(lazy)
    assert type(result._meta) is on_device.DeviceArray
    got = result.compute(scheduler="synchronous")
    np.testing.assert_allclose(got, function(x), rtol=1e-6)
    assert set(gpu.kernels) == {"short_rows"}
    if function is not ps.logsumexp:  # joined by NumPy's own, which forget the type
        block = result.to_delayed()[0, 0].compute(scheduler="synchronous")
        assert type(block) is on_device.DeviceArray
