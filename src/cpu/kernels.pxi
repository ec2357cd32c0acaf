"""Kernels for one CPU target and one real type; the door reaches them through a table."""

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, NAN, fabs, fma, isnan, nearbyint
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memset

include "task.pxi"
include "lanes.pxi"
include "exp_log.pxi"
include "confidence.pxi"
include "sums.pxi"
include "results.pxi"
include "batch.pxi"
include "columns.pxi"
include "row.pxi"
include "vertical.pxi"
include "elementwise.pxi"
include "halves.pxi"
include "half_products.pxi"

cdef KernelTable table

include "instances.pxi"

fill_tables()
table.panel_columns = UNIT * VLEN
table.anchor = ANCHOR
table.piece_max = piece_max
table.sweep_piece = sweep_piece
table.merge = merge
table.write_piece = write_piece
table.finish_row = finish_row
table.sigmoid = sigmoid
table.log_sigmoid = log_sigmoid
table.binary_cross_entropy = binary_cross_entropy
table.sum = sum_of
table.widen = widen
table.narrow = narrow
table.softmax_with_top = softmax_rows_with_top
table.top = top
table.entropy = entropy

kernel_table = PyCapsule_New(&table, "pysoftmax.kernel_table", NULL)
