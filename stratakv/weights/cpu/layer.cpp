#include "layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "threads.h"

namespace stratakv {
namespace {

// Memory of the calling thread that outlives the call; `which` keeps nested uses apart.
float *scratch(int which, std::int64_t size) {
    thread_local std::vector<float> kept[3];
    if (static_cast<std::int64_t>(kept[which].size()) < size) kept[which].resize(size);
    return kept[which].data();
}

// task(row) for all rows: a few are not worth a thread's waking.
template <typename Task>
void by_rows(std::int64_t rows, int threads, const Task &task) {
    if (rows <= 4) {
        for (std::int64_t row = 0; row < rows; ++row) task(row);
        return;
    }
    const std::int64_t share = std::max<std::int64_t>(1, std::min<std::int64_t>(16, rows / threads));
    parallel_for(threads, static_cast<int>((rows + share - 1) / share), [&](int part) {
        for (std::int64_t row = part * share; row < std::min(rows, (part + 1) * share); ++row) task(row);
    });
}

// task(first row, how many) for all rows, so many at a time that what a layer makes of them stays in the caches
template <typename Task>
void by_groups(std::int64_t rows, const Task &task) {
    constexpr std::int64_t kRows = 128;
    for (std::int64_t first = 0; first < rows; first += kRows) task(first, std::min(kRows, rows - first));
}

// One row or head in place; `size` values that begin at x, in runs as long as the weight.
void norm_in_place(const Norm &norm, float *x, std::int64_t size) {
    const std::int64_t dim = static_cast<std::int64_t>(norm.weight.size());
    rms_norm(x, norm.weight.data(), norm.epsilon, size / dim, dim, x, 1);
}

// x normed into `into`, or x itself where there is no norm.
const float *normed(const Norm &norm, const float *x, std::int64_t rows, std::int64_t width, float *into, int threads) {
    if (!norm) return x;
    rms_norm(x, norm.weight.data(), norm.epsilon, rows, width, into, rows > 4 ? threads : 1);
    return into;
}

void turn(const AttentionPart &part, float *head, const float *cos, const float *sin, std::int64_t step) {
    const std::int64_t half = part.rotated / 2, apart = part.interleaved ? 1 : half, next = part.interleaved ? 2 : 1;
    for (std::int64_t i = 0; i < half; ++i) {
        float &first = head[i * next], &second = head[i * next + apart];
        const float a = first, b = second, c = cos[i * step], s = sin[i * step];
        first = a * c - b * s, second = b * c + a * s;
    }
}

// x += residual * after(y), by rows.
void add(const Norm &after, float residual, float *y, std::int64_t rows, std::int64_t width, float *x, int threads) {
    by_rows(rows, threads, [&](std::int64_t row) {
        float *from = y + row * width, *to = x + row * width;
        if (after) norm_in_place(after, from, width);
        if (residual == 1.0f)
            for (std::int64_t i = 0; i < width; ++i) to[i] += from[i];
        else
            for (std::int64_t i = 0; i < width; ++i) to[i] += from[i] * residual;
    });
}

}  // namespace

void project(const AttentionPart &part, const float *x, std::int64_t rows, const Angles &angles, float *projected,
             int threads) {
    const std::int64_t width = part.qkv.columns(), dim = part.dim, all = part.width();
    by_groups(rows, [&](std::int64_t first, std::int64_t count) {
        const float *from = normed(part.before, x + first * width, count, width, scratch(0, count * width), threads);
        multiply(part.qkv.matrices, from, count, projected + first * all, threads);
    });
    by_rows(rows, threads, [&](std::int64_t row) {
        float *q = projected + row * all, *k = q + part.q_heads * dim, *v = k + part.kv_heads * dim;
        if (part.q_norm) norm_in_place(part.q_norm, q, part.q_heads * dim);
        if (part.k_norm) norm_in_place(part.k_norm, k, part.kv_heads * dim);
        if (part.v_norm) norm_in_place(part.v_norm, v, part.kv_heads * dim);
        if (!part.rotated) return;
        const std::int64_t at = row % angles.rows * angles.stride;
        for (float *head = q; head < v; head += dim) turn(part, head, angles.cos + at, angles.sin + at, angles.step);
    });
}

void split(const AttentionPart &part, const float *projected, std::int64_t batch, std::int64_t tokens, float *q,
           float *k, float *v, int threads) {
    const std::int64_t dim = part.dim, all = part.width();
    by_rows(batch * tokens, threads, [&](std::int64_t row) {
        const std::int64_t sequence = row / tokens, token = row % tokens;
        const float *from = projected + row * all;
        const auto copy = [&](std::int64_t heads, float *to) {
            for (std::int64_t head = 0; head < heads; ++head, from += dim)
                std::memcpy(to + ((sequence * heads + head) * tokens + token) * dim, from, dim * sizeof(float));
        };
        copy(part.q_heads, q), copy(part.kv_heads, k), copy(part.kv_heads, v);
    });
}

void leave(const AttentionPart &part, const float *attended, std::int64_t rows, float *x, int threads) {
    const std::int64_t width = part.output.rows(), columns = part.output.columns();
    by_groups(rows, [&](std::int64_t first, std::int64_t count) {
        float *y = scratch(0, count * width);
        multiply(part.output.matrices, attended + first * columns, count, y, threads);
        add(part.after, part.residual, y, count, width, x + first * width, threads);
    });
}

void feed(const MlpPart &part, float *x, std::int64_t rows, int threads) {
    const std::int64_t width = part.down.rows(), inner = part.down.columns();
    by_groups(rows, [&](std::int64_t first, std::int64_t count) {
        float *y = scratch(0, count * (width + 3 * inner)), *both = y + count * width,
              *gated = both + count * 2 * inner;
        float *to = x + first * width;
        const float *from = normed(part.before, to, count, width, y, threads);
        multiply(part.gate_up.matrices, from, count, both, threads);
        gate(part.activation, both, count, inner, gated, count * inner < 2048 ? 1 : threads);
        multiply(part.down.matrices, gated, count, y, threads);
        add(part.after, part.residual, y, count, width, to, threads);
    });
}

namespace {

Failure store(const AttentionPart &part, const StepPages &step, const float *projected, std::int64_t rows,
              const Kernel &kernel, int threads) {
    const Layout &layout = *step.written.layout;
    const float *k = projected + part.q_heads * part.dim;
    EncodeTask tasks[2] = {};
    tasks[0].encoder = &layout.k_encoder, tasks[0].states = {k, Precision::f32, part.width(), part.dim};
    tasks[1].encoder = &layout.v_encoder,
    tasks[1].states = {k + part.kv_heads * part.dim, Precision::f32, part.width(), part.dim};
    for (EncodeTask &task : tasks) {
        task.heads = layout.kv_heads, task.tokens = static_cast<int>(rows), task.where = step.written.where;
        task.slots = step.slots, task.tile_bytes = layout.tile_bytes;
    }
    return encode(kernel, tasks, 2, threads);
}

Failure seal(const StepPages &step, const Kernel &kernel, int threads) {
    if (!step.filled_pages) return {-1, Encoded::good};
    return convert(kernel, *step.written.layout, step.written.where, *step.sealed.layout, step.sealed.where,
                   step.filled, step.filled_pages, threads);
}

// Sequences [begin, end).
const char *see(const AttentionPart &part, const StepPages &step, const float *projected, int begin, int end,
                float *attended, const Kernel &kernel, bool precise, int threads) {
    if (begin == end) return "";
    Attention kinds[kMostKinds];
    int count = 0;
    for (const SeenPages *seen : {&step.written, &step.sealed}) {
        if (!seen->layout) continue;
        Attention &a = kinds[count++] = attention_over(*seen->layout, seen->where, static_cast<int>(part.q_heads));
        a.sequences = end - begin, a.query_start = step.query_start + begin;
        a.query = {projected, Precision::f32, part.width(), part.dim};
        a.out = {attended, Precision::f32, part.q_heads * part.dim, part.dim};
        a.pages = seen->pages, a.page_start = seen->page_start + begin, a.first = seen->first, a.last = seen->last;
        a.sinks = part.sinks.empty() ? nullptr : part.sinks.data();
        a.scale = part.scale, a.softcap = part.softcap, a.precise = precise;
    }
    return attend(kernel, kinds, count, threads);
}

// All sequences.
const char *see_all(const AttentionPart &part, const StepPages &step, const float *projected, float *attended,
                    const Kernel &kernel, bool precise, int threads) {
    const char *few = see(part, step, projected, 0, step.decoding, attended, kernel, precise, threads);
    const char *chunks = see(part, step, projected, step.decoding, step.sequences, attended, kernel, true, threads);
    return *few ? few : chunks;
}

}  // namespace

StepOutcome run_layers(const std::vector<const Layer *> &layers, const std::vector<StepPages> &pages,
                       const std::vector<Angles> &angles, const Kernel &kernel, bool precise, float *x,
                       std::int64_t rows, int threads) {
    const char *ran = "";
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const AttentionPart &part = layers[i]->attention;
        float *projected = scratch(1, rows * part.width()), *attended = scratch(2, rows * part.q_heads * part.dim);
        project(part, x, rows, angles[i], projected, threads);
        const auto failed = [&](bool sealing, const Failure &failure) {
            return StepOutcome{static_cast<int>(i), sealing, failure.task, static_cast<int>(failure.what), ran};
        };
        const Failure stored = store(part, pages[i], projected, rows, kernel, threads);
        if (stored.task >= 0) return failed(false, stored);
        const Failure sealed = seal(pages[i], kernel, threads);
        if (sealed.task >= 0) return failed(true, sealed);
        ran = see_all(part, pages[i], projected, attended, kernel, precise, threads);
        leave(part, attended, rows, x, threads);
        if (layers[i]->mlp) feed(*layers[i]->mlp, x, rows, threads);
    }
    return {-1, false, -1, 0, ran};
}

}  // namespace stratakv
