#include "packed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "threads.h"

namespace stratakv {
namespace {

// Shares of work: several a thread, so that the last one isn't waited for long, and large enough to be worth the fetch.
std::int64_t rows_a_part(std::int64_t rows, int threads) { return std::max<std::int64_t>(16, rows / (std::int64_t(threads) * 6) + 1); }

// Activations packed as each of some types wants them. Kept by the calling thread: no allocation a call.
class Activations {
public:
    Activations(const float *x, std::int64_t rows, std::int64_t columns, int threads) : x_(x), rows_(rows), columns_(columns), threads_(threads) {}

    void add(const RowType &type) {
        if (!type.pack || find(type.dot_type)) return;
        Packed &packed = slots()[count_++];
        packed.dot_type = type.dot_type, packed.stride = type.dot_bytes(columns_);
        // a kernel may read whole vectors past the end
        if (packed.bytes.size() < packed.stride * rows_ + 64) packed.bytes.resize(packed.stride * rows_ + 64);
        const std::int64_t share = rows_ > 1 ? 1 : rows_;
        parallel_for(rows_ * columns_ < 16384 ? 1 : threads_, static_cast<int>(rows_ / share), [&](int row) {
            type.pack(x_ + row * columns_, packed.bytes.data() + row * packed.stride, columns_);
        });
    }

    const void *row(const RowType &type, std::int64_t index) const {
        if (!type.pack) return x_ + index * columns_;
        const Packed *packed = find(type.dot_type);
        return packed->bytes.data() + index * packed->stride;
    }

private:
    struct Packed {
        int dot_type;
        std::size_t stride;
        std::vector<std::uint8_t> bytes;
    };
    static Packed *slots() {
        thread_local Packed kept[8];
        return kept;
    }
    const Packed *find(int dot_type) const {
        for (int i = 0; i < count_; ++i)
            if (kept_[i].dot_type == dot_type) return &kept_[i];
        return nullptr;
    }

    const float *x_;
    std::int64_t rows_, columns_;
    int threads_, count_ = 0;
    Packed *kept_ = slots();  // of the thread that made this: workers read it
};

float dot(const Matrix &matrix, const std::uint8_t *row, const void *x) {
    float result;
    matrix.type->dot(static_cast<int>(matrix.columns), &result, 0, row, 0, x, 0, 1);
    return result;
}

std::uint16_t bfloat(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float activated(Activation activation, float x) {
    switch (activation) {
        case Activation::silu: return x / (1.0f + std::exp(-x));
        case Activation::gelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
        default: return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    }
}

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

std::int64_t total_rows(const Matrices &matrices) {
    std::int64_t total = 0;
    for (const Matrix *matrix : matrices) total += matrix->rows;
    return total;
}

void multiply(const Matrices &matrices, const float *x, std::int64_t tokens, float *out, int threads) {
    const std::int64_t total = total_rows(matrices), per_part = rows_a_part(total, threads);
    Activations activations(x, tokens, matrices[0]->columns, threads);
    struct Part {
        const Matrix *matrix;
        std::int64_t offset, begin, end;
    };
    thread_local std::vector<Part> kept;
    std::vector<Part> &parts = kept;
    parts.clear();
    std::int64_t offset = 0;
    for (const Matrix *matrix : matrices) {
        activations.add(*matrix->type);
        for (std::int64_t begin = 0; begin < matrix->rows; begin += per_part)
            parts.push_back({matrix, offset, begin, std::min(begin + per_part, matrix->rows)});
        offset += matrix->rows;
    }
    const Part *first = parts.data();
    parallel_for(threads, static_cast<int>(parts.size()), [&, first](int i) {
        const Part &part = first[i];
        const Matrix &matrix = *part.matrix;
        const std::size_t row_bytes = matrix.type->row_bytes(matrix.columns);
        const std::uint8_t *row = matrix.data + part.begin * row_bytes;
        for (std::int64_t r = part.begin; r < part.end; ++r, row += row_bytes) {
            const std::int64_t place = matrix.place.empty() ? r : matrix.place[r];
            const float bias = matrix.bias.empty() ? 0.0f : matrix.bias[place];
            for (std::int64_t t = 0; t < tokens; ++t)
                out[t * total + part.offset + place] = dot(matrix, row, activations.row(*matrix.type, t)) + bias;
        }
    });
}

void multiply_chosen(const Matrix &first, std::int64_t experts, const std::int64_t *index, std::int64_t slots, std::int64_t share,
                     const float *x, float *out, std::int64_t out_stride, int threads) {
    const std::int64_t per_part = std::max<std::int64_t>(16, rows_a_part(first.rows * slots, threads));
    const std::int64_t parts = (first.rows + per_part - 1) / per_part;
    const std::size_t row_bytes = first.type->row_bytes(first.columns);
    Activations activations(x, slots / share, first.columns, threads);
    activations.add(*first.type);
    parallel_for(threads, static_cast<int>(slots * parts), [&](int i) {
        const std::int64_t slot = i / parts, begin = i % parts * per_part, end = std::min(begin + per_part, first.rows);
        if (index[slot] < 0 || index[slot] >= experts) {  // transformers' mark for a token of no expert
            std::fill(out + slot * out_stride + begin, out + slot * out_stride + end, 0.0f);
            return;
        }
        const void *at = activations.row(*first.type, slot / share);
        const std::uint8_t *row = first.data + (index[slot] * first.rows + begin) * row_bytes;
        for (std::int64_t r = begin; r < end; ++r, row += row_bytes) out[slot * out_stride + r] = dot(first, row, at);
    });
}

void unpack(const Matrix &matrix, const std::int64_t *index, std::int64_t first, std::int64_t count, float *floats, std::uint16_t *bfloats,
            int threads) {
    const std::int64_t per_part = std::max<std::int64_t>(1, std::min<std::int64_t>(64, 65536 / matrix.columns));
    if (count * matrix.columns < 16384) threads = 1;
    parallel_for(threads, static_cast<int>((count + per_part - 1) / per_part), [&](int part) {
        thread_local std::vector<float> kept;
        if (!floats && static_cast<std::int64_t>(kept.size()) < matrix.columns) kept.resize(matrix.columns);
        const std::int64_t begin = part * per_part, end = std::min(begin + per_part, count);
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t place = index ? index[i] : first + i;
            const std::uint8_t *row = matrix.row(matrix.source.empty() ? place : matrix.source[place]);
            float *into = floats ? floats + i * matrix.columns : kept.data();
            if (matrix.type->to_float) matrix.type->to_float(row, into, matrix.columns);
            else std::memcpy(into, row, matrix.columns * sizeof(float));
            if (!floats)
                for (std::int64_t c = 0; c < matrix.columns; ++c) bfloats[i * matrix.columns + c] = bfloat(into[c]);
        }
    });
}

void rms_norm(const float *x, const float *weight, float epsilon, std::int64_t rows, std::int64_t dim, float *out, int threads) {
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
        const float *at = x + row * 2 * width;
        for (std::int64_t c = begin; c < end; ++c) out[row * width + c] = activated(activation, at[c]) * at[width + c];
    });
}

void split_heads(const Heads &heads, const float *qkv, float *q, float *k, float *v, int threads) {
    const std::int64_t all = heads.q_heads + 2 * heads.kv_heads, dim = heads.dim, half = dim / 2, rows = heads.batch * heads.tokens;
    parallel_for(rows > 4 ? threads : 1, static_cast<int>(rows), [&](int row) {
        thread_local std::vector<float> kept;
        if (static_cast<std::int64_t>(kept.size()) < dim) kept.resize(dim);
        const std::int64_t batch = row / heads.tokens, token = row % heads.tokens;
        const std::int64_t at = ((heads.cos_batch > 1 ? batch : 0) * heads.tokens + token) * dim;
        const float *cos = heads.cos + at, *sin = heads.sin + at;
        for (std::int64_t head = 0; head < all; ++head) {
            const float *from = qkv + (row * all + head) * dim;
            const bool is_q = head < heads.q_heads, is_v = head >= heads.q_heads + heads.kv_heads;
            const std::int64_t number = is_q ? head : (head - heads.q_heads) % heads.kv_heads;
            float *side = is_q ? q : is_v ? v : k;
            float *to = side + ((batch * (is_q ? heads.q_heads : heads.kv_heads) + number) * heads.tokens + token) * dim;
            if (is_v) {
                std::memcpy(to, from, dim * sizeof(float));
                continue;
            }
            if (const float *weight = is_q ? heads.q_norm : heads.k_norm) {
                norm_row(from, weight, heads.epsilon, dim, kept.data());
                from = kept.data();
            }
            for (std::int64_t i = 0; i < half; ++i) {
                to[i] = from[i] * cos[i] - from[i + half] * sin[i];
                to[i + half] = from[i + half] * cos[i + half] + from[i] * sin[i + half];
            }
        }
    });
}

}  // namespace stratakv
