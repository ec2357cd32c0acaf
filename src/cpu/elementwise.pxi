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


cdef inline vec load(bint whole, const real *p, vmask present, vec other) noexcept nogil:
    """A vector of which all elements or the first are there; masks wait for memory."""
    return v_fetch(p) if whole else v_load_first(p, present, other)


cdef inline void map_vector(int function, bint whole, const real *x, real *out,
                            Py_ssize_t left) noexcept nogil:
    cdef vec xv = load(whole, x, v_first(left), v_set1(0))
    v_store_first(out, left, sigmoid_of(xv) if function == 0 else log_sigmoid_of(xv))


cdef inline void map_vectors(int function, const real *x, real *out,
                             Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, whole = n // VLEN * VLEN
    for i from 0 <= i < whole by VLEN:
        map_vector(function, True, x + i, out + i, VLEN)
    if whole < n:
        map_vector(function, False, x + whole, out + whole, n - whole)


cdef void sigmoid(const void *x, void *out, Py_ssize_t n) noexcept nogil:
    map_vectors(0, <const real *>x, <real *>out, n)


cdef void log_sigmoid(const void *x, void *out, Py_ssize_t n) noexcept nogil:
    map_vectors(1, <const real *>x, <real *>out, n)


cdef inline vec weighted(vec y, vec value) noexcept nogil:
    """y * value, and 0 where y is 0 even if value is infinite."""
    return v_zero_unless(v_ne(y, v_set1(0)), v_mul(y, value))


cdef struct Binary:
    # The operands; weight, pos_weight and grad may be NULL.
    const real *x
    const real *y
    const real *weight
    const real *pos_weight
    real *loss
    real *grad


cdef inline void cross_entropy_of_vector(bint whole, const Binary *at, double scale, Py_ssize_t i,
                                         Py_ssize_t left) noexcept nogil:
    cdef vmask present = v_first(left)
    cdef vec one = v_set1(1), zero = v_set1(0), negative, lost, pulled, weight = one
    cdef vec x = load(whole, at.x + i, present, zero)
    cdef vec positive = load(whole, at.y + i, present, zero)
    negative = v_sub(one, positive)
    if at.pos_weight != NULL:
        positive = v_mul(positive, load(whole, at.pos_weight + i, present, one))
    lost = v_sub(zero, v_add(weighted(negative, log_sigmoid_of(v_sub(zero, x))),
                             weighted(positive, log_sigmoid_of(x))))
    if at.weight != NULL:
        weight = load(whole, at.weight + i, present, one)
        lost = v_mul(lost, weight)
    v_store_first(at.loss + i, left, lost)
    if at.grad != NULL:
        pulled = v_sub(v_mul(negative, sigmoid_of(x)),
                       v_mul(positive, sigmoid_of(v_sub(zero, x))))
        if at.weight != NULL:
            pulled = v_mul(pulled, weight)
        v_store_first(at.grad + i, left, v_mul(pulled, v_set1(<real>scale)))


cdef void binary_cross_entropy(const void *x, const void *y, const void *weight,
                               const void *pos_weight, void *loss, void *grad,
                               double scale, Py_ssize_t n) noexcept nogil:
    """Loss and, unless grad is NULL, the gradient times scale."""
    cdef Binary at
    cdef Py_ssize_t i, whole = n // VLEN * VLEN
    at.x, at.y = <const real *>x, <const real *>y
    at.weight, at.pos_weight = <const real *>weight, <const real *>pos_weight
    at.loss, at.grad = <real *>loss, <real *>grad
    for i from 0 <= i < whole by VLEN:
        cross_entropy_of_vector(True, &at, scale, i, VLEN)
    if whole < n:
        cross_entropy_of_vector(False, &at, scale, whole, n - whole)


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
