//! The shape of a process that runs, from what Linux says of it.
//!
//! `/proc/PID/smaps` has the mappings, with flags and with the part that is resident; `/proc/PID/pagemap` has the pages. Both may be
//! read by whoever may trace the process. Names of files are not kept, but for that of the program.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
};

use crate::shape::{self, FLAGS, Kind, Map, Shape};

/// Pages whose entries are read at once.
const CHUNK: u64 = 1 << 16;
/// What says that a page is there, or was and is on disk: it has an entry in a page table. The upper byte of a page's word.
const RESIDENT: u8 = 0xc0;

/// The shape of process `pid`.
pub fn record(pid: u32) -> Result<Shape, String> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).map_err(|error| problem(pid, &path, &error))
    };
    let smaps = read("smaps")?;
    let (mut maps, present) = mappings(&smaps)?;
    if maps.is_empty() {
        return Err(format!("process {pid} has no memory of its own: it is the kernel's, or has ended"));
    }
    let path = format!("/proc/{pid}/pagemap");
    let mut pagemap = File::open(&path).map_err(|error| problem(pid, &path, &error))?;
    let mut resident: Vec<(u64, u64)> = Vec::new();
    for (map, _) in maps.iter().zip(&present).filter(|(_, present)| **present) {
        pages(&mut pagemap, map, &mut resident).map_err(|error| problem(pid, &path, &error))?;
    }
    // Mappings may come and go meanwhile; a process that is being changed is better stopped.
    let now = read("maps")?;
    if now.lines().filter(|line| is_users(line)).count() != maps.len() {
        return Err(format!("process {pid} changes its mappings: stop it first, with kill -STOP {pid}"));
    }
    number(&mut maps);
    let status = read("status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Without what the host's builder has added.
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    let tables = field("VmPTE:").split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
    Ok(Shape {
        about: format!("{}, on Linux {}", field("Name:"), kernel),
        linux: vma_bytes().zip(tables.map(|kib| kib << 10)),
        maps,
        resident,
    })
}

/// Why something of a process can't be read, and what to do.
fn problem(pid: u32, path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no process {pid}"),
        io::ErrorKind::PermissionDenied => {
            format!("{path}: {error}; be its user (and have kernel.yama.ptrace_scope=0), or use sudo")
        }
        _ => format!("{path}: {error}"),
    }
}

/// Whether a line begins a mapping of user space.
fn is_users(line: &str) -> bool {
    header(line).is_some_and(|(_, end, _)| end <= shape::END)
}

/// First page, end, and what follows in a line that begins a mapping.
fn header(line: &str) -> Option<(u64, u64, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let page = |hex| u64::from_str_radix(hex, 16).ok().map(|address| address >> 12);
    Some((page(start)?, page(end)?, rest))
}

/// Mappings as `smaps` lists them, and whether each has pages that are resident. Objects have no numbers yet: of a file there is a
/// hash of device and inode.
fn mappings(smaps: &str) -> Result<(Vec<Map>, Vec<bool>), String> {
    let (mut maps, mut present) = (Vec::<Map>::new(), Vec::<bool>::new());
    let (mut files, mut skipped) = (HashMap::new(), false);
    for line in smaps.lines() {
        if let Some((start, end, rest)) = header(line) {
            skipped = end > shape::END;
            if skipped {
                continue;
            }
            let odd = || format!("/proc/PID/smaps has the line {line:?}");
            let mut words = rest.split_whitespace();
            let (rights, shared) = shape::rights(words.next().unwrap_or_default())?;
            let offset = words.next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let (device, inode) = (words.next(), words.next());
            let (Some(offset), Some(device), Some(inode)) = (offset, device, inode) else {
                return Err(odd());
            };
            let kind = match (inode, words.next().unwrap_or_default()) {
                ("0", "[heap]") => Kind::Heap,
                ("0", "[stack]") => Kind::Stack,
                ("0", name) if name.starts_with("[v") => Kind::Kernel,
                ("0", _) => Kind::Anon,
                _ => Kind::File,
            };
            let next = files.len() as u32 + 1;
            let object = match kind {
                Kind::File => *files.entry((device.to_owned(), inode.to_owned())).or_insert(next),
                _ => 0,
            };
            let offset = if kind == Kind::File { offset >> 12 } else { 0 };
            maps.push(Map { start, end, rights, shared, kind, object, offset, flags: Vec::new() });
            present.push(false);
        } else if let (Some(map), Some(present), false) = (maps.last_mut(), present.last_mut(), skipped) {
            match line.split_once(':') {
                Some(("Rss" | "Swap", size)) => *present |= size.trim() != "0 kB",
                Some(("VmFlags", flags)) => map.flags = kept(flags),
                _ => {}
            }
        }
    }
    Ok((maps, present))
}

/// What is kept of a line of flags.
fn kept(flags: &str) -> Vec<&'static str> {
    let has = |wanted: &str| flags.split_whitespace().any(|flag| flag == wanted);
    let is = |flag: &&&str| flag.strip_prefix("no-").map_or_else(|| has(flag), |right| !has(right));
    FLAGS.iter().filter(is).copied().collect()
}

/// Objects are numbered as their mappings come; what the kernel gives has none.
fn number(maps: &mut [Map]) {
    let mut known: Vec<u32> = Vec::new();
    for map in maps.iter_mut().filter(|map| map.object != 0) {
        let at = known.iter().position(|object| *object == map.object).unwrap_or_else(|| {
            known.push(map.object);
            known.len() - 1
        });
        map.object = at as u32 + 1;
    }
}

/// Add the mapping's resident pages.
fn pages(pagemap: &mut File, map: &Map, resident: &mut Vec<(u64, u64)>) -> io::Result<()> {
    let mut words = Vec::new();
    let mut at = map.start;
    while at < map.end {
        let n = CHUNK.min(map.end - at);
        words.resize(n as usize * 8, 0);
        pagemap.seek(SeekFrom::Start(at * 8))?;
        pagemap.read_exact(&mut words)?;
        for (page, word) in (at..).zip(words.chunks_exact(8)).filter(|(_, word)| word[7] & RESIDENT != 0) {
            debug_assert_eq!(word.len(), 8);
            match resident.last_mut() {
                Some(last) if last.1 == page => last.1 += 1,
                _ => resident.push((page, page + 1)),
            }
        }
        at += n;
    }
    Ok(())
}

/// Bytes of a mapping in this kernel, if it says so (to root).
fn vma_bytes() -> Option<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = slabs.lines().find(|line| line.starts_with("vm_area_struct "))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_with_their_flags() {
        let smaps = "\
00400000-00402000 r-xp 00001000 fd:00 17                         /usr/bin/a program
Rss:                   8 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me sd
00602000-00605000 rw-s 00000000 00:01 9                          /dev/zero (deleted)
Rss:                   0 kB
VmFlags: rd wr mr mw dd
01000000-01021000 rw-p 00000000 00:00 0                          [heap]
Rss:                   0 kB
Swap:                  4 kB
VmFlags: rd wr mr mw me nr
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0          [vsyscall]
Rss:                   4 kB
VmFlags: ex
";
        let (maps, present) = mappings(smaps).unwrap();
        assert_eq!(present, [true, false, true]);
        let kinds: Vec<_> = maps.iter().map(|map| map.kind).collect();
        assert_eq!(kinds, [Kind::File, Kind::File, Kind::Heap]);
        assert_eq!((maps[0].start, maps[0].end, maps[0].offset), (0x400, 0x402, 1));
        assert_ne!(maps[0].object, maps[1].object);
        assert_eq!((maps[1].shared, &maps[1].flags[..]), (true, &["dd", "no-me"][..]));
        assert_eq!(maps[2].flags, ["nr"]);
    }

    #[test]
    fn this_process_is_recorded() {
        // Other tests' threads come and go meanwhile, and what is recorded must hold still.
        let shape = (0..100).find_map(|_| record(std::process::id()).ok()).unwrap();
        assert_eq!(Shape::parse(&shape.write()), Ok(shape.clone()));
        assert!(shape.about.contains("Linux"), "{}", shape.about);
        // This stack is resident, and the code that runs.
        let local = 0u8;
        let code: fn() = this_process_is_recorded;
        for page in [(&raw const local).addr() as u64 >> 12, code as usize as u64 >> 12] {
            assert!(shape.resident.iter().any(|(from, to)| (*from..*to).contains(&page)), "{page:x}");
        }
        let (tables, ours) = (shape.linux.map(|(_, tables)| tables), crate::linux::bytes(&shape).1);
        // The kernel's number has no root, and may have tables that hold nothing any more.
        assert!(tables.is_none_or(|tables| ours <= tables + (64 << 10)), "{tables:?} and {ours}");
        let text = shape.write();
        assert!(!text.contains('/'), "a name of a file is in what was recorded");
    }

    #[test]
    fn a_process_that_is_not_there_is_said_to_be_none() {
        assert_eq!(record(u32::MAX).unwrap_err(), "there is no process 4294967295");
    }
}
