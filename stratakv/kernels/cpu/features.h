#pragma once

#include <string>
#include <vector>

namespace stratakv {

// Instruction sets that this CPU has and that the operating system lets programs use, out of those that kernels
// look for, by the names that Linux prints in /proc/cpuinfo (avx2, avx512_vnni ...; on Arm: neon, dotprod, i8mm).
std::vector<std::string> cpu_features();

}  // namespace stratakv
