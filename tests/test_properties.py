"""Laws that hold for any input, tried on inputs that hypothesis invents."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import oracles
import pytest
from cases import FLOATS, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ULP

import pysoftmax as ps

settings.register_profile("laws", deadline=None, derandomize=True, max_examples=150)
settings.load_profile("laws")


@st.composite
def rows(draw, bound=80.0, least=1, most=200):
    dtype = np.dtype(draw(st.sampled_from(FLOATS)))
    width = 8 * dtype.itemsize
    element = st.one_of(
        st.floats(-bound, bound, width=width),
        st.integers(-int(bound), int(bound)).map(float),
        st.sampled_from([0.0, -0.0, 2.0**-30, bound, -bound]),
    )
    return draw(hnp.arrays(dtype, st.integers(least, most), elements=element))


def close(got, want, ulps):
    """Within so many units in the last place of what is wanted."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    errors = oracles.ulp_errors(got, want) if got.size else np.zeros(1)
    return bool(errors.max() <= ulps)


@given(rows())
def test_probabilities_lie_in_the_unit_interval_and_sum_to_one(x):
    p = ps.softmax(x)
    assert ((p >= 0) & (p <= 1)).all()
    assert abs(math.fsum(p.tolist()) - 1) <= ULP["softmax"] * np.finfo(x.dtype).eps


@given(rows())
def test_log_probabilities_are_at_most_zero(x):
    assert (ps.log_softmax(x) <= 0).all()


@given(rows())
def test_the_order_of_the_logits_is_the_order_of_the_probabilities(x):
    order = np.argsort(x, kind="stable")
    assert (np.diff(ps.softmax(x)[order]) >= 0).all()
    assert (np.diff(ps.log_softmax(x)[order]) >= 0).all()
    assert ps.softmax(x)[np.argmax(x)] == ps.softmax(x).max()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", [ps.softmax, ps.log_softmax], ids=["softmax", "log_softmax"])
def test_the_order_of_neighbouring_logits(dtype, function):
    """Consecutive numbers around the places where the reduction of the exponential changes."""
    for k in range(1, 60):
        seam = np.asarray(-(k - 0.5) * math.log(2), dtype)
        unit = np.spacing(abs(seam))
        x = np.concatenate([[0], seam + np.arange(-64, 64) * unit]).astype(dtype)
        assert (np.diff(function(x)[1:]) >= 0).all(), f"around {seam}"


@given(rows(), st.randoms(use_true_random=False))
def test_permuting_the_classes_permutes_the_probabilities(x, random):
    order = np.array(random.sample(range(x.size), x.size))
    assert close(ps.softmax(x[order]), ps.softmax(x)[order], 2 * ULP["softmax"])
    assert close(ps.log_softmax(x[order]), ps.log_softmax(x)[order], 2 * ULP["log_softmax"])


@given(rows(), st.integers(-1000, 1000))
def test_shifting_every_logit_changes_nothing(x, shift):
    x = np.round(x * 64) / 64  # so that the shift is exact
    moved = x + np.asarray(shift, x.dtype)
    assert close(ps.softmax(moved), ps.softmax(x), 2 * ULP["softmax"])
    assert close(ps.log_softmax(moved), ps.log_softmax(x), 2 * ULP["log_softmax"])


@given(rows(bound=30.0))
def test_the_exponential_of_log_softmax_is_softmax(x):
    p, log_p = ps.softmax(x), ps.log_softmax(x)
    relative = (ULP["softmax"] + ULP["log_softmax"] * (1 - log_p)) * np.finfo(x.dtype).eps
    exact = np.exp(log_p.astype(np.longdouble))
    assert (abs(exact - p) <= relative * exact).all()


@given(rows())
def test_logsumexp_lies_between_the_maximum_and_that_of_equal_logits(x):
    lse = float(ps.logsumexp(x))
    slack = ULP["logsumexp"] * float(np.finfo(x.dtype).eps) * (abs(lse) + abs(float(x.max())))
    assert float(x.max()) - slack <= lse <= float(x.max()) + math.log(x.size) + slack


@given(rows(least=2), st.data())
def test_masking_classes_is_deleting_them(x, data):
    where = data.draw(hnp.arrays(bool, x.shape))
    where[data.draw(st.integers(0, x.size - 1))] = True
    kept = x[where]
    assert close(ps.softmax(x, where=where)[where], ps.softmax(kept), 2 * ULP["softmax"])
    masked = ps.log_softmax(x, where=where)[where]
    assert close(masked, ps.log_softmax(kept), 2 * ULP["log_softmax"])
    assert not ps.softmax(x, where=where)[~where].any()


@given(rows(bound=20.0), st.integers(-4, 4))
def test_a_temperature_of_a_power_of_two_is_exact_division(x, k):
    t = 2.0**k
    scaled = (x / np.asarray(t, x.dtype)).astype(x.dtype)
    assert close(ps.softmax(x, temperature=t), ps.softmax(scaled), 2 * ULP["softmax"])


@given(rows(bound=20.0), st.floats(0.05, 20))
def test_temperature_keeps_the_order(x, t):
    order = np.argsort(x, kind="stable")
    assert (np.diff(ps.softmax(x, temperature=t)[order]) >= 0).all()


@given(rows(bound=40.0), st.data())
def test_a_one_hot_target_is_its_index(x, data):
    index = data.draw(st.integers(0, x.size - 1))
    one_hot = np.zeros_like(x)
    one_hot[index] = 1
    by_index = ps.cross_entropy_with_grad(x, index)
    by_share = ps.cross_entropy_with_grad(x, one_hot)
    assert close(by_share[0], by_index[0], 2 * ULP["cross_entropy"])
    # Of a share nothing says that it is an index, so that p - q is simply subtracted.
    errors = oracles.ulp_errors(by_share[1], by_index[1], np.ones_like(x))
    assert errors.max() <= 2 * ULP["cross_entropy_with_grad"]


@given(rows(bound=40.0), st.data())
def test_the_loss_is_minus_the_log_probability(x, data):
    index = data.draw(st.integers(0, x.size - 1))
    loss = np.asarray(ps.cross_entropy(x, index))
    assert close(loss, -ps.log_softmax(x)[index], 2 * ULP["cross_entropy"])


@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 30), st.integers(1, 9)), elements=st.floats(-9, 9)
    ),
    st.data(),
)
def test_the_reductions_agree(x, data):
    n, classes = x.shape
    labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    each, sums, mean = (
        ps.cross_entropy_with_grad(x, labels, reduction=reduction)
        for reduction in ("none", "sum", "mean")
    )
    total = math.fsum(each[0].tolist())
    assert float(sums[0]) == pytest.approx(total, rel=1e-15, abs=0)
    assert float(mean[0]) == pytest.approx(total / n, rel=1e-15, abs=0)
    assert (each[1] == sums[1]).all()
    assert mean[1] == pytest.approx(sums[1] / n, rel=1e-15, abs=1e-300)
    targets = ps.softmax(x[::-1])
    loss = ps.cross_entropy(x, targets, reduction="none")
    assert float(ps.cross_entropy(x, targets)) == pytest.approx(math.fsum(loss) / n, rel=1e-15)


@given(rows(bound=80.0))
def test_sigmoid_is_the_softmax_of_two_classes(x):
    pair = np.stack([x, np.zeros_like(x)], axis=-1)
    assert close(ps.sigmoid(x), ps.softmax(pair)[:, 0], ULP["sigmoid"] + ULP["softmax"])
    log_p = ps.log_softmax(pair)[:, 0]
    assert close(ps.log_sigmoid(x), log_p, ULP["log_sigmoid"] + ULP["log_softmax"])
    both = ps.sigmoid(x).astype(np.float64) + ps.sigmoid(-x)
    assert (abs(both - 1) <= ULP["sigmoid"] * np.finfo(x.dtype).eps).all()


@given(rows(bound=80.0))
def test_binary_cross_entropy_is_the_cross_entropy_of_two_classes(x):
    pair = np.stack([np.zeros_like(x), x], axis=-1)
    for label in (0, 1):
        z = np.full_like(x, label)
        binary = ps.binary_cross_entropy_with_logits(x, z, reduction="none")
        loss = ps.cross_entropy(pair, np.full(x.size, label), reduction="none")
        limit = ULP["binary_cross_entropy_with_logits"] + ULP["cross_entropy"]
        assert close(binary, loss, limit)


def test_a_long_row_keeps_the_order_of_its_logits():
    for dtype in FLOATS:
        x = np.sort(normal(100_003, dtype, scale=8))
        assert (np.diff(ps.softmax(x)) >= 0).all()
        assert (np.diff(ps.log_softmax(x)) >= 0).all()
