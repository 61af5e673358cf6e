// Convolution of one to four input channels on integer tensor cores, from a patch of the image in shared memory.
//
// A pixel of the input is a cell of four bytes, which is just what a lane holds of an A fragment: four consecutive k's of
// one row. So K goes by in taps, eight to a product (m16n8k32), and fragments are read straight from the patch of the
// input that a tile of the output needs, at the pixel's cell plus the tap's distance from it; each cell is copied from
// global memory once a tile, not once a tap.
//
// A block of 128 threads takes tiles of 8 rows of 16 pixels of the output, gridDim.x apart, and BN channels; a warp two
// rows. The patch of the next tile is on its way (cp.async) while the tensor cores work on this one. Weights lie in shared
// memory in the order of fragments, for all tiles of the block: (step of 32 k's, two n-tiles, lane, 16 bytes).
//
// Channels are dealt to the columns of the n-tiles so that a lane's accumulators are W consecutive channels of a pixel
// (W = 8, or 4 where BN = 16) and four lanes together write whole sectors: accumulators are finished where they are.
// Column 2q + i of n-tile j of a group of W / 2 is channel q * W + 2 j + i of the group.
//
// Shared memory: weights, two patches of PATCH cells, the taps' distances.  Grid: (blocks, N rounded up / BN).
#include "implicit_gemm.cuh"

namespace qir {

constexpr int PATCH = 2048, MOST_STEPS = 8;
constexpr int PATCH_THREADS = 128, TILE_ROWS = 8, TILE_COLUMNS = 16;

// Where a tile lies.
struct PatchTile {
    int image, y, x;  // of its first pixel in the output

    __device__ __forceinline__ PatchTile(const Conv& p, int tile) {
        const u32 across = u32(p.out_width + TILE_COLUMNS - 1) / TILE_COLUMNS, down = u32(p.out_height + TILE_ROWS - 1) / TILE_ROWS;
        const u32 rest = u32(tile) / across;
        x = int(u32(tile) - rest * across) * TILE_COLUMNS;
        image = int(rest / down);
        y = int(rest - u32(image) * down) * TILE_ROWS;
    }
};

// The cells that a tile's windows reach, from `slack` to their left on, so that rows begin at whole words of four cells.
struct Patch {
    int rows, pitch, slack;
    bool words;  // whether every four cells are inside or outside together, and copied together

    __device__ __forceinline__ Patch(const Conv& p) {
        slack = -p.pad_left & 3;
        rows = (TILE_ROWS - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
        pitch = ((TILE_COLUMNS - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1 + slack + 3) & ~3;
        words = p.pixel_stride == 4 && (p.width & 3) == 0 && pitch <= 64;
    }

    __device__ __forceinline__ void fill(const Conv& p, u32* patch, const PatchTile& at) const {
        const u32 splat = u32(u8(p.pad_value)) * 0x01010101u;
        const int left = at.x * p.stride_w - p.pad_left - slack, top = at.y * p.stride_h - p.pad_top;
        const u8* image = p.x + s64(at.image) * p.height * p.width * p.pixel_stride;
        const s64 line = s64(p.width) * p.pixel_stride;
        if (words) {  // 16 threads a row
            const int column = threadIdx.x % 16 * 4;
            if (column >= pitch) return;
            const u32 height = u32(left + column) < u32(p.width) ? u32(p.height) : 0;
            int row = threadIdx.x / 16;
            const u8* from = image + s64(top + row) * line + s64(left + column) * 4;
            u32* to = patch + row * pitch + column;
#pragma unroll 1
            for (; row < rows; row += PATCH_THREADS / 16, from += PATCH_THREADS / 16 * line, to += PATCH_THREADS / 16 * pitch) {
                if (u32(top + row) < height) copy16_async(to, from);
                else store16_shared(to, make_uint4(splat, splat, splat, splat));
            }
            return;
        }
#pragma unroll 1
        for (int row = threadIdx.x / 32; row < rows; row += PATCH_THREADS / 32) {
            const u32 width = u32(top + row) < u32(p.height) ? u32(p.width) : 0;
            const u8* from = image + s64(top + row) * line;
#pragma unroll 1
            for (int column = threadIdx.x % 32; column < pitch; column += 32) {
                u32* to = patch + row * pitch + column;
                if (u32(left + column) < width) copy4_async(to, from + s64(left + column) * p.pixel_stride);
                else store4_shared(to, splat);
            }
        }
    }
};

template <bool x_signed, int BN, u32 P = GENERAL>
__global__ void __launch_bounds__(PATCH_THREADS) conv_patch(Conv p, Epilogue e) {
    constexpr int W = BN == 16 ? 4 : 8, LINES = BN / (4 * W), TN = BN / 8;
    QIR_DYNAMIC_SHARED(u8, shared);
    uint4* weights = reinterpret_cast<uint4*>(shared);
    u32* patches = reinterpret_cast<u32*>(shared + MOST_STEPS * BN * 32);
    u32* distances = patches + 2 * PATCH;
    const int steps = p.k_padded / 32;
    const Patch patch(p);
    const int pitch = patch.pitch;
    const int tiles = p.batch * ((p.out_height + TILE_ROWS - 1) / TILE_ROWS) * ((p.out_width + TILE_COLUMNS - 1) / TILE_COLUMNS);
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, q = lane & 3, g = lane >> 2;
    const s8* w = p.w + s64(blockIdx.y) * BN * p.k_padded;
    for (int i = thread; i < steps * BN * 2; i += PATCH_THREADS) copy16_async(weights + i, w + s64(i) * 16);
    for (int tap = thread; tap < steps * 8; tap += PATCH_THREADS) {
        const int ky = tap / p.kernel_w;
        distances[tap] = ky < p.kernel_h ? u32(ky * p.dilation_h * pitch + (tap - ky * p.kernel_w) * p.dilation_w) : 0;
    }
    int tile = blockIdx.x;
    PatchTile at(p, tile);
    if (tile < tiles) patch.fill(p, patches, at);
    copy_commit();

    const int first = blockIdx.y * BN + q * W;  // channel
    s32 bias[LINES][W] = {};
    LineConstants<P, W> constants[LINES];
#pragma unroll
    for (int r = 0; r < LINES; ++r) {
        const int c = first + r * 4 * W;
        if (c >= p.out_channels) continue;
        constants[r].read(e, c);
        if (e.bias) read_constants<W>(bias[r], e.bias + c);
    }
    const int size = has<P>(e, OUT_8) ? 1 : has<P>(e, OUT_16) ? 2 : 4;
    const u32 pixel = u32(warp * 2 * p.stride_h * pitch + g * p.stride_w + patch.slack);
    for (int turn = 0; tile < tiles; turn ^= 1, tile += gridDim.x) {
        const PatchTile next(p, tile + gridDim.x);
        if (tile + int(gridDim.x) < tiles) patch.fill(p, patches + (turn ^ 1) * PATCH, next);
        copy_commit();
        copy_wait<1>();
        __syncthreads();  // the patch is there
        const u32* row[2][2];  // of the patch: where the lane's pixels of its two rows begin
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                row[i][half] = patches + turn * PATCH + pixel + i * p.stride_h * pitch + half * 8 * p.stride_w;
        s32 acc[2][TN][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j)
#pragma unroll
                for (int k = 0; k < 4; ++k) acc[i][j][k] = bias[j / (W / 2)][j % (W / 2) * 2 + (k & 1)];
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const u32 near = distances[step * 8 + q], far = distances[step * 8 + 4 + q];
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                a[i][0] = row[i][0][near], a[i][1] = row[i][1][near];
                a[i][2] = row[i][0][far], a[i][3] = row[i][1][far];
            }
#pragma unroll
            for (int j = 0; j < TN; j += 2) {
                const uint4 b = weights[(step * (TN / 2) + j / 2) * 32 + lane];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    mma_16x8x32<x_signed>(acc[i][j], a[i], b.x, b.y);
                    mma_16x8x32<x_signed>(acc[i][j + 1], a[i], b.z, b.w);
                }
            }
        }
        __syncthreads();  // nobody reads the patch any more

        const s64 m = (s64(at.image) * p.out_height + at.y + warp * 2) * p.out_width + at.x + g;
        u8* to = static_cast<u8*>(e.output) + (m * e.output_stride + e.output_offset + first) * size;
        const s64 residual_at = m * e.residual_stride + e.residual_offset + first;
        const s64 second_at = m * e.second_stride + e.second_offset + first;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int y = at.y + warp * 2 + i, x = at.x + g + half * 8;
                if (y >= p.out_height || x >= p.out_width) continue;
                const u32 further = u32(i * p.out_width + half * 8);
#pragma unroll
                for (int r = 0; r < LINES; ++r) {
                    const int c = first + r * 4 * W;
                    if (c >= p.out_channels) continue;
                    s32 v[W];
#pragma unroll
                    for (int j = 0; j < W; ++j) v[j] = acc[i][r * (W / 2) + j / 2][half * 2 + j % 2];
                    if (has<P>(e, WORDS)) {
                        Words<W> residual;
                        load_line<P, W>(e, residual, residual_at + (further * u32(e.residual_stride) + r * 4 * W));
                        finish_line<P, W>(e, constants[r], residual, v, to, further * u32(e.output_stride) + r * 4 * W,
                                          second_at + (further * u32(e.second_stride) + r * 4 * W));
                    } else {
#pragma unroll
                        for (int j = 0; j < W; ++j)
                            if (c + j < p.out_channels) store(e, finish<false>(e, v[j], m + further, c + j), m + further, c + j);
                    }
                }
            }
        at = next;
    }
    copy_wait<0>();
}

}  // namespace qir
