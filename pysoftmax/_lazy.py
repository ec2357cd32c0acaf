"""Public names whose modules are imported when one is first asked for: `__getattr__`, PEP 562.

Importing them with the package would make it slow to import for those who want a softmax only.
"""

import importlib
import sys
from typing import Any

MODULES = (
    "calibration",
    "decisions",
    "monitoring",
    "reliability",
    "sampling",
    "testing",
    "validation",
)


def __getattr__(name: str) -> Any:
    """One of `MODULES`, or a name of `pysoftmax.__all__` that the package does not hold yet."""
    package = sys.modules["pysoftmax"]
    if name in MODULES:
        return importlib.import_module(f"pysoftmax.{name}")
    if name in package.__all__:
        for module in MODULES:
            found = importlib.import_module(f"pysoftmax.{module}")
            if name in found.__all__:
                value = getattr(found, name)
                setattr(package, name, value)
                return value
    raise AttributeError(f"module 'pysoftmax' has no attribute {name!r}", name=name, obj=package)
