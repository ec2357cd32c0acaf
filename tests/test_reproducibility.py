"""The same bits for any number of threads, batch, layout, axis, way of writing, and target."""

import functools
import json
import os

import cases
import digests
import numpy as np
import oracles
import pytest
from cases import (
    LAYOUTS,
    LONG,
    ROWWISE,
    TESTS,
    VERY_LONG,
    normal,
    parts,
    plain,
    python,
    rowwise,
    targets,
)
from oracles import assert_same_bytes

import pysoftmax as ps

LENGTHS = [1, 2, 3, 10, 16, 17, 33, 64, 65, 129, 257, 513, 1000, 1025, 2048, 2049, 4097]
FMA_TARGETS = ["avx2", "avx512", "neon"]
WRITABLE = [layout for layout in LAYOUTS if "broadcast" not in layout and layout != "read-only"]


@pytest.fixture(params=ROWWISE)
def name(request):
    return request.param


def assert_same(got, want, **context):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert_same_bytes(a, b, **context)


# --- threads and targets ------------------------------------------------------------------------


@functools.cache
def one_thread():
    with ps.num_threads(1):
        return digests.fingerprint()


def differing(got, want):
    assert got.keys() == want.keys()
    return [label for label in want if got[label] != want[label]]


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads(threads):
    with ps.num_threads(threads):
        assert differing(digests.fingerprint(), one_thread()) == []


@pytest.mark.parametrize("target", FMA_TARGETS)
def test_any_instruction_set_with_fma(target):
    usable, current = targets()
    if target not in usable:
        pytest.skip(f"this build on this CPU has no {target}: {usable}")
    if current not in FMA_TARGETS:
        pytest.skip(f"nothing to compare with: the target in use is {current}")
    script = os.path.join(TESTS, "digests.py")
    output = python(script, PYSOFTMAX_CPU_TARGET=target, PYSOFTMAX_NUM_THREADS="2")
    assert differing(json.loads(output), one_thread()) == []


def test_the_baseline_meets_the_table_of_tolerances_and_the_rules():
    """Without FMA the bits may differ; nothing else may."""
    if "baseline" not in targets()[0]:
        pytest.skip(f"this build on this CPU has no baseline: {targets()[0]}")
    files = [os.path.join(TESTS, f"test_{name}.py") for name in ("accuracy", "semantics", "vjp")]
    python(
        *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not million", *files),
        PYSOFTMAX_CPU_TARGET="baseline",
    )


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", LENGTHS)
def test_a_row_alone_and_in_a_batch(dtype, name, n):
    x = normal((37, n), dtype, seed=n)
    batch = rowwise(name, x)
    for i in (0, 1, 17, 36):
        row = rowwise(name, x[i : i + 1].copy())
        assert_same([b[i : i + 1] for b in batch], row, function=name, row=i, n=n)
    several = rowwise(name, x[5:22])
    assert_same([b[5:22] for b in batch], several, function=name, n=n)


@pytest.mark.parametrize("n", [LONG, VERY_LONG])
@pytest.mark.parametrize("name", digests.LONG_CASES)
def test_a_long_row_alone_and_in_a_batch(dtype, name, n):
    x = normal((3, n), dtype, seed=n)
    batch = rowwise(name, x)
    assert_same([b[1:2] for b in batch], rowwise(name, x[1:2]), function=name, n=n)


def test_a_row_without_a_batch_axis(dtype, name):
    for n in (1, 10, 2049):
        x = normal((1, n), dtype)
        alone = rowwise(name, x[0])
        assert_same([np.asarray(a)[None] for a in alone], rowwise(name, x), function=name, n=n)


# --- layouts and axes ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 10, 64, 65, 513, 2049])
def test_any_layout(dtype, name, layout, n):
    x = LAYOUTS[layout](normal((5, n), dtype, seed=n))
    assert_same(rowwise(name, x), rowwise(name, plain(x)), function=name, layout=layout, n=n)


def test_any_layout_along_another_axis(dtype, name, layout):
    x = LAYOUTS[layout](normal((3, 40, 9), dtype))
    for axis in (0, 1):
        want = rowwise(name, plain(x), axis)
        assert_same(rowwise(name, x, axis), want, function=name, layout=layout, axis=axis)


def some_long_rows(dtype):
    """Mild, beyond the bound of the shift by powers of two, and two with blocks of -inf."""
    x = normal((4, VERY_LONG), dtype, seed=1)
    x[1] = x[1] * np.asarray(1e6, dtype) + np.asarray(3e6 if dtype == "float32" else 2e12, dtype)
    x[2, :40_000] = x[3, 10_000:] = -np.inf
    return x


@pytest.mark.parametrize("name", digests.LONG_CASES)
def test_long_rows_in_any_layout(dtype, name, layout):
    x = LAYOUTS[layout](some_long_rows(dtype))
    assert_same(rowwise(name, x), rowwise(name, plain(x)), function=name, layout=layout)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("function", [ps.softmax_vjp, ps.log_softmax_vjp])
def test_products_of_longer_strided_rows(dtype, function, threads):
    x = normal((2, 2**20 + 3), dtype)
    g, room = x[:, ::-1].copy(), np.zeros((2, 2 * x.shape[1]), dtype)
    with ps.num_threads(1):
        want = function(g, -abs(x))
    with ps.num_threads(threads):
        for a in (-abs(x), LAYOUTS["sliced"](-abs(x))):
            out = room[:, ::2]
            assert function(LAYOUTS["sliced"](g), a, out=out) is out
            assert_same_bytes(out.copy(), want, function=function.__name__)
            assert function(g, a, out=a) is a
            assert_same_bytes(a.copy(), want, function=function.__name__)


@pytest.mark.parametrize("temperature", [1, 0.7])
@pytest.mark.parametrize("function", [ps.softmax, ps.log_softmax])
@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("threads", [1, 3])
def test_long_rows_written_to_any_layout_and_masked(dtype, function, temperature, layout, threads):
    x = some_long_rows(dtype)
    keep = x > -1
    keep[0] = False
    hidden = np.where(keep, x, -np.inf).astype(dtype)
    with ps.num_threads(threads):
        want = function(hidden[1:], temperature=temperature)
        for a in (x, LAYOUTS[layout](x)):
            out = LAYOUTS[layout](np.full_like(x, 7))
            for where in (keep, np.asfortranarray(keep)):
                function(a, where=where, temperature=temperature, out=out)
                assert (out[0] == (0 if function is ps.softmax else -np.inf)).all()
                assert_same_bytes(plain(out[1:]), want, layout=layout)
            function(a, temperature=temperature, out=out)
            assert_same_bytes(plain(out), function(x, temperature=temperature), layout=layout)
        assert function(a, where=keep, temperature=temperature, out=a) is a
        assert_same_bytes(plain(a[1:]), want, layout=layout)


@pytest.mark.parametrize("inner", [1, 2, 3, 8, 15, 16, 17, 64, 100, 200])
@pytest.mark.parametrize("n", [1, 2, 10, 33, 65, 300, 1025, 2049])
def test_any_position_of_the_axis(dtype, name, n, inner):
    rows = normal((2, inner, n), dtype, seed=n)
    want = rowwise(name, rows)
    for axis, x in [
        (1, np.ascontiguousarray(np.moveaxis(rows, -1, 1))),
        (0, np.ascontiguousarray(np.moveaxis(rows, -1, 0))),
    ]:
        got = [np.moveaxis(a, axis, -1) if a.ndim == 3 else a for a in rowwise(name, x, axis)]
        assert_same(got, want, function=name, axis=axis, n=n, inner=inner)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("n", "inner"), [(20_000, 8), (5000, 40), (2049, 64), (3000, 130)])
def test_few_long_rows_side_by_side(dtype, name, n, inner, threads):
    """Columns are divided among threads, rather than rows."""
    x = normal((n, inner), dtype, seed=n)
    x[:, 1] *= 50
    x[: n // 2, 2] = x[n // 3 :, 3] = -np.inf
    with ps.num_threads(1):
        want = rowwise(name, np.ascontiguousarray(x.T))
    with ps.num_threads(threads):
        got = rowwise(name, x, 0)
    got = [a.T if a.ndim == 2 else a for a in got]
    assert_same(got, want, function=name, n=n, inner=inner)


@pytest.mark.parametrize("temperature", [1, 0.7])
@pytest.mark.parametrize("function", [ps.softmax, ps.log_softmax])
@pytest.mark.parametrize("special", ["none", "huge", "low at first", "nothing", "masked"])
def test_few_long_rows_side_by_side_in_place(dtype, function, temperature, special):
    x = normal((5000, 40), dtype)
    keep = np.ones(x.shape, bool)
    if special == "huge":
        x[:, 7] = x[:, 7] * np.asarray(1e6, dtype) + np.asarray(1e13, dtype)
    elif special == "low at first":
        x[:3000, 7] = -3e38
    elif special == "nothing":
        x[:, 7] = -np.inf
    elif special == "masked":
        keep[:3000, 7] = keep[1000:, 9] = keep[:, 11] = False
    rows, kept = (np.ascontiguousarray(a.T) for a in (x, keep))
    with ps.num_threads(1):
        want = function(rows, where=kept, temperature=temperature)
    with ps.num_threads(2):
        for where in (None, keep) if keep.all() else (keep,):
            a = x.copy()
            out = function(a, 0, where=where, temperature=temperature)
            assert_same_bytes(out, want.T, function=function.__name__, special=special)
            assert function(a, 0, where=where, temperature=temperature, out=a) is a
            assert_same_bytes(a, want.T, function=function.__name__, special=special)


@pytest.mark.parametrize("function", [ps.softmax, ps.log_softmax, ps.logsumexp])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 40, 2, 33), (2, 64, 3, 65)])
def test_several_axes_are_one_row(dtype, function, shape):
    x = normal(shape, dtype)
    for axes in [(1, 3), (0, 2), (2, 3), (0, 1), (1, 2, 3), None]:
        taken = tuple(range(4)) if axes is None else axes
        last = range(4 - len(taken), 4)
        moved = np.moveaxis(x, taken, last)
        rows = np.ascontiguousarray(moved).reshape(*moved.shape[: 4 - len(taken)], -1)
        want = np.asarray(function(rows))
        if function is not ps.logsumexp:
            want = np.moveaxis(want.reshape(moved.shape), last, taken)
        assert_same_bytes(function(x, axes), want, axes=axes, function=function.__name__)
        if axes is not None:
            assert_same_bytes(function(x, axes[::-1]), want, axes=axes[::-1])


def test_a_whole_array_is_its_flattened_row(dtype):
    x = normal((70, 80), dtype)
    for a in (x, x.T, x[::2, ::-1]):
        assert_same_bytes(ps.softmax(a, None), ps.softmax(plain(a).ravel()).reshape(a.shape))
        assert ps.logsumexp(a, None) == ps.logsumexp(plain(a).ravel())


def test_keepdims_changes_only_the_shape(dtype):
    x = normal((3, 40, 5), dtype)
    for axis in (0, 1, 2, (0, 2), None):
        kept = ps.logsumexp(x, axis, keepdims=True)
        assert_same_bytes(np.squeeze(kept, axis), np.asarray(ps.logsumexp(x, axis)))


# --- ways of writing ----------------------------------------------------------------------------

WRITERS = {
    "softmax": ps.softmax,
    "softmax, temperature": lambda x, out: ps.softmax(x, temperature=0.7, out=out),
    "softmax, where": lambda x, out: ps.softmax(x, where=x > -1, out=out),
    "log_softmax": ps.log_softmax,
    "log_softmax, where": lambda x, out: ps.log_softmax(x, where=x > -1, out=out),
    "sigmoid": ps.sigmoid,
    "log_sigmoid": ps.log_sigmoid,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("n", [*LENGTHS, LONG, VERY_LONG])
def test_in_place_and_not(dtype, writer, n):
    x = normal((3, n), dtype, seed=n)
    x[1] += 1e7
    want = WRITERS[writer](x, out=np.empty_like(x))
    room = np.empty(x.size + 16, dtype)
    for offset in (0, 1, 3):  # alignment to a vector must not matter
        a = room[offset : offset + x.size].reshape(x.shape)
        a[...] = x
        assert WRITERS[writer](a, out=a) is a
        assert_same_bytes(a, want, function=writer, n=n, offset=offset)


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("n", [10, 513, 2049, 5000])
def test_in_place_along_another_axis_and_in_other_layouts(dtype, layout, n):
    x = normal((n, 6), dtype, seed=n)
    for axis in (0, 1):
        a = LAYOUTS[layout](x)
        assert ps.softmax(a, axis, out=a) is a
        assert_same_bytes(plain(a), ps.softmax(x, axis), layout=layout, axis=axis)


def test_twice_is_the_same(dtype, name):
    x = normal((9, 1500), dtype)
    assert_same(rowwise(name, x), rowwise(name, x), function=name)


def test_the_reduced_loss_does_not_depend_on_threads_or_layout(dtype):
    x = normal((3001, 12), dtype)
    labels = np.arange(3001) % 12
    for reduction in ("mean", "sum"):
        with ps.num_threads(1):
            want = parts(ps.cross_entropy_with_grad(x, labels, reduction=reduction))
        for threads, make in [(2, plain), (5, plain), (1, LAYOUTS["Fortran"])]:
            with ps.num_threads(threads):
                got = parts(ps.cross_entropy_with_grad(make(x), labels, reduction=reduction))
            assert_same(got, want, threads=threads, reduction=reduction)
            loss = ps.cross_entropy(make(x), labels, reduction=reduction)
            assert_same_bytes(loss, want[0])


def test_targets_and_tolerances_name_the_same_functions():
    """Every function with a tolerance is also compared in bits."""
    tolerated = {name.split(",")[0] for name in oracles.ULP}
    assert tolerated == {name.split(",")[0] for name in ROWWISE}


@pytest.mark.parametrize("dtype", cases.FLOATS)
@pytest.mark.parametrize("low", [-np.inf, -1e30], ids=["-inf", "far below"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_blocks_without_a_share_along_another_axis(name, low, dtype):
    """Whole blocks of a long row that no probability comes of, at its end, middle or head."""
    x = cases.normal((6000, 40), dtype, seed=6000)
    x[3000:, 3] = low
    x[2500:5500, 7] = low
    x[:2100, 9] = low
    function = getattr(ps, name)
    along_rows = function(np.ascontiguousarray(x.T)).T
    np.testing.assert_array_equal(function(x, axis=0), along_rows)
    for columns in (slice(None), [3, 7, *range(10, 40)]):  # with the low head, and without
        part = x[:, columns].copy()
        np.testing.assert_array_equal(function(part, axis=0, out=part), along_rows[:, columns])
