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

// ------------------------------------------------------------------------------ short rows

#if defined(SHORT_ROWS)
// Rows of up to two chunks: WIDTH lanes a row, a vector each of LANE_ROWS lane rows. A warp works
// on WARP / WIDTH rows side by side, TOGETHER times. What is done once per row, in double, is
// done for all of them at once: lane u of a group for row u of the group.
enum {
    VALUES = 128 / sizeof(real),
    FITTING = VALUES / (VECTOR * LANE_ROWS) > 0 ? VALUES / (VECTOR * LANE_ROWS) : 1,
    TOGETHER = WIDTH < FITTING ? WIDTH : FITTING,
    SIDE_BY_SIDE = WARP / WIDTH,
    OF_A_CHUNK = WIDTH < GROUP ? WIDTH : GROUP,  // lanes
    TWO_CHUNKS = WIDTH > GROUP,
    // The ties of several rows are counted in one number.
    COUNTER_BITS = LANE_ROWS * WIDTH * VECTOR < 256 ? 8 : 16,
    COUNTER_MASK = (1 << COUNTER_BITS) - 1,
    OF_A_COUNTER = 32 / COUNTER_BITS,
    COUNTERS = (TOGETHER + OF_A_COUNTER - 1) / OF_A_COUNTER,
    // Thread blocks of a multiprocessor: 96 or 128 registers to a thread, more where they are wanted.
    RESIDENT = DENSE ? 2 : GENERAL || PYSOFTMAX_DOUBLE ? 3 : ELEMENT_BITS == 32 && TWO_CHUNKS ? 5 : 4,
};

// What the lanes of a group add up of a row, and in the end keep of their own.
struct Summed {
    real max;
    Sums sums;
};

DEVICE Partial chunk_of(const Sums &sums) {
    Partial chunk = nothing();
    chunk.rest = sums.rest;
    chunk.low = sums.low;
    chunk.dot = sums.dot;
    chunk.q = sums.q;
    return chunk;
}

extern "C" __global__ void __launch_bounds__(128, RESIDENT) short_rows(const ARGUMENT Task task) {
    const int lane = threadIdx.x % WARP, place = lane % WIDTH, group = lane - place;
    const int column = place / OF_A_CHUNK * CHUNK + place % OF_A_CHUNK * VECTOR;
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
                load_x<known.way, OF_A_CHUNK>(task, row_in_turn(known.way, u), column, x[u]);
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
                    sum_products<known.way, OF_A_CHUNK, LANE_ROWS>(task, row, column);
            });
        } else {
            const View view = row_view(task, row.number);
            real most[VECTOR];
            UNROLL for (int v = 0; v < VECTOR; v++) most[v] = x[u][0][v];
            add_maxima(x[u], most);
            its.max = lanes_max<WIDTH>(most);
            const Scale scale = scale_of<GENERAL>(view, exponent_of<GENERAL>(view, its.max));
            its.sums = sum_chunk<OF_A_CHUNK, LANE_ROWS>(GENERAL, x[u], task, row, column,
                                                        its.max, view, scale, eighth);
            ties[u / OF_A_COUNTER] += (unsigned)its.sums.ties << u % OF_A_COUNTER * COUNTER_BITS;
        }
        if (place % OF_A_CHUNK == u) mine = its;
    }
    const int64 own = first + place * SIDE_BY_SIDE;
    const bool has_own = place < TOGETHER && own < rows;
    const Row row = row_of(task, has_own ? own : rows - 1);
    const View view = row_view(task, row.number);
    const bool skipped = is_skipped(task, row.number);
    const real target_logit = skipped ? 0 : logit_of_target(task, row);
    Partial whole = chunk_of(mine.sums);
    if (TWO_CHUNKS) {
        Sums second = mine.sums;
        second.rest = across(mine.sums.rest, OF_A_CHUNK);
        if (SPLITS) second.low = across(mine.sums.low, OF_A_CHUNK);
        if (HAS_DOT) second.dot = across(mine.sums.dot, OF_A_CHUNK);
        if (DENSE) second.q = across(mine.sums.q, OF_A_CHUNK);
        add_chunks(whole, chunk_of(second), &whole);
    }
    real exponent = 0;
    if (!IS_PRODUCT) {
        exponent = exponent_of<GENERAL>(view, mine.max);
        UNROLL for (int i = 0; i < COUNTERS; i++) {
            const unsigned all = add_ties<WIDTH>(ties[i]);
            if (place / OF_A_COUNTER == i)
                whole.count = all >> place % OF_A_COUNTER * COUNTER_BITS & COUNTER_MASK;
        }
        whole.max = mine.max;
        whole.exponent = exponent;
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
                const bool writes =
                    known.way == FULL
                    || (u * SIDE_BY_SIDE < left && !(set_aside >> (group + u) & 1));
                // SHIFTED vectors are of two lanes, even of one that writes nothing.
                if (!writes && known.way != SHIFTED) continue;
                const Row of = row_in_turn(known.way == SHIFTED ? SHIFTED : FULL, u);
                finish_rows<known.way, OF_A_CHUNK>(GENERAL, task, of, row_view(task, of.number), its,
                                                   1, column, x[u], writes);
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
        if (!IS_PRODUCT) load_tile(task, row, begin, way, x);
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
    if (!IS_PRODUCT) load_tile(task, row, begin, way, x);
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
    if (!IS_PRODUCT) load_tile(task, row, begin, way, x);
    if (STORES_EXP)
        exponent = (real)sum_block(GENERAL, task, row, begin, way, view,
                                   eighth_of(threadIdx.x % WARP), x)
                       .exponent;
    write_block(GENERAL, task, row, begin, way, view, last, exponent, target_logit, x);
}
#endif
