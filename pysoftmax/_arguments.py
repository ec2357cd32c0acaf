"""What the public functions check before anything is computed or written."""

import operator
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from pysoftmax.backends import Array, Backend

ACCEPTED = "float16, bfloat16, float32, float64, integers and bool"
HALVES = ("float16", "bfloat16")
REALS = ("float32", "float64")
WITHOUT_WHERE = "fill it with what they are to mean"


def result_dtype(dtype: Any) -> np.dtype[Any]:
    """The float dtype of a result, from the input's dtype.

    Integers and bool are promoted: float32 holds all of 8 and 16 bits, float64 the others.
    """
    given: np.dtype[Any] = np.dtype(dtype)
    if given.char in "fd" or given.name in HALVES:  # a dtype's name takes a microsecond
        return given.newbyteorder("=")
    if given.kind in "biu":
        return np.dtype(np.float32 if given.itemsize <= 2 else np.float64)
    raise TypeError(f"expected an array of {ACCEPTED}, got {given}")


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether factors may have this dtype: any real number's."""
    return dtype.kind in "biuf" or dtype.name in HALVES


def choose_dtype(array: Array, dtype: Any) -> np.dtype[Any]:
    """The float dtype of a result: the `dtype` argument's, or what the array's becomes."""
    natural = result_dtype(array.dtype)
    if dtype is None:
        return natural
    wanted: np.dtype[Any] = np.dtype(dtype)
    if wanted.name not in HALVES and wanted.name not in REALS:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {wanted.name}")
    return wanted.newbyteorder("=")


def summing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What results of `dtype` are added in before they are rounded: no half precision."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def normalize_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis` as distinct non-negative ints in ascending order; None is all of them."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    # A 0-d array is one class, so that its only axis may be called -1 or 0.
    size = max(ndim, 1)
    axes = []
    for one in given:
        try:
            index = operator.index(one)
        except TypeError:
            raise TypeError(f"axis must be an int, a tuple of ints or None, got {axis!r}") from None
        if not -size <= index < size:
            raise AxisError(index, ndim)
        axes.append(index % size)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis names a dimension twice: {axis}")
    return tuple(sorted(axes)) if ndim else ()


def normalize_axis(axis: Any, ndim: int) -> int:
    """A single axis as a non-negative int."""
    if axis is None or isinstance(axis, tuple):
        raise TypeError(f"axis must be one int here, got {axis!r}")
    if ndim == 0:
        raise ValueError("expected at least one dimension (the classes), got a 0-d array")
    return normalize_axes(axis, ndim)[0]


def reduced_shape(
    shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool = False
) -> tuple[int, ...]:
    """Shape after a reduction over `axes`."""
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def check_real(name: str, value: Any, lowest: float, highest: float) -> float:
    """A number in [lowest, highest] as a float."""
    number = np.asarray(value)
    if number.ndim or not is_real(number.dtype):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not lowest <= number <= highest:
        raise ValueError(f"{name} must be in [{lowest:g}, {highest:g}], got {value}")
    return float(number)


def check_temperature(
    backend: Backend, temperature: Any, rows: tuple[int, ...], gradient: bool = False
) -> Any:
    """A float, or an array of float64 with one temperature per row."""
    if type(temperature) is float and temperature > 0:
        return temperature
    # A number is looked at here, not on a device.
    scalar = isinstance(temperature, bool | int | float | np.generic)
    instead = "give every row a temperature"
    values = np.asarray(temperature)
    if not scalar:
        values = unmasked(backend, "temperature", temperature, instead)
    if not is_real(values.dtype):
        raise TypeError(f"temperature must be a real number or array, got {temperature!r}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float64) + 0.0  # no -0, whose reciprocal is -inf
    if not (values >= 0).all():
        worst = values[~(values >= 0)].ravel()[0]
        raise ValueError(f"temperature must be >= 0 and not NaN, got {worst}")
    if gradient and not (values > 0).all():
        raise ValueError("temperature must be > 0 for a gradient, got 0")
    if values.ndim == 0:
        return float(values)
    xp = backend.namespace
    try:
        return xp.ascontiguousarray(xp.broadcast_to(values, rows))
    except ValueError:
        raise ValueError(
            f"temperature must broadcast against the shape of the rows {rows}, "
            f"got shape {values.shape}"
        ) from None


def unmasked(backend: Backend, name: str, values: Any, instead: str) -> Array:
    """`values` as an array, or ValueError if some are masked: what to do instead."""
    mask = backend.mask_of(values)
    if mask is not None and not mask.all():
        raise ValueError(f"{name} has masked entries; {instead}")
    return backend.as_array(values)


def filled(backend: Backend, x: Any, value: float) -> Array:
    """`x` as an array, with `value` where it is masked."""
    own, array = backend.mask_of(x), backend.as_array(x)
    if own is not None and not own.all():
        array = array.astype(result_dtype(array.dtype))
        array[~own] = value
    return array


def check_where(
    where: Any, shape: tuple[int, ...], backend: Backend, own: Array | None = None
) -> Array | None:
    """A bool array of the input's shape, or None; `own` is what the input's own mask leaves."""
    if own is not None:
        own = backend.namespace.broadcast_to(own, shape)
    if where is None:
        return own
    mask = unmasked(backend, "where", where, WITHOUT_WHERE)
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be bool, got {mask.dtype.name}")
    try:
        mask = backend.namespace.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"where must broadcast to the input's shape {shape}, got shape {mask.shape}"
        ) from None
    return mask if own is None else own & mask


def output(
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    backend: Backend,
    like: Array,
    name: str = "out",
) -> Array:
    """`out` as an array proper if it fits; without one, a new array on the device of `like`."""
    if out is None:
        return backend.empty(shape, dtype, like)
    if not backend.can_be_written(out):
        raise TypeError(f"{name} must be an array of {backend.library}, got {type(out).__name__}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"{name} must have dtype {dtype.name}, got {out.dtype.name}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if not getattr(getattr(out, "flags", None), "writeable", True):
        raise ValueError(f"{name} is read-only")
    return backend.as_array(out)  # a matrix would keep its two dimensions
