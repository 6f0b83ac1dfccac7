// Where threads run: what the pool tells Linux's scheduler, which leaves a helper on its caller's core beside a core
// that another program has, and lets a caller wait while the thread with the last piece stands in a queue. Elsewhere
// nothing of it.
#pragma once
#include <ctime>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stratakv {

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__linux__)

inline int current_core() { return sched_getcpu(); }

// A running thread, as others see it.
class Placed {
public:
    explicit Placed(std::thread &thread) : handle_(thread.native_handle()) {
        known_ = pthread_getcpuclockid(handle_, &clock_) == 0;
    }

    // Nanoseconds that it ran; -1: not known.
    long long ran() const {
        timespec time;
        return known_ && clock_gettime(clock_, &time) == 0 ? time.tv_sec * 1000000000LL + time.tv_nsec : -1;
    }

    bool move_to(int core) const {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(core, &one);
        return pthread_setaffinity_np(handle_, sizeof one, &one) == 0;
    }

private:
    pthread_t handle_;
    clockid_t clock_{};
    bool known_;
};

// Lets the calling thread run on all cores of the process but this one; where it has no other, nothing changes.
inline void keep_off(int core) {
    cpu_set_t cores;
    if (sched_getaffinity(getpid(), sizeof cores, &cores) != 0) return;  // more cores than the set holds
    CPU_CLR(core, &cores);
    if (CPU_COUNT(&cores)) sched_setaffinity(0, sizeof cores, &cores);
}

#else

inline int current_core() { return -1; }

class Placed {
public:
    explicit Placed(std::thread &) {}
    long long ran() const { return -1; }
    bool move_to(int) const { return false; }
};

inline void keep_off(int) {}

#endif

}  // namespace stratakv
