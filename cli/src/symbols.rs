//! Names for the kernel's addresses, from its debug information.

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
    fn without_symbols_addresses_stay() {
        let symbols = Symbols::new(Path::new("/nonexistent"));
        assert_eq!(symbols.describe(0x1000), ["  at 0x0000000000001000 ?"]);
        assert_eq!(symbols.function(0x1000), None);
    }
}
