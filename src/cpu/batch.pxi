# Rows of up to a block, several in work at a time.
#
# A row of ten columns is one vector, and what is done once per row (two horizontal steps,
# a scale, a division, a logarithm) would take longer than its exponentials, each step
# waiting for the one before. So up to VLEN rows go through each step together, and what is
# done once per row is done for all of them in one vector.
#
# Mathematics, the order of additions and precision: row.pxi.
#
# Passes.  One read from memory, one write; maxima, exponentials and values each go once over what a
# first-level cache holds.

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
    GATHERED = 1 << 18       # elements of rows gathered together: a second-level cache
    EXP_SCRATCH = 2 * BLOCK  # of rows that are in work: half a first-level cache at most
    SCRATCH_VECTORS = 2 * BLOCK_VECTORS
    OUT_OF_CACHE = 4 << 20   # bytes of logits (measured: of less, in a cache, up to 0.9)

cdef enum:
    # For `vectors`:
    LONGER = -1   # rows of more than a chunk, up to a block
    FEW = -2      # rows so short that they are worked on column by column
    FEW_COLUMNS = 8  # as many as are worth transposing (measured)
    FEW_ROWS = 4     # from as many rows on

cdef struct Batch:
    vec[16] lanes, low_lanes, dot_lanes, q_lanes  # of every row, still to be joined
    real[16] max, at_max, magic, lowest, high, low_factor
    double[16] count, rest, low, dot, q, target_logit, spike, numerator
    double[16] log_s


cdef inline void join_lanes(bint largest, Py_ssize_t count, vec *lanes,
                            real *result) noexcept nogil:
    """Add the lanes of each of `count` vectors, or take the largest."""
    cdef Py_ssize_t k
    if count <= 2:
        for k in range(count):
            result[k] = v_reduce_max(lanes[k]) if largest else v_reduce_add(lanes[k])
        return
    for k in range(count, VLEN):
        lanes[k] = v_set1(0)
    v_store(result, v_reduce_each_max(lanes) if largest else v_reduce_each_add(lanes))


cdef inline void add_lanes(Py_ssize_t count, vec *lanes, double *result) noexcept nogil:
    cdef real[16] sums
    cdef Py_ssize_t k
    join_lanes(False, count, lanes, sums)
    for k in range(count):
        result[k] = sums[k]


cdef inline bint is_ignored(int op, const Task *task, Py_ssize_t row) noexcept nogil:
    return is_loss(op) and task.target != NULL and task.target[row] == task.ignore_index


cdef inline uint64_t out_of_reach(bint general, vec m, const View *view) noexcept nogil:
    """in_reach for every lane, m its maximum: those for which it is false."""
    cdef vec z = v_mul(m, v_set1(<real>view.beta_high)) if general else m
    return v_bits(v_not_less(v_abs(z), v_set1(ANCHOR)))


cdef inline void scale_lanes(bint general, vec m, const View *view, Scale *scale) noexcept nogil:
    """exponent_of and set_scale for every lane, m its maximum."""
    cdef vec z = m, magic = v_set1(MAGIC), exponent
    scale.shift = v_set1(0)
    scale.beta_high = v_set1(<real>view.beta_high)
    scale.beta_low = v_set1(<real>view.beta_low)
    if general:
        z = v_mul(m, scale.beta_high)
    z = v_max(z, v_set1(-ANCHOR))
    exponent = v_sub(v_add(v_mul(z, v_set1(LOG2E / 2)), magic), magic)
    exponent = v_add(exponent, exponent)
    scale.magic = v_sub(v_set1(MAGIC + 8 * HEADROOM), v_mul(exponent, v_set1(8)))
    scale.lowest = v_mul(v_add(v_sub(exponent, v_set1(HEADROOM)),
                               v_set1(LOWEST_EXPONENT if general else ZERO_EXPONENT)),
                         v_set1(LN2_HIGH))
    if general:
        scale.lowest = v_max(v_mul(scale.lowest, v_set1(<real>view.temperature)),
                             v_set1(-REAL_MAX))


cdef inline bint fetches_out(int op, int vectors, const Task *task) noexcept nogil:
    """Whether rows of `out` are worth asking for before the last sweep, which would wait for them."""
    return (has_elements(op) and (vectors == 0 or vectors == 4)
            and task.outer * task.inner * task.n > OUT_OF_CACHE // <Py_ssize_t>sizeof(real))


cdef inline void prefetch_row(const real *row, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i from 0 <= i < n by 64 // <Py_ssize_t>sizeof(real):
        prefetch(row + i)


cdef inline Py_ssize_t sum_batch(int op, bint general, bint dense, int vectors, const Rows *rows,
                                 const Task *task, Py_ssize_t start, Py_ssize_t count,
                                 const View *view, real *e, Py_ssize_t stride,
                                 Batch *batch) noexcept nogil:
    """Maxima, exponentials and sums of the batch.

    Returns how many rows come before the first out of reach; of the others nothing is done.
    """
    cdef vec m
    cdef Scale scale
    cdef LaneSums sums
    cdef uint64_t outside
    cdef Py_ssize_t k
    cdef bint ahead
    for k in range(count):
        batch.lanes[k] = lane_max(vectors, x_of(rows, start + k), task.n)
    join_lanes(True, count, batch.lanes, batch.max)
    for k in range(count, VLEN):
        batch.max[k] = 0
    m = v_load(batch.max)
    outside = out_of_reach(general, m, view)
    scale_lanes(general, m, view, &scale)
    if outside != 0:
        count = first_bit(outside)
    v_store(batch.magic, scale.magic)
    v_store(batch.lowest, scale.lowest)
    v_store(batch.at_max, exp_scaled(general, m, &scale))
    ahead = fetches_out(op, vectors, task)
    for k in range(count):
        if ahead:
            prefetch_row(out_of(rows, start + k), task.n)
        scale.magic = v_set1(batch.magic[k])
        scale.lowest = v_set1(batch.lowest[k])
        sum_lanes(kind_of(op), general, dense, False, vectors, x_of(rows, start + k),
                  y_of(rows, start + k), e + k * stride, True, task.n, &scale,
                  v_set1(batch.max[k]), &sums)
        batch.lanes[k] = sums.rest
        if SPLITS:
            batch.low_lanes[k] = sums.low
        if dense:
            batch.dot_lanes[k] = sums.dot
            batch.q_lanes[k] = sums.q
        batch.count[k] = ties_of(task.n, sums.others)
    add_lanes(count, batch.lanes, batch.rest)
    if SPLITS:
        add_lanes(count, batch.low_lanes, batch.low)
    if dense:
        add_lanes(count, batch.dot_lanes, batch.dot)
        add_lanes(count, batch.q_lanes, batch.q)
    return count


cdef inline double rest_of(bint long_sums, const Batch *batch, Py_ssize_t k) noexcept nogil:
    return batch.rest[k] + batch.low[k] if SPLITS or long_sums else batch.rest[k]


cdef inline void take_factors(bint long_sums, const double *numerator, Py_ssize_t count,
                              Batch *batch) noexcept nogil:
    """numerator / S of every row."""
    cdef Factor factor
    cdef Py_ssize_t k
    for k in range(count):
        factor = divide(numerator[k], batch.count[k] * batch.at_max[k]
                        + rest_of(long_sums, batch, k))
        batch.high[k] = factor.high
        batch.low_factor[k] = factor.low


cdef inline void take_logs(bint long_sums, Py_ssize_t count, Batch *batch) noexcept nogil:
    """log S of every row."""
    cdef double[16] unit
    cdef Py_ssize_t k
    for k in range(count):
        unit[k] = batch.at_max[k]
        batch.log_s[k] = rest_of(long_sums, batch, k) + (batch.count[k] - 1) * unit[k]
    log1p_of_ratios(batch.log_s, unit, count)


cdef Py_ssize_t sum_longer_batch(Kind kind, bint dense, const Rows *rows, Py_ssize_t n,
                                 Py_ssize_t start, Py_ssize_t count, const View *view,
                                 const Maxima *maxima, Batch *batch) noexcept nogil:
    """sum_batch for rows of up to a block, whose maxima are known.

    Exponentials go to `out`, so that its lines are fetched beside them and not in the last sweep.
    """
    cdef Partial whole
    cdef Py_ssize_t k
    for k in range(count):
        if not in_reach(view, maxima[k].whole):
            return k
        add_block(kind, dense, x_of(rows, start + k), y_of(rows, start + k),
                  out_of(rows, start + k), False, n, view, &maxima[k],
                  exponent_of(view, maxima[k].whole), &whole)
        batch.max[k] = <real>whole.max
        batch.at_max[k] = <real>whole.at_max
        batch.count[k] = whole.count
        batch.rest[k] = whole.rest
        batch.low[k] = whole.low
        batch.dot[k] = whole.dot
        batch.q[k] = whole.q
    return count


cdef inline void write_batch(int op, bint general, bint dense, int vectors, const Rows *rows,
                             const Task *task, Py_ssize_t start, Py_ssize_t count,
                             const View *view, real *e, Py_ssize_t stride,
                             Batch *batch) noexcept nogil:
    """What follows from the sums: factors and logarithms, then the outputs of the batch."""
    cdef Last last
    cdef Partial whole
    cdef double spike, gradient = task.gradient_scale / view.temperature
    cdef Py_ssize_t k, row
    cdef real *out
    cdef const real *exponentials
    last.beta_high = v_set1(<real>view.beta_high)
    last.beta_low = v_set1(<real>view.beta_low)
    if stores_exp(op):
        for k in range(count):
            row = rows.first + start + k
            batch.numerator[k] = 1
            if op == CROSS_ENTROPY_WITH_GRAD and not is_ignored(op, task, row):
                spike = spike_weight(task, row)
                batch.numerator[k] = gradient * (batch.q[k] + spike if dense else spike)
        take_factors(vectors == LONGER, batch.numerator, count, batch)
        if vectors == FEW:
            write_few(SOFTMAX, rows, task.n, start, count, e, batch)
    if needs_log(op):
        take_logs(vectors == LONGER, count, batch)
    if op == LOG_SOFTMAX and vectors == FEW:
        for k in range(count):
            batch.high[k] = <real>batch.log_s[k]
        write_few(LOG_SOFTMAX, rows, task.n, start, count, e, batch)
    if (op == SOFTMAX or op == LOG_SOFTMAX) and vectors == FEW:
        return
    for k in range(count):
        row = rows.first + start + k
        out = out_of(rows, start + k)
        if is_ignored(op, task, row):
            set_row_out(task, row, 0)
            fill(out, task.n, 0)
            continue
        if op == DOT:
            set_row_out(task, row, batch.rest[k])
        elif op == LOGSUMEXP:
            set_row_out(task, row, batch.max[k] + batch.log_s[k])
        elif op == LOG_SOFTMAX:
            last.m = v_set1(batch.max[k])
            last.high = v_set1(<real>batch.log_s[k])
            write_columns(op, general, False, False, vectors, x_of(rows, start + k), NULL, False,
                          out, task.n, &last)
        elif is_product(op):
            last.m = v_set1(<real>batch.rest[k])
            write_columns(op, general, False, False, vectors, x_of(rows, start + k),
                          y_of(rows, start + k), False, out, task.n, &last)
        exponentials = out if vectors == LONGER else e + k * stride
        if vectors <= 0 and is_watched(op, task):
            write_row_with_top(exponentials, out, batch.high[k], batch.low_factor[k], task, row)
            continue
        if stores_exp(op) and vectors != FEW:
            last.high = v_set1(batch.high[k])
            last.low = v_set1(batch.low_factor[k])
            last.m = v_set1(<real>-gradient)
            write_columns(SOFTMAX, False, dense, False, vectors, exponentials,
                          y_of(rows, start + k), vectors != LONGER, out, task.n, &last)
        if is_loss(op):
            whole.max = batch.max[k]
            whole.at_max = batch.at_max[k]
            whole.count = batch.count[k]
            whole.rest = batch.rest[k]
            whole.low = batch.low[k] if SPLITS or vectors == LONGER else 0
            whole.dot = batch.dot[k] if dense else 0
            whole.q = batch.q[k] if dense else 0
            spike = spike_weight(task, row)
            set_row_out(task, row, loss_of(view.temperature, batch.target_logit[k], spike,
                                           batch.log_s[k], &whole))
            if op == CROSS_ENTROPY_WITH_GRAD and task.target != NULL:
                out[task.target[row]] = <real>target_gradient(
                    out[task.target[row]], batch.target_logit[k], spike, gradient, dense, &whole)


cdef inline void prefetch_short_rows(int op, const Rows *rows, Py_ssize_t bytes,
                                     Py_ssize_t start) noexcept nogil:
    """Ask memory for rows of one vector, whose masked loads and stores do not overlap misses."""
    cdef const char *x = <const char *>x_of(rows, start) + AHEAD_SHORT
    cdef const char *y = <const char *>y_of(rows, start) + AHEAD_SHORT
    cdef const char *out = <const char *>out_of(rows, start) + AHEAD_SHORT
    cdef Py_ssize_t i
    for i from 0 <= i < bytes by 64:
        prefetch(x + i)
        if is_product(op):
            prefetch(y + i)
        prefetch(out + i)


cdef inline Py_ssize_t batched_rows(int op, bint general, bint dense, int vectors,
                                    const Rows *all_rows, const Task *whole_task,
                                    Py_ssize_t begin, const View *whole_view,
                                    real *block) noexcept nogil:
    """Rows from `begin` on, up to the first out of reach, which it returns.

    vectors: how many a row takes; 0 for up to a chunk, or with a temperature; or FEW or LONGER.
    """
    # Copies, of which the compiler knows that no store to memory changes them.
    cdef Rows own_rows = all_rows[0]
    cdef Task own_task = whole_task[0]
    cdef View own_view = whole_view[0]
    cdef const Rows *rows = &own_rows
    cdef const Task *task = &own_task
    cdef const View *view = &own_view
    cdef Batch batch
    cdef LaneSums sums
    cdef Partial whole
    cdef Maxima[4] maxima  # more than there are rows longer than a chunk in a block
    cdef Py_ssize_t k, row, count, usable, start = begin
    cdef Py_ssize_t stride = (task.n + VLEN - 1) // VLEN * VLEN
    # The logits of longer rows are to stay in a first-level cache beside their exponentials, both
    # factors of products beside what is written.
    cdef Py_ssize_t room = BLOCK if vectors == LONGER or is_product(op) else EXP_SCRATCH
    cdef Py_ssize_t most = min(VLEN, room // stride)
    if vectors > 0 or vectors == FEW:
        most = VLEN
    if vectors == LONGER and not is_product(op):
        for k in range(min(most, rows.count - start)):
            find_maxima(x_of(rows, start + k), task.n, &maxima[k])
    while start < rows.count:
        count = min(most, rows.count - start)
        usable = count
        if vectors == 1 and has_elements(op):
            prefetch_short_rows(op, rows, count * task.n * <Py_ssize_t>sizeof(real), start)
        if is_loss(op):
            for k in range(count):
                row = rows.first + start + k
                batch.target_logit[k] = 0
                if task.target != NULL and task.target[row] != task.ignore_index:
                    batch.target_logit[k] = x_of(rows, start + k)[task.target[row]]
        if is_product(op) and vectors == LONGER:
            for k in range(count):
                add_block(kind_of(op), False, x_of(rows, start + k), y_of(rows, start + k), NULL,
                          False, task.n, view, NULL, 0, &whole)
                batch.rest[k] = whole.dot
        elif is_product(op):
            for k in range(count):
                sum_lanes(kind_of(op), False, False, False, vectors, x_of(rows, start + k),
                          y_of(rows, start + k), NULL, False, task.n, NULL, v_set1(0), &sums)
                batch.lanes[k] = sums.dot
            add_lanes(count, batch.lanes, batch.rest)
        elif vectors == FEW:
            usable = sum_few(op, rows, task.n, start, count, view, block, &batch)
        elif vectors == LONGER:
            usable = sum_longer_batch(kind_of(op), dense, rows, task.n, start, count, view,
                                      maxima, &batch)
            # Those of the next rows, while the sums of these are still being added.
            for k in range(min(most, rows.count - start - count)):
                find_maxima(x_of(rows, start + count + k), task.n, &maxima[k])
        else:
            usable = sum_batch(op, general, dense, vectors, rows, task, start, count, view, block,
                               stride, &batch)
        write_batch(op, general, dense, vectors, rows, task, start, usable, view, block, stride,
                    &batch)
        start += usable
        if usable < count:
            break
    return start


ctypedef Py_ssize_t (*BatchFunction)(const Rows *, const Task *, Py_ssize_t, const View *,
                                     real *) noexcept nogil
# batched_rows by its first arguments, `vectors` from FEW on; filled in instances.pxi.in.
cdef BatchFunction[8][2][2][7] batches


cdef inline int vectors_of(int op, bint general, bint dense, Py_ssize_t n,
                           Py_ssize_t count) noexcept nogil:
    """How batched_rows is to go through `count` rows of n columns."""
    if n > CHUNK:
        return LONGER
    if general or dense or n > LANES:
        return 0
    if n > min(VLEN, FEW_COLUMNS) or is_product(op) or count < FEW_ROWS:
        return <int>((n + VLEN - 1) // VLEN)
    return FEW
