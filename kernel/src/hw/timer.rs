//! Time: the TSC as the clock, the local APIC's timer as the alarm, the CMOS clock for the date at boot.
//!
//! The TSC's frequency comes from the hypervisor if it tells (CPUID leaf 0x4000_0010, in kHz), else from counting it
//! against the power-management timer for 5 ms, or the interval timer where there is no other. The APIC timer's
//! frequency is counted against the TSC in the same 5 ms, where it does not take TSC deadlines directly.
//!
//! TSCs of all CPUs are assumed to be in step, as they are under QEMU.

use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{
    acpi::Machine,
    apic,
    cpu::{self, Features},
    port,
};

/// Fractional bits of [`Parameters::mult`].
pub const SHIFT: u32 = 32;

/// How to make ns since boot of a TSC value: `(tsc - base) * mult >> SHIFT`, with a 128-bit product.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    /// The TSC at boot.
    pub base: u64,
    /// Nanoseconds per tick, times 2^[`SHIFT`].
    pub mult: u64,
}

static BASE: AtomicU64 = AtomicU64::new(0);
static MULT: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// APIC timer ticks per TSC tick, times 2^32; 0 if the timer takes TSC deadlines.
static APIC_PER_TSC: AtomicU64 = AtomicU64::new(0);
static EPOCH: AtomicU64 = AtomicU64::new(0);
static READY: AtomicBool = AtomicBool::new(false);

/// The TSC, not before earlier instructions.
#[inline]
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: always allowed in the kernel. Not `nomem`: it stays where it is among memory accesses.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Nanoseconds since boot; 0 until the clock has been calibrated.
#[inline]
pub fn now() -> u64 {
    // Relaxed, here and below: written by the boot CPU before others start.
    let passed = tsc().wrapping_sub(BASE.load(Ordering::Relaxed));
    ((u128::from(passed) * u128::from(MULT.load(Ordering::Relaxed))) >> SHIFT) as u64
}

/// As [`now`], and not after later instructions either.
#[inline]
pub fn now_in_order() -> u64 {
    let now = now();
    // SAFETY: no effect but the order. Not `nomem`, as in `tsc`.
    unsafe { asm!("lfence", options(nostack, preserves_flags)) };
    now
}

/// Nanoseconds from 1970 to boot: the real time is this plus [`now`]. Good to a second, as the CMOS clock is.
pub fn boot_epoch_ns() -> u64 {
    EPOCH.load(Ordering::Relaxed)
}

/// How to compute [`now`] from the TSC, for user code.
pub fn parameters() -> Parameters {
    Parameters { base: BASE.load(Ordering::Relaxed), mult: MULT.load(Ordering::Relaxed) }
}

/// The TSC's frequency, in Hz.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// Time begins.
pub(super) fn start_clock() {
    BASE.store(tsc(), Ordering::Relaxed);
}

/// Calibrate, on the boot CPU, and read the date.
pub(super) fn init(machine: &Machine) {
    let deadline = cpu::features().contains(Features::TSC_DEADLINE);
    apic::timer_mode(apic::VECTOR_WAKE, false);
    let told = u64::from(hypervisor_khz()) * 1000;
    let measured = if told == 0 || !deadline {
        Some(match machine.pm_timer {
            Some(port) => calibrate(PM_TIMER_HZ, PM_TIMER_HZ / 200, || pm_timer(port)),
            None => calibrate_by_pit(),
        })
    } else {
        None
    };
    let hz = match &measured {
        Some(m) if told == 0 => m.tsc_hz,
        _ => told,
    };
    TSC_HZ.store(hz, Ordering::Relaxed);
    MULT.store(((1_000_000_000u128 << SHIFT) / u128::from(hz)) as u64, Ordering::Relaxed);
    if let Some(m) = measured.filter(|_| !deadline) {
        APIC_PER_TSC.store(m.apic_per_tsc.max(1), Ordering::Relaxed);
    }
    let date = cmos_seconds(machine.century) * 1_000_000_000;
    EPOCH.store(date.saturating_sub(now()), Ordering::Relaxed);
    if cpu::count() == 1 {
        ready();
    }
}

/// From now on this CPU's timer, and that of CPUs that initialise themselves, is for [`arm`].
pub(super) fn ready() {
    // Relaxed: see `init_cpu`.
    READY.store(true, Ordering::Relaxed);
    init_cpu();
}

/// Set up this CPU's timer; nothing is armed.
pub(super) fn init_cpu() {
    apic::timer_mode(apic::VECTOR_TIMER, APIC_PER_TSC.load(Ordering::Relaxed) == 0);
    disarm();
}

/// Raise [`apic::VECTOR_TIMER`] on this CPU once, at `deadline` (ns since boot) or soon after; replaces what was armed.
/// A deadline that has passed means at once. A far one may fire early, after some seconds: whoever arms looks at the clock.
pub fn arm(deadline: u64) {
    let ticks_per_ns = TSC_HZ.load(Ordering::Relaxed);
    let at = (u128::from(deadline) * u128::from(ticks_per_ns) / 1_000_000_000) as u64;
    arm_tsc(BASE.load(Ordering::Relaxed).saturating_add(at).saturating_add(1));
}

fn arm_tsc(at: u64) {
    const MSR_TSC_DEADLINE: u32 = 0x6e0;
    let ratio = APIC_PER_TSC.load(Ordering::Relaxed);
    if ratio == 0 {
        // SAFETY: the CPU has the register, and the timer is in that mode. 0 would disarm; `at` isn't.
        unsafe { cpu::wrmsr(MSR_TSC_DEADLINE, at) };
    } else {
        let left = (u128::from(at.saturating_sub(tsc())) * u128::from(ratio)) >> 32;
        // At least one tick; at most what the register takes.
        apic::timer_start(u32::try_from(left + 1).unwrap_or(u32::MAX));
    }
}

/// Nothing is armed on this CPU any more; an interrupt may be on its way.
pub fn disarm() {
    const MSR_TSC_DEADLINE: u32 = 0x6e0;
    if APIC_PER_TSC.load(Ordering::Relaxed) == 0 {
        // SAFETY: as in `arm_tsc`; 0 disarms.
        unsafe { cpu::wrmsr(MSR_TSC_DEADLINE, 0) };
    } else {
        apic::timer_start(0);
    }
}

/// Raise [`apic::VECTOR_WAKE`] on this CPU in `ns`: before [`ready`], while the others start.
pub(super) fn wake_after(ns: u64) {
    apic::timer_mode(apic::VECTOR_WAKE, APIC_PER_TSC.load(Ordering::Relaxed) == 0);
    arm(now() + ns);
}

/// Wait without sleeping, for the hardware's sake: `ns` nanoseconds.
pub fn delay(ns: u64) {
    let end = now() + ns;
    while now() < end {
        cpu::pause();
    }
}

fn hypervisor_khz() -> u32 {
    const TIMING: u32 = 0x4000_0010;
    // The highest leaf of the hypervisor's range is given by its first.
    let told = cpu::features().contains(Features::HYPERVISOR) && cpu::cpuid(0x4000_0000, 0)[0] >= TIMING;
    if told { cpu::cpuid(TIMING, 0)[0] } else { 0 }
}

const PM_TIMER_HZ: u64 = 3_579_545;

/// The power-management timer: 24 bits at [`PM_TIMER_HZ`] (ACPI 6.5, 4.8.2.1); the upper 8 may be there or not.
fn pm_timer(port: u16) -> u64 {
    // SAFETY: the port that the firmware names; reading has no effect.
    u64::from(unsafe { port::inl(port) } & 0xff_ffff)
}

/// What [`calibrate`] found.
struct Measured {
    tsc_hz: u64,
    apic_per_tsc: u64,
}

/// Let TSC and APIC timer run for `ticks` of a 24-bit clock of `hz`. Where a reading takes long (the host ran something
/// else meanwhile) it's taken again.
fn calibrate(hz: u64, ticks: u64, clock: impl Fn() -> u64) -> Measured {
    // (clock, TSC, APIC timer), the tightest of five.
    let sample = || {
        let mut best = (u64::MAX, 0, 0, 0);
        for _ in 0..5 {
            let before = tsc();
            let (at, apic) = (clock(), apic::timer_count());
            let took = tsc() - before;
            if took < best.0 {
                best = (took, at, before + took / 2, apic);
            }
        }
        best
    };
    apic::timer_start(u32::MAX);
    let (_, from, tsc_from, apic_from) = sample();
    // Without `pause`: reading a port takes long enough, and an emulator would give every other CPU a turn each time.
    while (clock().wrapping_sub(from) & 0xff_ffff) < ticks {}
    let (_, to, tsc_to, apic_to) = sample();
    apic::timer_start(0);
    let passed = (to.wrapping_sub(from) & 0xff_ffff).max(1);
    let tsc = (tsc_to - tsc_from).max(1);
    Measured {
        tsc_hz: (u128::from(tsc) * u128::from(hz) / u128::from(passed)) as u64,
        apic_per_tsc: (u128::from(apic_from - apic_to) << 32).div_ceil(u128::from(tsc)) as u64,
    }
}

/// As [`calibrate`], by channel 2 of the 8254, which counts down 16 bits at 1,193,182 Hz.
fn calibrate_by_pit() -> Measured {
    const HZ: u64 = 1_193_182;
    // SAFETY: the interval timer's ports; channel 2 drives only the speaker, which stays off.
    unsafe {
        port::outb(0x61, port::inb(0x61) & !2 | 1); // gate on, speaker off
        port::outb(0x43, 0xb4); // channel 2, both bytes, counts again and again
        port::outb(0x42, 0xff);
        port::outb(0x42, 0xff);
    }
    let clock = || {
        // SAFETY: as above; the latch command freezes the count for the two reads.
        let left = unsafe {
            port::outb(0x43, 0x80);
            u64::from(port::inb(0x42)) | u64::from(port::inb(0x42)) << 8
        };
        // Upwards, and as a 24-bit clock that the caller's mask fits: 5 ms are far less than a round.
        0xffff - left
    };
    calibrate(HZ, HZ / 200, clock)
}

/// The CMOS clock's date as seconds since 1970; `century` is the register of the century, or 0.
fn cmos_seconds(century: u8) -> u64 {
    const STATUS_A: u8 = 10;
    const STATUS_B: u8 = 11;
    let read = |register: u8| {
        // SAFETY: index and data port of the clock; bit 7 keeps NMIs off meanwhile, as at power-on.
        unsafe {
            port::outb(0x70, register | 0x80);
            port::inb(0x71)
        }
    };
    let all = || {
        while read(STATUS_A) & 0x80 != 0 {
            cpu::pause();
        }
        let century = if century == 0 { 0 } else { read(century) };
        [0, 2, 4, 7, 8, 9]
            .map(read)
            .into_iter()
            .chain([century])
            .fold(0u64, |all, byte| all << 8 | u64::from(byte))
    };
    // Twice alike, else an update came between.
    let (mut last, mut date) = (all(), all());
    while last != date {
        (last, date) = (date, all());
    }
    let mode = read(STATUS_B);
    // SAFETY: as above: let NMIs through again.
    unsafe { port::outb(0x70, 0x0d) };
    let [_, second, minute, hour, day, month, year, century] = date.to_be_bytes();
    let binary = |v: u8| u64::from(if mode & 4 != 0 { v } else { (v >> 4) * 10 + (v & 15) });
    let mut hours = binary(hour & 0x7f);
    if mode & 2 == 0 {
        hours = hours % 12 + if hour & 0x80 != 0 { 12 } else { 0 };
    }
    let year = binary(year) + if century == 0 { 2000 } else { binary(century) * 100 };
    let days = days_since_1970(year, binary(month), binary(day));
    ((days * 24 + hours) * 60 + binary(minute)) * 60 + binary(second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: years begin in March, so that the leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (y, m) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 306 + 5) / 10 + day.saturating_sub(1);
    days.saturating_sub(719_468)
}
