// What turbo and trellis types share: a block's norm, its direction in the rotated basis, and planes of codes.
#pragma once
#include <cmath>
#include <cstring>

#include "encode.h"
#include "vectors.h"

namespace {

using stratakv::Encoded;
using stratakv::Encoder;

inline Encoded put_half(float value, std::uint8_t *out) {
    const std::uint16_t half = to_half(value);
    std::memcpy(out, &half, 2);
    return (half & 0x7c00) == 0x7c00 ? Encoded::too_large : Encoded::good;
}

// Bits [shift, shift + width) of indices, the first in the low bits, eight at a time. count: a multiple of 8. Returns
// the end of the plane.
template <int WIDTH>
inline std::uint8_t *put_plane(const std::uint8_t *indices, int count, int shift, std::uint8_t *out) {
    static_assert(WIDTH == 1 || WIDTH == 2 || WIDTH == 4);
    for (int i = 0; i < count; i += 8, out += WIDTH) {
        std::uint64_t x;
        std::memcpy(&x, indices + i, 8);
        x = x >> shift & 0x0101010101010101u * ((1 << WIDTH) - 1);
        if constexpr (WIDTH == 1) {
            x = x * 0x0102040810204080u >> 56;
        } else {  // neighbours move together, then pairs, then fours
            x = (x | x >> (8 - WIDTH)) & 0x0001000100010001u * ((1 << 2 * WIDTH) - 1);
            x = (x | x >> (16 - 2 * WIDTH)) & 0x0000000100000001u * ((1ull << 4 * WIDTH) - 1);
            x = x | x >> (32 - 4 * WIDTH);
        }
        std::memcpy(out, &x, WIDTH);
    }
    return out;
}

inline bool finite(const float *x, int dim) {
    F zeros = fzero();  // stays 0 unless a value is inf or nan
    int i = 0;
    for (; i + 16 <= dim; i += 16) zeros = fadd(zeros, fmul(fload(x + i), fzero()));
    float rest = hsum(zeros);
    for (; i < dim; ++i) rest += x[i] * 0.0f;
    return rest == 0.0f;
}

// Sums halves until an odd number is left, then one by one: the order of _sum_of_squares in kvtypes/turbo.py.
inline float squares_of(const float *x, int block) {
    float y[kMaxDim];
    y[0] = 0;  // gcc doesn't know that no block is empty
    for (int i = 0; i < block; ++i) y[i] = x[i] * x[i];
    int half = block;
    while (half % 2 == 0) {
        half /= 2;
        for (int i = 0; i < half; ++i) y[i] = y[i] + y[i + half];
    }
    float squares = y[0];
    for (int i = 1; i < half; ++i) squares = squares + y[i];
    return squares;
}

// A block's direction in the rotated basis, and its norm. Blocks of 16 N values, N a power of two, stay in registers.
template <int N>
[[gnu::always_inline]] inline float direction_of(const Encoder &e, const float *x, F (&v)[N]) {
    F squares[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = fload(x + 16 * i), squares[i] = fmul(v[i], v[i]);
#pragma GCC unroll 4
    for (int half = N / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) squares[i] = fadd(squares[i], squares[i + half]);
    const float norm = std::sqrt(hsum_of_halves(squares[0]));
    const F divisor = fset1(norm > 0 ? norm : 1.0f);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = fdiv(v[i], divisor);
    rotate_vectors<N>(e.rotation, v);
    return norm;
}

// The same for any block, into y.
inline float direction_of(const Encoder &e, const float *x, int block, float *y) {
    const float norm = std::sqrt(squares_of(x, block)), divisor = norm > 0 ? norm : 1.0f;
    for (int i = 0; i < block; ++i) y[i] = x[i] / divisor;
    rotate_run(e.rotation, y);
    return norm;
}

}  // namespace
