#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>

namespace stratakv {

// Arrays come from Python as addresses; Python holds what they point to.
using Address = std::uint64_t;

template <typename T>
T *at(Address address) {
    return reinterpret_cast<T *>(static_cast<std::uintptr_t>(address));
}

void bind_attention(nanobind::module_ &m);
void bind_packed_weights(nanobind::module_ &m);
void bind_layers(nanobind::module_ &m);
void bind_scores(nanobind::module_ &m);
}  // namespace stratakv
