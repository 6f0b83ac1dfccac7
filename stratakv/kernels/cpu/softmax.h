// What decoding and prompts share: exponentials, and the memory of a thread.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#include "attend.h"
#include "vectors.h"

namespace {

using stratakv::Attention;
using stratakv::Partial;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// 2^x for x <= 0, next to nothing below -126: 2^n times a polynomial on [-1/2, 1/2], relative error below 1e-7.
inline F exp2_negative(F x) {
    x = fmax(x, fset1(-126.0f));
    const F n = round(x), r = fsub(x, n);
    F p = fset1(1.3276471960e-03f);
    p = fma(p, r, fset1(9.6755415026e-03f));
    p = fma(p, r, fset1(5.5507132751e-02f));
    p = fma(p, r, fset1(2.4022119721e-01f));
    p = fma(p, r, fset1(6.9314696706e-01f));
    p = fma(p, r, fset1(1.0000000717e+00f));
    return scale_by_power(p, n);
}

// Memory of one thread, kept between calls: nothing of the history's size, nothing allocated in a step after the first.
class Scratch {
public:
    ~Scratch() { std::free(start_); }

    // One list says all pieces: what points at each, and how many values it has. Behind each lie 64 bytes or more that
    // may be read.
    struct Piece {
        template <typename T>
        Piece(T *&pointer, std::size_t count) : to(&pointer), bytes(count * sizeof(T)) {}
        void *to;  // the pointer
        std::size_t bytes;
    };
    void lay(std::initializer_list<Piece> pieces) {
        std::size_t size = 0;
        for (const Piece &piece : pieces) size += padded(piece.bytes);
        if (size > size_) {
            std::free(start_);
            size_ = (size + 4095) / 4096 * 4096;
            start_ = static_cast<std::uint8_t *>(std::aligned_alloc(64, size_));
        }
        std::uint8_t *at = start_;
        for (const Piece &piece : pieces) std::memcpy(piece.to, &at, sizeof at), at += padded(piece.bytes);
#ifdef STRATAKV_CHECKED
        ends_.clear(), at = start_;
        for (const Piece &piece : pieces) {
            ends_.push_back({at + piece.bytes, at += padded(piece.bytes)});
            std::memset(ends_.back().first, kMark, ends_.back().second - ends_.back().first);
        }
#endif
    }

    // That nothing was written behind any piece: looked at in the tests' builds.
    void check() const {
#ifdef STRATAKV_CHECKED
        for (const auto &[begin, end] : ends_)
            if (!std::all_of(begin, end, [](std::uint8_t byte) { return byte == kMark; })) {
                std::fputs("scratch memory: a piece was written beyond its end\n", stderr);
                std::abort();
            }
#endif
    }

private:
    static std::size_t padded(std::size_t bytes) { return (bytes + 127) / 64 * 64; }

    std::uint8_t *start_ = nullptr;
    std::size_t size_ = 0;
#ifdef STRATAKV_CHECKED
    static constexpr std::uint8_t kMark = 0xa7;
    std::vector<std::pair<std::uint8_t *, std::uint8_t *>> ends_;
#endif
};

// Whether scores are multiplied by the scale before anything else: a softcap wants it, and the maximum of negative
// multiples.
inline bool premultiplied(const Attention &a) { return a.softcap > 0 || !(a.scale > 0); }

}  // namespace
