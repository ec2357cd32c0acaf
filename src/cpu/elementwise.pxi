# sigmoid, log_sigmoid, binary cross-entropy: one read and one write, any order of elements.
#
# Mathematics.  With z = exp(-|x|), which cannot overflow:
#   sigmoid(x)      1 / (1 + z) for x >= 0, z / (1 + z) below
#   log_sigmoid(x)  min(x, 0) - log1p(z)
#   loss            w ((1 - y) softplus(x) + pos_weight y softplus(-x)), both terms >= 0,
#                   softplus(x) = max(x, 0) + log1p(z)
#   gradient        w ((1 - y) sigmoid(x) - pos_weight y sigmoid(-x))

cdef inline vec decay(vec x) noexcept nogil:
    """exp(-|x|)."""
    return exp_of_negative(v_sub(v_set1(0), v_abs(x)))


cdef inline vec sigmoid_of(vec x) noexcept nogil:
    cdef vec one = v_set1(1), z = decay(x)
    return v_div(v_where(v_not_less(x, v_set1(0)), one, z), v_add(one, z))


cdef inline vec log_sigmoid_of(vec x) noexcept nogil:
    # v_min hands on its second operand where one is NaN.
    return v_sub(v_min(v_set1(0), x), log1p_of_unit(decay(x)))


cdef inline void map_vectors(int function, const real *x, real *out,
                             Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef vmask present
    cdef vec xv, result
    for i from 0 <= i < n by VLEN:
        present = v_first(n - i)
        xv = v_load_first(x + i, present, v_set1(0))
        result = sigmoid_of(xv) if function == 0 else log_sigmoid_of(xv)
        v_store_first(out + i, n - i, result)


cdef void sigmoid(const void *x, void *out, Py_ssize_t n) noexcept nogil:
    map_vectors(0, <const real *>x, <real *>out, n)


cdef void log_sigmoid(const void *x, void *out, Py_ssize_t n) noexcept nogil:
    map_vectors(1, <const real *>x, <real *>out, n)


cdef inline vec weighted(vec y, vec value) noexcept nogil:
    """y * value, and 0 where y is 0 even if value is infinite."""
    return v_zero_unless(v_ne(y, v_set1(0)), v_mul(y, value))


cdef void binary_cross_entropy(const void *x, const void *y, const void *weight,
                               const void *pos_weight, void *loss, void *grad,
                               double scale, Py_ssize_t n) noexcept nogil:
    """Loss and, unless grad is NULL, the gradient times scale."""
    cdef Py_ssize_t i
    cdef vmask present
    cdef vec one = v_set1(1), zero = v_set1(0), xv, negative, positive, lost, pulled
    for i from 0 <= i < n by VLEN:
        present = v_first(n - i)
        xv = v_load_first(<const real *>x + i, present, zero)
        positive = v_load_first(<const real *>y + i, present, zero)
        negative = v_sub(one, positive)
        if pos_weight != NULL:
            positive = v_mul(positive, v_load_first(<const real *>pos_weight + i, present, one))
        lost = v_sub(zero, v_add(weighted(negative, log_sigmoid_of(v_sub(zero, xv))),
                                 weighted(positive, log_sigmoid_of(xv))))
        if weight != NULL:
            lost = v_mul(lost, v_load_first(<const real *>weight + i, present, one))
        v_store_first(<real *>loss + i, n - i, lost)
        if grad != NULL:
            pulled = v_sub(v_mul(negative, sigmoid_of(xv)),
                           v_mul(positive, sigmoid_of(v_sub(zero, xv))))
            if weight != NULL:
                pulled = v_mul(pulled, v_load_first(<const real *>weight + i, present, one))
            v_store_first(<real *>grad + i, n - i, v_mul(pulled, v_set1(<real>scale)))


cdef double sum_of(const void *x, Py_ssize_t n) noexcept nogil:
    """Sum in the contract's order: what a mean over losses is made of."""
    cdef const real *p = <const real *>x
    cdef Partial stack[48]
    cdef LaneSums sums
    cdef int depth = 0
    cdef Py_ssize_t begin, index = 0
    if n == 0:
        return 0
    for begin from 0 <= begin < n by CHUNK:
        sum_lanes(PLAIN, False, False, False, 0, NULL, p + begin, NULL, False,
                  min(n - begin, CHUNK), NULL, v_set1(0), &sums)
        stack[depth].dot = v_reduce_add(sums.dot)
        depth += 1
        fold_dots(stack, &depth, index)
        index += 1
    while depth > 1:
        depth -= 1
        stack[depth - 1].dot += stack[depth].dot
    return stack[0].dot


cdef inline void fold_dots(Partial *stack, int *depth, Py_ssize_t index) noexcept nogil:
    while index & 1:
        depth[0] -= 1
        stack[depth[0] - 1].dot += stack[depth[0]].dot
        index >>= 1
