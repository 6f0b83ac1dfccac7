// Vectors as the model has them: where they are, their precision, and the rotation between its basis and the stored
// one.
#pragma once
#include <cstdint>
#include <vector>

namespace stratakv {

constexpr int kPageTokens = 128;

enum class Precision : int { f32, f16, bf16 };

// [tokens, heads, dim]: values of one vector lie side by side, tokens and heads anywhere (strides in values).
template <typename Data>
struct Vectors {
    Data *data;
    Precision precision;
    std::int64_t token_stride, head_stride;
};
using Input = Vectors<const void>;
using Output = Vectors<void>;

// y = second * (H (first * x)) on each run of `block` values; block 0: none. paley: H's factor [order, order], order 1:
// none. first: signs; second: signs times 1 / sqrt(block), which is the same to the bit as one after the other.
struct Rotation {
    int block = 0, order = 1;
    std::vector<float> first, second, paley;

    bool operator==(const Rotation &other) const {
        return block == other.block && order == other.order && first == other.first && second == other.second;
    }

    Rotation inverse() const {
        Rotation r = *this;
        r.first.swap(r.second);
        for (int i = 0; i < order; ++i)
            for (int j = 0; j < order; ++j)
                if (order > 1) r.paley[i * order + j] = paley[j * order + i];
        return r;
    }
};

// Page p of a block table begins at base + p * stride: pages of one pool, or (base 0, stride 1) addresses.
struct Pages {
    std::uint64_t base, stride;

    std::uint8_t *at(std::int64_t page) const {
        return reinterpret_cast<std::uint8_t *>(base + static_cast<std::uint64_t>(page) * stride);
    }
};

}  // namespace stratakv
