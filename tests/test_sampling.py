"""Draws from logits: their distribution, what is kept, and what is refused."""

import math
import tracemalloc

import numpy as np
import pytest
from cases import BFLOAT16, LAYOUTS, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import chisquare

import pysoftmax as ps
from pysoftmax import _rows

INF, NAN = math.inf, math.nan
VOCABULARY = 128_256


class Even(np.random.Generator):
    """No randomness: the draws of each row divide [0, 1) evenly."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def random(self, shape):
        draws = (np.arange(shape[0]) + 0.5) / shape[0]
        return np.array(np.broadcast_to(draws.reshape(-1, *[1] * (len(shape) - 1)), shape))


class Always(np.random.Generator):
    """No randomness: all draws are the same number."""

    def __init__(self, number):
        super().__init__(np.random.PCG64(0))
        self.number = number

    def random(self, shape):
        return np.full(shape, self.number)


def shares(logits, draws=20000, **options):
    """How often each class of a row is drawn, to within 1 / draws, without randomness."""
    drawn = ps.sample(logits, size=draws, rng=Even(), **options)
    return np.bincount(drawn, minlength=len(logits)) / draws


def expected(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, where=None):
    """Probabilities by the definitions, one row, one class at a time."""
    x = np.array(logits, np.float64)
    x[~np.ones(len(x), bool) if where is None else ~np.asarray(where)] = -INF
    kept = x > -INF
    if temperature == 0:
        p = (x == x.max()) / (x == x.max()).sum()
    elif temperature == INF:
        p = kept / kept.sum()
    else:
        p = softmax(x / temperature)
    if top_k is not None and top_k < len(x):
        kept &= x >= sorted(x)[-top_k]
        p = np.where(kept, p, 0) / p[kept].sum()
    if top_p is not None:
        total, last = 0.0, INF
        for c in sorted(range(len(x)), key=lambda c: -x[c]):
            if total < top_p - 1e-12 or last == INF:
                total, last = total + p[c], x[c]
        kept &= x >= last
        p = np.where(kept, p, 0) / p[kept].sum()
    if min_p is not None:
        kept &= p >= min_p * p.max()
        p = np.where(kept, p, 0) / p[kept].sum()
    return p


def agree(drawn, p):
    """The p-value of counts for probabilities; rare classes are counted together."""
    counts, wanted = np.bincount(drawn.reshape(-1), minlength=len(p)), p * drawn.size
    rare = wanted < 10
    assert not counts[p == 0].any()
    counts = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    if wanted[-1] == 0:
        counts, wanted = counts[:-1], wanted[:-1]
    return chisquare(counts, wanted * (counts.sum() / wanted.sum())).pvalue


# --- distribution -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": INF},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 15, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("draws", [1, 40, 20000])
@pytest.mark.parametrize("classes", [2, 40])
def test_draws_have_the_distribution(options, draws, classes):
    """Few draws of each row go another way than many."""
    x = normal(classes, "float64", 1, 1.5)
    drawn = ps.sample(np.tile(x, (20000 // draws, 1)), size=draws, rng=2, **options)
    assert agree(drawn, expected(x, **options)) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_are_exact_for_a_large_vocabulary(dtype):
    x = normal(VOCABULARY, dtype, 3, 1.0)
    p = softmax(x.astype(np.float64))
    assert agree(ps.sample(x, size=4_000_000, rng=4), p) > 1e-3
    # Where probabilities are summed in float32 one by one, the later classes suffer.
    thousands = p[:128_000].reshape(128, -1).sum(axis=1)
    groups = ps.sample(x, size=4_000_000, rng=5) // 1000
    assert agree(groups[groups < 128], thousands / thousands.sum()) > 1e-3


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 99, 100, 101, 5000, VOCABULARY])
@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.9}], ids=str)
def test_few_draws_are_as_many_draws(classes, options):
    """A draw is the same whether the weights are summed in groups or one by one."""
    x = normal((3, classes), "float32", 5)
    uniform = np.random.default_rng(6).random((64, 3))
    uniform[0], uniform[1] = 0, 1 - 2.0**-53

    class Few(np.random.Generator):
        def random(self, shape):
            return uniform[: shape[0]]

    few, many = (ps.sample(x, size=n, rng=Few(np.random.PCG64(0)), **options) for n in (60, 64))
    assert (few == many[:60]).all()
    assert many.min() >= 0
    assert many.max() < classes


@pytest.mark.parametrize("draws", [1, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_class_of_probability_1e_9_is_possible(draws, dtype):
    x = np.zeros(1000, dtype)
    x[-1] = math.log(1e-9 * 999)
    for below, wanted in ((0.5e-9, 999), (3e-9, 998)):
        assert (ps.sample(x, size=draws, rng=Always(1 - below)) == wanted).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("size", [2, 100])
@pytest.mark.parametrize("number", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_the_first_and_the_last_random_number_do_not_draw_what_is_masked(options, size, number):
    x = np.tile([-INF, 1.0, 5.0, 2.0, 9.0, NAN, -INF], (2, 40))
    where = np.tile([True, True, True, True, False, False, True], (2, 40))
    drawn = ps.sample(x, where=where, size=size, rng=Always(number), **options)
    assert np.isin(drawn % 7, [1, 2, 3]).all()


@pytest.mark.parametrize("size", [2, 100])
def test_the_first_random_number_does_not_draw_from_a_group_that_is_masked(size):
    x = np.zeros(100)
    x[:55] = -INF
    assert (ps.sample(x, size=size, rng=Always(0.0)) == 55).all()


@pytest.mark.parametrize("restriction", [{}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 1}], ids=str)
def test_temperature_0_draws_evenly_among_the_largest(restriction):
    x = [1.0, 3.0, 3.0, -INF, 3.0, 2.999]
    found = shares(x, 30000, temperature=0, **restriction)
    assert found == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3, 0], abs=1e-4)


def test_temperature_inf_draws_evenly_among_what_is_kept():
    x = [1.0, 9.0, -INF, 8.0]
    assert shares(x, temperature=INF) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=1e-4)
    assert shares(x, temperature=INF, top_k=2) == pytest.approx([0, 0.5, 0, 0.5], abs=1e-4)
    assert shares(x, temperature=INF, top_p=0.6) == pytest.approx([0, 0.5, 0, 0.5], abs=1e-4)


def test_every_row_has_its_temperature():
    x = np.tile([0.0, 1.0, 2.0], (3, 1))
    drawn = ps.sample(x, temperature=[0, 1, INF], size=3000, rng=Even())
    for row, temperature in enumerate([0, 1, INF]):
        found = np.bincount(drawn[:, row], minlength=3) / 3000
        assert found == pytest.approx(expected(x[row], temperature), abs=1e-3)


# --- what is kept -------------------------------------------------------------------------------

fractions = st.none() | st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(st.integers(-4, 4) | st.just(-INF), min_size=1, max_size=12).filter(
        lambda x: max(x) > -INF
    ),
    st.sampled_from([0.5, 1.0, 3.0, 0.0, INF]),
    st.none() | st.integers(1, 14),
    fractions,
    fractions,
)
def test_what_is_kept_is_what_the_definitions_keep(x, temperature, top_k, top_p, min_p):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    assert shares(x, **options) == pytest.approx(expected(x, **options), abs=2e-4)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 2}, 3),  # a tie
        ({"top_k": 3}, 3),
        ({"top_k": 4}, 4),
        ({"top_k": 99}, 4),
        ({"top_p": 0.0}, 1),
        ({"top_p": 0.4}, 1),  # reached exactly
        ({"top_p": 0.41}, 3),
        ({"top_p": 0.8}, 3),
        ({"top_p": 0.9}, 3),
        ({"top_p": 0.91}, 4),
        ({"top_p": 1.0}, 4),
        ({"min_p": 0.0}, 4),
        ({"min_p": 0.24}, 4),
        ({"min_p": 0.26}, 3),
        ({"min_p": 0.63}, 1),
        ({"min_p": 1.0}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ties_are_kept_and_so_is_the_most_probable(options, kept, dtype):
    x = np.log(np.array([0.4, 0.25, 0.25, 0.1], dtype))
    assert np.flatnonzero(shares(x, **options)).tolist() == list(range(kept))


def test_the_order_is_temperature_top_k_top_p_min_p():
    p = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    x = np.log(p)
    # top-p counts what top-k has left: 0.5 / 0.7 reaches 0.7, where 0.5 does not.
    assert np.flatnonzero(shares(x, top_k=2, top_p=0.7)).tolist() == [0]
    assert np.flatnonzero(shares(x, top_p=0.7)).tolist() == [0, 1]
    # The temperature comes before both: at 0.5 the first has 0.76 of all.
    assert np.flatnonzero(shares(x, temperature=0.5, top_p=0.7)).tolist() == [0]
    assert np.flatnonzero(shares(x, temperature=0.5, min_p=0.1)).tolist() == [0, 1]
    assert np.flatnonzero(shares(x, min_p=0.25)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(
    "options", [{"top_k": 50}, {"top_p": 0.7}, {"top_k": 400, "top_p": 0.5, "min_p": 0.01}], ids=str
)
def test_a_large_vocabulary_is_cut_by_the_definitions(scale, options):
    x = normal(VOCABULARY, "float32", 7, scale)
    p = expected(x, **options)
    found = shares(x, 200_000, **options)
    assert abs(found - p).max() < 2e-5
    common = p > 1e-5
    assert (found[common] > 0).all()
    assert not found[p == 0].any()


@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.95}], ids=str)
def test_few_classes_of_a_large_vocabulary_may_be_left_by_the_mask(options):
    x = normal((2, VOCABULARY), "float32", 8)
    where = np.zeros(x.shape, bool)
    where[0, [5, 77, 100_000]] = where[1, VOCABULARY - 1] = True
    drawn = ps.sample(x, where=where, size=20_000, rng=Even(), **options)
    found = np.bincount(drawn[:, 0], minlength=VOCABULARY) / 20_000
    assert found == pytest.approx(expected(x[0], where=where[0], **options), abs=1e-4)
    assert (drawn[:, 1] == VOCABULARY - 1).all()


# --- arrays of all kinds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bfloat16", "int8", "int64", "bool"]
)
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}], ids=str)
def test_every_dtype(dtype, options):
    if dtype == "bfloat16" and BFLOAT16 is None:
        pytest.skip("bfloat16 needs ml_dtypes")
    x = normal((7, 5), "float64").astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    drawn = ps.sample(x, size=9, rng=1, **options)
    assert drawn.dtype == np.int64
    assert drawn.shape == (9, 7)
    assert (drawn == ps.sample(x.astype(np.float64), size=9, rng=1, **options)).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name):
    x = LAYOUTS[name](normal((6, 3, 5), "float32"))
    drawn = ps.sample(x, rng=1, top_k=4)
    assert drawn.shape == (6, 3)
    assert (drawn == ps.sample(np.ascontiguousarray(x, "float32"), rng=1, top_k=4)).all()


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@pytest.mark.parametrize("size", [None, (), 4, (2, 3), 0])
def test_size_comes_first_and_the_axis_goes(axis, size):
    x = normal((4, 3, 5), "float64")
    temperature = np.array([[0.5], [2.0], [1.0], [0.0]])
    where = normal((4, 1, 5), "float64", 1) > -2
    moved = (np.moveaxis(each, -1, axis) for each in (x, where))
    drawn = ps.sample(
        next(moved), where=next(moved), temperature=temperature, size=size, axis=axis, rng=1
    )
    leading = () if size is None else size if isinstance(size, tuple) else (size,)
    assert drawn.shape == (*leading, 4, 3)
    again = ps.sample(x, where=where, temperature=temperature, size=size, rng=1)
    assert (drawn == again).all()


def test_a_single_row_gives_a_scalar():
    drawn = ps.sample([0.0, 1.0, 2.0], rng=0)
    assert isinstance(drawn, np.int64)
    assert ps.sample([0.0, 1.0, 2.0], size=(), rng=0) == drawn
    assert ps.sample([0.0, 1.0, 2.0], size=3, rng=0).shape == (3,)


def test_no_rows_give_no_draws():
    assert ps.sample(np.zeros((0, 3))).shape == (0,)
    assert ps.sample(np.zeros((2, 0, 3)), size=5).shape == (5, 2, 0)


def test_the_mask_of_a_masked_array_counts():
    x = np.ma.array([[1.0, 9.0, NAN], [1.0, 2.0, 3.0]], mask=[[0, 1, 1], [0, 0, 1]])
    drawn = ps.sample(x, where=[True, False, True], size=50, rng=0)
    assert (drawn == 0).all()


def test_nothing_is_written_to_the_logits():
    x = normal((5, 8), "float32")
    x.flags.writeable = False
    for options in ({}, {"top_k": 3, "top_p": 0.5}, {"min_p": 0.2}, {"where": x > -1}):
        ps.sample(x, **options)


def test_the_same_seed_draws_the_same_and_a_generator_moves_on():
    x = normal((50, 9), "float32")
    assert (ps.sample(x, rng=7) == ps.sample(x, rng=np.random.default_rng(7))).all()
    rng = np.random.default_rng(7)
    assert (ps.sample(x, rng=rng) != ps.sample(x, rng=rng)).any()
    assert (ps.sample(x) != ps.sample(x)).any()


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.9}], ids=str)
def test_rows_of_many_blocks_are_those_of_one(monkeypatch, options):
    x = normal((40, 6, 3), "float32")
    options = {"axis": 1, "temperature": np.linspace(0.1, 2, 3), "size": 2, "rng": 1, **options}
    whole = ps.sample(x, **options)
    for module in (ps.sampling, _rows):
        monkeypatch.setattr(module, "LARGE_BLOCK", 50)
        monkeypatch.setattr(module, "MIDDLE_BLOCK", 20)
    assert (ps.sample(x, **options) == whole).all()


def test_memory_is_bounded():
    """Logits of 64 MB; all of their probabilities would be as much again."""
    x = np.zeros((1 << 10, 1 << 14), np.float32)
    x += np.linspace(0, 9, 1 << 14, dtype=np.float32)
    tracemalloc.start()
    ps.sample(x, top_k=50)
    ps.sample(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6


# --- what is refused ----------------------------------------------------------------------------

X = [[1.0, 2.0, 3.0], [2.0, 1.0, 0.0]]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}], ids=str)
@pytest.mark.parametrize("size", [None, 100])
@pytest.mark.parametrize(
    ("row", "value"),
    [([NAN, 0, 1], "nan"), ([NAN] * 3, "nan"), ([-INF] * 3, "-inf"), ([0, INF, 1], "inf")],
)
def test_rows_without_a_distribution_are_refused_by_name(options, size, row, value):
    x = np.zeros((3, 2, 3))
    x[2, 1] = row
    with pytest.raises(ValueError, match=rf"row\[2, 1\]: .*finite.*, got {value}$"):
        ps.sample(x, size=size, **options)


def test_a_row_of_which_all_is_masked_is_refused():
    with pytest.raises(ValueError, match=r"row\[1\]: expected a finite largest logit, got -inf"):
        ps.sample(X, where=[[True, False, False], [False] * 3])


@pytest.mark.parametrize(
    ("logits", "options", "error", "message"),
    [
        (X, {"temperature": -1}, ValueError, "temperature must be >= 0 and not NaN, got -1.0"),
        (X, {"temperature": NAN}, ValueError, "temperature must be >= 0 and not NaN, got nan"),
        (X, {"temperature": [1, 2, 3]}, ValueError, r"rows \(2,\), got shape \(3,\)"),
        (X, {"temperature": "1"}, TypeError, "temperature: no backend for builtins.str"),
        (X, {"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        (X, {"top_k": 1.5}, TypeError, "integer"),
        (X, {"top_p": -0.1}, ValueError, r"top_p must be in \[0, 1\], got -0.1"),
        (X, {"top_p": 90}, ValueError, r"top_p must be in \[0, 1\], got 90"),
        (X, {"top_p": NAN}, ValueError, r"top_p must be in \[0, 1\], got nan"),
        (X, {"top_p": [0.5]}, TypeError, "top_p must be a real number"),
        (X, {"min_p": 2}, ValueError, r"min_p must be in \[0, 1\], got 2"),
        (X, {"min_p": "a"}, TypeError, "min_p must be a real number, got 'a'"),
        (X, {"where": [1, 0, 1]}, TypeError, "where must be bool"),
        (X, {"where": [True, False]}, ValueError, r"shape \(2, 3\), got shape \(2,\)"),
        (X, {"size": -1}, ValueError, "size must not be negative, got -1"),
        (X, {"size": 2.0}, TypeError, "integer"),
        (X, {"axis": 2}, np.exceptions.AxisError, "out of bounds"),
        (X, {"axis": None}, TypeError, "axis must be one int"),
        (X, {"rng": "a"}, TypeError, "SeedSequence"),
        (np.zeros((2, 0)), {}, ValueError, r"one class along axis 1, got shape \(2, 0\)"),
        (1.0, {}, ValueError, "at least one dimension"),
        (np.ones((2, 3), complex), {}, TypeError, "complex128"),
        (object(), {}, TypeError, "no backend"),
    ],
)
def test_refuses(logits, options, error, message):
    with pytest.raises(error, match=message):
        ps.sample(logits, **options)
