// The kernels. A module is this file with one set of definitions, made by
// pysoftmax/backends/cupy.py and compiled when it is first needed:
//
//   ELEMENT_BITS, BFLOAT16   the element type; PYSOFTMAX_DOUBLE says whether `real` is double
//   OPERATION                one of task.cuh
//   GENERAL                  1: with a temperature other than 1
//   DENSE                    1: a loss in which every class has a target weight of its own
//   FAST                     1: exponentials of rows of 16-bit elements by the device's own instruction
// and the kernel:
//   SHORT_ROWS               with WIDTH and LANE_ROWS
//   LONG_ROWS                with CLUSTER_BLOCKS
//   STREAMED_ROWS
//   NARROW_COLUMNS           with COLUMNS
//   WIDE_COLUMNS             with COLUMNS
//   ELEMENTWISE
//   MEANS                    with LABELS_OF_A_BLOCK

#ifndef CLUSTER_BLOCKS
#define CLUSTER_BLOCKS 1
#endif
#ifndef FAST
#define FAST 0
#endif
#if defined(NARROW_COLUMNS) || defined(WIDE_COLUMNS)
#define ALONG_COLUMNS 1
#else
#define ALONG_COLUMNS 0
#endif

#include "device.cuh"
#include "constants.h"
#include "exp_log.cuh"
#if defined(ELEMENTWISE)
#include "elementwise.cuh"
#elif defined(MEANS)
#include "means.cuh"
#else
#include "task.cuh"
#include "sums.cuh"
#include "results.cuh"
#include "row.cuh"
#if ALONG_COLUMNS
#include "vertical.cuh"
#endif
#endif
