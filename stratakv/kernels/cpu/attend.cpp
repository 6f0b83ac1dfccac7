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
// or how many threads: so a token's sums are the same in any company. Longer ones for chunks of prompts, whose states
// are large; by their arithmetic, since how many tokens a chunk has hangs on company.
std::int64_t unit_pages(const Attention &a) { return a.precise ? 16 : 4; }

std::int64_t unit_count(const Attention &a, std::int64_t pages) {
    const std::int64_t unit = unit_pages(a);
    return std::max<std::int64_t>(1, (pages + unit - 1) / unit);
}

}  // namespace

const char *attend(const Kernel &kernel, const Attention &a, int threads) {
    // What one thread does at a time: units [begin, end) of a sequence and kv head.
    struct Part {
        int sequence, head;
        std::int64_t begin, end;  // pages
        std::size_t unit;         // the first one's partial softmax
        int group;
    };
    // A sequence and kv head: its units' partial softmaxes, and how many of its parts aren't done.
    struct Group {
        std::size_t begin = 0, end = 0;
        std::atomic<int> left{0};
    };
    // kept between calls
    thread_local std::vector<std::int64_t> begins, pages;
    thread_local std::vector<Part> parts;
    thread_local std::vector<Partial> partials;
    thread_local std::vector<float> states;
    begins.resize(a.sequences), pages.resize(a.sequences);
    std::int64_t total = 0, work = 0;
    std::size_t floats = 0, units = 0;
    for (int s = 0; s < a.sequences; ++s) {
        std::int32_t low = 0, high = 0;
        for (int t = a.query_start[s]; t < a.query_start[s + 1]; ++t) {
            const bool one = t == a.query_start[s];
            low = one ? a.first[t] : std::min(low, a.first[t]);
            high = one ? a.last[t] : std::max(high, a.last[t]);
        }
        begins[s] = low / kPageTokens;
        pages[s] = std::max<std::int64_t>(0, (std::int64_t(high) + kPageTokens - 1) / kPageTokens - begins[s]);
        total += pages[s] * a.kv_heads;
        work += pages[s] * a.kv_heads * a.groups * a.q_tokens(s);
        if (const std::size_t size = a.partial_floats(s)) {
            const std::size_t own = std::size_t(unit_count(a, pages[s])) * a.kv_heads;
            units += own, floats += own * size;
        }
    }
    // waking a thread takes as long as some dozens of tiles
    if (work < 64) threads = 1;
    // Several parts a thread, so that the last one isn't waited for long.
    const std::int64_t per_part = total / (std::int64_t(threads) * 8) + 1;
    states.resize(floats);
    parts.clear(), partials.clear();
    partials.reserve(units);
    std::vector<Group> groups(std::size_t(a.sequences) * a.kv_heads);
    float *at = states.data();
    int count = 0;
    for (int s = 0; s < a.sequences; ++s) {
        const std::size_t size = a.partial_floats(s), rows = std::size_t(a.groups) * a.q_tokens(s);
        if (!size) continue;
        const std::int64_t unit = unit_pages(a), own = unit_count(a, pages[s]), together = (per_part + unit - 1) / unit;
        for (int h = 0; h < a.kv_heads; ++h, ++count) {
            Group &group = groups[count];
            group.begin = partials.size(), group.end = group.begin + own;
            for (std::int64_t u = 0; u < own; u += together, ++group.left) {
                const std::int64_t begin = begins[s] + u * unit,
                                   end = begins[s] + std::min(pages[s], (u + together) * unit);
                parts.push_back({s, h, begin, end, group.begin + u, count});
            }
            for (std::int64_t u = 0; u < own; ++u, at += size) partials.push_back({at, at + rows, at + 2 * rows});
        }
    }
    const Part *all = parts.data();
    const Partial *of = partials.data();
    std::atomic<const char *> ran{""};
    parallel_for(threads, static_cast<int>(parts.size()), [&](int i) {
        const Part &part = all[i];
        ran = kernel.run(a, part.sequence, part.head, part.begin, part.end, unit_pages(a), of + part.unit);
        Group &group = groups[part.group];
        // who finishes last merges
        if (--group.left == 0)
            kernel.merge(a, part.sequence, part.head, of + group.begin, static_cast<int>(group.end - group.begin));
    });
    return ran;
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
    for (int i = 0; i < count; ++i)
        if (states[i]) return {i, static_cast<Encoded>(states[i].load())};
    return {-1, Encoded::good};
}

}  // namespace stratakv
