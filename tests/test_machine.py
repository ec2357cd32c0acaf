"""Threads, processes, memory and sizes: no crash, hang, leak or needless copy."""

import concurrent.futures
import multiprocessing
import os
import sys
import textwrap
import threading
import time
import tracemalloc

import numpy as np
import oracles
import pytest
from cases import normal, plain, python, targets
from oracles import assert_same_bytes, assert_ulp

import pysoftmax as ps

WAIT = 60  # seconds after which a hang is called a hang


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = ps.get_num_threads()
    yield
    ps.set_num_threads(before)


def script(tmp_path, source):
    """Write a script; needed where child processes import it again."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(source))
    return str(path)


# --- the number of threads ----------------------------------------------------------------------


def test_the_number_of_threads_is_set_and_read():
    for n in (1, 3, np.int64(2)):
        ps.set_num_threads(n)
        assert ps.get_num_threads() == n
        assert ps.info()["threads"] == n


def test_the_context_manager_restores_the_number_also_after_an_error():
    ps.set_num_threads(2)
    with ps.num_threads(3):
        assert ps.get_num_threads() == 3
        with ps.num_threads(1):
            assert ps.get_num_threads() == 1
        assert ps.get_num_threads() == 3
    assert ps.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), ps.num_threads(4):
        raise ZeroDivisionError
    assert ps.get_num_threads() == 2


@pytest.mark.parametrize("bad", [0, -1, 2**31])
def test_fewer_threads_than_one_or_too_many(bad):
    with pytest.raises(ValueError, match=str(bad)):
        ps.set_num_threads(bad)
    with pytest.raises(ValueError, match=str(bad)), ps.num_threads(bad):
        pass


@pytest.mark.parametrize("bad", [1.5, "2", None])
def test_a_number_of_threads_that_is_no_integer(bad):
    with pytest.raises(TypeError):
        ps.set_num_threads(bad)


def test_the_environment_sets_the_number_of_threads():
    source = "import pysoftmax; print(pysoftmax.get_num_threads())"
    assert python("-c", source, PYSOFTMAX_NUM_THREADS="3").strip() == "3"


def test_the_environment_forces_a_target():
    source = "import pysoftmax; print(pysoftmax.info()['cpu']['target'])"
    for target in targets()[0]:
        assert python("-c", source, PYSOFTMAX_CPU_TARGET=target).strip() == target


@pytest.mark.parametrize("target", ["baseline", "avx2", "avx512", "neon", "abacus"])
def test_a_target_that_is_not_there_is_a_clear_error(target):
    if target in targets()[0]:
        pytest.skip(f"{target} is there")
    source = """
        try:
            import pysoftmax
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            print("refused:", error)
    """
    output = python("-c", textwrap.dedent(source), PYSOFTMAX_CPU_TARGET=target)
    assert "refused:" in output
    assert target in output


# --- Python's threads ---------------------------------------------------------------------------


def test_many_python_threads_at_once():
    """Each with its own arrays, some long enough for the kernels' own threads."""
    shapes = [(3, 5), (200, 1000), (5000, 10), (2, 70_000), (1, 400_000)]
    arrays = [normal(shape, d, seed=i) for i, shape in enumerate(shapes) for d in ("f4", "f8")]
    functions = (ps.softmax, ps.log_softmax, ps.logsumexp, ps.sigmoid)
    want = {(i, f): f(a) for i, a in enumerate(arrays) for f in functions}

    def work(seed):
        rng = np.random.default_rng(seed)
        for i in rng.permutation(len(arrays)):
            for f in functions:
                assert_same_bytes(f(arrays[i]), want[i, f], thread=seed, array=i)
            with ps.num_threads(int(rng.integers(1, 4))):
                labels = np.zeros(len(arrays[i]), int)
                ps.cross_entropy_with_grad(arrays[i], labels)
        return seed

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        done = list(pool.map(work, range(24), timeout=WAIT))
    assert done == list(range(24))


def test_the_interpreter_lock_is_released():
    """Another thread counts while a kernel runs; nothing else would let it."""
    x = np.zeros((64, 2**17), np.float32)
    out = np.empty_like(x)
    ps.softmax(x, out=out)
    count, stop = [0], threading.Event()

    def counting():
        while not stop.is_set():
            count[0] += 1
            time.sleep(1e-5)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    thread = threading.Thread(target=counting)
    try:
        thread.start()
        for _ in range(50):
            before = count[0]
            ps.softmax(x, out=out)
            if count[0] > before:
                break
        assert count[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


# --- processes ----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while a thread computes"])
def test_fork_after_the_kernels_have_used_threads(tmp_path, busy):
    """libgomp alone would hang in the child."""
    path = script(
        tmp_path,
        f"""
        import os, signal, threading, time, warnings
        import numpy as np
        import pysoftmax as ps
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        x = np.random.default_rng(0).standard_normal((400, 5000)).astype(np.float32)
        row = x.reshape(-1)
        ps.set_num_threads(4)
        want = ps.softmax(x).tobytes(), ps.softmax(row).tobytes()
        stop = threading.Event()

        def compute():
            while not stop.is_set():
                ps.softmax(x)

        thread = threading.Thread(target=compute)
        if {busy}:
            thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                got = ps.softmax(x).tobytes(), ps.softmax(row).tobytes()
                ps.set_num_threads(3)
                again = ps.softmax(x).tobytes(), ps.softmax(row).tobytes()
                os._exit(0 if got == want == again else 3)
            status = os.waitpid(child, 0)[1]
            assert status == 0, f"the child ended with {{status}} (14: it hung)"
            assert ps.softmax(x).tobytes() == want[0]
        stop.set()
        if {busy}:
            thread.join()
        print("survived")
        """,
    )
    assert "survived" in python(path, timeout=WAIT)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot start processes by {method}")
    path = script(
        tmp_path,
        f"""
        import multiprocessing, warnings
        import numpy as np
        import pysoftmax as ps
        warnings.simplefilter("ignore", DeprecationWarning)

        def work(seed):
            x = np.random.default_rng(seed).standard_normal((200, 2000)).astype(np.float32)
            return ps.softmax(x).tobytes(), ps.logsumexp(x.reshape(-1)).tobytes()

        if __name__ == "__main__":
            ps.set_num_threads(2)
            want = [work(seed) for seed in range(6)]
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                assert pool.map_async(work, range(6)).get(timeout=40) == want
            print("agreed")
        """,
    )
    assert "agreed" in python(path, timeout=WAIT)


# --- memory -------------------------------------------------------------------------------------

MEGA = 2**20


def peak_of(call):
    """The most memory that NumPy and Python held at once on behalf of a call, in bytes."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _big(dtype=np.float32, shape=(1024, 4096)):
    return np.zeros(shape, dtype)


WITHOUT_COPIES = {
    "contiguous": lambda: _big(),
    "float64": lambda: _big(np.float64),
    "float16": lambda: _big(np.float16),
    "int8": lambda: _big(np.int8),
    "Fortran": lambda: np.asfortranarray(_big()),
    "negative strides": lambda: _big()[::-1, ::-1],
    "sliced": lambda: _big(shape=(1024, 8192))[:, ::2],
    "one long row": lambda: _big(shape=(4 * MEGA,)),
    "few columns": lambda: _big(shape=(MEGA, 4)),
}


@pytest.mark.parametrize("case", WITHOUT_COPIES)
@pytest.mark.parametrize("function", [ps.softmax, ps.log_softmax], ids=["softmax", "log_softmax"])
def test_no_whole_array_is_copied_on_the_way_to_out(case, function):
    x = WITHOUT_COPIES[case]()
    out = np.empty(x.shape, function(x[:1]).dtype)
    assert peak_of(lambda: function(x, out=out)) < x.size // 4
    assert peak_of(lambda: function(x, -1)) < out.nbytes + x.size // 4
    assert peak_of(lambda: ps.logsumexp(x)) < x.size // 4 + 9 * (x.size // x.shape[-1])


def test_no_whole_array_is_copied_in_place_or_along_another_axis_or_under_a_mask():
    x, where = _big(), np.ones((1024, 4096), bool)
    for call in (
        lambda: ps.softmax(x, out=x),
        lambda: ps.softmax(x, 0, out=x),
        lambda: ps.softmax(x, where=where, out=x),
        lambda: ps.softmax(x, temperature=np.ones(1024), out=x),
        lambda: ps.sigmoid(x, out=x),
    ):
        assert peak_of(call) < x.size // 4


def test_losses_copy_nothing():
    x, labels = _big(), np.zeros(1024, int)
    gradient = np.empty_like(x)
    p = np.full_like(x, 1 / 4096)
    z = np.ones_like(x)
    for call in (
        lambda: ps.cross_entropy(x, labels),
        lambda: ps.cross_entropy(x, p),
        lambda: ps.cross_entropy_with_grad(x, labels, grad_out=gradient),
        lambda: ps.cross_entropy_with_grad(x, p, grad_out=gradient),
        lambda: ps.binary_cross_entropy_with_logits(x, z),
        lambda: ps.binary_cross_entropy_with_logits_with_grad(x, z, grad_out=gradient),
        lambda: ps.softmax_vjp(x, p, out=gradient),
        lambda: ps.log_softmax_vjp(x, x, out=gradient),
    ):
        assert peak_of(call) < x.size // 4


def test_memory_outside_numpy_does_not_grow_either(tmp_path):
    """The high-water mark of the process, which sees the allocations of compiled code too."""
    if not os.path.exists("/proc/self/status"):
        # getrusage's mark is the parent's where that was higher: of tests it mostly is.
        pytest.skip("this system has no /proc/self/status")
    path = script(
        tmp_path,
        """
        import re
        import numpy as np
        import pysoftmax as ps

        def high_water():
            with open("/proc/self/status") as status:
                return 1024 * int(re.search("VmHWM: *(.*) kB", status.read().expandtabs())[1])

        x = np.ones((2048, 8192), np.float32)  # 64 MiB
        out = np.ones_like(x)
        labels = np.zeros(2048, int)
        keep = np.ones(x.size, bool)
        ps.softmax(x[:64], out=out[:64])
        before = high_water()
        for a in (x, x.T, x.reshape(-1), x.reshape(-1, 4)):
            o = out.T if a is not x and a.shape == x.T.shape else out.reshape(a.shape)
            ps.softmax(a, out=o)
            ps.log_softmax(a, out=o)
            ps.softmax(a, 0, out=o)
        ps.softmax(x.reshape(-1)[::2], out=out.reshape(-1)[::2])
        ps.log_softmax(x.reshape(-1), where=keep, out=out.reshape(-1))
        ps.cross_entropy_with_grad(x, labels, grad_out=out)
        print(high_water() - before)
        """,
    )
    assert int(python(path)) < 8 * MEGA


@pytest.mark.parametrize("axis", [-1, 0])
def test_repeated_calls_leak_nothing(axis):
    x, labels = normal((20, 30), np.float32), np.zeros(20, int)

    def calls():
        for _ in range(2000):
            ps.softmax(x, axis)
            ps.logsumexp(x, axis, where=x > 0)
            ps.cross_entropy_with_grad(x, labels, weight=x[0] ** 2)
            for bad in (lambda: ps.softmax(x, 7), lambda: ps.cross_entropy(x, labels + 99)):
                try:
                    bad()
                except (ValueError, IndexError):
                    pass

    calls()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        calls()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()


def test_no_reference_to_an_argument_is_kept():
    x, labels = normal((20, 30), np.float32), np.zeros(20, int)
    out = np.empty_like(x)
    counts = [sys.getrefcount(a) for a in (x, labels, out)]
    for _ in range(10):
        ps.softmax(x, out=out)
        ps.cross_entropy_with_grad(x, labels, grad_out=out)
        with pytest.raises(ValueError):
            ps.softmax(x[0], out=out)
        with pytest.raises(IndexError):
            ps.cross_entropy_with_grad(x, labels - 1, grad_out=out)
    assert [sys.getrefcount(a) for a in (x, labels, out)] == counts


# --- sizes --------------------------------------------------------------------------------------

BEYOND = 2**31 + 8


def test_a_row_of_more_than_two_to_the_31_columns():
    x = np.zeros(BEYOND, np.float32)  # untouched pages cost no memory
    x[-1] = 30
    others = oracles.WIDE.asarray(float(BEYOND - 1)) * oracles.WIDE.exp(oracles.WIDE.asarray(-30.0))
    assert_ulp(
        "logsumexp", np.asarray(ps.logsumexp(x)), np.asarray(oracles.WIDE.log1p(others) + 30)
    )


def test_an_array_of_more_than_two_to_the_31_elements():
    x = np.zeros((2**15 + 1, 2**16), np.uint8)  # untouched pages cost no memory
    x[-1, -1] = 9
    lse = ps.logsumexp(x)
    assert (lse[:-1] == lse[0]).all()
    last = np.zeros(2**16, np.float32)
    last[-1] = 9
    assert_ulp("logsumexp", lse[:1], oracles.logsumexp(last[None] * 0))
    assert_ulp("logsumexp", lse[-1:], oracles.logsumexp(last[None]))


def test_strides_of_more_than_two_to_the_31_bytes(tmp_path):
    values = normal((5, 4), np.float32)
    whole = np.memmap(tmp_path / "sparse", np.float32, "w+", shape=(5, 2**29))
    x = np.asarray(whole)[:, :: 2**27]
    x[...] = values
    for axis in (0, 1):
        assert_same_bytes(ps.softmax(x, axis), ps.softmax(values, axis), axis=axis)
    assert ps.softmax(x, out=x) is x
    assert_same_bytes(plain(x), ps.softmax(values))


@pytest.mark.parametrize("shape", [(BEYOND, 0), (0, BEYOND), (3, 0, BEYOND)])
def test_nothing_times_more_than_two_to_the_31(shape):
    assert ps.softmax(np.empty(shape, np.float32)).shape == shape


@pytest.mark.parametrize("dimensions", [1, 8, 32, 64])
def test_any_number_of_dimensions(dtype, dimensions):
    x = normal((2,) * min(dimensions, 5) + (1,) * max(dimensions - 5, 0), dtype)
    axis = min(dimensions, 5) - 1
    expected = ps.softmax(np.ascontiguousarray(x.reshape(x.shape[: axis + 1])))
    assert_same_bytes(ps.softmax(x, axis).reshape(expected.shape), expected)
    assert ps.softmax(x, None).shape == x.shape


def test_a_read_only_memory_map(tmp_path, dtype):
    values = normal((30, 40), dtype)
    values.tofile(tmp_path / "logits")
    x = np.memmap(tmp_path / "logits", dtype, "r", shape=values.shape)
    assert_same_bytes(ps.softmax(x), ps.softmax(values))
    labels = np.zeros(30, int)
    labels.flags.writeable = False
    assert ps.cross_entropy(x, labels) == ps.cross_entropy(values, labels)


# --- the ends of arrays -------------------------------------------------------------------------

BETWEEN_GUARDS = """
import ctypes
import mmap

import numpy as np
from cases import ROWWISE, normal

import pysoftmax as ps
from pysoftmax.backends import _cpu, numpy

SIZE = 32 * mmap.PAGESIZE
protect = ctypes.CDLL(None).mprotect


def memory():
    pages = mmap.mmap(-1, SIZE + 2 * mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for guard in (begin, begin + mmap.PAGESIZE + SIZE):
        assert protect(ctypes.c_void_p(guard), mmap.PAGESIZE, 0) == 0
    return pages


def at_an_end(pages, like, last):
    offset = mmap.PAGESIZE + (SIZE - like.nbytes if last else 0)
    return np.ndarray(like.shape, like.dtype, pages, offset)


WRITTEN = {
    "softmax": lambda x, axis, out: ps.softmax(x, axis, out=out),
    "log_softmax": lambda x, axis, out: ps.log_softmax(x, axis, temperature=2, out=out),
    "sigmoid": lambda x, axis, out: ps.sigmoid(x, out=out),
    "softmax_vjp": lambda x, axis, out: ps.softmax_vjp(x, x, axis, out=out),
    "cross_entropy": lambda x, axis, out: ps.cross_entropy_with_grad(
        x, x.argmax(axis), axis, grad_out=out
    ),
    "softmax and its largest": lambda x, axis, out: _cpu.fast_softmax_and_top(x, -1, 1.0, out),
    "the largest": lambda x, axis, out: numpy.top(x),
    "entropy": lambda x, axis, out: [_cpu.entropy(row) for row in x],
}
LENGTHS = (*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 129, 257, 511, 513, 1025, 2049)
given, result = memory(), memory()
for dtype in (np.float32, np.float64):
    for shape in [(rows, n) for rows in (1, 2, 7) for n in LENGTHS]:
        ordinary = abs(normal(shape, dtype))
        for last in (True, False):
            x, out = (at_an_end(pages, ordinary, last) for pages in (given, result))
            x[...] = ordinary
            for axis in (-1, 0):
                for call in ROWWISE.values():
                    call(x, axis)
                for call in WRITTEN.values():
                    call(x, axis, out)
print("nothing beyond")
"""


@pytest.mark.parametrize("target", ["avx512", "avx2", "neon", "baseline"])
def test_nothing_beyond_the_ends_of_arrays_is_touched(tmp_path, target):
    if target not in targets()[0]:
        pytest.skip(f"this build on this CPU has no {target}: {targets()[0]}")
    output = python(script(tmp_path, BETWEEN_GUARDS), PYSOFTMAX_CPU_TARGET=target)
    assert output == "nothing beyond\n"


# --- wrong arguments ----------------------------------------------------------------------------

WRONG = {
    "axis": lambda x, out: ps.softmax(x, 5, out=out),
    "axis twice": lambda x, out: ps.softmax(x, (0, 0), out=out),
    "temperature": lambda x, out: ps.softmax(x, temperature=-1, out=out),
    "one temperature of many": lambda x, out: ps.softmax(x, temperature=[1, 1, np.nan], out=out),
    "where": lambda x, out: ps.softmax(x, where=np.ones(9, bool), out=out),
    "dtype": lambda x, out: ps.softmax(x, dtype=np.float32, out=out),
    "other shape": lambda x, out: ps.softmax_vjp(x, x.T, out=out),
    "label": lambda x, out: ps.cross_entropy_with_grad(x, [0, 0, 4], grad_out=out),
    "weight": lambda x, out: ps.cross_entropy_with_grad(
        x, [0, 0, 0], weight=np.ones(3), grad_out=out
    ),
    "probability": lambda x, out: ps.cross_entropy_with_grad(x, x - 1, grad_out=out),
    "reduction": lambda x, out: ps.cross_entropy_with_grad(
        x, [0, 0, 0], reduction="most", grad_out=out
    ),
    "pos_weight": lambda x, out: ps.binary_cross_entropy_with_logits_with_grad(
        x, x, pos_weight=np.ones(3), grad_out=out
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_is_written_on_wrong_arguments(wrong):
    x, out = np.zeros((3, 4)), np.full((3, 4), 7.0)
    with pytest.raises((ValueError, TypeError, IndexError)):
        WRONG[wrong](x, out)
    assert (out == 7).all()
    with pytest.raises((ValueError, TypeError, IndexError)):
        WRONG[wrong](x, x)
    assert (x == 0).all()
