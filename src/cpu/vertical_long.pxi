# Panels of rows of more than a block, as a whole or in pieces that several threads may share.
#
# Mathematics, precision and the order of additions: row.pxi; panels: vertical.pxi.
#
# Passes.  Block by block: columns packed, their exponentials summed and stored to `out`; then one
# scaling sweep, of `out` or, for log_softmax, of x. In place the maxima are taken beforehand.

cdef void largest(const Panel *panel, Py_ssize_t begin, Py_ssize_t end, vec *m) noexcept nogil:
    """The maxima of columns [begin, end)."""
    cdef vec xv, lowest = v_set1(<real>-INFINITY)
    cdef Py_ssize_t c
    cdef int v
    for v in range(panel.vectors):
        m[v] = lowest
    for c in range(begin, end):
        for v in range(panel.vectors):
            xv = panel_load(False, panel.x + c * panel.x_step, panel, v)
            if panel.keep != NULL:
                xv = v_where(kept(panel, c, v), xv, lowest)
            m[v] = v_max(xv, m[v])


cdef inline int merge_level(Partial *stack, int depth, int vectors) noexcept nogil:
    """Join the two topmost levels, row by row."""
    cdef Partial *into = stack + (depth - 2) * (UNIT * VLEN)
    cdef int i
    for i in range(vectors * VLEN):
        merge(&into[i], &into[UNIT * VLEN + i], &into[i])
    return depth - 1


cdef bint sweep_blocks(int op, const Task *task, const Panel *panel, const View *view,
                       const PanelScratch *scratch, Py_ssize_t begin, Py_ssize_t end,
                       vec *running, Batch *batches, Partial *stack,
                       double *exponents) noexcept nogil:
    """Sums of columns [begin, end), of every row to the first level of `stack`.

    False if a row turned out to be out of reach; no block was written then if `running` were the
    maxima of the rows. They are at least a lower bound of these, or -inf.
    """
    cdef Last[WIDE] last  # and not UNIT, as a compiler sees it: write_packed takes any panel
    cdef vec[WIDE] m
    cdef vec lowest = v_set1(<real>-INFINITY), zero = v_set1(0)
    cdef uint64_t[WIDE] none
    cdef real *packed
    cdef Batch *batch
    cdef Partial *level
    cdef Py_ssize_t block_end, bits, index = 0
    cdef int v, k, depth = 0
    for v in range(panel.vectors):
        none[v] = 0
        last[v].high = v_set1(1)
        last[v].low = zero
    for begin from begin <= begin < end by BLOCK:
        block_end = min(end, begin + BLOCK)
        pack(panel, begin, block_end, scratch.packed, m)
        if panel.dense:
            pack_q(task, panel, begin, block_end, scratch)
        for v in range(panel.vectors):
            # Only what was seen so far has to be in reach, not every block.
            running[v] = v_max(m[v], running[v])
            if out_of_reach(view.general, v_where(v_eq(running[v], lowest), zero, running[v]),
                            view) != 0:
                return False
        level = stack + depth * (UNIT * VLEN)
        for v in range(panel.vectors):
            packed = scratch.packed + v * packed_at(BLOCK)
            batch = &batches[v]
            sum_columns(kind_of(op), panel.dense, block_end - begin, packed,
                        scratch.packed_y + v * scratch.y_next, packed, m[v], view, NULL,
                        batch)
            for k in range(VLEN):
                level[v * VLEN + k].max = batch.max[k]
                level[v * VLEN + k].at_max = batch.at_max[k]
                level[v * VLEN + k].count = batch.count[k] if batch.max[k] > -INFINITY else 0
                level[v * VLEN + k].rest = batch.rest[k]
                level[v * VLEN + k].low = batch.low[k]
                level[v * VLEN + k].dot = batch.dot[k] if panel.dense else 0
                level[v * VLEN + k].q = batch.q[k] if panel.dense else 0
                exponents[v * VLEN + k] = HEADROOM - (batch.magic[k] - <double>MAGIC) / 8
                level[v * VLEN + k].exponent = exponents[v * VLEN + k]
        if stores_exp(op):
            write_packed(SOFTMAX, False, False, panel, begin, block_end, scratch, last, none)
        exponents += UNIT * VLEN
        depth += 1
        bits = index
        while bits & 1:
            depth = merge_level(stack, depth, panel.vectors)
            bits >>= 1
        index += 1
    while depth > 1:
        depth = merge_level(stack, depth, panel.vectors)
    return True


cdef void take_sums(const Partial *whole, const Panel *panel, Batch *batches) noexcept nogil:
    cdef const Partial *own
    cdef Batch *batch
    cdef int v, k
    for v in range(panel.vectors):
        batch = &batches[v]
        for k in range(VLEN):
            own = &whole[v * VLEN + k]
            batch.max[k] = <real>own.max
            batch.at_max[k] = <real>own.at_max
            batch.count[k] = own.count
            batch.rest[k] = own.rest
            batch.low[k] = own.low
            batch.dot[k] = own.dot
            batch.q[k] = own.q


cdef inline void write_blocks(int op, const Task *task, const Panel *panel, const View *view,
                              const PanelScratch *scratch, Py_ssize_t begin, Py_ssize_t end,
                              Batch *batches, const Partial *whole, const double *exponents,
                              Last *last) noexcept nogil:
    """The last sweep over columns [begin, end), once set_last is done."""
    cdef Batch *batch
    cdef real[16] factor
    cdef Factor whole_factor
    cdef double change, split
    cdef Py_ssize_t block_end
    cdef int v, k
    for begin from begin <= begin < end by BLOCK:
        block_end = min(end, begin + BLOCK)
        if panel.dense:
            pack_q(task, panel, begin, block_end, scratch)
        if stores_exp(op):
            for v in range(panel.vectors):
                batch = &batches[v]
                for k in range(VLEN):
                    change = exponents[v * VLEN + k] - whole[v * VLEN + k].exponent
                    split = DEEP_SPLIT if change < DEEP else 0
                    whole_factor = divide(batch.numerator[k], whole_sum(&whole[v * VLEN + k]))
                    factor[k] = <real>power_of_two(change + split)
                    batch.high[k] = <real>(whole_factor.high * power_of_two(-split))
                    batch.low_factor[k] = <real>(whole_factor.low * power_of_two(-split))
                last[v].scale = v_load(factor)
                last[v].high = v_load(batch.high)
                last[v].low = v_load(batch.low_factor)
        if op == LOG_SOFTMAX and view.general:
            write_block(op, True, False, panel, begin, block_end, scratch, last)
        elif op == CROSS_ENTROPY_WITH_GRAD and panel.dense:
            write_block(op, False, True, panel, begin, block_end, scratch, last)
        else:
            write_block(op, False, False, panel, begin, block_end, scratch, last)
        exponents += UNIT * VLEN


cdef inline void write_block(int op, bint general, bint dense, const Panel *panel,
                             Py_ssize_t begin, Py_ssize_t end, const PanelScratch *scratch,
                             const Last *last) noexcept nogil:
    """last_value of columns of x, or of the exponentials that are in `out`."""
    if panel.keep != NULL:
        write_block_as(op, general, dense, True, 0, panel, begin, end, scratch, last)
    elif panel.full == UNIT:
        write_block_as(op, general, dense, False, UNIT, panel, begin, end, scratch, last)
    else:
        write_block_as(op, general, dense, False, 0, panel, begin, end, scratch, last)


cdef inline void write_block_as(int op, bint general, bint dense, bint masked, int full,
                                const Panel *panel, Py_ssize_t begin, Py_ssize_t end,
                                const PanelScratch *scratch, const Last *last) noexcept nogil:
    """full: as in a panel."""
    # Here, because compilers take vectors' stores for writes to any structure.
    cdef Py_ssize_t x_step = panel.x_step, out_step = panel.out_step, c
    cdef const char *x = panel.x + begin * x_step
    cdef const char *source
    cdef char *out = panel.out + begin * out_step
    cdef vec value, yv = v_set1(0)
    cdef vec hidden = yv if op == SOFTMAX else v_set1(<real>-INFINITY)
    cdef int v, vectors = full if full else panel.vectors
    for c in range(begin, end):
        source = <const char *>out if stores_exp(op) else x
        for v in range(vectors):
            value = panel_load(full, source, panel, v)
            if dense:
                yv = v_load(scratch.packed_y + v * scratch.y_next + packed_at(c - begin))
            value = last_value(op, general, dense, stores_exp(op), value, yv, &last[v])
            if masked:
                value = v_where(kept(panel, c, v), value, hidden)
            panel_store(full, out, panel, v, value)
        x += x_step
        out += out_step


cdef inline bint long_panel(int op, const Task *task, const Panel *panel, const View *view,
                            const PanelScratch *scratch) noexcept nogil:
    """A panel of any length. False if a row is out of reach; x is then as it was."""
    cdef Batch[UNIT] batches
    cdef Last[UNIT] last
    cdef vec[UNIT] running
    cdef uint64_t[UNIT] none
    cdef bint complete = True
    cdef int v
    for v in range(panel.vectors):
        none[v] = 0
        running[v] = v_set1(<real>-INFINITY)
    if stores_exp(op) and panel.out == panel.x:
        largest(panel, 0, panel.n, running)
        for v in range(panel.vectors):
            if out_of_reach(view.general, running[v], view) != 0:
                return False
    if is_loss(op):
        complete = take_targets(task, panel, batches)
    if not sweep_blocks(op, task, panel, view, scratch, 0, panel.n, running, batches,
                        scratch.stack, scratch.exponents):
        return False
    for v in range(panel.vectors):
        if out_of_reach(view.general, running[v], view) != 0:
            return False  # nothing but -inf in a row
    take_sums(scratch.stack, panel, batches)
    set_last(op, task, panel, view, batches, last)
    if has_elements(op):
        write_blocks(op, task, panel, view, scratch, 0, panel.n, batches, scratch.stack,
                     scratch.exponents, last)
    if is_loss(op):
        finish_losses(op, task, panel, view, complete, batches, none)
    return True


# ------------------------------------------------ in pieces of a block: Pieces of kernels.h

cdef void place_unit(const Task *task, Py_ssize_t unit, Panel *panel, View *view) noexcept nogil:
    set_view(view, task.temperature[0], 0)
    set_steps(task, panel)
    panel.dense = panel.asks_ahead = False
    place(task, unit, unit + 1, 1, panel)


cdef void panel_maxima(const Task *task, Py_ssize_t unit, Py_ssize_t piece,
                       double *maxima) noexcept nogil:
    cdef Panel panel
    cdef View view
    cdef vec[UNIT] m
    cdef Py_ssize_t k
    place_unit(task, unit, &panel, &view)
    largest(&panel, piece * BLOCK, min(panel.n, (piece + 1) * BLOCK), m)
    for k in range(panel.vectors * VLEN):
        maxima[k] = (<real *>m)[k]


cdef bint sweep_panel_piece(Operation op, const Task *task, Py_ssize_t unit, Py_ssize_t piece,
                            const double *start, Partial *result,
                            double *exponents) noexcept nogil:
    cdef Panel panel
    cdef View view
    cdef PanelScratch scratch
    cdef Batch[UNIT] batches
    cdef vec[UNIT] running
    cdef Py_ssize_t k
    cdef char *memory
    cdef bint swept
    place_unit(task, unit, &panel, &view)
    if is_one_hot(view.temperature):
        return False
    memory = <char *>malloc(packed_at(BLOCK) * UNIT * sizeof(real) + 64)
    if memory == NULL:
        return False
    scratch.packed = at_line(memory)
    scratch.packed_y = scratch.packed
    scratch.y_next = 0
    for k in range(panel.vectors * VLEN):
        (<real *>running)[k] = <real>start[k]
    swept = sweep_blocks(op, task, &panel, &view, &scratch, piece * BLOCK,
                         min(panel.n, (piece + 1) * BLOCK), running, batches, result,
                         exponents + piece * (UNIT * VLEN))
    free(memory)
    return swept


cdef void write_panel_piece(Operation op, const Task *task, Py_ssize_t unit, Py_ssize_t piece,
                            const Partial *whole, const double *exponents) noexcept nogil:
    cdef Panel panel
    cdef View view
    cdef Batch[UNIT] batches
    cdef Last[UNIT] last
    cdef Py_ssize_t begin = piece * BLOCK, end = min(task.n, begin + BLOCK)
    place_unit(task, unit, &panel, &view)
    take_sums(whole, &panel, batches)
    exponents += piece * (UNIT * VLEN)
    if op == SOFTMAX:
        set_last(SOFTMAX, task, &panel, &view, batches, last)
        write_blocks(SOFTMAX, task, &panel, &view, NULL, begin, end, batches, whole, exponents, last)
    else:
        set_last(LOG_SOFTMAX, task, &panel, &view, batches, last)
        write_blocks(LOG_SOFTMAX, task, &panel, &view, NULL, begin, end, batches, whole, exponents,
                     last)


cdef void finish_panel(Operation op, const Task *task, Py_ssize_t unit,
                       const Partial *whole) noexcept nogil:
    cdef Panel panel
    cdef View view
    cdef Batch[UNIT] batches
    cdef Last[UNIT] last
    if op == LOGSUMEXP:
        place_unit(task, unit, &panel, &view)
        take_sums(whole, &panel, batches)
        set_last(LOGSUMEXP, task, &panel, &view, batches, last)
