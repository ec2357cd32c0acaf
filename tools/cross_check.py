"""Check that builds of the row kernels for other targets and compilers give the same bits.

``python tools/cross_check.py`` compiles the kernels for x86-64-v3 with gcc, and with whatever
of these is installed: gcc for x86-64-v4 (if the CPU has it), clang, and
aarch64-linux-gnu-gcc with qemu-aarch64 to run the result. It prints one line per build and
exits 1 if bits differ. Needs Cython; on Debian: apt-get install clang
gcc-aarch64-linux-gnu qemu-user.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython import Tempita

ROOT = Path(__file__).resolve().parent.parent
SPECIALISE = "-DCYTHON_INLINE=inline __attribute__((always_inline))"
FLAGS = [
    *("-O2", "-w", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-std=gnu11"),
    *("-static", "-no-pie", "-Wl,--unresolved-symbols=ignore-all"),
    f"-I{ROOT / 'src/cpu'}",
    f"-I{sysconfig.get_path('include')}",
]
# name -> (compiler, flags, command that runs the program)
BUILDS = {
    "gcc x86-64-v3": ("gcc", ["-march=x86-64-v3", SPECIALISE], []),
    "gcc x86-64-v3, portable form": ("gcc", ["-march=x86-64", "-mfma"], []),
    "gcc x86-64-v4": ("gcc", ["-march=x86-64-v4", SPECIALISE], []),
    "clang x86-64-v3": ("clang", ["-march=x86-64-v3", SPECIALISE], []),
    "gcc aarch64": ("aarch64-linux-gnu-gcc", [], ["qemu-aarch64"]),
}
DIRECTIVES = ("boundscheck=False", "wraparound=False", "cdivision=True", "initializedcheck=False")


def kernels_in_c(folder: Path) -> tuple[Path, str]:
    """The kernels as Cython translates them, and the prefix it gives their names."""
    stub, source = folder / "kernels.pyx", folder / "kernels.c"
    stub.write_text('include "kernels.pxi"\n')
    instances = Tempita.sub((ROOT / "src/cpu/instances.pxi.in").read_text())
    (folder / "instances.pxi").write_text(instances)
    options = [word for directive in DIRECTIVES for word in ("-X", directive)]
    for path in (ROOT / "src/cpu", folder):
        options += ["-I", str(path)]
    command = [sys.executable, "-m", "cython", "-3", *options]
    subprocess.run([*command, str(stub), "-o", str(source)], check=True)
    name = re.search(r"\b(__pyx_f_\w+_)logsumexp_rows\b", source.read_text())
    assert name
    return source, name[1]


def hashes(build: str, double: int, source: Path, prefix: str, folder: Path) -> str | None:
    """What a build prints, or None if its compiler or emulator is not installed."""
    compiler, flags, runner = BUILDS[build]
    if not all(map(shutil.which, [compiler, *runner])):
        return None
    program = folder / "program"
    macros = [f"-DPYSOFTMAX_DOUBLE={double}", f'-DKERNELS="{source}"', f"-DPREFIX={prefix}"]
    main = str(ROOT / "tools/cross_check.c")
    subprocess.run(
        [compiler, *FLAGS, *flags, *macros, main, "-o", str(program), "-lm"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    done = subprocess.run([*runner, str(program)], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def main() -> int:
    differ = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, prefix = kernels_in_c(folder)
        for double, real in enumerate(("float32", "float64")):
            first = None
            for build in BUILDS:
                lines = hashes(build, double, source, prefix, folder)
                first = first or lines
                verdict = "not run here" if lines is None else "same bits"
                if lines is not None and lines != first:
                    verdict, differ = "DIFFERENT BITS", True
                print(f"{real}  {build}: {verdict}", flush=True)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
