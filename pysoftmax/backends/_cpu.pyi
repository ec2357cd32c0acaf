"""The compiled door to the kernels, src/cpu/_cpu.pyx."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = np.ndarray[Any, Any]

# Targets, and whether the running CPU supports them; best first.
SUPPORTED: dict[str, bool]

# Made by Cython.
__test__: dict[str, str]

def kernel_module(target: str, real: str) -> Any: ...
def built_targets() -> list[str]: ...
def available_targets() -> list[str]: ...
def use_target(target: str) -> None: ...

# Threads.
def has_openmp() -> bool: ...
def get_num_threads() -> int: ...
def set_threads(n: int) -> None: ...
def swap_threads_here(n: int) -> int: ...
def after_fork_in_child() -> None: ...

# Validated calls.
def run_rows(
    operation: int,
    x: _Array,
    *,
    out: _Array | None = None,
    row_out: _Array | None = None,
    y: _Array | None = None,
    mask: NDArray[np.bool_] | None = None,
    temperature: NDArray[np.float64] | None = None,
    target: NDArray[np.int64] | None = None,
    ignore_index: int = -100,
    class_weight: NDArray[np.float64] | None = None,
    label_smoothing: float = 0.0,
    gradient_scale: float = 1.0,
) -> None: ...
def sigmoid(x: _Array, out: _Array) -> None: ...
def log_sigmoid(x: _Array, out: _Array) -> None: ...
def binary_cross_entropy(
    x: _Array,
    y: _Array,
    weight: _Array | None,
    pos_weight: _Array | None,
    loss: _Array | None,
    grad: _Array | None,
    scale: float,
) -> float: ...
def total(x: _Array) -> float: ...
def top(x: _Array, value: NDArray[np.float64], place: NDArray[np.int64]) -> None: ...
def widen(halves: _Array, floats: _Array, /) -> None: ...
def narrow(floats: _Array, halves: _Array, /) -> None: ...
def entropy(row: _Array, lowest: float = ..., highest: float = ...) -> float: ...
def rows_to_count(x: _Array, n_classes: int) -> int: ...
def count_rows(
    x: _Array,
    begin: int,
    step: int,
    most: int,
    cuts: tuple[float, float, float, float],
    counts: NDArray[np.int64],
    n_bins: int,
    sums: NDArray[np.int64],
) -> int: ...
def count_confidences(
    confidence: NDArray[np.float64],
    label: NDArray[np.int64],
    cuts: tuple[float, float, float, float],
    counts: NDArray[np.int64],
    n_bins: int,
    sums: NDArray[np.int64],
) -> None: ...
def first_bad_label(labels: NDArray[np.int64], classes: int, ignore_index: int) -> int: ...

# The fast path: None for all but simple arrays and plain options.
def fast_softmax(
    x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, out: Any
) -> _Array | None: ...
def fast_softmax_and_top(
    x: Any, axis: Any, temperature: Any, out: Any
) -> tuple[_Array, NDArray[np.float64], NDArray[np.int64]] | None: ...
def fast_log_softmax(
    x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, out: Any
) -> _Array | None: ...
def fast_logsumexp(x: Any, axis: Any, keepdims: Any, dtype: Any, out: Any) -> Any: ...
def fast_sigmoid(x: Any, dtype: Any, out: Any) -> _Array | None: ...
def fast_log_sigmoid(x: Any, dtype: Any, out: Any) -> _Array | None: ...
def fast_vjp(
    operation: int, grad_output: Any, values: Any, axis: Any, temperature: Any, out: Any
) -> _Array | None: ...
def fast_cross_entropy(
    logits: Any,
    target: Any,
    axis: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    temperature: Any,
    with_grad: bool,
    grad_out: Any,
) -> tuple[Any, Any] | None: ...
def fast_binary_cross_entropy(
    logits: Any,
    target: Any,
    weight: Any,
    pos_weight: Any,
    reduction: Any,
    with_grad: bool,
    grad_out: Any,
) -> tuple[Any, Any] | None: ...
