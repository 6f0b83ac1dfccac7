#include "products.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "../../kernels/cpu/cpu_features.h"
#include "../../kernels/cpu/threads.h"

namespace stratakv {
namespace {

// Activations are packed for so many tokens at a time: the scratch memory of a product is bounded.
constexpr std::int64_t kGroupTokens = 512;
// Weights of a piece of work: some tens of microseconds, so that nobody waits long for a thread that was interrupted
constexpr std::int64_t kPieceWeights = 1 << 20;

// Tokens that meet the same matrix: slots [first, first + count) in the order of a call. expert: which of equal
// matrices, -1: none.
struct Chunk {
    std::int64_t first;
    int count;
    std::int64_t expert;
};

// What a call works on. Kept by the calling thread, so that no call allocates; workers read it.
struct Scratch {
    std::vector<std::int8_t> codes;
    std::vector<float> scale, sum, values;
    std::vector<std::int32_t> minus_codes;
    std::vector<std::int64_t> from, to;  // by slot: row of x, row of out
    std::vector<Chunk> chunks;

    struct Rows {  // packed by ggml, for types that have no tiles
        int dot_type;
        std::size_t stride;
        std::vector<std::uint8_t> bytes;
    };
    std::vector<Rows> rows;
};
Scratch &scratch() {
    thread_local Scratch kept;
    return kept;
}

template <typename T>
void at_least(std::vector<T> &kept, std::int64_t size) {
    if (static_cast<std::int64_t>(kept.size()) < size) kept.resize(size);
}

std::atomic<const TileKernel *> chosen{nullptr};

bool is_float(const RowType &type) { return type.type == 0 || type.type == 1 || type.type == 30; }

// The slots of a call, packed as the matrices' types want them.
class Activations {
public:
    Activations(const float *x, std::int64_t columns, int threads)
        : x_(x), columns_(columns), threads_(threads), kept_(scratch()) {
        kept_.rows.resize(std::max<std::size_t>(kept_.rows.size(), 8));
    }

    void add(const TileKernel &kernel, const RowType &type) {
        if (!kernel.find(type.type)) return add_rows(type);
        bool &done = is_float(type) ? floats_ : codes_;
        if (done) return;
        done = true;
        const std::int64_t slots = static_cast<std::int64_t>(kept_.from.size()),
                           blocks = (columns_ + kBlock - 1) / kBlock;
        if (&done == &codes_) {
            at_least(kept_.codes, slots * blocks * kBlock), at_least(kept_.scale, slots * blocks);
            at_least(kept_.sum, 2 * slots * blocks), at_least(kept_.minus_codes, 2 * slots * blocks);
        } else {
            at_least(kept_.values, slots * blocks * kBlock);
        }
        const bool floats = &done == &floats_;
        for_slots([&, floats, blocks](const Chunk &chunk, int token, const float *x) {
            floats ? lay_out(chunk, token, x) : kernel.pack(x, columns_, token, chunk.count, place_of(chunk, blocks));
        });
    }

    PackedChunk chunk(const Chunk &chunk) const {
        const std::int64_t blocks = (columns_ + kBlock - 1) / kBlock;
        const PackInto at = place_of(chunk, blocks);
        const float *values = floats_ ? kept_.values.data() + chunk.first * blocks * kBlock : nullptr;
        return {at.codes, at.scale, at.sum, at.minus_codes, values, chunk.count};
    }

    const std::int64_t *to(const Chunk &chunk) const { return kept_.to.data() + chunk.first; }

    const void *row(const RowType &type, std::int64_t slot) const {
        if (!type.pack) return x_ + kept_.from[slot] * columns_;
        for (int i = 0; i < count_; ++i)
            if (kept_.rows[i].dot_type == type.dot_type)
                return kept_.rows[i].bytes.data() + slot * kept_.rows[i].stride;
        return nullptr;
    }

private:
    PackInto place_of(const Chunk &chunk, std::int64_t blocks) const {
        const std::int64_t at = chunk.first * blocks;
        return {kept_.codes.data() + at * kBlock, kept_.scale.data() + at, kept_.sum.data() + 2 * at,
                kept_.minus_codes.data() + 2 * at};
    }

    template <typename Function>
    void for_slots(Function pack) {
        const int threads = static_cast<std::int64_t>(kept_.from.size()) * columns_ < 65536
                                ? 1
                                : threads_;  // 32 columns take some 4 ns
        constexpr int kTokens = 16;  // of a piece
        const int pieces = kChunkTokens / kTokens;
        parallel_for(threads, static_cast<int>(kept_.chunks.size()) * pieces, [&](int i) {
            const Chunk &chunk = kept_.chunks[i / pieces];
            const int begin = i % pieces * kTokens, end = std::min(chunk.count, begin + kTokens);
            for (int token = begin; token < end; ++token)
                pack(chunk, token, x_ + kept_.from[chunk.first + token] * columns_);
        });
    }

    void lay_out(const Chunk &chunk, int token, const float *x) {
        const std::int64_t blocks = (columns_ + kBlock - 1) / kBlock;
        float *into = kept_.values.data() + chunk.first * blocks * kBlock;
        for (std::int64_t block = 0; block < blocks; ++block) {
            float *at = into + (block * chunk.count + token) * kBlock;
            const std::int64_t count = std::min<std::int64_t>(kBlock, columns_ - block * kBlock);
            std::memcpy(at, x + block * kBlock, count * sizeof(float));
            std::fill(at + count, at + kBlock, 0.0f);
        }
    }

    void add_rows(const RowType &type) {
        if (!type.pack || row(type, 0)) return;
        Scratch::Rows &rows = kept_.rows[count_++];
        rows.dot_type = type.dot_type, rows.stride = type.dot_bytes(columns_);
        // a kernel may read whole vectors past the end
        at_least(rows.bytes, static_cast<std::int64_t>(rows.stride * kept_.from.size() + 64));
        for_slots([&](const Chunk &chunk, int token, const float *x) {
            type.pack(x, rows.bytes.data() + (chunk.first + token) * rows.stride, columns_);
        });
    }

    const float *x_;
    std::int64_t columns_;
    int threads_, count_ = 0;
    bool codes_ = false, floats_ = false;
    Scratch &kept_;
};

// Rows [begin, end) of a matrix for a chunk; `offset`: where the matrix's results begin in a row of out.
struct Part {
    const Matrix *matrix;
    std::int64_t offset, begin, end;
};

void run(const TileKernel &kernel, const Part &part, const Chunk &chunk, const Activations &activations, float *out,
         std::int64_t out_stride) {
    const Matrix &matrix = *part.matrix;
    const RowType &type = *matrix.type;
    const std::int64_t *to = activations.to(chunk);
    const std::int32_t *place = matrix.place.empty() ? nullptr : matrix.place.data();
    const float *bias = matrix.bias.empty() ? nullptr : matrix.bias.data();
    out += part.offset;
    const std::uint8_t *data =
        matrix.data + chunk.expert * static_cast<std::int64_t>(type.row_bytes(matrix.columns)) * matrix.rows;
    if (chunk.expert < 0) {
        for (int token = 0; token < chunk.count; ++token)
            std::fill(out + to[token] * out_stride + part.begin, out + to[token] * out_stride + part.end, 0.0f);
    } else if (const RunTiles tiles = kernel.find(type.type)) {
        tiles({data, type.row_bytes(matrix.columns), part.begin, part.end, matrix.columns, activations.chunk(chunk),
               out, out_stride, to, place, bias});
    } else {  // ggml's product of one row and one token
        const std::uint8_t *row = data + part.begin * type.row_bytes(matrix.columns);
        for (std::int64_t r = part.begin; r < part.end; ++r, row += type.row_bytes(matrix.columns)) {
            const std::int64_t at = place ? place[r] : r;
            for (int token = 0; token < chunk.count; ++token) {
                float &result = out[to[token] * out_stride + at];
                type.dot(static_cast<int>(matrix.columns), &result, 0, row, 0,
                         activations.row(type, chunk.first + token), 0, 1);
                if (bias) result += bias[at];
            }
        }
    }
}

// All parts of the matrices with all chunks, shared out over threads.
void run_all(const Matrices &matrices, const float *x, float *out, std::int64_t out_stride, int threads) {
    const TileKernel &kernel = tiles_in_use();
    Activations activations(x, matrices[0]->columns, threads);
    thread_local std::vector<Part> kept;
    std::vector<Part> &parts = kept;
    parts.clear();
    std::int64_t offset = 0, total = total_rows(matrices);
    const std::int64_t columns = matrices[0]->columns, piece = std::max<std::int64_t>(1, kPieceWeights / columns);
    const std::int64_t share = std::min(piece, total / (std::int64_t(threads) * 4) + 1), rows = (share + 15) / 16 * 16;
    for (const Matrix *matrix : matrices) {
        activations.add(kernel, *matrix->type);
        for (std::int64_t begin = 0; begin < matrix->rows; begin += rows)
            parts.push_back({matrix, offset, begin, std::min(begin + rows, matrix->rows)});
        offset += matrix->rows;
    }
    const Part *first = parts.data();
    const std::vector<Chunk> &chunks = scratch().chunks;
    const int count = static_cast<int>(chunks.size());
    parallel_for(threads, static_cast<int>(parts.size()) * count, [&, first, count](int i) {
        run(kernel, first[i / count], chunks[i % count], activations, out, out_stride);
    });
}

bool has(const std::vector<std::string> &features, std::initializer_list<const char *> names) {
    return std::all_of(names.begin(), names.end(), [&](const char *name) {
        return std::find(features.begin(), features.end(), name) != features.end();
    });
}

}  // namespace

std::int64_t total_rows(const Matrices &matrices) {
    std::int64_t total = 0;
    for (const Matrix *matrix : matrices) total += matrix->rows;
    return total;
}

void multiply(const Matrices &matrices, const float *x, std::int64_t tokens, float *out, int threads) {
    const std::int64_t columns = matrices[0]->columns, total = total_rows(matrices);
    Scratch &kept = scratch();
    for (std::int64_t first = 0; first < tokens; first += kGroupTokens) {
        const std::int64_t count = std::min(kGroupTokens, tokens - first);
        kept.from.clear(), kept.chunks.clear();
        for (std::int64_t token = 0; token < count; ++token) kept.from.push_back(token);
        kept.to = kept.from;
        for (std::int64_t at = 0; at < count; at += kChunkTokens)
            kept.chunks.push_back({at, static_cast<int>(std::min<std::int64_t>(kChunkTokens, count - at)), 0});
        run_all(matrices, x + first * columns, out + first * total, total, threads);
    }
}

void multiply_chosen(const Matrix &first, std::int64_t experts, const std::int64_t *index, std::int64_t slots,
                     std::int64_t share, const float *x, float *out, std::int64_t out_stride, int threads) {
    Scratch &kept = scratch();
    const std::int64_t group = std::max(share, kGroupTokens / share * share);
    for (std::int64_t begin = 0; begin < slots; begin += group) {
        const std::int64_t count = std::min(group, slots - begin);
        kept.to.clear(), kept.from.clear(), kept.chunks.clear();
        auto expert = [&](std::int64_t slot) {  // -1: transformers' mark for a token of no expert
            const std::int64_t number = index[begin + slot];
            return number < 0 || number >= experts ? std::int64_t(-1) : number;
        };
        for (std::int64_t slot = 0; slot < count; ++slot) kept.to.push_back(slot);
        std::stable_sort(kept.to.begin(), kept.to.end(),
                         [&](std::int64_t a, std::int64_t b) { return expert(a) < expert(b); });
        for (const std::int64_t slot : kept.to) kept.from.push_back(slot / share);
        for (std::int64_t at = 0; at < count; ++at) {
            const std::int64_t number = expert(kept.to[at]);
            const bool goes_on = at > 0 && expert(kept.to[at - 1]) == number && kept.chunks.back().count < kChunkTokens;
            if (goes_on)
                ++kept.chunks.back().count;
            else
                kept.chunks.push_back({at, 1, number});
        }
        run_all({&first}, x + begin / share * first.columns, out + begin * out_stride, out_stride, threads);
    }
}

const std::vector<const TileKernel *> &tile_kernels() {
    static const std::vector<const TileKernel *> found = [] {
        const std::vector<std::string> features = cpu_features();
        std::vector<const TileKernel *> all;
        if (avx512_tiles() && has(features, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vbmi",
                                             "avx512_vbmi2", "avx512_vnni"}))
            all.push_back(avx512_tiles());
        if (avx2_tiles() && has(features, {"avx2", "fma", "f16c"})) all.push_back(avx2_tiles());
        if (neon_tiles() && has(features, {"neon", "dotprod"})) all.push_back(neon_tiles());
        if (portable_tiles()) all.push_back(portable_tiles());
        return all;
    }();
    return found;
}

const TileKernel &tiles_in_use() {
    const TileKernel *kernel = chosen.load(std::memory_order_relaxed);
    if (!kernel) chosen = kernel = tile_kernels()[0];
    return *kernel;
}

bool use_tiles(const std::string &name) {
    for (const TileKernel *kernel : tile_kernels())
        if (name == kernel->name) {
            chosen = kernel;
            return true;
        }
    return false;
}

}  // namespace stratakv
