// Every kernel of this machine against the portable one: all types, rows that fill no tile, one token and a whole
// chunk. A token's results must be the same to the bit in any company. Data and results are exactly as large as they
// must be, for sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu_features.h"
#include "tile.h"

using namespace stratakv;

namespace {

// Bytes of a unit of `columns` values, and where its half-precision numbers lie: random bytes there could be infinite.
struct Type {
    int number, columns, bytes;
    std::vector<int> halves;
};
const std::vector<Type> kTypes = {
    {0, 1, 4, {}},           {1, 1, 2, {0}},        {30, 1, 2, {}},         {2, 32, 18, {0}},
    {3, 32, 20, {0, 2}},     {6, 32, 22, {0}},      {7, 32, 24, {0, 2}},    {8, 32, 34, {0}},
    {10, 256, 84, {80, 82}}, {11, 256, 110, {108}}, {12, 256, 144, {0, 2}}, {13, 256, 176, {0, 2}},
    {14, 256, 210, {208}},   {20, 32, 18, {0}},     {23, 256, 136, {0}},    {39, 32, 17, {}}};

std::mt19937 generator(1);

std::vector<std::uint8_t> matrix(const Type &type, int rows, int columns) {
    const int units = rows * columns / type.columns;
    std::vector<std::uint8_t> data(static_cast<std::size_t>(units) * type.bytes);
    for (std::uint8_t &byte : data) byte = static_cast<std::uint8_t>(generator());
    for (int unit = 0; unit < units; ++unit) {
        std::uint8_t *at = data.data() + static_cast<std::size_t>(unit) * type.bytes;
        for (const int half : type.halves) at[half + 1] = static_cast<std::uint8_t>(0x20 | (at[half + 1] & 0x87));
        if (type.number == 39) at[0] = static_cast<std::uint8_t>(118 + at[0] % 12);
        if (type.number == 30) at[1] = static_cast<std::uint8_t>(0x3c | (at[1] & 0x81));
        if (type.number == 0) at[3] = static_cast<std::uint8_t>(0x3c | (at[3] & 0x81));
    }
    return data;
}

std::vector<float> run(const TileKernel &kernel, const Type &type, const std::vector<std::uint8_t> &data, int rows,
                       int columns, const std::vector<float> &x, int tokens, const std::vector<float> &bias) {
    const int blocks = (columns + kBlock - 1) / kBlock;
    std::vector<std::int8_t> codes(static_cast<std::size_t>(blocks) * tokens * kBlock);
    std::vector<float> scale(blocks * tokens), sum(2 * blocks * tokens), values(blocks * tokens * kBlock),
        out(rows * tokens);
    std::vector<std::int32_t> minus(2 * blocks * tokens), place(rows);
    std::vector<std::int64_t> to(tokens);
    for (int row = 0; row < rows; ++row) place[row] = (row * 7 + 3) % rows;
    for (int token = 0; token < tokens; ++token) {
        to[token] = token;
        if (type.columns > 1)
            kernel.pack(&x[token * columns], columns, token, tokens,
                        {codes.data(), scale.data(), sum.data(), minus.data()});
        for (int c = 0; c < columns; ++c)
            values[(c / kBlock * tokens + token) * kBlock + c % kBlock] = x[token * columns + c];
    }
    const PackedChunk chunk{codes.data(), scale.data(), sum.data(), minus.data(), values.data(), tokens};
    const std::size_t row_bytes = static_cast<std::size_t>(columns / type.columns) * type.bytes;
    const RunTiles tiles = kernel.find(type.number);
    const int cut = rows / 3;  // rows come in pieces
    for (const auto &[first, last] : {std::pair<int, int>{0, cut}, {cut, rows}})
        tiles({data.data(), row_bytes, first, last, columns, chunk, out.data(), rows, to.data(),
               bias.empty() ? nullptr : place.data(), bias.empty() ? nullptr : bias.data()});
    return out;
}

bool has(const std::vector<std::string> &features, const char *name) {
    for (const std::string &feature : features)
        if (feature == name) return true;
    return false;
}

}  // namespace

int main() {
    const std::vector<std::string> features = cpu_features();
    std::vector<const TileKernel *> kernels;
    if (avx512_tiles() && has(features, "avx512_vbmi") && has(features, "avx512_vbmi2") && has(features, "avx512_vnni"))
        kernels.push_back(avx512_tiles());
    if (avx2_tiles() && has(features, "avx2") && has(features, "fma") && has(features, "f16c"))
        kernels.push_back(avx2_tiles());
    if (neon_tiles() && has(features, "dotprod")) kernels.push_back(neon_tiles());
    kernels.push_back(portable_tiles());
    std::vector<int> runs(kernels.size());
    std::normal_distribution<float> normal;
    for (const Type &type : kTypes)
        for (const int rows : {1, 5, 40}) {
            const int columns = type.columns == 256 ? 512 : type.columns == 32 ? 96 : 41;
            const std::vector<std::uint8_t> data = matrix(type, rows, columns);
            std::vector<float> x(kChunkTokens * columns), bias(rows == 5 ? rows : 0);
            for (float &value : x) value = normal(generator);
            for (float &value : bias) value = normal(generator);
            const std::vector<float> expected =
                run(*portable_tiles(), type, data, rows, columns, x, kChunkTokens, bias);
            for (std::size_t k = 0; k < kernels.size(); ++k) {
                const std::vector<float> found = run(*kernels[k], type, data, rows, columns, x, kChunkTokens, bias);
                double difference = 0, norm = 0;
                for (std::size_t i = 0; i < found.size(); ++i) {
                    difference += (double(found[i]) - expected[i]) * (double(found[i]) - expected[i]);
                    norm += double(expected[i]) * expected[i];
                }
                if (!(difference <= 1e-10 * norm)) {
                    std::printf("%s: type %d, %d rows: relative difference %g\n", kernels[k]->name, type.number, rows,
                                std::sqrt(difference / norm));
                    return 1;
                }
                for (const int token : {0, 1, kChunkTokens - 1}) {
                    const std::vector<float> own(x.begin() + token * columns, x.begin() + (token + 1) * columns);
                    const std::vector<float> alone = run(*kernels[k], type, data, rows, columns, own, 1, bias);
                    if (std::memcmp(alone.data(), &found[token * rows], rows * sizeof(float)) != 0) {
                        std::printf("%s: type %d: token %d differs alone\n", kernels[k]->name, type.number, token);
                        return 1;
                    }
                }
                ++runs[k];
            }
        }
    for (std::size_t k = 0; k < kernels.size(); ++k) std::printf("%s: %d runs\n", kernels[k]->name, runs[k]);
    return 0;
}
