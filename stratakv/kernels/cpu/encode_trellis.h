// The trellis types' codes: Viterbi's algorithm over 8 states, as kvtypes/viterbi.py has it to the bit. Costs are
// 16-bit integers, the states of one block lie side by side in a vector of 8 lanes, and V blocks go side by side so
// that none waits for its own last step.
#pragma once
#include "encode_norm.h"

namespace {

constexpr int kSeam = Encoder::kSeam;
// Costs differ between states by what 3 steps can cost at most; taken off every 8 steps, all stay within 16 bits.
constexpr int kSpread = 3 * 4095 + 1;

// x(i), x(i - 1), x(i - 2), x(i - 3) in bits 0 to 3 -> 2 z1 + z0
constexpr int subset_of(int bits) { return 2 * ((bits ^ bits >> 1 ^ bits >> 3) & 1) + (bits >> 2 & 1); }
constexpr std::uint32_t subsets_of_all() {
    std::uint32_t all = 0;
    for (int bits = 0; bits < 16; ++bits) all |= std::uint32_t(subset_of(bits)) << 2 * bits;
    return all;
}
constexpr std::uint32_t kSubsets = subsets_of_all();

// Steps [begin, end) of the path, a multiple of 8 of them, from costs `states` on. Bit t of a step's decision: whether
// state t was cheaper to reach from the upper of its two states before.
template <int V>
inline void forward(const Encoder &e, const std::uint16_t (*bins)[kMaxDim], int begin, int end, H (&states)[V],
                    std::uint8_t (*decisions)[kMaxDim]) {
    for (int at = begin; at < end; at += 8) {
        for (int step = 0; step < 8; ++step) {
            const int value = e.path[at + step];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const H costs = hload4(e.costs.data() + 4 * bins[v][value]);
                // state t comes from t / 2 and from t / 2 + 4
                const H lower = hadd(hpick<0, 0, 1, 1, 2, 2, 3, 3>(states[v]),
                                     hpick<subset_of(0), subset_of(1), subset_of(2), subset_of(3), subset_of(4),
                                           subset_of(5), subset_of(6), subset_of(7)>(costs));
                const H upper = hadd(hpick<4, 4, 5, 5, 6, 6, 7, 7>(states[v]),
                                     hpick<subset_of(8), subset_of(9), subset_of(10), subset_of(11), subset_of(12),
                                           subset_of(13), subset_of(14), subset_of(15)>(costs));
                states[v] = hmin(lower, upper);
                decisions[v][at - begin + step] = hdiffers(states[v], lower);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            states[v] = hadd(hsub(states[v], hpick<0, 0, 0, 0, 0, 0, 0, 0>(states[v])), hset1(kSpread));
    }
}

// The cheapest way round for the bins of V blocks: what Encoder::nearest says of each value, with x in bit 7.
template <int V>
inline void cheapest(const Encoder &e, const std::uint16_t (*bins)[kMaxDim], int block,
                     std::uint16_t (*found)[kMaxDim]) {
    H states[V];
    std::uint8_t decisions[V][kMaxDim];
    int start[V], state[V];
    for (int v = 0; v < V; ++v) states[v] = hset1(0);
    forward<V>(e, bins, 0, 2 * kSeam, states, decisions);
    for (int v = 0; v < V; ++v) {
        std::uint16_t costs[8];
        hstore(costs, states[v]);
        state[v] = 0;
        for (int t = 1; t < 8; ++t) state[v] = costs[t] < costs[state[v]] ? t : state[v];
    }
    for (int step = 2 * kSeam - 1; step >= kSeam; --step)
        for (int v = 0; v < V; ++v) state[v] = state[v] >> 1 | (decisions[v][step] >> state[v] & 1) << 2;
    for (int v = 0; v < V; ++v) {
        start[v] = state[v];
        std::uint16_t costs[8];
        for (int t = 0; t < 8; ++t) costs[t] = t == start[v] ? 0 : kSpread;
        states[v] = hload(costs);
    }
    forward<V>(e, bins, kSeam, kSeam + block, states, decisions);
    for (int step = block - 1; step >= 0; --step) {
        const int value = e.path[kSeam + step];
        for (int v = 0; v < V; ++v) {
            const int way = state[v] | (decisions[v][step] >> state[v] & 1) << 3;
            const int nearest = e.nearest[4 * bins[v][value] + (kSubsets >> 2 * way & 3)];
            found[v][value] = static_cast<std::uint16_t>(nearest | (way & 1) << 7);
            state[v] = way >> 1;
        }
    }
}

// Coordinates of a unit vector to their bins, halves to even, not a number to the first.
inline void bins_of(const Encoder &e, const float *y, int block, std::uint16_t *bins) {
    constexpr float kHalf = Encoder::kBins / 2;
    constexpr std::uint32_t kPushed = 0x4b400000u;  // 1.5 * 2^23, where floats are whole numbers
    for (int i = 0; i < block; ++i) {
        float bin = y[i] * e.bins;
        bin = bin > -kHalf ? bin : -kHalf;
        bin = (bin < kHalf - 1 ? bin : kHalf - 1) + 12582912.0f;
        std::uint32_t bits;
        std::memcpy(&bits, &bin, 4);
        bins[i] = static_cast<std::uint16_t>(bits - kPushed + Encoder::kBins / 2);
    }
}

// The codes of a block: WIDE bits of the wide plane, in its own order, and those of the narrow (or only) one of NARROW
// bits. Returns the sum of the squares of the levels.
template <int WIDE, int NARROW>
inline int codes_of(const std::uint16_t *found, int block, std::uint8_t *wide, std::uint8_t *narrow) {
    int squares = 0;
    for (int i = 0; i < block; ++i) {
        const int magnitude = found[i] >> 8;
        squares += magnitude * magnitude;
    }
    for (int i = 0; i < block; ++i)
        narrow[i] = static_cast<std::uint8_t>((found[i] >> 7 & 1) | (found[i] & 31) >> WIDE << 1);
    if constexpr (WIDE > 0) {
        constexpr int kApart = WIDE / NARROW;
        const int each = block / kApart;
        for (int part = 0; part < kApart; ++part)
            for (int i = 0; i < each; ++i)
                wide[part * each + i] = static_cast<std::uint8_t>(found[kApart * i + part] & ((1 << WIDE) - 1));
    }
    return squares;
}

// A block's codes after its norm. Returns the sum of the squares of their levels.
template <int WIDE, int NARROW>
inline int put_codes(const std::uint16_t *found, int block, std::uint8_t *out) {
    std::uint8_t wide[kMaxDim], narrow[kMaxDim];
    const int squares = codes_of<WIDE, NARROW>(found, block, wide, narrow);
    if constexpr (WIDE > 0) out = put_plane<WIDE>(wide, block, 0, out);
    put_plane<NARROW>(narrow, block, 0, out);
    return squares;
}

template <int N>
inline float direction_bins(const Encoder &e, const float *x, std::uint16_t *bins) {
    F v[N];
    alignas(64) float y[16 * N];
    const float norm = direction_of<N>(e, x, v);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) fstore(y + 16 * i, v[i]);
    bins_of(e, y, 16 * N, bins);
    return norm;
}

// V vectors side by side -> their canonical bytes.
template <int V>
inline Encoded encode_trellis(const Encoder &e, const float (*x)[kMaxDim], std::uint8_t (*out)[4 * kMaxDim]) {
    const int block = e.dim / e.blocks, bytes = e.nbytes / e.blocks;
    std::uint16_t bins[V][kMaxDim], found[V][kMaxDim];
    float norms[V];
    Encoded states[V] = {};  // good
    for (int first = 0, to = 0; first < e.dim; first += block, to += bytes) {
        for (int v = 0; v < V; ++v) {
            const float *from = x[v] + first;
            if (block == 128) {
                norms[v] = direction_bins<8>(e, from, bins[v]);
            } else if (block == 64) {
                norms[v] = direction_bins<4>(e, from, bins[v]);
            } else {
                alignas(64) float y[kMaxDim];
                norms[v] = direction_of(e, from, block, y);
                bins_of(e, y, block, bins[v]);
            }
            // a sum of squares may be infinite where no value is
            if (!std::isfinite(norms[v]) && !finite(from, block)) states[v] = Encoded::not_finite;
        }
        cheapest<V>(e, bins, block, found);
        for (int v = 0; v < V; ++v) {
            const int squares = e.bits == 2   ? put_codes<0, 2>(found[v], block, out[v] + to + 2)
                                : e.bits == 3 ? put_codes<2, 1>(found[v], block, out[v] + to + 2)
                                : e.bits == 4 ? put_codes<0, 4>(found[v], block, out[v] + to + 2)
                                : e.bits == 5 ? put_codes<4, 1>(found[v], block, out[v] + to + 2)
                                              : put_codes<4, 2>(found[v], block, out[v] + to + 2);
            const float root = std::sqrt(static_cast<float>(squares < 1 ? 1 : squares));
            const Encoded state = put_half(norms[v] / (root * e.unit), out[v] + to);
            if (states[v] == Encoded::good) states[v] = state;
        }
    }
    for (const Encoded state : states)
        if (state != Encoded::good) return state;
    return Encoded::good;
}

}  // namespace
