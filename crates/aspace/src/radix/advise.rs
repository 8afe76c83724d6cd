//! What advice does.

use super::{watch::emptied, *};
use crate::{Backing, rules};

impl Radix {
    /// Advice about contents, mapping by mapping up to the first that it is not for.
    pub(super) fn advise_contents(
        &self,
        range: PageRange,
        advice: Advice,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        if keys(range).is_empty() {
            return Err(Error::NoMapping);
        }
        if advice == Advice::WillNeed {
            return if self.is_covered(range, &section) { Ok(()) } else { Err(Error::NoMapping) };
        }
        let mut change = Change::new(self, &section, ctx);
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        let (mut refused, mut holes) = (false, range.end().number() > KEYS);
        guard.update(|span| {
            let slot = Slot::of(span.value);
            if !slot.is_mapped() || refused {
                holes |= !slot.is_mapped();
                return span.value;
            }
            refused = !rules::is_for(advice, &change.desc(slot).mapping);
            let new = match advice {
                _ if refused => slot,
                Advice::DontNeed | Advice::DontNeedLocked | Advice::Free if !slot.is_guard() => {
                    emptied(slot, &change.desc(slot).mapping)
                }
                Advice::InstallGuards => slot.guard(),
                Advice::RemoveGuards if slot.is_guard() => emptied(slot, &change.desc(slot).mapping),
                _ => slot,
            };
            if new != slot {
                change.drop_frame(slot, span.first);
            }
            new.word()
        });
        if mutant!("guard-no-flush") && advice == Advice::InstallGuards {
            change.flush_nobody();
        }
        change.settle();
        drop(guard);
        if refused {
            return Err(Error::Invalid);
        }
        if holes { Err(Error::NoMapping) } else { Ok(()) }
    }
    /// Advice that changes what mappings say.
    pub(super) fn advise_flags(
        &self,
        range: PageRange,
        set: Flags,
        clear: Flags,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        if keys(range).is_empty() {
            return Err(Error::NoMapping);
        }
        let mut change = Change::new(self, &section, ctx);
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        if self.machine.frames.low() && self.splits(range, &section) {
            return Err(Error::NoMemory);
        }
        let refuses = |mapping: &Mapping| {
            let anonymous = matches!(mapping.backing, Backing::Anonymous) && !mapping.shared;
            set.contains(Flags::WIPE_ON_FORK) && !anonymous
        };
        let mut holes = range.end().number() > KEYS;
        let mut refused = None;
        for span in guard.spans() {
            let slot = Slot::of(span.value);
            holes |= !slot.is_mapped();
            if slot.is_mapped() && refuses(&change.desc(slot).mapping) {
                refused = Some(span.first);
                break;
            }
        }
        let reach = guard.keys().start..refused.unwrap_or(guard.keys().end);
        self.relabel(&mut guard, reach, &mut change, &section, |mapping| {
            mapping.flags = mapping.flags.difference(clear).union(set);
        })?;
        change.settle();
        drop(guard);
        if refused.is_some() {
            return Err(Error::Invalid);
        }
        if holes { Err(Error::NoMapping) } else { Ok(()) }
    }
    /// Where the pages of mappings are to be.
    pub(super) fn advise_policy(
        &self,
        range: PageRange,
        policy: Policy,
        ctx: &Unpinned<'_>,
    ) -> Result<(), Error> {
        let said = Said::from(policy);
        let pin = ctx.pin();
        let section = self.tree.enter(&pin);
        if keys(range).is_empty() {
            return Err(Error::NoMapping);
        }
        let mut change = Change::new(self, &section, ctx);
        let mut guard = self.lock_pages(range, Mode::Edit, &section)?;
        let mapped = |span: ::radix::Span| Slot::of(span.value).is_mapped();
        let covered = guard.spans().all(mapped) && range.end().number() <= KEYS;
        if !guard.spans().any(mapped) || !policy.is_default() && !covered {
            return Err(Error::NoMapping);
        }
        if self.machine.frames.low() && self.splits(range, &section) {
            return Err(Error::NoMemory);
        }
        let all = guard.keys();
        self.relabel(&mut guard, all, &mut change, &section, |mapping| mapping.policy = said.clone())?;
        change.settle();
        drop(guard);
        Ok(())
    }
}
