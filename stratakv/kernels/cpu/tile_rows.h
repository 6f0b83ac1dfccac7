// Float arithmetic on one tile, row by row: for floats, for the precise mode, and for head dims whose code bytes don't fill
// whole words and vectors.
#pragma once
#include <cstring>

#include "unpack.h"

namespace {

using stratakv::kPageTokens;
using stratakv::Side;

inline float half_to_float(const std::uint8_t *p) {
    std::uint16_t h;
    std::memcpy(&h, p, 2);
    const std::uint32_t sign = std::uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    float magnitude;
    if (exponent == 0) {
        magnitude = static_cast<float>(fraction) * 0x1p-24f;
    } else {
        const std::uint32_t bits = exponent == 31 ? 0x7f800000u | fraction << 13 : (exponent + 112) << 23 | fraction << 13;
        std::memcpy(&magnitude, &bits, 4);
    }
    return sign ? -magnitude : magnitude;
}

inline std::size_t place(int token, int byte, int nbytes, int group, int word) {
    return std::size_t(token / group) * group * nbytes + std::size_t(byte / word) * group * word + (token % group) * word + byte % word;
}

// Codes of one token, one a byte, by value.
template <Codes C>
void token_codes(const Side &side, const std::uint8_t *tile, int token, std::uint8_t *codes) {
    using P = Packing<C>;
    constexpr int kHighBits = P::kIndexBits - P::kBase;
    const int half = side.dim / side.blocks / 2;
    for (int byte = 0; byte < side.base_bytes; ++byte) {
        const int bits = tile[side.base + place(token, byte, side.base_bytes, side.group, side.base_word)];
        for (int sub = 0; sub < P::kSub; ++sub) {
            const int d = dim_of<C>(byte, sub, half);
            int code = bits >> (P::kBase * sub) & ((1 << P::kBase) - 1);
            if constexpr (kHighBits > 0) {
                constexpr int kPerByte = 8 / kHighBits;
                const int high = tile[side.high + place(token, d / kPerByte, side.high_bytes, side.group, side.high_word)];
                code |= (high >> (kHighBits * (d % kPerByte)) & ((1 << kHighBits) - 1)) << P::kBase;
            }
            codes[d] = static_cast<std::uint8_t>(code);
        }
    }
}

template <Codes C>
void decode_codes(const Side &side, const std::uint8_t *tile, int token, float *row) {
    std::uint8_t codes[1024];
    token_codes<C>(side, tile, token, codes);
    const int block_dim = side.dim / side.blocks;
    for (int block = 0; block < side.blocks; ++block) {
        const std::size_t at = (std::size_t(block) * kPageTokens + token) * 2;
        const float scale = half_to_float(tile + side.scale + at) * side.unit;
        const float minimum = side.has_minimum ? half_to_float(tile + side.minimum + at) : 0.0f;
        for (int d = block * block_dim; d < (block + 1) * block_dim; ++d) {
            const int value = C == Codes::byte         ? static_cast<std::int8_t>(codes[d])
                              : C == Codes::byte_index ? codes[d] - 128
                                                       : side.table[codes[d]];
            row[d] = static_cast<float>(value) * scale + minimum;
        }
    }
}

// One token's vector as floats, row: [dim rounded up to 16].
inline void decode_row(const Side &side, const std::uint8_t *tile, int token, float *row) {
    const std::uint8_t *bytes = tile + side.base + std::size_t(token) * side.nbytes;
    switch (side.codes) {
        case Codes::rows_f32: std::memcpy(row, bytes, std::size_t(side.dim) * 4); return;
        case Codes::rows_f16:
        case Codes::rows_bf16: {
            int d = 0;
            const bool half = side.codes == Codes::rows_f16;
            for (; d + 16 <= side.dim; d += 16) fstore(row + d, half ? fload_f16(bytes + d * 2) : fload_bf16(bytes + d * 2));
            for (; d < side.dim; ++d) {
                std::uint32_t bits = std::uint32_t(bytes[d * 2]) << 16 | std::uint32_t(bytes[d * 2 + 1]) << 24;
                float value;
                std::memcpy(&value, &bits, 4);
                row[d] = half ? half_to_float(bytes + d * 2) : value;
            }
            return;
        }
        case Codes::byte_index: return decode_codes<Codes::byte_index>(side, tile, token, row);
        case Codes::byte: return decode_codes<Codes::byte>(side, tile, token, row);
        case Codes::nibble: return decode_codes<Codes::nibble>(side, tile, token, row);
        case Codes::nibble_1: return decode_codes<Codes::nibble_1>(side, tile, token, row);
        case Codes::nibble_2: return decode_codes<Codes::nibble_2>(side, tile, token, row);
        case Codes::pair: return decode_codes<Codes::pair>(side, tile, token, row);
        case Codes::pair_1: return decode_codes<Codes::pair_1>(side, tile, token, row);
        case Codes::halves: return decode_codes<Codes::halves>(side, tile, token, row);
        case Codes::halves_1: return decode_codes<Codes::halves_1>(side, tile, token, row);
    }
}

// out[r * kPageTokens + token] = q[r] . row, for tokens [first, last). q: [rows][stride], zero beyond dim; stride a multiple of 16.
inline void row_scores(const Side &side, const std::uint8_t *tile, const float *q, int stride, int rows, int first, int last, float *out,
                       float *row) {
    std::memset(row, 0, std::size_t(stride) * 4);
    for (int token = first; token < last; ++token) {
        decode_row(side, tile, token, row);
        int r = 0;
        for (; r + 4 <= rows; r += 4) {
            F sum[4] = {fzero(), fzero(), fzero(), fzero()};
            for (int d = 0; d < stride; d += 16) {
                const F x = fload(row + d);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) sum[i] = fma(x, fload(q + std::size_t(r + i) * stride + d), sum[i]);
            }
            for (int i = 0; i < 4; ++i) out[(r + i) * kPageTokens + token] = hsum(sum[i]);
        }
        for (; r < rows; ++r) {
            F sum = fzero();
            for (int d = 0; d < stride; d += 16) sum = fma(fload(row + d), fload(q + std::size_t(r) * stride + d), sum);
            out[r * kPageTokens + token] = hsum(sum);
        }
    }
}

// out[r][d] += weights[r][token] * row[d], out: [rows][stride].
inline void row_weigh(const Side &side, const std::uint8_t *tile, const float *weights, int rows, int first, int last, float *out,
                      std::size_t stride, float *row) {
    std::memset(row, 0, stride * 4);
    for (int token = first; token < last; ++token) {
        decode_row(side, tile, token, row);
        for (int r = 0; r < rows; ++r) {
            const float w = weights[r * kPageTokens + token];
            if (w == 0) continue;
            const F weight = fset1(w);
            float *at = out + std::size_t(r) * stride;
            for (std::size_t d = 0; d < stride; d += 16) fstore(at + d, fma(fload(row + d), weight, fload(at + d)));
        }
    }
}

}  // namespace
