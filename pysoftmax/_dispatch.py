"""Which backend or adapter an array belongs to, by its type alone."""

import importlib
import inspect
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from pysoftmax.adapters import Adapter
from pysoftmax.backends import Backend
from pysoftmax.backends import numpy as numpy_backend

if TYPE_CHECKING:
    import importlib.metadata

Options = ParamSpec("Options")
Result = TypeVar("Result")

# name -> (module, extra of pysoftmax that installs its library)
BUILT_IN = {
    "numpy": ("pysoftmax.backends.numpy", ""),
    "cupy": ("pysoftmax.backends.cupy", "cuda13"),
    "dask": ("pysoftmax.adapters.dask", "dask"),
    "torch": ("pysoftmax.adapters.torch", "torch"),
    "jax": ("pysoftmax.adapters.jax", "jax"),
    "xarray": ("pysoftmax.adapters.xarray", "xarray"),
    "dlpack": ("pysoftmax.adapters.dlpack", ""),
}

# Takes what only shares its memory, and so comes after all others.
LAST = "dlpack"

ENTRY_POINTS = "pysoftmax.backends"


@cache
def third_party() -> "dict[str, importlib.metadata.EntryPoint]":
    """Backends that other distributions offer."""
    # Here, because it takes as long to import as all of this package.
    import importlib.metadata

    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}


# Array type -> what recognised the first array of it.
FOUND: dict[type, Backend | Adapter] = {}


def by_short_way(name: str, x: Any, axis: Any, temperature: float, out: Any) -> Any:
    """What softmax, log_softmax or logsumexp gives by the `short_way` of its library, or None.

    There what asks for nothing but the usual goes before anything is checked, if the type of x is
    known already and its backend or adapter has one.
    """
    short_way = getattr(FOUND.get(type(x)), "short_way", None)
    return short_way(name, x, axis, temperature, out) if short_way else None


def loss_by_short_way(logits: Any, *arguments: Any) -> tuple[Any, Any] | None:
    """The loss, and if asked for its gradient, by the `short_cross_entropy` of a library, or None.

    As `by_short_way`; for losses with one temperature, a float.
    """
    short_way = getattr(FOUND.get(type(logits)), "short_cross_entropy", None)
    return short_way(logits, *arguments) if short_way else None


@cache
def load(name: str) -> Backend | Adapter:
    """Import a backend or an adapter by name."""
    if name not in BUILT_IN:
        found: Backend | Adapter = third_party()[name].load()
        return found
    module = importlib.import_module(BUILT_IN[name][0])
    return getattr(module, "adapter", module)


def names() -> list[str]:
    """All backends and adapters, built in and third-party, in the order they are asked."""
    return sorted({**BUILT_IN, **third_party()}, key=LAST.__eq__)


def find(array: Any) -> Backend | Adapter | None:
    """The backend or adapter that recognises arrays of the type of `array`, or None."""
    found = FOUND.get(type(array))
    if found is None:
        found = _ask(array)
        if found is not None:
            FOUND[type(array)] = found
    return found


def _ask(array: Any) -> Backend | Adapter | None:
    if numpy_backend.recognises(array):
        return numpy_backend
    for name in names():
        found = load(name)
        if found.recognises(array):
            return found
    return None


def describe(array: Any) -> str:
    """An array's type as an error message names it."""
    return f"{type(array).__module__}.{type(array).__qualname__}"


# What belongs to no library, so that it goes with arrays of any.
NEUTRAL = (list, tuple, bool, int, float, complex, np.generic)


def library_of(**arrays: Any) -> Backend | Adapter:
    """The one backend or adapter of all arguments; None, lists and numbers go with any.

    Raises
    ------
    TypeError
        If a type is unknown, or if the arguments come from different libraries.
    """
    found: dict[str, tuple[Backend | Adapter, str]] = {}
    for argument, array in arrays.items():
        if array is None or isinstance(array, NEUTRAL):
            continue
        library = find(array)
        if library is None:
            others = "".join(
                f", {name} ({how_to_install(name)})"
                for name in names()
                if name not in ("numpy", LAST)
            )
            raise TypeError(
                f"{argument}: no backend for {describe(array)}; expected a list, a number, an "
                f"array of numpy{others}, or one that has __dlpack__"
            )
        found.setdefault(library.name, (library, f"{argument} is {describe(array)}"))
    if len(found) > 1:
        raise TypeError(
            "all arrays of a call must come from one library, but "
            + " and ".join(where for _, where in found.values())
        )
    return next(iter(found.values()))[0] if found else numpy_backend


def memory_of(**arrays: Any) -> Any:
    """The adapter of all arguments if it is one for arrays in memory, which has views; or None."""
    library = library_of(**arrays)
    return library if isinstance(library, Adapter) and library.in_memory else None


# Functions of the toolkit, which need the numbers in their arguments: of_any_library.
IMMEDIATE: set[str] = set()


def of_any_library(
    *names: str,
) -> Callable[[Callable[Options, Result]], Callable[Options, Result]]:
    """Let a public function of the toolkit, written for a backend's arrays, take those of others.

    `names` are its arguments that may be arrays, first that whose rows they are. What comes back
    is of the library of what lies in memory; what becomes of lazy and labelled arrays:
    `_beyond_memory`.
    """

    def decorate(function: Callable[Options, Result]) -> Callable[Options, Result]:
        signature = inspect.signature(function)
        IMMEDIATE.add(function.__name__)

        @wraps(function)
        def call(*args: Options.args, **options: Options.kwargs) -> Result:
            given = signature.bind(*args, **options).arguments
            library = library_of(**{name: given.get(name) for name in names})
            result: Result
            if not isinstance(library, Adapter):
                result = function(*args, **options)
            elif library.in_memory:
                result = library.call(function.__name__, given)
            elif library.name == "xarray":
                result = beyond_memory().call_on_labelled(function, names, given)
            elif library.name == "dask":
                result = beyond_memory().call_on_lazy(function, names, given)
            else:
                result = function(*args, **options)  # which refuses it
            return result

        return call

    return decorate


def beyond_memory() -> Any:
    """The module for lazy and labelled arrays, which whoever has none does not import."""
    return importlib.import_module("pysoftmax._beyond_memory")


def backend_of(**arrays: Any) -> Backend:
    """As `library_of`, for functions that take no arrays by way of an adapter."""
    library = library_of(**arrays)
    if isinstance(library, Adapter):
        given = next(name for name, array in arrays.items() if library.recognises(array))
        raise TypeError(
            f"{given}: expected an array that is computed on as it is, got "
            f"{describe(arrays[given])}: convert it to an array of NumPy first"
        )
    return library


def how_to_install(name: str) -> str:
    """The command that brings a backend's library."""
    if name in BUILT_IN and BUILT_IN[name][1]:
        return f"pip install 'pysoftmax[{BUILT_IN[name][1]}]'"
    return f"pip install {load(name).library}"
