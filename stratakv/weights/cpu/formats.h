// ggml's block formats as tiles: `unpack` reads one unit of each of a tile's rows and gives codes in lanes and their
// scales. Included after the primitives of an instruction set. Facts of the formats: ggml-common.h and ggml-quants.c of
// ggml 0.9 to 0.25.
//
// A unit has kBlocks blocks of 32 columns. Value of a column: scale * (code - kOffset) + minimum; scales by kHalves of
// a block. kSigned: codes are signed bytes (`from_signed`), else unsigned and at most 63.
#pragma once

namespace {

using namespace lanes;

template <int Blocks, int Halves, bool Minimum>
struct Tile {
    alignas(64) V codes[Blocks][8];  // word j: columns 4 j to 4 j + 3
    F scale[Blocks][Halves];
    F minimum[Minimum ? Blocks : 1][Minimum ? Halves : 1];
};

struct Rows {
    const std::uint8_t *at;
    std::size_t stride;

    Words words(int offset) const { return lanes::words(at + offset, stride); }
    V word(int offset) const { return lanes::word(at + offset, stride); }
};

inline V high_nibble(V v) { return and_(shr<4>(v), set1(0x0f0f0f0f)); }
inline V low_nibble(V v) { return and_(v, set1(0x0f0f0f0f)); }
inline F high_half_of(V v) { return low_half(shr<16>(v)); }

// 16 bytes of nibbles: the low ones are the block's first 16 columns, the high ones its second.
inline void nibbles(const Words &w, V *codes) {
    for (int j = 0; j < 4; ++j) codes[j] = low_nibble(w.v[j]), codes[4 + j] = high_nibble(w.v[j]);
}
inline void add_fifth_bits(V bits, V *codes) {
    for (int j = 0; j < 8; ++j) codes[j] = or_(codes[j], shl<4>(spread_bits(bits, 4 * j)));
}

struct Q4_0 {  // f16 d, 16 bytes of nibbles
    static constexpr int kType = 2, kBytes = 18, kBlocks = 1, kHalves = 1, kOffset = 8;
    static constexpr bool kMinimum = false, kSigned = false;
    static void unpack(const Rows &rows, Tile<1, 1, false> &tile) {
        nibbles(rows.words(2), tile.codes[0]);
        tile.scale[0][0] = low_half(rows.word(0));
    }
};

struct Q4_1 {  // f16 d, f16 m, nibbles
    static constexpr int kType = 3, kBytes = 20, kBlocks = 1, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = true, kSigned = false;
    static void unpack(const Rows &rows, Tile<1, 1, true> &tile) {
        nibbles(rows.words(4), tile.codes[0]);
        const V head = rows.word(0);
        tile.scale[0][0] = low_half(head), tile.minimum[0][0] = high_half_of(head);
    }
};

struct Q5_0 {  // f16 d, 32 fifth bits, nibbles
    static constexpr int kType = 6, kBytes = 22, kBlocks = 1, kHalves = 1, kOffset = 16;
    static constexpr bool kMinimum = false, kSigned = false;
    static void unpack(const Rows &rows, Tile<1, 1, false> &tile) {
        nibbles(rows.words(6), tile.codes[0]);
        add_fifth_bits(rows.word(2), tile.codes[0]);
        tile.scale[0][0] = low_half(rows.word(0));
    }
};

struct Q5_1 {  // f16 d, f16 m, 32 fifth bits, nibbles
    static constexpr int kType = 7, kBytes = 24, kBlocks = 1, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = true, kSigned = false;
    static void unpack(const Rows &rows, Tile<1, 1, true> &tile) {
        nibbles(rows.words(8), tile.codes[0]);
        const Words head = rows.words(0);
        add_fifth_bits(head.v[1], tile.codes[0]);
        tile.scale[0][0] = low_half(head.v[0]), tile.minimum[0][0] = high_half_of(head.v[0]);
    }
};

struct Q8_0 {  // f16 d, 32 signed bytes
    static constexpr int kType = 8, kBytes = 34, kBlocks = 1, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = false, kSigned = true;
    static void unpack(const Rows &rows, Tile<1, 1, false> &tile) {
        const Words low = rows.words(2), high = rows.words(18);
        for (int j = 0; j < 4; ++j)
            tile.codes[0][j] = from_signed(low.v[j]), tile.codes[0][4 + j] = from_signed(high.v[j]);
        tile.scale[0][0] = low_half(rows.word(0));
    }
};

// Scales and minima of Q4_K and Q5_K: 8 of each, 6 bits, in 12 bytes. Byte i of scale[i / 4] is the i-th.
struct SixBits {
    V scale[2], minimum[2];

    explicit SixBits(const Words &head) {
        const V a = head.v[1], b = head.v[2], c = head.v[3], six = set1(0x3f3f3f3f), top = set1(0x30303030);
        scale[0] = and_(a, six), minimum[0] = and_(b, six);
        scale[1] = or_(low_nibble(c), and_(shr<2>(a), top));
        minimum[1] = or_(high_nibble(c), and_(shr<2>(b), top));
    }
    static F number(const V *words, int i) { return to_float(and_(shr_by(words[i / 4], i % 4 * 8), set1(0xff))); }
    template <typename AnyTile>
    void fill(const Words &head, AnyTile &tile) const {
        const F d = low_half(head.v[0]), least = mul(high_half_of(head.v[0]), set1f(-1.0f));
        for (int i = 0; i < 8; ++i) {
            tile.scale[i][0] = mul(d, number(scale, i));
            tile.minimum[i][0] = mul(least, number(minimum, i));
        }
    }
};

struct Q4_K {  // f16 d, f16 dmin, 12 bytes of scales, 4 x 32 bytes: low nibbles are a block, high ones the next
    static constexpr int kType = 12, kBytes = 144, kBlocks = 8, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = true, kSigned = false;
    static void unpack(const Rows &rows, Tile<8, 1, true> &tile) {
        const Words head = rows.words(0);
        SixBits(head).fill(head, tile);
        for (int part = 0; part < 8; ++part) {
            const Words w = rows.words(16 + 16 * part);
            V *low = tile.codes[part / 2 * 2] + part % 2 * 4, *high = tile.codes[part / 2 * 2 + 1] + part % 2 * 4;
            for (int j = 0; j < 4; ++j) low[j] = low_nibble(w.v[j]), high[j] = high_nibble(w.v[j]);
        }
    }
};

struct Q5_K {  // as Q4_K, with 32 bytes of fifth bits before the nibbles: bit i of each byte for block i
    static constexpr int kType = 13, kBytes = 176, kBlocks = 8, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = true, kSigned = false;
    static void unpack(const Rows &rows, Tile<8, 1, true> &tile) {
        const Words head = rows.words(0);
        SixBits(head).fill(head, tile);
        const Words fifths[2] = {rows.words(16), rows.words(32)};
        const V bit = set1(0x10101010);
        for (int part = 0; part < 8; ++part) {
            const Words w = rows.words(48 + 16 * part);
            const int block = part / 2 * 2;
            V *low = tile.codes[block] + part % 2 * 4, *high = tile.codes[block + 1] + part % 2 * 4;
            for (int j = 0; j < 4; ++j) {
                const V wide = shr_by(fifths[part % 2].v[j], block);  // the block's bit is bit 0 of each byte
                low[j] = or_(low_nibble(w.v[j]), and_(shl<4>(wide), bit));
                high[j] = or_(high_nibble(w.v[j]), and_(shl<3>(wide), bit));
            }
        }
    }
};

struct Q6_K {  // 128 bytes of nibbles, 64 of two bits, 16 signed scales, f16 d; scales by halves of a block
    static constexpr int kType = 14, kBytes = 210, kBlocks = 8, kHalves = 2, kOffset = 32;
    static constexpr bool kMinimum = false, kSigned = false;
    static void unpack(const Rows &rows, Tile<8, 2, false> &tile) {
        const Words scales = rows.words(192);
        const F d = high_half_of(rows.word(206));
        for (int i = 0; i < 16; ++i) {
            const V number = sar<24>(shl_to_top(scales.v[i / 4], i % 4));
            tile.scale[i / 2][i % 2] = mul(d, to_float(number));
        }
        const V two = set1(0x30303030);
        for (int part = 0; part < 4; ++part) {  // 16 of the bytes of two bits each
            const Words high = rows.words(128 + 16 * part);
            const int first = part / 2 * 4, half = part % 2 * 4;
            const Words a = rows.words(part / 2 * 64 + part % 2 * 16),
                        b = rows.words(part / 2 * 64 + 32 + part % 2 * 16);
            for (int j = 0; j < 4; ++j) {
                tile.codes[first][half + j] = or_(low_nibble(a.v[j]), and_(shl<4>(high.v[j]), two));
                tile.codes[first + 1][half + j] = or_(low_nibble(b.v[j]), and_(shl<2>(high.v[j]), two));
                tile.codes[first + 2][half + j] = or_(high_nibble(a.v[j]), and_(high.v[j], two));
                tile.codes[first + 3][half + j] = or_(high_nibble(b.v[j]), and_(shr<2>(high.v[j]), two));
            }
        }
    }
    static V shl_to_top(V v, int byte) {
        switch (byte) {
            case 0: return shl<24>(v);
            case 1: return shl<16>(v);
            case 2: return shl<8>(v);
            default: return v;
        }
    }
};

struct Q2_K {  // 16 bytes of a scale and a minimum each, 64 of two bits, f16 d, f16 dmin
    static constexpr int kType = 10, kBytes = 84, kBlocks = 8, kHalves = 2, kOffset = 0;
    static constexpr bool kMinimum = true, kSigned = false;
    static void unpack(const Rows &rows, Tile<8, 2, true> &tile) {
        const Words scales = rows.words(0);
        const V head = rows.word(80);
        const F d = low_half(head), least = mul(high_half_of(head), set1f(-1.0f));
        for (int i = 0; i < 16; ++i) {
            const V number = shr_by(scales.v[i / 4], i % 4 * 8);
            tile.scale[i / 2][i % 2] = mul(d, to_float(and_(number, set1(15))));
            tile.minimum[i / 2][i % 2] = mul(least, to_float(and_(shr<4>(number), set1(15))));
        }
        for (int part = 0; part < 4; ++part) {
            const Words w = rows.words(16 + 16 * part);
            for (int j = 0; j < 4; ++j)
                for (int shift = 0; shift < 4; ++shift)
                    tile.codes[part / 2 * 4 + shift][part % 2 * 4 + j] =
                        and_(shr_by(w.v[j], 2 * shift), set1(0x03030303));
        }
    }
};

struct Q3_K {  // 32 bytes of third bits (bit i of each for block i), 64 of two bits, 12 of 6-bit scales, f16 d
    static constexpr int kType = 11, kBytes = 110, kBlocks = 8, kHalves = 2, kOffset = 4;
    static constexpr bool kMinimum = false, kSigned = false;
    static void unpack(const Rows &rows, Tile<8, 2, false> &tile) {
        const V a = rows.word(96), b = rows.word(100), c = rows.word(104), two = set1(0x30303030);
        const V scales[4] = {or_(low_nibble(a), and_(shl<4>(c), two)), or_(low_nibble(b), and_(shl<2>(c), two)),
                             or_(high_nibble(a), and_(c, two)), or_(high_nibble(b), and_(shr<2>(c), two))};
        const F d = high_half_of(rows.word(106));
        for (int i = 0; i < 16; ++i) {
            const V number = and_(shr_by(scales[i / 4], i % 4 * 8), set1(63));
            tile.scale[i / 2][i % 2] = mul(d, to_float(sub(number, set1(32))));
        }
        const Words thirds[2] = {rows.words(0), rows.words(16)};
        for (int part = 0; part < 4; ++part) {
            const Words w = rows.words(32 + 16 * part);
            for (int j = 0; j < 4; ++j)
                for (int shift = 0; shift < 4; ++shift) {
                    const int block = part / 2 * 4 + shift;
                    const V third = and_(shr_by(thirds[part % 2].v[j], block), set1(0x01010101));
                    tile.codes[block][part % 2 * 4 + j] =
                        or_(and_(shr_by(w.v[j], 2 * shift), set1(0x03030303)), shl<2>(third));
                }
        }
    }
};

constexpr std::int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr std::int8_t kMxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // twice the value

inline void looked_up(const Words &w, const std::int8_t *table, V *codes) {
    nibbles(w, codes);
    for (int j = 0; j < 8; ++j) codes[j] = from_signed(lookup(table, codes[j]));
}

struct IQ4_NL {  // f16 d, nibbles that index a table
    static constexpr int kType = 20, kBytes = 18, kBlocks = 1, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = false, kSigned = true;
    static void unpack(const Rows &rows, Tile<1, 1, false> &tile) {
        looked_up(rows.words(2), kIq4, tile.codes[0]);
        tile.scale[0][0] = low_half(rows.word(0));
    }
};

struct IQ4_XS {  // f16 d, 8 x 2 high bits and 8 x 4 low bits of scales, 8 x 16 bytes of nibbles
    static constexpr int kType = 23, kBytes = 136, kBlocks = 8, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = false, kSigned = true;
    static void unpack(const Rows &rows, Tile<8, 1, false> &tile) {
        const V head = rows.word(0), low = rows.word(4);
        const F d = low_half(head);
        for (int i = 0; i < 8; ++i) {
            const V number =
                or_(and_(shr_by(low, 4 * i), set1(15)), and_(shl<4>(shr_by(head, 16 + 2 * i)), set1(0x30)));
            tile.scale[i][0] = mul(d, to_float(sub(number, set1(32))));
            looked_up(rows.words(8 + 16 * i), kIq4, tile.codes[i]);
        }
    }
};

struct MXFP4 {  // an exponent, nibbles that index a table
    static constexpr int kType = 39, kBytes = 17, kBlocks = 1, kHalves = 1, kOffset = 0;
    static constexpr bool kMinimum = false, kSigned = true;
    static void unpack(const Rows &rows, Tile<1, 1, false> &tile) {
        looked_up(rows.words(1), kMxfp4, tile.codes[0]);
        // 2^(e - 128), since the table is twice the value: two factors of half the exponent, none of them denormal
        const V exponent = and_(rows.word(0), set1(0xff)), half = shr<1>(exponent);
        const F first = as_float(shl<23>(add(half, set1(63)))),
                second = as_float(shl<23>(add(sub(exponent, half), set1(63))));
        tile.scale[0][0] = mul(first, second);
    }
};

// Rows of floats: one block of 32 columns, [column] of all rows.
struct F32 {
    static constexpr int kType = 0, kBytes = 4;
    static void unpack(const Rows &rows, F *columns) {
        for (int part = 0; part < 8; ++part) {
            const Words w = rows.words(16 * part);
            for (int j = 0; j < 4; ++j) columns[4 * part + j] = as_float(w.v[j]);
        }
    }
};
struct F16 {
    static constexpr int kType = 1, kBytes = 2;
    static void unpack(const Rows &rows, F *columns) {
        for (int part = 0; part < 4; ++part) {
            const Words w = rows.words(16 * part);
            for (int j = 0; j < 4; ++j)
                columns[8 * part + 2 * j] = low_half(w.v[j]), columns[8 * part + 2 * j + 1] = high_half_of(w.v[j]);
        }
    }
};
struct BF16 {
    static constexpr int kType = 30, kBytes = 2;
    static void unpack(const Rows &rows, F *columns) {
        for (int part = 0; part < 4; ++part) {
            const Words w = rows.words(16 * part);
            for (int j = 0; j < 4; ++j) {
                columns[8 * part + 2 * j] = as_float(shl<16>(w.v[j]));
                columns[8 * part + 2 * j + 1] = as_float(and_(w.v[j], set1(0xffff0000u)));
            }
        }
    }
};

// Every format that has a tile: a struct above and its name here.
template <typename...>
struct Formats {};
using FloatFormats = Formats<F32, F16, BF16>;
using CodeFormats = Formats<Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4>;

}  // namespace
