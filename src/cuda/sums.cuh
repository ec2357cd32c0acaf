// Maxima, exponentials and what is added up, of a thread's columns, of chunks, blocks and rows: twin
// of src/cpu/sums.pxi. How the work is laid out: row.cuh.

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
DEVICE real sum_products(const Task &task, const Row &row, int64 column) {
    real dot[VECTOR], x[1][VECTOR], y[1][VECTOR];
    UNROLL for (int v = 0; v < VECTOR; v++) dot[v] = 0;
    UNROLL for (int s = 0; s < rows; s++) {
        load_y<way, width>(task, row, column + s * LANES, y);
        if (!IS_SUM) load_x<way, width>(task, row, column + s * LANES, x);
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

DEVICE void load_tile(const Task &task, const Row &row, int64 begin, Way way, Tile &x) {
    on_the(way, [&](auto known) {
        UNROLL for (int c = 0; c < CHUNKS; c++)
            load_x<known.way, GROUP>(task, row, begin + first_column() + c * APART, x[c]);
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
                    task, row, begin + first_column() + c * APART);
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

// What another lane holds; `fetch` gets one of its numbers.
template <class Fetch> DEVICE Partial partial_of(const Partial &mine, Fetch fetch) {
    Partial other = mine;
    if (!IS_PRODUCT) {
        other.max = fetch(mine.max);
        other.at_max = fetch(mine.at_max);
        other.count = fetch(mine.count);
        other.rest = fetch(mine.rest);
        other.low = fetch(mine.low);
        other.exponent = fetch(mine.exponent);
    }
    if (HAS_DOT) other.dot = fetch(mine.dot);
    if (DENSE) other.q = fetch(mine.q);
    return other;
}

// Lane i of a warp holds stretch i of `count`: merged in the contract's tree into lane 0.
DEVICE Partial merge_lanes(Partial mine, int count) {
    const int lane = threadIdx.x % WARP;
    for (int step = 1; step < count; step *= 2) {
        const Partial other =
            partial_of(mine, [step](auto number) { return from_below(number, step); });
        if (!(lane & (2 * step - 1)) && lane + step < count) mine = merge(mine, other);
    }
    return mine;
}

DEVICE double over_temperature(double value, const View &view) {
    return GENERAL ? __ddiv_rn(value, view.temperature) : value;
}
