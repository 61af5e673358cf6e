// Softmax of rows that lie in words: the arithmetic of reduce.cu, a row read once and kept in registers.
//
// A warp takes a row of up to ROW_WORDS * 128 elements, a lane four of every 128: 4 bytes (8, of 16 bits) in, 4 bytes out.
// The tables lie in shared memory as 32-bit numbers. All numbers fit: 2^16 <= sum < 2^31, and of the last product the upper
// word alone tells the result, since its rounding constant is a multiple of 2^32.                  [docs/arithmetic.md 9, 9b]
#include <ptx.cuh>

#include "view.cuh"

namespace qir {

constexpr int ROW_WORDS = 8, TABLE_SIZE = 256;

template <bool WIDE, bool y_signed>
__global__ void __launch_bounds__(256, 1) softmax_rows(Shape rows, View x, View keep, View y, s32 n, s64 keep_step,
                                                       const s64* exponentials, const s64* fine, const s64* reciprocals,
                                                       s32 masked, s32 zero_point) {
    QIR_SHARED(u32, table, TABLE_SIZE);
    QIR_SHARED(u32, low_table, TABLE_SIZE);
    table[threadIdx.x] = u32(exponentials[threadIdx.x]);
    if (WIDE) low_table[threadIdx.x] = u32(fine[threadIdx.x]);
    __syncthreads();
    const bool x_signed = x.kind == KIND_S8 || x.kind == KIND_S16;
    const int lane = threadIdx.x & 31;
    const s64 warps = s64(gridDim.x) * (blockDim.x >> 5);
    for (s64 row = s64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); row < rows.count; row += warps) {
        const Index at(rows, row);
        const s64 from = position(x, at), mask = masked ? position(keep, at) : 0;
        s32 v[ROW_WORDS][4];
        u32 kept = 0;  // a bit an element
        s32 top = -65536;  // below what 16 bits hold
#pragma unroll
        for (int w = 0; w < ROW_WORDS; ++w) {
            const int first = (w * 32 + lane) * 4;
            if (first >= n) continue;
            if (WIDE) {
                const uint2 pair = read_once2(static_cast<const u16*>(x.data) + from + first);
                const u32 halves[4] = {pair.x, pair.x >> 16, pair.y, pair.y >> 16};
#pragma unroll
                for (int i = 0; i < 4; ++i) v[w][i] = x_signed ? s32(s16(halves[i])) : s32(u16(halves[i]));
            } else {
                const u32 word = read_once(static_cast<const u8*>(x.data) + from + first);
#pragma unroll
                for (int i = 0; i < 4; ++i) v[w][i] = x_signed ? s32(s8(word >> (8 * i))) : s32(u8(word >> (8 * i)));
            }
            u32 bits = 15;
            if (masked) {
                bits = 0;
#pragma unroll
                for (int i = 0; i < 4; ++i) bits |= u32(static_cast<const u8*>(keep.data)[mask + (first + i) * keep_step] != 0) << i;
            }
            kept |= bits << (4 * w);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if ((bits >> i & 1) && v[w][i] > top) top = v[w][i];
        }
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) {
            const s32 other = __shfl_xor_sync(0xffffffffu, top, step);
            top = other > top ? other : top;
        }
        u32 sum = 0;
#pragma unroll
        for (int w = 0; w < ROW_WORDS; ++w) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32 e = 0;
                if (kept >> (4 * w + i) & 1) {
                    const s32 d = top - v[w][i];
                    if (WIDE) {
                        const u32 k = d < 65535 ? u32(d) : 65535;
                        e = (multiply_high_unsigned(table[k >> 8], low_table[k & 255]) + (1u << 11)) >> 12;
                    } else {
                        e = table[d];
                    }
                }
                v[w][i] = s32(e);
                sum += e;
            }
        }
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        int p = 0;
        for (int k = 17; k <= 30; ++k) p += sum >> k != 0;
        const u32 u = sum << (14 - p);
        const u64 r0 = u64(reciprocals[(u >> 22) & 255]);
        const u64 t = (u * r0) >> 30;
        const u32 r1 = u32((r0 * ((u64(1) << 32) - t)) >> 31);
        const s64 to = position(y, at);
#pragma unroll
        for (int w = 0; w < ROW_WORDS; ++w) {
            const int first = (w * 32 + lane) * 4;
            if (first >= n) continue;
            s32 out[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                out[i] = s32((multiply_high_unsigned(u32(v[w][i]), r1) + (1u << (6 + p))) >> (7 + p)) + zero_point;
            *reinterpret_cast<u32*>(static_cast<u8*>(y.data) + to + first) = pack_saturated<y_signed>(out);
        }
    }
}

}  // namespace qir
