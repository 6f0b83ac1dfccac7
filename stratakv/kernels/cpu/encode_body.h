// Encoding in plain loops, compiled once for each instruction set; floats are added in the order of the torch bodies, so that
// the bytes are the same to the bit. No fused multiply-add may be made of them (-ffp-contract=off).
#pragma once
#include <cmath>
#include <cstring>

#include "encode.h"
#include "vectors.h"

namespace {

using stratakv::Encoded;
using stratakv::Encoder;
using stratakv::EncodeTask;
using stratakv::kPageTokens;

inline Encoded put_half(float value, std::uint8_t *out) {
    const std::uint16_t half = to_half(value);
    std::memcpy(out, &half, 2);
    return (half & 0x7c00) == 0x7c00 ? Encoded::too_large : Encoded::good;
}

// Bits [shift, shift + width) of indices, the first in the low bits. Returns the end of the plane.
template <int WIDTH>
inline std::uint8_t *put_plane(const std::uint8_t *indices, int count, int shift, std::uint8_t *out) {
    constexpr int kPerByte = 8 / WIDTH, kMask = (1 << WIDTH) - 1;
    for (int i = 0; i < count / kPerByte; ++i) {
        int byte = 0;
        for (int j = 0; j < kPerByte; ++j) byte |= (indices[i * kPerByte + j] >> shift & kMask) << (WIDTH * j);
        out[i] = static_cast<std::uint8_t>(byte);
    }
    return out + count / kPerByte;
}

inline Encoded encode_turbo(const Encoder &e, const float *x, std::uint8_t *out) {
    const int block = e.dim / e.blocks;
    alignas(64) float y[kMaxDim];
    alignas(64) std::uint8_t indices[kMaxDim];
    for (int i = 0; i < block; ++i) y[i] = x[i] * x[i];
    int half = block;
    while (half % 2 == 0) {
        half /= 2;
        for (int i = 0; i < half; ++i) y[i] = y[i] + y[i + half];
    }
    float squares = y[0];
    for (int i = 1; i < half; ++i) squares = squares + y[i];
    const float norm = std::sqrt(squares), divisor = norm > 0 ? norm : 1.0f;
    for (int i = 0; i < block; ++i) y[i] = x[i] / divisor;
    rotate_run(e.rotation, y);
    const int count = static_cast<int>(e.thresholds.size());
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
            int guess = static_cast<int>(std::fmin(std::fmax((y[i] - thresholds[0]) / step + 1.0f, 0.0f), float(count)));
            while (guess > 0 && y[i] < thresholds[guess - 1]) --guess;
            while (guess < count && y[i] >= thresholds[guess]) ++guess;
            indices[i] = static_cast<std::uint8_t>(guess);
        }
    }
    float length = 0;  // sums of squared integers are exact
    for (int i = 0; i < block; ++i) length += e.integers[indices[i]] * e.integers[indices[i]];
    const Encoded state = put_half(norm / (std::sqrt(length < 1 ? 1.0f : length) * e.unit), out);
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
    float zeros = 0;  // stays 0 unless a value is inf or nan
    for (int i = 0; i < e.dim; ++i) zeros += x[i] * 0.0f;
    if (!(zeros == 0.0f)) return Encoded::not_finite;
    const int size = e.dim / e.blocks, bytes = e.nbytes / e.blocks;
    if (e.form <= Encoder::Form::bf16) return encode_floats(e, x, out);
    Encoded state = Encoded::good;
    if (e.form != Encoder::Form::turbo) rotate(&e.rotation, x, e.dim);
    for (int block = 0; block < e.blocks; ++block, x += size, out += bytes) {
        const Encoded one = e.form == Encoder::Form::turbo ? encode_turbo(e, x, out)
                          : e.form == Encoder::Form::q8    ? encode_q8(x, size, out)
                                                           : encode_nibbles(e, x, size, out);
        if (one != Encoded::good) state = one;
    }
    return state;
}

// Tokens [begin, end) of one head, into their pages.
Encoded encode(const EncodeTask &task, int head, int begin, int end) {
    const Encoder &e = *task.encoder;
    const std::int32_t *positions = e.positions.data();
    alignas(64) float x[kMaxDim];
    std::uint8_t bytes[4 * kMaxDim];
    for (int token = begin; token < end; ++token) {
        const std::int64_t slot = task.slots[token];
        if (slot < 0) continue;
        read_row(task.states, token, head, e.dim, x);
        const Encoded state = encode_vector(e, x, bytes);
        if (state != Encoded::good) return state;
        std::uint8_t *tile = task.where.at(slot / kPageTokens) + head * task.tile_bytes;
        const std::int32_t *at = positions + std::size_t(slot % kPageTokens) * e.nbytes;
        for (int i = 0; i < e.nbytes; ++i) tile[at[i]] = bytes[i];
    }
    return Encoded::good;
}

}  // namespace
