//! Names for a kernel's addresses: Quire's from its debug information, Linux's from the list that it prints.

use std::path::Path;

use addr2line::Loader;

use crate::workspace;

/// Looks addresses up in one ELF file.
pub struct Symbols {
    loader: Option<Loader>,
}

impl Symbols {
    /// The symbols of `kernel`; without them, addresses stay addresses.
    pub fn new(kernel: &Path) -> Self {
        Self { loader: Loader::new(kernel).ok() }
    }

    /// The lines of a backtrace for the return address `address`: one for the function, after one for each function
    /// that was inlined at the call, innermost first.
    pub fn describe(&self, address: u64) -> Vec<String> {
        // The call is before the address that it returns to, which may be in the next line or function.
        let call = address.saturating_sub(1);
        let mut frames = self.frames(call);
        // The debug information has a function's bare name; the symbol of what was not inlined has its path.
        let symbol = self.loader.as_ref().and_then(|loader| loader.find_symbol(call)).map(demangle);
        match (frames.last_mut(), symbol) {
            (Some((name, _)), Some(symbol)) => *name = symbol,
            (None, symbol) => frames.push((symbol.unwrap_or_else(|| "?".to_owned()), String::new())),
            (Some(_), None) => {}
        }
        let lines = frames.iter().enumerate();
        lines.map(|(i, (name, place))| format!("  {} {name}{place}", heading(i, address))).collect()
    }

    /// The innermost function of the workspace's at the instruction `address`, and where that is in it.
    pub fn function(&self, address: u64) -> Option<String> {
        self.frames(address).into_iter().next().map(|(name, place)| name + &place)
    }

    /// Name and place of the function at `address` and of those of the workspace that it is inlined in: what the
    /// standard library inlines into itself would bury them.
    fn frames(&self, address: u64) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let Some(Ok(mut frames)) = self.loader.as_ref().map(|loader| loader.find_frames(address)) else {
            return found;
        };
        let mut next = frames.next();
        while let Ok(Some(frame)) = next {
            next = frames.next();
            let inlined = matches!(next, Ok(Some(_)));
            let Some(Ok(name)) = frame.function.as_ref().map(|f| f.raw_name().map(|n| demangle(&n))) else {
                continue;
            };
            let at = frame.location.and_then(|at| Some((Path::new(at.file?), at.line.unwrap_or(0))));
            let Some((file, line)) = at else {
                found.push((name, String::new()));
                continue;
            };
            let ours = file.strip_prefix(workspace::root());
            if ours.is_ok() || !inlined {
                let file = ours.unwrap_or(file).to_string_lossy();
                let file = file.find("/library/").map_or(&*file, |at| &file[at + 1..]);
                found.push((name, format!(" ({file}:{line})")));
            }
        }
        found
    }
}

fn heading(index: usize, address: u64) -> String {
    if index == 0 { format!("at {address:#018x}") } else { format!("{:21}", "") }
}

/// Linux's symbols, as `/proc/kallsyms` lists them.
pub struct Kallsyms {
    /// By address, ascending.
    symbols: Vec<(u64, String)>,
}

impl Kallsyms {
    /// From the text of `/proc/kallsyms`: an address, a letter for the kind, a name, and a module's name where it is a
    /// module's. `None` without a single symbol whose address is shown.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let symbol = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
            // Absolute symbols are numbers, and offsets into each CPU's data on older kernels.
            let address =
                u64::from_str_radix(address, 16).ok().filter(|n| *n != 0 && kind != "A" && kind != "a")?;
            Some((address, name.to_owned()))
        };
        let mut symbols: Vec<_> = String::from_utf8_lossy(text).lines().filter_map(symbol).collect();
        symbols.sort_by_key(|symbol| symbol.0);
        (!symbols.is_empty()).then_some(Self { symbols })
    }

    /// The name of the last symbol at or below `address`, and how many bytes above it `address` is. Of several at one
    /// address, the first that Linux lists.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.symbols.partition_point(|symbol| symbol.0 <= address);
        let at = self.symbols.get(after.checked_sub(1)?)?.0;
        let first = self.symbols.partition_point(|symbol| symbol.0 < at);
        self.symbols.get(first).map(|(at, name)| (name.as_str(), address - at))
    }

    /// The address of the symbol `name`.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|symbol| symbol.1 == name).map(|symbol| symbol.0)
    }
}

/// Linux's functions that do periodic work also where no timer has interrupted: what ticks have raised as softirqs (timers,
/// grace periods, balancing) runs at the end of any interrupt, and where the lock against softirqs is let go.
const PERIODIC: [&str; 6] = [
    "run_timer_softirq",
    "hrtimer_run_softirq",
    "rcu_core_si",
    // Before 6.10, and since.
    "run_rebalance_domains",
    "sched_balance_softirq",
    "nohz_csd_func",
];

impl Kallsyms {
    /// Where Linux zeroes frames and does periodic work, as options of the tracer's (`docs/exact.md`): the variants of
    /// `clear_page`, the timer's interrupt, the other entries, the switch of threads and how to know a kernel thread by its
    /// stack, [`PERIODIC`], and the interrupts by which other CPUs flush.
    pub fn places(&self) -> Vec<String> {
        let mut places = Vec::new();
        for (at, name) in &self.symbols {
            // To the next function, but for one that shares the address.
            let range = |what: &str| {
                let after = self.symbols.partition_point(|symbol| symbol.0 <= *at);
                self.symbols.get(after).map(|(end, _)| format!("{what}={at:#x}-{end:#x}"))
            };
            match name.as_str() {
                "clear_page_rep" | "clear_page_orig" | "clear_page_erms" => places.extend(range("clearing")),
                "kthread" => places.extend(range("worker")),
                "asm_exc_page_fault" => places.push(format!("fault={at:#x}")),
                "asm_sysvec_apic_timer_interrupt" | "asm_sysvec_irq_work" => {
                    places.push(format!("periodic={at:#x}"));
                }
                "asm_sysvec_call_function" | "asm_sysvec_call_function_single" => {
                    // CALL_FUNCTION_VECTOR and CALL_FUNCTION_SINGLE_VECTOR in Linux's irq_vectors.h: flushes go by them.
                    let vector = if name.ends_with("single") { 0xfb } else { 0xfc };
                    places.extend([format!("entry={at:#x}"), format!("flush={vector:#x}")]);
                }
                "__switch_to_asm" => places.push(format!("switch={at:#x}")),
                "__switch_to" => places.push(format!("thread={at:#x}")),
                name if PERIODIC.contains(&name) => places.push(format!("work={at:#x}")),
                name if ["asm_exc_", "asm_sysvec_", "asm_common_interrupt", "asm_spurious_interrupt"]
                    .iter()
                    .any(|prefix| name.starts_with(prefix)) =>
                {
                    places.push(format!("entry={at:#x}"));
                }
                _ => {}
            }
        }
        places
    }
}

/// The names of the functions of whichever kernel ran.
pub enum Names {
    /// Quire's.
    Quire(Box<Symbols>),
    /// Linux's.
    Linux(Kallsyms),
}

impl Names {
    /// The function at the instruction `address`, and where that is in it.
    pub fn function(&self, address: u64) -> Option<String> {
        match self {
            Self::Quire(symbols) => symbols.function(address),
            Self::Linux(symbols) => symbols.find(address).map(|(name, offset)| format!("{name}+{offset:#x}")),
        }
    }
}

/// A symbol without the hash that makes it unique, or a bare name without its type parameters.
fn demangle(name: &str) -> String {
    match rustc_demangle::try_demangle(name) {
        Ok(symbol) => format!("{symbol:#}"),
        Err(_) => name.split('<').next().unwrap_or(name).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linuxs_places_are_found_by_their_names() {
        let text = "ffff0010 T __switch_to_asm\nffff0020 T kthread\nffff0030 t rcu_core_si\nffff0038 T __switch_to\nffff0040 T clear_page_rep\nffff0070 T clear_page_orig\n\
                    ffff0100 T asm_exc_page_fault\nffff0120 T asm_sysvec_apic_timer_interrupt\n\
                    ffff0130 T asm_sysvec_call_function\nffff0140 T asm_sysvec_reboot\nffff0160 t asm_other\n";
        let places = Kallsyms::parse(text.as_bytes()).unwrap().places();
        assert_eq!(
            places,
            [
                "switch=0xffff0010",
                "worker=0xffff0020-0xffff0030",
                "work=0xffff0030",
                "thread=0xffff0038",
                "clearing=0xffff0040-0xffff0070",
                "clearing=0xffff0070-0xffff0100",
                "fault=0xffff0100",
                "periodic=0xffff0120",
                "entry=0xffff0130",
                "flush=0xfc",
                "entry=0xffff0140",
            ]
        );
    }

    /// Something to be found.
    #[inline(never)]
    fn here() -> u64 {
        std::hint::black_box(here as *const () as u64)
    }

    #[test]
    fn a_function_is_found_by_its_address() {
        // The test is position-independent: its addresses in memory are those of its file and where it was put.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let base = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
        let symbols = Symbols::new(&std::env::current_exe().unwrap());
        let lines = symbols.describe(here() - base + 1);
        assert!(lines[0].starts_with("  at 0x") && lines[0].contains("symbols::tests::here"), "{lines:?}");
    }

    #[test]
    fn the_last_symbol_below_an_address_names_it() {
        let text = b"0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\nffffffff81000040 t f\n\
            ffffffff81000040 t g\nffffffff81000030 T e\nffffffffc0001000 t h\t[ext4]\n";
        let symbols = Kallsyms::parse(text).unwrap();
        assert_eq!(symbols.find(0xffff_ffff_8100_0000), Some(("_text", 0)));
        assert_eq!(symbols.find(0xffff_ffff_8100_003f), Some(("e", 15)));
        assert_eq!(symbols.find(0xffff_ffff_8100_0041), Some(("f", 1)));
        assert_eq!(symbols.find(u64::MAX).unwrap().0, "h");
        assert_eq!(symbols.find(0xffff_ffff_80ff_ffff), None);
        assert_eq!(symbols.address("e"), Some(0xffff_ffff_8100_0030));
        assert_eq!(symbols.address("none"), None);
        // A kernel that hides its addresses shows zeros.
        assert!(Kallsyms::parse(b"0000000000000000 T _text\n").is_none());
    }

    #[test]
    fn without_symbols_addresses_stay() {
        let symbols = Symbols::new(Path::new("/nonexistent"));
        assert_eq!(symbols.describe(0x1000), ["  at 0x0000000000001000 ?"]);
        assert_eq!(symbols.function(0x1000), None);
    }
}
