// What the tensor-core convolutions share: the geometry of an implicit GEMM, and filling a tile of its A operand.
#pragma once
#include "program.cuh"

namespace qir {

struct Conv {
    const u8* x;
    const s8* w;
    s32 batch, height, width, channels;  // channels: padded, a multiple of CELL
    s32 out_height, out_width, out_channels;
    s32 kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    s32 k_padded;                        // k's of a weight row
    s32 pad_value;                       // the activation's zero point
    s32 pixel_stride;                    // bytes between pixels: `channels`, or more in a wider buffer
    s32 split_slices;                    // slices of K that one block takes
    s64 split_step;                      // elements between the outputs of two splits
};

constexpr int CHUNK = 16;

// Byte of chunk `chunk` of row `row` in a tile whose rows are CHUNKS chunks of 16 bytes. Chunks change places so that the
// eight rows of an ldmatrix touch all 32 banks once; with 8 chunks it is the 128-byte swizzle of wgmma and TMA.
template <int CHUNKS>
__device__ __forceinline__ int swizzled(int row, int chunk) {
    static_assert(CHUNKS == 4 || CHUNKS == 8, "rows of 64 or 128 bytes");
    const int turn = CHUNKS == 4 ? (row >> 1) & 3 : row & 7;
    return row * (CHUNKS * CHUNK) + ((chunk ^ turn) * CHUNK);
}

// One thread's share of filling the A tile (BM rows of CHUNKS chunks) among COUNT threads: rows thread / CHUNKS,
// + COUNT / CHUNKS, ... and always the same chunk column.
template <int BM, int CELL, int CHUNKS, int COUNT>
struct Gather {
    static constexpr int STEP = COUNT / CHUNKS;
    static constexpr int ROWS = BM / STEP;
    s32 origin[ROWS];      // where the window of a row's pixel begins, in cells from p.x (before it, in the padding)
    int y[ROWS], x[ROWS];  // the same, of the image; y far outside for a row past the last pixel
    int column;

    __device__ __forceinline__ Gather(const Conv& p, s64 first_row, int thread) : column(thread % CHUNKS) {
        const s64 pixels = s64(p.batch) * p.out_height * p.out_width;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const s64 m = first_row + thread / CHUNKS + i * STEP;
            const bool live = m < pixels;
            const s64 inside = live ? m : 0;
            const int ox = int(inside % p.out_width);
            const s64 rest = inside / p.out_width;
            const int top = int(rest % p.out_height) * p.stride_h - p.pad_top;
            x[i] = ox * p.stride_w - p.pad_left;
            y[i] = live ? top : -(1 << 30);
            origin[i] = s32((rest / p.out_height * p.height + top) * p.width + x[i]) * (p.pixel_stride / CELL);
        }
    }

    __device__ __forceinline__ void fill(const Conv& p, u8* tile, int slice, int thread) const {
        const u32 splat = u32(u8(p.pad_value)) * 0x01010101u;
#pragma unroll
        for (int part = 0; part < CHUNK / CELL; ++part) {
            const int cell = (slice * CHUNKS + column) * (CHUNK / CELL) + part;
            const int per_tap = p.channels / CELL;
            const int tap = CELL == 4 ? cell : cell / per_tap;
            const int channel = CELL == 4 ? 0 : (cell - tap * per_tap) * CELL;
            const int ky = tap / p.kernel_w;
            const bool real = ky < p.kernel_h;
            const int dy = ky * p.dilation_h, dx = (tap - ky * p.kernel_w) * p.dilation_w;
            const s32 step = (dy * p.width + dx) * (p.pixel_stride / CELL) + channel / CELL;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const int row = thread / CHUNKS + i * STEP;
                u8* to = tile + swizzled<CHUNKS>(row, column) + part * CELL;
                const int iy = y[i] + dy, ix = x[i] + dx;
                const bool inside = real && u32(iy) < u32(p.height) && u32(ix) < u32(p.width);
                const u8* from = p.x + s64(origin[i] + step) * CELL;
                if (CELL == 4) {
                    if (inside) copy4_async(to, from);
                    else store4_shared(to, splat);
                } else {
                    if (inside) copy16_async(to, from);
                    else store16_shared(to, make_uint4(splat, splat, splat, splat));
                }
            }
        }
    }
};

// Words of the staging tile between two rows; quads of four words are rotated so that reads of 16 channels by
// consecutive threads fall on different banks.
template <int BN>
__device__ __forceinline__ int staged(int row, int column) {
    const int chunk = column >> 4, quad = (((column >> 2) & 3) + (chunk >> 1)) & 3;
    return row * (BN + 8) + chunk * 16 + quad * 4 + (column & 3);
}

// Two columns (the first one even) of a row of the staging tile, as one word of 8 bytes: no two lanes in a bank.
template <int BN>
__device__ __forceinline__ void stage_pair(s32* stage, int row, int column, s32 a, s32 b) {
    uint2 v;
    v.x = u32(a), v.y = u32(b);
    *reinterpret_cast<uint2*>(stage + staged<BN>(row, column)) = v;
}

// W columns of a row of the staging tile, from `column` (a multiple of W) on.
template <int BN, int W>
__device__ __forceinline__ void read_staged(s32 (&v)[W], const s32* stage, int row, int column) {
#pragma unroll
    for (int q = 0; q < W / 4; ++q) {
        Word w;
        w.bits = *reinterpret_cast<const uint4*>(stage + staged<BN>(row, column + q * 4));
#pragma unroll
        for (int r = 0; r < 4; ++r) v[q * 4 + r] = w.as_s32[r];
    }
}

// One by one: what has no words.
template <int BN>
__device__ __forceinline__ void finish_staged_singly(const Epilogue& e, const s32* stage, int row, int column, s64 m, int c,
                                                     int channels) {
    s32 v[16];
    read_staged<BN, 16>(v, stage, row, column);
    finish_singly<false>(e, v, m, c, channels);
}

}  // namespace qir
