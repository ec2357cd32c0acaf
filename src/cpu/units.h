/* The units of the numeric contract (docs/numerics.md), in bytes of one row. */
#ifndef PYSOFTMAX_UNITS_H
#define PYSOFTMAX_UNITS_H

#define LANE_ROW_BYTES 256
#define CHUNK_BYTES (8 * LANE_ROW_BYTES)
#define BLOCK_BYTES (4 * CHUNK_BYTES)
/* What one thread of a CPU takes of a row that several share: 32 blocks. */
#define PIECE_BYTES (32 * BLOCK_BYTES)

#endif
