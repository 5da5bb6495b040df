#include "base/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lockstep {

int MaxThreads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void SetMaxThreads([[maybe_unused]] int threads) {
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

}  // namespace lockstep
