//! What the options say of designs, each system's part of it.

use anyhow::Result;

use super::plan::Target;
use crate::{
    args::{Aspace, Bench, Exclude, FrameAlgo, Locked, PageTables, design},
    failure::{USAGE, failure},
    machine::Boot,
};

/// What was said of a system's design; nothing of what it has no choice of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What page faults wait for; the Bonsai design alone has it.
    pub exclude: Option<Exclude>,
    /// What the locked design is like; it alone has a choice.
    pub locked: Locked,
    /// The algorithm for page frames; Quire alone has it.
    pub frames: Option<FrameAlgo>,
    /// The tables of an address space; Quire's radix design alone has a choice.
    pub tables: Option<PageTables>,
}

impl Choice {
    /// The part of the options that is about `system`.
    pub fn of(options: &Bench, system: Target) -> Self {
        let Target::Quire(design) = system else { return Self::default() };
        Self {
            exclude: options.exclude.filter(|_| design == Aspace::Bonsai),
            locked: if design == Aspace::Locked { options.locked } else { Locked::default() },
            frames: options.frames,
            tables: options.pagetable.filter(|_| design == Aspace::Radix),
        }
    }

    /// As options: what tells the system from a default one.
    pub fn told(self) -> impl Iterator<Item = String> {
        let exclude = self.exclude.map(|exclude| format!("--exclude {}", exclude.name()));
        let locked = self.locked.said().map(|(name, value)| format!("--{name} {value}"));
        let frames = self.frames.map(|algo| format!("--frames {}", algo.name()));
        let tables = self.tables.map(|tables| format!("--pagetable {}", tables.name()));
        exclude.into_iter().chain(locked).chain(frames).chain(tables)
    }

    /// What the kernel is told of it.
    pub fn boot(self) -> Boot {
        Boot {
            exclude: self.exclude,
            locked: self.locked,
            frames: self.frames,
            pagetable: self.tables,
            ..Boot::default()
        }
    }
}

/// Whether all that is said of a design is said of one that is measured.
pub fn check(options: &Bench) -> Result<()> {
    if options.pagetable.is_some() && options.aspace.designs() != [Aspace::Radix] {
        return Err(failure(USAGE, "--pagetable is about the radix design: say --aspace radix"));
    }
    design::check(options.aspace.designs(), options.exclude, options.locked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{
        AspaceChoice, Linux,
        design::{Count, Flush, Switch, Wait},
    };

    fn locked() -> Locked {
        Locked {
            rwlock: Some(Wait::Spin),
            last_hit: Some(Switch::Off),
            flush: Some(Flush::Space),
            count: Some(Count::Atomic),
        }
    }

    #[test]
    fn a_system_is_told_what_is_said_of_its_own_design() {
        let options = Bench {
            aspace: AspaceChoice::All,
            exclude: Some(Exclude::Hybrid),
            locked: locked(),
            frames: Some(FrameAlgo::Avl),
            ..Bench::default()
        };
        check(&options).unwrap();
        let line = |design| Choice::of(&options, Target::Quire(design)).boot().line(1);
        let told = |system| Choice::of(&options, system).told().collect::<Vec<_>>().join(" ");
        assert!(line(Aspace::Bonsai).contains(" exclude=hybrid frames=avl "));
        assert!(
            line(Aspace::Locked).contains(" rwlock=spin last-hit=off flush=space count=atomic frames=avl ")
        );
        assert_eq!(told(Target::Quire(Aspace::Bonsai)), "--exclude hybrid --frames avl");
        assert_eq!(
            told(Target::Quire(Aspace::Locked)),
            "--rwlock spin --last-hit off --flush space --count atomic --frames avl"
        );
        assert_eq!(told(Target::Quire(Aspace::Radix)), "--frames avl");
        assert_eq!(told(Target::Linux(Linux::Newest)), "");
    }

    #[test]
    fn what_is_said_of_a_design_that_is_not_measured_is_refused() {
        let refused = |options: Bench| check(&options).unwrap_err().to_string();
        let radix = || Bench { aspace: AspaceChoice::Radix, ..Bench::default() };
        assert_eq!(
            refused(Bench { exclude: Some(Exclude::Rcu), ..radix() }),
            "--exclude is about the bonsai design: say --aspace bonsai"
        );
        assert_eq!(
            refused(Bench { locked: locked(), ..radix() }),
            "--rwlock is about the locked design: say --aspace locked"
        );
        assert!(refused(Bench { pagetable: Some(PageTables::Shared), ..Bench::default() }).contains("radix"));
    }
}
