"""Adapters: how arrays that no backend computes on are taken in, and handed back as they came.

A backend computes on arrays in memory. An adapter is for libraries whose arrays wrap others:
lazy, labelled, differentiable, or of another library that shares its memory. It is given the
public call as it was made, calls public functions on what it finds inside, and wraps the result.
So adapters are written on the public functions alone, and nothing below knows of them.

Adding an adapter is adding one module whose ``adapter`` is an instance of a subclass of
:class:`Adapter`, and naming it in ``_dispatch.BUILT_IN``; from another distribution, an entry
point of the group ``pysoftmax.backends`` to such an instance.
"""

from abc import ABC, abstractmethod
from typing import Any


class Adapter(ABC):
    """What an adapter provides."""

    name: str
    library: str  # the distribution that brings the arrays
    # Whether its arrays lie in memory that a backend computes on, so that `call` takes every
    # public function and not only those of `Backend`.
    in_memory = False

    @abstractmethod
    def recognises(self, array: Any) -> bool:
        """Whether `array` belongs to this adapter's library, without importing it."""

    @abstractmethod
    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function` of these arguments, all of them by name.

        At least one of its arrays is of this library; the others are too, or are lists and
        numbers. Nothing has been checked yet but that.
        """
