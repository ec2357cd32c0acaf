# kernels.h as Cython sees it: what the door and the kernel modules share.

from libc.stdint cimport int64_t, uint16_t

cdef extern from "kernels.h" nogil:
    ctypedef enum Element:
        REAL
        FLOAT16
        BFLOAT16
    ctypedef struct Operand:
        char *data
        Py_ssize_t outer, n, inner
        Element element
    ctypedef enum Operation:
        SOFTMAX
        LOG_SOFTMAX
        LOGSUMEXP
        CROSS_ENTROPY
        CROSS_ENTROPY_WITH_GRAD
        SOFTMAX_VJP
        LOG_SOFTMAX_VJP
        DOT
    ctypedef struct Task:
        Operand x, y, out, mask
        void *row_out
        Element row_element
        double *top_value
        int64_t *top_place
        void *tops
        Py_ssize_t outer, n, inner
        const double *temperature
        Py_ssize_t temperature_step
        const int64_t *target
        int64_t ignore_index
        const double *class_weight
        double label_smoothing
        double gradient_scale
    ctypedef struct Partial:
        double max, at_max, count, rest, low, exponent, dot, q
    ctypedef struct View:
        double shift, temperature, beta_high, beta_low
        bint general
    int CHUNK_BYTES, BLOCK_BYTES, PIECE_BYTES
    ctypedef int (*RangeFunction)(const Task *, Py_ssize_t, Py_ssize_t) noexcept nogil
    ctypedef struct Pieces:
        Py_ssize_t lanes, blocks
        void (*maxima)(const Task *, Py_ssize_t, Py_ssize_t, double *) noexcept nogil
        bint (*sweep)(Operation, const Task *, Py_ssize_t, Py_ssize_t, const double *, Partial *,
                      double *) noexcept nogil
        void (*write)(Operation, const Task *, Py_ssize_t, Py_ssize_t, const Partial *,
                      const double *) noexcept nogil
        void (*finish)(Operation, const Task *, Py_ssize_t, const Partial *) noexcept nogil
    ctypedef struct ProductPieces:
        Py_ssize_t columns
        void (*sum)(Operation, const Task *, Py_ssize_t, Py_ssize_t, double *) noexcept nogil
        void (*write)(Operation, const Task *, Py_ssize_t, Py_ssize_t,
                      const double *) noexcept nogil
    ctypedef struct KernelTable:
        RangeFunction *rows
        RangeFunction *panels
        RangeFunction[8][3] half_rows
        RangeFunction[8][3] half_panels
        Py_ssize_t panel_columns
        Pieces row_pieces, panel_pieces
        ProductPieces product_pieces
        void (*merge)(const Partial *, const Partial *, Partial *) noexcept nogil
        void (*sigmoid)(const void *, void *, Py_ssize_t) noexcept nogil
        void (*log_sigmoid)(const void *, void *, Py_ssize_t) noexcept nogil
        void (*binary_cross_entropy)(const void *, const void *, const void *, const void *,
                                     void *, void *, double, Py_ssize_t) noexcept nogil
        double (*sum)(const void *, Py_ssize_t) noexcept nogil
        void (*widen)(Element, const uint16_t *, Py_ssize_t, float *, Py_ssize_t,
                      Py_ssize_t) noexcept nogil
        void (*narrow)(Element, const float *, uint16_t *, Py_ssize_t, Py_ssize_t,
                       Py_ssize_t) noexcept nogil
        RangeFunction softmax_with_top
        void (*top)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double *,
                    int64_t *) noexcept nogil
        double (*entropy)(const void *, Py_ssize_t) noexcept nogil
