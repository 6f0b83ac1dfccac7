// Linear layers over matrices that stay in a file's blocks, and the small operations around them, for a few tokens at a time.
#pragma once
#include <cstdint>
#include <vector>

#include "../../weights/cpu/products.h"

namespace stratakv {

// Rows to float32. index: which places, or null for first, first + 1, ...
void unpack(const Matrix &matrix, const std::int64_t *index, std::int64_t first, std::int64_t count, float *out, int threads);

// out = x / rms(x) * weight, by rows of `dim`.
void rms_norm(const float *x, const float *weight, float epsilon, std::int64_t rows, std::int64_t dim, float *out, int threads);

// out[row][i] = activation(x[row][i]) * x[row][width + i]; x is [rows][2 * width].
void gate(Activation activation, const float *x, std::int64_t rows, std::int64_t width, float *out, int threads);

// What stands between a layer's q, k, v projections and its attention.
struct Heads {
    std::int64_t batch, tokens, q_heads, kv_heads, dim;
    const float *q_norm, *k_norm;  // [dim] or null
    float epsilon;
    const float *cos, *sin;        // [cos_batch][tokens][dim], rotating halves
    std::int64_t cos_batch;
};
// qkv [batch * tokens][(q_heads + 2 kv_heads) * dim] to q [batch][q_heads][tokens][dim] and k, v [batch][kv_heads][tokens][dim]:
// each q and k normed, then rotated.
void split_heads(const Heads &heads, const float *qkv, float *q, float *k, float *v, int threads);

}  // namespace stratakv
