"""Arrays of other libraries that NumPy, or on a GPU CuPy, computes on where they lie.

Nothing is copied on the way in or out, but where the library demands it.
"""

from abc import abstractmethod
from typing import Any

import numpy as np

import pysoftmax
from pysoftmax import _extras
from pysoftmax._arguments import ACCEPTED
from pysoftmax.adapters import Adapter
from pysoftmax.backends import Array

# What may be written to.
OUTPUTS = ("out", "grad_out")

# Of DLPack: the devices whose memory NumPy reads, and CuPy.
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13


class Memory(Adapter):
    """An adapter that sees its arrays as NumPy's or CuPy's, and wraps the result."""

    in_memory = True

    @abstractmethod
    def view(self, array: Any) -> Array:
        """`array` as NumPy's or CuPy's, of the same memory."""

    @abstractmethod
    def wrap(self, result: Array, like: Any) -> Any:
        """`result` as an array of this library, on the device of `like`."""

    def device(self, array: Any) -> str:
        """Where `array` lies, as an error message names it."""
        return str(array.device)

    def dtype(self, dtype: Any, like: Any) -> Any:
        """The argument `dtype`, which may be of the library of `like`, as NumPy's."""
        return dtype

    def inside(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with a view in place of every array."""
        given = {name: array for name, array in arguments.items() if self.recognises(array)}
        if len(given) > 1:
            self._expect_one_device(given)
        views = {**arguments, **{name: self._view(name, array) for name, array in given.items()}}
        if views.get("dtype") is not None:
            views["dtype"] = self.dtype(views["dtype"], self.like(arguments))
        return views

    def _expect_one_device(self, arrays: dict[str, Any]) -> None:
        places: dict[str, str] = {}
        for name, array in arrays.items():
            places.setdefault(self.device(array), name)
        if len(places) > 1:
            raise ValueError(
                "all arrays of a call must be on one device, but "
                + " and ".join(f"{name} is on {place}" for place, name in places.items())
            )

    def _view(self, name: str, array: Any) -> Array:
        try:
            return self.view(array)
        except (BufferError, RuntimeError, TypeError) as error:
            dtype = getattr(array, "dtype", type(array).__name__)
            raise TypeError(
                f"{name}: expected an array of {ACCEPTED} in the memory of a CPU or of a CUDA "
                f"device, got {dtype} on {self.device(array)}: {error}"
            ) from error

    def outside(self, result: Any, like: Any) -> Any:
        """What a public function returned, its arrays as those of this library."""
        if isinstance(result, np.ndarray):
            return self.wrap(result, like)
        if isinstance(result, tuple):
            parts = [self.outside(part, like) for part in result]
            return type(result)._make(parts) if hasattr(result, "_make") else tuple(parts)
        if not hasattr(result, "dtype"):
            return result
        return self.wrap(np.asarray(result) if isinstance(result, np.generic) else result, like)

    def like(self, arguments: dict[str, Any]) -> Any:
        """The array that the result resembles: the first."""
        return next(array for array in arguments.values() if self.recognises(array))

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function` of the views, wrapped."""
        return self.call_on(self.inside(arguments), function, arguments)

    def call_on(self, views: dict[str, Any], function: str, arguments: dict[str, Any]) -> Any:
        """`call`, with the arguments as `inside` gives them."""
        result = getattr(pysoftmax, function)(**views)
        for given in OUTPUTS:
            if (out := arguments.get(given)) is not None:
                break
        else:
            return self.outside(result, self.like(arguments))
        if not isinstance(result, tuple):
            return out
        # Of two, one was written to what was given and the other is new.
        return tuple(out if part is views[given] else self.outside(part, out) for part in result)


def from_dlpack(array: Any, device: int) -> Array:
    """A view of what has ``__dlpack__``, by the number of its device."""
    if device in (CPU, CUDA_HOST):
        return np.from_dlpack(array)
    if device in (CUDA, CUDA_MANAGED):
        return _extras.load("cupy", "cuda13", "an array on a CUDA device").from_dlpack(array)
    raise BufferError(f"pysoftmax reads no memory of device {device} of DLPack")
