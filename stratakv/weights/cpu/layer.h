// A decoder layer put together from few parts, over matrices in a file's blocks; and a step of many layers over packed
// pages.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "attend_dispatch.h"
#include "matrix_group.h"
#include "page_layout.h"

namespace stratakv {

// x / rms(x) * weight; no weight: no norm.
struct Norm {
    std::vector<float> weight;
    float epsilon = 0;

    explicit operator bool() const { return !weight.empty(); }
};

// Angles of a step's positions, one row each, or of `tokens` positions that all sequences share. Value i of a row lies
// at i * step.
struct Angles {
    const float *cos, *sin;
    std::int64_t rows, stride, step;
};

// From a layer's input to q, k, v, and from what was attended to the next input.
struct AttentionPart {
    Norm before;
    Group qkv;
    std::int64_t q_heads, kv_heads, dim;
    Norm q_norm, k_norm, v_norm;  // of a head, or of all heads in one
    std::int64_t rotated;         // values of a head that RoPE turns, the first ones; 0: none
    bool interleaved;             // it turns pairs side by side instead of halves
    float scale, softcap;         // softcap 0: none
    std::vector<float> sinks;
    Group output;
    Norm after;
    float residual;  // what the result is multiplied by before it is added

    std::int64_t width() const { return (q_heads + 2 * kv_heads) * dim; }
};

struct MlpPart {
    Norm before;
    Group gate_up;
    Activation activation;
    Group down;
    Norm after;
    float residual;
};

struct Layer {
    AttentionPart attention;
    std::optional<MlpPart> mlp;  // none: the caller has one of its own
};

// projected [rows][part.width()]: q, k, v of x [rows][width], normed and turned.
void project(const AttentionPart &part, const float *x, std::int64_t rows, const Angles &angles, float *projected,
             int threads);
// q [batch][q_heads][tokens][dim], k and v [batch][kv_heads][tokens][dim] of projected.
void split(const AttentionPart &part, const float *projected, std::int64_t batch, std::int64_t tokens, float *q,
           float *k, float *v, int threads);
// x += residual * after(output(attended)); attended [rows][q_heads * dim].
void leave(const AttentionPart &part, const float *attended, std::int64_t rows, float *x, int threads);
// x += residual * after(down(activation(gate) * up)).
void feed(const MlpPart &part, float *x, std::int64_t rows, int threads);

// Pages of one kind of a layer, and what a step's queries see of them, as in Attention.
struct SeenPages {
    const Layout *layout;  // null: there are none
    Pages where;
    const std::int64_t *pages, *page_start;
    const std::int32_t *first, *last;
};

// A layer's part of a step: pages that its new tokens are written to, as in EncodeTask, and sealed ones that queries
// see beside them. filled [filled_pages, 2]: numbers of written pages, and of the sealed ones that they become once the
// tokens are stored. The sequences from `decoding` on are attended in float32 in any case.
struct StepPages {
    SeenPages written, sealed;
    const std::int64_t *slots;
    const std::int32_t *query_start;
    int sequences, decoding;
    const std::int64_t *filled;
    int filled_pages;
};

// What went wrong: layer -1: nothing; whether a page could not be sealed; side 0 K, 1 V; what as Encoded. ran: the
// attention kernel that ran last.
struct StepOutcome {
    int layer = -1;
    bool sealing = false;
    int side = -1, what = 0;
    const char *ran = "";
};

// Layers in order, each storing its K and V, sealing what that fills, and attending: x [rows][width] becomes their
// result.
StepOutcome run_layers(const std::vector<const Layer *> &layers, const std::vector<StepPages> &pages,
                       const std::vector<Angles> &angles, const Kernel &kernel, bool precise, float *x,
                       std::int64_t rows, int threads);

}  // namespace stratakv
