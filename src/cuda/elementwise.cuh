// sigmoid, log_sigmoid, binary cross-entropy: twin of src/cpu/elementwise.pxi, where the
// mathematics stands. One read and one write, any order of elements; operands are contiguous.

#if defined(ELEMENTWISE)
struct Elements {
    const element *x, *y, *weight, *pos_weight;
    element *out, *grad;
    real *loss;             // in `real`, where it is added up afterwards
    const double *divisor;  // of the gradient
    int64 n;
};

DEVICE real decay(real x) { return exp_of_negative(0 - r_abs(x)); }

DEVICE real sigmoid_of(real x) {
    const real z = decay(x);
    return (x < 0 ? z : 1) / (1 + z);
}

DEVICE real log_sigmoid_of(real x) { return (0 < x ? 0 : x) - log1p_of_unit(decay(x)); }

// y * value, and 0 where y is 0 even if value is infinite.
DEVICE real weighted(real y, real value) { return y != 0 ? y * value : 0; }

DEVICE int64 own_column() {
    return ((int64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
}

template <real (*function)(real)> DEVICE void map_elements(const Elements &elements) {
    const int64 column = own_column();
    if (column >= elements.n) return;
    real x[VECTOR];
    load_vector(elements.x, 1, column, elements.n, is_aligned(elements.x, 0), 0, x);
    UNROLL for (int v = 0; v < VECTOR; v++) x[v] = function(x[v]);
    store_vector(elements.out, 1, column, elements.n, is_aligned(elements.out, 0), x);
}

extern "C" __global__ void __launch_bounds__(256) sigmoid(const ARGUMENT Elements elements) {
    map_elements<sigmoid_of>(elements);
}

extern "C" __global__ void __launch_bounds__(256) log_sigmoid(const ARGUMENT Elements elements) {
    map_elements<log_sigmoid_of>(elements);
}

extern "C" __global__ void __launch_bounds__(256) binary_cross_entropy(const Elements elements) {
    const int64 column = own_column();
    if (column >= elements.n) return;
    real x[VECTOR], y[VECTOR], weight[VECTOR], pos_weight[VECTOR], grad[VECTOR];
    const int64 n = elements.n;
    load_vector(elements.x, 1, column, n, is_aligned(elements.x, 0), 0, x);
    load_vector(elements.y, 1, column, n, is_aligned(elements.y, 0), 0, y);
    if (elements.weight)
        load_vector(elements.weight, 1, column, n, is_aligned(elements.weight, 0), 1, weight);
    if (elements.pos_weight)
        load_vector(elements.pos_weight, 1, column, n, is_aligned(elements.pos_weight, 0), 1,
                    pos_weight);
    const real scale =
        elements.grad && *elements.divisor != 0 ? (real)__ddiv_rn(1.0, *elements.divisor) : 0;
    UNROLL for (int v = 0; v < VECTOR; v++) {
        const real negative = 1 - y[v];
        const real positive = elements.pos_weight ? y[v] * pos_weight[v] : y[v];
        real lost = 0 - (weighted(negative, log_sigmoid_of(0 - x[v]))
                         + weighted(positive, log_sigmoid_of(x[v])));
        if (elements.weight) lost = lost * weight[v];
        if (column + v < n) elements.loss[column + v] = lost;
        real pulled = negative * sigmoid_of(x[v]) - positive * sigmoid_of(0 - x[v]);
        if (elements.weight) pulled = pulled * weight[v];
        grad[v] = pulled * scale;
    }
    if (elements.grad)
        store_vector(elements.grad, 1, column, n, is_aligned(elements.grad, 0), grad);
}
#endif
