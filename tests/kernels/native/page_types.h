// Types as bytes in pages, written and read by code of their own: nothing here is shared with the kernels but `Side`
// and what its table's indices stand for.
//
// A vector's canonical bytes are its blocks one after another, each block its fields in order (stratakv/kvtypes); a
// page's bytes are a permutation of them (stratakv/cache/layout.py).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "attend.h"

namespace check {

using stratakv::Codes;
using stratakv::Side;

constexpr int kTokens = stratakv::kPageTokens;

struct Type {
    std::string name;
    Codes codes;
    int low_bits, high_bits;  // bits of the base plane and of the high plane; floats: bytes of one, 0
    bool turbo, minimum, signed_scale, high_first, trellis;

    int bits() const { return low_bits + high_bits; }
};

// All of a file that tests/support/page_types.py wrote: one of each way in which registered types are packed.
inline std::vector<Type> read_types(const char *path) {
    std::ifstream file(path);
    std::vector<Type> all;
    std::string codes;
    for (Type t{}; file >> t.name >> codes >> t.low_bits >> t.high_bits >> t.turbo >> t.minimum >> t.signed_scale >>
                   t.high_first >> t.trellis;
         all.push_back(t)) {
        int number = 0;
        while (number < static_cast<int>(std::size(stratakv::kCodeNames)) && codes != stratakv::kCodeNames[number])
            ++number;
        t.codes = static_cast<Codes>(number);
    }
    return all;
}

inline bool is_rows(Codes c) { return c == Codes::rows_f32 || c == Codes::rows_f16 || c == Codes::rows_bf16; }
inline bool is_halves(Codes c) { return c == Codes::halves || c == Codes::halves_1; }

inline int block_size(const Type &type, int dim) {
    if (is_rows(type.codes)) return dim;
    if (type.turbo) return dim % 128 == 0 ? 128 : dim;
    return dim % 32 == 0 ? 32 : dim % 16 == 0 ? 16 : 8;
}

inline int gcd4(int n) { return n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1; }

// Value of a code, or of a trellis's level, before the scale: what the table holds, and the byte itself for 8 bits.
inline int value_of(const Type &type, int code) {
    if (type.low_bits == 8) return type.codes == Codes::byte_index ? code - 128 : static_cast<std::int8_t>(code);
    const int bits = type.bits() + type.trellis;
    if (!type.turbo) return type.minimum ? code : code - (1 << (bits - 1));
    // any odd ladder serves as a codebook: -127 ... 127, neither linear nor quite symmetric
    const double x = (code + 0.5) / (1 << (bits - 1)) - 1;
    const int value = static_cast<int>(std::lround(60 * x + 67 * x * x * x));
    return code == 0 ? -127 : value;
}

// K when `k`, else V. Offsets are set by `place_sides`.
inline Side side_of(const Type &type, int dim, bool k) {
    Side s{};
    s.codes = type.codes;
    s.dim = dim;
    s.unit = 1.0f;
    if (is_rows(type.codes)) {
        s.blocks = 1, s.group = 1, s.base_word = 1, s.high_word = 1;
        s.base_bytes = s.nbytes = dim * type.low_bits;
        return s;
    }
    const int block = block_size(type, dim);
    s.blocks = dim / block;
    s.base_bytes = dim * type.low_bits / 8;
    s.high_bytes = dim * type.high_bits / 8;
    s.nbytes = s.base_bytes + s.high_bytes + 2 * s.blocks * (1 + type.minimum);
    s.group = k ? 16 : 4;
    s.base_word = k ? gcd4(s.base_bytes) : 1;
    s.high_word = k ? gcd4(s.high_bytes) : 1;
    s.has_minimum = type.minimum;
    s.signed_scale = type.signed_scale;
    s.unit = type.turbo ? 1.0f / 64 : type.low_bits == 8 ? 1.0f / 64 : 0.25f;
    const int block_bytes = s.base_bytes / s.blocks;
    s.vectors =
        k ? block_bytes % 4 == 0 && (!s.high_bytes || s.high_word == 4) : s.blocks == 1 || block_bytes % 16 == 0;
    if (is_halves(type.codes) && block != 32) s.vectors = false;
    if (type.trellis) s.vectors = block >= 32 && (!k || (block_bytes % 4 == 0 && s.high_word == 4));
    const int entries = 1 << (type.bits() + type.trellis);
    for (int i = 0; i < 128; ++i)
        s.table[i] = static_cast<std::int8_t>(
            type.low_bits == 8 ? 0 : value_of(type, stratakv::level_of(type.codes, i % entries)));
    return s;
}

// Sets the regions' offsets; returns the tile's bytes.
inline std::int64_t place_sides(Side &k, const Type &kt, Side &v, const Type &vt) {
    std::int64_t at = 0;
    const auto codes = [&](Side &s, const Type &type) {
        std::int64_t &first = type.high_first ? s.high : s.base, &second = type.high_first ? s.base : s.high;
        const int first_bytes = type.high_first ? s.high_bytes : s.base_bytes;
        first = at;
        second = at + std::int64_t(first_bytes) * kTokens;
        at += std::int64_t(s.base_bytes + s.high_bytes) * kTokens;
    };
    const auto scales = [&](Side &s) {
        if (is_rows(s.codes)) return;
        s.scale = at;
        at += 2 * s.blocks * kTokens;
        s.minimum = at;
        if (s.has_minimum) at += 2 * s.blocks * kTokens;
    };
    codes(k, kt), codes(v, vt), scales(k), scales(v);
    return at;
}

// f16 bits of a float that fits, rounded towards 0.
inline std::uint16_t half_bits(double x) {
    const int sign = std::signbit(x) ? 0x8000 : 0;
    x = std::fabs(x);
    if (x < std::ldexp(1.0, -14)) return static_cast<std::uint16_t>(sign | static_cast<int>(std::ldexp(x, 24)));
    int e;
    const double f = std::frexp(x, &e);  // [0.5, 1)
    return static_cast<std::uint16_t>(sign | (e + 14) << 10 | (static_cast<int>(std::ldexp(f, 11)) & 1023));
}
inline double half_value(std::uint16_t h) {
    const int e = h >> 10 & 31, f = h & 1023;
    const double x = e == 0 ? std::ldexp(f, -24) : std::ldexp(1024 + f, e - 25);
    return h & 0x8000 ? -x : x;
}

// Where byte `byte` of a codes field lies in its region.
inline std::size_t position(int token, int byte, int nbytes, int group, int word) {
    return std::size_t(token / group) * group * nbytes + std::size_t(byte / word) * group * word +
           token % group * word + byte % word;
}

// One vector in the making: codes, scales and minima by block, or floats; and what they stand for.
struct Vector {
    std::vector<int> codes;
    std::vector<std::uint16_t> scales, minima;
    std::vector<double> values;
};

// Levels of a block of trellis codes u * 2 + x. The trellis visits values 0, 8, 16, ..., then 1, 9, ..., round and
// round; a value's level is in the subset that x and those of the three values before it say.
inline std::vector<int> levels_of(const std::vector<int> &codes) {
    const int n = static_cast<int>(codes.size());
    std::vector<int> walk, levels(n);
    for (int first = 0; first < 8; ++first)
        for (int i = first; i < n; i += 8) walk.push_back(i);
    for (int p = 0; p < n; ++p) {
        const auto x = [&](int delay) { return codes[walk[(p - delay + n) % n]] & 1; };
        levels[walk[p]] = codes[walk[p]] / 2 * 4 + (x(0) ^ x(1) ^ x(3)) * 2 + x(2);
    }
    return levels;
}

// Values of about unit size times `size`. `extreme`: codes of the lowest and the highest value only.
inline Vector random_vector(const Type &type, const Side &s, std::mt19937 &random, double size, bool extreme) {
    Vector out;
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(0.5, 1.5);
    out.values.resize(s.dim);
    if (is_rows(type.codes)) {
        for (double &x : out.values) x = normal(random) * size;
        return out;
    }
    const int block = s.dim / s.blocks, entries = 1 << type.bits();
    for (int b = 0; b < s.blocks; ++b) {
        double scale = size * uniform(random) * (type.minimum || type.turbo ? 1.0 : type.low_bits == 8 ? 1.0 : 0.6);
        if (type.signed_scale && random() % 2) scale = -scale;
        out.scales.push_back(half_bits(scale));
        out.minima.push_back(half_bits(-size * (entries / 8.0) * uniform(random)));
    }
    for (int d = 0; d < s.dim; ++d) {
        int code = static_cast<int>(random() % entries);
        if (extreme) code = type.codes == Codes::byte ? 127 + code % 2 : code % 2 * (entries - 1);
        out.codes.push_back(code);
    }
    std::vector<int> levels = out.codes;
    if (type.trellis)
        for (int d = 0; d < s.dim; d += block) {
            const std::vector<int> found = levels_of({&out.codes[d], &out.codes[d] + block});
            std::copy(found.begin(), found.end(), &levels[d]);
        }
    for (int d = 0; d < s.dim; ++d) {
        out.values[d] = value_of(type, levels[d]) * double(s.unit) * half_value(out.scales[d / block]);
        if (type.minimum) out.values[d] += half_value(out.minima[d / block]);
    }
    return out;
}

// Writes a vector as token `token` of a tile. Floats are rounded first: `vector.values` holds what was stored.
inline void store(const Type &type, const Side &s, Vector &vector, std::uint8_t *tile, int token) {
    if (is_rows(type.codes)) {
        std::uint8_t *row = tile + s.base + std::int64_t(token) * s.nbytes;
        for (int d = 0; d < s.dim; ++d) {
            const float x = static_cast<float>(vector.values[d]);
            std::uint32_t bits;
            std::memcpy(&bits, &x, 4);
            if (type.codes == Codes::rows_f16) {
                bits = half_bits(x);
                vector.values[d] = half_value(static_cast<std::uint16_t>(bits));
            } else if (type.codes == Codes::rows_bf16) {
                bits >>= 16;
                const std::uint32_t wide = bits << 16;
                float back;
                std::memcpy(&back, &wide, 4);
                vector.values[d] = back;
            } else {
                vector.values[d] = x;
            }
            for (int i = 0; i < type.low_bits; ++i)
                row[d * type.low_bits + i] = static_cast<std::uint8_t>(bits >> (8 * i));
        }
        return;
    }
    const int block = s.dim / s.blocks;
    std::vector<std::uint8_t> base(s.base_bytes, 0), high(s.high_bytes, 0);
    for (int d = 0; d < s.dim; ++d) {
        // a trellis's x is in the last plane
        const int u = type.trellis && type.high_bits ? vector.codes[d] >> 1 : vector.codes[d];
        const int low = u & ((1 << type.low_bits) - 1),
                  up = u >> type.low_bits << type.trellis | (type.trellis ? vector.codes[d] & 1 : 0);
        const int b = d / block, i = d % block, start = b * (s.base_bytes / s.blocks),
                  high_start = b * (s.high_bytes / s.blocks);
        if (type.trellis && type.high_bits) {  // bytes that belong to one of the last plane take turns
            const int values = 8 / type.high_bits, turns = type.low_bits / type.high_bits, place = i % values;
            const int byte = i / values + place % turns * (s.high_bytes / s.blocks);
            base[start + byte] |= static_cast<std::uint8_t>(low << (type.low_bits * (place / turns)));
        } else if (is_halves(type.codes)) {
            base[start + i % (block / 2)] |= static_cast<std::uint8_t>(low << (i < block / 2 ? 0 : 4));
        } else {
            const int per_byte = 8 / type.low_bits;
            base[start + i / per_byte] |= static_cast<std::uint8_t>(low << (type.low_bits * (i % per_byte)));
        }
        if (type.high_bits) {
            const int per_byte = 8 / type.high_bits;
            high[high_start + i / per_byte] |= static_cast<std::uint8_t>(up << (type.high_bits * (i % per_byte)));
        }
    }
    for (int i = 0; i < s.base_bytes; ++i)
        tile[s.base + position(token, i, s.base_bytes, s.group, s.base_word)] = base[i];
    for (int i = 0; i < s.high_bytes; ++i)
        tile[s.high + position(token, i, s.high_bytes, s.group, s.high_word)] = high[i];
    for (int b = 0; b < s.blocks; ++b)
        for (int i = 0; i < 2; ++i) {
            tile[s.scale + (b * kTokens + token) * 2 + i] = static_cast<std::uint8_t>(vector.scales[b] >> (8 * i));
            if (type.minimum)
                tile[s.minimum + (b * kTokens + token) * 2 + i] =
                    static_cast<std::uint8_t>(vector.minima[b] >> (8 * i));
        }
}

}  // namespace check
