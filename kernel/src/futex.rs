//! Futexes: sleep while a word of user memory holds a value, until somebody who changed it says so.
//!
//! # Claim
//! No wake is lost, no lock is shared by unrelated futexes but by chance, and user memory is never touched with a
//! lock held.
//!
//! # Why enqueue first, then load
//! Linux reads the word with the bucket locked, by a copy that may not fault. Our copies may fault and sleep, so they
//! are made without the lock, and the order does the work (Dekker's handshake):
//!
//! ```text
//!     waiter                                      waker (user code, then FUTEX_WAKE)
//!     W1  enter the bucket, under its lock        K1  store the new value in the word
//!     W2  full fence                              K2  full fence (taking the bucket's lock is one)
//!     W3  load the word; as expected? sleep       K3  look into the bucket, under its lock
//! ```
//! If W3 does not see K1's store, then W1 is before K3 (fences W2 and K2: one of the two loads sees the other's store), so
//! the waker finds the waiter, takes it out of the bucket, marks it [`WOKEN`] and wakes its thread; a wake before the
//! park makes the park return at once. If W3 sees the store, the value differs and the waiter doesn't sleep.
//!
//! What this order adds to Linux's behaviour: a waker may pick a waiter that then finds the wrong value. That wake
//! was meant for a sleeper, so the waiter passes it on to the next one ([`Waiting::not_asleep`]), and returns EAGAIN.
//!
//! FUTEX_CMP_REQUEUE compares before it locks, likewise. The comparison keeps a broadcast that is out of date from
//! moving waiters; waiters that come between the comparison and the move would have been moved by the next broadcast
//! in line, and waking or moving a waiter early is allowed: users of futexes recheck.
//!
//! # Identity
//! A word in memory that a process has for itself is (memory, address); one in a shared mapping is (object, byte of the
//! object), so that processes that map it at different places meet ([`Key`]). A program may promise that a futex is
//! its own (FUTEX_PRIVATE_FLAG), which saves the look-up.
//!
//! # Locks with an owner (FUTEX_LOCK_PI)
//! All threads have the same priority, so there is nothing to inherit; what remains is the protocol on the word: 0, or
//! the owner's thread id, with FUTEX_WAITERS while the kernel must be asked to unlock. Who wants the lock enters the
//! bucket, sets FUTEX_WAITERS by compare-and-swap on a word that has an owner, and sleeps. Unlocking is: swap the word
//! to 0, *then* wake the first waiter, which tries again. The swap orders it: a waiter whose compare-and-swap came
//! before was in the bucket before, so it is found; one that comes after sees no owner and takes the lock. A thread
//! that had to wait sets FUTEX_WAITERS on taking the lock, since others may wait still.
//!
//! # The end of a thread
//! [`exit_robust_list`] walks the list of locks that the thread left in user memory (get_robust_list(2)), which may
//! be arbitrary: it follows at most [`ROBUST_LIMIT`] entries and stops at the first bad pointer.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use crate::{
    errno::{Errno, SysResult},
    hw::irq,
    ids, signal,
    task::{self, Task},
    usercopy,
    wait::{self, Woken},
};

/// Set in a word while threads wait for it in the kernel.
pub const WAITERS: u32 = 0x8000_0000;
/// Set in a word whose owner ended without unlocking.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// The owner's thread id in a word.
pub const TID_MASK: u32 = 0x3fff_ffff;
/// Matches every waiter.
pub const ANY: u32 = u32::MAX;
/// The most entries of a robust list that are looked at, as in Linux.
const ROBUST_LIMIT: usize = 2048;

/// A futex word as a call names it.
#[derive(Clone, Copy)]
pub struct Word {
    /// Where it is in the caller's memory.
    pub address: u64,
    /// The caller promises that no other process uses it.
    pub private: bool,
}

/// Which futex. Private memory: the `Mm`'s address (it is alive as long as a thread waits in it), `PRIVATE`, the word's
/// address. Shared memory: the object's device and inode, the word's byte in it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key([u64; 3]);

/// No inode has this number.
const PRIVATE: u64 = u64::MAX;

impl Key {
    /// The futex of the calling thread's `word`. EINVAL if misaligned, EFAULT outside of user space.
    fn new(word: Word) -> Result<Self, Errno> {
        let Word { address, private } = word;
        if !address.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        let at = addr::VirtAddr::user(address).ok_or(Errno::EFAULT)?;
        let mm = task::current().mm().ok_or(Errno::EFAULT)?;
        if !private && let Some((object, page)) = mm.aspace.shared_page(at.page(), &task::unpinned()) {
            return Ok(Self([object.0, object.1, page << addr::PAGE_SHIFT | at.offset()]));
        }
        Ok(Self([Arc::as_ptr(&*mm).addr() as u64, PRIVATE, address]))
    }

    fn bucket(&self) -> usize {
        // Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4): the multiplier is 2^64 divided by the golden ratio.
        let [a, b, c] = self.0;
        let mixed = a.rotate_left(32) ^ b.rotate_left(16) ^ c >> 2;
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKET_BITS)) as usize
    }
}

/// Four buckets for each CPU of the largest machine; a bucket that nobody uses takes nothing but its line.
const BUCKET_BITS: u32 = 10;

/// Waiters whose futexes share a hash value, in order of arrival; on a cache line of its own.
#[repr(align(64))]
struct Bucket(irq::Lock<VecDeque<Arc<Waiter>>>);

static BUCKETS: [Bucket; 1 << BUCKET_BITS] =
    [const { Bucket(irq::Lock::new(VecDeque::new())) }; 1 << BUCKET_BITS];

/// [`Waiter::state`]: in a bucket.
const QUEUED: u32 = 0;
/// [`Waiter::state`]: taken out by a waker.
const WOKEN: u32 = 1;

struct Waiter {
    task: Arc<Task>,
    /// A waker's bits must meet these.
    bitset: u32,
    state: AtomicU32,
    /// The key. Changes with its bucket locked.
    key: [AtomicU64; 3],
    /// Index of the bucket that it is in. Changes with the old and the new bucket locked.
    bucket: AtomicUsize,
}

impl Waiter {
    fn key(&self) -> Key {
        // Relaxed: ordered by the bucket's lock.
        Key(self.key.each_ref().map(|k| k.load(Ordering::Relaxed)))
    }
    /// Let it wait for `to` instead. With its bucket locked.
    fn move_to(&self, to: Key) {
        // Relaxed: ordered by the bucket's lock.
        self.key.iter().zip(to.0).for_each(|(k, v)| k.store(v, Ordering::Relaxed));
    }
    fn is_woken(&self) -> bool {
        // Acquire: what the waker did before comes before our return; pairs with the Release in `release`.
        self.state.load(Ordering::Acquire) == WOKEN
    }
    /// Mark as woken; it has been taken out of its bucket. The thread is woken after the locks are released.
    fn release(&self) {
        // Release: pairs with `is_woken`.
        self.state.store(WOKEN, Ordering::Release);
    }
}

/// The calling thread, entered in a bucket. It leaves in the end, whatever happens.
struct Waiting(Arc<Waiter>);

impl Waiting {
    /// Step W1 and W2.
    fn enter(key: Key, bitset: u32) -> Self {
        let at = key.bucket();
        let waiter = Arc::new(Waiter {
            task: task::current().arc(),
            bitset,
            state: AtomicU32::new(QUEUED),
            key: key.0.map(AtomicU64::new),
            bucket: AtomicUsize::new(at),
        });
        BUCKETS[at].0.lock().push_back(waiter.clone());
        // SeqCst: step W2; pairs with K2, the fence in `wake_key`.
        fence(Ordering::SeqCst);
        Self(waiter)
    }

    /// Sleep until woken; `deadline` in ns since boot.
    fn sleep(&self, deadline: Option<u64>) -> Result<(), Woken> {
        wait::wait_any(&[], deadline, true, || self.0.is_woken().then_some(()))
    }

    /// Out of the bucket, if still in it. True if a waker had taken it out.
    fn leave(&self) -> bool {
        if self.0.is_woken() {
            return true;
        }
        loop {
            // Relaxed: checked again under the lock.
            let at = self.0.bucket.load(Ordering::Relaxed);
            let mut bucket = BUCKETS[at].0.lock();
            // Relaxed: it changes only under this lock.
            if self.0.bucket.load(Ordering::Relaxed) != at {
                continue;
            }
            match bucket.iter().position(|w| Arc::ptr_eq(w, &self.0)) {
                Some(i) => bucket.remove(i),
                None => return true,
            };
            return false;
        }
    }

    /// The value was wrong: a wake that came all the same was for somebody else.
    fn not_asleep(self) {
        if self.leave() {
            wake_key(self.0.key(), 1, self.0.bitset);
        }
    }
}

/// FUTEX_WAIT and FUTEX_WAIT_BITSET: sleep while `word` is `value`. `deadline` in ns since boot. EAGAIN if
/// it isn't, ETIMEDOUT past the deadline; a signal gives a restart code.
pub fn wait(word: Word, value: u32, bitset: u32, deadline: Option<u64>) -> SysResult {
    let key = Key::new(word)?;
    let waiting = Waiting::enter(key, bitset);
    // Step W3.
    let seen = usercopy::read::<u32>(word.address);
    if seen != Ok(value) {
        waiting.not_asleep();
        return Err(seen.err().unwrap_or(Errno::EAGAIN));
    }
    let outcome = waiting.sleep(deadline);
    // A waker that came in the same instant has counted us as woken, so we are.
    if waiting.leave() || outcome.is_ok() {
        return Ok(0);
    }
    match outcome {
        Err(Woken::TimedOut) => Err(Errno::ETIMEDOUT),
        _ if deadline.is_none() => Err(Errno::RESTART),
        _ => Err(signal::restart_with(Box::new(move || wait(word, value, bitset, deadline)))),
    }
}

/// `futex_waitv`: sleep while each word of the list is the value that goes with it: the index of one that was woken.
/// EAGAIN if one isn't, ETIMEDOUT past the deadline (ns since boot).
pub fn wait_for_any(words: &[(Word, u32)], deadline: Option<u64>) -> SysResult {
    let keys: Vec<Key> = words.iter().map(|(word, _)| Key::new(*word)).collect::<Result<_, _>>()?;
    let waiting: Vec<Waiting> = keys.into_iter().map(|key| Waiting::enter(key, ANY)).collect();
    // Step W3, for each.
    let check = words.iter().map(|(word, value)| match usercopy::read::<u32>(word.address) {
        Ok(seen) if seen == *value => Ok(()),
        Ok(_) => Err(Errno::EAGAIN),
        Err(e) => Err(e),
    });
    let sleep =
        || wait::wait_any(&[], deadline, true, || waiting.iter().any(|w| w.0.is_woken()).then_some(()));
    let outcome = match check.collect::<Result<(), _>>() {
        Ok(()) => {
            sleep().map_err(|why| if why == Woken::TimedOut { Errno::ETIMEDOUT } else { Errno::RESTART })
        }
        Err(e) => Err(e),
    };
    // Each wake is told to the program if it can be: the last one is the call's result, as on Linux.
    let mut last = None;
    for (i, one) in waiting.iter().enumerate() {
        if one.leave() {
            last = Some(i);
        }
    }
    last.ok_or(outcome.err().unwrap_or(Errno::EAGAIN))
}

/// Take up to `count` waiters for `key` whose bits meet `bitset` out of their bucket and wake them: how many.
fn wake_key(key: Key, count: usize, bitset: u32) -> usize {
    let mut woken = Vec::new();
    // SeqCst: step K2, for callers in the kernel that changed the word themselves; pairs with W2.
    fence(Ordering::SeqCst);
    {
        let mut bucket = BUCKETS[key.bucket()].0.lock();
        take(&mut bucket, key, count, bitset, &mut woken);
    }
    woken.iter().for_each(|w: &Arc<Waiter>| w.task.wake());
    woken.len()
}

fn take(from: &mut VecDeque<Arc<Waiter>>, key: Key, count: usize, bitset: u32, woken: &mut Vec<Arc<Waiter>>) {
    let mut i = 0;
    while woken.len() < count && i < from.len() {
        if from.get(i).is_some_and(|w| w.key() == key && w.bitset & bitset != 0) {
            if let Some(w) = from.remove(i) {
                w.release();
                woken.push(w);
            }
        } else {
            i += 1;
        }
    }
}

/// FUTEX_WAKE and FUTEX_WAKE_BITSET: wake up to `count` of those who wait for `word` with a bit of
/// `bitset`: how many.
pub fn wake(word: Word, count: usize, bitset: u32) -> SysResult {
    Ok(wake_key(Key::new(word)?, count, bitset))
}

/// Wake up to `count` of those who wait for the word at `address`; a bad address wakes nobody.
pub fn wake_address(address: u64, count: usize) {
    if let Ok(key) = Key::new(Word { address, private: false }) {
        wake_key(key, count, ANY);
    }
}

/// FUTEX_REQUEUE and FUTEX_CMP_REQUEUE: wake up to `wakes` waiters of `from` and let up to `moves` others wait for
/// `to` instead. With `expected`, EAGAIN if `from` is something else. Gives how many were woken, and how
/// many moved.
pub fn requeue(
    from: Word,
    to: Word,
    wakes: usize,
    moves: usize,
    expected: Option<u32>,
) -> Result<(usize, usize), Errno> {
    let (source, target) = (Key::new(from)?, Key::new(to)?);
    if let Some(value) = expected
        && usercopy::read::<u32>(from.address)? != value
    {
        return Err(Errno::EAGAIN);
    }
    let mut woken = Vec::new();
    let mut moved = 0;
    // SeqCst: step K2; pairs with W2.
    fence(Ordering::SeqCst);
    let (a, b) = (source.bucket(), target.bucket());
    {
        // Two buckets are locked in order of their index.
        let (mut low, mut high) =
            (BUCKETS[a.min(b)].0.lock(), if a == b { None } else { Some(BUCKETS[a.max(b)].0.lock()) });
        let is_source = |w: &Arc<Waiter>| w.key() == source;
        match &mut high {
            None => {
                take(&mut low, source, wakes, ANY, &mut woken);
                for w in low.iter().filter(|w| is_source(w)).take(moves) {
                    w.move_to(target);
                    moved += 1;
                }
            }
            Some(high) => {
                let (from, to) = if a < b { (&mut *low, &mut **high) } else { (&mut **high, &mut *low) };
                take(from, source, wakes, ANY, &mut woken);
                while moved < moves
                    && let Some(i) = from.iter().position(is_source)
                    && let Some(w) = from.remove(i)
                {
                    w.move_to(target);
                    // Relaxed: both buckets are locked.
                    w.bucket.store(b, Ordering::Relaxed);
                    to.push_back(w);
                    moved += 1;
                }
            }
        }
    }
    woken.iter().for_each(|w| w.task.wake());
    Ok((woken.len(), moved))
}

/// FUTEX_WAKE_OP: change `second` as `op` says (futex(2)), wake up to `wakes` waiters of `first`, and if
/// the old value compares as `op` says, up to `more` of `second`. ENOSYS for an unknown operation.
pub fn wake_op(first: Word, second: Word, wakes: usize, more: usize, op: u32) -> SysResult {
    let (one, two) = (Key::new(first)?, Key::new(second)?);
    let sign_extend = |v: u32| ((v << 20) as i32) >> 20;
    let (kind, test) = (op >> 28 & 0xf, op >> 24 & 0xf);
    let (raw, against) = (sign_extend(op >> 12 & 0xfff), sign_extend(op & 0xfff));
    // FUTEX_OP_ARG_SHIFT: the argument is a bit number.
    let argument = if kind & 8 != 0 { 1u32.wrapping_shl(raw as u32) } else { raw as u32 };
    let old = update(second.address, |v| {
        Ok(match kind & 7 {
            0 => argument,
            1 => v.wrapping_add(argument),
            2 => v | argument,
            3 => v & !argument,
            4 => v ^ argument,
            _ => return Err(Errno::ENOSYS),
        })
    })? as i32;
    let holds = match test {
        0 => old == against,
        1 => old != against,
        2 => old < against,
        3 => old <= against,
        4 => old > against,
        5 => old >= against,
        _ => return Err(Errno::ENOSYS),
    };
    let mut woken = wake_key(one, wakes, ANY);
    if holds {
        woken += wake_key(two, more, ANY);
    }
    Ok(woken)
}

/// Replace the word at `address` by `f` of it, atomically: what was there.
fn update(address: u64, f: impl Fn(u32) -> Result<u32, Errno>) -> Result<u32, Errno> {
    let mut old = usercopy::read::<u32>(address)?;
    loop {
        let seen = usercopy::cmpxchg_u32(address, old, f(old)?)?;
        if seen == old {
            return Ok(old);
        }
        old = seen;
    }
}

/// FUTEX_LOCK_PI: own `word`, waiting until `deadline` (ns since boot). `wait` false: EAGAIN at once
/// instead (FUTEX_TRYLOCK_PI). EDEADLK if the caller owns it, ESRCH if the owner doesn't exist.
pub fn lock_owned(word: Word, deadline: Option<u64>, wait: bool) -> SysResult {
    let key = Key::new(word)?;
    let me = task::current().tid();
    let mut waited = 0;
    loop {
        let waiting = Waiting::enter(key, ANY);
        match claim(word.address, me | waited, wait) {
            Ok(Claim::Owned) => {
                waiting.not_asleep();
                return Ok(0);
            }
            Ok(Claim::Queued) => {}
            Err(e) => {
                waiting.not_asleep();
                return Err(e);
            }
        }
        let outcome = waiting.sleep(deadline);
        let woken = waiting.leave();
        if !woken && let Err(why) = outcome {
            return Err(if why == Woken::TimedOut { Errno::ETIMEDOUT } else { signal::RESTART_ALWAYS });
        }
        waited = WAITERS;
    }
}

enum Claim {
    /// The word has the caller's id.
    Owned,
    /// The word has an owner and FUTEX_WAITERS.
    Queued,
}

/// Take the word if it has no owner, else mark it so that the owner will wake us.
fn claim(address: u64, mine: u32, wait: bool) -> Result<Claim, Errno> {
    let mut old = usercopy::read::<u32>(address)?;
    loop {
        let owner = old & TID_MASK;
        if owner == mine & TID_MASK {
            return Err(Errno::EDEADLK);
        }
        let new = if owner == 0 { old & (OWNER_DIED | WAITERS) | mine } else { old | WAITERS };
        if owner != 0 && !ids::is_thread(owner) {
            // It may have ended just now, leaving the word to us by its robust list.
            old = usercopy::read(address)?;
            if old & TID_MASK == owner {
                return Err(Errno::ESRCH);
            }
            continue;
        }
        if owner != 0 && !wait {
            return Err(Errno::EAGAIN);
        }
        let seen = usercopy::cmpxchg_u32(address, old, new)?;
        if seen == old {
            return Ok(if owner == 0 { Claim::Owned } else { Claim::Queued });
        }
        old = seen;
    }
}

/// FUTEX_UNLOCK_PI: give up `word` and let the first waiter have it. EPERM if the caller doesn't own it.
pub fn unlock_owned(word: Word) -> SysResult {
    let key = Key::new(word)?;
    let me = task::current().tid();
    update(word.address, |v| if v & TID_MASK == me { Ok(0) } else { Err(Errno::EPERM) })?;
    wake_key(key, 1, ANY);
    Ok(0)
}

/// `struct robust_list_head`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RobustHead {
    next: u64,
    /// Bytes from an entry to its futex word.
    offset: i64,
    /// The entry that is being added or removed.
    in_progress: u64,
}
crate::pod!(RobustHead);

/// Size of a robust list's head in bytes, as `set_robust_list` is told.
pub const ROBUST_HEAD_BYTES: u64 = size_of::<RobustHead>() as u64;

/// Mark the robust locks that the calling thread `me` still owns as abandoned, and wake one waiter of each.
pub fn exit_robust_list(me: &Task) {
    // Relaxed: the word belongs to the thread.
    let head_at = me.robust_list.swap(0, Ordering::Relaxed);
    if head_at != 0 {
        // A bad pointer ends the walk: the program's own affair.
        let _ = walk_robust_list(head_at, me.tid());
    }
}

fn walk_robust_list(head_at: u64, tid: u32) -> Result<(), Errno> {
    let head: RobustHead = usercopy::read(head_at)?;
    // Bit 0 of a pointer says that the lock is one with an owner (PI); the protocol on the word is the same.
    let word = |entry: u64| (entry & !1).wrapping_add_signed(head.offset);
    let mut entry = head.next;
    for _ in 0..ROBUST_LIMIT {
        if entry & !1 == head_at {
            break;
        }
        // The next pointer first: whoever is woken may free the entry.
        let next = usercopy::read(entry & !1);
        if entry != head.in_progress {
            abandon(word(entry), tid, false)?;
        }
        entry = next?;
    }
    if head.in_progress != 0 {
        abandon(word(head.in_progress), tid, head.in_progress & 1 == 0)?;
    }
    Ok(())
}

/// The owner `tid` of the word at `address` ends. `unlocking`: it may have been about to wake a waiter.
fn abandon(address: u64, tid: u32, unlocking: bool) -> Result<(), Errno> {
    let key = Key::new(Word { address, private: false })?;
    let mut old = usercopy::read::<u32>(address)?;
    loop {
        if unlocking && old == 0 {
            break;
        }
        if old & TID_MASK != tid {
            return Ok(());
        }
        let seen = usercopy::cmpxchg_u32(address, old, old & WAITERS | OWNER_DIED)?;
        if seen == old {
            break;
        }
        old = seen;
    }
    if old == 0 || old & WAITERS != 0 {
        wake_key(key, 1, ANY);
    }
    Ok(())
}
