#pragma once

#include <string>
#include <vector>

namespace stratakv {

// Instruction sets that this CPU has and that the operating system lets programs use, out of those that kernels
// look for, from the oldest to the newest. Names as in Linux's /proc/cpuinfo, with avx512_ before every later part of
// AVX-512 (avx512_vbmi); on Arm neon, fp16, dotprod, sve, i8mm, bf16.
std::vector<std::string> cpu_features();

}  // namespace stratakv
