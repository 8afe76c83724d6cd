//! Where instructions are executed: by block, the unit that QEMU translates, which its first instruction names.

use std::{cmp::Reverse, collections::HashMap};

use crate::lines::Account;

/// What was executed of one block while a window was open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Virtual address of its first instruction. Programs that have code at the same address are not told apart.
    pub pc: u64,
    /// Instructions, without those of periodic work.
    pub instructions: u64,
    /// Of these, in operations.
    pub operations: u64,
    /// Instructions of periodic work.
    pub periodic: u64,
}

impl Block {
    /// Everything.
    fn all(&self) -> u64 {
        self.instructions + self.periodic
    }

    fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        self.operations += other.operations;
        self.periodic += other.periodic;
    }
}

/// Instructions by block.
pub struct Profile {
    blocks: Vec<Block>,
    /// Numbers by first instruction: a block that is translated again keeps its number.
    numbers: HashMap<u64, usize>,
    /// The number of the block that is being executed.
    current: usize,
}

impl Profile {
    /// Nothing was executed.
    pub fn new() -> Self {
        Self { blocks: Vec::new(), numbers: HashMap::new(), current: 0 }
    }

    /// The number of the block that begins at `pc`.
    pub fn number(&mut self, pc: u64) -> usize {
        let blocks = &mut self.blocks;
        *self.numbers.entry(pc).or_insert_with(|| {
            blocks.push(Block { pc, ..Block::default() });
            blocks.len() - 1
        })
    }

    /// From here on the block of this number is executed.
    #[inline]
    pub fn enter(&mut self, number: usize) {
        self.current = number;
    }

    /// So many instructions of it were.
    #[inline]
    pub fn count(&mut self, instructions: u64, account: Account) {
        let Some(block) = self.blocks.get_mut(self.current) else { return };
        match account {
            Account::Periodic => block.periodic += instructions,
            Account::Operation => {
                block.instructions += instructions;
                block.operations += instructions;
            }
            Account::Other => block.instructions += instructions,
        }
    }

    /// The `most` blocks of which most was executed, these first; and the rest: how many, and their sum.
    pub fn top(&self, most: usize) -> (Vec<Block>, usize, Block) {
        let mut all: Vec<_> = self.blocks.iter().filter(|block| block.all() > 0).copied().collect();
        all.sort_by_key(|block| (Reverse(block.all()), block.pc));
        let rest = all.split_off(most.min(all.len()));
        let mut sum = Block::default();
        rest.iter().for_each(|block| sum.add(block));
        (all, rest.len(), sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_go_to_the_block_that_ran() {
        let mut profile = Profile::new();
        // Nothing runs yet.
        profile.count(7, Account::Other);
        let [a, b] = [0x1000, 0xffff_ffff_8020_0000].map(|pc| profile.number(pc));
        assert_eq!((profile.number(0x1000), a == b), (a, false));
        for (block, instructions, account) in [
            (a, 5, Account::Other),
            (b, 9, Account::Operation),
            (a, 2, Account::Operation),
            (a, 1, Account::Periodic),
        ] {
            profile.enter(block);
            profile.count(instructions, account);
        }
        let first = Block { pc: 0xffff_ffff_8020_0000, instructions: 9, operations: 9, periodic: 0 };
        let second = Block { pc: 0x1000, instructions: 7, operations: 2, periodic: 1 };
        assert_eq!(profile.top(10), (vec![first, second], 0, Block::default()));
        assert_eq!(profile.top(1), (vec![first], 1, Block { pc: 0, ..second }));
    }

    #[test]
    fn equals_are_in_order_of_address() {
        let mut profile = Profile::new();
        for pc in [0x30, 0x10, 0x20, 0x40] {
            let number = profile.number(pc);
            profile.enter(number);
            profile.count(u64::from(pc != 0x40), Account::Other);
        }
        // What was never executed in a window is nothing.
        assert_eq!(profile.top(9).0.iter().map(|block| block.pc).collect::<Vec<_>>(), [0x10, 0x20, 0x30]);
    }
}
