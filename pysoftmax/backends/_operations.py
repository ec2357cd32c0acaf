"""The row operations by the numbers that src/cpu/kernels.h and src/cuda/task.cuh give them."""

(
    SOFTMAX,
    LOG_SOFTMAX,
    LOGSUMEXP,
    CROSS_ENTROPY,
    CROSS_ENTROPY_WITH_GRAD,
    SOFTMAX_VJP,
    LOG_SOFTMAX_VJP,
    DOT,
    SUM,  # of CUDA's kernels only
) = range(9)
