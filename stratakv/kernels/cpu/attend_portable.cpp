#include "attend.h"
#include "simd_portable.h"
//
#include "attend_body.h"
#include "encode_body.h"

namespace stratakv {
const Kernel *portable_kernel() {
    static const Kernel kernel{simd::kName, run, merge, decode_rows, rotate_rows, encode};
    return &kernel;
}
}  // namespace stratakv
