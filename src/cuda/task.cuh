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
// of which none is absent; whole ones, but some absent; vectors wherever they begin, of the 16 bytes
// from one that is aligned on; or one element at a time, masked ones too.
enum Way { FULL, WHOLE, SHIFTED, ANY };

DEVICE Way way_of(const Task &task, bool full) {
    const bool whole = task.n % VECTOR == 0 && is_aligned(task.x, task.x_outer)
                       && (!HAS_OUT || is_aligned(task.out, task.out_outer))
                       && (!IS_PRODUCT || is_aligned(task.y, task.y_outer));
    return task.mask ? ANY : !whole ? SHIFTED : full ? FULL : WHOLE;
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
    else if (way == SHIFTED)
        each(Constant<SHIFTED>());
    else
        each(Constant<ANY>());
}

// The elements of an operand: what may be read, row by row or around them.
struct Span {
    const element *begin, *end;
};

DEVICE Span span_of(const Task &task, const element *operand, int64 outer, const element *row) {
    if (outer < task.n) return {row, row + task.n};  // rows that overlap, or lie the other way round
    return {operand, operand + (task.outer - 1) * outer + task.n};
}

DEVICE uint4 vector_of_lane(const uint4 &vector, int lane) {
    return make_uint4(from_lane(vector.x, lane), from_lane(vector.y, lane), from_lane(vector.z, lane),
                      from_lane(vector.w, lane));
}

// Vectors that begin anywhere, by the `width` neighbouring lanes that have a chunk together: a lane
// loads the aligned vector that its own begins in, and gets the next one from the next lane. All
// lanes of the warp are here. Loads do not wait for each other: what is rare comes after them.
template <int width, int rows>
DEVICE void load_shifted(const element *row, const Span &span, int64 column, int64 n, real other,
                         real (&value)[rows][VECTOR]) {
    const unsigned by = (unsigned)(uint64)row % 16;
    const int shift = by / sizeof(element), lane = threadIdx.x % WARP, place = lane % width;
    const int after = place < width - 1 ? lane + 1 : lane - place;
    const element *from = row + column - shift;
    const int left = n - column < rows * LANES ? (int)(n - column) : rows * LANES;
    const int64 readable = span.end - from;
    const int end = readable < (rows + 1) * LANES ? (int)readable : (rows + 1) * LANES;
    const bool begins = from >= span.begin;
    auto load = [&](int s, int its, bool wanted) {
        uint4 vector = make_uint4(0, 0, 0, 0);
        if (wanted && its + VECTOR <= end && (s > 0 || begins)) vector = whole_at(from + its);
        return vector;
    };
    uint4 own[rows];
    UNROLL for (int s = 0; s < rows; s++) own[s] = load(s, s * LANES, s * LANES - shift < left);
    // Of the chunk's last vector.
    const int beyond = (rows - 1) * LANES + VECTOR;
    const uint4 end_of_last = load(rows, beyond, place == width - 1 && beyond - shift < left);
    UNROLL for (int s = 0; s < rows; s++) {
        const int its = s * LANES;
        // Only the chunk's last lane asks the first, for the lane row after this.
        uint4 next = vector_of_lane(either(place == 0, own[s], own[s + 1 < rows ? s + 1 : s]), after);
        if (s + 1 == rows && place == width - 1) next = end_of_last;
        to_reals(shifted(own[s], next, by), value[s]);
        if (its + VECTOR > left)
            UNROLL for (int v = 0; v < VECTOR; v++)
                value[s][v] = its + v < left ? value[s][v] : other;
        const bool outside = (s == 0 && !begins) || its + (by ? 2 : 1) * VECTOR > end;
        if (outside && its < left)
            UNROLL for (int v = 0; v < VECTOR; v++)
                value[s][v] = its + v < left ? to_real(row[column + its + v]) : other;
    }
}

// The same for stores: what is left over of a vector goes to the next lane, and a lane stores the
// aligned vector that its own begins in. writes: whether the lanes of this chunk store.
template <int width, int rows>
DEVICE void store_shifted(element *row, int64 column, int64 n, bool writes,
                          const real (&value)[rows][VECTOR]) {
    const unsigned by = (unsigned)(uint64)row % 16;
    const int shift = by / sizeof(element), lane = threadIdx.x % WARP, place = lane % width;
    const int before = place > 0 ? lane - 1 : lane + width - 1;
    element *to = row + column - shift;
    const int there = n - column < rows * LANES ? (int)(n - column) : rows * LANES;
    const int left = writes ? there : -VECTOR;  // from `column` on, and none before it
    uint4 own = make_uint4(0, 0, 0, 0);
    UNROLL for (int s = 0; s < rows; s++) {
        const uint4 last = own;
        own = to_elements(value[s]);
        const uint4 given = place == width - 1 ? last : own;
        const uint4 taken = vector_of_lane(given, before);
        const bool first = s == 0 && place == 0;
        const int its = s * LANES, absent = first ? shift : 0;
        Quad quad;
        quad.all = shifted(by ? taken : own, own, (16 - by) % 16);
        if (absent == 0 && its - shift + VECTOR <= left) {
            *reinterpret_cast<uint4 *>(to + its) = quad.all;
        } else {
            UNROLL for (int v = 0; v < VECTOR; v++)
                if (v >= absent && its - shift + v < left) to[its + v] = quad.each[v];
        }
    }
    Quad quad;
    quad.all = own;
    UNROLL for (int v = 0; v < VECTOR; v++) {
        const int its = (rows - 1) * LANES + v;
        if (place == width - 1 && v >= VECTOR - shift && its < left) row[column + its] = quad.each[v];
    }
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
        } else {
            // No branch around the conversion, which the next load would wait for.
            uint4 vector = filled(other);
            if (way == FULL || s * LANES < left) vector = whole_at(from + s * LANES);
            to_reals(vector, value[s]);
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
// for a vjp the forward result, absent ones 0. width: lanes of a chunk.
template <Way way, int width, int rows>
DEVICE void load_x(const Task &task, const Row &row, int64 column, real (&x)[rows][VECTOR]) {
    const int64 n = task.n;
    const real other = IS_PRODUCT ? (real)0 : -INFINITE;
    if (way == SHIFTED)
        load_shifted<width>(row.x, span_of(task, task.x, task.x_outer, row.x), column, n, other, x);
    else
        load_rows<way>(row.x, row.x_step, column, n, row.x_vectors, other, x);
    if (way == ANY && row.mask)
        UNROLL for (int s = 0; s < rows; s++)
            UNROLL for (int v = 0; v < VECTOR; v++) {
                const int64 its = column + s * LANES + v;
                if (its < n && is_masked(row, its)) x[s][v] = -INFINITE;
            }
}

template <Way way, int width, int rows>
DEVICE void load_y(const Task &task, const Row &row, int64 column, real (&y)[rows][VECTOR]) {
    const element *own = (const element *)row.y;
    if (way == SHIFTED)
        load_shifted<width>(own, span_of(task, (const element *)task.y, task.y_outer, own), column,
                            task.n, 0, y);
    else
        load_rows<way>(own, row.y_step, column, task.n, row.y_vectors, 0, y);
}

// q of a class without the spike: w_c ((1 - smoothing) y_c + smoothing / n).
DEVICE real q_of(const Task &task, const Row &row, int64 column) {
    double value = __ddiv_rn(task.label_smoothing, (double)task.n);
    if (column >= task.n) return 0;
    if (row.y) value += (1 - task.label_smoothing) * ((const real *)row.y)[column * row.y_step];
    if (task.class_weight) value *= task.class_weight[column];
    return (real)value;
}
