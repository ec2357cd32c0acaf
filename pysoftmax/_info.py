"""Version, and what this installation can do."""

import contextlib
import platform
from typing import Any

import numpy as np

from pysoftmax import _dispatch
from pysoftmax.backends.numpy import cpu, target

__version__ = "0.1.0"


def info() -> dict[str, Any]:
    """Describe this installation: versions, CPU targets, threads, backends.

    Returns
    -------
    dict
        Plain values that go into JSON. ``cpu`` holds the instruction-set `target` in use,
        the ones `available` on this machine and those `built`, best first.

    Examples
    --------
    >>> import pysoftmax
    >>> pysoftmax.info()["cpu"]["target"] in pysoftmax.info()["cpu"]["available"]
    True
    """
    return {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu": {
            "target": target,
            "available": cpu.available_targets(),
            "built": cpu.built_targets(),
        },
        "threads": cpu.get_num_threads(),
        "openmp": cpu.has_openmp(),
        "backends": {name: _describe(name) for name in _dispatch.names()},
    }


def _describe(name: str) -> dict[str, Any]:
    """Whether a backend's library is installed, which version, and how to install it."""
    import importlib.metadata

    found = _dispatch.load(name)
    version = None
    for library in getattr(found, "distributions", (found.library,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(library)
            break
    return {
        "available": version is not None,
        "version": version,
        "install": None if version else _dispatch.how_to_install(name),
    }
