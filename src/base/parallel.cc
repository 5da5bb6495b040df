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

}  // namespace lockstep
