//! Loading ELF programs: System V ABI, AMD64 supplement, chapter 5.
//!
//! Everything in a file is an allegation. The header and the program headers are read and checked before the old
//! program is given up ([`Image::read`]); mapping them ([`Image::map`]) can still fail for lack of memory or room.

use alloc::{sync::Arc, vec, vec::Vec};

use addr::{PAGE_SIZE, Page, PageRange, Prot};
use aspace::{AddressSpace, Backing, Mapping, Placement};
use elf::{
    abi::{EM_X86_64, ET_DYN, ET_EXEC, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_INTERP, PT_LOAD},
    endian::LittleEndian,
    file::Class,
    segment::{ProgramHeader, SegmentTable},
};

use crate::{errno::Errno, file::Entry, task, usercopy};

/// Where a position-independent program without an interpreter goes; Linux without randomisation uses the same.
pub const PIE_BASE: u64 = 0x5555_5555_4000;
/// Where the interpreter of a dynamic program goes.
pub const INTERPRETER_BASE: u64 = 0x7fff_e000_0000;

/// Most program headers that are accepted; Linux allows 64 KiB of them.
const MAX_HEADERS: u16 = 1024;

/// A checked ELF file.
pub struct Image {
    file: Arc<Entry>,
    entry: u64,
    position_independent: bool,
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
    /// Read and check the headers of `file`. ENOEXEC if it is no ELF file that this machine can run.
    pub fn read(file: Arc<Entry>) -> Result<Self, Errno> {
        let mut head = [0u8; 64];
        let n = file.read_at(0, &mut head)?;
        if n < head.len() {
            return Err(Errno::ENOEXEC);
        }
        let bad = |_| Errno::ENOEXEC;
        let ident =
            elf::file::parse_ident::<LittleEndian>(head.get(..16).ok_or(Errno::ENOEXEC)?).map_err(bad)?;
        let h =
            elf::file::FileHeader::parse_tail(ident, head.get(16..).ok_or(Errno::ENOEXEC)?).map_err(bad)?;
        let supported = h.class == Class::ELF64
            && h.e_machine == EM_X86_64
            && (h.e_type == ET_EXEC || h.e_type == ET_DYN)
            && h.e_phentsize == 56
            && (1..=MAX_HEADERS).contains(&h.e_phnum);
        if !supported {
            return Err(Errno::ENOEXEC);
        }
        let mut raw = vec![0u8; h.e_phnum as usize * 56];
        if file.read_at(h.e_phoff, &mut raw)? < raw.len() {
            return Err(Errno::ENOEXEC);
        }
        let all: Vec<ProgramHeader> = SegmentTable::new(LittleEndian, Class::ELF64, &raw).iter().collect();
        let segments: Vec<_> = all.iter().filter(|p| p.p_type == PT_LOAD && p.p_memsz > 0).copied().collect();
        let mut last = 0;
        for s in &segments {
            let end = s.p_vaddr.checked_add(s.p_memsz).ok_or(Errno::ENOEXEC)?;
            let aligned = s.p_vaddr % PAGE_SIZE == s.p_offset % PAGE_SIZE;
            if !aligned || s.p_filesz > s.p_memsz || s.p_vaddr < last || end > addr::USER_END {
                return Err(Errno::ENOEXEC);
            }
            s.p_offset.checked_add(s.p_filesz).ok_or(Errno::ENOEXEC)?;
            last = end;
        }
        if segments.is_empty() {
            return Err(Errno::ENOEXEC);
        }
        let interpreter = match all.iter().find(|p| p.p_type == PT_INTERP) {
            Some(p) if (2..=4096).contains(&p.p_filesz) => {
                let mut path = vec![0u8; p.p_filesz as usize];
                if file.read_at(p.p_offset, &mut path)? < path.len() || path.pop() != Some(0) {
                    return Err(Errno::ENOEXEC);
                }
                Some(path)
            }
            Some(_) => return Err(Errno::ENOEXEC),
            None => None,
        };
        let executable_stack = all.iter().any(|p| p.p_type == PT_GNU_STACK && p.p_flags & PF_X != 0);
        Ok(Self {
            file,
            entry: h.e_entry,
            position_independent: h.e_type == ET_DYN,
            segments,
            headers: (h.e_phoff, h.e_phnum),
            interpreter,
            executable_stack,
        })
    }

    /// Map the segments; a position-independent image goes to `base`.
    pub fn map(&self, space: &dyn AddressSpace, base: u64) -> Result<Placed, Errno> {
        let first = self.segments.first().ok_or(Errno::ENOEXEC)?;
        // Modulo 2^64: the file may be linked for an address above `base`.
        let first_page = first.p_vaddr / PAGE_SIZE * PAGE_SIZE;
        let bias = if self.position_independent { base.wrapping_sub(first_page) } else { 0 };
        let mut zero = Vec::new();
        let mut headers = 0;
        let mut end = 0;
        let mut image = [u64::MAX, 0, 0, 0];
        let mut mapped_to = 0;
        for s in &self.segments {
            let start = s.p_vaddr.wrapping_add(bias);
            let memory_end = start.checked_add(s.p_memsz).ok_or(Errno::ENOEXEC)?;
            let file_end = start + s.p_filesz;
            if memory_end > addr::USER_END {
                return Err(Errno::ENOMEM);
            }
            if s.p_flags & PF_X != 0 {
                (image[0], image[1]) = (image[0].min(start), image[1].max(file_end));
            }
            (image[2], image[3]) = (image[2].max(start), image[3].max(file_end));
            let (oh, n) = self.headers;
            if s.p_offset <= oh && oh + u64::from(n) * 56 <= s.p_offset + s.p_filesz {
                headers = start + (oh - s.p_offset);
            }
            let mut prot = Prot::empty();
            prot.set(Prot::READ, s.p_flags & PF_R != 0);
            prot.set(Prot::WRITE, s.p_flags & PF_W != 0);
            prot.set(Prot::EXEC, s.p_flags & PF_X != 0);
            let first_page = start / PAGE_SIZE;
            let file_pages = if s.p_filesz > 0 { file_end.div_ceil(PAGE_SIZE) } else { first_page };
            let all_pages = memory_end.div_ceil(PAGE_SIZE);
            // Two segments of a damaged file may not share a page.
            if first_page < mapped_to {
                return Err(Errno::ENOEXEC);
            }
            mapped_to = all_pages;
            if file_pages > first_page {
                let backing = Backing::Object { object: self.file.object(), page: s.p_offset / PAGE_SIZE };
                map_fixed(space, first_page, file_pages, prot, backing)?;
            }
            if all_pages > file_pages {
                map_fixed(space, file_pages, all_pages, prot, Backing::Anonymous)?;
            }
            if s.p_memsz > s.p_filesz && file_end % PAGE_SIZE != 0 && s.p_filesz > 0 {
                if !prot.contains(Prot::WRITE) {
                    return Err(Errno::ENOEXEC);
                }
                zero.push((file_end, (file_pages * PAGE_SIZE - file_end).min(memory_end - file_end)));
            }
            end = memory_end;
        }
        Ok(Placed {
            bias,
            entry: self.entry.wrapping_add(bias),
            headers,
            header_count: self.headers.1.into(),
            end,
            image,
            zero,
        })
    }
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
    prot: Prot,
    backing: Backing,
) -> Result<(), Errno> {
    let start = Page::new(from).ok_or(Errno::ENOMEM)?;
    space
        .map(Placement::FixedNoReplace(start), to - from, Mapping::new(prot, backing), &task::unpinned())
        .map(|_: PageRange| ())
        .map_err(|_| Errno::ENOMEM)
}
