// Comparisons, boolean operators, selections and casts on strided integer operands; booleans are bytes, 0 or 1.
#include "view.cuh"

namespace qir {

enum Relation : int { EQUAL, LESS, LESS_OR_EQUAL, BOTH, EITHER };

__global__ void relate_elements(Shape shape, View a, View b, View y, s32 relation) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 p = load(a, at), q = load(b, at);
        const bool is = relation == EQUAL           ? p == q
                        : relation == LESS          ? p < q
                        : relation == LESS_OR_EQUAL ? p <= q
                        : relation == BOTH          ? (p && q)
                                                    : (p || q);
        put(y, position(y, at), is);
    }
}

enum Arithmetic : int { SUM, DIFFERENCE, PRODUCT, LARGER, SMALLER, MODULUS, REMAINDER };

// a mod b with the sign of b, or with that of a (a remainder); 0 where b is 0.
__device__ __forceinline__ s64 modulus(s64 a, s64 b, bool sign_of_a) {
    if (b == 0 || b == -1) return 0;
    const s64 r = a % b;
    return !sign_of_a && r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

// Indices and sizes, in y's own type: what leaves it wraps around.
__global__ void arithmetic_elements(Shape shape, View a, View b, View y, s32 operation) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 p = load(a, at), q = load(b, at);
        put(y, position(y, at),
            operation == SUM          ? p + q
            : operation == DIFFERENCE ? p - q
            : operation == PRODUCT    ? p * q
            : operation == LARGER     ? (p > q ? p : q)
            : operation == SMALLER    ? (p < q ? p : q)
                                      : modulus(p, q, operation == REMAINDER));
    }
}

// y = condition ? a : b
__global__ void select_elements(Shape shape, View condition, View a, View b, View y) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        put(y, position(y, at), load(condition, at) ? load(a, at) : load(b, at));
    }
}

// y = x in y's type, the high bits dropped; to a boolean: x != 0.
__global__ void cast_elements(Shape shape, View x, View y, s32 boolean) {
    QIR_FOR_EACH(i, shape.count) {
        const Index at(shape, i);
        const s64 v = load(x, at);
        put(y, position(y, at), boolean ? s64(v != 0) : v);
    }
}

}  // namespace qir
