"""CuPy arrays, through the CUDA kernels of src/cuda. Importing this imports no CuPy.

Everything runs on the current stream, on the device of the first array, and waits for it only
to check what arrays hold: labels, target probabilities, temperatures.
"""

import contextlib
import contextvars
import functools
import hashlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pysoftmax.backends import _cuda as cuda
from pysoftmax.backends._operations import (
    CROSS_ENTROPY,
    CROSS_ENTROPY_WITH_GRAD,
    DOT,
    LOG_SOFTMAX,
    LOG_SOFTMAX_VJP,
    LOGSUMEXP,
    SOFTMAX,
    SOFTMAX_VJP,
    SUM,
)

Array = Any

name = "cupy"
library = "cupy-cuda13x[ctk]"
distributions = "cupy-cuda13x", "cupy-cuda12x", "cupy"  # any of them brings the module

# --------------------------------------------------------------------------------- the device

BRINGS = "pip install 'pysoftmax[cuda13]', or cuda12"

# Nothing is fused and no subnormal lost but where the source says so. CuPy's RawModule adds
# -ftz=true after all other options, which wins, so modules are compiled here.
OPTIONS = ("-std=c++17", "-default-device", "-fmad=false", "-ftz=false")


class Gpu:
    """All that is asked of CuPy beside what its arrays and functions share with NumPy's."""

    def __init__(self) -> None:
        self._functions: dict[Any, Any] = {}

    @functools.cached_property
    def namespace(self) -> Any:
        """The module ``cupy``."""
        import cupy

        return cupy

    def owns(self, array: Any) -> bool:
        """Whether this is a CuPy array, without importing CuPy."""
        array_type = getattr(sys.modules.get("cupy"), "ndarray", None)
        return array_type is not None and isinstance(array, array_type)

    def on(self, array: Array) -> Any:
        """A context in which the device of `array` is the current one."""
        return contextlib.nullcontext() if self.number(array) == self.current() else array.device

    def current(self) -> int:
        """The number of the current device."""
        return self.namespace.cuda.runtime.getDevice()  # type: ignore[no-any-return]

    def number(self, array: Array) -> int:
        """The number of the device that holds an array."""
        return array.device.id  # type: ignore[no-any-return]

    def device(self) -> cuda.Device:
        """The current device."""
        return self._device(self.current())

    @functools.cache  # noqa: B019 - there is one Gpu
    def _device(self, number: int) -> cuda.Device:
        device = self.namespace.cuda.Device(number)
        return cuda.Device(int(device.compute_capability), device.attributes["MultiProcessorCount"])

    @functools.lru_cache(256)  # noqa: B019
    def _constant(self, number: int, value: float) -> Array:
        array = self.namespace.full(1, value, np.float64)
        # Another stream may use it next.
        self.namespace.cuda.get_current_stream().synchronize()
        return array

    def constant(self, value: float) -> Array:
        """An array of one float64 on the current device, made once."""
        return self._constant(self.current(), value)

    def pointer(self, array: Array) -> int:
        """Where the first element is."""
        return array.data.ptr  # type: ignore[no-any-return]

    def launch(
        self, defines: tuple[tuple[str, int], ...], start: cuda.Start, task: np.ndarray[Any, Any]
    ) -> None:
        """Start one kernel on the current stream."""
        self.starter(defines, start)(_raw(task))

    def starter(
        self, defines: tuple[tuple[str, int], ...], start: cuda.Start
    ) -> Callable[[np.ndarray[Any, Any]], None]:
        """What starts one kernel on the current stream of this device, given `_raw` of its task."""
        key = self.current(), defines, start.kernel
        function = self._functions.get(key)
        if function is None:
            module = self.namespace.RawModule(path=str(self._compiled(defines)))
            kernel = module.get_function(start.kernel).kernel
            function = self._functions.setdefault(key, kernel)
        blocks, threads, shared = (start.blocks,), (start.threads,), start.shared
        return lambda raw: function(blocks, threads, (raw,), shared)

    def _compiled(self, defines: tuple[tuple[str, int], ...]) -> Path:
        """The file that holds a module for the current device, compiled if it is not there."""
        from cupy.cuda import compiler, nvrtc

        architecture = self.namespace.cuda.Device().compute_capability
        options = OPTIONS + tuple(f"-D{macro}={value}" for macro, value in defines)
        source = cuda.source()
        try:
            version = nvrtc.getVersion()
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(f"CuPy finds no NVRTC to compile kernels with: {BRINGS}") from error
        text = repr((source, options, architecture, version))
        folder = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache"
        path = Path(folder, f"pysoftmax-{hashlib.sha256(text.encode()).hexdigest()[:40]}.cubin")
        if not path.exists():
            options = self.namespace._core.core.assemble_cupy_compiler_options(options)
            try:
                binary, _ = compiler.compile_using_nvrtc(source, options, arch=architecture)
            except compiler.CompileException as error:
                raise RuntimeError(
                    f"NVRTC {'.'.join(map(str, version))} does not compile the kernels for compute "
                    f"capability {architecture}; CUDA's headers belong to it: {BRINGS}\n{error}"
                ) from error
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(binary)
            os.replace(part, path)  # whole or not at all
        return path


def _raw(task: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`task` without its fields: spelling them out took 14 of the 20 microseconds of a launch."""
    return task.view((np.void, task.itemsize))


def _copy(task: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy, which NumPy would make field by field."""
    return _raw(task).copy().view(task.dtype)


gpu = Gpu()


class _Namespace(types.ModuleType):
    """``cupy``, imported when something of it is asked for."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(gpu.namespace, attribute)


namespace: Any = _Namespace("cupy")
xp = namespace

_unchecked: contextvars.ContextVar[bool] = contextvars.ContextVar("unchecked", default=False)
_fast: contextvars.ContextVar[bool] = contextvars.ContextVar("fast", default=False)


@contextlib.contextmanager
def deferred_checks() -> Iterator[None]:
    """Within, labels and target probabilities are not read back, so that no call waits.

    A label outside [0, C) then gives NaN as the row's loss and gradient, and target
    probabilities are used as they are.
    """
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


@contextlib.contextmanager
def fast_halves() -> Iterator[None]:
    """Within, rows of float16 and bfloat16 are computed with the device's own exponential.

    Its relative error is up to 2^-17, so that results of 16 bits are within 0.51 ULP of the exact
    ones. They no longer have the bits of the CPU's.
    """
    token = _fast.set(True)
    try:
        yield
    finally:
        _fast.reset(token)


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """With the device of the first array as the current one."""

    @functools.wraps(function)
    def call(array: Array, *arguments: Any) -> Any:
        with gpu.on(array):
            return function(array, *arguments)

    return call


# ----------------------------------------------------------------------------------- arrays


def recognises(array: Any) -> bool:
    return gpu.owns(array)


def as_array(x: Any) -> Array:
    return xp.asarray(x)


def mask_of(x: Any) -> Array | None:
    return None


def wrap(result: Array, like: Any) -> Any:
    return result


def wrap_reduced(result: Array, like: Any, axis: tuple[int, ...]) -> Any:
    return result


def can_be_written(out: Any) -> bool:
    return gpu.owns(out)


def empty(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    with gpu.on(like):
        return xp.empty(shape, dtype)


def _real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What the kernels compute a result of `dtype` in: the half precisions in float32."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def _apart(out: Array, *inputs: Array | None) -> bool:
    """Whether `out` may be written while the inputs are read: one may be `out` itself."""
    shared = [i for i in inputs if i is not None and xp.may_share_memory(i, out)]
    if not shared:
        return True
    same = shared[0]
    return (
        len(shared) == 1
        and gpu.pointer(same) == gpu.pointer(out)
        and same.strides == out.strides
        and same.shape == out.shape
    )


class _Rows:
    """How arrays of one shape are seen as (outer, n, inner), with `axes` as n."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int) -> None:
        self.shape, self.axes = shape, axes
        first, last = (axes[0], axes[-1]) if axes else (len(shape), len(shape) - 1)
        self.n = int(np.prod([shape[i] for i in axes], dtype=np.int64))
        self.outer = int(np.prod(shape[:first], dtype=np.int64))
        self.inner = int(np.prod(shape[last + 1 :], dtype=np.int64))
        # Axes that lie apart, and columns too long for a thread block, go last, by copies.
        self.moved = last - first + 1 != len(axes) or (
            self.inner > 1 and cuda.plan_columns(itemsize, self.outer, self.n, self.inner) is None
        )
        if self.moved:
            self.outer, self.inner = int(np.prod(shape, dtype=np.int64)) // self.n, 1
        self.last = tuple(range(len(shape) - len(axes), len(shape)))

    def of(self, array: Array) -> Array:
        """`array` as the kernels read it: a view where strides allow one."""
        if self.moved:
            array = xp.moveaxis(array, self.axes, self.last)
        rows = array.reshape(self.outer, self.n, self.inner)
        size, strides = array.dtype.itemsize, rows.strides
        neighbours = 2 if self.inner > 1 else 1
        whole = rows.shape[neighbours] == 1 or strides[neighbours] == size
        return rows if whole and not any(s % size for s in strides) else rows.copy(order="C")

    def back(self, rows: Array, out: Array) -> None:
        """Copy what `of` made into `out`."""
        if self.moved:
            shape = xp.moveaxis(out, self.axes, self.last).shape
            rows = xp.moveaxis(rows.reshape(shape), self.last, self.axes)
        out[...] = rows.reshape(out.shape)


@functools.lru_cache(4096)
def _rows(shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int) -> _Rows:
    return _Rows(shape, axes, itemsize)


@functools.lru_cache(4096)
def _plan(
    operation: int,
    dtype: np.dtype[Any],
    layout: tuple[int, int, int],
    general: bool,
    dense: bool,
    fast: bool,
    device: cuda.Device,
) -> tuple[tuple[tuple[str, int], ...], cuda.Launch, np.ndarray[Any, Any]]:
    """Definitions, launch, and a task with what does not change between calls."""
    outer, n, inner = layout
    plan = (
        cuda.plan_rows(dtype.itemsize, outer, n, device)
        if inner == 1
        else cuda.plan_columns(dtype.itemsize, outer, n, inner)
    )
    assert plan is not None
    defines = {
        **cuda.element_defines(dtype.name),
        "OPERATION": operation,
        "GENERAL": int(general),
        "DENSE": int(dense),
        **({"FAST": 1} if fast and dtype.itemsize == 2 else {}),
        **plan.defines,
    }
    task = np.zeros((), cuda.TASK)
    task["outer"], task["n"], task["inner"] = layout
    return tuple(defines.items()), plan, task


def _run(
    operation: int,
    rows: _Rows,
    x: Array,
    *,
    y: Array | None = None,
    out: Array | None = None,
    mask: Array | None = None,
    row_out: Array | None = None,
    temperature: Any = 1.0,
    target: Array | None = None,
    class_weight: Array | None = None,
    ignore_index: int = 0,
    label_smoothing: float = 0.0,
    divisor: Any = 1.0,
    dense: bool = False,
) -> None:
    """Fill in a task and launch it; arrays are as `_Rows.of` gives them, or one per row."""
    general = not (isinstance(temperature, float) and temperature == 1.0)
    layout = rows.outer, rows.n, rows.inner
    fast, device = _fast.get(), gpu.device()
    defines, plan, template = _plan(operation, x.dtype, layout, general, dense, fast, device)
    task = _copy(template)
    if general:
        scalar = isinstance(temperature, float)
        temperature = gpu.constant(temperature) if scalar else temperature
        task["temperature"] = gpu.pointer(temperature)
        task["temperature_step"] = not scalar
    for operand, array in (("x", x), ("y", y), ("out", out)):
        if array is not None:
            size = array.dtype.itemsize
            task[operand] = gpu.pointer(array)
            task[f"{operand}_outer"] = array.strides[0] // size
            task[f"{operand}_n"] = array.strides[1] // size
    if mask is not None:
        task["mask"] = gpu.pointer(mask)
    if row_out is not None:
        task["row_out"] = gpu.pointer(row_out)
    if operation in (CROSS_ENTROPY, CROSS_ENTROPY_WITH_GRAD):
        if isinstance(divisor, int | float):
            divisor = gpu.constant(float(divisor))
        task["divisor"] = gpu.pointer(divisor)
        task["ignore_index"] = ignore_index
        task["label_smoothing"] = label_smoothing
        if target is not None:
            task["target"] = gpu.pointer(target)
        if class_weight is not None:
            task["class_weight"] = gpu.pointer(class_weight)
    if plan.partials:
        partials = xp.empty(plan.partials * cuda.PARTIAL_BYTES, np.uint8)
        task["partials"] = gpu.pointer(partials)
    for start in plan.starts:
        if out is not None or not start.writes:
            gpu.launch(defines, start, task)


class _Output:
    """Where the kernels write what goes to `out`: itself if that is safe, else a stand-in."""

    def __init__(self, out: Array, rows: _Rows, *inputs: Array | None) -> None:
        self.out, self.rows = out, rows
        self.view = rows.of(out)
        self.direct = xp.may_share_memory(self.view, out) and _apart(out, *inputs)
        if not self.direct:
            self.view = xp.empty((rows.outer, rows.n, rows.inner), out.dtype)

    def finish(self) -> None:
        if not self.direct:
            self.rows.back(self.view, self.out)


def _row_output(out: Array, *inputs: Array | None) -> Array:
    """A contiguous array for one value per row: `out` itself where that is safe."""
    if (
        out.dtype == _real(out.dtype)
        and out.flags.c_contiguous
        and not any(i is not None and xp.may_share_memory(i, out) for i in inputs)
    ):
        return out
    return xp.empty(out.shape, _real(out.dtype))


def _temperatures(temperature: Any, out: Array | None) -> Any:
    """A float, or temperatures in the order of the rows, apart from `out`."""
    if isinstance(temperature, float):
        return temperature
    values = xp.ascontiguousarray(temperature, dtype=np.float64).reshape(-1)
    overlaps = out is not None and xp.may_share_memory(values, out)
    return values.copy() if overlaps else values


def _mask(where: Array | None, rows: _Rows) -> Array | None:
    return None if where is None else xp.ascontiguousarray(rows.of(where))


# -------------------------------------------------------------------------------- functions


def _map(
    operation: int,
    x: Array,
    axis: tuple[int, ...],
    out: Array,
    where: Array | None,
    temperature: Any,
) -> None:
    rows = _rows(x.shape, axis, out.dtype.itemsize)
    x = x.astype(out.dtype, copy=False)
    output = _Output(out, rows, x, where)
    _run(
        operation,
        rows,
        rows.of(x),
        out=output.view,
        mask=_mask(where, rows),
        temperature=_temperatures(temperature, out),
    )
    output.finish()


class _Kernels:
    """Kernels that follow each other on one task: all of their launches but the addresses."""

    def __init__(
        self,
        starters: tuple[Callable[[np.ndarray[Any, Any]], None], ...],
        template: np.ndarray[Any, Any],
    ) -> None:
        self._starters, self._template = starters, template
        self.word = {name: i for i, name in enumerate(template.dtype.fields or ())}
        # Tasks that no call has at present, each as `_raw` and as words of 64 bits.
        self._free: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []

    def launch(self, **addresses: int) -> None:
        """Start them on a task that has these addresses."""
        word = self.word
        self.launch_at(*[(word[name], address) for name, address in addresses.items()])

    def launch_at(self, *addresses: tuple[int, int]) -> None:
        """As `launch`, by the numbers of the words, which saves a microsecond."""
        try:
            task = self._free.pop()
        except IndexError:
            copy = _raw(self._template).copy()
            task = copy, copy.reshape(1).view(np.uint64)
        raw, words = task
        for word, address in addresses:
            words[word] = address
        for start in self._starters:
            start(raw)
        self._free.append(task)  # a launch copies its argument


def _of_rows(
    operation: int,
    rows: _Rows,
    dtype: np.dtype[Any],
    general: bool = False,
    dense: bool = False,
    fast: bool = False,
    **constants: Any,
) -> tuple[_Kernels, int]:
    """The kernels of contiguous arrays on the current device, and their bytes of workspace."""
    layout = rows.outer, rows.n, rows.inner
    defines, plan, template = _plan(operation, dtype, layout, general, dense, fast, gpu.device())
    task = _copy(template)
    for operand in ("x", "y", "out"):
        task[f"{operand}_outer"] = rows.n * rows.inner
        task[f"{operand}_n"] = rows.inner
    for name, value in constants.items():
        task[name] = value
    starts = (s for s in plan.starts if operation in _WRITES or not s.writes)
    starters = tuple(gpu.starter(defines, start) for start in starts)
    return _Kernels(starters, task), plan.partials * cuda.PARTIAL_BYTES


def _of_struct(
    struct: np.dtype[Any], defines: dict[str, int], start: cuda.Start, **constants: int
) -> _Kernels:
    """A kernel on the current device whose argument is this struct."""
    task = np.zeros((), struct)
    for name, value in constants.items():
        task[name] = value
    return _Kernels((gpu.starter(tuple(defines.items()), start),), task)


@functools.lru_cache(4096)
def _of_labels(kernel: str, n: int, classes: int, ignore_index: int, device: int) -> _Kernels:
    """A kernel of a mean over n class labels."""
    start, defines = cuda.plan_labels(kernel, n), cuda.means_defines("float64")
    return _of_struct(cuda.LABELS, defines, start, n=n, classes=classes, ignore_index=ignore_index)


@functools.lru_cache(4096)
def _of_sum(n: int, dtype: np.dtype[Any], device: int) -> tuple[_Kernels, int]:
    """The kernels of a sum over n elements, and their bytes of workspace."""
    return _of_rows(SUM, _rows((n,), (0,), dtype.itemsize), dtype)


@functools.lru_cache(64)
def _of_quotient(dtype: np.dtype[Any], device: int) -> _Kernels:
    start = cuda.Start("quotient", 1, 32)
    return _of_struct(cuda.QUOTIENT, cuda.means_defines(dtype.name), start)


@functools.lru_cache(4096)
def _of_elements(kernel: str, n: int, dtype: np.dtype[Any], device: int) -> _Kernels:
    """An elementwise kernel over n elements."""
    defines = {"ELEMENTWISE": 1, **cuda.element_defines(dtype.name)}
    return _of_struct(cuda.ELEMENTS, defines, cuda.plan_elements(kernel, dtype.itemsize, n), n=n)


_X, _OUT, _ROW_OUT, _TEMPERATURE = map(cuda.POINTERS.index, ("x", "out", "row_out", "temperature"))
_PLAIN = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}
_WRITES = {SOFTMAX, LOG_SOFTMAX, CROSS_ENTROPY_WITH_GRAD}
_FLOATS = ("float32", "float64", "float16", "bfloat16")


def _plain_rows(shape: tuple[int, ...], axis: int, dtype: np.dtype[Any]) -> _Rows | None:
    """How contiguous arrays of one shape are seen, where kernels take them as they lie."""
    if 0 in shape or not -len(shape) <= axis < len(shape) or dtype.name not in _FLOATS:
        return None
    rows = _rows(shape, (axis % len(shape),), dtype.itemsize)
    return None if rows.moved else rows


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


@functools.lru_cache(4096)
def _ready(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    axis: int,
    general: bool,
    fast: bool,
    device: int,
) -> tuple[_Kernels, tuple[int, ...], int] | None:
    """Of a call: its kernels, the shape of its result, and which word of a task that is."""
    rows = _plain_rows(shape, axis, dtype)
    reduces = name == "logsumexp"
    # Of half precisions a reduction is rounded from float32 afterwards.
    if rows is None or (reduces and dtype.itemsize == 2):
        return None
    kernels, workspace = _of_rows(_PLAIN[name], rows, dtype, general, fast=fast)
    if workspace:
        return None
    return (kernels, _without(shape, axis), _ROW_OUT) if reduces else (kernels, shape, _OUT)


def _fits(out: Any, x: Array, shape: tuple[int, ...], device: int) -> bool:
    """Whether `out` is contiguous, of the dtype of x, and x itself or apart from it."""
    return out is x or (
        type(out) is type(x)
        and out.dtype == x.dtype
        and out.shape == shape
        and out.flags.c_contiguous
        and gpu.number(out) == device
        and (gpu.pointer(out) == gpu.pointer(x) or _disjoint(out, x))
    )


def _disjoint(a: Array, b: Array) -> bool:
    """Whether two contiguous arrays share no memory."""
    first, second = gpu.pointer(a), gpu.pointer(b)
    return bool(first + a.nbytes <= second or second + b.nbytes <= first)


def short_way(name: str, x: Array, axis: Any, temperature: float, out: Any) -> Any:
    """What one kernel makes of contiguous arrays on the current device, or None."""
    device, general = gpu.current(), temperature != 1.0
    if type(axis) is not int or not temperature > 0 or not x.flags.c_contiguous:
        return None
    ready = _ready(name, x.shape, x.dtype, axis, general, _fast.get(), device)
    if ready is None or gpu.number(x) != device:
        return None
    kernels, shape, place = ready
    if out is None:
        out = gpu.namespace.empty(shape, x.dtype)
    elif not _fits(out, x, shape, device):
        return None
    if general:
        degrees = gpu.pointer(gpu.constant(temperature))
        kernels.launch_at((_X, gpu.pointer(x)), (place, gpu.pointer(out)), (_TEMPERATURE, degrees))
    else:
        kernels.launch_at((_X, gpu.pointer(x)), (place, gpu.pointer(out)))
    return out


@functools.lru_cache(4096)
def _ready_loss(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    axis: int,
    ignore_index: int,
    label_smoothing: float,
    general: bool,
    with_grad: bool,
    fast: bool,
    device: int,
) -> tuple[_Kernels, int, tuple[int, ...]] | None:
    """Of a loss: its kernels, their bytes of workspace, and the shape of the labels."""
    rows = _plain_rows(shape, axis, dtype)
    if rows is None or not 0 <= label_smoothing <= 1 or not -(2**63) <= ignore_index < 2**63:
        return None
    kernels, workspace = _of_rows(
        CROSS_ENTROPY_WITH_GRAD if with_grad else CROSS_ENTROPY,
        rows,
        dtype,
        general,
        label_smoothing != 0,
        fast,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return kernels, workspace, _without(shape, axis)


def short_cross_entropy(
    logits: Array,
    target: Any,
    axis: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: str,
    temperature: float,
    with_grad: bool,
    grad_out: Any,
) -> tuple[Any, Any] | None:
    """What contiguous arrays on the current device give, with labels of 64 bits; or None."""
    device = gpu.current()
    if (
        type(axis) is not int
        or type(ignore_index) is not int
        or type(label_smoothing) is not float
        or not temperature > 0
        or type(target) is not type(logits)
        or target.dtype != np.int64
        or not (target.flags.c_contiguous and logits.flags.c_contiguous)
        or gpu.number(logits) != device
        or gpu.number(target) != device
    ):
        return None
    shape, dtype, general = logits.shape, logits.dtype, temperature != 1.0
    constants = ignore_index, label_smoothing, general, with_grad, _fast.get()
    ready = _ready_loss(shape, dtype, axis, *constants, device)
    if ready is None or target.shape != ready[2]:
        return None
    if grad_out is not None and not (
        _fits(grad_out, logits, shape, device) and _disjoint(grad_out, target)
    ):
        return None
    xp, classes, checked = gpu.namespace, shape[axis], not _unchecked.get()
    factors, divisor = None, None
    if weight is not None:
        if (
            type(weight) is not type(logits)
            or weight.shape != (classes,)
            or weight.dtype.kind not in "biuf"
            or gpu.number(weight) != device
        ):
            return None
        factors = xp.ascontiguousarray(weight, dtype=np.float64)
        if grad_out is not None and not _disjoint(grad_out, factors):
            return None
    if checked or (reduction == "mean" and factors is None):
        # Once, for both.
        divisor = _counts(target, classes, ignore_index)
        if checked and _wrong(divisor):
            return None
    if reduction != "mean":
        divisor = gpu.constant(1.0)
    elif factors is not None:
        divisor = sum_of_weights(target, factors, ignore_index)
    kernels, workspace, rows = ready
    losses, partials = xp.empty(rows, _real(dtype)), xp.empty(workspace, np.uint8)
    grad = None
    if with_grad:
        grad = xp.empty(shape, dtype) if grad_out is None else grad_out
    kernels.launch(
        x=gpu.pointer(logits),
        target=gpu.pointer(target),
        class_weight=0 if factors is None else gpu.pointer(factors),
        divisor=gpu.pointer(divisor),
        row_out=gpu.pointer(losses),
        partials=gpu.pointer(partials),
        out=0 if grad is None else gpu.pointer(grad),
        temperature=gpu.pointer(gpu.constant(temperature)) if general else 0,
    )
    if reduction == "none":
        return losses.astype(dtype, copy=False), grad
    return quotient(sum(losses), divisor, dtype), grad


@_on_its_device
def softmax(
    x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
) -> None:
    _map(SOFTMAX, x, axis, out, where, temperature)


@_on_its_device
def log_softmax(
    x: Array, axis: tuple[int, ...], out: Array, where: Array | None, temperature: Any
) -> None:
    _map(LOG_SOFTMAX, x, axis, out, where, temperature)


@_on_its_device
def logsumexp(x: Array, axis: tuple[int, ...], out: Array, where: Array | None) -> None:
    rows = _rows(x.shape, axis, out.dtype.itemsize)
    x = x.astype(out.dtype, copy=False)
    result = _row_output(out, x, where)
    _run(LOGSUMEXP, rows, rows.of(x), mask=_mask(where, rows), row_out=result)
    if result is not out:
        out[...] = result


@_on_its_device
def dot(x: Array, y: Array, axis: tuple[int, ...], out: Array) -> None:
    rows = _rows(x.shape, axis, out.dtype.itemsize)
    x, y = x.astype(out.dtype, copy=False), y.astype(out.dtype, copy=False)
    result = _row_output(out, x, y)
    _run(DOT, rows, rows.of(x), y=rows.of(y), row_out=result)
    if result is not out:
        out[...] = result


@_on_its_device
def cross_entropy(
    logits: Array,
    target: Array,
    axis: int,
    weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
    temperature: Any,
    loss: Array,
    grad: Array | None,
    divisor: Any,
) -> None:
    wanted = loss.dtype if grad is None else grad.dtype
    # Half precisions are read as they are, whatever float32 results they give.
    if logits.dtype.kind in "biu" or _real(logits.dtype) != wanted:
        logits = logits.astype(wanted, copy=False)
    rows = _rows(logits.shape, (axis,), logits.dtype.itemsize)
    labels = _labels(target) if target.dtype.kind in "iu" else None
    probabilities = None
    if labels is None:
        probabilities = rows.of(target.astype(_real(logits.dtype), copy=False))
    output = None if grad is None else _Output(grad, rows, logits, probabilities, labels)
    row_out = _row_output(loss)
    _run(
        CROSS_ENTROPY if output is None else CROSS_ENTROPY_WITH_GRAD,
        rows,
        rows.of(logits),
        y=probabilities,
        out=None if output is None else output.view,
        row_out=row_out,
        temperature=_temperatures(temperature, grad),
        target=labels,
        class_weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        divisor=divisor,
        dense=labels is None or label_smoothing != 0,
    )
    if row_out is not loss:
        loss[...] = row_out
    if output is not None:
        output.finish()


def _labels(target: Array) -> Array:
    if target.dtype == np.int64 and target.flags.c_contiguous:
        return target
    if target.dtype == np.uint64:
        # So that a huge label stays out of range instead of wrapping.
        target = xp.minimum(target, np.uint64(np.iinfo(np.int64).max))
    return xp.ascontiguousarray(target, dtype=np.int64)


def _counts(target: Array, classes: int, ignore_index: int) -> Array:
    """How many labels take part, in float64, and the bits of how many follow the first wrong one.

    That one is counted in; 0 where there is none.
    """
    counts = gpu.namespace.zeros(2, np.float64)
    if target.size:
        labels, place = _labels(target), gpu.pointer(counts)
        kernel = _of_labels("count_labels", labels.size, classes, ignore_index, gpu.current())
        kernel.launch(target=gpu.pointer(labels), used=place, wrong=place + 8)
    return counts


def _wrong(counts: Array) -> int:
    """The second of `_counts`, which this waits for."""
    return int(counts.view(np.int64)[1])


@_on_its_device
def check_labels(target: Array, classes: int, ignore_index: int) -> None:
    if _unchecked.get():
        return
    left = _wrong(_counts(target, classes, ignore_index))
    if not left:
        return
    index = tuple(int(i) for i in np.unravel_index(target.size - left, target.shape))
    place = f"target[{', '.join(map(str, index))}]" if index else "target"
    raise IndexError(
        f"{place} is {int(target[index])}: class labels must be in [0, {classes}), "
        f"or ignore_index={ignore_index}"
    )


def check_within(name: str, array: Array, lowest: float, highest: float) -> None:
    if _unchecked.get() or not array.size:
        return
    with gpu.on(array):
        if not bool((array.min() >= lowest) & (array.max() <= highest)):
            raise ValueError(f"{name} must be in [{lowest:g}, {highest:g}] and not NaN")


@_on_its_device
def sum_of_weights(target: Array, weight: Array | None, ignore_index: int) -> Any:
    """A float64 array without dimensions, which nothing has waited for."""
    if weight is None:
        # Exact, whatever the order.
        return _counts(target, 0, ignore_index)[:1].reshape(())
    weights = xp.empty(target.size, np.float64)
    if target.size:
        labels, factors = _labels(target), xp.ascontiguousarray(weight, dtype=np.float64)
        kernel = _of_labels("weigh_labels", labels.size, weight.size, ignore_index, gpu.current())
        kernel.launch(
            target=gpu.pointer(labels),
            class_weight=gpu.pointer(factors),
            weight=gpu.pointer(weights),
        )
    return sum(weights)


@_on_its_device
def sum(x: Array) -> Any:
    """A float64 array without dimensions, which nothing has waited for."""
    xp = gpu.namespace
    if not x.size:
        return xp.zeros((), np.float64)
    kernels, workspace = _of_sum(x.size, x.dtype, gpu.current())
    flat, result = xp.ascontiguousarray(x), xp.empty((), np.float64)
    place, partials = gpu.pointer(flat), xp.empty(workspace, np.uint8)
    kernels.launch(x=place, y=place, row_out=gpu.pointer(result), partials=gpu.pointer(partials))
    return result


def quotient(total: Any, divisor: Any, dtype: np.dtype[Any]) -> Any:
    """An array without dimensions, which nothing has waited for."""
    xp = gpu.namespace
    total = xp.asarray(total, dtype=np.float64)
    with gpu.on(total):
        if isinstance(divisor, int | float):
            divisor = gpu.constant(float(divisor))
        # A half precision is rounded once, from double.
        real = np.dtype(np.float64) if dtype.itemsize == 2 else dtype
        result = xp.empty((), real)
        _of_quotient(real, gpu.current()).launch(
            total=gpu.pointer(total), divisor=gpu.pointer(divisor), out=gpu.pointer(result)
        )
        return result.astype(dtype, copy=False)


def _elementwise(kernel: str, dtype: np.dtype[Any], n: int, **operands: Array | None) -> None:
    addresses = {name: 0 if a is None else gpu.pointer(a) for name, a in operands.items()}
    _of_elements(kernel, n, dtype, gpu.current()).launch(**addresses)


def _contiguous(array: Array | None, dtype: np.dtype[Any]) -> Array | None:
    return None if array is None else xp.ascontiguousarray(array, dtype=dtype)


def _flat_output(out: Array, *inputs: Array | None) -> Array:
    """A contiguous array of the shape of `out`: `out` itself where that is safe."""
    if out.flags.c_contiguous and _apart(out, *inputs):
        return out
    return xp.empty(out.shape, out.dtype)


def _map_elements(kernel: str, x: Array, out: Array) -> None:
    source = _contiguous(x, out.dtype)
    result = _flat_output(out, source)
    _elementwise(kernel, out.dtype, out.size, x=source, out=result)
    if result is not out:
        out[...] = result


@_on_its_device
def sigmoid(x: Array, out: Array) -> None:
    _map_elements("sigmoid", x, out)


@_on_its_device
def log_sigmoid(x: Array, out: Array) -> None:
    _map_elements("log_sigmoid", x, out)


@_on_its_device
def binary_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    pos_weight: Array | None,
    loss: Array | None,
    grad: Array | None,
    divisor: Any,
) -> Any:
    wanted = next((o.dtype for o in (loss, grad) if o is not None), None)
    if wanted is None:
        wanted = logits.dtype if logits.dtype.itemsize == 2 else None
        if wanted is None or logits.dtype.kind in "biu":
            wanted = np.result_type(logits.dtype, np.float32)
    x, y, w, v = (_contiguous(a, wanted) for a in (logits, target, weight, pos_weight))
    grads = None if grad is None else _flat_output(grad, x, y, w, v)
    direct = loss is not None and loss.dtype == _real(wanted) and loss.flags.c_contiguous
    losses = loss if direct else xp.empty(logits.shape, _real(wanted))
    _elementwise(
        "binary_cross_entropy",
        wanted,
        logits.size,
        x=x,
        y=y,
        weight=w,
        pos_weight=v,
        grad=grads,
        loss=losses,
        divisor=gpu.constant(float(divisor)),
    )
    if grad is not None and grads is not grad:
        grad[...] = grads
    if loss is None:
        return sum(losses)
    if losses is not loss:
        loss[...] = losses
    return 0.0


@_on_its_device
def _vjp(
    grad_output: Array,
    values: Array,
    axis: tuple[int, ...],
    temperature: Any,
    out: Array,
    operation: int,
) -> None:
    rows = _rows(values.shape, axis, out.dtype.itemsize)
    values = values.astype(out.dtype, copy=False)
    grad_output = grad_output.astype(out.dtype, copy=False)
    output = _Output(out, rows, values, grad_output)
    _run(
        operation,
        rows,
        rows.of(values),
        y=rows.of(grad_output),
        out=output.view,
        temperature=_temperatures(temperature, out),
    )
    output.finish()


def softmax_vjp(
    grad_output: Array,
    probabilities: Array,
    axis: tuple[int, ...],
    temperature: Any,
    out: Array,
) -> None:
    _vjp(grad_output, probabilities, axis, temperature, out, SOFTMAX_VJP)


def log_softmax_vjp(
    grad_output: Array,
    log_probabilities: Array,
    axis: tuple[int, ...],
    temperature: Any,
    out: Array,
) -> None:
    _vjp(grad_output, log_probabilities, axis, temperature, out, LOG_SOFTMAX_VJP)
