"""The classifier's toolkit takes arrays of whatever library.

What lies in memory is answered in kind. Dask's arrays are read a chunk of rows after the other, or
give lazy results for each row; xarray's keep the coordinates of their rows.
"""

import numpy as np
import pytest

import pysoftmax as ps
from pysoftmax._dispatch import IMMEDIATE

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (40, 5)).astype(np.float32)
LABELS = (LOGITS + RNG.gumbel(0, 2, LOGITS.shape)).argmax(axis=1).astype(np.int32)
P = ps.softmax(LOGITS)
PRIOR = np.full(5, 0.2, np.float32)
WEIGHT = RNG.random(40).astype(np.float32)

LABELLED = {"probabilities": P, "labels": LABELS, "sample_weight": WEIGHT}
FIT = {"logits": LOGITS, "labels": LABELS, "sample_weight": WEIGHT}
ARGUMENTS = {
    "fit_temperature": FIT,
    "fit_vector_scaling": FIT,
    "reliability_curve": LABELLED,
    "expected_calibration_error": LABELLED,
    "brier_score": LABELLED,
    "negative_log_likelihood": LABELLED,
    "risk_coverage_curve": LABELLED,
    "decide": {"probabilities": P, "threshold": 0.5},
    "top_k": {"scores": LOGITS, "k": 2},
    "class_weight": {"mode": "balanced", "labels": LABELS},
    "logit_adjust": {"logits": LOGITS, "prior": PRIOR},
    "sample": {"logits": LOGITS, "where": LOGITS > -2, "rng": 0},
    "validate": {"probabilities": P, "logits": LOGITS, "labels": LABELS, "temperature": 1},
    "check_pairing": {"logits": LOGITS, "labels": LABELS},
}
ZERO_COPY = ["torch", "jax", "array_api_strict"]


@pytest.fixture(autouse=True)
def _scipy(request):
    """Vector scaling needs it, which only the extra of JAX brings too."""
    if "fit_vector_scaling" in request.node.name:
        pytest.importorskip("scipy")


def _into(library):
    module = pytest.importorskip("jax.numpy" if library == "jax" else library)
    return lambda value: module.asarray(value) if isinstance(value, np.ndarray) else value


def _same(result, expected, kind):
    """Whether results are equal, with arrays of `kind` in place of NumPy's."""
    if isinstance(expected, tuple):
        assert type(result) is type(expected)
        for part, right in zip(result, expected, strict=True):
            _same(part, right, kind)
    elif isinstance(expected, np.ndarray):
        assert isinstance(result, kind)
        np.testing.assert_array_equal(np.asarray(result), expected.astype(_dtype(result)))
    elif hasattr(expected, "scale"):  # a VectorScaling
        np.testing.assert_array_equal(result.scale, expected.scale)
    else:
        assert result == expected


def _dtype(result):
    """JAX has no float64 unless it is asked for."""
    return np.asarray(result).dtype


def test_all_of_the_toolkit_is_tried():
    assert {name for name in ARGUMENTS if callable(getattr(ps, name))} == IMMEDIATE


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("library", ZERO_COPY)
@pytest.mark.parametrize("function", ARGUMENTS)
def test_results_are_those_for_numpy(function, library):
    into, call = _into(library), getattr(ps, function)
    given = {name: into(value) for name, value in ARGUMENTS[function].items()}
    _same(call(**given), call(**ARGUMENTS[function]), type(into(P)))


@pytest.mark.parametrize("library", ZERO_COPY)
@pytest.mark.parametrize("fit", [ps.fit_temperature, ps.fit_vector_scaling])
def test_a_calibration_is_applied_to_any_of_them(fit, library):
    into, calibration = _into(library), fit(LOGITS, LABELS)
    for apply in (calibration.apply, calibration.apply_log):
        _same(apply(into(LOGITS)), apply(LOGITS), type(into(P)))


@pytest.mark.parametrize("fit", [ps.fit_temperature, ps.fit_vector_scaling])
def test_a_calibration_is_applied_lazily_and_to_named_dimensions(fit):
    lazy = pytest.importorskip("dask.array").from_array(LOGITS, chunks=(16, 5))
    xarray = pytest.importorskip("xarray")
    calibration = fit(LOGITS, LABELS)
    after = calibration.apply(lazy)
    assert after.chunks == lazy.chunks
    np.testing.assert_array_equal(after.compute(), calibration.apply(LOGITS))
    after = calibration.apply(xarray.DataArray(LOGITS, dims=("image", "digit")))
    assert after.dims == ("image", "digit")
    np.testing.assert_array_equal(after.values, calibration.apply(LOGITS))


@pytest.mark.parametrize("library", ZERO_COPY)
@pytest.mark.parametrize("name", ["probabilities", "logits"])
def test_a_monitor_watches_any_of_them(name, library):
    into, values = _into(library), {"probabilities": P, "logits": LOGITS}[name]
    ours, theirs = ps.ConfidenceMonitor(5), ps.ConfidenceMonitor(5)
    ours.update(**{name: values})
    theirs.update(**{name: into(values)})
    assert theirs.total.to_dict() == ours.total.to_dict()


@pytest.mark.parametrize("library", ZERO_COPY)
def test_a_softmax_of_any_of_them_is_watched(library):
    into, ours, theirs = _into(library), ps.ConfidenceMonitor(5), ps.ConfidenceMonitor(5)
    _same(theirs.softmax(into(LOGITS)), ours.softmax(LOGITS), type(into(LOGITS)))
    assert theirs.total.to_dict() == ours.total.to_dict()


def test_a_softmax_of_named_dimensions_is_watched():
    xarray = pytest.importorskip("xarray")
    monitor, x = ps.ConfidenceMonitor(5), xarray.DataArray(LOGITS, dims=("image", "digit"))
    p = monitor.softmax(x)
    assert p.dims == x.dims
    np.testing.assert_array_equal(p.values, ps.softmax(LOGITS))
    assert monitor.total.count == len(LOGITS)


def test_a_lazy_softmax_is_not_watched():
    """It would be computed for the monitor alone, and once more for the caller."""
    monitor = ps.ConfidenceMonitor(5)
    with pytest.raises(TypeError, match=r"x must be in memory, got a lazy .*update takes those"):
        monitor.softmax(_lazy(LOGITS))
    assert monitor.total.count == 0


# ---------------------------------------------------------------------------------------- Dask

PER_ROW = ["decide", "top_k", "logit_adjust", "sample"]


def _lazy(value, chunks=(16, 3, 2)):
    """In chunks of rows, and of classes too."""
    da = pytest.importorskip("dask.array")
    if not isinstance(value, np.ndarray):
        return value
    return da.from_array(value, chunks=chunks[: value.ndim])


def _near(result, expected):
    """Equal but for the order in which blocks were added up."""
    if isinstance(expected, tuple):
        for part, right in zip(result, expected, strict=True):
            _near(part, right)
    elif hasattr(expected, "converged"):
        for name, right in vars(expected).items():
            if name != "axis":
                np.testing.assert_allclose(getattr(result, name), right, rtol=1e-6)
    elif hasattr(expected, "checks"):
        assert [item.name for item in result.checks] == [item.name for item in expected.checks]
        assert [item.status for item in result.checks] == [item.status for item in expected.checks]
    else:
        np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("function", [name for name in ARGUMENTS if name not in PER_ROW])
def test_few_results_of_lazy_arrays_are_those_of_what_they_hold(function):
    call = getattr(ps, function)
    given = {name: _lazy(value) for name, value in ARGUMENTS[function].items()}
    _near(call(**given), call(**ARGUMENTS[function]))


@pytest.mark.parametrize("options", [{"class_wise": True}, {"strategy": "quantile"}])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lazy_rows_of_any_dimensions(axis, options):
    p = np.moveaxis(P.reshape(5, 8, 5), -1, axis)
    labels, weight = LABELS.reshape(5, 8), (WEIGHT * (WEIGHT > 0.3)).reshape(5, 8)
    lazy = _lazy(p, (2, 3, 2)), _lazy(labels), _lazy(weight)
    for measure in (ps.expected_calibration_error, ps.reliability_curve):
        chosen = options if measure is ps.expected_calibration_error else {}
        expected = measure(p, labels, axis=axis, sample_weight=weight, **chosen)
        _near(measure(*lazy[:2], axis=axis, sample_weight=lazy[2], **chosen), expected)


def test_what_is_wrong_in_a_later_chunk_is_told_by_its_place():
    p = P.copy()
    p[37, 2] = np.nan
    with pytest.raises(ValueError, match=r"in the row of labels\[37\]"):
        ps.brier_score(_lazy(p), _lazy(LABELS))
    report = ps.validate(_lazy(p), _lazy(LOGITS), _lazy(LABELS))
    assert report.checks == ps.validate(p, LOGITS, LABELS).checks
    assert report["probabilities are finite"].where == "probabilities[37, 2]"
    with pytest.raises(ValueError, match=r"probabilities in row"):
        ps.decide(_lazy(p), 0.5).compute()


def test_labels_of_each_class_may_be_lazy():
    labels = np.eye(5, dtype=int)[LABELS]
    lazy = ps.validate(_lazy(P), labels=_lazy(labels), activation="sigmoid")
    assert lazy == ps.validate(P, labels=labels, activation="sigmoid")


def test_no_more_than_a_chunk_of_rows_is_in_memory():
    da = pytest.importorskip("dask.array")
    shapes = []

    def watched(block):
        shapes.append(block.shape)
        return block

    lazy = da.from_array(P, chunks=(16, 5)).map_blocks(watched, dtype=P.dtype, meta=P[:0])
    with pytest.importorskip("dask").config.set(scheduler="synchronous"):
        ps.expected_calibration_error(lazy, LABELS.tolist(), class_wise=True)
    assert shapes == [(16, 5), (16, 5), (8, 5)]  # each once


def test_results_for_each_row_are_lazy():
    for function in PER_ROW[:3]:
        call = getattr(ps, function)
        given = {name: _lazy(value) for name, value in ARGUMENTS[function].items()}
        results, expected = call(**given), call(**ARGUMENTS[function])
        if not isinstance(expected, tuple):
            results, expected = (results,), (expected,)
        for result, right in zip(results, expected, strict=True):
            assert result.shape == right.shape
            assert result.dtype == right.dtype
            assert result.chunks[0] == (16, 16, 8)
            np.testing.assert_array_equal(result.compute(), right)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [None, 3, (2, 3)])
def test_lazy_samples(axis, size):
    logits, where = LOGITS.reshape(8, 5, 5), LOGITS.reshape(8, 5, 5) > -2
    degrees = np.linspace(0, 2, 5)
    options = {"size": size, "axis": axis, "rng": 0}
    drawn = ps.sample(
        _lazy(logits, (3, 3, 2)),
        where=_lazy(where, (3, 3, 2)),
        temperature=_lazy(degrees),
        **options,
    )
    expected = ps.sample(logits, where=where, temperature=degrees, **options)
    assert drawn.shape == expected.shape
    found = drawn.compute()
    np.testing.assert_array_equal(found, drawn.compute())
    np.testing.assert_array_equal(found[..., 0], expected[..., 0])  # those of temperature 0
    draws = (-1, *found.shape[found.ndim - 2 :])
    for each in found.reshape(draws):
        picked = np.expand_dims(each, axis)
        assert np.take_along_axis(where, picked, axis).all()


def test_lazy_arguments_are_checked_at_once():
    with pytest.raises(ValueError, match="threshold"):
        ps.decide(_lazy(P), 2)
    with pytest.raises(ValueError, match=r"k must be in \[1, 5\]"):
        ps.top_k(_lazy(P), 6)
    with pytest.raises(ValueError, match="prior must be > 0"):
        ps.logit_adjust(_lazy(LOGITS), [0, 0.25, 0.25, 0.25, 0.25])
    with pytest.raises(ValueError, match="must have 4 classes"):
        ps.ConfidenceMonitor(4).update(_lazy(P))


def test_chunks_of_unknown_size_are_refused_where_rows_are_counted():
    unknown = _lazy(P)[_lazy(P)[:, 0] > 0.5]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        ps.brier_score(unknown, LABELS.tolist())
    assert (ps.decide(unknown, 0.5).compute() == 0).all()


def test_a_lazy_row_alone():
    row = _lazy(P[0], (2,))
    assert ps.decide(row, 0).compute() == P[0].argmax()
    np.testing.assert_array_equal(ps.top_k(row, 2).indices.compute(), ps.top_k(P[0], 2).indices)
    assert ps.brier_score(row, 1) == ps.brier_score(P[0], 1)
    assert ps.sample(row, temperature=0).compute() == P[0].argmax()


@pytest.mark.parametrize("name", ["probabilities", "logits"])
def test_a_monitor_reads_lazy_and_labelled_arrays(name):
    xarray = pytest.importorskip("xarray")
    values, degrees = {"probabilities": P, "logits": LOGITS}[name], np.linspace(1, 2, 40)
    options = {} if name == "probabilities" else {"temperature": degrees}
    plain, lazy, named = (ps.ConfidenceMonitor(5, every=3) for _ in range(3))
    plain.update(**{name: values}, **options)
    lazy.update(**{name: _lazy(values)}, **options)
    array = xarray.DataArray(values.T, dims=("digit", "image"))
    named.update(**{name: array}, axis="digit", **options)
    assert plain.total.to_dict() == lazy.total.to_dict() == named.total.to_dict()


# -------------------------------------------------------------------------------------- xarray


def _named(value, name):
    """A DataArray, the classes first where there are any."""
    xarray = pytest.importorskip("xarray")
    if not isinstance(value, np.ndarray):
        return value
    dims = {"prior": ["digit"]}.get(name, ["image", "digit"][: value.ndim])
    coords = {"image": np.arange(40) * 10, "digit": list("abcde")}
    array = xarray.DataArray(value, {dim: coords[dim] for dim in dims}, dims)
    return array.T if value.ndim == 2 else array


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("function", ARGUMENTS)
def test_labelled_arrays_by_the_names_of_their_dimensions(function):
    call, given = getattr(ps, function), ARGUMENTS[function]
    named = {name: _named(value, name) for name, value in given.items()}
    axis = {} if function == "class_weight" else {"axis": "digit"}
    result, expected = call(**named, **axis), call(**given)
    if function in PER_ROW:
        results = result if isinstance(result, tuple) else (result,)
        for each, right in zip(
            results, expected if results is result else (expected,), strict=True
        ):
            assert list(each.coords["image"]) == list(range(0, 400, 10))
            assert ("digit" in each.coords) == (function == "logit_adjust")
            np.testing.assert_array_equal(each.transpose("image", ...).values, right)
    else:
        if hasattr(expected, "axis"):
            assert result.axis == "digit"
            after = result.apply(named["logits"]).transpose("image", "digit").values
            np.testing.assert_array_equal(after, expected.apply(LOGITS))
        _near(result, expected)


def test_labelled_draws_and_labelled_lazy_arrays():
    logits = _named(LOGITS, "logits")
    assert ps.sample(logits, axis="digit", size=3).dims == ("draw", "image")
    assert ps.sample(logits, axis="digit", size=(3, 2)).dims == ("draw_0", "draw_1", "image")
    lazy = ps.decide(_named(P, "probabilities").chunk(image=16), 0.5, axis="digit")
    assert lazy.chunks == ((16, 16, 8),)
    np.testing.assert_array_equal(lazy.values, ps.decide(P, 0.5))


def test_labelled_arrays_that_do_not_belong_together():
    xarray = pytest.importorskip("xarray")
    p, labels = _named(P, "probabilities"), _named(LABELS, "labels")
    with pytest.raises(xarray.AlignmentError):
        ps.brier_score(p, labels.assign_coords(image=range(40)), axis="digit")
    with pytest.raises(TypeError, match="probabilities must be a DataArray"):
        ps.brier_score(P.tolist(), labels)


# ------------------------------------------------------------------------------ what is refused


def test_a_traced_array_is_refused_by_what_needs_its_numbers():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="decide needs the numbers"):
        jax.jit(lambda p: ps.decide(p, 0.5))(P)


def test_a_gradient_is_not_left_out_silently():
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, requires_grad=True)
    with pytest.raises(NotImplementedError, match="logit_adjust has no gradient"):
        ps.logit_adjust(logits, PRIOR.tolist())
    with torch.no_grad():
        assert ps.logit_adjust(logits, PRIOR.tolist()).shape == logits.shape
