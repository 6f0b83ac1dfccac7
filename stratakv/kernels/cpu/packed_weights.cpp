#include "packed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "threads.h"

namespace stratakv {
namespace {

void norm_row(const float *x, const float *weight, float epsilon, std::int64_t dim, float *out) {
    float sums[16] = {};
    std::int64_t i = 0;
    for (; i + 16 <= dim; i += 16)
        for (int j = 0; j < 16; ++j) sums[j] += x[i + j] * x[i + j];
    for (; i < dim; ++i) sums[0] += x[i] * x[i];
    double sum = 0;
    for (const float part : sums) sum += part;
    const float factor = static_cast<float>(1.0 / std::sqrt(sum / double(dim) + double(epsilon)));
    for (i = 0; i < dim; ++i) out[i] = x[i] * factor * weight[i];
}

}  // namespace

void unpack(const Matrix &matrix, const std::int64_t *index, std::int64_t first, std::int64_t count, float *out,
            int threads) {
    const std::int64_t per_part = std::max<std::int64_t>(1, std::min<std::int64_t>(64, 65536 / matrix.columns));
    if (count * matrix.columns < 16384) threads = 1;
    parallel_for(threads, static_cast<int>((count + per_part - 1) / per_part), [&](int part) {
        for (std::int64_t i = part * per_part; i < std::min((part + 1) * per_part, count); ++i) {
            const std::int64_t place = index ? index[i] : first + i;
            const std::uint8_t *row = matrix.row(matrix.source.empty() ? place : matrix.source[place]);
            float *into = out + i * matrix.columns;
            if (matrix.type->to_float)
                matrix.type->to_float(row, into, matrix.columns);
            else
                std::memcpy(into, row, matrix.columns * sizeof(float));
        }
    });
}

void rms_norm(const float *x, const float *weight, float epsilon, std::int64_t rows, std::int64_t dim, float *out,
              int threads) {
    const std::int64_t per_part = std::max<std::int64_t>(1, 16384 / dim);
    parallel_for(threads, static_cast<int>((rows + per_part - 1) / per_part), [&](int part) {
        for (std::int64_t row = part * per_part; row < std::min(rows, (part + 1) * per_part); ++row)
            norm_row(x + row * dim, weight, epsilon, dim, out + row * dim);
    });
}

void gate(Activation activation, const float *x, std::int64_t rows, std::int64_t width, float *out, int threads) {
    const std::int64_t span = 1024, spans = (width + span - 1) / span;
    parallel_for(threads, static_cast<int>(rows * spans), [&](int i) {
        const std::int64_t row = i / spans, begin = i % spans * span, end = std::min(begin + span, width);
        const float *at = x + row * 2 * width + begin;
        tiles_in_use().gate(activation, at, at + width, end - begin, out + row * width + begin);
    });
}

}  // namespace stratakv
