// Three processors count references to one object; nobody leaves, and there is no weak word.
// mutants: ZERO_SKIP REVIEW_EARLY CONFLICT_EARLY REQUEUE_LOCAL REQUEUE_EPOCH
#define CPUS 3
#define EPOCHS 5
#define REFS 2
#define LIMIT 1
#define WEAK 0
#define PARK 0
#include "refcache.inc"
