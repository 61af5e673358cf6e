"""Positions of the numbers in a step's record; shared by the planner, which writes them, and the kernels."""

from __future__ import annotations

STEP_WIDTH = 48
# all steps
(OP, CHUNKS, ROWS, COLUMNS, ROW_CHUNKS, COLUMN_CHUNKS, BLOCK_ROWS, BLOCK_COLUMNS, LD, TAIL_FIRST, TAIL_COUNT) = range(
    11
)
# window steps: GEMM, DEPTHWISE, POOL
(
    X, X_STRIDE, CHANNELS, IN_H, IN_W, OUT_H, OUT_W, STRIDE_H, STRIDE_W, PAD_TOP, PAD_LEFT, KERNEL_H, KERNEL_W,
    DILATION_H, DILATION_W, PAD_ROW, X_DTYPE, WEIGHTS, SEGMENTS, SEGMENT_COUNT, GROUPS, PANELS, PANEL_COUNT,
    PATCH_W, PACKED4, IMAGES, POOL_MAX, WINOGRAD_TILES, PATCH_ELEMENT, CROSSWISE,
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

# tail records
TAIL_WIDTH = 16
LOAD, STORE, REQUANTIZE, ADD, MUL, TABLE, CLAMP, BIAS, REQUANTIZE_STORE, ADD_MEMORY, FINISH = range(11)
T_KIND, T_DST, T_SRC, T_OTHER = range(4)
GENERIC = 1
"""Mode of REQUANTIZE and ADD: full int64 arithmetic, element by element."""
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
DOOR_BYTES = 128
AT_INSIDE = 64
"""In a plan's door: the number of helpers inside, a cache line away from what they only read."""
