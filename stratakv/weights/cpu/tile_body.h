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

// Results of a tile's rows for a chunk: [token][row].
struct alignas(64) Sums {
    float at[kChunkTokens][kLanes];
};

// One block of codes times its activations, for all tokens of a chunk.
template <typename Format, typename AnyTile>
inline void add_block(const AnyTile &tile, int block, const PackedChunk &x, std::int64_t at, Sums &sums) {
    constexpr int kWords = 8 / Format::kHalves;
    constexpr int kOffset = Format::kSigned ? kSignedOffset : Format::kOffset;
    V codes[8];
    for (int j = 0; j < 8; ++j) codes[j] = tile.codes[block][j];
    const std::int8_t *activations = x.codes + at * x.tokens * kBlock;
    const float *scale = x.scale + at * x.tokens, *sum = x.sum + at * x.tokens * 2;
    const std::int32_t *minus = x.minus_codes + at * x.tokens * 2;
    for (int token = 0; token < x.tokens; ++token) {
        F total = loadf(sums.at[token]);
        if (Format::kMinimum) {
            if (Format::kHalves == 1) {
                total = fma(tile.minimum[block][0], set1f(sum[2 * token] + sum[2 * token + 1]), total);
            } else {
                for (int half = 0; half < Format::kHalves; ++half)
                    total = fma(tile.minimum[block][half], set1f(sum[2 * token + half]), total);
            }
        }
        for (int half = 0; half < Format::kHalves; ++half) {
            const int kept = Format::kHalves == 1 ? minus[2 * token] + minus[2 * token + 1] : minus[2 * token + half];
            V acc = set1(kOffset ? static_cast<std::uint32_t>(kept) * static_cast<std::uint32_t>(kOffset) : 0u);
            for (int j = half * kWords; j < (half + 1) * kWords; ++j) {
                const std::int8_t *four = activations + token * kBlock + 4 * j;
                acc = Format::kSigned ? dot_signed(acc, codes[j], four) : dot(acc, codes[j], four);
            }
            total = fma(to_float(acc), mul(tile.scale[block][half], set1f(scale[token])), total);
        }
        storef(sums.at[token], total);
    }
}

// Rows that no tile is full of: copied, with zeros, to where a whole tile can be read.
const std::uint8_t *padded(const std::uint8_t *rows, std::int64_t count, std::size_t row_bytes) {
    thread_local std::vector<std::uint8_t> kept;
    kept.assign(row_bytes * kLanes + 16, 0);
    std::memcpy(kept.data(), rows, row_bytes * count);
    return kept.data();
}

inline void write(const TileJob &job, std::int64_t row, std::int64_t count, const Sums &sums) {
    for (int token = 0; token < job.x.tokens; ++token) {
        float *out = job.out + job.to[token] * job.out_stride;
        if (!job.place && !job.bias && count == kLanes) {
            storef(out + row, loadf(sums.at[token]));
            continue;
        }
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t place = job.place ? job.place[row + i] : row + i;
            out[place] = sums.at[token][i] + (job.bias ? job.bias[place] : 0.0f);
        }
    }
}

// Asks for the bytes of a later tile, [begin, end) of it, while this one is computed: 16 rows side by side are more
// streams than a CPU follows by itself.
inline void prefetch(const std::uint8_t *tile, std::size_t begin, std::size_t end) {
    for (std::size_t at = begin; at < end; at += 64) __builtin_prefetch(tile + at, 0, 2);
}

template <typename Format>
void run_codes(const TileJob &job) {
    Tile<Format::kBlocks, Format::kHalves, Format::kMinimum> tile;
    Sums sums;
    const std::int64_t units = job.columns / (kBlock * Format::kBlocks);
    for (std::int64_t row = job.first; row < job.last; row += kLanes) {
        const std::int64_t count = std::min<std::int64_t>(kLanes, job.last - row);
        const std::uint8_t *data = job.data + row * job.row_bytes;
        Rows rows{count == kLanes ? data : padded(data, count, job.row_bytes), job.row_bytes};
        for (int token = 0; token < job.x.tokens; ++token) storef(sums.at[token], set1f(0.0f));
        const std::uint8_t *next = row + 2 * kLanes <= job.last ? data + kLanes * job.row_bytes : nullptr;
        for (std::int64_t unit = 0; unit < units; ++unit, rows.at += Format::kBytes) {
            if (next) prefetch(next, unit * kLanes * Format::kBytes, (unit + 1) * kLanes * Format::kBytes);
            Format::unpack(rows, tile);
            for (int block = 0; block < Format::kBlocks; ++block)
                add_block<Format>(tile, block, job.x, unit * Format::kBlocks + block, sums);
        }
        write(job, row, count, sums);
    }
}

template <typename Format>
void run_floats(const TileJob &job) {
    alignas(64) F columns[kBlock];
    Sums sums;
    const std::int64_t whole = job.columns / kBlock, rest = job.columns % kBlock;
    thread_local std::vector<std::uint8_t> kept;
    for (std::int64_t row = job.first; row < job.last; row += kLanes) {
        const std::int64_t count = std::min<std::int64_t>(kLanes, job.last - row);
        const std::uint8_t *data = job.data + row * job.row_bytes;
        const Rows rows{count == kLanes ? data : padded(data, count, job.row_bytes), job.row_bytes};
        const std::uint8_t *next = row + 2 * kLanes <= job.last ? data + kLanes * job.row_bytes : nullptr;
        for (int token = 0; token < job.x.tokens; ++token) storef(sums.at[token], set1f(0.0f));
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
                storef(sums.at[token], addf(loadf(sums.at[token]), addf(even, odd)));
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
