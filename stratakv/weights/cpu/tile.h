// Products of packed rows, a tile at a time: some rows that lie side by side in vector lanes, times the activations of
// some tokens.
//
// One arithmetic for any number of tokens: activations are packed by token, integer products are exact, and floats are
// added in the order of the columns. So a token's result depends on its own activations alone, to the bit, whatever is
// computed beside it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace stratakv {

constexpr int kBlock = 32;       // columns whose activations share a scale
constexpr int kChunkTokens = 64;  // tokens that a tile is multiplied with before it is unpacked again

// Activations of up to kChunkTokens tokens, block by block: [block][token][...].
struct PackedChunk {
    const std::int8_t *codes;        // [block][token][32]
    const float *scale;              // [block][token]
    const float *sum;                // [block][token][2]: scale times the sum of the codes, by halves of a block
    const std::int32_t *minus_codes;  // [block][token][2]: minus the sum of the codes, by halves
    const float *values;             // [block][token][32]: the activations themselves, for rows of floats
    int tokens;
};

// Rows [first, last) of a matrix times a chunk: out[to[token] * out_stride + (place ? place[row] : row)] = product +
// bias.
struct TileJob {
    const std::uint8_t *data;
    std::size_t row_bytes;
    std::int64_t first, last, columns;
    PackedChunk x;
    float *out;
    std::int64_t out_stride;
    const std::int64_t *to;     // by token of the chunk
    const std::int32_t *place;  // by stored row, null: in order
    const float *bias;          // by place, null: none
};

using RunTiles = void (*)(const TileJob &);

// Packs one token: `columns` floats into its place in a chunk of `tokens` tokens. A token that is not finite gets
// scales that are not.
struct PackInto {
    std::int8_t *codes;
    float *scale, *sum;
    std::int32_t *minus_codes;
};

enum class Activation { silu, gelu, gelu_tanh };

// What an instruction set offers.
struct TileKernel {
    const char *name;
    int lanes;                              // rows of a tile
    RunTiles (*find)(int type);             // null for a ggml type without a body
    void (*pack)(const float *x, std::int64_t columns, int token, int tokens, const PackInto &into);
    void (*gate)(Activation activation, const float *x, const float *up, std::int64_t count,
                 float *out);  // activation(x) * up
};

const TileKernel *avx512_tiles(), *avx2_tiles(), *neon_tiles(), *portable_tiles();  // null where they weren't compiled

}  // namespace stratakv
