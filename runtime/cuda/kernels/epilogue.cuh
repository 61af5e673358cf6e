// What happens to an accumulator before it is stored: bias, dyadic requantize, residual addition, clamp, table.
// One definition for every kernel that ends in one, so that the arithmetic exists once.
#pragma once
#include "view.cuh"

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
    s32 vectors;            // 1: 16 channels of a pixel are stored (and constants read) as 16-byte words, past the last one too
    s32 residual_vectors;   // 1: and the residual read so
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

__device__ __forceinline__ s32 look_up(const Epilogue& e, s32 v) {
    const int i = v & 255;
    return e.store == STORE_I16 ? s32(static_cast<const s16*>(e.table)[i]) : s32(static_cast<const s8*>(e.table)[i]);
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
    return e.table ? look_up(e, v) : v;
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

// N int32 constants of consecutive channels.
template <int N>
__device__ __forceinline__ void read_constants(s32 (&v)[N], const s32* from) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        Word w;
        w.bits = word_at(from, i * 16);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[i * 4 + j] = w.as_s32[j];
    }
}

// 16 channels of the residual, starting at element `at`.
__device__ __forceinline__ void read_residual(const Epilogue& e, s64 at, s32 (&r)[16]) {
    Word w;
    if (e.residual_bits == 8) {
        w.bits = word_at(e.residual, at);
#pragma unroll
        for (int i = 0; i < 16; ++i) r[i] = e.residual_signed ? s32(w.as_s8[i]) : s32(w.as_u8[i]);
    } else if (e.residual_bits == 16) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            w.bits = word_at(e.residual, at * 2 + h * 16);
#pragma unroll
            for (int i = 0; i < 8; ++i) r[h * 8 + i] = e.residual_signed ? s32(w.as_s16[i]) : s32(w.as_u16[i]);
        }
    } else {
        read_constants<16>(r, static_cast<const s32*>(e.residual) + at);
    }
}

// finish and store of 16 channels of pixel m from c on (a multiple of 16), in 16-byte accesses where the layouts allow;
// `channels`: how many there are in all.
__device__ __forceinline__ void finish_chunk(const Epilogue& e, s32 (&v)[16], s64 m, int c, int channels) {
    if (!e.vectors || (e.residual && !e.residual_vectors)) {
#pragma unroll
        for (int i = 0; i < 16; ++i)
            if (c + i < channels) store(e, finish(e, v[i], m, c + i), m, c + i);
        return;
    }
    s32 other[16];
    if (e.bias) {
        read_constants<16>(other, e.bias + c);
#pragma unroll
        for (int i = 0; i < 16; ++i) v[i] += other[i];
    }
    if (e.multiplier) {
        if (e.per_channel) {
            s32 shift[16];
            read_constants<16>(other, e.multiplier + c);
            read_constants<16>(shift, e.shift + c);
#pragma unroll
            for (int i = 0; i < 16; ++i) v[i] = requantize(v[i], other[i], shift[i], e.zero_point, e.lo, e.hi);
        } else {
            const s32 multiplier = e.multiplier[0], shift = e.shift[0];
#pragma unroll
            for (int i = 0; i < 16; ++i) v[i] = requantize(v[i], multiplier, shift, e.zero_point, e.lo, e.hi);
        }
        if (e.residual) {
            read_residual(e, m * e.residual_stride + e.residual_offset + c, other);
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const s64 sum = s64(v[i]) * e.a_multiplier + s64(other[i]) * e.b_multiplier + e.add_constant;
                v[i] = clamp((sum >> e.add_shift) + e.add_zero, e.add_lo, e.add_hi);
            }
        }
        if (e.table) {
#pragma unroll
            for (int i = 0; i < 16; ++i) v[i] = look_up(e, v[i]);
        }
    }
    const s64 at = m * e.output_stride + e.output_offset + c;
    Word w;
    if (e.store == STORE_I8) {
#pragma unroll
        for (int i = 0; i < 16; ++i) w.as_s8[i] = s8(v[i]);
        *reinterpret_cast<uint4*>(static_cast<s8*>(e.output) + at) = w.bits;
    } else if (e.store == STORE_I16) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int i = 0; i < 8; ++i) w.as_s16[i] = s16(v[h * 8 + i]);
            *reinterpret_cast<uint4*>(static_cast<s16*>(e.output) + at + h * 8) = w.bits;
        }
    } else {
#pragma unroll
        for (int q = 0; q < 4; ++q) {
#pragma unroll
            for (int i = 0; i < 4; ++i) w.as_s32[i] = v[q * 4 + i];
            *reinterpret_cast<uint4*>(static_cast<s32*>(e.output) + at + q * 4) = w.bits;
        }
    }
}

}  // namespace qir
