//! Other allocators, by their crates, and the floor.

use std::{
    cell::Cell,
    hint::black_box,
    sync::{Mutex, PoisonError},
};

use bitmap_allocator::BitAlloc;
use buddy_system_allocator::FrameAllocator;
use percpu::{PerCpu, Pinned};

use crate::subject::{Metadata, Setup, Subject};

/// `buddy_system_allocator`'s frame allocator (a set of free blocks for each order) behind a mutex.
pub struct Buddy(Mutex<FrameAllocator<19>>);

impl Subject for Buddy {
    fn new(setup: &Setup) -> Self {
        let mut buddy = FrameAllocator::new();
        buddy.add_frame(0, setup.frames);
        Self(Mutex::new(buddy))
    }

    #[inline]
    fn get(&self, _: &Pinned<'_>, order: u32) -> Option<u64> {
        let mut buddy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buddy.alloc(1 << order).map(|frame| frame as u64)
    }

    #[inline]
    fn put(&self, _: &Pinned<'_>, frame: u64, order: u32) {
        let mut buddy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buddy.dealloc(frame as usize, 1 << order);
    }
}

/// `bitmap-allocator` (a tree of bitmaps, 16 to a level) behind a mutex; `B` is the size of tree.
pub struct Bitmap<B>(Mutex<Box<B>>);

impl<B: BitAlloc + Send> Subject for Bitmap<B> {
    fn new(setup: &Setup) -> Self {
        let mut bits = Box::new(B::DEFAULT);
        assert!(setup.frames <= B::CAP, "the tree is too small");
        bits.insert(0..setup.frames);
        Self(Mutex::new(bits))
    }

    #[inline]
    fn get(&self, _: &Pinned<'_>, order: u32) -> Option<u64> {
        let mut bits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = match order {
            0 => bits.alloc(),
            _ => bits.alloc_contiguous(None, 1 << order, order as usize),
        };
        first.map(|frame| frame as u64)
    }

    #[inline]
    fn put(&self, _: &Pinned<'_>, frame: u64, order: u32) {
        let mut bits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match order {
            0 => bits.dealloc(frame as usize),
            _ => bits.dealloc_contiguous(frame as usize, 1 << order),
        };
    }

    fn metadata(&self) -> Option<Metadata> {
        Some(Metadata { shared: size_of::<B>(), per_cpu: 0 })
    }
}

/// The floor: a stack of single frames for each CPU, which nobody else ever looks at. It can't balance, nor keep frames
/// together; but nothing that hands out frames does less.
pub struct Floor {
    stacks: PerCpu<Stack>,
    /// Of the numbers on all stacks.
    bytes: usize,
}

struct Stack {
    height: Cell<usize>,
    frames: Box<[Cell<u32>]>,
}

impl Subject for Floor {
    const HUGE: bool = false;
    const BALANCES: bool = false;

    fn new(setup: &Setup) -> Self {
        let share = setup.frames / setup.cpus;
        let stacks = PerCpu::new(setup.cpus, |cpu| {
            let first = cpu.index() * share;
            // The lowest on top.
            let frames = (first..first + share).rev().map(|frame| Cell::new(frame as u32)).collect();
            Stack { height: Cell::new(share), frames }
        });
        Self { stacks, bytes: setup.cpus * share * size_of::<u32>() }
    }

    #[inline]
    fn get(&self, pin: &Pinned<'_>, _: u32) -> Option<u64> {
        // Each call finds the height in memory, as calls from different places do: a loop would keep it in a register.
        let stack = black_box(self.stacks.get(pin));
        let height = stack.height.get().checked_sub(1)?;
        stack.height.set(height);
        stack.frames.get(height).map(|frame| frame.get().into())
    }

    #[inline]
    fn put(&self, pin: &Pinned<'_>, frame: u64, _: u32) {
        let stack = black_box(self.stacks.get(pin));
        let height = stack.height.get();
        if let Some(place) = stack.frames.get(height) {
            place.set(frame as u32);
            stack.height.set(height + 1);
        }
    }

    fn metadata(&self) -> Option<Metadata> {
        Some(Metadata { shared: self.bytes, per_cpu: size_of::<Stack>() })
    }
}
