// Tensors whose channels lie side by side, for the kernels that take 16 channels of a pixel to a thread.
#pragma once
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

// What sums become before they are stored: requantized by one pair, or (multiplier 0) nothing else.
struct Rescale {
    s32 multiplier, shift, x_zero, zero_point, lo, hi;

    __device__ __forceinline__ void apply(s32 (&v)[16]) const {
        if (!multiplier) return;
#pragma unroll
        for (int j = 0; j < 16; ++j) v[j] = requantize(s64(v[j]) - x_zero, multiplier, shift, zero_point, lo, hi);
    }
};

}  // namespace qir
