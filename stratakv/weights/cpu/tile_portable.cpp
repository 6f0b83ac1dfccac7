#include "lanes_portable.h"
#include "tile.h"
//
#include "tile_body.h"

namespace stratakv {
const TileKernel *portable_tiles() {
    static const TileKernel kernel{lanes::kName, lanes::kLanes, find, pack, gate};
    return &kernel;
}
}  // namespace stratakv
