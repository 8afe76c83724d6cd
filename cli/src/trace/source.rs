//! Where names of addresses come from: an ELF file with its debug information.

use std::path::Path;

use addr2line::Loader;
use object::{
    Endianness, elf,
    read::elf::{ElfFile64, ProgramHeader},
    read::{Object, ObjectKind, ObjectSymbol, SymbolKind},
};

use super::names::{LINUX_DIRECT_MAP, shorten};
use crate::{
    record::{Place, ProgramPlace},
    symbols::Kallsyms,
    workspace,
};

/// Something that knows the names of one program's addresses, of a kernel's or a user's.
pub trait Source {
    /// The functions at the instruction `pc`: the innermost first, each inlined in the one after it, the last one not.
    /// Empty if there is none.
    fn functions(&self, pc: u64) -> Vec<Function>;
    /// The name of the variable or the like that `address` lies in, and how many bytes it is from its beginning.
    fn object(&self, address: u64) -> Option<(String, u64)>;
}

/// A function and where in it an instruction is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, shortened; of an inlined one without its path.
    pub name: String,
    /// File, relative to the workspace if it is there, and line; empty if not known.
    pub place: String,
}

/// The names in an ELF file that is loaded `bias` bytes above the addresses that it says.
pub struct Elf {
    loader: Option<Loader>,
    /// First byte, size, name; ascending.
    objects: Vec<(u64, u64, String)>,
    /// First byte, first byte after, and name of each segment that can be written.
    data: Vec<(u64, u64)>,
    bias: u64,
}

impl Elf {
    /// The names of `file`; none if it can't be read.
    pub fn new(file: &Path, bias: u64) -> Self {
        let bytes = std::fs::read(file).unwrap_or_default();
        let (objects, data) = match ElfFile64::<Endianness>::parse(&*bytes) {
            Ok(elf) => (objects(&elf), writable(&elf)),
            Err(_) => (Vec::new(), Vec::new()),
        };
        Self { loader: Loader::new(file).ok(), objects, data, bias }
    }
}

/// Where Linux, without randomisation, puts programs that can be anywhere (`ELF_ET_DYN_BASE` in its
/// `arch/x86/include/asm/elf.h`, rounded to a page).
const LINUX_BASE: u64 = 0x5555_5555_4000;

/// The areas of Linux's half, with four levels of page tables and with five (its
/// `Documentation/arch/x86/x86_64/mm.rst`).
pub fn linux_areas() -> Vec<Place> {
    const TIB: u64 = 1 << 40;
    let areas = [
        (0xffff_8880_0000_0000, 64 * TIB, LINUX_DIRECT_MAP),
        (0xffff_c900_0000_0000, 32 * TIB, "kernel stacks and vmalloc"),
        (0xffff_ea00_0000_0000, TIB, "page structures"),
        (0xff11_0000_0000_0000, 32 << 50, LINUX_DIRECT_MAP),
        (0xffa0_0000_0000_0000, 25 << 49, "kernel stacks and vmalloc"),
        (0xffd4_0000_0000_0000, 1 << 49, "page structures"),
    ];
    areas
        .map(|(start, size, name)| Place { start, end: start + size, stride: 0, name: name.to_owned() })
        .to_vec()
}

/// Where Linux puts the program in `file`, which is at `path` in the guest.
pub fn placed(file: &Path, path: &[u8]) -> ProgramPlace {
    let bytes = std::fs::read(file).unwrap_or_default();
    let path = String::from_utf8_lossy(path).into_owned();
    let Ok(elf) = ElfFile64::<Endianness>::parse(&*bytes) else {
        return ProgramPlace { bias: 0, end: 0, path };
    };
    let bias = if elf.kind() == ObjectKind::Dynamic { LINUX_BASE } else { 0 };
    let endian = elf.endian();
    let ends = elf.elf_program_headers().iter().filter(|s| s.p_type(endian) == elf::PT_LOAD);
    let end = ends.map(|s| s.p_vaddr(endian) + s.p_memsz(endian)).max().unwrap_or(0);
    ProgramPlace { bias, end: bias + end, path }
}

impl Source for Kallsyms {
    fn functions(&self, pc: u64) -> Vec<Function> {
        let name = |(name, _): (&str, u64)| Function { name: name.to_owned(), place: String::new() };
        self.find(pc).map(name).into_iter().collect()
    }

    fn object(&self, address: u64) -> Option<(String, u64)> {
        // The list has no sizes: what is far above the last symbol is the heap or the direct map.
        let (name, offset) = self.find(address).filter(|(_, offset)| *offset < FARTHEST)?;
        Some((name.to_owned(), offset))
    }
}

/// A variable of Linux's is no larger than this, in bytes.
const FARTHEST: u64 = 1 << 20;

/// The variables.
fn objects(elf: &ElfFile64<'_, Endianness>) -> Vec<(u64, u64, String)> {
    let variable = |kind| matches!(kind, SymbolKind::Data | SymbolKind::Tls | SymbolKind::Unknown);
    let mut all: Vec<_> = elf
        .symbols()
        .filter(|s| variable(s.kind()) && s.size() > 0 && s.is_definition())
        .filter(|s| s.kind() != SymbolKind::Tls)
        .filter_map(|s| Some((s.address(), s.size(), shorten(s.name().ok()?))))
        .collect();
    all.sort();
    all.dedup_by_key(|symbol| symbol.0);
    all
}

fn writable(elf: &ElfFile64<'_, Endianness>) -> Vec<(u64, u64)> {
    let endian = elf.endian();
    let segments = elf.elf_program_headers().iter();
    segments
        .filter(|s| s.p_type(endian) == elf::PT_LOAD && s.p_flags(endian).contains(elf::PF_W))
        .map(|s| (s.p_vaddr(endian), s.p_vaddr(endian) + s.p_memsz(endian)))
        .collect()
}

impl Source for Elf {
    fn functions(&self, pc: u64) -> Vec<Function> {
        let (mut found, mut nameless) = (Vec::new(), String::new());
        let (Some(loader), Some(at)) = (&self.loader, pc.checked_sub(self.bias)) else { return found };
        if let Ok(mut frames) = loader.find_frames(at) {
            while let Ok(Some(frame)) = frames.next() {
                let place = frame.location.and_then(|at| Some((at.file?.to_owned(), at.line.unwrap_or(0))));
                let place = place.map_or(String::new(), |(file, line)| format!("{}:{line}", inside(&file)));
                // Tables of lines alone have no name where nothing is inlined.
                match frame.function.as_ref().map(|f| f.raw_name()) {
                    Some(Ok(name)) => {
                        found.push(Function { name: within_module(shorten(&name), &place), place })
                    }
                    _ => nameless = place,
                }
            }
        }
        // The debug information has bare names; the symbol of what was not inlined has its path.
        if let Some(symbol) = loader.find_symbol(at) {
            let name = shorten(symbol);
            match found.last_mut() {
                Some(last) => last.name = name,
                None => found.push(Function { name, place: nameless }),
            }
        }
        found
    }

    fn object(&self, address: u64) -> Option<(String, u64)> {
        let at = address.checked_sub(self.bias)?;
        let after = self.objects.partition_point(|object| object.0 <= at);
        let found = self.objects[..after].last().filter(|(start, size, _)| at < start + size);
        if let Some((start, _, name)) = found {
            return Some((name.clone(), at - start));
        }
        let segment = self.data.iter().find(|(start, end)| (*start..*end).contains(&at))?;
        Some(("variables without a name".to_owned(), at - segment.0))
    }
}

/// The name of a function of the workspace's, which debug information has bare, with that of the module it's in.
fn within_module(name: String, place: &str) -> String {
    let path = Path::new(place.split(':').next().unwrap_or(place));
    let ours = path.is_relative() && !path.starts_with("library");
    let stem = |path: &Path| Some(path.file_stem()?.to_str()?.to_owned());
    let module = match stem(path) {
        // Named after the folder, a crate's after the one above `src`.
        Some(file) if ["lib", "mod", "main"].contains(&&*file) => {
            path.ancestors().skip(1).filter_map(stem).find(|folder| folder != "src")
        }
        file => file,
    };
    match module {
        Some(module) if ours && !name.contains("::") => format!("{module}::{name}"),
        _ => name,
    }
}

/// A file of the workspace relative to it, one of the standard library from its folder on.
fn inside(file: &str) -> String {
    match Path::new(file).strip_prefix(workspace::root()) {
        Ok(ours) => ours.display().to_string(),
        Err(_) => file.find("/library/").map_or(file, |at| &file[at + 1..]).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static VARIABLE: AtomicU64 = AtomicU64::new(7);

    #[inline(never)]
    fn caller() -> u64 {
        VARIABLE.fetch_add(1, Ordering::Relaxed)
    }

    #[test]
    fn functions_and_variables_are_found_in_a_program() {
        caller();
        // The test is position-independent: its addresses in memory are those of its file and where it was put.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let base = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
        let elf = Elf::new(&std::env::current_exe().unwrap(), base);
        let variable = (&raw const VARIABLE).addr() as u64;
        let (name, offset) = elf.object(variable + 3).unwrap();
        assert!(name.ends_with("tests::VARIABLE"), "{name}");
        assert_eq!(offset, 3);
        let functions = elf.functions(caller as *const () as u64);
        assert!(functions.last().unwrap().name.ends_with("tests::caller"), "{functions:?}");
        assert!(functions.last().unwrap().place.starts_with("cli/src/trace/source.rs:"), "{functions:?}");
        assert_eq!((elf.functions(base - 1), elf.object(base - 1)), (Vec::new(), None));
    }

    #[test]
    fn inlined_functions_are_named_with_their_module() {
        for (place, name) in [
            ("crates/sync/src/spin.rs:9", "spin::lock"),
            ("crates/pagetable/src/lib.rs:9", "pagetable::lock"),
            ("kernel/src/file/mod.rs:9", "file::lock"),
            ("library/core/src/sync/atomic.rs:9", "lock"),
            ("/elsewhere/talc/src/base/mod.rs:9", "lock"),
            ("", "lock"),
        ] {
            assert_eq!(within_module("lock".to_owned(), place), name, "{place}");
        }
    }

    #[test]
    fn linuxs_symbols_name_what_is_near_them() {
        let text = b"ffffffff81000000 T do_mmap\nffffffff82000000 D init_mm\n";
        let linux = Kallsyms::parse(text).unwrap();
        assert_eq!(linux.functions(0xffff_ffff_8100_0010)[0].name, "do_mmap");
        assert_eq!(linux.object(0xffff_ffff_8200_0008), Some(("init_mm".to_owned(), 8)));
        assert_eq!(linux.object(0xffff_ffff_8300_0000), None);
        assert_eq!((linux.functions(0x1000), linux.object(0x1000)), (Vec::new(), None));
    }

    #[test]
    fn a_program_that_can_be_anywhere_is_at_one_place_on_linux() {
        let this = placed(&std::env::current_exe().unwrap(), b"/bin/p");
        assert_eq!((this.bias, &*this.path), (LINUX_BASE, "/bin/p"));
        assert!(this.end > this.bias);
        assert_eq!(placed(Path::new("/nonexistent"), b"/p").end, 0);
    }

    #[test]
    fn without_a_file_nothing_has_a_name() {
        let elf = Elf::new(Path::new("/nonexistent"), 0);
        assert_eq!((elf.functions(0x1000), elf.object(0x1000)), (Vec::new(), None));
    }
}
