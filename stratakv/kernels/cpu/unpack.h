// From code bytes to table indices, for each packing. Included by one file per instruction set, after its primitives.
//
// A unit is 64 bytes of the base plane: for K 16 tokens x one word (4 bytes), for V 16 bytes x 4 tokens. It holds kSub
// vectors of one signed byte a value. Bit planes beyond the base plane are fetched so that they fall on the same bytes.
#pragma once
#include <type_traits>

#include "attend.h"

namespace {

using stratakv::Codes;
using stratakv::is_trellis;
using stratakv::Side;
using namespace simd;

template <Codes C>
struct Packing;

// bits of the base plane; kIndexBits: of a whole code
template <int BASE, int INDEX>
struct Bits {
    static constexpr int kBase = BASE, kIndexBits = INDEX, kSub = 8 / BASE;
};
template <> struct Packing<Codes::byte> : Bits<8, 8> {};
template <> struct Packing<Codes::byte_index> : Bits<8, 8> {};
template <> struct Packing<Codes::nibble> : Bits<4, 4> {};
template <> struct Packing<Codes::nibble_1> : Bits<4, 5> {};
template <> struct Packing<Codes::nibble_2> : Bits<4, 6> {};
template <> struct Packing<Codes::pair> : Bits<2, 2> {};
template <> struct Packing<Codes::pair_1> : Bits<2, 3> {};
template <> struct Packing<Codes::halves> : Bits<4, 4> {};
template <> struct Packing<Codes::halves_1> : Bits<4, 5> {};
// of an index, one bit longer than a code
template <> struct Packing<Codes::trellis_pair> : Bits<2, 3> {};
template <> struct Packing<Codes::trellis_pair_1> : Bits<2, 4> {};
template <> struct Packing<Codes::trellis_nibble> : Bits<4, 5> {};
template <> struct Packing<Codes::trellis_nibble_1> : Bits<4, 6> {};
template <> struct Packing<Codes::trellis_nibble_2> : Bits<4, 7> {};

// Calls f with the packing as a template argument; not for floats, which have no codes.
template <typename Function>
inline void with_codes(Codes codes, Function f) {
    switch (codes) {
#define STRATAKV_CASE(name) \
    case Codes::name: return f(std::integral_constant<Codes, Codes::name>());
        STRATAKV_PACKINGS(STRATAKV_CASE)
#undef STRATAKV_CASE
        default: return;
    }
}

template <Codes C>
constexpr bool kHasHigh = Packing<C>::kIndexBits > Packing<C>::kBase && !is_trellis(C);

// A code table in registers, in two parts where one of 64 entries isn't enough.
struct LongTable {
    Table low, high;
};
template <Codes C>
inline auto entries_of(const Side &side, int offset) {
    if constexpr (Packing<C>::kIndexBits == 7)
        return LongTable{table(side.table, offset), table(side.table + 64, offset)};
    else
        return table(side.table, offset);
}
template <int BITS>
inline I lookup(I index, const LongTable &entries) {
    static_assert(BITS == 7);
    return lookup7(index, entries.low, entries.high);
}

// Trellis codes: the bit x of all values lies in the narrow plane, the only one or the one beside the base plane.
template <Codes C>
struct Trellis {
    static constexpr bool kWide =
        C == Codes::trellis_pair_1 || C == Codes::trellis_nibble_1 || C == Codes::trellis_nibble_2;
    // bits of a value in the narrow plane; and bytes of 8 values, one step of the trellis
    static constexpr int kStep = C == Codes::trellis_nibble                                 ? 4
                                 : C == Codes::trellis_pair || C == Codes::trellis_nibble_2 ? 2
                                                                                            : 1;
    // bytes of the base plane for each of the narrow one, a stretch of it apart
    static constexpr int kRatio = kWide ? Packing<C>::kBase / kStep : 1;
    // x's in a byte of the narrow plane
    static constexpr std::uint32_t kX = kStep == 4 ? 0x11111111u : kStep == 2 ? 0x55555555u : 0xffffffffu;
};

// Which value of the vector byte `byte` (of all blocks) of the base plane holds in part `sub`. stretch: half a block of
// halves, or the narrow plane's bytes of a block.
template <Codes C>
inline int dim_of(int byte, int sub, int stretch = 16) {
    if constexpr (C == Codes::byte || C == Codes::byte_index) return byte;
    if constexpr (C == Codes::pair || C == Codes::pair_1 || C == Codes::trellis_pair) return 4 * byte + sub;
    if constexpr (C == Codes::halves || C == Codes::halves_1)
        return byte / stretch * 2 * stretch + byte % stretch + stretch * sub;
    if constexpr (Trellis<C>::kWide) {
        constexpr int kRatio = Trellis<C>::kRatio, kValues = 8 / Trellis<C>::kStep;
        const int block = byte / (kRatio * stretch), turn = byte / stretch % kRatio;
        return kValues * (block * stretch + byte % stretch) + kRatio * sub + turn;
    }
    return 2 * byte + sub;
}

// The place of base word `word` (of all blocks) in the order in which words are read. stretch: words of it.
template <Codes C>
inline int word_of(int word, int stretch) {
    if constexpr (!Trellis<C>::kWide) return word;
    constexpr int kRatio = Trellis<C>::kRatio;
    const int block = word / (kRatio * stretch), turn = word / stretch % kRatio;
    return (block * stretch + word % stretch) * kRatio + turn;
}

inline int stretch_of(const Side &side) { return is_trellis(side.codes) ? side.high_bytes / side.blocks : 16; }

// Each vector that is read asks for the one at the same place in the next tile, `ahead` bytes on: memory works while we
// do, and never gets more requests at once than it can queue (all of a tile's at its start took 1.5 times as long).
inline void prefetch(const std::uint8_t *p) { __builtin_prefetch(p, 0, 2); }

inline std::uint32_t bytes4(int b0, int b1, int b2, int b3) {
    return std::uint32_t(b0) | std::uint32_t(b1) << 8 | std::uint32_t(b2) << 16 | std::uint32_t(b3) << 24;
}

// The base plane's part: bits above kBase are left in place where a lookup ignores them.
template <Codes C>
inline I base_part(I unit, int sub) {
    using P = Packing<C>;
    if constexpr (P::kBase == 8) return unit;
    if constexpr (P::kBase == 4) return sub == 0 ? unit : shr16<4>(unit);
    return sub == 0 ? unit : sub == 1 ? shr16<2>(unit) : sub == 2 ? shr16<4>(unit) : shr16<6>(unit);
}

// High bits of K's unit: word w of the base plane, 16 tokens. `high` is the tile's high region of these tokens.
// Returns bits already at their place in the index.
template <Codes C>
inline I high_k(const std::uint8_t *high, int w, int sub) {
    if constexpr (C == Codes::pair_1) {  // word w: 16 values, high bytes 2w and 2w + 1
        const I word = load(high + (w / 2) * 64);
        const I bytes = w % 2 == 0 ? pick<0, 0, 1, 1>(word) : pick<2, 2, 3, 3>(word);
        const int low = 1 << sub, up = 1 << (4 + sub);
        return where_bit(bytes, set4(bytes4(low, up, low, up)), set4(0x04040404u));
    } else if constexpr (C == Codes::nibble_1) {  // word w: 8 values, high byte w
        const I word = load(high + (w / 4) * 64);
        const int b = w % 4;
        const I bytes = b == 0   ? pick<0, 0, 0, 0>(word)
                        : b == 1 ? pick<1, 1, 1, 1>(word)
                        : b == 2 ? pick<2, 2, 2, 2>(word)
                                 : pick<3, 3, 3, 3>(word);
        return where_bit(bytes, set4(bytes4(1 << sub, 4 << sub, 16 << sub, 64 << sub)), set4(0x10101010u));
    } else if constexpr (C == Codes::nibble_2) {  // word w: 8 values, high bytes 2w and 2w + 1
        const I word = load(high + (w / 2) * 64);
        const I bytes = w % 2 == 0 ? pick<0, 0, 1, 1>(word) : pick<2, 2, 3, 3>(word);
        // even bytes: bits 2 sub, odd bytes: bits 4 + 2 sub; to bits 4 and 5
        const I even = and_(sub == 0 ? shl16<4>(bytes) : shl16<2>(bytes), set4(0x00300030u));
        const I odd = and_(sub == 0 ? bytes : shr16<2>(bytes), set4(0x30003000u));
        return or_(even, odd);
    } else {  // halves_1: word w of a block: values 4 (w % 4) + j + 16 sub; one high word a block
        static_assert(C == Codes::halves_1);
        const I word = load(high + (w / 4) * 64);
        const int b = (w % 4) / 2 + 2 * sub;
        const I bytes = b == 0   ? pick<0, 0, 0, 0>(word)
                        : b == 1 ? pick<1, 1, 1, 1>(word)
                        : b == 2 ? pick<2, 2, 2, 2>(word)
                                 : pick<3, 3, 3, 3>(word);
        const int shift = 4 * (w % 2);
        return where_bit(bytes, set4(bytes4(1 << shift, 2 << shift, 4 << shift, 8 << shift)), set4(0x10101010u));
    }
}

// Lane i moved down by BITS * (i % PERIOD) bits.
template <int BITS, int PERIOD>
inline I stagger(I a) {
    alignas(64) std::uint32_t lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = BITS * (i % PERIOD);
    return shr_lanes(a, load(lanes));
}

// High bits of V's unit: bytes 16u ... 16u + 15 of the base plane, 4 tokens. `high`: the high region of these tokens.
// Those of part `sub` are moved to their place in the index, others lie around them.
template <Codes C>
inline I high_v(const std::uint8_t *high, int u, int sub) {
    if constexpr (C == Codes::pair_1) {  // byte B: high byte B / 2, bit 4 (B % 2) + sub
        const I bits = stagger<4, 2>(spread<2>(high + u * 32));
        return sub == 0 ? shl16<2>(bits) : sub == 1 ? shl16<1>(bits) : sub == 2 ? bits : shr16<1>(bits);
    } else if constexpr (C == Codes::nibble_1) {  // byte B: high byte B / 4, bit 2 (B % 4) + sub
        const I bits = stagger<2, 4>(spread<4>(high + u * 16));
        return sub == 0 ? shl16<4>(bits) : shl16<3>(bits);
    } else if constexpr (C == Codes::nibble_2) {  // byte B: high byte B / 2, bits 4 (B % 2) + 2 sub
        const I bits = stagger<4, 2>(spread<2>(high + u * 32));
        return sub == 0 ? shl16<4>(bits) : shl16<2>(bits);
    } else {  // halves_1: unit u is block u: lane i: value i + 16 sub: high byte i / 8 + 2 sub, bit i % 8
        static_assert(C == Codes::halves_1);
        return shl16<4>(stagger<1, 8>(spread<8>(high + u * 16 + sub * 8)));
    }
}

// The index of a base part whose upper bits aren't clear and of high bits: for K in their place alone, for V others lie
// around them.
template <Codes C>
constexpr std::uint32_t kBaseMask = Packing<C>::kBase == 4 ? 0x0f0f0f0fu : 0x03030303u;
template <Codes C>
inline I join_k(I base, I high) {
    return or_(and_(base, set4(kBaseMask<C>)), high);
}
template <Codes C>
inline I join_v(I base, I high) {
    return select(set4(kBaseMask<C>), base, high);
}

}  // namespace
