// mutants: STEAL_HELD COUNT_FIRST SET_FIRST HUGE_HELD HUGE_PARTIAL ZEROED_KEPT FUSE_COUNTED
/*
 * One block, its word and its rows: hold, lease, steal, give, huge, split, fuse, zero.
 *
 * Claim. No frame is with two owners. In a block in service the count is never more than there are clear bits, and the
 * same when nobody is between two steps (I1); bits are set by the holder alone (I2); a block that is claimed whole by its
 * count has nothing in flight (I4); and what is marked as zeroed is zero.
 *
 * The word is changed in single steps, by compare-and-swap or addition, and so is each row; what is looked at before may
 * be old when it is acted on. Each CPU does what it likes, any number of times:
 *
 *   hold    a block that nobody holds, whosever it is: another's is stolen so
 *   take    by the holder: see the count, see a row, count down, set bits; then hold on or let go
 *   give    by whoever has the frames: clear bits, count up
 *   huge    claim the block by its count alone, give it back; split it into single frames, and fuse those
 *   zero    hold a wholly free block, clear it, let go of it with the mark
 *
 * Loom has the memory order of a few operations of two CPUs; here are all operations of CPUS of them, in order.
 */
#ifndef CPUS
#define CPUS 3
#endif
#define FRAMES 4
#define LOW 3
#define HIGH 12
#define ALL 15
#define NOBODY CPUS

mtype = { Normal, Huge, Claiming };

/* The word. */
mtype state = Normal;
byte count = FRAMES;
byte owner = 0;
bool hold = false;
bool zeroed = false;

/* The rows: a bit for each frame, 1 if it is not to be had. */
byte bits = 0;

/* Ghosts: what each CPU has; who holds; how many are between two steps; whether a frame was used since it was zeroed. */
byte with[CPUS];
byte holder = NOBODY;
byte halfway = 0;
bool dirty = true;

#define ONES(m) (((m) & 1) + ((m) >> 1 & 1) + ((m) >> 2 & 1) + ((m) >> 3 & 1))
#define CLEAR (FRAMES - ONES(bits))
#define EMPTY (state == Normal && count == FRAMES && !hold)

/* This CPU gets frames, and uses them. */
inline got(mask) {
    i = 0;
    do
    :: i < CPUS -> assert((with[i] & (mask)) == 0); i++
    :: else -> break
    od;
    i = 0;
    with[me] = with[me] | (mask);
    dirty = true
}

/* I1, after every step. */
inline check() {
    assert(state != Normal || (count <= CLEAR && (halfway > 0 || count == CLEAR)));
    assert(!zeroed || (state == Normal && !dirty))
}

/* The lowest frames of `m`, as many as were counted. */
inline lowest(m) {
    mask = 0; i = 1;
    do
    :: i < ALL && ONES(mask) < seen -> mask = mask | (i & (m)); i = i << 1
    :: else -> break
    od;
    i = 0
}

#define taken(whom) hold = true; owner = me; mine = true; assert(holder == NOBODY); holder = me
#define let_go holder = NOBODY; hold = false; mine = false

proctype Cpu(byte me) {
    byte mask, seen, i;
    bool mine = false;
    do
#ifdef STEAL_HELD
    :: atomic { !mine && state == Normal && count > 0 ->
#else
    :: atomic { !mine && state == Normal && count > 0 && !hold ->
#endif
            taken(me);
#ifndef ZEROED_KEPT
            zeroed = false;
#endif
            check()
        }

    /* Take of either row. */
    :: mine ->
        seen = count;
        if
        :: atomic { lowest(LOW & ~bits) }
        :: atomic { lowest(HIGH & ~bits) }
        fi;
        if
        :: mask == 0
        :: else ->
#ifdef SET_FIRST
            atomic { assert((bits & mask) == 0); bits = bits | mask; halfway++; check() };
            atomic { count = count - ONES(mask); halfway--; got(mask); check() }
#else
            atomic { count = count - ONES(mask); halfway++; check() };
            atomic { assert((bits & mask) == 0); bits = bits | mask; halfway--; got(mask); check() }
#endif
        fi;
        atomic { mask = 0; seen = 0 }

    :: atomic { mine -> let_go; check() }

    /* Give a row's, or one of each row's. */
    :: with[me] && state == Normal ->
        atomic {
            if
            :: mask = with[me] & LOW
            :: mask = with[me] & HIGH
            :: mask = with[me] & 1
            :: mask = with[me] & 8
            fi;
            with[me] = with[me] & ~mask;
            assert((bits & mask) == mask)
        };
        if
        :: mask == 0
        :: else ->
#ifdef COUNT_FIRST
            atomic { count = count + ONES(mask); halfway++; check() };
            atomic { bits = bits & ~mask; halfway--; check() }
#else
            atomic { bits = bits & ~mask; halfway++; check() };
            atomic { count = count + ONES(mask); halfway--; check() }
#endif
        fi;
        mask = 0

    /* Huge: by the count alone. Whoever finds the mark need not clear the frames. */
#ifdef HUGE_HELD
    :: atomic { state == Normal && count == FRAMES ->
#else
#ifdef HUGE_PARTIAL
    :: atomic { state == Normal && count >= FRAMES - 1 && !hold ->
#else
    :: atomic { EMPTY ->
#endif
#endif
            assert(halfway == 0 && bits == 0);
            assert(!zeroed || !dirty);
            state = Huge; count = 0; owner = me; zeroed = false;
            got(ALL);
            check()
        }
    :: atomic { with[me] == ALL && state == Huge -> with[me] = 0; state = Normal; count = FRAMES; check() }
    /* Split. */
    :: with[me] == ALL && state == Huge ->
        bits = bits | LOW;
        bits = bits | HIGH;
        atomic { state = Normal; count = 0; check() }
    /* Fuse: the caller has all frames, so that none is in flight. It holds nothing itself. */
#ifdef FUSE_COUNTED
    :: atomic { with[me] && !mine && state == Normal && !hold && count == 0 -> state = Claiming };
#else
    :: atomic { with[me] == ALL && !mine && state == Normal && !hold && count == 0 -> state = Claiming };
#endif
        bits = bits & ~LOW;
        bits = bits & ~HIGH;
        atomic { with[me] = 0; got(ALL); state = Huge; check() }

    /* Zero, and let go with the mark; or break it off. */
    :: atomic { !mine && EMPTY && !zeroed -> taken(me); check() };
        if
        :: dirty = false;
            assert(state == Normal && count == FRAMES && bits == 0);
            atomic { zeroed = true; let_go; check() }
        :: atomic { let_go; check() }
        fi
    od
}

init {
    byte i = 0;
    atomic {
        do
        :: i < CPUS -> run Cpu(i); i++
        :: else -> break
        od
    }
}
