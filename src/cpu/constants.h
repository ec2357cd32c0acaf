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
#define LOG2E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefa39efp-1
#define LN2_LOW 0x1.abc9e3b39803fp-56
/* Adding 1.5 * 2^(significand bits - 1) rounds to an integer and leaves it in the low bits. */
#define MAGIC 6755399441055744.0
#define BIAS 1023
/* exp is kept as p * 2^(t - K + HEADROOM), so that nothing that can still round to a
 * nonzero probability is subnormal before the last multiplication. */
#define HEADROOM 64
/* Lane sums of double start here: adding to it splits each term at one fixed place, so
 * that the upper parts add up exactly (Rump, Ogita & Oishi 2008, algorithm 3.2). */
#define SPLITS 1
#define SPLITTER 0x1.8p70
#define LOWEST_EXPONENT (-1018)
/* Rows whose largest |x / T| exceeds this are shifted by their maximum first: up to here
 * rounding x * log2(e) leaves |r| within the polynomial's interval. */
#define ANCHOR 0x1p40
/* Where two powers of two must be applied and one of them could be subnormal. */
#define DEEP (-900)
#define DEEP_SPLIT 64
#define EXP_DEGREE 10
TABLE real EXP_TAIL[EXP_DEGREE] = {
    0x1.000000000000ap-1,  0x1.55555555554f7p-3,  0x1.55555555506ebp-5,  0x1.111111112836ep-7,
    0x1.6c16c18488953p-10, 0x1.a01a012881e85p-13, 0x1.a01998fd5636bp-16, 0x1.71df27c592f51p-19,
    0x1.28ae78f9f1f6dp-22, 0x1.ad7e34b825469p-26,
};
#else
#define REAL_MAX 0x1.fffffep+127f
#define LOG2E 0x1.715476p+0f
#define LN2_HIGH 0x1.62e43p-1f
#define LN2_LOW -0x1.05c61p-29f
#define MAGIC 12582912.0f
#define BIAS 127
#define HEADROOM 40
/* Chunks of float are added in double; their own sums are short enough as they are. */
#define SPLITS 0
#define SPLITTER 0.0f
#define LOWEST_EXPONENT (-122)
#define ANCHOR 0x1p20f
#define DEEP (-80)
#define DEEP_SPLIT 30
#define EXP_DEGREE 5
TABLE real EXP_TAIL[EXP_DEGREE] = {
    0x1.fffffap-2f, 0x1.555464p-3f, 0x1.5559c4p-5f, 0x1.125a1ep-7f, 0x1.69eedcp-10f,
};
#endif

/* (atanh(s) / s - 1) / s^2 in powers of s^2 <= 1/9, for log1p; in double also for the
 * one logarithm a row needs, whatever `real` is. */
#define LOG_DEGREE_DOUBLE 10
TABLE double ATANH_TAIL_DOUBLE[LOG_DEGREE_DOUBLE] = {
    0x1.5555555555535p-2, 0x1.99999999a06c1p-3, 0x1.249249209114cp-3, 0x1.c71c741a057b7p-4,
    0x1.745cb459d8b7dp-4, 0x1.3b1dd3a9530e3p-4, 0x1.10682f093910bp-4, 0x1.efd18a0e132b1p-5,
    0x1.55cf67252ca8cp-5, 0x1.5c5c14a98990ap-4,
};
#if PYSOFTMAX_DOUBLE
#define LOG_DEGREE LOG_DEGREE_DOUBLE
#define ATANH_TAIL ATANH_TAIL_DOUBLE
#else
#define LOG_DEGREE 4
TABLE real ATANH_TAIL[LOG_DEGREE] = {
    0x1.555502p-2f, 0x1.99d208p-3f, 0x1.1ebd0cp-3f, 0x1.1ed7c0p-3f,
};
#endif
#define LN2_HIGH_DOUBLE 0x1.62e42fefa39efp-1
#define LN2_LOW_DOUBLE 0x1.abc9e3b39803fp-56

#endif
