#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "placement.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace stratakv {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int kJobs = 16, kHelpers = 255;
constexpr microseconds kIdle{25};     // a helper waits so long awake; torch's OpenMP threads may want its core next
constexpr microseconds kGlance{
    15};   // a caller waits so long for the last pieces before it looks whether their threads run
constexpr microseconds kAwake{200};   // and so long before it sleeps beside threads that do run
constexpr microseconds kNap{1000};

// Waits awake; true: the condition holds, false: the time is over.
template <class Condition>
bool spin(microseconds limit, Condition condition) {
    if (condition()) return true;
    const Clock::time_point end = Clock::now() + limit;
    do {
        for (int i = 0; i < 16; ++i) {
            relax();
            if (condition()) return true;
        }
    } while (Clock::now() < end);
    return false;
}

// One call of parallel_for. `state` has the pieces that nobody has taken, how many helpers may still join, and the
// number of the round: a helper that read another round's task fails to take a piece. Jobs are used again and never
// freed, so late helpers may look.
struct alignas(64) Job {
    static constexpr int kRoomShift = 31, kRoundShift = 39;
    static constexpr std::uint64_t kLeft = (1ULL << kRoomShift) - 1, kOneHelper = 1ULL << kRoomShift,
                                   kRoom = 0xff * kOneHelper;

    std::atomic<bool> owned{false};
    std::atomic<std::uint64_t> state{0};
    std::atomic<const std::function<void(int)> *> task{nullptr};
    std::atomic<int> count{0}, core{-1};  // core: the caller's
    alignas(64) std::atomic<int> done{0};
    std::atomic<bool> sleeper{false}, failed{false};
    std::exception_ptr error;

    void open(const std::function<void(int)> &work, int pieces, int helpers) {
        task.store(&work, std::memory_order_relaxed);
        count.store(pieces, std::memory_order_relaxed);
        core.store(current_core(), std::memory_order_relaxed);
        done.store(0, std::memory_order_relaxed);
        sleeper.store(false, std::memory_order_relaxed);
        const std::uint64_t round = (state.load(std::memory_order_relaxed) >> kRoundShift) + 1;
        state.store(round << kRoundShift | std::uint64_t(helpers) * kOneHelper | std::uint64_t(pieces));
    }

    bool complete() const { return done.load() == count.load(std::memory_order_relaxed); }
};

struct alignas(64) Helper {
    std::atomic<const Job *> holds{nullptr};  // a piece of it
    std::atomic<bool> fetched{false};         // to a caller's core
    std::unique_ptr<Placed> placed;
};

class Pool {
public:
    void run(int threads, int count, const std::function<void(int)> &task) {
        Job *job = std::find_if(jobs_, jobs_ + kJobs, [](Job &each) { return !each.owned.exchange(true); });
        if (job == jobs_ + kJobs) {  // more callers than that leave no core idle
            for (int i = 0; i < count; ++i) task(i);
            return;
        }
        const int helpers = std::min(threads - 1, kHelpers);
        if (made_.load() < helpers) grow(helpers);
        job->open(task, count, helpers);
        wake(helpers);
        take_pieces(*job, nullptr);
        wait(*job);
        std::exception_ptr error;
        if (job->failed.load()) {
            error = std::move(job->error);
            job->error = nullptr;
            job->failed.store(false);
        }
        job->owned.store(false);
        if (error) std::rethrow_exception(error);
    }

private:
    // Takes pieces until none is left; true: it got one. helper: who takes them, null for the caller.
    bool take_pieces(Job &job, Helper *helper) {
        bool joined = !helper, any = false;
        std::uint64_t state = job.state.load();
        const std::uint64_t round = state >> Job::kRoundShift;
        if (!joined && state & Job::kLeft && state & Job::kRoom) {
            settle(*helper, job.core.load(std::memory_order_relaxed));
            state = job.state.load();
        }
        while (state >> Job::kRoundShift == round && state & Job::kLeft && (joined || state & Job::kRoom)) {
            const auto *task = job.task.load(std::memory_order_relaxed);
            const int count = job.count.load(std::memory_order_relaxed),
                      piece = count - static_cast<int>(state & Job::kLeft);
            if (helper) helper->holds.store(&job, std::memory_order_relaxed);
            if (!job.state.compare_exchange_weak(state, state - 1 - (joined ? 0 : Job::kOneHelper))) continue;
            joined = any = true;
            if (!job.failed.load(std::memory_order_relaxed)) {
                try {
                    (*task)(piece);
                } catch (...) {
                    if (!job.failed.exchange(true)) job.error = std::current_exception();
                }
            }
            // after the last piece the job may be another caller's: a word too many wakes nobody wrongly
            if (job.done.fetch_add(1) + 1 == count && job.sleeper.load()) {
                {
                    std::lock_guard<std::mutex> lock(mutex_);
                }
                done_.notify_all();
            }
            state = job.state.load();
        }
        if (helper) helper->holds.store(nullptr, std::memory_order_relaxed);
        return any;
    }

    // A helper on its caller's core takes from it what it gives.
    static void settle(Helper &helper, int core) {
        if (core < 0 || (!helper.fetched.load() && current_core() != core)) return;
        helper.fetched.store(false);
        keep_off(core);
    }

    void wait(Job &job) {
        const auto complete = [&] { return job.complete(); };
        for (microseconds awake{0}; !spin(kGlance, complete); awake += 2 * kGlance) {
            if (!fetch_stopped(job) && awake < kAwake) continue;
            std::unique_lock<std::mutex> lock(mutex_);
            job.sleeper.store(true);
            if (done_.wait_for(lock, kNap, complete)) return;
        }
    }

    // Threads that hold pieces and don't run are moved to the caller's core, which the caller then leaves to them.
    // True: there were any.
    bool fetch_stopped(Job &job) {
        const int made = made_.load(), core = current_core();
        long long ran[kHelpers];
        bool any = false;
        for (int i = 0; i < made; ++i) ran[i] = helpers_[i].holds.load() == &job ? helpers_[i].placed->ran() : -1;
        const Clock::time_point began = Clock::now();
        if (spin(kGlance, [&] { return job.complete(); })) return false;
        const long long waited = std::chrono::nanoseconds(Clock::now() - began).count();
        for (int i = 0; i < made; ++i) {
            Helper &helper = helpers_[i];
            if (ran[i] < 0 || helper.holds.load() != &job || helper.placed->ran() - ran[i] > waited / 4) continue;
            any |= helper.placed->move_to(core);
            helper.fetched.store(true);
        }
        return any;
    }

    void serve(Helper &helper) {
        while (true) {
            const std::uint32_t seen = posted_.load();
            bool any = false;
            for (Job &job : jobs_) any |= take_pieces(job, &helper);
            const auto news = [&] { return posted_.load() != seen; };
            if (any || spin(kIdle, news)) continue;
            std::unique_lock<std::mutex> lock(mutex_);
            ++asleep_;
            wake_.wait(lock, news);
            --asleep_;
        }
    }

    void wake(int helpers) {
        ++posted_;
        const int asleep = asleep_.load();
        if (!asleep) return;
        {
            std::lock_guard<std::mutex> lock(mutex_);
        }  // who has looked at posted_ for the last time is asleep now
        for (int i = 0; i < std::min(asleep, helpers); ++i) wake_.notify_one();
    }

    void grow(int helpers) {
        std::lock_guard<std::mutex> lock(growing_);
        for (int made = made_.load(); made < helpers; made_.store(++made)) {
            Helper &helper = helpers_[made];
            try {
                std::thread thread([this, &helper] { serve(helper); });
                helper.placed = std::make_unique<Placed>(thread);
                thread.detach();
            } catch (const std::system_error &) {
                return;  // the system gives no more: the callers do what is left
            }
        }
    }

    Job jobs_[kJobs];
    Helper helpers_[kHelpers];
    std::atomic<int> made_{0};
    alignas(64) std::atomic<std::uint32_t> posted_{0};
    std::atomic<int> asleep_{0};
    std::mutex mutex_, growing_;
    std::condition_variable wake_, done_;
};

// Lives as long as the process: threads at exit must not meet a destroyed pool.
std::atomic<Pool *> current{nullptr};

Pool &pool() {
    if (Pool *there = current.load()) return *there;
#if defined(__unix__) || defined(__APPLE__)
    // A forked child has none of its parent's threads: it gets a pool of its own, and the parent's is left as it is.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    static_cast<void>(registered);
#endif
    auto made = std::make_unique<Pool>();
    Pool *expected = nullptr;
    return current.compare_exchange_strong(expected, made.get()) ? *made.release() : *expected;
}

// What gcc's OpenMP starts a parallel region with; clang's and Intel's have it too.
using Region = void (*)(void (*)(void *), void *, unsigned, unsigned);
std::atomic<Region> borrowed{nullptr};

struct Shared {
    const std::function<void(int)> &task;
    int count;
    std::atomic<int> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};
};

void take_shared(void *of) {
    Shared &shared = *static_cast<Shared *>(of);
    for (int i; !shared.failed.load(std::memory_order_relaxed) && (i = shared.next.fetch_add(1)) < shared.count;) {
        try {
            shared.task(i);
        } catch (...) {
            if (!shared.failed.exchange(true)) shared.error = std::current_exception();
        }
    }
}

}  // namespace

bool borrow_openmp() {
#if defined(__unix__) || defined(__APPLE__)
    borrowed.store(reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel")));
#endif
    return borrowed.load() != nullptr;
}

void parallel_for(int threads, int count, const std::function<void(int)> &task) {
    if (threads <= 1 || count <= 1) {
        for (int i = 0; i < count; ++i) task(i);
        return;
    }
    if (const Region region = borrowed.load(std::memory_order_relaxed)) {
        Shared shared{task, count};
        // as many threads as torch's loops have: gcc's OpenMP ends those that a smaller region leaves over
        region(take_shared, &shared, static_cast<unsigned>(threads), 0);
        if (shared.error) std::rethrow_exception(shared.error);
        return;
    }
    pool().run(std::min(threads, count), count, task);
}

}  // namespace stratakv
