#include "tile.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"
//
#include "tile_body.h"

namespace stratakv {
const TileKernel *avx2_tiles() {
    static const TileKernel kernel{lanes::kName, lanes::kLanes, find, pack, gate};
    return &kernel;
}
}  // namespace stratakv
#else
namespace stratakv {
const TileKernel *avx2_tiles() { return nullptr; }
}  // namespace stratakv
#endif
