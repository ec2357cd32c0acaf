"""xarray's DataArrays: names of dimensions, labels, laziness."""

import importlib

import numpy as np
import pytest
from cases import normal
from oracles import assert_same_bytes

import pysoftmax as ps
from pysoftmax import _dispatch

xarray = pytest.importorskip("xarray")

X = normal((2, 3, 4), np.float64)
COORDS = {"model": ["a", "b"], "row": [10, 20, 30], "class": list("wxyz")}


def labelled(values, *dims):
    return xarray.DataArray(values, {d: COORDS[d] for d in dims}, dims, "logits", {"unit": "nat"})


@pytest.fixture
def logits():
    return labelled(X, "model", "row", "class")


def assert_labelled(result, expected, like, dims):
    assert type(result) is xarray.DataArray
    assert result.dims == dims
    assert set(result.coords) == set(dims)
    assert all(result[d].equals(like[d]) for d in dims)
    assert (result.name, result.attrs) == (like.name, like.attrs)
    assert_same_bytes(result.to_numpy(), expected)


# --- dimensions and labels ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "axis"),
    [("class", 2), ("row", 1), (("row", "class"), (1, 2)), (("class", "model"), (0, 2)), (-1, -1)],
)
def test_axis_is_the_name_of_a_dimension_or_several(logits, dim, axis):
    left = tuple(np.delete(logits.dims, axis))
    for function in (ps.softmax, ps.log_softmax):
        assert_labelled(function(logits, dim), function(X, axis), logits, logits.dims)
    assert_labelled(ps.logsumexp(logits, dim), ps.logsumexp(X, axis), logits, left)
    kept = ps.logsumexp(logits, dim, keepdims=True)
    assert kept.dims == logits.dims
    assert_same_bytes(kept.to_numpy(), ps.logsumexp(X, axis, keepdims=True))


def test_all_dimensions(logits):
    assert_labelled(ps.softmax(logits, None), ps.softmax(X, None), logits, logits.dims)
    assert_labelled(ps.logsumexp(logits, None), np.asarray(ps.logsumexp(X, None)), logits, ())


def test_a_dimension_that_is_not_there(logits):
    with pytest.raises(ValueError, match="'colour' not found in array dimensions"):
        ps.softmax(logits, "colour")
    with pytest.raises(np.exceptions.AxisError):
        ps.softmax(logits, 3)


def test_functions_of_elements_keep_all_labels(logits):
    for function in (ps.sigmoid, ps.log_sigmoid):
        assert_labelled(function(logits), function(X), logits, logits.dims)


def test_attributes_follow_the_option_of_xarray(logits):
    with xarray.set_options(keep_attrs=False):
        assert ps.softmax(logits).attrs == {}
        assert ps.logsumexp(logits).attrs == {}
    with xarray.set_options(keep_attrs=True):
        assert ps.softmax(logits).attrs == logits.attrs


def test_the_sign_is_labelled_too(logits):
    b = labelled(np.array([1.0, -1, 1, -1]), "class")
    value, sign = ps.logsumexp(logits, "class", b=b, return_sign=True)
    expected = ps.logsumexp(X, b=b.to_numpy(), return_sign=True)
    assert_labelled(value, expected[0], logits, ("model", "row"))
    assert_labelled(sign, expected[1], logits, ("model", "row"))


# --- several arrays -----------------------------------------------------------------------------


def test_arrays_are_broadcast_by_the_names_of_their_dimensions(logits):
    where = labelled(np.array([True, False, True, True]), "class")
    temperature = labelled(np.array([[0.5, 1], [2, 4], [1, 3]]), "row", "model")
    result = ps.softmax(logits.transpose("class", "row", "model"), "class", where=where)
    assert result.dims == ("class", "row", "model")
    assert_same_bytes(result.to_numpy(), ps.softmax(X, where=where.to_numpy()).T)
    result = ps.softmax(logits, "class", temperature=temperature)
    assert_same_bytes(result.to_numpy(), ps.softmax(X, temperature=temperature.to_numpy().T))


def test_factors_may_have_further_dimensions(logits):
    b = xarray.DataArray([1.0, 2.0, 3.0], dims="scenario")
    result = ps.logsumexp(logits, "class", b=b)
    assert result.dims == ("model", "row", "scenario")
    expected = [ps.logsumexp(X, b=factor) for factor in (1.0, 2.0, 3.0)]
    assert_same_bytes(result.to_numpy(), np.stack(expected, -1))


def test_other_labels_are_refused(logits):
    where = logits > 0
    with pytest.raises(xarray.AlignmentError, match="class"):
        ps.softmax(logits, where=where.sel({"class": list("wxzy")}))
    with pytest.raises(xarray.AlignmentError, match="row"):
        ps.softmax(logits, where=where.isel(row=slice(2)))
    with pytest.raises(ValueError, match="superset"):
        ps.softmax(logits, where=where.expand_dims("colour"))


def test_the_logits_must_be_labelled_if_anything_is(logits):
    with pytest.raises(TypeError, match="x must be a DataArray if where is one, got list"):
        ps.softmax([1.0, 2.0], where=logits > 0)


LABELS = np.array([[0, 3], [1, 2], [2, -100]])


def test_losses(logits):
    labels = labelled(LABELS, "row", "model")
    weight = labelled(np.array([1.0, 2, 3, 4]), "class")
    options = {"weight": weight, "label_smoothing": 0.1}
    expected = {"weight": weight.to_numpy(), "label_smoothing": 0.1}
    each = ps.cross_entropy(logits, labels, "class", reduction="none", **options)
    wanted = ps.cross_entropy(X, LABELS.T, reduction="none", **expected)
    assert_labelled(each, wanted, logits, ("model", "row"))
    loss, gradient = ps.cross_entropy_with_grad(logits, labels, "class", **options)
    wanted = ps.cross_entropy_with_grad(X, LABELS.T, **expected)
    assert_labelled(loss, np.asarray(wanted[0]), logits, ())
    assert_labelled(gradient, wanted[1], logits, logits.dims)


def test_losses_against_probabilities(logits):
    p = ps.softmax(logits, "class").transpose("class", "row", "model")
    loss = ps.cross_entropy(logits, p, "class")
    assert loss == ps.cross_entropy(X, ps.softmax(X))
    each = ps.binary_cross_entropy_with_logits(logits, p, reduction="none")
    wanted = ps.binary_cross_entropy_with_logits(X, ps.softmax(X), reduction="none")
    assert_labelled(each, wanted, logits, logits.dims)
    assert ps.binary_cross_entropy_with_logits(logits, p).dims == ()


def test_products(logits):
    p = ps.softmax(logits, "class")
    result = ps.softmax_vjp(logits.transpose(), p, "class")
    assert_labelled(result, ps.softmax_vjp(X, ps.softmax(X)), logits, logits.dims)


def test_out_is_written_to(logits):
    out = xarray.zeros_like(logits)
    assert ps.softmax(logits, "row", out=out) is out
    assert_same_bytes(out.to_numpy(), ps.softmax(X, 1))
    loss, gradient = ps.cross_entropy_with_grad(
        logits, labelled(LABELS.T, "model", "row"), "class", grad_out=out
    )
    assert gradient is out
    assert_same_bytes(out.to_numpy(), ps.cross_entropy_with_grad(X, LABELS.T)[1])
    assert loss.dims == ()


def test_a_dataset_is_no_array(logits):
    with pytest.raises(TypeError, match=r"no backend for xarray.*Dataset"):
        ps.softmax(logits.to_dataset())


# --- dim= ---------------------------------------------------------------------------------------


def test_dim_through_the_accessor(logits):
    importlib.import_module("pysoftmax.xarray")

    methods = logits.pysoftmax
    labels = labelled(LABELS.T, "model", "row")
    for name in ("softmax", "log_softmax", "logsumexp"):
        for dim in ("class", ("row", "class")):
            expected = getattr(ps, name)(logits, dim)
            assert expected.identical(getattr(methods, name)(dim=dim))
        assert getattr(ps, name)(logits, None).identical(getattr(methods, name)(dim=...))
    assert methods.softmax("class", temperature=2).identical(
        ps.softmax(logits, "class", temperature=2)
    )
    loss = methods.cross_entropy(labels, dim="class", reduction="sum")
    assert loss.identical(ps.cross_entropy(logits, labels, "class", reduction="sum"))
    assert methods.cross_entropy_with_grad(labels, dim="class")[1].dims == logits.dims


# --- over Dask ----------------------------------------------------------------------------------


@pytest.mark.skipif("dask" not in _dispatch.BUILT_IN, reason="no adapter for Dask")
def test_what_is_lazy_inside_stays_lazy(logits):
    dask = pytest.importorskip("dask")
    lazy = logits.chunk({"row": 1, "class": 2})
    labels = labelled(LABELS.T, "model", "row").chunk(row=1)

    def fail(*_, **__):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=fail):
        results = [
            ps.softmax(lazy, "class", where=lazy > 0),
            ps.logsumexp(lazy, ("row", "class"), keepdims=True),
            ps.sigmoid(lazy),
            ps.cross_entropy(lazy, labels, "class"),
            ps.cross_entropy(lazy, labels, "class", reduction="none"),
        ]
    expected = [
        ps.softmax(X, where=X > 0),
        ps.logsumexp(X, (1, 2), keepdims=True),
        ps.sigmoid(X),
        ps.cross_entropy(X, LABELS.T),
        ps.cross_entropy(X, LABELS.T, reduction="none"),
    ]
    for result, wanted in zip(results, expected, strict=True):
        assert result.chunks is not None
        assert result.attrs == logits.attrs
        np.testing.assert_allclose(result.to_numpy(), wanted, rtol=1e-14)
