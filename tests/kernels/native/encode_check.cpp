// Every encoder that this machine runs, against bytes that the types' torch bodies wrote into a file
// (tests/support/encode_cases.py).
//
//     encode_check FILE    exits with 1 when a byte differs, or when states that can't be stored are not refused
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>

#include "machine_kernels.h"

namespace check {
namespace {

using stratakv::Encoded;
using stratakv::Encoder;
using stratakv::EncodeTask;
using stratakv::Kernel;
using stratakv::kPageTokens;
using stratakv::Precision;

// Numbers as they lie in memory; a vector begins with its length.
class File {
public:
    explicit File(const char *path) : in_(path, std::ios::binary) {}

    bool more() { return in_.peek() != std::ifstream::traits_type::eof(); }

    template <typename T>
    T number() {
        T x;
        in_.read(reinterpret_cast<char *>(&x), sizeof x);
        if (!in_) throw std::runtime_error("the file ends within a case");
        return x;
    }
    template <typename T>
    std::vector<T> vector() {
        std::vector<T> x(number<std::int32_t>());
        in_.read(reinterpret_cast<char *>(x.data()), static_cast<std::streamsize>(x.size() * sizeof(T)));
        if (!in_) throw std::runtime_error("the file ends within a case");
        return x;
    }

private:
    std::ifstream in_;
};

// One side's states, and what the torch body says of them.
struct Side {
    Encoder encoder;
    std::vector<std::int32_t> positions;  // [kPageTokens, nbytes]: where in a tile a token's bytes belong
    Precision precision;
    std::vector<std::uint8_t> states;  // [tokens, heads, dim]
    Encoded expected;
    std::vector<std::uint8_t> bytes;   // [tokens, heads, nbytes], canonical; none where the states are refused
};

struct Case {
    std::string name;
    int heads, pages;
    std::int64_t tile_bytes;
    std::vector<std::int64_t> slots;
    Side sides[2];
};

void read_encoder(File &file, Side &side) {
    const int form = file.number<std::int32_t>(), dim = file.number<std::int32_t>(),
              nbytes = file.number<std::int32_t>();
    const int blocks = file.number<std::int32_t>(), bits = file.number<std::int32_t>();
    const float unit = file.number<float>();
    const std::vector<float> thresholds = file.vector<float>();
    const std::vector<int> integers = file.vector<int>();
    const float bins = file.number<float>();
    const std::vector<int> numbers = file.vector<int>(), costs = file.vector<int>();
    side.positions = file.vector<std::int32_t>();
    stratakv::Rotation rotation;
    rotation.block = file.number<std::int32_t>(), rotation.order = file.number<std::int32_t>();
    const float norm = file.number<float>();
    rotation.first = file.vector<float>(), rotation.second = file.vector<float>(),
    rotation.paley = file.vector<float>();
    for (float &sign : rotation.second) sign *= norm;
    side.encoder = stratakv::make_encoder(form, dim, nbytes, blocks, bits, rotation, thresholds, integers, unit, bins,
                                          numbers, costs, side.positions);
}

Case read_case(File &file) {
    Case c;
    const std::vector<char> name = file.vector<char>();
    c.name.assign(name.begin(), name.end());
    c.heads = file.number<std::int32_t>(), c.pages = file.number<std::int32_t>();
    c.tile_bytes = file.number<std::int64_t>();
    c.slots = file.vector<std::int64_t>();
    for (Side &side : c.sides) {
        read_encoder(file, side);
        side.precision = static_cast<Precision>(file.number<std::int32_t>());
        side.states = file.vector<std::uint8_t>();
        side.expected = static_cast<Encoded>(file.number<std::int32_t>());
        side.bytes = file.vector<std::uint8_t>();
    }
    return c;
}

// What pages hold before anything is written, and afterwards where nothing was.
constexpr std::uint8_t kGarbage = 0xa5;

// [pages][heads][tile_bytes]
std::vector<std::vector<std::uint8_t>> expected_pages(const Case &c) {
    std::vector<std::vector<std::uint8_t>> pages(c.pages, std::vector<std::uint8_t>(c.heads * c.tile_bytes, kGarbage));
    for (const Side &side : c.sides) {
        const int nbytes = side.encoder.nbytes;
        for (std::size_t token = 0; token < c.slots.size(); ++token)
            for (int head = 0; head < c.heads && c.slots[token] >= 0; ++head)
                for (int i = 0; i < nbytes; ++i)
                    pages[c.slots[token] / kPageTokens]
                         [head * c.tile_bytes + side.positions[c.slots[token] % kPageTokens * nbytes + i]] =
                             side.bytes[(token * c.heads + head) * nbytes + i];
    }
    return pages;
}

// Empty: all as expected. Every page and every side's states have an allocation of their own, which a sanitizer
// watches.
std::string fault_of(const Kernel &kernel, const Case &c) {
    const std::size_t page_bytes = static_cast<std::size_t>(c.heads * c.tile_bytes);
    std::vector<std::unique_ptr<std::uint8_t[]>> pages;
    std::vector<std::int64_t> slots;
    for (int p = 0; p < c.pages; ++p) {
        pages.emplace_back(new std::uint8_t[page_bytes]);
        std::memset(pages[p].get(), kGarbage, page_bytes);
    }
    // pages are addresses here
    for (std::int64_t slot : c.slots)
        slots.push_back(slot < 0 ? -1
                                 : reinterpret_cast<std::int64_t>(pages[slot / kPageTokens].get()) * kPageTokens +
                                       slot % kPageTokens);
    const int tokens = static_cast<int>(slots.size());
    for (const Side &side : c.sides) {
        const stratakv::Input states{side.states.data(), side.precision, std::int64_t(c.heads) * side.encoder.dim,
                                     side.encoder.dim};
        const EncodeTask task{&side.encoder, states, c.heads, tokens, {0, 1}, slots.data(), c.tile_bytes};
        Encoded found = Encoded::good;
        for (int head = 0; head < c.heads; ++head) {
            const Encoded one = kernel.encode(task, head, head + 1, 0, tokens);
            if (one != Encoded::good) found = one;
        }
        if (found != side.expected)
            return "a side's outcome should be " + std::to_string(int(side.expected)) + ", was " +
                   std::to_string(int(found));
        if (found != Encoded::good) return "";
    }
    const std::vector<std::vector<std::uint8_t>> expected = expected_pages(c);
    for (int p = 0; p < c.pages; ++p)
        for (std::size_t i = 0; i < page_bytes; ++i)
            if (pages[p][i] != expected[p][i])
                return "page " + std::to_string(p) + ", byte " + std::to_string(i) + ": " +
                       std::to_string(pages[p][i]) + " instead of " + std::to_string(expected[p][i]);
    return "";
}

}  // namespace
}  // namespace check

int main(int argc, char **argv) {
    using namespace check;
    if (argc != 2) return 2;
    File file(argv[1]);
    const std::vector<const stratakv::Kernel *> all = kernels();
    std::map<std::string, int> runs;
    int failures = 0;
    while (file.more()) {
        const Case c = read_case(file);
        for (const stratakv::Kernel *kernel : all) {
            ++runs[kernel->name];
            const std::string fault = fault_of(*kernel, c);
            if (fault.empty()) continue;
            ++failures;
            std::printf("FAILED %s: %s: %s\n", kernel->name, c.name.c_str(), fault.c_str());
        }
    }
    for (const auto &[name, count] : runs) std::printf("%s: %d runs\n", name.c_str(), count);
    std::printf("%d failures\n", failures);
    return failures || runs.empty();
}
