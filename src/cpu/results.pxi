# The last sweep over a row, once its sums are known: factors and logarithms, then the values of
# all columns; losses, the gradient at the target, and rows that are decided without sums.
#
# Mathematics: row.pxi. What is done once per row is in double. A factor is a pair of reals, so that
# the product with an exponential rounds once.
#
# Passes.  One read, of exponentials or logits (products: of both operands), and one write.

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
    cdef double beta
    view.shift = shift
    view.temperature = temperature
    view.general = shift != 0 or temperature != 1
    view.beta_high = 1
    view.beta_low = 0
    if temperature != 1:  # divisions are a fiftieth of the smallest calls
        beta = 1 / temperature
        view.beta_high = <real>beta
        # 1/T - beta_high, from the remainder of the division, whatever real is.
        view.beta_low = fma(-view.beta_high, temperature, 1.0) / temperature if beta != 0 else 0


cdef inline bint is_one_hot(double temperature) noexcept nogil:
    """Temperature 0, or so small that 1/T overflows: the limit is taken."""
    return temperature != 1 and 1 / temperature > REAL_MAX


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
