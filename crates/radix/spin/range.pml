// Range locks: five processors lock overlapping ranges of four keys, in two slots above two slots each, narrow what sticks out,
// fold what they have whole, and unlock. Each key has one holder, and nobody waits for ever.
// mutants: LOCK_BY_OR NARROW_UNLOCKED NOT_DEAD DESCENDING WIDE_UNLOCK
#define SPAN 2
#define KEYS 4
#define NODES 5			/* that one slot may have, one after the other: nodes are not used again, as in a grace period */
#define SLOT(r, n, k) (((r) * NODES + (n)) * SPAN + (k))

byte link[2];			/* 0: the slot has a value; else it names node link - 1 */
bool locked[2];			/* LOCK of a slot that has a value */
byte made[2];
bool leaf[20];			/* LOCK of a slot of leaves */
bool dead[10];
byte holders[KEYS];

inline lock_upper()
{
	/* the slot was seen with a value, and without LOCK; then the swap */
#ifdef LOCK_BY_OR
	atomic { !locked[r]; locked[r] = true; mine = true };
#else
	atomic {
		if
		:: link[r] == 0 && !locked[r] -> locked[r] = true; mine = true
		:: else -> mine = false
		fi
	};
#endif
	if
	:: mine && lo <= r * SPAN && hi >= (r + 1) * SPAN ->
		whole[r] = 1; key = (r + 1) * SPAN
	:: mine && !(lo <= r * SPAN && hi >= (r + 1) * SPAN) ->
		/* the node is built aside; one store publishes it */
		atomic {
			n = made[r]; assert(n < NODES); made[r]++;
#ifndef NARROW_UNLOCKED
			do
			:: key < hi && key < (r + 1) * SPAN -> leaf[SLOT(r, n, key % SPAN)] = true; key++
			:: else -> break
			od;
#else
			if
			:: hi < (r + 1) * SPAN -> key = hi
			:: else -> key = (r + 1) * SPAN
			fi;
#endif
			node[r] = n;
			link[r] = n + 1; locked[r] = false
		}
	:: else -> skip
	fi
}

inline lock_leaf()
{
	/* the look at the slot, and the swap: again from the top if it is dead */
	atomic {
		(!leaf[SLOT(r, n, key % SPAN)] || dead[r * NODES + n]);
		if
		:: dead[r * NODES + n] -> skip
		:: else -> leaf[SLOT(r, n, key % SPAN)] = true; node[r] = n; key++
		fi
	}
}

inline lock_range()
{
	key = lo;
	do
	:: key < hi ->
		r = key / SPAN;
		if
		:: link[r] == 0 && !locked[r] -> lock_upper()
		:: atomic { link[r] != 0 -> n = link[r] - 1 } -> lock_leaf()
		fi
	:: else -> break
	od
}

/* all slots of a node are this one's: the value takes the link's place, and then they are dead */
inline fold()
{
	if
	:: lo <= r * SPAN && hi >= (r + 1) * SPAN && !whole[r] ->
		atomic { link[r] = 0; locked[r] = true };
#ifndef NOT_DEAD
		dead[r * NODES + node[r]] = true;
#endif
		whole[r] = 1
	:: else -> skip
	fi
}

inline unlock()
{
	key = lo;
	do
	:: key < hi ->
		r = key / SPAN;
		if
		:: whole[r] -> locked[r] = false; key = (r + 1) * SPAN
		:: else -> leaf[SLOT(r, node[r], key % SPAN)] = false; key++
		fi
	:: else -> break
	od
}

proctype Range(byte lo, hi)
{
	byte key, r, n, node[2];
	bool mine, whole[2];
#ifdef DESCENDING
	/* one of them takes the upper half first */
	byte from = lo, to = hi;
	if
	:: lo == 1 && hi > SPAN -> lo = SPAN; lock_range(); lo = from; hi = SPAN; lock_range(); hi = to
	:: else -> lock_range()
	fi;
#else
	lock_range();
#endif
	skip;
	d_step {
		key = lo;
		do
		:: key < hi -> holders[key]++; assert(holders[key] == 1); key++
		:: else -> break
		od
	};
	skip;
	d_step {
		key = lo;
		do
		:: key < hi -> holders[key]--; key++
		:: else -> break
		od
	};
	r = 0; fold();
	r = 1; fold();
#ifdef WIDE_UNLOCK
	/* bounds worked out anew, as if what was locked were whole slots */
	if
	:: link[0] != 0 && lo < SPAN -> leaf[SLOT(0, node[0], 0)] = false; leaf[SLOT(0, node[0], 1)] = false
	:: else -> skip
	fi;
#endif
	unlock()
}

init
{
	atomic { run Range(1, 4); run Range(0, 3); run Range(1, 2); run Range(0, 2); run Range(3, 4) }
}
