// mutants: CLAIM_HELD UNRESTORED RESTORED_TOO_MUCH STALE_CLAIM HALF_RETIRED
/*
 * The states of blocks: normal, huge, giant, claiming, isolated, out of service.
 *
 * Claim. A block is with one owner at a time, whether as single frames, huge, or part of a giant run; what is out of
 * service is with nobody and nobody gets it; a giant is claimed whole or not at all; and no block stays claimed.
 *
 * Four blocks. Each CPU, any number of times: holds the second and takes frames of it, which come back by themselves;
 * claims the first or the last as a huge run, the last two or all as a giant one, under the arena's lock; gives those
 * back, tails first, or divides them. Meanwhile one more takes the last out of service and puts it back, or changes its
 * mind halfway. That a block of which frames are taken isn't whole stands for its count.
 *
 * A word is changed by one compare-and-swap; what was seen before may be old.
 */
#ifndef CPUS
#define CPUS 2
#endif
#define BLOCKS 4
#define NOBODY 15

mtype = { Normal, Huge, Head, Tail, Claiming, Offline };

typedef Word {
    mtype state = Normal;
    bool whole = true;       /* the count is 512 */
    bool hold = false;
    bool isolated = false;
    byte order = 0           /* of a head: its blocks, as the power of two */
};
Word word[BLOCKS];
bool lock = false;

/* Ghosts: who has a block whole, or claims it; how many frames of it are out. */
byte with[BLOCKS] = NOBODY;
byte claims[BLOCKS] = NOBODY;
byte out[BLOCKS] = 0;

#ifdef CLAIM_HELD
#define EMPTY(b) (word[b].state == Normal && word[b].whole)
#else
#define EMPTY(b) (word[b].state == Normal && word[b].whole && !word[b].hold)
#endif
#define OURS(b) (!word[b].isolated)

inline got(b) {
    assert(with[b] == NOBODY && claims[b] == me && out[b] == 0);
    claims[b] = NOBODY; with[b] = me
}
inline let(b) {
    assert(with[b] == me);
    with[b] = NOBODY; claims[b] = me
}
/* Nobody's any more, and free. */
inline free(b) {
    assert(claims[b] == me && with[b] == NOBODY && out[b] == 0);
    claims[b] = NOBODY; word[b].state = Normal; word[b].whole = true
}

/* An operation has ended. */
inline none_claimed() {
    assert(claims[0] != me && claims[1] != me && claims[2] != me && claims[3] != me)
}

inline put_back_run() {
    /* Everybody knows by the head that the run is coming back, and nobody else gives it. */
    atomic { assert(word[first].state == Head && word[first].order == order); let(first); word[first].state = Claiming };
    b = first + 1;
    do
    :: b < first + n -> atomic { assert(word[b].state == Tail); let(b); free(b); b++ }
    :: else -> break
    od;
    atomic { assert(word[first].state == Claiming); free(first) };
    atomic { n = 0; b = 0; first = 0; order = 0; none_claimed() }
}

proctype Cpu(byte me) {
    byte first, n, b, order;
    bool failed;
    do
    /* Single frames of block 1: hold, take, let go; they come back later, from anywhere. */
    :: atomic { word[1].state == Normal && !word[1].hold && OURS(1) && out[1] == 0 -> word[1].hold = true };
        if
        :: atomic { word[1].whole = false; assert(with[1] == NOBODY && claims[1] == NOBODY); out[1] = 1 }
        :: skip
        fi;
        atomic { assert(word[1].state == Normal && word[1].hold); word[1].hold = false }

    /* A run of one, two or four blocks. */
    :: atomic {
            if
            :: order = 0; first = 0
            :: order = 0; first = 3
            :: order = 1; first = 2
            :: order = 2; first = 0
            fi;
            n = 1 << order
        };
        if
        :: order == 0 ->
#ifdef STALE_CLAIM
            failed = !(EMPTY(first) && OURS(first));
            atomic {
                if
                :: !failed ->
#else
            atomic {
                if
                :: EMPTY(first) && OURS(first) ->
#endif
                    word[first].state = Huge; word[first].whole = false;
                    assert(claims[first] == NOBODY); claims[first] = me; got(first)
                :: else
                fi
            }
        :: else ->
            atomic { !lock -> lock = true };
            b = first; failed = false;
            do
            :: b < first + n && !failed -> atomic {
                    if
                    :: EMPTY(b) && OURS(b) ->
                        assert(claims[b] == NOBODY && with[b] == NOBODY && out[b] == 0);
                        word[b].state = Claiming; word[b].whole = false; claims[b] = me; b++
                    :: else -> failed = true
                    fi
                }
            :: else -> break
            od;
            if
            :: failed ->
#ifdef RESTORED_TOO_MUCH
                b++;
#endif
                n = b; b = first;
#ifndef UNRESTORED
                do
                :: b < n && b < BLOCKS -> atomic { free(b); b++ }
                :: else -> break
                od
#endif
            :: else ->
                atomic { word[first].state = Head; word[first].order = order; got(first) };
                b = first + 1;
                do
                :: b < first + n -> atomic { assert(word[b].state == Claiming); word[b].state = Tail; got(b); b++ }
                :: else -> break
                od
            fi;
            atomic { lock = false; none_claimed() }
        fi;
        atomic { n = 0; b = 0; first = 0; order = 0; failed = false }

    /* Give a huge run back, whatever became of its isolation meanwhile. */
    :: atomic {
            if
            :: first = 0 :: first = 1 :: first = 2 :: first = 3
            fi;
            if
            :: with[first] == me && word[first].state == Huge -> let(first); free(first)
            :: else
            fi;
            first = 0
        }
    /* Give a giant run back. */
    :: atomic { with[0] == me && word[0].state == Head -> first = 0; order = word[0].order; n = 1 << order };
        put_back_run()
    :: atomic { with[2] == me && word[2].state == Head -> first = 2; order = word[2].order; n = 1 << order };
        put_back_run()
    /* Divide one into huge runs: tails first, so that nobody is ever a tail of nothing. */
    :: atomic { with[0] == me && word[0].state == Head -> n = 1 << word[0].order; b = 1 };
        do
        :: b < n -> atomic { assert(word[b].state == Tail); word[b].state = Huge; b++ }
        :: else -> break
        od;
        atomic { word[0].state = Huge; n = 0; b = 0 }
    od
}

/* Frames that are out come back; and memory goes out of service, and comes back. */
proctype Others() {
    do
    :: atomic { out[1] == 1 -> assert(word[1].state == Normal); out[1] = 0; word[1].whole = true }
    /* Isolate: nobody holds it, and it isn't on its way into a giant or out of one. */
    :: atomic { !word[3].isolated && !word[3].hold && word[3].state != Claiming && word[3].state != Offline ->
            word[3].isolated = true }
    /* Retire, or change one's mind. */
#ifdef HALF_RETIRED
    :: atomic { word[3].isolated && word[3].state != Claiming ->
#else
    :: atomic { word[3].isolated && EMPTY(3) ->
#endif
            word[3].state = Offline; word[3].whole = false;
            assert(with[3] == NOBODY && claims[3] == NOBODY && out[3] == 0) }
    :: atomic { word[3].isolated && word[3].state != Offline -> word[3].isolated = false }
    :: atomic { word[3].state == Offline ->
            assert(with[3] == NOBODY && claims[3] == NOBODY && out[3] == 0 && !word[3].hold);
            word[3].state = Normal; word[3].whole = true; word[3].isolated = false }
    od
}

init {
    byte i = 0;
    atomic {
        do
        :: i < CPUS -> run Cpu(i); i++
        :: else -> break
        od;
        run Others()
    }
}
