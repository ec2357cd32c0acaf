/* float16 from and to float, bit by bit: NumPy's own conversions report what they meet. */
#ifndef PYSOFTMAX_HALF_H
#define PYSOFTMAX_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* Rounded to the nearest, ties to even. */
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

#endif
