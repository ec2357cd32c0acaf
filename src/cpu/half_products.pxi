# The vjps of rows of float16 or bfloat16, without floats in between: of more than VLEN elements,
# contiguous.
#
# Mathematics and the order of additions: row.pxi. Elements are widened to float, which is exact,
# where they are used; results are rounded once, to the nearest. So bits are those of the kernels
# for float with a conversion before and after.
#
# Passes.  Two reads, the second from a cache that holds both rows, and one write.

cdef inline vec widen_first(int element, const uint16_t *p, Py_ssize_t count) noexcept nogil:
    """v_widen of `count` elements, the last of a row that is longer than VLEN, and zeros."""
    cdef uint16_t[32] shifted
    if count >= VLEN:
        return v_widen(<Element>element, p)
    memcpy(shifted, p + count - VLEN, VLEN * sizeof(uint16_t))
    memset(shifted + VLEN, 0, VLEN * sizeof(uint16_t))
    return v_widen(<Element>element, shifted + VLEN - count)


cdef inline void add_halves(int kind, int element, const uint16_t *x, const uint16_t *y,
                            Py_ssize_t count, Sums *sums, int v) noexcept nogil:
    cdef vec zero = v_set1(0), xv = zero
    if kind == PRODUCT:
        xv = widen_first(element, x, count)
    add_element(kind, False, False, False, xv, widen_first(element, y, count), NULL, zero, sums, v)


cdef inline double half_dot(int kind, int element, const uint16_t *x, const uint16_t *y,
                            Py_ssize_t n) noexcept nogil:
    """The sum of x * y, or of y."""
    cdef double[64] tree  # sums of 2^k chunks, of falling k
    cdef Sums sums
    cdef Py_ssize_t i = 0, end, chunk = 0, bits
    cdef int v, depth = 0
    while i < n:
        end = min(n, i + CHUNK)
        for v in range(4):
            sums.dot[v] = v_set1(0)
        while i + LANES <= end:
            prefetch(x + i + AHEAD_HALVES)
            prefetch(y + i + AHEAD_HALVES)
            for v in range(4):
                add_halves(kind, element, x + i + v * VLEN, y + i + v * VLEN, VLEN, &sums, v)
            i += LANES
        for v in range(4):
            if i < end:
                add_halves(kind, element, x + i, y + i, end - i, &sums, v)
                i += VLEN
        tree[depth] = v_reduce_add(in_order(4, sums.dot))
        bits = chunk
        while bits & 1:
            depth -= 1
            tree[depth] += tree[depth + 1]
            bits >>= 1
        depth += 1
        chunk += 1
    while depth > 1:
        depth -= 1
        tree[depth - 1] += tree[depth]
    return tree[0]


cdef inline void half_product_row(int op, int element, const uint16_t *x, const uint16_t *y,
                                  uint16_t *out, Py_ssize_t n, const View *view) noexcept nogil:
    # The last vector overlaps the one before. It is read first, since `out` may be x or y.
    cdef vec x_last = v_widen(<Element>element, x + n - VLEN)
    cdef vec y_last = v_widen(<Element>element, y + n - VLEN)
    cdef vec xv, yv
    cdef Py_ssize_t i
    cdef Last last
    last.beta_high = v_set1(<real>view.beta_high)
    last.m = v_set1(<real>half_dot(kind_of(op), element, x, y, n))
    for i from 0 <= i < n - VLEN by VLEN:
        xv = v_widen(<Element>element, x + i)
        yv = v_widen(<Element>element, y + i)
        v_narrow(<Element>element, out + i, last_value(op, True, False, False, xv, yv, &last))
    v_narrow(<Element>element, out + n - VLEN,
             last_value(op, True, False, False, x_last, y_last, &last))


cdef inline int half_products(int op, int element, const Task *task, Py_ssize_t begin,
                              Py_ssize_t end) noexcept nogil:
    """Rows [begin, end)."""
    cdef View view
    cdef Py_ssize_t row, outer, inner
    set_view(&view, task.temperature[0], 0)
    for row in range(begin, end):
        outer = row // task.inner
        inner = row - outer * task.inner
        if task.temperature_step != 0:
            view_of_row(task, row, &view)
        half_product_row(op, element, <const uint16_t *>at(&task.x, outer, inner),
                         <const uint16_t *>at(&task.y, outer, inner),
                         <uint16_t *>at(&task.out, outer, inner), task.n, &view)
    return 0
