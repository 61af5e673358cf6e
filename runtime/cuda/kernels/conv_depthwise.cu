// Depthwise convolution, NHWC. Channels are padded to a multiple of 16 in x and in the weights.
//
// conv_depthwise_rows: square windows of 3, 5 or 7 without dilation, strides 1 or 2 (7: 1), of which at most half lies outside of
// the image, at least 4 columns of output. A thread yields four channels of four neighbouring columns (the last four once
// more, where they are no multiple of 4; with 7x7 two, for want of registers) and walks down the rows of the output; neighbours in a warp take neighbouring channels. Of every
// row of the input it reads four bytes (channels) at each column that its windows reach, and turns them by byte
// permutations into words of four neighbouring columns of one channel, begun at every second column: what dp4a takes. A
// window begins at the first or the second byte of such a word, for which the weights come in two shifts. The words of as
// many rows as the window has stay in registers, so that each is made once.
//   3x3, stride 1, a row of 16 outputs: 6 loads, 14 permutations, 48 dp4a.
//
// conv_depthwise: any window, 16 channels of one pixel to a thread, one product at a time.
#include "program.cuh"

namespace qir {

struct DepthwiseConv {
    const u8* x;
    const void* w;  // s8 (taps, padded channels); for conv_depthwise_rows u32 (window rows, shifts, parts, padded channels)
    s32 batch, height, width, channels;  // channels: those that exist
    s32 out_height, out_width;
    s32 kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    s32 pad_value;
    s32 pixel_stride;  // bytes between pixels of x
    s32 rows;          // of the output that a thread of conv_depthwise_rows walks down
    s32 nothing;       // 0, which the compiler does not know: weights that would take too many registers are read anew
};

template <int KERNEL, int STRIDE>
struct Walk {
    static constexpr int COLUMNS = KERNEL == 7 ? 2 : 4;              // of the output
    static constexpr int READ = (COLUMNS - 1) * STRIDE + KERNEL;     // columns of the input
    static constexpr int PARTS = (KERNEL + 3) / 4;                   // words that a row of a window lies in
    static constexpr int SHIFTS = STRIDE == 1 ? 2 : 1;               // bytes of a word at which windows begin
    static constexpr int WORDS = ((COLUMNS - 1) * STRIDE & ~1) / 2 + 2 * PARTS - 1;  // word i: columns 2i to 2i + 3
};

// Columns of four channels, as read, into words of one channel: four for each pair of columns that words begin at.
template <int READ, int WORDS>
__device__ __forceinline__ void arrange(u32 (&words)[WORDS][4], const u32 (&column)[READ]) {
    u32 low[WORDS + 1], high[WORDS + 1];  // of a pair of columns: channels 0, 1 and channels 2, 3
#pragma unroll
    for (int i = 0; i <= WORDS; ++i) {
        if (2 * i + 1 < READ) {
            low[i] = permute_bytes(column[2 * i], column[2 * i + 1], 0x5140);
            high[i] = permute_bytes(column[2 * i], column[2 * i + 1], 0x7362);
        } else {
            low[i] = high[i] = column[READ - 1];  // one column alone, or none, whose weights are zero
        }
    }
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        const bool pair = 2 * i + 3 < READ, single = 2 * i + 1 >= READ;
        words[i][0] = permute_bytes(low[i], low[i + 1], single ? 0x0000 : pair ? 0x5410 : 0x4410);
        words[i][1] = permute_bytes(low[i], low[i + 1], single ? 0x1111 : pair ? 0x7632 : 0x5532);
        words[i][2] = permute_bytes(high[i], high[i + 1], single ? 0x2222 : pair ? 0x5410 : 0x6610);
        words[i][3] = permute_bytes(high[i], high[i + 1], single ? 0x3333 : pair ? 0x7632 : 0x7732);
    }
}

template <bool x_signed, int KERNEL, int STRIDE, u32 P = GENERAL>
__global__ void __launch_bounds__(128) conv_depthwise_rows(DepthwiseConv p, Epilogue e) {
    using Shape = Walk<KERNEL, STRIDE>;
    constexpr int READ = Shape::READ, WORDS_ = Shape::WORDS, PARTS = Shape::PARTS, SHIFTS = Shape::SHIFTS;
    constexpr int COLUMNS = Shape::COLUMNS;
    const u32 quads = u32(p.channels + 3) / 4, tiles = u32(p.out_width + COLUMNS - 1) / COLUMNS;
    const u32 segments = u32(p.out_height + p.rows - 1) / u32(p.rows);
    u32 i = blockIdx.x * 128 + threadIdx.x;
    const int c = int(i % quads) * 4;
    i /= quads;
    const int left = int(i % tiles) * COLUMNS, ox = left + COLUMNS < p.out_width ? left : p.out_width - COLUMNS;
    i /= tiles;
    const int oy = int(i % segments) * p.rows, image = int(i / segments);
    if (image >= p.batch) return;
    const int rows = p.out_height - oy < p.rows ? p.out_height - oy : p.rows;

    const int ix = ox * STRIDE - p.pad_left;
    int iy = oy * STRIDE - p.pad_top;
    const int reach = (oy + rows - 1) * STRIDE - p.pad_top + KERNEL;  // rows below are not wanted
    const u32 bottom = u32(reach < 0 ? 0 : reach < p.height ? reach : p.height);
    const u32 splat = u32(u8(p.pad_value)) * 0x01010101u;
    const u8* from = p.x + ((s64(image) * p.height + iy) * p.width + ix) * p.pixel_stride + c;
    s64 row_step = s64(p.width) * p.pixel_stride;
    forget(row_step);
    const auto read_row = [&](u32 (&column)[READ]) {
        const bool real = u32(iy) < bottom;
#pragma unroll
        for (int k = 0; k < READ; ++k) {
            const bool edge = k < KERNEL / 2 || k >= READ - KERNEL / 2;  // the others are never outside
            column[k] = splat;
            if (real && (!edge || u32(ix + k) < u32(p.width))) column[k] = read_once(from + u32(k * p.pixel_stride));
        }
        ++iy, from += row_step;
    };

    const int padded = (p.channels + 15) / 16 * 16;
    const u32* w = static_cast<const u32*>(p.w);
    u32 here = u32(c);
    constexpr bool KEPT = KERNEL == 3;  // weights in registers; otherwise read (from the L1 cache) where they are wanted
    u32 weights[KEPT ? KERNEL : 1][SHIFTS][PARTS][4];
    const auto read_weights = [&](u32 (&to)[SHIFTS][PARTS][4], int ky) {
#pragma unroll
        for (int s = 0; s < SHIFTS; ++s)
#pragma unroll
            for (int g = 0; g < PARTS; ++g) {
                const uint4 v = read_once4(w + here + ((ky * SHIFTS + s) * PARTS + g) * padded);
                to[s][g][0] = v.x, to[s][g][1] = v.y, to[s][g][2] = v.z, to[s][g][3] = v.w;
            }
    };
    if constexpr (KEPT) {
#pragma unroll
        for (int ky = 0; ky < KERNEL; ++ky) read_weights(weights[ky], ky);
    }
    s32 bias[4] = {};
    if (e.bias) read_constants<4>(bias, e.bias + c);
    const LineConstants<P, 4> constants(e, c);

    // rows are read a step ahead, where a residual leaves registers for that
    constexpr bool AHEAD = KERNEL == 3 || P == GENERAL || !(P & WITH_RESIDUAL);
    u32 words[KERNEL][WORDS_][4], column[STRIDE][READ];
#pragma unroll
    for (int r = 0; r < KERNEL - STRIDE; ++r) {
        read_row(column[0]);
        arrange<READ>(words[r], column[0]);
    }
    if constexpr (AHEAD) {
#pragma unroll
        for (int r = 0; r < STRIDE; ++r) read_row(column[r]);
    }
    s64 m = (s64(image) * p.out_height + oy) * p.out_width + ox;
    const int size = has<P>(e, OUT_8) ? 1 : has<P>(e, OUT_16) ? 2 : 4;
    s64 line_step = p.out_width * e.output_stride * size;  // bytes
    forget(line_step);
    u8* to = static_cast<u8*>(e.output) + (m * e.output_stride + e.output_offset + c) * size;
#pragma unroll 1
    for (int y = 0; y < rows; y += KERNEL) {
#pragma unroll
        for (int step = 0; step < KERNEL; ++step) {  // which row of the window lies where is known for each
            if (y + step >= rows) return;
            if constexpr (!AHEAD) {
#pragma unroll
                for (int r = 0; r < STRIDE; ++r) read_row(column[r]);
            }
#pragma unroll
            for (int r = 0; r < STRIDE; ++r)
                arrange<READ>(words[(KERNEL - STRIDE + step * STRIDE + r) % KERNEL], column[r]);
            if constexpr (AHEAD) {
#pragma unroll
                for (int r = 0; r < STRIDE; ++r) read_row(column[r]);  // of the next step
            }
            // rarely wanted: worked out anew, for want of registers
            const s64 residual_at = m * e.residual_stride + e.residual_offset + c;
            const s64 second_at = m * e.second_stride + e.second_offset + c;
            s32 acc[COLUMNS][4];
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
                for (int q = 0; q < 4; ++q) acc[j][q] = bias[q];
#pragma unroll
            for (int ky = 0; ky < KERNEL; ++ky) {
                if constexpr (!KEPT) {
                    here += u32(p.nothing);
                    read_weights(weights[0], ky);
                }
#pragma unroll
                for (int g = 0; g < PARTS; ++g)
#pragma unroll
                    for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
                        for (int q = 0; q < 4; ++q)
                            acc[j][q] = dot4<x_signed>(words[(step * STRIDE + ky) % KERNEL][j * STRIDE / 2 + 2 * g][q],
                                                       weights[KEPT ? ky : 0][j * STRIDE & 1][g][q], acc[j][q]);
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                if (has<P>(e, WORDS)) {
                    Words<4> r;
                    load_line<P, 4>(e, r, residual_at + j * e.residual_stride);
                    finish_line<P, 4>(e, constants, r, acc[j], to, j * u32(e.output_stride), second_at + j * e.second_stride);
                } else {
#pragma unroll
                    for (int q = 0; q < 4; ++q)
                        if (c + q < p.channels) store(e, finish<false>(e, acc[j][q], m + j, c + q), m + j, c + q);
                }
            }
            m += p.out_width, to += line_step;
        }
    }
}

template <bool x_signed>
__global__ void conv_depthwise(DepthwiseConv p, Epilogue e) {
    const int chunks = (p.channels + 15) / 16;
    QIR_FOR_EACH(i, s64(p.batch) * p.out_height * p.out_width * chunks) {
        const s64 m = i / chunks;
        const int c = int(i - m * chunks) * 16;
        const int ox = int(m % p.out_width);
        const s64 rest = m / p.out_width;
        const int oy = int(rest % p.out_height);
        const u8* image = p.x + (rest / p.out_height) * p.height * p.width * p.pixel_stride + c;
        const u32 splat = u32(u8(p.pad_value)) * 0x01010101u;
        s32 v[16] = {};
#pragma unroll 1
        for (int ky = 0; ky < p.kernel_h; ++ky) {
            const int iy = oy * p.stride_h - p.pad_top + ky * p.dilation_h;
#pragma unroll 1
            for (int kx = 0; kx < p.kernel_w; ++kx) {
                const int ix = ox * p.stride_w - p.pad_left + kx * p.dilation_w;
                Word w, a;
                w.bits = word_at(p.w, s64(ky * p.kernel_w + kx) * chunks * 16 + c);
                a.bits = make_uint4(splat, splat, splat, splat);
                if (iy >= 0 && iy < p.height && ix >= 0 && ix < p.width)
                    a.bits = word_at(image, (s64(iy) * p.width + ix) * p.pixel_stride);
#pragma unroll
                for (int j = 0; j < 16; ++j) v[j] += (x_signed ? s32(a.as_s8[j]) : s32(a.as_u8[j])) * s32(w.as_s8[j]);
            }
        }
        finish_singly(e, v, m, c, p.channels);
    }
}

}  // namespace qir
