"""The package in examples/ that brings its own arrays: installed as a user would, and run."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from cases import TESTS, python

EXAMPLE = pathlib.Path(TESTS).parent / "examples" / "pysoftmax-recorded"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where the example is installed; nothing is fetched."""
    pytest.importorskip("setuptools")
    target = tmp_path_factory.mktemp("installed")
    copy = tmp_path_factory.mktemp("source")
    for path in EXAMPLE.rglob("*"):
        if path.suffix in (".py", ".toml", ".md"):
            (copy / path.relative_to(EXAMPLE)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(EXAMPLE)).write_text(path.read_text())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    done = subprocess.run([*pip, *options, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def run(installed):
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    return lambda *arguments: python(*arguments, PYTHONPATH=path)


def test_its_readme_is_true(run, tmp_path):
    example = tmp_path / "example.txt"
    (session,) = re.findall(r"(?ms)^```pycon\n(.*?)^```$", (EXAMPLE / "README.md").read_text())
    example.write_text(session)
    source = f"import doctest; print(doctest.testfile({str(example)!r}, module_relative=False))"
    assert run("-c", source).strip() == "TestResults(failed=0, attempted=5)"


def test_info_lists_it(run):
    facts = json.loads(run("-m", "pysoftmax", "info", "--json"))
    assert facts["backends"]["recorded"] == {
        "available": True,
        "version": "1.0",
        "install": None,
    }
    assert "recorded" in run("-m", "pysoftmax", "info")


def test_every_function_takes_its_arrays_and_gives_the_bits_of_numpy(run):
    source = """
import numpy as np
import pysoftmax as ps
from cases import CALLS
from oracles import assert_same_bytes
from pysoftmax_recorded import Recorded

for name, (arrays, options) in CALLS.items():
    function = getattr(ps, name)
    results = function(**{k: Recorded(a) for k, a in arrays.items()}, **options)
    expected = function(**arrays, **options)
    if not isinstance(results, tuple):
        results, expected = (results,), (expected,)
    for result, wanted in zip(results, expected, strict=True):
        assert type(result) is Recorded and len(result.history) == 1, result
        assert_same_bytes(result.values, wanted, function=name)

x = Recorded(np.zeros((2, 3)))
assert ps.softmax(x, out=x) is x and len(x.history) == 1
try:
    ps.softmax(x, where=np.ones((2, 3), bool))
except TypeError as error:
    print(error)
"""
    assert "x is pysoftmax_recorded.Recorded and where is numpy.ndarray" in run("-c", source)


def test_neither_it_nor_its_adapter_is_imported_for_arrays_of_numpy(run):
    source = """
import sys
import numpy as np
import pysoftmax
pysoftmax.softmax(np.zeros((2, 3)), where=np.ones((2, 3), bool))
print([name for name in sys.modules if name.startswith("pysoftmax_recorded")])
"""
    assert run("-c", source).strip() == "[]"
