// What Python sees of decode attention.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "attend_dispatch.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stratakv {
namespace {

template <typename T, std::size_t N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

Side side(int codes, int dim, int nbytes, int blocks, int group, int base_bytes, int base_word, std::int64_t base, int high_bytes,
          int high_word, std::int64_t high, std::int64_t scale, std::int64_t minimum, bool signed_scale, float unit,
          const std::vector<int> &table) {
    if (table.size() > 64) throw std::invalid_argument("a code table has at most 64 entries");
    if (dim > 1024) throw std::invalid_argument("head_dim above 1024 has no kernel");
    Side s{};
    s.codes = static_cast<Codes>(codes);
    s.dim = dim, s.nbytes = nbytes, s.blocks = blocks, s.group = group;
    s.base_bytes = base_bytes, s.base_word = base_word, s.base = base;
    s.high_bytes = high_bytes, s.high_word = high_word, s.high = high;
    s.scale = scale, s.minimum = minimum < 0 ? 0 : minimum;
    s.has_minimum = minimum >= 0, s.signed_scale = signed_scale;
    s.unit = unit;
    // repeated, so that look-ups may ignore index bits above the table's
    for (std::size_t i = 0; i < 64 && !table.empty(); ++i) s.table[i] = static_cast<std::int8_t>(table[i % table.size()]);
    const bool codes_only = s.codes >= Codes::byte;
    const bool whole_words = base_bytes / blocks % 4 == 0 && (high_bytes == 0 || high_bytes % 4 == 0);
    const bool whole_units = blocks == 1 ? high_bytes == 0 || base_bytes % 16 == 0 : base_bytes / blocks % 16 == 0;
    const bool known_order = s.codes < Codes::halves || dim / blocks == 32;
    s.vectors = codes_only && whole_words && whole_units && known_order;
    return s;
}

const Kernel &find(const std::string &name) {
    for (const Kernel *kernel : kernels())
        if (name == kernel->name) return *kernel;
    throw std::invalid_argument("no kernel named " + name + " on this machine");
}

void attend_pages(const std::string &kernel, const Side &k, const Side &v, std::int64_t tile_bytes, int kv_heads,
                  Array<const float, 4> query, Array<float, 4> out, Array<const std::uint64_t, 1> pages,
                  Array<const std::int64_t, 1> page_start, Array<const std::int32_t, 2> first, Array<const std::int32_t, 2> last,
                  std::optional<Array<const float, 1>> sinks, float scale, float softcap, bool precise, int threads) {
    Attention a{};
    a.k = k, a.v = v, a.tile_bytes = tile_bytes, a.kv_heads = kv_heads;
    a.sequences = static_cast<int>(query.shape(0)), a.q_tokens = static_cast<int>(query.shape(2));
    const int q_heads = static_cast<int>(query.shape(1));
    auto wants = [](bool good, const char *what) {
        if (!good) throw std::invalid_argument(what);
    };
    wants(kv_heads > 0 && q_heads % kv_heads == 0, "query heads must be a multiple of kv heads");
    wants(static_cast<int>(query.shape(3)) == k.dim, "query and K differ in head_dim");
    wants(out.shape(0) == query.shape(0) && out.shape(1) == query.shape(1) && out.shape(2) == query.shape(2) &&
              static_cast<int>(out.shape(3)) == v.dim,
          "out must be [sequences, q_heads, q_tokens, v_dim]");
    wants(page_start.shape(0) == query.shape(0), "page_start: one entry a sequence");
    wants(first.shape(0) == query.shape(0) && first.shape(1) == query.shape(2) && last.shape(0) == first.shape(0) &&
              last.shape(1) == first.shape(1),
          "first and last must be [sequences, q_tokens]");
    wants(!sinks || static_cast<int>(sinks->shape(0)) == q_heads, "sinks: one a query head");
    for (std::size_t s = 0; s < query.shape(0); ++s) {
        const std::int64_t end = s + 1 < query.shape(0) ? page_start.data()[s + 1] : static_cast<std::int64_t>(pages.shape(0));
        const std::int64_t held = (end - page_start.data()[s]) * kPageTokens;
        for (std::size_t t = 0; t < query.shape(2); ++t) {
            const std::size_t i = s * query.shape(2) + t;
            wants(first.data()[i] >= 0 && last.data()[i] <= held, "a query sees tokens that its block table doesn't hold");
        }
    }
    a.groups = q_heads / kv_heads;
    a.query = query.data(), a.out = out.data(), a.pages = pages.data(), a.page_start = page_start.data();
    a.first = first.data(), a.last = last.data(), a.sinks = sinks ? sinks->data() : nullptr;
    a.scale = scale, a.softcap = softcap, a.precise = precise;
    const Kernel &chosen = find(kernel);
    nb::gil_scoped_release release;
    attend(chosen, a, threads);
}

void decode_pages(const std::string &kernel, const Side &side, Array<const std::uint64_t, 2> pages, int start, std::int64_t tile_bytes,
                  std::optional<Array<float, 4>> floats, std::optional<Array<std::int16_t, 4>> bfloats, int threads) {
    if (floats.has_value() == bfloats.has_value()) throw std::invalid_argument("one of floats and bfloats");
    DecodeTask task{};
    auto shape = [&](std::size_t i) { return static_cast<int>(floats ? floats->shape(i) : bfloats->shape(i)); };
    task.side = &side, task.pages = pages.data(), task.page_count = static_cast<int>(pages.shape(1));
    task.sequences = shape(0), task.heads = shape(1), task.tokens = shape(2);
    task.start = start, task.tile_bytes = tile_bytes;
    task.floats = floats ? floats->data() : nullptr;
    task.bfloats = bfloats ? reinterpret_cast<std::uint16_t *>(bfloats->data()) : nullptr;
    if (shape(3) != side.dim) throw std::invalid_argument("out and side differ in head_dim");
    if (static_cast<int>(pages.shape(0)) != task.sequences || start < 0 || task.tokens < 1 ||
        start + task.tokens > task.page_count * kPageTokens)
        throw std::invalid_argument("the pages don't hold all tokens");
    const Kernel &chosen = find(kernel);
    nb::gil_scoped_release release;
    decode(chosen, task, threads);
}

int encode_states(const std::string &kernel, const Encoder &encoder, Array<const float, 4> states, Array<const std::uint64_t, 2> pages,
                  int start, std::int64_t tile_bytes, int threads) {
    EncodeTask task{};
    task.encoder = &encoder, task.states = states.data();
    task.batch = static_cast<int>(states.shape(0)), task.heads = static_cast<int>(states.shape(1));
    task.tokens = static_cast<int>(states.shape(2));
    task.pages = pages.data(), task.page_count = static_cast<int>(pages.shape(1));
    task.start = start, task.tile_bytes = tile_bytes;
    if (static_cast<int>(states.shape(3)) != encoder.dim) throw std::invalid_argument("states and encoder differ in head_dim");
    if (pages.shape(0) != states.shape(0) || start < 0 || start + task.tokens > task.page_count * kPageTokens)
        throw std::invalid_argument("the pages don't hold all tokens");
    const Kernel &chosen = find(kernel);
    nb::gil_scoped_release release;
    return static_cast<int>(encode(chosen, task, threads));
}

Encoder encoder(int form, int dim, int nbytes, int blocks, int bits, int rotation, int order, std::vector<float> first_signs,
                std::vector<float> second_signs, std::vector<float> paley, float norm_of_rotation, std::vector<float> thresholds,
                std::vector<float> integers, float unit, std::vector<std::int32_t> positions) {
    if (dim > 1024) throw std::invalid_argument("head_dim above 1024 has no kernel");
    Encoder e;
    e.form = static_cast<Encoder::Form>(form);
    e.dim = dim, e.nbytes = nbytes, e.blocks = blocks, e.bits = bits, e.rotation = rotation, e.order = order;
    e.first_signs = std::move(first_signs), e.second_signs = std::move(second_signs), e.paley = std::move(paley);
    e.norm_of_rotation = norm_of_rotation;
    e.thresholds = std::move(thresholds), e.integers = std::move(integers), e.unit = unit;
    e.positions = std::move(positions);
    if (static_cast<int>(e.positions.size()) != kPageTokens * nbytes) throw std::invalid_argument("positions: one a byte and token");
    return e;
}

}  // namespace

void bind_attention(nb::module_ &m) {
    nb::class_<Side>(m, "Side", "How one side's vectors lie in a head's tile.")
        .def("__init__", [](Side *self, int codes, int dim, int nbytes, int blocks, int group, int base_bytes, int base_word,
                            std::int64_t base, int high_bytes, int high_word, std::int64_t high, std::int64_t scale,
                            std::int64_t minimum, bool signed_scale, float unit, const std::vector<int> &table) {
            new (self) Side(side(codes, dim, nbytes, blocks, group, base_bytes, base_word, base, high_bytes, high_word, high, scale,
                                 minimum, signed_scale, unit, table));
        }, "codes"_a, "dim"_a, "nbytes"_a, "blocks"_a, "group"_a, "base_bytes"_a, "base_word"_a, "base"_a, "high_bytes"_a,
           "high_word"_a, "high"_a, "scale"_a, "minimum"_a, "signed_scale"_a, "unit"_a, "table"_a)
        .def_ro("vectors", &Side::vectors, "Whether integer vector code reads it; otherwise rows are decoded one by one.");
    nb::class_<Encoder>(m, "Encoder", "How one side's vectors become bytes in a head's tile.")
        .def("__init__", [](Encoder *self, int form, int dim, int nbytes, int blocks, int bits, int rotation, int order,
                            std::vector<float> first_signs, std::vector<float> second_signs, std::vector<float> paley,
                            float norm_of_rotation, std::vector<float> thresholds, std::vector<float> integers, float unit,
                            std::vector<std::int32_t> positions) {
            new (self) Encoder(encoder(form, dim, nbytes, blocks, bits, rotation, order, std::move(first_signs),
                                       std::move(second_signs), std::move(paley), norm_of_rotation, std::move(thresholds),
                                       std::move(integers), unit, std::move(positions)));
        }, "form"_a, "dim"_a, "nbytes"_a, "blocks"_a, "bits"_a, "rotation"_a, "order"_a, "first_signs"_a, "second_signs"_a,
           "paley"_a, "norm_of_rotation"_a, "thresholds"_a, "integers"_a, "unit"_a, "positions"_a);
    m.def("decode", &decode_pages, "kernel"_a, "side"_a, "pages"_a, "start"_a, "tile_bytes"_a, "floats"_a.none(), "bfloats"_a.none(),
          "threads"_a, "Decode tokens of pages to rows in the stored basis, float32 or bfloat16 (as int16), [sequences, heads, tokens, dim].");
    m.def("encode", &encode_states, "kernel"_a, "encoder"_a, "states"_a, "pages"_a, "start"_a, "tile_bytes"_a, "threads"_a,
          "Encode states [batch, heads, tokens, dim] into pages; 0 good, 1 inf or nan, 2 too large for an f16 scale.");
    m.def("share_openmp", [](const std::string &path) { return share_openmp(path.c_str()); }, "path"_a,
          "Run on the threads of the OpenMP library that is loaded from this path; False where that can't be.");
    m.def("kernels", [] {
        std::vector<std::string> names;
        for (const Kernel *kernel : kernels()) names.emplace_back(kernel->name);
        return names;
    }, "Names of the attention kernels that run on this machine, best first.");
    m.def("attend", &attend_pages, "kernel"_a, "k"_a, "v"_a, "tile_bytes"_a, "kv_heads"_a, "query"_a, "out"_a, "pages"_a,
          "page_start"_a, "first"_a, "last"_a, "sinks"_a.none(), "scale"_a, "softcap"_a, "precise"_a, "threads"_a,
          "Decode attention of some query tokens a sequence over packed pages, into out.");
}

}  // namespace stratakv
