#include "mapped_file.h"

#include <atomic>
#include <cstdint>
#include <mutex>

#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

namespace stratakv {
namespace {

// Read by a signal handler: slots of atomics, no locks and no allocation there.
struct Slot {
    std::atomic<std::uintptr_t> address{0}, size{0};
    std::atomic<bool> failed{false};
};
constexpr int kSlots = 256;
Slot slots[kSlots];
struct sigaction before;

void on_bus_error(int number, siginfo_t *info, void *context) {
    const std::uintptr_t touched = reinterpret_cast<std::uintptr_t>(info->si_addr);
    for (Slot &slot : slots) {
        const std::uintptr_t begin = slot.address.load(), size = slot.size.load();
        if (!begin || touched < begin || touched >= begin + size) continue;
        const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
        void *where = reinterpret_cast<void *>(touched / page * page);
        if (mmap(where, page, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_ANON, -1, 0) == MAP_FAILED) break;
        slot.failed = true;
        return;  // the read is tried again and finds zeros
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {  // not ours: as without us, at the next try
        struct sigaction standard{};
        standard.sa_handler = SIG_DFL;
        sigaction(SIGBUS, &standard, nullptr);
    }
}

void install() {
    struct sigaction action{};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    struct sigaction current{};
    sigaction(SIGBUS, nullptr, &current);
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return;
    sigaction(SIGBUS, &action, &before);
}

Slot *find(void *address) {
    for (Slot &slot : slots)
        if (slot.address.load() == reinterpret_cast<std::uintptr_t>(address)) return &slot;
    return nullptr;
}

std::mutex mutex;

}  // namespace

void guard_mapping(void *address, std::size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    install();
    Slot *slot = find(nullptr);
    if (!slot) return;  // that many models at once: without this net
    slot->failed = false, slot->size = size;
    slot->address = reinterpret_cast<std::uintptr_t>(address);
}

void forget_mapping(void *address) {
    std::lock_guard<std::mutex> lock(mutex);
    if (Slot *slot = find(address)) slot->address = 0;
}

bool mapping_failed(void *address) {
    const Slot *slot = find(address);
    return slot && slot->failed.load();
}

}  // namespace stratakv

#else

namespace stratakv {
void guard_mapping(void *, std::size_t) {}
void forget_mapping(void *) {}
bool mapping_failed(void *) { return false; }
}  // namespace stratakv

#endif
