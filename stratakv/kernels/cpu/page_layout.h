// Everything that kernels know of a layer's pages: pages/layout.py's PageLayout, compiled.
#pragma once
#include "attend.h"
#include "attend_dispatch.h"

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

// Whole pages become pages of another layout, from what they hold. numbers [pages, 2]: of a page here and there.
inline Failure convert(const Kernel &kernel, const Layout &from, Pages here, const Layout &to, Pages there,
                       const std::int64_t *numbers, int pages, int threads) {
    ConvertTask tasks[2] = {};
    tasks[0].source = &from.k, tasks[0].back = &from.from_k, tasks[0].encoder = &to.k_encoder;
    tasks[1].source = &from.v, tasks[1].back = &from.from_v, tasks[1].encoder = &to.v_encoder;
    for (ConvertTask &task : tasks) {
        task.from = here, task.to = there;
        task.from_tile_bytes = from.tile_bytes, task.to_tile_bytes = to.tile_bytes;
        task.numbers = numbers, task.pages = pages, task.heads = to.kv_heads;
    }
    return convert(kernel, tasks, 2, threads);
}

}  // namespace stratakv
