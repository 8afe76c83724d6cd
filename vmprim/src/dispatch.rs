//! The handlers of SIGSEGV and SIGBUS: which faults are ours, and what becomes of the others.
//!
//! Ours is a fault that the memory system raised (by its `si_code`), not of an instruction
//! fetch, at an address in a region. Every other signal goes to the handler that was there before, with the mask
//! and flags it asked for; where there was none, the default is restored and the access is repeated, so that the
//! process ends, and its core shows, as if we had never been there. Rust's report of stack overflow is such a
//! handler.
//!
//! Memory that was adopted is used on when its region goes. All its pages are open before the region leaves the table;
//! but a thread that faulted before that may look into the table after. It cannot be told from one whose fault is
//! nobody's, except by repeating the access, once for each time that memory was given back: a fault that is no region's
//! is handed on when the same comes again after as many.
//!
//! A signal that comes on a small alternate stack goes on on the block's. Whoever runs on a stack other than the one
//! registered may be interrupted by a handler that is put on the registered one's top, over frames in use. So other
//! signals are blocked while the two differ: from before the switch until the block's stack is registered, and from
//! before the switch back until the kernel, with the return from the signal, registers the old stack and restores
//! the mask. The block is given back within that second stretch.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    ffi::{c_int, c_void},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering, compiler_fence},
    },
};

use sync::mutant;

use crate::{
    access::Kind,
    error::{Errno, Error},
    fault::{self, Outcome, Place},
    sys, table,
    thread::{self, Block, DEPTH, Inside},
};

/// The signals that faults arrive as.
const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];
/// The kernel does not know the address (it is not canonical).
const SI_KERNEL: c_int = 0x80;
/// The codes of faults that levels, or missing frames, raise. Others are of other things: broken memory, protection
/// keys.
const SEGV_MAPERR: c_int = 1;
const SEGV_ACCERR: c_int = 2;
const BUS_ADRERR: c_int = 2;
/// Bytes of stack between a handler and one that it calls, at most.
const NEAR: usize = 1 << 20;
/// Bits of the page fault's error code.
const ERROR_WRITE: i64 = 1 << 1;
const ERROR_FETCH: i64 = 1 << 4;

/// A handler that was there before, and the one before it.
struct Chained {
    action: libc::sigaction,
    /// It asked to be called once (SA_RESETHAND), and was.
    spent: AtomicBool,
    next: *const Chained,
}

static CHAINS: [AtomicPtr<Chained>; 2] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 2];
/// Incremented in the child of each fork.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Which process of a line of forks this is.
pub fn generation() -> u32 {
    // Relaxed: changed only where there is one thread.
    FORKS.load(Ordering::Relaxed)
}

fn chain(signal: c_int) -> Option<&'static AtomicPtr<Chained>> {
    CHAINS.get(usize::from(signal == libc::SIGBUS))
}

fn os(op: &'static str) -> Error {
    Error::Os { op, errno: Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

fn action_of(signal: c_int) -> Result<libc::sigaction, Error> {
    // SAFETY: zeros are a valid structure, and it is valid for the call.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        match libc::sigaction(signal, std::ptr::null(), &raw mut action) {
            0 => Ok(action),
            _ => Err(os("sigaction")),
        }
    }
}

fn is_ours(action: &libc::sigaction) -> bool {
    action.sa_sigaction == on_signal as *const () as usize
}

/// Install our handler of a signal, with the present one behind it.
fn claim(signal: c_int) -> Result<(), Error> {
    let before = action_of(signal)?;
    if is_ours(&before) {
        return Ok(());
    }
    if let Some(chain) = chain(signal) {
        // Acquire and Release, here and in `forward`: who reads a link sees what it links.
        let next = chain.load(Ordering::Acquire);
        // Leaked: a handler on another CPU may be about to call it, for ever.
        chain.store(
            Box::leak(Box::new(Chained { action: before, spent: AtomicBool::new(false), next })),
            Ordering::Release,
        );
    }
    // SAFETY: zeros are a valid structure; the handler is one for SA_SIGINFO, and is called with signals in any
    // state.
    unsafe {
        let mut ours = std::mem::zeroed::<libc::sigaction>();
        ours.sa_sigaction = on_signal as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        match libc::sigaction(signal, &raw const ours, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(os("sigaction")),
        }
    }
}

extern "C" fn before_fork() {
    table::lock_updates();
}
extern "C" fn after_fork_in_parent() {
    table::unlock_updates();
}
extern "C" fn after_fork_in_child() {
    table::forget_all();
    thread::forget_other_threads();
    // Relaxed: one thread.
    FORKS.fetch_add(1, Ordering::Relaxed);
    table::unlock_updates();
}

/// Install the handlers if they never were; say so if somebody has replaced them since.
pub fn install() -> Result<(), Error> {
    static INSTALLED: OnceLock<Result<(), Error>> = OnceLock::new();
    let mut first = false;
    INSTALLED
        .get_or_init(|| {
            first = true;
            // The variable that names a seeded fault is read here, not in a handler.
            let _ = mutant!("");
            // SAFETY: the three functions may be called at any fork.
            unsafe {
                libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child))
            };
            SIGNALS.into_iter().try_for_each(claim)
        })
        .clone()?;
    for signal in SIGNALS {
        if !first && !is_ours(&action_of(signal)?) {
            return Err(Error::HandlerReplaced { signal });
        }
    }
    Ok(())
}

/// Install the library's signal handlers again, in front of those that have replaced them. Faults that are no
/// region's go on to these.
///
/// # Errors
/// [`Error::Os`] if the kernel refuses.
pub fn claim_signals() -> Result<(), Error> {
    SIGNALS.into_iter().try_for_each(claim)
}

/// What the kernel passed.
struct Passed {
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    inside: Inside,
    /// The stack to register, and the signals to block once it is.
    stack: Option<(libc::stack_t, libc::sigset_t)>,
}

/// Block all signals but those of faults; which were blocked before.
fn block_signals() -> libc::sigset_t {
    // SAFETY: zeros are a valid set, and both are valid for the calls.
    unsafe {
        let (mut most, mut before) = std::mem::zeroed::<(libc::sigset_t, libc::sigset_t)>();
        libc::sigfillset(&raw mut most);
        for signal in SIGNALS {
            libc::sigdelset(&raw mut most, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const most, &raw mut before);
        before
    }
}

/// What the kernel calls.
unsafe extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the location is this thread's own.
    let errno = unsafe { libc::__errno_location().read() };
    // SAFETY: the kernel passes it, valid for the handler's time.
    let came_on = unsafe { (*context.cast::<libc::ucontext_t>()).uc_stack };
    let inside = Inside::enter(Some(&came_on));
    let stack = inside.roomier(&came_on).map(|stack| (stack, block_signals()));
    let mut passed = Passed { signal, info, context, inside, stack };
    match stack {
        // SAFETY: what the kernel passed.
        None => unsafe { on_any_stack(&raw mut passed) },
        Some((stack, _)) => {
            let top = (stack.ss_sp as usize).wrapping_add(stack.ss_size);
            // SAFETY: the block's stack is nobody else's now; its top is aligned as a call wants it, and r12 keeps
            // ours.
            unsafe {
                std::arch::asm!(
                    "mov r12, rsp",
                    "mov rsp, {top}",
                    "call {body}",
                    "mov rsp, r12",
                    top = in(reg) top,
                    body = sym on_any_stack,
                    in("rdi") &raw mut passed,
                    out("r12") _,
                    clobber_abi("C"),
                );
            }
        }
    }
    // With signals blocked if the block's stack is still registered.
    drop(passed);
    // SAFETY: see above.
    unsafe { libc::__errno_location().write(errno) };
}

/// The rest of the handler.
unsafe extern "C" fn on_any_stack(passed: *mut Passed) {
    // SAFETY: the caller's, and nothing else uses it meanwhile.
    let Passed { signal, info, context, ref inside, stack } = *unsafe { &mut *passed };
    if let Some((stack, mask)) = stack {
        // SAFETY: the structures are valid for the calls. The stack registered before is not the one that this runs on.
        unsafe {
            libc::sigaltstack(&raw const stack, std::ptr::null_mut());
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut());
        }
    }
    // SAFETY: the kernel passes both, valid for the handler's time; nothing else refers to them.
    let (code, address, frame) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, &mut *context.cast::<libc::ucontext_t>()) };
    let registers = &mut frame.uc_mcontext.gregs;
    let register = |at: c_int| registers.get(at as usize).copied().unwrap_or(0);
    let (error, pc) = (register(libc::REG_ERR), register(libc::REG_RIP) as usize);
    let mut outcome = Outcome::Forward;
    let of_memory = match signal {
        libc::SIGBUS => code == BUS_ADRERR,
        _ => code == SEGV_MAPERR || code == SEGV_ACCERR,
    };
    if of_memory && error & ERROR_FETCH == 0 {
        let kind = if error & ERROR_WRITE != 0 { Kind::Write } else { Kind::Read };
        outcome = ours(inside.block, address, Place { kind, pc, signal, upcall: false });
    }
    match outcome {
        // Signals leave nothing for later.
        Outcome::Resume { .. } | Outcome::Raise(_) => {}
        Outcome::Divert(to) => {
            if let Some(place) = registers.get_mut(libc::REG_RIP as usize) {
                *place = to as i64;
            }
        }
        Outcome::Forward => {
            let block = inside.block;
            // A handler that was there before may call us, as the one before it; or leave by a jump, and never
            // return here. In the first case we are called below the place of the last call, and with its context,
            // which is that of no other signal then. Relaxed, all: this thread's own.
            let here = std::ptr::from_ref(&outcome) as usize;
            let last = block.forward_at.load(Ordering::Relaxed);
            let (of, last_of) = (context as usize, block.forward_of.load(Ordering::Relaxed));
            let nested = here < last && last.wrapping_sub(here) < NEAR && of == last_of;
            let before = block.forwards.load(Ordering::Relaxed);
            let nth = if nested { before.wrapping_add(1) } else { 0 };
            block.forward_at.store(here, Ordering::Relaxed);
            block.forward_of.store(of, Ordering::Relaxed);
            block.forwards.store(nth, Ordering::Relaxed);
            // SAFETY: what the kernel passed is passed on.
            unsafe { forward(nth, signal, code, info, context) };
            block.forward_at.store(last, Ordering::Relaxed);
            block.forward_of.store(last_of, Ordering::Relaxed);
            block.forwards.store(before, Ordering::Relaxed);
        }
    }
    if stack.is_some() {
        // Until the return from the signal, which restores what was blocked.
        block_signals();
    }
}

/// Resolve a fault at `address` if a region is there.
#[inline]
pub fn ours(block: &'static Block, address: usize, place: Place) -> Outcome {
    // Relaxed, all: this thread's own; updaters look at the frames alone.
    let depth = block.depth.load(Ordering::Relaxed);
    let Some(held) = block.frames.get(depth) else {
        // Every frame is in use: is this a fifth fault, or none of ours?
        sys::die(&["vmprim: handlers faulted ", sys::Digits::new(DEPTH, 10).as_str(), " deep\n"]);
    };
    block.depth.store(depth.wrapping_add(1), Ordering::Relaxed);
    // A signal that comes from here on finds its own frame above.
    compiler_fence(Ordering::SeqCst);
    let Some(region) = table::find(address, held) else {
        block.depth.store(depth, Ordering::Relaxed);
        let may_be_late = is_first(block, address, place.pc, table::given_back());
        return if may_be_late { Outcome::Resume { raised: false } } else { Outcome::Forward };
    };
    let (page, offset) = region.page_of(address);
    held.page.store(page.0, Ordering::Relaxed);
    let outcome = fault::resolve(region, block, page, offset, place);
    // Release: an updater that sees it may free the region; all uses come first. Pairs with its SeqCst load.
    held.region.store(0, Ordering::Release);
    // The frame is given up last.
    compiler_fence(Ordering::SeqCst);
    block.depth.store(depth, Ordering::Relaxed);
    outcome
}

/// Whether a fault that is no region's is the thread's first at its place since the last of so many memories was
/// given back, if any was.
fn is_first(block: &Block, address: usize, pc: usize, given_back: usize) -> bool {
    if given_back == 0 {
        return false;
    }
    let me = sys::gettid();
    // Relaxed, all: the block is this thread's now; what another left there is told by its number.
    let last = (
        block.stray_by.swap(me, Ordering::Relaxed),
        block.stray_pc.swap(pc, Ordering::Relaxed),
        block.stray_at.swap(address, Ordering::Relaxed),
        block.stray_after.swap(given_back, Ordering::Relaxed),
    );
    last != (me, pc, address, given_back)
}

/// Hand a signal on to the `nth` handler that was there before ours.
///
/// # Safety
/// `info` and `context` are what the kernel passed.
unsafe fn forward(nth: usize, signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let mut link: *const Chained = match chain(signal) {
        // Acquire: pairs with Release in `claim`.
        Some(chain) if !mutant!("vmprim-no-chaining") => chain.load(Ordering::Acquire),
        _ => std::ptr::null(),
    };
    for _ in 0..nth {
        // SAFETY: links live for ever.
        link = unsafe { link.as_ref() }.map_or(std::ptr::null(), |chained| chained.next);
    }
    // SAFETY: links live for ever.
    let chained = unsafe { link.as_ref() };
    // Its time is over before it is called, as where the kernel calls it. Relaxed: of threads that fault at once, one calls it.
    let is_left = |chained: &&Chained| {
        chained.action.sa_flags & libc::SA_RESETHAND == 0
            || !chained.spent.swap(true, Ordering::Relaxed)
            || mutant!("vmprim-called-twice")
    };
    let before = chained.filter(is_left).map(|chained| &chained.action);
    let sent = code <= 0;
    match before {
        Some(action) if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN => {
            // SAFETY: the sets are valid for the calls; the handler is called as it asked to be.
            unsafe {
                let mut mask = action.sa_mask;
                let mut old = std::mem::zeroed::<libc::sigset_t>();
                if action.sa_flags & libc::SA_NODEFER == 0 {
                    libc::sigaddset(&raw mut mask, signal);
                }
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, &raw mut old);
                if action.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler = std::mem::transmute::<
                        usize,
                        unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void),
                    >(action.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler =
                        std::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(action.sa_sigaction);
                    handler(signal);
                }
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
            }
        }
        Some(action) if action.sa_sigaction == libc::SIG_IGN && sent => {}
        _ => {
            // SAFETY: zeros and SIG_DFL are a valid action; a signal that was sent is sent again, as the access that
            // would raise it does not repeat it.
            unsafe {
                let mut default = std::mem::zeroed::<libc::sigaction>();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                if sent || code == SI_KERNEL {
                    libc::raise(signal);
                }
            }
        }
    }
}
