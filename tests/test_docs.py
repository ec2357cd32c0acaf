"""The examples in docstrings and documents run, and the documents name what there is."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest
from cases import TESTS

import pysoftmax as ps

ROOT = pathlib.Path(TESTS).parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = ps.get_num_threads()
    yield
    ps.set_num_threads(before)


def run(test, names):
    """Run the examples with these names; a failure shows doctest's own report."""
    report = []
    test.globs = names
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    assert runner.run(test, out=report.append, clear_globs=False).failed == 0, "".join(report)


def _modules():
    yield "pysoftmax"
    for found in pkgutil.walk_packages(ps.__path__, "pysoftmax."):
        if not re.search(r"__main__|_kernels_|_cpu$", found.name):
            yield found.name


@pytest.mark.parametrize("name", list(_modules()))
def test_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ImportError as missing:
        if (missing.name or "pysoftmax").startswith("pysoftmax"):
            raise
        pytest.skip(f"{missing.name} is not installed")
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        run(test, test.globs)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_examples_in_documents(path):
    """The blocks of a document are one session."""
    text = path.read_text()
    for library in re.findall(r"(?m)^>>> import (\w+)", text):
        pytest.importorskip(library)
    names = {}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        run(doctest.DocTestParser().get_doctest(block[1], {}, path.name, str(path), line), names)


def test_the_readme_shows_an_example():
    assert ">>> " in (ROOT / "README.md").read_text()


def test_the_readme_names_every_public_function():
    text = (ROOT / "README.md").read_text()
    missing = [n for n in ps.__all__ if callable(getattr(ps, n)) and f"`{n}" not in text]
    assert not missing, f"README.md, Functions: add {', '.join(missing)}"


def test_the_reference_has_every_public_name():
    listed = re.findall(r"(?m)^   ([\w.]+)$", (ROOT / "docs/reference.rst").read_text())
    public = [n for n in ps.__all__ if callable(getattr(ps, n))]
    public += [f"testing.{n}" for n in ps.testing.__all__]
    assert not (missing := set(public) - {*listed}), f"docs/reference.rst: add {missing}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    links = LINK.findall(CODE.sub("", path.read_text()))
    dead = [link for link in links if not (path.parent / link).exists()]
    assert not dead, f"{path.name}: no such file: {', '.join(dead)}"
