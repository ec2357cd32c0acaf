# Functions of single elements, over whole arrays: sigmoid, log_sigmoid, the binary cross-entropy.
#
# They go through memory once. Half precisions are converted a few at a time on the way.

cdef enum:
    STEP = 1 << 11  # elements in half precision converted at a time: 8 KiB of floats


cdef struct Elements:
    # Of one array, contiguous; data may be NULL.
    char *data
    Element element
    Py_ssize_t itemsize


cdef Elements elements_of(cnp.ndarray array):
    cdef Elements elements
    elements.data = NULL
    elements.element = REAL
    elements.itemsize = 0
    if array is not None:
        elements.data = <char *>cnp.PyArray_DATA(array)
        elements.element = element_of(array)
        elements.itemsize = cnp.PyArray_ITEMSIZE(array)
    return elements


cdef inline char *place_of(const Elements *array, Py_ssize_t begin, float *floats) noexcept nogil:
    """Where the reals from `begin` on are, or those that stand for halves; or NULL."""
    if array.data == NULL:
        return NULL
    return array.data + begin * array.itemsize if array.element == REAL else <char *>floats


cdef inline char *read(const Elements *array, Py_ssize_t begin, Py_ssize_t count,
                       float *floats) noexcept nogil:
    if array.element != REAL:
        convert_some(True, array.element, array.data + 2 * begin, floats, 0, count)
    return place_of(array, begin, floats)


cdef inline void written(const Elements *array, Py_ssize_t begin, Py_ssize_t count,
                         float *floats) noexcept nogil:
    if array.element != REAL:
        convert_some(False, array.element, array.data + 2 * begin, floats, 0, count)


def sigmoid(cnp.ndarray x not None, cnp.ndarray out not None):
    """Contiguous arrays of one real type, or of half precision for float32; out may be x."""
    over_elements(table_of(x).sigmoid, x, out)


def log_sigmoid(cnp.ndarray x not None, cnp.ndarray out not None):
    """Contiguous arrays of one real type, or of half precision for float32; out may be x."""
    over_elements(table_of(x).log_sigmoid, x, out)


ctypedef void (*ElementFunction)(const void *, void *, Py_ssize_t) noexcept nogil

cdef void over_elements(ElementFunction function, cnp.ndarray x, cnp.ndarray out):
    cdef Elements source = elements_of(x), target = elements_of(out)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef int threads = threads_for(n), part
    if threads <= 1:
        with nogil:
            map_elements(function, &source, &target, 0, n)
        return
    mark_openmp_used()
    with nogil:
        for part in prange(threads, num_threads=threads, schedule="static"):
            map_elements(function, &source, &target, n * part // threads,
                         n * (part + 1) // threads)


cdef void map_elements(ElementFunction function, const Elements *x, const Elements *out,
                       Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef float[STEP] floats
    cdef Py_ssize_t i = begin, count, step = STEP
    if x.element == REAL and out.element == REAL:
        step = end - begin
    while i < end:
        count = min(step, end - i)
        function(read(x, i, count, floats), place_of(out, i, floats), count)
        written(out, i, count, floats)
        i += count


# Elements whose losses are held at once where only their sum is wanted: a power of two of
# the contract's chunks, so that the sums of such parts are nodes of its tree.
cdef Py_ssize_t LOSS_PART = 1 << 14


cdef struct Binary:
    # The operands of a binary cross-entropy, of which the last four may be absent.
    Elements x, y, weight, pos_weight, loss, grad
    double scale
    Py_ssize_t n, real_size
    bint has_halves


cdef double part_of_loss(Table table, const Binary *binary, Py_ssize_t part) noexcept nogil:
    """Losses of one part; their sum where they have no place of their own."""
    cdef double[1 << 14] losses
    cdef float[6][STEP] floats
    cdef Py_ssize_t begin = part * LOSS_PART, i = begin, count
    cdef Py_ssize_t end = min(binary.n, begin + LOSS_PART)
    cdef Py_ssize_t step = STEP if binary.has_halves else LOSS_PART
    cdef char *loss
    while i < end:
        count = min(step, end - i)
        loss = place_of(&binary.loss, i, floats[4])
        if loss == NULL:
            loss = <char *>losses + (i - begin) * binary.real_size
        table.binary_cross_entropy(
            read(&binary.x, i, count, floats[0]), read(&binary.y, i, count, floats[1]),
            read(&binary.weight, i, count, floats[2]),
            read(&binary.pos_weight, i, count, floats[3]),
            loss, place_of(&binary.grad, i, floats[5]), binary.scale, count)
        written(&binary.loss, i, count, floats[4])
        written(&binary.grad, i, count, floats[5])
        i += count
    return 0 if binary.loss.data != NULL else table.sum(losses, end - begin)


def binary_cross_entropy(cnp.ndarray x not None, cnp.ndarray y not None, cnp.ndarray weight,
                         cnp.ndarray pos_weight, cnp.ndarray loss, cnp.ndarray grad,
                         double scale):
    """Contiguous arrays of one size and real type, or of half precision for float32, or None.

    Returns the sum if loss is None.
    """
    cdef Table table = table_of(x)
    cdef Binary binary
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x), part, bits
    cdef Py_ssize_t parts = (n + LOSS_PART - 1) // LOSS_PART
    cdef double *sums = <double *>malloc(parts * sizeof(double))
    cdef int threads = threads_for(n), depth = 0
    cdef double result
    binary.x = elements_of(x)
    binary.y = elements_of(y)
    binary.weight = elements_of(weight)
    binary.pos_weight = elements_of(pos_weight)
    binary.loss = elements_of(loss)
    binary.grad = elements_of(grad)
    binary.scale = scale
    binary.n = n
    binary.real_size = 8 if cnp.PyArray_ITEMSIZE(x) == 8 else 4
    binary.has_halves = (binary.x.element != REAL or binary.y.element != REAL
                         or binary.weight.element != REAL or binary.pos_weight.element != REAL
                         or binary.loss.element != REAL or binary.grad.element != REAL)
    if sums == NULL:
        raise MemoryError("pysoftmax: no memory for partial sums")
    if threads > 1:
        mark_openmp_used()
    with nogil:
        if threads > 1:
            for part in prange(parts, num_threads=threads, schedule="static"):
                sums[part] = part_of_loss(table, &binary, part)
        else:
            for part in range(parts):
                sums[part] = part_of_loss(table, &binary, part)
        for part in range(parts):
            sums[depth] = sums[part]
            depth += 1
            bits = part
            while bits & 1:
                depth -= 1
                sums[depth - 1] += sums[depth]
                bits >>= 1
        while depth > 1:
            depth -= 1
            sums[depth - 1] += sums[depth]
        result = sums[0] if parts > 0 else 0
        free(sums)
    return result


def total(cnp.ndarray x not None):
    """Sum of a contiguous array in the contract's order, as a Python float."""
    return sum_in_order(table_of(x), cnp.PyArray_DATA(x), cnp.PyArray_SIZE(x))


cdef double sum_in_order(Table table, const void *x, Py_ssize_t n) noexcept:
    cdef double result
    if n < ELEMENTS_WITH_GIL:
        return table.sum(x, n)
    with nogil:
        result = table.sum(x, n)
    return result
