// Implicit-GEMM convolution on sm_90a: warpgroup matrix products (wgmma) fed by warps that do nothing else.
//
// The GEMM, its operands and its epilogue are those of conv_igemm.cu, with 8-bit weights and CELL = 16. A block of 320
// threads owns a 128 x BN tile of the output; K goes by in slices of 128 bytes through STAGES buffers of shared memory.
//   warps 0-3, 4-7  two warpgroups multiply: 64 rows each, wgmma m64 n(BN) k32, accumulators in registers
//   warps 8, 9      gather the rows of A by cp.async, and ask for the whole B tile by one bulk copy
// Two barriers a buffer pass it on: `full` (the producers' arrivals, after their part is visible to the async proxy, and
// the bytes of B) and `empty` (each multiplying warp, once the products that read it are done).
// Both tiles have rows of 128 bytes with the 128-byte swizzle: chunk c of row r lies at c ^ (r & 7)   [PTX ISA, wgmma
// shared memory layouts, K-major].
// Weights come packed so: for each BN channels and each slice one tile of BN * 128 bytes, swizzled, as it is wanted.
// Accumulators begin as the bias and leave through shared memory, a warp by itself: its 16 rows, 16 channels of a pixel to
// a thread, always the same channels, so that their multipliers and shifts stay in registers.
// Where BN is 16 or 32 they are finished where they are: channels are dealt to the columns of a tile so that a lane has
// several consecutive ones.
// Split K: as in conv_igemm.cu.
//
// conv_wgmma_tma: a block of 288 threads; one thread asks for both tiles (see there).
//
// Shared memory: STAGES * (128 + BN) * 128 bytes, two barriers a stage, and room to align to 1024.
// Grid: (ceil(M / 128), N rounded up / BN, splits).  BN <= 128: two blocks a multiprocessor, so that one multiplies while
// the other finishes.
#include "implicit_gemm.cuh"
#include <wgmma.cuh>

namespace qir {

constexpr int WGMMA_ROWS = 128;
constexpr int WGMMA_SLICE = 128;
constexpr int PRODUCERS = 64;
constexpr int CONSUMERS = 256;

// Channels of a pixel that a lane has side by side in its accumulators; 2 are those of the instruction itself.
template <int BN>
constexpr int LANE_CHANNELS = BN == 16 ? 4 : BN == 32 ? 8 : 2;

// Channel of a tile of column 2 * q + i of n-tile j.
template <int BN>
__device__ __forceinline__ constexpr int column_channel(int j, int q, int i) {
    constexpr int W = LANE_CHANNELS<BN>;
    return j / (W / 2) * (4 * W) + q * W + j % (W / 2) * 2 + i;
}

// A K-major tile of rows of SPAN bytes (128 or 64) with the swizzle of that span: 8 * SPAN bytes between groups of eight
// rows (the leading offset is not used then, and written as 1).  Adding 2 to a descriptor moves it on by 32 bytes of K.
template <int SPAN>
__device__ __forceinline__ u64 matrix_descriptor(const void* tile) {
    return u64((shared_address(tile) & 0x3ffffu) >> 4) | (u64(1) << 16) | (u64(SPAN * 8 >> 4) << 32) |
        (u64(SPAN == 128 ? 1 : 2) << 62);
}

// What moves a descriptor of A on to the k'th 32 bytes of a slice: rows of 64 bytes lie in two tiles of WGMMA_ROWS rows.
template <int SPAN>
__device__ __forceinline__ constexpr u64 a_step(int k) {
    return SPAN == 128 ? 2 * k : (k / 2) * (WGMMA_ROWS * 64 >> 4) + 2 * (k % 2);
}

// What the epilogue is going to add, on its way while the products are made; one of `count` threads' share.
template <int BN>
__device__ __forceinline__ void prefetch_residual(const Conv& p, const Epilogue& e, s64 first_row, int thread, int count) {
    const int bytes = e.residual_bits / 8, lines = BN * bytes / 128 > 0 ? BN * bytes / 128 : 1;
    const s64 pixels = s64(p.batch) * p.out_height * p.out_width;
    for (int i = thread; i < WGMMA_ROWS * lines; i += count) {
        const int row = i / lines, c = blockIdx.y * BN + i % lines * (128 / bytes);
        const s64 at = (first_row + row) * e.residual_stride + e.residual_offset + c;
        if (first_row + row < pixels && c < p.out_channels) prefetch(static_cast<const u8*>(e.residual) + at * bytes);
    }
}

// The ring of buffers in shared memory, and the part of K that this block sums.
template <int BN, int STAGES>
struct Ring {
    static constexpr int A_BYTES = WGMMA_ROWS * WGMMA_SLICE, B_BYTES = BN * WGMMA_SLICE;
    static_assert(BN <= 32 || WGMMA_ROWS * (BN + 8) * 4 <= STAGES * (A_BYTES + B_BYTES), "staging");
    u8 *a, *b;
    u64 *full, *empty;
    s64 first_row;
    int begin, slices;
    const s8* w;

    // arrivals: how many make a buffer full.
    __device__ __forceinline__ Ring(const Conv& p, u8* shared, int arrivals) {
        a = shared + ((0u - shared_address(shared)) & 1023u);  // the swizzle counts from multiples of 1024
        b = a + STAGES * A_BYTES;
        full = reinterpret_cast<u64*>(b + STAGES * B_BYTES);
        empty = full + STAGES;
        const int all = p.k_padded / WGMMA_SLICE;
        first_row = s64(blockIdx.x) * WGMMA_ROWS;
        begin = blockIdx.z * p.split_slices;
        slices = all - begin < p.split_slices ? all - begin : p.split_slices;
        w = p.w + (s64(blockIdx.y) * all + begin) * B_BYTES;
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; ++s) {
                barrier_init(full + s, arrivals);
                barrier_init(empty + s, CONSUMERS / 32);
            }
            barrier_init_fence();
        }
        __syncthreads();
    }
};

// The 16 rows of a warp out of the staging tile: W channels to a lane, neighbouring lanes neighbouring words, always the
// same channels. Residuals of GROUP rows are on their way before the first is wanted.
template <u32 P, int BN, int W>
__device__ __forceinline__ void finish_rows(const Conv& p, const Epilogue& e, const s32* rows, s64 first, int live, u8* output) {
    constexpr int LANES = BN / W, STEP = 32 / LANES, ROUNDS = 16 / STEP, GROUP = ROUNDS < 4 ? ROUNDS : 4;
    const int lane = threadIdx.x & 31, column = lane % LANES * W, c = blockIdx.y * BN + column;
    if (c >= p.out_channels) return;
    const LineConstants<P, W> constants(e, c);
#pragma unroll 1
    for (int round = 0; round < ROUNDS; round += GROUP) {
        const int begin = round * STEP + lane / LANES;
        Words<W> r[GROUP];
        if (has<P>(e, WITH_RESIDUAL)) {
#pragma unroll
            for (int g = 0; g < GROUP; ++g)
                if (begin + g * STEP < live)
                    load_line<P, W>(e, r[g], (first + begin + g * STEP) * e.residual_stride + e.residual_offset + c);
        }
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            const int row = begin + g * STEP;
            if (row >= live) return;
            s32 v[W];
            read_staged<BN, W>(v, rows, row, column);
            const s64 m = first + row;
            finish_line<P, W>(e, constants, r[g], v, output, m * e.output_stride + e.output_offset + c,
                              m * e.second_stride + e.second_offset + c);
        }
    }
}

// The accumulators of a warp's 16 rows, `live` of them real, where they are: in every group of 4 * W columns a lane has W
// consecutive channels of two rows (see pack_swizzled of operators/packing.py), four lanes whole sectors.
template <u32 P, int BN>
__device__ __forceinline__ void finish_accumulators(const Conv& p, const Epilogue& e, const s32 (&acc)[BN / 2], s64 first, int live,
                                                    u8* output) {
    constexpr int W = LANE_CHANNELS<BN>, LINES = BN / (4 * W);
    const int lane = threadIdx.x & 31, g = lane >> 2, start = blockIdx.y * BN + (lane & 3) * W;
    const int size = has<P>(e, OUT_8) ? 1 : has<P>(e, OUT_16) ? 2 : 4;
    const s64 m = first + g;
    u8* to = output + (m * e.output_stride + e.output_offset + start) * size;
    const s64 residual_at = m * e.residual_stride + e.residual_offset + start;
    const s64 second_at = m * e.second_stride + e.second_offset + start;
#pragma unroll
    for (int r = 0; r < LINES; ++r) {
        const int c = start + r * 4 * W;
        if (c >= p.out_channels) return;
        Words<W> residual[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
            if (g + half * 8 < live)
                load_line<P, W>(e, residual[half], residual_at + (half * 8 * u32(e.residual_stride) + r * 4 * W));
        const LineConstants<P, W> constants(e, c);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (g + half * 8 >= live) continue;
            s32 v[W];
#pragma unroll
            for (int j = 0; j < W; ++j) v[j] = acc[(r * (W / 2) + j / 2) * 4 + half * 2 + j % 2];
            if (has<P>(e, WORDS)) {
                finish_line<P, W>(e, constants, residual[half], v, to, half * 8 * u32(e.output_stride) + r * 4 * W,
                                  second_at + (half * 8 * u32(e.second_stride) + r * 4 * W));
            } else {
#pragma unroll
                for (int j = 0; j < W; ++j)
                    if (c + j < p.out_channels) store(e, finish<false>(e, v[j], m + half * 8, c + j), m + half * 8, c + j);
            }
        }
    }
}

// What the two multiplying warpgroups do.  A_SPAN: bytes of a swizzled row of A, 128 or 64 (two such tiles then).
template <bool x_signed, u32 P, int A_SPAN, int BN, int STAGES>
__device__ __forceinline__ void multiply_and_finish(const Conv& p, const Epilogue& e, const Ring<BN, STAGES>& ring) {
    const s64 first_row = ring.first_row;
    const int slices = ring.slices;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    s32 acc[BN / 2];  // begins as the bias of its channels
#pragma unroll
    for (int j = 0; j < BN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int c = blockIdx.y * BN + column_channel<BN>(j, lane & 3, i);
            acc[j * 4 + i] = acc[j * 4 + 2 + i] = e.bias && c < p.out_channels ? e.bias[c] : 0;
        }
    int stage = 0, before = 0;
    u32 parity = 0;
    for (int slice = 0; slice < slices; ++slice) {
        barrier_wait(ring.full + stage, parity);
        const u64 a = matrix_descriptor<A_SPAN>(ring.a + stage * Ring<BN, STAGES>::A_BYTES + (warp >> 2) * 64 * A_SPAN);
        const u64 b = matrix_descriptor<128>(ring.b + stage * Ring<BN, STAGES>::B_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < WGMMA_SLICE / 32; ++k) wgmma<x_signed, BN>(acc, a + a_step<A_SPAN>(k), b + 2 * k);
        wgmma_commit();
        wgmma_wait<1>();  // the slice before is done: its buffer can be filled again
        if (slice > 0 && lane == 0) barrier_arrive(ring.empty + before);
        before = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    wgmma_wait<0>();

    const s64 first = first_row + warp * 16, left = s64(p.batch) * p.out_height * p.out_width - first;
    const int live = left < 16 ? int(left) : 16;
    u8* output = static_cast<u8*>(e.output);
    if (gridDim.z > 1) output += blockIdx.z * p.split_step * 4;
    if constexpr (BN <= 32) {
        finish_accumulators<P, BN>(p, e, acc, first, live, output);
        return;
    } else {
        named_barrier(1, CONSUMERS);  // nobody reads the buffers any more

        s32* rows = reinterpret_cast<s32*>(ring.a) + warp * 16 * (BN + 8);
#pragma unroll
        for (int j = 0; j < BN / 8; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                stage_pair<BN>(rows, (lane >> 2) + half * 8, j * 8 + (lane & 3) * 2, acc[j * 4 + half * 2], acc[j * 4 + half * 2 + 1]);
        __syncwarp();

        if (!has<P>(e, WORDS)) {
            const int column = lane % (BN / 16) * 16, c = blockIdx.y * BN + column;
            if (c >= p.out_channels) return;
            for (int row = lane / (BN / 16); row < live; row += 32 / (BN / 16))
                finish_staged_singly<BN>(e, rows, row, column, first + row, c, p.out_channels);
            return;
        }
        if (has<P>(e, NARROW)) finish_rows<P, BN, 16>(p, e, rows, first, live, output);
        else finish_rows<P, BN, 8>(p, e, rows, first, live, output);
    }
}

// A gathered by cp.async: any padding value, any number of channels.
template <bool x_signed, int BN, int STAGES, u32 P = GENERAL>
__global__ void __launch_bounds__(PRODUCERS + CONSUMERS, BN <= 128 ? 2 : 1) conv_wgmma(Conv p, Epilogue e) {
    QIR_DYNAMIC_SHARED(u8, shared);
    const Ring<BN, STAGES> ring(p, shared, PRODUCERS + 1);
    if (threadIdx.x < CONSUMERS) {
        multiply_and_finish<x_signed, P, 128>(p, e, ring);
        return;
    }
    const int producer = threadIdx.x - CONSUMERS;
    constexpr int LAG = STAGES - 1;  // slices under way before the oldest is waited for
    const Gather<WGMMA_ROWS, 16, 8, PRODUCERS> gather(p, ring.first_row, producer);
    if (e.residual) prefetch_residual<BN>(p, e, ring.first_row, producer, PRODUCERS);
    int stage = 0, ready = 0;
    u32 parity = 1;  // of the phase of `empty` that has to be over: none, the first time around
    for (int slice = 0; slice < ring.slices + LAG; ++slice) {
        // passed on before the wait below: a buffer is given back only when the products on the next one have begun
        if (slice >= LAG) {
            copy_wait<LAG - 1>();
            fence_async_proxy();
            barrier_arrive(ring.full + ready);
            if (++ready == STAGES) ready = 0;
        }
        if (slice < ring.slices) {
            barrier_wait(ring.empty + stage, parity);
            if (producer == 0) {
                barrier_arrive_expect(ring.full + stage, ring.B_BYTES);
                bulk_copy(ring.b + stage * ring.B_BYTES, ring.w + s64(slice) * ring.B_BYTES, ring.B_BYTES,
                          ring.full + stage);
            }
            gather.fill(p, ring.a + stage * ring.A_BYTES, ring.begin + slice, producer);
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
        copy_commit();
    }
}

// A by the tensor memory accelerator, which does the im2col itself: one thread asks for both tiles of a slice. Padding is
// zero; past the image's own channels the accelerator fills in zeros.
//
// SPAN: channels that a copy takes, 128 or 64 (p.channels is a multiple): a slice of 64 is two copies, each of its own tap.
template <bool x_signed, int BN, int STAGES, int SPAN, u32 P = GENERAL>
__global__ void __launch_bounds__(CONSUMERS + 32, BN <= 128 ? 2 : 1)
    conv_wgmma_tma(Conv p, Epilogue e, const __grid_constant__ TensorMap image) {
    QIR_DYNAMIC_SHARED(u8, shared);
    const Ring<BN, STAGES> ring(p, shared, 1);
    if (threadIdx.x < CONSUMERS) {
        multiply_and_finish<x_signed, P, SPAN>(p, e, ring);
        return;
    }
    if (e.residual) prefetch_residual<BN>(p, e, ring.first_row, threadIdx.x - CONSUMERS, 32);
    if (threadIdx.x > CONSUMERS) return;
    // the window of the tile's first pixel
    const s64 rest = ring.first_row / p.out_width;
    const int x = int(ring.first_row - rest * p.out_width) * p.stride_w - p.pad_left;
    const int y = int(rest % p.out_height) * p.stride_h - p.pad_top, n = int(rest / p.out_height);
    constexpr int PARTS = WGMMA_SLICE / SPAN;
    const int per_tap = p.channels / SPAN, last = p.kernel_h * p.kernel_w - 1;
    int stage = 0, tap = ring.begin * PARTS / per_tap, block = ring.begin * PARTS - tap * per_tap;
    u32 parity = 1;
    for (int slice = 0; slice < ring.slices; ++slice) {
        barrier_wait(ring.empty + stage, parity);
        barrier_arrive_expect(ring.full + stage, ring.A_BYTES + ring.B_BYTES);
        bulk_copy(ring.b + stage * ring.B_BYTES, ring.w + s64(slice) * ring.B_BYTES, ring.B_BYTES, ring.full + stage);
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const int real = tap < last ? tap : last;  // past the last tap weights are zero: anything will do
            const int ky = real / p.kernel_w, kx = real - ky * p.kernel_w;
            im2col_copy<SPAN>(ring.a + stage * ring.A_BYTES + part * (WGMMA_ROWS * SPAN), image, block * SPAN, x, y, n,
                              kx * p.dilation_w, ky * p.dilation_h, ring.full + stage);
            if (++block == per_tap) block = 0, ++tap;
        }
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
}

}  // namespace qir
