// Encoding vectors straight into pages: what callers give.
#pragma once
#include <cstdint>
#include <vector>

#include "matrices.h"

namespace stratakv {

// The stored form of one side's vectors. Everything that decides bytes comes from the type itself (stratakv/kvtypes).
struct Encoder {
    enum class Form : int { f32, f16, bf16, turbo, q8, minimum, middle };
    Form form = Form::f32;
    int dim = 0, nbytes = 0, blocks = 1, bits = 0;
    Rotation rotation;
    // turbo
    std::vector<float> thresholds, integers;
    float unit = 1;
    // [tokens of a page][nbytes]: where in a head's tile a canonical byte lies
    std::vector<std::int32_t> positions;
};

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
