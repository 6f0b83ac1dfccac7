// What Python sees of decode attention.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <iterator>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "attend_dispatch.h"
#include "page_layout.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stratakv {
namespace {

template <typename T, std::size_t N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
// [tokens, heads, dim] in float32, float16 or bfloat16, strided
using States = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using Result = nb::ndarray<nb::ndim<3>, nb::device::cpu>;

void wants(bool good, const char *what) {
    if (!good) throw std::invalid_argument(what);
}

template <typename Out, typename Given>
Out matrix(const Given &given, int heads, int dim) {
    const nb::dlpack::dtype type = given.dtype();
    Precision precision = Precision::f32;
    if (type == nb::dlpack::dtype{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1})
        precision = Precision::bf16;
    else if (type == nb::dlpack::dtype{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1})
        precision = Precision::f16;
    else
        wants(type == nb::dtype<float>(), "states are float32, float16 or bfloat16");
    wants(static_cast<int>(given.shape(1)) == heads, "wrong number of heads");
    wants(static_cast<int>(given.shape(2)) == dim, "wrong head_dim");
    wants(given.stride(2) == 1 || dim == 1, "values of a vector must lie side by side");
    return {given.data(), precision, given.stride(0), given.stride(1)};
}

Side side(int codes, int dim, int nbytes, int blocks, int group, int base_bytes, int base_word, std::int64_t base,
          int high_bytes, int high_word, std::int64_t high, std::int64_t scale, std::int64_t minimum, bool signed_scale,
          float unit, const std::vector<int> &table) {
    if (table.size() > 128) throw std::invalid_argument("a code table has at most 128 entries");
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
    for (std::size_t i = 0; i < std::size(s.table) && !table.empty(); ++i)
        s.table[i] = static_cast<std::int8_t>(table[level_of(s.codes, static_cast<int>(i % table.size()))]);
    const bool codes_only = s.codes >= Codes::byte;
    const bool whole_words = base_bytes / blocks % 4 == 0 && (high_bytes == 0 || high_bytes % 4 == 0);
    const bool whole_units = blocks == 1 ? high_bytes == 0 || base_bytes % 16 == 0 : base_bytes / blocks % 16 == 0;
    const bool known_order = (s.codes != Codes::halves && s.codes != Codes::halves_1) || dim / blocks == 32;
    s.vectors = codes_only && whole_words && whole_units && known_order;
    // V's trellis codes are unpacked block by block, whatever their length
    if (is_trellis(s.codes))
        s.vectors = dim / blocks >= 32 && (group == 4 || (whole_words && high_bytes / blocks % 4 == 0));
    return s;
}

// One kind of pages and what queries see of them: layout, base and stride of the pool, pages, page_start, first, last.
using Kind = std::tuple<const Layout *, std::uint64_t, std::uint64_t, Array<const std::int64_t, 1>,
                        Array<const std::int64_t, 1>, Array<const std::int32_t, 1>, Array<const std::int32_t, 1>>;

std::string attend_pages(const std::string &kernel, const std::vector<Kind> &kinds, const States &query,
                         const Result &out, std::optional<Array<float, 2>> lse,
                         Array<const std::int32_t, 1> query_start, std::optional<Array<const float, 1>> sinks,
                         float scale, float softcap, bool precise, int threads) {
    wants(!kinds.empty() && kinds.size() <= kMostKinds, "one or two kinds of pages");
    wants(query_start.shape(0) > 0, "query_start: one entry a sequence, and an end");
    const std::size_t tokens = query.shape(0), q_heads = query.shape(1);
    const int sequences = static_cast<int>(query_start.shape(0)) - 1;
    wants(query_start.data()[0] == 0 && static_cast<std::size_t>(query_start.data()[sequences]) == tokens,
          "query_start ends where the queries do");
    wants(out.shape(0) == tokens, "query and out: one entry a query token");
    wants(!sinks || sinks->shape(0) == q_heads, "sinks: one a query head");
    wants(!lse || (lse->shape(0) == tokens && lse->shape(1) == q_heads), "lse: one a query token and head");
    std::vector<Attention> parts;
    for (const auto &[layout, base, stride, pages, page_start, first, last] : kinds) {
        const Layout &first_layout = *std::get<0>(kinds.front());
        wants(layout->kv_heads == first_layout.kv_heads && layout->k.dim == first_layout.k.dim &&
                  layout->v.dim == first_layout.v.dim,
              "both kinds of pages hold the same heads");
        wants(q_heads % layout->kv_heads == 0, "query heads must be a multiple of kv heads");
        wants(page_start.shape(0) == query_start.shape(0), "page_start: one entry a sequence, and an end");
        wants(first.shape(0) == tokens && last.shape(0) == tokens, "first and last: one entry a query token");
        wants(page_start.data()[0] >= 0 && page_start.data()[sequences] <= static_cast<std::int64_t>(pages.shape(0)),
              "page_start ends beyond the pages");
        for (int s = 0; s < sequences; ++s) {
            const std::int64_t held = (page_start.data()[s + 1] - page_start.data()[s]) * kPageTokens;
            wants(held >= 0 && query_start.data()[s] <= query_start.data()[s + 1],
                  "page_start and query_start must ascend");
            for (int t = query_start.data()[s]; t < query_start.data()[s + 1]; ++t)
                wants(first.data()[t] >= 0 && last.data()[t] <= held,
                      "a query sees tokens that its block table doesn't hold");
        }
        Attention a = attention_over(*layout, {base, stride}, static_cast<int>(q_heads));
        a.sequences = sequences, a.query_start = query_start.data();
        a.query = matrix<Input>(query, static_cast<int>(q_heads), a.k.dim);
        a.out = matrix<Output>(out, static_cast<int>(q_heads), a.v.dim);
        a.pages = pages.data(), a.page_start = page_start.data(), a.first = first.data(), a.last = last.data();
        a.sinks = sinks ? sinks->data() : nullptr, a.lse = lse ? lse->data() : nullptr;
        a.scale = scale, a.softcap = softcap, a.precise = precise;
        parts.push_back(a);
    }
    const Kernel &chosen = find_kernel(kernel);
    nb::gil_scoped_release release;
    return attend(chosen, parts.data(), static_cast<int>(parts.size()), threads);
}

void decode_pages(const std::string &kernel, const Layout &layout, bool of_k, std::uint64_t base, std::uint64_t stride,
                  Array<const std::int64_t, 2> pages, int start, std::optional<Array<float, 4>> floats,
                  std::optional<Array<std::int16_t, 4>> bfloats, int threads) {
    wants(floats.has_value() != bfloats.has_value(), "one of floats and bfloats");
    DecodeTask task{};
    auto shape = [&](std::size_t i) { return static_cast<int>(floats ? floats->shape(i) : bfloats->shape(i)); };
    task.side = of_k ? &layout.k : &layout.v;
    task.where = {base, stride}, task.pages = pages.data(), task.page_count = static_cast<int>(pages.shape(1));
    task.sequences = shape(0), task.heads = shape(1), task.tokens = shape(2);
    task.start = start, task.tile_bytes = layout.tile_bytes;
    task.floats = floats ? floats->data() : nullptr;
    task.bfloats = bfloats ? reinterpret_cast<std::uint16_t *>(bfloats->data()) : nullptr;
    wants(shape(1) == layout.kv_heads && shape(3) == task.side->dim,
          "out must be [sequences, kv_heads, tokens, head_dim]");
    wants(static_cast<int>(pages.shape(0)) == task.sequences && start >= 0 && task.tokens > 0 &&
              start + task.tokens <= task.page_count * kPageTokens,
          "the pages don't hold all tokens");
    const Kernel &chosen = find_kernel(kernel);
    nb::gil_scoped_release release;
    decode(chosen, task, threads);
}

std::pair<int, int> append_states(const std::string &kernel, const Layout &layout, std::uint64_t base,
                                  std::uint64_t stride, const States &k, const States &v,
                                  Array<const std::int64_t, 1> slots, int threads) {
    EncodeTask tasks[2] = {};
    tasks[0].encoder = &layout.k_encoder, tasks[0].states = matrix<Input>(k, layout.kv_heads, layout.k.dim);
    tasks[1].encoder = &layout.v_encoder, tasks[1].states = matrix<Input>(v, layout.kv_heads, layout.v.dim);
    wants(layout.encodes(), "a type of this layout is encoded by its own code");
    wants(k.shape(0) == slots.shape(0) && v.shape(0) == slots.shape(0), "k, v and slots: one entry a token");
    for (EncodeTask &task : tasks) {
        task.heads = layout.kv_heads, task.tokens = static_cast<int>(slots.shape(0));
        task.where = {base, stride}, task.slots = slots.data(), task.tile_bytes = layout.tile_bytes;
    }
    const Kernel &chosen = find_kernel(kernel);
    nb::gil_scoped_release release;
    const Failure failure = encode(chosen, tasks, 2, threads);
    return {failure.task, static_cast<int>(failure.what)};
}

std::pair<int, int> convert_pages(const std::string &kernel, const Layout &from, std::uint64_t base,
                                  std::uint64_t stride, const Layout &to, std::uint64_t to_base,
                                  std::uint64_t to_stride, Array<const std::int64_t, 2> numbers, int threads) {
    wants(from.kv_heads == to.kv_heads && from.k.dim == to.k.dim && from.v.dim == to.v.dim,
          "pages become pages of the same heads");
    wants(to.encodes(), "a type of this layout is encoded by its own code");
    wants(numbers.shape(1) == 2, "numbers: of a page here and there");
    const Kernel &chosen = find_kernel(kernel);
    nb::gil_scoped_release release;
    const Failure failure = convert(chosen, from, {base, stride}, to, {to_base, to_stride}, numbers.data(),
                                    static_cast<int>(numbers.shape(0)), threads);
    return {failure.task, static_cast<int>(failure.what)};
}

}  // namespace

void bind_attention(nb::module_ &m) {
    nb::class_<Side>(m, "Side", "How one side's vectors lie in a head's tile.")
        .def(
            "__init__",
            [](Side *self, int codes, int dim, int nbytes, int blocks, int group, int base_bytes, int base_word,
               std::int64_t base, int high_bytes, int high_word, std::int64_t high, std::int64_t scale,
               std::int64_t minimum, bool signed_scale, float unit, const std::vector<int> &table) {
                new (self) Side(side(codes, dim, nbytes, blocks, group, base_bytes, base_word, base, high_bytes,
                                     high_word, high, scale, minimum, signed_scale, unit, table));
            },
            "codes"_a, "dim"_a, "nbytes"_a, "blocks"_a, "group"_a, "base_bytes"_a, "base_word"_a, "base"_a,
            "high_bytes"_a, "high_word"_a, "high"_a, "scale"_a, "minimum"_a, "signed_scale"_a, "unit"_a, "table"_a);
    nb::class_<Rotation>(m, "Rotation", "y = second * (H (first * x)) * norm on runs of `block` values.")
        .def(
            "__init__",
            [](Rotation *self, int block, int order, std::vector<float> first, std::vector<float> second,
               std::vector<float> paley, float norm) {
                for (float &sign : second) sign *= norm;
                new (self) Rotation{block, order, std::move(first), std::move(second), std::move(paley)};
            },
            "block"_a, "order"_a, "first"_a, "second"_a, "paley"_a, "norm"_a);
    nb::class_<Encoder>(m, "Encoder", "How one side's vectors become bytes in a head's tile.")
        .def(
            "__init__",
            [](Encoder *self, int form, int dim, int nbytes, int blocks, int bits, const Rotation &rotation,
               std::vector<float> thresholds, std::vector<int> integers, float unit, float bins,
               const std::vector<int> &numbers, const std::vector<int> &costs,
               const std::vector<std::int32_t> &positions) {
                new (self) Encoder(make_encoder(form, dim, nbytes, blocks, bits, rotation, std::move(thresholds),
                                                std::move(integers), unit, bins, numbers, costs, positions));
            },
            "form"_a, "dim"_a, "nbytes"_a, "blocks"_a, "bits"_a, "rotation"_a, "thresholds"_a, "integers"_a, "unit"_a,
            "bins"_a, "numbers"_a, "costs"_a, "positions"_a);
    nb::class_<Layout>(m, "Layout", "A layer's page layout: both sides, and a head's tile.")
        .def(
            "__init__",
            [](Layout *self, const Side &k, const Side &v, const Encoder &k_encoder, const Encoder &v_encoder,
               int kv_heads, std::int64_t tile_bytes) {
                wants(kv_heads > 0, "a layer has one kv head or more");
                new (self) Layout{k,
                                  v,
                                  k_encoder,
                                  v_encoder,
                                  k_encoder.rotation.inverse(),
                                  v_encoder.rotation.inverse(),
                                  kv_heads,
                                  tile_bytes};
            },
            "k"_a, "v"_a, "k_encoder"_a, "v_encoder"_a, "kv_heads"_a, "tile_bytes"_a)
        .def_prop_ro(
            "vectors", [](const Layout &l) { return std::make_pair(l.k.vectors, l.v.vectors); },
            "Whether integer vector code reads K, V; otherwise rows are decoded one by one.");
    m.def("decode", &decode_pages, "kernel"_a, "layout"_a, "of_k"_a, "base"_a, "stride"_a, "pages"_a, "start"_a,
          "floats"_a.none(), "bfloats"_a.none(), "threads"_a,
          "Decode tokens of pages to rows in the stored basis, float32 or bfloat16 (as int16), [sequences, kv_heads, "
          "tokens, dim].");
    m.def("append", &append_states, "kernel"_a, "layout"_a, "base"_a, "stride"_a, "k"_a, "v"_a, "slots"_a, "threads"_a,
          "Encode states [tokens, kv_heads, dim] into pages. Returns (side, what): side -1 good, 0 K, 1 V; what 1 inf "
          "or nan, 2 too large.");
    m.def("page_tokens", [] { return kPageTokens; }, "Tokens of the pages that the kernels read and write.");
    m.def(
        "packings", [] { return std::vector<std::string>(std::begin(kCodeNames), std::end(kCodeNames)); },
        "Ways to pack codes that the kernels read, in the order of Side's `codes`.");
    m.def(
        "encodings", [] { return std::vector<std::string>(std::begin(Encoder::kForms), std::end(Encoder::kForms)); },
        "Ways to encode that the kernels know, in the order of Encoder's `form`; one more: none.");
    m.def(
        "kernels",
        [] {
            std::vector<std::string> names;
            for (const Kernel *kernel : kernels()) names.emplace_back(kernel->name);
            return names;
        },
        "Names of the attention kernels that run on this machine, best first.");
    m.def("convert", &convert_pages, "kernel"_a, "layout"_a, "base"_a, "stride"_a, "target"_a, "target_base"_a,
          "target_stride"_a, "numbers"_a, "threads"_a,
          "Whole pages become pages of another layout, from what they hold. numbers [pages, 2]: of a page here and "
          "there. Returns (side, what) as `append`.");
    m.def("attend", &attend_pages, "kernel"_a, "kinds"_a, "query"_a, "out"_a, "lse"_a.none(), "query_start"_a,
          "sinks"_a.none(), "scale"_a, "softcap"_a, "precise"_a, "threads"_a,
          "Decode attention of sequences with some query tokens each over packed pages, into out, both in the model's "
          "basis. kinds: of pages, one or two, of which none holds what the other one does, each as (layout, base, "
          "stride, pages, page_start, first, last). Returns the name of the kernel that ran, empty when there was "
          "nothing to do.");
}

}  // namespace stratakv
