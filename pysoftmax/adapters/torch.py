"""torch tensors: views of their memory, and nodes of autograd where a gradient is recorded."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from pysoftmax import _extras
from pysoftmax.adapters import gradients
from pysoftmax.adapters.memory import OUTPUTS, Memory
from pysoftmax.backends import Array


class Torch(Memory):
    """Tensors on a CPU through NumPy, on a CUDA device through CuPy."""

    name = library = "torch"

    def recognises(self, array: Any) -> bool:
        """Whether `array` is a tensor; torch is imported if there is one."""
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(array, torch.Tensor)

    def view(self, array: Any) -> Array:
        """The memory of a dense tensor."""
        torch = sys.modules["torch"]
        if array.layout is not torch.strided:
            raise TypeError("expected a dense tensor: call to_dense() first")
        tensor = array.detach().resolve_conj().resolve_neg()
        # Neither NumPy nor DLPack's readers know bfloat16 of themselves.
        half = tensor.dtype is torch.bfloat16
        if half:
            tensor = tensor.view(torch.int16)
        if tensor.is_cuda:
            cupy = _extras.load("cupy", "cupy", "a tensor on a CUDA device")
            values: Any = cupy.from_dlpack(tensor)
        else:
            values = tensor.numpy()
        return values.view(_bfloat16()) if half else values

    def wrap(self, result: Array, like: Any) -> Any:
        """A tensor of the memory of `result`."""
        torch = sys.modules["torch"]
        half = result.dtype.name == "bfloat16"
        if half:
            result = result.view(np.int16)
        on_cpu = isinstance(result, np.ndarray)
        tensor = torch.from_numpy(result) if on_cpu else torch.from_dlpack(result)
        return tensor.view(torch.bfloat16) if half else tensor

    def dtype(self, dtype: Any) -> Any:
        """torch's dtypes by their names, which are NumPy's; others as they are."""
        if not isinstance(dtype, sys.modules["torch"].dtype):
            return dtype
        name = str(dtype).removeprefix("torch.")
        return _bfloat16() if name == "bfloat16" else name

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function`, recorded if autograd is to follow it."""
        torch: Any = sys.modules["torch"]
        tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
        out = next((tensors[name] for name in OUTPUTS if name in tensors), None)
        if out is not None and out.is_neg():
            raise ValueError("out is the negative of a tensor that shares its memory")
        if torch.is_grad_enabled():
            needed = [name for name, tensor in tensors.items() if tensor.requires_grad]
            if needed and out is not None:
                raise RuntimeError(
                    f"{function}: out= does not go with autograd, but {needed[0]} requires grad"
                )
            if needed:
                gradients.refuse(function, needed)
                return _node().apply(arguments[needed[0]], self, function, arguments)
        with _in_stream_of(self.like(arguments)):
            result = super().call(function, arguments)
        if out is not None:
            # So that autograd notices if it needed what was there.
            torch.autograd.graph.increment_version(out)
        return result


def _bfloat16() -> Any:
    return np.dtype(_extras.load("ml_dtypes", "bfloat16", "bfloat16").bfloat16)


@contextmanager
def _in_stream_of(tensor: Any) -> Iterator[None]:
    """CuPy on the device and in the stream of torch, so that neither has to wait."""
    if not tensor.is_cuda:
        yield
        return
    cupy = _extras.load("cupy", "cupy", "a tensor on a CUDA device")
    stream = sys.modules["torch"].cuda.current_stream(tensor.device).cuda_stream
    with cupy.cuda.Device(tensor.device.index), cupy.cuda.ExternalStream(stream):
        yield


@cache
def _node() -> Any:
    """The class of autograd's nodes, made once torch is there."""
    torch: Any = sys.modules["torch"]

    class Node(torch.autograd.Function):  # type: ignore[misc]
        """One call of a public function in autograd's graph."""

        @staticmethod
        def forward(
            ctx: Any, x: Any, adapter: Torch, function: str, arguments: dict[str, Any]
        ) -> Any:
            own = gradients.ARGUMENT[function]
            with _in_stream_of(x):
                views = adapter.inside(arguments)
                value, kept = gradients.forward(function, views)
                result = adapter.outside(value, x)
                if kept is value:
                    keep = result
                else:
                    keep = x if kept is views[own] else adapter.outside(kept, x)
            # The other tensors too, so that autograd notices if they change.
            others = {k: v for k, v in arguments.items() if k != own}
            tensors = {k: v for k, v in others.items() if isinstance(v, torch.Tensor)}
            ctx.save_for_backward(keep, *tensors.values())
            ctx.call = adapter, function, others, list(tensors)
            if isinstance(result, tuple):
                ctx.mark_non_differentiable(*result[1:])
            return result

        @staticmethod
        @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, g: Any, *_: Any) -> Any:
            adapter, function, others, names = ctx.call
            keep, *tensors = ctx.saved_tensors
            others.update(zip(names, tensors, strict=True))
            with _in_stream_of(keep):
                views = adapter.inside({**others, "kept": keep, "g": g})
                kept, g = views.pop("kept"), views.pop("g")
                result = adapter.outside(gradients.backward(function, views, kept, g), keep)
            return result, None, None, None

    return Node


adapter = Torch()
