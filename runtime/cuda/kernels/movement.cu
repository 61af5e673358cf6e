// Data movement: any permutation, slice, split, expansion, concatenation or layout change is a strided copy.
#include "view.cuh"

namespace qir {

// y[at] = x[at]: bytes only, `T` has the element's size.
template <class T>
__global__ void copy_elements(Shape shape, View x, View y) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        static_cast<T*>(y.data)[position(y, at)] = static_cast<const T*>(x.data)[position(x, at)];
    }
}

// y[.., i.., ..] = x[.., index[i..], ..]: Gather. x does not move along the axes of the index; those positions come from
// `index`, in steps of `step`. A negative index counts from the end of the axis, which has `size` elements; one that is out
// of range, which ONNX forbids, takes the nearest element: memory is safe whatever the index holds, as when a layer is
// timed by itself.
template <class T>
__global__ void gather_elements(Shape shape, View x, View y, View index, s64 step, s32 size) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        s64 from = load(index, at);
        from = from < 0 ? from + size : from;
        const s64 p = position(x, at) + step * (from < 0 ? 0 : from < size ? from : size - 1);
        static_cast<T*>(y.data)[position(y, at)] = static_cast<const T*>(x.data)[p];
    }
}

// y[at] = x[index[flat position]], index into x's logical order; a negative index stands for `fill`. Any data movement
// can be written this way; it is used for those that are no strided copy.
template <class T>
__global__ void lookup_elements(Shape shape, View x, View y, Shape x_shape, const s32* index, s64 fill) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s32 from = index[i];
        static_cast<T*>(y.data)[position(y, at)] =
            from < 0 ? T(fill) : static_cast<const T*>(x.data)[position(x, Index(x_shape, from))];
    }
}

__global__ void fill_elements(Shape shape, View y, s64 value) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        put(y, position(y, at), value);
    }
}

// What tells the content of a tensor: every thread folds the elements that are its, one after the other   [FNV-1a].
__global__ void digest_elements(Shape shape, View x, u64* folded) {
    u64 h = 14695981039346656037ull;
    QIR_FOR_EACH(i, shape.count) h = (h ^ u64(load(x, Index(shape, i)))) * 1099511628211ull;
    folded[s64(blockIdx.x) * blockDim.x + threadIdx.x] = h;
}

}  // namespace qir
