"""The compiled door to the kernels, src/cpu/_cpu.pyx."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = np.ndarray[Any, Any]

# Targets, and whether the running CPU supports them; best first.
SUPPORTED: dict[str, bool]

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
    x: Array,
    *,
    out: Array | None = None,
    row_out: Array | None = None,
    y: Array | None = None,
    mask: NDArray[np.bool_] | None = None,
    temperature: NDArray[np.float64] | None = None,
    target: NDArray[np.int64] | None = None,
    ignore_index: int = -100,
    class_weight: NDArray[np.float64] | None = None,
    label_smoothing: float = 0.0,
    gradient_scale: float = 1.0,
) -> None: ...
def sigmoid(x: Array, out: Array) -> None: ...
def log_sigmoid(x: Array, out: Array) -> None: ...
def binary_cross_entropy(
    x: Array,
    y: Array,
    weight: Array | None,
    pos_weight: Array | None,
    loss: Array,
    grad: Array | None,
    scale: float,
) -> None: ...
def total(x: Array) -> float: ...
def first_bad_label(labels: NDArray[np.int64], classes: int, ignore_index: int) -> int: ...
def sum_of_weights(
    labels: NDArray[np.int64], class_weight: NDArray[np.float64] | None, ignore_index: int
) -> float: ...

# The fast path: None for whatever is not a simple array with plain options.
def fast_softmax(
    x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, out: Any
) -> Array | None: ...
def fast_log_softmax(
    x: Any, axis: Any, temperature: Any, where: Any, dtype: Any, out: Any
) -> Array | None: ...
def fast_logsumexp(x: Any, axis: Any) -> Array | None: ...
