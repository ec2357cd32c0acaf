/* float16 and bfloat16 from and to float, rounded to the nearest, ties to even.
 *
 * NumPy's own conversions report what they meet, and take up to 60 ns for a subnormal. These take
 * 0.05 to 0.1 ns an element with AVX-512: by the processor's instructions where it has them, else
 * bit by bit in loops that compilers turn into vectors.
 */
#ifndef PYSOFTMAX_HALF_H
#define PYSOFTMAX_HALF_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

static inline float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    float value;
    if (rest < 0x0400) { /* subnormal: its significand in units of 2^-24 */
        value = (float)rest * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
    } else if (rest < 0x7c00) {
        bits = (rest << 13) + ((127 - 15) << 23);
    } else {
        bits = (rest << 13) | 0x7f800000;
    }
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t half_of_float(float value) {
    uint32_t bits, sign, rest;
    memcpy(&bits, &value, sizeof bits);
    sign = bits >> 16 & 0x8000;
    rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff));
    if (rest >= 0x47800000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) { /* adding 1/2 rounds to a multiple of 2^-24 */
        float moved = fabsf(value) + 0.5f;
        memcpy(&rest, &moved, sizeof rest);
        return (uint16_t)(sign | (rest - 0x3f000000));
    }
    /* Half of the last place kept, less the tie's part where that place is even. */
    return (uint16_t)(sign | ((rest - ((127 - 15) << 23) + 0xfff + (rest >> 13 & 1)) >> 13));
}

static inline float float_of_bfloat(uint16_t bfloat) {
    uint32_t bits = (uint32_t)bfloat << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t bfloat_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16 & 0x8000) | 0x7fc0);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#ifdef __F16C__
static inline void widen_eight(const uint16_t *halves, float *floats) {
    _mm256_storeu_ps(floats, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves)));
}

static inline void narrow_eight(const float *floats, uint16_t *halves) {
    _mm_storeu_si128((__m128i *)halves,
                     _mm256_cvtps_ph(_mm256_loadu_ps(floats), _MM_FROUND_TO_NEAREST_INT));
}
#endif

/* 32 at a time, a cache line: loops over 8 are so short that they take 1.4 of the time where they
 * happen to cross a boundary of 64 bytes (measured on Zen 3). `ahead` elements further on is what
 * memory is asked for. */
static inline void floats_of_halves(const uint16_t *halves, float *floats, ptrdiff_t n,
                                    ptrdiff_t ahead) {
    ptrdiff_t i = 0;
#ifdef __F16C__
    for (; i + 32 <= n; i += 32) {
        __builtin_prefetch(halves + i + ahead);
        for (int k = 0; k < 32; k += 8) widen_eight(halves + i + k, floats + i + k);
    }
    for (; i + 8 <= n; i += 8) widen_eight(halves + i, floats + i);
#endif
    for (; i < n; i++) floats[i] = float_of_half(halves[i]);
}

static inline void floats_of_bfloats(const uint16_t *bfloats, float *floats, ptrdiff_t n,
                                     ptrdiff_t ahead) {
    ptrdiff_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __builtin_prefetch(bfloats + i + ahead);
        for (int k = 0; k < 32; k++) floats[i + k] = float_of_bfloat(bfloats[i + k]);
    }
    for (; i < n; i++) floats[i] = float_of_bfloat(bfloats[i]);
}

static inline void halves_of_floats(const float *floats, uint16_t *halves, ptrdiff_t n) {
    ptrdiff_t i = 0;
#ifdef __F16C__
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 32; k += 8) narrow_eight(floats + i + k, halves + i + k);
    for (; i + 8 <= n; i += 8) narrow_eight(floats + i, halves + i);
#endif
    for (; i < n; i++) halves[i] = half_of_float(floats[i]);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
/* bfloat_of_float of eight, in 32 bits each. */
static inline __m256i eight_bfloats(__m256 eight) {
    __m256i bits = _mm256_castps_si256(eight), upper = _mm256_srli_epi32(bits, 16);
    __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff),
                                    _mm256_and_si256(upper, _mm256_set1_epi32(1)));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    __m256i nan = _mm256_or_si256(_mm256_and_si256(upper, _mm256_set1_epi32(0x8000)),
                                  _mm256_set1_epi32(0x7fc0));
    __m256 is_nan = _mm256_cmp_ps(eight, eight, _CMP_UNORD_Q);
    return _mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(is_nan));
}

static inline void store_sixteen_bfloats(uint16_t *bfloats, __m256 a, __m256 b) {
    __m256i packed = _mm256_packus_epi32(eight_bfloats(a), eight_bfloats(b));
    _mm256_storeu_si256((__m256i *)bfloats, _mm256_permute4x64_epi64(packed, 0xd8));
}
#endif

static inline void bfloats_of_floats(const float *floats, uint16_t *bfloats, ptrdiff_t n) {
    ptrdiff_t i = 0;
    /* gcc packs by more shuffles than it takes; with AVX-512 there is an instruction for it. */
#if defined(__AVX2__) && !defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        store_sixteen_bfloats(bfloats + i, _mm256_loadu_ps(floats + i),
                              _mm256_loadu_ps(floats + i + 8));
#endif
    for (; i < n; i++) bfloats[i] = bfloat_of_float(floats[i]);
}

#endif
