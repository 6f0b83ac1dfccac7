// Linear layers over matrices that stay in a file's blocks, and the small operations around them, for a few tokens at a
// time.
#pragma once
#include <cstdint>
#include <vector>

#include "../../weights/cpu/products.h"

namespace stratakv {

// Rows to float32. index: which places, or null for first, first + 1, ...
void unpack(const Matrix &matrix, const std::int64_t *index, std::int64_t first, std::int64_t count, float *out,
            int threads);

// out = x / rms(x) * weight, by rows of `dim`.
void rms_norm(const float *x, const float *weight, float epsilon, std::int64_t rows, std::int64_t dim, float *out,
              int threads);

// out[row][i] = activation(x[row][i]) * x[row][width + i]; x is [rows][2 * width].
void gate(Activation activation, const float *x, std::int64_t rows, std::int64_t width, float *out, int threads);

}  // namespace stratakv
