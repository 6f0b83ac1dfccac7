#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <string>

#include "bindings.h"
#include "cpu_features.h"
#include "threads.h"

namespace nb = nanobind;

namespace {

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "stratakv's compiled part.";
    // A program may end while a thread or a frozen heap still holds a model: nothing its user could mend. Tests ask for
    // reports.
    nb::set_leak_warnings(std::getenv("STRATAKV_REPORT_LEAKS") != nullptr);
    m.def("cpu_features", &stratakv::cpu_features,
          "Instruction sets that this CPU has and the system allows, found at run time.");
    m.def("compiler", &compiler, "Name and version of the compiler that built this module.");
    m.def("borrow_openmp", &stratakv::borrow_openmp,
          "Have the kernels run on OpenMP's threads, which torch's loops have; False where there are none.");
    stratakv::bind_attention(m);
    stratakv::bind_packed_weights(m);
    stratakv::bind_layers(m);
    stratakv::bind_scores(m);
}
