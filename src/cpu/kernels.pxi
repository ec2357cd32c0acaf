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
include "vertical_long.pxi"
include "vertical_products.pxi"
include "elementwise.pxi"
include "halves.pxi"
include "half_products.pxi"

cdef KernelTable table

include "instances.pxi"

fill_tables()
table.panel_columns = UNIT * VLEN
table.row_pieces = Pieces(1, PIECE // BLOCK, row_maximum, sweep_row_piece, write_row_piece, finish_row)
table.panel_pieces = Pieces(UNIT * VLEN, 1, panel_maxima, sweep_panel_piece, write_panel_piece,
                            finish_panel)
table.product_pieces = ProductPieces(RUN_OF_REALS * VLEN, sum_product_piece, write_product_piece)
table.merge = merge
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
