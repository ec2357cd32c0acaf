"""torch tensors: memory, dtypes, devices, and autograd."""

import functools
import gc
import weakref

import numpy as np
import pytest
from arrays import parts
from cases import CALLS, normal, without_short_ways
from oracles import assert_same_bytes

import pysoftmax as ps
from pysoftmax.adapters.torch import adapter

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

MAPS = {"softmax": ps.softmax, "log_softmax": ps.log_softmax}


def tensor(shape, dtype=torch.float64, **options):
    return torch.tensor(normal(shape, np.float64), dtype=dtype, **options)


@pytest.fixture
def spied(monkeypatch):
    """What the public functions are given and return: by their addresses."""
    seen = []
    public = ps.softmax

    def softmax(**arguments):
        result = public(**arguments)
        seen.append((arguments["x"].ctypes.data, result.ctypes.data))
        return result

    monkeypatch.setattr(ps, "softmax", softmax)
    with without_short_ways():
        yield lambda *arguments, **options: (public(*arguments, **options), *seen[-1])


# --- memory and dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nothing_is_copied_on_the_way_in_or_out(spied, dtype):
    x = tensor((3, 5), getattr(torch, dtype))
    result, given, made = spied(x)
    assert given == x.data_ptr()
    assert made == result.data_ptr()
    assert (type(result), result.dtype, result.device) == (torch.Tensor, x.dtype, x.device)


PLAIN = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("axis", [-1, 0])
def test_plain_tensors_go_a_short_way(monkeypatch, name, axis):
    function, x = getattr(ps, name), tensor((3, 5))
    with without_short_ways():
        expected = function(x, axis)
    monkeypatch.setattr(adapter, "call", lambda *_: pytest.fail("the long way"))
    result = function(x, axis)
    assert type(result) is torch.Tensor
    assert torch.equal(result, expected)
    assert function(x[0]).shape == PLAIN[name](x[0], -1).shape


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_losses_of_plain_tensors_go_a_short_way(monkeypatch, reduction, dtype):
    x, labels = tensor((3, 5), dtype), torch.tensor([4, -100, 0])
    options = {"reduction": reduction, "label_smoothing": 0.1, "temperature": 0.5}
    options["weight"] = torch.linspace(0, 1, 5)
    with without_short_ways():
        expected = ps.cross_entropy_with_grad(x, labels, **options)
    monkeypatch.setattr(adapter, "call", lambda *_: pytest.fail("the long way"))
    got = ps.cross_entropy_with_grad(x, labels, **options)
    for a, b in zip(
        (*got, ps.cross_entropy(x, labels, **options)), (*expected, expected[0]), strict=True
    ):
        assert (type(a), a.dtype, a.shape) == (torch.Tensor, b.dtype, b.shape)
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("logits", "target", "weight", "grad_out"),
    [
        (tensor((2, 3), requires_grad=True), torch.tensor([0, 1]), None, None),
        (tensor((2, 3)), torch.tensor([0, 1]), None, torch.empty((2, 3)).double()),
        (tensor((2, 3)), [0, 1], None, None),
        (tensor((2, 3)), torch.tensor([0, 1]), [1.0, 1.0, 1.0], None),
    ],
    ids=["recorded", "grad_out", "list", "list of weights"],
)
def test_other_losses_go_the_long_way(logits, target, weight, grad_out):
    options = -1, weight, -100, 0.0, "mean", 1.0, grad_out is not None, grad_out
    assert adapter.short_cross_entropy(logits, target, *options) is None
    given = torch.as_tensor(target)
    expected = torch.nn.functional.cross_entropy(logits.double(), given)
    if grad_out is None:
        got = ps.cross_entropy(logits, target, weight=weight)
    else:
        got = ps.cross_entropy_with_grad(logits, target, grad_out=grad_out)[0]
    torch.testing.assert_close(got.double(), expected, rtol=0.01, atol=0)


def test_a_target_that_requires_grad_is_not_taken_for_a_plain_one():
    with pytest.raises(NotImplementedError, match="target must not require one"):
        ps.cross_entropy(tensor((2, 3)), torch.ones((2, 3)).requires_grad_())


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "x",
    [
        tensor((2, 3), requires_grad=True),
        torch.nn.Parameter(tensor((2, 3)), requires_grad=False),
        torch._neg_view(tensor((2, 3))),
        torch.ones((2, 3), dtype=torch.int8),
        torch.empty((0, 3)),
    ],
    ids=["recorded", "subclass", "negative", "int8", "empty"],
)
def test_other_tensors_go_the_long_way(name, x):
    assert adapter.short_way(name, x, -1, 1.0, None) is None
    assert getattr(ps, name)(x).shape == PLAIN[name](x.float(), -1).shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("function", CALLS)
def test_autograd_is_not_asked_about_plain_tensors(monkeypatch, function, dtype):
    arrays, options = CALLS[function]
    options = {name: option for name, option in options.items() if name != "dtype"}
    given = {name: torch.tensor(a) for name, a in arrays.items()}
    given = {name: t.to(dtype) if t.is_floating_point() else t for name, t in given.items()}
    call = functools.partial(getattr(ps, function), **given, **options)
    with monkeypatch.context() as patch:
        patch.setattr("pysoftmax.adapters.torch.memory_of_plain", lambda _: None)
        expected = call()
    autograd = "pysoftmax.adapters.torch_autograd.call"
    monkeypatch.setattr(autograd, lambda *_: pytest.fail("the long way"))
    for got, want in zip(parts(call()), parts(expected), strict=True):
        assert (type(got), got.dtype) == (torch.Tensor, want.dtype)
        assert torch.equal(got, want)


# Of torch's own, in what it imports for this.
OF_TORCH = pytest.mark.filterwarnings("ignore:.*torch.jit")


@OF_TORCH
def test_forward_mode_differentiation_is_refused():
    """It would be left out silently."""
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        x = forward_ad.make_dual(tensor((3,)), torch.ones(3).double())
        for function in (ps.softmax, ps.logsumexp, ps.sigmoid):
            with pytest.raises(RuntimeError, match="x has a tangent, but forward-mode"):
                function(x)


@OF_TORCH
def test_transforms_of_torch_func_are_refused():
    def first(x):
        return ps.softmax(x)[0]

    x = tensor((3, 4))
    calls = [
        lambda: torch.func.vmap(ps.log_sigmoid)(x),
        lambda: torch.func.vmap(ps.softmax)(x),
        lambda: torch.func.grad(first)(x[0]),
        lambda: torch.func.jvp(first, (x[0],), (x[0],)),
        lambda: torch.func.vmap(torch.func.grad(first))(x),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"x is within a transform of torch.func"):
            call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "sigmoid", "log_sigmoid"])
def test_half_precision_is_single_precision_rounded_once(name, dtype):
    x = tensor((7, 70_000), dtype)
    function = getattr(ps, name)
    assert torch.equal(function(x), function(x.float()).to(dtype))


def test_seventy_thousand_equal_half_precision_logits():
    for dtype in (torch.float16, torch.bfloat16):
        p = ps.softmax(torch.zeros(70_000, dtype=dtype))
        assert p[0] == torch.tensor(1 / 70_000, dtype=dtype)


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "sliced": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "expanded": lambda t: t[:1].expand(t.shape),
    "a parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "negated": lambda t: torch._neg_view(-t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tensors_may_lie_anyhow_in_memory(layout, dtype):
    x = LAYOUTS[layout](tensor((3, 5), dtype))
    for axis in (0, 1, None):
        assert torch.equal(ps.softmax(x, axis), ps.softmax(x.detach().clone(), axis))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_tensor_of_memory_that_is_read_only():
    x = normal((3, 5), np.float32)
    x.flags.writeable = False
    assert_same_bytes(ps.softmax(torch.from_numpy(x)).numpy(), ps.softmax(x))


def test_dtype_is_torchs_or_numpys():
    x = tensor((3, 5), torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        result = ps.softmax(x, dtype=dtype)
        assert result.dtype == dtype
        name = str(dtype).removeprefix("torch.")
        if name != "bfloat16":
            assert torch.equal(ps.softmax(x, dtype=name), result)
    with pytest.raises(TypeError, match="dtype must be float16"):
        ps.softmax(x, dtype=torch.int32)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_labels_and_logits_of_any_integer_dtype(dtype):
    labels = torch.tensor([0, 4, 2]).to(getattr(torch, dtype))
    x = tensor((3, 5))
    assert ps.cross_entropy(x, labels) == ps.cross_entropy(x.numpy(), [0, 4, 2])
    assert ps.softmax(labels).dtype == (torch.float64 if dtype[-2:] in "32 64" else torch.float32)


def test_a_full_reduction_is_a_tensor_without_dimensions():
    x = tensor((3, 5), torch.bfloat16)
    for loss in (
        ps.logsumexp(x, None),
        ps.logsumexp(x[0]),
        ps.cross_entropy(x, torch.tensor([0, 1, 2])),
        ps.binary_cross_entropy_with_logits(x, torch.zeros(3, 5)),
    ):
        assert (type(loss), loss.dtype, loss.shape) == (torch.Tensor, torch.bfloat16, ())


def test_options_are_tensors_lists_or_numbers():
    x = tensor((3, 5))
    t = [0.5, 1.0, 2.0]
    assert torch.equal(ps.softmax(x, temperature=torch.tensor(t)), ps.softmax(x, temperature=t))
    assert torch.equal(ps.softmax(x, temperature=torch.tensor(2)), ps.softmax(x, temperature=2))
    where = x > 0
    assert torch.equal(ps.logsumexp(x, where=where), ps.logsumexp(x, where=where.tolist()))
    for weight in (torch.arange(1.0, 6), [1, 2, 3, 4, 5]):
        loss = ps.cross_entropy(x, [0, 1, 2], weight=weight)
        assert loss == ps.cross_entropy(x.numpy(), [0, 1, 2], weight=[1, 2, 3, 4, 5])


def test_a_tensor_that_another_library_cannot_read_is_refused():
    x = tensor((3, 5))
    for wrong, why in [
        (x.to_sparse(), "dense"),
        (x.to("meta"), r"torch\.float64 on meta"),
        (x.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ]:
        with pytest.raises(TypeError, match=f"x: expected an array of float16.*{why}"):
            ps.softmax(wrong)
    with pytest.raises(TypeError, match="got complex64"):
        ps.softmax(torch.conj(x.to(torch.complex64)))


def test_tensors_on_two_devices_are_refused_by_name():
    with pytest.raises(ValueError, match="logits is on cpu and target is on meta"):
        ps.cross_entropy(tensor((3, 5)), torch.zeros(3, dtype=torch.int64, device="meta"))


# --- out= ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_out_may_be_the_input_or_a_part_of_another_tensor(dtype):
    x = tensor((3, 5), dtype)
    expected = ps.softmax(x)
    room = torch.full((3, 10), 7, dtype=dtype)
    assert torch.equal(ps.softmax(x, out=room[:, ::2]), expected)
    assert (room[:, 1::2] == 7).all()
    assert ps.softmax(x, out=x) is x
    assert torch.equal(x, expected)


def test_out_that_does_not_fit():
    x = tensor((3, 5))
    with pytest.raises(ValueError, match=r"out must have shape \(3, 5\), got \(5,\)"):
        ps.softmax(x, out=torch.empty(5, dtype=torch.float64))
    with pytest.raises(TypeError, match="out must have dtype float64, got float32"):
        ps.softmax(x, out=torch.empty(3, 5))
    with pytest.raises(ValueError, match="out is the negative"):
        ps.softmax(x, out=torch._neg_view(torch.empty_like(x)))


def test_autograd_notices_that_out_was_written_to():
    x, weight = tensor((3, 5)), tensor((3, 5), requires_grad=True)
    product = (weight * x).sum()
    ps.softmax(tensor((3, 5)), out=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# --- autograd -----------------------------------------------------------------------------------

LABELS = torch.tensor([0, 2, -100])
PROBABILITIES = torch.softmax(tensor((3, 4)), -1)
FACTORS = torch.linspace(0, 2, 12, dtype=torch.float64).reshape(3, 4)
WEIGHT = torch.tensor([0.5, 1, 2, 1])
DIFFERENTIABLE = {
    "softmax": lambda x: ps.softmax(x),
    "softmax, axis": lambda x: ps.softmax(x, 0, temperature=0.5),
    "softmax, axes": lambda x: ps.softmax(x, (0, 1), where=FACTORS > 0.5),
    "softmax, temperatures": lambda x: ps.softmax(x, temperature=torch.tensor([0.5, 1, 3])),
    "log_softmax": lambda x: ps.log_softmax(x),
    "log_softmax, axis": lambda x: ps.log_softmax(x, None, temperature=2.0),
    "logsumexp": lambda x: ps.logsumexp(x),
    "logsumexp, axis": lambda x: ps.logsumexp(x, 0, keepdims=True),
    "logsumexp, all": lambda x: ps.logsumexp(x, None, where=FACTORS > 0.5),
    "logsumexp, b": lambda x: ps.logsumexp(x, b=FACTORS),
    "logsumexp, b of either sign": lambda x: ps.logsumexp(x, b=FACTORS - 3, return_sign=True)[0],
    "logsumexp, b for more rows": lambda x: ps.logsumexp(x[:1], b=FACTORS),
    "logsumexp, b for more axes": lambda x: ps.logsumexp(x[0], (0, 1), b=FACTORS),
    "sigmoid": lambda x: ps.sigmoid(x),
    "log_sigmoid": lambda x: ps.log_sigmoid(x),
    **{
        f"cross_entropy, {reduction}{name}": lambda x, r=reduction, o=options: ps.cross_entropy(
            x, **o, reduction=r
        )
        for reduction in ("mean", "sum", "none")
        for name, options in {
            "": {"target": LABELS},
            ", options": {"target": LABELS, "weight": WEIGHT, "label_smoothing": 0.1},
            ", probabilities": {"target": PROBABILITIES, "temperature": 0.5},
            ", axis": {"target": torch.tensor([0, 2, -100, 1]), "axis": 0},
        }.items()
    },
    **{
        f"binary_cross_entropy_with_logits, {reduction}": lambda x, r=reduction: (
            ps.binary_cross_entropy_with_logits(
                x, PROBABILITIES, weight=FACTORS, pos_weight=WEIGHT, reduction=r
            )
        )
        for reduction in ("mean", "sum", "none")
    },
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_derivatives(name):
    x = tensor((3, 4), requires_grad=True)
    assert torch.autograd.gradcheck(DIFFERENTIABLE[name], (x,))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_recording_changes_no_bit_of_the_value(name):
    x = tensor((3, 4))
    recorded = DIFFERENTIABLE[name](x.clone().requires_grad_())
    assert recorded.requires_grad
    assert_same_bytes(recorded.detach().numpy(), DIFFERENTIABLE[name](x).numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_have_the_dtype_of_the_logits(name, dtype):
    x = tensor((3, 4), dtype, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    for leaf in (x, exact):
        result = DIFFERENTIABLE[name](leaf)
        assert result.dtype == (torch.float64 if ", b" in name else leaf.dtype)
        result.sum().backward()
    assert x.grad.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_gradients_pass_through_what_comes_before_and_after():
    x = tensor((3, 4), requires_grad=True)
    ps.log_softmax(x * 2)[:, ::2].sum().backward()
    other = x.detach().clone().requires_grad_()
    torch.log_softmax(other * 2, -1)[:, ::2].sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_dtype_and_the_gradient_back_through_it():
    x = tensor((3, 4), torch.float32, requires_grad=True)
    result = ps.softmax(x, dtype=torch.float64)
    assert result.dtype == torch.float64
    result[:, 0].sum().backward()
    assert x.grad.dtype == torch.float32


def test_a_mean_loss_of_many_rows_has_a_half_precision_gradient_once_it_is_scaled():
    """Each entry is some 1e-8 before the loss is scaled, as gradient scalers do."""
    x = torch.zeros(100_000, 10, dtype=torch.float16, requires_grad=True)
    loss = ps.cross_entropy(x, torch.zeros(100_000, dtype=torch.int64))
    (loss.float() * 2**15).backward()
    exact = 2**15 * 0.1 / 100_000
    assert x.grad[0, 1].item() == pytest.approx(exact, rel=2**-11)


def test_nothing_is_recorded_where_autograd_is_off():
    x = tensor((3, 4), requires_grad=True)
    with torch.no_grad():
        assert not ps.softmax(x).requires_grad
        assert ps.softmax(x, out=x) is x
    with torch.inference_mode():
        assert ps.softmax(x).is_inference()
    assert not ps.softmax(x.detach()).requires_grad


REFUSED = {
    "temperature": lambda x, leaf: ps.softmax(x, temperature=leaf),
    "b": lambda x, leaf: ps.logsumexp(x, b=leaf),
    "target": lambda x, leaf: ps.cross_entropy(x, leaf),
    "weight": lambda x, leaf: ps.binary_cross_entropy_with_logits(x, x.abs() * 0, weight=leaf),
    "probabilities": lambda x, leaf: ps.softmax_vjp(x, leaf),
    "logits": lambda x, leaf: ps.cross_entropy_with_grad(leaf, [0, 1, 2]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_gradient_is_left_out_silently(name):
    leaf = torch.ones(3 if name == "temperature" else (3, 4), requires_grad=True)
    with pytest.raises(NotImplementedError, match=f"{name} must not require one"):
        REFUSED[name](torch.ones(3, 4), leaf)
    with torch.no_grad():
        REFUSED[name](torch.ones(3, 4), leaf)


def test_out_does_not_go_with_autograd():
    x = tensor((3, 4), requires_grad=True)
    for arguments in ((x, torch.empty_like(x)), (x.detach(), x)):
        with pytest.raises(RuntimeError, match="out= does not go with autograd"):
            ps.softmax(arguments[0], out=arguments[1])


def test_a_gradient_of_a_gradient_is_refused():
    x = tensor((3, 4), requires_grad=True)
    (gradient,) = torch.autograd.grad((ps.softmax(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (gradient**2).sum().backward()


def test_a_temperature_of_zero_has_no_gradient():
    x = tensor((3, 4), requires_grad=True)
    p = ps.softmax(x, temperature=0)
    with pytest.raises(ValueError, match="temperature must be > 0 for a gradient"):
        p.sum().backward()


@pytest.mark.parametrize("spoiled", ["x", "where"])
def test_autograd_notices_that_what_it_needs_was_changed(spoiled):
    given = {"x": tensor((3, 4), requires_grad=True) + 0, "where": torch.ones(3, 4) > 0}
    result = ps.logsumexp(**given)
    given[spoiled].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_the_graph_is_freed_with_its_result():
    x = tensor((3, 4), requires_grad=True)
    result = ps.softmax(x)
    alive = weakref.ref(result)
    gc.disable()
    try:
        del result
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_function_breaks_its_graph_and_is_right():
    def loss(x, labels):
        return ps.cross_entropy(x * 2, labels) + ps.softmax(x)[0, 0]

    x, labels = tensor((3, 4), requires_grad=True), torch.tensor([0, 1, 2])
    expected = loss(x, labels)
    expected.backward()
    gradient, x.grad = x.grad, None
    compiled = torch.compile(loss, backend="eager")(x, labels)
    compiled.backward()
    assert torch.equal(compiled, expected)
    assert torch.equal(x.grad, gradient)
