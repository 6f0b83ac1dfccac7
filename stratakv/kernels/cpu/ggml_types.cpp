#include "ggml_types.h"

#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace stratakv {
namespace {

// The tables as ggml.h and ggml-cpu.h of ggml 0.9 to 0.25 declare them; `check` finds others out before anything is
// called.
struct Traits {
    const char *name;
    std::int64_t block, interleave;
    std::size_t bytes;
    bool quantized;
    RowType::ToFloat to_float;
    RowType::FromFloat from_float_ref;
};
struct CpuTraits {
    RowType::FromFloat from_float;
    RowType::Dot dot;
    int dot_type;
    std::int64_t rows;
};

struct Library {
    const Traits *(*traits)(int);
    const CpuTraits *(*cpu_traits)(int);
    std::int64_t (*block)(int);
    std::size_t (*bytes)(int);
    std::size_t (*quantize)(int, const float *, void *, std::int64_t, std::int64_t, std::int64_t, const float *);
};
Library *library = nullptr;
constexpr int kF32 = 0, kMostTypes = 64;

#if defined(__unix__) || defined(__APPLE__)
bool inside(const void *pointer, const char *expected) {
    Dl_info info;
    return dladdr(pointer, &info) && info.dli_fname && std::string(info.dli_fname).find(expected) != std::string::npos;
}
#else
bool inside(const void *, const char *) { return false; }
#endif

std::invalid_argument refused(int type, const std::string &why) {
    return std::invalid_argument("ggml type " + std::to_string(type) + ": " + why);
}

// A row that ggml packed from known values, multiplied by ggml, against the same row unpacked and multiplied here.
void check(const RowType &row) {
    constexpr int kColumns = 1024;
    std::vector<float> values(kColumns), x(kColumns), unpacked(kColumns);
    std::uint32_t state = 12345;
    auto next = [&] { return float(state = state * 1664525u + 1013904223u) / 4294967296.0f - 0.5f; };
    for (int i = 0; i < kColumns; ++i) values[i] = next(), x[i] = next();
    std::vector<std::uint8_t> packed(row.row_bytes(kColumns)), activations(row.dot_bytes(kColumns));
    const std::vector<float> importance(kColumns, 1.0f);
    library->quantize(row.type, values.data(), packed.data(), 0, 1, kColumns, importance.data());
    if (row.to_float)
        row.to_float(packed.data(), unpacked.data(), kColumns);
    else
        unpacked = values;
    if (row.pack) row.pack(x.data(), activations.data(), kColumns);
    float result = NAN;
    row.dot(kColumns, &result, 0, packed.data(), 0, row.pack ? static_cast<void *>(activations.data()) : x.data(), 0,
            1);
    double expected = 0, size = 0, difference = 0, norm = 0;
    for (int i = 0; i < kColumns; ++i) {
        expected += double(unpacked[i]) * x[i], size += double(unpacked[i]) * unpacked[i] * x[i] * x[i];
        difference += (double(unpacked[i]) - values[i]) * (double(unpacked[i]) - values[i]),
            norm += double(values[i]) * values[i];
    }
    // 8-bit activations: some hundredths of the product's own spread; unpacked rows: 1 bit a value is the coarsest
    if (!(std::fabs(result - expected) <= 0.1 * std::sqrt(size)) || !(difference <= 0.9 * norm))
        throw refused(row.type, "ggml multiplies a known row to something else");
}

RowType find(int type) {
    if (!library) throw std::invalid_argument("ggml is not open");
    if (type < 0 || type >= kMostTypes) throw refused(type, "unknown");
    const Traits *traits = library->traits(type);
    const CpuTraits *cpu = library->cpu_traits(type);
    RowType row{};
    row.type = type, row.block = library->block(type), row.block_bytes = library->bytes(type);
    if (row.block < 1 || !cpu->dot || !inside(reinterpret_cast<const void *>(cpu->dot), "ggml"))
        throw refused(type, "ggml has no product for it on a CPU");
    if (cpu->dot_type < 0 || cpu->dot_type >= kMostTypes || traits->block != row.block ||
        traits->bytes != row.block_bytes)
        throw refused(type, "this version of ggml lays out its tables in another way");
    row.dot = cpu->dot, row.dot_type = cpu->dot_type;
    row.dot_block = library->block(row.dot_type), row.dot_block_bytes = library->bytes(row.dot_type);
    row.to_float = type == kF32 ? nullptr : traits->to_float;
    row.pack = row.dot_type == kF32 ? nullptr : library->cpu_traits(row.dot_type)->from_float;
    for (const void *function :
         {reinterpret_cast<const void *>(row.to_float), reinterpret_cast<const void *>(row.pack)})
        if (function && !inside(function, "ggml"))
            throw refused(type, "this version of ggml lays out its tables in another way");
    if ((!row.to_float && type != kF32) || (!row.pack && row.dot_type != kF32))
        throw refused(type, "ggml can't unpack it");
    check(row);
    return row;
}

}  // namespace

std::string open_ggml(const char *base, const char *cpu) {
#if defined(__unix__) || defined(__APPLE__)
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    if (library) return "";
    void *base_handle = dlopen(base, RTLD_NOW | RTLD_GLOBAL);
    void *cpu_handle = base_handle ? dlopen(cpu, RTLD_NOW) : nullptr;
    if (!cpu_handle) {
        const char *why = dlerror();
        return why ? why : "dlopen failed";
    }
    Library found{};
    auto symbol = [&](auto &function, void *handle, const char *name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
        return function != nullptr;
    };
    void (*initialize)() = nullptr;
    if (!symbol(found.traits, base_handle, "ggml_get_type_traits") ||
        !symbol(found.cpu_traits, cpu_handle, "ggml_get_type_traits_cpu") ||
        !symbol(found.block, base_handle, "ggml_blck_size") || !symbol(found.bytes, base_handle, "ggml_type_size") ||
        !symbol(found.quantize, base_handle, "ggml_quantize_chunk") || !symbol(initialize, cpu_handle, "ggml_cpu_init"))
        return "functions are missing: another version of ggml";
    initialize();  // tables for half precision
    library = new Library(found);
    return "";
#else
    (void)base, (void)cpu;
    return "not on this system";
#endif
}

const RowType &row_type(int type) {
    static std::mutex mutex;
    static std::map<int, RowType> known;
    std::lock_guard<std::mutex> lock(mutex);
    auto at = known.find(type);
    if (at == known.end()) at = known.emplace(type, find(type)).first;
    return at->second;
}

}  // namespace stratakv
