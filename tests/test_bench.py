"""``pysoftmax bench``: a fair race, an honest report, and pictures that are there."""

import functools
import importlib.util
import itertools
import json
import os
import pathlib
import struct

import numpy as np
import pytest
from cases import TESTS, parts, python, targets
from test_contract import NUMERICAL

import pysoftmax as ps
from pysoftmax import cli
from pysoftmax.bench import loops, measure, report
from pysoftmax.bench.cases import DTYPES, FUNCTIONS, USUAL_SHAPES, Case, choose
from pysoftmax.bench.peers import ALLOCATED, LIMITS, NO_OUTPUT, PEERS, REUSED, Peer, Pysoftmax
from pysoftmax.bench.results import Quartiles, Race, Results, Timing

ROOT = pathlib.Path(TESTS).parent
ALL = {Pysoftmax.name: Pysoftmax} | PEERS
RACED = [
    (name, function)
    for name in ALL
    for function in FUNCTIONS
    if name in ("pysoftmax", "numpy") or hasattr(ALL[name], function)
]
PLACES = [((7, 10), -1), ((64, 100), 1), ((5, 33), 0), ((3, 4, 6), 1), ((12,), 0)]


@functools.cache
def _loaded(name, threads):
    return (ALL | LIMITS)[name](threads)


def loaded(name, threads=1):
    """A peer; the test is skipped if its library is not installed."""
    try:
        peer = _loaded(name, threads)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    if name == "jax":  # as it was when it was loaded
        peer.xp.config.update("jax_enable_x64", True)
    return peer


@pytest.fixture
def bench(monkeypatch, capfd):
    """Run the command, just long enough to have been run; its status, output and error."""
    monkeypatch.setattr(measure, "USUAL_PACE", (2, 0))
    monkeypatch.setattr(measure, "QUICK_PACE", (1, 0))

    def run(*args):
        status = cli.main(["bench", *map(str, args)])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def no_race(monkeypatch):
    """Fail if the race begins."""
    monkeypatch.setattr(measure, "run", lambda *args, **options: pytest.fail("the race began"))


SMALL = ["--functions", "softmax,sigmoid", "--shapes", "8x10", "--peers", "numpy"]


# -- a fair race -----------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), PLACES)
@pytest.mark.parametrize(("name", "function"), RACED)
def test_every_peer_computes_what_pysoftmax_does(name, function, dtype, shape, axis):
    peer = loaded(name)
    arguments = Case(function, dtype.name, shape, axis).arguments()
    expected = parts(getattr(ps, function)(*arguments))
    rtol, atol = (1e-4, 1e-6) if dtype == np.float32 else (1e-9, 1e-14)
    calls = peer.calls(function, arguments)
    assert ALLOCATED in calls
    for call in calls.values():
        call()
        actual = parts(peer.asnumpy(call()))
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol, atol, strict=True)


@pytest.mark.parametrize(("name", "function"), RACED)
def test_a_reused_output_is_the_same_one_in_every_call(name, function):
    arguments = Case(function, "float32", (4, 10), -1).arguments()
    for output, call in loaded(name).calls(function, arguments).items():
        first, second = call(), call()
        first, second = (r[-1] if isinstance(r, tuple) else r for r in (first, second))
        assert (first is second) == (output == REUSED), output


def test_numpy_torch_and_jax_have_every_function():
    assert {(n, f) for n in ("numpy", "torch", "jax") for f in FUNCTIONS} <= set(RACED)


def test_every_numerical_function_can_be_raced():
    assert sorted(FUNCTIONS) == sorted(NUMERICAL)


@pytest.mark.parametrize("threads", [1, 2])
def test_more_threads_compute_the_same(threads):
    arguments = Case("softmax", "float32", (64, 1000), -1).arguments()
    for name in ("torch", "onnxruntime", "numba"):
        peer = loaded(name, threads)
        for call in peer.calls("softmax", arguments).values():
            actual = peer.asnumpy(call())
            np.testing.assert_allclose(actual, ps.softmax(arguments[0]), 1e-4, 1e-6)


# -- the limits ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("columns", [10, 1_000_003])
def test_the_copy_copies(threads, columns):
    arguments = Case("softmax", "float32", (1, columns), -1).arguments()
    copy = loaded("copy", threads)
    call = copy.calls("softmax", arguments)[REUSED]
    call()
    assert copy.bytes_moved(arguments, None) == 8 * columns
    assert copy.elements(arguments[0]) == columns


def test_exp_and_sum_sums_exponentials(dtype):
    numba = loaded("exp+sum").xp
    tile = np.random.default_rng(0).normal(0, 3, (2, 100)).astype(dtype)
    exact = np.exp(tile.astype(np.longdouble)).sum(axis=1)
    kernel = loops.exp_and_sum(numba, dtype)
    rtol = 32 * np.finfo(dtype).eps
    for sweeps, expected in [(1, exact[0]), (2, exact.sum()), (3, exact.sum() + exact[0])]:
        np.testing.assert_allclose(kernel(tile, sweeps), float(expected), rtol)


@pytest.mark.parametrize("threads", [1, 2])
def test_exp_and_sum_counts_what_all_threads_would_do(threads, dtype):
    limit = loaded("exp+sum", threads)
    x = np.zeros(10, dtype)
    (call,) = limit.calls("softmax", (x, -1)).values()
    tile, sweeps = call.args
    assert limit.elements(x) == tile[0].size * sweeps * threads


# -- taking turns ----------------------------------------------------------------------------


def test_all_take_turns_and_every_other_round_is_reversed():
    now, order = itertools.count(), []
    measure.race(
        {name: functools.partial(order.append, name) for name in "abc"},
        rounds=3,
        seconds=0,
        clock=lambda: next(now),
    )
    warm_up, rounds = order[: 2 * 3], order[2 * 3 :]
    assert "".join(warm_up) == "aabbcc"
    assert "".join(rounds) == "aabbcc" + "ccbbaa" + "aabbcc"


def test_times_are_seconds_of_a_call_and_short_calls_are_repeated():
    now = 0.0
    calls = {"slow": 0, "fast": 0}

    def work(name, seconds):
        nonlocal now
        now += seconds
        calls[name] += 1

    times = measure.race(
        {"slow": lambda: work("slow", 4.0), "fast": lambda: work("fast", 0.25)},
        rounds=2,
        seconds=1.0,
        clock=lambda: now,
    )
    assert times == {"slow": [4.0, 4.0], "fast": [0.25, 0.25]}
    assert calls["slow"] == (1 + 1) + 2 * (1 + 1)
    assert calls["fast"] == (1 + 1 + 2 + 4) + 2 * (1 + 4)


@pytest.mark.parametrize(("threads", "waits"), [(1, False), (2, True)])
def test_threads_of_the_one_before_have_time_to_fall_asleep(monkeypatch, threads, waits):
    pauses = []
    monkeypatch.setattr(measure, "sleep", pauses.append)
    cases = choose(["softmax"], ["float32"], [(4, 5)])
    results = measure.run(cases, ["numpy"], threads=threads, rounds=3, seconds=0)
    assert len(pauses) == (1 + 3) * len(results.races[0].timings)
    assert all((pause > 0) == waits for pause in pauses)


# -- cases -----------------------------------------------------------------------------------


def test_the_usual_cases_cover_short_and_long_rows_and_other_axes():
    chosen = choose()
    assert {case.dtype for case in chosen} == set(DTYPES)
    assert {(case.shape, case.axis) for case in chosen} == set(USUAL_SHAPES)
    assert len(chosen) == len(set(chosen))
    assert set(choose(quick=True)) <= {*choose(), *choose(shapes=[(100, 1024)], axes=[0])}


def test_an_elementwise_function_is_raced_once_whatever_the_axes():
    assert choose(["sigmoid"], ["float32"], [(4, 5)], [0, 1]) == [
        Case("sigmoid", "float32", (4, 5), None)
    ]


# -- results ---------------------------------------------------------------------------------


def timing(peer, output, ns):
    return Timing(peer, output, Quartiles(0.9 * ns, ns, 1.2 * ns), 8 / ns)


def a_race(*timings, function="softmax"):
    return Race(Case(function, "float32", (8, 10), -1), list(timings))


def test_a_ratio_compares_outputs_of_the_same_kind():
    race = a_race(
        timing("pysoftmax", REUSED, 2.0),
        timing("pysoftmax", ALLOCATED, 4.0),
        timing("torch", REUSED, 3.0),
        timing("torch", ALLOCATED, 5.0),
        timing("scipy", ALLOCATED, 6.0),
        timing("copy", REUSED, 1.0),
    )
    assert [race.ratio(t) for t in race.timings] == [1.0, 1.0, 1.5, 1.25, 1.5, 0.5]
    assert race.ratios() == {"torch": 1.5, "scipy": 1.5}


@pytest.mark.parametrize(
    ("function", "copy", "exp_sum", "limit"),
    [
        ("softmax", 1.0, 3.0, 3.0),
        ("softmax", 3.0, 1.0, 3.0),
        ("softmax", 3.0, None, None),
        ("logsumexp", None, 1.0, 1.0),
        ("softmax_vjp", 3.0, None, 3.0),
    ],
)
def test_the_limit_is_the_larger_of_those_that_apply(function, copy, exp_sum, limit):
    timings = [timing("pysoftmax", REUSED, 6.0)]
    timings += [timing("copy", REUSED, copy)] if copy else []
    timings += [timing("exp+sum", NO_OUTPUT, exp_sum)] if exp_sum else []
    assert a_race(*timings, function=function).limit == limit


def test_quartiles_and_spread():
    quartiles = Quartiles.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert quartiles == Quartiles(2.0, 3.0, 4.0)
    assert quartiles.spread == pytest.approx(2 / 3)


def test_results_survive_json():
    results = measure.run(choose(["softmax"], shapes=[(4, 5)]), ["numpy"], rounds=2, seconds=0)
    assert Results.from_json(results.to_json()) == results
    assert [race.case.dtype for race in results.races] == ["float32", "float64"]


def test_gigabytes_count_what_must_be_read_and_written():
    cases = choose(["softmax", "logsumexp", "log_softmax_vjp"], ["float64"], [(4, 5)])
    results = measure.run(cases, [], rounds=1, seconds=0)
    moved = [race.ours.gigabytes_per_second * race.ours.ns * 20 for race in results.races]
    assert moved == pytest.approx([2 * 160, 160 + 32, 3 * 160], rel=1e-2)


# -- who takes part --------------------------------------------------------------------------


def test_a_peer_that_is_missing_or_broken_is_skipped_by_name(monkeypatch, capsys):
    class Missing(Peer):
        name = title = library = "no_such_library"

    class Broken(Peer):
        name = title = library = "broken"

        def __init__(self, threads):
            raise ImportError("libbroken.so: cannot open\nshared object")

    monkeypatch.setitem(PEERS, "no_such_library", Missing)
    monkeypatch.setitem(PEERS, "broken", Broken)
    cases = choose(["softmax"], ["float32"], [(4, 5)])
    results = measure.run(cases, ["numpy", "broken", "no_such_library"], rounds=1, seconds=0)
    assert results.skipped.pop("no_such_library") == "no_such_library is not installed"
    assert results.skipped.pop("broken") == "libbroken.so: cannot open shared object"
    assert set(results.skipped) <= {"exp+sum"}
    assert {"pysoftmax", "numpy", "copy"} <= set(results.peers)
    results.skipped["broken"] = "gone"
    report.show(results, cli.table)
    assert "Skipped: broken: gone (pip install" in capsys.readouterr().out


def test_who_cannot_be_held_to_the_threads_is_named():
    cases = choose(["softmax"], ["float32"], [(4, 5)])
    before = ps.get_num_threads()
    results = measure.run(cases, ["numpy"], threads=2, rounds=1, seconds=0)
    assert results.threads == results.peers["pysoftmax"]["threads"] == 2
    assert results.peers["numpy"]["threads"] == 1
    assert "NumPy: 1 thread(s), not 2" in results.notes
    assert ps.get_num_threads() == before


def test_jax_that_was_started_by_others_has_an_unknown_number_of_threads():
    pytest.importorskip("jax")
    code = (
        "import jax, os; jax.devices(); from pysoftmax.bench.peers import Jax;"
        "print(Jax(1).threads, os.environ.get('PJRT_NPROC'))"
    )
    assert python("-c", code).split() == ["None", "None"]


def test_jax_is_held_to_the_threads():
    pytest.importorskip("jax")
    code = (
        "import os; from pysoftmax.bench.peers import Jax;"
        "print(Jax(1).threads, Jax(2).threads, os.environ['PJRT_NPROC'])"
    )
    assert python("-c", code, PJRT_NPROC="7").split() == ["1", "1", "7"]


def test_who_is_not_held_to_avx2_is_named():
    usable, _ = targets()
    if not {"avx2", "avx512"} <= set(usable):
        pytest.skip(f"needs a CPU with AVX-512 and a build for AVX2: {usable}")
    code = (
        "from pysoftmax.bench import cases, measure\n"
        "chosen = cases.choose(['softmax'], ['float32'], [(4, 5)])\n"
        "results = measure.run(chosen, ['numpy'], rounds=1, seconds=0)\n"
        "print(results.machine['pysoftmax']['cpu']['target'], *results.notes, sep='\\n')"
    )
    target, *notes = python("-c", code, PYSOFTMAX_CPU_TARGET="avx2").splitlines()
    assert target == "avx2"
    assert any(note.startswith("NumPy, copy: not held to AVX2; NPY_DISABLE") for note in notes)
    held = PEERS["numpy"].avx2() | PEERS["numba"].avx2() | {"PYSOFTMAX_CPU_TARGET": "avx2"}
    assert python("-c", code, **held).split() == ["avx2"]


# -- the command -----------------------------------------------------------------------------


def test_the_report_shows_every_case_library_and_limit(bench):
    status, out, err = bench(*SMALL)
    assert (status, err) == (0, "")
    for words in [
        "softmax float32 8x10 axis -1\n",
        "softmax float64 8x10 axis -1\n",
        "sigmoid float32 8x10\n",
        *("ns/element", "spread", "GB/s", "x pysoftmax", "x limit"),
        *("pysoftmax     reused", "pysoftmax  allocated", "NumPy  ", "copy  "),
        *("geometric mean", ps.__version__, np.__version__, "1 thread(s)"),
    ]:
        assert words in out
    assert ("exp+sum" in out) or ("Skipped: exp+sum: numba is not installed" in out)


@pytest.mark.parametrize(("load", "busy"), [(0.1, False), (2.5, True), (None, False)])
def test_a_busy_machine_is_named(capsys, load, busy):
    cases = choose(["softmax"], ["float32"], [(4, 5)])
    results = measure.run(cases, ["numpy"], rounds=1, seconds=0)
    results.machine["load"] = load
    report.show(results, cli.table)
    assert (f"busy when the race began (load average {load})" in capsys.readouterr().out) == busy


def test_json_holds_everything(bench, tmp_path):
    assert bench(*SMALL, "--json", tmp_path / "results.json")[0] == 0
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert set(results) == {"machine", "threads", "peers", "skipped", "notes", "races", "gpu"}
    assert set(results["machine"]) == {"date", "cpu", "cores", "load", "system", "pysoftmax"}
    assert results["machine"]["cpu"]
    assert results["machine"]["pysoftmax"]["cpu"]["target"] in targets()[0]
    assert results["threads"] == 1
    assert results["peers"]["numpy"] == {"title": "NumPy", "version": np.__version__, "threads": 1}
    assert results["races"][0]["case"] == {
        "function": "softmax",
        "dtype": "float32",
        "shape": [8, 10],
        "axis": -1,
    }
    for race in results["races"]:
        for timing in race["timings"]:
            ns = timing["ns_per_element"]
            assert 0 < ns["lower"] <= ns["median"] <= ns["upper"]


def test_json_on_standard_output_stands_alone(bench):
    status, out, err = bench(*SMALL, "--json", "-")
    assert (status, err) == (0, "")
    assert [race.case.function for race in Results.from_json(out).races][::2] == [
        "softmax",
        "sigmoid",
    ]


def test_axes_may_begin_with_a_minus(bench):
    status, out, _ = bench(*SMALL, "--axes", "-1,0")
    assert status == 0
    assert "softmax float32 8x10 axis -1\n" in out
    assert "softmax float32 8x10 axis 0\n" in out


def test_quick_takes_the_quick_cases(bench, tmp_path):
    path = tmp_path / "results.json"
    assert bench("--quick", "--peers", "numpy", "--json", path)[0] == 0
    raced = [race.case for race in Results.from_json(path.read_text()).races]
    assert raced == choose(quick=True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--functions", "softmin"], ["--functions", "log_softmax", "'softmin'"]),
        (["--functions", "softmax,"], ["--functions", "''"]),
        (["--dtypes", "int8"], ["--dtypes", "float32, float64", "'int8'"]),
        (["--shapes", "10x0"], ["--shapes", "1024x10", "'10x0'"]),
        (["--shapes", "10*10"], ["--shapes", "'10*10'"]),
        (["--axes", "x"], ["--axes", "whole number", "'x'"]),
        (["--peers", "excel"], ["--peers", "onnxruntime", "'excel'"]),
        (["--threads", "0"], ["--threads", "at least 1", "'0'"]),
        (["--plot", "x.jpg"], ["--plot", ".png", "'x.jpg'"]),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(bench, no_race, args, words):
    status, out, err = bench(*args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--shapes", "8x10", "--axes", "2"], ["shape 8x10", "no axis 2"]),
        (["--json", "absent/results.json"], ["cannot write absent/results.json", "no directory"]),
        (["--plot", "absent/plot.png"], ["cannot write absent/plot.png", "no directory"]),
    ],
)
def test_what_cannot_work_fails_before_the_race(bench, no_race, monkeypatch, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    if "--plot" in args:
        pytest.importorskip("matplotlib")
    status, out, err = bench(*args)
    assert (status, out, err.count("\n")) == (1, "", 1)
    for word in words:
        assert word in err


def test_a_plot_without_matplotlib_fails_before_the_race(bench, no_race, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    status, out, err = bench("--plot", tmp_path / "plot.png")
    assert (status, out) == (1, "")
    assert "needs matplotlib: pip install 'pysoftmax[plot]'" in err
    assert os.listdir(tmp_path) == []


# -- pictures --------------------------------------------------------------------------------


def size_of_png(path):
    """Width and height from the header of a PNG."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("functions", ["softmax", "softmax,sigmoid,cross_entropy"])
def test_a_plot_is_a_picture_for_each_function_and_dtype(bench, tmp_path, functions):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    bench("--functions", functions, "--shapes", "8x10,8x100", "--peers", "numpy", "--plot", path)
    width, height = size_of_png(path)
    assert width > 1000
    assert height > 900 * len(functions.split(","))


@pytest.fixture
def tool(monkeypatch):
    """A script of tools/ as a module."""

    def load(name):
        monkeypatch.syspath_prepend(TESTS)
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("document", ["README.md", "docs/performance.md"])
def test_the_tables_in_documents_are_those_of_the_results(tool, document):
    written = (ROOT / document).read_text()
    assert tool("pictures").filled(document) == written, f"{document}: make pictures"


def test_the_pictures_of_the_results_can_be_drawn(tool, tmp_path):
    pytest.importorskip("matplotlib")
    for name, draw in tool("pictures").DRAWINGS.items():
        with (tmp_path / name).open("wb") as file:
            draw(file)
        assert size_of_png(tmp_path / name) == size_of_png(ROOT / "docs" / "pictures" / name)


def test_the_accuracy_that_is_measured_is_the_accuracy_promised(tool, dtype):
    ours = Pysoftmax(1)
    errors = tool("accuracy").worst([ours], dtype, 100)
    assert set(errors) == {(name, ours) for name in ("softmax", "log_softmax", "logsumexp")}
    assert all(0 < error <= 4 for error in errors.values())


def test_reproducibility_is_measured_for_every_way(tool, monkeypatch, tmp_path):
    reproducibility = tool("reproducibility")
    monkeypatch.setattr(reproducibility, "SHAPES", [(8, 10), (6, 100)])
    shares = {}
    for name in ("pysoftmax", "numpy"):
        reproducibility.child(name, 1, tmp_path, compare=True)
        shares[name] = json.loads((tmp_path / "peer.json").read_text())["shares"]
    assert shares["pysoftmax"] == dict.fromkeys(reproducibility.WAYS, 0.0)
    assert shares["numpy"]["another axis"] > 0


def test_a_share_counts_elements_whose_bits_differ(tool):
    differing = tool("reproducibility").differing
    a = np.float32([[0.0, 1.0], [2.0, np.nan]])
    assert differing(a, a.copy()) == 0
    assert differing(a, np.float32([[-0.0, 1.0], [2.0, np.nan]])) == 0.25
    assert differing(a[:1], np.float32([[0.0, 1.5], [9.0, 9.0]])) == 0.5
