//! What a test program is compiled to: it reads itself, and follows a function through every call that it makes.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use object::{Object, ObjectSection, ObjectSymbol, Relocation, RelocationTarget, SymbolKind};

/// A function of the program.
pub struct Function {
    pub name: String,
    code: Vec<u8>,
}

/// A program, as the compiler made it.
pub struct Program {
    /// All functions, by their addresses.
    pub functions: BTreeMap<u64, Function>,
    /// Where they are. Those that are alike may be at one place.
    places: BTreeMap<String, u64>,
    /// Words that the loader fills with addresses of the program's own.
    pointers: BTreeMap<u64, u64>,
}

impl Program {
    /// The one that runs.
    pub fn this() -> Self {
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
        let functions: Vec<_> = functions.filter_map(function).collect();
        Self {
            places: functions.iter().map(|(at, f)| (f.name.clone(), *at)).collect(),
            functions: functions.into_iter().collect(),
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
        *self.places.get(name).unwrap_or_else(|| panic!("no function {name}"))
    }

    /// Every instruction from `probe` on, through calls to everything but `ends`.
    pub fn walk(&self, probe: &str, ends: &[&str]) -> Walk {
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
                let place = || format!("{:?} at {:#x} in {}", i.code(), i.ip(), function.name);
                if locks(&i) {
                    walk.locked.push(place());
                }
                if fences(&i) {
                    walk.fences.push(place());
                }
                if writes(&i) {
                    walk.written.push(place());
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
                    None => walk.lost.push(place()),
                }
            }
        }
        walk
    }
}

/// What was met on the way.
#[derive(Debug, Default)]
pub struct Walk {
    pub functions: BTreeSet<u64>,
    pub instructions: usize,
    /// Instructions that lock.
    pub locked: Vec<String>,
    /// Instructions that wait for stores.
    pub fences: Vec<String>,
    /// Instructions that store to memory, but to the stack by pushing.
    pub written: Vec<String>,
    /// Where it could not be followed.
    pub lost: Vec<String>,
    pub ended_at: BTreeSet<String>,
}

/// With a `lock` prefix, or an exchange with memory, which locks without one (Intel SDM, volume 2, XCHG).
fn locks(i: &Instruction) -> bool {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    i.has_lock_prefix() || i.mnemonic() == Mnemonic::Xchg && memory
}

fn fences(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Mfence | Mnemonic::Sfence | Mnemonic::Lfence)
}

/// Whether its first operand, which is where instructions put what they make, is in memory, and is not just looked at.
fn writes(i: &Instruction) -> bool {
    let looks = [Mnemonic::Cmp, Mnemonic::Test, Mnemonic::Bt, Mnemonic::Call, Mnemonic::Jmp, Mnemonic::Push];
    i.op_count() > 0
        && i.op0_kind() == OpKind::Memory
        && i.mnemonic() != Mnemonic::Nop
        && !looks.contains(&i.mnemonic())
}
