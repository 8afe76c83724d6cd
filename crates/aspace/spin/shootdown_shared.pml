// Shootdown against re-mapping, with one page table: all CPUs that run the space are shot down; they leave it and come back
// meanwhile.
// mutants: SET_FIRST FREE_FIRST UNLOCK_FIRST LEAVE_FIRST LOAD_FIRST INTERRUPTS_OFF
#define SHARED
#define ROUNDS 2
#include "shootdown.inc"
