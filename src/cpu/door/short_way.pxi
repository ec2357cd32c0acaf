# The short way: ordinary calls, which a public function hands over as they are.
#
# Checks in Python take microseconds, more than a small array's arithmetic. So a `fast_*` function
# looks at its arguments in C, and answers None to whatever is not plain; the public function then
# takes the general way, which gives the same bits.

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
    cdef int ndim = cnp.PyArray_NDIM(x), k, overflow
    cdef Py_ssize_t along, itemsize = cnp.PyArray_ITEMSIZE(x)
    memset(task, 0, sizeof(Task))
    task.outer = 1
    task.inner = 1
    if axis is None:
        task.n = cnp.PyArray_SIZE(x)
    else:
        if type(axis) is not int:
            return False
        along = PyLong_AsLongLongAndOverflow(axis, &overflow)
        if overflow:
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
    """PyArray_EMPTY without looking up what is known: a fiftieth of the smallest calls."""
    cdef cnp.dtype dtype = <cnp.dtype>cnp.PyArray_DESCR(x)
    Py_INCREF(dtype)  # PyArray_NewFromDescr takes a reference
    return PyArray_NewFromDescr(cnp.ndarray, dtype, cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x),
                                NULL, NULL, 0, NULL)


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
    return sum_in_order(table_of(each), cnp.PyArray_DATA(each), cnp.PyArray_SIZE(each))


def fast_cross_entropy(logits, target, axis, weight, ignore_index, label_smoothing, reduction,
                       temperature, bint with_grad, grad_out):
    """(loss, gradient) of logits that are simple or made so with simple targets, or None."""
    cdef Task task
    cdef cnp.ndarray loss = None, x
    cdef cnp.npy_intp[64] shape
    cdef double[64] few_losses
    cdef Py_ssize_t i, along, rows, used = 0
    cdef int k, ndim, number, overflow
    cdef bint averaged = reduction == "mean", kept = reduction == "none"
    cdef double divisor, smoothing, degrees = degrees_of(temperature)
    if (type(label_smoothing) is not float or type(ignore_index) is not int or axis is None
            or not (averaged or kept or reduction == "sum")):
        return None
    smoothing = label_smoothing
    if not 0 <= smoothing <= 1:
        return None
    logits = made_simple(logits, None)
    if logits is None:
        return None
    x = logits
    ndim = cnp.PyArray_NDIM(x)
    if not degrees > 0 or not fill_task(&task, x, axis):
        return None
    along = axis
    if along < 0:
        along += ndim
    if ndim == 1 and (type(target) is int or isinstance(target, numpy.integer)):
        target = numpy.asarray(target)
    target = as_int64(target)
    if grad_out is not None and not (can_hold(grad_out, x) and cnp.PyArray_CheckExact(target)
                                     and are_apart(grad_out, target)):
        return None
    task.ignore_index = PyLong_AsLongLongAndOverflow(ignore_index, &overflow)
    if overflow:
        return None
    task.temperature = &degrees
    task.label_smoothing = smoothing
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
    if averaged:
        divisor = used
        if weight is not None and task.target != NULL:
            divisor = sum_of_weights(&task, target)
    task.gradient_scale = 1 / divisor if divisor != 0 else 0
    if kept:
        for k in range(ndim - 1):
            shape[k] = cnp.PyArray_DIM(x, k if k < along else k + 1)
        loss = cnp.PyArray_EMPTY(ndim - 1, shape, cnp.PyArray_TYPE(x), 0)
        task.row_element = element_of(loss)
    elif rows > 64:
        # What is added up is not rounded to half precision before.
        number = cnp.NPY_FLOAT32 if is_half(x) else cnp.PyArray_TYPE(x)
        shape[0] = rows
        loss = cnp.PyArray_EMPTY(1, shape, number, 0)
    task.row_out = few_losses if loss is None else cnp.PyArray_DATA(loss)
    if with_grad:
        if grad_out is None:
            grad_out = empty_like(x)
        task.out = task.x
        task.out.data = <char *>cnp.PyArray_DATA(<cnp.ndarray>grad_out)
    run_with_or_without_gil(CROSS_ENTROPY_WITH_GRAD if with_grad else CROSS_ENTROPY, &task,
                            cnp.PyArray_ITEMSIZE(x))
    if kept:
        return loss if ndim > 1 else loss[()], grad_out
    return reduced(sum_in_order(table_of(x), task.row_out, rows), divisor, x), grad_out


cdef inline object reduced(double summed, double divisor, cnp.ndarray like):
    """A NumPy scalar of the type of `like`; the mean over nothing is NaN."""
    cdef double value = summed / divisor if divisor != 0 else NAN
    cdef float single = <float>value
    if is_half(like):
        with numpy.errstate(all="ignore"):
            return like.dtype.type(value)
    if cnp.PyArray_TYPE(like) == cnp.NPY_FLOAT32:
        return cnp.PyArray_ToScalar(&single, like)
    return cnp.PyArray_ToScalar(&value, like)


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
