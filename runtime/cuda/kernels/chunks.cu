// Elementwise operators, pooling and copies on tensors whose channels lie side by side: a thread takes 16 channels of one
// pixel (16 bytes of an 8-bit tensor) and divides twice for its position, where the strided kernels take one element and
// divide at every axis.
//
// The launcher asks for these where every operand begins its pixels at multiples of 16 elements; what lies in channels
// past the last one is computed and stored like the rest, into room that is there for it.
#include "epilogue.cuh"

namespace qir {

// A tensor as images of pixels of chunks. Strides in elements; 0 along what is broadcast.
struct Rows {
    void* data;  // of its first element
    s64 image_stride, pixel_stride;
    s32 kind;    // Kind
};

struct Extent {
    s32 count;  // images * pixels * chunks
    s32 pixels, chunks;
};

struct Chunk {
    int image, pixel, channel;

    __device__ __forceinline__ Chunk(const Extent& extent, int i) {
        const u32 row = u32(i) / u32(extent.chunks);
        channel = (i - int(row) * extent.chunks) * 16;
        image = int(row / u32(extent.pixels));
        pixel = int(row) - image * extent.pixels;
    }
};

__device__ __forceinline__ s64 position(const Rows& t, const Chunk& at) {
    return at.image * t.image_stride + at.pixel * t.pixel_stride + at.channel;
}

__device__ __forceinline__ void read_chunk(const Rows& t, s64 p, s32 (&v)[16]) {
    Word w;
    if (t.kind == KIND_S8 || t.kind == KIND_U8) {
        w.bits = word_at(t.data, p);
#pragma unroll
        for (int i = 0; i < 16; ++i) v[i] = t.kind == KIND_S8 ? s32(w.as_s8[i]) : s32(w.as_u8[i]);
    } else if (t.kind == KIND_S16 || t.kind == KIND_U16) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            w.bits = word_at(t.data, p * 2 + h * 16);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[h * 8 + i] = t.kind == KIND_S16 ? s32(w.as_s16[i]) : s32(w.as_u16[i]);
        }
    } else {
        read_constants<16>(v, static_cast<const s32*>(t.data) + p);
    }
}

__device__ __forceinline__ void write_chunk(const Rows& t, s64 p, const s32 (&v)[16]) {
    Word w;
    uint4* to = reinterpret_cast<uint4*>(static_cast<u8*>(t.data) + p);
    if (t.kind == KIND_S8 || t.kind == KIND_U8) {
#pragma unroll
        for (int i = 0; i < 16; ++i) w.as_s8[i] = s8(v[i]);
        *to = w.bits;
    } else if (t.kind == KIND_S16 || t.kind == KIND_U16) {
        to = reinterpret_cast<uint4*>(static_cast<u8*>(t.data) + p * 2);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int i = 0; i < 8; ++i) w.as_s16[i] = s16(v[h * 8 + i]);
            to[h] = w.bits;
        }
    } else {
        to = reinterpret_cast<uint4*>(static_cast<u8*>(t.data) + p * 4);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
#pragma unroll
            for (int i = 0; i < 4; ++i) w.as_s32[i] = v[q * 4 + i];
            to[q] = w.bits;
        }
    }
}

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
                             s32 channels, s32 x_min) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        s32 v[16];
        read_chunk(x, position(x, at), v);
        const View t = {const_cast<void*>(table), 0, {}, table_kind};
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const int c = at.channel + j < channels ? at.channel + j : channels - 1;
            v[j] = s32(load(t, s64(c) * table_stride + v[j] - x_min));
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

// What sums become before they are stored: requantized by one pair, or (multiplier 0) nothing else.
struct Rescale {
    s32 multiplier, shift, x_zero, zero_point, lo, hi;

    __device__ __forceinline__ void apply(s32 (&v)[16]) const {
        if (!multiplier) return;
#pragma unroll
        for (int j = 0; j < 16; ++j) v[j] = requantize(s64(v[j]) - x_zero, multiplier, shift, zero_point, lo, hi);
    }
};

// Windows over images; x.pixel_stride is the step between its columns.
template <bool is_max>
__global__ void pool_chunks(Extent extent, Rows x, Rows y, Window w, s32 out_width, Rescale rescale) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        const int oy = at.pixel / out_width, ox = at.pixel - oy * out_width;
        s32 result[16], v[16];
#pragma unroll
        for (int j = 0; j < 16; ++j) result[j] = is_max ? w.pad_value : 0;
        for (int ky = 0; ky < w.kernel_h; ++ky) {
            const int iy = oy * w.stride_h - w.pad_top + ky * w.dilation_h;
            for (int kx = 0; kx < w.kernel_w; ++kx) {
                const int ix = ox * w.stride_w - w.pad_left + kx * w.dilation_w;
                if (iy >= 0 && iy < w.height && ix >= 0 && ix < w.width) {
                    read_chunk(x, at.image * x.image_stride + (s64(iy) * w.width + ix) * x.pixel_stride + at.channel, v);
#pragma unroll
                    for (int j = 0; j < 16; ++j)
                        result[j] = is_max ? (v[j] > result[j] ? v[j] : result[j]) : result[j] + v[j];
                } else if (!is_max) {
#pragma unroll
                    for (int j = 0; j < 16; ++j) result[j] += w.pad_value;
                }
            }
        }
        rescale.apply(result);
        write_chunk(y, position(y, at), result);
    }
}

// Sum (or maximum) over all pixels of an image; a warp takes a chunk, its lanes every 32nd pixel.
// extent: pixels = 1 (of the output); pixels: of the input.
template <bool is_max>
__global__ void reduce_chunks(Extent extent, Rows x, Rows y, s32 pixels, Rescale rescale) {
    const int lane = threadIdx.x & 31;
    const s64 warps = s64(gridDim.x) * (blockDim.x >> 5);
    for (s64 i = s64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); i < extent.count; i += warps) {
        const Chunk at(extent, int(i));
        const s64 from = at.image * x.image_stride + at.channel;
        s32 result[16], v[16];
#pragma unroll
        for (int j = 0; j < 16; ++j) result[j] = is_max ? s32(0x80000000u) : 0;
        for (int p = lane; p < pixels; p += 32) {
            read_chunk(x, from + p * x.pixel_stride, v);
#pragma unroll
            for (int j = 0; j < 16; ++j) result[j] = is_max ? (v[j] > result[j] ? v[j] : result[j]) : result[j] + v[j];
        }
#pragma unroll
        for (int j = 0; j < 16; ++j)
            for (int mask = 16; mask > 0; mask >>= 1) {
                const s32 other = __shfl_xor_sync(0xffffffffu, result[j], mask);
                result[j] = is_max ? (other > result[j] ? other : result[j]) : result[j] + other;
            }
        rescale.apply(result);
        if (lane == 0) write_chunk(y, position(y, at), result);
    }
}

// The border of an image network: float32 planes (images, planes <= 4, pixels) to pixels of four bytes; a thread takes one
// pixel, so that a warp reads whole lines and writes one.
__global__ void quantize_pixels(const float* x, u8* y, s64 images, s32 pixels, s32 planes, float scale, Grid grid) {
    QIR_FOR_EACH(i, images * pixels) {
        const s64 image = i / pixels;
        const float* from = x + image * planes * pixels + (i - image * pixels);
        u32 word = 0;
#pragma unroll
        for (int c = 0; c < 4; ++c)
            if (c < planes)
                word |= (u32(quantized(from[s64(c) * pixels], scale, grid)) & 255u) << (8 * c);
        reinterpret_cast<u32*>(y)[i] = word;
    }
}

}  // namespace qir
