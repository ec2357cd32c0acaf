"""Fixtures: array libraries, dtypes and layouts."""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases

# Pictures need no screen.
os.environ.setdefault("MPLBACKEND", "agg")


@dataclasses.dataclass(frozen=True)
class Backend:
    """An array library under test: a result must be of its type and on its device."""

    name: str
    xp: Any
    array_type: type
    asarray: Callable  # NumPy array -> array of this library
    asnumpy: Callable  # and back


def _numpy():
    return Backend("numpy", np, np.ndarray, np.asarray, np.asarray)


# One entry adds a library to every test that asks for ``backend``. Its function may call
# pytest.importorskip.
BACKENDS = {"numpy": _numpy}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]()


@pytest.fixture(params=cases.FLOATS)
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    if request.param == "float16":
        return np.dtype("float16")
    if cases.BFLOAT16 is None:
        pytest.skip("bfloat16 needs ml_dtypes")
    return cases.BFLOAT16


@pytest.fixture(params=cases.LAYOUTS)
def layout(request):
    """The name of a layout; ``cases.LAYOUTS[layout](a)`` makes the array."""
    return request.param


def pytest_collection_modifyitems(items):
    """No RuntimeWarning escapes from a kernel: everywhere, it is an error."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error::RuntimeWarning"))
