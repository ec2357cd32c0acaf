# What a monitor reads of probabilities: the largest of a row and its place, and the entropy.
#
# Mathematics.  value = max x, place = min {c : x_c = value}; exact. NaN if the row holds one.
#   entropy = sum x_c log(1 / x_c), log(1 / x) = log1p((1 - x) / x)
# Each lane remembers its largest element and the first lane row that held it; lanes of several
# rows are joined together. The maximum of vectors may pass over NaN, but their sum does not: where
# that is NaN, which it is for infinities of both signs too, rows are looked at again. A row of
# softmax is NaN as a whole or not at all.
#
# Precision.  The entropy is summed in double, in 8 lanes, whatever the target.
# Passes.  One read of memory, and none where softmax finds the largest while it writes (row.pxi).
# The lane row that holds the largest is read again.

cdef struct LaneTop:
    # Of the lane rows so far, lane by lane; numbers are negative, so that the first is the largest.
    vec largest
    vec number  # of the lane row that held it
    vec next    # number of the next lane row


cdef struct Tops:
    # Rows of more than a lane row, VLEN at most, whose lanes are still to be joined.
    vec[16] largest
    vec[16] number
    const real *x[16]
    Py_ssize_t[16] start  # of lane row 0; of what comes before the row only what is in it
    Py_ssize_t[16] row
    bint[16] is_nan
    Py_ssize_t count


cdef inline LaneTop no_top() noexcept nogil:
    cdef LaneTop top
    top.largest = v_set1(<real>-INFINITY)
    top.number = top.next = v_set1(0)
    return top


cdef inline void add_lane_row_to(LaneTop *top, vec largest) noexcept nogil:
    top.number = v_where(v_not_less(top.largest, largest), top.number, top.next)
    top.largest = v_max(largest, top.largest)
    top.next = v_sub(top.next, v_set1(1))


cdef inline Py_ssize_t place_in_lane_row(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """The first place of a value in up to a lane row; 0 if it is not there."""
    cdef vec wanted = v_set1(value), other = v_set1(<real>NAN)
    cdef uint64_t found = 0
    cdef Py_ssize_t i
    if n >= LANES:
        for i in range(4):
            found |= v_bits(v_eq(v_load(x + i * VLEN), wanted)) << (i * VLEN)
    else:
        for i from 0 <= i < n by VLEN:
            found |= v_bits(v_eq(v_load_first(x + i, v_first(n - i), other), wanted)) << i
    return first_bit(found) if found != 0 else 0


cdef inline void set_top(bint is_nan, double largest, Py_ssize_t first, double *value,
                         int64_t *place) noexcept nogil:
    value[0] = NAN if is_nan else largest
    place[0] = 0 if is_nan else first


cdef void finish_tops(Tops *tops, Py_ssize_t n, double *value, int64_t *place) noexcept nogil:
    """Join the lanes of each row; value and place are those of row 0."""
    cdef real[16] largest
    cdef real[16] number
    cdef vec lowest = v_set1(<real>-INFINITY)
    cdef Py_ssize_t k, begin
    for k in range(tops.count, VLEN):
        tops.largest[k] = tops.number[k] = lowest
    v_store(largest, v_reduce_each_max(tops.largest))
    for k in range(tops.count):
        tops.number[k] = v_where(v_eq(tops.largest[k], v_set1(largest[k])), tops.number[k],
                                 lowest)
    v_store(number, v_reduce_each_max(tops.number))
    for k in range(tops.count):
        # A whole lane row, so that nothing depends on what cannot be predicted; nothing before
        # the one that was found is as large.
        begin = max(tops.start[k] - <Py_ssize_t>number[k] * LANES, <Py_ssize_t>0)
        begin = min(begin, n - LANES)
        set_top(tops.is_nan[k], largest[k],
                begin + place_in_lane_row(tops.x[k] + begin, LANES, largest[k]),
                &value[tops.row[k]], &place[tops.row[k]])
    tops.count = 0


cdef inline void add_top(Tops *tops, const LaneTop *top, const real *x, Py_ssize_t n,
                         Py_ssize_t start, Py_ssize_t row, bint is_nan, double *value,
                         int64_t *place) noexcept nogil:
    """A row of which only the lanes are still to be joined."""
    cdef Py_ssize_t k = tops.count
    tops.largest[k] = top.largest
    tops.number[k] = top.number
    tops.x[k] = x
    tops.start[k] = start
    tops.row[k] = row
    tops.is_nan[k] = is_nan
    tops.count = k + 1
    if k + 1 == VLEN:
        finish_tops(tops, n, value, place)


cdef inline void keep_top(const LaneTop *top, const real *out, Py_ssize_t row,
                          const Task *task) noexcept nogil:
    """A row of softmax."""
    add_top(<Tops *>task.tops, top, out, task.n, 0, row, out[0] != out[0], task.top_value,
            task.top_place)


cdef inline vec some_lanes(const real *x, Py_ssize_t n, vec *total) noexcept nogil:
    """Per lane the largest of up to a lane row; all of it is added to `total`."""
    cdef vec lowest = v_set1(<real>-INFINITY), largest = lowest, a
    cdef Py_ssize_t i
    for i from 0 <= i < n by VLEN:
        a = v_load_first(x + i, v_first(n - i), lowest)
        total[0] = v_add(total[0], a)
        largest = v_max(a, largest)
    return largest


cdef inline bint has_nan(const real *x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef int found = 0
    for i in range(n):
        found |= x[i] != x[i]
    return found


cdef inline void top_of_long_row(Tops *tops, const real *x, Py_ssize_t n, Py_ssize_t row,
                                 double *value, int64_t *place) noexcept nogil:
    """Of a row of more than a lane row."""
    cdef LaneTop top = no_top()
    cdef vec total = v_load(x), a, b, c, d
    # What lies before the first cache line is taken first, so that loads cross none.
    cdef Py_ssize_t begin = -(<Py_ssize_t>x // <Py_ssize_t>sizeof(real)) & (VLEN - 1)
    cdef Py_ssize_t i = begin
    add_lane_row_to(&top, total)
    while i + LANES <= n:
        a = v_load(x + i)
        b = v_load(x + i + VLEN)
        c = v_load(x + i + 2 * VLEN)
        d = v_load(x + i + 3 * VLEN)
        total = v_add(total, v_add(v_add(a, b), v_add(c, d)))
        add_lane_row_to(&top, v_max(v_max(a, b), v_max(c, d)))
        i += LANES
    if i < n:
        add_lane_row_to(&top, some_lanes(x + i, n - i, &total))
    add_top(tops, &top, x, n, begin - LANES, row, v_any(v_ne(total, total)) and has_nan(x, n),
            value, place)


cdef inline void top_of_short_rows(const real *x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t count,
                                   double *value, int64_t *place) noexcept nogil:
    """Of up to VLEN rows of up to a lane row."""
    cdef vec[16] lanes
    cdef real[16] largest
    cdef vec zero = v_set1(0), total = zero
    cdef Py_ssize_t k
    for k in range(count):
        lanes[k] = some_lanes(x + k * step, n, &total)
    for k in range(count, VLEN):
        lanes[k] = zero
    v_store(largest, v_reduce_each_max(lanes))
    for k in range(count):
        value[k] = largest[k]
        if n > VLEN:
            place[k] = place_in_lane_row(x + k * step, n, largest[k])
        else:
            place[k] = first_bit(v_bits(v_eq(lanes[k], v_set1(largest[k]))) | 1 << VLEN)
    if v_any(v_ne(total, total)):
        for k in range(count):
            set_top(has_nan(x + k * step, n), value[k], place[k], &value[k], &place[k])


cdef void top(const void *rows, Py_ssize_t step, Py_ssize_t n, Py_ssize_t count, double *value,
              int64_t *place) noexcept nogil:
    cdef const real *x = <const real *>rows
    cdef Tops tops
    cdef Py_ssize_t k
    if n <= LANES:
        for k from 0 <= k < count by VLEN:
            top_of_short_rows(x + k * step, step, n, min(count - k, VLEN), value + k, place + k)
        return
    tops.count = 0
    for k in range(count):
        top_of_long_row(&tops, x + k * step, n, k, value, place)
    finish_tops(&tops, n, value, place)


cdef double entropy(const void *row, Py_ssize_t n) noexcept nogil:
    """sum x log(1 / x), 0 where x is 0."""
    cdef const real *x = <const real *>row
    cdef double[64] unit
    cdef double[64] log_inverse
    cdef double[8] sums
    cdef Py_ssize_t begin, i, k, count
    for k in range(8):
        sums[k] = 0
    for begin from 0 <= begin < n by 64:
        count = min(n - begin, <Py_ssize_t>64)
        for i in range(64):
            unit[i] = 1
        for i in range(count):
            # What is smaller adds nothing, and has no inverse.
            unit[i] = max(<double>x[begin + i], 1e-300)
        for i in range(64):
            log_inverse[i] = 1 - unit[i]
        log1p_of_ratios(log_inverse, unit, 64)
        for i in range(count):
            log_inverse[i] *= x[begin + i]
        for i from 0 <= i < 64 by 8:
            for k in range(8):
                sums[k] += log_inverse[i + k]
    return (((sums[0] + sums[4]) + (sums[2] + sums[6]))
            + ((sums[1] + sums[5]) + (sums[3] + sums[7])))
