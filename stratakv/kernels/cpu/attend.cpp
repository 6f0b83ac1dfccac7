// Chooses a kernel, cuts the work into (sequence, kv head, page range), and merges the partial softmaxes.
#include "attend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
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

void attend(const Kernel &kernel, const Attention &a, int threads) {
    const int rows = a.groups * a.q_tokens;
    std::vector<std::int64_t> pages(a.sequences), begin(a.sequences);
    std::int64_t total = 0;
    for (int s = 0; s < a.sequences; ++s) {
        int low = a.first[s * a.q_tokens], high = a.last[s * a.q_tokens];
        for (int t = 1; t < a.q_tokens; ++t) {
            low = std::min(low, a.first[s * a.q_tokens + t]);
            high = std::max(high, a.last[s * a.q_tokens + t]);
        }
        begin[s] = low / kPageTokens;
        pages[s] = std::max<std::int64_t>(0, (std::int64_t(high) + kPageTokens - 1) / kPageTokens - begin[s]);
        total += pages[s] * a.kv_heads;
    }
    // waking a thread takes as long as some dozens of tiles
    if (total * rows < 64) threads = 1;
    // Parts of at least 4 pages, several a thread so that the last one isn't waited for long.
    const std::int64_t per_part = std::max<std::int64_t>(4, total / (std::int64_t(threads) * 8) + 1);
    struct Part {
        int sequence, head;
        std::int64_t begin, end;
    };
    std::vector<Part> parts;
    for (int s = 0; s < a.sequences; ++s)
        for (int h = 0; h < a.kv_heads; ++h) {
            const std::int64_t count = std::max<std::int64_t>(1, (pages[s] + per_part - 1) / per_part);
            for (std::int64_t i = 0; i < count; ++i)
                parts.push_back({s, h, begin[s] + pages[s] * i / count, begin[s] + pages[s] * (i + 1) / count});
        }
    const std::size_t row_floats = std::size_t(a.v.dim) + 2;
    std::vector<float> states(parts.size() * rows * row_floats);
    auto partial = [&](std::size_t i) {
        float *at = states.data() + i * rows * row_floats;
        return Partial{at, at + rows, at + 2 * rows};
    };
    parallel_for(threads, static_cast<int>(parts.size()), [&](int i) {
        kernel.run(a, parts[i].sequence, parts[i].head, parts[i].begin, parts[i].end, partial(i));
    });
    for (std::size_t i = 0; i < parts.size();) {
        std::size_t end = i + 1;
        while (end < parts.size() && parts[end].sequence == parts[i].sequence && parts[end].head == parts[i].head) ++end;
        for (int r = 0; r < rows; ++r) {
            const int q_head = parts[i].head * a.groups + r / a.q_tokens;
            float maximum = a.sinks ? a.sinks[q_head] : -std::numeric_limits<float>::infinity();
            for (std::size_t p = i; p < end; ++p) maximum = std::max(maximum, partial(p).maximum[r]);
            float *out = a.out + ((std::size_t(parts[i].sequence) * a.kv_heads + parts[i].head) * rows + r) * a.v.dim;
            std::fill(out, out + a.v.dim, 0.0f);
            float sum = a.sinks ? std::exp(a.sinks[q_head] - maximum) : 0.0f;
            for (std::size_t p = i; p < end; ++p) {
                const Partial state = partial(p);
                if (!(state.sum[r] > 0)) continue;  // saw no token
                const float weight = std::exp(state.maximum[r] - maximum);
                sum += weight * state.sum[r];
                const float *from = state.out + std::size_t(r) * a.v.dim;
                for (int d = 0; d < a.v.dim; ++d) out[d] += weight * from[d];
            }
            const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
            for (int d = 0; d < a.v.dim; ++d) out[d] *= inverse;
        }
        i = end;
    }
}

void decode(const Kernel &kernel, const DecodeTask &task, int threads) {
    const int first = task.start / kPageTokens, pages = (task.start + task.tokens - 1) / kPageTokens - first + 1;
    parallel_for(threads, task.sequences * task.heads * pages, [&](int i) {
        const int page = i % pages, head = i / pages % task.heads, sequence = i / pages / task.heads;
        const int origin = (first + page) * kPageTokens;
        const int begin = std::max(task.start - origin, 0), end = std::min(task.start + task.tokens - origin, kPageTokens);
        const std::uint8_t *tile = reinterpret_cast<const std::uint8_t *>(task.pages[std::size_t(sequence) * task.page_count + first + page]) +
                                   std::size_t(head) * task.tile_bytes;
        const std::size_t row = (std::size_t(sequence) * task.heads + head) * task.tokens + (origin + begin - task.start);
        const std::size_t at = row * task.side->dim;
        kernel.decode(*task.side, tile, begin, end, task.floats ? task.floats + at : nullptr, task.bfloats ? task.bfloats + at : nullptr);
    });
}

Encoded encode(const Kernel &kernel, const EncodeTask &task, int threads) {
    // 64 vectors are some microseconds: less is not worth a thread's waking
    const int per_part = 64, parts = (task.tokens + per_part - 1) / per_part, heads = task.batch * task.heads;
    std::atomic<int> state{0};
    if (heads * task.tokens <= per_part) threads = 1;
    parallel_for(threads, heads * parts, [&](int i) {
        const int head = i / parts, begin = i % parts * per_part;
        const Encoded one = kernel.encode(task, head / task.heads, head % task.heads, begin, std::min(begin + per_part, task.tokens));
        if (one != Encoded::good) state = static_cast<int>(one);
    });
    return static_cast<Encoded>(state.load());
}

}  // namespace stratakv
