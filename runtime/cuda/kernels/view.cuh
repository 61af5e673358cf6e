// Strided tensors of any integer type, for the kernels that go element by element.
#pragma once
#include "dyadic.cuh"

namespace qir {

constexpr int RANK = 6;

enum Kind : int { KIND_S8, KIND_U8, KIND_S16, KIND_U16, KIND_S32, KIND_S64, KIND_F32 };

// Element strides of an operand along the axes of the output's shape (0 along a broadcast one).
struct View {
    void* data;
    s64 offset;
    s64 strides[RANK];
    s32 kind;
};

struct Shape {
    s64 count;        // product of dims
    s32 dims[RANK];   // leading ones
};

struct Index {
    s32 at[RANK];

    // The multi-index of flat position i (row-major). Divisions take 32 bits where the whole shape fits: a 64-bit one
    // costs several times as much, and axes of one element none.
    __device__ __forceinline__ Index(const Shape& shape, s64 i) {
        if (shape.count >> 31) {
            split<s64>(shape, i);
        } else {
            split<u32>(shape, u32(i));
        }
    }

    template <class T>
    __device__ __forceinline__ void split(const Shape& shape, T i) {
#pragma unroll
        for (int d = RANK - 1; d >= 0; --d) {
            if (shape.dims[d] == 1) {
                at[d] = 0;
                continue;
            }
            const T next = i / T(shape.dims[d]);
            at[d] = s32(i - next * T(shape.dims[d]));
            i = next;
        }
    }
};

__device__ __forceinline__ s64 position(const View& v, const Index& index) {
    s64 p = v.offset;
#pragma unroll
    for (int d = 0; d < RANK; ++d) p += v.strides[d] * index.at[d];
    return p;
}

__device__ __forceinline__ s64 load(const View& v, s64 p) {
    switch (v.kind) {
        case KIND_S8: return static_cast<const s8*>(v.data)[p];
        case KIND_U8: return static_cast<const u8*>(v.data)[p];
        case KIND_S16: return static_cast<const s16*>(v.data)[p];
        case KIND_U16: return static_cast<const u16*>(v.data)[p];
        case KIND_S32: return static_cast<const s32*>(v.data)[p];
        default: return static_cast<const s64*>(v.data)[p];
    }
}

__device__ __forceinline__ void put(const View& v, s64 p, s64 value) {
    switch (v.kind) {
        case KIND_S8:
        case KIND_U8: static_cast<s8*>(v.data)[p] = s8(value); break;
        case KIND_S16:
        case KIND_U16: static_cast<s16*>(v.data)[p] = s16(value); break;
        case KIND_S32: static_cast<s32*>(v.data)[p] = s32(value); break;
        default: static_cast<s64*>(v.data)[p] = value;
    }
}

__device__ __forceinline__ s64 load(const View& v, const Index& index) { return load(v, position(v, index)); }

// Where a result goes: its zero point and limits.
struct Grid {
    s32 zero_point, lo, hi;
};

// A float on an integer grid: round half to even, saturating; NaN goes to the high end.
__device__ __forceinline__ s32 quantized(float x, float scale, const Grid& grid) {
    const float q = rintf(x / scale) + float(grid.zero_point), low = float(grid.lo), high = float(grid.hi);
    return s32(q < high ? (q > low ? q : low) : high);
}

// Pooling windows over images; 1-D pooling has height 1.
struct Window {
    s32 height, width;  // of the input
    s32 kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    s32 pad_value;      // what lies outside: counted by a sum, ignored by a maximum
};

// Grid-stride loop over the elements of an output.
#define QIR_FOR_EACH(i, count)                                                                   \
    for (s64 i = s64(blockIdx.x) * blockDim.x + threadIdx.x, qir_step = s64(gridDim.x) * blockDim.x; \
         i < (count); i += qir_step)

}  // namespace qir
