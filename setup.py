"""Build of the compiled modules: one kernel module per CPU target and real type, one door, and
the public functions.

The table TARGETS is the only place that says how a CPU target is compiled.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from Cython import Tempita
    from Cython.Build import cythonize
except ImportError:  # pragma: no cover - pip installs the build requirements
    sys.exit("pysoftmax: building needs Cython >= 3.1: pip install 'Cython>=3.1' 'numpy>=2'")

ROOT = Path(__file__).parent
STUBS = Path("build", "stubs")
CPU = Path("src", "cpu")

# The kernels are specialised by inlining constants (operation, vectors in a row) into one
# source. On targets whose vectors the compiler has to cut up, that would take it minutes.
SPECIALISE = "-DCYTHON_INLINE=inline __attribute__((always_inline))"

MACHINE = platform.machine().lower()
# Best first: the first that the running CPU supports is taken at import.
TARGETS = {
    "x86_64": {
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512", SPECIALISE],
        "avx2": ["-march=x86-64-v3", SPECIALISE],
        "baseline": ["-Wno-psabi"],
    },
    "aarch64": {"neon": ["-Wno-psabi"]},
}.get({"amd64": "x86_64", "arm64": "aarch64"}.get(MACHINE, MACHINE), {"baseline": ["-Wno-psabi"]})
REALS = {"float32": "0", "float64": "1"}
# Python modules that are compiled as they are: what Python takes to find the defaults of a keyword
# is a fifth of a call of shape (1, 10).
FRONT = ["_losses", "_sigmoid", "_softmax"]

# Not -ffast-math: NaN and infinity must work, and every rounding is part of the contract.
FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-std=gnu11",
    "-g0",
    # gcc cannot see that a sweep which returns True has filled in its result.
    "-Wno-maybe-uninitialized",
]
HINT = (
    "pysoftmax: {what}.\nBuilding from source needs a C compiler and Python's headers, e.g.\n"
    "  Debian, Ubuntu:  apt-get install gcc python3-dev\n"
    "  Fedora:          dnf install gcc python3-devel\n"
    "  macOS:           xcode-select --install"
)


def written(name: str, text: str) -> str:
    """The path of a generated source, which is as old as its text."""
    path = STUBS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return str(path)


def kernel_extension(target: str, real: str) -> Extension:
    name = f"_kernels_{target}_{real}"
    stub = f'# The kernels for {target} and {real}.\ninclude "kernels.pxi"\n'
    instances = Tempita.sub((CPU / "instances.pxi.in").read_text())
    return Extension(
        f"pysoftmax.backends.{name}",
        [written(f"{name}.pyx", stub)],
        include_dirs=["src/cpu"],
        depends=[
            *(str(path) for end in ("h", "pxi") for path in sorted(CPU.glob(f"*.{end}"))),
            written("instances.pxi", instances),
        ],
        define_macros=[("PYSOFTMAX_DOUBLE", REALS[real])],
        extra_compile_args=FLAGS + TARGETS[target],
    )


def extensions() -> list[Extension]:
    import numpy

    os.chdir(ROOT)
    kernels = [kernel_extension(target, real) for target in TARGETS for real in REALS]
    door = Extension(
        "pysoftmax.backends._cpu",
        ["src/cpu/_cpu.pyx"],
        include_dirs=["src/cpu", numpy.get_include()],
        depends=[
            "src/cpu/kernels.h",
            "src/cpu/task.pxi",
            *map(str, sorted(CPU.glob("door/*.pxi"))),
        ],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=FLAGS,
    )
    front = [
        Extension(f"pysoftmax.{name}", [f"pysoftmax/{name}.py"], extra_compile_args=["-O2", "-g0"])
        for name in FRONT
    ]
    options = {"build_dir": "build/c", "nthreads": os.cpu_count() or 1, "show_all_warnings": False}
    directives = {"language_level": 3, "freethreading_compatible": True}
    unchecked = {
        "boundscheck": False,
        "wraparound": False,
        "cdivision": True,
        "initializedcheck": False,
    }
    as_python = {"annotation_typing": False, "autotestdict": False}
    return [
        *cythonize(
            [*kernels, door],
            include_path=["src/cpu", str(STUBS)],
            compiler_directives=directives | unchecked,
            **options,
        ),
        *cythonize(front, compiler_directives=directives | as_python, **options),
    ]


class Build(build_ext):
    """Checks the compiler first, adds OpenMP where it has it, and compiles on every core."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Not by setup(options=…), which editable installs leave aside.
        self.parallel = self.parallel or os.cpu_count() or 1

    def build_extensions(self) -> None:
        if not self.compiles("#include <Python.h>\nint main(void) { return 0; }"):
            sys.exit(HINT.format(what="no working C compiler, or Python.h is missing"))
        if self.compiles(
            "#include <omp.h>\nint main(void) { return omp_get_max_threads(); }", ["-fopenmp"]
        ):
            for extension in self.extensions:
                if extension.name.endswith("._cpu"):
                    extension.extra_compile_args.append("-fopenmp")
                    extension.extra_link_args.append("-fopenmp")
        else:
            print("pysoftmax: no OpenMP; the library will run on one thread", file=sys.stderr)
        super().build_extensions()

    def compiles(self, source: str, flags: list[str] | None = None) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "check.c")
            path.write_text(source)
            try:
                objects = self.compiler.compile(
                    [str(path)],
                    output_dir=folder,
                    include_dirs=self.compiler.include_dirs,
                    extra_postargs=flags,
                )
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "check.so")), extra_postargs=flags
                )
            except (Exception, subprocess.SubprocessError):
                return False
        return True


# What NVRTC compiles at run time, in one folder.
CUDA_SOURCES = sorted(
    [
        *Path("src/cuda").glob("*.cu*"),
        *(Path("src/cpu", name) for name in ("constants.h", "units.h")),
    ]
)


class Copy(build_py):
    """Puts the CUDA sources beside the backend that compiles them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "pysoftmax", "backends", "cuda")
        folder.mkdir(parents=True, exist_ok=True)
        for path in CUDA_SOURCES:
            self.copy_file(str(ROOT / path), str(folder / path.name))


setup(
    ext_modules=extensions() if not {"egg_info", "dist_info", "sdist"} & set(sys.argv) else [],
    cmdclass={"build_ext": Build, "build_py": Copy},
)
