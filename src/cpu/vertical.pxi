# softmax, log_softmax, logsumexp and the vjps along another axis than the last.
#
# Mathematics, precision and the order of additions are those of row.pxi; here a lane is
# one row, so nothing is ever added across lanes. A panel is four vectors of neighbouring
# rows, block after block of its columns.
#
# Passes over a block: its columns are packed next to each other (a stride of a power of two
# would put them all into the same few sets of the cache), then everything is done there, and
# the result goes to `out`. Rows of up to one block: one read, one write. Longer: exponentials
# go to `out`, to be scaled in a last sweep. Rows out of reach go through row.pxi.

cdef enum:
    WIDE = 4  # vectors in a panel

cdef struct Panel:
    const char *x
    const char *y
    char *out
    Py_ssize_t n, x_step, y_step, out_step
    int vectors  # with rows in them
    Py_ssize_t last_count  # rows in the last of them
    vmask last             # its lanes that are

cdef struct PanelScratch:
    real *packed       # a block of columns for each vector
    double *exponents  # K of each row, block by block
    Partial *stack     # WIDE * VLEN to a level of the tree over blocks


cdef inline vec panel_load(const char *p, const Panel *panel, int v) noexcept nogil:
    cdef const real *source = <const real *>p + v * VLEN
    return (v_load(source) if v < panel.vectors - 1
            else v_load_first(source, panel.last, v_set1(0)))


cdef inline void panel_store(char *p, const Panel *panel, int v, vec value) noexcept nogil:
    cdef real *target = <real *>p + v * VLEN
    if v < panel.vectors - 1:
        v_store(target, value)
    else:
        v_store_first(target, panel.last_count, value)


cdef void pack(const Panel *panel, Py_ssize_t begin, Py_ssize_t end, real *packed,
               vec *maximum) noexcept nogil:
    """Columns [begin, end) of each vector, one after the other, and their maxima."""
    cdef vec[WIDE] m
    cdef vec xv
    cdef Py_ssize_t c
    cdef int v
    for v in range(WIDE):
        m[v] = v_set1(<real>-INFINITY)
    for c in range(begin, end):
        for v in range(WIDE):
            if v < panel.vectors:
                xv = panel_load(panel.x + c * panel.x_step, panel, v)
                m[v] = v_max(xv, m[v])
                v_store(packed + v * packed_at(BLOCK) + packed_at(c - begin), xv)
    for v in range(WIDE):
        maximum[v] = m[v]


cdef inline void write_packed(int op, const Panel *panel, Py_ssize_t begin, Py_ssize_t end,
                              const real *packed, const Last *last,
                              const uint64_t *outside) noexcept nogil:
    """last_value of what is packed, to `out`, but for vectors with rows out of reach."""
    cdef vec zero = v_set1(0), value
    cdef Py_ssize_t c
    cdef int v
    for c in range(begin, end):
        for v in range(panel.vectors):
            if outside[v] == 0:
                value = v_load(packed + v * packed_at(BLOCK) + packed_at(c - begin))
                panel_store(panel.out + c * panel.out_step, panel, v,
                            last_value(op, False, False, False, value, zero, &last[v]))


cdef inline void set_last(int op, bint long_sums, const Panel *panel, Batch *batches,
                          real *row_out, Last *last) noexcept nogil:
    """What follows from the sums of every vector of rows; for logsumexp the result."""
    cdef double[16] ones
    cdef double[WIDE * 16] log_s, unit
    cdef Batch *batch
    cdef Py_ssize_t k
    cdef int v
    if op == SOFTMAX:
        for k in range(VLEN):
            ones[k] = 1
        for v in range(panel.vectors):
            take_factors(long_sums, ones, VLEN, &batches[v])
            last[v].high = v_load(batches[v].high)
            last[v].low = v_load(batches[v].low_factor)
        return
    for v in range(panel.vectors):
        batch = &batches[v]
        for k in range(VLEN):
            unit[v * VLEN + k] = batch.at_max[k]
            log_s[v * VLEN + k] = (rest_of(long_sums, batch, k)
                                   + (batch.count[k] - 1) * <double>batch.at_max[k])
    log1p_of_ratios(log_s, unit, panel.vectors * VLEN)
    for v in range(panel.vectors):
        batch = &batches[v]
        for k in range(VLEN):
            batch.high[k] = <real>(log_s[v * VLEN + k]
                                   + (batch.max[k] if op == LOGSUMEXP else 0))
        last[v].high = v_load(batch.high)
        last[v].m = v_load(batch.max)
        if op == LOGSUMEXP:
            panel_store(<char *>row_out, panel, v, last[v].high)


cdef inline void short_panel(int op, const Panel *panel, real *row_out,
                             const PanelScratch *scratch, uint64_t *outside) noexcept nogil:
    """A panel of up to one block; `outside`: of each vector the lanes that are out of reach."""
    cdef Batch[WIDE] batches
    cdef View view
    cdef Last[WIDE] last
    cdef vec[WIDE] m
    cdef real *packed
    cdef int v
    set_view(&view, 1, 0)
    pack(panel, 0, panel.n, scratch.packed, m)
    for v in range(panel.vectors):
        packed = scratch.packed + v * packed_at(BLOCK)
        outside[v] = out_of_reach(False, m[v], &view)
        sum_columns(kind_of(op), panel.n, packed, packed, m[v], &view, &batches[v])
    set_last(op, panel.n > CHUNK, panel, batches, row_out, last)
    if op != LOGSUMEXP:
        write_packed(op, panel, 0, panel.n, scratch.packed, last, outside)


cdef inline bint long_panel(int op, const Panel *panel, real *row_out,
                            const PanelScratch *scratch) noexcept nogil:
    """A panel of any length. False if a row is out of reach; x is then as it was."""
    cdef Batch[WIDE] batches
    cdef Batch *batch
    cdef View view
    cdef Last[WIDE] last
    cdef Partial joined
    cdef Partial *level
    cdef vec[WIDE] m, running
    cdef vec value, zero = v_set1(0)
    cdef double change, split
    cdef double *exponents = scratch.exponents
    cdef real *packed
    cdef real[16] factor
    cdef const char *source
    cdef Factor whole_factor
    cdef uint64_t[WIDE] none
    cdef Py_ssize_t n = panel.n, begin, end, c, bits, index = 0
    cdef int v, k, depth = 0
    set_view(&view, 1, 0)
    for v in range(WIDE):
        none[v] = 0
        running[v] = v_set1(<real>-INFINITY)
        last[v].high = v_set1(1)
        last[v].low = zero
    if op == SOFTMAX and panel.out == panel.x and not panel_in_reach(panel):
        return False
    for begin from 0 <= begin < n by BLOCK:
        end = min(n, begin + BLOCK)
        pack(panel, begin, end, scratch.packed, m)
        level = scratch.stack + depth * (WIDE * VLEN)
        for v in range(panel.vectors):
            packed = scratch.packed + v * packed_at(BLOCK)
            batch = &batches[v]
            # Only what was seen so far has to be in reach, not every block: in place, the
            # blocks before this one are overwritten.
            running[v] = v_max(m[v], running[v])
            if out_of_reach(False, running[v], &view) != 0:
                return False
            sum_columns(kind_of(op), end - begin, packed, packed, m[v], &view, batch)
            for k in range(VLEN):
                level[v * VLEN + k].max = batch.max[k]
                level[v * VLEN + k].at_max = batch.at_max[k]
                level[v * VLEN + k].count = batch.count[k] if batch.max[k] > -INFINITY else 0
                level[v * VLEN + k].rest = batch.rest[k]
                level[v * VLEN + k].low = batch.low[k]
                level[v * VLEN + k].dot = level[v * VLEN + k].q = 0
                exponents[v * VLEN + k] = HEADROOM - (batch.magic[k] - <double>MAGIC) / 8
                level[v * VLEN + k].exponent = exponents[v * VLEN + k]
        if op == SOFTMAX:
            write_packed(SOFTMAX, panel, begin, end, scratch.packed, last, none)
        exponents += WIDE * VLEN
        depth += 1
        bits = index
        while bits & 1:
            depth = merge_level(scratch.stack, depth, panel.vectors)
            bits >>= 1
        index += 1
    while depth > 1:
        depth = merge_level(scratch.stack, depth, panel.vectors)
    for v in range(panel.vectors):
        batch = &batches[v]
        for k in range(VLEN):
            joined = scratch.stack[v * VLEN + k]
            batch.max[k] = <real>joined.max
            batch.at_max[k] = <real>joined.at_max
            batch.count[k] = joined.count
            batch.rest[k] = joined.rest
            batch.low[k] = joined.low
    set_last(op, True, panel, batches, row_out, last)
    if op == LOGSUMEXP:
        return True
    exponents = scratch.exponents
    for begin from 0 <= begin < n by BLOCK:
        end = min(n, begin + BLOCK)
        if op == SOFTMAX:
            for v in range(panel.vectors):
                batch = &batches[v]
                for k in range(VLEN):
                    joined = scratch.stack[v * VLEN + k]
                    change = exponents[v * VLEN + k] - joined.exponent
                    split = DEEP_SPLIT if change < DEEP else 0
                    whole_factor = divide(1, whole_sum(&joined))
                    factor[k] = <real>power_of_two(change + split)
                    batch.high[k] = <real>(whole_factor.high * power_of_two(-split))
                    batch.low_factor[k] = <real>(whole_factor.low * power_of_two(-split))
                last[v].scale = v_load(factor)
                last[v].high = v_load(batch.high)
                last[v].low = v_load(batch.low_factor)
        for c in range(begin, end):
            source = panel.x + c * panel.x_step
            if op == SOFTMAX:
                source = panel.out + c * panel.out_step
            for v in range(panel.vectors):
                value = panel_load(source, panel, v)
                panel_store(panel.out + c * panel.out_step, panel, v,
                            last_value(op, False, False, True, value, zero, &last[v]))
        exponents += WIDE * VLEN
    return True


cdef inline bint panel_in_reach(const Panel *panel) noexcept nogil:
    """Whether no row's maximum is out of reach."""
    cdef View view
    cdef vec[WIDE] m
    cdef uint64_t outside = 0
    cdef Py_ssize_t c
    cdef int v
    set_view(&view, 1, 0)
    for v in range(WIDE):
        m[v] = v_set1(<real>-INFINITY)
    for c in range(panel.n):
        for v in range(panel.vectors):
            m[v] = v_max(panel_load(panel.x + c * panel.x_step, panel, v), m[v])
    for v in range(panel.vectors):
        outside |= out_of_reach(False, m[v], &view)
    return outside == 0


cdef inline int merge_level(Partial *stack, int depth, int vectors) noexcept nogil:
    """Join the two topmost levels, row by row."""
    cdef Partial *into = stack + (depth - 2) * (WIDE * VLEN)
    cdef int i
    for i in range(vectors * VLEN):
        merge(&into[i], &into[WIDE * VLEN + i], &into[i])
    return depth - 1


cdef inline void product_vector(int op, const Panel *panel, int v,
                                Partial *stack) noexcept nogil:
    """A whole vector of rows of softmax_vjp or log_softmax_vjp."""
    cdef LaneSums sums
    cdef Last last
    cdef real[16] number
    cdef const char *x = panel.x + v * (VLEN * sizeof(real))
    cdef const char *y = panel.y + v * (VLEN * sizeof(real))
    cdef char *out = panel.out + v * (VLEN * sizeof(real))
    cdef Columns columns
    cdef Py_ssize_t begin, c, bits, k, index = 0
    cdef int depth = 0
    columns.x_step = panel.x_step
    columns.y_step = panel.y_step
    columns.x_gap = 0
    for begin from 0 <= begin < panel.n by CHUNK:
        columns.x = x + begin * panel.x_step
        columns.y = y + begin * panel.y_step
        sum_chunk_columns(kind_of(op), &columns, min(panel.n - begin, CHUNK), NULL,
                          v_set1(0), &sums)
        v_store(number, sums.dot)
        for k in range(VLEN):
            stack[depth * VLEN + k].dot = number[k]
        depth += 1
        bits = index
        while bits & 1:
            depth = add_dots(stack, depth)
            bits >>= 1
        index += 1
    while depth > 1:
        depth = add_dots(stack, depth)
    for k in range(VLEN):
        number[k] = <real>stack[k].dot
    last.m = v_load(number)
    for c in range(panel.n):
        v_store(<real *>(out + c * panel.out_step),
                last_value(op, False, False, False, v_load(<const real *>(x + c * panel.x_step)),
                           v_load(<const real *>(y + c * panel.y_step)), &last))


cdef inline int add_dots(Partial *stack, int depth) noexcept nogil:
    cdef int k
    for k in range(VLEN):
        stack[(depth - 2) * VLEN + k].dot += stack[(depth - 1) * VLEN + k].dot
    return depth - 1


cdef inline int row_by_row(int op, const Task *task, Py_ssize_t begin,
                           Py_ssize_t end) noexcept nogil:
    if op == SOFTMAX:
        return softmax_rows(task, begin, end)
    if op == LOG_SOFTMAX:
        return log_softmax_rows(task, begin, end)
    if op == LOGSUMEXP:
        return logsumexp_rows(task, begin, end)
    if op == SOFTMAX_VJP:
        return softmax_vjp_rows(task, begin, end)
    return log_softmax_vjp_rows(task, begin, end)


cdef inline int run_panels(int op, const Task *task, Py_ssize_t begin,
                           Py_ssize_t end) noexcept nogil:
    """Panels [begin, end), counted along the inner dimension, outer by outer."""
    cdef Py_ssize_t columns = WIDE * VLEN
    cdef Py_ssize_t per_outer = (task.inner + columns - 1) // columns
    cdef Py_ssize_t index, outer, inner, count, row, rest
    cdef Py_ssize_t blocks = (task.n + BLOCK - 1) // BLOCK, levels = 2
    cdef Panel panel
    cdef PanelScratch scratch
    cdef uint64_t[WIDE] outside
    cdef char *memory
    cdef real *row_out
    cdef int v, failed = 0
    # Four chunks to a block, which is what product_vector counts in.
    while (<Py_ssize_t>1 << levels) <= 8 * blocks:
        levels += 1
    memory = <char *>malloc(columns * (blocks * sizeof(double) + levels * sizeof(Partial)
                                       + packed_at(BLOCK) // VLEN * sizeof(real)) + 64)
    if memory == NULL:
        return -1
    scratch.exponents = <double *>memory
    scratch.stack = <Partial *>(scratch.exponents + blocks * columns)
    scratch.packed = <real *>(scratch.stack + levels * columns)
    # To a cache line: 1.02 to 1.07 of the speed.
    scratch.packed += (-<Py_ssize_t>scratch.packed & 63) // <Py_ssize_t>sizeof(real)
    panel.n = task.n
    panel.x_step = task.x.n
    panel.y_step = task.y.n
    panel.out_step = task.out.n
    for index in range(begin, end):
        outer = index // per_outer
        inner = (index - outer * per_outer) * columns
        count = min(columns, task.inner - inner)
        row = outer * task.inner + inner
        rest = 0  # rows at the end that are left to row.pxi
        panel.vectors = <int>((count + VLEN - 1) // VLEN)
        panel.last_count = count - (panel.vectors - 1) * VLEN
        panel.last = v_first(panel.last_count)
        panel.x = at(&task.x, outer, inner)
        panel.out = NULL
        if op != LOGSUMEXP:
            panel.out = <char *>at(&task.out, outer, inner)
        row_out = <real *>task.row_out + row if op == LOGSUMEXP else NULL
        if is_product(op):
            panel.y = at(&task.y, outer, inner)
            for v in range(<int>(count // VLEN)):
                product_vector(op, &panel, v, scratch.stack)
            rest = count % VLEN
        elif task.n > BLOCK:
            if not long_panel(op, &panel, row_out, &scratch):
                rest = count
        else:
            short_panel(op, &panel, row_out, &scratch, outside)
            for v in range(panel.vectors):
                if outside[v] != 0:
                    failed |= row_by_row(op, task, row + v * VLEN,
                                         row + min(count, (v + 1) * VLEN))
        if rest > 0:
            failed |= row_by_row(op, task, row + count - rest, row + count)
        if failed != 0:
            break
    free(memory)
    return failed


cdef int softmax_panels(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_panels(SOFTMAX, task, begin, end)

cdef int log_softmax_panels(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_panels(LOG_SOFTMAX, task, begin, end)

cdef int logsumexp_panels(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_panels(LOGSUMEXP, task, begin, end)

cdef int softmax_vjp_panels(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    return run_panels(SOFTMAX_VJP, task, begin, end)

cdef int log_softmax_vjp_panels(const Task *task, Py_ssize_t begin,
                                Py_ssize_t end) noexcept nogil:
    return run_panels(LOG_SOFTMAX_VJP, task, begin, end)
