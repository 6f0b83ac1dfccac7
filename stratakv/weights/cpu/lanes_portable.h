// Primitives of tiles in plain C++: 4 rows, a 32-bit lane each.
#pragma once
#include <cstdint>
#include <cstring>

namespace {
namespace lanes {

constexpr const char *kName = "portable";
constexpr int kLanes = 4;
constexpr int kTogether = 1;  // tiles whose codes fit in registers beside each other
constexpr int kSignedOffset = 0;

struct V {
    std::uint32_t x[kLanes];
};
struct F {
    float x[kLanes];
};
template <typename Function>
inline V each(Function f) {
    V v;
    for (int i = 0; i < kLanes; ++i) v.x[i] = static_cast<std::uint32_t>(f(i));
    return v;
}
template <typename Function>
inline F feach(Function f) {
    F v;
    for (int i = 0; i < kLanes; ++i) v.x[i] = f(i);
    return v;
}

inline V load(const void *p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(void *p, V v) { std::memcpy(p, &v, sizeof v); }
inline F loadf(const float *p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void storef(float *p, F v) { std::memcpy(p, &v, sizeof v); }
inline V set1(std::uint32_t x) {
    return each([&](int) { return x; });
}
inline F set1f(float x) {
    return feach([&](int) { return x; });
}
inline V and_(V a, V b) {
    return each([&](int i) { return a.x[i] & b.x[i]; });
}
inline V or_(V a, V b) {
    return each([&](int i) { return a.x[i] | b.x[i]; });
}
inline V xor_(V a, V b) {
    return each([&](int i) { return a.x[i] ^ b.x[i]; });
}
inline V sub(V a, V b) {
    return each([&](int i) { return a.x[i] - b.x[i]; });
}
inline V add(V a, V b) {
    return each([&](int i) { return a.x[i] + b.x[i]; });
}
template <int N>
inline V shl(V a) {
    return each([&](int i) { return a.x[i] << N; });
}
template <int N>
inline V shr(V a) {
    return each([&](int i) { return a.x[i] >> N; });
}
template <int N>
inline V sar(V a) {
    return each([&](int i) { return static_cast<std::int32_t>(a.x[i]) >> N; });
}
inline V shr_by(V a, int n) {
    return each([&](int i) { return a.x[i] >> n; });
}
inline V spread_bits(V a, int at) {
    a = and_(shr_by(a, at), set1(0xf));
    return and_(or_(or_(a, shl<7>(a)), or_(shl<14>(a), shl<21>(a))), set1(0x01010101));
}
template <typename Function>
inline V bytes(V a, Function f) {
    return each([&](int i) {
        std::uint32_t made = 0;
        for (int b = 0; b < 4; ++b) made |= std::uint32_t(std::uint8_t(f(std::uint8_t(a.x[i] >> 8 * b)))) << 8 * b;
        return made;
    });
}
inline V lookup(const std::int8_t *table, V codes) {
    return bytes(codes, [&](std::uint8_t code) { return table[code & 15]; });
}
inline F to_float(V a) {
    return feach([&](int i) { return static_cast<float>(static_cast<std::int32_t>(a.x[i])); });
}
inline F as_float(V a) {
    F f;
    std::memcpy(&f, &a, sizeof f);
    return f;
}
inline float half(std::uint32_t bits) {
    const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, fraction = bits & 0x3ffu;
    std::uint32_t made = sign | ((exponent + 112) << 23) | (fraction << 13);
    if (exponent == 31) made = sign | 0x7f800000u | (fraction << 13);
    float value;
    std::memcpy(&value, &made, 4);
    if (exponent == 0) value = (sign ? -1.0f : 1.0f) * static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return value;
}
inline F low_half(V a) {
    return feach([&](int i) { return half(a.x[i] & 0xffffu); });
}
inline F mul(F a, F b) {
    return feach([&](int i) { return a.x[i] * b.x[i]; });
}
inline F addf(F a, F b) {
    return feach([&](int i) { return a.x[i] + b.x[i]; });
}
inline F fma(F a, F b, F c) {
    return feach([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
}

inline V broadcast(const void *p) {
    std::uint32_t x;
    std::memcpy(&x, p, 4);
    return set1(x);
}
inline V dot(V acc, V codes, const std::int8_t *x) {
    return each([&](int i) {
        std::int32_t sum = static_cast<std::int32_t>(acc.x[i]);
        for (int b = 0; b < 4; ++b) sum += static_cast<std::int8_t>(codes.x[i] >> 8 * b) * x[b];
        return sum;
    });
}
inline V dot_signed(V acc, V codes, const std::int8_t *x) { return dot(acc, codes, x); }
inline V from_signed(V codes) { return codes; }

struct Words {
    V v[4];
};
inline Words words(const std::uint8_t *p, std::size_t stride) {
    Words w;
    for (int i = 0; i < kLanes; ++i)
        for (int j = 0; j < 4; ++j) std::memcpy(&w.v[j].x[i], p + i * stride + 4 * j, 4);
    return w;
}
inline V word(const std::uint8_t *p, std::size_t stride) {
    V v;
    for (int i = 0; i < kLanes; ++i) std::memcpy(&v.x[i], p + i * stride, 4);
    return v;
}

inline std::uint32_t largest_bits(const float *x) {
    std::uint32_t most = 0;
    for (int i = 0; i < 16; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}
inline std::int32_t rounded(const float *x, float by, std::int8_t *codes) {
    std::int32_t sum = 0;
    for (int i = 0; i < 16; ++i) {
        const float moved = x[i] * by + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
        std::int32_t whole;
        std::memcpy(&whole, &moved, 4);
        whole -= 0x4b400000;
        codes[i] = static_cast<std::int8_t>(whole);
        sum += whole;
    }
    return sum;
}

}  // namespace lanes
}  // namespace
