"""Any other array that shares its memory by DLPack, the way of the array API standard."""

from typing import Any

import numpy as np

from pysoftmax.adapters.memory import Memory, from_dlpack
from pysoftmax.backends import Array


class DLPack(Memory):
    """Arrays with ``__dlpack__``; results of their namespace, of NumPy where they have none."""

    name = "dlpack"
    library = "numpy"

    def recognises(self, array: Any) -> bool:
        """Whether `array` shares its memory."""
        return hasattr(type(array), "__dlpack__") and hasattr(type(array), "__dlpack_device__")

    def view(self, array: Any) -> Array:
        """The memory of `array`, read-only if it says so."""
        return from_dlpack(array, int(array.__dlpack_device__()[0]))

    def device(self, array: Any) -> str:
        """The library's own name of the device, or DLPack's number."""
        return str(getattr(array, "device", array.__dlpack_device__()))

    def dtype(self, dtype: Any, like: Any) -> Any:
        """What an array of that dtype holds, if it is none of NumPy's."""
        try:
            return np.dtype(dtype)
        except TypeError:
            if not hasattr(like, "__array_namespace__"):
                raise
            return self.view(like.__array_namespace__().empty(0, dtype=dtype)).dtype

    def wrap(self, result: Array, like: Any) -> Any:
        """`result` by the ``from_dlpack`` of the array's namespace."""
        if not hasattr(like, "__array_namespace__"):
            return result
        return like.__array_namespace__().from_dlpack(result, device=like.device)


adapter = DLPack()
