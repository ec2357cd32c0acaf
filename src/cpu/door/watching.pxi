# What a monitor, a validator and a decision ask of rows: the largest of each, its place, how many
# were how confident, entropies.

cdef int top_of_range(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The tops of contiguous rows, which are `out`."""
    cdef const char *rows = task.out.data + begin * task.n * task.out.n
    table_for(task.out.n).top(rows, task.n, end - begin, task.top_value + begin,
                              task.top_place + begin)
    return 0


def top(cnp.ndarray x not None, cnp.ndarray value not None, cnp.ndarray place not None):
    """The largest element of each row, or NaN, and its first place.

    x: contiguous, (rows, n) of one real type. value: contiguous float64; place: int64.
    """
    cdef Task task
    cdef Py_ssize_t rows = cnp.PyArray_DIM(x, 0)
    cdef int threads = threads_for(cnp.PyArray_SIZE(x))
    memset(&task, 0, sizeof(task))
    task.n = cnp.PyArray_DIM(x, 1)
    task.out.data = <char *>cnp.PyArray_DATA(x)
    task.out.n = cnp.PyArray_ITEMSIZE(x)
    task.top_value = <double *>cnp.PyArray_DATA(value)
    task.top_place = <int64_t *>cnp.PyArray_DATA(place)
    if threads > 1:
        mark_openmp_used()
    with nogil:
        over_range(top_of_range, &task, rows, threads)


# Bytes of rows that are written before the largest of each is looked for: they are still in a
# second-level cache (measured: 2^17 before 2^14, 2^15 and 2^16).
cdef Py_ssize_t HOT = 1 << 17
cdef int64_t NOT_FOUND = -1


cdef int softmax_and_top_of_range(const Task *task, Py_ssize_t begin,
                                  Py_ssize_t end) noexcept nogil:
    cdef Table table = table_for(task.out.n)
    cdef Py_ssize_t step = max(<Py_ssize_t>1, HOT // (task.n * task.out.n)), first, last, row
    for first from begin <= first < end by step:
        last = min(first + step, end)
        for row in range(first, last):
            task.top_place[row] = NOT_FOUND
        if table.softmax_with_top(task, first, last):
            return -1
        find_missing(task, first, last)
    return 0


cdef inline void find_missing(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The tops of rows that softmax has written without finding them."""
    cdef Py_ssize_t first = begin, last
    while first < end:
        last = first
        while last < end and task.top_place[last] == NOT_FOUND:
            last += 1
        if last > first:
            top_of_range(task, first, last)
        first = last + 1


cdef int softmax_and_top(const Task *task) noexcept nogil:
    """softmax of contiguous rows, and the largest of each, read from no further than a cache."""
    cdef Py_ssize_t rows = task.outer
    cdef int threads = threads_for(rows * task.n)
    if threads > 1:
        mark_openmp_used()
    if threads > 1 and rows < 2 * threads:  # which several threads may share
        return run(SOFTMAX, task, task.out.n) or top_of_range(task, 0, rows)
    return over_range(softmax_and_top_of_range, task, rows, threads)


# A confidence is counted in units of 2^-48, as two halves of 24 bits.
cdef double UNIT = 1 << 48
cdef double MAGIC = 6755399441055744.0  # adding 1.5 * 2^52 rounds to an integer


def count_confidences(cnp.ndarray confidence not None, cnp.ndarray label not None, cuts,
                      cnp.ndarray histogram not None, cnp.ndarray classes not None):
    """Count at most 2^14 rows: what `Counts` of `_confidence.py` holds, by its definitions.

    confidence: contiguous float64; label, histogram, classes: int64, the last two added to.
    cuts: below which, and above which a confidence is invalid, low and high. Returns how many
    are NaN, invalid, above high, below low; the sum in units of 2^-48; and, of the upper (h) and
    lower (l) halves of each, the sums of h * h, h * l and l * l.
    """
    cdef const double *value = <double *>cnp.PyArray_DATA(confidence)
    cdef const int64_t *place = <int64_t *>cnp.PyArray_DATA(label)
    cdef int64_t *bins = <int64_t *>cnp.PyArray_DATA(histogram)
    cdef int64_t *seen = <int64_t *>cnp.PyArray_DATA(classes)
    cdef int64_t n_bins = cnp.PyArray_SIZE(histogram), whole, upper, lower
    cdef int64_t total = 0, squares = 0, products = 0, rest = 0
    cdef int64_t nan = 0, invalid = 0, above = 0, below = 0
    cdef double lowest, highest, low, high, c
    cdef Py_ssize_t i
    lowest, highest, low, high = cuts
    for i in range(cnp.PyArray_SIZE(confidence)):
        c = value[i]
        if not (c >= lowest and c <= highest):
            nan += c != c
            invalid += c == c
            continue
        above += c > high
        below += c < low
        whole = <int64_t>(c * UNIT + MAGIC - MAGIC)
        upper = whole >> 24
        lower = whole & 0xffffff
        total += whole
        squares += upper * upper
        products += upper * lower
        rest += lower * lower
        bins[min((whole * n_bins - 1) >> 48, n_bins - 1)] += 1
        seen[place[i]] += 1
    return nan, invalid, above, below, total, squares, products, rest


def entropy(cnp.ndarray row not None):
    """sum p log(1 / p) of a contiguous row of probabilities."""
    return table_of(row).entropy(cnp.PyArray_DATA(row), cnp.PyArray_SIZE(row))
