// The pool under stress; prints what failed. "nofork": without forked children, which thread sanitizers don't follow.
// "openmp": the same on OpenMP's threads, whose parallel regions a forked child can't begin.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "threads.h"

using stratakv::parallel_for;

static int failures = 0;

static void check(bool good, const char *what) {
    if (!good) ++failures, std::printf("failed: %s\n", what);
}

// Every index once, and what the tasks wrote is seen after the call, without atomics.
static bool complete(int threads, int count) {
    std::vector<int> seen(count, 0);
    parallel_for(threads, count, [&](int i) { ++seen[i]; });
    for (const int each : seen)
        if (each != 1) return false;
    return true;
}

static bool many_callers(int callers, int calls) {
    std::atomic<bool> good{true};
    std::vector<std::thread> all;
    for (int caller = 0; caller < callers; ++caller)
        all.emplace_back([&, caller] {
            for (int call = 0; call < calls; ++call)
                if (!complete(2 + (caller + call) % 4, 1 + (caller * 7 + call) % 40)) good = false;
        });
    for (std::thread &thread : all) thread.join();
    return good;
}

static bool nested() {
    std::atomic<int> sum{0};
    parallel_for(3, 8, [&](int) { parallel_for(3, 8, [&](int) { parallel_for(2, 4, [&](int) { ++sum; }); }); });
    return sum == 8 * 8 * 4;
}

static bool throws_and_goes_on() {
    for (int turn = 0; turn < 200; ++turn) {
        bool caught = false;
        try {
            parallel_for(3, 50, [&](int i) {
                if (i == turn % 50) throw std::runtime_error("piece " + std::to_string(i));
            });
        } catch (const std::runtime_error &error) {
            caught = error.what() == "piece " + std::to_string(turn % 50);
        }
        if (!caught || !complete(3, 50)) return false;
    }
    return true;
}

// The first piece holds its thread until all others are done: they must be taken by whoever is free, and the call ends.
static bool one_late_thread() {
    std::atomic<int> others{0};
    parallel_for(2, 40, [&](int i) {
        if (i)
            ++others;
        else
            for (int wait = 0; others < 39 && wait < 5000; ++wait)
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
    return others == 39;
}

// A long pause between calls: helpers sleep and are woken.
static bool after_sleep() {
    for (int turn = 0; turn < 20; ++turn) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
        if (!complete(4, 100)) return false;
    }
    return true;
}

static bool forked(bool busy) {
    std::atomic<bool> stop{false};
    std::thread other([&] {
        while (busy && !stop) complete(3, 20);
    });
    bool good = complete(4, 100);
    for (int turn = 0; turn < 10; ++turn) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            _exit(complete(4, 100) && nested() && complete(2, 1000) ? 0 : 1);
        }
        int status = 1;
        waitpid(child, &status, 0);
        good = good && status == 0 && complete(4, 100);
    }
    stop = true;
    other.join();
    return good;
}

int main(int argc, char **argv) {
    alarm(100);  // a deadlock ends the process
    const bool openmp = argc > 1 && !std::strcmp(argv[1], "openmp");
    if (openmp) check(stratakv::borrow_openmp(), "OpenMP is there");
    bool tiny = true;
    for (int call = 0; call < 20000 && tiny; ++call) tiny = complete(2, 2 + call % 3);
    check(tiny, "tiny tasks");
    check(complete(1, 10) && complete(4, 0) && complete(4, 1) && complete(300, 5000),
          "odd numbers of threads and pieces");
    check(many_callers(8, 300), "many callers");
    check(many_callers(24, 50), "more callers than jobs");
    check(nested(), "nested calls");
    check(throws_and_goes_on(), "exceptions");
    check(one_late_thread(), "a late thread");
    check(after_sleep(), "after sleep");
    if (argc < 2) {
        check(forked(false), "fork");
        check(forked(true), "fork beside other callers");
    }
    return failures != 0;
}
