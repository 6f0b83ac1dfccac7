// Chooses a kernel, cuts the work into (sequence, kv head, page range), and merges the partial softmaxes.
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
    if (avx512_kernel() && has(features, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vbmi", "avx512_vnni"}))
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

void attend(const Kernel &kernel, const Attention &a, int threads) {
    struct Part {
        int sequence, head;
        std::int64_t begin, end;
        std::size_t state;  // where its partial softmax lies
        int group;
    };
    // A sequence and kv head: its parts [begin, end), and how many of them aren't done.
    struct Group {
        int begin = 0, end = 0;
        std::atomic<int> left{0};
    };
    // kept between calls
    thread_local std::vector<std::int64_t> begins, pages;
    thread_local std::vector<Part> parts;
    thread_local std::vector<Partial> partials;
    thread_local std::vector<float> states;
    begins.resize(a.sequences), pages.resize(a.sequences);
    std::int64_t total = 0, work = 0;
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
    }
    // waking a thread takes as long as some dozens of tiles
    if (work < 64) threads = 1;
    // Parts of at least 4 pages, several a thread so that the last one isn't waited for long.
    const std::int64_t per_part = std::max<std::int64_t>(4, total / (std::int64_t(threads) * 8) + 1);
    parts.clear(), partials.clear();
    std::size_t floats = 0;
    int count = 0;
    for (int s = 0; s < a.sequences; ++s) {
        const std::size_t size = std::size_t(a.groups) * a.q_tokens(s) * (a.v.dim + 2);
        if (!size) continue;
        for (int h = 0; h < a.kv_heads; ++h, ++count) {
            const std::int64_t cuts = std::max<std::int64_t>(1, (pages[s] + per_part - 1) / per_part);
            for (std::int64_t i = 0; i < cuts; ++i, floats += size)
                parts.push_back({s, h, begins[s] + pages[s] * i / cuts, begins[s] + pages[s] * (i + 1) / cuts, floats, count});
        }
    }
    states.resize(floats);
    std::vector<Group> groups(count);
    for (int i = 0; i < static_cast<int>(parts.size()); ++i) {
        const std::size_t rows = std::size_t(a.groups) * a.q_tokens(parts[i].sequence);
        float *at = states.data() + parts[i].state;
        partials.push_back({at, at + rows, at + 2 * rows});
        Group &group = groups[parts[i].group];
        if (!group.end) group.begin = i;
        group.end = i + 1, ++group.left;
    }
    const Part *all = parts.data();
    const Partial *of = partials.data();
    parallel_for(threads, static_cast<int>(parts.size()), [&](int i) {
        kernel.run(a, all[i].sequence, all[i].head, all[i].begin, all[i].end, of[i]);
        Group &group = groups[all[i].group];
        // who finishes last merges
        if (--group.left == 0) kernel.merge(a, all[i].sequence, all[i].head, of + group.begin, group.end - group.begin);
    });
}

void decode(const Kernel &kernel, const DecodeTask &task, int threads) {
    const int first = task.start / kPageTokens, pages = (task.start + task.tokens - 1) / kPageTokens - first + 1;
    parallel_for(threads, task.sequences * task.heads * pages, [&](int i) {
        const int page = i % pages, head = i / pages % task.heads, sequence = i / pages / task.heads;
        const int origin = (first + page) * kPageTokens;
        const int begin = std::max(task.start - origin, 0), end = std::min(task.start + task.tokens - origin, kPageTokens);
        const std::uint8_t *tile = task.where.at(task.pages[std::size_t(sequence) * task.page_count + first + page]) + head * task.tile_bytes;
        const std::size_t row = (std::size_t(sequence) * task.heads + head) * task.tokens + (origin + begin - task.start);
        const std::size_t at = row * task.side->dim;
        kernel.decode(*task.side, tile, begin, end, task.floats ? task.floats + at : nullptr, task.bfloats ? task.bfloats + at : nullptr);
    });
}

Failure encode(const Kernel &kernel, const EncodeTask *tasks, int count, int threads) {
    // 64 vectors are some microseconds: less is not worth a thread's waking
    const int per_part = 64, heads = tasks->heads, parts = (tasks->tokens + per_part - 1) / per_part;
    std::atomic<int> states[2] = {{0}, {0}};
    if (heads * tasks->tokens <= per_part) threads = 1;
    parallel_for(threads, count * heads * parts, [&](int i) {
        const EncodeTask &task = tasks[i / (heads * parts)];
        const int head = i / parts % heads, begin = i % parts * per_part;
        const Encoded one = kernel.encode(task, head, begin, std::min(begin + per_part, task.tokens));
        if (one != Encoded::good) states[i / (heads * parts)] = static_cast<int>(one);
    });
    for (int i = 0; i < count; ++i)
        if (states[i]) return {i, static_cast<Encoded>(states[i].load())};
    return {-1, Encoded::good};
}

}  // namespace stratakv
