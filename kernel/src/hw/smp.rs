//! The start of the other CPUs: all at once, by one INIT and one start-up broadcast (Intel SDM vol. 3A, 8.4.4.1). Each
//! takes a stack by a locked add (`boot.rs`), finds out by its APIC's number which CPU it is, so that CPUs are numbered
//! as the firmware lists them however they race, initialises itself, and calls `crate::cpu_main`. The boot CPU halts
//! until the last of them wakes it.
//!
//! The manual's waits of 10 ms and 200 us are for processors of the early 1990s; here INIT is followed by 10 us, and a
//! second start-up broadcast is sent only if some CPU has not come a while after the first.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use percpu::{CpuId, CpuSet, MAX_CPUS};

use super::{acpi, apic, boot, cpu, fpu, gdt, irq, paging, timer};

/// How many CPUs have begun in `boot.rs`.
pub(super) static TICKET: AtomicU32 = AtomicU32::new(0);
/// How many may.
pub(super) static EXPECTED: AtomicU32 = AtomicU32::new(0);
/// A stack for each ticket.
pub(super) static STACK_TOPS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// Of each CPU, the stack on which it booted.
static BOOT_STACKS: [irq::Lock<Option<paging::KernelStack>>; MAX_CPUS] =
    [const { irq::Lock::new(None) }; MAX_CPUS];
/// How many of the other CPUs are initialised.
static ONLINE: AtomicUsize = AtomicUsize::new(0);

/// Wait this long before the second start-up broadcast, in ns.
const PATIENCE: u64 = 50_000_000;
/// Give up after this long, in ns: far beyond what 255 emulated CPUs take.
const LIMIT: u64 = 60_000_000_000;

/// Start all other CPUs; each calls `crate::cpu_main`, with interrupts off, on a stack that it may give back by
/// [`release_boot_stack`] once it has left it. Returns when all of them are about to. Called once, with interrupts
/// off; they come on meanwhile, but only for what comes here.
pub fn start() {
    let others = cpu::count() - 1;
    if others == 0 {
        return;
    }
    for slot in &STACK_TOPS[..others] {
        let stack = paging::KernelStack::new().expect("no memory for the CPUs' stacks");
        // Relaxed, all of these: the start-up interrupt comes after, and nobody reads them before.
        slot.store(stack.top().as_u64(), Ordering::Relaxed);
        core::mem::forget(stack);
    }
    EXPECTED.store(others as u32, Ordering::Relaxed);
    boot::install_trampoline();
    // SAFETY: the other CPUs are as the firmware left them, halted; the trampoline is in place.
    unsafe {
        apic::broadcast_init();
        timer::delay(10_000);
        apic::broadcast_startup(boot::TRAMPOLINE);
    }
    let begun = timer::now();
    let mut again = false;
    loop {
        irq::disable();
        // Acquire: what the CPUs did to initialise comes before what this CPU does next; partner in `start_other`.
        if ONLINE.load(Ordering::Acquire) == others {
            break;
        }
        // The last CPU sends the same interrupt; a timer in case none comes.
        timer::wake_after(PATIENCE);
        cpu::halt();
        let waited = timer::now() - begun;
        if waited > PATIENCE && !again && TICKET.load(Ordering::Relaxed) < others as u32 {
            again = true;
            // SAFETY: as above; CPUs that run already ignore it.
            unsafe { apic::broadcast_startup(boot::TRAMPOLINE) };
        }
        assert!(waited < LIMIT, "{} of {others} other CPUs came up", ONLINE.load(Ordering::Relaxed));
    }
    timer::ready();
    // Relaxed: a look; an unlisted CPU that comes later is parked with interrupts off and does no harm.
    if TICKET.load(Ordering::Relaxed) == others as u32 {
        apic::allow_broadcast();
    }
}

/// Give back the stack on which this CPU booted. The caller runs on another one.
pub fn release_boot_stack() {
    drop(BOOT_STACKS[cpu::id().index()].lock().take());
}

/// The first Rust code of another CPU: on its own stack and the kernel's tables, interrupts off.
pub(super) extern "C" fn start_other() -> ! {
    let id = acpi::own_apic_id();
    let others = (1..cpu::count()).filter_map(CpuId::new);
    let Some(me) = others.into_iter().find(|&c| apic::apic_id(c) == id) else { cpu::stop() };
    // SAFETY: each APIC number belongs to one CPU, and this comes once.
    unsafe { gdt::init_cpu(me) };
    cpu::init();
    apic::init_cpu();
    timer::init_cpu();
    fpu::init_cpu();
    let here = 0u8;
    *BOOT_STACKS[me.index()].lock() = paging::KernelStack::containing((&raw const here).addr() as u64);
    // Release: all of the above; partner of the Acquire in `start`. AcqRel so that the last one carries all.
    if ONLINE.fetch_add(1, Ordering::AcqRel) + 2 == cpu::count() {
        apic::send(&CpuSet::from_iter([CpuId::default()]), apic::VECTOR_WAKE);
    }
    crate::cpu_main()
}
