"""Every kernel compiles for every architecture, in registers, with the loads it promises.

NVRTC needs no device. First, that the gate can close: kernels that spill, and others.
"""

import dataclasses
import itertools

import nvrtc
import pytest
from cuda_on_cpu import SAMPLES, TESTS

from pysoftmax.backends import _cuda
from pysoftmax.backends import _operations as operations

pytestmark = pytest.mark.usefixtures("_compiler")

KERNELS = TESTS.parent / "src" / "cuda" / "kernels.cu"
SUMS, REGISTERS = SAMPLES / "sums.cu", SAMPLES / "registers.cu"


@pytest.fixture
def _compiler():
    nvrtc.available()


@pytest.fixture(params=nvrtc.ARCHITECTURES)
def arch(request):
    return request.param


def test_resources_and_wide_loads_are_read(arch):
    compiled = nvrtc.compiled(SUMS, arch)
    assert compiled.warnings == []
    assert compiled.cubin[:4] == b"\x7fELF"
    cluster = {"sum_cluster"} if arch != "sm_80" else set()
    assert compiled.kernels.keys() == {"sum_f32", "sum_f64", "sum_vectors", "reverse"} | cluster
    for name, kernel in compiled.kernels.items():
        assert (kernel.spills, kernel.stack) == (0, 0), name
        assert 8 <= kernel.registers <= 64, name
        assert (kernel.wide("ld") > 0) == (name == "sum_vectors"), name
        assert kernel.wide("st") == 0
    assert compiled.kernels["sum_f32"].shared >= 32 * 4
    assert compiled.kernels["sum_f64"].shared >= 32 * 8


def test_spills_and_local_memory_are_noticed(arch):
    kernels = nvrtc.compiled(REGISTERS, arch).kernels
    assert kernels["spills"].spills > 0
    assert kernels["spills"].registers <= 64  # of 65536 for 1024 threads
    assert kernels["local_array"].spills == 0
    assert kernels["local_array"].stack >= 64 * 4
    assert (kernels["rounding"].spills, kernels["rounding"].stack) == (0, 0)


def test_operations_stay_as_they_are_written(arch):
    ptx = nvrtc.compiled(REGISTERS, arch).kernels["rounding"].ptx
    assert ptx.count("fma.rn.f32") == 1  # the intrinsic
    assert ptx.count("mul.rn.f32") == ptx.count("add.rn.f32") == 1
    assert ".ftz" not in ptx


def test_other_options_are_noticed(arch):
    loose = nvrtc.compiled(REGISTERS, arch, options=("-ftz=true",))
    assert loose.kernels["rounding"].ptx.count("fma.rn.ftz.f32") == 2


def test_the_last_of_two_options_counts_and_is_warned_of(arch):
    """CuPy's RawModule appends -ftz=true to the options it is given."""
    twice = nvrtc.compiled(REGISTERS, arch, options=(*nvrtc.OPTIONS, "-ftz=true"))
    assert "fma.rn.ftz.f32" in twice.kernels["rounding"].ptx
    assert any("ftz" in warning for warning in twice.warnings)


def test_clusters_need_a_guard():
    assert "sum_cluster" not in nvrtc.compiled(SUMS, "sm_80").kernels
    assert "mapa" in nvrtc.compiled(SUMS, "sm_90").kernels["sum_cluster"].ptx
    with pytest.raises(nvrtc.CompileError, match=r"sums.cu for sm_80(.|\n)*cluster"):
        nvrtc.compiled(SUMS, "sm_80", ("CLUSTERS_ANYWHERE",))


def test_an_error_holds_the_log(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text('extern "C" __global__ void k(unknown *x) {}')
    with pytest.raises(nvrtc.CompileError, match='identifier "unknown" is undefined'):
        nvrtc.compiled(source, "sm_90")


# --- the kernels --------------------------------------------------------------------------------

DEVICE = _cuda.Device(architecture=90, multiprocessors=132)
# Thread blocks of 16 warps leave 128 registers to a thread: a few values of what follows the sums
# once per row go through memory there.
SPILLS = {"long_rows": 128}


def instances():
    """(architecture, dtype, definitions): every kernel, in turn with everything else."""
    turns = itertools.cycle(
        itertools.product(
            ("float32", "bfloat16", "float64", "float16"),
            (
                operations.SOFTMAX,
                operations.CROSS_ENTROPY_WITH_GRAD,
                operations.LOG_SOFTMAX,
                operations.SOFTMAX_VJP,
            ),
        )
    )
    places = itertools.cycle(nvrtc.ARCHITECTURES)
    for rows in (3, 60, 500, 2000, 100_000, 1_000_000):
        for general in (0, 1):
            dtype, operation = next(turns)
            size = {"float32": 4, "float64": 8}.get(dtype, 2)
            arch = next(places)
            device = dataclasses.replace(DEVICE, architecture=int(arch.removeprefix("sm_")))
            for plan in (
                _cuda.plan_rows(size, 10_000, rows, device),
                _cuda.plan_columns(size, 100, rows, 1000),
            ):
                if plan is not None:
                    other = {"OPERATION": operation, "GENERAL": general, "DENSE": 0}
                    yield arch, dtype, {**_cuda.element_defines(dtype), **other, **plan.defines}


def name_of(value):
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items() if k not in ("BFLOAT16", "DENSE"))
    return value


@pytest.mark.parametrize(("arch", "dtype", "defines"), [*instances()], ids=name_of)
def test_kernels_stay_in_registers_and_read_16_bytes_at_a_time(arch, dtype, defines):
    options = (*nvrtc.OPTIONS, *(f"-I{folder}" for folder in _cuda.FOLDERS))
    macros = tuple(f"{k}={v}" for k, v in defines.items())
    compiled = nvrtc.compiled(KERNELS, arch, macros, options)
    assert ".ftz" not in compiled.ptx.replace("rcp.approx.ftz.f64", "")
    for name, kernel in compiled.kernels.items():
        assert kernel.spills <= SPILLS.get(name, 0), name
        if name.endswith("_rows") or name in ("stream_sum", "stream_write"):
            assert kernel.wide("ld") > 0, name
