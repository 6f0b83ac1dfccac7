// Decode attention over packed pages: what callers give, and what every instruction set provides.
#pragma once
#include <cstddef>
#include <cstdint>

#include "encode.h"
#include "matrices.h"

namespace stratakv {

// How a side's codes are packed: the one table of all ways. A type names its own (stratakv/kvtypes/code.py); each of
// the second list has a Packing in unpack.h, and nothing else knows their number.
#define STRATAKV_ROWS(X)                     \
    X(rows_f32) /* floats, token by token */ \
    X(rows_f16)                              \
    X(rows_bf16)
#define STRATAKV_PACKINGS(X)                                                                               \
    X(byte)       /* q8_0: one signed byte a value */                                                      \
    X(byte_index) /* turbo8: the same, 128 higher */                                                       \
    X(nibble)     /* turbo4: value i in nibble i % 2 of byte i / 2 */                                      \
    X(nibble_1)   /* turbo5: and a plane of bit 4 */                                                       \
    X(nibble_2)   /* turbo6: and a plane of bits 4, 5 */                                                   \
    X(pair)       /* turbo2: value i at bits 2 (i % 4) of byte i / 4 */                                    \
    X(pair_1)     /* turbo3: and a plane of bit 2 */                                                       \
    X(halves)     /* q4_0, q4_1: blocks of 32, low nibbles the first 16 values, high ones the other 16 */  \
    X(halves_1)   /* q5_0, q5_1: and a plane of bit 4 */                                                   \
    /* tcq2 ... tcq6, stratakv/kvtypes/trellis.py: planes of as many bits as turbo's, read by trellis.h */ \
    X(trellis_pair)                                                                                        \
    X(trellis_pair_1)                                                                                      \
    X(trellis_nibble)                                                                                      \
    X(trellis_nibble_1)                                                                                    \
    X(trellis_nibble_2)

#define STRATAKV_VALUE(name) name,
#define STRATAKV_NAME(name) #name,
enum class Codes : int { STRATAKV_ROWS(STRATAKV_VALUE) STRATAKV_PACKINGS(STRATAKV_VALUE) };
constexpr const char *kCodeNames[] = {STRATAKV_ROWS(STRATAKV_NAME) STRATAKV_PACKINGS(STRATAKV_NAME)};

// One side (K or V) of a layer's pages. A value is table[code] * unit * scale + minimum.
struct Side {
    Codes codes;
    int dim;             // values of a vector
    int nbytes;          // canonical bytes of a vector
    int blocks;          // scales of a vector
    int base_bytes;      // bytes of the base plane of a vector, all blocks
    int high_bytes;      // and of the high plane, 0 without
    int group, base_word, high_word;  // tokens of a group and bytes of a word in the layout of pages/layout.py
    bool has_minimum;
    bool signed_scale;   // scales may be negative
    bool vectors;        // whether the integer kernels can read it (whole words and vectors)
    std::int64_t base, high, scale, minimum;  // offsets of the regions in a head's tile
    float unit;
    alignas(64) std::int8_t table[128];
};

constexpr bool is_trellis(Codes codes) { return codes >= Codes::trellis_pair; }

// What an index into a side's table stands for: the code itself, and for trellis codes the number of the level, 4 u + 2
// z1 + z0, of an index that trellis.h puts together.
constexpr int level_of(Codes codes, int index) {
    const auto bit = [&](int at) { return index >> at & 1; };
    switch (codes) {
        case Codes::trellis_pair: return 4 * bit(1) + 2 * bit(0) + bit(2);
        case Codes::trellis_nibble: return 4 * (index >> 1 & 7) + 2 * bit(0) + bit(4);
        case Codes::trellis_pair_1: return 4 * (index & 3) + (index >> 2 & 3);
        case Codes::trellis_nibble_1: return 4 * (index & 15) + (index >> 4 & 3);
        case Codes::trellis_nibble_2: return 4 * ((index & 15) + 16 * bit(5)) + 2 * bit(4) + bit(6);
        default: return index;
    }
}

// One layer's attention for all sequences of a step, ragged: sequence s has query tokens [query_start[s], query_start[s
// + 1]) and a block table of pages [page_start[s], page_start[s + 1]). A query token sees tokens [first, last) of its
// sequence, counted from the table's first page.
struct Attention {
    Side k, v;
    int sequences, kv_heads, groups;  // groups: query heads a kv head
    std::int64_t tile_bytes;
    Input query;                   // [query tokens, kv_heads * groups, k.dim]
    Output out;                    // [query tokens, kv_heads * groups, v.dim]
    const Rotation *query_rotation;  // into K's stored basis, null: none
    const Rotation *out_rotation;    // out of V's, null: none
    Pages where;
    const std::int64_t *pages;     // all sequences' block tables one after another
    const std::int64_t *page_start;   // [sequences + 1]
    const std::int32_t *query_start;  // [sequences + 1]
    const std::int32_t *first;     // [query tokens]
    const std::int32_t *last;      // [query tokens]
    const float *sinks;            // [kv_heads * groups] or null
    float *lse;  // [query tokens, kv_heads * groups] or null: the log of the sum of exponentiated logits
    float scale, softcap;  // softcap 0: none
    bool precise;  // float arithmetic on decoded rows instead of integers

    int q_tokens(int sequence) const { return query_start[sequence + 1] - query_start[sequence]; }
    // of one partial softmax
    std::size_t partial_floats(int sequence) const { return std::size_t(groups) * q_tokens(sequence) * (v.dim + 2); }
};

// The state of a softmax over some of the tokens: for `rows` queries of one kv head, rows being groups * q_tokens.
struct Partial {
    float *maximum;  // [rows]
    float *sum;  // [rows]
    float *out;  // [rows, v.dim], not yet divided by sum
};

// The softmaxes of one kind of pages: `count` of them, of a sequence and kv head.
struct Softmaxes {
    const Attention *of;
    const Partial *parts;
    int count;
};

struct Kernel {
    const char *name;
    // Attention of sequence s, kv head h over pages [page_begin, page_end) of its table: a softmax for each `unit`
    // pages of them. Returns the name of the instruction set that it was compiled for.
    const char *(*run)(const Attention &, int sequence, int head, std::int64_t page_begin, std::int64_t page_end,
                       std::int64_t unit, const Partial *);
    // Merges the softmaxes of all units of a sequence and kv head, and of all `count` kinds of pages, sinks included,
    // into the output. Queries, output and sinks are the first kind's; one_basis: V is stored in the same one in all.
    void (*merge)(int sequence, int head, const Softmaxes *kinds, int count, bool one_basis);
    // Tokens [begin, end) of a head's tile as rows [tokens, dim], into whichever of the two outputs isn't null.
    void (*decode)(const Side &, const std::uint8_t *tile, int begin, int end, float *floats, std::uint16_t *bfloats);
    // Rotates `count` rows of `dim` values in place.
    void (*rotate)(const Rotation &, float *rows, int count, int dim);
    // Encodes tokens [begin, end) of heads [first, last) into their pages.
    Encoded (*encode)(const EncodeTask &, int first, int last, int begin, int end);
};

// Null where the library or the machine doesn't have it.
const Kernel *avx512_kernel();
const Kernel *avx2_kernel();
const Kernel *neon_kernel();
const Kernel *portable_kernel();

}  // namespace stratakv
