#pragma once
#include <nanobind/nanobind.h>

namespace stratakv {
void bind_attention(nanobind::module_ &m);
void bind_packed_weights(nanobind::module_ &m);
void bind_layers(nanobind::module_ &m);
void bind_scores(nanobind::module_ &m);
}  // namespace stratakv
