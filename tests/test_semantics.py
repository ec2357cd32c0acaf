"""The table of rules: what goes in, what comes out, and what is refused."""

import math
import warnings

import numpy as np
import oracles
import pytest
from cases import BFLOAT16, LAYOUTS, normal, plain, without_short_ways
from oracles import assert_same_bytes, assert_ulp

import pysoftmax as ps

INF, NAN = math.inf, math.nan
SAME_SHAPE = [ps.softmax, ps.log_softmax]
ELEMENTWISE = [ps.sigmoid, ps.log_sigmoid]
REDUCING = [ps.logsumexp]
ALONG_AXIS = SAME_SHAPE + REDUCING
EVERY = ALONG_AXIS + ELEMENTWISE


def each(functions):
    return pytest.mark.parametrize("function", functions, ids=lambda f: f.__name__)


# --- the result ---------------------------------------------------------------------------------


@each(EVERY)
def test_result_has_the_library_shape_and_dtype_of_the_input(backend, dtype, function):
    x = backend.asarray(normal((2, 3, 5), dtype))
    result = function(x)
    assert type(result) is backend.array_type
    assert backend.asnumpy(result).dtype == dtype
    assert result.shape == ((2, 3) if function in REDUCING else (2, 3, 5))


@each(EVERY)
def test_the_input_is_not_changed(dtype, function):
    x = normal((3, 2050), dtype)
    before = x.copy()
    function(x)
    assert_same_bytes(x, before)


@each(EVERY)
def test_a_fresh_result_shares_no_memory_with_the_input(dtype, function):
    for n in (1, 10, 5000):
        x = normal((2, n), dtype)
        assert not np.shares_memory(function(x), x)


def test_a_full_reduction_gives_a_numpy_scalar(dtype):
    x = normal((3, 4), dtype)
    assert type(ps.logsumexp(x[0])) is dtype.type
    assert type(ps.logsumexp(x, axis=None)) is dtype.type
    assert type(ps.logsumexp(x, axis=(0, 1))) is dtype.type
    assert type(ps.cross_entropy(x, np.array([0, 1, 2]))) is dtype.type
    assert type(ps.cross_entropy(x, np.array([0, 1, 2]), reduction="sum")) is dtype.type
    assert type(ps.cross_entropy_with_grad(x, np.array([0, 1, 2]))[0]) is dtype.type
    assert type(ps.binary_cross_entropy_with_logits(x, abs(x) / 9)) is dtype.type
    assert type(ps.binary_cross_entropy_with_logits_with_grad(x, abs(x) / 9)[0]) is dtype.type


def test_probabilities_of_three_logits():
    assert ps.softmax([2.1, 0.8, -1.3]).round(4).tolist() == [0.7658, 0.2087, 0.0256]


# --- lists, scalars, 0-d ------------------------------------------------------------------------


@each(EVERY)
def test_lists_and_tuples_are_arrays(function):
    rows = [[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]]
    assert_same_bytes(function(rows), function(np.array(rows)))
    assert_same_bytes(function(tuple(rows)), function(np.array(rows)))
    assert_same_bytes(function([1, 2, 3]), function(np.array([1.0, 2.0, 3.0])))


@pytest.mark.parametrize("axis", [-1, None])
@pytest.mark.parametrize("scalar", [3, 3.0, np.float64(3), np.array(3.0), np.array(3)])
def test_a_scalar_is_one_class(scalar, axis):
    for function, value in [(ps.softmax, 1.0), (ps.log_softmax, 0.0), (ps.logsumexp, 3.0)]:
        result = function(scalar, axis)
        assert np.shape(result) == ()
        assert result.dtype == np.float64
        assert result == value


def test_a_scalar_keeps_its_dtype(dtype):
    for function in EVERY:
        assert function(dtype.type(0.5)).dtype == dtype
        assert function(np.array(0.5, dtype)).dtype == dtype


@each(ELEMENTWISE)
def test_elementwise_functions_take_scalars(function):
    assert np.shape(function(0.0)) == ()
    assert function(0) == function(0.0) == function(np.zeros(1))[0]


# --- dtypes -------------------------------------------------------------------------------------

PROMOTION = {
    **dict.fromkeys(["bool", "int8", "uint8", "int16", "uint16"], "float32"),
    **dict.fromkeys(["int32", "uint32", "int64", "uint64"], "float64"),
}


@each(EVERY)
@pytest.mark.parametrize("integer", PROMOTION)
def test_integers_are_promoted_before_any_subtraction(function, integer):
    ends = (0, 1) if integer == "bool" else (np.iinfo(integer).min, np.iinfo(integer).max)
    for values in ([0, 1, 1, *ends, 0], [*ends] * 700):
        x = np.array(values, integer)
        promoted = x.astype(PROMOTION[integer])
        assert_same_bytes(function(x), function(promoted), integer=integer)


def test_uint8_does_not_wrap():
    assert ps.softmax(np.array([1, 2, 255], np.uint8)).tolist() == [0.0, 0.0, 1.0]


REFUSED = ["longdouble", "complex64", "complex128", "object", "U3", "S3", "M8[s]", "m8[s]"]


@each(EVERY)
@pytest.mark.parametrize("refused", REFUSED)
def test_other_dtypes_are_refused_by_name(function, refused):
    if np.dtype(refused) == np.float64:
        pytest.skip("np.longdouble is float64 here")
    with pytest.raises(TypeError, match=r"float32.*float64"):
        function(np.zeros(3, refused))


@each(EVERY)
def test_dtype_selects_the_arithmetic_and_the_result(function):
    x = normal((3, 40), np.float32)
    assert_same_bytes(function(x, dtype=np.float64), function(x.astype(np.float64)))
    assert_same_bytes(function(x, dtype="float32"), function(x))
    assert function(x.astype(np.float64), dtype=np.float32).dtype == np.float32
    assert function(np.arange(4), dtype=np.float32).dtype == np.float32
    assert_same_bytes(function(x, dtype=np.float16), function(x.astype(np.float16)))


def test_dtype_holds_for_sums_with_factors_too():
    x = normal((3, 40), np.float32)
    for dtype in (np.float16, np.float64):
        expected = ps.logsumexp(x.astype(dtype), b=2)
        assert_same_bytes(ps.logsumexp(x, b=2, dtype=dtype), expected)


def test_dtype_float32_of_float64_logits_is_accurate():
    x = normal((3, 40), np.float32).astype(np.float64)
    assert_ulp("softmax", ps.softmax(x, dtype=np.float32), oracles.softmax(x))


@each(EVERY)
@pytest.mark.parametrize("refused", ["int32", "complex64", "object", "U3"])
def test_dtype_must_be_one_of_the_floats(function, refused):
    with pytest.raises(TypeError):
        function(np.zeros(3), dtype=refused)


# --- axis ---------------------------------------------------------------------------------------


@each(ALONG_AXIS)
@pytest.mark.parametrize("axis", [2, -3, 2**70, (0, 2), (-3,)])
def test_axis_out_of_range(function, axis):
    with pytest.raises(np.exceptions.AxisError):
        function(np.zeros((2, 3)), axis)


@pytest.mark.parametrize("axis", [2, -3])
def test_class_axis_out_of_range(axis):
    with pytest.raises(np.exceptions.AxisError):
        ps.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), axis)
    with pytest.raises(np.exceptions.AxisError):
        ps.softmax_vjp(np.zeros((2, 3)), np.zeros((2, 3)), axis)


@each(ALONG_AXIS)
def test_a_scalar_has_no_axis_one(function):
    with pytest.raises(np.exceptions.AxisError):
        function(np.array(1.0), 1)


@each(ALONG_AXIS)
@pytest.mark.parametrize("axis", [(0, 0), (1, -1), (0, 1, -2)])
def test_axis_repeated(function, axis):
    with pytest.raises(ValueError):
        function(np.zeros((2, 3)), axis)


@each(ALONG_AXIS)
@pytest.mark.parametrize("axis", ["0", 1.0, [0.5]])
def test_axis_must_be_an_integer(function, axis):
    with pytest.raises(TypeError):
        function(np.zeros((2, 3)), axis)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3, (0,), (0, 1), (0, 2), (1, 2), (2, 0), None])
def test_any_axis_several_or_all_of_them(backend, dtype, axis):
    x = normal((4, 5, 6), dtype, seed=3)
    axes = tuple(range(3)) if axis is None else np.atleast_1d(axis) % 3
    together = np.moveaxis(x, sorted(axes), range(3 - len(axes), 3))
    shape = together.shape
    rows = together.reshape(*shape[: 3 - len(axes)], -1)

    def back(result):
        return np.moveaxis(result.reshape(shape), range(3 - len(axes), 3), sorted(axes))

    a = backend.asarray(x)
    assert_ulp("softmax", backend.asnumpy(ps.softmax(a, axis)), back(oracles.softmax(rows)))
    expected = back(oracles.log_softmax(rows))
    assert_ulp("log_softmax", backend.asnumpy(ps.log_softmax(a, axis)), expected)
    lse, scale = oracles.logsumexp(rows), oracles.logsumexp_scale(rows)
    assert_ulp("logsumexp", backend.asnumpy(ps.logsumexp(a, axis)), lse, scale=scale)
    kept = [1 if i in axes else n for i, n in enumerate(x.shape)]
    assert ps.logsumexp(a, axis, keepdims=True).shape == tuple(kept)


def test_an_empty_tuple_of_axes_makes_every_element_its_own_row():
    x = normal((2, 3), np.float64)
    assert (ps.softmax(x, ()) == 1).all()
    assert_same_bytes(ps.logsumexp(x, ()), x)


# --- empty --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 0), (3, 0, 2)])
def test_an_empty_axis(dtype, shape):
    x = np.empty(shape, dtype)
    for axis in range(len(shape)):
        for function in SAME_SHAPE:
            result = function(x, axis)
            assert (result.shape, result.dtype) == (shape, dtype)
        expected = np.full(shape[:axis] + shape[axis + 1 :], -INF, dtype)
        assert_same_bytes(ps.logsumexp(x, axis), expected)
    assert ps.logsumexp(x, axis=None) == -INF
    assert ps.softmax(x, axis=None).shape == shape


@each(SAME_SHAPE)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 5, 0)])
def test_no_rows(dtype, function, shape):
    result = function(np.empty(shape, dtype))
    assert (result.shape, result.dtype) == (shape, dtype)


@each(EVERY)
def test_an_empty_list(function):
    result = function([])
    assert result.dtype == np.float64
    assert result.shape == (() if function in REDUCING else (0,))


def test_the_mean_loss_of_no_rows_is_nan_and_the_sum_zero(dtype):
    logits, labels = np.empty((0, 3), dtype), np.empty(0, int)
    for target in (labels, np.empty((0, 3), dtype)):
        assert math.isnan(ps.cross_entropy(logits, target))
        assert ps.cross_entropy(logits, target, reduction="sum") == 0
        assert ps.cross_entropy(logits, target, reduction="none").shape == (0,)
        assert ps.cross_entropy_with_grad(logits, target)[1].shape == (0, 3)
    assert math.isnan(ps.binary_cross_entropy_with_logits(logits, logits))
    assert ps.binary_cross_entropy_with_logits(logits, logits, reduction="sum") == 0


# --- rows that are not finite -------------------------------------------------------------------

SPECIAL_LENGTHS = [1, 2, 3, 10, 16, 65, 513, 2048, 2049, 5000]


def _with(n, dtype, *values):
    """Three rows; the middle one has ``values`` in its last columns."""
    x = normal((3, n), dtype, seed=n)
    x[1, max(n - len(values), 0) :] = values[-n:]
    return x


def _others_untouched(function, x):
    for i in (0, 2):
        assert_same_bytes(function(x)[i], function(np.array(x[i : i + 1]))[0])
        assert np.isfinite(function(x)[i]).all()


@each(ALONG_AXIS)
@pytest.mark.parametrize("n", SPECIAL_LENGTHS)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_nan_fills_its_own_row(dtype, function, n, where):
    x = normal((3, n), dtype, seed=n)
    x[1, {"first": 0, "middle": n // 2, "last": n - 1}[where]] = NAN
    assert np.isnan(function(x)[1]).all()
    _others_untouched(function, x)


@each(SAME_SHAPE)
@pytest.mark.parametrize("values", [(NAN, INF), (INF, NAN), (-INF, NAN), (NAN, -INF, INF)])
def test_nan_wins_over_infinity(dtype, function, values):
    for n in (3, 20, 3000):
        assert np.isnan(function(_with(n, dtype, *values))[1]).all()
        assert np.isnan(function(1e30 + _with(n, dtype, *values))[1]).all()
        assert np.isnan(ps.logsumexp(_with(n, dtype, *values))[1])


@pytest.mark.parametrize("n", SPECIAL_LENGTHS)
def test_a_row_of_minus_infinity_is_nan_and_its_logsumexp_minus_infinity(dtype, n):
    x = normal((3, n), dtype)
    x[1] = -INF
    for function in SAME_SHAPE:
        assert np.isnan(function(x)[1]).all()
        _others_untouched(function, x)
        where = np.arange(n) != 1
        assert np.isnan(function(x, where=where)[1, where]).all()
        out = x.copy()
        assert_same_bytes(function(out, out=out), function(x))
    assert ps.logsumexp(x)[1] == -INF
    _others_untouched(ps.logsumexp, x)


@pytest.mark.parametrize("values", [(INF,), (INF, 0.0), (INF, -INF), (INF, INF)])
@pytest.mark.parametrize("n", SPECIAL_LENGTHS)
def test_plus_infinity_fills_its_row_with_nan_and_its_logsumexp_is_plus_infinity(dtype, n, values):
    x = _with(n, dtype, *values)
    if not (x[1] == INF).any():
        pytest.skip("the row is too short for these values")
    for function in SAME_SHAPE:
        assert np.isnan(function(x)[1]).all()
        _others_untouched(function, x)
    assert ps.logsumexp(x)[1] == INF
    _others_untouched(ps.logsumexp, x)


@pytest.mark.parametrize("n", [2, 3, 17, 64, 513, 2049, 5000])
@pytest.mark.parametrize("keep", ["first", "last", "even"])
def test_minus_infinity_is_a_class_without_probability(dtype, n, keep):
    x = normal(n, dtype, seed=n)
    gone = np.ones(n, bool)
    gone[{"first": slice(1), "last": slice(n - 1, n), "even": slice(0, None, 2)}[keep]] = False
    x[gone] = -INF
    p, log_p = ps.softmax(x), ps.log_softmax(x)
    assert (p[gone] == 0).all()
    assert (log_p[gone] == -INF).all()
    assert_ulp("softmax", p[~gone], oracles.softmax(x[~gone]))
    assert_ulp("log_softmax", log_p[~gone], oracles.log_softmax(x[~gone]))
    scale = oracles.logsumexp_scale(x[~gone])
    lse = np.asarray(ps.logsumexp(x))
    assert_ulp("logsumexp", lse, oracles.logsumexp(x[~gone]), scale=scale)


@pytest.mark.parametrize("axis", [0, 1])
def test_special_rows_along_another_axis(dtype, axis):
    x = normal((3, 33, 40), dtype).swapaxes(1, axis).copy()
    special = np.moveaxis(x, axis, -1)
    special[0, 1, -1], special[1, 2, 0], special[2, 3] = NAN, INF, -INF
    p = np.moveaxis(ps.softmax(x, axis), axis, -1)
    lse = ps.logsumexp(x, axis)
    bad = np.zeros(lse.shape, bool)
    bad[0, 1] = bad[1, 2] = bad[2, 3] = True
    assert np.isnan(p[bad]).all()
    assert np.isfinite(p[~bad]).all()
    assert math.isnan(lse[0, 1])
    assert (lse[1, 2], lse[2, 3]) == (INF, -INF)
    assert np.isfinite(lse[~bad]).all()


def test_elementwise_limits(dtype):
    x = np.array([-INF, INF, NAN, 0.0, -0.0], dtype)
    half, low = dtype.type(0.5), -np.log(dtype.type(2))
    assert np.array_equal(ps.sigmoid(x), [0, 1, NAN, half, half], equal_nan=True)
    assert np.array_equal(ps.log_sigmoid(x), [-INF, 0, NAN, low, low], equal_nan=True)


def test_no_warning_escapes():
    with warnings.catch_warnings(), np.errstate(all="warn", under="ignore"):
        warnings.simplefilter("error")
        for n in (1, 3, 100, 5000):
            x = np.zeros((7, n))
            x[0, 0], x[1, 0], x[2], x[3, 0], x[4, 0], x[5, 0] = (NAN, INF, -INF, 1e308, -1e308, 800)
            half = np.clip(x, -6e4, 6e4).astype(np.float16)
            for a in (x, x[::-1], half, x.clip(-1e38, 1e38).astype(np.float32)):
                for function in EVERY:
                    function(a)
            for t in (0.0, 1e-300, INF):
                ps.softmax(x, temperature=t)
                ps.log_softmax(x, temperature=t)
            ps.cross_entropy_with_grad(x, np.zeros(7, int), reduction="none")
            ps.cross_entropy_with_grad(x, np.full(7, -100))
            ps.binary_cross_entropy_with_logits_with_grad(x, np.zeros_like(x))


def test_no_warning_escapes_from_a_conversion_that_overflows():
    half, single = np.float16([[6e4, -6e4]] * 3), np.float32([[1, 2]])
    signalling = np.uint32([[0x7F800001, 0]]).view(np.float32)
    bce = ps.binary_cross_entropy_with_logits
    with np.errstate(all="raise"):
        for function in EVERY:
            function(np.array([1e300, -1e300]), dtype=np.float32)
            function(single * 1e30, dtype=np.float16)
            assert np.isnan(function(signalling, dtype=np.float64)).any()
        assert ps.softmax(np.float16([0, -14])).tolist()[0] == 1
        assert ps.log_softmax(half)[0].tolist() == [0, -INF]
        for reduction in ("none", "mean", "sum"):
            assert np.all(ps.cross_entropy(half, [1, 1, 1], reduction=reduction) == INF)
        assert bce(half, np.zeros_like(half), reduction="sum") == INF
        assert bce(single, single - 1, weight=1e300) == INF
        assert ps.cross_entropy(single, np.array([[1e300, 0]])) == INF
        assert ps.logsumexp(single, b=[[1e300, 1e-300]], dtype=np.float32) == INF
        assert ps.softmax(single, temperature=np.longdouble(INF))[0, 0] == 0.5
        if np.finfo(np.longdouble).max > 1e308:
            huge = np.ldexp(np.longdouble(1), 5000)
            assert ps.softmax(single, temperature=huge)[0, 0] == 0.5


# --- the short way ------------------------------------------------------------------------------


def short_cuts():
    """Calls that NumPy's arrays take a short way with, by what is special about them."""
    x, labels = normal((6, 10), np.float32), np.arange(6)
    wide, keep, degrees = x.astype(np.float64), x[0] > -1, np.linspace(0.5, 3, 6)
    half = (x * 20000).clip(-6e4, 6e4).astype(np.float16)
    tiny = np.linspace(-20, 0, 60).reshape(6, 10).astype(np.float16)
    signalling = np.uint32([[0x7F800001, 0, 0x3F800000]]).view(np.float32)
    arrays = {
        "plain": x,
        "float16": half,
        "float16 with subnormal results": tiny,
        "strided": x[::2, 1::3],
        "transposed": x.T,
        "reversed": wide[::-1, ::-1],
        "byte-swapped": x.astype(x.dtype.newbyteorder()),
        "unaligned": LAYOUTS["unaligned"](wide),
        "list": wide.tolist(),
        "tuple of ints": ((1, 2, 3), (4, 5, 6)),
        "int64": (wide * 3).astype(np.int64),
        "one dimension": x[0],
    }
    for what, a in arrays.items():
        for function in EVERY:
            yield f"{function.__name__}, {what}", function, (a,), {}
        for function in ALONG_AXIS:
            yield f"{function.__name__}, {what}, axis=0", function, (a, 0), {}
        for function in (ps.softmax_vjp, ps.log_softmax_vjp):
            yield f"{function.__name__}, {what}", function, (a, a), {}
    for function in EVERY:
        for given, dtype in ((x, "f8"), (half, "f4"), (half, "f2"), (wide, "f8"), (x, "f2")):
            what = f"{function.__name__}, {given.dtype}, dtype={dtype}"
            yield what, function, (given,), {"dtype": dtype}
        yield f"{function.__name__}, signalling", function, (signalling,), {"dtype": np.float64}
    for function in SAME_SHAPE:
        for what, mask in (("one row", keep), ("one row of a matrix", keep[None]), ("all", x > 0)):
            yield f"{function.__name__}, where: {what}", function, (x,), {"where": mask}
        for t in (degrees, degrees.astype(np.float32), degrees * math.inf):
            what = f"{function.__name__}, {t.dtype} temperatures to {t[-1]}"
            yield what, function, (x,), {"temperature": t}
    for function in (ps.cross_entropy, ps.cross_entropy_with_grad):
        for reduction in ("none", "mean"):
            for label in (3, np.int64(3), np.int32(3), np.array(3), [3]):
                what = f"{function.__name__}, {label!r}, {reduction}"
                given = x[:1] if isinstance(label, list) else x[0]
                yield what, function, (given, label), {"reduction": reduction}
        yield f"{function.__name__}, strided", function, (x[::2, ::2], labels[:3]), {}
        yield f"{function.__name__}, strided labels", function, (x[::2], labels[::2]), {}
    targets = (x > 0).astype(np.float32)
    for function in (
        ps.binary_cross_entropy_with_logits,
        ps.binary_cross_entropy_with_logits_with_grad,
    ):
        for option in ("weight", "pos_weight"):
            for factor in (2.5, 1e300, np.abs(x[1]), np.abs(x), wide[0], x[:, :1]):
                what = f"{function.__name__}, {option} {np.shape(factor)} {np.max(factor):g}"
                yield what, function, (x, targets), {option: factor}


@pytest.mark.parametrize(
    ("function", "arrays", "options"), [pytest.param(*c[1:], id=c[0]) for c in short_cuts()]
)
def test_the_short_way_gives_what_the_general_way_gives(function, arrays, options):
    """The same types and bytes, and no more warnings."""
    with np.errstate(all="raise"):
        short = function(*arrays, **options)
    with without_short_ways():
        general = function(*arrays, **options)
    if not isinstance(general, tuple):
        short, general = (short,), (general,)
    for ours, wanted in zip(short, general, strict=True):
        assert type(ours) is type(wanted)
        assert_same_bytes(ours, wanted)


# --- where= -------------------------------------------------------------------------------------

MASKED_LENGTHS = [1, 2, 3, 16, 17, 65, 513, 2049, 4097]


@pytest.mark.parametrize("n", MASKED_LENGTHS)
def test_masked_entries_take_no_part(backend, dtype, n):
    x = normal((5, n), dtype, seed=n)
    where = np.random.default_rng(n).random((5, n)) < 0.6
    where[:, 0] = True
    x[~where] = np.resize(np.array([NAN, INF, -INF, 1e30], dtype), np.count_nonzero(~where))
    a, mask = backend.asarray(x), backend.asarray(where)
    p = backend.asnumpy(ps.softmax(a, where=mask))
    log_p = backend.asnumpy(ps.log_softmax(a, where=mask))
    clean = np.where(where, x, 0)
    assert (p[~where] == 0).all()
    assert (log_p[~where] == -INF).all()
    assert_ulp("softmax", p, oracles.softmax(clean, where=where))
    assert_ulp("log_softmax", log_p, oracles.log_softmax(clean, where=where))
    lse = backend.asnumpy(ps.logsumexp(a, where=mask))
    scale = oracles.logsumexp_scale(clean, where)
    assert_ulp("logsumexp", lse, oracles.logsumexp(clean, where=where), scale=scale)


@pytest.mark.parametrize("fill", [0.0, NAN, INF, -INF])
@pytest.mark.parametrize("n", [1, 3, 40, 3000])
def test_a_row_masked_wholly(dtype, n, fill):
    x = normal((3, n), dtype)
    x[1] = fill
    where = np.ones((3, n), bool)
    where[1] = False
    assert (ps.softmax(x, where=where)[1] == 0).all()
    assert (ps.log_softmax(x, where=where)[1] == -INF).all()
    assert ps.logsumexp(x, where=where)[1] == -INF
    assert_same_bytes(ps.softmax(x, where=where)[::2], ps.softmax(x[::2]))


@each(ALONG_AXIS)
@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6), (4, 1), (4, 6), (3, 1, 1), (3, 4, 6)])
def test_where_is_broadcast(function, shape):
    x = normal((3, 4, 6), np.float64)
    where = np.random.default_rng(1).random(shape) < 0.7
    whole = np.array(np.broadcast_to(where, x.shape))
    for axis in (0, 1, 2, (0, 2), None):
        assert_same_bytes(function(x, axis, where=where), function(x, axis, where=whole))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("n", [3, 65, 513, 2049])
def test_the_layout_of_where_changes_no_bit(dtype, n, axis):
    rng = np.random.default_rng(0)
    shape = [3, 20, 20]
    shape[axis] = n
    x, where = normal(shape, dtype), rng.random(shape) < 0.6
    where[rng.random(shape) < 0.01] = True
    x[rng.random(shape) < 0.01] = NAN
    strided = np.zeros((*shape, 2), bool)[..., 0]
    strided[...] = where
    for function in (ps.softmax, ps.log_softmax, ps.logsumexp):
        want = function(x, axis, where=strided)
        assert_same_bytes(function(x, axis, where=where), want, function=function.__name__)
        fortran = np.asfortranarray(where)
        assert_same_bytes(function(x, axis, where=fortran), want, function=function.__name__)


@each(ALONG_AXIS)
def test_where_everywhere_is_no_where(dtype, function):
    x = normal((3, 700), dtype)
    assert_same_bytes(function(x, where=np.ones(x.shape, bool)), function(x))
    assert_same_bytes(function(x, where=True), function(x))


@each(ALONG_AXIS)
def test_where_of_another_shape(function):
    with pytest.raises(ValueError, match=r"\(2, ?3\)|\(5,\)"):
        function(np.zeros((2, 3)), where=np.ones(5, bool))
    with pytest.raises(ValueError):  # where may not enlarge the input
        function(np.zeros((2, 3)), where=np.ones((4, 2, 3), bool))


# --- numpy.ma -----------------------------------------------------------------------------------


def test_the_mask_of_a_masked_array_is_its_where(dtype):
    data = normal((4, 9), dtype)
    mask = np.random.default_rng(0).random((4, 9)) < 0.4
    mask[:, 0] = False
    x = np.ma.array(data, mask=mask)
    for function, hidden in [(ps.softmax, 0.0), (ps.log_softmax, -INF)]:
        result = function(x)
        assert isinstance(result, np.ma.MaskedArray)
        assert np.array_equal(np.ma.getmaskarray(result), mask)
        expected = function(data, where=~mask)
        assert_same_bytes(result.filled(hidden), expected)
    lse = ps.logsumexp(x)
    assert isinstance(lse, np.ma.MaskedArray)
    assert_same_bytes(lse.data, ps.logsumexp(data, where=~mask))


def test_a_masked_array_and_where_hide_what_either_hides():
    data = normal((3, 8), np.float64)
    mask, where = data > 2, data > -2
    result = ps.softmax(np.ma.array(data, mask=mask), where=where)
    assert_same_bytes(result.filled(0), ps.softmax(data, where=where & ~mask))


# --- temperature --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 10, 100, 3000])
def test_temperature_one_changes_nothing(dtype, n):
    x = normal((3, n), dtype)
    for function in SAME_SHAPE:
        for one in (1, 1.0, np.float32(1), np.array(1.0), np.ones(3)):
            assert_same_bytes(function(x, temperature=one), function(x))


@pytest.mark.parametrize("n", [1, 3, 10, 100, 5000])
@pytest.mark.parametrize("ties", [1, 2, 5])
def test_temperature_zero_is_one_hot_with_ties_shared(dtype, n, ties):
    ties = min(ties, n)
    x = normal((3, n), dtype)
    x[:, np.linspace(0, n - 1, ties).astype(int)] = 50
    best = x == 50
    expected = np.where(best, dtype.type(1) / dtype.type(ties), dtype.type(0))
    assert_same_bytes(ps.softmax(x, temperature=0), expected)
    log_p = ps.log_softmax(x, temperature=0.0)
    assert (log_p[~best] == -INF).all()
    exact = oracles.log_softmax(np.zeros(ties))
    assert_ulp("log_softmax", log_p[0][best[0]], exact)


@pytest.mark.parametrize("n", [1, 3, 5000])
def test_a_temperature_of_minus_zero_is_zero(dtype, n):
    x = normal((2, n), dtype)
    for function in SAME_SHAPE:
        for zero in (-0.0, [-0.0, 0.0]):
            assert_same_bytes(function(x, temperature=zero), function(x, temperature=0))


@pytest.mark.parametrize("n", [1, 3, 10, 100, 5000])
def test_temperature_infinity_is_uniform(dtype, n):
    x = normal((3, n), dtype, scale=1e4)
    expected = np.full((3, n), dtype.type(1) / dtype.type(n))
    assert_ulp("softmax", ps.softmax(x, temperature=INF), oracles.softmax(0 * x))
    assert_ulp("log_softmax", ps.log_softmax(x, temperature=INF), oracles.log_softmax(0 * x))
    assert (ps.softmax(x, temperature=INF) == expected).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_temperature_infinity_leaves_impossible_classes_out(dtype, axis):
    huge = np.finfo(dtype).max
    x = np.array([[-np.inf, 1, 0], [huge, -huge, 0]] * 20, dtype)
    expected = np.array([[-np.inf, -np.log(2), -np.log(2)], [-np.log(3)] * 3] * 20, dtype)
    if axis == 0:
        x, expected = x.T, expected.T
    result = ps.log_softmax(x, axis, temperature=INF)
    np.testing.assert_array_almost_equal_nulp(result[expected > -INF], expected[expected > -INF])
    assert (result[expected == -INF] == -INF).all()


@pytest.mark.parametrize("begin", [0, 4096])
def test_temperature_infinity_with_whole_blocks_of_impossible_classes(dtype, begin):
    x = normal((3, 6144), dtype)
    x[1, begin : begin + 2048] = -INF
    possible = x > -INF
    expected = oracles.softmax(np.where(possible, 0, -INF).astype(dtype))
    assert_ulp("softmax", ps.softmax(x, temperature=INF), expected)
    assert (ps.softmax(x, temperature=INF)[~possible] == 0).all()
    _, gradient = ps.cross_entropy_with_grad(x, [2500] * 3, temperature=INF)
    assert (gradient == 0).all()


def test_temperature_limits_over_the_unmasked(dtype):
    x = np.array([[5, 9, 1, 5, 2]], dtype)
    where = np.array([[True, False, True, True, False]])
    assert ps.softmax(x, where=where, temperature=0).tolist() == [[0.5, 0, 0, 0.5, 0]]
    uniform = ps.softmax(x, where=where, temperature=INF)
    assert_ulp("softmax", uniform, oracles.softmax(0 * x, where=where))


def test_differences_that_overflow_have_a_logarithm(dtype):
    """x - max is beyond the largest real, (x - max) / T is not."""
    largest = float(np.finfo(dtype).max) * 0.9
    for n, axis in ((2, -1), (20, -1), (20, 0)):
        x = np.full((n, n), -largest, dtype)
        x[0 if axis == 0 else ..., 0 if axis == -1 else ...] = largest
        got = ps.log_softmax(x, axis, temperature=largest / 3)
        want = np.where(x > 0, 0.0, -6.0) - math.log1p((n - 1) * math.exp(-6))
        np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0, INF])
@pytest.mark.parametrize("beside", [1, -INF, 1e30])
def test_temperature_does_not_hide_nan(dtype, temperature, beside):
    x = np.array([[beside, NAN, 2], [1, 2, 3]], dtype)
    for function in SAME_SHAPE:
        result = function(x, temperature=temperature)
        assert np.isnan(result[0]).all()
        assert not np.isnan(result[1]).any()


def test_a_low_temperature_cannot_overflow(dtype):
    x = np.array([1e30, -1e30, 9e29], dtype)
    assert ps.softmax(x, temperature=1e-20).tolist() == [1, 0, 0]
    assert ps.softmax(np.array([3e4, 2e4], np.float16), temperature=1e-3).tolist() == [1, 0]


@pytest.mark.parametrize("n", [3, 100, 3000])
def test_a_temperature_for_every_row(dtype, n):
    x = normal((5, n), dtype)
    temperature = np.array([0.0, 0.5, 1.0, 3.0, INF])
    for function in SAME_SHAPE:
        rows = [function(x[i], temperature=t) for i, t in enumerate(temperature)]
        assert_same_bytes(function(x, temperature=temperature), np.stack(rows))
        assert_same_bytes(function(x, temperature=temperature.tolist()), np.stack(rows))


@each(SAME_SHAPE)
@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2)])
def test_temperature_is_broadcast_against_the_reduced_shape(function, axis):
    x = normal((2, 3, 4), np.float64)
    kept = ps.logsumexp(x, axis, keepdims=True).shape
    whole = np.random.default_rng(0).uniform(0.5, 2, kept)
    reduced = whole.squeeze(axis)
    reduced[...] = reduced[..., :1]
    expected = function(x, axis, temperature=reduced)
    wanted = _by_division(function, x, axis, whole)
    assert expected == pytest.approx(wanted, rel=1e-14, abs=0)
    assert_same_bytes(function(x, axis, temperature=reduced[..., :1]), expected)


def _by_division(function, x, axis, temperature):
    """Temperature as division, which is good enough for mild ones."""
    return function(x / temperature, axis)


@pytest.mark.parametrize("bad", [-1, -1e-30, -INF, NAN, [1.0, -1.0], [NAN, 1.0]])
def test_a_negative_or_nan_temperature_is_an_error(bad):
    x, labels = np.zeros((2, 3)), np.zeros(2, int)
    for call in (
        lambda: ps.softmax(x, temperature=bad),
        lambda: ps.log_softmax(x, temperature=bad),
        lambda: ps.cross_entropy(x, labels, temperature=bad),
        lambda: ps.cross_entropy_with_grad(x, labels, temperature=bad),
        lambda: ps.softmax_vjp(x, x, temperature=bad),
        lambda: ps.log_softmax_vjp(x, x, temperature=bad),
    ):
        with pytest.raises(ValueError, match="temperature"):
            call()


@each(SAME_SHAPE)
def test_temperature_of_another_shape_or_type(function):
    with pytest.raises(ValueError, match="temperature"):
        function(np.zeros((2, 3)), temperature=np.ones(5))
    for wrong in ("warm", None, 1j):
        with pytest.raises(TypeError):
            function(np.zeros((2, 3)), temperature=wrong)


# --- out= ---------------------------------------------------------------------------------------

WITH_OUT = SAME_SHAPE + ELEMENTWISE


@each(EVERY)
@pytest.mark.parametrize("n", [1, 3, 65, 2049])
def test_out_is_filled_and_returned(dtype, function, n):
    x = normal((3, n), dtype)
    out = np.full_like(function(x), 7)
    assert function(x, out=out) is out
    assert_same_bytes(out, function(x))


@each(WITH_OUT)
def test_out_may_lie_anyhow_in_memory(function, dtype, layout):
    if "broadcast" in layout or layout == "read-only":
        pytest.skip("not a layout that can be written to")
    x = normal((3, 4, 70), dtype)
    out = LAYOUTS[layout](np.full_like(x, 7))
    for axis in (-1, 1, 0):
        expected = function(x) if function in ELEMENTWISE else function(x, axis)
        result = function(x, out=out) if function in ELEMENTWISE else function(x, axis, out=out)
        assert result is out
        assert_same_bytes(plain(out), expected, layout=layout, axis=axis)


@each(WITH_OUT)
def test_writing_to_a_strided_out_leaves_the_gaps_alone(function, dtype):
    room = np.full((6, 300), 7, dtype)
    out = room[1::2, 3:283:4]
    x = normal(out.shape, dtype)
    function(x, out=out)
    untouched = np.ones(room.shape, bool)
    untouched[1::2, 3:283:4] = False
    assert (room[untouched] == 7).all()
    assert_same_bytes(plain(out), function(x))


@each(EVERY)
def test_out_of_another_shape(function):
    out = np.full((3, 3), 7.0)
    with pytest.raises(ValueError, match=r"\(3, ?3\)"):
        function(np.zeros((2, 5)), out=out)
    assert (out == 7).all()
    for shape in [(1, 2, 5), (5, 2), (10,), (), (2, 1)]:
        with pytest.raises(ValueError):
            function(np.zeros((2, 5)), out=np.zeros(shape))


@each(EVERY)
@pytest.mark.parametrize("wrong", ["float32", "float16", "int64", "complex128", "object"])
def test_out_of_another_dtype(function, wrong):
    out = np.full_like(function(np.zeros((2, 5))), 7, dtype=wrong)
    with pytest.raises(TypeError, match=np.dtype(wrong).name):
        function(np.zeros((2, 5)), out=out)
    assert (out == 7).all()


@each(EVERY)
def test_out_that_is_read_only(function):
    out = function(np.zeros((2, 5))) * 0 + 7
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only|writ"):
        function(np.zeros((2, 5)), out=out)
    assert (out == 7).all()


@each(EVERY)
@pytest.mark.parametrize("wrong", [[0.0, 0.0, 0.0], 0.0, "out", (np.zeros(3), np.zeros(3))])
def test_out_that_is_no_array(function, wrong):
    with pytest.raises(TypeError):
        function(np.zeros(3), out=wrong)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@each(WITH_OUT)
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_out_may_be_a_subclass(function, axis):
    x = np.arange(6.0).reshape(2, 3) / 4
    axis = {} if function in ELEMENTWISE else {"axis": axis}
    for out in (np.asmatrix(x * 0), np.ma.array(x * 0, mask=x > 1, hard_mask=True)):
        assert function(x, **axis, out=out) is out
        assert_same_bytes(np.asarray(out), function(x, **axis))


@each(EVERY)
def test_out_belongs_to_dtype(function):
    x = np.float32([[1, 2], [3, 5]])
    expected = function(x.astype(np.float64))
    out = np.empty_like(expected)
    assert function(x, dtype=np.float64, out=out) is out
    assert_same_bytes(out, expected)
    with pytest.raises(TypeError):
        function(x, dtype=np.float64, out=expected.astype(np.float32))


OVERLAPS = {
    "shifted right": lambda room, n: (room[:n], room[5 : n + 5]),
    "shifted left": lambda room, n: (room[5 : n + 5], room[:n]),
    "reversed": lambda room, n: (room[:n], room[:n][::-1]),
    "every other": lambda room, n: (room[:n], room[: 2 * n : 2]),
    "transposed": lambda room, n: (
        room[: n // 8 * 8].reshape(-1, 8)[:8],
        room[: n // 8 * 8].reshape(-1, 8)[:8].T,
    ),
    "rows shifted": lambda room, n: (room[:n].reshape(-1, 8)[1:], room[:n].reshape(-1, 8)[:-1]),
}


@each(WITH_OUT)
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("n", [64, 4096])
def test_out_overlapping_the_input_partly(dtype, function, overlap, n):
    x, out = OVERLAPS[overlap](normal(2 * n, dtype), n)
    expected = function(x.copy())
    assert function(x, out=out) is out
    assert_same_bytes(plain(out), expected)


def test_a_reduction_may_be_written_into_its_input(dtype):
    x = normal((4, 50), dtype)
    expected = ps.logsumexp(x)
    out = x[:, 3]
    assert_same_bytes(plain(ps.logsumexp(x, out=out)), expected)


@each(SAME_SHAPE)
def test_out_overlapping_the_mask_or_the_temperature(function):
    x = normal((4, 4), np.float64)
    temperature = np.array([0.5, 1, 2, 3])
    room = np.tile(temperature, (4, 1))
    expected = function(x, temperature=temperature)
    assert_same_bytes(function(x, temperature=room[1], out=room), expected)
    room = np.ones((4, 4))
    where = room.view(np.uint8).reshape(4, 32)[:, ::8].view(bool)
    where[...] = x > -2
    expected = function(x, where=where.copy())
    assert_same_bytes(function(x, where=where, out=room), expected)


# --- logsumexp's own arguments ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (4, 1), (4, 6), ()])
def test_b_scales_the_terms(dtype, shape):
    x = normal((4, 6), dtype)
    b = np.random.default_rng(1).uniform(0.5, 3, shape).astype(dtype)
    wide = oracles.WIDE.asarray(x)
    peak = wide.max(axis=-1, keepdims=True)
    total = (oracles.WIDE.asarray(b) * oracles.WIDE.exp(wide - peak)).sum(axis=-1)
    expected = peak[:, 0] + oracles.WIDE.log1p(total - 1)
    scale = np.maximum(abs(expected), abs(peak[:, 0])) + 1
    assert_ulp("logsumexp", ps.logsumexp(x, b=b), expected, scale=scale)


def test_a_term_with_b_zero_takes_no_part(dtype):
    b = np.array([1, 0, 1], dtype)
    for hidden in (0.0, 1e30, INF, NAN, -INF):
        x = np.array([1, hidden, 2], dtype)
        assert ps.logsumexp(x, b=b) == ps.logsumexp(np.array([1, 2], dtype))
    assert ps.logsumexp(np.ones(3, dtype), b=0) == -INF


def test_a_negative_sum_needs_return_sign(dtype):
    x, b = np.array([1.0, 2.0], dtype), np.array([1.0, -1.0], dtype)
    magnitude, sign = ps.logsumexp(x, b=b, return_sign=True)
    assert float(magnitude) == pytest.approx(math.log(math.e**2 - math.e), rel=1e-6)
    assert sign == -1
    assert math.isnan(ps.logsumexp(x, b=b))
    magnitude, sign = ps.logsumexp(x[:1].repeat(2), b=b, return_sign=True)
    assert (magnitude, sign) == (-INF, 0)


def test_the_sign_has_the_shape_and_dtype_of_the_result(dtype):
    x = normal((3, 4), dtype)
    for keepdims in (False, True):
        value, sign = ps.logsumexp(x, 0, return_sign=True, keepdims=keepdims)
        assert (sign.shape, sign.dtype) == (value.shape, value.dtype)
        assert (sign == 1).all()
        assert_same_bytes(value, ps.logsumexp(x, 0, keepdims=keepdims))


def test_the_sign_without_factors_is_that_with_factors_of_one(dtype):
    x = np.array([[-INF, -INF], [NAN, 0], [-2, 1], [INF, -INF]], dtype)
    value, sign = ps.logsumexp(x, return_sign=True)
    assert np.array_equal(sign, [0, NAN, 1, 1], equal_nan=True)
    assert_same_bytes(sign, ps.logsumexp(x, b=np.ones(1, dtype), return_sign=True)[1])
    assert_same_bytes(value, ps.logsumexp(x))
    assert ps.logsumexp(x[:, :0], return_sign=True)[1].tolist() == [0] * 4
    assert math.isnan(ps.logsumexp(x[3, [0, 0]], b=[1, -1], return_sign=True)[1])


def test_b_of_another_shape():
    with pytest.raises(ValueError):
        ps.logsumexp(np.zeros((2, 3)), b=np.ones(5))


# --- subclasses and other types -----------------------------------------------------------------


class Tagged(np.ndarray):
    """A subclass, which offers a way back by inheriting __array_wrap__."""


class Frame:
    """What pandas offers: an array out, and a way back."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return Frame(array)


@each(WITH_OUT)
def test_a_type_with_a_way_back_comes_back(function):
    x = normal((3, 4), np.float64)
    tagged = function(x.view(Tagged))
    assert type(tagged) is Tagged
    assert_same_bytes(tagged, function(x))
    frame = function(Frame(x))
    assert type(frame) is Frame
    assert_same_bytes(frame.values, function(x))


@each(EVERY)
@pytest.mark.parametrize("unknown", [object(), {"a": 1}, {1.0, 2.0}, lambda: 0])
def test_an_unknown_type_is_refused(function, unknown):
    with pytest.raises(TypeError):
        function(unknown)


def test_refusing_an_unknown_type_lists_the_backends_and_their_extras(monkeypatch):
    from pysoftmax import _dispatch

    with pytest.raises(TypeError, match=r"object.*numpy"):
        ps.softmax(object())
    module = _dispatch.BUILT_IN["numpy"][0]
    monkeypatch.setitem(_dispatch.BUILT_IN, "another", (module, "extra"))
    with pytest.raises(TypeError, match=r"another \(pip install 'pysoftmax\[extra\]'\)"):
        ps.softmax(object())


def test_two_libraries_in_one_call_are_refused_by_name():
    torch = pytest.importorskip("torch", reason="a second array library: torch")
    x, t = np.zeros((2, 3)), torch.zeros((2, 3), dtype=torch.float64)
    for call in (
        lambda: ps.cross_entropy(x, t),
        lambda: ps.binary_cross_entropy_with_logits(x, t),
        lambda: ps.softmax_vjp(x, t),
        lambda: ps.log_softmax_vjp(t, x),
    ):
        with pytest.raises(TypeError, match=r"(?is)(?=.*numpy)(?=.*torch)"):
            call()


# --- signatures ---------------------------------------------------------------------------------


@each(ALONG_AXIS)
def test_everything_after_axis_is_keyword_only(function):
    with pytest.raises(TypeError):
        function(np.zeros((2, 3)), -1, 1.0)


def test_losses_take_target_and_axis_by_position_and_nothing_more():
    x, t = np.zeros((2, 3)), np.zeros(2, int)
    assert ps.cross_entropy(x, t, -1) == ps.cross_entropy(logits=x, target=t, axis=-1)
    with pytest.raises(TypeError):
        ps.cross_entropy(x, t, -1, np.ones(3))
    with pytest.raises(TypeError):
        ps.sigmoid(x, np.float32)


@each(EVERY)
def test_unknown_and_missing_arguments(function):
    with pytest.raises(TypeError, match="dim"):
        function(np.zeros(3), dim=0)
    with pytest.raises(TypeError):
        function()


@pytest.mark.skipif(BFLOAT16 is None, reason="bfloat16 needs ml_dtypes")
def test_bfloat16_is_a_float_like_the_others():
    x = np.array([[1.0, 2.0, -3.0]], BFLOAT16)
    for function in EVERY:
        assert function(x).dtype == BFLOAT16
    assert ps.softmax(np.float32(x), dtype=BFLOAT16).dtype == BFLOAT16
    assert ps.cross_entropy(x, np.array([1])).dtype == BFLOAT16
