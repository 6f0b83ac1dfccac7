// Some matrices of one input, whose results stand side by side.
#pragma once
#include <stdexcept>
#include <utility>
#include <vector>

#include "packed_weights.h"

namespace stratakv {

struct Group {
    std::vector<Matrix> owned;
    Matrices matrices;

    explicit Group(std::vector<Matrix> given) : owned(std::move(given)) {
        if (owned.empty()) throw std::invalid_argument("a group has at least one matrix");
        for (const Matrix &matrix : owned) {
            if (matrix.columns != owned[0].columns)
                throw std::invalid_argument("matrices of a group take inputs of one size");
            matrices.push_back(&matrix);
        }
    }
    Group(const Group &other) : Group(other.owned) {}
    std::int64_t rows() const { return total_rows(matrices); }
    std::int64_t columns() const { return owned[0].columns; }
};

}  // namespace stratakv
