"""Make ``pysoftmax/data/digits.npz``, the logits behind ``python -m pysoftmax demo``.

The data are the 1797 handwritten digits that scikit-learn ships (8 x 8 pixels, from
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, CC BY 4.0).
Half of them, drawn once with a fixed seed and the classes in proportion, train a multinomial
logistic regression; the logits are its decision function on the other half, as float32.

Neither is the model regularised nor are the pixels (0 to 16) scaled. Nothing else is needed
to get logits beyond 150, where ``np.exp`` overflows in float32 (it does so above 88.7).

Run from the root of the repository, with scikit-learn installed::

    python tools/make_digits.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

TARGET = Path(__file__).parents[1] / "pysoftmax" / "data" / "digits.npz"


def main() -> None:
    """Train the classifier and save its logits and the true labels of the held-out half."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.5, random_state=0, stratify=labels
    )
    model = LogisticRegression(C=np.inf, max_iter=10_000).fit(train_x, train_y)
    logits = model.decision_function(test_x)
    np.savez(TARGET, logits=logits.astype(np.float32), labels=test_y.astype(np.uint8))
    print(f"{TARGET}: {logits.shape}, {logits.min():.1f} to {logits.max():.1f}")


if __name__ == "__main__":
    main()
