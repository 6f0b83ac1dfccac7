// Encoding vectors straight into pages: what callers give.
#pragma once
#include <cstdint>
#include <vector>

namespace stratakv {

// The stored form of one side's vectors. Everything that decides bytes comes from the type itself (stratakv/kvtypes).
struct Encoder {
    enum class Form : int { f32, f16, bf16, turbo, q8, minimum, middle };
    Form form = Form::f32;
    int dim = 0, nbytes = 0, blocks = 1, bits = 0;
    // the rotation, block 0: none. paley: [order * order], order 1: none
    int rotation = 0, order = 1;
    std::vector<float> first_signs, second_signs, paley;
    float norm_of_rotation = 1;
    // turbo
    std::vector<float> thresholds, integers;
    float unit = 1;
    // [tokens of a page][nbytes]: where in a head's tile a canonical byte lies
    std::vector<std::int32_t> positions;
};

enum class Encoded : int { good = 0, not_finite = 1, too_large = 2 };

struct EncodeTask {
    const Encoder *encoder;
    const float *states;            // [batch, heads, tokens, dim]
    int batch, heads, tokens;
    const std::uint64_t *pages;     // [batch, pages]: addresses of the pages that the tokens fall into
    int page_count;
    int start;                      // the first token's position in the first of these pages
    std::int64_t tile_bytes;
};

}  // namespace stratakv
