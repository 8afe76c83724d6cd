// Two processors, and a weak word through which the object is found again while it dies.
// mutants: ZERO_SKIP REVIEW_EARLY CONFLICT_EARLY REQUEUE_LOCAL REQUEUE_EPOCH UNPINNED_GET FORGET_REVIVAL
#ifndef CPUS
#define CPUS 2
#endif
#ifndef EPOCHS
#define EPOCHS 6
#endif
#define REFS 2
#ifndef LIMIT
#define LIMIT 2
#endif
#define WEAK 1
#define PARK 0
#include "refcache.inc"
