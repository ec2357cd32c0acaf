"""Dask arrays: lazy out of lazy, the results of arrays in memory, whatever the chunks."""

import functools
import textwrap
import threading
import types

import device_arrays
import numpy as np
import oracles
import pytest
from cases import BFLOAT16, normal, python
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same_bytes, assert_ulp

import pysoftmax as ps
from pysoftmax import _dispatch

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

inf = np.inf


@pytest.fixture(autouse=True)
def synchronous():
    """Tasks run one after the other, unless a test says otherwise."""
    with dask.config.set(scheduler="synchronous"):
        yield


def compute(result):
    """A result in memory: one array, or loss and gradient."""
    return dask.compute(*result) if isinstance(result, tuple) else (result.compute(),)


def in_parts(result):
    return result if isinstance(result, tuple) else (result,)


# --- every public function, of arrays (rows, classes) -------------------------------------------


def inputs(x):
    """The other arguments for logits x (rows, classes), the same in every test."""
    rng = np.random.default_rng(x.size)
    rows, classes = x.shape
    labels = rng.integers(0, max(classes, 1), rows)
    return {
        "labels": labels,
        "ignored": np.where(np.arange(rows) % 3 == 0, -100, labels),
        "likely": ps.softmax(rng.normal(0, 2, x.shape)).astype(x.dtype),
        "bits": rng.random(x.shape).astype(x.dtype),
        "mask": rng.random(x.shape) < 0.7,
        "gradient": rng.normal(0, 1, x.shape).astype(x.dtype),
        "factors": rng.normal(0, 1, x.shape).astype(x.dtype),
        "class_weight": rng.uniform(0.5, 2, classes),
        "temperature": rng.uniform(0.5, 2, rows),
    }


# name -> call(x, other arguments, d): d makes a dask.array of whatever has the rows or the classes.
CALLS = {
    "softmax": lambda x, a, d: ps.softmax(d(x)),
    "softmax, temperature": lambda x, a, d: ps.softmax(d(x), temperature=0.7),
    "softmax, temperatures": lambda x, a, d: ps.softmax(
        d(x), temperature=a["temperature"].tolist()
    ),
    "softmax, lazy temperatures": lambda x, a, d: ps.softmax(d(x), temperature=d(a["temperature"])),
    "softmax, where": lambda x, a, d: ps.softmax(d(x), where=d(a["mask"])),
    "softmax, dtype": lambda x, a, d: ps.softmax(d(x), dtype="float32"),
    "log_softmax": lambda x, a, d: ps.log_softmax(d(x)),
    "log_softmax, where": lambda x, a, d: ps.log_softmax(d(x), where=d(a["mask"])),
    "log_softmax, temperature": lambda x, a, d: ps.log_softmax(d(x), temperature=1.7),
    "logsumexp": lambda x, a, d: ps.logsumexp(d(x)),
    "logsumexp, keepdims": lambda x, a, d: ps.logsumexp(d(x), keepdims=True),
    "logsumexp, where": lambda x, a, d: ps.logsumexp(d(x), where=d(a["mask"])),
    "logsumexp, b": lambda x, a, d: ps.logsumexp(d(x), b=abs(d(a["factors"]))),
    "logsumexp, sign": lambda x, a, d: ps.logsumexp(d(x), b=d(a["factors"]), return_sign=True),
    "sigmoid": lambda x, a, d: ps.sigmoid(d(x)),
    "log_sigmoid": lambda x, a, d: ps.log_sigmoid(d(x)),
    "softmax_vjp": lambda x, a, d: ps.softmax_vjp(d(a["gradient"]), d(a["likely"])),
    "log_softmax_vjp": lambda x, a, d: ps.log_softmax_vjp(
        d(a["gradient"]), d(np.log(a["likely"])), temperature=0.7
    ),
    "binary_cross_entropy_with_logits": lambda x, a, d: ps.binary_cross_entropy_with_logits(
        d(x), d(a["bits"]), reduction="none"
    ),
    "binary_cross_entropy_with_logits, mean": lambda x, a, d: ps.binary_cross_entropy_with_logits(
        d(x), d(a["bits"]), weight=d(a["likely"])
    ),
    "binary_cross_entropy_with_logits_with_grad": (
        lambda x, a, d: ps.binary_cross_entropy_with_logits_with_grad(
            d(x), d(a["bits"]), pos_weight=d(a["class_weight"]), reduction="sum"
        )
    ),
}


def _entropy(with_grad, target, **options):
    def call(x, a, d):
        given = {k: d(a[v]) if isinstance(v, str) and v in a else v for k, v in options.items()}
        function = ps.cross_entropy_with_grad if with_grad else ps.cross_entropy
        return function(d(x), d(a[target]), **given)

    return call


LOSSES = {
    "labels": {"target": "labels"},
    "ignored labels": {"target": "ignored", "weight": "class_weight"},
    "smoothed labels": {"target": "ignored", "label_smoothing": 0.1, "weight": "class_weight"},
    "probabilities": {"target": "likely", "weight": "class_weight", "temperature": "temperature"},
    "smoothed probabilities": {"target": "likely", "label_smoothing": 0.3, "temperature": 2.0},
}
for _name, _options in LOSSES.items():
    for _reduction in ("none", "sum", "mean"):
        for _with_grad in (False, True):
            _function = "cross_entropy_with_grad" if _with_grad else "cross_entropy"
            CALLS[f"{_function}, {_name}, {_reduction}"] = _entropy(
                _with_grad, reduction=_reduction, **_options
            )


def chunked(rows, columns):
    """What makes dask.arrays: chunks of rows, of classes, and of both for two dimensions."""

    def lazy(array):
        if array.ndim == 2:
            return da.from_array(array, chunks=(rows, columns))
        if array.dtype == np.float64 and array.size == sum(columns) != sum(rows):
            return da.from_array(array, chunks=(columns,))
        return da.from_array(array, chunks=(rows,))

    return lazy


def in_memory(array):
    return array


@pytest.fixture(params=CALLS)
def name(request):
    return request.param


# --- lazy, and the same ---------------------------------------------------------------------------


def never(*_arguments, **_options):
    raise AssertionError("something was computed")


@pytest.mark.parametrize("columns", [(50,), (20, 30)], ids=["whole rows", "cut rows"])
def test_nothing_is_computed_and_shape_chunks_dtype_and_meta_are_right(name, columns):
    x = normal((7, 50), "float32")
    want = in_parts(CALLS[name](x, inputs(x), in_memory))
    with dask.config.set(scheduler=never):
        got = in_parts(CALLS[name](x, inputs(x), chunked((3, 4), columns)))
    assert len(got) == len(want)
    for lazy, array in zip(got, want, strict=True):
        assert isinstance(lazy, da.Array)
        assert lazy.shape == np.shape(array)
        assert lazy.dtype == lazy._meta.dtype == array.dtype
        assert type(lazy._meta) is np.ndarray
        assert lazy._meta.ndim == lazy.ndim
        if lazy.shape == x.shape:
            assert lazy.chunks == ((3, 4), columns)
        elif lazy.ndim:
            assert lazy.chunks[0] == (3, 4)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_whole_rows_have_the_bits_of_arrays_in_memory(name, dtype):
    x = normal((7, 50), dtype)
    want = in_parts(CALLS[name](x, inputs(x), in_memory))
    got = compute(CALLS[name](x, inputs(x), chunked((3, 4), (50,))))
    for a, b in zip(got, want, strict=True):
        assert_same_bytes(a, b, call=name)


# name -> call of logits, a mask and factors
MASKED = {
    "softmax": lambda x, w, b: ps.softmax(x),
    "softmax, where": lambda x, w, b: ps.softmax(x, where=w),
    "softmax, all": lambda x, w, b: ps.softmax(x, None, temperature=0.7),
    "log_softmax": lambda x, w, b: ps.log_softmax(x, 0),
    "logsumexp": lambda x, w, b: ps.logsumexp(x),
    "logsumexp, where": lambda x, w, b: ps.logsumexp(x, where=w, keepdims=True),
    "logsumexp, b": lambda x, w, b: ps.logsumexp(x, b=b),
    "logsumexp, sign": lambda x, w, b: ps.logsumexp(x, b=b, return_sign=True)[1],
    "logsumexp, more rows": lambda x, w, b: ps.logsumexp(x, b=[[[1.0]], [[2.0]]]),
    "softmax_vjp": lambda x, w, b: ps.softmax_vjp(x, ps.softmax(x)),
    "log_softmax_vjp": lambda x, w, b: ps.log_softmax_vjp(b, ps.log_softmax(x)),
    "sigmoid": lambda x, w, b: ps.sigmoid(x),
}


@pytest.fixture
def masked():
    """Logits with masked entries, and a row that is masked wholly."""
    x = normal((6, 8), "float64")
    return np.ma.array(x, mask=(x > 1) | (np.arange(6) == 2)[:, None])


@pytest.mark.parametrize("columns", [8, 3])
@pytest.mark.parametrize("name", MASKED)
def test_masks_of_numpy_ma_are_honoured_in_blocks_too(name, columns, masked):
    rng = np.random.default_rng(1)
    arrays = masked, rng.random((6, 8)) < 0.7, rng.normal(0, 1, (6, 8))
    result = MASKED[name](*(da.from_array(a, chunks=(4, columns)) for a in arrays))
    got, want = result.compute(), MASKED[name](*arrays)
    assert type(got) is type(result._meta) is np.ma.MaskedArray
    assert np.array_equal(np.ma.getmaskarray(got), np.ma.getmaskarray(want))
    np.testing.assert_allclose(np.ma.getdata(got), np.ma.getdata(want), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("columns", [8, 3])
def test_what_must_not_be_masked_is_refused_when_it_is_computed(columns, masked):
    lazy = da.from_array(masked, chunks=(4, columns))
    plain = da.from_array(masked.data, chunks=(4, columns))
    labels = da.from_array(np.ma.array(np.zeros(6, int), mask=masked[:, 0].mask), chunks=4)
    for name, result in [
        ("logits", ps.cross_entropy(lazy, da.zeros(6, dtype=int, chunks=4))),
        ("target", ps.cross_entropy(plain, labels)),
        ("weight", ps.cross_entropy(plain, da.zeros(6, dtype=int), weight=lazy[0])),
        ("logits", ps.binary_cross_entropy_with_logits(lazy, da.zeros((6, 8)))),
        ("pos_weight", ps.binary_cross_entropy_with_logits(plain, plain > 0, pos_weight=lazy)),
        ("b", ps.logsumexp(plain, b=lazy)),
        ("where", ps.softmax(plain, where=lazy > 0)),
        ("temperature", ps.softmax(plain, temperature=abs(lazy[:, 0]))),
    ]:
        with pytest.raises(ValueError, match=f"{name} has masked entries; "):
            result.compute()


@pytest.fixture
def on_device(monkeypatch):
    """Blocks of a library that refuses what CuPy refuses, by a backend of a third party."""
    entry = types.SimpleNamespace(name="device", load=lambda: device_arrays.backend)
    monkeypatch.setattr(_dispatch, "third_party", lambda: {"device": entry})
    monkeypatch.setattr(_dispatch, "FOUND", {})
    _dispatch.load.cache_clear()

    def moved(lazy):
        meta = device_arrays.DeviceArray(lazy._meta)
        return lazy.map_blocks(device_arrays.DeviceArray, dtype=lazy.dtype, meta=meta)

    yield moved
    _dispatch.load.cache_clear()


@pytest.mark.parametrize("columns", [(50,), (20, 30)], ids=["whole rows", "cut rows"])
def test_blocks_of_another_library_are_computed_on_by_its_backend(name, columns, on_device):
    x = normal((7, 50), "float32")
    make = chunked((3, 4), columns)
    lazy = in_parts(CALLS[name](x, inputs(x), lambda array: on_device(make(array))))
    want = compute(CALLS[name](x, inputs(x), make))
    for result, wanted in zip(lazy, want, strict=True):
        got = result.compute()
        assert type(got) is type(result._meta) is device_arrays.DeviceArray
        assert (result._meta.dtype, result._meta.ndim) == (got.dtype, got.ndim)
        assert_same_bytes(got.values, np.asarray(wanted), call=name)


def test_lists_go_with_blocks_of_another_library(on_device):
    x, mask = normal((4, 6), "float32"), [True, False, True, True, True, False]
    for columns in (6, 2):
        lazy = on_device(da.from_array(x, chunks=(2, columns)))
        for got, want in [
            (ps.softmax(lazy, where=mask), ps.softmax(x, where=mask)),
            (ps.logsumexp(lazy, b=[1, 2, 3, 4, 5, 6]), ps.logsumexp(x, b=[1, 2, 3, 4, 5, 6])),
            (ps.cross_entropy(lazy, [0, 1, 2, 3]), ps.cross_entropy(x, [0, 1, 2, 3])),
        ]:
            np.testing.assert_allclose(got.compute().values, want, rtol=1e-6)
    loss = ps.cross_entropy(x.tolist(), on_device(da.zeros(4, dtype=int, chunks=2)))
    assert type(loss.compute()) is device_arrays.DeviceArray


# float64 sums over a million rows end in other bits where they are added in another order.
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sums_over_many_rows_have_the_bits_of_arrays_in_memory(reduction):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(0, 3, (700_001, 2)), rng.integers(0, 2, 700_001)
    lazy, lazy_labels = da.from_array(x, chunks=(99_999, 2)), da.from_array(labels, chunks=13_000)
    options = {"weight": [0.3, 1.7], "reduction": reduction}
    want = ps.cross_entropy(x, labels, **options)
    assert_same_bytes(ps.cross_entropy(lazy, lazy_labels, **options).compute(), want)
    want = ps.binary_cross_entropy_with_logits(x, x > 0, reduction=reduction)
    got = ps.binary_cross_entropy_with_logits(lazy, lazy > 0, reduction=reduction)
    assert_same_bytes(got.compute(), want)


def cuts(total):
    """All ways to cut so many into chunks, empty ones included."""
    places = st.lists(st.integers(0, total), max_size=4)
    return places.map(lambda at: tuple(int(n) for n in np.diff([0, *sorted(at), total])))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(CALLS)), rows=cuts(9), columns=cuts(40), data=st.data())
def test_any_chunks_of_rows_give_the_same_bits(name, rows, columns, data):
    x = normal((9, 40), data.draw(st.sampled_from(["float32", "float64"])), seed=3)
    with dask.config.set(scheduler="synchronous"):
        got = compute(CALLS[name](x, inputs(x), chunked(rows, columns)))
        want = compute(CALLS[name](x, inputs(x), chunked((9,), columns)))
    for a, b in zip(got, want, strict=True):
        assert_same_bytes(a, b, call=name, rows=rows, columns=columns)


# --- cut rows: accuracy ---------------------------------------------------------------------------


def _peak_over_plain(n):
    """One logit with as much probability as all others, which lie in other chunks too."""
    x = np.random.default_rng(n).normal(0, 1e-3, (12, n)) - np.log(n)
    x[:, 5] = 0
    return x


ROWS = {
    "normal": lambda n: normal((12, n), "float64"),
    "wide": lambda n: normal((12, n), "float64", scale=100),
    "flat": lambda n: normal((12, n), "float64", scale=1e-3),
    "ascending": lambda n: np.sort(normal((12, n), "float64"), axis=1),
    "far from zero": lambda n: normal((12, n), "float64") + 1e6,
    "a peak over a plain": _peak_over_plain,
    "one certain class": lambda n: normal((12, n), "float64") + 60 * (np.arange(n) == n - 2),
}


@pytest.fixture(params=ROWS)
def rows(request):
    return ROWS[request.param]


@pytest.mark.parametrize(("n", "columns"), [(97, 10), (5000, 130), (5000, 2500)])
def test_cut_rows_are_within_the_table(rows, n, columns, dtype):
    x = rows(n).astype(dtype)
    lazy = da.from_array(x, chunks=(5, columns))
    assert_ulp("softmax", ps.softmax(lazy).compute(), oracles.softmax(x))
    assert_ulp("log_softmax", ps.log_softmax(lazy).compute(), oracles.log_softmax(x))
    scale = oracles.logsumexp_scale(x)
    assert_ulp("logsumexp", ps.logsumexp(lazy).compute(), oracles.logsumexp(x), scale=scale)


@pytest.mark.parametrize(("n", "columns"), [(97, 10), (5000, 1300)])
@pytest.mark.parametrize("target", ["labels", "likely"])
def test_losses_and_gradients_of_cut_rows_are_within_the_table(rows, n, columns, target, dtype):
    x = rows(n).astype(dtype)
    truth = inputs(x)[target]
    if target == "labels":
        truth[::2] = x.argmax(axis=1)[::2]
    lazy = da.from_array(x, chunks=(5, columns))
    lazy_truth = da.from_array(truth, chunks=7)
    result = ps.cross_entropy_with_grad(lazy, lazy_truth, reduction="none")
    loss, grad = dask.compute(*result)
    want = oracles.cross_entropy(x, truth)
    assert_ulp("cross_entropy", loss, want.loss)
    assert_ulp("cross_entropy_with_grad", grad, want.gradient, scale=want.scale)
    mean = ps.cross_entropy(lazy, lazy_truth).compute()
    assert_ulp("cross_entropy, reduced", mean, want.loss.sum() / want.divisor)


@pytest.mark.parametrize("function", ["softmax_vjp", "log_softmax_vjp"])
def test_products_of_cut_rows_are_within_the_table(function, dtype):
    rng = np.random.default_rng(0)
    grad, x = rng.normal(0, 1, (6, 3000)).astype(dtype), normal((6, 3000), dtype)
    values = getattr(ps, function.removesuffix("_vjp"))(x)
    lazy = [da.from_array(a, chunks=(4, 700)) for a in (grad, values)]
    want, scale = getattr(oracles, function)(grad, values)
    assert_ulp(function, getattr(ps, function)(*lazy).compute(), want, scale=scale)


def test_log_probabilities_near_zero_keep_their_accuracy_across_chunks():
    lazy = da.from_array([0.0, 50.0, 0.0], chunks=1)
    want = ps.log_softmax([0.0, 50.0, 0.0])
    np.testing.assert_allclose(ps.log_softmax(lazy).compute(), want, rtol=4e-16)
    loss = ps.cross_entropy(lazy[None], [1]).compute()
    np.testing.assert_allclose(loss, -want[1], rtol=4e-16)


@pytest.mark.parametrize("axis", [None, (0, 2), (1, 2), 0, 1, -1])
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_any_axes(function, axis):
    x = normal((6, 5, 7), "float32")
    lazy = da.from_array(x, chunks=((2, 3, 1), (5,), (3, 4)))
    assert np.allclose(
        getattr(ps, function)(lazy, axis).compute(),
        getattr(ps, function)(x, axis),
        rtol=4 * np.finfo("f4").eps,
    )


def test_classes_along_any_axis():
    x, labels = normal((4, 9, 5), "float64"), np.random.default_rng(1).integers(0, 9, (4, 5))
    lazy, lazy_labels = da.from_array(x, chunks=(3, 4, 2)), da.from_array(labels, chunks=(1, 5))
    weight = np.linspace(1, 2, 9)
    for reduction in ("none", "mean"):
        options = {"axis": 1, "reduction": reduction, "label_smoothing": 0.1}
        want = ps.cross_entropy_with_grad(x, labels, weight=weight, **options)
        got = ps.cross_entropy_with_grad(lazy, lazy_labels, weight=weight.tolist(), **options)
        for a, b in zip(compute(got), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-17)


@pytest.mark.skipif(BFLOAT16 is None, reason="needs ml_dtypes")
def test_half_precision_of_cut_rows_is_rounded_once():
    x = normal((5, 300), BFLOAT16)
    lazy = da.from_array(x, chunks=(2, 70))
    assert_ulp("softmax", ps.softmax(lazy).compute(), oracles.softmax(x))
    assert_ulp("log_softmax", ps.log_softmax(lazy).compute(), oracles.log_softmax(x))


# --- cut rows: special values ---------------------------------------------------------------------

SPECIAL = {
    "NaN": [1.0, np.nan, 2.0, 3.0],
    "+inf": [1.0, 2.0, inf, 3.0],
    "two +inf": [inf, 2.0, inf, 3.0],
    "+inf and NaN": [inf, 2.0, np.nan, 3.0],
    "only -inf": [-inf] * 4,
    "-inf and a number": [-inf, -inf, -inf, 3.0],
    "-inf in a chunk with a number": [-inf, 1.0, 0.0, -inf],
    "ties": [2.0, 1.0, 2.0, 2.0],
    "the largest numbers": [1.7e308, -1.7e308, 1.7e308, 0.0],
}


@pytest.fixture(params=SPECIAL)
def special(request):
    # Another row beside it must not be touched.
    return np.array([SPECIAL[request.param], [0.5, 1.5, -1.0, 2.0]])


def assert_as_in_memory(function, x, *others, columns, **options):
    lazy = [da.from_array(a, chunks=(1, columns)[: a.ndim]) for a in (x, *others)]
    lazy_options = {
        k: da.from_array(v, chunks=1) if k == "where" else v for k, v in options.items()
    }
    got = compute(getattr(ps, function)(*lazy, **lazy_options))
    want = in_parts(getattr(ps, function)(x, *others, **options))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-300, err_msg=f"{function} {options}")


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.0, 0.3, inf])
def test_special_rows_are_those_of_arrays_in_memory(special, columns, temperature):
    mask = np.array([[True, False, True, True], [False] * 4])
    for function in ("softmax", "log_softmax"):
        for where in (None, mask):
            options = {"where": where} if where is not None else {}
            options["temperature"] = temperature
            if function == "softmax" or temperature != inf:
                assert_as_in_memory(function, special, columns=columns, **options)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300])
def test_the_limit_of_low_temperatures_where_differences_are_rounded(temperature, dtype):
    x = normal((5, 8), dtype) * np.logspace(-20, 20, 8).astype(dtype)
    for function in ("softmax", "log_softmax"):
        assert_as_in_memory(function, x, columns=3, temperature=temperature)
    labels = x.argmax(axis=1)
    assert_as_in_memory("cross_entropy", x, labels, columns=3, temperature=temperature)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_uniform_limit_of_log_softmax_is_the_logarithm_of_that_of_softmax(special, columns):
    lazy = da.from_array(special, chunks=(1, columns))
    with np.errstate(divide="ignore"):
        want = np.log(ps.softmax(special, temperature=inf))
    got = ps.log_softmax(lazy, temperature=inf).compute()
    np.testing.assert_allclose(got, want, rtol=1e-14)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_special_sums_are_those_of_arrays_in_memory(special, columns):
    assert_as_in_memory("logsumexp", special, columns=columns)
    mask = np.array([[True, False, True, True], [False] * 4])
    assert_as_in_memory("logsumexp", special, columns=columns, where=mask)
    for factors in (
        None,
        [1.0, 2.0, -3.0, 0.0],
        [0.0] * 4,
        [1.0, 0.0, 1.0, 1.0],
        [-1.0, 1.0, 0.5, 0.0],
    ):
        b = None if factors is None else np.array([factors] * 2)
        for sign in (False, True):
            lazy = [
                None if a is None else da.from_array(a, chunks=(1, columns)) for a in (special, b)
            ]
            got = compute(ps.logsumexp(lazy[0], b=lazy[1], return_sign=sign))
            want = in_parts(ps.logsumexp(special, b=b, return_sign=sign))
            for a, c in zip(got, want, strict=True):
                np.testing.assert_allclose(a, c, rtol=1e-14, atol=2e-15, err_msg=f"b={factors}")


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("label", [0, 2, 3, -100])
def test_special_losses_are_those_of_arrays_in_memory(special, columns, label):
    labels = np.array([label, 1])
    for options in ({}, {"label_smoothing": 0.2}):
        for function in ("cross_entropy", "cross_entropy_with_grad"):
            assert_as_in_memory(
                function, special, labels, columns=columns, reduction="none", **options
            )
    truth = np.array([[0.0, 0.5, 0.0, 0.5], [0.25] * 4])
    assert_as_in_memory("cross_entropy", special, truth, columns=columns, reduction="none")
    assert_as_in_memory(
        "cross_entropy", special, labels, columns=columns, reduction="none", temperature=0.0
    )


def test_all_rows_ignored():
    lazy = da.from_array(normal((4, 6), "float32"), chunks=(2, 3))
    labels = da.full(4, -100, chunks=3)
    loss, grad = compute(ps.cross_entropy_with_grad(lazy, labels))
    assert np.isnan(loss)
    assert (grad == 0).all()
    assert ps.cross_entropy(lazy, labels, reduction="sum").compute() == 0


# --- shapes at the edge ---------------------------------------------------------------------------


def test_no_dimension():
    x = da.from_array(np.float32(3), chunks=())
    assert ps.softmax(x, None).compute() == 1
    assert ps.log_softmax(x).compute() == 0
    assert ps.logsumexp(x).compute() == 3
    assert ps.sigmoid(x).compute() == ps.sigmoid(np.float32(3))
    loss = ps.binary_cross_entropy_with_logits(x, da.ones(()))
    assert loss.compute() == ps.binary_cross_entropy_with_logits(np.float32(3), np.float32(1))


def test_one_row():
    x = normal(40, "float64")
    lazy = da.from_array(x, chunks=11)
    np.testing.assert_allclose(ps.softmax(lazy).compute(), ps.softmax(x), rtol=1e-15)
    loss, grad = compute(ps.cross_entropy_with_grad(lazy, da.asarray(7)))
    want = ps.cross_entropy_with_grad(x, np.asarray(7))
    np.testing.assert_allclose(loss, want[0], rtol=1e-15)
    np.testing.assert_allclose(grad, want[1], rtol=1e-14)
    options = {"weight": x + 20, "label_smoothing": 0.1}
    loss = ps.cross_entropy(lazy, da.asarray(7), **{**options, "weight": lazy + 20})
    np.testing.assert_allclose(
        loss.compute(), ps.cross_entropy(x, np.asarray(7), **options), rtol=1e-14
    )


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_nothing_in_it(shape):
    lazy, x = da.zeros(shape, chunks=2), np.zeros(shape)
    for function in ("softmax", "log_softmax", "logsumexp", "sigmoid"):
        assert_same_bytes(getattr(ps, function)(lazy).compute(), getattr(ps, function)(x))
    if shape[1] or not shape[0]:
        labels = np.zeros(shape[0], int)
        for reduction in ("mean", "sum", "none"):
            got = ps.cross_entropy(lazy, da.from_array(labels), reduction=reduction).compute()
            assert_same_bytes(got, ps.cross_entropy(x, labels, reduction=reduction))


# Shapes, ways to cut the logits and everything else, with chunks that have nothing in them.
EMPTY_CHUNKS = [
    ((2, 3, 4), ((1, 0, 1), (0, 3, 0), (2, 0, 2)), ((2,), (1, 2), (4, 0))),
    ((4, 1), ((0, 4), (0, 1)), ((3, 1), (1,))),
    ((4, 1), ((2, 2), (1,)), ((4,), (0, 1, 0))),
    ((0, 3), ((0, 0), (1, 0, 2)), ((0,), (2, 1))),
    ((3, 0), ((1, 2), (0, 0)), ((0, 3), (0, 0, 0))),
    ((0,), ((0, 0),), ((0, 0, 0),)),
    ((5,), ((0, 2, 3),), ((5,),)),
]


# name -> call of logits, numbers in [0, 1], labels, weights of the last axis and a mask of it
WITH_EMPTY_CHUNKS = {
    "softmax_vjp": lambda x, y, t, w, m: ps.softmax_vjp(y, x, None),
    "logsumexp": lambda x, y, t, w, m: ps.logsumexp(x, b=y, where=m, return_sign=True),
    **{
        f"{loss}, {reduction}": lambda x, y, t, w, m, f=function, r=reduction: f(x, y, t, w, r)
        for reduction in ("none", "mean")
        for loss, function in {
            "binary": lambda x, y, t, w, r: ps.binary_cross_entropy_with_logits_with_grad(
                x, y, weight=w, reduction=r
            ),
            "probabilities": lambda x, y, t, w, r: ps.cross_entropy_with_grad(
                x, y, weight=w, label_smoothing=0.1, reduction=r
            ),
            "labels": lambda x, y, t, w, r: ps.cross_entropy_with_grad(
                x, t, weight=w, label_smoothing=0.1, reduction=r
            ),
        }.items()
    },
}


@pytest.mark.parametrize(("shape", "mine", "others"), EMPTY_CHUNKS)
@pytest.mark.parametrize("name", WITH_EMPTY_CHUNKS)
def test_chunks_may_have_nothing_in_them(name, shape, mine, others):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, shape[-1], shape[:-1]) if shape[-1] else np.full(shape[:-1], -100)
    weight = rng.random(shape[-1:])
    arrays = rng.normal(0, 3, shape), rng.random(shape), labels, weight, weight > 0.1
    chunks = mine, others, others[:-1], others[-1:], others[-1:]
    lazy = [da.from_array(a, chunks=c) for a, c in zip(arrays, chunks, strict=True)]
    call = WITH_EMPTY_CHUNKS[name]
    for got, want in zip(compute(call(*lazy)), in_parts(call(*arrays)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)


def unknown(array, chunks):
    """A dask.array that does not know how many rows its chunks have."""
    lazy = da.from_array(array, chunks=chunks)
    return lazy[da.ones(len(array), chunks=chunks[0], dtype=bool)]


@pytest.mark.parametrize("columns", [20, 7])
def test_unknown_numbers_of_rows(columns):
    x, labels = normal((9, 20), "float64"), np.arange(9)
    lazy, lazy_labels = unknown(x, (4, columns)), unknown(labels, (4,))
    assert np.isnan(lazy.shape[0])
    np.testing.assert_allclose(ps.softmax(lazy).compute(), ps.softmax(x), rtol=1e-14)
    np.testing.assert_allclose(ps.logsumexp(lazy).compute(), ps.logsumexp(x), rtol=1e-14)
    for reduction in ("none", "sum", "mean"):
        got = compute(ps.cross_entropy_with_grad(lazy, lazy_labels, reduction=reduction))
        want = ps.cross_entropy_with_grad(x, labels, reduction=reduction)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-18)
    got = ps.binary_cross_entropy_with_logits(lazy, lazy > 0).compute()
    want = ps.binary_cross_entropy_with_logits(x, x > 0)
    np.testing.assert_allclose(got, want, rtol=1e-14)
    got = ps.cross_entropy(lazy, unknown(ps.softmax(x), (4, columns))).compute()
    np.testing.assert_allclose(got, ps.cross_entropy(x, ps.softmax(x)), rtol=1e-14)


def test_what_cannot_be_done_without_sizes_says_so():
    x = normal((9, 20), "float64")
    lazy = unknown(x, (4, 20))
    with pytest.raises(ValueError, match=r"target and logits must both know.*compute_chunk_sizes"):
        ps.cross_entropy(lazy, list(range(9)))
    with pytest.raises(ValueError, match=r"number of classes.* compute_chunk_sizes"):
        ps.cross_entropy(lazy.T, unknown(np.zeros(20, int), (20,)))


def test_blocks_that_are_not_what_was_said_are_refused():
    def shorter(block):
        return block[:1]

    x = da.from_array(normal((4, 6), "float32"), chunks=(4, 6))
    labels = da.zeros(4, dtype=int, chunks=4).map_blocks(shorter, dtype=int)
    with pytest.raises(ValueError, match="class labels must have the shape"):
        ps.cross_entropy(x, labels, reduction="none").compute()
    bits = da.zeros((4, 6), chunks=4).map_blocks(shorter, dtype="f4")
    with pytest.raises(ValueError, match="must have the shape of the logits"):
        ps.binary_cross_entropy_with_logits(x, bits.rechunk((4, 6)), reduction="none").compute()


# --- errors ---------------------------------------------------------------------------------------

X = da.from_array(normal((4, 6), "float32"), chunks=(2, 3))
LABELS = da.zeros(4, dtype=int, chunks=2)
EAGER = {
    "axis": (lambda: ps.softmax(X, 2), np.exceptions.AxisError, "axis 2 is out of bounds"),
    "axis twice": (lambda: ps.logsumexp(X, (0, -2)), ValueError, "twice"),
    "complex": (lambda: ps.softmax(X.astype(complex)), TypeError, "expected an array of float16"),
    "dtype": (lambda: ps.sigmoid(X, dtype=int), TypeError, "dtype must be float16"),
    "temperature": (lambda: ps.softmax(X, temperature=-1), ValueError, "must be >= 0"),
    "temperatures": (lambda: ps.softmax(X, temperature=[1.0] * 3), ValueError, "must broadcast"),
    "lazy temperatures": (
        lambda: ps.softmax(X, temperature=da.ones(3)),
        ValueError,
        "must broadcast",
    ),
    "where": (lambda: ps.softmax(X, where=X), TypeError, "where must be bool, got float32"),
    "where's shape": (
        lambda: ps.softmax(X, where=da.ones(5, dtype=bool)),
        ValueError,
        r"where must broadcast to the input's shape \(4, 6\), got shape \(5,\)",
    ),
    "out": (lambda: ps.softmax(X, out=X), TypeError, "out: a lazy array cannot be written to"),
    "grad_out": (
        lambda: ps.cross_entropy_with_grad(X, LABELS, grad_out=X),
        TypeError,
        "grad_out: a lazy array cannot be written to",
    ),
    "labels' shape": (
        lambda: ps.cross_entropy(X, LABELS[:3]),
        ValueError,
        r"class labels must have the shape .*\(4,\), got \(3,\)",
    ),
    "target's dtype": (lambda: ps.cross_entropy(X, X > 0), TypeError, "got bool"),
    "weight": (
        lambda: ps.cross_entropy(X, LABELS, weight=[1, 2]),
        ValueError,
        r"\(6,\), got \(2,\)",
    ),
    "label_smoothing": (
        lambda: ps.cross_entropy(X, LABELS, label_smoothing=2),
        ValueError,
        "label_smoothing must be in",
    ),
    "reduction": (lambda: ps.cross_entropy(X, LABELS, reduction="max"), ValueError, "reduction"),
    "binary target": (
        lambda: ps.binary_cross_entropy_with_logits(X, LABELS),
        ValueError,
        "target must have the shape",
    ),
    "gradient's shape": (lambda: ps.softmax_vjp(X[:, :5], X), ValueError, "grad_output must have"),
    "libraries": (
        lambda: ps.cross_entropy(X, np.zeros(4, int)),
        TypeError,
        "logits is dask.*target is numpy",
    ),
}


@pytest.mark.parametrize("what", EAGER)
def test_wrong_arguments_raise_before_anything_is_computed(what):
    call, kind, message = EAGER[what]
    with dask.config.set(scheduler=never), pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("columns", [6, 2])
@pytest.mark.parametrize("function", ["cross_entropy", "cross_entropy_with_grad"])
def test_labels_out_of_range_raise_when_they_are_computed(function, columns):
    labels = da.from_array(np.array([0, 5, 1, 6]), chunks=2)
    result = getattr(ps, function)(X.rechunk((2, columns)), labels)
    message = r"target\[1\] is 6: class labels must be in \[0, 6\).*begins at \(2,\)"
    with pytest.raises(IndexError, match=message):
        compute(result)


@pytest.mark.parametrize("columns", [6, 2])
def test_wrong_values_raise_when_they_are_computed(columns):
    x = X.rechunk((2, columns))
    with pytest.raises(ValueError, match="target probabilities must be in"):
        ps.cross_entropy(x, x).compute()
    with pytest.raises(ValueError, match=r"target must be in \[0, 1\]"):
        ps.binary_cross_entropy_with_logits(x, x).compute()
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        ps.softmax(x, temperature=-da.ones(4)).compute()


# --- the graph ------------------------------------------------------------------------------------


def reads_of(call):
    """How often each block of the logits is read in computing `call` of them."""
    reads = []

    def read(block, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return block

    x = normal((8, 12), "float32")
    lazy = da.from_array(x, chunks=(4, 3)).map_blocks(read, dtype=x.dtype)
    reads.clear()
    compute(call(lazy))
    return reads


@pytest.mark.parametrize(
    "call",
    [
        ps.softmax,
        ps.log_softmax,
        functools.partial(ps.softmax, axis=None),
        lambda x: ps.cross_entropy_with_grad(x, da.zeros(8, dtype=int, chunks=3)),
        lambda x: ps.cross_entropy_with_grad(x.rechunk((4, 12)), da.zeros(8, dtype=int, chunks=3)),
    ],
)
def test_every_block_is_read_once(call):
    reads = reads_of(call)
    assert len(reads) == len(set(reads)) == 8


def test_no_block_is_rechunked_and_layers_can_be_read():
    labels = da.zeros(4, dtype=int, chunks=4)
    graph = ps.cross_entropy_with_grad(X, labels, reduction="none")[1].__dask_graph__()
    names = [name.rsplit("-", 1)[0] for name in graph.layers]
    assert sum("rechunk" in name for name in names) == 1  # that of the labels
    ours = {name for name in names if name.startswith("pysoftmax-")}
    assert {"pysoftmax-cross-entropy-part", "pysoftmax-cross-entropy-grad"} <= ours


def test_the_tree_joins_a_few_parts_at_a_time():
    lazy = da.zeros((1, 1000), chunks=(1, 1))
    graph = ps.softmax(lazy).__dask_graph__()
    joins = [layer for name, layer in graph.layers.items() if "pysoftmax-join" in name]
    widest = max(len(deps) for layer in joins for deps in _dependencies(layer).values())
    assert len(joins) >= 3
    assert widest <= 17


def _dependencies(layer):
    return {key: _keys_in(task) for key, task in dict(layer).items()}


def _keys_in(task):
    from dask.core import get_dependencies

    return get_dependencies({"task": task}, "task") or set(getattr(task, "dependencies", ()))


def test_the_same_call_has_the_same_name():
    assert ps.softmax(X).name == ps.softmax(X).name
    assert ps.softmax(X).name != ps.softmax(X, temperature=2).name
    assert ps.softmax(X).name != ps.log_softmax(X).name


def test_dask_is_not_imported_by_this_package():
    source = """
import sys
import numpy as np
import pysoftmax as ps
class Unknown:
    pass
try:
    ps.softmax(Unknown())
except TypeError as error:
    print("pysoftmax[dask]" in str(error))
ps.info()
print(sorted(name for name in sys.modules if name.split(".")[0] in ("dask", "distributed")))
"""
    assert python("-c", source).splitlines() == ["True", "[]"]


# --- schedulers -----------------------------------------------------------------------------------


def test_threads_of_dask_give_the_same_bits_and_their_blocks_use_one_thread_each():
    x = normal((64, 5000), "float32")
    lazy = da.from_array(x, chunks=(16, 5000))
    seen = []

    def look(block):
        seen.append((threading.current_thread() is threading.main_thread(), ps.get_num_threads()))
        return block

    with ps.num_threads(3), dask.config.set(scheduler="threads", num_workers=2):
        assert_same_bytes(ps.softmax(lazy).compute(), ps.softmax(x))
        from pysoftmax.adapters import _dask_graphs

        da.map_blocks(functools.partial(_dask_graphs._run, look), lazy, meta=lazy._meta).compute()
        assert seen
        assert all(threads == 1 for main, threads in seen if not main)
        seen.clear()
        with dask.config.set(scheduler="synchronous"):
            da.map_blocks(
                functools.partial(_dask_graphs._run, look), lazy, meta=lazy._meta
            ).compute()
        assert seen == [(True, 3)] * 4


# A script, because its processes import it again.
CLUSTER = """
import os, time
import numpy as np
import dask, dask.array as da
from distributed import Client, LocalCluster
import pysoftmax as ps

def logits(block_info=None):
    (first, last), (begin, end) = block_info[None]["array-location"]
    i, j = np.arange(first, last, dtype="f4"), np.arange(begin, end, dtype="f4")
    return np.sin(i)[:, None] + 5 * np.sin(j)

def lazy_logits(rows, columns):
    empty = np.empty((0, 0), "f4")
    return da.map_blocks(logits, chunks=(rows, columns), dtype="f4", meta=empty)

def slow(block):
    time.sleep(0.2)
    return block

if __name__ == "__main__":
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options, **LIMIT) as cluster, Client(cluster) as client:
BODY
"""


def on_cluster(tmp_path, body, **limit):
    """Run `body` with a `client` of a cluster of two processes; the lines it prints."""
    pytest.importorskip("distributed")
    script = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    script.write_text(CLUSTER.replace("LIMIT", repr(limit)).replace("BODY", body))
    return python(str(script), timeout=120).splitlines()


def test_processes_give_the_same_bits(tmp_path):
    body = """
    x = lazy_logits((5, 5, 6), (300, 400))
    labels = da.from_array(np.arange(16), chunks=7)
    calls = [
        ps.softmax(x),
        ps.log_softmax(x.rechunk((5, 700))),
        *ps.cross_entropy_with_grad(x, labels),
        *ps.cross_entropy_with_grad(x.rechunk((5, 700)), labels),
    ]
    here = dask.compute(*calls, scheduler="synchronous")
    there = client.compute(calls, sync=True)
    print([np.array_equal(a, b) for a, b in zip(here, there)])
    memory = x.compute(scheduler="synchronous")
    print(np.array_equal(there[1], ps.log_softmax(memory)))
    """
    assert on_cluster(tmp_path, body) == [str([True] * 6), "True"]


def test_an_array_twice_the_memory_of_all_workers_goes_through(tmp_path):
    """2 GB of logits and as much of the result, through two workers of 500 MB each."""
    body = """
    x = lazy_logits((100,) * 500, (5000, 5000))
    total = client.compute(ps.softmax(x).sum(), sync=True)
    whole = lazy_logits((100,) * 60, (10000,))
    loss, grad = ps.cross_entropy_with_grad(whole, da.arange(6000, chunks=2000))
    loss, largest = client.compute([loss, abs(grad).max()], sync=True)
    workers = client.scheduler_info()["workers"].values()
    print(x.nbytes / sum(w["memory_limit"] for w in workers))
    print(abs(total / 50000 - 1) < 1e-5, np.isfinite(loss), 0 < largest < 1)
    """
    assert on_cluster(tmp_path, body, memory_limit="500MB") == ["2.0", "True True True"]


def test_a_worker_that_dies_loses_nothing(tmp_path):
    body = """
    x = lazy_logits((4,) * 10, (300, 400))
    result = ps.softmax(x.map_blocks(slow, dtype="f4", meta=x._meta))
    future = client.compute(result)
    time.sleep(1.5)
    first, second = client.run(os.getpid).values()
    print(future.done())
    os.kill(first, 9)
    print(np.array_equal(future.result(), ps.softmax(x).compute(scheduler="synchronous")))
    print(first in client.run(os.getpid).values())
    """
    assert on_cluster(tmp_path, body) == ["False", "True", "False"]
