# Rows and panels in pieces along the rows, which several threads share: which are, and how.
#
# Pieces have a fixed size, and what is known of them is joined in the order of docs/numerics.md, so
# that any number of threads gives the same bits.

cdef enum:
    UNITS_APART = 8  # of a vjp, for each thread: with fewer, threads read narrow stripes of memory

cdef inline bint has_pieces(Operation op) noexcept nogil:
    """Whether panels may be taken in Pieces."""
    return op == SOFTMAX or op == LOG_SOFTMAX or op == LOGSUMEXP


cdef inline bint is_vjp(Operation op) noexcept nogil:
    return op == SOFTMAX_VJP or op == LOG_SOFTMAX_VJP


cdef inline bint has_long_rows(Operation op, const Task *task, Py_ssize_t real_size) noexcept nogil:
    """Whether a row may be taken in pieces, and is worth it."""
    cdef Py_ssize_t least = 2 * PIECE_BYTES
    if is_vjp(op) and not is_plain_task(task, real_size):
        least = 16 * PIECE_BYTES  # both operands are gathered twice (measured)
    return (has_pieces(op) or is_vjp(op)) and task.n * real_size >= least


cdef inline Py_ssize_t rounds(Py_ssize_t count, Py_ssize_t at_once) noexcept nogil:
    return (count + at_once - 1) // at_once


cdef inline bint are_shared(Py_ssize_t units, Py_ssize_t pieces, int threads) noexcept nogil:
    """Whether threads are done sooner if all work on one unit after the other."""
    return threads > 1 and units * rounds(pieces, threads) < pieces * rounds(units, threads)


cdef inline bint has_shared_panels(Operation op, const Task *task, Py_ssize_t units, int threads,
                                   Py_ssize_t real_size) noexcept nogil:
    return (has_pieces(op) and task.n * real_size > BLOCK_BYTES
            and are_shared(units, rounds(task.n * real_size, BLOCK_BYTES), threads))


cdef inline bint has_shared_rows(Operation op, const Task *task, int threads,
                                 Py_ssize_t real_size) noexcept nogil:
    return (has_long_rows(op, task, real_size)
            and are_shared(task.outer * task.inner, rounds(task.n * real_size, PIECE_BYTES),
                           threads))


cdef inline bint shares_columns(const Task *task, Py_ssize_t units, int threads,
                                Py_ssize_t real_size) noexcept nogil:
    """Whether threads had so few neighbours each that a vjp's columns are divided instead."""
    cdef Py_ssize_t apart = UNITS_APART if task.x.element == REAL else 2 * UNITS_APART
    return (threads > 1 and units < apart * threads
            and task.n * real_size >= CHUNK_BYTES * threads)


cdef inline void merge_pieces(Table table, Partial *partials, Py_ssize_t pieces,
                              Py_ssize_t lanes) noexcept nogil:
    """Of one lane all pieces, to the first."""
    cdef Py_ssize_t piece, bits, depth = 0
    for piece in range(pieces):
        partials[depth * lanes] = partials[piece * lanes]
        depth += 1
        bits = piece
        while bits & 1:
            depth -= 1
            table.merge(&partials[(depth - 1) * lanes], &partials[depth * lanes],
                        &partials[(depth - 1) * lanes])
            bits >>= 1
    while depth > 1:
        depth -= 1
        table.merge(&partials[(depth - 1) * lanes], &partials[depth * lanes],
                    &partials[(depth - 1) * lanes])


cdef int unit_in_pieces(Table table, const Pieces *by, RangeFunction at_once, Operation op,
                        const Task *task, Py_ssize_t unit, Py_ssize_t block,
                        int threads) noexcept nogil:
    """at_once: where a sweep finds that the unit cannot be taken in pieces."""
    cdef Py_ssize_t lanes = by.lanes, pieces = rounds(task.n, by.blocks * block), piece, lane
    cdef double *start
    cdef double *maxima
    cdef double *exponents
    cdef Partial *partials
    cdef int missed = 0
    threads = <int>min(<Py_ssize_t>threads, pieces)
    # Zeros for the lanes that a unit has no rows for.
    start = <double *>calloc(lanes * (1 + pieces * (1 + by.blocks)), sizeof(double))
    partials = <Partial *>calloc(lanes * pieces, sizeof(Partial))
    if start == NULL or partials == NULL:
        free(start)
        free(partials)
        return -1
    maxima = start + lanes
    exponents = maxima + lanes * pieces
    for lane in range(lanes):
        start[lane] = -INFINITY
    if op == SOFTMAX and task.out.data == task.x.data:
        # In place a sweep that gives up would have overwritten some of x already.
        for piece in prange(pieces, num_threads=threads, schedule="static"):
            by.maxima(task, unit, piece, maxima + piece * lanes)
        for piece in range(pieces):
            for lane in range(lanes):
                start[lane] = max(start[lane], maxima[piece * lanes + lane])
        for lane in range(lanes):
            missed |= start[lane] == -INFINITY
    if not missed:
        for piece in prange(pieces, num_threads=threads, schedule="static"):
            missed |= not by.sweep(op, task, unit, piece, start, partials + piece * lanes,
                                   exponents)
    if not missed:
        for lane in prange(lanes, num_threads=min(threads, <int>lanes), schedule="static"):
            merge_pieces(table, partials + lane, pieces, lanes)
        for lane in range(lanes):
            missed |= partials[lane].max == -INFINITY and not is_vjp(op)
    if not missed:
        if op != LOGSUMEXP:
            for piece in prange(pieces, num_threads=threads, schedule="static"):
                by.write(op, task, unit, piece, partials, exponents)
        by.finish(op, task, unit, partials)
    free(start)
    free(partials)
    return at_once(task, unit, unit + 1) if missed else 0


cdef int some_in_pieces(Table table, const Pieces *by, RangeFunction at_once, Operation op,
                        const Task *task, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t block,
                        int threads) noexcept nogil:
    cdef Py_ssize_t unit
    cdef int failed = 0
    for unit in range(begin, end):
        failed |= unit_in_pieces(table, by, at_once, op, task, unit, block, threads)
    return failed


cdef int units_in_pieces(Table table, const Pieces *by, RangeFunction at_once, Operation op,
                         const Task *task, Py_ssize_t units, Py_ssize_t real_size,
                         int threads) noexcept nogil:
    """All units, each by all threads or each thread with its own."""
    cdef Py_ssize_t block = BLOCK_BYTES // real_size
    cdef int failed = 0, part
    if threads > 1:
        mark_openmp_used()
    if threads == 1 or are_shared(units, rounds(task.n, by.blocks * block), threads):
        return some_in_pieces(table, by, at_once, op, task, 0, units, block, threads)
    for part in prange(threads, num_threads=threads, schedule="static"):
        failed |= some_in_pieces(table, by, at_once, op, task, units * part // threads,
                                 units * (part + 1) // threads, block, 1)
    return failed


cdef inline void add_pieces(double *sums, Py_ssize_t pieces, Py_ssize_t columns) noexcept nogil:
    """As merge_pieces, of all columns."""
    cdef Py_ssize_t piece, bits, depth = 0
    for piece in range(pieces):
        if depth != piece:
            memcpy(sums + depth * columns, sums + piece * columns, columns * sizeof(double))
        depth += 1
        bits = piece
        while bits & 1:
            depth -= 1
            add_last(sums + (depth - 1) * columns, columns)
            bits >>= 1
    while depth > 1:
        depth -= 1
        add_last(sums + (depth - 1) * columns, columns)


cdef inline void add_last(double *sums, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(columns):
        sums[k] += sums[columns + k]


cdef int products_in_pieces(const ProductPieces *by, Operation op, const Task *task,
                            Py_ssize_t chunk, int threads) noexcept nogil:
    """Both sweeps of a vjp by threads that have columns each, rather than rows."""
    cdef Py_ssize_t pieces = rounds(task.n, chunk), piece, group
    cdef Py_ssize_t groups = task.outer * rounds(task.inner, by.columns)
    cdef double *sums = <double *>calloc(pieces * by.columns, sizeof(double))
    if sums == NULL:
        return -1
    threads = <int>min(<Py_ssize_t>threads, pieces)
    mark_openmp_used()
    for group in range(groups):
        for piece in prange(pieces, num_threads=threads, schedule="static"):
            by.sum(op, task, group, piece, sums + piece * by.columns)
        add_pieces(sums, pieces, by.columns)
        for piece in prange(pieces, num_threads=threads, schedule="static"):
            by.write(op, task, group, piece, sums)
    free(sums)
    return 0
