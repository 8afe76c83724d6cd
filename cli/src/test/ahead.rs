//! Builds beside tests: while the first groups run, the kernel and the guest programs of later ones are built, on what they leave
//! of the host. The kernel is one unit and most guest programs wait for one crate after another, which alone leaves a processor
//! idle for minutes; so do many of the host's tests.
//!
//! Builds have the lowest priority, so that no test's time is theirs. What fails here says nothing: the group that needs it
//! builds it again, and reports why it can't.

use std::thread::{self, JoinHandle};

use anyhow::Result;

use super::{linux, manifest};
use crate::{
    args::Group,
    exact::Exact,
    guest,
    kernel::{self, Build},
    needs::{self, Tool},
    toolchain,
};

/// The groups that boot machines.
const GUESTS: [Group; 5] = [Group::Kernel, Group::Linux, Group::Peer, Group::Trace, Group::Mutants];
/// Groups before those that take long enough.
const BEFORE: [Group; 3] = [Group::Host, Group::Loom, Group::Spin];
/// To any other process the host gives its processors first (nice(2)).
const LOWEST: i32 = 19;

/// What is being built.
pub struct Ahead(Option<JoinHandle<()>>);

impl Ahead {
    /// Begin, if these groups are such that it helps.
    pub fn begin(groups: &[Group]) -> Self {
        let any = |of: &[Group]| groups.iter().any(|group| of.contains(group));
        // Installed here, so that nobody installs anything at the same time.
        let ready = || toolchain::obtain().is_ok() && needs::ensure(&[Tool::Gcc, Tool::MuslGcc]).is_ok();
        if !any(&BEFORE) || !any(&GUESTS) || !ready() {
            return Self(None);
        }
        let programs = any(&[Group::Linux]);
        Self(Some(thread::spawn(move || {
            give_way();
            let _ = build(programs);
        })))
    }

    /// Wait for it before this group, if it boots machines: they have time limits.
    pub fn before(&mut self, group: Group) {
        if GUESTS.contains(&group) {
            self.0.take().map(JoinHandle::join);
        }
    }
}

/// Give this thread the lowest priority, and the processes that it starts: Linux has one for each thread, whatever POSIX says.
fn give_way() {
    let _ = rustix::process::setpriority_process(None, LOWEST);
}

/// In the order in which it is needed.
fn build(programs: bool) -> Result<()> {
    kernel::build(Build::Ordinary)?;
    guest::rust("mapbench")?;
    Exact::new()?;
    if programs {
        let manifest = manifest::read()?;
        linux::build_all(&manifest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_thread_and_its_processes_give_way_and_no_other_does() {
        // Without arguments it prints its own.
        let own = || {
            let printed = Command::new("nice").output().unwrap().stdout;
            String::from_utf8_lossy(&printed).trim().parse::<i32>().unwrap()
        };
        let usual = own();
        let built = thread::spawn(move || {
            give_way();
            own()
        });
        assert_eq!(built.join().unwrap(), LOWEST);
        assert_eq!(own(), usual);
    }

    #[test]
    fn nothing_is_built_that_is_wanted_at_once_or_never() {
        assert!(Ahead::begin(&[Group::Kernel, Group::Linux]).0.is_none());
        assert!(Ahead::begin(&[Group::Host, Group::Loom]).0.is_none());
    }
}
