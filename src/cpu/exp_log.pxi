# exp and log1p on vectors, and the one logarithm of a row.
#
# Mathematics.  With t = round(8 z log2 e) and r = z - t ln 2 / 8, exp(z) = 2^(t/8) exp(r). The
# kernels never need exp(z) itself but exp(z) 2^-K, K an integer that belongs to the
# largest z of the row, so z is not reduced by that maximum (which would round) but t by
# 8 K (which is exact). ln 2 is taken off in two parts, each by one fma; the first leaves
# no error, because |r| < 0.044 and both operands are multiples of 2^-28 (2^-57 in double).
# exp(r) = 1 + r + r^2 q(r), q minimax on |r| <= 0.0438 (0.0434), an error of 0.45 u (0.03 u).
# 2^(t/8) is a power of two times one of eight reals P, looked up in a register (Tang, ACM
# TOMS 15, 1989), and so is d, what P lacks of its eighth by ratio: the result is
# P + P (r (1 + r q(r)) + d), one rounding that counts.
#
# Anchored rows.  Beyond |z| = ANCHOR rounding 8 z log2 e would push r out of that interval.
# There z - max is taken first; it is exact for every element close enough to matter
# (Sterbenz 1974), because they lie within a factor of two of the maximum.
#
# Temperature.  z = (x - c) / T is carried as a pair: high = round((x - c) b), the error of
# that product, and (x - c) times the low part of b = 1/T.
#
# log1p(z) = 2 atanh(s), s = z / (2 + z), for z in [0, 1]: s^2 <= 1/9, no cancellation. For any
# z >= 0, log1p(z) = k log 2 + 2 atanh(s), s = (z + 1 - 2^k) / (z + 1 + 2^k): s^2 <= 1/25.
#
# Error budget (u = 2^-24 or 2^-53): r 0.02 u, the polynomial 0.45 u (0.03 u), what is added to
# P 0.05 u, the last fma 1 u at most. Subnormals: see HEADROOM in constants.h.

cdef struct Scale:
    # What exp_scaled needs to know of a block, spread over vectors.
    vec magic, lowest, shift, beta_high, beta_low


cdef inline double power_of_two(double exponent) noexcept nogil:
    """2^exponent for an integer exponent <= 0, down to the smallest subnormal, then 0."""
    return two_to(<int>max(exponent, -1100.0))


cdef inline double exponent_of(const View *view, double x) noexcept nogil:
    """K for the maximum x: (x - c) / T * log2 e, rounded to an even integer.

    Which K is taken changes no bit of any result. It is even because then, on targets
    without fma, where z log2 e can be a tie after its own rounding, ties do not depend
    on it either.
    """
    cdef double z = (x - view.shift) * view.beta_high
    # In this order, for a block of -inf at temperature inf, where z is NaN.
    return 2 * nearbyint(max(-<double>ANCHOR, z) * (LOG2E / 2))


cdef inline double lowest_of(const View *view, double exponent) noexcept nogil:
    """The x - c below which an exponential is zero.

    Without a temperature it is that at which v_power gives 0, and stands in for all below.
    With one it may be rounded, or as low as there are reals, so exp_scaled compares.
    """
    if not view.general:
        return (exponent - HEADROOM + ZERO_EXPONENT) * LN2_HIGH_DOUBLE
    return max((exponent - HEADROOM + LOWEST_EXPONENT) * LN2_HIGH_DOUBLE * view.temperature,
               -<double>REAL_MAX)


cdef inline void set_scale(Scale *scale, const View *view, double exponent) noexcept nogil:
    scale.magic = v_set1(<real>(MAGIC + 8 * (HEADROOM - exponent)))
    scale.lowest = v_set1(<real>lowest_of(view, exponent))
    scale.shift = v_set1(<real>view.shift)
    scale.beta_high = v_set1(<real>view.beta_high)
    scale.beta_low = v_set1(<real>view.beta_low)


cdef inline vec exp_scaled(bint general, vec x, const Scale *scale) noexcept nogil:
    """exp((x - c) / T) 2^(HEADROOM - K); zero where no probability could come of it."""
    cdef vec d = x, z = x, low = x, shifted, t, r, power, q
    cdef int k
    if general:
        d = v_sub(x, scale.shift)
        z = v_mul(d, scale.beta_high)
        low = v_fma(d, scale.beta_low, v_product_error(d, scale.beta_high, z))
    else:
        z = v_max(scale.lowest, x)  # which hands on NaN
    shifted = v_fma(z, v_set1(8 * LOG2E), scale.magic)
    t = v_sub(shifted, scale.magic)
    r = v_reduce(t, LN2_LOW / 8, v_reduce(t, LN2_HIGH / 8, z))
    if general:
        r = v_add(r, low)
    q = v_set1(EXP_TAIL[EXP_DEGREE - 1])
    for k in range(EXP_DEGREE - 2, -1, -1):
        q = v_fma(q, r, v_set1(EXP_TAIL[k]))
    q = v_fma(v_fma(q, r, v_set1(1)), r, v_pick(v_eighths(EIGHTHS_REST), shifted))
    power = v_power(v_eighths(EIGHTHS), shifted)
    q = v_fma(power, q, power)
    return v_zero_unless(v_not_less(d, scale.lowest), q) if general else q


cdef inline vec exp_of_negative(vec x) noexcept nogil:
    """exp(x) for x <= 0, with gradual underflow."""
    cdef Scale scale
    cdef View view
    view.shift = 0
    view.temperature = 1
    view.beta_high = 1
    view.beta_low = 0
    view.general = False
    set_scale(&scale, &view, 0)
    return v_mul(exp_scaled(False, x, &scale), v_set1(<real>two_to(-HEADROOM)))


cdef inline vec log1p_of_unit(vec z) noexcept nogil:
    """log(1 + z) for z in [0, 1]."""
    cdef vec s = v_div(z, v_add(z, v_set1(2)))
    cdef vec w = v_mul(s, s), p = v_set1(ATANH_TAIL[LOG_DEGREE - 1]), s2 = v_add(s, s)
    cdef int k
    for k in range(LOG_DEGREE - 2, -1, -1):
        p = v_fma(p, w, v_set1(ATANH_TAIL[k]))
    return v_fma(v_mul(p, w), s2, s2)


cdef inline double log1p_of_ratio(double rest, double unit) noexcept nogil:
    """log1p(rest / unit) for rest >= 0, unit > 0, in double: the logarithm of a row's sum.

    With one division, without branches or inner loops: compilers make vectors of a loop
    over it.
    """
    cdef double power, s, w, w2, even, odd
    cdef double k = power_between(unit, rest + unit, &power)
    cdef const double *c = LOG_TAIL
    # log1p(rest / unit) - k log 2. Where k is 0, rest itself is divided, so that small ratios
    # keep their accuracy.
    s = fma(1 - power, unit, rest) / fma(1 + power, unit, rest)
    w = s * s
    # Even and odd powers apart: half as long a chain.
    w2 = w * w
    even = fma(fma(fma(c[6], w2, c[4]), w2, c[2]), w2, c[0])
    odd = fma(fma(c[5], w2, c[3]), w2, c[1])
    return k * LN2_HIGH_DOUBLE + (fma(fma(odd, w, even) * w, s + s, s + s)
                                  + k * LN2_LOW_DOUBLE)


cdef void log1p_of_ratios(double *rest, const double *unit, Py_ssize_t n) noexcept nogil:
    """log1p_of_ratio of n pairs; the results take the place of rest."""
    cdef Py_ssize_t i
    for i in range(n):
        rest[i] = log1p_of_ratio(rest[i], unit[i])
