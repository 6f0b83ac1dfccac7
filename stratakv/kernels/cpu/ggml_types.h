// ggml's own kernels for packed rows, from the libraries that llama-cpp-python brings: found by name at run time,
// nothing is linked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace stratakv {

// What ggml does with one type's rows. Signatures as in ggml.h and ggml-cpu.h.
struct RowType {
    using FromFloat = void (*)(const float *x, void *y, std::int64_t count);
    using ToFloat = void (*)(const void *x, float *y, std::int64_t count);
    using Dot = void (*)(int count, float *result, std::size_t, const void *row, std::size_t, const void *activations,
                         std::size_t, int);

    int type, dot_type;             // dot_type: what the activations must be packed as
    std::int64_t block, dot_block;  // values in a block of each
    std::size_t block_bytes, dot_block_bytes;
    ToFloat to_float;      // null: the row is float32
    FromFloat pack;        // activations to dot_type; null: they stay float32
    Dot dot;

    std::size_t row_bytes(std::int64_t columns) const { return columns / block * block_bytes; }
    std::size_t dot_bytes(std::int64_t columns) const { return columns / dot_block * dot_block_bytes; }
};

// Opens libggml-base and libggml-cpu. Returns what is wrong with them, nothing when they can be used.
std::string open_ggml(const char *base, const char *cpu);

// The type's row; each type is tried once, against rows that ggml packed itself. Throws std::invalid_argument for a
// type that ggml can't multiply, or whose result is not what the rows say (another layout of ggml's tables).
const RowType &row_type(int type);

}  // namespace stratakv
