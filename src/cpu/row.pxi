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
# Passes.  Rows of up to one block, several in work together: maximum, exp into scratch (up to a
# chunk) or `out`, one scaling sweep over what a first-level cache still holds; x is read from
# memory once, `out` written once. Longer: block by block maximum and exp, stored to `out`, then
# one scaling sweep: two reads and two writes of memory. logsumexp and the loss: one read.
# In place a long row's maximum is taken beforehand: a sweep that must start again
# (an anchored row) has to find x intact.

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
        if dense or kind == PRODUCT or kind == PLAIN:
            yv = v_fetch(y + i + v * VLEN)
        xv = load_x(kind, x + i + v * VLEN) if kind != PLAIN else yv
        if kind == EXP_STORED or kind == EXP_SUMMED:
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
    cdef vec absent = zero if kind == PRODUCT or kind == PLAIN else v_set1(<real>-INFINITY)
    cdef vmask present
    cdef Py_ssize_t i = 0, left
    cdef int v, used = vectors if vectors > 0 else 4
    cdef int last = vectors - 1
    cdef bint has_exp = kind == EXP_STORED or kind == EXP_SUMMED
    sums.others = 0
    # What is not added up is not cleared either: the loop over the tail keeps these in memory,
    # where a compiler does not see that nobody reads them.
    for v in range(used):
        if has_exp:
            sums.rest[v] = v_set1(SPLITTER)
        if has_exp and SPLITS:
            sums.low[v] = zero
        if dense or not has_exp:
            sums.dot[v] = zero
        if dense:
            sums.q[v] = zero
    if vectors == 0:
        while i + LANES <= n:
            # Sums that are split are worth a look for lane rows without a maximum. The others
            # would gain less than the branch costs where it is not foreseen.
            if has_exp and SPLITS and not easy and not has_any(x + i, maximum):
                add_lane_row(kind, general, dense, True, x, y, e, i, scale, maximum, &sums)
                sums.others += LANES
            else:
                add_lane_row(kind, general, dense, easy, x, y, e, i, scale, maximum, &sums)
            i += LANES
    for v in range(used):
        left = n - i - v * VLEN
        if has_exp and vectors == 0 and left > 0:
            prefetch_beside(kind, x + i + v * VLEN)
        if vectors > 0 and v < last or left >= VLEN:
            if dense or kind == PRODUCT or kind == PLAIN:
                yv = v_fetch(y + i + v * VLEN)
            xv = load_x(kind, x + i + v * VLEN) if kind != PLAIN else zero
            ev = add_element(kind, general, dense, easy, xv, yv, scale, maximum, &sums, v)
            if kind == EXP_STORED:
                v_store(e + i + v * VLEN, ev)
        elif vectors > 0 or left > 0:
            present = v_first(left)
            if dense or kind == PRODUCT or kind == PLAIN:
                yv = v_load_first(y + i + v * VLEN, present, zero)
            xv = v_load_first(x + i + v * VLEN, present, absent) if kind != PLAIN else zero
            ev = add_element(kind, general, dense, easy, xv, yv, scale, maximum, &sums, v)
            if kind == EXP_STORED:
                if roomy:
                    v_store(e + i + v * VLEN, ev)
                else:
                    v_store_first(e + i + v * VLEN, left, ev)
    if has_exp:
        for v in range(used):
            sums.rest[v] = v_sub(sums.rest[v], v_set1(SPLITTER))
        result.rest = in_order(vectors, sums.rest)
        if SPLITS:
            result.low = in_order(vectors, sums.low)
        result.others = sums.others
    if dense or not has_exp:
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
    if kind == EXP_STORED or kind == EXP_SUMMED:
        block.max = maxima.whole
        maximum = v_set1(<real>block.max)
        set_scale(&scale, view, exponent)
    for c in range(chunks):
        begin = c * CHUNK
        length = min(n - begin, CHUNK)
        if kind == EXP_STORED or kind == EXP_SUMMED:
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
        if (kind == EXP_STORED or kind == EXP_SUMMED) and not easy:
            chunk[c].count = ties_of(length, sums.others)
        if kind == EXP_STORED or kind == EXP_SUMMED:
            chunk[c].rest = v_reduce_add(sums.rest)
            chunk[c].low = v_reduce_add(sums.low) if SPLITS else 0
        if dense or kind == PRODUCT or kind == PLAIN:
            chunk[c].dot = v_reduce_add(sums.dot)
            chunk[c].q = v_reduce_add(sums.q) if dense else 0
    if chunks > 1:
        add_four_exactly(chunk)
    block.rest = chunk[0].rest
    block.low = chunk[0].low
    block.count = chunk[0].count + chunk[1].count + chunk[2].count + chunk[3].count
    block.dot = (chunk[0].dot + chunk[1].dot) + (chunk[2].dot + chunk[3].dot)
    block.q = (chunk[0].q + chunk[1].q) + (chunk[2].q + chunk[3].q)
    if kind == EXP_STORED or kind == EXP_SUMMED:
        if block.max == -INFINITY:
            block.count = 0
            if dense and block.q > 0:
                block.dot = INFINITY
        else:
            block.at_max = v_reduce_max(exp_scaled(general, maximum, &scale))


cdef void add_block(Kind kind, bint dense, const real *x, const real *y, real *e, bint roomy,
                    Py_ssize_t n, const View *view, const Maxima *maxima, double exponent,
                    Partial *block) noexcept nogil:
    """Sums over up to BLOCK columns, scaled by 2^exponent; roomy: as for sum_lanes."""
    cdef bint general = view.general
    if kind == PRODUCT:
        add_block_as(PRODUCT, False, False, x, y, e, roomy, n, view, maxima, exponent, block)
    elif kind == PLAIN:
        add_block_as(PLAIN, False, False, x, y, e, roomy, n, view, maxima, exponent, block)
    elif kind == EXP_STORED and dense and general:
        add_block_as(EXP_STORED, True, True, x, y, e, roomy, n, view, maxima, exponent, block)
    elif kind == EXP_STORED and dense:
        add_block_as(EXP_STORED, False, True, x, y, e, roomy, n, view, maxima, exponent, block)
    elif kind == EXP_STORED and general:
        add_block_as(EXP_STORED, True, False, x, y, e, roomy, n, view, maxima, exponent, block)
    elif kind == EXP_STORED:
        add_block_as(EXP_STORED, False, False, x, y, e, roomy, n, view, maxima, exponent, block)
    elif dense and general:
        add_block_as(EXP_SUMMED, True, True, x, y, e, roomy, n, view, maxima, exponent, block)
    elif dense:
        add_block_as(EXP_SUMMED, False, True, x, y, e, roomy, n, view, maxima, exponent, block)
    elif general:
        add_block_as(EXP_SUMMED, True, False, x, y, e, roomy, n, view, maxima, exponent, block)
    else:
        add_block_as(EXP_SUMMED, False, False, x, y, e, roomy, n, view, maxima, exponent, block)


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
        if kind == EXP_STORED or kind == EXP_SUMMED:
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
    cdef vec d = v_sub(x, m), z, lowest = v_set1(<real>-INFINITY), half = v_set1(0.5)
    if not general:
        return v_sub(d, log_s)
    # A difference that overflows is still 0 at temperature inf.
    d = v_zero_unless(v_ne(beta_high, v_set1(0)), d)
    z = v_mul(d, beta_high)
    # Where d or z overflows: with half of d, which is exact there, and without the low part,
    # which would make NaN of it.
    z = v_where(v_eq(z, lowest),
                v_sub(v_mul(v_sub(v_mul(x, half), v_mul(m, half)), v_add(beta_high, beta_high)),
                      log_s),
                v_fma(d, beta_high, v_sub(v_mul(d, beta_low), log_s)))
    return v_where(v_eq(x, lowest), v_sub(x, log_s), z)


cdef struct Last:
    # What the last sweep needs to know, spread over vectors.
    vec high, low  # the factor of exponentials; for log_softmax high is log S
    vec m          # the maximum; for a gradient less its factor; for a vjp the sum
    vec beta_high, beta_low
    vec scale      # of the block


cdef inline vec last_value(int op, bint general, bint dense, bint rescaled, vec x, vec y,
                           const Last *last) noexcept nogil:
    """One vector of the last sweep; x holds exponentials where the operation stored them."""
    cdef vec result
    if stores_exp(op):
        if rescaled:
            x = v_mul(x, last.scale)
        result = v_multiply(x, last.high, last.low)
        return v_fma(last.m, y, result) if dense else result
    if op == LOG_SOFTMAX:
        return log_probability(general, x, last.m, last.beta_high, last.beta_low, last.high)
    if op == SOFTMAX_VJP:
        result = v_mul(x, v_sub(y, last.m))
    else:
        result = v_sub(y, v_mul(exp_of_negative(x), last.m))
    return v_mul(result, last.beta_high) if general else result


cdef inline void write_columns(int op, bint general, bint dense, bint rescaled, int vectors,
                               const real *x, const real *y, bint roomy, real *out,
                               Py_ssize_t n, const Last *last) noexcept nogil:
    """The last sweep over n columns. vectors: as for lane_max.

    roomy: x, which then holds exponentials, may be read up to the end of the last vector.
    """
    cdef vec zero = v_set1(0), xv, yv = zero
    cdef vmask present
    cdef Py_ssize_t i = 0, whole = n // VLEN * VLEN
    cdef int v
    if vectors > 0:
        whole = (vectors - 1) * VLEN
    for i from 0 <= i < whole by VLEN:
        xv = v_load(x + i)
        if dense or is_product(op):
            yv = v_load(y + i)
        v_store(out + i, last_value(op, general, dense, rescaled, xv, yv, last))
        if vectors == 0 and x == out and not is_product(op):
            prefetch(<const char *>(out + i) + AHEAD_STORED)
    if vectors > 0 or whole < n:
        present = v_first(n - whole)
        xv = v_load(x + whole) if roomy else v_load_first(x + whole, present, zero)
        if dense or is_product(op):
            yv = v_load_first(y + whole, present, zero)
        v_store_first(out + whole, n - whole,
                      last_value(op, general, dense, rescaled, xv, yv, last))


cdef inline void write_with_top(bint rescaled, const real *e, real *out, Py_ssize_t n,
                                const Last *last, LaneTop *top) noexcept nogil:
    """write_columns for a softmax; also finds the largest of whole lane rows and of the rest."""
    cdef LaneTop own = top[0]  # which no store to `out` can be taken to change
    cdef vec zero = v_set1(0), a, b, c, d
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        a = last_value(SOFTMAX, False, False, rescaled, v_load(e + i), zero, last)
        b = last_value(SOFTMAX, False, False, rescaled, v_load(e + i + VLEN), zero, last)
        c = last_value(SOFTMAX, False, False, rescaled, v_load(e + i + 2 * VLEN), zero, last)
        d = last_value(SOFTMAX, False, False, rescaled, v_load(e + i + 3 * VLEN), zero, last)
        v_store(out + i, a)
        v_store(out + i + VLEN, b)
        v_store(out + i + 2 * VLEN, c)
        v_store(out + i + 3 * VLEN, d)
        add_lane_row_to(&own, v_max(v_max(a, b), v_max(c, d)))
        i += LANES
    if i < n:
        b = v_set1(<real>-INFINITY)
        while i < n:
            a = v_load_first(e + i, v_first(n - i), zero)
            a = last_value(SOFTMAX, False, False, rescaled, a, zero, last)
            v_store_first(out + i, n - i, a)
            b = v_max(v_where(v_first(n - i), a, b), b)
            i += VLEN
        add_lane_row_to(&own, b)
    top[0] = own


cdef inline bint is_watched(int op, const Task *task) noexcept nogil:
    """Whether the largest of a row is looked for while it is written."""
    return op == SOFTMAX and task.tops != NULL and task.n > LANES


cdef void write_row_with_top(const real *e, real *out, real high, real low, const Task *task,
                             Py_ssize_t row) noexcept nogil:
    """A row whose exponentials have the same scale."""
    cdef LaneTop top = no_top()
    cdef Last last
    last.high = v_set1(high)
    last.low = v_set1(low)
    write_with_top(False, e, out, task.n, &last, &top)
    keep_top(&top, out, row, task)


cdef void write(int op, bint dense, const real *x, const real *y, const real *e, bint roomy,
                real *out, Py_ssize_t n, const View *view, const Partial *whole,
                const double *exponents, double gradient, LaneTop *top) noexcept nogil:
    """Last sweep: the values from the row's sums.

    gradient: what p - q is multiplied by. top: NULL, or for a softmax what is added to.
    """
    cdef Factor factor
    cdef double step, split
    cdef Last last
    cdef Py_ssize_t begin, length
    last.beta_high = v_set1(<real>view.beta_high)
    last.beta_low = v_set1(<real>view.beta_low)
    if op == LOG_SOFTMAX:
        last.m = v_set1(<real>whole.max)
        last.high = v_set1(<real>log_sum(whole))
        if view.general:
            write_columns(LOG_SOFTMAX, True, False, False, 0, x, NULL, False, out, n, &last)
        else:
            write_columns(LOG_SOFTMAX, False, False, False, 0, x, NULL, False, out, n, &last)
        return
    if is_product(op):
        last.m = v_set1(<real>whole.dot)
        if op == SOFTMAX_VJP:
            write_columns(SOFTMAX_VJP, True, False, False, 0, x, y, False, out, n, &last)
        else:
            write_columns(LOG_SOFTMAX_VJP, True, False, False, 0, x, y, False, out, n, &last)
        return
    factor = divide(gradient * whole.q if op == CROSS_ENTROPY_WITH_GRAD else 1, whole_sum(whole))
    last.m = v_set1(<real>-gradient)
    for begin from 0 <= begin < n by BLOCK:
        length = min(n - begin, BLOCK)
        step = exponents[begin // BLOCK] - whole.exponent if exponents != NULL else 0
        # The exact scale of a block far below the maximum may be subnormal itself.
        split = DEEP_SPLIT if step < DEEP else 0
        last.scale = v_set1(<real>power_of_two(step + split))
        last.high = v_set1(<real>(factor.high * power_of_two(-split)))
        last.low = v_set1(<real>(factor.low * power_of_two(-split)))
        if top != NULL:
            write_with_top(True, e + begin, out + begin, length, &last, top)
        elif dense:
            write_columns(SOFTMAX, False, True, True, 0, e + begin, y + begin, roomy, out + begin,
                          length, &last)
        elif step != 0:
            write_columns(SOFTMAX, False, False, True, 0, e + begin, NULL, roomy, out + begin,
                          length, &last)
        else:
            write_columns(SOFTMAX, False, False, False, 0, e + begin, NULL, roomy, out + begin,
                          length, &last)


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


cdef inline real target_weight(const Task *task, Py_ssize_t c, double y) noexcept nogil:
    """q of class c without its spike: w_c ((1 - smoothing) y + smoothing / n)."""
    cdef double value = task.label_smoothing / task.n + (1 - task.label_smoothing) * y
    return <real>(value * task.class_weight[c] if task.class_weight != NULL else value)


cdef void fill_q(const Task *task, const real *y, real *q) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(task.n):
        q[c] = target_weight(task, c, y[c] if y != NULL else 0)


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
    cdef double loss = 0 * log_s, z  # NaN is the loss of a row of NaN whatever its weights
    if spike != 0:
        z = whole.max - target_logit
        if z < INFINITY or target_logit == -INFINITY:
            z = z / temperature if z < INFINITY else z
        else:
            z = whole.max / temperature - target_logit / temperature
        loss = spike * (z + log_s)
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


cdef inline double limit_weight(const Task *task, Py_ssize_t row, const real *q,
                                Py_ssize_t c) noexcept nogil:
    """q of class c, the spike included."""
    cdef double weight = q[c] if q != NULL else 0
    if task.target != NULL and task.target[row] == c:
        weight += spike_weight(task, row)
    return weight


cdef void limit_row(int op, const real *x, const real *q, real *out, const Task *task,
                    Py_ssize_t row, double temperature, double m) noexcept nogil:
    """Rows that no arithmetic is needed for: temperature 0, or a maximum of +-inf."""
    cdef Py_ssize_t i, ties = 0
    cdef double log_s, loss = 0, weight, total = 0
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
            weight = limit_weight(task, row, q, i)
            total += weight
            if weight != 0:
                loss += weight * log_s if x[i] == m else INFINITY
    if is_loss(op):
        set_row_out(task, row, loss)
    if op == CROSS_ENTROPY_WITH_GRAD:
        # Temperature 0 is refused for gradients; one whose reciprocal overflows is not.
        for i in range(task.n):
            weight = (total / ties if x[i] == m else 0) - limit_weight(task, row, q, i)
            out[i] = <real>(task.gradient_scale * weight / temperature)


cdef inline void finish(int op, const Task *task, Py_ssize_t row, double temperature,
                        double target_logit, double log_s, const Partial *whole) noexcept nogil:
    """The row's single value, if it has one."""
    if op == LOGSUMEXP:
        set_row_out(task, row, whole.max + log_s)
    elif is_loss(op):
        set_row_out(task, row, loss_of(temperature, target_logit, spike_weight(task, row),
                                       log_s, whole))


cdef inline void write_row(int op, bint dense, const real *x, const real *y, const real *e,
                           bint roomy, real *out, const Task *task, Py_ssize_t row,
                           double target_logit, const View *view, const Partial *whole,
                           const double *exponents) noexcept nogil:
    """The whole of a row's output."""
    cdef Partial total = whole[0]
    cdef double gradient = 0, spike = 0
    cdef real *at_target
    cdef LaneTop top = no_top()
    cdef bint watched = is_watched(op, task)
    if op == CROSS_ENTROPY_WITH_GRAD:
        gradient = task.gradient_scale / view.temperature
        spike = spike_weight(task, row)
        total.q += spike
    write(op, dense, x, y, e, roomy, out, task.n, view, &total, exponents, gradient,
          &top if watched else NULL)
    if watched:
        keep_top(&top, out, row, task)
    if op == CROSS_ENTROPY_WITH_GRAD and task.target != NULL:
        at_target = out + task.target[row]
        at_target[0] = <real>target_gradient(at_target[0], target_logit, spike, gradient, dense,
                                             whole)


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

# ---------------------------------------------------------- short rows, several at a time
#
# A row of ten columns is one vector, and what is done once per row (two horizontal steps,
# a scale, a division, a logarithm) would take longer than its exponentials, each step
# waiting for the one before. So up to VLEN rows go through each step together, and what is
# done once per row is done for all of them in one vector.

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
    for k in range(count):
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


cdef void sum_columns(Kind kind, bint dense, Py_ssize_t n, const real *x, const real *y,
                      real *e, vec m, const View *view, const Columns *ahead,
                      Batch *batch) noexcept nogil:
    """sum_batch of VLEN rows of up to a block, whose columns x are packed.

    m: the rows' maxima. e, the exponentials if they are stored, may be x.
    """
    if kind == EXP_STORED:
        sum_columns_of(EXP_STORED, dense, n, x, y, e, m, view, ahead, batch)
    else:
        sum_columns_of(EXP_SUMMED, dense, n, x, y, e, m, view, ahead, batch)


cdef inline void sum_columns_of(int kind, bint dense, Py_ssize_t n, const real *x, const real *y,
                                real *e, vec m, const View *view, const Columns *ahead,
                                Batch *batch) noexcept nogil:
    if dense and view.general:
        sum_columns_as(kind, True, True, 0, n, x, y, e, m, view, ahead, batch)
    elif dense:
        sum_columns_as(kind, False, True, 0, n, x, y, e, m, view, ahead, batch)
    elif view.general:
        sum_columns_as(kind, True, False, 0, n, x, y, e, m, view, ahead, batch)
    elif n == 2:
        sum_columns_as(kind, False, False, 2, n, x, y, e, m, view, ahead, batch)
    elif n == 3:
        sum_columns_as(kind, False, False, 3, n, x, y, e, m, view, ahead, batch)
    elif n == 4:
        sum_columns_as(kind, False, False, 4, n, x, y, e, m, view, ahead, batch)
    elif n == 5:
        sum_columns_as(kind, False, False, 5, n, x, y, e, m, view, ahead, batch)
    elif n == 6:
        sum_columns_as(kind, False, False, 6, n, x, y, e, m, view, ahead, batch)
    elif n == 7:
        sum_columns_as(kind, False, False, 7, n, x, y, e, m, view, ahead, batch)
    elif n == 8:
        sum_columns_as(kind, False, False, 8, n, x, y, e, m, view, ahead, batch)
    else:
        sum_columns_as(kind, False, False, 0, n, x, y, e, m, view, ahead, batch)


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
                                    const Rows *rows, const Task *task, Py_ssize_t begin,
                                    const View *view, real *block) noexcept nogil:
    """Rows from `begin` on, up to the first out of reach, which it returns.

    vectors: how many a row takes; 0 for up to a chunk, or with a temperature; or FEW or LONGER.
    """
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


cdef struct Scratch:
    real *block        # EXP_SCRATCH reals, for exponentials
    double *exponents  # K of each block of a row, if a row is longer than that
    real *q            # q of a row, where it is not the target probabilities themselves
    real *x_rows       # gathered rows
    real *y_rows
    void *memory       # to free


cdef void large_row(int op, bint dense, const real *x, const real *y, real *out,
                    const Task *task, Py_ssize_t row, View *view,
                    const Scratch *scratch) noexcept nogil:
    """A row of any length, sweep by sweep."""
    cdef Partial whole
    cdef Py_ssize_t n = task.n
    cdef double target_logit = 0, start = -INFINITY, m
    cdef bint roomy = n <= BLOCK
    cdef real *e = scratch.block if roomy else out
    cdef double *exponents = scratch.exponents
    if is_loss(op) and task.target != NULL:
        target_logit = x[task.target[row]]
    if is_product(op):
        sweep(op, False, x, y, NULL, False, n, view, start, &whole, exponents)
        if op == DOT:
            set_row_out(task, row, whole.dot)
            return
    else:
        if is_one_hot(view.temperature):
            limit_row(op, x, y, out, task, row, view.temperature, row_max(x, n))
            return
        if stores_exp(op) and not roomy and <const real *>out == x:
            start = row_max(x, n)
            if start == -INFINITY:
                limit_row(op, x, y, out, task, row, view.temperature, start)
                return
        if (not sweep(op, dense, x, y, e, roomy, n, view, start, &whole, exponents)
                or whole.max == -INFINITY):
            m = row_max(x, n)
            if fabs(m) > REAL_MAX:
                limit_row(op, x, y, out, task, row, view.temperature, m)
                return
            # A block far below the rest may have made the sweep give up too early.
            if not in_reach(view, m):
                set_view(view, view.temperature, m)
            sweep(op, dense, x, y, e, roomy, n, view, m, &whole, exponents)
        if needs_log(op):
            finish(op, task, row, view.temperature, target_logit, log_sum(&whole), &whole)
    if not has_elements(op):
        return
    write_row(op, dense, x, y, e, roomy, out, task, row, target_logit, view, &whole, exponents)


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


cdef void one_row(int op, const Rows *rows, Py_ssize_t k, const Task *task, const View *view,
                  bint dense, const Scratch *scratch) noexcept nogil:
    """A row of any length and kind."""
    cdef View own = view[0]
    cdef Py_ssize_t row = rows.first + k
    cdef const real *y = y_of(rows, k)
    cdef double base
    if is_ignored(op, task, row):
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
    cdef bint batched = (task.n <= BLOCK and task.temperature_step == 0
                         and not is_one_hot(view.temperature))
    cdef Rows weighted = rows[0]
    cdef Py_ssize_t k = 0
    if dense and scratch.q != NULL:
        # What all rows share can be their y; what is made for each row cannot.
        batched = batched and task.target != NULL
        weighted.y = <const char *>scratch.q
        weighted.y_step = 0
    while k < rows.count:
        if batched and is_loss(op) and dense:
            k = batched_weights(op, &weighted, task, k, view, scratch.block)
        elif batched:
            if task.n > CHUNK and view.general:
                k = batched_rows(op, True, False, LONGER, rows, task, k, view, scratch.block)
            elif task.n > CHUNK:
                k = batched_rows(op, False, False, LONGER, rows, task, k, view, scratch.block)
            elif view.general:
                k = batched_rows(op, True, False, 0, rows, task, k, view, scratch.block)
            elif task.n > LANES:
                k = batched_rows(op, False, False, 0, rows, task, k, view, scratch.block)
            elif task.n > 3 * VLEN:
                k = batched_rows(op, False, False, 4, rows, task, k, view, scratch.block)
            elif task.n > 2 * VLEN:
                k = batched_rows(op, False, False, 3, rows, task, k, view, scratch.block)
            elif task.n > VLEN:
                k = batched_rows(op, False, False, 2, rows, task, k, view, scratch.block)
            elif task.n > FEW_COLUMNS or is_product(op) or rows.count - k < FEW_ROWS:
                k = batched_rows(op, False, False, 1, rows, task, k, view, scratch.block)
            else:
                k = batched_rows(op, False, False, FEW, rows, task, k, view, scratch.block)
        if k == rows.count:
            return
        one_row(op, rows, k, task, view, dense, scratch)
        k += 1


cdef inline Py_ssize_t batched_weights(int op, const Rows *rows, const Task *task, Py_ssize_t k,
                                       const View *view, real *block) noexcept nogil:
    """batched_rows where y holds a target weight for every class."""
    if task.n > CHUNK and view.general:
        return batched_rows(op, True, True, LONGER, rows, task, k, view, block)
    if task.n > CHUNK:
        return batched_rows(op, False, True, LONGER, rows, task, k, view, block)
    if view.general:
        return batched_rows(op, True, True, 0, rows, task, k, view, block)
    return batched_rows(op, False, True, 0, rows, task, k, view, block)


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
    cdef real[EXP_SCRATCH] block
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

cdef int softmax_rows_with_top(const Task *task, Py_ssize_t begin,
                               Py_ssize_t end) noexcept nogil:
    cdef Task own = task[0]
    cdef Tops tops
    cdef int failed
    tops.count = 0
    own.tops = &tops
    failed = softmax_rows(&own, begin, end)
    if tops.count > 0:
        finish_tops(&tops, own.n, own.top_value, own.top_place)
    return failed

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
    return row_max(piece_begin(&task.x, task, row, piece), piece_end(task, piece) - piece * PIECE)


cdef bint sweep_piece(Operation op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                      double start_max, Partial *result, double *exponents) noexcept nogil:
    cdef View view
    cdef const real *x = piece_begin(&task.x, task, row, piece)
    cdef Py_ssize_t n = piece_end(task, piece) - piece * PIECE
    cdef real *e = NULL
    view_of_row(task, row, &view)
    if is_one_hot(view.temperature):
        return False
    if stores_exp(op):
        e = <real *>piece_begin(&task.out, task, row, piece)
    return sweep(op, False, x, NULL, e, False, n, &view, start_max, result,
                 exponents + piece * (PIECE // BLOCK))


cdef void write_piece(Operation op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                      const Partial *whole, const double *exponents) noexcept nogil:
    cdef View view
    cdef const real *x = piece_begin(&task.x, task, row, piece)
    cdef real *out = <real *>piece_begin(&task.out, task, row, piece)
    cdef Py_ssize_t n = piece_end(task, piece) - piece * PIECE
    view_of_row(task, row, &view)
    write(op, False, x, NULL, out, False, out, n, &view, whole,
          exponents + piece * (PIECE // BLOCK), 0, NULL)


cdef void finish_row(Operation op, const Task *task, Py_ssize_t row,
                     const Partial *whole) noexcept nogil:
    if op == LOGSUMEXP:
        finish(LOGSUMEXP, task, row, 1, 0, log_sum(whole), whole)
