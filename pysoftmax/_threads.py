"""How many threads the CPU kernels use."""

import operator
import os
from types import TracebackType

from pysoftmax.backends.numpy import cpu

VARIABLE = "PYSOFTMAX_NUM_THREADS"


def _check(n: int, name: str) -> int:
    count = operator.index(n)
    if not 1 <= count < 2**31:
        raise ValueError(f"{name} must be in [1, 2**31), got {n}")
    return count


def set_num_threads(n: int) -> None:
    """Set the number of threads for the whole process.

    Until this is called, or PYSOFTMAX_NUM_THREADS set, OpenMP decides: OMP_NUM_THREADS, or
    one per core. Results do not depend on it, not even in their last bit.

    Parameters
    ----------
    n : int
        At least 1. Small arrays use fewer; builds without OpenMP use one.

    Raises
    ------
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import pysoftmax
    >>> pysoftmax.set_num_threads(1)
    >>> pysoftmax.get_num_threads()
    1
    """
    cpu.set_threads(_check(n, "n"))


def get_num_threads() -> int:
    """Return the number of threads that a large array is shared among.

    Returns
    -------
    int
        Of the calling thread, if it is within `num_threads`, else of the process. In a
        child forked after threads have run it is 1.

    Examples
    --------
    >>> import pysoftmax
    >>> pysoftmax.get_num_threads() >= 1
    True
    """
    return cpu.get_num_threads()


class num_threads:
    """Context manager: the number of threads for calls from this Python thread.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import pysoftmax
    >>> with pysoftmax.num_threads(1):
    ...     pysoftmax.softmax([1.0, 1.0])
    array([0.5, 0.5])
    """

    def __init__(self, n: int) -> None:
        self._n = _check(n, "n")
        self._before: list[int] = []

    def __enter__(self) -> "num_threads":
        self._before.append(cpu.swap_threads_here(self._n))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cpu.swap_threads_here(self._before.pop())


def _from_environment() -> None:
    text = os.environ.get(VARIABLE)
    if not text:
        return
    try:
        set_num_threads(int(text))
    except ValueError:
        raise ValueError(f"{VARIABLE} must be a whole number of at least 1, got {text!r}") from None


_from_environment()
