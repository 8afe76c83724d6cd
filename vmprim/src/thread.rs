//! What the library knows of each thread: a block that its signal handler finds without thread-local storage.
//!
//! Thread-local storage of a shared object may be allocated at first use, which a signal handler must not do.
//! Instead:
//!
//! - An *attached* thread has an alternate stack of ours, and the kernel says in the signal's frame which alternate
//!   stack that is: the block's address stands at the stack's low end, beside a number drawn at the start of the
//!   process.
//! - Any other thread borrows a block of a pool for the time of its handler. If it came on an alternate stack of
//!   somebody else's, which may have no more than 8 KiB, its handler goes on on the block's stack, registered
//!   meanwhile; so that a fault of the handler finds the block there too. The return from the signal registers the
//!   old stack again. A thread without an alternate stack finds its block again by its thread number.
//!
//! Of a thread's nested handlers the one whose exchange made the block the thread's gives it back; those that found
//! it by number do not, and end before that one goes on. No state beside the number says so: a handler that comes
//! between any two steps of another finds the block taken or free, and leaves it as it found it.
//!
//! Blocks are in one list that only grows and are used again, never freed; so whoever walks the list needs no lock.
//!
//! A block holds what the thread is *inside* of: for each nested fault the table it looks into (`hazard`), then the
//! region and page. A fault has its frame before it looks, since a signal that comes meanwhile may fault in turn.
//! An updater that has taken a table or region out of reach waits until no block names it:
//!
//! ```text
//! handler: hazard = t = TABLE;  if TABLE != t again      updater: TABLE = new
//!          frames[depth] = region found in t;                     wait until no hazard == old; free the old table
//!          hazard = none                                          wait until no frame == region; free the region
//! ```
//! With the store of `hazard`, the second look, the store of the table and the updater's looks sequentially
//! consistent, either the handler's second look sees the new table, or the updater sees the hazard. The region is
//! named before the hazard is dropped, and the updater looks in that order too. The list of blocks is read and
//! extended in the same order, so a block that an updater does not see yet belongs to a thread that looks later.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::RefCell,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::{
    error::{Errno, Error},
    sys,
    table::Table,
    upcall,
};

/// Faults inside of handlers of faults, at most.
pub const DEPTH: usize = 4;
/// Blocks made at first, for threads that never attach.
const POOL: usize = 32;

/// A page that a fault of this thread is about.
#[derive(Debug, Default)]
pub struct Held {
    /// The region's address; 0 for none.
    pub region: AtomicUsize,
    pub page: AtomicUsize,
    /// The table that the thread looks into for the region.
    pub hazard: AtomicPtr<Table>,
}

/// What a thread is inside of. Written by its thread; read by updaters of tables.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Block {
    /// The thread's number; 0 if the block is free.
    owner: AtomicU32,
    pub depth: AtomicUsize,
    pub frames: [Held; DEPTH],
    /// What a thread that calls deferred handlers is resolving for another.
    pub serves: Held,
    /// Where the last fault that needed nothing was, and how many there were in a row.
    pub again_pc: AtomicUsize,
    pub again_at: AtomicUsize,
    pub again: AtomicUsize,
    /// Where a thread's last fault was that was no region's, after how many regions over adopted memory, and whose it
    /// was.
    pub stray_pc: AtomicUsize,
    pub stray_at: AtomicUsize,
    pub stray_after: AtomicUsize,
    pub stray_by: AtomicU32,
    /// How many of the handlers that were there before ours are running, where on the stack the last was called, and
    /// with which context of the kernel's.
    pub forwards: AtomicUsize,
    pub forward_at: AtomicUsize,
    pub forward_of: AtomicUsize,
    /// 1 if the thread is attached.
    attached: AtomicUsize,
    /// Where the block's stack starts, or 0 if it has none yet.
    stack: AtomicUsize,
    next: AtomicPtr<Block>,
}

static ALL: AtomicPtr<Block> = AtomicPtr::new(std::ptr::null_mut());

/// Every block there is.
pub fn blocks() -> impl Iterator<Item = &'static Block> {
    // SeqCst, here and in `add`: who looks for hazards sees every block whose thread looked before; and the block whole.
    let mut next = ALL.load(Ordering::SeqCst);
    std::iter::from_fn(move || {
        // SAFETY: blocks in the list live for ever.
        let block = unsafe { next.as_ref() }?;
        // Relaxed: set before the block was published, and not changed.
        next = block.next.load(Ordering::Relaxed);
        Some(block)
    })
}

fn add(owner: u32) -> &'static Block {
    let block = Box::leak(Box::new(Block { owner: AtomicU32::new(owner), ..Block::default() }));
    // Relaxed: the exchange says whether it was current.
    let mut first = ALL.load(Ordering::Relaxed);
    loop {
        block.next.store(first, Ordering::Relaxed);
        // SeqCst: see `blocks`.
        match ALL.compare_exchange(first, block, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return block,
            Err(other) => first = other,
        }
    }
}

/// The block that a thread has.
fn block_of(thread: u32) -> Option<&'static Block> {
    // Relaxed: only the thread sets its own number, and asks for it.
    blocks().find(|block| block.owner.load(Ordering::Relaxed) == thread)
}

/// The block that this thread has, if it is attached or in a handler.
pub fn own() -> Option<&'static Block> {
    block_of(sys::gettid())
}

/// The block of this thread by its number, else a free one, claimed.
fn claim() -> Option<Inside> {
    let me = sys::gettid();
    block_of(me).map(|block| Inside { block, claimed: false }).or_else(|| {
        let claims = |block: &&Block| {
            // Acquire: pairs with Release in `Inside::drop` and `Stack::drop`; the last owner's frames are empty.
            block.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        blocks().find(claims).map(|block| Inside { block, claimed: true })
    })
}

/// A block for as long as a handler runs.
#[derive(Debug)]
pub struct Inside {
    pub block: &'static Block,
    /// It was free before, and is again after.
    claimed: bool,
}

impl Inside {
    /// This thread's block: of its alternate stack if the signal was delivered with one of ours in place.
    #[inline]
    pub fn enter(stack: Option<&libc::stack_t>) -> Self {
        if let Some(block) = stack.and_then(block_of_stack) {
            return Self { block, claimed: false };
        }
        loop {
            if let Some(inside) = claim() {
                return inside;
            }
            // All of the pool is in handlers of other threads.
            std::thread::yield_now();
        }
    }
}

impl Inside {
    /// The block's stack, to go on on if the one that the signal came on is another's.
    #[inline]
    pub fn roomier(&self, stack: &libc::stack_t) -> Option<libc::stack_t> {
        if attached(self.block) || stack.ss_flags & libc::SS_DISABLE != 0 || stack.ss_size >= stack_size() {
            return None;
        }
        // Relaxed, all: the block is this thread's now.
        let mut base = self.block.stack.load(Ordering::Relaxed);
        if base == 0 {
            let (mapping, new) = map_stack(self.block).ok()?;
            // It stays with the block, for ever.
            std::mem::forget(mapping);
            self.block.stack.store(new, Ordering::Relaxed);
            base = new;
        }
        // A handler behind ours that calls us with the signal that we passed it runs there already.
        let here = std::ptr::from_ref(&base) as usize;
        if here.wrapping_sub(base) < stack_size() {
            return None;
        }
        Some(libc::stack_t { ss_sp: base as *mut _, ss_flags: 0, ss_size: stack_size() })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // A thread that was attached meanwhile keeps it.
        if self.claimed && !attached(self.block) {
            // Release: pairs with Acquire in `claim`.
            self.block.owner.store(0, Ordering::Release);
        }
    }
}

/// What stands at the low end of our alternate stacks.
#[repr(C)]
struct Head {
    magic: u64,
    own_address: usize,
    block: *const Block,
}

fn magic() -> u64 {
    static MAGIC: AtomicU64 = AtomicU64::new(0);
    // Relaxed, both: any thread's draw will do, and the exchange makes it one.
    match MAGIC.load(Ordering::Relaxed) {
        0 => {
            let mut drawn = 0_u64;
            // SAFETY: the buffer is valid for its eight bytes.
            unsafe { libc::getrandom(std::ptr::from_mut(&mut drawn).cast(), 8, libc::GRND_NONBLOCK) };
            let drawn = drawn | 1;
            MAGIC
                .compare_exchange(0, drawn, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|one| one, |_| drawn)
        }
        drawn => drawn,
    }
}

/// Bytes of an alternate stack: for the kernel's frame, whatever the CPU's registers take, and for handlers four
/// deep.
fn stack_size() -> usize {
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed, both: every thread computes the same.
    match SIZE.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: it reads the auxiliary vector.
            let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
            let size = frame.saturating_add(32 << 10).max(64 << 10).next_power_of_two();
            SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

fn block_of_stack(stack: &libc::stack_t) -> Option<&'static Block> {
    if stack.ss_flags & libc::SS_DISABLE != 0 || stack.ss_size != stack_size() {
        return None;
    }
    let head = stack.ss_sp.cast::<Head>();
    let here = std::ptr::from_ref(&head) as usize;
    // The stack that we are on is mapped; any other might not be.
    if here.wrapping_sub(stack.ss_sp as usize) >= stack.ss_size {
        return None;
    }
    // SAFETY: the low end of the stack that this function runs on.
    let head = unsafe { head.read() };
    // SAFETY: only our stacks say the number and their own address; the block lives for ever.
    (head.magic == magic() && head.own_address == stack.ss_sp as usize).then(|| unsafe { &*head.block })
}

/// An attached thread's alternate stack.
struct Stack {
    mapping: sys::Mapping,
    base: usize,
    block: &'static Block,
}

impl Drop for Stack {
    fn drop(&mut self) {
        upcall::disarm();
        let mut now = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
        // SAFETY: the structures are valid for the calls; ours is the one disabled.
        unsafe {
            libc::sigaltstack(std::ptr::null(), &raw mut now);
            if now.ss_sp as usize == self.base {
                now.ss_flags = libc::SS_DISABLE;
                libc::sigaltstack(&raw const now, std::ptr::null_mut());
            }
        }
        debug_assert!(self.mapping.len > stack_size());
        // Relaxed: this thread's own.
        self.block.attached.store(0, Ordering::Relaxed);
        // Release: pairs with Acquire in `claim`.
        self.block.owner.store(0, Ordering::Release);
    }
}

thread_local! {
    static STACK: RefCell<Option<Stack>> = const { RefCell::new(None) };
}

/// Whether the block is of an attached thread; asked by that thread.
fn attached(block: &Block) -> bool {
    // Relaxed: this thread's own mark.
    block.attached.load(Ordering::Relaxed) != 0
}

/// Prepare this thread for faults: both signals unblocked, and an alternate stack that is large enough. Threads
/// that were not attached work too, with a look-up by thread number at each fault, unless they block the signals.
/// Attaching again does nothing.
///
/// # Errors
/// [`Error::Os`] if there is no memory for the stack.
pub fn attach() -> Result<(), Error> {
    static POOLED: OnceLock<()> = OnceLock::new();
    POOLED.get_or_init(|| {
        for _ in 0..POOL {
            add(0);
        }
    });
    unblock();
    STACK
        .try_with(|slot| {
            let mut slot = slot.borrow_mut();
            if slot.is_none() {
                *slot = Some(new_stack().map_err(|errno| Error::Os { op: "alternate stack", errno })?);
            }
            Ok(())
        })
        // The thread is ending: what it does now is done without.
        .unwrap_or(Ok(()))
}

/// A stack with its head, above a guard page; where it starts.
fn map_stack(block: &'static Block) -> Result<(sys::Mapping, usize), Errno> {
    let size = stack_size();
    let flags = libc::MAP_PRIVATE | libc::MAP_STACK | libc::MAP_NORESERVE;
    let mapping = sys::Mapping::new(size.saturating_add(sys::BASE), libc::PROT_NONE, flags, None)?;
    let base = mapping.address.wrapping_add(sys::BASE);
    // SAFETY: the mapping is ours; its lowest page stays as a guard.
    unsafe { sys::mprotect(base, size, libc::PROT_READ | libc::PROT_WRITE)? };
    let head = Head { magic: magic(), own_address: base, block };
    // SAFETY: the mapping is ours, writable now, and a page's start is aligned.
    unsafe { (base as *mut Head).write(head) };
    Ok((mapping, base))
}

fn new_stack() -> Result<Stack, Errno> {
    // Given back if there is an error.
    let inside = claim().unwrap_or_else(|| Inside { block: add(sys::gettid()), claimed: true });
    let block = inside.block;
    let (mapping, base) = map_stack(block)?;
    let size = stack_size();
    let stack = libc::stack_t { ss_sp: base as *mut _, ss_flags: 0, ss_size: size };
    // SAFETY: the memory stays mapped until the stack is disabled again, in `drop`.
    if unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) } != 0 {
        return Err(Errno(libc::EPERM));
    }
    let head = size_of::<Head>().next_multiple_of(16);
    upcall::arm(base.wrapping_add(head), size.wrapping_sub(head), block)?;
    // Relaxed: this thread's own.
    block.attached.store(1, Ordering::Relaxed);
    Ok(Stack { mapping, base, block })
}

/// A blocked signal that an access raises ends the process.
fn unblock() {
    // SAFETY: the set is valid for the calls.
    unsafe {
        let mut both = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut both);
        libc::sigaddset(&raw mut both, libc::SIGSEGV);
        libc::sigaddset(&raw mut both, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const both, std::ptr::null_mut());
    }
}

/// A thread of std's that is attached first.
///
/// # Errors
/// Those of [`std::thread::Builder::spawn`].
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Without memory for a stack the thread works unattached.
        let _ = attach();
        body()
    })
}

/// In the child of a fork: there is one thread, and it is inside of nothing.
pub fn forget_other_threads() {
    let me = STACK
        .try_with(|slot| slot.try_borrow().ok().and_then(|s| s.as_ref().map(|s| s.block)))
        .ok()
        .flatten();
    for block in blocks() {
        let owner = if me.is_some_and(|me| std::ptr::eq(me, block)) { sys::gettid() } else { 0 };
        // Relaxed: no other thread is there.
        block.owner.store(owner, Ordering::Relaxed);
        block.depth.store(0, Ordering::Relaxed);
        if owner == 0 {
            block.attached.store(0, Ordering::Relaxed);
        }
        for frame in &block.frames {
            frame.region.store(0, Ordering::Relaxed);
            frame.hazard.store(std::ptr::null_mut(), Ordering::Relaxed);
        }
        block.serves.region.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// A handler that comes at any moment of an outer one's leaves it its block.
    #[test]
    #[allow(clippy::unwrap_used, reason = "a test")]
    fn a_block_is_given_back_by_whoever_claimed_it() {
        add(0);
        let outer = claim().unwrap();
        let block = outer.block;
        for _ in 0..2 {
            let nested = Inside::enter(None);
            assert!(std::ptr::eq(nested.block, block));
            drop(nested);
            assert!(own().is_some_and(|own| std::ptr::eq(own, block)), "the nested handler gave it back");
        }
        drop(outer);
        assert!(own().is_none());
    }
}
