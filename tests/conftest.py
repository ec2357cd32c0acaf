"""Fixtures: array libraries, dtypes and layouts."""

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases
import on_device

import pysoftmax as ps
from pysoftmax.backends import _cpu as cpu
from pysoftmax.backends import numpy as numpy_backend

for compiled in pathlib.Path(ps.__file__).parent.glob("_*.so"):
    source = compiled.with_name(compiled.name.split(".")[0] + ".py")
    if source.stat().st_mtime > compiled.stat().st_mtime:
        pytest.exit(f"{source} is newer than what was compiled of it: make test compiles it", 4)

# Pictures need no screen.
os.environ.setdefault("MPLBACKEND", "agg")


@dataclasses.dataclass(frozen=True)
class Backend:
    """An array library under test: a result must be of its type and on its device."""

    name: str
    xp: Any
    array_type: type
    asarray: Callable  # NumPy array -> array of this library
    asnumpy: Callable  # and back, with its dtype, and without a copy
    # The gradient of a function of one array that gives a scalar, for libraries that have one.
    gradient: Callable | None = None
    device: str = "CPU"
    # float64 arrays can be made, and what is lazy is computed in this thread, within.
    context: Callable = contextlib.nullcontext
    # What the TypeError for out= says, where arrays cannot be written to.
    refuses_out: str = ""


def _numpy():
    return Backend("numpy", np, np.ndarray, np.asarray, np.asarray)


def _masked():
    return Backend("numpy.ma", np.ma, np.ma.MaskedArray, np.ma.array, np.asarray)


def _torch():
    torch = pytest.importorskip("torch")

    def asarray(a):
        if a.dtype == cases.BFLOAT16:
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(a)

    def asnumpy(t):
        if t.dtype == torch.bfloat16:
            return t.view(torch.int16).numpy().view(cases.BFLOAT16)
        return t.numpy()

    def gradient(f, x):
        leaf = x.clone().requires_grad_()
        f(leaf).backward()
        return leaf.grad

    return Backend("torch", torch, torch.Tensor, asarray, asnumpy, gradient)


def _jax():
    jax = pytest.importorskip("jax")
    array_type = type(jax.numpy.zeros(1))

    def gradient(f, x):
        return jax.jit(jax.grad(f))(x)

    return Backend(
        "jax",
        jax.numpy,
        array_type,
        jax.numpy.asarray,
        np.asarray,
        gradient,
        context=lambda: jax.enable_x64(True),
        refuses_out="JAX's arrays cannot be written to",
    )


def _array_api():
    strict = pytest.importorskip("array_api_strict")
    array_type = type(strict.asarray(0.0))
    return Backend("array_api_strict", strict, array_type, strict.asarray, np.from_dlpack)


def _xarray():
    xarray = pytest.importorskip("xarray")
    return Backend("xarray", xarray, xarray.DataArray, xarray.DataArray, lambda a: a.to_numpy())


def _dask():
    dask, da = pytest.importorskip("dask"), pytest.importorskip("dask.array")

    def asarray(a):
        return da.from_array(a, chunks=(2, *a.shape[1:])[: a.ndim])

    return Backend(
        "dask",
        da,
        da.Array,
        asarray,
        np.asarray,
        context=lambda: dask.config.set(scheduler="synchronous"),
        refuses_out="a lazy array cannot be written to",
    )


def of_cupy(arrays):
    """CuPy's backend over its arrays, or over what stands for them."""
    context = contextlib.nullcontext if arrays.on_gpu else on_device.harness
    return Backend(
        "cupy",
        arrays.xp,
        arrays.array_type,
        arrays.asarray,
        arrays.asnumpy,
        device="CUDA",
        context=context,
    )


# One entry adds a library to every test that asks for ``backend``. Its function may call
# pytest.importorskip.
BACKENDS = {
    "numpy": _numpy,
    "numpy.ma": _masked,
    "torch": _torch,
    "jax": _jax,
    "array_api_strict": _array_api,
    "xarray": _xarray,
    "dask": _dask,
    "cupy": lambda: of_cupy(on_device.arrays()),
}

# The kernels of these backends are run at every length; all others compute with NumPy's.
WITH_KERNELS = {"numpy", "cupy"}
LENGTHS_OF_OTHERS = {1, 17, 2049}


@pytest.fixture(autouse=True)
def _single_precision_in_jax():
    """A race switches JAX to double precision, for all that follows in the process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)


@pytest.fixture(params=BACKENDS)
def backend(request):
    library = BACKENDS[request.param]()
    with library.context():
        yield library


# All that the NumPy backend computes in the tests of these modules CuPy's computes too.
SUITE = {
    *("test_semantics", "test_losses", "test_vjp"),
    *("test_accuracy", "test_properties", "test_reproducibility"),
}


def pytest_addoption(parser):
    parser.addoption(
        "--cuda-on-cpu",
        action="store_true",
        help="run CuPy's tests without a GPU, by the CUDA-on-CPU harness; takes hours",
    )


def pytest_configure(config):
    on_device.without_gpu = config.getoption("--cuda-on-cpu")


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__ in SUITE and "backend" not in metafunc.fixturenames:
        metafunc.parametrize("kernels", ["numpy", "cupy"], indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def kernels(request):
    """Whose compute what the test asks of NumPy's backend."""
    if getattr(request, "param", "numpy") == "numpy":
        yield
        return
    library = BACKENDS["cupy"]()
    with library.context(), on_device.kernels_of_cupy(on_device.arrays()):
        yield


@pytest.fixture(params=cases.FLOATS)
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    if request.param == "float16":
        return np.dtype("float16")
    if cases.BFLOAT16 is None:
        pytest.skip("bfloat16 needs ml_dtypes")
    return cases.BFLOAT16


@pytest.fixture(params=cases.LAYOUTS)
def layout(request):
    """The name of a layout; ``cases.LAYOUTS[layout](a)`` makes the array."""
    return request.param


def _repeats_numpy(item):
    """Whether a test of a library that computes with NumPy's kernels is one length of many."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    others = parameters.get("backend", "numpy") not in WITH_KERNELS
    return others and parameters.get("n", 1) not in LENGTHS_OF_OTHERS


def _tells_nothing_more(items):
    """Of the tests that need a GPU, where there is none, all but the first of each function."""
    seen = set()
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        on_gpu = item.module.__name__ == "test_cuda_device"
        if on_gpu or "cupy" in (parameters.get("backend"), parameters.get("kernels")):
            if item.function in seen:
                yield item
            seen.add(item.function)


def pytest_collection_modifyitems(config, items):
    """No RuntimeWarning escapes from a kernel: everywhere, it is an error."""
    left_out = {item for item in items if _repeats_numpy(item)}
    skipped_alike = [*_tells_nothing_more(items)]
    if skipped_alike and not on_device.is_there():
        left_out.update(skipped_alike)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error::RuntimeWarning"))


@pytest.fixture(params=cpu.available_targets())
def any_target(request):
    """Each CPU target that this build and this CPU have, for functions of the door itself."""
    cpu.use_target(request.param)
    yield
    cpu.use_target(numpy_backend.target)
