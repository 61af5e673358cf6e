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

    // The multi-index of flat position i (row-major).
    __device__ __forceinline__ Index(const Shape& shape, s64 i) {
#pragma unroll
        for (int d = RANK - 1; d >= 0; --d) {
            const s64 next = i / shape.dims[d];
            at[d] = s32(i - next * shape.dims[d]);
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

// Grid-stride loop over the elements of an output.
#define QIR_FOR_EACH(i, count)                                                                   \
    for (s64 i = s64(blockIdx.x) * blockDim.x + threadIdx.x, qir_step = s64(gridDim.x) * blockDim.x; \
         i < (count); i += qir_step)

}  // namespace qir
