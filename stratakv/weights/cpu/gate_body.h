// Activation functions over rows of floats, written so that compilers make vectors of them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tile.h"

namespace stratakv {
namespace {

// e^x by 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2]; relative error below 2e-7.
inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float moved = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
    const float n = moved - 12582912.0f;
    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    std::uint32_t bits;
    std::memcpy(&bits, &moved, 4);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

void gate(Activation activation, const float *x, const float *up, std::int64_t count, float *out) {
    switch (activation) {
        case Activation::silu:
            for (std::int64_t i = 0; i < count; ++i) out[i] = x[i] / (1.0f + exponential(-x[i])) * up[i];
            break;
        case Activation::gelu:
            for (std::int64_t i = 0; i < count; ++i)
                out[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f)) * up[i];
            break;
        case Activation::gelu_tanh:  // 0.5 (1 + tanh u) = 1 / (1 + e^(-2 u))
            for (std::int64_t i = 0; i < count; ++i) {
                const float u = 0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
                out[i] = x[i] / (1.0f + exponential(-2.0f * u)) * up[i];
            }
            break;
    }
}

}  // namespace
}  // namespace stratakv
