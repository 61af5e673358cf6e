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

enum Arithmetic : int { SUM, DIFFERENCE, PRODUCT, LARGER, SMALLER };

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
                                      : (p < q ? p : q));
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
