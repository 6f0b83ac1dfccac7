// Decoding, once for all instruction sets: pages of one (sequence, kv head), tile by tile, a running softmax.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "prompt_body.h"
#include "softmax.h"
#include "tile_integer.h"
#include "tile_rows.h"

namespace {

using stratakv::Softmaxes;

struct Work {
    int q_tokens, rows, k_stride, lanes;  // lanes: floats of one output row in unit order
    float *q;                // [rows][k_stride], row path
    IntegerQuery integer;    // integer path
    float *scores;           // [rows][kPageTokens], then the weights
    IntegerWeights weights;
    float *scales, *minima;  // [v.blocks][kPageTokens]: V's of the tile
    float factor;            // of raw scores, in the softmax: maximum is in units of these
    float *out;              // [rows][lanes]
    float *minimum;          // [rows][v.blocks]: sum of weights * minimum
    float *maximum, *sum;    // [rows]
    const std::int32_t *dims;  // [lanes]: which value a lane of the integer path is, -1: none
    std::uint8_t *codes;     // trellis V: a block of the tile, unpacked
    float *buffer;           // some decoded rows
};

inline Work prepare(const Attention &a, int sequence, int head, Scratch &scratch) {
    Work w{};
    const Side &k = a.k, &v = a.v;
    w.q_tokens = a.q_tokens(sequence);
    w.rows = a.groups * w.q_tokens;
    w.k_stride = (k.dim + 15) / 16 * 16;
    const bool k_integer = k.vectors, v_integer = v.vectors;
    const bool trellis = v_integer && is_trellis(v.codes);
    w.lanes = v_integer ? lanes_of(v) : (v.dim + 15) / 16 * 16;
    w.integer.rows = w.weights.rows = w.rows;
    w.integer.words_per_row = k_integer ? k.base_bytes / 4 * subs(k.codes) : 0;
    const std::size_t rows = w.rows;
    w.factor = premultiplied(a) ? 1.0f : a.scale;
    const std::size_t blocks = v.blocks;
    scratch.lay({
        {w.q, rows * w.k_stride},
        {w.integer.words, rows * 2 * w.integer.words_per_row},
        {w.integer.scale, rows},
        {w.integer.sums, rows * k.blocks},
        {w.scores, rows * kPageTokens},
        {w.weights.bytes, rows * blocks * kPlanes * kPageTokens},
        {w.weights.step, rows * blocks},
        {w.weights.sums, rows * blocks},
        {w.scales, blocks * kPageTokens},
        {w.minima, blocks * kPageTokens},
        {w.minimum, rows * blocks},
        {w.out, rows * w.lanes},
        {w.maximum, rows},
        {w.sum, rows},
        {w.codes, trellis ? std::size_t(v.dim / v.blocks) * kPageTokens + 64 : 0},
        {w.buffer, static_cast<std::size_t>(std::max(w.k_stride, (v.dim + 15) / 16 * 16)) * kRowTokens},
    });
    if (v_integer) with_codes(v.codes, [&](auto c) { w.dims = lane_dims<decltype(c)::value>(v, w.lanes); });
    std::memset(w.q, 0, rows * w.k_stride * sizeof(float));
    for (int r = 0; r < w.rows; ++r) {
        float *q = w.q + std::size_t(r) * w.k_stride;
        read_row(a.query, a.query_start[sequence] + r % w.q_tokens, head * a.groups + r / w.q_tokens, k.dim, q);
        rotate(a.query_rotation, q, k.dim);
        if (k_integer) with_codes(k.codes, [&](auto c) { prepare_query<decltype(c)::value>(k, q, r, w.integer); });
    }
    return w;
}

// Nothing is seen yet.
inline void begin_softmax(const Side &v, const Work &w) {
    const std::size_t rows = w.rows;
    std::fill(w.maximum, w.maximum + rows, kMinusInfinity);
    std::fill(w.sum, w.sum + rows, 0.0f);
    std::fill(w.out, w.out + rows * w.lanes, 0.0f);
    std::fill(w.minimum, w.minimum + rows * v.blocks, 0.0f);
}

// From scores to weights of one row, [kPageTokens] in place; the running maximum and sum move on. False: nothing to
// see.
inline bool soften(const Attention &a, Work &w, int r, int first, int last) {
    float *scores = w.scores + std::size_t(r) * kPageTokens;
    const int blocks = a.v.blocks;
    first = std::clamp(first, 0, kPageTokens), last = std::clamp(last, 0, kPageTokens);
    if (first >= last) {
        std::fill(scores, scores + kPageTokens, 0.0f);
        return false;
    }
    if (premultiplied(a))
        for (int t = 0; t < kPageTokens; ++t) {
            const float score = scores[t] * a.scale;
            scores[t] = a.softcap > 0 && t >= first && t < last ? a.softcap * std::tanh(score / a.softcap) : score;
        }
    const bool whole = first == 0 && last == kPageTokens;
    if (!whole) {
        std::fill(scores, scores + first, kMinusInfinity);
        std::fill(scores + last, scores + kPageTokens, kMinusInfinity);
    }
    F top = fload(scores);
    for (int t = 16; t < kPageTokens; t += 16) top = fmax(top, fload(scores + t));
    const float tile_top = hmax(top), log2 = w.factor * 1.44269504f;
    if (tile_top > w.maximum[r]) {
        const float shrink = std::exp2((w.maximum[r] - tile_top) * log2);
        w.maximum[r] = tile_top;
        w.sum[r] *= shrink;
        float *out = w.out + std::size_t(r) * w.lanes;
        for (int i = 0; i < w.lanes; i += 16) fstore(out + i, fmul(fload(out + i), fset1(shrink)));
        for (int b = 0; b < blocks; ++b) w.minimum[r * blocks + b] *= shrink;
    }
    const F maximum = fset1(w.maximum[r]), factor = fset1(log2);
    F sum = fzero();
#pragma GCC unroll 8
    for (int t = 0; t < kPageTokens; t += 16) {
        const F weight = exp2_negative(fmul(fsub(fload(scores + t), maximum), factor));
        fstore(scores + t, weight);
        sum = fadd(sum, weight);
    }
    if (!whole) {
        // 2^-126 is not 0: tokens out of sight must weigh nothing at all
        std::fill(scores, scores + first, 0.0f);
        std::fill(scores + last, scores + kPageTokens, 0.0f);
        sum = fzero();
        for (int t = 0; t < kPageTokens; t += 16) sum = fadd(sum, fload(scores + t));
    }
    w.sum[r] += hsum(sum);
    return true;
}

// V's scales (and minima) of a tile as floats. Pages hold anything outside of [first, last): that must not be read as a
// number.
inline void read_scales(const Side &v, const std::uint8_t *tile, int first, int last, const Work &w) {
    const auto read = [&](std::int64_t offset, float *out) {
        for (int b = 0; b < v.blocks; ++b, out += kPageTokens) {
            const std::uint8_t *halves = tile + offset + std::size_t(b) * kPageTokens * 2;
            for (int t = 0; t < kPageTokens; t += 16) fstore(out + t, fload_f16(halves + t * 2));
            if (first > 0) std::fill(out, out + first, 0.0f);
            if (last < kPageTokens) std::fill(out + last, out + kPageTokens, 0.0f);
        }
    };
    read(v.scale, w.scales);
    if (v.has_minimum) read(v.minimum, w.minima);
}

// Rounds the weights of all rows times V's scales; returns how. whole: all tokens of the tile are seen; where few are,
// nothing is gained by rounding more.
inline Rounding round_weights(const Attention &a, const Work &w, bool whole) {
    const int blocks = a.v.blocks, count = w.rows * blocks;
    const auto weights = [&](int i) { return w.scores + std::size_t(i / blocks) * kPageTokens; };
    const auto scales = [&](int i) { return w.scales + std::size_t(i % blocks) * kPageTokens; };
    const auto bytes = [&](int i) { return w.weights.of(i % blocks, i / blocks); };
    if (a.v.has_minimum)
        for (int i = 0; i < count; ++i) {
            const float *minima = w.minima + std::size_t(i % blocks) * kPageTokens;
            F extra = fzero();
            for (int t = 0; t < kPageTokens; t += 16) extra = fma(fload(weights(i) + t), fload(minima + t), extra);
            w.minimum[i] += hsum(extra);
        }
    if (whole && bears_one_plane(a.v)) {
        int i = 0;
        while (i < count && round_to_one_plane(weights(i), scales(i), bytes(i), w.weights.step + i)) ++i;
        if (i == count) return Rounding::one_plane;
    }
    const Rounding rounding = a.v.signed_scale ? Rounding::negative_too : Rounding::two_planes;
    for (int i = 0; i < count; ++i)
        round_to_two_planes(weights(i), scales(i), rounding, bytes(i), w.weights.step + i, w.weights.sums + i);
    return rounding;
}

// What the loops over codes and floats don't ask for: scales.
inline void prefetch_rest(const Attention &a, const std::uint8_t *next) {
    auto region = [&](std::int64_t offset, std::int64_t bytes) {
        for (std::int64_t i = 0; i < bytes; i += 64) prefetch(next + offset + i);
    };
    for (const Side *side : {&a.k, &a.v}) {
        if (side->codes < Codes::byte) continue;
        region(side->scale, std::int64_t(side->blocks) * kPageTokens * 2);
        if (side->has_minimum) region(side->minimum, std::int64_t(side->blocks) * kPageTokens * 2);
    }
}

inline void finish(const Attention &a, const Work &w, const Partial &partial) {
    const Side &v = a.v;
    const bool integer = v.vectors;
    const int block_dim = v.dim / v.blocks;
    for (int r = 0; r < w.rows; ++r) {
        const float *lanes = w.out + std::size_t(r) * w.lanes;
        float *out = partial.out + std::size_t(r) * v.dim;
        partial.maximum[r] = w.maximum[r] * w.factor;
        partial.sum[r] = w.sum[r];
        if (!integer) {
            std::memcpy(out, lanes, sizeof(float) * v.dim);
            continue;
        }
        for (int lane = 0; lane < w.lanes; ++lane)
            if (const int d = w.dims[lane]; d >= 0) out[d] = lanes[lane];
        if (v.has_minimum)
            for (int d = 0; d < v.dim; ++d) out[d] += w.minimum[r * v.blocks + d / block_dim];
    }
}

const char *run(const Attention &a, int sequence, int head, std::int64_t page_begin, std::int64_t page_end,
                std::int64_t unit, const Partial *partial) {
    if (a.precise) {
        run_prompt(a, sequence, head, page_begin, page_end, unit, partial);
        return simd::kName;
    }
    thread_local Scratch scratch;
    Work w = prepare(a, sequence, head, scratch);
    const bool k_integer = a.k.vectors, v_integer = a.v.vectors;
    const std::int64_t *pages = a.pages + a.page_start[sequence];
    const std::int32_t *firsts = a.first + a.query_start[sequence], *lasts = a.last + a.query_start[sequence];
    const int lowest = *std::min_element(firsts, firsts + w.q_tokens),
              highest = *std::max_element(lasts, lasts + w.q_tokens);
    const std::int64_t begin = std::max<std::int64_t>(page_begin, lowest / kPageTokens);
    const std::int64_t end = std::min<std::int64_t>(page_end, (std::int64_t(highest) + kPageTokens - 1) / kPageTokens);
    begin_softmax(a.v, w);
    std::int64_t unit_end = page_begin + unit;
    for (std::int64_t page = begin; page < end; ++page) {
        for (; page >= unit_end; unit_end += unit) finish(a, w, *partial++), begin_softmax(a.v, w);
        const std::uint8_t *tile = a.where.at(pages[page]) + head * a.tile_bytes;
        const std::uint8_t *next = tile;
        if (page + 1 < end) {
            next = a.where.at(pages[page + 1]) + head * a.tile_bytes;
            prefetch_rest(a, next);
        }
        const std::ptrdiff_t ahead = next - tile;
        const int origin = static_cast<int>(page * kPageTokens);
        const int first = std::max(lowest - origin, 0), last = std::min(highest - origin, kPageTokens);
        if (k_integer)
            with_codes(a.k.codes,
                       [&](auto c) { all_scores<decltype(c)::value>(a.k, tile, w.integer, w.rows, w.scores, ahead); });
        else
            row_scores(a.k, tile, w.q, w.k_stride, w.rows, first, last, w.scores, w.buffer, ahead);
        bool seen = false;
        for (int r = 0; r < w.rows; ++r) {
            const int t = r % w.q_tokens;
            seen |= soften(a, w, r, firsts[t] - origin, lasts[t] - origin);
        }
        if (!seen) continue;
        if (!v_integer) {
            row_weigh(a.v, tile, w.scores, w.rows, first, last, w.out, w.lanes, w.buffer, ahead);
            continue;
        }
        read_scales(a.v, tile, first, last, w);
        const Rounding rounding = round_weights(a, w, first == 0 && last == kPageTokens);
        with_codes(a.v.codes, [&](auto c) {
            constexpr Codes kCodes = decltype(c)::value;
            const auto weighed = [&](auto rounding) {
                constexpr Rounding kRounding = decltype(rounding)::value;
                if constexpr (is_trellis(kCodes))
                    all_weighed_trellis<kCodes, kRounding>(a.v, tile, w.weights, w.rows, w.out, w.lanes, ahead,
                                                           w.codes);
                else
                    all_weighed<kCodes, kRounding>(a.v, tile, w.weights, w.rows, w.out, w.lanes, ahead);
            };
            if constexpr (kCodes == Codes::halves || kCodes == Codes::halves_1)
                if (rounding == Rounding::negative_too)
                    return weighed(std::integral_constant<Rounding, Rounding::negative_too>());
            if constexpr (kWeightBits == 8 && coarse(kCodes))
                if (rounding == Rounding::one_plane)
                    return weighed(std::integral_constant<Rounding, Rounding::one_plane>());
            weighed(std::integral_constant<Rounding, Rounding::two_planes>());
        });
    }
    for (; unit_end < page_end; unit_end += unit) finish(a, w, *partial++), begin_softmax(a.v, w);
    finish(a, w, *partial);
    scratch.check();
    return simd::kName;
}

void merge(int sequence, int head, const Softmaxes *kinds, int count, bool one_basis) {
    const Attention &a = *kinds[0].of;
    const int q_tokens = a.q_tokens(sequence), rows = a.groups * q_tokens, dim = a.v.dim;
    alignas(64) float out[kMaxDim + 16], other[kMaxDim + 16];
    for (int r = 0; r < rows; ++r) {
        const int q_head = head * a.groups + r / q_tokens;
        float maximum = a.sinks ? a.sinks[q_head] : kMinusInfinity;
        for (const Softmaxes *kind = kinds; kind < kinds + count; ++kind)
            for (int p = 0; p < kind->count; ++p) maximum = std::max(maximum, kind->parts[p].maximum[r]);
        float sum = a.sinks ? std::exp(a.sinks[q_head] - maximum) : 0.0f;
        const auto add = [&](const Softmaxes &kind, float *to) {
            for (int p = 0; p < kind.count; ++p) {
                if (!(kind.parts[p].sum[r] > 0)) continue;  // saw no token
                const float weight = std::exp(kind.parts[p].maximum[r] - maximum);
                sum += weight * kind.parts[p].sum[r];
                const float *from = kind.parts[p].out + std::size_t(r) * dim;
                for (int d = 0; d < dim; ++d) to[d] += weight * from[d];
            }
        };
        std::memset(out, 0, sizeof(float) * dim);
        add(kinds[0], out);
        for (int i = 1; i < count; ++i) {
            if (one_basis) {
                add(kinds[i], out);
                continue;
            }
            std::memset(other, 0, sizeof(float) * dim);
            add(kinds[i], other);
            if (i == 1) rotate(a.out_rotation, out, dim);
            rotate(kinds[i].of->out_rotation, other, dim);
            for (int d = 0; d < dim; ++d) out[d] += other[d];
        }
        const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
        for (int d = 0; d < dim; ++d) out[d] *= inverse;
        if (count == 1 || one_basis) rotate(a.out_rotation, out, dim);
        const std::int64_t token = a.query_start[sequence] + r % q_tokens;
        write_row(a.out, token, q_head, dim, out);
        if (a.lse) a.lse[token * a.kv_heads * a.groups + q_head] = sum > 0 ? maximum + std::log(sum) : kMinusInfinity;
    }
}

void rotate_rows(const Rotation &rotation, float *rows, int count, int dim) {
    for (int i = 0; i < count; ++i) rotate(&rotation, rows + std::size_t(i) * dim, dim);
}

}  // namespace
