//! Upcalls: an access that a page's level forbids is given to the program itself, without a signal.
//!
//! A thread says where it takes upcalls: an entry point and a stack. When an access of its faults for the level of a managed
//! page, the kernel stores a [`Frame`] on that stack and lets the thread go on at the entry point, RSP at the frame and all
//! other registers as they were. Nothing else is saved: no floating-point state, no mask of signals. The program raises the
//! level and goes on where it was, or elsewhere, by one call ([`resume`]).
//!
//! ```text
//! base                                          RSP at the entry point
//! | top |   ...  room for the handler  ...     | frame, 18 words | ...      | base + len
//! ```
//! **Nesting.** The word at `base`, *top*, says down to where the stack is in use: the kernel sets it to the frame that it makes, and
//! keeps what it was in that frame, from where `resume` puts it back. Within an upcall
//! the next frame goes below RSP and its red zone. If RSP is elsewhere while the stack is in use, a signal has come
//! during an upcall, and has a stack of its own; then the frame goes [`RESERVE`] below *top*, which is more than a handler
//! may use. A thread whose stack has no room for a frame, or can't be written, is killed.
//!
//! **System calls.** A copy that meets a level fails, as if the page weren't mapped, and what it met is kept here. If the call then
//! says EFAULT it had no effect yet, or none that matters (`syscall/buffers.rs` sees to that); so the thread's RIP goes back to the
//! `syscall` instruction, and the upcall is as for an access by that. When the page is raised the call starts over. A store that
//! comes too late for that is owed (`upcall/owed.rs`).
//!
//! **Raising on the way back.** A library that stores a page's level before [`resume`] raises it must not lower the page in
//! between. It is told when that is over by a word, of which `resume` clears bits.
//!
//! The program writes frames as it likes. What is taken from one is checked as that of a signal.

use core::sync::atomic::{AtomicU64, Ordering};

use addr::{USER_END, VirtAddr};
use aspace::{Access, Level, Step};
use linux_raw_sys::general as abi;

use crate::{
    errno::{Errno, SysResult},
    fault,
    hw::TrapFrame,
    pod,
    process::{self, Status},
    rseq,
    stats::{self, Counter},
    task, usercopy,
};

mod owed;
pub use owed::{is_again, owe, owed, pay};

/// What the program finds on its stack. The first five words are as an exception has them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Frame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    /// The address that was accessed, and how, as in the page-fault error code.
    address: u64,
    error: u64,
    /// The page's level.
    level: u64,
    /// What the thread has said with the stack.
    cookie: u64,
    /// What *top* was.
    top: u64,
    /// For the program to say: an aligned word of 32 bits, in which [`resume`] clears the bits of `mask` when the page was
    /// raised; none if 0.
    word: u64,
    mask: u64,
    /// For the program to save RAX, RDI, RSI, RDX, RCX and R11, which a call needs; [`resume`] loads them.
    saved: [u64; 6],
}
pod!(Frame);

const FRAME: u64 = size_of::<Frame>() as u64;
/// Bytes below RSP that are in use (System V ABI, AMD64, 3.2.2).
const RED_ZONE: u64 = 128;
/// Bytes of the stack that a handler may use, with what it saves of the thread.
const RESERVE: u64 = 28 << 10;
/// So many bytes are left below a frame, or the thread has no room for it.
const LEAST: u64 = 4 << 10;
/// Flags that the program may set, and those that are cleared at the entry point: as for signals (`signal::frame`).
const USER_FLAGS: u64 = 0x5_0dd5;
const CLEARED: u64 = 0x1_0500;
/// The length of `syscall`.
const SYSCALL: u64 = 2;
/// The code of a user's access that the page table forbids.
const PRESENT: u64 = 1;

/// A thread's part. It is for the thread itself, so everything in it is Relaxed.
pub struct State {
    /// 0 if it takes no upcalls.
    entry: AtomicU64,
    base: AtomicU64,
    end: AtomicU64,
    cookie: AtomicU64,
    /// What a copy has met in this call: the address, and in its lowest bits that there is one, and whether it was to be
    /// written. 0 if nothing.
    met: AtomicU64,
    /// What its calls have yet to store.
    debts: owed::Debts,
}

/// Bits of [`State::met`]: a page's first bits are not used otherwise.
const MET: u64 = 1;
const MET_WRITE: u64 = 2;

impl State {
    /// It takes none.
    pub const fn new() -> Self {
        let [entry, base, end, cookie, met] = [const { AtomicU64::new(0) }; 5];
        Self { entry, base, end, cookie, met, debts: owed::Debts::new() }
    }
    /// Whether it takes upcalls.
    #[inline]
    pub fn is_armed(&self) -> bool {
        self.entry.load(Ordering::Relaxed) != 0
    }
    /// Take none any more, and owe nothing: `execve`.
    pub fn clear(&self) {
        self.entry.store(0, Ordering::Relaxed);
        self.debts.clear();
    }
    /// Whether the call that has just run owes stores: [`pay`].
    #[inline]
    pub fn owes(&self) -> bool {
        self.debts.is_due()
    }
    /// What the only thread of a forked process begins with. ENOMEM.
    pub fn fork_to(&self, child: &State) -> Result<(), Errno> {
        if !self.is_armed() && !self.debts.has_any() {
            return Ok(());
        }
        for (from, to) in [
            (&self.entry, &child.entry),
            (&self.base, &child.base),
            (&self.end, &child.end),
            (&self.cookie, &child.cookie),
        ] {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.debts.fork_to(&child.debts)
    }
    /// A call begins.
    #[inline]
    pub fn begin_call(&self) {
        self.met.store(0, Ordering::Relaxed);
    }
    /// Whether something was met in this call.
    pub fn has_met(&self) -> bool {
        self.met.load(Ordering::Relaxed) != 0
    }
    /// Whether the call starts over if it says EFAULT now.
    pub fn starts_over(&self) -> bool {
        self.has_met() && self.is_armed() && !self.owes()
    }
    /// A copy for the thread has met the level of the page at `at`, or would.
    pub fn meet(&self, at: u64, access: Access) {
        let write = if access == Access::Write { MET_WRITE } else { 0 };
        self.met.store(at & !(MET | MET_WRITE) | MET | write, Ordering::Relaxed);
    }
}

/// The calling thread is to take upcalls at `entry`, on the `len` bytes at `base`; no more if `entry` is 0.
pub fn set(entry: u64, base: u64, len: u64, cookie: u64) -> SysResult {
    let me = task::current();
    let state = &me.upcall;
    if entry == 0 {
        state.entry.store(0, Ordering::Relaxed);
        return Ok(0);
    }
    let end = base.checked_add(len).filter(|end| *end <= USER_END).ok_or(Errno::EINVAL)?;
    if entry >= USER_END || !(base | len).is_multiple_of(16) || len < LEAST + 2 * FRAME {
        return Err(Errno::EINVAL);
    }
    state.debts.reserve()?;
    usercopy::write(base, &end)?;
    state.base.store(base, Ordering::Relaxed);
    state.end.store(end, Ordering::Relaxed);
    state.cookie.store(cookie, Ordering::Relaxed);
    state.entry.store(entry, Ordering::Relaxed);
    Ok(0)
}

/// The calling thread, in user mode with `frame`, is to have an upcall for an access to `at` that `level` forbids. It takes them.
pub fn deliver(frame: &mut TrapFrame, at: u64, error: u64, level: Level) {
    if make(frame, at, error, level).is_err() {
        crate::log!("thread {}: no room for an upcall at {at:#x}", task::current().tid());
        process::group_exit(Status::killed(abi::SIGSEGV));
    }
}

fn make(frame: &mut TrapFrame, at: u64, error: u64, level: Level) -> Result<(), Errno> {
    // A handler doesn't return into a restartable sequence, but to where that starts again.
    rseq::leave(frame)?;
    let me = task::current();
    let state = &me.upcall;
    let (base, end) = (state.base.load(Ordering::Relaxed), state.end.load(Ordering::Relaxed));
    let top = usercopy::load_word(base)?;
    let used = if base < frame.rsp && frame.rsp <= end {
        frame.rsp - RED_ZONE
    } else if top == end {
        end
    } else {
        top.min(end).saturating_sub(RESERVE)
    };
    let place = used.saturating_sub(FRAME) & !15;
    if place < base + LEAST {
        return Err(Errno::EFAULT);
    }
    let shown = Frame {
        rip: frame.rip,
        cs: frame.cs,
        rflags: frame.rflags,
        rsp: frame.rsp,
        ss: frame.ss,
        address: at,
        error,
        level: level as u64,
        cookie: state.cookie.load(Ordering::Relaxed),
        top,
        word: 0,
        mask: 0,
        saved: [0; 6],
    };
    usercopy::write(place, &shown)?;
    usercopy::store_word(base, place)?;
    state.debts.made(base, place);
    frame.rip = state.entry.load(Ordering::Relaxed);
    frame.rsp = place;
    frame.rflags &= !CLEARED;
    frame.orig_rax = u64::MAX;
    stats::count(Counter::Upcalls);
    Ok(())
}

/// The call of `frame` has said EFAULT. If that was for a level, let the thread have an upcall for it and then call again.
/// False if it was not.
pub fn restart(frame: &mut TrapFrame) -> bool {
    let me = task::current();
    if !me.upcall.starts_over() {
        return false;
    }
    let met = me.upcall.met.swap(0, Ordering::Relaxed);
    let error = PRESENT | fault::ERROR_USER | if met & MET_WRITE != 0 { fault::ERROR_WRITE } else { 0 };
    let at = met & !(MET | MET_WRITE);
    frame.rip = frame.rip.wrapping_sub(SYSCALL);
    frame.rax = frame.orig_rax;
    // What the page allows is for the program to find out.
    deliver(frame, at, error, Level::None);
    true
}

/// The call has done what can't be done again: its EFAULT is for the program.
pub fn forget() {
    task::current().upcall.met.store(0, Ordering::Relaxed);
}

/// Said in the place of a level: the pages stay as they are.
const AS_IT_IS: u64 = 3;

/// Raise the page whose access made the upcall of the frame at `at`, and `count - 1` more, to `level`; then go on where the
/// frame says. On failure the error is the call's, and the thread doesn't go on; pages may have been raised.
pub fn resume(at: u64, level: u64, count: u64, frame: &mut TrapFrame) -> Option<SysResult> {
    go_on(at, level, count, frame).err().map(Err)
}

fn go_on(at: u64, level: u64, count: u64, frame: &mut TrapFrame) -> Result<(), Errno> {
    let me = task::current();
    let f: Frame = usercopy::read(at)?;
    if VirtAddr::new(f.rip).is_none() {
        return Err(Errno::EFAULT);
    }
    if level != AS_IT_IS {
        raise(f.address, level, count)?;
        if f.word != 0 {
            usercopy::clear_bits_u32(f.word, f.mask as u32)?;
        }
    }
    usercopy::store_word(me.upcall.base.load(Ordering::Relaxed), f.top)?;
    (frame.rip, frame.rsp) = (f.rip, f.rsp);
    frame.rflags = frame.rflags & !USER_FLAGS | f.rflags & USER_FLAGS;
    [frame.rax, frame.rdi, frame.rsi, frame.rdx, frame.rcx, frame.r11] = f.saved;
    frame.orig_rax = u64::MAX;
    me.upcall.debts.resumed(at, f.rip);
    Ok(())
}

fn raise(at: u64, level: u64, count: u64) -> Result<(), Errno> {
    let first = VirtAddr::user(at).ok_or(Errno::EINVAL)?.page();
    let level = *Level::ALL.get(level as usize).ok_or(Errno::EINVAL)?;
    let mm = task::current().lend_mm().ok_or(Errno::EINVAL)?;
    let managed = mm.aspace.managed().ok_or(Errno::ENOSYS)?;
    let ctx = task::unpinned();
    managed.grant(first, level, &ctx).map_err(crate::syscall::mm::errno)?;
    if count > 1 {
        let more = first.checked_add(1).and_then(|next| addr::PageRange::with_len(next, count - 1));
        let range = more.ok_or(Errno::EINVAL)?;
        managed.set_levels(&[Step { range, level, raise: true }], &ctx).map_err(crate::syscall::mm::errno)?;
    }
    Ok(())
}
