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

// Where a panel of rows that lie side by side begins.
struct Panel {
    int64 outer, inner;
};

// A division of 64 bits takes some hundred instructions, as long as a short row.
DEVICE Panel panel_of(const Task &task, int64 number) {
    const int64 panels = (task.inner + ROWS_TOGETHER - 1) / ROWS_TOGETHER;
    const int64 outer =
        (number | panels) >> 32 ? number / panels : (unsigned)number / (unsigned)panels;
    return {outer, (number - outer * panels) * ROWS_TOGETHER};
}

// One element of the last sweep.
DEVICE element finished(const Task &task, const Row &row, const View &view, const Last &last,
                        int64 column, real x, real y) {
    return to_element(unless_masked(
        row, column, last_value(GENERAL, task, row, view, last, 1, column, x, y)));
}

// What a thread adds up of a lane of the contract, beside rest.
struct Others {
    real low, dot, q;
};

DEVICE Others no_others() {
    Others others;
    others.low = others.dot = others.q = 0;
    return others;
}

// Take one column into a lane's sums; its exponential, where that is stored, or what it was.
DEVICE real add_to_lane(const Task &task, const Row &row, int64 column, real x, real y,
                        real maximum, const View &view, const Scale &scale,
                        const Eighth &mine, real *rest, Others *others, float *ties) {
    if (IS_PRODUCT) {
        others->dot =
            OPERATION == LOG_SOFTMAX_VJP ? y + others->dot : r_fma(x, y, others->dot);
        return x;
    }
    const bool other = x != maximum;
    const real e = exp_scaled<GENERAL>(x, view, scale, &mine), before = *rest;
    if (other) *rest = before + e;
    if (SPLITS && other) others->low = others->low + (e - (*rest - before));
    if (!other) *ties = *ties + 1;
    if (DENSE) {
        const real weight = q_of(task, row, column);
        others->dot = others->dot + (weight != 0 ? weight * (maximum - x) : 0);
        others->q = others->q + weight;
    }
    return STORES_EXP ? e : x;
}

template <int n> DEVICE real tree(real (&lane)[n]) {
    UNROLL for (int apart = n / 2; apart > 0; apart /= 2)
        UNROLL for (int i = 0; i < n / 2; i++)
            if (i < apart) lane[i] = lane[i] + lane[i + apart];
    return lane[0];
}

#if defined(NARROW_COLUMNS)
// Rows of COLUMNS <= NARROW columns, one to a thread. Threads without a row of their own go through
// the steps of another and write nothing: a branch around it all would cost two instructions more
// for each load and store.
enum { LEAVES = COLUMNS > 8 ? 16 : COLUMNS > 4 ? 8 : COLUMNS > 2 ? 4 : 2 };

extern "C" __global__ void __launch_bounds__(128, PYSOFTMAX_DOUBLE || DENSE ? 2 : 4)
    narrow_columns(const ARGUMENT Task task) {
    const Panel panel =
        panel_of(task, blockIdx.x * (int64)(blockDim.x / WARP) + threadIdx.x / WARP);
    const int64 inner = panel.inner + threadIdx.x % WARP;
    const bool present = panel.outer < task.outer && inner < task.inner;
    const Row row = row_at(task, present ? panel.outer : 0, present ? inner : 0);
    const int64 number = row.number;
    const View view = row_view(task, number);
    const bool skipped = is_skipped(task, number);
    const Eighth eighth = eighth_of(threadIdx.x % WARP);
    real x[COLUMNS], y[COLUMNS], rest[LEAVES], low[LEAVES], dot[LEAVES], q[LEAVES];
    float ties = 0;
    const element *x_at = row.x, *y_at = (const element *)row.y;
    UNROLL for (int c = 0; c < COLUMNS; c++) {
        x[c] = to_real(*x_at);
        y[c] = IS_PRODUCT ? to_real(*y_at) : 0;
        x_at += row.x_step;
        y_at += row.y_step;
    }
    if (row.mask)
        UNROLL for (int c = 0; c < COLUMNS; c++)
            if (is_masked(row, c)) x[c] = -INFINITE;
    real m = -INFINITE;
    UNROLL for (int c = 0; c < COLUMNS; c++) m = r_max(x[c], m);
    const real target_logit = skipped ? 0 : logit_of_target(task, row);
    const real exponent = exponent_of<GENERAL>(view, m);
    const Scale scale = scale_of<GENERAL>(view, exponent);
    UNROLL for (int c = 0; c < LEAVES; c++) {
        Others others = no_others();
        rest[c] = SPLITTER;
        if (c < COLUMNS)
            x[c] = add_to_lane(task, row, c, x[c], y[c], m, view, scale, eighth, &rest[c],
                               &others, &ties);
        rest[c] = rest[c] - (real)SPLITTER;
        low[c] = others.low;
        dot[c] = others.dot;
        q[c] = others.q;
    }
    Partial whole = nothing();
    whole.max = m;
    whole.exponent = exponent;
    whole.rest = tree(rest);
    if (SPLITS) whole.low = tree(low);
    if (HAS_DOT) whole.dot = tree(dot);
    if (DENSE) whole.q = tree(q);
    whole.count = ties;
    whole.at_max = exp_scaled<GENERAL>(m, view, scale);
    Last last;
    last.special = false;
    if (!skipped)
        last = finish(GENERAL, task, number, view, whole, target_logit, present);
    const bool writes = present && !skipped && !last.special;
    if (HAS_OUT) {
        element *out_at = row.out;
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            const element value = finished(task, row, view, last, c, x[c], y[c]);
            if (writes) *out_at = value;
            out_at += row.out_step;
        }
    }
    if (OPERATION == CROSS_ENTROPY_WITH_GRAD && writes && task.target)
        write_at_target(GENERAL, task, row, view, last, 1, scale, target_logit);
    set_aside_rows(task, number, __ballot_sync(ALL, present && (skipped || last.special)), m);
}
#endif

#if defined(WIDE_COLUMNS)
// Rows of up to a block, PARTS threads to each; up to a chunk: of at most COLUMNS, else that is 0.
enum {
    CACHED = COLUMNS > 0,
    CHUNKS_AT_MOST = CACHED ? 1 : 4,
    PLACES = (CACHED ? COLUMNS : CHUNK) / PARTS,  // columns of a chunk that a thread takes
    // Target weights take the registers that would keep them.
    KEPT = CACHED && !DENSE,
    // Those whose loads are under way together.
    TOGETHER = KEPT ? PLACES : 8,
    // Thread blocks of a multiprocessor, where their registers leave room for another.
    RESIDENT = KEPT && !GENERAL && PLACES <= 16 ? 2 : 1,
};
#ifdef __CUDACC__
#define UNROLL_PLACES _Pragma("unroll TOGETHER")
#else
#define UNROLL_PLACES
#endif

// The tree over the parts of a lane row, one field of them.
DEVICE real add_parts(const real (&part)[PARTS][WARP], int r) {
    real lane[PARTS];
    UNROLL for (int i = 0; i < PARTS; i++) lane[i] = part[i][r];
    return tree(lane);
}

// The sums of a chunk, as they were added up for row r.
DEVICE Partial chunk_of(const real (&sums)[4][WARP], int r) {
    Partial chunk = nothing();
    chunk.rest = sums[0][r];
    chunk.low = sums[1][r];
    chunk.dot = sums[2][r];
    chunk.q = sums[3][r];
    return chunk;
}

extern "C" __global__ void __launch_bounds__(PARTS * WARP, RESIDENT)
    wide_columns(const ARGUMENT Task task) {
    __shared__ real rests[PARTS][WARP], lows[PARTS][WARP], dots[PARTS][WARP], qs[PARTS][WARP];
    __shared__ float ties_of[PARTS][WARP];
    __shared__ Last lasts[WARP];
    const int r = threadIdx.x % WARP, y = threadIdx.x / WARP, n = (int)task.n;
    const Panel panel = panel_of(task, blockIdx.x);
    const int64 inner = panel.inner + r;
    const bool present = inner < task.inner;
    const Row row = row_at(task, panel.outer, present ? inner : 0);
    const int64 number = row.number;
    const View view = row_view(task, number);
    const bool skipped = present && is_skipped(task, number);
    const Eighth eighth = eighth_of(r);
    // From one column of a thread to the next: PARTS columns.
    const int64 x_step = PARTS * row.x_step, y_step = PARTS * row.y_step;
    const element *x_begin = row.x + y * row.x_step;
    const element *y_begin = (const element *)row.y + y * row.y_step;
    real x[KEPT ? PLACES : 1];

    real m = -INFINITE;
    if (!IS_PRODUCT) {
        const element *at = x_begin;
        NOT_UNROLLED for (int begin = y; begin < n; begin += CHUNK)
            UNROLL_PLACES for (int i = 0; i < PLACES; i++, at += x_step) {
                const int column = begin + i * PARTS;
                real value = -INFINITE;
                if (column < n && !is_masked(row, column)) value = to_real(*at);
                if (KEPT) x[i] = value;
                m = r_max(value, m);
            }
        rests[y][r] = m;
        __syncthreads();
        for (int i = 0; i < PARTS; i++) m = r_max(rests[i][r], m);
        __syncthreads();
    }
    const real exponent = exponent_of<GENERAL>(view, m);
    const Scale scale = scale_of<GENERAL>(view, exponent);

    __shared__ real sums[CHUNKS_AT_MOST][4][WARP];
    Partial whole = nothing();
    float ties = 0;
    const element *x_at = x_begin, *y_at = y_begin;
    NOT_UNROLLED for (int c = 0; c < CHUNKS_AT_MOST; c++) {
        real rest[4];
        Others others[4];
        UNROLL for (int p = 0; p < 4; p++) {
            rest[p] = SPLITTER;
            others[p] = no_others();
        }
        UNROLL_PLACES for (int i = 0; i < PLACES; i++, x_at += x_step, y_at += y_step) {
            const int column = c * CHUNK + i * PARTS + y;
            if (column >= n) continue;
            real value = 0;
            if (OPERATION == LOG_SOFTMAX_VJP)
                value = 0;
            else if (KEPT && !IS_PRODUCT)
                value = x[i];
            else
                value = is_masked(row, column) ? -INFINITE : to_real(*x_at);
            const real e =
                add_to_lane(task, row, column, value, IS_PRODUCT ? to_real(*y_at) : 0, m, view,
                            scale, eighth, &rest[i % 4], &others[i % 4], &ties);
            if (KEPT && !IS_PRODUCT) x[i] = e;
        }
        UNROLL for (int p = 0; p < 4; p++) rest[p] = rest[p] - (real)SPLITTER;
        if (c > 0) __syncthreads();
        rests[y][r] = (rest[0] + rest[2]) + (rest[1] + rest[3]);
        if (SPLITS) lows[y][r] = (others[0].low + others[2].low) + (others[1].low + others[3].low);
        if (HAS_DOT) dots[y][r] = (others[0].dot + others[2].dot) + (others[1].dot + others[3].dot);
        if (DENSE) qs[y][r] = (others[0].q + others[2].q) + (others[1].q + others[3].q);
        ties_of[y][r] = ties;
        __syncthreads();
        if (y > 0) continue;
        sums[c][0][r] = add_parts(rests, r);
        sums[c][1][r] = SPLITS ? add_parts(lows, r) : 0;
        sums[c][2][r] = HAS_DOT ? add_parts(dots, r) : 0;
        sums[c][3][r] = DENSE ? add_parts(qs, r) : 0;
    }
    if (y == 0) {
        whole = chunk_of(sums[0], r);
        if (!CACHED) {
            Partial right;
            add_chunks(whole, chunk_of(sums[1], r), &whole);
            add_chunks(chunk_of(sums[2], r), chunk_of(sums[3], r), &right);
            add_chunks(whole, right, &whole);
        }
        ties = 0;
        for (int i = 0; i < PARTS; i++) ties += ties_of[i][r];
        whole.max = m;
        whole.exponent = exponent;
        whole.count = ties;
        whole.at_max = exp_scaled<GENERAL>(m, view, scale);
        Last last;
        last.special = true;
        if (present && !skipped)
            last = finish(GENERAL, task, number, view, whole, logit_of_target(task, row), true);
        lasts[r] = last;
    }
    __syncthreads();
    const Last last = lasts[r];
    if (HAS_OUT && present && !last.special) {
        const int64 out_step = PARTS * row.out_step;
        const bool has_target = OPERATION == CROSS_ENTROPY_WITH_GRAD && task.target
                                && task.target[number] % PARTS == y;
        const real target_logit = has_target ? logit_of_target(task, row) : 0;
        element *out_at = row.out + y * row.out_step;
        x_at = x_begin;
        y_at = y_begin;
        NOT_UNROLLED for (int begin = y; begin < n; begin += CHUNK)
            UNROLL_PLACES for (int i = 0; i < PLACES;
                               i++, x_at += x_step, y_at += y_step, out_at += out_step) {
                const int column = begin + i * PARTS;
                if (column >= n) continue;
                real value = 0;
                if (KEPT && !IS_PRODUCT)
                    value = x[i];
                else
                    value = !IS_PRODUCT && is_masked(row, column) ? -INFINITE : to_real(*x_at);
                if (!KEPT && STORES_EXP) value = exp_scaled<GENERAL>(value, view, scale);
                *out_at = finished(task, row, view, last, column, value,
                                   IS_PRODUCT ? to_real(*y_at) : 0);
            }
        if (has_target)
            write_at_target(GENERAL, task, row, view, last, 1, scale, target_logit);
    }
    if (y == 0)
        set_aside_rows(task, number, __ballot_sync(ALL, present && last.special), m);
}
#endif
