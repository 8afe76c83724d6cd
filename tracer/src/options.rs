//! What the plugin is told: `-plugin file=…,quantum=200,outside=5000,seed=1,window=marked,lines=100,window_lines=16,profile=1000,out=FILE`.

use std::path::PathBuf;

use crate::places::Places;

/// Where windows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Each CPU's from the markers that it executes.
    Marked,
    /// One for all CPUs, while the first program runs.
    Run,
}

impl Windows {
    /// As it is said.
    pub fn name(self) -> &'static str {
        match self {
            Self::Marked => "marked",
            Self::Run => "run",
        }
    }
}

/// The options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Instructions in a CPU's turn while a window is open.
    pub quantum: u32,
    /// Instructions in a turn otherwise.
    pub outside: u32,
    /// QEMU's seed, which is only reported.
    pub seed: u64,
    /// Where windows come from.
    pub windows: Windows,
    /// Where a kernel without markers does what others mark.
    pub places: Places,
    /// The interrupts that end translations on other CPUs.
    pub flush: Vec<u8>,
    /// How many lines are reported.
    pub lines: usize,
    /// How many are of each window.
    pub window_lines: usize,
    /// How many blocks of the profile are reported.
    pub profile: usize,
    /// Where the report goes. Without it nothing is counted: turns alone are kept.
    pub out: Option<PathBuf>,
}

impl Options {
    /// Understand `key=value` words; what is wrong with the first that can't be.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let windows = Windows::Marked;
        let places = Places::default();
        let mut options = Self {
            quantum: 200,
            outside: 5000,
            seed: 1,
            windows,
            places,
            flush: Vec::new(),
            lines: 100,
            window_lines: 16,
            profile: 1000,
            out: None,
        };
        for word in words {
            let wrong = || format!("cannot understand the option {word}");
            let (key, value) = word.split_once('=').ok_or_else(wrong)?;
            let length = || value.parse().ok().filter(|n| (1..=1 << 24).contains(n)).ok_or_else(wrong);
            match key {
                "quantum" => options.quantum = length()?,
                "outside" => options.outside = length()?,
                "seed" => options.seed = value.parse().map_err(|_| wrong())?,
                "window_lines" => options.window_lines = value.parse().map_err(|_| wrong())?,
                "profile" => options.profile = value.parse().map_err(|_| wrong())?,
                "lines" => options.lines = value.parse().map_err(|_| wrong())?,
                "window" if value == "marked" => options.windows = Windows::Marked,
                "window" if value == "run" => options.windows = Windows::Run,
                "clearing" | "periodic" | "entry" | "fault" | "switch" | "work" | "thread" | "worker"
                    if options.places.add(key, value) => {}
                "flush" => {
                    let digits = value.strip_prefix("0x").ok_or_else(wrong)?;
                    options.flush.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
                }
                "out" => options.out = Some(value.into()),
                _ => return Err(wrong()),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_words() {
        let parse = |line: &str| Options::parse(line.split_whitespace());
        let options = parse("quantum=50 seed=7 window=run profile=3 window_lines=0 out=/tmp/a=b").unwrap();
        assert_eq!((options.quantum, options.outside, options.seed), (50, 5000, 7));
        assert!(parse("clearing=0x10-0x20 periodic=0x30").unwrap().places.clears(0x10));
        assert_eq!(parse("flush=0xfb flush=0xfc").unwrap().flush, [0xfb, 0xfc]);
        assert_eq!((options.lines, options.window_lines, options.profile), (100, 0, 3));
        assert_eq!((options.windows, options.out), (Windows::Run, Some("/tmp/a=b".into())));
        for bad in [
            "quantum=0",
            "quantum=x",
            "outside=",
            "frob=1",
            "window=some",
            "lines",
            "profile=x",
            "entry=main",
            "worker=0x1",
            "flush=242",
        ] {
            assert_eq!(parse(bad).unwrap_err(), format!("cannot understand the option {bad}"));
        }
    }
}
