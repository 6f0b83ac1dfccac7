// Float arithmetic on one tile, row by row, for the few queries of decoding: floats, and head dims whose code bytes
// don't fill whole words and vectors.
#pragma once
#include <algorithm>
#include <cstring>

#include "unpack.h"
#include "vectors.h"

namespace {

using stratakv::kPageTokens;

// The canonical bytes of one plane of one token.
inline void token_bytes(const std::uint8_t *region, int token, int nbytes, int group, int word, std::uint8_t *out) {
    const std::uint8_t *at = region + std::size_t(token / group) * group * nbytes + (token % group) * word;
    if (word == 4) {
        for (int i = 0; i < nbytes / 4; ++i) std::memcpy(out + i * 4, at + std::size_t(i) * group * 4, 4);
    } else if (word == 1) {
        for (int i = 0; i < nbytes; ++i) out[i] = at[std::size_t(i) * group];
    } else {
        for (int i = 0; i < nbytes; ++i) out[i] = at[std::size_t(i / word) * group * word + i % word];
    }
}

// Table indices of one block of trellis codes, one a byte, in the order of its values; `count` of them. See trellis.h.
template <Codes C>
void trellis_indices(const std::uint8_t *base, const std::uint8_t *high, int count, std::uint8_t *indices) {
    using T = Trellis<C>;
    constexpr int kBase = Packing<C>::kBase, kSub = Packing<C>::kSub, kValues = 8 / T::kStep, kPast = 24;
    const std::uint8_t *narrow = T::kWide ? high : base;
    const int narrow_bytes = count / kValues, steps = count / 8;
    std::uint8_t fields[1024], room[kPast + 1024], *x = room + kPast;
    for (int i = 0; i < narrow_bytes; ++i)
        for (int s = 0; s < kValues; ++s) {
            const int field = narrow[i] >> (T::kStep * s) & ((1 << T::kStep) - 1);
            fields[kValues * i + s] = static_cast<std::uint8_t>(field), x[kValues * i + s] = field & 1;
        }
    for (int i = -kPast; i < 0; ++i) {  // round the block
        int step = (i + kPast) / 8 - kPast / 8, place = (i + kPast) % 8;
        for (; step < 0; step += steps) place = (place + 7) % 8;
        x[i] = x[8 * step + place];
    }
    const auto subset = [&](int i, int z1, int z0) { return (x[i] ^ x[i - 8] ^ x[i - 24]) << z1 | x[i - 16] << z0; };
    // where narrow fields and z1 and z0 lie in an index: as trellis.h puts them together
    if constexpr (!T::kWide) {
        for (int i = 0; i < count; ++i)
            indices[i] = static_cast<std::uint8_t>((fields[i] & ~1) | subset(i, 0, T::kStep));
        return;
    }
    for (int i = 0; i < narrow_bytes; ++i)
        for (int turn = 0; turn < T::kRatio; ++turn)
            for (int s = 0; s < kSub; ++s)
                indices[kValues * i + T::kRatio * s + turn] =
                    base[turn * narrow_bytes + i] >> (kBase * s) & ((1 << kBase) - 1);
    for (int i = 0; i < count; ++i) {
        const int more =
            T::kStep == 1 ? subset(i, kBase + 1, kBase) : subset(i, kBase, kBase + 2) | (fields[i] & ~1) << kBase;
        indices[i] = static_cast<std::uint8_t>(indices[i] | more);
    }
}

// Codes of one token, one a byte, in the order of its values; of trellis codes indices. Loops that compilers turn into
// vector code.
template <Codes C>
void token_codes(const Side &side, const std::uint8_t *tile, int token, std::uint8_t *codes) {
    using P = Packing<C>;
    constexpr int kHighBits = P::kIndexBits - P::kBase;
    alignas(64) std::uint8_t bytes[1024], high[512];
    std::uint8_t *base = P::kBase == 8 ? codes : bytes;
    token_bytes(tile + side.base, token, side.base_bytes, side.group, side.base_word, base);
    if constexpr (is_trellis(C)) {
        const int base_bytes = side.base_bytes / side.blocks, high_bytes = side.high_bytes / side.blocks,
                  count = side.dim / side.blocks;
        if (side.high_bytes) token_bytes(tile + side.high, token, side.high_bytes, side.group, side.high_word, high);
        for (int block = 0; block < side.blocks; ++block)
            trellis_indices<C>(bytes + block * base_bytes, high + block * high_bytes, count, codes + block * count);
        return;
    }
    if constexpr (C == Codes::halves || C == Codes::halves_1) {
        const int half = side.dim / side.blocks / 2;
        for (int block = 0; block < side.blocks; ++block)
            for (int i = 0; i < half; ++i) {
                codes[block * 2 * half + i] = bytes[block * half + i] & 15;
                codes[block * 2 * half + half + i] = bytes[block * half + i] >> 4;
            }
    } else if constexpr (P::kBase == 4) {
        for (int i = 0; i < side.base_bytes; ++i) codes[2 * i] = bytes[i] & 15, codes[2 * i + 1] = bytes[i] >> 4;
    } else if constexpr (P::kBase == 2) {
        for (int i = 0; i < side.base_bytes; ++i)
            for (int s = 0; s < 4; ++s) codes[4 * i + s] = bytes[i] >> (2 * s) & 3;
    }
    if constexpr (kHighBits > 0) {
        constexpr int kPerByte = 8 / kHighBits, kMask = (1 << kHighBits) - 1;
        token_bytes(tile + side.high, token, side.high_bytes, side.group, side.high_word, high);
        for (int i = 0; i < side.high_bytes; ++i)
            for (int s = 0; s < kPerByte; ++s)
                codes[kPerByte * i + s] |= static_cast<std::uint8_t>((high[i] >> (kHighBits * s) & kMask) << P::kBase);
    }
}

template <Codes C>
void decode_codes(const Side &side, const std::uint8_t *tile, int token, float *row) {
    alignas(64) std::uint8_t codes[1024 + 64];
    alignas(64) std::int8_t values[1024 + 64];
    token_codes<C>(side, tile, token, codes);
    if constexpr (Packing<C>::kBase == 8) {
        for (int d = 0; d < side.dim; ++d)
            values[d] = static_cast<std::int8_t>(C == Codes::byte_index ? codes[d] ^ 128 : codes[d]);
    } else {
        const auto entries = entries_of<C>(side, 0);
        for (int d = 0; d < side.dim; d += 64)
            store(values + d, lookup<std::max(6, Packing<C>::kIndexBits)>(load(codes + d), entries));
    }
    const int block_dim = side.dim / side.blocks;
    for (int block = 0; block < side.blocks; ++block) {
        const std::size_t at = (std::size_t(block) * kPageTokens + token) * 2;
        const float scale = half_to_float(tile + side.scale + at) * side.unit;
        const float minimum = side.has_minimum ? half_to_float(tile + side.minimum + at) : 0.0f;
        float *out = row + block * block_dim;
        const std::int8_t *in = values + block * block_dim;
        for (int i = 0; i < block_dim; ++i) out[i] = static_cast<float>(in[i]) * scale + minimum;
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
            for (; d + 16 <= side.dim; d += 16)
                fstore(row + d, half ? fload_f16(bytes + d * 2) : fload_bf16(bytes + d * 2));
            for (; d < side.dim; ++d) {
                std::uint32_t bits = std::uint32_t(bytes[d * 2]) << 16 | std::uint32_t(bytes[d * 2 + 1]) << 24;
                float value;
                std::memcpy(&value, &bits, 4);
                row[d] = half ? half_to_float(bytes + d * 2) : value;
            }
            return;
        }
        default: with_codes(side.codes, [&](auto c) { decode_codes<decltype(c)::value>(side, tile, token, row); });
    }
}

// Tokens that are decoded together, so that each query vector is read once for several of them.
constexpr int kRowTokens = 8;

// Decodes tokens [first, first + count) to `buffer`, [kRowTokens][stride], zero beyond dim, and asks for those of the
// next tile.
inline void decode_some(const Side &side, const std::uint8_t *tile, int first, int count, float *buffer,
                        std::size_t stride, std::ptrdiff_t ahead) {
    const auto ask = [&](std::int64_t region, int nbytes) {
        const std::uint8_t *at = tile + region + std::ptrdiff_t(first) * nbytes + ahead;
        for (int i = 0; i < count * nbytes; i += 64) prefetch(at + i);
    };
    ask(side.base, side.base_bytes);
    if (side.high_bytes) ask(side.high, side.high_bytes);
    for (int t = 0; t < count; ++t) decode_row(side, tile, first + t, buffer + t * stride);
}

// Dot products of R rows of q and T of `buffer`, sums[r * T + t].
template <int R, int T>
inline void dots(const float *q, const float *buffer, std::size_t stride, float *sums) {
    F sum[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sum[i] = fzero();
    for (std::size_t d = 0; d < stride; d += 16) {
        F x[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) x[t] = fload(buffer + t * stride + d);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const F y = fload(q + r * stride + d);
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) sum[r * T + t] = fma(x[t], y, sum[r * T + t]);
        }
    }
    fstore(sums, hsums(sum));
}

// out[r * kPageTokens + token] = q[r] . row, for tokens [first, last). q: [rows][stride], zero beyond dim; stride a
// multiple of 16. buffer: [kRowTokens][stride].
inline void row_scores(const Side &side, const std::uint8_t *tile, const float *q, int stride, int rows, int first,
                       int last, float *out, float *buffer, std::ptrdiff_t ahead) {
    std::memset(buffer, 0, std::size_t(kRowTokens) * stride * 4);
    alignas(64) float sums[16];
    for (int token = first; token < last; token += kRowTokens) {
        const int count = std::min(kRowTokens, last - token);
        decode_some(side, tile, token, count, buffer, stride, ahead);
        int r = 0;
        const auto run = [&](auto run_rows, auto run_tokens) {
            constexpr int R = decltype(run_rows)::value, T = decltype(run_tokens)::value;
            for (; r + R <= rows; r += R)
                for (int t = 0; t < count; t += T) {
                    dots<R, T>(q + std::size_t(r) * stride, buffer + t * stride, stride, sums);
                    for (int i = 0; i < R; ++i)
                        for (int j = 0; j < std::min(T, count - t); ++j)
                            out[(r + i) * kPageTokens + token + t + j] = sums[i * T + j];
                }
        };
        run(std::integral_constant<int, 4>(), std::integral_constant<int, 4>());
        run(std::integral_constant<int, 2>(), std::integral_constant<int, 8>());
        run(std::integral_constant<int, 1>(), std::integral_constant<int, 8>());
    }
}

// Adds weights [R][kPageTokens] of `count` tokens times D vectors of each of them to out.
template <int R, int D>
inline void add_rows(const float *weights, const float *buffer, int count, std::size_t stride, float *out) {
    F sum[R][D];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) sum[r][d] = fload(out + r * stride + d * 16);
    for (int t = 0; t < count; ++t)
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) {
            const F x = fload(buffer + t * stride + d * 16);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][d] = fma(x, fset1(weights[r * kPageTokens + t]), sum[r][d]);
        }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) fstore(out + r * stride + d * 16, sum[r][d]);
}

// out[r][d] += weights[r][token] * row[d], out: [rows][stride]. Tokens that a row doesn't see weigh 0 and are finite.
inline void row_weigh(const Side &side, const std::uint8_t *tile, const float *weights, int rows, int first, int last,
                      float *out, std::size_t stride, float *buffer, std::ptrdiff_t ahead) {
    std::memset(buffer, 0, kRowTokens * stride * 4);
    for (int token = first; token < last; token += kRowTokens) {
        const int count = std::min(kRowTokens, last - token);
        decode_some(side, tile, token, count, buffer, stride, ahead);
        int r = 0;
        const auto run = [&](auto run_rows) {
            constexpr int R = decltype(run_rows)::value, D = R == 1 ? 8 : 4;
            for (; r + R <= rows; r += R) {
                const float *w = weights + std::size_t(r) * kPageTokens + token;
                float *to = out + r * stride;
                std::size_t d = 0;
                for (; d + D * 16 <= stride; d += D * 16) add_rows<R, D>(w, buffer + d, count, stride, to + d);
                for (; d < stride; d += 16) add_rows<R, 1>(w, buffer + d, count, stride, to + d);
            }
        };
        run(std::integral_constant<int, 4>());
        run(std::integral_constant<int, 2>());
        run(std::integral_constant<int, 1>());
    }
}

// Tokens [begin, end) of one head's tile as rows, float32 or (upper halves, rounded to nearest even) bfloat16.
void decode_rows(const Side &side, const std::uint8_t *tile, int begin, int end, float *floats, std::uint16_t *halves) {
    alignas(64) float row[1024 + 16];
    for (int token = begin; token < end; ++token) {
        if (floats) {
            if (side.dim % 16 == 0) {
                decode_row(side, tile, token, floats);
            } else {
                decode_row(side, tile, token, row);
                std::memcpy(floats, row, sizeof(float) * side.dim);
            }
            floats += side.dim;
            continue;
        }
        decode_row(side, tile, token, row);
        for (int d = 0; d < side.dim; ++d) {
            std::uint32_t bits;
            std::memcpy(&bits, row + d, 4);
            halves[d] = static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
        halves += side.dim;
    }
}

}  // namespace
