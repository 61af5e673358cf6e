// Depthwise convolution, NHWC: a thread yields 16 channels of one pixel, reading 16 bytes a tap; neighbours in a warp
// take neighbouring channels, then neighbouring pixels. Channels are padded to a multiple of 16 in x and in the weights.
#include "epilogue.cuh"

namespace qir {

struct DepthwiseConv {
    const u8* x;
    const s8* w;  // (taps, padded channels)
    s32 batch, height, width, channels;  // channels: those that exist
    s32 out_height, out_width;
    s32 kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    s32 pad_value;
    s32 pixel_stride;  // bytes between pixels of x
};

// KERNEL: rows and columns of the window, or 0 where kernel_h and kernel_w say so.
template <bool x_signed, int KERNEL>
__global__ void conv_depthwise(DepthwiseConv p, Epilogue e) {
    const int chunks = (p.channels + 15) / 16;
    const int rows = KERNEL ? KERNEL : p.kernel_h, columns = KERNEL ? KERNEL : p.kernel_w;
    QIR_FOR_EACH(i, s64(p.batch) * p.out_height * p.out_width * chunks) {
        const s64 m = i / chunks;
        const int c = int(i - m * chunks) * 16;
        const int ox = int(m % p.out_width);
        const s64 rest = m / p.out_width;
        const int oy = int(rest % p.out_height);
        const u8* image = p.x + (rest / p.out_height) * p.height * p.width * p.pixel_stride + c;
        s32 v[16] = {};
#pragma unroll (KERNEL == 3 ? 3 : 1)
        for (int ky = 0; ky < rows; ++ky) {
            const int iy = oy * p.stride_h - p.pad_top + ky * p.dilation_h;
#pragma unroll
            for (int kx = 0; kx < columns; ++kx) {
                const int ix = ox * p.stride_w - p.pad_left + kx * p.dilation_w;
                Word w, a;
                w.bits = word_at(p.w, s64(ky * columns + kx) * chunks * 16 + c);
                const u32 splat = u32(u8(p.pad_value)) * 0x01010101u;
                a.bits = make_uint4(splat, splat, splat, splat);
                if (iy >= 0 && iy < p.height && ix >= 0 && ix < p.width)
                    a.bits = word_at(image, (s64(iy) * p.width + ix) * p.pixel_stride);
#pragma unroll
                for (int j = 0; j < 16; ++j) v[j] += (x_signed ? s32(a.as_s8[j]) : s32(a.as_u8[j])) * s32(w.as_s8[j]);
            }
        }
        finish_chunk(e, v, m, c, p.channels);
    }
}

}  // namespace qir
