// Elementwise operators, pooling and copies on tensors whose channels lie side by side: a thread takes 16 channels of one
// pixel (16 bytes of an 8-bit tensor) and divides twice for its position, where the strided kernels take one element and
// divide at every axis.
//
// The launcher asks for these where every operand begins its pixels at multiples of 16 elements; what lies in channels
// past the last one is computed and stored like the rest, into room that is there for it.
#include "chunks.cuh"

namespace qir {

// y = clamp((((x - x_zero) * multiplier + 2^(shift-1)) >> shift) + zero_point, lo, hi)          [docs/arithmetic.md 2]
// multiplier, shift: one, or one a channel (rounded up to chunks).
__global__ void requantize_chunks(Extent extent, Rows x, Rows y, const s32* multiplier, const s32* shift,
                                  s32 per_channel, s32 x_zero, Grid grid) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        s32 v[16], m[16], s[16];
        read_chunk(x, position(x, at), v);
        if (per_channel) {
            read_constants<16>(m, multiplier + at.channel);
            read_constants<16>(s, shift + at.channel);
        } else {
            const s32 one = multiplier[0], by = shift[0];
#pragma unroll
            for (int j = 0; j < 16; ++j) m[j] = one, s[j] = by;
        }
#pragma unroll
        for (int j = 0; j < 16; ++j)
            v[j] = requantize(s64(v[j]) - x_zero, m[j], s[j], grid.zero_point, grid.lo, grid.hi);
        write_chunk(y, position(y, at), v);
    }
}

// y = clamp(((a m_a + b m_b + c) >> shift) + zero_point, lo, hi)                                 [docs/arithmetic.md 4]
__global__ void add_chunks(Extent extent, Rows a, Rows b, Rows y, s32 m_a, s32 m_b, s64 c, s32 shift, Grid grid) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        s32 p[16], q[16];
        read_chunk(a, position(a, at), p);
        read_chunk(b, position(b, at), q);
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const s64 sum = s64(p[j]) * m_a + s64(q[j]) * m_b + c;
            p[j] = clamp((sum >> shift) + grid.zero_point, grid.lo, grid.hi);
        }
        write_chunk(y, position(y, at), p);
    }
}

// y = requantize((a - z_a)(b - z_b)), the product within int32                                   [docs/arithmetic.md 7]
__global__ void multiply_chunks(Extent extent, Rows a, Rows b, Rows y, s32 z_a, s32 z_b, s32 multiplier, s32 shift,
                                Grid grid) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        s32 p[16], q[16];
        read_chunk(a, position(a, at), p);
        read_chunk(b, position(b, at), q);
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const s64 product = (s64(p[j]) - z_a) * (s64(q[j]) - z_b);
            p[j] = requantize(product, multiplier, shift, grid.zero_point, grid.lo, grid.hi);
        }
        write_chunk(y, position(y, at), p);
    }
}

// y = table[x - x_min] for 8-bit x; channel c has its own table c * table_stride elements on (0: one for all).
// channels: how many tables there are; the channels past the last one take its.
__global__ void table_chunks(Extent extent, Rows x, Rows y, const void* table, s32 table_kind, s32 table_stride,
                             s32 channels, s32 x_min, s32 entries) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        s32 v[16];
        read_chunk(x, position(x, at), v);
        const View t = {const_cast<void*>(table), 0, {}, table_kind};
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const int c = at.channel + j < channels ? at.channel + j : channels - 1;
            const int entry = v[j] - x_min;  // channels past the last one hold anything
            v[j] = s32(load(t, s64(c) * table_stride + clamp(entry, 0, entries - 1)));
        }
        write_chunk(y, position(y, at), v);
    }
}

__global__ void clip_chunks(Extent extent, Rows x, Rows y, s32 lo, s32 hi) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        s32 v[16];
        read_chunk(x, position(x, at), v);
#pragma unroll
        for (int j = 0; j < 16; ++j) v[j] = clamp(v[j], lo, hi);
        write_chunk(y, position(y, at), v);
    }
}

// y = x, elements of one kind; strides are those of 8-bit elements: a chunk here is 16 bytes.
__global__ void copy_chunks(Extent extent, Rows x, Rows y) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        *reinterpret_cast<uint4*>(static_cast<u8*>(y.data) + position(y, at)) = word_at(x.data, position(x, at));
    }
}

// x / scale, rounded as a division is, where |x / scale| lies between 1/4 and 2^17 and scale within 2^-60 and 2^60; below, near
// enough to round to zero.  reciprocal: 1 / scale, rounded. The quotient is within an ulp after the first correction and exact
// after the second                                                                [Markstein 1990, theorem 3]
__device__ __forceinline__ float divided(float x, float scale, float reciprocal) {
    float q = x * reciprocal;
    q = fmaf(fmaf(-scale, q, x), reciprocal, q);
    return fmaf(fmaf(-scale, q, x), reciprocal, q);
}

// Four floats on the grid of s8 or u8, as `quantized` of view.cuh; most: 2^16 scales. What lies past it is at an end of the grid
// anyway, and NaN comes to its high end.
template <bool is_signed>
__device__ __forceinline__ u32 quantized_bytes(const float (&x)[4], float scale, float reciprocal, float most, s32 zero_point) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: integers beside it are its last bits, and the addition rounds half to even
    s32 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float inside = fmaxf(fminf(x[i], most), -most);
        v[i] = s32(float_bits(divided(inside, scale, reciprocal) + magic)) + (zero_point - s32(float_bits(magic)));
    }
    return pack_saturated<is_signed>(v);
}

// The border of an image network: float32 planes (images, planes <= 4, pixels) to pixels of four bytes; a thread takes four
// pixels, 16 bytes of each plane and 16 of the image, where `pixels` is a multiple of four; otherwise one. In planes that there
// are not, anything will do.
template <bool is_signed>
__global__ void quantize_pixels(const float* x, u8* y, s64 images, s32 pixels, s32 planes, float scale, float reciprocal,
                                float most, s32 zero_point) {
    const s32 each = pixels % 4 ? 1 : 4, units = pixels / each;
    QIR_FOR_EACH(i, images * units) {
        const s64 image = i >> 31 ? i / units : s64(u32(i) / u32(units));
        const float* from = x + image * planes * pixels + (i - image * units) * each;
        float v[4][4] = {};  // pixel, plane
        if (each == 1) {
#pragma unroll
            for (int c = 0; c < 4; ++c)
                if (c < planes) v[0][c] = from[s64(c) * pixels];
            reinterpret_cast<u32*>(y)[i] = quantized_bytes<is_signed>(v[0], scale, reciprocal, most, zero_point);
            continue;
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            if (c >= planes) break;
            const uint4 four = read_once4(from + s64(c) * pixels);
            v[0][c] = bits_float(four.x), v[1][c] = bits_float(four.y), v[2][c] = bits_float(four.z), v[3][c] = bits_float(four.w);
        }
        u32 words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) words[j] = quantized_bytes<is_signed>(v[j], scale, reciprocal, most, zero_point);
        reinterpret_cast<uint4*>(y)[i] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

}  // namespace qir
