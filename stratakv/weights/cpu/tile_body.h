// The one algorithm of tiles, over the primitives of an instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "formats.h"
#include "gate_body.h"
#include "tile.h"

namespace stratakv {
namespace {

using namespace lanes;

// Results of the rows of `Count` tiles for a chunk: [token][tile][row].
template <int Count>
struct alignas(64) Sums {
    float at[kChunkTokens][Count][kLanes];
};

// One block of codes of some tiles times its activations, for all tokens of a chunk.
template <typename Format, typename AnyTile, int Count>
inline void add_block(const AnyTile (&tiles)[Count], int block, const PackedChunk &x, std::int64_t at,
                      Sums<Count> &sums) {
    constexpr int kWords = 8 / Format::kHalves;
    constexpr int kOffset = Format::kSigned ? kSignedOffset : Format::kOffset;
    V codes[Count][8];
    for (int t = 0; t < Count; ++t)
        for (int j = 0; j < 8; ++j) codes[t][j] = tiles[t].codes[block][j];
    const std::int8_t *activations = x.codes + at * x.tokens * kBlock;
    const float *scale = x.scale + at * x.tokens, *sum = x.sum + at * x.tokens * 2;
    const std::int32_t *minus = x.minus_codes + at * x.tokens * 2;
    for (int token = 0; token < x.tokens; ++token) {
        F total[Count];
        for (int t = 0; t < Count; ++t) total[t] = loadf(sums.at[token][t]);
        for (int half = 0; Format::kMinimum && half < Format::kHalves; ++half) {
            const F all = set1f(Format::kHalves == 1 ? sum[2 * token] + sum[2 * token + 1] : sum[2 * token + half]);
            for (int t = 0; t < Count; ++t) total[t] = fma(tiles[t].minimum[block][half], all, total[t]);
        }
        const F size = set1f(scale[token]);
        for (int half = 0; half < Format::kHalves; ++half) {
            const int kept = Format::kHalves == 1 ? minus[2 * token] + minus[2 * token + 1] : minus[2 * token + half];
            V acc[Count];
            for (int t = 0; t < Count; ++t)
                acc[t] = set1(kOffset ? static_cast<std::uint32_t>(kept) * static_cast<std::uint32_t>(kOffset) : 0u);
            for (int j = half * kWords; j < (half + 1) * kWords; ++j) {
                const std::int8_t *four = activations + token * kBlock + 4 * j;
                for (int t = 0; t < Count; ++t)
                    acc[t] = Format::kSigned ? dot_signed(acc[t], codes[t][j], four) : dot(acc[t], codes[t][j], four);
            }
            for (int t = 0; t < Count; ++t)
                total[t] = fma(to_float(acc[t]), mul(tiles[t].scale[block][half], size), total[t]);
        }
        for (int t = 0; t < Count; ++t) storef(sums.at[token][t], total[t]);
    }
}

// Tiles side by side share what is read of the activations. With fewer tokens it is reading rows that takes the time
constexpr int kManyTokens = 24;

// Rows that no tile is full of: copied, with zeros, to where a whole tile can be read.
const std::uint8_t *padded(const std::uint8_t *rows, std::int64_t count, std::size_t row_bytes) {
    thread_local std::vector<std::uint8_t> kept;
    kept.assign(row_bytes * kLanes + 16, 0);
    std::memcpy(kept.data(), rows, row_bytes * count);
    return kept.data();
}

template <int Count>
inline void write(const TileJob &job, std::int64_t row, std::int64_t count, const Sums<Count> &sums, int tile = 0) {
    for (int token = 0; token < job.x.tokens; ++token) {
        float *out = job.out + job.to[token] * job.out_stride;
        if (!job.place && !job.bias && count == kLanes) {
            storef(out + row, loadf(sums.at[token][tile]));
            continue;
        }
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t place = job.place ? job.place[row + i] : row + i;
            out[place] = sums.at[token][tile][i] + (job.bias ? job.bias[place] : 0.0f);
        }
    }
}

// Asks for the bytes of a later tile, [begin, end) of it, while this one is computed: 16 rows side by side are more
// streams than a CPU follows by itself.
inline void prefetch(const std::uint8_t *tile, std::size_t begin, std::size_t end) {
    for (std::size_t at = begin; at < end; at += 64) __builtin_prefetch(tile + at, 0, 2);
}

// Rows [first, last), `Count` tiles side by side; the last tile may have fewer rows than lanes.
template <typename Format, int Count>
void run_tiles(const TileJob &job, std::int64_t first, std::int64_t last) {
    Tile<Format::kBlocks, Format::kHalves, Format::kMinimum> tiles[Count];
    Sums<Count> sums;
    constexpr std::int64_t kRows = Count * kLanes;
    const std::int64_t units = job.columns / (kBlock * Format::kBlocks);
    for (std::int64_t row = first; row < last; row += kRows) {
        const std::int64_t count = std::min<std::int64_t>(kLanes, last - row - (kRows - kLanes));  // of the last tile
        const std::uint8_t *data = job.data + row * job.row_bytes;
        Rows rows[Count];
        for (int t = 0; t < Count; ++t) rows[t] = {data + t * kLanes * job.row_bytes, job.row_bytes};
        if (count < kLanes) rows[Count - 1].at = padded(rows[Count - 1].at, count, job.row_bytes);
        for (int token = 0; token < job.x.tokens; ++token)
            for (int t = 0; t < Count; ++t) storef(sums.at[token][t], set1f(0.0f));
        const std::uint8_t *next = row + 2 * kRows <= job.last ? data + kRows * job.row_bytes : nullptr;
        for (std::int64_t unit = 0; unit < units; ++unit) {
            if (next) prefetch(next, unit * kRows * Format::kBytes, (unit + 1) * kRows * Format::kBytes);
            for (int t = 0; t < Count; ++t) {
                Format::unpack(rows[t], tiles[t]);
                rows[t].at += Format::kBytes;
            }
            for (int block = 0; block < Format::kBlocks; ++block)
                add_block<Format>(tiles, block, job.x, unit * Format::kBlocks + block, sums);
        }
        for (int t = 0; t < Count; ++t) write(job, row + t * kLanes, t + 1 < Count ? kLanes : count, sums, t);
    }
}

template <typename Format>
void run_codes(const TileJob &job) {
    constexpr std::int64_t kRows = kTogether * kLanes;
    const bool many = kTogether > 1 && job.x.tokens >= kManyTokens;
    const std::int64_t middle = many ? job.first + (job.last - job.first) / kRows * kRows : job.first;
    if (many) run_tiles<Format, kTogether>(job, job.first, middle);
    run_tiles<Format, 1>(job, middle, job.last);
}

template <typename Format>
void run_floats(const TileJob &job) {
    alignas(64) F columns[kBlock];
    Sums<1> sums;
    const std::int64_t whole = job.columns / kBlock, rest = job.columns % kBlock;
    thread_local std::vector<std::uint8_t> kept;
    for (std::int64_t row = job.first; row < job.last; row += kLanes) {
        const std::int64_t count = std::min<std::int64_t>(kLanes, job.last - row);
        const std::uint8_t *data = job.data + row * job.row_bytes;
        const Rows rows{count == kLanes ? data : padded(data, count, job.row_bytes), job.row_bytes};
        const std::uint8_t *next = row + 2 * kLanes <= job.last ? data + kLanes * job.row_bytes : nullptr;
        for (int token = 0; token < job.x.tokens; ++token) storef(sums.at[token][0], set1f(0.0f));
        for (std::int64_t block = 0; block < whole + (rest > 0); ++block) {
            Rows from{rows.at + block * kBlock * Format::kBytes, rows.stride};
            if (block == whole) {  // the row's end, and zeros
                constexpr std::size_t kBytes = kBlock * Format::kBytes;
                kept.assign(kBytes * kLanes, 0);
                for (int i = 0; i < kLanes; ++i)
                    std::memcpy(&kept[i * kBytes], from.at + i * from.stride, rest * Format::kBytes);
                from = {kept.data(), kBytes};
            }
            if (next && block < whole)
                prefetch(next, block * kLanes * kBlock * Format::kBytes,
                         (block + 1) * kLanes * kBlock * Format::kBytes);
            Format::unpack(from, columns);
            const float *values = job.x.values + block * job.x.tokens * kBlock;
            for (int token = 0; token < job.x.tokens; ++token, values += kBlock) {
                F even = set1f(0.0f), odd = set1f(0.0f);  // two, so that neither waits for the other
                for (int c = 0; c < kBlock; c += 2) {
                    even = fma(columns[c], set1f(values[c]), even);
                    odd = fma(columns[c + 1], set1f(values[c + 1]), odd);
                }
                storef(sums.at[token][0], addf(loadf(sums.at[token][0]), addf(even, odd)));
            }
        }
        write(job, row, count, sums);
    }
}

// Each block of 32 to signed bytes with the scale of its largest value, rounded to the nearest.
void pack(const float *x, std::int64_t columns, int token, int tokens, const PackInto &into) {
    constexpr int kHalf = kBlock / 2;
    for (std::int64_t block = 0; block * kBlock < columns; ++block, x += kBlock) {
        const std::uint32_t bits = std::max(largest_bits(x), largest_bits(x + kHalf));
        float most;
        std::memcpy(&most, &bits, 4);
        const bool finite = bits < 0x7f800000u;
        const float scale = finite ? most / 127.0f : std::numeric_limits<float>::quiet_NaN();
        const float inverse = finite && most > 0.0f ? 127.0f / most : 0.0f;
        const std::int64_t at = block * tokens + token;
        into.scale[at] = scale;
        for (int half = 0; half < 2; ++half) {
            std::int8_t *codes = into.codes + at * kBlock + half * kHalf;
            std::int32_t sum = 0;
            if (finite)
                sum = rounded(x + half * kHalf, inverse, codes);
            else
                std::memset(codes, 0, kHalf);
            into.sum[2 * at + half] = scale * static_cast<float>(sum);
            into.minus_codes[2 * at + half] = -sum;
        }
    }
}

template <typename... Float, typename... Code>
RunTiles find_in(int type, Formats<Float...>, Formats<Code...>) {
    RunTiles found = nullptr;
    ((Float::kType == type ? void(found = run_floats<Float>) : void()), ...);
    ((Code::kType == type ? void(found = run_codes<Code>) : void()), ...);
    return found;
}

RunTiles find(int type) { return find_in(type, FloatFormats{}, CodeFormats{}); }

}  // namespace
}  // namespace stratakv
