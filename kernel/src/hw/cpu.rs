//! This CPU: its features, control registers, and the words that belong to it alone.
//!
//! In the kernel GS points to the CPU's [`Local`]; in user mode to whatever the program chose, with the kernel's value in
//! the MSR that `swapgs` exchanges. Single instructions on GS-relative words need no protection from interrupts.

use core::{
    arch::asm,
    cell::UnsafeCell,
    mem::offset_of,
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};

use addr::{Frame, VirtAddr};
use percpu::{CpuId, MAX_CPUS};

use super::{gdt::Tss, irq};
use crate::places::Place;

bitflags::bitflags! {
    /// What CPUID says, as far as the kernel cares.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// Supervisor-mode execution prevention.
        const SMEP = 1;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 1;
        /// User-mode instruction prevention (SGDT and the like).
        const UMIP = 1 << 2;
        /// `rdfsbase` and its three sisters.
        const FSGSBASE = 1 << 3;
        /// x2APIC: the local APIC by MSRs.
        const X2APIC = 1 << 4;
        /// The APIC timer compares with the TSC.
        const TSC_DEADLINE = 1 << 5;
        /// `xsave` and XCR0.
        const XSAVE = 1 << 6;
        /// Pages of 1 GiB.
        const HUGE_PAGES = 1 << 7;
        /// Pages that can't be executed. The kernel does not run without.
        const NX = 1 << 8;
        /// Runs under a hypervisor, or an emulator.
        const HYPERVISOR = 1 << 9;
    }
}

static FEATURES: AtomicU32 = AtomicU32::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// The features of the boot CPU; the others are assumed alike.
#[inline]
pub fn features() -> Features {
    // Relaxed: written by `detect`, before any other CPU starts.
    Features::from_bits_retain(FEATURES.load(Ordering::Relaxed))
}

/// `cpuid` with EAX = `leaf`, ECX = `sub`: EAX, EBX, ECX, EDX. Zeroes above the highest leaf.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    fn raw(leaf: u32, sub: u32) -> [u32; 4] {
        let (a, b, c, d);
        // SAFETY: every x86-64 CPU has it; LLVM keeps RBX for itself, so it is put back.
        unsafe {
            asm!("mov {b:r}, rbx", "cpuid", "xchg {b:r}, rbx", b = out(reg) b, inout("eax") leaf => a,
                 inout("ecx") sub => c, out("edx") d, options(nomem, nostack, preserves_flags));
        }
        [a, b, c, d]
    }
    if leaf & 0xffff > raw(leaf & 0xffff_0000, 0)[0] & 0xffff { [0; 4] } else { raw(leaf, sub) }
}

/// CPUID's first feature word, which programs get as `AT_HWCAP`.
pub fn feature_word() -> u32 {
    cpuid(1, 0)[3]
}

/// Ask CPUID what there is (Intel SDM vol. 2A, CPUID). Panics where the kernel can't run.
pub fn detect() {
    let one = cpuid(1, 0);
    let seven = cpuid(7, 0);
    let extended = cpuid(0x8000_0001, 0);
    let table = [
        (Features::SMEP, seven[1], 7),
        (Features::SMAP, seven[1], 20),
        (Features::UMIP, seven[2], 2),
        (Features::FSGSBASE, seven[1], 0),
        (Features::X2APIC, one[2], 21),
        (Features::TSC_DEADLINE, one[2], 24),
        (Features::XSAVE, one[2], 26),
        (Features::HYPERVISOR, one[2], 31),
        (Features::HUGE_PAGES, extended[3], 26),
        (Features::NX, extended[3], 20),
    ];
    let found: Features = table.iter().filter(|(_, word, bit)| word >> bit & 1 != 0).map(|t| t.0).collect();
    // Relaxed: see `features`.
    FEATURES.store(found.bits(), Ordering::Relaxed);
    assert!(found.contains(Features::NX), "this CPU has no NX bit");
}

unsafe extern "C" {
    static smap_sites_start: [u64; 2];
    static smap_sites_end: [u64; 2];
}

/// Where the CPU has SMAP, put `stac` and `clac` where [`super::stac`] and [`super::clac`] left room for them: on other
/// CPUs they would be invalid, and a branch on every entry would cost more.
///
/// # Safety
/// The image's text is writable, and no other CPU runs.
pub unsafe fn patch_smap() {
    if !features().contains(Features::SMAP) {
        return;
    }
    let mut site = &raw const smap_sites_start;
    while site != &raw const smap_sites_end {
        // SAFETY: the linker gathers the addresses of the three-byte no-ops, each with the last byte of what it becomes.
        unsafe {
            let [at, last] = site.read();
            let at: *mut [u8; 3] = core::ptr::with_exposed_provenance_mut(at as usize);
            at.write_volatile([0x0f, 0x01, last as u8]);
            site = site.add(1);
        }
    }
    // A jump, which the way here certainly takes, is all that self-modified code needs (SDM vol. 3A, 8.1.3).
}

// ---- per-CPU words ----------------------------------------------------------------------------------------------

/// A CPU's own words; the assembly in `idt.rs` knows the first three.
#[repr(C, align(128))]
pub struct Local {
    /// Its own address.
    this: *const Local,
    /// The user's stack pointer, for some instructions at the system call entry.
    user_rsp: u64,
    /// Top of the current thread's kernel stack.
    kernel_rsp: u64,
    id: u32,
    preempt: u32,
    task: *const (),
    /// See [`ask`].
    asked: u32,
    /// Used by the CPU on entry from user mode: `rsp0`.
    pub(super) tss: Tss,
    pub(super) gdt: [u64; super::gdt::ENTRIES],
}

/// Offset of the user's stack pointer from GS.
pub const USER_RSP: usize = offset_of!(Local, user_rsp);
/// Offset of the top of the kernel stack from GS.
pub const KERNEL_RSP: usize = offset_of!(Local, kernel_rsp);

struct Locals([UnsafeCell<Local>; MAX_CPUS]);
// SAFETY: a CPU touches its own only, after the boot CPU has prepared it.
unsafe impl Sync for Locals {}

static LOCALS: Locals = Locals(
    [const {
        UnsafeCell::new(Local {
            this: core::ptr::null(),
            user_rsp: 0,
            kernel_rsp: 0,
            id: 0,
            preempt: UNAWAITED,
            task: core::ptr::null(),
            asked: 0,
            tss: Tss::new(),
            gdt: super::gdt::TEMPLATE,
        })
    }; MAX_CPUS],
);

/// Where these words are.
pub fn place() -> Place {
    Place::per_cpu("CPU's own words", &LOCALS.0)
}

/// The words of `cpu`.
pub(super) fn local(cpu: CpuId) -> *mut Local {
    LOCALS.0[cpu.index()].get()
}

/// Make GS point to the words of `cpu`, which this CPU is from now on.
///
/// # Safety
/// Once on each CPU, each with another `cpu`.
pub(super) unsafe fn set_local(cpu: CpuId) {
    let local = local(cpu);
    // SAFETY: this CPU's own words; the MSRs are GS's base and the one `swapgs` exchanges it with.
    unsafe {
        (*local).this = local;
        (*local).id = cpu.index() as u32;
        wrmsr(MSR_GS_BASE, local.expose_provenance() as u64);
        wrmsr(MSR_KERNEL_GS_BASE, 0);
    }
}

/// Which CPU this is. It may be another a moment later, unless the caller is pinned or has interrupts off.
#[inline]
pub fn id() -> CpuId {
    let id: u32;
    // SAFETY: a word of this CPU's.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) id, const offset_of!(Local, id),
             options(nostack, preserves_flags, readonly));
    }
    CpuId::new(id as usize).unwrap_or_default()
}

/// How many CPUs the machine has: those the firmware lists as usable, numbered 0..count. All of them run once
/// [`super::smp::start`] has returned.
#[inline]
pub fn count() -> usize {
    // Relaxed: written by the boot CPU before the others start.
    COUNT.load(Ordering::Relaxed)
}

pub(super) fn set_count(n: usize) {
    // Relaxed: see `count`.
    COUNT.store(n, Ordering::Relaxed);
}

/// The word that [`set_current_task`] stored on this CPU, null at first.
#[inline]
pub fn current_task() -> *const () {
    let task;
    // SAFETY: a word of this CPU's.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) task, const offset_of!(Local, task),
             options(nostack, preserves_flags, readonly));
    }
    task
}

/// Remember what runs on this CPU.
#[inline]
pub fn set_current_task(task: *const ()) {
    // SAFETY: a word of this CPU's.
    unsafe {
        asm!("mov gs:[{}], {}", const offset_of!(Local, task), in(reg) task, options(nostack, preserves_flags))
    }
}

/// Have the thread that runs on this CPU look at what it may have to do before it goes on in user mode. From any context.
#[inline]
pub fn ask() {
    // SAFETY: a word of this CPU's; one instruction. Not `nomem`: what is asked for is stored before.
    unsafe {
        asm!("mov dword ptr gs:[{}], 1", const offset_of!(Local, asked), options(nostack, preserves_flags))
    }
}

/// Whether it is asked to.
#[inline]
pub fn is_asked() -> bool {
    let asked: u32;
    // SAFETY: as in `ask`.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) asked, const offset_of!(Local, asked),
             options(nostack, preserves_flags, readonly));
    }
    asked != 0
}

/// It is about to look.
#[inline]
pub fn take_asked() {
    // SAFETY: as in `ask`. Not `nomem`: the look comes after.
    unsafe {
        asm!("mov dword ptr gs:[{}], 0", const offset_of!(Local, asked), options(nostack, preserves_flags))
    }
}

/// Says that there is something to do before user mode, for a thread or for a CPU. To set it is to [`ask`] this CPU; who sets one
/// that another CPU is to find interrupts that afterwards.
pub struct ToDo(AtomicBool);

impl ToDo {
    /// Set, or not.
    pub const fn new(set: bool) -> Self {
        Self(AtomicBool::new(set))
    }
    /// There is something to do.
    #[inline]
    pub fn set(&self, order: Ordering) {
        self.0.store(true, order);
        ask();
    }
    /// It is done, or about to be.
    #[inline]
    pub fn clear(&self) {
        // Relaxed: who does it looks by itself at what it is.
        self.0.store(false, Ordering::Relaxed);
    }
    /// Whether there is something to do.
    #[inline]
    pub fn is_set(&self, order: Ordering) -> bool {
        self.0.load(order)
    }
    /// Clear it, if it was set.
    #[inline]
    pub fn take(&self, order: Ordering) -> bool {
        self.is_set(Ordering::Relaxed) && self.0.swap(false, order)
    }
}

/// Note that the current thread is pinned once more.
#[inline]
pub fn preempt_inc() {
    // SAFETY: a word of this CPU's; one instruction, so no interrupt comes between.
    unsafe { asm!("inc dword ptr gs:[{}]", const offset_of!(Local, preempt), options(nostack)) }
}

/// In the count of pins: nobody waits for the current thread to hold none. So the word is zero just when somebody waits, and
/// there is none.
const UNAWAITED: u32 = 1 << 31;

/// Note that the current thread is pinned once less. `reached` is called if that was the last pin, and
/// [waited for](set_awaited). An interrupt before that finds a pin; one after it finds none, and need not ask.
#[inline]
pub fn preempt_dec(reached: impl FnOnce()) {
    // SAFETY: as in `preempt_inc`; the jump is to the block, which ends where the statement does.
    unsafe {
        asm!("dec dword ptr gs:[{}]", "jz {}", const offset_of!(Local, preempt), label {
            set_unawaited();
            reached();
        }, options(nostack))
    }
}

/// What an interrupt asks for from here on, with no pin held, it does itself.
fn set_unawaited() {
    // SAFETY: as in `preempt_inc`.
    unsafe {
        asm!("or dword ptr gs:[{}], {}", const offset_of!(Local, preempt), const UNAWAITED, options(nostack))
    }
}

/// Have the current thread's last [`preempt_dec`] do what it was given. Of an interrupt handler that has found a pin.
pub fn set_awaited() {
    // SAFETY: a word of this CPU's; one instruction.
    unsafe {
        asm!("and dword ptr gs:[{}], {}", const offset_of!(Local, preempt), const !UNAWAITED, options(nostack))
    }
}

/// How many times the current thread is pinned.
#[inline]
pub fn preempt_count() -> u32 {
    let n: u32;
    // SAFETY: a word of this CPU's.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) n, const offset_of!(Local, preempt),
             options(nostack, preserves_flags, readonly));
    }
    n & !UNAWAITED
}

/// The stack on which this CPU enters the kernel from user mode from now on. `top` is a multiple of 16.
#[inline]
pub fn set_kernel_stack(top: VirtAddr) {
    // SAFETY: words of this CPU's. The task state is not used while the CPU is in the kernel.
    unsafe {
        asm!("mov gs:[{}], {top}", "mov gs:[{}], {top}", const KERNEL_RSP, const offset_of!(Local, tss) + Tss::RSP0,
             top = in(reg) top.as_u64(), options(nostack, preserves_flags));
    }
}

// ---- registers ---------------------------------------------------------------------------------------------------

const MSR_EFER: u32 = 0xc000_0080;
const MSR_FS_BASE: u32 = 0xc000_0100;
pub(super) const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// # Safety
/// The register exists, and reading it has no effect that breaks memory safety.
pub(super) unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// The register exists, takes the value, and its effect keeps memory safe.
pub(super) unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Turn on, on this CPU, what it has of the protections, and the rest of what the kernel runs with.
pub fn init() {
    const PAE: u64 = 1 << 5;
    const MCE: u64 = 1 << 6;
    const PGE: u64 = 1 << 7;
    const OSFXSR: u64 = 1 << 9;
    const OSXMMEXCPT: u64 = 1 << 10;
    let mut cr4 = PAE | MCE | PGE | OSFXSR | OSXMMEXCPT;
    for (feature, bit) in [
        (Features::UMIP, 11),
        (Features::FSGSBASE, 16),
        (Features::XSAVE, 18),
        (Features::SMEP, 20),
        (Features::SMAP, 21),
    ] {
        if features().contains(feature) {
            cr4 |= 1 << bit;
        }
    }
    const SCE: u64 = 1;
    const NXE: u64 = 1 << 11;
    // SAFETY: bits that CPUID promises; no mapping in use is a user page, so SMEP and SMAP take nothing away.
    unsafe {
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | SCE | NXE);
    }
    super::idt::init_syscall();
}

/// NX, before tables that use it are loaded.
pub(super) fn enable_nx() {
    // SAFETY: `detect` has seen the feature.
    unsafe { wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1 << 11) };
}

/// The address of the last page fault on this CPU. Read it before anything can fault again.
#[inline]
pub fn read_cr2() -> u64 {
    let value;
    // SAFETY: no side effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Use the tables below `root` from now on. All translations but the kernel's global ones are forgotten.
///
/// The upper half of `root` is the kernel's, and the tables stay valid while they are loaded.
#[inline]
pub fn load_cr3(root: Frame) {
    // SAFETY: by the contract above the kernel stays mapped as it is; what changes is user space, which the kernel
    // touches only by copies that expect faults. Not `nomem`: accesses stay on their side.
    unsafe { asm!("mov cr3, {}", in(reg) root.base().as_u64(), options(nostack, preserves_flags)) }
}

/// Forget this CPU's translation of the page of `at`.
#[inline]
pub fn flush_page(at: VirtAddr) {
    // SAFETY: only forgets. Not `nomem`: accesses stay on their side.
    unsafe { asm!("invlpg [{}]", in(reg) at.as_u64(), options(nostack, preserves_flags)) }
}

/// Forget all of this CPU's translations but the kernel's global ones.
#[inline]
pub fn flush_all() {
    // SAFETY: as above.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) }
}

/// FS's base, the thread pointer of user code; the kernel does not use FS.
#[inline]
pub fn fs_base() -> u64 {
    if features().contains(Features::FSGSBASE) {
        let base;
        // SAFETY: enabled in CR4 by `init`.
        unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) }
        base
    } else {
        // SAFETY: the register exists.
        unsafe { rdmsr(MSR_FS_BASE) }
    }
}

/// Set FS's base. `base` is canonical.
#[inline]
pub fn set_fs_base(base: u64) {
    assert!(VirtAddr::new(base).is_some(), "FS base");
    if features().contains(Features::FSGSBASE) {
        // SAFETY: enabled in CR4 by `init`; canonical.
        unsafe { asm!("wrfsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) }
    } else {
        // SAFETY: canonical.
        unsafe { wrmsr(MSR_FS_BASE, base) }
    }
}

/// GS's base in user mode.
#[inline]
pub fn user_gs_base() -> u64 {
    if features().contains(Features::FSGSBASE) {
        let _off = irq::Off::new();
        let base;
        // SAFETY: between the two `swapgs` GS is the user's; interrupts are off, and the handlers of those that
        // are never off (`paranoid_entry`) expect either.
        unsafe { asm!("swapgs", "rdgsbase {}", "swapgs", out(reg) base, options(nostack, preserves_flags)) }
        base
    } else {
        // SAFETY: the register exists.
        unsafe { rdmsr(MSR_KERNEL_GS_BASE) }
    }
}

/// Set GS's base in user mode. `base` is canonical.
#[inline]
pub fn set_user_gs_base(base: u64) {
    assert!(VirtAddr::new(base).is_some(), "GS base");
    if features().contains(Features::FSGSBASE) {
        let _off = irq::Off::new();
        // SAFETY: as in `user_gs_base`; canonical.
        unsafe { asm!("swapgs", "wrgsbase {}", "swapgs", in(reg) base, options(nostack, preserves_flags)) }
    } else {
        // SAFETY: canonical.
        unsafe { wrmsr(MSR_KERNEL_GS_BASE, base) }
    }
}

/// Wait for an interrupt and take it; returns with interrupts on. Call it with interrupts off, after a last look at
/// what to wait for: `sti` takes effect after the next instruction, so an interrupt that is pending already ends
/// the `hlt`.
#[inline]
pub fn halt() {
    // SAFETY: handlers preserve every register.
    unsafe { asm!("sti", "hlt", options(nostack)) }
}

/// In a loop that waits for another CPU.
#[inline]
pub fn pause() {
    core::hint::spin_loop();
}

/// Stop this CPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs on this CPU any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
