# softmax, log_softmax, logsumexp and the vjps along another axis than the last.
#
# Mathematics, precision and the order of additions are those of row.pxi; here a lane is
# one row, so nothing is ever added across lanes. A panel is four vectors of neighbouring
# rows. Its sums live in scratch: one slot per lane of the contract (lane row), added to in
# the order of the columns, then halved into each other as the contract's tree.
#
# Passes over a panel: block by block maximum, exp and sum (stored to `out`, or not), then
# the last sweep; a block's columns stay in the second-level cache between the first two.
# Panels with a row that is out of reach go through run_rows.

cdef enum:
    WIDE = 4  # vectors in a panel

cdef struct Panel:
    const char *x
    const char *y
    char *out
    Py_ssize_t n, x_step, y_step, out_step
    vmask[WIDE] present


cdef inline vec panel_load(const char *p, const Panel *panel, int v, bint full,
                           vec other) noexcept nogil:
    cdef const real *source = <const real *>p + v * VLEN
    return v_load(source) if full else v_load_first(source, panel.present[v], other)


cdef inline void panel_store(char *p, const Panel *panel, int v, bint full,
                             vec value) noexcept nogil:
    cdef real *target = <real *>p + v * VLEN
    if full:
        v_store(target, value)
    else:
        v_store_first(target, panel.present[v], value)


cdef inline void halve_lanes(real *lanes, Py_ssize_t count) noexcept nogil:
    """Add lane j + 32 to j, j + 16 to j, ...: the first slot holds the sum."""
    cdef Py_ssize_t width = LANES // 2, lane
    cdef int v
    cdef real *low
    cdef real *high
    while width > 0:
        for lane in range(min(width, count - width)):
            low = lanes + lane * (WIDE * VLEN)
            high = low + width * (WIDE * VLEN)
            for v in range(WIDE):
                v_store(low + v * VLEN, v_add(v_load(low + v * VLEN), v_load(high + v * VLEN)))
        count = min(count, width)
        width //= 2


cdef struct PanelPartial:
    # A Partial for every row of a panel, field by field, so that loops over the rows
    # become vectors.
    double[WIDE * 16] max, at_max, count, rest, low, exponent


cdef struct PanelScratch:
    real *lanes        # LANES slots of WIDE vectors
    real *low          # as many, for what splitting leaves
    real *row          # three times one value per row of the panel
    double *chunks     # eight times one value per row: the chunk sums of a block
    double *exponents  # K of each row, block by block
    PanelPartial *stack  # levels of the tree over blocks


cdef inline void panel_max(bint full, const Panel *panel, Py_ssize_t begin, Py_ssize_t end,
                           vec *m) noexcept nogil:
    cdef Py_ssize_t c
    cdef int v
    for v in range(WIDE):
        m[v] = v_set1(<real>-INFINITY)
    for c in range(begin, end):
        for v in range(WIDE):
            m[v] = v_max(panel_load(panel.x + c * panel.x_step, panel, v, full, v_set1(0)), m[v])


cdef inline bint all_in_reach(const vec *m, real *row) noexcept nogil:
    """Whether every row's maximum is within reach; they are left in `row`."""
    cdef int i, v
    cdef bint reach = True
    for v in range(WIDE):
        v_store(row + v * VLEN, m[v])
    for i in range(WIDE * VLEN):
        reach = reach and fabs(row[i]) <= ANCHOR
    return reach


cdef inline void panel_block(int op, bint full, const Panel *panel, Py_ssize_t begin,
                             Py_ssize_t end, const vec *m, const real *row_max,
                             double *exponents, PanelScratch *scratch,
                             PanelPartial *partial) noexcept nogil:
    """add_block for every row of a panel at once."""
    cdef vec one = v_set1(1), zero = v_set1(0), xv, e, rest, low, before
    cdef vmask other
    cdef vec[WIDE] count
    cdef Partial[4] quarter
    cdef Scale[WIDE] scale
    cdef View view
    cdef Py_ssize_t c, chunk, chunk_end
    cdef real *slot
    cdef real *low_slot
    cdef real *first = scratch.row + WIDE * VLEN
    cdef real *second = first + WIDE * VLEN
    cdef double *sums = scratch.chunks
    cdef int v, i, k
    cdef Py_ssize_t count_lanes
    set_view(&view, 1, 0)
    for i in range(WIDE * VLEN):
        exponents[i] = exponent_of(&view, row_max[i])
        first[i] = <real>(MAGIC + (HEADROOM + BIAS - exponents[i]))
        second[i] = <real>((exponents[i] - HEADROOM + LOWEST_EXPONENT) * LN2_HIGH_DOUBLE)
    for v in range(WIDE):
        scale[v].magic = v_load(first + v * VLEN)
        scale[v].lowest = v_load(second + v * VLEN)
        count[v] = zero
    for i in range(8 * WIDE * VLEN):
        sums[i] = 0
    for chunk from begin <= chunk < end by CHUNK:
        chunk_end = min(end, chunk + CHUNK)
        for c in range(chunk, chunk_end):
            slot = scratch.lanes + ((c - chunk) % LANES) * (WIDE * VLEN)
            low_slot = scratch.low + ((c - chunk) % LANES) * (WIDE * VLEN)
            for v in range(WIDE):
                xv = panel_load(panel.x + c * panel.x_step, panel, v, full, zero)
                e = exp_scaled(False, False, xv, &scale[v])
                if op == SOFTMAX:
                    panel_store(panel.out + c * panel.out_step, panel, v, full, e)
                count[v] = v_add_where(v_eq(xv, m[v]), count[v], one)
                rest = v_set1(SPLITTER)
                low = zero
                if c - chunk >= LANES:
                    rest = v_load(slot + v * VLEN)
                    if SPLITS:
                        low = v_load(low_slot + v * VLEN)
                other = v_ne(xv, m[v])
                before = rest
                rest = v_add_where(other, before, e)
                if SPLITS:
                    low = v_add_where(other, low, v_sub(e, v_sub(rest, before)))
                v_store(slot + v * VLEN, rest)
                if SPLITS:
                    v_store(low_slot + v * VLEN, low)
        count_lanes = min(LANES, chunk_end - chunk)
        for i in range(count_lanes * WIDE):
            slot = scratch.lanes + i * VLEN
            v_store(slot, v_sub(v_load(slot), v_set1(SPLITTER)))
        halve_lanes(scratch.lanes, count_lanes)
        if SPLITS:
            halve_lanes(scratch.low, count_lanes)
        for i in range(WIDE * VLEN):
            sums[i] = scratch.lanes[i]
            sums[4 * WIDE * VLEN + i] = scratch.low[i] if SPLITS else 0
        sums += WIDE * VLEN
    sums = scratch.chunks
    for v in range(WIDE):
        v_store(first + v * VLEN, exp_scaled(False, True, m[v], &scale[v]))
        v_store(second + v * VLEN, count[v])
    for i in range(WIDE * VLEN):
        partial.max[i] = row_max[i]
        partial.exponent[i] = exponents[i]
        partial.at_max[i] = first[i] if row_max[i] > -INFINITY else 0
        partial.count[i] = second[i] if row_max[i] > -INFINITY else 0
        partial.rest[i] = sums[i]
        partial.low[i] = sums[4 * WIDE * VLEN + i]
    if end - begin <= CHUNK:
        return
    for i in range(WIDE * VLEN):
        for k in range(4):
            quarter[k].rest = sums[k * WIDE * VLEN + i]
            quarter[k].low = sums[(4 + k) * WIDE * VLEN + i]
        add_exactly(&quarter[0], &quarter[1], &quarter[0])
        add_exactly(&quarter[2], &quarter[3], &quarter[2])
        add_exactly(&quarter[0], &quarter[2], &quarter[0])
        partial.rest[i] = quarter[0].rest
        partial.low[i] = quarter[0].low


cdef inline void get_row(const PanelPartial *partial, int i, Partial *row) noexcept nogil:
    row.max = partial.max[i]
    row.at_max = partial.at_max[i]
    row.count = partial.count[i]
    row.rest = partial.rest[i]
    row.low = partial.low[i]
    row.exponent = partial.exponent[i]
    row.dot = row.q = 0


cdef inline double panel_sum(const PanelPartial *whole, int i) noexcept nogil:
    return whole.count[i] * whole.at_max[i] + (whole.rest[i] + whole.low[i])


cdef inline void merge_level(PanelPartial *stack, int *depth) noexcept nogil:
    """Join the two topmost levels, row by row."""
    cdef PanelPartial *into = stack + depth[0] - 2
    cdef Partial left, right, joined
    cdef int i
    for i in range(WIDE * VLEN):
        get_row(into, i, &left)
        get_row(into + 1, i, &right)
        merge(&left, &right, &joined)
        into.max[i] = joined.max
        into.at_max[i] = joined.at_max
        into.count[i] = joined.count
        into.rest[i] = joined.rest
        into.low[i] = joined.low
        into.exponent[i] = joined.exponent
    depth[0] -= 1


cdef inline bint one_panel(int op, bint full, const Panel *panel, real *row_out,
                           PanelScratch *scratch) noexcept nogil:
    """False if a row of the panel is out of reach; x is then as it was."""
    cdef vec zero = v_set1(0), xv
    cdef vec[WIDE] m, running, high, low, step
    cdef Factor factor
    cdef Py_ssize_t n = panel.n, begin, end, c, bits, index = 0
    cdef PanelPartial *whole = scratch.stack
    cdef real *row = scratch.row
    cdef real *first = row + WIDE * VLEN
    cdef real *second = first + WIDE * VLEN
    cdef double *log_s = scratch.chunks
    cdef double split, change
    cdef int v, i, depth = 0
    if op == SOFTMAX and n > BLOCK and panel.out == panel.x:
        panel_max(full, panel, 0, n, m)
        if not all_in_reach(m, row):
            return False
    for v in range(WIDE):
        running[v] = v_set1(<real>-INFINITY)
    for begin from 0 <= begin < n by BLOCK:
        end = min(n, begin + BLOCK)
        panel_max(full, panel, begin, end, m)
        for v in range(WIDE):
            running[v] = v_max(m[v], running[v])
        # A row that is still -inf may yet find its maximum, but seldom does.
        if not all_in_reach(running, row):
            return False
        for v in range(WIDE):
            v_store(row + v * VLEN, m[v])
        panel_block(op, full, panel, begin, end, m, row,
                    scratch.exponents + index * (WIDE * VLEN), scratch,
                    scratch.stack + depth)
        depth += 1
        bits = index
        while bits & 1:
            merge_level(scratch.stack, &depth)
            bits >>= 1
        index += 1
    while depth > 1:
        merge_level(scratch.stack, &depth)
    for i in range(WIDE * VLEN):
        if op == SOFTMAX:
            factor = divide(1, panel_sum(whole, i))
            first[i] = factor.high
            second[i] = factor.low
        else:
            log_s[i] = ((whole.rest[i] + whole.low[i])
                        + (whole.count[i] - 1) * whole.at_max[i])
    if op != SOFTMAX:
        log1p_of_ratios(log_s, whole.at_max, WIDE * VLEN)
        for i in range(WIDE * VLEN):
            first[i] = <real>(log_s[i] + (whole.max[i] if op == LOGSUMEXP else 0))
            second[i] = <real>whole.max[i]
    if op == LOGSUMEXP:
        for v in range(WIDE):
            panel_store(<char *>row_out, panel, v, full, v_load(first + v * VLEN))
        return True
    for v in range(WIDE):
        high[v] = v_load(first + v * VLEN)
        low[v] = v_load(second + v * VLEN)
    for begin from 0 <= begin < n by BLOCK:
        end = min(n, begin + BLOCK)
        if op == SOFTMAX and n > BLOCK:
            for i in range(WIDE * VLEN):
                change = scratch.exponents[begin // BLOCK * (WIDE * VLEN) + i] - whole.exponent[i]
                split = DEEP_SPLIT if change < DEEP else 0
                row[i] = <real>power_of_two(change + split)
                factor = divide(1, panel_sum(whole, i))
                first[i] = <real>(factor.high * power_of_two(-split))
                second[i] = <real>(factor.low * power_of_two(-split))
            for v in range(WIDE):
                step[v] = v_load(row + v * VLEN)
                high[v] = v_load(first + v * VLEN)
                low[v] = v_load(second + v * VLEN)
        for c in range(begin, end):
            for v in range(WIDE):
                if op == SOFTMAX:
                    xv = panel_load(panel.out + c * panel.out_step, panel, v, full, zero)
                    if n > BLOCK:
                        xv = v_mul(xv, step[v])
                    xv = v_multiply(xv, high[v], low[v])
                else:
                    xv = panel_load(panel.x + c * panel.x_step, panel, v, full, zero)
                    xv = log_probability(False, xv, low[v], zero, zero, high[v])
                panel_store(panel.out + c * panel.out_step, panel, v, full, xv)
    return True


cdef inline void product_panel(int op, bint full, const Panel *panel,
                               PanelScratch *scratch) noexcept nogil:
    """A panel of softmax_vjp or log_softmax_vjp."""
    cdef vec zero = v_set1(0), xv = zero, yv, sum
    cdef Last[WIDE] last
    cdef Py_ssize_t chunk, end, c, bits, index = 0
    cdef real *slot
    cdef int v, i, depth = 0
    for chunk from 0 <= chunk < panel.n by CHUNK:
        end = min(panel.n, chunk + CHUNK)
        for c in range(chunk, end):
            slot = scratch.lanes + ((c - chunk) % LANES) * (WIDE * VLEN)
            for v in range(WIDE):
                yv = panel_load(panel.y + c * panel.y_step, panel, v, full, zero)
                sum = v_load(slot + v * VLEN) if c - chunk >= LANES else zero
                if op == SOFTMAX_VJP:
                    xv = panel_load(panel.x + c * panel.x_step, panel, v, full, zero)
                    sum = v_fma(xv, yv, sum)
                else:
                    sum = v_add(yv, sum)
                v_store(slot + v * VLEN, sum)
        halve_lanes(scratch.lanes, min(LANES, end - chunk))
        for i in range(WIDE * VLEN):
            scratch.stack[depth].rest[i] = scratch.lanes[i]
        depth += 1
        bits = index
        while bits & 1:
            depth = fold_sums(scratch.stack, depth)
            bits >>= 1
        index += 1
    while depth > 1:
        depth = fold_sums(scratch.stack, depth)
    for i in range(WIDE * VLEN):
        scratch.row[i] = <real>scratch.stack[0].rest[i]
    for v in range(WIDE):
        last[v].m = v_load(scratch.row + v * VLEN)
    for c in range(panel.n):
        for v in range(WIDE):
            xv = panel_load(panel.x + c * panel.x_step, panel, v, full, zero)
            yv = panel_load(panel.y + c * panel.y_step, panel, v, full, zero)
            panel_store(panel.out + c * panel.out_step, panel, v, full,
                        last_value(op, False, False, False, xv, yv, &last[v]))


cdef inline int fold_sums(PanelPartial *stack, int depth) noexcept nogil:
    cdef int i
    for i in range(WIDE * VLEN):
        stack[depth - 2].rest[i] += stack[depth - 1].rest[i]
    return depth - 1


cdef inline int run_panels(int op, const Task *task, Py_ssize_t begin,
                           Py_ssize_t end) noexcept nogil:
    """Panels [begin, end), counted along the inner dimension, outer by outer."""
    cdef Py_ssize_t columns = WIDE * VLEN
    cdef Py_ssize_t per_outer = (task.inner + columns - 1) // columns
    cdef Py_ssize_t index, outer, inner, count, row
    cdef Py_ssize_t blocks = (task.n + BLOCK - 1) // BLOCK, levels = 2, size
    cdef Panel panel
    cdef PanelScratch scratch
    cdef char *memory
    cdef real *row_out
    cdef bint done
    cdef int v
    # Four chunks to a block, which is what product_panel counts in.
    while (<Py_ssize_t>1 << levels) <= 8 * blocks:
        levels += 1
    size = (columns * ((8 + blocks) * <Py_ssize_t>sizeof(double)
                       + (2 * LANES + 3) * <Py_ssize_t>sizeof(real))
            + levels * <Py_ssize_t>sizeof(PanelPartial))
    memory = <char *>malloc(size)
    if memory == NULL:
        return -1
    scratch.chunks = <double *>memory
    scratch.exponents = scratch.chunks + 8 * columns
    scratch.stack = <PanelPartial *>(scratch.exponents + blocks * columns)
    scratch.row = <real *>(scratch.stack + levels)
    scratch.lanes = scratch.row + 3 * columns
    scratch.low = scratch.lanes + LANES * columns
    panel.n = task.n
    panel.x_step = task.x.n
    panel.y_step = task.y.n
    panel.out_step = task.out.n
    for index in range(begin, end):
        outer = index // per_outer
        inner = (index - outer * per_outer) * columns
        count = min(columns, task.inner - inner)
        row = outer * task.inner + inner
        panel.x = at(&task.x, outer, inner)
        panel.out = NULL
        if op != LOGSUMEXP:
            panel.out = <char *>at(&task.out, outer, inner)
        panel.y = NULL
        if is_product(op):
            panel.y = at(&task.y, outer, inner)
        row_out = <real *>task.row_out + row if op == LOGSUMEXP else NULL
        if count < columns:
            for v in range(WIDE):
                panel.present[v] = v_first(max(count - v * VLEN, 0))
        if is_product(op):
            done = True
            if count == columns:
                product_panel(op, True, &panel, &scratch)
            else:
                product_panel(op, False, &panel, &scratch)
        elif count == columns:
            done = one_panel(op, True, &panel, row_out, &scratch)
        else:
            done = one_panel(op, False, &panel, row_out, &scratch)
        if not done and run_rows(op, task, row, row + count) != 0:
            free(memory)
            return -1
    free(memory)
    return 0


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
