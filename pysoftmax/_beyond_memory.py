"""Arrays of Dask and xarray in the toolkit: the one place that says what becomes of them.

Dask, results that are few whatever the rows (scores, curves, fits, reports, a monitor's counts)
    One chunk of rows is computed after the other (`_rows.chunks`), with all of its classes, and
    no more is kept of it than one number per row. Labels and weights are computed at once. The
    result is in memory. A fit reads the logits once for each of its iterations.
Dask, a result for each row (`decide`, `top_k`, `logit_adjust`, `sample`)
    Lazy, a task for each chunk of rows. What the arrays hold is checked when it is computed. Rows
    that are cut between classes are joined first.
xarray
    `axis` may be the name of a dimension. The arrays of a call are aligned by the names of their
    dimensions. A result for each row has its coordinates, others have no labels. What is inside
    goes to the public function, be it NumPy's or Dask's.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import pysoftmax
from pysoftmax import _arguments as check
from pysoftmax.adapters.xarray import aligned
from pysoftmax.backends import Array

# ------------------------------------------------------------------------------------- xarray


def unlabelled(arguments: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """The arguments with what is inside their DataArrays, and the one whose rows these are.

    That is the first of `names` that is given. The others are brought into the order of its
    dimensions.
    """
    main = next(name for name in names if arguments.get(name) is not None)
    arrays = aligned(arguments, main)
    like = arrays[main]
    inside = {**arguments, main: like.data}
    axis = arguments.get("axis", -1)
    if not hasattr(axis, "__index__"):
        axis = inside["axis"] = like.get_axis_num(axis)
    classes = like.dims[check.normalize_axis(axis, like.ndim)]
    for name, array in arrays.items():
        if name != main:
            dims = [dim for dim in like.dims if dim != classes]
            if name == "prior":
                dims = [classes]
            elif name == "where" or classes in array.dims:
                dims = [*like.dims]
            inside[name] = array.variable.set_dims({dim: like.sizes[dim] for dim in dims}).data
    return inside, like


def labelled(values: Array, like: Any, classes: Any, n_draws: int) -> Any:
    """A result for each row of `like`, with its coordinates.

    The dimension `classes` is gone or, if it has another length, has no coordinates; axes of
    draws are first.
    """
    dims = [*like.dims]
    if values.ndim - n_draws < len(dims):
        dims.remove(classes)
    kept = {
        dim for dim, n in zip(dims, values.shape[n_draws:], strict=True) if n == like.sizes[dim]
    }
    coords = {name: each for name, each in like.coords.items() if kept.issuperset(each.dims)}
    draws = ["draw"] if n_draws == 1 else [f"draw_{k}" for k in range(n_draws)]
    xarray = sys.modules["xarray"]
    return xarray.DataArray(values, coords, [*draws, *dims], name=like.name)


def call_on_labelled(
    function: Callable[..., Any], names: tuple[str, ...], arguments: dict[str, Any]
) -> Any:
    """A public function of the toolkit, of DataArrays."""
    inside, like = unlabelled(arguments, names)
    result = getattr(pysoftmax, function.__name__)(**inside)
    if function.__name__ in PER_ROW:
        classes = like.dims[inside.get("axis", -1)]
        size = arguments.get("size")
        draws = 0 if size is None else len(size) if isinstance(size, tuple) else 1
        label = partial(labelled, like=like, classes=classes, n_draws=draws)
        if isinstance(result, tuple):
            return type(result)(*map(label, result))
        return label(result)
    if hasattr(result, "axis") and inside.get("axis") != arguments.get("axis"):
        return dataclasses.replace(result, axis=arguments["axis"])
    return result


# --------------------------------------------------------------------------------------- Dask


def call_on_lazy(
    function: Callable[..., Any], names: tuple[str, ...], arguments: dict[str, Any]
) -> Any:
    """A public function of the toolkit, of Dask arrays."""
    name = function.__name__
    if name == "class_weight":
        # Few numbers, which the losses of Dask arrays take.
        from pysoftmax.adapters import _dask_graphs as graphs

        labels = arguments["labels"]
        return graphs._lazy(function(**{**arguments, "labels": labels.compute()}), labels)
    return _per_row(function, **arguments) if name in PER_ROW else function(**arguments)


def _per_row(function: Callable[..., Any], **arguments: Any) -> Any:
    """A result for each row, in a task for each chunk of rows."""
    # Here, because that module imports dask.
    from pysoftmax.adapters import _dask_graphs as graphs

    name, main = function.__name__, next(iter(arguments))
    others = {key: arguments.pop(key) for key in ("where", "temperature") if key in arguments}
    x = arguments.pop(main)
    x = graphs._lazy(x, graphs._main(x, *others.values(), arguments.get("prior")))
    axis = check.normalize_axis(arguments.pop("axis", -1), x.ndim)
    if np.isnan(x.shape[axis]):
        raise ValueError(f"{main} must have a known number of classes: {graphs.UNKNOWN}")
    x = x.rechunk({axis: -1})
    if graphs._has_masks(x):
        if name == "sample":
            x, others["where"], _ = graphs._apart(x, others.get("where"))
        else:
            x = graphs._unmasked(main, x, PER_ROW[name])
    if hasattr(arguments.get("prior"), "compute"):
        arguments["prior"] = arguments["prior"].compute()
    every = tuple(range(x.ndim))
    rows = graphs._rows(x, (axis,))
    # No rows at all: what is wrong with the other arguments is said at once.
    nothing = np.empty((0, *graphs._stand_in(x).shape), x.dtype)
    pattern = function(nothing, **arguments, axis=axis + 1)
    operands: list[graphs.Operand] = [(x, every)]
    task = partial(_block, name=name, axis=axis, arguments=arguments)
    index, layout = rows, {}
    if name == "sample":
        # What is drawn does not change from one computation to the next.
        seeds = np.random.default_rng(arguments.pop("rng", None)).integers(
            2**63, size=[x.numblocks[axis] for axis in rows]
        )
        operands += [
            graphs._mask(others.get("where"), x),
            graphs._temperature(others.get("temperature", 1.0), x, (axis,)),
            (graphs.da.from_array(seeds, chunks=1), rows),
        ]
        draws = pattern.shape[: pattern.ndim - 1 - len(rows)]
        index = (*range(x.ndim, x.ndim + len(draws)), *rows)
        layout["new_axes"] = dict(zip(index, draws, strict=False))
    elif name != "decide":
        index = every
    if isinstance(pattern, tuple):
        layout["adjust_chunks"] = {axis: pattern[0].shape[axis + 1]}
        both = graphs._blockwise(task, name, index, x, x.dtype, *operands, **layout)
        return type(pattern)(
            *(
                graphs._blockwise(
                    partial(graphs._item, place=place), name, index, x, each.dtype, (both, index)
                )
                for place, each in enumerate(pattern)
            )
        )
    return graphs._blockwise(task, name, index, x, pattern.dtype, *operands, **layout)


def _block(
    x: Array,
    where: Any = None,
    temperature: Any = None,
    seed: Any = None,
    *,
    name: str,
    axis: int,
    arguments: dict[str, Any],
) -> Any:
    """The task: a public function of one block."""
    if seed is not None:
        arguments = {**arguments, "where": where, "temperature": temperature, "rng": seed.item()}
    return getattr(pysoftmax, name)(x, **arguments, axis=axis)


# Functions with a result for each row, and what to do where entries are masked.
PER_ROW = {
    "decide": "give a class that takes no part probability 0",
    "top_k": "fill them first, for instance with -inf",
    "logit_adjust": "fill them first",
    "sample": "",
}
