"""The command line, ``python -m pysoftmax`` or ``pysoftmax``: one function a command.

Exit status: 0 done, 1 failed (one line on standard error says why, or what the command prints: a
check that failed, a temperature that was not found, an alert that is raised), 2 wrong usage, and
128 + signal when stopped: 130 by Ctrl-C, 143 by SIGTERM, 141 by a reader that closed the pipe.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn, TextIO, TypeVar

import pysoftmax
from pysoftmax import _files

Command = Callable[[argparse.Namespace], int | None]
Value = TypeVar("Value")

_COMMANDS: dict[str, tuple[Command, tuple[Callable[[argparse.ArgumentParser], object], ...]]] = {}


def argument(*names: str, **options: Any) -> Callable[[argparse.ArgumentParser], object]:
    """Describe an argument of a command in the words of `argparse`."""
    return lambda parser: parser.add_argument(*names, **options)


def command(
    *arguments: Callable[[argparse.ArgumentParser], object],
) -> Callable[[Command], Command]:
    """Make a function a command of its name; its docstring is the help.

    It returns the exit status, None being 0.
    """

    def register(function: Command) -> Command:
        _COMMANDS[function.__name__] = function, arguments
        return function

    return register


def _temperature(text: str) -> float:
    """Read a temperature off the command line."""
    try:
        if (value := float(text)) >= 0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")


def _count(text: str) -> int:
    """Read a number of lines off the command line."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")


def _target(text: str) -> str:
    """Read a name whose ending says what to write."""
    if text == "-" or text.endswith((".npy", ".csv")):
        return text
    raise argparse.ArgumentTypeError(f"expected a name in .npy or .csv, or -, got {text!r}")


def _positive(text: str) -> int:
    """Read a number of threads off the command line."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")


def _integer(text: str) -> int:
    """Read an axis off the command line."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def _shape(text: str) -> tuple[int, ...]:
    """Read a shape off the command line."""
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        return tuple(map(int, text.split("x")))
    raise argparse.ArgumentTypeError(f"expected a shape such as 1024x10, got {text!r}")


def _png(text: str) -> str:
    """Read the name of a picture off the command line."""
    if text.endswith(".png"):
        return text
    raise argparse.ArgumentTypeError(f"expected a name in .png, got {text!r}")


def _listed(value: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """Read several off the command line, with commas between them."""
    return lambda text: [value(item) for item in text.split(",")]


def _one_of(table: str) -> Callable[[str], str]:
    """Read a name that is in a table of `pysoftmax.bench`, which is imported only then."""

    def name(text: str) -> str:
        module, _, names = table.rpartition(".")
        known = getattr(import_module(f"pysoftmax.bench.{module}"), names)
        if text in known:
            return text
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {text!r}")

    return name


# -- commands ------------------------------------------------------------------------------


@command(
    argument("--json", action="store_true", help="print the figures as JSON"),
    argument(
        "--plot",
        type=_png,
        metavar="FILE.png",
        help="where to draw the reliability before and after calibration "
        "(softmax-demo.png; with --json nowhere)",
    ),
)
def demo(args: argparse.Namespace) -> None:
    """Show softmax and calibration at work on the logits of a real classifier, and the speed.

    The picture needs matplotlib.
    """
    from pysoftmax import demo as demonstration

    if args.plot:
        _needs_matplotlib("--plot")
    results = demonstration.run()
    name = args.plot or (None if args.json else "softmax-demo.png")
    if name and find_spec("matplotlib"):
        with _files.output(name) as file:
            demonstration.draw(file)
        results["picture"] = name
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        demonstration.show(results, table)


@command(
    argument("source", metavar="IN", help=".npy or CSV file; - for standard input"),
    argument(
        "target",
        type=_target,
        metavar="OUT",
        help=".npy or .csv file; - for CSV on standard output",
    ),
    argument("--log", action="store_true", help="write log-probabilities"),
    argument("--axis", type=int, default=-1, metavar="N", help="axis of the classes (last)"),
    argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        metavar="T",
        help="divide the logits by T; 0 gives one-hot rows, inf uniform ones (1)",
    ),
    argument("--dtype", choices=["float32", "float64"], help="dtype of the result (as the input)"),
    argument(
        "--skip-header", type=_count, default=0, metavar="N", help="skip N lines at the head of CSV"
    ),
)
def softmax(args: argparse.Namespace) -> None:
    """Turn a file of logits into a file of probabilities, in blocks, however large it is.

    A .npy file is read and written in blocks along any axis, and never unpickled. CSV is text
    without a header, one row of logits a line; blank lines are skipped. With --axis 0, CSV
    must fit in memory. OUT is replaced only once it is complete.
    """
    function = pysoftmax.log_softmax if args.log else pysoftmax.softmax
    with progress_bar("softmax") as progress:
        _files.convert(
            args.source,
            args.target,
            partial(function, temperature=args.temperature, dtype=args.dtype),
            axis=args.axis,
            skip_header=args.skip_header,
            progress=progress,
        )


@command(
    argument("source", metavar="FILE", help=".npy, .npz or CSV file; - for standard input"),
    argument("--logits", action="store_true", help="FILE holds logits, not probabilities"),
    argument(
        "--check-against",
        metavar="LOGITS",
        help="file of the logits that the probabilities in FILE are made of",
    ),
    argument("--labels", metavar="FILE", help="the right class of each row"),
    argument("--activation", choices=["softmax", "sigmoid"], help="(softmax)"),
    argument(
        "--loss",
        choices=["cross_entropy", "binary_cross_entropy"],
        help="what the classifier was trained with",
    ),
    argument("--n-classes", type=_positive, metavar="N", help="how many classes there are"),
    argument(
        "--temperature", type=_temperature, metavar="T", help="what the logits are divided by"
    ),
    argument("--axis", type=int, default=-1, metavar="N", help="axis of the classes (last)"),
    argument(
        "--skip-header", type=_count, default=0, metavar="N", help="skip N lines at the head of CSV"
    ),
    argument("--json", action="store_true", help="print the report as JSON"),
    argument("--plot", type=_png, metavar="FILE.png", help="draw the reliability (needs labels)"),
)
def validate(args: argparse.Namespace) -> int:
    """Go through the checklist before deployment with a classifier's outputs.

    Prints what was checked and found. Exit status: 0 if no check failed, 1 if one did. Labels
    in CSV are one a line, or 0 and 1 for each class; --skip-header holds for all files. Of a
    .npz file the array "probabilities" is read, "logits" to check them against and "labels" if it
    has these, and with --logits no probabilities.
    """
    name = "logits" if args.logits else "probabilities"
    logits_source = args.check_against
    if args.logits and logits_source:
        raise ValueError("--check-against is for probabilities: leave out --logits")
    if logits_source == "-" and "-" in (args.source, args.labels):
        raise ValueError("standard input holds one of them only: give a file for --check-against")
    outputs, labels = _outputs(args, name)
    given = {name: outputs}
    if not args.logits and _files.holds(args.source, "probabilities", "logits"):
        logits_source = logits_source or args.source
    if logits_source:
        given["logits"] = _files.read(logits_source, skip_header=args.skip_header, name="logits")
    if args.plot:
        _needs_matplotlib("--plot")
        if labels is None or labels.ndim == outputs.ndim or args.activation == "sigmoid":
            raise ValueError("--plot needs softmax and the right class of each row: --labels")
    report = pysoftmax.validate(
        **given,
        labels=labels,
        activation=args.activation,
        loss=args.loss,
        n_classes=args.n_classes,
        temperature=args.temperature,
        axis=args.axis,
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)
    if args.plot:
        if args.logits:
            temperature = 1.0 if args.temperature is None else args.temperature
            outputs = pysoftmax.softmax(outputs, args.axis, temperature=temperature)
        _draw_reliability(args, labels, {"reliability": outputs})
    return 0 if report.passed else 1


def _outputs(args: argparse.Namespace, name: str) -> tuple[_files.Array, _files.Array | None]:
    """Read what a classifier returned, and the labels, if there are any."""
    if args.source == args.labels == "-":
        raise ValueError("standard input holds one of them only: give a file for --labels")
    outputs = _files.read(args.source, skip_header=args.skip_header, name=name)
    source = args.labels or (args.source if _files.holds(args.source, "labels") else None)
    if source is None:
        return outputs, None
    labels = _files.read(source, skip_header=args.skip_header, name="labels")
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind == "f":
        labels = _whole(labels[:, 0], source)
    return outputs, labels


def _draw_reliability(
    args: argparse.Namespace, labels: Any, probabilities: dict[str, _files.Array]
) -> None:
    """Write the reliability diagrams that --plot asks for."""
    from pysoftmax import reliability

    with _files.output(args.plot) as file:
        reliability.draw_diagrams(file, labels, probabilities, axis=args.axis)


def _needs_matplotlib(option: str) -> None:
    if not find_spec("matplotlib"):
        raise ValueError(f"{option} needs matplotlib: pip install 'pysoftmax[plot]'")


def _whole(labels: _files.Array, name: str) -> _files.Array:
    """Labels that were read as floats, as the integers that they must be."""
    wrong = (labels % 1 != 0) | (abs(labels) > 2**53)
    if wrong.any():
        raise _files.FileError(f"{name}: expected whole numbers, got {labels[wrong][0]}")
    return labels.astype(int)


@command(
    argument("source", metavar="FILE", help="logits: .npy, .npz or CSV file; - for standard input"),
    argument("--labels", metavar="FILE", help="the right class of each row"),
    argument("--vector", action="store_true", help="scale and bias of each class (needs SciPy)"),
    argument("--axis", type=int, default=-1, metavar="N", help="axis of the classes (last)"),
    argument(
        "--skip-header", type=_count, default=0, metavar="N", help="skip N lines at the head of CSV"
    ),
    argument(
        "--output", type=_target, metavar="OUT", help="write calibrated probabilities, .npy or .csv"
    ),
    argument("--plot", type=_png, metavar="FILE.png", help="draw reliability before and after"),
    argument("--json", action="store_true", help="print the figures as JSON"),
)
def calibrate(args: argparse.Namespace) -> int:
    """Find the temperature that makes the labels most likely, and say what it improves.

    FILE holds logits of data that the classifier was not trained on. Labels in CSV are one a
    line; a .npz file may hold both, as "logits" and "labels". Exit status: 1 if the data do not
    tell a temperature.
    """
    if args.plot:
        _needs_matplotlib("--plot")
    if args.output == "-":
        raise ValueError("standard output is where the figures go: give a file for --output")
    logits, labels = _outputs(args, "logits")
    if labels is None:
        raise ValueError(f"{args.source} has no labels: give them with --labels")
    from pysoftmax.calibration import VectorScaling

    fit = pysoftmax.fit_vector_scaling if args.vector else pysoftmax.fit_temperature
    with warnings.catch_warnings(record=True) as problems:
        warnings.simplefilter("always")
        result = fit(logits, labels, axis=args.axis)
    for problem in problems:
        print("pysoftmax: warning:", problem.message, file=sys.stderr)
    before, after = pysoftmax.softmax(logits, args.axis), result.apply(logits)
    measures = {
        "log-loss": (result.nll_before, result.nll_after),
        **{
            title: tuple(measure(p, labels, axis=args.axis) for p in (before, after))
            for title, measure in (
                ("calibration error (ECE)", pysoftmax.expected_calibration_error),
                ("Brier score", pysoftmax.brier_score),
            )
        },
        "accuracy": tuple(float((p.argmax(args.axis) == labels).mean()) for p in (before, after)),
    }
    if args.plot:
        panels = {"before calibration": before, "after calibration": after}
        _draw_reliability(args, labels, panels)
    if args.output:
        _files.write(args.output, after)
    if args.json:
        found = {
            name: value.tolist() if hasattr(value, "tolist") else value
            for name, value in vars(result).items()
        }
        found["measures"] = {
            name: {"before": pair[0], "after": pair[1]} for name, pair in measures.items()
        }
        print(json.dumps(found, indent=2))
    else:
        if isinstance(result, VectorScaling):
            print(f"scales from {result.scale.min():.6g} to {result.scale.max():.6g}\n")
        else:
            # All digits: of six, probabilities may be off by most of what `validate` lets pass.
            print(f"temperature {result.temperature}\n")
        rows = [[name, *(f"{value:.4f}" for value in pair)] for name, pair in measures.items()]
        table(["", "before", "after"], rows)
    return 0 if result.converged and not result.at_bound else 1


@command(
    argument("sources", nargs="*", default=["-"], metavar="FILE", help="(standard input)"),
    argument("--logits", action="store_true", help="the batches are logits, not probabilities"),
    argument("--temperature", type=_temperature, default=1.0, metavar="T", help="of logits (1)"),
    argument("--axis", type=int, default=-1, metavar="N", help="axis of the classes (last)"),
    argument("--high", type=float, default=0.95, metavar="P", help="too confident above (0.95)"),
    argument("--low", type=float, default=0.20, metavar="P", help="too uncertain below (0.20)"),
    argument(
        "--chance-corrected", action="store_true", help="these are 0 where all classes are equal"
    ),
    argument("--window", type=_positive, default=50_000, metavar="N", help="recent rows (50000)"),
    argument("--every", type=_positive, default=1, metavar="N", help="look at every N-th row (1)"),
    argument("--reference", metavar="STATE", help="what drift is measured from: a file of --state"),
    argument("--state", metavar="FILE", help="go on from this JSON file, if there is one; save it"),
    argument("--prometheus", metavar="FILE.prom", help="write metrics as text"),
    argument("--plot", type=_png, metavar="FILE.png", help="draw confidence over the rows"),
    argument(
        "--skip-header", type=_count, default=0, metavar="N", help="skip N lines at the head of CSV"
    ),
    argument("--json", action="store_true", help="print the summary as JSON"),
)
def monitor(args: argparse.Namespace) -> int:
    """Watch the confidence in a stream of batches: what comes through a pipe, or is in files.

    A stream is CSV, a row a line, or .npy arrays one after the other. A terminal sees a live
    line; alerts go to standard error as they are raised. State and metrics are written every
    ten seconds and at the end, also when interrupted. Exit status: 1 if an alert is raised at
    the end.
    """
    from pysoftmax import _watch

    if args.plot:
        _needs_matplotlib("--plot")
    if args.prometheus and not find_spec("prometheus_client"):
        raise ValueError(
            "--prometheus needs prometheus_client: pip install 'pysoftmax[prometheus]'"
        )
    return _watch.show(_watch.run(args, live_line), args.json, table)


@command(
    argument(
        "--functions",
        type=_listed(_one_of("cases.FUNCTIONS")),
        metavar="NAME,...",
        help="public functions (softmax, log_softmax, logsumexp and the cross-entropies)",
    ),
    argument(
        "--dtypes",
        type=_listed(_one_of("cases.CUDA_DTYPES")),
        metavar="NAME,...",
        help="float32, float64 (both); on a GPU float16, bfloat16 too (all)",
    ),
    argument("--shapes", type=_listed(_shape), metavar="NxM,...", help="such as 1024x10,64x32000"),
    argument("--axes", type=_listed(_integer), metavar="N,...", help="such as -1,0 (last)"),
    argument(
        "--peers",
        type=_listed(_one_of("measure.EVERY_PEER")),
        metavar="NAME,...",
        help="such as torch,onnxruntime (all that are installed)",
    ),
    argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to race (cpu)"),
    argument("--threads", type=_positive, default=1, metavar="N", help="for each of them (1)"),
    argument("--quick", action="store_true", help="few functions, shapes and rounds"),
    argument("--json", metavar="FILE", help="write all figures; - for standard output, alone"),
    argument("--plot", type=_png, metavar="FILE.png", help="draw them (needs matplotlib)"),
)
def bench(args: argparse.Namespace) -> None:
    """Race pysoftmax against the libraries that are installed, and against physical limits.

    All take turns in this process on the same inputs and number of threads, round after round;
    medians are shown. Everybody is held to AVX2 by PYSOFTMAX_CPU_TARGET=avx2,
    ATEN_CPU_CAPABILITY=avx2 (torch), XLA_FLAGS=--xla_cpu_max_isa=AVX2 (JAX), NUMBA_CPU_NAME=haswell
    with NUMBA_CPU_FEATURES= (Numba) and NPY_DISABLE_CPU_FEATURES (NumPy, SciPy): the report says
    who is not. The extra bench installs what tables, pictures and limits need, peers the libraries.

    --device cuda takes CuPy's arrays on a GPU instead, against cupyx, torch, torch.compile and
    Triton, and a copy on the device.
    """
    from pysoftmax.bench import cases, cuda, measure, report

    if args.device == "cuda":
        cuda.require()
    if args.plot:
        _needs_matplotlib("--plot")
    chosen = cases.choose(
        args.functions, args.dtypes, args.shapes, args.axes, quick=args.quick, device=args.device
    )
    rounds, seconds = measure.QUICK_PACE if args.quick else measure.USUAL_PACE
    with ExitStack() as stack:
        json_file, plot_file = (
            stack.enter_context(_files.output(name)) if name else None
            for name in (args.json, args.plot)
        )
        with progress_bar("bench", background=False) as progress:
            results = measure.run(
                chosen,
                args.peers,
                threads=args.threads,
                rounds=rounds,
                seconds=seconds,
                device=args.device,
                progress=progress,
            )
        if json_file:
            json_file.write(results.to_json().encode())
        if plot_file:
            from pysoftmax.bench import plot

            plot.draw(results, plot_file)
    if args.json != "-":
        report.show(results, table)


@command(argument("--json", action="store_true", help="print JSON"))
def info(args: argparse.Namespace) -> None:
    """Print the versions, the CPU kernels in use, the threads and the backends."""
    facts = pysoftmax.info()
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    cpu, threads = facts["cpu"], facts["threads"]
    lines = {
        "pysoftmax": facts["version"],
        "Python": facts["python"],
        "NumPy": facts["numpy"],
        "CPU kernels": f"{cpu['target']} (built: {', '.join(cpu['built'])}; "
        f"usable here: {', '.join(cpu['available'])})",
        "threads": f"{threads}{'' if facts['openmp'] else ' (built without OpenMP)'}",
    }
    for name, backend in facts["backends"].items():
        absent = f"not installed: {backend['install']}" if backend["install"] else "not available"
        lines[f"backend {name}"] = backend["version"] if backend["available"] else absent
    width = max(map(len, lines))
    for key, value in lines.items():
        print(f"{key:{width}}  {value}")


# -- terminal ------------------------------------------------------------------------------


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, its first column flush left and the others flush right."""
    if sys.stdout.isatty() and find_spec("rich"):
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        pretty = Table(box=SIMPLE_HEAD)
        for column, header in enumerate(headers):
            pretty.add_column(header, justify="right" if column else "left")
        for row in rows:
            pretty.add_row(*row)
        Console().print(pretty)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in [headers, ["-" * width for width in widths], *rows]:
        first, *others = zip(row, widths, strict=True)
        print(f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others), sep="  ")


@contextmanager
def progress_bar(label: str, *, background: bool = True) -> Iterator[_files.Progress]:
    """Lend a function that shows the fraction done if standard error is a terminal.

    Without `background` nothing runs between its calls, which would disturb what is timed there.
    """
    if not sys.stderr.isatty():
        yield lambda fraction: None
    elif find_spec("rich"):
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        with Progress(console=console, transient=True, auto_refresh=background) as bar:
            task = bar.add_task(label, total=None)
            yield lambda fraction: bar.update(
                task, total=1.0, completed=fraction, refresh=not background
            )
    else:
        try:
            yield lambda fraction: print(f"\r{fraction:4.0%}", end="", file=sys.stderr, flush=True)
        finally:
            print("\r    \r", end="", file=sys.stderr, flush=True)


@contextmanager
def live_line() -> Iterator[Callable[[str], None]]:
    """Lend a function that replaces the last line if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
    elif find_spec("rich"):
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            yield status.update
    else:
        line = _LiveLine(sys.stderr)
        with redirect_stderr(line):
            try:
                yield line.show
            finally:
                line.erase()


class _LiveLine:
    """Standard error with a line at its end that is replaced; what is written goes above it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.shown = ""

    def show(self, text: str) -> None:
        """Replace the line, by no more than fits into one."""
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        text = text[: (columns or 80) - 1]
        self.stream.write(f"\r{text:<{len(self.shown)}}")
        self.stream.flush()
        self.shown = text

    def erase(self) -> None:
        """Take the line away."""
        if self.shown:
            self.stream.write("\r" + len(self.shown) * " " + "\r")
            self.stream.flush()
            self.shown = ""

    def write(self, text: str) -> int:
        """Write above the line, which the next `show` brings back."""
        self.erase()
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


# -- main ----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and to which -1,0 is a value."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # as it is from Python 3.14 on

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pysoftmax: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = _Parser(
        prog="pysoftmax",
        description="Fast, accurate softmax.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pysoftmax {pysoftmax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (function, arguments) in _COMMANDS.items():
        text = inspect.getdoc(function) or ""
        subparser = commands.add_parser(
            name, help=text.partition("\n")[0], description=text, allow_abbrev=False
        )
        subparser.set_defaults(command=function)
        for add in arguments:
            add(subparser)
    return parser


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that no half file stays."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    names = ["SIGTERM", "SIGHUP"] if threading.current_thread() is threading.main_thread() else []
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        with _stoppable():
            args = _parser().parse_args(argv)
            status = args.command(args)
            print(end="", flush=True)
        return status or 0
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        _settle_stdout()
        return 141
    except OSError as error:
        return _fail(f"cannot write standard output: {error.strerror or error}")
    except (_files.FileError, ImportError, IndexError, ValueError, TypeError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__)


def _fail(message: str, status: int = 1) -> int:
    """Say in one line what went wrong and return the exit status."""
    _settle_stdout()
    print("pysoftmax: error:", " ".join(message.split()), file=sys.stderr)
    return status


def _settle_stdout() -> None:
    """Flush standard output or, where that fails, keep Python from trying again at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
