#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace stratakv {

#if defined(__x86_64__) || defined(__i386__)

namespace {

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the CPU does not know the leaf.
Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

// XCR0: which register files the operating system saves on a context switch.
std::uint64_t saved_state() {
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t(high) << 32) | low;
}

bool bit(std::uint32_t word, int position) { return (word >> position) & 1u; }

}  // namespace

std::vector<std::string> cpu_features() {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    const bool osxsave = bit(one.ecx, 27);
    const std::uint64_t state = osxsave ? saved_state() : 0;
    const bool ymm = (state & 0x6) == 0x6;     // SSE and AVX registers
    const bool zmm = (state & 0xe6) == 0xe6;   // and the three parts of AVX-512's

    struct Feature {
        const char *name;
        bool present;
    };
    const Feature table[] = {
        {"ssse3", bit(one.ecx, 9)},
        {"sse4_1", bit(one.ecx, 19)},
        {"avx", ymm && bit(one.ecx, 28)},
        {"f16c", ymm && bit(one.ecx, 29)},
        {"fma", ymm && bit(one.ecx, 12)},
        {"avx2", ymm && bit(seven.ebx, 5)},
        {"avx_vnni", ymm && bit(seven_one.eax, 4)},
        {"avx512f", zmm && bit(seven.ebx, 16)},
        {"avx512dq", zmm && bit(seven.ebx, 17)},
        {"avx512bw", zmm && bit(seven.ebx, 30)},
        {"avx512vl", zmm && bit(seven.ebx, 31)},
        {"avx512_vbmi", zmm && bit(seven.ecx, 1)},
        {"avx512_vbmi2", zmm && bit(seven.ecx, 6)},
        {"avx512_vnni", zmm && bit(seven.ecx, 11)},
        {"avx512_bf16", zmm && bit(seven_one.eax, 5)},
    };
    std::vector<std::string> names;
    for (const Feature &feature : table)
        if (feature.present) names.emplace_back(feature.name);
    return names;
}

#elif defined(__aarch64__)

std::vector<std::string> cpu_features() {
    std::vector<std::string> names{"neon"};  // part of the architecture
#if defined(__linux__)
    const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    if (caps & HWCAP_ASIMDHP) names.emplace_back("fp16");
    if (caps & HWCAP_ASIMDDP) names.emplace_back("dotprod");
    if (caps & HWCAP_SVE) names.emplace_back("sve");
    if (caps2 & HWCAP2_I8MM) names.emplace_back("i8mm");
    if (caps2 & HWCAP2_BF16) names.emplace_back("bf16");
#elif defined(__APPLE__)
    struct Feature {
        const char *name, *key;
    };
    const Feature table[] = {
        {"fp16", "hw.optional.arm.FEAT_FP16"},
        {"dotprod", "hw.optional.arm.FEAT_DotProd"},
        {"i8mm", "hw.optional.arm.FEAT_I8MM"},
        {"bf16", "hw.optional.arm.FEAT_BF16"},
    };
    for (const Feature &feature : table) {
        int value = 0;
        size_t size = sizeof value;
        if (sysctlbyname(feature.key, &value, &size, nullptr, 0) == 0 && value) names.emplace_back(feature.name);
    }
#endif
    return names;
}

#else

std::vector<std::string> cpu_features() { return {}; }

#endif

}  // namespace stratakv
