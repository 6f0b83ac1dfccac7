#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace stratakv {
namespace {

int process() {
#if defined(__unix__) || defined(__APPLE__)
    return static_cast<int>(getpid());
#else
    return 0;
#endif
}

class Pool {
public:
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread &thread : threads_) thread.join();
    }

    void run(int threads, int count, const std::function<void(int)> &task) {
        std::lock_guard<std::mutex> one_at_a_time(callers_);
        while (static_cast<int>(threads_.size()) < threads - 1) {
            const int number = static_cast<int>(threads_.size());
            threads_.emplace_back([this, number] { serve(number); });
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            task_ = &task;
            count_ = count;
            next_ = 0;
            helpers_ = threads - 1;
            ++round_;
        }
        wake_.notify_all();
        work(task, count);
        std::unique_lock<std::mutex> lock(mutex_);
        task_ = nullptr;  // who wakes up only now is not waited for
        done_.wait(lock, [this] { return busy_ == 0; });
    }

private:
    void work(const std::function<void(int)> &task, int count) {
        for (int i = next_.fetch_add(1); i < count; i = next_.fetch_add(1)) task(i);
    }

    void serve(int number) {
        long seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return stop_ || round_ != seen; });
            if (stop_) return;
            seen = round_;
            if (number >= helpers_ || !task_) continue;
            ++busy_;
            const std::function<void(int)> &task = *task_;
            const int count = count_;
            lock.unlock();
            work(task, count);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex callers_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> threads_;
    const std::function<void(int)> *task_ = nullptr;
    int count_ = 0, helpers_ = 0, busy_ = 0;
    long round_ = 0;
    std::atomic<int> next_{0};
    bool stop_ = false;
};

// A forked child has none of its parent's threads: it gets a pool of its own, and the parent's is left as it is.
Pool &pool() {
    static std::mutex mutex;
    static Pool *current = nullptr;
    static int owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (!current || owner != process()) {
        current = new Pool;  // lives as long as the process: threads at exit must not meet a destroyed pool
        owner = process();
    }
    return *current;
}

}  // namespace

namespace {

// GOMP_parallel(function, argument, threads, flags): what gcc makes of "#pragma omp parallel"; part of libgomp's stable interface.
using Region = void (*)(void (*)(void *), void *, unsigned, unsigned);
Region openmp_region = nullptr;
int openmp_owner = 0;  // libgomp's threads don't survive a fork

struct Loop {
    std::atomic<int> next{0};
    int count;
    const std::function<void(int)> *task;
};

void run_loop(void *argument) {
    Loop &loop = *static_cast<Loop *>(argument);
    for (int i = loop.next.fetch_add(1); i < loop.count; i = loop.next.fetch_add(1)) (*loop.task)(i);
}

}  // namespace

bool share_openmp(const char *path) {
#if defined(__unix__) || defined(__APPLE__)
    if (void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD)) {
        openmp_region = reinterpret_cast<Region>(dlsym(library, "GOMP_parallel"));
        openmp_owner = process();
    }
#endif
    return openmp_region != nullptr;
}

void parallel_for(int threads, int count, const std::function<void(int)> &task) {
    if (threads <= 1 || count <= 1) {
        for (int i = 0; i < count; ++i) task(i);
        return;
    }
    threads = threads < count ? threads : count;
    if (openmp_region && openmp_owner == process()) {
        Loop loop;
        loop.count = count;
        loop.task = &task;
        openmp_region(run_loop, &loop, static_cast<unsigned>(threads), 0);
        return;
    }
    pool().run(threads, count, task);
}

}  // namespace stratakv
