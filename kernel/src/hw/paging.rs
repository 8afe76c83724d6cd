//! The kernel's half of every address space: direct map, image, stacks, device registers.
//!
//! Everything here only ever *adds* translations. Nothing is unmapped or moved, so no CPU ever has a stale one, and
//! no flush is needed; kernel entries are global and survive a load of CR3. That is also why the stacks of threads
//! that ended are kept for reuse and never unmapped: the one rule, that a frame isn't reused while a CPU could
//! translate to it, then holds for stacks without a shootdown. Their number is the most threads there ever were.
//!
//! Rights: text can be executed and not written; nothing else can be executed; text and read-only data are read-only
//! in the direct map too. `selftest.rs` walks the tables and checks.

use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering},
};

use addr::{Frame, PAGE_SIZE, PhysAddr, Pte, VirtAddr};
use sync::SpinLock;

use super::{
    boot::{Info, KERNEL_BASE},
    cpu::{self, Features},
    irq,
};
use crate::{
    memory,
    places::Place,
    sanitize::{self, shadow},
};

/// Where physical address 0 is mapped.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Where kernel stacks are.
const STACKS: u64 = 0xffff_c000_0000_0000;
const STACKS_END: u64 = STACKS + (1 << 40);
/// Where device registers are.
const DEVICES: u64 = 0xffff_d000_0000_0000;

/// Every stack ends at a multiple of this, and is at most half of it; the rest is guard. Sanitized frames are larger.
const STACK_SLOT: u64 = if sanitize::ON { 128 << 10 } else { 64 << 10 };
/// Pages of a thread's stack: 32 KiB, or 64.
pub(super) const STACK_PAGES: usize = (STACK_SLOT / 2 / PAGE_SIZE) as usize;
/// Bytes of the stack on which the boot CPU boots.
pub(super) const BOOT_STACK_BYTES: u64 = 64 << 10;

const WRITE_THROUGH: u64 = 1 << 3;
const UNCACHED: u64 = 1 << 4;
/// Kernel data.
const DATA: u64 = Pte::PRESENT | Pte::WRITE | Pte::GLOBAL | Pte::NO_EXECUTE;
const READ_ONLY: u64 = Pte::PRESENT | Pte::GLOBAL | Pte::NO_EXECUTE;
const TEXT: u64 = Pte::PRESENT | Pte::GLOBAL;
const DEVICE: u64 = DATA | UNCACHED | WRITE_THROUGH;

/// Bytes mapped by an entry of a table of `level`, 0 for the leaf table.
pub const fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * level)
}

/// A page of 512 entries, in the image.
#[repr(C, align(4096))]
pub struct Table(UnsafeCell<[Pte; 512]>);
// SAFETY: changed under `TABLES`, or before other CPUs run.
unsafe impl Sync for Table {}

impl Table {
    const fn empty() -> Self {
        Self(UnsafeCell::new([Pte::EMPTY; 512]))
    }
    fn frame(&self) -> Frame {
        phys(self.0.get() as u64).frame()
    }
}

/// The root table; its lower half stays empty.
pub static ROOT: Table = Table::empty();
/// The tables below the root's upper half: static, so that all entries can be filled before there is an allocator.
static UPPER: [Table; 256] = [const { Table::empty() }; 256];

/// Who changes the tables below [`UPPER`]. Taken with interrupts on, by threads only, since it allocates frames.
static TABLES: SpinLock<()> = SpinLock::new(());

unsafe extern "C" {
    static image_start: u8;
    static image_rodata: u8;
    static image_data: u8;
    static image_end: u8;
    static boot_stack_guard: u8;
}

/// Physical address of something in the image.
fn phys(at: u64) -> PhysAddr {
    PhysAddr::new(at - KERNEL_BASE).unwrap_or_default()
}

/// First byte of the image, of its read-only data and of its data, and its end, as physical addresses; all but the
/// last begin a page.
pub fn image() -> [u64; 4] {
    [&raw const image_start, &raw const image_rodata, &raw const image_data, &raw const image_end]
        .map(|p| phys(p as u64).as_u64())
}

/// The root table of the kernel alone: its upper half is every address space's, its lower half is empty.
pub fn kernel_root() -> Frame {
    ROOT.frame()
}

/// The areas of the kernel's half, for what nothing more exact is known of.
pub fn places() -> [Place; 2] {
    let area = |what, from: u64, to: u64| Place::named(what, from as usize..to as usize);
    [area("kernel stacks", STACKS, STACKS_END), area("page frames", DIRECT_MAP, STACKS)]
}

/// Build the kernel's tables from what the loader says of RAM, and use them.
pub fn init(info: &Info) {
    let root = ROOT.0.get().cast::<Pte>();
    for (i, upper) in UPPER.iter().enumerate() {
        // SAFETY: within the root; nobody uses it yet.
        unsafe { root.add(256 + i).write_volatile(link(upper.frame())) };
    }
    let [text, rodata, data, end] = image();
    let direct = |from: u64, to: u64, flags: u64| {
        map_range(DIRECT_MAP + from, from, to.saturating_sub(from), flags)
            .and_then(|()| cover(DIRECT_MAP + from, to.saturating_sub(from)))
            .expect("no memory for the direct map");
    };
    // The first MiB whatever it is: the loader's data, the trampoline and ACPI's root are there.
    direct(0, 1 << 20, DATA);
    for ram in info.ram() {
        let from = ram.start.max(1 << 20);
        if from <= text && end <= ram.end {
            direct(from, text, DATA);
            direct(text, data, READ_ONLY);
            direct(data, ram.end, DATA);
        } else {
            direct(from, ram.end, DATA);
        }
    }
    let guard = phys((&raw const boot_stack_guard) as u64).as_u64();
    let sections = [
        (text, rodata, TEXT),
        (rodata, data, READ_ONLY),
        (data, guard, DATA),
        (guard + PAGE_SIZE, end, DATA),
    ];
    for (from, to, flags) in sections {
        map_range(KERNEL_BASE + from, from, to - from, flags).expect("no memory for the image's tables");
    }
    cover(KERNEL_BASE + text, end - text).expect("no memory for the image's shadow");
    cpu::enable_nx();
    cpu::load_cr3(kernel_root());
}

/// Map the shadow of `bytes` bytes from `at` on, where it isn't mapped yet; nothing but in the sanitized build. None
/// without memory. The caller holds `TABLES`, or is alone.
fn cover(at: u64, bytes: u64) -> Option<()> {
    if !sanitize::ON || bytes == 0 {
        return Some(());
    }
    let last = shadow::of(at + (bytes - 1));
    for page in (shadow::of(at) & !(PAGE_SIZE - 1)..=last).step_by(PAGE_SIZE as usize) {
        if translate(page).is_none() {
            map_range(page, memory::table_frame()?.base().as_u64(), PAGE_SIZE, DATA)?;
        }
    }
    Some(())
}

/// A link to a table of the kernel: the entries below decide.
fn link(table: Frame) -> Pte {
    Pte::from_bits(table.base().as_u64() | Pte::PRESENT | Pte::WRITE)
}

/// Where the entry of `level` for `at` is, with the tables above it made as needed. None without memory, or if a
/// larger page is there.
fn entry(at: u64, level: u32, make: bool) -> Option<*mut Pte> {
    let page = VirtAddr::new(at)?.page();
    let mut table = kernel_root();
    let mut here = 3;
    loop {
        // SAFETY: a table of the kernel's, reached by the direct map (also by the boot tables' smaller one).
        let e = unsafe { memory::dm().ptr(table.base()).cast::<Pte>().add(page.index(here)) };
        if here == level {
            return Some(e);
        }
        // SAFETY: as above; volatile, since the page walker reads and sets bits too.
        let mut pte = unsafe { e.read_volatile() };
        if !pte.is_present() && make {
            pte = link(memory::table_frame()?);
            // SAFETY: as above; the lock is held.
            unsafe { e.write_volatile(pte) };
        }
        if !pte.is_present() || pte.bits() & Pte::LARGE != 0 {
            return None;
        }
        table = pte.frame();
        here -= 1;
    }
}

/// Map `bytes` from `at` on to `to` on, by the largest pages that fit; what is mapped already stays. The caller holds
/// `TABLES`, or is alone.
fn map_range(mut at: u64, mut to: u64, mut bytes: u64, flags: u64) -> Option<()> {
    let largest = if cpu::features().contains(Features::HUGE_PAGES) { 2 } else { 1 };
    while bytes > 0 {
        let fits = |level: &u32| (at | to).is_multiple_of(span(*level)) && bytes >= span(*level);
        let level = (0..=largest).rev().find(fits)?;
        let large = if level > 0 { Pte::LARGE } else { 0 };
        let e = entry(at, level, true)?;
        // SAFETY: an entry of the kernel's tables; see `entry`.
        unsafe {
            if !e.read_volatile().is_present() {
                e.write_volatile(Pte::from_bits(to | flags | large));
            }
        }
        let step = span(level);
        (at, to, bytes) = (at + step, to + step, bytes - step);
    }
    Some(())
}

/// Where `bytes` of physical memory from `at` on are in the direct map, which is extended if it did not reach so far:
/// firmware tables may be outside of RAM. At boot only.
pub(super) fn ensure_direct(at: u64, bytes: u64) -> *mut u8 {
    let from = at & !(PAGE_SIZE - 1);
    for page in (from..at + bytes).step_by(PAGE_SIZE as usize) {
        if translate(DIRECT_MAP + page).is_none() {
            map_range(DIRECT_MAP + page, page, PAGE_SIZE, DATA)
                .and_then(|()| cover(DIRECT_MAP + page, PAGE_SIZE))
                .expect("no memory to map firmware tables");
        }
    }
    core::ptr::with_exposed_provenance_mut((DIRECT_MAP + at) as usize)
}

/// Map the page of device registers at `frame`, uncached. None without memory. The result is the page's first byte.
pub(super) fn map_device(frame: Frame) -> Option<VirtAddr> {
    static NEXT: AtomicU64 = AtomicU64::new(DEVICES);
    let _tables = TABLES.lock();
    // Relaxed: the lock orders it.
    let at = NEXT.fetch_add(PAGE_SIZE, Ordering::Relaxed);
    map_range(at, frame.base().as_u64(), PAGE_SIZE, DEVICE)?;
    VirtAddr::new(at)
}

/// The entry that maps `at`, and its level.
fn translate(at: u64) -> Option<(Pte, u32)> {
    for level in (0..=2).rev() {
        // A larger page above ended the search on an earlier turn.
        // SAFETY: an entry of the kernel's tables; see `entry`.
        let pte = unsafe { entry(at, level, false)?.read_volatile() };
        if !pte.is_present() {
            return None;
        }
        if level == 0 || pte.bits() & Pte::LARGE != 0 {
            return Some((pte, level));
        }
    }
    None
}

/// Whether the kernel's tables map `at`, an address in the upper half.
pub fn is_mapped(at: u64) -> bool {
    at >> 47 == 0x1_ffff && translate(at).is_some()
}

/// Call `f` with the address, entry and level of every page that the kernel's half maps.
pub fn for_each_page(f: &mut dyn FnMut(VirtAddr, Pte, u32)) {
    fn walk(table: Frame, level: u32, base: u64, f: &mut dyn FnMut(VirtAddr, Pte, u32)) {
        let first = if level == 3 { 256 } else { 0 };
        for i in first..512 {
            // SAFETY: an entry of the kernel's tables; see `entry`.
            let pte = unsafe { memory::dm().ptr(table.base()).cast::<Pte>().add(i).read_volatile() };
            let at = base | (i as u64) << (12 + 9 * level);
            if !pte.is_present() {
            } else if level == 0 || level < 3 && pte.bits() & Pte::LARGE != 0 {
                f(VirtAddr::new(at).unwrap_or_default(), pte, level);
            } else {
                walk(pte.frame(), level - 1, at, f);
            }
        }
    }
    walk(kernel_root(), 3, 0xffff_0000_0000_0000, f);
}

/// Map a new stack of `pages` pages (at most [`STACK_PAGES`]) below an unmapped guard, and return its top, a multiple of
/// [`STACK_SLOT`]. None without memory.
pub(super) fn map_stack(pages: usize) -> Option<VirtAddr> {
    static NEXT: AtomicU64 = AtomicU64::new(STACKS);
    let mut frames = [None; STACK_PAGES];
    let frames = &mut frames[..pages];
    let _tables = TABLES.lock();
    // Relaxed: the lock orders it.
    let top = NEXT.load(Ordering::Relaxed) + STACK_SLOT;
    if top > STACKS_END {
        return None;
    }
    // The guard's too, so that what runs into the guard fails there and not in a check.
    cover(top - STACK_SLOT, STACK_SLOT)?;
    let got = frames.iter_mut().try_for_each(|f| {
        *f = Some(memory::stack_frame()?);
        Some(())
    });
    // All frames before any is mapped, since a mapped one could not be given back: it would still be translated. And one
    // leaf table holds the whole slot, so if the first page can be mapped, all can.
    let mapped = got.and_then(|()| {
        (1..).zip(&*frames).try_for_each(|(page, frame)| {
            map_range(top - page * PAGE_SIZE, frame.as_ref()?.base().as_u64(), PAGE_SIZE, DATA)
        })
    });
    if mapped.is_none() {
        frames.iter().flatten().for_each(|f| memory::free_stack_frame(*f));
        return None;
    }
    // Relaxed: as above.
    NEXT.store(top, Ordering::Relaxed);
    VirtAddr::new(top)
}

/// Whether `at` lies in the guard below some stack.
pub fn is_stack_guard(at: u64) -> bool {
    let boot = (&raw const boot_stack_guard) as u64;
    ((STACKS..STACKS_END).contains(&at) || (boot..boot + PAGE_SIZE).contains(&at)) && !is_mapped(at)
}

/// The top of the kernel stack that `at` lies in, if it lies in one.
pub fn stack_top(at: u64) -> Option<u64> {
    let boot = (&raw const boot_stack_guard) as u64 + PAGE_SIZE;
    if (STACKS..STACKS_END).contains(&at) {
        Some((at + 1).next_multiple_of(STACK_SLOT))
    } else {
        (boot..boot + BOOT_STACK_BYTES).contains(&at).then_some(boot + BOOT_STACK_BYTES)
    }
}

/// A thread's kernel stack, [`STACK_PAGES`] above a guard. Dropping it, which nobody on it may do, keeps it for the next
/// thread.
pub struct KernelStack {
    top: VirtAddr,
}

/// Stacks that nobody uses: the top of the first, whose highest word holds the top of the next, to 0.
static UNUSED: irq::Lock<u64> = irq::Lock::new(0);

/// The word in which an unused stack keeps the top of the next.
fn next_unused(top: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(top as usize - 8)
}

impl KernelStack {
    /// A stack; None without memory. For threads with interrupts on, and at boot.
    pub fn new() -> Option<Self> {
        {
            let mut unused = UNUSED.lock();
            if let Some(top) = VirtAddr::new(*unused).filter(|top| top.as_u64() != 0) {
                // SAFETY: the stack is mapped and on the list, so nobody uses it.
                *unused = unsafe { next_unused(top.as_u64()).read() };
                return Some(Self { top });
            }
        }
        map_stack(STACK_PAGES).map(|top| Self { top })
    }
    /// The stack that `at` lies in, which its owner has forgotten.
    pub(super) fn containing(at: u64) -> Option<Self> {
        VirtAddr::new(at.next_multiple_of(STACK_SLOT)).map(|top| Self { top })
    }
    /// The addresses of its bytes.
    pub fn span(&self) -> core::ops::Range<usize> {
        let top = self.top.as_u64() as usize;
        top - STACK_PAGES * PAGE_SIZE as usize..top
    }
    /// The first byte above it, a multiple of [`STACK_SLOT`].
    pub fn top(&self) -> VirtAddr {
        self.top
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        if sanitize::ON {
            // Whoever used it last may have left frames that were never returned from.
            let bytes = STACK_PAGES as u64 * PAGE_SIZE;
            shadow::fill(self.top.as_u64() - bytes, bytes, 0);
        }
        let mut unused = UNUSED.lock();
        // SAFETY: the stack is mapped, and its owner says that nobody uses it.
        unsafe { next_unused(self.top.as_u64()).write(*unused) };
        *unused = self.top.as_u64();
    }
}
