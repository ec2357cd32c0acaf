"""Which backend an array belongs to, by its type alone."""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from pysoftmax.backends import Backend
from pysoftmax.backends import numpy as numpy_backend

if TYPE_CHECKING:
    import importlib.metadata

# name -> (module, extra of pysoftmax that installs its library)
BUILT_IN = {"numpy": ("pysoftmax.backends.numpy", "")}

ENTRY_POINTS = "pysoftmax.backends"


@cache
def third_party() -> "dict[str, importlib.metadata.EntryPoint]":
    """Backends that other distributions offer."""
    # Here, because it takes as long to import as all of this package.
    import importlib.metadata

    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}


@cache
def load(name: str) -> Backend:
    """Import a backend by name."""
    backend: Backend = (
        importlib.import_module(BUILT_IN[name][0])
        if name in BUILT_IN
        else third_party()[name].load()
    )
    return backend


def names() -> list[str]:
    """All backends, built in and third-party."""
    return [*BUILT_IN, *(name for name in third_party() if name not in BUILT_IN)]


def find(array: Any) -> Backend | None:
    """The backend that recognises `array`, or None."""
    for name in names():
        backend = load(name)
        if backend.recognises(array):
            return backend
    return None


def describe(array: Any) -> str:
    """An array's type as an error message names it."""
    return f"{type(array).__module__}.{type(array).__qualname__}"


def backend_of(**arrays: Any) -> Backend:
    """The one backend of all arguments that are not None.

    Raises
    ------
    TypeError
        If a type is unknown, or if the arguments come from different libraries.
    """
    found: dict[str, tuple[Backend, str]] = {}
    for argument, array in arrays.items():
        if array is None:
            continue
        backend: Backend | None = numpy_backend if numpy_backend.recognises(array) else find(array)
        if backend is None:
            others = "".join(
                f", {name} ({how_to_install(name)})" for name in names() if name != "numpy"
            )
            raise TypeError(
                f"{argument}: no backend for {describe(array)}; expected a list, a number, or "
                f"an array of numpy{others}"
            )
        found.setdefault(backend.name, (backend, f"{argument} is {describe(array)}"))
    if len(found) > 1:
        raise TypeError(
            "all arrays of a call must come from one library, but "
            + " and ".join(where for _, where in found.values())
        )
    return next(iter(found.values()))[0]


def how_to_install(name: str) -> str:
    """The command that brings a backend's library."""
    if name in BUILT_IN and BUILT_IN[name][1]:
        return f"pip install 'pysoftmax[{BUILT_IN[name][1]}]'"
    return f"pip install {load(name).library}"
