// Every PTX instruction the kernels use, one function each. The emulation supplies a header of the same name
// and the same functions in plain C++; nothing else in this folder may contain asm.
#pragma once
#include "dyadic.cuh"

// The block's dynamic shared memory, and static arrays in it (names unique within a kernel).
#define QIR_DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) type name[]
#define QIR_SHARED(type, name, count) __shared__ __align__(16) type name[count]

namespace qir {

__device__ __forceinline__ u32 shared_address(const void* p) {
    return u32(__cvta_generic_to_shared(p));
}

// A value the compiler takes for a new one: what follows from it is worked out again, not kept in registers over a loop.
__device__ __forceinline__ void forget(u32& v) { asm volatile("" : "+r"(v)); }

// The same of two words, also for the assembler, which would keep them where kernel arguments are; `lane >> 5` is zero.
__device__ __forceinline__ void forget(s64& v) {
    asm volatile("{.reg .u32 l; .reg .u64 w; mov.u32 l, %%laneid; shr.u32 l, l, 5; cvt.u64.u32 w, l; xor.b64 %0, %0, w;}" : "+l"(v));
}

// Brings the line of global memory that holds `p` into the L2 cache.
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Four bytes (eight, sixteen) of memory that nobody writes while the kernel runs.
__device__ __forceinline__ u32 read_once(const void* p) {
    u32 v;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 read_once2(const void* p) {
    uint2 v;
    asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
__device__ __forceinline__ uint4 read_once4(const void* p) {
    uint4 v;
    asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// Byte i of the result: byte (selector >> 4i & 7) of the eight of a (0 to 3) and b.
__device__ __forceinline__ u32 permute_bytes(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

// 16 bytes global -> shared. From sm_80 on asynchronous; before, through a register.
__device__ __forceinline__ void copy16_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global));
#else
    *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(global);
#endif
}

// 4 bytes likewise.
__device__ __forceinline__ void copy4_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global));
#else
    *reinterpret_cast<u32*>(shared) = *reinterpret_cast<const u32*>(global);
#endif
}

// Stores to what tensor cores read through the async proxy (wgmma.cuh); the emulation watches them.
__device__ __forceinline__ void store16_shared(void* shared, uint4 v) { *reinterpret_cast<uint4*>(shared) = v; }
__device__ __forceinline__ void store4_shared(void* shared, u32 v) { *reinterpret_cast<u32*>(shared) = v; }

__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}

// Wait until at most `pending` of this thread's latest copy groups are still under way.
template <int pending>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending));
#endif
}

// Four 8x8 matrices of 16-bit cells (8 rows of 16 bytes each): lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

// d (16x8, s32) += a (16x32, s8 or u8, row) * b (32x8, s8, col). Fragments as in PTX "m16n8k32".
template <bool a_signed>
__device__ __forceinline__ void mma_16x8x32(s32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    if (a_signed)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    // sm_75: four m8n8k16; the fragment layout of m16n8k32 is the same eight rows and sixteen columns at a time
#define QIR_MMA_8816(TYPE, D0, D1, A, B)                                                                     \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"          \
                 : "+r"(D0), "+r"(D1)                                                                         \
                 : "r"(A), "r"(B))
    if (a_signed) {
        QIR_MMA_8816("s8", d[0], d[1], a[0], b0);
        QIR_MMA_8816("s8", d[2], d[3], a[1], b0);
        QIR_MMA_8816("s8", d[0], d[1], a[2], b1);
        QIR_MMA_8816("s8", d[2], d[3], a[3], b1);
    } else {
        QIR_MMA_8816("u8", d[0], d[1], a[0], b0);
        QIR_MMA_8816("u8", d[2], d[3], a[1], b0);
        QIR_MMA_8816("u8", d[0], d[1], a[2], b1);
        QIR_MMA_8816("u8", d[2], d[3], a[3], b1);
    }
#undef QIR_MMA_8816
#endif
}

// d (16x8, s32) += a (16x64, s4 or u4, row) * b (64x8, s4, col), eight to a word, the lowest nibble first. sm_75 to sm_89.
// Fragments as in PTX "m16n8k64": words a[0], a[1] are rows lane/4 and 8 further down of k's 8 * (lane % 4) .., a[2], a[3]
// the same 32 k's on; so are b0, b1 of column lane/4.
template <bool a_signed>
__device__ __forceinline__ void mma_16x8x64(s32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
#define QIR_MMA_16864(TYPE)                                                                                              \
    asm volatile("mma.sync.aligned.m16n8k64.row.col.s32." TYPE ".s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "          \
                 "{%0,%1,%2,%3};"                                                                                         \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if (a_signed) QIR_MMA_16864("s4");
    else QIR_MMA_16864("u4");
#undef QIR_MMA_16864
#else
#define QIR_MMA_8832(TYPE, D0, D1, A, B)                                                                                 \
    asm volatile("mma.sync.aligned.m8n8k32.row.col.s32." TYPE ".s4.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"                     \
                 : "+r"(D0), "+r"(D1)                                                                                     \
                 : "r"(A), "r"(B))
#define QIR_MMA_FOUR(TYPE)                                                                                               \
    QIR_MMA_8832(TYPE, d[0], d[1], a[0], b0);                                                                            \
    QIR_MMA_8832(TYPE, d[2], d[3], a[1], b0);                                                                            \
    QIR_MMA_8832(TYPE, d[0], d[1], a[2], b1);                                                                            \
    QIR_MMA_8832(TYPE, d[2], d[3], a[3], b1)
    if (a_signed) {
        QIR_MMA_FOUR("s4");
    } else {
        QIR_MMA_FOUR("u4");
    }
#undef QIR_MMA_FOUR
#undef QIR_MMA_8832
#endif
}

// The greater of each of two pairs of 16 bits. Before sm_90 it takes several instructions.
template <bool is_signed>
__device__ __forceinline__ u32 greatest_pair(u32 a, u32 b) {
    return is_signed ? __vmaxs2(a, b) : __vmaxu2(a, b);
}

__device__ __forceinline__ u32 float_bits(float x) { return u32(__float_as_int(x)); }
__device__ __forceinline__ float bits_float(u32 x) { return __int_as_float(int(x)); }

// Signed four-way dot products; a is u8 or s8.
template <bool a_signed>
__device__ __forceinline__ s32 dot4(u32 a, u32 b, s32 c) {
    s32 d;
    if (a_signed)
        asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    else
        asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// The high word of a * b. What is added to it is another instruction, which costs less than mad.hi: that wants its addend
// in the upper of two registers, beside a zero, and two moves put it there.
__device__ __forceinline__ s32 multiply_high(s32 a, s32 b) { return __mulhi(a, b); }

__device__ __forceinline__ u32 multiply_high_unsigned(u32 a, u32 b) { return __umulhi(a, b); }

// a * b + c in 64 bits: one instruction, where C++ makes several of operands that are the same for all threads.
__device__ __forceinline__ s64 multiply_wide_add(s32 a, s32 b, s64 c) {
    s64 d;
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(d) : "r"(a), "r"(b), "l"(c));
    return d;
}

// Four values as bytes, each at the nearest value that s8 (or u8) has.
template <bool to_signed>
__device__ __forceinline__ u32 pack_saturated(const s32 (&v)[4]) {
    u32 upper, all;
    if (to_signed) {
        asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(upper) : "r"(v[3]), "r"(v[2]), "r"(0));
        asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(all) : "r"(v[1]), "r"(v[0]), "r"(upper));
    } else {
        asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(upper) : "r"(v[3]), "r"(v[2]), "r"(0));
        asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(all) : "r"(v[1]), "r"(v[0]), "r"(upper));
    }
    return all;
}

// Two values as s16, `a` the lower.
__device__ __forceinline__ u32 pack_saturated_16(s32 a, s32 b) {
    u32 both;
    asm("cvt.pack.sat.s16.s32 %0, %1, %2;" : "=r"(both) : "r"(b), "r"(a));
    return both;
}

}  // namespace qir
