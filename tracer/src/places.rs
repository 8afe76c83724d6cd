//! Places in a kernel that has no markers: addresses of functions that stand for them.
//!
//! * Zeroing frames is what lies in a range of addresses.
//! * Periodic work begins at the entry of the timer's interrupt and ends with the return from it (`iretq`). Interrupts and
//!   exceptions that come in between are entered at places too, and their returns don't end it. A switch of threads does,
//!   and so does a return from a system call (`sysretq`): what the next thread was in the middle of is its own work.

use std::ops::Range;

/// What an instruction is, as a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    /// The first instruction of periodic work.
    Periodic,
    /// The first instruction of another interrupt or exception.
    Entry,
    /// The first instruction of a page fault.
    Fault,
    /// The last instruction of any of them.
    Return,
    /// The switch to another thread, or the end of a system call.
    Switch,
}

impl Place {
    /// The place of this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Periodic, Self::Entry, Self::Fault, Self::Return, Self::Switch]
            .into_iter()
            .find(|p| *p as u32 == number)
    }
}

/// All places that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    clearing: Vec<Range<u64>>,
    periodic: Vec<u64>,
    entries: Vec<u64>,
    faults: Vec<u64>,
    switches: Vec<u64>,
}

const IRETQ: [u8; 2] = [0x48, 0xcf];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];

impl Places {
    /// Add what an option says: `clearing` a range of addresses, `periodic`, `entry`, `fault` and `switch` one address each.
    /// Whether it was understood.
    pub fn add(&mut self, key: &str, value: &str) -> bool {
        let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        match (key, address(value), value.split_once('-')) {
            ("periodic", Some(at), _) => self.periodic.push(at),
            ("entry", Some(at), _) => self.entries.push(at),
            ("fault", Some(at), _) => self.faults.push(at),
            ("switch", Some(at), _) => self.switches.push(at),
            ("clearing", _, Some((from, to))) => match (address(from), address(to)) {
                (Some(from), Some(to)) if from < to => self.clearing.push(from..to),
                _ => return false,
            },
            _ => return false,
        }
        true
    }

    /// Whether the instruction at `pc` zeroes frames.
    pub fn clears(&self, pc: u64) -> bool {
        self.clearing.iter().any(|range| range.contains(&pc))
    }

    /// The place that the instruction with these bytes at `pc` is, if it is one that matters.
    pub fn of(&self, pc: u64, bytes: &[u8]) -> Option<Place> {
        if self.periodic.is_empty() {
            return None;
        }
        let is = |places: &[u64]| places.contains(&pc);
        match bytes {
            _ if is(&self.periodic) => Some(Place::Periodic),
            _ if is(&self.entries) => Some(Place::Entry),
            _ if is(&self.faults) => Some(Place::Fault),
            _ if is(&self.switches) || bytes == SYSRETQ => Some(Place::Switch),
            _ if bytes == IRETQ => Some(Place::Return),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_by_address_and_returns_by_their_bytes() {
        let mut places = Places::default();
        assert_eq!(places.of(0x1000, &IRETQ), None);
        assert!(places.add("clearing", "0x100-0x180"));
        assert!(
            places.add("periodic", "0x1000")
                && places.add("entry", "0x2000")
                && places.add("fault", "0x2800")
                && places.add("switch", "0x3000")
        );
        for (pc, bytes, place) in [
            (0x1000, &[0x90][..], Some(Place::Periodic)),
            (0x2000, &[0x90], Some(Place::Entry)),
            (0x2800, &[0x90], Some(Place::Fault)),
            (0x3000, &[0x90], Some(Place::Switch)),
            (0x4000, &IRETQ, Some(Place::Return)),
            (0x4000, &SYSRETQ, Some(Place::Switch)),
            (0x4000, &[0x90], None),
        ] {
            assert_eq!(places.of(pc, bytes), place);
            assert_eq!(place.and_then(|p| Place::from_number(p as u32)), place);
        }
        assert_eq!([0xff, 0x100, 0x17f, 0x180].map(|pc| places.clears(pc)), [false, true, true, false]);
        for (key, value) in [
            ("clearing", "0x100"),
            ("clearing", "0x2-0x1"),
            ("periodic", "12"),
            ("entry", ""),
            ("frob", "0x1"),
        ] {
            assert!(!places.add(key, value), "{key}={value}");
        }
    }
}
