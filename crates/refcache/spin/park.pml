// Two processors that join and leave the epochs, and a weak word.
// mutants: READ_THEN_JOIN DEAF_JOIN SILENT_LEAVE UNPINNED_GET FORGET_REVIVAL
#define CPUS 2
#define EPOCHS 6
#define REFS 2
#define LIMIT 1
#define WEAK 1
#define PARK 1
#include "refcache.inc"
