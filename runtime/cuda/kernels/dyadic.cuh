// Rounding and rescaling: the counterpart of qir/dyadic.py, and the only other place where rounding is written down.
// The canon is TOSA RESCALE, SINGLE_ROUND, 32-bit multiplier  [HAWQ-V3 eq. 6-7, docs/arithmetic.md 1-4].
#pragma once

namespace qir {

typedef signed char s8;
typedef unsigned char u8;
typedef short s16;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

// (x + 2^(shift-1)) >> shift, arithmetic: round half up. shift in [1, 62].
__device__ __forceinline__ s64 rounding_shift(s64 x, int shift) {
    return (x + (s64(1) << (shift - 1))) >> shift;
}

__device__ __forceinline__ s32 clamp(s64 x, s32 lo, s32 hi) {
    return s32(x < lo ? lo : (x > hi ? hi : x));
}

// clamp(((x * multiplier + 2^(shift-1)) >> shift) + zero_point, lo, hi), the product in 64 bits.
// x may need 33 bits (x - x_zero_point), which a 32-bit multiplier below 2^30 or a small x leaves room for.
__device__ __forceinline__ s32 requantize(s64 x, s32 multiplier, int shift, s32 zero_point, s32 lo, s32 hi) {
    return clamp(rounding_shift(x * multiplier, shift) + zero_point, lo, hi);
}

// The same for an int32 accumulator: one 32 x 32 -> 64 multiply (IMAD.WIDE).
__device__ __forceinline__ s32 requantize(s32 x, s32 multiplier, int shift, s32 zero_point, s32 lo, s32 hi) {
    return clamp(rounding_shift(s64(x) * multiplier, shift) + zero_point, lo, hi);
}

}  // namespace qir
