//! What the calls that a CPU's own words serve are compiled to: nothing in them locks the bus or a line.
//!
//! The test reads its own program. It follows each probe through every call that it makes, into every instruction of every
//! function, but for the slow paths, which are functions of their own that are never inlined, and for panics.
#![cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
};

use frames::{AllocError, Frames, FreeError, Req, Run, testing};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use object::{Object, ObjectSection, ObjectSymbol, Relocation, RelocationTarget, SymbolKind};
use percpu::{CpuId, Pinned};

/// Where a fast path ends: the calls to these are not followed.
const SLOW: [&str; 2] = ["alloc_zeroed_or_slow", "free_slow"];
/// What ends the program.
const PANIC: &str = "panic";

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_alloc(frames: &Frames<'_>, pin: &Pinned<'_>, req: Req) -> Result<Run, AllocError> {
    frames.alloc(pin, req)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_free(frames: &Frames<'_>, pin: &Pinned<'_>, run: Run) -> Result<(), FreeError> {
    frames.free(pin, run)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_counted(frames: &Frames<'_>, pin: &Pinned<'_>, req: Req, n: &AtomicU64) -> Result<Run, AllocError> {
    n.fetch_add(1, Ordering::Relaxed);
    frames.alloc(pin, req)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn probe_exchanged(
    frames: &Frames<'_>,
    pin: &Pinned<'_>,
    run: Run,
    last: &AtomicU64,
) -> Result<u64, FreeError> {
    let before = last.swap(run.first().number(), Ordering::Relaxed);
    frames.free(pin, run).map(|()| before)
}

/// A function of the program.
struct Function {
    name: String,
    code: Vec<u8>,
}

struct Program {
    /// All functions, by their addresses.
    functions: BTreeMap<u64, Function>,
    /// Words that the loader fills with addresses of the program's own.
    pointers: BTreeMap<u64, u64>,
}

impl Program {
    /// The one that runs.
    fn this() -> Self {
        let bytes = std::fs::read(std::env::current_exe().expect("a program")).expect("it can be read");
        let file = object::File::parse(&*bytes).expect("it is an ELF file");
        let functions = file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0);
        let function = |symbol: object::Symbol<'_, '_>| {
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            let code = section.data_range(symbol.address(), symbol.size()).ok()??.to_vec();
            Some((symbol.address(), Function { name: symbol.name().ok()?.to_owned(), code }))
        };
        let moved = |r: &Relocation| r.target() == RelocationTarget::Absolute;
        let pointers = file.dynamic_relocations().into_iter().flatten().filter(|(_, r)| moved(r));
        Self {
            functions: functions.filter_map(function).collect(),
            pointers: pointers.map(|(at, r)| (at, r.addend() as u64)).collect(),
        }
    }

    /// Where a call or a jump goes, if that is written in the program.
    fn target(&self, i: &Instruction) -> Option<u64> {
        match i.op0_kind() {
            OpKind::NearBranch64 => Some(i.near_branch_target()),
            OpKind::Memory if i.is_ip_rel_memory_operand() => {
                self.pointers.get(&i.ip_rel_memory_address()).copied()
            }
            _ => None,
        }
    }

    fn address(&self, name: &str) -> u64 {
        *self.functions.iter().find(|(_, f)| f.name == name).unwrap_or_else(|| panic!("no function {name}")).0
    }

    /// Every instruction from `probe` on, through calls to everything but `ends`.
    fn walk(&self, probe: &str, ends: &[&str]) -> Walk {
        let mut walk = Walk::default();
        let mut rest = vec![self.address(probe)];
        while let Some(at) = rest.pop() {
            if !walk.functions.insert(at) {
                continue;
            }
            let Some(function) = self.functions.get(&at) else {
                walk.lost.push(format!("a call to {at:#x}, where no function begins"));
                continue;
            };
            let inside = at..at + function.code.len() as u64;
            for i in Decoder::with_ip(64, &function.code, at, DecoderOptions::NONE).iter() {
                assert!(!i.is_invalid(), "{}: {:#x} is no instruction", function.name, i.ip());
                walk.instructions += 1;
                if locks(&i) {
                    walk.locked.push(format!("{:?} at {:#x} in {}", i.code(), i.ip(), function.name));
                }
                let branches = i.op0_kind() == OpKind::NearBranch64
                    || matches!(i.mnemonic(), Mnemonic::Call | Mnemonic::Jmp);
                match self.target(&i) {
                    _ if !branches => {}
                    Some(to) if inside.contains(&to) => {}
                    Some(to) => {
                        let name = self.functions.get(&to).map_or("", |f| &f.name);
                        match ends.iter().find(|end| name.contains(**end)) {
                            Some(end) => drop(walk.ended_at.insert((*end).to_owned())),
                            None => rest.push(to),
                        }
                    }
                    None => walk.lost.push(format!("{:?} at {:#x} in {}", i.code(), i.ip(), function.name)),
                }
            }
        }
        walk
    }
}

/// What was met on the way.
#[derive(Debug, Default)]
struct Walk {
    functions: BTreeSet<u64>,
    instructions: usize,
    /// Instructions that lock.
    locked: Vec<String>,
    /// Where it could not be followed.
    lost: Vec<String>,
    ended_at: BTreeSet<String>,
}

/// With a `lock` prefix, or an exchange with memory, which locks without one (Intel SDM, volume 2, XCHG).
fn locks(i: &Instruction) -> bool {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    i.has_lock_prefix() || i.mnemonic() == Mnemonic::Xchg && memory
}

#[test]
fn the_fast_paths_lock_nothing() {
    let frames = testing::frames(1 << 14, 1);
    // SAFETY: one thread plays the only CPU.
    let pin = unsafe { Pinned::assume(CpuId::new(0).expect("a CPU")) };
    let count = AtomicU64::new(0);
    let probed = |order| black_box(probe_alloc(black_box(frames), &pin, Req::order(order))).expect("a run");
    // They are what is called, and do what they are for.
    for order in 0..=5 {
        let run = probed(order);
        assert_eq!(probe_free(frames, &pin, run), Ok(()));
        let run = probe_counted(frames, &pin, Req::order(order), &count).expect("a run");
        assert!(probe_exchanged(frames, &pin, run, &count).is_ok());
    }
    let program = Program::this();
    let reached = program.walk("probe_alloc", &[SLOW[0], PANIC]).functions;
    if reached.iter().filter_map(|at| program.functions.get(at)).any(|f| f.name.contains("atomic_load")) {
        // Every access is a call of a function that has all orders of memory in it, and chooses as it runs.
        return println!("compiled without optimisation: nothing to see");
    }
    for (probe, slow) in [("probe_alloc", SLOW[0]), ("probe_free", SLOW[1])] {
        let walk = program.walk(probe, &[SLOW[0], SLOW[1], PANIC]);
        println!("{probe}: {} instructions, {} functions", walk.instructions, walk.functions.len());
        assert!(walk.locked.is_empty() && walk.lost.is_empty(), "{probe}: {walk:#?}");
        assert!(walk.instructions > 15 && walk.ended_at.contains(slow), "{probe} is not the path: {walk:#?}");
        // What is behind the slow path's name does lock, and is found if it is followed.
        assert!(!program.walk(probe, &[PANIC]).locked.is_empty(), "{probe}: its slow path locks nothing");
    }
    for probe in ["probe_counted", "probe_exchanged"] {
        let walk = program.walk(probe, &[SLOW[0], SLOW[1], PANIC]);
        assert_eq!(walk.locked.len(), 1, "{probe}: what was planted was not found: {walk:#?}");
    }
}
