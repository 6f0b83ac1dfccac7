#include "attend.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)
#include "simd_avx512.h"
//
#include "attend_body.h"
#include "encode_body.h"

namespace stratakv {
const Kernel *avx512_kernel() {
    static const Kernel kernel{simd::kName, run, merge, decode_rows, rotate_rows, encode};
    return &kernel;
}
}  // namespace stratakv
#else
namespace stratakv {
const Kernel *avx512_kernel() { return nullptr; }
}  // namespace stratakv
#endif
