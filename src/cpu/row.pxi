# Everything that reduces a row: softmax, log_softmax, logsumexp, cross-entropy, the vjps.
#
# Mathematics.  With m = max x, z_i = (x_i - m) / T and S = sum exp(z_i):
#   softmax      exp(z_i) / S             logsumexp   m + log S
#   log_softmax  z_i - log S              loss        sum_c q_c (log S - z_c)
#   gradient     (Q p_i - q_i) / T        q: one-hot, smoothed, weighted targets; Q = sum q
#   softmax vjp  p_i (g_i - sum_j g_j p_j) / T
#   log_softmax vjp  (g_i - p_i sum_j g_j) / T
# S = N + R: N elements equal the maximum, and R is the sum over the others. The large term
# then takes part in one addition only, and log S is log1p(N - 1 + R) (Blanchard, Higham &
# Higham 2021, eq. 1.4), so that log-probabilities near zero keep their relative accuracy.
# z_i and -log S have one sign, so nothing cancels; 1 - p_target at a maximum is
# (N - 1 + R) / S.
#
# Order of additions (docs/numerics.md): a lane row is 256 bytes of the row. In a chunk of
# 8 lane rows, lane j adds its columns in order; the lanes are added as a halving tree.
# In double every term is split at a fixed place before, the upper parts add up exactly and
# the lower ones beside them. Chunk sums are double, with the errors of adding them kept, in
# a tree fixed by their index: 4 to a block, then blocks. A block's exponentials carry a
# scale 2^-K of their own; blocks whose K is not the row's are rescaled in the last sweep,
# which is exact.
#
# Passes.  Rows of up to one block, several in work together: maximum, exp into scratch (up to a
# chunk) or `out`, one scaling sweep over what a first-level cache still holds; x is read from
# memory once, `out` written once. Longer: block by block maximum and exp, stored to `out`, then
# one scaling sweep: two reads and two writes of memory. logsumexp and the loss: one read.
# In place a long row's maximum is taken beforehand: a sweep that must start again
# (an anchored row) has to find x intact.

cdef struct Scratch:
    real *block        # EXP_SCRATCH reals, for exponentials
    double *exponents  # K of each block of a row, if a row is longer than that
    real *q            # q of a row, where it is not the target probabilities themselves
    real *x_rows       # gathered rows
    real *y_rows
    void *memory       # to free


cdef void large_row(int op, bint dense, const real *x, const real *y, real *out,
                    const Task *task, Py_ssize_t row, View *view,
                    const Scratch *scratch) noexcept nogil:
    """A row of any length, sweep by sweep."""
    cdef Partial whole
    cdef Py_ssize_t n = task.n
    cdef double target_logit = 0, start = -INFINITY, m
    cdef bint roomy = n <= BLOCK
    cdef real *e = scratch.block if roomy else out
    cdef double *exponents = scratch.exponents
    if is_loss(op) and task.target != NULL:
        target_logit = x[task.target[row]]
    if is_product(op):
        sweep(op, False, x, y, NULL, False, n, view, start, &whole, exponents)
        if op == DOT:
            set_row_out(task, row, whole.dot)
            return
    else:
        if is_one_hot(view.temperature):
            limit_row(op, x, y, out, task, row, view.temperature, row_max(x, n))
            return
        if stores_exp(op) and not roomy and <const real *>out == x:
            start = row_max(x, n)
            if start == -INFINITY:
                limit_row(op, x, y, out, task, row, view.temperature, start)
                return
        if (not sweep(op, dense, x, y, e, roomy, n, view, start, &whole, exponents)
                or whole.max == -INFINITY):
            m = row_max(x, n)
            if fabs(m) > REAL_MAX:
                limit_row(op, x, y, out, task, row, view.temperature, m)
                return
            # A block far below the rest may have made the sweep give up too early.
            if not in_reach(view, m):
                set_view(view, view.temperature, m)
            sweep(op, dense, x, y, e, roomy, n, view, m, &whole, exponents)
        if needs_log(op):
            finish(op, task, row, view.temperature, target_logit, log_sum(&whole), &whole)
    if not has_elements(op):
        return
    write_row(op, dense, x, y, e, roomy, out, task, row, target_logit, view, &whole, exponents)


# ------------------------------------------------------------------------ ranges of rows

cdef inline const char *at(const Operand *operand, Py_ssize_t outer,
                           Py_ssize_t inner) noexcept nogil:
    return operand.data + outer * operand.outer + inner * operand.inner


cdef inline bint is_contiguous(const Operand *operand) noexcept nogil:
    return operand.data == NULL or operand.n == sizeof(real)


cdef void gather(const Operand *operand, const Operand *mask, Py_ssize_t outer,
                 Py_ssize_t inner, Py_ssize_t count, Py_ssize_t n, real *rows) noexcept nogil:
    """Copy `count` neighbouring rows into contiguous ones; masked elements become -inf."""
    cdef const char *source = at(operand, outer, inner)
    cdef const char *keep = at(mask, outer, inner) if mask.data != NULL else NULL
    cdef Py_ssize_t c, k
    if operand.n == sizeof(real):
        for k in range(count):
            memcpy(rows + k * n, source + k * operand.inner, n * sizeof(real))
    else:
        for c in range(n):
            for k in range(count):
                rows[k * n + c] = (<const real *>(source + c * operand.n + k * operand.inner))[0]
    if keep != NULL:
        for k in range(count):
            hide(rows + k * n, keep + k * mask.inner, mask.n, n, <real>-INFINITY)


cdef inline real impossible(int op) noexcept nogil:
    """What the operation makes of a masked class."""
    return <real>(0 if op == SOFTMAX else -INFINITY)


cdef inline void hide(real *row, const char *keep, Py_ssize_t step, Py_ssize_t n,
                      real value) noexcept nogil:
    """Put `value` wherever the mask is false."""
    cdef Py_ssize_t c
    if step == 1:
        for c in range(n):
            row[c] = row[c] if keep[c] else value
    else:
        for c in range(n):
            row[c] = row[c] if keep[c * step] else value


cdef void scatter(int op, const Operand *operand, const Operand *mask, Py_ssize_t outer,
                  Py_ssize_t inner, Py_ssize_t count, Py_ssize_t n, real *rows) noexcept nogil:
    """The way back; masked elements get the value of an impossible class."""
    cdef char *target = <char *>at(operand, outer, inner)
    cdef const char *keep = at(mask, outer, inner) if mask.data != NULL else NULL
    cdef Py_ssize_t c, k
    if keep != NULL:
        for k in range(count):
            hide(rows + k * n, keep + k * mask.inner, mask.n, n, impossible(op))
    if operand.n == sizeof(real):
        for k in range(count):
            memcpy(target + k * operand.inner, rows + k * n, n * sizeof(real))
    else:
        for c in range(n):
            for k in range(count):
                (<real *>(target + c * operand.n + k * operand.inner))[0] = rows[k * n + c]


cdef bint is_masked_whole(const Operand *mask, Py_ssize_t outer, Py_ssize_t inner,
                          Py_ssize_t n) noexcept nogil:
    cdef const char *keep = at(mask, outer, inner)
    cdef Py_ssize_t c
    if mask.n == 1:
        return memchr(keep, 1, n) == NULL
    for c in range(n):
        if (keep + c * mask.n)[0]:
            return False
    return True


cdef void one_row(int op, const Rows *rows, Py_ssize_t k, const Task *task, const View *view,
                  bint dense, const Scratch *scratch) noexcept nogil:
    """A row of any length and kind."""
    cdef View own = view[0]
    cdef Py_ssize_t row = rows.first + k
    cdef const real *y = y_of(rows, k)
    cdef double base
    if is_ignored(op, task, row):
        set_row_out(task, row, 0)
        fill(out_of(rows, k), task.n, 0)
        return
    if task.temperature_step != 0:
        set_view(&own, task.temperature[row * task.temperature_step], 0)
    if not dense:
        large_row(op, False, x_of(rows, k), y, out_of(rows, k), task, row, &own, scratch)
        return
    if task.target == NULL and scratch.q != NULL:
        fill_q(task, y, scratch.q)
    large_row(op, True, x_of(rows, k), <const real *>scratch.q if scratch.q != NULL else y,
              out_of(rows, k), task, row, &own, scratch)


cdef inline void each_row(int op, const Rows *rows, const Task *task, const View *view,
                          bint dense, const Scratch *scratch) noexcept nogil:
    """All rows, batched as long as nothing is special about them."""
    cdef bint batched = (task.n <= BLOCK and task.temperature_step == 0
                         and not is_one_hot(view.temperature))
    cdef Rows weighted = rows[0]
    cdef Py_ssize_t k = 0
    cdef int vectors
    if dense and scratch.q != NULL:
        # What all rows share can be their y; what is made for each row cannot.
        batched = batched and task.target != NULL
        weighted.y = <const char *>scratch.q
        weighted.y_step = 0
    while k < rows.count:
        if batched:
            vectors = vectors_of(op, view.general, dense, task.n, rows.count - k)
            k = batches[op][view.general][dense][vectors - FEW](&weighted, task, k, view,
                                                                scratch.block)
        if k == rows.count:
            return
        one_row(op, rows, k, task, view, dense, scratch)
        k += 1


cdef int get_scratch(const Task *task, Py_ssize_t together, bint needs_q, real *block,
                     Scratch *scratch) noexcept nogil:
    """Memory for what does not fit on the stack; `together` rows are gathered at a time."""
    cdef Py_ssize_t n = task.n, blocks = (n + BLOCK - 1) // BLOCK, reals = 0
    cdef real *free_reals
    scratch.block = block
    scratch.exponents = NULL
    scratch.q = NULL
    scratch.memory = NULL
    if needs_q:
        reals += n
    reals += together * n * (2 if task.y.data != NULL else 1)
    if reals == 0 and blocks <= 1:
        return 0
    scratch.memory = malloc(blocks * sizeof(double) + reals * sizeof(real))
    if scratch.memory == NULL:
        return -1
    if blocks > 1:
        scratch.exponents = <double *>scratch.memory
    free_reals = <real *>(<double *>scratch.memory + blocks)
    if needs_q:
        scratch.q = free_reals
        free_reals += n
    scratch.x_rows = free_reals
    scratch.y_rows = free_reals + together * n
    return 0


cdef inline int run_rows(int op, const Task *task, Py_ssize_t begin,
                         Py_ssize_t end) noexcept nogil:
    """Rows [begin, end): in place where they are contiguous, else by way of scratch."""
    cdef vec[SCRATCH_VECTORS] block  # vectors, for their alignment
    cdef View view
    cdef Rows rows
    cdef Scratch scratch
    cdef Py_ssize_t n = task.n, row = begin, outer, inner, k
    cdef bint dense = is_dense(op, task), masked = task.mask.data != NULL
    cdef bint has_y = task.y.data != NULL, has_out = task.out.data != NULL
    cdef bint packed = (masked or not is_contiguous(&task.x) or not is_contiguous(&task.y)
                        or not is_contiguous(&task.out))
    # Neighbours along a short stride share cache lines, so they are copied together.
    cdef Py_ssize_t together = 0
    if packed:
        together = min(task.inner, max(<Py_ssize_t>1, min(<Py_ssize_t>64, GATHERED // n)))
    if get_scratch(task, together,
                   dense and (task.target != NULL or task.class_weight != NULL
                              or task.label_smoothing != 0), <real *>block, &scratch) != 0:
        return -1
    if dense and task.target != NULL:
        fill_q(task, NULL, scratch.q)
    set_view(&view, task.temperature[0], 0)
    if task.temperature_step != 0:
        view.general = True  # decided row by row

    while row < end:
        outer = row // task.inner
        inner = row - outer * task.inner
        rows.first = row
        if not packed:
            rows.count = end - row if task.inner == 1 else 1
            rows.x = at(&task.x, outer, inner)
            rows.y = at(&task.y, outer, inner) if has_y else NULL
            rows.out = NULL
            if has_out:
                rows.out = <char *>at(&task.out, outer, inner)
            rows.x_step = task.x.outer
            rows.y_step = task.y.outer
            rows.out_step = task.out.outer
            each_row(op, &rows, task, &view, dense, &scratch)
            row += rows.count
            continue
        rows.count = min(min(together, task.inner - inner), end - row)
        rows.x = <const char *>scratch.x_rows
        rows.y = <const char *>scratch.y_rows if has_y else NULL
        rows.out = NULL
        if has_out:
            rows.out = <char *>scratch.x_rows
        rows.x_step = rows.y_step = rows.out_step = n * <Py_ssize_t>sizeof(real)
        gather(&task.x, &task.mask, outer, inner, rows.count, n, scratch.x_rows)
        if has_y:
            gather(&task.y, &task.mask, outer, inner, rows.count, n, scratch.y_rows)
        each_row(op, &rows, task, &view, dense, &scratch)
        if has_out:
            scatter(op, &task.out, &task.mask, outer, inner, rows.count, n, scratch.x_rows)
        if masked and task.row_out != NULL:
            for k in range(rows.count):
                if is_masked_whole(&task.mask, outer, inner + k, n):
                    set_row_out(task, row + k, -INFINITY)
        row += rows.count
    free(scratch.memory)
    return 0


cdef int softmax_rows_with_top(const Task *task, Py_ssize_t begin,
                               Py_ssize_t end) noexcept nogil:
    cdef Task own = task[0]
    cdef Tops tops
    cdef int failed
    tops.count = 0
    own.tops = &tops
    failed = softmax_rows(&own, begin, end)
    if tops.count > 0:
        finish_tops(&tops, own.n, own.top_value, own.top_place)
    return failed


# ------------------------------------------------------ a row in pieces: Pieces of kernels.h
#
# Block by block; a block that is masked or not contiguous goes by way of scratch, so that a long
# row needs no more memory than that. Where `out` is not contiguous, exponentials are taken a second
# time rather than scattered to it and gathered again.

cdef inline Operand part_of(const Operand *operand, const Task *task, Py_ssize_t row,
                            Py_ssize_t begin) noexcept nogil:
    """The row from column `begin` on, as an operand of one row; absent where the operand is."""
    cdef Operand part = operand[0]
    if part.data != NULL:
        part.data = <char *>at(operand, row // task.inner, row % task.inner) + begin * operand.n
    return part


cdef inline const real *columns_of(const Operand *operand, const Task *task, Py_ssize_t row,
                                   Py_ssize_t begin, Py_ssize_t n, real *scratch) noexcept nogil:
    """Contiguous; masked ones are -inf."""
    cdef Operand part = part_of(operand, task, row, begin)
    cdef Operand mask = part_of(&task.mask, task, row, begin)
    if mask.data == NULL and is_contiguous(&part):
        return <const real *>part.data
    gather(&part, &mask, 0, 0, 1, n, scratch)
    return scratch


cdef inline void view_of_row(const Task *task, Py_ssize_t row, View *view) noexcept nogil:
    set_view(view, task.temperature[row * task.temperature_step], 0)


cdef void row_maximum(const Task *task, Py_ssize_t row, Py_ssize_t piece,
                      double *maximum) noexcept nogil:
    cdef vec[BLOCK_VECTORS] scratch
    cdef Py_ssize_t begin, n, end = min((piece + 1) * PIECE, task.n)
    cdef double most = -INFINITY
    for begin from piece * PIECE <= begin < end by BLOCK:
        n = min(BLOCK, end - begin)
        most = max(most, row_max(columns_of(&task.x, task, row, begin, n, <real *>scratch), n))
    maximum[0] = most


cdef bint sweep_row_piece(Operation op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                          const double *start, Partial *result, double *exponents) noexcept nogil:
    cdef vec[BLOCK_VECTORS] scratch, y_scratch
    cdef Partial[8] stack  # levels of the tree over a piece of 32 blocks
    cdef View view
    cdef Operand out
    cdef const real *x
    cdef const real *y = NULL
    cdef real *e = NULL
    cdef int depth = 0
    cdef bint stored = stores_exp(op) and is_contiguous(&task.out)
    cdef Operation summed = op if stored or is_product(op) else LOGSUMEXP
    cdef Py_ssize_t begin, n, end = min((piece + 1) * PIECE, task.n), index = 0
    cdef double running = start[0]
    view_of_row(task, row, &view)
    if is_one_hot(view.temperature) and not is_product(op):
        return False
    exponents += piece * (PIECE // BLOCK)
    for begin from piece * PIECE <= begin < end by BLOCK:
        n = min(BLOCK, end - begin)
        x = columns_of(&task.x, task, row, begin, n, <real *>scratch)
        if is_product(op):
            y = columns_of(&task.y, task, row, begin, n, <real *>y_scratch)
        if stored:
            out = part_of(&task.out, task, row, begin)
            e = <real *>out.data
        if not sweep(summed, False, x, y, e, False, n, &view, running, &stack[depth],
                     exponents + index):
            return False
        running = max(running, stack[depth].max)
        depth += 1
        fold(stack, &depth, index)
        index += 1
    fold_all(stack, depth)
    result[0] = stack[0]
    return True


cdef void write_row_piece(Operation op, const Task *task, Py_ssize_t row, Py_ssize_t piece,
                          const Partial *whole, const double *exponents) noexcept nogil:
    cdef vec[BLOCK_VECTORS] scratch, y_scratch
    cdef View view
    cdef Operand out, mask
    cdef Partial again
    cdef const real *source
    cdef const real *y = NULL
    cdef real *target
    cdef Py_ssize_t begin, n, end = min((piece + 1) * PIECE, task.n), index = 0
    cdef bint stored = stores_exp(op) and is_contiguous(&task.out)
    view_of_row(task, row, &view)
    exponents += piece * (PIECE // BLOCK)
    for begin from piece * PIECE <= begin < end by BLOCK:
        n = min(BLOCK, end - begin)
        out = part_of(&task.out, task, row, begin)
        mask = part_of(&task.mask, task, row, begin)
        target = <real *>out.data if is_contiguous(&out) else <real *>scratch
        source = target
        if not stored:
            source = columns_of(&task.x, task, row, begin, n, <real *>scratch)
        if is_product(op):
            y = columns_of(&task.y, task, row, begin, n, <real *>y_scratch)
        if stores_exp(op) and not stored:
            sweep(op, False, source, NULL, target, False, n, &view, whole.max, &again, NULL)
            source = target
        write(op, False, source, y, target, False, target, n, &view, whole, exponents + index, 0,
              NULL)
        if target == <real *>scratch:
            scatter(op, &out, &mask, 0, 0, 1, n, target)
        elif mask.data != NULL:
            hide(target, mask.data, mask.n, n, impossible(op))
        index += 1


cdef void finish_row(Operation op, const Task *task, Py_ssize_t row,
                     const Partial *whole) noexcept nogil:
    if op == LOGSUMEXP:
        finish(LOGSUMEXP, task, row, 1, 0, log_sum(whole), whole)
