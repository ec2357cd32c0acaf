# Half precisions: float16 and bfloat16, which have no kernels of their own.
#
# Converted part by part to float and back, so that the floats stay in a cache; to what runs over a
# part it is a task like any other.

cdef enum:
    PART = 1 << 12     # elements converted at a time: 16 KiB of floats
    # Along another axis; longer stretches of columns, in a second-level cache (measured: 2^12 and
    # 2^13 up to 1.5 slower for the vjps, 2^15 and 2^16 alike).
    VERTICAL_PART = 1 << 14
    TALL = 1 << 20     # elements of a panel; where it has more, panels are one cache line wide
    LINE = 32          # halves in a cache line
    HALF_ROW = 200     # elements from which on rows are not converted (measured)
    TALLEST = 1 << 26  # elements of such a panel; where it has more, rows are converted alone

cdef struct HalfTask:
    Task task  # comes first: a pointer to it is handed on as one to a Task
    Operation op
    bint vertical  # whether floats lie as the halves do, neighbours side by side
    Py_ssize_t width, per_outer  # neighbours in a part; parts along inner


cdef inline bint has_halves(const Task *task) noexcept nogil:
    return (task.x.element != REAL or task.y.element != REAL or task.out.element != REAL
            or task.row_element != REAL)


cdef inline void convert_stretches(bint widening, Element element, void *halves, Py_ssize_t step,
                                   float *floats, Py_ssize_t count, Py_ssize_t n) noexcept nogil:
    """`count` stretches of n elements, `step` bytes apart in halves."""
    if step == 2 * n:
        n *= count
        count = 1
    if widening:
        float32_table.widen(element, <const uint16_t *>halves, step // 2, floats, count, n)
    else:
        float32_table.narrow(element, floats, <uint16_t *>halves, step // 2, count, n)


cdef inline void convert_some(bint widening, Element element, void *halves, float *floats,
                              Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    convert_stretches(widening, element, <uint16_t *>halves + begin, 0, floats + begin, 1,
                      end - begin)


cdef void convert(bint widening, Element element, void *halves, float *floats,
                  Py_ssize_t n) noexcept nogil:
    """Contiguous elements, by as many threads as so many are worth."""
    cdef int threads = threads_for(n) if n > PART else 1, part
    if threads <= 1:
        convert_some(widening, element, halves, floats, 0, n)
        return
    mark_openmp_used()
    for part in prange(threads, num_threads=threads, schedule="static"):
        convert_some(widening, element, halves, floats, n * part // threads,
                     n * (part + 1) // threads)


cdef void convert_columns(bint widening, const Operand *operand, Py_ssize_t n, Py_ssize_t count,
                          float *floats) noexcept nogil:
    """n columns of `count` neighbours; a part with too many for one thread is converted by more."""
    cdef int threads = threads_for(n * count), part
    cdef Py_ssize_t begin
    if threads <= 1:
        convert_stretches(widening, operand.element, operand.data, operand.n, floats, n, count)
        return
    mark_openmp_used()
    for part in prange(threads, num_threads=threads, schedule="static"):
        begin = n * part // threads
        convert_stretches(widening, operand.element, operand.data + begin * operand.n, operand.n,
                          floats + begin * count, n * (part + 1) // threads - begin, count)


cdef void convert_part(bint widening, bint vertical, const Operand *operand, Py_ssize_t n,
                       Py_ssize_t count, float *floats) noexcept nogil:
    """`count` neighbouring rows: floats are (n, count) if vertical, else (count, n)."""
    cdef char *halves = operand.data
    cdef Py_ssize_t c, k
    if vertical:
        convert_columns(widening, operand, n, count, floats)
    elif operand.n == 2 and count == 1:  # which may be longer than a part
        convert(widening, operand.element, halves, floats, n)
    elif operand.n == 2:
        convert_stretches(widening, operand.element, halves, operand.inner, floats, count, n)
    else:
        for c in range(n):
            for k in range(count):
                convert_some(widening, operand.element,
                             halves + c * operand.n + k * operand.inner, floats + k * n + c, 0, 1)


cdef inline bint take_part(const Operand *whole, Py_ssize_t outer, Py_ssize_t inner,
                           Operand *part) noexcept nogil:
    """The operand from there on; whether it is to be converted."""
    if whole.data != NULL:
        part.data = whole.data + outer * whole.outer + inner * whole.inner
    return whole.element != REAL


cdef inline void put_in_floats(bint vertical, Py_ssize_t n, Py_ssize_t count, float *floats,
                               Operand *part) noexcept nogil:
    part.data = <char *>floats
    part.n = sizeof(float) * (count if vertical else 1)
    part.inner = sizeof(float) * (1 if vertical else n)
    part.element = REAL


cdef int compute_part(const HalfTask *halves, Py_ssize_t index, float *x, float *y,
                      float *row_out) noexcept nogil:
    """x, y, row_out: where to hold floats; an output takes the place of x."""
    cdef const Task *whole = &halves.task
    cdef bint vertical = halves.vertical, narrowed
    cdef Py_ssize_t outer = index // halves.per_outer
    cdef Py_ssize_t inner = (index - outer * halves.per_outer) * halves.width
    cdef Py_ssize_t n = whole.n, count = min(halves.width, whole.inner - inner)
    cdef Py_ssize_t row = outer * whole.inner + inner
    cdef Task part = whole[0]
    cdef Operand out
    cdef char *row_place = NULL
    part.outer = 1
    part.inner = count
    part.temperature += row * part.temperature_step
    if part.target != NULL:
        part.target += row
    if part.row_out != NULL:
        row_place = <char *>part.row_out + row * size_of(part.row_element, sizeof(float))
        part.row_out = row_place if part.row_element == REAL else <char *>row_out
        part.row_element = REAL
    take_part(&whole.mask, outer, inner, &part.mask)
    if take_part(&whole.x, outer, inner, &part.x):
        convert_part(True, vertical, &part.x, n, count, x)
        put_in_floats(vertical, n, count, x, &part.x)
    if take_part(&whole.y, outer, inner, &part.y):
        convert_part(True, vertical, &part.y, n, count, y)
        put_in_floats(vertical, n, count, y, &part.y)
    narrowed = take_part(&whole.out, outer, inner, &part.out)
    out = part.out
    if narrowed:
        put_in_floats(vertical, n, count, x, &part.out)
    if not vertical:
        part = turned_round(&part)
    if run(halves.op, &part, sizeof(float)):
        return -1
    if narrowed:
        convert_part(False, vertical, &out, n, count, x)
    if whole.row_element != REAL:
        convert(False, whole.row_element, row_place, row_out, count)
    return 0


cdef int compute_parts(const Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Parts [begin, end) of a HalfTask."""
    cdef const HalfTask *halves = <const HalfTask *>task
    cdef float[3 * PART] nearby
    cdef float *floats = nearby
    cdef Py_ssize_t room = halves.width * task.n, index
    cdef Py_ssize_t y_room = room if task.y.element != REAL else 0
    cdef int failed = 0
    if room + y_room + halves.width > 3 * PART:
        floats = <float *>malloc((room + y_room + halves.width) * sizeof(float))
        if floats == NULL:
            return -1
    for index in range(begin, end):
        failed |= compute_part(halves, index, floats, floats + room, floats + room + y_room)
    if floats != nearby:
        free(floats)
    return failed


cdef inline RangeFunction half_kernel(Operation op, const Task *task,
                                      Py_ssize_t *count) noexcept nogil:
    """The kernel that takes halves as they are, or NULL; how many rows or units of panels."""
    cdef Element element = task.x.element
    if element != task.y.element or element != task.out.element:
        return NULL
    if task.n >= HALF_ROW and task.x.n == 2 and task.y.n == 2 and task.out.n == 2:
        count[0] = task.outer * task.inner
        return float32_table.half_rows[<int>op][<int>element]
    if (task.n > 1 and task.inner >= LINE and task.temperature_step == 0
            and all_adjoin(task, sizeof(float))):
        count[0] = panel_units(float32_table, task)
        return float32_table.half_panels[<int>op][<int>element]
    return NULL


cdef int run_halves(Operation op, const Task *task) noexcept nogil:
    """`run` where something is in half precision."""
    cdef HalfTask halves
    cdef int threads = threads_for(task.outer * task.inner * task.n)
    cdef bint shared = has_shared_rows(op, task, threads, sizeof(float))
    cdef Py_ssize_t count = 0
    cdef RangeFunction kernel = half_kernel(op, task, &count)
    cdef Py_ssize_t unit = float32_table.panel_columns
    cdef Py_ssize_t most = PART if task.y.element == REAL else PART // 2
    if kernel != NULL:
        if (kernel == float32_table.half_panels[<int>op][<int>task.x.element]
                and shares_columns(task, count, threads, sizeof(float))):
            return products_in_pieces(&float32_table.product_pieces, op, task,
                                      CHUNK_BYTES // <Py_ssize_t>sizeof(float), threads)
        return over_range(kernel, task, count, threads)
    halves.task = turned_round(task) if task.inner == 1 else task[0]
    halves.op = op
    halves.width = max(<Py_ssize_t>1, most // task.n)
    halves.vertical = (halves.task.inner > 1 and task.n <= TALLEST // LINE
                       and all_adjoin(&halves.task, sizeof(float)))
    if halves.vertical:
        if task.n > TALL // unit:
            unit = LINE
        halves.width = max(<Py_ssize_t>1, VERTICAL_PART // (task.n * unit)) * unit
    if shared:
        halves.width = 1
    halves.width = min(halves.width, halves.task.inner)
    halves.per_outer = rounds(halves.task.inner, halves.width)
    count = halves.task.outer * halves.per_outer
    if shared or (halves.vertical and are_shared(
            count, rounds(task.n * <Py_ssize_t>sizeof(float), BLOCK_BYTES), threads)):
        threads = 1  # and several for each part
    return over_range(compute_parts, &halves.task, count, threads)


cdef void convert_arrays(bint widening, cnp.ndarray halves, cnp.ndarray floats):
    cdef Element element = element_of(halves)
    cdef void *half = cnp.PyArray_DATA(halves)
    cdef float *single = <float *>cnp.PyArray_DATA(floats)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(halves)
    with nogil:
        convert(widening, element, half, single, n)


def widen(cnp.ndarray halves not None, cnp.ndarray floats not None, /):
    """Write float16 or bfloat16 to float32 of the same shape; both contiguous."""
    convert_arrays(True, halves, floats)


def narrow(cnp.ndarray floats not None, cnp.ndarray halves not None, /):
    """Round float32 to float16 or bfloat16 of the same shape; both contiguous."""
    convert_arrays(False, halves, floats)
