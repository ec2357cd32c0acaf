"""Backends: one module per array library, all with the interface of :class:`Backend`.

A public function validates its arguments, works out axis, dtype and shapes, allocates the
result with the backend and calls the function of its own name on it. Below that nothing is
checked again.

Adding a backend is adding one module with these functions and naming it in
``_dispatch.BUILT_IN``, or, from another distribution, an entry point::

    [project.entry-points."pysoftmax.backends"]
    mylib = "mypackage.pysoftmax_backend"

``tests/test_contract.py`` holds every backend to the interface.
"""

from typing import Any, Protocol, runtime_checkable

Array = Any
# A float, or an array of float64 without dimensions where reading it would wait for a device.
Number = Any


@runtime_checkable
class Backend(Protocol):
    """What a backend module provides.

    Every ``x``, ``out`` and target below is an array of the backend's library, not empty, of
    any accepted dtype. ``axis`` is a tuple of distinct non-negative ints in ascending order,
    the axes that are reduced together. ``temperature`` is a float, or an array of float64
    with the shape of the reduced result. ``where`` is None or a bool array of the shape of
    ``x``. ``out`` has the shape of ``x`` (or the reduced one); its dtype, one of the floats,
    says what ``x`` is converted to first. It may be ``x`` or overlap it in any way.

    A backend may also have ``distributions``, where more than one brings its library, and
    ``short_way(name, x, axis, temperature, out)``: softmax, log_softmax or logsumexp straight
    from the caller's arguments, and None instead of a result for all that it leaves to the checks;
    ``short_cross_entropy(logits, target, axis, weight, ignore_index, label_smoothing, reduction,
    temperature, with_grad, grad_out)``, which gives a loss, and its gradient or None, in the same
    manner; and ``top(rows)``: of each row of a contiguous matrix of float32 or float64 the largest
    entry, or NaN, and its first place, as NumPy arrays of float64 and int64.
    """

    name: str
    library: str  # the distribution that brings the arrays
    namespace: Any  # its module of NumPy-like functions

    def recognises(self, array: Any) -> bool:
        """Whether `array` belongs to this backend's library, without importing it."""

    def as_array(self, x: Any) -> Array:
        """`x` as an array proper (for NumPy lists, scalars and subclasses too)."""

    def mask_of(self, x: Any) -> Array | None:
        """True where a masked array is not masked; None for all others."""

    def wrap(self, result: Array, like: Any) -> Any:
        """`result` in the type of the caller's `like`, where that offers a way back."""

    def can_be_written(self, out: Any) -> bool:
        """Whether `out` is an array to write to."""

    def wrap_reduced(self, result: Array, like: Any, axis: tuple[int, ...]) -> Any:
        """`result`, without `axis` or with that kept, in the type of the caller's `like`."""

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        """An uninitialised array, on the device of `like`."""

    def softmax(
        self, x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
    ) -> None:
        """Probabilities into `out`."""

    def log_softmax(
        self, x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
    ) -> None:
        """Log-probabilities into `out`."""

    def logsumexp(self, x: Array, axis: tuple[int, ...], out: Array, where: Array | None) -> None:
        """log sum exp into `out`, of the reduced shape."""

    def cross_entropy(
        self,
        logits: Array,
        target: Array,
        axis: int,
        weight: Array | None,
        ignore_index: int,
        label_smoothing: float,
        temperature: Any,
        loss: Array,
        grad: Array | None,
        divisor: Number,
    ) -> None:
        """One loss per row into `loss` and, unless None, its gradient over `divisor`.

        The gradient is 0 where `divisor` is.
        """

    def check_labels(self, target: Array, classes: int, ignore_index: int) -> None:
        """IndexError for the first label outside [0, classes) that is not ignored."""

    def check_within(self, name: str, array: Array, lowest: float, highest: float) -> None:
        """ValueError unless every element is in [lowest, highest]."""

    def sum_of_weights(self, target: Array, weight: Array | None, ignore_index: int) -> Number:
        """What a mean over class-index targets divides by."""

    def dot(self, x: Array, y: Array, axis: tuple[int, ...], out: Array) -> None:
        """Sum of products into `out`, of the reduced shape, in the contract's order."""

    def sum(self, x: Array) -> Number:
        """Sum of all elements in the order of the numeric contract."""

    def quotient(self, total: Number, divisor: Number, dtype: Any) -> Any:
        """`total` over `divisor` as a scalar of the library; NaN where `divisor` is 0."""

    def sigmoid(self, x: Array, out: Array) -> None:
        """1 / (1 + exp(-x)) into `out`."""

    def log_sigmoid(self, x: Array, out: Array) -> None:
        """log sigmoid(x) into `out`."""

    def binary_cross_entropy(
        self,
        logits: Array,
        target: Array,
        weight: Array | None,
        pos_weight: Array | None,
        loss: Array | None,
        grad: Array | None,
        divisor: Number,
    ) -> Number:
        """One loss per element into `loss`, or if that is None return their sum.

        Unless `grad` is None, the gradient over `divisor` goes there.
        """

    def softmax_vjp(
        self,
        grad_output: Array,
        probabilities: Array,
        axis: tuple[int, ...],
        temperature: Any,
        out: Array,
    ) -> None:
        """Gradient with respect to the logits into `out`."""

    def log_softmax_vjp(
        self,
        grad_output: Array,
        log_probabilities: Array,
        axis: tuple[int, ...],
        temperature: Any,
        out: Array,
    ) -> None:
        """Gradient with respect to the logits into `out`."""
