//! What lies at an address: names for memory and for instructions.
//!
//! Three things know: the kernel's records of its places (`record.rs`), the symbols of the kernel, and those of the
//! program. A place that is smaller than another says more; a symbol says more than the whole of a program.

use std::path::Path;

use super::source::{Elf, Function, Source};
use crate::record::{Place, ProgramPlace};

/// Where the kernel's half begins.
const KERNEL_HALF: u64 = 1 << 63;
/// The place that stands for all of memory, as the kernel calls it.
const FRAMES: &str = "page frames";
/// The same of Linux's, which has its objects there too.
pub const LINUX_DIRECT_MAP: &str = "slab objects and page frames";
/// Page tables are written by the functions of this folder, and by nobody else.
const PAGE_TABLES: &str = "crates/pagetable/";
/// What the kernel zeroes pages with, called or inlined.
const CLEARING: [&str; 5] =
    ["memset", "marker::clear_page", "clear_page_rep", "clear_page_orig", "clear_page_erms"];

/// Knows names.
pub struct Names {
    kernel: Box<dyn Source>,
    places: Vec<Place>,
    programs: Vec<Program>,
}

/// A program's file in memory.
struct Program {
    at: ProgramPlace,
    name: String,
    source: Option<Box<dyn Source>>,
}

/// The name of a piece of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// What it is, as in `address space of PID 2: lock`.
    pub what: String,
    /// How many bytes it is from the beginning of that.
    pub offset: u64,
    /// What sort of thing.
    pub kind: Kind,
}

/// Sorts of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A static variable of the kernel's, or one CPU's part of it, or one of its tables.
    KernelStatic,
    /// An object in the kernel's heap.
    KernelObject,
    /// The kernel's heap, where nothing more is known.
    KernelHeap,
    /// A kernel stack.
    KernelStack,
    /// A page table of an address space.
    PageTable,
    /// A page that belongs to nothing known: mostly a program's, seen while it is zeroed or copied.
    PageFrame,
    /// A program's memory.
    User,
    /// Nothing is known.
    Unknown,
}

impl Kind {
    /// As the JSON has it.
    pub fn key(self) -> &'static str {
        match self {
            Self::KernelStatic => "kernel_static",
            Self::KernelObject => "kernel_object",
            Self::KernelHeap => "kernel_heap",
            Self::KernelStack => "kernel_stack",
            Self::PageTable => "page_table",
            Self::PageFrame => "page_frame",
            Self::User => "user",
            Self::Unknown => "unknown",
        }
    }
}

impl Names {
    /// Names from those of the kernel, from what it said of its places and programs, and from the program's file on the
    /// host, whose path in the guest is `guest`.
    pub fn new(
        kernel: Box<dyn Source>,
        places: &[Place],
        programs: &[ProgramPlace],
        host: &Path,
        guest: &[u8],
    ) -> Self {
        let program = |at: &ProgramPlace| Program {
            name: at.path.rsplit('/').next().unwrap_or(&at.path).to_owned(),
            source: (at.path.as_bytes() == guest).then(|| Box::new(Elf::new(host, at.bias)) as _),
            at: at.clone(),
        };
        let programs = programs.iter().map(program).collect();
        Self { kernel, places: places.to_vec(), programs }
    }

    /// Names from these sources.
    #[cfg(test)]
    pub fn from_sources(kernel: Box<dyn Source>, places: Vec<Place>, user: Option<Box<dyn Source>>) -> Self {
        let at = ProgramPlace { bias: 0x1000, end: 0x9000, path: "/bin/p".to_owned() };
        Self { kernel, places, programs: vec![Program { at, name: "p".to_owned(), source: user }] }
    }

    /// The functions at an instruction, as [`Source::functions`]; an address where nothing is known.
    pub fn functions(&self, pc: u64) -> Vec<Function> {
        let found = if pc >= KERNEL_HALF {
            self.kernel.functions(pc)
        } else {
            let program = self.program(pc);
            let mut found = program.and_then(|p| Some(p.source.as_ref()?.functions(pc))).unwrap_or_default();
            if found.is_empty()
                && let Some(name) = self.user_place(pc).or_else(|| program.map(|p| p.name.clone()))
            {
                found.push(Function { name: format!("{name} {pc:#x}"), place: String::new() });
            }
            found
        };
        match found.is_empty() {
            true => vec![Function { name: format!("{pc:#x}"), place: String::new() }],
            false => found,
        }
    }

    /// The name of a line that was accessed by these virtual addresses, 0 for none, by instructions in these functions.
    pub fn line(&self, kernel: u64, user: u64, functions: &[Vec<Function>]) -> Name {
        let mut frames = FRAMES.to_owned();
        if kernel != 0 {
            let name = self.kernel_memory(kernel);
            match name.kind {
                Kind::PageFrame => frames = name.what,
                Kind::Unknown => frames = "kernel memory without a name".to_owned(),
                _ => return name,
            }
        }
        let by = |test: &dyn Fn(&Function) -> bool| functions.iter().flatten().any(test);
        if by(&|f| f.place.starts_with(PAGE_TABLES)) {
            return Name { what: "page tables".to_owned(), offset: kernel & 0xfff, kind: Kind::PageTable };
        }
        if user != 0 {
            return self.user_memory(user);
        }
        if kernel == 0 {
            return Name { what: "?".to_owned(), offset: 0, kind: Kind::Unknown };
        }
        let what = match by(&|f| CLEARING.iter().any(|name| f.name.ends_with(name))) {
            true => "page frames, zeroed".to_owned(),
            false => frames,
        };
        Name { what, offset: kernel & 0xfff, kind: Kind::PageFrame }
    }

    /// What lies at an address of the kernel's half.
    fn kernel_memory(&self, address: u64) -> Name {
        let symbol = self.kernel.object(address);
        let place = self.place(address);
        match (place, symbol) {
            // A table of the kernel's that is divided among CPUs says more than its symbol; so does whatever has a
            // symbol around it. Areas are for what has none.
            (Some((what, place)), symbol) if symbol.is_none() || !place.is_area() => {
                let kind = match &*what {
                    FRAMES | LINUX_DIRECT_MAP => Kind::PageFrame,
                    "kernel heap" => Kind::KernelHeap,
                    _ if what.starts_with("kernel stack") => Kind::KernelStack,
                    _ if symbol.is_some() || what.starts_with("frames: ") => Kind::KernelStatic,
                    _ => Kind::KernelObject,
                };
                let offset = match place.stride {
                    0 => address - place.start,
                    stride => (address - place.start) % stride,
                };
                Name { what, offset, kind }
            }
            (_, Some((what, offset))) => Name { what, offset, kind: Kind::KernelStatic },
            _ => Name { what: format!("{address:#x}"), offset: 0, kind: Kind::Unknown },
        }
    }

    /// What lies at an address of a program's.
    fn user_memory(&self, address: u64) -> Name {
        let name = |what, offset| Name { what, offset, kind: Kind::User };
        if let Some(program) = self.program(address) {
            let found = program.source.as_ref().and_then(|source| source.object(address));
            return match found {
                Some((what, offset)) => name(format!("{} ({})", what, program.name), offset),
                None => name(format!("file of {}", program.name), address - program.at.bias),
            };
        }
        match self.place(address) {
            Some((what, place)) => name(format!("program's {what}"), address - place.start),
            None => name(format!("program's mapping around {:#x}", address >> 21 << 21), address & 0x1f_ffff),
        }
    }

    /// The program whose file `address` lies in.
    fn program(&self, address: u64) -> Option<&Program> {
        self.programs.iter().find(|p| (p.at.first()..p.at.end).contains(&address))
    }

    fn user_place(&self, address: u64) -> Option<String> {
        self.place(address).map(|(what, _)| what)
    }

    /// The smallest place that `address` lies in, and its name: the last one's if several objects had that range one
    /// after the other.
    fn place(&self, address: u64) -> Option<(String, &Place)> {
        let around = self.places.iter().filter(|p| (p.start..p.end).contains(&address));
        let size = around.clone().map(|p| p.end - p.start).min()?;
        let mut same = around.filter(|p| p.end - p.start == size);
        let first = same.next()?;
        let (mut last, mut others) = (first, 0);
        for place in same {
            others += u32::from(place.name != last.name);
            last = place;
        }
        let mut what = last.name.clone();
        if let Some(cpu) = (address - last.start).checked_div(last.stride) {
            what = format!("{what} of CPU {cpu}");
        }
        if others > 0 {
            what = format!("{what} (and {others} before)");
        }
        Some((what, last))
    }
}

/// A symbol's name, readable: without hash, crate prefix, types' parameters and the traits that a function is of.
pub fn shorten(symbol: &str) -> String {
    let name = match rustc_demangle::try_demangle(symbol) {
        Ok(name) => format!("{name:#}"),
        Err(_) => symbol.to_owned(),
    };
    let mut rest = name.as_str();
    let mut short = String::new();
    // `<Type as Trait>::function` is `Type::function`.
    if let Some(inner) = rest.strip_prefix('<')
        && let Some(end) = closing(inner)
    {
        let of = &inner[..end];
        short += of.split(" as ").next().unwrap_or(of).trim_start_matches(['&', '*']);
        rest = &inner[end + 1..];
    }
    short += rest;
    drop_parameters(&short)
        .replace("quire_kernel::", "")
        .replace("quire_", "")
        .replace("{{closure}}", "{closure}")
}

/// Where the bracket is that closes one which opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    let mut last = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if last != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
        last = c;
    }
    None
}

/// `A<B<C>>::f::<D>` as `A<..>::f`.
fn drop_parameters(name: &str) -> String {
    let mut short = String::new();
    let mut rest = name;
    while let Some(open) = rest.find('<') {
        let Some(length) = closing(&rest[open + 1..]) else { break };
        match rest[..open].strip_suffix("::") {
            Some(function) => short += function,
            None => {
                short += &rest[..open];
                // A function's own, at the end, say nothing; a type's say that it has some.
                if open + 1 + length + 1 < rest.len() {
                    short += "<..>";
                }
            }
        }
        rest = &rest[open + 1 + length + 1..];
    }
    short + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<(u64, u64, &'static str)>);

    impl Source for Fixed {
        fn functions(&self, pc: u64) -> Vec<Function> {
            let found = self.0.iter().find(|f| (f.0..f.1).contains(&pc));
            found.map(|f| Function { name: f.2.to_owned(), place: String::new() }).into_iter().collect()
        }
        fn object(&self, address: u64) -> Option<(String, u64)> {
            let found = self.0.iter().find(|f| (f.0..f.1).contains(&address));
            found.map(|f| (f.2.to_owned(), address - f.0))
        }
    }

    fn place(start: u64, end: u64, stride: u64, name: &str) -> Place {
        Place { start, end, stride, name: name.to_owned() }
    }

    const HEAP: u64 = 0xffff_8000_0040_0000;
    const IMAGE: u64 = 0xffff_ffff_8040_0000;

    fn names() -> Names {
        let kernel = Fixed(vec![
            (IMAGE, IMAGE + 0x400, "sched::CPUS"),
            (IMAGE + 0x400, IMAGE + 0x800, "futex::BUCKETS"),
        ]);
        let user = Fixed(vec![(0x2000, 0x2008, "counter")]);
        let places = vec![
            place(0xffff_8000_0000_0000, 0xffff_c000_0000_0000, 0, FRAMES),
            place(0xffff_c000_0000_0000, 0xffff_d000_0000_0000, 0, "kernel stacks"),
            place(HEAP, HEAP + 0x10000, 0, "kernel heap"),
            place(HEAP + 0x100, HEAP + 0x200, 0, "address space of PID 2"),
            place(HEAP + 0x140, HEAP + 0x160, 0, "address space of PID 2: lock"),
            place(HEAP + 0x140, HEAP + 0x160, 0, "address space of PID 4: lock"),
            place(IMAGE, IMAGE + 0x400, 0x100, "run queue"),
            place(0x7fff_0000_0000, 0x7fff_0010_0000, 0, "stack"),
        ];
        Names::from_sources(Box::new(kernel), places, Some(Box::new(user)))
    }

    fn named(kernel: u64, user: u64) -> (String, u64, Kind) {
        let Name { what, offset, kind } = names().line(kernel, user, &[]);
        (what, offset, kind)
    }

    #[test]
    fn the_smallest_place_names_an_address() {
        assert_eq!(
            named(HEAP + 0x148, 0),
            ("address space of PID 4: lock (and 1 before)".into(), 8, Kind::KernelObject)
        );
        assert_eq!(named(HEAP + 0x100, 0), ("address space of PID 2".into(), 0, Kind::KernelObject));
        assert_eq!(named(HEAP + 0x300, 0), ("kernel heap".into(), 0x300, Kind::KernelHeap));
        assert_eq!(named(HEAP - 0x10, 0), ("page frames".into(), 0xff0, Kind::PageFrame));
        assert_eq!(named(0xffff_c000_0000_0010, 0).2, Kind::KernelStack);
    }

    #[test]
    fn a_cpus_part_says_which_cpus() {
        assert_eq!(named(IMAGE + 0x208, 0), ("run queue of CPU 2".into(), 8, Kind::KernelStatic));
        assert_eq!(named(IMAGE + 0x410, 0), ("futex::BUCKETS".into(), 0x10, Kind::KernelStatic));
    }

    #[test]
    fn programs_memory_has_names_too() {
        assert_eq!(named(0, 0x2004), ("counter (p)".into(), 4, Kind::User));
        assert_eq!(named(0, 0x3004), ("file of p".into(), 0x2004, Kind::User));
        assert_eq!(named(0, 0x7fff_0000_0010), ("program's stack".into(), 0x10, Kind::User));
        assert_eq!(named(0, 0x7000_0020_0010).0, "program's mapping around 0x700000200000");
        // By the kernel's direct map too, as when it copies.
        assert_eq!(named(HEAP - 0x10, 0x2000).0, "counter (p)");
        assert_eq!(named(0, 0), ("?".into(), 0, Kind::Unknown));
    }

    #[test]
    fn page_tables_are_known_by_who_writes_them() {
        let by = |name: &str, place: &str| vec![Function { name: name.to_owned(), place: place.to_owned() }];
        let names = names();
        let table = by("insert", "crates/pagetable/src/lib.rs:9");
        assert_eq!(names.line(HEAP - 0x10, 0, &[table]).kind, Kind::PageTable);
        let zeroed =
            names.line(HEAP - 0x10, 0, &[by("hw::marker::clear_page", "kernel/src/hw/marker.rs:70")]);
        assert_eq!((&*zeroed.what, zeroed.kind), ("page frames, zeroed", Kind::PageFrame));
    }

    #[test]
    fn instructions_have_functions() {
        let names = names();
        assert_eq!(names.functions(IMAGE)[0].name, "sched::CPUS");
        assert_eq!(names.functions(0x2000)[0].name, "counter");
        assert_eq!(names.functions(0x3000)[0].name, "p 0x3000");
        assert_eq!(names.functions(0xfff0)[0].name, "0xfff0");
    }

    #[test]
    fn names_are_shortened() {
        for (long, short) in [
            (
                "quire_sync::rwlock::RwLock<quire_aspace::locked::Space>::read",
                "sync::rwlock::RwLock<..>::read",
            ),
            (
                "<quire_aspace::locked::Locked as quire_aspace::AddressSpace>::fault",
                "aspace::locked::Locked::fault",
            ),
            ("quire_kernel::trap::trap", "trap::trap"),
            ("core::ptr::drop_in_place::<alloc::sync::Arc<T>>", "core::ptr::drop_in_place"),
            ("<&mut F as core::ops::FnOnce<(A,)>>::call_once", "mut F::call_once"),
            ("f::<fn(u8) -> u8>", "f"),
            ("main", "main"),
            ("try_lock<sync::rwlock::State>", "try_lock"),
            ("a < b", "a < b"),
        ] {
            assert_eq!(shorten(long), short, "{long}");
        }
        assert_eq!(shorten("_RNvNtCs1234_12quire_kernel4trap4trap"), "trap::trap");
    }
}
