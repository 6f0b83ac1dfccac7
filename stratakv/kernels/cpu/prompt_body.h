// Many queries at once, in float32: chunks of prompts, and the precise mode. Rows (query tokens times the query heads
// of a kv head) lie side by side in the lanes of vectors, and decoded values of K and V are multiplied with all of
// them. What a lane holds is its row's alone, and blocks of tokens lie where the pages do: a token's sums are the same
// however a prompt was cut.
#pragma once
#include <cmath>
#include <cstdint>

#include "softmax.h"
#include "tile_floats.h"

namespace {

// Below all scores, and far enough above minus infinity for differences.
constexpr float kLowest = -1e30f;

struct PromptWork {
    int q_tokens, rows, width;  // width: rows, rounded up to whole vectors
    bool k_vectors, v_vectors;  // how codes are decoded: whole vectors, or token by token
    int lanes;  // values of an output, in the order of lane_dims or of the vector's, rounded up to 16
    // decoded values: from one token to the next, from one value to the next
    std::size_t k_token, k_value, v_token;
    const std::int32_t *dims;  // [lanes]: which value of V it is, -1: none; null: the vector's own order
    float factor;  // of raw scores, in the softmax
    float *q;  // [k dim][width], in K's stored basis
    float *scores;  // [kBlockTokens][width], then the weights
    float *maximum, *sum, *shrink;  // [width]
    float *out;  // [lanes][width]
    float *buffer;  // K or V of kBlockTokens tokens
    std::uint8_t *codes;  // trellis V: a block of 4 tokens, unpacked
    std::int32_t *first, *last;  // [width]
};

inline PromptWork prepare_prompt(const Attention &a, int sequence, int head, Scratch &scratch) {
    PromptWork w{};
    w.q_tokens = a.q_tokens(sequence), w.rows = a.groups * w.q_tokens, w.width = (w.rows + 15) / 16 * 16;
    const std::size_t width = w.width, k_dim = (a.k.dim + 15) / 16 * 16;
    w.k_vectors = kDecodesVectors && a.k.vectors, w.v_vectors = kDecodesVectors && a.v.vectors;
    w.lanes = w.v_vectors ? lanes_of(a.v) : (a.v.dim + 15) / 16 * 16;
    w.k_token = w.k_vectors ? 1 : k_dim, w.k_value = w.k_vectors ? kBlockTokens : 1, w.v_token = w.lanes;
    if (w.v_vectors) with_codes(a.v.codes, [&](auto c) { w.dims = lane_dims<decltype(c)::value>(a.v, w.lanes); });
    w.factor = premultiplied(a) ? 1.0f : a.scale;
    float *row;
    const std::size_t floats = std::max<std::size_t>(k_dim, w.lanes) * kBlockTokens;
    scratch.lay({
        {w.q, width * k_dim},
        {w.scores, width * kBlockTokens},
        {w.maximum, width},
        {w.sum, width},
        {w.shrink, width},
        {w.out, width * w.lanes},
        {w.buffer, floats},
        {w.codes, w.v_vectors && is_trellis(a.v.codes) ? std::size_t(a.v.dim / a.v.blocks) * 4 + 64 : 0},
        {w.first, width},
        {w.last, width},
        {row, k_dim},
    });
    std::fill(w.q, w.q + width * k_dim, 0.0f);
    std::fill(w.buffer, w.buffer + floats, 0.0f);
    const std::int32_t *firsts = a.first + a.query_start[sequence], *lasts = a.last + a.query_start[sequence];
    for (int r = 0; r < w.width; ++r) {
        const int t = r % w.q_tokens;
        w.first[r] = r < w.rows ? firsts[t] : 0, w.last[r] = r < w.rows ? lasts[t] : 0;
        if (r >= w.rows) continue;
        read_row(a.query, a.query_start[sequence] + t, head * a.groups + r / w.q_tokens, a.k.dim, row);
        rotate(a.query_rotation, row, a.k.dim);
        for (int d = 0; d < a.k.dim; ++d) w.q[d * width + r] = row[d];
    }
    return w;
}

// Nothing is seen yet.
inline void begin_prompt(const PromptWork &w) {
    const std::size_t width = w.width;
    std::fill(w.maximum, w.maximum + width, kLowest);
    std::fill(w.sum, w.sum + width, 0.0f);
    std::fill(w.out, w.out + width * w.lanes, 0.0f);
}

// Scores of 16 V rows and N tokens.
template <int V, int N>
inline void score_block(const float *q, std::size_t width, const float *k, std::size_t token, std::size_t value,
                        int dim, float *scores) {
    F sum[N][V];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[n][v] = fzero();
    for (int d = 0; d < dim; ++d) {
        F x[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) x[v] = fload(q + d * width + v * 16);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const F y = fset1(k[n * token + d * value]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[n][v] = fma(x[v], y, sum[n][v]);
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) fstore(scores + n * width + v * 16, sum[n][v]);
}

// Adds `count` tokens' weights times N values of their V to the outputs of 16 V rows, which shrink before.
template <int V, int N>
inline void weigh_block(const float *weights, std::size_t width, const float *values, std::size_t stride, int count,
                        const float *shrink, float *out) {
    F sum[N][V];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[n][v] = fmul(fload(out + n * width + v * 16), fload(shrink + v * 16));
    for (int t = 0; t < count; ++t) {
        F x[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) x[v] = fload(weights + t * width + v * 16);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const F y = fset1(values[t * stride + n]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[n][v] = fma(x[v], y, sum[n][v]);
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) fstore(out + n * width + v * 16, sum[n][v]);
}

// Calls f(vectors, others, row) for runs of 16 * vectors rows; sums of vectors * others are in registers at once.
template <typename Function>
inline void for_lanes(int width, Function f) {
    int row = 0;
    if constexpr (kSums >= 16)
        for (; row + 64 <= width; row += 64) f(std::integral_constant<int, 4>(), std::integral_constant<int, 4>(), row);
    constexpr int kTwo = std::min(kSums / 2, 8), kOne = std::min(kSums, 8);
    for (; row + 32 <= width; row += 32) f(std::integral_constant<int, 2>(), std::integral_constant<int, kTwo>(), row);
    for (; row < width; row += 16) f(std::integral_constant<int, 1>(), std::integral_constant<int, kOne>(), row);
}

// From scores to weights, in place, for `count` tokens from `origin` on; maxima and sums move on. partly: some row
// doesn't see some of them.
inline void soften_block(const Attention &a, const PromptWork &w, int origin, int count, bool partly) {
    const std::size_t width = w.width;
    if (premultiplied(a))
        for (std::size_t i = 0; i < count * width; ++i) {
            const float score = w.scores[i] * a.scale;
            w.scores[i] = a.softcap > 0 ? a.softcap * std::tanh(score / a.softcap) : score;
        }
    if (partly)
        for (int t = 0; t < count; ++t)
            for (std::size_t r = 0; r < width; ++r)
                if (origin + t < w.first[r] || origin + t >= w.last[r]) w.scores[t * width + r] = kMinusInfinity;
    const F log2 = fset1(w.factor * 1.44269504f), unseen = fset1(2 * kLowest);
    for (std::size_t r = 0; r < width; r += 16) {
        float *scores = w.scores + r;
        const F old = fload(w.maximum + r);
        F top = old;
        for (int t = 0; t < count; ++t) top = fmax(top, fload(scores + t * width));
        // exactly 1 where the maximum stays: a block that a row sees nothing of leaves no trace in its sums
        const F grown = fsub(top, old), one = fset1(1.0f);
        const F shrink = fadd(where_positive(grown, exp2_negative(fmul(fsub(old, top), log2))),
                              fsub(one, where_positive(grown, one)));
        F sum = fmul(fload(w.sum + r), shrink);
        fstore(w.maximum + r, top), fstore(w.shrink + r, shrink);
        for (int t = 0; t < count; ++t) {
            const F score = fload(scores + t * width);
            F weight = exp2_negative(fmul(fsub(score, top), log2));
            // 2^-126 is not 0: tokens out of sight must weigh nothing at all
            if (partly) weight = where_positive(fsub(score, unseen), weight);
            fstore(scores + t * width, weight);
            sum = fadd(sum, weight);
        }
        fstore(w.sum + r, sum);
    }
}

inline void finish_prompt(const Side &v, const PromptWork &w, const Partial &partial) {
    for (int r = 0; r < w.rows; ++r) {
        partial.maximum[r] = w.sum[r] > 0 ? w.maximum[r] * w.factor : kMinusInfinity, partial.sum[r] = w.sum[r];
        float *out = partial.out + std::size_t(r) * v.dim;
        for (int lane = 0; lane < w.lanes; ++lane)
            if (const int d = w.dims ? w.dims[lane] : lane; d >= 0 && d < v.dim)
                out[d] = w.out[std::size_t(lane) * w.width + r];
    }
}

// K of tokens [first, last) of a page, both multiples of 16, to the buffer. Those outside of [low, high) may be
// anything.
inline void decode_keys(const Side &k, const PromptWork &w, const std::uint8_t *tile, int first, int last, int low,
                        int high) {
    if constexpr (kDecodesVectors)
        if (w.k_vectors)
            return with_codes(k.codes, [&](auto c) {
                for (int t = first; t < last; t += 16)
                    decode_group<decltype(c)::value>(k, tile, t / 16, w.buffer + (t - first));
            });
    for (int t = std::max(first, low); t < std::min(last, high); ++t)
        decode_row(k, tile, t, w.buffer + (t - first) * w.k_token);
}

// V of kBlockTokens tokens from `first` on. Those outside of [low, high) are finite.
inline void decode_values(const Side &v, const PromptWork &w, const std::uint8_t *tile, int first, int low, int high) {
    if constexpr (kDecodesVectors)
        if (w.v_vectors)
            return with_codes(v.codes, [&](auto c) {
                decode_values<decltype(c)::value>(v, tile, first, low, high, w.buffer, w.v_token, w.codes);
            });
    for (int t = first; t < first + kBlockTokens; ++t) {
        float *row = w.buffer + (t - first) * w.v_token;
        if (t >= low && t < high)
            decode_row(v, tile, t, row);
        else
            std::fill(row, row + w.v_token, 0.0f);
    }
}

// As `run` in attend_body.h.
inline void run_prompt(const Attention &a, int sequence, int head, std::int64_t page_begin, std::int64_t page_end,
                       std::int64_t unit, const Partial *partial) {
    thread_local Scratch scratch;
    const PromptWork w = prepare_prompt(a, sequence, head, scratch);
    const std::int64_t *pages = a.pages + a.page_start[sequence];
    const int lowest = *std::min_element(w.first, w.first + w.q_tokens),
              highest = *std::max_element(w.last, w.last + w.q_tokens);
    // what all see
    const int from = *std::max_element(w.first, w.first + w.q_tokens),
              to = *std::min_element(w.last, w.last + w.q_tokens);
    const std::int64_t begin = std::max<std::int64_t>(page_begin, lowest / kPageTokens);
    const std::int64_t end = std::min<std::int64_t>(page_end, (std::int64_t(highest) + kPageTokens - 1) / kPageTokens);
    begin_prompt(w);
    std::int64_t unit_end = page_begin + unit;
    for (std::int64_t page = begin; page < end; ++page) {
        for (; page >= unit_end; unit_end += unit) finish_prompt(a.v, w, *partial++), begin_prompt(w);
        const std::uint8_t *tile = a.where.at(pages[page]) + head * a.tile_bytes;
        const int origin = static_cast<int>(page * kPageTokens), low = lowest - origin, high = highest - origin;
        for (int first = 0; first < kPageTokens; first += kBlockTokens) {
            const int last = std::min(first + kBlockTokens, (high + 15) / 16 * 16), count = last - first;
            if (last <= low || count <= 0) continue;
            decode_keys(a.k, w, tile, first, last, low, high);
            for_lanes(w.width, [&](auto vectors, auto tokens, int row) {
                constexpr int V = decltype(vectors)::value, N = decltype(tokens)::value;
                for (int t = 0; t < count; t += N)
                    score_block<V, N>(w.q + row, w.width, w.buffer + t * w.k_token, w.k_token, w.k_value, a.k.dim,
                                      w.scores + std::size_t(t) * w.width + row);
            });
            soften_block(a, w, origin + first, count, origin + first < from || origin + last > to);
            decode_values(a.v, w, tile, first, low, high);
            for_lanes(w.width, [&](auto vectors, auto lanes, int row) {
                constexpr int V = decltype(vectors)::value, N = decltype(lanes)::value;
                for (int lane = 0; lane < w.lanes; lane += N)
                    weigh_block<V, N>(w.scores + row, w.width, w.buffer + lane, w.v_token, count, w.shrink + row,
                                      w.out + std::size_t(lane) * w.width + row);
            });
        }
    }
    for (; unit_end < page_end; unit_end += unit) finish_prompt(a.v, w, *partial++), begin_prompt(w);
    finish_prompt(a.v, w, *partial);
    scratch.check();
}

}  // namespace
