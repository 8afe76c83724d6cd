//! Whose turn it is: the quantum.
//!
//! QEMU runs all virtual CPUs in one host thread, one after the other, and lets each run until something stops it: a
//! timer, a halt, a `pause`. Here something is made to stop it after so many instructions. The result is a round robin
//! that is fine enough for CPUs to interleave as on real hardware, and a function of the instructions alone.

/// The turn of one CPU.
pub struct Turn {
    cpu: Option<u32>,
    /// Instructions that are left of it.
    left: i64,
    /// Instructions in a turn.
    quantum: u32,
}

impl Turn {
    /// Turns of `quantum` instructions, at least 1; nobody's yet.
    pub fn new(quantum: u32) -> Self {
        Self { cpu: None, left: 0, quantum }
    }

    /// `cpu` is about to execute a block of `instructions`. True if its turn ends after that: blocks are executed whole,
    /// so a turn is longer than the quantum by less than a block.
    #[inline]
    pub fn execute(&mut self, cpu: u32, instructions: u32) -> bool {
        if self.cpu != Some(cpu) {
            self.cpu = Some(cpu);
            self.left = self.quantum.into();
        }
        self.left -= i64::from(instructions);
        let over = self.left <= 0;
        if over {
            // If no other CPU can run, the same one has the next turn.
            self.left = self.quantum.into();
        }
        over
    }

    /// Change the quantum. A turn that has begun is cut to it, or goes on as it was.
    pub fn set_quantum(&mut self, quantum: u32) {
        self.quantum = quantum;
        self.left = self.left.min(quantum.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_with_the_block_that_reaches_the_quantum() {
        let mut turn = Turn::new(10);
        assert_eq!([4, 5, 3].map(|n| turn.execute(0, n)), [false, false, true]);
        // The next turn is a whole one, also of the same CPU: what was too much is not taken off.
        assert_eq!([9, 1, 10, 25].map(|n| turn.execute(0, n)), [false, true, true, true]);
    }

    #[test]
    fn a_cpu_that_comes_in_early_has_a_whole_turn() {
        let mut turn = Turn::new(10);
        assert!(!turn.execute(0, 9));
        assert!(!turn.execute(1, 9));
        assert!(!turn.execute(0, 9));
        assert!(turn.execute(0, 1));
    }

    #[test]
    fn a_smaller_quantum_cuts_the_turn_short() {
        let mut turn = Turn::new(5000);
        assert!(!turn.execute(0, 100));
        turn.set_quantum(200);
        assert!(!turn.execute(0, 199));
        assert!(turn.execute(0, 1));
        turn.set_quantum(5000);
        // What is left of the turn stays.
        assert!(turn.execute(0, 200));
        assert!(!turn.execute(0, 4999));
    }
}
