// What the mean of losses over class labels takes beside the losses: whether all labels are those
// of classes, how many rows take part or what each of them weighs, and the quotient. The labels are
// read once, in any order: counts are exact.

#if defined(MEANS)
struct Labels {
    const int64 *target;
    const double *class_weight;  // for weigh_labels
    double *weight;              // for weigh_labels: one per row
    double *used;                // for count_labels: how many rows take part; added to
    uint64 *wrong;               // how many rows are left from the first wrong label on; or 0
    int64 n, classes, ignore_index;
};

DEVICE bool is_class(const Labels &labels, int64 label) {
    return 0 <= label && label < labels.classes;
}

extern "C" __global__ void __launch_bounds__(256) count_labels(const Labels labels) {
    int64 row = (int64)blockIdx.x * LABELS_OF_A_BLOCK + threadIdx.x;
    int used = 0;
    int64 wrong = 0;
    for (int k = 0; k < LABELS_OF_A_BLOCK / 256 && row < labels.n; k++, row += 256) {
        const int64 label = labels.target[row];
        if (label == labels.ignore_index) continue;
        used++;
        if (!is_class(labels, label) && wrong == 0) wrong = labels.n - row;
    }
    UNROLL for (int step = WARP / 2; step > 0; step /= 2) {
        used += across(used, step);
        const int64 others = across(wrong, step);
        wrong = others > wrong ? others : wrong;
    }
    if (threadIdx.x % WARP != 0) return;
    if (used) atomicAdd(labels.used, (double)used);
    if (wrong) atomicMax(labels.wrong, (uint64)wrong);
}

// 0 for a row that is ignored, NaN for a wrong label.
extern "C" __global__ void __launch_bounds__(256) weigh_labels(const Labels labels) {
    const int64 row = (int64)blockIdx.x * 256 + threadIdx.x;
    if (row >= labels.n) return;
    const int64 label = labels.target[row];
    labels.weight[row] = label == labels.ignore_index ? 0.0
                         : is_class(labels, label) ? labels.class_weight[label]
                                                   : (double)NOT_A_NUMBER;
}

struct Quotient {
    const double *total, *divisor;
    real *out;
};

// NaN where the divisor is 0.
extern "C" __global__ void __launch_bounds__(32) quotient(const Quotient of) {
    if (threadIdx.x == 0)
        *of.out = *of.divisor != 0 ? (real)__ddiv_rn(*of.total, *of.divisor) : NOT_A_NUMBER;
}
#endif
