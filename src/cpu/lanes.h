/* One vector of 64 bytes, and the two dozen operations the kernels are written in.
 *
 * A kernel module is compiled once per CPU target and per real type. This header
 * gives it `real`, `vec` (16 float or 8 double lanes) and `vmask` (a truth value per
 * lane) in one of three forms, chosen by what the compiler was told to target:
 *
 *   AVX-512    one zmm register
 *   AVX2+FMA   two ymm registers
 *   portable   a vector of the compiler's, cut into the registers there are (SSE2, NEON, ...)
 *
 * Every operation is one IEEE operation per lane, and every horizontal step adds
 * lanes in one fixed order, so all forms that have fma give the same bits. Where the
 * hardware has none, v_fma rounds twice, and v_reduce, v_product_error and v_multiply, on
 * which accuracy rests, are computed by other means.
 */
#ifndef PYSOFTMAX_LANES_H
#define PYSOFTMAX_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

#if PYSOFTMAX_DOUBLE
typedef double real;
typedef int64_t bits;
#define VLEN 8
#else
typedef float real;
typedef int32_t bits;
#define VLEN 16
#endif

#include "constants.h"

enum { BLOCK_VECTORS = BLOCK / VLEN };

INLINE void prefetch(const void *p) { __builtin_prefetch(p); }

/* n, of which the compiler then knows nothing, so that it keeps a loop to it. Unrolled whole, every
 * load would be an instruction of its own, and the processor's prefetchers, which tell streams by
 * instruction, would see one step of a chunk instead of neighbours: up to a fifth of the time. */
INLINE Py_ssize_t opaque(Py_ssize_t n) {
    __asm__("" : "+r"(n));
    return n;
}

/* ------------------------------------------------------------------------ AVX-512 */
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

#if PYSOFTMAX_DOUBLE
typedef __m512d vec;
typedef __mmask8 vmask;
#define X(operation) _mm512_##operation##_pd
#define COMPARE _mm512_cmp_pd_mask
#else
typedef __m512 vec;
typedef __mmask16 vmask;
#define X(operation) _mm512_##operation##_ps
#define COMPARE _mm512_cmp_ps_mask
#endif

INLINE vec v_set1(real a) { return X(set1)(a); }
INLINE vec v_load(const real *p) { return X(loadu)(p); }
/* v_load of what no cache holds. Measured on Zen 5: whole vectors that cross cache lines keep
 * fewer misses in flight, and memory then gives half as much. */
#if PYSOFTMAX_DOUBLE
INLINE vec v_fetch(const real *p) {
    return _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(p)),
                              _mm256_loadu_pd(p + VLEN / 2), 1);
}
#else
INLINE vec v_fetch(const real *p) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)),
                              _mm256_loadu_ps(p + VLEN / 2), 1);
}
#endif
INLINE void v_store(real *p, vec a) { X(storeu)(p, a); }
INLINE vmask v_first(Py_ssize_t count) {
    return (vmask)(count >= VLEN ? -1 : (1 << count) - 1);
}
INLINE vec v_load_first(const real *p, vmask m, vec other) { return X(mask_loadu)(other, m, p); }
/* Masks cost nothing in a cache, but a masked store does not ask for its line ahead. */
INLINE void v_store_first(real *p, Py_ssize_t count, vec a) {
    if (count >= VLEN) v_store(p, a);
    else X(mask_storeu)(p, v_first(count), a);
}

INLINE vec v_add(vec a, vec b) { return X(add)(a, b); }
INLINE vec v_sub(vec a, vec b) { return X(sub)(a, b); }
INLINE vec v_mul(vec a, vec b) { return X(mul)(a, b); }
INLINE vec v_div(vec a, vec b) { return X(div)(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return X(fmadd)(a, b, c); }
INLINE vec v_max(vec a, vec b) { return X(max)(a, b); }
INLINE vec v_min(vec a, vec b) { return X(min)(a, b); }
INLINE vec v_abs(vec a) { return X(abs)(a); }

INLINE vmask v_eq(vec a, vec b) { return COMPARE(a, b, _CMP_EQ_OQ); }
INLINE vmask v_ne(vec a, vec b) { return COMPARE(a, b, _CMP_NEQ_UQ); }
INLINE vmask v_not_less(vec a, vec b) { return COMPARE(a, b, _CMP_NLT_UQ); }
INLINE vec v_where(vmask m, vec a, vec b) { return X(mask_blend)(m, b, a); }
INLINE vec v_zero_unless(vmask m, vec a) { return X(maskz_mov)(m, a); }
INLINE vec v_add_where(vmask m, vec a, vec b) { return X(mask_add)(a, m, a, b); }
#if PYSOFTMAX_DOUBLE
INLINE vmask v_true(const char *p) {
    __m128i flags = _mm_loadl_epi64((const __m128i *)p);
    return (vmask)_mm_test_epi8_mask(flags, flags);
}
#else
INLINE vmask v_true(const char *p) {
    __m128i flags = _mm_loadu_si128((const __m128i *)p);
    return _mm_test_epi8_mask(flags, flags);
}
#endif
INLINE vmask v_or(vmask a, vmask b) { return a | b; }
INLINE int v_any(vmask m) { return m != 0; }
INLINE uint64_t v_bits(vmask m) { return m; }
INLINE int v_count(vmask m) { return __builtin_popcount(m); }

#if PYSOFTMAX_DOUBLE
INLINE vec v_eighths(const real *p) { return v_load(p); }
INLINE vec v_pick(vec eighths, vec n) {
    return _mm512_permutexvar_pd(_mm512_castpd_si512(n), eighths);
}
INLINE vec v_power(vec eighths, vec n) {
    __m512i exponent = _mm512_slli_epi64(_mm512_castpd_si512(n), SIGNIFICAND - 3);
    return _mm512_castsi512_pd(
        _mm512_add_epi64(exponent, _mm512_castpd_si512(v_pick(eighths, n))));
}
#else
/* Twice, because 4 bits of an index count here. */
INLINE vec v_eighths(const real *p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
INLINE vec v_pick(vec eighths, vec n) {
    return _mm512_permutexvar_ps(_mm512_castps_si512(n), eighths);
}
INLINE vec v_power(vec eighths, vec n) {
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n), SIGNIFICAND - 3);
    return _mm512_castsi512_ps(
        _mm512_add_epi32(exponent, _mm512_castps_si512(v_pick(eighths, n))));
}
#endif

/* The first halving step of a reduction leaves 32 bytes; AVX2 does the rest. */
#if PYSOFTMAX_DOUBLE
INLINE __m256d v_low(vec a) { return _mm512_castpd512_pd256(a); }
INLINE __m256d v_high(vec a) { return _mm512_extractf64x4_pd(a, 1); }
#else
INLINE __m256 v_low(vec a) { return _mm512_castps512_ps256(a); }
INLINE __m256 v_high(vec a) { return _mm512_extractf32x8_ps(a, 1); }
#endif

/* --------------------------------------------------------------------------- AVX2 */
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#if PYSOFTMAX_DOUBLE
typedef __m256d half;
#define X(operation) _mm256_##operation##_pd
#define CAST_TO_INT _mm256_castpd_si256
#define CAST_TO_REAL _mm256_castsi256_pd
#define SET1_BITS _mm256_set1_epi64x
#define GREATER_BITS _mm256_cmpgt_epi64
#define COUNT_UP(start) _mm256_setr_epi64x(start, start + 1, start + 2, start + 3)
#define SHIFT(a) _mm256_slli_epi64(a, SIGNIFICAND - 3)
#define ADD_BITS _mm256_add_epi64
#else
typedef __m256 half;
#define X(operation) _mm256_##operation##_ps
#define CAST_TO_INT _mm256_castps_si256
#define CAST_TO_REAL _mm256_castsi256_ps
#define SET1_BITS _mm256_set1_epi32
#define GREATER_BITS _mm256_cmpgt_epi32
#define COUNT_UP(start)                                                                       \
    _mm256_setr_epi32(start, start + 1, start + 2, start + 3, start + 4, start + 5,           \
                      start + 6, start + 7)
#define SHIFT(a) _mm256_slli_epi32(a, SIGNIFICAND - 3)
#define ADD_BITS _mm256_add_epi32
#endif
#define HALF (VLEN / 2)
typedef struct { half a, b; } vec;
typedef struct { half a, b; } vmask;
#define EACH(expression_a, expression_b) ((vec){(expression_a), (expression_b)})
#define EACH_MASK(expression_a, expression_b) ((vmask){(expression_a), (expression_b)})

INLINE vec v_set1(real a) { return EACH(X(set1)(a), X(set1)(a)); }
INLINE vec v_load(const real *p) { return EACH(X(loadu)(p), X(loadu)(p + HALF)); }
INLINE vec v_fetch(const real *p) { return v_load(p); }
INLINE void v_store(real *p, vec v) {
    X(storeu)(p, v.a);
    X(storeu)(p + HALF, v.b);
}
INLINE vmask v_first(Py_ssize_t count) {
    __m256i n = SET1_BITS((bits)(count > VLEN ? VLEN : count));
    return EACH_MASK(CAST_TO_REAL(GREATER_BITS(n, COUNT_UP(0))),
                     CAST_TO_REAL(GREATER_BITS(n, COUNT_UP(HALF))));
}
INLINE half true_half(const char *p) {
#if PYSOFTMAX_DOUBLE
    int flags;
    memcpy(&flags, p, sizeof flags);
    __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(flags));
#else
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#endif
    return CAST_TO_REAL(GREATER_BITS(wide, _mm256_setzero_si256()));
}
INLINE vmask v_true(const char *p) { return EACH_MASK(true_half(p), true_half(p + HALF)); }
INLINE vec v_where(vmask m, vec x, vec y) {
    return EACH(X(blendv)(y.a, x.a, m.a), X(blendv)(y.b, x.b, m.b));
}
INLINE vec v_zero_unless(vmask m, vec v) { return EACH(X(and)(m.a, v.a), X(and)(m.b, v.b)); }
INLINE vec v_load_first(const real *p, vmask m, vec other) {
    vec loaded = EACH(X(maskload)(p, CAST_TO_INT(m.a)), X(maskload)(p + HALF, CAST_TO_INT(m.b)));
    return v_where(m, loaded, other);
}
/* Not by maskstore, which takes AMD's processors some forty operations. */
INLINE void store_some(real *p, Py_ssize_t count, half v) {
#if PYSOFTMAX_DOUBLE
    __m128d rest = _mm256_castpd256_pd128(v);
    if (count & 2) {
        _mm_storeu_pd(p, rest);
        p += 2;
        rest = _mm256_extractf128_pd(v, 1);
    }
    if (count & 1) _mm_store_sd(p, rest);
#else
    __m128 rest = _mm256_castps256_ps128(v);
    if (count & 4) {
        _mm_storeu_ps(p, rest);
        p += 4;
        rest = _mm256_extractf128_ps(v, 1);
    }
    if (count & 2) {
        _mm_storel_pi((__m64 *)p, rest);
        p += 2;
        rest = _mm_movehl_ps(rest, rest);
    }
    if (count & 1) _mm_store_ss(p, rest);
#endif
}
INLINE void v_store_first(real *p, Py_ssize_t count, vec v) {
    if (count >= VLEN) {
        v_store(p, v);
    } else if (count >= HALF) {
        X(storeu)(p, v.a);
        store_some(p + HALF, count - HALF, v.b);
    } else {
        store_some(p, count, v.a);
    }
}

INLINE vec v_add(vec x, vec y) { return EACH(X(add)(x.a, y.a), X(add)(x.b, y.b)); }
INLINE vec v_sub(vec x, vec y) { return EACH(X(sub)(x.a, y.a), X(sub)(x.b, y.b)); }
INLINE vec v_mul(vec x, vec y) { return EACH(X(mul)(x.a, y.a), X(mul)(x.b, y.b)); }
INLINE vec v_div(vec x, vec y) { return EACH(X(div)(x.a, y.a), X(div)(x.b, y.b)); }
INLINE vec v_fma(vec x, vec y, vec z) {
    return EACH(X(fmadd)(x.a, y.a, z.a), X(fmadd)(x.b, y.b, z.b));
}
INLINE vec v_max(vec x, vec y) { return EACH(X(max)(x.a, y.a), X(max)(x.b, y.b)); }
INLINE vec v_min(vec x, vec y) { return EACH(X(min)(x.a, y.a), X(min)(x.b, y.b)); }
INLINE vec v_add_where(vmask m, vec x, vec y) { return v_add(x, v_zero_unless(m, y)); }
INLINE vmask v_or(vmask m, vmask n) { return EACH_MASK(X(or)(m.a, n.a), X(or)(m.b, n.b)); }
INLINE int v_any(vmask m) { return X(movemask)(X(or)(m.a, m.b)) != 0; }
INLINE uint64_t v_bits(vmask m) {
    return (uint64_t)X(movemask)(m.a) | (uint64_t)X(movemask)(m.b) << HALF;
}
INLINE int v_count(vmask m) { return __builtin_popcountll(v_bits(m)); }
INLINE vec v_abs(vec v) {
    half sign = X(set1)((real)-0.0);
    return EACH(X(andnot)(sign, v.a), X(andnot)(sign, v.b));
}

#define COMPARE(x, y, relation)                                                               \
    EACH_MASK(X(cmp)((x).a, (y).a, relation), X(cmp)((x).b, (y).b, relation))
INLINE vmask v_eq(vec x, vec y) { return COMPARE(x, y, _CMP_EQ_OQ); }
INLINE vmask v_ne(vec x, vec y) { return COMPARE(x, y, _CMP_NEQ_UQ); }
INLINE vmask v_not_less(vec x, vec y) { return COMPARE(x, y, _CMP_NLT_UQ); }

#if PYSOFTMAX_DOUBLE
/* There is a look-up for 8 floats, so the halves of the doubles are looked up: lower ones in a,
 * upper ones in b. */
#define FLOATS _mm256_castpd_ps
INLINE vec v_eighths(const real *p) {
    __m256 a = FLOATS(_mm256_loadu_pd(p)), b = FLOATS(_mm256_loadu_pd(p + 4));
    __m256d lower = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
    __m256d upper = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    return EACH(_mm256_permute4x64_pd(lower, 0xd8), _mm256_permute4x64_pd(upper, 0xd8));
}
INLINE half pick_half(vec eighths, half n) {
    __m256i index = _mm256_castps_si256(_mm256_moveldup_ps(FLOATS(n)));
    return _mm256_castps_pd(
        _mm256_blend_ps(_mm256_permutevar8x32_ps(FLOATS(eighths.a), index),
                        _mm256_permutevar8x32_ps(FLOATS(eighths.b), index), 0xaa));
}
#else
INLINE vec v_eighths(const real *p) { return EACH(X(loadu)(p), X(loadu)(p)); }
INLINE half pick_half(vec eighths, half n) {
    return _mm256_permutevar8x32_ps(eighths.a, CAST_TO_INT(n));
}
#endif
INLINE vec v_pick(vec eighths, vec n) {
    return EACH(pick_half(eighths, n.a), pick_half(eighths, n.b));
}
INLINE half power_half(vec eighths, half n) {
    return CAST_TO_REAL(ADD_BITS(CAST_TO_INT(pick_half(eighths, n)), SHIFT(CAST_TO_INT(n))));
}
INLINE vec v_power(vec eighths, vec n) {
    return EACH(power_half(eighths, n.a), power_half(eighths, n.b));
}

INLINE half v_low(vec v) { return v.a; }
INLINE half v_high(vec v) { return v.b; }

/* ----------------------------------------------------------------------- portable */
#else
#define PYSOFTMAX_PORTABLE 1
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
#define HAS_FMA 1
#else
#define HAS_FMA 0
#endif

/* GCC and clang cut these into whatever registers there are. A loop over an array would
 * do, but unrolled and inlined everywhere it takes the compiler minutes. */
typedef real vec __attribute__((vector_size(64)));
typedef bits vmask __attribute__((vector_size(64)));

INLINE vmask as_bits(vec v) { return (vmask)v; }
INLINE vec as_real(vmask m) { return (vec)m; }

INLINE vec v_set1(real a) { return a - (vec){0}; }
INLINE vec v_load(const real *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE vec v_fetch(const real *p) { return v_load(p); }
INLINE void v_store(real *p, vec v) { memcpy(p, &v, sizeof v); }
#if PYSOFTMAX_DOUBLE
INLINE vmask v_first(Py_ssize_t count) { return (vmask){0, 1, 2, 3, 4, 5, 6, 7} < (bits)count; }
#else
INLINE vmask v_first(Py_ssize_t count) {
    return (vmask){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
           < (bits)(count > VLEN ? VLEN : count);
}
#endif
/* Where p, a bool for each lane, is true. */
INLINE vmask v_true(const char *p) {
    vmask m;
    for (int i = 0; i < VLEN; i++) m[i] = -(p[i] != 0);
    return m;
}
INLINE vec v_where(vmask m, vec x, vec y) { return as_real((as_bits(x) & m) | (as_bits(y) & ~m)); }
INLINE vec v_zero_unless(vmask m, vec v) { return as_real(as_bits(v) & m); }
INLINE vec v_load_first(const real *p, vmask m, vec other) {
    int count = 0;
    while (count < VLEN && m[count]) count++;
    memcpy(&other, p, count * sizeof(real));
    return other;
}
INLINE void v_store_first(real *p, Py_ssize_t count, vec v) {
    memcpy(p, &v, (count < VLEN ? count : VLEN) * sizeof(real));
}

INLINE vec v_add(vec x, vec y) { return x + y; }
INLINE vec v_sub(vec x, vec y) { return x - y; }
INLINE vec v_mul(vec x, vec y) { return x * y; }
INLINE vec v_div(vec x, vec y) { return x / y; }
INLINE vec v_add_where(vmask m, vec x, vec y) { return x + v_zero_unless(m, y); }
INLINE vmask v_or(vmask a, vmask b) { return a | b; }
INLINE uint64_t v_bits(vmask m) {
    uint64_t result = 0;
    for (int i = 0; i < VLEN; i++) result |= (uint64_t)(m[i] & 1) << i;
    return result;
}
INLINE int v_any(vmask m) {
    bits any = 0;
    for (int i = 0; i < VLEN; i++) any |= m[i];
    return any != 0;
}
INLINE int v_count(vmask m) {
    bits count = 0;
    for (int i = 0; i < VLEN; i++) count -= m[i];
    return (int)count;
}
#if defined(__aarch64__)
#include <arm_neon.h>
INLINE vec v_fma(vec x, vec y, vec z) {
    for (int i = 0; i < 4; i++) {
#if PYSOFTMAX_DOUBLE
        ((float64x2_t *)&z)[i] =
            vfmaq_f64(((float64x2_t *)&z)[i], ((float64x2_t *)&x)[i], ((float64x2_t *)&y)[i]);
#else
        ((float32x4_t *)&z)[i] =
            vfmaq_f32(((float32x4_t *)&z)[i], ((float32x4_t *)&x)[i], ((float32x4_t *)&y)[i]);
#endif
    }
    return z;
}
#elif HAS_FMA
INLINE vec v_fma(vec x, vec y, vec z) {
    for (int i = 0; i < VLEN; i++)
        z[i] = PYSOFTMAX_DOUBLE ? fma(x[i], y[i], z[i]) : fmaf(x[i], y[i], z[i]);
    return z;
}
#else
INLINE vec v_fma(vec x, vec y, vec z) { return x * y + z; }
#endif
INLINE vec v_max(vec x, vec y) { return v_where(x > y, x, y); }
INLINE vec v_min(vec x, vec y) { return v_where(x < y, x, y); }
INLINE vec v_abs(vec v) { return as_real(as_bits(v) & ~as_bits(v_set1((real)-0.0))); }

INLINE vmask v_eq(vec x, vec y) { return x == y; }
INLINE vmask v_ne(vec x, vec y) { return x != y; }
INLINE vmask v_not_less(vec x, vec y) { return ~(x < y); }

INLINE vec v_eighths(const real *p) {
    vec table = {0};
    memcpy(&table, p, 8 * sizeof(real));
    return table;
}
INLINE vec v_pick(vec eighths, vec n) {
    vmask index = as_bits(n) & 7;
    for (int i = 0; i < VLEN; i++) n[i] = eighths[index[i]];
    return n;
}
INLINE vec v_power(vec eighths, vec n) {
    return as_real(as_bits(v_pick(eighths, n)) + (as_bits(n) << (SIGNIFICAND - 3)));
}

INLINE real v_reduce_add(vec v) {
    for (int width = VLEN / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) v[i] = v[i] + v[i + width];
    return v[0];
}
INLINE real v_reduce_max(vec v) {
    for (int width = VLEN / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
    return v[0];
}
INLINE vec v_reduce_each_add(const vec *rows) {
    vec result;
    for (int i = 0; i < VLEN; i++) result[i] = v_reduce_add(rows[i]);
    return result;
}
INLINE vec v_reduce_each_max(const vec *rows) {
    vec result;
    for (int i = 0; i < VLEN; i++) result[i] = v_reduce_max(rows[i]);
    return result;
}
#endif

/* -------------------------------------------------------- horizontal steps on x86 */
#ifndef PYSOFTMAX_PORTABLE
#if PYSOFTMAX_DOUBLE
#define REDUCE(operation)                                                                     \
    __m256d four = _mm256_##operation##_pd(v_low(v), v_high(v));                              \
    __m128d two = _mm_##operation##_pd(_mm256_castpd256_pd128(four),                          \
                                       _mm256_extractf128_pd(four, 1));                       \
    return _mm_cvtsd_f64(_mm_##operation##_sd(two, _mm_unpackhi_pd(two, two)))
#else
#define REDUCE(operation)                                                                     \
    __m256 eight = _mm256_##operation##_ps(v_low(v), v_high(v));                              \
    __m128 four = _mm_##operation##_ps(_mm256_castps256_ps128(eight),                         \
                                       _mm256_extractf128_ps(eight, 1));                      \
    __m128 two = _mm_##operation##_ps(four, _mm_movehl_ps(four, four));                       \
    return _mm_cvtss_f32(_mm_##operation##_ss(two, _mm_shuffle_ps(two, two, 1)))
#endif
INLINE real v_reduce_add(vec v) { REDUCE(add); }
INLINE real v_reduce_max(vec v) { REDUCE(max); }

/* VLEN vectors reduced at once, each into its lane of the result, by the same halving steps.
 * A step joins two vectors by two shuffles, which put what is to be joined side by side. */
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#if PYSOFTMAX_DOUBLE
#define STEP_8(op, a, b)                                                                      \
    op(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xee))
#define STEP_4(op, a, b)                                                                      \
    op(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd))
#define STEP_2(op, a, b) op(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b))
#define FOUR(op, r, i) STEP_4(op, STEP_8(op, r[i], r[i + 2]), STEP_8(op, r[i + 4], r[i + 6]))
#define REDUCE_EACH(op) return STEP_2(op, FOUR(op, rows, 0), FOUR(op, rows, 1))
#else
#define STEP_16(op, a, b)                                                                     \
    op(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee))
#define STEP_8(op, a, b)                                                                      \
    op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd))
#define PAIRS(a) _mm512_castps_pd(a)
#define STEP_4(op, a, b)                                                                      \
    op(_mm512_castpd_ps(_mm512_unpacklo_pd(PAIRS(a), PAIRS(b))),                              \
       _mm512_castpd_ps(_mm512_unpackhi_pd(PAIRS(a), PAIRS(b))))
#define STEP_2(op, a, b) op(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd))
#define FOUR(op, r, i)                                                                        \
    STEP_8(op, STEP_16(op, r[i], r[i + 4]), STEP_16(op, r[i + 8], r[i + 12]))
#define REDUCE_EACH(op)                                                                       \
    vec even = STEP_4(op, FOUR(op, rows, 0), FOUR(op, rows, 1));                              \
    vec odd = STEP_4(op, FOUR(op, rows, 2), FOUR(op, rows, 3));                               \
    return STEP_2(op, even, odd)
#endif
INLINE vec v_reduce_each_add(const vec *rows) { REDUCE_EACH(v_add); }
INLINE vec v_reduce_each_max(const vec *rows) { REDUCE_EACH(v_max); }
#else
#define LEFT(op, v) X(op)((v).a, (v).b)
#if PYSOFTMAX_DOUBLE
#define STEP_4(op, a, b)                                                                      \
    X(op)(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31))
#define STEP_2(op, a, b) X(op)(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b))
#define HALF_OF_EACH(op, r)                                                                   \
    STEP_2(op, STEP_4(op, LEFT(op, r[0]), LEFT(op, r[2])),                                    \
           STEP_4(op, LEFT(op, r[1]), LEFT(op, r[3])))
#else
#define STEP_8(op, a, b)                                                                      \
    X(op)(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31))
#define PAIRS(a) _mm256_castps_pd(a)
#define STEP_4(op, a, b)                                                                      \
    X(op)(_mm256_castpd_ps(_mm256_unpacklo_pd(PAIRS(a), PAIRS(b))),                           \
          _mm256_castpd_ps(_mm256_unpackhi_pd(PAIRS(a), PAIRS(b))))
#define STEP_2(op, a, b) X(op)(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd))
#define TWO(op, r, i) STEP_8(op, LEFT(op, r[i]), LEFT(op, r[i + 4]))
#define HALF_OF_EACH(op, r)                                                                   \
    STEP_2(op, STEP_4(op, TWO(op, r, 0), TWO(op, r, 1)),                                      \
           STEP_4(op, TWO(op, r, 2), TWO(op, r, 3)))
#endif
#define REDUCE_EACH(op)                                                                       \
    const vec *upper = rows + HALF;                                                           \
    return (vec){HALF_OF_EACH(op, rows), HALF_OF_EACH(op, upper)}
INLINE vec v_reduce_each_add(const vec *rows) { REDUCE_EACH(add); }
INLINE vec v_reduce_each_max(const vec *rows) { REDUCE_EACH(max); }
#endif
#endif

/* ------------------------------------------------------------- scalars, without libm */

INLINE int first_bit(uint64_t word) { return __builtin_ctzll(word); }

/* 2^exponent for exponent <= 1023; zero below the subnormals. */
INLINE double two_to(int exponent) {
    uint64_t word = 0;
    double result;
    if (exponent >= -1022)
        word = (uint64_t)(exponent + 1023) << 52;
    else if (exponent >= -1074)
        word = (uint64_t)1 << (exponent + 1074);
    memcpy(&result, &word, sizeof result);
    return result;
}
/* k, and 2^k, for which sum / (unit * 2^k) lies in [3/4, 3/2]; 0 up to 3/2 itself. For
 * sum >= unit, both normal and > 0. */
INLINE double power_between(double unit, double sum, double *power) {
    uint64_t below, above;
    memcpy(&below, &unit, sizeof below);
    memcpy(&above, &sum, sizeof above);
    /* Bits count up like a logarithm, in straight pieces. */
    uint64_t k = (above - below + ((uint64_t)1 << 51)) >> 52;
    uint64_t scale = (k + 1023) << 52;
    /* AVX2 cannot convert 64-bit integers: put this one into the low bits of 2^52. */
    uint64_t magic = k | 0x4330000000000000;
    double value, exponent;
    memcpy(&value, &scale, sizeof value);
    memcpy(&exponent, &magic, sizeof exponent);
    *power = value;
    return exponent - 0x1p52;
}

/* ------------------------------------------------- exact products, with and without fma */

#if !defined(PYSOFTMAX_PORTABLE) || HAS_FMA

/* a * b - product, exactly; product is a * b rounded. */
INLINE vec v_product_error(vec a, vec b, vec product) {
    return v_fma(a, b, v_sub(v_set1(0), product));
}
/* x - t * c, rounded once; t is an integer and c close to ln 2 or to its tail. */
INLINE vec v_reduce(vec t, real c, vec x) { return v_fma(t, v_set1(-c), x); }
/* a * (high + low), rounded once but for the last bits of low. */
INLINE vec v_multiply(vec a, vec high, vec low) { return v_fma(a, high, v_mul(a, low)); }

#else

#if PYSOFTMAX_DOUBLE
/* Veltkamp's split and Dekker's product (Dekker 1971); zero where the error would be subnormal
 * or 2^27 a overflow. */
INLINE vec v_product_error(vec a, vec b, vec product) {
    const double splitter = 134217729.0;
    vec wide_a = a * splitter, high_a = wide_a - (wide_a - a), low_a = a - high_a;
    vec wide_b = b * splitter, high_b = wide_b - (wide_b - b), low_b = b - high_b;
    vec error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b;
    return v_zero_unless(v_not_less(v_abs(product), v_set1(0x1p-960))
                             & v_not_less(v_set1(0x1p990), v_abs(a)), error);
}
INLINE vec v_reduce(vec t, real c, vec x) {
    vec product = t * c;
    return (x - product) - v_product_error(t, v_set1(c), product);
}
#else
INLINE vec v_product_error(vec a, vec b, vec product) {
    for (int i = 0; i < VLEN; i++) product[i] = (float)((double)a[i] * b[i] - product[i]);
    return product;
}
INLINE vec v_reduce(vec t, real c, vec x) {
    for (int i = 0; i < VLEN; i++) x[i] = (float)((double)x[i] - (double)t[i] * c);
    return x;
}
#endif
INLINE vec v_multiply(vec a, vec high, vec low) {
    vec product = a * high;
    return product + (v_product_error(a, high, product) + a * low);
}

#endif

/* VLEN rows of n contiguous columns as n vectors, and back: loops that compilers make shuffles
 * of where n is a constant of theirs and 2, 3, 4 or 8. */
INLINE void turn_to_columns(int n, const real *restrict rows, real *restrict columns) {
    for (int k = 0; k < VLEN; k++)
        for (int c = 0; c < n; c++) columns[c * VLEN + k] = rows[k * n + c];
}
INLINE void turn_to_rows(int n, const real *restrict columns, real *restrict rows) {
    for (int k = 0; k < VLEN; k++)
        for (int c = 0; c < n; c++) rows[k * n + c] = columns[c * VLEN + k];
}
/* 5 to 7 columns by way of rows of 8: what belongs to the next row is read with a row, and
 * written before that is. */
INLINE void v_columns(int n, const real *rows, real *columns) {
    real padded[8 * VLEN];
    if (n < 5 || n > 7) {
        turn_to_columns(n, rows, columns);
        return;
    }
    for (int k = 0; k < VLEN - 1; k++) memcpy(padded + 8 * k, rows + n * k, 8 * sizeof(real));
    memcpy(padded + 8 * (VLEN - 1), rows + n * (VLEN - 1), n * sizeof(real));
    turn_to_columns(8, padded, columns);
}
INLINE void v_rows(int n, const real *columns, real *rows) {
    real padded[8 * VLEN];
    if (n < 5 || n > 7) {
        turn_to_rows(n, columns, rows);
        return;
    }
    turn_to_rows(8, columns, padded);
    for (int k = 0; k < VLEN - 1; k++) memcpy(rows + n * k, padded + 8 * k, 8 * sizeof(real));
    memcpy(rows + n * (VLEN - 1), padded + 8 * (VLEN - 1), n * sizeof(real));
}

/* VLEN elements in half precision: exact one way, rounded to the nearest the other (half.h). WIDENS:
 * an instruction or two do that, so that twice is less than to convert and store (without, measured:
 * 0.4 to 1.4 of the speed). */
#if PYSOFTMAX_DOUBLE || defined(PYSOFTMAX_PORTABLE)
#define WIDENS 0
INLINE vec v_widen(Element element, const uint16_t *p) {
    real wide[VLEN];
    for (int i = 0; i < VLEN; i++)
        wide[i] = element == FLOAT16 ? float_of_half(p[i]) : float_of_bfloat(p[i]);
    return v_load(wide);
}
INLINE void v_narrow(Element element, uint16_t *p, vec v) {
    real wide[VLEN];
    v_store(wide, v);
    for (int i = 0; i < VLEN; i++)
        p[i] = element == FLOAT16 ? half_of_float((float)wide[i]) : bfloat_of_float((float)wide[i]);
}
#elif defined(__AVX512F__)
#define WIDENS 1
INLINE vec v_widen(Element element, const uint16_t *p) {
    __m256i narrow = _mm256_loadu_si256((const __m256i *)p);
    if (element == FLOAT16) return _mm512_cvtph_ps(narrow);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}
INLINE void v_narrow(Element element, uint16_t *p, vec v) {
    __m256i narrow;
    if (element == FLOAT16) {
        narrow = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    } else {
        __m512i bits = _mm512_castps_si512(v), upper = _mm512_srli_epi32(bits, 16);
        __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff),
                                        _mm512_and_si512(upper, _mm512_set1_epi32(1)));
        __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
        __m512i nan = _mm512_or_si512(_mm512_and_si512(upper, _mm512_set1_epi32(0x8000)),
                                      _mm512_set1_epi32(0x7fc0));
        narrow = _mm512_cvtepi32_epi16(
            _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan));
    }
    _mm256_storeu_si256((__m256i *)p, narrow);
}
#else
#define WIDENS 1
INLINE half eight_floats(Element element, __m128i narrow) {
    if (element == FLOAT16) return _mm256_cvtph_ps(narrow);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}
INLINE vec v_widen(Element element, const uint16_t *p) {
    return EACH(eight_floats(element, _mm_loadu_si128((const __m128i *)p)),
                eight_floats(element, _mm_loadu_si128((const __m128i *)(p + HALF))));
}
INLINE void v_narrow(Element element, uint16_t *p, vec v) {
    if (element == FLOAT16) {
        _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128((__m128i *)(p + HALF), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
    } else {
        store_sixteen_bfloats(p, v.a, v.b);
    }
}
#endif

#endif
