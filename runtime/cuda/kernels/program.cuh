// The epilogue as a program: what a launch does to its accumulators, known when the plan is made (operators/epilogue.py)
// and compiled into the kernel as flags of a template argument, so that one straight line is left of it.
//
// GENERAL: the flags are read from the epilogue's own field instead. The same text then answers for every launch: what the
// emulation runs, one instance a kernel.
#pragma once
#include "epilogue.cuh"
#include <ptx.cuh>

namespace qir {

constexpr u32 GENERAL = ~0u;

enum Program : u32 {
    WORDS = 1u << 0,          // chunks of a pixel in 16-byte (8-byte) words; otherwise one by one, by `finish`
    SCALE_HIGH = 1u << 1,     // requantize: all shifts at least 33, rounding (and zero point) added to the high word
    SCALE_FITS = 1u << 2,     // requantize: in 64 bits, the result fits 32
    SCALE_WIDE = 1u << 3,     // requantize: in 64 bits, the result clamped there
    ZERO_LATER = 1u << 4,     // the zero point is not part of the rounding constant
    SCALE_LO = 1u << 5,       // the clamp from below is to be done
    SCALE_HI = 1u << 6,
    RESIDUAL_S8 = 1u << 7,
    RESIDUAL_U8 = 1u << 8,
    RESIDUAL_S16 = 1u << 9,
    RESIDUAL_U16 = 1u << 10,
    SUM_WIDE = 1u << 11,      // the fused addition does not fit 32 bits once it is shifted
    SUM_LO = 1u << 12,
    SUM_HI = 1u << 13,
    TABLE = 1u << 14,
    SECOND = 1u << 15,        // a second result, of 8 bits
    SECOND_SIGNED = 1u << 16,
    SECOND_LO = 1u << 17,
    SECOND_HI = 1u << 18,
    OUT_8 = 1u << 19,         // neither: 32 bits
    OUT_16 = 1u << 20,
    OUT_SIGNED = 1u << 21,
    NARROW = 1u << 22,        // one result of 8 bits and no residual: 16 channels to a thread, otherwise 8
};

constexpr u32 SCALED = SCALE_HIGH | SCALE_FITS | SCALE_WIDE;
constexpr u32 RESIDUAL_8 = RESIDUAL_S8 | RESIDUAL_U8, RESIDUAL_16 = RESIDUAL_S16 | RESIDUAL_U16;
constexpr u32 WITH_RESIDUAL = RESIDUAL_8 | RESIDUAL_16;

// Whether the program has any of these flags.
template <u32 P>
__device__ __forceinline__ bool has(const Epilogue& e, u32 flags) {
    return ((P == GENERAL ? e.program : P) & flags) != 0;
}

// W bytes (4, 8 or 16), or twice as many, of global memory.
template <int W>
struct Words {
    u32 bits[W / 2];

    template <int COUNT>
    __device__ __forceinline__ void load(const void* from) {
        if constexpr (COUNT == 1) {
            bits[0] = read_once(from);
        } else if constexpr (COUNT == 2) {
            const uint2 v = read_once2(from);
            bits[0] = v.x, bits[1] = v.y;
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; i += 4) {
                const uint4 v = read_once4(static_cast<const u8*>(from) + i * 4);
                bits[i] = v.x, bits[i + 1] = v.y, bits[i + 2] = v.z, bits[i + 3] = v.w;
            }
        }
    }
};

template <int COUNT>
__device__ __forceinline__ void store_words(void* to, const u32* bits) {
    if constexpr (COUNT == 1) {
        *static_cast<u32*>(to) = bits[0];
    } else if constexpr (COUNT == 2) {
        uint2 v;
        v.x = bits[0], v.y = bits[1];
        *static_cast<uint2*>(to) = v;
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4)
            *reinterpret_cast<uint4*>(static_cast<u8*>(to) + i * 4) = make_uint4(bits[i], bits[i + 1], bits[i + 2], bits[i + 3]);
    }
}

// W channels of a residual of 8 or 16 bits from element `at` on.
template <u32 P, int W>
__device__ __forceinline__ void load_line(const Epilogue& e, Words<W>& r, s64 at) {
    if (has<P>(e, RESIDUAL_8)) r.template load<W / 4>(static_cast<const u8*>(e.residual) + at);
    else if (has<P>(e, RESIDUAL_16)) r.template load<W / 2>(static_cast<const u8*>(e.residual) + at * 2);
}

template <u32 P, int W>
__device__ __forceinline__ s32 residual_at(const Epilogue& e, const Words<W>& r, int i) {
    if (has<P>(e, RESIDUAL_8)) {
        const u32 by = r.bits[i / 4] >> (i % 4 * 8);
        return has<P>(e, RESIDUAL_S8) ? s32(s8(by)) : s32(u8(by));
    }
    const u32 by = r.bits[i / 2] >> (i % 2 * 16);
    return has<P>(e, RESIDUAL_S16) ? s32(s16(by)) : s32(u16(by));
}

// What W channels need of the constants, kept for all the pixels that a thread finishes.
template <u32 P, int W>
struct LineConstants {
    s32 multiplier[W], shift[W], low[W], high[W];  // low, high: of the rounding constant; low alone where 32 bits do
    s64 add_constant, second_constant;  // in registers: no instruction takes both a factor and an addend from elsewhere

    LineConstants() = default;
    __device__ __forceinline__ LineConstants(const Epilogue& e, int c) { read(e, c); }

    __device__ __forceinline__ void read(const Epilogue& e, int c) {
        add_constant = e.add_constant, second_constant = e.second_constant;
        if (has<P>(e, WITH_RESIDUAL)) forget(add_constant);
        if (has<P>(e, SECOND)) forget(second_constant);
        if (!has<P>(e, SCALED)) return;
        read_constants<W>(multiplier, e.multiplier + c);
        read_constants<W>(shift, e.shift + c);
        if (has<P>(e, SCALE_HIGH)) {
            read_constants<W>(low, static_cast<const s32*>(e.rounding) + c);
#pragma unroll
            for (int i = 0; i < W; ++i) shift[i] -= 32;
        } else {
            s32 pairs[W * 2];
            read_constants<W * 2>(pairs, static_cast<const s32*>(e.rounding) + c * 2);
#pragma unroll
            for (int i = 0; i < W; ++i) low[i] = pairs[i * 2], high[i] = pairs[i * 2 + 1];
        }
    }

    __device__ __forceinline__ s64 rounding(int i) const { return s64(u64(u32(high[i])) << 32 | u32(low[i])); }
};

__device__ __forceinline__ s32 at_least(s32 v, s32 lo) { return v < lo ? lo : v; }
__device__ __forceinline__ s32 at_most(s32 v, s32 hi) { return v > hi ? hi : v; }

// Channel i of a line: the accumulator (bias and all) through requantization, addition and table.
template <u32 P, int W>
__device__ __forceinline__ s32 through(const Epilogue& e, const LineConstants<P, W>& k, const Words<W>& r, s32 v, int i) {
    if (!has<P>(e, SCALED)) return v;
    if (has<P>(e, SCALE_HIGH)) {
        v = (multiply_high(v, k.multiplier[i]) + k.low[i]) >> k.shift[i];
    } else {
        const s64 wide = multiply_wide_add(v, k.multiplier[i], k.rounding(i)) >> k.shift[i];
        if (has<P>(e, SCALE_FITS)) v = s32(wide);
        else v = clamp(wide + (has<P>(e, ZERO_LATER) ? e.zero_point : 0), e.lo, e.hi);
    }
    if (!has<P>(e, SCALE_WIDE)) {
        if (has<P>(e, ZERO_LATER)) v += e.zero_point;
        if (has<P>(e, SCALE_LO)) v = at_least(v, e.lo);
        if (has<P>(e, SCALE_HI)) v = at_most(v, e.hi);
    }
    if (has<P>(e, WITH_RESIDUAL)) {
        const s64 other = multiply_wide_add(residual_at<P, W>(e, r, i), e.b_multiplier, k.add_constant);
        const s64 sum = multiply_wide_add(v, e.a_multiplier, other) >> e.add_shift;
        if (has<P>(e, SUM_WIDE)) {
            v = clamp(sum, e.add_lo, e.add_hi);
        } else {
            v = s32(sum);
            if (has<P>(e, SUM_LO)) v = at_least(v, e.add_lo);
            if (has<P>(e, SUM_HI)) v = at_most(v, e.add_hi);
        }
    }
    return has<P>(e, TABLE) ? look_up(e, v) : v;
}

template <u32 P>
__device__ __forceinline__ s32 second_through(const Epilogue& e, s32 y, s64 constant) {
    s32 v = s32(multiply_wide_add(y, e.second_multiplier, constant) >> e.second_shift);
    if (has<P>(e, SECOND_LO)) v = at_least(v, e.second_lo);
    if (has<P>(e, SECOND_HI)) v = at_most(v, e.second_hi);
    return v;
}

// W channels of a pixel, from their accumulators (with bias), to element `at` of the output and `second_at` of the second.
template <u32 P, int W>
__device__ __forceinline__ void finish_line(const Epilogue& e, const LineConstants<P, W>& k, const Words<W>& r,
                                            const s32 (&v)[W], void* output, s64 at, s64 second_at) {
    u8* to = static_cast<u8*>(output);
    u32 out[W / 2], second[W / 4];
#pragma unroll
    for (int q = 0; q < W / 4; ++q) {
        s32 y[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) y[j] = through<P, W>(e, k, r, v[q * 4 + j], q * 4 + j);
        if (has<P>(e, SECOND)) {
            s32 z[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) z[j] = second_through<P>(e, y[j], k.second_constant);
            second[q] = has<P>(e, SECOND_SIGNED) ? pack_saturated<true>(z) : pack_saturated<false>(z);
        }
        if (has<P>(e, OUT_8)) {
            if (has<P>(e, TABLE))
                out[q] = u32(y[0] & 255) | u32(y[1] & 255) << 8 | u32(y[2] & 255) << 16 | u32(y[3]) << 24;
            else
                out[q] = has<P>(e, OUT_SIGNED) ? pack_saturated<true>(y) : pack_saturated<false>(y);
        } else if (has<P>(e, OUT_16)) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                out[q * 2 + j] = has<P>(e, TABLE) || !has<P>(e, OUT_SIGNED)
                    ? u32(y[j * 2] & 65535) | u32(y[j * 2 + 1]) << 16
                    : pack_saturated_16(y[j * 2], y[j * 2 + 1]);
            }
        } else {
            const u32 four[4] = {u32(y[0]), u32(y[1]), u32(y[2]), u32(y[3])};
            store_words<4>(to + (at + q * 4) * 4, four);
        }
    }
    if (has<P>(e, SECOND)) store_words<W / 4>(static_cast<u8*>(e.second) + second_at, second);
    if (has<P>(e, OUT_8)) store_words<W / 4>(to + at, out);
    else if (has<P>(e, OUT_16)) store_words<W / 2>(to + at * 2, out);
}

// W consecutive columns (a multiple of them on) of a row of the staging tile of implicit_gemm.cuh, or of anything else.
template <u32 P, int W>
__device__ __forceinline__ void finish_pixel(const Epilogue& e, const LineConstants<P, W>& k, const s32 (&v)[W], s64 m, int c) {
    Words<W> r;
    load_line<P, W>(e, r, m * e.residual_stride + e.residual_offset + c);
    finish_line<P, W>(e, k, r, v, e.output, m * e.output_stride + e.output_offset + c, m * e.second_stride + e.second_offset + c);
}

}  // namespace qir
