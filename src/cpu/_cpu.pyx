"""The door between NumPy arrays and the kernels: CPU target, threads, strategy.

Everything that arrives here has been validated, except by the ``fast_*`` functions of
``door/short_way.pxi``, which take the public functions' arguments as they are and return None
for whatever is not an ordinary C-contiguous array, or so small that it is made one, with plain
options.
"""

import importlib.util
import os

import numpy

cimport numpy as cnp
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF
from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN
from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free, malloc
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

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewFromDescr(type, cnp.dtype, int, const cnp.npy_intp *,
                                     const cnp.npy_intp *, void *, int, PyObject *)

cnp.import_array()


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

# As many as make another thread, and releasing the GIL, worth what it costs (docs/performance.md).
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
    cdef Py_ssize_t most = (elements + ELEMENTS_PER_THREAD // 2) // ELEMENTS_PER_THREAD
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
    mark_openmp_used()
    for part in prange(threads, num_threads=threads, schedule="static"):
        failed |= function(task, count * part // threads, count * (part + 1) // threads)
    return failed


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


cdef inline bint all_adjoin(const Task *task, Py_ssize_t real_size) noexcept nogil:
    return (adjoins(&task.x, real_size) and adjoins(&task.y, real_size)
            and adjoins(&task.out, real_size))


# Fewer leave so many lanes idle that rows, gathered, are faster: 4 floats 0.4 to 0.9 in panels, but 8
# of them 1.0 to 2.8 (measured with vectors of 16).
cdef enum:
    LEAST_NEIGHBOURS = 8

cdef inline bint has_panels(Table table, Operation op, const Task *task,
                            Py_ssize_t real_size) noexcept nogil:
    """Whether the vertical kernels take it."""
    return (table.panels[<int>op] != NULL and task.temperature_step == 0 and task.n > 1
            and task.inner >= LEAST_NEIGHBOURS and all_adjoin(task, real_size)
            and (task.mask.data == NULL or 0 <= task.mask.inner <= 1))


cdef inline Py_ssize_t panel_units(Table table, const Task *task) noexcept nogil:
    """What the vertical kernels count by: panel_columns neighbours, and what is left of them."""
    return task.outer * rounds(task.inner, table.panel_columns)


cdef int run(Operation op, const Task *given, Py_ssize_t itemsize) noexcept nogil:
    """Choose how the task is cut: panels, shared rows, or rows."""
    cdef Table table = table_for(itemsize)
    cdef Task turned
    cdef const Task *task = given
    cdef Py_ssize_t rows = task.outer * task.inner, units
    cdef int threads = threads_for(rows * task.n)
    if has_halves(task):
        return run_halves(op, task)
    if task.inner == 1 and not is_plain_task(task, itemsize):
        # Neighbours are gathered together at least.
        turned = turned_round(task)
        task = &turned
    if has_panels(table, op, task, itemsize):
        units = panel_units(table, task)
        if has_shared_panels(op, task, units, threads, itemsize):
            return units_in_pieces(table, &table.panel_pieces, table.panels[<int>op], op, task,
                                   units, itemsize, threads)
        if is_vjp(op) and shares_columns(task, units, threads, itemsize):
            return products_in_pieces(&table.product_pieces, op, task, CHUNK_BYTES // itemsize,
                                      threads)
        return over_range(table.panels[<int>op], task, units, threads)
    if (has_shared_rows(op, task, threads, itemsize)
            or has_long_rows(op, task, itemsize) and not is_plain_task(task, itemsize)):
        # Else the latter would be gathered as a whole.
        return units_in_pieces(table, &table.row_pieces, table.rows[<int>op], op, task, rows,
                               itemsize, threads)
    return over_range(table.rows[<int>op], task, rows, threads)


cdef inline void mark_openmp_used() noexcept nogil:
    global openmp_used
    openmp_used = True


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


include "door/pieces.pxi"
include "door/parts.pxi"
include "door/elements.pxi"
include "door/watching.pxi"
include "door/short_way.pxi"
