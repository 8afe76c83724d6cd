// Shootdown against re-mapping, with a page table for each CPU: the slot's owner field says in whose tables an entry may be, and
// who is to be shot down, as far as it runs the space; CPUs leave the space and come back meanwhile.
// mutants: OWNER_LOST OWN_TABLE_ONLY ACTIVE_TABLES_ONLY SET_FIRST FREE_FIRST UNLOCK_FIRST LEAVE_FIRST LOAD_FIRST INTERRUPTS_OFF
#define ROUNDS 2
#include "shootdown.inc"
