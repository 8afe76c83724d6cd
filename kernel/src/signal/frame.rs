//! The signal frame: what a handler finds on its stack, and what `rt_sigreturn` takes back.
//!
//! ```text
//! higher   the interrupted stack, its red zone of 128 bytes; or the top of the alternate stack
//!          XSAVE area, 64-byte aligned, then FP_XSTATE_MAGIC2
//!          siginfo            si for the handler
//!          ucontext           rdx for the handler
//! rsp ->   pretcode           where the handler returns to: sa_restorer, which calls rt_sigreturn
//! lower    rsp + 8 is 16-byte aligned, as after a call
//! ```
//! The layout is Linux's `struct rt_sigframe` (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h, uapi/asm/ucontext.h).
//!
//! A program may return through a frame that it made up, so [`sigreturn`] believes nothing: the segments are those of
//! user mode, of the flags only those count that user code may change, the instruction pointer must be canonical, and
//! of the XSAVE area only components that the machine has, in the standard format, with no reserved bit set.

use alloc::vec::Vec;

use super::{Action, AltStack, SigInfo, SigSet, Signal, TrapCause, force, set_blocked};
use crate::{
    errno::{Errno, SysResult},
    hw::{TrapFrame, fpu},
    task, upcall, usercopy,
};

/// `struct sigcontext_64`.
#[derive(Clone, Copy)]
#[repr(C)]
struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    /// Address of the XSAVE area, or 0.
    fpstate: u64,
    reserved: [u64; 8],
}

/// `stack_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct StackT {
    sp: u64,
    flags: u32,
    pad: u32,
    size: u64,
}

/// `struct ucontext`, with the kernel's mask of 8 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
struct UContext {
    flags: u64,
    link: u64,
    stack: StackT,
    mcontext: SigContext,
    mask: SigSet,
}

/// `struct rt_sigframe`.
#[derive(Clone, Copy)]
#[repr(C)]
struct SigFrame {
    pretcode: u64,
    uc: UContext,
    info: SigInfo,
}
crate::pod!(SigContext, StackT, UContext, SigFrame);

const _: () =
    assert!(size_of::<SigContext>() == 256 && size_of::<UContext>() == 304 && size_of::<SigFrame>() == 440);

const INFO_OFFSET: u64 = core::mem::offset_of!(SigFrame, info) as u64;
const UC_OFFSET: u64 = core::mem::offset_of!(SigFrame, uc) as u64;

/// `uc_flags`: the area is XSAVE's.
const UC_FP_XSTATE: u64 = 1;
/// `uc_flags`: `ss` is saved.
const UC_SIGCONTEXT_SS: u64 = 2;
/// `uc_flags`: `ss` is restored as it is, even if it is no good.
const UC_STRICT_RESTORE_SS: u64 = 4;
const RED_ZONE: u64 = 128;

/// The XSAVE area's `sw_reserved` bytes: magic1, extended size, features (8 bytes), XSAVE size.
const SW_RESERVED: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const MAGIC2_BYTES: usize = 4;
/// The area of FXSAVE, and the XSAVE header after it.
const LEGACY_BYTES: usize = 512;
const HEADER_BYTES: usize = 64;
const MXCSR: usize = 24;

/// Flags that user code may set: CF PF AF ZF SF TF DF OF RF AC.
const USER_FLAGS: u64 = 0x5_0dd5;
/// Cleared for a handler: TF, DF, RF.
const HANDLER_CLEARS: u64 = 0x1_0500;

/// `stack_t` of the thread's alternate stack as a saved context shows it.
impl From<AltStack> for StackT {
    fn from(s: AltStack) -> Self {
        Self { sp: s.base, flags: s.flags, pad: 0, size: s.size }
    }
}

/// Build the frame for `signal` on the user's stack and point `frame` at the handler. EFAULT if the stack can't take
/// it; then only memory below the stack pointer has changed.
pub(super) fn push(
    frame: &mut TrapFrame,
    signal: Signal,
    info: &SigInfo,
    action: &Action,
) -> Result<(), Errno> {
    if action.flags & Action::RESTORER == 0 {
        return Err(Errno::EFAULT);
    }
    let me = task::current();
    let (alt, trap, mask, blocked) = {
        let t = me.signals.lock();
        (t.alt_stack, t.trap, t.saved.unwrap_or(t.blocked), t.blocked)
    };

    let xstate = saved_xstate()?;
    let switching = action.flags & Action::ONSTACK != 0 && alt.status(frame.rsp) == 0;
    let top = if switching { alt.base.wrapping_add(alt.size) } else { frame.rsp.wrapping_sub(RED_ZONE) };
    let fpstate = top.wrapping_sub(xstate.len() as u64) & !63;
    let at = (fpstate.wrapping_sub(size_of::<SigFrame>() as u64) & !15).wrapping_sub(8);
    if (switching || alt.in_use(frame.rsp)) && !alt.contains(at) {
        return Err(Errno::EFAULT);
    }

    let sigframe = SigFrame {
        pretcode: action.restorer,
        uc: UContext {
            flags: UC_SIGCONTEXT_SS
                | UC_STRICT_RESTORE_SS
                | if fpu::features() != 0 { UC_FP_XSTATE } else { 0 },
            link: 0,
            stack: alt.into(),
            mcontext: context(frame, &trap, mask, fpstate),
            mask,
        },
        info: *info,
    };
    usercopy::copy_out(fpstate, &xstate)?;
    usercopy::write(at, &sigframe)?;

    frame.rdi = u64::from(signal.number());
    frame.rsi = at + INFO_OFFSET;
    frame.rdx = at + UC_OFFSET;
    frame.rax = 0;
    frame.rsp = at;
    frame.rip = action.handler;
    frame.rflags &= !HANDLER_CLEARS;
    frame.orig_rax = u64::MAX;
    me.thread.with_xstate(fpu::XState::reset);

    let during = if action.flags & Action::NODEFER != 0 { action.mask } else { action.mask.with(signal) };
    _ = me.signals.take_saved();
    let restart = {
        let mut t = me.signals.lock();
        if alt.flags & AltStack::AUTODISARM != 0 {
            t.alt_stack = AltStack::NONE;
        }
        // A `restart_syscall` after this handler must not find what an outer call had left.
        t.restart.take()
    };
    drop(restart);
    set_blocked(blocked.or(during));
    Ok(())
}

/// The thread's floating-point state as the frame holds it.
fn saved_xstate() -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(fpu::size() + MAGIC2_BYTES).map_err(|_| Errno::ENOMEM)?;
    task::current().thread.with_xstate(|x| bytes.extend_from_slice(x.bytes())).ok_or(Errno::EFAULT)?;
    let features = fpu::features();
    if features != 0 {
        let size = bytes.len() as u32;
        let extended = size + MAGIC2_BYTES as u32;
        let mut software = [0; LEGACY_BYTES - SW_RESERVED];
        let words = [FP_XSTATE_MAGIC1, extended, features as u32, (features >> 32) as u32, size];
        for (to, word) in software.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes.get_mut(SW_RESERVED..LEGACY_BYTES).ok_or(Errno::EFAULT)?.copy_from_slice(&software);
        bytes.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    }
    Ok(bytes)
}

fn context(f: &TrapFrame, trap: &TrapCause, mask: SigSet, fpstate: u64) -> SigContext {
    SigContext {
        r8: f.r8,
        r9: f.r9,
        r10: f.r10,
        r11: f.r11,
        r12: f.r12,
        r13: f.r13,
        r14: f.r14,
        r15: f.r15,
        rdi: f.rdi,
        rsi: f.rsi,
        rbp: f.rbp,
        rbx: f.rbx,
        rdx: f.rdx,
        rax: f.rax,
        rcx: f.rcx,
        rsp: f.rsp,
        rip: f.rip,
        rflags: f.rflags,
        cs: f.cs as u16,
        gs: 0,
        fs: 0,
        ss: f.ss as u16,
        err: trap.error,
        trapno: trap.vector,
        oldmask: mask.0,
        cr2: trap.address,
        fpstate,
        reserved: [0; 8],
    }
}

/// `rt_sigreturn`: continue where the frame on the user's stack says. A frame that can't be read or believed is
/// SIGSEGV.
pub fn sigreturn(frame: &mut TrapFrame) {
    // Whatever comes back in rax is no result of this call.
    frame.orig_rax = u64::MAX;
    if restore(frame).is_err() {
        force(SigInfo::kernel(Signal::SEGV.number()), false);
    }
}

fn restore(frame: &mut TrapFrame) -> Result<(), Errno> {
    // The handler's `ret` has popped pretcode.
    let uc: UContext = usercopy::read(frame.rsp.wrapping_sub(8).wrapping_add(UC_OFFSET))?;
    let c = &uc.mcontext;
    // Linux takes what the frame says and lets the return fault; the only segments without a fault are these.
    let segments = u64::from(c.cs | 3) == frame.cs
        && (u64::from(c.ss | 3) == frame.ss || uc.flags & UC_STRICT_RESTORE_SS == 0);
    if !segments || addr::VirtAddr::new(c.rip).is_none() {
        return Err(Errno::EFAULT);
    }
    restore_xstate(c.fpstate)?;
    set_blocked(uc.mask);
    let f = frame;
    (f.r8, f.r9, f.r10, f.r11) = (c.r8, c.r9, c.r10, c.r11);
    (f.r12, f.r13, f.r14, f.r15) = (c.r12, c.r13, c.r14, c.r15);
    (f.rdi, f.rsi, f.rbp, f.rbx) = (c.rdi, c.rsi, c.rbp, c.rbx);
    (f.rdx, f.rax, f.rcx, f.rsp, f.rip) = (c.rdx, c.rax, c.rcx, c.rsp, c.rip);
    f.rflags = f.rflags & !USER_FLAGS | c.rflags & USER_FLAGS;
    // What `sigaltstack` would refuse is left as it is.
    let stack = AltStack { base: uc.stack.sp, flags: uc.stack.flags, size: uc.stack.size };
    let _ = set_alt_stack(stack, f.rsp);
    Ok(())
}

/// Load the area at `at` into the thread's registers; the initial state if 0. As on Linux, an area whose magic numbers
/// or sizes don't fit counts only for its first 512 bytes, and one that XRSTOR would fault on is refused.
fn restore_xstate(at: u64) -> Result<(), Errno> {
    let me = task::current();
    if at == 0 {
        me.thread.with_xstate(fpu::XState::reset);
        return Ok(());
    }
    if !at.is_multiple_of(64) {
        return Err(Errno::EFAULT);
    }
    let mut area = Vec::new();
    area.try_reserve_exact(fpu::size()).map_err(|_| Errno::ENOMEM)?;
    area.resize(LEGACY_BYTES, 0);
    usercopy::copy_in(at, &mut area)?;
    let (magic1, extended, used) = (
        word(&area, SW_RESERVED),
        word(&area, SW_RESERVED + 4) as usize,
        word(&area, SW_RESERVED + 16) as usize,
    );
    if fpu::features() != 0
        && magic1 == FP_XSTATE_MAGIC1
        && used == fpu::size()
        && extended >= used + MAGIC2_BYTES
        && usercopy::read::<u32>(at + used as u64)? == FP_XSTATE_MAGIC2
    {
        area.resize(used, 0);
        usercopy::copy_in(at + LEGACY_BYTES as u64, area.get_mut(LEGACY_BYTES..).unwrap_or_default())?;
    }
    if !acceptable(&area) {
        return Err(Errno::EFAULT);
    }
    me.thread.with_xstate(|x| {
        x.reset();
        if let Some(bytes) = x.bytes_mut().get_mut(..area.len()) {
            bytes.copy_from_slice(&area);
        }
    });
    Ok(())
}

/// Whether XRSTOR takes `area` (Intel SDM vol. 1, 13.8.1 and 13.4.2): no reserved bit of MXCSR; if there is a header,
/// only components that the machine has, in the standard format, and no reserved byte.
fn acceptable(area: &[u8]) -> bool {
    let header = area.get(LEGACY_BYTES..LEGACY_BYTES + HEADER_BYTES).unwrap_or_default();
    let present = u64::from(word(header, 0)) | u64::from(word(header, 4)) << 32;
    word(area, MXCSR) & !fpu::mxcsr_mask() == 0
        && present & !fpu::features() == 0
        && header.get(8..).is_none_or(|rest| *rest == [0; HEADER_BYTES - 8])
}

/// The little-endian u32 at byte `at`.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Change the calling thread's alternate stack, with its stack pointer at `sp`. EPERM while running on the old one,
/// EINVAL for unknown flags, ENOMEM below MINSIGSTKSZ.
pub(super) fn set_alt_stack(new: AltStack, sp: u64) -> Result<(), Errno> {
    const MINSIGSTKSZ: u64 = 2048;
    let me = task::current();
    let mut t = me.signals.lock();
    if t.alt_stack.in_use(sp) {
        return Err(Errno::EPERM);
    }
    let mode = new.flags & !AltStack::AUTODISARM;
    if mode != 0 && mode != AltStack::ONSTACK && mode != AltStack::DISABLE {
        return Err(Errno::EINVAL);
    }
    t.alt_stack = match mode {
        AltStack::DISABLE => AltStack { base: 0, flags: new.flags, size: 0 },
        _ if new.size < MINSIGSTKSZ => return Err(Errno::ENOMEM),
        _ => new,
    };
    Ok(())
}

/// `sigaltstack`: set the stack at `new` if not 0, and say at `old` if not 0 what was there. `sp` is the thread's stack
/// pointer.
pub fn sigaltstack(new: u64, old: u64, sp: u64) -> SysResult {
    let before = *task::current().signals.lock().alt_stack();
    if new != 0 {
        let s: StackT = usercopy::read(new)?;
        set_alt_stack(AltStack { base: s.sp, flags: s.flags, size: s.size }, sp)?;
    }
    if old != 0 {
        let flags = before.status(sp) | before.flags & AltStack::AUTODISARM;
        let told = StackT { sp: before.base, flags, pad: 0, size: before.size };
        upcall::owed(|| usercopy::write(old, &told))?;
    }
    Ok(0)
}
