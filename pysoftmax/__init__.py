"""Softmax, log-softmax and cross-entropy for arrays: fast, accurate, reproducible."""

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

__all__ = [
    "__version__",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "cross_entropy",
    "cross_entropy_with_grad",
    "get_num_threads",
    "info",
    "log_sigmoid",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "num_threads",
    "set_num_threads",
    "sigmoid",
    "softmax",
    "softmax_vjp",
]
