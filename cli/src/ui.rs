//! What the driver says of its own: notes, progress lines and bars, all on standard error.

use std::{
    io::{IsTerminal, Write},
    sync::LazyLock,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::terminal;

/// The lines of progress on the screen, so that nothing else tears them.
static SHOWN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// One line of the driver's own on standard error.
pub fn say(line: &str) {
    aside(|| {
        // A closed standard error must not end a run: there is nobody left to tell.
        let _ = write!(std::io::stderr(), "quire: {line}{}", line_end());
    });
}

/// Lines that are not the driver's own (a compiler's, a failing test's), on standard error.
pub fn show(text: &str) {
    aside(|| {
        for line in text.trim_end().lines() {
            let _ = write!(std::io::stderr(), "{line}{}", line_end());
        }
    });
}

/// A line of result on standard output.
pub fn result(line: &str) {
    aside(|| {
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    });
}

/// A raw terminal does not return the carriage by itself.
fn line_end() -> &'static str {
    if terminal::is_raw() { "\r\n" } else { "\n" }
}

/// Write while no bar is on the screen.
fn aside(write: impl FnOnce()) {
    SHOWN.suspend(write);
}

/// One line of progress: a bar or spinner on a terminal, nothing elsewhere.
pub struct Progress {
    bar: ProgressBar,
    name: String,
    began: Instant,
}

impl Progress {
    /// Begin with a spinner. `name` says what is going on.
    pub fn new(name: &str) -> Self {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(style("{spinner} {prefix} {wide_msg} {elapsed}"));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, name: name.to_owned(), began: Instant::now() }
    }

    /// What is being done just now.
    pub fn message(&self, message: &str) {
        self.bar.set_message(message.to_owned());
    }

    /// `done` of `total` units of work; the spinner becomes a bar.
    pub fn steps(&self, done: u64, total: u64, message: &str) {
        if self.bar.length().is_none() {
            self.bar.set_style(style("{spinner} {prefix} [{bar:24}] {pos}/{len} {wide_msg} {elapsed}"));
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.message(message);
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What this is the progress of.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        SHOWN.remove(&self.bar);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
        .progress_chars("=> ")
}

/// Whether standard error is a terminal, where progress is shown.
pub fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}
