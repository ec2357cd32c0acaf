"""``DataArray.pysoftmax``: the functions along an axis as methods with ``dim=``.

Importing this module registers the accessor. The functions themselves take DataArrays without
it, and the name of a dimension as `axis`.

Examples
--------
>>> import xarray as xr
>>> import pysoftmax.xarray
>>> animals = {"animal": ["cat", "dog", "owl"]}
>>> logits = xr.DataArray([[2.1, 0.8, -1.3]], dims=("image", "animal"), coords=animals)
>>> p = logits.pysoftmax.softmax(dim="animal")
>>> float(p.sel(animal="dog").round(4)[0])
0.2087
>>> logits.pysoftmax.logsumexp(dim="animal").dims
('image',)
"""

from collections.abc import Hashable
from typing import Any

import pysoftmax
from pysoftmax import _extras

Dims = Hashable | tuple[Hashable, ...]


class Methods:
    """The functions along an axis, of one DataArray.

    `dim` is the name of a dimension, or several; None or ``...`` is all of them. The other
    arguments are those of the functions.
    """

    def __init__(self, array: Any) -> None:
        self._array = array

    def softmax(self, dim: Dims, **options: Any) -> Any:
        """`pysoftmax.softmax` along `dim`."""
        return pysoftmax.softmax(self._array, _axis(dim), **options)

    def log_softmax(self, dim: Dims, **options: Any) -> Any:
        """`pysoftmax.log_softmax` along `dim`."""
        return pysoftmax.log_softmax(self._array, _axis(dim), **options)

    def logsumexp(self, dim: Dims, **options: Any) -> Any:
        """`pysoftmax.logsumexp` over `dim`."""
        return pysoftmax.logsumexp(self._array, _axis(dim), **options)

    def cross_entropy(self, target: Any, dim: Hashable, **options: Any) -> Any:
        """`pysoftmax.cross_entropy` of these logits with the classes along `dim`."""
        return pysoftmax.cross_entropy(self._array, target, _axis(dim), **options)

    def cross_entropy_with_grad(self, target: Any, dim: Hashable, **options: Any) -> Any:
        """`pysoftmax.cross_entropy_with_grad` of these logits with the classes along `dim`."""
        return pysoftmax.cross_entropy_with_grad(self._array, target, _axis(dim), **options)


def _axis(dim: Any) -> Any:
    return None if dim is ... else dim


_extras.load("xarray", "xarray", "DataArray.pysoftmax").register_dataarray_accessor("pysoftmax")(
    Methods
)
