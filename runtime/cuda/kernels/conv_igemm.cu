// Implicit-GEMM convolution on integer tensor cores, 8-bit activations (u8 or s8) x s8 (or packed s4) weights -> s32.
//
//   M = batch * out_h * out_w (pixels)   N = output channels   K = kernel taps * padded input channels
//
// Activations: NHWC. CELL = 16: channels padded to a multiple of 16 (the padding's weights are zero), one 16-byte copy
// a chunk. CELL = 4: up to 4 channels padded to 4, a chunk gathers four taps (a first layer's K is 9 * 4, not 9 * 16).
// Weights: (N rounded up to BN, K rounded up to BK), K contiguous, in the order (tap, channel), zero filled.
// PACKED: two to a byte; word t of a row's k-step (32 k's) holds k = 4t + i in nibble 2i and k = 16 + 4t + i in nibble
// 2i + 1, so that one 32-bit load of lane t is its whole B fragment  [eight to a word: HAWQ-V3 III-F].
// FOUR: activations of four bits, each in a byte as everywhere, put together to words of eight on the way into the native
// four-bit products of sm_75 to sm_89; the order of k's is that of the packed weights, which go in as they are.
// A block of 256 threads (8 warps) owns a BM x BN tile of the output; K goes by in slices of BK = 64 bytes through
// STAGES buffers of shared memory filled by cp.async while the tensor cores work on the one before.
// Shared rows are 64 bytes = 4 chunks of 16; chunk c of row r lies at c ^ ((r >> 1) & 3), so that the eight rows of an
// ldmatrix touch all 32 banks once.  Packed rows are 32 bytes; their k-steps change places in rows 4-7 of eight.
// Accumulators leave through shared memory, 16 channels of a pixel to a thread (see epilogue.cuh).
// Split K: block z takes `split_slices` slices and writes its sums at z * split_step; finish_splits adds them up.
//
// Shared memory: STAGES * (BM + BN) * 64 bytes (BN * 32 if packed).  Grid: (ceil(M / BM), N rounded up / BN, splits).
#include "implicit_gemm.cuh"

namespace qir {

constexpr int BK = 64;
constexpr int THREADS = 256;

__device__ __forceinline__ int swizzled_packed(int row, int k_step) {
    return row * (BK / 2) + ((k_step ^ ((row >> 2) & 1)) * CHUNK);
}

template <int BN, bool PACKED>
__device__ __forceinline__ void fill_weights(const Conv& p, s8* tile, int first_channel, int slice, int thread) {
    constexpr int CHUNKS = PACKED ? 2 : 4;  // of a row
#pragma unroll
    for (int i = thread; i < BN * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const s64 line = s64(first_channel + row) * (PACKED ? p.k_padded / 2 : p.k_padded);
        copy16_async(tile + (PACKED ? swizzled_packed(row, chunk) : swizzled<4>(row, chunk)),
                     p.w + line + slice * (CHUNKS * CHUNK) + chunk * CHUNK);
    }
}

// The nibbles 0, 2, 4, 6 of a word as four signed bytes.
__device__ __forceinline__ u32 widen(u32 word) {
    return ((((word & 0x0f0f0f0fu) ^ 0x08080808u) | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

// Bytes of four bits: the even nibbles of the result from `even`, the odd ones from `odd`.
__device__ __forceinline__ u32 interleaved(u32 even, u32 odd) { return (even & 0x0f0f0f0fu) | (odd << 4 & 0xf0f0f0f0u); }

// One slice (64 k's) of a warp's share by native four-bit products.
template <bool x_signed, int TM, int TN>
__device__ __forceinline__ void multiply_nibbles(s32 (&acc)[TM][TN][4], const u8* a_tile, const s8* b_tile, int warp_m,
                                                 int warp_n, int lane) {
    u32 a[TM][4];
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            u32 bytes[4];  // rows 0-7 | 8-15 of k bytes 0-15, then of 16-31
            load_matrix_x4(bytes, a_tile + swizzled<4>(warp_m + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
            a[i][k * 2] = interleaved(bytes[0], bytes[2]), a[i][k * 2 + 1] = interleaved(bytes[1], bytes[3]);
        }
#pragma unroll
    for (int j = 0; j < TN; ++j) {
        u32 b[2];
#pragma unroll
        for (int k = 0; k < 2; ++k)
            b[k] = *reinterpret_cast<const u32*>(b_tile + swizzled_packed(warp_n + j * 8 + (lane >> 2), k) +
                                                 (lane & 3) * 4);
#pragma unroll
        for (int i = 0; i < TM; ++i) mma_16x8x64<x_signed>(acc[i][j], a[i], b[0], b[1]);
    }
}

// What is staged of a tile: 16 rows of each of WARPS_M warps, WM rows apart in the output, W channels to a thread.
template <u32 P, int BN, int W, int WARPS_M, int WM>
__device__ __forceinline__ void finish_tile(const Conv& p, const Epilogue& e, const s32* stage, s64 first, s64 pixels,
                                            u8* output) {
    constexpr int LANES = BN / W, STEP = THREADS / LANES, TASKS = WARPS_M * 16;
    const int column = threadIdx.x % LANES * W, c = blockIdx.y * BN + column;  // the same for all rows of a thread
    if (c >= p.out_channels) return;
    const LineConstants<P, W> constants(e, c);
#pragma unroll 1
    for (int row = threadIdx.x / LANES; row < TASKS; row += STEP) {
        const s64 m = first + (row >> 4) * WM + (row & 15);
        if (m >= pixels) return;
        Words<W> r;
        load_line<P, W>(e, r, m * e.residual_stride + e.residual_offset + c);
        s32 v[W];
        read_staged<BN, W>(v, stage, row, column);
        finish_line<P, W>(e, constants, r, v, output, m * e.output_stride + e.output_offset + c,
                          m * e.second_stride + e.second_offset + c);
    }
}

// BM, BN: tile.  WARPS_M x WARPS_N warps share it (8 in all); each owns BM/WARPS_M x BN/WARPS_N.
template <bool x_signed, int CELL, bool PACKED, int BM, int BN, int WARPS_M, int STAGES, bool FOUR, u32 P = GENERAL>
__global__ void __launch_bounds__(THREADS, 1) conv_igemm(Conv p, Epilogue e) {
    constexpr int WARPS_N = 8 / WARPS_M;
    constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
    constexpr int TM = WM / 16, TN = WN / 8;
    constexpr int B_BYTES = PACKED ? BN * BK / 2 : BN * BK;
    static_assert(WM % 16 == 0 && WN % 16 == 0 && BM % 64 == 0, "tile");
    static_assert(WARPS_M * 16 * (BN + 8) * 4 <= STAGES * (BM * BK + B_BYTES), "staging");
    QIR_DYNAMIC_SHARED(u8, shared);
    u8* a_tiles = shared;
    s8* b_tiles = reinterpret_cast<s8*>(shared + STAGES * BM * BK);

    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int warp_m = (warp % WARPS_M) * WM, warp_n = (warp / WARPS_M) * WN;
    const s64 first_row = s64(blockIdx.x) * BM;
    const int first_channel = blockIdx.y * BN;
    const Gather<BM, CELL, 4, THREADS> gather(p, first_row, thread);
    const int begin = blockIdx.z * p.split_slices;
    const int left = p.k_padded / BK - begin, slices = left < p.split_slices ? left : p.split_slices;

    s32 acc[TM][TN][4];  // begins as the bias of its channels
#pragma unroll
    for (int j = 0; j < TN; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int c = first_channel + warp_n + j * 8 + (lane & 3) * 2 + i;
            const s32 bias = e.bias && c < p.out_channels ? e.bias[c] : 0;
#pragma unroll
            for (int row = 0; row < TM; ++row) acc[row][j][i] = acc[row][j][i + 2] = bias;
        }

#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < slices) {
            gather.fill(p, a_tiles + s * BM * BK, begin + s, thread);
            fill_weights<BN, PACKED>(p, b_tiles + s * B_BYTES, first_channel, begin + s, thread);
        }
        copy_commit();
    }

    for (int slice = 0; slice < slices; ++slice) {
        copy_wait<STAGES - 2>();
        __syncthreads();  // slice is there, and everyone has done with the buffer that is filled next
        const int next = slice + STAGES - 1;
        if (next < slices) {
            gather.fill(p, a_tiles + (next % STAGES) * BM * BK, begin + next, thread);
            fill_weights<BN, PACKED>(p, b_tiles + (next % STAGES) * B_BYTES, first_channel, begin + next, thread);
        }
        copy_commit();
        const u8* a_tile = a_tiles + (slice % STAGES) * BM * BK;
        const s8* b_tile = b_tiles + (slice % STAGES) * B_BYTES;
        if constexpr (FOUR) {
            multiply_nibbles<x_signed, TM, TN>(acc, a_tile, b_tile, warp_m, warp_n, lane);
        } else {
#pragma unroll
            for (int k = 0; k < BK / 32; ++k) {
                u32 a[TM][4], b[TN][2];
#pragma unroll
                for (int i = 0; i < TM; ++i)  // matrices: rows 0-7 | 8-15 of k bytes 0-15, then of 16-31
                    load_matrix_x4(a[i], a_tile + swizzled<4>(warp_m + i * 16 + (lane & 15), k * 2 + (lane >> 4)));
                if (PACKED) {
#pragma unroll
                    for (int j = 0; j < TN; ++j) {
                        const u32 word = *reinterpret_cast<const u32*>(
                            b_tile + swizzled_packed(warp_n + j * 8 + (lane >> 2), k) + (lane & 3) * 4);
                        b[j][0] = widen(word), b[j][1] = widen(word >> 4);
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < TN; j += 2) {  // matrices: k bytes 0-15 | 16-31 of channels 0-7, then of 8-15
                        u32 four[4];
                        load_matrix_x4(four, b_tile + swizzled<4>(warp_n + j * 8 + (lane & 7) + ((lane >> 4) << 3),
                                                               k * 2 + ((lane >> 3) & 1)));
                        b[j][0] = four[0], b[j][1] = four[1], b[j + 1][0] = four[2], b[j + 1][1] = four[3];
                    }
                }
#pragma unroll
                for (int i = 0; i < TM; ++i)
#pragma unroll
                    for (int j = 0; j < TN; ++j) mma_16x8x32<x_signed>(acc[i][j], a[i], b[j][0], b[j][1]);
            }
        }
    }
    copy_wait<0>();

    const s64 pixels = s64(p.batch) * p.out_height * p.out_width;
    s32* stage = reinterpret_cast<s32*>(shared);
    u8* output = static_cast<u8*>(e.output);
    if (gridDim.z > 1) output += blockIdx.z * p.split_step * 4;
#pragma unroll
    for (int i = 0; i < TM; ++i) {  // 16 rows of every warp at a time
        __syncthreads();
#pragma unroll
        for (int j = 0; j < TN; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                stage_pair<BN>(stage, (warp % WARPS_M) * 16 + (lane >> 2) + half * 8, warp_n + j * 8 + (lane & 3) * 2,
                               acc[i][j][half * 2], acc[i][j][half * 2 + 1]);
        __syncthreads();
        const s64 first = first_row + i * 16;
        if (!has<P>(e, WORDS)) {
            for (int task = thread; task < WARPS_M * 16 * (BN / 16); task += THREADS) {
                const int row = task / (BN / 16), column = task % (BN / 16) * 16, c = first_channel + column;
                const s64 m = first + (row >> 4) * WM + (row & 15);
                if (m < pixels && c < p.out_channels)
                    finish_staged_singly<BN>(e, stage, row, column, m, c, p.out_channels);
            }
        } else if (has<P>(e, NARROW)) {
            finish_tile<P, BN, 16, WARPS_M, WM>(p, e, stage, first, pixels, output);
        } else {
            finish_tile<P, BN, 8, WARPS_M, WM>(p, e, stage, first, pixels, output);
        }
    }
}

// The sums of all splits, (splits, rows, padded columns), through the epilogue.
template <u32 P, int W>
__device__ __forceinline__ void finish_sums(const s32* sums, s32 splits, s64 rows, s32 channels, s32 pitch, const Epilogue& e) {
    const int chunks = (channels + W - 1) / W;
    QIR_FOR_EACH(i, rows * chunks) {
        const s64 m = i / chunks;
        const int c = int(i - m * chunks) * W;
        s32 v[W] = {};
        if (e.bias && has<P>(e, WORDS)) read_constants<W>(v, e.bias + c);
        for (int s = 0; s < splits; ++s) {
            s32 more[W];
            read_constants<W>(more, sums + (s * rows + m) * pitch + c);
#pragma unroll
            for (int j = 0; j < W; ++j) v[j] += more[j];
        }
        if (has<P>(e, WORDS)) {
            finish_pixel<P, W>(e, LineConstants<P, W>(e, c), v, m, c);
        } else {
#pragma unroll
            for (int j = 0; j < W; ++j)
                if (c + j < channels) store(e, finish(e, v[j], m, c + j), m, c + j);
        }
    }
}

template <u32 P = GENERAL>
__global__ void finish_splits(const s32* sums, s32 splits, s64 rows, s32 channels, s32 pitch, Epilogue e) {
    if (has<P>(e, NARROW)) finish_sums<P, 16>(sums, splits, rows, channels, pitch, e);
    else finish_sums<P, 8>(sums, splits, rows, channels, pitch, e);
}

}  // namespace qir
