// Chooses a kernel, cuts the work into (sequence, kv head, units of pages), and merges the partial softmaxes.
#include "attend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "attend_dispatch.h"
#include "cpu_features.h"
#include "threads.h"

namespace stratakv {
namespace {

bool has(const std::vector<std::string> &features, std::initializer_list<const char *> names) {
    return std::all_of(names.begin(), names.end(), [&](const char *name) {
        return std::find(features.begin(), features.end(), name) != features.end();
    });
}

}  // namespace

namespace {

std::vector<const Kernel *> find_kernels() {
    const std::vector<std::string> features = cpu_features();
    std::vector<const Kernel *> found;
    if (avx512_kernel() &&
        has(features, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vbmi", "avx512_vbmi2", "avx512_vnni"}))
        found.push_back(avx512_kernel());
    if (avx2_kernel() && has(features, {"avx2", "fma", "f16c"})) found.push_back(avx2_kernel());
    if (neon_kernel() && has(features, {"neon", "dotprod"})) found.push_back(neon_kernel());
    if (portable_kernel()) found.push_back(portable_kernel());
    return found;
}

}  // namespace

const std::vector<const Kernel *> &kernels() {
    // cpuid leaves a virtual machine each time it is asked: some 50 microseconds
    static const std::vector<const Kernel *> found = find_kernels();
    return found;
}

const Kernel &find_kernel(const std::string &name) {
    for (const Kernel *kernel : kernels())
        if (name == kernel->name) return *kernel;
    throw std::invalid_argument("no kernel named " + name + " on this machine");
}

namespace {

// Pages that one softmax goes over before it is merged with others. By the sequence alone, never by what else there is
// or how many threads: so a token's sums are the same in any company. All of them for chunks of prompts: their states
// are large, and where a softmax begins mustn't hang on how a prompt is cut.
std::int64_t unit_pages(const Attention &a) { return a.precise ? std::int64_t(1) << 32 : 4; }

std::int64_t unit_count(const Attention &a, std::int64_t pages) {
    const std::int64_t unit = unit_pages(a);
    return std::max<std::int64_t>(1, (pages + unit - 1) / unit);
}

bool same(const Rotation *one, const Rotation *other) {
    return one == other || (one && other ? *one == *other : !(one ? one : other)->block);
}

Failure first_of(const std::atomic<int> *states, int count) {
    for (int i = 0; i < count; ++i)
        if (states[i]) return {i, static_cast<Encoded>(states[i].load())};
    return {-1, Encoded::good};
}

}  // namespace

const char *attend(const Kernel &kernel, const Attention *kinds, int count, int threads) {
    // What one thread does at a time: units [begin, end) of one kind of pages of a sequence and kv head.
    struct Part {
        int kind, sequence, head;
        std::int64_t begin, end;  // pages
        std::size_t unit;         // the first one's partial softmax
        int group;
    };
    // A sequence and kv head: where its units' partial softmaxes begin, kind by kind, and how many of its parts aren't
    // done. One that is alone lies in the memory of the thread that computes it: those of long prompts are large.
    struct Group {
        std::size_t begin[kMostKinds + 1];
        std::size_t alone;  // its floats, 0: there are several
        std::atomic<int> left{0};
    };
    // Pages of one kind that a sequence sees, and the softmaxes that go over them.
    struct Range {
        std::int64_t begin, pages, units;
    };
    const Attention &a = *kinds;
    // kept between calls
    thread_local std::vector<Range> ranges;
    thread_local std::vector<Part> parts;
    thread_local std::vector<Partial> partials;
    thread_local std::vector<float> states;
    ranges.clear();
    std::int64_t total = 0, work = 0;
    std::size_t floats = 0, units = 0;
    const auto alone = [&](int s) {
        std::int64_t own = 0;
        for (int kind = 0; kind < count; ++kind) own += ranges[s * count + kind].units;
        return own == 1;
    };
    for (int s = 0; s < a.sequences; ++s) {
        const std::size_t size = a.partial_floats(s);
        std::int64_t own_units = 0;
        for (int kind = 0; kind < count; ++kind) {
            const std::int32_t *first = kinds[kind].first, *last = kinds[kind].last;
            std::int32_t low = 0, high = 0;
            for (int t = a.query_start[s]; t < a.query_start[s + 1]; ++t) {
                const bool one = t == a.query_start[s];
                low = one ? first[t] : std::min(low, first[t]);
                high = one ? last[t] : std::max(high, last[t]);
            }
            const std::int64_t begin = low / kPageTokens,
                               pages = std::max<std::int64_t>(
                                   0, (std::int64_t(high) + kPageTokens - 1) / kPageTokens - begin);
            // of the first kind there is one at least, which says where nothing is seen
            const std::int64_t own = !size || (kind && !pages) ? 0 : unit_count(a, pages);
            ranges.push_back({begin, pages, own});
            total += pages * a.kv_heads;
            work += pages * a.kv_heads * a.groups * a.q_tokens(s);
            own_units += own;
        }
        units += own_units * a.kv_heads;
        if (own_units > 1) floats += own_units * a.kv_heads * size;
    }
    // waking a thread takes as long as some dozens of tiles
    if (work < 64) threads = 1;
    // Several parts a thread, so that the last one isn't waited for long.
    const std::int64_t per_part = threads == 1 ? total : total / (std::int64_t(threads) * 8) + 1;
    states.resize(floats);
    parts.clear(), partials.clear();
    partials.reserve(units);
    std::vector<Group> groups(std::size_t(a.sequences) * a.kv_heads);
    float *at = states.data();
    const std::int64_t unit = unit_pages(a), together = std::max<std::int64_t>(1, (per_part + unit - 1) / unit);
    for (int s = 0, number = 0; s < a.sequences; ++s) {
        const std::size_t size = a.partial_floats(s), rows = std::size_t(a.groups) * a.q_tokens(s);
        for (int h = 0; h < a.kv_heads; ++h, ++number) {
            Group &group = groups[number];
            group.alone = alone(s) ? size : 0;
            for (int kind = 0; kind < count; ++kind) {
                const Range &range = ranges[s * count + kind];
                group.begin[kind] = partials.size();
                for (std::int64_t u = 0; u < range.units; u += together, ++group.left)
                    parts.push_back({kind, s, h, range.begin + u * unit,
                                     range.begin + std::min(range.pages, (u + together) * unit), group.begin[kind] + u,
                                     number});
                if (group.alone) continue;
                for (std::int64_t u = 0; u < range.units; ++u, at += size)
                    partials.push_back({at, at + rows, at + 2 * rows});
            }
            group.begin[count] = partials.size();
        }
    }
    bool one_basis = true;
    for (int kind = 1; kind < count; ++kind) one_basis &= same(a.out_rotation, kinds[kind].out_rotation);
    const Part *all = parts.data();
    const Partial *of = partials.data();
    std::atomic<const char *> ran{""};
    parallel_for(threads, static_cast<int>(parts.size()), [&](int i) {
        const Part &part = all[i];
        Group &group = groups[part.group];
        Partial own;
        if (group.alone) {
            thread_local std::vector<float> floats_of_one;
            if (floats_of_one.size() < group.alone) floats_of_one.resize(group.alone);
            const std::size_t rows = std::size_t(a.groups) * a.q_tokens(part.sequence);
            own = {floats_of_one.data(), floats_of_one.data() + rows, floats_of_one.data() + 2 * rows};
        }
        const Partial *to = group.alone ? &own : of + part.unit;
        ran = kernel.run(kinds[part.kind], part.sequence, part.head, part.begin, part.end, unit, to);
        if (--group.left) return;
        // who finishes last merges
        Softmaxes found[kMostKinds];
        for (int kind = 0; kind < count; ++kind)
            found[kind] = {
                kinds + kind, group.alone ? to : of + group.begin[kind],
                group.alone ? int(part.kind == kind) : static_cast<int>(group.begin[kind + 1] - group.begin[kind])};
        kernel.merge(part.sequence, part.head, found, count, one_basis);
    });
    return ran;
}

Failure convert(const Kernel &kernel, const ConvertTask *tasks, int count, int threads) {
    constexpr int kTokens = 64;  // some microseconds of encoding
    const int pieces = tasks->pages * tasks->heads * (kPageTokens / kTokens);
    std::atomic<int> states[2] = {{0}, {0}};
    parallel_for(threads, count * pieces, [&](int i) {
        const ConvertTask &task = tasks[i / pieces];
        const int begin = i % (kPageTokens / kTokens) * kTokens, piece = i % pieces / (kPageTokens / kTokens),
                  head = piece % task.heads, page = piece / task.heads, dim = task.source->dim;
        thread_local std::vector<float> rows;
        rows.resize(std::size_t(kTokens) * dim);
        const std::uint8_t *tile = task.from.at(task.numbers[2 * page]) + head * task.from_tile_bytes;
        kernel.decode(*task.source, tile, begin, begin + kTokens, rows.data(), nullptr);
        kernel.rotate(*task.back, rows.data(), kTokens, dim);
        std::int64_t slots[kTokens];
        for (int t = 0; t < kTokens; ++t) slots[t] = task.numbers[2 * page + 1] * kPageTokens + begin + t;
        const Input input{rows.data(), Precision::f32, dim, 0};
        const EncodeTask encoded{task.encoder, input, task.heads, kTokens, task.to, slots, task.to_tile_bytes};
        const Encoded one = kernel.encode(encoded, head, head + 1, 0, kTokens);
        if (one != Encoded::good) states[i / pieces] = static_cast<int>(one);
    });
    return first_of(states, count);
}

void decode(const Kernel &kernel, const DecodeTask &task, int threads) {
    const int first = task.start / kPageTokens, pages = (task.start + task.tokens - 1) / kPageTokens - first + 1;
    parallel_for(threads, task.sequences * task.heads * pages, [&](int i) {
        const int page = i % pages, head = i / pages % task.heads, sequence = i / pages / task.heads;
        const int origin = (first + page) * kPageTokens;
        const int begin = std::max(task.start - origin, 0),
                  end = std::min(task.start + task.tokens - origin, kPageTokens);
        const std::uint8_t *tile =
            task.where.at(task.pages[std::size_t(sequence) * task.page_count + first + page]) + head * task.tile_bytes;
        const std::size_t row =
            (std::size_t(sequence) * task.heads + head) * task.tokens + (origin + begin - task.start);
        const std::size_t at = row * task.side->dim;
        kernel.decode(*task.side, tile, begin, end, task.floats ? task.floats + at : nullptr,
                      task.bfloats ? task.bfloats + at : nullptr);
    });
}

Failure encode(const Kernel &kernel, const EncodeTask *tasks, int count, int threads) {
    // 64 vectors are some microseconds: less is not worth a thread's waking
    const int per_part = 64, heads = tasks->heads, parts = (tasks->tokens + per_part - 1) / per_part;
    std::atomic<int> states[2] = {{0}, {0}};
    if (heads * tasks->tokens <= per_part) threads = 1;
    // the heads of a few tokens go together: some types encode vectors side by side
    const int together = tasks->tokens < 4 ? heads : 1, pieces = heads / together * parts;
    parallel_for(threads, count * pieces, [&](int i) {
        const EncodeTask &task = tasks[i / pieces];
        const int head = i / parts % (heads / together) * together, begin = i % parts * per_part;
        const int end = std::min(begin + per_part, task.tokens);
        const Encoded one = kernel.encode(task, head, head + together, begin, end);
        if (one != Encoded::good) states[i / pieces] = static_cast<int>(one);
    });
    return first_of(states, count);
}

}  // namespace stratakv
