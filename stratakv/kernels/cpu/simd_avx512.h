// Primitives for AVX-512 (F, BW, DQ, VL, VBMI, VBMI2, VNNI). One I is 64 bytes, 16 lanes of 32 bits; one F is 16
// floats.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd_eight.h"

namespace {
namespace simd {

struct I {
    __m512i v;
};
struct F {
    __m512 v;
};

constexpr const char *kName = "avx512";
// vpdpbusd multiplies unsigned by signed bytes: K's codes are shifted by 128 and the sum of q is taken off again.
constexpr int kCodeOffset = 128;
// Bits of one plane of softmax weights: 8 unsigned bits fit, since products accumulate in 32 bits.
constexpr int kWeightBits = 8;
// Vectors of floats that registers hold beside what is multiplied.
constexpr int kSums = 16;
// Whether prompts decode codes by whole vectors (tile_floats.h).
constexpr bool kDecodesVectors = true;

inline I load(const void *p) { return {_mm512_loadu_si512(p)}; }
inline void store(void *p, I a) { _mm512_storeu_si512(p, a.v); }
inline I zero() { return {_mm512_setzero_si512()}; }
inline I set1(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I set4(std::uint32_t bytes) { return {_mm512_set1_epi32(static_cast<std::int32_t>(bytes))}; }
inline I broadcast(const void *p) {
    std::int32_t x;
    std::memcpy(&x, p, 4);
    return {_mm512_set1_epi32(x)};
}
inline I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I sub(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
template <int N>
inline I shl32(I a) {
    return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
inline I shr32(I a) {
    return {_mm512_srli_epi32(a.v, N)};
}
// Shifts of 16-bit halves: bits of the neighbouring byte come in, callers mask.
template <int N>
inline I shr16(I a) {
    if constexpr (N == 0) return a;
    return {_mm512_srli_epi16(a.v, N)};
}
template <int N>
inline I shl16(I a) {
    if constexpr (N == 0) return a;
    return {_mm512_slli_epi16(a.v, N)};
}
// Each lane by its own count, below 32.
inline I shr_lanes(I a, I counts) { return {_mm512_srlv_epi32(a.v, counts.v)}; }
inline I and_(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I or_(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I xor_(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline I xor3(I a, I b, I c) { return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x96)}; }
// a with the bits of `mask` flipped where b has them.
inline I flip(I a, I b, I mask) { return {_mm512_ternarylogic_epi32(a.v, b.v, mask.v, 0x78)}; }
// Bits of a where the mask has them, else b's.
inline I select(I mask, I a, I b) { return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xca)}; }
// Lanes of a moved up by N bits, the upper ones of `below` coming in.
template <int N>
inline I funnel(I a, I below) {
    return {_mm512_shldi_epi32(a.v, below.v, N)};
}
// Lane i becomes lane i - N of a, and before the first one `before`'s last ones.
template <int N>
inline I shift_lanes(I a, I before) {
    return {_mm512_alignr_epi32(a.v, before.v, 16 - N)};
}
// In each run of N lanes every lane becomes the one before it, the first the last.
template <int N>
inline I turn_lanes(I a) {
    static_assert(N == 2 || N == 4);
    return {_mm512_shuffle_epi32(a.v, static_cast<_MM_PERM_ENUM>(N == 4 ? 0x93 : 0xb1))};
}
// Per byte: value where (a & bit) has a bit, else 0.
inline I where_bit(I a, I bit, I value) { return {_mm512_maskz_mov_epi8(_mm512_test_epi8_mask(a.v, bit.v), value.v)}; }
// Byte j of each 32-bit lane becomes byte P_j of that lane.
template <int P0, int P1, int P2, int P3>
inline I pick(I a) {
    const __m128i one = _mm_setr_epi8(P0, P1, P2, P3, 4 + P0, 4 + P1, 4 + P2, 4 + P3, 8 + P0, 8 + P1, 8 + P2, 8 + P3,
                                      12 + P0, 12 + P1, 12 + P2, 12 + P3);
    return {_mm512_shuffle_epi8(a.v, _mm512_broadcast_i32x4(one))};
}
// Lane i becomes the 32-bit word i / DIV at p.
template <int DIV>
inline I spread(const std::uint8_t *p) {
    static_assert(DIV == 2 || DIV == 4 || DIV == 8);
    const __m512i index =
        _mm512_srli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), DIV == 2   ? 1
                                                                                                   : DIV == 4 ? 2
                                                                                                              : 3);
    return {_mm512_permutexvar_epi32(index,
                                     _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))))};
}

// A table of 64 signed bytes; vpermb looks at the low 6 bits, so that shorter tables are repeated and need no masks.
struct Table {
    __m512i v;
};
inline Table table(const std::int8_t *entries, int offset) {
    return {_mm512_add_epi8(_mm512_loadu_si512(entries), _mm512_set1_epi8(static_cast<char>(offset)))};
}
// BITS: bits of the index that count; the bits above must be clear only where the table is longer.
template <int BITS>
inline I lookup(I index, Table t) {
    return {_mm512_permutexvar_epi8(index.v, t.v)};
}
// Of 7 bits: `low` has the first 64 entries.
inline I lookup7(I index, Table low, Table high) { return {_mm512_permutex2var_epi8(low.v, index.v, high.v)}; }

// acc + dot of 4 bytes a lane: codes (shifted by kCodeOffset, unsigned) times signed bytes.
inline I dot_codes(I acc, I codes, I q) { return {_mm512_dpbusd_epi32(acc.v, codes.v, q.v)}; }
// acc + dot of 4 bytes a lane: unsigned weights times signed codes.
inline I dot_weights(I acc, I weights, I codes) { return {_mm512_dpbusd_epi32(acc.v, weights.v, codes.v)}; }

inline F fzero() { return {_mm512_setzero_ps()}; }
inline F fset1(float x) { return {_mm512_set1_ps(x)}; }
inline F fload(const float *p) { return {_mm512_loadu_ps(p)}; }
inline void fstore(float *p, F a) { _mm512_storeu_ps(p, a.v); }
inline F fload_f16(const void *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(p)))}; }
inline F fload_bf16(const void *p) {
    return {_mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i *>(p))), 16))};
}
inline F fadd(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F fsub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F fmul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F fdiv(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F fmax(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F fmin(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline float hmax(F a) { return _mm512_reduce_max_ps(a.v); }
inline float hsum(F a) { return _mm512_reduce_add_ps(a.v); }
// Lane i: the sum of a[i]'s lanes.
inline F hsums(const F (&a)[16]) {
    __m512 four[4];
    for (int i = 0; i < 4; ++i) {  // of a quarter's 4 lanes: inputs 4 i ... 4 i + 3 side by side
        const F *x = a + 4 * i;
        const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(x[0].v, x[1].v), _mm512_unpackhi_ps(x[0].v, x[1].v));
        const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(x[2].v, x[3].v), _mm512_unpackhi_ps(x[2].v, x[3].v));
        const __m512d l = _mm512_castps_pd(low), h = _mm512_castps_pd(high);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)), _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
    }
    const auto halve = [](__m512 x, __m512 y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    };
    return {halve(halve(four[0], four[1]), halve(four[2], four[3]))};
}
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }  // rounds to nearest
inline F scale_by_power(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// b where a > 0, else 0 (nan in b included)
inline F where_positive(F a, F b) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v)};
}
// The low byte of each lane, 16 bytes.
inline void store_low_bytes(std::uint8_t *p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(a.v));
}

// Butterflies of strides 1, 2, 4 and 8: lanes i and i + stride become their sum and their difference.
// Times -1 in the second lane of a pair, in the one multiply-add whose product is exact.
inline F butterflies(F a) {
    const auto step = [](__m512 x, __m512 partner, __mmask16 second) {
        return _mm512_fmadd_ps(x, _mm512_mask_blend_ps(second, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f)), partner);
    };
    __m512 x = a.v;
    x = step(x, _mm512_permute_ps(x, 0xb1), 0xaaaa);
    x = step(x, _mm512_permute_ps(x, 0x4e), 0xcccc);
    x = step(x, _mm512_shuffle_f32x4(x, x, 0xb1), 0xf0f0);
    return {step(x, _mm512_shuffle_f32x4(x, x, 0x4e), 0xff00)};
}

// The sum of the lanes: halves added lane by lane, then quarters, then pairs, the order that encoding needs.
inline float hsum_of_halves(F a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// How many of 2^BITS - 1 ascending thresholds each lane reaches; 128 can be read.
template <int BITS>
inline I rank(F a, const float *thresholds) {
    static_assert(BITS >= 1 && BITS <= 6);
    // binary search: after some steps `found` thresholds are known to be reached, the next one to look at is found +
    // step - 1
    __m512i found = _mm512_setzero_si512();
    const auto halve = [&](int step) {
        const float *from = thresholds + step - 1;
        __m512 threshold;
        if constexpr (BITS <= 4)
            threshold = _mm512_permutexvar_ps(found, _mm512_loadu_ps(from));
        else
            threshold = _mm512_permutex2var_ps(_mm512_loadu_ps(from), found, _mm512_loadu_ps(from + 16));
        if constexpr (BITS == 6)
            threshold = _mm512_mask_mov_ps(
                threshold, _mm512_test_epi32_mask(found, _mm512_set1_epi32(32)),
                _mm512_permutex2var_ps(_mm512_loadu_ps(from + 32), found, _mm512_loadu_ps(from + 48)));
        found = _mm512_mask_add_epi32(found, _mm512_cmp_ps_mask(a.v, threshold, _CMP_GE_OQ), found,
                                      _mm512_set1_epi32(step));
    };
    if constexpr (BITS >= 6) halve(32);
    if constexpr (BITS >= 5) halve(16);
    if constexpr (BITS >= 4) halve(8);
    if constexpr (BITS >= 3) halve(4);
    if constexpr (BITS >= 2) halve(2);
    halve(1);
    return {found};
}

// 64 lanes of 0 ... 255 as bytes.
inline void store_bytes(std::uint8_t *p, const I (&a)[4]) {
    // packing works within 128-bit quarters: their words come out in the order 0 4 8 12 1 5 9 13 ...
    const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(a[0].v, a[1].v), _mm512_packus_epi32(a[2].v, a[3].v));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}

// Bit i: whether numbers i differ.
inline std::uint8_t hdiffers(H a, H b) { return static_cast<std::uint8_t>(_mm_cmpneq_epi16_mask(a.v, b.v)); }

}  // namespace simd
}  // namespace
