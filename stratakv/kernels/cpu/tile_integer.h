// Integer arithmetic on one tile: scores of K's codes, weighted sums of V's codes. Exact in the codes; the query is
// rounded to 15 bits, softmax weights to 16 (14 where the instructions only take 7 at a time), or to 8 where that is
// enough.
#pragma once
#include <cmath>
#include <cstring>

#include "trellis.h"
#include "vectors.h"

namespace {

using stratakv::kPageTokens;

// Rows (queries of one kv head) that share an unpacked vector; more would spill registers.
constexpr int kRows = 8;

// Rows are taken in runs of 8, 4, 2 and 1: the one that a row is in.
struct Run {
    int first, rows;
};
inline Run run_of(int row, int rows) {
    Run run{0, kRows};
    while (true) {
        while (run.first + run.rows > rows) run.rows /= 2;
        if (row < run.first + run.rows) return run;
        run.first += run.rows;
    }
}

// Queries in the order of use, so that one pointer walks along them: for each run [word][row of the run][plane], a word
// being 4 bytes that are multiplied at once; and what it takes to scale back.
struct IntegerQuery {
    std::int32_t *words;   // [rows * words_per_row * 2]
    float *scale;          // [rows]
    std::int32_t *sums;    // [rows][blocks]: sum of the rounded query over a block's dims
    int words_per_row;     // base_bytes / 4 * kSub
    int rows;
};

// q: [dim] of one row, zero up to a multiple of 16. Rounded to 15 bits: high * 128 + low, high and low signed bytes.
template <Codes C>
void prepare_query(const Side &side, const float *q, int row, const IntegerQuery &out) {
    constexpr int kSub = Packing<C>::kSub;
    F top = fzero();
    for (int d = 0; d < side.dim; d += 16) top = fmax(top, fmax(fload(q + d), fsub(fzero(), fload(q + d))));
    const float largest = hmax(top);
    // 16256 = 127 * 128; a query so small that 1 / step overflows scores 0 anyway
    const float step = largest > 1e-30f ? largest / 16256.0f : 1.0f;
    out.scale[row] = step;
    alignas(64) std::int32_t values[kMaxDim];
    alignas(64) std::int8_t up[kMaxDim], low[kMaxDim];
    for (int d = 0; d < side.dim; d += 16) store(values + d, to_int(fdiv(fload(q + d), fset1(step))));
    for (int d = 0; d < side.dim; ++d) {
        const int high = (values[d] + 64) >> 7;
        up[d] = static_cast<std::int8_t>(high), low[d] = static_cast<std::int8_t>(values[d] - high * 128);
    }
    const int block_dim = side.dim / side.blocks, stretch = stretch_of(side);
    for (int block = 0; block < side.blocks; ++block) {
        std::int32_t sum = 0;
        for (int d = block * block_dim; d < (block + 1) * block_dim; ++d) sum += values[d];
        out.sums[row * side.blocks + block] = sum;
    }
    const Run run = run_of(row, out.rows);
    std::int8_t *bytes = reinterpret_cast<std::int8_t *>(out.words + std::size_t(run.first) * 2 * out.words_per_row);
    bytes += (row - run.first) * 8;
    for (int word = 0; word < side.base_bytes / 4; ++word)
        for (int sub = 0; sub < kSub; ++sub) {
            std::int8_t *at = bytes + std::size_t(word_of<C>(word, stretch / 4) * kSub + sub) * run.rows * 8;
            for (int i = 0; i < 4; ++i) {
                const int d = dim_of<C>(4 * word + i, sub, stretch);
                at[i] = up[d], at[4 + i] = low[d];
            }
        }
}

// Scores of R rows for the tile's 128 tokens, out[r * kPageTokens + token] = q . k.
template <Codes C, int R>
void scores_of(const Side &side, const std::uint8_t *tile, const IntegerQuery &query, int row, float *out,
               std::ptrdiff_t ahead) {
    constexpr int kSub = Packing<C>::kSub;
    // A single row has too few sums to keep the multipliers busy: its products go to several.
    constexpr int kSplit = R == 1 ? 4 : R == 2 ? 2 : 1;
    const auto entries = entries_of<C>(side, kCodeOffset);
    const int words = side.base_bytes / 4, per_block = words / side.blocks;
    const std::int32_t *rows = query.words + std::size_t(row) * 2 * query.words_per_row;
    for (int group = 0; group < kPageTokens / 16; ++group) {
        const std::uint8_t *base = tile + side.base + std::size_t(group) * side.base_bytes * 16;
        const std::uint8_t *high = tile + side.high + std::size_t(group) * side.high_bytes * 16;
        for (int i = 0; i < side.high_bytes * 16; i += 64) prefetch(high + i + ahead);
        F score[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) score[r] = fzero();
        for (int block = 0; block < side.blocks; ++block) {
            I sum[R][2][kSplit];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int s = 0; s < kSplit; ++s) sum[r][0][s] = sum[r][1][s] = zero();
            // codes times words of the query at `q`, added to the sums' part `slot`
            const auto multiply = [&](I codes, const std::int32_t *q, int slot) __attribute__((always_inline)) {
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
                    for (int p = 0; p < 2; ++p) {
                        I &at = sum[r][p][slot % kSplit];
                        at = dot_codes(at, codes, broadcast(q + 2 * r + p));
                    }
            };
            const std::int32_t *q = rows + std::size_t(block) * per_block * kSub * R * 2;
            if constexpr (is_trellis(C)) {
                trellis_k<C>(base + std::size_t(block) * per_block * 64,
                             high + std::size_t(block) * (side.high_bytes / side.blocks) * 16, per_block, ahead,
                             [&](I index, int slot) __attribute__((always_inline)) {
                                 multiply(lookup<Packing<C>::kIndexBits>(index, entries), q, slot);
                                 q += R * 2;
                             });
            } else {
                for (int w0 = block * per_block; w0 < (block + 1) * per_block; w0 += 2) {
#pragma GCC unroll 2
                    for (int step = 0; step < 2; ++step) {
                        const int w = w0 + step;
                        if (w >= (block + 1) * per_block) break;
                        const I unit = load(base + std::size_t(w) * 64);
                        prefetch(base + std::size_t(w) * 64 + ahead);
#pragma GCC unroll 4
                        for (int sub = 0; sub < kSub; ++sub) {
                            I codes;
                            if constexpr (Packing<C>::kBase == 8) {
                                constexpr bool kShift = (C == Codes::byte_index) != (kCodeOffset == 128);
                                codes = kShift ? xor_(unit, set4(0x80808080u)) : unit;
                            } else {
                                I index = base_part<C>(unit, sub);
                                if constexpr (kHasHigh<C>) index = join_k<C>(index, high_k<C>(high, w, sub));
                                codes = lookup<Packing<C>::kIndexBits>(index, entries);
                            }
                            multiply(codes, q + sub * R * 2, step * kSub + sub);
                        }
                        q += kSub * R * 2;
                    }
                }
            }
            const F scale = fload_f16(tile + side.scale + (std::size_t(block) * kPageTokens + group * 16) * 2);
            F minimum = fzero();
            if (side.has_minimum)
                minimum = fload_f16(tile + side.minimum + (std::size_t(block) * kPageTokens + group * 16) * 2);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                I up = sum[r][0][0], low = sum[r][1][0];
                for (int s = 1; s < kSplit; ++s) up = add(up, sum[r][0][s]), low = add(low, sum[r][1][s]);
                const float step = query.scale[row + r];
                const std::int32_t total = query.sums[(row + r) * side.blocks + block];
                const I dot = sub(add(shl32<7>(up), low), set1(kCodeOffset * total));
                score[r] = fma(fmul(to_float(dot), fset1(step * side.unit)), scale, score[r]);
                if (side.has_minimum) score[r] = fma(minimum, fset1(step * static_cast<float>(total)), score[r]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) fstore(out + r * kPageTokens + group * 16, score[r]);
    }
}

// Weights are rounded to two planes of bytes, low and high; to one where the tile's weights bear it (see
// round_to_one_plane), which halves V's products. Where scales may be negative (q4_0, q5_0) the planes are signed, as
// the query's are.
enum class Rounding { one_plane, two_planes, negative_too };
constexpr int kPlanes = 2;  // at most
constexpr int planes_of(Rounding w) { return w == Rounding::one_plane ? 1 : 2; }

// What one plane may cost: the share of the output's length (V's directions being random), and of the sum of weights.
constexpr float kOnePlaneError = 0.0075f;

// Whether a type's own error is ten times that of one plane of weights: 4 bits and less. 7 bits would err twice as
// much.
constexpr bool coarse(Codes c) {
    return c == Codes::nibble || c == Codes::pair || c == Codes::pair_1 || c == Codes::halves ||
           c == Codes::trellis_pair || c == Codes::trellis_pair_1 || c == Codes::trellis_nibble;
}
inline bool bears_one_plane(const Side &v) { return coarse(v.codes) && !v.signed_scale && kWeightBits == 8; }

// Softmax weights of one row times V's scales, rounded for one block: bytes[plane][token] and the step of the lowest
// bit.
struct IntegerWeights {
    std::uint8_t *bytes;  // [blocks][rows][kPlanes][kPageTokens]
    float *step;          // [rows][blocks]
    std::int32_t *sums;   // [rows][blocks]: sum of the rounded weights
    int rows;

    std::uint8_t *of(int block, int row) const {
        return bytes + (std::size_t(block) * rows + row) * kPlanes * kPageTokens;
    }
};

constexpr int kVectors = kPageTokens / 16;

// weights, scales: [kPageTokens], neither negative. False: one plane is too coarse for these weights, a few of which
// outweigh the many; bytes and step are of no use then.
inline bool round_to_one_plane(const float *weights, const float *scales, std::uint8_t *bytes, float *step) {
    F x[kVectors], largest = fzero();
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i)
        x[i] = fmul(fload(weights + 16 * i), fload(scales + 16 * i)), largest = fmax(largest, x[i]);
    const float top = hmax(largest);
    *step = top / 255.0f;
    // so far below the maximum that 255 / top overflows: nothing
    const F inverse = fset1(top > 1e-30f ? 255.0f / top : 0.0f);
    F wrong = fzero(), right = fzero(), lost = fzero(), all = fzero();
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; i += 4) {
        I value[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const F exact = fmul(x[i + j], inverse);
            value[j] = to_int(exact);
            const F error = fsub(exact, to_float(value[j]));
            wrong = fma(error, error, wrong), right = fma(exact, exact, right);
            lost = fadd(lost, error), all = fadd(all, exact);
        }
        store_bytes(bytes + 16 * i, value);
    }
    constexpr float kSquare = kOnePlaneError * kOnePlaneError;
    return hsum(fsub(wrong, fmul(right, fset1(kSquare)))) <= 0 && std::fabs(hsum(lost)) <= kOnePlaneError * hsum(all);
}

inline void round_to_two_planes(const float *weights, const float *scales, Rounding rounding, std::uint8_t *bytes,
                                float *step, std::int32_t *sum) {
    F x[kVectors], largest = fzero();
    const bool positive = rounding == Rounding::two_planes;
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
        x[i] = fmul(fload(weights + 16 * i), fload(scales + 16 * i));
        largest = fmax(largest, positive ? x[i] : fmax(x[i], fsub(fzero(), x[i])));
    }
    const float top = hmax(largest);
    constexpr int kTop = (1 << kWeightBits) - 1;
    const float range = positive ? float((kTop << kWeightBits) + kTop) : 16256.0f;  // 127 * 128
    *step = top / range;
    const F inverse = fset1(top > 1e-30f ? range / top : 0.0f);
    F total = fzero();
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; i += 4) {
        I low[4], high[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const I value = to_int(fmul(x[i + j], inverse));
            if (positive) {
                low[j] = and_(value, set1(kTop));
                high[j] = shr32<kWeightBits>(value);
            } else {
                high[j] = sub(shr32<7>(add(value, set1(16384 + 64))), set1(128));
                low[j] = and_(sub(value, shl32<7>(high[j])), set1(255));
                high[j] = and_(high[j], set1(255));
                total = fadd(total, to_float(value));
            }
        }
        store_bytes(bytes + 16 * i, low);
        store_bytes(bytes + kPageTokens + 16 * i, high);
    }
    *sum = positive ? 0 : static_cast<std::int32_t>(hsum(total));
}

// What is asked for while a unit of a group of 4 tokens is read.
struct Next {
    const std::uint8_t *first;
    std::ptrdiff_t group, unit;
};

// Adds weights . V of R rows for U units from `unit` on: out[r][(unit * kSub + sub) * 16 + lane], lanes in unit order.
template <Codes C, int R, int U, Rounding W>
void weigh_units(const Side &side, const std::uint8_t *tile, const IntegerWeights &weights, int row, int unit,
                 int block, float *out, std::size_t out_stride, const Next &next) {
    constexpr int kSub = Packing<C>::kSub, kHighBits = Packing<C>::kIndexBits - Packing<C>::kBase;
    constexpr bool kSigned = W == Rounding::negative_too;
    constexpr int kPlanes = planes_of(W);
    const Table entries = table(side.table, kSigned ? kCodeOffset : 0);
    const std::uint8_t *rows = weights.of(block, row);
    I sum[R][U][kSub][kPlanes];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
            for (int s = 0; s < kSub; ++s)
#pragma GCC unroll 2
                for (int p = 0; p < kPlanes; ++p) sum[r][u][s][p] = zero();
    for (int group = 0; group < kPageTokens / 4; ++group) {
        const std::uint8_t *base = tile + side.base + std::size_t(group) * side.base_bytes * 4 + std::size_t(unit) * 64;
        const std::uint8_t *high = tile + side.high + std::size_t(group) * side.high_bytes * 4;
        I codes[U][kSub];
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
            const I bytes = load(base + u * 64);
            const std::uint8_t *ahead = next.first + group * next.group + (unit + u) * next.unit;
            prefetch(ahead);
            if constexpr (kHasHigh<C>)
                prefetch(ahead + (high - base) + (unit + u) * (64 / Packing<C>::kBase * kHighBits) - u * 64);
#pragma GCC unroll 4
            for (int s = 0; s < kSub; ++s) {
                if constexpr (Packing<C>::kBase == 8) {
                    codes[u][s] = C == Codes::byte_index ? xor_(bytes, set4(0x80808080u)) : bytes;
                } else {
                    I index = base_part<C>(bytes, s);
                    if constexpr (kHasHigh<C>) index = join_v<C>(index, high_v<C>(high, unit + u, s));
                    codes[u][s] = lookup<Packing<C>::kIndexBits>(index, entries);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int p = 0; p < kPlanes; ++p) {
                const I weight = broadcast(rows + (r * ::kPlanes + p) * kPageTokens + group * 4);
#pragma GCC unroll 4
                for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
                    for (int s = 0; s < kSub; ++s) {
                        I &at = sum[r][u][s][p];
                        at = kSigned ? dot_codes(at, codes[u][s], weight) : dot_weights(at, weight, codes[u][s]);
                    }
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const F step = fset1(weights.step[(row + r) * side.blocks + block] * side.unit);
        const std::int32_t sum_of_weights = kSigned ? weights.sums[(row + r) * side.blocks + block] : 0;
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
            for (int s = 0; s < kSub; ++s) {
                I total;
                if constexpr (kPlanes == 1)
                    total = sum[r][u][s][0];
                else if constexpr (kSigned)
                    total = sub(add(shl32<7>(sum[r][u][s][1]), sum[r][u][s][0]), set1(kCodeOffset * sum_of_weights));
                else
                    total = add(shl32<kWeightBits>(sum[r][u][s][1]), sum[r][u][s][0]);
                float *at = out + r * out_stride + (std::size_t(unit + u) * kSub + s) * 16;
                fstore(at, fma(to_float(total), step, fload(at)));
            }
    }
}

// Rows whose sums fit into registers together.
template <Codes C, Rounding W>
constexpr int kWeighRows = 16 / (Packing<C>::kSub * planes_of(W));

// The same for all units of a block, `first` to `first + units`, as many at once as registers hold.
template <Codes C, int R, Rounding W>
void weigh_block(const Side &side, const std::uint8_t *tile, const IntegerWeights &weights, int row, int block,
                 int first, int units, float *out, std::size_t out_stride, const Next &next) {
    constexpr int kFit = 16 / (R * Packing<C>::kSub * planes_of(W));
    constexpr int U = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
    int unit = first;
    for (; unit + U <= first + units; unit += U)
        weigh_units<C, R, U, W>(side, tile, weights, row, unit, block, out, out_stride, next);
    for (; unit < first + units; ++unit)
        weigh_units<C, R, 1, W>(side, tile, weights, row, unit, block, out, out_stride, next);
}

// All rows, in runs of 8, 4, 2 and 1.
template <Codes C>
void all_scores(const Side &side, const std::uint8_t *tile, const IntegerQuery &query, int rows, float *out,
                std::ptrdiff_t ahead) {
    int row = 0;
    for (; row + 8 <= rows; row += 8) scores_of<C, 8>(side, tile, query, row, out + row * kPageTokens, ahead);
    if (row + 4 <= rows) scores_of<C, 4>(side, tile, query, row, out + row * kPageTokens, ahead), row += 4;
    if (row + 2 <= rows) scores_of<C, 2>(side, tile, query, row, out + row * kPageTokens, ahead), row += 2;
    if (row < rows) scores_of<C, 1>(side, tile, query, row, out + row * kPageTokens, ahead);
}

// Calls f(R, row) for runs of R rows whose sums fit into registers together, 8, 4, 2 and 1.
template <Codes C, Rounding W, typename Function>
void for_rows(int rows, Function f) {
    int row = 0;
    if constexpr (kWeighRows<C, W> >= 8)
        for (; row + 8 <= rows; row += 8) f(std::integral_constant<int, 8>(), row);
    if constexpr (kWeighRows<C, W> >= 4)
        for (; row + 4 <= rows; row += 4) f(std::integral_constant<int, 4>(), row);
    if constexpr (kWeighRows<C, W> >= 2)
        for (; row + 2 <= rows; row += 2) f(std::integral_constant<int, 2>(), row);
    for (; row < rows; ++row) f(std::integral_constant<int, 1>(), row);
}

template <Codes C, Rounding W>
void all_weighed(const Side &side, const std::uint8_t *tile, const IntegerWeights &weights, int rows, float *out,
                 std::size_t out_stride, std::ptrdiff_t ahead) {
    const int units = (side.base_bytes / side.blocks + 15) / 16;
    for_rows<C, W>(rows, [&](auto count, int row) {
        // the first run asks for all of it
        const Next next{tile + side.base + (row ? 0 : ahead), side.base_bytes * 4, 64};
        for (int block = 0; block < side.blocks; ++block)
            weigh_block<C, decltype(count)::value, W>(side, tile, weights, row, block, block * units, units,
                                                      out + row * out_stride, out_stride, next);
    });
}

// The same for trellis codes: each block is unpacked once for all rows, to `codes` (128 tokens of a block, and 64
// bytes), and read as bytes. out: [row][block][values of a block, rounded up to 16] in the order of trellis_v.
template <Codes C, Rounding W>
void all_weighed_trellis(const Side &side, const std::uint8_t *tile, const IntegerWeights &weights, int rows,
                         float *out, std::size_t out_stride, std::ptrdiff_t ahead, std::uint8_t *codes) {
    const auto entries = entries_of<C>(side, 0);
    const int base_bytes = side.base_bytes / side.blocks, high_bytes = side.high_bytes / side.blocks;
    Side bytes = side;  // of one block, as bytes
    bytes.base = bytes.high = bytes.high_bytes = 0, bytes.base_bytes = side.dim / side.blocks;
    const int units = (bytes.base_bytes + 15) / 16;
    // the next tile's V, both planes, evenly over all units
    const int groups = kPageTokens / 4, share = (side.base_bytes + side.high_bytes) * 4 / (side.blocks * units);
    for (int block = 0; block < side.blocks; ++block) {
        for (int group = 0; group < kPageTokens / 4; ++group)
            trellis_v<C>(tile + side.base + std::size_t(group * side.blocks + block) * base_bytes * 4,
                         tile + side.high + std::size_t(group * side.blocks + block) * high_bytes * 4, base_bytes,
                         entries, codes + std::size_t(group) * bytes.base_bytes * 4);
        for_rows<Codes::byte, W>(rows, [&](auto count, int row) {
            const Next next{tile + side.base + (row ? 0 : ahead + block * units * groups * share), row ? 0 : share,
                            row ? 0 : groups * share};
            weigh_block<Codes::byte, decltype(count)::value, W>(bytes, codes, weights, row, block, 0, units,
                                                                out + row * out_stride + block * units * 16, out_stride,
                                                                next);
        });
    }
}

}  // namespace
