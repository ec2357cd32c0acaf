/* What the kernel modules and the NumPy backend's door say to each other.
 *
 * A kernel module (one per CPU target and real type) exports one KernelTable in a
 * capsule; the door fills in a Task and calls the table's functions over ranges of
 * rows, panels or pieces, from one thread or several.
 */
#ifndef PYSOFTMAX_KERNELS_H
#define PYSOFTMAX_KERNELS_H

#include <Python.h>
#include <stdint.h>

#include "units.h"

/* What elements are, where they are not the kernels' real type: the door hands those to the kernels
 * for float, part by part, as float. */
typedef enum { REAL, FLOAT16, BFLOAT16, ELEMENTS } Element;

/* A strided operand seen as (outer, n, inner); strides in bytes. */
typedef struct {
    char *data;
    Py_ssize_t outer, n, inner;
    Element element; /* but for half_rows and half_panels kernels see REAL alone */
} Operand;

typedef enum {
    SOFTMAX,
    LOG_SOFTMAX,
    LOGSUMEXP,
    CROSS_ENTROPY,
    CROSS_ENTROPY_WITH_GRAD,
    SOFTMAX_VJP,
    LOG_SOFTMAX_VJP,
    DOT,
    OPERATIONS
} Operation;

typedef struct {
    Operand x;      /* logits; for a vjp the probabilities or log-probabilities */
    Operand y;      /* for a vjp grad_output; for a loss the target probabilities, apart from
                     * out; for dot the other factor; or NULL */
    Operand out;    /* one value per element, or NULL */
    Operand mask;   /* bool, true where an element takes part; or NULL */
    void *row_out;  /* one real per row (loss, logsumexp, dot), rows in C order of (outer, inner) */
    Element row_element; /* of row_out, as in Operand */
    /* For softmax_with_top, one per row. */
    double *top_value;
    int64_t *top_place;
    void *tops; /* the kernel's own */
    Py_ssize_t outer, n, inner;

    const double *temperature; /* one per row, or one for all (step 0) */
    Py_ssize_t temperature_step;

    /* cross-entropy: loss = sum_c q_c * (lse - x_c), q from all that follows */
    const int64_t *target; /* class index per row, or NULL for target probabilities */
    int64_t ignore_index;
    const double *class_weight; /* one per class, or NULL */
    double label_smoothing;
    double gradient_scale; /* what a row's gradient is multiplied by */
} Task;

/* What is known of a stretch of a row; two neighbours merge into one.
 * The stretch's sum of exp((x - c) / T) is (count * at_max + rest + low) * 2^exponent. */
typedef struct {
    double max;      /* largest (x - c) seen; -inf for nothing seen */
    double at_max;   /* exp at the maximum, scaled; exact in real */
    double count;    /* how many elements equal the maximum */
    double rest;     /* sum over the others, scaled */
    double low;      /* what rounding left out of rest */
    double exponent; /* an integer, K */
    double dot;      /* sum of q * (max - x), or of the products of a vjp */
    double q;        /* sum of q */
} Partial;

/* How a row is looked at: decided once, then constant over the row. */
typedef struct {
    double shift;               /* c: 0, or the row's maximum where that is huge */
    double temperature;         /* > 0, or inf */
    double beta_high, beta_low; /* 1 / temperature, in two reals */
    int general;                /* shift != 0 or temperature != 1 */
} View;

/* Functions return 0, or -1 when memory ran out. */
typedef int (*RangeFunction)(const Task *task, Py_ssize_t begin, Py_ssize_t end);

/* A unit of long rows in pieces along them, which several threads may share: softmax, log_softmax
 * and logsumexp, and of single rows the vjps. Partials and exponents of a piece: lane by lane, the
 * latter block by block; of a unit: piece by piece. */
typedef struct {
    Py_ssize_t lanes;  /* rows of a unit, at most */
    Py_ssize_t blocks; /* of a piece */
    void (*maxima)(const Task *task, Py_ssize_t unit, Py_ssize_t piece, double *maxima);
    /* start: of each row a lower bound of its maximum, or -inf. 0 where the unit needs `rows` or
     * `panels` instead; if start were the maxima, nothing was written to out then. */
    int (*sweep)(Operation operation, const Task *task, Py_ssize_t unit, Py_ssize_t piece,
                 const double *start, Partial *result, double *exponents);
    void (*write)(Operation operation, const Task *task, Py_ssize_t unit, Py_ssize_t piece,
                  const Partial *whole, const double *exponents);
    void (*finish)(Operation operation, const Task *task, Py_ssize_t unit, const Partial *whole);
} Pieces;

/* Likewise softmax_vjp and log_softmax_vjp of groups of up to `columns` neighbours, by pieces of a
 * chunk; sums: one of each row. */
typedef struct {
    Py_ssize_t columns;
    void (*sum)(Operation operation, const Task *task, Py_ssize_t group, Py_ssize_t piece,
                double *sums);
    void (*write)(Operation operation, const Task *task, Py_ssize_t group, Py_ssize_t piece,
                  const double *whole);
} ProductPieces;

typedef struct {
    /* Rows [begin, end), numbered in C order of (outer, inner). */
    RangeFunction rows[OPERATIONS];
    /* Units [begin, end) of panel_columns neighbours along a contiguous inner
     * dimension, outer by outer; NULL where an operation has no vertical form. */
    RangeFunction panels[OPERATIONS];
    Py_ssize_t panel_columns;
    /* Contiguous rows, or panels, whose x, y and out are of this element, rather than converted; of
     * float's table alone, and NULL where an operation has none or lanes.h no WIDENS. */
    RangeFunction half_rows[OPERATIONS][ELEMENTS];
    RangeFunction half_panels[OPERATIONS][ELEMENTS];

    Pieces row_pieces;
    Pieces panel_pieces; /* of units of panel_columns neighbours, as panels takes them */
    ProductPieces product_pieces;
    void (*merge)(const Partial *left, const Partial *right, Partial *result);

    /* Elementwise over n elements, every operand contiguous. */
    void (*sigmoid)(const void *x, void *out, Py_ssize_t n);
    void (*log_sigmoid)(const void *x, void *out, Py_ssize_t n);
    void (*binary_cross_entropy)(const void *x, const void *y, const void *weight,
                                 const void *pos_weight, void *loss, void *grad,
                                 double scale, Py_ssize_t n);
    double (*sum)(const void *x, Py_ssize_t n);
    /* Half precisions from and to float, whatever the real type: `count` stretches of n, `step`
     * apart in halves, one after the other in floats. */
    void (*widen)(Element element, const uint16_t *halves, Py_ssize_t step, float *floats,
                  Py_ssize_t count, Py_ssize_t n);
    void (*narrow)(Element element, const float *floats, uint16_t *halves, Py_ssize_t step,
                   Py_ssize_t count, Py_ssize_t n);

    /* rows[SOFTMAX], and of those rows that allow it what `top` finds while they are written; the
     * tops of the others are left as they are. */
    RangeFunction softmax_with_top;
    /* Of `count` rows of n, `step` elements apart, the largest element, or NaN, and its first
     * place. */
    void (*top)(const void *x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t count, double *value,
                int64_t *place);
    /* Of n contiguous probabilities, in nats. */
    double (*entropy)(const void *x, Py_ssize_t n);
} KernelTable;

#endif
