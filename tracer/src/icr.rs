//! Interrupts between CPUs: what a store to a local APIC's interrupt command register asks for.
//!
//! Intel SDM vol. 3A, 10.6.1. The tracer sees that the low word was stored, which sends, and reads both words back.

/// Physical address of the register's low word, in xAPIC mode, for every CPU its own.
pub const ICR_LOW: u64 = 0xfee0_0300;
/// That of its high word.
pub const ICR_HIGH: u64 = 0xfee0_0310;

/// Delivery modes that start a CPU: no interrupt is taken.
const INIT: u32 = 5;
const STARTUP: u32 = 6;

/// The number of the interrupt.
pub fn vector(low: u32) -> u8 {
    low as u8
}

/// How many of `cpus` CPUs other than the sender, `from`, are interrupted by this command. CPUs' APIC numbers are their
/// own; logical destinations are flat, a bit for each of the first eight CPUs.
pub fn targets(low: u32, high: u32, from: u32, cpus: u32) -> u32 {
    if matches!(low >> 8 & 7, INIT | STARTUP) {
        return 0;
    }
    let others = cpus.saturating_sub(1);
    let destination = high >> 24;
    let logical = low & 1 << 11 != 0;
    match low >> 18 & 3 {
        1 => 0,
        2 | 3 => others,
        _ if destination == 0xff && (!logical || cpus > 8) => others,
        _ if logical => {
            let there = destination & ((1u64 << cpus.min(8)) - 1) as u32;
            (there & !1u32.checked_shl(from).unwrap_or(0)).count_ones()
        }
        _ => u32::from(destination < cpus && destination != from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: u32 = 0x40f2;
    const LOGICAL: u32 = 1 << 11;

    #[test]
    fn shorthands_stand_for_their_targets() {
        assert_eq!(targets(FIXED | 1 << 18, 0, 3, 80), 0);
        assert_eq!(vector(FIXED | 1 << 18), 0xf2);
        assert_eq!(targets(FIXED | 2 << 18, 0, 3, 80), 79);
        assert_eq!(targets(FIXED | 3 << 18, 0, 3, 80), 79);
        assert_eq!(targets(FIXED | 3 << 18, 0, 0, 1), 0);
    }

    #[test]
    fn a_physical_destination_is_one_cpu_or_all() {
        assert_eq!(targets(FIXED, 5 << 24, 0, 8), 1);
        assert_eq!(targets(FIXED, 5 << 24, 5, 8), 0);
        assert_eq!(targets(FIXED, 9 << 24, 0, 8), 0);
        assert_eq!(targets(FIXED, 0xff << 24, 0, 8), 7);
    }

    #[test]
    fn a_logical_destination_is_a_set_of_the_first_eight() {
        assert_eq!(targets(FIXED | LOGICAL, 0b1011 << 24, 0, 8), 2);
        assert_eq!(targets(FIXED | LOGICAL, 0b1011 << 24, 2, 4), 3);
        assert_eq!(targets(FIXED | LOGICAL, 0xff << 24, 1, 2), 1);
        assert_eq!(targets(FIXED | LOGICAL, 0xff << 24, 1, 8), 7);
    }

    #[test]
    fn starting_a_cpu_is_no_interrupt() {
        assert_eq!(targets(0x4500 | 3 << 18, 0, 0, 8), 0);
        assert_eq!(targets(0x4608 | 3 << 18, 0, 0, 8), 0);
        // A non-maskable one is.
        assert_eq!(targets(0x4400, 1 << 24, 0, 8), 1);
    }
}
