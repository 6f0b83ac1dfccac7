// What scoring needs of rows of logits, in float64.
#pragma once
#include <cstdint>

namespace stratakv {

// Rows of float32 logits, one behind the other, and where what is found goes: of each row ln(sum(e^x)) and where its
// largest value stands, the first of equals. With a reference, whose ln(sum(e^x)) is given, kld takes the divergence
// KL(reference || logits) in nats. What is not finite makes results that are not.
struct LogitRows {
    const float *logits;
    std::int64_t rows, columns;
    double *logsumexp;
    std::int64_t *top;
    const float *reference;  // null: none, and no kld
    const double *reference_logsumexp;
    double *kld;
};

// The same bits on every CPU, and for any number of threads.
void score(const LogitRows &of, int threads);

}  // namespace stratakv
