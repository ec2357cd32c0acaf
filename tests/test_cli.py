"""``python -m pysoftmax``: what each command does, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot

import pysoftmax
from pysoftmax import _files, _watch, cli
from pysoftmax import demo as demonstration

COMMANDS = ["demo", "softmax", "validate", "calibrate", "monitor", "bench", "info"]
PROGRAM = [sys.executable, "-m", "pysoftmax"]


@pytest.fixture(autouse=True)
def same_package(monkeypatch):
    """Let the programs that the tests start find the package under test from any directory."""
    monkeypatch.setenv("PYTHONPATH", str(Path(pysoftmax.__file__).parents[1]))


@pytest.fixture
def small_blocks(monkeypatch):
    """Cut even small arrays into many blocks, panels and pieces of text."""
    monkeypatch.setattr(_files, "_BLOCK", 64)
    monkeypatch.setattr(_files, "_PANEL", 4)
    monkeypatch.setattr(_files, "_TEXT", 100)


@pytest.fixture
def run(capfd):
    """Run a command in this process; return its exit status, standard output and error."""

    def run(*args):
        status = cli.main([str(arg) for arg in args])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def logits(tmp_path):
    """Return a file of float32 logits of shape (7, 10)."""
    path = tmp_path / "logits.npy"
    np.save(path, normal(7, 10))
    return path


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(0, 5, shape).astype(dtype)


def program_after(setup):
    """Return the program with something to do before it."""
    imports = "import re, resource, signal, sys; from pysoftmax.cli import main"
    code = f"{imports}\n{setup}\nsys.exit(main())"
    return [sys.executable, "-c", code]


def spawn(*args, program=PROGRAM, **options):
    """Run the program itself to its end."""
    return subprocess.run(
        [*program, *map(str, args)], capture_output=True, timeout=60, check=False, **options
    )


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def read_csv(text):
    return np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2)


def assert_error(outcome, *words, status=1):
    """Check for an exit status and one line on standard error that has all the words."""
    got, out, err = outcome
    assert got == status
    assert out == ""
    assert err.startswith("pysoftmax: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in words:
        assert word in err


def assert_picture(name):
    """Check for a PNG file that is not blank."""
    pixels = pyplot.imread(name)
    assert pixels.shape[0] > 300
    assert pixels.std() > 0.05


# -- the program -----------------------------------------------------------------------------


def test_version(run):
    assert run("--version") == (0, f"pysoftmax {pysoftmax.__version__}\n", "")


def test_help_lists_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    for name in COMMANDS:
        assert re.search(rf"\n    {name}\s", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_needs_no_work(run, name):
    status, out, err = run(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: pysoftmax {name}")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["COMMAND"]),
        (["softmin"], ["softmin"]),
        (["info", "--yaml"], ["--yaml"]),
        (["softmax", "a.npy"], ["OUT"]),
        (["softmax", "a.npy", "b.txt"], [".npy or .csv", "'b.txt'"]),
        (["softmax", "a.npy", "b.npy", "--axis", "x"], ["--axis", "'x'"]),
        (["softmax", "a.npy", "b.npy", "--dtype", "int8"], ["--dtype", "float32", "'int8'"]),
        (["softmax", "a.npy", "b.npy", "--temperature", "-1"], ["at least 0", "'-1'"]),
        (["softmax", "a.npy", "b.npy", "--temperature", "nan"], ["at least 0", "'nan'"]),
        (["softmax", "a.npy", "b.npy", "--temperature", "hot"], ["at least 0", "'hot'"]),
        (["softmax", "a.npy", "b.npy", "--skip-header", "-1"], ["at least 0", "'-1'"]),
        (["validate"], ["FILE"]),
        (["validate", "a.npy", "--activation", "relu"], ["softmax", "'relu'"]),
        (["validate", "a.npy", "--loss", "mse"], ["binary_cross_entropy", "'mse'"]),
        (["validate", "a.npy", "--n-classes", "0"], ["at least 1", "'0'"]),
        (["validate", "a.npy", "--temperature", "-1"], ["at least 0", "'-1'"]),
        (["calibrate"], ["FILE"]),
        (["calibrate", "a.npy", "--output", "b.txt"], [".npy or .csv", "'b.txt'"]),
        (["calibrate", "a.npy", "--plot", "b.jpg"], [".png", "'b.jpg'"]),
        (["monitor", "--window", "0"], ["at least 1", "'0'"]),
        (["monitor", "--high", "much"], ["--high", "'much'"]),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(run, args, words):
    assert_error(run(*args), *words, "--help", status=2)


def test_the_module_runs_main():
    done = spawn("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"pysoftmax {pysoftmax.__version__}{os.linesep}"


def test_starting_up_imports_nothing_but_numpy():
    code = "import sys, pysoftmax.cli; print({'rich', 'scipy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"set()"]


# -- info ------------------------------------------------------------------------------------


def test_info_shows_versions_kernels_and_threads(run):
    status, out, err = run("info")
    facts = pysoftmax.info()
    assert (status, err) == (0, "")
    for value in [facts["version"], facts["numpy"], facts["cpu"]["target"], facts["threads"]]:
        assert str(value) in out
    for backend in facts["backends"]:
        assert backend in out


def test_info_as_json_is_pysoftmax_info(run):
    status, out, err = run("info", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == pysoftmax.info()


# -- demo ------------------------------------------------------------------------------------


@pytest.fixture
def brief_demo(monkeypatch, tmp_path):
    """Time in the demonstration just long enough to have been run, and draw elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demonstration, "_ROUNDS", 1)
    monkeypatch.setattr(demonstration, "_ROUND_SECONDS", 0)


def test_demo_tells_the_whole_story(run, brief_demo):
    status, out, err = run("demo")
    assert (status, err) == (0, "")
    for phrase in [
        "handwritten digits, 899 held-out images",
        "gave nan in 478 of 899 rows; pysoftmax in none",
        "Accuracy 94.4%",
        "899x10",
        "1024x1000",
        "64x32000",
        "fit_temperature finds the best one from 450 images, 7.5491. On the other 449:",
        "before and after: softmax-demo.png",
    ]:
        assert phrase in out
    assert_picture("softmax-demo.png")


def test_demo_without_matplotlib_says_which_extra_is_missing(run, brief_demo, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    status, out, err = run("demo")
    assert (status, err) == (0, "")
    assert "pip install 'pysoftmax[plot]'" in out
    assert os.listdir() == []
    assert_error(run("demo", "--plot", "x.png"), "--plot", "pysoftmax[plot]")


def test_demo_draws_where_it_is_told_to(run, brief_demo):
    assert run("demo", "--json", "--plot", "here.png")[0] == 0
    assert os.listdir() == ["here.png"]
    assert_picture("here.png")


def test_demo_as_json(run, brief_demo):
    status, out, err = run("demo", "--json")
    assert (status, err) == (0, "")
    results = json.loads(out, parse_constant=pytest.fail)
    assert results["naive_rows_overflowed"] == 478
    assert results["naive_cross_entropy"] is None
    assert results["cross_entropy"] == pytest.approx(0.9088, abs=1e-4)
    losses = {row["temperature"]: row["cross_entropy"] for row in results["temperatures"]}
    assert losses[1.0] == pytest.approx(results["cross_entropy"])
    assert min(losses, key=losses.get) == 10.0
    for row in results["rows"]:
        assert 0 < row["probability"] <= 1
        assert row["sum"] == pytest.approx(1)
        if row["naive_probability"] is not None:
            assert row["naive_probability"] == pytest.approx(row["probability"], rel=1e-5)
    assert all(row["ratio"] > 0 for row in results["speed"])


def test_digits_are_small_and_hold_no_pickle():
    path = Path(pysoftmax.__file__).parent / "data" / "digits.npz"
    assert path.stat().st_size < 200_000
    logits, labels = demonstration.load_digits()
    assert (logits.shape, logits.dtype) == ((899, 10), np.float32)
    assert (labels.shape, labels.dtype) == ((899,), np.uint8)
    assert np.isfinite(logits).all()
    assert labels.max() == 9


# -- softmax: .npy to .npy -------------------------------------------------------------------


def test_a_npy_file_becomes_its_softmax(run, logits, tmp_path):
    out = tmp_path / "probabilities.npy"
    assert run("softmax", logits, out) == (0, "", "")
    np.testing.assert_array_equal(np.load(out), pysoftmax.softmax(np.load(logits)))


def test_log_temperature_and_dtype_are_those_of_the_function(run, logits, tmp_path):
    out = tmp_path / "out.npy"
    run("softmax", logits, out, "--log", "--temperature", 2.5, "--dtype", "float64")
    expected = pysoftmax.log_softmax(np.load(logits), temperature=2.5, dtype="float64")
    np.testing.assert_array_equal(np.load(out), expected, strict=True)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((), 0),
        ((), -1),
        ((5,), 0),
        ((200,), -1),
        ((40, 10), 1),
        ((40, 10), 0),
        ((3, 200), 1),
        ((200, 3), 0),
        ((100, 30), 0),
        ((4, 5, 6), 0),
        ((4, 5, 6), 1),
        ((4, 5, 6), -1),
        ((2, 30, 3, 7), 1),
        ((0, 10), 1),
        ((0, 10), 0),
        ((10, 0), 1),
        ((0,), 0),
    ],
)
def test_any_shape_axis_and_order_in_blocks(run, tmp_path, small_blocks, shape, axis, order):
    x = np.asarray(normal(*shape), order=order)
    np.save(tmp_path / "x.npy", x)
    assert run("softmax", tmp_path / "x.npy", tmp_path / "y.npy", "--axis", axis) == (0, "", "")
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(y, pysoftmax.softmax(x, axis=axis), strict=True)
    assert y.flags.f_contiguous == x.flags.f_contiguous


def test_blocks_cover_an_array_once_and_stay_small(small_blocks):
    for shape in [(1, 1, 1), (50, 3, 1), (7, 10, 9), (3, 100, 50), (2, 500, 3)]:
        seen = np.zeros(shape, int)
        for rows, columns in _files._blocks(*shape):
            block = seen[rows, :, columns]
            block += 1
            assert block.size <= max(64, 4 * shape[1])
        assert (seen == 1).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float16", "float64", ">f4"])
def test_dtypes_are_promoted_as_by_the_function(run, tmp_path, small_blocks, dtype):
    x = normal(40, 10).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    run("softmax", tmp_path / "x.npy", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), pysoftmax.softmax(x), strict=True)


def test_a_file_may_become_its_own_softmax(run, logits, small_blocks):
    expected = pysoftmax.softmax(np.load(logits), axis=0)
    assert run("softmax", logits, logits, "--axis", 0)[0] == 0
    np.testing.assert_array_equal(np.load(logits), expected)


def test_the_target_is_replaced_through_a_link(run, logits, tmp_path):
    (tmp_path / "link.npy").symlink_to(tmp_path / "real.npy")
    assert run("softmax", logits, tmp_path / "link.npy")[0] == 0
    assert (tmp_path / "link.npy").is_symlink()
    assert (tmp_path / "real.npy").is_file()


def test_a_new_file_has_the_usual_permissions(run, logits, tmp_path):
    (tmp_path / "usual").touch()
    run("softmax", logits, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("axis", [0, 1])
def test_an_array_larger_than_the_memory_allowed(tmp_path, axis):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (4096, 8192))
    setup = (
        "used = 1024 * int(re.search(r'VmData:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, 2 * [used + {x.nbytes // 2}])"
    )
    done = spawn(
        *("softmax", tmp_path / "x.npy", tmp_path / "y.npy", "--axis", axis),
        program=program_after(setup),
        env=os.environ | {"PYSOFTMAX_NUM_THREADS": "1"},  # a thread's stack counts as data
    )
    assert (done.returncode, done.stderr) == (0, b"")
    y = np.load(tmp_path / "y.npy", mmap_mode="r")
    assert y[-1, -1] == 1 / y.shape[axis]


# -- softmax: CSV and pipes ------------------------------------------------------------------


def test_csv_becomes_csv_of_the_same_numbers(run, tmp_path, small_blocks):
    x = normal(50, 4, dtype=np.float64)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", fmt="%.17g")
    assert run("softmax", tmp_path / "x.csv", tmp_path / "y.csv") == (0, "", "")
    y = read_csv((tmp_path / "y.csv").read_text())
    np.testing.assert_array_equal(y, pysoftmax.softmax(x))


def test_csv_becomes_npy_and_back(run, tmp_path, small_blocks):
    x = normal(50, 4, dtype=np.float64)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", fmt="%.17g")
    run("softmax", tmp_path / "x.csv", tmp_path / "y.npy", "--dtype", "float32")
    expected = pysoftmax.softmax(x, dtype="float32")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected, strict=True)
    np.save(tmp_path / "x.npy", x)
    run("softmax", tmp_path / "x.npy", tmp_path / "y.csv", "--dtype", "float32")
    y = read_csv((tmp_path / "y.csv").read_text())
    np.testing.assert_array_equal(y.astype(np.float32), expected)


@pytest.mark.parametrize("source", ["x.npy", "x.csv"])
@pytest.mark.parametrize("target", ["y.npy", "y.csv"])
def test_csv_along_axis_0(run, tmp_path, small_blocks, source, target):
    x = normal(50, 4, dtype=np.float64)
    np.save(tmp_path / "x.npy", x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", fmt="%.17g")
    assert run("softmax", tmp_path / source, tmp_path / target, "--axis", 0) == (0, "", "")
    y = tmp_path / target
    y = np.load(y) if target == "y.npy" else read_csv(y.read_text())
    np.testing.assert_array_equal(y, pysoftmax.softmax(x, axis=0))


@pytest.mark.parametrize(("shape", "lines"), [((), 1), ((3,), 1), ((3, 1), 3), ((0, 3), 0)])
def test_a_row_of_classes_is_a_line(run, tmp_path, shape, lines):
    np.save(tmp_path / "x.npy", normal(*shape))
    status, out, _ = run("softmax", tmp_path / "x.npy", "-")
    assert (status, out.count("\n")) == (0, lines)


def test_numbers_are_written_with_the_fewest_digits(run, tmp_path):
    np.save(tmp_path / "x.npy", np.float32([[0, 0], [0, np.log(4)], [0, np.nan]]))
    assert run("softmax", tmp_path / "x.npy", "-")[1] == "0.5,0.5\n0.2,0.8\nnan,nan\n"


@pytest.mark.parametrize(
    "text",
    [
        b"1,2\n3,4\n",
        b"1,2\n3,4",
        b"1,2\r\n3,4\r\n",
        b"\xef\xbb\xbf1,2\n3,4\n",
        b"\n1,2\n \n3,4\n\n",
        b" 1 ,2.0\n+3,4e0\n",
    ],
)
def test_ordinary_csv_is_understood(text):
    done = spawn("softmax", "-", "-", input=text)
    assert (done.returncode, done.stderr) == (0, b"")
    expected = pysoftmax.softmax(np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(read_csv(done.stdout.decode()), expected)


def test_a_npy_stream_on_standard_input(tmp_path):
    x = normal(7, 10)
    np.save(tmp_path / "x.npy", x)
    with (tmp_path / "x.npy").open("rb") as file:
        for options in [{"input": npy_bytes(x)}, {"stdin": file}]:
            done = spawn("softmax", "-", tmp_path / "y.npy", **options)
            assert (done.returncode, done.stderr) == (0, b"")
            np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), pysoftmax.softmax(x))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_read_as_what_comes_through_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    command = [*PROGRAM, "softmax", tmp_path / "pipe", tmp_path / "y.npy"]
    with subprocess.Popen(command) as process:
        (tmp_path / "pipe").write_bytes(npy_bytes(normal(7, 10)))
    assert process.returncode == 0
    assert np.load(tmp_path / "y.npy").shape == (7, 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", ["line 1, column 1", "'a'", "--skip-header 1"]),
        ("\n# x\n1,2\n", ["line 2, column 1", "'# x'", "--skip-header 2"]),
        ("1,2\n3,x\n", ["line 2, column 2", "expected a number", "'x'"]),
        ("1,2\n3,\n", ["line 2, column 2", "''"]),
        ("1,2\n\n3\n", ["line 3", "expected 2 values", "got 1"]),
        ("1,2\n3,4,5\n", ["line 2", "expected 2 values", "got 3"]),
        ("1;2\n", ["line 1, column 1", "'1;2'"]),
        ("1,2\n" * 60 + "1,2,3\n", ["line 61", "expected 2 values", "got 3"]),
        ("1,2\n" * 60 + "1,1_0\n", ["line 61, column 2", "'1_0'"]),
        ("", ["is empty"]),
        ("\n\n", ["is empty"]),
    ],
)
def test_bad_csv_is_told_by_line(run, tmp_path, small_blocks, text, words):
    (tmp_path / "x.csv").write_text(text)
    outcome = run("softmax", tmp_path / "x.csv", tmp_path / "y.npy")
    assert_error(outcome, str(tmp_path / "x.csv"), *words)
    assert os.listdir(tmp_path) == ["x.csv"]


def test_a_header_is_skipped_on_request(run, tmp_path, small_blocks):
    (tmp_path / "x.csv").write_text("# made by hand\ncat,dog\n0,0\n")
    assert run("softmax", tmp_path / "x.csv", "-", "--skip-header", 2) == (0, "0.5,0.5\n", "")


# -- softmax: what goes wrong ----------------------------------------------------------------


def with_header(header):
    """Return a .npy file with a header of one's own."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy_bytes(normal(7, 10))[:-1], ["truncated", "(7, 10)", "280", "279"]),
        (npy_bytes(normal(7, 10))[:50], ["not a readable .npy file"]),
        (npy_bytes(normal(7, 10))[:3], ["not a readable .npy file"]),
        (b"", ["is not a .npy file"]),
        (b"1,2\n", ["is not a .npy file"]),
        (npy_bytes(np.array([None])), ["objects", "never unpickled"]),
        (npy_bytes(np.array(["a"])), ["<U1"]),
        (npy_bytes(np.zeros(2, "c8")), ["complex64"]),
        (npy_bytes(np.zeros(2, "i4,f4")), ["i4"]),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}"), ["(-1, 2)"]),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 70,)}"), []),
        (
            with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 70},)}}"),
            ["truncated"],
        ),
        (with_header("print('hello')"), ["not a readable .npy file"]),
        (with_header("("), ["not a readable .npy file"]),
    ],
)
def test_a_bad_npy_file_is_one_clear_line(run, tmp_path, content, words):
    (tmp_path / "x.npy").write_bytes(content)
    outcome = run("softmax", tmp_path / "x.npy", tmp_path / "y.npy")
    assert_error(outcome, str(tmp_path / "x.npy"), *words)
    assert os.listdir(tmp_path) == ["x.npy"]


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("absent.npy", "y.npy", ["cannot read", "absent.npy", "No such file"]),
        ("folder", "y.npy", ["cannot read", "folder", "directory"]),
        ("logits.npy", "folder.npy", ["cannot write", "folder.npy", "directory"]),
        ("logits.npy", "absent/y.npy", ["cannot write", "absent/y.npy", "no directory"]),
        ("logits.npy", "logits.npy/y.npy", ["cannot write", "no directory"]),
        ("cube.npy", "y.csv", ["(2, 2, 2)", "write .npy"]),
    ],
)
def test_a_wrong_place_is_one_clear_line(run, logits, monkeypatch, source, target, words):
    monkeypatch.chdir(logits.parent)
    Path("folder").mkdir()
    Path("folder.npy").mkdir()
    np.save("cube.npy", normal(2, 2, 2))
    before = sorted(os.listdir())
    assert_error(run("softmax", source, target), *words)
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write all")
def test_a_place_without_permission_is_one_clear_line(run, logits, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    outcome = run("softmax", logits, tmp_path / "closed" / "y.npy")
    assert_error(outcome, "cannot write", "Permission denied")


@pytest.mark.parametrize("target", ["y.npy", "-"])
@pytest.mark.parametrize("source", ["logits.npy", "logits.csv"])
@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_out_of_range(run, logits, monkeypatch, source, target, axis):
    monkeypatch.chdir(logits.parent)
    np.savetxt("logits.csv", np.load(logits), delimiter=",")
    assert_error(run("softmax", source, target, "--axis", axis), source, f"no axis {axis}")


@pytest.mark.parametrize("source", ["logits.npy", "logits.csv"])
@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, source, suffix):
    np.save(tmp_path / "logits.npy", normal(1000, 10))
    np.savetxt(tmp_path / "logits.csv", normal(1000, 10), delimiter=",")
    (tmp_path / f"y{suffix}").write_text("as it was")
    done = spawn(
        "softmax",
        tmp_path / source,
        tmp_path / f"y{suffix}",
        program=program_after("resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"),
    )
    assert_error((done.returncode, "", done.stderr.decode()), "cannot write", "File too large")
    assert (tmp_path / f"y{suffix}").read_text() == "as it was"
    assert sorted(os.listdir(tmp_path)) == ["logits.csv", "logits.npy", f"y{suffix}"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["info"], ["softmax", "logits.npy", "-"]])
def test_a_full_standard_output_is_told(logits, args):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, *args], cwd=logits.parent, stdout=full, stderr=subprocess.PIPE, check=False
        )
    outcome = done.returncode, "", done.stderr.decode()
    assert_error(outcome, "cannot write standard output", "No space left")


@pytest.mark.parametrize("args", [["info", "--json"], ["softmax", "logits.npy", "-"]])
def test_a_closed_pipe_is_no_news(logits, args):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PROGRAM, *args], cwd=logits.parent, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("redirection", "args", "words"),
    [
        ("<&-", ["softmax", "-", "y.npy"], "cannot read standard input: Bad file descriptor"),
        (
            ">&-",
            ["softmax", "logits.npy", "-"],
            "cannot write standard output: Bad file descriptor",
        ),
    ],
)
def test_a_closed_standard_stream_is_told(logits, redirection, args, words):
    command = ["sh", "-c", f'"$@" {redirection}', "sh", *PROGRAM, *args]
    done = subprocess.run(command, cwd=logits.parent, stderr=subprocess.PIPE, check=False)
    assert_error((done.returncode, "", done.stderr.decode()), words)


@pytest.mark.parametrize("target", ["y.npy", "y.csv"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_trace(tmp_path, number, status, target):
    (tmp_path / target).write_text("as it was")
    # A run in the background ignores Ctrl-C, and so would the program.
    program = program_after("signal.signal(signal.SIGINT, signal.default_int_handler)")
    command = [*program, "softmax", "-", tmp_path / target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"1,2\n")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while len(os.listdir(tmp_path)) == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(os.listdir(tmp_path)) == 2, "the draft beside the target"
        process.send_signal(number)
        assert process.wait(30) == status
        assert b"Traceback" not in process.stderr.read()
    assert os.listdir(tmp_path) == [target]
    assert (tmp_path / target).read_text() == "as it was"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_a_stop_between_blocks_leaves_no_trace(run, logits, monkeypatch, small_blocks, failure):
    calls = iter(range(9))

    def softmax(x, **options):
        if next(calls) == 2:
            raise failure
        return pysoftmax.log_softmax(x, **options)

    monkeypatch.setattr(pysoftmax, "softmax", softmax)
    before = logits.read_bytes()
    status = 130 if failure is KeyboardInterrupt else 1
    assert_error(run("softmax", logits, logits), status=status)
    assert next(calls) == 3
    assert logits.read_bytes() == before
    assert os.listdir(logits.parent) == [logits.name]


# -- validate --------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Return logits of shape (7, 10) and labels, saved in the working directory."""
    monkeypatch.chdir(tmp_path)
    x, labels = normal(7, 10), np.arange(7)
    p = pysoftmax.softmax(x)
    for name, array in {"x": x, "p": p, "labels": labels, "twice": pysoftmax.softmax(p)}.items():
        np.save(f"{name}.npy", array)
        np.savetxt(f"{name}.csv", array, delimiter=",", fmt="%.9g")
    return x, labels


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_a_sound_classifier_is_status_0_and_a_table(run, outputs, suffix):
    x, labels = outputs
    args = ["--labels", f"labels.{suffix}", "--activation", "softmax", "--n-classes", 10]
    args += ["--loss", "cross_entropy", "--temperature", 1]
    status, out, err = run("validate", "--logits", f"x.{suffix}", *args)
    x = x if suffix == "npy" else np.loadtxt("x.csv", delimiter=",")
    options = {"activation": "softmax", "loss": "cross_entropy", "n_classes": 10}
    expected = pysoftmax.validate(logits=x, labels=labels, temperature=1.0, **options)
    assert (status, out, err) == (0, f"{expected}\n", "")


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_a_failed_check_is_status_1_and_a_report(run, outputs, suffix):
    assert run("validate", f"p.{suffix}")[0] == 0
    status, out, err = run("validate", f"p.{suffix}", "--logits", "--json")
    assert (status, err) == (1, "")
    report = json.loads(out)
    assert report["passed"] is False
    assert [c["name"] for c in report["checks"] if c["status"] == "fail"] == ["logits are raw"]
    assert run("validate", f"x.{suffix}")[0] == 1
    assert run("validate", f"p.{suffix}", "--axis", 0)[0] == 1
    assert run("validate", f"p.{suffix}", "--n-classes", 9)[0] == 1


def test_what_is_validated_may_come_on_standard_input(outputs):
    for name, status in [("p.npy", 0), ("p.csv", 0), ("x.npy", 1)]:
        done = spawn("validate", "-", "--labels", "labels.csv", input=Path(name).read_bytes())
        assert (done.returncode, done.stderr) == (status, b"")
        assert done.stdout.startswith(b"check ")


def test_labels_of_each_class_and_headers(run, outputs):
    x, _ = outputs
    for name, array in {"x": x, "labels": x > 0}.items():
        np.savetxt(f"{name}.csv", array, delimiter=",", header="a,b,c")
    args = ["--labels", "labels.csv", "--activation", "sigmoid", "--skip-header", 1]
    status, out, err = run("validate", "--logits", "x.csv", *args)
    assert (status, err) == (0, "")
    assert "all 0 or 1" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent.npy"], ["cannot read", "absent.npy"]),
        (["p.npy", "--labels", "absent.csv"], ["cannot read", "absent.csv"]),
        (["-", "--labels", "-"], ["standard input", "--labels"]),
        (["p.npy", "--labels", "half.csv"], ["half.csv", "whole numbers", "0.5"]),
        (["p.npy", "--labels", "p.npy", "--axis", "3"], ["axis 3"]),
        (["p.npy", "--labels", "short.npy"], ["labels must be one per row", "(3,)"]),
        (["x.npy", "--logits", "--check-against", "x.npy"], ["leave out --logits"]),
        (["-", "--check-against", "-"], ["standard input", "--check-against"]),
        (["p.npy", "--check-against", "short.npy"], ["must have one shape"]),
        (["fake.npy"], ["fake.npy is not a .npy file"]),
        (["objects.npy"], ["never unpickled"]),
    ],
)
def test_what_cannot_be_validated_is_one_clear_line(run, outputs, args, words):
    Path("half.csv").write_text("0\n0.5\n")
    Path("fake.npy").write_text("0,1\n")
    np.save("short.npy", np.arange(3))
    Path("objects.npy").write_bytes(npy_bytes(np.array([None])))
    assert_error(run("validate", *args), *words)


def test_a_npz_file_holds_outputs_and_labels(run, outputs):
    x, labels = outputs
    np.savez("both.npz", logits=x, probabilities=pysoftmax.softmax(x), labels=labels)
    np.savez_compressed("one.npz", x)
    for args in (["both.npz", "--logits"], ["both.npz"]):
        status, out, err = run("validate", *args)
        assert (status, err) == (0, "")
        assert "all in [0, 10)" in out
    status, out, _ = run("validate", "one.npz", "--logits", "--labels", "both.npz")
    assert status == 0
    assert "all in [0, 10)" in out


def test_probabilities_are_checked_against_the_logits_in_the_same_file(run, outputs):
    x, labels = outputs
    p = pysoftmax.softmax(x, temperature=2)
    np.savez("both.npz", logits=x, probabilities=p, labels=labels)

    def statuses(*args):
        report = json.loads(run("validate", "both.npz", "--json", *args)[1])
        return {c["name"]: c["status"] for c in report["checks"]}

    names = ["probabilities are those of the logits", "temperature is recorded and tested"]
    assert [statuses("--temperature", 2)[name] for name in names] == ["pass", "pass"]
    assert run("validate", "both.npz", "--temperature", 1)[0] == 1


def test_probabilities_are_checked_against_the_logits_in_another_file(run, outputs):
    title, same = "probabilities are those of the logits", ["--check-against", "x.npy", "--json"]

    def status(*args):
        report = json.loads(run("validate", *args, *same)[1])
        return {c["name"]: c["status"] for c in report["checks"]}[title]

    assert status("p.npy") == "pass"
    assert status("p.npy", "--temperature", 2) == "fail"
    np.savez("both.npz", logits=np.zeros_like(outputs[0]), probabilities=np.load("p.npy"))
    assert status("both.npz") == "pass"  # the option comes first
    for name in "px":
        np.savetxt(f"{name}.csv", np.load(f"{name}.npy"), delimiter=",", header="a,b,c")
    args = ["p.csv", "--skip-header", 1, "--check-against", "x.csv"]
    assert run("validate", *args)[0] == 0


@pytest.mark.parametrize("args", [["p.npy"], ["x.npy", "--logits", "--temperature", 8]])
def test_validate_draws_the_reliability(run, outputs, args):
    table = run("validate", *args, "--labels", "labels.npy")
    assert run("validate", *args, "--labels", "labels.npy", "--plot", "r.png") == table
    assert_picture("r.png")


@pytest.mark.parametrize(
    "args", [[], ["--labels", "p.npy"], ["--labels", "labels.npy", "--activation", "sigmoid"]]
)
def test_validate_draws_no_reliability_without_one_right_class(run, outputs, args):
    assert_error(run("validate", "p.npy", "--plot", "r.png", *args), "--plot needs softmax")
    assert not Path("r.png").exists()


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda: np.savez("x.npz", a=[1], b=[2]), ["no array probabilities", "but a, b"]),
        (lambda: Path("x.npz").write_bytes(b"PK\x03\x04 and so on"), ["not a readable .npz file"]),
        (lambda: np.savez("x.npz", probabilities=[None]), ["not a readable .npz file"]),
    ],
)
def test_a_bad_npz_file_is_one_clear_line(run, outputs, save, words):
    save()
    assert_error(run("validate", "x.npz"), "x.npz", *words)


# -- calibrate -------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Return the logits and labels of the digits, saved in the working directory."""
    monkeypatch.chdir(tmp_path)
    x, labels = demonstration.load_digits()
    np.savez("digits.npz", logits=x, labels=labels)
    for name, array in {"x": x, "labels": labels}.items():
        np.save(f"{name}.npy", array)
        np.savetxt(f"{name}.csv", array, delimiter=",", fmt="%.9g")
    return x, labels


@pytest.mark.parametrize(
    "args",
    [["digits.npz"], ["x.npy", "--labels", "labels.npy"], ["x.csv", "--labels", "labels.csv"]],
)
def test_calibrate_finds_the_temperature_of_the_function(run, digits, args):
    x, labels = digits
    expected = pysoftmax.fit_temperature(x, labels)
    status, out, err = run("calibrate", *args, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["temperature"] == pytest.approx(expected.temperature, rel=1e-6)
    assert (found["converged"], found["at_bound"]) == (True, False)
    before, after = pysoftmax.softmax(x), expected.apply(x)
    for name, measure in {
        "log-loss": pysoftmax.negative_log_likelihood,
        "calibration error (ECE)": pysoftmax.expected_calibration_error,
        "Brier score": pysoftmax.brier_score,
    }.items():
        pair = {"before": measure(before, labels), "after": measure(after, labels)}
        assert found["measures"][name] == pytest.approx(pair, rel=1e-4)
    assert found["measures"]["accuracy"]["before"] == pytest.approx(0.9444, abs=1e-4)


def test_calibrate_writes_a_table_a_picture_and_probabilities(run, digits):
    x, labels = digits
    status, out, err = run("calibrate", "digits.npz", "--plot", "r.png", "--output", "p.npy")
    assert (status, err) == (0, "")
    assert out.startswith("temperature 8.28977")
    temperature = out.split()[1]
    np.save("x.npy", x)
    args = ["p.npy", "--check-against", "x.npy", "--temperature", temperature]
    assert run("validate", *args)[0] == 0
    assert "calibration error (ECE)  0.0499  0.0218\n" in out
    assert_picture("r.png")
    p = np.load("p.npy")
    np.testing.assert_array_equal(p, pysoftmax.fit_temperature(x, labels).apply(x))
    assert run("calibrate", "x.npy", "--labels", "labels.npy", "--output", "p.csv")[0] == 0
    np.testing.assert_array_equal(np.loadtxt("p.csv", delimiter=",", dtype="f4"), p)


def test_calibrate_along_another_axis(run, digits):
    x, _ = digits
    np.save("turned.npy", x.T)
    status, out, _ = run("calibrate", "turned.npy", "--labels", "labels.npy", "--axis", 0)
    assert status == 0
    assert out == run("calibrate", "digits.npz")[1]


def test_calibrate_by_vector_scaling(run, digits):
    x, labels = digits
    status, out, err = run("calibrate", "digits.npz", "--vector", "--json")
    assert (status, err) == (0, "")
    expected = pysoftmax.fit_vector_scaling(x, labels)
    np.testing.assert_allclose(json.loads(out)["scale"], expected.scale, rtol=1e-12)
    assert run("calibrate", "digits.npz", "--vector")[1].startswith("scales from 0.0")


def test_data_that_tell_no_temperature_are_status_1_and_a_warning(run, digits):
    x, _ = digits
    np.save("sure.npy", x.argmax(axis=1))
    status, out, err = run("calibrate", "x.npy", "--labels", "sure.npy")
    assert status == 1
    assert err.startswith("pysoftmax: warning: every label has the largest logit")
    assert out.startswith("temperature 0.001\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent.npy"], ["cannot read", "absent.npy"]),
        (["x.npy"], ["x.npy has no labels", "--labels"]),
        (["x.npy", "--labels", "short.npy"], ["labels must have the shape", "(3,)"]),
        (["x.npy", "--labels", "large.npy"], ["labels[0] is 10", "[0, 10)"]),
        (["x.npy", "--labels", "labels.npy", "--output", "-"], ["--output"]),
        (["x.npy", "--labels", "labels.npy", "--plot", "no/x.png"], ["cannot write", "no/x.png"]),
    ],
)
def test_what_cannot_be_calibrated_is_one_clear_line(run, digits, args, words):
    np.save("short.npy", np.arange(3))
    np.save("large.npy", np.full(899, 10))
    assert_error(run("calibrate", *args), *words)


def test_calibrate_without_matplotlib_says_which_extra_is_missing(run, digits, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert_error(run("calibrate", "digits.npz", "--plot", "x.png"), "pysoftmax[plot]")


# -- monitor ---------------------------------------------------------------------------------


def summary_of(p, **options):
    monitor = pysoftmax.ConfidenceMonitor(10, **options)
    monitor.update(p)
    return monitor.total.to_dict()


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Return probabilities that raise no alert, saved in the working directory."""
    monkeypatch.chdir(tmp_path)
    p = pysoftmax.softmax(normal(600, 10) / 3)
    np.save("p.npy", p)
    np.savetxt("p.csv", p, delimiter=",", fmt="%.9g")
    np.save("sure.npy", pysoftmax.softmax(20 * normal(600, 10)))
    return p


def test_monitor_sums_up_a_stream(run, stream):
    expected = summary_of(stream)
    Path("twice.npy").write_bytes(2 * Path("p.npy").read_bytes())
    for args in (["p.npy"], ["p.csv"]):
        status, out, err = run("monitor", *args, "--json")
        assert (status, err) == (0, "")
        found = json.loads(out, parse_constant=pytest.fail)
        assert found["total"]["count"] == 600
        assert found["total"]["mean"] == pytest.approx(expected["mean"])
        assert not any(alert["active"] for alert in found["alerts"])
    for args in (["p.npy", "p.npy"], ["twice.npy"]):
        found = json.loads(run("monitor", *args, "--json")[1])
        assert (found["total"]["count"], found["total"]["mean"]) == (1200, expected["mean"])


@pytest.mark.parametrize("name", ["p.npy", "p.csv"])
def test_monitor_reads_batches_from_a_pipe(stream, name):
    data = Path(name).read_bytes()
    done = spawn("monitor", "--json", input=data + data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["total"]["count"] == 1200


def test_monitor_does_not_wait_for_more_lines(stream, tmp_path):
    """What has come is counted although the pipe stays open."""
    args = ["monitor", "--state", "s.json", "--high", "0.4", "--low", "0.1"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*PROGRAM, *args, "--window", "5000"], stdin=pipe, stderr=pipe) as run:
        run.stdin.write(b"0.5,0.5\n" * 500)
        run.stdin.flush()
        assert b"mean_high raised" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) == 130
    assert json.loads(Path("s.json").read_text())["offered"] == 500


def test_monitor_of_no_rows_says_that_there_are_none(run, tmp_path):
    np.save(tmp_path / "none.npy", np.empty((0, 3)))
    status, out, _ = run("monitor", tmp_path / "none.npy")
    assert status == 0
    assert "nan" not in out
    assert out.split("mean confidence")[1].split()[:2] == ["-", "-"]
    assert _watch._line(pysoftmax.ConfidenceMonitor(3)) == "0 rows"


def test_monitor_of_logits(run, stream):
    np.save("x.npy", normal(600, 10))
    status, out, _ = run("monitor", "x.npy", "--logits", "--temperature", 3, "--json")
    expected = summary_of(pysoftmax.softmax(normal(600, 10), temperature=3.0))
    assert (status, json.loads(out)["total"]) == (0, expected)
    np.save("turned.npy", normal(600, 10).T)
    args = ["--logits", "--temperature", 3, "--json", "--axis", 0]
    assert json.loads(run("monitor", "turned.npy", *args)[1])["total"] == expected


def test_an_alert_is_status_1_and_told_on_standard_error(run, stream):
    status, out, err = run("monitor", "sure.npy")
    assert status == 1
    assert "mean_high" in out
    assert "RAISED" in out
    assert err.startswith("pysoftmax: alert mean_high raised: ")
    assert run("monitor", "sure.npy", "--high", "0.9999999")[0] == 0


def test_monitor_goes_on_from_its_state_and_measures_drift(run, stream):
    for count in (600, 1200):
        status, out, _ = run("monitor", "p.npy", "--state", "s.json", "--json")
        assert (status, json.loads(out)["total"]["count"]) == (0, count)
    status, out, _ = run("monitor", "sure.npy", "--reference", "s.json", "--json")
    active = {alert["name"] for alert in json.loads(out)["alerts"] if alert["active"]}
    assert status == 1
    assert active >= {"psi", "ks"}
    status, out, _ = run("monitor", "p.npy", "--reference", "s.json")
    assert status == 0
    assert " psi " in f" {out} ".replace("\n", " ")


def test_monitor_writes_metrics_and_a_picture(run, stream):
    args = ["--prometheus", "m.prom", "--plot", "m.png", "--window", 100, "--every", 2]
    assert run("monitor", "p.npy", *args)[0] == 0
    assert "pysoftmax_confidence_count 300.0\n" in Path("m.prom").read_text()
    assert_picture("m.png")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent.npy"], ["cannot read", "absent.npy"]),
        (["empty.csv"], ["empty.csv is empty"]),
        (["p.npy", "x3.npy"], ["x3.npy", "10 classes along axis 1", "(5, 3)"]),
        (["p.npy", "--axis", "2"], ["p.npy", "(600, 10)", "axis 2"]),
        (["rest.npy"], ["rest.npy, array 2", "not a readable .npy file"]),
        (["names.csv"], ["names.csv, line 1, column 1", "--skip-header"]),
        (["p.npy", "--high", "2"], ["high must be in [0, 1]"]),
        (["p.npy", "--window", "5"], ["window must be at least 10"]),
        (["p.npy", "--temperature", "2"], ["temperature divides logits"]),
        (["p.npy", "--reference", "absent.json"], ["cannot read", "absent.json"]),
        (["p.npy", "--reference", "p.csv"], ["p.csv is not JSON"]),
        (["p.npy", "--reference", "list.json"], ["reference must be"]),
        (["p.npy", "--state", "list.json"], ["list.json", "expected the state"]),
        (["p.npy", "--state", "no/s.json"], ["cannot write", "no/s.json"]),
    ],
)
def test_what_cannot_be_monitored_is_one_clear_line(run, stream, args, words):
    Path("empty.csv").write_text("")
    Path("names.csv").write_text("a,b\n1,0\n")
    Path("list.json").write_text("[]")
    np.save("x3.npy", np.full((5, 3), 1 / 3))
    Path("rest.npy").write_bytes(Path("p.npy").read_bytes() + b"and more")
    assert_error(run("monitor", *args), *words)


@pytest.mark.parametrize("cut", [-1, 200, 50, 3])
def test_a_pipe_that_ends_within_an_array_is_told(stream, cut):
    data = Path("p.npy").read_bytes()
    done = spawn("monitor", input=data + data[:cut])
    assert done.returncode == 1
    assert b"standard input, array 2" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_monitor_says_which_extras_are_missing(run, stream, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert_error(run("monitor", "p.npy", "--plot", "x.png"), "pysoftmax[plot]")
    assert_error(run("monitor", "p.npy", "--prometheus", "x"), "pysoftmax[prometheus]")


@pytest.mark.parametrize("rich", [False, True])
def test_a_terminal_sees_a_live_line(stream, monkeypatch, capsys, rich):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setattr(cli, "find_spec", lambda name: None)
    monkeypatch.setattr(_watch, "_LINE_SECONDS", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["monitor", "p.npy", "p.npy"]) == 0
    assert "1200 rows, confidence 0." in capsys.readouterr().err or rich


@pytest.mark.parametrize("rich", [False, True])
def test_what_a_terminal_shows_of_a_slow_stream(rich, monkeypatch):
    """Alerts stand on lines of their own, the live line is the last, and is gone at the end."""
    pty = pytest.importorskip("pty")
    if rich:
        pytest.importorskip("rich")
    hidden = "" if rich else "import pysoftmax.cli as c; c.find_spec = lambda name: None"
    setup = f"from pysoftmax import _watch; _watch._LINE_SECONDS = 0; {hidden}"
    screen, terminal = pty.openpty()
    program = [*program_after(setup), "monitor", "--window", "100"]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": terminal}
    monkeypatch.setenv("TERM", "xterm")
    with subprocess.Popen(program, **options) as process:
        os.close(terminal)
        shown = b""

        def until(text):
            nonlocal shown
            while text not in shown:
                shown += os.read(screen, 1 << 16)

        for share, rows in ((0.6, 150), (0.99, 300)):
            process.stdin.write(rows * f"{share},{1 - share:.2f}\n".encode())
            process.stdin.flush()
            until(b"%d rows" % (150 if rows == 150 else 450))
        until(b"alerts: mean_high")
        process.stdin.close()
        with contextlib.suppress(OSError):  # the terminal is gone
            while more := os.read(screen, 1 << 16):
                shown += more
    os.close(screen)
    assert process.returncode == 1
    lines = shown.decode().split("\r\n")
    alerts = [line for line in lines if "mean_high raised" in line]
    assert len(alerts) == 1
    # What was on the screen's line before is erased.
    assert re.split(r"\x1b\[2K|\r", alerts[0])[-1].startswith("pysoftmax: alert mean_high raised")
    assert "rows" not in re.split(r"\x1b\[2K|\r", shown.decode())[-1]


# -- the terminal ----------------------------------------------------------------------------


def test_a_table_lines_up(capsys):
    cli.table(["shape", "ns"], [["1x1", "10.00"], ["1024x1000", "2.00"]])
    assert capsys.readouterr().out == (
        "shape         ns\n---------  -----\n1x1        10.00\n1024x1000   2.00\n"
    )


@pytest.mark.parametrize("rich", [False, True])
def test_a_terminal_sees_progress_and_a_file_does_not(logits, monkeypatch, capsys, rich):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setattr(cli, "find_spec", lambda name: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["softmax", str(logits), str(logits)]) == 0
    assert "100%" in capsys.readouterr().err or rich
