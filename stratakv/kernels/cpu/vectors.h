// One vector between a model's memory and floats, and its rotation. Included by one file per instruction set, after its
// primitives. Floats are added in the order of Rotation.exact (kvtypes/hadamard.py), so that encoded bytes are the same
// to the bit: no fused multiply-add may be made of them (-ffp-contract=off).
#pragma once
#include <cmath>
#include <cstring>

#include "matrices.h"

namespace {

using stratakv::Input;
using stratakv::Output;
using stratakv::Precision;
using stratakv::Rotation;
using namespace simd;

constexpr int kMaxDim = 1024;

inline float half_to_float(const std::uint8_t *p) {
    std::uint16_t h;
    std::memcpy(&h, p, 2);
    const std::uint32_t sign = std::uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    float magnitude;
    if (exponent == 0) {
        magnitude = static_cast<float>(fraction) * 0x1p-24f;
    } else {
        const std::uint32_t bits =
            exponent == 31 ? 0x7f800000u | fraction << 13 : (exponent + 112) << 23 | fraction << 13;
        std::memcpy(&magnitude, &bits, 4);
    }
    return sign ? -magnitude : magnitude;
}

// Rounds to nearest even; inf where the value is beyond 65504.
inline std::uint16_t to_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (bits < 0x38800000) {  // subnormal: let the float adder round at the right place
        float magnitude, shifted;
        std::memcpy(&magnitude, &bits, 4);
        shifted = magnitude + 0.5f;
        std::memcpy(&bits, &shifted, 4);
        return sign | static_cast<std::uint16_t>(bits - 0x3f000000);
    }
    bits += 0xc8000fff + (bits >> 13 & 1);
    return sign | static_cast<std::uint16_t>(bits >> 13);
}

inline std::uint16_t to_bfloat(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void read_row(const Input &from, std::int64_t token, int head, int dim, float *row) {
    const std::int64_t at = token * from.token_stride + head * from.head_stride;
    if (from.precision == Precision::f32) {
        std::memcpy(row, static_cast<const float *>(from.data) + at, sizeof(float) * dim);
        return;
    }
    const std::uint8_t *p = static_cast<const std::uint8_t *>(from.data) + at * 2;
    const bool half = from.precision == Precision::f16;
    int d = 0;
    for (; d + 16 <= dim; d += 16) fstore(row + d, half ? fload_f16(p + d * 2) : fload_bf16(p + d * 2));
    for (; d < dim; ++d) {
        const std::uint32_t bits = std::uint32_t(p[d * 2]) << 16 | std::uint32_t(p[d * 2 + 1]) << 24;
        float value;
        std::memcpy(&value, &bits, 4);
        row[d] = half ? half_to_float(p + d * 2) : value;
    }
}

inline void write_row(const Output &to, std::int64_t token, int head, int dim, const float *row) {
    const std::int64_t at = token * to.token_stride + head * to.head_stride;
    if (to.precision == Precision::f32) {
        std::memcpy(static_cast<float *>(to.data) + at, row, sizeof(float) * dim);
        return;
    }
    std::uint16_t *out = static_cast<std::uint16_t *>(to.data) + at;
    if (to.precision == Precision::bf16)
        for (int d = 0; d < dim; ++d) out[d] = to_bfloat(row[d]);
    else
        for (int d = 0; d < dim; ++d) out[d] = to_half(row[d]);
}

// One run of 16 N values in registers; N a power of two, no factor of Paley's.
template <int N>
[[gnu::always_inline]] inline void rotate_vectors(const Rotation &rotation, F (&v)[N]) {
    const float *first = rotation.first.data(), *second = rotation.second.data();
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = butterflies(fmul(fload(first + 16 * i), v[i]));
#pragma GCC unroll 4
    for (int step = 1; step < N; step *= 2)
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)
            if (!(i & step)) {
                const F sum = fadd(v[i], v[i + step]), difference = fsub(v[i], v[i + step]);
                v[i] = sum, v[i + step] = difference;
            }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = fmul(fload(second + 16 * i), v[i]);
}

template <int N>
inline void rotate_run_of(const Rotation &rotation, float *y) {
    F v[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = fload(y + 16 * i);
    rotate_vectors<N>(rotation, v);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) fstore(y + 16 * i, v[i]);
}

// One run of rotation.block values, in place.
inline void rotate_run(const Rotation &rotation, float *y) {
    const int block = rotation.block, m = rotation.order;
    if (m == 1 && block == 128) return rotate_run_of<8>(rotation, y);
    if (m == 1 && block == 64) return rotate_run_of<4>(rotation, y);
    const float *first = rotation.first.data(), *second = rotation.second.data();
    for (int i = 0; i < block; ++i) y[i] = first[i] * y[i];
    if (m > 1) {
        const float *paley = rotation.paley.data();
        float in[32];
        for (int run = 0; run < block; run += m) {
            std::memcpy(in, y + run, sizeof(float) * m);
            for (int r = 0; r < m; ++r) {
                float total = paley[r * m] * in[0];
                for (int c = 1; c < m; ++c) total = total + paley[r * m + c] * in[c];
                y[run + r] = total;
            }
        }
    }
    for (int step = m; step < block; step *= 2)
        for (int pair = 0; pair < block; pair += 2 * step) {
            float *a = y + pair, *b = y + pair + step;
            for (int i = 0; i < step; ++i) {
                const float sum = a[i] + b[i], difference = a[i] - b[i];
                a[i] = sum;
                b[i] = difference;
            }
        }
    for (int i = 0; i < block; ++i) y[i] = second[i] * y[i];
}

// A whole vector, in place; nothing where the rotation is null or has no block.
inline void rotate(const Rotation *rotation, float *y, int dim) {
    if (!rotation || !rotation->block) return;
    for (int run = 0; run < dim; run += rotation->block) rotate_run(*rotation, y + run);
}

}  // namespace
