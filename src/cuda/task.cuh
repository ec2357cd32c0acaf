// What a module is told at compile time and a kernel at launch, and the elements of a row: twin of
// src/cpu/task.pxi.

enum Operation {
    SOFTMAX,
    LOG_SOFTMAX,
    LOGSUMEXP,
    CROSS_ENTROPY,
    CROSS_ENTROPY_WITH_GRAD,
    SOFTMAX_VJP,
    LOG_SOFTMAX_VJP,
    DOT,
    SUM,  // of y, in double whatever `real` is
};

// What the operation of this module needs, constant.
enum : bool {
    STORES_EXP = OPERATION == SOFTMAX || OPERATION == CROSS_ENTROPY_WITH_GRAD,
    IS_SUM = OPERATION == LOG_SOFTMAX_VJP || OPERATION == SUM,
    IS_PRODUCT = OPERATION == SOFTMAX_VJP || OPERATION == DOT || IS_SUM,
    IS_LOSS = OPERATION == CROSS_ENTROPY || OPERATION == CROSS_ENTROPY_WITH_GRAD,
    HAS_OUT = OPERATION != LOGSUMEXP && OPERATION != CROSS_ENTROPY && OPERATION != DOT
              && OPERATION != SUM,
    HAS_DOT = IS_PRODUCT || DENSE,
};

enum {
    GROUP = LANES / VECTOR,         // threads of a chunk
    GROUPS = WARP / GROUP,          // chunks that a warp takes side by side
    CHUNKS = 4 / GROUPS,            // and one after the other, to a block
    STEPS = CHUNK / LANES,          // lane rows of a chunk
    MOST_WARPS = 16,                // blocks of a row in one thread block
};

// A sum of a stretch of a row; two neighbours merge into one. See src/cpu/kernels.h.
struct Partial {
    double max, at_max, count, rest, low, exponent, dot, q;
};

// One array seen as (outer, n, inner): strides in elements, that of inner is 1.
struct Task {
    const element *x;
    const void *y;              // for a vjp or dot elements, for a loss reals
    element *out;
    const unsigned char *mask;  // contiguous
    real *row_out;              // one per row, rows in C order of (outer, inner)
    const double *temperature;  // one per row, or one for all (step 0)
    const int64 *target;
    const double *class_weight;
    const double *divisor;      // of the gradient; 0: there is none
    Partial *partials;          // of streamed rows, one per block; then one whole per row
    int64 outer, n, inner;
    int64 x_outer, x_n, y_outer, y_n, out_outer, out_n;
    int64 temperature_step, ignore_index;
    double label_smoothing;
};

// ------------------------------------------------------------------------------- operands

// One row of the task.
struct Row {
    const element *x;
    const void *y;
    element *out;
    const unsigned char *mask;
    int64 number, x_step, y_step, out_step, mask_step;  // from one column to the next
    bool x_vectors, y_vectors, out_vectors;             // whether 16 bytes at a time can go
};

// Neighbours along a contiguous inner dimension, or rows that are contiguous themselves.
DEVICE Row row_at(const Task &task, int64 outer, int64 inner) {
    const int64 number = ALONG_COLUMNS ? outer * task.inner + inner : outer;
    const int64 x = outer * task.x_outer + inner, y = outer * task.y_outer + inner;
    Row row;
    row.number = number;
    row.x = task.x + x;
    row.out = HAS_OUT ? task.out + outer * task.out_outer + inner : nullptr;
    row.mask = task.mask ? task.mask + outer * task.n * task.inner + inner : nullptr;
    row.y = nullptr;
    if (task.y)
        row.y = IS_LOSS ? (const void *)((const real *)task.y + y)
                        : (const void *)((const element *)task.y + y);
    row.x_step = ALONG_COLUMNS ? task.x_n : 1;
    row.y_step = ALONG_COLUMNS ? task.y_n : 1;
    row.out_step = ALONG_COLUMNS ? task.out_n : 1;
    row.mask_step = ALONG_COLUMNS ? task.inner : 1;
    row.x_vectors = !ALONG_COLUMNS && is_aligned(task.x, task.x_outer);
    row.y_vectors = !ALONG_COLUMNS && is_aligned(task.y, task.y_outer);
    row.out_vectors = !ALONG_COLUMNS && is_aligned(task.out, task.out_outer);
    return row;
}

DEVICE Row row_of(const Task &task, int64 number) {
    const int64 outer = ALONG_COLUMNS ? number / task.inner : number;
    return row_at(task, outer, ALONG_COLUMNS ? number - outer * task.inner : 0);
}

// The row that comes so many later, of contiguous ones.
DEVICE Row row_after(const Task &task, Row row, int64 rows) {
    row.number += rows;
    row.x += rows * task.x_outer;
    row.out += rows * task.out_outer;
    if (row.mask) row.mask += rows * task.n;
    if (row.y)
        row.y = IS_LOSS ? (const void *)((const real *)row.y + rows * task.y_outer)
                        : (const void *)((const element *)row.y + rows * task.y_outer);
    return row;
}

DEVICE bool is_masked(const Row &row, int64 column) {
    return row.mask && !row.mask[column * row.mask_step];
}

// A logit, -inf where it is masked.
DEVICE real logit_at(const Row &row, int64 column) {
    return is_masked(row, column) ? -INFINITE : to_real(row.x[column * row.x_step]);
}

DEVICE real logit_of_target(const Task &task, const Row &row) {
    return IS_LOSS && task.target ? logit_at(row, task.target[row.number]) : 0;
}

// How a warp loads and stores what it takes of its rows, the same for all its lanes: whole vectors
// of which none is absent; whole ones, but some absent; or whatever there is, masked elements too.
enum Way { FULL, WHOLE, ANY };

DEVICE Way way_of(const Task &task, bool full) {
    const bool whole = task.n % VECTOR == 0 && !task.mask && is_aligned(task.x, task.x_outer)
                       && (!HAS_OUT || is_aligned(task.out, task.out_outer))
                       && (!IS_PRODUCT || is_aligned(task.y, task.y_outer));
    return !whole ? ANY : full ? FULL : WHOLE;
}

// each(Constant<way>()), so that within `each` the way is known to the compiler.
template <Way value> struct Constant {
    static constexpr Way way = value;
};
template <class Each> DEVICE void on_the(Way way, Each each) {
    if (way == FULL)
        each(Constant<FULL>());
    else if (way == WHOLE)
        each(Constant<WHOLE>());
    else
        each(Constant<ANY>());
}

// `rows` lane rows of a row of n, VECTOR columns of each from `column` on; absent ones are `other`.
template <Way way, int rows>
DEVICE void load_rows(const element *row, int64 step, int64 column, int64 n, bool vectors,
                      real other, real (&value)[rows][VECTOR]) {
    const element *from = row + column;
    const int left = n - column < rows * LANES ? (int)(n - column) : rows * LANES;
    UNROLL for (int s = 0; s < rows; s++) {
        if (way == ANY) {
            load_vector(row, step, column + s * LANES, n, vectors, other, value[s]);
        } else if (way == FULL || s * LANES < left) {
            load_whole(from + s * LANES, value[s]);
        } else {
            UNROLL for (int v = 0; v < VECTOR; v++) value[s][v] = other;
        }
    }
}

template <Way way, int rows>
DEVICE void store_rows(element *row, int64 step, int64 column, int64 n, bool vectors,
                       const real (&value)[rows][VECTOR]) {
    element *to = row + column;
    const int left = n - column < rows * LANES ? (int)(n - column) : rows * LANES;
    UNROLL for (int s = 0; s < rows; s++) {
        if (way == ANY)
            store_vector(row, step, column + s * LANES, n, vectors, value[s]);
        else if (way == FULL || s * LANES < left)
            store_whole(to + s * LANES, value[s]);
    }
}

// `rows` lane rows, VECTOR columns of each from `column` on: logits, masked and absent ones -inf;
// for a vjp the forward result, absent ones 0.
template <Way way, int rows>
DEVICE void load_x(const Row &row, int64 column, int64 n, real (&x)[rows][VECTOR]) {
    load_rows<way>(row.x, row.x_step, column, n, row.x_vectors,
                   IS_PRODUCT ? (real)0 : -INFINITE, x);
    if (way == ANY && row.mask)
        UNROLL for (int s = 0; s < rows; s++)
            UNROLL for (int v = 0; v < VECTOR; v++) {
                const int64 its = column + s * LANES + v;
                if (its < n && is_masked(row, its)) x[s][v] = -INFINITE;
            }
}

template <Way way, int rows>
DEVICE void load_y(const Row &row, int64 column, int64 n, real (&y)[rows][VECTOR]) {
    load_rows<way>((const element *)row.y, row.y_step, column, n, row.y_vectors, 0, y);
}

// q of a class without the spike: w_c ((1 - smoothing) y_c + smoothing / n).
DEVICE real q_of(const Task &task, const Row &row, int64 column) {
    double value = __ddiv_rn(task.label_smoothing, (double)task.n);
    if (column >= task.n) return 0;
    if (row.y) value += (1 - task.label_smoothing) * ((const real *)row.y)[column * row.y_step];
    if (task.class_weight) value *= task.class_weight[column];
    return (real)value;
}
