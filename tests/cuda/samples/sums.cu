// Sums of rows, right and wrong: each macro breaks one thing that a test must notice.
#include "device.cuh"

struct Task {
    const float *x;
    float *out;
    long long n; // columns
    float scale;
};

template <class T> __device__ __forceinline__ T warp_sum(T value) {
#ifdef MASK_NAMES_ABSENT_LANES
    if (threadIdx.x % 32 >= 16) return value;
#endif
    for (int by = 16; by; by /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, by);
    return value;
}

// The sum over the block, in thread 0; threads are a multiple of 32.
template <class T> __device__ T block_sum(T value) {
    __shared__ T partial[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_sum(value);
#ifndef NO_SECOND_BARRIER
    __syncthreads(); // a block that sums twice must have read the first partial sums
#endif
    if (lane == 0) partial[warp] = value;
#if defined(DIVERGENT_BARRIER)
    if (warp == 0) __syncthreads();
#elif !defined(NO_BARRIER)
    __syncthreads();
#endif
    T sum = 0;
    for (int i = 0; i < warps; i++) sum += partial[i];
    return sum;
}

// A block a row: scale * sum, from one and two times the sum, so that `partial` is used again.
template <class T> __device__ void sum_rows(const T *x, T *out, long long n, T scale) {
    T thrice = 0;
    for (int times = 1; times <= 2; times++) {
        T value = 0;
        for (long long i = threadIdx.x; i < n; i += blockDim.x) value += x[blockIdx.x * n + i];
        thrice += block_sum(times * value);
    }
#ifdef EARLY_RETURN
    if (threadIdx.x >= 32) return;
    __syncthreads();
#endif
    if (threadIdx.x == 0) out[blockIdx.x] = scale * (thrice / 3);
}

extern "C" __global__ void __launch_bounds__(1024) sum_f32(Task task) {
    sum_rows(task.x, task.out, task.n, task.scale);
}

extern "C" __global__ void __launch_bounds__(1024)
    sum_f64(const double *x, double *out, long long n, double scale) {
    sum_rows(x, out, n, scale);
}

// A warp a row, 16-byte loads; n is a multiple of 4 and x aligned.
extern "C" __global__ void __launch_bounds__(128) sum_vectors(const float *x, float *out, int n) {
    const long long start = static_cast<long long>(blockIdx.x) * n;
    const float4 *row = reinterpret_cast<const float4 *>(x + start);
    float sum = 0;
#ifdef PAST_THE_END
    const int vectors = n / 4 + 1;
#else
    const int vectors = n / 4;
#endif
    for (int i = threadIdx.x; i < vectors; i += 32) {
        const float4 v = row[i];
        sum += (v.x + v.y) + (v.z + v.w);
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Runs of 32 columns turned around through dynamic shared memory, `blockDim.x` floats of it.
extern "C" __global__ void __launch_bounds__(1024) reverse(const float *x, float *out) {
    DYNAMIC_SHARED(float, tile);
#ifdef PAST_SHARED
    tile[threadIdx.x + 1] = x[threadIdx.x];
#else
    tile[threadIdx.x] = x[threadIdx.x];
#endif
#ifndef NO_BARRIER
    __syncthreads();
#endif
    out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// A cluster a row, the sum to each of its blocks: warps through static memory, blocks through
// dynamic.
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900 || defined(CLUSTERS_ANYWHERE)
extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(256)
    sum_cluster(const float *x, float *out, long long n) {
    DYNAMIC_SHARED(float, mine);
    const unsigned size = cluster_size(), first = cluster_rank() * blockDim.x + threadIdx.x;
    const float *row = x + blockIdx.x / size * n;
    float value = 0;
    for (long long i = first; i < n; i += size * blockDim.x) value += row[i];
    value = block_sum(value);
    if (threadIdx.x == 0) mine[0] = value;
#ifndef NO_CLUSTER_BARRIER
    cluster_sync();
#endif
    float sum = 0;
    for (unsigned i = 0; i < size; i++) sum += *cluster_map(mine, i);
#ifndef NO_LAST_CLUSTER_BARRIER
    cluster_sync(); // a block must not end while others read its memory
#endif
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
#endif
