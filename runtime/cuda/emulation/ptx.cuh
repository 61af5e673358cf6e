// The functions of kernels/ptx.cuh in plain C++, for the emulation. Warp-wide ones meet in a rendezvous.
#pragma once
#include <cstring>

#include "dyadic.cuh"

namespace qir {

// Address in the block's window of shared memory; as on the GPU the window does not begin at 0.
inline u32 shared_address(const void* p) { return u32(static_cast<const char*>(p) - emu::window()); }

inline void forget(u32&) {}
inline void forget(s64&) {}
inline void prefetch(const void*) {}

inline u32 read_once(const void* p) {
    emu::check_access(p, 4);
    return *static_cast<const u32*>(p);
}
inline uint2 read_once2(const void* p) {
    emu::check_access(p, 8);
    return *static_cast<const uint2*>(p);
}
inline uint4 read_once4(const void* p) {
    emu::check_access(p, 16);
    return *static_cast<const uint4*>(p);
}
inline u32 permute_bytes(u32 a, u32 b, u32 selector) {
    const u64 both = u64(b) << 32 | a;
    u32 d = 0;
    for (int i = 0; i < 4; ++i) d |= u32(both >> (selector >> (4 * i) & 7) * 8 & 255) << (8 * i);
    return d;
}

template <bool is_signed>
inline u32 greatest_pair(u32 a, u32 b) {
    u32 both = 0;
    for (int i = 0; i < 32; i += 16) {
        const bool less = is_signed ? s16(a >> i) < s16(b >> i) : u16(a >> i) < u16(b >> i);
        both |= u32(u16((less ? b : a) >> i)) << i;
    }
    return both;
}
inline u32 float_bits(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float bits_float(u32 x) {
    float value;
    std::memcpy(&value, &x, 4);
    return value;
}

// Remembers that the calling thread wrote to shared memory by the generic proxy.
inline void note_write(const void* shared, std::size_t bytes) {
    if (!emu::block.proxies) return;
    for (std::size_t i = 0; i < bytes; i += 16) {
        const std::size_t chunk = (shared_address(shared) + i) / 16;
        if (chunk >= emu::block.owner.size()) continue;
        emu::block.owner[chunk] = emu::current + 1;
        emu::self().written.push_back(chunk);
    }
}
inline void store16_shared(void* shared, uint4 v) { std::memcpy(shared, &v, 16), note_write(shared, 16); }
inline void store4_shared(void* shared, u32 v) { std::memcpy(shared, &v, 4), note_write(shared, 4); }

// Asynchronous copies are carried out only when they are waited for: a missing wait shows as stale data.
inline void copy16_async(void* shared, const void* global) {
    emu::check_access(global, 16), emu::self().pending.back().push_back({shared, global, 16});
}
inline void copy4_async(void* shared, const void* global) {
    emu::check_access(global, 4), emu::self().pending.back().push_back({shared, global, 4});
}
inline void copy_commit() { emu::self().pending.emplace_back(); }
template <int pending>
inline void copy_wait() {
    auto& groups = emu::self().pending;
    while (int(groups.size()) > pending + 1) {
        for (auto& c : groups.front()) std::memcpy(c.to, c.from, c.bytes), note_write(c.to, c.bytes);
        groups.pop_front();
    }
}

inline void load_matrix_x4(u32 (&r)[4], const void* row) {
    const int lane = threadIdx.x & 31;
    emu::publish(&row, sizeof row);
    for (int i = 0; i < 4; ++i) {
        const char* from;
        emu::peek(i * 8 + (lane >> 2), &from, sizeof from);
        std::memcpy(&r[i], from + (lane & 3) * 4, 4);
    }
    emu::release();
}

template <bool a_signed>
inline void mma_16x8x32(s32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Fragment { u32 a[4], b[2]; } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}}, other;
    const int lane = threadIdx.x & 31;
    emu::publish(&mine, sizeof mine);
    s8 rows[2][32], cols[2][32];
    for (int t = 0; t < 4; ++t) {
        emu::peek((lane >> 2) * 4 + t, &other, sizeof other);
        for (int half = 0; half < 2; ++half)
            for (int q = 0; q < 2; ++q) std::memcpy(&rows[q][half * 16 + t * 4], &other.a[half * 2 + q], 4);
        for (int c = 0; c < 2; ++c) {
            emu::peek(((lane & 3) * 2 + c) * 4 + t, &other, sizeof other);
            for (int half = 0; half < 2; ++half) std::memcpy(&cols[c][half * 16 + t * 4], &other.b[half], 4);
        }
    }
    for (int q = 0; q < 2; ++q)
        for (int c = 0; c < 2; ++c)
            for (int k = 0; k < 32; ++k)
                d[q * 2 + c] += (a_signed ? s32(rows[q][k]) : s32(u8(rows[q][k]))) * s32(cols[c][k]);
    emu::release();
}

template <bool a_signed>
inline void mma_16x8x64(s32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Fragment { u32 a[4], b[2]; } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const int lane = threadIdx.x & 31;
    emu::publish(&mine, sizeof mine);
    const auto nibble = [](u32 word, int i, bool is_signed) {
        const int v = int(word >> (4 * i) & 15);
        return is_signed && v > 7 ? v - 16 : v;
    };
    for (int t = 0; t < 4; ++t) {
        Fragment row, columns[2];
        emu::peek((lane >> 2) * 4 + t, &row, sizeof row);
        for (int c = 0; c < 2; ++c) emu::peek(((lane & 3) * 2 + c) * 4 + t, &columns[c], sizeof columns[c]);
        for (int q = 0; q < 2; ++q)
            for (int c = 0; c < 2; ++c)
                for (int half = 0; half < 2; ++half)
                    for (int i = 0; i < 8; ++i)
                        d[q * 2 + c] +=
                            nibble(row.a[half * 2 + q], i, a_signed) * nibble(columns[c].b[half], i, true);
    }
    emu::release();
}

template <bool a_signed>
inline s32 dot4(u32 a, u32 b, s32 c) {
    for (int i = 0; i < 4; ++i) {
        const u8 x = u8(a >> (8 * i));
        c += (a_signed ? s32(s8(x)) : s32(x)) * s32(s8(u8(b >> (8 * i))));
    }
    return c;
}

inline u32 multiply_high_unsigned(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
inline s32 multiply_high(s32 a, s32 b) { return s32(s64(a) * b >> 32); }

inline s64 multiply_wide_add(s32 a, s32 b, s64 c) { return s64(a) * b + c; }

inline s32 saturated(s32 v, s32 lo, s32 hi) { return v < lo ? lo : v > hi ? hi : v; }
template <bool to_signed>
inline u32 pack_saturated(const s32 (&v)[4]) {
    u32 all = 0;
    for (int i = 0; i < 4; ++i) all |= u32(u8(to_signed ? saturated(v[i], -128, 127) : saturated(v[i], 0, 255))) << (8 * i);
    return all;
}
inline u32 pack_saturated_16(s32 a, s32 b) {
    return u32(u16(saturated(a, -32768, 32767))) | u32(u16(saturated(b, -32768, 32767))) << 16;
}

}  // namespace qir
