// Eight numbers of 16 bits, for AVX2 and AVX-512 alike: encoding trellis codes needs no wider ones.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {
namespace simd {

// Eight 16-bit numbers without a sign.
struct H {
    __m128i v;
};
inline H hload(const std::uint16_t *p) { return {_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))}; }
// Four of them; the others are 0.
inline H hload4(const std::uint16_t *p) { return {_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))}; }
inline void hstore(std::uint16_t *p, H a) { _mm_storeu_si128(reinterpret_cast<__m128i *>(p), a.v); }
inline H hset1(int x) { return {_mm_set1_epi16(static_cast<short>(x))}; }
inline H hadd(H a, H b) { return {_mm_add_epi16(a.v, b.v)}; }
inline H hsub(H a, H b) { return {_mm_sub_epi16(a.v, b.v)}; }
inline H hmin(H a, H b) { return {_mm_min_epu16(a.v, b.v)}; }
// Number i becomes number P_i.
template <int P0, int P1, int P2, int P3, int P4, int P5, int P6, int P7>
inline H hpick(H a) {
    return {_mm_shuffle_epi8(
        a.v, _mm_setr_epi16(0x100 + 0x202 * P0, 0x100 + 0x202 * P1, 0x100 + 0x202 * P2, 0x100 + 0x202 * P3,
                            0x100 + 0x202 * P4, 0x100 + 0x202 * P5, 0x100 + 0x202 * P6, 0x100 + 0x202 * P7))};
}

}  // namespace simd
}  // namespace
