// The kernels of this machine, best first, and a step of attention over threads.
#pragma once
#include <string>
#include <vector>

#include "attend.h"

namespace stratakv {

const std::vector<const Kernel *> &kernels();
// std::invalid_argument for a name that is none of this machine's.
const Kernel &find_kernel(const std::string &name);

// Kinds of pages that one attention goes over at most.
constexpr int kMostKinds = 2;

// Fills the output of one attention over `count` kinds of pages, of which none holds what another one does: all is the
// first one's but K and V, their rotations, the pages, and what queries see of them. threads: at most so many, the
// caller's among them. Returns the name of the body that ran, empty when there was nothing to do.
const char *attend(const Kernel &kernel, const Attention *kinds, int count, int threads);

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

// One side of whole pages, from what they hold to pages of another layout.
struct ConvertTask {
    const Side *source;
    const Rotation *back;  // out of the source's stored basis
    const Encoder *encoder;
    Pages from, to;
    std::int64_t from_tile_bytes, to_tile_bytes;
    const std::int64_t *numbers;  // [pages, 2], of a page here and there
    int pages, heads;
};
// All tasks have equally many pages and heads.
Failure convert(const Kernel &kernel, const ConvertTask *tasks, int count, int threads);

// Encodes all vectors of some tasks with equally many tokens and heads.
Failure encode(const Kernel &kernel, const EncodeTask *tasks, int count, int threads);

}  // namespace stratakv
