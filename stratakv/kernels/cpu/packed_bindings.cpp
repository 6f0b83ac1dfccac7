// What Python sees of matrices in a file's blocks. Arrays come as addresses: taking a tensor apart costs more than a small product.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "mapped_file.h"
#include "packed_weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stratakv {
namespace {

using Address = std::uint64_t;

template <typename T>
T *at(Address address) {
    return reinterpret_cast<T *>(static_cast<std::uintptr_t>(address));
}

// Some matrices of one input, whose results stand side by side.
struct Group {
    std::vector<Matrix> owned;
    Matrices matrices;

    explicit Group(std::vector<Matrix> given) : owned(std::move(given)) {
        if (owned.empty()) throw std::invalid_argument("a group has at least one matrix");
        for (const Matrix &matrix : owned) {
            if (matrix.columns != owned[0].columns) throw std::invalid_argument("matrices of a group take inputs of one size");
            matrices.push_back(&matrix);
        }
    }
    Group(const Group &other) : Group(other.owned) {}
    std::int64_t rows() const { return total_rows(matrices); }
};

Matrix matrix(int type, std::int64_t rows, std::int64_t columns, Address data, std::vector<std::int32_t> place, std::vector<float> bias) {
    Matrix m;
    m.type = &row_type(type);
    m.rows = rows, m.columns = columns, m.data = at<const std::uint8_t>(data);
    if (rows < 1 || columns < 1 || columns % m.type->block) throw std::invalid_argument("rows must be whole blocks");
    if (columns % m.type->dot_block) throw std::invalid_argument("ggml can't pack activations of this size");
    if ((!place.empty() && std::int64_t(place.size()) != rows) || (!bias.empty() && std::int64_t(bias.size()) != rows))
        throw std::invalid_argument("place and bias: one a row");
    m.source.resize(place.size());
    for (std::size_t row = 0; row < place.size(); ++row) {
        if (place[row] < 0 || place[row] >= rows) throw std::invalid_argument("a place outside of the matrix");
        m.source[place[row]] = static_cast<std::int32_t>(row);
    }
    m.place = std::move(place), m.bias = std::move(bias);
    return m;
}

// A decoder layer of Llama's kind apart from its attention, for a few tokens.
struct Layer {
    Group qkv, output, gate_up, down;
    std::vector<float> input_norm, post_norm, q_norm, k_norm;
    float epsilon;
    std::int64_t q_heads, kv_heads, dim;
    Activation activation;

    // x [batch * tokens][width] to q, k, v, ready for attention; cos and sin as in Heads.
    void enter(Address x, std::int64_t batch, std::int64_t tokens, Address cos, Address sin, std::int64_t cos_batch, Address q, Address k,
               Address v, int threads) const {
        nb::gil_scoped_release release;
        const std::int64_t rows = batch * tokens, width = qkv.owned[0].columns, out = qkv.rows();
        float *normed = scratch(rows * (width + out)), *projected = normed + rows * width;
        rms_norm(at<const float>(x), input_norm.data(), epsilon, rows, width, normed, threads);
        multiply(qkv.matrices, normed, rows, projected, threads);
        const Heads heads{batch, tokens, q_heads, kv_heads, dim, q_norm.empty() ? nullptr : q_norm.data(),
                          k_norm.empty() ? nullptr : k_norm.data(), epsilon, at<const float>(cos), at<const float>(sin), cos_batch};
        split_heads(heads, projected, at<float>(q), at<float>(k), at<float>(v), threads);
    }

    // out = y + mlp(norm(y)), y = x + output(attended); attended is [rows][q_heads * dim].
    void leave(Address attended, Address x, std::int64_t rows, Address out, int threads) const {
        nb::gil_scoped_release release;
        const std::int64_t width = down.owned[0].rows, inner = down.owned[0].columns;
        float *y = scratch(rows * (2 * width + 3 * inner)), *normed = y + rows * width;
        float *both = normed + rows * width, *gated = both + rows * 2 * inner, *to = at<float>(out);
        multiply(output.matrices, at<const float>(attended), rows, y, threads);
        const float *before = at<const float>(x);
        for (std::int64_t i = 0; i < rows * width; ++i) y[i] += before[i];
        rms_norm(y, post_norm.data(), epsilon, rows, width, normed, threads);
        multiply(gate_up.matrices, normed, rows, both, threads);
        gate(activation, both, rows, inner, gated, rows * inner < 2048 ? 1 : threads);
        multiply(down.matrices, gated, rows, to, threads);
        for (std::int64_t i = 0; i < rows * width; ++i) to[i] += y[i];
    }

private:
    static float *scratch(std::int64_t size) {
        thread_local std::vector<float> kept;
        if (static_cast<std::int64_t>(kept.size()) < size) kept.resize(size);
        return kept.data();
    }
};

}  // namespace

void bind_packed_weights(nb::module_ &m) {
    m.def("open_ggml", [](const std::string &base, const std::string &cpu) { return open_ggml(base.c_str(), cpu.c_str()); }, "base"_a, "cpu"_a,
          "Use ggml's kernels from these two libraries; what is wrong with them, or nothing.");
    m.def("tile_kernels", [] {
        std::vector<std::string> names;
        for (const TileKernel *kernel : tile_kernels()) names.emplace_back(kernel->name);
        return names;
    }, "Instruction sets that multiply packed rows on this machine, best first.");
    m.def("tiles_in_use", [] { return std::string(tiles_in_use().name); }, "The instruction set that multiplies packed rows.");
    m.def("use_tiles", &use_tiles, "name"_a, "Multiply with this one from now on; False where it doesn't run here.");
    m.def("check_ggml_type", [](int type) { row_type(type); }, "type"_a, "ValueError for a type that ggml can't multiply here.");
    m.def("guard_mapping", [](Address address, std::uint64_t size) { guard_mapping(at<void>(address), size); }, "address"_a, "size"_a,
          "Let reads of this mapping give zeros, instead of a crash, where its file has become shorter.");
    m.def("forget_mapping", [](Address address) { forget_mapping(at<void>(address)); }, "address"_a, "Before it is unmapped.");
    m.def("mapping_failed", [](Address address) { return mapping_failed(at<void>(address)); }, "address"_a,
          "Whether a read of a guarded mapping found no file behind it.");
    nb::class_<Matrix>(m, "Matrix", "A matrix in a file's blocks, rows x columns.")
        .def("__init__", [](Matrix *self, int type, std::int64_t rows, std::int64_t columns, Address data, std::vector<std::int32_t> place,
                            std::vector<float> bias) {
            new (self) Matrix(matrix(type, rows, columns, data, std::move(place), std::move(bias)));
        }, "type"_a, "rows"_a, "columns"_a, "data"_a, "place"_a, "bias"_a)
        .def("unpack", [](const Matrix &self, Address index, std::int64_t first, std::int64_t count, Address out, int threads) {
            nb::gil_scoped_release release;
            unpack(self, index ? at<const std::int64_t>(index) : nullptr, first, count, at<float>(out), threads);
        }, "index"_a, "first"_a, "count"_a, "out"_a, "threads"_a,
           "Rows by place to float32; index: int64, or 0 for first, first + 1, ...")
        .def("multiply_chosen", [](const Matrix &self, std::int64_t experts, Address index, std::int64_t slots, std::int64_t share, Address x,
                                   Address out, std::int64_t out_stride, int threads) {
            nb::gil_scoped_release release;
            multiply_chosen(self, experts, at<const std::int64_t>(index), slots, share, at<const float>(x), at<float>(out), out_stride, threads);
        }, "experts"_a, "index"_a, "slots"_a, "share"_a, "x"_a, "out"_a, "out_stride"_a, "threads"_a,
           "out[slot] = (the index[slot]-th of equal matrices from this one on) x[slot / share].");
    nb::class_<Group>(m, "MatrixGroup", "Matrices of one input; their results stand side by side.")
        .def("__init__", [](Group *self, const std::vector<Matrix> &matrices) { new (self) Group(matrices); }, "matrices"_a)
        .def("multiply", [](const Group &self, Address x, std::int64_t tokens, Address out, int threads) {
            nb::gil_scoped_release release;
            multiply(self.matrices, at<const float>(x), tokens, at<float>(out), threads);
        }, "x"_a, "tokens"_a, "out"_a, "threads"_a, "out[token] = all matrices x[token], float32.");
    nb::class_<Layer>(m, "PackedLayer", "A decoder layer of Llama's kind apart from its attention.")
        .def("__init__", [](Layer *self, const Group &qkv, const Group &output, const Group &gate_up, const Group &down,
                            std::vector<float> input_norm, std::vector<float> post_norm, std::vector<float> q_norm, std::vector<float> k_norm,
                            float epsilon, std::int64_t q_heads, std::int64_t kv_heads, std::int64_t dim, int activation) {
            new (self) Layer{qkv, output, gate_up, down, std::move(input_norm), std::move(post_norm), std::move(q_norm), std::move(k_norm),
                             epsilon, q_heads, kv_heads, dim, static_cast<Activation>(activation)};
            if (qkv.rows() != (q_heads + 2 * kv_heads) * dim || gate_up.rows() != 2 * down.owned[0].columns)
                throw std::invalid_argument("the layer's matrices don't fit each other");
        }, "qkv"_a, "output"_a, "gate_up"_a, "down"_a, "input_norm"_a, "post_norm"_a, "q_norm"_a, "k_norm"_a, "epsilon"_a, "q_heads"_a,
           "kv_heads"_a, "dim"_a, "activation"_a)
        .def("enter", &Layer::enter, "x"_a, "batch"_a, "tokens"_a, "cos"_a, "sin"_a, "cos_batch"_a, "q"_a, "k"_a, "v"_a, "threads"_a)
        .def("leave", &Layer::leave, "attended"_a, "x"_a, "rows"_a, "out"_a, "threads"_a);
    m.def("rms_norm", [](Address x, Address weight, float epsilon, std::int64_t rows, std::int64_t dim, Address out, int threads) {
        nb::gil_scoped_release release;
        rms_norm(at<const float>(x), at<const float>(weight), epsilon, rows, dim, at<float>(out), threads);
    }, "x"_a, "weight"_a, "epsilon"_a, "rows"_a, "dim"_a, "out"_a, "threads"_a, "out = x / rms(x) * weight, by rows.");
    m.def("gate", [](int activation, Address x, std::int64_t rows, std::int64_t width, Address out, int threads) {
        nb::gil_scoped_release release;
        gate(static_cast<Activation>(activation), at<const float>(x), rows, width, at<float>(out), threads);
    }, "activation"_a, "x"_a, "rows"_a, "width"_a, "out"_a, "threads"_a, "out = activation(left half of x) * right half, by rows.");
    m.def("split_heads", [](Address qkv, std::int64_t batch, std::int64_t tokens, std::int64_t q_heads, std::int64_t kv_heads, std::int64_t dim,
                            Address q_norm, Address k_norm, float epsilon, Address cos, Address sin, std::int64_t cos_batch, Address q,
                            Address k, Address v, int threads) {
        nb::gil_scoped_release release;
        split_heads(Heads{batch, tokens, q_heads, kv_heads, dim, at<const float>(q_norm), at<const float>(k_norm), epsilon,
                          at<const float>(cos), at<const float>(sin), cos_batch},
                    at<const float>(qkv), at<float>(q), at<float>(k), at<float>(v), threads);
    }, "qkv"_a, "batch"_a, "tokens"_a, "q_heads"_a, "kv_heads"_a, "dim"_a, "q_norm"_a, "k_norm"_a, "epsilon"_a, "cos"_a, "sin"_a,
       "cos_batch"_a, "q"_a, "k"_a, "v"_a, "threads"_a, "Projections to normed and rotated heads.");
}

}  // namespace stratakv
