// Two processors, and a weak word through which the object is found again while it dies.
// mutants: ZERO_SKIP REVIEW_EARLY CONFLICT_EARLY REQUEUE_LOCAL REQUEUE_EPOCH UNPINNED_GET FORGET_REVIVAL
#define CPUS 2
#define EPOCHS 6
#define REFS 2
#define LIMIT 2
#define WEAK 1
#define PARK 0
#include "refcache.inc"
