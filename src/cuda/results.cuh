// What follows from a row's sums, and rows that are decided without them: twin of
// src/cpu/results.pxi.

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
        real value = FAST ? e * last.high : r_fma(e, last.high, e * last.low);
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

// The last sweep over lane rows, as load_x gave them; width: lanes of a chunk.
template <Way way, int width, int rows>
DEVICE void finish_rows(bool general, const Task &task, const Row &row, const View &view,
                        const Last &last, real scale, int64 column, real (&x)[rows][VECTOR],
                        bool writes = true) {
    UNROLL for (int s = 0; s < rows; s++) {
        const int64 first = column + s * LANES;
        real own[1][VECTOR], y[1][VECTOR];
        if (IS_PRODUCT) {
            load_x<way, width>(task, row, first, own);
            load_y<way, width>(task, row, first, y);
        }
        UNROLL for (int v = 0; v < VECTOR; v++) {
            const real value = IS_PRODUCT ? own[0][v] : x[s][v];
            x[s][v] = last_value(general, task, row, view, last, scale, first + v, value,
                                 IS_PRODUCT ? y[0][v] : 0);
            if (way == ANY && first + v < task.n)
                x[s][v] = unless_masked(row, first + v, x[s][v]);
        }
    }
    if (way == SHIFTED)
        store_shifted<width>(row.out, column, task.n, writes, x);
    else
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
            finish_rows<known.way, GROUP>(general, task, row, view, last, scale,
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
    return partial_of(mine, [lane](auto number) { return from_lane(number, lane); });
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
