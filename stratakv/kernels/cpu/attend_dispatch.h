// The kernels of this machine, best first, and a step of attention over threads.
#pragma once
#include <vector>

#include "attend.h"

namespace stratakv {

std::vector<const Kernel *> kernels();

// Fills a.out. threads: at most so many, the caller's among them.
void attend(const Kernel &kernel, const Attention &a, int threads);

// Encodes all of the task's vectors.
Encoded encode(const Kernel &kernel, const EncodeTask &task, int threads);

}  // namespace stratakv
