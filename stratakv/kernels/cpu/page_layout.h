// Everything that kernels know of a layer's pages: pages/layout.py's PageLayout, compiled.
#pragma once
#include "attend.h"

namespace stratakv {

struct Layout {
    Side k, v;
    Encoder k_encoder, v_encoder;
    Rotation from_k, from_v;  // out of the stored bases
    int kv_heads;
    std::int64_t tile_bytes;

    bool encodes() const { return k_encoder.form != Encoder::Form::none && v_encoder.form != Encoder::Form::none; }
};

// Attention over pages of this layout, as far as that says it.
inline Attention attention_over(const Layout &layout, Pages where, int q_heads) {
    Attention a{};
    a.k = layout.k, a.v = layout.v, a.tile_bytes = layout.tile_bytes, a.where = where;
    a.kv_heads = layout.kv_heads, a.groups = q_heads / layout.kv_heads;
    a.query_rotation = &layout.k_encoder.rotation, a.out_rotation = &layout.from_v;
    return a;
}

}  // namespace stratakv
