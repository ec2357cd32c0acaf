"""The classifier's toolkit takes what lies in memory, of whatever library, and answers in kind."""

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


def test_lazy_arrays_are_refused_with_what_to_do():
    lazy = pytest.importorskip("dask.array").from_array(P)
    with pytest.raises(TypeError, match=r"probabilities: .* got dask.array.* to an array of NumPy"):
        ps.brier_score(lazy, LABELS.tolist())


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
