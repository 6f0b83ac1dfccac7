#include "tile.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#include "lanes_avx512.h"
//
#include "tile_body.h"

namespace stratakv {
const TileKernel *avx512_tiles() {
    static const TileKernel kernel{lanes::kName, lanes::kLanes, find, pack, gate};
    return &kernel;
}
}  // namespace stratakv
#else
namespace stratakv {
const TileKernel *avx512_tiles() { return nullptr; }
}  // namespace stratakv
#endif
