// The functions of kernels/wgmma.cuh in plain C++, as the PTX ISA describes them, for the emulation.
//
// Asynchronous work (bulk copies, warpgroup products) is carried out at once in even orders, so that reading what is not
// there yet shows, and only when it is waited for in odd ones, so that overwriting what is still being read shows.
// What a thread wrote to shared memory by ordinary stores or cp.async counts as unseen by the async proxy until that
// thread has executed a proxy fence; a product that reads it stops the process.
#pragma once
#include <ptx.cuh>

namespace qir {

inline void fence_async_proxy() {
    for (auto chunk : emu::self().written)
        if (emu::block.owner[chunk] == unsigned(emu::current + 1)) emu::block.owner[chunk] = 0;
    emu::self().written.clear();
}

// -- barriers -------------------------------------------------------------------------------------------------------------
struct Barrier {
    u64 phase : 1, expected : 20, missing : 20;
    s64 bytes : 23;  // announced and not yet complete

    void settle() {
        if (missing == 0 && bytes == 0) phase ^= 1, missing = expected, ++emu::progress;
    }
};
static_assert(sizeof(Barrier) == 8, "an mbarrier object");

inline Barrier& barrier_at(u64* p) {
    emu::check_access(p, 8);
    return *reinterpret_cast<Barrier*>(p);
}
inline void barrier_init(u64* barrier, u32 arrivals) {
    Barrier& b = barrier_at(barrier);
    b.phase = 0, b.expected = b.missing = arrivals, b.bytes = 0;
}
inline void barrier_init_fence() { emu::block.proxies = true; }
inline void barrier_arrive(u64* barrier) {
    Barrier& b = barrier_at(barrier);
    if (b.missing == 0) emu::fail("more arrivals at a barrier than it expects");
    --b.missing, ++emu::progress, b.settle();
}
inline void barrier_arrive_expect(u64* barrier, u32 bytes) {
    barrier_at(barrier).bytes += bytes;
    barrier_arrive(barrier);
}

inline void carry_out(const emu::BulkCopy& bulk) {
    bulk.copy();
    Barrier& b = barrier_at(static_cast<u64*>(bulk.barrier));
    b.bytes -= s64(bulk.bytes), ++emu::progress, b.settle();
}

inline void barrier_wait(u64* barrier, u32 parity) {
    while (barrier_at(barrier).phase == parity) {
        auto& bulk = emu::block.bulk;
        const auto mine = std::stable_partition(bulk.begin(), bulk.end(), [&](auto& c) { return c.barrier != barrier; });
        const std::vector<emu::BulkCopy> due(mine, bulk.end());
        bulk.erase(mine, bulk.end());
        for (auto& c : due) carry_out(c);
        if (due.empty()) emu::yield();
    }
}

inline void named_barrier(int id, int threads) {
    auto& b = emu::block.named[id];
    const unsigned generation = b.generation;
    if (++b.arrived == unsigned(threads)) {
        b.arrived = 0, ++b.generation, ++emu::progress;
    } else {
        while (b.generation == generation) emu::yield();
    }
}

inline void start(const emu::BulkCopy& copy) {
    if (emu::late) emu::block.bulk.push_back(copy);
    else carry_out(copy);
}

inline void bulk_copy(void* shared, const void* global, u32 bytes, u64* barrier) {
    emu::check_access(shared, 16), emu::check_access(global, 16);
    if (bytes % 16) emu::fail("a bulk copy of no multiple of 16 bytes");
    start({[=] { std::memcpy(shared, global, bytes); }, bytes, barrier});
}

// What EmulatedDevice.tensor_map fills in (TENSOR_MAP of arguments.py): an NHWC image of bytes. Axes: C W H N, or W H.
struct TensorMap {
    const char* data;
    s64 strides[3];  // bytes between pixels, rows, images
    s32 sizes[4], lower[2], upper[2], steps[2], pixels, channels;
    s32 rest[12];
};
static_assert(sizeof(TensorMap) == 128, "a tensor map");

// What the swizzle of a span turns an address by: bits 4-6 by bits 7-9 (128 bytes), bits 4-5 by bits 7-8 (64 bytes).
inline u32 swizzle(int span, u32 linear) { return (linear >> 7 & (span == 128 ? 7 : 3)) << 4; }

// im2col mode [PTX ISA, tensors]: the window moves from (x, y) of image n on by `steps` in the box between the corners
// (lower; the image's last pixel + upper), row after row, image after image.
template <int SPAN>
inline void im2col_copy(void* shared, const TensorMap& map, int c, int x, int y, int n, int dx, int dy, u64* barrier) {
    if (shared_address(shared) % 1024) emu::fail("a swizzled tile that does not begin at a multiple of 1024");
    static_assert(SPAN == 128 || SPAN == 64, "spans that are emulated");
    if (map.channels != SPAN) emu::fail("a tensor map of another span");
    if (dx < 0 || dx > 255 || dy < 0 || dy > 255) emu::fail("an im2col offset out of range");
    const auto copy = [=] {
        int at[3] = {x, y, n};
        for (int i = 0; i < map.pixels; ++i) {
            const int w = at[0] + dx, h = at[1] + dy;
            const bool inside = w >= 0 && w < map.sizes[1] && h >= 0 && h < map.sizes[2] && at[2] < map.sizes[3];
            for (int k = 0; k < SPAN; ++k) {
                const u32 linear = shared_address(shared) + i * SPAN + k, to = linear ^ swizzle(SPAN, linear);
                emu::window()[to] = inside && c + k < map.sizes[0]
                    ? map.data[at[2] * map.strides[2] + h * map.strides[1] + w * map.strides[0] + c + k] : 0;
            }
            for (int axis = 0; axis < 2; ++axis) {
                at[axis] += map.steps[axis];
                if (at[axis] <= map.sizes[axis + 1] - 1 + map.upper[axis]) break;
                at[axis] = map.lower[axis];
                if (axis == 1) ++at[2];
            }
        }
    };
    start({copy, std::size_t(map.pixels) * SPAN, barrier});
}

// -- warpgroup products ---------------------------------------------------------------------------------------------------
inline void wgmma_fence() { emu::self().fenced = true; }

// 16 bytes of a K-major matrix in shared memory: row `row`, k bytes 16 * half ..  The swizzle's pattern begins at a multiple of 1024 (base offset 0).
inline const char* matrix_chunk(u64 descriptor, int row, int half) {
    const int span = descriptor >> 62 == 1 ? 128 : 64;
    if ((descriptor >> 62 != 1 && descriptor >> 62 != 2) || (descriptor >> 49 & 7))
        emu::fail("only the swizzles of 128 and 64 bytes, base offset 0, are emulated");
    const u32 start = u32(descriptor & 0x3fff) << 4, stride = u32(descriptor >> 32 & 0x3fff) << 4;
    const u32 linear = start + row / 8 * stride + row % 8 * span + half * 16;
    const u32 at = linear ^ swizzle(span, linear);
    if (at / 16 >= emu::block.owner.size()) emu::fail("a matrix past the end of shared memory");
    if (emu::block.owner[at / 16]) emu::fail("a product reads what was written without a proxy fence");
    return emu::window() + at;
}

// This thread's part of d += a b.
template <bool a_signed, int N>
inline void multiply(s32* d, u64 a, u64 b) {
    const int lane = threadIdx.x & 31, first = (threadIdx.x >> 5 & 3) * 16 + lane / 4;
    s32 rows[2][32], column[32];
    const auto read = [](s32* to, u64 matrix, int row, bool is_signed) {
        for (int half = 0; half < 2; ++half) {
            const char* from = matrix_chunk(matrix, row, half);
            for (int k = 0; k < 16; ++k) to[half * 16 + k] = is_signed ? s32(s8(from[k])) : s32(u8(from[k]));
        }
    };
    for (int q = 0; q < 2; ++q) read(rows[q], a, first + 8 * q, a_signed);
    for (int j = 0; j < N / 8; ++j)
        for (int c = 0; c < 2; ++c) {
            read(column, b, j * 8 + lane % 4 * 2 + c, true);
            for (int q = 0; q < 2; ++q) {
                s32 sum = 0;
                for (int k = 0; k < 32; ++k) sum += rows[q][k] * column[k];
                d[j * 4 + q * 2 + c] += sum;
            }
        }
}

template <bool a_signed, int N>
inline void wgmma(s32 (&d)[N / 2], u64 a, u64 b) {
    struct Operands { u64 a, b; } mine = {a, b}, first;
    emu::publish(&mine, sizeof mine);
    emu::peek(0, &first, sizeof first);
    emu::release();
    if (first.a != a || first.b != b) emu::fail("the lanes of a warp have different matrix descriptors");
    if (!emu::self().fenced) emu::fail("a warpgroup product without a fence before it");
    s32* const to = d;
    if (emu::late) emu::self().products.back().push_back([=] { multiply<a_signed, N>(to, a, b); });
    else multiply<a_signed, N>(to, a, b);
}
inline void wgmma_commit() { emu::self().products.emplace_back(); }
template <int pending>
inline void wgmma_wait() {
    auto& groups = emu::self().products;
    while (int(groups.size()) > pending + 1) {
        for (auto& product : groups.front()) product();
        groups.pop_front();
    }
    __syncwarp();  // the lanes of a warp get past the wait together
    if (pending == 0) emu::self().fenced = false;
}

}  // namespace qir
