// What differs between a device and the CPU of the tests, which brings its own.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// All dynamic shared memory, as an array of T; the only shared memory that cluster_map maps.
extern __shared__ __align__(128) unsigned char dynamic_shared[];
#define DYNAMIC_SHARED(T, name) T *const name = reinterpret_cast<T *>(dynamic_shared)

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

// Every thread of every block of the cluster; what was written before is seen after.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where block `rank` of the cluster has what this block has at p, in dynamic shared memory.
template <class T> __device__ __forceinline__ T *cluster_map(T *p, unsigned rank) {
    T *mapped;
    asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(p), "r"(rank));
    return mapped;
}
#endif
#endif
