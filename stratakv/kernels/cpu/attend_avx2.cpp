#include "attend.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"
//
#include "attend_body.h"
#include "encode_body.h"

namespace stratakv {
const Kernel *avx2_kernel() {
    static const Kernel kernel{simd::kName, run, merge, decode_rows, rotate_rows, encode};
    return &kernel;
}
}  // namespace stratakv
#else
namespace stratakv {
const Kernel *avx2_kernel() { return nullptr; }
}  // namespace stratakv
#endif
