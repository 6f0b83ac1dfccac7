// What Python sees of matrices in a file's blocks. Arrays come as addresses: taking a tensor apart costs more than a
// small product.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "mapped_file.h"
#include "matrix_group.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stratakv {
namespace {

Matrix matrix(int type, std::int64_t rows, std::int64_t columns, Address data, std::vector<std::int32_t> place,
              std::vector<float> bias) {
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

}  // namespace

void bind_packed_weights(nb::module_ &m) {
    m.def(
        "open_ggml",
        [](const std::string &base, const std::string &cpu) { return open_ggml(base.c_str(), cpu.c_str()); }, "base"_a,
        "cpu"_a, "Use ggml's kernels from these two libraries; what is wrong with them, or nothing.");
    m.def(
        "tile_kernels",
        [] {
            std::vector<std::string> names;
            for (const TileKernel *kernel : tile_kernels()) names.emplace_back(kernel->name);
            return names;
        },
        "Instruction sets that multiply packed rows on this machine, best first.");
    m.def(
        "tiled", [](int type) { return tiles_in_use().find(type) != nullptr; }, "type"_a,
        "Whether rows of this ggml type are multiplied in tiles of ours.");
    m.def(
        "tiles_in_use", [] { return std::string(tiles_in_use().name); },
        "The instruction set that multiplies packed rows.");
    m.def("use_tiles", &use_tiles, "name"_a, "Multiply with this one from now on; False where it doesn't run here.");
    m.def(
        "check_ggml_type", [](int type) { row_type(type); }, "type"_a,
        "ValueError for a type that ggml can't multiply here.");
    m.def(
        "guard_mapping", [](Address address, std::uint64_t size) { guard_mapping(at<void>(address), size); },
        "address"_a, "size"_a,
        "Let reads of this mapping give zeros, instead of a crash, where its file has become shorter.");
    m.def(
        "forget_mapping", [](Address address) { forget_mapping(at<void>(address)); }, "address"_a,
        "Before it is unmapped.");
    m.def(
        "mapping_failed", [](Address address) { return mapping_failed(at<void>(address)); }, "address"_a,
        "Whether a read of a guarded mapping found no file behind it.");
    nb::class_<Matrix>(m, "Matrix", "A matrix in a file's blocks, rows x columns.")
        .def(
            "__init__",
            [](Matrix *self, int type, std::int64_t rows, std::int64_t columns, Address data,
               std::vector<std::int32_t> place, std::vector<float> bias) {
                new (self) Matrix(matrix(type, rows, columns, data, std::move(place), std::move(bias)));
            },
            "type"_a, "rows"_a, "columns"_a, "data"_a, "place"_a, "bias"_a)
        .def(
            "unpack",
            [](const Matrix &self, Address index, std::int64_t first, std::int64_t count, Address out, int threads) {
                nb::gil_scoped_release release;
                unpack(self, index ? at<const std::int64_t>(index) : nullptr, first, count, at<float>(out), threads);
            },
            "index"_a, "first"_a, "count"_a, "out"_a, "threads"_a,
            "Rows by place to float32; index: int64, or 0 for first, first + 1, ...")
        .def(
            "multiply_chosen",
            [](const Matrix &self, std::int64_t experts, Address index, std::int64_t slots, std::int64_t share,
               Address x, Address out, std::int64_t out_stride, int threads) {
                nb::gil_scoped_release release;
                multiply_chosen(self, experts, at<const std::int64_t>(index), slots, share, at<const float>(x),
                                at<float>(out), out_stride, threads);
            },
            "experts"_a, "index"_a, "slots"_a, "share"_a, "x"_a, "out"_a, "out_stride"_a, "threads"_a,
            "out[slot] = (the index[slot]-th of equal matrices from this one on) x[slot / share].");
    nb::class_<Group>(m, "MatrixGroup", "Matrices of one input; their results stand side by side.")
        .def(
            "__init__", [](Group *self, const std::vector<Matrix> &matrices) { new (self) Group(matrices); },
            "matrices"_a)
        .def(
            "multiply",
            [](const Group &self, Address x, std::int64_t tokens, Address out, int threads) {
                nb::gil_scoped_release release;
                multiply(self.matrices, at<const float>(x), tokens, at<float>(out), threads);
            },
            "x"_a, "tokens"_a, "out"_a, "threads"_a, "out[token] = all matrices x[token], float32.");
}

}  // namespace stratakv
