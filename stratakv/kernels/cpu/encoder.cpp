// An encoder from what Python says of a type and a layout.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <utility>

#include "encode.h"

namespace stratakv {

Encoder make_encoder(int form, int dim, int nbytes, int blocks, int bits, Rotation rotation,
                     std::vector<float> thresholds, std::vector<int> integers, float unit, float bins,
                     const std::vector<int> &numbers, const std::vector<int> &costs,
                     const std::vector<std::int32_t> &positions) {
    if (dim > 1024) throw std::invalid_argument("head_dim above 1024 has no kernel");
    if (static_cast<int>(positions.size()) != kPageTokens * nbytes)
        throw std::invalid_argument("positions: one a byte and token");
    Encoder e;
    e.form = static_cast<Encoder::Form>(form);
    e.dim = dim, e.nbytes = nbytes, e.blocks = blocks, e.bits = bits, e.rotation = std::move(rotation);
    e.thresholds = std::move(thresholds), e.unit = unit;
    e.thresholds.resize(std::max<std::size_t>(e.thresholds.size(), 128), std::numeric_limits<float>::infinity());
    if (e.form == Encoder::Form::trellis) {
        if (numbers.size() != 4 * Encoder::kBins || costs.size() != numbers.size() ||
            integers.size() != std::size_t(2) << bits)
            throw std::invalid_argument("a trellis has a number and a cost a bin and subset, and two levels a code");
        e.bins = bins, e.costs.assign(costs.begin(), costs.end());
        for (std::size_t i = 0; i < numbers.size(); ++i)
            e.nearest.push_back(
                static_cast<std::uint16_t>(numbers[i] | std::abs(integers[4 * numbers[i] + i % 4]) << 8));
        const int block = dim / blocks, stride = block / 8;  // strides of 8 values
        for (int i = -Encoder::kSeam; i < block + Encoder::kSeam; ++i) {
            const int at = (i % block + block) % block;
            e.path.push_back(static_cast<std::uint16_t>(8 * (at % stride) + at / stride));
        }
    }
    for (int integer : integers) e.squares.push_back(static_cast<float>(integer * integer));
    for (std::size_t i = 0; i < 64 && bits < 8 && !integers.empty(); ++i)
        e.magnitudes[i] = static_cast<std::int8_t>(std::abs(integers[i % integers.size()]));
    // runs of 4 bytes are copied at once, others byte by byte. Runs belong together while they are equally far apart in
    // all tokens.
    const auto run = [&](int i) {
        int length = 1;
        while (length < 4 && i + length < nbytes && positions[i + length] == positions[i] + length) ++length;
        return length == 4 ? 4 : 1;
    };
    const auto apart = [&](int i, int j, int distance) {
        for (int t = 0; t < kPageTokens; ++t)
            if (positions[std::size_t(t) * nbytes + j] != positions[std::size_t(t) * nbytes + i] + distance)
                return false;
        return true;
    };
    for (int i = 0; i < nbytes;) {
        Encoder::Runs runs{run(i), 1, 0, {}};
        for (int t = 0; t < kPageTokens; ++t) runs.offsets.push_back(positions[std::size_t(t) * nbytes + i]);
        int end = i + runs.length;
        if (end < nbytes) runs.stride = positions[end] - positions[i];
        for (; end < nbytes && run(end) == runs.length && apart(i, end, runs.count * runs.stride); end += runs.length)
            ++runs.count;
        i = end;
        e.runs.push_back(std::move(runs));
    }
    return e;
}

}  // namespace stratakv
