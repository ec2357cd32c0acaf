# The vector type, its operations and the constants, as the kernels see them.

cdef extern from "lanes.h" nogil:
    ctypedef float real
    ctypedef struct vec:
        pass
    ctypedef struct vmask:
        pass
    enum:
        BLOCK_VECTORS
    int VLEN
    void prefetch(const void *p)
    Py_ssize_t opaque(Py_ssize_t n)
    vec v_set1(real a)
    vec v_load(const real *p)
    vec v_fetch(const real *p)
    void v_store(real *p, vec a)
    vmask v_first(Py_ssize_t count)
    vmask v_true(const char *p)
    vec v_load_first(const real *p, vmask present, vec other)
    void v_store_first(real *p, Py_ssize_t count, vec a)
    vec v_add(vec a, vec b)
    vec v_sub(vec a, vec b)
    vec v_mul(vec a, vec b)
    vec v_div(vec a, vec b)
    vec v_fma(vec a, vec b, vec c)
    vec v_max(vec a, vec b)
    vec v_min(vec a, vec b)
    vec v_abs(vec a)
    vmask v_eq(vec a, vec b)
    vmask v_ne(vec a, vec b)
    vmask v_not_less(vec a, vec b)
    vec v_where(vmask m, vec a, vec b)
    vec v_zero_unless(vmask m, vec a)
    vec v_add_where(vmask m, vec a, vec b)
    vmask v_or(vmask a, vmask b)
    bint v_any(vmask m)
    uint64_t v_bits(vmask m)
    int v_count(vmask m)
    int first_bit(uint64_t word)
    double two_to(int exponent)
    double power_between(double unit, double sum, double *power)
    vec v_eighths(const real *table)
    vec v_pick(vec eighths, vec n)
    vec v_power(vec eighths, vec n)
    vec v_reduce(vec t, real c, vec x)
    vec v_product_error(vec a, vec b, vec product)
    vec v_multiply(vec a, vec high, vec low)
    real v_reduce_add(vec a)
    real v_reduce_max(vec a)
    vec v_reduce_each_add(const vec *rows)
    vec v_reduce_each_max(const vec *rows)
    bint WIDENS
    vec v_widen(Element element, const uint16_t *p)
    void v_narrow(Element element, uint16_t *p, vec a)
    void v_columns(int n, const real *rows, real *columns)
    void v_rows(int n, const real *columns, real *rows)

cdef extern from "constants.h" nogil:
    enum:
        LANES
        CHUNK
        BLOCK
        PIECE
    real REAL_MAX, LOG2E, LN2_HIGH, LN2_LOW, MAGIC, ANCHOR, SPLITTER
    bint SPLITS
    int HEADROOM, LOWEST_EXPONENT, ZERO_EXPONENT, DEEP, DEEP_SPLIT
    int EXP_DEGREE, LOG_DEGREE
    const real *EXP_TAIL
    const real *EIGHTHS
    const real *EIGHTHS_REST
    const real *ATANH_TAIL
    const double *LOG_TAIL
    double LN2_HIGH_DOUBLE, LN2_LOW_DOUBLE
