// What a mean over class labels divides by: twin of sum_of_weights of src/cpu.

struct Labels {
    const int64 *target;
    const double *weight;
    double *sum;
    int64 rows, classes, ignore_index;
};

// One warp: its lanes load, and all of them add in the order of the rows.
extern "C" __global__ void __launch_bounds__(32) sum_of_weights(const Labels labels) {
    const int lane = threadIdx.x % WARP;
    double sum = 0;
    for (int64 begin = 0; begin < labels.rows; begin += WARP) {
        double weight = 0;
        if (begin + lane < labels.rows) {
            const int64 label = labels.target[begin + lane];
            if (label != labels.ignore_index)
                weight = (uint64)label < (uint64)labels.classes ? labels.weight[label]
                                                                : (double)NOT_A_NUMBER;
        }
        for (int i = 0; i < WARP; i++) sum += from_lane(weight, i);
    }
    if (lane == 0) *labels.sum = sum;
}
