"""Positions of the numbers in a step's record; shared by the planner, which writes them, and the kernels."""

from __future__ import annotations

STEP_WIDTH = 48
# all steps
(
    OP,
    CHUNKS,
    ROWS,
    COLUMNS,
    ROW_CHUNKS,
    COLUMN_CHUNKS,
    BLOCK_ROWS,
    BLOCK_COLUMNS,
    LD,
    EPILOGUE_FIRST,
    EPILOGUE_COUNT,
) = range(11)
# window steps: GEMM, DEPTHWISE, POOL
(
    X, X_STRIDE, CHANNELS, IN_H, IN_W, OUT_H, OUT_W, STRIDE_H, STRIDE_W, PAD_TOP, PAD_LEFT, KERNEL_H, KERNEL_W,
    DILATION_H, DILATION_W, PAD_ROW, X_DTYPE, WEIGHTS, SEGMENTS, SEGMENT_COUNT, GROUPS, PANELS, PANEL_COUNT,
    PATCH_W, PACKED4, IMAGES, POOL_MAX, WINOGRAD_TILES, PATCH_ELEMENT, CROSS_MULTIPLIED,
    INIT,
) = range(16, 47)  # fmt: skip
# movement steps: SHAPE and strides are refs to int64 vectors of RANK entries, strides in bytes, outermost first
(
    M_SRC,
    M_DST,
    M_SHAPE,
    M_SRC_STRIDES,
    M_DST_STRIDES,
    M_DTYPE,
    M_SCALE,
    M_ZERO_POINT,
    M_LO,
    M_HI,
    RANK,
    M_INDICES,
    M_OTHER,
    M_OTHER_STRIDES,
    MASKED,
) = range(16, 31)
# normalization: a row's mean is taken off or not, its constants repeat every N_PERIOD rows, one for each element or row
N_CENTRE, N_EXTRA, N_EPSILON, N_SHIFT, N_OUT, N_PERIOD, N_STEP = range(31, 38)

(
    GEMM,
    DEPTHWISE,
    POOL,
    POINTWISE,
    QUANTIZE,
    DEQUANTIZE,
    COPY,
    GATHER,
    WINOGRAD,
    DEPTHWISE_ROWS,
    SOFTMAX,
    INTERPOLATE,
    PRODUCT,
    NORMALIZE,
) = range(14)

# An epilogue is a list of records of EPILOGUE_WIDTH numbers, one a micro-operation; planner/encoder.py writes them.
EPILOGUE_WIDTH = 16
LOAD, STORE, RESCALE, ADD, MULTIPLY, LOOKUP, CLAMP, BIAS, RESCALE_STORE, ADD_MEMORY, FINISH = range(11)
KIND, TARGET, SOURCE, OPERAND = range(4)
"""All records: what it is, the registers written and read, and a second register or an address."""
STRIDE, DTYPE, DIVISOR, MODULUS, ONE_COLUMN = range(4, 9)
"""LOAD and STORE (the first two): bytes between rows; row r is row (r // divisor) % modulus of the view (0: without
end); whether the one column is repeated."""
CONSTANT, SHIFT, ZERO_POINT, LO, HI, MODE, COLUMNS_GIVEN, ROWS_GIVEN, BYTES, BYTES_STRIDE, PRE_SHIFTED, PRE_SHIFT = (
    range(4, 16)
)
"""RESCALE, multipliers being the operand: columns and rows of the constants; the 8-bit target of RESCALE_STORE; whether
there are left shifts, and where."""
GENERIC = 1
"""Mode of RESCALE and ADD: full int64 arithmetic, element by element."""
(
    A_MULTIPLIER, B_MULTIPLIER, SUM_CONSTANT, SUM_SHIFT, SUM_ZERO_POINT, SUM_LO, SUM_HI, SUM_MODE, SUMMAND_STRIDE,
    SUMMAND_DTYPE, SUM_BYTES, SUM_BYTES_STRIDE,
) = range(4, 16)  # fmt: skip
"""ADD, and ADD_MEMORY whose second operand comes from memory and whose sum, where the last is not 0, goes to 8 bits."""
(
    MULTIPLIER, PRODUCT_SHIFT, A_ZERO_POINT, B_ZERO_POINT, PRODUCT_ZERO_POINT, PRODUCT_LO, PRODUCT_HI,
) = range(4, 11)  # fmt: skip
"""MULTIPLY."""
LEAST, PER_COLUMN, ENTRIES = range(4, 7)
"""LOOKUP, the table of int32 being the operand: its first input, whether each column has one, entries of one."""
CLAMP_LO, CLAMP_HI = range(4, 6)
"""CLAMP."""
(
    PARAMETERS, ENDING, SUMMAND, SUMMAND_16_STRIDE, WIDE, WIDE_STRIDE, NARROW, NARROW_STRIDE,
) = range(6, 14)  # fmt: skip
"""FINISH, after CONSTANT and SHIFT, multipliers being the operand: the numbers of what follows, which end (finish.py),
a summand of 16 bits, the targets of 16 and of 8 bits; a stride of 0: there is none."""
U8, I8, U16, I16, I32 = range(5)
DTYPE_CODE = {"uint8": U8, "int8": I8, "uint16": U16, "int16": I16, "int32": I32}

# a thread's scratch: registers, row offsets, tap addresses, an unpacked int4 panel block, the patch
REGISTERS = 5
REGISTER_BYTES = 16384
AT_REGISTERS = 256
AT_ROWS = AT_REGISTERS + REGISTERS * REGISTER_BYTES
MAX_PATCH_ROWS = 8192
AT_TAPS = AT_ROWS + 8 * MAX_PATCH_ROWS
MAX_TAPS = 4096
AT_PANEL = AT_TAPS + 8 * MAX_TAPS
OFFSET_MASK = (1 << 48) - 1
COUNTER_BYTES = 128
"""Per step: the next chunk, and a cache line further the number of chunks done."""
GATE_BYTES = 128
AT_INSIDE = 64
"""In a plan's gate: the number of helpers inside, a cache line away from what they only read."""
