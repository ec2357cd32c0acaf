"""What autograd records of a call. Imported with the first tensor, so that torch is there."""

from typing import Any

import torch

from pysoftmax.adapters import gradients
from pysoftmax.adapters.memory import OUTPUTS
from pysoftmax.adapters.torch import Torch, has_tangent, in_stream_of


# Nothing below is for torch.compile to look into: it breaks its graph here.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def call(adapter: Torch, function: str, arguments: dict[str, Any]) -> Any:
    """The public `function` of tensors, as a node of the graph if one of them requires grad."""
    tensors = _tensors(arguments)
    out = next((tensors[name] for name in OUTPUTS if name in tensors), None)
    if out is not None and out.is_neg():
        raise ValueError("out is the negative of a tensor that shares its memory")
    # Not public, but no public function tells.
    wrapped = [n for n, t in tensors.items() if torch._C._functorch.is_functorch_wrapped_tensor(t)]
    if wrapped:
        raise RuntimeError(
            f"{function}: {wrapped[0]} is within a transform of torch.func, which is not "
            "supported: give all rows at once instead of vmap, and differentiate by autograd "
            "(requires_grad)"
        )
    if dual := [name for name, tensor in tensors.items() if has_tangent(tensor)]:
        raise RuntimeError(
            f"{function}: {dual[0]} has a tangent, but forward-mode differentiation is not "
            "supported: use reverse mode (requires_grad)"
        )
    needed = [name for name, tensor in tensors.items() if tensor.requires_grad]
    if not needed or not torch.is_grad_enabled():
        return adapter.compute(function, arguments)
    if out is not None:
        raise RuntimeError(
            f"{function}: out= does not go with autograd, but {needed[0]} requires grad"
        )
    gradients.refuse(function, needed)
    return Node.apply(arguments[needed[0]], adapter, function, arguments)


class Node(torch.autograd.Function):  # type: ignore[misc]
    """One call of a public function in autograd's graph."""

    @staticmethod
    def forward(ctx: Any, x: Any, adapter: Torch, function: str, arguments: dict[str, Any]) -> Any:
        """The value; what its gradient needs is kept."""
        own = gradients.ARGUMENT[function]
        with in_stream_of(x):
            views = adapter.inside(arguments)
            value, kept = gradients.forward(function, views)
            result = adapter.outside(value, x)
            if kept is value:
                keep = result
            else:
                keep = x if kept is views[own] else adapter.outside(kept, x)
        # The other tensors are saved too, so that autograd notices if they change.
        others = {name: a for name, a in arguments.items() if name != own}
        tensors = _tensors(others)
        ctx.save_for_backward(keep, *tensors.values())
        ctx.call = adapter, function, others, list(tensors)
        if isinstance(result, tuple):
            ctx.mark_non_differentiable(*result[1:])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Any, *_: Any) -> Any:
        """The gradient with respect to `x`."""
        adapter, function, others, names = ctx.call
        keep, *tensors = ctx.saved_tensors
        given = {**others, **dict(zip(names, tensors, strict=True)), "kept": keep, "g": g}
        with in_stream_of(keep):
            views = adapter.inside(given)
            kept, g = views.pop("kept"), views.pop("g")
            gradient = adapter.outside(gradients.backward(function, views, kept, g), keep)
        return gradient, None, None, None


def _tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: a for name, a in arguments.items() if isinstance(a, torch.Tensor)}
