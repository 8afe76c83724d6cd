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

    /// The lines of a backtrace for the return address `address`: one for the function, and one for each function
    /// that was inlined at the call, innermost first.
    pub fn describe(&self, address: u64) -> Vec<String> {
        // The call is before the address that it returns to, which may be in the next line or function.
        let call = address.saturating_sub(1);
        let mut lines = self.frames(call);
        if lines.is_empty() {
            let name =
                self.loader.as_ref().and_then(|l| l.find_symbol(call)).map_or("?".to_owned(), demangle);
            lines.push(name);
        }
        lines.iter().enumerate().map(|(i, text)| format!("  {} {text}", heading(i, address))).collect()
    }

    fn frames(&self, address: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(Ok(mut frames)) = self.loader.as_ref().map(|loader| loader.find_frames(address)) else {
            return lines;
        };
        while let Ok(Some(frame)) = frames.next() {
            let Some(Ok(name)) = frame.function.as_ref().map(|f| f.raw_name().map(|n| demangle(&n))) else {
                continue;
            };
            let place = frame.location.and_then(|at| {
                let file = Path::new(at.file?);
                let file = file.strip_prefix(workspace::root()).unwrap_or(file);
                Some(format!(" ({}:{})", file.display(), at.line.unwrap_or(0)))
            });
            lines.push(name + &place.unwrap_or_default());
        }
        lines
    }
}

fn heading(index: usize, address: u64) -> String {
    if index == 0 { format!("at {address:#018x}") } else { format!("{:21}", "") }
}

/// Without the hash that makes a symbol unique.
fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
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
    }
}
