"""The checklist before a classifier is deployed, for its logits, probabilities and labels.

What was rounded is not called wrong. A correct softmax of n classes in arithmetic with unit
roundoff u has errors of a few units in the last place in each probability, and shares the error
of its sum, at most n u however it is added (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed. 2002, section 4.2). `rounding` is the total; what is farther off is a finding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pysoftmax import _arguments as check
from pysoftmax import _extras
from pysoftmax._dispatch import of_any_library
from pysoftmax._labelled import host
from pysoftmax._losses import cross_entropy
from pysoftmax._rows import (
    SLACK,
    Part,
    backend_of_blocks,
    chunks,
    classes_last,
    in_memory,
    is_lazy,
    parts,
    within,
)
from pysoftmax._sigmoid import sigmoid
from pysoftmax._softmax import softmax
from pysoftmax.backends import Array, Backend

__all__ = ["Check", "Report", "check_pairing", "validate"]

PASS, WARN, FAIL, NOT_CHECKED = ("pass", "warn", "fail", "not checked")

# The loss that belongs to an activation.
LOSSES = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy"}

_ROUNDED = "as if computed in float32 and stored in float64: see whether that is what was meant"


@dataclass(frozen=True)
class Check:
    """One item of a `Report`.

    Parameters
    ----------
    name : str
        What was checked, as a sentence that should be true.
    status : {"pass", "warn", "fail", "not checked"}
        What came of it.
    measured : str
        What was measured, or why nothing was.
    where : str, optional
        The first offending place, such as ``probabilities[3, 0]``.
    advice : str, default ""
        What to do, unless the check passed.
    """

    name: str
    status: str
    measured: str
    where: str | None = None
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """What a validation found: one `Check` per item, printed as a table.

    Parameters
    ----------
    checks : tuple of Check
        In the order of the checklist. ``report[name]`` is the one with that name.

    See Also
    --------
    validate, check_pairing, pysoftmax.testing.check_softmax : What return it.

    Examples
    --------
    >>> from pysoftmax import check_pairing
    >>> report = check_pairing("sigmoid", "cross_entropy", n_outputs=10, n_classes=10)
    >>> report.passed
    False
    >>> report["loss matches activation"].status
    'fail'
    >>> report.to_dict()["checks"][1]["measured"]
    '10 outputs, 10 classes'
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; there may be warnings."""
        return all(item.status != FAIL for item in self.checks)

    def __getitem__(self, name: str) -> Check:
        for item in self.checks:
            if item.name == name:
                return item
        raise KeyError(name)

    def __str__(self) -> str:
        cells = [("check", "result", "measured")]
        cells += [(item.name, item.status, item.measured) for item in self.checks]
        first, second = (max(len(row[column]) for row in cells) for column in (0, 1))
        lines = [f"{name:{first}}  {status:{second}}  {what}" for name, status, what in cells]
        lines.insert(1, "-" * max(map(len, lines)))
        for status in (FAIL, WARN):
            for item in self.checks:
                if item.status == status:
                    place = f" at {item.where}" if item.where else ""
                    lines.append(f"{status}: {item.name}{place}: {item.advice}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """``{"passed": bool, "checks": [{"name", "status", "measured", "where", "advice"}]}``."""
        return {"passed": self.passed, "checks": [asdict(item) for item in self.checks]}

    def raise_if_failed(self) -> None:
        """ValueError with the table, if a check failed."""
        if not self.passed:
            raise ValueError(f"validation failed\n{self}")


@of_any_library("probabilities", "logits", "labels", "temperature")
def validate(
    probabilities: Any = None,
    logits: Any = None,
    labels: Any = None,
    *,
    activation: str | None = None,
    loss: str | None = None,
    n_classes: int | None = None,
    temperature: Any = None,
    axis: int = -1,
) -> Report:
    """Go through the checklist before deployment with a classifier's outputs.

    Parameters
    ----------
    probabilities, logits : array_like
        What the classifier returns, with the classes along `axis`: one of them, or both of
        one shape. Probabilities are checked; if there are logits too, against these. Of
        logits alone the probabilities are computed.
    labels : array_like, optional
        The right class of each row: integers of the shape of the logits without `axis`. Or
        0 and 1 for each class, in the shape of the logits.
    activation : {"softmax", "sigmoid"}, optional
        What makes probabilities of logits; softmax, unless given.
    loss : {"cross_entropy", "binary_cross_entropy"}, optional
        What the classifier was trained with; "binary_cross_entropy_with_logits" and hyphens
        or spaces are understood.
    n_classes : int, optional
        How many classes there are to tell apart.
    temperature : float or array_like, optional
        What the logits are divided by, as for `softmax`: 1 if they are used as they are.
    axis : int, default -1
        The classes.

    Returns
    -------
    Report
        The checks and what came of them. What the arguments do not tell is "not checked".

    Raises
    ------
    ValueError
        Unless there are logits or probabilities; for arguments that do not fit together, no
        rows and names that are not known.
    TypeError, numpy.exceptions.AxisError
        As `softmax`, and for labels that are no integers where these are expected.

    Notes
    -----
    Rows may be off 1 and probabilities off those of the logits by 4 ULP and by the error
    bound of a sum in the arithmetic of their dtype (float32 for half precision). What is
    farther off, but no farther than this is in float32, is a warning: float64 is often what
    float32 was converted to.

    The arrays are read once, in blocks.

    Examples
    --------
    >>> from pysoftmax import softmax, validate
    >>> logits = [[4.0, 1.0, -2.0], [0.0, 3.0, -1.0], [900.0, 0.0, 2.0]]
    >>> report = validate(softmax(logits), logits, [0, 1, 0], temperature=1.0)
    >>> report.passed, report["extreme logits are handled"].measured
    (True, '1 of 3 rows, largest |logit| 900')
    >>> report = validate(softmax(softmax(logits)), logits)
    >>> report["probabilities are those of the logits"].advice
    'they are those of a softmax applied twice: leave one out'
    """
    activation, loss = _activation(activation), _loss(loss)
    data = _Outputs(probabilities, logits, labels, axis)
    survey = _Survey(data, activation or "softmax", temperature)
    for block in data.blocks():
        survey.see(block)
    return Report(
        (
            *survey.checks(),
            _check_loss(activation, loss),
            _check_outputs(survey.activation, data.n_outputs, n_classes),
            *survey.label_checks(),
        )
    )


@of_any_library("logits", "labels")
def check_pairing(
    activation: str | None = None,
    loss: str | None = None,
    *,
    n_outputs: int | None = None,
    n_classes: int | None = None,
    logits: Any = None,
    labels: Any = None,
    axis: int = -1,
) -> Report:
    """Check that activation, loss, outputs and labels belong together.

    Softmax and cross-entropy are for exactly one right class, with one output per class;
    sigmoid and binary cross-entropy for any number of right labels, with one output per
    label. Paired wrongly, a classifier trains without an error, and its probabilities are
    useless.

    Parameters
    ----------
    activation : {"softmax", "sigmoid"}, optional
        What makes probabilities of logits.
    loss : {"cross_entropy", "binary_cross_entropy"}, optional
        As for `validate`.
    n_outputs : int, optional
        How many outputs the classifier has; by default as many as there are logits.
    n_classes : int, optional
        How many classes there are to tell apart.
    logits : array_like, optional
        What activation and loss are given, with the classes along `axis`.
    labels : array_like, optional
        As for `validate`; only with logits.
    axis : int, default -1
        The classes.

    Returns
    -------
    Report
        The checks and what came of them. What the arguments do not tell is "not checked".

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `validate`; also if there is nothing to check.

    Examples
    --------
    >>> from pysoftmax import check_pairing, softmax
    >>> p = softmax([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0]])
    >>> print(check_pairing("softmax", "cross-entropy", n_classes=3, logits=p))
    check                    result       measured
    ---------------------------------------------------------------------
    loss matches activation  pass         softmax with cross_entropy
    outputs match classes    pass         3 outputs, 3 classes
    logits are raw           fail         all in [0, 1], rows add up to 1
    labels suit activation   not checked  no labels
    fail: logits are raw: these are probabilities: give raw logits, or apply no softmax again
    """
    activation, loss = _activation(activation), _loss(loss)
    if labels is not None and logits is None:
        raise ValueError("labels are checked with the logits: give both")
    if activation is None and loss is None and n_outputs is None and logits is None:
        raise ValueError("expected an activation, a loss, n_outputs or logits")
    survey = None
    if logits is not None:
        data = _Outputs(None, logits, labels, axis)
        if n_outputs is not None and _count("n_outputs", n_outputs) != data.n_outputs:
            raise ValueError(f"n_outputs is {n_outputs}, but there are logits of {data.n_outputs}")
        n_outputs = data.n_outputs
        survey = _Survey(data, activation or "softmax", None)
        for block in data.blocks():
            survey.see(block)
    return Report(
        (
            _check_loss(activation, loss),
            _check_outputs(activation, n_outputs, n_classes),
            survey.raw() if survey else Check("logits are raw", NOT_CHECKED, "no logits"),
            survey.suit()
            if survey and activation
            else Check(_SUIT, NOT_CHECKED, "needs activation, logits and labels"),
        )
    )


# ---------------------------------------------------------------------------------- pairing

_SUIT = "labels suit activation"


def _activation(name: str | None) -> str | None:
    return None if name is None else _known("activation", name, tuple(LOSSES))


def _loss(name: str | None) -> str | None:
    if name is None:
        return None
    known = (*LOSSES.values(), "binary_cross_entropy_with_logits")
    return _known("loss", name, known).removesuffix("_with_logits")


def _known(argument: str, name: str, known: tuple[str, ...]) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a name, got {type(name).__name__}")
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if plain not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}")
    return plain


def _count(argument: str, value: int) -> int:
    if operator.index(value) < 1:
        raise ValueError(f"{argument} must be at least 1, got {value}")
    return value


def _check_loss(activation: str | None, loss: str | None) -> Check:
    name = "loss matches activation"
    if activation is None or loss is None:
        return Check(name, NOT_CHECKED, f"activation {activation}, loss {loss}")
    pair = f"{activation} with {loss}"
    if LOSSES[activation] == loss:
        return Check(name, PASS, pair)
    other = next(each for each in LOSSES if each != activation)
    advice = (
        f"train with {LOSSES[activation]}, or use {other}: softmax is for exactly one right "
        "class, sigmoid for any number of right labels"
    )
    return Check(name, FAIL, pair, None, advice)


def _check_outputs(activation: str | None, n_outputs: int | None, n_classes: int | None) -> Check:
    name = "outputs match classes"
    outputs = None if n_outputs is None else _count("n_outputs", n_outputs)
    classes = None if n_classes is None else _count("n_classes", n_classes)
    measured = f"{outputs or 'unknown'} outputs, {classes or 'unknown'} classes"
    if outputs == 1 and activation == "softmax":
        advice = "the softmax of one output is always 1: use one output per class, or sigmoid"
        return Check(name, FAIL, measured, None, advice)
    if outputs is None or classes is None:
        return Check(name, NOT_CHECKED, measured)
    # One output of a sigmoid tells two classes apart.
    if outputs == classes or (activation == "sigmoid" and (outputs, classes) == (1, 2)):
        return Check(name, PASS, measured)
    return Check(name, FAIL, measured, None, "give the last layer one output per class")


# ------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class _Block:
    """Some rows: where they come from, their float64 values or None, and labels or None."""

    part: Part
    place: Callable[..., str]
    probabilities: Array | None
    logits: Array | None
    labels: Array


class _Outputs:
    """What a classifier returned, and the labels: checked for their form, read in blocks."""

    def __init__(self, probabilities: Any, logits: Any, labels: Any, axis: Any) -> None:
        given = {"probabilities": probabilities, "logits": logits}
        given = {name: values for name, values in given.items() if values is not None}
        if not given:
            raise ValueError("expected probabilities, logits or both")
        self.backend: Backend = backend_of_blocks(**given, labels=labels)
        arrays = {name: self._array(name, values) for name, values in given.items()}
        shapes = [array.shape for array in arrays.values()]
        if shapes[0] != shapes[-1]:
            raise ValueError(
                f"probabilities and logits must have one shape, got {shapes[0]} and {shapes[1]}"
            )
        self.dtypes = {name: check.result_dtype(array.dtype) for name, array in arrays.items()}
        self.axis = check.normalize_axis(axis, len(shapes[0]))
        if 0 in shapes[0]:
            raise ValueError(f"expected at least one row and one class, got shape {shapes[0]}")
        self.n_outputs = shapes[0][self.axis]
        self.outer = check.reduced_shape(shapes[0], (self.axis,))
        self.rows = self.outer or (1,)
        self.n_rows = int(np.prod(self.rows))
        self.arrays = {name: classes_last(array, self.axis) for name, array in arrays.items()}
        self.labels = None if labels is None else self._labels(labels, shapes[0])

    def _array(self, name: str, values: Any) -> Array:
        if is_lazy(values):
            return values  # what is masked is seen when it is read
        instead = "for a class that takes no part give the logit -inf or the probability 0"
        return check.unmasked(self.backend, name, values, instead)

    def _labels(self, labels: Any, shape: tuple[int, ...]) -> Array:
        array = self._array("labels", labels)
        if array.dtype.kind not in "biuf" or (array.shape != shape and array.dtype.kind == "f"):
            raise TypeError(f"labels must be integers, got {array.dtype.name}")
        self.labels_by_class = array.shape == shape
        # The labels of a single output say whether that is right.
        if self.labels_by_class or (self.n_outputs == 1 and array.shape == self.outer):
            return classes_last(array.reshape(shape), self.axis)
        if array.shape == self.outer:
            return self._array("labels", in_memory(array)).reshape(self.rows)
        raise ValueError(
            f"labels must be one per row, {self.outer}, or one per class of each row, {shape}, "
            f"got {array.shape}"
        )

    @property
    def one_per_class(self) -> bool:
        """Whether labels are 0 and 1 for each class."""
        return self.labels is not None and self.labels.ndim > len(self.rows)

    def blocks(self) -> Iterator[_Block]:
        arrays = {**self.arrays, "labels": self.labels}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        for chunk, found in chunks([*arrays.values()], len(self.rows)):
            present = {
                name: self._array(name, array) for name, array in zip(arrays, found, strict=True)
            }
            for part in parts(present[next(iter(present))].shape):
                rows = within(chunk, part)
                labels = None
                if self.labels is not None:
                    shape = (-1, self.n_outputs) if self.one_per_class else (-1,)
                    labels = present["labels"][part].reshape(shape)
                p, x = (
                    present[name][part].reshape(-1, self.n_outputs).astype(np.float64)
                    if name in present
                    else None
                    for name in ("probabilities", "logits")
                )
                yield _Block(rows, self._place(rows), p, x, labels)

    def _place(self, part: Part) -> Callable[..., str]:
        """What names a place in a block by the caller's indices."""
        shape = [len(range(*cut.indices(n))) for cut, n in zip(part, self.rows, strict=False)]
        shape += self.rows[len(part) :]
        starts = [cut.start or 0 for cut in part]

        def place(name: str, row: int, column: int | None = None) -> str:
            index: list[Any] = [int(i) for i in np.unravel_index(row, shape)]
            for axis, start in enumerate(starts):
                index[axis] += start
            index = index if self.outer else []
            if name != "labels" or self.labels_by_class:
                index.insert(self.axis, ":" if column is None else column)
            return f"{name}[{', '.join(map(str, index))}]" if index else name

        return place


def finfo(dtype: np.dtype[Any]) -> Any:
    """The limits of a float dtype, bfloat16 too."""
    if dtype.kind == "f":
        return np.finfo(dtype)
    return _extras.load("ml_dtypes", "bfloat16", "bfloat16").finfo(dtype)


def rounding(dtype: np.dtype[Any], n: int) -> float:
    """How far from 1 correctly computed probabilities of n classes may add up to.

    4 ULP of each, what a sum in the arithmetic of the dtype may be off, and what subnormal
    ones lose.
    """
    info, wide = finfo(dtype), finfo(check.summing_dtype(dtype))
    return float(4 * float(info.eps) + n * (float(wide.eps) / 2 + float(info.smallest_subnormal)))


class _Watch:
    """The largest value of a measure, and where the first one above a limit is."""

    def __init__(self, name: str, *limits: float) -> None:
        self.name = name
        self.limits = limits
        self.largest = 0.0
        self.counts = [0] * len(limits)
        self.first: list[str | None] = [None] * len(limits)

    def see(self, values: Array, block: _Block) -> None:
        """Values of rows, or of all classes of rows; NaN is above every limit."""
        self.largest = float(np.maximum(self.largest, float(values.max())))
        for k, limit in enumerate(self.limits):
            bad = ~(values <= limit)
            found = int(bad.sum())
            if found and not self.counts[k]:
                index = np.unravel_index(int(bad.reshape(-1).argmax()), bad.shape)
                self.first[k] = block.place(self.name, *map(int, index))
            self.counts[k] += found


class _Survey:
    """One reading of all rows, and the checks that come of it."""

    def __init__(self, data: _Outputs, activation: str, temperature: Any) -> None:
        self.data = data
        self.activation = activation
        self.given = temperature
        self.temperature = check.check_temperature(
            data.backend, 1.0 if temperature is None else in_memory(temperature), data.outer
        )
        if activation == "sigmoid" and not np.all(self.temperature):
            raise ValueError("temperature must be > 0 for sigmoid, got 0")
        if not isinstance(self.temperature, float):
            self.temperature = self.temperature.reshape(data.rows)
        single = rounding(np.dtype(np.float32), data.n_outputs)
        bounds = {name: rounding(dtype, data.n_outputs) for name, dtype in data.dtypes.items()}
        self.wider = max(single, *bounds.values())
        self.source = "probabilities" if "probabilities" in data.arrays else "logits"
        self.finite = {name: _Watch(name, 0) for name in data.arrays}
        self.range = _Watch(self.source, 0)
        own = bounds[self.source]
        self.sums = _Watch(self.source, own, max(single, own))
        self.match = _Watch("probabilities", max(bounds.values()), self.wider)
        self.extremes = _Watch("probabilities", self.wider)
        self.n_extreme = 0
        self.largest_logit = 0.0
        self.instead: str | None = None
        self.unit = self.distributions = self.twice = True
        self.labels = _Watch("labels", 0)
        self.right = _Watch("labels", 0)
        self.counts = np.zeros(data.n_outputs)
        self.own = np.zeros(data.n_outputs)
        self.losses = np.zeros(2)
        self.n_losses = 0

    # ---------------------------------------------------------------------------- reading

    def see(self, block: _Block) -> None:
        p, x = block.probabilities, block.logits
        xp = self.data.backend.namespace
        if x is not None:
            wrong = xp.isnan(x) | (x == np.inf)
            if self.activation == "softmax":  # of which such a row has none
                wrong |= (x == -np.inf).all(axis=-1, keepdims=True)
            self.finite["logits"].see(wrong, block)
            self._see_raw(x)
            temperature = self._of(block.part)
            computed = self._activate(self.activation, x, temperature)
            if p is not None:
                self._see_match(p, x, computed, temperature, block)
        if p is not None:
            self.finite["probabilities"].see(~xp.isfinite(p), block)
            if x is None and self.twice:
                self._see_twice(p)
        else:
            p = computed
        self.range.see(xp.nan_to_num(xp.maximum(-p, p - 1), nan=0.0), block)
        if self.activation == "softmax":
            self.sums.see(xp.nan_to_num(abs(p.sum(axis=-1) - 1), nan=0.0), block)
        if block.labels is not None:
            self._see_labels(p, x, block)

    def _of(self, part: Part) -> Any:
        """The temperature of a block."""
        if isinstance(self.temperature, float):
            return self.temperature
        return self.temperature[part].reshape(-1)

    def _activate(self, activation: str, x: Array, temperature: Any) -> Array:
        if activation == "softmax":
            return softmax(x, temperature=temperature)
        with np.errstate(invalid="ignore", over="ignore"):
            return sigmoid(x / np.reshape(temperature, (-1, 1)))

    def _see_raw(self, x: Array) -> None:
        self.unit = self.unit and bool(((x >= 0) & (x <= 1)).all())
        self.distributions = (
            self.distributions and self.unit and bool((abs(x.sum(axis=-1) - 1) <= SLACK).all())
        )

    def _see_match(
        self, p: Array, x: Array, computed: Array, temperature: Any, block: _Block
    ) -> None:
        xp = self.data.backend.namespace
        info = finfo(self.data.dtypes["logits"])
        finite = xp.where(xp.isfinite(x), x, 0)
        magnitude = abs(finite).max(axis=-1)
        self.largest_logit = max(self.largest_logit, float(magnitude.max()))
        difference = abs(p - computed) - self._slack(computed, magnitude, temperature)
        difference = xp.where(xp.isnan(computed), 0, difference)
        self.match.see(difference, block)
        if self.match.counts[1] and self.instead is None:
            self.instead = self._what_else(p, x, computed, temperature)
        top = x.max(axis=-1)
        extreme = (top > np.log(float(info.max))) & (top < np.inf)
        extreme |= (top < np.log(float(info.smallest_normal))) | (x == -np.inf).any(axis=-1)
        extreme &= top > -np.inf
        self.n_extreme += int(extreme.sum())
        self.extremes.see(xp.where(extreme[:, None], difference, 0), block)

    def _slack(self, computed: Array, magnitude: Array, temperature: Any) -> Any:
        """How far off probabilities may be because logits were divided before the softmax.

        Each of x / T is then rounded by u |x / T| at most, and two of them move apart by s, twice
        that: the odds of a class change by a factor of exp(s).
        """
        if isinstance(temperature, float) and temperature in (0, 1):
            return 0.0
        xp = self.data.backend.namespace
        temperature = xp.asarray(temperature)
        divided = (temperature != 0) & (temperature != 1)
        unit = float(finfo(self.data.dtypes["logits"]).eps) / 2
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            s = xp.where(divided, 2 * unit * magnitude / temperature, 0)
        growth = xp.expm1(xp.minimum(s, 700))[:, None]
        least = xp.minimum(computed, 1 - computed)
        return least * (1 - least) * growth / (1 + least * growth)

    def _what_else(self, p: Array, x: Array, computed: Array, temperature: Any) -> str:
        """What the probabilities are, if not those of the logits; '' if that is not known."""
        xp = self.data.backend.namespace
        other = next(each for each in LOSSES if each != self.activation)
        with np.errstate(all="ignore"):
            guesses = {
                "those of a softmax applied twice: leave one out": softmax(computed),
                f"those of {other}: give activation={other!r} or apply {self.activation}": (
                    self._activate(other, x, temperature)
                ),
                "those of temperature 1: divide the logits by the temperature": self._activate(
                    self.activation, x, 1.0
                ),
                "the logits: apply the activation": x,
                "logarithms of probabilities: give their exponentials": xp.log(computed),
            }
            for what, guess in guesses.items():
                if bool((abs(p - guess) <= self.wider).all()):
                    return what
        return ""

    def _see_twice(self, p: Array) -> None:
        """Whether all rows so far can be the softmax of probabilities.

        Of p = softmax(q) with the sum of q being 1, q = log p - mean(log p) + 1 / C.
        """
        xp = self.data.backend.namespace
        with np.errstate(divide="ignore", invalid="ignore"):
            log_p = xp.log(p)
            inner = log_p - log_p.mean(axis=-1, keepdims=True) + 1 / self.data.n_outputs
        self.twice = bool((inner >= -self.wider).all())

    def _see_labels(self, p: Array, x: Array | None, block: _Block) -> None:
        xp, labels = self.data.backend.namespace, block.labels
        if self.data.one_per_class:
            wrong = (labels != 0) & (labels != 1)
            self.labels.see(wrong, block)
            right = labels.sum(axis=-1)
            self.right.see(abs(right - 1.0), block)
            good, labels = (right == 1) & ~wrong.any(axis=-1), labels.argmax(axis=-1)
        else:
            good = (labels >= 0) & (labels < self.data.n_outputs)
            self.labels.see(~good, block)
        if self.activation == "sigmoid":
            return
        if x is not None:
            top = x.max(axis=-1)
            good &= (top < np.inf) & (top > -np.inf)
        good &= ~xp.isnan(p).any(axis=-1)
        labels, p = labels[good].astype(np.int64), p[good]
        if not len(labels):
            return
        own = p[xp.arange(len(labels)), labels]
        n = self.data.n_outputs
        self.counts += host(xp.bincount(labels, minlength=n))
        self.own += host(xp.bincount(labels, weights=own, minlength=n))
        if x is not None and self.given is not None:
            temperature = self._of(block.part)
            temperature = temperature if isinstance(temperature, float) else temperature[host(good)]
            for k, each in enumerate((temperature, 1.0)):
                self.losses[k] += cross_entropy(x[good], labels, temperature=each, reduction="sum")
            self.n_losses += len(labels)

    # ----------------------------------------------------------------------------- checks

    def checks(self) -> list[Check]:
        """What the probabilities and logits tell."""
        return [
            *(self._finite(name, watch) for name, watch in self.finite.items()),
            self._range(),
            self._sums(),
            self._match(),
            self._extreme(),
            self.raw(),
            self._temperature(),
        ]

    def label_checks(self) -> list[Check]:
        """What the labels tell."""
        return [self._labels(), self.suit(), self._rare()]

    def _finite(self, name: str, watch: _Watch) -> Check:
        title = f"{name} are finite"
        count = watch.counts[0]
        values = f"{self.data.n_rows * self.data.n_outputs} values"
        if not count:
            return Check(title, PASS, values)
        kinds = "NaN or infinite" if name == "probabilities" else "NaN, +inf or in rows of -inf"
        advice = "look for NaN in the classifier's input, and for overflow before the activation"
        return Check(title, FAIL, f"{count} of {values} {kinds}", watch.first[0], advice)

    def _range(self) -> Check:
        title, watch = "probabilities are in [0, 1]", self.range
        if not watch.counts[0]:
            return Check(title, PASS, self._what())
        measured = f"{watch.counts[0]} outside, by {watch.largest:.3g} at most"
        advice = "these are no probabilities: apply the activation, or give them as logits"
        return Check(title, FAIL, measured, watch.first[0], advice)

    def _what(self) -> str:
        return "as given" if self.source == "probabilities" else "computed from the logits"

    def _sums(self) -> Check:
        title = "rows add up to 1"
        if self.activation == "sigmoid":
            return Check(title, NOT_CHECKED, "those of sigmoid need not")
        advice = (
            "normalise along the axis of the classes, in float32 at least; if several labels can "
            "be right, the activation is sigmoid"
        )
        return self._graded(title, self.sums, "|sum - 1|", advice)

    def _match(self) -> Check:
        title = "probabilities are those of the logits"
        if len(self.data.arrays) < 2:
            return Check(title, NOT_CHECKED, "one of them is not given")
        advice = (
            f"they are {self.instead}"
            if self.instead
            else ("look for another axis, order of classes, temperature or activation")
        )
        return self._graded(title, self.match, "difference", advice)

    def _graded(self, title: str, watch: _Watch, what: str, advice: str) -> Check:
        """Pass within the dtype's rounding, warn within that of float32."""
        measured = f"largest {what} {watch.largest:.3g}, tolerance {watch.limits[0]:.3g}"
        if watch.counts[1]:
            return Check(title, FAIL, measured, watch.first[1], advice)
        if watch.counts[0]:
            return Check(title, WARN, measured, watch.first[0], _ROUNDED)
        return Check(title, PASS, measured)

    def _extreme(self) -> Check:
        title = "extreme logits are handled"
        more = "run pysoftmax.testing.check_softmax on the function that makes the probabilities"
        if len(self.data.arrays) < 2:
            return Check(title, NOT_CHECKED, "needs logits and probabilities", None, more)
        largest = f"largest |logit| {self.largest_logit:.4g}"
        if not self.n_extreme:
            return Check(title, NOT_CHECKED, f"there are none, {largest}", None, more)
        measured = f"{self.n_extreme} of {self.data.n_rows} rows, {largest}"
        if self.match.counts[1] > self.extremes.counts[0]:
            return Check(title, NOT_CHECKED, f"{measured}; others do not match either")
        if self.extremes.counts[0]:
            advice = "subtract the largest logit of a row before the exponential; " + more
            return Check(title, FAIL, measured, self.extremes.first[0], advice)
        return Check(title, PASS, measured)

    def raw(self) -> Check:
        """Whether a softmax is applied once."""
        title = "logits are raw"
        if self.data.n_outputs == 1:
            return Check(title, NOT_CHECKED, "there is one output")
        if "logits" in self.data.arrays:
            if self.distributions:
                advice = "these are probabilities: give raw logits, or apply no softmax again"
                return Check(title, FAIL, "all in [0, 1], rows add up to 1", None, advice)
            if self.unit:
                advice = "look whether a sigmoid or softmax was applied to them before"
                return Check(title, WARN, "all in [0, 1]", None, advice)
            return Check(title, PASS, "not all in [0, 1]")
        if self.activation == "sigmoid":
            return Check(title, NOT_CHECKED, "no logits")
        if self.twice:
            measured = "no row is surer than a softmax of probabilities can be"
            advice = "look whether softmax was applied to what were probabilities already"
            return Check(title, WARN, measured, None, advice)
        return Check(title, PASS, "rows that no softmax of probabilities can give")

    def _temperature(self) -> Check:
        title = "temperature is recorded and tested"
        if self.given is None:
            advice = "give the temperature: 1, or what fit_temperature finds on held-out data"
            return Check(title, NOT_CHECKED, "none was given", None, advice)
        at = f"T = {self.temperature:.6g}" if isinstance(self.temperature, float) else "T by row"
        if not self.n_losses:
            advice = "give logits and one label per row to test it"
            return Check(title, NOT_CHECKED, f"recorded, {at}; not tested", None, advice)
        here, at_one = (self.losses / self.n_losses).tolist()
        measured = f"{at}, log-loss {here:.4g}; {at_one:.4g} at 1"
        if here <= at_one and here < np.inf:
            return Check(title, PASS, measured)
        advice = (
            "it makes the labels less likely, or one of them impossible: fit it to held-out data "
            "with fit_temperature"
        )
        return Check(title, WARN, measured, None, advice)

    def _labels(self) -> Check:
        title, watch = "labels are classes", self.labels
        if self.data.labels is None:
            return Check(title, NOT_CHECKED, "no labels")
        if self.data.one_per_class:
            expected = "0 or 1"
        else:
            expected = f"in [0, {self.data.n_outputs})"
        if watch.counts[0]:
            measured = f"{watch.counts[0]} not {expected}"
            advice = f"expected labels {expected}: look for other numbers of classes"
            return Check(title, FAIL, measured, watch.first[0], advice)
        return Check(title, PASS, f"all {expected}")

    def suit(self) -> Check:
        """Whether labels with one right class meet softmax, and others sigmoid."""
        if self.data.labels is None:
            return Check(_SUIT, NOT_CHECKED, "no labels")
        others = self.right.counts[0]
        measured = f"one right class in {self.data.n_rows - others} of {self.data.n_rows} rows"
        if self.activation == "softmax":
            if not others:
                return Check(_SUIT, PASS, measured)
            advice = "softmax needs exactly one: use sigmoid and binary_cross_entropy"
            return Check(_SUIT, FAIL, measured, self.right.first[0], advice)
        if others or self.data.n_outputs == 1:
            return Check(_SUIT, PASS, measured)
        advice = "where exactly one class is right, softmax and cross_entropy know more"
        return Check(_SUIT, WARN, measured, None, advice)

    def _rare(self) -> Check:
        """Whether classes with less than an equal share of the rows are ever predicted."""
        title = "rare classes are predicted"
        if not self.counts.any():
            return Check(title, NOT_CHECKED, "needs softmax and one label per row")
        rare = np.flatnonzero(
            (self.counts > 0) & (self.counts * len(self.counts) < self.counts.sum())
        )
        if not len(rare):
            return Check(title, PASS, "no class is rarer than the others")
        mean = self.own[rare] / self.counts[rare]
        lowest = int(mean.argmin())
        measured = f"mean probability {mean[lowest]:.3g} for the rows of class {rare[lowest]}"
        if mean[lowest] * len(self.counts) >= 1:
            return Check(title, PASS, measured)
        advice = (
            f"that is below 1 / {len(self.counts)}, what guessing gives: train with class weights, "
            "or adjust the logits by the logarithm of the classes' shares"
        )
        return Check(title, WARN, measured, None, advice)
