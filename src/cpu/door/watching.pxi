# What a monitor, a validator and a decision ask of rows: the largest of each, its place, how many
# were how confident, entropies.

cdef int top_of_range(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The tops of contiguous rows, which are `out`."""
    cdef const char *rows = task.out.data + begin * task.n * task.out.n
    table_for(task.out.n).top(rows, task.n, task.n, end - begin, task.top_value + begin,
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
    if threads > 1 and rows < 2 * threads:  # which several threads may share
        return run(SOFTMAX, task, task.out.n) or top_of_range(task, 0, rows)
    return over_range(softmax_and_top_of_range, task, rows, threads)


# A confidence is counted in units of 2^-48, as two halves of 24 bits.
cdef double UNIT = 1 << 48
cdef double MAGIC = 6755399441055744.0  # adding 1.5 * 2^52 rounds to an integer

cdef enum:
    TALLIES = 4            # of rows that are NaN, invalid, above high, below low
    TOPS_AT_A_TIME = 64
    # Of batches that are looked at by one thread, under the lock of a monitor and with the GIL:
    # some 20 us.
    COUNTED_WITH_GIL = 1 << 17


cdef struct Counting:
    # What `Counts` of `_confidence.py` holds, by its definitions.
    double lowest  # below which, and above the next, a confidence is invalid
    double highest
    double low
    double high
    int64_t *tallies
    int64_t *bins
    int64_t *classes
    int64_t *sums  # in units of 2^-48; of h * h, h * l and l * l for the halves h and l of each
    Py_ssize_t n_bins


cdef int fill_counting(Counting *counting, cuts, cnp.ndarray counts, Py_ssize_t n_bins,
                       cnp.ndarray sums) except -1:
    counting.lowest, counting.highest, counting.low, counting.high = cuts
    counting.tallies = <int64_t *>cnp.PyArray_DATA(counts)
    counting.bins = counting.tallies + TALLIES
    counting.classes = counting.bins + n_bins
    counting.n_bins = n_bins
    counting.sums = <int64_t *>cnp.PyArray_DATA(sums)
    return 0


cdef void count(const Counting *counting, const double *value, const int64_t *place,
                Py_ssize_t rows) noexcept:
    cdef int64_t n_bins = counting.n_bins, whole, upper, lower
    cdef int64_t total = 0, squares = 0, products = 0, rest = 0
    cdef int64_t nan = 0, invalid = 0, above = 0, below = 0
    cdef double c
    cdef Py_ssize_t i
    for i in range(rows):
        c = value[i]
        if not (c >= counting.lowest and c <= counting.highest):
            nan += c != c
            invalid += c == c
            continue
        above += c > counting.high
        below += c < counting.low
        whole = <int64_t>(c * UNIT + MAGIC - MAGIC)
        upper = whole >> 24
        lower = whole & 0xffffff
        total += whole
        squares += upper * upper
        products += upper * lower
        rest += lower * lower
        counting.bins[min((whole * n_bins - 1) >> 48, n_bins - 1)] += 1
        counting.classes[place[i]] += 1
    counting.tallies[0] += nan
    counting.tallies[1] += invalid
    counting.tallies[2] += above
    counting.tallies[3] += below
    counting.sums[0] += total
    counting.sums[1] += squares
    counting.sums[2] += products
    counting.sums[3] += rest


def count_confidences(cnp.ndarray confidence not None, cnp.ndarray label not None, cuts,
                      cnp.ndarray counts not None, Py_ssize_t n_bins, cnp.ndarray sums not None):
    """Count rows whose tops are known.

    confidence: contiguous float64; label, counts, sums: int64. Sums hold 2^12 rows.
    """
    cdef Counting counting
    fill_counting(&counting, cuts, counts, n_bins, sums)
    count(&counting, <double *>cnp.PyArray_DATA(confidence), <int64_t *>cnp.PyArray_DATA(label),
          cnp.PyArray_SIZE(confidence))


def rows_to_count(x, Py_ssize_t n_classes):
    """How many rows `count_rows` can look at in x, -1 if it is not for it: simple and small."""
    if (not is_simple(x) or is_half(<cnp.ndarray>x) or cnp.PyArray_NDIM(<cnp.ndarray>x) != 2
            or cnp.PyArray_DIM(<cnp.ndarray>x, 1) != n_classes
            or cnp.PyArray_SIZE(<cnp.ndarray>x) > COUNTED_WITH_GIL):
        return -1
    return cnp.PyArray_DIM(<cnp.ndarray>x, 0)


def count_rows(cnp.ndarray x not None, Py_ssize_t begin, Py_ssize_t step, Py_ssize_t most, cuts,
               cnp.ndarray counts not None, Py_ssize_t n_bins, cnp.ndarray sums not None):
    """Count rows begin, begin + step, ... of x, at most so many; return how many it were."""
    cdef double[TOPS_AT_A_TIME] value
    cdef int64_t[TOPS_AT_A_TIME] place
    cdef Counting counting
    cdef Table table = table_of(x)
    cdef const char *rows = <const char *>cnp.PyArray_DATA(x)
    cdef Py_ssize_t n = cnp.PyArray_DIM(x, 1), row_bytes = n * cnp.PyArray_ITEMSIZE(x)
    cdef Py_ssize_t left = min((cnp.PyArray_DIM(x, 0) - begin + step - 1) // step, most)
    cdef Py_ssize_t done, rows_now
    fill_counting(&counting, cuts, counts, n_bins, sums)
    for done from 0 <= done < left by TOPS_AT_A_TIME:
        rows_now = min(left - done, TOPS_AT_A_TIME)
        table.top(rows + (begin + done * step) * row_bytes, step * n, n, rows_now, value, place)
        count(&counting, value, place, rows_now)
    return left


def entropy(cnp.ndarray row not None, double lowest=-INFINITY, double highest=INFINITY):
    """sum p log(1 / p) of a contiguous row; NaN unless its largest is in [lowest, highest]."""
    cdef Table table = table_of(row)
    cdef double value
    cdef int64_t place
    cdef Py_ssize_t n = cnp.PyArray_SIZE(row)
    table.top(cnp.PyArray_DATA(row), n, n, 1, &value, &place)
    if not lowest <= value <= highest:
        return NAN
    return table.entropy(cnp.PyArray_DATA(row), n)
