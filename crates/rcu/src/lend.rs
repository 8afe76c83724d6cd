//! Counted references that a table lends: for readers that may sleep, of objects that have to end when they are given up.
//!
//! **Claim.** Who is lent an object writes to lines of its own, and takes no lock while it has a word left. An object lives
//! until it is in no table, and everybody who was lent it has given it back; it ends then and there, in the hands of the last
//! of them, once. A look begins anew only if somebody has changed the place meanwhile.
//!
//! **Why not a section.** A section may not sleep, and a grace period is too late: who closes the last writing end of a pipe
//! wants the reader to see its end when the call returns. **Why not a count.** Where threads share a descriptor, each look-up
//! would write the count's line twice.
//!
//! **Idea.** These are hazard pointers (Michael, "Hazard Pointers: Safe Memory Reclamation for Lock-Free Objects", 2004) with
//! another end. A [`User`] of a table has a few words in which it says what it is lent. Who takes a reference out of the table
//! looks through the words of all users, and *hands over* a counted reference of its own to each that names the object, by a
//! mark in the word. It gives up the table's reference then and waits for nobody; if nobody had the object, it ends there. Who
//! gives back finds the mark, and gives up the reference that was handed over.
//!
//! ```text
//! lend:     p = place (Acquire); word: null -> p; fence(SeqCst) [L1]
//!           if place (Acquire) == p, it is lent; else as at the end, and again
//! end:      word.swap(null, AcqRel) [L2, L3]; marked: give up the reference
//! take:     p = place.swap(null); fence(SeqCst) [L1]
//!           for each word of each user: if word (Acquire) [L2] == p: count one more; word: p -> p marked (Release) [L3],
//!                                                                    if that fails: count one less
//! ```
//!
//! **Why nothing ends too early.** Let a user's second look find p. Then p was in the table after its fence, or its fence is
//! before the fence of whoever took it out. In the latter case (the former comes to the same, with the next to take it out)
//! the taker finds p in the word and marks it, unless it was given back before: then the taker's load acquired the end of the
//! use (L2), also if the word names something else by now, as words change by exchanges only. If the second look finds
//! something else, p is not used. That p may have ended between the looks, and another object been put in its place at the
//! same address, is no harm: the second look finds that one in the table. Nor is it if the word that the taker marks was given
//! back and taken for p anew, as lent by another place: then that use has a reference of its own, which it gives up.
//!
//! **Whom the taker asks.** All users of all places would make closing slow where threads have files of their own. So a place
//! says who put its object there, until somebody else is lent it; a user that takes out what it put in, and what nobody else
//! was lent, looks through its own words only. As an object may come back to the place where it was, and as any address may,
//! the owner is that of one *put*: each has a generation of its own, in one word with the owner's number and the bit SHARED.
//! ```text
//! put:      owner = next generation, my number or SHARED (Release) [L4]; place = p (Release) [L5]
//! lend:     o = owner (Acquire) [L4]; p = place; word = p; o's number not mine, nor SHARED in it: owner: o -> o + SHARED, else again;
//!           fence [L1]; place (Acquire) [L5] == p, and owner has o's generation: lent; else again
//! take:     (after the fence L1) owner is mine and not SHARED: my words; else all
//! ```
//! Let a look succeed with generation g before and after its fence, and let its second look have found what put h had put.
//! Then h <= g, as h's owner was written before (L5). And h >= g, unless g replaced what h put: whoever took out what was put
//! before g did so before g's owner was written (L4). If g replaced it, g is the taker, and asks all. So let h = g, and t take
//! that out. If the look's fence is before t's, then t finds SHARED, or is the look's own user, or another than the owner: in
//! each case the word is looked at; a later owner isn't there before t is over, by the lock. If t's fence is before the
//! look's, the second look finds null or something later than g, whose owner was written before: that isn't g's generation.
//!
//! Without the generation the look could find p as put h had it, and then SHARED as put g wrote it, when h's owner had asked
//! nobody. Generations have 47 bits: they come round in the course of one look if 2^47 changes of a place do.
//!
//! A number is used again when its user is gone. Its user was lent nothing then, so the next may own what that one had put.
//! Users beyond the last number own nothing.
//!
//! What isn't lent, because a user has too few words, is counted, under the table's lock.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    fmt,
    mem::{self, ManuallyDrop},
    ops::Deref,
    ptr::{self, NonNull},
};

use percpu::Line;
use sync::{
    SpinGuard, SpinLock, mutant,
    primitive::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence},
};

/// What a user can be lent at once without counting.
const WORDS: usize = if cfg!(loom) { 1 } else { 4 };
/// Places in the first piece of a table; each further piece has twice as many.
const FIRST: usize = if cfg!(loom) { 1 } else { 16 };
/// Pieces of a table.
const PIECES: usize = if cfg!(loom) { 1 } else { 18 };
/// The most places that a table can have.
pub const MOST: usize = FIRST * ((1 << PIECES) - 1);

/// In a word: a counted reference comes with it.
const HANDED: usize = 1;
/// In an owner: others than who put the object there may have been lent it.
const SHARED: u64 = 1;
/// In an owner, over SHARED: the number of who put the object there. No user has number 0.
const NUMBERS: u64 = (1 << 16) - 1;
/// In an owner, over the number: the generation.
const GENERATION: u32 = 17;

/// The owner of what user `number` puts where `last` was.
fn next_owner(last: u64, number: u64) -> u64 {
    let generation = (last >> GENERATION).wrapping_add(1) << GENERATION;
    generation | number << 1 | if number == 0 { SHARED } else { 0 }
}

/// Whether an owner is user `number` alone.
fn is_own(owner: u64, number: u64) -> bool {
    number != 0 && owner & (NUMBERS << 1 | SHARED) == number << 1
}

/// Whether an owner lets user `number` be lent the object: it is itself, or has been told of others.
fn knows(owner: u64, number: u64) -> bool {
    owner & SHARED != 0 || is_own(owner, number)
}

/// A place in a table.
struct Place<T> {
    /// A counted reference, or null.
    to: AtomicPtr<T>,
    /// Whose words are to be looked through when it is taken out: generation, number and [`SHARED`].
    owner: AtomicU64,
    /// What the table's owner notes beside it; under the table's lock.
    mark: AtomicU32,
}

/// What a user is lent. It stays as long as the table, for the next user when one is gone.
struct Words<T> {
    lent: Line<[AtomicPtr<T>; WORDS]>,
    /// The user's: 1 for the first that the table made, and so on; 0 beyond the last number.
    number: u64,
    /// Whether somebody uses it; under the lock of the table's users.
    used: AtomicBool,
    /// The one that was made before.
    next: *mut Words<T>,
}

impl<T> Words<T> {
    /// One that is used. `None` if there is no memory.
    fn new(number: u64, next: *mut Self) -> Option<NonNull<Self>> {
        let mut one = Vec::new();
        one.try_reserve_exact(1).ok()?;
        let lent = Line(core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())));
        one.push(Self { lent, number, used: AtomicBool::new(true), next });
        NonNull::new(Box::into_raw(one.into_boxed_slice()).cast())
    }
    /// Say that `to` is lent. Which word says so; `None` if there is none left.
    fn claim(&self, to: *mut T) -> Option<usize> {
        let null = ptr::null_mut();
        // Relaxed, both: whether it is worth trying; and an exchange, after which what came before the word was null is still
        // acquired by who loads the word [L2].
        let claimed = |word: &AtomicPtr<T>| {
            word.load(Ordering::Relaxed).is_null()
                && word.compare_exchange(null, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        self.lent.0.iter().position(claimed)
    }
    /// It is used no more.
    fn give_back(&self, at: usize) {
        let order = if mutant!("lend-relaxed-end") { Ordering::Acquire } else { Ordering::AcqRel };
        // Release [L2]: the uses come before; partner: the load in `hand_over`. Acquire [L3]: partner of the exchange there.
        let was = self.lent.0[at].swap(ptr::null_mut(), order);
        if was.addr() & HANDED != 0 {
            // SAFETY: who set the mark counted a reference for whoever takes it out of the word.
            drop(unsafe { Arc::from_raw(was.map_addr(|address| address & !HANDED)) });
        }
    }
    /// Count a reference for each word that names `to`, of which the caller has one that was in a place until before its fence.
    fn hand_over(&self, to: &Arc<T>) {
        let to = Arc::as_ptr(to).cast_mut();
        for word in &self.lent.0 {
            // Acquire [L2]: if it was given back, its uses come before; partner: the swap in `give_back`.
            if word.load(Ordering::Acquire) != to {
                continue;
            }
            // SAFETY: from `Arc::as_ptr`, and the caller has a reference.
            unsafe { Arc::increment_strong_count(to) };
            let marked = to.map_addr(|address| address | HANDED);
            // Release [L3]: the counting comes before the end; partner: the swap in `give_back`.
            // Acquire on failure [L2]: as above.
            if word.compare_exchange(to, marked, Ordering::Release, Ordering::Acquire).is_err() {
                // SAFETY: counted above.
                unsafe { Arc::decrement_strong_count(to) };
            }
        }
    }
}

/// Counted references by number, which [`User`]s are lent.
///
/// ```
/// # #[cfg(not(loom))] {
/// use rcu::lend::{Table, User};
/// use std::sync::Arc;
///
/// let table = Arc::new(Table::new());
/// let user = User::of(table.clone());
/// let mut held = table.lock();
/// held.extend_to(0).unwrap();
/// held.put(0, Arc::new("file"), 0, Some(&user));
/// drop(held);
/// let lent = user.lend(0).unwrap();
/// let taken = table.lock().take(0, Some(&user)).unwrap();
/// // Handed over: the user's is counted now.
/// assert_eq!(Arc::strong_count(&taken), 2);
/// assert_eq!(*lent, "file");
/// drop(lent);
/// assert_eq!(Arc::strong_count(&taken), 1);
/// assert!(user.lend(0).is_none());
/// # }
/// ```
pub struct Table<T> {
    /// Arrays of places, each twice as long as the one before; null if not made yet. Made with `held` locked, and then never moved.
    pieces: [AtomicPtr<Place<T>>; PIECES],
    held: SpinLock<Held>,
    users: SpinLock<Users<T>>,
}

/// What changes under a table's lock, and on its line.
struct Held {
    /// How many places there are.
    places: usize,
    /// What the table's owner notes.
    note: usize,
}

/// The words of all users that a table has had at a time.
struct Users<T> {
    first: *mut Words<T>,
    /// How many there are.
    made: u64,
}

impl<T> Users<T> {
    fn each(&self) -> impl Iterator<Item = &Words<T>> {
        // SAFETY: null or one of the table's words, which stay as long as it.
        let first = unsafe { self.first.as_ref() };
        // SAFETY: as above.
        core::iter::successors(first, |words| unsafe { words.next.as_ref() })
    }
    /// Words that nobody uses, or new ones.
    fn claim(&mut self) -> Option<NonNull<Words<T>>> {
        // Relaxed: under the lock.
        if let Some(free) = self.each().find(|words| !words.used.load(Ordering::Relaxed)) {
            free.used.store(true, Ordering::Relaxed);
            return Some(NonNull::from(free));
        }
        let number = self.made + 1;
        let words = Words::new(if number <= NUMBERS { number } else { 0 }, self.first)?;
        (self.first, self.made) = (words.as_ptr(), number);
        Some(words)
    }
}

// SAFETY: as for `Arc`: the table's objects are shared, and may be dropped by any thread.
unsafe impl<T: Send + Sync> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Table<T> {}

/// The piece in which place `at` is, and where in it.
fn position(at: usize) -> (usize, usize) {
    let piece = (at / FIRST + 1).ilog2() as usize;
    (piece, at - FIRST * ((1 << piece) - 1))
}

impl<T> Table<T> {
    /// No places.
    pub fn new() -> Self {
        const { assert!(align_of::<T>() > HANDED, "there is room for the mark") };
        let pieces = core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()));
        Self {
            pieces,
            held: SpinLock::new(Held { places: 0, note: 0 }),
            users: SpinLock::new(Users { first: ptr::null_mut(), made: 0 }),
        }
    }
    /// Change it, which excludes others that do.
    pub fn lock(&self) -> Locked<'_, T> {
        Locked { held: self.held.lock(), table: self }
    }
    fn place(&self, at: usize) -> Option<&Place<T>> {
        let (piece, at) = position(at);
        // Acquire: the places before they are used; partner: the store in `extend_to`.
        let first = self.pieces.get(piece)?.load(Ordering::Acquire);
        // SAFETY: null, or an array of this length that stays as long as the table.
        (!first.is_null()).then(|| unsafe { &*first.add(at) })
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsRef<Table<T>> for Table<T> {
    fn as_ref(&self) -> &Table<T> {
        self
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        let len = self.lock().len();
        for at in 0..len {
            // The lock is held for the taking only: what ends may do what it likes.
            let taken = self.lock().take::<Self>(at, None);
            drop(taken);
        }
        let mut words = self.users.lock().first;
        while !words.is_null() {
            // SAFETY: made of a box of one in `Words::new`, and used by nobody any more, as users have the table.
            let [ended] = *unsafe { Box::from_raw(words.cast::<[Words<T>; 1]>()) };
            words = ended.next;
        }
        for (piece, first) in self.pieces.iter().enumerate() {
            // Relaxed: nobody else has the table.
            let first = first.load(Ordering::Relaxed);
            if !first.is_null() {
                // SAFETY: made of a box of this length in `extend_to`, and used by nobody any more.
                drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(first, FIRST << piece)) });
            }
        }
    }
}

/// A table that nobody else changes.
pub struct Locked<'a, T> {
    held: SpinGuard<'a, Held>,
    table: &'a Table<T>,
}

/// There is no memory, or there are no more numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl<T> Locked<'_, T> {
    /// How many places there are.
    pub fn len(&self) -> usize {
        self.held.places
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What the table's owner has noted of it, 0 at first.
    pub fn note(&self) -> usize {
        self.held.note
    }
    /// Note something of the table.
    pub fn set_note(&mut self, note: usize) {
        self.held.note = note;
    }
    /// Make sure that there is a place `at`.
    pub fn extend_to(&mut self, at: usize) -> Result<(), Full> {
        while at >= self.len() {
            let (piece, _) = position(self.len());
            let first = self.table.pieces.get(piece).ok_or(Full)?;
            let mut places: Vec<Place<T>> = Vec::new();
            places.try_reserve_exact(FIRST << piece).map_err(|_| Full)?;
            places.extend((0..FIRST << piece).map(|_| Place {
                to: AtomicPtr::new(ptr::null_mut()),
                owner: AtomicU64::new(SHARED),
                mark: AtomicU32::new(0),
            }));
            // Release: partner in `place`.
            first.store(Box::into_raw(places.into_boxed_slice()).cast(), Ordering::Release);
            self.held.places += FIRST << piece;
        }
        Ok(())
    }
    fn find(&self, at: usize) -> Option<&Place<T>> {
        self.table.place(at)
    }
    /// What is at `at`.
    pub fn get(&self, at: usize) -> Option<&T> {
        // Relaxed: what was put there was put under the lock.
        let to = self.find(at)?.to.load(Ordering::Relaxed);
        // SAFETY: the place has a reference, which is taken out under the lock only.
        unsafe { to.as_ref() }
    }
    /// Another reference to what is at `at`.
    pub fn counted(&self, at: usize) -> Option<Arc<T>> {
        let to = ptr::from_ref(self.get(at)?);
        // SAFETY: from `Arc::into_raw`, with the reference that the place has.
        let theirs = ManuallyDrop::new(unsafe { Arc::from_raw(to) });
        Some(Arc::clone(&theirs))
    }
    /// What was noted at `at`.
    pub fn mark(&self, at: usize) -> u32 {
        // Relaxed, here and in `set_mark`: the lock orders it.
        self.find(at).map_or(0, |place| place.mark.load(Ordering::Relaxed))
    }
    /// Note something at `at`, if there is such a place.
    pub fn set_mark(&mut self, at: usize, mark: u32) {
        if let Some(place) = self.find(at) {
            place.mark.store(mark, Ordering::Relaxed);
        }
    }
    /// Put an object at `at`, which [`Self::extend_to`] made: what was there, as from [`Self::take`], and the object itself if there
    /// is no such place. `by`: the user that does, if it may be its own.
    pub fn put<D: AsRef<Table<T>>>(
        &mut self,
        at: usize,
        object: Arc<T>,
        mark: u32,
        by: Option<&User<T, D>>,
    ) -> Option<Arc<T>> {
        let Some(place) = self.table.place(at) else { return Some(object) };
        // Relaxed: changed under the lock.
        let free = place.to.load(Ordering::Relaxed).is_null();
        // Who replaces an object doesn't know who is lent it.
        let number = by.filter(|_| free).map_or(0, |user| user.number());
        // Relaxed: only SHARED is set by others, and that isn't kept.
        let owner = next_owner(place.owner.load(Ordering::Relaxed), number);
        // Release [L4]: what was here before was taken out before; partner: the first load of it in `lend`.
        place.owner.store(owner, Ordering::Release);
        // Relaxed: the lock orders it.
        place.mark.store(mark, Ordering::Relaxed);
        // Release [L5]: the object, and whose it is; partner: the loads in `lend`.
        let was = place.to.swap(Arc::into_raw(object).cast_mut(), Ordering::Release);
        self.settle(was, None)
    }
    /// Take out what is at `at`, and let those have a reference of their own that it is lent to. `by`: the user that does.
    pub fn take<D: AsRef<Table<T>>>(&mut self, at: usize, by: Option<&User<T, D>>) -> Option<Arc<T>> {
        let place = self.table.place(at)?;
        // Release: who finds nothing here finds what came before the taking too, as that the table is replaced; partner: the loads
        // in `lend`. Who looks again after this finds nothing, by the fence in `settle`.
        let was = place.to.swap(ptr::null_mut(), Ordering::Release);
        self.settle(was, by.and_then(User::words).map(|me| (me, place)))
    }
    /// Hand over what was taken out to those that it is lent to: `own`'s user alone, if nobody else was lent what is there.
    fn settle(&self, was: *mut T, own: Option<(&Words<T>, &Place<T>)>) -> Option<Arc<T>> {
        if was.is_null() {
            return None;
        }
        // SAFETY: the reference that the place had, which was taken out.
        let was = unsafe { Arc::from_raw(was) };
        // SeqCst [L1]: that it isn't there any more, before the words are looked at; partner: the fence in `lend`.
        if !mutant!("lend-no-take-fence") {
            fence(Ordering::SeqCst);
        }
        // Relaxed: ordered by the fence.
        match own.filter(|(me, place)| is_own(place.owner.load(Ordering::Relaxed), me.number)) {
            Some((me, _)) => me.hand_over(&was),
            None => self.table.users.lock().each().for_each(|words| words.hand_over(&was)),
        }
        Some(was)
    }
}

/// Somebody who is lent what is in a table: one for each thread, or each would write the other's lines.
pub struct User<T, D: AsRef<Table<T>> = Table<T>> {
    table: Arc<D>,
    /// `None` if there was no memory for them: then all that it is lent is counted.
    words: Option<NonNull<Words<T>>>,
}

// SAFETY: its words are the table's, and atomic; who may use and drop a table and its objects on any thread may a user.
unsafe impl<T: Send + Sync, D: AsRef<Table<T>> + Send + Sync> Send for User<T, D> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, D: AsRef<Table<T>> + Send + Sync> Sync for User<T, D> {}

impl<T, D: AsRef<Table<T>>> User<T, D> {
    /// A user of `table`.
    pub fn of(table: Arc<D>) -> Arc<Self> {
        let words = (*table).as_ref().users.lock().claim();
        Arc::new(Self { table, words })
    }
    fn words(&self) -> Option<&Words<T>> {
        // SAFETY: the table's, which it keeps as long as it is; and this keeps the table.
        self.words.map(|words| unsafe { &*words.as_ptr() })
    }
    fn number(&self) -> u64 {
        self.words().map_or(0, |words| words.number)
    }
    /// The table.
    pub fn table(&self) -> &Arc<D> {
        &self.table
    }
    /// What is in place `at`, to be used until it is dropped.
    pub fn lend(self: &Arc<Self>, at: usize) -> Option<Lent<T, D>> {
        let table: &Table<T> = (*self.table).as_ref();
        let place = table.place(at)?;
        loop {
            // Acquire [L4]: what was there before that owner is not found any more; partner: the store in `put`.
            let owner = place.owner.load(Ordering::Acquire);
            // Acquire [L5]: what is there, and whose it is; partner: the swap in `put`. Or null, and why; partner: in `take`.
            let to = place.to.load(Ordering::Acquire);
            if to.is_null() {
                return None;
            }
            let claimed = self.words().and_then(|words| Some((words, words.claim(to)?)));
            let Some((words, word)) = claimed else {
                let counted = table.lock().counted(at)?;
                return Some(Lent(How::Counted(counted)));
            };
            let unshared = mutant!("lend-owner-unshared");
            // Relaxed, both: before the fence. An exchange, as it would be another put's owner else.
            let known = knows(owner, words.number)
                || unshared
                || place
                    .owner
                    .compare_exchange(owner, owner | SHARED, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            // SeqCst [L1]: that it is lent, before it is found in its place again; partner: the fence in `settle`.
            if !mutant!("lend-no-fence") {
                fence(Ordering::SeqCst);
            }
            // Acquire [L5]: as above, as it may be another by now, at the same address.
            let again = if mutant!("lend-one-look") { to } else { place.to.load(Ordering::Acquire) };
            // Relaxed: after the load before it, whose put wrote it before.
            let still = place.owner.load(Ordering::Relaxed);
            let same = still | SHARED == owner | SHARED
                || mutant!("lend-generation-ignored") && (unshared || knows(still, words.number));
            if known && again == to && same {
                return Some(Lent(How::Lent { user: self.clone(), word, to: again }));
            }
            words.give_back(word);
        }
    }
}

impl<T, D: AsRef<Table<T>>> Deref for User<T, D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.table
    }
}

impl<T, D: AsRef<Table<T>>> Drop for User<T, D> {
    /// Nothing is lent to it, as that keeps it.
    fn drop(&mut self) {
        let _users = (*self.table).as_ref().users.lock();
        if let Some(words) = self.words() {
            // Relaxed: under the lock.
            words.used.store(false, Ordering::Relaxed);
        }
    }
}

/// An object that is lent, until this is dropped.
#[must_use = "it is given back at once"]
pub struct Lent<T, D: AsRef<Table<T>> = Table<T>>(How<T, D>);

enum How<T, D: AsRef<Table<T>>> {
    Lent { user: Arc<User<T, D>>, word: usize, to: *mut T },
    Counted(Arc<T>),
}

// SAFETY: as for `Arc`: the object may be used, and dropped, by any thread; the word is given back by one exchange.
unsafe impl<T: Send + Sync, D: AsRef<Table<T>> + Send + Sync> Send for Lent<T, D> {}
// SAFETY: a shared one gives `&T` and counted references only.
unsafe impl<T: Send + Sync, D: AsRef<Table<T>> + Send + Sync> Sync for Lent<T, D> {}

impl<T, D: AsRef<Table<T>>> Lent<T, D> {
    /// A counted reference to the same.
    pub fn counted(&self) -> Arc<T> {
        match &self.0 {
            How::Counted(counted) => counted.clone(),
            How::Lent { to, .. } => {
                // SAFETY: from `Arc::into_raw`, and alive (as in `deref`).
                let theirs = ManuallyDrop::new(unsafe { Arc::from_raw(*to) });
                Arc::clone(&theirs)
            }
        }
    }
}

impl<T, D: AsRef<Table<T>>> Deref for Lent<T, D> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.0 {
            How::Counted(counted) => counted,
            // SAFETY: a place has a reference, or the one that was handed over with the word is there (module text).
            How::Lent { to, .. } => unsafe { &**to },
        }
    }
}

impl<T, D: AsRef<Table<T>>> Drop for Lent<T, D> {
    fn drop(&mut self) {
        if let How::Lent { user, word, .. } = &self.0
            && let Some(words) = user.words()
        {
            words.give_back(*word);
        }
    }
}

impl<T: fmt::Debug, D: AsRef<Table<T>>> fmt::Debug for Lent<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&**self).finish()
    }
}

impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("places", &self.lock().len()).finish_non_exhaustive()
    }
}

const _: () = assert!(mem::size_of::<Place<u64>>() == 24 || cfg!(any(loom, shuttle)));
