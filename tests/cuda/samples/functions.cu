// Functions of the device, for a comparison with NumPy; and misused collectives.
#include "device.cuh"

__device__ __forceinline__ unsigned thread_of_grid() { // three dimensions of threads, two of blocks
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
    return block * (blockDim.x * blockDim.y * blockDim.z) + thread;
}

extern "C" __global__ void from_float16(const __half *x, float *out) {
    const unsigned i = thread_of_grid();
    out[i] = __half2float(x[i]);
}

extern "C" __global__ void to_float16(const float *x, __half *out) {
    const unsigned i = thread_of_grid();
    out[i] = __float2half_rn(x[i]);
}

extern "C" __global__ void from_bfloat16(const __nv_bfloat16 *x, float *out) {
    const unsigned i = thread_of_grid();
    out[i] = __bfloat162float(x[i]);
}

extern "C" __global__ void to_bfloat16(const float *x, __nv_bfloat16 *out) {
    const unsigned i = thread_of_grid();
    out[i] = __float2bfloat16_rn(x[i]);
}

// 128 threads; eight rows of 128.
extern "C" __global__ void collectives(const int *x, int *found) {
    const unsigned t = threadIdx.x, all = 0xFFFFFFFFu, half = t % 32 < 16 ? 0xFFFFu : 0xFFFF0000u;
    const int value = x[t];
    found[t] = __shfl_xor_sync(all, value, 5);
    found[128 + t] = __shfl_down_sync(all, value, 3);
    found[256 + t] = __shfl_sync(all, value, 1, 8);
    found[384 + t] = static_cast<int>(__ballot_sync(all, value > 0));
    found[512 + t] = __any_sync(all, value > 0);
    found[640 + t] = __all_sync(all, value > -200);
    found[768 + t] = __shfl_xor_sync(half, value, 15);
    __syncwarp();
    if (t < 3) found[896 + t] = t == 0 ? 0 : t == 1 ? -1000 : 1000;
    __syncthreads();
    atomicAdd(found + 896, value);
    atomicMax(found + 897, value);
    atomicMin(found + 898, value);
}

extern "C" __global__ void calls_outside_its_mask(int *x) {
    x[threadIdx.x] = __shfl_sync(0x7FFFFFFFu, 1, 0);
}

extern "C" __global__ void reads_outside_its_mask(int *x) {
    if (threadIdx.x % 32 < 31) x[threadIdx.x] = __shfl_sync(0x7FFFFFFFu, 1, 31);
}

extern "C" __global__ void different_barriers(int *x) {
    if (threadIdx.x < 32) {
        x[threadIdx.x] = 1;
        __syncthreads();
    } else {
        x[threadIdx.x] = 2;
        __syncthreads();
    }
}

extern "C" __global__ void different_collectives(int *x) {
    if (threadIdx.x % 2) x[threadIdx.x] = __any_sync(0xFFFFFFFFu, 1);
    else x[threadIdx.x] = __all_sync(0xFFFFFFFFu, 1);
}
