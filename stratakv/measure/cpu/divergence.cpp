#include "divergence.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cpu_features.h"
#include "threads.h"

#define STRATAKV_INLINE inline __attribute__((always_inline))

namespace stratakv {
namespace {

constexpr int kLanes = 16;  // sums side by side, in any instruction set
constexpr std::int64_t kRun = 1024;
constexpr double kSmallest = -708.0;  // e^x below is no normal number: taken for 0

// Vectors of `Bytes` bytes of doubles, kLanes of them in kParts.
template <int Bytes>
struct Lanes {
    static constexpr int kWide = Bytes / 8, kParts = kLanes / kWide;
    typedef double V __attribute__((vector_size(Bytes)));
    typedef std::int64_t I __attribute__((vector_size(Bytes)));
    typedef float F __attribute__((vector_size(Bytes / 2)));
    typedef float W __attribute__((vector_size(Bytes)));
    V part[kParts];
};

template <int Bytes>
STRATAKV_INLINE void load(const float *from, int part, typename Lanes<Bytes>::V &to) {
    typename Lanes<Bytes>::F x;
    std::memcpy(&x, from + part * Lanes<Bytes>::kWide, sizeof x);
    to = __builtin_convertvector(x, typename Lanes<Bytes>::V);
}

// e^x for x <= 0 to about one unit in the last place, 0 below kSmallest; not a number stays that. The nearest multiple
// of ln 2 is taken off in two parts (Cody and Waite), the rest, at most 0.35, goes into Taylor's series: its 14th term
// is 2e-18.
template <int Bytes>
STRATAKV_INLINE void exponential(typename Lanes<Bytes>::V &x) {
    using V = typename Lanes<Bytes>::V;
    using I = typename Lanes<Bytes>::I;
    constexpr double kMagic = 0x1.8p52;  // added, a double's last bits are the nearest integer
    constexpr double kHigh = 0x1.62e42fefa38p-1, kLow = 0x1.ef35793c7673p-45, kInverse = 0x1.71547652b82fep+0;
    constexpr double kTerms[] = {
        1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
    const I small = x < kSmallest;
    const V shifted = x * kInverse + kMagic, whole = shifted - kMagic;
    const V rest = (x - whole * kHigh) - whole * kLow;
    V sum = rest * kTerms[0] + kTerms[1];
    for (int i = 2; i < 14; ++i) sum = sum * rest + kTerms[i];
    I power;
    std::memcpy(&power, &shifted, sizeof power);
    power = (power + 1023) << 52;
    V scale;
    std::memcpy(&scale, &power, sizeof scale);
    sum = sum * scale;
    I bits;
    std::memcpy(&bits, &sum, sizeof bits);
    bits &= ~small;
    std::memcpy(&x, &bits, sizeof x);
}

// The largest value and where it stands first; what is no number is passed over.
template <int Bytes>
STRATAKV_INLINE float largest(const float *x, std::int64_t columns, std::int64_t &at) {
    using W = typename Lanes<Bytes>::W;
    constexpr int kWide = Bytes / 4;
    float best = -std::numeric_limits<float>::infinity();
    std::int64_t run = 0;
    for (std::int64_t begin = 0; begin < columns; begin += kRun) {
        const std::int64_t end = std::min(begin + kRun, columns);
        float here = best;
        std::int64_t i = begin;
        if (end - begin == kRun) {
            W most[4];
            std::memcpy(most, x + begin, sizeof most);
            for (i += 4 * kWide; i < end; i += 4 * kWide)
                for (int j = 0; j < 4; ++j) {
                    W next;
                    std::memcpy(&next, x + i + j * kWide, sizeof next);
                    most[j] = next > most[j] ? next : most[j];
                }
            for (int j = 0; j < 4; ++j)
                for (int lane = 0; lane < kWide; ++lane) here = most[j][lane] > here ? most[j][lane] : here;
        }
        for (; i < end; ++i) here = x[i] > here ? x[i] : here;
        if (here > best) best = here, run = begin;
    }
    at = run;
    while (at + 1 < columns && x[at] != best) ++at;
    return best;
}

template <int Bytes>
STRATAKV_INLINE double total(const Lanes<Bytes> &lanes) {
    double at[kLanes];
    std::memcpy(at, lanes.part, sizeof at);
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) at[i] += at[i + width];
    return at[0];
}

template <int Bytes>
STRATAKV_INLINE void add(const float *x, const float *reference, double most, double reference_logsumexp,
                         Lanes<Bytes> &sums, Lanes<Bytes> &divergences) {
    using V = typename Lanes<Bytes>::V;
    using I = typename Lanes<Bytes>::I;
    for (int part = 0; part < Lanes<Bytes>::kParts; ++part) {
        V value;
        load<Bytes>(x, part, value);
        V power = value - most;
        exponential<Bytes>(power);
        sums.part[part] += power;
        if (!reference) continue;
        V expected;
        load<Bytes>(reference, part, expected);
        V likely = expected - reference_logsumexp;
        const I impossible = likely < kSmallest;  // its term is 0, also where both logits are minus infinity
        exponential<Bytes>(likely);
        V term = likely * (expected - value);
        I bits;
        std::memcpy(&bits, &term, sizeof bits);
        bits &= ~impossible;
        std::memcpy(&term, &bits, sizeof term);
        divergences.part[part] += term;
    }
}

template <int Bytes, bool Against>
STRATAKV_INLINE void score_row(const LogitRows &of, std::int64_t row) {
    const float *x = of.logits + row * of.columns;
    const float *reference = Against ? of.reference + row * of.columns : nullptr;
    const double other = Against ? of.reference_logsumexp[row] : 0.0;
    const double most = largest<Bytes>(x, of.columns, of.top[row]);
    Lanes<Bytes> sums{}, divergences{};
    const std::int64_t whole = of.columns / kLanes * kLanes;
    for (std::int64_t i = 0; i < whole; i += kLanes)
        add<Bytes>(x + i, Against ? reference + i : nullptr, most, other, sums, divergences);
    if (whole < of.columns) {
        float end[2][kLanes];
        std::fill_n(end[0], 2 * kLanes, -std::numeric_limits<float>::infinity());
        std::copy(x + whole, x + of.columns, end[0]);
        if (Against) std::copy(reference + whole, reference + of.columns, end[1]);
        add<Bytes>(end[0], Against ? end[1] : nullptr, most, other, sums, divergences);
    }
    of.logsumexp[row] = most + __builtin_log(total(sums));
    if (Against) of.kld[row] = total(divergences) + (of.logsumexp[row] - other);
}

template <int Bytes>
STRATAKV_INLINE void score_any(const LogitRows &of, std::int64_t row) {
    of.reference ? score_row<Bytes, true>(of, row) : score_row<Bytes, false>(of, row);
}

void portable(const LogitRows &of, std::int64_t row) { score_any<16>(of, row); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void avx2(const LogitRows &of, std::int64_t row) { score_any<32>(of, row); }
__attribute__((target("avx512f,avx512dq"))) void avx512(const LogitRows &of, std::int64_t row) {
    score_any<64>(of, row);
}
#endif

}  // namespace

const std::vector<Scorer> &scorers() {
    static const std::vector<Scorer> found = [] {
        std::vector<Scorer> all;
#if defined(__x86_64__)
        const std::vector<std::string> features = cpu_features();
        const auto has = [&](const char *name) { return std::count(features.begin(), features.end(), name) > 0; };
        if (has("avx512f") && has("avx512dq")) all.push_back({"avx512", avx512});
        if (has("avx2") && has("fma")) all.push_back({"avx2", avx2});
#endif
        all.push_back({"portable", portable});
        return all;
    }();
    return found;
}

void score(const LogitRows &of, const std::string &name, int threads) {
    for (const Scorer &scorer : scorers())
        if (name.empty() || name == scorer.name)
            return parallel_for(threads, static_cast<int>(of.rows), [&](int row) { scorer.row(of, row); });
    throw std::invalid_argument("no such scorer");
}

}  // namespace stratakv
