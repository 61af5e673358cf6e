// Elementwise integer operators on strided operands (any layout, any broadcast): one thread an element, grid-stride.
#include "view.cuh"

namespace qir {

// y = clamp((((x - x_zero) * multiplier + 2^(shift-1)) >> shift) + zero_point, lo, hi)          [docs/arithmetic.md 2]
__global__ void requantize_elements(Shape shape, View x, View multiplier, View shift, View y, s32 x_zero, Grid grid) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 v = load(x, at) - x_zero;
        const s32 m = s32(load(multiplier, at));
        const int s = int(load(shift, at));
        put(y, position(y, at), requantize(v, m, s, grid.zero_point, grid.lo, grid.hi));
    }
}

// y = clamp(((a m_a + b m_b + c) >> shift) + zero_point, lo, hi), c = 2^(shift-1) - z_a m_a - z_b m_b   [docs/arithmetic.md 4]
__global__ void add_elements(Shape shape, View a, View b, View y, s32 m_a, s32 m_b, s64 c, s32 shift, Grid grid) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 sum = load(a, at) * m_a + load(b, at) * m_b + c;
        put(y, position(y, at), clamp((sum >> shift) + grid.zero_point, grid.lo, grid.hi));
    }
}

// y = requantize((a - z_a)(b - z_b))                                                             [docs/arithmetic.md 7]
__global__ void multiply_elements(Shape shape, View a, View b, View y, s32 z_a, s32 z_b, s32 multiplier, s32 shift,
                                  Grid grid) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 product = (load(a, at) - z_a) * (load(b, at) - z_b);
        put(y, position(y, at), requantize(product, multiplier, shift, grid.zero_point, grid.lo, grid.hi));
    }
}

// y = requantize((a - z_a) / d), d = max(b - z_b, least), by the reciprocal of tables and one Newton step.
// [docs/arithmetic.md 9, qir.Div]
__global__ void divide_elements(Shape shape, View a, View b, View y, const s64* reciprocals, s32 z_a, s32 z_b, s32 least,
                                s32 bits, s32 multiplier, s32 shift, Grid grid) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        s64 d = load(b, at) - z_b;
        if (d < least) d = least;
        int e = 0;
        while (e < 30 && d >= (s64(2) << e)) ++e;
        const s64 u = d << (30 - e);
        const s64 r0 = reciprocals[(u >> 22) & 255];
        const s64 r1 = (r0 * ((s64(1) << 32) - ((u * r0) >> 30))) >> 31;
        const s64 t = ((load(a, at) - z_a) * r1) >> (bits + 2);
        const int w = e + shift;
        const s64 q = w > 62 ? 0 : rounding_shift(t * multiplier, w);
        put(y, position(y, at), clamp(q + grid.zero_point, grid.lo, grid.hi));
    }
}

// y = table[x - x_min], or table[channel][x - x_min]: `table` strides along the channel axis and is 0 elsewhere.
__global__ void table_elements(Shape shape, View x, View table, View y, s32 x_min) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        put(y, position(y, at), load(table, position(table, at) + load(x, at) - x_min));
    }
}

__global__ void clip_elements(Shape shape, View x, View y, s64 lo, s64 hi) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 v = load(x, at);
        put(y, position(y, at), v < lo ? lo : (v > hi ? hi : v));
    }
}

__global__ void extremum_elements(Shape shape, View a, View b, View y, s32 largest) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 p = load(a, at), q = load(b, at);
        put(y, position(y, at), (p > q) == (largest != 0) ? p : q);
    }
}

// The border: float32 to integers; `scale` may stride along a channel axis.
__global__ void quantize_elements(Shape shape, View x, View scale, View y, Grid grid) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const float s = static_cast<const float*>(scale.data)[position(scale, at)];
        put(y, position(y, at), quantized(static_cast<const float*>(x.data)[position(x, at)], s, grid));
    }
}

// The border: (x - zero_point) * scale in float32; `scale` may stride along a channel axis.
__global__ void dequantize_elements(Shape shape, View x, View scale, View y, s64 zero_point) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const float s = static_cast<const float*>(scale.data)[position(scale, at)];
        static_cast<float*>(y.data)[position(y, at)] = float(load(x, at) - zero_point) * s;
    }
}

// y = x[index0] * weight0 + x[index1] * weight1 along one axis (bilinear resize); x is indexed by hand on `axis`.
__global__ void interpolate_elements(Shape shape, View x, View y, View index0, View index1, View weight0, View weight1,
                                     s32 axis) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 base = position(x, at) - x.strides[axis] * at.at[axis];
        const s64 p0 = base + x.strides[axis] * load(index0, at), p1 = base + x.strides[axis] * load(index1, at);
        put(y, position(y, at), load(x, p0) * load(weight0, at) + load(x, p1) * load(weight1, at));
    }
}

}  // namespace qir
