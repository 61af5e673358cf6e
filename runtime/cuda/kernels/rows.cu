// Softmax and normalization of rows that lie in words: the arithmetic of reduce.cu, a row read once and kept in registers.
//
// A warp takes a row of up to ROW_WORDS * 128 elements, a lane four of every 128: 4 bytes (8, of 16 bits) in, 4 bytes out.
// The tables lie in shared memory as 32-bit numbers. All numbers fit: 2^16 <= sum < 2^31, and of the last product the upper
// word alone tells the result, since its rounding constant is a multiple of 2^32.                  [docs/arithmetic.md 9, 9b]
#include <ptx.cuh>

#include "view.cuh"

namespace qir {

constexpr int ROW_WORDS = 8, TABLE_SIZE = 256;

// Four elements of x from `at` on, of 16 bits or of 8.
template <bool WIDE>
__device__ __forceinline__ void read_four(s32 (&v)[4], const View& x, s64 at) {
    if (WIDE) {
        const uint2 pair = read_once2(static_cast<const u16*>(x.data) + at);
        const u32 halves[4] = {pair.x, pair.x >> 16, pair.y, pair.y >> 16};
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = x.kind == KIND_S16 ? s32(s16(halves[i])) : s32(u16(halves[i]));
    } else {
        const u32 word = read_once(static_cast<const u8*>(x.data) + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = x.kind == KIND_S8 ? s32(s8(word >> (8 * i))) : s32(u8(word >> (8 * i)));
    }
}

template <bool WIDE, bool y_signed>
__global__ void __launch_bounds__(256, 1) softmax_rows(Shape rows, View x, View keep, View y, s32 n, s64 keep_step,
                                                       const s64* exponentials, const s64* fine, const s64* reciprocals,
                                                       s32 masked, s32 zero_point) {
    QIR_SHARED(u32, table, TABLE_SIZE);
    QIR_SHARED(u32, low_table, TABLE_SIZE);
    table[threadIdx.x] = u32(exponentials[threadIdx.x]);
    if (WIDE) low_table[threadIdx.x] = u32(fine[threadIdx.x]);
    __syncthreads();
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
            read_four<WIDE>(v[w], x, from + first);
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

// y = clamp((z multiplier + offset) >> shift), z the row centred and divided by its root mean square, both constants one an
// element. Sums of up to 1,024 elements and d = n q - sum fit 32 bits, the squares 64; so do z, and r1 below 2^31.
template <bool WIDE>
__global__ void __launch_bounds__(256, 1) normalize_rows(Shape rows, View x, View y, View multiplier, View offset,
                                                         const s64* table, s32 n, s32 centre, s32 zero_point, s32 extra,
                                                         s64 epsilon, s32 shift, s32 lo, s32 hi) {
    const int lane = threadIdx.x & 31;
    const s32 zero = centre ? 0 : zero_point;
    const bool narrow = y.kind == KIND_S8 || y.kind == KIND_U8;
    const s64 warps = s64(gridDim.x) * (blockDim.x >> 5);
    for (s64 row = s64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); row < rows.count; row += warps) {
        const Index at(rows, row);
        const s64 from = position(x, at), to = position(y, at), m = position(multiplier, at), c = position(offset, at);
        s32 v[ROW_WORDS][4];
        s32 s1 = 0;
        u64 s2 = 0;
#pragma unroll
        for (int w = 0; w < ROW_WORDS; ++w) {
            const int first = (w * 32 + lane) * 4;
            if (first >= n) continue;
            read_four<WIDE>(v[w], x, from + first);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                v[w][i] -= zero;
                s1 += v[w][i];
                s2 += u64(s64(v[w][i]) * v[w][i]);
            }
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1) {
            s1 += __shfl_xor_sync(0xffffffffu, s1, mask);
            s2 += __shfl_xor_sync(0xffffffffu, s2, mask);
        }
        if (!centre) s1 = 0;
        const s64 least = s64(1) << (2 * extra);
        s64 u = (n * s64(s2) - s64(s1) * s1) * least + epsilon;
        u = u < least ? least : u;
        int e = 0;
        for (int j = 1; j <= 30; ++j) e += u >= (s64(1) << (2 * j));
        const s64 scaled = u << (60 - 2 * e);
        const s64 r0 = table[(scaled >> 52) - 256];
        const s64 h = ((s64(3) << 61) - (scaled >> 31) * (r0 * r0)) >> 31;
        const s32 r1 = s32((r0 * h) >> 16);
        const int g = 11 - extra + e;
        const s64 half = s64(1) << (g - 1);
#pragma unroll
        for (int w = 0; w < ROW_WORDS; ++w) {
            const int first = (w * 32 + lane) * 4;
            if (first >= n) continue;
            const uint4 factors = read_once4(static_cast<const s32*>(multiplier.data) + m + first);
            const uint4 low = read_once4(static_cast<const s64*>(offset.data) + c + first);
            const uint4 high = read_once4(static_cast<const s64*>(offset.data) + c + first + 2);
            const s32 by[4] = {s32(factors.x), s32(factors.y), s32(factors.z), s32(factors.w)};
            const s64 add[4] = {s64(u64(low.y) << 32 | low.x), s64(u64(low.w) << 32 | low.z), s64(u64(high.y) << 32 | high.x),
                                s64(u64(high.w) << 32 | high.z)};
            u32 out[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const s32 z = s32(multiply_wide_add(n * v[w][i] - s1, r1, half) >> g);
                out[i] = u32(clamp(multiply_wide_add(z, by[i], add[i]) >> shift, lo, hi));
            }
            if (narrow) {
                *reinterpret_cast<u32*>(static_cast<u8*>(y.data) + to + first) =
                    (out[0] & 255) | (out[1] & 255) << 8 | (out[2] & 255) << 16 | out[3] << 24;
            } else {
                uint2 both;
                both.x = (out[0] & 65535) | out[1] << 16, both.y = (out[2] & 65535) | out[3] << 16;
                *reinterpret_cast<uint2*>(static_cast<u16*>(y.data) + to + first) = both;
            }
        }
    }
}

}  // namespace qir
