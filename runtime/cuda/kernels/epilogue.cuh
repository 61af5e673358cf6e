// What happens to an accumulator before it is stored: bias, dyadic requantize, residual addition, clamp, table.
// One definition for every kernel that ends in one, so that the arithmetic exists once.
#pragma once
#include <ptx.cuh>

#include "view.cuh"

namespace qir {

// How an accumulator leaves the kernel.
enum Store : int { STORE_I32 = 0, STORE_I8 = 1, STORE_I16 = 2 };

// Arguments of an epilogue; mirrored by the NumPy structured dtype in runtime/cuda/arguments.py (same order, aligned).
struct Epilogue {
    const s32* bias;        // (channels), or null
    const s32* multiplier;  // (channels), or null: sums as they are
    const s32* shift;       // (channels)
    const void* residual;   // the other operand of a fused addition, laid out like the output, or null
    const void* table;      // 256 entries of the output dtype indexed by the low byte of the requantized value, or null
    void* output;           // element (m, c) at output[m * output_stride + output_offset + c]
    s64 output_stride;      // elements between pixels of the output (its buffer may be a wider, concatenated one)
    s64 output_offset;
    s64 residual_stride;
    s64 residual_offset;
    s32 store;              // Store
    s32 zero_point, lo, hi; // of the convolution's own requantization
    s32 residual_bits;      // 8, 16 or 32
    s32 residual_signed;
    // fused qir.Add: clamp(((v * a_multiplier + r * b_multiplier + add_constant) >> add_shift) + add_zero, lo, hi)
    s64 add_constant;       // 2^(shift-1) - z_a m_a - z_b m_b
    s32 a_multiplier, b_multiplier, add_shift, add_zero, add_lo, add_hi;
    // the result requantized once more, to 8 bits: what the next convolution reads of a wider residual stream
    void* second;           // or null
    s64 second_stride, second_offset;
    s32 second_x_zero, second_multiplier, second_shift, second_zero, second_lo, second_hi;
    // for the programs of program.cuh
    s64 second_constant;    // 2^(shift-1) - x_zero * multiplier + (zero << shift)
    const void* rounding;   // (channels): rounding constants, s32 (of the high word) or s64
    u32 program;
};

__device__ __forceinline__ s32 load_residual(const Epilogue& e, s64 at) {
    if (e.residual_bits == 8)
        return e.residual_signed ? s32(static_cast<const s8*>(e.residual)[at]) : s32(static_cast<const u8*>(e.residual)[at]);
    if (e.residual_bits == 16)
        return e.residual_signed ? s32(static_cast<const s16*>(e.residual)[at]) : s32(static_cast<const u16*>(e.residual)[at]);
    return static_cast<const s32*>(e.residual)[at];
}

__device__ __forceinline__ s32 look_up(const Epilogue& e, s32 v) {
    const int i = v & 255;
    return e.store == STORE_I16 ? s32(static_cast<const s16*>(e.table)[i]) : s32(static_cast<const s8*>(e.table)[i]);
}

// The value of output channel `c` of pixel `m` from its accumulator (without bias, if BIAS).
template <bool BIAS = true>
__device__ __forceinline__ s32 finish(const Epilogue& e, s32 acc, s64 m, int c) {
    if (BIAS && e.bias) acc += e.bias[c];
    if (!e.multiplier) return acc;
    s32 v = requantize(acc, e.multiplier[c], e.shift[c], e.zero_point, e.lo, e.hi);
    if (e.residual) {
        const s64 r = load_residual(e, m * e.residual_stride + e.residual_offset + c);
        const s64 sum = s64(v) * e.a_multiplier + r * e.b_multiplier + e.add_constant;
        v = clamp((sum >> e.add_shift) + e.add_zero, e.add_lo, e.add_hi);
    }
    return e.table ? look_up(e, v) : v;
}

// The second result, from the first.
__device__ __forceinline__ s32 second_of(const Epilogue& e, s32 y) {
    const s32 x = y - e.second_x_zero;
    return requantize(x, e.second_multiplier, e.second_shift, e.second_zero, e.second_lo, e.second_hi);
}

__device__ __forceinline__ void store(const Epilogue& e, s32 v, s64 m, int c) {
    if (e.second) static_cast<s8*>(e.second)[m * e.second_stride + e.second_offset + c] = s8(second_of(e, v));
    const s64 at = m * e.output_stride + e.output_offset + c;
    if (e.store == STORE_I8)
        static_cast<s8*>(e.output)[at] = s8(v);
    else if (e.store == STORE_I16)
        static_cast<s16*>(e.output)[at] = s16(v);
    else
        static_cast<s32*>(e.output)[at] = v;
}

// 16 bytes as elements.
union Word {
    uint4 bits;
    u8 as_u8[16];
    s8 as_s8[16];
    s16 as_s16[8];
    u16 as_u16[8];
    s32 as_s32[4];
};

__device__ __forceinline__ uint4 word_at(const void* p, s64 byte) {
    return *reinterpret_cast<const uint4*>(static_cast<const u8*>(p) + byte);
}

// N int32 constants of consecutive channels, which nobody writes while the kernel runs.
template <int N>
__device__ __forceinline__ void read_constants(s32 (&v)[N], const s32* from) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        Word w;
        w.bits = read_once4(from + i * 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[i * 4 + j] = w.as_s32[j];
    }
}

// 16 channels of pixel m from c on, one by one; `channels`: how many there are in all.
template <bool BIAS = true>
__device__ __forceinline__ void finish_singly(const Epilogue& e, const s32 (&v)[16], s64 m, int c, int channels) {
#pragma unroll
    for (int i = 0; i < 16; ++i)
        if (c + i < channels) store(e, finish<BIAS>(e, v[i], m, c + i), m, c + i);
}

}  // namespace qir
