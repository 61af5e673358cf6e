// Implicit-GEMM convolution on integer tensor cores, 8-bit activations (u8 or s8) x s8 weights -> s32.
//
//   M = batch * out_h * out_w (pixels)   N = output channels   K = kernel taps * padded input channels
//
// Activations: NHWC, channels padded to a multiple of 16 (the padding's weights are zero).
// Weights: (N rounded up to BN, K rounded up to BK), K contiguous, in the order (tap, channel), zero filled.
// A block of 256 threads (8 warps) owns a BM x BN tile of the output; K goes by in slices of BK = 64 bytes through
// STAGES buffers of shared memory filled by cp.async while the tensor cores work on the one before.
// Shared rows are 64 bytes = 4 chunks of 16; chunk c of row r lies at c ^ ((r >> 1) & 3), so that the eight rows of an
// ldmatrix touch all 32 banks once.
//
// Shared memory: STAGES * (BM + BN) * 64 bytes.  Grid: (ceil(M / BM), N rounded up / BN).
#include "epilogue.cuh"
#include <ptx.cuh>  // by path, so that the emulation can put its own in front

namespace qir {

struct Conv {
    const u8* x;
    const s8* w;
    s32 batch, height, width, channels;  // channels: padded, a multiple of 16
    s32 out_height, out_width, out_channels;
    s32 kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    s32 k_padded;                        // bytes of a weight row
    s32 pad_value;                       // the activation's zero point
    s32 pixel_stride;                    // bytes between pixels: `channels`, or more in a wider buffer
};

constexpr int BK = 64;
constexpr int CHUNK = 16;
constexpr int THREADS = 256;

__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * BK + ((chunk ^ ((row >> 1) & 3)) * CHUNK);
}

// One thread's share of filling the A tile: rows thread/4, thread/4 + 64, ... and always the same chunk column.
template <int BM>
struct Gather {
    static constexpr int ROWS = BM * 4 / THREADS;
    const u8* image[ROWS];
    int y[ROWS], x[ROWS];
    bool live[ROWS];
    int column;

    __device__ __forceinline__ Gather(const Conv& p, s64 first_row, int thread) : column(thread & 3) {
        const s64 pixels = s64(p.batch) * p.out_height * p.out_width;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const s64 m = first_row + (thread >> 2) + i * (THREADS / 4);
            live[i] = m < pixels;
            const s64 inside = live[i] ? m : 0;
            const int ox = int(inside % p.out_width);
            const s64 rest = inside / p.out_width;
            y[i] = int(rest % p.out_height) * p.stride_h - p.pad_top;
            x[i] = ox * p.stride_w - p.pad_left;
            image[i] = p.x + (rest / p.out_height) * p.height * p.width * p.pixel_stride;
        }
    }

    __device__ __forceinline__ void fill(const Conv& p, u8* tile, int slice, int thread) const {
        const int per_tap = p.channels / CHUNK;
        const int chunk = slice * (BK / CHUNK) + column;
        const int tap = chunk / per_tap;
        const int channel = (chunk - tap * per_tap) * CHUNK;
        const int ky = tap / p.kernel_w;
        const bool real = ky < p.kernel_h;
        const int dy = ky * p.dilation_h, dx = (tap - ky * p.kernel_w) * p.dilation_w;
        const u32 splat = u32(u8(p.pad_value)) * 0x01010101u;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = (thread >> 2) + i * (THREADS / 4);
            u8* to = tile + swizzled(row, column);
            const int iy = y[i] + dy, ix = x[i] + dx;
            if (real && live[i] && iy >= 0 && iy < p.height && ix >= 0 && ix < p.width)
                copy16_async(to, image[i] + (s64(iy) * p.width + ix) * p.pixel_stride + channel);
            else
                *reinterpret_cast<uint4*>(to) = make_uint4(splat, splat, splat, splat);
        }
    }
};

template <int BN>
__device__ __forceinline__ void fill_weights(const Conv& p, s8* tile, int first_channel, int slice, int thread) {
#pragma unroll
    for (int i = 0; i < BN * 4 / THREADS; ++i) {
        const int row = (thread >> 2) + i * (THREADS / 4);
        copy16_async(tile + swizzled(row, thread & 3),
                     p.w + s64(first_channel + row) * p.k_padded + slice * BK + (thread & 3) * CHUNK);
    }
}

// BM, BN: tile.  WARPS_M x WARPS_N warps share it (8 in all); each owns BM/WARPS_M x BN/WARPS_N.
template <bool x_signed, int BM, int BN, int WARPS_M, int STAGES>
__global__ void __launch_bounds__(THREADS) conv_igemm(Conv p, Epilogue e) {
    constexpr int WARPS_N = 8 / WARPS_M;
    constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
    constexpr int TM = WM / 16, TN = WN / 8;
    static_assert(WM % 16 == 0 && WN % 16 == 0 && BM % 64 == 0 && BN % 64 == 0, "tile");
    QIR_DYNAMIC_SHARED(u8, shared);
    u8* a_tiles = shared;
    s8* b_tiles = reinterpret_cast<s8*>(shared + STAGES * BM * BK);

    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int warp_m = (warp % WARPS_M) * WM, warp_n = (warp / WARPS_M) * WN;
    const s64 first_row = s64(blockIdx.x) * BM;
    const int first_channel = blockIdx.y * BN;
    const Gather<BM> gather(p, first_row, thread);
    const int slices = p.k_padded / BK;

    s32 acc[TM][TN][4] = {};

#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < slices) {
            gather.fill(p, a_tiles + s * BM * BK, s, thread);
            fill_weights<BN>(p, b_tiles + s * BN * BK, first_channel, s, thread);
        }
        copy_commit();
    }

    for (int slice = 0; slice < slices; ++slice) {
        copy_wait<STAGES - 2>();
        __syncthreads();  // slice is there, and everyone has done with the buffer that is filled next
        const int next = slice + STAGES - 1;
        if (next < slices) {
            gather.fill(p, a_tiles + (next % STAGES) * BM * BK, next, thread);
            fill_weights<BN>(p, b_tiles + (next % STAGES) * BN * BK, first_channel, next, thread);
        }
        copy_commit();
        const u8* a_tile = a_tiles + (slice % STAGES) * BM * BK;
        const s8* b_tile = b_tiles + (slice % STAGES) * BN * BK;
#pragma unroll
        for (int k = 0; k < BK / 32; ++k) {
            u32 a[TM][4], b[TN / 2][4];
#pragma unroll
            for (int i = 0; i < TM; ++i)  // matrices: rows 0-7 | 8-15 of k bytes 0-15, then of 16-31
                load_matrix_x4(a[i], a_tile + swizzled(warp_m + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < TN / 2; ++j)  // matrices: k bytes 0-15 | 16-31 of channels 0-7, then of 8-15
                load_matrix_x4(b[j], b_tile + swizzled(warp_n + j * 16 + (lane & 7) + ((lane >> 4) << 3),
                                                       k * 2 + ((lane >> 3) & 1)));
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j)
                    mma_16x8x32<x_signed>(acc[i][j], a[i], b[j / 2][(j & 1) * 2], b[j / 2][(j & 1) * 2 + 1]);
        }
    }

    const s64 pixels = s64(p.batch) * p.out_height * p.out_width;
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j)
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const s64 m = first_row + warp_m + i * 16 + (lane >> 2) + (q >> 1) * 8;
                const int c = first_channel + warp_n + j * 8 + (lane & 3) * 2 + (q & 1);
                if (m < pixels && c < p.out_channels) store(e, finish(e, acc[i][j][q], m, c), m, c);
            }
}

}  // namespace qir
