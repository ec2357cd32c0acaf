"""The backend is picked from the array's type; other distributions can bring one."""

import types

import numpy as np
import pytest

import pysoftmax as ps
from pysoftmax import _dispatch
from pysoftmax.backends import numpy as numpy_backend


class Boxed:
    """An array of another library: it holds a NumPy array and is none."""

    def __init__(self, values):
        self.values = values


@pytest.fixture
def boxes(monkeypatch):
    """A third-party backend for Boxed, as an entry point would bring it."""
    backend = types.ModuleType("boxes")
    backend.__dict__.update({k: v for k, v in vars(numpy_backend).items() if k[0] != "_"})
    backend.name, backend.library = "boxes", "boxes"
    backend.recognises = lambda array: isinstance(array, Boxed)
    backend.as_array = lambda x: x.values if isinstance(x, Boxed) else np.asarray(x)
    backend.wrap = lambda result, like: Boxed(result)
    entry = types.SimpleNamespace(name="boxes", load=lambda: backend)
    monkeypatch.setattr(_dispatch, "third_party", lambda: {"boxes": entry})
    _dispatch.load.cache_clear()
    yield backend
    _dispatch.load.cache_clear()


def test_a_registered_backend_gets_its_arrays_and_wraps_the_result(boxes):
    x = np.array([[1.0, 2.0, 3.0]])
    result = ps.softmax(Boxed(x))
    assert isinstance(result, Boxed)
    assert (result.values == ps.softmax(x)).all()


def test_a_registered_backend_is_listed(boxes):
    assert ps.info()["backends"]["boxes"] == {
        "available": False,
        "version": None,
        "install": "pip install boxes",
    }


def test_arrays_of_two_libraries_do_not_mix(boxes):
    with pytest.raises(TypeError, match=r"(?s)logits is .*Boxed.*target is numpy"):
        ps.cross_entropy(Boxed(np.zeros((2, 3))), np.zeros(2, int))


def test_numpy_arrays_never_ask_for_other_backends(monkeypatch):
    def fail(name):
        raise AssertionError(f"asked for backend {name}")

    monkeypatch.setattr(_dispatch, "load", fail)
    x = np.zeros((2, 3))
    ps.softmax(x)
    ps.softmax(x, temperature=2)
    ps.cross_entropy(x, [0, 1])
