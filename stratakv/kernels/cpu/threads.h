// Threads for the kernels: torch's own OpenMP threads where its library can be asked, since they spin for milliseconds after each of
// torch's loops and others would fight with them for the cores; else, and in forked children, a small pool of ours.
#pragma once
#include <functional>

namespace stratakv {

// Calls task(i) for every i in [0, count) on at most `threads` threads, the caller's among them; returns when all are done.
// Calls from several threads at once are served one after another. Works in a process that was forked.
// Shares the threads of the OpenMP library (gcc's) that is loaded already from this path. False: it isn't, the pool stays.
bool share_openmp(const char *path);

void parallel_for(int threads, int count, const std::function<void(int)> &task);

}  // namespace stratakv
