#pragma once
#include <nanobind/nanobind.h>

namespace stratakv {
void bind_attention(nanobind::module_ &m);
}
