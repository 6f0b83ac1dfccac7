// Primitives in plain C++: loops of fixed length over arrays, which compilers turn into whatever vectors the target has.
// One I is 64 bytes, 16 lanes of 32 bits; one F is 16 floats.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {
namespace simd {

struct alignas(16) I {
    std::uint8_t b[64];
};
struct alignas(16) F {
    float v[16];
};

constexpr const char *kName = "portable";
// Products of any bytes: codes stay signed, weights have all 8 bits.
constexpr int kCodeOffset = 0;
constexpr int kWeightBits = 8;

// An I seen as an array of other integers.
template <typename T>
struct alignas(16) Lanes {
    static constexpr int kCount = 64 / sizeof(T);
    T v[kCount];
};
template <typename T>
inline Lanes<T> lanes(const I &a) {
    Lanes<T> out;
    std::memcpy(out.v, a.b, 64);
    return out;
}
template <typename T>
inline I bytes(const Lanes<T> &a) {
    I out;
    std::memcpy(out.b, a.v, 64);
    return out;
}
template <typename T, typename Function>
inline I each(Function f) {
    Lanes<T> out;
    for (int i = 0; i < Lanes<T>::kCount; ++i) out.v[i] = static_cast<T>(f(i));
    return bytes(out);
}
template <typename Function>
inline F feach(Function f) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = f(i);
    return out;
}

inline I load(const void *p) {
    I out;
    std::memcpy(out.b, p, 64);
    return out;
}
inline I set4(std::uint32_t x) {
    return each<std::uint32_t>([&](int) { return x; });
}
inline I set1(std::int32_t x) { return set4(static_cast<std::uint32_t>(x)); }
inline I zero() { return set4(0); }
inline I broadcast(const void *p) {
    std::uint32_t x;
    std::memcpy(&x, p, 4);
    return set4(x);
}
// Applies f to unsigned lanes of a and b: T decides how wide they are.
template <typename T, typename Function>
inline I zip(const I &a, const I &b, Function f) {
    const Lanes<T> x = lanes<T>(a), y = lanes<T>(b);
    return each<T>([&](int i) { return f(x.v[i], y.v[i]); });
}
template <typename T, typename Function>
inline I map(const I &a, Function f) {
    const Lanes<T> x = lanes<T>(a);
    return each<T>([&](int i) { return f(x.v[i]); });
}
inline I add(const I &a, const I &b) {
    return zip<std::uint32_t>(a, b, [](std::uint32_t x, std::uint32_t y) { return x + y; });
}
inline I sub(const I &a, const I &b) {
    return zip<std::uint32_t>(a, b, [](std::uint32_t x, std::uint32_t y) { return x - y; });
}
template <int N>
inline I shl32(const I &a) {
    return map<std::uint32_t>(a, [](std::uint32_t x) { return x << N; });
}
template <int N>
inline I shr32(const I &a) {
    return map<std::uint32_t>(a, [](std::uint32_t x) { return x >> N; });
}
// Shifts of 16-bit halves: bits of the neighbouring byte come in, callers mask.
template <int N>
inline I shr16(const I &a) {
    return map<std::uint16_t>(a, [](std::uint16_t x) { return x >> N; });
}
template <int N>
inline I shl16(const I &a) {
    return map<std::uint16_t>(a, [](std::uint16_t x) { return x << N; });
}
inline I and_(const I &a, const I &b) {
    return zip<std::uint32_t>(a, b, [](std::uint32_t x, std::uint32_t y) { return x & y; });
}
inline I or_(const I &a, const I &b) {
    return zip<std::uint32_t>(a, b, [](std::uint32_t x, std::uint32_t y) { return x | y; });
}
inline I xor_(const I &a, const I &b) {
    return zip<std::uint32_t>(a, b, [](std::uint32_t x, std::uint32_t y) { return x ^ y; });
}
// Per byte: value where (a & bit) has a bit, else 0.
inline I where_bit(const I &a, const I &bit, const I &value) {
    return each<std::uint8_t>([&](int i) { return (a.b[i] & bit.b[i]) ? value.b[i] : 0; });
}
// Byte j of each 32-bit lane becomes byte P_j of that lane.
template <int P0, int P1, int P2, int P3>
inline I pick(const I &a) {
    I out;
    for (int i = 0; i < 64; i += 4) {
        out.b[i] = a.b[i + P0];
        out.b[i + 1] = a.b[i + P1];
        out.b[i + 2] = a.b[i + P2];
        out.b[i + 3] = a.b[i + P3];
    }
    return out;
}
// Lane i becomes the 32-bit word i / DIV at p.
template <int DIV>
inline I spread(const std::uint8_t *p) {
    std::uint32_t words[16 / DIV];
    std::memcpy(words, p, sizeof words);
    return each<std::uint32_t>([&](int i) { return words[i / DIV]; });
}

struct Table {
    std::uint8_t v[64];
};
inline Table table(const std::int8_t *entries, int offset) {
    Table out;
    for (int i = 0; i < 64; ++i) out.v[i] = static_cast<std::uint8_t>(entries[i] + offset);
    return out;
}
// BITS: bits of the index that count, whatever lies above.
template <int BITS>
inline I lookup(const I &index, const Table &t) {
    return each<std::uint8_t>([&](int i) { return t.v[index.b[i] & ((1 << BITS) - 1)]; });
}

// acc + dot of 4 bytes a lane: signed codes times signed bytes.
inline I dot_codes(const I &acc, const I &codes, const I &q) {
    Lanes<std::int32_t> out = lanes<std::int32_t>(acc);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j)
            out.v[i] += static_cast<std::int8_t>(codes.b[4 * i + j]) * static_cast<std::int8_t>(q.b[4 * i + j]);
    return bytes(out);
}
// acc + dot of 4 bytes a lane: unsigned weights times signed codes.
inline I dot_weights(const I &acc, const I &weights, const I &codes) {
    Lanes<std::int32_t> out = lanes<std::int32_t>(acc);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) out.v[i] += weights.b[4 * i + j] * static_cast<std::int8_t>(codes.b[4 * i + j]);
    return bytes(out);
}

inline F fset1(float x) {
    return feach([&](int) { return x; });
}
inline F fzero() { return fset1(0.0f); }
inline F fload(const float *p) {
    F out;
    std::memcpy(out.v, p, 64);
    return out;
}
inline void fstore(float *p, const F &a) { std::memcpy(p, a.v, 64); }
inline float float_of(std::uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline Lanes<std::uint32_t> words_of_16_bits(const void *p) {
    std::uint16_t half[16];
    std::memcpy(half, p, 32);
    Lanes<std::uint32_t> out;
    for (int i = 0; i < 16; ++i) out.v[i] = half[i];
    return out;
}
// Whole numbers times 2^-24 below the least normal number, so that it holds where subnormal floats count as 0.
inline F fload_f16(const void *p) {
    const Lanes<std::uint32_t> half = words_of_16_bits(p);
    return feach([&](int i) {
        const std::uint32_t x = half.v[i] & 0x7fffu, sign = (half.v[i] & 0x8000u) << 16;
        const float subnormal = static_cast<float>(static_cast<std::int32_t>(x)) * 0x1p-24f;
        const std::uint32_t normal = (x << 13) + (x >= 0x7c00u ? 224u << 23 : 112u << 23);  // infinity and nan stay that
        const float magnitude = x < 0x400u ? subnormal : float_of(normal);
        return sign ? -magnitude : magnitude;
    });
}
inline F fload_bf16(const void *p) {
    const Lanes<std::uint32_t> half = words_of_16_bits(p);
    return feach([&](int i) { return float_of(half.v[i] << 16); });
}
inline F fadd(const F &a, const F &b) {
    return feach([&](int i) { return a.v[i] + b.v[i]; });
}
inline F fsub(const F &a, const F &b) {
    return feach([&](int i) { return a.v[i] - b.v[i]; });
}
inline F fmul(const F &a, const F &b) {
    return feach([&](int i) { return a.v[i] * b.v[i]; });
}
inline F fdiv(const F &a, const F &b) {
    return feach([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(const F &a, const F &b, const F &c) {
    return feach([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
// The second where one is nan, as x86 has it.
inline F fmax(const F &a, const F &b) {
    return feach([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F fmin(const F &a, const F &b) {
    return feach([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline float hmax(const F &a) {
    float out = a.v[0];
    for (int i = 1; i < 16; ++i) out = a.v[i] > out ? a.v[i] : out;
    return out;
}
inline float hsum(const F &a) {
    float part[4];
    for (int i = 0; i < 4; ++i) part[i] = (a.v[i] + a.v[4 + i]) + (a.v[8 + i] + a.v[12 + i]);
    return (part[0] + part[1]) + (part[2] + part[3]);
}
inline F to_float(const I &a) {
    const Lanes<std::int32_t> x = lanes<std::int32_t>(a);
    return feach([&](int i) { return static_cast<float>(x.v[i]); });
}
// To the nearest whole number, for magnitudes below 2^22: what is added pushes the fraction out of the float. The compiler
// must not reorder this (no -ffast-math).
constexpr float kPush = 12582912.0f;  // 1.5 * 2^23
inline F round(const F &a) {
    return feach([&](int i) { return (a.v[i] + kPush) - kPush; });
}
// Rounds to nearest; 0 where the magnitude is 2^22 or more, or nan.
inline I to_int(const F &a) {
    return each<std::int32_t>([&](int i) {
        const float x = a.v[i] > -4194304.0f && a.v[i] < 4194304.0f ? a.v[i] : 0.0f;
        return static_cast<std::int32_t>((x + kPush) - kPush);
    });
}
// a * 2^n for whole n of -126 ... 127
inline F scale_by_power(const F &a, const F &n) {
    return feach([&](int i) {
        return a.v[i] * float_of(static_cast<std::uint32_t>(static_cast<std::int32_t>(n.v[i]) + 127) << 23);
    });
}
// b where a > 0, else 0 (nan in b included)
inline F where_positive(const F &a, const F &b) {
    return feach([&](int i) { return a.v[i] > 0.0f ? b.v[i] : 0.0f; });
}
// The low byte of each lane, 16 bytes.
inline void store_low_bytes(std::uint8_t *p, const I &a) {
    const Lanes<std::uint32_t> x = lanes<std::uint32_t>(a);
    for (int i = 0; i < 16; ++i) p[i] = static_cast<std::uint8_t>(x.v[i]);
}

}  // namespace simd
}  // namespace
