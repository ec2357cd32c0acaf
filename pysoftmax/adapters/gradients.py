"""Gradients with respect to the logits, for libraries that record what is computed.

The public functions give both: `forward` the value and an array to keep, `backward` from these
the gradient. All arrays are NumPy's or CuPy's. Half precisions are summed, and scaled by the
gradient of the loss, in float32: neither overflows nor vanishes before the last rounding.
"""

from typing import Any

import numpy as np

import pysoftmax
from pysoftmax import _arguments as check
from pysoftmax.backends import Array

# The argument that each function has a gradient for.
ARGUMENT = {
    "softmax": "x",
    "log_softmax": "x",
    "logsumexp": "x",
    "sigmoid": "x",
    "log_sigmoid": "x",
    "cross_entropy": "logits",
    "binary_cross_entropy_with_logits": "logits",
}
PRODUCTS = {"softmax": "softmax_vjp", "log_softmax": "log_softmax_vjp"}


def refuse(function: str, arguments: list[str]) -> None:
    """NotImplementedError unless the gradient is asked for with respect to the logits only."""
    known = ARGUMENT.get(function)
    if known is None:
        raise NotImplementedError(
            f"{function} has no gradient: {', '.join(arguments)} must not require one"
        )
    for name in arguments:
        if name != known:
            raise NotImplementedError(
                f"{function} has a gradient with respect to {known} only: {name} must not "
                "require one"
            )


def forward(function: str, arguments: dict[str, Any]) -> tuple[Any, Array]:
    """The value, and what `backward` must be given."""
    x = arguments[ARGUMENT[function]]
    if ARGUMENT[function] == "logits":
        wide = x.astype(check.summing_dtype(check.result_dtype(x.dtype)), copy=False)
        with_grad = getattr(pysoftmax, f"{function}_with_grad")
        loss, grad = with_grad(**{**arguments, "logits": wide})
        return loss.astype(check.result_dtype(x.dtype)), grad
    value = getattr(pysoftmax, function)(**arguments)
    return value, value if function in PRODUCTS else x


def backward(function: str, arguments: dict[str, Any], kept: Array, g: Array) -> Array:
    """The gradient, where `g` is that of the value; `arguments` but for that of the gradient."""
    axis: Any = arguments.get("axis")
    if function in PRODUCTS:
        product = getattr(pysoftmax, PRODUCTS[function])
        return product(g, kept, axis, temperature=arguments["temperature"])
    wide = check.summing_dtype(np.promote_types(g.dtype, kept.dtype))
    g = g.astype(wide, copy=False)
    if ARGUMENT[function] == "logits":
        rows = g.ndim and axis is not None
        return kept * (np.expand_dims(g, axis) if rows else g)
    if function == "logsumexp":
        axes, terms = _terms(kept, axis, arguments["b"], arguments["where"], wide)
        shape = check.reduced_shape(terms.shape, axes, keepdims=True)
        return _summed_to(kept.shape, terms * g.reshape(shape))
    # 1 - sigmoid(x) is sigmoid(-x) without cancellation.
    other = pysoftmax.sigmoid(-kept, dtype=wide)
    if function == "log_sigmoid":
        return g * other
    return g * (pysoftmax.sigmoid(kept, dtype=wide) * other)


def _terms(x: Array, axis: Any, b: Any, where: Any, dtype: Any) -> tuple[Any, Array]:
    """The share of each term in the sum of `logsumexp`, and the axes summed over."""
    if b is None:
        terms = pysoftmax.softmax(x, axis, where=where, dtype=dtype)
        return check.normalize_axes(axis, terms.ndim), terms
    b = np.asarray(b, like=x)
    x = np.broadcast_to(x, np.broadcast_shapes(x.shape, b.shape))
    axes = check.normalize_axes(axis, x.ndim)
    takes_part = (b != 0) if where is None else (b != 0) & where
    shares = pysoftmax.softmax(x, axis, where=np.broadcast_to(takes_part, x.shape), dtype=dtype)
    terms = np.where(takes_part, b, 0).astype(dtype) * shares
    with np.errstate(divide="ignore", invalid="ignore"):
        return axes, terms / terms.sum(axis=axes, keepdims=True)


def _summed_to(shape: tuple[int, ...], array: Array) -> Array:
    """`array` summed over the axes that broadcasting from `shape` gave it."""
    if array.shape == shape:
        return array
    new = array.ndim - len(shape)
    axes = [new + i for i, n in enumerate(shape) if n == 1 and array.shape[new + i] > 1]
    return array.sum(axis=(*range(new), *axes)).reshape(shape)
