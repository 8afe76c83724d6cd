//! The page fault: in a section, without any lock but that of the page's leaf table; and, if that does not get anywhere or there
//! are no sections, with the mappings locked for reading.

use addr::{Page, Prot};
use owned::OwnedFrame;
use pagetable::{Leaf, Unmade, use_of};
use percpu::{Pinned, Unpinned};
use sync::{mutant, pause};

use super::Serial;
use crate::{
    Access, Backing, Exclude, Fault, Mapping, Policy, Realm,
    index::{HIDDEN, Within, is_alive},
    leaves, page, rules,
};

/// So often a fault looks the page up anew before it locks the mappings.
const TRIES: u32 = 3;

/// A mapping, as a fault has found it.
struct Seen<'a> {
    mapping: &'a Mapping,
    /// Pages from the mapping's start.
    offset: u64,
    /// By what it is known; [`HIDDEN`] to who has the lock of the mappings, and need not know it again.
    number: u64,
}

/// The frame of an object's page, asked for while nothing was locked.
struct Spare {
    frame: OwnedFrame,
    rights: Prot,
    /// Of which mapping.
    number: u64,
}

/// What a fault comes to.
enum Step {
    Done,
    /// Somebody else was at it: look again.
    Again,
    /// The page is one of an object's, which is asked without locks.
    Ask,
    /// What only who has the mappings locked can decide.
    Slow(Fault),
}

impl Serial {
    pub(super) fn resolve(
        &self,
        policy: &Policy,
        at: Page,
        access: Access,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        let mut spare = None;
        let fast = match self.protocol.realm() {
            Some(realm) if self.protocol.exclude() != Exclude::Stock => {
                self.resolve_fast(realm, policy, at, access, &mut spare, ctx)
            }
            _ => Ok(false),
        };
        let result = match fast {
            Ok(false) => self.resolve_locked(policy, at, access, &mut spare, ctx),
            done => done.map(drop),
        };
        self.drop_spare(&mut spare, &ctx.pin());
        result
    }

    /// False if it is for who has the mappings locked. Refuses nothing by itself (B1), but an object may.
    fn resolve_fast(
        &self,
        realm: &'static Realm,
        policy: &Policy,
        at: Page,
        access: Access,
        spare: &mut Option<Spare>,
        ctx: &Unpinned<'_>,
    ) -> Result<bool, Fault> {
        let exclude = self.protocol.exclude();
        let _shared = (exclude == Exclude::FaultLock).then(|| self.index.faults.0.read(ctx));
        for _ in 0..TRIES {
            let asked = {
                let looking = (exclude == Exclude::Hybrid).then(|| self.index.faults.0.read(ctx));
                let pin = ctx.pin();
                let section = realm.sections().read(&pin);
                let Some(area) = self.index.covering(at, &section) else {
                    return if mutant!("bonsai-refused-fast") { Err(Fault::NoMapping) } else { Ok(false) };
                };
                let number = area.number();
                if number == HIDDEN {
                    return Ok(false);
                }
                drop(looking);
                let _within = Within::new(area, exclude);
                let alive = || is_alive(area, number) || mutant!("bonsai-dead-unseen");
                let offset = at.number() - area.range.start().number();
                let seen = Seen { mapping: &area.mapping, offset, number };
                if !access.allowed_by(seen.mapping.prot) {
                    return Ok(false);
                }
                match self.step(&seen, &alive, policy, at, access, spare, &pin, ctx) {
                    Step::Done => return Ok(true),
                    Step::Slow(_) => return Ok(false),
                    Step::Again => None,
                    // Who sleeps holds no section: the mapping is copied.
                    Step::Ask => Some((seen.mapping.clone(), offset, number)),
                }
            };
            if let Some((mapping, offset, number)) = asked {
                let seen = Seen { mapping: &mapping, offset, number };
                if let Err(fault) = self.ask(&seen, policy, access, spare, ctx) {
                    // That is the answer, if it was the one to be asked.
                    return if self.shows(realm, at, number, ctx) { Err(fault) } else { Ok(false) };
                }
            }
        }
        Ok(false)
    }
    /// Whether `at` is still what the mapping known by `number` shows.
    fn shows(&self, realm: &'static Realm, at: Page, number: u64, ctx: &Unpinned<'_>) -> bool {
        let pin = ctx.pin();
        let section = realm.sections().read(&pin);
        self.index.covering(at, &section).is_some_and(|area| is_alive(area, number))
    }

    /// With the mappings locked, so that they do not change and tables stay. Other faults go on.
    fn resolve_locked(
        &self,
        policy: &Policy,
        at: Page,
        access: Access,
        spare: &mut Option<Spare>,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        let maps = self.maps.0.read(ctx);
        let (area, mapping) = maps.mappings.find(at).ok_or(Fault::NoMapping)?;
        if !access.allowed_by(mapping.prot) {
            let marker = self.table.peek(at).is_guard().then_some(Fault::Guard);
            return rules::allows(access, mapping.prot, marker);
        }
        let seen = Seen { mapping, offset: at.number() - area.start().number(), number: HIDDEN };
        loop {
            // The pin ends with the step: an object that is asked may sleep.
            let step = self.step(&seen, &|| true, policy, at, access, spare, &ctx.pin(), ctx);
            match step {
                Step::Done => return Ok(()),
                Step::Slow(fault) => return Err(fault),
                Step::Again => {}
                Step::Ask => self.ask(&seen, policy, access, spare, ctx)?,
            }
        }
    }

    fn drop_spare(&self, spare: &mut Option<Spare>, pin: &Pinned<'_>) {
        spare.take().into_iter().for_each(|spare| self.machine.frames.free(pin, spare.frame));
    }

    /// Ask the object for the frame. May sleep.
    fn ask(
        &self,
        seen: &Seen<'_>,
        policy: &Policy,
        access: Access,
        spare: &mut Option<Spare>,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Fault> {
        self.drop_spare(spare, &ctx.pin());
        let object = seen.mapping.object_page(seen.offset).ok_or(Fault::BeyondObject)?;
        let policy = seen.mapping.policy.get().or(*policy);
        let (frame, rights) = page::of_object(
            seen.mapping,
            object,
            &policy,
            self.protocol.count(),
            access,
            self.machine.frames,
            ctx,
        )?;
        *spare = Some(Spare { frame, rights, number: seen.number });
        Ok(())
    }

    /// What can be done without sleeping, while the mapping that was seen is `alive`. In a section, or with the mappings locked.
    #[allow(clippy::too_many_arguments, reason = "a page, an access, what was found, and who asks")]
    fn step(
        &self,
        seen: &Seen<'_>,
        alive: &impl Fn() -> bool,
        policy: &Policy,
        at: Page,
        access: Access,
        spare: &mut Option<Spare>,
        pin: &Pinned<'_>,
        ctx: &Unpinned<'_>,
    ) -> Step {
        let (frames, mapping) = (self.machine.frames, seen.mapping);
        let entry = self.table.peek(at);
        if entry.is_guard() {
            return Step::Slow(Fault::Guard);
        }
        if entry.is_empty() {
            let mine = match spare
                .take_if(|spare| spare.number == seen.number || mutant!("bonsai-spare-of-another"))
            {
                Some(spare) => spare,
                None => {
                    let policy = mapping.policy.get().or(*policy);
                    let got = match &mapping.backing {
                        // What the object has at hand costs no count of its users; for the rest this may have to sleep.
                        Backing::Object { .. } => {
                            let asked = mapping.object_page(seen.offset).and_then(|object| {
                                page::of_object_at_hand(
                                    mapping,
                                    object,
                                    &policy,
                                    self.protocol.count(),
                                    access,
                                    frames,
                                    pin,
                                )
                            });
                            let Some(got) = asked else { return Step::Ask };
                            got
                        }
                        Backing::Anonymous => {
                            page::ensure(mapping, &policy, at, seen.offset, None, access, frames, ctx)
                        }
                    };
                    match got {
                        Ok((frame, rights)) => Spare { frame, rights, number: seen.number },
                        Err(fault) => return Step::Slow(fault),
                    }
                }
            };
            // What is filled while fork shares pages would be later for the child than what is stored after it.
            let may = || alive() && (mapping.shared || self.gate.is_open() || mutant!("bonsai-fill-in-fork"));
            return self.fill(mine, &may, at, pin);
        }
        let early = mutant!("bonsai-owner-asked-early").then(|| page::rights(mapping, entry.frame(), frames));
        pause!("bonsai-entry-seen");
        let Some(leaf) = self.table.lock_leaf(at) else { return Step::Again };
        let entry = leaf.peek(at);
        if !alive() || use_of(entry).is_none() {
            return Step::Again;
        }
        if access.allowed_by(entry.prot()) {
            return Step::Done;
        }
        let rights = early.unwrap_or_else(|| page::rights(mapping, entry.frame(), frames));
        if access.allowed_by(rights) {
            // An entry that grants more than it should is about to be lowered, and flushed, by who has changed the mapping.
            if !rights.contains(entry.prot()) {
                return Step::Slow(Fault::Denied);
            }
            leaf.protect(at, rights);
            return Step::Done;
        }
        // It may have been lowered by now, and not flushed: who still stores to it must not do so beside a copy (R13).
        if !self.gate.is_open() && !mutant!("bonsai-copy-lowered") {
            return Step::Slow(Fault::Denied);
        }
        // The copy needs the old frame to stay: one more share.
        let Some(old) = leaf.hold(at, frames) else { return Step::Again };
        drop(leaf);
        let policy = mapping.policy.get().or(*policy);
        match page::ensure(mapping, &policy, at, seen.offset, Some(&old), access, frames, ctx) {
            Ok((new, rights)) => {
                pause!("bonsai-copy-made");
                // Again: a copy that came between the pages that fork shares would be later for the child than what is stored
                // after it.
                let may = || alive() && (self.gate.is_open() || mutant!("bonsai-copy-in-fork"));
                match self.replace(at, old, new, rights, may, ctx) {
                    true => Step::Done,
                    false => Step::Again,
                }
            }
            Err(fault) => {
                frames.free(pin, old);
                Step::Slow(fault)
            }
        }
    }

    /// Put in the frame for a page that had none.
    fn fill(&self, mine: Spare, alive: &impl Fn() -> bool, at: Page, pin: &Pinned<'_>) -> Step {
        let frames = self.machine.frames;
        let made = self.table.lock_leaf_or_make(frames, pin, at, alive);
        let fits = |leaf: &Leaf<'_>| alive() && (leaf.peek(at).is_empty() || mutant!("leaf-race-lost"));
        match made {
            Ok(leaf) if fits(&leaf) => {
                leaf.insert(at, mine.frame, mine.rights);
                drop(leaf);
                self.counts.one_resident(pin);
                Step::Done
            }
            other => {
                let short = matches!(other, Err(Unmade::NoMemory));
                drop(other);
                frames.free(pin, mine.frame);
                if short { Step::Slow(Fault::NoMemory) } else { Step::Again }
            }
        }
    }

    /// Put `new`, a copy of `old`, in its place at `at`, with `rights`. False if something else is there by now, or nobody is
    /// `alive` to have it; `old` and `new` are given back then.
    pub(super) fn replace(
        &self,
        at: Page,
        old: OwnedFrame,
        new: OwnedFrame,
        rights: Prot,
        alive: impl Fn() -> bool,
        ctx: &Unpinned<'_>,
    ) -> bool {
        let (frames, pin) = (self.machine.frames, ctx.pin());
        let mut taken = self.taken(ctx);
        let leaf = self.table.lock_leaf(at);
        let Some(leaf) = leaf.filter(|leaf| alive() && leaves::still_has(leaf, at, &old)) else {
            frames.free(&pin, new);
            frames.free(&pin, old);
            return false;
        };
        leaves::replace(&leaf, at, old, new, rights, &mut taken.gather, |gather| self.flush(gather, &pin));
        true
    }
}
