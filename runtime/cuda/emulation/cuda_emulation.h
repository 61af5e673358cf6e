// Enough of CUDA in plain C++ to run the kernels of this package on a host, one block at a time.
//
// Every CUDA thread is a fiber. It runs until it meets the others (__syncthreads, or a warp-wide instruction) and
// then lets the next one run. The order in which fibers run is chosen by the caller (forward, backward, shuffled):
// code without races gives the same bits in each. Copies by cp.async happen only when they are waited for.
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

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    std::vector<char> stack;
    dim3_ index{};
    bool begun = false, done = false;
    unsigned collectives = 0;
    std::deque<std::vector<Copy>> pending;
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
};

inline Block block;
inline int current;
inline jmp_buf scheduler;
inline void (*body)(void*);
inline void* body_argument;

inline Fiber& self() { return block.fibers[current]; }
inline void* shared_memory() {
    auto at = reinterpret_cast<std::uintptr_t>(block.shared.data());
    return reinterpret_cast<void*>((at + 127) & ~std::uintptr_t(127));
}
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
        std::fprintf(stderr, "emulation: %u-byte access at misaligned %p\n", bytes, p);
        std::abort();
    }
}

// All 32 lanes (those still alive) show `bytes` to one another.
inline void publish(const void* data, std::size_t bytes) {
    const unsigned lane = threadIdx.x & 31;
    Warp& warp = block.warps[current / 32];
    std::memcpy(warp.slots[self().collectives & 1][lane], data, bytes);
    const unsigned generation = warp.generation;
    if (++warp.arrived == warp.alive) {
        warp.arrived = 0, ++warp.generation;
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
    f.done = true;
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
    block.shared.assign(shared_bytes + 128, char(0xA5));  // uninitialised shared memory is no zero
    block.statics.clear();
    block.arrived = block.generation = 0, block.alive = threads;
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& f = block.fibers[i];
        if (f.stack.size() != STACK) f.stack.resize(STACK);
        f.begun = f.done = false, f.collectives = 0;
        f.pending.assign(1, {});
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
        for (int i : turn)
            if (!block.fibers[i].done) resume(i);
    }
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
        emu::block.arrived = 0, ++emu::block.generation;
    } else {
        while (emu::block.generation == generation) emu::yield();
    }
}

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    emu::publish(&value, sizeof value);
    T other;
    emu::peek((threadIdx.x & 31) ^ mask, &other, sizeof other);
    emu::release();
    return other;
}
