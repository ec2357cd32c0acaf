"""Softmax, log-softmax and cross-entropy for arrays: fast, accurate, reproducible."""

from typing import TYPE_CHECKING

from pysoftmax._info import __version__, info
from pysoftmax._losses import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_with_grad,
    cross_entropy,
    cross_entropy_with_grad,
)
from pysoftmax._sigmoid import log_sigmoid, sigmoid
from pysoftmax._softmax import (
    log_softmax,
    log_softmax_vjp,
    logsumexp,
    softmax,
    softmax_vjp,
)
from pysoftmax._threads import get_num_threads, num_threads, set_num_threads

if TYPE_CHECKING:
    from pysoftmax.calibration import (
        TemperatureScaling,
        VectorScaling,
        fit_temperature,
        fit_vector_scaling,
    )
    from pysoftmax.decisions import (
        class_weight,
        decide,
        logit_adjust,
        risk_coverage_curve,
        top_k,
    )
    from pysoftmax.monitoring import ConfidenceMonitor
    from pysoftmax.reliability import (
        ReliabilityDisplay,
        brier_score,
        expected_calibration_error,
        negative_log_likelihood,
        reliability_curve,
    )
    from pysoftmax.sampling import sample
    from pysoftmax.validation import Report, check_pairing, validate
else:
    from pysoftmax._lazy import __getattr__ as __getattr__

__all__ = [
    "ConfidenceMonitor",
    "ReliabilityDisplay",
    "Report",
    "TemperatureScaling",
    "VectorScaling",
    "__version__",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "brier_score",
    "check_pairing",
    "class_weight",
    "cross_entropy",
    "cross_entropy_with_grad",
    "decide",
    "expected_calibration_error",
    "fit_temperature",
    "fit_vector_scaling",
    "get_num_threads",
    "info",
    "log_sigmoid",
    "log_softmax",
    "log_softmax_vjp",
    "logit_adjust",
    "logsumexp",
    "negative_log_likelihood",
    "num_threads",
    "reliability_curve",
    "risk_coverage_curve",
    "sample",
    "set_num_threads",
    "sigmoid",
    "softmax",
    "softmax_vjp",
    "top_k",
    "validate",
]
