"""torch tensors, as views of their memory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pysoftmax import _extras
from pysoftmax.adapters.memory import OUTPUTS, Memory
from pysoftmax.backends import Array
from pysoftmax.backends.numpy import (
    fast_cross_entropy,
    fast_log_softmax,
    fast_logsumexp,
    fast_softmax,
)

FAST = {"softmax": fast_softmax, "log_softmax": fast_log_softmax}


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
            cupy = _extras.load("cupy", "cuda13", "a tensor on a CUDA device")
            values: Any = cupy.from_dlpack(tensor)
        else:
            values = tensor.numpy()
        return values.view(_bfloat16()) if half else values

    def wrap(self, result: Array, like: Any) -> Any:
        """A tensor of the memory of `result`."""
        torch = sys.modules["torch"]
        half = result.dtype.kind == "V"  # a dtype's name takes microseconds
        if half:
            result = result.view(np.int16)
        if isinstance(result, np.ndarray):
            tensor = torch.from_numpy(result)
            if not like.is_cpu:
                tensor = tensor.to(like.device)
        else:
            tensor = torch.from_dlpack(result)
        return tensor.view(torch.bfloat16) if half else tensor

    def dtype(self, dtype: Any, like: Any) -> Any:
        """torch's dtypes by their names, which are NumPy's; others as they are."""
        if not isinstance(dtype, sys.modules["torch"].dtype):
            return dtype
        name = str(dtype).removeprefix("torch.")
        return _bfloat16() if name == "bfloat16" else name

    def short_way(self, name: str, x: Any, axis: Any, temperature: float, out: Any) -> Any:
        """What NumPy's fast way makes of a plain tensor on a CPU that is not recorded, or None."""
        values = memory_of_plain(x) if out is None else None
        if values is None:
            return None
        if name == "logsumexp":
            result = fast_logsumexp(values, axis, False, None, None)
        else:
            result = FAST[name](values, axis, temperature, None, None, None)
        return None if result is None else self.wrap(np.asarray(result), x)

    def short_cross_entropy(
        self,
        logits: Any,
        target: Any,
        axis: Any,
        weight: Any,
        ignore_index: Any,
        label_smoothing: Any,
        reduction: str,
        temperature: float,
        with_grad: bool,
        grad_out: Any,
    ) -> tuple[Any, Any] | None:
        """As `short_way`."""
        values = memory_of_plain(logits) if grad_out is None else None
        truth = None if values is None else memory_of_plain(target)
        factors = None if truth is None or weight is None else memory_of_plain(weight)
        if truth is None or (weight is not None and factors is None):
            return None
        options = ignore_index, label_smoothing, reduction, temperature, with_grad, None
        result = fast_cross_entropy(values, truth, axis, factors, *options)
        if result is None:
            return None
        loss, grad = result
        return self.wrap(np.asarray(loss), logits), self.wrap(grad, logits) if with_grad else None

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function`, recorded if autograd is to follow it."""
        views = views_of_plain(arguments)
        if views is not None:
            return self.call_on(views, function, arguments)
        from pysoftmax.adapters import torch_autograd

        return torch_autograd.call(self, function, arguments)

    def compute(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function`, not recorded."""
        with in_stream_of(self.like(arguments)):
            return super().call(function, arguments)

    def call_on(self, views: dict[str, Any], function: str, arguments: dict[str, Any]) -> Any:
        """As Memory's."""
        result = super().call_on(views, function, arguments)
        for name in OUTPUTS:
            if (out := arguments.get(name)) is not None:
                # So that autograd notices if it needed what was there.
                sys.modules["torch"].autograd.graph.increment_version(out)
        return result


def views_of_plain(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """What `inside` makes of arguments whose tensors are all plain; or None."""
    torch = sys.modules["torch"]
    views = arguments.copy()
    for name, argument in arguments.items():
        if isinstance(argument, torch.Tensor):
            views[name] = memory = memory_of_plain(argument)
            if memory is None:
                return None
        elif isinstance(argument, torch.dtype):
            return None
    return views


def memory_of_plain(tensor: Any) -> Array | None:
    """The memory of a tensor on a CPU that nothing follows, for NumPy; or None."""
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling() or type(tensor) is not torch.Tensor:
        return None
    if tensor.requires_grad or has_tangent(tensor):
        return None
    try:
        if tensor.dtype is torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(_bfloat16())
        return tensor.numpy()
    except (RuntimeError, TypeError):  # of another device or layout, a negative view, in vmap
        return None


def has_tangent(tensor: Any) -> bool:
    """Whether forward-mode differentiation follows a tensor."""
    forward_ad = sys.modules["torch"].autograd.forward_ad
    return forward_ad.unpack_dual(tensor).tangent is not None


def _bfloat16() -> Any:
    return np.dtype(_extras.load("ml_dtypes", "bfloat16", "bfloat16").bfloat16)


@contextmanager
def in_stream_of(tensor: Any) -> Iterator[None]:
    """CuPy on the device and in the stream of torch, so that neither has to wait."""
    if not tensor.is_cuda:
        yield
        return
    cupy = _extras.load("cupy", "cuda13", "a tensor on a CUDA device")
    stream = sys.modules["torch"].cuda.current_stream(tensor.device)
    with cupy.cuda.Device(tensor.device.index), cupy.cuda.Stream.from_external(stream):
        yield


adapter = Torch()
