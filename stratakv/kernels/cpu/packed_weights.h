// Linear layers over matrices that stay in a file's blocks, and the small operations around them, for a few tokens at a time.
#pragma once
#include <cstdint>
#include <vector>

#include "ggml_types.h"

namespace stratakv {

// rows x columns in blocks at `data`, which lives as long as the matrix is used. place: where each stored row's result goes
// (empty: in order); source: the way back, which stored row belongs to a place. bias: by place, or empty.
struct Matrix {
    const RowType *type;
    std::int64_t rows, columns;
    const std::uint8_t *data;
    std::vector<std::int32_t> place, source;
    std::vector<float> bias;

    const std::uint8_t *row(std::int64_t index) const { return data + index * type->row_bytes(columns); }
};
using Matrices = std::vector<const Matrix *>;  // of equal columns: their results stand side by side

std::int64_t total_rows(const Matrices &matrices);

// out[token][rows of all matrices] = matrices x[token]; x is [tokens][columns].
void multiply(const Matrices &matrices, const float *x, std::int64_t tokens, float *out, int threads);

// Every (slot) of some experts: out[slot] = matrix `index[slot]` of equally shaped ones after another, times x[slot / x_share].
void multiply_chosen(const Matrix &first, std::int64_t experts, const std::int64_t *index, std::int64_t slots, std::int64_t share,
                     const float *x, float *out, std::int64_t out_stride, int threads);

// Rows to float32, or to bfloat16 where floats is null. index: which places, or null for first, first + 1, ...
void unpack(const Matrix &matrix, const std::int64_t *index, std::int64_t first, std::int64_t count, float *floats, std::uint16_t *bfloats,
            int threads);

// out = x / rms(x) * weight, by rows of `dim`.
void rms_norm(const float *x, const float *weight, float epsilon, std::int64_t rows, std::int64_t dim, float *out, int threads);

enum class Activation { silu, gelu, gelu_tanh };
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
