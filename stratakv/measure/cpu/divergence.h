// What scoring needs of rows of logits, in float64.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

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

// One instruction set's.
struct Scorer {
    const char *name;
    void (*row)(const LogitRows &of, std::int64_t row);
};

// Those that run on this CPU, the fastest first.
const std::vector<Scorer> &scorers();

// By the scorer of that name, the first of them where it is empty. The same bits for any number of threads; scorers
// differ by float64's rounding.
void score(const LogitRows &of, const std::string &name, int threads);

}  // namespace stratakv
