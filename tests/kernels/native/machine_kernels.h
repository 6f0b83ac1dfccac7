// The compiled kernels that this machine runs, best first; what is missing is said.
#pragma once
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "attend.h"
#include "cpu_features.h"

namespace check {

inline std::vector<const stratakv::Kernel *> kernels() {
    const std::vector<std::string> features = stratakv::cpu_features();
    const auto has = [&](const char *name) {
        return std::find(features.begin(), features.end(), name) != features.end();
    };
    std::vector<const stratakv::Kernel *> found;
    const auto take = [&](const char *name, const stratakv::Kernel *kernel, bool runs) {
        if (!kernel)
            std::printf("%s: not compiled\n", name);
        else if (!runs)
            std::printf("%s: not on this machine\n", name);
        else
            found.push_back(kernel);
    };
    take("avx512", stratakv::avx512_kernel(),
         has("avx512bw") && has("avx512dq") && has("avx512vl") && has("avx512_vbmi") && has("avx512_vbmi2") &&
             has("avx512_vnni"));
    take("avx2", stratakv::avx2_kernel(), has("avx2") && has("fma") && has("f16c"));
    take("neon", stratakv::neon_kernel(), has("dotprod"));
    take("portable", stratakv::portable_kernel(), true);
    return found;
}

}  // namespace check
