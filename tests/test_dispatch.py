"""The backend is picked from the array's type; other distributions can bring one."""

import types

import numpy as np
import pytest
from cases import CALLS

import pysoftmax as ps
from pysoftmax import _dispatch
from pysoftmax.adapters import Adapter
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
    monkeypatch.setattr(_dispatch, "FOUND", {})
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


def test_lists_and_numbers_go_with_arrays_of_any_library(boxes):
    logits = np.array([[1.0, 2.0, 3.0]])
    loss = ps.cross_entropy(Boxed(logits), [2], weight=[1, 2, 3], reduction="sum")
    assert loss == ps.cross_entropy(logits, [2], weight=[1, 2, 3], reduction="sum")


# --- adapters -----------------------------------------------------------------------------------


class Letter:
    """An array of a library that an adapter takes in."""

    def __init__(self, values):
        self.values = values


class Letters(Adapter):
    """Keeps what it was asked, and answers from what is inside the letters."""

    name = library = "letters"

    def __init__(self):
        self.asked = []

    def recognises(self, array):
        return isinstance(array, Letter)

    def call(self, function, arguments):
        self.asked.append(function)
        inside = {k: v.values if isinstance(v, Letter) else v for k, v in arguments.items()}
        return "answer", getattr(ps, function)(**inside)


@pytest.fixture
def letters(monkeypatch):
    adapter = Letters()
    entry = types.SimpleNamespace(name="letters", load=lambda: adapter)
    monkeypatch.setattr(_dispatch, "third_party", lambda: {"letters": entry})
    monkeypatch.setattr(_dispatch, "FOUND", {})
    _dispatch.load.cache_clear()
    yield adapter
    _dispatch.load.cache_clear()


@pytest.mark.parametrize("name", CALLS)
def test_an_adapter_is_given_every_public_call_as_it_was_made(letters, name):
    arrays, options = CALLS[name]
    answer, result = getattr(ps, name)(**{k: Letter(v) for k, v in arrays.items()}, **options)
    assert answer == "answer"
    assert letters.asked == [name]
    np.testing.assert_equal(result, getattr(ps, name)(**arrays, **options))


def test_functions_without_adapters_say_what_to_do(letters):
    with pytest.raises(TypeError, match=r"logits: expected .*got .*Letter: convert it"):
        ps.sample(Letter(np.zeros((2, 3))))


def test_info_finds_cupy_by_whatever_brings_it():
    cupy = pytest.importorskip("cupy", reason="needs cupy-cuda12x or cupy-cuda13x")
    assert ps.info()["backends"]["cupy"] == {
        "available": True,
        "version": cupy.__version__,
        "install": None,
    }
