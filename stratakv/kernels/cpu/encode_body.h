// Encoding, compiled once for each instruction set; floats are added in the order of the torch bodies, so that the
// bytes are the same to the bit. No fused multiply-add may be made of them (-ffp-contract=off).
#pragma once
#include <cmath>
#include <cstring>

#include "encode_trellis.h"

namespace {

using stratakv::Encoded;
using stratakv::Encoder;
using stratakv::EncodeTask;
using stratakv::kPageTokens;

// Codebook indices of a block's direction, and its norm.
template <int N, int BITS>
inline float turbo_indices_of(const Encoder &e, const float *x, std::uint8_t *indices) {
    F v[N];
    const float norm = direction_of<N>(e, x, v);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store_low_bytes(indices + 16 * i, rank<BITS>(v[i], e.thresholds.data()));
    return norm;
}

inline float turbo_indices(const Encoder &e, const float *x, int block, std::uint8_t *indices) {
    if (block == 128 || block == 64) {
        const bool wide = block == 128;
        switch (e.bits) {
            case 2: return wide ? turbo_indices_of<8, 2>(e, x, indices) : turbo_indices_of<4, 2>(e, x, indices);
            case 3: return wide ? turbo_indices_of<8, 3>(e, x, indices) : turbo_indices_of<4, 3>(e, x, indices);
            case 4: return wide ? turbo_indices_of<8, 4>(e, x, indices) : turbo_indices_of<4, 4>(e, x, indices);
            case 5: return wide ? turbo_indices_of<8, 5>(e, x, indices) : turbo_indices_of<4, 5>(e, x, indices);
            case 6: return wide ? turbo_indices_of<8, 6>(e, x, indices) : turbo_indices_of<4, 6>(e, x, indices);
            default: break;
        }
    }
    alignas(64) float y[kMaxDim];
    const float norm = direction_of(e, x, block, y);
    const int count = (1 << e.bits) - 1;
    const float *thresholds = e.thresholds.data();
    if (count < 64) {
        alignas(64) std::int32_t found[kMaxDim];
        for (int i = 0; i < block; ++i) found[i] = 0;
        for (int t = 0; t < count; ++t) {
            const float threshold = thresholds[t];
            for (int i = 0; i < block; ++i) found[i] += y[i] >= threshold;
        }
        for (int i = 0; i < block; ++i) indices[i] = static_cast<std::uint8_t>(found[i]);
    } else {  // uniform levels: a guess, then the thresholds' own word
        const float step = thresholds[1] - thresholds[0];
        for (int i = 0; i < block; ++i) {
            int guess =
                static_cast<int>(std::fmin(std::fmax((y[i] - thresholds[0]) / step + 1.0f, 0.0f), float(count)));
            while (guess > 0 && y[i] < thresholds[guess - 1]) --guess;
            while (guess < count && y[i] >= thresholds[guess]) ++guess;
            indices[i] = static_cast<std::uint8_t>(guess);
        }
    }
    return norm;
}

inline Encoded encode_turbo(const Encoder &e, const float *x, std::uint8_t *out) {
    const int block = e.dim / e.blocks;
    alignas(64) std::uint8_t indices[kMaxDim];
    const float norm = turbo_indices(e, x, block, indices);
    if (!std::isfinite(norm) && !finite(x, block)) return Encoded::not_finite;
    // the length of the chosen entries: at most 1024 squares of at most 2^14, exact in any order
    I sums = zero();
    int i = 0;
    if (e.bits < 8) {
        const Table entries = table(e.magnitudes, 0);
        for (; i + 64 <= block; i += 64) {
            const I magnitudes = lookup<6>(load(indices + i), entries);
            sums = dot_weights(sums, magnitudes, magnitudes);
        }
    }
    float length = hsum(to_float(sums));
    for (; i < block; ++i) length += e.squares[indices[i]];
    const float root = std::sqrt(length < 1 ? 1.0f : length);
    const Encoded state = put_half(norm / (root * e.unit), out);
    out += 2;
    switch (e.bits) {
        case 2: put_plane<2>(indices, block, 0, out); break;
        case 3: put_plane<1>(indices, block, 2, put_plane<2>(indices, block, 0, out)); break;
        case 4: put_plane<4>(indices, block, 0, out); break;
        case 5: put_plane<1>(indices, block, 4, put_plane<4>(indices, block, 0, out)); break;
        case 6: put_plane<2>(indices, block, 4, put_plane<4>(indices, block, 0, out)); break;
        default: std::memcpy(out, indices, block);
    }
    return state;
}

inline float inverse_of(float scale) {
    const float inverse = 1.0f / scale;
    return std::isfinite(inverse) ? inverse : 0.0f;
}

inline Encoded encode_q8(const float *x, int size, std::uint8_t *out) {
    float largest = 0;
    for (int i = 0; i < size; ++i) largest = std::fmax(largest, std::fabs(x[i]));
    const float scale = largest / 127.0f, inverse = inverse_of(scale);
    const Encoded state = put_half(scale, out);
    for (int i = 0; i < size; ++i) {
        const float value = x[i] * inverse, magnitude = std::fabs(value), down = std::floor(magnitude);
        const float rounded = magnitude - down >= 0.5f ? down + 1.0f : down;
        out[2 + i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(value < 0 ? -rounded : rounded));
    }
    return state;
}

// q4_0, q5_0 (middle) and q4_1, q5_1 (minimum) of one block.
inline Encoded encode_nibbles(const Encoder &e, const float *x, int size, std::uint8_t *out) {
    const int top = (1 << e.bits) - 1;
    float scale, low = 0, shift;
    Encoded state;
    if (e.form == Encoder::Form::minimum) {
        float high = x[0];
        low = x[0];
        for (int i = 1; i < size; ++i) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        low = low + 0.0f;
        scale = (high - low) / static_cast<float>(top) + 0.0f;  // -0 becomes 0, as in the torch body
        shift = 0.5f;
        state = put_half(scale, out);
        const Encoded second = put_half(low, out + 2);
        if (second != Encoded::good) state = second;
        out += 4;
    } else {
        float extreme = x[0];
        for (int i = 1; i < size; ++i)
            if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
        const int half = 1 << (e.bits - 1);
        scale = extreme / static_cast<float>(-half);
        shift = static_cast<float>(half) + 0.5f;
        state = put_half(scale, out);
        out += 2;
    }
    const float inverse = inverse_of(scale);
    std::uint8_t codes[32];
    for (int i = 0; i < size; ++i) {
        const float centred = e.form == Encoder::Form::minimum ? x[i] - low : x[i];
        const float code = centred * inverse + shift;
        codes[i] = static_cast<std::uint8_t>(std::fmin(std::fmax(code, 0.0f), static_cast<float>(top)));
    }
    if (e.bits == 5) out = put_plane<1>(codes, size, 4, out);
    for (int i = 0; i < size / 2; ++i) out[i] = static_cast<std::uint8_t>((codes[i] & 15) | (codes[i + size / 2] << 4));
    return state;
}

inline Encoded encode_floats(const Encoder &e, const float *x, std::uint8_t *out) {
    Encoded state = Encoded::good;
    for (int i = 0; i < e.dim; ++i) {
        if (e.form == Encoder::Form::f32) {
            std::memcpy(out + i * 4, x + i, 4);
        } else if (e.form == Encoder::Form::f16) {
            if (put_half(x[i], out + i * 2) != Encoded::good) state = Encoded::too_large;
        } else {
            const std::uint16_t upper = to_bfloat(x[i]);
            std::memcpy(out + i * 2, &upper, 2);
            if ((upper & 0x7f80) == 0x7f80) state = Encoded::too_large;
        }
    }
    return state;
}

// One vector [dim], which is overwritten -> its canonical bytes.
inline Encoded encode_vector(const Encoder &e, float *x, std::uint8_t *out) {
    // turbo types see it in their norm
    if (e.form != Encoder::Form::turbo && !finite(x, e.dim)) return Encoded::not_finite;
    const int size = e.dim / e.blocks, bytes = e.nbytes / e.blocks;
    if (e.form <= Encoder::Form::bf16) return encode_floats(e, x, out);
    Encoded state = Encoded::good;
    if (e.form != Encoder::Form::turbo) rotate(&e.rotation, x, e.dim);
    for (int block = 0; block < e.blocks; ++block, x += size, out += bytes) {
        const Encoded one = e.form == Encoder::Form::turbo ? encode_turbo(e, x, out)
                            : e.form == Encoder::Form::q8  ? encode_q8(x, size, out)
                                                           : encode_nibbles(e, x, size, out);
        if (one == Encoded::not_finite) return one;
        if (one != Encoded::good) state = one;
    }
    return state;
}

// The bytes of one token to where they belong. slot: its place in the page.
inline void put_token(const Encoder &e, const std::uint8_t *bytes, std::uint8_t *tile, int slot) {
    for (const Encoder::Runs &runs : e.runs) {
        std::uint8_t *to = tile + runs.offsets[slot];
        if (runs.length == 4)
            for (int i = 0; i < runs.count; ++i, bytes += 4, to += runs.stride) std::memcpy(to, bytes, 4);
        else
            for (int i = 0; i < runs.count; ++i, ++bytes, to += runs.stride) *to = *bytes;
    }
}

// The same for 4 tokens that follow each other from a multiple of 4 on: where V's codes of 4 tokens lie side by side.
inline void put_tokens(const Encoder &e, const std::uint8_t (*bytes)[4 * kMaxDim], std::uint8_t *tile, int slot) {
    int from = 0;
    for (const Encoder::Runs &runs : e.runs) {
        if (runs.length == 1 && runs.stride == 4) {
            std::uint8_t *to = tile + runs.offsets[slot];
            const std::uint8_t *b0 = bytes[0] + from, *b1 = bytes[1] + from, *b2 = bytes[2] + from,
                               *b3 = bytes[3] + from;
            for (int i = 0; i < runs.count; ++i) {
                const std::uint32_t word = b0[i] | b1[i] << 8 | b2[i] << 16 | std::uint32_t(b3[i]) << 24;
                std::memcpy(to + 4 * i, &word, 4);
            }
        } else {
            for (int t = 0; t < 4; ++t) {
                std::uint8_t *to = tile + runs.offsets[slot + t];
                const std::uint8_t *b = bytes[t] + from;
                for (int i = 0; i < runs.count; ++i, b += runs.length, to += runs.stride) {
                    if (runs.length == 4)
                        std::memcpy(to, b, 4);
                    else
                        *to = *b;
                }
            }
        }
        from += runs.length * runs.count;
    }
}

// Vectors of a trellis type that no others follow in their page: up to 4 of them are encoded side by side.
class Strays {
public:
    explicit Strays(const Encoder &e) : e_(e) {}

    // Where the next one belongs.
    float *next() { return x_[count_]; }

    // It is there; its bytes go to this place of the tile.
    Encoded add(std::uint8_t *tile, int place) {
        tiles_[count_] = tile, places_[count_] = place;
        return ++count_ == 4 ? put() : Encoded::good;
    }

    Encoded put() {
        if (count_ == 3) std::memcpy(x_[3], x_[2], sizeof(float) * e_.dim);
        const Encoded state = count_ == 0   ? Encoded::good
                              : count_ == 1 ? encode_trellis<1>(e_, x_, bytes_)
                              : count_ == 2 ? encode_trellis<2>(e_, x_, bytes_)
                                            : encode_trellis<4>(e_, x_, bytes_);
        for (int i = 0; i < count_ && state == Encoded::good; ++i) put_token(e_, bytes_[i], tiles_[i], places_[i]);
        count_ = 0;
        return state;
    }

private:
    const Encoder &e_;
    alignas(64) float x_[4][kMaxDim];
    std::uint8_t bytes_[4][4 * kMaxDim];
    std::uint8_t *tiles_[4];
    int places_[4], count_ = 0;
};

// Tokens [begin, end) of heads [first, last), into their pages.
Encoded encode(const EncodeTask &task, int first, int last, int begin, int end) {
    const Encoder &e = *task.encoder;
    const bool trellis = e.form == Encoder::Form::trellis;
    alignas(64) float x[4][kMaxDim];
    std::uint8_t bytes[4][4 * kMaxDim];
    Strays strays(e);
    for (int head = first; head < last; ++head)
        for (int token = begin, count = 1; token < end; token += count) {
            const std::int64_t slot = task.slots[token];
            const bool four = slot >= 0 && slot % 4 == 0 && token + 4 <= end && task.slots[token + 1] == slot + 1 &&
                              task.slots[token + 2] == slot + 2 && task.slots[token + 3] == slot + 3;
            count = four ? 4 : 1;
            if (slot < 0) continue;
            std::uint8_t *tile = task.where.at(slot / kPageTokens) + head * task.tile_bytes;
            const int place = static_cast<int>(slot % kPageTokens);
            Encoded state = Encoded::good;
            if (trellis && !four) {
                read_row(task.states, token, head, e.dim, strays.next());
                state = strays.add(tile, place);
            } else {
                for (int t = 0; t < count && state == Encoded::good; ++t) {
                    read_row(task.states, token + t, head, e.dim, x[t]);
                    if (!trellis) state = encode_vector(e, x[t], bytes[t]);
                }
                if (trellis) state = encode_trellis<4>(e, x, bytes);
            }
            if (state != Encoded::good) return state;
            if (four)
                put_tokens(e, bytes, tile, place);
            else if (!trellis)
                put_token(e, bytes[0], tile, place);
        }
    return strays.put();
}

}  // namespace
