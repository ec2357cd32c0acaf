"""``pysoftmax bench --device cuda``: the whole race, with the harness and a CPU for the GPU."""

import pathlib
import types

import cuda_on_cpu
import numpy as np
import on_device
import pytest
from cases import TESTS, parts, python

import pysoftmax as ps
from pysoftmax import cli
from pysoftmax.bench import cuda, measure
from pysoftmax.bench.cases import CUDA_DTYPES, CUDA_LENGTHS, Case, choose
from pysoftmax.bench.results import Results

ROOT = pathlib.Path(TESTS).parent
HARNESS = on_device.HarnessArrays()


class NothingToDo:
    """A kernel that does nothing."""

    def __init__(self, source, name):
        assert name in source

    def __call__(self, grid, block, arguments):
        assert grid == block == (1,)


class Device:
    waited = 0

    def synchronize(self):
        Device.waited += 1


def fake_cupy():
    """As much of CuPy as the race asks of it."""
    runtime = types.SimpleNamespace(
        getDevice=lambda: 0, getDeviceProperties=lambda number: {"name": b"NVIDIA Pretender"}
    )
    return types.SimpleNamespace(
        __version__="14.0",
        asarray=HARNESS.asarray,
        asnumpy=HARNESS.asnumpy,
        empty_like=np.empty_like,
        copyto=np.copyto,
        is_available=lambda: True,
        RawKernel=NothingToDo,
        cuda=types.SimpleNamespace(Device=Device, runtime=runtime),
    )


@pytest.fixture
def race(monkeypatch, capfd):
    """Run the command, just long enough to have been run; its status, output and error."""
    found = {"cupy": fake_cupy(), "cupyx.scipy.special": pytest.importorskip("scipy.special")}
    real = cuda.import_module

    def imported(name):
        return found[name] if name in found else real(name)

    monkeypatch.setattr(cuda, "import_module", imported)
    monkeypatch.setattr("pysoftmax.bench.peers.import_module", imported)
    monkeypatch.setattr(cuda, "find_spec", lambda name: True)
    monkeypatch.setattr(cuda.Torch, "device", "cpu")
    monkeypatch.setattr(measure, "QUICK_PACE", (1, 0))

    def run(*args):
        with on_device.harness():
            status = cli.main(["bench", "--device", "cuda", "--quick", *map(str, args)])
        return status, *capfd.readouterr()

    return run


SMALL = ("--functions", "softmax", "--dtypes", "float32", "--shapes", "3x10")


@cuda_on_cpu.needs_compiler()
def test_the_report_holds_bandwidths_against_the_copy(race):
    before = Device.waited
    status, out, err = race(*SMALL, "--peers", "cupyx")
    assert (status, err) == (0, "")
    for words in [
        *("NVIDIA Pretender", "softmax float32 3x10 axis -1\n", "of copy", "GB/s", "us"),
        *("pysoftmax     reused", "pysoftmax  allocated", "CuPy ", "copy  ", "launch  "),
        "geometric mean",
    ]:
        assert words in out
    assert "x limit" not in out
    assert Device.waited > before + 5  # no turn ends before the device has


@cuda_on_cpu.needs_compiler()
def test_json_names_the_device_and_everybody(race):
    status, out, _ = race(*SMALL, "--json", "-", "--peers", "cupyx,torch")
    assert status == 0
    results = Results.from_json(out)
    assert results.gpu == "NVIDIA Pretender"
    assert {"pysoftmax", "cupyx", "copy", "launch"} <= set(results.peers)
    assert results.peers["cupyx"]["version"] == results.peers["copy"]["version"] == "14.0"
    (raced,) = results.races
    copy, ours = raced.of("copy"), raced.ours
    assert ours.gigabytes_per_second * ours.ns * 30 == pytest.approx(2 * 120, rel=1e-2)
    assert raced.of_copy(copy) == 1
    assert raced.of_copy(ours) == ours.gigabytes_per_second / copy.gigabytes_per_second
    assert set(raced.ratios()) <= {"cupyx", "torch"}


@cuda_on_cpu.needs_compiler()
def test_labels_are_not_waited_for(race, monkeypatch):
    unchecked, backend = [], on_device.backend

    def noting(function):
        def call(*arguments):
            unchecked.append(backend._unchecked.get())
            return function(*arguments)

        return call

    for name in ("check_labels", "short_cross_entropy"):
        monkeypatch.setattr(backend, name, noting(getattr(backend, name)))
    arguments = ("--dtypes", "float32", "--shapes", "3x10", "--peers", "cupyx")
    assert race("--functions", "cross_entropy", *arguments)[0] == 0
    assert unchecked
    assert all(unchecked)


def test_the_usual_cases_are_what_no_cache_holds():
    chosen = choose(device="cuda")
    assert {case.dtype for case in chosen} == set(CUDA_DTYPES)
    assert {"softmax", "cross_entropy_with_grad"} <= {case.function for case in chosen}
    last = {case.shape[-1] for case in chosen if case.axis == -1}
    assert last == {10, *CUDA_LENGTHS}
    assert (min(CUDA_LENGTHS), max(CUDA_LENGTHS)) == (64, 262_144)
    for case in chosen:
        if case.shape != (1, 10):
            size = {"float32": 4, "float64": 8}.get(case.dtype, 2)
            assert np.prod(case.shape) * size == 2**28
    assert {case.axis for case in chosen} == {-1, 1}
    assert set(choose(device="cuda", quick=True)) <= set(chosen)


def test_logits_of_large_arrays_are_made_of_fewer(monkeypatch):
    monkeypatch.setattr("pysoftmax.bench.cases._DISTINCT", 30)
    x = Case("softmax", "float32", (7, 10), -1).arguments()[0]
    assert x.shape == (7, 10)
    np.testing.assert_array_equal(x[3:6], x[:3])


# --- peers --------------------------------------------------------------------------------------


@pytest.fixture
def torch_on_cpu(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(cuda.Torch, "device", "cpu")
    monkeypatch.setattr(cuda.Compiled, "backend", "eager")


@pytest.mark.parametrize(
    ("peer", "function", "dtype"),
    [
        (cuda.Torch, "softmax", "bfloat16"),
        (cuda.Torch, "cross_entropy_with_grad", "bfloat16"),
        (cuda.Compiled, "cross_entropy_with_grad", "float32"),
    ],
)
def test_torch_computes_what_pysoftmax_does(torch_on_cpu, peer, function, dtype):
    pytest.importorskip("ml_dtypes")
    arguments = Case(function, dtype, (3, 40), -1).arguments()
    expected = parts(getattr(ps, function)(*arguments))
    peer = peer(1)
    for call in peer.calls(function, arguments).values():
        call()
        for actual, wanted in zip(parts(peer.asnumpy(call())), expected, strict=True):
            rtol, atol = (1e-5, 1e-7) if dtype == "float32" else (2**-6, 2**-8)
            np.testing.assert_allclose(actual, wanted.astype(float), rtol, atol)


TRITON = """
import numpy as np, pysoftmax as ps
from cases import parts
from pysoftmax.bench import cuda, triton_kernels
from pysoftmax.bench.cases import Case

cuda.Torch.device = "cpu"
peer = cuda.Triton(1)
for kept in (256, 64):  # whole rows, and rows that are read twice
    triton_kernels.MOST = kept
    for function in ("softmax", "log_softmax", "cross_entropy_with_grad"):
        arguments = Case(function, "float32", (2, 200), -1).arguments()
        calls = peer.calls(function, arguments)
        assert set(calls) == {"reused", "allocated"}
        for call in calls.values():
            expected = parts(getattr(ps, function)(*arguments))
            for a, e in zip(parts(peer.asnumpy(call())), expected, strict=True):
                np.testing.assert_allclose(a, e, 1e-5, 1e-6)
print(peer.calls("logsumexp", arguments), "right")
"""


def test_triton_computes_what_pysoftmax_does():
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="needs triton, which comes with torch for Linux")
    assert python("-c", TRITON, TRITON_INTERPRET="1").split() == ["{}", "right"]


# --- without ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "words"),
    [(False, "needs CuPy: pip install 'pysoftmax[cuda13]'"), (True, "finds no CUDA device")],
)
def test_without_a_device_the_race_ends_in_a_line(monkeypatch, capfd, installed, words):
    monkeypatch.setattr(cuda, "find_spec", lambda name: installed)
    nowhere = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setattr(cuda, "import_module", lambda name: nowhere)
    monkeypatch.setattr(measure, "run", lambda *args, **options: pytest.fail("the race began"))
    assert cli.main(["bench", "--device", "cuda"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--dtypes", "bfloat16"], "--device cpu takes float32, float64, got bfloat16"),
        (["--peers", "cupyx"], "--device cpu takes numpy, "),
    ],
)
def test_what_only_a_gpu_takes(capfd, args, words):
    assert cli.main(["bench", *args]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_asv_skips_cupy_without_a_device():
    code = """
from benchmarks import common, times
print(times.softmax.params[0])
try:
    common.call_of(times.softmax.function, "cupy", "float32", (4, 10))()
except NotImplementedError as reason:
    print("skipped:", reason)
else:
    print("timed")
"""
    backends, outcome = python("-c", code, PYTHONPATH=str(ROOT / "asv_bench")).splitlines()
    assert backends == "['numpy', 'cupy']"
    here = on_device.is_there() and not on_device.without_gpu
    assert (outcome == "timed") if here else outcome.startswith("skipped: ")
