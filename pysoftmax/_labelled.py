"""Scores of classes with their labels: checked once, then read in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftmax import _arguments as check
from pysoftmax._rows import (
    Part,
    backend_of_blocks,
    chunks,
    classes_last,
    in_memory,
    is_lazy,
    parts,
    place,
    refuse,
    within,
)
from pysoftmax.backends import Array


def host(values: Array) -> NDArray[Any]:
    """A small array of any library as one of NumPy's."""
    return values if isinstance(values, np.ndarray) else np.array(values.tolist())


class Labelled:
    """Rows of one score per class, the label of each row, and what it weighs.

    A row of weight 0 takes no part: whatever it and its label hold, it is as if it was not
    there.

    Attributes
    ----------
    backend : Backend
        What all the arrays belong to, or the blocks of lazy ones.
    scores : ndarray or dask.array
        A view of the caller's, with the classes last; at least one row and two classes.
    labels : ndarray
        Integers in [0, n_classes), the shape of `scores` without its last axis.
    weight : ndarray or None
        float64, the shape of `labels`.
    total : float
        The sum of the weights, or the number of rows.
    """

    def __init__(self, name: str, scores: Any, labels: Any, axis: Any, sample_weight: Any) -> None:
        self.name = name
        self.backend = backend_of_blocks(
            **{name: scores, "labels": labels, "sample_weight": sample_weight}
        )
        array = scores if is_lazy(scores) else self._array(name, scores)
        truth = self._array("labels", labels)
        check.result_dtype(array.dtype)
        axis = check.normalize_axis(axis, array.ndim)
        self.n_classes = array.shape[axis]
        rows = check.reduced_shape(array.shape, (axis,))
        if 0 in rows:
            raise ValueError(f"{name} must have at least one row, got shape {array.shape}")
        if self.n_classes < 2:
            raise ValueError(
                f"{name} must have at least 2 classes along axis {axis}, got shape {array.shape}"
            )
        self._check_labels(truth, rows)
        # A single row may come without an axis of rows.
        self.labels = truth.reshape(rows or (1,))
        self.scores = classes_last(array, axis)
        self.weight = self._weight(sample_weight, rows)
        self._keep = None
        if self.weight is not None and not self.weight.all():
            self._keep = self.weight > 0
        self.total = float(self.labels.size if self.weight is None else self.weight.sum())
        self._check_range()

    def _array(self, name: str, values: Any) -> Array:
        return check.unmasked(
            self.backend,
            name,
            in_memory(values),
            "give rows the sample_weight 0 instead, or for a class that takes no part the logit "
            "-inf or the probability 0",
        )

    def _check_labels(self, labels: Array, rows: tuple[int, ...]) -> None:
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, got {labels.dtype.name}")
        if labels.shape != rows:
            raise ValueError(
                f"labels must have the shape of {self.name} without the classes, {rows}, "
                f"got {labels.shape}"
            )

    def _weight(self, sample_weight: Any, rows: tuple[int, ...]) -> Array | None:
        if sample_weight is None:
            return None
        weight = self._array("sample_weight", sample_weight)
        if not check.is_real(weight.dtype):
            raise TypeError(f"sample_weight must be real, got {weight.dtype.name}")
        if weight.shape != rows:
            raise ValueError(
                f"sample_weight must have one entry per row {rows}, got {weight.shape}"
            )
        weight = weight.astype(np.float64).reshape(self.labels.shape)
        if not (weight >= 0).all():
            worst = weight[~(weight >= 0)].reshape(-1)[0]
            raise ValueError(f"sample_weight must be >= 0 and not NaN, got {worst}")
        with np.errstate(over="ignore"):
            total = float(weight.sum())
        if not 0 < total < np.inf:
            raise ValueError(f"the sum of sample_weight must be positive and finite, got {total}")
        return weight

    def _check_range(self) -> None:
        bad = (self.labels < 0) | (self.labels >= self.n_classes)
        if self._keep is not None:
            bad &= self._keep
        if bad.any():
            index = np.unravel_index(int(bad.argmax()), bad.shape)
            raise IndexError(
                f"labels[{place(index)}] is {self.labels[index]}: class labels must be in "
                f"[0, {self.n_classes})"
            )

    def flat(self, rows: Array) -> Array:
        """One value per row as a 1-d array, without the rows of weight 0."""
        return rows.reshape(-1) if self._keep is None else rows[self._keep]

    def blocks(self) -> Iterator[tuple[Array, Array, Array, Part]]:
        """Scores (n, n_classes), labels (n,), weights (n,), and where these rows are."""
        for chunk, (found,) in chunks([self.scores], self.labels.ndim):
            present = self._array(self.name, found)
            for part in parts(present.shape):
                rows = within(chunk, part)
                keep = ... if self._keep is None else self._keep[rows]
                scores = present[part][keep].reshape(-1, self.n_classes)
                labels = self.labels[rows][keep].reshape(-1)
                if self.weight is None:
                    weight = self.backend.namespace.ones(len(labels))
                else:
                    weight = self.weight[rows][keep].reshape(-1)
                if len(labels):
                    yield scores, labels, weight, rows

    def refuse(self, bad: Array, values: Array, part: Part, expected: str) -> None:
        """ValueError for the first row of a block where `bad` is true, if there is one."""
        keep = None if self._keep is None else self._keep[part]
        name = f"{self.name} in the row of labels"
        refuse(name, bad, values, expected, self.labels.shape, part, keep)
