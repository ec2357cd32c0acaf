"""Every kernel compiles for every architecture, in registers, with the loads it promises.

NVRTC needs no device. First, that the gate can close: kernels that spill, and others.
"""

import itertools
import re
import types

import nvrtc
import pytest
from cuda_on_cpu import SAMPLES, TESTS

from pysoftmax.backends import _cuda
from pysoftmax.backends import _operations as operations
from pysoftmax.backends import cupy as backend

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

DTYPES = ("float32", "bfloat16", "float64", "float16")
KIND = {"ELEMENT_BITS", "BFLOAT16", "PYSOFTMAX_DOUBLE", "OPERATION", "GENERAL", "DENSE", "FAST"}
LOSSES = {operations.CROSS_ENTROPY, operations.CROSS_ENTROPY_WITH_GRAD}
ALWAYS_PLAIN = {operations.LOGSUMEXP, operations.DOT, operations.SUM}
# Bytes that may go through memory, each way counted. Thread blocks of 16 warps leave 128 registers
# to a thread, half of them for the tile of the row: something of what is done once per row goes
# through memory, more where a temperature or target weights of every class take part. Fewer warps
# would have room, but not take rows as long with one read. Wide columns have 64 registers, so that
# two thread blocks fit on a multiprocessor, and spill what is done once per row, too. Two chunks of
# halves are as many numbers as a block of a long row.
SPILLS = {
    ("short_rows", False): 128,
    ("long_rows", False): 256,
    ("long_rows", True): 1024,
    ("stream_write", False): 16,
    ("wide_columns", False): 256,
    ("wide_columns", True): 256,
}


def plans(itemsize):
    """The definitions of every regime -> the least architecture that has it."""
    unit, found = _cuda.units(itemsize), {}
    lengths = (*range(1, 2 * unit.chunk + 1), 16 * unit.block, 100 * unit.block, 1000 * unit.block)
    for architecture in (90, 80):
        device = _cuda.Device(architecture, multiprocessors=132)
        for n in lengths:
            for plan in (
                _cuda.plan_rows(itemsize, 10_000, n, device),
                _cuda.plan_columns(itemsize, 100, n, 1000),
                _cuda.plan_columns(itemsize, 100, unit.block, 1000),
            ):
                if plan is not None:
                    found[tuple(plan.defines.items())] = architecture
    return found


def every_instance():
    """(dtype, definitions, least architecture): all that the backend can ask for."""
    for dtype in DTYPES:
        size = {"float32": 4, "float64": 8}.get(dtype, 2)
        kinds = [
            {"OPERATION": operation, "GENERAL": general, "DENSE": dense}
            for operation in range(operations.SUM + 1)
            for general in ((0,) if operation in ALWAYS_PLAIN else (0, 1))
            for dense in ((0, 1) if operation in LOSSES else (0,))
        ]
        if size == 2:
            kinds += [{**kind, "FAST": 1} for kind in kinds]
        for regime, least in plans(size).items():
            for kind in kinds:
                yield dtype, {**_cuda.element_defines(dtype), **kind, **dict(regime)}, least
        yield dtype, {**_cuda.element_defines(dtype), "ELEMENTWISE": 1}, 80
        if dtype in ("float32", "float64"):
            yield dtype, _cuda.means_defines(dtype), 80


def sample():
    """An instance of every regime, in turn with dtypes, operations and architectures."""
    seen = set()
    places = itertools.cycle(nvrtc.ARCHITECTURES[::-1])
    instances = [*every_instance()]
    for i in range(len(instances)):
        # Steps that share no factor with how the list repeats.
        dtype, defines, least = instances[i * 389 % len(instances)]
        regime = tuple((k, v) for k, v in defines.items() if k not in KIND)
        if regime not in seen:
            seen.add(regime)
            arch = next(places)
            yield (arch if int(arch[3:]) >= least else "sm_90"), dtype, defines


def compiled(arch, defines):
    options = (*nvrtc.OPTIONS, *(f"-I{folder}" for folder in _cuda.FOLDERS))
    macros = tuple(f"{k}={v}" for k, v in defines.items())
    return nvrtc.compiled.__wrapped__(KERNELS, arch, macros, options)


def assert_in_registers_and_wide(arch, defines):
    module = compiled(arch, defines)
    # Two approximations are asked for.
    assert ".ftz" not in re.sub(r"rcp.approx.ftz.f64|ex2.approx.ftz.f32", "", module.ptx)
    for name, kernel in module.kernels.items():
        case = f"{name}, {arch}, {name_of(defines)}"
        allowed = SPILLS.get((name, bool(defines.get("DENSE"))), 0)
        assert kernel.spills <= allowed, f"{case}: {kernel.spills} bytes spilled"
        assert kernel.stack <= allowed, f"{case}: an array in memory"
        if name.endswith("_rows") or name in ("stream_sum", "stream_write"):
            assert kernel.wide("ld") > 0, f"{case}: no loads of 16 bytes"


def name_of(value):
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items())
    return value


@pytest.mark.parametrize(("arch", "dtype", "defines"), [*sample()], ids=name_of)
def test_a_sample_stays_in_registers_and_reads_16_bytes_at_a_time(arch, dtype, defines):
    assert_in_registers_and_wide(arch, defines)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_compile_for_devices_before_those(dtype):
    """Compute capability 7.5; nothing is promised of registers there."""
    defines = next(defines for of, defines, _ in every_instance() if of == dtype)
    assert compiled("sm_75", defines).kernels


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instance_stays_in_registers_and_reads_16_bytes_at_a_time(arch, dtype):
    wrong = []
    for of, defines, least in every_instance():
        if of == dtype and int(arch.removeprefix("sm_")) >= least:
            try:
                assert_in_registers_and_wide(arch, defines)
            except AssertionError as error:
                wrong.append(str(error).splitlines()[0])
    assert not wrong, "\n".join(wrong)


# --- as the backend compiles --------------------------------------------------------------------

DEFINES = {**_cuda.element_defines("float16"), "OPERATION": 0, "GENERAL": 0, "DENSE": 0}
DEFINES |= {"SHORT_ROWS": 1, "WIDTH": 1, "LANE_ROWS": 1}


@pytest.fixture
def gpu(_compiler, monkeypatch, tmp_path):
    """What the backend asks of CuPy, with a device that there need not be."""
    import cupy
    from cupy.cuda import compiler

    def architecture(arch=None):
        return f"-arch=sm_{arch}", "cubin"

    # It asks for the device even if it is told the architecture.
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", architecture)
    device = types.SimpleNamespace(compute_capability="90")
    gpu = backend.Gpu()
    gpu.__dict__["namespace"] = types.SimpleNamespace(
        cuda=types.SimpleNamespace(Device=lambda: device), _core=cupy._core
    )
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "not there yet"))
    return gpu


def test_a_module_is_compiled_once_and_found_on_disk(gpu, monkeypatch):
    from cupy.cuda import compiler

    first = gpu._compiled(tuple(DEFINES.items()))
    assert first.read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setattr(compiler, "compile_using_nvrtc", lambda *a, **o: pytest.fail("again"))
    assert gpu._compiled(tuple(DEFINES.items())) == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_what_a_module_depends_on_is_in_its_name(gpu, monkeypatch):
    from cupy.cuda import compiler

    monkeypatch.setattr(compiler, "compile_using_nvrtc", lambda *a, **o: (b"", None))
    names = {gpu._compiled(tuple(DEFINES.items()))}
    names.add(gpu._compiled(tuple({**DEFINES, "WIDTH": 2}.items())))
    gpu.namespace.cuda.Device().compute_capability = "100"
    names.add(gpu._compiled(tuple(DEFINES.items())))
    monkeypatch.setattr(_cuda, "source", lambda: "another")
    names.add(gpu._compiled(tuple(DEFINES.items())))
    assert len(names) == 4


def test_without_a_compiler_or_its_headers_the_error_says_what_brings_them(gpu, monkeypatch):
    from cupy.cuda import nvrtc as cupy_nvrtc

    monkeypatch.setattr(gpu.namespace._core.core, "assemble_cupy_compiler_options", tuple)
    with pytest.raises(RuntimeError, match=r"(?s)capability 90.*\[cuda13\].*cuda_fp16\.h"):
        gpu._compiled(tuple(DEFINES.items()))

    def absent():
        raise RuntimeError("cannot load libnvrtc.so")

    monkeypatch.setattr(cupy_nvrtc, "getVersion", absent)
    with pytest.raises(ImportError, match=r"no NVRTC.*pip install 'pysoftmax\[cuda13\]'"):
        gpu._compiled(tuple(DEFINES.items()))
