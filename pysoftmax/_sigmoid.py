"""sigmoid and log_sigmoid."""

from typing import Any

from pysoftmax import _arguments as check
from pysoftmax._dispatch import library_of
from pysoftmax.adapters import Adapter
from pysoftmax.backends.numpy import fast_log_sigmoid, fast_sigmoid

__all__ = ["log_sigmoid", "sigmoid"]


def sigmoid(x: Any, *, dtype: Any = None, out: Any = None) -> Any:
    """Probability of one label: ``1 / (1 + exp(-x))``.

    Parameters
    ----------
    x : array_like
        Logits, float16, bfloat16, float32 or float64. Integers and bool are promoted to
        float64 (8 and 16 bits to float32).
    dtype : dtype, optional
        Of the result; `x` is converted to it first.
    out : ndarray, optional
        Where to write: shape and dtype of the result. May be `x`, or overlap it.

    Returns
    -------
    ndarray
        Shape of `x`, float dtype of `x`.

    Raises
    ------
    TypeError
        For other dtypes and unknown array types.
    ValueError
        If `out` has another shape or is read-only.

    Examples
    --------
    >>> from pysoftmax import sigmoid
    >>> sigmoid([-1000.0, 0.0, 2.0]).round(4)
    array([0.    , 0.5   , 0.8808])
    """
    result = fast_sigmoid(x, dtype, out)
    return _map("sigmoid", x, dtype, out) if result is None else result


def log_sigmoid(x: Any, *, dtype: Any = None, out: Any = None) -> Any:
    """Logarithm of the sigmoid: ``min(x, 0) - log1p(exp(-abs(x)))``.

    Parameters
    ----------
    x : array_like
        Logits, as for `sigmoid`.
    dtype : dtype, optional
        Of the result; `x` is converted to it first.
    out : ndarray, optional
        Where to write: shape and dtype of the result. May be `x`, or overlap it.

    Returns
    -------
    ndarray
        Shape of `x`, float dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid`.

    Examples
    --------
    >>> from pysoftmax import log_sigmoid
    >>> log_sigmoid([-1000.0, 0.0, 50.0])
    array([-1.00000000e+03, -6.93147181e-01, -1.92874985e-22])
    """
    result = fast_log_sigmoid(x, dtype, out)
    return _map("log_sigmoid", x, dtype, out) if result is None else result


def _map(name: str, x: Any, dtype: Any, out: Any) -> Any:
    backend = library_of(x=x, out=out)
    if isinstance(backend, Adapter):
        return backend.call(name, {"x": x, "dtype": dtype, "out": out})
    array = backend.as_array(x)
    result = check.output(out, array.shape, check.choose_dtype(array, dtype), backend, array)
    if array.size:
        getattr(backend, name)(array, result)
    return backend.wrap(result, x) if out is None else out
