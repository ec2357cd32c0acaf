# Columns of VLEN rows at a time, a lane a row: what short rows and other axes share.
#
# Mathematics and precision: row.pxi. The lanes of the contract, which a row's columns take in turn,
# are then vectors, and its tree over them goes from vector to vector.
#
# Passes.  One read of packed columns, which a cache holds; their exponentials take their place.

cdef inline Py_ssize_t packed_at(Py_ssize_t c) noexcept nogil:
    """Where column c of a block is packed: with a gap after every lane row.

    Without, columns whose sums are in work together would lie 4 KiB apart, which are the
    same few places of a first-level cache, and look like one to the store buffer.
    """
    return (c + c // LANES) * VLEN


cdef inline void add_column(int kind, bint general, bint dense, const real *x, const real *y,
                            real *e, Py_ssize_t place, const Scale *scale, vec maximum, vec *rest,
                            vec *low, vec *dot, vec *q, vec *others) noexcept nogil:
    """Take the column packed at `place` into every row's sums; y as in add_element."""
    cdef vec xv = v_load(x + place), yv, term = exp_scaled(general, xv, scale), before = rest[0]
    cdef vmask other
    if kind == EXP_STORED:
        v_store(e + place, term)
    other = v_ne(xv, maximum)
    rest[0] = v_add_where(other, before, term)
    if SPLITS:
        low[0] = v_add_where(other, low[0], v_sub(term, v_sub(rest[0], before)))
    others[0] = v_add_where(other, others[0], v_set1(1))
    if dense:
        yv = v_load(y + place)
        dot[0] = v_add(dot[0], v_zero_unless(v_ne(yv, v_set1(0)),
                                             v_mul(yv, v_sub(maximum, xv))))
        q[0] = v_add(q[0], yv)


cdef inline vec add_quarter(const vec *a, Py_ssize_t n) noexcept nogil:
    """The tree over a quarter of the lanes, of which n are not zero."""
    cdef vec[8] b
    cdef int j
    for j in range(8):
        b[j] = v_add(a[j], a[j + 8]) if LANES == 64 and n > 8 else a[j]
    if n <= 2:
        return v_add(b[0], b[1])
    return v_add(v_add(v_add(b[0], b[4]), v_add(b[2], b[6])),
                 v_add(v_add(b[1], b[5]), v_add(b[3], b[7])))


cdef struct Columns:
    # Columns in memory, not packed, which are soon needed.
    const char *first
    Py_ssize_t step


cdef inline void prefetch_column(const Columns *ahead, Py_ssize_t c) noexcept nogil:
    if ahead != NULL:
        prefetch(ahead.first + c * ahead.step)


cdef inline void add_groups(int kind, bint general, bint dense, int used, const real *x,
                            const real *y, real *e, Py_ssize_t n, const Columns *ahead,
                            const Scale *scale, vec maximum, vec *rest, vec *low, vec *dot,
                            vec *q, vec *others) noexcept nogil:
    """For each of a quarter of the lanes columns c, c + LANES / 4, ...

    used: how many these are at most, or 4 for any number.
    """
    cdef vec zero = v_set1(0), start = v_set1(SPLITTER)
    cdef vec[4] r, l, d, w
    cdef Py_ssize_t first, c, place, quarter = LANES // 4
    cdef int p
    for first in range(n if used == 1 else quarter):
        for p in range(used):
            r[p] = start
            l[p] = d[p] = w[p] = zero
        c = first
        place = first * VLEN  # packed_at(c)
        if used < 4:
            for p in range(used):
                if p < used - 1 or c + p * quarter < n:
                    prefetch_column(ahead, c + p * quarter)
                    add_column(kind, general, dense, x, y, e, place + p * quarter * VLEN, scale,
                               maximum, &r[p], &l[p], &d[p], &w[p], others)
        else:
            while c + 3 * quarter < n:
                for p in range(4):
                    prefetch_column(ahead, c + p * quarter)
                    add_column(kind, general, dense, x, y, e, place + p * quarter * VLEN, scale,
                               maximum, &r[p], &l[p], &d[p], &w[p], others)
                c += LANES
                place += (LANES + 1) * VLEN
            for p in range(3):
                if c + p * quarter < n:
                    prefetch_column(ahead, c + p * quarter)
                    add_column(kind, general, dense, x, y, e, place + p * quarter * VLEN, scale,
                               maximum, &r[p], &l[p], &d[p], &w[p], others)
        for p in range(used):
            r[p] = v_sub(r[p], start)
        rest[first] = in_order(used, r)
        if SPLITS:
            low[first] = in_order(used, l)
        if dense:
            dot[first] = in_order(used, d)
            q[first] = in_order(used, w)


cdef inline void sum_chunk_columns(int kind, bint general, bint dense, const real *x,
                                   const real *y, real *e, Py_ssize_t n, const Columns *ahead,
                                   const Scale *scale, vec maximum, LaneSums *result) noexcept nogil:
    """sum_lanes of VLEN rows, a lane a row; what it adds up are the rows' sums, not lanes.

    The tree over the lanes of the contract (64, or 32) begins with those that are a quarter
    of them apart.
    """
    cdef vec zero = v_set1(0), others = zero
    cdef vec[16] rest, low, dot, q
    cdef Py_ssize_t first, quarter = LANES // 4
    for first in range(min(n, quarter), 8 if n <= 8 else 16):
        rest[first] = zero
        if SPLITS:
            low[first] = zero
        if dense:
            dot[first] = q[first] = zero
    if n <= quarter:
        add_groups(kind, general, dense, 1, x, y, e, n, ahead, scale, maximum, rest, low, dot, q,
                   &others)
    elif n <= 2 * quarter:
        add_groups(kind, general, dense, 2, x, y, e, n, ahead, scale, maximum, rest, low, dot, q,
                   &others)
    elif n <= 3 * quarter:
        add_groups(kind, general, dense, 3, x, y, e, n, ahead, scale, maximum, rest, low, dot, q,
                   &others)
    else:
        add_groups(kind, general, dense, 4, x, y, e, n, ahead, scale, maximum, rest, low, dot, q,
                   &others)
    n = min(n, quarter)
    result.rest = add_quarter(rest, n)
    result.low = add_quarter(low, n) if SPLITS else zero
    v_store(result.lane_others, others)
    if dense:
        result.dot = add_quarter(dot, n)
        result.q = add_quarter(q, n)


cdef inline vec add_few(const vec *a, int n) noexcept nogil:
    """The tree over n <= 8 lanes, none of which holds -0."""
    cdef vec[4] b
    cdef int j
    for j in range(4):
        b[j] = v_add(a[j], a[j + 4]) if n > j + 4 else a[j]
    b[0] = v_add(b[0], b[2]) if n > 2 else b[0]
    b[1] = v_add(b[1], b[3]) if n > 3 else b[1]
    return v_add(b[0], b[1]) if n > 1 else b[0]


cdef inline void sum_few_columns(int kind, int n, const real *x, real *e, const Scale *scale,
                                 vec maximum, LaneSums *result) noexcept nogil:
    """sum_chunk_columns of n <= 8 packed columns, n a constant: everything is in registers."""
    cdef vec start = v_set1(SPLITTER), others = v_set1(0), at_max = others, xv, term, rest
    cdef vec[8] group, low_group
    cdef vmask other
    cdef int c
    for c in range(n):
        xv = v_load(x + c * VLEN)
        term = exp_scaled(False, xv, scale)
        if kind == EXP_STORED:
            v_store(e + c * VLEN, term)
        other = v_ne(xv, maximum)
        others = v_add_where(other, others, v_set1(1))
        at_max = v_where(other, at_max, term)
        group[c] = v_zero_unless(other, term)
        if SPLITS:
            rest = v_add(start, group[c])
            term = group[c]
            group[c] = v_sub(rest, start)
            low_group[c] = v_sub(term, group[c])
    result.at_max = at_max
    result.rest = add_few(group, n)
    if SPLITS:
        result.low = add_few(low_group, n)
    v_store(result.lane_others, others)


cdef inline void spread(vec a, double *numbers) noexcept nogil:
    cdef real[16] lanes
    cdef Py_ssize_t k
    v_store(lanes, a)
    for k in range(VLEN):
        numbers[k] = lanes[k]


cdef inline void sum_columns_as(int kind, bint general, bint dense, int few, Py_ssize_t n,
                                const real *x, const real *y, real *e, vec m, const View *view,
                                const Columns *ahead, Batch *batch) noexcept nogil:
    """few: n as a constant if it is so small; else 0."""
    cdef LaneSums sums
    cdef Scale scale
    cdef Partial[4] part
    cdef double[64] rest, low, dot, q
    cdef Py_ssize_t c, k, chunk, chunks = (n + CHUNK - 1) // CHUNK
    scale_lanes(general, m, view, &scale)
    v_store(batch.max, m)
    v_store(batch.magic, scale.magic)
    if few == 0:
        sums.at_max = exp_scaled(general, m, &scale)
    if few > 0 or chunks == 1:
        if few > 0:
            for c in range(few):
                prefetch_column(ahead, c)
            sum_few_columns(kind, few, x, e, &scale, m, &sums)
        else:
            sum_chunk_columns(kind, general, dense, x, y, e, n, ahead, &scale, m, &sums)
        v_store(batch.at_max, sums.at_max)
        for k in range(VLEN):
            batch.count[k] = n - sums.lane_others[k]
        spread(sums.rest, batch.rest)
        spread(sums.low if SPLITS else v_set1(0), batch.low)
        if dense:
            spread(sums.dot, batch.dot)
            spread(sums.q, batch.q)
    else:
        v_store(batch.at_max, sums.at_max)
        for k in range(VLEN):
            batch.count[k] = n
        for chunk in range(chunks):
            c = chunk * CHUNK
            sum_chunk_columns(kind, general, dense, x + packed_at(c),
                              y + packed_at(c) if dense else NULL, e + packed_at(c),
                              min(n - c, CHUNK), NULL, &scale, m, &sums)
            for k in range(VLEN):
                batch.count[k] -= sums.lane_others[k]
            spread(sums.rest, rest + chunk * VLEN)
            spread(sums.low, low + chunk * VLEN)
            if dense:
                spread(sums.dot, dot + chunk * VLEN)
                spread(sums.q, q + chunk * VLEN)
        for k in range(chunks * VLEN, 4 * VLEN):
            rest[k] = low[k] = dot[k] = q[k] = 0
        for k in range(VLEN):
            for c in range(4):
                part[c].rest = rest[c * VLEN + k]
                part[c].low = low[c * VLEN + k]
            add_four_exactly(part)
            batch.rest[k] = part[0].rest
            batch.low[k] = part[0].low
            if dense:
                batch.dot[k] = (dot[k] + dot[VLEN + k]) + (dot[2 * VLEN + k] + dot[3 * VLEN + k])
                batch.q[k] = (q[k] + q[VLEN + k]) + (q[2 * VLEN + k] + q[3 * VLEN + k])
    if dense:
        for k in range(VLEN):
            if batch.max[k] == -INFINITY:
                batch.dot[k] = INFINITY if batch.q[k] > 0 else 0


ctypedef void (*ColumnsFunction)(Py_ssize_t, const real *, const real *, real *, vec, const View *,
                                 const Columns *, Batch *) noexcept nogil
# sum_columns_as by its first arguments; filled in instances.pxi.in.
cdef ColumnsFunction[2][2][2][9] column_sums


cdef inline void sum_columns(Kind kind, bint dense, Py_ssize_t n, const real *x, const real *y,
                             real *e, vec m, const View *view, const Columns *ahead,
                             Batch *batch) noexcept nogil:
    """sum_batch of VLEN rows of up to a block, whose columns x are packed.

    m: the rows' maxima. e, the exponentials if they are stored, may be x.
    """
    cdef Py_ssize_t few = n if 1 < n <= FEW_COLUMNS and not dense and not view.general else 0
    column_sums[<int>kind][view.general][dense][few](n, x, y, e, m, view, ahead, batch)


cdef void few_to_columns(int n, const real *rows, real *columns) noexcept nogil:
    """v_columns, with those n that compilers do well a constant."""
    if n == 2:
        v_columns(2, rows, columns)
    elif n == 3:
        v_columns(3, rows, columns)
    elif n == 4:
        v_columns(4, rows, columns)
    elif n == 5:
        v_columns(5, rows, columns)
    elif n == 6:
        v_columns(6, rows, columns)
    elif n == 7:
        v_columns(7, rows, columns)
    elif n == 8:
        v_columns(8, rows, columns)
    else:
        v_columns(n, rows, columns)


cdef void few_to_rows(int n, const real *columns, real *rows) noexcept nogil:
    """v_rows, likewise."""
    if n == 2:
        v_rows(2, columns, rows)
    elif n == 3:
        v_rows(3, columns, rows)
    elif n == 4:
        v_rows(4, columns, rows)
    elif n == 5:
        v_rows(5, columns, rows)
    elif n == 6:
        v_rows(6, columns, rows)
    elif n == 7:
        v_rows(7, columns, rows)
    elif n == 8:
        v_rows(8, columns, rows)
    else:
        v_rows(n, columns, rows)


cdef inline Py_ssize_t sum_few(int op, const Rows *rows, Py_ssize_t n, Py_ssize_t start,
                               Py_ssize_t count, const View *view, real *e,
                               Batch *batch) noexcept nogil:
    """sum_batch for rows of up to FEW_COLUMNS columns; e is left column by column."""
    cdef real *columns = e + FEW_COLUMNS * VLEN
    cdef const real *x
    cdef vec m = v_set1(<real>-INFINITY)
    cdef uint64_t outside
    cdef Py_ssize_t c, k
    if count == VLEN and rows.x_step == n * <Py_ssize_t>sizeof(real):
        few_to_columns(<int>n, x_of(rows, start), columns)
    else:
        for k in range(count):
            x = x_of(rows, start + k)
            for c in range(n):
                columns[c * VLEN + k] = x[c]
        for k in range(count, VLEN):
            for c in range(n):
                columns[c * VLEN + k] = 0
    for c in range(n):
        m = v_max(v_load(columns + c * VLEN), m)
    outside = out_of_reach(False, m, view)
    sum_columns(kind_of(op), False, n, columns, NULL, e, m, view, NULL, batch)
    return first_bit(outside) if outside != 0 else count


cdef inline void write_few(int op, const Rows *rows, Py_ssize_t n, Py_ssize_t start,
                           Py_ssize_t count, real *e, const Batch *batch) noexcept nogil:
    """The last sweep of what sum_few has left column by column, and back into rows."""
    cdef const real *columns = e + FEW_COLUMNS * VLEN if op == LOG_SOFTMAX else e
    cdef vec zero = v_set1(0)
    cdef Last last
    cdef real *out
    cdef Py_ssize_t c, k
    last.high = v_load(batch.high)
    last.low = v_load(batch.low_factor)
    last.m = v_load(batch.max)
    for c in range(n):
        v_store(e + c * VLEN, last_value(op, False, False, False, v_load(columns + c * VLEN),
                                         zero, &last))
    if count == VLEN and rows.out_step == n * <Py_ssize_t>sizeof(real):
        few_to_rows(<int>n, e, out_of(rows, start))
        return
    for k in range(count):
        out = out_of(rows, start + k)
        for c in range(n):
            out[c] = e[c * VLEN + k]
