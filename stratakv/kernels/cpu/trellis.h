// Trellis codes to table indices (stratakv/kvtypes/trellis.py has the format). The bit x of a value goes through a
// convolutional code along the trellis: z1 = x ^ x1 ^ x3 and z0 = x2, xd being x delayed by d steps.
//
// A step is 8 values back, which is kStep bytes of the plane that holds x: in K's order a shift of a lane's 32 bits
// with the words before them, in V's order a shift by whole lanes. x's plane is called narrow; a wide one, where there
// is one, has kRatio bytes for each byte of it, a stretch of `narrow_bytes` apart. Whole planes are shifted at once, so
// that the trellis costs a few instructions for 64 bytes of a plane.
#pragma once
#include "unpack.h"

namespace {

// x of the values before the first one: those at the plane's end, one value further. In K's order of bytes.
template <int STEP>
inline I turned_k(I x) {
    if constexpr (STEP == 4) return or_(shl32<4>(x), shr32<28>(x));
    if constexpr (STEP == 2) return or_(shl16<2>(x), shr16<14>(x));
    return select(set4(0xfefefefeu), shl16<1>(x), shr16<7>(x));
}

// The same in V's, where a word's bytes are neighbouring lanes.
template <int STEP>
inline I turned_v(I x) {
    if constexpr (STEP == 4) return select(set4(0xf0f0f0f0u), shl16<4>(x), shr16<4>(turn_lanes<4>(x)));
    if constexpr (STEP == 2) return select(set4(0xfcfcfcfcu), shl16<2>(x), shr16<6>(turn_lanes<2>(x)));
    return turned_k<1>(x);
}

// x delayed by `DELAY` steps; words: this one, the one before it, and so on.
template <int STEP, int DELAY, int N>
inline I delayed_k(const I (&words)[N]) {
    constexpr int kWord = STEP * DELAY / 4, kBits = STEP * DELAY % 4 * 8;
    if constexpr (kBits == 0)
        return words[kWord];
    else
        return funnel<kBits>(words[kWord], words[kWord + 1]);
}

// The narrow plane's share of indices, for 8 / kStep values a byte: two vectors, for even and for odd fields of it.
struct Narrow {
    I even, odd;
};

template <Codes C>
inline Narrow narrow_part(I x, I x1, I x2, I x3) {
    constexpr int kStep = Trellis<C>::kStep;
    if constexpr (kStep == 1) {  // z0 and z1 side by side
        const I z1 = xor3(x, x1, x3);
        return {select(set4(0x55555555u), x2, shl16<1>(z1)), select(set4(0x55555555u), shr16<1>(x2), z1)};
    } else {
        const I code = flip(x, xor_(x1, x3), set4(Trellis<C>::kX));  // z1 in x's place
        if constexpr (kStep == 4) return {code, x2};
        // z1, the bit above it and z0 in each nibble
        return {select(set4(0x33333333u), code, shl16<2>(x2)), select(set4(0x33333333u), shr16<2>(code), x2)};
    }
}

// Indices of the values of one base word or unit: wide: its bytes, the `turn`-th of kRatio that belong to the narrow
// plane's; without a wide plane it isn't looked at.
template <Codes C>
inline void indices_of(const Narrow &narrow, int turn, I wide, I (&index)[Packing<C>::kSub]) {
    const I low = set4(0x0f0f0f0fu);
    const I part = turn % 2 ? narrow.odd : narrow.even;
    if constexpr (C == Codes::trellis_pair) {
        index[0] = narrow.even, index[2] = shr16<4>(narrow.even);
        index[1] = narrow.odd, index[3] = shr16<4>(narrow.odd);
    } else if constexpr (C == Codes::trellis_nibble) {
        index[0] = select(low, narrow.even, shl16<4>(narrow.odd));
        index[1] = select(low, shr16<4>(narrow.even), narrow.odd);
    } else if constexpr (C == Codes::trellis_pair_1) {
        const I even = select(set4(0x33333333u), wide, shl16<2>(part)),
                odd = select(set4(0x33333333u), shr16<2>(wide), part);
        index[0] = even, index[2] = shr16<4>(even);
        index[1] = odd, index[3] = shr16<4>(odd);
    } else if (C == Codes::trellis_nibble_1 && turn >= 2) {
        index[0] = select(low, wide, shl16<2>(part));
        index[1] = select(low, shr16<4>(wide), shr16<2>(part));
    } else {
        index[0] = select(low, wide, shl16<4>(part));
        index[1] = select(low, shr16<4>(wide), part);
    }
}

// Calls use(index vector, its number modulo 4 or more) for all values of one block of 16 tokens of K, words in the
// order of word_of. base, high: the block's planes.
template <Codes C, typename Use>
[[gnu::always_inline]] inline void trellis_k(const std::uint8_t *base, const std::uint8_t *high, int words,
                                             std::ptrdiff_t ahead, Use use) {
    using T = Trellis<C>;
    constexpr int kSub = Packing<C>::kSub, kPast = 1 + (3 * T::kStep + 3) / 4;
    const std::uint8_t *narrow = T::kWide ? high : base;
    const int narrow_words = words / T::kRatio;
    I word[kPast];
#pragma GCC unroll 4
    for (int i = 1; i < kPast; ++i) word[i] = turned_k<T::kStep>(load(narrow + std::size_t(narrow_words - i) * 64));
    for (int w0 = 0; w0 < narrow_words; w0 += 2)
#pragma GCC unroll 2
        for (int step = 0; step < 2; ++step) {
            const int w = w0 + step;
            if (w >= narrow_words) break;
            word[0] = load(narrow + std::size_t(w) * 64);
            if (!T::kWide) prefetch(narrow + std::size_t(w) * 64 + ahead);
            const Narrow part = narrow_part<C>(word[0], delayed_k<T::kStep, 1>(word), delayed_k<T::kStep, 2>(word),
                                               delayed_k<T::kStep, 3>(word));
#pragma GCC unroll 4
            for (int turn = 0; turn < T::kRatio; ++turn) {
                I wide = word[0], index[kSub];
                if constexpr (T::kWide) {
                    const std::uint8_t *at = base + std::size_t(w + turn * narrow_words) * 64;
                    wide = load(at);
                    prefetch(at + ahead);
                }
                indices_of<C>(part, turn, wide, index);
#pragma GCC unroll 4
                for (int sub = 0; sub < kSub; ++sub) use(index[sub], step * kSub + sub);
            }
#pragma GCC unroll 4
            for (int i = kPast - 1; i > 0; --i) word[i] = word[i - 1];
        }
}

// One block of 4 tokens of V as bytes, codes[4 * (sub * base_bytes + byte) + token]; 64 bytes behind them are written
// too. base, high: the block's planes, base_bytes and high_bytes: of one token.
template <Codes C, typename Entries>
inline void trellis_v(const std::uint8_t *base, const std::uint8_t *high, int base_bytes, const Entries &entries,
                      std::uint8_t *codes) {
    using T = Trellis<C>;
    constexpr int kSub = Packing<C>::kSub, kStep = T::kStep;
    const std::uint8_t *narrow = T::kWide ? high : base;
    const int narrow_bytes = base_bytes / T::kRatio, last = (narrow_bytes - 1) / 16;
    // what is stored beyond a stretch's end is the next one's, which comes later
    for (int unit = last; unit >= 0; --unit) {
        const std::uint8_t *at = narrow + std::size_t(unit) * 64;
        const I x = load(at);
        I x1, x2, x3;
        if (unit == 0) {
            // the plane's last 16 bytes; where it has fewer, what lies before them in the page isn't used
            const I before = turned_v<kStep>(load(at + (narrow_bytes - 16) * 4));
            x1 = shift_lanes<kStep>(x, before), x2 = shift_lanes<2 * kStep>(x, before),
            x3 = shift_lanes<3 * kStep>(x, before);
        } else {
            x1 = load(at - 4 * kStep), x2 = load(at - 8 * kStep), x3 = load(at - 12 * kStep);
        }
        const Narrow part = narrow_part<C>(x, x1, x2, x3);
        I index[T::kRatio][kSub];
#pragma GCC unroll 4
        for (int turn = 0; turn < T::kRatio; ++turn) {
            I wide = x;
            if constexpr (T::kWide) wide = load(base + std::size_t(turn * narrow_bytes + unit * 16) * 4);
            indices_of<C>(part, turn, wide, index[turn]);
        }
#pragma GCC unroll 4
        for (int sub = 0; sub < kSub; ++sub)
#pragma GCC unroll 4
            for (int turn = 0; turn < T::kRatio; ++turn)
                store(codes + std::size_t(sub * base_bytes + turn * narrow_bytes + unit * 16) * 4,
                      lookup<Packing<C>::kIndexBits>(index[turn][sub], entries));
    }
}

}  // namespace
