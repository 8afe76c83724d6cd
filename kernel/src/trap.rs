//! Everything that enters the kernel: exceptions, interrupts, system calls; and the way back to user mode.
//!
//! The assembly in `hw` saves the registers and calls [`trap`] or [`syscall`] with interrupts off, and restores them
//! when the call returns, with interrupts off. Exceptions from user mode, and faults in copies, run with interrupts on;
//! so do system calls.

use linux_raw_sys::general as abi;

use addr::VirtAddr;

use crate::{
    algo,
    errno::Errno,
    fault, grace,
    hw::{self, TrapFrame, apic, cpu, irq, marker},
    oom, panic,
    planted::{self, Planted},
    realm, reclaim, rseq, sched, shootdown,
    signal::{self, SigInfo, code},
    stats::{self, Counter},
    syscall as calls, task, upcall, usercopy,
};

/// Exception vectors (Intel SDM vol. 3A, table 6-1).
const DIVIDE_ERROR: u64 = 0;
const DEBUG: u64 = 1;
const NMI: u64 = 2;
const BREAKPOINT: u64 = 3;
const OVERFLOW: u64 = 4;
const BOUND: u64 = 5;
const INVALID_OPCODE: u64 = 6;
const NO_DEVICE: u64 = 7;
const DOUBLE_FAULT: u64 = 8;
const SEGMENT_NOT_PRESENT: u64 = 11;
const STACK_FAULT: u64 = 12;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
const X87: u64 = 16;
const ALIGNMENT: u64 = 17;
const MACHINE_CHECK: u64 = 18;
const SIMD: u64 = 19;

/// An exception or interrupt; its vector is in `orig_rax`. Entered and left with interrupts off.
pub extern "C" fn trap(frame: &mut TrapFrame) {
    let vector = frame.orig_rax;
    if frame.is_user() {
        // Not a system call: nothing to restart.
        frame.orig_rax = u64::MAX;
        task::current().sched.clock.enter_kernel();
    }
    match vector {
        PAGE_FAULT => page_fault(frame),
        0..32 => exception(frame, vector),
        _ => interrupt(frame, vector as u8),
    }
    if frame.is_user() {
        leave_to_user(frame);
    }
}

fn interrupt(frame: &TrapFrame, vector: u8) {
    cpu::ask();
    match vector {
        apic::VECTOR_TIMER => {
            stats::count(Counter::Ticks);
            apic::eoi();
            sched::on_timer();
        }
        apic::VECTOR_RESCHED => {
            apic::eoi();
            sched::on_kick();
            grace::on_kick();
        }
        apic::VECTOR_FLUSH => {
            apic::eoi();
            let spared = planted::is(Planted::CopyUnflushed) && usercopy::fixup(frame.rip).is_some();
            shootdown::on_request(spared);
        }
        apic::VECTOR_SERIAL => {
            hw::serial::on_interrupt();
            apic::eoi();
        }
        apic::VECTOR_STOP => panic::stop(),
        // The spurious vector needs no acknowledgement; nothing else is ever routed.
        _ => crate::log!("unexpected interrupt {vector} at {:#x}", frame.rip),
    }
}

fn page_fault(frame: &mut TrapFrame) {
    marker::fault();
    let at = cpu::read_cr2();
    let access = fault::access(frame.error);
    let user_half = VirtAddr::user(at);
    let repaired = !frame.is_user() && !planted::is(Planted::CopyUnrepaired);
    let fix = if repaired { usercopy::fixup(frame.rip) } else { None };
    if !frame.is_user() && (fix.is_none() || user_half.is_none()) {
        if let Some(fix) = fix {
            frame.rip = fix;
            return;
        }
        panic::fatal(frame, at);
    }
    // What the exception interrupted had interrupts on: user mode always, copies by contract.
    irq::enable();
    if frame.is_user() && frame.error & fault::ERROR_USER == 0 {
        // What user code makes the processor read as the kernel is in the tables of segments, which are always there.
        // But TCG (7.2) reads what IRET and a far RET pop like that too, which SMAP forbids at any user address:
        // resolving the fault would repeat it for ever.
        signal::force_fault(SigInfo::kernel(abi::SIGSEGV), frame.error, PAGE_FAULT, at);
        irq::disable();
        return;
    }
    let outcome = fault::resolve(at, access, frame.error);
    match (outcome, fix) {
        (Ok(()), _) => {}
        (Err(refused), Some(fix)) => {
            frame.rip = fix;
            if refused.level().is_some() && !task::current().is_visiting() {
                task::current().upcall.meet(at, access);
            }
        }
        (Err(refused), None) => match refused.level().filter(|_| task::current().upcall.is_armed()) {
            Some(level) => upcall::deliver(frame, at, frame.error, level),
            None => signal::force_fault(refused.signal(at), frame.error, PAGE_FAULT, at),
        },
    }
    irq::disable();
}

fn exception(frame: &mut TrapFrame, vector: u64) {
    if vector == NMI {
        return panic::on_nmi();
    }
    if !frame.is_user() {
        panic::fatal(frame, 0);
    }
    irq::enable();
    let rip = frame.rip;
    let (signal, code, address) = match vector {
        DIVIDE_ERROR => (abi::SIGFPE, code::FPE_INTDIV, rip),
        // The program's own trap flag stays set: a handler that doesn't clear it in its context steps on.
        DEBUG => (abi::SIGTRAP, code::TRAP_TRACE, rip),
        BREAKPOINT => (abi::SIGTRAP, code::SI_KERNEL, 0),
        OVERFLOW | BOUND | SEGMENT_NOT_PRESENT | GENERAL_PROTECTION | NO_DEVICE => {
            (abi::SIGSEGV, code::SI_KERNEL, 0)
        }
        STACK_FAULT => (abi::SIGBUS, code::SI_KERNEL, 0),
        INVALID_OPCODE => (abi::SIGILL, code::ILL_ILLOPN, rip),
        X87 | SIMD => (abi::SIGFPE, signal::fpe_code(vector == SIMD), rip),
        ALIGNMENT => (abi::SIGBUS, code::BUS_ADRALN, 0),
        DOUBLE_FAULT | MACHINE_CHECK => panic::fatal(frame, 0),
        _ => (abi::SIGSEGV, code::SI_KERNEL, 0),
    };
    signal::force_fault(SigInfo::fault(signal, code, address), frame.error, vector, cpu::read_cr2());
    irq::disable();
}

/// A system call. Entered and left with interrupts off.
pub extern "C" fn syscall(frame: &mut TrapFrame) {
    stats::count(Counter::Syscalls);
    task::current().sched.clock.enter_kernel();
    irq::enable();
    oom::let_leave();
    task::current().upcall.begin_call();
    let result = calls::dispatch(frame);
    if result == Some(Err(Errno::EFAULT)) && upcall::restart(frame) {
        // The call starts over after the upcall.
    } else if let Some(result) = result {
        frame.rax = match result {
            Ok(v) => v as u64,
            Err(e) => {
                // It may be that the call is to be made again.
                cpu::ask();
                e.as_return()
            }
        };
    }
    let behind = frame.rip;
    irq::disable();
    leave_to_user(frame);
    // After the signals, as it is for what runs next (`upcall/owed.rs`).
    if task::current().upcall.owes() {
        irq::enable();
        upcall::pay(frame, behind);
        irq::disable();
        leave_to_user(frame);
    }
}

/// What must be done before a thread continues in user mode: end if asked to, give way, take signals. Interrupts are
/// off on entry and on return, and nothing was left undone at the instant of the return.
///
/// There is much to look at, and hardly ever anything to do, so the looks are taken only if this CPU's word says so
/// ([`cpu::ask`]): after each interrupt and each switch, and by whoever gives the running thread something to do. What is asked of a
/// thread that runs on another CPU comes with an interrupt ([`sched::kick`], [`reclaim::poke`]).
#[inline]
pub fn leave_to_user(frame: &mut TrapFrame) {
    if cpu::is_asked() {
        attend(frame);
    }
}

#[cold]
#[inline(never)]
fn attend(frame: &mut TrapFrame) {
    loop {
        cpu::take_asked();
        if task::current().is_ending() {
            task::exit_now();
        }
        sched::reschedule();
        if task::current().rseq.is_due() {
            irq::enable();
            if rseq::update(frame).is_err() {
                signal::force_fault(SigInfo::kernel(abi::SIGSEGV), 0, 0, 0);
            }
            irq::disable();
        } else if reclaim::is_to_settle() {
            irq::enable();
            reclaim::settle();
            irq::disable();
        } else if realm::is_due() {
            irq::enable();
            realm::work();
            irq::disable();
        } else if !algo::is_followed() {
            irq::enable();
            algo::follow();
            irq::disable();
        } else if signal::pending() {
            irq::enable();
            signal::deliver(frame);
            irq::disable();
        } else if !signal::settle(frame) {
            reclaim::safe_point();
            task::current().sched.clock.leave_kernel();
            if !cpu::is_asked() {
                return;
            }
        }
    }
}
