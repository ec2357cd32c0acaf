"""xarray's DataArrays: dimensions by name, and labels kept."""

import sys
from collections.abc import Hashable
from typing import Any

import pysoftmax
from pysoftmax import _arguments as check
from pysoftmax.adapters import Adapter

# The array whose labels the result has, whatever a function calls it.
LABELLED = ("x", "logits", "probabilities", "log_probabilities")


def is_labelled(array: Any) -> bool:
    """Whether `array` is a DataArray; xarray is imported if there is one."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(array, xarray.DataArray)


def aligned(arguments: dict[str, Any], main: str) -> dict[str, Any]:
    """The DataArrays among the arguments, of which `main` must be one, aligned."""
    given = {name: array for name, array in arguments.items() if is_labelled(array)}
    if main not in given:
        raise TypeError(
            f"{main} must be a DataArray if {next(iter(given))} is one, "
            f"got {type(arguments[main]).__name__}"
        )
    arrays = sys.modules["xarray"].align(*given.values(), join="exact", copy=False)
    return dict(zip(given, arrays, strict=True))


class XArray(Adapter):
    """What is inside a DataArray, be it NumPy's or Dask's, goes to the public functions.

    `axis` may be the name of a dimension, or a tuple of names. Arrays of a call are aligned by
    their dimensions' names and must have equal coordinates.
    """

    name = library = "xarray"

    def recognises(self, array: Any) -> bool:
        """Whether `array` is a DataArray; xarray is imported if there is one."""
        return is_labelled(array)

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function` of what is inside, labelled."""
        xarray = sys.modules["xarray"]
        main = next(name for name in LABELLED if name in arguments)
        arrays = aligned(arguments, main)
        if "b" in arrays:  # the factors of logsumexp may have more dimensions
            arrays[main], arrays["b"] = xarray.broadcast(arrays[main], arrays["b"])
        like = arrays[main]
        inside = {name: a.data for name, a in arrays.items()}
        reduced = like.dims
        if "axis" in arguments:
            inside["axis"] = positions = _positions(like, arguments["axis"])
            reduced = [like.dims[i] for i in check.normalize_axes(positions, like.ndim)]
        for name, array in arrays.items():
            if name != main:
                dims = _dims(function, name, array, like, reduced)
                inside[name] = array.variable.set_dims({d: like.sizes[d] for d in dims}).data
        result = getattr(pysoftmax, function)(**{**arguments, **inside})

        gone: Any = ()
        if function == "logsumexp":
            gone = reduced
        elif "reduction" in arguments:
            each = reduced if function.startswith("cross_entropy") else ()
            gone = each if arguments["reduction"] == "none" else like.dims
        kept = arguments.get("keepdims", False)

        def labelled(values: Any, dims: Any) -> Any:
            if "out" in inside and values is inside["out"]:
                return arguments["out"]
            if "grad_out" in inside and values is inside["grad_out"]:
                return arguments["grad_out"]
            # Both ask for the values of the result: labels and attributes are xarray's business.
            if dims:
                if kept:  # xarray adds these dimensions itself
                    values = values[tuple(0 if d in dims else slice(None) for d in like.dims)]
                return like.reduce(lambda *_, **__: values, dim=dims, keepdims=kept)
            return xarray.apply_ufunc(lambda _: values, like, dask="allowed")

        if not isinstance(result, tuple):
            return labelled(result, gone)
        first, second = result
        return labelled(first, gone), labelled(second, gone if function == "logsumexp" else ())


def _positions(array: Any, axis: Any) -> Any:
    """`axis` with the numbers of the dimensions in place of their names."""
    if isinstance(axis, tuple):
        return tuple(_positions(array, one) for one in axis)
    if axis is None or hasattr(axis, "__index__"):
        return axis
    return array.get_axis_num(axis)


def _dims(function: str, name: str, array: Any, like: Any, reduced: Any) -> list[Hashable]:
    """The dimensions, in order, that an argument is broadcast to."""
    rows = [d for d in like.dims if d not in reduced]
    if name == "temperature":
        return rows
    if function.startswith("cross_entropy"):
        if name == "weight":
            return list(reduced)
        if name == "target" and not set(reduced) & set(array.dims):
            return rows
    return list(like.dims)


adapter = XArray()
