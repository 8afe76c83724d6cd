//! Exit statuses of the driver's own, beside those of the program that it ran.
//!
//! | status | meaning |
//! | --- | --- |
//! | 2 | a mistake on the command line |
//! | 124 | `--timeout` ended the run |
//! | 125 | the kernel panicked, or the machine or the driver failed |
//! | 126 | the program is there but Quire cannot run it |
//! | 127 | there is no such program |
//!
//! 124 to 127 are those of timeout(1) and env(1).

use std::fmt;

/// A mistake on the command line.
pub const USAGE: u8 = 2;
/// The time limit ended the run.
pub const TIMED_OUT: u8 = 124;
/// The kernel, the machine or the driver failed.
pub const BROKEN: u8 = 125;
/// The program cannot be run here.
pub const NOT_RUNNABLE: u8 = 126;
/// There is no such program.
pub const NOT_FOUND: u8 = 127;

/// A failure with its own exit status and one line that says what to do.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    line: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Failure {}

/// The failure with this status and line, as an error.
pub fn failure(status: u8, line: impl Into<String>) -> anyhow::Error {
    Failure { status, line: line.into() }.into()
}

/// The exit status for an error: its own, or [`BROKEN`].
pub fn status(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Failure>().map_or(BROKEN, |f| f.status)
}
