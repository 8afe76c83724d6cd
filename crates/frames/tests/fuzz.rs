//! The allocator's calls as bytes say, against a set of frames.
//!
//! Compiled with `--cfg fuzzing` and for coverage this is a program for libFuzzer, which looks for bytes that reach what
//! none has reached, under AddressSanitizer (`cargo quire test sanitize`). Compiled as usual it makes up bytes at random.
#![cfg_attr(fuzzing, no_main)]
#![cfg_attr(any(loom, shuttle), allow(dead_code))]

#[cfg(not(any(loom, shuttle)))]
mod calls;

#[cfg(not(any(loom, shuttle)))]
mod bytes {
    use std::sync::OnceLock;

    use frames::{
        AlgoKind, Class, Config, Ctx, Fill, FrameRange, Frames, Node, NodeSet, Place, Req, Topology, testing,
    };

    use crate::calls::{CPUS, Step, clear, run};

    /// Choices that bytes make; when there are none left, the first of each.
    struct Choices<'a>(&'a [u8]);

    impl Choices<'_> {
        fn byte(&mut self) -> usize {
            let Some((first, rest)) = self.0.split_first() else { return 0 };
            self.0 = rest;
            usize::from(*first)
        }
        fn below(&mut self, n: usize) -> usize {
            let high = if n > 256 { self.byte() << 8 } else { 0 };
            (high | self.byte()) % n
        }
        fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
            all[self.below(all.len())]
        }
        fn nodes(&mut self) -> NodeSet {
            NodeSet::from_bits(1 + self.below(3) as u64)
        }
        fn req(&mut self) -> Req {
            let place = match self.below(16) {
                0 => Place::Prefer(Node::new(self.below(2)).unwrap_or_default()),
                1 => Place::Bind(self.nodes(), None),
                2 => Place::PreferAny(self.nodes(), Node::new(1)),
                3 => Place::Interleave(self.nodes()),
                _ => Place::Local,
            };
            let kind = self.below(8);
            Req {
                order: self.one_of(&[0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 12]),
                class: self.one_of(&[Class::Movable, Class::Unmovable]),
                ctx: self.one_of(&[Ctx::Normal, Ctx::Atomic, Ctx::Reserve]),
                fill: self.one_of(&[Fill::Any, Fill::Any, Fill::Zeroed]),
                place,
                lane: AlgoKind::ALL.get(kind).copied(),
            }
        }
        /// The next call, until there are no bytes left.
        fn step(&mut self) -> Option<Step> {
            if self.0.is_empty() {
                return None;
            }
            let (what, cpu) = (self.below(48), self.below(CPUS));
            let (block, blocks) = (|c: &mut Self| c.below(16) as u64, |c: &mut Self| 1 + c.below(3) as u64);
            Some(match what {
                0..16 => Step::Alloc { cpu, req: self.req() },
                16..18 => Step::Bulk { cpu, n: 1 + self.below(299) },
                18..28 => Step::Free { cpu, which: self.below(4096) },
                28..31 => Step::FreeMany { cpu, n: 1 + self.below(399) },
                31 => Step::FreeShared { which: self.below(4096) },
                32..34 => Step::Pending { cpu, which: self.below(4096), generation: self.below(9) as u64 },
                34 => Step::Release { cpu, done: self.below(9) as u64 },
                35 => Step::Split { which: self.below(4096) },
                36 => Step::Drain { cpu },
                37 => Step::AskAll,
                38 => Step::SafePoint { cpu },
                39 => Step::Tick { cpu },
                40 => Step::Balance { cpu },
                41 => Step::Switch { cpu, kind: self.one_of(&AlgoKind::ALL) },
                42..44 => Step::Idle { cpu, budget: 1 + self.below(1024) as u32 },
                44 => Step::Offline { cpu, block: block(self), blocks: blocks(self) },
                45 => Step::Cancel { cpu, block: block(self), blocks: blocks(self) },
                46 => Step::Online { cpu, block: block(self), blocks: blocks(self) },
                _ => Step::Park { cpu },
            })
        }
    }

    /// Memory of which there is one for each CPU and algorithm, for allocators that come one after the other.
    fn memory(cpu: usize, kind: AlgoKind) -> &'static mut [u8] {
        static ALL: OnceLock<Vec<(usize, usize)>> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            let each = |i: usize| testing::lane_memory(AlgoKind::ALL[i % AlgoKind::ALL.len()]);
            let all = (0..CPUS * AlgoKind::ALL.len()).map(each);
            all.map(|memory| (memory.as_mut_ptr().expose_provenance(), memory.len())).collect()
        });
        let (at, len) = all[cpu * AlgoKind::ALL.len() + kind as usize];
        // SAFETY: leaked memory; each allocator asks once for a CPU and a kind, and the last allocator is gone.
        unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(at), len) }
    }

    /// Make the calls that `bytes` say, on a machine of a size that they say too.
    pub fn play(bytes: &[u8]) {
        static ONE: OnceLock<Topology> = OnceLock::new();
        let mut choices = Choices(bytes);
        let n = choices.one_of(&[24 * 512, 24 * 512, 24 * 512, 2999, 100]);
        let ranges = [FrameRange { start: testing::frame(512), end: testing::frame(512 + n) }];
        let cfg =
            Config { ranges: &ranges, cpus: CPUS, topology: ONE.get_or_init(|| Topology::one_node(CPUS)) };
        let bytes = Frames::meta_bytes(&cfg);
        // A fault that is planted, for AddressSanitizer to find.
        let there = if sync::mutant!("frames-short-tables") { bytes / 2 } else { bytes };
        let tables = Box::into_raw(vec![0u8; there].into_boxed_slice());
        // SAFETY: the buffer is zeroed and outlives the allocator; imaginary frames, and nothing is done to zero them.
        let frames = unsafe {
            let whole = std::slice::from_raw_parts_mut(tables.cast(), bytes);
            Frames::new(&cfg, whole, clear())
        };
        run(&frames, 512, std::iter::from_fn(|| choices.step()), memory);
        // SAFETY: made from a box above, and the allocator isn't used any more.
        drop(unsafe { Box::from_raw(tables) });
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bytes::play(bytes));

/// Bytes at random, as many as a second allows.
#[cfg(not(any(fuzzing, loom, shuttle)))]
fn main() {
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let runs = if std::env::var_os("QUIRE_FULL").is_some() { 20_000 } else { 300 };
    for _ in 0..runs {
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 32) as u8
        };
        let len = 4 * usize::from(next());
        bytes::play(&(0..len).map(|_| next()).collect::<Vec<_>>());
    }
    println!("test bytes at random ... ok\n\ntest result: ok. 1 passed; 0 failed; {runs} runs");
}

#[cfg(all(any(loom, shuttle), not(fuzzing)))]
fn main() {}
