"""CUDA kernels on the CPU: g++ builds them with cuda/cuda_on_cpu.h, ctypes calls them.

    module = Module("src/cuda/rows.cu", {"REAL": "float"})
    module.launch("softmax_f32", (rows,), (128,), (x, out, np.int64(n)), shared=512)

Arguments are those of ``cupy.RawKernel``, with NumPy arrays for CuPy's: an array is passed as a
pointer, a scalar by value, and so is a structure, a structured scalar or array of one element.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
HEADER = TESTS / "cuda" / "cuda_on_cpu.h"
SAMPLES = TESTS / "cuda" / "samples"
INCLUDES = [f"-I{TESTS.parent / folder}" for folder in ("src/cuda", "src/cpu")]
CACHE = TESTS.parent / ".pytest_cache" / "d" / "cuda_on_cpu"  # emptied by pytest --cache-clear

COMPILER = "g++"
# Kernels round as on the device: no contraction, and a fused multiply-add is one instruction.
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing"]
FLAGS += ["-fPIC", "-fvisibility=hidden"]  # hidden: each library has its own state and kernels
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS += ["-mfma", "-mf16c"]
OPTIMISED = ["-O0"]  # a module is compiled for longer than it runs
SANITIZED = ["-O1", "-g1", "-fsanitize=address,alignment", "-fno-sanitize-recover=all"]

KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(\w+)\s*\(')


class LaunchError(RuntimeError):
    """What a device would refuse, hang at or leave undefined."""


def compiler_is_missing():
    return shutil.which(COMPILER) is None


def needs_compiler():
    """A mark that skips without g++."""
    return pytest.mark.skipif(compiler_is_missing(), reason=f"needs {COMPILER}")


@functools.cache
def sanitizer():
    """The address sanitizer's library, or None where the compiler has none."""
    if shutil.which(COMPILER) is None:
        return None
    path = Path(_compiler("-print-file-name=libasan.so").strip())
    return path if path.is_absolute() else None  # a bare name: not found


def needs_sanitizer():
    """A mark that skips without the address sanitizer."""
    return pytest.mark.skipif(sanitizer() is None, reason=f"needs {COMPILER}'s address sanitizer")


def python_sanitized(*arguments, timeout=300):
    """Run Python where modules built with ``sanitize=True`` can be loaded; the finished process."""
    assert sanitizer() is not None
    path = [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "LD_PRELOAD": str(sanitizer()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _compiler(*arguments):
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{COMPILER} {' '.join(arguments)}\n{done.stderr[-8000:]}"
    return done.stdout


class Module:
    """The kernels of a source file.

    Parameters
    ----------
    source : path
        A .cu or .cuh file.
    defines : dict of str, optional
        Macros and their values.
    sanitize : bool, optional
        Let reads and writes outside an array, and misaligned vectors, end the process with a
        report. Only a process of ``python_sanitized`` can load such a module.
    """

    def __init__(self, source, defines=None, *, sanitize=False):
        if sanitize and "libasan" not in os.environ.get("LD_PRELOAD", ""):
            raise RuntimeError("a sanitized module needs a process of python_sanitized")
        flags = FLAGS + (SANITIZED if sanitize else OPTIMISED)
        header, runtime = _prepared(tuple(flags))
        flags += ["-x", "c++", f"-I{SAMPLES}", *INCLUDES]
        macros = (defines or {}).items()
        include = [*(f"-D{k}={v}" for k, v in macros), "-include", str(HEADER)]
        listing = _compiler(*flags, "-DCUDA_ON_CPU_LIST", *include, "-E", "-P", str(source))
        self.names = KERNEL.findall(listing)
        assert self.names, f'no kernel in {source}: extern "C" __global__ void name(...)'
        key = "\0".join([_version(), *flags, listing])
        built = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
        if not built.exists():
            # With a macro defined before that might be in it, it would be read anew.
            lines = [f"#define {k} {v}" for k, v in macros]
            lines += [f'#include "{Path(source).resolve()}"']
            lines += [f"KERNEL_ENTRY({name})" for name in self.names]
            flags += ["-Werror=invalid-pch", "-include", str(header)]
            _build(lines, flags, runtime, built)
        self._library = ctypes.CDLL(str(built))
        self._launch = self._library.cuda_launch
        self._launch.restype = ctypes.c_char_p
        self._entries = {name: _entry(self._library, name) for name in self.names}

    def launch(self, name, grid, block, args, *, shared=0, cluster=1, seed=0):
        """Run a kernel to its end.

        Parameters
        ----------
        name : str
        grid, block : tuple of int
            One to three sizes: blocks, threads.
        args : sequence
        shared : int, optional
            Bytes of dynamic shared memory.
        cluster : int, optional
            Blocks in a cluster, along x.
        seed : int, optional
            Which order the threads run in, and what uninitialised shared memory holds.

        Raises
        ------
        LaunchError
            The launch is not possible on a device, or would not end on one.
        TypeError
            Arguments that are not the kernel's.
        """
        if name not in self._entries:
            raise KeyError(f"no kernel {name!r} among {', '.join(self.names)}")
        entry = self._entries[name]
        kept = [_argument(value) for value in args]
        sizes = list(entry.contents.sizes[: entry.contents.count])
        if [ctypes.sizeof(value) for value in kept] != sizes:
            given = [ctypes.sizeof(value) for value in kept]
            raise TypeError(f"{name} takes arguments of {sizes} bytes, got {given}")
        pointers = (ctypes.c_void_p * (len(kept) + 1))(*map(ctypes.addressof, kept))
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        shape = (ctypes.c_uint * 8)(*map(int, (*grid, *block, cluster, shared)))
        wrong = self._launch(entry, shape, ctypes.c_uint64(seed), pointers)
        if wrong is not None:
            raise LaunchError(f"{name}, seed {seed}: {wrong.decode()}")


class _Entry(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_void_p),
        ("count", ctypes.c_uint),
        ("sizes", ctypes.POINTER(ctypes.c_uint)),
    ]


def _entry(library, name):
    find = library[f"{name}_entry"]
    find.restype = ctypes.POINTER(_Entry)
    return find()


def _argument(value):
    """What CuPy would pass, as a ctypes object."""
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, np.ndarray) and (value.dtype.names is None or value.size != 1):
        return ctypes.c_void_p(value.ctypes.data)
    if type(value) in (int, float, bool):
        value = {int: np.int64, float: np.float64, bool: np.bool_}[type(value)](value)
    if not isinstance(value, (np.generic, np.ndarray)):
        raise TypeError(f"expected an array, a NumPy scalar or a number, got {type(value)}")
    raw = value.tobytes()
    return (ctypes.c_char * len(raw)).from_buffer_copy(raw)


@functools.cache
def _version():
    return _compiler("--version")


@functools.cache
def _prepared(flags):
    """The header where the compiler finds it read already, and what of it is the same for all."""
    content = "\0".join([_version(), *flags, *(p.read_text() for p in HEADER.parent.glob("*.h"))])
    folder = CACHE / f"header-{hashlib.sha256(content.encode()).hexdigest()[:32]}"
    header, runtime = folder / HEADER.name, folder / "runtime.o"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=CACHE))
        (part / HEADER.name).write_text(f'#include "{HEADER}"\n')
        kind = ["-x", "c++-header", "-o", str(part / f"{HEADER.name}.gch")]
        _compiler(*flags, *kind, str(part / HEADER.name))
        kind = ["-x", "c++", "-DCUDA_ON_CPU_RUNTIME", "-c", "-o", str(part / "runtime.o")]
        _compiler(*flags, *kind, str(HEADER))
        with contextlib.suppress(OSError):  # another process was first
            part.rename(folder)
    return header, runtime


def _build(lines, flags, runtime, built):
    built.parent.mkdir(parents=True, exist_ok=True)
    part = built.with_suffix(f".{os.getpid()}")
    main = part.with_suffix(part.suffix + ".cpp")
    main.write_text("\n".join([*lines, ""]))
    try:
        _compiler(*flags, "-shared", "-o", str(part), str(main), "-x", "none", str(runtime))
        os.replace(part, built)  # whole or not at all, for processes that run at the same time
    finally:
        main.unlink()
