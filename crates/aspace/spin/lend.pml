// Lending: two spaces show a page of an object without a share of its frame. Faults ask the object and put in what they were lent;
// one space is unmapped and mapped again; the other comes by fork; the page is cut off and gets another frame; and the
// object ends with its last mapping. No frame that was given up is in a slot, or is put into one.
// mutants: UNCOUNTED COUNT_LATE GIVE_UP_FIRST PEEK RETRACT_FIRST FORK_UNANNOUNCED NO_SECOND_LIST CHILD_OPEN NO_WAIT END_FIRST
#define SPACES 2
#ifndef CUTS
#define CUTS 1			/* 54 million states with 2 */
#endif
#define FRAMES (CUTS + 1)

byte index = 1;			/* the object's frame for the page; 0: the object is no more */
bool gone[FRAMES + 1];		/* given up */
byte slot[SPACES];		/* what a CPU may translate to; 0: nothing */
bool locked[SPACES];
bool mapped[SPACES];
bool listed[SPACES];		/* by the object's list */
bool moving[SPACES];		/* held by fork, and by a visit */
byte cuts;			/* of the object, so far */
byte refs;			/* of the object: mappings, faults, who cuts */
byte live;			/* processes that may still do something */

inline lock(s)
{
	atomic { !locked[s] -> locked[s] = true }
}
inline unlock(s)
{
	locked[s] = false
}
/* the last reference takes the frame along */
inline drop_ref()
{
	atomic {
		refs--;
		if
		:: refs == 0 && index != 0 -> give_up(index); index = 0
		:: else -> skip
		fi
	}
}
inline give_up(f)
{
	assert(slot[0] != f && slot[1] != f);
	gone[f] = true
}

proctype fault(byte s)
{
	byte seen, lent;
	bool put;
	do
	:: put -> break
	:: else ->
		/* a mapping is found, and kept */
		atomic {
			if
			:: mapped[s] -> refs++
			:: else -> goto out
			fi
		};
		seen = cuts;
		lent = index;
		lock(s);
		if
		:: mapped[s] && slot[s] == 0 && cuts == seen ->
			assert(!gone[lent]);
			slot[s] = lent; put = true
		:: mapped[s] && slot[s] != 0 -> put = true
		:: else -> skip
		fi;
		unlock(s);
		drop_ref()
	od;
out:	live--
}

/* unmaps the first space, and maps it again */
proctype remap()
{
	lock(0);
	mapped[0] = false;
#ifdef RETRACT_FIRST
	listed[0] = false;
	unlock(0);
	lock(0);
#endif
#ifdef END_FIRST
	drop_ref();
#endif
	slot[0] = 0;
	listed[0] = false;
	unlock(0);
#ifndef END_FIRST
	drop_ref();
#endif
	/* by who has the object open, if anybody has */
	atomic {
		if
		:: index != 0 -> refs++
		:: else -> goto out
		fi
	};
	listed[0] = true;
	atomic { !locked[0] -> mapped[0] = true };
	/* and unmaps it in the end */
	atomic { !locked[0] -> mapped[0] = false; slot[0] = 0; listed[0] = false };
	drop_ref();
out:	live--
}

/* the second space comes as a copy of the first, and is unmapped */
proctype fork()
{
	bool had;
	atomic { !moving[0] -> moving[0] = true };
#ifndef CHILD_OPEN
	moving[1] = true;	/* nobody has it yet */
#endif
	lock(0);
	if
	:: mapped[0] ->
		refs++;
#ifndef FORK_UNANNOUNCED
		listed[1] = true;
#endif
		slot[1] = slot[0];
		mapped[1] = true; had = true
	:: else -> skip
	fi;
	unlock(0);
	moving[0] = false;
#ifndef CHILD_OPEN
	moving[1] = false;
#endif
#ifdef FORK_UNANNOUNCED
	listed[1] = had;
#endif
	if
	:: had ->
		atomic { !locked[1] -> mapped[1] = false; slot[1] = 0; listed[1] = false };
		drop_ref()
	:: else -> skip
	fi;
	live--
}

inline visit()
{
	visited[s] = true;
	atomic { !moving[s] -> moving[s] = true };
	if
#ifdef PEEK
	:: slot[s] != 0 ->
#else
	:: mapped[s] ->
#endif
		lock(s);
		if
		:: slot[s] == old -> slot[s] = 0
		:: else -> skip
		fi;
		unlock(s)
	:: else -> skip
	fi;
#ifndef NO_WAIT
	/* who has taken out what was not seen any more has flushed */
	!locked[s];
#endif
	moving[s] = false
}

proctype cut()
{
	byte n, s, old;
	bool visited[SPACES], fresh;
	do
	:: n == CUTS -> break
	:: else ->
		n++;
		/* it is lent no more */
		atomic { old = index; index = old + 1 };
#ifndef UNCOUNTED
#ifndef COUNT_LATE
		cuts++;
#endif
#endif
#ifdef GIVE_UP_FIRST
		give_up(old);
#endif
		atomic { visited[0] = false; visited[1] = false };
		do
		:: atomic { listed[0] && !visited[0] -> s = 0; fresh = true }; visit()
		:: atomic { listed[1] && !visited[1] -> s = 1; fresh = true }; visit()
#ifdef NO_SECOND_LIST
		:: fresh -> break
#endif
		:: atomic { !(listed[0] && !visited[0]) && !(listed[1] && !visited[1]) -> break }
		od;
		fresh = false;
#ifdef COUNT_LATE
		cuts++;
#endif
#ifndef GIVE_UP_FIRST
		atomic { give_up(old) }
#endif
	od;
	drop_ref();
	live--
}

init {
	atomic {
		mapped[0] = true; listed[0] = true;
		refs = 2;	/* the mapping, and who cuts has it open */
		live = 5;
		run fault(0); run fault(1); run remap(); run fork(); run cut()
	};
	live == 0;
	assert(refs == 0 && index == 0 && slot[0] == 0 && slot[1] == 0);
	assert(gone[1] && gone[CUTS + 1])
}
