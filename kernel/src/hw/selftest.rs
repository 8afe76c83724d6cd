//! What the kernel can check of its machine while it runs: each test is a thread with interrupts on.

use alloc::{boxed::Box, collections::BTreeMap, format, string::String, vec::Vec};
use core::hint::black_box;

use addr::{PAGE_SIZE, Pte};
use frames::{Topology, topology::Builder};
use owned::Use;
use percpu::Pinned;
use sync::SpinLock;

use super::{
    apic,
    boot::PhysRange,
    cpu, irq,
    numa::{Malformed, read_slit, read_srat},
    paging, timer,
};
use crate::memory;

/// A test: says what is wrong.
pub type Test = fn() -> Result<(), String>;

/// All tests of this module, by name.
pub const TESTS: &[(&str, Test)] = &[
    ("no kernel page is writable and executable", no_page_is_writable_and_executable),
    ("kernel text and constants are read-only everywhere", text_is_read_only),
    ("protections are on", protections_are_on),
    ("kernel stacks end in a guard", stacks_end_in_a_guard),
    ("every CPU takes interrupts", every_cpu_takes_interrupts),
    ("the clock goes forward at its rate", clock_goes_forward),
    ("the timer fires on time", timer_fires_on_time),
    ("frames are all accounted for", frames_are_accounted_for),
    ("the heap keeps what it holds", heap_keeps_what_it_holds),
    ("the heap works with interrupts off", heap_without_interrupts),
    ("floating-point state survives a round trip", xstate_round_trip),
    ("tables of nodes are read with care", tables_of_nodes),
];

fn check(ok: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(what()) }
}

fn no_page_is_writable_and_executable() -> Result<(), String> {
    let mut bad = None;
    let mut pages = 0;
    paging::for_each_page(&mut |at, pte, _| {
        pages += 1;
        if (pte.is_writable() && pte.bits() & Pte::NO_EXECUTE == 0) || pte.bits() & Pte::USER != 0 {
            bad = Some((at, pte));
        }
    });
    check(pages > 0 && bad.is_none(), || format!("{bad:?} of {pages}"))
}

fn text_is_read_only() -> Result<(), String> {
    let [text, _, data, _] = paging::image();
    let mut bad = None;
    paging::for_each_page(&mut |at, pte, level| {
        let start = pte.frame().base().as_u64() & !(paging::span(level) - 1);
        if pte.is_writable() && start < data && text < start + paging::span(level) {
            bad = Some((at, pte));
        }
    });
    check(bad.is_none(), || format!("{bad:?}"))
}

fn protections_are_on() -> Result<(), String> {
    use cpu::Features;
    let (cr0, cr4): (u64, u64);
    // SAFETY: reads registers.
    unsafe {
        core::arch::asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack))
    };
    check(cr0 & 1 << 16 != 0, || "CR0.WP is off".into())?;
    for (feature, bit) in [
        (Features::UMIP, 11),
        (Features::FSGSBASE, 16),
        (Features::XSAVE, 18),
        (Features::SMEP, 20),
        (Features::SMAP, 21),
    ] {
        check(!cpu::features().contains(feature) || cr4 & 1 << bit != 0, || format!("{feature:?} is off"))?;
    }
    Ok(())
}

fn stacks_end_in_a_guard() -> Result<(), String> {
    let stack = paging::KernelStack::new().ok_or("no memory")?;
    let top = stack.top().as_u64();
    let pages = paging::STACK_PAGES as u64;
    let mapped = (1..=2 * pages).take_while(|n| paging::is_mapped(top - n * PAGE_SIZE)).count() as u64;
    check(mapped == pages, || format!("{mapped} pages are mapped"))?;
    let is_guard = |n| paging::is_stack_guard(top - n * PAGE_SIZE);
    check((pages + 1..=2 * pages).all(is_guard), || "no guard".into())?;
    check(paging::is_mapped(top - 1) && !paging::is_mapped(top), || "the top is off".into())?;
    let here = 0u8;
    let mut at = (&raw const here).addr() as u64 & !(PAGE_SIZE - 1);
    for _ in 0..=pages {
        if !paging::is_mapped(at) {
            return check(paging::is_stack_guard(at), || format!("below this stack is {at:#x}"));
        }
        at -= PAGE_SIZE;
    }
    Err("no guard below this stack".into())
}

fn every_cpu_takes_interrupts() -> Result<(), String> {
    for _ in 0..3 {
        // Returns when all others have acknowledged.
        apic::interrupt_all();
    }
    Ok(())
}

fn clock_goes_forward() -> Result<(), String> {
    // Each time between two readings of the counter, as a host may stop this CPU anywhere.
    let read = || (timer::tsc(), timer::now(), timer::tsc());
    let (early, begun, late) = read();
    let mut last = begun;
    while last - begun < 3_000_000 {
        let now = timer::now();
        check(now >= last, || format!("{now} after {last}"))?;
        last = now;
    }
    let (end_early, end, end_late) = read();
    let hz = |ticks: u64| u128::from(ticks) * 1_000_000_000 / u128::from(end - begun);
    let (least, most) = (hz(end_early.saturating_sub(late)), hz(end_late - early));
    let told = u128::from(timer::tsc_hz());
    check(least * 10 < told * 11 && most * 10 > told * 9, || format!("{least} to {most} Hz, not {told}"))
}

fn timer_fires_on_time() -> Result<(), String> {
    // The interrupt wakes this CPU's scheduler too, which finds nothing due.
    for us in [100u64, 1_000, 10_000] {
        let off = irq::Off::new();
        let begun = timer::now();
        let due = begun + us * 1_000;
        timer::arm(due);
        while !apic::requested(apic::VECTOR_TIMER) {
            check(timer::now() < due + 1_000_000_000, || format!("none came in a second after {us} us"))?;
            cpu::pause();
        }
        let took = timer::now() - begun;
        // Emulators look at timers when they come to it: late is not wrong, early is.
        check(took * 100 >= us * 1_000 * 99, || format!("{us} us ended after {took} ns"))?;
        check(took < us * 1_000 + 500_000_000, || format!("{us} us took {took} ns"))?;
        timer::disarm();
        drop(off);
        while apic::requested(apic::VECTOR_TIMER) {
            cpu::pause();
        }
    }
    // Whoever armed the timer before gets an interrupt, and arms it again.
    timer::arm(0);
    Ok(())
}

fn frames_are_accounted_for() -> Result<(), String> {
    let frames = memory::frames();
    let sums = || {
        let s = frames.stats();
        (s.free + s.cached + s.owned.iter().sum::<u64>(), s.total)
    };
    // Other CPUs are idle, or this is the first look: a frame on its way between two places is counted a moment later.
    let settled = (0..1000).any(|_| sums().0 == sums().1);
    check(settled, || format!("{:?}", frames.stats()))?;
    // SAFETY: a thread that does not sleep while it has it.
    let pin = unsafe { Pinned::assume(cpu::id()) };
    let before = frames.stats().owned[Use::Kernel as usize];
    let mut taken = Vec::with_capacity(100);
    taken.extend((0..100).map_while(|_| frames.alloc(&pin, Use::Kernel)));
    let n = taken.len();
    let during = frames.stats().owned[Use::Kernel as usize];
    taken.into_iter().for_each(|f| frames.free(&pin, f));
    check(n == 100 && during >= before + 100, || format!("{n} taken, {before} then {during}"))
}

/// A number that looks random: xorshift64 (Marsaglia, 2003).
fn next(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

fn heap_keeps_what_it_holds() -> Result<(), String> {
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut held: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for turn in 0..4000u64 {
        let r = next(&mut random);
        let key = r % 200;
        match held.remove(&key) {
            Some(old) => {
                check(old.iter().all(|b| *b == key as u8), || format!("turn {turn}: bytes changed"))?
            }
            None => {
                let shift = (r >> 8) % 15;
                let mut new = Vec::new();
                new.resize((r >> 32) as usize % (1 << shift) + 1, key as u8);
                new.resize(new.len() * 2, key as u8);
                held.insert(key, new);
            }
        }
    }
    let large = Box::<[u8]>::new_uninit_slice(1 << 20);
    check(large.len() == 1 << 20, String::new)
}

fn heap_without_interrupts() -> Result<(), String> {
    let _off = irq::Off::new();
    let mut boxes = Vec::new();
    for i in 0..1000u64 {
        boxes.push(Box::new([i; 8]));
    }
    check(boxes.iter().enumerate().all(|(i, b)| **b == [i as u64; 8]), || "bytes changed".into())
}

fn xstate_round_trip() -> Result<(), String> {
    let mut state = super::fpu::XState::new().ok_or("no memory")?;
    let _off = irq::Off::new();
    let mut mine = super::fpu::XState::new().ok_or("no memory")?;
    mine.save();
    // XMM0 of the legacy area, at byte 160.
    let pattern: [u8; 16] = *b"sixteen of bytes";
    state.bytes_mut()[160..176].copy_from_slice(&pattern);
    state.restore();
    state.bytes_mut()[160..176].fill(0);
    state.save();
    mine.restore();
    check(state.bytes()[160..176] == pattern, || format!("{:x?}", &state.bytes()[160..176]))
}

/// Recurse until the kernel stack is used up: the double fault's handler must say so.
pub fn overflow_stack() -> ! {
    #[expect(unconditional_recursion, reason = "that is the test")]
    fn deeper(n: u64) -> u64 {
        let page = black_box([n; 128]);
        deeper(n + 1) + page[(n % 128) as usize]
    }
    deeper(0);
    unreachable!("the stack has no end")
}

/// SRAT and SLIT of two nodes, whole, cut short anywhere, and with lengths that lie.
fn tables_of_nodes() -> Result<(), String> {
    const HEADER: usize = 36;
    let ram = [PhysRange { start: 0, end: 64 << 20 }];
    let mut srat = alloc::vec![0u8; HEADER + 12];
    srat[8] = 3;
    // CPUs 4 and 0x105, of domains 0x0a0b0c02 and 9; memory of both; a range where there is no RAM.
    srat.extend([0, 16, 2, 4, 1, 0, 0, 0, 0, 0xc, 0xb, 0xa, 0, 0, 0, 0]);
    srat.extend([2, 24, 0, 0, 9, 0, 0, 0, 5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (domain, base, length) in
        [(9u32, 0u64, 32u64 << 20), (0x0a0b_0c02, 32 << 20, 32 << 20), (77, 64 << 20, 1 << 20)]
    {
        srat.extend([1, 40]);
        srat.extend(domain.to_le_bytes());
        srat.extend([0, 0]);
        srat.extend(base.to_le_bytes());
        srat.extend(length.to_le_bytes());
        srat.extend([0, 0, 0, 0, 1, 0, 0, 0]);
        srat.extend([0; 8]);
    }
    // Topologies are large for this stack.
    let mut topology = Box::new(Topology::one_node(2));
    static RECORDS: SpinLock<Builder> = SpinLock::new(Builder::new(2));
    let read =
        |bytes: &[u8], into: &mut Topology| read_srat(bytes, &[4, 0x105], &ram, &mut RECORDS.lock(), into);
    read(&srat, &mut topology).map_err(|e| format!("SRAT: {e}"))?;
    let nodes: Vec<_> = topology.all().iter().collect();
    let [a, b] = nodes[..] else { return Err(format!("{nodes:?}")) };
    let seen =
        (topology.domain(a), topology.domain(b), topology.cpus_of(a).words()[0], topology.distance(a, b));
    check(seen == (9, 0x0a0b_0c02, 2, 20), || format!("{seen:x?}"))?;
    // A domain has one byte in the first revision.
    srat[8] = 1;
    let mut old = Box::new(Topology::one_node(2));
    read(&srat, &mut old).map_err(|e| format!("old SRAT: {e}"))?;
    check(old.domain(a) == 2, || format!("{old:?}"))?;
    let borders = [48, 64, 88, 128, 168, 208];
    for n in 0..srat.len() {
        let whole = read(&srat[..n], &mut topology).is_ok();
        check(whole == borders.contains(&n), || format!("{n} bytes of SRAT: {whole}"))?;
    }
    for length in [0, 1, 39] {
        srat[89] = length;
        check(read(&srat, &mut topology).is_err(), || format!("an entry of {length} bytes"))?;
    }

    let slit = |localities: u64, matrix: &[u8]| {
        let mut bytes = alloc::vec![0u8; HEADER];
        bytes.extend(localities.to_le_bytes());
        bytes.extend(matrix);
        bytes
    };
    for short in [&slit(4, &[10; 15])[..], &slit(u64::MAX, &[10; 16]), &slit(1 << 32, &[10; 16]), &[0; 43]] {
        let answer = read_slit(short, &mut old);
        check(answer == Err(Malformed::Short), || format!("{} bytes of SLIT: {answer:?}", short.len()))?;
    }
    // Domains 2 and 9 of ten.
    let mut matrix = [30; 100];
    (0..10).for_each(|n| matrix[11 * n] = 10);
    (matrix[29], matrix[92]) = (41, 42);
    read_slit(&slit(10, &matrix), &mut old).map_err(|e| format!("SLIT: {e}"))?;
    let seen = (old.distance(a, b), old.distance(b, a));
    check(seen == (41, 42), || format!("{seen:?}"))?;
    matrix[22] = 11;
    check(read_slit(&slit(10, &matrix), &mut old).is_err(), || "far from itself".into())
}
