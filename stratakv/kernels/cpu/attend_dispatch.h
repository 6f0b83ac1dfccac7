// The kernels of this machine, best first, and a step of attention over threads.
#pragma once
#include <vector>

#include "attend.h"

namespace stratakv {

const std::vector<const Kernel *> &kernels();

// Fills a.out. threads: at most so many, the caller's among them.
void attend(const Kernel &kernel, const Attention &a, int threads);

// Decodes tokens [start, start + tokens) of every sequence and head to rows: out is [sequences, heads, tokens, dim].
struct DecodeTask {
    const Side *side;
    const std::uint64_t *pages;  // [sequences, page_count]
    int sequences, page_count, heads, start, tokens;
    std::int64_t tile_bytes;
    float *floats;
    std::uint16_t *bfloats;
};
void decode(const Kernel &kernel, const DecodeTask &task, int threads);

// Encodes all of the task's vectors.
Encoded encode(const Kernel &kernel, const EncodeTask &task, int threads);

}  // namespace stratakv
