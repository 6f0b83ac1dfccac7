// Encoding vectors straight into pages: what callers give.
#pragma once
#include <cstdint>
#include <vector>

#include "matrices.h"

namespace stratakv {

// The stored form of one side's vectors. Everything that decides bytes comes from the type itself (stratakv/kvtypes).
struct Encoder {
    // none: the type is encoded by its own code, not here
    enum class Form : int { f32, f16, bf16, turbo, q8, minimum, middle, trellis, none };
    static constexpr const char *kForms[] = {"f32", "f16", "bf16", "turbo", "q8", "minimum", "middle", "trellis"};
    Form form = Form::f32;
    int dim = 0, nbytes = 0, blocks = 1, bits = 0;
    Rotation rotation;
    // turbo. thresholds: filled up with infinity to 128 or more. squares: of the codebook's integers. magnitudes: the
    // integers' own, below 8 bits, repeated as in Side::table
    std::vector<float> thresholds, squares;
    alignas(64) std::int8_t magnitudes[64] = {};
    float unit = 1;
    // trellis. bins: how many a coordinate of 1 is from 0. costs, nearest: [kBins, 4], of each subset: what its nearest
    // level costs, its number there and 256 times its magnitude. path: the values in the order that the code runs
    // through them, the last kSeam before the first and the first behind the last.
    static constexpr int kBins = 2048, kSeam = 32;
    float bins = 0;
    std::vector<std::uint16_t> costs, nearest, path;
    // where in a head's tile a token's canonical bytes lie, in their order: `count` runs of `length` bytes, `stride`
    // apart, the first at offsets[token of the page]
    struct Runs {
        int length, count, stride;
        std::vector<std::int32_t> offsets;
    };
    std::vector<Runs> runs;
};

// positions: [kPageTokens, nbytes], where in a head's tile each canonical byte of a token lies. thresholds and
// integers: a codebook's, empty for other types. bins, numbers and costs: a trellis's. std::invalid_argument where
// sizes don't fit.
Encoder make_encoder(int form, int dim, int nbytes, int blocks, int bits, Rotation rotation,
                     std::vector<float> thresholds, std::vector<int> integers, float unit, float bins,
                     const std::vector<int> &numbers, const std::vector<int> &costs,
                     const std::vector<std::int32_t> &positions);

enum class Encoded : int { good = 0, not_finite = 1, too_large = 2 };

struct EncodeTask {
    const Encoder *encoder;
    Input states;               // [tokens, heads, dim]
    int heads, tokens;
    Pages where;
    const std::int64_t *slots;  // [tokens]: page * kPageTokens + place in the page; negative: the token isn't stored
    std::int64_t tile_bytes;
};

}  // namespace stratakv
