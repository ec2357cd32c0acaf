"""JAX arrays: memory, dtypes, and tracing."""

import numpy as np
import pytest
from cases import BFLOAT16, CALLS, normal
from oracles import assert_same_bytes

import pysoftmax as ps

jax = pytest.importorskip("jax")
jnp = jax.numpy


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# --- memory and dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_nothing_is_copied_on_the_way_in(monkeypatch, dtype):
    x = jnp.asarray(normal((3, 5), np.float32)).astype(dtype)
    seen = []
    public = ps.softmax

    def softmax(**arguments):
        seen.append(arguments["x"].ctypes.data)
        return public(**arguments)

    monkeypatch.setattr(ps, "softmax", softmax)
    result = public(x)
    assert seen == [x.unsafe_buffer_pointer()]
    assert (type(result), result.dtype, result.device) == (type(x), x.dtype, x.device)


def test_without_x64_a_result_of_float64_is_rounded_to_float32():
    integers = jnp.asarray([1, 2, 3])
    expected = ps.softmax(np.array([1.0, 2.0, 3.0])).astype(np.float32)
    for function in (ps.softmax, jax.jit(ps.softmax)):
        assert_same_bytes(function(integers), expected)
    assert ps.softmax(integers, dtype=np.float64).dtype == np.float32


def test_with_x64_integers_are_promoted_to_float64(x64):
    integers = jnp.asarray([1, 2, 3])
    for function in (ps.softmax, jax.jit(ps.softmax)):
        assert_same_bytes(function(integers), ps.softmax([1, 2, 3]))


def test_dtype_is_jaxs_or_numpys():
    x = jnp.asarray(normal((3, 5), np.float32))
    assert ps.softmax(x, dtype=jnp.bfloat16).dtype == BFLOAT16
    assert ps.softmax(x, dtype="float16").dtype == np.float16


@pytest.mark.parametrize("name", ["softmax", "cross_entropy_with_grad"])
def test_an_array_that_cannot_be_written_to_is_no_out(name):
    arrays, options = CALLS[name]
    out = "grad_out" if name.endswith("grad") else "out"
    given = {k: jnp.asarray(a) for k, a in arrays.items()}
    for call in (getattr(ps, name), jax.jit(lambda **a: getattr(ps, name)(**a, **options))):
        with pytest.raises(TypeError, match=f"{out}: JAX's arrays cannot be written to"):
            call(**given, **{out: jnp.zeros((2, 3))})


# --- tracing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_every_function_has_the_same_bits_under_jit(x64, name):
    arrays, options = CALLS[name]
    given = {k: jnp.asarray(a) for k, a in arrays.items()}
    result = jax.jit(lambda given: getattr(ps, name)(**given, **options))(given)
    expected = getattr(ps, name)(**arrays, **options)
    jax.tree.map(assert_same_bytes, result, expected)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_under_jit(dtype):
    x = jnp.asarray(normal((3, 50), np.float32)).astype(dtype)
    for function in (ps.softmax, ps.logsumexp, ps.sigmoid):
        assert_same_bytes(jax.jit(function)(x), function(np.asarray(x)))


def test_a_large_array_under_jit():
    x = jnp.asarray(normal((2048, 4096), np.float32))
    assert_same_bytes(jax.jit(ps.softmax)(x), ps.softmax(np.asarray(x)))


def test_what_is_known_while_tracing_is_refused_while_tracing():
    x = jnp.zeros((3, 5))
    with pytest.raises(np.exceptions.AxisError):
        jax.jit(lambda x: ps.softmax(x, 2)).lower(x)
    with pytest.raises(ValueError, match="where must broadcast"):
        jax.jit(lambda x, w: ps.softmax(x, where=w)).lower(x, x[:2] > 0)
    with pytest.raises(TypeError, match="got complex64"):
        jax.jit(ps.softmax).lower(x.astype(jnp.complex64))


# JAX logs the traceback of the callback as well.
def test_what_is_only_known_when_the_program_runs_is_refused_then():
    compiled = jax.jit(ps.cross_entropy)
    with pytest.raises(Exception, match=r"IndexError: target\[1\] is 9: class labels must be in"):
        compiled(jnp.zeros((2, 5)), jnp.asarray([0, 9])).block_until_ready()


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "sigmoid"])
def test_vmap_is_a_loop(name):
    x = jnp.asarray(normal((4, 3, 5), np.float32))
    function = getattr(ps, name)
    expected = function(np.asarray(x))
    assert_same_bytes(jax.vmap(function)(x), expected)
    assert_same_bytes(jax.jit(jax.vmap(jax.vmap(function)))(x), expected)


def test_vmap_over_some_of_the_arguments():
    x, labels = jnp.asarray(normal((4, 5), np.float32)), jnp.asarray([0, 1, 2, 3])
    losses = jax.vmap(ps.cross_entropy, (None, 0))(x[0], labels)
    assert_same_bytes(
        losses, ps.cross_entropy(np.tile(x[0], (4, 1)), range_of(4), reduction="none")
    )


def range_of(n):
    return np.arange(n)


# --- gradients ----------------------------------------------------------------------------------

LABELS = np.array([0, 2, -100])
FACTORS = np.linspace(0, 2, 12).reshape(3, 4)
PROBABILITIES = FACTORS / FACTORS.sum(-1, keepdims=True)
DIFFERENTIABLE = {
    "softmax": lambda x: ps.softmax(x, 0, temperature=0.5),
    "softmax, where": lambda x: ps.softmax(x, (0, 1), where=jnp.asarray(FACTORS > 0.5)),
    "log_softmax": lambda x: ps.log_softmax(x, temperature=jnp.asarray([0.5, 1, 3])),
    "logsumexp": lambda x: ps.logsumexp(x, 0, keepdims=True),
    "logsumexp, b": lambda x: ps.logsumexp(x[:1], b=jnp.asarray(FACTORS)),
    "logsumexp, sign": lambda x: ps.logsumexp(x, b=[1, -2, 3, 0], return_sign=True)[0],
    "sigmoid": ps.sigmoid,
    "log_sigmoid": ps.log_sigmoid,
    "cross_entropy": lambda x: ps.cross_entropy(x, jnp.asarray(LABELS), weight=[1, 2, 3, 4]),
    "cross_entropy, none": lambda x: ps.cross_entropy(
        x, jnp.asarray(PROBABILITIES), reduction="none"
    ),
    "binary_cross_entropy_with_logits": lambda x: ps.binary_cross_entropy_with_logits(
        x, jnp.asarray(PROBABILITIES), pos_weight=[1, 2, 3, 4]
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_derivatives(x64, name):
    from jax.test_util import check_grads

    def function(x):
        return DIFFERENTIABLE[name](jnp.asarray(x))

    x = jnp.asarray(normal((3, 4), np.float64))
    check_grads(function, (x,), order=1, modes=["rev"])
    check_grads(jax.jit(function), (x,), order=1, modes=["rev"])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_have_the_dtype_of_the_logits(name, dtype):
    x = jnp.asarray(normal((3, 4), np.float32)).astype(dtype)
    assert jax.grad(lambda x: DIFFERENTIABLE[name](x).sum())(x).dtype == dtype


def test_a_gradient_of_every_row():
    x = jnp.asarray(normal((4, 5), np.float32))
    rows = jax.vmap(jax.grad(lambda x: ps.log_softmax(x)[0]))(x)
    g = np.zeros((4, 5), np.float32)
    g[:, 0] = 1
    assert_same_bytes(rows, ps.log_softmax_vjp(g, ps.log_softmax(np.asarray(x))))


REFUSED = {
    "temperature": lambda x, t: ps.softmax(x, temperature=t[:, 0]),
    "b": lambda x, t: ps.logsumexp(x, b=t),
    "target": lambda x, t: ps.cross_entropy(x, t),
    "weight": lambda x, t: ps.binary_cross_entropy_with_logits(x, abs(0 * x), weight=t),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_gradient_is_left_out_silently(name):
    x = jnp.ones((3, 4))
    with pytest.raises(NotImplementedError, match=f"{name} must not require one"):
        jax.grad(lambda t: REFUSED[name](x, t).sum())(x)


def test_gradients_of_gradients_and_forward_mode_are_refused():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.hessian(ps.logsumexp)(x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ps.softmax, (x,), (x,))
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(lambda x: ps.softmax_vjp(x, x).sum())(x)
