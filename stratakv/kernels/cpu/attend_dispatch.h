// The kernels of this machine, best first, and a step of attention over threads.
#pragma once
#include <string>
#include <vector>

#include "attend.h"

namespace stratakv {

const std::vector<const Kernel *> &kernels();
// std::invalid_argument for a name that is none of this machine's.
const Kernel &find_kernel(const std::string &name);

// Fills a.out. threads: at most so many, the caller's among them. Returns the name of the body that ran, empty when
// there was nothing to do.
const char *attend(const Kernel &kernel, const Attention &a, int threads);

// Decodes tokens [start, start + tokens) of every sequence and head to rows: out is [sequences, heads, tokens, dim].
struct DecodeTask {
    const Side *side;
    Pages where;
    const std::int64_t *pages;  // [sequences, page_count]
    int sequences, page_count, heads, start, tokens;
    std::int64_t tile_bytes;
    float *floats;
    std::uint16_t *bfloats;
};
void decode(const Kernel &kernel, const DecodeTask &task, int threads);

// What went wrong, and in which of the tasks; task -1: nothing.
struct Failure {
    int task;
    Encoded what;
};

// Encodes all vectors of some tasks with equally many tokens and heads.
Failure encode(const Kernel &kernel, const EncodeTask *tasks, int count, int threads);

}  // namespace stratakv
