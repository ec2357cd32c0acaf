"""Vector-Jacobian products: softmax_vjp and log_softmax_vjp."""

import math

import numpy as np
import oracles
import pytest
from cases import LAYOUTS, LENGTHS, LONG, normal, plain
from oracles import assert_same_bytes, assert_ulp

import pysoftmax as ps

PRODUCTS = {
    "softmax_vjp": (ps.softmax_vjp, ps.softmax, oracles.softmax_vjp),
    "log_softmax_vjp": (ps.log_softmax_vjp, ps.log_softmax, oracles.log_softmax_vjp),
}


@pytest.fixture(params=PRODUCTS)
def product(request):
    """(name, product, function whose result it takes, reference)"""
    return (request.param, *PRODUCTS[request.param])


@pytest.mark.parametrize("n", [*LENGTHS, LONG])
def test_accuracy(backend, dtype, product, n):
    name, vjp, forward, reference = product
    g = normal((4, n), dtype, seed=1)
    y = forward(normal((4, n), dtype, seed=n, scale=5))
    result = backend.asnumpy(vjp(backend.asarray(g), backend.asarray(y)))
    expected, scale = reference(g, y)
    assert_ulp(name, result, expected, scale=scale, backend=backend.name, seed=n)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 2.0, 10.0])
def test_temperature_divides_the_product(dtype, product, temperature):
    name, vjp, forward, reference = product
    g, x = normal((4, 50), dtype, seed=1), normal((4, 50), dtype)
    y = forward(x, temperature=temperature)
    expected, scale = reference(g, y, temperature)
    assert_ulp(name, vjp(g, y, temperature=temperature), expected, scale=scale)


def test_a_temperature_for_every_row(dtype, product):
    _, vjp, forward, _ = product
    g, y = normal((3, 50), dtype, seed=1), forward(normal((3, 50), dtype))
    rows = [vjp(g[i], y[i], temperature=t) for i, t in enumerate((0.5, 1.0, 3.0))]
    assert_same_bytes(vjp(g, y, temperature=[0.5, 1.0, 3.0]), np.stack(rows))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_products_are_derivatives(product, temperature):
    """Central differences of sum(g * forward(x))."""
    _, vjp, forward, _ = product
    g, x = normal((2, 5), np.float64, seed=1), normal((2, 5), np.float64, scale=1)
    result = vjp(g, forward(x, temperature=temperature), temperature=temperature)
    step = 1e-5
    for at in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[at] = step
        rise = forward(x + nudge, temperature=temperature) - forward(
            x - nudge, temperature=temperature
        )
        assert result[at] == pytest.approx((g * rise).sum() / (2 * step), abs=1e-8)


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 4097])
def test_the_product_of_every_row_sums_to_zero(dtype, product, n):
    _, vjp, forward, _ = product
    result = vjp(normal((3, n), dtype, seed=1), forward(normal((3, n), dtype)))
    total = np.array([math.fsum(row) for row in result.astype(float)])
    size = abs(result.astype(float)).sum(axis=-1) + n * np.finfo(dtype).tiny
    assert (abs(total) <= 16 * np.finfo(dtype).eps * np.maximum(size, 1)).all()


# Of few and many lanes, of a chunk and of several; rows that fill runs of vectors, and not.
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [17, 256, 513, 1100])
@pytest.mark.parametrize("n", [2, 3, 21, 33, 50, 64, 70, 257, 300, 513, 2100])
def test_many_rows_along_another_axis(dtype, product, n, rows, threads):
    _, vjp, forward, _ = product
    g = normal((rows, n), dtype, seed=1)
    y = forward(normal((rows, n), dtype))
    expected = vjp(g, y)
    with ps.num_threads(threads):
        result = vjp(np.ascontiguousarray(g.T), np.ascontiguousarray(y.T), axis=0)
    assert_same_bytes(result, expected.T)


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2), (1, 2), None])
def test_any_axis(dtype, product, axis):
    name, vjp, forward, reference = product
    g, x = normal((4, 5, 6), dtype, seed=1), normal((4, 5, 6), dtype)
    y = forward(x, axis)
    axes = (0, 1, 2) if axis is None else tuple(np.atleast_1d(axis))
    last = range(3 - len(axes), 3)
    rows = [np.moveaxis(a, axes, last) for a in (g, y)]
    shape = rows[0].shape
    flat = [np.ascontiguousarray(a).reshape(*shape[: 3 - len(axes)], -1) for a in rows]
    expected, scale = (np.moveaxis(a.reshape(shape), last, axes) for a in reference(*flat))
    assert_ulp(name, vjp(g, y, axis), expected, scale=scale, axis=axis)


def test_any_layout(dtype, product, layout):
    _, vjp, forward, _ = product
    g = LAYOUTS[layout](normal((3, 4, 70), dtype, seed=1))
    y = LAYOUTS[layout](forward(normal((3, 4, 70), dtype)))
    for axis in (0, 1, 2):
        assert_same_bytes(vjp(g, y, axis), vjp(plain(g), plain(y), axis), layout=layout, axis=axis)
        assert_same_bytes(vjp(plain(g), y, axis), vjp(plain(g), plain(y), axis), layout=layout)


@pytest.mark.parametrize("n", [1, 10, 2049, 5000])
def test_out_may_be_either_argument(dtype, product, n):
    _, vjp, forward, _ = product
    g, y = normal((3, n), dtype, seed=1), forward(normal((3, n), dtype))
    expected = vjp(g, y)
    fresh, first, second = np.empty_like(g), g.copy(), y.copy()
    assert vjp(g, y, out=fresh) is fresh
    assert vjp(first, y, out=first) is first
    assert vjp(g, second, out=second) is second
    for result in (fresh, first, second):
        assert_same_bytes(result, expected)
    both = y.copy()
    assert_same_bytes(vjp(both, both, out=both), vjp(y, y))


def test_out_overlapping_an_argument_partly(dtype, product):
    _, vjp, forward, _ = product
    room, y = normal(300, dtype), forward(normal((20, 14), dtype))
    g, out = room[:280].reshape(20, 14), room[9:289].reshape(20, 14)
    expected = vjp(g.copy(), y)
    assert_same_bytes(vjp(g, y, out=out), expected)


def test_a_probability_of_zero_gives_zero(dtype, product):
    """Also where the forward pass masked entries: their log-probability is -inf."""
    _, vjp, forward, _ = product
    x = normal((3, 40), dtype)
    where = np.ones((3, 40), bool)
    where[:, ::3] = False
    where[1] = False
    g = np.where(where, normal((3, 40), dtype, seed=1), dtype.type(0))
    result = vjp(g, forward(x, where=where))
    assert (result[~where] == 0).all()
    assert np.isfinite(result).all()
    assert (result[1] == 0).all()


def test_nan_fills_its_own_row(dtype, product):
    _, vjp, forward, _ = product
    g, y = normal((3, 40), dtype, seed=1), forward(normal((3, 40), dtype))
    expected = vjp(g, y)
    for spoiled in (0, 1):
        arguments = [g.copy(), y.copy()]
        arguments[spoiled][1, 7] = np.nan
        result = vjp(*arguments)
        assert np.isnan(result[1]).any()
        assert_same_bytes(result[::2], expected[::2])
    arguments[0][1, 7] = np.nan
    assert np.isnan(ps.softmax_vjp(arguments[0], y)[1]).all()


@pytest.mark.parametrize("temperature", [1.0, (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("n", [*LENGTHS, 199, 200, 201, 3000, LONG])
def test_half_precision_is_single_precision_rounded_once(half, product, n, temperature):
    _, vjp, forward, _ = product
    g = normal((3, n), np.float32, seed=1).astype(half)
    y = forward(normal((3, n), np.float32)).astype(half)
    single = vjp(g.astype(np.float32), y.astype(np.float32), temperature=temperature)
    result = vjp(g, y, temperature=temperature)
    assert_same_bytes(result, single.astype(half))
    for overwritten in (0, 1):
        arguments = [g.copy(), y.copy()]
        out = arguments[overwritten]
        assert vjp(*arguments, temperature=temperature, out=out) is out
        assert_same_bytes(out, result)


# From as many neighbours on as are not converted, with and without a vector that not all lanes have
# rows for, to several runs of them and several threads.
ACROSS = [(9, 31), (2, 32), (9, 33), (65, 47), (513, 600), (4, 21, 96), (2, 130, 1100)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shape", ACROSS, ids=str)
def test_half_precision_across_neighbours(half, product, shape, temperature):
    _, vjp, forward, _ = product
    axis = len(shape) - 2
    g = normal(shape, np.float32, seed=1).astype(half)
    y = forward(normal(shape, np.float32), axis).astype(half)
    single = vjp(g.astype(np.float32), y.astype(np.float32), axis, temperature=temperature)
    result = vjp(g, y, axis, temperature=temperature)
    assert_same_bytes(result, single.astype(half))
    for overwritten in (0, 1):
        arguments = [g.copy(), y.copy()]
        out = arguments[overwritten]
        assert vjp(*arguments, axis, temperature=temperature, out=out) is out
        assert_same_bytes(out, result)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_empty(dtype, product, shape):
    _, vjp, _, _ = product
    result = vjp(np.empty(shape, dtype), np.empty(shape, dtype))
    assert (result.shape, result.dtype) == (shape, dtype)


def test_arguments_that_do_not_fit(product):
    _, vjp, _, _ = product
    g = np.zeros((4, 3))
    for other in (np.zeros((3, 4)), np.zeros(3), np.zeros((4, 1))):
        with pytest.raises(ValueError, match=r"\(4, ?3\)"):
            vjp(g, other)
    for wrong in (g.astype(complex), g.astype(object), g.astype("U3")):
        with pytest.raises(TypeError):
            vjp(g, wrong)
        with pytest.raises(TypeError):
            vjp(wrong, g)
    with pytest.raises(ValueError):
        vjp(g, g, out=np.zeros((3, 4)))
    with pytest.raises(TypeError):
        vjp(g, g, out=np.zeros((4, 3), np.float32))
    with pytest.raises(TypeError):
        vjp(g, g, -1, 1.0)
