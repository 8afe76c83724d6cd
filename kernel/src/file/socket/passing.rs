//! Files on their way in messages (SCM_RIGHTS).
//!
//! A message that nobody has read yet holds its files open. Two things may go wrong with that.
//!
//! **Depth.** A socket in the queue of a socket in the queue of ... may form a long chain; dropping one end must not
//! recurse along it on the kernel's stack. So files are dropped from one list ([`LIMBO`]), by one thread at a time:
//! what a drop sets free joins the list.
//!
//! **Rings.** A socket may be sent to itself, by way of others or not, and closed: then nothing but its own queue holds
//! it, and no reference count falls to 0. [`collect`] finds such rings, in the way of Linux's net/unix/garbage.c:
//!
//! 1. A socket in flight whose references all come from messages is a *candidate*: no program has it.
//! 2. Take from each candidate's count the references in the queues of candidates. If one is left over, it comes from
//!    the queue of a socket that some program has, so the candidate may yet be received: it is alive, and so is what its
//!    own queue holds, and so on.
//! 3. Candidates that are not alive are garbage: their queues are emptied, which sets the ring free.
//!
//! The argument needs that nothing is received from a candidate's queue between steps 2 and 3: whoever takes files out of
//! a queue to receive them holds [`PASSING`] shared, the collector exclusively. All else errs on the safe side: a file
//! that is being used, sent or dropped has a reference that is in no candidate's queue. Nobody drops a file with
//! [`PASSING`] held.
//!
//! Only the close of a socket makes garbage. A collection looks at every socket in flight, so with many of them one has
//! to do for several closes ([`CLOSES_SHARE`]); but before a message is refused, garbage is looked for.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    mem,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use sync::{RwLock, SpinLock};

use super::Socket;
use crate::{
    errno::Errno,
    file::{Result, open::OpenFile},
    task,
};

/// The most files in flight on the machine.
const MOST: usize = 1 << 14;

/// A collection is due after this part of as many closes as there are sockets in flight.
const CLOSES_SHARE: usize = 64;

/// Sockets that were closed since the last collection began.
static CLOSES: AtomicUsize = AtomicUsize::new(0);
/// Files in flight.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// See the module's text.
static PASSING: RwLock<()> = RwLock::new(());
/// Sockets in flight, by the address of the open file, and how often.
static SOCKETS: SpinLock<BTreeMap<usize, (Weak<OpenFile>, usize)>> = SpinLock::new(BTreeMap::new());

/// Files to be dropped.
static LIMBO: SpinLock<Vec<Arc<OpenFile>>> = SpinLock::new(Vec::new());
/// Whether a collection is due.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Whether a thread is at either.
static DROPPING: AtomicBool = AtomicBool::new(false);

fn address(file: &Arc<OpenFile>) -> usize {
    Arc::as_ptr(file).addr()
}

/// Count `n` more files in flight, unless that is too many.
fn depart(n: usize) -> bool {
    // Relaxed: a count.
    let fits = COUNT.fetch_add(n, Ordering::Relaxed) + n <= MOST;
    if !fits {
        COUNT.fetch_sub(n, Ordering::Relaxed);
    }
    fits
}

/// The files of one message.
pub struct Passed(Vec<Arc<OpenFile>>);

impl Passed {
    /// No files.
    pub const NONE: Passed = Passed(Vec::new());

    /// `files` set out. ETOOMANYREFS if too many are on their way already.
    pub fn new(files: Vec<Arc<OpenFile>>) -> Result<Self> {
        if !depart(files.len()) {
            // Perhaps most of them are garbage, if there can be any. Relaxed: a count.
            if CLOSES.load(Ordering::Relaxed) > 0 {
                WANTED.store(true, Ordering::SeqCst);
                settle();
            }
            if !depart(files.len()) {
                return Err(Errno::ETOOMANYREFS);
            }
        }
        for file in files.iter().filter(|f| f.socket().is_ok()) {
            let mut sockets = SOCKETS.lock();
            sockets.entry(address(file)).or_insert_with(|| (Arc::downgrade(file), 0)).1 += 1;
        }
        Ok(Self(files))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The files.
    pub fn files(&self) -> &[Arc<OpenFile>] {
        &self.0
    }

    /// They have arrived.
    pub fn arrive(mut self) -> Vec<Arc<OpenFile>> {
        self.land()
    }

    fn land(&mut self) -> Vec<Arc<OpenFile>> {
        let files = mem::take(&mut self.0);
        // Relaxed: a count.
        COUNT.fetch_sub(files.len(), Ordering::Relaxed);
        for file in files.iter().filter(|f| f.socket().is_ok()) {
            let mut sockets = SOCKETS.lock();
            if let Some(entry) = sockets.get_mut(&address(file)) {
                entry.1 -= 1;
                if entry.1 == 0 {
                    let gone = sockets.remove(&address(file));
                    drop(sockets);
                    drop(gone);
                }
            }
        }
        files
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        let files = self.land();
        if !files.is_empty() {
            release(files);
        }
    }
}

/// Drop `files`, without recursion.
pub fn release(files: Vec<Arc<OpenFile>>) {
    if !files.is_empty() {
        LIMBO.lock().extend(files);
        settle();
    }
}

/// A socket was closed, which may have left a ring behind.
pub fn closed() {
    let in_flight = SOCKETS.lock().len();
    // Relaxed: a count.
    if in_flight > 0 && CLOSES.fetch_add(1, Ordering::Relaxed) >= in_flight / CLOSES_SHARE {
        WANTED.store(true, Ordering::SeqCst);
        settle();
    }
}

/// Free every ring that there is. For the end of the machine.
pub fn collect_all() {
    WANTED.store(true, Ordering::SeqCst);
    settle();
}

/// Drop what is in limbo and collect what is garbage, until there is neither; if another thread is at it, leave it to
/// that one. A collection waits until everything has been dropped, so a long chain costs one.
fn settle() {
    // SeqCst, all: a thread that finds DROPPING set has left its work in the list or the flag before, and the one that
    // clears DROPPING looks at these afterwards; one of the two sees the other.
    let busy = || !LIMBO.lock().is_empty() || WANTED.load(Ordering::SeqCst);
    while busy() && !DROPPING.swap(true, Ordering::SeqCst) {
        loop {
            let next = LIMBO.lock().pop();
            if let Some(file) = next {
                drop(file);
            } else if WANTED.swap(false, Ordering::SeqCst) {
                collect();
            } else {
                break;
            }
        }
        DROPPING.store(false, Ordering::SeqCst);
    }
}

/// What the collector knows of a candidate.
struct Candidate {
    file: Arc<OpenFile>,
    /// References that are not from queues of candidates.
    outside: usize,
    alive: bool,
}

/// Empty the queues of sockets that nobody can reach any more. With no lock held.
fn collect() {
    // Relaxed: a count. What is closed from here on may come too late for this collection, but not for the next.
    CLOSES.store(0, Ordering::Relaxed);
    let mut garbage = Vec::new();
    let exclusive = PASSING.write(&task::unpinned());
    let mut candidates: BTreeMap<usize, Candidate> = BTreeMap::new();
    for (&at, (file, count)) in &*SOCKETS.lock() {
        let Some(file) = file.upgrade() else { continue };
        // The upgraded one is ours.
        if Arc::strong_count(&file) == count + 1 {
            candidates.insert(at, Candidate { file, outside: *count, alive: false });
        } else {
            garbage.push(file); // only to be dropped late
        }
    }
    let addresses: Vec<usize> = candidates.keys().copied().collect();
    for holder in &addresses {
        let inside = candidates.get(holder).map_or(Vec::new(), |c| held(&c.file));
        for at in inside {
            if let Some(candidate) = candidates.get_mut(&at) {
                candidate.outside = candidate.outside.saturating_sub(1);
            }
        }
    }
    let mut reached: Vec<usize> =
        candidates.iter().filter(|(_, c)| c.outside > 0).map(|(at, _)| *at).collect();
    while let Some(at) = reached.pop() {
        if let Some(candidate) = candidates.get_mut(&at)
            && !candidate.alive
        {
            candidate.alive = true;
            reached.extend(held(&candidate.file));
        }
    }
    let mut messages = Vec::new();
    for candidate in candidates.into_values() {
        if !candidate.alive
            && let Ok(socket) = candidate.file.socket()
        {
            socket.each_end(&mut |end| messages.push(end.take_all()));
        }
        garbage.push(candidate.file);
    }
    drop(exclusive);
    drop(messages);
    release(garbage);
}

/// The sockets in the queues of the socket `file`, by address, as often as they are there.
fn held(file: &Arc<OpenFile>) -> Vec<usize> {
    let mut all = Vec::new();
    if let Ok(socket) = file.socket() {
        socket.each_passed(&mut |passed: &Passed| {
            all.extend(passed.files().iter().filter(|f| f.socket().is_ok()).map(address));
        });
    }
    all
}

/// To be held while a message with files is taken out of a queue to be received.
pub fn receiving<R>(f: impl FnOnce() -> R) -> R {
    let _shared = PASSING.read(&task::unpinned());
    f()
}

/// How the collector and the closing of sockets see a socket.
impl Socket {
    fn each_passed(&self, each: &mut dyn FnMut(&Passed)) {
        self.each_end(&mut |end| end.each_passed(each));
    }
}
