// Every decode-attention kernel that this machine runs, against sums in double over values that no kernel decoded.
//
//     attend_check [rounds]    (1; each round draws other lengths, groups and partners) exits with 1 when one is off
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>

#include "machine_kernels.h"
#include "page_types.h"

namespace check {
namespace {

using stratakv::Attention;
using stratakv::Kernel;
using stratakv::Partial;

// What the project promises is 1e-2 and 1e-3. Two bytes for queries and weights leave 5e-4, one byte for the weights of
// a coarse V 8e-3, floats 1e-6: a wrong -128 is to be seen too.
constexpr double kDefaultLimit = 2e-3, kCoarseLimit = 8e-3, kPreciseLimit = 1e-5, kHugeLogitsLimit = 1e-2;

bool coarse(const Type &v) { return v.codes != Codes::byte && v.bits() <= 4 && !is_rows(v.codes) && !v.signed_scale; }

enum class Input {
    random,
    dominant_key,
    equal_keys,
    huge_logits,
    zero_query,
    tiny_query,
    tiny_scales,
    huge_values,
    extreme_codes
};

struct Case {
    const Type *k, *v;
    int k_dim, v_dim, groups, q_tokens, tokens, window;  // window 0: none
    double spread;                                       // standard deviation of the scores
    float softcap;
    Input input;
    bool nan_garbage;  // what unwritten bytes are: all ones (nan as floats), or random
    unsigned seed;

    std::string name() const {
        char text[256];
        std::snprintf(text, sizeof text,
                      "%s/%s dim %d/%d groups %d q_tokens %d tokens %d window %d spread %g softcap %g input %d seed %u",
                      k->name.c_str(), v->name.c_str(), k_dim, v_dim, groups, q_tokens, tokens, window, spread, softcap,
                      int(input), seed);
        return text;
    }
};

// What a case gives to kernels, and the expected output.
struct Problem {
    Attention attention{};
    std::vector<std::unique_ptr<std::uint8_t[]>> pages;
    std::vector<std::int64_t> addresses, page_start;
    std::vector<std::int32_t> query_start, first, last;
    std::vector<float> query;
    std::vector<double> expected;  // [kv_heads, rows, v_dim]
    std::vector<bool> empty;       // [rows]
};

constexpr int kHeads = 2;
// The sequence under test is the second one; the first has no query tokens and no pages.
constexpr int kSequence = 1;

double size_of(Input input) { return input == Input::tiny_scales ? 1e-6 : input == Input::huge_values ? 3e3 : 1.0; }

float *query_row(const Case &c, Problem &p, int head, int r) {
    return p.query.data() +
           (std::size_t(r % c.q_tokens) * kHeads * c.groups + head * c.groups + r / c.q_tokens) * c.k_dim;
}

void fill_query(const Case &c, Problem &p, const std::vector<Vector> &keys, int head, std::mt19937 &random) {
    double squares = 0;
    for (int t = 0; t < c.tokens; ++t)
        for (double x : keys[t].values) squares += x * x;
    const double rms = std::max(std::sqrt(squares / std::max(1, c.tokens * c.k_dim)), 1e-12);
    const double spread = c.input == Input::huge_logits ? 1e4 : c.input == Input::zero_query ? 0 : c.spread;
    std::normal_distribution<double> normal;
    const int rows = c.groups * c.q_tokens;
    for (int r = 0; r < rows; ++r) {
        float *q = query_row(c, p, head, r);
        const Vector *key = c.input == Input::dominant_key && c.tokens ? &keys[random() % c.tokens] : nullptr;
        for (int d = 0; d < c.k_dim; ++d) {
            q[d] = static_cast<float>(normal(random) * spread / (rms * std::sqrt(double(c.k_dim)) * p.attention.scale));
            if (key) q[d] = static_cast<float>(key->values[d] * 60 / (rms * rms * c.k_dim * p.attention.scale));
            if (c.input == Input::tiny_query) q[d] = static_cast<float>(normal(random) * 1e-43);
        }
    }
}

void expect(const Case &c, Problem &p, const std::vector<Vector> &keys, const std::vector<Vector> &values, int head) {
    const int rows = c.groups * c.q_tokens;
    std::vector<double> scores(c.tokens);
    for (int r = 0; r < rows; ++r) {
        const float *q = query_row(c, p, head, r);
        const int begin = p.first[r % c.q_tokens], end = p.last[r % c.q_tokens];
        double *out = p.expected.data() + (std::size_t(head) * rows + r) * c.v_dim;
        p.empty[r] = begin >= end;
        double top = -HUGE_VAL, sum = 0;
        for (int t = begin; t < end; ++t) {
            double dot = 0;
            for (int d = 0; d < c.k_dim; ++d) dot += q[d] * keys[t].values[d];
            dot *= p.attention.scale;
            scores[t] = c.softcap > 0 ? c.softcap * std::tanh(dot / c.softcap) : dot;
            top = std::max(top, scores[t]);
        }
        for (int t = begin; t < end; ++t) {
            const double weight = std::exp(scores[t] - top);
            sum += weight;
            for (int d = 0; d < c.v_dim; ++d) out[d] += weight * values[t].values[d];
        }
        for (int d = 0; d < c.v_dim; ++d) out[d] = begin < end ? out[d] / sum : 0;
    }
}

Problem build(const Case &c) {
    std::mt19937 random(c.seed);
    Problem p;
    Attention &a = p.attention;
    const int rows = c.groups * c.q_tokens, page_count = (c.tokens + kTokens - 1) / kTokens;
    a.k = side_of(*c.k, c.k_dim, true);
    a.v = side_of(*c.v, c.v_dim, false);
    a.tile_bytes = place_sides(a.k, *c.k, a.v, *c.v);
    a.sequences = 2, a.kv_heads = kHeads, a.groups = c.groups;
    a.scale = static_cast<float>(1 / std::sqrt(double(c.k_dim)));
    a.softcap = c.softcap;
    for (int t = 0; t < c.q_tokens; ++t) {
        const int last = std::max(0, c.tokens - (c.q_tokens - 1 - t));
        p.last.push_back(last);
        p.first.push_back(c.window ? std::max(0, last - c.window) : 0);
    }
    const int lowest = p.first[0];
    p.query.assign(std::size_t(kHeads) * rows * c.k_dim, std::nanf(""));
    p.expected.assign(std::size_t(kHeads) * rows * c.v_dim, 0);
    p.empty.assign(rows, false);
    for (int i = 0; i < page_count; ++i) {
        p.pages.emplace_back(new std::uint8_t[kHeads * a.tile_bytes]);
        for (std::int64_t b = 0; b < kHeads * a.tile_bytes; ++b)
            p.pages[i][b] = c.nan_garbage ? 0xff : static_cast<std::uint8_t>(random());
        // a window's sequence has given its first pages back
        p.addresses.push_back((i + 1) * kTokens > lowest ? reinterpret_cast<std::int64_t>(p.pages[i].get()) : 0);
    }
    for (int head = 0; head < kHeads; ++head) {
        std::vector<Vector> keys, values;
        for (int t = 0; t < c.tokens; ++t) {
            const bool extreme = c.input == Input::extreme_codes;
            keys.push_back(t && c.input == Input::equal_keys
                               ? keys[0]
                               : random_vector(*c.k, a.k, random, size_of(c.input), extreme));
            values.push_back(random_vector(*c.v, a.v, random, size_of(c.input), extreme));
            std::uint8_t *tile = p.pages[t / kTokens].get() + head * a.tile_bytes;
            // tokens that no query sees stay garbage
            if (t < lowest) continue;
            store(*c.k, a.k, keys[t], tile, t % kTokens);
            store(*c.v, a.v, values[t], tile, t % kTokens);
        }
        fill_query(c, p, keys, head, random);
        expect(c, p, keys, values, head);
    }
    p.page_start = {0, 0, page_count};
    p.query_start = {0, 0, c.q_tokens};
    a.query = {p.query.data(), stratakv::Precision::f32, std::int64_t(kHeads) * c.groups * c.k_dim, c.k_dim};
    a.where = {0, 1};
    a.query_start = p.query_start.data();
    a.pages = p.addresses.data();
    a.page_start = p.page_start.data();
    a.first = p.first.data();
    a.last = p.last.data();
    return p;
}

struct Outcome {
    double error = 0;  // relative L2 over all rows
    std::string fault;
};

// Runs a kernel on `parts` ranges of pages and merges them.
Outcome run(const Kernel &kernel, const Case &c, Problem &p, bool precise, int parts) {
    Attention &a = p.attention;
    a.precise = precise;
    const int rows = c.groups * c.q_tokens;
    const std::int64_t pages = static_cast<std::int64_t>(p.pages.size());
    double wrong = 0, right = 0;
    Outcome outcome;
    for (int head = 0; head < kHeads; ++head) {
        std::vector<float> top(parts * rows), sum(parts * rows),
            out(std::size_t(parts) * rows * c.v_dim, std::nanf(""));
        for (int i = 0; i < parts; ++i) {  // a softmax each, of a unit that holds all of its pages
            const Partial partial{&top[i * rows], &sum[i * rows], &out[std::size_t(i) * rows * c.v_dim]};
            kernel.run(a, kSequence, head, pages * i / parts, pages * (i + 1) / parts, std::max<std::int64_t>(pages, 1),
                       &partial);
        }
        for (int r = 0; r < rows; ++r) {
            double whole_top = -HUGE_VAL, whole_sum = 0;
            for (int i = 0; i < parts; ++i) whole_top = std::max(whole_top, double(top[i * rows + r]));
            if (p.empty[r] != (whole_top == -HUGE_VAL))
                outcome.fault = "the maximum of an empty row must be -inf, of others not";
            std::vector<double> merged(c.v_dim, 0);
            for (int i = 0; i < parts; ++i) {
                const double weight = top[i * rows + r] == -HUGE_VAL ? 0 : std::exp(top[i * rows + r] - whole_top);
                whole_sum += weight * sum[i * rows + r];
                for (int d = 0; d < c.v_dim; ++d) merged[d] += weight * out[(std::size_t(i) * rows + r) * c.v_dim + d];
            }
            if (p.empty[r] && whole_sum != 0) outcome.fault = "an empty row has a sum";
            for (int d = 0; d < c.v_dim; ++d) {
                const double expected = p.expected[(std::size_t(head) * rows + r) * c.v_dim + d];
                const double got = p.empty[r] ? merged[d] : merged[d] / whole_sum;
                if (!std::isfinite(got)) outcome.fault = "not finite";
                wrong += (got - expected) * (got - expected);
                right += expected * expected;
            }
        }
    }
    outcome.error = right > 0 ? std::sqrt(wrong / right) : std::sqrt(wrong);
    return outcome;
}

std::vector<Case> cases(const std::vector<Type> &all, int round) {
    std::mt19937 random(1000 + round);
    const int dims[] = {64, 80, 96, 128, 192, 256, 512};
    const double spreads[] = {1, 2, 3, 8};
    std::vector<Case> out;
    const auto draw = [&](const Type &k, const Type &v, int k_dim, int v_dim) {
        Case c{};
        c.k = &k, c.v = &v, c.k_dim = k_dim, c.v_dim = v_dim;
        c.groups = 1 + random() % 16;
        c.q_tokens = 1 + random() % 3;
        const unsigned longest = random() % 2 ? 150 : 420;
        c.tokens = 1 + random() % longest;
        c.window = random() % 4 ? 0 : 1 + random() % 200;
        c.spread = spreads[random() % 4];
        c.softcap = random() % 4 ? 0.0f : 4.0f;
        c.nan_garbage = random() % 2;
        c.seed = random();
        return c;
    };
    for (std::size_t d = 0; d < std::size(dims); ++d)
        for (std::size_t i = 0; i < all.size(); ++i)
            out.push_back(draw(all[i], all[(i + 3 * d + 5 * round) % all.size()], dims[d], dims[d]));
    for (std::size_t i = 0; i < all.size(); ++i) {
        out.push_back(draw(all[i], all[(i + 1) % all.size()], 192, 128));
        out.push_back(draw(all[i], all[i], 512, 64));
        out.push_back(draw(all[i], all[(i + 3) % all.size()], 8, 16));
        out.push_back(draw(all[i], all[(i + 2) % all.size()], 32, 160));
        if (!all[i].turbo) out.push_back(draw(all[i], all[(i + 2) % all.size()], 576, 512));
        for (Input input : {Input::dominant_key, Input::equal_keys, Input::huge_logits, Input::zero_query,
                            Input::tiny_query, Input::tiny_scales, Input::huge_values, Input::extreme_codes}) {
            Case c = draw(all[i], all[(i + std::size_t(input)) % all.size()], 128, 128);
            c.input = input;
            c.softcap = 0;
            if (input == Input::huge_logits) c.groups = 1, c.q_tokens = 1;
            out.push_back(c);
        }
        Case nothing = draw(all[i], all[i], 64, 64);  // no tokens at all
        nothing.tokens = 0;
        out.push_back(nothing);
        Case start = draw(all[i], all[i], 128, 64);  // the first query tokens see none
        start.tokens = 1, start.q_tokens = 3;
        out.push_back(start);
    }
    return out;
}

struct Worst {
    int runs = 0;
    double error[2] = {0, 0};
    std::string name[2];
};

}  // namespace
}  // namespace check

int main(int argc, char **argv) {
    using namespace check;
    if (argc < 2) return std::puts("attend_check TYPES [ROUNDS]"), 2;
    const std::vector<Type> types = read_types(argv[1]);
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 1;
    std::map<std::string, Worst> worst;
    int failures = 0;
    const std::vector<const stratakv::Kernel *> all = kernels();
    for (int round = 0; round < rounds; ++round)
        for (const Case &c : cases(types, round)) {
            Problem p = build(c);
            for (const stratakv::Kernel *kernel : all)
                for (bool precise : {false, true}) {
                    const Outcome outcome = run(*kernel, c, p, precise, 1 + c.seed % 3);
                    // scores of 1e4 differ by 1e-3 in floats already
                    const double limit = c.input == Input::huge_logits ? kHugeLogitsLimit
                                         : precise                     ? kPreciseLimit
                                         : coarse(*c.v)                ? kCoarseLimit
                                                                       : kDefaultLimit;
                    Worst &w = worst[kernel->name];
                    ++w.runs;
                    if (outcome.error > w.error[precise]) w.error[precise] = outcome.error, w.name[precise] = c.name();
                    if (!outcome.fault.empty() || !(outcome.error <= limit)) {
                        ++failures;
                        std::printf("FAILED %s%s: error %.2e %s: %s\n", kernel->name, precise ? " precise" : "",
                                    outcome.error, outcome.fault.c_str(), c.name().c_str());
                    }
                }
        }
    for (const auto &[name, w] : worst)
        std::printf("%s: %d runs, worst default %.2e (%s), precise %.2e (%s)\n", name.c_str(), w.runs, w.error[0],
                    w.name[0].c_str(), w.error[1], w.name[1].c_str());
    std::printf("%d failures\n", failures);
    return failures || worst.empty();
}
