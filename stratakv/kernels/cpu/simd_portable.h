// Primitives for any machine: the vector types of GCC and Clang, which become whatever instructions the target has. One
// I is 64 bytes, 16 lanes of 32 bits, in four parts; one F is 16 floats.
#pragma once
#include <cstdint>
#include <cstring>

namespace {
namespace simd {

typedef std::int8_t Bytes __attribute__((vector_size(16)));
typedef std::uint8_t UnsignedBytes __attribute__((vector_size(16)));
typedef std::int16_t Shorts __attribute__((vector_size(16)));
typedef std::uint16_t UnsignedShorts __attribute__((vector_size(16)));
typedef std::int32_t Words __attribute__((vector_size(16)));
typedef std::uint32_t UnsignedWords __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

struct I {
    UnsignedWords v[4];
};
struct F {
    Floats v[4];
};

constexpr const char *kName = "portable";
// Products of any bytes: codes stay signed, weights have all 8 bits.
constexpr int kCodeOffset = 0;
constexpr int kWeightBits = 8;
// Vectors of floats that registers hold beside what is multiplied.
constexpr int kSums = 4;
// Whether prompts decode codes by whole vectors (tile_floats.h): here loops over lanes are slower than rows, and much
// code.
constexpr bool kDecodesVectors = false;

template <typename Function>
inline I each(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
}
template <typename Function>
inline F feach(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
}

// The same 16 bytes as another type.
template <typename To, typename From>
inline To as(From a) {
    return reinterpret_cast<To>(a);
}

inline I load(const void *p) {
    I out;
    std::memcpy(out.v, p, 64);
    return out;
}
inline void store(void *p, I a) { std::memcpy(p, a.v, 64); }
inline I set4(std::uint32_t x) {
    return each([&](int) { return UnsignedWords{x, x, x, x}; });
}
inline I set1(std::int32_t x) { return set4(static_cast<std::uint32_t>(x)); }
inline I zero() { return set4(0); }
inline I broadcast(const void *p) {
    std::uint32_t x;
    std::memcpy(&x, p, 4);
    return set4(x);
}
inline I add(I a, I b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline I sub(I a, I b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
template <int N>
inline I shl32(I a) {
    return each([&](int i) { return a.v[i] << N; });
}
template <int N>
inline I shr32(I a) {
    return each([&](int i) { return a.v[i] >> N; });
}
// Shifts of 16-bit halves: bits of the neighbouring byte come in, callers mask.
template <int N>
inline I shr16(I a) {
    return each([&](int i) { return as<UnsignedWords>(as<UnsignedShorts>(a.v[i]) >> N); });
}
template <int N>
inline I shl16(I a) {
    return each([&](int i) { return as<UnsignedWords>(as<UnsignedShorts>(a.v[i]) << N); });
}
// Each lane by its own count, below 32.
inline I shr_lanes(I a, I counts) {
    return each([&](int i) { return a.v[i] >> counts.v[i]; });
}
inline I and_(I a, I b) {
    return each([&](int i) { return a.v[i] & b.v[i]; });
}
inline I or_(I a, I b) {
    return each([&](int i) { return a.v[i] | b.v[i]; });
}
inline I xor_(I a, I b) {
    return each([&](int i) { return a.v[i] ^ b.v[i]; });
}
inline I xor3(I a, I b, I c) { return xor_(xor_(a, b), c); }
// a with the bits of `mask` flipped where b has them.
inline I flip(I a, I b, I mask) { return xor_(a, and_(b, mask)); }
// Bits of a where the mask has them, else b's.
inline I select(I mask, I a, I b) {
    return each([&](int i) { return (mask.v[i] & a.v[i]) | (~mask.v[i] & b.v[i]); });
}
// Lanes of a moved up by N bits, the upper ones of `below` coming in.
template <int N>
inline I funnel(I a, I below) {
    return or_(shl32<N>(a), shr32<32 - N>(below));
}
// Lane i becomes lane i - N of a, and before the first one `before`'s last ones.
template <int N>
inline I shift_lanes(I a, I before) {
    std::uint32_t lanes[32];
    std::memcpy(lanes, before.v, 64), std::memcpy(lanes + 16, a.v, 64);
    return load(lanes + 16 - N);
}
// In each run of N lanes every lane becomes the one before it, the first the last.
template <int N>
inline I turn_lanes(I a) {
    static_assert(N == 2 || N == 4);
    return each([&](int i) {
        const UnsignedWords x = a.v[i];
        return N == 4 ? UnsignedWords{x[3], x[0], x[1], x[2]} : UnsignedWords{x[1], x[0], x[3], x[2]};
    });
}
// Per byte: value where (a & bit) has a bit, else 0.
inline I where_bit(I a, I bit, I value) {
    return each([&](int i) { return as<UnsignedWords>(as<Bytes>(a.v[i] & bit.v[i]) != 0) & value.v[i]; });
}
// Byte j of each 32-bit lane becomes byte P_j of that lane.
template <int P0, int P1, int P2, int P3>
inline I pick(I a) {
    return each([&](int i) {
        const UnsignedWords x = a.v[i];
        return (x >> 8 * P0 & 255) | (x >> 8 * P1 & 255) << 8 | (x >> 8 * P2 & 255) << 16 | x >> 8 * P3 << 24;
    });
}
// Lane i becomes the 32-bit word i / DIV at p.
template <int DIV>
inline I spread(const std::uint8_t *p) {
    static_assert(DIV == 2 || DIV == 4 || DIV == 8);
    std::uint32_t w[16 / DIV];
    std::memcpy(w, p, sizeof w);
    return each([&](int i) {
        return UnsignedWords{w[4 * i / DIV], w[(4 * i + 1) / DIV], w[(4 * i + 2) / DIV], w[(4 * i + 3) / DIV]};
    });
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
inline I lookup(I index, const Table &t) {
    return each([&](int i) {
        UnsignedWords out;
        for (int lane = 0; lane < 4; ++lane) {
            const std::uint32_t at = index.v[i][lane] & 0x01010101u * ((1 << BITS) - 1);
            out[lane] = t.v[at & 255] | t.v[at >> 8 & 255] << 8 | t.v[at >> 16 & 255] << 16 |
                        std::uint32_t(t.v[at >> 24]) << 24;
        }
        return out;
    });
}
// Of 7 bits: `low` has the first 64 entries.
inline I lookup7(I index, const Table &low, const Table &high) {
    const I first = lookup<6>(index, low), second = lookup<6>(index, high);
    return each([&](int i) {
        const UnsignedWords in_high = as<UnsignedWords>(as<Bytes>(index.v[i] << 1) < 0);  // bit 6
        return (in_high & second.v[i]) | (~in_high & first.v[i]);
    });
}

// Products of even and of odd bytes, 16 bits each, to 32-bit sums of 4: shifts up and down carry the sign.
inline UnsignedWords halves_added(Shorts pairs) {
    const Words x = as<Words>(pairs);
    return as<UnsignedWords>((as<Words>(as<UnsignedWords>(x) << 16) >> 16) + (x >> 16));
}
inline Shorts even(UnsignedWords a) { return as<Shorts>(as<UnsignedShorts>(a) << 8) >> 8; }
inline Shorts odd(UnsignedWords a) { return as<Shorts>(a) >> 8; }

// acc + dot of 4 bytes a lane: signed codes times signed bytes of -127 ... 127, two products fit in 16 bits.
inline I dot_codes(I acc, I codes, I q) {
    return each([&](int i) {
        return acc.v[i] + halves_added(even(codes.v[i]) * even(q.v[i]) + odd(codes.v[i]) * odd(q.v[i]));
    });
}
// acc + dot of 4 bytes a lane: unsigned weights times signed codes, one product fits in 16 bits.
inline I dot_weights(I acc, I weights, I codes) {
    return each([&](int i) {
        const Shorts w0 = as<Shorts>(weights.v[i] & 0x00ff00ffu), w1 = as<Shorts>(weights.v[i] >> 8 & 0x00ff00ffu);
        return acc.v[i] + halves_added(even(codes.v[i]) * w0) + halves_added(odd(codes.v[i]) * w1);
    });
}

inline F fset1(float x) {
    return feach([&](int) { return Floats{x, x, x, x}; });
}
inline F fzero() { return fset1(0.0f); }
inline F fload(const float *p) {
    F out;
    std::memcpy(out.v, p, 64);
    return out;
}
inline void fstore(float *p, F a) { std::memcpy(p, a.v, 64); }
inline Floats select(Words condition, Floats a, Floats b) {
    return as<Floats>((condition & as<Words>(a)) | (~condition & as<Words>(b)));
}
// Four 16-bit numbers in the low halves of lanes.
inline UnsignedWords load_halves(const void *p, int i) {
    std::uint16_t h[4];
    std::memcpy(h, static_cast<const std::uint8_t *>(p) + 8 * i, 8);
    return UnsignedWords{h[0], h[1], h[2], h[3]};
}
// Whole numbers times 2^-24 below the least normal number, so that it holds where subnormal floats count as 0.
inline F fload_f16(const void *p) {
    return feach([&](int i) {
        const UnsignedWords half = load_halves(p, i), x = half & 0x7fffu;
        const Floats subnormal = __builtin_convertvector(as<Words>(x), Floats) * 0x1p-24f;
        const UnsignedWords special = as<UnsignedWords>(x >= 0x7c00u) & (112u << 23);  // infinity and nan stay that
        const Floats normal = as<Floats>((x << 13) + (112u << 23) + special);
        return as<Floats>(as<UnsignedWords>(select(x < 0x400u, subnormal, normal)) | (half & 0x8000u) << 16);
    });
}
inline F fload_bf16(const void *p) {
    return feach([&](int i) { return as<Floats>(load_halves(p, i) << 16); });
}
inline F fadd(F a, F b) {
    return feach([&](int i) { return a.v[i] + b.v[i]; });
}
inline F fsub(F a, F b) {
    return feach([&](int i) { return a.v[i] - b.v[i]; });
}
inline F fmul(F a, F b) {
    return feach([&](int i) { return a.v[i] * b.v[i]; });
}
inline F fdiv(F a, F b) {
    return feach([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
    return feach([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
// The second where one is nan, as x86 has it.
inline F fmax(F a, F b) {
    return feach([&](int i) { return select(a.v[i] > b.v[i], a.v[i], b.v[i]); });
}
inline F fmin(F a, F b) {
    return feach([&](int i) { return select(a.v[i] < b.v[i], a.v[i], b.v[i]); });
}
inline float hmax(F a) {
    const Floats x = select(a.v[0] > a.v[1], a.v[0], a.v[1]), y = select(a.v[2] > a.v[3], a.v[2], a.v[3]);
    const Floats four = select(x > y, x, y);
    float out = four[0];
    for (int i = 1; i < 4; ++i) out = four[i] > out ? four[i] : out;
    return out;
}
inline float hsum(F a) {
    const Floats four = (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]);
    return (four[0] + four[1]) + (four[2] + four[3]);
}
// Lane i: the sum of a[i]'s lanes.
inline F hsums(const F (&a)[16]) {
    float sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = hsum(a[i]);
    return fload(sums);
}
inline F to_float(I a) {
    return feach([&](int i) { return __builtin_convertvector(as<Words>(a.v[i]), Floats); });
}
// To the nearest whole number, for magnitudes below 2^22: what is added pushes the fraction out of the float. The
// compiler must not reorder this (no -ffast-math).
constexpr float kPush = 12582912.0f;  // 1.5 * 2^23
inline F round(F a) {
    return feach([&](int i) { return (a.v[i] + kPush) - kPush; });
}
// Rounds to nearest; 0 where the magnitude is 2^22 or more, or nan.
inline I to_int(F a) {
    return each([&](int i) {
        const Words fits = (a.v[i] > -4194304.0f) & (a.v[i] < 4194304.0f);
        const Floats x = as<Floats>(fits & as<Words>(a.v[i]));
        return as<UnsignedWords>(__builtin_convertvector((x + kPush) - kPush, Words));
    });
}
// a * 2^n for whole n of -126 ... 127
inline F scale_by_power(F a, F n) {
    return feach([&](int i) {
        return a.v[i] * as<Floats>(as<UnsignedWords>(__builtin_convertvector(n.v[i], Words) + 127) << 23);
    });
}
// b where a > 0, else 0 (nan in b included)
inline F where_positive(F a, F b) {
    return feach([&](int i) { return as<Floats>((a.v[i] > 0.0f) & as<Words>(b.v[i])); });
}
// The low byte of each lane, 16 bytes.
inline void store_low_bytes(std::uint8_t *p, I a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<std::uint8_t>(a.v[i / 4][i % 4]);
}

// Butterflies of strides 1, 2, 4 and 8: lanes i and i + stride become their sum and their difference.
inline F butterflies(F a) {
    float x[16];
    std::memcpy(x, a.v, sizeof x);
    for (int stride = 1; stride < 16; stride *= 2)
        for (int i = 0; i < 16; ++i)
            if (!(i & stride)) {
                const float sum = x[i] + x[i + stride], difference = x[i] - x[i + stride];
                x[i] = sum, x[i + stride] = difference;
            }
    std::memcpy(a.v, x, sizeof x);
    return a;
}

// The sum of the lanes: halves added lane by lane, then quarters, then pairs, the order that encoding needs.
inline float hsum_of_halves(F a) {
    float x[16];
    std::memcpy(x, a.v, sizeof x);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] = x[i] + x[i + half];
    return x[0];
}

// How many of 2^BITS - 1 ascending thresholds each lane reaches; 128 can be read.
template <int BITS>
inline I rank(F a, const float *thresholds) {
    I count = zero();
    for (int t = 0; t < (1 << BITS) - 1; ++t)
        // a comparison's lanes are -1
        for (int i = 0; i < 4; ++i) count.v[i] -= as<UnsignedWords>(a.v[i] >= (Floats{} + thresholds[t]));
    return count;
}

// 64 lanes of 0 ... 255 as bytes.
inline void store_bytes(std::uint8_t *p, const I (&a)[4]) {
    for (int i = 0; i < 4; ++i) store_low_bytes(p + 16 * i, a[i]);
}

// Eight 16-bit numbers without a sign.
struct H {
    std::uint16_t v[8];
};
template <typename Function>
inline H heach(Function f) {
    H out;
    for (int i = 0; i < 8; ++i) out.v[i] = static_cast<std::uint16_t>(f(i));
    return out;
}
inline H hload(const std::uint16_t *p) {
    return heach([&](int i) { return p[i]; });
}
// Four of them; the others are 0.
inline H hload4(const std::uint16_t *p) {
    return heach([&](int i) { return i < 4 ? p[i] : 0; });
}
inline void hstore(std::uint16_t *p, H a) { std::memcpy(p, a.v, 16); }
inline H hset1(int x) {
    return heach([&](int) { return x; });
}
inline H hadd(H a, H b) {
    return heach([&](int i) { return a.v[i] + b.v[i]; });
}
inline H hsub(H a, H b) {
    return heach([&](int i) { return a.v[i] - b.v[i]; });
}
inline H hmin(H a, H b) {
    return heach([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// Number i becomes number P_i.
template <int P0, int P1, int P2, int P3, int P4, int P5, int P6, int P7>
inline H hpick(H a) {
    return {{a.v[P0], a.v[P1], a.v[P2], a.v[P3], a.v[P4], a.v[P5], a.v[P6], a.v[P7]}};
}
// Bit i: whether numbers i differ.
inline std::uint8_t hdiffers(H a, H b) {
    int bits = 0;
    for (int i = 0; i < 8; ++i) bits |= (a.v[i] != b.v[i]) << i;
    return static_cast<std::uint8_t>(bits);
}

}  // namespace simd
}  // namespace
