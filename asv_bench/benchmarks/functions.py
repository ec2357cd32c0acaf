"""The public functions: what each is called with, and the same from other libraries."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from . import common


@dataclasses.dataclass(frozen=True)
class Function:
    """A public function under benchmark, and the same from its peers.

    ``arrays(x, axis)`` are its array arguments, made from logits. ``numpy`` takes them too, and so
    do ``torch(torch)`` and ``scipy(scipy.special)``: along the last of two axes.
    """

    name: str
    arrays: Callable
    numpy: Callable
    torch: Callable
    scipy: Callable | None = None
    out: str | None = "out"  # the argument that takes an array for the result
    rowwise: bool = True  # it takes an axis


def _logits(x, axis):
    return (x,)


def _labels(x, axis):
    return x, x.argmin(axis=axis)


def _probabilities(x, axis):
    return x, common.public("softmax")(x[::-1], axis)


def _binary(x, axis):
    return x, (x < 0).astype(x.dtype)


def _softmax_vjp(x, axis):
    return x[::-1].copy(), common.public("softmax")(x, axis)


def _log_softmax_vjp(x, axis):
    return x[::-1].copy(), common.public("log_softmax")(x, axis)


# --- the textbook formulas in NumPy -------------------------------------------------------------


def numpy_softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def numpy_log_softmax(x):
    d = x - x.max(axis=-1, keepdims=True)
    d -= np.log(np.exp(d).sum(axis=-1, keepdims=True))
    return d


def numpy_logsumexp(x):
    peak = x.max(axis=-1, keepdims=True)
    return peak[..., 0] + np.log(np.exp(x - peak).sum(axis=-1))


def numpy_softmax_vjp(g, p):
    return p * (g - (g * p).sum(axis=-1, keepdims=True))


def numpy_log_softmax_vjp(g, log_p):
    return g - np.exp(log_p) * g.sum(axis=-1, keepdims=True)


def numpy_cross_entropy(x, labels):
    return -numpy_log_softmax(x)[np.arange(len(x)), labels].mean()


def numpy_cross_entropy_probabilities(x, target):
    return -(target * numpy_log_softmax(x)).sum(axis=-1).mean()


def numpy_cross_entropy_with_grad(x, labels):
    log_p = numpy_log_softmax(x)
    rows = np.arange(len(x))
    loss = -log_p[rows, labels].mean()
    grad = np.exp(log_p)
    grad[rows, labels] -= 1
    grad /= len(x)
    return loss, grad


def numpy_cross_entropy_probabilities_with_grad(x, target):
    log_p = numpy_log_softmax(x)
    loss = -(target * log_p).sum(axis=-1).mean()
    return loss, (np.exp(log_p) - target) / len(x)


def numpy_sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_log_sigmoid(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-abs(x)))


def numpy_binary_cross_entropy(x, y):
    return (np.maximum(x, 0) - x * y + np.log1p(np.exp(-abs(x)))).mean()


def numpy_binary_cross_entropy_with_grad(x, y):
    return numpy_binary_cross_entropy(x, y), (numpy_sigmoid(x) - y) / x.size


# --- torch --------------------------------------------------------------------------------------


def _loss(name):
    return lambda torch: getattr(torch.nn.functional, name)


def _loss_with_grad(name):
    """Forward and backward pass."""

    def of(torch):
        loss_of = getattr(torch.nn.functional, name)

        def loss_and_grad(x, target):
            loss = loss_of(x.requires_grad_(), target)
            return loss, *torch.autograd.grad(loss, x)

        return loss_and_grad

    return of


def _vjp(name):
    """The backward pass alone."""

    def of(torch):
        backward = getattr(torch.ops.aten, name)
        return lambda g, result: backward(g, result, -1, result.dtype)

    return of


def _along_rows(name, **axis):
    return lambda library: functools.partial(getattr(library, name), **axis)


# --- the table ----------------------------------------------------------------------------------

# Name of the benchmark -> function. Names differ where a function has more than one kernel.
FUNCTIONS = {
    "softmax": Function(
        "softmax",
        _logits,
        numpy_softmax,
        torch=_along_rows("softmax", dim=-1),
        scipy=_along_rows("softmax", axis=-1),
    ),
    "log_softmax": Function(
        "log_softmax",
        _logits,
        numpy_log_softmax,
        torch=_along_rows("log_softmax", dim=-1),
        scipy=_along_rows("log_softmax", axis=-1),
    ),
    "logsumexp": Function(
        "logsumexp",
        _logits,
        numpy_logsumexp,
        torch=_along_rows("logsumexp", dim=-1),
        scipy=_along_rows("logsumexp", axis=-1),
        out=None,
    ),
    "softmax_vjp": Function(
        "softmax_vjp", _softmax_vjp, numpy_softmax_vjp, torch=_vjp("_softmax_backward_data")
    ),
    "log_softmax_vjp": Function(
        "log_softmax_vjp",
        _log_softmax_vjp,
        numpy_log_softmax_vjp,
        torch=_vjp("_log_softmax_backward_data"),
    ),
    "cross_entropy": Function(
        "cross_entropy", _labels, numpy_cross_entropy, torch=_loss("cross_entropy"), out=None
    ),
    "cross_entropy_with_grad": Function(
        "cross_entropy_with_grad",
        _labels,
        numpy_cross_entropy_with_grad,
        torch=_loss_with_grad("cross_entropy"),
        out="grad_out",
    ),
    "cross_entropy_probabilities": Function(
        "cross_entropy",
        _probabilities,
        numpy_cross_entropy_probabilities,
        torch=_loss("cross_entropy"),
        out=None,
    ),
    "cross_entropy_probabilities_with_grad": Function(
        "cross_entropy_with_grad",
        _probabilities,
        numpy_cross_entropy_probabilities_with_grad,
        torch=_loss_with_grad("cross_entropy"),
        out="grad_out",
    ),
    "sigmoid": Function(
        "sigmoid",
        _logits,
        numpy_sigmoid,
        torch=lambda torch: torch.sigmoid,
        scipy=lambda special: special.expit,
        rowwise=False,
    ),
    "log_sigmoid": Function(
        "log_sigmoid",
        _logits,
        numpy_log_sigmoid,
        torch=lambda torch: torch.nn.functional.logsigmoid,
        scipy=lambda special: special.log_expit,
        rowwise=False,
    ),
    "binary_cross_entropy_with_logits": Function(
        "binary_cross_entropy_with_logits",
        _binary,
        numpy_binary_cross_entropy,
        torch=_loss("binary_cross_entropy_with_logits"),
        out=None,
        rowwise=False,
    ),
    "binary_cross_entropy_with_logits_with_grad": Function(
        "binary_cross_entropy_with_logits_with_grad",
        _binary,
        numpy_binary_cross_entropy_with_grad,
        torch=_loss_with_grad("binary_cross_entropy_with_logits"),
        out="grad_out",
        rowwise=False,
    ),
}


def one_each(base, params):
    """Benchmark classes for a module: one for each name in `params`, with those and with `base`."""
    return {
        name: type(
            name,
            (base,),
            {"function": FUNCTIONS[name], "params": values, "__module__": base.__module__},
        )
        for name, values in params.items()
    }
