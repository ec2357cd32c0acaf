# Operations along another axis than the last.
#
# Mathematics, precision and the order of additions are those of row.pxi; here a lane is
# one row, so nothing is ever added across lanes. A panel is eight vectors of neighbouring
# rows (four of long ones), block after block of its columns.
#
# Passes over a block: its columns are packed next to each other (a stride of a power of two
# would put them all into the same few sets of the cache), then everything is done there, and
# the result goes to `out`. Rows of up to one block: one read, one write. Longer: exponentials
# go to `out`, to be scaled in a last sweep. Rows out of reach, and all rows at temperature 0,
# go through row.pxi.

cdef enum:
    WIDE = 8  # vectors in a panel (measured: 4 and 16 are slower)
    UNIT = 4  # vectors that are not divided among threads
    # Of more columns, UNIT vectors in a panel: WIDE are more than a second-level cache holds.
    WIDE_COLUMNS = BLOCK // 2

cdef struct Panel:
    const char *x
    const char *y     # or NULL
    const char *keep  # the mask, or NULL
    char *out         # or NULL
    Py_ssize_t n, x_step, y_step, keep_step, keep_inner, out_step
    Py_ssize_t row  # number of its first row in the task
    int vectors     # with rows in them
    Py_ssize_t last_count  # rows in the last of them
    vmask last             # its lanes that are
    int back               # rows of the vector before that it takes again, to have one in every lane
    int full               # its vectors if they are WIDE or half of that, with rows in all lanes
    bint dense             # whether every class has a target weight q of its own
    bint asks_ahead        # whether memory is asked for the next panel while this one is in work

cdef enum:
    # Measured: above, the next panel takes too much of the caches; below, it is in one already.
    AHEAD_COLUMNS = 128
    FROM_MEMORY = 16 << 20  # bytes
    # Of more columns, memory is asked for the one that is so many further on: where columns lie
    # pages apart, processors do not foresee it.
    COLUMNS_AHEAD = 8

cdef struct PanelScratch:
    real *packed       # a block of columns for each vector
    real *packed_y     # likewise of y, or of q; of a q that all rows share only once
    Py_ssize_t y_next  # from one vector's to the next
    double *exponents  # K of each row, block by block
    Partial *stack     # UNIT * VLEN to a level of the tree over blocks


cdef inline vec panel_load(bint full, const char *p, const Panel *panel, int v) noexcept nogil:
    cdef const real *source = <const real *>p + v * VLEN
    return (v_fetch(source) if full or v < panel.vectors - 1
            else v_load_first(source, panel.last, v_set1(0)))


cdef inline Py_ssize_t rows_of(const Panel *panel, int v) noexcept nogil:
    return VLEN if v < panel.vectors - 1 else panel.last_count


cdef inline void panel_store(bint full, char *p, const Panel *panel, int v,
                             vec value) noexcept nogil:
    cdef real *target = <real *>p + v * VLEN
    if full or v < panel.vectors - 1:
        v_store(target, value)
    else:
        v_store_first(target, panel.last_count, value)


cdef inline vmask kept(const Panel *panel, Py_ssize_t c, int v) noexcept nogil:
    """Where the mask is true in column c."""
    cdef const char *keep = panel.keep + c * panel.keep_step
    cdef char[16] flags  # a whole vector's would be read beyond the mask
    cdef Py_ssize_t k
    if panel.keep_inner == 0:
        return v_first(VLEN if keep[0] else 0)
    if v < panel.vectors - 1:
        return v_true(keep + v * VLEN)
    for k in range(VLEN):
        flags[k] = keep[v * VLEN + k] if k < panel.last_count else 1
    return v_true(flags)


cdef void pack(const Panel *panel, Py_ssize_t begin, Py_ssize_t end, real *packed,
               vec *maximum) noexcept nogil:
    """Columns [begin, end) of each vector, one after the other, and their maxima."""
    if panel.keep != NULL:
        pack_as(True, 0, panel, begin, end, packed, maximum)
    elif panel.full == WIDE:
        pack_as(False, WIDE, panel, begin, end, packed, maximum)
    elif panel.full:
        pack_as(False, WIDE // 2, panel, begin, end, packed, maximum)
    else:
        pack_as(False, 0, panel, begin, end, packed, maximum)


cdef inline void pack_as(bint masked, int full, const Panel *panel, Py_ssize_t begin,
                         Py_ssize_t end, real *packed, vec *maximum) noexcept nogil:
    cdef vec[WIDE] m
    cdef vec xv, lowest = v_set1(<real>-INFINITY)
    cdef const char *column = panel.x + begin * panel.x_step
    cdef Py_ssize_t c, step = panel.x_step
    cdef bint many = end - begin > AHEAD_COLUMNS
    cdef int v, vectors = full if full else panel.vectors
    for v in range(vectors):
        m[v] = lowest
    for c in range(begin, end):
        for v in range(vectors):
            if many:
                prefetch(column + COLUMNS_AHEAD * step + v * <Py_ssize_t>(VLEN * sizeof(real)))
            xv = panel_load(full, column, panel, v)
            if masked:
                xv = v_where(kept(panel, c, v), xv, lowest)
            m[v] = v_max(xv, m[v])
            v_store(packed + v * packed_at(BLOCK) + packed_at(c - begin), xv)
        column += step
    for v in range(vectors):
        maximum[v] = m[v]


cdef void pack_plainly(const Panel *panel, const char *column, Py_ssize_t step,
                       Py_ssize_t columns, real *packed) noexcept nogil:
    """pack without a mask or maxima."""
    if panel.full == WIDE:
        pack_plainly_as(WIDE, panel, column, step, columns, packed)
    elif panel.full:
        pack_plainly_as(WIDE // 2, panel, column, step, columns, packed)
    else:
        pack_plainly_as(0, panel, column, step, columns, packed)


cdef inline void pack_plainly_as(int full, const Panel *panel, const char *column,
                                 Py_ssize_t step, Py_ssize_t columns,
                                 real *packed) noexcept nogil:
    cdef Py_ssize_t c
    cdef int v, vectors = full if full else panel.vectors
    for c in range(columns):
        for v in range(vectors):
            v_store(packed + v * packed_at(BLOCK) + packed_at(c),
                    panel_load(full, column, panel, v))
        column += step


cdef void pack_q(const Task *task, const Panel *panel, Py_ssize_t begin, Py_ssize_t end,
                 const PanelScratch *scratch) noexcept nogil:
    """Target weights of columns [begin, end), without what sits at the target class alone."""
    cdef real *q
    cdef Py_ssize_t c, k
    cdef int v
    if task.target != NULL:
        for c in range(begin, end):
            v_store(scratch.packed_y + packed_at(c - begin), v_set1(target_weight(task, c, 0)))
        return
    pack_plainly(panel, panel.y + begin * panel.y_step, panel.y_step, end - begin,
                 scratch.packed_y)
    if task.class_weight == NULL and task.label_smoothing == 0:
        return
    for v in range(panel.vectors):
        for c in range(begin, end):
            q = scratch.packed_y + v * scratch.y_next + packed_at(c - begin)
            for k in range(VLEN):
                q[k] = target_weight(task, c, q[k])


cdef inline void write_packed(int op, bint general, bint dense, const Panel *panel,
                              Py_ssize_t begin, Py_ssize_t end, const PanelScratch *scratch,
                              const Last *last, const uint64_t *outside) noexcept nogil:
    """last_value of what is packed, to `out`, but for vectors with rows out of reach."""
    cdef uint64_t any_outside = 0
    cdef int v
    for v in range(panel.vectors):
        any_outside |= outside[v]
    if (op == SOFTMAX or op == LOG_SOFTMAX) and panel.keep != NULL:
        write_packed_as(op, general, dense, True, 0, panel, begin, end, scratch, last, outside)
    elif panel.full == WIDE and any_outside == 0:
        write_packed_as(op, general, dense, False, WIDE, panel, begin, end, scratch, last, outside)
    elif panel.full and any_outside == 0:
        write_packed_as(op, general, dense, False, WIDE // 2, panel, begin, end, scratch, last,
                        outside)
    else:
        write_packed_as(op, general, dense, False, 0, panel, begin, end, scratch, last, outside)


cdef inline void write_packed_as(int op, bint general, bint dense, bint masked, int full,
                                 const Panel *panel, Py_ssize_t begin, Py_ssize_t end,
                                 const PanelScratch *scratch, const Last *last,
                                 const uint64_t *outside) noexcept nogil:
    """full: as in a panel, where every vector is to be written."""
    # Here, because compilers take vectors' stores for writes to any structure.
    cdef const real *packed = scratch.packed
    cdef const real *packed_y = scratch.packed_y
    cdef Py_ssize_t y_next = scratch.y_next, step = panel.out_step
    cdef char *out = panel.out + begin * step
    cdef vec zero = v_set1(0), value, yv = zero
    cdef vec hidden = zero if op == SOFTMAX else v_set1(<real>-INFINITY)
    cdef Py_ssize_t c
    cdef int v, vectors = full if full else panel.vectors
    for c in range(begin, end):
        for v in range(vectors):
            if full or outside[v] == 0:
                value = v_load(packed + v * packed_at(BLOCK) + packed_at(c - begin))
                if dense:
                    yv = v_load(packed_y + v * y_next + packed_at(c - begin))
                value = last_value(op, general, dense, False, value, yv, &last[v])
                if masked:
                    value = v_where(kept(panel, c, v), value, hidden)
                panel_store(full, out, panel, v, value)
        out += step


cdef inline bint take_targets(const Task *task, const Panel *panel, Batch *batches) noexcept nogil:
    """Logit and weight of each row's target, 0 where there is none. Whether all rows have one."""
    cdef const char *x
    cdef const int64_t *target
    cdef const double *weight = task.class_weight
    cdef int64_t ignored = task.ignore_index
    cdef double share = 1 - task.label_smoothing
    cdef Batch *batch
    cdef Py_ssize_t k, step = panel.x_step
    cdef bint complete = True
    cdef int v
    for v in range(panel.vectors):
        x = panel.x + v * (VLEN * sizeof(real))
        batch = &batches[v]
        for k in range(VLEN):
            batch.target_logit[k] = batch.spike[k] = batch.dot[k] = batch.q[k] = 0
        if task.target == NULL:
            continue
        target = task.target + panel.row + v * VLEN
        for k in range(rows_of(panel, v)):
            if target[k] == ignored:
                complete = False
                continue
            batch.target_logit[k] = (<const real *>(x + target[k] * step))[k]
            batch.spike[k] = share * weight[target[k]] if weight != NULL else share
    return complete


cdef inline void set_last(int op, const Task *task, const Panel *panel, const View *view,
                          Batch *batches, Last *last) noexcept nogil:
    """What follows from the sums of every vector of rows; a row's value, if it has one."""
    cdef double gradient = 1
    cdef double[WIDE * 16] log_s, unit
    cdef real[16] values
    cdef Batch *batch
    cdef Py_ssize_t k
    cdef int v
    if op == CROSS_ENTROPY_WITH_GRAD:
        gradient = task.gradient_scale / view.temperature
    for v in range(panel.vectors):
        batch = &batches[v]
        last[v].beta_high = v_set1(<real>view.beta_high)
        last[v].beta_low = v_set1(<real>view.beta_low)
        last[v].m = v_load(batch.max)
        if stores_exp(op):
            for k in range(VLEN):
                batch.numerator[k] = 1
            if op == CROSS_ENTROPY_WITH_GRAD:
                last[v].m = v_set1(<real>-gradient)
                for k in range(VLEN):
                    batch.numerator[k] = gradient * (batch.q[k] + batch.spike[k])
            take_factors(True, batch.numerator, VLEN, batch)
            last[v].high = v_load(batch.high)
            last[v].low = v_load(batch.low_factor)
    if not needs_log(op):
        return
    for v in range(panel.vectors):
        batch = &batches[v]
        for k in range(VLEN):
            unit[v * VLEN + k] = batch.at_max[k]
            log_s[v * VLEN + k] = ((batch.rest[k] + batch.low[k])
                                   + (batch.count[k] - 1) * <double>batch.at_max[k])
    log1p_of_ratios(log_s, unit, panel.vectors * VLEN)
    for v in range(panel.vectors):
        batch = &batches[v]
        if is_loss(op) and (panel.dense or view.general):
            set_losses(view.temperature, &log_s[v * VLEN], batch, values)
        elif is_loss(op):
            for k in range(VLEN):
                values[k] = <real>spike_loss(batch.max[k], batch.target_logit[k],
                                             batch.spike[k], log_s[v * VLEN + k])
        else:
            for k in range(VLEN):
                values[k] = <real>(log_s[v * VLEN + k]
                                   + (batch.max[k] if op == LOGSUMEXP else 0))
        if op == LOG_SOFTMAX:
            last[v].high = v_load(values)
        else:
            panel_store(False, <char *>(<real *>task.row_out + panel.row), panel, v, v_load(values))


cdef void set_losses(double temperature, const double *log_s, const Batch *batch,
                     real *losses) noexcept nogil:
    cdef Partial whole
    cdef Py_ssize_t k
    for k in range(VLEN):
        whole.max = batch.max[k]
        whole.dot = batch.dot[k]
        whole.q = batch.q[k]
        losses[k] = <real>loss_of(temperature, batch.target_logit[k], batch.spike[k], log_s[k],
                                  &whole)


cdef inline double spike_loss(double maximum, double target_logit, double spike,
                              double log_s) noexcept nogil:
    """loss_of at temperature 1 and without other weights, for compilers to make vectors of."""
    cdef double loss = spike * ((maximum - target_logit) + log_s)
    return loss if spike != 0 else 0 * log_s


cdef inline void write_targets(const Task *task, const Panel *panel, const View *view,
                               const Batch *batches, const uint64_t *outside) noexcept nogil:
    """target_gradient, but for rows out of reach."""
    cdef Partial whole
    cdef const Batch *batch
    cdef double gradient = task.gradient_scale / view.temperature
    cdef double[16] at_max, step
    cdef real *at_target
    cdef char *out
    cdef const int64_t *target
    cdef int64_t ignored = task.ignore_index
    cdef Py_ssize_t k, out_step = panel.out_step
    cdef bint dense = panel.dense
    cdef int v
    if task.target == NULL:
        return
    for v in range(panel.vectors):
        if outside[v] != 0:
            continue
        batch = &batches[v]
        for k in range(VLEN):
            whole.at_max = batch.at_max[k]
            whole.count = batch.count[k]
            whole.rest = batch.rest[k]
            whole.low = batch.low[k]
            step[k] = gradient * batch.spike[k]
            at_max[k] = -step[k] * (all_but_one(&whole) / whole_sum(&whole))
        out = panel.out + v * (VLEN * sizeof(real))
        target = task.target + panel.row + v * VLEN
        for k in range(rows_of(panel, v)):
            if target[k] == ignored:
                continue
            at_target = <real *>(out + target[k] * out_step) + k
            at_target[0] = <real>(
                at_max[k] if batch.target_logit[k] == batch.max[k] and not dense
                else at_target[0] - step[k])


cdef void clear_ignored(int op, const Task *task, const Panel *panel,
                        const uint64_t *outside) noexcept nogil:
    """Zeros for the rows without a target, whatever is in them."""
    cdef Py_ssize_t c, k, row
    cdef int v
    for v in range(panel.vectors):
        for k in range(rows_of(panel, v)):
            row = panel.row + v * VLEN + k
            if task.target[row] != task.ignore_index:
                continue
            set_row_out(task, row, 0)
            if op == CROSS_ENTROPY_WITH_GRAD and outside[v] == 0:
                for c in range(panel.n):
                    (<real *>(panel.out + c * panel.out_step))[v * VLEN + k] = 0


cdef inline void finish_losses(int op, const Task *task, const Panel *panel, const View *view,
                               bint complete, const Batch *batches,
                               const uint64_t *outside) noexcept nogil:
    """What distinguishes gradients from probabilities, and ignored rows from others."""
    if op == CROSS_ENTROPY_WITH_GRAD:
        write_targets(task, panel, view, batches, outside)
    if not complete:
        clear_ignored(op, task, panel, outside)


cdef inline void short_panel(int op, const Task *task, const Panel *panel, const View *view,
                             const PanelScratch *scratch, uint64_t *outside) noexcept nogil:
    """A panel of up to one block; `outside`: of each vector the lanes that are out of reach."""
    cdef Batch[WIDE] batches
    cdef Last[WIDE] last
    cdef vec[WIDE] m
    cdef real *packed
    cdef Columns ahead  # of the next panel
    cdef bint complete = True
    cdef int v
    ahead.first = panel.x + panel.vectors * VLEN * <Py_ssize_t>sizeof(real)
    ahead.step = panel.x_step
    pack(panel, 0, panel.n, scratch.packed, m)
    if panel.dense and task.target == NULL:
        pack_q(task, panel, 0, panel.n, scratch)
    if is_loss(op):
        complete = take_targets(task, panel, batches)
    for v in range(panel.vectors):
        packed = scratch.packed + v * packed_at(BLOCK)
        outside[v] = out_of_reach(view.general, m[v], view)
        sum_columns(kind_of(op), panel.dense, panel.n, packed,
                    scratch.packed_y + v * scratch.y_next, packed, m[v], view,
                    &ahead if panel.asks_ahead else NULL, &batches[v])
        ahead.first += VLEN * sizeof(real)
    set_last(op, task, panel, view, batches, last)
    if op == LOG_SOFTMAX and view.general:
        write_packed(op, True, False, panel, 0, panel.n, scratch, last, outside)
    elif op == CROSS_ENTROPY_WITH_GRAD and panel.dense:
        write_packed(op, False, True, panel, 0, panel.n, scratch, last, outside)
    elif has_elements(op):
        write_packed(op, False, False, panel, 0, panel.n, scratch, last, outside)
    if is_loss(op):
        finish_losses(op, task, panel, view, complete, batches, outside)


cdef inline int row_by_row(int op, const Task *task, Py_ssize_t begin,
                           Py_ssize_t end) noexcept nogil:
    if op == SOFTMAX:
        return softmax_rows(task, begin, end)
    if op == LOG_SOFTMAX:
        return log_softmax_rows(task, begin, end)
    if op == LOGSUMEXP:
        return logsumexp_rows(task, begin, end)
    if op == CROSS_ENTROPY:
        return cross_entropy_rows(task, begin, end)
    return cross_entropy_with_grad_rows(task, begin, end)


cdef inline void set_steps(const Task *task, Panel *panel) noexcept nogil:
    panel.n = task.n
    panel.x_step = task.x.n
    panel.y_step = task.y.n
    panel.out_step = task.out.n
    panel.keep_step = task.mask.n
    panel.keep_inner = task.mask.inner


cdef inline Py_ssize_t units_of(const Task *task) noexcept nogil:
    """Of one outer index."""
    return (task.inner + UNIT * VLEN - 1) // (UNIT * VLEN)


cdef inline Py_ssize_t units_together(const Task *task, Py_ssize_t begin, Py_ssize_t end,
                                      Py_ssize_t most) noexcept nogil:
    """How many units to take at a time, up to `most`.

    Fewer than all of a thread's: neighbours, which share cache lines of `out`, would write to
    these at the same time.
    """
    if begin == 0 and end == task.outer * units_of(task):
        return most
    return min(most, (end - begin + 1) // 2)


cdef inline Py_ssize_t place(const Task *task, Py_ssize_t index, Py_ssize_t end,
                             Py_ssize_t most, Panel *panel) noexcept nogil:
    """Put units from `index` on into a panel, up to `most` of one outer index; how many."""
    cdef Py_ssize_t per_outer = units_of(task), outer = index // per_outer
    cdef Py_ssize_t inner = (index - outer * per_outer) * (UNIT * VLEN)
    cdef Py_ssize_t units = min(min(end - index, most), (outer + 1) * per_outer - index)
    cdef Py_ssize_t count = min(units * (UNIT * VLEN), task.inner - inner)
    panel.vectors = <int>((count + VLEN - 1) // VLEN)
    panel.last_count = count - (panel.vectors - 1) * VLEN
    panel.last = v_first(panel.last_count)
    panel.full = 0
    if panel.last_count == VLEN and (panel.vectors == WIDE or panel.vectors == WIDE // 2):
        panel.full = panel.vectors
    panel.row = outer * task.inner + inner
    panel.x = at(&task.x, outer, inner)
    panel.y = at(&task.y, outer, inner) if task.y.data != NULL else NULL
    panel.keep = at(&task.mask, outer, inner) if task.mask.data != NULL else NULL
    panel.out = <char *>at(&task.out, outer, inner) if task.out.data != NULL else NULL
    return units


cdef inline real *at_line(char *memory) noexcept nogil:
    """The first cache line from there on: 1.02 to 1.07 of the speed."""
    return <real *>(memory + (-<Py_ssize_t>memory & 63))


cdef inline int run_panels(int op, const Task *task, Py_ssize_t begin,
                           Py_ssize_t end) noexcept nogil:
    """Units [begin, end), counted along the inner dimension, outer by outer."""
    cdef Py_ssize_t index = begin, columns = UNIT * VLEN, rows_end
    cdef Py_ssize_t most = units_together(task, begin, end,
                                          WIDE // UNIT if task.n <= WIDE_COLUMNS else 1)
    cdef Py_ssize_t blocks = (task.n + BLOCK - 1) // BLOCK, levels = 2
    cdef Py_ssize_t room = packed_at(BLOCK) * WIDE
    cdef View view
    cdef Panel panel
    cdef PanelScratch scratch
    cdef uint64_t[WIDE] outside
    cdef char *memory
    cdef int v, failed = 0
    while (<Py_ssize_t>1 << levels) <= 2 * blocks:
        levels += 1
    panel.dense = is_dense(op, task)
    panel.asks_ahead = (task.n <= AHEAD_COLUMNS and task.outer * task.inner * task.n
                        > FROM_MEMORY // <Py_ssize_t>sizeof(real))
    memory = <char *>malloc(columns * (blocks * sizeof(double) + levels * sizeof(Partial))
                            + (2 * room if panel.dense else room) * sizeof(real) + 64)
    if memory == NULL:
        return -1
    scratch.exponents = <double *>memory
    scratch.stack = <Partial *>(scratch.exponents + blocks * columns)
    scratch.packed = at_line(<char *>(scratch.stack + levels * columns))
    scratch.packed_y = scratch.packed + room
    scratch.y_next = packed_at(BLOCK) if task.y.data != NULL else 0
    set_view(&view, task.temperature[0], 0)
    set_steps(task, &panel)
    if panel.dense and task.target != NULL and task.n <= BLOCK:
        pack_q(task, &panel, 0, task.n, &scratch)
    while index < end and failed == 0:
        index += place(task, index, end, most, &panel)
        rows_end = panel.row + (panel.vectors - 1) * VLEN + panel.last_count
        if is_one_hot(view.temperature):
            failed |= row_by_row(op, task, panel.row, rows_end)
        elif task.n > BLOCK:
            if not long_panel(op, task, &panel, &view, &scratch):
                failed |= row_by_row(op, task, panel.row, rows_end)
        else:
            short_panel(op, task, &panel, &view, &scratch, outside)
            for v in range(panel.vectors):
                if outside[v] != 0:
                    failed |= row_by_row(op, task, panel.row + v * VLEN,
                                         min(panel.row + (v + 1) * VLEN, rows_end))
    free(memory)
    return failed
