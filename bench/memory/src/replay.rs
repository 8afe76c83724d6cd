//! A shape, made in a real address space: mapped, and its resident pages brought in by faults.
//!
//! The machine is one of the process's own: frames are its memory, there is one CPU, and no other has to be told to forget
//! translations. What the space allocates is counted by [`meter`], from before it is made until everything that is no
//! longer needed has been collected. Before that another space has come and gone, so that what the machine keeps for all
//! spaces is there already.
//!
//! Of an object only what mappings see of it matters: its frame is the same for all of its pages.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use addr::{Page, PageRange, Prot};
use aspace::{
    Access, AddressSpace, Backing, Collect, Flags, Label, Machine, Mappers, Mapping, Object, ObjectError,
    PageTables, Placement, Policy, Radix, Realm, Serial, Variant,
};
use owned::{Memory, OwnedFrame, Use, testing};
use percpu::{CpuSet, Pinned, Unpinned, testing::Machine as Cpus};
use tlb::Shootdown;

use crate::{
    meter,
    shape::{Kind, Map, Shape},
};

/// Frames beside those of resident pages and page tables.
const SPARE: u64 = 8192;

/// A design of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Design {
    Radix,
    Locked,
}

impl Design {
    pub const ALL: [Design; 2] = [Design::Radix, Design::Locked];

    pub fn name(self) -> &'static str {
        match self {
            Design::Radix => "radix",
            Design::Locked => "locked",
        }
    }
}

/// What a design has needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes {
    /// Of the heap, with nothing mapped.
    pub empty: u64,
    /// The same, with everything mapped and no page resident.
    pub mapped: u64,
    /// The same, with all pages resident.
    pub resident: u64,
    /// Of page tables, one CPU's.
    pub tables: u64,
}

/// Nobody else translates anything.
struct Alone;

impl Shootdown for Alone {
    fn flush(&self, _: &Pinned<'_>, _: &CpuSet, _: PageRange) {}
}

/// A file. All of its pages have the frame that was asked for first.
struct Pages {
    number: u64,
    frame: Mutex<Option<OwnedFrame>>,
    mappers: Mappers,
}

impl Pages {
    fn new(number: u64) -> Arc<Self> {
        Arc::new(Self { number, frame: Mutex::new(None), mappers: Mappers::new() })
    }
    fn frame(&self) -> MutexGuard<'_, Option<OwnedFrame>> {
        self.frame.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    /// Nobody maps it any more.
    fn free(&self, host: &Host, ctx: &Unpinned<'_>) {
        let frame = self.frame().take();
        frame.into_iter().for_each(|frame| host.machine.frames.free(&ctx.pin(), frame));
    }
}

impl Object for Pages {
    fn page(
        &self,
        _: u64,
        _: &Policy,
        frames: &Memory,
        ctx: &Unpinned<'_>,
    ) -> Result<OwnedFrame, ObjectError> {
        let mut frame = self.frame();
        if frame.is_none() {
            *frame = frames.alloc_zeroed(&ctx.pin(), Use::File);
        }
        frame.as_ref().map(|frame| frames.share(frame)).ok_or(ObjectError::NoMemory)
    }
    fn identity(&self) -> (u64, u64) {
        (1, self.number)
    }
    fn path(&self) -> Vec<u8> {
        Vec::new()
    }
    fn mappers(&self) -> Option<&Mappers> {
        Some(&self.mappers)
    }
}

/// What is the same for all spaces.
struct Host {
    machine: Machine,
    realm: &'static Realm,
}

impl Host {
    /// Nobody uses it after the replay; it is never freed, as spaces keep references to it.
    fn new(frames: u64) -> Self {
        let frames = testing::memory(frames as usize, 1);
        let realm: &Realm = Box::leak(Box::new(Realm::new(1, frames, std::thread::yield_now)));
        let machine = Machine { frames, shootdown: &Alone, kernel_root: None };
        Self { machine, realm }
    }
    fn space(&self, design: Design, ctx: &Unpinned<'_>) -> Result<Arc<dyn AddressSpace>, String> {
        let space: Result<Arc<dyn AddressSpace>, _> = match design {
            Design::Radix => {
                Radix::new(self.machine, self.realm, PageTables::PerCpu, ctx).map(|space| space as _)
            }
            Design::Locked => {
                Serial::locked(self.machine, 1, Variant::default(), ctx).map(|space| space as _)
            }
        };
        space.map_err(|error| format!("no address space: {error:?}"))
    }
    /// Collect all that can be collected.
    fn settle(&self, ctx: &Unpinned<'_>) {
        for _ in 0..8 {
            self.realm.tick(&mut ctx.pin());
            self.realm.rest(&mut ctx.pin());
            self.realm.reap(ctx);
        }
        self.realm.trim(&ctx.pin());
    }
}

/// Make `shape` in spaces of `design`.
pub fn replay(shape: &Shape, design: Design) -> Result<Bytes, String> {
    let tables: u64 = crate::linux::tables(shape).iter().sum();
    let host = Host::new(shape.pages() + 2 * tables + SPARE);
    Cpus::new(1).on(0, |ctx| {
        meter::counted(|| {
            host.realm.init();
            host.realm.idle_exit(&mut ctx.pin());
            let mut replay = Replay { shape, design, host: &host, objects: HashMap::new() };
            let bytes = replay.measure(&ctx);
            replay.objects.into_values().for_each(|object| object.free(&host, &ctx));
            bytes
        })
    })
}

/// A shape that is being made.
struct Replay<'s> {
    shape: &'s Shape,
    design: Design,
    host: &'s Host,
    /// By their numbers, or where they are mapped.
    objects: HashMap<(u32, u64), Arc<Pages>>,
}

impl Replay<'_> {
    fn measure(&mut self, ctx: &Unpinned<'_>) -> Result<Bytes, String> {
        // The first space makes what the machine keeps.
        self.with_space(ctx, |this, space| this.fill(space, false, ctx))?;
        let before = meter::used();
        let host = self.host;
        let since = || {
            host.settle(ctx);
            meter::used().saturating_sub(before)
        };
        let empty = self.with_space(ctx, |_, _| Ok(since()))?;
        let mapped = self.with_space(ctx, |this, space| {
            this.fill(space, false, ctx)?;
            Ok(since())
        })?;
        let (resident, tables) = self.with_space(ctx, |this, space| {
            this.fill(space, true, ctx)?;
            Ok((since(), space.usage(ctx).table_pages * crate::linux::TABLE))
        })?;
        Ok(Bytes { empty, mapped, resident, tables })
    }

    /// What `f` says of a new space, of which nothing is left afterwards.
    fn with_space<R>(
        &mut self,
        ctx: &Unpinned<'_>,
        f: impl FnOnce(&mut Self, &dyn AddressSpace) -> Result<R, String>,
    ) -> Result<R, String> {
        let space = self.host.space(self.design, ctx)?;
        space.activate(&ctx.pin());
        let result = f(self, &*space);
        space.deactivate(&ctx.pin());
        space.clear(ctx);
        drop(space);
        self.host.settle(ctx);
        result
    }

    /// Make the mappings, and if `touch` the resident pages.
    fn fill(&mut self, space: &dyn AddressSpace, touch: bool, ctx: &Unpinned<'_>) -> Result<(), String> {
        for map in &self.shape.maps {
            let range = range(map.start, map.end)?;
            let resident = || self.shape.resident.iter().filter(|run| touch && meets(run, map));
            let (wanted, pages) = (mapping(map, &mut self.objects), map.end - map.start);
            // A resident page that nobody may read was read before.
            let mut first = wanted.clone();
            if wanted.prot.is_empty() && resident().next().is_some() {
                first.prot = Prot::READ;
                first.max_prot |= Prot::READ;
            }
            let (prot, differs) = (wanted.prot, first.prot != wanted.prot);
            let failed = |error| format!("mapping pages {:x} to {:x}: {error:?}", map.start, map.end);
            space.map(Placement::Fixed(range.start()), pages, first, ctx).map_err(failed)?;
            for &(start, end) in resident() {
                for page in self::range(start.max(map.start), end.min(map.end))? {
                    let fault = space.fault(page.base(), access(map), ctx);
                    fault.map_err(|fault| format!("page {:x}: {fault:?}", page.number()))?;
                }
            }
            if differs {
                space.protect(range, prot, ctx).map_err(failed)?;
            }
        }
        Ok(())
    }
}

fn meets(run: &(u64, u64), map: &Map) -> bool {
    run.0 < map.end && map.start < run.1
}

fn range(start: u64, end: u64) -> Result<PageRange, String> {
    let page = Page::new(start).and_then(|page| PageRange::with_len(page, end - start));
    page.ok_or_else(|| format!("pages {start:x} to {end:x} are not in user space"))
}

/// How a page of the mapping became resident.
fn access(map: &Map) -> Access {
    match map.rights {
        [_, true, _] => Access::Write,
        [false, _, true] => Access::Exec,
        _ => Access::Read,
    }
}

fn mapping(map: &Map, objects: &mut HashMap<(u32, u64), Arc<Pages>>) -> Mapping {
    let [read, write, exec] = map.rights;
    let of = |is: bool, right| if is { right } else { Prot::empty() };
    let prot = of(read, Prot::READ) | of(write, Prot::WRITE) | of(exec, Prot::EXEC);
    let is = |flag: &str| map.flags.contains(&flag);
    // Shared memory without a number is an object of its own.
    let has_object = map.object != 0 || map.shared || map.kind == Kind::Kernel;
    let backing = if has_object {
        let at = if map.object == 0 { map.start } else { 0 };
        let next = objects.len() as u64 + 1;
        let object = objects.entry((map.object, at)).or_insert_with(|| Pages::new(next));
        Backing::Object { object: object.clone(), page: map.offset }
    } else {
        Backing::Anonymous
    };
    let max_prot = Prot::all()
        - of(is("no-mr"), Prot::READ)
        - of(is("no-mw"), Prot::WRITE)
        - of(is("no-me"), Prot::EXEC);
    let label = match map.kind {
        Kind::Heap => Label::Heap,
        Kind::Stack => Label::Stack,
        Kind::Kernel => Label::Vdso,
        Kind::Anon | Kind::File => Label::None,
    };
    let flags = [
        ("gd", Flags::GROWS_DOWN),
        ("lo", Flags::LOCKED),
        ("dc", Flags::DONT_FORK),
        ("wf", Flags::WIPE_ON_FORK),
        ("nr", Flags::NO_RESERVE),
        ("dd", Flags::DONT_DUMP),
        ("sr", Flags::SEQUENTIAL),
        ("rr", Flags::RANDOM),
        ("hg", Flags::HUGE),
        ("nh", Flags::NO_HUGE),
        ("mg", Flags::MERGEABLE),
    ];
    let flags = flags.into_iter().filter(|(name, _)| is(name)).map(|(_, flag)| flag).collect();
    Mapping { max_prot: max_prot | prot, shared: map.shared, label, flags, ..Mapping::new(prot, backing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str, design: Design) -> Bytes {
        replay(&Shape::parse(&format!("quire-shape 1\n{text}")).unwrap(), design).unwrap()
    }

    #[test]
    fn a_space_costs_what_its_nodes_and_its_tables_do() {
        // A leaf of its own in a place of its own, and nothing else: five nodes.
        let one = bytes("map 1000 1001 rw-p anon 0 0 -\nres 1000 1001\n", Design::Radix);
        assert_eq!(one.tables, 5 * 4096, "the CPU's, and the root of the common one");
        let nodes = 4 * 576 + 128;
        let grown = one.resident - one.empty;
        assert!((nodes..nodes + 64).contains(&grown), "{grown}");
        // Untouched it needs them too.
        assert_eq!(one.mapped, one.resident);
        // A large aligned mapping is one word in a node.
        let huge = bytes("map 200000 400000 rw-p anon 0 0 -\n", Design::Radix);
        assert!(huge.mapped - huge.empty <= 600, "{huge:?}");
    }

    #[test]
    fn mappings_that_say_the_same_share_a_descriptor() {
        let text = |object: fn(u64) -> u64| {
            let map = |i: u64| {
                let (start, perms) = (0x1000 + i, if i.is_multiple_of(2) { "r--p" } else { "r-xp" });
                format!("map {start:x} {:x} {perms} file {} {i:x} -\n", start + 1, object(i))
            };
            (0..40).map(map).collect::<String>()
        };
        let [one, many] = [text(|_| 1), text(|i| 1 + i)].map(|text| bytes(&text, Design::Radix).mapped);
        assert!(many - one >= 36 * 96, "{one} with one file, {many} with forty");
    }

    #[test]
    fn every_kind_of_mapping_is_replayed() {
        let text = "map 400 402 r-xp file 1 0 -\nmap 402 404 rw-p file 1 2 -\nmap 404 406 rw-p heap 0 0 -\n\
            map 500 502 ---p anon 0 0 nr\nmap 600 602 rw-s anon 0 0 -\nmap 700 701 r--s file 2 5 no-mw\n\
            map 800 802 rw-p stack 0 0 gd\nmap 900 902 r-xp kernel 0 0 dd\nmap a00 a01 --xp anon 0 0 -\n\
            res 401 406\nres 500 501\nres 600 601\nres 700 701\nres 801 802\nres 900 902\nres a00 a01\n";
        for design in Design::ALL {
            let bytes = bytes(text, design);
            assert!(bytes.empty < bytes.mapped && bytes.mapped <= bytes.resident, "{bytes:?}");
        }
    }
}
