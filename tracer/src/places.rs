//! Places in a kernel that has no markers: addresses of functions that stand for them.
//!
//! * Zeroing frames is what lies in a range of addresses.
//! * Periodic work begins at the entry of the timer's interrupt and ends with the return from it (`iretq`). Interrupts and
//!   exceptions that come in between are entered at places too, and their returns don't end it. A switch of threads does,
//!   and so does a return from a system call (`sysretq`): what the next thread was in the middle of is its own work.
//! * Some functions do periodic work wherever they are called. It lasts until they return.
//! * All that a worker does, a thread of the kernel's own, is periodic work.
//!
//! # Who a worker is
//! Workers come and go by the switch of threads, in the middle of whatever they do, so the answer has to be a property of the
//! thread and not of the function that it is in. Its stack has it: all workers are begun by one function, which stays the
//! outermost but for the thread's entry. A thread is a worker if, when it gets the CPU, a word of its stack in use lies in
//! that function: a return address into it or, of a new thread, its begin. That needs neither registers, which the emulator's
//! plugins don't see, nor the layout of the kernel's structures, only the stack's place: the switch has just popped from it.
//! The idle threads are no workers: their time is nobody's work.
//!
//! # When a function returns
//! The call has just pushed the return address when the function's first instruction comes. The function has returned when
//! that word is loaded again.

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
    /// The first instruction of a function that does periodic work.
    Work,
    /// An instruction after the switch, by which the next thread's stack has been popped from.
    Thread,
}

impl Place {
    /// The place of this number.
    pub fn from_number(number: u32) -> Option<Self> {
        const ALL: [Place; 7] = [
            Place::Periodic,
            Place::Entry,
            Place::Fault,
            Place::Return,
            Place::Switch,
            Place::Work,
            Place::Thread,
        ];
        ALL.into_iter().find(|place| *place as u32 == number)
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
    works: Vec<u64>,
    threads: Vec<u64>,
    workers: Vec<Range<u64>>,
}

/// Bytes of a kernel stack, and to what it is aligned: `THREAD_SIZE` of Linux on x86-64. Where stacks are larger only a part of
/// each is looked at.
pub const STACK: u64 = 16 << 10;

const IRETQ: [u8; 2] = [0x48, 0xcf];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];

/// What is in use of the stack that a word was just popped from: all above it, and the word below, where a new thread has its
/// function. Whole words, at most [`STACK`] bytes.
pub fn stack_in_use(popped: u64) -> Range<u64> {
    let bottom = popped & !(STACK - 1);
    (popped & !7).saturating_sub(8).max(bottom)..bottom.saturating_add(STACK)
}

impl Places {
    /// Add what an option says: `clearing` and `worker` a range of addresses, the others one address each. Whether it was
    /// understood.
    pub fn add(&mut self, key: &str, value: &str) -> bool {
        let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        match (key, address(value), value.split_once('-')) {
            ("periodic", Some(at), _) => self.periodic.push(at),
            ("entry", Some(at), _) => self.entries.push(at),
            ("fault", Some(at), _) => self.faults.push(at),
            ("switch", Some(at), _) => self.switches.push(at),
            ("work", Some(at), _) => self.works.push(at),
            ("thread", Some(at), _) => self.threads.push(at),
            ("clearing" | "worker", _, Some((from, to))) => match (address(from), address(to)) {
                (Some(from), Some(to)) if from < to => {
                    let ranges = if key == "worker" { &mut self.workers } else { &mut self.clearing };
                    ranges.push(from..to);
                }
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

    /// Whether accesses to memory tell more about a place.
    pub fn need_accesses(&self) -> bool {
        !self.works.is_empty() || !self.threads.is_empty()
    }

    /// Whether the thread whose stack in use has these words is a worker.
    pub fn is_worker(&self, stack: &[u64]) -> bool {
        stack.iter().any(|word| self.workers.iter().any(|range| range.contains(word)))
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
            _ if is(&self.works) => Some(Place::Work),
            _ if is(&self.threads) => Some(Place::Thread),
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
                && !places.need_accesses()
                && places.add("work", "0x5000")
                && places.add("thread", "0x6000")
                && places.need_accesses()
        );
        for (pc, bytes, place) in [
            (0x1000, &[0x90][..], Some(Place::Periodic)),
            (0x2000, &[0x90], Some(Place::Entry)),
            (0x2800, &[0x90], Some(Place::Fault)),
            (0x3000, &[0x90], Some(Place::Switch)),
            (0x4000, &IRETQ, Some(Place::Return)),
            (0x4000, &SYSRETQ, Some(Place::Switch)),
            (0x4000, &[0x90], None),
            (0x5000, &[0x90], Some(Place::Work)),
            (0x6000, &[0x90], Some(Place::Thread)),
        ] {
            assert_eq!(places.of(pc, bytes), place);
            assert_eq!(place.and_then(|p| Place::from_number(p as u32)), place);
        }
        assert_eq!([0xff, 0x100, 0x17f, 0x180].map(|pc| places.clears(pc)), [false, true, true, false]);
        for (key, value) in [
            ("clearing", "0x100"),
            ("worker", "0x100"),
            ("thread", "0x1-0x2"),
            ("clearing", "0x2-0x1"),
            ("periodic", "12"),
            ("entry", ""),
            ("frob", "0x1"),
        ] {
            assert!(!places.add(key, value), "{key}={value}");
        }
    }

    #[test]
    fn a_stack_is_in_use_up_to_its_top() {
        const AT: u64 = 0xffff_c900_0001_4000;
        assert_eq!(stack_in_use(AT + 0x3e08), AT + 0x3e00..AT + STACK);
        // At either end.
        assert_eq!(stack_in_use(AT + STACK - 8), AT + STACK - 16..AT + STACK);
        assert_eq!(stack_in_use(AT), AT..AT + STACK);
        // Nothing was popped yet.
        assert_eq!(stack_in_use(0), 0..STACK);
    }

    #[test]
    fn a_worker_is_known_by_the_function_that_began_it() {
        let mut places = Places::default();
        assert!(!places.is_worker(&[0x100]) && places.add("worker", "0x100-0x180"));
        // New, and asleep in something that it calls; then a thread that comes from user mode.
        assert!(places.is_worker(&[0x100, 0]) && places.is_worker(&[0, 0x900, 0x17f, 0x800, 0]));
        assert!(!places.is_worker(&[0, 0x900, 0x180, 0xff, 0x33]) && !places.is_worker(&[]));
    }
}
