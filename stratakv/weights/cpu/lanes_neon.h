// Primitives of tiles for NEON with dot products: 4 rows, a 32-bit lane each.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {
namespace lanes {

using V = uint32x4_t;
using F = float32x4_t;
constexpr const char *kName = "neon";
constexpr int kLanes = 4;
constexpr int kTogether = 1;  // tiles whose codes fit in registers beside each other
constexpr int kSignedOffset = 0;

inline V load(const void *p) { return vreinterpretq_u32_u8(vld1q_u8(static_cast<const std::uint8_t *>(p))); }
inline void store(void *p, V v) { vst1q_u8(static_cast<std::uint8_t *>(p), vreinterpretq_u8_u32(v)); }
inline F loadf(const float *p) { return vld1q_f32(p); }
inline void storef(float *p, F v) { vst1q_f32(p, v); }
inline V set1(std::uint32_t x) { return vdupq_n_u32(x); }
inline F set1f(float x) { return vdupq_n_f32(x); }
inline V and_(V a, V b) { return vandq_u32(a, b); }
inline V or_(V a, V b) { return vorrq_u32(a, b); }
inline V xor_(V a, V b) { return veorq_u32(a, b); }
inline V sub(V a, V b) { return vsubq_u32(a, b); }
inline V add(V a, V b) { return vaddq_u32(a, b); }
template <int N>
inline V shl(V a) {
    return vshlq_n_u32(a, N);
}
template <int N>
inline V shr(V a) {
    return vshrq_n_u32(a, N);
}
template <int N>
inline V sar(V a) {
    return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), N));
}
inline V shr_by(V a, int n) { return vshlq_u32(a, vdupq_n_s32(-n)); }
inline V spread_bits(V a, int at) {
    a = and_(shr_by(a, at), set1(0xf));
    return and_(or_(or_(a, shl<7>(a)), or_(shl<14>(a), shl<21>(a))), set1(0x01010101));
}
inline V lookup(const std::int8_t *table, V codes) {
    return vreinterpretq_u32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_u32(codes)));
}
inline F to_float(V a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
inline F as_float(V a) { return vreinterpretq_f32_u32(a); }
inline F low_half(V a) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(a))); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F addf(F a, F b) { return vaddq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }

inline V broadcast(const void *p) {
    std::uint32_t x;
    std::memcpy(&x, p, 4);
    return vdupq_n_u32(x);
}
inline V dot(V acc, V codes, const std::int8_t *x) {
    return vreinterpretq_u32_s32(
        vdotq_s32(vreinterpretq_s32_u32(acc), vreinterpretq_s8_u32(codes), vreinterpretq_s8_u32(broadcast(x))));
}
inline V dot_signed(V acc, V codes, const std::int8_t *x) { return dot(acc, codes, x); }
inline V from_signed(V codes) { return codes; }

struct Words {
    V v[4];
};
inline Words words(const std::uint8_t *p, std::size_t stride) {
    V z[4];
    for (int i = 0; i < 4; ++i) z[i] = load(p + i * stride);
    const V a = vzip1q_u32(z[0], z[2]), b = vzip2q_u32(z[0], z[2]);  // r0 r2 of words 0, 1 and of words 2, 3
    const V c = vzip1q_u32(z[1], z[3]), d = vzip2q_u32(z[1], z[3]);
    return {{vzip1q_u32(a, c), vzip2q_u32(a, c), vzip1q_u32(b, d), vzip2q_u32(b, d)}};
}
inline V word(const std::uint8_t *p, std::size_t stride) {
    std::uint32_t x[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&x[i], p + i * stride, 4);
    return vld1q_u32(x);
}

inline std::uint32_t largest_bits(const float *x) {
    V most = set1(0);
    for (int i = 0; i < 16; i += 4) most = vmaxq_u32(most, and_(load(x + i), set1(0x7fffffffu)));
    return vmaxvq_u32(most);
}
inline std::int32_t rounded(const float *x, float by, std::int8_t *codes) {
    int32x4_t whole[4];
    for (int i = 0; i < 4; ++i) whole[i] = vcvtnq_s32_f32(vmulq_n_f32(loadf(x + 4 * i), by));
    const int16x8_t low = vcombine_s16(vmovn_s32(whole[0]), vmovn_s32(whole[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(whole[2]), vmovn_s32(whole[3]));
    vst1q_s8(codes, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    return vaddvq_s32(vaddq_s32(vaddq_s32(whole[0], whole[1]), vaddq_s32(whole[2], whole[3])));
}

}  // namespace lanes
}  // namespace
