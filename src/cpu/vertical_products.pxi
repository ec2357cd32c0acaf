# The vjps along another axis than the last.
#
# Mathematics, precision and the order of additions: row.pxi; panels: vertical.pxi.
#
# They have no exponentials to hide behind, so what counts is how the columns come from memory:
# column by column, in runs of up to RUN vectors of neighbouring rows, not packed. The tree over
# the lanes of a chunk is gone through in depth, so that few sums wait at a time. Two reads.
#
# element: REAL, or the half precision of x, y and out, widened and narrowed on the way
# (half_products.pxi).

cdef enum:
    RUN = 64   # vectors in a run of a half precision
    RUN_OF_REALS = 32  # (measured: 16 and 64 are slower)
    DEPTH = 7  # of the tree over 64 lanes

cdef inline Py_ssize_t first_row(const Panel *run, int v) noexcept nogil:
    return v * VLEN - (run.back if v == run.vectors - 1 else 0)


cdef inline vec run_load(int element, bint full, const char *p, const Panel *run,
                         int v) noexcept nogil:
    """panel_load of any element; of a half precision there are more neighbours than VLEN."""
    if element == REAL:
        return panel_load(full, p, run, v)
    return widen_first(element, <const uint16_t *>p + first_row(run, v),
                       VLEN if full else rows_of(run, v))


cdef inline void run_store(int element, bint full, char *p, const Panel *run, int v,
                           vec value) noexcept nogil:
    """panel_store of any element."""
    cdef uint16_t *target = <uint16_t *>p + first_row(run, v)
    cdef uint16_t[16] present
    if element == REAL:
        panel_store(full, p, run, v, value)
    elif full or v < run.vectors - 1:
        v_narrow(<Element>element, target, value)
    else:
        v_narrow(<Element>element, present, value)
        memcpy(target, present, run.last_count * sizeof(uint16_t))


cdef inline vec add_term(int kind, int element, bint full, const char *x, const char *y,
                         const Panel *run, int v, vec sum) noexcept nogil:
    cdef vec yv = run_load(element, full, y, run, v)
    if kind == PLAIN:
        return v_add(yv, sum)
    return v_fma(run_load(element, full, x, run, v), yv, sum)


cdef inline void add_lane(int kind, int element, bint full, const Panel *run, Py_ssize_t begin,
                          Py_ssize_t end, real *sums) noexcept nogil:
    """Columns begin, begin + LANES, ..."""
    cdef const char *x
    cdef const char *y
    cdef Py_ssize_t c
    cdef int v, vectors = run.vectors
    for c from begin <= c < end by LANES:
        x = run.x + c * run.x_step
        y = run.y + c * run.y_step
        for v in range(vectors):
            v_store(sums + v * VLEN,
                    add_term(kind, element, full, x, y, run, v,
                             v_set1(0) if c == begin else v_load(sums + v * VLEN)))


cdef inline void add_few_lanes(int kind, int element, bint full, int used, const Panel *run,
                               Py_ssize_t begin, real *sums) noexcept nogil:
    """One column each of `used` lanes that are a quarter of them apart, added as in the tree."""
    cdef const char *x = run.x + begin * run.x_step
    cdef const char *y = run.y + begin * run.y_step
    cdef Py_ssize_t x_next = LANES // 4 * run.x_step, y_next = LANES // 4 * run.y_step
    cdef vec[4] term
    cdef int p, v, vectors = run.vectors
    for v in range(vectors):
        for p in range(used):
            term[p] = add_term(kind, element, full, x + p * x_next, y + p * y_next, run, v,
                               v_set1(0))
        v_store(sums + v * VLEN, in_order(used, term))


cdef inline Py_ssize_t reversed_bits(Py_ssize_t i, Py_ssize_t count) noexcept nogil:
    """i < count with its bits in reverse; count is a power of two."""
    cdef Py_ssize_t result = 0
    while count > 1:
        result = 2 * result + (i & 1)
        i >>= 1
        count >>= 1
    return result


cdef inline void add_chunk_of_run(int kind, int element, bint full, const Panel *run,
                                  Py_ssize_t begin, Py_ssize_t end, real *waiting) noexcept nogil:
    """Every row's sum over columns [begin, end), up to a chunk, to the first of `waiting`."""
    cdef real *top = waiting
    cdef Py_ssize_t n = end - begin, quarter = LANES // 4, i, lane, bits, width
    cdef Py_ssize_t leaves = quarter if n <= LANES else LANES
    cdef int v, vectors = run.vectors
    for i in range(leaves):
        lane = reversed_bits(i, leaves)
        if lane < n:
            if n > LANES:
                add_lane(kind, element, full, run, begin + lane, end, top)
            elif lane + 3 * quarter < n:
                add_few_lanes(kind, element, full, 4, run, begin + lane, top)
            elif lane + 2 * quarter < n:
                add_few_lanes(kind, element, full, 3, run, begin + lane, top)
            elif lane + quarter < n:
                add_few_lanes(kind, element, full, 2, run, begin + lane, top)
            else:
                add_few_lanes(kind, element, full, 1, run, begin + lane, top)
            top += RUN * VLEN
        bits = i
        width = 1
        while bits & 1:
            # Lanes that have no column were not put there.
            if reversed_bits(i + 1 - width, leaves) < n:
                top -= RUN * VLEN
                for v in range(vectors):
                    v_store(top + (v - RUN) * VLEN,
                            v_add(v_load(top + (v - RUN) * VLEN), v_load(top + v * VLEN)))
            bits >>= 1
            width *= 2


cdef inline void write_run(int op, int element, bint full, const Panel *run, const View *view,
                           const real *sums, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The last sweep over columns [begin, end)."""
    cdef Last last
    cdef vec x_last, y_last
    cdef const char *x
    cdef const char *y
    cdef char *out
    cdef Py_ssize_t c
    cdef int v, vectors = run.vectors
    last.beta_high = v_set1(<real>view.beta_high)
    for c in range(begin, end):
        x = run.x + c * run.x_step
        y = run.y + c * run.y_step
        out = run.out + c * run.out_step
        # The last is read first, since it may overlap the one before, and `out` may be x or y.
        x_last = run_load(element, full, x, run, vectors - 1)
        y_last = run_load(element, full, y, run, vectors - 1)
        for v in range(vectors - 1):
            last.m = v_load(sums + v * VLEN)
            run_store(element, full, out, run, v,
                      last_value(op, True, False, False, run_load(element, full, x, run, v),
                                 run_load(element, full, y, run, v), &last))
        last.m = v_load(sums + (vectors - 1) * VLEN)
        run_store(element, full, out, run, vectors - 1,
                  last_value(op, True, False, False, x_last, y_last, &last))


ctypedef void (*RunSums)(const Panel *, Py_ssize_t, Py_ssize_t, real *) noexcept nogil
ctypedef void (*RunValues)(const Panel *, const View *, const real *, Py_ssize_t,
                           Py_ssize_t) noexcept nogil
# add_chunk_of_run and write_run by operation and element; filled in instances.pxi.in.
cdef RunSums[8][3] run_sums
cdef RunValues[8][3] run_values


cdef inline void set_run(int element, Panel *run) noexcept nogil:
    """What place leaves open."""
    run.back = 0
    if element != REAL and run.vectors > 1:
        run.back = <int>(VLEN - run.last_count)
    run.full = run.back > 0 or run.last_count == VLEN


cdef int run_products(int op, const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """run_panels for the vjps."""
    cdef vec[DEPTH * RUN] waiting
    cdef real *sums = <real *>waiting
    cdef int element = task.x.element
    cdef Py_ssize_t vectors = RUN_OF_REALS if element == REAL else RUN
    cdef Py_ssize_t index = begin, most = units_together(task, begin, end, vectors // UNIT)
    cdef Py_ssize_t levels = 2, column, bits, chunk, k, rows, n = task.n
    cdef View view
    cdef Panel run
    cdef double *chunks
    cdef double *top
    while (<Py_ssize_t>1 << levels) * CHUNK <= 2 * n:
        levels += 1
    chunks = <double *>malloc(RUN * VLEN * levels * sizeof(double))
    if chunks == NULL:
        return -1
    set_view(&view, task.temperature[0], 0)
    set_steps(task, &run)
    while index < end:
        index += place(task, index, end, most, &run)
        set_run(element, &run)
        rows = run.vectors * VLEN
        top = chunks
        chunk = 0
        for column from 0 <= column < n by CHUNK:
            run_sums[op][element](&run, column, min(n, column + CHUNK), sums)
            if n <= CHUNK:
                break
            for k in range(rows):
                top[k] = sums[k]
            bits = chunk
            while bits & 1:
                top -= RUN * VLEN
                add_to(top, top + RUN * VLEN, rows)
                bits >>= 1
            top += RUN * VLEN
            chunk += 1
        if n > CHUNK:
            top -= RUN * VLEN
            while top > chunks:
                top -= RUN * VLEN
                add_to(top, top + RUN * VLEN, rows)
            for k in range(rows):
                sums[k] = <real>chunks[k]
        run_values[op][element](&run, &view, sums, 0, n)
    free(chunks)
    return 0


cdef inline void add_to(double *into, const double *sums, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        into[k] += sums[k]


# ------------------------------------------- in pieces of a chunk: ProductPieces of kernels.h

cdef void place_group(const Task *task, Py_ssize_t group, Panel *run) noexcept nogil:
    cdef Py_ssize_t units = RUN_OF_REALS // UNIT, per_outer = units_of(task)
    cdef Py_ssize_t groups = (per_outer + units - 1) // units, outer = group // groups
    set_steps(task, run)
    place(task, outer * per_outer + (group - outer * groups) * units, (outer + 1) * per_outer,
          units, run)
    set_run(task.x.element, run)


cdef void sum_product_piece(Operation op, const Task *task, Py_ssize_t group, Py_ssize_t piece,
                            double *result) noexcept nogil:
    cdef vec[DEPTH * RUN] waiting
    cdef real *sums = <real *>waiting
    cdef Panel run
    cdef Py_ssize_t k, begin = piece * CHUNK
    place_group(task, group, &run)
    run_sums[<int>op][<int>task.x.element](&run, begin, min(task.n, begin + CHUNK), sums)
    for k in range(run.vectors * VLEN):
        result[k] = sums[k]


cdef void write_product_piece(Operation op, const Task *task, Py_ssize_t group, Py_ssize_t piece,
                              const double *whole) noexcept nogil:
    cdef vec[RUN_OF_REALS] sums
    cdef View view
    cdef Panel run
    cdef Py_ssize_t k, begin = piece * CHUNK
    place_group(task, group, &run)
    set_view(&view, task.temperature[0], 0)
    for k in range(run.vectors * VLEN):
        (<real *>sums)[k] = <real>whole[k]
    run_values[<int>op][<int>task.x.element](&run, &view, <real *>sums, begin,
                                             min(task.n, begin + CHUNK))
