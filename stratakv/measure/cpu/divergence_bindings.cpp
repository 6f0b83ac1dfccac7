// What Python sees of scoring.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "divergence.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stratakv {

void bind_scores(nb::module_ &m) {
    m.def(
        "score",
        [](Address logits, std::int64_t rows, std::int64_t columns, Address logsumexp, Address top, Address reference,
           Address reference_logsumexp, Address kld, const std::string &scorer, int threads) {
            nb::gil_scoped_release release;
            score({at<const float>(logits), rows, columns, at<double>(logsumexp), at<std::int64_t>(top),
                   at<const float>(reference), at<const double>(reference_logsumexp), at<double>(kld)},
                  scorer, threads);
        },
        "logits"_a, "rows"_a, "columns"_a, "logsumexp"_a, "top"_a, "reference"_a, "reference_logsumexp"_a, "kld"_a,
        "scorer"_a, "threads"_a,
        "Of float32 rows one behind the other: ln(sum(e^x)) as float64, where the largest stands as int64, and where "
        "reference isn't 0 the divergence from it in nats, float64. scorer: one of scorers(), '' for the first.");
    m.def(
        "scorers",
        [] {
            std::vector<std::string> names;
            for (const Scorer &scorer : scorers()) names.emplace_back(scorer.name);
            return names;
        },
        "Instruction sets that `score` runs by on this CPU, the fastest first.");
}

}  // namespace stratakv
