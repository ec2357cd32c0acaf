# The first sweep over a row: maxima, exponentials and what is added up, of a chunk (eight lane
# rows), a block (four chunks) and of stretches of blocks.
#
# Mathematics, the order of additions and precision: row.pxi. Lanes are vectors' own; a Partial
# holds what is known of a stretch, its sums in double.
#
# Passes.  A block is read twice, for its maximum and, from a first-level cache, for its
# exponentials; products once.

# What a sweep does with an element; operations share sweeps.
cdef enum Kind:
    EXP_STORED  # add its exponential up, and store it
    EXP_SUMMED  # add its exponential up
    PRODUCT     # add x * y up
    PLAIN       # add y up


# What each operation needs, constant once inlined.

cdef inline bint stores_exp(int op) noexcept nogil:
    return op == SOFTMAX or op == CROSS_ENTROPY_WITH_GRAD

cdef inline bint is_product(int op) noexcept nogil:
    """Operations whose sweep adds products of two operands and needs no exponential."""
    return op == SOFTMAX_VJP or op == LOG_SOFTMAX_VJP or op == DOT

cdef inline bint is_loss(int op) noexcept nogil:
    return op == CROSS_ENTROPY or op == CROSS_ENTROPY_WITH_GRAD

cdef inline bint needs_log(int op) noexcept nogil:
    return op != SOFTMAX and not is_product(op)

cdef inline bint has_elements(int op) noexcept nogil:
    """Operations with a result for every element."""
    return op != LOGSUMEXP and op != CROSS_ENTROPY and op != DOT

cdef inline Kind kind_of(int op) noexcept nogil:
    if op == LOG_SOFTMAX_VJP:
        return PLAIN
    if is_product(op):
        return PRODUCT
    return EXP_STORED if stores_exp(op) else EXP_SUMMED

cdef inline bint has_exp(int kind) noexcept nogil:
    """Sweeps of exponentials; the others add y up, or its products."""
    return kind == EXP_STORED or kind == EXP_SUMMED


# ---------------------------------------------------------------- one block, one chunk

# How many bytes further on memory is asked for what comes next, line by line between
# exponentials, which leave the loads idle: beyond what the maxima have read, but so that a
# first-level cache holds it all.
cdef enum:
    AHEAD_STORED = 12 << 10  # beside exponentials that are stored
    AHEAD = 16 << 10
    AHEAD_SHORT = 4 << 10    # rows of one vector


cdef inline vec lane_max(int vectors, const real *x, Py_ssize_t n) noexcept nogil:
    """Per lane the largest element of up to one chunk; NaN is passed over.

    vectors: how many n columns take, up to a lane row; 0 for any n.
    """
    cdef vec lowest = v_set1(<real>-INFINITY)
    cdef vec[4] m
    cdef Py_ssize_t i = 0
    cdef int v
    if vectors > 0:
        m[0] = v_max(v_load_first(x + (vectors - 1) * VLEN,
                                  v_first(n - (vectors - 1) * VLEN), lowest), lowest)
        for v in range(vectors - 1):
            m[0] = v_max(v_load(x + v * VLEN), m[0])
        return m[0]
    for v in range(4):
        m[v] = lowest
    if n >= VLEN:
        # Any order does, so the loads between the first and the last cross no cache line.
        m[2] = v_max(v_load(x), lowest)
        m[3] = v_max(v_load(x + n - VLEN), lowest)
        i = -(<Py_ssize_t>x // <Py_ssize_t>sizeof(real)) & (VLEN - 1)
    while i + LANES <= n:
        for v in range(4):
            m[v] = v_max(v_load(x + i + v * VLEN), m[v])
        i += LANES
    while i + VLEN <= n:
        m[0] = v_max(v_load(x + i), m[0])
        i += VLEN
    if n < VLEN:
        m[1] = v_max(v_load_first(x, v_first(n), lowest), m[1])
    return v_max(v_max(m[0], m[2]), v_max(m[1], m[3]))


cdef inline double row_max(const real *x, Py_ssize_t n) noexcept nogil:
    cdef double m = -INFINITY
    cdef Py_ssize_t begin
    for begin from 0 <= begin < n by CHUNK:
        m = max(m, <double>v_reduce_max(lane_max(0, x + begin, opaque(min(n - begin, CHUNK)))))
    return m


cdef struct Maxima:
    # Of a block; NaN is passed over.
    vec[4] of_chunk  # lane by lane
    double whole


cdef void find_maxima(const real *x, Py_ssize_t n, Maxima *maxima) noexcept nogil:
    cdef vec *m = maxima.of_chunk
    cdef Py_ssize_t begin
    cdef int c
    for c in range(4):
        begin = min(n, c * CHUNK)
        m[c] = lane_max(0, x + begin, opaque(min(n - begin, CHUNK)))
    maxima.whole = v_reduce_max(v_max(v_max(m[0], m[2]), v_max(m[1], m[3])))


cdef struct Sums:
    # Four accumulators each: the four vectors of a lane row.
    vec[4] rest
    vec[4] low
    vec[4] dot
    vec[4] q
    Py_ssize_t others  # how many columns went into rest

cdef struct LaneSums:
    # The same with the four added up; lanes are still to be added.
    vec rest, low, dot, q
    vec at_max  # exponential of the maximum, where every lane is a row
    Py_ssize_t others
    real[16] lane_others  # instead of it where every lane is a row


cdef inline vec add_element(int kind, bint general, bint dense, bint easy, vec x, vec y,
                            const Scale *scale, vec maximum, Sums *sums, int v) noexcept nogil:
    """Take one vector into the sums; its exponentials are returned."""
    cdef vec e = x, before
    cdef vmask other
    if kind == PLAIN:
        sums.dot[v] = v_add(y, sums.dot[v])
        return e
    if kind == PRODUCT:
        sums.dot[v] = v_fma(x, y, sums.dot[v])
        return e
    e = exp_scaled(general, x, scale)
    before = sums.rest[v]
    # What does not fit the grid that SPLITTER makes of a lane goes to low.
    if easy:
        sums.rest[v] = v_add(before, e)
        if SPLITS:
            sums.low[v] = v_add(sums.low[v], v_sub(e, v_sub(sums.rest[v], before)))
    else:
        other = v_ne(x, maximum)
        sums.rest[v] = v_add_where(other, before, e)
        if SPLITS:
            sums.low[v] = v_add_where(other, sums.low[v], v_sub(e, v_sub(sums.rest[v], before)))
        sums.others += v_count(other)
    if dense:
        sums.dot[v] = v_add(sums.dot[v], v_zero_unless(v_ne(y, v_set1(0)),
                                                       v_mul(y, v_sub(maximum, x))))
        sums.q[v] = v_add(sums.q[v], y)
    return e


cdef inline vec in_order(int vectors, const vec *a) noexcept nogil:
    """The four vectors of a lane row added as the tree has them; absent ones are zero."""
    if vectors == 1:
        return a[0]
    if vectors == 2:
        return v_add(a[0], a[1])
    if vectors == 3:
        return v_add(v_add(a[0], a[2]), a[1])
    return v_add(v_add(a[0], a[2]), v_add(a[1], a[3]))


cdef inline bint has_any(const real *x, vec value) noexcept nogil:
    """Whether an element of a lane row equals `value`."""
    return v_any(v_or(v_or(v_eq(v_load(x), value), v_eq(v_load(x + VLEN), value)),
                      v_or(v_eq(v_load(x + 2 * VLEN), value),
                           v_eq(v_load(x + 3 * VLEN), value))))


cdef inline vec load_x(int kind, const real *x) noexcept nogil:
    """Logits have been read for their maximum; of a product nothing has been."""
    return v_fetch(x) if kind == PRODUCT else v_load(x)


cdef inline void prefetch_beside(int kind, const real *x) noexcept nogil:
    """Ask memory for what comes next, beside the exponentials of the vector at x."""
    prefetch(<const char *>x + (AHEAD_STORED if kind == EXP_STORED else AHEAD))


cdef inline void add_lane_row(int kind, bint general, bint dense, bint easy, const real *x,
                              const real *y, real *e, Py_ssize_t i, const Scale *scale,
                              vec maximum, Sums *sums) noexcept nogil:
    """Take the columns from i on, of which there is a whole lane row."""
    cdef vec xv, ev, yv = v_set1(0)
    cdef int v
    for v in range(4):
        if dense or not has_exp(kind):
            yv = v_fetch(y + i + v * VLEN)
        xv = load_x(kind, x + i + v * VLEN) if kind != PLAIN else yv
        if has_exp(kind):
            prefetch_beside(kind, x + i + v * VLEN)
        ev = add_element(kind, general, dense, easy, xv, yv, scale, maximum, sums, v)
        if kind == EXP_STORED:
            v_store(e + i + v * VLEN, ev)


cdef inline void sum_lanes(int kind, bint general, bint dense, bint easy, int vectors,
                           const real *x, const real *y, real *e, bint roomy, Py_ssize_t n,
                           const Scale *scale, vec maximum, LaneSums *result) noexcept nogil:
    """Sums over up to CHUNK columns, lane by lane; exponentials go to e if they are stored.

    easy: no element equals maximum. vectors: as for lane_max. roomy: e may be written up to
    the end of the last vector.
    """
    cdef Sums sums
    cdef vec zero = v_set1(0), yv = zero, xv, ev
    cdef vec absent = v_set1(<real>-INFINITY) if has_exp(kind) else zero
    cdef vmask present
    cdef Py_ssize_t i = 0, left
    cdef int v, used = vectors if vectors > 0 else 4
    cdef int last = vectors - 1
    sums.others = 0
    # What is not added up is not cleared either: the loop over the tail keeps these in memory,
    # where a compiler does not see that nobody reads them.
    for v in range(used):
        if has_exp(kind):
            sums.rest[v] = v_set1(SPLITTER)
        if has_exp(kind) and SPLITS:
            sums.low[v] = zero
        if dense or not has_exp(kind):
            sums.dot[v] = zero
        if dense:
            sums.q[v] = zero
    if vectors == 0:
        while i + LANES <= n:
            # Sums that are split are worth a look for lane rows without a maximum. The others
            # would gain less than the branch costs where it is not foreseen.
            if has_exp(kind) and SPLITS and not easy and not has_any(x + i, maximum):
                add_lane_row(kind, general, dense, True, x, y, e, i, scale, maximum, &sums)
                sums.others += LANES
            else:
                add_lane_row(kind, general, dense, easy, x, y, e, i, scale, maximum, &sums)
            i += LANES
    for v in range(used):
        left = n - i - v * VLEN
        if has_exp(kind) and vectors == 0 and left > 0:
            prefetch_beside(kind, x + i + v * VLEN)
        if vectors > 0 and v < last or left >= VLEN:
            if dense or not has_exp(kind):
                yv = v_fetch(y + i + v * VLEN)
            xv = load_x(kind, x + i + v * VLEN) if kind != PLAIN else zero
            ev = add_element(kind, general, dense, easy, xv, yv, scale, maximum, &sums, v)
            if kind == EXP_STORED:
                v_store(e + i + v * VLEN, ev)
        elif vectors > 0 or left > 0:
            present = v_first(left)
            if dense or not has_exp(kind):
                yv = v_load_first(y + i + v * VLEN, present, zero)
            xv = v_load_first(x + i + v * VLEN, present, absent) if kind != PLAIN else zero
            ev = add_element(kind, general, dense, easy, xv, yv, scale, maximum, &sums, v)
            if kind == EXP_STORED:
                if roomy:
                    v_store(e + i + v * VLEN, ev)
                else:
                    v_store_first(e + i + v * VLEN, left, ev)
    if has_exp(kind):
        for v in range(used):
            sums.rest[v] = v_sub(sums.rest[v], v_set1(SPLITTER))
        result.rest = in_order(vectors, sums.rest)
        if SPLITS:
            result.low = in_order(vectors, sums.low)
        result.others = sums.others
    if dense or not has_exp(kind):
        result.dot = in_order(vectors, sums.dot)
    if dense:
        result.q = in_order(vectors, sums.q)


cdef inline Py_ssize_t ties_of(Py_ssize_t n, Py_ssize_t others) noexcept nogil:
    """How many of n columns were not others: absent ones of the last vector count as such."""
    return (n + VLEN - 1) // VLEN * VLEN - others


cdef inline void add_exactly(const Partial *a, const Partial *b, Partial *total) noexcept nogil:
    """rest and low of a + b; the error of adding the rests goes to low (Knuth's TwoSum)."""
    cdef double rest = a.rest + b.rest, b_part = rest - a.rest
    total.low = (a.low + b.low) + ((a.rest - (rest - b_part)) + (b.rest - b_part))
    total.rest = rest


cdef inline void add_four_exactly(Partial *chunk) noexcept nogil:
    add_exactly(&chunk[0], &chunk[1], &chunk[0])
    add_exactly(&chunk[2], &chunk[3], &chunk[2])
    add_exactly(&chunk[0], &chunk[2], &chunk[0])


cdef inline void add_block_as(int kind, bint general, bint dense, const real *x, const real *y,
                              real *e, bint roomy, Py_ssize_t n, const View *view,
                              const Maxima *maxima, double exponent,
                              Partial *block) noexcept nogil:
    cdef Scale scale
    cdef LaneSums sums
    cdef Partial[4] chunk
    cdef vec maximum = v_set1(0)
    cdef int c, chunks = <int>((n + CHUNK - 1) // CHUNK)
    cdef Py_ssize_t begin, length
    cdef bint easy = False
    cdef const real *x_part
    cdef const real *y_part
    cdef real *e_part
    block.max = -INFINITY
    block.exponent = exponent
    block.at_max = 0
    for c in range(4):
        chunk[c].rest = chunk[c].low = chunk[c].count = chunk[c].dot = chunk[c].q = 0
    if has_exp(kind):
        block.max = maxima.whole
        maximum = v_set1(<real>block.max)
        set_scale(&scale, view, exponent)
    for c in range(chunks):
        begin = c * CHUNK
        length = min(n - begin, CHUNK)
        if has_exp(kind):
            easy = not v_any(v_eq(maxima.of_chunk[c], maximum))
        else:
            length = opaque(length)
        x_part = x + begin
        y_part = y + begin if y != NULL else NULL
        e_part = e + begin if e != NULL else NULL
        if easy:
            sum_lanes(kind, general, dense, True, 0, x_part, y_part, e_part, roomy, length,
                      &scale, maximum, &sums)
        else:
            sum_lanes(kind, general, dense, False, 0, x_part, y_part, e_part, roomy, length,
                      &scale, maximum, &sums)
        if has_exp(kind) and not easy:
            chunk[c].count = ties_of(length, sums.others)
        if has_exp(kind):
            chunk[c].rest = v_reduce_add(sums.rest)
            chunk[c].low = v_reduce_add(sums.low) if SPLITS else 0
        if dense or not has_exp(kind):
            chunk[c].dot = v_reduce_add(sums.dot)
            chunk[c].q = v_reduce_add(sums.q) if dense else 0
    if chunks > 1:
        add_four_exactly(chunk)
    block.rest = chunk[0].rest
    block.low = chunk[0].low
    block.count = chunk[0].count + chunk[1].count + chunk[2].count + chunk[3].count
    block.dot = (chunk[0].dot + chunk[1].dot) + (chunk[2].dot + chunk[3].dot)
    block.q = (chunk[0].q + chunk[1].q) + (chunk[2].q + chunk[3].q)
    if has_exp(kind):
        if block.max == -INFINITY:
            block.count = 0
            if dense and block.q > 0:
                block.dot = INFINITY
        else:
            block.at_max = v_reduce_max(exp_scaled(general, maximum, &scale))


ctypedef void (*BlockFunction)(const real *, const real *, real *, bint, Py_ssize_t, const View *,
                               const Maxima *, double, Partial *) noexcept nogil
# add_block_as by its first arguments; filled in instances.pxi.in.
cdef BlockFunction[4][2][2] block_sums


cdef inline void add_block(Kind kind, bint dense, const real *x, const real *y, real *e,
                           bint roomy, Py_ssize_t n, const View *view, const Maxima *maxima,
                           double exponent, Partial *block) noexcept nogil:
    """Sums over up to BLOCK columns, scaled by 2^exponent; roomy: as for sum_lanes."""
    block_sums[<int>kind][has_exp(kind) and view.general][dense](x, y, e, roomy, n, view, maxima,
                                                                 exponent, block)


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
    return fabs(<real>((m - view.shift) * view.beta_high)) <= ANCHOR


cdef bint sweep(int op, bint dense, const real *x, const real *y, real *e, bint roomy,
                Py_ssize_t n, const View *view, double start_max, Partial *result,
                double *exponents) noexcept nogil:
    """First sweep over n columns. False if the maximum turned out to be out of reach.

    The exponentials go to e, with the scale 2^exponents[b] of each block. start_max is a
    lower bound of the row's maximum, or -inf.
    """
    cdef Kind kind = kind_of(op)
    cdef Partial[48] stack
    cdef Maxima maxima
    cdef int depth = 0
    cdef Py_ssize_t begin, length, index = 0
    cdef double running = start_max, exponent = 0
    for begin from 0 <= begin < n by BLOCK:
        length = min(n - begin, BLOCK)
        if has_exp(kind):
            find_maxima(x + begin, length, &maxima)
            running = max(running, maxima.whole)
            if running > -INFINITY and not in_reach(view, running):
                return False
            exponent = exponent_of(view, maxima.whole)
        add_block(kind, dense, x + begin, y + begin if y != NULL else NULL,
                  e + begin if e != NULL else NULL, roomy, length, view, &maxima, exponent,
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
