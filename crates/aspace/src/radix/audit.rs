//! The invariants of the module, looked at page by page under the pages' own locks.

use super::*;
use crate::{Audited, page as contents};

impl Radix {
    /// As [`AddressSpace::audit`]. Pages that there is no memory to lock are passed over.
    pub(super) fn audit_pages(&self, range: PageRange, ctx: &Unpinned<'_>, f: &mut dyn FnMut(&Audited)) {
        for key in keys(range) {
            let pin = ctx.pin();
            let section = self.tree.enter(&pin);
            let Ok(guard) = self.lock_pages(pages(key, key + 1), Mode::Cover, &section) else { continue };
            let frozen = guard.values().next().is_some_and(|span| span.frozen);
            let slot = guard.values().next().map_or(Slot::EMPTY, |span| Slot::of(span.value));
            let slot = if frozen { slot.with_owner(SEVERAL) } else { slot };
            let frame = slot.frame().map(|(frame, _)| frame);
            let rights = frame.map_or(Prot::empty(), |frame| {
                let rights =
                    contents::rights(&self.realm.desc(slot, &section).mapping, frame, self.machine.frames)
                        & slot.cap();
                let others = self.tree.sharers(key, &section).is_some_and(|(trees, _)| trees > 1);
                if others { rights.difference(Prot::WRITE) } else { rights }
            });
            let cpus = self.tables.users(page(key), slot);
            for (cpu, mirror) in self.tables.all() {
                let entry = mirror.peek(page(key));
                if !entry.is_present() {
                    continue;
                }
                assert_eq!(Some(entry.frame()), frame, "an entry of page {key:#x}, which is {slot:?}");
                assert!(rights.contains(entry.prot()), "{entry:?} grants more than {rights:?}, {slot:?}");
                let known = cpu.map_or(cpus == CpuSet::ALL, |cpu| cpus.contains(cpu));
                assert!(known, "{cpu:?} has an entry for page {key:#x}, but only {cpus:?} would be told");
            }
            f(&Audited { page: page(key), frame, rights, cpus });
        }
    }
}
