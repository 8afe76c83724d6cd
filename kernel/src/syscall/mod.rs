//! System calls: one line each in `table.rs`; here is how a call gets from the table to its function.

mod buffers;
pub mod event;
pub mod file;
mod frames;
pub mod futex;
mod identity;
pub mod managed;
pub mod mm;
pub mod posix_timer;
pub mod process;
mod remote;
mod schedule;
pub mod shm;
pub mod signal;
mod socket;
mod table;
pub mod thread;
pub mod time;
mod userfault;

use crate::{
    errno::{Errno, SysResult},
    hw::TrapFrame,
    stats, task,
};

/// The six arguments of a call, as the program's registers held them.
#[derive(Clone, Copy)]
pub struct Args(pub [u64; 6]);

impl Args {
    /// Argument `i` as an int: its low 32 bits.
    pub fn int(&self, i: usize) -> i32 {
        self.raw(i) as i32
    }
    /// Argument `i` as an unsigned int: its low 32 bits.
    pub fn uint(&self, i: usize) -> u32 {
        self.raw(i) as u32
    }
    /// Argument `i` as a whole register; 0 beyond the sixth.
    pub fn raw(&self, i: usize) -> u64 {
        self.0.get(i).copied().unwrap_or(0)
    }
}

/// How a call is done.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// From its arguments alone.
    Plain(fn(&Args) -> SysResult),
    /// It also reads or replaces the program's registers. `None`: the registers are already as they must be.
    Frame(fn(&Args, &mut TrapFrame) -> Option<SysResult>),
}

/// Do the call that `frame` asks for. `None`: the result register is already set.
pub fn dispatch(frame: &mut TrapFrame) -> Option<SysResult> {
    let args = Args([frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9]);
    let number = frame.orig_rax;
    if number < managed::FIRST
        && task::current().upcall.is_armed()
        && let Err(errno) = buffers::check(number, &args)
    {
        return Some(Err(errno));
    }
    match table::find(number).or_else(|| managed::find(number)) {
        Some(Handler::Plain(f)) => Some(f(&args)),
        Some(Handler::Frame(f)) => f(&args, frame),
        None => {
            stats::unknown_syscall(number);
            Some(Err(Errno::ENOSYS))
        }
    }
}
