// The functions and types of CUDA that kernels use, on the CPU; see cuda_on_cpu.h.
#pragma once

// --- barriers and warp collectives ------------------------------------------------------------

inline void __syncthreads(HERE) { emu::wait({emu::Wait::BLOCK, "__syncthreads", file, line, 0}); }
inline void __syncwarp(unsigned mask = ~0u, HERE) {
    emu::collective("__syncwarp", mask, 0, emu::now->lane, file, line);
}
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, HERE) {
    const unsigned from = (emu::now->lane & ~(width - 1)) | (source & (width - 1));
    return emu::shuffle("__shfl_sync", mask, value, from, file, line);
}
// From a lane relative to this; its own value where that is in another group of `width` lanes.
template <class T> T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, HERE) {
    const unsigned lane = emu::now->lane, end = (lane & ~(width - 1)) + width;
    const unsigned from = (lane ^ by) < end ? lane ^ by : lane;
    return emu::shuffle("__shfl_xor_sync", mask, value, from, file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, HERE) {
    const unsigned lane = emu::now->lane, end = (lane & ~(width - 1)) + width;
    const unsigned from = lane + by < end ? lane + by : lane;
    return emu::shuffle("__shfl_down_sync", mask, value, from, file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, HERE) {
    const unsigned lane = emu::now->lane;
    const unsigned from = (lane & (width - 1)) >= by ? lane - by : lane;
    return emu::shuffle("__shfl_up_sync", mask, value, from, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, HERE) {
    return emu::collective("__ballot_sync", mask, p, emu::now->lane, file, line)->ballot;
}
inline int __any_sync(unsigned mask, int p, HERE) {
    return emu::collective("__any_sync", mask, p, emu::now->lane, file, line)->ballot != 0;
}
inline int __all_sync(unsigned mask, int p, HERE) {
    return emu::collective("__all_sync", mask, p, emu::now->lane, file, line)->ballot == mask;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- clusters, by the names of device.cuh -----------------------------------------------------

inline unsigned cluster_rank() { return emu::now->block->rank; }
inline unsigned cluster_size() { return emu::blocks.size(); }
inline void cluster_sync(HERE) { emu::wait({emu::Wait::CLUSTER, "cluster_sync", file, line, 0}); }
template <class T> T *cluster_map(T *p, unsigned rank) {
    const size_t offset = reinterpret_cast<char *>(p) - emu::now->block->arena;
    if (offset >= emu::shared_bytes || rank >= emu::blocks.size())
        emu::die("cluster_map: not dynamic shared memory of a block of this cluster");
    return reinterpret_cast<T *>(emu::blocks[rank].arena + offset);
}

// --- integers and bits ------------------------------------------------------------------------

using std::max;
using std::min;
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __float_as_int(float x) { return emu::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emu::bits<unsigned>(x); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}
inline float __int_as_float(int x) { return emu::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emu::bits<float>(x); }
inline long long __double_as_longlong(double x) { return emu::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emu::bits<double>(x); }

// --- floating point: one rounding each (-ffp-contract=off) --------------------------------------

inline float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline double __fma_rn(double x, double y, double z) { return __builtin_fma(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __drcp_rn(double x) { return 1 / x; }
inline float __double2float_rn(double x) { return float(x); }
inline float __int2float_rn(int x) { return float(x); }
inline int __double2int_rn(double x) { // saturating; NaN is 0 for float, INT_MIN for double
    if (std::isnan(x)) return INT32_MIN;
    return int(std::nearbyint(std::fmin(std::fmax(x, INT32_MIN), INT32_MAX)));
}
inline int __float2int_rn(float x) { return std::isnan(x) ? 0 : __double2int_rn(x); }

// As the device's max and min: a number rather than NaN, and +0 above -0.
template <class T> T greater_of(T x, T y) {
    if (x != x || y != y) return x == x ? x : y;
    return x > y || (x == y && !std::signbit(x)) ? x : y;
}
template <class T> T lesser_of(T x, T y) {
    if (x != x || y != y) return x == x ? x : y;
    return x < y || (x == y && std::signbit(x)) ? x : y;
}
#define fmaxf greater_of<float>
#define fminf lesser_of<float>
#define fmax greater_of<double>
#define fmin lesser_of<double>

// --- vectors ----------------------------------------------------------------------------------

#define VECTOR2(V, T) \
    struct alignas(2 * sizeof(T)) V { T x, y; }; \
    inline V make_##V(T x, T y) { return {x, y}; }
#define VECTOR4(V, T) \
    struct alignas(16) V { T x, y, z, w; }; \
    inline V make_##V(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR2(int2, int) VECTOR2(uint2, unsigned) VECTOR2(float2, float) VECTOR2(double2, double)
VECTOR4(int4, int) VECTOR4(uint4, unsigned) VECTOR4(float4, float)
VECTOR2(longlong2, long long) VECTOR2(ulonglong2, unsigned long long)

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> void __stcs(T *p, T value) { *p = value; }
template <class T> void __stcg(T *p, T value) { *p = value; }

// --- 16-bit floating point: rounded once, to nearest even; every NaN becomes 0x7FFF -------------

struct __half { uint16_t x; };
struct __nv_bfloat16 { uint16_t x; };
struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

inline uint16_t __half_as_ushort(__half h) { return h.x; }
inline __half __ushort_as_half(uint16_t x) { return {x}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 h) { return h.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t x) { return {x}; }

inline float __half2float(__half h) { return emu::bits<_Float16>(h.x); }
inline __half __float2half_rn(float x) {
    return {x != x ? uint16_t(0x7FFF) : emu::bits<uint16_t>(static_cast<_Float16>(x))};
}
inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }

inline float __bfloat162float(__nv_bfloat16 h) { return emu::bits<float>(uint32_t(h.x) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const uint32_t u = emu::bits<uint32_t>(x);
    return {uint16_t(x != x ? 0x7FFF : (u + 0x7FFF + (u >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {__bfloat162float(v.x), __bfloat162float(v.y)};
}

// --- atomics: fibers change only at collectives -------------------------------------------------

template <class T> T atomicExch(T *p, T value) { return std::exchange(*p, value); }
template <class T> T atomicAdd(T *p, T value) { return std::exchange(*p, T(*p + value)); }
template <class T> T atomicOr(T *p, T value) { return std::exchange(*p, T(*p | value)); }
template <class T> T atomicMin(T *p, T value) { return std::exchange(*p, std::min(*p, value)); }
template <class T> T atomicMax(T *p, T value) { return std::exchange(*p, std::max(*p, value)); }
template <class T> T atomicCAS(T *p, T expected, T value) {
    return *p == expected ? std::exchange(*p, value) : T(*p);
}
