/* Row kernels of one build, over a fixed corpus, as hashes of their bytes.
 *
 * Compiled by tools/cross_check.py once per target around the C that Cython made of the
 * kernels; nothing of Python is called. Two builds that follow the numeric contract print
 * the same lines.
 */
#include KERNELS

#include <stdio.h>
#include <stdlib.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define KERNEL(name) JOIN(PREFIX, name)

static uint64_t fnv(const void *data, size_t size) {
    const unsigned char *byte = data;
    uint64_t hash = 1469598103934665603u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ byte[i]) * 1099511628211u;
    return hash;
}

static double uniform(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / 9007199254740992.0;
}

int main(void) {
    const int lengths[] = {1,   2,   3,   7,   10,   16,   17,   33,   64,  65,
                           100, 257, 512, 513, 1000, 2047, 2049, 4097, 9000};
    const double spreads[] = {1, 5, 30, 1000, 1e-3}, centres[] = {0, 1e3, -1e6, 1e30};
    const double temperatures[] = {1, 0.7};
    const Py_ssize_t rows = 5;
    KERNEL(fill_tables)();
    for (int k = 0; k < 19; k++)
        for (int a = 0; a < 5; a++)
            for (int b = 0; b < 4; b++)
                for (int t = 0; t < 2; t++) {
                    Py_ssize_t n = lengths[k], size = n * rows;
                    real *x = malloc(size * sizeof(real)), *out = malloc(size * sizeof(real));
                    real lse[5];
                    for (Py_ssize_t i = 0; i < size; i++)
                        x[i] = (real)(centres[b] + spreads[a] * (2 * uniform() - 1));
                    Task task;
                    memset(&task, 0, sizeof task);
                    task.x.data = (char *)x;
                    task.x.n = task.x.inner = sizeof(real);
                    task.x.outer = n * sizeof(real);
                    task.out = task.x;
                    task.out.data = (char *)out;
                    task.outer = rows;
                    task.n = n;
                    task.inner = 1;
                    task.temperature = &temperatures[t];
                    printf("%td %g %g %g", n, spreads[a], centres[b], temperatures[t]);
                    KERNEL(softmax_rows)(&task, 0, rows);
                    printf(" %016lx", (unsigned long)fnv(out, size * sizeof(real)));
                    KERNEL(log_softmax_rows)(&task, 0, rows);
                    printf(" %016lx", (unsigned long)fnv(out, size * sizeof(real)));
                    KERNEL(sigmoid)(x, out, size);
                    printf(" %016lx", (unsigned long)fnv(out, size * sizeof(real)));
                    KERNEL(log_sigmoid)(x, out, size);
                    printf(" %016lx", (unsigned long)fnv(out, size * sizeof(real)));
                    task.out.data = NULL;
                    task.row_out = lse;
                    KERNEL(logsumexp_rows)(&task, 0, rows);
                    printf(" %016lx\n", (unsigned long)fnv(lse, sizeof lse));
                    free(x);
                    free(out);
                }
    return 0;
}
