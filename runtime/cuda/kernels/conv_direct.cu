// Convolution element by element: grouped, depthwise, few input channels, any layout and any 4- or 8-bit sign.
// The tensor-core kernel takes what it can; this one takes the rest, with the same epilogue and the same bits.
#include "epilogue.cuh"
#include "view.cuh"

namespace qir {

struct DirectConv {
    s32 batch, height, width;
    s32 out_height, out_width, out_channels;
    s32 group_in, group_out;  // channels of one group
    s32 kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    s32 weight_zero_point;
    s32 pad_values;           // how many: 1, or one a channel
    const s32* pad_value;
};

// x: strides over (.., N, C, H, W).  w: (out_channels, kernel_h, kernel_w, group_in), row-major.
__global__ void conv_direct(DirectConv p, View x, View w, Epilogue e) {
    const s64 pixels = s64(p.batch) * p.out_height * p.out_width;
    QIR_FOR_EACH(i, pixels * p.out_channels) {
        const int m = int(i % p.out_channels);
        const s64 pixel = i / p.out_channels;
        const int ox = int(pixel % p.out_width), oy = int(pixel / p.out_width % p.out_height);
        const s64 n = pixel / (s64(p.out_width) * p.out_height);
        const int first = m / p.group_out * p.group_in;
        s32 acc = 0;
        for (int ky = 0; ky < p.kernel_h; ++ky)
            for (int kx = 0; kx < p.kernel_w; ++kx) {
                const int iy = oy * p.stride_h - p.pad_top + ky * p.dilation_h;
                const int ix = ox * p.stride_w - p.pad_left + kx * p.dilation_w;
                const bool inside = iy >= 0 && iy < p.height && ix >= 0 && ix < p.width;
                const s64 at = x.offset + n * x.strides[RANK - 4] + iy * x.strides[RANK - 2] + ix * x.strides[RANK - 1];
                const s64 tap = ((s64(m) * p.kernel_h + ky) * p.kernel_w + kx) * p.group_in;
                for (int c = 0; c < p.group_in; ++c) {
                    const s32 v = inside ? s32(load(x, at + (first + c) * x.strides[RANK - 3]))
                                         : p.pad_value[p.pad_values > 1 ? first + c : 0];
                    acc += v * (s32(load(w, tap + c)) - p.weight_zero_point);
                }
            }
        store(e, finish(e, acc, pixel, m), pixel, m);
    }
}

}  // namespace qir
