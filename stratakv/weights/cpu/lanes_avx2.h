// Primitives of tiles for AVX2 with FMA and F16C: 8 rows, a 32-bit lane each.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {
namespace lanes {

using V = __m256i;
using F = __m256;
constexpr const char *kName = "avx2";
constexpr int kLanes = 8;
constexpr int kTogether = 1;  // tiles whose codes fit in registers beside each other
constexpr int kSignedOffset = 0;

inline V load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline void store(void *p, V v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }
inline F loadf(const float *p) { return _mm256_loadu_ps(p); }
inline void storef(float *p, F v) { _mm256_storeu_ps(p, v); }
inline V set1(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
inline F set1f(float x) { return _mm256_set1_ps(x); }
inline V and_(V a, V b) { return _mm256_and_si256(a, b); }
inline V or_(V a, V b) { return _mm256_or_si256(a, b); }
inline V xor_(V a, V b) { return _mm256_xor_si256(a, b); }
inline V sub(V a, V b) { return _mm256_sub_epi32(a, b); }
inline V add(V a, V b) { return _mm256_add_epi32(a, b); }
template <int N>
inline V shl(V a) {
    return _mm256_slli_epi32(a, N);
}
template <int N>
inline V shr(V a) {
    return _mm256_srli_epi32(a, N);
}
template <int N>
inline V sar(V a) {
    return _mm256_srai_epi32(a, N);
}
inline V shr_by(V a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
inline V spread_bits(V a, int at) {
    a = and_(shr_by(a, at), set1(0xf));
    return and_(or_(or_(a, shl<7>(a)), or_(shl<14>(a), shl<21>(a))), set1(0x01010101));
}
inline V lookup(const std::int8_t *table, V codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table))),
                               codes);
}
inline F to_float(V a) { return _mm256_cvtepi32_ps(a); }
inline F as_float(V a) { return _mm256_castsi256_ps(a); }
inline F low_half(V a) {
    const V low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    return _mm256_cvtph_ps(packed);
}
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F addf(F a, F b) { return _mm256_add_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

inline V broadcast(const void *p) {
    int x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}
inline V pairs_to_words(V acc, V pairs) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// vpmaddubsw saturates at 16 bits: unsigned codes are at most 63, signed ones go by magnitude, 2 * 128 * 127 still
// fits.
inline V dot(V acc, V codes, const std::int8_t *x) {
    return pairs_to_words(acc, _mm256_maddubs_epi16(codes, broadcast(x)));
}
inline V dot_signed(V acc, V codes, const std::int8_t *x) {
    return pairs_to_words(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(broadcast(x), codes)));
}
inline V from_signed(V codes) { return codes; }

struct Words {
    V v[4];
};
inline __m128i load128(const std::uint8_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
inline Words words(const std::uint8_t *p, std::size_t stride) {
    V z[4];
    for (int i = 0; i < 4; ++i)
        z[i] =
            _mm256_inserti128_si256(_mm256_castsi128_si256(load128(p + i * stride)), load128(p + (i + 4) * stride), 1);
    const V a = _mm256_unpacklo_epi32(z[0], z[1]), b = _mm256_unpacklo_epi32(z[2], z[3]);
    const V c = _mm256_unpackhi_epi32(z[0], z[1]), d = _mm256_unpackhi_epi32(z[2], z[3]);
    return {{_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b), _mm256_unpacklo_epi64(c, d),
             _mm256_unpackhi_epi64(c, d)}};
}
inline V word(const std::uint8_t *p, std::size_t stride) {
    int x[8];
    for (int i = 0; i < 8; ++i) std::memcpy(&x[i], p + i * stride, 4);
    return _mm256_setr_epi32(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]);
}

inline std::uint32_t largest_bits(const float *x) {
    const V wide = _mm256_max_epu32(and_(load(x), set1(0x7fffffffu)), and_(load(x + 8), set1(0x7fffffffu)));
    __m128i v = _mm_max_epu32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    v = _mm_max_epu32(v, _mm_shuffle_epi32(v, 0x4e));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(v, _mm_shuffle_epi32(v, 0xb1))));
}
inline std::int32_t rounded(const float *x, float by, std::int8_t *codes) {
    const V low = _mm256_cvtps_epi32(mul(loadf(x), set1f(by))), high = _mm256_cvtps_epi32(mul(loadf(x + 8), set1f(by)));
    const auto words = [](V v) { return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); };
    _mm_storeu_si128(reinterpret_cast<__m128i *>(codes), _mm_packs_epi16(words(low), words(high)));
    const V wide = add(low, high);
    __m128i v = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

}  // namespace lanes
}  // namespace
