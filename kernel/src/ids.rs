//! Who has which id: processes and threads by their numbers.
//!
//! **Claim.** Who looks an id up writes nothing that others read, and waits for nobody, however many processes come and go; what is
//! found stays for as long as it is looked at. Who makes, ends or collects one has a lock to itself. To take out needs no memory; an
//! id is given out only with the memory to put in who will have it.
//!
//! **How.** Ids are dense, so the table is an array in chunks: a word for each chunk, and in it two words for each id, for the thread and for
//! the process (a process keeps its id until it is collected, and its first thread has the same one while it lives). Each word
//! *counts*: the table has a reference to whoever is in it. A look is a section of the kernel's domain ([`grace`]); a reference that is
//! taken out of the table, and a chunk, are given up a grace period later. Where there is no domain (`aspace=locked`) a look takes
//! the lock, and counts.
//!
//! **Why a look is right.** A word is stored with Release when all of the process is made, and loaded with Acquire [I1]; likewise a
//! chunk's [I2]. What a section finds was in the table at some time in it, so its reference is given up after the section. A chunk is taken
//! out when none of its ids is in use: then all its words are empty, and a section that still looks there finds what was true.
//! In the other order, a new chunk in the place of an old one, a section that began before misses only who came after its beginning.
//! `execve` by a thread that isn't the first moves that thread's word to the process's id: for a moment neither id has it, as on Linux,
//! and its reference moves with it, given up after the second removal.
//!
//! **When an id is free** for others: when nobody *uses* it. It is used by who is about to make a thread with it ([`Id`]), by the thread,
//! by the process until it is collected, and by each process, collected ones excepted, whose group or session it names: so a group is never
//! joined by a stranger whose id happens to be its number. (As Linux does it, by counts on `struct pid`.) Uses are counted under the
//! lock; groups and sessions change under it. Numbers go round, so a free one is given out again only after all others.
//!
//! Consecutive ids lie on different lines, so that a look doesn't meet the ends and beginnings of neighbours.
//!
//! # Interrupt handlers
//! may not have sections: an idle CPU's would not be waited for. [`those`] is for them, too, and takes the lock.
#![allow(unsafe_code)] // counts what sections keep; each block says why it is sound

pub mod selftest;

use alloc::{
    alloc::{Layout, alloc_zeroed},
    boxed::Box,
    sync::Arc,
    vec::Vec,
};
use core::{
    mem::{ManuallyDrop, offset_of},
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
};

use percpu::Pinned;
use rcu::{Head, Retired, kernel::Guard};

use crate::{
    errno::Errno,
    grace,
    hw::irq::Lock,
    planted::{self, Planted},
    process::Process,
    task::{self, Task},
};

/// Ids run from 2 (1 is the supervisor's) to this, as Linux's default `pid_max` on 64-bit machines.
pub const PID_MAX: u32 = 1 << 22;
/// The first one.
const FIRST: u32 = 2;
/// Ids of a chunk.
const IDS: usize = 512;
const CHUNKS: usize = PID_MAX as usize / IDS;
/// Pointers of a cache line.
const LINE: usize = 8;

/// What an id leads to.
pub trait Named: Sized + Send + Sync + 'static {
    /// Where its link for the domain is, in bytes.
    const LINK: usize;
    /// The words of the kind.
    fn words(chunk: &Chunk) -> &[AtomicPtr<Self>; IDS];
}

impl Named for Task {
    const LINK: usize = offset_of!(Task, retired);
    fn words(chunk: &Chunk) -> &[AtomicPtr<Self>; IDS] {
        &chunk.tasks
    }
}

impl Named for Process {
    const LINK: usize = offset_of!(Process, retired);
    fn words(chunk: &Chunk) -> &[AtomicPtr<Self>; IDS] {
        &chunk.processes
    }
}

/// A part of the table. All zeros is an empty one.
#[repr(C)] // so that the link is where the chunk is
pub struct Chunk {
    head: Head,
    tasks: [AtomicPtr<Task>; IDS],
    processes: [AtomicPtr<Process>; IDS],
    /// How often each id is used. Relaxed, always, as the next: with the table locked.
    uses: [AtomicU32; IDS],
    /// How many are.
    used: AtomicU32,
}

impl Chunk {
    fn new() -> Result<Box<Self>, Errno> {
        // SAFETY: the layout has a size.
        let at = unsafe { alloc_zeroed(Layout::new::<Self>()) }.cast::<Self>();
        if at.is_null() {
            return Err(Errno::ENOMEM);
        }
        // SAFETY: of the global allocator, with the layout of a box; and zeros are null pointers, counts of 0, and a link in no list.
        Ok(unsafe { Box::from_raw(at) })
    }
}

/// Which chunk has it, and where.
const fn place(id: u32) -> (usize, usize) {
    let (chunk, i) = (id as usize / IDS, id as usize % IDS);
    (chunk, i % (IDS / LINE) * LINE + i / (IDS / LINE))
}

/// The chunks; null where no id is used. Changed with the table locked.
static ROOT: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];
/// Which of them there are, for who goes through all.
static PRESENT: [AtomicU64; CHUNKS / 64] = [const { AtomicU64::new(0) }; CHUNKS / 64];

struct Table {
    /// The id that is tried next.
    next: u32,
    tasks: usize,
    processes: usize,
}

static TABLE: Lock<Table> = Lock::new(Table { next: FIRST, tasks: 0, processes: 0 });

/// The word of `id`, if its chunk is there.
fn word<T: Named>(id: u32) -> Option<&'static AtomicPtr<T>> {
    if id >= PID_MAX {
        return None;
    }
    let (chunk, at) = place(id);
    // Acquire [I2]: what is in it; partner: the store in `Table::reserve`.
    // SAFETY: the callers have a section or the lock, and use the result in it: chunks are freed a grace period after they were taken
    // out, or by who took them out with the lock.
    let chunk = unsafe { ROOT[chunk].load(Ordering::Acquire).as_ref() }?;
    Some(&T::words(chunk)[at])
}

/// A counted reference's, without the count.
///
/// # Safety
/// `who` is of an `Arc` that somebody counts for as long as the result is used.
unsafe fn borrowed<T>(who: *const T) -> ManuallyDrop<Arc<T>> {
    // SAFETY: by this function's contract; and it is never dropped.
    ManuallyDrop::new(unsafe { Arc::from_raw(who) })
}

/// Who has the id.
fn look<T: Named>(id: u32, _section: &Guard<'_>) -> Option<ManuallyDrop<Arc<T>>> {
    // Acquire [I1]: how it was made; partner: the store in `Table::put`.
    let who = NonNull::new(word::<T>(id)?.load(Ordering::Acquire))?;
    planted::hesitate(Planted::IdFreedEarly);
    // SAFETY: the table's reference is given up after the section.
    Some(unsafe { borrowed(who.as_ptr()) })
}

/// The same by who has the lock, counted.
fn look_locked<T: Named>(id: u32) -> Option<Arc<T>> {
    let _table = TABLE.lock();
    // Relaxed: stored with the lock held.
    let who = NonNull::new(word::<T>(id)?.load(Ordering::Relaxed))?;
    // SAFETY: the table's reference is taken out with the lock held.
    Some(Arc::clone(&*unsafe { borrowed(who.as_ptr()) }))
}

/// What `f` makes of who has the id, if anybody has. `f` must not sleep. For threads.
pub fn with<T: Named, R>(id: u32, f: impl FnOnce(&Arc<T>) -> R) -> Option<R> {
    let Some(domain) = grace::domain() else { return look_locked(id).map(|who| f(&who)) };
    let pin = task::pinned();
    let section = domain.read(&pin);
    look(id, &section).map(|who| f(&who))
}

/// The process with this id, ended or not, until it is collected.
pub fn find(pid: u32) -> Option<Arc<Process>> {
    with(pid, Arc::clone)
}

/// The live thread with this id.
pub fn find_task(tid: u32) -> Option<Arc<Task>> {
    with(tid, Arc::clone)
}

/// Whether a process has this id, ended or not.
pub fn is_process(pid: u32) -> bool {
    with(pid, |_: &Arc<Process>| ()).is_some()
}

/// Whether a live thread has this id.
pub fn is_thread(tid: u32) -> bool {
    with(tid, |_: &Arc<Task>| ()).is_some()
}

/// Whether any process is `wanted`, which must not sleep. For threads: who is in the table throughout is asked.
pub fn any(mut wanted: impl FnMut(&Process) -> bool) -> bool {
    let Some(domain) = grace::domain() else { return all().iter().any(|p| wanted(p)) };
    let pin = task::pinned();
    let section = domain.read(&pin);
    ids().any(|id| look::<Process>(id, &section).is_some_and(|p| wanted(&p)))
}

/// Ids that may be used, in ascending order.
fn ids() -> impl Iterator<Item = u32> {
    let bits = |(i, word): (usize, &AtomicU64)| {
        // Relaxed: whoever was entered before the caller came is seen, as the two are ordered by what tells the caller of it; and the
        // chunk's own word is loaded afterwards.
        let word = word.load(Ordering::Relaxed);
        (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| i * 64 + bit)
    };
    let chunks = PRESENT.iter().enumerate().flat_map(bits);
    chunks.flat_map(|chunk| (chunk * IDS..(chunk + 1) * IDS).map(|id| id as u32))
}

/// All processes in order of id, as they are at one moment. From any context.
pub fn all() -> Vec<Arc<Process>> {
    those(|_| true)
}

/// Those of them that are `wanted`, which must not take a lock.
pub fn those(wanted: impl Fn(&Process) -> bool) -> Vec<Arc<Process>> {
    let table = TABLE.lock();
    table.processes().filter(|p| wanted(p)).map(|p| Arc::clone(&*p)).collect()
}

/// Number of live threads.
pub fn task_count() -> usize {
    let table = TABLE.lock();
    // Processes that have ended count until they are collected.
    table.tasks.max(table.processes)
}

/// A fresh id, which nobody else gets meanwhile.
pub struct Id(u32);

impl Id {
    /// The number.
    pub const fn number(&self) -> u32 {
        self.0
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        let gone = TABLE.lock().leave(self.0);
        drop(gone); // with no lock held
    }
}

/// A fresh process or thread id. ENOMEM; EAGAIN if all are used.
pub fn new_id() -> Result<Id, Errno> {
    let mut spare = None;
    loop {
        match TABLE.lock().reserve(&mut spare) {
            Reserved::Id(id) => return Ok(Id(id)),
            Reserved::None => return Err(Errno::EAGAIN),
            Reserved::LacksChunk => {}
        }
        // With no lock held, as memory is fetched.
        spare = Some(Chunk::new()?);
    }
}

enum Reserved {
    Id(u32),
    None,
    LacksChunk,
}

impl Table {
    fn chunk(&self, id: u32) -> Option<&Chunk> {
        // Relaxed: stored with the lock held.
        // SAFETY: chunks are taken out with the lock, by `&mut self`.
        unsafe { ROOT[place(id).0].load(Ordering::Relaxed).as_ref() }
    }

    /// Use the next id that is free, with `spare` if there is no chunk for it.
    fn reserve(&mut self, spare: &mut Option<Box<Chunk>>) -> Reserved {
        for _ in FIRST..PID_MAX {
            let id = self.next;
            let (chunk, at) = place(id);
            if self.chunk(id).is_none() {
                let Some(new) = spare.take() else { return Reserved::LacksChunk };
                // Release [I2]: that it is empty; partner: the load in `word`.
                ROOT[chunk].store(Box::into_raw(new), Ordering::Release);
                PRESENT[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::Relaxed);
            }
            let is_free = self.chunk(id).is_some_and(|c| c.uses[at].load(Ordering::Relaxed) == 0);
            if is_free {
                self.join(id);
            }
            // A chunk that is left by the numbers is used: its last id is, at least.
            self.next = if id + 1 < PID_MAX { id + 1 } else { FIRST };
            if is_free {
                return Reserved::Id(id);
            }
        }
        Reserved::None
    }

    /// One more uses it: a fresh one, or one that the caller knows to be used.
    fn join(&mut self, id: u32) {
        let Some(chunk) = self.chunk(id) else { return };
        let uses = &chunk.uses[place(id).1];
        let before = uses.load(Ordering::Relaxed);
        uses.store(before + 1, Ordering::Relaxed);
        if before == 0 {
            chunk.used.store(chunk.used.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// One fewer does. The result is to be dropped with no lock held.
    #[must_use = "to be dropped with no lock held"]
    fn leave(&mut self, id: u32) -> Option<Unlinked> {
        let chunk = self.chunk(id)?;
        let uses = &chunk.uses[place(id).1];
        let left = uses.load(Ordering::Relaxed) - 1;
        uses.store(left, Ordering::Relaxed);
        if left > 0 {
            return None;
        }
        let used = chunk.used.load(Ordering::Relaxed) - 1;
        chunk.used.store(used, Ordering::Relaxed);
        let at = place(id).0;
        // The next ids are of this one, so it is kept.
        if used > 0 || at == place(self.next).0 {
            return None;
        }
        PRESENT[at / 64].fetch_and(!(1 << (at % 64)), Ordering::Relaxed);
        // Relaxed: nothing is published.
        NonNull::new(ROOT[at].swap(ptr::null_mut(), Ordering::Relaxed)).map(Unlinked)
    }

    /// Give `who` the id, which the caller uses.
    fn put<T: Named>(&mut self, id: u32, who: Arc<T>) {
        self.join(id);
        if let Some(word) = word::<T>(id) {
            // Release [I1]: all of it; partner: the load in `look`.
            word.store(Arc::into_raw(who).cast_mut(), Ordering::Release);
        }
    }

    /// Take it from `who`, if that has it. The results are to be dropped with no lock held.
    fn take<T: Named>(&mut self, id: u32, who: &Arc<T>) -> Option<(Left<T>, Option<Unlinked>)> {
        let word = word::<T>(id)?;
        // Relaxed, both: stored with the lock held, and nothing is published.
        if !ptr::eq(word.load(Ordering::Relaxed), Arc::as_ptr(who)) {
            return None;
        }
        let left = NonNull::new(word.swap(ptr::null_mut(), Ordering::Relaxed)).map(Left)?;
        Some((left, self.leave(id)))
    }

    fn processes(&self) -> impl Iterator<Item = ManuallyDrop<Arc<Process>>> {
        ids().filter_map(|id| {
            // Relaxed: stored with the lock held.
            let who = NonNull::new(word::<Process>(id)?.load(Ordering::Relaxed))?;
            // SAFETY: the table's reference is taken out with the lock, by `&mut self`.
            Some(unsafe { borrowed(who.as_ptr()) })
        })
    }

    fn has(&self, p: &Process) -> bool {
        // Relaxed: as above.
        word::<Process>(p.pid).is_some_and(|word| ptr::eq(word.load(Ordering::Relaxed), p))
    }
}

/// A chunk that no new section finds.
struct Unlinked(NonNull<Chunk>);

// SAFETY: it owns the chunk.
unsafe impl Send for Unlinked {}

impl Drop for Unlinked {
    fn drop(&mut self) {
        match grace::domain() {
            // SAFETY: it was taken out; nobody else frees it; its link is at its beginning.
            Some(domain) => domain.call(&task::pinned(), unsafe {
                Retired::new(self.0.cast(), free_chunk).of_bytes(size_of::<Chunk>())
            }),
            // SAFETY: made of a box. Who looked there had the lock that was taken since, to take it out.
            None => drop(unsafe { Box::from_raw(self.0.as_ptr()) }),
        }
    }
}

/// # Safety
/// The link is that of a chunk, whose owner the caller is.
unsafe fn free_chunk(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: the caller's: it was made of a box, and the link is at its beginning.
    drop(unsafe { Box::from_raw(head.cast::<Chunk>().as_ptr()) });
}

/// A reference of the table's that no new section finds.
struct Left<T: Named>(NonNull<T>);

// SAFETY: it is a reference of an `Arc`'s, to what may be sent and shared.
unsafe impl<T: Named> Send for Left<T> {}

impl<T: Named> Left<T> {
    /// The reference, which goes back into the table.
    fn back(self) -> Arc<T> {
        let this = ManuallyDrop::new(self);
        // SAFETY: of `Arc::into_raw`, and its count is this one's.
        unsafe { Arc::from_raw(this.0.as_ptr()) }
    }
}

impl<T: Named> Drop for Left<T> {
    fn drop(&mut self) {
        match grace::domain().filter(|_| !planted::is(Planted::IdFreedEarly)) {
            // SAFETY: the reference, which is this one's, is what is retired. The table gives up each once, and a link is used once: a
            // thread or process that has left it doesn't come back. The link is derived from the whole.
            Some(domain) => domain.call(&task::pinned(), unsafe {
                Retired::new(self.0.byte_add(T::LINK).cast(), free::<T>).of_bytes(size_of::<T>())
            }),
            // SAFETY: of `Arc::into_raw`. Who looked at it had the lock, and counted it.
            None => drop(unsafe { Arc::from_raw(self.0.as_ptr()) }),
        }
    }
}

/// # Safety
/// The link is that of a `T` of which the caller owns a counted reference.
unsafe fn free<T: Named>(head: NonNull<Head>, _: &Pinned<'_>) {
    // SAFETY: the caller's: the link lies in a `T` of an `Arc`'s, and was derived from a pointer to that.
    drop(unsafe { Arc::from_raw(head.as_ptr().byte_sub(T::LINK).cast::<T>()) });
}

/// Enter a thread under its id, which the caller uses.
pub fn enter_thread(task: &Arc<Task>) {
    let mut table = TABLE.lock();
    table.put(task.tid(), task.clone());
    table.tasks += 1;
}

/// Enter a process under its id, which the caller uses: in the group and session of `parent`, which is in the table, or those of its own.
pub fn enter_process(process: &Arc<Process>, parent: Option<&Process>) {
    let mut table = TABLE.lock();
    if let Some(parent) = parent {
        // Relaxed, here and below: changed with the lock held; others see either.
        process.pgid.store(parent.pgid.load(Ordering::Relaxed), Ordering::Relaxed);
        process.sid.store(parent.sid.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    table.put(process.pid, process.clone());
    table.join(process.pgid.load(Ordering::Relaxed));
    table.join(process.sid.load(Ordering::Relaxed));
    table.processes += 1;
}

/// The calling thread ends.
pub fn leave_thread(task: &Arc<Task>) {
    let gone = {
        let mut table = TABLE.lock();
        let gone = table.take(task.tid(), task);
        table.tasks -= usize::from(gone.is_some());
        gone
    };
    drop(gone); // with no lock held
}

/// A process has been collected.
pub fn leave_process(process: &Arc<Process>) {
    let gone = {
        let mut table = TABLE.lock();
        let Some(gone) = table.take(process.pid, process) else { return };
        table.processes -= 1;
        let group = table.leave(process.pgid.load(Ordering::Relaxed));
        (gone, group, table.leave(process.sid.load(Ordering::Relaxed)))
    };
    drop(gone); // as above
}

/// The calling thread, the only one of its process, takes over the id of that.
pub fn become_leader(task: &Arc<Task>) {
    let unlinked = {
        let mut table = TABLE.lock();
        let Some((own, unlinked)) = table.take(task.tid(), task) else { return };
        task.become_leader();
        table.put(task.tid(), own.back());
        unlinked
    };
    drop(unlinked); // as above
}

/// Put `p`, of the session `sid`, into `group`, its own or one of that session. EPERM if there is none, or `p` leads a session or is
/// in another; ESRCH if `p` has been collected.
pub fn join_group(p: &Process, group: u32, sid: u32) -> Result<(), Errno> {
    let gone = {
        let mut table = TABLE.lock();
        if !table.has(p) {
            return Err(Errno::ESRCH);
        }
        // With the table locked: it may become the leader of one meanwhile.
        let own = p.sid.load(Ordering::Relaxed);
        if own != sid || own == p.pid {
            return Err(Errno::EPERM);
        }
        let is_member =
            |q: &Process| q.pgid.load(Ordering::Relaxed) == group && q.sid.load(Ordering::Relaxed) == sid;
        if group != p.pid && !table.processes().any(|q| is_member(&q)) {
            return Err(Errno::EPERM);
        }
        table.join(group);
        table.leave(p.pgid.swap(group, Ordering::Relaxed))
    };
    drop(gone); // as above
    Ok(())
}

/// Make `p`, the calling process, the leader of a session and group. EPERM if there is a group of its id.
pub fn new_session(p: &Process) -> Result<(), Errno> {
    let gone = {
        let mut table = TABLE.lock();
        if table.processes().any(|q| q.pgid.load(Ordering::Relaxed) == p.pid) {
            return Err(Errno::EPERM);
        }
        table.join(p.pid);
        table.join(p.pid);
        let group = table.leave(p.pgid.swap(p.pid, Ordering::Relaxed));
        (group, table.leave(p.sid.swap(p.pid, Ordering::Relaxed)))
    };
    drop(gone); // as above
    Ok(())
}
