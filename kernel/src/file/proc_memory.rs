//! What /proc says of a process's memory: maps, smaps, smaps_rollup, statm, the Vm lines of status.
//!
//! Each mapping is shown as it is at one instant; the list as a whole is of one instant too, as the address space is
//! walked under one of its locks. What smaps says of their pages is looked at afterwards, one mapping after the other.

use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;

use addr::{PAGE_SIZE, Page, PageRange, Prot, USER_END_PAGE};
use aspace::{Backing, Flags, Label, MappingInfo, Modes, Resident, Seen};
use owned::Use;

use super::{
    Result,
    dev::split,
    proc::Text,
    proc_users::{self, Piece},
};
use crate::{errno::Errno, process::Mm, task};

fn kib(pages: u64) -> u64 {
    pages * PAGE_SIZE / 1024
}

/// All pages that can be mapped.
fn everything() -> PageRange {
    PageRange::new(Page::default(), USER_END_PAGE).unwrap_or_default()
}

/// The line of a mapping in maps and smaps.
fn line(info: &MappingInfo<'_>, heap: (u64, u64)) -> Vec<u8> {
    let m = info.mapping;
    let flag = |p, c| if m.prot.contains(p) { c } else { '-' };
    let (offset, (device, inode)) = match &m.backing {
        Backing::Object { object, page } => (page.wrapping_mul(PAGE_SIZE), object.identity()),
        Backing::Anonymous => (0, (0, 0)),
    };
    let (major, minor) = split(device);
    let (start, end) = (info.range.start().base().as_u64(), info.range.end().base().as_u64());
    let mut out = format!(
        "{start:08x}-{end:08x} {}{}{}{} {offset:08x} {major:02x}:{minor:02x} {inode} ",
        flag(Prot::READ, 'r'),
        flag(Prot::WRITE, 'w'),
        flag(Prot::EXEC, 'x'),
        if m.shared { 's' } else { 'p' },
    );
    let name: Vec<u8> = match (&m.backing, m.label) {
        (Backing::Object { object, .. }, Label::None) => object.path(),
        (_, Label::Vdso) => b"[vdso]".into(),
        (_, Label::Vvar) => b"[vvar]".into(),
        (_, Label::Stack) => b"[stack]".into(),
        (Backing::Anonymous, _) if start < heap.1 && end > heap.0 => b"[heap]".into(),
        _ => Vec::new(),
    };
    if !name.is_empty() {
        while out.len() < 73 {
            out.push(' ');
        }
    }
    let mut bytes = out.into_bytes();
    for b in name {
        // A newline in a name would make it two lines.
        if b == b'\n' { bytes.extend_from_slice(b"\\012") } else { bytes.push(b) }
    }
    bytes.push(b'\n');
    bytes
}

/// First byte and end of the heap.
pub fn heap(mm: &Mm) -> (u64, u64) {
    let brk = mm.brk.read(&task::unpinned());
    (brk.start, brk.end)
}

/// /proc/N/maps.
pub fn maps(mm: Option<&Mm>) -> Result<Text> {
    let mut text = Text::default();
    let Some(mm) = mm else { return Ok(text) };
    let heap = heap(mm);
    let mut result = Ok(());
    mm.aspace.mappings(&task::unpinned(), &mut |info| {
        if result.is_ok() {
            result = text.push(&line(info, heap));
        }
    });
    result.map(|()| text)
}

/// What smaps counts, in pages.
#[derive(Clone, Copy, Default)]
struct Tally {
    size: u64,
    rss: u64,
    pss: Shares,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    referenced: u64,
    anonymous: u64,
    /// As a share.
    locked: u64,
}

/// Bytes of which each page's users have an equal part, in 1/4096.
#[derive(Clone, Copy, Default)]
struct Shares {
    all: u64,
    dirty: u64,
    anonymous: u64,
    file: u64,
    memory: u64,
}

const SHARE: u64 = 12;

impl Tally {
    fn page(&mut self, info: &Shown, page: &Resident, users: u64) {
        if page.frame.is_none() {
            return;
        }
        self.rss += 1;
        let own = page.usage == Use::Anonymous;
        let part = (PAGE_SIZE << SHARE) / users;
        // Memory without a file behind it is dirty as soon as it is there.
        let dirty = page.dirty || own || info.memory;
        self.pss.all += part;
        self.pss.dirty += if dirty { part } else { 0 };
        let kind = match (own, info.memory) {
            (true, _) => &mut self.pss.anonymous,
            (false, true) => &mut self.pss.memory,
            (false, false) => &mut self.pss.file,
        };
        *kind += part;
        let count = match (users > 1, dirty) {
            (true, true) => &mut self.shared_dirty,
            (true, false) => &mut self.shared_clean,
            (false, true) => &mut self.private_dirty,
            (false, false) => &mut self.private_clean,
        };
        *count += 1;
        self.referenced += u64::from(page.accessed || own);
        self.anonymous += u64::from(own);
        if info.locked {
            self.locked += part;
        }
    }

    fn add(&mut self, other: &Tally) {
        let theirs = { *other }.fields_mut().map(|count| *count);
        self.fields_mut().into_iter().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
    }

    fn fields_mut(&mut self) -> [&mut u64; 14] {
        let Shares { all, dirty, anonymous, file, memory } = &mut self.pss;
        [
            &mut self.size,
            &mut self.rss,
            all,
            dirty,
            anonymous,
            file,
            memory,
            &mut self.shared_clean,
            &mut self.shared_dirty,
            &mut self.private_clean,
            &mut self.private_dirty,
            &mut self.referenced,
            &mut self.anonymous,
            &mut self.locked,
        ]
    }
}

/// A mapping as its tally needs it.
struct Shown {
    memory: bool,
    locked: bool,
}

/// The two-letter names of what a mapping is, in Linux's order.
fn vm_flags(info: &MappingInfo<'_>) -> String {
    let m = info.mapping;
    let accounted = m.prot.contains(Prot::WRITE) && !m.shared && !m.flags.contains(Flags::NO_RESERVE);
    let watched = |mode| m.watch.as_ref().is_some_and(|watch| watch.modes.contains(mode));
    let names = [
        (m.prot.contains(Prot::READ), "rd"),
        (m.prot.contains(Prot::WRITE), "wr"),
        (m.prot.contains(Prot::EXEC), "ex"),
        // A shared mapping of a file that is open for reading only is shared in name only.
        (m.shared && !m.flags.contains(Flags::READ_ONLY_FILE), "sh"),
        (m.max_prot.contains(Prot::READ), "mr"),
        (m.max_prot.contains(Prot::WRITE), "mw"),
        (m.max_prot.contains(Prot::EXEC), "me"),
        (m.shared, "ms"),
        (m.is_stack(), "gd"),
        (watched(Modes::MISSING), "um"),
        (m.label == Label::Vvar, "pf"),
        (watched(Modes::PROTECT), "uw"),
        (m.flags.contains(Flags::LOCKED), "lo"),
        (m.label == Label::Vvar, "io"),
        (m.flags.contains(Flags::SEQUENTIAL), "sr"),
        (m.flags.contains(Flags::RANDOM), "rr"),
        (m.flags.contains(Flags::DONT_FORK), "dc"),
        (matches!(m.label, Label::Vvar | Label::Vdso), "de"),
        (m.flags.contains(Flags::ON_FAULT), "lf"),
        (accounted, "ac"),
        (m.flags.contains(Flags::NO_RESERVE), "nr"),
        (m.flags.contains(Flags::WIPE_ON_FORK), "wf"),
        (m.flags.contains(Flags::DONT_DUMP) || m.label == Label::Vvar, "dd"),
        (m.flags.contains(Flags::HUGE), "hg"),
        (m.flags.contains(Flags::NO_HUGE), "nh"),
        (m.flags.contains(Flags::MERGEABLE), "mg"),
        (watched(Modes::MINOR), "ui"),
        (m.flags.contains(Flags::DROPPABLE), "dp"),
    ];
    let mut out = String::from("VmFlags: ");
    for (_, name) in names.iter().filter(|(shown, _)| *shown) {
        out += name;
        out.push(' ');
    }
    out.push('\n');
    out
}

/// The lines that smaps and smaps_rollup have in common; `parts`: with the shares by kind.
fn counts(t: &Tally, parts: bool) -> String {
    let share = |s: u64| (s >> SHARE) / 1024;
    let mut out = String::new();
    let row = |out: &mut String, name: &str, kb: u64| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{:<15} {kb:>8} kB", format!("{name}:"));
    };
    let mut put = |name: &str, kb: u64| row(&mut out, name, kb);
    put("Rss", kib(t.rss));
    put("Pss", share(t.pss.all));
    put("Pss_Dirty", share(t.pss.dirty));
    if parts {
        put("Pss_Anon", share(t.pss.anonymous));
        put("Pss_File", share(t.pss.file));
        put("Pss_Shmem", share(t.pss.memory));
    }
    put("Shared_Clean", kib(t.shared_clean));
    put("Shared_Dirty", kib(t.shared_dirty));
    put("Private_Clean", kib(t.private_clean));
    put("Private_Dirty", kib(t.private_dirty));
    put("Referenced", kib(t.referenced));
    put("Anonymous", kib(t.anonymous));
    for name in ["KSM", "LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb"] {
        put(name, 0);
    }
    // One column less than the others, on Linux too.
    out += "Private_Hugetlb:       0 kB\n";
    let mut put = |name: &str, kb: u64| row(&mut out, name, kb);
    put("Swap", 0);
    put("SwapPss", 0);
    put("Locked", share(t.locked));
    out
}

/// Call `each` with every mapping's line and flags, and what it holds.
fn survey(mm: &Mm, mut each: impl FnMut(&[u8], &str, &Tally) -> Result<()>) -> Result<()> {
    let heap = heap(mm);
    let all = proc_users::mappings(mm, everything(), &mut |info| {
        let memory = match &info.mapping.backing {
            Backing::Object { object, .. } => object.is_memory(),
            Backing::Anonymous => false,
        };
        let shown = Shown { memory, locked: info.mapping.flags.contains(Flags::LOCKED) };
        (line(info, heap), vm_flags(info), shown)
    })?;
    let mut tallies = Vec::new();
    tallies.try_reserve_exact(all.len()).map_err(|_| Errno::ENOMEM)?;
    tallies.extend(all.iter().map(|piece| Tally { size: piece.range.len(), ..Tally::default() }));
    proc_users::pages(mm, everything(), &all, &mut |piece, _, page, users| {
        if let Some((tally, Piece { head: (.., shown), .. })) = tallies.get_mut(piece).zip(all.get(piece)) {
            tally.page(shown, page, users);
        }
    })?;
    all.iter()
        .zip(&tallies)
        .try_for_each(|(Piece { head: (line, flags, _), .. }, tally)| each(line, flags, tally))
}

/// /proc/N/smaps.
pub fn smaps(mm: Option<&Mm>) -> Result<Text> {
    let mut text = Text::default();
    let Some(mm) = mm else { return Ok(text) };
    survey(mm, |line, flags, tally| {
        text.push(line)?;
        let size = kib(tally.size);
        text.push(format!("Size:           {size:>8} kB\nKernelPageSize:        4 kB\n").as_bytes())?;
        text.push(b"MMUPageSize:           4 kB\n")?;
        text.push(counts(tally, false).as_bytes())?;
        text.push(b"THPeligible:           0\n")?;
        text.push(flags.as_bytes())
    })?;
    Ok(text)
}

/// /proc/N/smaps_rollup.
pub fn rollup(mm: Option<&Mm>) -> Result<Text> {
    let mut text = Text::default();
    let mm = mm.ok_or(Errno::ESRCH)?;
    let (mut all, mut ends) = (Tally::default(), None);
    mm.aspace.mappings(&task::unpinned(), &mut |info| {
        let start = ends.map_or(info.range.start(), |(start, _)| start);
        ends = Some((start, info.range.end()));
    });
    survey(mm, |_, _, tally| {
        all.add(tally);
        Ok(())
    })?;
    if let Some((start, end)) = ends {
        let (start, end) = (start.base().as_u64(), end.base().as_u64());
        text.push(
            format!("{:<73}[rollup]\n", format!("{start:08x}-{end:08x} ---p 00000000 00:00 0 ")).as_bytes(),
        )?;
        text.push(counts(&all, true).as_bytes())?;
    }
    Ok(text)
}

/// Pages with frames, by kind: anonymous, of files, of shared memory.
fn resident(mm: &Mm) -> [u64; 3] {
    let mut counts = [0; 3];
    let mut memory = false;
    mm.aspace.inspect(everything(), &task::unpinned(), &mut |seen| match seen {
        Seen::Mapping(info) => {
            memory = match &info.mapping.backing {
                Backing::Object { object, .. } => object.is_memory(),
                Backing::Anonymous => false,
            }
        }
        Seen::Page(_, Resident { frame: Some(_), usage, .. }) => {
            counts[if usage == Use::Anonymous { 0 } else { 1 + usize::from(memory) }] += 1;
        }
        Seen::Page(..) => {}
    });
    counts
}

/// Pages of the program's own code.
fn code_pages(mm: &Mm) -> u64 {
    let [start, end, ..] = *mm.image.lock();
    end.div_ceil(PAGE_SIZE).saturating_sub(start / PAGE_SIZE)
}

/// /proc/N/statm.
pub fn statm(mm: Option<&Mm>) -> Vec<u8> {
    let Some(mm) = mm else { return b"0 0 0 0 0 0 0\n".to_vec() };
    let totals = mm.aspace.usage(&task::unpinned()).totals;
    let [anonymous, file, memory] = resident(mm);
    format!(
        "{} {} {} {} 0 {} 0\n",
        totals.pages,
        anonymous + file + memory,
        file + memory,
        code_pages(mm),
        totals.data + totals.stack,
    )
    .into_bytes()
}

/// The lines of /proc/N/status that are about memory.
pub fn status(mm: &Mm) -> String {
    let usage = mm.aspace.usage(&task::unpinned());
    let totals = usage.totals;
    let [anonymous, file, memory] = resident(mm);
    let rss = anonymous + file + memory;
    let code = code_pages(mm);
    let rows = [
        ("VmPeak", totals.peak),
        ("VmSize", totals.pages),
        ("VmLck", totals.locked),
        ("VmPin", 0),
        ("VmHWM", usage.peak_resident.max(rss)),
        ("VmRSS", rss),
        ("RssAnon", anonymous),
        ("RssFile", file),
        ("RssShmem", memory),
        ("VmData", totals.data),
        ("VmStk", totals.stack),
        ("VmExe", code),
        ("VmLib", totals.code.saturating_sub(code)),
        ("VmPTE", usage.table_pages),
        ("VmSwap", 0),
    ];
    let mut out = String::new();
    for (name, pages) in rows {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name}:\t{:>8} kB", kib(pages));
    }
    out
}
