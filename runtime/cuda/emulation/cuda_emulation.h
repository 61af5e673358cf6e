// Enough of CUDA in plain C++ to run the kernels of this package on a host, one block at a time.
//
// Every CUDA thread is a fiber. It runs until it meets the others (__syncthreads, or a warp-wide instruction) and
// then lets the next one run. The order in which fibers run is chosen by the caller (forward, backward, shuffled):
// code without races gives the same bits in each. Copies by cp.async happen only when they are waited for; bulk copies
// and warpgroup products at once in the even orders, and as late as can be in the odd ones (see wgmma.cuh).
// Shared memory is a window with addresses of its own; its dynamic part begins at a multiple of 128, no more.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __grid_constant__
#define __CUDA_ARCH__ 800
#define QIR_EMULATION 1
#define QIR_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emu::shared_memory())
#define QIR_SHARED(type, name, count) type* name = static_cast<type*>(emu::static_shared(#name, sizeof(type) * (count)))

struct dim3_ { unsigned x, y, z; };
inline dim3_ threadIdx, blockIdx, blockDim, gridDim;

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emu {

struct Copy { void* to; const void* from; std::size_t bytes; };

struct BulkCopy { std::function<void()> copy; std::size_t bytes; void* barrier; };

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    std::vector<char> stack;
    dim3_ index{};
    bool begun = false, done = false;
    unsigned collectives = 0;
    std::deque<std::vector<Copy>> pending;
    std::vector<std::size_t> written;                   // chunks of shared memory not yet shown to the async proxy
    std::deque<std::vector<std::function<void()>>> products;  // groups of warpgroup products under way
    bool fenced = false;
};

struct Warp {
    unsigned arrived = 0, generation = 0, alive = 0;
    alignas(16) char slots[2][32][64];
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<char> shared;
    std::vector<std::pair<const char*, std::vector<char>>> statics;
    unsigned arrived = 0, generation = 0, alive = 0;
    std::size_t shared_bytes = 0;
    std::vector<unsigned> owner;  // of every 16 bytes of the window: 1 + the thread whose write no proxy fence followed
    bool proxies = false;         // whether anyone uses the async proxy
    std::vector<BulkCopy> bulk;
    struct { unsigned arrived = 0, generation = 0; } named[16];
};

inline Block block;
inline bool late;               // asynchronous work is done when it is waited for, not when it is asked for
inline unsigned long progress;  // grows whenever a thread gets past something that others may wait for
inline int current;
inline jmp_buf scheduler;
inline void (*body)(void*);
inline void* body_argument;

inline Fiber& self() { return block.fibers[current]; }
[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulation: %s\n", what);
    std::abort();
}

constexpr std::size_t WINDOW = 1024, DYNAMIC = 1152, GUARD = 64;  // alignment; where dynamic memory begins; past its end
inline char* window() {
    auto at = reinterpret_cast<std::uintptr_t>(block.shared.data());
    return reinterpret_cast<char*>((at + WINDOW - 1) & ~std::uintptr_t(WINDOW - 1));
}
inline void* shared_memory() { return window() + DYNAMIC; }

inline void* static_shared(const char* name, std::size_t bytes) {
    for (auto& s : block.statics)
        if (std::strcmp(s.first, name) == 0) return s.second.data();
    block.statics.emplace_back(name, std::vector<char>(bytes + 16, char(0xA5)));
    return block.statics.back().second.data();
}

inline void yield() {
    if (!_setjmp(self().at)) _longjmp(scheduler, 1);
    threadIdx = self().index;
}

inline void check_access(const void* p, unsigned bytes) {
    if (reinterpret_cast<std::uintptr_t>(p) % bytes) {
        std::fprintf(stderr, "%u bytes at %p: ", bytes, p);
        fail("misaligned access");
    }
}

// All 32 lanes (those still alive) show `bytes` to one another.
inline void publish(const void* data, std::size_t bytes) {
    const unsigned lane = threadIdx.x & 31;
    Warp& warp = block.warps[current / 32];
    std::memcpy(warp.slots[self().collectives & 1][lane], data, bytes);
    const unsigned generation = warp.generation;
    if (++warp.arrived == warp.alive) {
        warp.arrived = 0, ++warp.generation, ++progress;
    } else {
        while (warp.generation == generation) yield();
    }
}
inline void peek(int lane, void* data, std::size_t bytes) {
    std::memcpy(data, block.warps[current / 32].slots[self().collectives & 1][lane], bytes);
}
inline void release() { ++self().collectives; }

inline void entry() {
    body(body_argument);
    Fiber& f = self();
    f.done = true, ++progress;
    Warp& warp = block.warps[current / 32];
    --block.alive, --warp.alive;
    if (block.alive && block.arrived == block.alive) block.arrived = 0, ++block.generation;
    if (warp.alive && warp.arrived == warp.alive) warp.arrived = 0, ++warp.generation;
    _longjmp(scheduler, 1);
}

inline void resume(int i) {
    current = i;
    Fiber& f = block.fibers[i];
    threadIdx = f.index;
    if (_setjmp(scheduler)) return;
    if (f.begun) _longjmp(f.at, 1);
    f.begun = true;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.data();
    f.start.uc_stack.ss_size = f.stack.size();
    f.start.uc_link = nullptr;
    makecontext(&f.start, entry, 0);
    setcontext(&f.start);
}

constexpr std::size_t STACK = 64 << 10;

// order: 0 forward, 1 backward, otherwise shuffled anew at every sweep with that seed.
template <class F>
void run_block(F& call, unsigned threads, std::size_t shared_bytes, unsigned order) {
    block.fibers.resize(threads);
    block.warps.assign((threads + 31) / 32, Warp{});
    block.shared.assign(WINDOW + DYNAMIC + shared_bytes + GUARD, char(0xA5));  // uninitialised shared memory is no zero
    block.owner.assign((DYNAMIC + shared_bytes + GUARD) / 16 + 1, 0);
    block.shared_bytes = shared_bytes, block.proxies = false, block.bulk.clear();
    for (auto& n : block.named) n = {};
    late = order & 1;
    block.statics.clear();
    block.arrived = block.generation = 0, block.alive = threads;
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& f = block.fibers[i];
        if (f.stack.size() != STACK) f.stack.resize(STACK);
        f.begun = f.done = false, f.collectives = 0;
        f.pending.assign(1, {}), f.products.assign(1, {}), f.written.clear(), f.fenced = false;
        f.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        ++block.warps[i / 32].alive;
    }
    body = [](void* f) { (*static_cast<F*>(f))(); };
    body_argument = &call;
    std::vector<int> turn(threads);
    for (unsigned i = 0; i < threads; ++i) turn[i] = order == 1 ? threads - 1 - i : i;
    std::mt19937 random(order);
    while (block.alive) {
        if (order > 1) std::shuffle(turn.begin(), turn.end(), random);
        const unsigned long before = progress;
        for (int i : turn)
            if (!block.fibers[i].done) resume(i);
        if (progress == before) fail("deadlock: every thread waits");
    }
    if (!block.bulk.empty()) fail("a bulk copy was never waited for");
    for (std::size_t i = 0; i < GUARD; ++i)
        if (window()[DYNAMIC + shared_bytes + i] != char(0xA5)) fail("a write past the end of shared memory");
}

template <class... A, std::size_t... I>
void launch_(void (*kernel)(A...), const unsigned* grid, const unsigned* threads, std::size_t shared_bytes,
             unsigned order, void** arguments, std::index_sequence<I...>) {
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {threads[0], threads[1], threads[2]};
    auto call = [&] { kernel(*static_cast<A*>(arguments[I])...); };
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                run_block(call, threads[0] * threads[1] * threads[2], shared_bytes, order);
}

template <class... A>
void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* threads, std::size_t shared_bytes,
            unsigned order, void** arguments) {
    launch_(kernel, grid, threads, shared_bytes, order, arguments, std::index_sequence_for<A...>{});
}

}  // namespace emu

inline void __syncthreads() {
    const unsigned generation = emu::block.generation;
    if (++emu::block.arrived == emu::block.alive) {
        emu::block.arrived = 0, ++emu::block.generation, ++emu::progress;
    } else {
        while (emu::block.generation == generation) emu::yield();
    }
}

inline void __syncwarp() {
    char nothing = 0;
    emu::publish(&nothing, 1);
    emu::release();
}

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    emu::publish(&value, sizeof value);
    T other;
    emu::peek((threadIdx.x & 31) ^ mask, &other, sizeof other);
    emu::release();
    return other;
}
