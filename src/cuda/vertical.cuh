// Rows along another axis than the last: twin of src/cpu/vertical.pxi, where the mathematics stands.
//
// x is (outer, n, inner), inner contiguous: neighbouring threads take neighbouring rows, so that
// every load and store of a warp is contiguous. Up to NARROW columns a thread has a row to itself.
// Beyond, PARTS threads share one: thread y takes lanes y, y + PARTS, y + 2 PARTS, y + 3 PARTS of
// the contract, which is where the tree over lanes begins, and the threads meet twice in shared
// memory, for the maximum and for the sum.
//
// Passes: one read and one write for rows of up to a chunk; longer ones, up to a block, are read
// three times, the second and third time mostly from cache.

enum {
    NARROW = 16,
    PARTS = LANES / 4,
    ROWS_TOGETHER = WARP,
};

// The row number of a thread among those of a thread block, or -1.
DEVICE int64 column_row(const Task &task) {
    const int64 panels = (task.inner + ROWS_TOGETHER - 1) / ROWS_TOGETHER;
    const int64 panel = blockIdx.x * (int64)(blockDim.x / WARP) + threadIdx.x / WARP;
    const int64 outer = panel / panels, inner = panel % panels * ROWS_TOGETHER + threadIdx.x % WARP;
    return outer < task.outer && inner < task.inner ? outer * task.inner + inner : -1;
}

// Rows that were set aside, by the warp that has them.
DEVICE void special_rows(const Task &task, int64 own, bool set_aside, real m) {
    for (unsigned rest = __ballot_sync(ALL, set_aside); rest; rest &= rest - 1) {
        const int which = __ffs((int)rest) - 1;
        set_aside_row(task, from_lane(own, which), from_lane(m, which));
    }
}

DEVICE bool is_skipped(const Task &task, int64 row) {
    return is_ignored(task, row) || is_wrong(task, row);
}

// One element of the last sweep, to `out`.
DEVICE void write_element(const Task &task, const Row &row, const View &view, const Last &last,
                          int64 column, real x) {
    real y = 0;
    if (IS_PRODUCT) {
        x = to_real(row.x[column * row.x_step]);
        y = to_real(((const element *)row.y)[column * row.y_step]);
    }
    real value = value_at(GENERAL, task, row, view, last, 1, column, x, y);
    row.out[column * row.out_step] = to_element(value);
}

// One term of the lane sums of a thread.
struct LaneSum {
    real rest, low, dot, q;
    int ties;
};

DEVICE LaneSum empty_lane() {
    LaneSum lane;
    lane.rest = SPLITTER;
    lane.low = lane.dot = lane.q = 0;
    lane.ties = 0;
    return lane;
}

// Take one column into a lane's sums; its exponential, or what it was, is returned.
DEVICE real add_to_lane(const Task &task, const Row &row, int64 column, real x, real maximum,
                        const View &view, const Scale &scale, LaneSum *lane) {
    if (IS_PRODUCT) {
        real y = to_real(((const element *)row.y)[column * row.y_step]);
        lane->dot = OPERATION == LOG_SOFTMAX_VJP ? y + lane->dot : r_fma(x, y, lane->dot);
        return x;
    }
    const bool other = x != maximum;
    const real e = exp_scaled<GENERAL>(x, view, scale), before = lane->rest;
    lane->rest = before + (other ? e : 0);
    if (SPLITS) lane->low = lane->low + (other ? e - (lane->rest - before) : 0);
    lane->ties += !other;
    if (DENSE) {
        const real weight = q_of(task, row, column);
        lane->dot = lane->dot + (weight != 0 ? weight * (maximum - x) : 0);
        lane->q = lane->q + weight;
    }
    return STORES_EXP ? e : x;
}

DEVICE LaneSum add_two(const LaneSum &a, const LaneSum &b) {
    LaneSum sum;
    sum.rest = a.rest + b.rest;
    sum.low = a.low + b.low;
    sum.dot = a.dot + b.dot;
    sum.q = a.q + b.q;
    sum.ties = a.ties + b.ties;
    return sum;
}

#if defined(NARROW_COLUMNS)
// Rows of up to COLUMNS <= NARROW columns, one to a thread.
extern "C" __global__ void __launch_bounds__(128) narrow_columns(const ARGUMENT Task task) {
    const int64 own = column_row(task);
    const int64 number = own < 0 ? 0 : own;
    const Row row = row_of(task, number);
    const View view = row_view(task, number);
    const bool skipped = own >= 0 && is_skipped(task, number);
    Last last;
    last.special = false;
    real m = -INFINITE;
    if (own >= 0 && !skipped) {
        real x[COLUMNS];
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            x[c] = c < task.n ? logit_at(row, c) : IS_PRODUCT ? 0 : -INFINITE;
            m = r_max(x[c], m);
        }
        const real exponent = exponent_of<GENERAL>(view, m);
        const Scale scale = scale_of<GENERAL>(view, exponent);
        LaneSum lane[COLUMNS];
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            lane[c] = empty_lane();
            if (c < task.n)
                x[c] = add_to_lane(task, row, c, x[c], m, view, scale, &lane[c]);
            lane[c].rest = lane[c].rest - (real)SPLITTER;
        }
        UNROLL for (int apart = COLUMNS / 2; apart > 0; apart /= 2)
            UNROLL for (int c = 0; c < apart; c++) lane[c] = add_two(lane[c], lane[c + apart]);
        Partial whole = nothing();
        whole.max = m;
        whole.exponent = exponent;
        whole.rest = lane[0].rest;
        whole.low = lane[0].low;
        whole.dot = lane[0].dot;
        whole.q = lane[0].q;
        whole.count = lane[0].ties;
        whole.at_max = exp_scaled<GENERAL>(m, view, scale);
        last = finish(task, number, view, whole, logit_of_target(task, row), true);
        if (HAS_OUT && !last.special)
            UNROLL for (int c = 0; c < COLUMNS; c++)
                if (c < task.n) write_element(task, row, view, last, c, x[c]);
    }
    special_rows(task, number, skipped || last.special, m);
}
#endif

#if defined(WIDE_COLUMNS)
// Rows of up to a block, PARTS threads to each; CACHED: up to a chunk, kept in registers.
enum { CHUNK_LIMIT = CACHED ? 1 : 4 };

extern "C" __global__ void __launch_bounds__(PARTS * WARP) wide_columns(const ARGUMENT Task task) {
    __shared__ real most[PARTS][WARP];
    __shared__ LaneSum part_sums[PARTS][WARP];
    __shared__ Last lasts[WARP];
    const int r = threadIdx.x % WARP, y = threadIdx.x / WARP;
    const int64 panels = (task.inner + WARP - 1) / WARP, outer = blockIdx.x / panels;
    const int64 inner = blockIdx.x % panels * WARP + r;
    const bool present = inner < task.inner;
    const int64 number = present ? outer * task.inner + inner : outer * task.inner;
    const Row row = row_of(task, number);
    const View view = row_view(task, number);
    const int chunks = CACHED ? 1 : (int)((task.n + CHUNK - 1) / CHUNK);
    const bool skipped = present && is_skipped(task, number);
    const real target_logit = present && !skipped ? logit_of_target(task, row) : 0;
    real x[CACHED ? STEPS : 1][4];

    real m = -INFINITE;
    if (!IS_PRODUCT || CACHED) {
        for (int c = 0; c < chunks; c++)
            UNROLL for (int s = 0; s < STEPS; s++)
                UNROLL for (int p = 0; p < 4; p++) {
                    const int64 column = (int64)c * CHUNK + s * LANES + p * PARTS + y;
                    const real value = present && column < task.n ? logit_at(row, column)
                                       : IS_PRODUCT               ? 0
                                                                  : -INFINITE;
                    if (CACHED) x[s][p] = value;
                    m = r_max(value, m);
                }
        most[y][r] = m;
        __syncthreads();
        for (int i = 0; i < PARTS; i++) m = r_max(most[i][r], m);
    }
    const real exponent = exponent_of<GENERAL>(view, m);
    const Scale scale = scale_of<GENERAL>(view, exponent);

    double rest[4] = {0, 0, 0, 0}, low[4] = {0, 0, 0, 0}, dot[4] = {0, 0, 0, 0},
           q[4] = {0, 0, 0, 0};
    int ties = 0;
    UNROLL for (int c = 0; c < CHUNK_LIMIT; c++) {
        if (c >= chunks) continue;
        LaneSum lane[4];
        UNROLL for (int p = 0; p < 4; p++) lane[p] = empty_lane();
        UNROLL for (int s = 0; s < STEPS; s++)
            UNROLL for (int p = 0; p < 4; p++) {
                const int64 column = (int64)c * CHUNK + s * LANES + p * PARTS + y;
                if (!present || column >= task.n) continue;
                const real value = CACHED ? x[s][p] : logit_at(row, column);
                const real e =
                    add_to_lane(task, row, column, value, m, view, scale, &lane[p]);
                if (CACHED) x[s][p] = e;
            }
        UNROLL for (int p = 0; p < 4; p++) lane[p].rest = lane[p].rest - (real)SPLITTER;
        if (c > 0) __syncthreads();
        part_sums[y][r] = add_two(add_two(lane[0], lane[2]), add_two(lane[1], lane[3]));
        __syncthreads();
        if (y == 0) {
            LaneSum tree[PARTS];
            UNROLL for (int i = 0; i < PARTS; i++) tree[i] = part_sums[i][r];
            UNROLL for (int apart = PARTS / 2; apart > 0; apart /= 2)
                UNROLL for (int i = 0; i < apart; i++) tree[i] = add_two(tree[i], tree[i + apart]);
            rest[c] = tree[0].rest;
            low[c] = tree[0].low;
            dot[c] = tree[0].dot;
            q[c] = tree[0].q;
            ties += tree[0].ties;
        }
    }
    if (y == 0) {
        Partial whole = nothing();
        add_exactly(rest[0], low[0], rest[1], low[1], &rest[0], &low[0]);
        add_exactly(rest[2], low[2], rest[3], low[3], &rest[2], &low[2]);
        add_exactly(rest[0], low[0], rest[2], low[2], &whole.rest, &whole.low);
        whole.dot = (dot[0] + dot[1]) + (dot[2] + dot[3]);
        whole.q = (q[0] + q[1]) + (q[2] + q[3]);
        whole.max = m;
        whole.exponent = exponent;
        whole.count = ties;
        whole.at_max = exp_scaled<GENERAL>(m, view, scale);
        Last last;
        last.special = true;
        if (present && !skipped) last = finish(task, number, view, whole, target_logit, true);
        lasts[r] = last;
    }
    __syncthreads();
    const Last last = lasts[r];
    if (HAS_OUT && present && !last.special)
        for (int c = 0; c < chunks; c++)
            UNROLL for (int s = 0; s < STEPS; s++)
                UNROLL for (int p = 0; p < 4; p++) {
                    const int64 column = (int64)c * CHUNK + s * LANES + p * PARTS + y;
                    if (column >= task.n) continue;
                    real value = 0;
                    if (CACHED)
                        value = x[s][p];
                    else if (!IS_PRODUCT)
                        value = logit_at(row, column);
                    if (!CACHED && STORES_EXP) value = exp_scaled<GENERAL>(value, view, scale);
                    write_element(task, row, view, last, column, value);
                }
    if (y == 0) special_rows(task, number, present && last.special, m);
}
#endif
