"""ConfidenceMonitor: NumPy's numbers on any split and merge; alerts, drift, what it shows."""

import json
import logging
import math
import sys
import threading
import tracemalloc

import mpmath
import numpy as np
import pytest
from cases import BFLOAT16, FLOATS, LAYOUTS, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import pysoftmax as ps
from pysoftmax import _confidence, monitoring
from pysoftmax.backends import _cpu as cpu
from pysoftmax.backends import numpy as numpy_backend
from pysoftmax.monitoring import PIECES, Alert

INF, NAN = math.inf, math.nan
# A confidence is rounded to 2^-48: what that can change of a mean or standard deviation.
RESOLUTION = 2.0**-48


def predicted(n, classes=7, seed=0, dtype="float64", sharpness=1.0):
    return ps.softmax(normal((n, classes), dtype, seed, 3.0 * sharpness))


def watching(p, **options):
    """A monitor that looks at all of some rows."""
    monitor = ps.ConfidenceMonitor(p.shape[-1], **{"entropy_every": 1, **options})
    monitor.update(p)
    return monitor


def known(summary):
    """A summary as something that compares equal, bit for bit."""
    return json.dumps(summary.to_dict())


def of_numpy(p, n_bins=20, high=0.95, low=0.20):
    """What a monitor should say of probabilities with the classes last."""
    c, labels = p.max(axis=-1).reshape(-1).astype(np.float64), p.argmax(axis=-1).reshape(-1)
    p, k = p.reshape(-1, p.shape[-1]).astype(np.float64), p.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(axis=1)
    bins = np.searchsorted(np.arange(1, n_bins) / n_bins, np.minimum(c, 1), side="left")
    return {
        "count": len(c),
        "mean": c.mean(),
        "std": c.std(),
        "chance_corrected": ((c - 1 / k) / (1 - 1 / k)).mean(),
        "share_above": (c > high).mean(),
        "share_below": (c < low).mean(),
        "entropy": entropy.mean(),
        "normalized_entropy": entropy.mean() / math.log(k),
        "histogram": np.bincount(bins, minlength=n_bins),
        "class_shares": np.bincount(labels, minlength=k) / len(c),
    }


def assert_says(summary, expected, entropy_rtol=1e-12):
    for name, value in expected.items():
        found = getattr(summary, name)
        rtol = entropy_rtol if "entropy" in name else 1e-13
        # The root turns an error of e in a variance of 0 into one of sqrt(e).
        atol = 1e-7 if name == "std" and value < 1e-7 else 2 * RESOLUTION
        np.testing.assert_allclose(found, value, rtol, atol, err_msg=name)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"columns broadcast"}))
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_numbers_are_those_of_numpy(dtype, layout):
    p = LAYOUTS[layout](predicted(500, dtype=dtype))
    monitor = watching(p)
    assert_says(monitor.total, of_numpy(p), 1e-12 if dtype == "float64" else 1e-6)
    assert known(monitor.recent) == known(monitor.total)
    assert monitor.total.n_entropy == 500
    assert monitor.total.histogram.dtype == np.int64
    assert monitor.total.class_shares.dtype == np.float64


@pytest.mark.parametrize("dtype", ["float16", *(["bfloat16"] if BFLOAT16 else [])])
def test_half_precisions_are_exact_too(dtype):
    p = predicted(300, dtype="float32").astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    assert_says(watching(p).total, of_numpy(p.astype(np.float64)), 1e-6)


@pytest.mark.parametrize("axis", [-1, 0, 1, 2, -3])
def test_the_classes_may_be_along_any_axis(axis):
    p = np.moveaxis(predicted(60, 5).reshape(6, 10, 5), -1, axis)
    monitor = ps.ConfidenceMonitor(5, entropy_every=1)
    monitor.update(p, axis=axis)
    assert known(monitor.total) == known(watching(np.moveaxis(p, axis, -1).reshape(60, 5)).total)


def test_a_single_row_needs_no_axis_of_rows():
    monitor = ps.ConfidenceMonitor(3)
    monitor.update([0.5, 0.25, 0.25])
    assert (monitor.total.count, monitor.total.mean, monitor.total.std) == (1, 0.5, 0.0)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_no_rows_change_nothing(shape):
    monitor = ps.ConfidenceMonitor(4)
    monitor.update(np.empty(shape))
    assert monitor.total.count == 0
    assert math.isnan(monitor.total.mean)
    assert np.isnan(monitor.total.class_shares).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5, 0, INF, "by row"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_logits_count_as_their_softmax(dtype, temperature):
    x = normal((200, 6), dtype, 1, 3.0)
    if temperature == "by row":
        temperature = np.random.default_rng(2).uniform(0.5, 4, 200)
    monitor = ps.ConfidenceMonitor(6, entropy_every=1, every=3)
    for part in np.array_split(np.arange(200), 9):
        t = temperature if np.ndim(temperature) == 0 else temperature[part]
        monitor.update(logits=x[part], temperature=t)
    expected = watching(ps.softmax(x, temperature=temperature)[::3])
    assert known(monitor.total) == known(expected.total)


def test_temperatures_of_rows_follow_the_rows():
    x = normal((4, 6, 5), "float64", 1, 3.0)
    t = np.random.default_rng(0).uniform(0.5, 4, (4, 5))
    monitor = ps.ConfidenceMonitor(6)
    monitor.update(logits=x, axis=1, temperature=t)
    p = np.moveaxis(ps.softmax(x, 1, temperature=t), 1, -1)
    assert_says(monitor.total, {"mean": p.max(axis=-1).mean()})


def test_probabilities_that_are_integers_and_bool():
    for dtype in (int, bool, np.uint8):
        assert watching(np.eye(4, dtype=dtype)).total.mean == 1.0


@pytest.mark.parametrize("n_classes", [2, 5000, 40_000, 200_000])
def test_few_and_many_classes(n_classes):
    p = predicted(6, n_classes, dtype="float32")
    assert_says(watching(p, low=0.0).total, of_numpy(p, low=0.0), 1e-5)


def test_bins_include_their_upper_edge():
    p = np.array([[0.5, 0.5], [0.75, 0.25], [0.75 + 2**-48, 0.25], [1.0, 0.0]])
    assert watching(p, n_bins=4).total.histogram.tolist() == [0, 1, 1, 2]


def test_high_and_low_are_not_beyond_themselves():
    summary = watching(np.array([[0.95, 0.05], [0.96, 0.04], [0.6, 0.4]]), low=0.6).total
    assert (summary.share_above, summary.share_below) == (1 / 3, 0)


def test_chance_corrected_cuts_reach_two_classes():
    p = np.array([[0.55, 0.45], [0.99, 0.01], [0.7, 0.3]])
    summary = watching(p, chance_corrected=True, high=0.9, low=0.2).total
    assert (summary.share_above, summary.share_below) == (1 / 3, 1 / 3)


def test_equal_confidences_deviate_by_nothing():
    assert watching(np.full((5000, 3), [0.8, 0.1, 0.1])).total.std == 0.0


# --- rows that are no probabilities ---------------------------------------------------------------


def test_what_is_no_distribution_is_counted_apart_and_poisons_nothing():
    good = predicted(40, 3)
    bad = [
        [NAN, 0.5, 0.5],
        [0.2, NAN, NAN],
        [7.0, 1.0, -3.0],
        [INF, 0, 0],
        [0.1, 0.1, 0.1],
        [-1] * 3,
    ]
    monitor = watching(np.concatenate([good[:20], bad, good[20:]]))
    assert (monitor.total.n_nan, monitor.total.n_invalid) == (2, 4)
    assert monitor.total.n_entropy == 40
    assert known(monitor.total) == known(
        watching(good).total.__class__(**{**vars(watching(good).total), "n_nan": 2, "n_invalid": 4})
    )


def test_rounded_probabilities_are_valid():
    summary = watching(np.array([[1.0005, 0.0], [0.4999, 0.4999]])).total
    assert (summary.count, summary.n_invalid, summary.histogram[-1]) == (2, 0, 1)


def test_a_row_of_logits_without_a_softmax_is_a_nan():
    monitor = ps.ConfidenceMonitor(2)
    monitor.update(logits=[[INF, 0.0], [-INF, -INF], [1.0, NAN], [3.0, 1.0]])
    assert (monitor.total.n_nan, monitor.total.count) == (3, 1)


def test_sums_above_one_cannot_overflow_the_entropy():
    monitor = watching(np.full((9000, 1000), 0.36))
    assert monitor.total.normalized_entropy == 1.0


# --- splits and merges ----------------------------------------------------------------------------

cuts = st.lists(st.integers(0, 300), max_size=6).map(sorted)


@settings(max_examples=60, deadline=None)
@given(cuts, st.permutations(range(7)), st.sampled_from(["float32", "float64"]), st.integers(2, 9))
def test_any_split_merged_in_any_order_gives_the_same_bits(cuts, order, dtype, classes):
    p = predicted(300, classes, dtype=dtype)
    parts = np.split(p, cuts)
    monitors = [watching(part) for part in parts]
    order = [k for k in order if k < len(parts)]
    merged = monitors[order[0]]
    for k in order[1:]:
        merged.merge(monitors[k])
    streamed = ps.ConfidenceMonitor(classes, entropy_every=1)
    for part in parts:
        streamed.update(part)
    assert known(merged.total) == known(streamed.total) == known(watching(p).total)
    assert_says(merged.total, of_numpy(p), 1e-12 if dtype == "float64" else 1e-6)


@settings(max_examples=40, deadline=None)
@given(cuts, st.integers(1, 40), st.integers(0, 40))
def test_any_split_of_a_stream_looks_at_the_same_rows(cuts, every, entropy_every):
    p = predicted(300, 5)
    monitor = ps.ConfidenceMonitor(5, every=every, entropy_every=entropy_every)
    for part in np.split(p, cuts):
        monitor.update(part)
    seen = p[::every]
    expected = of_numpy(seen)
    del expected["entropy"], expected["normalized_entropy"]
    assert_says(monitor.total, expected)
    measured = seen[::entropy_every] if entropy_every else seen[:0]
    assert monitor.total.n_entropy == len(measured)
    if len(measured):
        assert_says(monitor.total, {"entropy": of_numpy(measured)["entropy"]})


@pytest.mark.parametrize("n", [1, 100, 4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("entropy_every", [1, 7, 251])
def test_large_and_small_batches_are_counted_alike(n, entropy_every):
    p = predicted(20_000, 3, dtype="float32")
    once = watching(p, entropy_every=entropy_every)
    monitor = ps.ConfidenceMonitor(3, entropy_every=entropy_every)
    for begin in range(0, len(p), n) if n > 50 else [*range(1000), slice(1000, None)]:
        monitor.update(p[begin] if isinstance(begin, slice) else p[begin : begin + n])
    assert known(monitor.total) == known(once.total)
    assert known(monitor.recent) == known(once.recent)


@pytest.mark.parametrize("every", [1, 3, 10**30])
@pytest.mark.parametrize(
    "laid_out",
    [
        np.asfortranarray,
        lambda p: np.repeat(p, 2, axis=1)[:, ::2],
        lambda p: p.astype(p.dtype.newbyteorder()),
        lambda p: p.reshape(25, -1, p.shape[-1]),
        lambda p: p.astype(">f8"),
    ],
    ids=["fortran", "strided", "byte-swapped", "3-d", "wider"],
)
def test_a_small_plain_batch_is_counted_as_any_other(laid_out, every, dtype):
    p = predicted(200, 5, dtype=dtype)
    p[30] = NAN
    p[60:90, 1] = 1.5
    p[90:110] = 0.01
    plain, other = (ps.ConfidenceMonitor(5, every=every, entropy_every=2) for _ in range(2))
    for part in np.split(p, 4):
        plain.update(part)
        other.update(laid_out(part))
    assert plain.total.n_invalid > 0 or every > 3
    assert plain.state_dict()["offered"] == other.state_dict()["offered"] == 200
    assert known(plain.total) == known(other.total)


def test_batches_of_several_dtypes_follow_each_other():
    p = predicted(90, 4)
    monitor = ps.ConfidenceMonitor(4, entropy_every=1)
    for k, dtype in enumerate(["float32", "float64", "float16"] * 3):
        monitor.update(p[10 * k : 10 * k + 10].astype(dtype))
    rounded = [p[10 * k : 10 * k + 10].astype(d) for k, d in enumerate(["f4", "f8", "f2"] * 3)]
    expected = of_numpy(np.concatenate([part.astype(np.float64) for part in rounded]))
    assert_says(monitor.total, expected, 1e-6)


def test_many_threads_lose_no_row():
    p = predicted(6000, 4, dtype="float32")
    monitor = ps.ConfidenceMonitor(4, entropy_every=1)

    def work(k):
        for begin in range(k * 1000, (k + 1) * 1000, 20):
            monitor.update(p[begin : begin + 20])
            if begin % 200 == 0:
                assert monitor.recent.count > 0

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert known(monitor.total) == known(watching(p).total)


def test_two_monitors_may_merge_each_other_at_once():
    first, second = (watching(predicted(10, 3, seed)) for seed in range(2))
    threads = [
        threading.Thread(target=a.merge, args=(b,)) for a, b in [(first, second), (second, first)]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)


def test_a_monitor_may_be_merged_with_itself():
    monitor = watching(predicted(10, 3))
    mean = monitor.total.mean
    monitor.merge(monitor)
    assert (monitor.total.count, monitor.total.mean) == (20, mean)


def test_memory_does_not_grow_with_the_rows():
    p = predicted(2000, 10, dtype="float32")
    monitor = ps.ConfidenceMonitor(10, window=1000)
    tracemalloc.start()
    for _ in range(100):  # more points than are kept
        monitor.update(p)
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(100):
        monitor.update(p)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
    assert len(monitor.state_dict()["history"]) == 500


def test_a_batch_is_not_copied():
    p = predicted(20_000, 100, dtype="float32")
    for array, axis in ((p, -1), (p.T, 0), (np.moveaxis(p.reshape(100, 200, 100), -1, 0), 0)):
        monitor = ps.ConfidenceMonitor(100)
        tracemalloc.start()
        monitor.update(array, axis=axis)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < p.nbytes / 2


# --- softmax and update in one --------------------------------------------------------------------


def hostile(shape, dtype):
    """Logits with rows of ties, of NaN and infinities, beyond the reach of exp, and far apart."""
    x = normal(shape, dtype, 3, 4.0).reshape(-1, shape[-1])
    specials = [0.0, NAN, INF, -INF, 1e30]
    for row, value in zip(x[1::2], specials, strict=False):
        row[row.size // 2 :] = value
    x[-1] = 0
    x[-1, ::2] = 50
    return x.reshape(shape)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [2, 3, 10, 17, 64, 65, 127, 513, 1000, 2049, 4100, 70_000])
def test_softmax_watched_is_softmax_and_update(dtype, n, threads):
    """Through every way that finds the largest: short rows, while they are written, and after."""
    x = hostile((23, n), dtype)
    watched, expected = (ps.ConfidenceMonitor(n, entropy_every=3) for _ in range(2))
    with ps.num_threads(threads):
        for temperature in (1.0, 0.7, INF, 0):
            p = watched.softmax(x, temperature=temperature)
            np.testing.assert_array_equal(p, ps.softmax(x, temperature=temperature))
            assert p.dtype == dtype
            expected.update(p)
    assert known(watched.total) == known(expected.total)


def test_a_row_that_threads_share_is_watched():
    x = normal((1, 1 << 20), "float32", 0, 3.0)
    with ps.num_threads(2):
        monitor = ps.ConfidenceMonitor(1 << 20, entropy_every=1)
        p = monitor.softmax(x)
    assert known(monitor.total) == known(watching(p).total)


@pytest.mark.parametrize(
    "options",
    [
        {"axis": 1},
        {"where": np.arange(6) != 2},
        {"dtype": np.float32},
        {"temperature": np.linspace(0.5, 2, 50).reshape(10, 5)},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("every", [1, 4])
def test_any_softmax_is_watched(options, every):
    x = normal((10, 5, 6) if "axis" not in options else (10, 6, 5), "float64", 1, 3.0)
    watched, expected = (ps.ConfidenceMonitor(6, every=every, entropy_every=2) for _ in range(2))
    p = watched.softmax(x, **options)
    np.testing.assert_array_equal(p, ps.softmax(x, **options))
    expected.update(p, axis=options.get("axis", -1))
    assert known(watched.total) == known(expected.total)


def test_softmax_is_watched_where_it_is_written():
    x = normal((40, 30), "float32", 1, 3.0)
    monitor = ps.ConfidenceMonitor(30, entropy_every=0)
    expected, out = ps.softmax(x), np.empty_like(x)
    assert monitor.softmax(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert monitor.softmax(x, out=x) is x
    np.testing.assert_array_equal(x, expected)
    assert monitor.total.count == 80
    assert known(monitor.total) == known(watching(np.tile(expected, (2, 1)), entropy_every=0).total)


def test_lists_and_half_precision_are_watched():
    monitor = ps.ConfidenceMonitor(2)
    assert monitor.softmax([0.0, 0.0]).tolist() == [0.5, 0.5]
    assert monitor.softmax(np.zeros((3, 2), np.float16)).dtype == np.float16
    assert (monitor.total.count, monitor.total.mean) == (4, 0.5)
    assert monitor.softmax(np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_small_softmax_is_watched_by_rows(every, dtype):
    x, out = normal((50, 5), dtype, 1, 3.0), np.empty((50, 5), dtype)
    monitor, expected = (ps.ConfidenceMonitor(5, every=every, entropy_every=2) for _ in range(2))
    for temperature in (1.0, 2.5):
        assert monitor.softmax(x, temperature=temperature, out=out) is out
        np.testing.assert_array_equal(out, ps.softmax(x, temperature=temperature))
        expected.update(np.asfortranarray(out))
    with pytest.raises(ValueError, match="temperature"):
        monitor.softmax(x, temperature=-1)
    with pytest.raises(ValueError, match="out"):
        monitor.softmax(x, out=np.empty((50, 4), dtype))
    assert monitor.state_dict()["offered"] == 100
    assert known(monitor.total) == known(expected.total)


@pytest.mark.parametrize(
    ("x", "options", "error", "words"),
    [
        (np.zeros((2, 4)), {}, ValueError, "3 classes along axis 1"),
        (np.zeros((2, 3)), {"axis": None}, TypeError, "axis"),
        (np.zeros((2, 3)), {"temperature": -1}, ValueError, "temperature"),
        (np.zeros((2, 3)), {"temperature": [1, 1, 1]}, ValueError, "broadcast"),
        (np.zeros((2, 3), complex), {}, TypeError, "expected an array of float16"),
        (np.ma.array(np.zeros((2, 3)), mask=[[0, 0, 1]] * 2), {}, ValueError, "masked"),
        (object(), {}, TypeError, "no backend"),
        ([0.0, 1.0], {}, ValueError, "x must have 3 classes along axis 0"),
    ],
)
def test_a_softmax_that_cannot_be_watched_is_refused(x, options, error, words):
    monitor, out = ps.ConfidenceMonitor(3), np.full((2, 3), 7.0)
    with pytest.raises(error, match=words):
        monitor.softmax(x, out=out, **options)
    assert (out == 7).all()
    assert monitor.state_dict()["offered"] == 0


# --- the largest of a row -------------------------------------------------------------------------


def assert_top(p):
    value, place = numpy_backend.top(p)
    assert (value.dtype, place.dtype) == (np.float64, np.int64)
    # NumPy's argmax of a row with a NaN is that of the NaN.
    nan = np.isnan(p).any(axis=1)
    np.testing.assert_array_equal(np.isnan(value), nan)
    np.testing.assert_array_equal(value[~nan], p.max(axis=1)[~nan].astype(np.float64))
    np.testing.assert_array_equal(place[~nan], p.argmax(axis=1)[~nan])


@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize(
    "n", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200, 1000]
)
def test_the_largest_is_the_first_of_its_value(any_target, dtype, n, offset):
    """Wherever it is, on whatever cache line the row begins, with ties before and after."""
    rng = np.random.default_rng(n)
    rows = n + 40
    p = np.empty(rows * n + offset, dtype)[offset:].reshape(rows, n)
    p[...] = rng.choice([0.0, 0.125, 0.25], (rows, n))
    p[np.arange(n), np.arange(n)] = 0.5
    p[n] = 0
    p[n + 1] = -0.0
    p[n + 2] = -INF
    p[n + 3] = -1
    p[n + 4 : n + 8] = NAN
    p[n + 8 : n + 30][rng.random((22, n)) < 1 / n] = NAN
    p[n + 30 :][rng.random((10, n)) < 0.3] = INF
    p[n + 35 :][rng.random((5, n)) < 0.3] = -INF
    assert_top(p)


def test_the_largest_of_long_rows(any_target, dtype):
    p = normal((5, 300_001), dtype)
    p[2, 299_999] = 9
    p[3, 5] = p[3, 300_000] = 9
    p[4, 150_000] = NAN
    assert_top(p)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 1000])
def test_the_entropy_is_that_of_its_definition(any_target, dtype, n):
    p = ps.softmax(normal((n,), dtype, n, 5.0))
    with mpmath.workdps(30):
        exact = -mpmath.fsum(x * mpmath.log(x) for x in map(mpmath.mpf, p.tolist()))
        assert abs(cpu.entropy(p) - exact) <= 4 * 2.0**-53 * exact


@pytest.mark.parametrize(
    ("p", "expected"),
    [([1, 0, 0], 0), ([0.5, 0.5], math.log(2)), ([5e-324, 1], 0), ([1.01], -1.01 * math.log(1.01))],
)
def test_the_entropy_at_the_ends(any_target, p, expected):
    assert math.isclose(cpu.entropy(np.array(p, float)), expected, rel_tol=1e-14, abs_tol=1e-296)


@pytest.mark.skipif(len(cpu.available_targets()) < 3, reason="one target with fma at most")
def test_the_entropy_has_the_same_bits_for_any_target_with_fma(dtype):
    p, found = ps.softmax(normal((1003,), dtype, 0, 5.0)), set()
    for target in set(cpu.available_targets()) - {"baseline"}:
        cpu.use_target(target)
        found.add(cpu.entropy(p))
    cpu.use_target(numpy_backend.target)
    assert len(found) == 1


# --- the window -----------------------------------------------------------------------------------


def test_recent_is_nine_to_ten_tenths_of_the_window():
    p = predicted(5000, 4)
    monitor = ps.ConfidenceMonitor(4, window=1000, entropy_every=1)
    for n in range(0, 5000, 37):
        monitor.update(p[n : n + 37])
        seen = min(n + 37, 5000)
        count = monitor.recent.count
        assert count == seen if seen < 1000 else 900 <= count <= 1000
        assert known(monitor.recent) == known(watching(p[seen - count : seen]).total)
    assert known(monitor.total) == known(watching(p).total)


def test_merged_windows_are_joined_newest_with_newest():
    p = predicted(1400, 4)
    first, second = watching(p[:1000], window=100), watching(p[1000:], window=100)
    first.merge(second)
    both = np.concatenate([p[910:1000], p[1310:1400]])
    assert known(first.recent) == known(watching(both).total)
    first.update(p[:5])
    assert first.recent.count == 185


# --- saving ---------------------------------------------------------------------------------------


def test_a_monitor_goes_on_from_its_state():
    p = predicted(900, 4)
    options = {"window": 200, "every": 3, "entropy_every": 5, "high": 0.8, "low": 0.3}
    whole, half = (ps.ConfidenceMonitor(4, **options) for _ in range(2))
    whole.update(p)
    half.update(p[:500])
    again = ps.ConfidenceMonitor(4, **options)
    again.load_state_dict(json.loads(json.dumps(half.state_dict())))
    again.update(p[500:])
    ours, theirs = again.state_dict(), whole.state_dict()
    for state in (ours, theirs):  # the times differ
        state["history"] = [point[1:] for point in state["history"]]
    assert json.dumps(ours) == json.dumps(theirs)
    assert known(again.recent) == known(whole.recent)


def _damaged(state, *path, value):
    state = json.loads(json.dumps(state))
    place = state
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "x", "state of a ConfidenceMonitor"),
        (("version",), 2, "version 1, got 2"),
        (("done",), None, "lacks done"),
        (("done",), [1], "expected a dict in done, got list"),
        (("current", "nan"), None, "current lacks nan"),
        (("current", "nan"), -1, "whole numbers >= 0 in current.nan"),
        (("current", "histogram"), [1, 2], "expected 20 whole numbers"),
        (("current", "classes", 0), 0.5, "current.classes"),
        (("current", "classes", 0), True, "current.classes"),
        (("current", "classes", 0), 2**80, "current.classes"),
        (("current", "confidence", 0), 7, "do not agree"),
        (("current", "confidence", 2), 0, "do not agree"),
        (("current", "above"), 1000, "do not agree"),
        (("pieces",), [{}] * 20, "at most 9 in pieces"),
        (("pieces",), {"a": 1}, "expected a list"),
        (("active",), ["fire"], "active must be of mean_high"),
        (("active",), [["psi"]], "active must be of mean_high"),
        (("history",), [[1.0, 2]], "expected time, rows"),
        (("history",), [["a", 2, 3, 4, 5, 6, []]], "history[0]"),
        (("offered",), "many", "offered"),
        (("settings",), None, "lacks settings"),
        (("settings", "n_classes"), 5, "n_classes=4 as this monitor has, got 5"),
        (("settings", "high"), 0.5, "high=0.95"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(path, value, words):
    monitor = watching(predicted(100, 4))
    before = monitor.state_dict()
    with pytest.raises(ValueError) as failure:
        monitor.load_state_dict(_damaged(before, *path, value=value))
    assert words in str(failure.value)
    assert monitor.state_dict() == before


@pytest.mark.parametrize("state", [None, [], "state", {}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="expected the state of a ConfidenceMonitor"):
        ps.ConfidenceMonitor(2).load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [{"high": 0.9}, {"low": 0.1}, {"window": 100}, {"n_bins": 10}, {"every": 2}]
    + [{"entropy_every": 3}, {"chance_corrected": True}],
    ids=str,
)
def test_monitors_that_count_differently_are_not_merged(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"the other monitor must have {name}="):
        ps.ConfidenceMonitor(3).merge(ps.ConfidenceMonitor(3, **options))


def test_only_monitors_are_merged():
    with pytest.raises(TypeError, match="expected a ConfidenceMonitor, got dict"):
        ps.ConfidenceMonitor(3).merge({})


# --- alerts ---------------------------------------------------------------------------------------


def rows_of(confidence, n=1000):
    return np.tile([confidence, 1 - confidence], (n, 1))


def raised(monitor):
    return {alert.name for alert in monitor.alerts() if alert.active}


def test_alerts_rise_above_a_level_and_clear_below_a_lower_one():
    monitor = ps.ConfidenceMonitor(2, window=1000, high=0.9, levels={"too_confident": (2, 2)})
    seen = []
    for confidence in (0.85, 0.91, 0.89, 0.91, 0.89, 0.87, 0.89):
        monitor.update(rows_of(confidence, 2000))
        seen.append(raised(monitor) & {"mean_high"} != set())
    assert seen == [False, True, True, True, True, False, False]


def test_the_alert_of_a_low_mean_goes_the_other_way():
    monitor = ps.ConfidenceMonitor(2, window=1000, low=0.6)
    seen = []
    for confidence in (0.7, 0.59, 0.61, 0.63):
        monitor.update(rows_of(confidence, 2000))
        seen.append("mean_low" in raised(monitor))
    assert seen == [False, True, True, False]


def test_chance_corrected_alerts_of_two_classes():
    assert "mean_low" in raised(watching(rows_of(0.55), chance_corrected=True))
    assert "mean_low" not in raised(watching(rows_of(0.55)))


def test_shares_raise_alerts():
    assert raised(watching(rows_of(0.99))) == {"mean_high", "too_confident"}
    assert raised(watching(rows_of(0.6), low=0.65)) == {"mean_low", "too_uncertain"}


def test_any_invalid_row_raises_an_alert_until_it_has_left_the_window():
    monitor = ps.ConfidenceMonitor(2, window=1000)
    monitor.update(rows_of(0.7))
    monitor.update([[NAN, 1.0]])
    assert raised(monitor) == {"invalid"}
    monitor.update(rows_of(0.7, 2000))
    assert raised(monitor) == set()


def test_only_invalid_rows_raise_that_alert_alone():
    assert raised(watching(np.full((600, 2), NAN))) == {"invalid"}


def test_too_few_rows_are_not_judged():
    monitor = watching(rows_of(0.99, 499))
    assert raised(monitor) == set()
    assert all(math.isnan(alert.value) for alert in monitor.alerts())
    monitor.update(rows_of(0.99, 1))
    assert raised(monitor) == {"mean_high", "too_confident"}


def test_alerts_say_what_they_look_at():
    (found,) = (a for a in watching(rows_of(0.96875)).alerts() if a.name == "mean_high")
    assert found == Alert("mean_high", True, 0.96875, 0.95, 0.95 - 0.02)


def test_alerts_are_logged_when_they_change(caplog):
    monitor = ps.ConfidenceMonitor(2, window=1000)
    with caplog.at_level(logging.INFO, "pysoftmax.monitoring"):
        monitor.update(rows_of(0.99, 3000))
        monitor.alerts()
        monitor.update(rows_of(0.7, 3000))
        monitor.alerts()
    assert [(r.name, r.levelname) for r in caplog.records] == [
        ("pysoftmax.monitoring", level) for level in ["WARNING", "WARNING", "INFO", "INFO"]
    ]
    assert caplog.messages[0] == "alert mean_high raised: 0.99 is beyond 0.95"
    assert caplog.messages[2] == "alert too_confident cleared: 0.9 is back at 0.9"


@pytest.mark.parametrize("n", [1, 10, 99, 1000, 5000])
def test_alerts_wait_for_no_more_than_two_tenths_of_the_window(caplog, n):
    monitor = ps.ConfidenceMonitor(2, window=1000)
    p = rows_of(0.99, 700)
    for begin in range(0, len(p), n):
        monitor.update(p[begin : begin + n])
    assert "mean_high raised" in caplog.text


def test_a_log_handler_may_ask_the_monitor():
    monitor, counts = ps.ConfidenceMonitor(2, window=1000), []

    class Handler(logging.Handler):
        def emit(self, record):
            counts.append(monitor.recent.count)

    logger, handler = logging.getLogger("pysoftmax.monitoring"), Handler()
    logger.addHandler(handler)
    try:
        monitor.update(rows_of(0.99, 5000))
    finally:
        logger.removeHandler(handler)
    assert counts


def test_alerts_do_not_depend_on_the_batches():
    p = np.concatenate([rows_of(c, 1500) for c in (0.7, 0.99, 0.8, 0.99, 0.6)])
    logs = []
    for n in (1, 13, 7500):
        monitor = ps.ConfidenceMonitor(2, window=1000)
        for begin in range(0, len(p), n):
            monitor.update(p[begin : begin + n])
        logs.append([point[1:] for point in monitor.state_dict()["history"]])
    assert logs[0] == logs[1] == logs[2]
    assert any(point[-1] for point in logs[0])


# --- drift ----------------------------------------------------------------------------------------


def test_drift_is_that_of_the_formulas():
    old, new = predicted(3000, 4), predicted(2000, 4, seed=1, sharpness=2)
    monitor = watching(new, reference=watching(old))
    a, b = of_numpy(new), of_numpy(old)
    p, q = ((each["histogram"] + 0.5) / (each["count"] + 10) for each in (a, b))
    f, g = (each["histogram"].cumsum() / each["count"] for each in (a, b))
    drift = monitor.drift()
    np.testing.assert_allclose(drift.psi, ((p - q) * np.log(p / q)).sum(), 1e-12)
    np.testing.assert_allclose(drift.ks, abs(f - g).max(), 1e-12)
    shift = abs(a["class_shares"] - b["class_shares"]).sum() / 2
    np.testing.assert_allclose(drift.class_shift, shift, 1e-12)
    assert raised(monitor) >= {"psi", "ks"}


def test_no_drift_from_rows_of_the_same_distribution():
    monitor = watching(predicted(3000, 4, seed=1), reference=watching(predicted(3000, 4)))
    assert all(0 <= value < 0.05 for value in monitor.drift())
    assert raised(monitor).isdisjoint({"psi", "ks", "class_shift"})


def test_other_classes_are_a_shift():
    old, new = predicted(3000, 4), np.roll(predicted(3000, 4)[:, [0, 0, 0, 0]], 0)
    new = predicted(3000, 4)[:, ::-1].copy()
    new[:, 3] += 1  # now always the most probable one
    new /= new.sum(axis=1, keepdims=True)
    assert "class_shift" in raised(watching(new, reference=watching(old)))


def test_a_shift_of_many_classes_is_judged_by_many_rows_only():
    old, new = (watching(predicted(1000, 100, seed)) for seed in range(2))
    monitor = ps.ConfidenceMonitor(100, reference=old)
    monitor.update(predicted(1000, 100, 1))
    (shift,) = (alert for alert in monitor.alerts() if alert.name == "class_shift")
    assert math.isnan(shift.value)
    assert new.total.count == 1000


def test_a_reference_may_be_a_state_of_another_window():
    state = json.loads(json.dumps(watching(predicted(100, 3), window=50, high=0.5).state_dict()))
    monitor = watching(predicted(100, 3), reference=state)
    assert monitor.drift() == (0, 0, 0)


def test_without_rows_there_is_no_drift():
    monitor = ps.ConfidenceMonitor(3, reference=watching(predicted(10, 3)))
    assert np.isnan(monitor.drift()).all()


def test_without_a_reference_drift_is_refused():
    with pytest.raises(ValueError, match="needs a reference"):
        ps.ConfidenceMonitor(3).drift()
    assert {alert.name for alert in ps.ConfidenceMonitor(3).alerts()}.isdisjoint({"psi", "ks"})


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        (3, TypeError, "reference must be a ConfidenceMonitor or its state, got int"),
        ({}, ValueError, "expected the state"),
        (lambda: ps.ConfidenceMonitor(3), ValueError, "at least one row"),
        (lambda: watching(predicted(5, 4)), ValueError, "n_classes=3, got 4"),
        (lambda: watching(predicted(5, 3), n_bins=5), ValueError, "n_bins=20, got 5"),
    ],
)
def test_a_reference_that_cannot_be_compared_is_refused(reference, error, words):
    with pytest.raises(error, match=words):
        ps.ConfidenceMonitor(3, reference=reference() if callable(reference) else reference)


# --- what it shows --------------------------------------------------------------------------------


def scraped(registry):
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_gets_counters_histogram_gauges_and_alerts():
    p = predicted(1000, 3)
    monitor, registry = ps.ConfidenceMonitor(3, reference=watching(p)), CollectorRegistry()
    monitor.prometheus(registry, labels={"model": "m"})
    monitor.update(np.concatenate([p, [[NAN] * 3, [5.0, 0, 0]]]))
    found, model = scraped(registry), ("model", "m")
    expected = of_numpy(p)
    assert found["pysoftmax_confidence_count", model] == 1000
    assert math.isclose(found["pysoftmax_confidence_sum", model], p.max(axis=1).sum())
    below = (p.max(axis=1) <= 0.5).sum()
    assert found["pysoftmax_confidence_bucket", ("le", "0.5"), model] == below
    assert found["pysoftmax_confidence_bucket", ("le", "+Inf"), model] == 1000
    assert found["pysoftmax_rejected_rows_total", model, ("reason", "nan")] == 1
    assert found["pysoftmax_rejected_rows_total", model, ("reason", "invalid")] == 1
    for k, share in enumerate(expected["class_shares"]):
        assert found["pysoftmax_predictions_total", ("class", str(k)), model] == round(1000 * share)
    assert math.isclose(found["pysoftmax_recent_confidence_mean", model], expected["mean"])
    assert math.isclose(found["pysoftmax_recent_confidence_std", model], expected["std"])
    assert found["pysoftmax_recent_rows", model] == 1000
    assert found["pysoftmax_recent_psi", model] == 0
    assert found["pysoftmax_alert", ("alert", "invalid"), model] == 1
    assert found["pysoftmax_alert", ("alert", "psi"), model] == 0


def test_prometheus_before_any_row():
    registry = CollectorRegistry()
    ps.ConfidenceMonitor(3).prometheus(registry)
    assert scraped(registry)["pysoftmax_confidence_count",] == 0


def test_many_classes_are_not_many_series():
    registry = CollectorRegistry()
    watching(predicted(5, 101)).prometheus(registry)
    assert not any("predictions" in key[0] for key in scraped(registry))


def test_the_registry_of_the_process_is_the_default():
    collector = ps.ConfidenceMonitor(2).prometheus()
    try:
        assert ("pysoftmax_recent_rows",) in scraped(REGISTRY)
        with pytest.raises(ValueError, match="Duplicated"):
            ps.ConfidenceMonitor(2).prometheus()
    finally:
        REGISTRY.unregister(collector)


def test_the_plot_shows_the_pieces_of_the_window():
    monitor = ps.ConfidenceMonitor(2, window=1000)
    for confidence in (0.7, 0.99):
        monitor.update(rows_of(confidence, 1050))
    ax = monitor.plot()
    mean = ax.get_lines()[0]
    assert mean.get_xdata().tolist() == [*range(100, 2101, 100)]
    np.testing.assert_allclose(mean.get_ydata()[[0, -1]], [0.7, 0.99])
    assert any(patch.get_alpha() == 0.1 for patch in ax.patches)  # where an alert was raised
    assert monitor.plot(ax, x="time") is ax
    pyplot.close("all")


def test_the_plot_of_no_rows_is_empty():
    assert ps.ConfidenceMonitor(2).plot().get_lines()[0].get_xdata().size == 0
    pyplot.close("all")


def test_the_plot_has_two_abscissas():
    with pytest.raises(ValueError, match="'rows' or 'time', got 'days'"):
        ps.ConfidenceMonitor(2).plot(x="days")


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("prometheus_client", "prometheus", lambda monitor: monitor.prometheus()),
        ("matplotlib.pyplot", "plot", lambda monitor: monitor.plot()),
    ],
)
def test_a_missing_library_is_told_with_its_extra(monkeypatch, module, extra, call):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(ImportError, match=rf"pysoftmax\[{extra}\]"):
        call(ps.ConfidenceMonitor(2))


def test_a_summary_is_json():
    empty = ps.ConfidenceMonitor(2).total.to_dict()
    assert empty["mean"] is None
    assert empty["class_shares"] == [None, None]
    assert json.loads(json.dumps(watching(predicted(9, 2)).total.to_dict()))["count"] == 9


def test_a_monitor_says_what_it_is():
    assert repr(watching(predicted(9, 2))) == "<ConfidenceMonitor of 2 classes, 9 rows>"


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((), {}, ValueError, "either probabilities or logits"),
        (([[0.5, 0.5]],), {"logits": [[0.0, 1.0]]}, ValueError, "either probabilities or logits"),
        (([[0.5, 0.5]],), {"temperature": 2.0}, ValueError, "temperature divides logits"),
        ((), {"logits": [[0, 1]], "temperature": -1}, ValueError, "temperature must be >= 0"),
        ((), {"logits": [[0, 1]], "temperature": [1, 2]}, ValueError, "broadcast"),
        (([[0.2, 0.3, 0.5]],), {}, ValueError, r"2 classes along axis 1, got shape \(1, 3\)"),
        (([[0.5, 0.5]],), {"axis": 0}, ValueError, r"2 classes along axis 0"),
        (([[0.5, 0.5]],), {"axis": 2}, np.exceptions.AxisError, "axis 2"),
        (([[0.5, 0.5]],), {"axis": None}, TypeError, "axis"),
        ((0.5,), {}, ValueError, "0-d"),
        ((np.array([["a", "b"]]),), {}, TypeError, "expected an array of float16"),
        ((np.ones((1, 2), complex),), {}, TypeError, "expected an array of float16"),
        ((np.ma.array([[0.5, 0.5]], mask=[[0, 1]]),), {}, ValueError, "masked"),
        ((object(),), {}, TypeError, "no backend"),
    ],
)
def test_wrong_batches_are_refused_and_not_counted(arguments, options, error, words):
    monitor = ps.ConfidenceMonitor(2)
    with pytest.raises(error, match=words):
        monitor.update(*arguments, **options)
    assert monitor.state_dict()["offered"] == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_classes": 1}, ValueError, "n_classes must be at least 2, got 1"),
        ({"n_classes": 2.0}, TypeError, "integer"),
        ({"high": 1.5}, ValueError, r"high must be in \[0, 1\]"),
        ({"low": "a"}, TypeError, "low must be a real number"),
        ({"low": 0.95}, ValueError, "low must be below high"),
        ({"window": PIECES - 1}, ValueError, "window must be at least 10, got 9"),
        ({"n_bins": 1}, ValueError, "n_bins must be at least 2"),
        ({"n_bins": 5000}, ValueError, "n_bins must be at most 4096"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"entropy_every": -1}, ValueError, "entropy_every must be at least 0"),
        ({"min_rows": 0}, ValueError, "min_rows must be at least 1"),
        ({"levels": {"fire": (1, 0)}}, ValueError, "levels must be of mean_high"),
        ({"levels": {"psi": (1,)}}, ValueError, "must be two numbers"),
        ({"levels": {"psi": (0.1, 0.2)}}, ValueError, "not to be beyond what raises it"),
        ({"levels": {"mean_low": (0.3, 0.2)}}, ValueError, "not to be beyond what raises it"),
        ({"levels": {"psi": (NAN, 0.2)}}, ValueError, "must be in"),
    ],
)
def test_wrong_settings_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        ps.ConfidenceMonitor(**{"n_classes": 3, **options})


def test_the_sums_are_of_whole_numbers():
    """What the promise of exactness rests on: no batch is larger than 64 bits hold."""
    assert _confidence.PART * (1.01 * 2**24) ** 2 < 2**63
    counts = monitoring.Counts(2, 20)
    worst = np.full(_confidence.PART, 1.01)
    counts.see(worst, np.zeros(len(worst), int), monitoring.Cuts(0.0, 1.01, 0.2, 0.95))
    exact = int(np.rint(1.01 * 2**48))
    assert counts.confidence.first == len(worst) * exact
    assert counts.confidence.second == len(worst) * exact**2


def test_a_small_window_is_judged_however_full_it_is():
    """It holds nine to ten tenths of its length."""
    monitor = ps.ConfidenceMonitor(2, window=100)
    for _ in range(150):
        monitor.update([[0.99, 0.01]])
    for _ in range(10):
        assert {alert.name for alert in monitor.alerts() if alert.value == alert.value}
        monitor.update([[0.99, 0.01]])
