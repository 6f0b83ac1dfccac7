// Primitives for AArch64 with dot products. One I is 64 bytes, 16 lanes of 32 bits, in four registers; one F is 16
// floats.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {
namespace simd {

struct I {
    int8x16_t v[4];
};
struct F {
    float32x4_t v[4];
};

constexpr const char *kName = "neon";
// sdot multiplies signed by signed bytes: codes stay as they are, weights have 7 bits.
constexpr int kCodeOffset = 0;
constexpr int kWeightBits = 7;
// Vectors of floats that registers hold beside what is multiplied.
constexpr int kSums = 4;
// Whether prompts decode codes by whole vectors (tile_floats.h).
constexpr bool kDecodesVectors = true;

template <typename Function>
inline I each(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
}
template <typename Function>
inline F feach(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
}

inline int8x16_t s8(int32x4_t a) { return vreinterpretq_s8_s32(a); }
inline int8x16_t s8(uint8x16_t a) { return vreinterpretq_s8_u8(a); }
inline int8x16_t s8(uint16x8_t a) { return vreinterpretq_s8_u16(a); }
inline int8x16_t s8(uint32x4_t a) { return vreinterpretq_s8_u32(a); }
inline int32x4_t s32(int8x16_t a) { return vreinterpretq_s32_s8(a); }
inline uint8x16_t u8(int8x16_t a) { return vreinterpretq_u8_s8(a); }
inline uint16x8_t u16(int8x16_t a) { return vreinterpretq_u16_s8(a); }
inline uint32x4_t u32(int8x16_t a) { return vreinterpretq_u32_s8(a); }

inline I load(const void *p) {
    return each([&](int i) { return s8(vld1q_u8(static_cast<const std::uint8_t *>(p) + 16 * i)); });
}
inline void store(void *p, I a) {
    for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<std::uint8_t *>(p) + 16 * i, u8(a.v[i]));
}
inline I set1(std::int32_t x) {
    return each([&](int) { return s8(vdupq_n_s32(x)); });
}
inline I zero() { return set1(0); }
inline I set4(std::uint32_t bytes) { return set1(static_cast<std::int32_t>(bytes)); }
inline I broadcast(const void *p) {
    std::int32_t x;
    std::memcpy(&x, p, 4);
    return set1(x);
}
inline I add(I a, I b) {
    return each([&](int i) { return s8(vaddq_s32(s32(a.v[i]), s32(b.v[i]))); });
}
inline I sub(I a, I b) {
    return each([&](int i) { return s8(vsubq_s32(s32(a.v[i]), s32(b.v[i]))); });
}
template <int N>
inline I shl32(I a) {
    return each([&](int i) { return s8(vshlq_n_u32(u32(a.v[i]), N)); });
}
template <int N>
inline I shr32(I a) {
    return each([&](int i) { return s8(vshrq_n_u32(u32(a.v[i]), N)); });
}
// Shifts of 16-bit halves: bits of the neighbouring byte come in, callers mask.
template <int N>
inline I shr16(I a) {
    if constexpr (N == 0)
        return a;
    else
        return each([&](int i) { return s8(vshrq_n_u16(u16(a.v[i]), N)); });
}
template <int N>
inline I shl16(I a) {
    return each([&](int i) { return s8(vshlq_n_u16(u16(a.v[i]), N)); });
}
// Each lane by its own count, below 32.
inline I shr_lanes(I a, I counts) {
    return each([&](int i) { return s8(vshlq_u32(u32(a.v[i]), vnegq_s32(s32(counts.v[i])))); });
}
inline I and_(I a, I b) {
    return each([&](int i) { return vandq_s8(a.v[i], b.v[i]); });
}
inline I or_(I a, I b) {
    return each([&](int i) { return vorrq_s8(a.v[i], b.v[i]); });
}
inline I xor_(I a, I b) {
    return each([&](int i) { return veorq_s8(a.v[i], b.v[i]); });
}
inline I xor3(I a, I b, I c) { return xor_(xor_(a, b), c); }
// a with the bits of `mask` flipped where b has them.
inline I flip(I a, I b, I mask) { return xor_(a, and_(b, mask)); }
// Bits of a where the mask has them, else b's.
inline I select(I mask, I a, I b) {
    return each([&](int i) { return s8(vbslq_u8(u8(mask.v[i]), u8(a.v[i]), u8(b.v[i]))); });
}
// Lanes of a moved up by N bits, the upper ones of `below` coming in.
template <int N>
inline I funnel(I a, I below) {
    return or_(shl32<N>(a), shr32<32 - N>(below));
}
// Lane i becomes lane i - N of a, and before the first one `before`'s last ones.
template <int N>
inline I shift_lanes(I a, I before) {
    static_assert(N > 0 && N < 16);
    const auto part = [&](int i) { return u32(i < 4 ? before.v[i] : a.v[i - 4]); };
    return each([&](int i) {
        const int first = 4 + i - (N + 3) / 4;
        if constexpr (N % 4 == 0)
            return s8(part(first));
        else
            return s8(vextq_u32(part(first), part(first + 1), 4 - N % 4));
    });
}
// In each run of N lanes every lane becomes the one before it, the first the last.
template <int N>
inline I turn_lanes(I a) {
    static_assert(N == 2 || N == 4);
    return each([&](int i) {
        const uint32x4_t x = u32(a.v[i]);
        return s8(N == 4 ? vextq_u32(x, x, 3) : vrev64q_u32(x));
    });
}
// Per byte: value where (a & bit) has a bit, else 0.
inline I where_bit(I a, I bit, I value) {
    return each([&](int i) { return vandq_s8(s8(vtstq_s8(a.v[i], bit.v[i])), value.v[i]); });
}
// Byte j of each 32-bit lane becomes byte P_j of that lane.
template <int P0, int P1, int P2, int P3>
inline I pick(I a) {
    const std::uint8_t order[16] = {P0,     P1,     P2,     P3,     4 + P0,  4 + P1,  4 + P2,  4 + P3,
                                    8 + P0, 8 + P1, 8 + P2, 8 + P3, 12 + P0, 12 + P1, 12 + P2, 12 + P3};
    const uint8x16_t at = vld1q_u8(order);
    return each([&](int i) { return vqtbl1q_s8(a.v[i], at); });
}
// Lane i becomes the 32-bit word i / DIV at p.
template <int DIV>
inline I spread(const std::uint8_t *p) {
    static_assert(DIV == 2 || DIV == 4 || DIV == 8);
    std::uint32_t words[16 / DIV];
    std::memcpy(words, p, sizeof words);
    return each([&](int i) {
        const uint32x4_t first = vdupq_n_u32(words[4 * i / DIV]);
        if constexpr (DIV == 2) return s8(vextq_u32(first, vdupq_n_u32(words[2 * i + 1]), 2));
        return s8(first);
    });
}

struct Table {
    int8x16_t v[4];
};
inline Table table(const std::int8_t *entries, int offset) {
    const int8x16_t shift = vdupq_n_s8(static_cast<std::int8_t>(offset));
    const auto quarter = [&](int i) { return vaddq_s8(vld1q_s8(entries + 16 * i), shift); };
    return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
}
// BITS: bits of the index that count, whatever lies above.
template <int BITS>
inline I lookup(I index, const Table &t) {
    static_assert(BITS >= 1 && BITS <= 6);
    return each([&](int i) {
        // tbl gives 0 for an index beyond its registers
        const uint8x16_t at = vandq_u8(u8(index.v[i]), vdupq_n_u8((1 << BITS) - 1));
        if constexpr (BITS <= 4)
            return vqtbl1q_s8(t.v[0], at);
        else if constexpr (BITS == 5)
            return vqtbl2q_s8({{t.v[0], t.v[1]}}, at);
        else
            return vqtbl4q_s8({{t.v[0], t.v[1], t.v[2], t.v[3]}}, at);
    });
}
// Of 7 bits: `low` has the first 64 entries.
inline I lookup7(I index, const Table &low, const Table &high) {
    return each([&](int i) {
        const uint8x16_t at = vandq_u8(u8(index.v[i]), vdupq_n_u8(127));
        const int8x16_t first = vqtbl4q_s8({{low.v[0], low.v[1], low.v[2], low.v[3]}}, at);
        return vqtbx4q_s8(first, {{high.v[0], high.v[1], high.v[2], high.v[3]}}, vsubq_u8(at, vdupq_n_u8(64)));
    });
}

// acc + dot of 4 bytes a lane: signed codes times signed bytes.
inline I dot_codes(I acc, I codes, I q) {
    return each([&](int i) { return s8(vdotq_s32(s32(acc.v[i]), codes.v[i], q.v[i])); });
}
// acc + dot of 4 bytes a lane: weights of kWeightBits times signed codes.
inline I dot_weights(I acc, I weights, I codes) { return dot_codes(acc, codes, weights); }

inline F fset1(float x) {
    return feach([&](int) { return vdupq_n_f32(x); });
}
inline F fzero() { return fset1(0.0f); }
inline F fload(const float *p) {
    return feach([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline void fstore(float *p, F a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
// Conversion from f16 is part of the architecture, arithmetic in it is not.
inline F fload_f16(const void *p) {
    return feach([&](int i) {
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const std::uint8_t *>(p) + 8 * i)));
    });
}
inline F fload_bf16(const void *p) {
    return feach([&](int i) {
        const uint16x4_t half = vreinterpret_u16_u8(vld1_u8(static_cast<const std::uint8_t *>(p) + 8 * i));
        return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
    });
}
inline F fadd(F a, F b) {
    return feach([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline F fsub(F a, F b) {
    return feach([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline F fmul(F a, F b) {
    return feach([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline F fdiv(F a, F b) {
    return feach([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline F fma(F a, F b, F c) {
    return feach([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// The second where one is nan, as x86 has it.
inline F fmax(F a, F b) {
    return feach([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline F fmin(F a, F b) {
    return feach([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline float hmax(F a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }
inline float hsum(F a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3]))); }
// Lane i: the sum of a[i]'s lanes.
inline F hsums(const F (&a)[16]) {
    float sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = hsum(a[i]);
    return fload(sums);
}
inline F to_float(I a) {
    return feach([&](int i) { return vcvtq_f32_s32(s32(a.v[i])); });
}
inline I to_int(F a) {
    return each([&](int i) { return s8(vcvtnq_s32_f32(a.v[i])); });
}  // rounds to nearest
// a * 2^n for whole n of -126 ... 127
inline F scale_by_power(F a, F n) {
    return feach([&](int i) {
        const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127));
        return vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    });
}
inline F round(F a) {
    return feach([&](int i) { return vrndnq_f32(a.v[i]); });
}
// b where a > 0, else 0 (nan in b included)
inline F where_positive(F a, F b) {
    return feach(
        [&](int i) { return vreinterpretq_f32_u32(vandq_u32(vcgtzq_f32(a.v[i]), vreinterpretq_u32_f32(b.v[i]))); });
}
// The low byte of each lane, 16 bytes.
inline void store_low_bytes(std::uint8_t *p, I a) {
    const uint8x16_t first = vuzp1q_u8(u8(a.v[0]), u8(a.v[1])), second = vuzp1q_u8(u8(a.v[2]), u8(a.v[3]));
    vst1q_u8(p, vuzp1q_u8(first, second));
}

// Butterflies of strides 1, 2, 4 and 8: lanes i and i + stride become their sum and their difference.
inline F butterflies(F a) {
    const uint32x4_t odd = {0, ~0u, 0, ~0u}, upper = {0, 0, ~0u, ~0u};
    const auto step = [](float32x4_t x, float32x4_t partner, uint32x4_t second) {
        return vbslq_f32(second, vsubq_f32(partner, x), vaddq_f32(x, partner));
    };
    float32x4_t v[4];
    for (int i = 0; i < 4; ++i) {
        const float32x4_t x = step(a.v[i], vrev64q_f32(a.v[i]), odd);
        v[i] = step(x, vextq_f32(x, x, 2), upper);
    }
    const float32x4_t s0 = vaddq_f32(v[0], v[1]), d0 = vsubq_f32(v[0], v[1]);
    const float32x4_t s1 = vaddq_f32(v[2], v[3]), d1 = vsubq_f32(v[2], v[3]);
    return {{vaddq_f32(s0, s1), vaddq_f32(d0, d1), vsubq_f32(s0, s1), vsubq_f32(d0, d1)}};
}

// The sum of the lanes: halves added lane by lane, then quarters, then pairs, the order that encoding needs.
inline float hsum_of_halves(F a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// How many of 2^BITS - 1 ascending thresholds each lane reaches; 128 can be read.
template <int BITS>
inline I rank(F a, const float *thresholds) {
    I count = zero();
    for (int t = 0; t < (1 << BITS) - 1; ++t) {
        const float32x4_t threshold = vdupq_n_f32(thresholds[t]);
        // a comparison's lanes are -1
        for (int i = 0; i < 4; ++i)
            count.v[i] = s8(vsubq_s32(s32(count.v[i]), vreinterpretq_s32_u32(vcgeq_f32(a.v[i], threshold))));
    }
    return count;
}

// 64 lanes of 0 ... 255 as bytes.
inline void store_bytes(std::uint8_t *p, const I (&a)[4]) {
    for (int i = 0; i < 4; ++i) store_low_bytes(p + 16 * i, a[i]);
}

// Eight 16-bit numbers without a sign.
struct H {
    uint16x8_t v;
};
inline H hload(const std::uint16_t *p) { return {vld1q_u16(p)}; }
// Four of them; the others are 0.
inline H hload4(const std::uint16_t *p) { return {vcombine_u16(vld1_u16(p), vdup_n_u16(0))}; }
inline void hstore(std::uint16_t *p, H a) { vst1q_u16(p, a.v); }
inline H hset1(int x) { return {vdupq_n_u16(static_cast<std::uint16_t>(x))}; }
inline H hadd(H a, H b) { return {vaddq_u16(a.v, b.v)}; }
inline H hsub(H a, H b) { return {vsubq_u16(a.v, b.v)}; }
inline H hmin(H a, H b) { return {vminq_u16(a.v, b.v)}; }
// Number i becomes number P_i.
template <int P0, int P1, int P2, int P3, int P4, int P5, int P6, int P7>
inline H hpick(H a) {
    constexpr std::uint16_t bytes[8] = {0x100 + 0x202 * P0, 0x100 + 0x202 * P1, 0x100 + 0x202 * P2, 0x100 + 0x202 * P3,
                                        0x100 + 0x202 * P4, 0x100 + 0x202 * P5, 0x100 + 0x202 * P6, 0x100 + 0x202 * P7};
    return {vreinterpretq_u16_u8(vqtbl1q_u8(vreinterpretq_u8_u16(a.v), vreinterpretq_u8_u16(vld1q_u16(bytes))))};
}
// Bit i: whether numbers i differ.
inline std::uint8_t hdiffers(H a, H b) {
    constexpr std::uint16_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return static_cast<std::uint8_t>(vaddvq_u16(vbicq_u16(vld1q_u16(bits), vceqq_u16(a.v, b.v))));
}

}  // namespace simd
}  // namespace
