// One pool of threads for all kernels. It is made for machines where other programs run too: work is taken piece by
// piece, nobody waits for a thread that has taken none, and one that lost its core while it holds a piece gets the
// caller's.
#pragma once
#include <functional>

namespace stratakv {

// Calls task(i) for every i in [0, count) on at most `threads` threads, the caller's among them; returns when all are
// done. A thread that loses its core holds up one piece: make pieces small, some microseconds to some dozens. Calls
// from several threads at once share the pool's threads; a task may call it again. Works in a process that was forked.
// What a task throws is thrown here when all threads have let go; pieces that nobody had begun are left out then.
void parallel_for(int threads, int count, const std::function<void(int)> &task);

// From now on parallel_for runs on OpenMP's threads, for a program that gives them cores of their own, where they wait
// awake for the next loop: helpers beside them would stand in a queue. A call then ends when all of them have looked
// in. False: this process has no OpenMP, and nothing changes.
bool borrow_openmp();

}  // namespace stratakv
