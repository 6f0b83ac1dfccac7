// Primitives for AVX2 with FMA and F16C. One I is 64 bytes, 16 lanes of 32 bits, in two registers; one F is 16 floats.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd_eight.h"

namespace {
namespace simd {

struct I {
    __m256i v[2];
};
struct F {
    __m256 v[2];
};

constexpr const char *kName = "avx2";
// Codes stay signed: vpmaddubsw takes their magnitudes, and their signs go to the other factor.
constexpr int kCodeOffset = 0;
// vpmaddubsw saturates at 16 bits: 2 * 127 * 128 still fits, 8 bits would not.
constexpr int kWeightBits = 7;
// Vectors of floats that registers hold beside what is multiplied.
constexpr int kSums = 4;
// Whether prompts decode codes by whole vectors (tile_floats.h).
constexpr bool kDecodesVectors = true;

template <typename Function>
inline I each(Function f) {
    return {{f(0), f(1)}};
}
template <typename Function>
inline F feach(Function f) {
    return {{f(0), f(1)}};
}

inline __m256i load256(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m128i load128(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }

inline I load(const void *p) {
    return each([&](int i) { return load256(static_cast<const std::uint8_t *>(p) + 32 * i); });
}
inline void store(void *p, I a) {
    for (int i = 0; i < 2; ++i) _mm256_storeu_si256(static_cast<__m256i *>(p) + i, a.v[i]);
}
inline I set1(std::int32_t x) {
    return each([&](int) { return _mm256_set1_epi32(x); });
}
inline I zero() { return set1(0); }
inline I set4(std::uint32_t bytes) { return set1(static_cast<std::int32_t>(bytes)); }
inline I broadcast(const void *p) {
    std::int32_t x;
    std::memcpy(&x, p, 4);
    return set1(x);
}
inline I add(I a, I b) {
    return each([&](int i) { return _mm256_add_epi32(a.v[i], b.v[i]); });
}
inline I sub(I a, I b) {
    return each([&](int i) { return _mm256_sub_epi32(a.v[i], b.v[i]); });
}
template <int N>
inline I shl32(I a) {
    return each([&](int i) { return _mm256_slli_epi32(a.v[i], N); });
}
template <int N>
inline I shr32(I a) {
    return each([&](int i) { return _mm256_srli_epi32(a.v[i], N); });
}
// Shifts of 16-bit halves: bits of the neighbouring byte come in, callers mask.
template <int N>
inline I shr16(I a) {
    return each([&](int i) { return _mm256_srli_epi16(a.v[i], N); });
}
template <int N>
inline I shl16(I a) {
    return each([&](int i) { return _mm256_slli_epi16(a.v[i], N); });
}
// Each lane by its own count, below 32.
inline I shr_lanes(I a, I counts) {
    return each([&](int i) { return _mm256_srlv_epi32(a.v[i], counts.v[i]); });
}
inline I and_(I a, I b) {
    return each([&](int i) { return _mm256_and_si256(a.v[i], b.v[i]); });
}
inline I or_(I a, I b) {
    return each([&](int i) { return _mm256_or_si256(a.v[i], b.v[i]); });
}
inline I xor_(I a, I b) {
    return each([&](int i) { return _mm256_xor_si256(a.v[i], b.v[i]); });
}
inline I xor3(I a, I b, I c) { return xor_(xor_(a, b), c); }
// a with the bits of `mask` flipped where b has them.
inline I flip(I a, I b, I mask) { return xor_(a, and_(b, mask)); }
// Bits of a where the mask has them, else b's.
inline I select(I mask, I a, I b) {
    return each([&](int i) {
        return _mm256_or_si256(_mm256_and_si256(mask.v[i], a.v[i]), _mm256_andnot_si256(mask.v[i], b.v[i]));
    });
}
// Lanes of a moved up by N bits, the upper ones of `below` coming in.
template <int N>
inline I funnel(I a, I below) {
    return or_(shl32<N>(a), shr32<32 - N>(below));
}
// Eight lanes of both, a's last N before b's first ones.
template <int N>
inline __m256i join_lanes(__m256i a, __m256i b) {
    static_assert(N >= 0 && N < 8);
    if constexpr (N == 0) return b;
    const __m256i middle = _mm256_permute2x128_si256(a, b, 0x21);  // a's upper half, b's lower one
    if constexpr (N == 4) return middle;
    if constexpr (N < 4) return _mm256_alignr_epi8(b, middle, 16 - 4 * (N % 4));
    return _mm256_alignr_epi8(middle, a, 16 - 4 * (N % 4));
}
// Lane i becomes lane i - N of a, and before the first one `before`'s last ones.
template <int N>
inline I shift_lanes(I a, I before) {
    static_assert(N > 0 && N < 16);
    if constexpr (N < 8) return {{join_lanes<N>(before.v[1], a.v[0]), join_lanes<N>(a.v[0], a.v[1])}};
    return {{join_lanes<N % 8>(before.v[0], before.v[1]), join_lanes<N % 8>(before.v[1], a.v[0])}};
}
// In each run of N lanes every lane becomes the one before it, the first the last.
template <int N>
inline I turn_lanes(I a) {
    static_assert(N == 2 || N == 4);
    return each([&](int i) { return _mm256_shuffle_epi32(a.v[i], N == 4 ? 0x93 : 0xb1); });
}
// Per byte: value where (a & bit) has a bit, else 0.
inline I where_bit(I a, I bit, I value) {
    return each([&](int i) {
        const __m256i none = _mm256_cmpeq_epi8(_mm256_and_si256(a.v[i], bit.v[i]), _mm256_setzero_si256());
        return _mm256_andnot_si256(none, value.v[i]);
    });
}
// Byte j of each 32-bit lane becomes byte P_j of that lane.
template <int P0, int P1, int P2, int P3>
inline I pick(I a) {
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(P0, P1, P2, P3, 4 + P0, 4 + P1, 4 + P2, 4 + P3, 8 + P0, 8 + P1,
                                                  8 + P2, 8 + P3, 12 + P0, 12 + P1, 12 + P2, 12 + P3));
    return each([&](int i) { return _mm256_shuffle_epi8(a.v[i], order); });
}
// Lane i becomes the 32-bit word i / DIV at p.
template <int DIV>
inline I spread(const std::uint8_t *p) {
    static_assert(DIV == 2 || DIV == 4 || DIV == 8);
    return each([&](int i) {
        const std::uint8_t *half = p + i * (32 / DIV);
        if constexpr (DIV == 2)
            return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(load128(half)),
                                               _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
        if constexpr (DIV == 4)
            return _mm256_permutevar8x32_epi32(
                _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(half))),
                _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
        return broadcast(half).v[0];
    });
}

// A table of 64 signed bytes, a quarter in both halves of each register.
struct Table {
    __m256i v[4];
};
inline Table table(const std::int8_t *entries, int offset) {
    const __m256i shift = _mm256_set1_epi8(static_cast<char>(offset));
    const auto quarter = [&](int i) {
        return _mm256_add_epi8(_mm256_broadcastsi128_si256(load128(entries + 16 * i)), shift);
    };
    return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
}
// BITS: bits of the index that count, whatever lies above.
template <int BITS>
inline I lookup(I index, const Table &t) {
    static_assert(BITS >= 1 && BITS <= 6);
    return each([&](int i) {
        // vpshufb looks at the low 4 bits and gives 0 where bit 7 is set
        const __m256i at = _mm256_and_si256(index.v[i], _mm256_set1_epi8((1 << BITS) - 1));
        const __m256i first = _mm256_shuffle_epi8(t.v[0], at);
        if constexpr (BITS <= 4) return first;
        const __m256i bit4 = _mm256_slli_epi16(at, 3);  // in bit 7, where vpblendvb looks
        const __m256i low = _mm256_blendv_epi8(first, _mm256_shuffle_epi8(t.v[1], at), bit4);
        if constexpr (BITS <= 5) return low;
        const __m256i high = _mm256_blendv_epi8(_mm256_shuffle_epi8(t.v[2], at), _mm256_shuffle_epi8(t.v[3], at), bit4);
        return _mm256_blendv_epi8(low, high, _mm256_slli_epi16(at, 2));
    });
}
// Of 7 bits: `low` has the first 64 entries.
inline I lookup7(I index, const Table &low, const Table &high) {
    const I first = lookup<6>(index, low), second = lookup<6>(index, high);
    // bit 6 to bit 7, where vpblendvb looks
    return each([&](int i) { return _mm256_blendv_epi8(first.v[i], second.v[i], _mm256_slli_epi16(index.v[i], 1)); });
}

inline __m256i add_dot(__m256i acc, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// acc + dot of 4 bytes a lane: signed codes times signed bytes of -127 ... 127. The magnitude of a code of -128 is 128,
// unsigned, and 2 * 128 * 127 fits in 16 bits.
inline I dot_codes(I acc, I codes, I q) {
    return each(
        [&](int i) { return add_dot(acc.v[i], _mm256_abs_epi8(codes.v[i]), _mm256_sign_epi8(q.v[i], codes.v[i])); });
}
// acc + dot of 4 bytes a lane: weights of kWeightBits times signed codes.
inline I dot_weights(I acc, I weights, I codes) {
    return each([&](int i) { return add_dot(acc.v[i], weights.v[i], codes.v[i]); });
}

inline F fset1(float x) {
    return feach([&](int) { return _mm256_set1_ps(x); });
}
inline F fzero() { return fset1(0.0f); }
inline F fload(const float *p) {
    return feach([&](int i) { return _mm256_loadu_ps(p + 8 * i); });
}
inline void fstore(float *p, F a) {
    _mm256_storeu_ps(p, a.v[0]);
    _mm256_storeu_ps(p + 8, a.v[1]);
}
inline F fload_f16(const void *p) {
    return feach([&](int i) { return _mm256_cvtph_ps(load128(static_cast<const std::uint8_t *>(p) + 16 * i)); });
}
inline F fload_bf16(const void *p) {
    return feach([&](int i) {
        const __m256i wide = _mm256_cvtepu16_epi32(load128(static_cast<const std::uint8_t *>(p) + 16 * i));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    });
}
inline F fadd(F a, F b) {
    return feach([&](int i) { return _mm256_add_ps(a.v[i], b.v[i]); });
}
inline F fsub(F a, F b) {
    return feach([&](int i) { return _mm256_sub_ps(a.v[i], b.v[i]); });
}
inline F fmul(F a, F b) {
    return feach([&](int i) { return _mm256_mul_ps(a.v[i], b.v[i]); });
}
inline F fdiv(F a, F b) {
    return feach([&](int i) { return _mm256_div_ps(a.v[i], b.v[i]); });
}
inline F fma(F a, F b, F c) {
    return feach([&](int i) { return _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]); });
}
// The second where one is nan, as in vmaxps and vminps.
inline F fmax(F a, F b) {
    return feach([&](int i) { return _mm256_max_ps(a.v[i], b.v[i]); });
}
inline F fmin(F a, F b) {
    return feach([&](int i) { return _mm256_min_ps(a.v[i], b.v[i]); });
}
inline float hmax(F a) {
    const __m256 eight = _mm256_max_ps(a.v[0], a.v[1]);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline float hsum(F a) {
    const __m256 eight = _mm256_add_ps(a.v[0], a.v[1]);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
// Lane i: the sum of a[i]'s lanes.
inline F hsums(const F (&a)[16]) {
    float sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = hsum(a[i]);
    return fload(sums);
}
inline F to_float(I a) {
    return feach([&](int i) { return _mm256_cvtepi32_ps(a.v[i]); });
}
inline I to_int(F a) {
    return each([&](int i) { return _mm256_cvtps_epi32(a.v[i]); });
}  // rounds to nearest
// a * 2^n for whole n of -126 ... 127
inline F scale_by_power(F a, F n) {
    return feach([&](int i) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v[i]), _mm256_set1_epi32(127));
        return _mm256_mul_ps(a.v[i], _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    });
}
inline F round(F a) {
    return feach([&](int i) { return _mm256_round_ps(a.v[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); });
}
// b where a > 0, else 0 (nan in b included)
inline F where_positive(F a, F b) {
    return feach([&](int i) { return _mm256_and_ps(_mm256_cmp_ps(a.v[i], _mm256_setzero_ps(), _CMP_GT_OQ), b.v[i]); });
}
// The low byte of each lane, 16 bytes.
inline void store_low_bytes(std::uint8_t *p, I a) {
    const I low = and_(a, set1(255));
    // packing works within 128-bit halves: their quarters come out in the order 0 2 1 3
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low.v[0], low.v[1]), _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// Butterflies of strides 1, 2, 4 and 8: lanes i and i + stride become their sum and their difference.
inline F butterflies(F a) {
    // times -1 in the second lane of a pair, in the one multiply-add whose product is exact
    const auto within = [](__m256 x) {
        x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(x, 0xb1));
        x = _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(x, 0x4e));
        return _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(x, x, 1));
    };
    const __m256 low = within(a.v[0]), high = within(a.v[1]);
    return {{_mm256_add_ps(low, high), _mm256_sub_ps(low, high)}};
}

// The sum of the lanes: halves added lane by lane, then quarters, then pairs, the order that encoding needs.
inline float hsum_of_halves(F a) { return hsum(a); }

// How many of 2^BITS - 1 ascending thresholds each lane reaches; 128 can be read.
template <int BITS>
inline I rank(F a, const float *thresholds) {
    I count = zero();
    for (int t = 0; t < (1 << BITS) - 1; ++t) {
        const __m256 threshold = _mm256_set1_ps(thresholds[t]);
        // a comparison's lanes are -1
        for (int i = 0; i < 2; ++i)
            count.v[i] =
                _mm256_sub_epi32(count.v[i], _mm256_castps_si256(_mm256_cmp_ps(a.v[i], threshold, _CMP_GE_OQ)));
    }
    return count;
}

// 64 lanes of 0 ... 255 as bytes.
inline void store_bytes(std::uint8_t *p, const I (&a)[4]) {
    for (int i = 0; i < 4; ++i) store_low_bytes(p + 16 * i, a[i]);
}

// Bit i: whether numbers i differ.
inline std::uint8_t hdiffers(H a, H b) {
    const __m128i same = _mm_cmpeq_epi16(a.v, b.v);
    return static_cast<std::uint8_t>(~_mm_movemask_epi8(_mm_packs_epi16(same, same)));
}

}  // namespace simd
}  // namespace
