//! Page faults of user programs, and of copies on their behalf.

use addr::VirtAddr;
use aspace::{Access, Fault, Level};
use linux_raw_sys::general as abi;

use crate::{
    oom, planted,
    process::{self, Status},
    signal::{SigInfo, code},
    stats::{self, Counter},
    task,
    userfault::{self, Outcome},
};

/// Bits of the page-fault error code (Intel SDM vol. 3A, 4.7).
pub const ERROR_WRITE: u64 = 1 << 1;
/// The access had user mode's rights.
pub const ERROR_USER: u64 = 1 << 2;
const ERROR_RESERVED: u64 = 1 << 3;
const ERROR_FETCH: u64 = 1 << 4;

/// How often a fault asks for room at most: others may be quicker to use what was made.
const ATTEMPTS: u32 = 64;

/// What the access was that faulted with `error`.
pub fn access(error: u64) -> Access {
    if error & ERROR_FETCH != 0 {
        Access::Exec
    } else if error & ERROR_WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// A fault that the address space refused.
#[derive(Clone, Copy)]
pub struct Refused(Fault);

impl Refused {
    /// The page's level, if that was why.
    pub fn level(self) -> Option<Level> {
        if let Fault::Level(level) = self.0 { Some(level) } else { None }
    }
    /// The signal that the program gets for a fault at `at`.
    pub fn signal(self, at: u64) -> SigInfo {
        let (signal, code) = match self.0 {
            Fault::NoMapping | Fault::Guard => (abi::SIGSEGV, code::SEGV_MAPERR),
            Fault::Denied | Fault::Level(_) => (abi::SIGSEGV, code::SEGV_ACCERR),
            Fault::BeyondObject | Fault::Watched => (abi::SIGBUS, code::BUS_ADRERR),
            Fault::Poisoned => return SigInfo::lost(at),
            // It ends already.
            Fault::NoMemory => (abi::SIGKILL, code::SI_KERNEL),
        };
        SigInfo::fault(signal, code, at)
    }
}

/// Make the access at `at` possible, or say why not. May sleep; interrupts are on.
pub fn resolve(at: u64, access: Access, error: u64) -> Result<(), Refused> {
    planted::on_fault();
    let result = match (VirtAddr::user(at), task::current().lend_space()) {
        (Some(va), Some(mm)) if error & ERROR_RESERVED == 0 => {
            let mut attempts = 0..ATTEMPTS;
            loop {
                match mm.aspace.fault_by(&task::memory_policy(), va, access, &task::unpinned()) {
                    // Below a stack: it grows, if it may.
                    Err(Fault::NoMapping) if mm.grow(va) => {}
                    Err(Fault::Watched) => match userfault::wait(&mm, va, access, error & ERROR_USER == 0) {
                        Outcome::Again => {}
                        Outcome::Interrupted => break Ok(()),
                        Outcome::Refused => break Err(Fault::Watched),
                        Outcome::NoMemory if attempts.next().is_some() && oom::make_room() => {}
                        Outcome::NoMemory => break Err(Fault::NoMemory),
                    },
                    Err(Fault::NoMemory) if attempts.next().is_some() && oom::make_room() => {}
                    result => break result,
                }
            }
        }
        _ => Err(Fault::NoMapping),
    };
    match result {
        Ok(()) => task::current().count_fault(),
        // Nobody else could be ended for it, or this process is the one (`oom.rs`). In a copy too: EFAULT would be a lie.
        Err(Fault::NoMemory) => process::group_exit(Status::killed(abi::SIGKILL)),
        Err(_) => {}
    }
    stats::count(match (&result, access) {
        (Err(_), _) => Counter::BadFaults,
        (_, Access::Read) => Counter::ReadFaults,
        (_, Access::Write) => Counter::WriteFaults,
        (_, Access::Exec) => Counter::ExecFaults,
    });
    result.map_err(Refused)
}
