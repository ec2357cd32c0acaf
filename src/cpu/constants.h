/* The constants of the kernels, for the CPU and for CUDA, in the precision of `real`.
 *
 * Polynomials: minimax, from tools/minimax.py, which prints these lines.
 * ln 2 in two parts: Cody & Waite 1980, chapter 6.
 */
#ifndef PYSOFTMAX_CONSTANTS_H
#define PYSOFTMAX_CONSTANTS_H

#include "units.h"

#ifndef TABLE
#define TABLE static const
#endif

enum {
    LANES = LANE_ROW_BYTES / sizeof(real),
    CHUNK = CHUNK_BYTES / sizeof(real),
    BLOCK = BLOCK_BYTES / sizeof(real),
    PIECE = PIECE_BYTES / sizeof(real),
};

#if PYSOFTMAX_DOUBLE
#define REAL_MAX 0x1.fffffffffffffp+1023
#define SIGNIFICAND 52
#define LOG2E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefa39efp-1
#define LN2_LOW 0x1.abc9e3b39803fp-56
/* Adding 1.5 * 2^(significand bits - 1) rounds to an integer and leaves it in the low bits. */
#define MAGIC 6755399441055744.0
/* exp is kept times 2^(HEADROOM - K), so that nothing that can still round to a
 * nonzero probability is subnormal before the last multiplication. */
#define HEADROOM 64
/* Lane sums of double start here: adding to it splits each term at one fixed place, so
 * that the upper parts add up exactly (Rump, Ogita & Oishi 2008, algorithm 3.2). */
#define SPLITS 1
#define SPLITTER 0x1.8p70
#define LOWEST_EXPONENT (-1018)
#define ZERO_EXPONENT (-1023)
/* Rows whose largest |x / T| exceeds this are shifted by their maximum first: up to here
 * rounding 8 x * log2(e) leaves |r| within the polynomial's interval. */
#define ANCHOR 0x1p40
/* Where two powers of two must be applied and one of them could be subnormal. */
#define DEEP (-900)
#define DEEP_SPLIT 64
#define EXP_DEGREE 6
TABLE real EXP_TAIL[EXP_DEGREE] = {
    0x1.000000000010ep-1, 0x1.5555555555126p-3,  0x1.55555547f78d1p-5,
    0x1.11111125fe91cp-7, 0x1.6c1cc2b8d55dfp-10, 0x1.a01635ec5fe3ep-13,
};
/* 2^(j/8), its bits less j * 2^(SIGNIFICAND - 3): v_power adds that with the exponent. */
TABLE real EIGHTHS[8] = {
    0x1.0000000000000p+0, 0x1.f72b83c7d517bp-1, 0x1.f06fe0a31b715p-1, 0x1.ebfdad5362a27p-1,
    0x1.ea09e667f3bcdp-1, 0x1.eace5422aa0dbp-1, 0x1.ee89f995ad3adp-1, 0x1.f5818dcfba487p-1,
};
/* By how much of itself 2^(j/8) is too small for having been rounded, in the upper half of the
 * bits: all that AVX2 has to look up then. */
TABLE real EIGHTHS_REST[8] = {
    0x0.0p+0,        -0x1.01b15p-55, 0x1.34d75p-55, 0x1.690cep-56,
    -0x1.3b3efp-54,  0x1.db72fp-55,  0x1.c1a77p-55, 0x1.4a385p-56,
};
#else
#define REAL_MAX 0x1.fffffep+127f
#define SIGNIFICAND 23
#define LOG2E 0x1.715476p+0f
#define LN2_HIGH 0x1.62e43p-1f
#define LN2_LOW -0x1.05c61p-29f
#define MAGIC 12582912.0f
#define HEADROOM 40
/* Chunks of float are added in double; their own sums are short enough as they are. */
#define SPLITS 0
#define SPLITTER 0.0f
#define LOWEST_EXPONENT (-122)
#define ZERO_EXPONENT (-127)
#define ANCHOR 0x1p15f
#define DEEP (-80)
#define DEEP_SPLIT 30
#define EXP_DEGREE 2
TABLE real EXP_TAIL[EXP_DEGREE] = {0x1.0008a4p-1f, 0x1.55565cp-3f};
TABLE real EIGHTHS[8] = {
    0x1.000000p+0f, 0x1.f72b84p-1f, 0x1.f06fe0p-1f, 0x1.ebfdaep-1f,
    0x1.ea09e6p-1f, 0x1.eace54p-1f, 0x1.ee89fap-1f, 0x1.f5818ep-1f,
};
TABLE real EIGHTHS_REST[8] = {
    0x0.0p+0f,        -0x1.9c0c22p-27f, 0x1.125002p-25f,  -0x1.0a3550p-25f,
    0x1.26055cp-26f,  0x1.67a1cap-28f,  -0x1.f9c304p-27f, -0x1.a5217cp-28f,
};
#endif

/* (atanh(s) / s - 1) / s^2 in powers of s^2: up to 1/9, for log1p; up to 1/25, in double whatever
 * `real` is, for the one logarithm of a row. */
#if PYSOFTMAX_DOUBLE
#define LOG_DEGREE 10
TABLE real ATANH_TAIL[LOG_DEGREE] = {
    0x1.5555555555535p-2, 0x1.99999999a06c1p-3, 0x1.249249209114cp-3, 0x1.c71c741a057b7p-4,
    0x1.745cb459d8b7dp-4, 0x1.3b1dd3a9530e3p-4, 0x1.10682f093910bp-4, 0x1.efd18a0e132b1p-5,
    0x1.55cf67252ca8cp-5, 0x1.5c5c14a98990ap-4,
};
#else
#define LOG_DEGREE 4
TABLE real ATANH_TAIL[LOG_DEGREE] = {
    0x1.555502p-2f, 0x1.99d208p-3f, 0x1.1ebd0cp-3f, 0x1.1ed7c0p-3f,
};
#endif
TABLE double LOG_TAIL[7] = {
    0x1.5555555555773p-2, 0x1.99999998f1757p-3, 0x1.249249b1afad5p-3, 0x1.c71c01a7ebeafp-4,
    0x1.7474d8aa07348p-4, 0x1.385393ec5cb66p-4, 0x1.3ab8bd9ff2180p-4,
};
#define LN2_HIGH_DOUBLE 0x1.62e42fefa39efp-1
#define LN2_LOW_DOUBLE 0x1.abc9e3b39803fp-56

#endif
