"""The emulation stops at what a GPU would do wrong: each rule of asynchronous memory and products, broken once."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(not COMPILER, reason="the CUDA emulation needs a C++ compiler")

PROGRAM = r"""
#include "cuda_emulation.h"
#include <wgmma.cuh>

using namespace qir;

enum { NOTHING, PROXY, FENCE, DEADLOCK, ARRIVALS, UNWAITED, OVERRUN, BYTES, LANES };

// One warpgroup: 64 x 32 times 32 x 64, both operands written by the threads; every value v(row, k) = row + k, mod 7.
template <int broken>
void product(s32* out, const u8* global) {
    QIR_DYNAMIC_SHARED(u8, shared);
    u8* a = shared + ((0u - shared_address(shared)) & 1023u);
    u8* b = a + 64 * 128;
    u64* barrier = reinterpret_cast<u64*>(b + 64 * 128);
    const int thread = threadIdx.x, lane = thread & 31;
    if (thread == 0) barrier_init(barrier, broken == ARRIVALS ? 1 : 129), barrier_init_fence();
    __syncthreads();
    for (int i = thread; i < 64 * 2; i += 128) {
        const int row = i / 2, chunk = i % 2;
        union { uint4 word; u8 bytes[16]; } v;
        for (int k = 0; k < 16; ++k) v.bytes[k] = u8((row + chunk * 16 + k) % 7);
        store16_shared(a + row * 128 + ((chunk ^ (row & 7)) * 16), v.word);
        store16_shared(b + row * 128 + ((chunk ^ (row & 7)) * 16), v.word);
    }
    if (broken != PROXY) fence_async_proxy();
    if (thread == 0) {
        barrier_arrive_expect(barrier, 16);
        bulk_copy(b + 64 * 128 + 16, global + (broken == BYTES ? 8 : 0), 16, barrier);
    }
    if (broken != DEADLOCK) barrier_arrive(barrier);
    if (broken != UNWAITED) barrier_wait(barrier, 0);
    __syncthreads();
    if (broken == OVERRUN) b[64 * 128 + 32] = 0;
    const auto descriptor = [](const void* tile) {
        return u64((shared_address(tile) & 0x3ffffu) >> 4) | u64(1) << 16 | u64(64) << 32 | u64(1) << 62;
    };
    s32 d[32] = {};
    if (broken != FENCE) wgmma_fence();
    wgmma<false, 64>(d, descriptor(a) + (broken == LANES && lane == 3 ? 2 : 0), descriptor(b));
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 32; ++i) {
        const int row = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        out[row * 64 + column] = d[i];
    }
}

int main(int, char** arguments) {
    void (*const kernels[])(s32*, const u8*) = {
        product<NOTHING>, product<PROXY>, product<FENCE>, product<DEADLOCK>, product<ARRIVALS>, product<UNWAITED>,
        product<OVERRUN>, product<BYTES>, product<LANES>,
    };
    static s32 out[64 * 64];
    alignas(16) static u8 memory[32];
    s32* to = out;
    const u8* from = memory;
    void* given[] = {&to, &from};
    const unsigned grid[] = {1, 1, 1}, threads[] = {128, 1, 1};
    emu::launch(kernels[std::atoi(arguments[1])], grid, threads, 2 * 64 * 128 + 32 + 1024 - 128,
                unsigned(std::atoi(arguments[2])), given);
    for (int row = 0; row < 64; ++row)
        for (int column = 0; column < 64; ++column) {
            s32 sum = 0;
            for (int k = 0; k < 32; ++k) sum += (row + k) % 7 * ((column + k) % 7);
            if (sum != out[row * 64 + column]) emu::fail("a wrong sum");
        }
    std::puts("all sums are right");
}
"""

BROKEN = (
    "all sums are right",
    "a product reads what was written without a proxy fence",
    "a warpgroup product without a fence before it",
    "deadlock: every thread waits",
    "more arrivals at a barrier than it expects",
    "a bulk copy was never waited for",
    "a write past the end of shared memory",
    "misaligned access",
    "different matrix descriptors",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulation")
    source, target = folder / "checks.cpp", folder / "checks"
    source.write_text(PROGRAM)
    cuda = Path(str(resources.files("qir.runtime.cuda")))
    subprocess.run(
        [str(COMPILER), "-O1", "-std=c++17", f"-I{cuda / 'emulation'}", f"-I{cuda / 'kernels'}", source, "-o", target],
        check=True,
    )
    return target


ONLY_LATE = ("more arrivals at a barrier than it expects", "a bulk copy was never waited for")
"""In even orders a copy is there at once."""


@pytest.mark.parametrize(
    ("case", "order"), [(c, o) for c, b in enumerate(BROKEN) for o in (0, 1, 6, 7) if o % 2 or b not in ONLY_LATE]
)
def test_what_is_broken_is_found(program: Path, case: int, order: int) -> None:
    done = subprocess.run([program, str(case), str(order)], capture_output=True, text=True, timeout=60, check=False)
    assert BROKEN[case] in done.stdout + done.stderr
    assert (done.returncode == 0) == (case == 0)
