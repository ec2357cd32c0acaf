// exp and the one logarithm of a row: twin of src/cpu/exp_log.pxi, where the mathematics stands.

// How a row is looked at: decided once, then constant over the row.
struct View {
    double temperature;         // > 0, or inf
    real shift;                 // c: 0, or the row's maximum where that is huge
    real beta_high, beta_low;   // 1 / temperature, in two reals
    bool limit;                 // temperature 0: the limit is taken
};

// What exp_scaled needs to know of a block.
struct Scale {
    real magic, lowest, exponent;
};

// 2^exponent for an integer exponent <= 0, down to the smallest subnormal, then 0.
DEVICE double power_of_two(double exponent) {
    int e = (int)d_max(exponent, -1100.0);
    if (e >= -1022) return __longlong_as_double((long long)(e + 1023) << 52);
    return e >= -1074 ? __longlong_as_double(1ll << (e + 1074)) : 0.0;
}

DEVICE View view_of(double temperature, double shift) {
    View view;
    double beta = __ddiv_rn(1.0, temperature);
    view.limit = beta > REAL_MAX;
    view.temperature = temperature;
    view.shift = (real)shift;
    view.beta_high = (real)beta;
    view.beta_low =
        beta != 0 ? (real)__ddiv_rn(__fma_rn(-(double)view.beta_high, temperature, 1.0), temperature)
                  : (real)0;
    return view;
}

// Whether z = (m - c) / T may be reduced without taking the maximum off first.
template <bool general> DEVICE bool in_reach(const View &view, real m) {
    return r_abs(general ? (real)((m - (double)view.shift) * view.beta_high) : m) <= ANCHOR;
}

// K for the maximum m: (m - c) / T * log2 e, rounded to an even integer.
template <bool general> DEVICE real exponent_of(const View &view, real m) {
    real z = general ? (real)((m - (double)view.shift) * view.beta_high) : m;
    z = r_max(z, -(real)ANCHOR);
    real half = (z * (real)(LOG2E / 2) + (real)MAGIC) - (real)MAGIC;
    return half + half;
}

template <bool general> DEVICE Scale scale_of(const View &view, real exponent) {
    Scale scale;
    scale.exponent = exponent;
    scale.magic = (real)(MAGIC + 8 * HEADROOM) - exponent * 8;
    scale.lowest =
        ((exponent - HEADROOM) + (general ? LOWEST_EXPONENT : ZERO_EXPONENT)) * (real)LN2_HIGH;
    if (general)
        scale.lowest = r_max((real)(scale.lowest * view.temperature), -(real)REAL_MAX);
    return scale;
}

// 2^(j / 8), and by how much of itself it is rounded, for the last three bits j of a number.
struct Eighth {
    real power, rest;
};

DEVICE Eighth eighth_of(bits number) { return {EIGHTHS[number & 7], EIGHTHS_REST[number & 7]}; }

// The same where all lanes of a warp ask together, each with that of its own number: shuffles need
// no addresses, and take their three bits themselves.
DEVICE Eighth eighth_of(bits number, const Eighth &mine) {
#if defined(__CUDACC__) && !PYSOFTMAX_DOUBLE
    return {__shfl_sync(ALL, mine.power, (int)number, 8),
            __shfl_sync(ALL, mine.rest, (int)number, 8)};
#else
    return eighth_of(number);
#endif
}

#if FAST
// 2^x to 2 units in the last place, nothing below the normal numbers.
DEVICE real fast_exp2(real x) {
#ifdef __CUDACC__
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
#else
    return exp2f(x);
#endif
}
#endif

// exp((x - c) / T) 2^(HEADROOM - K); zero where no probability could come of it.
// mine: eighth_of the lane's number, where all lanes of a warp are here together.
template <bool general>
DEVICE real exp_scaled(real x, const View &view, const Scale &scale,
                       const Eighth *mine = nullptr) {
    real d = x, z = x, low = 0;
#if FAST
    // For results of 16 bits. An error that grows with x alone is the same for the sum; what is left
    // is that of an exponent of up to 2^8, at most 2^-17.
    real exponent = HEADROOM - scale.exponent;
    if (general) {
        d = x - view.shift;
        z = d * view.beta_high;
        exponent = r_fma(z, (real)LOG2E, exponent);
        z = r_fma(d, view.beta_high, 0 - z);
    }
    const real fast = fast_exp2(r_fma(z, (real)LOG2E, exponent));
    return general && d < scale.lowest ? 0 : fast;
#endif
    if (general) {
        d = x - view.shift;
        z = d * view.beta_high;
        low = r_fma(d, view.beta_low, r_fma(d, view.beta_high, 0 - z));
    } else {
        z = at_least(x, scale.lowest);
    }
    real shifted = r_fma(z, (real)(8 * LOG2E), scale.magic);
    real t = shifted - scale.magic;
    real r = r_fma(t, (real)(-LN2_LOW / 8), r_fma(t, (real)(-LN2_HIGH / 8), z));
    if (general) r = r + low;
    real q = EXP_TAIL[EXP_DEGREE - 1];
    UNROLL for (int k = EXP_DEGREE - 2; k >= 0; k--) q = r_fma(q, r, EXP_TAIL[k]);
    const bits n = as_bits(shifted);
    const Eighth eighth = mine ? eighth_of(n, *mine) : eighth_of(n);
    q = r_fma(r_fma(q, r, 1), r, eighth.rest);
    const real power = as_real(as_bits(eighth.power) + (n << (SIGNIFICAND - 3)));
    return general && d < scale.lowest ? 0 : r_fma(power, q, power);
}

// exp(x) for x <= 0, with gradual underflow.
DEVICE real exp_of_negative(real x) {
    View view;  // not looked at
    return exp_scaled<false>(x, view, scale_of<false>(view, 0)) * (real)power_of_two(-HEADROOM);
}

// log(1 + z) for z in [0, 1].
DEVICE real log1p_of_unit(real z) {
    real s = z / (z + 2), w = s * s, p = ATANH_TAIL[LOG_DEGREE - 1], s2 = s + s;
    UNROLL for (int k = LOG_DEGREE - 2; k >= 0; k--) p = r_fma(p, w, ATANH_TAIL[k]);
    return r_fma(p * w, s2, s2);
}

// log1p(rest / unit) for rest >= 0, unit > 0.
DEVICE double log1p_of_ratio(double rest, double unit) {
    // See power_between in src/cpu/lanes.h.
    const uint64 below = (uint64)__double_as_longlong(unit);
    const uint64 above = (uint64)__double_as_longlong(rest + unit);
    const uint64 exponent = (above - below + (1ull << 51)) >> 52;
    const double k = (double)(int)exponent;
    const double power = __longlong_as_double((long long)((exponent + 1023) << 52));
    const double s = normal_quotient(__fma_rn(1 - power, unit, rest),
                                     __fma_rn(1 + power, unit, rest));
    const double w = s * s, w2 = w * w;
    double even = __fma_rn(LOG_TAIL[6], w2, LOG_TAIL[4]), odd = __fma_rn(LOG_TAIL[5], w2, LOG_TAIL[3]);
    even = __fma_rn(__fma_rn(even, w2, LOG_TAIL[2]), w2, LOG_TAIL[0]);
    odd = __fma_rn(odd, w2, LOG_TAIL[1]);
    return k * LN2_HIGH_DOUBLE
           + (__fma_rn(__fma_rn(odd, w, even) * w, s + s, s + s) + k * LN2_LOW_DOUBLE);
}
