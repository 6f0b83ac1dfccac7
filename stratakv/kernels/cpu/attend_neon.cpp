#include "attend.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
//
#include "attend_body.h"
#include "encode_body.h"

namespace stratakv {
const Kernel *neon_kernel() {
    static const Kernel kernel{simd::kName, run, merge, decode_rows, rotate_rows, encode};
    return &kernel;
}
}  // namespace stratakv
#else
namespace stratakv {
const Kernel *neon_kernel() { return nullptr; }
}  // namespace stratakv
#endif
