"""Array in, array out: every function with the arrays of every library."""

import json
import tracemalloc

import arrays
import numpy as np
import pytest
from cases import BFLOAT16, CALLS, normal, python
from oracles import assert_same_bytes

import pysoftmax as ps
from pysoftmax.backends import _cpu as cpu


@pytest.fixture(params=CALLS)
def function(request):
    return request.param


def call(function, given, **more):
    given_arrays, options = CALLS[function]
    return arrays.parts(
        getattr(ps, function)(**{k: given(v) for k, v in given_arrays.items()}, **options, **more)
    )


def test_every_function_gives_the_bits_of_numpy_in_arrays_of_the_library(backend, function):
    expected = call(function, np.array)
    results = call(function, backend.asarray)
    for result, wanted in zip(results, expected, strict=True):
        assert isinstance(result, backend.array_type | np.generic)
        assert tuple(result.shape) == wanted.shape
        assert_same_bytes(backend.asnumpy(result), wanted, library=backend.name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_function_keeps_the_dtype(backend, function, dtype):
    if dtype == "bfloat16" and BFLOAT16 is None:
        pytest.skip("bfloat16 needs ml_dtypes")
    if backend.name == "array_api_strict" and dtype != "float32":
        pytest.skip("the array API standard has no half precisions")
    dtype = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)

    def cast(a):
        return a.astype(dtype) if a.dtype == np.float64 else a

    options = {"dtype": None} if "dtype" in CALLS[function][1] else {}
    given, other = CALLS[function]
    other = {**other, **options}
    expected = getattr(ps, function)(**{k: cast(a) for k, a in given.items()}, **other)
    given = {k: backend.asarray(cast(a)) for k, a in given.items()}
    result = getattr(ps, function)(**given, **other)
    for got, wanted in zip(arrays.parts(result), arrays.parts(expected), strict=True):
        assert_same_bytes(backend.asnumpy(got), wanted, library=backend.name)


# name -> (function, arrays, options): what semantics and errors must not depend on the library.
inf, nan = np.inf, np.nan
ROWS = [[1.0, nan, 2.0], [1.0, inf, inf], [-inf, -inf, -inf], [-inf, 0.5, 1e308], [3.0, 3.0, -1e4]]
LABELLED = {"logits": ROWS, "target": [0, 1, 2, -100, 1]}
EDGES = {
    **{
        f"{f}, {name}": (f, {"x": x}, options)
        for f in ("softmax", "log_softmax", "logsumexp")
        for name, x, options in [
            ("special rows", ROWS, {}),
            ("no classes", np.zeros((3, 0)), {}),
            ("no rows", np.zeros((0, 3)), {}),
            ("no dimension", 3.0, {}),
            ("all axes", ROWS, {"axis": None}),
            ("integers that would wrap", np.array([[1, 2, 255]], np.uint8), {}),
            ("no such axis", ROWS, {"axis": 2}),
            ("an axis twice", ROWS, {"axis": (1, -1)}),
            ("where of other shape", ROWS, {"where": [True, False]}),
        ]
    },
    **{
        f"temperature {t}": ("softmax", {"x": ROWS}, {"temperature": t})
        for t in (0, inf, 1e-300, -1, nan, [1, 2])
    },
    "a row masked wholly": (
        "log_softmax",
        {"x": ROWS, "where": np.arange(15).reshape(5, 3) > 5},
        {},
    ),
    "labels": ("cross_entropy", LABELLED, {"reduction": "none"}),
    "labels, smoothed": ("cross_entropy_with_grad", LABELLED, {"label_smoothing": 0.1}),
    "only ignored labels": (
        "cross_entropy_with_grad",
        {"logits": ROWS, "target": np.full(5, 7)},
        {"ignore_index": 7},
    ),
    "no labels": (
        "cross_entropy",
        {"logits": np.zeros((0, 3)), "target": np.zeros(0, int)},
        {},
    ),
    "a label too large": ("cross_entropy", {"logits": ROWS, "target": [0, 3, 0, 0, 0]}, {}),
    "a label too small": ("cross_entropy", {"logits": ROWS, "target": [-1, 0, 0, 0, 0]}, {}),
    "too few labels": ("cross_entropy", {"logits": ROWS, "target": [0, 1]}, {}),
    "labels of bool": ("cross_entropy", {"logits": ROWS, "target": [True] * 5}, {}),
    "a probability 0 of -inf": (
        "cross_entropy",
        {"logits": [[-inf, 0.0, 1.0]], "target": [[0.0, 0.5, 0.5]]},
        {},
    ),
    "a negative probability": (
        "cross_entropy",
        {"logits": [[1.0, 0.0]], "target": [[-0.5, 1.5]]},
        {},
    ),
    "smoothing above 1": ("cross_entropy", LABELLED, {"label_smoothing": 2}),
    "weights of other length": ("cross_entropy", LABELLED, {"weight": [1, 2]}),
    "no such reduction": ("cross_entropy", LABELLED, {"reduction": "max"}),
    "binary labels above 1": (
        "binary_cross_entropy_with_logits",
        {"logits": [[1.0]], "target": [[2.0]]},
        {},
    ),
    "binary labels of extreme logits": (
        "binary_cross_entropy_with_logits",
        {"logits": [[inf, -inf, 1e308, 0.0]], "target": [[1.0, 0.0, 0.0, 0.5]]},
        {"reduction": "none"},
    ),
    "products of other shape": (
        "softmax_vjp",
        {"grad_output": np.ones((2, 3)), "probabilities": np.ones((2, 2))},
        {},
    ),
    "a product at temperature 0": (
        "softmax_vjp",
        {"grad_output": ROWS, "probabilities": ROWS},
        {"temperature": 0},
    ),
}


def outcome(asarray, asnumpy, edge):
    """The results of a call, or the error that it raises when it is made or computed."""
    function, given, options = EDGES[edge]
    given = {name: asarray(np.array(a)) for name, a in given.items()}
    try:
        return [asnumpy(r) for r in arrays.parts(getattr(ps, function)(**given, **options))]
    except (IndexError, TypeError, ValueError) as error:
        return error


@pytest.mark.parametrize("edge", EDGES)
def test_edge_cases_and_errors_are_those_of_numpy(backend, edge):
    expected = outcome(np.asarray, np.asarray, edge)
    got = outcome(backend.asarray, backend.asnumpy, edge)
    if isinstance(expected, Exception):
        assert isinstance(got, type(expected))
        # xarray looks at the sizes of dimensions first.
        assert str(got).startswith(str(expected)) or type(got).__name__ == "AlignmentError"
    else:
        for result, wanted in zip(got, expected, strict=True):
            assert_same_bytes(result, wanted, library=backend.name)


def test_an_empty_list_of_labels_goes_with_arrays_of_any_library(backend):
    loss, grad = ps.cross_entropy_with_grad(backend.asarray(np.empty((0, 3))), [])
    assert np.isnan(backend.asnumpy(loss))
    assert grad.shape == (0, 3)


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "sigmoid", "log_sigmoid"])
def test_out_is_written_to_and_returned(backend, function):
    x = normal((3, 5), np.float64)
    out = backend.asarray(np.full_like(x, 7))
    if backend.refuses_out:
        with pytest.raises(TypeError, match=f"out: {backend.refuses_out}"):
            getattr(ps, function)(backend.asarray(x), out=out)
        return
    assert getattr(ps, function)(backend.asarray(x), out=out) is out
    assert_same_bytes(backend.asnumpy(out), getattr(ps, function)(x))


@pytest.mark.parametrize(
    "function", ["cross_entropy_with_grad", "binary_cross_entropy_with_logits_with_grad"]
)
def test_a_gradient_is_written_to_grad_out(backend, function):
    expected = call(function, np.array)
    out = backend.asarray(np.full_like(expected[1], 7))
    if backend.refuses_out:
        with pytest.raises(TypeError, match=f"grad_out: {backend.refuses_out}"):
            call(function, backend.asarray, grad_out=out)
        return
    loss, grad = call(function, backend.asarray, grad_out=out)
    assert grad is out
    assert_same_bytes(backend.asnumpy(loss), expected[0])
    assert_same_bytes(backend.asnumpy(out), expected[1])


def test_arrays_of_two_libraries_in_one_call_are_refused_by_name(backend):
    if backend.name.startswith("numpy"):
        pytest.skip("the other library is NumPy")
    x = np.zeros((2, 3))
    mine = backend.asarray(x)
    kind = f"{backend.array_type.__module__}.{backend.array_type.__qualname__}"
    for mixed in (
        lambda: ps.softmax(mine, where=x > 0),
        lambda: ps.softmax(x, out=mine),
        lambda: ps.log_softmax(mine, temperature=np.ones(2)),
        lambda: ps.logsumexp(x, b=mine),
        lambda: ps.cross_entropy(mine, np.zeros(2, int)),
        lambda: ps.cross_entropy_with_grad(x, x, grad_out=mine),
        lambda: ps.sigmoid(mine, out=x),
        lambda: ps.binary_cross_entropy_with_logits(x, mine),
        lambda: ps.softmax_vjp(mine, x),
    ):
        with pytest.raises(TypeError, match=r"one library, but .*numpy\.ndarray") as refused:
            mixed()
        assert kind in str(refused.value)


@pytest.mark.parametrize("refused", ["complex64", "complex128"])
def test_a_dtype_that_is_not_accepted_is_refused_by_name(backend, refused):
    x = backend.asarray(np.zeros((2, 3), refused))
    for function in (ps.softmax, ps.logsumexp, ps.sigmoid):
        with pytest.raises(TypeError, match=f"float32.*float64.*got {refused}"):
            function(x)


# --- DLPack -------------------------------------------------------------------------------------


class Exporter:
    """An array that does nothing but share its memory."""

    def __init__(self, values, device=(1, 0)):
        self.values, self.dtype, self.place = values, values.dtype, device

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.place


def test_dtype_is_that_of_the_arrays_library_or_numpys():
    strict = pytest.importorskip("array_api_strict")
    x = strict.asarray(normal((3, 4), np.float32))
    for dtype in (strict.float64, "float64", np.float64):
        result = ps.softmax(x, dtype=dtype)
        assert result.dtype == strict.float64
        assert_same_bytes(np.from_dlpack(result), ps.softmax(np.from_dlpack(x), dtype="float64"))
    with pytest.raises(TypeError, match=r"dtype must be float16.*got int32"):
        ps.softmax(x, dtype=strict.int32)


def test_the_device_is_that_of_the_arrays():
    strict = pytest.importorskip("array_api_strict")
    x = strict.ones((3, 4), device=strict.Device("device1"))
    for result in (ps.softmax(x), ps.logsumexp(x, None), ps.sigmoid(x)):
        assert result.device == x.device
    with pytest.raises(ValueError, match=r"x is on .*device1.* and where is on .*CPU_DEVICE"):
        ps.softmax(x, where=strict.asarray(True))


def test_what_only_shares_its_memory_gives_arrays_of_numpy():
    x = normal((3, 4), np.float32)
    result = ps.softmax(Exporter(x))
    assert type(result) is np.ndarray
    assert_same_bytes(result, ps.softmax(x))
    out = Exporter(np.empty_like(x))
    assert ps.softmax(Exporter(x), out=out) is out
    assert_same_bytes(out.values, result)


def test_a_read_only_exporter_is_read_but_not_written_to():
    x = normal((3, 4), np.float32)
    x.flags.writeable = False
    assert_same_bytes(ps.softmax(Exporter(x)), ps.softmax(x))
    with pytest.raises(ValueError, match="out is read-only"):
        ps.softmax(Exporter(x), out=Exporter(x))


def test_pinned_memory_of_the_host_is_the_cpus():
    x = normal((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"x is on \(3, 0\) and out is on \(1, 0\)"):
        ps.softmax(Exporter(x, (3, 0)), out=Exporter(x))


def test_another_device_is_refused_by_its_number():
    with pytest.raises(TypeError, match=r"(?s)x: expected .*CPU.*CUDA.*device 8 of DLPack"):
        ps.softmax(Exporter(np.zeros((2, 3)), (8, 0)))


def test_an_array_on_a_cuda_device_names_the_extra_that_reads_it():
    source = """
import sys
sys.modules["cupy"] = None
import numpy, pysoftmax
from test_arrays import Exporter
try:
    pysoftmax.softmax(Exporter(numpy.zeros((2, 3)), (2, 0)))
except ImportError as error:
    print(error)
"""
    assert "pip install 'pysoftmax[cuda13]'" in python("-c", source)


# --- pandas, masked arrays, memory maps ---------------------------------------------------------


@pytest.fixture
def frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(normal((3, 2), np.float32), list("abc"), ["yes", "no"])


def test_a_data_frame_keeps_its_labels(frame):
    x = frame.to_numpy()
    for function in (ps.softmax, ps.log_softmax, ps.sigmoid, ps.log_sigmoid):
        result = function(frame)
        assert type(result) is type(frame)
        assert result.index.equals(frame.index)
        assert result.columns.equals(frame.columns)
        assert_same_bytes(result.to_numpy(), function(x))
    gradient = ps.cross_entropy_with_grad(frame, np.array([0, 1, 1]))[1]
    assert gradient.index.equals(frame.index)
    assert gradient.columns.equals(frame.columns)


def test_a_series_keeps_its_labels_and_its_name(frame):
    result = ps.sigmoid(frame["no"])
    assert type(result) is type(frame["no"])
    assert result.name == "no"
    assert result.index.equals(frame.index)


@pytest.mark.parametrize("name", ["Float32", "Float64", "Int8", "Int64", "boolean"])
def test_nullable_columns_are_their_numbers_and_nan_where_one_is_missing(name):
    pandas = pytest.importorskip("pandas")
    numbers = np.array([[0, 1, 1], [1, 0, 0]], name.lower().replace("boolean", "bool"))
    frame = pandas.DataFrame(numbers).astype(name)
    result = ps.softmax(frame)
    np.testing.assert_array_equal(result.to_numpy(), ps.softmax(numbers))
    assert result[0].dtype == ps.softmax(numbers).dtype
    frame.iloc[0, 2] = pandas.NA
    result = ps.softmax(frame)
    assert result.isna().all(axis=1).tolist() == [True, False]
    assert result[0].dtype == ps.softmax(numbers).dtype


def test_what_is_one_number_for_each_row_is_a_series_with_the_labels_of_the_rows(frame):
    x, labels = frame.to_numpy(), np.array([0, 1, 1])
    for result, expected in [
        (ps.logsumexp(frame), ps.logsumexp(x)),
        (ps.logsumexp(frame, return_sign=True)[1], np.ones(3, np.float32)),
        (
            ps.cross_entropy(frame, labels, reduction="none"),
            ps.cross_entropy(x, labels, reduction="none"),
        ),
    ]:
        assert type(result) is type(frame["no"])
        assert result.index.equals(frame.index)
        assert_same_bytes(result.to_numpy(), expected)
    assert ps.logsumexp(frame, 0).index.equals(frame.columns)


def test_what_has_no_labels_is_an_array(frame):
    assert type(ps.logsumexp(frame, None)) is np.float32
    assert type(ps.logsumexp(frame, keepdims=True)) is np.ndarray
    assert type(ps.logsumexp(frame[:1], b=np.ones((4, 2)))) is np.ndarray


@pytest.mark.parametrize("masked", ["logits", "target", "weight"])
def test_losses_refuse_masked_entries_and_say_what_to_do(masked):
    given = {"logits": np.zeros((2, 3)), "target": np.array([0, 2]), "weight": np.ones(3)}
    given[masked] = np.ma.array(given[masked])
    expected = ps.cross_entropy(**given)  # nothing is masked yet
    given[masked][..., 0] = np.ma.masked
    for function in (ps.cross_entropy, ps.cross_entropy_with_grad):
        with pytest.raises(ValueError, match=f"{masked} has masked entries; give"):
            function(**given)
    assert expected == ps.cross_entropy(**{k: np.asarray(a) for k, a in given.items()})


@pytest.mark.parametrize("masked", ["logits", "target", "weight", "pos_weight"])
def test_binary_losses_refuse_masked_entries_and_say_what_to_do(masked):
    given = dict.fromkeys(("logits", "target", "weight", "pos_weight"), np.ones((2, 3)))
    given[masked] = np.ma.array(given[masked], mask=np.eye(2, 3))
    with pytest.raises(ValueError, match=f"{masked} has masked entries; give"):
        ps.binary_cross_entropy_with_logits(**given)


def test_factors_that_are_masked_are_refused():
    with pytest.raises(ValueError, match="b has masked entries; give what takes no part"):
        ps.logsumexp([1.0, 2.0], b=np.ma.array([1.0, 2.0], mask=[0, 1]))


def test_factors_may_add_rows_to_what_is_masked():
    x = np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 1], [1, 1]])
    result = ps.logsumexp(x, b=np.ones((3, 2, 2)))
    assert result.tolist() == [[1.0, None]] * 3


def test_a_mask_of_a_mask_and_a_masked_temperature_are_refused():
    x, where = normal((3, 2), np.float64), np.ma.array([True, True], mask=[0, 1])
    for given in (x, np.ma.array(x, mask=x > 1)):
        for function in (ps.softmax, ps.log_softmax, ps.logsumexp):
            with pytest.raises(ValueError, match="where has masked entries; fill it"):
                function(given, where=where)
    temperature = np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])
    with pytest.raises(ValueError, match="temperature has masked entries; give every row"):
        ps.softmax(x, temperature=temperature)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_product_leaves_out_what_was_masked(dtype, name):
    forward, product = getattr(ps, name), getattr(ps, f"{name}_vjp")
    x, g = normal((3, 5), dtype), normal((3, 5), dtype, seed=1)
    mask = x > 1
    y = forward(np.ma.array(x, mask=mask))
    result = product(np.ma.array(np.where(mask, 99, g), mask=mask), y)
    assert isinstance(result, np.ma.MaskedArray)
    assert np.array_equal(np.ma.getmaskarray(result), mask)
    plain = product(np.where(mask, 0, g).astype(dtype), forward(x, where=~mask))
    assert_same_bytes(result.data, plain)


def test_a_memory_map_is_read_and_written_where_it_is(tmp_path):
    x = normal((1000, 1000), np.float32)
    x.tofile(tmp_path / "x")
    source = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    target = np.memmap(tmp_path / "y", np.float32, "w+", shape=x.shape)
    tracemalloc.start()
    try:
        assert ps.softmax(source, out=target) is target
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 10
    finally:
        tracemalloc.stop()
    target.flush()
    assert_same_bytes(np.fromfile(tmp_path / "y", np.float32).reshape(x.shape), ps.softmax(x))
    assert type(ps.softmax(source)) is np.ndarray
    with pytest.raises(ValueError, match="out is read-only"):
        ps.softmax(source, out=source)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_half_precisions_are_widened_exactly(any_target, dtype):
    halves = np.arange(2**16, dtype=np.uint16).view(dtype)
    floats = np.empty(halves.shape, np.float32)
    cpu.widen(halves, floats)
    np.testing.assert_array_equal(floats, halves.astype(np.float32))
    assert_same_bytes(np.signbit(floats), np.signbit(halves))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_half_precisions_are_rounded_as_numpy_and_ml_dtypes_do(any_target, dtype):
    """Every half, the middle between it and the next, and a little to either side of that."""
    halves = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        ends = halves.astype(np.float32)
        next_ends = np.roll(ends, -1)
        middle = ends / 2 + next_ends / 2
        floats = np.concatenate(
            [ends, middle, np.nextafter(middle, ends), np.nextafter(middle, next_ends)]
            + [np.float32([3e38, -3e38, 1e-45, -1e-45, 65519.99, 65520])]
        )
        expected = floats.astype(dtype)
    rounded = np.empty(floats.shape, dtype)
    cpu.narrow(floats, rounded)
    is_number = ~np.isnan(floats)
    assert np.isnan(rounded[~is_number].astype(np.float32)).all()
    assert_same_bytes(rounded[is_number], expected[is_number])


PARTS = {
    "short rows": ((3000, 10), -1),
    "rows": ((70, 300), -1),
    "long rows": ((3, 40_000), -1),
    "a row for several threads": ((1_100_000,), 0),
    "neighbours": ((3, 40, 700), 1),
    "few neighbours": ((500, 7, 5), 1),
    "more neighbours than fit": ((40_000, 40), 0),
}
LAYOUTS = {
    "as they are": lambda x: x,
    "turned": lambda x: np.asfortranarray(x),
    "reversed": lambda x: x[::-1].copy()[::-1],
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", PARTS)
def test_half_precision_is_single_precision_rounded_in_every_part(half, case, layout, threads):
    shape, axis = PARTS[case]
    x, g = normal(shape, np.float32).astype(half), normal(shape, np.float32, seed=1).astype(half)
    where = normal(shape, np.float32, seed=2) > 0
    of_rows = np.delete(shape, axis)
    degrees = np.linspace(0.5, 2, int(np.prod(of_rows))).reshape(of_rows)
    arrange = LAYOUTS[layout]

    def single(function, *arrays, **options):
        arrays = [np.ascontiguousarray(a.astype(np.float32)) for a in arrays]
        with np.errstate(over="ignore"):
            return function(*arrays, **options).astype(half)

    with ps.num_threads(threads):
        for options in ({}, {"temperature": degrees}, {"where": where}, {"temperature": 3.0}):
            for function in (ps.softmax, ps.log_softmax):
                out = arrange(np.zeros_like(x))
                assert function(arrange(x), axis, out=out, **options) is out
                assert_same_bytes(out, single(function, x, axis=axis, **options))
        lse = ps.logsumexp(arrange(x), axis)
        assert_same_bytes(np.asarray(lse), np.asarray(single(ps.logsumexp, x, axis=axis)))
        p = ps.softmax(x, axis)
        for function in (ps.softmax_vjp, ps.log_softmax_vjp):
            expected = single(function, g, p, axis=axis)
            assert_same_bytes(function(arrange(g), arrange(p), axis), expected)
            assert_same_bytes(function(g.astype(np.float32), arrange(p), axis), expected)
            out = arrange(g).copy(order="K")
            assert_same_bytes(function(out, p, axis, out=out), expected)
        in_single = ps.softmax(arrange(x), axis, dtype=np.float32)
        assert_same_bytes(in_single, ps.softmax(x.astype(np.float32), axis))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 10), (40_000, 3), (70, 1000)])
def test_losses_of_half_precision_are_those_of_single_precision(half, shape, threads):
    x = normal(shape, np.float32).astype(half)
    labels = np.arange(shape[0]) % shape[1]
    labels[1::7] = -100
    fractions = ps.softmax(normal(shape, np.float32, seed=1).astype(half))
    weight = np.linspace(0.5, 2, shape[1])

    def assert_close_after_rounding(function, target, **options):
        for reduction in ("none", "sum", "mean"):
            loss, grad = function(x, target, reduction=reduction, **options)
            with np.errstate(over="ignore"):
                same = target.astype(np.float32) if target.dtype == half else target
                wide, wide_grad = function(
                    x.astype(np.float32), same, reduction=reduction, **options
                )
                expected = np.asarray(wide).astype(half)
                assert_same_bytes(grad, wide_grad.astype(half))
            assert np.asarray(loss).dtype == half
            if reduction == "none":
                assert_same_bytes(loss, expected)
            else:  # rounded once, where the expected value was rounded to float32 before
                unit = 2.0**-7 if half.char == "E" else 2.0**-10
                np.testing.assert_allclose(np.float64(loss), expected.astype(float), rtol=unit)
            out = x.copy()
            assert_same_bytes(
                function(out, target, reduction=reduction, grad_out=out, **options)[1], grad
            )

    with ps.num_threads(threads):
        for target in (labels, fractions):
            for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}):
                assert_close_after_rounding(ps.cross_entropy_with_grad, target, **options)
        for options in ({}, {"weight": 0.3}, {"pos_weight": weight.astype(half)}):
            assert_close_after_rounding(
                ps.binary_cross_entropy_with_logits_with_grad, fractions, **options
            )


def test_targets_of_half_precision_outside_their_interval_are_refused(half):
    x = np.zeros((2, 3), half)
    for value in (-0.0, 0.0, 1.0):
        ps.binary_cross_entropy_with_logits(x, np.full_like(x, value))
    for value in (-6e-8, 1.01, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"target must be in \[0, 1\]"):
            ps.binary_cross_entropy_with_logits(x, np.full_like(x, value))
    for value in (-6e-8, -1, np.nan, -np.inf):
        with pytest.raises(ValueError, match="target probabilities must be in"):
            ps.cross_entropy(x, np.full_like(x, value))


def test_half_precision_from_a_memory_map_is_converted_in_parts(tmp_path):
    x = normal((2000, 1000), np.float16)
    x.tofile(tmp_path / "x")
    source = np.memmap(tmp_path / "x", np.float16, "r", shape=x.shape)
    target = np.memmap(tmp_path / "y", np.float16, "w+", shape=x.shape)
    tracemalloc.start()
    try:
        ps.log_softmax(source, out=target)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 2
    finally:
        tracemalloc.stop()
    assert_same_bytes(np.asarray(target), ps.log_softmax(x))


# --- the table of README.md ---------------------------------------------------------------------


@pytest.mark.parametrize("name", arrays.LIBRARIES)
def test_the_table_of_the_readme_says_what_each_library_can_do(name):
    found = arrays.tried(arrays.LIBRARIES[name]())
    kept = json.loads(arrays.KEPT.read_text())
    assert kept.get(name) == found, "python tests/arrays.py docs/results/arrays.json"


def test_the_table_has_no_other_libraries():
    assert list(json.loads(arrays.KEPT.read_text())) == list(arrays.LIBRARIES)


# --- imports ------------------------------------------------------------------------------------

HEAVY = ("torch", "jax", "xarray", "pandas", "dask", "cupy", "array_api_strict", "ml_dtypes")
SOURCE = """
import sys
import numpy as np
import pysoftmax as ps
def heavy():
    return {{name.partition(".")[0] for name in sys.modules}} & set({heavy})
{before}
before = heavy()
{use}
print(sorted(heavy() - before))
"""
# What a library imports itself, when it is imported or first used, is its own business.
USES = {
    "numpy": "x = np.zeros((2, 3))",
    "numpy.ma": "x = np.ma.zeros((2, 3))",
    "torch": "import torch; x = torch.zeros(2, 3)",
    "jax": "import jax; x = jax.numpy.zeros((2, 3))",
    "array_api_strict": "import array_api_strict; x = array_api_strict.zeros((2, 3))",
    "xarray": "import xarray; x = xarray.apply_ufunc(abs, xarray.DataArray(np.ones((2, 3))))",
    "pandas": "import pandas; x = pandas.DataFrame(np.zeros((2, 3)))",
    "dask": "import dask.array; dask.array.zeros(2).compute(); x = dask.array.ones((2, 3))",
}


def imported(before, use):
    return python("-c", SOURCE.format(before=before, use=use, heavy=HEAVY)).strip()


@pytest.mark.parametrize("name", USES)
def test_a_call_imports_no_library_but_that_of_its_arrays(name):
    pytest.importorskip(name)
    use = "ps.softmax(x); ps.logsumexp(x); ps.sigmoid(x); ps.softmax_vjp(x, x)"
    assert imported(USES[name], use) == "[]"


def test_an_unknown_array_imports_no_library_and_neither_does_info():
    use = """
try:
    ps.softmax(object())
except TypeError:
    ps.info()
"""
    assert imported("", use) == "[]"


def test_every_library_of_the_tests_is_tried_for_imports():
    assert set(USES) == set(arrays.LIBRARIES) - {"cupy"}  # without a GPU it makes no array
