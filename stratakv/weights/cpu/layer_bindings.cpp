// What Python sees of layers made of parts. Arrays come as addresses, as in packed_bindings.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>

#include "bindings.h"
#include "layer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stratakv {
namespace {

void wants(bool good, const char *what) {
    if (!good) throw std::invalid_argument(what);
}

// Columns of the table that a step is given, a row of addresses and numbers a layer: the angles', the step's, then
// those of pages that are written, the same of sealed ones (base 0: there are none), and which pages become such.
enum Column { kCos, kSin, kSlots, kQueryStart, kSequences, kDecoding, kWritten };
enum PagesColumn { kBase, kStride, kPages, kPageStart, kFirst, kLast, kPagesColumns };
constexpr int kSealed = kWritten + kPagesColumns, kFilled = kSealed + kPagesColumns, kFilledPages = kFilled + 1,
              kColumns = kFilledPages + 1;

SeenPages seen_pages(const Layout &layout, const AttentionPart &part, const std::uint64_t *row) {
    if (!row[kBase]) return {};
    wants(layout.kv_heads == part.kv_heads && layout.k.dim == part.dim && layout.v.dim == part.dim,
          "the layer's pages hold other heads");
    return {&layout,
            {row[kBase], row[kStride]},
            at<const std::int64_t>(row[kPages]),
            at<const std::int64_t>(row[kPageStart]),
            at<const std::int32_t>(row[kFirst]),
            at<const std::int32_t>(row[kLast])};
}

StepPages step_pages(const Layout &layout, const Layout &sealed, const AttentionPart &part, const std::uint64_t *row) {
    const int sequences = static_cast<int>(row[kSequences]), decoding = static_cast<int>(row[kDecoding]);
    wants(0 <= decoding && decoding <= sequences, "no such sequences");
    const StepPages step{seen_pages(layout, part, row + kWritten),
                         seen_pages(sealed, part, row + kSealed),
                         at<const std::int64_t>(row[kSlots]),
                         at<const std::int32_t>(row[kQueryStart]),
                         sequences,
                         decoding,
                         at<const std::int64_t>(row[kFilled]),
                         static_cast<int>(row[kFilledPages])};
    wants(step.written.layout, "a layer's pages lie nowhere");
    wants(!step.filled_pages || (step.sealed.layout && sealed.encodes()), "pages can't become sealed ones");
    return step;
}

// Layers in order, kept alive by Python.
struct Layers {
    std::vector<const Layer *> layers;

    std::tuple<int, bool, int, int, std::string> run(int begin, int end, Address table,
                                                     const std::vector<const Layout *> &layouts,
                                                     const std::vector<const Layout *> &sealed,
                                                     const std::string &kernel, bool precise, Address x,
                                                     std::int64_t rows, std::int64_t angle_rows,
                                                     std::int64_t angle_stride, std::int64_t angle_step,
                                                     int threads) const {
        wants(0 <= begin && begin <= end && end <= static_cast<int>(layers.size()) && layouts.size() == layers.size() &&
                  sealed.size() == layers.size(),
              "no such layers");
        const std::vector<const Layer *> chosen(layers.begin() + begin, layers.begin() + end);
        std::vector<StepPages> pages;
        std::vector<Angles> angles;
        for (int i = begin; i < end; ++i) {
            const std::uint64_t *row = at<const std::uint64_t>(table) + i * kColumns;
            pages.push_back(step_pages(*layouts[i], *sealed[i], layers[i]->attention, row));
            wants(layouts[i]->encodes(), "a type of the layer is encoded by its own code");
            angles.push_back(
                {at<const float>(row[kCos]), at<const float>(row[kSin]), angle_rows, angle_stride, angle_step});
        }
        const Kernel &found = find_kernel(kernel);
        nb::gil_scoped_release release;
        const StepOutcome outcome = run_layers(chosen, pages, angles, found, precise, at<float>(x), rows, threads);
        return {outcome.layer < 0 ? -1 : outcome.layer + begin, outcome.sealing, outcome.side, outcome.what,
                outcome.ran};
    }
};

}  // namespace

void bind_layers(nb::module_ &m) {
    nb::class_<Norm>(m, "Norm", "x / rms(x) * weight; no weight: no norm.")
        .def(
            "__init__",
            [](Norm *self, std::vector<float> weight, float epsilon) { new (self) Norm{std::move(weight), epsilon}; },
            "weight"_a, "epsilon"_a)
        .def_ro("weight", &Norm::weight)
        .def_ro("epsilon", &Norm::epsilon);
    nb::class_<AttentionPart>(m, "AttentionPart",
                              "Of a decoder layer: norm, q, k, v, RoPE; and after attention the output and its norm.")
        .def(
            "__init__",
            [](AttentionPart *self, const Norm &before, const Group &qkv, std::int64_t q_heads, std::int64_t kv_heads,
               std::int64_t dim, const Norm &q_norm, const Norm &k_norm, const Norm &v_norm, std::int64_t rotated,
               bool interleaved, float scale, float softcap, std::vector<float> sinks, const Group &output,
               const Norm &after, float residual) {
                const auto fits = [](const Norm &norm, std::int64_t size) {
                    return !norm || size % std::int64_t(norm.weight.size()) == 0;
                };
                wants(qkv.rows() == (q_heads + 2 * kv_heads) * dim && output.columns() == q_heads * dim,
                      "the matrices don't fit the heads");
                // none: the layer attends to what another one has stored
                wants(kv_heads >= 0 && (kv_heads == 0 || q_heads % kv_heads == 0),
                      "query heads must be a multiple of kv heads");
                wants(rotated >= 0 && rotated <= dim && rotated % 2 == 0, "RoPE turns pairs of a head's values");
                wants(fits(before, qkv.columns()) && fits(q_norm, q_heads * dim) && fits(k_norm, kv_heads * dim) &&
                          fits(v_norm, kv_heads * dim) && fits(after, output.rows()),
                      "a norm doesn't fit");
                wants(sinks.empty() || std::int64_t(sinks.size()) == q_heads, "sinks: one a query head");
                new (self) AttentionPart{before,           qkv,    q_heads, kv_heads,    dim,   q_norm,
                                         k_norm,           v_norm, rotated, interleaved, scale, softcap,
                                         std::move(sinks), output, after,   residual};
            },
            "before"_a, "qkv"_a, "q_heads"_a, "kv_heads"_a, "dim"_a, "q_norm"_a, "k_norm"_a, "v_norm"_a, "rotated"_a,
            "interleaved"_a, "scale"_a, "softcap"_a, "sinks"_a, "output"_a, "after"_a, "residual"_a);
    nb::class_<MlpPart>(m, "MlpPart", "Of a decoder layer: norm, gate and up, activation, down, norm.")
        .def(
            "__init__",
            [](MlpPart *self, const Norm &before, const Group &gate_up, int activation, const Group &down,
               const Norm &after, float residual) {
                wants(gate_up.rows() == 2 * down.columns() && gate_up.columns() == down.rows(),
                      "the matrices don't fit each other");
                new (self) MlpPart{before, gate_up, static_cast<Activation>(activation), down, after, residual};
            },
            "before"_a, "gate_up"_a, "activation"_a, "down"_a, "after"_a, "residual"_a);
    nb::class_<Layer>(m, "PackedLayer",
                      "A decoder layer made of parts; without an MLP part the caller has one of its own.")
        .def(
            "__init__",
            [](Layer *self, const AttentionPart &attention, const MlpPart *mlp) {
                new (self) Layer{attention, mlp ? std::optional<MlpPart>(*mlp) : std::nullopt};
            },
            "attention"_a, "mlp"_a.none())
        .def(
            "enter",
            [](const Layer &self, Address x, std::int64_t batch, std::int64_t tokens, Address cos, Address sin,
               std::int64_t angle_rows, std::int64_t angle_stride, std::int64_t angle_step, Address q, Address k,
               Address v, int threads) {
                nb::gil_scoped_release release;
                const std::int64_t rows = batch * tokens;
                thread_local std::vector<float> projected;
                if (std::int64_t(projected.size()) < rows * self.attention.width())
                    projected.resize(rows * self.attention.width());
                const Angles angles{at<const float>(cos), at<const float>(sin), angle_rows, angle_stride, angle_step};
                project(self.attention, at<const float>(x), rows, angles, projected.data(), threads);
                split(self.attention, projected.data(), batch, tokens, at<float>(q), at<float>(k), at<float>(v),
                      threads);
            },
            "x"_a, "batch"_a, "tokens"_a, "cos"_a, "sin"_a, "angle_rows"_a, "angle_stride"_a, "angle_step"_a, "q"_a,
            "k"_a, "v"_a, "threads"_a,
            "x [batch * tokens][width] to q, k, v [batch][heads][tokens][dim], normed and turned.")
        .def(
            "leave",
            [](const Layer &self, Address attended, std::int64_t rows, Address x, int threads) {
                nb::gil_scoped_release release;
                leave(self.attention, at<const float>(attended), rows, at<float>(x), threads);
                if (self.mlp) feed(*self.mlp, at<float>(x), rows, threads);
            },
            "attended"_a, "rows"_a, "x"_a, "threads"_a,
            "x [rows][width] becomes the layer's result; attended [rows][q_heads * dim].");
    nb::class_<Layers>(m, "PackedLayers", "Layers in order, for whole steps.")
        .def(
            "__init__", [](Layers *self, const std::vector<const Layer *> &layers) { new (self) Layers{layers}; },
            "layers"_a, nb::keep_alive<1, 2>())
        .def(
            "run", &Layers::run, "begin"_a, "end"_a, "table"_a, "layouts"_a, "sealed"_a, "kernel"_a, "precise"_a, "x"_a,
            "rows"_a, "angle_rows"_a, "angle_stride"_a, "angle_step"_a, "threads"_a,
            "Layers [begin, end) of a step over packed pages, in place on x [rows][width]. table: uint64 "
            "[layers][20], addresses of cos and sin, of slots and query_start, numbers of sequences and of those that "
            "decode; then base, stride, pages, page_start, first and last of pages that are written; then the same of "
            "sealed ones, base 0 without; then where numbers of written pages and of the sealed ones that they become "
            "in this step lie, in pairs, and how many pairs. layouts: of the pages that are written; sealed: of the "
            "others, any where there are none. Returns (layer, whether a page couldn't be sealed, side, what, kernel), "
            "side and what as `append`'s, layer -1: good.");
    m.def(
        "rms_norm",
        [](Address x, Address weight, float epsilon, std::int64_t rows, std::int64_t dim, Address out, int threads) {
            nb::gil_scoped_release release;
            rms_norm(at<const float>(x), at<const float>(weight), epsilon, rows, dim, at<float>(out), threads);
        },
        "x"_a, "weight"_a, "epsilon"_a, "rows"_a, "dim"_a, "out"_a, "threads"_a, "out = x / rms(x) * weight, by rows.");
    m.def(
        "gate",
        [](int activation, Address x, std::int64_t rows, std::int64_t width, Address out, int threads) {
            nb::gil_scoped_release release;
            gate(static_cast<Activation>(activation), at<const float>(x), rows, width, at<float>(out), threads);
        },
        "activation"_a, "x"_a, "rows"_a, "width"_a, "out"_a, "threads"_a,
        "out = activation(left half of x) * right half, by rows.");
}

}  // namespace stratakv
