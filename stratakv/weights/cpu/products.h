// Matrices in a file's blocks times activations: one arithmetic for any number of tokens.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../../kernels/cpu/ggml_types.h"
#include "tile.h"

namespace stratakv {

// rows x columns in blocks at `data`, which lives as long as the matrix is used. place: where each stored row's result
// goes (empty: in order); source: the way back, which stored row belongs to a place. bias: by place, or empty.
struct Matrix {
    const RowType *type;
    std::int64_t rows, columns;
    const std::uint8_t *data;
    std::vector<std::int32_t> place, source;
    std::vector<float> bias;

    const std::uint8_t *row(std::int64_t index) const { return data + index * type->row_bytes(columns); }
};
using Matrices = std::vector<const Matrix *>;  // of equal columns: their results stand side by side

std::int64_t total_rows(const Matrices &matrices);

// out[token][rows of all matrices] = matrices x[token]; x is [tokens][columns]. What a token gets depends on that token
// alone.
void multiply(const Matrices &matrices, const float *x, std::int64_t tokens, float *out, int threads);

// Every slot of some experts: out[slot] = (matrix `index[slot]` of equally shaped ones, one after another) x[slot /
// share]; zeros where there is no such matrix.
void multiply_chosen(const Matrix &first, std::int64_t experts, const std::int64_t *index, std::int64_t slots,
                     std::int64_t share, const float *x, float *out, std::int64_t out_stride, int threads);

// Tiles that run on this machine, best first; the name of those in use; use others (false: there are none of that
// name).
const std::vector<const TileKernel *> &tile_kernels();
const TileKernel &tiles_in_use();
bool use_tiles(const std::string &name);

}  // namespace stratakv
