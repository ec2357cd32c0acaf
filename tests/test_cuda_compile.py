"""Every kernel compiles for every architecture, in registers, with the loads it promises.

NVRTC needs no device. First, that the gate can close: kernels that spill, and others.
"""

import nvrtc
import pytest
from cuda_on_cpu import SAMPLES

pytestmark = pytest.mark.usefixtures("_compiler")

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
