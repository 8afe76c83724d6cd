//! The terminal of a run: raw while the guest has it, and given back in the state it was in, however the driver ends.
//!
//! In raw mode the guest's own line discipline echoes, edits lines and turns control characters into signals, so the
//! host's must do nothing. The saved state is a global: the signal thread and the panic hook restore it too.

use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
};

use rustix::{
    process::getpgrp,
    termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr},
};

/// The terminal's state before it was made raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw while this lives.
pub struct Raw(());

impl Raw {
    /// Make standard input raw, if it is a terminal and this process is in its foreground.
    pub fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin).ok()? != getpgrp() {
            return None;
        }
        let saved = tcgetattr(&stdin).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        let guard = Self(());
        tcsetattr(&stdin, OptionalActions::Drain, &raw).ok()?;
        Some(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Give the terminal back as it was. Does nothing if it is not raw.
pub fn restore() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nothing can be done about a terminal that has gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &saved);
    }
}

/// Whether the terminal is raw now, so that a line needs its own carriage return.
pub fn is_raw() -> bool {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Rows and columns of the terminal, wherever one of the standard files is one.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdin())
        .or_else(|_| tcgetwinsize(std::io::stdout()))
        .or_else(|_| tcgetwinsize(std::io::stderr()))
        .ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Which of the file descriptors 0, 1 and 2 are terminals.
pub fn standard_files() -> Vec<u8> {
    let is =
        [std::io::stdin().is_terminal(), std::io::stdout().is_terminal(), std::io::stderr().is_terminal()];
    (0..).zip(is).filter_map(|(fd, terminal)| terminal.then_some(fd)).collect()
}
