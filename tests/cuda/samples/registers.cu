// More than the registers of a block of 1024 threads hold, and an array that must be in memory.

extern "C" __global__ void __launch_bounds__(1024, 1) spills(const float *x, float *out, int n) {
    float kept[96];
#pragma unroll
    for (int i = 0; i < 96; i++) kept[i] = x[i * 1024 + threadIdx.x];
    for (int j = 0; j < n; j++) {
#pragma unroll
        for (int i = 0; i < 96; i++) kept[i] = kept[i] * x[j] + kept[(i + 1) % 96];
    }
#pragma unroll
    for (int i = 0; i < 96; i++) out[i * 1024 + threadIdx.x] = kept[i];
}

extern "C" __global__ void __launch_bounds__(128) local_array(const int *x, int *out) {
    int count[64] = {};
    for (int i = 0; i < 1000; i++) count[x[i] & 63] += i;
    for (int i = 0; i < 64; i++) out[i] = count[i];
}

// Fused unless the options forbid it; an intrinsic is as written; subnormals as the options say.
extern "C" __global__ void rounding(float *x) {
    x[0] = x[1] * x[2] + x[3];
    x[4] = __fmaf_rn(x[5], x[6], x[7]);
}
