#include "tile.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "lanes_neon.h"
//
#include "tile_body.h"

namespace stratakv {
const TileKernel *neon_tiles() {
    static const TileKernel kernel{lanes::kName, lanes::kLanes, find, pack, gate};
    return &kernel;
}
}  // namespace stratakv
#else
namespace stratakv {
const TileKernel *neon_tiles() { return nullptr; }
}  // namespace stratakv
#endif
