"""The door between NumPy arrays and the kernels: CPU target, threads, strategy.

Everything that arrives here has been validated, except by the ``fast_*`` functions, which
take the public functions' arguments as they are and return None for whatever is not an
ordinary C-contiguous array, or so small that it is made one, with plain options.
"""

import importlib.util
import os

import numpy

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

include "task.pxi"


cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define HAS_OPENMP 1
    #else
    #define HAS_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    static int omp_in_parallel(void) { return 0; }
    #endif

    /* What num_threads() asks for holds for the calling thread alone. */
    static _Thread_local int threads_here = 0;
    static int get_threads_here(void) { return threads_here; }
    static void set_threads_here(int n) { threads_here = n; }

    static int cpu_has_avx2(void) {
    #if defined(__x86_64__)
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
               && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    #else
        return 0;
    #endif
    }
    static int cpu_has_avx512(void) {
    #if defined(__x86_64__)
        return cpu_has_avx2() && __builtin_cpu_supports("avx512f")
               && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd");
    #else
        return 0;
    #endif
    }
    """
    bint HAS_OPENMP
    int omp_get_max_threads() nogil
    int omp_in_parallel() nogil
    int get_threads_here() nogil
    void set_threads_here(int n)
    bint cpu_has_avx2()
    bint cpu_has_avx512()

cnp.import_array()

cdef object SINGLE = numpy.float32
cdef object DOUBLE = numpy.float64

# ------------------------------------------------------------------------- CPU targets

ctypedef KernelTable *Table

cdef Table float32_table = NULL
cdef Table float64_table = NULL


cdef inline Table table_for(Py_ssize_t itemsize) noexcept nogil:
    return float64_table if itemsize == 8 else float32_table


# Best first. A target counts as built if its modules are there.
SUPPORTED = {
    "avx512": cpu_has_avx512(),
    "avx2": cpu_has_avx2(),
    "neon": True,
    "baseline": True,
}


def kernel_module(target, real):
    return importlib.import_module(f"pysoftmax.backends._kernels_{target}_{real}")


def built_targets():
    """Targets this build has kernels for, best first."""
    found = []
    for target in SUPPORTED:
        spec = importlib.util.find_spec(f"pysoftmax.backends._kernels_{target}_float32")
        if spec is not None:
            found.append(target)
    return found


def available_targets():
    """Built targets that the running CPU supports, best first."""
    return [target for target in built_targets() if SUPPORTED[target]]


def use_target(target):
    """Take the kernels of `target` from now on."""
    global float32_table, float64_table
    float32_table = <Table>PyCapsule_GetPointer(
        kernel_module(target, "float32").kernel_table, "pysoftmax.kernel_table")
    float64_table = <Table>PyCapsule_GetPointer(
        kernel_module(target, "float64").kernel_table, "pysoftmax.kernel_table")


# ----------------------------------------------------------------------------- threads

# Below these a second thread costs more than it saves (docs/performance.md).
cdef Py_ssize_t ELEMENTS_PER_THREAD = 1 << 15
cdef Py_ssize_t ELEMENTS_WITH_GIL = 1 << 12

cdef int threads_everywhere = 0
cdef bint forked = False
cdef bint openmp_used = False


def has_openmp():
    return HAS_OPENMP


cdef inline int wanted_threads() noexcept nogil:
    if forked:
        # libgomp's threads do not survive fork, and it would wait for them for ever.
        return 1
    if get_threads_here() > 0:
        return get_threads_here()
    if threads_everywhere > 0:
        return threads_everywhere
    return omp_get_max_threads()


def get_num_threads():
    return wanted_threads() if HAS_OPENMP else 1


def set_threads(int n):
    """Threads for the whole process; 0 follows OpenMP."""
    global threads_everywhere
    threads_everywhere = n


def swap_threads_here(int n):
    """Threads for calls from this thread (0: as the process); returns what held before."""
    before = get_threads_here()
    set_threads_here(n)
    return before


def after_fork_in_child():
    global forked
    forked = openmp_used


os.register_at_fork(after_in_child=after_fork_in_child)


cdef inline int threads_for(Py_ssize_t elements) noexcept nogil:
    cdef Py_ssize_t most = elements // ELEMENTS_PER_THREAD
    if most < 2 or omp_in_parallel():
        return 1
    return <int>min(most, <Py_ssize_t>wanted_threads())


# ---------------------------------------------------------------------------- strategy

cdef int over_range(RangeFunction function, const Task *task, Py_ssize_t count,
                    int threads) noexcept nogil:
    """Call function over [0, count), in one even part per thread."""
    cdef int failed = 0, part
    if threads > count:
        threads = <int>count
    if threads <= 1:
        return function(task, 0, count)
    for part in prange(threads, num_threads=threads, schedule="static"):
        failed |= function(task, count * part // threads, count * (part + 1) // threads)
    return failed


cdef int shared_row(Table table, Operation op, const Task *task, Py_ssize_t row,
                    Py_ssize_t piece_length, int threads) noexcept nogil:
    """One row by several threads; same bits as by one, because pieces have a fixed size."""
    cdef Py_ssize_t pieces = (task.n + piece_length - 1) // piece_length, piece, bits
    cdef Partial *partials = <Partial *>malloc(pieces * sizeof(Partial))
    cdef double *exponents = <double *>malloc(
        pieces * (PIECE_BYTES // BLOCK_BYTES) * sizeof(double))
    cdef double *maxima = <double *>malloc(pieces * sizeof(double))
    cdef double start = -INFINITY
    cdef int depth = 0, missed = 0
    if partials == NULL or exponents == NULL or maxima == NULL:
        free(partials)
        free(exponents)
        free(maxima)
        return -1
    if op == SOFTMAX and task.out.data == task.x.data:
        for piece in prange(pieces, num_threads=threads, schedule="static"):
            maxima[piece] = table.piece_max(task, row, piece)
        for piece in range(pieces):
            start = max(start, maxima[piece])
        # In place a sweep that gives up would have overwritten some of x already.
        missed = not fabs(start) <= table.anchor
    if not missed:
        for piece in prange(pieces, num_threads=threads, schedule="static"):
            missed |= not table.sweep_piece(op, task, row, piece, start, &partials[piece],
                                            exponents)
    if not missed:
        for piece in range(pieces):
            partials[depth] = partials[piece]
            depth += 1
            bits = piece
            while bits & 1:
                table.merge(&partials[depth - 2], &partials[depth - 1], &partials[depth - 2])
                depth -= 1
                bits >>= 1
        while depth > 1:
            table.merge(&partials[depth - 2], &partials[depth - 1], &partials[depth - 2])
            depth -= 1
        missed = partials[0].max == -INFINITY
    if not missed:
        if op != LOGSUMEXP:
            for piece in prange(pieces, num_threads=threads, schedule="static"):
                table.write_piece(op, task, row, piece, partials, exponents)
        table.finish_row(op, task, row, partials)
    free(partials)
    free(exponents)
    free(maxima)
    return table.rows[<int>op](task, row, row + 1) if missed else 0


cdef inline bint plain(const Operand *operand, Py_ssize_t itemsize) noexcept nogil:
    """Whether a row of the operand is contiguous, or the operand absent."""
    return operand.data == NULL or operand.n == itemsize


cdef inline bint is_plain_task(const Task *task, Py_ssize_t itemsize) noexcept nogil:
    return (task.mask.data == NULL and plain(&task.x, itemsize) and plain(&task.y, itemsize)
            and plain(&task.out, itemsize))


cdef inline void turn(Operand *operand) noexcept nogil:
    cdef Py_ssize_t inner = operand.inner
    operand.inner = operand.outer
    operand.outer = inner


cdef inline Task turned_round(const Task *task) noexcept nogil:
    """The same rows in the same order, where outer or inner is 1, as the other of the two."""
    cdef Task turned = task[0]
    turned.inner = task.outer
    turned.outer = task.inner
    turn(&turned.x)
    turn(&turned.y)
    turn(&turned.out)
    turn(&turned.mask)
    return turned


cdef inline Py_ssize_t size_of(Element element, Py_ssize_t real_size) noexcept nogil:
    return real_size if element == REAL else 2


cdef inline bint adjoins(const Operand *operand, Py_ssize_t real_size) noexcept nogil:
    """Whether neighbours adjoin one another, or the operand is absent."""
    return operand.data == NULL or operand.inner == size_of(operand.element, real_size)


cdef inline bint has_panels(Table table, Operation op, const Task *task,
                            Py_ssize_t real_size) noexcept nogil:
    """Whether the vertical kernels take it."""
    return (table.panels[<int>op] != NULL and task.temperature_step == 0 and task.n > 1
            and task.inner * real_size >= 64 and adjoins(&task.x, real_size)
            and adjoins(&task.y, real_size) and adjoins(&task.out, real_size)
            and (task.mask.data == NULL or 0 <= task.mask.inner <= 1))


cdef inline bint is_shared(Operation op, const Task *task, int threads,
                           Py_ssize_t real_size) noexcept nogil:
    """Whether there are so few rows, and so long ones, that several threads share each."""
    return (threads > 1 and task.outer * task.inner < 2 * threads
            and task.n * real_size >= 2 * PIECE_BYTES and task.mask.data == NULL
            and (op == SOFTMAX or op == LOG_SOFTMAX or op == LOGSUMEXP))


cdef int run(Operation op, const Task *given, Py_ssize_t itemsize) noexcept nogil:
    """Choose how the task is cut: panels, shared rows, or rows."""
    cdef Table table = table_for(itemsize)
    cdef Task turned
    cdef const Task *task = given
    cdef Py_ssize_t rows = task.outer * task.inner, row, panels
    cdef int threads = threads_for(rows * task.n), failed = 0
    if has_halves(task):
        return run_halves(op, task)
    if task.inner == 1 and not is_plain_task(task, itemsize):
        # Neighbours are gathered together at least.
        turned = turned_round(task)
        task = &turned
    if threads > 1:
        mark_openmp_used()
    if has_panels(table, op, task, itemsize):
        panels = (task.inner + table.panel_columns - 1) // table.panel_columns
        return over_range(table.panels[<int>op], task, task.outer * panels, threads)
    if is_shared(op, task, threads, itemsize) and is_plain_task(task, itemsize):
        for row in range(rows):
            failed |= shared_row(table, op, task, row, PIECE_BYTES // itemsize, threads)
        return failed
    return over_range(table.rows[<int>op], task, rows, threads)


cdef inline void mark_openmp_used() noexcept nogil:
    global openmp_used
    openmp_used = True


# ---------------------------------------------------------------------- half precisions
#
# Converted part by part to float and back, so that the floats stay in a cache; to what runs over a
# part it is a task like any other.

cdef enum:
    PART = 1 << 12     # elements converted at a time: 16 KiB of floats
    TALLEST = 1 << 20  # elements of the columns that a vertical kernel takes together

cdef struct HalfTask:
    Task task  # comes first: a pointer to it is handed on as one to a Task
    Operation op
    bint vertical
    Py_ssize_t width, per_outer  # neighbours in a part; parts along inner


cdef inline bint has_halves(const Task *task) noexcept nogil:
    return (task.x.element != REAL or task.y.element != REAL or task.out.element != REAL
            or task.row_element != REAL)


cdef inline void convert_some(bint widening, Element element, void *halves, float *floats,
                              Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    if widening:
        float32_table.widen(element, <const uint16_t *>halves + begin, floats + begin, end - begin)
    else:
        float32_table.narrow(element, floats + begin, <uint16_t *>halves + begin, end - begin)


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


cdef void convert_part(bint widening, bint vertical, const Operand *operand, Py_ssize_t n,
                       Py_ssize_t count, float *floats) noexcept nogil:
    """`count` neighbouring rows: floats are (n, count) if vertical, else (count, n)."""
    cdef char *halves = operand.data
    cdef Py_ssize_t c, k
    if vertical:
        for c in range(n):
            convert(widening, operand.element, halves + c * operand.n, floats + c * count, count)
    elif operand.n == 2 and operand.inner == 2 * n:
        convert(widening, operand.element, halves, floats, count * n)
    elif operand.n == 2:
        for k in range(count):
            convert(widening, operand.element, halves + k * operand.inner, floats + k * n, n)
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


cdef int run_halves(Operation op, const Task *task) noexcept nogil:
    """`run` where something is in half precision."""
    cdef HalfTask halves
    cdef int threads = threads_for(task.outer * task.inner * task.n)
    cdef Py_ssize_t unit = float32_table.panel_columns
    cdef Py_ssize_t most = PART if task.y.element == REAL else PART // 2
    halves.task = turned_round(task) if task.inner == 1 else task[0]
    halves.op = op
    halves.width = max(<Py_ssize_t>1, most // task.n)
    halves.vertical = (has_panels(float32_table, op, &halves.task, sizeof(float))
                       and task.n * unit <= TALLEST)
    if halves.vertical:
        halves.width = max(<Py_ssize_t>1, most // (task.n * unit)) * unit
    if is_shared(op, task, threads, sizeof(float)):
        halves.width = threads = 1  # and several for each
    halves.width = min(halves.width, halves.task.inner)
    halves.per_outer = (halves.task.inner + halves.width - 1) // halves.width
    if threads > 1:
        mark_openmp_used()
    return over_range(compute_parts, &halves.task, halves.task.outer * halves.per_outer, threads)


cdef int run_with_or_without_gil(Operation op, const Task *task,
                                 Py_ssize_t itemsize) except -1:
    cdef int failed
    if task.outer * task.inner * task.n < ELEMENTS_WITH_GIL:
        failed = run(op, task, itemsize)
    else:
        with nogil:
            failed = run(op, task, itemsize)
    if failed:
        raise_no_scratch()
    return 0


cdef int raise_no_scratch() except -1:
    raise MemoryError("pysoftmax: no memory for the scratch space of a row")


# --------------------------------------------------------------------- validated calls

cdef double ONE = 1.0

cdef inline Element element_of(cnp.ndarray array) noexcept:
    if cnp.PyArray_ITEMSIZE(array) != 2:
        return REAL
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT16:
        return FLOAT16
    # As ml_dtypes names it.
    return BFLOAT16 if (<cnp.dtype>array.dtype).type == c"E" else REAL


cdef void set_operand(Operand *operand, cnp.ndarray array):
    """A three-dimensional array as an operand."""
    operand.data = <char *>cnp.PyArray_DATA(array)
    operand.outer = cnp.PyArray_STRIDE(array, 0)
    operand.n = cnp.PyArray_STRIDE(array, 1)
    operand.inner = cnp.PyArray_STRIDE(array, 2)
    operand.element = element_of(array)


def run_rows(int operation, cnp.ndarray x not None, *, cnp.ndarray out=None,
             cnp.ndarray row_out=None, cnp.ndarray y=None, cnp.ndarray mask=None,
             cnp.ndarray temperature=None, cnp.ndarray target=None, ignore_index=-100,
             cnp.ndarray class_weight=None, double label_smoothing=0.0,
             double gradient_scale=1.0):
    """Run one operation of kernels.h over x seen as (outer, n, inner).

    x, y, out: (outer, n, inner) of one real type, native byte order, any strides; where that is
    float32, each of them and row_out may be in half precision.
    mask: bool, likewise. row_out: contiguous, one real per row.
    temperature: contiguous float64, one per row or a single one.
    target: contiguous int64, one per row. class_weight: contiguous float64, one per class.
    """
    cdef Task task
    memset(&task, 0, sizeof(task))
    set_operand(&task.x, x)
    task.outer = cnp.PyArray_DIM(x, 0)
    task.n = cnp.PyArray_DIM(x, 1)
    task.inner = cnp.PyArray_DIM(x, 2)
    if out is not None:
        set_operand(&task.out, out)
    if y is not None:
        set_operand(&task.y, y)
    if mask is not None:
        set_operand(&task.mask, mask)
    if row_out is not None:
        task.row_out = cnp.PyArray_DATA(row_out)
        task.row_element = element_of(row_out)
    task.temperature = &ONE
    if temperature is not None:
        task.temperature = <double *>cnp.PyArray_DATA(temperature)
        task.temperature_step = cnp.PyArray_SIZE(temperature) > 1
    if target is not None:
        task.target = <int64_t *>cnp.PyArray_DATA(target)
        task.ignore_index = ignore_index
    if class_weight is not None:
        task.class_weight = <double *>cnp.PyArray_DATA(class_weight)
    task.label_smoothing = label_smoothing
    task.gradient_scale = gradient_scale
    run_with_or_without_gil(<Operation>operation, &task, cnp.PyArray_ITEMSIZE(x))


cdef inline Table table_of(cnp.ndarray array) noexcept:
    return table_for(cnp.PyArray_ITEMSIZE(array))


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
    cdef Table table = table_of(x)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef void *data = cnp.PyArray_DATA(x)
    cdef double result
    with nogil:
        result = table.sum(data, n)
    return result


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


def entropy(cnp.ndarray row not None):
    """sum p log(1 / p) of a contiguous row of probabilities."""
    return table_of(row).entropy(cnp.PyArray_DATA(row), cnp.PyArray_SIZE(row))


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


def first_bad_label(cnp.ndarray labels not None, Py_ssize_t classes, ignore_index):
    """Flat position of the first label outside [0, classes) that is not ignored, or -1."""
    cdef const int64_t *label = <int64_t *>cnp.PyArray_DATA(labels)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(labels), i
    cdef int64_t ignored = ignore_index
    with nogil:
        for i in range(n):
            if not 0 <= label[i] < classes and label[i] != ignored:
                with gil:
                    return i
    return -1


# --------------------------------------------------------------------------- fast path

cdef inline bint is_plain(cnp.ndarray array) noexcept:
    """Whether the memory of an array is that of a C array."""
    return (cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED)
            and not cnp.PyArray_ISBYTESWAPPED(array))


cdef inline bint is_simple(object x) noexcept:
    """An ndarray proper, C-contiguous, aligned, of a native dtype of floats, not 0-d."""
    cdef int number
    if not cnp.PyArray_CheckExact(x):
        return False
    number = cnp.PyArray_TYPE(<cnp.ndarray>x)
    return ((number == cnp.NPY_FLOAT32 or number == cnp.NPY_FLOAT64 or is_half(<cnp.ndarray>x))
            and cnp.PyArray_NDIM(<cnp.ndarray>x) > 0 and is_plain(<cnp.ndarray>x))


cdef enum:
    SMALL = 1 << 12  # elements that are copied sooner than the general way is taken


cdef inline bint is_half(cnp.ndarray x) noexcept:
    """Whether it is float16, or bfloat16 of ml_dtypes."""
    return element_of(x) != REAL


cdef object made_simple(object x, object dtype):
    """x if it is simple and of the dtype, if one is given; a copy that is of what is small.

    No copy is narrower than what was given. None for all else.
    """
    cdef int given, wanted
    if dtype is None and is_simple(x):
        return x
    if type(x) is list or type(x) is tuple:
        x = numpy.asarray(x)
    if not cnp.PyArray_CheckExact(x) or cnp.PyArray_NDIM(<cnp.ndarray>x) == 0:
        return None
    given = wanted = cnp.PyArray_TYPE(<cnp.ndarray>x)
    if dtype is not None:
        wanted = (<cnp.dtype>numpy.dtype(dtype)).type_num
    if given == wanted and is_simple(x):
        return x
    if cnp.PyArray_SIZE(<cnp.ndarray>x) > SMALL:
        return None
    if is_half(<cnp.ndarray>x):
        if not is_plain(<cnp.ndarray>x):
            x = cnp.PyArray_Cast(<cnp.ndarray>x, given)
        if wanted == given:
            return x
        x = from_half(x)
        given = cnp.NPY_FLOAT32
    elif given not in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64, cnp.NPY_INT32, cnp.NPY_INT64):
        return None
    if given == cnp.NPY_INT32 or given == cnp.NPY_INT64:
        given = cnp.NPY_FLOAT64
        if dtype is None:
            wanted = given
    if not is_plain(<cnp.ndarray>x) or given == cnp.NPY_FLOAT64:
        x = cnp.PyArray_Cast(<cnp.ndarray>x, given)
    if given == cnp.NPY_FLOAT32 and wanted == cnp.NPY_FLOAT64:
        return in_double(x)
    return x if given == wanted else None


cdef inline cnp.ndarray new_like(cnp.ndarray x, int number):
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), number, 0)


cdef object from_half(cnp.ndarray x):
    cdef cnp.ndarray result = new_like(x, cnp.NPY_FLOAT32)
    widen(x, result)
    return result


cdef object in_double(cnp.ndarray x):
    """A copy in float64 of a simple array."""
    cdef cnp.ndarray result = new_like(x, cnp.NPY_FLOAT64)
    cdef double *value = <double *>cnp.PyArray_DATA(result)
    cdef Py_ssize_t i
    if is_half(x):
        x = from_half(x)
    if cnp.PyArray_ITEMSIZE(x) == 8:
        memcpy(value, cnp.PyArray_DATA(x), cnp.PyArray_NBYTES(x))
        return result
    for i in range(cnp.PyArray_SIZE(x)):
        value[i] = (<const float *>cnp.PyArray_DATA(x))[i]
    return result


cdef inline bint can_receive(object out, cnp.ndarray x) noexcept:
    """Whether out is a simple, writable array of the type of x."""
    return (is_simple(out) and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.PyArray_TYPE(x)
            and cnp.PyArray_CHKFLAGS(<cnp.ndarray>out, cnp.NPY_ARRAY_WRITEABLE))


cdef inline bint are_apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether contiguous arrays share no memory."""
    cdef char *start_a = <char *>cnp.PyArray_DATA(a)
    cdef char *start_b = <char *>cnp.PyArray_DATA(b)
    return (start_a + cnp.PyArray_NBYTES(a) <= start_b
            or start_b + cnp.PyArray_NBYTES(b) <= start_a)


cdef inline bint can_hold(object out, cnp.ndarray x) noexcept:
    """Whether out is a simple, writable array like x, and x itself or apart from it."""
    return (can_receive(out, x) and cnp.PyArray_SAMESHAPE(<cnp.ndarray>out, x)
            and (cnp.PyArray_DATA(<cnp.ndarray>out) == cnp.PyArray_DATA(x)
                 or are_apart(<cnp.ndarray>out, x)))


cdef inline bint set_mask(Task *task, object where, cnp.ndarray x) noexcept:
    """Take a C-contiguous mask of the shape of x or, for rows that are contiguous, of one row."""
    cdef cnp.ndarray mask
    cdef int ndim
    if not cnp.PyArray_CheckExact(where):
        return False
    mask = where
    ndim = cnp.PyArray_NDIM(mask)
    if (cnp.PyArray_TYPE(mask) != cnp.NPY_BOOL
            or not cnp.PyArray_CHKFLAGS(mask, cnp.NPY_ARRAY_C_CONTIGUOUS)):
        return False
    task.mask.data = <char *>cnp.PyArray_DATA(mask)
    task.mask.n = task.inner
    if cnp.PyArray_SAMESHAPE(mask, x):
        task.mask.inner = 1
        task.mask.outer = task.inner * task.n
        return True
    return (task.inner == 1 and 0 < ndim <= cnp.PyArray_NDIM(x)
            and cnp.PyArray_DIM(mask, ndim - 1) == task.n == cnp.PyArray_SIZE(mask)
            and cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1) == task.n)


cdef inline object row_temperatures(object temperature, const Task *task, cnp.ndarray x):
    """A float64 copy of simple temperatures of the rows of a matrix, all above 0; or None."""
    cdef cnp.ndarray copied
    cdef const double *value
    cdef Py_ssize_t i, rows = task.outer * task.inner
    if (not is_simple(temperature) or cnp.PyArray_NDIM(x) != 2
            or cnp.PyArray_NDIM(<cnp.ndarray>temperature) != 1
            or cnp.PyArray_DIM(<cnp.ndarray>temperature, 0) != rows):
        return None
    copied = in_double(temperature)
    value = <const double *>cnp.PyArray_DATA(copied)
    for i in range(rows):
        if not value[i] > 0:
            return None
    return copied


cdef inline bint fill_task(Task *task, cnp.ndarray x, object axis):
    """(outer, n, inner) of a C-contiguous array; False if the axis is not one, or None for all."""
    cdef int ndim = cnp.PyArray_NDIM(x), k
    cdef Py_ssize_t along, itemsize = cnp.PyArray_ITEMSIZE(x)
    memset(task, 0, sizeof(Task))
    task.outer = 1
    task.inner = 1
    if axis is None:
        task.n = cnp.PyArray_SIZE(x)
    else:
        if type(axis) is not int:
            return False
        try:
            along = axis
        except OverflowError:
            return False
        if along < 0:
            along += ndim
        if not 0 <= along < ndim:
            return False
        for k in range(ndim):
            if k < along:
                task.outer *= cnp.PyArray_DIM(x, k)
            elif k > along:
                task.inner *= cnp.PyArray_DIM(x, k)
        task.n = cnp.PyArray_DIM(x, <int>along)
    if task.n == 0 or task.outer == 0 or task.inner == 0:
        return False
    task.x.data = <char *>cnp.PyArray_DATA(x)
    task.x.element = element_of(x)
    task.x.inner = itemsize
    task.x.n = itemsize * task.inner
    task.x.outer = task.x.n * task.n
    task.temperature = &ONE
    return True


cdef inline double degrees_of(object temperature):
    """A temperature that is a Python number; NaN for all others."""
    if type(temperature) is float:
        return temperature
    if type(temperature) is int and 0 < temperature < 1 << 53:
        return temperature
    return NAN


cdef inline object fast_map(Operation op, object x, object axis, object temperature,
                            object where, object dtype, object out):
    cdef Task task
    cdef double degrees = degrees_of(temperature)
    x = made_simple(x, dtype)
    if x is None or not fill_task(&task, <cnp.ndarray>x, axis):
        return None
    if degrees > 0:
        task.temperature = &degrees
    elif axis is None:
        return None
    else:
        temperature = row_temperatures(temperature, &task, <cnp.ndarray>x)
        if temperature is None:
            return None
        task.temperature = <double *>cnp.PyArray_DATA(<cnp.ndarray>temperature)
        task.temperature_step = task.outer * task.inner > 1
    if where is not None and not set_mask(&task, where, <cnp.ndarray>x):
        return None
    if out is None:
        out = empty_like(<cnp.ndarray>x)
    elif (not can_hold(out, <cnp.ndarray>x)
          or not (where is None or are_apart(out, where))):
        return None
    task.out = task.x
    task.out.data = <char *>cnp.PyArray_DATA(<cnp.ndarray>out)
    run_with_or_without_gil(op, &task, cnp.PyArray_ITEMSIZE(<cnp.ndarray>x))
    return out


def fast_softmax(x, axis, temperature, where, dtype, out):
    """softmax of an array that is simple or made so, or None."""
    return fast_map(SOFTMAX, x, axis, temperature, where, dtype, out)


def fast_log_softmax(x, axis, temperature, where, dtype, out):
    """log_softmax of an array that is simple or made so, or None."""
    return fast_map(LOG_SOFTMAX, x, axis, temperature, where, dtype, out)


def fast_softmax_and_top(x, axis, temperature, out):
    """softmax of a simple array of contiguous rows, and what `top` finds of it; or None."""
    cdef Task task
    cdef cnp.npy_intp rows
    cdef cnp.ndarray value, place
    cdef int failed
    cdef double degrees = degrees_of(temperature)
    if (not is_simple(x) or is_half(<cnp.ndarray>x) or axis is None or not degrees > 0
            or not fill_task(&task, <cnp.ndarray>x, axis) or task.inner != 1):
        return None
    if out is None:
        out = empty_like(<cnp.ndarray>x)
    elif not can_hold(out, <cnp.ndarray>x):
        return None
    task.temperature = &degrees
    task.out = task.x
    task.out.data = <char *>cnp.PyArray_DATA(<cnp.ndarray>out)
    rows = task.outer
    value = cnp.PyArray_EMPTY(1, &rows, cnp.NPY_FLOAT64, 0)
    place = cnp.PyArray_EMPTY(1, &rows, cnp.NPY_INT64, 0)
    task.top_value = <double *>cnp.PyArray_DATA(value)
    task.top_place = <int64_t *>cnp.PyArray_DATA(place)
    with nogil:
        failed = softmax_and_top(&task)
    if failed:
        raise_no_scratch()
    return out, value, place


def fast_logsumexp(x, axis, keepdims, dtype, out):
    """logsumexp over one axis or all of an array that is simple or made so, or None."""
    cdef Task task
    cdef cnp.npy_intp[64] shape
    cdef int k, ndim, along, kept = 0
    cdef cnp.ndarray result
    if type(keepdims) is not bool:
        return None
    x = made_simple(x, dtype)
    if x is None or not fill_task(&task, <cnp.ndarray>x, axis):
        return None
    ndim = cnp.PyArray_NDIM(<cnp.ndarray>x)
    along = -1 if axis is None else axis if axis >= 0 else axis + ndim
    for k in range(ndim):
        if k != along and along >= 0:
            shape[kept] = cnp.PyArray_DIM(<cnp.ndarray>x, k)
            kept += 1
        elif keepdims:
            shape[kept] = 1
            kept += 1
    if out is None:
        result = cnp.PyArray_EMPTY(kept, shape, cnp.PyArray_TYPE(<cnp.ndarray>x), 0)
    elif (can_receive(out, <cnp.ndarray>x) and are_apart(<cnp.ndarray>out, <cnp.ndarray>x)
          and cnp.PyArray_NDIM(<cnp.ndarray>out) == kept
          and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<cnp.ndarray>out), shape, kept)):
        result = out
    else:
        return None
    task.row_out = cnp.PyArray_DATA(result)
    task.row_element = task.x.element
    run_with_or_without_gil(LOGSUMEXP, &task, cnp.PyArray_ITEMSIZE(<cnp.ndarray>x))
    return result if kept else result[()]


def fast_sigmoid(x, dtype, out):
    """sigmoid of an array that is simple or made so, or None."""
    return fast_elements(sigmoid, x, dtype, out)


def fast_log_sigmoid(x, dtype, out):
    """log_sigmoid of an array that is simple or made so, or None."""
    return fast_elements(log_sigmoid, x, dtype, out)


cdef inline object fast_elements(function, x, dtype, out):
    x = made_simple(x, dtype)
    if x is None:
        return None
    if out is None:
        out = empty_like(<cnp.ndarray>x)
    elif not can_hold(out, <cnp.ndarray>x):
        return None
    function(x, out)
    return out


cdef inline cnp.ndarray empty_like(cnp.ndarray x):
    return new_like(x, cnp.PyArray_TYPE(x))


cdef inline bint is_like(object y, cnp.ndarray x) noexcept:
    """Whether y is a simple array of the type and shape of x."""
    return (is_simple(y) and cnp.PyArray_TYPE(<cnp.ndarray>y) == cnp.PyArray_TYPE(x)
            and cnp.PyArray_SAMESHAPE(<cnp.ndarray>y, x))


def fast_vjp(int operation, grad_output, values, axis, temperature, out):
    """softmax_vjp or log_softmax_vjp of arrays that are simple or made so, or None."""
    cdef Task task
    cdef double degrees = degrees_of(temperature)
    values = made_simple(values, None)
    if values is None:
        return None
    grad_output = made_simple(grad_output, None)
    if not is_like(grad_output, <cnp.ndarray>values):
        return None
    if not degrees > 0 or not fill_task(&task, <cnp.ndarray>values, axis):
        return None
    if out is None:
        out = empty_like(<cnp.ndarray>values)
    elif not can_hold(out, <cnp.ndarray>values) or not can_hold(out, <cnp.ndarray>grad_output):
        return None
    task.temperature = &degrees
    task.y = task.out = task.x
    task.y.data = <char *>cnp.PyArray_DATA(<cnp.ndarray>grad_output)
    task.out.data = <char *>cnp.PyArray_DATA(<cnp.ndarray>out)
    run_with_or_without_gil(<Operation>operation, &task, cnp.PyArray_ITEMSIZE(<cnp.ndarray>values))
    return out


cdef inline bint are_labels(object target, cnp.ndarray logits, Py_ssize_t along) noexcept:
    """Whether target is a contiguous int64 array of the logits' shape without one axis."""
    cdef int ndim = cnp.PyArray_NDIM(logits), k
    if not cnp.PyArray_CheckExact(target):
        return False
    if (cnp.PyArray_TYPE(<cnp.ndarray>target) != cnp.NPY_INT64
            or cnp.PyArray_NDIM(<cnp.ndarray>target) != ndim - 1
            or not is_plain(<cnp.ndarray>target)):
        return False
    for k in range(ndim - 1):
        if (cnp.PyArray_DIM(<cnp.ndarray>target, k)
                != cnp.PyArray_DIM(logits, k if k < along else k + 1)):
            return False
    return True


cdef inline object as_int64(object target):
    """Labels of an integer type that int64 holds, copied if need be; all else as it is."""
    cdef int number
    if not cnp.PyArray_CheckExact(target):
        return target
    number = cnp.PyArray_TYPE(<cnp.ndarray>target)
    if (number in (cnp.NPY_INT8, cnp.NPY_INT16, cnp.NPY_INT32, cnp.NPY_UINT8, cnp.NPY_UINT16,
                   cnp.NPY_UINT32)
            or number == cnp.NPY_INT64 and not is_plain(<cnp.ndarray>target)):
        return cnp.PyArray_Cast(<cnp.ndarray>target, cnp.NPY_INT64)
    return target


cdef inline object class_weights(object weight, Py_ssize_t classes):
    """A float64 copy of simple class weights, or None."""
    if (not is_simple(weight) or cnp.PyArray_NDIM(<cnp.ndarray>weight) != 1
            or cnp.PyArray_DIM(<cnp.ndarray>weight, 0) != classes):
        return None
    return in_double(weight)


cdef inline double sum_of_weights(const Task *task, cnp.ndarray target) except? -1:
    """The weights of all rows' targets, added in the contract's order."""
    cdef cnp.ndarray each = cnp.PyArray_EMPTY(
        cnp.PyArray_NDIM(target), cnp.PyArray_DIMS(target), cnp.NPY_FLOAT64, 0)
    cdef double *weight = <double *>cnp.PyArray_DATA(each)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(target)):
        weight[i] = 0
        if task.target[i] != task.ignore_index:
            weight[i] = task.class_weight[task.target[i]]
    return total(each)


def fast_cross_entropy(logits, target, axis, weight, ignore_index, label_smoothing, reduction,
                       temperature, bint with_grad, grad_out):
    """(loss, gradient) of logits that are simple or made so with simple targets, or None."""
    cdef Task task
    cdef cnp.ndarray loss, x
    cdef cnp.npy_intp[64] shape
    cdef Py_ssize_t i, along, rows, used = 0
    cdef int k, ndim, number
    cdef double divisor, degrees = degrees_of(temperature)
    if (type(label_smoothing) is not float or not 0 <= label_smoothing <= 1
            or type(ignore_index) is not int or axis is None):
        return None
    logits = made_simple(logits, None)
    if logits is None:
        return None
    x = logits
    ndim = cnp.PyArray_NDIM(x)
    if not degrees > 0 or not fill_task(&task, x, axis):
        return None
    along = axis if axis >= 0 else axis + ndim
    if ndim == 1 and (type(target) is int or isinstance(target, numpy.integer)):
        target = numpy.asarray(target)
    target = as_int64(target)
    if grad_out is not None and not (can_hold(grad_out, x) and cnp.PyArray_CheckExact(target)
                                     and are_apart(grad_out, target)):
        return None
    try:
        task.ignore_index = ignore_index
    except OverflowError:
        return None
    task.temperature = &degrees
    task.label_smoothing = label_smoothing
    if weight is not None:
        weight = class_weights(weight, task.n)
        if weight is None:
            return None
        task.class_weight = <double *>cnp.PyArray_DATA(<cnp.ndarray>weight)
    rows = task.outer * task.inner
    if are_labels(target, x, along):
        task.target = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>target)
        for i in range(rows):
            if task.target[i] != task.ignore_index:
                if not 0 <= task.target[i] < task.n:
                    return None
                used += 1
    elif is_like(target, x) and not_negative(target):
        task.y = task.x
        task.y.data = <char *>cnp.PyArray_DATA(<cnp.ndarray>target)
        used = rows
    else:
        return None
    divisor = 1
    if reduction == "mean":
        divisor = used
        if weight is not None and task.target != NULL:
            divisor = sum_of_weights(&task, target)
    task.gradient_scale = 1 / divisor if divisor != 0 else 0
    for k in range(ndim - 1):
        shape[k] = cnp.PyArray_DIM(x, k if k < along else k + 1)
    number = cnp.PyArray_TYPE(x)
    if is_half(x) and reduction != "none":
        number = cnp.NPY_FLOAT32  # what is added up is not rounded before
    loss = cnp.PyArray_EMPTY(ndim - 1, shape, number, 0)
    task.row_out = cnp.PyArray_DATA(loss)
    task.row_element = element_of(loss)
    if with_grad:
        if grad_out is None:
            grad_out = empty_like(x)
        task.out = task.x
        task.out.data = <char *>cnp.PyArray_DATA(<cnp.ndarray>grad_out)
    run_with_or_without_gil(CROSS_ENTROPY_WITH_GRAD if with_grad else CROSS_ENTROPY, &task,
                            cnp.PyArray_ITEMSIZE(x))
    if reduction == "none":
        return loss if ndim > 1 else loss[()], grad_out
    return reduced(total(loss), divisor, x), grad_out


cdef inline object reduced(double summed, double divisor, cnp.ndarray like):
    """A NumPy scalar of the type of `like`; the mean over nothing is NaN."""
    cdef object value = summed / divisor if divisor != 0 else NAN
    if is_half(like):
        with numpy.errstate(all="ignore"):
            return like.dtype.type(value)
    return (SINGLE if cnp.PyArray_TYPE(like) == cnp.NPY_FLOAT32 else DOUBLE)(value)


def fast_binary_cross_entropy(logits, target, weight, pos_weight, reduction, bint with_grad,
                              grad_out):
    """(loss, gradient) of simple arrays, or None."""
    cdef cnp.ndarray x
    cdef double divisor, summed
    cdef object loss = None
    if not is_simple(logits) or not is_like(target, <cnp.ndarray>logits):
        return None
    x = logits
    if grad_out is not None and (not can_hold(grad_out, x) or not can_hold(grad_out, target)):
        return None
    if weight is not None:
        weight = repeated(weight, x)
        if weight is None:
            return None
    if pos_weight is not None:
        pos_weight = repeated(pos_weight, x)
        if pos_weight is None:
            return None
    if cnp.PyArray_SIZE(x) == 0 or not in_unit_interval(<cnp.ndarray>target):
        return None
    divisor = cnp.PyArray_SIZE(x) if reduction == "mean" else 1
    if with_grad and grad_out is None:
        grad_out = empty_like(x)
    if reduction == "none":
        loss = empty_like(x)
    summed = binary_cross_entropy(x, target, weight, pos_weight, loss, grad_out, 1 / divisor)
    return (reduced(summed, divisor, x) if loss is None else loss), grad_out


cdef object repeated(object factor, cnp.ndarray x):
    """A new array like x of a float, or of a simple factor of its shape or of its last axis.

    A float is not rounded to half precision.
    """
    cdef cnp.ndarray result
    cdef int number = cnp.PyArray_TYPE(x)
    cdef Py_ssize_t begin, size, itemsize = cnp.PyArray_ITEMSIZE(x)
    cdef double wide
    cdef float single
    cdef const void *source = &wide
    if type(factor) is float:
        wide = factor
        if itemsize < 8:
            number = cnp.NPY_FLOAT32
            itemsize = sizeof(float)
            single = <float>wide
            source = &single
    elif not is_simple(factor) or cnp.PyArray_TYPE(<cnp.ndarray>factor) != cnp.PyArray_TYPE(x):
        return None
    elif (cnp.PyArray_SAMESHAPE(<cnp.ndarray>factor, x)
          or cnp.PyArray_NDIM(<cnp.ndarray>factor) == 1
          and cnp.PyArray_DIM(<cnp.ndarray>factor, 0)
          == cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1)):
        source = cnp.PyArray_DATA(<cnp.ndarray>factor)
        itemsize = cnp.PyArray_NBYTES(<cnp.ndarray>factor)
    else:
        return None
    result = new_like(x, number)
    size = cnp.PyArray_NBYTES(result)
    for begin from 0 <= begin < size by itemsize:
        memcpy(cnp.PyArray_BYTES(result) + begin, source, itemsize)
    return result


cdef inline bint in_unit_interval(cnp.ndarray y) noexcept:
    return all_up_to(y, 1)


cdef inline bint not_negative(cnp.ndarray y) noexcept:
    return all_up_to(y, INFINITY)


cdef inline bint all_up_to(cnp.ndarray y, double highest) noexcept:
    """Whether all elements are in [0, highest]."""
    cdef void *data = cnp.PyArray_DATA(y)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(y)
    if element_of(y) == FLOAT16:
        return halves_up_to(<const uint16_t *>data, n, 0x3c00 if highest == 1 else 0x7c00)
    if element_of(y) == BFLOAT16:
        return halves_up_to(<const uint16_t *>data, n, 0x3f80 if highest == 1 else 0x7f80)
    if cnp.PyArray_ITEMSIZE(y) == 4:
        return all_between[float](<const float *>data, n, <float>highest)
    return all_between[double](<const double *>data, n, highest)


ctypedef fused either:
    float
    double

cdef inline bint all_between(const either *y, Py_ssize_t n, either highest) noexcept nogil:
    cdef Py_ssize_t i
    cdef int outside = 0
    for i in range(n):
        outside |= not (y[i] >= 0 and y[i] <= highest)
    return not outside


cdef inline bint halves_up_to(const uint16_t *y, Py_ssize_t n, uint16_t highest) noexcept nogil:
    """all_between by the bits, which have the order of the numbers from 0 on; 0x8000 is -0."""
    cdef Py_ssize_t i
    cdef int outside = 0
    for i in range(n):
        outside |= (y[i] > highest) & (y[i] != 0x8000)
    return not outside
