// What happens to an accumulator before it is stored: bias, dyadic requantize, residual addition, clamp, table.
// One definition for every kernel that ends in one, so that the arithmetic exists once.
#pragma once
#include "dyadic.cuh"

namespace qir {

// How an accumulator leaves the kernel.
enum Store : int { STORE_I32 = 0, STORE_I8 = 1, STORE_I16 = 2 };

// Arguments of an epilogue; mirrored by the NumPy structured dtype in runtime/cuda/arguments.py (same order, aligned).
struct Epilogue {
    const s32* bias;        // (channels), or null
    const s32* multiplier;  // (channels) when per_channel, else (1)
    const s32* shift;       // likewise
    const void* residual;   // the other operand of a fused addition, laid out like the output, or null
    const void* table;      // 256 entries of the output dtype indexed by the low byte of the requantized value, or null
    void* output;           // element (m, c) at output[m * output_stride + output_offset + c]
    s64 output_stride;      // elements between pixels of the output (its buffer may be a wider, concatenated one)
    s64 output_offset;
    s64 residual_stride;
    s64 residual_offset;
    s32 per_channel;
    s32 store;              // Store
    s32 zero_point, lo, hi; // of the convolution's own requantization
    s32 residual_bits;      // 8, 16 or 32
    s32 residual_signed;
    // fused qir.Add: clamp(((v * a_multiplier + r * b_multiplier + add_constant) >> add_shift) + add_zero, lo, hi)
    s64 add_constant;       // 2^(shift-1) - z_a m_a - z_b m_b
    s32 a_multiplier, b_multiplier, add_shift, add_zero, add_lo, add_hi;
};

__device__ __forceinline__ s32 load_residual(const Epilogue& e, s64 at) {
    if (e.residual_bits == 8)
        return e.residual_signed ? s32(static_cast<const s8*>(e.residual)[at]) : s32(static_cast<const u8*>(e.residual)[at]);
    if (e.residual_bits == 16)
        return e.residual_signed ? s32(static_cast<const s16*>(e.residual)[at]) : s32(static_cast<const u16*>(e.residual)[at]);
    return static_cast<const s32*>(e.residual)[at];
}

// The value of output channel `c` of pixel `m` from its accumulator (without bias).
__device__ __forceinline__ s32 finish(const Epilogue& e, s32 acc, s64 m, int c) {
    if (e.bias) acc += e.bias[c];
    if (!e.multiplier) return acc;
    const int k = e.per_channel ? c : 0;
    s32 v = requantize(acc, e.multiplier[k], e.shift[k], e.zero_point, e.lo, e.hi);
    if (e.residual) {
        const s64 r = load_residual(e, m * e.residual_stride + e.residual_offset + c);
        const s64 sum = s64(v) * e.a_multiplier + r * e.b_multiplier + e.add_constant;
        v = clamp((sum >> e.add_shift) + e.add_zero, e.add_lo, e.add_hi);
    }
    if (e.table) {
        const int i = v & 255;
        v = e.store == STORE_I16 ? s32(static_cast<const s16*>(e.table)[i]) : s32(static_cast<const s8*>(e.table)[i]);
    }
    return v;
}

__device__ __forceinline__ void store(const Epilogue& e, s32 v, s64 m, int c) {
    const s64 at = m * e.output_stride + e.output_offset + c;
    if (e.store == STORE_I8)
        static_cast<s8*>(e.output)[at] = s8(v);
    else if (e.store == STORE_I16)
        static_cast<s16*>(e.output)[at] = s16(v);
    else
        static_cast<s32*>(e.output)[at] = v;
}

}  // namespace qir
