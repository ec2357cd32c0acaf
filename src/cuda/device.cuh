// What the kernels are written in: element types, 16-byte loads and stores, steps across lanes.
//
// A module is compiled for one element type (ELEMENT_BITS 64, 32, or 16 with BFLOAT16 0 or 1) and
// computes in `real`: double for double, else float. Everything that rounds is an intrinsic or
// compiled with -fmad=false -ftz=false, so that a product and a sum are fused only where the
// numeric contract says so, and subnormals stay.

#ifdef __CUDACC__
#if ELEMENT_BITS == 16 && BFLOAT16
#include <cuda_bf16.h>
#elif ELEMENT_BITS == 16
#include <cuda_fp16.h>
#endif
#endif

typedef long long int64;
typedef unsigned long long uint64;

#if PYSOFTMAX_DOUBLE
typedef double real;
typedef uint64 bits;
#else
typedef float real;
typedef unsigned bits;
#endif

#if ELEMENT_BITS == 16 && BFLOAT16
typedef __nv_bfloat16 element;
#elif ELEMENT_BITS == 16
typedef __half element;
#else
typedef real element;
#endif

#define DEVICE static __device__ __forceinline__
#define TABLE static constexpr __device__
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#define NOT_UNROLLED _Pragma("unroll 1")
#define ARGUMENT __grid_constant__  // its address may be taken without a copy
// Some compilers lose sight of it: NVRTC 13.1 to 13.4, for compute capability 10.0.
#define ASSUME_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))
#else
#define UNROLL
#define NOT_UNROLLED
#define ARGUMENT
#define ASSUME_GLOBAL(pointer)
#endif

enum { WARP = 32, VECTOR = 16 / sizeof(element) };  // elements of a 16-byte load

// ---------------------------------------------------------------------------- arithmetic

#if PYSOFTMAX_DOUBLE
DEVICE real r_fma(real a, real b, real c) { return __fma_rn(a, b, c); }
DEVICE bits as_bits(real a) { return (bits)__double_as_longlong(a); }
DEVICE real as_real(bits a) { return __longlong_as_double((long long)a); }
#else
DEVICE real r_fma(real a, real b, real c) { return __fmaf_rn(a, b, c); }
DEVICE bits as_bits(real a) { return __float_as_uint(a); }
DEVICE real as_real(bits a) { return __uint_as_float(a); }
#endif
// a / b, correctly rounded where neither b, a / b nor their remainders leave the normal numbers.
// The steps that the compiler takes for such operands; it would add a call for all others, and
// give up registers around it.
DEVICE double normal_quotient(double a, double b) {
#ifdef __CUDACC__
    double y;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(b));
    double e = __fma_rn(-b, y, 1.0);
    y = __fma_rn(y, __fma_rn(e, e, e), y);
    y = __fma_rn(y, __fma_rn(-b, y, 1.0), y);
    const double q = a * y;
    return __fma_rn(y, __fma_rn(-b, q, a), q);
#else
    return a / b;
#endif
}

// Whichever is not NaN, like the CPU's, which pass NaN over. Of a zero and a negative zero either
// may come out: where it is a row's maximum, no result shows which.
DEVICE double d_max(double a, double b) { return a > b ? a : b; }
#if PYSOFTMAX_DOUBLE
DEVICE real r_max(real a, real b) { return d_max(a, b); }
DEVICE real at_least(real a, real lowest) { return a < lowest ? lowest : a; }
#else
DEVICE real r_max(real a, real b) { return fmaxf(a, b); }
// The larger, but NaN where a is.
DEVICE real at_least(real a, real lowest) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(lowest));
    return a;
#else
    return a < lowest ? lowest : a;
#endif
}
#endif
DEVICE real r_abs(real a) { return as_real(as_bits(a) & ~((bits)1 << (8 * sizeof(real) - 1))); }
DEVICE bool is_nan(real a) { return a != a; }

#define INFINITE (as_real(PYSOFTMAX_DOUBLE ? (bits)0x7ff0000000000000ull : (bits)0x7f800000u))
#define NOT_A_NUMBER \
    (as_real(PYSOFTMAX_DOUBLE ? (bits)0x7ff8000000000000ull : (bits)0x7fc00000u))
#define INFINITE_DOUBLE __longlong_as_double(0x7ff0000000000000ll)

// -------------------------------------------------------------------------- loads, stores

#if ELEMENT_BITS == 16 && BFLOAT16
DEVICE real to_real(element a) { return __bfloat162float(a); }
DEVICE element to_element(real a) { return __float2bfloat16_rn(a); }
#elif ELEMENT_BITS == 16
DEVICE real to_real(element a) { return __half2float(a); }
DEVICE element to_element(real a) { return __float2half_rn(a); }
#else
DEVICE real to_real(element a) { return a; }
DEVICE element to_element(real a) { return a; }
#endif

union Quad {
    uint4 all;
    element each[VECTOR];
    __device__ Quad() {}
};

DEVICE void to_reals(const uint4 &vector, real *value) {
    Quad quad;
    quad.all = vector;
    UNROLL for (int v = 0; v < VECTOR; v++) value[v] = to_real(quad.each[v]);
}

DEVICE uint4 to_elements(const real *value) {
    Quad quad;
    UNROLL for (int v = 0; v < VECTOR; v++) quad.each[v] = to_element(value[v]);
    return quad.all;
}

// VECTOR elements of one value.
DEVICE uint4 filled(real value) {
    Quad quad;
    UNROLL for (int v = 0; v < VECTOR; v++) quad.each[v] = to_element(value);
    return quad.all;
}

// VECTOR elements that lie side by side, aligned to 16 bytes.
DEVICE uint4 whole_at(const element *from) {
    ASSUME_GLOBAL(from);
    return *reinterpret_cast<const uint4 *>(from);
}

DEVICE void store_whole(element *to, const real *value) {
    *reinterpret_cast<uint4 *>(to) = to_elements(value);
}

// The columns [column, column + VECTOR) of a row of n, `step` apart; absent ones are `other`.
// vectors: they are neighbours, and 16 bytes at a time are aligned.
DEVICE void load_vector(const element *row, int64 step, int64 column, int64 n, bool vectors,
                        real other, real *value) {
    if (vectors && column + VECTOR <= n) {
        to_reals(whole_at(row + column), value);
    } else {
        UNROLL for (int v = 0; v < VECTOR; v++)
            value[v] = column + v < n ? to_real(row[(column + v) * step]) : other;
    }
}

DEVICE void store_vector(element *row, int64 step, int64 column, int64 n, bool vectors,
                         const real *value) {
    if (vectors && column + VECTOR <= n) {
        store_whole(row + column, value);
    } else {
        UNROLL for (int v = 0; v < VECTOR; v++)
            if (column + v < n) row[(column + v) * step] = to_element(value[v]);
    }
}

// A choice by value: of two places the compiler would choose an address, in memory.
template <class T> DEVICE T either(bool second, T a, T b) { return second ? b : a; }

// The 16 bytes that begin `by` < 16 bytes into two vectors side by side, between two elements.
DEVICE uint4 shifted(const uint4 &a, const uint4 &b, unsigned by) {
    const bool two = by & 8, one = sizeof(element) < 8 && by & 4;
    unsigned word0 = either(two, a.x, a.z), word1 = either(two, a.y, a.w);
    unsigned word2 = either(two, a.z, b.x), word3 = either(two, a.w, b.y);
    unsigned word4 = either(two, b.x, b.z), word5 = either(two, b.y, b.w);
    word0 = either(one, word0, word1);
    word1 = either(one, word1, word2);
    word2 = either(one, word2, word3);
    word3 = either(one, word3, word4);
    word4 = either(one, word4, word5);
    if (sizeof(element) == 2) {
        const unsigned half = (by & 2) * 8;
        word0 = __funnelshift_r(word0, word1, half);
        word1 = __funnelshift_r(word1, word2, half);
        word2 = __funnelshift_r(word2, word3, half);
        word3 = __funnelshift_r(word3, word4, half);
    }
    return make_uint4(word0, word1, word2, word3);
}

DEVICE bool is_aligned(const void *pointer, int64 stride) {
    return ((uint64)pointer | (uint64)(stride * sizeof(element))) % 16 == 0;
}

// ---------------------------------------------------------------------- steps across lanes

enum : unsigned { ALL = 0xffffffffu };

template <class T> DEVICE T from_lane(T value, int lane) { return __shfl_sync(ALL, value, lane); }
template <class T> DEVICE T across(T value, int mask) { return __shfl_xor_sync(ALL, value, mask); }
template <class T> DEVICE T from_below(T value, int by) {
    return __shfl_down_sync(ALL, value, by);
}

// The largest of `width` neighbouring lanes, in each of them.
template <int width> DEVICE real lanes_max(real m) {
    UNROLL for (int step = width / 2; step > 0; step /= 2) m = r_max(across(m, step), m);
    return m;
}

// -------------------------------------------------------------------------------- clusters

#ifdef __CUDACC__
#define DYNAMIC_SHARED(T, name)                          \
    extern __shared__ __align__(16) char dynamic_shared[]; \
    T *const name = reinterpret_cast<T *>(dynamic_shared)

#if CLUSTER_BLOCKS > 1
#define CLUSTER_DIMS __cluster_dims__(CLUSTER_BLOCKS, 1, 1)
DEVICE int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Every thread of the cluster meets here, and sees what the others wrote to shared memory before.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Where the same place of dynamic shared memory lies in another thread block of the cluster.
template <class T> DEVICE const T *cluster_map(T *own, int rank) {
    const T *mapped;
    asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(own), "r"(rank));
    return mapped;
}
#else
#define CLUSTER_DIMS
DEVICE int cluster_rank() { return 0; }
DEVICE void cluster_sync() {}
template <class T> DEVICE const T *cluster_map(T *own, int) { return own; }
#endif
#else
#define CLUSTER_DIMS
#endif
