// Two processors that join and leave the epochs, and a weak word.
// mutants: READ_THEN_JOIN DEAF_JOIN SILENT_LEAVE UNPINNED_GET FORGET_REVIVAL
#ifndef CPUS
#define CPUS 2
#endif
#ifndef EPOCHS
#define EPOCHS 6
#endif
#define REFS 2
#ifndef LIMIT
#define LIMIT 1
#endif
#define WEAK 1
#define PARK 1
#include "refcache.inc"
