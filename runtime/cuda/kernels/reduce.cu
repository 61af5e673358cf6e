// Windows, reductions and everything that reads many elements for one: one thread (or one warp) an output.
#include <ptx.cuh>

#include "view.cuh"

namespace qir {

// Pooling over (N, C, H, W) views: the last two axes of `shape` are the output's rows and columns; x strides likewise over the input.
template <bool is_max>
__global__ void pool(Shape shape, View x, View y, Window w) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const int oy = at.at[RANK - 2], ox = at.at[RANK - 1];
        const s64 sy = x.strides[RANK - 2], sx = x.strides[RANK - 1];
        const s64 base = position(x, at) - sy * oy - sx * ox;
        s64 result = is_max ? s64(w.pad_value) : 0;
        for (int ky = 0; ky < w.kernel_h; ++ky)
            for (int kx = 0; kx < w.kernel_w; ++kx) {
                const int iy = oy * w.stride_h - w.pad_top + ky * w.dilation_h;
                const int ix = ox * w.stride_w - w.pad_left + kx * w.dilation_w;
                const bool inside = iy >= 0 && iy < w.height && ix >= 0 && ix < w.width;
                const s64 v = inside ? load(x, base + sy * iy + sx * ix) : s64(w.pad_value);
                result = is_max ? (inside && v > result ? v : result) : result + v;
            }
        put(y, position(y, at), result);
    }
}

enum Reduction : int { REDUCE_SUM, REDUCE_MAX, REDUCE_MIN, REDUCE_PRODUCT };

template <int reduction>
__device__ __forceinline__ s64 combine(s64 a, s64 b) {
    return reduction == REDUCE_SUM       ? a + b
           : reduction == REDUCE_PRODUCT ? a * b
           : reduction == REDUCE_MAX     ? (b > a ? b : a)
                                         : (b < a ? b : a);
}

// One warp an output element: lanes share the `reduced` elements (their own shape and strides in `over`).
template <int reduction>
__global__ void reduce(Shape shape, View x, View y, Shape reduced, View over) {
    const int lane = threadIdx.x & 31;
    const s64 warps = s64(gridDim.x) * (blockDim.x >> 5);
    for (s64 i = s64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); i < shape.count; i += warps) {
        const Index at(shape, i);
        const s64 base = position(x, at);
        s64 result = reduction == REDUCE_SUM ? 0 : reduction == REDUCE_PRODUCT ? 1 : load(x, base);
        for (s64 j = lane; j < reduced.count; j += 32)
            result = combine<reduction>(result, load(x, base + position(over, Index(reduced, j))));
        for (int mask = 16; mask > 0; mask >>= 1)
            result = combine<reduction>(result, __shfl_xor_sync(0xffffffffu, result, mask));
        if (lane == 0) put(y, position(y, at), result);
    }
}

// e = E[d] of 8 bits; of 16, with a table of the low bytes, (E[d >> 8] fine[d & 255] + 2^43) >> 44.
__device__ __forceinline__ s64 exponential(const s64* exponentials, const s64* fine, s64 d) {
    return fine ? (exponentials[d >> 8] * fine[d & 255] + (s64(1) << 43)) >> 44 : exponentials[d];
}

// Softmax of a tensor of 8 or 16 bits along an axis of n elements `step` apart, of the positions where `keep` is not 0
// if it is `masked`; one warp a row.                                                          [docs/arithmetic.md 9, 9b]
__global__ void softmax(Shape rows, View x, View keep, View y, s32 n, s64 x_step, s64 keep_step, s64 y_step,
                        const s64* exponentials, const s64* fine, const s64* reciprocals, s32 masked, s32 zero_point,
                        s32 lo, s32 hi) {
    const int lane = threadIdx.x & 31;
    const s64 warps = s64(gridDim.x) * (blockDim.x >> 5);
    for (s64 i = s64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); i < rows.count; i += warps) {
        const Index at(rows, i);
        const s64 from = position(x, at), to = position(y, at), mask = position(keep, at);
        s64 top = -65536;  // below what 16 bits hold: a row that keeps nothing has no exponentials at all
        for (int j = lane; j < n; j += 32) {
            const s64 v = load(x, from + j * x_step);
            if (v > top && (!masked || load(keep, mask + j * keep_step))) top = v;
        }
        for (int step = 16; step > 0; step >>= 1) {
            const s64 other = __shfl_xor_sync(0xffffffffu, top, step);
            top = other > top ? other : top;
        }
        s64 sum = 0;
        for (int j = lane; j < n; j += 32) {
            if (masked && !load(keep, mask + j * keep_step)) continue;
            sum += exponential(exponentials, fine, top - load(x, from + j * x_step));
        }
        for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        int p = 0;
        for (int k = 17; k <= 30; ++k) p += sum >= (s64(1) << k);
        const s64 u = sum << (14 - p);
        const s64 r0 = reciprocals[(u >> 22) & 255];
        const s64 t = (u * r0) >> 30;
        const s64 r1 = (r0 * ((s64(1) << 32) - t)) >> 31;
        for (int j = lane; j < n; j += 32) {
            s64 e = 0;
            if (!masked || load(keep, mask + j * keep_step))
                e = exponential(exponentials, fine, top - load(x, from + j * x_step));
            put(y, to + j * y_step, clamp(((e * r1 + (s64(1) << (38 + p))) >> (39 + p)) + zero_point, lo, hi));
        }
    }
}

// Rows of n elements centred and divided by their root mean square; one warp a row.           [docs/arithmetic.md 9a]
__global__ void normalize(Shape rows, View x, View y, View multiplier, View offset, s64 x_step, s64 y_step, s64 m_step,
                          s64 c_step, const s64* table, s32 n, s32 centre, s32 zero_point, s32 extra, s64 epsilon,
                          s32 shift, s32 lo, s32 hi) {
    const int lane = threadIdx.x & 31;
    const s64 warps = s64(gridDim.x) * (blockDim.x >> 5);
    const s64 zero = centre ? 0 : zero_point;
    for (s64 i = s64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); i < rows.count; i += warps) {
        const Index at(rows, i);
        const s64 from = position(x, at), to = position(y, at), m = position(multiplier, at), c = position(offset, at);
        s64 s1 = 0, s2 = 0;
        for (int j = lane; j < n; j += 32) {
            const s64 q = load(x, from + j * x_step) - zero;
            s1 += q;
            s2 += q * q;
        }
        for (int mask = 16; mask > 0; mask >>= 1) {
            s1 += __shfl_xor_sync(0xffffffffu, s1, mask);
            s2 += __shfl_xor_sync(0xffffffffu, s2, mask);
        }
        if (!centre) s1 = 0;
        const s64 least = s64(1) << (2 * extra);
        s64 u = (n * s2 - s1 * s1) * least + epsilon;
        u = u < least ? least : u;
        int e = 0;
        for (int j = 1; j <= 30; ++j) e += u >= (s64(1) << (2 * j));
        const s64 v = u << (60 - 2 * e);
        const s64 r0 = table[(v >> 52) - 256];
        const s64 h = ((s64(3) << 61) - (v >> 31) * (r0 * r0)) >> 31;
        const s64 r1 = (r0 * h) >> 16;
        const int g = 11 - extra + e;
        for (int j = lane; j < n; j += 32) {
            const s64 d = n * (load(x, from + j * x_step) - zero) - s1;
            const s64 z = (d * r1 + (s64(1) << (g - 1))) >> g;
            const s64 t = (z * load(multiplier, m + j * m_step) + load(offset, c + j * c_step)) >> shift;
            put(y, to + j * y_step, clamp(t, lo, hi));
        }
    }
}

// The k greatest (or least) of each row, in order, ties by the lower index (or the higher one, for ArgMax's
// select_last_index); one thread a row.
__global__ void top_k(Shape rows, View x, View values, View indices, s32 n, s32 k, s64 x_step, s64 values_step,
                      s64 indices_step, s32 largest, s32 last) {
    QIR_FOR_EACH(i, rows.count) {
        const Index at(rows, i);
        const s64 from = position(x, at);
        s64 bound = 0, bound_at = -1;
        for (int rank = 0; rank < k; ++rank) {
            s64 best = 0, best_at = -1;
            for (int j = 0; j < n; ++j) {
                const s64 v = load(x, from + j * x_step);
                const bool after = bound_at < 0 || (largest ? v < bound : v > bound) || (v == bound && j > bound_at);
                const bool better = best_at < 0 || (largest ? v > best : v < best) || (last && v == best);
                if (after && better) best = v, best_at = j;
            }
            bound = best, bound_at = best_at;
            if (values.data) put(values, position(values, at) + rank * values_step, best);
            if (indices.data) put(indices, position(indices, at) + rank * indices_step, best_at);
        }
    }
}

}  // namespace qir
