// A tile's values as floats for many queries, whole vectors of codes at once: K a group of 16 tokens in a vector's
// lanes, V 16 values of a token. Both as they lie in pages, which is another order of values than the canonical one.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "tile_rows.h"
#include "trellis.h"

namespace {

// Tokens of a page that are decoded together.
constexpr int kBlockTokens = 64;

inline int subs(Codes codes) {
    int found = 1;
    with_codes(codes, [&](auto c) { found = Packing<decltype(c)::value>::kSub; });
    return found;
}

// A table by the shape of a side, kept for the next call.
template <typename Fill>
inline const std::int32_t *kept_dims(const Side &side, std::size_t count, Fill fill) {
    thread_local struct {
        int dim = 0, blocks = 0;
        std::vector<std::int32_t> dims;
    } kept;
    if (kept.dim != side.dim || kept.blocks != side.blocks) {
        kept.dim = side.dim, kept.blocks = side.blocks, kept.dims.resize(count);
        for (std::size_t i = 0; i < count; ++i) kept.dims[i] = -1;
        fill(kept.dims.data());
    }
    return kept.dims.data();
}

// Lanes of V's values in the order of its units, those of no value among them.
inline int lanes_of(const Side &v) {
    const bool trellis = is_trellis(v.codes);
    const int sub = trellis ? 1 : subs(v.codes), bytes = (trellis ? v.dim : v.base_bytes) / v.blocks;
    return v.blocks * ((bytes + 15) / 16) * sub * 16;
}

// Which value each of them is; -1: none.
template <Codes C>
const std::int32_t *lane_dims(const Side &v, int lanes) {
    return kept_dims(v, lanes, [&](std::int32_t *dims) {
        constexpr int kSub = Packing<C>::kSub, kRuns = is_trellis(C) ? 1 : kSub;
        const int bytes = v.base_bytes / v.blocks, units = (v.dim / v.blocks + 15) / 16;
        for (int i = 0; i < lanes; ++i) {
            const int unit = i / 16 / kRuns;
            int sub = i / 16 % kRuns, byte = unit * 16 + i % 16;
            if (is_trellis(C)) {  // in the order of trellis_v; unit: of 16 values
                const int at = unit % units * 16 + i % 16;
                sub = at / bytes, byte = unit / units * bytes + at % bytes;
            }
            dims[i] = byte >= v.base_bytes || sub >= kSub ? -1 : dim_of<C>(byte, sub, stretch_of(v));
        }
    });
}

// Which values the 4 bytes of a lane of K are, word by word in the order in which they are read, and part by part.
template <Codes C>
const std::int32_t *word_dims(const Side &k) {
    constexpr int kSub = Packing<C>::kSub;
    return kept_dims(k, std::size_t(k.base_bytes) * kSub, [&](std::int32_t *dims) {
        const int stretch = stretch_of(k);
        for (int word = 0; word < k.base_bytes / 4; ++word)
            for (int sub = 0; sub < kSub; ++sub)
                for (int i = 0; i < 4; ++i)
                    dims[(word_of<C>(word, stretch / 4) * kSub + sub) * 4 + i] = dim_of<C>(4 * word + i, sub, stretch);
    });
}

// Byte N of each lane, a code 128 higher, as the code.
template <int N>
inline F code_floats(I bytes) {
    I byte = bytes;
    if constexpr (N > 0) byte = shr32<8 * N>(byte);
    if constexpr (N < 3) byte = and_(byte, set1(255));
    return fsub(to_float(byte), fset1(128.0f));
}

// Codes 128 higher, of a vector that holds one a byte.
template <Codes C>
inline I raised(I bytes) {
    return C == Codes::byte_index ? bytes : xor_(bytes, set4(0x80808080u));
}

// 16 tokens of K, a whole group: out[value * kBlockTokens + token of the group].
template <Codes C>
void decode_group(const Side &k, const std::uint8_t *tile, int group, float *out) {
    constexpr int kSub = Packing<C>::kSub;
    const auto entries = entries_of<C>(k, 128);
    const std::int32_t *dims = word_dims<C>(k);
    const int per_block = k.base_bytes / 4 / k.blocks;
    const std::uint8_t *base = tile + k.base + std::size_t(group) * k.base_bytes * 16;
    const std::uint8_t *high = tile + k.high + std::size_t(group) * k.high_bytes * 16;
    for (int block = 0; block < k.blocks; ++block) {
        const std::size_t at = (std::size_t(block) * kPageTokens + group * 16) * 2;
        const F scale = fmul(fload_f16(tile + k.scale + at), fset1(k.unit));
        const F minimum = k.has_minimum ? fload_f16(tile + k.minimum + at) : fzero();
        const auto use = [&](I codes) __attribute__((always_inline)) {
            fstore(out + dims[0] * kBlockTokens, fma(code_floats<0>(codes), scale, minimum));
            fstore(out + dims[1] * kBlockTokens, fma(code_floats<1>(codes), scale, minimum));
            fstore(out + dims[2] * kBlockTokens, fma(code_floats<2>(codes), scale, minimum));
            fstore(out + dims[3] * kBlockTokens, fma(code_floats<3>(codes), scale, minimum));
            dims += 4;
        };
        if constexpr (is_trellis(C)) {
            trellis_k<C>(base + std::size_t(block) * per_block * 64,
                         high + std::size_t(block) * (k.high_bytes / k.blocks) * 16, per_block, 0,
                         [&](I index, int)
                             __attribute__((always_inline)) { use(lookup<Packing<C>::kIndexBits>(index, entries)); });
        } else {
            for (int w = block * per_block; w < (block + 1) * per_block; ++w) {
                const I unit = load(base + std::size_t(w) * 64);
#pragma GCC unroll 4
                for (int sub = 0; sub < kSub; ++sub) {
                    if constexpr (Packing<C>::kBase == 8) {
                        use(raised<C>(unit));
                    } else {
                        I index = base_part<C>(unit, sub);
                        if constexpr (kHasHigh<C>) index = join_k<C>(index, high_k<C>(high, w, sub));
                        use(lookup<Packing<C>::kIndexBits>(index, entries));
                    }
                }
            }
        }
    }
}

// Of 4 tokens of V 16 values each: codes that are 128 higher. scale, minimum: of each token.
inline void store_values(I codes, const float *scale, const float *minimum, float *out, std::size_t stride) {
    fstore(out, fma(code_floats<0>(codes), fset1(scale[0]), fset1(minimum[0])));
    fstore(out + stride, fma(code_floats<1>(codes), fset1(scale[1]), fset1(minimum[1])));
    fstore(out + 2 * stride, fma(code_floats<2>(codes), fset1(scale[2]), fset1(minimum[2])));
    fstore(out + 3 * stride, fma(code_floats<3>(codes), fset1(scale[3]), fset1(minimum[3])));
}

// Tokens [first, first + kBlockTokens) of V in the order of lane_dims: out[(token - first) * stride + lane]. Those
// outside of [low, high) become zero: pages hold anything there. unpacked: room for a block of 4 tokens of trellis
// codes.
template <Codes C>
void decode_values(const Side &v, const std::uint8_t *tile, int first, int low, int high, float *out,
                   std::size_t stride, std::uint8_t *unpacked) {
    constexpr int kSub = Packing<C>::kSub;
    const auto entries = entries_of<C>(v, 128);
    const int per_block = lanes_of(v) / v.blocks;
    alignas(64) float scale[kBlockTokens], minimum[kBlockTokens] = {};
    for (int block = 0; block < v.blocks; ++block) {
        const std::size_t at = (std::size_t(block) * kPageTokens + first) * 2;
        for (int t = 0; t < kBlockTokens; t += 16) {
            fstore(scale + t, fmul(fload_f16(tile + v.scale + at + t * 2), fset1(v.unit)));
            if (v.has_minimum) fstore(minimum + t, fload_f16(tile + v.minimum + at + t * 2));
        }
        for (int t = 0; t < kBlockTokens; ++t)
            if (first + t < low || first + t >= high) scale[t] = minimum[t] = 0.0f;
        for (int t = 0; t < kBlockTokens; t += 4) {
            const int group = (first + t) / 4;
            float *to = out + t * stride + block * per_block;
            if constexpr (is_trellis(C)) {
                const int base_bytes = v.base_bytes / v.blocks, high_bytes = v.high_bytes / v.blocks;
                trellis_v<C>(tile + v.base + std::size_t(group * v.blocks + block) * base_bytes * 4,
                             tile + v.high + std::size_t(group * v.blocks + block) * high_bytes * 4, base_bytes,
                             entries, unpacked);
                for (int lane = 0; lane < per_block; lane += 16)
                    store_values(load(unpacked + lane * 4), scale + t, minimum + t, to + lane, stride);
            } else {
                const std::uint8_t *base = tile + v.base + std::size_t(group) * v.base_bytes * 4;
                const std::uint8_t *more = tile + v.high + std::size_t(group) * v.high_bytes * 4;
                const int units = per_block / (16 * kSub);
                for (int u = block * units; u < (block + 1) * units; ++u) {
                    const I unit = load(base + std::size_t(u) * 64);
#pragma GCC unroll 4
                    for (int sub = 0; sub < kSub; ++sub, to += 16) {
                        I values;
                        if constexpr (Packing<C>::kBase == 8) {
                            values = raised<C>(unit);
                        } else {
                            I index = base_part<C>(unit, sub);
                            if constexpr (kHasHigh<C>) index = join_v<C>(index, high_v<C>(more, u, sub));
                            values = lookup<Packing<C>::kIndexBits>(index, entries);
                        }
                        store_values(values, scale + t, minimum + t, to, stride);
                    }
                }
            }
        }
    }
}

}  // namespace
