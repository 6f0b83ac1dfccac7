// Everything that kernels know of a layer's pages: pages/layout.py's PageLayout, compiled.
#pragma once
#include "attend.h"

namespace stratakv {

struct Layout {
    Side k, v;
    Encoder k_encoder, v_encoder;
    Rotation from_v;  // out of V's stored basis
    int kv_heads;
    std::int64_t tile_bytes;

    bool encodes() const { return k_encoder.form != Encoder::Form::none && v_encoder.form != Encoder::Form::none; }
};

}  // namespace stratakv
