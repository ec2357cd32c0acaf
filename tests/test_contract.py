"""Nothing public without its parts, nothing imported backwards. A failure is a to-do list."""

import ast
import importlib
import inspect
import json
import pathlib
import pkgutil
import re
import types
import typing

import pytest
from cases import TESTS, python

import pysoftmax as ps
import pysoftmax.backends
from pysoftmax.backends import _operations

NUMERICAL = [
    "softmax",
    "log_softmax",
    "logsumexp",
    "cross_entropy",
    "cross_entropy_with_grad",
    "sigmoid",
    "log_sigmoid",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "softmax_vjp",
    "log_softmax_vjp",
]
AROUND = ["set_num_threads", "get_num_threads", "num_threads", "info"]
CALIBRATION = [
    "fit_temperature",
    "fit_vector_scaling",
    "TemperatureScaling",
    "VectorScaling",
    "reliability_curve",
    "expected_calibration_error",
    "brier_score",
    "negative_log_likelihood",
    "ReliabilityDisplay",
]
VALIDATION = ["validate", "check_pairing", "Report"]
MONITORING = ["ConfidenceMonitor"]
DECISIONS = ["decide", "risk_coverage_curve", "top_k", "class_weight", "logit_adjust", "sample"]
PUBLIC = [*NUMERICAL, *AROUND, *CALIBRATION, *DECISIONS, *MONITORING, *VALIDATION, "__version__"]

# name(arguments), as documented; defaults included
SIGNATURES = {
    "softmax": "(x, axis=-1, *, temperature=1.0, where=None, dtype=None, out=None)",
    "log_softmax": "(x, axis=-1, *, temperature=1.0, where=None, dtype=None, out=None)",
    "logsumexp": "(x, axis=-1, *, b=None, where=None, keepdims=False, return_sign=False, "
    "dtype=None, out=None)",
    "cross_entropy": "(logits, target, axis=-1, *, weight=None, ignore_index=-100, "
    "label_smoothing=0.0, reduction='mean', temperature=1.0)",
    "cross_entropy_with_grad": "(logits, target, axis=-1, *, weight=None, ignore_index=-100, "
    "label_smoothing=0.0, reduction='mean', temperature=1.0, grad_out=None)",
    "sigmoid": "(x, *, dtype=None, out=None)",
    "log_sigmoid": "(x, *, dtype=None, out=None)",
    "binary_cross_entropy_with_logits": "(logits, target, *, weight=None, pos_weight=None, "
    "reduction='mean')",
    "binary_cross_entropy_with_logits_with_grad": "(logits, target, *, weight=None, "
    "pos_weight=None, reduction='mean', grad_out=None)",
    "softmax_vjp": "(grad_output, probabilities, axis=-1, *, temperature=1.0, out=None)",
    "log_softmax_vjp": "(grad_output, log_probabilities, axis=-1, *, temperature=1.0, out=None)",
    "set_num_threads": "(n)",
    "get_num_threads": "()",
    "num_threads": "(n)",
    "info": "()",
    "fit_temperature": "(logits, labels, *, axis=-1, sample_weight=None, bounds=(1e-3, 1e3))",
    "fit_vector_scaling": "(logits, labels, *, axis=-1, sample_weight=None, bounds=(1e-3, 1e3))",
    "reliability_curve": "(probabilities, labels, *, axis=-1, n_bins=15, strategy='uniform', "
    "pos_label=None, sample_weight=None)",
    "expected_calibration_error": "(probabilities, labels, *, axis=-1, n_bins=15, "
    "strategy='uniform', norm='l1', class_wise=False, sample_weight=None)",
    "brier_score": "(probabilities, labels, *, axis=-1, sample_weight=None)",
    "negative_log_likelihood": "(probabilities, labels, *, axis=-1, sample_weight=None)",
    "validate": "(probabilities=None, logits=None, labels=None, *, activation=None, loss=None, "
    "n_classes=None, temperature=None, axis=-1)",
    "check_pairing": "(activation=None, loss=None, *, n_outputs=None, n_classes=None, "
    "logits=None, labels=None, axis=-1)",
    "decide": "(probabilities, threshold, *, margin=0.0, abstain_label=-1, axis=-1)",
    "risk_coverage_curve": "(probabilities, labels, *, axis=-1, sample_weight=None)",
    "top_k": "(scores, k, *, axis=-1)",
    "class_weight": "(mode, labels, *, n_classes=None)",
    "logit_adjust": "(logits, prior, tau=1.0, *, axis=-1)",
    "ConfidenceMonitor": "(n_classes, *, high=0.95, low=0.2, window=50_000, reference=None, "
    "chance_corrected=False, n_bins=20, every=1, entropy_every=1009, levels=None, min_rows=500)",
    "sample": "(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None, where=None, "
    "size=None, axis=-1, rng=None)",
}

PACKAGE = pathlib.Path(ps.__file__).parent
ROOT = pathlib.Path(TESTS).parent


def nothing_to_do(missing):
    __tracebackhide__ = True
    missing = list(missing)
    assert not missing, "to do:\n" + "\n".join(f"  - {item}" for item in missing)


def public_functions():
    return [n for n in ps.__all__ if callable(getattr(ps, n, None))]


# --- public names -------------------------------------------------------------------------------


def test_every_core_name_is_public_and_every_public_name_exists():
    todo = [f"add {name} to pysoftmax.__all__" for name in PUBLIC if name not in ps.__all__]
    todo += [f"define pysoftmax.{name}" for name in ps.__all__ if not hasattr(ps, name)]
    if len(set(ps.__all__)) < len(ps.__all__):
        todo.append("name nothing twice in pysoftmax.__all__")
    nothing_to_do(todo)


def _written(text):
    """A signature without annotations and without the spelling of its defaults."""
    function = ast.parse(f"def f{text}: ...").body[0].args
    named = [a.arg for a in function.args]
    keyword = [a.arg for a in function.kwonlyargs]
    defaults = [ast.literal_eval(d) for d in (*function.defaults, *function.kw_defaults)]
    return named, keyword, defaults


def _actual(function):
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p.name for p in parameters if p.kind in positional]
    keyword = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    defaults = [p.default for p in parameters if p.default is not inspect.Parameter.empty]
    return named, keyword, defaults


def test_every_signature_is_the_documented_one():
    todo = []
    for name, text in SIGNATURES.items():
        try:
            actual = _actual(getattr(ps, name))
        except ValueError:
            todo.append(f"give {name} a signature that inspect can read")
            continue
        if actual != _written(text):
            todo.append(f"{name}{text}, not {inspect.signature(getattr(ps, name))}")
    nothing_to_do(todo)


SECTIONS = {"Parameters": r"\w[^\n]* : ", "Returns": r"\S", "Examples": r">>> "}


def test_every_public_function_has_a_docstring_in_numpydoc_form():
    todo = []
    for name in public_functions():
        function = getattr(ps, name)
        text = inspect.getdoc(function) or ""
        wanted = dict(SECTIONS)
        try:
            if not inspect.signature(function).parameters:
                del wanted["Parameters"]
        except ValueError:
            pass
        if name in ("set_num_threads", "num_threads") or inspect.isclass(function):
            del wanted["Returns"]
        for section, content in wanted.items():
            if not re.search(rf"(?m)^{section}\n-{{{len(section)}}}\n+{content}", text):
                todo.append(f"{name}: docstring section {section}")
        if name in SIGNATURES:
            named, keyword, _ = _written(SIGNATURES[name])
            for argument in named + keyword:
                if not re.search(rf"(?m)^(\w+, )*{argument}(, \w+)* :", text):
                    todo.append(f"{name}: document the parameter {argument}")
    nothing_to_do(todo)


def test_every_public_function_has_tests():
    here = pathlib.Path(TESTS)
    text = "\n".join(
        path.read_text() for path in here.glob("test_*.py") if path.name != "test_contract.py"
    )
    nothing_to_do(f"{name}: write tests" for name in public_functions() if f"ps.{name}" not in text)


# Runs every time benchmark once and prints which public functions were called while timed.
TIMED = """
import functools
import json
import pysoftmax as ps

called = set()

def counted(function):
    @functools.wraps(function)
    def call(*arguments, **options):
        called.add(function.__name__)
        return function(*arguments, **options)
    return call

update = ps.ConfidenceMonitor.update

def counted_update(*arguments, **options):
    called.add("ConfidenceMonitor")
    return update(*arguments, **options)

ps.ConfidenceMonitor.update = counted_update
for name in ps.__all__:
    if callable(getattr(ps, name)):
        setattr(ps, name, counted(getattr(ps, name)))

from benchmarks import classifiers, times

runs = [(getattr(times, name)(), ()) for name in times.FUNCTIONS]
runs += [(classifiers.Time(), (name,)) for name in classifiers.FUNCTIONS]
runs += [(classifiers.ConfidenceMonitor(), ())]
timed = set()
for benchmark, first in runs:
    parameters = [*first, *(values[0] for values in benchmark.params[len(first):])]
    benchmark.setup(*parameters)
    called.clear()
    benchmark.time_call(*parameters)
    timed |= called
print(json.dumps(sorted(timed)))
"""


def test_every_public_function_has_a_benchmark():
    timed = json.loads(python("-c", TIMED, PYTHONPATH=str(ROOT / "asv_bench")))
    nothing_to_do(
        f"{name}: add it to FUNCTIONS in asv_bench/benchmarks/functions.py or classifiers.py"
        for name in public_functions()
        if name not in AROUND
        and name not in timed
        and (name in MONITORING or not inspect.isclass(getattr(ps, name)))
    )


def _definition(name):
    """The syntax tree of a public function or class, from the module that defines it."""
    source = PACKAGE.parent / (getattr(ps, name).__module__.replace(".", "/") + ".py")
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    return None


def test_every_public_function_is_typed():
    todo = [] if (PACKAGE / "py.typed").exists() else ["add pysoftmax/py.typed"]
    for name in public_functions():
        node = _definition(name)
        if node is None:
            todo.append(f"{name}: write a stub or annotations")
        elif isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            todo += [f"{name}: annotate {a.arg}" for a in arguments if a.annotation is None]
            if node.returns is None:
                todo.append(f"{name}: annotate the result")
            if name in SIGNATURES:
                named, keyword, _ = _written(SIGNATURES[name])
                if [a.arg for a in arguments] != named + keyword:
                    todo.append(f"{name}: the stub's arguments differ from the documented ones")
    nothing_to_do(todo)


# --- imports ------------------------------------------------------------------------------------


def _imports(path, package):
    """Absolute names of all that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_backends_never_import_the_public_modules():
    """One way: public functions -> backends -> kernels."""
    public = {getattr(ps, name).__module__ for name in NUMERICAL} - {"pysoftmax"}
    names = {f"pysoftmax.{name}" for name in ps.__all__}
    todo = []
    for path in (PACKAGE / "backends").glob("*.py"):
        for imported in _imports(path, "pysoftmax.backends"):
            outward = any(imported == m or imported.startswith(f"{m}.") for m in public)
            if outward or imported in names or imported in ("pysoftmax", "pysoftmax.*"):
                todo.append(f"backends/{path.name}: do not import {imported}")
    nothing_to_do(todo)


def test_the_package_file_defines_nothing():
    """pysoftmax/__init__.py is the list of public names."""
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
    body = []
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        body += [*node.body, *node.orelse] if typing_only else [node]
    nothing_to_do(
        f"__init__.py, line {node.lineno}: move this elsewhere"
        for node in body
        if not isinstance(node, allowed)
    )


def test_names_are_imported_when_they_are_used():
    source = """
import sys
import pysoftmax
lazy = {f"pysoftmax.{name}" for name in pysoftmax._lazy.MODULES}
print(sorted(lazy & set(sys.modules)))
from pysoftmax import fit_temperature, reliability, testing
from pysoftmax import fit_temperature, reliability, sample, top_k
print(fit_temperature is pysoftmax.calibration.fit_temperature, reliability.__name__)
print(sorted(lazy - set(sys.modules)), hasattr(pysoftmax, "fit_temperatures"))
"""
    assert python("-c", source).splitlines() == ["[]", "True pysoftmax.reliability", "[] False"]


def test_type_checkers_see_the_names_that_are_imported_when_used():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module, alias.name) for node in branch.body for alias in node.names}
    used = {(getattr(ps, n).__module__, n) for n in ps.__all__ if n != "__version__"}
    assert seen == {name for name in used if not name[0].startswith("pysoftmax._")}


def test_no_library_is_imported_that_was_not_asked_for():
    source = """
import sys
import numpy
before = set(sys.modules)
import pysoftmax
pysoftmax.softmax([1.0, 2.0])
pysoftmax.cross_entropy([[1.0, 2.0]], [0])
heavy = {"cupy", "dask", "jax", "torch", "scipy", "pandas", "sklearn", "matplotlib", "numba"}
print(sorted(heavy & {name.split(".")[0] for name in set(sys.modules) - before}))
"""
    assert python("-c", source).strip() == "[]"


# --- backends -----------------------------------------------------------------------------------


def _interface():
    protocol = pysoftmax.backends.Backend
    assert typing.is_protocol(protocol) if hasattr(typing, "is_protocol") else True
    return {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


def _candidates(module, interface):
    """The module itself or objects in it that have one of the interface's functions."""
    own = [module] + [
        value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and value is not pysoftmax.backends.Backend
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", module.__name__) == module.__name__
    ]
    return [value for value in own if any(callable(getattr(value, n, None)) for n in interface)]


def _parameters(owner, function):
    names = list(inspect.signature(function).parameters)
    return names[1:] if inspect.isclass(owner) and inspect.isfunction(function) else names


def _backend_modules():
    for found in pkgutil.iter_modules(pysoftmax.backends.__path__, "pysoftmax.backends."):
        if not found.name.rsplit(".", 1)[1].startswith("_"):
            yield found.name


def test_the_interface_of_backends_is_written_down():
    interface = _interface()
    assert "softmax" in interface
    assert all(interface.values()), "an interface function without arguments"


@pytest.mark.parametrize("name", list(_backend_modules()))
def test_every_backend_has_every_function_with_the_same_arguments(name):
    interface = _interface()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = name.rsplit(".", 1)[1]
        if not (error.name or "").startswith(library):
            raise
        pytest.skip(f"{library} is not installed")
    candidates = _candidates(module, interface)
    todo = [] if candidates else [f"{name}: no object with the functions of Backend"]
    for candidate in candidates:
        label = getattr(candidate, "__name__", type(candidate).__name__)
        for method, wanted in interface.items():
            function = getattr(candidate, method, None)
            if function is None:
                todo.append(f"{label}: write {method}({', '.join(wanted)})")
                continue
            try:
                parameters = _parameters(candidate, function)
            except ValueError:
                todo.append(f"{label}: give {method} a signature that inspect can read")
                continue
            if parameters != wanted:
                todo.append(f"{label}.{method}: ({', '.join(wanted)}), not {parameters}")
    nothing_to_do(todo)


def test_there_is_a_backend_for_numpy():
    assert any("numpy" in name for name in _backend_modules())
    assert "numpy" in ps.info()["backends"]


# --- info ---------------------------------------------------------------------------------------


def test_info_describes_the_installation():
    info = ps.info()
    assert set(info) >= {"version", "python", "numpy", "cpu", "threads", "openmp", "backends"}
    assert info["version"] == ps.__version__
    assert set(info["cpu"]) >= {"target", "available", "built"}
    assert info["cpu"]["target"] in info["cpu"]["built"]
    assert info["cpu"]["target"] in info["cpu"]["available"]
    assert info["threads"] == ps.get_num_threads() >= 1


def _enumerated(path, pattern):
    """Names and numbers of an enum of C."""
    found = re.search(pattern, (ROOT / "src" / path).read_text(), re.DOTALL)[1]
    names = re.sub("//[^\n]*", "", found).split(",")
    return {name.strip(): number for number, name in enumerate(names) if name.strip()}


def test_the_backends_number_the_operations_as_the_kernels_do():
    numbered = _enumerated("cpu/kernels.h", r"typedef enum \{([^}]*)\} Operation;")
    del numbered["OPERATIONS"]
    with_cuda = _enumerated("cuda/task.cuh", r"enum Operation \{(.*?)\};")
    assert numbered.items() <= with_cuda.items()
    assert {name: getattr(_operations, name) for name in with_cuda} == with_cuda
