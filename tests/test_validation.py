"""The checklist before deployment: every defect is found, and what is right passes."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import scipy.special
from cases import BFLOAT16, LAYOUTS, normal

import pysoftmax as ps
from pysoftmax.demo import load_digits
from pysoftmax.testing import assert_valid

INF, NAN = math.inf, math.nan
FINITE = "probabilities are finite"
RANGE = "probabilities are in [0, 1]"
SUMS = "rows add up to 1"
MATCH = "probabilities are those of the logits"
EXTREME = "extreme logits are handled"
RAW = "logits are raw"
TEMPERATURE = "temperature is recorded and tested"
LOSS = "loss matches activation"
OUTPUTS = "outputs match classes"
LABELS = "labels are classes"
SUIT = "labels suit activation"
RARE = "rare classes are predicted"


def statuses(report):
    return {check.name: check.status for check in report.checks}


def failed(report):
    return [check.name for check in report.checks if check.status == "fail"]


def warned(report):
    return [check.name for check in report.checks if check.status == "warn"]


def altered(p, index, value):
    p = np.array(p)
    p[index] = value
    return p


@pytest.fixture
def digits():
    return load_digits()


# --- what is right ------------------------------------------------------------------------------


def test_a_sound_classifier_passes_every_check(digits):
    logits, labels = digits
    report = ps.validate(
        ps.softmax(logits),
        logits,
        labels,
        activation="softmax",
        loss="cross_entropy",
        n_classes=10,
        temperature=1.0,
    )
    assert isinstance(report, ps.Report)
    assert set(statuses(report).values()) == {"pass"}
    assert report.passed
    report.raise_if_failed()


@pytest.mark.parametrize(
    ("given", "checked"),
    [
        ({"probabilities"}, {FINITE, RANGE, SUMS, RAW}),
        ({"logits"}, {"logits are finite", RANGE, SUMS, RAW}),
        ({"probabilities", "labels"}, {FINITE, RANGE, SUMS, RAW, LABELS, SUIT, RARE}),
    ],
)
def test_what_is_not_given_is_not_checked(digits, given, checked):
    logits, labels = digits
    arguments = {"probabilities": ps.softmax(logits), "logits": logits, "labels": labels}
    found = statuses(ps.validate(**{name: arguments[name] for name in given}))
    assert {name for name, status in found.items() if status != "not checked"} == checked
    assert set(found.values()) == {"pass", "not checked"}


@pytest.mark.parametrize("n", [2, 10, 1000, 70_001])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("softmax", [ps.softmax, scipy.special.softmax], ids=["ours", "SciPy"])
def test_rounding_is_no_finding(n, scale, dtype, softmax):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
        dtype = BFLOAT16
    logits = normal((3, n), dtype, scale=scale)
    wide = softmax is ps.softmax or dtype in ("float32", "float64")
    p = softmax(logits if wide else logits.astype("float32"), axis=-1).astype(dtype)
    assert_valid(p, logits)
    assert warned(ps.validate(p, logits)) == []


@pytest.mark.parametrize("temperature", [0.0, 0.5, 8.5, INF, [[0.5], [2.0]]])
@pytest.mark.parametrize("shift", [0, 10_000])
def test_the_temperature_is_taken_into_account(temperature, shift):
    logits = normal((2, 3, 5), "float32") + np.float32(shift)
    p = ps.softmax(logits, temperature=temperature)
    report = ps.validate(p, logits, temperature=temperature)
    assert report[MATCH].status == "pass"
    assert ps.validate(p, logits)[MATCH].status == "fail"


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-7, INF])
def test_a_limit_of_the_temperature_that_was_not_applied_is_found(temperature):
    logits = normal((2, 5), "float32")
    for each in (temperature, [temperature, 2]):
        assert ps.validate(ps.softmax(logits), logits, temperature=each)[MATCH].status == "fail"


def test_ties_share_at_temperature_0():
    for each in (0, [0]):
        assert ps.validate([[0.5, 0.5]], [[1, 1]], temperature=each)[MATCH].status == "pass"
        assert ps.validate([[0.9, 0.1]], [[1, 1]], temperature=each)[MATCH].status == "fail"


@pytest.mark.parametrize("temperature", [0.3, 0.7, 3.0])
def test_logits_may_be_divided_before_the_softmax(temperature):
    logits = normal((200, 10), "float32") + np.float32(10_000)
    p = scipy.special.softmax(logits / np.float32(temperature), axis=-1)
    assert ps.validate(p, logits, temperature=temperature)[MATCH].status == "pass"
    assert ps.validate(p, logits, temperature=1.02 * temperature)[MATCH].status == "fail"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_layout_and_axis(layout, axis):
    logits = LAYOUTS[layout](normal((4, 5, 6), "float32"))
    p = ps.softmax(logits, axis)
    labels = np.zeros_like(np.argmax(p, axis))
    assert ps.validate(p, logits, labels, axis=axis).passed


def test_sigmoid_rows_need_not_add_up_to_1():
    logits = normal((50, 4), "float32", scale=200.0)
    labels = (logits > 0).astype(int)
    report = ps.validate(
        ps.sigmoid(logits),
        logits,
        labels,
        activation="sigmoid",
        loss="binary_cross_entropy_with_logits",
        n_classes=4,
    )
    assert report.passed
    assert report[SUMS].status == "not checked"
    assert failed(ps.validate(ps.sigmoid(logits))) == [SUMS]


def test_a_single_sigmoid_tells_two_classes_apart():
    logits = normal((50, 1), "float64")
    labels = (logits[:, 0] > 0).astype(int)
    options = {"activation": "sigmoid", "loss": "binary_cross_entropy", "n_classes": 2}
    assert ps.validate(logits=logits, labels=labels, **options).passed
    report = ps.validate(logits=logits, labels=labels + 1, **options)
    assert report[LABELS].where == f"labels[{int(np.argmax(labels))}]"


def test_one_row_may_come_alone():
    report = ps.validate([0.2, 0.9], labels=1)
    assert failed(report) == [SUMS]
    assert report[SUMS].where == "probabilities[:]"
    assert ps.validate([0.2, 0.8], labels=2)[LABELS].where == "labels"


# --- what is wrong ------------------------------------------------------------------------------

P = ps.softmax(normal((3000, 50), "float32", 1))


@pytest.mark.parametrize(
    ("index", "value", "names", "where"),
    [
        ((7, 3), NAN, [FINITE], "probabilities[7, 3]"),
        ((2999, 49), INF, [FINITE, RANGE, SUMS], "probabilities[2999, 49]"),
        ((2000, 0), -0.5, [RANGE, SUMS], "probabilities[2000, 0]"),
        ((1, 2), 1.5, [RANGE, SUMS], "probabilities[1, 2]"),
        ((1500, 2), 0.5, [SUMS], "probabilities[1500, :]"),
        ((slice(9, 12), slice(None)), 0.0, [SUMS], "probabilities[9, :]"),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_first_bad_value_is_told_by_its_place(index, value, names, where, axis):
    p = np.moveaxis(altered(P, index, value), 1, axis)
    report = ps.validate(p, axis=axis)
    assert failed(report) == names
    if axis == 0:
        where = "probabilities[{1}, {0}]".format(*where[14:-1].split(", "))
    assert report[names[0]].where == where
    assert report[names[0]].advice


def test_places_in_many_dimensions():
    p = np.moveaxis(ps.softmax(normal((40, 5000, 3), "float64")), -1, 1)
    for place in [(0, 1, 0), (39, 2, 4999), (17, 0, 2500)]:
        report = ps.validate(altered(p, place, NAN), axis=1)
        assert report[FINITE].where == "probabilities[{}, {}, {}]".format(*place)
        assert report[FINITE].measured == "1 of 600000 values NaN or infinite"


@pytest.mark.parametrize(("excess", "status"), [(5e-16, "pass"), (1e-7, "warn"), (1e-3, "fail")])
def test_float64_that_was_computed_in_float32_is_a_warning(excess, status):
    assert ps.validate([[0.25, 0.75], [0.25, 0.75 + excess]])[SUMS].status == status
    assert ps.validate(np.float32([[0.25, 0.75 + excess]]))[SUMS].status in ("pass", status)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: ps.softmax(ps.softmax(x)), "softmax applied twice"),
        (ps.sigmoid, "those of sigmoid"),
        (ps.log_softmax, "logarithms"),
        (lambda x: x, "apply the activation"),
        (lambda x: ps.softmax(x, temperature=1.5), "look for"),
        (lambda x: ps.softmax(x, axis=0), "look for"),
        (lambda x: ps.softmax(x[:, ::-1]), "look for"),
    ],
)
def test_what_is_no_softmax_of_the_logits_is_named(make, words):
    logits = normal((8, 4), "float64")
    report = ps.validate(make(logits), logits)
    assert MATCH in failed(report)
    assert words in report[MATCH].advice


def test_a_temperature_that_was_not_applied_is_named():
    logits = normal((8, 4), "float64")
    report = ps.validate(ps.softmax(logits), logits, temperature=2.0)
    assert "temperature 1" in report[MATCH].advice


def test_a_softmax_that_fails_on_extreme_logits_only():
    logits = np.float32([[1, 2, 3], [1, 1000, 1000], [-200, -300, -INF]])
    p = altered(ps.softmax(logits), 1, [0.0, 1.0, 0.0])
    report = ps.validate(p, logits)
    assert report[EXTREME].status == "fail"
    assert report[EXTREME].where == "probabilities[1, 1]"
    assert report[EXTREME].measured == "2 of 3 rows, largest |logit| 1000"
    assert ps.validate(ps.softmax(logits), logits)[EXTREME].status == "pass"
    with np.errstate(all="ignore"):
        naive = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert failed(ps.validate(naive, logits)) == [FINITE, MATCH, EXTREME]


def test_extreme_logits_are_not_blamed_where_ordinary_ones_fail_too():
    logits = np.float32([[1, 2, 3], [1, 1000, 1000]])
    report = ps.validate(ps.softmax(logits[:, ::-1]), logits)
    assert report[EXTREME].status == "not checked"


@pytest.mark.parametrize("value", [NAN, INF])
def test_logits_must_be_numbers(value):
    logits = altered(normal((5, 3), "float32"), (4, 1), value)
    report = ps.validate(logits=logits)
    assert failed(report) == ["logits are finite"]
    assert report["logits are finite"].where == "logits[4, 1]"


def test_a_class_may_take_no_part():
    logits = altered(normal((5, 3), "float32"), (4, 1), -INF)
    assert ps.validate(ps.softmax(logits), logits).passed


# --- double softmax -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n", [2, 10, 1000])
def test_logits_that_are_probabilities_are_found(dtype, n):
    p = ps.softmax(normal((20, n), dtype))
    assert failed(ps.validate(logits=p)) == [RAW]
    assert failed(ps.check_pairing(logits=p)) == [RAW]
    assert ps.check_pairing(logits=ps.softmax(p) * 0.9)[RAW].status == "warn"
    assert ps.check_pairing(logits=ps.log_softmax(p))[RAW].status == "pass"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n", [2, 10, 1000])
def test_probabilities_of_a_double_softmax_are_suspected(dtype, n):
    p = ps.softmax(normal((20, n), dtype))
    assert ps.validate(p)[RAW].status == "pass"
    assert warned(ps.validate(ps.softmax(p))) == [RAW]


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_labels_outside_the_classes_are_told_by_their_place(dtype):
    labels = np.zeros(3000, dtype)
    labels[2500:] = 50
    report = ps.validate(P, labels=labels)
    assert failed(report) == [LABELS]
    assert report[LABELS].where == "labels[2500]"
    assert report[LABELS].measured == "500 not in [0, 50)"


def test_softmax_needs_exactly_one_right_class():
    labels = np.eye(50, dtype=int)[np.arange(3000) % 50]
    options = {"activation": "softmax"}
    assert ps.validate(P, labels=labels, **options)[SUIT].status == "pass"
    labels[123] = 0
    labels[2000, :2] = 1
    report = ps.validate(P, labels=labels, **options)
    assert failed(report) == [SUIT]
    assert report[SUIT].where == "labels[123, :]"
    assert report[SUIT].measured == "one right class in 2998 of 3000 rows"
    assert ps.validate(P, labels=labels, activation="sigmoid")[SUIT].status == "pass"


def test_sigmoid_where_one_class_is_right_is_a_warning():
    logits = normal((9, 3), "float64")
    for labels in (np.zeros(9, int), np.eye(3)[np.arange(9) % 3]):
        report = ps.check_pairing("sigmoid", logits=logits, labels=labels)
        assert warned(report) == [SUIT]


def test_labels_of_each_class_are_0_or_1():
    labels = altered(np.eye(3), (1, 2), 0.5)
    report = ps.validate(np.full((3, 3), 1 / 3), labels=labels)
    assert report[LABELS].where == "labels[1, 2]"
    report = ps.validate(np.full((1, 3), 1 / 3), labels=[[2, -1, 0]])
    assert report[LABELS].measured == "2 not 0 or 1"
    assert report[RARE].status == "not checked"


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_rare_class_that_is_never_predicted_is_a_warning(one_hot):
    labels = np.array([0] * 45 + [1] * 45 + [2] * 10)
    p = np.tile([0.5, 0.49, 0.01], (100, 1))
    targets = np.eye(3, dtype=bool)[labels] if one_hot else labels
    report = ps.validate(p, labels=targets)
    assert RARE in warned(report)
    assert "0.01 for the rows of class 2" in report[RARE].measured
    p[90:] = [0.1, 0.1, 0.8]
    assert ps.validate(p, labels=targets)[RARE].status == "pass"


@pytest.mark.parametrize(("temperature", "status"), [(1, "pass"), (8.5, "pass"), (0.5, "warn")])
def test_the_temperature_is_tested_on_the_labels(digits, temperature, status):
    logits, labels = digits
    check = ps.validate(logits=logits, labels=labels, temperature=temperature)[TEMPERATURE]
    assert check.status == status
    loss = ps.cross_entropy(logits.astype(float), labels, temperature=temperature)
    assert f"T = {temperature}, log-loss {loss:.4g}; 0.9088 at 1" == check.measured


def test_a_label_that_is_impossible_is_a_warning():
    check = ps.validate(logits=[[0.0, -INF]], labels=[1], temperature=1)[TEMPERATURE]
    assert (check.status, check.measured) == ("warn", "T = 1, log-loss inf; inf at 1")


def test_a_temperature_without_labels_is_recorded_only():
    assert ps.validate(logits=[[0.0, 2.0]], temperature=2)[TEMPERATURE].measured == (
        "recorded, T = 2; not tested"
    )


# --- pairing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softmax", "Sigmoid"])
@pytest.mark.parametrize(
    "loss", ["cross-entropy", "binary cross entropy", "binary_cross_entropy_with_logits"]
)
def test_loss_and_activation_belong_together(activation, loss):
    report = ps.check_pairing(activation, loss)
    right = (activation == "softmax") == (loss == "cross-entropy")
    assert report[LOSS].status == ("pass" if right else "fail")
    assert report.passed == right


@pytest.mark.parametrize(
    ("activation", "outputs", "classes", "status"),
    [
        ("softmax", 10, 10, "pass"),
        ("softmax", 9, 10, "fail"),
        ("softmax", 1, 1, "fail"),
        ("softmax", 1, 2, "fail"),
        ("softmax", 1, None, "fail"),
        ("sigmoid", 1, 2, "pass"),
        ("sigmoid", 1, 3, "fail"),
        ("sigmoid", 4, 4, "pass"),
        ("softmax", 4, None, "not checked"),
        ("softmax", None, 4, "not checked"),
        (None, 4, 4, "pass"),
    ],
)
def test_one_output_per_class(activation, outputs, classes, status):
    report = ps.check_pairing(activation, "cross_entropy", n_outputs=outputs, n_classes=classes)
    assert report[OUTPUTS].status == status
    if outputs:
        zeros = np.zeros((2, outputs))
        report = ps.validate(logits=zeros, activation=activation, n_classes=classes)
        assert report[OUTPUTS].status == status


def test_pairing_tells_what_it_cannot_check():
    assert set(statuses(ps.check_pairing("softmax")).values()) == {"not checked"}


# --- the report ---------------------------------------------------------------------------------


def test_a_report_is_a_table_json_and_an_exception():
    report = ps.validate([[0.5, 0.6], [0.4, 0.6]], activation="softmax", loss="cross_entropy")
    assert not report.passed
    restored = json.loads(json.dumps(report.to_dict()))
    assert restored["passed"] is False
    assert [check["name"] for check in restored["checks"]] == list(statuses(report))
    assert restored["checks"][2] == {
        "name": SUMS,
        "status": "fail",
        "measured": report[SUMS].measured,
        "where": "probabilities[0, :]",
        "advice": report[SUMS].advice,
    }
    lines = str(report).splitlines()
    assert lines[0].split() == ["check", "result", "measured"]
    assert lines[2].split() == [*FINITE.split(), "pass", "4", "values"]
    assert lines[-1] == f"warn: {RAW}: {report[RAW].advice}"
    assert lines[-2].startswith(f"fail: {SUMS} at probabilities[0, :]: ")
    with pytest.raises(ValueError, match=r"validation failed\ncheck ") as caught:
        report.raise_if_failed()
    assert str(report) in str(caught.value)
    with pytest.raises(KeyError):
        report["no such check"]


def test_assert_valid_shows_the_table():
    with pytest.raises(AssertionError, match=r"fail: rows add up to 1 at probabilities\[0, :\]"):
        assert_valid([[0.5, 0.6]])
    assert assert_valid([[0.4, 0.6]]) is None


def test_memory_is_bounded():
    """Logits and probabilities of 16 MB each."""
    x = normal((1 << 17, 32), "float32")
    p, labels = ps.softmax(x), np.zeros(len(x), np.uint8)
    tracemalloc.start()
    report = ps.validate(p, x, labels, temperature=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.passed
    assert peak < 8e6


# --- what is refused ----------------------------------------------------------------------------

ROWS = [[0.2, 0.8], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "expected probabilities, logits or both"),
        ({"labels": [0]}, ValueError, "expected probabilities, logits or both"),
        ({"logits": np.zeros((0, 3))}, ValueError, r"at least one row.*\(0, 3\)"),
        ({"logits": np.zeros((3, 0))}, ValueError, r"one class.*\(3, 0\)"),
        ({"logits": 1.0}, ValueError, "at least one dimension"),
        ({"logits": [["a"]]}, TypeError, "expected an array of"),
        ({"logits": ROWS, "axis": 2}, np.exceptions.AxisError, "out of bounds"),
        ({"logits": ROWS, "axis": (0, 1)}, TypeError, "axis must be one int"),
        (
            {"logits": ROWS, "probabilities": [0.5, 0.5]},
            ValueError,
            r"one shape, got \(2,\) and \(2, 2\)",
        ),
        ({"logits": ROWS, "labels": [0, 1, 1]}, ValueError, r"\(2,\).*\(2, 2\), got \(3,\)"),
        ({"logits": ROWS, "labels": [0.0, 1.0]}, TypeError, "labels must be integers"),
        ({"logits": ROWS, "labels": ["a", "b"]}, TypeError, "labels must be integers"),
        ({"logits": ROWS, "activation": "relu"}, ValueError, "softmax, sigmoid, got 'relu'"),
        ({"logits": ROWS, "activation": ps.softmax}, TypeError, "activation must be a name"),
        ({"logits": ROWS, "loss": "mse"}, ValueError, "binary_cross_entropy.*got 'mse'"),
        ({"logits": ROWS, "n_classes": 0}, ValueError, "n_classes must be at least 1, got 0"),
        ({"logits": ROWS, "n_classes": 2.0}, TypeError, "float"),
        ({"logits": ROWS, "temperature": -1}, ValueError, "temperature must be >= 0"),
        ({"logits": ROWS, "temperature": [1, 2, 3]}, ValueError, "temperature must broadcast"),
        (
            {"logits": ROWS, "temperature": 0, "activation": "sigmoid"},
            ValueError,
            "temperature must be > 0 for sigmoid",
        ),
        (
            {"probabilities": np.ma.array(ROWS, mask=[[0, 1], [0, 0]])},
            ValueError,
            "probabilities has masked entries",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ps.validate(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "expected an activation"),
        ({"activation": "softmax", "labels": [0]}, ValueError, "give both"),
        ({"n_outputs": 3, "logits": ROWS}, ValueError, "n_outputs is 3, but .* of 2"),
        ({"n_outputs": 0}, ValueError, "n_outputs must be at least 1"),
    ],
)
def test_bad_arguments_of_pairing_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ps.check_pairing(**arguments)


def test_a_row_of_minus_infinity_is_no_distribution():
    report = ps.validate(logits=[[0.0, -INF], [-INF, -INF]])
    assert report["logits are finite"].status == "fail"
    assert report["logits are finite"].where == "logits[1, 0]"
    assert ps.validate(logits=[[0.0, -INF], [-INF, -INF]], activation="sigmoid").passed


def test_one_output_is_no_softmax_which_is_taken_where_none_is_named():
    assert ps.validate([[1.0], [1.0]])["outputs match classes"].status == "fail"
