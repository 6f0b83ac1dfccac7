// Mappings whose file may shrink under them: the system then kills the process at the next touch, unless someone
// answers.
#pragma once
#include <cstddef>

namespace stratakv {

// From now on a read past the file's new end gives zeros and is remembered, instead of ending the process.
void guard_mapping(void *address, std::size_t size);
void forget_mapping(void *address);
bool mapping_failed(void *address);

}  // namespace stratakv
