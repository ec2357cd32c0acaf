"""Dask arrays: lazy in, lazy out, whatever the chunks."""

import sys
from typing import Any

from pysoftmax.adapters import Adapter


class Dask(Adapter):
    """Builds a graph whose tasks call the public functions, or what is below them, on blocks."""

    name = library = "dask"

    def recognises(self, array: Any) -> bool:
        """Whether `array` is a dask.array; one can exist only where that has been imported."""
        module = sys.modules.get("dask.array")
        return module is not None and isinstance(array, module.Array)

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """The graph of a public call: lazy arrays with the chunks of the input."""
        # Here, because that module imports dask.
        from pysoftmax.adapters import _dask_graphs

        for name in ("out", "grad_out"):
            if arguments.pop(name, None) is not None:
                raise TypeError(
                    f"{name}: a lazy array cannot be written to; leave it out and use the result"
                )
        return getattr(_dask_graphs, function)(**arguments)


adapter = Dask()
