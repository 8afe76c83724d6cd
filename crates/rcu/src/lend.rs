//! Counted references that a table lends: for readers that may sleep, of objects that have to end when they are given up.
//!
//! **Claim.** Who is lent an object writes to lines of its own and waits for nobody. An object lives until it is in no table, and
//! everybody who was lent it has given it back; it ends then and there, in the hands of the last of them, once.
//!
//! **Why not a section.** A section may not sleep, and a grace period is too late: who closes the last writing end of a pipe
//! wants the reader to see its end when the call returns. **Why not a count.** Where threads share a descriptor, each
//! look-up would write the count's line twice.
//!
//! **Idea.** These are hazard pointers (Michael, "Hazard Pointers: Safe Memory Reclamation for Lock-Free Objects", 2004) with
//! another end. A [`User`] of a table has a few words in which it says what it is lent. Who takes a reference out of the
//! table looks through the words of all users, and *hands over* a counted reference of its own to each that names the object,
//! by a mark in the word. It gives up the table's reference then and waits for nobody; if nobody had the object, it ends there.
//! Who gives back finds the mark, and gives up the reference that was handed over.
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
//! before the fence of whoever took it out. In the latter case (the former comes to the same, with the next to take it out) the taker finds
//! p in the word and marks it, unless it was given back before: then the taker's load acquired the end of the use [L2],
//! also if the word names something else by now, as words change by exchanges only. If the second look finds
//! something else, p is not used. That p may have ended between the looks, and another object been put in its place at the same
//! address, is no harm: the second look finds that one in the table. Nor is it if the word that the taker marks was
//! given back and taken for p anew, as lent by another place: then that use has a reference of its own, which it gives up.
//!
//! **Whom the taker asks.** All users of all places would make closing slow where threads have files of their own. So a place
//! says who put its object there, until somebody else is lent it; a user that takes out what it put in, and what nobody
//! else was lent, looks through its own words only.
//! ```text
//! lend:     if owner is neither me nor SHARED: owner = SHARED; (before the fence L1; looked at again after it, with the place)
//! put:      owner = me; place = p (Release)
//! take:     (after the fence L1) owner
//! ```
//! A user that is lent p has seen, after its fence, an owner that is itself or SHARED. If its fence is before the taker's, the
//! taker sees that, or what was put later. Later is only what was put in its place after p was taken out, or p once more;
//! then the second look has found the latter's owner.
//!
//! What isn't lent, because a user has too few words, is counted, under the table's lock.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    fmt,
    mem::{self, ManuallyDrop},
    ops::Deref,
    ptr,
};

use percpu::Line;
use sync::{
    SpinGuard, SpinLock, mutant,
    primitive::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence},
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
/// The owner of a place whose object others than who put it there may have been lent.
const SHARED: usize = 1;

/// A place in a table.
struct Place<T> {
    /// A counted reference, or null.
    to: AtomicPtr<T>,
    /// Whose words are to be looked through when it is taken out: the address of the words of who put it there, or [`SHARED`].
    owner: AtomicUsize,
    /// What the table's owner notes beside it; under the table's lock.
    mark: AtomicU32,
}

/// What a user is lent.
struct Words<T>(Line<[AtomicPtr<T>; WORDS]>);

impl<T> Words<T> {
    fn new() -> Self {
        Self(Line(core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()))))
    }
    fn address(&self) -> usize {
        ptr::from_ref(self).addr()
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
        self.0.0.iter().position(claimed)
    }
    /// It is used no more.
    fn give_back(&self, at: usize) {
        let order = if mutant!("lend-relaxed-end") { Ordering::Acquire } else { Ordering::AcqRel };
        // Release [L2]: the uses come before; partner: the load in `hand_over`. Acquire [L3]: partner of the exchange there.
        let was = self.0.0[at].swap(ptr::null_mut(), order);
        if was.addr() & HANDED != 0 {
            // SAFETY: who set the mark counted a reference for whoever takes it out of the word.
            drop(unsafe { Arc::from_raw(was.map_addr(|address| address & !HANDED)) });
        }
    }
    /// Count a reference for each word that names `to`, of which the caller has one that was in a place until before its fence.
    fn hand_over(&self, to: &Arc<T>) {
        let to = Arc::as_ptr(to).cast_mut();
        for word in &self.0.0 {
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
    /// How many places there are.
    held: SpinLock<usize>,
    users: SpinLock<Vec<Arc<Words<T>>>>,
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
        Self { pieces, held: SpinLock::new(0), users: SpinLock::new(Vec::new()) }
    }
    /// Change it, which excludes others that do.
    pub fn lock(&self) -> Locked<'_, T> {
        Locked { places: self.held.lock(), table: self }
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
        let mut held = self.lock();
        for at in 0..held.len() {
            drop(held.take::<Self>(at, None));
        }
        drop(held);
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
    places: SpinGuard<'a, usize>,
    table: &'a Table<T>,
}

/// There is no memory, or there are no more numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl<T> Locked<'_, T> {
    /// How many places there are.
    pub fn len(&self) -> usize {
        *self.places
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Make sure that there is a place `at`.
    pub fn extend_to(&mut self, at: usize) -> Result<(), Full> {
        while at >= self.len() {
            let (piece, _) = position(self.len());
            let mut places: Vec<Place<T>> = Vec::new();
            places.try_reserve_exact(FIRST << piece).map_err(|_| Full)?;
            places.extend((0..FIRST << piece).map(|_| Place {
                to: AtomicPtr::new(ptr::null_mut()),
                owner: AtomicUsize::new(SHARED),
                mark: AtomicU32::new(0),
            }));
            let first = Box::into_raw(places.into_boxed_slice()).cast();
            // Release: partner in `place`.
            self.table.pieces.get(piece).ok_or(Full)?.store(first, Ordering::Release);
            *self.places += FIRST << piece;
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
        let owner = by.filter(|_| free).map_or(SHARED, |user| user.words.address());
        // Relaxed, both: before the object is there, and ordered by that.
        place.owner.store(owner, Ordering::Relaxed);
        place.mark.store(mark, Ordering::Relaxed);
        // Release: the object, and whose it is; partner: the loads in `lend`.
        let was = place.to.swap(Arc::into_raw(object).cast_mut(), Ordering::Release);
        self.settle(was, None)
    }
    /// Take out what is at `at`, and let those have a reference of their own that it is lent to. `by`: the user that does.
    pub fn take<D: AsRef<Table<T>>>(&mut self, at: usize, by: Option<&User<T, D>>) -> Option<Arc<T>> {
        let place = self.table.place(at)?;
        // Relaxed: who looks again after this finds nothing, by the fence.
        let was = place.to.swap(ptr::null_mut(), Ordering::Relaxed);
        let me = by.map(|user| &*user.words);
        // Relaxed: ordered by the fence in `settle`.
        self.settle(was, me.map(|me| (me, place)))
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
        match own.filter(|(me, place)| place.owner.load(Ordering::Relaxed) == me.address()) {
            Some((me, _)) => me.hand_over(&was),
            None => self.table.users.lock().iter().for_each(|user| user.hand_over(&was)),
        }
        Some(was)
    }
}

/// Somebody who is lent what is in a table: one for each thread, or each would write the other's lines.
pub struct User<T, D: AsRef<Table<T>> = Table<T>> {
    table: Arc<D>,
    words: Arc<Words<T>>,
}

impl<T, D: AsRef<Table<T>>> User<T, D> {
    /// A user of `table`.
    pub fn of(table: Arc<D>) -> Arc<Self> {
        let words = Arc::new(Words::new());
        (*table).as_ref().users.lock().push(words.clone());
        Arc::new(Self { table, words })
    }
    /// The table.
    pub fn table(&self) -> &Arc<D> {
        &self.table
    }
    /// What is in place `at`, to be used until it is dropped.
    pub fn lend(self: &Arc<Self>, at: usize) -> Option<Lent<T, D>> {
        let table: &Table<T> = (*self.table).as_ref();
        let place = table.place(at)?;
        let me = self.words.address();
        let known = |owner: usize| owner == me || owner == SHARED;
        loop {
            // Acquire: what is there, and whose it is; partner: the swap in `put`.
            let to = place.to.load(Ordering::Acquire);
            if to.is_null() {
                return None;
            }
            let Some(word) = self.words.claim(to) else {
                let counted = table.lock().counted(at)?;
                return Some(Lent(How::Counted(counted)));
            };
            // Relaxed, all three: before or after the fence. Looked at before it is written: the line is read by all.
            if !known(place.owner.load(Ordering::Relaxed)) && !mutant!("lend-owner-unshared") {
                place.owner.store(SHARED, Ordering::Relaxed);
            }
            // SeqCst [L1]: that it is lent, before it is found in its place again; partner: the fence in `settle`.
            if !mutant!("lend-no-fence") {
                fence(Ordering::SeqCst);
            }
            // Acquire: as above, as it may be another by now.
            let there = place.to.load(Ordering::Acquire) == to;
            let shared = known(place.owner.load(Ordering::Relaxed)) || mutant!("lend-owner-unshared");
            if there && shared || mutant!("lend-one-look") {
                return Some(Lent(How::Lent { user: self.clone(), word, to }));
            }
            self.words.give_back(word);
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
        let gone = {
            let mut users = (*self.table).as_ref().users.lock();
            let at = users.iter().position(|words| Arc::ptr_eq(words, &self.words));
            at.map(|at| users.swap_remove(at))
        };
        drop(gone);
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
        if let How::Lent { user, word, .. } = &self.0 {
            user.words.give_back(*word);
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
