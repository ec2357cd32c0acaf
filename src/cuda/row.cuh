// Everything that reduces a row: twin of src/cpu/row.pxi, where the mathematics stands.
//
// Every rounding is that of docs/numerics.md, so the bits are the CPU's. What the contract fixes
// also lays out the work. A group of GROUP lanes owns a chunk: a thread holds VECTOR neighbouring
// columns (16 bytes) of each of its 8 lane rows, adds them up in ascending order, and the tree
// over lanes is a few shuffles. A warp owns a block of 4 chunks, finds its maximum and its own
// exponent K, and has a Partial; a row's Partials are merged in the contract's tree. So a row
// needs one meeting of its warps, not one for the maximum and another for the sum.
//
// Passes: one read and one write, the exponentials kept in registers, for rows of up to
// 128 blocks by a cluster of thread blocks, 16 without. Longer ones (stream_*): two reads and one
// write. logsumexp and the loss: one read.

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

// ------------------------------------------------------------------- lanes, chunks, blocks

struct Sums {
    real rest, low, dot, q;
    unsigned ties;
};

// Add the lanes of a chunk, VECTOR in each of width neighbouring threads, as a halving tree.
// As long as a thread has several, it hands half of them over and keeps the other half, and
// what stood side by side in a thread is added across threads at the end.
template <int width> DEVICE real add_lanes(real (&lane)[VECTOR]) {
    constexpr int SHARED = width < VECTOR ? width : VECTOR, KEPT = VECTOR / SHARED;
    UNROLL for (int part = 2; part <= SHARED; part *= 2) {
        const int held = VECTOR / part, step = width / part;
        const bool upper = threadIdx.x & step;
        UNROLL for (int v = 0; v < held; v++) {
            real kept = upper ? lane[v + held] : lane[v];
            real given = upper ? lane[v] : lane[v + held];
            lane[v] = kept + across(given, step);
        }
    }
    UNROLL for (int step = width / SHARED / 2; step > 0; step /= 2)
        lane[0] = lane[0] + across(lane[0], step);
    UNROLL for (int part = 2; part <= SHARED; part *= 2)
        UNROLL for (int v = 0; v < KEPT; v++)
            lane[v] = lane[v] + across(lane[v], width / part);
    UNROLL for (int apart = KEPT / 2; apart > 0; apart /= 2)
        UNROLL for (int v = 0; v < apart; v++) lane[v] = lane[v] + lane[v + apart];
    return lane[0];
}

// Take the lane rows of a chunk into the maxima of a thread, which do not wait for each other.
template <int rows> DEVICE void add_maxima(const real (&x)[rows][VECTOR], real (&most)[VECTOR]) {
    UNROLL for (int s = 0; s < rows; s++)
        UNROLL for (int v = 0; v < VECTOR; v++) most[v] = r_max(x[s][v], most[v]);
}

// The largest of the maxima of `width` neighbouring threads, in each of them; -inf if all are NaN.
template <int width> DEVICE real lanes_max(const real (&most)[VECTOR]) {
    real m = -INFINITE;
    UNROLL for (int v = 0; v < VECTOR; v++) m = r_max(most[v], m);
    return lanes_max<width>(m);
}

template <int width> DEVICE unsigned add_ties(unsigned ties) {
    UNROLL for (int step = width / 2; step > 0; step /= 2) ties += across(ties, step);
    return ties;
}

// The sums of one chunk of exponentials; where they are stored, they take the place of x.
// column: of the first of this thread.
template <int width, int rows>
DEVICE Sums sum_chunk(bool general, real (&x)[rows][VECTOR], const Task &task, const Row &row,
                      int64 column, real maximum, const View &view, const Scale &scale,
                      const Eighth &mine) {
    Sums sums;
    real rest[VECTOR], low[VECTOR], dot[VECTOR], q[VECTOR];
    // Counted in the last bits of a float: that is one predicated addition, and for an integer
    // the compiler makes two of it.
    float ties = 0x1p23f;
    UNROLL for (int v = 0; v < VECTOR; v++) {
        rest[v] = SPLITTER;
        low[v] = dot[v] = q[v] = 0;
    }
    UNROLL for (int s = 0; s < rows; s++)
        UNROLL for (int v = 0; v < VECTOR; v++) {
            const real xv = x[s][v];
            const bool other = xv != maximum;
            real e = general ? exp_scaled<true>(xv, view, scale, &mine)
                             : exp_scaled<false>(xv, view, scale, &mine);
            const real before = rest[v];
            if (other) rest[v] = before + e;
            if (SPLITS && other) low[v] = low[v] + (e - (rest[v] - before));
            if (!other) ties = ties + 1;
            if (DENSE) {
                real weight = q_of(task, row, column + s * LANES + v);
                dot[v] = dot[v] + (weight != 0 ? weight * (maximum - xv) : 0);
                q[v] = q[v] + weight;
            }
            if (STORES_EXP) x[s][v] = e;
        }
    UNROLL for (int v = 0; v < VECTOR; v++) rest[v] = rest[v] - (real)SPLITTER;
    sums.ties = __float_as_uint(ties) - __float_as_uint(0x1p23f);
    sums.rest = add_lanes<width>(rest);
    sums.low = SPLITS ? add_lanes<width>(low) : 0;
    sums.dot = DENSE ? add_lanes<width>(dot) : 0;
    sums.q = DENSE ? add_lanes<width>(q) : 0;
    return sums;
}

// The sum of one chunk of products x * y, or of y.
template <Way way, int width, int rows>
DEVICE real sum_products(const Row &row, int64 column, int64 n) {
    real dot[VECTOR], x[1][VECTOR], y[1][VECTOR];
    UNROLL for (int v = 0; v < VECTOR; v++) dot[v] = 0;
    UNROLL for (int s = 0; s < rows; s++) {
        load_y<way>(row, column + s * LANES, n, y);
        if (!IS_SUM) load_x<way>(row, column + s * LANES, n, x);
        UNROLL for (int v = 0; v < VECTOR; v++)
            dot[v] = IS_SUM ? y[0][v] + dot[v] : r_fma(x[0][v], y[0][v], dot[v]);
    }
    return add_lanes<width>(dot);
}

// rest and low of a + b; the error of adding the rests goes to low (Knuth's TwoSum).
DEVICE void add_exactly(double a, double a_low, double b, double b_low, double *rest,
                        double *low) {
    double sum = a + b, b_part = sum - a;
    *low = (a_low + b_low) + ((a - (sum - b_part)) + (b - b_part));
    *rest = sum;
}

// The sums of two chunks, or pairs of them.
DEVICE void add_chunks(const Partial &a, const Partial &b, Partial *sum) {
    const double dot = a.dot + b.dot, q = a.q + b.q;
    add_exactly(a.rest, a.low, b.rest, b.low, &sum->rest, &sum->low);
    sum->dot = dot;
    sum->q = q;
}

// Join two neighbours; where their maxima differ the lower one's ties join its rest.
DEVICE Partial merge(const Partial &left, const Partial &right) {
    if (IS_PRODUCT) {
        Partial sum = left;
        sum.dot = left.dot + right.dot;
        return sum;
    }
    const bool in_order = left.max >= right.max;
    const Partial high = in_order ? left : right, low = in_order ? right : left;
    Partial result = high;
    double scale =
        low.max > -INFINITE_DOUBLE ? power_of_two(low.exponent - high.exponent) : 1.0;
    double rest = low.rest * scale, rest_low = low.low * scale, low_dot = low.dot;
    if (low.max == high.max) {
        result.count += low.count;
    } else {
        add_exactly(rest, rest_low, low.count * low.at_max * scale, 0, &rest, &rest_low);
        if (DENSE && low.q != 0) low_dot += low.q * (high.max - low.max);
    }
    add_exactly(high.rest, high.low, rest, rest_low, &result.rest, &result.low);
    if (DENSE) {
        result.dot = high.dot + low_dot;
        result.q = high.q + low.q;
    }
    return result;
}

DEVICE Partial nothing() {
    Partial partial;
    partial.max = -INFINITE_DOUBLE;
    partial.at_max = partial.count = partial.rest = partial.low = partial.exponent = 0;
    partial.dot = partial.q = 0;
    return partial;
}

// The tile of a block: of each chunk a thread takes, its lane rows and columns.
typedef real Tile[CHUNKS][STEPS][VECTOR];

// The first column of this thread in a block, and how many come between those of its chunks.
DEVICE int64 first_column() {
    const int lane = threadIdx.x % WARP;
    return (int64)(lane / GROUP) * CHUNK + lane % GROUP * VECTOR;
}
enum { APART = GROUPS * CHUNK };

DEVICE Way way_of_block(const Task &task, int64 begin) {
    return way_of(task, begin + BLOCK <= task.n);
}

DEVICE void load_tile(const Row &row, int64 begin, int64 n, Way way, Tile &x) {
    on_the(way, [&](auto known) {
        UNROLL for (int c = 0; c < CHUNKS; c++)
            load_x<known.way>(row, begin + first_column() + c * APART, n, x[c]);
    });
}

DEVICE double across_double(double value, int mask) { return across(value, mask); }

// The Partial of the block that begins at a column, in every lane of a warp.
DEVICE Partial sum_block(bool general, const Task &task, const Row &row, int64 begin, Way way,
                         const View &view, const Eighth &mine, Tile &x) {
    Partial block = nothing();
    double rest[CHUNKS], low[CHUNKS], dot[CHUNKS], q[CHUNKS];
    if (IS_PRODUCT) {
        on_the(way, [&](auto known) {
            UNROLL for (int c = 0; c < CHUNKS; c++)
                dot[c] = sum_products<known.way, GROUP, STEPS>(
                    row, begin + first_column() + c * APART, task.n);
        });
        UNROLL for (int step = GROUP; step < WARP; step *= 2)
            UNROLL for (int c = 0; c < CHUNKS; c++) dot[c] += across_double(dot[c], step);
        block.dot = CHUNKS == 2 ? dot[0] + dot[CHUNKS - 1] : dot[0];
        return block;
    }
    real most[VECTOR];
    UNROLL for (int v = 0; v < VECTOR; v++) most[v] = x[0][0][v];
    UNROLL for (int c = 0; c < CHUNKS; c++) add_maxima(x[c], most);
    const real m = lanes_max<WARP>(most);
    const real exponent = general ? exponent_of<true>(view, m) : exponent_of<false>(view, m);
    const Scale scale =
        general ? scale_of<true>(view, exponent) : scale_of<false>(view, exponent);
    int ties = 0;
    UNROLL for (int c = 0; c < CHUNKS; c++) {
        rest[c] = low[c] = dot[c] = q[c] = 0;
        if (c > 0 && begin + c * APART >= task.n) continue;
        Sums sums = sum_chunk<GROUP, STEPS>(general, x[c], task, row,
                                            begin + first_column() + c * APART, m, view, scale,
                                            mine);
        rest[c] = sums.rest;
        low[c] = sums.low;
        dot[c] = sums.dot;
        q[c] = sums.q;
        ties += sums.ties;
    }
    UNROLL for (int step = GROUP; step < WARP; step *= 2)
        UNROLL for (int c = 0; c < CHUNKS; c++) {
            double other = across_double(rest[c], step);
            double other_low =
                SPLITS || step > GROUP ? across_double(low[c], step) : 0;
            add_exactly(rest[c], low[c], other, other_low, &rest[c], &low[c]);
            if (DENSE) {
                dot[c] += across_double(dot[c], step);
                q[c] += across_double(q[c], step);
            }
        }
    if (CHUNKS == 2) {
        add_exactly(rest[0], low[0], rest[CHUNKS - 1], low[CHUNKS - 1], &rest[0], &low[0]);
        dot[0] += dot[CHUNKS - 1];
        q[0] += q[CHUNKS - 1];
    }
    block.max = m;
    block.exponent = exponent;
    block.rest = rest[0];
    block.low = low[0];
    block.dot = dot[0];
    block.q = q[0];
    if (m == -INFINITE) {
        if (DENSE && block.q > 0) block.dot = INFINITE_DOUBLE;
    } else {
        block.count = add_ties<WARP>(ties);
        block.at_max =
            general ? exp_scaled<true>(m, view, scale) : exp_scaled<false>(m, view, scale);
    }
    return block;
}

// Lane i of a warp holds stretch i of `count`: merged in the contract's tree into lane 0.
DEVICE Partial merge_lanes(Partial mine, int count) {
    const int lane = threadIdx.x % WARP;
    for (int step = 1; step < count; step *= 2) {
        Partial other = mine;
        if (HAS_DOT) other.dot = from_below(mine.dot, step);
        if (!IS_PRODUCT) {
            other.max = from_below(mine.max, step);
            other.at_max = from_below(mine.at_max, step);
            other.count = from_below(mine.count, step);
            other.rest = from_below(mine.rest, step);
            other.low = from_below(mine.low, step);
            other.exponent = from_below(mine.exponent, step);
            if (DENSE) other.q = from_below(mine.q, step);
        }
        if (!(lane & (2 * step - 1)) && lane + step < count) mine = merge(mine, other);
    }
    return mine;
}

DEVICE double over_temperature(double value, const View &view) {
    return GENERAL ? __ddiv_rn(value, view.temperature) : value;
}

// ------------------------------------------------------------------ what a row's sums give

// What the last sweep needs to know of a row.
struct Last {
    double at_target;  // what the gradient at the target is, or is less by
    double exponent;
    real high, low;    // the factor of exponentials; for log_softmax high is log S
    real m;            // the maximum; for a gradient less its factor; for a vjp the sum
    bool special;      // the sums are of no use: anchored, or a limit
    bool target_known; // at_target is the gradient itself
};

// S 2^(HEADROOM - K), and R, the sum without one maximum.
DEVICE double whole_sum(const Partial &whole) {
    return whole.count * whole.at_max + (whole.rest + whole.low);
}
DEVICE double all_but_one(const Partial &whole) {
    return (whole.rest + whole.low) + (whole.count - 1) * whole.at_max;
}

DEVICE bool is_ignored(const Task &task, int64 row) {
    return IS_LOSS && task.target && task.target[row] == task.ignore_index;
}

// Where labels were not checked beforehand, a wrong one must not be used as an index.
DEVICE bool is_wrong(const Task &task, int64 row) {
    return IS_LOSS && task.target && (uint64)task.target[row] >= (uint64)task.n;
}

DEVICE bool is_skipped(const Task &task, int64 row) {
    return is_ignored(task, row) || is_wrong(task, row);
}

DEVICE double spike_weight(const Task &task, int64 row) {
    if (!task.target) return 0;
    double weight = 1 - task.label_smoothing;
    return task.class_weight ? weight * task.class_weight[task.target[row]] : weight;
}

DEVICE double scale_of_gradient(const Task &task) {
    return *task.divisor != 0 ? __ddiv_rn(1.0, *task.divisor) : 0.0;
}

DEVICE double gradient_of(const Task &task, const View &view) {
    return over_temperature(scale_of_gradient(task), view);
}

DEVICE void set_row_out(const Task &task, int64 row, double value) {
    task.row_out[row] = (real)value;
}

// Everything that follows from the sums of a row; the row's value is written by `writer`.
DEVICE Last finish(bool general, const Task &task, int64 row, const View &view,
                   const Partial &whole, real target_logit, bool writer) {
    Last last;
    last.special = false;
    last.exponent = whole.exponent;
    last.m = IS_PRODUCT ? (real)whole.dot : (real)whole.max;
    if (IS_PRODUCT) {
        if (OPERATION == DOT && writer) set_row_out(task, row, whole.dot);
        if (OPERATION == SUM && writer) ((double *)task.row_out)[row] = whole.dot;
        return last;
    }
    const real m = (real)whole.max;
    if (view.limit || !(general ? in_reach<true>(view, m) : in_reach<false>(view, m))) {
        last.special = true;
        return last;
    }
    double log_s = 0, spike = 0, gradient = 0;
    if (OPERATION != SOFTMAX) log_s = log1p_of_ratio(all_but_one(whole), whole.at_max);
    if (OPERATION == LOG_SOFTMAX) last.high = (real)log_s;
    if (OPERATION == LOGSUMEXP && writer) set_row_out(task, row, whole.max + log_s);
    if (IS_LOSS) {
        spike = spike_weight(task, row);
        double loss = 0 * log_s;  // NaN is the loss of a row of NaN whatever its weights
        if (spike != 0) {
            double z = whole.max - target_logit;
            if (z < INFINITE_DOUBLE)
                z = over_temperature(z, view);
            else if (target_logit != -INFINITE)
                z = over_temperature(whole.max, view) - over_temperature(target_logit, view);
            loss = spike * (z + log_s);
        }
        if (DENSE && whole.q != 0)
            loss += whole.q * log_s + over_temperature(whole.dot, view);
        if (writer) set_row_out(task, row, loss);
    }
    if (STORES_EXP) {
        double numerator = 1;
        const double sum = whole_sum(whole), inverse = normal_quotient(1, sum);
        if (OPERATION == CROSS_ENTROPY_WITH_GRAD) {
            gradient = gradient_of(task, view);
            numerator = gradient * ((DENSE ? whole.q : 0) + spike);
            last.m = (real)-gradient;
            last.target_known = !DENSE && target_logit == (real)whole.max;
            last.at_target = last.target_known
                                 ? -gradient * spike * normal_quotient(all_but_one(whole), sum)
                                 : gradient * spike;
        }
        last.high = (real)(numerator * inverse);
        last.low = (real)(__fma_rn(-(double)last.high, sum, numerator) * inverse);
    }
    return last;
}

// `last` for a block whose exponentials have another scale than the row's.
DEVICE Last rescaled(Last last, double exponent, real *scale) {
    double step = exponent - last.exponent;
    // The exact scale of a block far below the maximum may be subnormal itself.
    double split = step < DEEP ? DEEP_SPLIT : 0;
    *scale = (real)power_of_two(step + split);
    last.high = (real)(last.high * power_of_two(-split));
    last.low = (real)(last.low * power_of_two(-split));
    return last;
}

// One element of the last sweep; x is its exponential where the operation stored that.
DEVICE real last_value(bool general, const Task &task, const Row &row, const View &view,
                       const Last &last, real scale, int64 column, real x, real y) {
    if (STORES_EXP) {
        real e = x * scale;
        real value = r_fma(e, last.high, e * last.low);
        if (DENSE) value = r_fma(last.m, q_of(task, row, column), value);
        return value;
    }
    if (OPERATION == LOG_SOFTMAX) {
        real d = x - last.m;
        if (!general) return d - last.high;
        if (x == -INFINITE) return x - last.high;
        // A difference that overflows is still 0 at temperature inf.
        if (view.beta_high == 0) d = 0;
        real z = d * view.beta_high;
        // Where d or z overflows: with half of d, which is exact there, and without the low part,
        // which would make NaN of it.
        if (z == -INFINITE)
            return (x * (real)0.5 - last.m * (real)0.5) * (view.beta_high + view.beta_high)
                   - last.high;
        return r_fma(d, view.beta_high, d * view.beta_low - last.high);
    }
    real value = OPERATION == SOFTMAX_VJP ? x * (y - last.m) : y - exp_of_negative(x) * last.m;
    return value * view.beta_high;
}

// What goes to `out`: the value of an element, unless that is masked.
DEVICE real unless_masked(const Row &row, int64 column, real value) {
    if (IS_PRODUCT || IS_LOSS || !is_masked(row, column)) return value;
    return OPERATION == SOFTMAX ? 0 : -INFINITE;
}

// The last sweep over lane rows, as load_x gave them.
template <Way way, int rows>
DEVICE void finish_rows(bool general, const Task &task, const Row &row, const View &view,
                        const Last &last, real scale, int64 column, real (&x)[rows][VECTOR]) {
    UNROLL for (int s = 0; s < rows; s++) {
        const int64 first = column + s * LANES;
        real own[1][VECTOR], y[1][VECTOR];
        if (IS_PRODUCT) {
            load_x<way>(row, first, task.n, own);
            load_y<way>(row, first, task.n, y);
        }
        UNROLL for (int v = 0; v < VECTOR; v++) {
            const real value = IS_PRODUCT ? own[0][v] : x[s][v];
            x[s][v] = last_value(general, task, row, view, last, scale, first + v, value,
                                 IS_PRODUCT ? y[0][v] : 0);
            if (way == ANY && first + v < task.n)
                x[s][v] = unless_masked(row, first + v, x[s][v]);
        }
    }
    store_rows<way>(row.out, row.out_step, column, task.n, row.out_vectors, x);
}

// The gradient at the label, over what every class got there: by one thread, when the others of
// its row, or at least of the label's block, have written.
DEVICE void write_at_target(bool general, const Task &task, const Row &row, const View &view,
                            const Last &last, real scale, const Scale &exponentials,
                            real target_logit) {
    const int64 column = task.target[row.number];
    const real e = general ? exp_scaled<true>(target_logit, view, exponentials)
                           : exp_scaled<false>(target_logit, view, exponentials);
    const real value = last_value(general, task, row, view, last, scale, column, e, 0);
    row.out[column * row.out_step] =
        to_element((real)(last.target_known ? last.at_target : value - last.at_target));
}

// The same by a warp that has written the block that begins at a column, if the label is there.
DEVICE void write_at_target_in(int64 begin, bool general, const Task &task, const Row &row,
                               const View &view, const Last &last, real scale,
                               const Scale &exponentials, real target_logit) {
    if (OPERATION != CROSS_ENTROPY_WITH_GRAD || !task.target) return;
    const int64 column = task.target[row.number];
    if (column < begin || column >= begin + BLOCK) return;
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        write_at_target(general, task, row, view, last, scale, exponentials, target_logit);
}

// The last sweep over a block, by a warp.
DEVICE void write_block(bool general, const Task &task, const Row &row, int64 begin, Way way,
                        const View &view, Last last, real exponent, real target_logit, Tile &x) {
    real scale = 1;
    if (STORES_EXP) last = rescaled(last, exponent, &scale);
    on_the(way, [&](auto known) {
        UNROLL for (int c = 0; c < CHUNKS; c++)
            finish_rows<known.way>(general, task, row, view, last, scale,
                                   begin + first_column() + c * APART, x[c]);
    });
    write_at_target_in(begin, general, task, row, view, last, scale,
                       general ? scale_of<true>(view, exponent) : scale_of<false>(view, exponent),
                       target_logit);
}

// --------------------------------------------------------------------------- special rows

// A whole row of one value, by a warp.
DEVICE void fill_row(const Task &task, const Row &row, real value) {
    if (!HAS_OUT) return;
    for (int64 i = threadIdx.x % WARP; i < task.n; i += WARP)
        row.out[i * row.out_step] = to_element(unless_masked(row, i, value));
}

// q of class i, the spike included.
DEVICE double limit_weight(const Task &task, const Row &row, int64 i) {
    double weight = DENSE ? q_of(task, row, i) : 0;
    if (task.target && task.target[row.number] == i) weight += spike_weight(task, row.number);
    return weight;
}

// Rows that no arithmetic is needed for: temperature 0, or a maximum of +-inf. By a warp.
DEVICE void limit_row(const Task &task, const Row &row, const View &view, real m) {
    const int lane = threadIdx.x % WARP;
    const bool first = lane == 0;
    uint64 ties = 0;
    bool nan = false;
    for (int64 i = lane; i < task.n; i += WARP) {
        real x = logit_at(row, i);
        nan = nan || is_nan(x);
        ties += x == m;
    }
    for (int step = WARP / 2; step > 0; step /= 2) ties += across(ties, step);
    nan = __any_sync(ALL, nan);
    if (nan || r_abs(m) > REAL_MAX) {
        if (first && (IS_LOSS || OPERATION == LOGSUMEXP))
            set_row_out(task, row.number,
                        OPERATION == LOGSUMEXP && !nan ? (double)m : (double)NOT_A_NUMBER);
        fill_row(task, row, NOT_A_NUMBER);
        return;
    }
    const double log_s = log1p_of_ratio((double)ties - 1, 1);
    const real share = (real)__ddiv_rn(1.0, (double)ties);
    if (OPERATION == SOFTMAX || OPERATION == LOG_SOFTMAX) {
        for (int64 i = lane; i < task.n; i += WARP) {
            const bool top = logit_at(row, i) == m;
            real value = OPERATION == SOFTMAX ? (top ? share : 0) : (top ? (real)-log_s : -INFINITE);
            row.out[i * row.out_step] = to_element(unless_masked(row, i, value));
        }
    } else if (IS_LOSS) {
        double loss = 0, total = 0;
        for (int64 i = 0; i < task.n; i++) {
            const double weight = limit_weight(task, row, i);
            total += weight;
            if (weight != 0) loss += logit_at(row, i) == m ? weight * log_s : INFINITE_DOUBLE;
        }
        if (first) set_row_out(task, row.number, loss);
        if (OPERATION != CROSS_ENTROPY_WITH_GRAD) return;
        // Temperature 0 is refused for gradients; one whose reciprocal overflows is not.
        __syncwarp();  // in place the row has to be read before
        const double share_of_total = __ddiv_rn(total, (double)ties);
        for (int64 i = lane; i < task.n; i += WARP) {
            const double step =
                (logit_at(row, i) == m ? share_of_total : 0) - limit_weight(task, row, i);
            row.out[i * row.out_step] =
                to_element((real)over_temperature(scale_of_gradient(task) * step, view));
        }
    }
}

// Sums of a block of an anchored row, by a warp that has nothing in registers yet: a lane of the
// warp takes the lanes of the contract that are WARP apart.
DEVICE Partial sum_special_block(const Task &task, const Row &row, int64 begin, const View &view) {
    const int lane = threadIdx.x % WARP;
    const int64 end = begin + BLOCK < task.n ? begin + BLOCK : task.n;
    Partial block = nothing(), chunk[2];
    real m = -INFINITE;
    for (int64 i = begin + lane; i < end; i += WARP) m = r_max(logit_at(row, i), m);
    m = lanes_max<WARP>(m);
    const real exponent = exponent_of<true>(view, m);
    const Scale scale = scale_of<true>(view, exponent);
    int ties = 0;
    NOT_UNROLLED for (int c = 0; c < 4; c++) {
        Partial sum = nothing();
        real rest = 0, low = 0, dot = 0, q = 0;
        NOT_UNROLLED for (int first = lane; first < LANES; first += WARP) {
            real lane_rest = SPLITTER, lane_low = 0, lane_dot = 0, lane_q = 0;
            NOT_UNROLLED for (int s = 0; s < STEPS; s++) {
                const int64 column = begin + c * CHUNK + s * LANES + first;
                if (column >= end) break;
                const real x = logit_at(row, column), before = lane_rest;
                const real e = exp_scaled<true>(x, view, scale);
                const bool other = x != m;
                ties += !other;
                lane_rest = before + (other ? e : 0);
                if (SPLITS) lane_low = lane_low + (other ? e - (lane_rest - before) : 0);
                if (DENSE) {
                    const real weight = q_of(task, row, column);
                    lane_dot = lane_dot + (weight != 0 ? weight * (m - x) : 0);
                    lane_q = lane_q + weight;
                }
            }
            rest = rest + (lane_rest - (real)SPLITTER);
            low = low + lane_low;
            dot = dot + lane_dot;
            q = q + lane_q;
        }
        for (int step = WARP / 2; step > 0; step /= 2) {
            rest = rest + across(rest, step);
            if (SPLITS) low = low + across(low, step);
            if (DENSE) dot = dot + across(dot, step);
            if (DENSE) q = q + across(q, step);
        }
        sum.rest = rest;
        sum.low = low;
        sum.dot = dot;
        sum.q = q;
        if (c % 2 == 0)
            chunk[1] = sum;
        else
            add_chunks(chunk[1], sum, &sum);
        if (c == 1) chunk[0] = sum;
        if (c == 3) add_chunks(chunk[0], sum, &block);
    }
    block.max = m;
    block.exponent = exponent;
    if (m == -INFINITE) {
        if (DENSE && block.q > 0) block.dot = INFINITE_DOUBLE;
    } else {
        block.count = add_ties<WARP>(ties);
        block.at_max = exp_scaled<true>(m, view, scale);
    }
    return block;
}

DEVICE Partial partial_of_lane(const Partial &mine, int lane) {
    Partial its = mine;
    its.max = from_lane(mine.max, lane);
    its.at_max = from_lane(mine.at_max, lane);
    its.count = from_lane(mine.count, lane);
    its.rest = from_lane(mine.rest, lane);
    its.low = from_lane(mine.low, lane);
    its.exponent = from_lane(mine.exponent, lane);
    if (DENSE) its.dot = from_lane(mine.dot, lane);
    if (DENSE) its.q = from_lane(mine.q, lane);
    return its;
}

// A row that is anchored, or a limit, by one warp, sweep by sweep. `m` is its maximum.
DEVICE void special_row(const Task &task, const Row &row, View view, real m) {
    const int lane = threadIdx.x % WARP;
    if (IS_PRODUCT) return;
    if (view.limit || !(r_abs(m) <= REAL_MAX)) {
        limit_row(task, row, view, m);
        return;
    }
    view = view_of(view.temperature, m);
    const real target_logit = logit_of_target(task, row);
    // A binary counter: lane l holds the stretch of 2^l blocks that waits for its neighbour.
    const int64 blocks = (task.n + BLOCK - 1) / BLOCK;
    Partial waiting = nothing(), whole = nothing();
    NOT_UNROLLED for (int64 index = 0; index < blocks; index++) {
        Partial block = sum_special_block(task, row, index * BLOCK, view);
        int level = 0;
        for (; index >> level & 1; level++) block = merge(partial_of_lane(waiting, level), block);
        if (lane == level) waiting = block;
    }
    bool first = true;
    NOT_UNROLLED for (int level = 0; blocks >> level; level++) {
        const Partial left = partial_of_lane(waiting, level);
        if (!(blocks >> level & 1)) continue;
        whole = first ? left : merge(left, whole);
        first = false;
    }
    const Last last = finish(true, task, row.number, view, whole, target_logit, lane == 0);
    if (!HAS_OUT) return;
    __syncwarp();
    NOT_UNROLLED for (int64 begin = 0; begin < task.n; begin += BLOCK) {
        const int64 end = begin + BLOCK < task.n ? begin + BLOCK : task.n;
        real most = -INFINITE, scale_of_block = 1;
        Last its = last;
        Scale scale = scale_of<true>(view, 0);
        if (STORES_EXP) {
            for (int64 i = begin + lane; i < end; i += WARP) most = r_max(logit_at(row, i), most);
            const real exponent = exponent_of<true>(view, lanes_max<WARP>(most));
            scale = scale_of<true>(view, exponent);
            its = rescaled(last, exponent, &scale_of_block);
        }
        for (int64 i = begin + lane; i < end; i += WARP) {
            real x = logit_at(row, i);
            if (STORES_EXP) x = exp_scaled<true>(x, view, scale);
            x = last_value(true, task, row, view, its, scale_of_block, i, x, 0);
            row.out[i * row.out_step] = to_element(unless_masked(row, i, x));
        }
        write_at_target_in(begin, true, task, row, view, its, scale_of_block, scale, target_logit);
    }
}

// Rows whose label is ignored, or was found wrong too late to refuse it. By a warp.
DEVICE bool skip_row(const Task &task, const Row &row) {
    const bool ignored = is_ignored(task, row.number), wrong = is_wrong(task, row.number);
    if (!ignored && !wrong) return false;
    if (threadIdx.x % WARP == 0) set_row_out(task, row.number, ignored ? 0 : NOT_A_NUMBER);
    fill_row(task, row, ignored ? 0 : NOT_A_NUMBER);
    return true;
}

DEVICE View row_view(const Task &task, int64 row) {
    if (GENERAL) return view_of(task.temperature[row * task.temperature_step], 0);
    View view;
    view.temperature = view.beta_high = 1;
    view.shift = view.beta_low = 0;
    view.limit = false;
    return view;
}

// A row that the kernels set aside, with its maximum, if they came so far. By a warp. Apart, so
// that what is rare takes no registers from what is not.
static __device__ __noinline__ void set_aside_row(const Task &task, int64 number, real m) {
    const Row row = row_of(task, number);
    if (!skip_row(task, row)) special_row(task, row, row_view(task, number), m);
}

// The rows that lanes of a warp set aside, one after the other; own: the row of this lane.
DEVICE void set_aside_rows(const Task &task, int64 own, unsigned lanes, real m) {
    for (; lanes; lanes &= lanes - 1) {
        const int which = __ffs((int)lanes) - 1;
        set_aside_row(task, from_lane(own, which), from_lane(m, which));
    }
}

// ------------------------------------------------------------------------------ short rows

#if defined(SHORT_ROWS)
// Rows of up to a chunk: WIDTH lanes a row, a vector each of LANE_ROWS lane rows. A warp works
// on WARP / WIDTH rows side by side, TOGETHER times. What is done once per row, in double, is
// done for all of them at once: lane u of a group for row u of the group.
enum {
    VALUES = 128 / sizeof(real),
    FITTING = VALUES / (VECTOR * LANE_ROWS) > 0 ? VALUES / (VECTOR * LANE_ROWS) : 1,
    TOGETHER = WIDTH < FITTING ? WIDTH : FITTING,
    SIDE_BY_SIDE = WARP / WIDTH,
    // The ties of several rows are counted in one number.
    COUNTER_BITS = LANE_ROWS * WIDTH * VECTOR < 256 ? 8 : 16,
    COUNTER_MASK = (1 << COUNTER_BITS) - 1,
    OF_A_COUNTER = 32 / COUNTER_BITS,
    COUNTERS = (TOGETHER + OF_A_COUNTER - 1) / OF_A_COUNTER,
    // Thread blocks of a multiprocessor: 128 registers to a thread, more where they are wanted.
    RESIDENT = DENSE ? 2 : GENERAL || PYSOFTMAX_DOUBLE ? 3 : 4,
};

// What the lanes of a group add up of a row, and in the end keep of their own.
struct Summed {
    real max;
    Sums sums;
};

extern "C" __global__ void __launch_bounds__(128, RESIDENT) short_rows(const ARGUMENT Task task) {
    const int lane = threadIdx.x % WARP, place = lane % WIDTH, group = lane - place;
    const int64 rows = task.outer, warp = ((int64)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    const int64 first = warp * SIDE_BY_SIDE * TOGETHER + lane / WIDTH;
    if (warp * SIDE_BY_SIDE * TOGETHER >= rows) return;
    const Eighth eighth = eighth_of(lane);
    const Way way = way_of(task, task.n == LANE_ROWS * WIDTH * VECTOR
                                     && (warp + 1) * SIDE_BY_SIDE * TOGETHER <= rows);
    // A group without a row of its own goes through the steps of another, and writes nothing.
    const int left = rows - first < WARP * TOGETHER ? (int)(rows - first) : WARP * TOGETHER;
    const Row first_row = row_of(task, left > 0 ? first : rows - 1);
    auto row_in_turn = [&](Way way, int u) {
        return row_after(task, first_row, way == FULL || u * SIDE_BY_SIDE < left ? u * SIDE_BY_SIDE : 0);
    };
    real x[TOGETHER][LANE_ROWS][VECTOR];
    if (!IS_PRODUCT)
        on_the(way, [&](auto known) {
            UNROLL for (int u = 0; u < TOGETHER; u++)
                load_x<known.way>(row_in_turn(known.way, u), place * VECTOR, task.n, x[u]);
        });
    Summed mine;
    mine.max = mine.sums.rest = mine.sums.low = mine.sums.dot = mine.sums.q = 0;
    unsigned ties[COUNTERS];
    UNROLL for (int i = 0; i < COUNTERS; i++) ties[i] = 0;
    UNROLL for (int u = 0; u < TOGETHER; u++) {
        const Row row = row_in_turn(way, u);
        Summed its;
        if (IS_PRODUCT) {
            on_the(way, [&](auto known) {
                its.sums.dot =
                    sum_products<known.way, WIDTH, LANE_ROWS>(row, place * VECTOR, task.n);
            });
        } else {
            const View view = row_view(task, row.number);
            real most[VECTOR];
            UNROLL for (int v = 0; v < VECTOR; v++) most[v] = x[u][0][v];
            add_maxima(x[u], most);
            its.max = lanes_max<WIDTH>(most);
            const Scale scale = scale_of<GENERAL>(view, exponent_of<GENERAL>(view, its.max));
            its.sums = sum_chunk<WIDTH, LANE_ROWS>(GENERAL, x[u], task, row, place * VECTOR,
                                                   its.max, view, scale, eighth);
            ties[u / OF_A_COUNTER] += (unsigned)its.sums.ties << u % OF_A_COUNTER * COUNTER_BITS;
        }
        if (place == u) mine = its;
    }
    const int64 own = first + place * SIDE_BY_SIDE;
    const bool has_own = place < TOGETHER && own < rows;
    const Row row = row_of(task, has_own ? own : rows - 1);
    const View view = row_view(task, row.number);
    const bool skipped = is_skipped(task, row.number);
    const real target_logit = skipped ? 0 : logit_of_target(task, row);
    Partial whole = nothing();
    real exponent = 0;
    if (IS_PRODUCT) {
        whole.dot = mine.sums.dot;
    } else {
        exponent = exponent_of<GENERAL>(view, mine.max);
        UNROLL for (int i = 0; i < COUNTERS; i++) {
            const unsigned all = add_ties<WIDTH>(ties[i]);
            if (place / OF_A_COUNTER == i)
                whole.count = all >> place % OF_A_COUNTER * COUNTER_BITS & COUNTER_MASK;
        }
        whole.max = mine.max;
        whole.exponent = exponent;
        whole.rest = mine.sums.rest;
        whole.low = mine.sums.low;
        whole.dot = mine.sums.dot;
        whole.q = mine.sums.q;
        whole.at_max = exp_scaled<GENERAL>(mine.max, view, scale_of<GENERAL>(view, exponent));
    }
    Last last;
    last.special = false;
    if (!skipped)
        last = finish(GENERAL, task, row.number, view, whole, target_logit, has_own);
    const unsigned set_aside = __ballot_sync(ALL, has_own && (skipped || last.special));
    if (HAS_OUT)
        on_the(way == FULL && set_aside ? WHOLE : way, [&](auto known) {
            UNROLL for (int u = 0; u < TOGETHER; u++) {
                Last its;
                if (STORES_EXP || OPERATION == LOG_SOFTMAX)
                    its.high = from_lane(last.high, group + u);
                if (STORES_EXP) its.low = from_lane(last.low, group + u);
                if (!STORES_EXP || DENSE) its.m = from_lane(last.m, group + u);
                if (known.way != FULL
                    && (u * SIDE_BY_SIDE >= left || set_aside >> (group + u) & 1))
                    continue;
                const Row of = row_in_turn(FULL, u);
                finish_rows<known.way>(GENERAL, task, of, row_view(task, of.number), its, 1,
                                       place * VECTOR, x[u]);
            }
        });
    if (OPERATION == CROSS_ENTROPY_WITH_GRAD && task.target) {
        __syncwarp();
        if (has_own && !skipped && !last.special)
            write_at_target(GENERAL, task, row, view, last, 1, scale_of<GENERAL>(view, exponent),
                            target_logit);
    }
    set_aside_rows(task, own, set_aside, mine.max);
}
#endif

// ------------------------------------------------------------------------------- long rows

#if defined(LONG_ROWS)
// A row to a thread block, or, with CLUSTER_BLOCKS > 1, to a cluster of thread blocks: a block of the
// contract to a warp.
extern "C" __global__ void __launch_bounds__(MOST_WARPS * WARP) CLUSTER_DIMS
    long_rows(const ARGUMENT Task task) {
    DYNAMIC_SHARED(Partial, partials);  // one per warp, one for the thread block; then Last
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Partial *own = partials + warps;
    Last *shared_last = (Last *)(own + 1);
    const int rank = CLUSTER_BLOCKS > 1 ? cluster_rank() : 0;
    const Row row = row_of(task, blockIdx.x / CLUSTER_BLOCKS);
    const View view = row_view(task, row.number);
    const int64 begin = ((int64)rank * warps + warp) * BLOCK;
    const int blocks = (int)((task.n + BLOCK - 1) / BLOCK);
    if (is_skipped(task, row.number)) {
        if (rank == 0 && warp == 0) set_aside_row(task, row.number, 0);
        return;
    }
    const Eighth eighth = eighth_of(lane);
    const Way way = way_of_block(task, begin);
    Tile x;
    real exponent = 0;
    const real target_logit = logit_of_target(task, row);
    if (begin < task.n) {
        if (!IS_PRODUCT) load_tile(row, begin, task.n, way, x);
        const Partial block = sum_block(GENERAL, task, row, begin, way, view, eighth, x);
        exponent = (real)block.exponent;
        if (lane == 0) partials[warp] = block;
    }
    __syncthreads();
    if (warp == 0) {
        int here = blocks - rank * warps;
        here = here < warps ? here : warps;
        Partial whole = nothing();
        if (lane < here) whole = partials[lane];
        whole = merge_lanes(whole, here);
        if (lane == 0) *own = whole;
        __syncwarp();
    }
    if (CLUSTER_BLOCKS > 1) cluster_sync();
    if (warp == 0) {
        const int parts = (blocks + warps - 1) / warps;
        Partial whole = *own;
        if (CLUSTER_BLOCKS > 1) {
            if (lane < parts) whole = *cluster_map(own, lane);
            whole = merge_lanes(whole, parts);
        }
        if (lane == 0) {
            *shared_last =
                finish(GENERAL, task, row.number, view, whole, target_logit, rank == 0);
            if (shared_last->special) shared_last->at_target = whole.max;
        }
    }
    __syncthreads();
    const Last last = *shared_last;
    if (last.special) {
        // The others may still be reading what this warp is going to write.
        if (CLUSTER_BLOCKS > 1) cluster_sync();
        if (rank == 0 && warp == 0) set_aside_row(task, row.number, (real)last.at_target);
        return;
    }
    if (HAS_OUT && begin < task.n)
        write_block(GENERAL, task, row, begin, way, view, last, exponent, target_logit, x);
    // Shared memory stays until all have read it.
    if (CLUSTER_BLOCKS > 1) cluster_sync();
}
#endif

// ---------------------------------------------------------------------------- streamed rows

#if defined(STREAMED_ROWS)
// A block of the contract to a warp, wherever there is room: Partials first, then one thread
// block merges those of a row, then the blocks are read once more and written.
DEVICE int64 blocks_of(const Task &task) { return (task.n + BLOCK - 1) / BLOCK; }

extern "C" __global__ void __launch_bounds__(128) stream_sum(const ARGUMENT Task task) {
    const int64 warp = ((int64)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    const int64 blocks = blocks_of(task), number = warp / blocks, begin = warp % blocks * BLOCK;
    if (number >= task.outer || is_skipped(task, number)) return;
    const Row row = row_of(task, number);
    Tile x;
    const Way way = way_of_block(task, begin);
    if (!IS_PRODUCT) load_tile(row, begin, task.n, way, x);
    const Partial block = sum_block(GENERAL, task, row, begin, way, row_view(task, number),
                                    eighth_of(threadIdx.x % WARP), x);
    if (threadIdx.x % WARP == 0) task.partials[warp] = block;
}

extern "C" __global__ void __launch_bounds__(512) stream_merge(const ARGUMENT Task task) {
    const int64 blocks = blocks_of(task);
    const Row row = row_of(task, blockIdx.x);
    Partial *partials = task.partials + row.number * blocks;
    if (is_skipped(task, row.number)) {
        if (threadIdx.x < WARP) set_aside_row(task, row.number, 0);
        return;
    }
    for (int64 step = 1; step < blocks; step *= 2) {
        for (int64 i = threadIdx.x * 2 * step; i + step < blocks; i += blockDim.x * 2 * step)
            partials[i] = merge(partials[i], partials[i + step]);
        __syncthreads();
    }
    if (threadIdx.x >= WARP) return;
    const View view = row_view(task, row.number);
    const Partial whole = partials[0];
    Last last = finish(GENERAL, task, row.number, view, whole, logit_of_target(task, row),
                       threadIdx.x == 0);
    __syncwarp();
    // Where the second sweep finds it: in the place of the row's first Partial.
    if (threadIdx.x == 0) *(Last *)partials = last;
    if (last.special) set_aside_row(task, row.number, (real)whole.max);
}

extern "C" __global__ void __launch_bounds__(128) stream_write(const ARGUMENT Task task) {
    if (!HAS_OUT) return;  // never started, but compiled
    const int64 warp = ((int64)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    const int64 blocks = blocks_of(task), number = warp / blocks, begin = warp % blocks * BLOCK;
    if (number >= task.outer || is_skipped(task, number)) return;
    const Last last = *(const Last *)(task.partials + number * blocks);
    if (last.special) return;
    const Row row = row_of(task, number);
    const View view = row_view(task, number);
    const Way way = way_of_block(task, begin);
    const real target_logit = logit_of_target(task, row);
    Tile x;
    real exponent = 0;
    if (!IS_PRODUCT) load_tile(row, begin, task.n, way, x);
    if (STORES_EXP)
        exponent = (real)sum_block(GENERAL, task, row, begin, way, view,
                                   eighth_of(threadIdx.x % WARP), x)
                       .exponent;
    write_block(GENERAL, task, row, begin, way, view, last, exponent, target_logit, x);
}
#endif
