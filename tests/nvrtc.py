"""NVRTC compiles kernels without a device or a driver: what they use, what the code looks like."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# As the backend compiles: subnormals are kept, and only what is written as one operation is one.
OPTIONS = ("-std=c++17", "-default-device", "-ftz=false", "-fmad=false")

RESOURCES = re.compile(
    r"Function properties for (?P<name>\w+)\s+ptxas +\. +(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s+"
    r"ptxas info +: Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
)
ENTRY = re.compile(r"\.entry (\w+)\(.*?^}", re.DOTALL | re.MULTILINE)
WIDE = re.compile(r"\b(ld|st)\.global\S*\.(?:v4\.[busf]32|v2\.[busf]64)\b")


class CompileError(RuntimeError):
    """NVRTC's log."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel; sizes in bytes."""

    registers: int
    spills: int  # stored and loaded again
    stack: int  # spills and arrays that are not in registers
    shared: int  # static
    ptx: str

    def wide(self, kind):
        """How many loads (``"ld"``) or stores (``"st"``) of 16 bytes, shared memory's apart."""
        return sum(found == kind for found in WIDE.findall(self.ptx))


@dataclasses.dataclass(frozen=True)
class Compiled:
    kernels: dict[str, Kernel]
    log: str
    cubin: bytes
    ptx: str

    @property
    def warnings(self):
        return [line for line in self.log.splitlines() if "warning" in line]


def available():
    """Skip, by name, without CuPy or its compiler; the module ``cupy.cuda.nvrtc``."""
    pytest.importorskip("cupy", reason="needs cupy-cuda12x[ctk] or cupy-cuda13x[ctk]")
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs NVRTC, of cupy-cuda13x[ctk]: {error}")
    return nvrtc


@functools.cache
def compiled(source, arch, defines=(), options=OPTIONS):
    """A source file, compiled for one architecture.

    Parameters
    ----------
    source : path
    arch : str
        ``"sm_90"`` and the like.
    defines : tuple of str, optional
        Macros: ``"NAME=value"``.
    options : tuple of str, optional

    Returns
    -------
    Compiled

    Raises
    ------
    CompileError
        The log.
    """
    nvrtc = available()
    from cupy._core import core

    source = Path(source)
    options = (*options, f"-arch={arch}", "--ptxas-options=-v", f"-I{source.parent}")
    options += tuple(f"-D{macro}" for macro in defines)
    options = core.assemble_cupy_compiler_options(options)  # where CUDA's headers are
    program = nvrtc.createProgram(source.read_text(), source.name, (), ())
    try:
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise CompileError(
                f"{source.name} for {arch}: {error}\n{_log(nvrtc, program)}"
            ) from None
        log, ptx = _log(nvrtc, program), nvrtc.getPTX(program).decode()
        return Compiled(_kernels(log, ptx), log, nvrtc.getCUBIN(program), ptx)
    finally:
        nvrtc.destroyProgram(program)


def _log(nvrtc, program):
    return nvrtc.getProgramLog(program).rstrip("\0 \n")


def _kernels(log, ptx):
    bodies = {entry[1]: entry[0] for entry in ENTRY.finditer(ptx)}
    kernels = {}
    for found in RESOURCES.finditer(log):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        kernels[found["name"]] = Kernel(
            registers=int(found["registers"]),
            spills=int(found["stores"]) + int(found["loads"]),
            stack=int(found["stack"]),
            shared=int(shared[1]) if shared else 0,
            ptx=bodies[found["name"]],
        )
    assert kernels.keys() == bodies.keys(), f"no resources of some kernels in the log:\n{log}"
    return kernels
