// Collapse: processors fill and clear overlapping ranges of the two keys of one slot, which narrows, and a fault locks a page; meanwhile
// Refcache finds nodes without used slots and holds, and takes their link away. Each key has one holder, nothing that was filled is
// lost, and nobody waits for ever. Counts are exact here: what Refcache makes of them is the subject of its own models.
// mutants: NO_HOLD NO_REVIVAL HOLD_EARLY UNHELD_NARROW UNCOUNTED NARROW_UNCOUNTED KILL_BLINDLY
#define SPAN 2
#define NODES 6			/* that the slot may have, one after the other: nodes are not used again, as in a grace period */
#define SLOT(n, k) ((n) * SPAN + (k))
#define PROCESSORS 5

byte link;			/* 0: the slot has a value; else it names node link - 1 */
bool dying;			/* DYING, of the link */
byte value;			/* 0: EMPTY */
bool locked;			/* LOCK, of the value */
byte made;
byte leaf[12];
bool taken[12];			/* LOCK, of leaves */
byte count[NODES];		/* used slots and holds */
byte holders[SPAN];
byte want[SPAN];		/* what the last holder left */
byte done;

/* a private node with the slot's value in it, published by one store */
inline narrow(from, to, holds)
{
	n = made; assert(n < NODES); made++;
	leaf[SLOT(n, 0)] = value; leaf[SLOT(n, 1)] = value;
	k = from;
	do
	:: k < to -> taken[SLOT(n, k)] = true; k++
	:: else -> break
	od;
	count[n] = (value -> SPAN : 0) + holds;
#ifdef NARROW_UNCOUNTED
	count[n] = holds;
#endif
	link = n + 1; dying = false; value = 0; locked = false
}

/* by the weak reference that the link is */
inline hold()
{
	atomic {
		if
		:: link == n + 1 ->
#ifndef NO_REVIVAL
			dying = false;
#endif
#ifndef NO_HOLD
			count[n]++; held = true;
#endif
			inside = true
		:: else -> skip
		fi
	}
}

inline drop_hold()
{
	if
	:: held -> count[n]--; held = false
	:: else -> skip
	fi
}

proctype Range(byte lo, hi, new)
{
	byte key, n, k, old;
	bool held, inside, whole;
	key = lo;
	do
	:: key < hi ->
		if
		:: link == 0 && !locked ->
			/* one swap of the whole word; to make an EMPTY slot EMPTY all of it is locked */
			atomic {
				if
				:: link == 0 && !locked && (lo == 0 && hi == SPAN || new == 0 && value == 0) ->
					locked = true; whole = true; key = hi
				:: link == 0 && !locked && !(lo == 0 && hi == SPAN || new == 0 && value == 0) ->
#ifdef UNHELD_NARROW
					narrow(lo, hi, 0);
#else
					narrow(lo, hi, 1);
					held = true;
#endif
					key = hi
				:: else -> skip
				fi
			}
		:: link != 0 ->
			atomic { n = (link -> link - 1 : 0) };
			hold();
			if
			:: inside ->
				do
				:: key < hi -> atomic { !taken[SLOT(n, key)] -> taken[SLOT(n, key)] = true; key++ }
				:: else -> break
				od
			:: else -> skip
			fi
		fi
	:: else -> break
	od;
	skip;
	d_step {
		key = lo;
		do
		:: key < hi -> holders[key]++; assert(holders[key] == 1); key++
		:: else -> break
		od
	};
#ifdef HOLD_EARLY
	drop_hold();
#endif
	if
	:: whole && lo == 0 && hi == SPAN -> value = new
	:: whole && !(lo == 0 && hi == SPAN) -> skip
	:: else ->
		key = lo;
		do
		:: key < hi ->
			atomic {
				old = leaf[SLOT(n, key)]; leaf[SLOT(n, key)] = new;
#ifndef UNCOUNTED
				count[n] = count[n] + (new -> 1 : 0) - (old -> 1 : 0);
#endif
				key++
			}
		:: else -> break
		od
	fi;
	skip;
	d_step {
		key = lo;
		do
		:: key < hi -> holders[key]--; want[key] = new; key++
		:: else -> break
		od
	};
	if
	:: whole -> locked = false
	:: else ->
		key = lo;
		do
		:: key < hi -> taken[SLOT(n, key)] = false; key++
		:: else -> break
		od
	fi;
	drop_hold();
	done++
}

/* Locks what isn't EMPTY, without a hold: a used slot keeps its node. */
proctype Fault(byte key)
{
	byte n, k;
	bool mine;
	do
	:: link == 0 && !locked && value == 0 -> break
	:: link == 0 && !locked && value != 0 ->
		atomic {
			if
			:: link == 0 && !locked && value != 0 -> narrow(key, key + 1, 0); mine = true
			:: else -> skip
			fi
		};
		if
		:: mine -> break
		:: else -> skip
		fi
	:: link != 0 ->
		atomic { n = (link -> link - 1 : 0) };
		if
		:: leaf[SLOT(n, key)] == 0 && !taken[SLOT(n, key)] -> break
		:: atomic { leaf[SLOT(n, key)] != 0 && !taken[SLOT(n, key)] -> taken[SLOT(n, key)] = true; mine = true }; break
		:: taken[SLOT(n, key)] -> skip
		fi
	od;
	if
	:: mine ->
		d_step { holders[key]++; assert(holders[key] == 1) };
		assert(link == n + 1);
		d_step { holders[key]-- };
		taken[SLOT(n, key)] = false
	:: else -> skip
	fi;
	done++
}

/* Refcache: marks the link of a node whose count it has found to be 0, and two epochs later takes it away, if nobody has got a
   reference by it since. */
proctype Review()
{
	byte n;
	do
	:: atomic { link != 0 && count[link - 1] == 0 -> n = link - 1; dying = true };
		atomic {
			if
#ifdef KILL_BLINDLY
			:: link == n + 1 -> link = 0; dying = false
#else
			:: link == n + 1 && dying -> link = 0; dying = false
#endif
			:: else -> skip
			fi
		}
	:: done == PROCESSORS -> break
	od;
	/* nobody is there any more: what is found is what was left */
	n = 0;
	do
	:: n < SPAN ->
		assert((link -> leaf[SLOT(link - 1, n)] : value) == want[n]); n++
	:: else -> break
	od
}

init
{
	atomic {
		run Range(0, 1, 1); run Range(0, 1, 0); run Range(1, 2, 0); run Range(0, 2, 2); run Fault(0);
		run Review()
	}
}
