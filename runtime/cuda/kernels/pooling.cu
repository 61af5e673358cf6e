// Pooling of tensors whose channels lie side by side.
//
// Bytes are pooled four at a time, two in each half of a register: the greatest of two bytes is the upper half of the greatest
// of two 16-bit numbers that they are the upper halves of, whatever lies below; sums of bytes fit 16 bits up to 256 of them.
#include "chunks.cuh"

namespace qir {

// 16 bytes as pairs of 16 bits: bytes 0 and 2 of each word in `even`, 1 and 3 in `odd`.
struct Pairs {
    u32 even[4], odd[4];
};

// The greatest of two bytes each, which are the upper halves of their 16 bits.
template <bool x_signed>
__device__ __forceinline__ void take_greatest(Pairs& p, const uint4& word) {
    const u32 words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        p.even[q] = greatest_pair<x_signed>(p.even[q], words[q] << 8);
        p.odd[q] = greatest_pair<x_signed>(p.odd[q], words[q]);
    }
}

// Sums of unsigned bytes; those of signed ones, 128 more each.
template <bool x_signed>
__device__ __forceinline__ void add_bytes(Pairs& p, const uint4& word) {
    const u32 words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const u32 w = x_signed ? words[q] ^ 0x80808080u : words[q];
        p.even[q] += w & 0x00ff00ffu;
        p.odd[q] += w >> 8 & 0x00ff00ffu;
    }
}

// The 16 values of pairs, `rest` added to each.
template <bool is_max, bool x_signed>
__device__ __forceinline__ void unpack(s32 (&v)[16], const Pairs& p, s32 rest) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const u32 four[4] = {p.even[q], p.odd[q], p.even[q] >> 16, p.odd[q] >> 16};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const u32 by = is_max ? four[j] >> 8 & 255 : four[j] & 65535;
            v[q * 4 + j] = (is_max && x_signed ? s32(s8(by)) : s32(by)) + rest;
        }
    }
}

// The part of a window that is inside the image.
struct Inside {
    int first, count;  // steps of the window

    __device__ __forceinline__ Inside(int start, int size, int kernel, int dilation) {
        int last = size - start;
        first = start < 0 ? -start : 0;
        if (dilation > 1) {
            first = (first + dilation - 1) / dilation;
            last = last > 0 ? (last - 1) / dilation + 1 : 0;
        }
        count = (last < kernel ? last : kernel) - first;
        if (count < 0) count = 0;
    }
};

// Windows over images of bytes; at most 256 taps to a sum. x.pixel_stride is the step between its columns.
template <bool is_max, bool x_signed>
__global__ void pool_bytes(Extent extent, Rows x, Rows y, Window w, s32 out_width, Rescale rescale) {
    QIR_FOR_EACH(i, extent.count) {
        const Chunk at(extent, int(i));
        const int oy = int(u32(at.pixel) / u32(out_width)), ox = at.pixel - oy * out_width;
        const int top = oy * w.stride_h - w.pad_top, left = ox * w.stride_w - w.pad_left;
        const Inside rows(top, w.height, w.kernel_h, w.dilation_h), columns(left, w.width, w.kernel_w, w.dilation_w);
        const s64 step = s64(w.dilation_w) * x.pixel_stride, line = s64(w.dilation_h) * w.width * x.pixel_stride;
        const u8* from = static_cast<const u8*>(x.data) + at.image * x.image_stride + at.channel +
            (s64(top + rows.first * w.dilation_h) * w.width + left + columns.first * w.dilation_w) * x.pixel_stride;
        const u32 least = is_max ? u32(u8(w.pad_value)) * 0x01010101u : 0;
        Pairs p;
#pragma unroll
        for (int q = 0; q < 4; ++q) p.even[q] = is_max ? least << 8 : 0, p.odd[q] = least;
#pragma unroll 1
        for (int ky = 0; ky < rows.count; ++ky, from += line) {
            const u8* here = from;
#pragma unroll 3
            for (int kx = 0; kx < columns.count; ++kx, here += step) {
                const uint4 word = read_once4(here);
                if (is_max) take_greatest<x_signed>(p, word);
                else add_bytes<x_signed>(p, word);
            }
        }
        if (is_max && !rescale.multiplier) {
            Word out;
            u32 words[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) words[q] = permute_bytes(p.even[q], p.odd[q], 0x7351);
            out.bits = make_uint4(words[0], words[1], words[2], words[3]);
            *reinterpret_cast<uint4*>(static_cast<u8*>(y.data) + position(y, at)) = out.bits;
            continue;
        }
        const int taps = rows.count * columns.count;
        const s32 rest = is_max ? 0 : (w.kernel_h * w.kernel_w - taps) * w.pad_value - (x_signed ? 128 * taps : 0);
        s32 v[16];
        unpack<is_max, x_signed>(v, p, rest);
        rescale.apply(v);
        write_chunk(y, position(y, at), v);
    }
}

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

// Sum (or maximum) over all pixels of an image. `side` lanes of a warp (a power of two) take neighbouring chunks, the others
// pixels: lane l the pixels l / side, + 32 / side ...  extent: pixels = 1 (of the output); pixels: of the input.
template <bool is_max>
__global__ void reduce_chunks(Extent extent, Rows x, Rows y, s32 pixels, s32 side, Rescale rescale) {
    const int lane = threadIdx.x & 31, lanes = 32 / side;
    const s64 groups = s64(extent.count / extent.chunks) * ((extent.chunks + side - 1) / side);  // of chunks of one image
    const s64 warps = s64(gridDim.x) * (blockDim.x >> 5);
    for (s64 i = s64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5); i < groups; i += warps) {
        const int across = (extent.chunks + side - 1) / side, image = int(i / across);
        const int chunk = int(i - s64(image) * across) * side + lane % side;
        const bool real = chunk < extent.chunks;
        const s64 from = image * x.image_stride + chunk * 16;
        s32 result[16], v[16];
#pragma unroll
        for (int j = 0; j < 16; ++j) result[j] = is_max ? s32(0x80000000u) : 0;
        const bool bytes = !is_max && (x.kind == KIND_S8 || x.kind == KIND_U8);
        for (int p = lane / side; real && p < pixels;) {
            if (bytes) {  // 256 at a time fit 16 bits
                Pairs sums = {};
                int count = 0;
                for (; p < pixels && count < 256; p += lanes, ++count) {
                    uint4 word = read_once4(static_cast<const u8*>(x.data) + from + p * x.pixel_stride);
                    if (x.kind == KIND_S8) add_bytes<true>(sums, word);
                    else add_bytes<false>(sums, word);
                }
                unpack<false, false>(v, sums, x.kind == KIND_S8 ? -128 * count : 0);
            } else {
                read_chunk(x, from + p * x.pixel_stride, v);
                p += lanes;
            }
#pragma unroll
            for (int j = 0; j < 16; ++j) result[j] = is_max ? (v[j] > result[j] ? v[j] : result[j]) : result[j] + v[j];
        }
#pragma unroll 1
        for (int mask = 16; mask >= side; mask >>= 1)
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                const s32 other = __shfl_xor_sync(0xffffffffu, result[j], mask);
                result[j] = is_max ? (other > result[j] ? other : result[j]) : result[j] + other;
            }
        rescale.apply(result);
        if (lane < side && real) write_chunk(y, image * y.image_stride + chunk * 16, result);
    }
}

}  // namespace qir
