// A small pool of threads of our own: OpenMP's would fight with torch's for the same cores.
#pragma once
#include <functional>

namespace stratakv {

// Calls task(i) for every i in [0, count) on at most `threads` threads, the caller's among them; returns when all are done.
// Calls from several threads at once are served one after another. Works in a process that was forked.
void parallel_for(int threads, int count, const std::function<void(int)> &task);

}  // namespace stratakv
