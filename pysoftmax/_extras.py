"""Libraries that some functions need beyond NumPy, imported when one is called."""

import importlib
from typing import Any


def load(module: str, extra: str, purpose: str) -> Any:
    """Import a module of another library, or say which extra of pysoftmax installs it."""
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        raise ImportError(
            f"{purpose} needs {library}: pip install 'pysoftmax[{extra}]'", name=library
        ) from None
