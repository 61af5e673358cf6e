// Products of two activations on integer tensor cores, any strides of batch, rows and columns.
//
//   y[.., m, n] = sum_k (a[.., m, k] - z_a)(b[.., k, n] - z_b)          8 or 16 bits each, modulo 2^32, where the sum fits
//
// Elements become signed bytes on the way into shared memory: unsigned ones less 128, those of 16 bits as an upper and a
// lower byte (again less 128), which a pass over K each takes: the upper times the upper first, then eight bits on the mixed
// ones, eight more the lower ones. What was subtracted goes to the zero points, and they to the end:
//   sum a b - z_b sum_k a - z_a sum_k b + K z_a z_b
// with the sums over k made of the fragments by dp4a.
// A block of 256 threads (8 warps, 2 x 4) owns 64 x 64 of y; K goes by in slices of 64, rows of 64 bytes swizzled as in
// implicit_gemm.cuh. A thread puts four k's together to a word: by one load where k is the axis of unit stride, else by four,
// neighbours in a warp taking neighbours along the other axis.
//
// Shared memory: 2 * 64 * 64 bytes and 64 sums.  Grid: (ceil(M / 64), ceil(N / 64), batches or fewer).
#include "implicit_gemm.cuh"

namespace qir {

constexpr int SIDE = 64, SLICE = 64, MATMUL_THREADS = 256;

// Rows of K elements, of one batch: element (row, k) at data[row * row_step + k * k_step].
struct Operand {
    const void* data;
    s64 row_step, k_step;
    s32 rows, depth;
    s32 kind;
    bool words;   // four k's lie in one word of 4 bytes (8, of 16 bits)
    bool by_rows;  // neighbouring threads take neighbouring rows

    __device__ __forceinline__ bool wide() const { return kind == KIND_S16 || kind == KIND_U16; }

    // Bytes `plane` (0: the lower, 1: the upper) of k's to k + 3 of a row, signed; zeros past the end.
    __device__ __forceinline__ u32 word(int row, int k, int plane) const {
        if (row >= rows || k >= depth) return 0;
        const int live = depth - k;
        const s64 at = row * row_step + k * k_step;
        u32 v = 0;
        if (!wide()) {
            const u8* from = static_cast<const u8*>(data) + at;
            if (words && live >= 4) {
                v = read_once(from);
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (i < live) v |= u32(from[i * k_step]) << (8 * i);
            }
            if (kind == KIND_U8) v ^= 0x80808080u;
        } else {
            const u16* from = static_cast<const u16*>(data) + at;
            u32 pair[2] = {};
            if (words && live >= 4) {
                const uint2 both = read_once2(from);
                pair[0] = both.x, pair[1] = both.y;
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (i < live) pair[i / 2] |= u32(from[i * k_step]) << (16 * (i % 2));
            }
            v = permute_bytes(pair[0], pair[1], plane ? 0x7531 : 0x6420);
            if (!plane || kind == KIND_U16) v ^= 0x80808080u;
        }
        return live >= 4 ? v : v & ((1u << (8 * live)) - 1);
    }

    __device__ __forceinline__ void fill(u8* tile, int first, int k, int plane) const {
#pragma unroll
        for (int i = 0; i < SIDE * SLICE / 4 / MATMUL_THREADS; ++i) {
            const int task = threadIdx.x + i * MATMUL_THREADS;
            const int row = by_rows ? task % SIDE : task / (SLICE / 4), column = by_rows ? task / SIDE : task % (SLICE / 4);
            store4_shared(tile + swizzled<4>(row, column / 4) + column % 4 * 4, word(first + row, k + column * 4, plane));
        }
    }
};

// What was subtracted from an element to make signed bytes of it.
__device__ __forceinline__ s32 taken_off(s32 kind) {
    return kind == KIND_U8 || kind == KIND_S16 ? 128 : kind == KIND_U16 ? 32768 + 128 : 0;
}

__device__ __forceinline__ Operand operand(const View& v, const Index& batch, int rows, s64 row_step, s64 k_step, int depth) {
    Operand o;
    const int bytes = v.kind == KIND_S16 || v.kind == KIND_U16 ? 2 : 1;
    o.data = static_cast<const u8*>(v.data) + position(v, batch) * bytes;
    o.row_step = row_step, o.k_step = k_step, o.rows = rows, o.depth = depth, o.kind = v.kind;
    o.words = k_step == 1 && row_step % 4 == 0 && (reinterpret_cast<u64>(o.data) & (4 * bytes - 1)) == 0;
    o.by_rows = k_step != 1;
    return o;
}

// The last two axes of `shape` are those of y's matrices; strides of a along its rows and of b along its columns are theirs.
__global__ void __launch_bounds__(MATMUL_THREADS, 1) matmul_bytes(Shape shape, View a, View b, View y, s32 depth, s64 a_step,
                                                              s64 b_step, s32 z_a, s32 z_b) {
    QIR_SHARED(u8, a_tile, SIDE * SLICE);
    QIR_SHARED(u8, b_tile, SIDE * SLICE);
    QIR_SHARED(u32, column_sums, SIDE);
    const int rows = shape.dims[RANK - 2], columns = shape.dims[RANK - 1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2;
    const int warp_m = warp % 2 * 32, warp_n = warp / 2 * 16;
    const int first_row = blockIdx.x * SIDE, first_column = blockIdx.y * SIDE;
    Shape batches = shape;
    batches.dims[RANK - 2] = batches.dims[RANK - 1] = 1;
    batches.count = shape.count / (s64(rows) * columns);
    const u32 zero_a = u32(z_a - taken_off(a.kind)), zero_b = u32(z_b - taken_off(b.kind));
    for (s64 z = blockIdx.z; z < batches.count; z += gridDim.z) {
        const Index batch(batches, z);
        const Operand left = operand(a, batch, rows, a.strides[RANK - 2], a_step, depth);
        const Operand right = operand(b, batch, columns, b.strides[RANK - 1], b_step, depth);
        s32 acc[2][2][4] = {};
        u32 a_sums[2][2] = {}, b_sums[2] = {};
        const int upper_a = left.wide() ? 1 : 0, upper_b = right.wide() ? 1 : 0;
        int weight = upper_a + upper_b;
#pragma unroll 1
        for (int pass = 0; pass < (upper_a + 1) * (upper_b + 1); ++pass) {
            const int pa = upper_a - pass / (upper_b + 1), pb = upper_b - pass % (upper_b + 1);
            const int shift = 8 * (weight - pa - pb);
            if (pa + pb < weight) weight = pa + pb;
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 2; ++j)
#pragma unroll
                    for (int k = 0; k < 4; ++k)
                        if (shift > 0) acc[i][j][k] = s32(u32(acc[i][j][k]) << shift);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (pb == 0 && pa < upper_a) a_sums[i][0] <<= 8, a_sums[i][1] <<= 8;
                if (pa == 0 && pb < upper_b) b_sums[i] <<= 8;
            }
#pragma unroll 1
            for (int k = 0; k < depth; k += SLICE) {
                left.fill(a_tile, first_row, k, pa);
                right.fill(b_tile, first_column, k, pb);
                __syncthreads();
#pragma unroll
                for (int step = 0; step < SLICE / 32; ++step) {
                    u32 fragments[2][4], four[4];
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        load_matrix_x4(fragments[i], a_tile + swizzled<4>(warp_m + i * 16 + (lane & 15), step * 2 + (lane >> 4)));
                    load_matrix_x4(four, b_tile + swizzled<4>(warp_n + (lane & 7) + ((lane >> 4) << 3), step * 2 + ((lane >> 3) & 1)));
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
#pragma unroll
                        for (int j = 0; j < 2; ++j) mma_16x8x32<true>(acc[i][j], fragments[i], four[j * 2], four[j * 2 + 1]);
                        if (pb == 0) {
#pragma unroll
                            for (int half = 0; half < 2; ++half)
                                a_sums[i][half] = u32(dot4<true>(fragments[i][half], 0x01010101u,
                                                                 dot4<true>(fragments[i][half + 2], 0x01010101u, s32(a_sums[i][half]))));
                        }
                        if (pa == 0)
                            b_sums[i] = u32(dot4<true>(four[i * 2], 0x01010101u, dot4<true>(four[i * 2 + 1], 0x01010101u, s32(b_sums[i]))));
                    }
                }
                __syncthreads();
            }
        }
#pragma unroll
        for (int mask = 1; mask < 4; mask <<= 1) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                a_sums[i][0] += __shfl_xor_sync(0xffffffffu, a_sums[i][0], mask);
                a_sums[i][1] += __shfl_xor_sync(0xffffffffu, a_sums[i][1], mask);
                b_sums[i] += __shfl_xor_sync(0xffffffffu, b_sums[i], mask);
            }
        }
        if (warp_m == 0 && q == 0) column_sums[warp_n + g] = b_sums[0], column_sums[warp_n + 8 + g] = b_sums[1];
        __syncthreads();
        s32* to = static_cast<s32*>(y.data) + position(y, batch);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int m = first_row + warp_m + i * 16 + half * 8 + g;
                const u32 row = u32(depth) * zero_a * zero_b - zero_b * a_sums[i][half];
#pragma unroll
                for (int j = 0; j < 2; ++j)
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        const int local = warp_n + j * 8 + q * 2 + c, n = first_column + local;
                        if (m < rows && n < columns)
                            to[m * y.strides[RANK - 2] + n * y.strides[RANK - 1]] =
                                s32(u32(acc[i][j][half * 2 + c]) + row - zero_a * column_sums[local]);
                    }
            }
        __syncthreads();
    }
}

}  // namespace qir
