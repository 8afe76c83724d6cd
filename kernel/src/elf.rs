//! Loading ELF programs: System V ABI, AMD64 supplement, chapter 5.
//!
//! Everything in a file is an allegation, and what becomes of a false one is Linux's choice. The headers are read and
//! checked before the old program is given up ([`Image::read`]): what is wrong there is an errno. Of a segment Linux
//! finds out when it maps it, with the old program gone: the process dies of SIGSEGV ([`Failure::Unsound`]). Segments
//! come in any order and may overlap; a later one replaces what it covers. Of the identification only the magic number
//! counts.

use alloc::{sync::Arc, vec, vec::Vec};

use addr::{PAGE_SIZE, Page, PageRange, Prot};
use aspace::{AddressSpace, Backing, Mapping, Placement};
use elf::{
    abi::{
        ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_DYN, ET_EXEC, EV_CURRENT, PF_R, PF_W, PF_X, PT_GNU_STACK,
        PT_INTERP, PT_LOAD,
    },
    endian::LittleEndian,
    file::{Class, FileHeader, parse_ident},
    segment::{ProgramHeader, SegmentTable},
};

use crate::{errno::Errno, file::Entry, task, usercopy};

/// Where a position-independent program without an interpreter goes; Linux without randomisation uses the same.
pub const PIE_BASE: u64 = 0x5555_5555_4000;
/// Where the interpreter of a dynamic program goes.
pub const INTERPRETER_BASE: u64 = 0x7fff_e000_0000;

/// Bytes of a program header.
const HEADER_BYTES: u16 = 56;
/// Most program headers that are accepted: 64 KiB of them, as on Linux.
const MAX_HEADERS: u16 = ((64 << 10) / HEADER_BYTES as u32) as u16;
/// Bytes of the file's header.
const HEAD_BYTES: usize = 64;

/// Why a checked image can't be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The kernel is short of memory.
    NoMemory,
    /// A segment makes no sense, or its place is taken or not user space.
    Unsound,
}

impl From<aspace::Error> for Failure {
    fn from(e: aspace::Error) -> Self {
        if e == aspace::Error::NoMemory { Failure::NoMemory } else { Failure::Unsound }
    }
}

/// A checked ELF file.
pub struct Image {
    file: Arc<Entry>,
    entry: u64,
    /// `ET_EXEC`, `ET_DYN`, or for an interpreter something that can't be mapped.
    kind: u16,
    segments: Vec<ProgramHeader>,
    /// Offset and number of the program headers in the file.
    headers: (u64, u16),
    /// Path of the interpreter, if the program wants one.
    pub interpreter: Option<Vec<u8>>,
    /// Whether the stack must be executable.
    pub executable_stack: bool,
}

/// Where an image was mapped, in bytes.
pub struct Placed {
    /// Added to the file's addresses.
    pub bias: u64,
    /// First instruction.
    pub entry: u64,
    /// The program headers in memory; 0 if they aren't mapped.
    pub headers: u64,
    /// Number of program headers.
    pub header_count: u64,
    /// First byte after the last segment.
    pub end: u64,
    /// Code and initialised data: start and end of each, as Linux reckons them.
    pub image: [u64; 4],
    /// Parts of last pages that must read as zero: start and length.
    zero: Vec<(u64, u64)>,
}

impl Image {
    /// Read and check the headers of the program `file`. ENOEXEC if it is no ELF file that this machine can run; EIO for
    /// an interpreter's path beyond the file's end.
    pub fn read(file: Arc<Entry>) -> Result<Self, Errno> {
        let mut head = [0u8; HEAD_BYTES];
        file.read_at(0, &mut head)?;
        let (header, all) = headers(&file, &mut head).ok_or(Errno::ENOEXEC)?;
        if header.e_type != ET_EXEC && header.e_type != ET_DYN {
            return Err(Errno::ENOEXEC);
        }
        let interpreter = match all.iter().find(|p| p.p_type == PT_INTERP) {
            Some(p) if (2..=4096).contains(&p.p_filesz) => {
                let mut path = vec![0u8; p.p_filesz as usize];
                if file.read_at(p.p_offset, &mut path)? < path.len() {
                    return Err(Errno::EIO);
                }
                if path.pop() != Some(0) {
                    return Err(Errno::ENOEXEC);
                }
                let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
                path.truncate(end);
                Some(path)
            }
            Some(_) => return Err(Errno::ENOEXEC),
            None => None,
        };
        Ok(Self::assemble(file, &header, &all, interpreter))
    }

    /// As [`Self::read`] for the interpreter that a program names. EIO for a file shorter than a header, ELIBBAD for what
    /// is no ELF file of this machine.
    pub fn read_interpreter(file: Arc<Entry>) -> Result<Self, Errno> {
        let mut head = [0u8; HEAD_BYTES];
        if file.read_at(0, &mut head)? < HEAD_BYTES {
            return Err(Errno::EIO);
        }
        let (header, all) = headers(&file, &mut head).ok_or(Errno::ELIBBAD)?;
        Ok(Self::assemble(file, &header, &all, None))
    }

    fn assemble(
        file: Arc<Entry>,
        header: &FileHeader<LittleEndian>,
        all: &[ProgramHeader],
        interpreter: Option<Vec<u8>>,
    ) -> Self {
        Self {
            file,
            entry: header.e_entry,
            kind: header.e_type,
            segments: all.iter().filter(|p| p.p_type == PT_LOAD).copied().collect(),
            headers: (header.e_phoff, header.e_phnum),
            interpreter,
            executable_stack: all.iter().any(|p| p.p_type == PT_GNU_STACK && p.p_flags & PF_X != 0),
        }
    }

    /// Map the segments into a space that has nothing else there; a position-independent image goes to `base`.
    pub fn map(&self, space: &dyn AddressSpace, base: u64) -> Result<Placed, Failure> {
        let bias = match (self.kind, self.segments.first()) {
            (ET_EXEC, _) => 0,
            // Modulo 2^64: the file may be linked for an address above `base`.
            (ET_DYN, Some(first)) => base.wrapping_sub(first.p_vaddr / PAGE_SIZE * PAGE_SIZE),
            _ => return Err(Failure::Unsound),
        };
        let mut placed = Placed {
            bias,
            entry: self.entry.wrapping_add(bias),
            headers: 0,
            header_count: self.headers.1.into(),
            end: 0,
            image: [u64::MAX, 0, 0, 0],
            zero: Vec::new(),
        };
        for (i, s) in self.segments.iter().enumerate() {
            self.map_segment(space, s, i == 0, &mut placed)?;
        }
        Ok(placed)
    }

    /// Map `s`. Only the `first` may not cover anything: it would be something else than this image.
    fn map_segment(
        &self,
        space: &dyn AddressSpace,
        s: &ProgramHeader,
        first: bool,
        placed: &mut Placed,
    ) -> Result<(), Failure> {
        let start = s.p_vaddr.wrapping_add(placed.bias);
        let in_page = s.p_vaddr % PAGE_SIZE;
        let memory_end = start.checked_add(s.p_memsz).filter(|end| *end <= addr::USER_END);
        let memory_end = memory_end.ok_or(Failure::Unsound)?;
        if s.p_filesz > s.p_memsz {
            return Err(Failure::Unsound);
        }
        let file_end = start + s.p_filesz;
        let first_page = start / PAGE_SIZE;
        // The rest of the file's last page is cleared; whole pages of zeros begin after it.
        let file_pages =
            if s.p_filesz > 0 { file_end.div_ceil(PAGE_SIZE) } else { start.div_ceil(PAGE_SIZE) };
        let all_pages = memory_end.div_ceil(PAGE_SIZE);
        placed.zero.retain(|(at, _)| !(first_page..all_pages).contains(&(at / PAGE_SIZE)));
        let mut prot = Prot::empty();
        prot.set(Prot::READ, s.p_flags & PF_R != 0);
        prot.set(Prot::WRITE, s.p_flags & PF_W != 0);
        prot.set(Prot::EXEC, s.p_flags & PF_X != 0);
        if s.p_filesz > 0 {
            let offset = s.p_offset.checked_sub(in_page).filter(|o| o.is_multiple_of(PAGE_SIZE));
            let offset = offset.ok_or(Failure::Unsound)?;
            // File positions are signed.
            offset.checked_add(s.p_filesz).filter(|end| *end <= i64::MAX as u64).ok_or(Failure::Unsound)?;
            let backing = Backing::Object { object: self.file.object(), page: offset / PAGE_SIZE };
            map_fixed(space, first_page, file_pages, first, Mapping::new(prot, backing))?;
            if s.p_memsz > s.p_filesz && !file_end.is_multiple_of(PAGE_SIZE) && prot.contains(Prot::WRITE) {
                placed.zero.push((file_end, file_pages * PAGE_SIZE - file_end));
            }
        }
        if all_pages > file_pages {
            let zeros = Mapping::anonymous(Prot::READ | Prot::WRITE | prot & Prot::EXEC);
            map_fixed(space, file_pages, all_pages, first && s.p_filesz == 0, zeros)?;
        }
        if s.p_flags & PF_X != 0 {
            placed.image[0] = placed.image[0].min(start);
            placed.image[1] = placed.image[1].max(file_end);
        }
        (placed.image[2], placed.image[3]) = (placed.image[2].max(start), placed.image[3].max(file_end));
        let (at, count) = self.headers;
        let end = at.saturating_add(u64::from(count) * u64::from(HEADER_BYTES));
        if s.p_offset <= at && end <= s.p_offset.saturating_add(s.p_filesz) {
            placed.headers = start + (at - s.p_offset);
        }
        placed.end = placed.end.max(memory_end);
        Ok(())
    }
}

/// The file's header, from its first bytes `head`, and its program headers, if the file is one that this machine could
/// run. What the type is has not been looked at.
fn headers(file: &Entry, head: &mut [u8]) -> Option<(FileHeader<LittleEndian>, Vec<ProgramHeader>)> {
    // What follows the magic number says what Linux takes for granted.
    for (to, taken) in head.iter_mut().skip(4).zip([ELFCLASS64, ELFDATA2LSB, EV_CURRENT]) {
        *to = taken;
    }
    let (ident, tail) = head.split_at_checked(16)?;
    let header = FileHeader::parse_tail(parse_ident::<LittleEndian>(ident).ok()?, tail).ok()?;
    let fits = header.e_machine == EM_X86_64
        && header.e_phentsize == HEADER_BYTES
        && (1..=MAX_HEADERS).contains(&header.e_phnum);
    if !fits {
        return None;
    }
    let mut raw = vec![0u8; usize::from(header.e_phnum) * usize::from(HEADER_BYTES)];
    if file.read_at(header.e_phoff, &mut raw).ok()? < raw.len() {
        return None;
    }
    Some((header, SegmentTable::new(LittleEndian, Class::ELF64, &raw).iter().collect()))
}

impl Placed {
    /// Clear what follows the file's bytes in last pages. The calling task runs in the address space.
    pub fn clear_tails(&self) -> Result<(), Errno> {
        self.zero.iter().try_for_each(|(at, n)| usercopy::zero(*at, *n))
    }
}

fn map_fixed(
    space: &dyn AddressSpace,
    from: u64,
    to: u64,
    alone: bool,
    mapping: Mapping,
) -> Result<(), Failure> {
    let start = Page::new(from).ok_or(Failure::Unsound)?;
    let placement = if alone { Placement::FixedNoReplace(start) } else { Placement::Fixed(start) };
    space.map(placement, to - from, mapping, &task::unpinned()).map(|_: PageRange| ()).map_err(Failure::from)
}
