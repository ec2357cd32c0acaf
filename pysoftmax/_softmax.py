"""softmax, log_softmax, logsumexp and the vector-Jacobian products."""

from typing import Any

import numpy as np

from pysoftmax import _arguments as check
from pysoftmax._dispatch import by_short_way, library_of
from pysoftmax.adapters import Adapter
from pysoftmax.backends import Array, Backend
from pysoftmax.backends.numpy import (
    fast_log_softmax,
    fast_log_softmax_vjp,
    fast_logsumexp,
    fast_softmax,
    fast_softmax_vjp,
)

__all__ = ["log_softmax", "log_softmax_vjp", "logsumexp", "softmax", "softmax_vjp"]

WITHOUT_FACTOR = "give what takes no part the factor 0"


def softmax(
    x: Any,
    axis: int | tuple[int, ...] | None = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    r"""Probabilities from logits: ``exp(x / T) / sum(exp(x / T))``.

    Parameters
    ----------
    x : array_like
        Logits, float16, bfloat16, float32 or float64. Integers and bool are promoted to
        float64 (8 and 16 bits to float32).
    axis : int, tuple of int or None, default -1
        The classes: one axis, several together, or all.
    temperature : float or array_like, default 1.0
        T, one for all or broadcast against the shape of `x` without `axis`. Lower
        sharpens, higher flattens. 0 is the limit: the largest logits share the
        probability; inf is uniform over all logits but -inf.
    where : array_like of bool, optional
        Classes that take part, broadcast to the shape of `x`. The others get 0, and so does
        all of a row of which nothing takes part.
    dtype : dtype, optional
        Of the result; `x` is converted to it first.
    out : ndarray, optional
        Where to write: shape and dtype of the result. May be `x`, or overlap it.

    Returns
    -------
    ndarray
        Shape of `x`, float dtype of `x`. A row that holds NaN or +inf, or only -inf, is NaN.

    Raises
    ------
    TypeError
        For other dtypes, unknown array types and arrays of different libraries.
    ValueError
        For a negative or NaN temperature and for shapes that do not fit.
    numpy.exceptions.AxisError
        If there is no such axis.

    Notes
    -----
    At most 4 ULP from the exact result for rows of up to 2**24 columns. The same bits for
    any number of threads, any memory layout and axis, alone or in a batch, and for every
    CPU target that has fma: ``docs/numerics.md``. float16 and bfloat16 are computed in
    float32 and rounded once.

    Examples
    --------
    >>> import numpy as np
    >>> from pysoftmax import softmax
    >>> softmax([2.1, 0.8, -1.3]).round(4)
    array([0.7658, 0.2087, 0.0256])
    >>> softmax(np.float32([1000, 1001]), temperature=2).round(4)
    array([0.3775, 0.6225], dtype=float32)
    """
    result = fast_softmax(x, axis, temperature, where, dtype, out)
    if result is not None:
        return result
    return _map("softmax", x, axis, temperature, where, dtype, out)


def log_softmax(
    x: Any,
    axis: int | tuple[int, ...] | None = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Logarithm of the softmax, accurate where that rounds to 0 or 1.

    Parameters
    ----------
    x : array_like
        Logits, as for `softmax`.
    axis : int, tuple of int or None, default -1
        The classes: one axis, several together, or all.
    temperature : float or array_like, default 1.0
        As for `softmax`.
    where : array_like of bool, optional
        Classes that take part; the others get -inf.
    dtype : dtype, optional
        Of the result; `x` is converted to it first.
    out : ndarray, optional
        Where to write: shape and dtype of the result. May be `x`, or overlap it.

    Returns
    -------
    ndarray
        Shape of `x`, float dtype of `x`. A row that holds NaN or +inf, or only -inf, is NaN.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Notes
    -----
    Computed as ``(x - max) / T - log1p(R)``, R the sum without one maximum (Blanchard,
    Higham & Higham, IMA J. Numer. Anal. 41, 2021), so that log-probabilities near zero
    keep their relative accuracy.

    Examples
    --------
    >>> import numpy as np
    >>> from pysoftmax import log_softmax
    >>> log_softmax([50.0, 0.0])
    array([-1.92874985e-22, -5.00000000e+01])
    """
    result = fast_log_softmax(x, axis, temperature, where, dtype, out)
    if result is not None:
        return result
    return _map("log_softmax", x, axis, temperature, where, dtype, out)


def logsumexp(
    x: Any,
    axis: int | tuple[int, ...] | None = -1,
    *,
    b: Any = None,
    where: Any = None,
    keepdims: bool = False,
    return_sign: bool = False,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Logarithm of a sum of exponentials: ``log(sum(b * exp(x)))``.

    Parameters
    ----------
    x : array_like
        Exponents, as the logits of `softmax`.
    axis : int, tuple of int or None, default -1
        What is summed over: one axis, several together, or all.
    b : array_like, optional
        Factors, broadcast against `x`. A term with factor 0 takes no part.
    where : array_like of bool, optional
        Elements that take part, broadcast to the shape of `x`.
    keepdims : bool, default False
        Keep the reduced axes with length 1.
    return_sign : bool, default False
        Also return the sign of the sum; else the logarithm of a negative sum is NaN.
    dtype : dtype, optional
        Of the result; `x` is converted to it first.
    out : ndarray, optional
        Where to write: shape and dtype of the result.

    Returns
    -------
    result : ndarray or scalar
        The shape of `x` without `axis`. -inf where nothing takes part, +inf where an
        element is +inf, NaN where one is NaN.
    sign : ndarray or scalar
        Only with `return_sign`: 1, 0 or -1, or NaN as `result`, whose shape and dtype it has.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Examples
    --------
    >>> from pysoftmax import logsumexp
    >>> float(logsumexp([1000.0, 1000.0]).round(4))
    1000.6931
    >>> value, sign = logsumexp([1.0, 2.0], b=[1, -1], return_sign=True)
    >>> float(value.round(4)), float(sign)
    (1.5413, -1.0)
    """
    if b is None and where is None and return_sign is False:
        result = fast_logsumexp(x, axis, keepdims, dtype, out)
        if result is not None:
            return result
    return _logsumexp(x, axis, b, where, keepdims, return_sign, dtype, out)


def softmax_vjp(
    grad_output: Any,
    probabilities: Any,
    axis: int | tuple[int, ...] | None = -1,
    *,
    temperature: Any = 1.0,
    out: Any = None,
) -> Any:
    """Gradient through `softmax`: ``p * (g - sum(g * p)) / T``.

    Parameters
    ----------
    grad_output : array_like
        g, the gradient with respect to the probabilities.
    probabilities : array_like
        p, what `softmax` returned, of the same shape.
    axis : int, tuple of int or None, default -1
        As it was given to `softmax`.
    temperature : float or array_like, default 1.0
        As it was given to `softmax`, but greater than 0.
    out : ndarray, optional
        Where to write; may be either input.

    Returns
    -------
    ndarray
        The gradient with respect to the logits, shape and dtype of `probabilities`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Examples
    --------
    >>> from pysoftmax import softmax, softmax_vjp
    >>> p = softmax([1.0, 2.0, 3.0])
    >>> softmax_vjp([0.0, 0.0, 1.0], p).round(4)
    array([-0.0599, -0.1628,  0.2227])
    """
    result = fast_softmax_vjp(grad_output, probabilities, axis, temperature, out)
    if result is not None:
        return result
    return _vjp("softmax_vjp", grad_output, probabilities, axis, temperature, out)


def log_softmax_vjp(
    grad_output: Any,
    log_probabilities: Any,
    axis: int | tuple[int, ...] | None = -1,
    *,
    temperature: Any = 1.0,
    out: Any = None,
) -> Any:
    """Gradient through `log_softmax`: ``(g - exp(log_p) * sum(g)) / T``.

    Parameters
    ----------
    grad_output : array_like
        g, the gradient with respect to the log-probabilities.
    log_probabilities : array_like
        What `log_softmax` returned, of the same shape.
    axis : int, tuple of int or None, default -1
        As it was given to `log_softmax`.
    temperature : float or array_like, default 1.0
        As it was given to `log_softmax`, but greater than 0.
    out : ndarray, optional
        Where to write; may be either input.

    Returns
    -------
    ndarray
        The gradient with respect to the logits, shape and dtype of `log_probabilities`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Examples
    --------
    >>> from pysoftmax import log_softmax, log_softmax_vjp
    >>> log_softmax_vjp([0.0, 0.0, 1.0], log_softmax([1.0, 2.0, 3.0])).round(4)
    array([-0.09  , -0.2447,  0.3348])
    """
    result = fast_log_softmax_vjp(grad_output, log_probabilities, axis, temperature, out)
    if result is not None:
        return result
    return _vjp("log_softmax_vjp", grad_output, log_probabilities, axis, temperature, out)


def _map(name: str, x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, out: Any) -> Any:
    """softmax or log_softmax of anything."""
    if where is None and dtype is None and type(temperature) is float:
        result = by_short_way(name, x, axis, temperature, out)
        if result is not None:
            return result
    backend = library_of(x=x, temperature=temperature, where=where, out=out)
    if isinstance(backend, Adapter):
        options = {"temperature": temperature, "where": where, "dtype": dtype, "out": out}
        return backend.call(name, {"x": x, "axis": axis, **options})
    array, own = backend.as_array(x), backend.mask_of(x)
    axes = check.normalize_axes(axis, array.ndim)
    temperature = check.check_temperature(
        backend, temperature, check.reduced_shape(array.shape, axes)
    )
    where = check.check_where(where, array.shape, backend, own)
    result = check.output(out, array.shape, check.choose_dtype(array, dtype), backend, array)
    if array.size:
        getattr(backend, name)(array, axes, result, where, temperature)
    return backend.wrap(result, x) if out is None else out


def _logsumexp(
    x: Any,
    axis: Any,
    b: Any,
    where: Any,
    keepdims: bool,
    return_sign: bool,
    dtype: Any,
    out: Any,
) -> Any:
    """logsumexp with all its options."""
    plain = b is None and where is None and dtype is None and out is None
    if plain and not keepdims and not return_sign:
        result = by_short_way("logsumexp", x, axis, 1.0, None)
        if result is not None:
            return result
    backend = library_of(x=x, b=b, where=where, out=out)
    if isinstance(backend, Adapter):
        options = {"keepdims": keepdims, "return_sign": return_sign, "dtype": dtype, "out": out}
        return backend.call("logsumexp", {"x": x, "axis": axis, "b": b, "where": where, **options})
    array, own = backend.as_array(x), backend.mask_of(x)
    if b is not None:
        factor = check.unmasked(backend, "b", b, WITHOUT_FACTOR)
        promoted = check.result_dtype(factor.dtype)
        array = backend.namespace.broadcast_to(
            array, np.broadcast_shapes(array.shape, factor.shape)
        )
        factor = backend.namespace.broadcast_to(factor, array.shape)
        if own is not None:
            mask = np.broadcast_to(np.ma.getmaskarray(x), array.shape)
            x = np.ma.array(array, mask=mask, copy=False)
    wanted = check.choose_dtype(array, dtype)
    if b is not None and dtype is None and not isinstance(b, int | float):
        wanted = np.promote_types(wanted, promoted)
    axes = check.normalize_axes(axis, array.ndim)
    where = check.check_where(where, array.shape, backend, own)
    shape = check.reduced_shape(array.shape, axes, keepdims)
    result = check.output(out, shape, wanted, backend, array)
    sign: Any
    if b is None:
        value, sign = _log_of_sum(backend, array, wanted, axes, where), None
    else:
        value, sign = _log_of_weighted_sum(backend, array, wanted, axes, factor, where)
    if return_sign:
        if sign is None:
            sign = backend.namespace.ones_like(value)
            sign[value == -np.inf] = 0
        sign[backend.namespace.isnan(value)] = np.nan
    elif sign is not None:
        value[sign < 0] = np.nan
    result[...] = value.reshape(shape)
    result = backend.wrap_reduced(result, x, axes) if out is None else out
    if not return_sign:
        return result
    return result, backend.wrap_reduced(sign.reshape(shape), x, axes)


def _log_of_sum(
    backend: Backend, array: Array, dtype: Any, axes: tuple[int, ...], where: Any
) -> Array:
    result = backend.empty(check.reduced_shape(array.shape, axes), dtype, array)
    if array.size:
        backend.logsumexp(array, axes, result, where)
    else:
        result[...] = -np.inf
    return result


@np.errstate(all="ignore")
def _log_of_weighted_sum(
    backend: Backend, array: Array, dtype: Any, axes: tuple[int, ...], factor: Array, where: Any
) -> tuple[Array, Array]:
    """log |sum b exp(x)| and the sum's sign, as logsumexp + log |sum b softmax|."""
    xp = backend.namespace
    wide = check.summing_dtype(dtype)
    array = array.astype(dtype, copy=False)
    takes_part = factor != 0 if where is None else (factor != 0) & where
    lse = _log_of_sum(backend, array, wide, axes, takes_part)
    weights = backend.empty(array.shape, wide, array)
    if array.size:
        backend.softmax(array, axes, weights, takes_part, 1.0)
    # Rows with +inf: only the infinite terms count, each as much as its factor.
    infinite = xp.broadcast_to(xp.expand_dims(lse, axes) == np.inf, array.shape)
    weights = xp.where(infinite, (array == np.inf) & takes_part, weights).astype(wide)
    total = backend.empty(lse.shape, wide, array)
    if array.size:
        # A factor of NaN or inf must not meet the 0 of a masked term.
        backend.dot(xp.where(takes_part, factor, 0).astype(wide), weights, axes, total)
    else:
        total[...] = 0
    value = xp.asarray((lse + xp.log(abs(total))).astype(dtype))
    empty = lse == -np.inf
    sign = xp.asarray(xp.sign(total).astype(dtype))
    value[empty] = -np.inf
    sign[empty] = 0
    return value, sign


def _vjp(name: str, grad_output: Any, values: Any, axis: Any, temperature: Any, out: Any) -> Any:
    """softmax_vjp or log_softmax_vjp of anything."""
    forward = "probabilities" if name == "softmax_vjp" else "log_probabilities"
    backend = library_of(
        **{"grad_output": grad_output, forward: values, "temperature": temperature, "out": out}
    )
    if isinstance(backend, Adapter):
        options = {"axis": axis, "temperature": temperature, "out": out}
        return backend.call(name, {"grad_output": grad_output, forward: values, **options})
    # What is masked had probability 0.
    grad = check.filled(backend, grad_output, 0)
    array = check.filled(backend, values, 0 if name == "softmax_vjp" else -np.inf)
    if grad.shape != array.shape:
        raise ValueError(
            f"grad_output must have the shape of the forward result {array.shape}, got {grad.shape}"
        )
    check.result_dtype(grad.dtype)
    axes = check.normalize_axes(axis, array.ndim)
    temperature = check.check_temperature(
        backend, temperature, check.reduced_shape(array.shape, axes), gradient=True
    )
    result = check.output(out, array.shape, check.choose_dtype(array, None), backend, array)
    if array.size:
        getattr(backend, name)(grad, array, axes, temperature, result)
    return backend.wrap(result, values) if out is None else out
