# Everything that reduces a row: softmax, log_softmax, logsumexp, cross-entropy, the vjps.
#
# Mathematics.  With m = max x, z_i = (x_i - m) / T and S = sum exp(z_i):
#   softmax      exp(z_i) / S             logsumexp   m + log S
#   log_softmax  z_i - log S              loss        sum_c q_c (log S - z_c)
#   gradient     (Q p_i - q_i) / T        q: one-hot, smoothed, weighted targets; Q = sum q
#   softmax vjp  p_i (g_i - sum_j g_j p_j) / T
#   log_softmax vjp  (g_i - p_i sum_j g_j) / T
# S = N + R: N elements equal the maximum, and R is the sum over the others. The large term
# then takes part in one addition only, and log S is log1p(N - 1 + R) (Blanchard, Higham &
# Higham 2021, eq. 1.4), so that log-probabilities near zero keep their relative accuracy.
# z_i and -log S have one sign, so nothing cancels; 1 - p_target at a maximum is
# (N - 1 + R) / S.
#
# Order of additions (docs/numerics.md): a lane row is 256 bytes of the row. In a chunk of
# 8 lane rows, lane j adds its columns in order; the lanes are added as a halving tree.
# In double every term is split at a fixed place before, the upper parts add up exactly and
# the lower ones beside them. Chunk sums are double, with the errors of adding them kept, in
# a tree fixed by their index: 4 to a block, then blocks. A block's exponentials carry a
# scale 2^-K of their own; blocks whose K is not the row's are rescaled in the last sweep,
# which is exact.
#
# Passes.  A row of up to one lane row stays in registers: one read, one write. Up to one
# block: maximum, exp into 8 KiB of scratch, one scaled copy to `out`; x is read from memory
# once. Longer: block by block maximum and exp, stored to `out`, then one scaling sweep:
# two reads and two writes of memory. logsumexp and the loss: one read.
# In place a long row's maximum is taken beforehand: a sweep that must start again
# (an anchored row) has to find x intact.

cdef struct Sums:
    # Four accumulators each: the four vectors of a lane row.
    vec[4] rest
    vec[4] low
    vec[4] others  # how many columns went into rest
    vec[4] dot
    vec[4] q


# What each operation needs, constant once inlined.

cdef inline bint stores_exp(int op) noexcept nogil:
    return op == SOFTMAX or op == CROSS_ENTROPY_WITH_GRAD

cdef inline bint is_product(int op) noexcept nogil:
    """Operations whose sweep adds products of two operands and needs no exponential."""
    return op == SOFTMAX_VJP or op == LOG_SOFTMAX_VJP or op == DOT

cdef inline bint is_loss(int op) noexcept nogil:
    return op == CROSS_ENTROPY or op == CROSS_ENTROPY_WITH_GRAD


# ---------------------------------------------------------------- one block, one chunk

cdef inline double block_max(const real *x, Py_ssize_t n) noexcept nogil:
    """Largest element; NaN is passed over."""
    cdef vec lowest = v_set1(<real>-INFINITY)
    cdef vec[4] m
    cdef Py_ssize_t i = 0
    cdef int v
    for v in range(4):
        m[v] = lowest
    while i + LANES <= n:
        for v in range(4):
            m[v] = v_max(v_load(x + i + v * VLEN), m[v])
        i += LANES
    for v in range(4):
        if n - i > v * VLEN:
            m[v] = v_max(v_load_first(x + i + v * VLEN, v_first(n - i - v * VLEN), lowest), m[v])
    return v_reduce_max(v_max(v_max(m[0], m[2]), v_max(m[1], m[3])))


cdef inline void add_split(vmask where, vec e, vec *rest, vec *low) noexcept nogil:
    """Add e to a sum that started at SPLITTER; what does not fit its grid goes to low."""
    cdef vec before = rest[0]
    rest[0] = v_add_where(where, before, e)
    if SPLITS:
        low[0] = v_add_where(where, low[0], v_sub(e, v_sub(rest[0], before)))


cdef inline vec add_element(int op, bint general, bint dense, vec x, vec y, const Scale *scale,
                            vec maximum, Sums *sums, int v) noexcept nogil:
    """Take one vector into the sums; its exponentials are returned."""
    cdef vec e = x
    cdef vmask other
    if op == LOG_SOFTMAX_VJP:
        sums.dot[v] = v_add(y, sums.dot[v])
    elif is_product(op):
        sums.dot[v] = v_fma(x, y, sums.dot[v])
    else:
        e = exp_scaled(general, x, scale)
        other = v_ne(x, maximum)
        add_split(other, e, &sums.rest[v], &sums.low[v])
        sums.others[v] = v_add_where(other, sums.others[v], v_set1(1))
        if dense:
            sums.dot[v] = v_add(sums.dot[v], v_zero_unless(v_ne(y, v_set1(0)),
                                                           v_mul(y, v_sub(maximum, x))))
            sums.q[v] = v_add(sums.q[v], y)
    return e


cdef inline double add_lanes(const vec *a) noexcept nogil:
    """Lane j with j + 32, j + 16, j + 8, ... (half of that in double)."""
    return v_reduce_add(v_add(v_add(a[0], a[2]), v_add(a[1], a[3])))


cdef inline void add_chunk(int op, bint general, bint dense, const real *x, const real *y,
                           real *e, Py_ssize_t n, const Scale *scale, vec maximum,
                           Partial *chunk) noexcept nogil:
    """Sums over up to CHUNK columns; the exponentials go to e if the operation stores them."""
    cdef Sums sums
    cdef vec zero = v_set1(0), lowest = v_set1(<real>-INFINITY), yv = zero, ev
    cdef vmask present
    cdef Py_ssize_t i = 0, left
    cdef int v
    for v in range(4):
        sums.rest[v] = v_set1(SPLITTER)
        sums.low[v] = zero
        sums.others[v] = zero
        sums.dot[v] = zero
        sums.q[v] = zero
    while i + LANES <= n:
        for v in range(4):
            if dense or is_product(op):
                yv = v_load(y + i + v * VLEN)
            ev = add_element(op, general, dense, v_load(x + i + v * VLEN), yv, scale, maximum,
                             &sums, v)
            if stores_exp(op):
                v_store(e + i + v * VLEN, ev)
        i += LANES
    for v in range(4):
        left = n - i - v * VLEN
        if left > 0:
            present = v_first(left)
            if dense or is_product(op):
                yv = v_load_first(y + i + v * VLEN, present, zero)
            ev = add_element(op, general, dense,
                             v_load_first(x + i + v * VLEN, present,
                                          zero if is_product(op) else lowest),
                             yv, scale, maximum, &sums, v)
            if stores_exp(op):
                v_store_first(e + i + v * VLEN, present, ev)
    if is_product(op):
        chunk.dot = add_lanes(sums.dot)
    else:
        for v in range(4):
            sums.rest[v] = v_sub(sums.rest[v], v_set1(SPLITTER))
        chunk.rest = add_lanes(sums.rest)
        chunk.low = add_lanes(sums.low) if SPLITS else 0
        # Absent columns of the last lane row count as others, too.
        left = (n + VLEN - 1) // VLEN * VLEN
        chunk.count = left - <double>add_lanes(sums.others)
        if dense:
            chunk.dot = add_lanes(sums.dot)
            chunk.q = add_lanes(sums.q)


cdef inline void add_exactly(const Partial *a, const Partial *b, Partial *total) noexcept nogil:
    """rest and low of a + b; the error of adding the rests goes to low (Knuth's TwoSum)."""
    cdef double rest = a.rest + b.rest, b_part = rest - a.rest
    total.low = (a.low + b.low) + ((a.rest - (rest - b_part)) + (b.rest - b_part))
    total.rest = rest


cdef inline void add_block(int op, bint general, bint dense, const real *x, const real *y,
                           real *e, Py_ssize_t n, const View *view, double own_max,
                           double exponent, Partial *block) noexcept nogil:
    """Sums over up to BLOCK columns, scaled by 2^exponent."""
    cdef Scale scale
    cdef Partial[4] chunk
    cdef vec maximum = v_set1(<real>own_max)
    cdef int c, chunks = <int>((n + CHUNK - 1) // CHUNK)
    cdef Py_ssize_t begin
    if not is_product(op):
        set_scale(&scale, view, exponent)
    for c in range(4):
        chunk[c].rest = chunk[c].low = chunk[c].count = chunk[c].dot = chunk[c].q = 0
    for c in range(chunks):
        begin = c * CHUNK
        add_chunk(op, general, dense, x + begin, y + begin if y != NULL else NULL,
                  e + begin if e != NULL else NULL, min(n - begin, CHUNK), &scale, maximum,
                  &chunk[c])
    block.max = own_max
    block.exponent = exponent
    if chunks > 1:
        add_exactly(&chunk[0], &chunk[1], &chunk[0])
        add_exactly(&chunk[2], &chunk[3], &chunk[2])
        add_exactly(&chunk[0], &chunk[2], &chunk[0])
    block.rest = chunk[0].rest
    block.low = chunk[0].low
    block.count = chunk[0].count + chunk[1].count + chunk[2].count + chunk[3].count
    block.dot = (chunk[0].dot + chunk[1].dot) + (chunk[2].dot + chunk[3].dot)
    block.q = (chunk[0].q + chunk[1].q) + (chunk[2].q + chunk[3].q)
    block.at_max = 0
    if not is_product(op):
        if own_max == -INFINITY:
            block.count = 0
            if dense and block.q > 0:
                block.dot = INFINITY
        else:
            block.at_max = v_reduce_max(exp_scaled(general, maximum, &scale))


# ------------------------------------------------------------------- stretches of a row

cdef void merge(const Partial *left, const Partial *right, Partial *result) noexcept nogil:
    """Join two neighbours; where their maxima differ the lower one's ties join its rest."""
    cdef const Partial *high = left if left.max >= right.max else right
    cdef const Partial *low = right if left.max >= right.max else left
    cdef double scale = power_of_two(low.exponent - high.exponent) if low.max > -INFINITY else 1.0
    cdef double low_dot = low.dot, at_max = high.at_max, count = high.count
    cdef Partial scaled, ties
    scaled.rest = low.rest * scale
    scaled.low = low.low * scale
    if low.max == high.max:
        count += low.count
    else:
        ties.rest = low.count * low.at_max * scale
        ties.low = 0
        add_exactly(&scaled, &ties, &scaled)
        if low.q != 0:
            low_dot += low.q * (high.max - low.max)
    add_exactly(high, &scaled, &scaled)
    result.rest = scaled.rest
    result.low = scaled.low
    result.dot = high.dot + low_dot
    result.q = high.q + low.q
    result.max = high.max
    result.exponent = high.exponent
    result.at_max = at_max
    result.count = count


cdef inline void fold(Partial *stack, int *depth, Py_ssize_t index) noexcept nogil:
    """After pushing stretch number `index`: join equal-sized neighbours, smallest first."""
    while index & 1:
        merge(&stack[depth[0] - 2], &stack[depth[0] - 1], &stack[depth[0] - 2])
        depth[0] -= 1
        index >>= 1


cdef inline void fold_all(Partial *stack, int depth) noexcept nogil:
    while depth > 1:
        merge(&stack[depth - 2], &stack[depth - 1], &stack[depth - 2])
        depth -= 1


cdef inline bint in_reach(const View *view, double m) noexcept nogil:
    """Whether z = (m - c) / T may be reduced without taking the maximum off first."""
    return fabs((m - view.shift) * view.beta_high) <= ANCHOR


cdef inline bint sweep(int op, bint general, bint dense, const real *x, const real *y, real *e,
                       Py_ssize_t n, const View *view, double start_max, Partial *result,
                       double *exponents) noexcept nogil:
    """First sweep over n columns. False if the maximum turned out to be out of reach.

    The exponentials go to e, with the scale 2^exponents[b] of each block. start_max is a
    lower bound of the row's maximum, or -inf.
    """
    cdef Partial[48] stack
    cdef int depth = 0
    cdef Py_ssize_t begin, length, index = 0
    cdef double running = start_max, own = -INFINITY, exponent = 0
    for begin from 0 <= begin < n by BLOCK:
        length = min(n - begin, BLOCK)
        if not is_product(op):
            own = block_max(x + begin, length)
            if own > running:
                running = own
            if running > -INFINITY and not in_reach(view, running):
                return False
            exponent = exponent_of(view, own)
        add_block(op, general, dense, x + begin, y + begin if y != NULL else NULL,
                  e + begin if e != NULL else NULL, length, view, own, exponent,
                  &stack[depth])
        if exponents != NULL:
            exponents[index] = exponent
        depth += 1
        fold(stack, &depth, index)
        index += 1
    fold_all(stack, depth)
    result[0] = stack[0]
    return True


cdef inline double whole_sum(const Partial *whole) noexcept nogil:
    """S 2^(HEADROOM - K)."""
    return whole.count * whole.at_max + (whole.rest + whole.low)


cdef inline double all_but_one(const Partial *whole) noexcept nogil:
    """R 2^(HEADROOM - K): the sum without one maximum."""
    return (whole.rest + whole.low) + (whole.count - 1) * whole.at_max


cdef inline double log_sum(const Partial *whole) noexcept nogil:
    """log S = log1p(R)."""
    return log1p_of_ratio(all_but_one(whole), whole.at_max)


cdef struct Factor:
    # A quotient as a pair, so that multiplying by it rounds once.
    real high, low


cdef inline Factor divide(double numerator, double denominator) noexcept nogil:
    cdef Factor factor
    cdef double inverse = 1 / denominator
    factor.high = <real>(numerator * inverse)
    factor.low = <real>(fma(-<double>factor.high, denominator, numerator) * inverse)
    return factor


cdef inline vec log_probability(bint general, vec x, vec m, vec beta_high, vec beta_low,
                                vec log_s) noexcept nogil:
    """(x - m) / T - log S."""
    cdef vec d = v_sub(x, m), z
    if not general:
        return v_sub(d, log_s)
    z = v_mul(d, beta_high)
    # Where z overflows, or x is -inf, the second product would make NaN of it.
    return v_where(v_eq(z, v_set1(<real>-INFINITY)), z,
                   v_fma(d, beta_high, v_sub(v_mul(d, beta_low), log_s)))


cdef inline vec last_value(int op, bint general, bint dense, bint rescaled, vec x, vec y,
                           vec scale, vec high, vec low, vec m,
                           vec beta) noexcept nogil:
    """One vector of the last sweep; x holds exponentials where the operation stored them."""
    cdef vec result
    if stores_exp(op):
        if rescaled:
            x = v_mul(x, scale)
        result = v_multiply(x, high, low)
        return v_fma(m, y, result) if dense else result
    if op == SOFTMAX_VJP:
        result = v_mul(x, v_sub(y, m))
    else:
        result = v_sub(y, v_mul(exp_of_negative(x), m))
    return v_mul(result, beta) if general else result


cdef inline void write_logs(bint general, const real *x, real *out, Py_ssize_t n,
                            const View *view, double maximum, double log_sum) noexcept nogil:
    """The last sweep of log_softmax."""
    cdef vec m = v_set1(<real>maximum), log_s = v_set1(<real>log_sum)
    cdef vec beta_high = v_set1(<real>view.beta_high), beta_low = v_set1(<real>view.beta_low)
    cdef vmask present
    cdef Py_ssize_t i = 0
    while i + VLEN <= n:
        v_store(out + i, log_probability(general, v_load(x + i), m, beta_high, beta_low, log_s))
        i += VLEN
    if i < n:
        present = v_first(n - i)
        v_store_first(out + i, present, log_probability(
            general, v_load_first(x + i, present, m), m, beta_high, beta_low, log_s))


cdef inline void write(int op, bint general, bint dense, const real *x, const real *y,
                       const real *e, real *out, Py_ssize_t n, const View *view,
                       const Partial *whole, const double *exponents,
                       double gradient) noexcept nogil:
    """Last sweep: the values from the row's sums. `gradient`: what p - q is multiplied by."""
    cdef Factor factor
    cdef double step, split
    cdef vec scale = v_set1(1), high = scale, low = scale, m = scale
    cdef vec beta = scale
    cdef vec zero = v_set1(0), xv, yv = zero
    cdef vmask present
    cdef Py_ssize_t begin, end, i
    cdef bint rescaled
    if stores_exp(op):
        factor = divide(gradient * whole.q if op == CROSS_ENTROPY_WITH_GRAD else 1,
                        whole_sum(whole))
        m = v_set1(<real>-gradient)
    elif op == LOG_SOFTMAX:
        write_logs(general, x, out, n, view, whole.max, log_sum(whole))
        return
    else:
        m = v_set1(<real>whole.dot)
        beta = v_set1(<real>view.beta_high)
    for begin from 0 <= begin < n by BLOCK:
        end = min(n, begin + BLOCK)
        rescaled = False
        if stores_exp(op):
            step = exponents[begin // BLOCK] - whole.exponent if exponents != NULL else 0
            rescaled = step != 0
            # The exact scale of a block far below the maximum may be subnormal itself.
            split = DEEP_SPLIT if step < DEEP else 0
            scale = v_set1(<real>power_of_two(step + split))
            high = v_set1(<real>(factor.high * power_of_two(-split)))
            low = v_set1(<real>(factor.low * power_of_two(-split)))
        i = begin
        while i + VLEN <= end:
            xv = v_load((e if stores_exp(op) else x) + i)
            if dense or is_product(op):
                yv = v_load(y + i)
            v_store(out + i, last_value(op, general, dense, rescaled, xv, yv, scale, high, low,
                                        m, beta))
            i += VLEN
        if i < end:
            present = v_first(end - i)
            xv = v_load_first((e if stores_exp(op) else x) + i, present, zero)
            if dense or is_product(op):
                yv = v_load_first(y + i, present, zero)
            v_store_first(out + i, present,
                          last_value(op, general, dense, rescaled, xv, yv, scale, high, low, m,
                                     beta))


# ------------------------------------------------------------------------ one whole row

cdef inline bint is_dense(int op, const Task *task) noexcept nogil:
    """Whether every class has a target weight q of its own."""
    return is_loss(op) and (task.target == NULL or task.label_smoothing != 0)


cdef inline double spike_weight(const Task *task, Py_ssize_t row) noexcept nogil:
    """The part of q that sits at the target class alone."""
    cdef double weight
    if task.target == NULL:
        return 0
    weight = 1 - task.label_smoothing
    return weight * task.class_weight[task.target[row]] if task.class_weight != NULL else weight


cdef void fill_q(const Task *task, const real *y, real *q) noexcept nogil:
    """q of one row without its spike: w_c ((1 - smoothing) y_c + smoothing / n)."""
    cdef double uniform = task.label_smoothing / task.n, value
    cdef Py_ssize_t c
    for c in range(task.n):
        value = uniform
        if y != NULL:
            value += (1 - task.label_smoothing) * y[c]
        if task.class_weight != NULL:
            value *= task.class_weight[c]
        q[c] = <real>value


cdef void fill(real *out, Py_ssize_t n, double value) noexcept nogil:
    cdef Py_ssize_t i
    if out != NULL:
        for i in range(n):
            out[i] = <real>value


cdef inline void set_row_out(const Task *task, Py_ssize_t row, double value) noexcept nogil:
    if task.row_out != NULL:
        (<real *>task.row_out)[row] = <real>value


cdef inline double loss_of(double temperature, double target_logit, double spike, double log_s,
                           const Partial *whole) noexcept nogil:
    """spike (log S - z_target) + sum_c q_c (log S - z_c); every term is >= 0."""
    cdef double loss = 0, z
    if spike != 0:
        z = whole.max - target_logit
        loss = spike * ((z / temperature if z < INFINITY else z) + log_s)
    if whole.q != 0:
        loss += whole.q * log_s + whole.dot / temperature
    return loss


cdef inline double target_gradient(double from_softmax, double target_logit, double spike,
                                   double gradient, bint dense,
                                   const Partial *whole) noexcept nogil:
    """The target's own gradient; at a maximum 1 - p is R / S, which cancels nothing."""
    if target_logit == whole.max and not dense:
        return -gradient * spike * (all_but_one(whole) / whole_sum(whole))
    return from_softmax - gradient * spike


cdef inline void set_view(View *view, double temperature, double shift) noexcept nogil:
    cdef double beta = 1 / temperature
    view.shift = shift
    view.temperature = temperature
    view.beta_high = <real>beta
    # 1/T - beta_high, from the remainder of the division, whatever real is.
    view.beta_low = fma(-view.beta_high, temperature, 1.0) / temperature if beta != 0 else 0
    view.general = shift != 0 or temperature != 1


cdef inline bint is_one_hot(double temperature) noexcept nogil:
    """Temperature 0, or so small that 1/T overflows: the limit is taken."""
    return 1 / temperature > REAL_MAX


cdef void limit_row(int op, const real *x, const real *q, real *out, const Task *task,
                    Py_ssize_t row, double m) noexcept nogil:
    """Rows that no arithmetic is needed for: temperature 0, or a maximum of +-inf."""
    cdef Py_ssize_t i, ties = 0
    cdef double log_s, loss = 0, weight
    cdef bint nan = False
    for i in range(task.n):
        nan = nan or isnan(x[i])
        ties += x[i] == m
    if nan or m == INFINITY or m == -INFINITY:
        set_row_out(task, row, m if op == LOGSUMEXP and not nan else NAN)
        fill(out, task.n, NAN)
        return
    log_s = log1p_of_ratio(ties - 1, 1)
    for i in range(task.n):
        if op == SOFTMAX:
            out[i] = <real>(1.0 / ties if x[i] == m else 0.0)
        elif op == LOG_SOFTMAX:
            out[i] = <real>(-log_s if x[i] == m else -INFINITY)
        else:
            # Temperature 0 is refused for gradients, so this is the loss alone.
            weight = q[i] if q != NULL else 0
            if task.target != NULL and task.target[row] == i:
                weight += spike_weight(task, row)
            if weight != 0:
                loss += weight * log_s if x[i] == m else INFINITY
    if is_loss(op):
        set_row_out(task, row, loss)


cdef inline void finish(int op, const Task *task, Py_ssize_t row, double temperature,
                        double target_logit, double log_s, const Partial *whole) noexcept nogil:
    """The row's single value, if it has one."""
    if op == LOGSUMEXP:
        set_row_out(task, row, whole.max + log_s)
    elif is_loss(op):
        set_row_out(task, row, loss_of(temperature, target_logit, spike_weight(task, row),
                                       log_s, whole))


cdef inline void write_row(int op, bint general, bint dense, const real *x, const real *y,
                           const real *e, real *out, const Task *task, Py_ssize_t row,
                           Py_ssize_t begin, Py_ssize_t end, double target_logit,
                           const View *view, const Partial *whole,
                           const double *exponents) noexcept nogil:
    """Columns [begin, end) of the row's output; pointers are to column `begin`."""
    cdef Partial total = whole[0]
    cdef double gradient = 0, spike = 0
    cdef Py_ssize_t target
    if op == CROSS_ENTROPY_WITH_GRAD:
        gradient = task.gradient_scale / view.temperature
        spike = spike_weight(task, row)
        total.q += spike
    write(op, general, dense, x, y, e, out, end - begin, view, &total, exponents, gradient)
    if op == CROSS_ENTROPY_WITH_GRAD and task.target != NULL:
        target = task.target[row] - begin
        if 0 <= target < end - begin:
            out[target] = <real>target_gradient(out[target], target_logit, spike, gradient,
                                                dense, whole)


cdef struct Rows:
    # Contiguous rows at a regular distance; y and out may be NULL.
    const char *x
    const char *y
    char *out
    Py_ssize_t x_step, y_step, out_step
    Py_ssize_t first, count  # number of the first row in the task, how many


cdef inline const real *x_of(const Rows *rows, Py_ssize_t k) noexcept nogil:
    return <const real *>(rows.x + k * rows.x_step)

cdef inline const real *y_of(const Rows *rows, Py_ssize_t k) noexcept nogil:
    return <const real *>(rows.y + k * rows.y_step) if rows.y != NULL else NULL

cdef inline real *out_of(const Rows *rows, Py_ssize_t k) noexcept nogil:
    return <real *>(rows.out + k * rows.out_step) if rows.out != NULL else NULL


cdef enum:
    GATHERED = 1 << 18  # elements of rows gathered together: a second-level cache
    BATCH = 16  # rows whose logarithms are taken together, as vectors

cdef struct Batch:
    Partial[BATCH] whole
    double[BATCH] log_s
    double[BATCH] at_max
    double[BATCH] target_logit


cdef inline bint needs_log(int op) noexcept nogil:
    return op != SOFTMAX and not is_product(op)


cdef inline bint small_row(int op, int vectors, const real *x, const real *y, real *out,
                           const Task *task, Py_ssize_t row, double target_logit,
                           Partial *whole) noexcept nogil:
    """A row of up to one lane row, in registers; False if it is out of reach.

    Writes what needs no logarithm.
    """
    cdef vec zero = v_set1(0), lowest = v_set1(<real>-INFINITY), maximum, largest, value
    cdef vec high, low
    cdef Factor factor
    cdef vec[4] xv, yv, e, rest, low_rest
    cdef real[LANES] kept
    cdef uint64_t ties = 0
    cdef vmask present = v_first(task.n - (vectors - 1) * VLEN)
    cdef Scale scale
    cdef double gradient = 0, spike = 0
    cdef real m, exponent
    cdef int v, last = vectors - 1
    for v in range(last):
        xv[v] = v_load(x + v * VLEN)
    xv[last] = v_load_first(x + last * VLEN, present, zero if is_product(op) else lowest)
    for v in range(4):
        rest[v] = zero
    if is_product(op):
        for v in range(last):
            yv[v] = v_load(y + v * VLEN)
        yv[last] = v_load_first(y + last * VLEN, present, zero)
        for v in range(vectors):
            rest[v] = yv[v] if op == LOG_SOFTMAX_VJP else v_fma(xv[v], yv[v], zero)
        whole.dot = add_lanes(rest)
        if op == DOT:
            return True
        maximum = v_set1(<real>whole.dot)
        for v in range(vectors):
            e[v] = last_value(op, False, False, False, xv[v], yv[v], zero, zero, zero, maximum,
                              zero)
    else:
        largest = lowest
        for v in range(vectors):
            largest = v_max(xv[v], largest)
        m = v_reduce_max(largest)
        if not fabs(m) <= ANCHOR:
            return False
        # As exponent_of and set_scale, but in real: shorter by several conversions.
        exponent = 2 * ((m * (LOG2E / 2) + MAGIC) - MAGIC)
        scale.magic = v_set1((MAGIC + (HEADROOM + BIAS)) - exponent)
        scale.lowest = v_set1((exponent + (LOWEST_EXPONENT - HEADROOM)) * LN2_HIGH)
        maximum = v_set1(m)
        for v in range(4):
            low_rest[v] = zero
        for v in range(vectors):
            e[v] = exp_scaled(False, xv[v], &scale)
            rest[v] = v_set1(SPLITTER)
            add_split(v_ne(xv[v], maximum), e[v], &rest[v], &low_rest[v])
            rest[v] = v_sub(rest[v], v_set1(SPLITTER))
            ties |= v_bits(v_eq(xv[v], maximum)) << (v * VLEN)
            v_store(kept + v * VLEN, e[v])
        whole.rest = add_lanes(rest)
        whole.low = add_lanes(low_rest) if SPLITS else 0
        whole.count = count_bits(ties)
        whole.at_max = kept[first_bit(ties)]
        whole.max = m
        whole.dot = whole.q = 0
        if not stores_exp(op):
            return True
        if op == CROSS_ENTROPY_WITH_GRAD:
            gradient = task.gradient_scale
            spike = spike_weight(task, row)
        factor = divide(gradient * spike if op == CROSS_ENTROPY_WITH_GRAD else 1,
                        whole_sum(whole))
        high = v_set1(factor.high)
        low = v_set1(factor.low)
        for v in range(vectors):
            e[v] = v_multiply(e[v], high, low)
    for v in range(last):
        v_store(out + v * VLEN, e[v])
    v_store_first(out + last * VLEN, present, e[last])
    if op == CROSS_ENTROPY_WITH_GRAD:
        out[task.target[row]] = <real>target_gradient(
            out[task.target[row]], target_logit, spike, gradient, False, whole)
    return True


cdef inline bint block_row(int op, bint general, const real *x, const real *y, real *out, const Task *task,
                           Py_ssize_t row, double target_logit, const View *view, real *block,
                           Partial *whole) noexcept nogil:
    """A row of up to one block, its exponentials in scratch; otherwise like small_row."""
    cdef double m = -INFINITY, exponent = 0
    if not is_product(op):
        m = block_max(x, task.n)
        if not in_reach(view, m):
            return False
        exponent = exponent_of(view, m)
    add_block(op, general, False, x, y, block, task.n, view, m, exponent, whole)
    if stores_exp(op) or op == SOFTMAX_VJP or op == LOG_SOFTMAX_VJP:
        write_row(op, general, False, x, y, block, out, task, row, 0, task.n, target_logit, view,
                  whole, NULL)
    return True


cdef inline Py_ssize_t batched_rows(int op, bint general, int vectors, const Rows *rows, const Task *task,
                                    Py_ssize_t begin, const View *view,
                                    real *block) noexcept nogil:
    """Rows from `begin` on, up to the first that is out of reach or ignored, which it returns.

    vectors: how many a row takes; 0 for more than a lane row, or with a temperature.
    """
    cdef Batch batch
    cdef Py_ssize_t k, count, start = begin, row
    cdef Partial *whole
    cdef const real *x
    cdef real *out
    cdef double log_s
    cdef bint stopped = False
    while start < rows.count and not stopped:
        count = min(<Py_ssize_t>BATCH, rows.count - start)
        for k in range(count):
            row = rows.first + start + k
            x = x_of(rows, start + k)
            if is_loss(op):
                if task.target[row] == task.ignore_index:
                    stopped = True
                else:
                    batch.target_logit[k] = x[task.target[row]]
            if not stopped:
                if vectors > 0:
                    stopped = not small_row(op, vectors, x, y_of(rows, start + k),
                                            out_of(rows, start + k), task, row,
                                            batch.target_logit[k], &batch.whole[k])
                else:
                    stopped = not block_row(op, general, x, y_of(rows, start + k),
                                            out_of(rows, start + k), task, row,
                                            batch.target_logit[k], view, block,
                                            &batch.whole[k])
            if stopped:
                count = k
                break
            if needs_log(op):
                batch.log_s[k] = all_but_one(&batch.whole[k])
                batch.at_max[k] = batch.whole[k].at_max
        if needs_log(op):
            log1p_of_ratios(batch.log_s, batch.at_max, count)
        for k in range(count):
            row = rows.first + start + k
            whole = &batch.whole[k]
            if op == DOT:
                set_row_out(task, row, whole.dot)
            elif needs_log(op):
                log_s = batch.log_s[k]
                if op == LOG_SOFTMAX:
                    write_logs(general, x_of(rows, start + k), out_of(rows, start + k), task.n,
                               view, whole.max, log_s)
                else:
                    finish(op, task, row, view.temperature, batch.target_logit[k], log_s,
                           whole)
        start += count
    return start


cdef struct Scratch:
    real *block        # BLOCK reals
    double *exponents  # K of each block of a row, if a row is longer than that
    real *q            # q of a row, where it is not the target probabilities themselves
    real *x_rows       # gathered rows
    real *y_rows
    void *memory       # to free


cdef inline void large_row(int op, bint dense, const real *x, const real *y, real *out,
                           const Task *task, Py_ssize_t row, View *view,
                           const Scratch *scratch) noexcept nogil:
    """A row of any length, sweep by sweep."""
    cdef Partial whole
    cdef Py_ssize_t n = task.n
    cdef double target_logit = 0, start = -INFINITY, m
    cdef real *e = scratch.block if n <= BLOCK else out
    cdef double *exponents = scratch.exponents
    cdef bint swept
    if is_loss(op) and task.target != NULL:
        target_logit = x[task.target[row]]
    if is_product(op):
        sweep(op, False, False, x, y, e, n, view, start, &whole, exponents)
        if op == DOT:
            set_row_out(task, row, whole.dot)
            return
    else:
        if is_one_hot(view.temperature):
            limit_row(op, x, y, out, task, row, block_max(x, n))
            return
        if stores_exp(op) and n > BLOCK and <const real *>out == x:
            start = block_max(x, n)
        if view.general:
            swept = sweep(op, True, dense, x, y, e, n, view, start, &whole, exponents)
        else:
            swept = sweep(op, False, dense, x, y, e, n, view, start, &whole, exponents)
        if not swept or whole.max == -INFINITY:
            m = block_max(x, n)
            if fabs(m) > REAL_MAX:
                limit_row(op, x, y, out, task, row, m)
                return
            set_view(view, view.temperature, m)
            sweep(op, True, dense, x, y, e, n, view, m, &whole, exponents)
        finish(op, task, row, view.temperature, target_logit, log_sum(&whole), &whole)
    if op == LOGSUMEXP or op == CROSS_ENTROPY:
        return
    if view.general:
        write_row(op, True, dense, x, y, e, out, task, row, 0, n, target_logit, view, &whole,
                  exponents)
    else:
        write_row(op, False, dense, x, y, e, out, task, row, 0, n, target_logit, view, &whole,
                  exponents)


# ------------------------------------------------------------------------ ranges of rows

cdef inline const char *at(const Operand *operand, Py_ssize_t outer,
                           Py_ssize_t inner) noexcept nogil:
    return operand.data + outer * operand.outer + inner * operand.inner


cdef inline bint is_contiguous(const Operand *operand) noexcept nogil:
    return operand.data == NULL or operand.n == sizeof(real)


cdef void gather(const Operand *operand, const Operand *mask, Py_ssize_t outer,
                 Py_ssize_t inner, Py_ssize_t count, Py_ssize_t n, real *rows) noexcept nogil:
    """Copy `count` neighbouring rows into contiguous ones; masked elements become -inf."""
    cdef const char *source = at(operand, outer, inner)
    cdef const char *keep = at(mask, outer, inner) if mask.data != NULL else NULL
    cdef real impossible = <real>-INFINITY
    cdef Py_ssize_t c, k
    if operand.n == sizeof(real):
        for k in range(count):
            memcpy(rows + k * n, source + k * operand.inner, n * sizeof(real))
    else:
        for c in range(n):
            for k in range(count):
                rows[k * n + c] = (<const real *>(source + c * operand.n + k * operand.inner))[0]
    if keep != NULL:
        for k in range(count):
            hide(rows + k * n, keep + k * mask.inner, mask.n, n, impossible)


cdef inline void hide(real *row, const char *keep, Py_ssize_t step, Py_ssize_t n,
                      real value) noexcept nogil:
    """Put `value` wherever the mask is false."""
    cdef Py_ssize_t c
    if step == 1:
        for c in range(n):
            row[c] = row[c] if keep[c] else value
    else:
        for c in range(n):
            row[c] = row[c] if keep[c * step] else value


cdef void scatter(int op, const Operand *operand, const Operand *mask, Py_ssize_t outer,
                  Py_ssize_t inner, Py_ssize_t count, Py_ssize_t n, real *rows) noexcept nogil:
    """The way back; masked elements get the value of an impossible class."""
    cdef char *target = <char *>at(operand, outer, inner)
    cdef const char *keep = at(mask, outer, inner) if mask.data != NULL else NULL
    cdef Py_ssize_t c, k
    if keep != NULL:
        for k in range(count):
            hide(rows + k * n, keep + k * mask.inner, mask.n, n,
                 <real>(0 if op == SOFTMAX else -INFINITY))
    if operand.n == sizeof(real):
        for k in range(count):
            memcpy(target + k * operand.inner, rows + k * n, n * sizeof(real))
    else:
        for c in range(n):
            for k in range(count):
                (<real *>(target + c * operand.n + k * operand.inner))[0] = rows[k * n + c]


cdef bint is_masked_whole(const Operand *mask, Py_ssize_t outer, Py_ssize_t inner,
                          Py_ssize_t n) noexcept nogil:
    cdef const char *keep = at(mask, outer, inner)
    cdef Py_ssize_t c
    if mask.n == 1:
        return memchr(keep, 1, n) == NULL
    for c in range(n):
        if (keep + c * mask.n)[0]:
            return False
    return True


cdef inline void one_row(int op, const Rows *rows, Py_ssize_t k, const Task *task,
                         const View *view, bint dense, const Scratch *scratch) noexcept nogil:
    """A row of any length and kind."""
    cdef View own = view[0]
    cdef Py_ssize_t row = rows.first + k
    cdef const real *y = y_of(rows, k)
    cdef double base
    if is_loss(op) and task.target != NULL and task.target[row] == task.ignore_index:
        set_row_out(task, row, 0)
        fill(out_of(rows, k), task.n, 0)
        return
    if task.temperature_step != 0:
        set_view(&own, task.temperature[row * task.temperature_step], 0)
    if not dense:
        large_row(op, False, x_of(rows, k), y, out_of(rows, k), task, row, &own, scratch)
        return
    if task.target == NULL and scratch.q != NULL:
        fill_q(task, y, scratch.q)
    large_row(op, True, x_of(rows, k), <const real *>scratch.q if scratch.q != NULL else y,
              out_of(rows, k), task, row, &own, scratch)


cdef inline void each_row(int op, const Rows *rows, const Task *task, const View *view,
                          bint dense, const Scratch *scratch) noexcept nogil:
    """All rows, batched as long as nothing is special about them."""
    cdef bint batched = (task.n <= BLOCK and not dense and task.temperature_step == 0
                         and not is_one_hot(view.temperature))
    cdef Py_ssize_t k = 0
    while k < rows.count:
        if batched:
            if view.general:
                k = batched_rows(op, True, 0, rows, task, k, view, scratch.block)
            elif task.n > LANES:
                k = batched_rows(op, False, 0, rows, task, k, view, scratch.block)
            elif task.n > 3 * VLEN:
                k = batched_rows(op, False, 4, rows, task, k, view, NULL)
            elif task.n > 2 * VLEN:
                k = batched_rows(op, False, 3, rows, task, k, view, NULL)
            elif task.n > VLEN:
                k = batched_rows(op, False, 2, rows, task, k, view, NULL)
            else:
                k = batched_rows(op, False, 1, rows, task, k, view, NULL)
            if k == rows.count:
                return
        one_row(op, rows, k, task, view, dense, scratch)
        k += 1


cdef int get_scratch(const Task *task, Py_ssize_t together, bint needs_q, real *block,
                     Scratch *scratch) noexcept nogil:
    """Memory for what does not fit on the stack; `together` rows are gathered at a time."""
    cdef Py_ssize_t n = task.n, blocks = (n + BLOCK - 1) // BLOCK, reals = 0
    cdef real *free_reals
    scratch.block = block
    scratch.exponents = NULL
    scratch.q = NULL
    scratch.memory = NULL
    if needs_q:
        reals += n
    reals += together * n * (2 if task.y.data != NULL else 1)
    if reals == 0 and blocks <= 1:
        return 0
    scratch.memory = malloc(blocks * sizeof(double) + reals * sizeof(real))
    if scratch.memory == NULL:
        return -1
    if blocks > 1:
        scratch.exponents = <double *>scratch.memory
    free_reals = <real *>(<double *>scratch.memory + blocks)
    if needs_q:
        scratch.q = free_reals
        free_reals += n
    scratch.x_rows = free_reals
    scratch.y_rows = free_reals + together * n
    return 0


cdef inline int run_rows(int op, const Task *task, Py_ssize_t begin,
                         Py_ssize_t end) noexcept nogil:
    """Rows [begin, end): in place where they are contiguous, else by way of scratch."""
    cdef real[BLOCK] block
    cdef View view
    cdef Rows rows
    cdef Scratch scratch
    cdef Py_ssize_t n = task.n, row = begin, outer, inner, k
    cdef bint dense = is_dense(op, task), masked = task.mask.data != NULL
    cdef bint has_y = task.y.data != NULL, has_out = task.out.data != NULL
    cdef bint packed = (masked or not is_contiguous(&task.x) or not is_contiguous(&task.y)
                        or not is_contiguous(&task.out))
    # Neighbours along a short stride share cache lines, so they are copied together.
    cdef Py_ssize_t together = 0
    if packed:
        together = min(task.inner, max(<Py_ssize_t>1, min(<Py_ssize_t>64, GATHERED // n)))
    if get_scratch(task, together,
                   dense and (task.target != NULL or task.class_weight != NULL
                              or task.label_smoothing != 0), block, &scratch) != 0:
        return -1
    if dense and task.target != NULL:
        fill_q(task, NULL, scratch.q)
    set_view(&view, task.temperature[0], 0)
    if task.temperature_step != 0:
        view.general = True  # decided row by row

    while row < end:
        outer = row // task.inner
        inner = row - outer * task.inner
        rows.first = row
        if not packed:
            rows.count = end - row if task.inner == 1 else 1
            rows.x = at(&task.x, outer, inner)
            rows.y = at(&task.y, outer, inner) if has_y else NULL
            rows.out = NULL
            if has_out:
                rows.out = <char *>at(&task.out, outer, inner)
            rows.x_step = task.x.outer
            rows.y_step = task.y.outer
            rows.out_step = task.out.outer
            each_row(op, &rows, task, &view, dense, &scratch)
            row += rows.count
            continue
        rows.count = min(min(together, task.inner - inner), end - row)
        rows.x = <const char *>scratch.x_rows
        rows.y = <const char *>scratch.y_rows if has_y else NULL
        rows.out = NULL
        if has_out:
            rows.out = <char *>scratch.x_rows
        rows.x_step = rows.y_step = rows.out_step = n * <Py_ssize_t>sizeof(real)
        gather(&task.x, &task.mask, outer, inner, rows.count, n, scratch.x_rows)
        if has_y:
            gather(&task.y, &task.mask, outer, inner, rows.count, n, scratch.y_rows)
        each_row(op, &rows, task, &view, dense, &scratch)
        if has_out:
            scatter(op, &task.out, &task.mask, outer, inner, rows.count, n, scratch.x_rows)
        if masked and task.row_out != NULL:
            for k in range(rows.count):
                if is_masked_whole(&task.mask, outer, inner + k, n):
                    set_row_out(task, row + k, -INFINITY)
        row += rows.count
    free(scratch.memory)
    return 0


cdef int softmax_rows(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_rows(SOFTMAX, task, begin, end)

cdef int log_softmax_rows(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_rows(LOG_SOFTMAX, task, begin, end)

cdef int logsumexp_rows(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_rows(LOGSUMEXP, task, begin, end)

cdef int cross_entropy_rows(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_rows(CROSS_ENTROPY, task, begin, end)

cdef int cross_entropy_with_grad_rows(const Task *task, Py_ssize_t begin,
                                      Py_ssize_t end) noexcept nogil:
    return run_rows(CROSS_ENTROPY_WITH_GRAD, task, begin, end)

cdef int softmax_vjp_rows(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_rows(SOFTMAX_VJP, task, begin, end)

cdef int log_softmax_vjp_rows(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_rows(LOG_SOFTMAX_VJP, task, begin, end)

cdef int dot_rows(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_rows(DOT, task, begin, end)


# ---------------------------------------------------- one row shared by several threads

cdef inline Py_ssize_t piece_end(const Task *task, Py_ssize_t piece) noexcept nogil:
    return min((piece + 1) * PIECE, task.n)


cdef inline const real *piece_begin(const Operand *operand, const Task *task, Py_ssize_t row,
                                    Py_ssize_t piece) noexcept nogil:
    return <const real *>at(operand, row // task.inner, row % task.inner) + piece * PIECE


cdef inline void view_of_row(const Task *task, Py_ssize_t row, View *view) noexcept nogil:
    set_view(view, task.temperature[row * task.temperature_step], 0)


cdef double piece_max(const Task *task, Py_ssize_t row, Py_ssize_t piece) noexcept nogil:
    return block_max(piece_begin(&task.x, task, row, piece),
                     piece_end(task, piece) - piece * PIECE)


cdef inline bint sweep_one_piece(int op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                                 double start_max, Partial *result,
                                 double *exponents) noexcept nogil:
    cdef View view
    cdef const real *x = piece_begin(&task.x, task, row, piece)
    cdef Py_ssize_t n = piece_end(task, piece) - piece * PIECE
    cdef real *e = NULL
    view_of_row(task, row, &view)
    if is_one_hot(view.temperature):
        return False
    if stores_exp(op):
        e = <real *>piece_begin(&task.out, task, row, piece)
    exponents += piece * (PIECE // BLOCK)
    if view.general:
        return sweep(op, True, False, x, NULL, e, n, &view, start_max, result, exponents)
    return sweep(op, False, False, x, NULL, e, n, &view, start_max, result, exponents)


cdef inline void write_one_piece(int op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                                 const Partial *whole, const double *exponents) noexcept nogil:
    cdef View view
    cdef const real *x = piece_begin(&task.x, task, row, piece)
    cdef real *out = <real *>piece_begin(&task.out, task, row, piece)
    cdef Py_ssize_t n = piece_end(task, piece) - piece * PIECE
    view_of_row(task, row, &view)
    exponents += piece * (PIECE // BLOCK)
    if view.general:
        write(op, True, False, x, NULL, out, out, n, &view, whole, exponents, 0)
    else:
        write(op, False, False, x, NULL, out, out, n, &view, whole, exponents, 0)


cdef bint sweep_piece(Operation op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                      double start_max, Partial *result, double *exponents) noexcept nogil:
    if op == SOFTMAX:
        return sweep_one_piece(SOFTMAX, task, row, piece, start_max, result, exponents)
    return sweep_one_piece(LOGSUMEXP, task, row, piece, start_max, result, exponents)


cdef void write_piece(Operation op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                      const Partial *whole, const double *exponents) noexcept nogil:
    if op == SOFTMAX:
        write_one_piece(SOFTMAX, task, row, piece, whole, exponents)
    elif op == LOG_SOFTMAX:
        write_one_piece(LOG_SOFTMAX, task, row, piece, whole, exponents)


cdef void finish_row(Operation op, const Task *task, Py_ssize_t row,
                     const Partial *whole) noexcept nogil:
    if op == LOGSUMEXP:
        finish(LOGSUMEXP, task, row, 1, 0, log_sum(whole), whole)
