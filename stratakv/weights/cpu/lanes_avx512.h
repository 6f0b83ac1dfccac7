// Primitives of tiles for AVX-512 with VNNI: 16 rows, a 32-bit lane each.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {
namespace lanes {

using V = __m512i;
using F = __m512;
constexpr const char *kName = "avx512";
constexpr int kLanes = 16;
constexpr int kTogether = 2;  // tiles whose codes fit in registers beside each other
// vpdpbusd takes unsigned codes: signed ones get 128 added, which the sum of the activations takes back
constexpr int kSignedOffset = 128;

inline V load(const void *p) { return _mm512_loadu_si512(p); }
inline void store(void *p, V v) { _mm512_storeu_si512(p, v); }
inline F loadf(const float *p) { return _mm512_loadu_ps(p); }
inline void storef(float *p, F v) { _mm512_storeu_ps(p, v); }
inline V set1(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline F set1f(float x) { return _mm512_set1_ps(x); }
inline V and_(V a, V b) { return _mm512_and_si512(a, b); }
inline V or_(V a, V b) { return _mm512_or_si512(a, b); }
inline V xor_(V a, V b) { return _mm512_xor_si512(a, b); }
inline V sub(V a, V b) { return _mm512_sub_epi32(a, b); }
inline V add(V a, V b) { return _mm512_add_epi32(a, b); }
template <int N>
inline V shl(V a) {
    return _mm512_slli_epi32(a, N);
}
template <int N>
inline V shr(V a) {
    return _mm512_srli_epi32(a, N);
}
template <int N>
inline V sar(V a) {
    return _mm512_srai_epi32(a, N);
}
inline V shr_by(V a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
// Four lanes of bits at bit `at` of each lane's low end to the low bits of its four bytes.
inline V spread_bits(V a, int at) {
    a = and_(shr_by(a, at), set1(0xf));
    return and_(or_(or_(a, shl<7>(a)), or_(shl<14>(a), shl<21>(a))), set1(0x01010101));
}
// Per byte: table[code], codes 0 to 15.
inline V lookup(const std::int8_t *table, V codes) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table))),
                               codes);
}
inline F to_float(V a) { return _mm512_cvtepi32_ps(a); }
inline F as_float(V a) { return _mm512_castsi512_ps(a); }
inline F low_half(V a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F addf(F a, F b) { return _mm512_add_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

inline V broadcast(const void *p) {
    int x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}
// acc + the products of four codes and four activations in each lane; codes as unpacked for this instruction set.
inline V dot(V acc, V codes, const std::int8_t *x) { return _mm512_dpbusd_epi32(acc, codes, broadcast(x)); }
inline V dot_signed(V acc, V codes, const std::int8_t *x) { return dot(acc, codes, x); }
inline V from_signed(V codes) { return xor_(codes, set1(0x80808080u)); }

// 16 bytes of each row: vector j holds 4-byte word j of all rows.
struct Words {
    V v[4];
};
inline __m128i load128(const std::uint8_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
inline Words words(const std::uint8_t *p, std::size_t stride) {
    const std::uint8_t *p4 = p + 4 * stride, *p8 = p4 + 4 * stride, *p12 = p8 + 4 * stride;
    V z[4];
    for (int i = 0; i < 4; ++i) {
        const std::size_t at = i * stride;
        z[i] = _mm512_castsi128_si512(load128(p + at));
        z[i] = _mm512_inserti32x4(z[i], load128(p4 + at), 1);
        z[i] = _mm512_inserti32x4(z[i], load128(p8 + at), 2);
        z[i] = _mm512_inserti32x4(z[i], load128(p12 + at), 3);
    }
    const V a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpacklo_epi32(z[2], z[3]);
    const V c = _mm512_unpackhi_epi32(z[0], z[1]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    return {{_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b), _mm512_unpacklo_epi64(c, d),
             _mm512_unpackhi_epi64(c, d)}};
}
// One 4-byte word of each row.
inline V word(const std::uint8_t *p, std::size_t stride) {
    __m128i part[4];
    for (int i = 0; i < 4; ++i) {
        const std::uint8_t *q = p + 4 * i * stride;
        int x[4];
        for (int j = 0; j < 4; ++j) std::memcpy(&x[j], q + j * stride, 4);
        part[i] =
            _mm_insert_epi32(_mm_insert_epi32(_mm_insert_epi32(_mm_cvtsi32_si128(x[0]), x[1], 1), x[2], 2), x[3], 3);
    }
    V v = _mm512_castsi128_si512(part[0]);
    v = _mm512_inserti32x4(v, part[1], 1);
    v = _mm512_inserti32x4(v, part[2], 2);
    return _mm512_inserti32x4(v, part[3], 3);
}

// The bits of the largest of 16 magnitudes: as integers they have the order of the floats, with what is not finite
// above all.
inline std::uint32_t largest_bits(const float *x) { return _mm512_reduce_max_epu32(and_(load(x), set1(0x7fffffffu))); }
// 16 values times `by`, to the nearest integer, as bytes; returns their sum.
inline std::int32_t rounded(const float *x, float by, std::int8_t *codes) {
    const V whole = _mm512_cvt_roundps_epi32(mul(loadf(x), set1f(by)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(codes), _mm512_cvtepi32_epi8(whole));
    return _mm512_reduce_add_epi32(whole);
}

}  // namespace lanes
}  // namespace
