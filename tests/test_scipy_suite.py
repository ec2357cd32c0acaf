"""SciPy's own tests of softmax, log_softmax and logsumexp, pointed at this library."""

import pytest
from cases import python

pytest.importorskip("scipy", reason="SciPy's test suite comes with SciPy")

# SciPy's functions reduce over all axes by default. Complex numbers are refused here on
# purpose, and its tests of them, and of its private helper for angles, are left out.
SCRIPT = r"""
import sys
import pytest
import scipy
import scipy.special.tests.test_logsumexp as suite
import pysoftmax

COMPLEX = ("complex", "imaginary", "j]", "j)", "j-", "wrap_radians")


class OnlyRealNumPy:
    def pytest_collection_modifyitems(self, items):
        items[:] = [
            item for item in items
            if not any(word in item.nodeid.split("::")[-1] for word in COMPLEX)
        ]


suite.logsumexp = lambda a, axis=None, **options: pysoftmax.logsumexp(a, axis, **options)
suite.softmax = lambda x, axis=None: pysoftmax.softmax(x, axis)
suite.log_softmax = lambda x, axis=None: pysoftmax.log_softmax(x, axis)
options = ["-q", "-p", "no:cacheprovider", "-c", sys.argv[1], "--confcutdir", scipy.__path__[0]]
sys.exit(pytest.main([*options, suite.__file__], plugins=[OnlyRealNumPy()]))
"""


def test_scipy_finds_nothing_wrong(tmp_path):
    settings = tmp_path / "pytest.ini"
    settings.write_text("[pytest]\n")
    output = python("-c", SCRIPT, settings)
    assert " passed" in output
    assert "failed" not in output
