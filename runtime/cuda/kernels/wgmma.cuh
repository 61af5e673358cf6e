// PTX of sm_90a: warpgroup matrix products, barriers in shared memory, bulk copies. One function an instruction; the
// emulation supplies the same functions in plain C++.
#pragma once
#include <ptx.cuh>

namespace qir {

// Orders this thread's ordinary accesses to shared memory before later ones through the async proxy (wgmma, bulk copies).
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// -- barriers: 8 bytes of shared memory each; a phase ends when all arrivals and all announced bytes are there ------------
__device__ __forceinline__ void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// After the inits, before the block's __syncthreads: bulk copies see the barriers too.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_async_proxy();
}

__device__ __forceinline__ void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// An arrival that announces bytes which copies are going to complete.
__device__ __forceinline__ void barrier_arrive_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Wait for the end of the latest phase of that parity; the first phase has parity 0.
__device__ __forceinline__ void barrier_wait(u64* barrier, u32 parity) {
    u32 done = 0;
    while (!done)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
}

// Barrier `id` (1-15) among `threads` threads of the block.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A multiple of 16 bytes global -> shared, both aligned to 16; completes them at `barrier`.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, u32 bytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

// A tensor map as the driver encodes it: here the im2col view of an NHWC image of bytes [cuTensorMapEncodeIm2col].
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// The map's pixels-per-column pixels, from the window at (x, y) of image n on, at (dx, dy) in each window, SPAN channels from
// c on; rows of SPAN bytes (128 or 64) with the swizzle of that span, zeros for what lies outside. Completes its bytes at `barrier`.
template <int SPAN>
__device__ __forceinline__ void im2col_copy(void* shared, const TensorMap& map, int c, int x, int y, int n, int dx, int dy,
                                            u64* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(n), "h"(u16(dx)), "h"(u16(dy))
        : "memory");
}

// -- warpgroup matrix products: all four warps call these together --------------------------------------------------------
// Before the first product, and whenever accumulators were touched since.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most `pending` of the latest groups are still under way.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// d (64 x N, s32) += a (64 x 32, s8 or u8) * b (32 x N, s8), both by matrix descriptors, K the inner axis of both.
// Warp w of the group holds rows 16w + lane/4 (d[4j], d[4j+1]) and 8 further down (d[4j+2], d[4j+3]), columns
// 8j + lane%4 * 2 + 0, 1.
template <bool a_signed, int N>
__device__ __forceinline__ void wgmma(s32 (&d)[N / 2], u64 a, u64 b) {
#define QIR_NAMES_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define QIR_NAMES_16 QIR_NAMES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define QIR_NAMES_0 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define QIR_NAMES_1 \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define QIR_NAMES_2 \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
    "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define QIR_NAMES_3 \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
    "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define QIR_D4(I) "+r"(d[I]), "+r"(d[I + 1]), "+r"(d[I + 2]), "+r"(d[I + 3])
#define QIR_D32(I) \
    QIR_D4(I), QIR_D4(I + 4), QIR_D4(I + 8), QIR_D4(I + 12), QIR_D4(I + 16), QIR_D4(I + 20), QIR_D4(I + 24), QIR_D4(I + 28)
#define QIR_WGMMA(SHAPE, TYPE, NAMES, A, B, ...) \
    asm volatile("wgmma.mma_async.sync.aligned." SHAPE ".s32." TYPE ".s8 {" NAMES "}, " A ", " B ", 1;" \
                 : __VA_ARGS__ \
                 : "l"(a), "l"(b))
#define QIR_WGMMA_16(TYPE) QIR_WGMMA("m64n16k32", TYPE, QIR_NAMES_8, "%8", "%9", QIR_D4(0), QIR_D4(4))
#define QIR_WGMMA_32(TYPE) \
    QIR_WGMMA("m64n32k32", TYPE, QIR_NAMES_16, "%16", "%17", QIR_D4(0), QIR_D4(4), QIR_D4(8), QIR_D4(12))
#define QIR_WGMMA_64(TYPE) QIR_WGMMA("m64n64k32", TYPE, QIR_NAMES_0, "%32", "%33", QIR_D32(0))
#define QIR_WGMMA_128(TYPE) \
    QIR_WGMMA("m64n128k32", TYPE, QIR_NAMES_0 "," QIR_NAMES_1, "%64", "%65", QIR_D32(0), QIR_D32(32))
#define QIR_WGMMA_256(TYPE) \
    QIR_WGMMA("m64n256k32", TYPE, QIR_NAMES_0 "," QIR_NAMES_1 "," QIR_NAMES_2 "," QIR_NAMES_3, "%128", "%129", \
              QIR_D32(0), QIR_D32(32), QIR_D32(64), QIR_D32(96))
    static_assert(N == 16 || N == 32 || N == 64 || N == 128 || N == 256, "columns");
    if constexpr (N == 16) {
        if constexpr (a_signed) QIR_WGMMA_16("s8");
        else QIR_WGMMA_16("u8");
    } else if constexpr (N == 32) {
        if constexpr (a_signed) QIR_WGMMA_32("s8");
        else QIR_WGMMA_32("u8");
    } else if constexpr (N == 64) {
        if constexpr (a_signed) QIR_WGMMA_64("s8");
        else QIR_WGMMA_64("u8");
    } else if constexpr (N == 128) {
        if constexpr (a_signed) QIR_WGMMA_128("s8");
        else QIR_WGMMA_128("u8");
    } else {
        if constexpr (a_signed) QIR_WGMMA_256("s8");
        else QIR_WGMMA_256("u8");
    }
#undef QIR_WGMMA_256
#undef QIR_WGMMA_128
#undef QIR_WGMMA_64
#undef QIR_WGMMA_32
#undef QIR_WGMMA_16
#undef QIR_WGMMA
#undef QIR_D32
#undef QIR_D4
#undef QIR_NAMES_3
#undef QIR_NAMES_2
#undef QIR_NAMES_1
#undef QIR_NAMES_0
#undef QIR_NAMES_16
#undef QIR_NAMES_8
}

}  // namespace qir
